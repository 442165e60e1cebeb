//! Fourier transforms, known to random cases only.

use super::Op;
use super::rig::Rig;
use crate::DType;
use crate::conformance::case::Case;
use crate::conformance::run::{Outcome, Stop};
use crate::fft::{Direction, Fft, FftArgs};

/// The operators of this family.
pub(super) const OPS: &[(&str, Op)] = &[("fft", fft)];

fn fft(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let (shape @ [batch, ..], x) = case.input::<4>("in.x")?;
    let [rows, columns] = case.param_u32s("shape")?[..] else {
        return Err(Stop::Refused("shape: expected 2 axes".into()));
    };
    let inverse = case.param_bool("inverse")?;
    let real = case.param_bool("real")?;
    let options = Fft {
        shape: [rows, columns],
        direction: if inverse { Direction::Inverse } else { Direction::Forward },
        real,
        ..Default::default()
    };
    let out_shape = match (real, inverse) {
        (false, _) => shape,
        (true, false) => [batch, rows, columns / 2 + 1, 2],
        (true, true) => [batch, rows, columns, 1],
    };
    let plan = options.plan(rig, batch)?;
    let x = rig.upload(shape, x, dtype)?;
    let out = rig.poisoned(out_shape, dtype)?;
    let scratch = match plan.scratch_bytes() {
        0 => None,
        bytes => Some(rig.scratch(bytes)?),
    };
    let args = FftArgs { input: x.view(), output: out.view(), scratch: scratch.as_ref() };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    Ok(vec![rig.output("out.x", &out)?])
}
