//! `tilewise inspect`: the kernels that a plan has on cards that need not be there.

use std::path::Path;
use std::process::Command;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use tilewise::{Card, DType, Tier, wgpu::naga};

use crate::bench::problem::{Case, Op};
use crate::{Failure, adapter, bench, texts::Texts};

/// Where the compilers' report is, in the crate's repository.
const SCRIPT: &str = "scripts/gpu-compile.sh";

/// Show the kernels that a problem gets on graphics cards, without having one.
///
/// For each card: the kernels of a plan, with their invocations, workgroup memory and bindings. Within the
/// crate's repository the compilers of Mesa's drivers for these cards then tell registers, spills and the
/// instructions of the hot loop (scripts/gpu-compile.sh, which unpacks them at its first run; docs/GPUS.md
/// says what its figures mean).
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tilewise inspect attention --shape seq=4096,heads=32,heads_kv=8,dim=128 --dtype f16
  tilewise inspect attention --shape seq=1,keys=4096,heads=32,heads_kv=8,dim=128 --as ada,hopper
  tilewise inspect gaunt --shape lmax=6 --as browser --no-compilers

Keys of --shape are those of tilewise bench.")]
pub(crate) struct Args {
    /// Whose kernels
    #[arg(value_enum, value_name = "OPERATOR")]
    op: Op,
    /// The problem; may be repeated
    #[arg(long, value_name = "KEY=VALUE,..", required = true)]
    shape: Vec<String>,
    /// Element type of the tensors
    #[arg(long, value_name = "TYPE", default_value = "f32",
        value_parser = PossibleValuesParser::new(["f32", "f16", "bf16"]).map(|t| bench::dtype(&t)))]
    dtype: DType,
    /// Kernels of this tier [default: the best that a card has]
    #[arg(long, value_name = "TIER",
        value_parser = PossibleValuesParser::new(["portable", "subgroup"])
            .map(|t| t.parse::<Tier>().expect("one of the listed")))]
    tier: Option<Tier>,
    /// Plan as for these cards
    #[arg(long = "as", value_name = "CARD,..", value_delimiter = ',', value_parser = adapter::card,
        default_value = "rdna3,ada,xe2", conflicts_with_all = ["adapter", "class", "tuning"])]
    cards: Vec<&'static Card>,
    /// Every constant of each kernel, too
    #[arg(long)]
    constants: bool,
    /// Leave the compilers out
    #[arg(long)]
    no_compilers: bool,
    /// Keep the texts in this folder
    #[arg(long, value_name = "DIR")]
    dump_wgsl: Option<std::path::PathBuf>,
}

/// What a text declares: bytes of workgroup memory, invocations, bindings.
fn declared(text: &str) -> Result<(u32, u32, usize), Failure> {
    // naga takes the operations without the directive, which it does not know
    let text = text.replace("enable subgroups;", "");
    let module = naga::front::wgsl::parse_str(&text)?;
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx())?;
    let shared = module.global_variables.iter().map(|(_, variable)| variable);
    let shared = shared.filter(|v| v.space == naga::AddressSpace::WorkGroup);
    let bytes = shared.map(|v| layouter[v.ty].size).sum();
    let bindings = module.global_variables.iter().filter(|(_, v)| v.binding.is_some()).count();
    let invocations =
        module.entry_points.first().map_or(0, |entry| entry.workgroup_size.iter().product());
    Ok((bytes, invocations, bindings))
}

/// Prints the kernels, then what the compilers say.
pub(crate) fn run(args: &Args) -> Result<bool, Failure> {
    if args.op == Op::All {
        return Err("one operator: a --shape is of one".into());
    }
    let cases: Vec<Case> =
        args.shape.iter().map(|s| Case::parse(args.op, s)).collect::<Result<_, _>>()?;
    let kept = args.dump_wgsl.clone();
    let dir = kept.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("tilewise-inspect-{}", std::process::id()))
    });
    let result = print(args, &cases, &dir);
    let compiled = result.and_then(|()| match args.no_compilers {
        true => Ok(()),
        false => compile(&args.cards, &dir),
    });
    if kept.is_none() {
        // what is left of it is in the system's folder of temporary files
        let _ = std::fs::remove_dir_all(&dir);
    }
    compiled.map(|()| true)
}

/// Prints the kernels of every problem on every card, and writes their texts.
fn print(args: &Args, cases: &[Case], dir: &Path) -> Result<(), Failure> {
    for card in &args.cards {
        println!("{}: {}", card.name, card.title);
        let mut texts = Texts::open(&dir.join(card.name).join("bench"))?;
        for case in cases {
            let ctx = adapter::imitated(card)?;
            let ctx = args.tier.map_or_else(|| Ok(ctx.clone()), |tier| ctx.with_tier(tier))?;
            bench::record(&ctx, case, args.dtype)?;
            let problem = format!("{} {}", case.op.name(), case.shape);
            texts.add(&ctx, Some(&problem))?;
            println!("  {problem}, {}, {} tier", args.dtype, ctx.caps.tier);
            for (label, text) in ctx.compiled_texts() {
                let (bytes, invocations, bindings) = declared(&text)?;
                let (name, constants) = label.split_once(' ').unwrap_or((&label, ""));
                println!(
                    "    {name}: {invocations} invocations, {bytes} bytes of workgroup memory, \
                     {bindings} bindings, {} lines",
                    text.lines().count()
                );
                if args.constants {
                    println!("      {constants}");
                }
            }
        }
        texts.finish()?;
    }
    Ok(())
}

/// Lets the repository's script compile the texts, where it is.
fn compile(cards: &[&Card], dir: &Path) -> Result<(), Failure> {
    if !Path::new(SCRIPT).is_file() {
        println!("\nregisters and spills: {SCRIPT} of the crate's repository is not here");
        return Ok(());
    }
    println!();
    let names: Vec<&str> = cards.iter().map(|card| card.name).collect();
    let status = Command::new(SCRIPT)
        .args(["--cards", &names.join(","), "--texts"])
        .arg(dir)
        .status()
        .map_err(|e| format!("{SCRIPT}: {e}"))?;
    // a budget is the crate's own affair: the kernel that breaks it is named above
    if !status.success() {
        println!("(the budgets are those of the crate's own problems)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tilewise::CARDS;

    #[test]
    fn what_a_text_declares() {
        let text = "enable subgroups;
            var<workgroup> a: array<vec4<f32>, 3>;
            @group(0) @binding(0) var<storage, read_write> b: array<f32>;
            @compute @workgroup_size(8, 2) fn f() { b[0] = a[1].x; }";
        assert_eq!(declared(text).unwrap(), (48, 16, 1));
        assert!(declared("fn").is_err());
    }

    #[test]
    fn its_cards_are_cards() {
        for name in "rdna3,ada,xe2".split(',') {
            assert!(CARDS.iter().any(|card| card.name == name), "{name}");
        }
    }
}
