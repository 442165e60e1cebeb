//! Linear attention: recurrences with a state, and kernelised attention.

use super::rig::{Rig, Tensor};
use super::{Op, not_built};
use crate::conformance::case::{Case, Data};
use crate::conformance::run::{Outcome, Stop};
use crate::linear_attention::{
    Decay, FeatureMap, LinearAttention, LinearAttentionArgs, LinearAttentionShape, Normalize,
    Update, check_gates,
};
use crate::{DType, Layout, Result};

/// The operators of this family.
pub(super) const OPS: &[(&str, Op)] = &[
    ("lightning", lightning),
    ("retention", retention),
    ("gla", gla),
    ("simple_gla", simple_gla),
    ("linear_attn_causal", causal),
    ("linear_attn_elu", elu),
    ("linear_attn_noncausal", noncausal),
    ("delta_rule", delta_rule),
    ("gated_delta_rule", gated_delta_rule),
    ("gla_bwd", not_built),
];

/// Constant decays given as positive rates; heads-first.
fn lightning(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let ([_], rates) = case.input("in.slopes")?;
    let op =
        LinearAttention { decay: Decay::slopes(rates), scale: scale(case)?, ..Default::default() };
    run(rig, case, dtype, op, Axes { heads_first: true, ..Default::default() })
}

/// Constant decays by head; heads-first.
fn retention(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let ([_, heads, ..], _) = case.input::<4>("in.q")?;
    let op = LinearAttention {
        decay: Decay::retention(heads)?,
        scale: scale(case)?,
        ..Default::default()
    };
    run(rig, case, dtype, op, Axes { heads_first: true, ..Default::default() })
}

fn gla(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let op =
        LinearAttention { decay: Decay::PerChannel, scale: scale(case)?, ..Default::default() };
    run(rig, case, dtype, op, Axes { gates: Some("in.gk"), ..Default::default() })
}

fn simple_gla(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let op = LinearAttention { decay: Decay::PerToken, scale: scale(case)?, ..Default::default() };
    run(rig, case, dtype, op, Axes { gates: Some("in.g"), ..Default::default() })
}

fn causal(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let normalize = match case.param_bool("normalize")? {
        true => Normalize::Eps(case.param_f32("eps")?.unwrap_or(1e-10)),
        false => Normalize::None,
    };
    let op = LinearAttention { normalize, scale: scale(case)?, ..Default::default() };
    run(rig, case, dtype, op, Axes::default())
}

/// Both orders, with a feature map and a denominator, and lengths of keys.
fn elu(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let feature_map =
        match case.has_param("feature_map").then(|| case.param_str("feature_map")).transpose()? {
            None | Some("elu+1") => FeatureMap::EluPlusOne,
            Some("identity") => FeatureMap::Identity,
            Some("relu") => FeatureMap::Relu,
            Some("silu") => FeatureMap::Silu,
            Some(other) => return Err(Stop::Refused(format!("feature_map: {other} is not known"))),
        };
    let lengths = case.tensor("in.k_len").is_some();
    let op = LinearAttention {
        feature_map,
        normalize: Normalize::Eps(case.param_f32("eps")?.unwrap_or(1e-6)),
        causal: case.param_bool("causal")?,
        update: if lengths { Update::Weighted } else { Update::Add },
        ..Default::default()
    };
    run(rig, case, dtype, op, Axes::default())
}

fn noncausal(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let op = LinearAttention { causal: false, scale: scale(case)?, ..Default::default() };
    run(rig, case, dtype, op, Axes::default())
}

/// Heads-first.
fn delta_rule(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let op = LinearAttention { update: Update::Delta, scale: scale(case)?, ..Default::default() };
    run(rig, case, dtype, op, Axes { heads_first: true, beta: true, ..Default::default() })
}

fn gated_delta_rule(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let op = LinearAttention {
        update: Update::Delta,
        decay: Decay::PerToken,
        scale: scale(case)?,
        ..Default::default()
    };
    run(rig, case, dtype, op, Axes { gates: Some("in.g"), beta: true, ..Default::default() })
}

fn scale(case: &Case) -> Result<f32, Stop> {
    Ok(case.param_f32("scale")?.unwrap_or(1.0))
}

/// How a case lays its tensors out, and which it has.
#[derive(Clone, Copy, Default)]
struct Axes {
    /// `[B, H, T, ..]` instead of `[B, T, H, ..]`.
    heads_first: bool,
    gates: Option<&'static str>,
    beta: bool,
}

impl Axes {
    /// A case's layout of `shape`, seen heads-last.
    fn layout(self, shape: [u32; 4]) -> Layout<4> {
        let l = Layout::contiguous(shape);
        if self.heads_first { l.permuted([0, 2, 1, 3]) } else { l }
    }
}

fn run(rig: &Rig<'_>, case: &Case, dtype: DType, mut op: LinearAttention, axes: Axes) -> Outcome {
    op.dtype = dtype;
    // gates rounded to 16 bits are another problem than the case's
    op.gate_dtype = if case.inputs_f16_exact { dtype } else { DType::F32 };
    let rows = |name: &str| -> Result<(Tensor<4>, Layout<4>), Stop> {
        let (shape, data) = case.input::<4>(name)?;
        Ok((rig.upload(shape, data, dtype)?, axes.layout(shape)))
    };
    let (q, q_layout) = rows("in.q")?;
    let (k, k_layout) = rows("in.k")?;
    let (v, v_layout) = rows("in.v")?;
    let [batch, seq_q, heads_q, key_dim] = q_layout.shape;
    let [_, seq_k, heads_k, _] = k_layout.shape;
    let [_, _, heads_v, value_dim] = v_layout.shape;
    let heads = heads_q.max(heads_v);
    let shape = LinearAttentionShape {
        batch,
        seq_q,
        seq_k,
        heads,
        heads_q,
        heads_k,
        heads_v,
        key_dim,
        value_dim,
    };

    let gates = axes.gates.map(|name| {
        let (shape, data) = match op.decay {
            Decay::PerChannel => case.input::<4>(name)?,
            _ => {
                let ([b, t, h], data) = case.input::<3>(name)?;
                ([b, t, h, 1], data)
            }
        };
        check_gates(data)?;
        let layout = axes.layout(shape);
        Ok::<_, Stop>((rig.upload(shape, data, op.gate_dtype)?, layout))
    });
    let gates = gates.transpose()?;
    let beta = if axes.beta {
        let ([b, t, h], data) = case.input::<3>("in.beta")?;
        Some((rig.upload([b, t, h, 1], data, op.gate_dtype)?, axes.layout([b, t, h, 1])))
    } else if let Some(lengths) = case.tensor("in.k_len") {
        let weights = key_mask(&lengths.data, [batch, seq_k, heads])?;
        let shape = [batch, seq_k, heads, 1];
        Some((rig.upload(shape, &weights, op.gate_dtype)?, Layout::contiguous(shape)))
    } else {
        None
    };

    let normalized = op.normalize != Normalize::None;
    let plan = op.plan(rig, shape)?;
    let states = [batch, heads, plan.features(), value_dim];
    let sums = [batch, heads, plan.features()];
    let (has_state, has_sum) = (case.tensor("in.h0").is_some(), case.tensor("in.z0").is_some());
    let given = has_state || has_sum && normalized;
    let initial = match has_state {
        true => {
            let (shape, data) = case.input::<4>("in.h0")?;
            Some(rig.upload(shape, data, DType::F32)?)
        }
        false if given => Some(zeros(rig, states)?),
        false => None,
    };
    let initial_sum = match has_sum && normalized {
        true => {
            // `[B, 1, H, K]`
            let ([b, _, h, k], data) = case.input::<4>("in.z0")?;
            Some(rig.upload([b, h, k], data, DType::F32)?)
        }
        false if given && normalized => Some(zeros(rig, sums)?),
        false => None,
    };

    let o_shape = match axes.heads_first {
        true => [batch, heads, seq_q, value_dim],
        false => [batch, seq_q, heads, value_dim],
    };
    let o = rig.poisoned(o_shape, dtype)?;
    let last = rig.poisoned(states, DType::F32)?;
    let last_sum = rig.poisoned(sums, DType::F32)?;
    let scratch = rig.scratch(plan.scratch_bytes())?;
    let args = LinearAttentionArgs {
        gates: gates.as_ref().map(|(t, l)| t.view_as(*l)).transpose()?,
        beta: beta.as_ref().map(|(t, l)| t.view_as(*l)).transpose()?,
        initial_state: initial.as_ref().map(Tensor::view),
        final_state: Some(last.view()),
        initial_key_sum: initial_sum.as_ref().map(Tensor::view),
        final_key_sum: normalized.then(|| last_sum.view()),
        scratch: Some(&scratch),
        ..LinearAttentionArgs::new(
            q.view_as(q_layout)?,
            k.view_as(k_layout)?,
            v.view_as(v_layout)?,
            o.view_as(axes.layout(o_shape))?,
        )
    };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;

    let mut outputs = vec![rig.output("out.o", &o)?, rig.output("out.ht", &last)?];
    if normalized {
        let mut sum = rig.output("out.zt", &last_sum)?;
        // the case's axes, which may hold a one
        if let Some(want) = case.tensor("out.zt").filter(|want| want.shape.len() == 4) {
            sum.shape.clone_from(&want.shape);
        }
        outputs.push(sum);
    }
    Ok(outputs)
}

fn zeros<const N: usize>(rig: &Rig<'_>, shape: [u32; N]) -> Result<Tensor<N>> {
    let elements: usize = shape.iter().map(|&n| n as usize).product();
    rig.upload(shape, &vec![0.0; elements], DType::F32)
}

/// Weights `[B, S, H]`: 1 for the first keys of each sequence, 0 for the rest.
fn key_mask(lengths: &Data, [batch, seq, heads]: [u32; 3]) -> Result<Vec<f32>, Stop> {
    let Data::I32(lengths) = lengths else {
        return Err(Stop::Failed("in.k_len: expected elements of type I32".into()));
    };
    if lengths.len() != batch as usize {
        return Err(Stop::Refused(format!(
            "in.k_len: expected {batch} lengths, got {}",
            lengths.len()
        )));
    }
    let mut weights = Vec::new();
    for &length in lengths {
        let length = u32::try_from(length).ok().filter(|n| *n <= seq).ok_or_else(|| {
            Stop::Refused(format!("in.k_len: expected lengths from 0 to {seq}, got {length}"))
        })?;
        weights.extend((0..seq * heads).map(|i| if i / heads < length { 1.0 } else { 0.0 }));
    }
    Ok(weights)
}
