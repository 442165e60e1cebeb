//! Compiles kernels with the compilers of GPUs that are not there, and counts what they made.
//!
//! `scripts/gpu-compile.sh` calls it; docs/GPUS.md says what the figures mean.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use naga::back::hlsl::ShaderModel;

use crate::budget::Budgets;
use crate::card::{CARDS, Card};
use crate::report::Row;
use crate::texts::Text;
use crate::translate::Module;
use crate::worker::{Compilers, Job, Outcome, Worker};

mod amd;
mod budget;
mod card;
mod intel;
mod model;
mod nvidia;
mod program;
mod report;
mod texts;
mod translate;
mod vulkan;
mod worker;

const USAGE: &str = "\
usage: gpu-compile --texts DIR --cards A,B [options]

  --texts DIR        texts, in DIR/CARD/SET/*.wgsl with SET's index.json
  --cards A,B        cards; those without a compiler have their texts written for Metal and DX12 only
  --kernels PREFIX   only kernels whose labels start with it
  --compilers ROOT   the unpacked drivers; without them only naga's writers run
  --stub FILE        the library that answers as Intel's kernel driver
  --work DIR         for files of the run
  --budgets FILE     what kernels may take
  --seconds N        patience with one text [default: 300]
  --jobs N           workers at a time [default: one to a core]
  --json FILE, --markdown FILE, --assembly DIR   what to write
  --date DATE        of the figures";

fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|e| format!("{path}: {e}"))
}

/// The command line.
#[derive(Default)]
struct Args {
    texts: PathBuf,
    cards: Vec<String>,
    kernels: String,
    compilers: Option<PathBuf>,
    stub: Option<PathBuf>,
    work: Option<PathBuf>,
    budgets: Option<PathBuf>,
    seconds: Option<f64>,
    jobs: Option<usize>,
    json: Option<PathBuf>,
    markdown: Option<PathBuf>,
    assembly: Option<PathBuf>,
    date: String,
}

impl Args {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self::default();
        while let Some(name) = words.next() {
            let value = words.next().ok_or(format!("{name} has no value\n{USAGE}"))?;
            let path = || Some(PathBuf::from(&value));
            match name.as_str() {
                "--texts" => args.texts = value.into(),
                "--cards" => args.cards = value.split(',').map(String::from).collect(),
                "--kernels" => args.kernels = value,
                // workers and their loader take no folder but the root for granted
                "--compilers" => args.compilers = Some(absolute(&value)?),
                "--stub" => args.stub = Some(absolute(&value)?),
                "--work" => args.work = Some(absolute(&value)?),
                "--budgets" => args.budgets = path(),
                "--seconds" => {
                    let seconds = value.parse().ok().filter(|s| *s > 0.0 && *s < 1e6);
                    args.seconds = Some(seconds.ok_or("--seconds: expected a number above 0")?);
                }
                "--jobs" => {
                    let jobs = value.parse().ok().filter(|j| *j > 0);
                    args.jobs = Some(jobs.ok_or("--jobs: expected a number above 0")?);
                }
                "--json" => args.json = path(),
                "--markdown" => args.markdown = path(),
                "--assembly" => args.assembly = Some(absolute(&value)?),
                "--date" => args.date = value,
                _ => return Err(format!("unknown option {name}\n{USAGE}")),
            }
        }
        if args.cards.is_empty() {
            return Err(format!("no cards\n{USAGE}"));
        }
        Ok(args)
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    let done = if words.peek().is_some_and(|w| w == "worker") {
        let card = words.nth(1).and_then(|name| Card::find(&name));
        let assembly = words.next().map(PathBuf::from);
        match card {
            Some(card) => worker::run(card, assembly.as_deref()).map(|()| true),
            None => Err("no such card".into()),
        }
    } else {
        Args::parse(words).and_then(|args| run(&args))
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("gpu-compile: {why}");
            ExitCode::from(2)
        }
    }
}

/// What was done, in the words that `scripts/test.sh` counts.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

fn run(args: &Args) -> Result<bool, String> {
    let mut tally = Tally::default();
    let budgets = match &args.budgets {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            Some(Budgets::parse(&text).map_err(|e| format!("{}: {e}", path.display()))?)
        }
        None => None,
    };
    let mut of_cards = Vec::new();
    for card in &args.cards {
        of_cards.push((card.as_str(), texts::read(&args.texts, card, &args.kernels)?));
    }
    if of_cards.iter().all(|(_, texts)| texts.is_empty()) {
        return Err("there is no text to compile".into());
    }
    let work = args.work.clone().unwrap_or_else(std::env::temp_dir);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.jobs.unwrap_or(cores);
    let translated = translate(&of_cards, &work, threads, &mut tally);
    let mut jobs: VecDeque<(&'static Card, Text, Job)> = VecDeque::new();
    let compilers = match &args.compilers {
        None => Err("no --compilers".to_string()),
        Some(root) => Compilers::find(root, args.stub.clone(), work),
    };
    for (name, texts) in &of_cards {
        let lacks = match (Card::find(name), &compilers) {
            (None, _) if *name == "browser" => continue,
            (None, _) => {
                let names: Vec<_> = CARDS.iter().map(|c| c.name).collect();
                return Err(format!("there is no card {name:?}; there are: {}", names.join(" ")));
            }
            (Some(card), Ok(compilers)) => {
                let lacks = compilers.lacks(card);
                if lacks.is_none() {
                    // one that naga refused has failed already
                    let job = |t: &Text| translated.get(&t.name()).and_then(|j| j.clone().ok());
                    jobs.extend(texts.iter().filter_map(|t| Some((card, t.clone(), job(t)?))));
                }
                lacks
            }
            (_, Err(why)) => Some(why.clone()),
        };
        if let Some(why) = lacks {
            println!("skipped {name}: {why}");
            tally.skipped += 1;
        }
    }
    let mut rows = Vec::new();
    let mut drivers = BTreeMap::new();
    let mut devices = BTreeMap::new();
    if let Ok(compilers) = &compilers {
        let compiled = compile(args, compilers, jobs, threads)?;
        rows = compiled.rows;
        for (card, device, driver) in compiled.devices {
            devices.insert(card.to_string(), device);
            drivers.insert(card.to_string(), driver);
        }
        for (card, why) in &compiled.absent {
            println!("skipped {card}: {why}");
            tally.skipped += 1;
        }
    }
    judge(&mut rows, budgets.as_ref(), &drivers, &mut tally);
    for card in CARDS {
        let of_card: Vec<&Row> = rows.iter().filter(|r| r.card.name == card.name).collect();
        if !of_card.is_empty() {
            let told =
                |map: &BTreeMap<String, String>| map.get(card.name).cloned().unwrap_or_default();
            print!("{}", report::table(card, &told(&devices), &told(&drivers), &of_card));
        }
    }
    println!();
    let mut others = Vec::new();
    for row in &rows {
        let (kernel, problem) = (row.text.kernel(), row.text.problem());
        let name = format!("{} {kernel} [{problem}]", row.card.name);
        if let Err(why) = &row.figures {
            println!("FAIL {name}: {why}");
        }
        // what rules go by
        if !row.breaches.is_empty() {
            println!("{}", row.text.label);
        }
        for breach in &row.breaches {
            // of another release, the figures are shown and judge nothing
            match &budgets {
                Some(b) if !b.are_of(drivers.get(row.card.name).map_or("", String::as_str)) => {
                    others.push(format!("{name}: {breach}"));
                }
                _ => println!("FAIL {name}: {breach}"),
            }
        }
    }
    if let (Some(budgets), false) = (&budgets, others.is_empty()) {
        println!(
            "skipped {}: budgets are of Mesa {}, not of this driver",
            others.len(),
            budgets.mesa()
        );
        for other in others {
            println!("  {other}");
        }
    }
    let write = |path: &Path, text: &str| {
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
    };
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report::json(&rows, &drivers));
        write(path, &(text.map_err(|e| e.to_string())? + "\n"))?;
    }
    if let Some(path) = &args.markdown {
        let old = std::fs::read_to_string(path).unwrap_or_default();
        let figures = report::markdown(&rows, &drivers, &args.date);
        let new = report::into_document(&old, &figures);
        write(path, &new.map_err(|e| format!("{}: {e}", path.display()))?)?;
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    Ok(tally.failed == 0)
}

/// Reads every text once and writes it in the languages of Vulkan, Metal and DirectX: by naga, as wgpu
/// would. What drivers are to compile, by the texts' names.
fn translate(
    of_cards: &[(&str, Vec<Text>)],
    work: &Path,
    threads: usize,
    tally: &mut Tally,
) -> BTreeMap<String, Result<Job, String>> {
    let mut seen = BTreeMap::new();
    for text in of_cards.iter().flat_map(|(_, texts)| texts) {
        seen.entry(text.name()).or_insert(text);
    }
    let todo: Mutex<VecDeque<(&String, &&Text)>> = Mutex::new(seen.iter().collect());
    let done = Mutex::new((BTreeMap::new(), BTreeMap::<&str, usize>::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = lock(&todo).pop_front();
                    let Some((name, text)) = next else { break };
                    let (job, written) = translate_one(text, name, work);
                    let mut done = lock(&done);
                    for language in written {
                        *done.1.entry(language).or_default() += 1;
                    }
                    done.0.insert(name.clone(), job);
                }
            });
        }
    });
    let (jobs, written) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (name, job) in &jobs {
        match job {
            Ok(_) => tally.passed += 1,
            Err(why) => {
                let (kernel, problem) =
                    seen.get(name).map_or(("", ""), |t| (t.kernel(), t.problem()));
                println!("FAIL {name} {kernel} [{problem}]: {why}");
                tally.failed += 1;
            }
        }
    }
    let counts: Vec<String> = written.iter().map(|(name, n)| format!("{n} as {name}")).collect();
    println!("{} texts through naga: {}", jobs.len(), counts.join(", "));
    jobs
}

/// A text in every language; the first that fails is the text's failure.
fn translate_one(text: &Text, name: &str, work: &Path) -> (Result<Job, String>, Vec<&'static str>) {
    let mut written = Vec::new();
    let mut all = || -> Result<Job, String> {
        let wgsl = std::fs::read_to_string(&text.path)
            .map_err(|e| format!("{}: {e}", text.path.display()))?;
        let module = Module::read(&wgsl).map_err(|e| format!("naga: {e}"))?;
        let words = module.spirv().map_err(|e| format!("SPIR-V: {e}"))?;
        written.push("SPIR-V");
        let spirv = work.join(format!("{name}.spv"));
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        std::fs::write(&spirv, bytes).map_err(|e| format!("{}: {e}", spirv.display()))?;
        for (language, version) in [("Metal 2.1", (2, 1)), ("Metal 3.1", (3, 1))] {
            module.metal(version).map_err(|e| format!("{language}: {e}"))?;
            written.push(language);
        }
        // shader model 5.1 has neither waves nor f16, and 6.0 no f16
        if !module.subgroups && !module.f16 {
            module.directx(ShaderModel::V5_1).map_err(|e| format!("HLSL 5.1: {e}"))?;
            written.push("HLSL 5.1");
        }
        let model = if module.f16 { ShaderModel::V6_2 } else { ShaderModel::V6_0 };
        module.directx(model).map_err(|e| format!("HLSL 6: {e}"))?;
        written.push("HLSL 6");
        Ok(Job { spirv, name: name.into(), kernel: module.kernel() })
    };
    let job = all();
    (job, written)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rows, devices and their drivers, and cards that are not offered.
struct Done {
    rows: Vec<Row>,
    devices: Vec<(&'static str, String, String)>,
    absent: BTreeMap<&'static str, String>,
}

/// Compiles all, by several workers beside each other.
fn compile(
    args: &Args,
    compilers: &Compilers,
    jobs: VecDeque<(&'static Card, Text, Job)>,
    threads: usize,
) -> Result<Done, String> {
    if let Some(dir) = &args.assembly {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    let patience = Duration::from_secs_f64(args.seconds.unwrap_or(300.0));
    let order: Vec<(&str, String)> = jobs.iter().map(|(c, t, _)| (c.name, t.name())).collect();
    let jobs = Mutex::new(jobs);
    let done = Mutex::new(Done { rows: Vec::new(), devices: Vec::new(), absent: BTreeMap::new() });
    let work = |number: usize| {
        let mut worker: Option<(&'static str, Worker)> = None;
        loop {
            let next = {
                let mut jobs = lock(&jobs);
                // one of the card that is open, if there is any left
                let open = worker.as_ref().map(|(name, _)| *name);
                let same = jobs.iter().position(|(card, ..)| Some(card.name) == open);
                jobs.remove(same.unwrap_or(0))
            };
            let Some((card, text, job)) = next else { break };
            let started = Instant::now();
            let opened = |device: &str, driver: &str| {
                lock(&done).devices.push((card.name, device.into(), driver.into()));
            };
            let how = (compilers, args.assembly.as_deref(), number, patience);
            let figures = match on_worker(&mut worker, how, card, &job, &opened) {
                Outcome::Figures(figures) => Ok(figures),
                Outcome::Failed(why) => Err(why),
                Outcome::Absent(why) => {
                    let mut done = lock(&done);
                    // if it was open before, something broke it
                    if !done.devices.iter().any(|(name, ..)| *name == card.name) {
                        done.absent.insert(card.name, why);
                        lock(&jobs).retain(|(c, ..)| c.name != card.name);
                        continue;
                    }
                    Err(why)
                }
            };
            let seconds = started.elapsed().as_secs_f64();
            lock(&done).rows.push(Row { card, text, figures, breaches: Vec::new(), seconds });
        }
    };
    std::thread::scope(|scope| {
        for number in 0..threads {
            let work = &work;
            scope.spawn(move || work(number));
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let place = |row: &Row| {
        let name = row.text.name();
        order.iter().position(|(card, of)| *card == row.card.name && *of == name)
    };
    done.rows.sort_by_cached_key(place);
    Ok(done)
}

/// Compiles one text on the worker that is open, or on a new one.
fn on_worker(
    worker: &mut Option<(&'static str, Worker)>,
    (compilers, assembly, number, patience): (&Compilers, Option<&Path>, usize, Duration),
    card: &'static Card,
    job: &Job,
    opened: &dyn Fn(&str, &str),
) -> Outcome {
    let mut open = match worker.take() {
        Some((name, open)) if name == card.name => open,
        other => {
            drop(other);
            // opening takes a second; a driver that hangs there is not to be waited for either
            let start = patience.max(Duration::from_secs(30));
            match Worker::start(compilers, card, assembly, number, start) {
                Ok(open) => {
                    opened(&open.device, &open.driver);
                    open
                }
                Err(outcome) => return outcome,
            }
        }
    };
    match open.compile(job, patience) {
        Ok(outcome) => {
            *worker = Some((card.name, open));
            outcome
        }
        // it crashed or hangs: the next text gets another
        Err(why) => Outcome::Failed(why),
    }
}

/// Holds the figures against the budgets.
fn judge(
    rows: &mut [Row],
    budgets: Option<&Budgets>,
    drivers: &BTreeMap<String, String>,
    tally: &mut Tally,
) {
    for row in rows {
        let Ok(figures) = &row.figures else {
            tally.failed += 1;
            continue;
        };
        let mut binding = true;
        if let Some(budgets) = budgets {
            let found = budgets.check(&row.text.label, row.card.name, figures);
            row.breaches = found.into_iter().map(|b| b.0).collect();
            binding = budgets.are_of(drivers.get(row.card.name).map_or("", String::as_str));
        }
        match (row.breaches.is_empty(), binding) {
            (true, _) => tally.passed += 1,
            (false, true) => tally.failed += 1,
            (false, false) => tally.skipped += 1,
        }
    }
}
