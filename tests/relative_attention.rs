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
    let given = RelativeAttention::default();
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
        for (method, binding_size) in [
            (RelativeMethod::Transform, 3 * 12 * 4 * 42 + 3 * 2 * 12 * 20 + 5000),
            (RelativeMethod::Exact, 3 * (2 * 12 * 20 + 800)),
        ] {
            let options = RelativeAttention { method, ..Default::default() };
            let problem = Problem::new(options, shape(7, 20, 1, 3, 3), 1.0);
            let small = device.ctx.with_caps(Caps { binding_size, ..device.ctx.caps.clone() });
            let whole = problem.options.plan(&device.ctx, problem.shape).unwrap().scratch_bytes();
            let parts = problem.options.plan(&small, problem.shape).unwrap().scratch_bytes();
            assert!(parts < whole * 3 / 4, "{parts} {whole}");
            let want = problem.expected();
            let budget = 2.0 * rel_rms(&problem.plain(), &want);
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

#[test]
fn transforms_keep_to_their_bound() {
    let Some(device) = devices().first() else { return };
    for causal in [false, true] {
        for (seq, nats) in [(20, 0), (200, 2), (1000, 4)] {
            let method = RelativeMethod::Transform;
            let options = RelativeAttention { causal, method, ..Default::default() };
            let mut problem = Problem::new(options, shape(1, seq, 1, 2, 3), nats as f32 / 2.0);
            problem.k.fill(1.0);
            let (got, want) = (problem.run(&device.ctx, false), problem.expected());
            let worst = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs());
            let (worst, most) = (worst.fold(0.0, f64::max), transform_error(seq, causal, nats));
            assert!(worst <= most + 2e-7, "{causal} {seq} {nats}: {worst:.1e}, {most:.1e}");
        }
    }
}

#[test]
fn the_form_follows_the_callers_word() {
    let Some(device) = devices().first() else { return };
    let by = |causal, method, seq| {
        let options = RelativeAttention { causal, method, ..Default::default() };
        options.plan(&device.ctx, shape(1, seq, 1, 4, 4)).unwrap().by_transforms()
    };
    assert!(!by(false, RelativeMethod::Exact, 5000));
    assert!(by(false, RelativeMethod::Transform, 10));
    assert!(!by(false, RelativeMethod::Alike(1), 10));
    assert!(by(false, RelativeMethod::Alike(1), 5000));
    // e^10 times what a transform loses is too much
    assert!(!by(false, RelativeMethod::Alike(10), 5000));
    // the first row sums one term, the last thousands
    assert!(!by(true, RelativeMethod::Alike(1), 5000));
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
