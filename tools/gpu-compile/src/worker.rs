//! Processes that compile: a driver takes its card from the environment, may crash and may not end.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::card::{Card, Vendor};
use crate::model::{self, Figures};
use crate::program::{Mix, Part};
use crate::translate::Kernel;
use crate::vulkan::{Device, Unopened};
use crate::{amd, intel, nvidia};

/// Where the compilers are.
pub(crate) struct Compilers {
    /// Folder of Mesa's and all other libraries, with the loader of programs that goes with them.
    libraries: PathBuf,
    /// The library that answers as Intel's kernel driver.
    stub: Option<PathBuf>,
    /// Folder for the files of this run.
    work: PathBuf,
}

/// The loader of programs: the libraries want a C library as new as they are.
const LOADER: &str = "ld-linux-x86-64.so.2";

impl Compilers {
    /// Those below `root`; what is missing, if they are not there.
    pub(crate) fn find(root: &Path, stub: Option<PathBuf>, work: PathBuf) -> Result<Self, String> {
        let libraries = root.join("sys/usr/lib/x86_64-linux-gnu");
        for file in [LOADER, "libvulkan.so.1", "libc.so.6"] {
            if !libraries.join(file).exists() {
                return Err(format!("no {file} in {}", libraries.display()));
            }
        }
        let said = |e: std::io::Error| format!("{}: {e}", work.display());
        // written once, before any worker reads them
        for vendor in [Vendor::Amd, Vendor::Nvidia, Vendor::Intel] {
            let driver = vendor.driver();
            let text = json!({
                "file_format_version": "1.0.1",
                "ICD": {"api_version": "1.4.0", "library_path": driver},
            });
            std::fs::write(work.join(format!("{driver}.json")), text.to_string()).map_err(said)?;
        }
        Ok(Self { libraries, stub, work })
    }

    /// What a card's compiler lacks here.
    pub(crate) fn lacks(&self, card: &Card) -> Option<String> {
        let files = [Some(card.vendor.driver()), card.vendor.shim()];
        for file in files.into_iter().flatten() {
            if !self.libraries.join(file).exists() {
                return Some(format!("no {file} in {}", self.libraries.display()));
            }
        }
        match &self.stub {
            None if card.vendor == Vendor::Intel => Some(
                "no stub of Intel's kernel driver (it needs a C compiler and DRM headers)".into(),
            ),
            Some(path) if card.vendor == Vendor::Intel && !path.exists() => {
                Some(format!("no {}", path.display()))
            }
            _ => None,
        }
    }

    /// The command that starts this program again as a worker for a card.
    fn command(&self, card: &Card, assembly: Option<&Path>) -> Result<Command, String> {
        let said = |e: std::io::Error| e.to_string();
        let manifest = self.work.join(format!("{}.json", card.vendor.driver()));
        let shim = match card.vendor.shim() {
            Some(shim) => self.libraries.join(shim),
            None => self.stub.clone().ok_or("no stub")?,
        };
        let mut command = Command::new(self.libraries.join(LOADER));
        command.arg("--library-path").arg(&self.libraries).arg("--preload").arg(shim);
        command.arg(std::env::current_exe().map_err(said)?).arg("worker").arg(card.name);
        if let Some(dir) = assembly {
            command.arg(dir);
        }
        for variable in [
            "LD_LIBRARY_PATH",
            "LD_PRELOAD",
            "VK_ICD_FILENAMES",
            "VK_ADD_DRIVER_FILES",
            "VK_INSTANCE_LAYERS",
        ] {
            command.env_remove(variable);
        }
        command
            .env(card.vendor.variable(), card.chip)
            .env("VK_DRIVER_FILES", manifest)
            .env("VK_LOADER_LAYERS_DISABLE", "~all~")
            .env("MESA_SHADER_CACHE_DISABLE", "1")
            .env("XDG_RUNTIME_DIR", &self.work);
        if matches!(card.name, "hopper") {
            // NVK does not promise to work there; it does compile
            command.env("NVK_I_WANT_A_BROKEN_VULKAN_DRIVER", "1");
        }
        Ok(command)
    }
}

/// A text that naga has translated.
#[derive(Clone)]
pub(crate) struct Job {
    /// File of the SPIR-V.
    pub(crate) spirv: PathBuf,
    /// Of the text, for files.
    pub(crate) name: String,
    pub(crate) kernel: Kernel,
}

/// How a text ended.
pub(crate) enum Outcome {
    Figures(Box<Figures>),
    /// A failure, in words.
    Failed(String),
    /// The driver does not offer the card, or does not start here.
    Absent(String),
}

/// A worker that is running.
pub(crate) struct Worker {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    errors: PathBuf,
    /// The device, and its driver's release.
    pub(crate) device: String,
    pub(crate) driver: String,
}

impl Worker {
    /// Starts one and waits until its device is open.
    pub(crate) fn start(
        compilers: &Compilers,
        card: &Card,
        assembly: Option<&Path>,
        number: usize,
        patience: Duration,
    ) -> Result<Self, Outcome> {
        let failed = |why: String| Outcome::Failed(format!("the driver does not start: {why}"));
        let errors = compilers.work.join(format!("worker-{number}.err"));
        let log = File::create(&errors).map_err(|e| failed(e.to_string()))?;
        let mut child = compilers
            .command(card, assembly)
            .map_err(failed)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|e| failed(e.to_string()))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("no pipe to the worker".into()));
        };
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // a driver may print too
                if line.starts_with('{') && send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut worker =
            Self { child, stdin, lines, errors, device: String::new(), driver: String::new() };
        let hello = worker.answer(patience).map_err(|why| match why.contains("GLIBC") {
            // this program was built against a C library newer than the drivers'
            true => Outcome::Absent(format!("the drivers are too old for this machine: {why}")),
            false => failed(why),
        })?;
        if let Some(why) = hello["absent"].as_str() {
            return Err(Outcome::Absent(why.into()));
        }
        if let Some(why) = hello["broken"].as_str() {
            return Err(failed(why.into()));
        }
        worker.device = hello["device"].as_str().unwrap_or("").into();
        worker.driver = hello["driver"].as_str().unwrap_or("").into();
        Ok(worker)
    }

    fn answer(&mut self, patience: Duration) -> Result<Value, String> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => serde_json::from_str(&line).map_err(|e| e.to_string()),
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("no answer within {} s", patience.as_secs_f64()))
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
                let said = std::fs::read_to_string(&self.errors).unwrap_or_default();
                let last = said.lines().last().unwrap_or("it said nothing");
                Err(format!("the compiler crashed ({status}): {last}"))
            }
        }
    }

    /// Compiles a text. After a failure without an answer the worker is not to be used again.
    pub(crate) fn compile(&mut self, job: &Job, patience: Duration) -> Result<Outcome, String> {
        let line = json!({"spirv": job.spirv, "name": job.name, "kernel": job.kernel.to_json()});
        // a worker that is gone shows when it does not answer
        let _ = writeln!(self.stdin, "{line}");
        let _ = self.stdin.flush();
        let answer = self.answer(patience)?;
        Ok(match answer["failed"].as_str() {
            Some(why) => Outcome::Failed(why.into()),
            None => Outcome::Figures(Box::new(from_json(&answer))),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's own life: a line of JSON for each text on standard input, one back on standard output.
pub(crate) fn run(card: &Card, assembly: Option<&Path>) -> Result<(), String> {
    let say = |value: Value| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{value}").and_then(|()| out.flush()).map_err(|e| e.to_string())
    };
    let device = match Device::open() {
        Ok(device) => device,
        Err(Unopened::Absent(why)) => return say(json!({"absent": why})),
        Err(Unopened::Broken(why)) => return say(json!({"broken": why})),
    };
    say(json!({"device": device.name, "driver": device.driver}))?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        say(match one(&device, card, &line, assembly) {
            Ok(figures) => to_json(&figures),
            Err(why) => json!({"failed": why}),
        })?;
    }
    Ok(())
}

/// Compiles what a line names: `{"spirv": file, "name": text, "kernel": {..}}`.
fn one(
    device: &Device,
    card: &Card,
    line: &str,
    assembly: Option<&Path>,
) -> Result<Figures, String> {
    let job: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let kernel = Kernel::from_json(&job["kernel"]).ok_or("no kernel in the line")?;
    let path = job["spirv"].as_str().ok_or("no file in the line")?;
    let bytes = std::fs::read(path).map_err(|e| format!("{path}: {e}"))?;
    let words: Vec<u32> =
        bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let compiled = device.compile(&kernel, &words)?;
    if let Some(dir) = assembly {
        let file = dir.join(format!("{}.{}.s", job["name"].as_str().unwrap_or(""), card.name));
        std::fs::write(&file, &compiled.assembly)
            .map_err(|e| format!("{}: {e}", file.display()))?;
    }
    let program = match card.vendor {
        Vendor::Amd => amd::read(&compiled.assembly),
        Vendor::Nvidia => nvidia::read(&compiled.assembly),
        Vendor::Intel => intel::read(&compiled.assembly),
    };
    if program.blocks.is_empty() {
        return Err("the driver's assembly has no instruction that this program knows".into());
    }
    let hot = program.hot(compiled.subgroup, card.lanes);
    Ok(model::figures(card, &compiled, hot, &kernel))
}

/// The fields of a mix, by name.
fn fields(mix: &mut Mix) -> [(&'static str, &mut f64); 16] {
    [
        ("issued", &mut mix.issued),
        ("vector", &mut mix.vector),
        ("paired", &mut mix.paired),
        ("multiply_adds", &mut mix.fma),
        ("matrix", &mut mix.matrix),
        ("transcendental", &mut mix.transcendental),
        ("broadcasts", &mut mix.broadcasts),
        ("shuffles", &mut mix.shuffles),
        ("shared", &mut mix.shared),
        ("shared_words", &mut mix.shared_words),
        ("global", &mut mix.global),
        ("global_words", &mut mix.global_words),
        ("scratch", &mut mix.scratch),
        ("scratch_words", &mut mix.scratch_words),
        ("barriers", &mut mix.barriers),
        ("steps", &mut mix.steps),
    ]
}

/// What can bind, for texts that come back over a pipe.
const UNITS: [&str; 6] = ["vector", "workgroup memory", "cache", "issue", "shuffles", "memory"];

/// Figures as JSON; also what `--json` writes of a kernel.
pub(crate) fn to_json(figures: &Figures) -> Value {
    let mut mix = figures.mix.clone();
    let hot: serde_json::Map<String, Value> =
        fields(&mut mix).map(|(name, value)| (name.into(), json!(*value))).into_iter().collect();
    json!({
        "subgroup": figures.subgroup,
        "registers": figures.registers,
        "spills": figures.spills,
        "fills": figures.fills,
        "scalar_spills": figures.scalar_spills,
        "workgroup_memory": figures.workgroup_memory,
        "waves": figures.waves,
        "code": figures.code,
        "loops": match figures.part { Part::Loops(n) => n, Part::Whole => 0 },
        "hot": hot,
        "share": figures.share,
        "bound": figures.bound.map(|b| b.0),
        "bound_by": figures.bound.map(|b| b.1),
    })
}

fn from_json(value: &Value) -> Figures {
    let number = |name: &str| value[name].as_u64().unwrap_or(0);
    let small = |name: &str| u32::try_from(number(name)).unwrap_or(0);
    let mut mix = Mix::default();
    for (name, field) in fields(&mut mix) {
        *field = value["hot"][name].as_f64().unwrap_or(0.0);
    }
    let by = value["bound_by"].as_str().unwrap_or("");
    let by = UNITS.into_iter().find(|u| *u == by).unwrap_or("");
    Figures {
        subgroup: small("subgroup"),
        registers: number("registers"),
        spills: number("spills"),
        fills: value["fills"].as_u64(),
        scalar_spills: number("scalar_spills"),
        workgroup_memory: small("workgroup_memory"),
        waves: value["waves"].as_u64(),
        code: number("code"),
        part: match small("loops") {
            0 => Part::Whole,
            n => Part::Loops(n as usize),
        },
        mix,
        share: value["share"].as_f64(),
        bound: value["bound"].as_f64().map(|b| (b, by)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_through_a_pipe_as_they_are() {
        let mut mix = Mix::default();
        for (i, (_, field)) in fields(&mut mix).into_iter().enumerate() {
            *field = i as f64 + 0.5;
        }
        let figures = Figures {
            subgroup: 64,
            registers: 168,
            spills: 24,
            fills: Some(3),
            scalar_spills: 2,
            workgroup_memory: 16384,
            waves: None,
            code: 7000,
            part: Part::Loops(2),
            mix,
            share: Some(0.45),
            bound: Some((0.29, "shuffles")),
        };
        assert_eq!(from_json(&to_json(&figures)), figures);
    }

    #[test]
    fn missing_compilers_are_named() {
        let said = Compilers::find(Path::new("/no/such/place"), None, "/tmp".into()).err().unwrap();
        assert!(said.contains("ld-linux-x86-64.so.2"), "{said}");
    }
}
