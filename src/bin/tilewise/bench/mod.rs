//! `tilewise bench`: the speed of a family of kernels on this device.

mod gaunt;
mod gaunt_cases;

use crate::Failure;

/// Time a family of kernels on this device, every route of it side by side.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tilewise bench gaunt
  tilewise bench gaunt --lmax 10 --products 1024 --json gaunt.json
  tilewise bench gaunt --plot gaunt.svg")]
pub(crate) struct Args {
    #[command(subcommand)]
    family: Family,
}

#[derive(clap::Subcommand)]
enum Family {
    Gaunt(gaunt::Args),
}

/// Runs the family's bench.
pub(crate) fn run(args: &Args, wanted: Option<&str>) -> Result<bool, Failure> {
    match &args.family {
        Family::Gaunt(args) => gaunt::run(args, wanted),
    }
}
