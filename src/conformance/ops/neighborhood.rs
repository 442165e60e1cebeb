//! Neighborhood attention and the window operators that it expresses.

use super::{Op, not_built};

/// The function of an operator of this family.
pub(super) fn find(op: &str) -> Option<Op> {
    Some(match op {
        "natten_1d" | "natten_2d" | "natten_3d" | "natten_bwd_1d" | "natten_bwd_2d"
        | "maxvit_block" | "maxvit_grid" | "axial" | "halo" => not_built,
        _ => return None,
    })
}
