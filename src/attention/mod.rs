//! Softmax attention, tiled with an online softmax: memory beyond inputs and outputs does not grow
//! with the number of scores.
//!
//! For each batch and query head, `o = softmax(scale * q kᵀ + mask) v` and
//! `lse = ln(sum_j exp(scale * q k_j))` over the visible keys, natural logarithm
//! (Dao 2023, arXiv:2307.08691). A row that sees no key gives output 0 and LSE -inf.
//!
//! - Options of the scores, masks, packed sequences, paged and quantised caches: [`Attention`].
//! - [`Merge`] joins results over disjoint keys by their LSE: ring attention, chunked prefill.
//! - [`KvAppend`] writes new keys and values into a paged cache.
//! - [`TripleAttention`] is softmax over pairs of keys.
//!
//! Multi-head latent attention needs no option: `k` is the latent cache as one key head of 576
//! channels, `v` a view of its first 512, and the scale is given.

mod append;
mod encode;
mod merge;
mod plan;
mod quantize;
mod schedule;
mod table;
mod triple;

pub use append::{KvAppend, KvAppendArgs, KvAppendPlan, KvAppendShape};
pub use merge::{Merge, MergeArgs, MergePlan, MergeShape};
pub use plan::AttentionPlan;
pub use quantize::{Quantized, quantize};
pub(crate) use schedule::Registers;
pub use schedule::{GroupTiles, RegisterTiles, Schedule};
pub use triple::{TripleArgs, TripleAttention, TriplePlan, TripleShape};

use crate::{DType, TensorView};

const OP: &str = "attention";

/// The largest `head_dim` and `head_dim_v`: that of a latent key, 512 channels and 64 rotated ones.
pub const MAX_HEAD_DIM: u32 = 576;

/// Sizes of an attention problem.
///
/// For packed sequences `batch` is 1, and `seq_q` and `seq_k` count the rows of all of them; for
/// keys in pages `seq_k` is the most keys that one sequence may have.
///
/// `q` and `o` are `[batch, seq_q, heads, head_dim]` and `[batch, seq_q, heads, head_dim_v]`, `k`
/// and `v` `[batch, seq_k, heads_kv, head_dim]` and `[batch, seq_k, heads_kv, head_dim_v]`, `lse`
/// is `[batch, heads, seq_q]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    /// Independent problems. May be 0.
    pub batch: u32,
    /// Queries. May be 0.
    pub seq_q: u32,
    /// Keys. May be 0: then every output is 0 and every LSE -inf.
    pub seq_k: u32,
    /// Query heads, a multiple of `heads_kv`.
    pub heads: u32,
    /// Key and value heads: `heads` for multi-head, 1 for multi-query, between for grouped-query
    /// attention. Query head `h` reads key head `h / (heads / heads_kv)`.
    pub heads_kv: u32,
    /// Length of a query and a key, 1 to [`MAX_HEAD_DIM`].
    pub head_dim: u32,
    /// Length of a value and an output row, 1 to [`MAX_HEAD_DIM`].
    pub head_dim_v: u32,
}

impl AttentionShape {
    /// Multi-head self-attention: as many keys as queries, one head size.
    pub fn self_attention(batch: u32, seq: u32, heads: u32, head_dim: u32) -> Self {
        Self {
            batch,
            seq_q: seq,
            seq_k: seq,
            heads,
            heads_kv: heads,
            head_dim,
            head_dim_v: head_dim,
        }
    }

    /// [`Attention::flops`] for a mask and no other option.
    pub fn flops(&self, mask: Mask) -> f64 {
        Attention { mask, ..Attention::default() }.flops(self)
    }
}

/// Where the causal diagonal lies when `seq_q` and `seq_k` differ. There is no default: libraries
/// disagree, and a guess is a silent error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CausalAlignment {
    /// The last query sees every key: key `j` is visible to query `i` if
    /// `j <= i + seq_k - seq_q`. As FlashAttention since 2.1; decoding and chunked prefill want this.
    BottomRight,
    /// The first query sees the first key only: `j <= i`. As PyTorch's `is_causal`.
    TopLeft,
}

impl CausalAlignment {
    /// `j <= i + diagonal` for visible keys.
    pub fn diagonal(self, seq_q: u32, seq_k: u32) -> i64 {
        match self {
            Self::BottomRight => i64::from(seq_k) - i64::from(seq_q),
            Self::TopLeft => 0,
        }
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mask {
    /// All.
    #[default]
    None,
    /// Those up to its own position.
    Causal(CausalAlignment),
}

/// How far around its own position a query sees, both ends inclusive, as FlashAttention's
/// `window_size`; `None` is unbounded. Query `i` stands at key `i + seq_k - seq_q`, or at key `i` with
/// [`CausalAlignment::TopLeft`]. At the ends of the sequence the window is cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Window {
    /// Keys before its position.
    pub left: Option<u32>,
    /// Keys after it; with a causal mask there are none.
    pub right: Option<u32>,
}

/// What the last two axes of a bias or a boolean mask of packed sequences count. There is no third
/// meaning, and a tensor of another size than the chosen one has is refused.
///
/// Below, sequence `a` has queries `cu_seqlens_q[a]..cu_seqlens_q[a + 1]` and keys
/// `cu_seqlens_k[a]..cu_seqlens_k[a + 1]`; `i` and `j` count from its own first query and key. Entries
/// that belong to no query and key of one sequence are never used, whatever they hold.
///
/// Three sequences of 5, 7 and 20 tokens, with a bias for every pair of tokens of the pack:
///
/// ```
/// use tilewise::attention::{Attention, BiasPositions};
/// let op = Attention {
///     packed: true,
///     bias: true,
///     // the bias is [1, heads, 32, 32]; with BiasPositions::Sequence it is [3, heads, 20, 20]
///     bias_positions: BiasPositions::Pack,
///     ..Default::default()
/// };
/// # let _ = op;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BiasPositions {
    /// Positions in the sequence: `[sequences, heads, longest queries, longest keys]`, entry
    /// `[a, h, i, j]`. The longest are those of the call; for keys in pages `seq_k` stands for the
    /// longest keys. A larger tensor is given as a view of that size.
    #[default]
    Sequence,
    /// Positions in the pack: `[1, heads, seq_q, seq_k]`, entry
    /// `[0, h, cu_seqlens_q[a] + i, cu_seqlens_k[a] + j]`. For keys in pages, `seq_k` is here the sum
    /// of `key_lengths`, and the sum of those before `a` stands for `cu_seqlens_k[a]`.
    Pack,
}

/// Whether the keys of one query are shared out to several workgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Split {
    /// For few queries (`seq_q * heads / heads_kv` at most 16), cut at every [`SPLIT_KEYS`] keys; on a
    /// GPU also for up to four queries of more than 16 heads that share a key head, as in latent attention,
    /// at every [`SPLIT_KEYS_MANY`]; never for packed sequences, whose lengths a plan does not know.
    #[default]
    Auto,
    /// One workgroup for all keys.
    Never,
    /// Cut at every multiple of so many keys, a multiple of 64. The bits of a row depend on this
    /// number and the row's own keys, on whether more than eight rows share a key head (on a CPU four; on a
    /// GPU on whether more than four heads do, too), never on the other sequences of the batch.
    Keys(u32),
}

/// Keys of one part of [`Split::Auto`].
pub const SPLIT_KEYS: u32 = 256;

/// Keys of one part where many rows share a key head, each of which leaves a result to be merged.
pub const SPLIT_KEYS_MANY: u32 = 2048;

/// How the work is cut where invocations own whole rows ([`Schedule::Rows`]), or, while decoding on a CPU,
/// share the channels of a few ([`Schedule::Decode`]). [`Attention::plan`] chooses unless told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiles {
    /// Invocations in a workgroup.
    pub workgroup: u32,
    /// Query rows that one invocation owns; a workgroup owns `workgroup * queries` rows. A row is
    /// a query of one of the heads that share a key head. While decoding, the invocations of a
    /// workgroup own `queries` rows together.
    pub queries: u32,
    /// Keys that pass together: between two corrections of the running maximum, where there are such.
    pub block_k: u32,
}

/// How attention is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Tiled, online softmax, no scores in memory.
    #[default]
    Flash,
    /// Scores stored, normalised and applied by plain kernels, one element each. The baseline of
    /// the benchmarks and a second opinion in tests; needs `4 * batch * heads * seq_q * seq_k`
    /// bytes of scratch. Takes a causal mask and a scale, and no other option.
    Unfused,
}

/// Options of attention. `Default` is unmasked f32 attention scaled by `1 / sqrt(head_dim)`.
///
/// ```no_run
/// use tilewise::{Context, Tensor, attention::*};
/// # fn main() -> tilewise::Result<()> {
/// let ctx = Context::new_blocking()?;
/// let shape = AttentionShape::self_attention(1, 128, 8, 64);
/// let plan = Attention { mask: Mask::Causal(CausalAlignment::BottomRight), ..Default::default() }
///     .plan(&ctx, shape)?;
/// let q = Tensor::upload(&ctx, [1, 128, 8, 64], &vec![0.1f32; 128 * 8 * 64])?;
/// let o = Tensor::zeros(&ctx, [1, 128, 8, 64], q.dtype())?;
/// let mut encoder = ctx.device.create_command_encoder(&Default::default());
/// plan.encode(&ctx, &mut encoder, &AttentionArgs::new(q.view(), q.view(), q.view(), o.view()))?;
/// ctx.queue.submit([encoder.finish()]);
/// let out: Vec<f32> = o.download(&ctx)?;
/// # Ok(()) }
/// ```
/// The score of query `i` and key `j` is `s = scale * (q_i · k_j)`, then
/// `s = softcap * tanh(s / softcap)`, then the ALiBi term `- slope * |i + diagonal - j|` and `bias` are
/// added; keys outside of `mask`, `window`, the sequence's length, or where `visible` is 0 or `bias`
/// -inf, are hidden; a sink adds `exp(sink)` to the denominator. Every option may be combined with
/// every other.
///
/// What belongs to hidden keys alone has no effect, whatever it holds: their rows of `k` and `v`, entries
/// of `bias`, scales. Where a block of keys is hidden from some query, and always with `bias` or
/// `visible`, NaN and infinities in `v` count as 0 for every query, those that see the key too: an
/// overflow further up may not show there. In `q`, `k` and the scales they do show.
///
/// Numbers are f32's. A score, a bias, a slope times a distance and a sink beyond 2e38 either way count
/// as that. Weights of less than some 1e-30 of a row's largest are 0: a bias of -1e4 or `f32::MIN` hides
/// values as large as f32 holds. Values may be up to 1e37 in size at the least for a hundred thousand
/// keys that weigh alike, to 1e36 for a million; below 1e-24 a driver that takes denormal numbers for 0
/// loses what weighs little.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Attention {
    /// Which keys a query sees.
    pub mask: Mask,
    /// How far around itself a query sees.
    pub window: Window,
    /// Factor of the scores; `None` is `1 / sqrt(head_dim)`. Finite. Above 2.3e38 it counts as that, and
    /// below 1e-38, either sign, a driver may take it for 0.
    pub scale: Option<f32>,
    /// Bound of the scores through a tanh (Gemma 2, arXiv:2408.00118, section 2). Positive and finite;
    /// above 1e30 it counts as about that, which scores below 1e26 do not feel, and below 1e-38 as that.
    pub softcap: Option<f32>,
    /// Scores fall with the distance, by a slope for each head (ALiBi, arXiv:2108.12409):
    /// [`AttentionArgs::slopes`].
    pub alibi: bool,
    /// An additive bias: [`AttentionArgs::bias`].
    pub bias: bool,
    /// A boolean mask, key padding included: [`AttentionArgs::visible`].
    pub visible: bool,
    /// A learned logit for each head that joins the denominator (arXiv:2309.17453; gpt-oss):
    /// [`AttentionArgs::sinks`].
    pub sinks: bool,
    /// A matrix for each head between query and key (power-law graph attention,
    /// arXiv:2502.13502): [`AttentionArgs::metric`].
    pub metric: bool,
    /// Sequences of different lengths lie one after the other:
    /// [`AttentionArgs::cu_seqlens_q`] and [`AttentionArgs::cu_seqlens_k`].
    pub packed: bool,
    /// What `bias` and `visible` of packed sequences count; [`BiasPositions::Pack`] needs `packed`.
    pub bias_positions: BiasPositions,
    /// Each sequence has its own number of keys: [`AttentionArgs::key_lengths`].
    pub key_lengths: bool,
    /// Keys and values lie in pages of so many rows, a power of two (PagedAttention,
    /// arXiv:2309.06180): [`AttentionArgs::page_table`]. Needs `key_lengths`.
    pub page_size: Option<u32>,
    /// Keys and values are int8 with a scale for each head and so many tokens, a power of two of at
    /// least 16: [`AttentionArgs::k_scale`], [`quantize`].
    pub quantized: Option<u32>,
    /// Whether the keys of one query are shared out.
    pub split: Split,
    /// Element type of `q`, `k`, `v`, `o` and `bias`. Sums are f32 whatever it is; `lse`, `slopes`,
    /// `sinks`, `metric` and scales are always f32.
    pub dtype: DType,
    /// Tiled, or the plain baseline.
    pub algorithm: Algorithm,
    /// The kernel and its tiles, instead of the planner's choice; [`Schedule`] says what each takes.
    pub schedule: Option<Schedule>,
}

/// The tensors of one attention call. Axis orders are those of [`AttentionShape`]; strides are
/// free but for the last axis.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// Queries `[batch, seq_q, heads, head_dim]`.
    pub q: TensorView<'a, 4>,
    /// Keys `[batch, seq_k, heads_kv, head_dim]`.
    pub k: TensorView<'a, 4>,
    /// Values `[batch, seq_k, heads_kv, head_dim_v]`.
    pub v: TensorView<'a, 4>,
    /// Output `[batch, seq_q, heads, head_dim_v]`, written everywhere.
    pub o: TensorView<'a, 4>,
    /// Natural-log LSE `[batch, heads, seq_q]`, f32, written everywhere if given; sinks included.
    pub lse: Option<TensorView<'a, 3>>,
    /// ALiBi slopes `[heads]`, f32.
    pub slopes: Option<TensorView<'a, 1>>,
    /// Additive bias `[batch, heads, seq_q, seq_k]`, of which any of the first three may be 1 and is
    /// then repeated. An entry of -inf hides the key; a finite one, however low, does not: where all
    /// keys of a row have it the row is their mean, as it is of plain attention. Of packed sequences
    /// `[sequences, heads, longest queries, longest keys]`, or `[1, heads, seq_q, seq_k]` with
    /// [`BiasPositions::Pack`].
    pub bias: Option<TensorView<'a, 4>>,
    /// Boolean mask, u8, 0 hides; shaped and repeated as `bias`, also for packed sequences:
    /// `[batch, 1, 1, seq_k]` is a key-padding mask.
    pub visible: Option<TensorView<'a, 4>>,
    /// Sink logits `[heads]`, f32, finite. A row that sees no key then has output 0 and its sink as
    /// LSE.
    pub sinks: Option<TensorView<'a, 1>>,
    /// Metric `[heads, head_dim, head_dim]`, f32: `q_i` becomes the row vector `q_i G`.
    pub metric: Option<TensorView<'a, 3>>,
    /// Scales of int8 keys, f32: `[batch, heads_kv, seq_k / quantized]` rounded up, or
    /// `[pages, heads_kv, page_size / quantized]`.
    pub k_scale: Option<TensorView<'a, 3>>,
    /// Scales of int8 values, shaped as `k_scale`.
    pub v_scale: Option<TensorView<'a, 3>>,
    /// First query of each packed sequence, and `seq_q` at the end: begins with 0, never falls.
    pub cu_seqlens_q: Option<&'a [u32]>,
    /// First key of each packed sequence, and `seq_k` at the end; not with pages.
    pub cu_seqlens_k: Option<&'a [u32]>,
    /// Keys of each sequence, at most `seq_k`.
    pub key_lengths: Option<&'a [u32]>,
    /// Page that holds rows `i * page_size..` of a sequence, `[sequences, seq_k / page_size]` rounded
    /// up. `k` and `v` are then `[pages, page_size, heads_kv, ..]`; entries past a sequence's length are
    /// not looked at.
    pub page_table: Option<&'a [u32]>,
    /// At least [`AttentionPlan::scratch_bytes`] bytes with usage `STORAGE`, needed if that is not
    /// 0. Its contents are free after the commands have run.
    pub scratch: Option<&'a wgpu::Buffer>,
}

impl<'a> AttentionArgs<'a> {
    /// Inputs and output; no LSE, no scratch.
    pub fn new(
        q: TensorView<'a, 4>,
        k: TensorView<'a, 4>,
        v: TensorView<'a, 4>,
        o: TensorView<'a, 4>,
    ) -> Self {
        Self {
            q,
            k,
            v,
            o,
            lse: None,
            slopes: None,
            bias: None,
            visible: None,
            sinks: None,
            metric: None,
            k_scale: None,
            v_scale: None,
            cu_seqlens_q: None,
            cu_seqlens_k: None,
            key_lengths: None,
            page_table: None,
            scratch: None,
        }
    }
}

impl Attention {
    /// Floating-point operations of the two products, two for each multiply-add, counting only
    /// scores that the mask and the window let be seen.
    #[expect(clippy::cast_precision_loss, reason = "a length is exact in f64")]
    pub fn flops(&self, shape: &AttentionShape) -> f64 {
        let rows = f64::from(shape.batch) * f64::from(shape.heads);
        let (left, right) = self.reach();
        let diagonal = self.alignment().diagonal(shape.seq_q, shape.seq_k);
        let sum = |first: i64| ramp(shape.seq_q.into(), first.into(), shape.seq_k.into());
        // all keys up to the last that a query sees, without those before the first
        let scores = (sum(diagonal + right + 1) - sum(diagonal - left)) as f64;
        2.0 * rows * scores * (f64::from(shape.head_dim) + f64::from(shape.head_dim_v))
    }

    /// Keys before and after its position that a query sees, by window and causal mask.
    pub(crate) fn reach(&self) -> (i64, i64) {
        // more than any length, and small enough to add positions to
        let unbounded = i64::from(MAX_SEQ);
        let left = self.window.left.map_or(unbounded, i64::from);
        let right = match self.mask {
            Mask::Causal(_) => 0,
            Mask::None => self.window.right.map_or(unbounded, i64::from),
        };
        (left.min(unbounded), right.min(unbounded))
    }

    /// Where the queries stand among the keys.
    pub(crate) fn alignment(&self) -> CausalAlignment {
        match self.mask {
            Mask::Causal(align) => align,
            Mask::None => CausalAlignment::BottomRight,
        }
    }
}

/// A scale of scores in base 2, finite.
pub(crate) fn base_2(scale: f32) -> f32 {
    (scale * std::f32::consts::LOG2_E).clamp(f32::MIN, f32::MAX)
}

/// The sum of `first + i` for `i` in `0..count`, each cut off below 0 and above `most`.
fn ramp(count: i128, first: i128, most: i128) -> i128 {
    let rising = (-first).clamp(0, count)..(most - first).clamp(0, count);
    let terms = (rising.end - rising.start).max(0);
    let line = terms * (2 * first + rising.start + rising.end - 1) / 2;
    line + (count - rising.end) * most
}

/// The longest sequence: positions are compared as i32 in the kernels.
const MAX_SEQ: u32 = (1 << 30) - 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// Against counting, for every mask and window of short sequences.
    #[test]
    fn visible_scores_are_counted() {
        let ends = [None, Some(0), Some(1), Some(3), Some(9)];
        let masks = [
            Mask::None,
            Mask::Causal(CausalAlignment::TopLeft),
            Mask::Causal(CausalAlignment::BottomRight),
        ];
        for (seq_q, seq_k) in (0..7).flat_map(|q| (0..7).map(move |k| (q, k))) {
            for (mask, left, right) in masks
                .iter()
                .flat_map(|m| ends.iter().flat_map(move |l| ends.map(move |r| (*m, *l, r))))
            {
                let op = Attention { mask, window: Window { left, right }, ..Default::default() };
                let shape =
                    AttentionShape { seq_k, ..AttentionShape::self_attention(1, seq_q, 1, 1) };
                let (before, after) = op.reach();
                let diagonal = op.alignment().diagonal(seq_q, seq_k);
                let seen = |i: u32, j: u32| {
                    let away = i64::from(j) - i64::from(i) - diagonal;
                    -before <= away && away <= after
                };
                let count = (0..seq_q).flat_map(|i| (0..seq_k).map(move |j| (i, j)));
                let count = count.filter(|&(i, j)| seen(i, j)).count();
                assert_eq!(op.flops(&shape), 4.0 * count as f64, "{op:?} {shape:?}");
            }
        }
    }
}
