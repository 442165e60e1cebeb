//! Runs a case and decides whether it passed.

use super::case::{Case, Expect};
use super::judge::{Distance, judge};
use super::ops;
use crate::{Context, DType, Error};

/// One output of an operator, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Name in the case, e.g. `out.o`.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<u32>,
    /// Elements, widened to f32.
    pub data: Vec<f32>,
}

/// Why an operator gave no outputs.
#[derive(Clone, Debug, PartialEq)]
pub enum Stop {
    /// The arguments were refused: what an error case wants.
    Refused(String),
    /// The operator, or an option of it, does not exist here, or the device lacks a feature.
    Unsupported(String),
    /// The device or this crate failed: never what a case wants.
    Failed(String),
}

/// The outputs of an operator, or why there are none.
pub type Outcome = Result<Vec<Output>, Stop>;

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Shape { .. }
            | Error::Value { .. }
            | Error::DType { .. }
            | Error::OutOfRange { .. }
            | Error::Misaligned { .. }
            | Error::Strides { .. }
            | Error::SharedBuffer { .. }
            | Error::OtherContext { .. }
            | Error::Usage { .. }
            | Error::Argument { .. }
            | Error::Limit { .. } => Self::Refused(text),
            Error::Unsupported { .. } => Self::Unsupported(text),
            _ => Self::Failed(text),
        }
    }
}

/// Whether a case passed.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// As wanted, with the distance of each output; none where a refusal was wanted.
    Pass(Vec<(String, Distance)>),
    /// Not as wanted; the text has the numbers.
    Fail(String),
    /// Not run, and why.
    Skip(String),
}

/// Runs a case with tensors of type `dtype`.
///
/// A panic inside an operator is a bug of this crate; it becomes [`Stop::Failed`], so that the
/// other cases still run.
pub fn run(ctx: &Context, case: &Case, dtype: DType) -> Outcome {
    run_guarded(ctx, case, dtype, 0)
}

/// [`run`], with every tensor in the middle of a larger buffer.
///
/// `margin` elements before and after the inputs are NaN, those around the outputs must be found
/// unchanged; scratch buffers are NaN too. A write past an end is [`Stop::Failed`]; a read shows as a
/// NaN among the outputs. Where 0, nothing lies around the tensors.
pub fn run_guarded(ctx: &Context, case: &Case, dtype: DType, margin: u32) -> Outcome {
    if case.expect == Expect::Values && dtype != DType::F32 && !case.f16_applicable {
        return Err(Stop::Unsupported("the case is not for 16-bit tensors".into()));
    }
    let op = ops::find(&case.op).ok_or_else(|| {
        Stop::Unsupported(format!("{} is not an operator of this crate", case.op))
    })?;
    let run = std::panic::AssertUnwindSafe(|| {
        let rig = ops::Rig::new(ctx, margin);
        let outputs = op(&rig, case, dtype)?;
        rig.check()?;
        Ok(outputs)
    });
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Stop::Failed(format!("panic: {text}")))
    })
}

/// Judges an outcome.
pub fn verdict(case: &Case, dtype: DType, outcome: &Outcome) -> Verdict {
    match (case.expect, outcome) {
        (_, Err(Stop::Unsupported(why))) => Verdict::Skip(why.clone()),
        (_, Err(Stop::Failed(why))) => Verdict::Fail(why.clone()),
        (Expect::Error, Err(Stop::Refused(_))) => Verdict::Pass(Vec::new()),
        (Expect::Error, Ok(_)) => {
            Verdict::Fail("a result was returned although the arguments are invalid".into())
        }
        (Expect::Values, Err(Stop::Refused(why))) => Verdict::Fail(format!("refused: {why}")),
        (Expect::Values, Ok(outputs)) => {
            let mut distances = Vec::new();
            let mut failures = Vec::new();
            for (name, tolerance) in case.tolerances(dtype) {
                let judged = match (outputs.iter().find(|o| o.name == name), case.tensor(name)) {
                    (Some(got), Some(want)) => judge(want, &got.shape, &got.data, tolerance),
                    _ => Err("no result".into()),
                };
                match judged {
                    Ok(distance) => distances.push((name.to_owned(), distance)),
                    Err(why) => failures.push(format!("{name}: {why}")),
                }
            }
            if !failures.is_empty() {
                Verdict::Fail(failures.join("; "))
            } else if distances.is_empty() {
                Verdict::Fail(format!("the case has no tolerance for {dtype}"))
            } else {
                Verdict::Pass(distances)
            }
        }
    }
}
