// What the schedules of attention share, included by each: the problem and its options, which piece of
// the work is a workgroup's, where its rows and keys lie, which keys a row sees, what becomes of scores.
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
    pack: u32,
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
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; fn q_load4n(i: u32, n: u32) -> vec4<f32> { return q[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>; fn k_load4n(i: u32, n: u32) -> vec4<f32> { return k[i >> 2u]; } // @tensor
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; fn v_load4n(i: u32, n: u32) -> vec4<f32> { return v[i >> 2u]; } // @tensor
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>; fn o_store4n(i: u32, n: u32, x: vec4<f32>) { o[i >> 2u] = x; } // @tensor
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; fn lse_store_bits(i: u32, x: u32) { lse[i] = bitcast<f32>(x); } // @tensor
@group(0) @binding(6) var<storage, read> slopes: array<f32>; fn slopes_load(i: u32) -> f32 { return slopes[i]; } // @tensor
@group(0) @binding(7) var<storage, read> bias: array<f32>; fn bias_load(i: u32) -> f32 { return bias[i]; } // @tensor
@group(0) @binding(8) var<storage, read> mask: array<u32>; fn mask_load(i: u32) -> f32 { return f32(mask[i]); } // @tensor
@group(0) @binding(9) var<storage, read> sinks: array<f32>; fn sinks_load(i: u32) -> f32 { return sinks[i]; } // @tensor
@group(0) @binding(10) var<storage, read> k_scale: array<f32>; fn k_scale_load(i: u32) -> f32 { return k_scale[i]; } // @tensor
@group(0) @binding(11) var<storage, read> v_scale: array<f32>; fn v_scale_load(i: u32) -> f32 { return v_scale[i]; } // @tensor
// @if RAGGED
// (sequence, block of rows, split) for each piece of work; then for each sequence its first query,
// queries, first key, keys, the place in this table of its first page, and the query and the key that
// its entries of the bias and the mask begin at
@group(0) @binding(12) var<storage, read> table: array<u32>;
// @end

// below every real score, and finite: WGSL may assume that infinities do not occur
const HIDDEN: f32 = -3.3e38;
// what scores count for at least, where maxima begin, so far above HIDDEN that a hidden key weighs
// nothing, and what they count for at most
const LEAST: f32 = -3e38;
const MOST: f32 = 3e38;
const LOG2_E: f32 = 1.4426950408889634;

// What a workgroup works on: a block of the rows of one sequence and key head, and the keys from `begin`
// to `end`.
struct Piece {
    batch: u32,
    head_kv: u32,
    block: u32,
    split: u32,
    q_start: u32,
    seq_q: u32,
    k_start: u32,
    seq_k: u32,
    pages: u32,
    pair_q: u32,
    pair_k: u32,
    diagonal: i32,
    rows: u32,
    begin: u32,
    end: u32,
}

fn piece_of(group: u32) -> Piece {
    var piece: Piece;
    // heads before parts: the rows of all heads at a key are neighbours in memory
    // @if RAGGED
    // @if SPLIT
    let item = group / params.head_groups;
    piece.head_kv = group % params.head_groups;
    // @else
    let item = group % params.items;
    piece.head_kv = group / params.items;
    // @end
    piece.batch = table[item * 3u];
    piece.block = table[item * 3u + 1u];
    piece.split = table[item * 3u + 2u];
    let record = params.records + piece.batch * 7u;
    piece.q_start = table[record];
    piece.seq_q = table[record + 1u];
    piece.k_start = table[record + 2u];
    piece.seq_k = table[record + 3u];
    piece.pages = table[record + 4u];
    piece.pair_q = table[record + 5u];
    piece.pair_k = table[record + 6u];
    // @else
    piece.block = group % params.blocks_q;
    piece.head_kv = (group / params.blocks_q) % params.head_groups;
    piece.split = (group / (params.blocks_q * params.head_groups)) % params.splits;
    piece.batch = group / (params.blocks_q * params.splits * params.head_groups);
    piece.seq_q = params.seq_q;
    piece.seq_k = params.seq_k;
    // @end
    piece.diagonal = select(0, i32(piece.seq_k) - i32(piece.seq_q), BOTTOM_RIGHT);
    piece.rows = piece.seq_q * PACK;
    piece.end = piece.seq_k;
    // @if SPLIT
    piece.begin = piece.split * params.split_keys;
    piece.end = min(piece.begin + params.split_keys, piece.seq_k);
    // @end
    return piece;
}

// The keys that any of some rows sees, [first, last), and those that all of them see.
struct Reach { first: u32, last: u32, all_first: u32, all_last: u32 }
fn reach_of(piece: Piece, first_row: u32, count: u32) -> Reach {
    let from_row = i32(first_row / PACK) + piece.diagonal;
    let to_row = i32((min(first_row + count, piece.rows) - 1u) / PACK) + piece.diagonal;
    return Reach(
        max(key_lower(from_row, LEFT_BOUND, params.left, piece.seq_k), piece.begin),
        min(key_limit(to_row, RIGHT_BOUND, params.right, piece.seq_k), piece.end),
        key_lower(to_row, LEFT_BOUND, params.left, piece.seq_k),
        min(key_limit(from_row, RIGHT_BOUND, params.right, piece.seq_k), piece.end),
    );
}

// A row, and the keys that it sees, [lower, limit).
struct Row { query: u32, head: u32, position: i32, lower: u32, limit: u32 }
// Past the end they repeat the last one.
fn row_at(piece: Piece, index: u32) -> Row {
    let at = min(index, piece.rows - 1u);
    let query = at / PACK;
    let position = i32(query) + piece.diagonal;
    return Row(
        query,
        piece.head_kv * PACK + at % PACK,
        position,
        key_lower(position, LEFT_BOUND, params.left, piece.seq_k),
        min(key_limit(position, RIGHT_BOUND, params.right, piece.seq_k), piece.end),
    );
}

// Where a row of q, k, v and o begins.
fn q_at(piece: Piece, row: Row) -> u32 {
    return piece.batch * params.q.x + (piece.q_start + row.query) * params.q.y + row.head * params.q.z + params.q.w;
}

fn k_at(piece: Piece, key: u32) -> u32 {
    // @if PAGED
    return table[piece.pages + key / PAGE] * params.k.x + key % PAGE * params.k.y + piece.head_kv * params.k.z + params.k.w;
    // @else
    return piece.batch * params.k.x + (piece.k_start + key) * params.k.y + piece.head_kv * params.k.z + params.k.w;
    // @end
}

fn v_at(piece: Piece, key: u32) -> u32 {
    // @if PAGED
    return table[piece.pages + key / PAGE] * params.v.x + key % PAGE * params.v.y + piece.head_kv * params.v.z + params.v.w;
    // @else
    return piece.batch * params.v.x + (piece.k_start + key) * params.v.y + piece.head_kv * params.v.z + params.v.w;
    // @end
}

fn o_at(piece: Piece, row: Row) -> u32 {
    return piece.batch * params.o.x + (piece.q_start + row.query) * params.o.y + row.head * params.o.z + params.o.w + piece.split * params.o_split;
}

fn lse_at(piece: Piece, row: Row) -> u32 {
    return piece.batch * params.lse.x + row.head * params.lse.y + (piece.q_start + row.query) * params.lse.z + params.lse.w + piece.split * params.lse_split;
}

// @if QUANTIZED
// (batch or page, head, block) of a key's scales
fn scale_at(piece: Piece, key: u32) -> vec3<u32> {
    // @if PAGED
    return vec3<u32>(table[piece.pages + key / PAGE], piece.head_kv, key % PAGE / SCALE_BLOCK);
    // @else
    return vec3<u32>(piece.batch, piece.head_kv, (piece.k_start + key) / SCALE_BLOCK);
    // @end
}
// @end

// What the key's elements are multiplied by, and the value's.
fn k_factor(piece: Piece, key: u32) -> f32 {
    // @if QUANTIZED
    return k_scale_load(dot(scale_at(piece, key), params.k_scale.xyz) + params.k_scale.w);
    // @else
    return 1.0;
    // @end
}

fn v_factor(piece: Piece, key: u32) -> f32 {
    // @if QUANTIZED
    return v_scale_load(dot(scale_at(piece, key), params.v_scale.xyz) + params.v_scale.w);
    // @else
    return 1.0;
    // @end
}

// One more logit of a row, of a key without value.
fn sink_of(row: Row) -> f32 {
    // @if SINKS
    return clamp(sinks_load(params.sinks_at + row.head), LEAST / LOG2_E, MOST / LOG2_E) * LOG2_E;
    // @else
    return LEAST;
    // @end
}

// A row's score of a key, `raw` the scaled dot product in base 2, as it is if the key is visible.
fn score(row: Row, key: u32, raw: f32) -> f32 {
    var x = raw;
    // @if SOFTCAP
    x = params.softcap * tanh_fma(x * (1.0 / params.softcap));
    // @end
    // @if ALIBI
    let slope = clamp(slopes_load(params.slopes_at + row.head), -MOST / LOG2_E, MOST / LOG2_E) * LOG2_E;
    x = at_least(x - slope * f32(abs(row.position - i32(key))), LEAST);
    // @end
    return x;
}

// The same after the bias, and HIDDEN where the key is not visible, whatever it was.
fn masked_score(piece: Piece, row: Row, key: u32, before: f32) -> f32 {
    var x = before;
    var visible = key < row.limit;
    // @if LEFT_BOUND
    visible = visible && key >= row.lower;
    // @end
    // @if BIAS
    let extra = bias_load(piece.batch * params.bias.x + row.head * params.bias.y + (piece.pair_q + row.query) * params.bias.z + piece.pair_k + params.bias.w + min(key, piece.seq_k - 1u));
    // -inf, told by its bits
    visible = visible && bitcast<u32>(extra) != 0xff800000u;
    x += extra * LOG2_E;
    x = select(x, MOST, x > MOST);
    // @end
    // @if MASK
    visible = visible && mask_load(piece.batch * params.mask.x + row.head * params.mask.y + (piece.pair_q + row.query) * params.mask.z + piece.pair_k + params.mask.w + min(key, piece.seq_k - 1u)) != 0.0;
    // @end
    return select(HIDDEN, at_least(x, LEAST), visible);
}

// What a row leaves when all keys are done: its reference and sum for the merge, or its LSE.
fn store_lse(piece: Piece, row: Row, reference: f32, sum: f32) {
    let at = lse_at(piece, row);
    let empty = sum == 0.0;
    // @if SPLIT
    lse_store_bits(at, bitcast<u32>(select(reference, HIDDEN, empty)));
    lse_store_bits(at + 1u, bitcast<u32>(sum));
    // @else
    if params.lse_wanted != 0u {
        // in base 2; -inf for a row that sees nothing
        let value = reference * 0.6931471805599453 + log(select(sum * WEIGHT_UNITS, 1.0, empty));
        lse_store_bits(at, select(bitcast<u32>(value), 0xff800000u, empty));
    }
    // @end
}
