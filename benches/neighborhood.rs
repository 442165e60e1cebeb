//! Neighborhood attention: the fused kernel against the naive one, against full attention on the
//! same map by this crate's own kernel, against the simulator's bounds and the multiply-add peak
//! of the same run; with windows that differ and with shared ones; and how time grows with the
//! window, against the simulator.
//! `cargo bench --bench neighborhood [-- 1d | 2d | 3d | growth]`; `cargo test --benches` runs each
//! case once, small.
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "sizes are small")]

#[path = "../src/bin/tilewise/bench/cases.rs"]
mod cases;

use tilewise::{
    Context, DType, Result, Tensor,
    attention::{Attention, AttentionArgs, AttentionShape, Mask},
    measure::{median, multiply_add_peak, time, values},
    neighborhood::{
        Algorithm, KernelCost, NeighborhoodArgs, NeighborhoodAttention, NeighborhoodPlan,
        NeighborhoodShape,
    },
};

const HEADS: u32 = 4;

fn shape<const D: usize>(spatial: [u32; D], head_dim: u32) -> NeighborhoodShape<D> {
    NeighborhoodShape {
        spatial,
        heads: HEADS,
        heads_kv: HEADS,
        head_dim,
        head_dim_v: head_dim,
        ..Default::default()
    }
}

/// q, k, v and o of one map; `R = D + 3`.
struct Maps<const R: usize> {
    q: Tensor<R>,
    k: Tensor<R>,
    v: Tensor<R>,
    o: Tensor<R>,
}

impl<const R: usize> Maps<R> {
    fn new<const D: usize>(ctx: &Context, s: &NeighborhoodShape<D>) -> Result<Self> {
        let mut dims = [1; R];
        dims[1..=D].copy_from_slice(&s.spatial);
        [dims[R - 2], dims[R - 1]] = [s.heads, s.head_dim];
        let n = s.tokens() * u64::from(s.heads * s.head_dim);
        let map = |seed| Tensor::upload(ctx, dims, &values(n as usize, seed));
        Ok(Self { q: map(1)?, k: map(2)?, v: map(3)?, o: Tensor::zeros(ctx, dims, DType::F32)? })
    }

    /// Seconds of one run.
    fn time<const D: usize>(&self, ctx: &Context, plan: &NeighborhoodPlan<D>) -> Result<f64> {
        let [q, k, v, o] = [&self.q, &self.k, &self.v, &self.o].map(Tensor::view);
        let args = NeighborhoodArgs::new(q, k, v, o);
        Ok(time(ctx, 1, |pass| plan.encode_pass(ctx, pass, &args))?.seconds)
    }

    /// Median seconds, the first run left out.
    fn median<const D: usize>(
        &self,
        ctx: &Context,
        plan: &NeighborhoodPlan<D>,
        samples: u32,
    ) -> Result<f64> {
        self.time(ctx, plan)?;
        let mut all = (0..samples).map(|_| self.time(ctx, plan)).collect::<Result<Vec<_>>>()?;
        Ok(median(&mut all))
    }
}

/// Full attention on as many tokens, in GFLOP/s of a run over at most 2048 of the queries.
struct Dense {
    seconds: f64,
    rate: f64,
}

fn dense(ctx: &Context, tokens: u32, head_dim: u32, samples: u32) -> Result<Dense> {
    let queries = tokens.min(2048);
    let s = AttentionShape {
        seq_q: queries,
        ..AttentionShape::self_attention(1, tokens, HEADS, head_dim)
    };
    let row = u64::from(HEADS * head_dim);
    let tensor = |n: u32, seed| {
        Tensor::upload(ctx, [1, n, HEADS, head_dim], &values(n as usize * row as usize, seed))
    };
    let (q, k, v) = (tensor(queries, 1)?, tensor(tokens, 2)?, tensor(tokens, 3)?);
    let o = Tensor::zeros(ctx, [1, queries, HEADS, head_dim], DType::F32)?;
    let plan = Attention::default().plan(ctx, s)?;
    let args = AttentionArgs::new(q.view(), k.view(), v.view(), o.view());
    let run = || Ok(time(ctx, 1, |pass| plan.encode_pass(ctx, pass, &args))?.seconds);
    run()?;
    let mut all = (0..samples).map(|_| run()).collect::<Result<Vec<_>>>()?;
    let seconds = median(&mut all);
    let rate = s.flops(Mask::None) / seconds;
    Ok(Dense { seconds: seconds * f64::from(tokens) / f64::from(queries), rate })
}

/// One line: the map, windows that differ and windows that are shared.
fn case<const D: usize, const R: usize>(
    ctx: &Context,
    spatial: [u32; D],
    kernel: [u32; D],
    stride: [u32; D],
    quick: bool,
) -> Result<[f64; 3]> {
    let mut ratios = [0.0; 3];
    for head_dim in if quick { vec![8] } else { vec![32, 64] } {
        let s = shape(spatial, head_dim);
        let maps: Maps<R> = Maps::new(ctx, &s)?;
        let op = NeighborhoodAttention::new(kernel);
        let naive = NeighborhoodAttention { algorithm: Algorithm::Naive, ..op }.plan(ctx, s)?;
        let samples = if quick { 1 } else { 7 };
        let naive_seconds = if quick {
            maps.time(ctx, &naive)?
        } else {
            maps.time(ctx, &naive)?.min(maps.time(ctx, &naive)?)
        };
        let want: Vec<f32> = maps.o.download(ctx)?;
        let full = dense(ctx, s.tokens() as u32, head_dim, samples.min(3))?;
        for (what, stride) in [("differ", op.stride), ("shared", stride)] {
            let op = NeighborhoodAttention { stride, ..op };
            let started = std::time::Instant::now();
            let plan = op.plan(ctx, s)?;
            maps.time(ctx, &plan)?;
            let first = started.elapsed().as_secs_f64();
            if what == "differ" {
                let got: Vec<f32> = maps.o.download(ctx)?;
                let (error, size) = got.iter().zip(&want).fold((0f64, 0f64), |(e, n), (g, w)| {
                    (e + f64::from(g - w).powi(2), n + f64::from(*w).powi(2))
                });
                let error = (error / size).sqrt();
                assert!(error < 2e-6, "fused and naive differ by {error:.1e}");
            }
            let before = multiply_add_peak(ctx)?;
            let seconds = maps.median(ctx, &plan, samples)?;
            let peak = f64::midpoint(before, multiply_add_peak(ctx)?);
            let simulated = op.simulate(&s, &plan.tiles(), &KernelCost::of(&ctx.caps))?;
            let flops = simulated.useful as f64 * f64::from(4 * head_dim);
            let rate = flops / seconds;
            let t = plan.tiles();
            println!(
                "{:>10} {:>9} {:>3} {what:6} {:>8.2} {:>7.1} {:>6.1}% {:>6.1}% {:>7.1} {:>8.1} {:>6.1} {:>6.1} {:>5.2}  {:?}/{} slots {} keys {}",
                by(&spatial),
                by(&kernel),
                head_dim,
                seconds * 1e3,
                rate / 1e9,
                100.0 * rate / peak,
                100.0 * rate / full.rate,
                naive_seconds / seconds,
                full.seconds / seconds,
                simulated.tile_bound(),
                simulated.speedup_bound(),
                first,
                t.tile,
                t.axis,
                t.slots,
                t.block_k,
            );
            if what == "differ" {
                ratios[0] += naive_seconds / seconds / if quick { 1.0 } else { 2.0 };
                ratios[1] += rate / full.rate / if quick { 1.0 } else { 2.0 };
            } else {
                ratios[2] += rate / full.rate / if quick { 1.0 } else { 2.0 };
            }
        }
    }
    Ok(ratios)
}

fn by(sizes: &[u32]) -> String {
    sizes.iter().map(u32::to_string).collect::<Vec<_>>().join("x")
}

/// Time over K on one map, next to the simulator's cost; both relative to the geometric mean.
fn growth(ctx: &Context, quick: bool) -> Result<()> {
    let (side, kernels): (u32, &[u32]) =
        if quick { (9, &[3, 5]) } else { (cases::GROWTH_SIDE, &cases::GROWTH) };
    let s = shape([side, side], if quick { 8 } else { 32 });
    let maps: Maps<5> = Maps::new(ctx, &s)?;
    let mut rows = Vec::new();
    for &k in kernels {
        let op = NeighborhoodAttention::new([k, k]);
        let plan = op.plan(ctx, s)?;
        let cost = op.simulate(&s, &plan.tiles(), &KernelCost::of(&ctx.caps))?.cost;
        rows.push((k, maps.median(ctx, &plan, if quick { 1 } else { 7 })?, cost));
    }
    let n = rows.len() as f64;
    let mean = rows.iter().map(|(_, seconds, cost)| (seconds / cost).ln()).sum::<f64>() / n;
    println!("\ngrowth with the window: {side}x{side}, {HEADS} heads of {}", s.head_dim);
    println!("{:>6} {:>9} {:>14} {:>9}", "kernel", "ms", "predicted ms", "ratio");
    let mut worst = 1f64;
    for (k, seconds, cost) in rows {
        let predicted = cost * mean.exp();
        let ratio = seconds / predicted;
        worst = worst.max(ratio).max(1.0 / ratio);
        println!("{k:>6} {:>9.2} {:>14.2} {ratio:>9.2}", seconds * 1e3, predicted * 1e3);
    }
    println!("farthest from the prediction: a factor of {worst:.2}");
    Ok(())
}

fn main() -> Result<()> {
    // cargo test --benches passes no --bench
    let quick = !std::env::args().any(|a| a == "--bench");
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let wanted = |name: &str| filter.as_ref().is_none_or(|f| name.contains(f.as_str()));
    let ctx = Context::new_blocking()?;
    let info = ctx.device.adapter_info();
    println!("{} ({}), {} {}", info.name, info.backend, info.driver, info.driver_info);
    println!(
        "{} kernels, {HEADS} heads, f32; useful GFLOP/s: scores inside windows only",
        ctx.caps.tier
    );
    println!(
        "{:>10} {:>9} {:>3} {:6} {:>8} {:>7} {:>7} {:>7} {:>7} {:>8} {:>6} {:>6} {:>5}  tile/axis",
        "map",
        "window",
        "d",
        "window",
        "ms",
        "GFLOP/s",
        "of peak",
        "of full",
        "x naive",
        "x full",
        "tiles",
        "bound",
        "first"
    );
    let mut means: Vec<(&str, Vec<[f64; 3]>)> = Vec::new();
    if wanted("1d") {
        let cases: &[(u32, u32, u32)] = if quick { &[(70, 9, 8)] } else { &cases::LINES };
        let rows =
            cases.iter().map(|&(n, k, stride)| case::<1, 4>(&ctx, [n], [k], [stride], quick));
        means.push(("1-D", rows.collect::<Result<_>>()?));
    }
    if wanted("2d") {
        let cases: &[(u32, u32, u32)] = if quick { &[(9, 3, 3)] } else { &cases::SQUARES };
        let rows = cases
            .iter()
            .map(|&(n, k, stride)| case::<2, 5>(&ctx, [n; 2], [k; 2], [stride; 2], quick));
        means.push(("2-D", rows.collect::<Result<_>>()?));
    }
    if wanted("3d") {
        let (n, k, stride) = if quick { (4, 3, 2) } else { cases::CUBE };
        means.push(("3-D", vec![case::<3, 6>(&ctx, [n; 3], [k; 3], [stride; 3], quick)?]));
    }
    for (name, rows) in means {
        let mean = |i: usize| rows.iter().map(|r| r[i]).sum::<f64>() / rows.len() as f64;
        println!(
            "{name}, on average: {:.1} x naive, {:.0} % of full attention's rate, shared windows {:.0} %",
            mean(0),
            100.0 * mean(1),
            100.0 * mean(2)
        );
    }
    if wanted("growth") {
        growth(&ctx, quick)?;
    }
    Ok(())
}
