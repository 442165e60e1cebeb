//! Kernelised attention with relative positions, in `O(n log n)` by Fourier transforms.
//!
//! `o_i = sum_j e^b[j - i] (phi(q_i) . phi(k_j)) v_j / sum_j e^b[j - i] (phi(q_i) . phi(k_j))`.
//! Both sums are a Toeplitz matrix times `phi(k_j) [v_j, 1]`, one column for each feature and
//! channel; a Toeplitz matrix is a corner of a circulant one, and that is diagonal after a Fourier
//! transform. Source: Luo et al. 2021, arXiv:2106.12566.
//!
//! Fourier sums have an error relative to their largest part: rows whose whole weight is small
//! against the largest `e^b` lose digits that the quadratic sum would keep.

use std::sync::Arc;

use crate::{
    Context, DType, Error, Layout, Result, TensorView,
    dispatch::{Resource, dispatch, distinct_outputs, fold},
    element::TensorDecl,
    fft::{Direction, Fft, FftArgs, FftPlan, Normalization},
    home::Home,
    shader::{Key, Source, source},
};

const OP: &str = "relative_attention";

const WORKGROUP: u32 = 64;

/// Bytes of each large scratch buffer that a plan asks for, unless one head needs more.
const SCRATCH: u64 = 64 << 20;

/// Parts of a scratch buffer start at multiples of so many elements: where any device can bind.
const ALIGN: u64 = 64;

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

/// Options of kernelised attention with relative positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RelativeAttention {
    /// Where the features come from.
    pub features: RelativeFeatures,
    /// Keys after the query do not count.
    pub causal: bool,
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
    /// for query `i` and key `j`.
    pub b: TensorView<'a, 2>,
    /// Directions `[heads, features, key_dim]`, f32, needed with [`RelativeFeatures::Random`].
    pub w: Option<TensorView<'a, 3>>,
    /// Output `[batch, seq, heads, value_dim]`, written everywhere.
    pub o: TensorView<'a, 4>,
    /// Buffers apart from all others, with usage `STORAGE` and at least
    /// [`RelativeAttentionPlan::scratch_bytes`] bytes each, in that order.
    pub scratch: [&'a wgpu::Buffer; 3],
}

/// A checked and compiled problem. Encode it as often as you like.
#[derive(Debug)]
pub struct RelativeAttentionPlan {
    options: RelativeAttention,
    shape: RelativeAttentionShape,
    features: u32,
    /// Of the circulant matrices.
    length: u32,
    /// (batch, head) rows at a time.
    chunk: u32,
    /// Of the columns and of the circulants, and back.
    forward: FftPlan,
    circulants: FftPlan,
    inverse: FftPlan,
    /// The device it was planned on.
    home: Arc<Home>,
}

// Must match `Params` in shaders/relative_attention/*.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    x: [u32; 4],
    w: [u32; 4],
    first: u32,
    count: u32,
    heads: u32,
    seq: u32,
    key_dim: u32,
    features: u32,
    value_dim: u32,
    length: u32,
    start_q: u32,
    start_in: u32,
    start_out: u32,
    pad: u32,
}

const FEATURES: Source = source!("relative_attention/features.wgsl");
const CIRCULANT: Source = source!("relative_attention/circulant.wgsl");
const EXPAND: Source = source!("relative_attention/expand.wgsl");
const MULTIPLY: Source = source!("relative_attention/multiply.wgsl");
const CONTRACT: Source = source!("relative_attention/contract.wgsl");

/// First elements of the parts of the first scratch buffer, and its end.
struct Parts {
    features_q: u64,
    features_k: u64,
    circulants: u64,
    columns: u64,
    end: u64,
}

impl RelativeAttention {
    /// Checks the problem, chooses the length of the transforms, compiles.
    ///
    /// # Errors
    /// [`Error::Shape`] for a size of 0, [`Error::Limit`] for a problem one head of which the device
    /// cannot hold, [`Error::Compile`], [`Error::DeviceLost`].
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
        let limit = u64::from(crate::fft::MAX_LENGTH / 4);
        if u64::from(shape.seq) > limit {
            return Err(Error::shape(OP, "seq", format!("at most {limit}"), shape.seq));
        }
        let length = circulant_length(shape.seq);
        let columns = u64::from(features) * (u64::from(shape.value_dim) + 1);
        // a spectrum is the larger of the two
        let row = columns.saturating_mul(4 * (u64::from(length) + 2));
        let rows = u64::from(shape.batch) * u64::from(shape.heads);
        let features_bytes = rows.saturating_mul(8 * u64::from(shape.seq) * u64::from(features));
        // both buffers start with the heads' own part
        let own = u64::from(shape.heads) * 4 * (u64::from(length) + 2) + 16 * ALIGN;
        let left = ctx.caps.binding_size.saturating_sub(features_bytes.saturating_add(own));
        let chunk = (SCRATCH.min(left) / row).clamp(1, rows.max(1));
        let too_much = |need: u64| Error::Limit {
            op: OP,
            what: "bytes of scratch",
            need,
            limit: ctx.caps.binding_size,
        };
        // what follows computes with sizes that fit
        if features_bytes > ctx.caps.binding_size {
            return Err(too_much(features_bytes));
        }
        let chunk = u32::try_from(chunk).map_err(|_| too_much(u64::MAX))?;
        let batch =
            u32::try_from(columns.saturating_mul(chunk.into())).map_err(|_| too_much(u64::MAX))?;
        let fft = |direction, normalization| Fft {
            shape: [1, length],
            direction,
            normalization,
            real: true,
        };
        let forward = fft(Direction::Forward, Normalization::None);
        let plan = RelativeAttentionPlan {
            options: *self,
            shape,
            features,
            length,
            chunk,
            forward: forward.plan(ctx, batch)?,
            circulants: forward.plan(ctx, shape.heads)?,
            inverse: fft(Direction::Inverse, Normalization::ByLength).plan(ctx, batch)?,
            home: Arc::clone(ctx.home()),
        };
        let [first, second, _] = plan.scratch_bytes();
        let need = first.max(second);
        if need > ctx.caps.binding_size || need / 4 > u64::from(u32::MAX) {
            return Err(too_much(need));
        }
        for key in plan.keys() {
            ctx.kernel(key)?;
        }
        Ok(plan)
    }
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

impl RelativeAttentionPlan {
    /// The options.
    pub fn options(&self) -> RelativeAttention {
        self.options
    }

    /// The problem.
    pub fn shape(&self) -> RelativeAttentionShape {
        self.shape
    }

    /// Bytes that the three buffers of [`RelativeAttentionArgs::scratch`] must have: features and
    /// columns, spectra, and what the transforms need; never 0.
    pub fn scratch_bytes(&self) -> [u64; 3] {
        let transforms = [&self.forward, &self.circulants, &self.inverse];
        let most = transforms.iter().map(|t| t.scratch_bytes()).max().unwrap_or(0);
        [4 * self.parts().end, 8 * self.spectra()[1], most.max(16)]
    }

    /// The text of the kernels around the transforms.
    pub fn wgsl(&self) -> Vec<String> {
        self.keys().iter().map(Key::wgsl).collect()
    }

    fn columns(&self) -> u64 {
        u64::from(self.features) * (u64::from(self.shape.value_dim) + 1)
    }

    fn parts(&self) -> Parts {
        let s = &self.shape;
        let rows = u64::from(s.batch) * u64::from(s.heads);
        let features = (rows * u64::from(s.seq)).saturating_mul(self.features.into());
        let features = features.next_multiple_of(ALIGN);
        let circulants = (u64::from(s.heads) * u64::from(self.length)).next_multiple_of(ALIGN);
        let columns = u64::from(self.chunk) * self.columns() * u64::from(self.length);
        Parts {
            features_q: 0,
            features_k: features,
            circulants: 2 * features,
            columns: 2 * features + circulants,
            end: 2 * features + circulants + columns,
        }
    }

    /// First complex number of the columns' spectra, after those of the circulants, and the end.
    fn spectra(&self) -> [u64; 2] {
        let half = u64::from(self.length / 2 + 1);
        let first = (u64::from(self.shape.heads) * half).next_multiple_of(ALIGN);
        [first, first + u64::from(self.chunk) * self.columns() * half]
    }

    /// Of features, circulants, columns, the product of spectra, and the contraction.
    fn keys(&self) -> [Key; 5] {
        let random = matches!(self.options.features, RelativeFeatures::Random(_));
        let decl = |dtype| Some(TensorDecl::new(dtype, false));
        let (element, single) = (decl(self.options.dtype), decl(DType::F32));
        let key = |source, entry, flag: Option<(&'static str, bool)>, tensors| {
            let mut spec = vec![("WORKGROUP", format!("{WORKGROUP}u"))];
            spec.extend(flag.map(|(name, value)| (name, value.to_string())));
            Key { source, entry, spec, tensors }
        };
        let w = if random { single } else { None };
        [
            key(FEATURES, "features", Some(("RANDOM", random)), vec![("rows", element), ("w", w)]),
            key(CIRCULANT, "circulant", Some(("CAUSAL", self.options.causal)), vec![("b", single)]),
            key(EXPAND, "expand", None, vec![("rows", element)]),
            key(MULTIPLY, "multiply", None, vec![]),
            key(CONTRACT, "contract", None, vec![("o", element)]),
        ]
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
    /// [`Error::Argument`] for directions missing or not wanted, [`Error::SharedBuffer`],
    /// [`Error::Limit`], [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &RelativeAttentionArgs<'_>,
    ) -> Result<()> {
        self.check(ctx, args)?;
        let s = &self.shape;
        let rows = u64::from(s.batch) * u64::from(s.heads);
        if rows == 0 {
            return Ok(());
        }
        let (parts, [first_spectrum, _]) = (self.parts(), self.spectra());
        let [real, complex, scratch] = args.scratch;
        let [real_bytes, complex_bytes, _] = self.scratch_bytes();
        let bind = |buffer, bytes: u64| {
            let size = wgpu::BufferSize::new(bytes);
            Resource::Buffer(wgpu::BufferBinding { buffer, offset: 0, size })
        };
        let (reals, spectra) = (bind(real, real_bytes), bind(complex, complex_bytes));
        let [features, circulant, expand, multiply, contract] = self.keys();
        let common = Params {
            heads: s.heads,
            seq: s.seq,
            key_dim: s.key_dim,
            features: self.features,
            value_dim: s.value_dim,
            length: self.length,
            ..Default::default()
        };
        let place = |view: &TensorView<'_, 4>, offset| {
            let [batch, position, head, _] = view.strides_u32();
            [batch, position, head, offset]
        };

        let count = small(rows * u64::from(s.seq) * u64::from(self.features));
        for (name, view, to) in [("q", &args.q, parts.features_q), ("k", &args.k, parts.features_k)]
        {
            let x = view.bind(OP, name, &ctx.caps)?;
            let mut params =
                Params { x: place(view, x.offset), count, start_out: small(to), ..common };
            let mut resources = vec![reals.clone(), x.resource];
            if let Some(w) = &args.w {
                let bound = w.bind(OP, "w", &ctx.caps)?;
                let [head, feature, _] = w.strides_u32();
                params.w = [head, feature, 0, bound.offset];
                resources.push(bound.resource);
            }
            run(ctx, pass, &features, params, &resources, groups(count))?;
        }
        let b = args.b.bind(OP, "b", &ctx.caps)?;
        let x = [args.b.strides_u32()[0], 0, 0, b.offset];
        let params = Params { x, start_out: small(parts.circulants), ..common };
        run(ctx, pass, &circulant, params, &[reals.clone(), b.resource], s.heads.into())?;

        let half = self.length / 2 + 1;
        let columns = small(u64::from(self.chunk) * self.columns());
        let lines = |buffer, offset, shape: [u32; 3]| {
            let [n, width, parts] = shape;
            let layout = Layout::contiguous([n, 1, width, parts]).with_offset(offset);
            TensorView { buffer, layout, dtype: DType::F32 }
        };
        let transform = |pass: &mut wgpu::ComputePass<'_>, plan: &FftPlan, input, output| {
            let scratch = (plan.scratch_bytes() > 0).then_some(scratch);
            plan.encode_pass(ctx, pass, &FftArgs { input, output, scratch })
        };
        let circulants = lines(real, parts.circulants, [s.heads, self.length, 1]);
        transform(pass, &self.circulants, circulants, lines(complex, 0, [s.heads, half, 2]))?;
        let in_space = lines(real, parts.columns, [columns, self.length, 1]);
        let in_frequency = lines(complex, 2 * first_spectrum, [columns, half, 2]);
        let (v, o) = (args.v.bind(OP, "v", &ctx.caps)?, args.o.bind(OP, "o", &ctx.caps)?);
        let mut done = 0;
        while done < rows {
            // the last chunk may do some rows again
            let first = small(done.min(rows - u64::from(self.chunk)));
            let count = columns * self.length;
            let params = Params {
                x: place(&args.v, v.offset),
                first,
                count,
                start_in: small(parts.features_k),
                start_out: small(parts.columns),
                ..common
            };
            let resources = [reals.clone(), v.resource.clone()];
            run(ctx, pass, &expand, params, &resources, groups(count))?;
            transform(pass, &self.forward, in_space, in_frequency)?;
            let count = columns * half;
            let params = Params { first, count, start_out: small(first_spectrum), ..common };
            run(ctx, pass, &multiply, params, std::slice::from_ref(&spectra), groups(count))?;
            transform(pass, &self.inverse, in_frequency, in_space)?;
            let count = self.chunk * s.seq * s.value_dim;
            let params = Params {
                x: place(&args.o, o.offset),
                first,
                count,
                start_q: small(parts.features_q),
                start_in: small(parts.columns),
                ..common
            };
            let resources = [reals.clone(), o.resource.clone()];
            run(ctx, pass, &contract, params, &resources, groups(count))?;
            done += u64::from(self.chunk);
        }
        Ok(())
    }

    fn check(&self, ctx: &Context, args: &RelativeAttentionArgs<'_>) -> Result<()> {
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
        let names = ["scratch[0]", "scratch[1]", "scratch[2]"];
        for ((what, buffer), need) in names.into_iter().zip(args.scratch).zip(self.scratch_bytes())
        {
            if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
                return Err(Error::Usage { op: OP, what, missing: wgpu::BufferUsages::STORAGE });
            }
            if buffer.size() < need {
                return Err(Error::OutOfRange { op: OP, what, end: need, size: buffer.size() });
            }
            outputs.push((what, buffer));
        }
        distinct_outputs(ctx, OP, &outputs, &inputs)
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

    #[test]
    fn params_match_the_kernels() {
        for kernel in [FEATURES, CIRCULANT, EXPAND, MULTIPLY, CONTRACT] {
            let lib = include_str!("../../shaders/lib/index.wgsl");
            let module = naga::front::wgsl::parse_str(&format!("{}\n{lib}", kernel.text)).unwrap();
            let got = reflect::struct_layout(&module, "Params");
            let want = [
                ("x", offset_of!(Params, x)),
                ("w", offset_of!(Params, w)),
                ("first", offset_of!(Params, first)),
                ("count", offset_of!(Params, count)),
                ("heads", offset_of!(Params, heads)),
                ("seq", offset_of!(Params, seq)),
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
