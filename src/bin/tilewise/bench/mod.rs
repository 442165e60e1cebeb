//! `tilewise bench`: the speed of the operators on this device, against what the device can do.

mod cases;
mod html;
pub(crate) mod problem;
mod report;
mod route_cases;
mod routes;
mod variants;

use std::{
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use tilewise::{
    Card, Context, DType, Tier, Tuning,
    measure::{Clock, median, time_encoder},
    wgpu,
};

use crate::{Failure, adapter, adapter::Target, texts::Texts, tuning};
use problem::{Case, OPS, Op, Ready, seconds, tolerance};
use report::{Ceilings, Device, Report, Row, SCHEMA};

/// Time operators on this device and set each against the ceiling that binds it.
///
/// First the device's own ceilings are measured: multiply-adds, copies, workgroup memory, an empty
/// dispatch. Every case is then judged by the f64 reference at sampled places; only right results
/// are timed, turn about on tensors enough to fill the caches. A share of 100 % means as fast as the
/// multiply-adds, or the bytes moved once, allow.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tilewise bench --quick
  tilewise bench all --json now.json --plot report.html
  tilewise bench attention --shape seq=4096,heads=16,dim=128 --shape seq=8192 --dtype f16
  tilewise bench neighborhood --baseline old.json --fail-on-regression
  tilewise bench all --tuning tiles.json --gain
  tilewise bench all --dump-wgsl texts
  tilewise bench all --as ada --dump-wgsl texts
  tilewise bench gaunt --routes --plot gaunt.svg

Keys of --shape, each with a default:
  attention     batch, seq, keys, heads, heads_kv, dim, mask=none|causal
  linear        rule=lightning|gla|delta, batch, seq, heads, dim
  neighborhood  map=64x64, window=7x7, stride=1x1, heads, dim
  gaunt         lmax, out, products
  fft           n=1024 or n=64x64, batch

The JSON is described in docs/BENCH.md.")]
pub(crate) struct Args {
    /// What is timed
    #[arg(value_enum, default_value_t = Op::All, value_name = "OPERATOR")]
    op: Op,
    /// Time this problem instead of the list; may be repeated
    #[arg(long, value_name = "KEY=VALUE,..")]
    shape: Vec<String>,
    /// Element type of the tensors
    #[arg(long, value_name = "TYPE", default_value = "f32",
        value_parser = PossibleValuesParser::new(["f32", "f16", "bf16"]).map(|t| dtype(&t)))]
    dtype: DType,
    /// Kernels of this tier [default: the best that the device has]
    #[arg(long, value_name = "TIER",
        value_parser = PossibleValuesParser::new(["portable", "subgroup"])
            .map(|t| t.parse::<Tier>().expect("one of the listed")))]
    tier: Option<Tier>,
    /// Fewer, smaller problems and fewer samples: about a minute on a CPU
    #[arg(long)]
    quick: bool,
    /// Samples of each case, of which the median counts [default: 9, quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    samples: Option<u32>,
    /// Write the measurements into this JSON file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a table into this CSV file
    #[arg(long, value_name = "FILE", conflicts_with = "routes")]
    csv: Option<PathBuf>,
    /// Write a report into this HTML file, or into tilewise-bench.html in this folder
    #[arg(long, value_name = "FILE|DIR")]
    plot: Option<PathBuf>,
    /// Compare with an earlier --json
    #[arg(long, value_name = "FILE", conflicts_with = "routes")]
    baseline: Option<PathBuf>,
    /// Exit with 1 if a case is slower than in the baseline, beyond the spread of both
    #[arg(long, requires = "baseline")]
    fail_on_regression: bool,
    /// Time each case with the planner's own tiles as well, between two times with the table's: how
    /// much a tuning table gains. Needs a table: --tuning, or the adapter's own
    #[arg(long, conflicts_with = "routes")]
    gain: bool,
    /// Time the first use of each case as well, and a second one: planned, compiled, tensors
    /// uploaded, run once. Drivers keep what they compiled; their caches are switched off from outside
    #[arg(long, conflicts_with_all = ["routes", "dump_wgsl"])]
    first_use: bool,
    /// Run nothing: write the WGSL text of every kernel of the cases into DIR, each text once
    #[arg(long, value_name = "DIR",
        conflicts_with_all = ["routes", "json", "csv", "plot", "baseline", "gain", "samples"])]
    dump_wgsl: Option<PathBuf>,
    /// With --dump-wgsl: plan as for this card, without having one
    #[arg(long = "as", value_name = "CARD", value_parser = adapter::card, requires = "dump_wgsl",
        conflicts_with_all = ["adapter", "class", "tuning"])]
    card: Option<&'static Card>,
    /// With attention and --as: instead of the cases, a text for each option, head size and way of
    /// decoding
    #[arg(long, requires = "card", conflicts_with_all = ["shape", "quick"])]
    variants: bool,
    /// With gaunt: every route over the degrees, side by side; --plot writes an SVG
    #[arg(long, conflicts_with_all = ["shape", "dtype", "tier", "quick"])]
    routes: bool,
    /// With --routes: largest degree
    #[arg(long, value_name = "L", default_value_t = 12, requires = "routes",
        value_parser = clap::value_parser!(u32).range(1..=16))]
    lmax: u32,
    /// With --routes: products in one call
    #[arg(long, value_name = "N", default_value_t = 16_384, requires = "routes",
        value_parser = clap::value_parser!(u32).range(1..=1 << 22))]
    products: u32,
}

/// The element type of a name that clap has let pass.
pub(crate) fn dtype(name: &str) -> DType {
    match name {
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        _ => DType::F32,
    }
}

/// Runs the bench.
pub(crate) fn run(args: &Args, target: Target<'_>, table: Option<&str>) -> Result<bool, Failure> {
    if args.routes {
        if args.op != Op::Gaunt {
            return Err(format!("--routes is of gaunt, not of {}", args.op.name()).into());
        }
        return routes::run(args, target);
    }
    if args.variants && args.op != Op::Attention {
        return Err(format!("--variants is of attention, not of {}", args.op.name()).into());
    }
    // mistakes come out before minutes are spent
    let cases = cases(args)?;
    let baseline = args.baseline.as_deref().map(Report::read).transpose()?;
    let plot = args.plot.as_deref().map(|p| match p.is_dir() {
        true => p.join("tilewise-bench.html"),
        false => p.into(),
    });
    for path in [&args.json, &args.csv, &plot].into_iter().flatten() {
        writable(path)?;
    }
    let mut ctx = match args.card {
        Some(card) => adapter::imitated(card)?,
        None => tuning::with_table(target.open()?, table)?,
    };
    if let Some(tier) = args.tier {
        ctx = ctx.with_tier(tier)?;
    }
    let device = adapter::describe(&ctx.device.adapter_info());
    let tuned = ctx.tuning().is_some();
    let from = if tuned { ", tiles from a tuning table" } else { "" };
    println!("on {device}, {} kernels, {}{from}", ctx.caps.tier, args.dtype);
    if args.gain && !tuned {
        return Err("--gain: there is no tuning table of this adapter; see tilewise tune".into());
    }
    if let Some(dir) = &args.dump_wgsl {
        let mut texts = Texts::open(dir)?;
        if let (true, Some(card)) = (args.variants, args.card) {
            let count = variants::dump(card, args.tier, args.dtype, &mut texts)?;
            texts.finish()?;
            println!("the texts of {count} problems are in {}", dir.display());
            return Ok(true);
        }
        for case in &cases {
            // a card costs nothing to open again: what it compiled is of this case
            if let Some(card) = args.card {
                let ctx = adapter::imitated(card)?;
                let ctx = args.tier.map_or_else(|| Ok(ctx.clone()), |tier| ctx.with_tier(tier))?;
                record(&ctx, case, args.dtype)?;
                texts.add(&ctx, Some(&format!("{} {}", case.op.name(), case.shape)))?;
            } else {
                record(&ctx, case, args.dtype)?;
            }
        }
        texts.add(&ctx, None)?;
        texts.finish()?;
        println!("the texts of {} cases are in {}", cases.len(), dir.display());
        return Ok(true);
    }
    let bar = ProgressBar::new(cases.len() as u64 + 2).with_style(
        ProgressStyle::with_template("  {bar:30} {pos}/{len} {elapsed} {msg}")
            .expect("the template is valid"),
    );
    bar.set_message("ceilings");
    bar.tick();
    let before = Ceilings::measure(&ctx)?;
    bar.inc(1);
    let samples = args.samples.unwrap_or(if args.quick { 3 } else { 9 });
    let mut results = Vec::new();
    for case in &cases {
        bar.set_message(format!("{} {}", case.op.name(), case.shape));
        let uses = args.first_use.then(|| uses(&ctx, case, args.dtype)).transpose()?;
        let row = measure(&ctx, case, args.dtype, samples, args.quick)?;
        let row = Row { first_use: uses.map(|u| u[0]), second_use: uses.map(|u| u[1]), ..row };
        results.push(match args.gain {
            true => with_planner(&ctx, case, args, samples, row)?,
            false => row,
        });
        // software drivers hold tens of megabytes for each
        ctx.forget_kernels();
        bar.inc(1);
    }
    bar.set_message("ceilings");
    let ceilings = before.best(Ceilings::measure(&ctx)?);
    bar.finish_and_clear();
    for row in &mut results {
        let (bound, least) = ceilings.bound(row.flops, row.bytes);
        row.bound = bound.into();
        row.fraction = least / row.seconds;
    }
    let report = Report {
        schema: SCHEMA,
        tilewise: env!("CARGO_PKG_VERSION").into(),
        time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        quick: args.quick,
        tuned,
        device: Device::of(&ctx),
        ceilings,
        results,
    };
    print(&report);
    if let Some(path) = &args.json {
        report.write_json(path)?;
    }
    if let Some(path) = &args.csv {
        report.write_csv(path)?;
    }
    if let Some(path) = &plot {
        report::write(path, &html::page(&report)?)?;
        println!("\nreport in {}", path.display());
    }
    let slower = baseline.map(|old| report::compare(&old, &report)).transpose()?.unwrap_or(0);
    Ok(slower == 0 || !args.fail_on_regression)
}

/// The problems that the command line asks for.
fn cases(args: &Args) -> Result<Vec<Case>, Failure> {
    if !args.shape.is_empty() {
        return args.shape.iter().map(|s| Case::parse(args.op, s)).collect();
    }
    let mut all = Vec::new();
    for op in OPS.into_iter().filter(|op| args.op == Op::All || args.op == *op) {
        // f32 is all that it has
        if op == Op::Fft && args.op == Op::All && args.dtype != DType::F32 {
            println!("fft left out: it is f32 only");
            continue;
        }
        for text in op.list(args.quick) {
            all.push(Case::parse(op, &text)?);
        }
    }
    Ok(all)
}

/// Fails now if a file cannot be written later.
fn writable(path: &Path) -> Result<(), Failure> {
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
    Ok(opened.map(drop).map_err(|e| format!("{}: {e}", path.display()))?)
}

/// Calls in one sample at most: each has a small buffer of its own until the sample is done.
const MOST_REPEATS: f64 = 256.0;

/// Median seconds of one call and what belongs to it.
pub(crate) struct Timed {
    pub(crate) samples: Vec<f64>,
    pub(crate) repeats: u32,
    pub(crate) clock: Clock,
}

/// Times a problem, going round its tensors: `samples` samples of at least `least` seconds each.
pub(crate) fn timed(
    ctx: &Context,
    ready: &Ready,
    samples: u32,
    least: f64,
) -> tilewise::Result<Timed> {
    for run in &ready.runs {
        time_encoder(ctx, 1, |encoder| run(encoder))?;
    }
    let mut turn = 0;
    let mut call = |encoder: &mut wgpu::CommandEncoder| {
        turn = (turn + 1) % ready.runs.len();
        ready.runs[turn](encoder)
    };
    let once = time_encoder(ctx, 1, &mut call)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let repeats = (least / once.seconds.max(1e-9)).ceil().clamp(1.0, MOST_REPEATS) as u32;
    let mut all = Vec::new();
    for _ in 0..samples {
        all.push(time_encoder(ctx, repeats, &mut call)?.seconds);
    }
    median(&mut all);
    Ok(Timed { samples: all, repeats, clock: once.clock })
}

/// A problem made ready, run once and found right, with its error.
pub(crate) fn judged(
    ctx: &Context,
    case: &Case,
    dtype: DType,
    fill: f64,
) -> Result<(Ready, f64), Failure> {
    let name = format!("{} {}", case.op.name(), case.shape);
    let ready = case.ready(ctx, dtype, fill).map_err(|e| format!("{name}: {e}"))?;
    time_encoder(ctx, 1, |encoder| (ready.runs[0])(encoder))?;
    let error = (ready.judge)(ctx)?;
    let limit = tolerance(dtype);
    // not a number is no pass
    if error.is_nan() || error > limit {
        let problem = format!("wrong by {error:.1e}, at most {limit:.1e} passes; not timed");
        return Err(format!("{name}: {problem}").into());
    }
    Ok((ready, error))
}

/// Seconds from nothing to one finished call, twice: what the first takes beyond the second is
/// specialising and compiling.
fn uses(ctx: &Context, case: &Case, dtype: DType) -> Result<[f64; 2], Failure> {
    let mut took = [0.0; 2];
    for seconds in &mut took {
        let started = Instant::now();
        let name = || format!("{} {}", case.op.name(), case.shape);
        let ready = case.ready(ctx, dtype, 0.0).map_err(|e| format!("{}: {e}", name()))?;
        time_encoder(ctx, 1, |encoder| (ready.runs[0])(encoder))?;
        *seconds = started.elapsed().as_secs_f64();
    }
    Ok(took)
}

/// Compiles a case's kernels: plans it and records one call, which is dropped.
pub(crate) fn record(ctx: &Context, case: &Case, dtype: DType) -> Result<(), Failure> {
    let name = || format!("{} {}", case.op.name(), case.shape);
    let ready = case.ready(ctx, dtype, 0.0).map_err(|e| format!("{}: {e}", name()))?;
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    Ok((ready.runs[0])(&mut encoder).map_err(|e| format!("{}: {e}", name()))?)
}

/// Adds the planner's time to a row that was measured with a table. The table's is taken once more
/// after it, and the mean of the two counts: a machine that drifts favours neither.
fn with_planner(
    ctx: &Context,
    case: &Case,
    args: &Args,
    samples: u32,
    row: Row,
) -> Result<Row, Failure> {
    let own = ctx.with_tuning(Tuning::default());
    let planner = measure(&own, case, args.dtype, samples, args.quick)?.seconds;
    let again = measure(ctx, case, args.dtype, samples, args.quick)?;
    Ok(Row {
        planner: Some(planner),
        seconds: f64::midpoint(row.seconds, again.seconds),
        low: row.low.min(again.low),
        high: row.high.max(again.high),
        ..row
    })
}

/// Judges, then times.
fn measure(
    ctx: &Context,
    case: &Case,
    dtype: DType,
    samples: u32,
    quick: bool,
) -> Result<Row, Failure> {
    // larger than last-level caches
    let fill = if ctx.caps.is_cpu() { 64e6 } else { 256e6 };
    let (ready, error) = judged(ctx, case, dtype, fill)?;
    let name = format!("{} {}", case.op.name(), case.shape);
    let timed = timed(ctx, &ready, samples, if quick { 2e-3 } else { 1e-2 })?;
    let all = &timed.samples;
    let tier = ctx.caps.tier.to_string();
    Ok(Row {
        id: format!("{name} {dtype} {tier}"),
        op: case.op.name().into(),
        shape: case.shape.clone(),
        dtype: dtype.to_string(),
        tier,
        series: case.series.clone(),
        axis: case.axis.into(),
        x: case.x,
        seconds: all[all.len() / 2],
        low: all[0],
        high: all[all.len() - 1],
        samples,
        repeats: timed.repeats,
        copies: u32::try_from(ready.runs.len()).unwrap_or(u32::MAX),
        clock: timed.clock.to_string(),
        flops: ready.flops,
        bytes: ready.bytes,
        bound: String::new(),
        fraction: 0.0,
        error,
        first_use: None,
        second_use: None,
        planner: None,
    })
}

fn print(report: &Report) {
    let c = &report.ceilings;
    let f16 = c.multiply_add_f16.map_or("none".into(), |r| format!("{:.1} Gflop/s", r * 1e-9));
    println!(
        "ceilings: multiply-add f32 {:.1} Gflop/s, f16 {f16}; copy {:.2} GB/s; workgroup memory {:.2} GB/s; \
         empty dispatch {}",
        c.multiply_add_f32 * 1e-9,
        c.copy * 1e-9,
        c.workgroup_memory * 1e-9,
        seconds(c.dispatch)
    );
    println!(
        "\n{:>11} {:>23} {:>9} {:>8} {:>6} {:13} {:>7}  case",
        "time", "fastest to slowest", "Gflop/s", "GB/s", "share", "of ceiling", "error"
    );
    for r in &report.results {
        println!(
            "{:>11} {:>23} {:>9.1} {:>8.2} {:>5.1}% {:13} {:>7.0e}  {} {}",
            seconds(r.seconds),
            format!("{} to {}", seconds(r.low), seconds(r.high)),
            r.flops / r.seconds * 1e-9,
            r.bytes / r.seconds * 1e-9,
            100.0 * r.fraction,
            r.bound.replace('_', "-"),
            r.error,
            r.op,
            r.shape
        );
        if let Some(planner) = r.planner {
            println!(
                "{:>11} with the planner's tiles: gain {:.2}",
                seconds(planner),
                planner / r.seconds
            );
        }
    }
}
