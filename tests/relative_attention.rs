//! Kernelised attention with relative positions on every adapter and tier, against the quadratic
//! sum in f64.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "sizes in tests are small"
)]

mod common;

use common::{Deal, Guarded, Rng, devices, rel_rms, rounded, run, to_f64, upload_as};
use rustfft::{FftPlanner, num_complex::Complex};
use tilewise::{Caps, Context, DType, Error, Layout, Tensor, linear_attention::*, reference};

struct Problem {
    options: RelativeAttention,
    shape: RelativeAttentionShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    b: Vec<f32>,
    w: Vec<f32>,
}

impl Problem {
    fn new(options: RelativeAttention, shape: RelativeAttentionShape, spread: f32) -> Self {
        let mut rng = Rng(u64::from(shape.seq));
        let rows = shape.batch * shape.seq * shape.heads;
        let positive = options.features == RelativeFeatures::Given;
        let mut rows_of = |n: u32| {
            let mut x = rng.vec((rows * n) as usize);
            if positive && n == shape.key_dim {
                x.iter_mut().for_each(|x| *x = x.abs() + 0.01);
            }
            rounded(&x, options.dtype)
        };
        let (q, k) = (rows_of(shape.key_dim), rows_of(shape.key_dim));
        let mut rng = Rng(1);
        let v = rounded(&rng.vec((rows * shape.value_dim) as usize), options.dtype);
        let mut b = rng.vec((shape.heads * (2 * shape.seq - 1)) as usize);
        b.iter_mut().for_each(|b| *b *= spread);
        let features = match options.features {
            RelativeFeatures::Given => 0,
            RelativeFeatures::Random(n) => n,
        };
        let w = rng.vec((shape.heads * features * shape.key_dim) as usize);
        Self { options, shape, q, k, v, b, w }
    }

    /// `[B, N, H, n]` as `[B, H, N, n]`.
    fn heads_first(&self, x: &[f32], n: u32) -> Vec<f64> {
        let s = self.shape;
        let at = |b, h, t, c| ((b * s.seq + t) * s.heads + h) * n + c;
        let mut out = Vec::new();
        for b in 0..s.batch {
            for h in 0..s.heads {
                for t in 0..s.seq {
                    out.extend((0..n).map(|c| f64::from(x[at(b, h, t, c) as usize])));
                }
            }
        }
        out
    }

    /// By the definition, `[B, H, N, V]`.
    fn expected(&self) -> Vec<f64> {
        let s = self.shape;
        let [rows, heads, n, dim, values] =
            [s.batch * s.heads, s.heads, s.seq, s.key_dim, s.value_dim].map(|n| n as usize);
        let features = |x: &[f32]| {
            let x = self.heads_first(x, s.key_dim);
            match self.options.features {
                RelativeFeatures::Given => (x, dim),
                RelativeFeatures::Random(m) => {
                    let m = m as usize;
                    let w = to_f64(&self.w);
                    (reference::positive_features([rows, heads, n, m, dim], &x, &w), m)
                }
            }
        };
        let ((q, m), (k, _)) = (features(&self.q), features(&self.k));
        let v = self.heads_first(&self.v, s.value_dim);
        let shape = [rows, heads, n, m, values];
        reference::relative_attention(shape, self.options.causal, &q, &k, &v, &to_f64(&self.b))
    }

    /// The same way in plain f32, `[B, H, N, V]`: its error sets the budget.
    fn plain(&self) -> Vec<f32> {
        let s = self.shape;
        let transforms = self.options.method == RelativeMethod::Transform;
        let [heads, n, dim, values] = [s.heads, s.seq, s.key_dim, s.value_dim].map(|n| n as usize);
        let narrow = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
        let [q, k] = [&self.q, &self.k].map(|x| narrow(self.heads_first(x, s.key_dim)));
        let v = narrow(self.heads_first(&self.v, s.value_dim));
        let features = |x: &[f32], head: usize| -> Vec<f32> {
            let RelativeFeatures::Random(m) = self.options.features else { return x.to_vec() };
            let length = x.iter().map(|x| x * x).sum::<f32>().sqrt();
            let w = &self.w[head * m as usize * dim..][..m as usize * dim];
            let dot = |w: &[f32]| -> f32 { w.iter().zip(x).map(|(w, x)| w * x).sum() };
            w.chunks(dim).map(|w| (dot(w) / length).exp()).collect()
        };
        let length = 2 * n;
        let mut planner = FftPlanner::<f32>::new();
        let (forward, inverse) =
            (planner.plan_fft_forward(length), planner.plan_fft_inverse(length));
        let spectrum = |x: &dyn Fn(usize) -> f32| {
            let mut x: Vec<Complex<f32>> = (0..length).map(|t| Complex::new(x(t), 0.0)).collect();
            forward.process(&mut x);
            x
        };
        let mut out = Vec::new();
        for row in 0..(s.batch * s.heads) as usize {
            let head = row % heads;
            let at = |x: &[f32], t: usize| features(&x[(row * n + t) * dim..][..dim], head);
            let (q, k): (Vec<_>, Vec<_>) = (0..n).map(|t| (at(&q, t), at(&k, t))).unzip();
            let b = &self.b[head * (2 * n - 1)..][..2 * n - 1];
            if !transforms {
                for (i, q) in q.iter().enumerate() {
                    let seen = 0..if self.options.causal { i + 1 } else { n };
                    let b = |j: usize| b[j + n - 1 - i];
                    let top = seen.clone().map(b).fold(f32::MIN, f32::max);
                    let mut sums = vec![0f32; values + 1];
                    for j in seen {
                        let dot: f32 = q.iter().zip(&k[j]).map(|(q, k)| q * k).sum();
                        let weight = dot * (b(j) - top).exp();
                        let v = &v[(row * n + j) * values..][..values];
                        sums.iter_mut().zip(v).for_each(|(s, v)| *s += weight * v);
                        sums[values] += weight;
                    }
                    out.extend(sums[..values].iter().map(|x| x / sums[values]));
                }
                continue;
            }
            let top = b.iter().copied().fold(f32::MIN, f32::max);
            let circulant = spectrum(&|t| match t {
                t if t < n => (b[n - 1 - t] - top).exp(),
                t if t > n && !self.options.causal => (b[3 * n - 1 - t] - top).exp(),
                _ => 0.0,
            });
            let mut sums = vec![0f32; n * (values + 1)];
            for m in 0..q[0].len() {
                for e in 0..=values {
                    let mut y = spectrum(&|t| match t {
                        t if t >= n => 0.0,
                        t if e == values => k[t][m],
                        t => k[t][m] * v[(row * n + t) * values + e],
                    });
                    y.iter_mut().zip(&circulant).for_each(|(y, c)| *y *= c);
                    inverse.process(&mut y);
                    for t in 0..n {
                        sums[t * (values + 1) + e] += q[t][m] * y[t].re / length as f32;
                    }
                }
            }
            for sums in sums.chunks(values + 1) {
                out.extend(sums[..values].iter().map(|x| x / sums[values]));
            }
        }
        rounded(&out, self.options.dtype)
    }

    /// On the device, `[B, H, N, V]`; heads-last or heads-first in memory.
    fn run(&self, ctx: &Context, heads_first: bool) -> Vec<f32> {
        let s = self.shape;
        let layout = |n: u32| {
            if heads_first {
                Layout::contiguous([s.batch, s.heads, s.seq, n]).permuted([0, 2, 1, 3])
            } else {
                Layout::contiguous([s.batch, s.seq, s.heads, n])
            }
        };
        let dtype = self.options.dtype;
        let upload = |x: &[f32], n: u32| upload_as(ctx, layout(n), x, dtype).unwrap();
        let (q, k) = (upload(&self.q, s.key_dim), upload(&self.k, s.key_dim));
        let v = upload(&self.v, s.value_dim);
        let b = Tensor::upload(ctx, [s.heads, 2 * s.seq - 1], &self.b).unwrap();
        let w = match self.options.features {
            RelativeFeatures::Given => None,
            RelativeFeatures::Random(n) => {
                Some(Tensor::upload(ctx, [s.heads, n, s.key_dim], &self.w).unwrap())
            }
        };
        let o = Guarded::new(ctx, layout(s.value_dim), dtype);
        let plan = self.options.plan(ctx, s).unwrap();
        // dirty scratch
        let words = plan.scratch_bytes().div_ceil(4) as u32;
        let scratch = Tensor::upload(ctx, [words], &vec![f32::NAN; words as usize]).unwrap();
        let args = RelativeAttentionArgs {
            q: q.view_as(layout(s.key_dim)).unwrap(),
            k: k.view_as(layout(s.key_dim)).unwrap(),
            v: v.view_as(layout(s.value_dim)).unwrap(),
            b: b.view(),
            w: w.as_ref().map(Tensor::view),
            o: o.view(),
            scratch: Some(scratch.buffer()),
        };
        run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
        let flat: Vec<f64> = self.heads_first(&o.read(ctx), s.value_dim);
        flat.into_iter().map(|x| x as f32).collect()
    }
}

const fn shape(
    batch: u32,
    seq: u32,
    heads: u32,
    key_dim: u32,
    value_dim: u32,
) -> RelativeAttentionShape {
    RelativeAttentionShape { batch, seq, heads, key_dim, value_dim }
}

#[test]
fn sums_are_those_of_the_definition() {
    let given = RelativeAttention { method: RelativeMethod::Exact, ..Default::default() };
    let random = |n| RelativeAttention { features: RelativeFeatures::Random(n), ..given };
    let fourier = |options| RelativeAttention { method: RelativeMethod::Transform, ..options };
    let causal = |options| RelativeAttention { causal: true, ..options };
    let cases = [
        (given, shape(1, 1, 1, 3, 2), 1.0),
        (given, shape(2, 7, 3, 4, 5), 2.0),
        (causal(given), shape(3, 50, 2, 5, 3), 1.0),
        (random(8), shape(2, 33, 2, 12, 4), 1.0),
        (causal(random(16)), shape(1, 100, 1, 16, 8), 1.0),
        (RelativeAttention { dtype: DType::F16, ..random(4) }, shape(1, 21, 2, 6, 3), 1.0),
        (RelativeAttention { dtype: DType::BF16, ..causal(given) }, shape(1, 40, 2, 3, 3), 1.0),
        (fourier(given), shape(1, 1, 1, 3, 2), 1.0),
        (fourier(given), shape(2, 7, 3, 4, 5), 2.0),
        (fourier(causal(given)), shape(3, 50, 2, 5, 3), 1.0),
        (fourier(random(8)), shape(2, 33, 2, 12, 4), 1.0),
        (fourier(causal(random(16))), shape(1, 100, 1, 16, 8), 1.0),
        (RelativeAttention { dtype: DType::F16, ..fourier(random(4)) }, shape(1, 21, 2, 6, 3), 1.0),
    ];
    for device in devices() {
        for (options, shape, spread) in cases {
            let problem = Problem::new(options, shape, spread);
            let want = problem.expected();
            assert!(want.iter().any(|x| x.abs() > 0.01), "a trivial result");
            let budget = 2.0 * rel_rms(&problem.plain(), &want).max(options.dtype.unit_roundoff());
            for heads_first in [false, true] {
                // rows in memory are the same numbers, whatever they are called
                let got = problem.run(&device.ctx, heads_first);
                let error = rel_rms(&got, &want);
                assert!(error <= budget, "{}: {options:?} {shape:?}: {error:.1e}", device.name);
            }
        }
    }
}

#[test]
fn large_positions_keep_their_digits_where_the_weight_is() {
    // e^90 is past f32: the largest is taken off first
    for device in devices() {
        let problem = Problem::new(RelativeAttention::default(), shape(1, 64, 1, 4, 4), 0.0);
        let shifted = Problem { b: problem.b.iter().map(|b| b + 90.0).collect(), ..problem };
        let want = shifted.expected();
        let error = rel_rms(&shifted.run(&device.ctx, false), &want);
        let budget = 2.0 * rel_rms(&shifted.plain(), &want).max(DType::F32.unit_roundoff());
        assert!(error <= budget, "{}: {error:.1e}", device.name);
    }
}

#[test]
fn many_rows_go_through_scratch_in_turn() {
    // little memory: a binding holds three of seven rows, so that the last chunk overlaps
    for device in devices() {
        for (method, seq, binding_size) in [
            (RelativeMethod::Transform, 20, 3 * 12 * 4 * 42 + 3 * 2 * 12 * 20 + 5000),
            (RelativeMethod::Exact, 20, 3 * (2 * 12 * 20 + 800)),
            (RelativeMethod::Auto, 200, 3 * 12 * 4 * 400 + 3 * 3 * 12 * 200 + 25_000),
        ] {
            let options = RelativeAttention { method, ..Default::default() };
            let problem = Problem::new(options, shape(7, seq, 1, 3, 3), 1.0);
            let small = device.ctx.with_caps(Caps { binding_size, ..device.ctx.caps.clone() });
            let whole = problem.options.plan(&device.ctx, problem.shape).unwrap().scratch_bytes();
            let parts = problem.options.plan(&small, problem.shape).unwrap().scratch_bytes();
            assert!(parts < whole * 3 / 4, "{parts} {whole}");
            let want = problem.expected();
            let target = if method == RelativeMethod::Auto { TARGET } else { 0.0 };
            let budget = 2.0 * rel_rms(&problem.plain(), &want) + target;
            let error = rel_rms(&problem.run(&small, false), &want);
            assert!(error <= budget, "{}: {method:?}: {error:.1e}", device.name);
        }
    }
}

#[test]
fn bad_input_is_refused() {
    let Some(device) = devices().first() else { return };
    let ctx = &device.ctx;
    let refused = |result: Result<RelativeAttentionPlan, Error>, parts: &[&str]| {
        let message = result.expect_err("a mistake").to_string();
        for part in parts {
            assert!(message.contains(part), "{part} in {message}");
        }
    };
    let given = RelativeAttention::default();
    refused(given.plan(ctx, shape(1, 0, 1, 2, 2)), &["seq", "at least 1", "0"]);
    refused(given.plan(ctx, shape(1, 2, 1, 2, 0)), &["value_dim", "at least 1", "0"]);
    refused(given.plan(ctx, shape(1, 1 << 30, 1, 2, 2)), &["seq", "1073741824"]);
    let fourier = RelativeAttention { method: RelativeMethod::Transform, ..given };
    refused(fourier.plan(ctx, shape(1, 1 << 20, 1, 512, 512)), &["scratch"]);
    let none = RelativeAttention { features: RelativeFeatures::Random(0), ..given };
    refused(none.plan(ctx, shape(1, 2, 1, 2, 2)), &["features", "at least 1"]);

    let s = shape(1, 4, 1, 2, 2);
    let plan = given.plan(ctx, s).unwrap();
    let rows = Tensor::<4>::zeros(ctx, [1, 4, 1, 2], DType::F32).unwrap();
    let o = Tensor::<4>::zeros(ctx, [1, 4, 1, 2], DType::F32).unwrap();
    let b = Tensor::<2>::zeros(ctx, [1, 7], DType::F32).unwrap();
    let short = Tensor::<2>::zeros(ctx, [1, 6], DType::F32).unwrap();
    let w = Tensor::<3>::zeros(ctx, [1, 2, 2], DType::F32).unwrap();
    let scratch = plan.scratch(ctx).unwrap().unwrap();
    assert!(scratch.size() >= plan.scratch_bytes());
    let good = RelativeAttentionArgs {
        q: rows.view(),
        k: rows.view(),
        v: rows.view(),
        b: b.view(),
        w: None,
        o: o.view(),
        scratch: Some(&scratch),
    };
    let refused =
        |plan: &RelativeAttentionPlan, args: RelativeAttentionArgs<'_>, parts: &[&str]| {
            let mut encoder = ctx.device.create_command_encoder(&Default::default());
            let message = plan.encode(ctx, &mut encoder, &args).expect_err("a mistake").to_string();
            for part in parts {
                assert!(message.contains(part), "{part} in {message}");
            }
        };
    refused(&plan, RelativeAttentionArgs { b: short.view(), ..good }, &["b", "[1, 7]", "[1, 6]"]);
    refused(&plan, RelativeAttentionArgs { w: Some(w.view()), ..good }, &["w", "given"]);
    refused(&plan, RelativeAttentionArgs { o: rows.view(), ..good }, &["o", "shares"]);
    let tiny = Tensor::<1>::zeros(ctx, [1], DType::F32).unwrap();
    let short = Some(tiny.buffer());
    refused(&plan, RelativeAttentionArgs { scratch: short, ..good }, &["scratch", "ends at byte"]);
    refused(&plan, RelativeAttentionArgs { scratch: None, ..good }, &["scratch", "none given"]);
    let shared = Some(b.buffer());
    refused(&plan, RelativeAttentionArgs { scratch: shared, ..good }, &["scratch"]);
    let random = RelativeAttention { features: RelativeFeatures::Random(3), ..given };
    refused(&random.plan(ctx, s).unwrap(), good, &["w", "3 directions"]);
    run(ctx, |encoder| plan.encode(ctx, encoder, &good)).unwrap();
}

/// Sizes around a tile, in all combinations of heads, masks and features that matter.
#[test]
fn every_row_is_right_under_strong_biases() {
    for (d, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 4);
        for (case, seq) in [1, 31, 32, 33, 67, 100].into_iter().enumerate() {
            for spread in [30.0, 80.0, 1000.0] {
                let causal = case % 2 == (spread > 50.0) as usize;
                let features = match seq {
                    33 | 100 => RelativeFeatures::Random(19),
                    _ => RelativeFeatures::Given,
                };
                let dtype = if seq == 67 { DType::F16 } else { DType::F32 };
                let options = RelativeAttention { causal, features, dtype, ..Default::default() };
                // two slabs of channels, two depths of features
                let problem = Problem::new(options, shape(2, seq, 2, 18, 35), spread);
                if !deal.takes() {
                    continue;
                }
                let (got, want) = (problem.run(&device.ctx, seq % 2 == 0), problem.expected());
                assert!(rel_rms(&got, &want).is_finite());
                // values are at most 1: so much of a row's denominator
                let worst = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs());
                let worst = worst.fold(0.0, f64::max);
                let budget = 2e-6 + options.dtype.unit_roundoff();
                assert!(worst <= budget, "{}: {seq} {spread}: {worst:.1e}", device.name);
            }
        }
    }
}

#[test]
fn what_is_hidden_has_no_effect() {
    for device in devices() {
        let causal = RelativeAttention { causal: true, ..Default::default() };
        let mut problem = Problem::new(causal, shape(1, 70, 2, 3, 4), 2.0);
        let clean = problem.run(&device.ctx, false);
        // the last token, which no other sees: 2 heads of 3 channels, and of 4
        let spoil = |x: &mut Vec<f32>, n: usize| {
            let from = x.len() - n;
            x[from..].fill(f32::NAN);
        };
        spoil(&mut problem.k, 6);
        spoil(&mut problem.v, 8);
        // keys after the query
        (0..2).for_each(|head| problem.b[head * 139 + 70..][..69].fill(f32::NAN));
        let spoilt = problem.run(&device.ctx, false);
        for (at, (a, b)) in clean.iter().zip(&spoilt).enumerate() {
            // [heads, positions, channels]
            let last = at / 4 % 70 == 69;
            assert!(last || a.to_bits() == b.to_bits(), "{}: {at}: {a} {b}", device.name);
        }

        // the first head sees only its neighbours, the second nothing
        let mut problem = Problem::new(RelativeAttention::default(), shape(1, 70, 2, 3, 4), 2.0);
        for (at, b) in problem.b.iter_mut().enumerate() {
            if at >= 139 || at.abs_diff(69) > 3 {
                *b = f32::NEG_INFINITY;
            }
        }
        let (got, want) = (problem.run(&device.ctx, false), problem.expected());
        assert!(got[280..].iter().all(|x| *x == 0.0), "{}", device.name);
        let error = rel_rms(&got, &want);
        assert!(error <= 4.0 * DType::F32.unit_roundoff(), "{}: {error:.1e}", device.name);
    }
}

/// What a row may be wrong by, of itself, with [`RelativeMethod::Auto`].
const TARGET: f64 = 1e-4;

/// The longest sequence that is made exactly, with few features and channels.
const CROSSOVER: u32 = 128;

/// Shapes of biases, by key minus query.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Biases {
    Random(f32),
    /// From one end to the other.
    Ramp(f32),
    /// One diagonal above the rest.
    Diagonal(f32),
    Alternating(f32),
}

const STRONG: [Biases; 5] = [
    Biases::Random(30.0),
    Biases::Ramp(30.0),
    Biases::Ramp(-30.0),
    Biases::Diagonal(60.0),
    Biases::Alternating(30.0),
];

impl Problem {
    fn biased(mut self, biases: Biases) -> Self {
        let n = self.shape.seq as usize;
        let mut rng = Rng(7);
        for (at, b) in self.b.iter_mut().enumerate() {
            let (at, head) = (at % (2 * n - 1), at / (2 * n - 1));
            *b = match biases {
                Biases::Random(size) => size * rng.unit(),
                Biases::Ramp(size) => size * (at as f32 / n as f32 - 1.0),
                Biases::Diagonal(size) if at == n - 1 - n / 3 => size,
                Biases::Diagonal(_) => 0.0,
                Biases::Alternating(size) if (at + head).is_multiple_of(2) => size,
                Biases::Alternating(size) => -size,
            };
        }
        self
    }

    fn by(&self, ctx: &Context, method: RelativeMethod) -> Vec<f32> {
        let options = RelativeAttention { method, ..self.options };
        let [q, k, v] = [&self.q, &self.k, &self.v].map(Clone::clone);
        let (b, w) = (self.b.clone(), self.w.clone());
        Self { options, shape: self.shape, q, k, v, b, w }.run(ctx, false)
    }
}

/// The largest error of a row over its length: of what is more than the rounding of sums and of the
/// output, whose values are within 1.
fn worst_row(got: &[f32], want: &[f64], values: usize, dtype: DType) -> f64 {
    let errors = got.chunks(values).zip(want.chunks(values)).map(|(got, want)| {
        let norm = want.iter().map(|x| x * x).sum::<f64>().sqrt();
        let error: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
        let rounding = 2e-6 + dtype.unit_roundoff() * norm;
        let error = (error.sqrt() - rounding).max(0.0) / norm.max(1e-300);
        // a NaN is no small error
        if got.iter().all(|x| x.is_finite()) { error } else { f64::INFINITY }
    });
    errors.fold(0.0, f64::max)
}

/// How many rows of `a` are, to the bit, those of `b`.
fn same_rows(a: &[f32], b: &[f32], values: usize) -> usize {
    let same =
        |(a, b): &(&[f32], &[f32])| a.iter().zip(*b).all(|(a, b)| a.to_bits() == b.to_bits());
    a.chunks(values).zip(b.chunks(values)).filter(same).count()
}

#[test]
fn rows_that_transforms_spoil_are_made_again() {
    let mut lengths = vec![1, CROSSOVER - 1, CROSSOVER, CROSSOVER + 1, 300, 2048];
    if common::slow() {
        lengths.push(4096);
    }
    for (d, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 12);
        for &seq in &lengths {
            for (at, biases) in STRONG.into_iter().enumerate() {
                for causal in [false, true] {
                    if !deal.takes() {
                        continue;
                    }
                    let features = match (at + usize::from(causal)) % 2 {
                        0 => RelativeFeatures::Given,
                        _ => RelativeFeatures::Random(4),
                    };
                    let dtype = if at % 3 == 1 { DType::F16 } else { DType::F32 };
                    let options =
                        RelativeAttention { causal, features, dtype, ..Default::default() };
                    let heads = if seq < 1000 { 2 } else { 1 };
                    let problem = Problem::new(options, shape(1, seq, heads, 3, 2), 0.0);
                    let problem = problem.biased(biases);
                    let what = format!("{}: {seq} {biases:?} {options:?}", device.name);
                    let (got, want) =
                        (problem.by(&device.ctx, RelativeMethod::Auto), problem.expected());
                    let worst = worst_row(&got, &want, 2, dtype);
                    assert!(worst <= TARGET, "{what}: {worst:.1e}");
                    // each row is of one form or the other
                    let exact = problem.by(&device.ctx, RelativeMethod::Exact);
                    if seq <= CROSSOVER {
                        assert_eq!(same_rows(&got, &exact, 2), got.len() / 2, "{what}");
                        continue;
                    }
                    let fourier = problem.by(&device.ctx, RelativeMethod::Transform);
                    let either = got.chunks(2).zip(exact.chunks(2)).zip(fourier.chunks(2));
                    let either = either.filter(|((got, exact), fourier)| {
                        same_rows(got, exact, 2) == 1 || same_rows(got, fourier, 2) == 1
                    });
                    assert_eq!(either.count(), got.len() / 2, "{what}");
                }
            }
        }
    }
}

#[test]
fn few_rows_are_made_again_without_need() {
    for device in devices() {
        for (causal, seq, values, dtype) in [
            (false, 300, 6, DType::F16),
            (false, 1500, 6, DType::F32),
            (true, 1500, 6, DType::F32),
            // here and there the numerators of both channels are small, and a row alone is made again
            (false, 1500, 2, DType::F32),
        ] {
            let options = RelativeAttention { causal, dtype, ..Default::default() };
            let mut problem = Problem::new(options, shape(1, seq, 1, 3, values), 1.0);
            if dtype == DType::F32 && !causal {
                // the squares are past f32
                problem.v.iter_mut().for_each(|v| *v *= 1e25);
            }
            let [auto, exact, fourier] =
                [RelativeMethod::Auto, RelativeMethod::Exact, RelativeMethod::Transform]
                    .map(|method| problem.by(&device.ctx, method));
            let (rows, width) = (seq as usize, values as usize);
            let (kept, made) = (same_rows(&auto, &fourier, width), same_rows(&auto, &exact, width));
            // the first rows of a causal mask have little to sum
            let least = match values {
                2 => rows - rows / 10,
                _ if causal => rows / 2,
                _ => rows - rows / 100,
            };
            assert!(values > 2 || kept < rows, "{}: no row is made again", device.name);
            assert!(kept >= least, "{}: {causal} {seq}: {kept}", device.name);
            // the two forms do not round alike
            assert!(dtype == DType::F16 || made < rows * 3 / 4, "{}: {made}", device.name);
        }
    }
}

#[test]
fn what_is_hidden_has_no_effect_by_transforms_either() {
    for device in devices() {
        let causal = RelativeAttention { causal: true, ..Default::default() };
        let mut problem = Problem::new(causal, shape(1, 300, 2, 3, 4), 2.0);
        let clean = problem.by(&device.ctx, RelativeMethod::Exact);
        let spoil = |x: &mut Vec<f32>, n: usize| {
            let from = x.len() - n;
            x[from..].fill(f32::NAN);
        };
        spoil(&mut problem.k, 6);
        spoil(&mut problem.v, 8);
        (0..2).for_each(|head| problem.b[head * 599 + 300..][..299].fill(f32::NAN));
        let spoilt = problem.by(&device.ctx, RelativeMethod::Auto);
        for (at, (a, b)) in clean.iter().zip(&spoilt).enumerate() {
            let last = at / 4 % 300 == 299;
            assert!(last || a.to_bits() == b.to_bits(), "{}: {at}: {a} {b}", device.name);
        }

        // the first head sees only its neighbours, the second nothing
        let mut problem = Problem::new(RelativeAttention::default(), shape(1, 300, 2, 3, 4), 2.0);
        for (at, b) in problem.b.iter_mut().enumerate() {
            if at >= 599 || at.abs_diff(299) > 3 {
                *b = f32::NEG_INFINITY;
            }
        }
        let got = problem.by(&device.ctx, RelativeMethod::Auto);
        let worst = worst_row(&got[..1200], &problem.expected()[..1200], 4, DType::F32);
        assert!(worst <= TARGET, "{}: {worst:.1e}", device.name);
        assert!(got[1200..].iter().all(|x| *x == 0.0), "{}", device.name);
    }
}

/// Squares of such values are past f32, or below it.
#[test]
fn values_may_be_large_or_small() {
    for device in devices() {
        for scale in [1e34, 1e-20, 1e-33] {
            for key in [1.0, 1e-18] {
                let options = RelativeAttention::default();
                let mut problem = Problem::new(options, shape(1, 300, 1, 2, 3), 3.0);
                problem.v.iter_mut().for_each(|v| *v *= scale);
                problem.k.iter_mut().for_each(|k| *k *= key);
                let (got, want) =
                    (problem.by(&device.ctx, RelativeMethod::Auto), problem.expected());
                let got: Vec<f32> = got.iter().map(|x| x / scale).collect();
                let want: Vec<f64> = want.iter().map(|x| x / f64::from(scale)).collect();
                let worst = worst_row(&got, &want, 3, DType::F32);
                // of values so small against the smallest number few digits are left
                assert!(worst <= TARGET, "{}: {scale} {key}: {worst:.1e}", device.name);
            }
        }
    }
}

/// A key after all queries but one spoils denominators alone, its value being 0, or numerators alone.
#[test]
fn denominators_and_numerators_are_judged_apart() {
    for device in devices() {
        for scale in [1.0, 1e-27] {
            for spoil in ["k", "v"] {
                let options = RelativeAttention { causal: true, ..Default::default() };
                let mut problem = Problem::new(options, shape(1, 400, 1, 1, 2), 1.0);
                problem.v.iter_mut().for_each(|v| *v = scale * (1.0 + 0.5 * *v));
                if spoil == "k" {
                    problem.k[399] = 3e8;
                    problem.v[798..].fill(0.0);
                } else {
                    problem.v[798..].fill(3e7 * scale);
                }
                let of = |method| {
                    let got = problem.by(&device.ctx, method);
                    let got: Vec<f32> = got[..798].iter().map(|x| x / scale).collect();
                    let want = problem.expected();
                    let want: Vec<f64> = want[..798].iter().map(|x| x / f64::from(scale)).collect();
                    worst_row(&got, &want, 2, DType::F32)
                };
                let (worst, fourier) = (of(RelativeMethod::Auto), of(RelativeMethod::Transform));
                assert!(worst <= TARGET, "{}: {scale} {spoil}: {worst:.1e}", device.name);
                assert!(fourier > 2.0 * TARGET, "{}: {spoil} spoils nothing", device.name);
            }
        }
    }
}

/// Of one sum by transforms, the error over `2^-24 sqrt(log2 length) |w| |x|`: at most half of what
/// rows are judged by.
#[test]
fn transforms_keep_to_their_bound() {
    let mut lengths = vec![20, 129, 600];
    if common::slow() {
        lengths.extend([2048, 4096, 10_000]);
    }
    let mut most = (0.0, String::new());
    for (d, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 20);
        for &seq in &lengths {
            let n = seq as usize;
            for biases in [
                Biases::Random(0.0),
                Biases::Random(1.0),
                Biases::Random(10.0),
                Biases::Ramp(3.0),
                Biases::Ramp(-8.0),
                Biases::Diagonal(8.0),
                Biases::Diagonal(-10.0),
                Biases::Alternating(4.0),
            ] {
                for (kind, causal) in (0..5).flat_map(|kind| [(kind, false), (kind, true)]) {
                    if !deal.takes() {
                        continue;
                    }
                    let method = RelativeMethod::Transform;
                    let options = RelativeAttention { causal, method, ..Default::default() };
                    let mut problem = Problem::new(options, shape(1, seq, 1, 1, 1), 0.0);
                    problem = problem.biased(biases);
                    problem.q.fill(1.0);
                    if kind > 0 {
                        problem.k.fill(1.0);
                    }
                    for (t, v) in problem.v.iter_mut().enumerate() {
                        *v = match kind {
                            0 | 1 => *v,
                            2 => 1.0 - 2.0 * (t % 2) as f32,
                            3 => f32::from(t == n / 2),
                            _ => 1.0,
                        };
                    }
                    let (got, want) = (problem.run(&device.ctx, false), problem.expected());
                    let seen = if causal { n } else { 2 * n - 1 };
                    let top = problem.b[..seen].iter().fold(f32::MIN, |a, b| a.max(*b));
                    let w = |s: usize| f64::from(problem.b[s] - top).exp();
                    let weights = (0..seen).map(|s| w(s).powi(2)).sum::<f64>().sqrt();
                    let k = |j: usize| f64::from(problem.k[j]);
                    let keys = (0..n).map(|j| k(j).powi(2)).sum::<f64>().sqrt();
                    let x = |j: usize| k(j) * f64::from(problem.v[j]);
                    let values = (0..n).map(|j| x(j).powi(2)).sum::<f64>().sqrt();
                    let unit = 2f64.powi(-24) * (2.0 * n as f64).log2().sqrt() * weights;
                    for i in 0..n {
                        let last = if causal { i + 1 } else { n };
                        let below: f64 = (0..last).map(|j| w(j + n - 1 - i) * k(j)).sum();
                        // else the quotient is no straight measure
                        if 2.0 * unit * keys > 0.01 * below {
                            continue;
                        }
                        let error = (f64::from(got[i]) - want[i]).abs();
                        let error = (error - 2f64.powi(-24) * want[i].abs()).max(0.0) * below;
                        let ratio = error / (unit * (values + want[i].abs() * keys));
                        if ratio.is_nan() || ratio > most.0 {
                            most = (ratio, format!("{seq} {biases:?} {kind} {causal} row {i}"));
                        }
                    }
                }
            }
        }
    }
    println!("largest error {:.3} of a unit: {}", most.0, most.1);
    assert!(most.0 <= 1.0, "{:.3} of a unit: {}", most.0, most.1);
    assert!(devices().is_empty() || most.0 > 0.01, "nothing was measured");
}

#[test]
fn the_form_follows_length_and_memory() {
    let Some(device) = devices().first() else { return };
    let by = |ctx: &Context, method, seq| {
        let options = RelativeAttention { method, ..Default::default() };
        options.plan(ctx, shape(1, seq, 1, 4, 4)).unwrap().by_transforms()
    };
    let ctx = &device.ctx;
    assert!(!by(ctx, RelativeMethod::Exact, 5000));
    assert!(by(ctx, RelativeMethod::Transform, 10));
    assert!(!by(ctx, RelativeMethod::Auto, CROSSOVER));
    assert!(by(ctx, RelativeMethod::Auto, CROSSOVER + 1));
    assert_eq!(RelativeMethod::default(), RelativeMethod::Auto);
    // no room for the columns
    let small = ctx.with_caps(Caps { binding_size: 400_000, ..ctx.caps.clone() });
    assert!(by(ctx, RelativeMethod::Auto, 5000) && !by(&small, RelativeMethod::Auto, 5000));
}

/// The slow mode's: every row is right over a sequence of thousands, as the tables of docs/PERFORMANCE.md
/// say, which it prints with times.
#[test]
fn tables() {
    if !common::slow() {
        return;
    }
    const METHODS: [RelativeMethod; 3] =
        [RelativeMethod::Transform, RelativeMethod::Auto, RelativeMethod::Exact];
    let Some(device) = devices().first() else { return };
    let ctx = &device.ctx;
    println!("{}", device.name);
    for seq in [100, 1024, 4096] {
        for causal in [false, true] {
            for biases in [1.0, 10.0, 30.0, 1000.0].map(Biases::Random) {
                let options = RelativeAttention { causal, ..Default::default() };
                let problem = Problem::new(options, shape(1, seq, 1, 4, 4), 0.0).biased(biases);
                let want = problem.expected();
                let all = METHODS.map(|method| problem.by(ctx, method));
                let largest = [0, 1, 2].map(|i| {
                    let rows = all[i].chunks(4).zip(want.chunks(4)).map(|(got, want)| {
                        let norm = want.iter().map(|x| x * x).sum::<f64>().sqrt();
                        let error = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2));
                        error.sum::<f64>().sqrt() / norm
                    });
                    rows.fold(0.0, |a: f64, b| if b <= a { a } else { b })
                });
                assert!(largest[1] <= 1e-4 && largest[2] <= 1e-4, "{seq} {biases:?}: {largest:?}");
                let errors = largest.map(|error| format!("{error:.0e}"));
                let again = seq as usize - same_rows(&all[0], &all[1], 4);
                println!(
                    "n {seq} causal {causal} {biases:?}: {}, again {again}",
                    errors.join(" / ")
                );
            }
        }
    }
    for (m, v) in [(8, 8), (32, 32)] {
        for seq in [128, 256, 512, 1024, 2048, 4096] {
            if m == 32 && seq > 2048 {
                continue;
            }
            for strong in [false, true] {
                let options = RelativeAttention::default();
                let problem = Problem::new(options, shape(1, seq, 1, m, v), 0.0);
                let problem = problem.biased(Biases::Random(if strong { 30.0 } else { 1.0 }));
                let times = METHODS.map(|method| {
                    let options = RelativeAttention { method, ..options };
                    let plan = options.plan(ctx, problem.shape).unwrap();
                    let [q, k, v, o] =
                        [(&problem.q, m), (&problem.k, m), (&problem.v, v), (&problem.v, v)]
                            .map(|(x, n)| Tensor::upload(ctx, [1, seq, 1, n], x).unwrap());
                    let b = Tensor::upload(ctx, [1, 2 * seq - 1], &problem.b).unwrap();
                    let scratch = plan.scratch(ctx).unwrap();
                    let args = RelativeAttentionArgs {
                        q: q.view(),
                        k: k.view(),
                        v: v.view(),
                        b: b.view(),
                        w: None,
                        o: o.view(),
                        scratch: scratch.as_ref(),
                    };
                    let once = || {
                        let start = std::time::Instant::now();
                        run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
                        start.elapsed().as_secs_f64() * 1e3
                    };
                    once();
                    let best = (0..3).map(|_| once()).fold(f64::INFINITY, f64::min);
                    format!("{best:.1}{}", if plan.by_transforms() { "" } else { " (exact)" })
                });
                println!("m {m} v {v} n {seq} strong {strong}: {}", times.join(" / "));
            }
        }
    }
}

/// Mesa's llvmpipe before release 25 ends loops after 65,535 trips, which a loop over the biases of a
/// sequence so long once made.
#[test]
fn a_million_tokens() {
    for device in devices().iter().filter(|d| d.ctx.caps.loop_trips < u64::MAX).take(1) {
        let (method, seq) = (RelativeMethod::Transform, 1_050_000);
        let options = RelativeAttention { method, ..Default::default() };
        let mut problem = Problem::new(options, shape(1, seq, 1, 1, 1), 0.5);
        problem.k.fill(1.0);
        problem.v.fill(0.5);
        let got = problem.run(&device.ctx, false);
        let worst = got.iter().map(|x| (x - 0.5).abs()).fold(0.0, |a: f32, b| a.max(b));
        assert!(got.iter().all(|x| x.is_finite()) && worst < 1e-5, "{}: {worst}", device.name);
    }
}
