//! Linear attention: the reference against closed forms, the kernels against the reference on
//! every adapter and tier.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod common;

use common::{
    Deal, Device, Guarded, Rng, devices, devices_alone, gpus, rel_rms, rounded, run, to_f64,
    upload_as,
};
use tilewise::{
    Caps, Context, DType, DeviceClass, Error, Layout, Result, Tensor, Tier,
    linear_attention::{
        ChannelAttention, ChannelAttentionArgs, ChannelAttentionShape, Decay, FeatureMap, Form,
        LinearAttention, LinearAttentionArgs, LinearAttentionShape, MAX_PACKED, Normalize,
        StateArgs, Update, check_gates,
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
            if x.is_empty() {
                return Vec::new();
            }
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
    reference::linear_attention(
        op,
        s,
        &LinearAttentionInputs { q, k, v, gates, beta, state, key_sum },
    )
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
            if !x.state.is_empty() {
                state.copy_from_slice(&x.state[at * vd..(at + n) * vd]);
            }
            if !x.key_sum.is_empty() {
                z.copy_from_slice(&x.key_sum[at..at + n]);
            }
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
                if op.causal {
                    read(&state, &z, t);
                }
            }
            if !op.causal {
                (0..tq).for_each(|t| read(&state, &z, t));
            }
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
    let (g, gl) = input(
        &x.gates,
        [batch, if x.gates.is_empty() { 0 } else { s.seq_k }, s.heads, gate],
        op.gate_dtype,
    );
    let (b, bl) = input(
        &x.beta,
        [batch, if x.beta.is_empty() { 0 } else { s.seq_k }, s.heads, 1],
        op.gate_dtype,
    );
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
        gates: (!x.gates.is_empty()
            || s.seq_k == 0 && matches!(op.decay, Decay::PerToken | Decay::PerChannel))
        .then(|| g.view_as(gl).unwrap()),
        beta: (!x.beta.is_empty() || s.seq_k == 0 && op.update != Update::Add)
            .then(|| b.view_as(bl).unwrap()),
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
    // of a NaN, no kernel promises which
    let plain = |x: &[f32]| {
        bits(&x.iter().map(|x| if x.is_nan() { f32::NAN } else { *x }).collect::<Vec<_>>())
    };
    assert!(plain(&o2.read(ctx)) == plain(&got.o), "outputs differ without a final state");
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
        assert!(
            error <= budget,
            "{name}: {what}: {error:.2e} over {budget:.2e}; {op:?} {s:?} {cu:?}"
        );
    };
    check("o", rel_rms(&got.o, &want.o), budget(&simple, &want.o, op.dtype));
    check(
        "state",
        rel_rms(&got.state, &want.state),
        budget(&simple_state, &want.state, DType::F32),
    );
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
    std::env::var("TILEWISE_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(4)
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
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 23);
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
                    if !deal.takes() {
                        continue;
                    }
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
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 9);
        let mut rng = Rng(2);
        for (k, v) in
            [(1, 1), (3, 5), (4, 36), (24, 40), (33, 7), (64, 64), (65, 130), (128, 8), (160, 12)]
        {
            for op in [
                LinearAttention { decay: Decay::PerChannel, ..base() },
                LinearAttention {
                    update: Update::Delta,
                    decay: Decay::PerToken,
                    form: Form::ChunkLoop,
                    ..base()
                },
            ] {
                let s = LinearAttentionShape::new(1, 37, 2, k, v);
                let x = Data::random(&mut rng, &op, &s, true);
                if !deal.takes() {
                    continue;
                }
                let got = execute(ctx, &mut rng, &op, &s, &x, None, true).unwrap();
                judge(name, &op, &s, &x, None, &got);
            }
        }
    }
}

#[test]
fn every_chunk_size() {
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 23);
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
                    if !deal.takes() {
                        continue;
                    }
                    let got = execute(ctx, &mut rng, &op, &s, &x, None, true).unwrap();
                    judge(name, &op, &s, &x, None, &got);
                }
            }
        }
    }
}

#[test]
fn sixteen_bit_storage() {
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 41);
        let mut rng = Rng(4);
        for dtype in [DType::F16, DType::BF16] {
            for gate_dtype in [DType::F32, dtype] {
                for op in variants() {
                    for form in [Form::ChunkLoop, Form::Recurrent] {
                        let op = LinearAttention { form, dtype, gate_dtype, ..op.clone() };
                        let s = random_shape(&mut rng, &op, 16, 20);
                        let x = Data::random(&mut rng, &op, &s, true);
                        let even = rng.range(0, 2) == 0;
                        if !deal.takes() {
                            continue;
                        }
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
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 17);
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
                        if !deal.takes() {
                            continue;
                        }
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
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 7);
        let mut rng = Rng(6);
        for op in variants().into_iter().filter(|op| op.causal) {
            let s = small(120);
            let x = Data::random(&mut rng, &op, &s, true);
            if !deal.takes() {
                continue;
            }
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
                    let op =
                        if legal(&op) { op } else { LinearAttention { form: Form::Auto, ..op } };
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

/// A variant that makes sense: denominators of features that are not negative, unit keys for the
/// delta rule.
fn random_op(rng: &mut Rng) -> LinearAttention {
    let per_head = Decay::PerHead(vec![-0.5 - 0.5 * rng.unit(), 0.0]);
    let decay = rng.pick(&[Decay::None, per_head, Decay::PerToken, Decay::PerChannel]).clone();
    let update = *rng.pick(&[Update::Add, Update::Add, Update::Weighted, Update::Delta]);
    let (feature_map, normalize) = if update == Update::Delta {
        (FeatureMap::Identity, Normalize::None)
    } else {
        *rng.pick(&[
            (FeatureMap::Identity, Normalize::None),
            (FeatureMap::Silu, Normalize::None),
            (FeatureMap::EluPlusOne, Normalize::Eps(1e-6)),
            (FeatureMap::Relu, Normalize::Clamp(0.5)),
            (FeatureMap::SquaredRelu, Normalize::Clamp(0.25)),
        ])
    };
    let causal = decay != Decay::None || update == Update::Delta || rng.range(0, 2) == 0;
    LinearAttention { decay, update, normalize, feature_map, causal, ..base() }
}

/// Chunked, parallel and recurrent are one operator: random variants, sizes, lengths, cuts. Every
/// form is held to the budget of the plain f32 loop on the same problem.
#[test]
fn forms_agree_on_random_problems() {
    let (variants, shapes) = if common::slow() { (60, 40) } else { (9, rounds()) };
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        // sizes of heads are compiled in; lengths and batches are not
        let mut deal = Deal::new(d, 9);
        let (mut problems, mut runs) = (0, 0);
        for seed in 0..variants {
            if !deal.takes() {
                continue;
            }
            let mut rng = Rng(1000 + seed);
            let op = random_op(&mut rng);
            let (k, v) = (rng.range(1, 41), rng.range(1, 41));
            let chunk = *rng.pick(&[1, 2, 4, 8, 16]);
            for _ in 0..shapes {
                let mut s = LinearAttentionShape::new(rng.range(1, 4), rng.range(0, 200), 2, k, v);
                s.heads_k = rng.range(1, 3);
                s.heads_v = rng.range(1, 3);
                if !op.causal {
                    s.seq_q = rng.range(0, 100);
                }
                let with_state = rng.range(0, 2) == 0;
                let x = Data::random(&mut rng, &op, &s, with_state);
                problems += 1;
                for (form, chunk_size) in [
                    (Form::Recurrent, None),
                    (Form::ChunkLoop, None),
                    (Form::ChunkLoop, Some(chunk)),
                    (Form::ChunkParallel, None),
                ] {
                    let op = LinearAttention { form, chunk_size, ..op.clone() };
                    if legal(&op) {
                        let got = execute(ctx, &mut rng, &op, &s, &x, None, true).unwrap();
                        judge(name, &op, &s, &x, None, &got);
                        runs += 1;
                    }
                }
                if op.causal {
                    let s = LinearAttentionShape { batch: 1, ..s };
                    let x = Data::random(&mut rng, &op, &s, true);
                    let got = in_pieces(ctx, &mut rng, &op, &s, &x);
                    judge(name, &op, &s, &x, None, &got);
                    runs += 1;
                }
            }
        }
        println!("{name}: {problems} problems, {runs} runs");
    }
}

/// Runs one sequence cut at random places, each piece in a random form, the state carried over.
fn in_pieces(
    ctx: &Context,
    rng: &mut Rng,
    op: &LinearAttention,
    s: &LinearAttentionShape,
    x: &Data,
) -> Got {
    let mut cuts: Vec<u32> = (0..rng.range(1, 6)).map(|_| rng.range(0, s.seq_k + 1)).collect();
    cuts.extend([0, s.seq_k]);
    cuts.sort_unstable();
    let (mut state, mut key_sum, mut o) = (x.state.clone(), x.key_sum.clone(), Vec::new());
    for w in cuts.windows(2) {
        let mut op = LinearAttention { form: *rng.pick(&FORMS), ..op.clone() };
        if !legal(&op) {
            op.form = Form::Auto;
        }
        let part = LinearAttentionShape { seq_q: w[1] - w[0], seq_k: w[1] - w[0], ..*s };
        let data = Data { state, key_sum, ..x.tokens(&op, s, w[0], w[1]) };
        let got = execute(ctx, rng, &op, &part, &data, None, true).unwrap();
        o.extend(got.o);
        (state, key_sum) = (got.state, got.key_sum);
    }
    Got { o, state, key_sum }
}

/// The memory that each decomposition takes beyond inputs and outputs, by the formula of
/// `scratch_bytes` and as found: the last word of scratch that a call writes, and what the device
/// has allocated meanwhile.
#[test]
fn memory_is_what_the_formula_says() {
    // other tests would allocate beside it
    for Device { name, ctx } in &devices_alone() {
        for (decay, normalize, form) in [
            (Decay::PerChannel, Normalize::None, Form::Recurrent),
            (Decay::PerChannel, Normalize::None, Form::ChunkLoop),
            (Decay::None, Normalize::None, Form::ChunkParallel),
            (Decay::PerChannel, Normalize::None, Form::ChunkParallel),
            (Decay::PerChannel, Normalize::Eps(1e-6), Form::ChunkLoop),
            (Decay::PerChannel, Normalize::Eps(1e-6), Form::ChunkParallel),
        ] {
            let (gated, normalized) = (decay != Decay::None, normalize != Normalize::None);
            let op = LinearAttention {
                feature_map: FeatureMap::EluPlusOne,
                decay,
                normalize,
                form,
                ..base()
            };
            for tokens in [600u32, 2400] {
                let s = LinearAttentionShape { batch: 2, ..small(tokens) };
                let plan = op.plan(ctx, s).unwrap();
                let [pairs, k, v, n] = [4, 16, 16, plan.segments()].map(u64::from);
                let n = if form == Form::ChunkParallel { n } else { 0 };
                let part = |bytes: u64| bytes.next_multiple_of(256);
                let mut formula = part(4 * n * pairs * k * v);
                if gated {
                    formula += part(4 * n * pairs * k);
                }
                if normalized {
                    formula += part(8 * pairs * k) + part(4 * n * pairs * k);
                }
                // who needs a place for the state although the caller gives none
                let state = part(4 * pairs * k * v);
                let total = plan.scratch_bytes();
                assert!(
                    total == formula + state || (total == formula && !normalized),
                    "{name}: {form:?}: {total} bytes, formula {formula} and perhaps {state}"
                );
                if n > 0 {
                    assert!(plan.segments() > 1);
                }

                let rows = |w: u32| {
                    Tensor::upload(ctx, [2, tokens, 2, w], &vec![-0.1f32; size(&[2, tokens, 2, w])])
                        .unwrap()
                };
                let (q, gates, o) = (rows(16), rows(16), rows(16));
                let words = total / 4 + 64;
                let mark = 0x7fc0_dead;
                let scratch = ctx.device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: words * 4,
                    usage: wgpu::BufferUsages::STORAGE
                        | wgpu::BufferUsages::COPY_DST
                        | wgpu::BufferUsages::COPY_SRC,
                    mapped_at_creation: false,
                });
                let pattern = vec![mark; words as usize];
                ctx.queue.write_buffer(&scratch, 0, bytemuck::cast_slice::<u32, u8>(&pattern));
                // with a denominator, the call that needs most: a key sum out, but no state
                let sums = Tensor::<3>::zeros(ctx, [2, 2, 16], DType::F32).unwrap();
                let args = LinearAttentionArgs {
                    gates: gated.then(|| gates.view()),
                    final_key_sum: normalized.then(|| sums.view()),
                    scratch: Some(&scratch),
                    ..LinearAttentionArgs::new(q.view(), q.view(), q.view(), o.view())
                };
                let allocated = || {
                    let report = ctx.device.generate_allocator_report();
                    report.map(|report| report.total_allocated_bytes)
                };
                ctx.wait("test").unwrap();
                let before = allocated();
                let mut encoder = ctx.device.create_command_encoder(&Default::default());
                plan.encode(ctx, &mut encoder, &args).unwrap();
                ctx.queue.submit([encoder.finish()]);
                let during = allocated();
                ctx.wait("test").unwrap();
                if let (Some(before), Some(during)) = (before, during) {
                    // parameters, a few hundred bytes for each dispatch
                    let grown = during.saturating_sub(before);
                    assert!(grown <= 16_384, "{name}: {form:?}: {grown} bytes beyond scratch");
                }
                let after = read_words(ctx, &scratch);
                let used =
                    after.iter().rposition(|w| *w != mark).map_or(0, |at| 4 * (at as u64 + 1));
                assert!(used <= total, "{name}: {form:?}: {used} bytes written of {total}");
                assert!(
                    used + 256 > total,
                    "{name}: {form:?}: only {used} bytes of {total} were needed"
                );
            }
        }
    }
}

/// The words of a buffer.
fn read_words(ctx: &Context, buffer: &wgpu::Buffer) -> Vec<u32> {
    let bytes = buffer.size();
    let staging = ctx.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    run(ctx, |encoder| {
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, bytes);
        Ok(())
    })
    .unwrap();
    staging.slice(..).map_async(wgpu::MapMode::Read, |r| r.unwrap());
    ctx.wait("test").unwrap();
    let mapped = staging.slice(..).get_mapped_range().unwrap();
    bytemuck::pod_collect_to_vec(&mapped)
}

#[test]
fn packed_sequences() {
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 13);
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
                if !deal.takes() {
                    continue;
                }
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
        let op = LinearAttention {
            decay: Decay::PerToken,
            normalize: Normalize::Eps(1e-6),
            feature_map: FeatureMap::EluPlusOne,
            ..base()
        };
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
            let [q, k, v] =
                [&one.q, &one.k, &one.v].map(|x| Tensor::upload(ctx, [1, 1, 2, 16], x).unwrap());
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
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 13);
        let mut rng = Rng(9);
        for dtype in [DType::F32, DType::F16] {
            for decay in [Decay::PerToken, Decay::PerChannel] {
                for update in [Update::Add, Update::Delta] {
                    for form in FORMS {
                        for chunk_size in [None, Some(8)] {
                            let op = LinearAttention {
                                decay: decay.clone(),
                                update,
                                form,
                                chunk_size,
                                dtype,
                                ..base()
                            };
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
                            if !deal.takes() {
                                continue;
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
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 7);
        for form in FORMS {
            for decay in
                [Decay::PerToken, Decay::PerChannel, Decay::PerHead(vec![f32::NEG_INFINITY; 2])]
            {
                let op = LinearAttention { decay: decay.clone(), form, ..base() };
                let mut rng = Rng(10);
                let s = small(20);
                let mut x = Data::random(&mut rng, &op, &s, true);
                x.state.iter_mut().for_each(|x| *x *= 1e30);
                let width = x.gates.len() / 20;
                x.gates[13 * width..14 * width].fill(f32::NEG_INFINITY);
                // the key of that token is zero: its output reads an empty state
                x.k[13 * 32..14 * 32].fill(0.0);
                if !deal.takes() {
                    continue;
                }
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
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 17);
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
                if !deal.takes() {
                    continue;
                }
                let got = execute(&short, &mut rng, &op, &s, &x, None, true).unwrap();
                judge(name, &op, &s, &x, None, &got);
            }
        }
        let op =
            LinearAttention { decay: Decay::PerHead(vec![-0.02]), form: Form::ChunkLoop, ..base() };
        let s = LinearAttentionShape::new(1, 70_000, 1, 4, 4);
        let x = Data::random(&mut rng, &op, &s, false);
        for ctx in [ctx, &ctx.with_class(DeviceClass::Gpu)] {
            let got = execute(ctx, &mut rng, &op, &s, &x, None, true).unwrap();
            judge(name, &op, &s, &x, None, &got);
        }
    }
}

#[test]
fn state_reduction_alone() {
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 13);
        let mut rng = Rng(12);
        for form in FORMS {
            for op in variants() {
                let op = LinearAttention { form, ..op };
                if !legal(&op) {
                    continue;
                }
                let s = small(45);
                let x = Data::random(&mut rng, &op, &s, true);
                if !deal.takes() {
                    continue;
                }
                let want = truth(&op, &s, &x, None);
                let plan = op.plan_state(ctx, s).unwrap();
                let scratch = scratch(ctx, plan.scratch_bytes());
                let [k, v] = [&x.k, &x.v].map(|x| Tensor::upload(ctx, [1, 45, 2, 16], x).unwrap());
                let width = if op.decay == Decay::PerChannel { 16 } else { 1 };
                let gates = (!x.gates.is_empty())
                    .then(|| Tensor::upload(ctx, [1, 45, 2, width], &x.gates).unwrap());
                let beta = (!x.beta.is_empty())
                    .then(|| Tensor::upload(ctx, [1, 45, 2, 1], &x.beta).unwrap());
                let s0 = Tensor::upload(ctx, [1, 2, 16, 16], &x.state).unwrap();
                let z0 = (!x.key_sum.is_empty())
                    .then(|| Tensor::upload(ctx, [1, 2, 16], &x.key_sum).unwrap());
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

/// Attention between channels is a softmax of the state, read by the queries.
#[test]
fn channel_attention() {
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 7);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (tokens, channels) in [(1, 1), (45, 3), (49, 32), (300, 16), (70, 130)] {
                if !deal.takes() {
                    continue;
                }
                let mut rng = Rng(u64::from(channels));
                let s = ChannelAttentionShape { batch: 2, tokens, heads: 2, channels };
                let op = ChannelAttention { scale: 0.5, dtype };
                let plan = op.plan(ctx, s).unwrap();
                let shape = [2, tokens, 2, channels];
                let [q, k, v] = [0; 3].map(|_| rounded(&rng.vec(size(&shape)), dtype));
                let mut input = |x: &[f32]| {
                    let l = layout(&mut rng, shape, channels != 3);
                    (upload_as(ctx, l, x, dtype).unwrap(), l)
                };
                let ((tq, ql), (tk, kl), (tv, vl)) = (input(&q), input(&k), input(&v));
                let o = Guarded::new(ctx, Layout::contiguous(shape), dtype);
                let scratch = scratch(ctx, plan.scratch_bytes());
                let args = ChannelAttentionArgs {
                    q: tq.view_as(ql).unwrap(),
                    k: tk.view_as(kl).unwrap(),
                    v: tv.view_as(vl).unwrap(),
                    o: o.view(),
                    scratch: Some(&scratch),
                };
                run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
                let got = o.read(ctx);
                let width = channels as usize;
                let of = |x: &[f32], b: usize, h: usize| -> Vec<f32> {
                    (0..tokens as usize)
                        .flat_map(|t| &x[((b * tokens as usize + t) * 2 + h) * width..][..width])
                        .copied()
                        .collect()
                };
                for (b, h) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let [q, k, v] = [&q, &k, &v].map(|x| to_f64(&of(x, b, h)));
                    let want =
                        reference::channel_attention([tokens as usize, width], 0.5, &q, &k, &v);
                    let error = rel_rms(&of(&got, b, h), &want);
                    // sums of 300 products enter an exponential
                    let budget =
                        4e-6 + if dtype == DType::F32 { 0.0 } else { dtype.unit_roundoff() };
                    assert!(error < budget, "{name}: {error:.1e}: {op:?} {s:?}");
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
            let [a, b] =
                [0, 1].map(|_| execute(ctx, &mut Rng(14), &op, &s, &x, None, true).unwrap());
            assert_eq!(bits(&a.o), bits(&b.o), "{name}: {form:?}");
            assert_eq!(bits(&a.state), bits(&b.state), "{name}: {form:?}");
        }
    }
}

#[test]
fn published_decays() {
    let per_head = |d: Decay| match d {
        Decay::PerHead(x) => x,
        other => panic!("{other:?}"),
    };
    let close = |got: &[f32], want: &[f64]| {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((f64::from(*g) - w).abs() <= 1e-6 * w.abs(), "{got:?} {want:?}");
        }
    };
    // fla: -(8 / H (1 - l / L)) * h
    let got = per_head(Decay::lightning(3, 12, 4).unwrap());
    close(&got, &[0.0, -1.5, -3.0, -4.5]);
    assert!(got[0].is_sign_positive());
    // the repository: ALiBi slopes, here with six heads: those of four, then every other of eight
    let six = [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125].map(|x: f64| -x);
    close(&per_head(Decay::alibi(6).unwrap()), &six);
    let deep = 1.0 - 2.0 / 3.0 + 1e-5;
    close(&per_head(Decay::lightning_alibi(2, 4, 6).unwrap()), &six.map(|s| s * deep));
    close(&per_head(Decay::alibi(1).unwrap()), &[-(2f64.powi(-8))]);
    close(&per_head(Decay::retention(3).unwrap()), &[5, 6, 7].map(|n| (1.0 - 2f64.powi(-n)).ln()));
    assert_eq!(per_head(Decay::slopes(&[0.5, 0.0])), [-0.5, 0.0]);
    // many heads, and the last layer: rates so low that only their logarithms say them
    let many = per_head(Decay::retention(80).unwrap());
    close(&many, &(0..80).map(|h| (-(2f64.powi(-5 - h))).ln_1p()).collect::<Vec<_>>());
    let last = per_head(Decay::lightning_alibi(79, 80, 64).unwrap());
    let rate = |h: i32| -(2f64.powf(-f64::from(h + 1) / 8.0)) * 1e-5;
    close(&last, &(0..64).map(rate).collect::<Vec<_>>());

    let message = |e: Result<Decay>| e.unwrap_err().to_string();
    assert_eq!(
        message(Decay::lightning(4, 4, 8)),
        "linear_attention: layer: expected less than layers = 4, got 4"
    );
    for e in [Decay::lightning(0, 1, 0), Decay::alibi(0), Decay::retention(0)] {
        assert_eq!(message(e), "linear_attention: heads: expected 1 to 65536, got 0");
    }
}

/// One head of one channel: the recurrence is a geometric sum.
#[test]
fn reference_against_closed_forms() {
    let s = LinearAttentionShape::new(1, 12, 1, 1, 1);
    let (g, ones) = (-0.3f32, vec![1.0; 12]);
    let op = LinearAttention { decay: Decay::PerHead(vec![g]), scale: 0.5, ..Default::default() };
    let x = LinearAttentionInputs { q: &ones, k: &ones, v: &ones, ..Default::default() };
    let out = reference::linear_attention(&op, &s, &x);
    let a = f64::from(g).exp();
    for (t, o) in out.o.iter().enumerate() {
        let n = i32::try_from(t).unwrap() + 1;
        let want = 0.5 * (1.0 - a.powi(n)) / (1.0 - a);
        assert!((o - want).abs() < 1e-14, "{o} {want}");
    }
    // normalised: a mean of the values whatever the decay, so constant values come back
    let op = LinearAttention { normalize: Normalize::Eps(0.0), ..op };
    let v = vec![7.0; 12];
    let out = reference::linear_attention(&op, &s, &LinearAttentionInputs { v: &v, ..x });
    assert!(out.o.iter().all(|o| (o - 7.0).abs() < 1e-14));
    // delta rule, unit keys, beta 1: the state holds the last value
    let op = LinearAttention { update: Update::Delta, ..Default::default() };
    let v: Vec<f64> = (0..12).map(f64::from).collect();
    let out =
        reference::linear_attention(&op, &s, &LinearAttentionInputs { v: &v, beta: &ones, ..x });
    assert_eq!(out.o, v);
    assert_eq!(out.state, [11.0]);
}

/// Feature maps: inner products of Taylor features are the polynomial; zero queries to an even
/// mix of a clamped denominator.
#[test]
fn reference_feature_maps() {
    let mut rng = Rng(20);
    let s = LinearAttentionShape { seq_q: 3, ..LinearAttentionShape::new(1, 1, 1, 5, 1) };
    let (q, k) = (to_f64(&rng.vec(15)), to_f64(&rng.vec(5)));
    let op = LinearAttention {
        feature_map: FeatureMap::Taylor2,
        causal: false,
        scale: 0.5,
        ..Default::default()
    };
    let x = LinearAttentionInputs { q: &q, k: &k, v: &[1.0], ..Default::default() };
    let out = reference::linear_attention(&op, &s, &x);
    for (t, o) in out.o.iter().enumerate() {
        let dot: f64 = (0..5).map(|c| 0.5 * q[t * 5 + c] * k[c]).sum();
        assert!((o - (1.0 + dot + dot * dot / 2.0)).abs() < 1e-14);
    }
    let map = |feature_map, x: f64| {
        let op = LinearAttention { feature_map, causal: false, ..Default::default() };
        let s = LinearAttentionShape::new(1, 1, 1, 1, 1);
        let out = reference::linear_attention(
            &op,
            &s,
            &LinearAttentionInputs { q: &[1.0], k: &[x], v: &[1.0], ..Default::default() },
        );
        out.state[0]
    };
    assert_eq!(map(FeatureMap::EluPlusOne, -1.5), (-1.5f64).exp());
    assert_eq!(map(FeatureMap::EluPlusOne, 1.5), 2.5);
    assert_eq!(map(FeatureMap::SquaredRelu, -1.5), 0.0);
    assert_eq!(map(FeatureMap::SquaredRelu, 1.5), 2.25);
    assert_eq!(map(FeatureMap::Relu, -1.5), 0.0);
    assert!((map(FeatureMap::Silu, 1.5) - 1.5 / (1.0 + (-1.5f64).exp())).abs() < 1e-15);
    assert_eq!(FeatureMap::Taylor2.features(16), 153);
}

/// The quadratic form: every output as a sum over the tokens it sees.
#[test]
fn reference_equals_the_quadratic_form() {
    let mut rng = Rng(21);
    let s = LinearAttentionShape { heads_k: 1, ..LinearAttentionShape::new(2, 19, 2, 3, 4) };
    let op = LinearAttention { decay: Decay::PerChannel, scale: 0.75, ..Default::default() };
    let x = Data::random(&mut rng, &op, &s, false);
    let got = truth(&op, &s, &x, None);
    for (at, o) in got.o.iter().enumerate() {
        let (j, h, i, b) = (at % 4, at / 4 % 2, at / 8 % 19, at / (8 * 19));
        let mut want = 0.0;
        for t in 0..=i {
            for c in 0..3 {
                let decay: f64 = (t + 1..=i)
                    .map(|u| f64::from(x.gates[((b * 19 + u) * 2 + h) * 3 + c]))
                    .sum::<f64>()
                    .exp();
                want += 0.75
                    * f64::from(x.q[((b * 19 + i) * 2 + h) * 3 + c])
                    * f64::from(x.k[(b * 19 + t) * 3 + c])
                    * decay
                    * f64::from(x.v[((b * 19 + t) * 2 + h) * 4 + j]);
            }
        }
        assert!((o - want).abs() < 1e-12, "{o} {want}");
    }
}

/// The comparator refuses outputs that are off, late or missing.
#[test]
fn the_judge_refuses_wrong_outputs() {
    let mut rng = Rng(22);
    let op = LinearAttention { decay: Decay::PerToken, ..base() };
    let s = small(20);
    let x = Data::random(&mut rng, &op, &s, true);
    let want = truth(&op, &s, &x, None);
    #[expect(clippy::cast_possible_truncation, reason = "rounds")]
    let narrow = |x: &[f64]| -> Vec<f32> { x.iter().map(|x| *x as f32).collect() };
    let good = || Got { o: narrow(&want.o), state: narrow(&want.state), key_sum: vec![] };
    let refused =
        |got: Got| std::panic::catch_unwind(|| judge("test", &op, &s, &x, None, &got)).is_err();
    assert!(!refused(good()));
    let mut late = good();
    late.o.rotate_right(32);
    assert!(refused(late));
    let mut scaled = good();
    scaled.state.iter_mut().for_each(|x| *x *= 1.0001);
    assert!(refused(scaled));
    let mut missing = good();
    missing.o[5] = f32::NAN;
    assert!(refused(missing));
}

#[test]
fn bad_input_is_refused_with_numbers() {
    let Some(Device { ctx, .. }) = devices().first() else { return };
    let plan =
        |op: LinearAttention, s: LinearAttentionShape| op.plan(ctx, s).unwrap_err().to_string();
    let per_head = |x: &[f32]| LinearAttention { decay: Decay::PerHead(x.to_vec()), ..base() };
    let delta = LinearAttention { update: Update::Delta, ..base() };
    let s = small(8);
    let cases: Vec<(String, &str)> = vec![
        (plan(per_head(&[-0.1]), s), "per-head decays: expected heads = 2, got 1"),
        (plan(per_head(&[-0.1, 0.25]), s), "log gate: expected at most 0, got 0.25 at index 1"),
        (plan(per_head(&[f32::NAN, 0.0]), s), "log gate: expected at most 0, got NaN at index 0"),
        (
            plan(LinearAttention { chunk_size: Some(0), ..base() }, s),
            "chunk_size: expected at least 1, got 0",
        ),
        (
            plan(LinearAttention { chunk_size: Some(48), ..base() }, s),
            "chunk_size: expected one of [1, 2, 4, 8, 16] for 16 key features on this device, got 48",
        ),
        (
            plan(LinearAttention { chunk_size: Some(8), form: Form::Recurrent, ..base() }, s),
            "chunk_size: the recurrent form takes no chunks",
        ),
        (
            ChannelAttention { scale: f32::INFINITY, ..Default::default() }
                .plan(ctx, ChannelAttentionShape { batch: 1, tokens: 8, heads: 1, channels: 4 })
                .unwrap_err()
                .to_string(),
            "scale: expected a finite number, got inf",
        ),
        (
            plan(LinearAttention { scale: f32::NAN, ..base() }, s),
            "scale: expected a finite number, got NaN",
        ),
        (
            plan(LinearAttention { normalize: Normalize::Eps(-1.0), ..base() }, s),
            "eps: expected finite and at least 0, got -1",
        ),
        (
            plan(LinearAttention { normalize: Normalize::Clamp(0.0), ..base() }, s),
            "clamp: expected finite and greater than 0, got 0",
        ),
        (
            plan(LinearAttention { causal: false, ..delta.clone() }, s),
            "update: the delta rule is causal",
        ),
        (
            plan(LinearAttention { normalize: Normalize::Eps(0.0), ..delta.clone() }, s),
            "normalize: the delta rule has no denominator",
        ),
        (
            plan(LinearAttention { form: Form::ChunkParallel, ..delta }, s),
            "form: the delta rule has no parallel form here",
        ),
        (
            plan(LinearAttention { causal: false, decay: Decay::PerToken, ..base() }, s),
            "decay: decays need an order",
        ),
        (plan(base(), LinearAttentionShape { seq_q: 7, ..s }), "seq_q: expected seq_k = 8"),
        (plan(base(), LinearAttentionShape { heads: 0, ..s }), "heads: expected at least 1, got 0"),
        (
            plan(base(), LinearAttentionShape { heads_k: 3, ..s }),
            "heads_k: expected a divisor of heads = 2, got 3",
        ),
        (
            plan(base(), LinearAttentionShape { key_dim: 257, ..s }),
            "key_dim: expected 1 to 256, got 257",
        ),
        (
            plan(base(), LinearAttentionShape { value_dim: 0, ..s }),
            "value_dim: expected 1 to 256, got 0",
        ),
        (
            plan(
                LinearAttention { feature_map: FeatureMap::Taylor2, ..base() },
                LinearAttentionShape { key_dim: 22, ..s },
            ),
            "key_dim: expected at most 256 features; Taylor2 makes them of up to 21 channels, got 22 channels, 276 features",
        ),
        (
            plan(
                LinearAttention { packed: true, ..base() },
                LinearAttentionShape { batch: MAX_PACKED + 1, ..s },
            ),
            "packed sequences, the limit is",
        ),
        (
            plan(
                base(),
                LinearAttentionShape { batch: 1 << 20, seq_q: 1 << 20, seq_k: 1 << 20, ..s },
            ),
            "elements in one tensor, the limit is 4294967295",
        ),
    ];
    for (got, want) in cases {
        assert!(got.contains(want), "{got:?} lacks {want:?}");
    }
    assert_eq!(
        check_gates(&[0.0, f32::NEG_INFINITY, 1e-3]).unwrap_err().to_string(),
        "linear_attention: log gate: expected at most 0, got 0.001 at index 2"
    );
    assert!(check_gates(&[0.0, -0.0, f32::NEG_INFINITY, -1e4]).is_ok());
}

#[test]
fn bad_arguments_are_refused_with_numbers() {
    let Some(Device { ctx, .. }) = devices().first() else { return };
    let t = |shape: [u32; 4]| Tensor::<4>::zeros(ctx, shape, DType::F32).unwrap();
    let rows = || t([1, 8, 2, 16]);
    let (q, k, v, o) = (rows(), rows(), rows(), rows());
    let good = LinearAttentionArgs::new(q.view(), k.view(), v.view(), o.view());
    let refuse = |op: &LinearAttention, shape, args: &LinearAttentionArgs<'_>| {
        let plan = op.plan(ctx, shape).unwrap();
        let mut encoder = ctx.device.create_command_encoder(&Default::default());
        plan.encode(ctx, &mut encoder, args).unwrap_err()
    };
    let expect = |got: Error, want: &str| {
        let got = got.to_string();
        assert!(got.contains(want), "{got:?} lacks {want:?}");
    };
    let op = LinearAttention { form: Form::ChunkLoop, ..base() };
    let s = small(8);

    let wrong = t([1, 2, 16, 15]);
    expect(
        refuse(&op, s, &LinearAttentionArgs { initial_state: Some(wrong.view()), ..good }),
        "initial_state: expected [1, 2, 16, 16], got [1, 2, 16, 15]",
    );
    expect(
        refuse(&op, s, &LinearAttentionArgs { final_state: Some(wrong.view()), ..good }),
        "final_state: expected [1, 2, 16, 16], got [1, 2, 16, 15]",
    );
    let half = Tensor::<4>::zeros(ctx, [1, 8, 2, 16], DType::F16).unwrap();
    expect(
        refuse(&op, s, &LinearAttentionArgs { q: half.view(), ..good }),
        "q: expected elements of type f32, got f16",
    );
    let long = t([1, 9, 2, 16]);
    expect(
        refuse(&op, s, &LinearAttentionArgs { v: long.view(), ..good }),
        "v: expected [1, 8, 2, 16], got [1, 9, 2, 16]",
    );
    let gates = t([1, 8, 2, 1]);
    expect(
        refuse(&op, s, &LinearAttentionArgs { gates: Some(gates.view()), ..good }),
        "gates: only taken with Decay::PerToken or PerChannel",
    );
    let gated = LinearAttention { decay: Decay::PerChannel, ..op.clone() };
    expect(
        refuse(&gated, s, &good),
        "gates: needed with Decay::PerToken or PerChannel, none given",
    );
    expect(
        refuse(&gated, s, &LinearAttentionArgs { gates: Some(gates.view()), ..good }),
        "gates: expected [1, 8, 2, 16], got [1, 8, 2, 1]",
    );
    let delta = LinearAttention { update: Update::Delta, ..op.clone() };
    expect(refuse(&delta, s, &good), "beta: needed with Update::Weighted or Delta, none given");
    expect(
        refuse(&op, s, &LinearAttentionArgs { o: q.view(), ..good }),
        "output o shares its buffer with q",
    );
    let state = t([1, 2, 16, 16]);
    expect(
        refuse(
            &op,
            s,
            &LinearAttentionArgs {
                initial_state: Some(state.view()),
                o: state.view_as(o.view().layout).unwrap(),
                ..good
            },
        ),
        "shares its buffer with",
    );
    let flipped = Layout::contiguous([1, 16, 2, 16]).permuted([0, 2, 1, 3]);
    expect(
        refuse(
            &op,
            s,
            &LinearAttentionArgs {
                initial_state: Some(state.view()),
                final_state: Some(state.view_as(flipped).unwrap()),
                ..good
            },
        ),
        "output final_state shares its buffer with initial_state",
    );
    let sums = Tensor::<3>::zeros(ctx, [1, 2, 16], DType::F32).unwrap();
    expect(
        refuse(&op, s, &LinearAttentionArgs { final_key_sum: Some(sums.view()), ..good }),
        "final_key_sum: only taken with a denominator",
    );
    let normalized = LinearAttention { normalize: Normalize::Eps(1e-6), ..op.clone() };
    expect(
        refuse(&normalized, s, &LinearAttentionArgs { initial_state: Some(state.view()), ..good }),
        "initial_key_sum: goes with initial_state: both or neither",
    );
    expect(refuse(&normalized, s, &good), "scratch: needs 256 bytes, none given");
    let small_scratch = scratch(ctx, 16);
    expect(
        refuse(&normalized, s, &LinearAttentionArgs { scratch: Some(&small_scratch), ..good }),
        "scratch: the view ends at byte 256, its buffer at byte 16",
    );

    let packed = LinearAttention { packed: true, ..op.clone() };
    let two = LinearAttentionShape { batch: 2, ..s };
    for (cu, want) in [
        (&[0, 8][..], "cu_seqlens: expected batch + 1 = 3 bounds, got 2"),
        (&[1, 4, 8], "cu_seqlens: expected 0 as the first bound, got 1"),
        (&[0, 9, 8], "cu_seqlens: expected bounds that do not fall, 9 after index 1, got 8"),
        (&[0, 4, 7], "cu_seqlens: expected seq_k = 8 as the last bound, got 7"),
    ] {
        expect(refuse(&packed, two, &LinearAttentionArgs { cu_seqlens: Some(cu), ..good }), want);
    }
    expect(refuse(&packed, two, &good), "cu_seqlens: needed with packed sequences, none given");
    expect(
        refuse(&op, s, &LinearAttentionArgs { cu_seqlens: Some(&[0, 8]), ..good }),
        "cu_seqlens: only taken with packed sequences",
    );
}

/// A device with the least that WebGPU offers plans every variant and form.
#[test]
fn small_devices() {
    let Some(Device { ctx, .. }) = devices().first() else { return };
    let trips = ctx.caps.loop_trips;
    let least = ctx.with_caps(Caps { loop_trips: trips, ..Caps::minimum() });
    let widest = LinearAttention {
        normalize: Normalize::Eps(1e-6),
        update: Update::Weighted,
        decay: Decay::PerChannel,
        ..base()
    };
    for op in variants().into_iter().chain([widest]) {
        for form in FORMS {
            for (k, v) in [(16, 16), (256, 256)] {
                let op = LinearAttention { form, ..op.clone() };
                if !legal(&op) || form != Form::ChunkLoop && k == 256 {
                    continue;
                }
                let plan = op.plan(&least, LinearAttentionShape::new(1, 64, 2, k, v)).unwrap();
                assert_eq!(plan.tier(), Tier::Portable);
            }
        }
    }
}

/// Log decays from none to strong. Factors of the first are nearer to 1 than f32 can say.
const SLOW: [f32; 6] = [0.0, -4e-8, -1e-6, -2e-6, -1e-4, -1e-2];

/// One sequence of so many tokens, a head for each of [`SLOW`], all with the same tokens.
fn slow_problem(rng: &mut Rng, op: &LinearAttention, tokens: u32) -> (LinearAttentionShape, Data) {
    let heads = SLOW.len() as u32;
    let s = LinearAttentionShape {
        heads_q: 1,
        heads_k: 1,
        heads_v: 1,
        ..LinearAttentionShape::new(1, tokens, heads, 4, 4)
    };
    let op = LinearAttention { decay: Decay::None, ..op.clone() };
    let mut x = Data::random(rng, &op, &s, true);
    for row in x.beta.chunks_mut(SLOW.len()) {
        row.fill(row[0]);
    }
    (s, x)
}

/// The gates of [`slow_problem`] for a kind of decay.
fn slow_gates(decay: &Decay, tokens: u32) -> Vec<f32> {
    let width = match decay {
        Decay::PerToken => 1,
        Decay::PerChannel => 4,
        _ => return Vec::new(),
    };
    (0..tokens).flat_map(|_| SLOW.iter().flat_map(|g| vec![*g; width])).collect()
}

/// Errors of each head against the reference: of outputs and of the state.
fn slow_errors(got: &Got, want: &LinearAttentionOutputs) -> Vec<[f64; 2]> {
    let heads = SLOW.len();
    let of = |h: usize| {
        let o: (Vec<f32>, Vec<f64>) = got
            .o
            .iter()
            .zip(&want.o)
            .enumerate()
            .filter(|(i, _)| i / 4 % heads == h)
            .map(|(_, (a, b))| (*a, *b))
            .unzip();
        [rel_rms(&o.0, &o.1), rel_rms(&got.state[h * 16..][..16], &want.state[h * 16..][..16])]
    };
    (0..heads).map(of).collect()
}

fn shown(errors: &[[f64; 2]]) -> String {
    errors.iter().map(|[o, s]| format!("{o:.1e}/{s:.1e} ")).collect()
}

/// Errors of outputs and states against those of the first head, which forgets nothing.
fn hold_slow(what: &str, errors: &[[f64; 2]]) {
    for e in errors {
        for side in [0, 1] {
            assert!(e[side] <= 2.0 * errors[0][side] + FLOOR, "{what}");
        }
    }
}

/// A slow decay costs no digits: at most twice the error of the same tokens without decay, in every
/// form and however decays are given. Factors of single tokens would be off by up to half, each
/// time.
#[test]
fn slow_decays_keep_their_digits() {
    let lengths: &[u32] =
        if common::slow() { &[1024, 16_384, 65_536, 262_144, 1 << 20] } else { &[10_000] };
    let forms = [
        (Form::Recurrent, None),
        (Form::ChunkLoop, None),
        (Form::ChunkParallel, None),
        (Form::ChunkLoop, Some(16)),
    ];
    for &tokens in lengths {
        let (s, mut x) = slow_problem(&mut Rng(30), &base(), tokens);
        let op = LinearAttention { decay: Decay::PerHead(SLOW.to_vec()), ..base() };
        let want = truth(&op, &s, &x, None);
        for (d, Device { name, ctx }) in devices().iter().enumerate() {
            let mut deal = Deal::new(d, 7);
            for decay in [Decay::PerHead(SLOW.to_vec()), Decay::PerToken, Decay::PerChannel] {
                for (form, chunk_size) in forms {
                    if !deal.takes() {
                        continue;
                    }
                    let op = LinearAttention { decay: decay.clone(), form, chunk_size, ..base() };
                    x.gates = slow_gates(&decay, tokens);
                    let got = execute(ctx, &mut Rng(31), &op, &s, &x, None, true).unwrap();
                    let errors = slow_errors(&got, &want);
                    let kind = match decay {
                        Decay::PerToken => "token",
                        Decay::PerChannel => "channel",
                        _ => "head",
                    };
                    let what = format!(
                        "{name} {tokens} {form:?} {chunk_size:?} per {kind}: {}",
                        shown(&errors)
                    );
                    println!("{what}");
                    hold_slow(&what, &errors);
                }
            }
        }
    }
}

/// The same for the delta rule, for weights and for denominators with their key sums.
#[test]
fn slow_decays_keep_their_digits_under_every_rule() {
    let tokens = 6000;
    let forms = [(Form::Recurrent, None), (Form::ChunkLoop, None), (Form::ChunkLoop, Some(8))];
    let rules = [
        LinearAttention { update: Update::Delta, ..base() },
        LinearAttention {
            update: Update::Weighted,
            feature_map: FeatureMap::EluPlusOne,
            normalize: Normalize::Eps(1e-6),
            ..base()
        },
    ];
    for op in rules {
        let (s, mut x) = slow_problem(&mut Rng(40), &op, tokens);
        let op = LinearAttention { decay: Decay::PerHead(SLOW.to_vec()), ..op };
        let want = truth(&op, &s, &x, None);
        for (d, Device { name, ctx }) in devices().iter().enumerate() {
            let mut deal = Deal::new(d, 5);
            for decay in [Decay::PerToken, Decay::PerChannel] {
                for (form, chunk_size) in forms {
                    if !deal.takes() {
                        continue;
                    }
                    let op =
                        LinearAttention { decay: decay.clone(), form, chunk_size, ..op.clone() };
                    x.gates = slow_gates(&decay, tokens);
                    let got = execute(ctx, &mut Rng(41), &op, &s, &x, None, true).unwrap();
                    let errors = slow_errors(&got, &want);
                    let what = format!("{name} {op:?}: {}", shown(&errors));
                    println!("{what}");
                    hold_slow(&what, &errors);
                    if !got.key_sum.is_empty() {
                        let of = |h: usize| {
                            rel_rms(&got.key_sum[h * 4..][..4], &want.key_sum[h * 4..][..4])
                        };
                        for h in 0..SLOW.len() {
                            assert!(of(h) <= 2.0 * of(0) + FLOOR, "{what}: key sum {:.1e}", of(h));
                        }
                    }
                }
            }
        }
    }
}

/// Streaming: a call for each token, or for sixteen, the state in place.
#[test]
fn slow_decays_keep_their_digits_call_by_call() {
    let tokens = if common::slow() { 1 << 20 } else { 20_000 };
    let (s, x) = slow_problem(&mut Rng(32), &base(), tokens);
    call_by_call(s, &x);
}

/// A state that hardly changes loses nearly the same in each call: rounded to nearest, it would be off
/// to the same side each time. Its first row and column are 0, and tell nothing to round by.
#[test]
fn slow_decays_of_a_large_state_keep_their_digits() {
    let (s, mut x) = slow_problem(&mut Rng(32), &base(), 8000);
    for (i, state) in x.state.iter_mut().enumerate() {
        *state = if i % 4 == 0 || i / 4 % 4 == 0 { 0.0 } else { *state + 800.0 };
    }
    x.v.iter_mut().for_each(|v| *v *= 1e-3);
    for x in [&mut x.k, &mut x.v] {
        x.iter_mut().step_by(4).for_each(|x| *x = 0.0);
    }
    call_by_call(s, &x);
}

fn call_by_call(s: LinearAttentionShape, x: &Data) {
    let tokens = s.seq_k;
    let op = LinearAttention { decay: Decay::PerHead(SLOW.to_vec()), ..base() };
    let want = truth(&op, &s, x, None);
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 3);
        let decays = [Decay::PerHead(SLOW.to_vec()), Decay::PerToken, Decay::PerChannel];
        // of one token, and of more than the form for a few takes
        for (decay, step) in decays.iter().flat_map(|decay| [(decay, 1), (decay, 16)]) {
            if !deal.takes() {
                continue;
            }
            let op = LinearAttention { decay: decay.clone(), ..base() };
            let s = LinearAttentionShape { seq_q: step, seq_k: step, ..s };
            let plan = op.plan(ctx, s).unwrap();
            let up = |x: &[f32]| Tensor::upload(ctx, [1, tokens, 1, 4], x).unwrap();
            let (q, k, v) = (up(&x.q), up(&x.k), up(&x.v));
            // every token has the same gates
            let gates = slow_gates(decay, step);
            let width = gates.len() as u32 / 6 / step;
            let gates =
                (width > 0).then(|| Tensor::upload(ctx, [1, step, 6, width], &gates).unwrap());
            let state = Tensor::upload(ctx, [1, 6, 4, 4], &x.state).unwrap();
            let o = Tensor::<4>::zeros(ctx, [1, tokens, 6, 4], DType::F32).unwrap();
            let row = |t: u32, heads: u32| {
                Layout::contiguous([1, step, heads, 4]).with_offset(u64::from(t * heads * 4))
            };
            let mut t = 0;
            while t < tokens {
                let end = (t + 2000 * step).min(tokens);
                run(ctx, |encoder| {
                    let mut pass = encoder.begin_compute_pass(&Default::default());
                    for t in (t..end).step_by(step as usize) {
                        let args = LinearAttentionArgs {
                            gates: gates.as_ref().map(Tensor::view),
                            initial_state: Some(state.view()),
                            final_state: Some(state.view()),
                            ..LinearAttentionArgs::new(
                                q.view_as(row(t, 1))?,
                                k.view_as(row(t, 1))?,
                                v.view_as(row(t, 1))?,
                                o.view_as(row(t, 6))?,
                            )
                        };
                        plan.encode_pass(ctx, &mut pass, &args)?;
                    }
                    Ok(())
                })
                .unwrap();
                t = end;
            }
            let got = Got {
                o: o.download(ctx).unwrap(),
                state: state.download(ctx).unwrap(),
                key_sum: vec![],
            };
            let errors = slow_errors(&got, &want);
            let what = format!("{name} {tokens} by {step} {decay:?}: {}", shown(&errors));
            println!("{what}");
            hold_slow(&what, &errors);
        }
    }
}

/// What a weight or beta of zero hides may hold anything; so may tokens of the future for those
/// before them, and the initial states of other sequences.
#[test]
fn hidden_tokens_may_hold_anything() {
    let hidden_at = |t: u32| t % 5 == 2 || t % 7 == 6;
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 7);
        let mut rng = Rng(33);
        for op in variants().into_iter().filter(|op| op.update != Update::Add).step_by(2) {
            for (form, chunk_size) in
                FORMS.map(|f| (f, None)).into_iter().chain([(Form::ChunkLoop, Some(8))])
            {
                let op = LinearAttention { form, chunk_size, ..op.clone() };
                if !legal(&op) || !deal.takes() {
                    continue;
                }
                for bad in [f32::NAN, f32::INFINITY] {
                    let s = small(45);
                    let mut x = Data::random(&mut rng, &op, &s, true);
                    for t in (0..45).filter(|t| hidden_at(*t)) {
                        let at = t as usize;
                        x.beta[at * 2..][..2].fill(0.0);
                        x.k[at * 32..][..32].fill(bad);
                        x.v[at * 32..][..32].fill(-bad);
                    }
                    let got = execute(ctx, &mut rng, &op, &s, &x, None, true).unwrap();
                    for t in (0..45).filter(|t| hidden_at(*t)) {
                        let at = t as usize;
                        x.k[at * 32..][..32].fill(0.0);
                        x.v[at * 32..][..32].fill(0.0);
                    }
                    judge(name, &op, &s, &x, None, &got);
                }
            }
        }
    }
}

/// Token `t` of no form sees what comes after it.
#[test]
fn the_future_may_hold_anything() {
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 7);
        let mut rng = Rng(34);
        for op in variants().into_iter().filter(|op| op.causal).step_by(3) {
            for (form, chunk_size) in
                FORMS.map(|f| (f, None)).into_iter().chain([(Form::ChunkLoop, Some(8))])
            {
                let op = LinearAttention { form, chunk_size, ..op.clone() };
                if !legal(&op) || !deal.takes() {
                    continue;
                }
                // inside a chunk and inside a pair of tokens
                let (s, cut) = (small(45), 27);
                let mut x = Data::random(&mut rng, &op, &s, true);
                let want = execute(ctx, &mut Rng(35), &op, &s, &x, None, true).unwrap();
                let at = cut as usize;
                x.k[at * 32..].fill(f32::NAN);
                x.v[at * 32..].fill(f32::INFINITY);
                x.q[at * 32..].fill(f32::NAN);
                let widths = [&x.gates, &x.beta].map(|x| x.len() / 45);
                x.gates[at * widths[0]..].fill(f32::NAN);
                x.beta[at * widths[1]..].fill(f32::NAN);
                let got = execute(ctx, &mut Rng(35), &op, &s, &x, None, true).unwrap();
                let same = bits(&got.o[..at * 32]) == bits(&want.o[..at * 32]);
                assert!(same, "{name}: {op:?}");
            }
        }
    }
}

/// Sequences have nothing to do with one another: the first and the last of those packed hold NaN
/// everywhere, and one that is empty in its initial state.
#[test]
fn other_sequences_may_hold_anything() {
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 7);
        let mut rng = Rng(36);
        for op in variants().into_iter().step_by(4) {
            for form in FORMS {
                let op = LinearAttention { form, packed: true, ..op.clone() };
                if !legal(&op) || !deal.takes() {
                    continue;
                }
                let cu = [0u32, 13, 13, 46, 51];
                let s = LinearAttentionShape { batch: 4, ..small(51) };
                let clean = Data::random(&mut rng, &op, &s, true);
                let mut x = clean.clone();
                for part in [&mut x.q, &mut x.k, &mut x.v, &mut x.gates, &mut x.beta] {
                    let width = part.len() / 51;
                    part[..13 * width].fill(f32::NAN);
                    part[46 * width..].fill(f32::INFINITY);
                }
                for part in [&mut x.state, &mut x.key_sum] {
                    let width = part.len() / 4;
                    part[..2 * width].fill(f32::NAN);
                    part[3 * width..].fill(f32::NAN);
                }
                let got = execute(ctx, &mut Rng(37), &op, &s, &x, Some(&cu), true).unwrap();
                let want = execute(ctx, &mut Rng(37), &op, &s, &clean, Some(&cu), true).unwrap();
                assert_eq!(
                    bits(&got.o[13 * 32..46 * 32]),
                    bits(&want.o[13 * 32..46 * 32]),
                    "{name}: {op:?}"
                );
                let third = |x: &[f32]| bits(&x[x.len() / 2..x.len() / 4 * 3]);
                assert_eq!(third(&got.state), third(&want.state), "{name}: {op:?}");
                assert_eq!(third(&got.key_sum), third(&want.key_sum), "{name}: {op:?}");
                // nothing happened to the empty one
                assert!(got.state[512..1024].iter().all(|x| x.is_nan()), "{name}: {op:?}");
            }
        }
    }
}

/// Feature maps of numbers far from zero.
#[test]
fn feature_maps_far_out() {
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 3);
        for feature_map in [FeatureMap::Silu, FeatureMap::EluPlusOne] {
            for form in [Form::Recurrent, Form::ChunkLoop] {
                if !deal.takes() {
                    continue;
                }
                let op = LinearAttention { feature_map, form, ..base() };
                let s = LinearAttentionShape::new(1, 8, 1, 1, 1);
                // each value is what its key leaves in the state of its own token
                let keys = [-1e30f32, -1e5, -300.0, -90.0, -20.0, -1.0, 50.0, 200.0];
                let mut x = Data::random(&mut Rng(38), &op, &s, false);
                x.k = keys.to_vec();
                x.q = vec![1.0; 8];
                x.v = vec![1.0; 8];
                for n in 1..=8 {
                    let s = LinearAttentionShape::new(1, n, 1, 1, 1);
                    let x = x.tokens(&op, &s, 0, n);
                    let got = execute(ctx, &mut Rng(39), &op, &s, &x, None, true).unwrap();
                    let want = truth(&op, &s, &x, None).state[0];
                    let error = (f64::from(got.state[0]) - want).abs();
                    assert!(
                        error <= 1e-6 * want.abs() + 1e-37,
                        "{name}: {op:?} {n}: {got} {want}",
                        got = got.state[0]
                    );
                }
            }
        }
    }
}

/// Rules that a GPU computes by register tiles.
fn tiled_rules() -> impl Iterator<Item = LinearAttention> {
    let tiled = |op: &LinearAttention| {
        op.update != Update::Delta && op.decay != Decay::PerChannel && op.causal
    };
    let weighted = LinearAttention {
        update: Update::Weighted,
        normalize: Normalize::Clamp(0.5),
        feature_map: FeatureMap::Relu,
        decay: Decay::PerToken,
        ..base()
    };
    variants().into_iter().filter(tiled).chain([weighted])
}

/// Tokens in a chunk on a GPU.
const GPU_CHUNK: u32 = 64;

/// Register tiles, which run anywhere: lengths around a chunk, heads around slices, tiles and quads, states
/// in and out, every storage, few and many registers.
#[test]
fn cut_for_a_gpu() {
    let lengths = [1, GPU_CHUNK - 1, GPU_CHUNK, GPU_CHUNK + 1, 2 * GPU_CHUNK + 3];
    let heads = [[16, 16], [64, 64], [7, 3], [40, 72], [33, 36], [136, 20]];
    let mut rng = Rng(50);
    for (c, gpus) in ["browser", "ada"].map(gpus).iter().enumerate() {
        let mut case = c;
        for op in tiled_rules().chain(variants().into_iter().filter(|op| !op.causal)) {
            for form in [Form::ChunkLoop, Form::ChunkParallel, Form::Auto] {
                for (i, tokens) in lengths.into_iter().enumerate() {
                    case += 1;
                    let Some(gpu) = gpus.get(case % gpus.len().max(1)) else { continue };
                    if !common::slow() && !(case + i).is_multiple_of(24) {
                        continue;
                    }
                    let [k, v] = heads[case / 3 % heads.len()];
                    let dtype = [DType::F32, DType::F16, DType::F32, DType::BF16][case % 4];
                    let op = LinearAttention { form, dtype, gate_dtype: dtype, ..op.clone() };
                    let mut s = LinearAttentionShape::new(rng.range(1, 3), tokens, 2, k, v);
                    [s.heads_q, s.heads_k, s.heads_v] = [1, 2, 1];
                    let x = Data::random(&mut rng, &op, &s, case % 2 == 0);
                    let decode = tokens <= 8 && form == Form::Auto && op.causal;
                    let chunk = op.plan(&gpu.ctx, s).unwrap().chunk_size();
                    assert_eq!(chunk, if decode { 1 } else { GPU_CHUNK }, "{op:?}");
                    let got = execute(&gpu.ctx, &mut rng, &op, &s, &x, None, case % 3 != 0);
                    judge(&gpu.name, &op, &s, &x, None, &got.unwrap());
                    gpu.ctx.forget_kernels();
                }
            }
        }
    }
}

/// Sequences of all lengths, packed, on devices of both tiers as they would be planned for as GPUs, whose
/// loops may be short.
#[test]
fn packed_sequences_on_a_gpu() {
    let fast = |d: &&Device| d.ctx.caps.unrolled >= Caps::minimum().unrolled;
    let mut rng = Rng(51);
    for (d, Device { name, ctx }) in devices().iter().filter(fast).enumerate() {
        let caps = Caps { loop_trips: 1024 + 100, ..ctx.caps.with_class(DeviceClass::Gpu) };
        let ctx = ctx.with_caps(caps);
        for (i, op) in tiled_rules().enumerate() {
            for (f, form) in [Form::ChunkLoop, Form::ChunkParallel].into_iter().enumerate() {
                if !common::slow() && !(i + d + 2 * f).is_multiple_of(4) {
                    continue;
                }
                let op = LinearAttention { form, packed: true, ..op.clone() };
                let cu = [0u32, 0, 1, 66, 130, 131, 260];
                let s = LinearAttentionShape { batch: 6, ..small(260) };
                let x = Data::random(&mut rng, &op, &s, true);
                let got = execute(&ctx, &mut rng, &op, &s, &x, Some(&cu), true).unwrap();
                judge(name, &op, &s, &x, Some(&cu), &got);
            }
        }
    }
}

/// Within a chunk and across chunks: what comes later, what a weight hides, and other sequences may hold
/// anything; and what is seen is not hidden.
#[test]
fn a_gpu_sees_what_it_may() {
    for (i, gpu) in gpus("browser").iter().enumerate() {
        let mut rng = Rng(52);
        for (r, op) in tiled_rules().enumerate() {
            for (f, form) in [Form::ChunkLoop, Form::ChunkParallel].into_iter().enumerate() {
                if !common::slow() && !(i + r + 2 * f).is_multiple_of(4) {
                    continue;
                }
                let op = LinearAttention { form, ..op.clone() };
                let (s, tokens) = (small(150), 150);
                let clean = Data::random(&mut rng, &op, &s, true);
                let call = |x: &Data| execute(&gpu.ctx, &mut Rng(53), &op, &s, x, None, true);
                let want = call(&clean).unwrap();
                for at in [37, 64, 101] {
                    let mut x = clean.clone();
                    x.k[at * 32..].fill(f32::NAN);
                    x.v[at * 32..].fill(f32::INFINITY);
                    x.q[at * 32..].fill(f32::NAN);
                    let widths = [&x.gates, &x.beta].map(|x| x.len() / tokens);
                    x.gates[at * widths[0]..].fill(f32::NAN);
                    x.beta[at * widths[1]..].fill(f32::NAN);
                    let got = call(&x).unwrap();
                    let same = bits(&got.o[..at * 32]) == bits(&want.o[..at * 32]);
                    assert!(same, "{}: {at}: {op:?}", gpu.name);
                    // one value alone, seen from its token on
                    let mut x = clean.clone();
                    x.v[at * 32] = f32::INFINITY;
                    let got = call(&x).unwrap();
                    for t in 0..tokens {
                        let wild = !got.o[t * 32].is_finite();
                        // scores of features that are zero hide it, decays may
                        let due = t == at && op.feature_map == FeatureMap::Identity;
                        assert!(wild || !due, "{}: {at}: {t}: {op:?}", gpu.name);
                        assert!(!wild || t >= at, "{}: {at}: {t}: {op:?}", gpu.name);
                    }
                }
                if op.update == Update::Weighted {
                    let mut x = clean.clone();
                    let hidden = |t: &usize| t % 5 == 2 || t % 7 == 6;
                    for t in (0..tokens).filter(hidden) {
                        x.beta[t * 2..][..2].fill(0.0);
                        x.k[t * 32..][..32].fill(f32::NAN);
                        x.v[t * 32..][..32].fill(f32::INFINITY);
                    }
                    let got = call(&x).unwrap();
                    for t in (0..tokens).filter(hidden) {
                        x.k[t * 32..][..32].fill(0.0);
                        x.v[t * 32..][..32].fill(0.0);
                    }
                    judge(&gpu.name, &op, &s, &x, None, &got);
                }
            }
            gpu.ctx.forget_kernels();
        }
    }
}

/// Slow decays cost no digits on a GPU either, and fast ones among them no others: see
/// [`slow_decays_keep_their_digits`].
#[test]
fn slow_decays_keep_their_digits_on_a_gpu() {
    let tokens = if common::slow() { 1 << 20 } else { 6000 };
    let normalized = LinearAttention {
        update: Update::Weighted,
        feature_map: FeatureMap::EluPlusOne,
        normalize: Normalize::Eps(1e-6),
        ..base()
    };
    for op in [base(), normalized] {
        let (s, mut x) = slow_problem(&mut Rng(54), &op, tokens);
        let op = LinearAttention { decay: Decay::PerHead(SLOW.to_vec()), ..op };
        let want = truth(&op, &s, &x, None);
        for gpu in gpus("browser").iter().take(if common::slow() { 9 } else { 1 }) {
            for decay in [Decay::PerHead(SLOW.to_vec()), Decay::PerToken] {
                for form in [Form::ChunkLoop, Form::ChunkParallel] {
                    let plain = op.update == Update::Add;
                    let other = decay != Decay::PerToken || form == Form::ChunkParallel;
                    if !common::slow() && !plain && other {
                        continue;
                    }
                    let op = LinearAttention { decay: decay.clone(), form, ..op.clone() };
                    x.gates = slow_gates(&decay, tokens);
                    let got = execute(&gpu.ctx, &mut Rng(55), &op, &s, &x, None, true).unwrap();
                    let errors = slow_errors(&got, &want);
                    let what = format!("{} {tokens} {op:?}: {}", gpu.name, shown(&errors));
                    println!("{what}");
                    hold_slow(&what, &errors);
                    for h in 0..if got.key_sum.is_empty() { 0 } else { SLOW.len() } {
                        let of = |h: usize| {
                            rel_rms(&got.key_sum[h * 4..][..4], &want.key_sum[h * 4..][..4])
                        };
                        assert!(of(h) <= 2.0 * of(0) + FLOOR, "{what}: key sum {:.1e}", of(h));
                    }
                }
            }
        }
    }
    // one token in eleven forgets nearly all, or all: what follows keeps the digits of weak gates
    for gpu in &gpus("browser") {
        for strong in [-30.0, -90.0, f32::NEG_INFINITY] {
            let op = LinearAttention { decay: Decay::PerToken, form: Form::ChunkLoop, ..base() };
            let s = small(300);
            let mut x = Data::random(&mut Rng(56), &op, &s, true);
            for (i, g) in x.gates.iter_mut().enumerate() {
                *g = if i / 2 % 11 == 10 { strong } else { -0.01 * (i % 7) as f32 };
            }
            let got = execute(&gpu.ctx, &mut Rng(57), &op, &s, &x, None, true).unwrap();
            judge(&gpu.name, &op, &s, &x, None, &got);
        }
    }
}
