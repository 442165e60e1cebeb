//! Portable GPU compute kernels on wgpu.
#![deny(missing_docs)]

pub mod attention;
mod caps;
#[cfg(feature = "conformance")]
pub mod conformance;
mod context;
mod dispatch;
mod element;
mod error;
pub mod fft;
pub mod gaunt;
pub mod linear_attention;
pub mod measure;
pub mod neighborhood;
pub mod reference;
mod shader;
mod tensor;
#[cfg(test)]
mod test_support;

pub use caps::{Caps, Tier};
pub use context::Context;
pub use element::{DType, Element};
pub use error::{Error, Result};
pub use tensor::{Layout, Tensor, TensorView};
pub use wgpu;
