//! Linear attention with a recurrent state: lightning, retention, simple GLA, GLA, normalised
//! linear attention, and the (gated) delta rule.
//!
//! # The operator
//!
//! Per batch entry and head, with keys of `K` channels, values of `V` channels and a state `S` of
//! `K x V` numbers in f32:
//!
//! ```text
//! S' = diag(exp(g_t)) S_{t-1}                              decay first,
//! S_t = S' + w_t k_t v_t^T                                 then add            (Update::Add, Weighted)
//! S_t = S' + beta_t k_t (v_t - S'^T k_t)^T                 or correct          (Update::Delta)
//! o_t = scale * S_t^T q_t                                  then read: token t sees itself
//! ```
//!
//! `q`, `k` stand for the rows *after* the feature map. Gates `g` are natural logarithms, at most
//! zero; minus infinity forgets the past exactly, if it is finite. Normalised variants also carry
//! `z_t`, the decayed sum of `w_t k_t`, and divide by it: see [`Normalize`].
//!
//! A weight or beta `w_t = 0` hides the key and the value of its token, whatever they hold, NaN and
//! infinity included; the token's gate still counts, and its query reads as any other. Tokens after
//! `t` have no effect on `o_t`, whatever they hold, nor have other sequences.
//!
//! # Accuracy of decays
//!
//! Slow decays cost no digits: within a call, gates are summed and become a factor when they have
//! summed up to -0.5; until then keys and queries carry them. So the error over a million tokens is
//! that of the same sum without decay, or less. A decay below `e^-87`, of one gate or of all gates
//! between two tokens, may count as zero, since f32 has no such factors. From call to call the state
//! is kept in f32: decoding with a call for each token (up to 8 tokens in a call, or
//! [`Form::Recurrent`]) adds `k v^T` and what fades together and rounds once for each token, as the sum without
//! decay does. Only where nothing is added (keys of zero), or always whole multiples of the state's last
//! place, is that rounding not random, and there a state that fades by less than half of
//! its last place in a token, `|g| < 6e-8`, may stand still or fade too fast. Longer calls do not have this limit.
//!
//! Without a decay the operator also exists without order ([`LinearAttention::causal`] `false`):
//! every query reads the sum over all keys, and queries and keys may differ in number.
//!
//! # Layout
//!
//! `q`, `o` are `[B, T, H, _]` with the heads last; `k`, `v` `[B, S, H, _]`; gates `[B, S, H]` or
//! `[B, S, H, K]`; weights and betas `[B, S, H]`; states `[B, H, K, V]` and key sums `[B, H, K]`
//! in f32. Views carry strides, so `[B, H, T, _]` data needs no copy.
//!
//! # Sources
//!
//! Recurrence and chunk form: Yang et al. 2023 (GLA, arXiv:2312.06635); Qin et al. 2024 (lightning
//! attention, arXiv:2405.17381 and arXiv:2401.04658); Sun et al. 2023 (retention,
//! arXiv:2307.08621); Yang et al. 2024 (delta rule, arXiv:2406.06484; gated, arXiv:2412.06464).
//! The conventions are those of `fla` (flash-linear-attention).

mod channel;
mod encode;
mod plan;
mod relative;
mod schedule;

pub use channel::{
    ChannelAttention, ChannelAttentionArgs, ChannelAttentionPlan, ChannelAttentionShape,
};
pub use encode::{LinearAttentionArgs, LinearAttentionPlan, StateArgs, StatePlan};
pub use plan::MAX_PACKED;
pub use relative::{
    RelativeAttention, RelativeAttentionArgs, RelativeAttentionPlan, RelativeAttentionShape,
    RelativeFeatures, RelativeMethod,
};

use crate::{DType, Error, Result};

pub(crate) const OP: &str = "linear_attention";

/// Largest number of key features or value channels of one head.
pub const MAX_DIM: u32 = 256;

/// Sizes of a linear attention, no data.
///
/// `q` and `o` have `heads` heads; `k`, `v` (and `q`) may have fewer, each a divisor of `heads`:
/// head `h` reads head `h / (heads / heads_k)` of `k`, and likewise of `q` and `v`. Gates,
/// weights and states have `heads` heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinearAttentionShape {
    /// Sequences. For packed sequences: how many of them there are.
    pub batch: u32,
    /// Queries of each sequence; for packed sequences, of all of them together.
    pub seq_q: u32,
    /// Keys of each sequence; equal to `seq_q` unless `causal` is off.
    pub seq_k: u32,
    /// Heads of the output, the gates and the state.
    pub heads: u32,
    /// Heads of `q`.
    pub heads_q: u32,
    /// Heads of `k`.
    pub heads_k: u32,
    /// Heads of `v`.
    pub heads_v: u32,
    /// Channels of `q` and `k` in memory, before the feature map.
    pub key_dim: u32,
    /// Channels of `v` and `o`.
    pub value_dim: u32,
}

impl LinearAttentionShape {
    /// Equal numbers of queries and keys, every tensor with its own head.
    pub const fn new(batch: u32, seq: u32, heads: u32, key_dim: u32, value_dim: u32) -> Self {
        Self {
            batch,
            seq_q: seq,
            seq_k: seq,
            heads,
            heads_q: heads,
            heads_k: heads,
            heads_v: heads,
            key_dim,
            value_dim,
        }
    }
}

/// How the state fades from one token to the next. All gates are natural logarithms, `<= 0`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Decay {
    /// Nothing is forgotten.
    #[default]
    None,
    /// One constant log decay for each head: lightning attention, retention.
    PerHead(Vec<f32>),
    /// One log gate for each token and head, `[B, S, H]`: simple GLA, Mamba-2, gated delta rule.
    PerToken,
    /// One log gate for each token, head and key channel, `[B, S, H, K]`: GLA, Kimi delta
    /// attention. With a feature map, `K` counts features.
    PerChannel,
}

impl Decay {
    /// Lightning attention as in the TransNormerLLM paper (arXiv:2405.17381, eq. 10) and in
    /// `fla`: head `h` of layer `l` decays by `-(8 h / heads) (1 - l / layers)` per token.
    ///
    /// Head 0 never forgets. Fails unless `layer < layers` and `heads` is 1 to 65,536.
    pub fn lightning(layer: u32, layers: u32, heads: u32) -> Result<Self> {
        check_layer(layer, layers, heads)?;
        let depth = 1.0 - f64::from(layer) / f64::from(layers);
        Ok(Self::per_head(heads, |h| -8.0 * f64::from(h) / f64::from(heads) * depth))
    }

    /// Lightning attention as in the authors' repository: the slopes of [`Decay::alibi`] times
    /// `1 - l / (layers - 1) + 1e-5`.
    ///
    /// Fails unless `layer < layers` and `heads` is 1 to 65,536.
    pub fn lightning_alibi(layer: u32, layers: u32, heads: u32) -> Result<Self> {
        check_layer(layer, layers, heads)?;
        // a single layer is the first one
        let depth = 1.0 - f64::from(layer) / f64::from(layers.max(2) - 1) + 1e-5;
        let slopes = alibi_slopes(heads);
        Ok(Self::PerHead(slopes.iter().map(|s| narrow(-s * depth)).collect()))
    }

    /// The slopes of ALiBi as log decays: `-2^(-8 (h + 1) / heads)` where `heads` is a power of
    /// two; else the slopes of the next lower power `p` followed by every other slope of `2 p`.
    ///
    /// Fails unless `heads` is 1 to 65,536.
    pub fn alibi(heads: u32) -> Result<Self> {
        check_layer(0, 1, heads)?;
        Ok(Self::PerHead(alibi_slopes(heads).iter().map(|s| narrow(-s)).collect()))
    }

    /// Retention (arXiv:2307.08621, eq. 8): `ln(1 - 2^(-5 - h))`.
    ///
    /// Fails unless `heads` is 1 to 65,536.
    pub fn retention(heads: u32) -> Result<Self> {
        check_layer(0, 1, heads)?;
        // past 2^-50 the decay is one in any precision
        Ok(Self::per_head(heads, |h| (-f64::from(5 + h.min(1000)).exp2().recip()).ln_1p()))
    }

    /// Positive rates `s`, as published tables give them, as log decays `-s`.
    pub fn slopes(rates: &[f32]) -> Self {
        Self::PerHead(rates.iter().map(|s| -s).collect())
    }

    fn per_head(heads: u32, log_decay: impl Fn(u32) -> f64) -> Self {
        // minus zero would read as a sign in an error message
        Self::PerHead((0..heads).map(|h| narrow(log_decay(h) + 0.0)).collect())
    }
}

fn narrow(x: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "rounds to the nearest f32")]
    let x = x as f32;
    x
}

/// The most heads that decays are made for.
const MAX_HEADS: u32 = 1 << 16;

fn check_layer(layer: u32, layers: u32, heads: u32) -> Result<()> {
    if heads == 0 || heads > MAX_HEADS {
        return Err(Error::shape(OP, "heads", format!("1 to {MAX_HEADS}"), heads));
    }
    if layer >= layers {
        return Err(Error::shape(OP, "layer", format!("less than layers = {layers}"), layer));
    }
    Ok(())
}

fn alibi_slopes(heads: u32) -> Vec<f64> {
    let of_power = |p: u32| (0..p).map(move |h| (-8.0 * f64::from(h + 1) / f64::from(p)).exp2());
    let power = 1 << heads.ilog2();
    if power == heads {
        return of_power(heads).collect();
    }
    of_power(power).chain(of_power(2 * power).step_by(2)).take(heads as usize).collect()
}

/// How a token changes the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Update {
    /// Adds `k v^T`.
    #[default]
    Add,
    /// Adds `w k v^T` with a weight `w` for each token and head (RALA, key masks). The weights
    /// enter the key sum too. A weight of 0 hides key and value, whatever they hold.
    Weighted,
    /// Delta rule: adds `beta k (v - S^T k)^T`, correcting what the decayed state holds under
    /// `k`. Keys are meant to have length one, and `beta` to lie in `[0, 2]`; a `beta` of 0 hides
    /// key and value, whatever they hold.
    Delta,
}

/// Denominator of the output. `z_t` is the decayed sum of the (weighted) keys.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Normalize {
    /// None: lightning, GLA and the delta rule normalise afterwards or not at all.
    #[default]
    None,
    /// `o_t = scale S_t^T q_t / (scale q_t . z_t + eps)`, as in `fla` (1e-10) and in the linear
    /// transformer (1e-6).
    Eps(f32),
    /// `o_t = scale S_t^T q_t / max(q_t . z_t, min)`: L2ViT clamps at 100, and its temperature
    /// stands in the numerator alone.
    Clamp(f32),
}

/// Function applied to each row of `q` and `k` as it is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FeatureMap {
    /// The row itself.
    #[default]
    Identity,
    /// `elu(x) + 1`: `x + 1` where positive, `exp(x)` elsewhere.
    EluPlusOne,
    /// `max(x, 0)`.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// `max(x, 0)^2`.
    SquaredRelu,
    /// Features whose inner product is `1 + s + s^2 / 2` with `s = scale q . k`, the second
    /// Taylor polynomial of `exp(s)`: `1`, then `sqrt(scale) x_i`, then for `i <= j` in order
    /// `scale x_i x_j`, divided by `sqrt(2)` where `i = j`. The output is not scaled again.
    Taylor2,
}

impl FeatureMap {
    /// Features made of `dim` channels: `K` of the state.
    pub const fn features(self, dim: u32) -> u64 {
        let d = dim as u64;
        match self {
            Self::Taylor2 => 1 + d + d * (d + 1) / 2,
            _ => d,
        }
    }
}

/// Which kernels run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Form {
    /// Chosen by the plan from the sizes and the device.
    #[default]
    Auto,
    /// Token by token: for decoding, and the plainest of the three.
    Recurrent,
    /// Blocks of tokens one after the other, one workgroup for each head and slice of `V`.
    ChunkLoop,
    /// Segments of the sequence in parallel: states of the segments, a scan over them, outputs.
    ChunkParallel,
}

/// Options. The default is causal linear attention without decay, scale 1, no denominator.
///
/// Lightning attention of layer 3 of 24 with 8 heads:
/// ```
/// # use tilewise::linear_attention::{Decay, LinearAttention};
/// let op = LinearAttention { decay: Decay::lightning(3, 24, 8)?, ..Default::default() };
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LinearAttention {
    /// How the state fades.
    pub decay: Decay,
    /// How a token changes the state.
    pub update: Update,
    /// Denominator.
    pub normalize: Normalize,
    /// Feature map of `q` and `k`.
    pub feature_map: FeatureMap,
    /// Factor of the output. `fla` uses `1 / sqrt(K)`, lightning attention 1.
    pub scale: f32,
    /// Token `t` sees tokens up to `t`; else every query sees every key.
    pub causal: bool,
    /// Which kernels run.
    pub form: Form,
    /// Tokens that the chunked kernels take at a time; `None` leaves it to the plan.
    pub chunk_size: Option<u32>,
    /// Sequences of different lengths lie one after the other along the token axis of tensors
    /// with batch size 1; [`LinearAttentionArgs::cu_seqlens`] has their bounds, and
    /// [`LinearAttentionShape::batch`] counts them. Each has its own state.
    pub packed: bool,
    /// Element type of `q`, `k`, `v` and `o`. Sums and states are f32 whatever it is.
    pub dtype: DType,
    /// Element type of gates, weights and betas.
    pub gate_dtype: DType,
}

impl Default for LinearAttention {
    fn default() -> Self {
        Self {
            decay: Decay::None,
            update: Update::Add,
            normalize: Normalize::None,
            feature_map: FeatureMap::Identity,
            scale: 1.0,
            causal: true,
            form: Form::Auto,
            chunk_size: None,
            packed: false,
            dtype: DType::F32,
            gate_dtype: DType::F32,
        }
    }
}

/// Checks log gates on the host: each must be a number, and at most zero.
///
/// Kernels cannot refuse: they take a positive gate for zero. Gates that come from outside are
/// worth checking once. `-inf` is legal.
pub fn check_gates(gates: &[f32]) -> Result<()> {
    match gates.iter().position(|g| g.is_nan() || *g > 0.0) {
        None => Ok(()),
        Some(i) => {
            Err(Error::value(OP, "log gate", "at most 0", format!("{} at index {i}", gates[i])))
        }
    }
}
