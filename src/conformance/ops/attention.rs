//! Softmax attention and what is built on it.

use super::{Op, not_built};

/// The function of an operator of this family.
pub(super) fn find(op: &str) -> Option<Op> {
    Some(match op {
        "sdpa" | "sdpa_varlen" | "sdpa_bwd" | "merge_partials" | "mla_decode" | "mla_absorb"
        | "moh" | "plga" | "plga_full" | "triple_attention" => not_built,
        _ => return None,
    })
}
