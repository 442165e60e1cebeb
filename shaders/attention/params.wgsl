// What every kernel of attention is given, included by each: the problem, its options, its tensors.
//   q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv], o [B, T, H, Dv], lse [B, H, T]
// A row is one query of one of PACK heads that share a key head, so that a few queries of many heads
// fill a tile and read the keys once.
const HEAD_DIM: u32 = 64u; // @spec
const HEAD_DIM_V: u32 = 64u; // @spec
const PACK: u32 = 1u; // @spec
// keys after, or before, a distance from the query are hidden
const RIGHT_BOUND: bool = true; // @spec
const LEFT_BOUND: bool = true; // @spec
// the last query stands at the last key, else the first at the first
const BOTTOM_RIGHT: bool = true; // @spec
// some row does not see some key that is visited
const PARTIAL: bool = true; // @spec
const SOFTCAP: bool = true; // @spec
const ALIBI: bool = true; // @spec
const BIAS: bool = true; // @spec
const MASK: bool = true; // @spec
const SINKS: bool = true; // @spec
// a matrix between query and key
const METRIC: bool = true; // @spec
// sequences differ in length or place: a table says how
const RAGGED: bool = true; // @spec
// keys lie in pages of PAGE rows
const PAGED: bool = true; // @spec
const PAGE: u32 = 16u; // @spec
// keys and values are int8, with a scale for each head and SCALE_BLOCK tokens
const QUANTIZED: bool = true; // @spec
const SCALE_BLOCK: u32 = 16u; // @spec
// the keys of a row are cut at multiples of split_keys, a workgroup each; the partial results are
// merged in order by merge.wgsl
const SPLIT: bool = true; // @spec
// exp2 by multiply-adds
const SOFT_EXP2: bool = false; // @spec

// Must match `attention::Params` (tested). Strides are (batch, seq, head, offset), in elements;
// for k and v of pages, batch means page.
struct Params {
    q: vec4<u32>,
    k: vec4<u32>,
    v: vec4<u32>,
    o: vec4<u32>,
    // (batch, head, seq, offset)
    lse: vec4<u32>,
    // (batch, head, query, offset)
    bias: vec4<u32>,
    mask: vec4<u32>,
    // (batch or page, head, block, offset)
    k_scale: vec4<u32>,
    v_scale: vec4<u32>,
    // (head, row, 0, offset)
    metric: vec4<u32>,
    seq_q: u32,
    seq_k: u32,
    // groups of PACK heads that share a key head
    head_groups: u32,
    // key j is visible to query i if i + diagonal - left <= j <= i + diagonal + right
    left: i32,
    right: i32,
    // times log2(e): scores are kept in base 2
    scale: f32,
    softcap: f32,
    blocks_q: u32,
    groups: u32,
    splits: u32,
    split_keys: u32,
    // distance between the results of two splits
    o_split: u32,
    lse_split: u32,
    // pieces of work, and first record of a sequence, in the table
    items: u32,
    records: u32,
    // 0: no LSE is wanted. No constant, for the kernel is the same and compiled once.
    lse_wanted: u32,
    // first elements of the slopes and the sinks
    slopes_at: u32,
    sinks_at: u32,
    // 0, which no compiler may know
    never: u32,
    pad: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; fn q_load(i: u32) -> f32 { return q[i >> 2u][i & 3u]; } fn q_load4n(i: u32, n: u32) -> vec4<f32> { return q[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>; fn k_load4n(i: u32, n: u32) -> vec4<f32> { return k[i >> 2u]; } fn k_load8(i: u32) -> array<vec4<f32>, 2> { return array<vec4<f32>, 2>(k[i >> 2u], k[(i >> 2u) + 1u]); } // @tensor
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; fn v_load4n(i: u32, n: u32) -> vec4<f32> { return v[i >> 2u]; } fn v_load8(i: u32) -> array<vec4<f32>, 2> { return array<vec4<f32>, 2>(v[i >> 2u], v[(i >> 2u) + 1u]); } // @tensor
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>; fn o_store4n(i: u32, n: u32, x: vec4<f32>) { o[i >> 2u] = x; } // @tensor
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; fn lse_store_bits(i: u32, x: u32) { lse[i] = bitcast<f32>(x); } // @tensor
@group(0) @binding(6) var<storage, read> slopes: array<f32>; fn slopes_load(i: u32) -> f32 { return slopes[i]; } // @tensor
@group(0) @binding(7) var<storage, read> bias: array<f32>; fn bias_load(i: u32) -> f32 { return bias[i]; } fn bias_load2(i: u32) -> vec2<f32> { return vec2<f32>(bias[i], bias[i + 1u]); } // @tensor
@group(0) @binding(8) var<storage, read> mask: array<u32>; fn mask_load(i: u32) -> f32 { return f32(mask[i]); } // @tensor
@group(0) @binding(9) var<storage, read> sinks: array<f32>; fn sinks_load(i: u32) -> f32 { return sinks[i]; } // @tensor
@group(0) @binding(10) var<storage, read> k_scale: array<f32>; fn k_scale_load(i: u32) -> f32 { return k_scale[i]; } // @tensor
@group(0) @binding(11) var<storage, read> v_scale: array<f32>; fn v_scale_load(i: u32) -> f32 { return v_scale[i]; } // @tensor
@group(0) @binding(12) var<storage, read> metric: array<vec4<f32>>; fn metric_load4n(i: u32, n: u32) -> vec4<f32> { return metric[i >> 2u]; } // @tensor
// @if RAGGED
// (sequence, block of rows, split) for each piece of work; then for each sequence its first query,
// queries, first key, keys, the place in this table of its first page, and the query and the key that
// its entries of the bias and the mask begin at
@group(0) @binding(13) var<storage, read> table: array<u32>;
// @end

// below every real score, and finite: WGSL may assume that infinities do not occur
const HIDDEN: f32 = -3.3e38;
// what scores count for at least, where maxima begin, so far above HIDDEN that a hidden key weighs
// nothing, and what they count for at most
const LEAST: f32 = -3e38;
const MOST: f32 = 3e38;
const LOG2_E: f32 = 1.4426950408889634;
