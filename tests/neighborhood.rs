//! Neighborhood attention on every adapter and tier, against the f64 reference.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod common;

use common::{Deal, Device, Guarded, Rng, devices, rel_rms, rounded, run, to_f64, upload_as};
use tilewise::{
    Caps, Context, DType, Error, Layout, Tensor, TensorView, Tier,
    attention::{Attention, AttentionShape},
    neighborhood::{
        Algorithm, Border, KernelCost, MapView, NeighborhoodArgs, NeighborhoodAttention,
        NeighborhoodShape, NeighborhoodTiles, RelativeBias,
    },
    reference::{self, AttentionInputs, NeighborhoodInputs, neighborhood_attention},
};

const BOTH: [Algorithm; 2] = [Algorithm::Fused, Algorithm::Naive];

/// Keys `start..end` of query `u` in a group of `n` tokens, by NATTEN's formulas.
fn window<const D: usize>(op: &NeighborhoodAttention<D>, a: usize, u: i64, n: i64) -> (i64, i64) {
    let [k, s] = [op.kernel_size[a], op.stride[a]].map(i64::from);
    if op.is_causal[a] {
        let leader = (u / s * s + s - 1).min(n - 1);
        return ((leader - k + 1).max(0), (u + 1).min(n));
    }
    let (left, right) = (k / 2, k / 2 + k % 2 - 1);
    let middle = u / s * s + s / 2;
    match op.border {
        Border::Shift => {
            let leader = middle.min(n - 1);
            let past = if leader + right >= n { n - right - leader - 1 } else { 0 };
            let start = (leader - left).max(0) + past;
            (start, start + k)
        }
        Border::Masked => ((middle - left).max(0), (middle - left + k).min(n)),
        Border::Zeros => (middle - left, middle - left + k),
    }
}

fn coordinates<const D: usize>(index: usize, shape: [usize; D]) -> [usize; D] {
    let (mut rest, mut at) = (index, [0; D]);
    for a in (0..D).rev() {
        at[a] = rest % shape[a];
        rest /= shape[a];
    }
    at
}

/// Data of one problem, row-major.
#[derive(Clone)]
struct Data {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    extra_k: Vec<f32>,
    extra_v: Vec<f32>,
    bias: Vec<f32>,
}

/// The operator as one would write it in loops, in f32: its error against f64 sets the budget.
fn plain<const D: usize>(
    op: &NeighborhoodAttention<D>,
    s: &NeighborhoodShape<D>,
    x: &Data,
) -> Vec<f32> {
    let [batch, heads, heads_kv, d, dv, extra] =
        [s.batch, s.heads, s.heads_kv, s.head_dim, s.head_dim_v, s.extra_tokens]
            .map(|n| n as usize);
    let extents = s.spatial.map(|n| n as usize);
    let tokens: usize = extents.iter().product();
    let scale = op.scale.unwrap_or((d as f32).sqrt().recip());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    // tables are for the windows that were given
    let (given, op) = (op.kernel_size, &op.fitted(s.spatial));
    let spans = given.map(|k| 2 * k as usize - 1);
    let mut out = Vec::new();
    for at in 0..batch * tokens * heads {
        let (b, token, head) = (at / (tokens * heads), at / heads % tokens, at % heads);
        let head_kv = head / (heads / heads_kv);
        let place = coordinates(token, extents);
        let query = &x.q[at * d..][..d];
        let windows: [(i64, i64); D] = std::array::from_fn(|a| {
            let (dilation, n) = (op.dilation[a] as usize, extents[a]);
            let group = n / dilation + usize::from(place[a] % dilation < n % dilation);
            window(op, a, (place[a] / dilation) as i64, group as i64)
        });
        let sizes = windows.map(|(start, end)| (end - start) as usize);
        let (mut scores, mut values) = (Vec::new(), Vec::new());
        for i in 0..sizes.iter().product() {
            let within = coordinates(i, sizes);
            // in steps of the dilation, then in tokens
            let step: [i64; D] = std::array::from_fn(|a| windows[a].0 + within[a] as i64);
            let key: [i64; D] = std::array::from_fn(|a| {
                let dilation = i64::from(op.dilation[a]);
                step[a] * dilation + place[a] as i64 % dilation
            });
            let inside = (0..D).all(|a| (0..extents[a] as i64).contains(&key[a]));
            let row = (0..D).fold(0, |n, a| n * extents[a] as i64 + key[a]);
            let row = inside.then(|| (b * tokens + row as usize) * heads_kv + head_kv);
            let mut score = row.map_or(0.0, |row| scale * dot(query, &x.k[row * d..][..d]));
            let offset: [usize; D] = std::array::from_fn(|a| {
                let own = (place[a] / op.dilation[a] as usize) as i64;
                (step[a] - own + i64::from(given[a]) - 1) as usize
            });
            match op.bias {
                RelativeBias::None => {}
                RelativeBias::Table => {
                    let entry = (0..D).fold(0, |n, a| n * spans[a] + offset[a]);
                    score += x.bias[head * spans.iter().product::<usize>() + entry];
                }
                RelativeBias::Factorised { scaled } => {
                    for a in 0..D {
                        let row = spans[..a].iter().sum::<usize>() + offset[a];
                        let product = dot(query, &x.bias[row * d..][..d]);
                        score += if scaled { scale * product } else { product };
                    }
                }
            }
            scores.push(score);
            values.push(row.map(|row| &x.v[row * dv..][..dv]));
        }
        for m in 0..extra {
            let row = (b * extra + m) * heads_kv + head_kv;
            scores.push(scale * dot(query, &x.extra_k[row * d..][..d]));
            values.push(Some(&x.extra_v[row * dv..][..dv]));
        }
        let top = scores.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = scores.iter().map(|s| (s - top).exp()).sum();
        out.extend((0..dv).map(|c| {
            let weighted =
                |(s, v): (&f32, &Option<&[f32]>)| (s - top).exp() / sum * v.map_or(0.0, |v| v[c]);
            scores.iter().zip(&values).map(weighted).sum::<f32>()
        }));
    }
    out
}

/// `[batch, *spatial, *tail]`
fn dims<const N: usize>(batch: u32, spatial: &[u32], tail: &[u32]) -> [u32; N] {
    [&[batch], spatial, tail].concat().try_into().expect("the rank of the map")
}

/// `R = D + 3` axes of a map, `L = D + 2` of its LSE.
struct Problem<const D: usize, const R: usize, const L: usize> {
    shape: NeighborhoodShape<D>,
    op: NeighborhoodAttention<D>,
    /// Of q, k, v and o.
    layouts: [Layout<R>; 4],
    lse: Layout<L>,
    /// Of the extra keys and values.
    extra: [Layout<4>; 2],
}

struct Errors {
    o: f64,
    lse: f64,
    plain: f64,
}

impl<const D: usize, const R: usize, const L: usize> Problem<D, R, L> {
    fn new(shape: NeighborhoodShape<D>, op: NeighborhoodAttention<D>) -> Self {
        let s = shape;
        let map = |h, d| Layout::contiguous(dims(s.batch, &s.spatial, &[h, d]));
        let extra = |d| Layout::contiguous([s.batch, s.extra_tokens, s.heads_kv, d]);
        Self {
            shape,
            op,
            layouts: [
                map(s.heads, s.head_dim),
                map(s.heads_kv, s.head_dim),
                map(s.heads_kv, s.head_dim_v),
                map(s.heads, s.head_dim_v),
            ],
            lse: Layout::contiguous(dims(s.batch, &s.spatial, &[s.heads])),
            extra: [extra(s.head_dim), extra(s.head_dim_v)],
        }
    }

    /// The same with room between rows, axes in another order in memory, and offsets.
    fn scattered(mut self, rng: &mut Rng) -> Self {
        for layout in &mut self.layouts {
            *layout = scatter(rng, layout.shape);
        }
        for layout in &mut self.extra {
            *layout = scatter(rng, layout.shape);
        }
        self
    }

    fn data(&self, rng: &mut Rng) -> Data {
        let dtype = self.op.dtype;
        let mut values =
            |n: Option<u64>| rounded(&rng.vec(usize::try_from(n.unwrap()).unwrap()), dtype);
        let [q, k, v] = [0, 1, 2].map(|i| values(self.layouts[i].elements()));
        let [extra_k, extra_v] = [0, 1].map(|i| values(self.extra[i].elements()));
        let bias = self.op.bias_shape(&self.shape).map_or(0, |[rows, row]| rows * row);
        Data { q, k, v, extra_k, extra_v, bias: rng.vec(bias as usize) }
    }

    fn want(&self, x: &Data) -> (Vec<f64>, Vec<f64>) {
        let inputs = NeighborhoodInputs {
            q: &to_f64(&x.q),
            k: &to_f64(&x.k),
            v: &to_f64(&x.v),
            extra_k: &to_f64(&x.extra_k),
            extra_v: &to_f64(&x.extra_v),
            bias: &to_f64(&x.bias),
        };
        neighborhood_attention(&self.op, &self.shape, &inputs)
    }

    /// Output and LSE of the device, row-major.
    fn outputs(&self, ctx: &Context, x: &Data) -> (Vec<f32>, Vec<f32>) {
        let (s, dtype) = (self.shape, self.op.dtype);
        let plan = self.op.plan(ctx, s).unwrap();
        let map = |i: usize, x: &[f32]| upload_as(ctx, self.layouts[i], x, dtype).unwrap();
        let (q, k, v) = (map(0, &x.q), map(1, &x.k), map(2, &x.v));
        let extra = |i: usize, x: &[f32]| upload_as(ctx, self.extra[i], x, dtype).unwrap();
        let (extra_k, extra_v) = (extra(0, &x.extra_k), extra(1, &x.extra_v));
        let bias = self.op.bias_shape(&s).map(|b| Tensor::upload(ctx, b, &x.bias).unwrap());
        let o = Guarded::new(ctx, self.layouts[3], dtype);
        let lse = Guarded::new(ctx, self.lse, DType::F32);
        let words = plan.scratch_bytes() as u32 / 4;
        let scratch = Tensor::upload(ctx, [words], &vec![f32::NAN; words as usize]).unwrap();
        let wanted = s.extra_tokens > 0;
        let args = NeighborhoodArgs {
            lse: Some(lse.view().into()),
            extra_k: wanted.then(|| extra_k.view_as(self.extra[0]).unwrap()),
            extra_v: wanted.then(|| extra_v.view_as(self.extra[1]).unwrap()),
            bias: bias.as_ref().map(Tensor::view),
            scratch: Some(scratch.buffer()),
            ..NeighborhoodArgs::new(
                q.view_as(self.layouts[0]).unwrap(),
                k.view_as(self.layouts[1]).unwrap(),
                v.view_as(self.layouts[2]).unwrap(),
                o.view(),
            )
        };
        run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
        (o.read(ctx), lse.read(ctx))
    }

    fn errors(&self, ctx: &Context, rng: &mut Rng) -> Errors {
        let x = self.data(rng);
        let (want, want_lse) = self.want(&x);
        let simple = rounded(&plain(&self.op, &self.shape, &x), self.op.dtype);
        let (got, got_lse) = self.outputs(ctx, &x);
        assert_eq!(got_lse.len(), want_lse.len());
        assert!(got_lse.iter().all(|x| x.is_finite()), "LSE {got_lse:?}");
        Errors {
            o: rel_rms(&got, &want),
            // of a value near 0 no relative error can be asked: an LSE is a logarithm
            lse: got_lse
                .iter()
                .zip(&want_lse)
                .map(|(g, w)| (f64::from(*g) - w).abs() / w.abs().max(1.0))
                .fold(0.0, f64::max),
            plain: rel_rms(&simple, &want),
        }
    }

    /// `seed` makes the data; messages name it.
    fn check(&self, device: &Device, seed: u64) {
        let what = || {
            format!(
                "{}, seed {seed}: {:?} {:?} {:?}",
                device.name, self.shape, self.op, self.layouts
            )
        };
        let e = self.errors(&device.ctx, &mut Rng(seed));
        // a plain loop on the host has an exact exp; on a device it may be off by 3 ulp (WGSL's
        // accuracy table), which shows where a window has one or two keys
        let budget = 2.0 * e.plain.max(2.0 * self.op.dtype.unit_roundoff());
        assert!(e.o <= budget, "{}\n output error {:.2e}, budget {budget:.2e}", what(), e.o);
        assert!(e.lse <= 4e-6, "{}\n LSE error {:.2e}", what(), e.lse);
    }
}

/// A layout of this shape, its axes but the last in random order in memory, with room between
/// rows and an offset; sometimes a multiple of four everywhere, sometimes not.
fn scatter<const N: usize>(rng: &mut Rng, shape: [u32; N]) -> Layout<N> {
    let mut order: [usize; N] = std::array::from_fn(|a| a);
    for a in (1..N - 1).rev() {
        order.swap(a, rng.range(0, a as u32 + 1) as usize);
    }
    let mut strides = [1; N];
    let mut step = u64::from(shape[N - 1]) + u64::from(*rng.pick(&[0u32, 4, 8, 3]));
    for &a in order[..N - 1].iter().rev() {
        strides[a] = step;
        step *= u64::from(shape[a].max(1));
    }
    Layout { shape, strides, offset: u64::from(*rng.pick(&[0u32, 4, 16, 5])) }
}

fn slow() -> bool {
    std::env::var("TILEWISE_SLOW").is_ok_and(|v| v == "1")
}

/// Devices that compile in good time; all, if there are no others.
fn fast() -> Vec<usize> {
    let all: Vec<usize> = (0..devices().len()).collect();
    let most = Caps::minimum().unrolled;
    let fast: Vec<usize> =
        all.iter().copied().filter(|&d| devices()[d].ctx.caps.unrolled >= most).collect();
    if fast.is_empty() { all } else { fast }
}

/// Software drivers hold megabytes for each kernel.
fn forget(device: &Device) {
    if device.ctx.compiled_kernels() > 24 {
        device.ctx.forget_kernels();
    }
}

/// A legal problem on a map of at most `most` tokens along an axis. Problems whose seeds agree but
/// for the last three bits share what kernels are compiled for, as far as it is not the geometry's.
fn random<const D: usize, const R: usize, const L: usize>(
    seed: u64,
    most: [u32; D],
) -> Problem<D, R, L> {
    let mut rng = Rng(seed >> 3 << 3);
    let &[d, dv] = rng.pick(&[[4, 4], [8, 8], [4, 8], [5, 3], [12, 4]]);
    let dtype = *rng.pick(&[DType::F32, DType::F32, DType::F16, DType::BF16]);
    let bias = *rng.pick(&[
        RelativeBias::None,
        RelativeBias::None,
        RelativeBias::Table,
        RelativeBias::Factorised { scaled: false },
        RelativeBias::Factorised { scaled: true },
    ]);
    let extras = rng.range(0, 3) == 0;
    let border = *rng.pick(&[Border::Shift, Border::Shift, Border::Masked, Border::Zeros]);
    let views = rng.range(0, 3) == 0;

    let mut rng = Rng(!seed);
    let spatial: [u32; D] = most.map(|n| rng.range(1, n + 1));
    let dilation = spatial.map(|n| rng.range(1, 4).min(n));
    let causal = spatial.map(|_| border != Border::Zeros && rng.range(0, 4) == 0);
    let kernel_size = std::array::from_fn(|a| {
        let group = spatial[a] / dilation[a];
        let past = if border == Border::Shift || causal[a] { 0 } else { 3 };
        // small windows are the usual ones
        let most = if rng.range(0, 2) == 0 { group.min(7) } else { group + past };
        rng.range(1, most + 1)
    });
    let stride = kernel_size.map(|k| if rng.range(0, 2) == 0 { 1 } else { rng.range(1, k + 1) });
    // now and then more than fits
    let shrink_to_fit = rng.range(0, 4) == 0;
    let mut larger = |x: u32| if shrink_to_fit { x + rng.range(0, 6) } else { x };
    let (kernel_size, dilation) = (kernel_size.map(&mut larger), dilation.map(&mut larger));
    let &[heads, heads_kv] = rng.pick(&[[1, 1], [2, 2], [2, 1], [4, 2]]);
    let op = NeighborhoodAttention {
        stride,
        dilation,
        shrink_to_fit,
        is_causal: causal,
        border,
        bias,
        dtype,
        scale: (rng.range(0, 4) == 0).then_some(1.5),
        ..NeighborhoodAttention::new(kernel_size)
    };
    let shape = NeighborhoodShape {
        batch: rng.range(1, 3),
        spatial,
        heads,
        heads_kv,
        head_dim: d,
        head_dim_v: dv,
        extra_tokens: if extras { rng.range(1, 6) } else { 0 },
    };
    let problem = Problem::new(shape, op);
    if views { problem.scattered(&mut rng) } else { problem }
}

/// Random problems, each on one device in turn, fused and naive; devices whose compiler is slow
/// take a spread of them.
fn random_problems<const D: usize, const R: usize, const L: usize>(base: u64, most: [u32; D]) {
    let count = if slow() { 720 } else { 96 };
    let fast = fast();
    let mut done = vec![0; devices().len()];
    for n in 0..count {
        let seed = base + n;
        let problem: Problem<D, R, L> = random(seed, most);
        // all that share kernels to one device
        let mut turns = Vec::from_iter(fast.get((n / 8) as usize % fast.len().max(1)).copied());
        if n % 23 == 0 {
            turns.extend((0..devices().len()).filter(|d| !fast.contains(d)));
        }
        for d in turns {
            let device = &devices()[d];
            for algorithm in BOTH {
                let op = NeighborhoodAttention { algorithm, ..problem.op };
                Problem { op, ..problem }.check(device, seed);
            }
            done[d] += 1;
            forget(device);
        }
    }
    for (device, done) in devices().iter().zip(done) {
        println!("{}: {done} problems on {D} axes, fused and naive", device.name);
    }
}

#[test]
fn random_problems_1d() {
    random_problems::<1, 4, 3>(1_000_000, [150]);
}

#[test]
fn random_problems_2d() {
    random_problems::<2, 5, 4>(2_000_000, [21, 17]);
}

#[test]
fn random_problems_3d() {
    random_problems::<3, 6, 5>(3_000_000, [9, 6, 7]);
}

/// Windows smaller than a block of keys, so that blocks reach past the window's box into the extra
/// tokens before every query group is there.
#[test]
fn extra_tokens_beside_small_windows() {
    let devices_of = fast();
    let mut turn = devices_of.iter().cycle();
    for n in [7, 20, 97] {
        for kernel in [1, 2, 3] {
            for (dilation, extra) in [(1, 1), (1, 9), (3, 5), (2, 4)] {
                let s = NeighborhoodShape { extra_tokens: extra, ..shape([n], [2, 2], [4, 4]) };
                let op = NeighborhoodAttention {
                    dilation: [dilation],
                    ..NeighborhoodAttention::new([kernel])
                };
                if kernel * dilation > n {
                    continue;
                }
                let device = &devices()[*turn.next().expect("there is a device")];
                Problem::<1, 4, 3>::new(s, op).check(device, u64::from(n + kernel));
                forget(device);
            }
        }
    }
}

/// A problem of `D` axes with small heads.
fn shape<const D: usize>(
    spatial: [u32; D],
    heads: [u32; 2],
    dims: [u32; 2],
) -> NeighborhoodShape<D> {
    NeighborhoodShape {
        spatial,
        heads: heads[0],
        heads_kv: heads[1],
        head_dim: dims[0],
        head_dim_v: dims[1],
        ..Default::default()
    }
}

#[test]
fn comparators_reject_wrong_windows() {
    // one key too many to the left, one query's window of its neighbour, a causal flag left out
    let right = NeighborhoodAttention::new([5]);
    let s = shape([40], [1, 1], [8, 8]);
    let problem: Problem<1, 4, 3> = Problem::new(s, right);
    let x = problem.data(&mut Rng(1));
    let (want, want_lse) = problem.want(&x);
    for wrong in [
        NeighborhoodAttention { kernel_size: [6], ..right },
        NeighborhoodAttention { stride: [2], ..right },
        NeighborhoodAttention { is_causal: [true], ..right },
        NeighborhoodAttention { dilation: [2], ..right },
        NeighborhoodAttention { border: Border::Masked, ..right },
    ] {
        let (got, got_lse) = neighborhood_attention(
            &wrong,
            &s,
            &NeighborhoodInputs {
                q: &to_f64(&x.q),
                k: &to_f64(&x.k),
                v: &to_f64(&x.v),
                ..Default::default()
            },
        );
        let narrow = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect::<Vec<_>>();
        assert!(rel_rms(&narrow(got), &want) > 0.05, "{wrong:?}");
        if wrong.stride == [1] && wrong.dilation == [1] {
            assert!(rel_rms(&narrow(got_lse), &want_lse) > 1e-3, "{wrong:?}");
        }
    }
}

#[test]
fn element_types_head_sizes_and_groups() {
    for device in devices() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (heads, dims) in [([4, 2], [8, 4]), ([2, 1], [7, 9])] {
                for algorithm in BOTH {
                    let op = NeighborhoodAttention {
                        dtype,
                        algorithm,
                        ..NeighborhoodAttention::new([3, 5])
                    };
                    let s = NeighborhoodShape { batch: 2, ..shape([7, 9], heads, dims) };
                    Problem::<2, 5, 4>::new(s, op).check(device, 11);
                }
            }
            forget(device);
        }
    }
}

#[test]
fn views_of_any_strides() {
    for device in devices() {
        for (seed, dtype) in [(21, DType::F32), (22, DType::F16), (23, DType::BF16)] {
            for algorithm in BOTH {
                let op = NeighborhoodAttention {
                    dtype,
                    algorithm,
                    ..NeighborhoodAttention::new([3, 3])
                };
                let s = NeighborhoodShape {
                    extra_tokens: 2,
                    batch: 2,
                    ..shape([6, 5], [2, 1], [8, 8])
                };
                Problem::<2, 5, 4>::new(s, op).scattered(&mut Rng(seed)).check(device, seed);
            }
        }
        forget(device);
    }
}

#[test]
fn lengths_around_the_tile() {
    for device in devices() {
        let op = NeighborhoodAttention::new([5]);
        let plan = op.plan(&device.ctx, shape([500], [1, 1], [8, 8])).unwrap();
        let group = plan.tiles().lanes * plan.tiles().slots;
        for n in [5, 6, group - 1, group, group + 1, 2 * group + 3, plan.tiles().tile[0] + 1] {
            for is_causal in [false, true] {
                let op = NeighborhoodAttention { is_causal: [is_causal], ..op };
                let s = shape([n.max(5)], [2, 1], [8, 8]);
                Problem::<1, 4, 3>::new(s, op).check(device, n.into());
            }
        }
        forget(device);
    }
}

/// Each way to cut a problem gives the same: the planner may choose any.
#[test]
fn every_tiling_is_right() {
    let fast = fast();
    for (d, device) in devices().iter().enumerate() {
        let op = NeighborhoodAttention {
            stride: [2, 1],
            dilation: [1, 2],
            is_causal: [false, true],
            ..NeighborhoodAttention::new([4, 3])
        };
        let s = NeighborhoodShape { ..shape([11, 14], [2, 2], [4, 4]) };
        let block = NeighborhoodAttention::<2>::block([12, 12], [4, 6]).unwrap();
        for (op, s) in [(op, s), (block, NeighborhoodShape { spatial: [12, 12], ..s })] {
            let caps = &device.ctx.caps;
            let lanes = caps.subgroup.map_or(8, |(_, max)| max);
            let all = op.candidates(&s, lanes, &KernelCost::of(caps)).unwrap();
            assert!(all.len() > 3, "{}", all.len());
            let apart = match (slow(), fast.contains(&d)) {
                (true, true) => 1,
                (false, true) => all.len() / 4 + 1,
                _ => all.len() / 2 + 1,
            };
            for candidate in all.iter().step_by(apart) {
                let op = NeighborhoodAttention { tiles: Some(candidate.tiles), ..op };
                Problem::<2, 5, 4>::new(s, op).check(device, 31);
                forget(device);
            }
        }
    }
}

/// Rows `[tokens, heads, d]` of some tokens.
fn rows(x: &[f32], width: usize, tokens: &[usize]) -> Vec<f64> {
    tokens.iter().flat_map(|&t| to_f64(&x[t * width..][..width])).collect()
}

/// `op` is plain attention inside each of `parts`, which hold every token of the map once.
fn attends_within<const D: usize, const R: usize, const L: usize>(
    device: &Device,
    op: NeighborhoodAttention<D>,
    s: NeighborhoodShape<D>,
    parts: &[Vec<usize>],
) {
    let problem: Problem<D, R, L> = Problem::new(s, op);
    let x = problem.data(&mut Rng(41));
    let (got, got_lse) = problem.outputs(&device.ctx, &x);
    let [h, hk, d, dv] = [s.heads, s.heads_kv, s.head_dim, s.head_dim_v].map(|n| n as usize);
    assert_eq!(parts.iter().map(Vec::len).sum::<usize>() as u64, s.tokens());
    let (mut seen, mut seen_lse, mut all, mut all_lse) = (vec![], vec![], vec![], vec![]);
    for part in parts {
        let n = part.len() as u32;
        let plain = AttentionShape {
            batch: 1,
            seq_q: n,
            seq_k: n,
            heads: s.heads,
            heads_kv: s.heads_kv,
            head_dim: s.head_dim,
            head_dim_v: s.head_dim_v,
        };
        let (q, k, v) =
            (rows(&x.q, h * d, part), rows(&x.k, hk * d, part), rows(&x.v, hk * dv, part));
        let inputs = AttentionInputs { q: &q, k: &k, v: &v, ..Default::default() };
        let (want, want_lse) = reference::attention(&plain, &Attention::default(), &inputs);
        all.extend(want);
        seen.extend(part.iter().flat_map(|&t| got[t * h * dv..][..h * dv].iter().copied()));
        // `[heads, tokens]` to the map's `[tokens, heads]`
        for (i, &token) in part.iter().enumerate() {
            for head in 0..h {
                all_lse.push(want_lse[head * part.len() + i]);
                seen_lse.push(got_lse[token * h + head]);
            }
        }
    }
    let (o, lse) = (rel_rms(&seen, &all), rel_rms(&seen_lse, &all_lse));
    // of plain f32 loops: 1e-7
    assert!(o < 5e-7 && lse < 5e-7, "{}: {op:?} {s:?}: {o:.1e} {lse:.1e}", device.name);
}

/// Tokens of a map of `rows` x `columns` by what `part` says of their place.
fn parts_of(rows: usize, columns: usize, part: impl Fn(usize, usize) -> usize) -> Vec<Vec<usize>> {
    let mut parts = vec![Vec::new(); rows * columns];
    for t in 0..rows * columns {
        parts[part(t / columns, t % columns)].push(t);
    }
    parts.retain(|p| !p.is_empty());
    parts
}

#[test]
fn blocks_grids_axes_and_whole_maps_are_plain_attention() {
    for device in devices() {
        let s = shape([8, 12], [2, 1], [8, 4]);
        for algorithm in BOTH {
            let with = |op: NeighborhoodAttention<2>| NeighborhoodAttention { algorithm, ..op };
            let block = NeighborhoodAttention::block([8, 12], [4, 3]).unwrap();
            let parts = parts_of(8, 12, |r, c| r / 4 * 4 + c / 3);
            attends_within::<2, 5, 4>(device, with(block), s, &parts);
            let grid = NeighborhoodAttention::grid([8, 12], [4, 3]).unwrap();
            let parts = parts_of(8, 12, |r, c| r % 2 * 4 + c % 4);
            attends_within::<2, 5, 4>(device, with(grid), s, &parts);
            // axial attention
            let parts = parts_of(8, 12, |r, _| r);
            attends_within::<2, 5, 4>(device, with(NeighborhoodAttention::new([1, 12])), s, &parts);
            let parts = parts_of(8, 12, |_, c| c);
            attends_within::<2, 5, 4>(device, with(NeighborhoodAttention::new([8, 1])), s, &parts);
            // every window is the whole map
            let parts = parts_of(8, 12, |_, _| 0);
            attends_within::<2, 5, 4>(device, with(NeighborhoodAttention::new([8, 12])), s, &parts);
        }
        forget(device);
    }
}

#[test]
fn a_window_as_large_as_the_map_runs_plain_attention() {
    for device in devices() {
        let op = NeighborhoodAttention::new([4, 5, 3]);
        let s = shape([4, 5, 3], [2, 2], [8, 8]);
        let plan = op.plan(&device.ctx, s).unwrap();
        assert!(plan.is_full() && plan.label().starts_with("attention/"), "{}", plan.label());
        let problem: Problem<3, 6, 5> = Problem::new(s, op);
        let x = problem.data(&mut Rng(51));
        let dims = problem.layouts[0].shape;
        let [q, k, v] = [&x.q, &x.k, &x.v].map(|x| Tensor::upload(&device.ctx, dims, x).unwrap());
        let o = Guarded::new(&device.ctx, problem.layouts[3], DType::F32);
        let args = NeighborhoodArgs::new(q.view(), k.view(), v.view(), o.view());
        run(&device.ctx, |encoder| plan.encode(&device.ctx, encoder, &args)).unwrap();
        let error = rel_rms(&o.read(&device.ctx), &problem.want(&x).0);
        assert!(error < 5e-7, "{}: {error:.1e}", device.name);
        // with an LSE in the map's own order, and with a bias, the fused kernel does it
        problem.check(device, 52);
        let biased = NeighborhoodAttention { bias: RelativeBias::Table, ..op };
        assert!(!biased.plan(&device.ctx, s).unwrap().is_full());
    }
}

#[test]
fn halos_borders_and_biases() {
    for (d, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 7);
        for border in [Border::Shift, Border::Masked, Border::Zeros] {
            for bias in [
                RelativeBias::None,
                RelativeBias::Table,
                RelativeBias::Factorised { scaled: false },
                RelativeBias::Factorised { scaled: true },
            ] {
                for algorithm in BOTH {
                    let op = NeighborhoodAttention::halo([6, 8], [3, 2], [1, 2], border).unwrap();
                    let op = NeighborhoodAttention { bias, algorithm, ..op };
                    let s = shape([6, 8], [2, 2], [4, 4]);
                    if deal.takes() {
                        Problem::<2, 5, 4>::new(s, op).check(device, 61);
                    }
                }
            }
            forget(device);
        }
        // one axis and three, where fewer tables are looked up
        for algorithm in BOTH {
            let bias = RelativeBias::Factorised { scaled: false };
            let op = NeighborhoodAttention { bias, algorithm, ..NeighborhoodAttention::new([3]) };
            Problem::<1, 4, 3>::new(shape([9], [1, 1], [4, 4]), op).check(device, 62);
            let op =
                NeighborhoodAttention { bias, algorithm, ..NeighborhoodAttention::new([3, 1, 2]) };
            Problem::<3, 6, 5>::new(shape([4, 3, 2], [1, 1], [4, 4]), op).check(device, 63);
        }
        forget(device);
    }
}

/// Windows shrink to the most keys that every dilation group has, and to no fewer.
#[test]
fn windows_that_fit() {
    for n in 1..=12u32 {
        for (k, d) in (1..=9u32).flat_map(|k| (1..=14u32).map(move |d| (k, d))) {
            for (border, causal) in
                [(Border::Shift, false), (Border::Masked, false), (Border::Masked, true)]
            {
                let given = NeighborhoodAttention {
                    stride: [k.div_ceil(2)],
                    dilation: [d],
                    is_causal: [causal],
                    border,
                    shrink_to_fit: true,
                    ..NeighborhoodAttention::new([k])
                };
                let s = shape([n], [1, 1], [8, 8]);
                let runs = given.fitted([n]);
                let ([kernel], [stride], [dilation]) =
                    (runs.kernel_size, runs.stride, runs.dilation);
                assert!(!runs.shrink_to_fit && runs.check(&s).is_ok() && given.check(&s).is_ok());
                let off = NeighborhoodAttention { shrink_to_fit: false, ..given };
                assert_eq!(off.fitted([n]), off);
                if off.check(&s).is_ok() {
                    assert_eq!(runs, off);
                    continue;
                }
                assert_eq!(dilation, d.min(n), "{given:?} {n}");
                if border == Border::Shift || causal {
                    assert!(kernel * dilation <= n, "{given:?} {n}");
                    assert!(kernel == k || (kernel + 1) * dilation > n, "{given:?} {n}");
                } else {
                    assert_eq!(kernel, k);
                }
                assert_eq!(stride, k.div_ceil(2).min(kernel));
            }
        }
    }
}

/// A window too large for the map gives what the largest one that fits gives, with the middle of its
/// tables; by the options that say so, which share nothing with the reference's shrinking.
#[test]
fn windows_shrink_to_fit() {
    for (d, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 5);
        for (i, bias) in
            [RelativeBias::None, RelativeBias::Table, RelativeBias::Factorised { scaled: true }]
                .into_iter()
                .enumerate()
        {
            for (given, spatial, fits) in [
                // [kernel size, stride, dilation]
                ([[7, 7], [1, 1], [1, 4]], [5, 14], [[5, 3], [1, 1], [1, 4]]),
                ([[7, 5], [7, 3], [3, 2]], [7, 12], [[2, 5], [2, 3], [3, 2]]),
                ([[3, 6], [2, 6], [9, 1]], [4, 4], [[1, 4], [1, 4], [4, 1]]),
            ] {
                for algorithm in BOTH {
                    if !deal.takes() {
                        continue;
                    }
                    let op =
                        |[kernel_size, stride, dilation]: [[u32; 2]; 3]| NeighborhoodAttention {
                            stride,
                            dilation,
                            is_causal: [i == 1, false],
                            bias,
                            algorithm,
                            ..NeighborhoodAttention::new(kernel_size)
                        };
                    let large = NeighborhoodAttention { shrink_to_fit: true, ..op(given) };
                    let small = op(fits);
                    let s = shape(spatial, [2, 1], [8, 4]);
                    assert!(op(given).plan(&device.ctx, s).is_err());
                    let problem: Problem<2, 5, 4> = Problem::new(s, large);
                    problem.check(device, 71);

                    let x = problem.data(&mut Rng(72));
                    // entries from -(kernel - 1) to kernel - 1 of the small window
                    let middle = |a: usize| {
                        let first = given[0][a] - fits[0][a];
                        first..first + 2 * fits[0][a] - 1
                    };
                    let [rows, columns] = given[0].map(|k| 2 * k - 1);
                    let bias: Vec<f32> = match bias {
                        RelativeBias::None => Vec::new(),
                        RelativeBias::Table => (0..2)
                            .flat_map(|h| middle(0).map(move |y| h * rows + y))
                            .flat_map(|row| middle(1).map(move |x| row * columns + x))
                            .map(|at| x.bias[at as usize])
                            .collect(),
                        RelativeBias::Factorised { .. } => middle(0)
                            .chain(middle(1).map(|row| rows + row))
                            .flat_map(|row| &x.bias[row as usize * 8..][..8])
                            .copied()
                            .collect(),
                    };
                    let cut = Data { bias, ..x.clone() };
                    let (want, want_lse) = Problem::<2, 5, 4>::new(s, small).want(&cut);
                    assert_eq!(problem.want(&x), (want.clone(), want_lse.clone()));
                    let (got, got_lse) = problem.outputs(&device.ctx, &x);
                    let what = format!("{}: {large:?} on {spatial:?}", device.name);
                    let error = rel_rms(&got, &want);
                    assert!(error < 2e-6, "{what}: {error:.1e}");
                    let error = rel_rms(&got_lse, &want_lse);
                    assert!(error < 2e-6, "{what}: LSE {error:.1e}");
                }
            }
            forget(device);
        }
        // a map no larger than the window is plain attention
        let op =
            NeighborhoodAttention { shrink_to_fit: true, ..NeighborhoodAttention::new([9; 2]) };
        let plan = op.plan(&device.ctx, shape([3, 4], [1, 1], [8, 8])).unwrap();
        assert!(plan.is_full(), "{}", plan.label());
    }
}

#[test]
fn no_maps_is_nothing_to_do() {
    for device in devices() {
        let op = NeighborhoodAttention::new([3]);
        let s = NeighborhoodShape { batch: 0, ..shape([9], [1, 1], [4, 4]) };
        let problem: Problem<1, 4, 3> = Problem::new(s, op);
        let none = Data {
            q: vec![],
            k: vec![],
            v: vec![],
            extra_k: vec![],
            extra_v: vec![],
            bias: vec![],
        };
        assert_eq!(problem.outputs(&device.ctx, &none), (vec![], vec![]));
    }
}

/// No device: the message of each mistake names the axis and what is legal there.
#[test]
fn mistakes_are_named() {
    let s = shape([8, 20], [4, 2], [8, 8]);
    let good = NeighborhoodAttention::new([3, 5]);
    let caps = Caps::minimum();
    assert!(good.design(&caps, s).is_ok());
    let table: Vec<(NeighborhoodAttention<2>, NeighborhoodShape<2>, [&str; 2])> = vec![
        (NeighborhoodAttention { kernel_size: [9, 5], ..good }, s, ["kernel_size[0]", "1..=8"]),
        // and how to have it otherwise
        (
            NeighborhoodAttention { kernel_size: [9, 5], ..good },
            s,
            ["shortest dilation group of 8 tokens at dilation 1", "(or shrink_to_fit), got 9"],
        ),
        (
            NeighborhoodAttention { dilation: [1, 21], ..good },
            s,
            ["dilation[1]", "the extent (or shrink_to_fit), got 21"],
        ),
        // which does not forgive what fits nowhere
        (
            NeighborhoodAttention { stride: [1, 6], shrink_to_fit: true, ..good },
            s,
            ["stride[1]", "1..=5"],
        ),
        (
            NeighborhoodAttention { dilation: [0, 1], shrink_to_fit: true, ..good },
            s,
            ["dilation[0]", "got 0"],
        ),
        (
            NeighborhoodAttention { kernel_size: [0, 5], shrink_to_fit: true, ..good },
            s,
            ["kernel_size[0]", "got 0"],
        ),
        (NeighborhoodAttention { kernel_size: [3, 0], ..good }, s, ["kernel_size[1]", "1..=20"]),
        (
            NeighborhoodAttention { kernel_size: [3, 7], dilation: [1, 3], ..good },
            s,
            ["kernel_size[1]", "1..=6"],
        ),
        (NeighborhoodAttention { stride: [1, 6], ..good }, s, ["stride[1]", "1..=5"]),
        (NeighborhoodAttention { stride: [0, 1], ..good }, s, ["stride[0]", "1..=3"]),
        (NeighborhoodAttention { dilation: [0, 1], ..good }, s, ["dilation[0]", "1..=8"]),
        (NeighborhoodAttention { dilation: [1, 21], ..good }, s, ["dilation[1]", "1..=20"]),
        (
            NeighborhoodAttention { is_causal: [false, true], border: Border::Zeros, ..good },
            s,
            ["is_causal[1]", "Border::Zeros"],
        ),
        (
            NeighborhoodAttention {
                kernel_size: [3, 21],
                border: Border::Masked,
                is_causal: [false, true],
                ..good
            },
            s,
            ["kernel_size[1]", "1..=20"],
        ),
        (NeighborhoodAttention { scale: Some(f32::NAN), ..good }, s, ["scale", "finite"]),
        (good, NeighborhoodShape { spatial: [0, 20], ..s }, ["spatial[0]", "at least 1"]),
        (good, NeighborhoodShape { heads: 3, ..s }, ["heads", "multiple of heads_kv = 2"]),
        (good, NeighborhoodShape { heads_kv: 0, ..s }, ["heads", "heads_kv = 0"]),
        (good, NeighborhoodShape { head_dim: 257, ..s }, ["head_dim", "1..=256"]),
        (good, NeighborhoodShape { head_dim_v: 0, ..s }, ["head_dim_v", "1..=256"]),
        (
            good,
            NeighborhoodShape { batch: u32::MAX, ..s },
            ["elements in one tensor", "2147483647"],
        ),
        (
            NeighborhoodAttention {
                tiles: Some(NeighborhoodTiles {
                    axis: 2,
                    tile: [8, 1],
                    slots: 1,
                    block_k: 4,
                    lanes: 8,
                }),
                ..good
            },
            s,
            ["tiles", "axis 2 of 2"],
        ),
        (
            NeighborhoodAttention {
                tiles: Some(NeighborhoodTiles {
                    axis: 0,
                    tile: [8, 3],
                    slots: 1,
                    block_k: 4,
                    lanes: 8,
                }),
                ..good
            },
            s,
            ["tiles", "3 queries across the walk axis"],
        ),
        (
            NeighborhoodAttention {
                tiles: Some(NeighborhoodTiles {
                    axis: 0,
                    tile: [8, 1],
                    slots: 999,
                    block_k: 99,
                    lanes: 8,
                }),
                ..good
            },
            s,
            ["tiles", "slots * block_k at most"],
        ),
    ];
    for (op, s, parts) in table {
        let error = op.design(&caps, s).expect_err(&format!("{op:?} {s:?}")).to_string();
        assert!(error.starts_with("neighborhood attention"), "{error}");
        for part in parts {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }
    // what one axis lacks another may have: the whole window of a causal axis
    let whole = NeighborhoodAttention { kernel_size: [8, 20], is_causal: [true, false], ..good };
    assert!(whole.design(&caps, s).is_ok());
    // a driver that ends long loops in silence
    let short = Caps { loop_trips: 60_000, ..caps };
    let long = NeighborhoodShape { spatial: [70_000], ..shape([1], [1, 1], [8, 8]) };
    let naive = Algorithm::Naive;
    let error = NeighborhoodAttention { algorithm: naive, ..NeighborhoodAttention::new([69_999]) }
        .design(&short, long)
        .unwrap_err();
    assert!(matches!(error, Error::Limit { need: 69_999, limit: 60_000, .. }), "{error}");

    for (made, part) in [
        (NeighborhoodAttention::block([8, 12], [3, 4]), "divisor of the extent 8 on axis 0, got 3"),
        (NeighborhoodAttention::grid([8, 12], [4, 5]), "divisor of the extent 12 on axis 1, got 5"),
        (NeighborhoodAttention::halo([8, 12], [4, 0], [1, 1], Border::Zeros), "on axis 1, got 0"),
    ] {
        let error = made.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// Views that do not fit are refused before anything is recorded.
#[test]
fn views_that_do_not_fit_are_refused() {
    let Some(device) = devices().first() else { return };
    let ctx = &device.ctx;
    let s = NeighborhoodShape { extra_tokens: 2, ..shape([5, 6], [2, 1], [8, 4]) };
    let op =
        NeighborhoodAttention { bias: RelativeBias::Table, ..NeighborhoodAttention::new([3, 3]) };
    let plan = op.plan(ctx, s).unwrap();
    let tensor = |dims: [u32; 5]| Tensor::<5>::zeros(ctx, dims, DType::F32).unwrap();
    let (q, k) = (tensor([1, 5, 6, 2, 8]), tensor([1, 5, 6, 1, 8]));
    let (v, o) = (tensor([1, 5, 6, 1, 4]), tensor([1, 5, 6, 2, 4]));
    let extra_k = Tensor::zeros(ctx, [1, 2, 1, 8], DType::F32).unwrap();
    let extra_v = Tensor::zeros(ctx, [1, 2, 1, 4], DType::F32).unwrap();
    let bias = Tensor::zeros(ctx, [2, 25], DType::F32).unwrap();
    let lse = Tensor::<4>::zeros(ctx, [1, 5, 6, 2], DType::F32).unwrap();
    let half = Tensor::<5>::zeros(ctx, [1, 5, 6, 2, 8], DType::F16).unwrap();
    let flat = Tensor::<4>::zeros(ctx, [1, 30, 2, 8], DType::F32).unwrap();
    let narrow = Tensor::zeros(ctx, [2, 24], DType::F32).unwrap();
    let good = NeighborhoodArgs {
        lse: Some(lse.view().into()),
        extra_k: Some(extra_k.view()),
        extra_v: Some(extra_v.view()),
        bias: Some(bias.view()),
        ..NeighborhoodArgs::new(q.view(), k.view(), v.view(), o.view())
    };
    let refused = |args: &NeighborhoodArgs<'_>, parts: [&str; 2]| {
        let mut encoder = ctx.device.create_command_encoder(&Default::default());
        let error = plan.encode(ctx, &mut encoder, args).expect_err(parts[0]).to_string();
        for part in parts {
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    };
    run(ctx, |encoder| plan.encode(ctx, encoder, &good)).unwrap();
    fn map(view: TensorView<'_, 5>) -> MapView<'_> {
        view.into()
    }
    refused(&NeighborhoodArgs { q: map(k.view()), ..good }, ["q", "[1, 5, 6, 2, 8]"]);
    refused(&NeighborhoodArgs { q: flat.view().into(), ..good }, ["q", "[1, 30, 2, 8]"]);
    refused(&NeighborhoodArgs { q: map(half.view()), ..good }, ["q", "f16"]);
    refused(&NeighborhoodArgs { v: map(q.view()), ..good }, ["v", "[1, 5, 6, 1, 4]"]);
    refused(&NeighborhoodArgs { lse: Some(map(o.view())), ..good }, ["lse", "[1, 5, 6, 2]"]);
    refused(&NeighborhoodArgs { extra_k: None, ..good }, ["extra_k", "none given"]);
    refused(&NeighborhoodArgs { bias: None, ..good }, ["bias", "none given"]);
    refused(&NeighborhoodArgs { bias: Some(narrow.view()), ..good }, ["bias", "[2, 25]"]);
    let over =
        q.view_as(Layout { shape: [1, 5, 6, 2, 4], strides: [480, 96, 16, 8, 1], offset: 0 });
    refused(&NeighborhoodArgs { o: map(over.unwrap()), ..good }, ["o", "q"]);
    let needs = NeighborhoodAttention {
        bias: RelativeBias::Factorised { scaled: true },
        ..NeighborhoodAttention::new([3, 3])
    };
    let s = NeighborhoodShape { extra_tokens: 0, ..s };
    let plan = needs.plan(ctx, s).unwrap();
    let factors = Tensor::zeros(ctx, [10, 8], DType::F32).unwrap();
    let small = Tensor::<1>::zeros(ctx, [4], DType::F32).unwrap();
    let args = NeighborhoodArgs {
        bias: Some(factors.view()),
        ..NeighborhoodArgs::new(q.view(), k.view(), v.view(), o.view())
    };
    for (scratch, part) in [(None, "none given"), (Some(small.buffer()), "scratch")] {
        let mut encoder = ctx.device.create_command_encoder(&Default::default());
        let error = plan.encode(ctx, &mut encoder, &NeighborhoodArgs { scratch, ..args });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// All tiers and algorithms are the same function: bit for bit on the same device when repeated.
#[test]
fn results_repeat() {
    for device in devices() {
        let op = NeighborhoodAttention::new([5, 3]);
        let problem: Problem<2, 5, 4> = Problem::new(shape([9, 10], [2, 2], [8, 8]), op);
        let x = problem.data(&mut Rng(71));
        assert_eq!(problem.outputs(&device.ctx, &x), problem.outputs(&device.ctx, &x));
    }
}

/// A driver's loop bound (some end loops in silence at 65,535 trips) is not met by any plan.
#[test]
fn long_walks_stay_under_the_loop_bound() {
    for device in devices().iter().filter(|d| d.ctx.caps.tier == Tier::Subgroup) {
        let op = NeighborhoodAttention::new([9]);
        let long = device.ctx.caps.loop_trips < u64::MAX;
        let s = shape([if long { 300_000 } else { 3000 }], [1, 1], [4, 4]);
        let problem: Problem<1, 4, 3> = Problem::new(s, op);
        let x = problem.data(&mut Rng(81));
        let (fused, _) = problem.outputs(&device.ctx, &x);
        let naive = NeighborhoodAttention { algorithm: Algorithm::Naive, ..op };
        let (naive, _) = Problem::<1, 4, 3>::new(s, naive).outputs(&device.ctx, &x);
        let error = rel_rms(&fused, &to_f64(&naive));
        assert!(error < 5e-7, "{}: {error:.1e}", device.name);
    }
}

/// Keys and values of some tokens that are no numbers, or large ones: only queries that see them know.
#[test]
fn a_bad_key_reaches_the_queries_that_see_it() {
    let base = NeighborhoodAttention::new([3, 3]);
    let shape = NeighborhoodShape {
        spatial: [9, 12],
        heads: 2,
        heads_kv: 1,
        head_dim: 8,
        head_dim_v: 8,
        ..Default::default()
    };
    let fast = fast();
    for (case, (op, extra_tokens)) in [
        (base, 0),
        (base, 3),
        (NeighborhoodAttention { stride: [2, 2], ..base }, 0),
        // blocks of keys reach past windows of nine
        (NeighborhoodAttention { stride: [3, 3], ..base }, 0),
        (NeighborhoodAttention { stride: [3, 3], border: Border::Masked, ..base }, 0),
        (NeighborhoodAttention { dilation: [2, 3], ..base }, 0),
        (NeighborhoodAttention { is_causal: [true, false], ..base }, 0),
        (NeighborhoodAttention { border: Border::Zeros, bias: RelativeBias::Table, ..base }, 1),
        (
            NeighborhoodAttention {
                border: Border::Masked,
                bias: RelativeBias::Factorised { scaled: true },
                dtype: DType::F16,
                ..base
            },
            0,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        for (d, device) in devices().iter().enumerate() {
            let turn = fast.iter().position(|&f| f == d).map(|place| place % 2 == case % 2);
            if !slow() && !turn.unwrap_or(case == 0) {
                continue;
            }
            for algorithm in BOTH {
                let op = NeighborhoodAttention { algorithm, ..op };
                let shape = NeighborhoodShape { extra_tokens, ..shape };
                let problem: Problem<2, 5, 4> = Problem::new(shape, op);
                for bad in [f32::NAN, f32::INFINITY, 3e4] {
                    let mut x = problem.data(&mut Rng(71));
                    let garbage = if bad == 3e4 && op.dtype == DType::F32 { 1e30 } else { bad };
                    for token in [0, 41, 107] {
                        for (i, v) in x.v[token * 8..][..8].iter_mut().enumerate() {
                            *v = if i % 2 == 0 { garbage } else { -garbage };
                        }
                        if bad != 3e4 {
                            x.k[token * 8..][..8].fill(bad);
                        }
                    }
                    let (want, want_lse) = problem.want(&x);
                    let (got, got_lse) = problem.outputs(&device.ctx, &x);
                    let message = format!("{}, {garbage}, {op:?}", device.name);
                    let (mut clean, mut clean_want) = (Vec::new(), Vec::new());
                    for (row, (want, got)) in want.chunks(8).zip(got.chunks(8)).enumerate() {
                        let seen = want.iter().any(|x| !x.is_finite() || x.abs() > 1e3);
                        if seen && bad != 3e4 {
                            assert!(got.iter().all(|x| !x.is_finite()), "{message}: {row} {got:?}");
                        }
                        if !seen {
                            let all = got.iter().all(|x| x.is_finite());
                            assert!(all, "{message}: row {row} {got:?}");
                            clean.extend(got);
                            clean_want.extend(want);
                            let error = f64::from(got_lse[row]) - want_lse[row];
                            assert!(error.abs() < 4e-6 * want_lse[row].abs().max(1.0), "{message}");
                        }
                    }
                    assert!(clean.len() > 100, "{message}");
                    let error = rel_rms(&clean, &clean_want);
                    let budget = 4.0 * op.dtype.unit_roundoff().max(1.2e-7);
                    assert!(error < budget, "{message}: {error:e}");
                }
            }
            forget(device);
        }
    }
}

/// Biases that f32 has no room beside for a score, values near its end under scores far from 0.
#[test]
fn biases_and_values_near_the_ends_of_f32() {
    let shape = NeighborhoodShape {
        spatial: [40],
        heads: 1,
        heads_kv: 1,
        head_dim: 4,
        head_dim_v: 4,
        ..Default::default()
    };
    for (d, device) in devices().iter().enumerate() {
        if !slow() && !fast().contains(&d) {
            continue;
        }
        for algorithm in BOTH {
            let op = NeighborhoodAttention {
                algorithm,
                bias: RelativeBias::Table,
                ..NeighborhoodAttention::new([5])
            };
            let problem: Problem<1, 4, 3> = Problem::new(shape, op);
            for (big, rest) in [(1e30, 0.0), (3e38, -3e38), (-1e30, -2e30), (0.0, f32::MIN)] {
                let mut x = problem.data(&mut Rng(72));
                x.q.fill(0.0);
                // every window has its own place among the keys before or after
                x.bias = vec![rest; 9];
                x.bias[4] = big;
                let (want, _) = problem.want(&x);
                let (got, _) = problem.outputs(&device.ctx, &x);
                let error = rel_rms(&got, &want);
                assert!(error < 1e-6, "{}, {algorithm:?}, {big:e}: {error:e}", device.name);
            }
            for (score, size) in [(9.0, 1e34), (0.0, 1e37), (9.0, 1e37), (-9.0, 1e-24)] {
                let mut x = problem.data(&mut Rng(73));
                x.bias.fill(score);
                x.v.iter_mut().for_each(|v| *v *= size);
                let (want, _) = problem.want(&x);
                let (got, _) = problem.outputs(&device.ctx, &x);
                let error = rel_rms(&got, &want);
                assert!(error < 2e-6, "{}, {algorithm:?}, {size:e}: {error:e}", device.name);
            }
        }
        forget(device);
    }
}
