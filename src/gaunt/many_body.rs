//! Products of several functions, truncated only at the end.

use std::sync::Arc;

use super::{
    Algorithm, GauntNormalization, GauntShape, MAX_LMAX, check_degree,
    fused::{MAX_INPUTS, Operand},
    product::Product,
    program::{Combine, Program},
};
use crate::{
    Caps, Context, DType, Error, Result, TensorView, dispatch::distinct_outputs, home::Home,
};

const OP: &str = "gaunt_many_body";

/// Largest degree of an untruncated product of several functions.
pub const MAX_DEGREE: u32 = 64;

/// Options of a product of several functions, each raised to a power:
/// `z` are the coefficients up to `lmax_out` of `prod_i f(x_i)^(power_i)`. Intermediate products
/// are not truncated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GauntManyBody {
    /// Degree and power of every input, at most 7. The sum of degree times power is at most
    /// [`MAX_DEGREE`].
    pub factors: Vec<(u32, u32)>,
    /// Degree of `z`.
    pub lmax_out: u32,
    /// Scale of every product of two, so that of `n` factors is its power `n - 1`.
    pub normalization: GauntNormalization,
    /// Element type of inputs and `z`.
    pub dtype: DType,
    /// [`Algorithm::Grid`] (the planner's choice) or [`Algorithm::Fourier`].
    pub algorithm: Option<Algorithm>,
}

/// The tensors of one call.
#[derive(Clone, Copy, Debug)]
pub struct GauntManyBodyArgs<'a> {
    /// `[batch, channels, (lmax_i + 1)^2]` for every factor.
    pub inputs: &'a [TensorView<'a, 3>],
    /// `[batch, channels, (lmax_out + 1)^2]`, written everywhere.
    pub z: TensorView<'a, 3>,
    /// At least [`GauntManyBodyPlan::scratch_bytes`] bytes with usage `STORAGE`, needed if that is
    /// not 0.
    pub scratch: Option<&'a wgpu::Buffer>,
}

/// A checked and compiled product of several functions.
#[derive(Debug)]
pub struct GauntManyBodyPlan {
    options: GauntManyBody,
    shape: GauntShape,
    product: Product,
    /// The device it was planned on.
    home: Arc<Home>,
}

/// Names of inputs in messages.
const NAMES: [&str; MAX_INPUTS] =
    ["inputs[0]", "inputs[1]", "inputs[2]", "inputs[3]", "inputs[4]", "inputs[5]", "inputs[6]"];

impl GauntManyBody {
    /// The `power`-fold product of one function with itself.
    pub fn power(lmax: u32, power: u32, lmax_out: u32) -> Self {
        Self { factors: vec![(lmax, power)], lmax_out, ..Default::default() }
    }

    /// Checks the problem and compiles.
    ///
    /// # Errors
    /// [`Error::Shape`] for a number of factors or a degree out of range, [`Error::Value`] for a
    /// power of 0, [`Error::Argument`] for the table algorithm, [`Error::Limit`],
    /// [`Error::Compile`], [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, shape: GauntShape) -> Result<GauntManyBodyPlan> {
        let most = MAX_INPUTS.min(input_limit(&ctx.caps));
        if self.factors.is_empty() || self.factors.len() > most {
            return Err(Error::shape(
                OP,
                "factors",
                format!("1 to {most} of them"),
                self.factors.len(),
            ));
        }
        let mut degree = 0u32;
        for &(lmax, power) in &self.factors {
            check_degree(OP, "lmax", lmax, MAX_LMAX)?;
            if power == 0 || power > MAX_DEGREE {
                return Err(Error::value(OP, "power", format!("1 to {MAX_DEGREE}"), power));
            }
            degree += lmax * power;
        }
        check_degree(OP, "degree of the product", degree, MAX_DEGREE)?;
        check_degree(OP, "lmax_out", self.lmax_out, MAX_DEGREE)?;
        let algorithm = self.algorithm.unwrap_or(Algorithm::Grid);
        if algorithm == Algorithm::Table {
            return Err(Error::argument(
                OP,
                "algorithm",
                "several factors have no table route; use Grid or Fourier",
            ));
        }
        let factors: u32 = self.factors.iter().map(|f| f.1).sum();
        let program = Program {
            sampling: algorithm.sampling(),
            lmax: self.factors.iter().map(|f| f.0).collect(),
            combine: Combine::Powers(self.factors.iter().map(|f| f.1).collect()),
            lmax_out: self.lmax_out,
            scale: self.normalization.factor().powi(factors.cast_signed() - 1).to_bits(),
        };
        let rows = u64::from(shape.batch) * u64::from(shape.channels);
        let product = Product::new(ctx, OP, program, self.dtype, rows)?;
        Ok(GauntManyBodyPlan {
            options: self.clone(),
            shape,
            product,
            home: Arc::clone(ctx.home()),
        })
    }
}

/// Inputs that fit the device's storage buffers beside the output and a table.
fn input_limit(caps: &Caps) -> usize {
    caps.storage_buffers.saturating_sub(2).max(1) as usize
}

impl GauntManyBodyPlan {
    /// The options.
    pub fn options(&self) -> &GauntManyBody {
        &self.options
    }

    /// Bytes of scratch that [`GauntManyBodyArgs::scratch`] must have.
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

    /// The text of each kernel, for contiguous views.
    pub fn wgsl(&self) -> Vec<String> {
        self.product.wgsl()
    }

    /// Records the product into the caller's encoder, in a compute pass of its own; submits
    /// nothing.
    ///
    /// # Errors
    /// As [`GauntManyBodyPlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &GauntManyBodyArgs<'_>,
    ) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: None,
        });
        self.encode_pass(ctx, &mut pass, args)
    }

    /// Records the product into the caller's compute pass; submits nothing.
    ///
    /// # Errors
    /// As [`GauntPlan::encode_pass`](super::GauntPlan::encode_pass).
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &GauntManyBodyArgs<'_>,
    ) -> Result<()> {
        ctx.expect_plan(OP, Some(&self.home))?;
        let (o, s) = (&self.options, self.shape);
        if args.inputs.len() != o.factors.len() {
            return Err(Error::shape(
                OP,
                "inputs",
                format!("{} tensors", o.factors.len()),
                args.inputs.len(),
            ));
        }
        let rows = |l: u32| [s.batch, s.channels, (l + 1).pow(2)];
        let mut operands = Vec::new();
        for ((view, &(lmax, _)), name) in args.inputs.iter().zip(&o.factors).zip(NAMES) {
            view.expect(OP, name, rows(lmax), o.dtype)?;
            operands.push(Operand { name, view: *view, weight: None, gather: None });
        }
        args.z.expect_output(OP, "z", rows(o.lmax_out), o.dtype)?;
        let mut outputs = vec![("z", args.z.buffer)];
        if self.scratch_bytes() > 0 {
            outputs.extend(args.scratch.map(|s| ("scratch", s)));
        }
        let inputs: Vec<_> = operands.iter().map(|x| (x.name, x.view.buffer)).collect();
        distinct_outputs(ctx, OP, &outputs, &inputs)?;
        self.product.encode_pass(
            ctx,
            pass,
            [s.batch, s.channels],
            &operands,
            &args.z,
            None,
            args.scratch,
        )
    }
}
