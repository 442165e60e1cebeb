//! Attention: both tiers against the plain unfused kernel, as GFLOP/s and as a share of the
//! multiply-add peak measured in the same run, and a table of errors against f64.
//! `cargo bench --bench attention [-- FILTER]`; `cargo test --benches` runs each case once, small.
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "sizes are small")]

use std::{cell::RefCell, time::Duration};

use criterion::{Criterion, Throughput};
use half::{bf16, f16};
use tilewise::{
    Context, DType, Element, Result, Tensor, Tier,
    attention::{Algorithm, Attention, AttentionArgs, AttentionShape, CausalAlignment, Mask},
    measure::{median, multiply_add_peak, time},
    reference, wgpu,
};

const CAUSAL: Mask = Mask::Causal(CausalAlignment::BottomRight);

/// Fixed pseudo-random values in -1..1.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

struct Problem {
    shape: AttentionShape,
    data: [Vec<f32>; 3],
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    o: Tensor<4>,
}

impl Problem {
    fn new<T: Element>(ctx: &Context, shape: AttentionShape) -> Result<Self> {
        let s = shape;
        let upload = |dims: [u32; 4], seed| {
            let x: Vec<T> = values(dims.iter().product::<u32>() as usize, seed)
                .into_iter()
                .map(T::from_f32)
                .collect();
            let held = x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
            Ok::<_, tilewise::Error>((Tensor::upload(ctx, dims, &x)?, held))
        };
        let (q, dq) = upload([s.batch, s.seq_q, s.heads, s.head_dim], 1)?;
        let (k, dk) = upload([s.batch, s.seq_k, s.heads_kv, s.head_dim], 2)?;
        let (v, dv) = upload([s.batch, s.seq_k, s.heads_kv, s.head_dim_v], 3)?;
        let o = Tensor::zeros(ctx, [s.batch, s.seq_q, s.heads, s.head_dim_v], T::DTYPE)?;
        Ok(Self { shape, data: [dq, dk, dv], q, k, v, o })
    }

    /// Relative RMS error of the last `rows` queries against f64, of `got` and of a plain loop.
    fn errors<T: Element>(&self, mask: Mask, got: &[f32], rows: u32) -> (f64, f64) {
        let s = self.shape;
        let (h, d) = (s.heads as usize, s.head_dim as usize);
        let off = (s.seq_q - rows) as usize * h * d;
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let [q, k, v] = &self.data;
        let last = AttentionShape { seq_q: rows, ..s };
        let scale = f64::from((s.head_dim as f32).sqrt().recip());
        let (want, _) = reference::attention(
            &last,
            &Attention { mask, ..Default::default() },
            &reference::AttentionInputs {
                q: &wide(&q[off..]),
                k: &wide(k),
                v: &wide(v),
                ..Default::default()
            },
        );
        let mut plain = vec![0f32; want.len()];
        for (at, out) in plain.chunks_mut(d).enumerate() {
            let (row, head) = (at / h, at % h);
            let limit = if mask == Mask::None { s.seq_k } else { s.seq_k - rows + row as u32 + 1 };
            let scores: Vec<f32> = (0..limit as usize)
                .map(|j| {
                    let k = &k[(j * h + head) * d..][..d];
                    let q = &q[off + at * d..][..d];
                    scale as f32 * q.iter().zip(k).map(|(a, b)| a * b).sum::<f32>()
                })
                .collect();
            let top = scores.iter().copied().fold(f32::MIN, f32::max);
            let sum: f32 = scores.iter().map(|x| (x - top).exp()).sum();
            for (c, x) in out.iter_mut().enumerate() {
                let total: f32 = scores
                    .iter()
                    .enumerate()
                    .map(|(j, s)| (s - top).exp() / sum * v[(j * h + head) * d + c])
                    .sum();
                *x = T::from_f32(total).to_f32();
            }
        }
        let rms = |x: &[f32]| {
            let (error, size) = x
                .iter()
                .zip(&want)
                .fold((0.0, 0.0), |(e, s), (g, w)| (e + (f64::from(*g) - w).powi(2), s + w * w));
            (error / size).sqrt()
        };
        (rms(&got[off..]), rms(&plain))
    }
}

struct Row {
    id: String,
    seconds: f64,
    flops: f64,
    /// Multiply-add rate of the device around this case: machines drift, so each has its own.
    peak: f64,
    first: Duration,
}

fn main() -> Result<()> {
    // cargo test --benches passes no --bench
    let quick = !std::env::args().any(|a| a == "--bench");
    let opened = Context::new_blocking()?;
    let info = opened.device.adapter_info();
    println!("{} ({}), {} {}", info.name, info.backend, info.driver, info.driver_info);
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let lengths: &[u32] = if quick { &[64] } else { &[512, 1024, 2048] };
    let tiers: Vec<Tier> = [Tier::Portable, Tier::Subgroup]
        .into_iter()
        .filter(|&tier| opened.with_tier(tier).is_ok())
        .collect();
    let mut rows = Vec::new();
    for &n in lengths {
        let shape = AttentionShape::self_attention(1, n, 8, 64);
        for mask in [Mask::None, CAUSAL] {
            for algorithm in [Algorithm::Flash, Algorithm::Unfused] {
                for &tier in if algorithm == Algorithm::Flash { &tiers[..] } else { &tiers[..1] } {
                    let ctx = opened.with_tier(tier)?;
                    let problem = Problem::new::<f32>(&ctx, shape)?;
                    let name = if algorithm == Algorithm::Flash { tier.name() } else { "unfused" };
                    let mask_name = if mask == Mask::None { "full" } else { "causal" };
                    let id = format!("{name}/{mask_name}/b1_t{n}_h8_d64");
                    if let Some(row) = bench(&ctx, &mut criterion, &problem, mask, algorithm, id)? {
                        rows.push(row);
                    }
                }
            }
        }
    }
    criterion.final_summary();
    println!("\npeak: the multiply-add rate measured right before and after the case, their mean");
    println!(
        "{:36} {:>10} {:>9} {:>9} {:>8} {:>12}",
        "case", "ms", "GFLOP/s", "peak", "of peak", "first use"
    );
    for row in &rows {
        let rate = row.flops / row.seconds;
        println!(
            "{:36} {:>10.2} {:>9.1} {:>9.1} {:>7.1}% {:>10.2} s",
            row.id,
            row.seconds * 1e3,
            rate / 1e9,
            row.peak / 1e9,
            100.0 * rate / row.peak,
            row.first.as_secs_f64()
        );
    }
    println!("\nratios of runs taken turn about, medians of the pairs");
    println!("{:>6} {:10} {:>16} {:>18}", "length", "tier", "causal / full", "unfused / full");
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    for &n in lengths {
        if filter.as_ref().is_some_and(|f| !format!("t{n}_").contains(f.as_str())) {
            continue;
        }
        let shape = AttentionShape::self_attention(1, n, 8, 64);
        for &tier in &tiers {
            let ctx = opened.with_tier(tier)?;
            let problem = Problem::new::<f32>(&ctx, shape)?;
            let full = Attention::default();
            let causal = Attention { mask: CAUSAL, ..full };
            let unfused = Attention { algorithm: Algorithm::Unfused, ..full };
            let samples = if quick { 1 } else { 15 };
            let causal = paired(&ctx, &problem, causal, full, samples)?;
            let unfused = paired(&ctx, &problem, unfused, full, samples.min(3))?;
            println!("{n:>6} {:10} {causal:>16.2} {unfused:>18.1}", tier.name());
        }
    }
    if std::env::args().skip(1).all(|a| a.starts_with('-')) {
        accuracy(&opened, &tiers, if quick { 64 } else { 1024 })?;
    }
    Ok(())
}

/// Median of `time of a / time of b` over runs taken turn about, so that both see the same machine.
fn paired(
    ctx: &Context,
    problem: &Problem,
    a: Attention,
    b: Attention,
    samples: u32,
) -> Result<f64> {
    let plans = [a.plan(ctx, problem.shape)?, b.plan(ctx, problem.shape)?];
    let bytes = plans[0].scratch_bytes().max(plans[1].scratch_bytes());
    let scratch = Tensor::<1>::zeros(ctx, [bytes as u32 / 4], DType::F32)?;
    let args = AttentionArgs {
        scratch: Some(scratch.buffer()),
        ..AttentionArgs::new(problem.q.view(), problem.k.view(), problem.v.view(), problem.o.view())
    };
    let mut ratios = Vec::new();
    for sample in 0..=samples {
        let [a, b] = [&plans[0], &plans[1]]
            .map(|plan| time(ctx, 1, |pass| plan.encode_pass(ctx, pass, &args)).map(|t| t.seconds));
        // the first pair pays for compilation
        if sample > 0 {
            ratios.push(a? / b?);
        }
    }
    Ok(median(&mut ratios))
}

/// Checks the result, then times it; `None` if a filter leaves the case out.
fn bench(
    ctx: &Context,
    criterion: &mut Criterion,
    problem: &Problem,
    mask: Mask,
    algorithm: Algorithm,
    id: String,
) -> Result<Option<Row>> {
    let started = std::time::Instant::now();
    let plan = Attention { mask, algorithm, ..Default::default() }.plan(ctx, problem.shape)?;
    let scratch = ctx.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: plan.scratch_bytes().max(16),
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let args = AttentionArgs {
        scratch: Some(&scratch),
        ..AttentionArgs::new(problem.q.view(), problem.k.view(), problem.v.view(), problem.o.view())
    };
    time(ctx, 1, |pass| plan.encode_pass(ctx, pass, &args))?;
    let first = started.elapsed();
    let got: Vec<f32> = problem.o.download(ctx)?;
    let (error, plain) = problem.errors::<f32>(mask, &got, 32);
    assert!(error <= 2.0 * plain.max(1.2e-7), "{id}: error {error:.1e}, plain {plain:.1e}");

    let flops = problem.shape.flops(mask);
    let before = std::cell::Cell::new(0.0);
    let samples = RefCell::new(Vec::new());
    let mut group = criterion.benchmark_group("attention");
    group.throughput(Throughput::Elements(flops as u64));
    group.bench_function(&id, |b| {
        b.iter_custom(|iterations| {
            let mut total = 0.0;
            if before.get() == 0.0 {
                before.set(multiply_add_peak(ctx).unwrap_or(f64::NAN));
            }
            for _ in 0..iterations {
                let timing = time(ctx, 1, |pass| plan.encode_pass(ctx, pass, &args));
                let seconds = timing.map_or(f64::NAN, |t| t.seconds);
                samples.borrow_mut().push(seconds);
                total += seconds;
            }
            Duration::from_secs_f64(total)
        });
    });
    group.finish();
    let mut samples = samples.into_inner();
    if samples.is_empty() {
        return Ok(None);
    }
    let peak = f64::midpoint(before.get(), multiply_add_peak(ctx)?);
    Ok(Some(Row { id, seconds: median(&mut samples), flops, peak, first }))
}

/// Errors of both tiers in each element type, next to a plain loop's in the same type.
fn accuracy(opened: &Context, tiers: &[Tier], n: u32) -> Result<()> {
    println!("\nrelative RMS error against f64, [1, {n}, 8, 64], last 32 rows");
    println!(
        "{:6} {:10} {:8} {:>10} {:>10} {:>7}",
        "dtype", "tier", "mask", "ours", "plain", "ratio"
    );
    for &tier in tiers {
        let ctx = opened.with_tier(tier)?;
        for mask in [Mask::None, CAUSAL] {
            one_accuracy::<f32>(&ctx, mask, n)?;
            one_accuracy::<f16>(&ctx, mask, n)?;
            one_accuracy::<bf16>(&ctx, mask, n)?;
        }
    }
    Ok(())
}

fn one_accuracy<T: Element>(ctx: &Context, mask: Mask, n: u32) -> Result<()> {
    let problem = Problem::new::<T>(ctx, AttentionShape::self_attention(1, n, 8, 64))?;
    let plan =
        Attention { mask, dtype: T::DTYPE, ..Default::default() }.plan(ctx, problem.shape)?;
    let args =
        AttentionArgs::new(problem.q.view(), problem.k.view(), problem.v.view(), problem.o.view());
    time(ctx, 1, |pass| plan.encode_pass(ctx, pass, &args))?;
    let got: Vec<f32> = problem.o.download::<T>(ctx)?.into_iter().map(|x| x.to_f32()).collect();
    let (ours, plain) = problem.errors::<T>(mask, &got, 32);
    let dtype: DType = T::DTYPE;
    println!(
        "{:6} {:10} {:8} {ours:>10.2e} {plain:>10.2e} {:>7.2}",
        dtype.name(),
        ctx.caps.tier.name(),
        if mask == Mask::None { "full" } else { "causal" },
        ours / plain
    );
    assert!(
        ours <= 2.0 * plain.max(dtype.unit_roundoff()),
        "{dtype}: {ours:.1e} > 2 * {plain:.1e}"
    );
    Ok(())
}
