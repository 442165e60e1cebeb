// Decoding: a few rows of one key head against many keys.
// One workgroup, a subgroup where there are some, owns ROWS rows of one (sequence, group of heads) and
// one part of the keys. Rows are cut into chunks of eight channels, which are dealt out to the lanes:
// each holds its chunks of the queries and outputs, and reads its own of each key and value, once for
// all rows, so that no load is made twice and no lane idles. A score is the sum of the lanes' products.
// Keys pass in blocks of BLOCK_K, at most one correction of the maximum each.
// The parts' results are merged in order by merge.wgsl. Rows and options are as in flash.wgsl.
//   q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv], o [B, T, H, Dv], lse [B, H, T]
// Source: Dao 2023, arXiv:2307.08691, Algorithm 1; parts of keys as in Flash-Decoding (Dao, Haziza,
// Massa and Sizov 2023). Twin: none; the reference is the whole op.
// chunks of eight channels
const D8: u32 = 8u; // @spec
const DV8: u32 = 8u; // @spec
const LANES: u32 = 8u; // @spec
const ROWS: u32 = 1u; // @spec
const BLOCK_K: u32 = 4u; // @spec
const SUBGROUP: bool = true; // @spec
// chunks of one lane, and whether every lane has as many
const K_CHUNKS: u32 = 1u; // @spec
const V_CHUNKS: u32 = 1u; // @spec
const K_WHOLE: bool = true; // @spec
// a chunk of k and v is one load, of 64-bit words
const WIDE: bool = true; // @spec
// scores of a block that one lane sums
const SUMS: u32 = 1u; // @spec
// the rest as in flash.wgsl
const RIGHT_BOUND: bool = true; // @spec
const LEFT_BOUND: bool = true; // @spec
const BOTTOM_RIGHT: bool = true; // @spec
const PARTIAL: bool = true; // @spec
const SOFTCAP: bool = true; // @spec
const ALIBI: bool = true; // @spec
const BIAS: bool = true; // @spec
const MASK: bool = true; // @spec
const SINKS: bool = true; // @spec
const RAGGED: bool = true; // @spec
const PAGED: bool = true; // @spec
const PAGE: u32 = 16u; // @spec
const QUANTIZED: bool = true; // @spec
const SCALE_BLOCK: u32 = 16u; // @spec
const SOFT_EXP2: bool = false; // @spec
// indices of unrolled blocks
const C: u32 = 0u;
const I: u32 = 0u;
const J: u32 = 0u;
const L: u32 = 0u;

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
    // groups of `pack` heads that share a key head
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
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; fn q_load(i: u32) -> f32 { return q[i >> 2u][i & 3u]; } fn q_load4n(i: u32, n: u32) -> vec4<f32> { return q[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>; fn k_load4n(i: u32, n: u32) -> vec4<f32> { return k[i >> 2u]; } fn k_load8(i: u32) -> array<vec4<f32>, 2> { return array<vec4<f32>, 2>(k[i >> 2u], k[(i >> 2u) + 1u]); } // @tensor
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; fn v_load4n(i: u32, n: u32) -> vec4<f32> { return v[i >> 2u]; } fn v_load8(i: u32) -> array<vec4<f32>, 2> { return array<vec4<f32>, 2>(v[i >> 2u], v[(i >> 2u) + 1u]); } // @tensor
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
// queries, first key, keys, and the place in this table of its first page
@group(0) @binding(12) var<storage, read> table: array<u32>;
// @end

// @if SUBGROUP
// @else
// the lanes' products, [ROWS, BLOCK_K, LANES], and their sums
var<workgroup> products: array<f32, ROWS * BLOCK_K * LANES>;
var<workgroup> sums: array<f32, ROWS * BLOCK_K>;
// @end

// below every real score, and finite: WGSL may assume that infinities do not occur
const HIDDEN: f32 = -3.3e38;
// what scores count for at least, where maxima begin, so far above HIDDEN that a hidden key weighs
// nothing, and what they count for at most
const LEAST: f32 = -3e38;
const MOST: f32 = 3e38;
const LOG2_E: f32 = 1.4426950408889634;

@compute @workgroup_size(LANES)
fn decode(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(group_id, group_count);
    if group >= params.groups {
        return;
    }
    // @if RAGGED
    // heads before parts: the rows of all heads at a key are neighbours in memory
    let item = group / params.head_groups;
    let head_group = group % params.head_groups;
    let batch = table[item * 3u];
    let block = table[item * 3u + 1u];
    let split = table[item * 3u + 2u];
    let record = params.records + batch * 5u;
    let q_start = table[record];
    let seq_q = table[record + 1u];
    let k_start = table[record + 2u];
    let seq_k = table[record + 3u];
    let pages = table[record + 4u];
    // @else
    let block = group % params.blocks_q;
    // heads before parts, as above
    let head_group = (group / params.blocks_q) % params.head_groups;
    let split = (group / (params.blocks_q * params.head_groups)) % params.splits;
    let batch = group / (params.blocks_q * params.splits * params.head_groups);
    let q_start = 0u;
    let seq_q = params.seq_q;
    let k_start = 0u;
    let seq_k = params.seq_k;
    let pages = 0u;
    // @end
    let head_kv = head_group;
    let diagonal = select(0, i32(seq_k) - i32(seq_q), BOTTOM_RIGHT);

    // the keys that each row sees, [lower, limit); past-the-end rows repeat the last one
    let rows_q = seq_q * params.pack;
    let first_row = block * ROWS;
    var row: array<u32, ROWS>;
    var head: array<u32, ROWS>;
    var limit: array<u32, ROWS>;
    var lower: array<u32, ROWS>;
    // @unroll I ROWS
    {
        let r = min(first_row + I, rows_q - 1u);
        row[I] = r / params.pack;
        head[I] = head_group * params.pack + r % params.pack;
        limit[I] = key_limit(i32(row[I]) + diagonal, RIGHT_BOUND, params.right, seq_k);
        lower[I] = key_lower(i32(row[I]) + diagonal, LEFT_BOUND, params.left, seq_k);
    }
    // @end
    // those that any row sees, and those that all of them see
    let first_position = i32(first_row / params.pack) + diagonal;
    let last_position = i32((min(first_row + ROWS, rows_q) - 1u) / params.pack) + diagonal;
    let last = min(key_limit(last_position, RIGHT_BOUND, params.right, seq_k), (split + 1u) * params.split_keys);
    let first = max(key_lower(first_position, LEFT_BOUND, params.left, seq_k), split * params.split_keys) / BLOCK_K * BLOCK_K;
    let first_limit = key_limit(first_position, RIGHT_BOUND, params.right, seq_k);
    let last_lower = key_lower(last_position, LEFT_BOUND, params.left, seq_k);

    let q_base = batch * params.q.x + q_start * params.q.y + params.q.w;
    // @if PAGED
    let k_base = head_kv * params.k.z + params.k.w;
    let v_base = head_kv * params.v.z + params.v.w;
    // @else
    let k_base = batch * params.k.x + k_start * params.k.y + head_kv * params.k.z + params.k.w;
    let v_base = batch * params.v.x + k_start * params.v.y + head_kv * params.v.z + params.v.w;
    // @end

    // a lane without a chunk has the last one
    var query: array<vec4<f32>, ROWS * K_CHUNKS * 2u>;
    // @unroll I ROWS
    // @unroll C K_CHUNKS
    {
        let at = q_base + row[I] * params.q.y + head[I] * params.q.z + min(C * LANES + lane, D8 - 1u) * 8u;
        query[(I * K_CHUNKS + C) * 2u] = params.scale * q_load4n(at, 4u);
        query[(I * K_CHUNKS + C) * 2u + 1u] = params.scale * q_load4n(at + 4u, 4u);
    }
    // @end
    // @end
    var m: array<f32, ROWS>;
    var l: array<f32, ROWS>;
    var acc: array<vec4<f32>, ROWS * V_CHUNKS * 2u>;
    // @unroll I ROWS
    m[I] = LEAST;
    l[I] = 0.0;
    // @if SINKS
    // one more logit, of a key without value; it belongs to the first split
    if split == 0u {
        m[I] = clamp(sinks_load(params.sinks_at + head[I]), LEAST / LOG2_E, MOST / LOG2_E) * LOG2_E;
        l[I] = WEIGHT_UNIT;
    }
    // @end
    // @unroll C V_CHUNKS
    acc[(I * V_CHUNKS + C) * 2u] = vec4<f32>(0.0);
    acc[(I * V_CHUNKS + C) * 2u + 1u] = vec4<f32>(0.0);
    // @end
    // @end
    // @if ALIBI
    var slope: array<f32, ROWS>;
    // @unroll I ROWS
    slope[I] = clamp(slopes_load(params.slopes_at + head[I]), -MOST / LOG2_E, MOST / LOG2_E) * LOG2_E;
    // @end
    // @end
    // @if SOFTCAP
    let uncap = 1.0 / params.softcap;
    // @end
    // @if BIAS
    var bias_row: array<u32, ROWS>;
    // @unroll I ROWS
    bias_row[I] = batch * params.bias.x + head[I] * params.bias.y + row[I] * params.bias.z + params.bias.w;
    // @end
    // @end
    // @if MASK
    var mask_row: array<u32, ROWS>;
    // @unroll I ROWS
    mask_row[I] = batch * params.mask.x + head[I] * params.mask.y + row[I] * params.mask.z + params.mask.w;
    // @end
    // @end

    for (var start = first; start < last; start += BLOCK_K) {
        // @if PAGED
        // a block lies in one page; rows of the page past the last key exist, and are hidden
        let page = table[pages + start / PAGE];
        // @end
        var s: array<f32, ROWS * BLOCK_K>;
        // @unroll I ROWS
        // @unroll J BLOCK_K
        s[I * BLOCK_K + J] = 0.0;
        // @end
        // @end
        // @unroll J BLOCK_K
        {
            // @if PAGED
            let at = k_base + page * params.k.x + (start % PAGE + J) * params.k.y;
            // @else
            let at = k_base + min(start + J, seq_k - 1u) * params.k.y;
            // @end
            // @unroll C K_CHUNKS
            {
                var x = k_chunk(at + min(C * LANES + lane, D8 - 1u) * 8u);
                // @if K_WHOLE
                // @else
                // counted once, by the lane that owns it
                if C * LANES + lane >= D8 {
                    x[0] = vec4<f32>(0.0);
                    x[1] = vec4<f32>(0.0);
                }
                // @end
                // @unroll I ROWS
                {
                    let y = query[(I * K_CHUNKS + C) * 2u];
                    let z = query[(I * K_CHUNKS + C) * 2u + 1u];
                    let sum = fma(y.w, x[0].w, fma(y.z, x[0].z, fma(y.y, x[0].y, fma(y.x, x[0].x, s[I * BLOCK_K + J]))));
                    s[I * BLOCK_K + J] = fma(z.w, x[1].w, fma(z.z, x[1].z, fma(z.y, x[1].y, fma(z.x, x[1].x, sum))));
                }
                // @end
            }
            // @end
        }
        // @end
        // @if SUBGROUP
        // @unroll I ROWS
        // @unroll J BLOCK_K
        s[I * BLOCK_K + J] = subgroupAdd(s[I * BLOCK_K + J]);
        // @end
        // @end
        // @else
        // @unroll I ROWS
        // @unroll J BLOCK_K
        products[(I * BLOCK_K + J) * LANES + lane] = s[I * BLOCK_K + J];
        // @end
        // @end
        workgroupBarrier();
        // @unroll C SUMS
        if C * LANES + lane < ROWS * BLOCK_K {
            var sum = 0.0;
            // @unroll L LANES
            sum += products[(C * LANES + lane) * LANES + L];
            // @end
            sums[C * LANES + lane] = sum;
        }
        // @end
        workgroupBarrier();
        // @unroll I ROWS
        // @unroll J BLOCK_K
        s[I * BLOCK_K + J] = sums[I * BLOCK_K + J];
        // @end
        // @end
        // @end

        // @if QUANTIZED
        // one scale for a block: SCALE_BLOCK is a multiple of BLOCK_K
        // @if PAGED
        let scale_at = vec3<u32>(page, head_kv, start % PAGE / SCALE_BLOCK);
        // @else
        let scale_at = vec3<u32>(batch, head_kv, (k_start + start) / SCALE_BLOCK);
        // @end
        let scale_k = k_scale_load(dot(scale_at, params.k_scale.xyz) + params.k_scale.w);
        let scale_v = v_scale_load(dot(scale_at, params.v_scale.xyz) + params.v_scale.w);
        // @end
        // online softmax; s becomes the weights
        // @unroll I ROWS
        {
            var top = m[I];
            // @unroll J BLOCK_K
            // @if QUANTIZED
            s[I * BLOCK_K + J] *= scale_k;
            // @end
            // @if SOFTCAP
            s[I * BLOCK_K + J] = params.softcap * tanh_fma(s[I * BLOCK_K + J] * uncap);
            // @end
            // @if ALIBI
            s[I * BLOCK_K + J] = at_least(s[I * BLOCK_K + J] - slope[I] * f32(abs(i32(row[I]) + diagonal - i32(start + J))), LEAST);
            // @end
            // @if PARTIAL
            {
                var visible = start + J < limit[I];
                // @if LEFT_BOUND
                visible = visible && start + J >= lower[I];
                // @end
                // @if BIAS
                let extra = bias_load(bias_row[I] + min(start + J, seq_k - 1u));
                // -inf, told by its bits
                visible = visible && bitcast<u32>(extra) != 0xff800000u;
                s[I * BLOCK_K + J] += extra * LOG2_E;
                s[I * BLOCK_K + J] = select(s[I * BLOCK_K + J], MOST, s[I * BLOCK_K + J] > MOST);
                // @end
                // @if MASK
                visible = visible && mask_load(mask_row[I] + min(start + J, seq_k - 1u)) != 0.0;
                // @end
                s[I * BLOCK_K + J] = select(HIDDEN, at_least(s[I * BLOCK_K + J], LEAST), visible);
            }
            // @end
            top = max(top, s[I * BLOCK_K + J]);
            // @end
            let shrink = exp2_weight(m[I] - top, SOFT_EXP2);
            m[I] = top;
            var sum = 0.0;
            // @unroll J BLOCK_K
            s[I * BLOCK_K + J] = exp2_unit(s[I * BLOCK_K + J] - top, SOFT_EXP2);
            sum += s[I * BLOCK_K + J];
            // @end
            l[I] = fma(l[I], shrink, sum);
            // @if QUANTIZED
            // @unroll J BLOCK_K
            // @if PARTIAL
            // the scale of keys that are hidden may be anything
            s[I * BLOCK_K + J] = select(s[I * BLOCK_K + J] * scale_v, 0.0, s[I * BLOCK_K + J] == 0.0);
            // @else
            s[I * BLOCK_K + J] *= scale_v;
            // @end
            // @end
            // @end
            // @unroll C V_CHUNKS
            acc[(I * V_CHUNKS + C) * 2u] *= shrink;
            acc[(I * V_CHUNKS + C) * 2u + 1u] *= shrink;
            // @end
        }
        // @end

        // where some row does not see some key, its weight is 0, but 0 * NaN is NaN
        let partial = PARTIAL && !QUANTIZED && (MASK || BIAS || start + BLOCK_K > first_limit || (LEFT_BOUND && start < last_lower));
        // @unroll J BLOCK_K
        {
            // @if PAGED
            let at = v_base + page * params.v.x + (start % PAGE + J) * params.v.y;
            // @else
            let at = v_base + min(start + J, seq_k - 1u) * params.v.y;
            // @end
            // @unroll C V_CHUNKS
            {
                var x = v_chunk(at + min(C * LANES + lane, DV8 - 1u) * 8u);
                // @if PARTIAL
                if partial {
                    x[0] = finite(x[0]);
                    x[1] = finite(x[1]);
                }
                // @end
                // @unroll I ROWS
                acc[(I * V_CHUNKS + C) * 2u] = fma(vec4<f32>(s[I * BLOCK_K + J]), x[0], acc[(I * V_CHUNKS + C) * 2u]);
                acc[(I * V_CHUNKS + C) * 2u + 1u] = fma(vec4<f32>(s[I * BLOCK_K + J]), x[1], acc[(I * V_CHUNKS + C) * 2u + 1u]);
                // @end
            }
            // @end
        }
        // @end
    }

    // @unroll I ROWS
    {
        // merged as they are, see merge.wgsl
        if first_row + I < rows_q {
            let at = batch * params.o.x + (q_start + row[I]) * params.o.y + head[I] * params.o.z + params.o.w + split * params.o_split;
            // @unroll C V_CHUNKS
            if C * LANES + lane < DV8 {
                o_store4n(at + (C * LANES + lane) * 8u, 4u, acc[(I * V_CHUNKS + C) * 2u]);
                o_store4n(at + (C * LANES + lane) * 8u + 4u, 4u, acc[(I * V_CHUNKS + C) * 2u + 1u]);
            }
            // @end
            let at_lse = batch * params.lse.x + head[I] * params.lse.y + (q_start + row[I]) * params.lse.z + params.lse.w + split * params.lse_split;
            if lane == 0u {
                lse_store_bits(at_lse, bitcast<u32>(select(m[I], HIDDEN, l[I] == 0.0)));
                lse_store_bits(at_lse + 1u, bitcast<u32>(l[I]));
            }
        }
    }
    // @end
}

// Eight channels of k from element `at` on, and of v.
fn k_chunk(at: u32) -> array<vec4<f32>, 2> {
    // @if WIDE
    return k_load8(at);
    // @else
    return array<vec4<f32>, 2>(k_load4n(at, 4u), k_load4n(at + 4u, 4u));
    // @end
}

fn v_chunk(at: u32) -> array<vec4<f32>, 2> {
    // @if WIDE
    return v_load8(at);
    // @else
    return array<vec4<f32>, 2>(v_load4n(at, 4u), v_load4n(at + 4u, 4u));
    // @end
}
