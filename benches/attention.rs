//! Attention: both tiers against the plain unfused kernel, as GFLOP/s and as a share of the
//! multiply-add peak measured in the same run, and a table of errors against f64.
//! `cargo bench --bench attention [-- FILTER]`; `cargo test --benches` runs each case once, small.
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "sizes are small")]

#[path = "../src/bin/tilewise/bench/cases.rs"]
mod cases;

use std::{cell::RefCell, time::Duration};

use criterion::{Criterion, Throughput};
use half::{bf16, f16};
use tilewise::{
    Context, DType, Element, Layout, Result, Tensor, Tier,
    attention::{
        Algorithm, Attention, AttentionArgs, AttentionPlan, AttentionShape, CausalAlignment, Mask,
        Window, quantize,
    },
    measure::{copy_rate, median, multiply_add_peak, time_encoder, values},
    reference,
};

const CAUSAL: Mask = Mask::Causal(CausalAlignment::BottomRight);

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
    let lengths: &[u32] = if quick { &[64] } else { &cases::ATTENTION_LENGTHS };
    let tiers: Vec<Tier> = [Tier::Portable, Tier::Subgroup]
        .into_iter()
        .filter(|&tier| opened.with_tier(tier).is_ok())
        .collect();
    let mut rows = Vec::new();
    for &n in lengths {
        let shape =
            AttentionShape::self_attention(1, n, cases::ATTENTION_HEADS, cases::ATTENTION_DIM);
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
        let shape =
            AttentionShape::self_attention(1, n, cases::ATTENTION_HEADS, cases::ATTENTION_DIM);
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
    if filter.as_ref().is_none_or(|f| "options".contains(f.as_str())) {
        let ctx = opened.with_tier(*tiers.last().unwrap_or(&Tier::Portable))?;
        prefill(&ctx, quick)?;
        decode(&ctx, quick)?;
    }
    if std::env::args().skip(1).all(|a| a.starts_with('-')) {
        accuracy(&opened, &tiers, if quick { 64 } else { 1024 })?;
    }
    Ok(())
}

/// A call with an option, timed turn about with a call without it.
struct Call<'a> {
    name: &'static str,
    plan: AttentionPlan,
    args: AttentionArgs<'a>,
    flops: f64,
    /// Bytes that must be read.
    bytes: f64,
}

/// Times calls turn about and prints them; ratios are to the first, medians of the rounds.
fn table(ctx: &Context, calls: &[Call<'_>], rounds: u32, copy: f64) -> Result<()> {
    let mut samples = vec![Vec::new(); calls.len()];
    let mut first = Vec::new();
    for call in calls {
        let started = std::time::Instant::now();
        time_encoder(ctx, 1, |encoder| call.plan.encode(ctx, encoder, &call.args))?;
        first.push(started.elapsed());
    }
    let before = multiply_add_peak(ctx)?;
    for _ in 0..rounds {
        for (call, samples) in calls.iter().zip(&mut samples) {
            samples.push(
                time_encoder(ctx, 1, |encoder| call.plan.encode(ctx, encoder, &call.args))?.seconds,
            );
        }
    }
    let peak = f64::midpoint(before, multiply_add_peak(ctx)?);
    for (i, call) in calls.iter().enumerate() {
        let mut ratios: Vec<f64> =
            samples[i].iter().zip(&samples[0]).map(|(a, base)| a / base).collect();
        let ratio = median(&mut ratios);
        let seconds = median(&mut samples[i].clone());
        println!(
            "{:36} {:>9.2} {:>9.1} {:>7.1}% {:>8.2} {:>7.0}% {:>8.2} {:>8.2} s",
            call.name,
            seconds * 1e3,
            call.flops / seconds / 1e9,
            100.0 * call.flops / seconds / peak,
            call.bytes / seconds / 1e9,
            100.0 * call.bytes / seconds / copy,
            ratio,
            first[i].as_secs_f64()
        );
    }
    Ok(())
}

fn head(title: &str) {
    println!("\n{title}");
    println!(
        "{:36} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8} {:>10}",
        "case", "ms", "GFLOP/s", "of peak", "GB/s", "of copy", "ratio", "first use"
    );
}

/// Masks and windows against plain prefill, wider heads, grouped heads.
fn prefill(ctx: &Context, quick: bool) -> Result<()> {
    let n = if quick { 64 } else { 1024 };
    let copy = copy_rate(ctx)?;
    head("prefill with options, ratio to the first of each group");
    let p = Problem::new::<f32>(ctx, AttentionShape::self_attention(1, n, 8, 64))?;
    let base = Attention::default();
    let slopes = Tensor::upload(ctx, [8], &[0.1f32; 8])?;
    let bias = Tensor::upload(ctx, [1, 1, n, n], &values((n * n) as usize, 5))?;
    let visible = Tensor::upload(ctx, [1, 1, n, n], &vec![1u8; (n * n) as usize])?;
    let cu: Vec<u32> = (0..=8).map(|i| i * n / 8).collect();
    let all = AttentionArgs::new(p.q.view(), p.k.view(), p.v.view(), p.o.view());
    let window = |left| Window { left: Some(left), right: None };
    let cases: Vec<(&'static str, Attention, AttentionArgs<'_>)> = vec![
        ("b1 t1024 h8 d64", base, all),
        ("  causal", Attention { mask: CAUSAL, ..base }, all),
        ("  causal, window 512", Attention { mask: CAUSAL, window: window(n / 2), ..base }, all),
        ("  causal, window 256", Attention { mask: CAUSAL, window: window(n / 4), ..base }, all),
        ("  causal, window 128", Attention { mask: CAUSAL, window: window(n / 8), ..base }, all),
        ("  softcap", Attention { softcap: Some(30.0), ..base }, all),
        (
            "  ALiBi",
            Attention { alibi: true, ..base },
            AttentionArgs { slopes: Some(slopes.view()), ..all },
        ),
        (
            "  additive bias",
            Attention { bias: true, ..base },
            AttentionArgs { bias: Some(bias.view()), ..all },
        ),
        (
            "  boolean mask",
            Attention { visible: true, ..base },
            AttentionArgs { visible: Some(visible.view()), ..all },
        ),
        (
            "  packed, 8 of 128",
            Attention { packed: true, ..base },
            AttentionArgs { cu_seqlens_q: Some(&cu), cu_seqlens_k: Some(&cu), ..all },
        ),
    ];
    let mut calls = Vec::new();
    for (name, options, args) in cases {
        let mut flops = options.flops(&p.shape);
        if options.packed {
            flops /= 8.0;
        }
        calls.push(Call { name, plan: options.plan(ctx, p.shape)?, args, flops, bytes: 0.0 });
    }
    table(ctx, &calls, if quick { 1 } else { 9 }, copy)?;

    let n = if quick { 64 } else { 2048 };
    for (name, name_causal, shape, dtype) in [
        (
            "b1 t2048 h16 d128",
            "  causal",
            AttentionShape::self_attention(1, n, 16, 128),
            DType::F32,
        ),
        (
            "b1 t2048 h16 d128 f16",
            "  causal",
            AttentionShape::self_attention(1, n, 16, 128),
            DType::F16,
        ),
        (
            "b1 t1024 h32 of 8 d128",
            "  causal",
            AttentionShape {
                heads: 32,
                heads_kv: 8,
                ..AttentionShape::self_attention(1, n / 2, 32, 128)
            },
            DType::F32,
        ),
    ] {
        let p = match dtype {
            DType::F16 => Problem::new::<f16>(ctx, shape)?,
            _ => Problem::new::<f32>(ctx, shape)?,
        };
        let args = AttentionArgs::new(p.q.view(), p.k.view(), p.v.view(), p.o.view());
        let mut calls = Vec::new();
        for (name, mask) in [(name, Mask::None), (name_causal, CAUSAL)] {
            let options = Attention { mask, dtype, ..base };
            let (plan, flops) = (options.plan(ctx, shape)?, options.flops(&shape));
            calls.push(Call { name, plan, args, flops, bytes: 0.0 });
        }
        table(ctx, &calls, if quick { 1 } else { 5 }, copy)?;
    }
    Ok(())
}

/// One new token for each of 8 sequences: keys in a row, in pages, as bytes.
fn decode(ctx: &Context, quick: bool) -> Result<()> {
    let (batch, keys, page) = (8, if quick { 96 } else { 4096 }, 32);
    let copy = copy_rate(ctx)?;
    head("decoding, 8 sequences, 32 heads on 8 key heads of 128, 4096 keys");
    let shape = AttentionShape {
        batch,
        seq_q: 1,
        seq_k: keys,
        heads: 32,
        heads_kv: 8,
        head_dim: 128,
        head_dim_v: 128,
    };
    let p = Problem::new::<f32>(ctx, shape)?;
    let base = Attention::default();
    let pages = batch * keys / page;
    let paged = Layout::contiguous([pages, page, 8, 128]);
    let page_table: Vec<u32> = (0..pages).collect();
    let lengths = vec![keys; batch as usize];
    let scale_shape = [batch, 8, keys.div_ceil(page)];
    let dims = p.k.shape();
    let [(k8, ks), (v8, vs)] = [&p.data[1], &p.data[2]].map(|x| {
        let q = quantize(x, dims, page).expect("finite values");
        (q.values, q.scales)
    });
    let (k8, v8) = (Tensor::upload(ctx, dims, &k8)?, Tensor::upload(ctx, dims, &v8)?);
    let (ks, vs) = (Tensor::upload(ctx, scale_shape, &ks)?, Tensor::upload(ctx, scale_shape, &vs)?);
    let plan = base.plan(ctx, shape)?;
    let scratch = plan.scratch(ctx)?;
    let all = AttentionArgs {
        scratch: scratch.as_ref(),
        ..AttentionArgs::new(p.q.view(), p.k.view(), p.v.view(), p.o.view())
    };
    let in_pages = AttentionArgs {
        k: p.k.view_as(paged)?,
        v: p.v.view_as(paged)?,
        key_lengths: Some(&lengths),
        page_table: Some(&page_table),
        ..all
    };
    let bytes = 2.0 * p.data[1].len() as f64 * 4.0;
    let flops = base.flops(&shape);
    let paged_options = Attention { key_lengths: true, page_size: Some(page), ..base };
    let quantized = Attention { quantized: Some(page), ..base };
    let calls = [
        Call { name: "contiguous", plan, args: all, flops, bytes },
        Call {
            name: "pages of 32",
            plan: paged_options.plan(ctx, shape)?,
            args: in_pages,
            flops,
            bytes,
        },
        Call {
            name: "int8, 32 tokens to a scale",
            plan: quantized.plan(ctx, shape)?,
            args: AttentionArgs {
                k: k8.view(),
                v: v8.view(),
                k_scale: Some(ks.view()),
                v_scale: Some(vs.view()),
                ..all
            },
            flops,
            bytes: bytes / 4.0,
        },
    ];
    table(ctx, &calls, if quick { 1 } else { 9 }, copy)?;
    // the three agree: pages exactly, bytes as far as they go
    let out = |call: &Call<'_>| -> Result<Vec<f32>> {
        time_encoder(ctx, 1, |encoder| call.plan.encode(ctx, encoder, &call.args))?;
        p.o.download(ctx)
    };
    let want = out(&calls[0])?;
    let distance = |got: &[f32]| {
        let (error, norm) = got.iter().zip(&want).fold((0.0, 0.0), |(e, n), (g, w)| {
            (e + f64::from(g - w).powi(2), n + f64::from(*w).powi(2))
        });
        (error / norm).sqrt()
    };
    let (pages, bytes) = (distance(&out(&calls[1])?), distance(&out(&calls[2])?));
    println!("relative difference from contiguous: pages {pages:.1e}, int8 {bytes:.1e}");
    assert!(pages < 1e-6 && bytes < 2e-2);
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
        let [a, b] = [&plans[0], &plans[1]].map(|plan| {
            time_encoder(ctx, 1, |encoder| plan.encode(ctx, encoder, &args)).map(|t| t.seconds)
        });
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
    let scratch = plan.scratch(ctx)?;
    let args = AttentionArgs {
        scratch: scratch.as_ref(),
        ..AttentionArgs::new(problem.q.view(), problem.k.view(), problem.v.view(), problem.o.view())
    };
    time_encoder(ctx, 1, |encoder| plan.encode(ctx, encoder, &args))?;
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
                let timing = time_encoder(ctx, 1, |encoder| plan.encode(ctx, encoder, &args));
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
    time_encoder(ctx, 1, |encoder| plan.encode(ctx, encoder, &args))?;
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
