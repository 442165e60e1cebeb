//! Definitions, in f64, of what each operator computes: one file for each, written as the formula
//! reads, without blocking, and sharing no code with the kernels or their planners.
//!
//! They are public so that users can check against them too. Arrays are row-major in the axis
//! order that the operator documents.

mod attention;
mod neighborhood;

pub use attention::attention;
#[cfg(test)]
pub(crate) use neighborhood::visible;
pub use neighborhood::{NeighborhoodInputs, neighborhood_attention};
