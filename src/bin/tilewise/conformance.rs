//! `tilewise conformance`: runs golden cases and judges the results.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tilewise::conformance::{self, Case, Verdict, case_files};
use tilewise::{Context, DType, Tier};

use crate::{Failure, adapter};

/// Run golden cases and judge the results.
///
/// Prints one line for each failure and, at the end, the reasons for what was skipped and the
/// counts. Exits with an error if a case failed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tilewise conformance --cases tests/golden
  tilewise conformance --cases tests/golden --op sdpa --op merge_partials --dtype f16
  tilewise conformance --cases tests/golden --adapter swiftshader --tier portable
  tilewise conformance --cases tests/golden --out out/results
  python3 tests/golden/verify.py check out/results --cases tests/golden   (an independent judge)")]
pub(crate) struct Args {
    /// Folder of cases, searched with its folders for .safetensors files
    #[arg(long, value_name = "DIR")]
    cases: PathBuf,
    /// Write each result into DIR; with several adapters, into a folder of its own for each
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only cases of this operator (may be repeated)
    #[arg(long = "op", value_name = "OP")]
    ops: Vec<String>,
    /// Only cases of this family
    #[arg(long, value_name = "F")]
    family: Option<String>,
    /// Element type of the tensors
    #[arg(long, default_value = "f32", value_parser = dtypes())]
    dtype: DType,
    /// Kernels to run [default: the best that the adapter can]
    #[arg(long, value_parser = tiers())]
    tier: Option<Tier>,
    /// Lay every tensor in the middle of a larger buffer, N elements from its ends: NaN around the
    /// inputs, a pattern around the outputs that must stay; scratch buffers start as NaN
    #[arg(
        long,
        value_name = "N",
        num_args = 0..=1,
        default_missing_value = "64",
        value_parser = clap::value_parser!(u32).range(1..=4096)
    )]
    poison: Option<u32>,
    /// Write every verdict, with its distances, into FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn dtypes() -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(["f32", "f16", "bf16"]).map(|name| match name.as_str() {
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        _ => DType::F32,
    })
}

fn tiers() -> impl TypedValueParser<Value = Tier> {
    PossibleValuesParser::new(["portable", "subgroup"]).map(|name| match name.as_str() {
        "subgroup" => Tier::Subgroup,
        _ => Tier::Portable,
    })
}

/// Counts of verdicts, and why cases were skipped.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: BTreeMap<String, usize>,
    records: Vec<Value>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        for (why, count) in other.skipped {
            *self.skipped.entry(why).or_default() += count;
        }
        self.records.extend(other.records);
    }
}

/// Runs the cases; false if one failed.
pub(crate) fn run(args: &Args, wanted: Option<&str>) -> Result<bool, Failure> {
    let mut tally = Tally::default();
    let cases = read_cases(args, &mut tally)?;
    let contexts = open(wanted)?;
    if contexts.is_empty() {
        println!("{}", adapter::NO_ADAPTER);
        if !adapter::none_allowed() {
            return Err("no case can run".into());
        }
        tally.skipped.insert("no adapter on this machine".into(), cases.len());
    }
    // drawn on stderr, and only if that is a terminal
    let bar = ProgressBar::new((cases.len() * contexts.len()) as u64).with_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {elapsed}")
            .expect("the template is valid"),
    );
    // most of the time goes into the drivers' compilers: adapters run beside each other
    let tallies = std::thread::scope(|scope| {
        let threads: Vec<_> = contexts
            .iter()
            .map(|ctx| {
                let (cases, bar) = (&cases, &bar);
                let several = contexts.len() > 1;
                scope.spawn(move || {
                    run_on(ctx, args, cases, several, bar).map_err(|e| e.to_string())
                })
            })
            .collect();
        // a panic of an operator is caught where it runs
        threads.into_iter().map(|t| t.join().expect("the thread ends")).collect::<Vec<_>>()
    });
    bar.finish_and_clear();
    for of_adapter in tallies {
        tally.add(of_adapter?);
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&tally.records)?;
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    for (why, count) in &tally.skipped {
        println!("skipped {count}: {why}");
    }
    let skipped: usize = tally.skipped.values().sum();
    println!("{} passed, {} failed, {skipped} skipped", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

/// The cases that are asked for. A file that cannot be read fails by itself; the others still run.
fn read_cases(args: &Args, tally: &mut Tally) -> Result<Vec<Case>, Failure> {
    let files = case_files(&args.cases)?;
    if files.is_empty() {
        return Err(format!("{}: no .safetensors file", args.cases.display()).into());
    }
    let mut cases = Vec::new();
    for path in &files {
        match Case::read(path) {
            Ok(case) => cases.push(case),
            Err(error) => {
                println!("FAIL {error}");
                tally.failed += 1;
                tally.records.push(json!({
                    "case": path, "status": "fail", "detail": error.to_string(),
                }));
            }
        }
    }
    let known = |of: fn(&Case) -> &str| {
        let mut names: Vec<&str> = cases.iter().map(of).collect();
        names.sort_unstable();
        names.dedup();
        names.join(" ")
    };
    for op in &args.ops {
        if !cases.iter().any(|c| c.op == *op) {
            let names = known(|c| &c.op);
            return Err(format!("no case has op {op:?}; there are: {names}").into());
        }
    }
    if let Some(family) = &args.family
        && !cases.iter().any(|c| c.family == *family)
    {
        let names = known(|c| &c.family);
        return Err(format!("no case has family {family:?}; there are: {names}").into());
    }
    cases.retain(|c| {
        (args.ops.is_empty() || args.ops.contains(&c.op))
            && args.family.as_ref().is_none_or(|f| c.family == *f)
    });
    if cases.is_empty() && tally.failed == 0 {
        return Err("no case has both that op and that family".into());
    }
    Ok(cases)
}

fn open(wanted: Option<&str>) -> Result<Vec<Context>, Failure> {
    if wanted != Some("all") {
        return match adapter::open(wanted) {
            Ok(ctx) => Ok(vec![ctx]),
            Err(_) if wanted.is_none() && adapter::open_all().is_empty() => Ok(Vec::new()),
            Err(error) => Err(error),
        };
    }
    let opened: Result<Vec<_>, _> = adapter::open_all().into_iter().collect();
    opened.map_err(|(name, error)| format!("{name}: {error}").into())
}

/// Runs the cases on one adapter of those that are wanted.
fn run_on(
    ctx: &Context,
    args: &Args,
    cases: &[Case],
    several: bool,
    bar: &ProgressBar,
) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    let name = adapter::describe(&ctx.device.adapter_info());
    let dtype = args.dtype;
    let ctx = match args.tier.map_or_else(|| Ok(ctx.clone()), |tier| ctx.with_tier(tier)) {
        Ok(ctx) => ctx,
        // of several adapters, those that cannot run these kernels are passed over by name
        Err(error) if several => {
            tally.skipped.insert(format!("{name}: {error}"), cases.len());
            return Ok(tally);
        }
        Err(error) => return Err(format!("{name}: {error}").into()),
    };
    let tier = ctx.caps.tier.name();
    bar.suspend(|| println!("{name}: {tier} kernels, {dtype}, {} cases", cases.len()));
    let out = match &args.out {
        Some(dir) if several => Some(dir.join(folder_name(&name))),
        other => other.clone(),
    };
    for case in cases {
        bar.set_message(case.name.clone());
        let outcome = conformance::run_guarded(&ctx, case, dtype, args.poison.unwrap_or(0));
        if let Some(dir) = &out {
            conformance::write_result(dir, case, &outcome)?;
        }
        let mut record = json!({
            "case": case.name, "op": case.op, "family": case.family,
            "dtype": dtype.name(), "adapter": name, "tier": tier,
        });
        match conformance::verdict(case, dtype, &outcome) {
            Verdict::Pass(distances) => {
                tally.passed += 1;
                record["status"] = "pass".into();
                record["outputs"] = distances
                    .iter()
                    .map(|(name, d)| json!({ "name": name, "max_abs": d.max_abs, "rel_l2": d.rel_l2 }))
                    .collect();
            }
            Verdict::Fail(why) => {
                tally.failed += 1;
                let on = if several { format!(" on {name}") } else { String::new() };
                bar.suspend(|| println!("FAIL {}{on}: {why}", case.name));
                record["status"] = "fail".into();
                record["detail"] = why.into();
            }
            Verdict::Skip(why) => {
                record["status"] = "skip".into();
                record["detail"] = why.as_str().into();
                *tally.skipped.entry(why).or_default() += 1;
            }
        }
        tally.records.push(record);
        bar.inc(1);
    }
    Ok(tally)
}

/// An adapter's description as a folder name.
fn folder_name(adapter: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' };
    let words: String = adapter.chars().map(plain).collect();
    words.split_whitespace().collect::<Vec<_>>().join("-")
}
