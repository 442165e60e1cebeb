//! One function per operator: reads a case's arguments, runs the operator, returns its outputs.

mod attention;
mod gaunt;
mod linear;
mod neighborhood;
mod relative;

use half::{bf16, f16};
use serde_json::Value;

use super::case::{Case, Data};
use super::run::{Outcome, Output, Stop};
use crate::{Context, DType, Element, Result, Tensor};

/// Runs a case's operator.
pub(super) type Op = fn(&Context, &Case, DType) -> Outcome;

/// The function of an operator by its name in the cases.
pub(super) fn find(op: &str) -> Option<Op> {
    attention::find(op)
        .or_else(|| neighborhood::find(op))
        .or_else(|| linear::find(op))
        .or_else(|| gaunt::find(op))
        .or_else(|| relative::find(op))
}

/// An operator that this crate does not have yet.
fn not_built(_: &Context, case: &Case, _: DType) -> Outcome {
    Err(Stop::Unsupported(format!("{} is not built yet", case.op)))
}

/// A tensor of type `dtype` holding `data`, rounded to it.
fn upload<const N: usize>(
    ctx: &Context,
    shape: [u32; N],
    data: &[f32],
    dtype: DType,
) -> Result<Tensor<N>> {
    fn rounded<T: Element>(data: &[f32]) -> Vec<T> {
        data.iter().map(|&x| T::from_f32(x)).collect()
    }
    match dtype {
        DType::F32 => Tensor::upload(ctx, shape, data),
        DType::F16 => Tensor::upload(ctx, shape, &rounded::<f16>(data)),
        DType::BF16 => Tensor::upload(ctx, shape, &rounded::<bf16>(data)),
        DType::I8 => Tensor::upload(ctx, shape, &rounded::<i8>(data)),
        DType::U8 => Tensor::upload(ctx, shape, &rounded::<u8>(data)),
    }
}

/// A tensor for an output, full of NaN: an entry that the operator does not write fails the case.
fn poisoned<const N: usize>(ctx: &Context, shape: [u32; N], dtype: DType) -> Result<Tensor<N>> {
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d as usize));
    upload(ctx, shape, &vec![f32::NAN; elements.unwrap_or(0)], dtype)
}

/// Submits what `record` records.
fn submit(
    ctx: &Context,
    record: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<()>,
) -> Result<()> {
    const OP: &str = "conformance";
    ctx.guard(OP, None, || {
        let mut encoder = ctx.device.create_command_encoder(&Default::default());
        record(&mut encoder)?;
        ctx.queue.submit([encoder.finish()]);
        Ok(())
    })?
}

/// Reads a tensor back as an output of the case.
fn output<const N: usize>(ctx: &Context, name: &str, tensor: &Tensor<N>) -> Result<Output> {
    fn widened<T: Element>(data: Vec<T>) -> Vec<f32> {
        data.into_iter().map(T::to_f32).collect()
    }
    let data = match tensor.dtype() {
        DType::F32 => tensor.download(ctx)?,
        DType::F16 => widened(tensor.download::<f16>(ctx)?),
        DType::BF16 => widened(tensor.download::<bf16>(ctx)?),
        DType::I8 => widened(tensor.download::<i8>(ctx)?),
        DType::U8 => widened(tensor.download::<u8>(ctx)?),
    };
    Ok(Output { name: name.into(), shape: tensor.shape().to_vec(), data })
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
