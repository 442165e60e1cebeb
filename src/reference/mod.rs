//! Definitions, in f64, of what each operator computes: one file for each, written as the formula
//! reads, without blocking, and sharing no code with the kernels or their planners.
//!
//! They are public so that users can check against them too. Arrays are row-major in the axis
//! order that the operator documents.

mod attention;
mod linear_attention;

pub use attention::{AttentionInputs, attention, packed_attention, triple_attention};
pub use linear_attention::{
    LinearAttentionInputs, LinearAttentionOutputs, channel_attention, linear_attention,
};
mod fft;
pub use fft::dft;
mod gaunt;
mod spherical_harmonics;
mod wigner;
pub use gaunt::*;
pub use spherical_harmonics::spherical_harmonics;
pub use wigner::{real_wigner_3j, wigner_3j};
mod neighborhood;
#[cfg(test)]
pub(crate) use neighborhood::visible;
pub use neighborhood::{NeighborhoodInputs, neighborhood_attention};
mod relative_attention;
pub use relative_attention::{positive_features, relative_attention};
