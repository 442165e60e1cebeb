//! What is timed: problems written as `key=value,..`, made ready to run and judged by the f64
//! references.

use std::fmt::Write as _;

use half::{bf16, f16};
use tilewise::{
    Context, DType, Element, Result, Tensor,
    attention::{Attention, AttentionArgs, AttentionShape, CausalAlignment, Mask},
    fft::{Direction, Fft, FftArgs, MAX_LENGTH},
    gaunt::{GauntArgs, GauntShape, GauntTensorProduct, MAX_LMAX},
    linear_attention::{Decay, LinearAttention, LinearAttentionArgs, LinearAttentionShape, Update},
    measure::values,
    neighborhood::{KernelCost, NeighborhoodArgs, NeighborhoodAttention, NeighborhoodShape},
    reference, wgpu,
};

use super::{cases, route_cases::relative_rms};
use crate::Failure;

/// A family of operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Op {
    Attention,
    Linear,
    Neighborhood,
    Gaunt,
    Fft,
    /// Every one of them
    All,
}

/// All but [`Op::All`].
pub(crate) const OPS: [Op; 5] = [Op::Attention, Op::Linear, Op::Neighborhood, Op::Gaunt, Op::Fft];

impl Op {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Linear => "linear",
            Self::Neighborhood => "neighborhood",
            Self::Gaunt => "gaunt",
            Self::Fft => "fft",
            Self::All => "all",
        }
    }

    /// Keys of a problem and what they are if not given; empty for what follows from others.
    fn keys(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Attention => &[
                ("batch", "1"),
                ("seq", "1024"),
                ("keys", ""),
                ("heads", "8"),
                ("heads_kv", ""),
                ("dim", "64"),
                ("mask", "causal"),
            ],
            Self::Linear => &[
                ("rule", "lightning"),
                ("batch", "1"),
                ("seq", "4096"),
                ("heads", "8"),
                ("dim", "64"),
            ],
            Self::Neighborhood => &[
                ("map", "64x64"),
                ("window", "7x7"),
                ("stride", ""),
                ("heads", "4"),
                ("dim", "32"),
            ],
            Self::Gaunt => &[("lmax", "4"), ("out", ""), ("products", "16384")],
            Self::Fft => &[("n", "1024"), ("batch", "1024")],
            Self::All => &[],
        }
    }

    /// The problems that are timed unless others are asked for: those of [`cases`], and a few of
    /// other kinds.
    pub(crate) fn list(self, quick: bool) -> Vec<String> {
        let all = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        match (self, quick) {
            (Self::Attention, false) => {
                let (heads, dim) = (cases::ATTENTION_HEADS, cases::ATTENTION_DIM);
                let of = |mask: &'static str| {
                    let text = move |n| format!("seq={n},heads={heads},dim={dim},mask={mask}");
                    cases::ATTENTION_LENGTHS.into_iter().map(text)
                };
                let decode = "seq=1,keys=4096,batch=4,heads=32,heads_kv=8,dim=128".into();
                of("none").chain(of("causal")).chain([decode]).collect()
            }
            (Self::Attention, true) => all(&["seq=128", "seq=256", "seq=512"]),
            (Self::Linear, false) => {
                let of = |rule: &'static str| {
                    cases::LINEAR_LENGTHS.into_iter().map(move |n| format!("rule={rule},seq={n}"))
                };
                let others = ["rule=delta,seq=4096", "rule=gla,seq=1,batch=64"];
                of("lightning").chain(of("gla")).chain(others.map(Into::into)).collect()
            }
            (Self::Linear, true) => all(&["seq=512", "seq=1024", "rule=gla,seq=512"]),
            (Self::Neighborhood, false) => {
                let side = cases::GROWTH_SIDE;
                let squares =
                    cases::GROWTH.into_iter().map(|k| format!("map={side}x{side},window={k}x{k}"));
                let lines = cases::LINES.into_iter().map(|(n, k, _)| format!("map={n},window={k}"));
                let (n, k, _) = cases::CUBE;
                let cube = format!("map={n}x{n}x{n},window={k}x{k}x{k}");
                squares.chain(lines).chain([cube]).collect()
            }
            (Self::Neighborhood, true) => all(&["map=32x32,window=3x3", "map=32x32,window=7x7"]),
            (Self::Gaunt, false) => {
                // larger ones are the business of --routes
                let degrees = cases::DEGREES.into_iter().filter(|l| *l <= 8);
                let doubled = ["lmax=2,out=4", "lmax=4,out=8"].map(Into::into);
                degrees.map(|l| format!("lmax={l}")).chain(doubled).collect()
            }
            (Self::Gaunt, true) => {
                all(&["lmax=1,products=4096", "lmax=2,products=4096", "lmax=4,products=4096"])
            }
            (Self::Fft, false) => cases::TRANSFORMS
                .into_iter()
                .map(|(shape, batch)| match shape {
                    [1, n] => format!("n={n},batch={batch}"),
                    [rows, columns] => format!("n={rows}x{columns},batch={batch}"),
                })
                .collect(),
            (Self::Fft, true) => all(&["n=64,batch=4096", "n=256,batch=1024", "n=1024,batch=256"]),
            (Self::All, _) => Vec::new(),
        }
    }
}

/// How a linear attention forgets and learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Lightning,
    Gla,
    Delta,
}

/// A problem of any family.
#[derive(Clone, Debug)]
pub(crate) enum Problem {
    Attention { shape: AttentionShape, causal: bool },
    Linear { shape: LinearAttentionShape, rule: Rule },
    Neighborhood { map: Vec<u32>, window: Vec<u32>, stride: Vec<u32>, heads: u32, dim: u32 },
    Gaunt { lmax: u32, out: u32, products: u32 },
    Fft { shape: [u32; 2], batch: u32 },
}

/// A problem and how it is called.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) op: Op,
    pub(crate) problem: Problem,
    /// All keys and values: what `--shape` takes.
    pub(crate) shape: String,
    /// What it shares with the others of its curve.
    pub(crate) series: String,
    /// The axis of the curve.
    pub(crate) axis: &'static str,
    pub(crate) x: f64,
}

/// Records one call.
type Run = Box<dyn Fn(&mut wgpu::CommandEncoder) -> Result<()>>;

/// Relative RMS error of what the last call of a run wrote, at the sampled places.
type Judge = Box<dyn Fn(&Context) -> Result<f64>>;

/// A problem ready to run.
pub(crate) struct Ready {
    /// The same call on tensors of its own each.
    pub(crate) runs: Vec<Run>,
    /// Judges the first run.
    pub(crate) judge: Judge,
    pub(crate) flops: f64,
    /// Bytes that must be moved at the least.
    pub(crate) bytes: f64,
}

/// Larger problems are refused: host and device hold them several times.
const MAX_BYTES: f64 = 2e9;

impl Case {
    /// Reads `key=value,..`.
    pub(crate) fn parse(op: Op, text: &str) -> Result<Self, Failure> {
        if op == Op::All {
            return Err("--shape needs one operator, not all".into());
        }
        let bad = |problem: String| -> Failure {
            let keys: Vec<&str> = op.keys().iter().map(|k| k.0).collect();
            format!("--shape {text:?} of {}: {problem}; keys are {}", op.name(), keys.join(", "))
                .into()
        };
        let mut given: Vec<(&str, &str)> = Vec::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (key, value) =
                part.split_once('=').ok_or_else(|| bad(format!("{part:?} is no key=value")))?;
            if !op.keys().iter().any(|k| k.0 == key) {
                return Err(bad(format!("there is no key {key:?}")));
            }
            if given.iter().any(|g| g.0 == key) {
                return Err(bad(format!("{key} is given twice")));
            }
            given.push((key, value));
        }
        let value = |key: &str| {
            let default = op.keys().iter().find(|k| k.0 == key).map_or("", |k| k.1);
            given.iter().find(|g| g.0 == key).map_or(default, |g| g.1)
        };
        let sizes = |key: &str| -> Result<Vec<u32>, Failure> {
            let read = |part: &str| {
                part.parse::<u32>().ok().filter(|n| (1..=1 << 28).contains(n)).ok_or_else(|| {
                    bad(format!("{key}: expected numbers from 1 to 2^28, got {:?}", value(key)))
                })
            };
            value(key).split('x').map(read).collect()
        };
        let size = |key: &str| match sizes(key)?[..] {
            [n] => Ok(n),
            _ => Err(bad(format!("{key}: expected one number, got {:?}", value(key)))),
        };
        let size_or = |key: &str, other: u32| match value(key) {
            "" => Ok(other),
            _ => size(key),
        };
        let word = |key: &str, legal: &[&str]| {
            legal.iter().position(|w| *w == value(key)).ok_or_else(|| {
                bad(format!("{key}: expected one of {}, got {:?}", legal.join(", "), value(key)))
            })
        };
        let by = |sizes: &[u32]| sizes.iter().map(u32::to_string).collect::<Vec<_>>().join("x");
        let (problem, shape, series, axis, x) = match op {
            Op::Attention => {
                let [batch, seq, heads, dim] = ["batch", "seq", "heads", "dim"].map(size);
                let (batch, seq, heads, dim) = (batch?, seq?, heads?, dim?);
                let (keys, heads_kv) = (size_or("keys", seq)?, size_or("heads_kv", heads)?);
                let causal = word("mask", &["none", "causal"])? == 1;
                let mask = if causal { "causal" } else { "none" };
                let shape = AttentionShape {
                    seq_k: keys,
                    heads_kv,
                    ..AttentionShape::self_attention(batch, seq, heads, dim)
                };
                let text = format!(
                    "batch={batch},seq={seq},keys={keys},heads={heads},heads_kv={heads_kv},dim={dim},mask={mask}"
                );
                let queries = if keys == seq { String::new() } else { format!(", {seq} queries") };
                let series =
                    format!("attention, mask {mask}{queries}, {batch} x {heads} heads of {dim}");
                (Problem::Attention { shape, causal }, text, series, "keys", f64::from(keys))
            }
            Op::Linear => {
                let rules = ["lightning", "gla", "delta"];
                let rule = word("rule", &rules)?;
                let [batch, seq, heads, dim] = ["batch", "seq", "heads", "dim"].map(size);
                let (batch, seq, heads, dim) = (batch?, seq?, heads?, dim?);
                let shape = LinearAttentionShape::new(batch, seq, heads, dim, dim);
                let name = rules[rule];
                let text = format!("rule={name},batch={batch},seq={seq},heads={heads},dim={dim}");
                let series = format!("{name}, {batch} x {heads} heads of {dim}");
                let rule = [Rule::Lightning, Rule::Gla, Rule::Delta][rule];
                (Problem::Linear { shape, rule }, text, series, "tokens", f64::from(seq))
            }
            Op::Neighborhood => {
                let (map, window) = (sizes("map")?, sizes("window")?);
                let stride =
                    if value("stride").is_empty() { vec![1; map.len()] } else { sizes("stride")? };
                if map.len() > 3 || window.len() != map.len() || stride.len() != map.len() {
                    return Err(bad("map, window and stride have the same 1 to 3 axes".into()));
                }
                let (heads, dim) = (size("heads")?, size("dim")?);
                let text = format!(
                    "map={},window={},stride={},heads={heads},dim={dim}",
                    by(&map),
                    by(&window),
                    by(&stride)
                );
                let series =
                    format!("map {}, stride {}, {heads} heads of {dim}", by(&map), by(&stride));
                let x = f64::from(window[0]);
                let problem = Problem::Neighborhood { map, window, stride, heads, dim };
                (problem, text, series, "window", x)
            }
            Op::Gaunt => {
                let (lmax, products) = (size("lmax")?, size("products")?);
                let out = size_or("out", lmax)?;
                if lmax > MAX_LMAX.min(12) || out > 2 * lmax {
                    return Err(bad("lmax is at most 12 and out at most 2 lmax here".into()));
                }
                let text = format!("lmax={lmax},out={out},products={products}");
                let to = match out {
                    _ if out == lmax => "l".into(),
                    _ if out == 2 * lmax => "2 l".into(),
                    _ => out.to_string(),
                };
                let series = format!("degrees l and l to {to}, {products} products");
                (Problem::Gaunt { lmax, out, products }, text, series, "degree l", f64::from(lmax))
            }
            Op::Fft => {
                let (n, batch) = (sizes("n")?, size("batch")?);
                let shape = match n[..] {
                    [n] => [1, n],
                    [rows, columns] => [rows, columns],
                    _ => return Err(bad("n has one or two axes".into())),
                };
                if shape.iter().any(|&n| n > MAX_LENGTH) {
                    return Err(bad(format!("lengths are at most {MAX_LENGTH}")));
                }
                let text = format!("n={},batch={batch}", by(&n));
                let series = format!("{}-D complex", n.len());
                let points = f64::from(shape[0]) * f64::from(shape[1]);
                (Problem::Fft { shape, batch }, text, series, "points", points)
            }
            Op::All => return Err(bad("one operator is needed".into())),
        };
        Ok(Self { op, problem, shape, series, axis, x })
    }

    /// Plans, uploads inputs as often as it takes to fill `fill` bytes (at most 64 times), and
    /// makes the judge.
    pub(crate) fn ready(&self, ctx: &Context, dtype: DType, fill: f64) -> Result<Ready, Failure> {
        match &self.problem {
            Problem::Attention { shape, causal } => attention(ctx, *shape, *causal, dtype, fill),
            Problem::Linear { shape, rule } => linear(ctx, *shape, *rule, dtype, fill),
            Problem::Neighborhood { map, window, stride, heads, dim } => match map.len() {
                1 => neighborhood::<1, 4>(ctx, [map, window, stride], *heads, *dim, dtype, fill),
                2 => neighborhood::<2, 5>(ctx, [map, window, stride], *heads, *dim, dtype, fill),
                _ => neighborhood::<3, 6>(ctx, [map, window, stride], *heads, *dim, dtype, fill),
            },
            Problem::Gaunt { lmax, out, products } => {
                gaunt(ctx, [*lmax, *out, *products], dtype, fill)
            }
            Problem::Fft { shape, batch } => fft(ctx, *shape, *batch, dtype, fill),
        }
    }
}

/// The largest relative RMS error that passes: what the operators' own tests allow in f32, and the
/// rounding of inputs and outputs that are held in less.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    5e-6 + 2.0 * if dtype == DType::F32 { 0.0 } else { dtype.unit_roundoff() }
}

/// Values as the element type holds them.
fn held(dtype: DType, x: Vec<f32>) -> Vec<f32> {
    match dtype {
        DType::F16 => x.into_iter().map(|x| f16::from_f32(x).to_f32()).collect(),
        DType::BF16 => x.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect(),
        _ => x,
    }
}

fn upload<const N: usize>(
    ctx: &Context,
    dtype: DType,
    shape: [u32; N],
    x: &[f32],
) -> Result<Tensor<N>> {
    fn cast<T: Element>(x: &[f32]) -> Vec<T> {
        x.iter().map(|&x| T::from_f32(x)).collect()
    }
    match dtype {
        DType::F16 => Tensor::upload(ctx, shape, &cast::<f16>(x)),
        DType::BF16 => Tensor::upload(ctx, shape, &cast::<bf16>(x)),
        _ => Tensor::upload(ctx, shape, x),
    }
}

fn download<const N: usize>(ctx: &Context, x: &Tensor<N>) -> Result<Vec<f32>> {
    fn cast<T: Element>(x: Vec<T>) -> Vec<f32> {
        x.into_iter().map(T::to_f32).collect()
    }
    match x.dtype() {
        DType::F16 => x.download::<f16>(ctx).map(cast),
        DType::BF16 => x.download::<bf16>(ctx).map(cast),
        _ => x.download::<f32>(ctx),
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn narrow(x: &[f64]) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "far below the tolerance")]
    x.iter().map(|&x| x as f32).collect()
}

/// How many sets of tensors of `bytes` to go round, so that none is still in a cache.
fn copies(bytes: f64, fill: f64) -> Result<u32, Failure> {
    if bytes > MAX_BYTES {
        return Err(format!(
            "tensors of {:.1} GB: at most {:.0} here",
            bytes / 1e9,
            MAX_BYTES / 1e9
        )
        .into());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let n = (fill / bytes).ceil().clamp(1.0, 64.0) as u32;
    Ok(n)
}

fn product(dims: &[u32]) -> f64 {
    dims.iter().map(|&n| f64::from(n)).product()
}

fn count(dims: &[u32]) -> usize {
    dims.iter().map(|&n| n as usize).product()
}

fn size(dtype: DType) -> f64 {
    if dtype == DType::F32 { 4.0 } else { 2.0 }
}

fn attention(
    ctx: &Context,
    s: AttentionShape,
    causal: bool,
    dtype: DType,
    fill: f64,
) -> Result<Ready, Failure> {
    let mask = if causal { Mask::Causal(CausalAlignment::BottomRight) } else { Mask::None };
    let plan = Attention { mask, dtype, ..Default::default() }.plan(ctx, s)?;
    let q_dims = [s.batch, s.seq_q, s.heads, s.head_dim];
    let k_dims = [s.batch, s.seq_k, s.heads_kv, s.head_dim];
    let bytes = 2.0 * size(dtype) * (product(&q_dims) + product(&k_dims));
    let copies = copies(bytes, fill)?;
    let [q, k, v] = [(q_dims, 1), (k_dims, 2), (k_dims, 3)]
        .map(|(dims, seed)| held(dtype, values(count(&dims), seed)));
    let mut runs: Vec<Run> = Vec::new();
    let mut first = None;
    for _ in 0..copies {
        let (q, k, v) = (
            upload(ctx, dtype, q_dims, &q)?,
            upload(ctx, dtype, k_dims, &k)?,
            upload(ctx, dtype, k_dims, &v)?,
        );
        let o = Tensor::zeros(ctx, q_dims, dtype)?;
        first.get_or_insert_with(|| o.clone());
        let (ctx, plan) = (ctx.clone(), plan.clone());
        let scratch = plan.scratch(&ctx)?;
        runs.push(Box::new(move |encoder| {
            let args = AttentionArgs {
                scratch: scratch.as_ref(),
                ..AttentionArgs::new(q.view(), k.view(), v.view(), o.view())
            };
            plan.encode(&ctx, encoder, &args)
        }));
    }
    let o = first.expect("at least one copy");
    let judge: Judge = Box::new(move |ctx| {
        let got = download(ctx, &o)?;
        let (mut ours, mut want) = (Vec::new(), Vec::new());
        let batch = s.batch as usize - 1;
        let (row, kv_row) = (count(&q_dims[2..]), count(&k_dims[2..]));
        // each query as a problem of its own, with the keys that it sees
        for query in [0, s.seq_q / 2, s.seq_q - 1] {
            let seen = if causal { (query + 1 + s.seq_k).saturating_sub(s.seq_q) } else { s.seq_k };
            let at = (batch * s.seq_q as usize + query as usize) * row;
            let keys = batch * s.seq_k as usize * kv_row..;
            let one = AttentionShape { batch: 1, seq_q: 1, seq_k: seen, ..s };
            let keys = keys.start..keys.start + seen as usize * kv_row;
            let inputs = reference::AttentionInputs {
                q: &wide(&q[at..at + row]),
                k: &wide(&k[keys.clone()]),
                v: &wide(&v[keys]),
                ..Default::default()
            };
            want.extend(reference::attention(&one, &Attention::default(), &inputs).0);
            ours.extend_from_slice(&got[at..at + row]);
        }
        Ok(relative_rms(&ours, &narrow(&want)))
    });
    Ok(Ready { runs, judge, flops: s.flops(mask), bytes })
}

/// Options of a rule for `heads` heads.
pub(crate) fn rule_options(
    rule: Rule,
    heads: u32,
    dim: u32,
    dtype: DType,
) -> Result<LinearAttention> {
    let scale = f64::from(dim).sqrt().recip();
    #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
    let scale = scale as f32;
    let base = LinearAttention { dtype, scale, ..Default::default() };
    Ok(match rule {
        Rule::Lightning => {
            LinearAttention { decay: Decay::lightning(3, 24, heads)?, scale: 1.0, ..base }
        }
        Rule::Gla => LinearAttention { decay: Decay::PerChannel, ..base },
        Rule::Delta => LinearAttention { update: Update::Delta, ..base },
    })
}

fn linear(
    ctx: &Context,
    s: LinearAttentionShape,
    rule: Rule,
    dtype: DType,
    fill: f64,
) -> Result<Ready, Failure> {
    let op = rule_options(rule, s.heads, s.key_dim, dtype)?;
    let plan = op.plan(ctx, s)?;
    let rows = [s.batch, s.seq_q, s.heads, s.key_dim];
    let states = [s.batch, s.heads, s.key_dim, s.value_dim];
    let (gated, delta) = (rule == Rule::Gla, rule == Rule::Delta);
    // a stream goes on from a state; longer texts begin
    let decode = s.seq_q <= 8;
    let n = product(&rows);
    let per_token = n / f64::from(s.key_dim);
    let bytes = 4.0 * size(dtype) * n
        + if gated { 4.0 * n } else { 0.0 }
        + if delta { 4.0 * per_token } else { 0.0 }
        + if decode { 8.0 * product(&states) } else { 0.0 };
    let copies = copies(bytes, fill)?;
    // keys about as long as one, as the delta rule wants them
    let key_scale = f64::from(s.key_dim).sqrt().recip();
    #[expect(clippy::cast_possible_truncation, reason = "any number near it will do")]
    let key_scale = key_scale as f32;
    let random = |n: usize, seed, map: &dyn Fn(f32) -> f32| -> Vec<f32> {
        values(n, seed).into_iter().map(map).collect()
    };
    let q = held(dtype, random(count(&rows), 1, &|x| x));
    let k = held(dtype, random(count(&rows), 2, &|x| x * key_scale));
    let v = held(dtype, random(count(&rows), 3, &|x| x));
    let gates = random(if gated { count(&rows) } else { 0 }, 4, &|x| -0.05 * (1.0 + x));
    let beta = random(if delta { count(&rows[..3]) } else { 0 }, 5, &|x| 0.5 + 0.5 * x);
    let state = random(if decode { count(&states) } else { 0 }, 6, &|x| x);
    let mut runs: Vec<Run> = Vec::new();
    let mut first = None;
    for _ in 0..copies {
        let [q, k, v] = [&q, &k, &v].map(|x| upload(ctx, dtype, rows, x));
        let (q, k, v) = (q?, k?, v?);
        let o = Tensor::zeros(ctx, rows, dtype)?;
        first.get_or_insert_with(|| o.clone());
        let gates = gated.then(|| Tensor::upload(ctx, rows, &gates)).transpose()?;
        let one = [s.batch, s.seq_q, s.heads, 1];
        let beta = delta.then(|| Tensor::upload(ctx, one, &beta)).transpose()?;
        let before = decode.then(|| Tensor::upload(ctx, states, &state)).transpose()?;
        let after = decode.then(|| Tensor::zeros(ctx, states, DType::F32)).transpose()?;
        let (ctx, plan) = (ctx.clone(), plan.clone());
        let scratch = plan.scratch(&ctx)?;
        runs.push(Box::new(move |encoder| {
            let mut args = LinearAttentionArgs::new(q.view(), k.view(), v.view(), o.view());
            args.scratch = scratch.as_ref();
            args.gates = gates.as_ref().map(Tensor::view);
            args.beta = beta.as_ref().map(Tensor::view);
            args.initial_state = before.as_ref().map(Tensor::view);
            args.final_state = after.as_ref().map(Tensor::view);
            plan.encode(&ctx, encoder, &args)
        }));
    }
    let o = first.expect("at least one copy");
    let judge: Judge = Box::new(move |ctx| {
        let got = download(ctx, &o)?;
        let (mut ours, mut want) = (Vec::new(), Vec::new());
        let (t, h) = (s.seq_q as usize, s.heads as usize);
        let batch = s.batch as usize - 1;
        // the first and the last head, as problems of one head
        for head in [0, h - 1] {
            let pick = |x: &[f32], width: usize| -> Vec<f64> {
                let row = |at: usize| {
                    let start = ((batch * t + at) * h + head) * width;
                    wide(x.get(start..start + width).unwrap_or_default())
                };
                (0..t).flat_map(row).collect()
            };
            let (dim, width) = (s.key_dim as usize, count(&states[2..]));
            let mut one = op.clone();
            if let Decay::PerHead(all) = &op.decay {
                one.decay = Decay::PerHead(vec![all[head]]);
            }
            let from = (batch * h + head) * width;
            let inputs = reference::LinearAttentionInputs {
                q: &pick(&q, dim),
                k: &pick(&k, dim),
                v: &pick(&v, dim),
                gates: &pick(&gates, dim),
                beta: &pick(&beta, 1),
                state: &wide(state.get(from..from + width).unwrap_or_default()),
                key_sum: &[],
            };
            let shape = LinearAttentionShape::new(1, s.seq_q, 1, s.key_dim, s.value_dim);
            want.extend(reference::linear_attention(&one, &shape, &inputs).o);
            ours.extend(narrow(&pick(&got, dim)));
        }
        Ok(relative_rms(&ours, &narrow(&want)))
    });
    let flops = 4.0 * f64::from(s.value_dim) * n;
    Ok(Ready { runs, judge, flops, bytes })
}

fn neighborhood<const D: usize, const R: usize>(
    ctx: &Context,
    [map, window, stride]: [&Vec<u32>; 3],
    heads: u32,
    dim: u32,
    dtype: DType,
    fill: f64,
) -> Result<Ready, Failure> {
    let axes = |x: &Vec<u32>| -> [u32; D] { std::array::from_fn(|a| x[a]) };
    let (spatial, window, stride) = (axes(map), axes(window), axes(stride));
    let op = NeighborhoodAttention { stride, dtype, ..NeighborhoodAttention::new(window) };
    let shape = NeighborhoodShape {
        spatial,
        heads,
        heads_kv: heads,
        head_dim: dim,
        head_dim_v: dim,
        ..Default::default()
    };
    let plan = op.plan(ctx, shape)?;
    let useful = op.simulate(&shape, &plan.tiles(), &KernelCost::of(&ctx.caps))?.useful;
    let mut dims = [1; R];
    dims[1..=D].copy_from_slice(&spatial);
    [dims[R - 2], dims[R - 1]] = [heads, dim];
    let bytes = 4.0 * size(dtype) * product(&dims);
    let copies = copies(bytes, fill)?;
    let [q, k, v] = [1, 2, 3].map(|seed| held(dtype, values(count(&dims), seed)));
    let mut runs: Vec<Run> = Vec::new();
    let mut first = None;
    for _ in 0..copies {
        let [q, k, v] = [&q, &k, &v].map(|x| upload(ctx, dtype, dims, x));
        let (q, k, v, o) = (q?, k?, v?, Tensor::zeros(ctx, dims, dtype)?);
        first.get_or_insert_with(|| o.clone());
        let (ctx, plan) = (ctx.clone(), plan.clone());
        runs.push(Box::new(move |encoder| {
            let args = NeighborhoodArgs::new(q.view(), k.view(), v.view(), o.view());
            plan.encode(&ctx, encoder, &args)
        }));
    }
    let o = first.expect("at least one copy");
    let judge: Judge = Box::new(move |ctx| {
        let got = download(ctx, &o)?;
        let (mut ours, mut want) = (Vec::new(), Vec::new());
        // maps cut out of both ends, whose inner tokens see what they see in the whole one
        for end in [false, true] {
            let extent: [u32; D] =
                std::array::from_fn(|a| spatial[a].min(window[a] + stride[a] + 8));
            // groups that share a window stay whole
            let origin: [u32; D] = std::array::from_fn(|a| {
                if end { (spatial[a] - extent[a]) / stride[a] * stride[a] } else { 0 }
            });
            let extent: [u32; D] =
                std::array::from_fn(|a| if end { spatial[a] - origin[a] } else { extent[a] });
            let tokens: Vec<[u32; D]> = (0..extent.iter().product::<u32>())
                .map(|mut i| {
                    let mut at = [0; D];
                    for a in (0..D).rev() {
                        at[a] = i % extent[a];
                        i /= extent[a];
                    }
                    at
                })
                .collect();
            let cut = |x: &[f32]| -> Vec<f32> {
                let row = (heads * dim) as usize;
                let at = |t: &[u32; D]| {
                    (0..D).fold(0, |n, a| n * spatial[a] as usize + (origin[a] + t[a]) as usize)
                };
                // the last head: one is enough
                tokens
                    .iter()
                    .flat_map(|t| &x[(at(t) + 1) * row - dim as usize..(at(t) + 1) * row])
                    .copied()
                    .collect()
            };
            let small = NeighborhoodShape { spatial: extent, heads: 1, heads_kv: 1, ..shape };
            let inputs = reference::NeighborhoodInputs {
                q: &wide(&cut(&q)),
                k: &wide(&cut(&k)),
                v: &wide(&cut(&v)),
                ..Default::default()
            };
            let (all, _) = reference::neighborhood_attention(&op, &small, &inputs);
            let mine = cut(&got);
            for (i, t) in tokens.iter().enumerate() {
                let same = (0..D).all(|a| {
                    let leader = t[a] / stride[a] * stride[a] + stride[a] / 2;
                    let before = origin[a] == 0 || leader >= window[a] / 2;
                    let after = origin[a] + extent[a] == spatial[a]
                        || leader + window[a] - window[a] / 2 <= extent[a];
                    before && after
                });
                if same {
                    let row = i * dim as usize..(i + 1) * dim as usize;
                    ours.extend_from_slice(&mine[row.clone()]);
                    want.extend_from_slice(&all[row]);
                }
            }
        }
        Ok(relative_rms(&ours, &narrow(&want)))
    });
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let flops = useful as f64 * f64::from(4 * dim);
    Ok(Ready { runs, judge, flops, bytes })
}

fn gaunt(
    ctx: &Context,
    [lmax, out, products]: [u32; 3],
    dtype: DType,
    fill: f64,
) -> Result<Ready, Failure> {
    let op = GauntTensorProduct { dtype, ..GauntTensorProduct::new(lmax, out) };
    let dims = [1, products, (lmax + 1).pow(2)];
    let out_dims = [1, products, (out + 1).pow(2)];
    let bytes = size(dtype) * (2.0 * product(&dims) + product(&out_dims));
    let copies = copies(bytes, fill)?;
    let plan = std::rc::Rc::new(op.plan(ctx, GauntShape { batch: 1, channels: products })?);
    let [x, y] = [1, 2].map(|seed| held(dtype, values(count(&dims), seed)));
    let mut runs: Vec<Run> = Vec::new();
    let mut first = None;
    for _ in 0..copies {
        let (x, y) = (upload(ctx, dtype, dims, &x)?, upload(ctx, dtype, dims, &y)?);
        let z = Tensor::zeros(ctx, out_dims, dtype)?;
        first.get_or_insert_with(|| z.clone());
        let (ctx, plan) = (ctx.clone(), plan.clone());
        let scratch = plan.scratch(&ctx)?;
        runs.push(Box::new(move |encoder| {
            let args = GauntArgs {
                scratch: scratch.as_ref(),
                ..GauntArgs::new(x.view(), y.view(), z.view())
            };
            plan.encode(&ctx, encoder, &args)
        }));
    }
    let z = first.expect("at least one copy");
    let judge: Judge = Box::new(move |ctx| {
        let got = download(ctx, &z)?;
        let sampled = [0, products / 2, products - 1];
        let pick = |x: &[f32], width: u32| -> Vec<f32> {
            let row = |&r: &u32| &x[(r * width) as usize..((r + 1) * width) as usize];
            sampled.iter().flat_map(row).copied().collect()
        };
        let width = dims[2];
        let want = reference::gaunt_tensor_product(
            lmax,
            lmax,
            out,
            &wide(&pick(&x, width)),
            &wide(&pick(&y, width)),
        );
        Ok(relative_rms(&pick(&got, out_dims[2]), &narrow(&want)))
    });
    Ok(Ready { runs, judge, flops: op.flops() * f64::from(products), bytes })
}

fn fft(
    ctx: &Context,
    shape: [u32; 2],
    batch: u32,
    dtype: DType,
    fill: f64,
) -> Result<Ready, Failure> {
    if dtype != DType::F32 {
        return Err(format!("fft: dtype: expected f32, got {dtype}").into());
    }
    let dims = [batch, shape[0], shape[1], 2];
    let bytes = 8.0 * product(&dims);
    let copies = copies(bytes, fill)?;
    let plan = std::rc::Rc::new(
        Fft { shape, direction: Direction::Forward, ..Default::default() }.plan(ctx, batch)?,
    );
    let x = values(count(&dims), 1);
    let mut runs: Vec<Run> = Vec::new();
    let mut first = None;
    for _ in 0..copies {
        let input = Tensor::upload(ctx, dims, &x)?;
        let output = Tensor::zeros(ctx, dims, DType::F32)?;
        first.get_or_insert_with(|| output.clone());
        let (ctx, plan) = (ctx.clone(), plan.clone());
        let scratch = plan.scratch(&ctx)?;
        runs.push(Box::new(move |encoder| {
            let args =
                FftArgs { input: input.view(), output: output.view(), scratch: scratch.as_ref() };
            plan.encode(&ctx, encoder, &args)
        }));
    }
    let output = first.expect("at least one copy");
    let judge: Judge = Box::new(move |ctx| {
        let got = download(ctx, &output)?;
        let width = count(&dims[1..]);
        let last = (batch as usize - 1) * width..;
        let (x, got) = (&x[last.clone()], &got[last]);
        if width / 2 <= WHOLE_DFT {
            let want = reference::dft(shape, Direction::Forward, &wide(x));
            return Ok(relative_rms(got, &narrow(&want)));
        }
        let (mut ours, mut want) = (Vec::new(), Vec::new());
        for at in sampled_frequencies(width / 2) {
            ours.extend_from_slice(&got[2 * at..2 * at + 2]);
            want.extend(one_frequency(shape, at, x));
        }
        Ok(relative_rms(&ours, &narrow(&want)))
    });
    let points = product(&dims[1..3]);
    let flops = 5.0 * points * points.log2() * f64::from(batch);
    Ok(Ready { runs, judge, flops, bytes })
}

/// Points of the longest transform that is judged whole.
const WHOLE_DFT: usize = 8192;

/// Frequencies to judge of so many: the first, the last, and others spread over the rest, as many
/// as some hundred million terms allow.
fn sampled_frequencies(points: usize) -> Vec<usize> {
    let samples = ((1 << 27) / points).clamp(4, 64);
    (0..samples).map(|i| i * (points - 1) / (samples - 1)).collect()
}

/// One number of the forward transform of `x`, pairs, by its definition.
fn one_frequency([rows, columns]: [u32; 2], at: usize, x: &[f32]) -> [f64; 2] {
    let (rows, columns) = (rows as usize, columns as usize);
    let (u, v) = (at / columns, at % columns);
    let turn = |k: usize, n: usize| -2.0 * std::f64::consts::PI * k as f64 / n as f64;
    let mut sum = [0.0; 2];
    for (row, x) in x.chunks(2 * columns).enumerate() {
        // products of indices are below 2^48; reduced, the angles are exact to rounding
        let first = turn(u * row % rows, rows);
        for (column, pair) in x.chunks(2).enumerate() {
            let (sin, cos) = (first + turn(v * column % columns, columns)).sin_cos();
            let (re, im) = (f64::from(pair[0]), f64::from(pair[1]));
            sum[0] += re * cos - im * sin;
            sum[1] += re * sin + im * cos;
        }
    }
    sum
}

/// Seconds with a unit that leaves three or four digits.
pub(crate) fn seconds(s: f64) -> String {
    let mut text = String::new();
    let _ = match s {
        1.0.. => write!(text, "{s:.3} s"),
        1e-3.. => write!(text, "{:.3} ms", s * 1e3),
        _ => write!(text, "{:.2} us", s * 1e6),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_frequency_is_that_of_the_whole_transform() {
        for shape in [[1, 12], [5, 7], [8, 1]] {
            let points = count(&shape);
            let x = values(2 * points, 3);
            let want = reference::dft(shape, Direction::Forward, &wide(&x));
            for at in 0..points {
                let got = one_frequency(shape, at, &x);
                for (g, w) in got.iter().zip(&want[2 * at..]) {
                    assert!((g - w).abs() < 1e-12, "{shape:?} {at}: {g} {w}");
                }
            }
        }
        for points in [8193, 1 << 20, 1 << 24] {
            let all = sampled_frequencies(points);
            assert!(all[0] == 0 && all[all.len() - 1] == points - 1 && all.len() >= 4);
            assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
        }
    }
}
