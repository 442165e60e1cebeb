//! Softmax attention and what is built on it.

use super::rig::{Rig, Tensor};
use super::{Op, not_built};
use crate::attention::{
    Attention, AttentionArgs, AttentionPlan, AttentionShape, BiasPositions, CausalAlignment, Mask,
    Merge, MergeArgs, MergeShape, TripleArgs, TripleAttention, TripleShape, Window,
};
use crate::conformance::case::{Case, Data};
use crate::conformance::run::{Outcome, Output, Stop};
use crate::{DType, Layout, Result, TensorView};

/// The operators of this family.
pub(super) const OPS: &[(&str, Op)] = &[
    ("sdpa", sdpa),
    ("sdpa_varlen", varlen),
    ("mla_decode", mla_decode),
    ("merge_partials", merge),
    ("plga", plga),
    ("moh", moh),
    ("triple_attention", triple),
    ("sdpa_bwd", not_built),
    ("mla_absorb", not_built),
    ("plga_full", not_built),
];

/// A tensor of four axes with its middle two exchanged: the cases are heads-first.
fn heads_last(tensor: &Tensor<4>) -> Result<TensorView<'_, 4>> {
    tensor.view_as(Layout::contiguous(tensor.shape()).permuted([0, 2, 1, 3]))
}

/// Buffer for a plan's scratch, if it needs one.
fn scratch(rig: &Rig<'_>, plan: &AttentionPlan) -> Result<Option<wgpu::Buffer>> {
    match plan.scratch_bytes() {
        0 => Ok(None),
        bytes => rig.scratch(bytes).map(Some),
    }
}

/// The causal mask of the cases.
fn mask(case: &Case) -> Result<Mask, Stop> {
    Ok(match case.param_bool("causal")? {
        true => Mask::Causal(CausalAlignment::BottomRight),
        false => Mask::None,
    })
}

/// The window, `[left, right]`, each null for unbounded.
fn window(case: &Case) -> Result<Window, Stop> {
    if !case.has_param("window") {
        return Ok(Window::default());
    }
    let ends = case.param_as("window", "two extents of at least 0, or null", |v| {
        let end = |v: &serde_json::Value| match v.is_null() {
            true => Some(None),
            false => super::whole(v).map(Some),
        };
        match v.as_array()?.as_slice() {
            [left, right] => Some([end(left)?, end(right)?]),
            _ => None,
        }
    })?;
    let [left, right] = ends;
    Ok(Window { left, right })
}

/// What the bias and the mask of packed sequences count; there is no default.
fn bias_positions(case: &Case) -> Result<BiasPositions, Stop> {
    case.param_as("bias_positions", "pack or sequence", |v| match v.as_str()? {
        "pack" => Some(BiasPositions::Pack),
        "sequence" => Some(BiasPositions::Sequence),
        _ => None,
    })
}

/// Shape and bytes of a mask.
type ByteMask = ([u32; 4], Vec<u8>);

/// The boolean mask of a case with its key mask, as far as there are any: one for the kernel.
fn visible(case: &Case, s: &AttentionShape) -> Result<Option<ByteMask>, Stop> {
    let bytes = |name: &str| match case.tensor(name) {
        None => Ok(None),
        Some(tensor) => match &tensor.data {
            Data::U8(data) => Ok(Some((tensor.shape.clone(), data.clone()))),
            _ => Err(Stop::Failed(format!("{name}: expected elements of type U8"))),
        },
    };
    let four = |name: &str, shape: &[u32]| {
        shape
            .try_into()
            .map_err(|_| Stop::Refused(format!("{name}: expected 4 axes, got shape {shape:?}")))
    };
    let key_mask = bytes("in.key_mask")?;
    if let Some((shape, _)) = &key_mask
        && shape[..] != [s.batch, s.seq_k]
    {
        let expected = [s.batch, s.seq_k];
        return Err(Stop::Refused(format!("in.key_mask: expected {expected:?}, got {shape:?}")));
    }
    Ok(match (bytes("in.mask")?, key_mask) {
        (None, None) => None,
        (Some((shape, data)), None) => Some((four("in.mask", &shape)?, data)),
        (None, Some((_, data))) => Some(([s.batch, 1, 1, s.seq_k], data)),
        (Some((shape, mut data)), Some((_, keys))) => {
            let shape: [u32; 4] = four("in.mask", &shape)?;
            if shape[0] != s.batch || shape[3] != s.seq_k {
                return Err(Stop::Refused(format!("in.mask: got shape {shape:?}")));
            }
            let per_batch = (data.len() / s.batch.max(1) as usize).max(1);
            for (i, x) in data.iter_mut().enumerate() {
                *x &= keys[i / per_batch * s.seq_k as usize + i % s.seq_k as usize];
            }
            Some((shape, data))
        }
    })
}

fn upload_mask(rig: &Rig<'_>, (shape, data): &ByteMask) -> Result<Tensor<4>> {
    let data: Vec<f32> = data.iter().copied().map(f32::from).collect();
    rig.upload(*shape, &data, DType::U8)
}

fn sdpa(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let ([batch, heads, seq_q, head_dim], q) = case.input("in.q")?;
    let (k_shape @ [_, heads_kv, seq_k, _], k) = case.input("in.k")?;
    let (v_shape @ [_, _, _, head_dim_v], v) = case.input("in.v")?;
    let shape = AttentionShape { batch, seq_q, seq_k, heads, heads_kv, head_dim, head_dim_v };
    let visible = visible(case, &shape)?;
    let options = Attention {
        mask: mask(case)?,
        window: window(case)?,
        scale: case.param_f32("scale")?,
        // the cases say 0 for none
        softcap: case.param_f32("softcap")?.filter(|cap| *cap != 0.0),
        alibi: case.tensor("in.slopes").is_some(),
        bias: case.tensor("in.bias").is_some(),
        visible: visible.is_some(),
        dtype,
        ..Default::default()
    };
    let plan = options.plan(rig, shape)?;

    let q = rig.upload([batch, heads, seq_q, head_dim], q, dtype)?;
    let k = rig.upload(k_shape, k, dtype)?;
    let v = rig.upload(v_shape, v, dtype)?;
    let slopes = match options.alibi {
        true => {
            let (shape, data) = case.input::<1>("in.slopes")?;
            Some(rig.upload(shape, data, DType::F32)?)
        }
        false => None,
    };
    let bias = match options.bias {
        true => {
            let (shape, data) = case.input::<4>("in.bias")?;
            Some(rig.upload(shape, data, DType::F32)?)
        }
        false => None,
    };
    let visible = visible.map(|mask| upload_mask(rig, &mask)).transpose()?;
    let o = rig.poisoned([batch, heads, seq_q, head_dim_v], dtype)?;
    let lse = rig.poisoned([batch, heads, seq_q], DType::F32)?;
    let scratch = scratch(rig, &plan)?;
    let args = AttentionArgs {
        lse: Some(lse.view()),
        slopes: slopes.as_ref().map(Tensor::view),
        bias: bias.as_ref().map(Tensor::view),
        visible: visible.as_ref().map(Tensor::view),
        scratch: scratch.as_ref(),
        ..AttentionArgs::new(heads_last(&q)?, heads_last(&k)?, heads_last(&v)?, heads_last(&o)?)
    };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    Ok(vec![rig.output("out.o", &o)?, rig.output("out.lse", &lse)?])
}

/// Packed sequences: `[tokens, heads, head_dim]`.
fn varlen(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let ([seq_q, heads, head_dim], q) = case.input("in.q")?;
    let (k_shape @ [seq_k, heads_kv, _], k) = case.input("in.k")?;
    let (v_shape @ [_, _, head_dim_v], v) = case.input("in.v")?;
    let bounds = |name: &str| match case.tensor(name).map(|t| &t.data) {
        Some(Data::I32(data)) => data
            .iter()
            .map(|&x| u32::try_from(x))
            .collect::<Result<Vec<u32>, _>>()
            .map_err(|_| Stop::Refused(format!("{name}: a bound below 0"))),
        _ => Err(Stop::Failed(format!("the case lacks {name} of type I32"))),
    };
    let (cu_q, cu_k) = (bounds("in.cu_q")?, bounds("in.cu_k")?);
    let shape = AttentionShape { batch: 1, seq_q, seq_k, heads, heads_kv, head_dim, head_dim_v };
    let visible = visible(case, &shape)?;
    let bias = case.tensor("in.bias").map(|_| case.input::<4>("in.bias")).transpose()?;
    let slopes = case.tensor("in.slopes").map(|_| case.input::<1>("in.slopes")).transpose()?;
    let options = Attention {
        mask: mask(case)?,
        window: window(case)?,
        scale: case.param_f32("scale")?,
        // the cases say 0 for none
        softcap: case.param_f32("softcap")?.filter(|cap| *cap != 0.0),
        alibi: slopes.is_some(),
        bias: bias.is_some(),
        visible: visible.is_some(),
        packed: true,
        bias_positions: match bias.is_some() || visible.is_some() {
            true => bias_positions(case)?,
            false => BiasPositions::default(),
        },
        dtype,
        ..Default::default()
    };
    let plan = options.plan(rig, shape)?;
    let one = |[t, h, d]: [u32; 3]| [1, t, h, d];
    let q = rig.upload([1, seq_q, heads, head_dim], q, dtype)?;
    let k = rig.upload(one(k_shape), k, dtype)?;
    let v = rig.upload(one(v_shape), v, dtype)?;
    let slopes = slopes.map(|(shape, x)| rig.upload(shape, x, DType::F32)).transpose()?;
    let bias = bias.map(|(shape, x)| rig.upload(shape, x, DType::F32)).transpose()?;
    let visible = visible.map(|mask| upload_mask(rig, &mask)).transpose()?;
    let o = rig.poisoned([1, seq_q, heads, head_dim_v], dtype)?;
    let lse = rig.poisoned([1, heads, seq_q], DType::F32)?;
    let scratch = scratch(rig, &plan)?;
    let args = AttentionArgs {
        lse: Some(lse.view()),
        slopes: slopes.as_ref().map(Tensor::view),
        bias: bias.as_ref().map(Tensor::view),
        visible: visible.as_ref().map(Tensor::view),
        cu_seqlens_q: Some(&cu_q),
        cu_seqlens_k: Some(&cu_k),
        scratch: scratch.as_ref(),
        ..AttentionArgs::new(q.view(), k.view(), v.view(), o.view())
    };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    // the cases have no axis for the batch
    let unbatched = |output: Output| Output { shape: output.shape[1..].to_vec(), ..output };
    Ok(vec![unbatched(rig.output("out.o", &o)?), unbatched(rig.output("out.lse", &lse)?)])
}

/// Latent attention: one key head, whose first channels are the values.
fn mla_decode(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let ([batch, heads, seq_q, head_dim], q) = case.input("in.q")?;
    let ([kv_batch, seq_k, width], kv) = case.input("in.kv")?;
    let head_dim_v = case.param_u32("d_latent")?;
    if head_dim_v > width {
        return Err(Stop::Refused(format!("d_latent: at most {width}, got {head_dim_v}")));
    }
    let options = Attention {
        mask: mask(case)?,
        scale: case.param_f32("scale")?,
        dtype,
        ..Default::default()
    };
    let shape = AttentionShape { batch, seq_q, seq_k, heads, heads_kv: 1, head_dim, head_dim_v };
    let plan = options.plan(rig, shape)?;
    let q = rig.upload([batch, heads, seq_q, head_dim], q, dtype)?;
    let kv = rig.upload([kv_batch, seq_k, 1, width], kv, dtype)?;
    let o = rig.poisoned([batch, heads, seq_q, head_dim_v], dtype)?;
    let lse = rig.poisoned([batch, heads, seq_q], DType::F32)?;
    let scratch = scratch(rig, &plan)?;
    let values =
        Layout { shape: [kv_batch, seq_k, 1, head_dim_v], ..Layout::contiguous(kv.shape()) };
    let args = AttentionArgs {
        lse: Some(lse.view()),
        scratch: scratch.as_ref(),
        ..AttentionArgs::new(heads_last(&q)?, kv.view(), kv.view_as(values)?, heads_last(&o)?)
    };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    Ok(vec![rig.output("out.o", &o)?, rig.output("out.lse", &lse)?])
}

fn merge(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let (o_shape @ [parts, batch, heads, seq, head_dim_v], o_parts) = case.input("in.o_parts")?;
    let (lse_shape, lse_parts) = case.input::<4>("in.lse_parts")?;
    let op = Merge { dtype, parts_dtype: dtype };
    let plan = op.plan(rig, MergeShape { parts, batch, seq, heads, head_dim_v })?;
    let o_parts = rig.upload(o_shape, o_parts, dtype)?;
    let lse_parts = rig.upload(lse_shape, lse_parts, DType::F32)?;
    let o = rig.poisoned([batch, heads, seq, head_dim_v], dtype)?;
    let lse = rig.poisoned([batch, heads, seq], DType::F32)?;
    let args = MergeArgs {
        o_parts: o_parts.view_as(Layout::contiguous(o_shape).permuted([0, 1, 3, 2, 4]))?,
        lse_parts: lse_parts.view(),
        o: heads_last(&o)?,
        lse: Some(lse.view()),
    };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    Ok(vec![rig.output("out.o", &o)?, rig.output("out.lse", &lse)?])
}

/// A plain call on heads-first inputs `in.q`, `in.k`, `in.v`; returns the output heads-first.
fn plain(
    rig: &Rig<'_>,
    case: &Case,
    options: Attention,
    metric: Option<&Tensor<3>>,
) -> Result<Tensor<4>, Stop> {
    let ([batch, heads, seq_q, head_dim], q) = case.input("in.q")?;
    let (k_shape @ [_, heads_kv, seq_k, _], k) = case.input("in.k")?;
    let (v_shape @ [_, _, _, head_dim_v], v) = case.input("in.v")?;
    let shape = AttentionShape { batch, seq_q, seq_k, heads, heads_kv, head_dim, head_dim_v };
    let plan = options.plan(rig, shape)?;
    let dtype = options.dtype;
    let q = rig.upload([batch, heads, seq_q, head_dim], q, dtype)?;
    let k = rig.upload(k_shape, k, dtype)?;
    let v = rig.upload(v_shape, v, dtype)?;
    let o = rig.poisoned([batch, heads, seq_q, head_dim_v], dtype)?;
    let scratch = scratch(rig, &plan)?;
    let args = AttentionArgs {
        metric: metric.map(Tensor::view),
        scratch: scratch.as_ref(),
        ..AttentionArgs::new(heads_last(&q)?, heads_last(&k)?, heads_last(&v)?, heads_last(&o)?)
    };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    Ok(o)
}

/// Power-law graph attention with its matrices given.
fn plga(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let (shape, g) = case.input::<3>("in.G")?;
    let g = rig.upload(shape, g, DType::F32)?;
    let options = Attention {
        mask: mask(case)?,
        scale: case.param_f32("scale")?,
        metric: true,
        dtype,
        ..Default::default()
    };
    let o = plain(rig, case, options, Some(&g))?;
    Ok(vec![rig.output("out.o", &o)?])
}

/// Mixture of heads: attention, whose heads are weighted token by token. The gates are of the model's
/// router and are applied here.
fn moh(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let options = Attention { scale: case.param_f32("scale")?, dtype, ..Default::default() };
    let o = plain(rig, case, options, None)?;
    let [batch, heads, seq, dim] = o.shape();
    let o = rig.output("out.o", &o)?;
    let (shared, top) = (case.param_u32("shared")? as usize, case.param_u32("topk")? as usize);
    let (heads, routed) = (heads as usize, (heads as usize).saturating_sub(shared));
    if shared > heads || top == 0 || top > routed {
        return Err(Stop::Refused(format!(
            "topk: expected 1 to the {routed} routed heads, got {top}"
        )));
    }
    let tokens = batch as usize * seq as usize;
    let logits = |name: &str, width: usize| -> Result<Vec<f32>, Stop> {
        let (shape, data) = case.input::<3>(name)?;
        match shape == [batch, seq, u32::try_from(width).unwrap_or(0)] {
            true => Ok(data.to_vec()),
            false => Err(Stop::Refused(format!(
                "{name}: expected [{batch}, {seq}, {width}], got {shape:?}"
            ))),
        }
    };
    let routed_logits = logits("in.routed_logits", routed)?;
    let (shared_logits, mix) = match shared {
        0 => (Vec::new(), Vec::new()),
        n => (logits("in.shared_logits", n)?, logits("in.mix_logits", 2)?),
    };
    let mut gates = vec![0f32; tokens * heads];
    for (token, gates) in gates.chunks_mut(heads.max(1)).enumerate() {
        let (always, chosen) = gates.split_at_mut(shared);
        let mix = match shared {
            0 => [1.0, 1.0],
            _ => {
                let weights = softmax(&mix[token * 2..][..2]);
                [2.0 * weights[0], 2.0 * weights[1]]
            }
        };
        for (gate, weight) in
            always.iter_mut().zip(softmax(&shared_logits[token * shared..][..shared]))
        {
            *gate = narrow(weight * shared as f64 * mix[0]);
        }
        let weights = softmax(&routed_logits[token * routed..][..routed]);
        let mut order: Vec<usize> = (0..routed).collect();
        order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
        let kept: f64 = order[..top].iter().map(|&i| weights[i]).sum();
        for &i in &order[..top] {
            chosen[i] = narrow(weights[i] / kept * top as f64 * mix[1]);
        }
    }
    let dim = dim as usize;
    let mut out = vec![0f32; tokens * heads * dim];
    for (at, x) in out.iter_mut().enumerate() {
        let (token, head, c) = (at / (heads * dim), at / dim % heads, at % dim);
        let (b, t) = (token / seq as usize, token % seq as usize);
        *x =
            gates[token * heads + head] * o.data[((b * heads + head) * seq as usize + t) * dim + c];
    }
    let wide = |width: usize| u32::try_from(width).unwrap_or(u32::MAX);
    Ok(vec![
        Output { name: "out.o".into(), shape: vec![batch, seq, wide(heads * dim)], data: out },
        Output { name: "out.gates".into(), shape: vec![batch, seq, wide(heads)], data: gates },
    ])
}

#[expect(clippy::cast_possible_truncation, reason = "outputs are f32")]
fn narrow(x: f64) -> f32 {
    x as f32
}

fn softmax(x: &[f32]) -> Vec<f64> {
    let top = x.iter().copied().fold(f32::MIN, f32::max);
    let weights: Vec<f64> = x.iter().map(|&x| f64::from(x - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

fn triple(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    if case.has_param("mode") && case.param_str("mode")? != "simplicial" {
        let mode = case.param_str("mode")?;
        return Err(Stop::Unsupported(format!("triple_attention in mode {mode}")));
    }
    let (q_shape @ [batch, heads, seq_q, head_dim], q) = case.input("in.q")?;
    let (k1_shape @ [_, heads_kv, seq_1, _], k1) = case.input("in.k1")?;
    let (k2_shape @ [_, _, seq_2, _], k2) = case.input("in.k2")?;
    let (v1_shape @ [_, _, _, head_dim_v], v1) = case.input("in.v1")?;
    let (v2_shape, v2) = case.input::<4>("in.v2")?;
    let op = TripleAttention {
        causal: case.param_bool("causal")?,
        scale: case.param_f32("scale")?,
        dtype,
    };
    let shape = TripleShape { batch, seq_q, seq_1, seq_2, heads, heads_kv, head_dim, head_dim_v };
    let plan = op.plan(rig, shape)?;
    let q = rig.upload(q_shape, q, dtype)?;
    let k1 = rig.upload(k1_shape, k1, dtype)?;
    let k2 = rig.upload(k2_shape, k2, dtype)?;
    let v1 = rig.upload(v1_shape, v1, dtype)?;
    let v2 = rig.upload(v2_shape, v2, dtype)?;
    let o = rig.poisoned([batch, heads, seq_q, head_dim_v], dtype)?;
    let lse = rig.poisoned([batch, heads, seq_q], DType::F32)?;
    let args = TripleArgs {
        q: heads_last(&q)?,
        k1: heads_last(&k1)?,
        k2: heads_last(&k2)?,
        v1: heads_last(&v1)?,
        v2: heads_last(&v2)?,
        o: heads_last(&o)?,
        lse: Some(lse.view()),
    };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    Ok(vec![rig.output("out.o", &o)?, rig.output("out.lse", &lse)?])
}
