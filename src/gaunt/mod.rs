//! Gaunt tensor products: the pointwise product of functions on the sphere, by their coefficients
//! in real spherical harmonics.
//!
//! `z_(l3 m3) = sum G x_(l1 m1) y_(l2 m2)` with `G` the integral over the sphere of
//! `Y_(l1 m1) Y_(l2 m2) Y_(l3 m3)`. Conventions, everywhere in this module, are those of e3nn:
//!
//! - A row of coefficients up to degree `lmax` has `(lmax + 1)^2` elements, `(l, m)` at
//!   `l^2 + l + m`, `m = -l..=l`.
//! - Harmonics are real and orthonormal on the sphere, without Condon-Shortley sign. The polar axis
//!   is y: `r = (sin b sin a, cos b, sin b cos a)`, and degree 1 is `sqrt(3 / 4 pi) (x, y, z)`.
//! - Channels are independent.
//!
//! The product is not the Clebsch-Gordan product: it has one output for each degree, no coupling
//! of odd `l1 + l2 + l3`, and fixed weights between its paths. [`Coupling::Vector`] has the odd
//! couplings, [`ClebschGordan`] every path apart.

mod basis;
mod fused;
mod program;

use fused::{Fused, Operand};
use program::{Combine, Constants, Program, Sampling};

use crate::{Context, DType, Error, Result, TensorView};

/// Largest degree of an input of a product.
pub const MAX_LMAX: u32 = 32;

/// Scale of real spherical harmonics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ShNormalization {
    /// Orthonormal on the sphere: the integral of `Y^2` is 1. The Gaunt product's basis.
    #[default]
    Integral,
    /// `sum_m Y_lm^2 = 2 l + 1`.
    Component,
    /// `sum_m Y_lm^2 = 1`.
    Norm,
}

impl ShNormalization {
    /// What orthonormal harmonics of degree `l` are multiplied by.
    pub fn factor(self, l: u32) -> f64 {
        let four_pi = 4.0 * std::f64::consts::PI;
        match self {
            Self::Integral => 1.0,
            Self::Component => four_pi.sqrt(),
            Self::Norm => (four_pi / f64::from(2 * l + 1)).sqrt(),
        }
    }
}


/// Scale of the product; implementations differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GauntNormalization {
    /// The integral of three orthonormal harmonics, as Luo et al.'s code.
    #[default]
    Orthonormal,
    /// `sqrt(4 pi)` times that: the unit scalar, `x_00 = 1`, is the identity. As e3nn-jax's grid.
    Identity,
    /// `2 pi` times that: products of Fourier bases that carry `1 / 2 pi`.
    Fourier,
}

impl GauntNormalization {
    /// The product relative to the integral of three orthonormal harmonics.
    pub fn factor(self) -> f64 {
        match self {
            Self::Orthonormal => 1.0,
            Self::Identity => (4.0 * std::f64::consts::PI).sqrt(),
            Self::Fourier => 2.0 * std::f64::consts::PI,
        }
    }
}

/// Which pairs of functions couple.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Coupling {
    /// The product of the values: symmetric, `l1 + l2 + l3` even.
    #[default]
    Scalar,
    /// `r . (grad f x grad g)`, the cross product of the surface gradients: antisymmetric,
    /// `l1 + l2 + l3` odd; a pseudoscalar, so a reflection changes its sign.
    Vector,
}

/// How the product is computed. All give the same result to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// The non-zero coefficients, one by one: `O(L^5)`. The baseline; wins at small degrees.
    Table,
    /// Values on a Gauss-Legendre grid, multiplied: `O(L^3)`.
    Grid,
    /// Two-dimensional Fourier series, multiplied on an equidistant grid of the torus: `O(L^3)`.
    Fourier,
}

/// Options of a Gaunt product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GauntTensorProduct {
    /// Degree of `x`, at most [`MAX_LMAX`].
    pub lmax1: u32,
    /// Degree of `y`, at most [`MAX_LMAX`].
    pub lmax2: u32,
    /// Degree of `z`. Degrees past `lmax1 + lmax2` are zero.
    pub lmax_out: u32,
    /// Scale of the product.
    pub normalization: GauntNormalization,
    /// Scalar or vector product.
    pub coupling: Coupling,
    /// Element type of `x`, `y` and `z`. Arithmetic is f32, and so are weights.
    pub dtype: DType,
    /// Instead of the planner's choice.
    pub algorithm: Option<Algorithm>,
}

/// Number of products: rows of `x`, `y` and `z`, `[batch, channels, (lmax + 1)^2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GauntShape {
    /// Leading axes, merged. May be 0.
    pub batch: u32,
    /// Channels, each with weights of its own. May be 0.
    pub channels: u32,
}

/// The tensors of one product.
#[derive(Clone, Copy, Debug)]
pub struct GauntArgs<'a> {
    /// `[batch, channels, (lmax1 + 1)^2]`. A stride of 0 repeats over batch or channels.
    pub x: TensorView<'a, 3>,
    /// `[batch, channels, (lmax2 + 1)^2]`, likewise.
    pub y: TensorView<'a, 3>,
    /// `[batch, channels, (lmax_out + 1)^2]`, written everywhere.
    pub z: TensorView<'a, 3>,
    /// `[channels, lmax1 + 1]`, f32: `x_lm` is multiplied by its entry for `l`.
    pub weight1: Option<TensorView<'a, 2>>,
    /// `[channels, lmax2 + 1]`, f32, of `y`.
    pub weight2: Option<TensorView<'a, 2>>,
    /// `[channels, lmax_out + 1]`, f32, of `z`.
    pub weight_out: Option<TensorView<'a, 2>>,
}

impl<'a> GauntArgs<'a> {
    /// Inputs and output, no weights.
    pub fn new(x: TensorView<'a, 3>, y: TensorView<'a, 3>, z: TensorView<'a, 3>) -> Self {
        Self { x, y, z, weight1: None, weight2: None, weight_out: None }
    }
}

/// A checked and compiled product. Encode it as often as you like.
#[derive(Debug)]
pub struct GauntPlan {
    options: GauntTensorProduct,
    shape: GauntShape,
    fused: Fused,
}

const OP: &str = "gaunt_tensor_product";

impl GauntTensorProduct {
    /// Checks the problem, chooses an algorithm, compiles.
    ///
    /// # Errors
    /// [`Error::Shape`] for a degree out of range.
    pub fn plan(&self, ctx: &Context, shape: GauntShape) -> Result<GauntPlan> {
        let sampling = match self.algorithm {
            Some(Algorithm::Fourier) => Sampling::Fourier,
            _ => Sampling::GaussLegendre,
        };
        let program = fused::two(sampling, self.lmax1, self.lmax2, self.lmax_out, self.coupling == Coupling::Vector, self.normalization.factor());
        let constants = std::env::var("GC").ok().map(|c| match &*c { "lit" => Constants::Literal, "uni" => Constants::Uniform, _ => Constants::Broadcast { lanes: 8 } });
        let fused = Fused::new(ctx, OP, program, constants, self.dtype)?;
        Ok(GauntPlan { options: *self, shape, fused })
    }
}

impl GauntPlan {
    /// Text.
    pub fn wgsl(&self) -> Vec<String> {
        vec![self.fused.wgsl()]
    }
    /// Ops.
    pub fn operations(&self) -> u64 {
        self.fused.operations()
    }
    /// Records.
    ///
    /// # Errors
    /// many
    pub fn encode_pass(&self, ctx: &Context, pass: &mut wgpu::ComputePass<'_>, args: &GauntArgs<'_>) -> Result<()> {
        let op = |name, view, weight| Operand { name, view, weight, gather: None };
        self.fused.encode_pass(
            ctx, pass, self.shape.batch, self.shape.channels,
            &[op("x", args.x, args.weight1.map(|w| ("weight1", w))), op("y", args.y, args.weight2.map(|w| ("weight2", w)))],
            &args.z, args.weight_out.map(|w| ("weight_out", w)),
        )
    }
}
