//! Linear attention: the reference against closed forms, the kernels against the reference on
//! every adapter and tier.

mod common;

use common::{Device, Guarded, Rng, devices, rel_rms, rounded, run, to_f64, upload_as};
use tilewise::{
    Context, DType, Error, Layout, Result, Tensor, Tier,
    linear_attention::{
        Decay, FeatureMap, Form, LinearAttention, LinearAttentionArgs, LinearAttentionShape,
        MAX_PACKED, Normalize, StateArgs, Update, check_gates,
    },
    reference::{self, LinearAttentionInputs, LinearAttentionOutputs},
    wgpu,
};

/// Row-major inputs of one problem.
#[derive(Clone, Default)]
struct Data {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    gates: Vec<f32>,
    beta: Vec<f32>,
    state: Vec<f32>,
    key_sum: Vec<f32>,
}

fn features(op: &LinearAttention, s: &LinearAttentionShape) -> u32 {
    u32::try_from(op.feature_map.features(s.key_dim)).unwrap()
}

fn size(dims: &[u32]) -> usize {
    dims.iter().map(|&d| d as usize).product()
}

impl Data {
    /// Values in -1..1 (keys of the delta rule with length one), gates that forget within a few
    /// to some hundred tokens, as `op`'s types hold them.
    fn random(
        rng: &mut Rng,
        op: &LinearAttention,
        s: &LinearAttentionShape,
        with_state: bool,
    ) -> Self {
        let batch = if op.packed { 1 } else { s.batch };
        let features = features(op, s);
        let mut k = rng.vec(size(&[batch, s.seq_k, s.heads_k, s.key_dim]));
        if op.update == Update::Delta {
            for row in k.chunks_mut(s.key_dim as usize) {
                let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-3);
                row.iter_mut().for_each(|x| *x /= length);
            }
        }
        let tokens = [batch, s.seq_k, s.heads];
        let strength = *rng.pick(&[0.01f32, 0.1, 1.0, 5.0]);
        let gate = |n: usize, rng: &mut Rng| -> Vec<f32> {
            (0..n).map(|_| -strength * (0.5 + 0.5 * rng.unit())).collect()
        };
        let gates = match op.decay {
            Decay::PerToken => gate(size(&tokens), rng),
            Decay::PerChannel => gate(size(&tokens) * features as usize, rng),
            _ => Vec::new(),
        };
        let beta = match op.update {
            Update::Add => Vec::new(),
            _ => (0..size(&tokens)).map(|_| 0.5 + 0.5 * rng.unit()).collect(),
        };
        let states = size(&[s.batch, s.heads, features]);
        let normalized = op.normalize != Normalize::None;
        // sums of positive features are positive
        let key_sum: Vec<f32> = (0..states).map(|_| 1.5 + 0.5 * rng.unit()).collect();
        Self {
            q: rounded(&rng.vec(size(&[batch, s.seq_q, s.heads_q, s.key_dim])), op.dtype),
            k: rounded(&k, op.dtype),
            v: rounded(&rng.vec(size(&[batch, s.seq_k, s.heads_v, s.value_dim])), op.dtype),
            gates: rounded(&gates, op.gate_dtype),
            beta: rounded(&beta, op.gate_dtype),
            state: if with_state { rng.vec(states * s.value_dim as usize) } else { Vec::new() },
            key_sum: if with_state && normalized { key_sum } else { Vec::new() },
        }
    }

    /// Tokens `from..to` of a problem with batch size 1 (all tokens lie along the first axis).
    fn tokens(&self, op: &LinearAttention, s: &LinearAttentionShape, from: u32, to: u32) -> Self {
        let cut = |x: &[f32], row: u32| -> Vec<f32> {
            if x.is_empty() { return Vec::new() }
            x[(from * row) as usize..(to * row) as usize].to_vec()
        };
        let gate = if op.decay == Decay::PerChannel { features(op, s) } else { 1 };
        Self {
            q: cut(&self.q, s.heads_q * s.key_dim),
            k: cut(&self.k, s.heads_k * s.key_dim),
            v: cut(&self.v, s.heads_v * s.value_dim),
            gates: cut(&self.gates, s.heads * gate),
            beta: cut(&self.beta, s.heads),
            state: Vec::new(),
            key_sum: Vec::new(),
        }
    }
}

/// The f64 reference, packed sequences one after the other.
fn truth(
    op: &LinearAttention,
    s: &LinearAttentionShape,
    x: &Data,
    cu: Option<&[u32]>,
) -> LinearAttentionOutputs {
    if let Some(cu) = cu {
        let mut all = LinearAttentionOutputs { o: vec![], state: vec![], key_sum: vec![] };
        let one = LinearAttention { packed: false, ..op.clone() };
        for (n, w) in cu.windows(2).enumerate() {
            let s = LinearAttentionShape { batch: 1, seq_q: w[1] - w[0], seq_k: w[1] - w[0], ..*s };
            let mut part = x.tokens(op, &s, w[0], w[1]);
            let slice = |x: &[f32], row: usize| -> Vec<f32> {
                if x.is_empty() { vec![] } else { x[n * row..(n + 1) * row].to_vec() }
            };
            let rows = (s.heads * features(op, &s)) as usize;
            part.state = slice(&x.state, rows * s.value_dim as usize);
            part.key_sum = slice(&x.key_sum, rows);
            let out = truth(&one, &s, &part, None);
            all.o.extend(out.o);
            all.state.extend(out.state);
            all.key_sum.extend(out.key_sum);
        }
        return all;
    }
    let wide = [&x.q, &x.k, &x.v, &x.gates, &x.beta, &x.state, &x.key_sum].map(|x| to_f64(x));
    let [q, k, v, gates, beta, state, key_sum] = &wide;
    reference::linear_attention(op, s, &LinearAttentionInputs { q, k, v, gates, beta, state, key_sum })
}

/// The recurrence as one would write it in a loop in f32, for one sequence: its error against f64
/// sets the budget.
fn plain(op: &LinearAttention, s: &LinearAttentionShape, x: &Data) -> (Vec<f32>, Vec<f32>) {
    let [batch, tq, tk, heads, kd, vd] =
        [s.batch, s.seq_q, s.seq_k, s.heads, s.key_dim, s.value_dim].map(|n| n as usize);
    let n = features(op, s) as usize;
    let (mut o, mut states) = (vec![0f32; batch * tq * heads * vd], Vec::new());
    let map = |x: &[f32]| -> Vec<f32> {
        match op.feature_map {
            FeatureMap::Identity => x.to_vec(),
            FeatureMap::EluPlusOne => {
                x.iter().map(|&x| if x > 0.0 { x + 1.0 } else { x.exp() }).collect()
            }
            FeatureMap::Relu => x.iter().map(|x| x.max(0.0)).collect(),
            FeatureMap::Silu => x.iter().map(|x| x / (1.0 + (-x).exp())).collect(),
            FeatureMap::SquaredRelu => x.iter().map(|x| x.max(0.0) * x.max(0.0)).collect(),
            FeatureMap::Taylor2 => {
                let mut f = vec![1.0];
                f.extend(x.iter().map(|x| op.scale.sqrt() * x));
                for i in 0..x.len() {
                    for j in i..x.len() {
                        f.push(op.scale * x[i] * x[j] * if i == j { 0.5f32.sqrt() } else { 1.0 });
                    }
                }
                f
            }
        }
    };
    let factor = if op.feature_map == FeatureMap::Taylor2 { 1.0 } else { op.scale };
    let row = |x: &[f32], b: usize, t: usize, h: usize, seq: usize, own: u32, dim: usize| {
        let own = own as usize;
        let at = ((b * seq + t) * own + h / (heads / own)) * dim;
        x[at..at + dim].to_vec()
    };
    for b in 0..batch {
        for h in 0..heads {
            let at = (b * heads + h) * n;
            let mut state = vec![0f32; n * vd];
            let mut z = vec![0f32; n];
            if !x.state.is_empty() { state.copy_from_slice(&x.state[at * vd..(at + n) * vd]); }
            if !x.key_sum.is_empty() { z.copy_from_slice(&x.key_sum[at..at + n]); }
            let mut read = |state: &[f32], z: &[f32], t: usize| {
                let q = map(&row(&x.q, b, t, h, tq, s.heads_q, kd));
                let qz: f32 = q.iter().zip(z).map(|(q, z)| q * z).sum();
                let den = match op.normalize {
                    Normalize::None => 1.0,
                    Normalize::Eps(eps) => factor * qz + eps,
                    Normalize::Clamp(min) => qz.max(min),
                };
                for j in 0..vd {
                    let sum: f32 = (0..n).map(|c| q[c] * state[c * vd + j]).sum();
                    o[((b * tq + t) * heads + h) * vd + j] = factor * sum / den;
                }
            };
            for t in 0..tk {
                let k = map(&row(&x.k, b, t, h, tk, s.heads_k, kd));
                let v = row(&x.v, b, t, h, tk, s.heads_v, vd);
                let token = (b * tk + t) * heads + h;
                for c in 0..n {
                    let gate = match &op.decay {
                        Decay::None => 0.0,
                        Decay::PerHead(g) => g[h],
                        Decay::PerToken => x.gates[token],
                        Decay::PerChannel => x.gates[token * n + c],
                    };
                    z[c] *= gate.exp();
                    state[c * vd..(c + 1) * vd].iter_mut().for_each(|s| *s *= gate.exp());
                }
                let beta = if op.update == Update::Add { 1.0 } else { x.beta[token] };
                for j in 0..vd {
                    let mut u = v[j];
                    if op.update == Update::Delta {
                        u -= (0..n).map(|c| k[c] * state[c * vd + j]).sum::<f32>();
                    }
                    (0..n).for_each(|c| state[c * vd + j] += beta * k[c] * u);
                }
                (0..n).for_each(|c| z[c] += beta * k[c]);
                if op.causal { read(&state, &z, t); }
            }
            if !op.causal { (0..tq).for_each(|t| read(&state, &z, t)); }
            states.extend(state);
        }
    }
    (o, states)
}

/// A layout of this shape with room between rows, heads-first or heads-last, at an offset.
fn layout(rng: &mut Rng, shape: [u32; 4], even: bool) -> Layout<4> {
    let mut l = common::random_layout(rng, shape);
    if even {
        l = Layout::contiguous(shape);
        if rng.range(0, 2) == 0 {
            let [b, t, h, d] = shape;
            l = Layout::contiguous([b, h, t, d]).permuted([0, 2, 1, 3]);
        }
    }
    l
}

struct Got {
    o: Vec<f32>,
    state: Vec<f32>,
    key_sum: Vec<f32>,
}

/// Runs a problem on the device: random layouts, poisoned outputs between guards, exact scratch.
fn execute(
    ctx: &Context,
    rng: &mut Rng,
    op: &LinearAttention,
    s: &LinearAttentionShape,
    x: &Data,
    cu: Option<&[u32]>,
    even: bool,
) -> Result<Got> {
    let plan = op.plan(ctx, *s)?;
    let batch = if op.packed { 1 } else { s.batch };
    let n = features(op, s);
    let gate = if op.decay == Decay::PerChannel { n } else { 1 };
    let mut input = |values: &[f32], shape: [u32; 4], dtype: DType| {
        let l = layout(rng, shape, even);
        (upload_as(ctx, l, values, dtype).unwrap(), l)
    };
    let (q, ql) = input(&x.q, [batch, s.seq_q, s.heads_q, s.key_dim], op.dtype);
    let (k, kl) = input(&x.k, [batch, s.seq_k, s.heads_k, s.key_dim], op.dtype);
    let (v, vl) = input(&x.v, [batch, s.seq_k, s.heads_v, s.value_dim], op.dtype);
    let (g, gl) = input(&x.gates, [batch, if x.gates.is_empty() { 0 } else { s.seq_k }, s.heads, gate], op.gate_dtype);
    let (b, bl) = input(&x.beta, [batch, if x.beta.is_empty() { 0 } else { s.seq_k }, s.heads, 1], op.gate_dtype);
    let state_shape = [s.batch, s.heads, n, s.value_dim];
    let (s0, sl) = if x.state.is_empty() {
        (Tensor::zeros(ctx, [1], DType::F32)?, Layout::contiguous([0; 4]))
    } else {
        input(&x.state, state_shape, DType::F32)
    };
    let ol = layout(rng, [batch, s.seq_q, s.heads, s.value_dim], even);
    let o = Guarded::new(ctx, ol, op.dtype);
    let s1 = Guarded::new(ctx, layout(rng, state_shape, even), DType::F32);
    let z_shape = Layout::contiguous([s.batch, s.heads, n]);
    let z0 = upload_as(ctx, z_shape, &x.key_sum, DType::F32)?;
    let z1 = Guarded::new(ctx, z_shape, DType::F32);
    let scratch = scratch(ctx, plan.scratch_bytes());
    let normalized = op.normalize != Normalize::None;
    let args = LinearAttentionArgs {
        gates: (!x.gates.is_empty() || s.seq_k == 0 && matches!(op.decay, Decay::PerToken | Decay::PerChannel)).then(|| g.view_as(gl).unwrap()),
        beta: (!x.beta.is_empty() || s.seq_k == 0 && op.update != Update::Add).then(|| b.view_as(bl).unwrap()),
        initial_state: (!x.state.is_empty()).then(|| s0.view_as(sl).unwrap()),
        final_state: Some(s1.view()),
        initial_key_sum: (!x.key_sum.is_empty()).then(|| z0.view_as(z_shape).unwrap()),
        final_key_sum: normalized.then(|| z1.view()),
        cu_seqlens: cu,
        scratch: Some(&scratch),
        ..LinearAttentionArgs::new(q.view_as(ql)?, k.view_as(kl)?, v.view_as(vl)?, o.view())
    };
    run(ctx, |encoder| plan.encode(ctx, encoder, &args))?;
    let got = Got {
        o: o.read(ctx),
        state: s1.read(ctx),
        key_sum: if normalized { z1.read(ctx) } else { Vec::new() },
    };
    // nobody asked for a state: the same outputs
    let o2 = Guarded::new(ctx, ol, op.dtype);
    let args = LinearAttentionArgs { final_state: None, final_key_sum: None, o: o2.view(), ..args };
    run(ctx, |encoder| plan.encode(ctx, encoder, &args))?;
    assert_eq!(bits(&o2.read(ctx)), bits(&got.o), "outputs differ without a final state");
    Ok(got)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn scratch(ctx: &Context, bytes: u64) -> wgpu::Buffer {
    ctx.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes.max(16),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

/// Least budget: a short sum can come out exact in the plain loop by luck.
const FLOOR: f64 = 4e-7;

/// Compares with the reference; the budget is twice the error of the plain f32 loop.
fn judge(
    name: &str,
    op: &LinearAttention,
    s: &LinearAttentionShape,
    x: &Data,
    cu: Option<&[u32]>,
    got: &Got,
) {
    let want = truth(op, s, x, cu);
    let (simple, simple_state) = match cu {
        None => plain(op, s, x),
        // each packed sequence is an ordinary one: the error of the worst stands for all
        Some(_) => (Vec::new(), Vec::new()),
    };
    let budget = |simple: &[f32], want: &[f64], dtype: DType| {
        let own = if simple.is_empty() { 1e-6 } else { rel_rms(&rounded(simple, dtype), want) };
        2.0 * own + FLOOR + if simple.is_empty() { 2.0 * dtype.unit_roundoff() } else { 0.0 }
    };
    let check = |what: &str, error: f64, budget: f64| {
        assert!(error <= budget, "{name}: {what}: {error:.2e} over {budget:.2e}; {op:?} {s:?} {cu:?}");
    };
    check("o", rel_rms(&got.o, &want.o), budget(&simple, &want.o, op.dtype));
    check("state", rel_rms(&got.state, &want.state), budget(&simple_state, &want.state, DType::F32));
    check("key sum", rel_rms(&got.key_sum, &want.key_sum), 4e-6);
}

fn base() -> LinearAttention {
    LinearAttention { scale: 0.25, ..Default::default() }
}

fn small(seq: u32) -> LinearAttentionShape {
    LinearAttentionShape::new(1, seq, 2, 16, 16)
}

/// Variants that every form must get right.
fn variants() -> Vec<LinearAttention> {
    let delta = LinearAttention { update: Update::Delta, ..base() };
    vec![
        base(),
        LinearAttention { decay: Decay::PerHead(vec![-0.01, -0.7]), ..base() },
        LinearAttention { decay: Decay::PerToken, ..base() },
        LinearAttention { decay: Decay::PerChannel, ..base() },
        LinearAttention { update: Update::Weighted, decay: Decay::PerToken, ..base() },
        LinearAttention {
            normalize: Normalize::Eps(1e-6),
            feature_map: FeatureMap::EluPlusOne,
            scale: 1.0,
            ..base()
        },
        LinearAttention {
            normalize: Normalize::Clamp(2.0),
            feature_map: FeatureMap::SquaredRelu,
            update: Update::Weighted,
            decay: Decay::PerChannel,
            ..base()
        },
        LinearAttention { feature_map: FeatureMap::Silu, decay: Decay::PerToken, ..base() },
        delta.clone(),
        LinearAttention { decay: Decay::PerToken, ..delta.clone() },
        LinearAttention { decay: Decay::PerChannel, ..delta.clone() },
        LinearAttention { decay: Decay::PerHead(vec![-0.05, 0.0]), ..delta },
        LinearAttention { causal: false, ..base() },
        LinearAttention {
            causal: false,
            normalize: Normalize::Eps(1e-6),
            feature_map: FeatureMap::EluPlusOne,
            ..base()
        },
        LinearAttention {
            causal: false,
            normalize: Normalize::Clamp(1.0),
            feature_map: FeatureMap::Relu,
            update: Update::Weighted,
            ..base()
        },
    ]
}

const FORMS: [Form; 4] = [Form::Recurrent, Form::ChunkLoop, Form::ChunkParallel, Form::Auto];

fn legal(op: &LinearAttention) -> bool {
    op.form != Form::ChunkParallel || op.update != Update::Delta
}

/// Number of random problems for each variant, form and device.
fn rounds() -> u32 {
    std::env::var("TILEWISE_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(6)
}

fn random_shape(rng: &mut Rng, op: &LinearAttention, k: u32, v: u32) -> LinearAttentionShape {
    let seq = *rng.pick(&[0u32, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 50, 64, 97, 130]);
    let mut s = LinearAttentionShape::new(rng.range(1, 4), seq, 2, k, v);
    if !op.causal {
        s.seq_q = rng.range(0, 40);
    }
    s.heads_q = *rng.pick(&[1, 2]);
    s.heads_k = *rng.pick(&[1, 2]);
    s.heads_v = *rng.pick(&[1, 2]);
    s
}

#[test]
fn every_form_matches_the_reference() {
    let mut count = 0;
    for Device { name, ctx } in devices() {
        let mut rng = Rng(1);
        for op in variants() {
            for form in FORMS {
                let op = LinearAttention { form, ..op.clone() };
                if !legal(&op) {
                    continue;
                }
                for round in 0..rounds() {
                    let s = random_shape(&mut rng, &op, 16, 16);
                    let x = Data::random(&mut rng, &op, &s, round % 2 == 0);
                    let got = execute(ctx, &mut rng, &op, &s, &x, None, round % 3 != 0).unwrap();
                    judge(name, &op, &s, &x, None, &got);
                    count += 1;
                }
            }
        }
    }
    println!("{count} problems");
}

#[test]
fn every_size_of_head() {
    for Device { name, ctx } in devices() {
        let mut rng = Rng(2);
        for (k, v) in [(1, 1), (3, 5), (4, 36), (24, 40), (33, 7), (64, 64), (65, 130), (128, 8), (256, 12)] {
            for op in [
                LinearAttention { decay: Decay::PerChannel, ..base() },
                LinearAttention { update: Update::Delta, decay: Decay::PerToken, form: Form::ChunkLoop, ..base() },
            ] {
                let s = LinearAttentionShape::new(1, 37, 2, k, v);
                let x = Data::random(&mut rng, &op, &s, true);
                let got = execute(ctx, &mut rng, &op, &s, &x, None, true).unwrap();
                judge(name, &op, &s, &x, None, &got);
            }
        }
    }
}

#[test]
fn every_chunk_size() {
    for Device { name, ctx } in devices() {
        let mut rng = Rng(3);
        for chunk in [1, 2, 4, 8, 16] {
            for op in variants() {
                for form in [Form::ChunkLoop, Form::ChunkParallel] {
                    let op = LinearAttention { form, chunk_size: Some(chunk), ..op.clone() };
                    if !legal(&op) {
                        continue;
                    }
                    let s = random_shape(&mut rng, &op, 16, 16);
                    let x = Data::random(&mut rng, &op, &s, true);
                    let got = execute(ctx, &mut rng, &op, &s, &x, None, true).unwrap();
                    judge(name, &op, &s, &x, None, &got);
                }
            }
        }
    }
}

#[test]
fn sixteen_bit_storage() {
    for Device { name, ctx } in devices() {
        let mut rng = Rng(4);
        for dtype in [DType::F16, DType::BF16] {
            for gate_dtype in [DType::F32, dtype] {
                for op in variants() {
                    for form in [Form::ChunkLoop, Form::Recurrent] {
                        let op = LinearAttention { form, dtype, gate_dtype, ..op.clone() };
                        let s = random_shape(&mut rng, &op, 16, 20);
                        let x = Data::random(&mut rng, &op, &s, true);
                        let even = rng.range(0, 2) == 0;
                        let got = execute(ctx, &mut rng, &op, &s, &x, None, even).unwrap();
                        judge(name, &op, &s, &x, None, &got);
                    }
                }
            }
        }
    }
}

#[test]
fn taylor_features() {
    for Device { name, ctx } in devices() {
        let mut rng = Rng(5);
        for (d, v) in [(1, 4), (3, 8), (7, 5), (16, 16), (21, 4)] {
            for normalize in [Normalize::None, Normalize::Eps(1e-6)] {
                for form in FORMS {
                    for causal in [true, false] {
                        let op = LinearAttention {
                            feature_map: FeatureMap::Taylor2,
                            normalize,
                            form,
                            causal,
                            scale: (d as f32).sqrt().recip(),
                            ..Default::default()
                        };
                        let s = LinearAttentionShape::new(1, 21, 2, d, v);
                        let x = Data::random(&mut rng, &op, &s, false);
                        let got = execute(ctx, &mut rng, &op, &s, &x, None, true).unwrap();
                        judge(name, &op, &s, &x, None, &got);
                    }
                }
            }
        }
    }
}

#[test]
fn a_sequence_cut_at_random_places() {
    for Device { name, ctx } in devices() {
        let mut rng = Rng(6);
        for op in variants().into_iter().filter(|op| op.causal) {
            let s = small(120);
            let x = Data::random(&mut rng, &op, &s, true);
            let whole = truth(&op, &s, &x, None);
            for _ in 0..3 {
                let mut cuts: Vec<u32> = (0..rng.range(1, 6)).map(|_| rng.range(0, 121)).collect();
                cuts.extend([0, 120]);
                cuts.sort_unstable();
                let (mut state, mut key_sum) = (x.state.clone(), x.key_sum.clone());
                let mut o = Vec::new();
                for w in cuts.windows(2) {
                    let form = *rng.pick(&FORMS);
                    let op = LinearAttention { form, ..op.clone() };
                    let op = if legal(&op) { op } else { LinearAttention { form: Form::Auto, ..op } };
                    let part = LinearAttentionShape { seq_q: w[1] - w[0], seq_k: w[1] - w[0], ..s };
                    let data = Data { state, key_sum, ..x.tokens(&op, &s, w[0], w[1]) };
                    let got = execute(ctx, &mut rng, &op, &part, &data, None, true).unwrap();
                    o.extend(got.o);
                    (state, key_sum) = (got.state, got.key_sum);
                }
                let error = rel_rms(&o, &whole.o).max(rel_rms(&state, &whole.state));
                assert!(error < 3e-6, "{name}: {error:.2e} cut at {cuts:?}: {op:?}");
            }
        }
    }
}

#[test]
fn packed_sequences() {
    for Device { name, ctx } in devices() {
        let mut rng = Rng(7);
        for op in variants() {
            for form in FORMS {
                let op = LinearAttention { form, packed: true, ..op.clone() };
                if !legal(&op) {
                    continue;
                }
                let mut cu = vec![0];
                for _ in 0..rng.range(1, 6) {
                    cu.push(cu[cu.len() - 1] + *rng.pick(&[0, 1, 5, 16, 33]));
                }
                let total = cu[cu.len() - 1];
                let batch = u32::try_from(cu.len() - 1).unwrap();
                let s = LinearAttentionShape { batch, ..small(total) };
                let x = Data::random(&mut rng, &op, &s, true);
                let got = execute(ctx, &mut rng, &op, &s, &x, Some(&cu), true).unwrap();
                judge(name, &op, &s, &x, Some(&cu), &got);
            }
        }
    }
}

#[test]
fn decoding_in_place() {
    for Device { name, ctx } in devices() {
        let mut rng = Rng(8);
        let op = LinearAttention { decay: Decay::PerToken, normalize: Normalize::Eps(1e-6), feature_map: FeatureMap::EluPlusOne, ..base() };
        let s = small(9);
        let x = Data::random(&mut rng, &op, &s, true);
        let want = truth(&op, &s, &x, None);
        let state = Tensor::upload(ctx, [1, 2, 16, 16], &x.state).unwrap();
        let sums = Tensor::upload(ctx, [1, 2, 16], &x.key_sum).unwrap();
        let plan = op.plan(ctx, small(1)).unwrap();
        let scratch = scratch(ctx, plan.scratch_bytes());
        let mut o = Vec::new();
        for t in 0..9 {
            let one = x.tokens(&op, &s, t, t + 1);
            let [q, k, v] = [&one.q, &one.k, &one.v].map(|x| Tensor::upload(ctx, [1, 1, 2, 16], x).unwrap());
            let g = Tensor::upload(ctx, [1, 1, 2, 1], &one.gates).unwrap();
            let out = Guarded::new(ctx, Layout::contiguous([1, 1, 2, 16]), DType::F32);
            let args = LinearAttentionArgs {
                gates: Some(g.view()),
                initial_state: Some(state.view()),
                final_state: Some(state.view()),
                initial_key_sum: Some(sums.view()),
                final_key_sum: Some(sums.view()),
                scratch: Some(&scratch),
                ..LinearAttentionArgs::new(q.view(), k.view(), v.view(), out.view())
            };
            run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
            o.extend(out.read(ctx));
        }
        let state: Vec<f32> = state.download(ctx).unwrap();
        let error = rel_rms(&o, &want.o).max(rel_rms(&state, &want.state));
        assert!(error < 2e-6, "{name}: {error:.2e}");
    }
}

/// Gates so strong that sums of them lose the weak ones, and minus infinity, among weak gates.
#[test]
fn extreme_gates() {
    for Device { name, ctx } in devices() {
        let mut rng = Rng(9);
        for dtype in [DType::F32, DType::F16] {
            for decay in [Decay::PerToken, Decay::PerChannel] {
                for update in [Update::Add, Update::Delta] {
                    for form in FORMS {
                        for chunk_size in [None, Some(8)] {
                            let op = LinearAttention { decay: decay.clone(), update, form, chunk_size, dtype, ..base() };
                            if !legal(&op) || form == Form::Recurrent && chunk_size.is_some() {
                                continue;
                            }
                            let s = small(45);
                            let mut x = Data::random(&mut rng, &op, &s, true);
                            for g in &mut x.gates {
                                *g = match rng.range(0, 12) {
                                    0 => -1e4,
                                    1 => f32::NEG_INFINITY,
                                    2 => -80.0,
                                    _ => -0.01 * (1.0 + rng.unit()),
                                };
                            }
                            let got = execute(ctx, &mut rng, &op, &s, &x, None, true).unwrap();
                            judge(name, &op, &s, &x, None, &got);
                        }
                    }
                }
            }
        }
    }
}

/// Minus infinity at a token: nothing of the past is left, exactly, however large it was.
#[test]
fn minus_infinity_forgets_exactly() {
    for Device { name, ctx } in devices() {
        for form in FORMS {
            for decay in [Decay::PerToken, Decay::PerChannel, Decay::PerHead(vec![f32::NEG_INFINITY; 2])] {
                let op = LinearAttention { decay: decay.clone(), form, ..base() };
                let mut rng = Rng(10);
                let s = small(20);
                let mut x = Data::random(&mut rng, &op, &s, true);
                x.state.iter_mut().for_each(|x| *x *= 1e30);
                let width = x.gates.len() / 20;
                x.gates[13 * width..14 * width].fill(f32::NEG_INFINITY);
                // the key of that token is zero: its output reads an empty state
                x.k[13 * 32..14 * 32].fill(0.0);
                let got = execute(ctx, &mut rng, &op, &s, &x, None, true).unwrap();
                assert!(got.o.iter().all(|x| x.is_finite()), "{name}: {op:?}");
                let read = &got.o[13 * 32..14 * 32];
                assert!(read.iter().all(|x| *x == 0.0), "{name}: {op:?}: {read:?}");
            }
        }
    }
}

/// Longer than the driver's bound on loops allows in one dispatch, with the bound lowered so that
/// the test is quick; and once at the real length.
#[test]
fn longer_than_one_dispatch() {
    for Device { name, ctx } in devices() {
        let mut rng = Rng(11);
        let mut caps = ctx.caps.clone();
        caps.loop_trips = 1024 + 700;
        let short = ctx.with_caps(caps);
        for op in variants() {
            for form in FORMS {
                let op = LinearAttention { form, ..op.clone() };
                if !legal(&op) {
                    continue;
                }
                let s = LinearAttentionShape { batch: 2, ..small(83) };
                let x = Data::random(&mut rng, &op, &s, true);
                let got = execute(&short, &mut rng, &op, &s, &x, None, true).unwrap();
                judge(name, &op, &s, &x, None, &got);
            }
        }
        let op = LinearAttention { decay: Decay::PerHead(vec![-0.02]), form: Form::ChunkLoop, ..base() };
        let s = LinearAttentionShape::new(1, 70_000, 1, 4, 4);
        let x = Data::random(&mut rng, &op, &s, false);
        let got = execute(ctx, &mut rng, &op, &s, &x, None, true).unwrap();
        judge(name, &op, &s, &x, None, &got);
    }
}

#[test]
fn state_reduction_alone() {
    for Device { name, ctx } in devices() {
        let mut rng = Rng(12);
        for form in FORMS {
            for op in variants() {
                let op = LinearAttention { form, ..op };
                if !legal(&op) {
                    continue;
                }
                let s = small(45);
                let x = Data::random(&mut rng, &op, &s, true);
                let want = truth(&op, &s, &x, None);
                let plan = op.plan_state(ctx, s).unwrap();
                let scratch = scratch(ctx, plan.scratch_bytes());
                let [k, v] = [&x.k, &x.v].map(|x| Tensor::upload(ctx, [1, 45, 2, 16], x).unwrap());
                let width = if op.decay == Decay::PerChannel { 16 } else { 1 };
                let gates = (!x.gates.is_empty()).then(|| Tensor::upload(ctx, [1, 45, 2, width], &x.gates).unwrap());
                let beta = (!x.beta.is_empty()).then(|| Tensor::upload(ctx, [1, 45, 2, 1], &x.beta).unwrap());
                let s0 = Tensor::upload(ctx, [1, 2, 16, 16], &x.state).unwrap();
                let z0 = (!x.key_sum.is_empty()).then(|| Tensor::upload(ctx, [1, 2, 16], &x.key_sum).unwrap());
                let s1 = Guarded::new(ctx, Layout::contiguous([1, 2, 16, 16]), DType::F32);
                let z1 = Guarded::new(ctx, Layout::contiguous([1, 2, 16]), DType::F32);
                let args = StateArgs {
                    gates: gates.as_ref().map(Tensor::view),
                    beta: beta.as_ref().map(Tensor::view),
                    initial_state: Some(s0.view()),
                    initial_key_sum: z0.as_ref().map(Tensor::view),
                    final_key_sum: z0.as_ref().map(|_| z1.view()),
                    scratch: Some(&scratch),
                    ..StateArgs::new(k.view(), v.view(), s1.view())
                };
                run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
                let error = rel_rms(&s1.read(ctx), &want.state);
                assert!(error < 2e-6, "{name}: {error:.2e}: {op:?}");
                if z0.is_some() {
                    let error = rel_rms(&z1.read(ctx), &want.key_sum);
                    assert!(error < 2e-6, "{name}: key sum {error:.2e}: {op:?}");
                }
            }
        }
    }
}

/// Two runs agree to the last bit, scratch dirty or not.
#[test]
fn bitwise_the_same_twice() {
    for Device { name, ctx } in devices() {
        for form in FORMS {
            let op = LinearAttention { decay: Decay::PerChannel, form, ..base() };
            let s = small(100);
            let x = Data::random(&mut Rng(13), &op, &s, true);
            let [a, b] = [0, 1].map(|_| execute(ctx, &mut Rng(14), &op, &s, &x, None, true).unwrap());
            assert_eq!(bits(&a.o), bits(&b.o), "{name}: {form:?}");
            assert_eq!(bits(&a.state), bits(&b.state), "{name}: {form:?}");
        }
    }
}
