//! Gaunt tensor products and spherical harmonics.

use super::{Op, not_built};

/// The function of an operator of this family.
pub(super) fn find(op: &str) -> Option<Op> {
    Some(match op {
        "gaunt_coeffs"
        | "spherical_harmonics"
        | "gaunt_tp"
        | "gaunt_tp_weighted"
        | "gaunt_tp_bwd"
        | "gaunt_conv"
        | "gaunt_many_body"
        | "gaunt_equivariance"
        | "s2grid"
        | "sh_to_fourier"
        | "cg_coeffs"
        | "cg_full_tp" => not_built,
        _ => return None,
    })
}
