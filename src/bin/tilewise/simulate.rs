//! `tilewise simulate`: what an operator would cost, counted without a device.

use tilewise::{
    Caps, DeviceClass, Tier,
    neighborhood::{
        Border, Candidate, KernelCost, NeighborhoodAttention, NeighborhoodShape, recommended_stride,
    },
};

use crate::{Failure, adapter::Target};

/// Count what a kernel would do, without a device.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tilewise simulate na --map 56x56 --kernel 7x7")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Na(Na),
}

/// Neighborhood attention: exact counts of key tiles visited, of useful and of wasted scores, and
/// the speed-up over full attention that they allow, for the best tilings and for every stride.
///
/// Scores are counted over all maps and heads. "useful" are those inside a window; "wasted" ones
/// are computed and masked, because queries that differ in their windows share a tile. "bound" is
/// the speed-up over full attention if every computed score costs the same. "cost" weighs loads,
/// scores and bookkeeping by a model of the device, a GPU or with --class cpu a CPU, relative to the
/// cheapest row.
#[derive(clap::Args)]
#[command(after_help = "\
Sizes are given for each axis, as in 4096, 56x56 or 16x16x16; a single number stands for all axes.

Examples:
  tilewise simulate na --map 4096 --kernel 255
  tilewise simulate na --map 56x56 --kernel 7x7 --heads 4 --head-dim 32
  tilewise simulate na --map 128x128 --kernel 21 --stride 4 --dilation 2x1
  tilewise simulate na --map 8x64x64 --kernel 4x13x13 --causal 0 --class cpu --rows 3")]
struct Na {
    /// Tokens of the map along each axis
    #[arg(long, value_name = "N[xN[xN]]")]
    map: Sizes,
    /// Window along each axis
    #[arg(long, value_name = "K[xK[xK]]")]
    kernel: Sizes,
    /// Queries in a row that share a window, along each axis
    #[arg(long, value_name = "S[xS[xS]]", default_value = "1")]
    stride: Sizes,
    /// Distance between neighbours, along each axis
    #[arg(long, value_name = "D[xD[xD]]", default_value = "1")]
    dilation: Sizes,
    /// An axis, counted from 0, on which queries see only what lies before them (may be repeated)
    #[arg(long, value_name = "AXIS")]
    causal: Vec<usize>,
    /// What lies beyond the border
    #[arg(long, value_enum, default_value = "shift")]
    border: BorderName,
    /// Maps
    #[arg(long, default_value_t = 1)]
    batch: u32,
    /// Query heads
    #[arg(long, default_value_t = 1)]
    heads: u32,
    /// Length of queries, keys and values
    #[arg(long, default_value_t = 64)]
    head_dim: u32,
    /// Invocations in a workgroup [default: 32 on a GPU, 8 on a CPU]
    #[arg(long)]
    lanes: Option<u32>,
    /// Tilings to list
    #[arg(long, default_value_t = 8)]
    rows: usize,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum BorderName {
    /// Windows move inward (NATTEN)
    Shift,
    /// Windows are cut off
    Masked,
    /// Windows see zeros (HaloNet)
    Zeros,
}

/// One number for each axis, or one for all.
#[derive(Clone, Debug)]
struct Sizes(Vec<u32>);

impl std::str::FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all: Result<Vec<u32>, _> = text.split(['x', ',']).map(str::parse).collect();
        match all {
            Ok(sizes) if sizes.len() <= 3 => Ok(Self(sizes)),
            Ok(sizes) => Err(format!("1, 2 or 3 axes, not {}", sizes.len())),
            Err(_) => Err("numbers with x between them, as in 56x56".to_owned()),
        }
    }
}

impl Sizes {
    fn on<const D: usize>(&self, what: &str) -> Result<[u32; D], Failure> {
        match self.0[..] {
            [one] => Ok([one; D]),
            _ => self.0[..]
                .try_into()
                .map_err(|_| format!("--{what} has {} axes, the map has {D}", self.0.len()).into()),
        }
    }
}

/// Prints the tables.
pub(crate) fn run(args: &Args, target: Target<'_>) -> Result<bool, Failure> {
    let class = target.class.unwrap_or_default();
    let What::Na(na) = &args.what;
    match na.map.0.len() {
        1 => simulate::<1>(na, class),
        2 => simulate::<2>(na, class),
        _ => simulate::<3>(na, class),
    }?;
    Ok(true)
}

fn simulate<const D: usize>(args: &Na, class: DeviceClass) -> Result<(), Failure> {
    let mut is_causal = [false; D];
    for &axis in &args.causal {
        *is_causal
            .get_mut(axis)
            .ok_or_else(|| format!("--causal {axis}: the axes are 0..={}", D - 1))? = true;
    }
    let op = NeighborhoodAttention {
        stride: args.stride.on("stride")?,
        dilation: args.dilation.on("dilation")?,
        is_causal,
        border: match args.border {
            BorderName::Shift => Border::Shift,
            BorderName::Masked => Border::Masked,
            BorderName::Zeros => Border::Zeros,
        },
        ..NeighborhoodAttention::new(args.kernel.on("kernel")?)
    };
    let shape = NeighborhoodShape {
        batch: args.batch,
        spatial: args.map.on::<D>("map")?,
        heads: args.heads,
        heads_kv: args.heads,
        head_dim: args.head_dim,
        head_dim_v: args.head_dim,
        ..Default::default()
    };
    let cost = KernelCost::of(&Caps { tier: Tier::Subgroup, class, ..Caps::minimum() });
    let lanes = args.lanes.unwrap_or(if class == DeviceClass::Cpu { 8 } else { 32 });
    if !(1..=1024).contains(&lanes) {
        return Err(format!("--lanes {lanes}: 1..=1024").into());
    }

    let all = op.candidates(&shape, lanes, &cost)?;
    let best = all.first().ok_or("no tiling fits")?;
    let s = best.simulation;
    println!(
        "map {}, window {}, stride {}, dilation {}; {} maps, {} heads of {}",
        by(&shape.spatial),
        by(&op.kernel_size),
        by(&op.stride),
        by(&op.dilation),
        args.batch,
        args.heads,
        args.head_dim
    );
    println!("full attention computes {} scores", grouped(s.full));
    println!(
        "the windows hold {}: at most {:.1} times faster",
        grouped(s.useful),
        s.speedup_bound()
    );

    println!("\ntilings, {lanes} invocations to a workgroup; cheapest first");
    println!("{:>4} {:>12} {:>5} {:>5} {HEAD}", "walk", "queries", "slots", "keys");
    for candidate in all.iter().take(args.rows.max(1)) {
        let t = candidate.tiles;
        println!(
            "{:>4} {:>12} {:>5} {:>5} {}",
            t.axis,
            by(&t.tile),
            t.slots,
            t.block_k,
            counts(candidate, s.cost)
        );
    }

    let strides = op.strides(&shape, lanes, &cost)?;
    let least = strides.iter().map(|c| c.best.simulation.cost).fold(f64::INFINITY, f64::min);
    println!("\nstrides, each with its cheapest tiling");
    println!("{:>12} {:>12} {:>5} {HEAD}", "stride", "queries", "slots");
    for choice in &strides {
        let t = choice.best.tiles;
        println!(
            "{:>12} {:>12} {:>5} {}",
            by(&choice.stride),
            by(&t.tile),
            t.slots,
            counts(&choice.best, least)
        );
    }
    if let Some(choice) = recommended_stride(&strides) {
        let (t, found) = (choice.best.tiles, choice.best.simulation);
        println!(
            "\nrecommended: stride {}, tile {} walked along axis {}, {} slots: {:.1} times cheaper \
             than stride {}, efficiency {:.0} %",
            by(&choice.stride),
            by(&t.tile),
            t.axis,
            t.slots,
            s.cost / found.cost,
            by(&op.stride),
            100.0 * found.efficiency()
        );
    }
    Ok(())
}

const HEAD: &str = "  workgroups    key tiles          computed            useful            wasted  useful%    bound  cost  windows";

/// The columns that both tables have.
fn counts<const D: usize>(candidate: &Candidate<D>, least: f64) -> String {
    let s = candidate.simulation;
    format!(
        "{:>12} {:>12} {:>17} {:>17} {:>17} {:>7.1}% {:>8.1} {:>5.2}  {}",
        grouped(s.workgroups),
        grouped(s.key_blocks),
        grouped(s.computed),
        grouped(s.useful),
        grouped(s.wasted()),
        100.0 * s.efficiency(),
        s.tile_bound(),
        s.cost / least,
        if s.aligned { "shared" } else { "differ" }
    )
}

/// `7x7`
fn by(sizes: &[u32]) -> String {
    sizes.iter().map(u32::to_string).collect::<Vec<_>>().join("x")
}

/// `1,234,567`
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
