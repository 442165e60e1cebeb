//! Linear attention: recurrences with a state, and kernelised attention.

use super::{Op, not_built};

/// The function of an operator of this family.
pub(super) fn find(op: &str) -> Option<Op> {
    Some(match op {
        "lightning"
        | "retention"
        | "gla"
        | "gla_bwd"
        | "simple_gla"
        | "linear_attn_causal"
        | "linear_attn_elu"
        | "linear_attn_noncausal"
        | "delta_rule"
        | "gated_delta_rule"
        | "kernel_rpe" => not_built,
        _ => return None,
    })
}
