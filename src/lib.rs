//! Attention and equivariant tensor products on any GPU that wgpu reaches.
//!
//! Every operator is a plain options struct. `plan` checks sizes, chooses tiles and compiles;
//! `encode` checks tensors and records into the caller's encoder. Nothing submits on its own.
//!
//! ```no_run
//! use tilewise::{Context, DType, Tensor, attention::*};
//! # fn main() -> tilewise::Result<()> {
//! let ctx = Context::new_blocking()?;
//! let plan = Attention::default().plan(&ctx, AttentionShape::self_attention(1, 128, 8, 64))?;
//! let x = Tensor::upload(&ctx, [1, 128, 8, 64], &vec![0.5f32; 128 * 8 * 64])?;
//! let o = Tensor::zeros(&ctx, [1, 128, 8, 64], DType::F32)?;
//! let mut encoder = ctx.device.create_command_encoder(&Default::default());
//! plan.encode(&ctx, &mut encoder, &AttentionArgs::new(x.view(), x.view(), x.view(), o.view()))?;
//! ctx.queue.submit([encoder.finish()]);
//! # Ok(()) }
//! ```
//!
//! # Conventions
//! - Axis order is heads-last, `[batch, seq, heads, head_dim]`; views carry strides and an offset,
//!   in elements, so other orders need no copy ([`Layout::permuted`]). The last axis is contiguous.
//! - f32, f16 and bf16 are storage on every device; sums and softmax statistics are f32.
//! - LSE is in natural logarithms. A row that sees no key has output 0 and LSE -inf.
//! - Gates and decays are logarithms, at most 0.
//! - Real spherical harmonics in e3nn's order and axes: index `l^2 + l + m`, `l = 1` is (x, y, z).
//! - Results repeat bit for bit on one device.
//! - NaN or infinity in an input that is used gives unspecified values there; in one that is
//!   masked out it has no effect.
//!
//! # Features
//! - `conformance`: reader, runner and judge of golden cases.
//! - `cli`: the `tilewise` program.
#![deny(missing_docs)]

pub mod attention;
mod caps;
mod cards;
#[cfg(feature = "conformance")]
pub mod conformance;
mod context;
mod dispatch;
mod element;
mod error;
pub mod fft;
pub mod gaunt;
mod home;
pub mod linear_attention;
pub mod measure;
pub mod neighborhood;
pub mod reference;
mod shader;
mod tensor;
#[cfg(test)]
mod test_support;
mod texels;
mod tuning;

pub use caps::{Caps, DeviceClass, Tier};
pub use cards::{CARDS, Card};
pub use context::Context;
pub use element::{DType, Element};
pub use error::{Error, Result};
pub use tensor::{Layout, Tensor, TensorView};
pub use tuning::{Tuned, Tuning};
pub use wgpu;

/// The README's program, compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
