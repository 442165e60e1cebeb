//! Attention on every adapter and tier, against the f64 reference.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod common;

use common::{
    Device, Guarded, Rng, devices, random_layout, rel_rms, rounded, run, to_f64, upload_as,
};
use tilewise::{
    Context, DType, Layout,
    attention::{
        Algorithm, Attention, AttentionArgs, AttentionShape, CausalAlignment, Mask, Tiles,
    },
    reference,
};

const BOTTOM_RIGHT: Mask = Mask::Causal(CausalAlignment::BottomRight);
const TOP_LEFT: Mask = Mask::Causal(CausalAlignment::TopLeft);

/// Attention as one would write it in a loop, in f32: its error against f64 sets the budget.
fn plain(s: &AttentionShape, mask: Mask, scale: f32, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let [t, n, h, hk] = [s.seq_q, s.seq_k, s.heads, s.heads_kv].map(|x| x as usize);
    let [d, dv] = [s.head_dim, s.head_dim_v].map(|x| x as usize);
    let mut o = vec![0f32; s.batch as usize * t * h * dv];
    for at in 0..s.batch as usize * t * h {
        let (b, row, head) = (at / (t * h), at / h % t, at % h);
        let limit = match mask {
            Mask::None => n as i64,
            Mask::Causal(a) => (row as i64 + a.diagonal(s.seq_q, s.seq_k) + 1).clamp(0, n as i64),
        };
        let key = |j: usize| (b * n + j) * hk + head / (h / hk);
        let scores: Vec<f32> = (0..usize::try_from(limit).unwrap())
            .map(|j| scale * (0..d).map(|c| q[at * d + c] * k[key(j) * d + c]).sum::<f32>())
            .collect();
        let top = scores.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = scores.iter().map(|x| (x - top).exp()).sum();
        for c in 0..dv {
            o[at * dv + c] = scores
                .iter()
                .enumerate()
                .map(|(j, x)| (x - top).exp() / sum * v[key(j) * dv + c])
                .sum();
        }
    }
    o
}

struct Problem {
    shape: AttentionShape,
    options: Attention,
    layouts: [Layout<4>; 4],
}

impl Problem {
    fn new(shape: AttentionShape, options: Attention) -> Self {
        let s = shape;
        let layouts = [
            [s.batch, s.seq_q, s.heads, s.head_dim],
            [s.batch, s.seq_k, s.heads_kv, s.head_dim],
            [s.batch, s.seq_k, s.heads_kv, s.head_dim_v],
            [s.batch, s.seq_q, s.heads, s.head_dim_v],
        ]
        .map(Layout::contiguous);
        Self { shape, options, layouts }
    }

    /// Errors of output and LSE, and the budget: twice the error of the plain loop.
    fn run(&self, ctx: &Context, rng: &mut Rng) -> Errors {
        let (s, dtype) = (self.shape, self.options.dtype);
        let size = |l: &Layout<4>| usize::try_from(l.elements().unwrap()).unwrap();
        let [q, k, v] = [0, 1, 2].map(|i| rounded(&rng.vec(size(&self.layouts[i])), dtype));
        let plan = self.options.plan(ctx, s).unwrap();
        let input = |i: usize, x: &[f32]| upload_as(ctx, self.layouts[i], x, dtype).unwrap();
        let (tq, tk, tv) = (input(0, &q), input(1, &k), input(2, &v));
        let o = Guarded::new(ctx, self.layouts[3], dtype);
        let lse = Guarded::new(ctx, Layout::contiguous([s.batch, s.heads, s.seq_q]), DType::F32);
        let scratch = ctx.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: plan.scratch_bytes().max(16),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let args = AttentionArgs {
            lse: Some(lse.view()),
            scratch: Some(&scratch),
            ..AttentionArgs::new(
                tq.view_as(self.layouts[0]).unwrap(),
                tk.view_as(self.layouts[1]).unwrap(),
                tv.view_as(self.layouts[2]).unwrap(),
                o.view(),
            )
        };
        run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();

        let scale = self.options.scale.unwrap_or((s.head_dim as f32).sqrt().recip());
        let (want, want_lse) = reference::attention(
            &s,
            self.options.mask,
            f64::from(scale),
            &to_f64(&q),
            &to_f64(&k),
            &to_f64(&v),
        );
        let simple = rounded(&plain(&s, self.options.mask, scale, &q, &k, &v), dtype);
        let (got, got_lse) = (o.read(ctx), lse.read(ctx));
        // rows that see nothing are compared exactly, and apart from the others
        let d_v = s.head_dim_v as usize;
        let (mut lse_seen, mut lse_want) = (Vec::new(), Vec::new());
        for (i, (&got_lse, &want_lse)) in got_lse.iter().zip(&want_lse).enumerate() {
            if want_lse.is_finite() {
                lse_seen.push(got_lse);
                lse_want.push(want_lse);
                continue;
            }
            assert_eq!(got_lse, f32::NEG_INFINITY, "LSE of a row that sees nothing");
            let (t, h) = (s.seq_q as usize, s.heads as usize);
            let (b, head, row) = (i / (h * t), i / t % h, i % t);
            let out = &got[((b * t + row) * h + head) * d_v..][..d_v];
            assert!(out.iter().all(|x| *x == 0.0), "output of a row that sees nothing: {out:?}");
        }
        Errors {
            o: rel_rms(&got, &want),
            // of a value near 0 no relative error can be asked: an LSE is a logarithm
            lse: lse_seen
                .iter()
                .zip(&lse_want)
                .map(|(g, w)| (f64::from(*g) - w).abs() / w.abs().max(1.0))
                .fold(0.0, f64::max),
            plain: rel_rms(&simple, &want),
        }
    }

    fn check(&self, device: &Device, rng: &mut Rng) {
        let e = self.run(&device.ctx, rng);
        // a plain loop on the host has an exact exp; on a device it may be off by 3 ulp (WGSL's
        // accuracy table), which shows where a row has one or two keys
        let budget = 2.0 * e.plain.max(2.0 * self.options.dtype.unit_roundoff());
        let what =
            || format!("{}: {:?} {:?} {:?}", device.name, self.shape, self.options, self.layouts);
        assert!(e.o <= budget, "{}\n output error {:.2e}, budget {budget:.2e}", what(), e.o);
        assert!(e.lse <= 4e-6, "{}\n LSE error {:.2e}", what(), e.lse);
    }
}

struct Errors {
    o: f64,
    lse: f64,
    plain: f64,
}

fn shape(
    batch: u32,
    [seq_q, seq_k]: [u32; 2],
    [heads, heads_kv]: [u32; 2],
    [d, dv]: [u32; 2],
) -> AttentionShape {
    AttentionShape { batch, seq_q, seq_k, heads, heads_kv, head_dim: d, head_dim_v: dv }
}

#[test]
fn comparator_rejects_wrong_answers() {
    let want = [1.0, 2.0, 3.0];
    assert_eq!(rel_rms(&[1.0, 2.0, 3.0], &want), 0.0);
    assert!(rel_rms(&[1.0, 2.0, 3.3], &want) > 0.05);
    // one lost row in a thousand, too small for an absolute tolerance
    let small = vec![1e-6; 1000];
    let mut lost = vec![1e-6f32; 1000];
    lost[999] = 0.0;
    assert!(rel_rms(&lost, &small) > 0.03);
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(std::panic::catch_unwind(|| rel_rms(&[1.0, 2.0, bad], &want)).is_err());
    }
    assert!(std::panic::catch_unwind(|| rel_rms(&[1.0, 2.0], &want)).is_err());
}

#[test]
fn sizes_around_the_tile() {
    for device in devices() {
        let mut rng = Rng(1);
        let plan = Attention::default()
            .plan(&device.ctx, AttentionShape::self_attention(1, 512, 1, 12))
            .unwrap();
        let tile = plan.tiles().workgroup * plan.tiles().queries;
        for n in [1, 2, tile - 1, tile, tile + 1, tile / 2, 2 * tile + 3] {
            for mask in [Mask::None, BOTTOM_RIGHT] {
                let options = Attention { mask, ..Default::default() };
                Problem::new(shape(1, [n, n], [2, 1], [12, 12]), options).check(device, &mut rng);
            }
        }
    }
}

#[test]
fn more_queries_than_keys_and_fewer() {
    for device in devices() {
        let mut rng = Rng(2);
        for [seq_q, seq_k] in [[37, 21], [21, 37], [1, 100], [100, 1], [5, 0]] {
            for mask in [Mask::None, BOTTOM_RIGHT, TOP_LEFT] {
                let options = Attention { mask, ..Default::default() };
                Problem::new(shape(2, [seq_q, seq_k], [2, 2], [16, 16]), options)
                    .check(device, &mut rng);
            }
        }
    }
}

#[test]
fn head_sizes() {
    for device in devices() {
        let mut rng = Rng(3);
        for dims in [
            [1, 1],
            [3, 5],
            [5, 3],
            [40, 40],
            [64, 32],
            [72, 80],
            [128, 128],
            [192, 128],
            [256, 256],
        ] {
            let options = Attention { mask: BOTTOM_RIGHT, ..Default::default() };
            Problem::new(shape(1, [19, 23], [2, 1], dims), options).check(device, &mut rng);
            device.ctx.forget_kernels();
        }
    }
}

#[test]
fn element_types() {
    for device in devices() {
        let mut rng = Rng(4);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for dims in [[16, 16], [7, 9]] {
                let options = Attention { dtype, mask: BOTTOM_RIGHT, ..Default::default() };
                Problem::new(shape(2, [33, 40], [4, 2], dims), options).check(device, &mut rng);
            }
        }
    }
}

/// Random problems, views and options; the seed of a failure is in its message.
#[test]
fn random_problems() {
    let slow = std::env::var("TILEWISE_SLOW").is_ok_and(|v| v == "1");
    let count = if slow { 1000 } else { 100 };
    for device in devices() {
        for seed in 0..count {
            let mut rng = Rng(1000 + seed);
            let heads_kv = rng.range(1, 4);
            let s = shape(
                rng.range(1, 3),
                [rng.range(1, 70), rng.range(1, 70)],
                [heads_kv * rng.range(1, 4), heads_kv],
                // few sizes: every new one is a kernel to compile
                *rng.pick(&[[16, 16], [8, 20], [7, 3]]),
            );
            let options = Attention {
                mask: *rng.pick(&[Mask::None, BOTTOM_RIGHT, TOP_LEFT]),
                scale: *rng.pick(&[None, Some(0.7), Some(-0.1), Some(0.0), Some(3.0)]),
                dtype: *rng.pick(&[DType::F32, DType::F16, DType::BF16]),
                ..Default::default()
            };
            let mut problem = Problem::new(s, options);
            problem.layouts = problem.layouts.map(|l| random_layout(&mut rng, l.shape));
            println!("seed {}", 1000 + seed);
            problem.check(device, &mut rng);
        }
        device.ctx.forget_kernels();
    }
}

#[test]
fn unfused_agrees() {
    for device in devices() {
        let mut rng = Rng(6);
        for mask in [Mask::None, BOTTOM_RIGHT] {
            let options = Attention { mask, algorithm: Algorithm::Unfused, ..Default::default() };
            Problem::new(shape(2, [33, 21], [4, 2], [24, 20]), options).check(device, &mut rng);
        }
    }
}

#[test]
fn every_supported_tile_is_right() {
    for device in devices() {
        let mut rng = Rng(7);
        let s = shape(1, [43, 39], [1, 1], [12, 8]);
        for tiles in Attention::supported_tiles(&device.ctx.caps, &s) {
            // the largest take seconds to compile and add nothing
            if tiles.queries * tiles.block_k > 8 || tiles.workgroup > 64 {
                continue;
            }
            let options =
                Attention { tiles: Some(tiles), mask: BOTTOM_RIGHT, ..Default::default() };
            Problem::new(s, options).check(device, &mut rng);
        }
        device.ctx.forget_kernels();
    }
}

/// Mesa's llvmpipe before release 25 ends loops after 65,535 trips: see `Caps::loop_trips`.
#[test]
fn seventy_thousand_keys() {
    for device in devices() {
        let mut rng = Rng(8);
        Problem::new(shape(1, [3, 70_000], [1, 1], [16, 16]), Attention::default())
            .check(device, &mut rng);
        Problem::new(shape(1, [2, 70_000], [1, 1], [64, 64]), Attention::default())
            .check(device, &mut rng);
    }
}

/// More workgroups than one dimension of a dispatch holds.
#[test]
fn folded_grid() {
    for device in devices() {
        let mut rng = Rng(9);
        let mut caps = device.ctx.caps.clone();
        caps.workgroups_per_dim = 7;
        let small = Device { name: device.name.clone(), ctx: device.ctx.with_caps(caps) };
        Problem::new(shape(3, [40, 9], [5, 5], [8, 8]), Attention::default())
            .check(&small, &mut rng);
    }
    // the real limit, on the first device only: 66,000 workgroups
    if let Some(device) = devices().first() {
        let mut rng = Rng(10);
        let tiles = Some(Tiles { workgroup: 32, queries: 1, block_k: 1 });
        let options = Attention { tiles, ..Default::default() };
        Problem::new(shape(1, [1, 2], [66_000, 1], [4, 4]), options).check(device, &mut rng);
    }
}

/// A key or value that no row sees may hold anything.
#[test]
fn hidden_nan_never_reaches_an_output() {
    for device in devices() {
        let ctx = &device.ctx;
        for algorithm in [Algorithm::Flash, Algorithm::Unfused] {
            let s = shape(1, [24, 24], [1, 1], [16, 16]);
            let mut rng = Rng(11);
            let q = rng.vec(24 * 16);
            let (mut k, mut v) = (rng.vec(24 * 16), rng.vec(24 * 16));
            // top-left causal: the last key is hidden from all rows but the last
            let mask = TOP_LEFT;
            for x in k[23 * 16..].iter_mut().chain(&mut v[23 * 16..]) {
                *x = f32::NAN;
            }
            let plan = Attention { mask, algorithm, ..Default::default() }.plan(ctx, s).unwrap();
            let up = |x: &[f32]| tilewise::Tensor::upload(ctx, [1, 24, 1, 16], x).unwrap();
            let o = Guarded::new(ctx, Layout::contiguous([1, 24, 1, 16]), DType::F32);
            let scratch = tilewise::Tensor::zeros(ctx, [24 * 24 + 4], DType::F32).unwrap();
            let (tq, tk, tv) = (up(&q), up(&k), up(&v));
            let mut args = AttentionArgs::new(tq.view(), tk.view(), tv.view(), o.view());
            args.scratch = Some(scratch.buffer());
            run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
            let rows = &o.read(ctx)[..23 * 16];
            let first = AttentionShape { seq_q: 23, seq_k: 23, ..s };
            let (want, _) =
                reference::attention(&first, mask, 0.25, &to_f64(&q), &to_f64(&k), &to_f64(&v));
            assert!(rel_rms(rows, &want) < 1e-6, "{} {algorithm:?}", device.name);
        }
    }
}

#[test]
fn bitwise_repeatable() {
    for device in devices() {
        let ctx = &device.ctx;
        let s = shape(1, [65, 70], [4, 2], [32, 32]);
        let mut rng = Rng(12);
        let up = |x: Vec<f32>, shape| tilewise::Tensor::upload(ctx, shape, &x).unwrap();
        let q = up(rng.vec(65 * 4 * 32), [1, 65, 4, 32]);
        let k = up(rng.vec(70 * 2 * 32), [1, 70, 2, 32]);
        let plan = Attention { mask: BOTTOM_RIGHT, ..Default::default() }.plan(ctx, s).unwrap();
        let once = || {
            let o = tilewise::Tensor::zeros(ctx, [1, 65, 4, 32], DType::F32).unwrap();
            let args = AttentionArgs::new(q.view(), k.view(), k.view(), o.view());
            run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
            o.download::<f32>(ctx).unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let first = once();
        for _ in 0..20 {
            assert_eq!(first, once(), "{}", device.name);
        }
    }
}
