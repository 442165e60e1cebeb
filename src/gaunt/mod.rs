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
//! couplings, [`ClebschGordan`] every path apart, [`WeightedTensorProduct`] sums of them with
//! weights.

use std::sync::Arc;

mod basis;
mod clebsch_gordan;
mod coefficients;
mod convolution;
mod fused;
mod harmonics;
mod many_body;
mod maps;
mod orders;
mod product;
mod program;
mod schedule;
mod staged;
mod transforms;
mod weighted;

use fused::Operand;
use maps::Weight;
use product::Product;
use program::{Combine, Program, Sampling};

pub use clebsch_gordan::*;
pub use convolution::*;
pub use harmonics::*;
pub use many_body::*;
pub use transforms::*;
pub use weighted::*;

use crate::{
    Caps, Context, DType, Error, Layout, Result, TensorView,
    dispatch::distinct_outputs,
    home::Home,
    tuning::{Tuned, plan_or, refuse},
};

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
#[cfg_attr(feature = "cli", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "cli", serde(rename_all = "snake_case"))]
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
    /// At least [`GauntPlan::scratch_bytes`] bytes with usage `STORAGE`, needed if that is not 0.
    pub scratch: Option<&'a wgpu::Buffer>,
}

impl<'a> GauntArgs<'a> {
    /// Inputs and output, no weights.
    pub fn new(x: TensorView<'a, 3>, y: TensorView<'a, 3>, z: TensorView<'a, 3>) -> Self {
        Self { x, y, z, weight1: None, weight2: None, weight_out: None, scratch: None }
    }
}

/// A checked and compiled product. Encode it as often as you like.
#[derive(Debug)]
pub struct GauntPlan {
    options: GauntTensorProduct,
    shape: GauntShape,
    product: Product,
    /// The device it was planned on.
    home: Arc<Home>,
}

const OP: &str = "gaunt_tensor_product";

impl GauntTensorProduct {
    /// The product of equal degrees `lmax` in, `lmax_out` out.
    pub fn new(lmax: u32, lmax_out: u32) -> Self {
        Self { lmax1: lmax, lmax2: lmax, lmax_out, ..Default::default() }
    }

    /// The product that gives the gradient of `sum(z * dz)` with respect to `x` from `(y, dz)`:
    /// coefficients are symmetric in all three. With [`Coupling::Vector`] it holds too (rotating
    /// the three places of an antisymmetric coupling keeps its sign).
    #[must_use]
    pub fn gradient1(&self) -> Self {
        Self { lmax1: self.lmax2, lmax2: self.lmax_out, lmax_out: self.lmax1, ..*self }
    }

    /// The product that gives the gradient of `sum(z * dz)` with respect to `y` from `(dz, x)`.
    #[must_use]
    pub fn gradient2(&self) -> Self {
        Self { lmax1: self.lmax_out, lmax2: self.lmax1, lmax_out: self.lmax2, ..*self }
    }

    /// Multiply-adds, two flops each, that one product takes on the smallest exact grid: colatitude
    /// sums by parity, longitude sums by sign, nothing else saved, nothing padded. A measure of
    /// useful work that does not depend on the route.
    pub fn flops(&self) -> f64 {
        let [l1, l2, l3] = [self.lmax1, self.lmax2, self.lmax_out].map(f64::from);
        let l3 = l3.min(l1 + l2);
        let (parallels, longitudes) = (((l1 + l2 + l3) / 2.0).floor() + 1.0, l1 + l2 + l3 + 1.0);
        let transform = |l: f64| {
            let n = longitudes;
            parallels
                * ((l + 1.0).powi(2) / 2.0 + (l + 1.0) * (n + 1.0) / 2.0 + l * (n - 1.0) / 2.0)
        };
        2.0 * (transform(l1) + transform(l2) + transform(l3)) + parallels * longitudes
    }

    /// The algorithm that a plan on such a device uses.
    pub fn select(&self, caps: &Caps) -> Algorithm {
        self.algorithm.unwrap_or_else(|| {
            match product::select(caps, self.lmax1, self.lmax2, self.lmax_out) {
                // a vector product has no Fourier route
                Algorithm::Fourier if self.coupling == Coupling::Vector => Algorithm::Grid,
                chosen => chosen,
            }
        })
    }

    /// Checks the problem, chooses an algorithm, compiles.
    ///
    /// # Errors
    /// [`Error::Shape`] for a degree out of range, [`Error::Argument`] for a vector product by the
    /// Fourier route, [`Error::Limit`], [`Error::Compile`], [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, shape: GauntShape) -> Result<GauntPlan> {
        check_degree(OP, "lmax1", self.lmax1, MAX_LMAX)?;
        check_degree(OP, "lmax2", self.lmax2, MAX_LMAX)?;
        check_degree(OP, "lmax_out", self.lmax_out, 2 * MAX_LMAX)?;
        let tuned = self.algorithm.is_none().then(|| ctx.tuning()).flatten().and_then(|table| {
            let Tuned::Gaunt { algorithm } = table.entries.get(&self.tuning_key(&ctx.caps))? else {
                return Some(Err(refuse(OP, "the entry is of another operator")));
            };
            Some(Self { algorithm: Some(*algorithm), ..*self }.plan_by(ctx, shape))
        });
        plan_or(|| self.tuning_key(&ctx.caps), tuned, || self.plan_by(ctx, shape))
    }

    /// The class of problems that a [`Tuning`](crate::Tuning) knows this one by.
    pub fn tuning_key(&self, caps: &Caps) -> String {
        let vector = if self.coupling == Coupling::Vector { " vector" } else { "" };
        let [l1, l2, l3] = [self.lmax1, self.lmax2, self.lmax_out];
        format!("gaunt {} {} l{l1} l{l2} l{l3}{vector}", self.dtype, caps.tier)
    }

    /// [`GauntTensorProduct::plan`] after the degrees are checked, by the algorithm of the options
    /// or the planner's.
    fn plan_by(&self, ctx: &Context, shape: GauntShape) -> Result<GauntPlan> {
        let algorithm = self.select(&ctx.caps);
        let vector = self.coupling == Coupling::Vector;
        if vector && algorithm == Algorithm::Fourier {
            return Err(Error::argument(
                OP,
                "algorithm",
                "a vector product has no Fourier route; use Grid or Table",
            ));
        }
        let program = Program {
            sampling: algorithm.sampling(),
            lmax: vec![self.lmax1, self.lmax2],
            combine: if vector { Combine::Vector } else { Combine::Powers(vec![1, 1]) },
            lmax_out: self.lmax_out,
            scale: self.normalization.factor().to_bits(),
        };
        let rows = u64::from(shape.batch) * u64::from(shape.channels);
        let product = Product::new(ctx, OP, program, self.dtype, rows)?;
        let options = Self { algorithm: Some(algorithm), ..*self };
        Ok(GauntPlan { options, shape, product, home: Arc::clone(ctx.home()) })
    }
}

impl Algorithm {
    fn sampling(self) -> Sampling {
        match self {
            Self::Table => Sampling::Table,
            Self::Grid => Sampling::GaussLegendre,
            Self::Fourier => Sampling::Fourier,
        }
    }
}

impl GauntPlan {
    /// The options, with the algorithm that was chosen.
    pub fn options(&self) -> GauntTensorProduct {
        self.options
    }

    /// The problem.
    pub fn shape(&self) -> GauntShape {
        self.shape
    }

    /// Bytes of scratch that [`GauntArgs::scratch`] must have: 0 but for degrees too large to keep
    /// a product in registers.
    pub fn scratch_bytes(&self) -> u64 {
        self.product.scratch_bytes()
    }

    /// A buffer of [`scratch_bytes`](Self::scratch_bytes) for calls with this plan, one after the
    /// other; `None` if that is 0.
    ///
    /// # Errors
    /// [`Error::OtherContext`] if the plan is of another device, [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn scratch(&self, ctx: &Context) -> Result<Option<wgpu::Buffer>> {
        ctx.expect_plan(OP, Some(&self.home))?;
        ctx.scratch(OP, self.scratch_bytes())
    }

    /// The text of each kernel, for contiguous views without weights.
    pub fn wgsl(&self) -> Vec<String> {
        self.product.wgsl()
    }

    /// What runs, for profilers.
    pub fn label(&self) -> String {
        self.product.label()
    }

    /// Records the product into the caller's encoder, in a compute pass of its own; submits
    /// nothing.
    ///
    /// # Errors
    /// As [`GauntPlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &GauntArgs<'_>,
    ) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: None,
        });
        self.encode_pass(ctx, &mut pass, args)
    }

    /// Records the product into the caller's compute pass; submits nothing. Nothing is recorded if
    /// an argument is refused. A first call with weights, or with views aligned otherwise than
    /// contiguous ones, compiles its kernel.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Strides`], [`Error::OutOfRange`],
    /// [`Error::Misaligned`] or [`Error::Usage`] for a view that does not fit the plan,
    /// [`Error::SharedBuffer`], [`Error::Argument`] for missing scratch, [`Error::Limit`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn encode_pass<'a>(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &GauntArgs<'a>,
    ) -> Result<()> {
        ctx.expect_plan(OP, Some(&self.home))?;
        let (o, s) = (&self.options, self.shape);
        let rows = |l: u32| [s.batch, s.channels, (l + 1).pow(2)];
        args.x.expect(OP, "x", rows(o.lmax1), o.dtype)?;
        args.y.expect(OP, "y", rows(o.lmax2), o.dtype)?;
        args.z.expect_output(OP, "z", rows(o.lmax_out), o.dtype)?;
        let mut inputs = vec![("x", args.x.buffer), ("y", args.y.buffer)];
        let weight =
            |what, view: Option<TensorView<'a, 2>>, l: u32| -> Result<Option<Weight<'a>>> {
                let Some(view) = view else { return Ok(None) };
                view.expect(OP, what, [s.channels, l + 1], DType::F32)?;
                Ok(Some((what, per_batch(&view, s.batch))))
            };
        let weights = [
            weight("weight1", args.weight1, o.lmax1)?,
            weight("weight2", args.weight2, o.lmax2)?,
            weight("weight_out", args.weight_out, o.lmax_out)?,
        ];
        inputs.extend(weights.iter().flatten().map(|(name, view)| (*name, view.buffer)));
        let mut outputs = vec![("z", args.z.buffer)];
        if self.scratch_bytes() > 0 {
            outputs.extend(args.scratch.map(|s| ("scratch", s)));
        }
        distinct_outputs(ctx, OP, &outputs, &inputs)?;
        let operands = [
            Operand { name: "x", view: args.x, weight: weights[0], gather: None },
            Operand { name: "y", view: args.y, weight: weights[1], gather: None },
        ];
        self.product.encode_pass(
            ctx,
            pass,
            [s.batch, s.channels],
            &operands,
            &args.z,
            weights[2],
            args.scratch,
        )
    }
}

/// The dense coefficients `g[lm1, lm2, lm3]` of a product, `[(lmax1 + 1)^2, (lmax2 + 1)^2,
/// (lmax_out + 1)^2]`, as the tables of the kernels have them: f64, exact to some 1e-15.
///
/// # Errors
/// [`Error::Shape`] for a degree past [`MAX_LMAX`] or an array past 2^31 elements.
pub fn gaunt_coefficients(
    lmax1: u32,
    lmax2: u32,
    lmax_out: u32,
    coupling: Coupling,
) -> Result<Vec<f64>> {
    check_degree(OP, "lmax1", lmax1, MAX_LMAX)?;
    check_degree(OP, "lmax2", lmax2, MAX_LMAX)?;
    check_degree(OP, "lmax_out", lmax_out, 2 * MAX_LMAX)?;
    let [d1, d2, d3] = [lmax1, lmax2, lmax_out].map(|l| (l as usize + 1).pow(2));
    if d1 * d2 * d3 > 1 << 31 {
        return Err(Error::shape(OP, "coefficients", "at most 2^31", d1 * d2 * d3));
    }
    let mut g = vec![0.0; d1 * d2 * d3];
    for c in coefficients::coefficients(lmax1, lmax2, lmax_out, coupling == Coupling::Vector) {
        g[(c.first as usize * d2 + c.second as usize) * d3 + c.out as usize] = c.value;
    }
    Ok(g)
}

/// `[channels, n]` repeated over the batch.
fn per_batch<'a>(view: &TensorView<'a, 2>, batch: u32) -> TensorView<'a, 3> {
    let ([c, n], [sc, sn]) = (view.layout.shape, view.layout.strides);
    let layout = Layout { shape: [batch, c, n], strides: [0, sc, sn], offset: view.layout.offset };
    TensorView { buffer: view.buffer, layout, dtype: view.dtype }
}

fn check_degree(op: &'static str, what: &'static str, l: u32, max: u32) -> Result<()> {
    if l > max {
        Err(Error::shape(op, what, format!("a degree of at most {max}"), l))
    } else {
        Ok(())
    }
}
