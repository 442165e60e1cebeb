//! Fourier transforms of any length, one- and two-dimensional, complex and real, in batches.
//!
//! `X[k] = s * sum_j x[j] exp(-+ 2 pi i j k / n)`, minus forward, plus inverse, output in natural
//! order. The factor `s` is 1 unless [`Normalization`] says otherwise.
//!
//! Lengths whose prime factors are at most 13 (31 on a CPU) are transformed directly, in one pass
//! over memory up to the length that a workgroup holds (1024 or more) and two to 2^20; others by
//! Bluestein's convolution, four or so times dearer. Twiddle factors are computed in f64 and
//! rounded once.
//!
//! ```no_run
//! use tilewise::{Context, DType, Tensor, fft::{Fft, FftArgs}};
//! # fn main() -> tilewise::Result<()> {
//! let ctx = Context::new_blocking()?;
//! let (batch, n) = (8, 1000);
//! // complex numbers are pairs (re, im); a one-dimensional transform has 1 row
//! let x = Tensor::upload(&ctx, [batch, 1, n, 2], &vec![1.0f32; (batch * n * 2) as usize])?;
//! let y = Tensor::zeros(&ctx, [batch, 1, n, 2], DType::F32)?;
//! let plan = Fft { shape: [1, n], ..Default::default() }.plan(&ctx, batch)?;
//! let mut encoder = ctx.device.create_command_encoder(&Default::default());
//! plan.encode(&ctx, &mut encoder, &FftArgs { input: x.view(), output: y.view(), scratch: None })?;
//! ctx.queue.submit([encoder.finish()]);
//! let spectrum: Vec<f32> = y.download(&ctx)?;
//! # Ok(()) }
//! ```

use std::sync::Arc;

mod codelet;
mod kernel;
mod recipe;
mod tables;

use crate::{
    Caps, Context, DType, Error, Result, TensorView,
    dispatch::{Bound, Resource, dispatch, fold},
    home::Home,
    shader::Key,
};
use kernel::{Access, Origin, Variant};
use recipe::{Pairing, Pass, Recipe};
use tables::Tables;

const OP: &str = "fft";

/// The longest transform along one axis.
pub const MAX_LENGTH: u32 = 1 << 24;

/// The sign of the exponent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// `exp(-2 pi i j k / n)`
    #[default]
    Forward,
    /// `exp(+2 pi i j k / n)`
    Inverse,
}

/// The factor that the result is multiplied by, in either direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Normalization {
    /// 1: forward, then inverse, multiplies by the number of points.
    #[default]
    None,
    /// 1 over the square root of the number of points: the transform is unitary.
    Unitary,
    /// 1 over the number of points: what an inverse needs after an unnormalised forward.
    ByLength,
}

/// What is transformed. The element type is f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fft {
    /// Points along the two axes, each 1 to [`MAX_LENGTH`]; `[1, n]` for one-dimensional
    /// transforms. Of real data, the number of real points.
    pub shape: [u32; 2],
    /// The sign of the exponent.
    pub direction: Direction,
    /// The factor.
    pub normalization: Normalization,
    /// Forward: from real numbers to the first `shape[1] / 2 + 1` columns of their spectrum, which
    /// determine the others. Inverse: from those columns to real numbers; along the second axis
    /// the imaginary parts of point 0, and of point `n / 2` for even `n`, are taken as zero.
    pub real: bool,
}

impl Default for Fft {
    /// A forward, complex, unnormalised transform of one point.
    fn default() -> Self {
        Self {
            shape: [1, 1],
            direction: Direction::Forward,
            normalization: Normalization::None,
            real: false,
        }
    }
}

/// A compiled transform; encode it as often as you like.
#[derive(Debug)]
pub struct FftPlan {
    fft: Fft,
    batch: u32,
    caps: Caps,
    design: Design,
    tables: wgpu::Buffer,
    /// The device it was planned on.
    home: Arc<Home>,
    /// Input, output and scratch are parts of one buffer: [`FftPlan::encode_within`].
    within: bool,
}

/// What a transform reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct FftArgs<'a> {
    /// `[batch, shape[0], shape[1], 2]`, pairs (re, im); forward and real: `[.., shape[1], 1]`;
    /// inverse and real: `[.., shape[1] / 2 + 1, 2]`. Any strides; pairs start at an even element.
    pub input: TensorView<'a, 4>,
    /// As `input`, for the result. Complex to complex may be in place: the same view as `input`.
    pub output: TensorView<'a, 4>,
    /// [`FftPlan::scratch_bytes`] bytes with usage `STORAGE`; `None` if that is 0. A buffer apart
    /// from the others; its contents are lost.
    pub scratch: Option<&'a wgpu::Buffer>,
}

/// Where a pass reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Input,
    Output,
    /// One of two parts of the scratch buffer.
    Scratch(usize),
}

/// A pass on its axis, with all that the transform needs before and after it.
#[derive(Clone, Debug)]
struct Step {
    pass: Pass,
    axis: usize,
    /// Points along both axes of what is read and written.
    in_dims: [u32; 2],
    out_dims: [u32; 2],
    real_in: bool,
    real_out: bool,
    hermitian: bool,
    swap_in: bool,
    swap_before: bool,
    swap_after: bool,
    table_in: Option<u32>,
    table_out: Option<u32>,
    limit: bool,
    /// Length of the transform along the axis, before any padding.
    n: u32,
    twiddle: u32,
    stages: u32,
    scale: f32,
}

impl Step {
    /// Whether every workgroup writes just the points that it read.
    fn in_place(&self) -> bool {
        let complex = !self.real_in && !self.real_out && !self.hermitian;
        complex && self.in_dims == self.out_dims && (self.pass.m == 1 || self.pass.m == self.pass.p)
    }

    /// Rows, or pairs of rows, in a self.
    fn units(&self, batch: u32) -> u64 {
        let axes = self.axes(batch, Strides::dense(self.in_dims), Strides::dense(self.out_dims));
        let fast =
            if self.pass.pairing == Pairing::Rows { axes.fast.div_ceil(2) } else { axes.fast };
        u64::from(fast).saturating_mul(axes.slow.into()).saturating_mul(axes.batch.into())
    }

    /// Units that a slot takes one after another, so that twiddles are loaded once for all.
    fn repeat(&self, batch: u32) -> u32 {
        // enough workgroups for every core of a CPU first
        let most = (self.units(batch) / 256).clamp(1, 8);
        if self.pass.shuffle.is_some() { u32::try_from(most).unwrap_or(1) } else { 1 }
    }

    fn groups(&self, batch: u32, caps: &Caps) -> u64 {
        let slots = u64::from(self.pass.slots(caps)) * u64::from(self.repeat(batch));
        self.units(batch).div_ceil(slots)
    }

    fn axes(&self, batch: u32, input: Strides, output: Strides) -> Axes {
        let (other, m) = (1 - self.axis, self.pass.m);
        let count = self.out_dims[other];
        let rows = (m, 0, 0);
        let others = (count, input.axes[other], output.axes[other]);
        let batches = (batch, input.batch, output.batch);
        let alone = (1, 0, 0);
        let nested = |wide: u32, inner: u32| wide == inner.wrapping_mul(count);
        let rows_fast = m > 1 && self.axis == 1;
        let [fast, slow, outer] = if rows_fast {
            [rows, others, batches]
        } else if m > 1 {
            [others, rows, batches]
        } else if count == 1 {
            [batches, alone, alone]
        } else if batch > 1
            && nested(input.batch, input.axes[other])
            && nested(output.batch, output.axes[other])
            && count.checked_mul(batch).is_some()
        {
            [(count * batch, others.1, others.2), alone, alone]
        } else {
            [others, alone, batches]
        };
        // a stride that is never used must not spoil an alignment
        let used = |(n, i, o): (u32, u32, u32)| if n > 1 { (i, o) } else { (0, 0) };
        let ((in_fast, out_fast), (in_slow, out_slow), (in_batch, out_batch)) =
            (used(fast), used(slow), used(outer));
        Axes {
            rows_fast,
            fast: fast.0,
            slow: slow.0,
            batch: outer.0,
            input: [input.axes[self.axis], in_fast, in_slow, in_batch, input.offset],
            output: [output.axes[self.axis], out_fast, out_slow, out_batch, output.offset],
        }
    }

    /// The kernel of a step, and its axes, for these strides.
    fn variant(
        &self,
        batch: u32,
        input: Strides,
        output: Strides,
        origin: Origin,
    ) -> (Variant, Axes) {
        let axes = self.axes(batch, input, output);
        let pass = &self.pass;
        let mut variant = Variant {
            pass: pass.clone(),
            repeat: self.repeat(batch),
            origin,
            input: if self.real_in { Access::Real } else { Access::Single },
            output: if self.real_out { Access::Real } else { Access::Single },
            rows_fast: axes.rows_fast,
            hermitian: self.hermitian,
            swap_in: self.swap_in,
            table_in: self.table_in.is_some(),
            swap_before: self.swap_before,
            table_out: self.table_out.is_some(),
            swap_after: self.swap_after,
            limit: self.limit,
            scale: self.scale != 1.0,
        };
        let even = |strides: &[u32]| strides.iter().all(|s| s.is_multiple_of(2));
        // neighbouring points of one row, all in one invocation
        let run = |[step, fast, slow, batch, offset]: [u32; 5]| {
            let dense = step == 1 && even(&[fast, slow, batch, offset, pass.radix]);
            pass.pairing == Pairing::Rows && dense
        };
        let pair = |[step, fast, slow, batch, offset]: [u32; 5], rows_even: bool| match pass.pairing
        {
            Pairing::Points => step == 1 && even(&[fast, slow, batch, offset]),
            Pairing::Rows if axes.rows_fast => {
                step == 1 && rows_even && even(&[slow, batch, offset])
            }
            Pairing::Rows => fast == 1 && even(&[axes.fast, step, slow, batch, offset]),
        };
        let single_stage = pass.stages.len() == 1;
        let whole_runs = pass.shuffle.is_some_and(|lanes| pass.stages[0].is_multiple_of(2 * lanes));
        let m_even = pass.m.is_multiple_of(2);
        if variant.plain_input() {
            variant.input = if pair(axes.input, m_even) {
                Access::Pair
            } else if single_stage && pass.m == 1 && run(axes.input) {
                Access::Run
            } else {
                Access::Single
            };
        }
        if variant.plain_output() {
            variant.output = if pair(axes.output, m_even && pass.p.is_multiple_of(2)) {
                Access::Pair
            } else if (single_stage || whole_runs) && pass.p == 1 && run(axes.output) {
                Access::Run
            } else {
                Access::Single
            };
        }
        // one binding has one element type
        if origin == Origin::InPlace && variant.input != variant.output {
            (variant.input, variant.output) = (Access::Single, Access::Single);
        }
        (variant, axes)
    }
}

/// All that planning decides; needs no device.
#[derive(Debug, Default)]
struct Design {
    steps: Vec<Step>,
    tables: Tables,
    /// With the output apart from the input, and in place.
    apart: Route,
    in_place: Route,
}

/// Where each step writes, and the bytes of the two parts of scratch.
#[derive(Clone, Debug, Default)]
struct Route {
    to: Vec<Place>,
    scratch: [u64; 2],
}

impl Route {
    /// Where a step reads.
    fn from(&self, step: usize) -> Place {
        if step == 0 { Place::Input } else { self.to[step - 1] }
    }

    fn bytes(&self) -> u64 {
        self.scratch[0].saturating_add(self.scratch[1])
    }

    /// How a step's input is bound.
    fn origin(&self, step: usize, shared: bool) -> Origin {
        let scratch = |place: Place| matches!(place, Place::Scratch(_));
        match (self.from(step), self.to[step]) {
            (from, to) if from == to => Origin::InPlace,
            (Place::Input, Place::Output) if shared => Origin::InPlace,
            (from, to) if scratch(from) && scratch(to) => Origin::Scratch,
            _ => Origin::Input,
        }
    }
}

/// Must match `Params` of `shaders/fft/pass.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    units: u32,
    fast_units: u32,
    fast: u32,
    slow: u32,
    in_offset: u32,
    in_step: u32,
    in_fast: u32,
    in_slow: u32,
    in_batch: u32,
    in_len: u32,
    out_offset: u32,
    out_step: u32,
    out_fast: u32,
    out_slow: u32,
    out_batch: u32,
    out_len: u32,
    m: u32,
    p: u32,
    twiddle: u32,
    stages: u32,
    table_in: u32,
    table_out: u32,
    n: u32,
    scale: f32,
}

/// Strides of batch, rows and columns in numbers, and the first number, from the binding's start.
#[derive(Clone, Copy, Debug)]
struct Strides {
    batch: u32,
    axes: [u32; 2],
    offset: u32,
}

impl Strides {
    fn dense(dims: [u32; 2]) -> Self {
        // a binding spans less than 2^32 numbers, so what is used fits
        Self { batch: dims[0].wrapping_mul(dims[1]), axes: [dims[1], 1], offset: 0 }
    }
}

impl Fft {
    /// Checks the sizes, chooses the passes and compiles their kernels.
    ///
    /// # Errors
    /// [`Error::Shape`] for a length of 0 or above [`MAX_LENGTH`], [`Error::Limit`] if a table or
    /// the number of workgroups is beyond the device, [`Error::Compile`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, batch: u32) -> Result<FftPlan> {
        self.checked(ctx, batch, false)
    }

    /// [`plan`](Self::plan) for [`FftPlan::encode_within`].
    pub(crate) fn plan_within(&self, ctx: &Context, batch: u32) -> Result<FftPlan> {
        self.checked(ctx, batch, true)
    }

    fn checked(&self, ctx: &Context, batch: u32, within: bool) -> Result<FftPlan> {
        for (length, what) in self.shape.into_iter().zip(["shape[0]", "shape[1]"]) {
            if length == 0 || length > MAX_LENGTH {
                return Err(Error::shape(OP, what, format!("1 to {MAX_LENGTH}"), length));
            }
        }
        let design = self.design(batch, &ctx.caps);
        let bytes = design.tables.bytes();
        if bytes.len() as u64 > ctx.caps.binding_size {
            return Err(Error::Limit {
                op: OP,
                what: "bytes of twiddle factors",
                need: bytes.len() as u64,
                limit: ctx.caps.binding_size,
            });
        }
        let tables = ctx.table(OP, bytes)?;
        let (caps, home) = (ctx.caps.clone(), Arc::clone(ctx.home()));
        let plan = FftPlan { fft: *self, batch, caps, design, tables, home, within };
        for step in &plan.design.steps {
            fold(OP, step.groups(batch, &ctx.caps), &ctx.caps)?;
        }
        for key in plan.keys() {
            ctx.kernel(key)?;
        }
        Ok(plan)
    }

    /// Points along the axes of the input (`of_input`) or output.
    fn dims(&self, of_input: bool) -> [u32; 2] {
        let [rows, columns] = self.shape;
        let half = self.real && (of_input == (self.direction == Direction::Inverse));
        [rows, if half { columns / 2 + 1 } else { columns }]
    }

    /// Numbers in the last axis of the input (`of_input`) or output: 2 complex, 1 real.
    fn parts(&self, of_input: bool) -> u32 {
        if self.real && (of_input == (self.direction == Direction::Forward)) { 1 } else { 2 }
    }

    /// Passes, tables and places. Pure.
    fn design(&self, batch: u32, caps: &Caps) -> Design {
        let inverse = self.direction == Direction::Inverse;
        let mut design = Design::default();
        // the axis that is real on one side comes first from it and last to it
        let order = if self.real && inverse { [0, 1] } else { [1, 0] };
        for axis in order {
            // one pass at least, to copy, scale, or turn real into complex
            if self.shape[axis] > 1 || (axis == 1 && (self.real || self.shape == [1, 1])) {
                self.add_axis(&mut design, axis, caps);
            }
        }
        let points = f64::from(self.shape[0]) * f64::from(self.shape[1]);
        let scale = match self.normalization {
            Normalization::None => 1.0,
            Normalization::Unitary => 1.0 / points.sqrt(),
            Normalization::ByLength => 1.0 / points,
        };
        if let Some(first) = design.steps.first_mut() {
            first.swap_in = inverse;
        }
        // a half spectrum is completed before its parts are swapped
        for i in 1..design.steps.len() {
            if design.steps[i].hermitian {
                design.steps[i - 1].swap_after ^= true;
                design.steps[i].swap_in = true;
            }
        }
        if let Some(last) = design.steps.last_mut() {
            last.swap_after ^= inverse;
            #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
            let scale = scale as f32;
            last.scale = scale;
        }
        design.apart = self.route(&design.steps, batch, false);
        design.in_place = self.route(&design.steps, batch, true);
        design
    }

    /// Appends the passes along one axis.
    fn add_axis(&self, design: &mut Design, axis: usize, caps: &Caps) {
        let inverse = self.direction == Direction::Inverse;
        let n = self.shape[axis];
        let real = self.real && axis == 1;
        let before = design.steps.last().map_or(self.dims(true), |s| s.out_dims);
        let with = |length: u32| {
            let mut dims = before;
            dims[axis] = length;
            dims
        };
        let after = with(if real && !inverse { n / 2 + 1 } else { n });
        let (length, passes, convolution) = match Recipe::new(n, axis == 1, caps) {
            Recipe::Direct(passes) => (n, passes, false),
            Recipe::Bluestein { m, passes } => (m, passes, true),
        };
        let once = passes.len();
        let total = if convolution { 2 * once } else { once };
        for (i, pass) in passes.iter().cycle().take(total).enumerate() {
            let (first, last) = (i == 0, i + 1 == total);
            // the convolution turns round: product with the kernel's spectrum, then an inverse
            let middle = convolution && i + 1 == once;
            let tables = &mut design.tables;
            let step = Step {
                axis,
                in_dims: if first { before } else { with(length) },
                out_dims: if last { after } else { with(length) },
                real_in: first && real && !inverse,
                real_out: last && real && inverse,
                hermitian: first && real && inverse,
                swap_in: false,
                swap_before: last && convolution,
                swap_after: middle,
                table_in: (first && convolution).then(|| tables.chirp(n)),
                table_out: if middle {
                    Some(tables.kernel(n, length))
                } else {
                    (last && convolution).then(|| tables.chirp(n))
                },
                limit: last && (convolution || (real && !inverse)),
                n,
                twiddle: if pass.p > 1 { tables.pass(pass) } else { 0 },
                stages: match pass.stages.len() {
                    1 => 0,
                    _ if pass.shuffle.is_some() => tables.lanes(pass),
                    _ => tables.stages(pass),
                },
                scale: 1.0,
                pass: pass.clone(),
            };
            design.steps.push(step);
        }
    }

    /// Chooses where each step writes, with as little scratch as may be, and sizes it.
    fn route(&self, steps: &[Step], batch: u32, shared: bool) -> Route {
        /// Places from step `i` on, reading `from`.
        fn search(
            steps: &[Step],
            i: usize,
            from: Place,
            fits: &dyn Fn(&Step) -> bool,
            shared: bool,
        ) -> Option<Vec<Place>> {
            let Some(step) = steps.get(i) else { return Some(Vec::new()) };
            let choices = if i + 1 == steps.len() {
                vec![Place::Output]
            } else {
                let output = fits(step).then_some(Place::Output);
                output.into_iter().chain([Place::Scratch(0), Place::Scratch(1)]).collect()
            };
            choices.into_iter().find_map(|to| {
                let same = from == to || (shared && (from, to) == (Place::Input, Place::Output));
                if same && !step.in_place() {
                    return None;
                }
                let rest = search(steps, i + 1, to, fits, shared)?;
                Some(std::iter::once(to).chain(rest).collect())
            })
        }
        let out_dims = self.dims(false);
        let complex = self.parts(false) == 2;
        let fits = |step: &Step| complex && step.out_dims == out_dims;
        let to = search(steps, 0, Place::Input, &fits, shared).unwrap_or_default();
        let mut scratch = [0; 2];
        for (step, to) in steps.iter().zip(&to) {
            if let Place::Scratch(part) = *to {
                let [rows, columns] = step.out_dims.map(u64::from);
                let bytes = (8 * rows * columns).saturating_mul(batch.into());
                // both parts start where any device can bind
                let aligned = bytes.checked_next_multiple_of(256).unwrap_or(u64::MAX);
                scratch[part] = scratch[part].max(aligned);
            }
        }
        Route { to, scratch }
    }
}

impl FftPlan {
    /// What is transformed.
    pub fn fft(&self) -> Fft {
        self.fft
    }

    /// Number of transforms.
    pub fn batch(&self) -> u32 {
        self.batch
    }

    /// Bytes of scratch that [`FftArgs::scratch`] must have when the output is another buffer than
    /// the input; 0 for complex transforms of one or two passes.
    pub fn scratch_bytes(&self) -> u64 {
        self.design.apart.bytes()
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

    /// [`scratch_bytes`](Self::scratch_bytes) when the output is the input; 0 for one pass.
    pub fn scratch_bytes_in_place(&self) -> u64 {
        self.design.in_place.bytes()
    }

    /// [`scratch`](Self::scratch) of [`scratch_bytes_in_place`](Self::scratch_bytes_in_place).
    ///
    /// # Errors
    /// As [`scratch`](Self::scratch).
    pub fn scratch_in_place(&self, ctx: &Context) -> Result<Option<wgpu::Buffer>> {
        ctx.expect_plan(OP, Some(&self.home))?;
        ctx.scratch(OP, self.scratch_bytes_in_place())
    }

    /// Number of dispatches.
    pub fn passes(&self) -> usize {
        self.design.steps.len()
    }

    /// The text of each kernel, for dense views.
    pub fn wgsl(&self) -> Vec<String> {
        self.keys().iter().map(Key::wgsl).collect()
    }

    /// File, entry point and constants of each kernel, for profilers.
    pub fn label(&self) -> String {
        self.keys().iter().map(Key::label).collect::<Vec<_>>().join("; ")
    }

    /// How a step's input is bound.
    fn origin(&self, route: &Route, step: usize, shared: bool) -> Origin {
        match route.origin(step, shared) {
            // a buffer that is written is not bound for reading alone
            Origin::Input if self.within => Origin::Scratch,
            origin => origin,
        }
    }

    /// Keys of the kernels, in order, for dense views.
    fn keys(&self) -> Vec<Key> {
        let steps = self.design.steps.iter().enumerate();
        let keys = steps.map(|(i, step)| {
            let (input, output) = (Strides::dense(step.in_dims), Strides::dense(step.out_dims));
            let origin = self.origin(&self.design.apart, i, false);
            step.variant(self.batch, input, output, origin).0.key(&self.caps)
        });
        keys.collect()
    }

    /// Records the kernels into the caller's encoder, in a compute pass of their own; submits
    /// nothing.
    ///
    /// # Errors
    /// As [`FftPlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &FftArgs<'_>,
    ) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: None,
        });
        self.encode_pass(ctx, &mut pass, args)
    }

    /// Records the kernels into the caller's compute pass; submits nothing. Nothing is recorded if
    /// an argument is refused.
    ///
    /// Views that are not dense, or in place, may need another kernel than the one compiled by
    /// [`Fft::plan`]: the first such call compiles it.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Strides`], [`Error::OutOfRange`],
    /// [`Error::Misaligned`] or [`Error::Usage`] for a view that does not fit the plan,
    /// [`Error::SharedBuffer`] for an output that shares its buffer with the input without being
    /// the same view, or with scratch, [`Error::Argument`] for missing scratch, [`Error::Limit`]
    /// for a view that the device cannot bind, [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &FftArgs<'_>,
    ) -> Result<()> {
        ctx.expect_plan(OP, Some(&self.home))?;
        let shape = |of_input: bool| {
            let [rows, columns] = self.fft.dims(of_input);
            [self.batch, rows, columns, self.fft.parts(of_input)]
        };
        args.input.expect(OP, "input", shape(true), DType::F32)?;
        args.output.expect_output(OP, "output", shape(false), DType::F32)?;
        check_pairs("input", &args.input)?;
        check_pairs("output", &args.output)?;
        // before they are compared: buffers of two devices may be equal
        let named = [("input", Some(args.input.buffer)), ("output", Some(args.output.buffer))];
        for (what, buffer) in named.into_iter().chain([("scratch", args.scratch)]) {
            buffer.map_or(Ok(()), |buffer| ctx.home().expect_buffer(OP, what, buffer))?;
        }
        let shared = args.input.buffer == args.output.buffer;
        if shared && (self.fft.real || args.input.layout != args.output.layout) {
            return Err(Error::SharedBuffer { op: OP, output: "output", other: "input" });
        }
        let route = if shared { &self.design.in_place } else { &self.design.apart };
        let scratch = check_scratch(args.scratch, route.bytes())?;
        if let Some(scratch) = scratch {
            for (other, buffer) in [("input", args.input.buffer), ("output", args.output.buffer)] {
                if scratch == buffer {
                    return Err(Error::SharedBuffer { op: OP, output: "scratch", other });
                }
            }
        }
        self.record(ctx, pass, &args.input, &args.output, scratch.map(|buffer| (buffer, 0)), shared)
    }

    /// Records a transform from one part of a buffer to another, with scratch in the same buffer, from
    /// byte `scratch_at` on. The caller has checked that the parts fit, and lie apart by so much that
    /// their bindings do.
    pub(crate) fn encode_within(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        input: TensorView<'_, 4>,
        output: TensorView<'_, 4>,
        scratch_at: u64,
    ) -> Result<()> {
        self.record(ctx, pass, &input, &output, Some((input.buffer, scratch_at)), false)
    }

    /// Records the passes. `scratch`: a buffer and where in it scratch starts.
    fn record(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        input: &TensorView<'_, 4>,
        output: &TensorView<'_, 4>,
        scratch: Option<(&wgpu::Buffer, u64)>,
        shared: bool,
    ) -> Result<()> {
        let route = if shared { &self.design.in_place } else { &self.design.apart };
        if self.batch == 0 {
            return Ok(());
        }

        let mut work = Vec::new();
        for (i, step) in self.design.steps.iter().enumerate() {
            let place = |place: Place, dims: [u32; 2]| -> Result<(Resource<'_>, Strides)> {
                match (place, scratch) {
                    (Place::Scratch(part), Some((buffer, at))) => {
                        let size = route.scratch[part];
                        if size > ctx.caps.binding_size {
                            let (need, limit) = (size, ctx.caps.binding_size);
                            return Err(Error::Limit {
                                op: OP,
                                what: "bytes of scratch",
                                need,
                                limit,
                            });
                        }
                        let binding = wgpu::BufferBinding {
                            buffer,
                            offset: at + if part == 0 { 0 } else { route.scratch[0] },
                            size: wgpu::BufferSize::new(size),
                        };
                        Ok((Resource::Buffer(binding), Strides::dense(dims)))
                    }
                    (Place::Output, _) => {
                        Ok(numbers(output, output.bind(OP, "output", &ctx.caps)?))
                    }
                    _ => Ok(numbers(input, input.bind(OP, "input", &ctx.caps)?)),
                }
            };
            let (source, from) = place(route.from(i), step.in_dims)?;
            let (target, to) = place(route.to[i], step.out_dims)?;
            let origin = self.origin(route, i, shared);
            let (variant, axes) = step.variant(self.batch, from, to, origin);
            let kernel = ctx.kernel(variant.key(&self.caps))?;
            let groups = fold(OP, step.groups(self.batch, &self.caps), &self.caps)?;
            let mut resources = vec![target, self.tables.as_entire_binding()];
            if origin != Origin::InPlace {
                resources.insert(0, source);
            }
            work.push((kernel, params(step, &axes), resources, groups));
        }
        for (kernel, params, resources, groups) in work {
            dispatch(ctx, pass, OP, &kernel, bytemuck::bytes_of(&params), &resources, groups)?;
        }
        Ok(())
    }
}

fn check_scratch(scratch: Option<&wgpu::Buffer>, need: u64) -> Result<Option<&wgpu::Buffer>> {
    let what = "scratch";
    if need == 0 {
        return Ok(None);
    }
    let Some(buffer) = scratch else {
        return Err(Error::argument(OP, what, format!("needs {need} bytes, none given")));
    };
    if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
        return Err(Error::Usage { op: OP, what, missing: wgpu::BufferUsages::STORAGE });
    }
    if buffer.size() < need {
        return Err(Error::OutOfRange { op: OP, what, end: need, size: buffer.size() });
    }
    Ok(Some(buffer))
}

/// The axes of a step: counts, and strides along `[step, fast, slow, batch, offset]`.
#[derive(Clone, Copy, Debug)]
struct Axes {
    rows_fast: bool,
    fast: u32,
    slow: u32,
    batch: u32,
    input: [u32; 5],
    output: [u32; 5],
}

fn params(step: &Step, axes: &Axes) -> Params {
    let pass = &step.pass;
    let fast_units = if pass.pairing == Pairing::Rows { axes.fast.div_ceil(2) } else { axes.fast };
    let [in_step, in_fast, in_slow, in_batch, in_offset] = axes.input;
    let [out_step, out_fast, out_slow, out_batch, out_offset] = axes.output;
    Params {
        // `fold` has made sure that it fits
        units: fast_units * axes.slow * axes.batch,
        fast_units,
        fast: axes.fast,
        slow: axes.slow,
        in_offset,
        in_step,
        in_fast,
        in_slow,
        in_batch,
        in_len: step.n,
        out_offset,
        out_step,
        out_fast,
        out_slow,
        out_batch,
        out_len: step.out_dims[step.axis],
        m: pass.m,
        p: pass.p,
        twiddle: step.twiddle,
        stages: step.stages,
        table_in: step.table_in.unwrap_or(0),
        table_out: step.table_out.unwrap_or(0),
        n: step.n,
        scale: step.scale,
    }
}

/// Complex numbers are addressed as pairs.
fn check_pairs(what: &'static str, view: &TensorView<'_, 4>) -> Result<()> {
    if view.layout.shape[3] == 1 {
        return Ok(());
    }
    let axes = (0..3).filter(|&a| view.layout.shape[a] > 1).map(|a| view.layout.strides[a]);
    match axes.chain([view.layout.offset]).find(|s| !s.is_multiple_of(2)) {
        None => Ok(()),
        Some(got) => Err(Error::Misaligned {
            op: OP,
            what,
            quantity: "each stride and the offset, in elements, of pairs (re, im)",
            multiple: 2,
            got,
        }),
    }
}

/// A bound view, its strides counted in the numbers it holds.
fn numbers<'a>(view: &TensorView<'a, 4>, bound: Bound<'a>) -> (Resource<'a>, Strides) {
    let parts = view.layout.shape[3];
    let [batch, rows, columns, _] = view.strides_u32().map(|s| s / parts);
    (bound.resource, Strides { batch, axes: [rows, columns], offset: bound.offset / parts })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::test_support::{reflect, uniformity};

    #[test]
    fn params_match_the_shader() {
        let text = include_str!("../../shaders/fft/pass.wgsl").to_owned()
            + include_str!("../../shaders/lib/index.wgsl");
        let module = naga::front::wgsl::parse_str(&text).unwrap();
        let got = reflect::struct_layout(&module, "Params");
        let want = [
            ("units", offset_of!(Params, units)),
            ("fast_units", offset_of!(Params, fast_units)),
            ("fast", offset_of!(Params, fast)),
            ("slow", offset_of!(Params, slow)),
            ("in_offset", offset_of!(Params, in_offset)),
            ("in_step", offset_of!(Params, in_step)),
            ("in_fast", offset_of!(Params, in_fast)),
            ("in_slow", offset_of!(Params, in_slow)),
            ("in_batch", offset_of!(Params, in_batch)),
            ("in_len", offset_of!(Params, in_len)),
            ("out_offset", offset_of!(Params, out_offset)),
            ("out_step", offset_of!(Params, out_step)),
            ("out_fast", offset_of!(Params, out_fast)),
            ("out_slow", offset_of!(Params, out_slow)),
            ("out_batch", offset_of!(Params, out_batch)),
            ("out_len", offset_of!(Params, out_len)),
            ("m", offset_of!(Params, m)),
            ("p", offset_of!(Params, p)),
            ("twiddle", offset_of!(Params, twiddle)),
            ("stages", offset_of!(Params, stages)),
            ("table_in", offset_of!(Params, table_in)),
            ("table_out", offset_of!(Params, table_out)),
            ("n", offset_of!(Params, n)),
            ("scale", offset_of!(Params, scale)),
            ("", size_of::<Params>()),
        ];
        assert_eq!(got.len(), want.len());
        for ((name, offset, _), (want_name, want_offset)) in got.iter().zip(want) {
            assert_eq!((name.as_str(), *offset as usize), (want_name, want_offset));
        }
    }

    #[test]
    fn passes_hand_over_what_they_write() {
        for real in [false, true] {
            for direction in [Direction::Forward, Direction::Inverse] {
                for shape in [
                    [1, 1],
                    [1, 1000],
                    [1, 37],
                    [6, 1],
                    [12, 30],
                    [67, 71],
                    [1, 1 << 20],
                    [1 << 13, 5000],
                ] {
                    let fft = Fft { shape, direction, real, ..Default::default() };
                    let design = fft.design(3, &Caps::minimum());
                    let steps = &design.steps;
                    assert_eq!(steps[0].in_dims, fft.dims(true));
                    assert_eq!(steps.last().unwrap().out_dims, fft.dims(false));
                    for pair in steps.windows(2) {
                        assert_eq!(pair[0].out_dims, pair[1].in_dims, "{fft:?}");
                    }
                    let routes = [(&design.apart, false), (&design.in_place, true)];
                    for (route, shared) in &routes[..if real { 1 } else { 2 }] {
                        assert_eq!(route.to.len(), steps.len(), "{fft:?}: no route");
                        assert_eq!(route.to.last(), Some(&Place::Output));
                        for (i, step) in steps.iter().enumerate() {
                            let in_place = route.origin(i, *shared) == Origin::InPlace;
                            assert!(!in_place || step.in_place(), "{fft:?}: {step:?}");
                            if let Place::Scratch(part) = route.to[i] {
                                let [rows, columns] = step.out_dims.map(u64::from);
                                assert!(route.scratch[part] >= 3 * 8 * rows * columns);
                            }
                        }
                    }
                    let direct = !real && design.steps.iter().all(|s| s.table_in.is_none());
                    assert!(!direct || steps.len() > 2 || design.apart.bytes() == 0, "{fft:?}");
                }
            }
        }
    }

    #[test]
    fn every_kernel_is_valid_and_uniform() {
        let cpu =
            Caps { class: crate::DeviceClass::Cpu, workgroup_storage: 32 << 10, ..Caps::minimum() };
        let lanes8 = Caps { subgroup: Some((8, 8)), tier: crate::Tier::Subgroup, ..cpu.clone() };
        let mut seen = std::collections::HashSet::new();
        for caps in [Caps::minimum(), cpu, lanes8] {
            for length in [
                1,
                2,
                3,
                7,
                8,
                13,
                30,
                31,
                32,
                37,
                48,
                50,
                63,
                64,
                100,
                360,
                1000,
                1024,
                4096,
                1 << 16,
            ] {
                for (shape, real) in [
                    ([1, length], false),
                    ([1, length], true),
                    ([length, 4], false),
                    ([length, 3], true),
                ] {
                    for direction in [Direction::Forward, Direction::Inverse] {
                        let fft =
                            Fft { shape, direction, real, normalization: Normalization::Unitary };
                        let design = fft.design(2, &caps);
                        for step in &design.steps {
                            // dense and not, in place and not
                            let dense =
                                (Strides::dense(step.in_dims), Strides::dense(step.out_dims));
                            let odd = Strides { offset: 1, ..dense.0 };
                            for (input, output, origin) in [
                                (dense.0, dense.1, Origin::Input),
                                (odd, dense.1, Origin::Scratch),
                                (dense.0, dense.1, Origin::InPlace),
                            ] {
                                if origin == Origin::InPlace && !step.in_place() {
                                    continue;
                                }
                                let (variant, _) = step.variant(2, input, output, origin);
                                let wgsl = variant.key(&caps).wgsl();
                                if !seen.insert(wgsl.clone()) {
                                    continue;
                                }
                                let report = uniformity::check_source(&wgsl)
                                    .unwrap_or_else(|e| panic!("{variant:?}: {e}"));
                                assert!(
                                    report.barriers.is_empty(),
                                    "{variant:?}: {:?}",
                                    report.barriers
                                );
                                assert!(report.subgroups.is_empty());
                            }
                        }
                    }
                }
            }
        }
        assert!(seen.len() > 300, "only {} kernels", seen.len());
    }
}
