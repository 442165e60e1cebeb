//! Portable GPU compute kernels on wgpu.
#![deny(missing_docs)]

mod caps;
mod element;
mod error;

pub use caps::{Caps, Tier};
pub use element::{DType, Element};
pub use error::{Error, Result};
pub use wgpu;
