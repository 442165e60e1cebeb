//! One function per operator: reads a case's arguments, runs the operator, returns its outputs.

mod attention;
mod fft;
mod gaunt;
mod linear;
mod neighborhood;
mod relative;
mod rig;

use serde_json::Value;

use super::case::{Case, Data};
use super::run::{Outcome, Stop};
use crate::DType;
pub(super) use rig::Rig;

/// Runs a case's operator.
pub(super) type Op = fn(&Rig<'_>, &Case, DType) -> Outcome;

/// Every operator by its name in the cases.
pub(super) fn all() -> impl Iterator<Item = (&'static str, Op)> {
    [attention::OPS, neighborhood::OPS, linear::OPS, gaunt::OPS, relative::OPS, fft::OPS]
        .into_iter()
        .flatten()
        .copied()
}

/// The function of an operator by its name in the cases.
pub(super) fn find(op: &str) -> Option<Op> {
    all().find(|(name, _)| *name == op).map(|(_, run)| run)
}

/// An operator that this crate does not have yet.
fn not_built(_: &Rig<'_>, case: &Case, _: DType) -> Outcome {
    Err(Stop::Unsupported(format!("{} is not built yet", case.op)))
}

/// A number, or a word that Python writes for one.
fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some("NaN") => Some(f64::NAN),
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        _ => value.as_f64(),
    }
}

#[allow(dead_code, reason = "sizes among the arguments belong to operators that are not built yet")]
/// A whole number that fits `u32`.
fn whole(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| n.try_into().ok())
}

/// Arguments of a case. An argument of the wrong kind, a negative size for one, is refused: the
/// types of this crate cannot express it.
#[allow(dead_code, reason = "some kinds of argument belong to operators that are not built yet")]
impl Case {
    fn param(&self, name: &str) -> Result<&Value, Stop> {
        self.params.get(name).ok_or_else(|| Stop::Failed(format!("the case lacks param {name}")))
    }

    fn param_as<'a, T>(
        &'a self,
        name: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T, Stop> {
        let value = self.param(name)?;
        read(value).ok_or_else(|| Stop::Refused(format!("{name}: expected {kind}, got {value}")))
    }

    /// A size.
    fn param_u32(&self, name: &str) -> Result<u32, Stop> {
        self.param_as(name, "a whole number", whole)
    }

    /// A number; `None` where the case lacks it or says null.
    #[expect(clippy::cast_possible_truncation, reason = "arguments of the operators are f32")]
    fn param_f32(&self, name: &str) -> Result<Option<f32>, Stop> {
        if !self.has_param(name) {
            return Ok(None);
        }
        Ok(Some(self.param_as(name, "a number", number)? as f32))
    }

    /// A switch; off where the case lacks it.
    fn param_bool(&self, name: &str) -> Result<bool, Stop> {
        if !self.has_param(name) {
            return Ok(false);
        }
        self.param_as(name, "true or false", Value::as_bool)
    }

    /// A name.
    fn param_str(&self, name: &str) -> Result<&str, Stop> {
        self.param_as(name, "a text", Value::as_str)
    }

    /// One size per axis.
    fn param_u32s(&self, name: &str) -> Result<Vec<u32>, Stop> {
        self.param_as(name, "a list of whole numbers", |v| {
            v.as_array()?.iter().map(whole).collect()
        })
    }

    /// One switch per axis.
    fn param_bools(&self, name: &str) -> Result<Vec<bool>, Stop> {
        self.param_as(name, "a list of true or false", |v| {
            v.as_array()?.iter().map(Value::as_bool).collect()
        })
    }

    /// Whether the case has that argument and it is not null.
    fn has_param(&self, name: &str) -> bool {
        self.params.get(name).is_some_and(|v| !v.is_null())
    }

    /// Shape and values of an input of `N` axes.
    fn input<const N: usize>(&self, name: &str) -> Result<([u32; N], &[f32]), Stop> {
        let tensor =
            self.tensor(name).ok_or_else(|| Stop::Failed(format!("the case lacks {name}")))?;
        let shape = tensor.shape.as_slice().try_into().map_err(|_| {
            Stop::Refused(format!("{name}: expected {N} axes, got shape {:?}", tensor.shape))
        })?;
        match &tensor.data {
            Data::F32(data) => Ok((shape, data)),
            _ => Err(Stop::Failed(format!("{name}: expected elements of type F32"))),
        }
    }
}
