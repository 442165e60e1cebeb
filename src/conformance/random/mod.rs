//! Random problems, in the form of golden cases, with outputs from [`crate::reference`].

#![expect(clippy::cast_possible_truncation, reason = "problems are small, and tensors hold f32")]

mod gaunt;
mod windows;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::case::{Case, CaseTensor, Data, Expect, Tolerance};
use crate::attention::{
    Attention, AttentionShape, BiasPositions, CausalAlignment, Mask, TripleAttention, TripleShape,
    Window,
};
use crate::fft::Direction;
use crate::linear_attention::{
    Decay, FeatureMap, LinearAttention, LinearAttentionShape, Normalize, Update,
};
use crate::reference::{self, AttentionInputs, LinearAttentionInputs};

type Make = fn(&mut Problem);

/// Operators with random problems: name, family, maker.
const OPS: &[(&str, &str, Make)] = &[
    ("sdpa", "sdpa", sdpa),
    ("sdpa_varlen", "sdpa", varlen),
    ("mla_decode", "misc", mla_decode),
    ("merge_partials", "misc", merge),
    ("plga", "misc", plga),
    ("triple_attention", "misc", triple),
    ("lightning", "linear", |p| linear(p, "lightning")),
    ("retention", "linear", |p| linear(p, "retention")),
    ("gla", "linear", |p| linear(p, "gla")),
    ("simple_gla", "linear", |p| linear(p, "simple_gla")),
    ("linear_attn_causal", "linear", |p| linear(p, "linear_attn_causal")),
    ("linear_attn_elu", "linear", |p| linear(p, "linear_attn_elu")),
    ("linear_attn_noncausal", "linear", |p| linear(p, "linear_attn_noncausal")),
    ("delta_rule", "linear", |p| linear(p, "delta_rule")),
    ("gated_delta_rule", "linear", |p| linear(p, "gated_delta_rule")),
    ("kernel_rpe", "misc", kernel_rpe),
    ("natten_1d", "natten", windows::natten::<1>),
    ("natten_2d", "natten", windows::natten::<2>),
    ("natten_3d", "natten", windows::natten::<3>),
    ("gaunt_tp", "gaunt", |p| gaunt::gaunt_tp(p, false)),
    ("gaunt_tp_weighted", "gaunt", |p| gaunt::gaunt_tp(p, true)),
    ("gaunt_conv", "gaunt", gaunt::gaunt_conv),
    ("gaunt_many_body", "gaunt", gaunt::gaunt_many_body),
    ("spherical_harmonics", "gaunt", gaunt::spherical_harmonics),
    ("cg_full_tp", "gaunt", gaunt::cg_full_tp),
    ("fft", "fft", fft),
    // new ones at the end: an operator's place is part of its seed
    ("moh", "misc", moh),
    ("maxvit_block", "misc", |p| windows::maxvit(p, false)),
    ("maxvit_grid", "misc", |p| windows::maxvit(p, true)),
    ("halo", "misc", windows::halo),
    ("axial", "misc", windows::axial),
    ("gaunt_coeffs", "gaunt", gaunt::gaunt_coeffs),
    ("gaunt_tp_bwd", "gaunt", gaunt::gaunt_tp_bwd),
    ("gaunt_equivariance", "gaunt", gaunt::gaunt_equivariance),
    ("s2grid", "gaunt", gaunt::s2grid),
    ("sh_to_fourier", "gaunt", gaunt::sh_to_fourier),
    ("cg_coeffs", "gaunt", gaunt::cg_coeffs),
    ("cg_weighted_tp", "gaunt", gaunt::cg_weighted_tp),
];

/// Names of the operators that [`random_case`] knows.
pub fn random_ops() -> impl Iterator<Item = &'static str> {
    OPS.iter().map(|(name, ..)| *name)
}

/// A random problem of operator `op`, the same for the same `seed` on every platform; `None` for an
/// operator that [`random_ops`] does not name.
///
/// The inputs lose nothing in f16 or bf16; the outputs are those of [`crate::reference`]; the
/// tolerances follow the rule of the golden cases: a relative part, and an absolute part of so many
/// times the largest output.
pub fn random_case(op: &str, seed: u64) -> Option<Case> {
    let (place, &(name, family, make)) =
        OPS.iter().enumerate().find(|(_, (name, ..))| *name == op)?;
    let mut rng = Rng(seed ^ (place as u64) << 48);
    // neighbouring seeds are far apart after a step
    rng.next();
    let mut problem = Problem {
        rng,
        params: Map::new(),
        tensors: BTreeMap::new(),
        tolerance: BTreeMap::new(),
        half: true,
    };
    make(&mut problem);
    Some(Case {
        name: format!("random_{name}_{seed}"),
        op: name.into(),
        family: family.into(),
        params: problem.params,
        dims: BTreeMap::new(),
        semantics: String::new(),
        expect: Expect::Values,
        optional: false,
        f16_applicable: problem.half,
        inputs_f16_exact: problem.half,
        tolerance: problem.tolerance,
        tensors: problem.tensors,
    })
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number from `low` to `high`, both included.
    fn range(&mut self, low: u32, high: u32) -> u32 {
        let span = u64::from(high - low) + 1;
        // below `span`, which fits
        low + u32::try_from(self.next() % span).unwrap_or(0)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.next() as usize % of.len()]
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.range(0, 99) < percent
    }

    /// Often a small number, sometimes one around a tile's edge.
    fn length(&mut self, most: u32) -> u32 {
        match self.range(0, 3) {
            0 => self.range(1, 9),
            1 => (self.pick(&[16, 32, 64, 128]) + self.range(0, 2)).saturating_sub(1).min(most),
            _ => self.range(1, most),
        }
    }
}

/// How close: the relative part for f32 in units of 1e-5, as the golden cases have it.
#[derive(Clone, Copy)]
enum Class {
    Plain = 1,
    Products = 3,
    Ratios = 10,
}

struct Problem {
    rng: Rng,
    params: Map<String, Value>,
    tensors: BTreeMap<String, CaseTensor>,
    tolerance: BTreeMap<String, BTreeMap<String, Tolerance>>,
    /// Also for 16-bit tensors.
    half: bool,
}

impl Problem {
    fn param(&mut self, name: &str, value: impl Into<Value>) {
        self.params.insert(name.into(), value.into());
    }

    /// A factor of scores near `1 / sqrt(d)`, as an argument.
    fn scale(&mut self, d: u32) -> f32 {
        let scale = (1.0 / f64::from(d).sqrt() * f64::from(self.rng.range(4, 8)) / 8.0) as f32;
        self.param("scale", f64::from(scale));
        scale
    }

    /// An input of multiples of `unit` from `low` to `high` of them, at most 255 in magnitude so
    /// that bf16 holds them too. Returns its values.
    fn input(&mut self, name: &str, shape: &[u32], unit: f64, [low, high]: [i32; 2]) -> Vec<f64> {
        let count: usize = shape.iter().map(|&n| n as usize).product();
        let span = (high - low).unsigned_abs();
        let values: Vec<f64> = (0..count)
            .map(|_| unit * (f64::from(low) + f64::from(self.rng.range(0, span))))
            .collect();
        self.given(name, shape, &values);
        values
    }

    /// A batch from 1 to `most`; now and then none.
    fn batch(&mut self, most: u32) -> u32 {
        if self.rng.chance(4) { 0 } else { self.rng.range(1, most) }
    }

    /// The unit of an input that the outputs are linear in: mostly that of [`Self::normal`], now
    /// and then one for magnitudes of hundreds or of hundredths.
    fn unit(&mut self) -> f64 {
        self.rng.pick(&[64f64, 64.0, 64.0, 64.0, 64.0, 64.0, 0.25, 2048.0]).recip()
    }

    /// Numbers from -1.5 to 1.5.
    fn normal(&mut self, name: &str, shape: &[u32]) -> Vec<f64> {
        self.input(name, shape, 1.0 / 64.0, [-96, 96])
    }

    fn given(&mut self, name: &str, shape: &[u32], values: &[f64]) {
        let data = Data::F32(values.iter().map(|&x| x as f32).collect());
        self.tensors.insert(name.into(), CaseTensor { shape: shape.to_vec(), data });
    }

    fn output(&mut self, name: &str, shape: &[u32], values: &[f64], class: Class) {
        let largest = values.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
        self.given(name, shape, values);
        let class = f64::from(class as u32);
        let (c, root) = (class * 1e-5, class.sqrt());
        let f32 = Tolerance::Close { atol: c * largest, rtol: c, rel_l2: 5.0 * c };
        let f16 = Tolerance::Close { atol: 2e-3 * root * largest, rtol: 4e-3 * root, rel_l2: 4e-3 };
        for (dtype, tolerance) in [("f32", f32), ("f16", f16)] {
            self.tolerance.entry(dtype.into()).or_default().insert(name.into(), tolerance);
        }
    }
}

/// `[a, b, c, d]` to `[a, c, b, d]`.
fn swapped(x: &[f64], [a, b, c, d]: [u32; 4]) -> Vec<f64> {
    let [a, b, c, d] = [a, b, c, d].map(|n| n as usize);
    let mut out = Vec::with_capacity(x.len());
    for i in 0..a {
        for k in 0..c {
            for j in 0..b {
                out.extend(&x[((i * b + j) * c + k) * d..][..d]);
            }
        }
    }
    out
}

/// Sizes of an attention problem.
fn attention_shape(p: &mut Problem) -> AttentionShape {
    let heads_kv = p.rng.range(1, 3);
    let head_dim = p.rng.pick(&[7, 8, 16, 30, 32, 40, 64, 72, 128]);
    let head_dim_v = if p.rng.chance(75) { head_dim } else { p.rng.pick(&[5, 8, 24, 64]) };
    AttentionShape {
        batch: p.rng.range(1, 2),
        seq_q: p.rng.length(140),
        seq_k: p.rng.length(200),
        heads: heads_kv * p.rng.pick(&[1, 1, 2, 4]),
        heads_kv,
        head_dim,
        head_dim_v,
    }
}

/// Heads-first inputs of a shape; their values heads-last.
fn rows(p: &mut Problem, s: &AttentionShape) -> [Vec<f64>; 3] {
    let q = [s.batch, s.heads, s.seq_q, s.head_dim];
    let k = [s.batch, s.heads_kv, s.seq_k, s.head_dim];
    let v = [s.batch, s.heads_kv, s.seq_k, s.head_dim_v];
    [("in.q", q), ("in.k", k), ("in.v", v)]
        .map(|(name, shape)| swapped(&p.normal(name, &shape), shape))
}

/// `out.o` heads-first, and `out.lse`.
fn attended(p: &mut Problem, s: &AttentionShape, o: &[f64], lse: &[f64]) {
    let [b, t, h, d] = [s.batch, s.seq_q, s.heads, s.head_dim_v];
    p.output("out.o", &[b, h, t, d], &swapped(o, [b, t, h, d]), Class::Plain);
    p.output("out.lse", &[b, h, t], lse, Class::Plain);
}

fn causal_mask(causal: bool) -> Mask {
    if causal { Mask::Causal(CausalAlignment::BottomRight) } else { Mask::None }
}

fn sdpa(p: &mut Problem) {
    let s = attention_shape(p);
    let causal = p.rng.chance(50);
    let scale = p.scale(s.head_dim);
    let mut end = || p.rng.chance(60).then(|| p.rng.length(80));
    let window =
        if end().is_some() { Window::default() } else { Window { left: end(), right: end() } };
    let softcap = p.rng.chance(20).then(|| p.rng.pick(&[2.0f32, 8.0, 30.0]));
    p.param("causal", causal);
    p.param("window", json!([window.left, window.right]));
    p.param("softcap", f64::from(softcap.unwrap_or(0.0)));
    let [q, k, v] = rows(p, &s);
    let [b, h, t, n] = [s.batch, s.heads, s.seq_q, s.seq_k];
    let alibi = p.rng.chance(20);
    let slopes = if alibi { p.input("in.slopes", &[h], 1.0 / 256.0, [0, 64]) } else { Vec::new() };
    // one for all batches or heads, or one for each
    let over = |x: &mut Problem| {
        [if x.rng.chance(50) { 1 } else { b }, if x.rng.chance(50) { 1 } else { h }]
    };
    let spread = |[few_b, few_h]: [u32; 2], x: &[f64]| -> Vec<f64> {
        let map = (t * n) as usize;
        (0..b * h)
            .flat_map(|i| {
                let at = (i / h % few_b) * few_h + i % h % few_h;
                x[at as usize * map..][..map].to_vec()
            })
            .collect()
    };
    let with_bias = p.rng.chance(25);
    let bias = if with_bias {
        let few = over(p);
        let x = p.input("in.bias", &[few[0], few[1], t, n], 1.0 / 64.0, [-128, 128]);
        spread(few, &x)
    } else {
        Vec::new()
    };
    let mut seen = Vec::new();
    let byte_mask = |p: &mut Problem, name: &str, shape: &[u32]| -> Vec<u8> {
        let count: usize = shape.iter().map(|&n| n as usize).product();
        let share = p.rng.pick(&[20, 60, 95]);
        let data: Vec<u8> = (0..count).map(|_| u8::from(p.rng.chance(share))).collect();
        let tensor = CaseTensor { shape: shape.to_vec(), data: Data::U8(data.clone()) };
        p.tensors.insert(name.into(), tensor);
        data
    };
    if p.rng.chance(20) {
        let few_h = if p.rng.chance(50) { 1 } else { h };
        let data = byte_mask(p, "in.mask", &[b, few_h, t, n]);
        let wide: Vec<f64> = data.into_iter().map(f64::from).collect();
        seen = spread([b, few_h], &wide).into_iter().map(|x| x != 0.0).collect();
    }
    if p.rng.chance(20) {
        let keys = byte_mask(p, "in.key_mask", &[b, n]);
        seen.resize((b * h * t * n) as usize, true);
        for (at, seen) in seen.iter_mut().enumerate() {
            let (batch, key) = (at / (h * t * n) as usize, at % n as usize);
            *seen &= keys[batch * n as usize + key] != 0;
        }
    }
    let options = Attention {
        mask: causal_mask(causal),
        window,
        scale: Some(scale),
        softcap,
        alibi,
        bias: with_bias,
        visible: !seen.is_empty(),
        ..Default::default()
    };
    let inputs = AttentionInputs {
        q: &q,
        k: &k,
        v: &v,
        slopes: &slopes,
        bias: &bias,
        visible: &seen,
        ..Default::default()
    };
    let (o, lse) = reference::attention(&s, &options, &inputs);
    attended(p, &s, &o, &lse);
}

fn varlen(p: &mut Problem) {
    let mut s = AttentionShape { batch: 1, ..attention_shape(p) };
    let causal = p.rng.chance(50);
    let scale = p.scale(s.head_dim);
    p.param("causal", causal);
    let lengths: Vec<[u32; 2]> =
        (0..p.rng.range(1, 4)).map(|_| [p.rng.range(0, 70), p.rng.range(0, 70)]).collect();
    let bounds = [0, 1].map(|side| {
        let mut bounds = vec![0u32];
        for l in &lengths {
            bounds.push(bounds.last().copied().unwrap_or(0) + l[side]);
        }
        bounds
    });
    for (bounds, name) in bounds.iter().zip(["in.cu_q", "in.cu_k"]) {
        let data = Data::I32(bounds.iter().map(|x| x.cast_signed()).collect());
        p.tensors.insert(name.into(), CaseTensor { shape: vec![bounds.len() as u32], data });
    }
    [s.seq_q, s.seq_k] = [0, 1].map(|side| lengths.iter().map(|l| l[side]).sum());
    let q = p.normal("in.q", &[s.seq_q, s.heads, s.head_dim]);
    let k = p.normal("in.k", &[s.seq_k, s.heads_kv, s.head_dim]);
    let v = p.normal("in.v", &[s.seq_k, s.heads_kv, s.head_dim_v]);
    // further options last: problems without them stay what they were
    let softcap = p.rng.chance(15).then(|| p.rng.pick(&[2.0f32, 8.0, 30.0]));
    p.param("softcap", f64::from(softcap.unwrap_or(0.0)));
    let (with_bias, with_mask) = (p.rng.chance(40), p.rng.chance(40));
    let positions = match p.rng.chance(50) {
        true => BiasPositions::Pack,
        false => BiasPositions::Sequence,
    };
    let mut pairs = Pairs { shape: [0; 4], used: Vec::new() };
    if with_bias || with_mask {
        p.param(
            "bias_positions",
            if positions == BiasPositions::Pack { "pack" } else { "sequence" },
        );
        pairs = Pairs::new(positions, &lengths, [s.seq_q, s.seq_k]);
    }
    let (mut bias, mut visible) = (Vec::new(), Vec::new());
    if with_bias {
        let few = if p.rng.chance(50) { 1 } else { s.heads };
        let [a, _, t, n] = pairs.shape;
        let mut x = p.input("in.bias", &[a, few, t, n], 1.0 / 64.0, [-128, 128]);
        for (at, x) in x.iter_mut().enumerate() {
            if p.rng.chance(5) {
                *x = f64::NEG_INFINITY;
            }
            // what belongs to no pair may hold anything
            if !pairs.used(at, few) {
                *x = p.rng.pick(&[f64::NAN, f64::INFINITY, 1e30, -3.0]);
            }
        }
        p.given("in.bias", &[a, few, t, n], &x);
        bias = pairs.spread(&x, few, s.heads);
    }
    if with_mask {
        let few = if p.rng.chance(50) { 1 } else { s.heads };
        let [a, _, t, n] = pairs.shape;
        let share = p.rng.pick(&[20, 60, 95]);
        let data: Vec<u8> = (0..a * few * t * n).map(|_| u8::from(p.rng.chance(share))).collect();
        let wide: Vec<f64> = data.iter().copied().map(f64::from).collect();
        visible = pairs.spread(&wide, few, s.heads).into_iter().map(|x| x != 0.0).collect();
        let tensor = CaseTensor { shape: vec![a, few, t, n], data: Data::U8(data) };
        p.tensors.insert("in.mask".into(), tensor);
    }
    let options = Attention {
        mask: causal_mask(causal),
        scale: Some(scale),
        softcap,
        bias: with_bias,
        visible: with_mask,
        packed: true,
        bias_positions: positions,
        ..Default::default()
    };
    let inputs = AttentionInputs {
        q: &q,
        k: &k,
        v: &v,
        bias: &bias,
        visible: &visible,
        ..Default::default()
    };
    let (o, lse) = reference::packed_attention(&s, &options, &inputs, &bounds[0], &bounds[1]);
    p.output("out.o", &[s.seq_q, s.heads, s.head_dim_v], &o, Class::Plain);
    p.output("out.lse", &[s.heads, s.seq_q], &lse, Class::Plain);
}

/// Sizes of a bias or mask of packed sequences, the heads aside, and which entries belong to a query
/// and a key of one sequence.
struct Pairs {
    shape: [u32; 4],
    used: Vec<bool>,
}

impl Pairs {
    fn new(positions: BiasPositions, lengths: &[[u32; 2]], totals: [u32; 2]) -> Self {
        let longest = |side: usize| lengths.iter().map(|l| l[side]).max().unwrap_or(0);
        let [a, t, n] = match positions {
            BiasPositions::Pack => [1, totals[0], totals[1]],
            BiasPositions::Sequence => [lengths.len() as u32, longest(0), longest(1)],
        };
        let mut used = vec![false; (a * t * n) as usize];
        let mut first = [0, 0];
        for (sequence, &[queries, keys]) in (0..).zip(lengths) {
            let [batch, row, column] = match positions {
                BiasPositions::Pack => [0, first[0], first[1]],
                BiasPositions::Sequence => [sequence, 0, 0],
            };
            for i in 0..queries {
                let from = ((batch * t + row + i) * n + column) as usize;
                used[from..][..keys as usize].fill(true);
            }
            first = [first[0] + queries, first[1] + keys];
        }
        Self { shape: [a, 1, t, n], used }
    }

    /// Whether an entry of a tensor with so many heads belongs to a pair.
    fn used(&self, at: usize, heads: u32) -> bool {
        let map = (self.shape[2] * self.shape[3]) as usize;
        self.used[at / (map * heads as usize) * map + at % map]
    }

    /// A tensor of `few` heads, 1 or all, with all of them.
    fn spread(&self, x: &[f64], few: u32, heads: u32) -> Vec<f64> {
        let map = (self.shape[2] * self.shape[3]) as usize;
        (0..self.shape[0] * heads)
            .flat_map(|i| {
                let at = i / heads * few + i % heads % few;
                x[at as usize * map..][..map].to_vec()
            })
            .collect()
    }
}

fn mla_decode(p: &mut Problem) {
    let latent = p.rng.pick(&[32, 64, 128, 512]);
    let width = latent + p.rng.pick(&[16, 64]);
    let s = AttentionShape {
        batch: p.rng.range(1, 2),
        seq_q: p.rng.range(1, 3),
        seq_k: p.rng.range(3, 150),
        heads: p.rng.pick(&[1, 3, 8, 16]),
        heads_kv: 1,
        head_dim: width,
        head_dim_v: latent,
    };
    p.param("d_latent", latent);
    let causal = p.rng.chance(70);
    p.param("causal", causal);
    let scale = p.scale(width);
    let q_shape = [s.batch, s.heads, s.seq_q, width];
    let q = swapped(&p.normal("in.q", &q_shape), q_shape);
    let k = p.normal("in.kv", &[s.batch, s.seq_k, width]);
    let v: Vec<f64> =
        k.chunks(width as usize).flat_map(|row| row[..latent as usize].to_vec()).collect();
    let options = Attention { mask: causal_mask(causal), scale: Some(scale), ..Default::default() };
    let inputs = AttentionInputs { q: &q, k: &k, v: &v, ..Default::default() };
    let (o, lse) = reference::attention(&s, &options, &inputs);
    attended(p, &s, &o, &lse);
}

fn merge(p: &mut Problem) {
    let [parts, b, h, t] =
        [p.rng.range(1, 6), p.rng.range(1, 2), p.rng.range(1, 4), p.rng.length(90)];
    let d = p.rng.pick(&[1, 8, 33, 64, 128]);
    let mut o_parts = p.normal("in.o_parts", &[parts, b, h, t, d]);
    let mut lse_parts = p.input("in.lse_parts", &[parts, b, h, t], 1.0 / 16.0, [-160, 160]);
    // parts without a key: 0, and -inf
    for (lse, o) in lse_parts.iter_mut().zip(o_parts.chunks_mut(d as usize)) {
        if p.rng.chance(15) {
            *lse = f64::NEG_INFINITY;
            o.fill(0.0);
        }
    }
    p.given("in.o_parts", &[parts, b, h, t, d], &o_parts);
    p.given("in.lse_parts", &[parts, b, h, t], &lse_parts);
    let rows = (b * h * t) as usize;
    let (mut o, mut lse) = (Vec::new(), Vec::new());
    for row in 0..rows {
        let of_part = |part: u32| lse_parts[part as usize * rows + row];
        let total: f64 = (0..parts).map(|part| of_part(part).exp()).sum::<f64>().ln();
        lse.push(total);
        o.extend((0..d as usize).map(|c| {
            let x = |part: u32| o_parts[(part as usize * rows + row) * d as usize + c];
            let part = |part| {
                if total.is_finite() { (of_part(part) - total).exp() * x(part) } else { 0.0 }
            };
            (0..parts).map(part).sum::<f64>()
        }));
    }
    p.output("out.o", &[b, h, t, d], &o, Class::Plain);
    p.output("out.lse", &[b, h, t], &lse, Class::Plain);
}

fn plga(p: &mut Problem) {
    let n = p.rng.length(90);
    let d = p.rng.pick(&[8, 16, 32, 64]);
    let heads = p.rng.range(1, 3);
    let s = AttentionShape {
        batch: p.rng.range(1, 2),
        seq_q: n,
        seq_k: n,
        heads,
        heads_kv: heads,
        head_dim: d,
        head_dim_v: d,
    };
    let causal = p.rng.chance(60);
    p.param("causal", causal);
    let scale = p.scale(d);
    let [q, k, v] = rows(p, &s);
    let metric = p.input("in.G", &[heads, d, d], 1.0 / 512.0, [-96, 96]);
    let options = Attention {
        mask: causal_mask(causal),
        scale: Some(scale),
        metric: true,
        ..Default::default()
    };
    let inputs = AttentionInputs { q: &q, k: &k, v: &v, metric: &metric, ..Default::default() };
    let (o, _) = reference::attention(&s, &options, &inputs);
    p.output(
        "out.o",
        &[s.batch, heads, n, d],
        &swapped(&o, [s.batch, n, heads, d]),
        Class::Products,
    );
}

/// Numbers for the heads of each token, no two of a token equal: which are the largest is clear.
fn logits(p: &mut Problem, name: &str, [b, n, heads]: [u32; 3]) -> Vec<f64> {
    let mut x = Vec::new();
    for _ in 0..b * n {
        let token = (0..heads).map(|h| f64::from(h + heads * p.rng.range(0, 16)) / 64.0 - 1.5);
        x.extend(token);
    }
    p.given(name, &[b, n, heads], &x);
    x
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let total: f64 = x.iter().map(|x| x.exp()).sum();
    x.iter().map(|x| x.exp() / total).collect()
}

/// Mixture of heads: some on for every token, of the others the best for each token.
fn moh(p: &mut Problem) {
    let [shared, routed] = [p.rng.pick(&[0, 0, 1, 2, 3]), p.rng.range(1, 9)];
    let top = p.rng.range(1, routed);
    let d = p.rng.pick(&[1, 8, 16, 20, 32, 64]);
    let heads = shared + routed;
    let n = p.rng.length(90);
    let s = AttentionShape {
        batch: p.batch(2),
        seq_q: n,
        seq_k: n,
        heads,
        heads_kv: heads,
        head_dim: d,
        head_dim_v: d,
    };
    let b = s.batch;
    p.param("shared", shared);
    p.param("topk", top);
    let scale = p.scale(d);
    let mut input = |name: &str, unit: f64| {
        let shape = [b, heads, n, d];
        swapped(&p.input(name, &shape, unit, [-96, 96]), shape)
    };
    let (q, k) = (input("in.q", 1.0 / 64.0), input("in.k", 1.0 / 64.0));
    let unit = p.unit();
    let v_shape = [b, heads, n, d];
    let v = swapped(&p.input("in.v", &v_shape, unit, [-96, 96]), v_shape);
    let options = Attention { scale: Some(scale), ..Default::default() };
    let inputs = AttentionInputs { q: &q, k: &k, v: &v, ..Default::default() };
    let (mut o, _) = reference::attention(&s, &options, &inputs);

    let of_routed = logits(p, "in.routed_logits", [b, n, routed]);
    let (of_shared, mix) = match shared {
        0 => (Vec::new(), Vec::new()),
        _ => (logits(p, "in.shared_logits", [b, n, shared]), logits(p, "in.mix_logits", [b, n, 2])),
    };
    let mut gates = Vec::new();
    for token in 0..(b * n) as usize {
        let of = |x: &[f64], width: u32| x[token * width as usize..][..width as usize].to_vec();
        let mut share = [1.0, 1.0];
        if shared > 0 {
            let both = softmax(&of(&mix, 2));
            share = [2.0 * both[0], 2.0 * both[1]];
            let weights = softmax(&of(&of_shared, shared));
            gates.extend(weights.iter().map(|w| w * f64::from(shared) * share[0]));
        }
        let logits = of(&of_routed, routed);
        // a head is kept if fewer than `top` are above it
        let above = |x: f64| logits.iter().filter(|other| **other > x).count();
        let kept = |x: f64| if above(x) < top as usize { x.exp() } else { 0.0 };
        let total: f64 = logits.iter().map(|&x| kept(x)).sum();
        gates.extend(logits.iter().map(|&x| kept(x) / total * f64::from(top) * share[1]));
    }
    for (row, gate) in o.chunks_mut(d as usize).zip(&gates) {
        row.iter_mut().for_each(|x| *x *= gate);
    }
    p.output("out.o", &[b, n, heads * d], &o, Class::Products);
    p.output("out.gates", &[b, n, heads], &gates, Class::Plain);
}

fn triple(p: &mut Problem) {
    let heads_kv = p.rng.range(1, 2);
    let n = p.rng.range(1, 20);
    let causal = p.rng.chance(50);
    let s = TripleShape {
        batch: p.rng.range(1, 2),
        seq_q: n,
        seq_1: if causal { n } else { p.rng.range(1, 24) },
        seq_2: if causal { n } else { p.rng.range(1, 24) },
        heads: heads_kv * p.rng.range(1, 2),
        heads_kv,
        head_dim: p.rng.pick(&[6, 8, 16, 32]),
        head_dim_v: p.rng.pick(&[7, 8, 16, 32]),
    };
    p.param("causal", causal);
    let scale = p.scale(s.head_dim);
    let mut input = |name: &str, h, n, d| {
        let shape = [s.batch, h, n, d];
        swapped(&p.normal(name, &shape), shape)
    };
    let q = input("in.q", s.heads, s.seq_q, s.head_dim);
    let k1 = input("in.k1", s.heads_kv, s.seq_1, s.head_dim);
    let k2 = input("in.k2", s.heads_kv, s.seq_2, s.head_dim);
    let v1 = input("in.v1", s.heads_kv, s.seq_1, s.head_dim_v);
    let v2 = input("in.v2", s.heads_kv, s.seq_2, s.head_dim_v);
    let options = TripleAttention { causal, scale: Some(scale), ..Default::default() };
    let (o, lse) = reference::triple_attention(&s, &options, &q, &k1, &k2, &v1, &v2);
    let [b, t, h, d] = [s.batch, s.seq_q, s.heads, s.head_dim_v];
    p.output("out.o", &[b, h, t, d], &swapped(&o, [b, t, h, d]), Class::Products);
    p.output("out.lse", &[b, h, t], &lse, Class::Products);
}

fn linear(p: &mut Problem, name: &str) {
    let heads = p.rng.range(1, 4);
    let most = if name.contains("delta") { 110 } else { 150 };
    let seq_k = p.rng.length(most);
    let causal = match name {
        "linear_attn_elu" => p.rng.chance(50),
        "linear_attn_noncausal" => false,
        _ => true,
    };
    let seq_q = if causal { seq_k } else { p.rng.length(most) };
    let key_dim = p.rng.pick(&[7, 8, 16, 24, 32, 64]);
    let s = LinearAttentionShape {
        batch: p.rng.range(1, 2),
        seq_q,
        seq_k,
        heads,
        heads_q: heads,
        heads_k: heads,
        heads_v: heads,
        key_dim,
        value_dim: p.rng.pick(&[8, 13, 16, 32, 40, 64]),
    };
    let heads_first = matches!(name, "lightning" | "retention" | "delta_rule");
    let delta = name.contains("delta");
    let scale = if name == "linear_attn_elu" { 1.0 } else { p.scale(key_dim) };
    let axes = |[b, t, h, d]: [u32; 4]| if heads_first { [b, h, t, d] } else { [b, t, h, d] };
    // values heads-last
    let input = |p: &mut Problem, name: &str, shape, unit, range| {
        let x = p.input(name, &axes(shape), unit, range);
        if heads_first { swapped(&x, axes(shape)) } else { x }
    };
    let normalized = match name {
        "linear_attn_elu" => true,
        "linear_attn_causal" => p.rng.chance(50),
        _ => false,
    };
    // a denominator of mixed signs would be near 0 somewhere
    let range = if name == "linear_attn_causal" && normalized { [1, 96] } else { [-96, 96] };
    let unit = 1.0 / 64.0;
    // the delta rule is stable while beta |k|^2 < 2
    let k_unit = if delta { 1.0 / 512.0 } else { unit };
    let q = input(p, "in.q", [s.batch, seq_q, heads, key_dim], unit, range);
    let k = input(p, "in.k", [s.batch, seq_k, heads, key_dim], k_unit, range);
    let v = input(p, "in.v", [s.batch, seq_k, heads, s.value_dim], unit, [-96, 96]);
    let strong = p.rng.pick(&[1.0 / 512.0, 1.0 / 64.0, 1.0 / 8.0]);
    let (mut gates, mut beta) = (Vec::new(), Vec::new());
    let mut decay = Decay::None;
    match name {
        "lightning" => {
            let slopes = p.input("in.slopes", &[heads], 1.0 / 64.0, [0, 96]);
            decay = Decay::PerHead(slopes.iter().map(|&x| -x as f32).collect());
        }
        "retention" => {
            // gamma = 1 - 2^(-5 - h)
            let log = |h: u32| (1.0 - 2f64.powi(-5 - h.cast_signed())).ln() as f32;
            decay = Decay::PerHead((0..heads).map(log).collect());
        }
        "gla" => {
            decay = Decay::PerChannel;
            gates = p.input("in.gk", &[s.batch, seq_k, heads, key_dim], strong, [-96, 0]);
        }
        "simple_gla" | "gated_delta_rule" => {
            decay = Decay::PerToken;
            gates = p.input("in.g", &[s.batch, seq_k, heads], strong, [-96, 0]);
        }
        _ => {}
    }
    if delta {
        let shape = axes([s.batch, seq_k, heads, 1]);
        let x = p.input("in.beta", &shape[..3], 1.0 / 128.0, [0, 128]);
        beta = if heads_first { swapped(&x, shape) } else { x };
    }
    let features = key_dim;
    let state = if name != "retention" && causal && !normalized && p.rng.chance(50) {
        p.normal("in.h0", &[s.batch, heads, features, s.value_dim])
    } else {
        Vec::new()
    };
    let mut op = LinearAttention {
        decay,
        update: if delta { Update::Delta } else { Update::Add },
        scale,
        causal,
        ..Default::default()
    };
    if name == "linear_attn_elu" {
        op.feature_map = FeatureMap::EluPlusOne;
        op.normalize = Normalize::Eps(1e-6);
        p.param("feature_map", "elu+1");
        p.param("eps", 1e-6);
        p.param("causal", causal);
        if !causal && p.rng.chance(40) {
            op.update = Update::Weighted;
            // no sequence without a key: its denominator is eps alone
            let lengths: Vec<i32> =
                (0..s.batch).map(|_| p.rng.range(1, seq_k).cast_signed()).collect();
            for &n in &lengths {
                let weight = |i: u32| if i / heads < n.unsigned_abs() { 1.0 } else { 0.0 };
                beta.extend((0..seq_k * heads).map(weight));
            }
            let tensor = CaseTensor { shape: vec![s.batch], data: Data::I32(lengths) };
            p.tensors.insert("in.k_len".into(), tensor);
        }
    }
    if name == "linear_attn_causal" {
        p.param("normalize", normalized);
        if normalized {
            p.param("eps", 1e-10);
            op.normalize = Normalize::Eps(1e-10);
        }
    }
    let inputs = LinearAttentionInputs {
        q: &q,
        k: &k,
        v: &v,
        gates: &gates,
        beta: &beta,
        state: &state,
        key_sum: &[],
    };
    let out = reference::linear_attention(&op, &s, &inputs);
    let o_shape = [s.batch, seq_q, heads, s.value_dim];
    let o = if heads_first { swapped(&out.o, o_shape) } else { out.o };
    p.output("out.o", &axes(o_shape), &o, Class::Plain);
    p.output("out.ht", &[s.batch, heads, features, s.value_dim], &out.state, Class::Plain);
    if normalized {
        p.output("out.zt", &[s.batch, heads, features], &out.key_sum, Class::Plain);
    }
}

fn kernel_rpe(p: &mut Problem) {
    let [b, h, n] = [p.rng.range(1, 2), p.rng.range(1, 3), p.rng.length(90)];
    let [d, dv] = [p.rng.pick(&[8, 16, 32]), p.rng.pick(&[8, 16, 32])];
    let causal = p.rng.chance(50);
    let given = p.rng.chance(50);
    p.param("causal", causal);
    p.param("given_features", given);
    let bias = p.input("in.b", &[h, 2 * n - 1], 1.0 / 64.0, [-96, 96]);
    let v = p.normal("in.v", &[b, h, n, dv]);
    let rows = (b * h) as usize;
    let mut features = d;
    let (q, k) = if given {
        let shape = [b, h, n, d];
        (
            p.input("in.phi_q", &shape, 1.0 / 64.0, [1, 96]),
            p.input("in.phi_k", &shape, 1.0 / 64.0, [1, 96]),
        )
    } else {
        features = p.rng.pick(&[8, 16, 32]);
        let (q, k) = (p.normal("in.q", &[b, h, n, d]), p.normal("in.k", &[b, h, n, d]));
        let w = p.normal("in.w", &[h, features, d]);
        let shape = [rows, h as usize, n as usize, features as usize, d as usize];
        let phi = |x: &[f64]| reference::positive_features(shape, x, &w);
        (phi(&q), phi(&k))
    };
    let shape = [rows, h as usize, n as usize, features as usize, dv as usize];
    let o = reference::relative_attention(shape, causal, &q, &k, &v, &bias);
    p.output("out.o", &[b, h, n, dv], &o, Class::Ratios);
}

fn fft(p: &mut Problem) {
    p.half = false;
    let long = p.rng.chance(60);
    let shape =
        if long { [1, p.rng.range(1, 1400)] } else { [p.rng.range(1, 40), p.rng.range(1, 40)] };
    let inverse = p.rng.chance(50);
    let real = p.rng.chance(40);
    p.param("inverse", inverse);
    p.param("real", real);
    p.param("shape", shape.to_vec());
    let batch = p.rng.range(1, 4);
    let [n0, n1] = shape.map(|n| n as usize);
    let direction = if inverse { Direction::Inverse } else { Direction::Forward };
    let half = n1 / 2 + 1;
    let halved = |x: &[f64]| -> Vec<f64> {
        x.chunks(2 * n1).flat_map(|row| row[..2 * half].to_vec()).collect()
    };
    let wide = |n: usize| n as u32;
    let complex = [batch, shape[0], shape[1], 2];
    let spectrum = [batch, shape[0], wide(half), 2];
    let points = [batch, shape[0], shape[1], 1];
    let pairs = |x: &[f64]| -> Vec<f64> { x.iter().flat_map(|&x| [x, 0.0]).collect() };
    match (real, inverse) {
        (false, _) => {
            let x = p.normal("in.x", &complex);
            let out = reference::dft(shape, direction, &x);
            p.output("out.x", &complex, &out, Class::Plain);
        }
        (true, false) => {
            let x = p.normal("in.x", &points);
            let out = halved(&reference::dft(shape, direction, &pairs(&x)));
            p.output("out.x", &spectrum, &out, Class::Plain);
        }
        (true, true) => {
            // a spectrum of real points, so that what is left out follows from it
            let count = batch as usize * n0 * n1;
            let points_in: Vec<f64> =
                (0..count).map(|_| f64::from(p.rng.range(0, 192)) / 64.0 - 1.5).collect();
            let half_in = halved(&reference::dft(shape, Direction::Forward, &pairs(&points_in)));
            p.given("in.x", &spectrum, &half_in);
            let out: Vec<f64> = points_in.iter().map(|x| x * (n0 * n1) as f64).collect();
            p.output("out.x", &points, &out, Class::Plain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{OPS, random_case};
    use crate::conformance::ops;

    /// Operators of the cases that no random problem is made for, and why.
    const WITHOUT: [(&str, &str); 6] = [
        ("sdpa_bwd", "not built"),
        ("mla_absorb", "not built"),
        ("plga_full", "not built"),
        ("gla_bwd", "not built"),
        ("natten_bwd_1d", "not built"),
        ("natten_bwd_2d", "not built"),
    ];

    #[test]
    fn every_operator_has_random_problems_or_a_reason() {
        let without = |op: &str| WITHOUT.iter().any(|(name, _)| *name == op);
        for (op, _) in ops::all() {
            let made = OPS.iter().any(|(name, ..)| *name == op);
            assert!(made != without(op), "{op}: made {made}");
        }
        for name in OPS.iter().map(|o| o.0).chain(WITHOUT.map(|w| w.0)) {
            assert!(ops::find(name).is_some(), "{name} is no operator of the cases");
        }
    }

    /// The reason given above is the true one.
    #[test]
    fn those_without_are_not_built() {
        let case = random_case("sdpa", 1).unwrap();
        let Ok(ctx) = crate::Context::new_blocking() else {
            let allowed = std::env::var("TILEWISE_ALLOW_NO_GPU").is_ok_and(|v| v == "1");
            assert!(allowed, "no adapter; TILEWISE_ALLOW_NO_GPU=1 allows that");
            return;
        };
        for (op, reason) in WITHOUT {
            let case = super::Case { op: op.into(), ..case.clone() };
            let outcome = crate::conformance::run(&ctx, &case, crate::DType::F32);
            let Err(crate::conformance::Stop::Unsupported(why)) = outcome else {
                panic!("{op}: {outcome:?}")
            };
            assert!(why.contains(reason), "{why}");
        }
    }

    /// The edges come up: no batch, one of everything, large values.
    #[test]
    fn edges_come_up() {
        for op in ["moh", "maxvit_block", "maxvit_grid", "halo", "axial", "gaunt_tp_bwd", "s2grid"]
        {
            let (mut empty, mut large, mut small) = (0, 0, 0);
            for seed in 0..120 {
                let case = random_case(op, seed).unwrap();
                let Some(tensor) = case.tensor("in.v").or_else(|| case.tensor("in.x")) else {
                    panic!("{op} has neither in.v nor in.x")
                };
                let super::Data::F32(data) = &tensor.data else { panic!("{op}: floats") };
                let top = data.iter().fold(0f32, |m, x| m.max(x.abs()));
                empty += u32::from(data.is_empty());
                large += u32::from(top > 100.0);
                small += u32::from(!data.is_empty() && top < 0.05);
            }
            assert!(empty > 0 && large > 0 && small > 0, "{op}: {empty} {large} {small}");
        }
    }
}
