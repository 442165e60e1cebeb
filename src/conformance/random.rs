//! Random problems, in the form of golden cases, with outputs from [`crate::reference`].

#![expect(clippy::cast_possible_truncation, reason = "problems are small, and tensors hold f32")]

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::case::{Case, CaseTensor, Data, Expect, Tolerance};
use crate::attention::{
    Attention, AttentionShape, CausalAlignment, Mask, TripleAttention, TripleShape, Window,
};
use crate::fft::Direction;
use crate::gaunt::{ClebschGordan, Irreps, ShNormalization};
use crate::linear_attention::{
    Decay, FeatureMap, LinearAttention, LinearAttentionShape, Normalize, Update,
};
use crate::neighborhood::{NeighborhoodAttention, NeighborhoodShape};
use crate::reference::{self, AttentionInputs, LinearAttentionInputs, NeighborhoodInputs};

type Make = fn(&mut Problem);

/// Operators with random problems: name, family, maker.
const OPS: [(&str, &str, Make); 26] = [
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
    ("natten_1d", "natten", natten::<1>),
    ("natten_2d", "natten", natten::<2>),
    ("natten_3d", "natten", natten::<3>),
    ("gaunt_tp", "gaunt", |p| gaunt_tp(p, false)),
    ("gaunt_tp_weighted", "gaunt", |p| gaunt_tp(p, true)),
    ("gaunt_conv", "gaunt", gaunt_conv),
    ("gaunt_many_body", "gaunt", gaunt_many_body),
    ("spherical_harmonics", "gaunt", spherical_harmonics),
    ("cg_full_tp", "gaunt", cg_full_tp),
    ("fft", "fft", fft),
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
        inputs_f16_exact: true,
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
    for (side, name) in ["in.cu_q", "in.cu_k"].into_iter().enumerate() {
        let mut bounds = vec![0i32];
        for l in &lengths {
            bounds.push(bounds.last().copied().unwrap_or(0) + l[side].cast_signed());
        }
        let shape = vec![bounds.len() as u32];
        p.tensors.insert(name.into(), CaseTensor { shape, data: Data::I32(bounds) });
    }
    [s.seq_q, s.seq_k] = [0, 1].map(|side| lengths.iter().map(|l| l[side]).sum());
    let q = p.normal("in.q", &[s.seq_q, s.heads, s.head_dim]);
    let k = p.normal("in.k", &[s.seq_k, s.heads_kv, s.head_dim]);
    let v = p.normal("in.v", &[s.seq_k, s.heads_kv, s.head_dim_v]);
    let options = Attention { mask: causal_mask(causal), scale: Some(scale), ..Default::default() };
    let (mut o, mut parts) = (Vec::new(), Vec::new());
    let (mut from_q, mut from_k) = (0, 0);
    for [t, n] in lengths {
        let part = AttentionShape { seq_q: t, seq_k: n, ..s };
        let row = |x: u32, h: u32, d: u32| (x * h * d) as usize;
        let inputs = AttentionInputs {
            q: &q[row(from_q, s.heads, s.head_dim)..],
            k: &k[row(from_k, s.heads_kv, s.head_dim)..],
            v: &v[row(from_k, s.heads_kv, s.head_dim_v)..],
            ..Default::default()
        };
        let (o_part, lse) = reference::attention(&part, &options, &inputs);
        o.extend(o_part);
        parts.push((t as usize, lse));
        (from_q, from_k) = (from_q + t, from_k + n);
    }
    let lse: Vec<f64> = (0..s.heads as usize)
        .flat_map(|h| parts.iter().flat_map(move |(t, lse)| lse[h * t..][..*t].iter().copied()))
        .collect();
    p.output("out.o", &[s.seq_q, s.heads, s.head_dim_v], &o, Class::Plain);
    p.output("out.lse", &[s.heads, s.seq_q], &lse, Class::Plain);
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

fn natten<const D: usize>(p: &mut Problem) {
    let most = [90, 14, 7][D - 1];
    let kernel_most = [16, 7, 4][D - 1];
    let mut op = NeighborhoodAttention::<D>::new([1; D]);
    let mut spatial = [1; D];
    for (axis, extent) in spatial.iter_mut().enumerate() {
        let kernel = p.rng.range(1, kernel_most);
        let dilation = p.rng.range(1, 2);
        // each dilation group holds a window
        *extent = p.rng.range(kernel * dilation, (kernel * dilation).max(most));
        op.kernel_size[axis] = kernel;
        op.dilation[axis] = dilation;
        op.stride[axis] = if p.rng.chance(60) { 1 } else { p.rng.range(1, kernel) };
        op.is_causal[axis] = p.rng.chance(25);
    }
    let heads_kv = p.rng.range(1, 2);
    let dim = p.rng.pick(&[7, 8, 16, 30, 32, 64]);
    let s = NeighborhoodShape {
        batch: p.rng.range(1, 2),
        spatial,
        heads: heads_kv * p.rng.range(1, 2),
        heads_kv,
        head_dim: dim,
        head_dim_v: dim,
        extra_tokens: if p.rng.chance(20) { p.rng.range(1, 9) } else { 0 },
    };
    p.param("kernel_size", op.kernel_size.to_vec());
    p.param("stride", op.stride.to_vec());
    p.param("dilation", op.dilation.to_vec());
    p.param("is_causal", op.is_causal.to_vec());
    op.scale = Some(p.scale(dim));
    let shape = |heads: u32, last: &[u32]| {
        let mut shape = vec![s.batch];
        shape.extend(spatial);
        shape.push(heads);
        shape.extend(last);
        shape
    };
    let q = p.normal("in.q", &shape(s.heads, &[dim]));
    let k = p.normal("in.k", &shape(heads_kv, &[dim]));
    let v = p.normal("in.v", &shape(heads_kv, &[dim]));
    let (mut extra_k, mut extra_v) = (Vec::new(), Vec::new());
    if s.extra_tokens > 0 {
        let shape = [s.batch, s.extra_tokens, heads_kv, dim];
        (extra_k, extra_v) = (p.normal("in.extra_k", &shape), p.normal("in.extra_v", &shape));
    }
    let inputs =
        NeighborhoodInputs { q: &q, k: &k, v: &v, extra_k: &extra_k, extra_v: &extra_v, bias: &[] };
    let (o, lse) = reference::neighborhood_attention(&op, &s, &inputs);
    p.output("out.o", &shape(s.heads, &[dim]), &o, Class::Plain);
    p.output("out.lse", &shape(s.heads, &[]), &lse, Class::Plain);
}

/// Degrees of a product, as arguments.
fn degrees(p: &mut Problem, most: u32) -> [u32; 3] {
    let [a, b] = [p.rng.range(0, most), p.rng.range(0, most)];
    let l = [a, b, p.rng.range(0, a + b)];
    for (name, l) in ["L1", "L2", "Lout"].into_iter().zip(l) {
        p.param(name, l);
    }
    l
}

fn gaunt_tp(p: &mut Problem, weighted: bool) {
    let [l1, l2, l3] = degrees(p, 6);
    let [b, c] = [p.rng.range(1, 70), p.rng.range(1, 9)];
    let n = |l: u32| (l + 1) * (l + 1);
    let mut x = p.normal("in.x", &[b, c, n(l1)]);
    let mut y = p.normal("in.y", &[b, c, n(l2)]);
    if weighted {
        let mut weigh = |name: &str, l: u32, x: &mut Vec<f64>| {
            let w = p.normal(name, &[c, l + 1]);
            *x = reference::weight_by_degree(l, x, &w);
        };
        weigh("in.w1", l1, &mut x);
        weigh("in.w2", l2, &mut y);
    }
    let mut z = reference::gaunt_tensor_product(l1, l2, l3, &x, &y);
    if weighted {
        let w = p.normal("in.w3", &[c, l3 + 1]);
        z = reference::weight_by_degree(l3, &z, &w);
    }
    p.output("out.z", &[b, c, n(l3)], &z, Class::Products);
}

/// Vectors of whole 64ths, none of them zero.
fn vectors(p: &mut Problem, n: u32) -> Vec<f64> {
    let mut r = p.normal("in.r", &[n, 3]);
    for v in r.chunks_mut(3) {
        if v.iter().map(|x| x * x).sum::<f64>() < 0.1 {
            v[1] = 1.0;
        }
    }
    p.given("in.r", &[n, 3], &r);
    r
}

fn gaunt_conv(p: &mut Problem) {
    let [l1, l2, l3] = degrees(p, 4);
    let [edges, c] = [p.rng.range(1, 60), p.rng.range(1, 9)];
    let n = |l: u32| (l + 1) * (l + 1);
    let x = p.normal("in.x", &[edges, c, n(l1)]);
    let h = p.normal("in.h", &[edges, l2 + 1]);
    let r = vectors(p, edges);
    let harmonics = reference::spherical_harmonics(l2, ShNormalization::Integral, &r);
    let width = n(l2) as usize;
    let y: Vec<f64> = harmonics
        .chunks(width)
        .zip(h.chunks(l2 as usize + 1))
        .flat_map(|(y, h)| reference::weight_by_degree(l2, y, h))
        .collect();
    let wide: Vec<f64> =
        y.chunks(width).flat_map(|y| (0..c).flat_map(|_| y.to_vec()).collect::<Vec<_>>()).collect();
    let z = reference::gaunt_tensor_product(l1, l2, l3, &x, &wide);
    p.output("out.y", &[edges, n(l2)], &y, Class::Ratios);
    p.output("out.z", &[edges, c, n(l3)], &z, Class::Ratios);
}

fn gaunt_many_body(p: &mut Problem) {
    let [l, power] = [p.rng.range(1, 3), p.rng.range(2, 3)];
    let out = p.rng.range(0, l * power);
    let [b, c] = [p.rng.range(1, 20), p.rng.range(1, 6)];
    p.param("L", l);
    p.param("nu", power);
    p.param("Lout", out);
    let x = p.normal("in.x", &[b, c, (l + 1) * (l + 1)]);
    let z = reference::gaunt_many_body(&vec![(l, &x[..]); power as usize], out);
    p.output("out.z", &[b, c, (out + 1) * (out + 1)], &z, Class::Products);
}

fn spherical_harmonics(p: &mut Problem) {
    let [l, n] = [p.rng.range(0, 10), p.rng.range(1, 200)];
    let (name, normalization) = p.rng.pick(&[
        ("integral", ShNormalization::Integral),
        ("component", ShNormalization::Component),
        ("norm", ShNormalization::Norm),
    ]);
    p.param("L", l);
    p.param("normalization", name);
    let r = vectors(p, n);
    let y = reference::spherical_harmonics(l, normalization, &r);
    p.output("out.y", &[n, (l + 1) * (l + 1)], &y, Class::Ratios);
}

fn cg_full_tp(p: &mut Problem) {
    let mut list = || {
        let terms: Vec<String> = (0..p.rng.range(1, 3))
            .map(|_| {
                let parity = if p.rng.chance(50) { "e" } else { "o" };
                format!("{}x{}{parity}", p.rng.range(1, 3), p.rng.range(0, 3))
            })
            .collect();
        terms.join("+")
    };
    let (a, b) = (list(), list());
    let parse = |text: &str| text.parse::<Irreps>().unwrap_or_default();
    let cg = ClebschGordan { irreps1: parse(&a), irreps2: parse(&b), ..Default::default() };
    p.param("irreps_in1", a);
    p.param("irreps_in2", b);
    let batch = p.rng.range(1, 40);
    let paths = cg.paths();
    let dims = [&cg.irreps1, &cg.irreps2, &cg.irreps_out()]
        .map(|irreps| u32::try_from(irreps.dim()).unwrap_or(u32::MAX));
    let x = p.normal("in.x", &[batch, dims[0]]);
    let y = p.normal("in.y", &[batch, dims[1]]);
    let starts = |irreps: &Irreps| -> Vec<usize> {
        irreps
            .0
            .iter()
            .scan(0, |at, i| {
                let start = *at;
                *at += (i.mul * (2 * i.l + 1)) as usize;
                Some(start)
            })
            .collect()
    };
    let (starts1, starts2) = (starts(&cg.irreps1), starts(&cg.irreps2));
    let mut z = vec![0.0; (batch * dims[2]) as usize];
    for path in &paths {
        let (i, j) = (cg.irreps1.0[path.first], cg.irreps2.0[path.second]);
        let block = |mul, l, start| reference::Block { mul, l, start };
        let blocks = [
            block(i.mul, i.l, starts1[path.first]),
            block(j.mul, j.l, starts2[path.second]),
            block(path.out.mul, path.out.l, path.start as usize),
        ];
        reference::clebsch_gordan(blocks, &x, &y, &mut z, dims.map(|n| n as usize));
    }
    p.output("out.z", &[batch, dims[2]], &z, Class::Products);
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
