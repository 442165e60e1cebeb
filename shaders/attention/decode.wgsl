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
// @include attention/problem.wgsl

const LANES: u32 = 8u; // @spec
const ROWS: u32 = 1u; // @spec
const BLOCK_K: u32 = 4u; // @spec
const SUBGROUP: bool = true; // @spec
// every lane has as many chunks of a key
const K_WHOLE: bool = true; // @spec
// a chunk of k and v is one load, of 64-bit words
const WIDE: bool = true; // @spec

// chunks of eight channels, and those of one lane
const D8: u32 = HEAD_DIM / 8u;
const DV8: u32 = HEAD_DIM_V / 8u;
const K_CHUNKS: u32 = (D8 + LANES - 1u) / LANES;
const V_CHUNKS: u32 = (DV8 + LANES - 1u) / LANES;
// scores of a block that one lane sums
const SUMS: u32 = (ROWS * BLOCK_K + LANES - 1u) / LANES;
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
    let piece = piece_of(group);
    let first_row = piece.block * ROWS;
    var row: array<Row, ROWS>;
    // @unroll I ROWS
    row[I] = row_at(piece, first_row + I);
    // @end
    let reach = reach_of(piece, first_row, ROWS);
    let first = reach.first / BLOCK_K * BLOCK_K;

    // a lane without a chunk has the last one
    var query: array<vec4<f32>, ROWS * K_CHUNKS * 2u>;
    // @unroll I ROWS
    // @unroll C K_CHUNKS
    {
        let at = q_at(piece, row[I]) + min(C * LANES + lane, D8 - 1u) * 8u;
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
    if piece.split == 0u {
        m[I] = sink_of(row[I]);
        l[I] = WEIGHT_UNIT;
    }
    // @end
    // @unroll C V_CHUNKS
    acc[(I * V_CHUNKS + C) * 2u] = vec4<f32>(0.0);
    acc[(I * V_CHUNKS + C) * 2u + 1u] = vec4<f32>(0.0);
    // @end
    // @end

    for (var start = first; start < reach.last; start += BLOCK_K) {
        // @if PAGED
        // a block lies in one page; rows of the page past the last key exist, and are hidden
        let page = table[piece.pages + start / PAGE];
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
            let at = k_base(piece) + page * params.k.x + (start % PAGE + J) * params.k.y;
            // @else
            let at = k_at(piece, min(start + J, piece.seq_k - 1u));
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
        let scale_k = k_factor(piece, start);
        let scale_v = v_factor(piece, start);
        // @end
        // online softmax; s becomes the weights
        // @unroll I ROWS
        {
            var top = m[I];
            // @unroll J BLOCK_K
            // @if QUANTIZED
            s[I * BLOCK_K + J] *= scale_k;
            // @end
            s[I * BLOCK_K + J] = score(row[I], start + J, s[I * BLOCK_K + J]);
            // @if PARTIAL
            s[I * BLOCK_K + J] = masked_score(row[I], start + J, s[I * BLOCK_K + J], bias_of(piece, row[I], start + J), seen_of(piece, row[I], start + J));
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
        let partial = !QUANTIZED && hides(reach, start, BLOCK_K);
        // @unroll J BLOCK_K
        {
            // @if PAGED
            let at = v_base(piece) + page * params.v.x + (start % PAGE + J) * params.v.y;
            // @else
            let at = v_at(piece, min(start + J, piece.seq_k - 1u));
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
        if first_row + I < piece.rows {
            let at = o_at(piece, row[I]);
            // @unroll C V_CHUNKS
            if C * LANES + lane < DV8 {
                o_store4n(at + (C * LANES + lane) * 8u, 4u, acc[(I * V_CHUNKS + C) * 2u]);
                o_store4n(at + (C * LANES + lane) * 8u + 4u, 4u, acc[(I * V_CHUNKS + C) * 2u + 1u]);
            }
            // @end
            if lane == 0u {
                store_lse(piece, row[I], m[I], l[I]);
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
