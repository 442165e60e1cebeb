//! `tilewise tune`: measures the tiles that an operator may have and keeps the fastest.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use tilewise::{
    Context, DType, Tier, Tuned, Tuning,
    attention::{Attention, CausalAlignment, Mask, Tiles},
    gaunt::{Algorithm, GauntTensorProduct},
    measure::{median, time_encoder},
    neighborhood::{NeighborhoodAttention, NeighborhoodShape},
};

use crate::bench::{
    judged,
    problem::{Case, OPS, Op, Problem, rule_options, seconds},
    timed,
};
use crate::{Failure, adapter, adapter::Target, tuning::Origin};

/// Measure the tiles that operators may have on this adapter, and keep what beats the planner.
///
/// Every candidate's result is judged by the f64 reference before it may win, and the fastest is
/// run turn about with the planner's choice: it must win by 3 %. Winners go into a file of this
/// adapter, driver and version, which bench and demo read from then on.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tilewise tune
  tilewise tune --op neighborhood --shape map=56x56,window=7x7
  tilewise tune --op attention --dry-run
  tilewise tune --file tiles.json && tilewise bench all --tuning tiles.json
  tilewise bench all --tuning off")]
pub(crate) struct Args {
    /// What is tuned; fft has nothing to choose
    #[arg(long, value_enum, default_value_t = Op::All, value_name = "OPERATOR")]
    op: Op,
    /// Tune for this problem, as in bench, instead of the usual ones; may be repeated
    #[arg(long, value_name = "KEY=VALUE,..")]
    shape: Vec<String>,
    /// Kernels of this tier [default: the best that the device has]
    #[arg(long, value_name = "TIER",
        value_parser = PossibleValuesParser::new(["portable", "subgroup"])
            .map(|t| t.parse::<Tier>().expect("one of the listed")))]
    tier: Option<Tier>,
    /// Candidates of one problem at most, the likeliest first
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    candidates: u32,
    /// Only list the candidates
    #[arg(long)]
    dry_run: bool,
    /// Keep the winners in this file [default: in the user's cache folder]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Problems that stand for their classes.
fn usual(op: Op) -> &'static [&'static str] {
    match op {
        Op::Attention => &["seq=512", "seq=512,mask=none", "seq=512,heads=4,dim=128"],
        Op::Linear => &["seq=2048", "rule=gla,seq=2048"],
        Op::Neighborhood => {
            &["map=56x56,window=7x7", "map=64x64,window=13x13", "map=4096,window=63"]
        }
        Op::Gaunt => &["lmax=2", "lmax=3", "lmax=4"],
        Op::Fft | Op::All => &[],
    }
}

/// Rounds of the last comparison.
const ROUNDS: usize = 7;

/// A winner takes at most this share of the planner's time.
const GAIN: f64 = 0.97;

pub(crate) fn run(args: &Args, target: Target<'_>) -> Result<bool, Failure> {
    if args.op == Op::Fft {
        return Err("fft has no tiles to choose".into());
    }
    let mut cases = Vec::new();
    if args.shape.is_empty() {
        for op in OPS.into_iter().filter(|op| args.op == Op::All || args.op == *op) {
            for text in usual(op) {
                cases.push(Case::parse(op, text)?);
            }
        }
    }
    for text in &args.shape {
        cases.push(Case::parse(args.op, text)?);
    }
    let mut ctx = target.open()?;
    let origin = Origin::of(&ctx);
    if let Some(tier) = args.tier {
        ctx = ctx.with_tier(tier)?;
    }
    let device = adapter::describe(&ctx.device.adapter_info());
    println!("on {device}, {} kernels", ctx.caps.tier);
    if args.dry_run {
        for case in &cases {
            let (key, all) = candidates(&ctx, case, usize::MAX)?;
            println!(
                "\n{key}\n  for {}; {} candidates beside the planner's",
                case.shape,
                all.len()
            );
            for tuned in all {
                println!("  {}", describe(&tuned));
            }
        }
        return Ok(true);
    }
    let path = args
        .file
        .clone()
        .or_else(|| origin.path())
        .ok_or("there is no cache folder for this user; name a --file")?;
    let mut tuning = match path.exists() {
        true => origin.read(&path).unwrap_or_else(|e| {
            eprintln!("warning: {e}; it is written anew");
            Tuning::default()
        }),
        false => Tuning::default(),
    };
    // fails now if it cannot be written later
    origin.write(&path, &tuning)?;
    println!("{:>11} {:>11} {:>6}  problem, and the tiles that win", "planner", "best", "gain");
    for case in &cases {
        let (key, all) = candidates(&ctx, case, args.candidates as usize)?;
        let found = tune(&ctx, case, &key, &all)?;
        match &found.winner {
            Some(tuned) => tuning.entries.insert(key, tuned.clone()),
            None => tuning.entries.remove(&key),
        };
        println!(
            "{:>11} {:>11} {:>6.2}  {} {}: {}",
            seconds(found.planner),
            seconds(found.best),
            found.planner / found.best,
            case.op.name(),
            case.shape,
            found.winner.as_ref().map_or("the planner's".into(), describe)
        );
        if found.wrong > 0 {
            println!("{:32} {} candidates gave a wrong result", "", found.wrong);
        }
        // whole after every problem: what is measured is kept if the next one is broken off
        origin.write(&path, &tuning)?;
        ctx.forget_kernels();
    }
    println!("{} entries in {}", tuning.entries.len(), path.display());
    Ok(true)
}

/// The outcome for one problem.
struct Found {
    /// Medians of the last comparison; equal if nothing came near.
    planner: f64,
    best: f64,
    winner: Option<Tuned>,
    wrong: u32,
}

/// Bytes of tensors to go round.
const FILL: f64 = 32e6;

fn tune(ctx: &Context, case: &Case, key: &str, all: &[Tuned]) -> Result<Found, Failure> {
    let with = |tuned: &Tuned| {
        ctx.with_tuning(Tuning { entries: [(key.to_string(), tuned.clone())].into() })
    };
    let bar = ProgressBar::new(all.len() as u64).with_style(
        ProgressStyle::with_template("  {bar:30} {pos}/{len} {elapsed} {msg}")
            .expect("the template is valid"),
    );
    bar.set_message(case.shape.clone());
    let planned = judged(&ctx.with_tuning(Tuning::default()), case, DType::F32, FILL)?;
    let first = timed(ctx, &planned.0, 3, 2e-3)?;
    let own = first.samples[first.samples.len() / 2];
    let mut best: Option<(f64, &Tuned)> = None;
    let mut wrong = 0;
    for tuned in all {
        bar.inc(1);
        let ready = match judged(&with(tuned), case, DType::F32, FILL) {
            Ok(ready) => ready.0,
            Err(e) => {
                wrong += 1;
                log::warn!("{}: {e}", describe(tuned));
                continue;
            }
        };
        let timed = timed(ctx, &ready, 3, 2e-3)?;
        let middle = timed.samples[timed.samples.len() / 2];
        if middle < own && best.is_none_or(|(b, _)| middle < b) {
            best = Some((middle, tuned));
        }
    }
    let nothing = Found { planner: own, best: own, winner: None, wrong };
    let found = match best {
        None => nothing,
        Some((_, tuned)) => {
            // turn about: a machine that drifts drifts for both
            let ready = judged(&with(tuned), case, DType::F32, FILL)?.0;
            let mut sides = [Vec::new(), Vec::new()];
            for _ in 0..ROUNDS {
                for (side, ready) in sides.iter_mut().zip([&planned.0, &ready]) {
                    let run = &ready.runs[0];
                    side.push(time_encoder(ctx, first.repeats, |encoder| run(encoder))?.seconds);
                }
            }
            let won = sides[0].iter().zip(&sides[1]).filter(|(own, new)| new < own).count();
            let [planner, best] = sides.map(|mut side| median(&mut side));
            if best < GAIN * planner && won > ROUNDS / 2 + 1 {
                Found { planner, best, winner: Some(tuned.clone()), wrong }
            } else {
                nothing
            }
        }
    };
    bar.finish_and_clear();
    Ok(found)
}

/// The class of a problem and the tiles that it may have, the planner's left out, the likeliest
/// first.
fn candidates(ctx: &Context, case: &Case, most: usize) -> Result<(String, Vec<Tuned>), Failure> {
    let caps = &ctx.caps;
    let (key, mut all) = match &case.problem {
        Problem::Attention { shape, causal } => {
            let mask =
                if *causal { Mask::Causal(CausalAlignment::BottomRight) } else { Mask::None };
            let op = Attention { mask, ..Default::default() };
            op.design(caps, *shape)?;
            let mut all = op.candidates(caps, shape);
            let own = all.remove(0);
            all.sort_by(|a, b| distance(&own, a).total_cmp(&distance(&own, b)));
            let tuned = |t: Tiles| Tuned::Attention {
                workgroup: t.workgroup,
                queries: t.queries,
                block_k: t.block_k,
            };
            (op.tuning_key(caps, shape), all.into_iter().map(tuned).collect::<Vec<_>>())
        }
        Problem::Linear { shape, rule } => {
            let op = rule_options(*rule, shape.heads, shape.key_dim, DType::F32)?;
            let sizes = op.chunk_sizes(caps, shape).into_iter();
            let all = sizes.map(|chunk_size| Tuned::LinearAttention { chunk_size }).collect();
            (op.tuning_key(caps, shape), all)
        }
        Problem::Neighborhood { map, window, stride, heads, dim } => {
            let sizes = [*heads, *dim];
            match map.len() {
                1 => neighborhood::<1>(ctx, [map, window, stride], sizes)?,
                2 => neighborhood::<2>(ctx, [map, window, stride], sizes)?,
                _ => neighborhood::<3>(ctx, [map, window, stride], sizes)?,
            }
        }
        Problem::Gaunt { lmax, out, .. } => {
            let op = GauntTensorProduct::new(*lmax, *out);
            let own = op.select(caps);
            let all = [Algorithm::Table, Algorithm::Grid, Algorithm::Fourier];
            let others = all.into_iter().filter(|a| *a != own);
            (op.tuning_key(caps), others.map(|algorithm| Tuned::Gaunt { algorithm }).collect())
        }
        Problem::Fft { .. } => return Err("fft has no tiles to choose".into()),
    };
    all.truncate(most);
    Ok((key, all))
}

fn neighborhood<const D: usize>(
    ctx: &Context,
    [map, window, stride]: [&Vec<u32>; 3],
    [heads, dim]: [u32; 2],
) -> Result<(String, Vec<Tuned>), Failure> {
    let axes = |x: &Vec<u32>| -> [u32; D] { std::array::from_fn(|a| x[a]) };
    let op =
        NeighborhoodAttention { stride: axes(stride), ..NeighborhoodAttention::new(axes(window)) };
    let shape = NeighborhoodShape {
        spatial: axes(map),
        heads,
        heads_kv: heads,
        head_dim: dim,
        head_dim_v: dim,
        ..Default::default()
    };
    let all = op.tile_candidates(&ctx.caps, &shape)?;
    let tuned = |t: tilewise::neighborhood::NeighborhoodTiles<D>| Tuned::Neighborhood {
        axis: u32::try_from(t.axis).unwrap_or(u32::MAX),
        tile: t.tile.to_vec(),
        slots: t.slots,
        block_k: t.block_k,
        lanes: t.lanes,
    };
    Ok((op.tuning_key(&ctx.caps, &shape), all.into_iter().skip(1).map(tuned).collect()))
}

/// How far tiles are from others, in doublings.
fn distance(a: &Tiles, b: &Tiles) -> f64 {
    let one = |a: u32, b: u32| (f64::from(a) / f64::from(b)).log2().abs();
    one(a.workgroup, b.workgroup) + one(a.queries, b.queries) + one(a.block_k, b.block_k)
}

fn describe(tuned: &Tuned) -> String {
    match tuned {
        Tuned::Attention { workgroup, queries, block_k } => {
            format!("workgroup {workgroup}, queries {queries}, block_k {block_k}")
        }
        Tuned::LinearAttention { chunk_size } => format!("chunk_size {chunk_size}"),
        Tuned::Neighborhood { axis, tile, slots, block_k, lanes } => {
            format!("tile {tile:?}, axis {axis}, slots {slots}, block_k {block_k}, lanes {lanes}")
        }
        Tuned::Gaunt { algorithm } => format!("algorithm {algorithm:?}").to_lowercase(),
    }
}
