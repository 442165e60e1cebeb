//! Linear attention as defined, token by token.

use crate::linear_attention::{
    Decay, FeatureMap, LinearAttention, LinearAttentionShape, Normalize, Update,
};

/// Dense inputs in row-major order, in the layouts of [`crate::linear_attention`].
#[derive(Clone, Copy, Debug, Default)]
pub struct LinearAttentionInputs<'a> {
    /// `[B, Tq, Hq, D]`.
    pub q: &'a [f64],
    /// `[B, Tk, Hk, D]`.
    pub k: &'a [f64],
    /// `[B, Tk, Hv, V]`.
    pub v: &'a [f64],
    /// Log gates: `[B, Tk, H]` or `[B, Tk, H, K]`; empty for the other decays.
    pub gates: &'a [f64],
    /// Weights or betas `[B, Tk, H]`; empty for [`Update::Add`].
    pub beta: &'a [f64],
    /// State before the first token `[B, H, K, V]`; empty for zero.
    pub state: &'a [f64],
    /// Key sum before the first token `[B, H, K]`; empty for zero.
    pub key_sum: &'a [f64],
}

/// What [`linear_attention`] computes.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearAttentionOutputs {
    /// `[B, Tq, H, V]`.
    pub o: Vec<f64>,
    /// State after the last token `[B, H, K, V]`.
    pub state: Vec<f64>,
    /// Key sum after the last token `[B, H, K]`; empty without a denominator.
    pub key_sum: Vec<f64>,
}

/// The recurrence of [`crate::linear_attention`] in f64, one token after the other.
///
/// # Panics
/// If a slice is not as long as its shape says.
pub fn linear_attention(
    op: &LinearAttention,
    s: &LinearAttentionShape,
    x: &LinearAttentionInputs<'_>,
) -> LinearAttentionOutputs {
    let [batch, seq_q, seq_k, heads, value_dim] =
        [s.batch, s.seq_q, s.seq_k, s.heads, s.value_dim].map(|n| n as usize);
    let scale = f64::from(op.scale);
    let state_rows = usize::try_from(op.feature_map.features(s.key_dim)).unwrap_or(usize::MAX);
    let mut out = LinearAttentionOutputs {
        o: vec![0.0; batch * seq_q * heads * value_dim],
        state: vec![0.0; batch * heads * state_rows * value_dim],
        key_sum: Vec::new(),
    };
    let normalized = op.normalize != Normalize::None;
    if normalized {
        out.key_sum = vec![0.0; batch * heads * state_rows];
    }
    for b in 0..batch {
        for h in 0..heads {
            let state_at = (b * heads + h) * state_rows;
            let mut state = vec![0.0; state_rows * value_dim];
            if !x.state.is_empty() {
                let from = state_at * value_dim;
                state.copy_from_slice(&x.state[from..from + state_rows * value_dim]);
            }
            let mut key_sum = vec![0.0; state_rows];
            if normalized && !x.key_sum.is_empty() {
                key_sum.copy_from_slice(&x.key_sum[state_at..state_at + state_rows]);
            }
            let read = |state: &[f64], key_sum: &[f64], t: usize, o: &mut [f64]| {
                let q = features(
                    op.feature_map,
                    scale,
                    row(x.q, [b, t, h], seq_q, heads, s.heads_q, s.key_dim),
                );
                let factor = if op.feature_map == FeatureMap::Taylor2 { 1.0 } else { scale };
                let mut den = 1.0;
                if normalized {
                    let qz: f64 = q.iter().zip(key_sum).map(|(q, z)| q * z).sum();
                    den = match op.normalize {
                        Normalize::None => 1.0,
                        Normalize::Eps(eps) => factor * qz + f64::from(eps),
                        Normalize::Clamp(min) => qz.max(f64::from(min)),
                    };
                }
                let at = ((b * seq_q + t) * heads + h) * value_dim;
                for (j, o) in o[at..at + value_dim].iter_mut().enumerate() {
                    let qs: f64 =
                        q.iter().enumerate().map(|(c, q)| q * state[c * value_dim + j]).sum();
                    *o = factor * qs / den;
                }
            };
            for t in 0..seq_k {
                let k = features(
                    op.feature_map,
                    scale,
                    row(x.k, [b, t, h], seq_k, heads, s.heads_k, s.key_dim),
                );
                let v = row(x.v, [b, t, h], seq_k, heads, s.heads_v, s.value_dim);
                let token = (b * seq_k + t) * heads + h;
                for c in 0..state_rows {
                    let gate = match &op.decay {
                        Decay::None => 0.0,
                        Decay::PerHead(g) => f64::from(g[h]),
                        Decay::PerToken => x.gates[token],
                        Decay::PerChannel => x.gates[token * state_rows + c],
                    };
                    let decay = gate.exp();
                    key_sum[c] *= decay;
                    state[c * value_dim..(c + 1) * value_dim].iter_mut().for_each(|s| *s *= decay);
                }
                let beta = if op.update == Update::Add { 1.0 } else { x.beta[token] };
                // a weight of zero hides key and value, whatever they hold
                if beta != 0.0 {
                    for j in 0..value_dim {
                        let mut u = v[j];
                        if op.update == Update::Delta {
                            let held = |c: usize| k[c] * state[c * value_dim + j];
                            u -= (0..state_rows).map(held).sum::<f64>();
                        }
                        for c in 0..state_rows {
                            state[c * value_dim + j] += beta * k[c] * u;
                        }
                    }
                    for c in 0..state_rows {
                        key_sum[c] += beta * k[c];
                    }
                }
                if op.causal {
                    read(&state, &key_sum, t, &mut out.o);
                }
            }
            if !op.causal {
                for t in 0..seq_q {
                    read(&state, &key_sum, t, &mut out.o);
                }
            }
            let to = state_at * value_dim;
            out.state[to..to + state_rows * value_dim].copy_from_slice(&state);
            if normalized {
                out.key_sum[state_at..state_at + state_rows].copy_from_slice(&key_sum);
            }
        }
    }
    out
}

/// Channel attention as defined ([`crate::linear_attention::ChannelAttention`]), for one head of
/// one sequence: `q`, `k`, `v` and the result are `[tokens, channels]`.
///
/// # Panics
/// If a slice is not as long as its shape says.
pub fn channel_attention(
    [tokens, channels]: [usize; 2],
    scale: f64,
    q: &[f64],
    k: &[f64],
    v: &[f64],
) -> Vec<f64> {
    let mut o = vec![0.0; tokens * channels];
    for i in 0..channels {
        let score = |j: usize| -> f64 {
            (0..tokens).map(|n| scale * k[n * channels + i] * v[n * channels + j]).sum()
        };
        let scores: Vec<f64> = (0..channels).map(score).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        for n in 0..tokens {
            let mixed: f64 = (0..channels).map(|j| weights[j] * q[n * channels + j]).sum();
            o[n * channels + i] = mixed / total;
        }
    }
    o
}

/// Row of head `h` of `heads` at token `t`, in a tensor `[B, seq, own_heads, dim]`.
fn row(
    x: &[f64],
    [b, t, h]: [usize; 3],
    seq: usize,
    heads: usize,
    own_heads: u32,
    dim: u32,
) -> &[f64] {
    let (own, dim) = (own_heads as usize, dim as usize);
    let at = ((b * seq + t) * own + h / (heads / own)) * dim;
    &x[at..at + dim]
}

fn features(map: FeatureMap, scale: f64, x: &[f64]) -> Vec<f64> {
    match map {
        FeatureMap::Identity => x.to_vec(),
        FeatureMap::EluPlusOne => {
            x.iter().map(|&x| if x > 0.0 { x + 1.0 } else { x.exp() }).collect()
        }
        FeatureMap::Relu => x.iter().map(|x| x.max(0.0)).collect(),
        FeatureMap::Silu => x.iter().map(|x| x / (1.0 + (-x).exp())).collect(),
        FeatureMap::SquaredRelu => x.iter().map(|x| x.max(0.0).powi(2)).collect(),
        FeatureMap::Taylor2 => {
            let mut f = vec![1.0];
            f.extend(x.iter().map(|x| scale.sqrt() * x));
            for i in 0..x.len() {
                for j in i..x.len() {
                    let half = if i == j { 0.5f64.sqrt() } else { 1.0 };
                    f.push(scale * x[i] * x[j] * half);
                }
            }
            f
        }
    }
}
