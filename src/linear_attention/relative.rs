//! Kernelised attention with relative positions, exact in `O(n^2)` or by Fourier transforms in
//! `O(n log n)`.
//!
//! `o_i = sum_j e^b[j - i] (phi(q_i) . phi(k_j)) v_j / sum_j e^b[j - i] (phi(q_i) . phi(k_j))`.
//! Source: Luo et al. 2021, arXiv:2106.12566.
//!
//! Exact: as the sums are written, tile by tile, with a running reference for every row, as in a
//! softmax. By transforms: both sums are a Toeplitz matrix times `phi(k_j) [v_j, 1]`, one column for
//! each feature and channel; a Toeplitz matrix is a corner of a circulant one, and that is diagonal
//! after a Fourier transform. Fourier sums have an error relative to their largest part; so every row's
//! is bounded on the device, and rows that may have lost too much are made again exactly, see
//! [`RelativeMethod::Auto`].

use std::sync::Arc;

use crate::{
    Caps, Context, DType, Error, Layout, Result, TensorView,
    dispatch::{Resource, dispatch, distinct_outputs, fold},
    element::TensorDecl,
    fft::{Direction, Fft, FftPlan, Normalization},
    home::Home,
    shader::{Key, Source, source},
};

const OP: &str = "relative_attention";

const WORKGROUP: u32 = 64;

/// Of the kernel that finds the largest bias.
const WORKGROUP_LARGEST: u32 = 256;

/// Of the kernel that makes norms.
const WORKGROUP_NORM: u32 = 64;

/// Queries, keys and channels of a tile of the exact form, and features at a time.
const TILE: u32 = 32;
const DEPTH: u32 = 16;

/// Bytes of each region of scratch that a plan asks for, unless one head needs more.
const SCRATCH: u64 = 64 << 20;

/// Parts of scratch start at multiples of so many elements: where any device can bind.
const ALIGN: u64 = 64;

/// The longest sequence that transforms take.
const LONGEST: u32 = crate::fft::MAX_LENGTH / 4;

/// Where the features of queries and keys come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RelativeFeatures {
    /// `q` and `k` are the features: positive, or the denominator may vanish.
    #[default]
    Given,
    /// Positive random features of `q` and `k` scaled to length 1, `exp(w_m . x / |x|)`, by so many
    /// directions `w` for each head (normally distributed, or orthogonal).
    Random(u32),
}

/// How the sums are made.
///
/// `b` lies on the device, where no plan can see it; so what a row may have lost is found there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RelativeMethod {
    /// Exact for short sequences, where that is faster or a device has no room for transforms; else by
    /// transforms, with every row that they may have spoilt made again exactly. Every row is right, for
    /// every `b`, as with [`RelativeMethod::Exact`], but to 1e-4 of itself in f32.
    ///
    /// The bound: a sum over keys for one feature, be it of a denominator or of a channel, is taken to
    /// be wrong by at most `E = 2^-23 sqrt(log2 length) |w| |x|` (the largest error measured is 0.3 of
    /// that; tested), with the L2 norms over positions of `w`, the weights `e^b` of the head,
    /// and of `x`, what is summed; `length` is that of the transforms, some `2 seq`. A row is made again
    /// unless `sum_m |phi_m(q)| E_m` over the denominator and the same over the numerators, as L2 norms
    /// over channels, are together at most 1e-4; so also where a NaN or an infinity is in the way, or a
    /// sum is below 1e-30, that of values which are all 0 included.
    ///
    /// Transforms are run for all rows first. The exact form then visits only tiles of 32 queries
    /// that have such a row. Where every row has to be made again it takes as long as both.
    #[default]
    Auto,
    /// As they are written, tile by tile, in `O(seq^2)` time and no memory but for the features.
    ///
    /// Every row is right relative to its own denominator, for every `b`: of any size, and `-inf`,
    /// which hides its keys. What is hidden or after a causal query has no effect, NaN included.
    Exact,
    /// By Fourier transforms, in `O(seq log seq)` time, whatever the error.
    ///
    /// A row whose terms are small against the largest `e^b` of its head and the largest features of
    /// its sequence loses what lies below about 1e-6 of them; where nothing is left, what comes out
    /// is noise. A NaN anywhere reaches every row.
    Transform,
}

/// Options of kernelised attention with relative positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RelativeAttention {
    /// Where the features come from.
    pub features: RelativeFeatures,
    /// Keys after the query do not count.
    pub causal: bool,
    /// How the sums are made.
    pub method: RelativeMethod,
    /// Element type of `q`, `k`, `v` and `o`. Sums are f32, and so are `b` and `w`.
    pub dtype: DType,
}

/// The sizes of one problem. Batch and heads may be 0, the others not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelativeAttentionShape {
    /// Sequences.
    pub batch: u32,
    /// Queries of each sequence, and keys.
    pub seq: u32,
    /// Heads, each with positions of its own.
    pub heads: u32,
    /// Channels of `q` and `k`; with [`RelativeFeatures::Given`] the number of features.
    pub key_dim: u32,
    /// Channels of `v` and `o`.
    pub value_dim: u32,
}

/// The tensors of one call.
#[derive(Clone, Copy, Debug)]
pub struct RelativeAttentionArgs<'a> {
    /// Queries `[batch, seq, heads, key_dim]`.
    pub q: TensorView<'a, 4>,
    /// Keys, likewise.
    pub k: TensorView<'a, 4>,
    /// Values `[batch, seq, heads, value_dim]`.
    pub v: TensorView<'a, 4>,
    /// Logarithms of the weights by position `[heads, 2 seq - 1]`, f32: entry `j - i + seq - 1`
    /// for query `i` and key `j`. `-inf` hides a key; NaN and `inf` have no meaning.
    pub b: TensorView<'a, 2>,
    /// Directions `[heads, features, key_dim]`, f32, needed with [`RelativeFeatures::Random`].
    pub w: Option<TensorView<'a, 3>>,
    /// Output `[batch, seq, heads, value_dim]`, written everywhere.
    pub o: TensorView<'a, 4>,
    /// [`RelativeAttentionPlan::scratch_bytes`] bytes with usage `STORAGE`; `None` if that is 0. A
    /// buffer apart from the others; its contents are lost. See [`RelativeAttentionPlan::scratch`].
    pub scratch: Option<&'a wgpu::Buffer>,
}

/// A checked and compiled problem. Encode it as often as you like.
#[derive(Debug)]
pub struct RelativeAttentionPlan {
    options: RelativeAttention,
    shape: RelativeAttentionShape,
    features: u32,
    /// (batch, head) rows at a time.
    chunk: u32,
    /// `None`: exact.
    transforms: Option<Transforms>,
    /// Rows that transforms may have spoilt are made again.
    checked: bool,
    /// The device it was planned on.
    home: Arc<Home>,
}

#[derive(Debug)]
struct Transforms {
    /// Of the circulant matrices.
    length: u32,
    /// Of the columns and of the circulants, and back.
    forward: FftPlan,
    circulants: FftPlan,
    inverse: FftPlan,
}

// Must match `Params` in shaders/relative_attention/*.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    x: [u32; 4],
    w: [u32; 4],
    b: [u32; 2],
    first: u32,
    count: u32,
    heads: u32,
    seq: u32,
    positions: u32,
    key_dim: u32,
    features: u32,
    value_dim: u32,
    length: u32,
    start_q: u32,
    start_in: u32,
    start_out: u32,
    pad: [u32; 2],
}

const FEATURES: Source = source!("relative_attention/features.wgsl");
const EXACT: Source = source!("relative_attention/exact.wgsl");
const LARGEST: Source = source!("relative_attention/largest.wgsl");
const CIRCULANT: Source = source!("relative_attention/circulant.wgsl");
const EXPAND: Source = source!("relative_attention/expand.wgsl");
const MULTIPLY: Source = source!("relative_attention/multiply.wgsl");
const CONTRACT: Source = source!("relative_attention/contract.wgsl");
const NORM: Source = source!("relative_attention/norm.wgsl");
const BOUNDS: Source = source!("relative_attention/bounds.wgsl");
const JUDGE: Source = source!("relative_attention/judge.wgsl");

/// Where things lie in scratch. Offsets are in elements of 4 bytes, from the start of a region.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Parts {
    /// The first region: what kernels here write and read.
    features_q: u64,
    features_k: u64,
    largest: u64,
    circulants: u64,
    columns: u64,
    /// Where rows are checked: norms of circulants and columns, bounds of each feature's sums, and for
    /// each row whether it is made again.
    norms_b: u64,
    norms: u64,
    bounds: u64,
    flags: u64,
    /// The second: spectra of the circulants, and from here on of the columns.
    spectra: u64,
    /// Bytes of the regions, each of which is bound apart; the third is the transforms' own.
    regions: [u64; 3],
}

impl Parts {
    /// First byte of each region, and the end of the last.
    fn starts(&self) -> [u64; 4] {
        let mut at = 0u64;
        let mut next = |bytes: u64| {
            at = at.saturating_add(bytes.checked_next_multiple_of(4 * ALIGN).unwrap_or(u64::MAX));
            at
        };
        let [a, b, c] = self.regions.map(&mut next);
        [0, a, b, c]
    }
}

impl RelativeAttention {
    /// Checks the problem, chooses the form and the length of the transforms, compiles.
    ///
    /// # Errors
    /// [`Error::Shape`] for a size of 0 or a sequence of more than 2^22, [`Error::Limit`] for a problem
    /// one head of which the device cannot hold, or that takes more loop trips than its driver makes
    /// ([`Caps::loop_trips`](crate::Caps::loop_trips)), [`Error::Compile`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn plan(
        &self,
        ctx: &Context,
        shape: RelativeAttentionShape,
    ) -> Result<RelativeAttentionPlan> {
        self.dtype.expect_float(OP)?;
        let features = match self.features {
            RelativeFeatures::Given => shape.key_dim,
            RelativeFeatures::Random(n) => n,
        };
        for (what, n) in [
            ("seq", shape.seq),
            ("key_dim", shape.key_dim),
            ("value_dim", shape.value_dim),
            ("features", features),
        ] {
            if n == 0 {
                return Err(Error::shape(OP, what, "at least 1", n));
            }
        }
        if shape.seq > LONGEST {
            return Err(Error::shape(OP, "seq", format!("at most {LONGEST}"), shape.seq));
        }
        match self.method {
            RelativeMethod::Exact => self.plan_form(ctx, shape, features, false),
            RelativeMethod::Transform => self.plan_form(ctx, shape, features, true),
            RelativeMethod::Auto if shape.seq <= crossover(features, shape.value_dim) => {
                self.plan_form(ctx, shape, features, false)
            }
            RelativeMethod::Auto => match self.plan_form(ctx, shape, features, true) {
                // the exact form takes next to no memory
                Err(Error::Limit { .. }) => self.plan_form(ctx, shape, features, false),
                plan => plan,
            },
        }
    }

    /// The plan of one of the two forms.
    fn plan_form(
        &self,
        ctx: &Context,
        shape: RelativeAttentionShape,
        features: u32,
        transforms: bool,
    ) -> Result<RelativeAttentionPlan> {
        let checked = transforms && self.method == RelativeMethod::Auto;
        if transforms {
            check_transform_trips(&shape, features, checked, ctx.caps.loop_trips)?;
        }
        if !transforms || checked {
            check_exact_trips(&shape, features, ctx.caps.loop_trips)?;
        }
        let length = transforms.then(|| circulant_length(shape.seq));
        let chunk = chunk(&shape, features, length, checked, &ctx.caps)?;
        let transforms = length
            .map(|length| -> Result<Transforms> {
                let fft = |direction, normalization| Fft {
                    shape: [1, length],
                    direction,
                    normalization,
                    real: true,
                };
                let batch = columns(&shape, features).saturating_mul(chunk.into());
                let batch = u32::try_from(batch).map_err(|_| too_much(u64::MAX, &ctx.caps))?;
                let forward = fft(Direction::Forward, Normalization::None);
                let inverse = fft(Direction::Inverse, Normalization::ByLength);
                Ok(Transforms {
                    length,
                    forward: forward.plan_within(ctx, batch)?,
                    circulants: forward.plan_within(ctx, shape.heads)?,
                    inverse: inverse.plan_within(ctx, batch)?,
                })
            })
            .transpose()?;
        let home = Arc::clone(ctx.home());
        let plan = RelativeAttentionPlan {
            options: *self,
            shape,
            features,
            chunk,
            transforms,
            checked,
            home,
        };
        let most = plan.parts().regions.into_iter().max().unwrap_or(0);
        if most > ctx.caps.binding_size || most / 4 > u64::from(u32::MAX) {
            return Err(too_much(most, &ctx.caps));
        }
        if plan.scratch_bytes() > ctx.caps.buffer_size {
            let (need, limit) = (plan.scratch_bytes(), ctx.caps.buffer_size);
            return Err(Error::Limit { op: OP, what: "bytes of scratch", need, limit });
        }
        fold(OP, plan.units(), &ctx.caps)?;
        for key in plan.keys() {
            ctx.kernel(key)?;
        }
        Ok(plan)
    }
}

fn too_much(need: u64, caps: &Caps) -> Error {
    Error::Limit { op: OP, what: "bytes of scratch", need, limit: caps.binding_size }
}

/// The most loop trips that an invocation makes, against what the driver makes: beyond it results
/// would be wrong, in silence.
fn within_trips(what: &'static str, need: u64, limit: u64) -> Result<()> {
    if need > limit { Err(Error::Limit { op: OP, what, need, limit }) } else { Ok(()) }
}

/// Of the exact form, on its own or for rows that are made again.
fn check_exact_trips(shape: &RelativeAttentionShape, features: u32, limit: u64) -> Result<()> {
    within_trips("loop trips on this driver for key_dim", shape.key_dim.into(), limit)?;
    // for each tile: once for itself, three times for some features, four times for its values
    let each = 5 + 3 * u64::from(features.div_ceil(DEPTH));
    let need = u64::from(shape.seq.div_ceil(TILE)) * each;
    within_trips("loop trips on this driver for seq and features", need, limit)
}

fn check_transform_trips(
    shape: &RelativeAttentionShape,
    features: u32,
    checked: bool,
    limit: u64,
) -> Result<()> {
    let [seq, key_dim, values] = [shape.seq, shape.key_dim, shape.value_dim].map(u64::from);
    let features = u64::from(features);
    within_trips("loop trips on this driver for key_dim", key_dim, limit)?;
    within_trips("loop trips on this driver for features", features, limit)?;
    let sweeps = (2 * seq - 1).div_ceil(WORKGROUP_LARGEST.into());
    let need = sweeps + u64::from(WORKGROUP_LARGEST);
    within_trips("loop trips on this driver for 2 seq - 1", need, limit)?;
    if checked {
        // channels are gone over twice, and so are lines, by the lanes of a workgroup
        let need = features + 2 * values;
        within_trips("loop trips on this driver for features and value_dim", need, limit)?;
        let lanes = u64::from(WORKGROUP_NORM);
        let need = 2 * u64::from(circulant_length(shape.seq)).div_ceil(lanes) + 2 * lanes;
        within_trips("loop trips on this driver for the length of transforms", need, limit)?;
    }
    Ok(())
}

/// The longest sequence for which the exact form is taken though transforms would do.
fn crossover(features: u32, value_dim: u32) -> u32 {
    let [m, v, depth, tile] = [features, value_dim, DEPTH, TILE].map(u64::from);
    // what the transforms do for one position, against what the exact form does for one pair, with
    // tiles filled up
    let columns = m * (v + 1);
    let pair = (m.next_multiple_of(depth) + tile) * v.div_ceil(tile);
    u32::try_from(CROSSOVER * columns / pair).unwrap_or(u32::MAX).max(SHORT)
}

/// Measured on llvmpipe with 8 features and 8 channels, equal at some 180 positions: see
/// docs/PERFORMANCE.md.
const CROSSOVER: u64 = 120;

/// So few are not worth the dispatches of transforms.
const SHORT: u32 = 128;

/// What is transformed for one (batch, head) row: features times channels, and times 1.
fn columns(shape: &RelativeAttentionShape, features: u32) -> u64 {
    u64::from(features) * (u64::from(shape.value_dim) + 1)
}

fn rows(shape: &RelativeAttentionShape) -> u64 {
    u64::from(shape.batch) * u64::from(shape.heads)
}

/// How many rows there is scratch for at a time.
fn chunk(
    shape: &RelativeAttentionShape,
    features: u32,
    length: Option<u32>,
    checked: bool,
    caps: &Caps,
) -> Result<u32> {
    let bytes = |rows| {
        let [first, second, _] = Parts::new(shape, features, rows, length, checked).regions;
        first.max(second)
    };
    // the transforms' own regions are as large again
    let share = if length.is_some() { 4 } else { 1 };
    let limit = caps.binding_size.min(caps.buffer_size / share);
    let (own, one) = (bytes(0), bytes(1));
    if one > caps.binding_size {
        return Err(too_much(one, caps));
    }
    let left = SCRATCH.min(limit.saturating_sub(own));
    // a part may be rounded up by ALIGN elements, and there are up to three, or six
    let row = one - own + if checked { 24 } else { 12 } * ALIGN;
    let chunk = (left / row).clamp(1, rows(shape).max(1));
    u32::try_from(chunk).map_err(|_| too_much(u64::MAX, caps))
}

/// The length of circulant matrices that hold Toeplitz matrices of size `n`: the first even number
/// from `2 n - 1` on without prime factors over 5.
fn circulant_length(n: u32) -> u32 {
    let smooth = |n: &u32| {
        let mut rest = *n;
        for p in [2, 3, 5] {
            while rest.is_multiple_of(p) {
                rest /= p;
            }
        }
        rest == 1
    };
    (n..).map(|half| 2 * half).find(smooth).unwrap_or(u32::MAX)
}

impl Parts {
    /// For so many rows (batch, head) at a time; exact without a length of circulants.
    fn new(
        shape: &RelativeAttentionShape,
        features: u32,
        rows: u64,
        length: Option<u32>,
        checked: bool,
    ) -> Self {
        let aligned = |n: u64| n.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX / 16);
        let heads = u64::from(shape.heads);
        let positions = u64::from(shape.seq).next_multiple_of(4);
        let all = aligned((rows * positions).saturating_mul(features.into()));
        let mut at = 0u64;
        let mut next = |n: u64| {
            let start = at;
            at = at.saturating_add(n);
            start
        };
        let (features_q, features_k) = (next(all), next(all));
        let (mut largest, mut circulants, mut columns_at) = (0, 0, 0);
        let (mut norms_b, mut norms, mut bounds, mut flags) = (0, 0, 0, 0);
        let (mut spectra, mut second) = (0, 0);
        if let Some(length) = length {
            let (length, half) = (u64::from(length), u64::from(length / 2 + 1));
            let columns = rows.saturating_mul(columns(shape, features));
            largest = next(aligned(heads));
            circulants = next(aligned(heads * length));
            columns_at = next(aligned(columns.saturating_mul(length)));
            if checked {
                norms_b = next(aligned(heads));
                norms = next(aligned(columns));
                bounds = next(aligned((2 * rows).saturating_mul(features.into())));
                flags = next(aligned(rows * positions));
            }
            spectra = aligned(2 * heads * half);
            second = spectra.saturating_add(columns.saturating_mul(2 * half));
        }
        let first = next(0);
        Self {
            features_q,
            features_k,
            largest,
            circulants,
            columns: columns_at,
            norms_b,
            norms,
            bounds,
            flags,
            spectra,
            regions: [first.saturating_mul(4), second.saturating_mul(4), 0],
        }
    }
}

impl RelativeAttentionPlan {
    /// The options.
    pub fn options(&self) -> RelativeAttention {
        self.options
    }

    /// The problem.
    pub fn shape(&self) -> RelativeAttentionShape {
        self.shape
    }

    /// Whether the sums go by Fourier transforms, with [`RelativeMethod::Auto`] before some rows are made
    /// again; else they are made as they are written.
    pub fn by_transforms(&self) -> bool {
        self.transforms.is_some()
    }

    /// Bytes that [`RelativeAttentionArgs::scratch`] must have; 0 without rows.
    pub fn scratch_bytes(&self) -> u64 {
        if rows(&self.shape) == 0 { 0 } else { self.parts().starts()[3] }
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

    /// The text of the kernels around the transforms, or of the exact form.
    pub fn wgsl(&self) -> Vec<String> {
        self.keys().iter().map(Key::wgsl).collect()
    }

    fn parts(&self) -> Parts {
        let length = self.transforms.as_ref().map(|t| t.length);
        let rows = self.chunk.into();
        let mut parts = Parts::new(&self.shape, self.features, rows, length, self.checked);
        if let Some(t) = &self.transforms {
            let bytes = [&t.forward, &t.circulants, &t.inverse].map(FftPlan::scratch_bytes);
            parts.regions[2] = bytes.into_iter().max().unwrap_or(0);
        }
        parts
    }

    /// Tiles of the exact form.
    fn units(&self) -> u64 {
        let tiles = |n: u32| u64::from(n.div_ceil(TILE));
        u64::from(self.chunk) * tiles(self.shape.seq).saturating_mul(tiles(self.shape.value_dim))
    }

    /// Of features and tiles; or of features, largest biases, circulants, columns, the product of
    /// spectra, and the contraction; and, where rows are checked, of norms, bounds, flags and tiles.
    fn keys(&self) -> Vec<Key> {
        let random = matches!(self.options.features, RelativeFeatures::Random(_));
        let decl = |dtype| Some(TensorDecl::new(dtype, false));
        let (element, single) = (decl(self.options.dtype), decl(DType::F32));
        let key = |source, entry, workgroup: u32, flags: &[(&'static str, bool)], tensors| {
            let mut spec = Vec::new();
            if workgroup > 0 {
                spec.push(("WORKGROUP", format!("{workgroup}u")));
            }
            spec.extend(flags.iter().map(|(name, value)| (*name, value.to_string())));
            Key { source, entry, spec, tensors }
        };
        let w = if random { single } else { None };
        let causal = ("CAUSAL", self.options.causal);
        let features = vec![("rows", element), ("w", w)];
        let mut keys = vec![key(FEATURES, "features", WORKGROUP, &[("RANDOM", random)], features)];
        if self.transforms.is_some() {
            let b = vec![("b", single)];
            let checked = [("CHECKED", self.checked)];
            keys.extend([
                key(LARGEST, "largest", WORKGROUP_LARGEST, &[causal], b.clone()),
                key(CIRCULANT, "circulant", WORKGROUP, &[causal], b),
                key(EXPAND, "expand", WORKGROUP, &[], vec![("rows", element)]),
                key(MULTIPLY, "multiply", WORKGROUP, &[], vec![]),
                key(CONTRACT, "contract", WORKGROUP, &checked, vec![("o", element)]),
            ]);
        }
        if self.checked {
            keys.extend([
                key(NORM, "norm", WORKGROUP_NORM, &[], vec![]),
                key(BOUNDS, "bounds", WORKGROUP, &[], vec![]),
                key(JUDGE, "judge", WORKGROUP, &[], vec![]),
            ]);
        }
        if self.transforms.is_none() || self.checked {
            // its tiles make its workgroup
            let tensors = vec![("rows", element), ("b", single), ("o", element)];
            keys.push(key(EXACT, "exact", 0, &[causal, ("REPAIR", self.checked)], tensors));
        }
        keys
    }

    /// Records the kernels into the caller's encoder, in a compute pass of their own; submits
    /// nothing.
    ///
    /// # Errors
    /// As [`RelativeAttentionPlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &RelativeAttentionArgs<'_>,
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
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Strides`], [`Error::OutOfRange`],
    /// [`Error::Misaligned`] or [`Error::Usage`] for a view or a buffer that does not fit the plan,
    /// [`Error::Argument`] for directions or scratch missing or directions not wanted,
    /// [`Error::SharedBuffer`], [`Error::Limit`], [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &RelativeAttentionArgs<'_>,
    ) -> Result<()> {
        let Some(scratch) = self.check(ctx, args)? else { return Ok(()) };
        let s = &self.shape;
        let (parts, starts) = (self.parts(), self.parts().starts());
        let region = |i: usize| {
            let (offset, size) = (starts[i], wgpu::BufferSize::new(parts.regions[i]));
            Resource::Buffer(wgpu::BufferBinding { buffer: scratch, offset, size })
        };
        let (q, k) = (args.q.bind(OP, "q", &ctx.caps)?, args.k.bind(OP, "k", &ctx.caps)?);
        let (v, o) = (args.v.bind(OP, "v", &ctx.caps)?, args.o.bind(OP, "o", &ctx.caps)?);
        let b = args.b.bind(OP, "b", &ctx.caps)?;
        let place = |view: &TensorView<'_, 4>, offset| {
            let [batch, position, head, _] = view.strides_u32();
            [batch, position, head, offset]
        };
        let (place_q, place_k) = (place(&args.q, q.offset), place(&args.k, k.offset));
        let (place_v, place_o) = (place(&args.v, v.offset), place(&args.o, o.offset));
        let (mut place_w, mut directions) = ([0; 4], None);
        if let Some(w) = &args.w {
            let bound = w.bind(OP, "w", &ctx.caps)?;
            let [head, feature, _] = w.strides_u32();
            place_w = [head, feature, 0, bound.offset];
            directions = Some(bound.resource);
        }
        let common = Params {
            b: [args.b.strides_u32()[0], b.offset],
            heads: s.heads,
            seq: s.seq,
            positions: s.seq.next_multiple_of(4),
            key_dim: s.key_dim,
            features: self.features,
            value_dim: s.value_dim,
            length: self.transforms.as_ref().map_or(0, |t| t.length),
            start_q: small(parts.features_q),
            start_in: small(parts.features_k),
            ..Default::default()
        };
        let keys = self.keys();
        let line = |region: usize, first, [n, width, parts]: [u32; 3]| {
            let layout = Layout::contiguous([n, 1, width, parts]);
            let layout = layout.with_offset(starts[region] / 4 + first);
            TensorView { buffer: scratch, layout, dtype: DType::F32 }
        };
        if let (Some(t), [_, largest, circulant, ..]) = (&self.transforms, &keys[..]) {
            let resources = [region(0), b.resource.clone()];
            let params = Params { start_out: small(parts.largest), ..common };
            run(ctx, pass, largest, params, &resources, s.heads.into())?;
            let count = s.heads * t.length;
            let start_in = small(parts.largest);
            let params = Params { count, start_in, start_out: small(parts.circulants), ..common };
            run(ctx, pass, circulant, params, &resources, groups(count))?;
            let input = line(0, parts.circulants, [s.heads, t.length, 1]);
            if let (true, [.., norm, _, _, _]) = (self.checked, &keys[..]) {
                let (count, start_in) = (s.heads, small(parts.circulants));
                let start_out = small(parts.norms_b);
                let params = Params { count, seq: t.length, start_in, start_out, ..common };
                run(ctx, pass, norm, params, &[region(0)], s.heads.into())?;
            }
            let output = line(1, 0, [s.heads, t.length / 2 + 1, 2]);
            t.circulants.encode_within(ctx, pass, input, output, starts[2])?;
        }
        let mut done = 0;
        while done < rows(s) {
            // the last chunk may do some rows again
            let first = small(done.min(rows(s) - u64::from(self.chunk)));
            let common = Params { first, ..common };
            let count = self.chunk * self.features * common.positions;
            for (x, resource, to) in
                [(place_q, &q.resource, parts.features_q), (place_k, &k.resource, parts.features_k)]
            {
                let params = Params { x, w: place_w, count, start_out: small(to), ..common };
                let resources = [Some(region(0)), Some(resource.clone()), directions.clone()];
                let resources: Vec<_> = resources.into_iter().flatten().collect();
                run(ctx, pass, &keys[0], params, &resources, groups(count))?;
            }
            if let (Some(t), [_, _, _, expand, multiply, contract, ..]) =
                (&self.transforms, &keys[..])
            {
                let columns = small(u64::from(self.chunk) * columns(s, self.features));
                let in_space = line(0, parts.columns, [columns, t.length, 1]);
                let in_frequency = line(1, parts.spectra, [columns, t.length / 2 + 1, 2]);
                let count = columns * t.length;
                let start_out = small(parts.columns);
                let params = Params { x: place_v, count, start_out, ..common };
                let resources = [region(0), v.resource.clone()];
                run(ctx, pass, expand, params, &resources, groups(count))?;
                if let (true, [.., norm, bounds, _, _]) = (self.checked, &keys[..]) {
                    let (start_in, start_out) = (small(parts.columns), small(parts.norms));
                    let params = Params { count: columns, start_in, start_out, ..common };
                    run(ctx, pass, norm, params, &[region(0)], columns.into())?;
                    let count = self.chunk * self.features;
                    let (start_q, start_in) = (small(parts.norms_b), small(parts.norms));
                    let start_out = small(parts.bounds);
                    let params = Params { count, start_q, start_in, start_out, ..common };
                    run(ctx, pass, bounds, params, &[region(0)], groups(count))?;
                }
                t.forward.encode_within(ctx, pass, in_space, in_frequency, starts[2])?;
                let count = columns * (t.length / 2 + 1);
                // in pairs
                let start_out = small(parts.spectra / 2);
                let params = Params { count, start_in: 0, start_out, ..common };
                run(ctx, pass, multiply, params, &[region(1)], groups(count))?;
                t.inverse.encode_within(ctx, pass, in_frequency, in_space, starts[2])?;
                let count = self.chunk * s.seq * s.value_dim;
                let start_in = small(parts.columns);
                let params = Params { x: place_o, count, start_in, ..common };
                let resources = [region(0), o.resource.clone()];
                run(ctx, pass, contract, params, &resources, groups(count))?;
                if let (true, [.., judge, _]) = (self.checked, &keys[..]) {
                    let count = self.chunk * common.positions;
                    let (w, start_out) = ([0, 0, 0, small(parts.bounds)], small(parts.flags));
                    let params = Params { w, count, start_in, start_out, ..common };
                    run(ctx, pass, judge, params, &[region(0)], groups(count))?;
                }
            }
            if let (true, [.., exact]) = (self.transforms.is_none() || self.checked, &keys[..]) {
                let (count, start_out) = (small(self.units()), small(parts.flags));
                let params = Params { x: place_v, w: place_o, count, start_out, ..common };
                let resources =
                    [region(0), v.resource.clone(), b.resource.clone(), o.resource.clone()];
                run(ctx, pass, exact, params, &resources, self.units())?;
            }
            done += u64::from(self.chunk);
        }
        Ok(())
    }

    /// The scratch buffer, or `None` if there is nothing to do.
    fn check<'a>(
        &self,
        ctx: &Context,
        args: &RelativeAttentionArgs<'a>,
    ) -> Result<Option<&'a wgpu::Buffer>> {
        ctx.expect_plan(OP, Some(&self.home))?;
        let (s, dtype) = (&self.shape, self.options.dtype);
        let rows = |n: u32| [s.batch, s.seq, s.heads, n];
        args.q.expect(OP, "q", rows(s.key_dim), dtype)?;
        args.k.expect(OP, "k", rows(s.key_dim), dtype)?;
        args.v.expect(OP, "v", rows(s.value_dim), dtype)?;
        args.b.expect(OP, "b", [s.heads, 2 * s.seq - 1], DType::F32)?;
        args.o.expect_output(OP, "o", rows(s.value_dim), dtype)?;
        let mut inputs = vec![
            ("q", args.q.buffer),
            ("k", args.k.buffer),
            ("v", args.v.buffer),
            ("b", args.b.buffer),
        ];
        match (self.options.features, &args.w) {
            (RelativeFeatures::Given, None) => {}
            (RelativeFeatures::Given, Some(_)) => {
                return Err(Error::argument(OP, "w", "features are given, no directions wanted"));
            }
            (RelativeFeatures::Random(n), None) => {
                let problem = format!("needs {n} directions for each head, none given");
                return Err(Error::argument(OP, "w", problem));
            }
            (RelativeFeatures::Random(n), Some(w)) => {
                w.expect(OP, "w", [s.heads, n, s.key_dim], DType::F32)?;
                inputs.push(("w", w.buffer));
            }
        }
        let mut outputs = vec![("o", args.o.buffer)];
        let (what, need) = ("scratch", self.scratch_bytes());
        let scratch = args.scratch.filter(|_| need > 0);
        if let Some(buffer) = scratch {
            if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
                return Err(Error::Usage { op: OP, what, missing: wgpu::BufferUsages::STORAGE });
            }
            if buffer.size() < need {
                return Err(Error::OutOfRange { op: OP, what, end: need, size: buffer.size() });
            }
            outputs.push((what, buffer));
        } else if need > 0 {
            return Err(Error::argument(OP, what, format!("needs {need} bytes, none given")));
        }
        distinct_outputs(ctx, OP, &outputs, &inputs)?;
        Ok(scratch)
    }
}

/// Scratch is at most a binding of less than 2^32 elements.
fn small(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn groups(count: u32) -> u64 {
    u64::from(count.div_ceil(WORKGROUP))
}

fn run(
    ctx: &Context,
    pass: &mut wgpu::ComputePass<'_>,
    key: &Key,
    params: Params,
    resources: &[Resource<'_>],
    groups: u64,
) -> Result<()> {
    let kernel = ctx.kernel(key.clone())?;
    let groups = fold(OP, groups, &ctx.caps)?;
    dispatch(ctx, pass, OP, &kernel, bytemuck::bytes_of(&params), resources, groups)
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;
    use crate::test_support::reflect;

    const KERNELS: [Source; 10] =
        [FEATURES, EXACT, LARGEST, CIRCULANT, EXPAND, MULTIPLY, CONTRACT, NORM, BOUNDS, JUDGE];

    #[test]
    fn params_match_the_kernels() {
        for kernel in KERNELS {
            let lib = include_str!("../../shaders/lib/index.wgsl");
            let module = naga::front::wgsl::parse_str(&format!("{}\n{lib}", kernel.text)).unwrap();
            let got = reflect::struct_layout(&module, "Params");
            let want = [
                ("x", offset_of!(Params, x)),
                ("w", offset_of!(Params, w)),
                ("b", offset_of!(Params, b)),
                ("first", offset_of!(Params, first)),
                ("count", offset_of!(Params, count)),
                ("heads", offset_of!(Params, heads)),
                ("seq", offset_of!(Params, seq)),
                ("positions", offset_of!(Params, positions)),
                ("key_dim", offset_of!(Params, key_dim)),
                ("features", offset_of!(Params, features)),
                ("value_dim", offset_of!(Params, value_dim)),
                ("length", offset_of!(Params, length)),
                ("start_q", offset_of!(Params, start_q)),
                ("start_in", offset_of!(Params, start_in)),
                ("start_out", offset_of!(Params, start_out)),
                ("pad", offset_of!(Params, pad)),
                ("", size_of::<Params>()),
            ];
            let got: Vec<(&str, usize)> =
                got.iter().map(|(name, at, _)| (name.as_str(), *at as usize)).collect();
            assert_eq!(got, want, "{}", kernel.path);
        }
    }

    #[test]
    fn circulants_are_long_enough_and_smooth() {
        let got: Vec<u32> = [1, 2, 3, 4, 8, 48, 1000].map(circulant_length).into();
        assert_eq!(got, [2, 4, 6, 8, 16, 96, 2000]);
        assert!((1..2000).all(|n| circulant_length(n) >= 2 * n - 1));
    }
}
