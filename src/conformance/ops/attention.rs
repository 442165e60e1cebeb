//! Softmax attention and what is built on it.

use super::{Op, not_built, output, poisoned, submit, upload};
use crate::attention::{Attention, AttentionArgs, AttentionShape, CausalAlignment, Mask};
use crate::conformance::case::Case;
use crate::conformance::run::{Outcome, Stop};
use crate::{Context, DType, Layout};

/// The function of an operator of this family.
pub(super) fn find(op: &str) -> Option<Op> {
    Some(match op {
        "sdpa" => sdpa,
        "sdpa_varlen" | "sdpa_bwd" | "merge_partials" | "mla_decode" | "mla_absorb" | "moh"
        | "plga" | "plga_full" | "triple_attention" => not_built,
        _ => return None,
    })
}

/// Attention; the cases are heads-first.
fn sdpa(ctx: &Context, case: &Case, dtype: DType) -> Outcome {
    for (input, option) in [
        ("in.bias", "an additive bias"),
        ("in.mask", "a mask tensor"),
        ("in.key_mask", "a key mask"),
        ("in.slopes", "ALiBi"),
    ] {
        if case.tensor(input).is_some() {
            return Err(Stop::Unsupported(format!("sdpa with {option} is not built yet")));
        }
    }
    if case.param_f32("softcap")?.is_some_and(|cap| cap != 0.0) {
        return Err(Stop::Unsupported("sdpa with a softcap is not built yet".into()));
    }
    if case.has_param("window") {
        return Err(Stop::Unsupported("sdpa with a sliding window is not built yet".into()));
    }

    let ([batch, heads, seq_q, head_dim], q) = case.input("in.q")?;
    let (k_shape @ [_, heads_kv, seq_k, _], k) = case.input("in.k")?;
    let (v_shape @ [_, _, _, head_dim_v], v) = case.input("in.v")?;
    let shape = AttentionShape { batch, seq_q, seq_k, heads, heads_kv, head_dim, head_dim_v };
    let mask = match case.param_bool("causal")? {
        true => Mask::Causal(CausalAlignment::BottomRight),
        false => Mask::None,
    };
    let scale = case.param_f32("scale")?;
    let plan = Attention { mask, scale, dtype, ..Default::default() }.plan(ctx, shape)?;

    let q = upload(ctx, [batch, heads, seq_q, head_dim], q, dtype)?;
    let k = upload(ctx, k_shape, k, dtype)?;
    let v = upload(ctx, v_shape, v, dtype)?;
    let o = poisoned(ctx, [batch, heads, seq_q, head_dim_v], dtype)?;
    let lse = poisoned(ctx, [batch, heads, seq_q], DType::F32)?;
    let heads_last = |shape| Layout::contiguous(shape).permuted([0, 2, 1, 3]);
    let args = AttentionArgs {
        lse: Some(lse.view()),
        ..AttentionArgs::new(
            q.view_as(heads_last(q.shape()))?,
            k.view_as(heads_last(k.shape()))?,
            v.view_as(heads_last(v.shape()))?,
            o.view_as(heads_last(o.shape()))?,
        )
    };
    submit(ctx, |encoder| plan.encode(ctx, encoder, &args))?;
    Ok(vec![output(ctx, "out.o", &o)?, output(ctx, "out.lse", &lse)?])
}
