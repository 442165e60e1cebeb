// Decoding: a few rows of one key head against many keys.
// One workgroup, a subgroup where there are some, owns ROWS rows of one (sequence, group of heads) and
// one part of the keys. Rows are cut into chunks of eight channels, which are dealt out to the lanes:
// each holds its chunks of the queries and outputs, and reads its own of each key and value, once for
// all rows, so that no load is made twice and no lane idles. A score is the sum of the lanes' products.
// Keys pass in blocks of BLOCK_K, at most one correction of the maximum each.
// The parts' results are merged in order by merge.wgsl. Rows and options are as in flash.wgsl.
// Source: Dao 2023, arXiv:2307.08691, Algorithm 1; parts of keys as in Flash-Decoding (Dao, Haziza,
// Massa and Sizov 2023). Twin: none; the reference is the whole op.
// @include attention/params.wgsl

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
// indices of unrolled blocks
const C: u32 = 0u;
const I: u32 = 0u;
const J: u32 = 0u;
const L: u32 = 0u;

// @if SUBGROUP
// @else
// the lanes' products, [ROWS, BLOCK_K, LANES], and their sums
var<workgroup> products: array<f32, ROWS * BLOCK_K * LANES>;
var<workgroup> sums: array<f32, ROWS * BLOCK_K>;
// @end

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
    let record = params.records + batch * 7u;
    let q_start = table[record];
    let seq_q = table[record + 1u];
    let k_start = table[record + 2u];
    let seq_k = table[record + 3u];
    let pages = table[record + 4u];
    let pair_q = table[record + 5u];
    let pair_k = table[record + 6u];
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
    let pair_q = 0u;
    let pair_k = 0u;
    // @end
    let head_kv = head_group;
    let diagonal = select(0, i32(seq_k) - i32(seq_q), BOTTOM_RIGHT);

    // the keys that each row sees, [lower, limit); past-the-end rows repeat the last one
    let rows_q = seq_q * PACK;
    let first_row = block * ROWS;
    var row: array<u32, ROWS>;
    var head: array<u32, ROWS>;
    var limit: array<u32, ROWS>;
    var lower: array<u32, ROWS>;
    // @unroll I ROWS
    {
        let r = min(first_row + I, rows_q - 1u);
        row[I] = r / PACK;
        head[I] = head_group * PACK + r % PACK;
        limit[I] = key_limit(i32(row[I]) + diagonal, RIGHT_BOUND, params.right, seq_k);
        lower[I] = key_lower(i32(row[I]) + diagonal, LEFT_BOUND, params.left, seq_k);
    }
    // @end
    // those that any row sees, and those that all of them see
    let first_position = i32(first_row / PACK) + diagonal;
    let last_position = i32((min(first_row + ROWS, rows_q) - 1u) / PACK) + diagonal;
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
    bias_row[I] = batch * params.bias.x + head[I] * params.bias.y + (pair_q + row[I]) * params.bias.z + pair_k + params.bias.w;
    // @end
    // @end
    // @if MASK
    var mask_row: array<u32, ROWS>;
    // @unroll I ROWS
    mask_row[I] = batch * params.mask.x + head[I] * params.mask.y + (pair_q + row[I]) * params.mask.z + pair_k + params.mask.w;
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
