//! Kernelised attention with relative positions.

use super::Op;
use super::rig::{Rig, Tensor};
use crate::conformance::case::Case;
use crate::conformance::run::Outcome;
use crate::linear_attention::{
    RelativeAttention, RelativeAttentionArgs, RelativeAttentionShape, RelativeFeatures,
};
use crate::{DType, Layout};

/// The operators of this family.
pub(super) const OPS: &[(&str, Op)] = &[("kernel_rpe", kernel_rpe)];

/// Heads-first, with features given or to be made.
fn kernel_rpe(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let given = case.param_bool("given_features")?;
    let [q, k] = if given { ["in.phi_q", "in.phi_k"] } else { ["in.q", "in.k"] };
    let heads_last = |shape: [u32; 4]| Layout::contiguous(shape).permuted([0, 2, 1, 3]);
    let (q_shape, q) = case.input::<4>(q)?;
    let (k_shape, k) = case.input::<4>(k)?;
    let (v_shape, v) = case.input::<4>("in.v")?;
    let (b_shape, b) = case.input::<2>("in.b")?;
    let w = if given { None } else { Some(case.input::<3>("in.w")?) };
    let [batch, heads, seq, key_dim] = q_shape;
    let features = w.map_or(RelativeFeatures::Given, |([_, n, _], _)| RelativeFeatures::Random(n));
    let causal = case.param_bool("causal")?;
    let options = RelativeAttention { features, causal, dtype, ..Default::default() };
    let value_dim = v_shape[3];
    let plan =
        options.plan(rig, RelativeAttentionShape { batch, seq, heads, key_dim, value_dim })?;
    let (q, k) = (rig.upload(q_shape, q, dtype)?, rig.upload(k_shape, k, dtype)?);
    let (v, b) = (rig.upload(v_shape, v, dtype)?, rig.upload(b_shape, b, DType::F32)?);
    let w = w.map(|(shape, w)| rig.upload(shape, w, DType::F32)).transpose()?;
    let o = rig.poisoned(v_shape, dtype)?;
    let scratch = rig.scratch(plan.scratch_bytes())?;
    let args = RelativeAttentionArgs {
        q: q.view_as(heads_last(q_shape))?,
        k: k.view_as(heads_last(k_shape))?,
        v: v.view_as(heads_last(v_shape))?,
        b: b.view(),
        w: w.as_ref().map(Tensor::view),
        o: o.view_as(heads_last(v_shape))?,
        scratch: Some(&scratch),
    };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    Ok(vec![rig.output("out.o", &o)?])
}
