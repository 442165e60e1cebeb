//! The `tilewise` program: looks at devices, runs golden cases, shows what the crate does, times it.

mod adapter;
mod bench;
mod conformance;
mod demo;
mod devices;
mod expected;
mod inspect;
mod report;
mod simulate;
mod texts;
mod tune;
mod tuning;

use std::process::ExitCode;

use clap::{
    Parser, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use tilewise::DeviceClass;

/// What ends a command early; printed for a person.
type Failure = Box<dyn std::error::Error>;

/// Portable GPU compute kernels: look at devices, run golden cases, see a demonstration.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  tilewise devices
  tilewise demo --out out
  tilewise conformance --cases tests/golden --op sdpa
  tilewise conformance --cases tests/golden --adapter all --dtype f16
  tilewise bench all --quick --plot report.html
  tilewise tune
  tilewise simulate na --map 56x56 --kernel 7x7
  tilewise inspect attention --shape seq=4096,dim=128 --as ada

WGPU_BACKEND (vulkan, metal, dx12, gl) and WGPU_ADAPTER_NAME choose among adapters as in any wgpu
program; RUST_LOG=info shows more."
)]
struct Cli {
    /// Adapter whose backend is NAME, or whose name or driver contains it, in any case [default:
    /// the high-performance one]
    #[arg(long, global = true, value_name = "NAME")]
    adapter: Option<String>,
    /// Plan as for a device of this kind, whatever it is: gpu or cpu
    #[arg(long, global = true, value_name = "CLASS",
        value_parser = PossibleValuesParser::new(["gpu", "cpu"])
            .map(|t| t.parse::<DeviceClass>().expect("one of the listed")))]
    class: Option<DeviceClass>,
    /// For bench and demo, tiles that tilewise tune found: its file, or off [default: this adapter's, if there is one]
    #[arg(long, global = true, value_name = "FILE|off")]
    tuning: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Devices(devices::Args),
    Demo(demo::Args),
    Conformance(conformance::Args),
    Bench(bench::Args),
    Tune(tune::Args),
    Simulate(simulate::Args),
    Inspect(inspect::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // without a display, EGL complains of the missing folder on standard error, past every logger
    if cfg!(unix) && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread exists yet.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
    // a machine without a display tells so through EGL at every start
    let filter =
        env_logger::Env::default().default_filter_or("error,tilewise=warn,wgpu_hal::gles::egl=off");
    env_logger::Builder::from_env(filter).init();
    let target = adapter::Target { adapter: cli.adapter.as_deref(), class: cli.class };
    let tuning = cli.tuning.as_deref();
    let result = match &cli.command {
        Command::Devices(args) => devices::run(args, target),
        Command::Demo(args) => demo::run(args, target, tuning),
        Command::Conformance(args) => conformance::run(args, target),
        Command::Bench(args) => bench::run(args, target, tuning),
        Command::Tune(args) => tune::run(args, target),
        Command::Simulate(args) => simulate::run(args, target),
        Command::Inspect(args) => inspect::run(args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
