//! `tilewise conformance`: runs golden cases and judges the results.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tilewise::conformance::{self, Case, Stop, Verdict, case_files};
use tilewise::{Card, Context, DType, Tier};

use crate::expected::{self, Known};
use crate::{Failure, adapter, adapter::Target, report, texts::Texts};

/// Run golden cases and judge the results.
///
/// Prints one line for each failure and, at the end, the worst error of each operator as a part of
/// its tolerance, the reasons for what was skipped, and the counts. Exits with an error if a case
/// failed, or passed although a failure was expected.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tilewise conformance --cases tests/golden
  tilewise conformance --cases tests/golden --op sdpa --op merge_partials --dtype f16
  tilewise conformance --cases tests/golden --adapter swiftshader --tier portable
  tilewise conformance --cases tests/golden --out out/results
  python3 tests/golden/verify.py check out/results --cases tests/golden   (an independent judge)
  tilewise conformance --random 20 --seed 7 --poison
  tilewise conformance --cases tests/golden --as rdna3 --dump-wgsl texts
  tilewise conformance --cases tests/golden --adapter all --report conformance.html")]
pub(crate) struct Args {
    /// Folder of cases, searched with its folders for .safetensors files
    #[arg(long, value_name = "DIR", required_unless_present = "random")]
    cases: Option<PathBuf>,
    /// N random problems for each operator, judged by the f64 references of this crate
    #[arg(long, value_name = "N")]
    random: Option<u64>,
    /// Seed of the first random problem; the next has the next seed
    #[arg(long, default_value_t = 1, requires = "random")]
    seed: u64,
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
    /// Print every case, with its error as a part of the tolerance
    #[arg(long)]
    verbose: bool,
    /// Write a report with every verdict into FILE: .html or .json (may be repeated)
    #[arg(long = "report", value_name = "FILE", value_parser = report::file)]
    reports: Vec<PathBuf>,
    /// Write the WGSL text of every kernel that ran into DIR, each text once
    #[arg(long, value_name = "DIR")]
    dump_wgsl: Option<PathBuf>,
    /// Run nothing: plan as for this card and write the texts that it would get
    #[arg(long = "as", value_name = "CARD", value_parser = adapter::card, requires = "dump_wgsl",
        conflicts_with_all = ["adapter", "class", "out", "poison", "reports", "json"])]
    card: Option<&'static Card>,
    /// Failures that are known, by driver, with their reasons [default: a list in the program]
    #[arg(long, value_name = "FILE")]
    expected_failures: Option<PathBuf>,
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
    /// Expected failures that came.
    expected: BTreeMap<String, usize>,
    records: Vec<Value>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        for (why, count) in other.skipped {
            *self.skipped.entry(why).or_default() += count;
        }
        for (why, count) in other.expected {
            *self.expected.entry(why).or_default() += count;
        }
        self.records.extend(other.records);
    }
}

/// Runs the cases; false if one failed.
pub(crate) fn run(args: &Args, target: Target<'_>) -> Result<bool, Failure> {
    let mut tally = Tally::default();
    let known = expected::read(args.expected_failures.as_deref())?;
    let cases = read_cases(args, &mut tally)?;
    if let Some(card) = args.card {
        return texts(card, args, &cases);
    }
    let contexts = open(target)?;
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
                let (cases, known, bar) = (&cases, &known, &bar);
                let several = contexts.len() > 1;
                scope.spawn(move || {
                    run_on(ctx, args, cases, known, several, bar).map_err(|e| e.to_string())
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
    let worst = report::worst(&tally.records);
    print!("{}", report::table(&worst));
    for (why, count) in &tally.expected {
        println!("expected failure {count}: {why}");
    }
    for (why, count) in &tally.skipped {
        println!("skipped {count}: {why}");
    }
    // counted as skipped: they say nothing of the kernels
    let skipped: usize = tally.skipped.values().chain(tally.expected.values()).sum();
    let counts = [tally.passed, tally.failed, skipped];
    for path in &args.reports {
        report::write(path, counts, &worst, &tally.records)?;
    }
    println!("{} passed, {} failed, {skipped} skipped", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

/// The cases that are asked for. A file that cannot be read fails by itself; the others still run.
fn read_cases(args: &Args, tally: &mut Tally) -> Result<Vec<Case>, Failure> {
    let files = match &args.cases {
        None => Vec::new(),
        Some(dir) => match case_files(dir)? {
            files if files.is_empty() => {
                return Err(format!("{}: no .safetensors file", dir.display()).into());
            }
            files => files,
        },
    };
    let mut cases = random_cases(args);
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

/// The random problems that are asked for.
fn random_cases(args: &Args) -> Vec<Case> {
    let seeds = (0..args.random.unwrap_or(0)).map(|i| args.seed.wrapping_add(i));
    let seeds: Vec<u64> = seeds.collect();
    conformance::random_ops()
        .filter(|op| args.ops.is_empty() || args.ops.iter().any(|o| o == op))
        .flat_map(|op| seeds.iter().filter_map(move |&seed| conformance::random_case(op, seed)))
        .collect()
}

/// The command that runs a random case alone, on the adapter of that name.
fn reproducer(args: &Args, case: &Case, adapter: &str) -> Option<String> {
    let seed = case.name.strip_prefix("random_")?.rsplit('_').next()?;
    let poison = args.poison.map_or_else(String::new, |n| format!(" --poison={n}"));
    let tier = args.tier.map_or_else(String::new, |t| format!(" --tier {}", t.name()));
    Some(format!(
        "tilewise conformance --random 1 --seed {seed} --op {} --dtype {}{tier}{poison} --adapter \"{adapter}\"",
        case.op,
        args.dtype.name(),
    ))
}

fn open(target: Target<'_>) -> Result<Vec<Context>, Failure> {
    if target.adapter != Some("all") {
        return match target.open() {
            Ok(ctx) => Ok(vec![ctx]),
            Err(_) if target.adapter.is_none() && target.open_all().is_empty() => Ok(Vec::new()),
            Err(error) => Err(error),
        };
    }
    let opened: Result<Vec<_>, _> = target.open_all().into_iter().collect();
    opened.map_err(|(name, error)| format!("{name}: {error}").into())
}

/// Kernels held on one adapter: more than any problem needs. Software drivers take tens of megabytes
/// for each.
const KERNELS: usize = 32;

/// Writes the texts that a card would get for the cases, whose results are of no device.
fn texts(card: &Card, args: &Args, cases: &[Case]) -> Result<bool, Failure> {
    let dir = args.dump_wgsl.as_deref().ok_or("--as needs --dump-wgsl")?;
    let mut texts = Texts::open(dir)?;
    let mut failed = 0;
    for case in cases {
        // a device for each: what it compiled is of this case
        let ctx = adapter::imitated(card)?;
        let ctx = args.tier.map_or_else(|| Ok(ctx.clone()), |tier| ctx.with_tier(tier))?;
        if let Err(Stop::Failed(why)) = conformance::run(&ctx, case, args.dtype) {
            println!("FAIL {}: {why}", case.name);
            failed += 1;
        }
        texts.add(&ctx, Some(&case.name))?;
    }
    println!("{}: {} texts in {}", card.title, texts.finish()?, dir.display());
    Ok(failed == 0)
}

/// Held while texts are written.
static DUMPING: Mutex<()> = Mutex::new(());

/// Runs the cases on one adapter of those that are wanted.
fn run_on(
    ctx: &Context,
    args: &Args,
    cases: &[Case],
    known: &[Known],
    several: bool,
    bar: &ProgressBar,
) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    let info = ctx.device.adapter_info();
    let name = adapter::describe(&info);
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
    // of problems that are over none is needed any more
    let ctx = ctx.with_kernel_limit(KERNELS);
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
        let expected = known.iter().find(|k| k.matches(&case.name, &name, dtype.name()));
        let mut verdict = conformance::verdict(case, dtype, &outcome);
        if let (Some(expected), Verdict::Pass(_)) = (expected, &verdict) {
            verdict = Verdict::Fail(format!(
                "passed, although a failure is expected here: {}",
                expected.reason
            ));
        } else if let (Some(expected), Verdict::Fail(why)) = (expected, &verdict) {
            record["status"] = "expected failure".into();
            record["detail"] = format!("{}: {why}", expected.reason).into();
            *tally.expected.entry(expected.reason.clone()).or_default() += 1;
            tally.records.push(record);
            bar.inc(1);
            continue;
        }
        let said = match verdict {
            Verdict::Pass(distances) => {
                tally.passed += 1;
                let share = distances.iter().map(|(_, d)| d.of_tolerance).fold(0.0, f64::max);
                record["status"] = "pass".into();
                record["of_tolerance"] = share.into();
                record["outputs"] = distances
                    .iter()
                    .map(|(name, d)| {
                        json!({
                            "name": name, "max_abs": d.max_abs, "rel_l2": d.rel_l2,
                            "of_tolerance": d.of_tolerance,
                        })
                    })
                    .collect();
                format!("pass, {share:.4} of the tolerance")
            }
            Verdict::Fail(why) => {
                tally.failed += 1;
                let on = if several { format!(" on {name}") } else { String::new() };
                bar.suspend(|| {
                    println!("FAIL {}{on}: {why}", case.name);
                    if let Some(command) = reproducer(args, case, &info.name) {
                        println!("  {command}");
                    }
                });
                record["status"] = "fail".into();
                record["detail"] = why.into();
                "FAIL".into()
            }
            Verdict::Skip(why) => {
                record["status"] = "skip".into();
                record["detail"] = why.as_str().into();
                let said = format!("skipped, {why}");
                *tally.skipped.entry(why).or_default() += 1;
                said
            }
        };
        if args.verbose {
            bar.suspend(|| println!("{}: {said}", case.name));
        }
        tally.records.push(record);
        bar.inc(1);
    }
    if let Some(dir) = &args.dump_wgsl {
        // adapters run beside each other, and share the folder
        let _one = DUMPING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut texts = Texts::open(dir)?;
        texts.add(&ctx, None)?;
        texts.finish()?;
    }
    Ok(tally)
}

/// An adapter's description as a folder name.
fn folder_name(adapter: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' };
    let words: String = adapter.chars().map(plain).collect();
    words.split_whitespace().collect::<Vec<_>>().join("-")
}
