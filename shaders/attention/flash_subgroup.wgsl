// FlashAttention-2 forward, subgroup tier.
// One workgroup owns WORKGROUP * QUERIES consecutive query rows of one (batch, head); one
// invocation owns QUERIES of them (row = first + i * WORKGROUP + lane) and keeps their queries,
// running maxima, sums and outputs in registers. Keys pass in blocks of BLOCK_K: each lane loads
// a share of the block's rows with vec4 loads, and every lane hears the others' by broadcast. No
// workgroup memory, no barrier.
//   q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv], o [B, T, H, Dv], lse [B, H, T]
// Source: Dao 2023, arXiv:2307.08691, Algorithm 1. Twin: none; the reference is the whole op.
const HEAD_DIM: u32 = 64u; // @spec
const HEAD_DIM_V: u32 = 64u; // @spec
const D4: u32 = 16u; // @spec
const DV4: u32 = 16u; // @spec
const WORKGROUP: u32 = 32u; // @spec
const QUERIES: u32 = 4u; // @spec
const BLOCK_K: u32 = 4u; // @spec
// lanes that load and speak: no more than the smallest subgroup the device may use
const LANES: u32 = 8u; // @spec
const K_REGS: u32 = 8u; // @spec
const V_REGS: u32 = 8u; // @spec
const CAUSAL: bool = false; // @spec
// some row does not see some key of some block: causal, or keys that do not fill the last block
const PARTIAL: bool = false; // @spec
// exp2 by multiply-adds
const SOFT_EXP2: bool = false; // @spec
// indices of unrolled blocks
const C: u32 = 0u;
const I: u32 = 0u;
const J: u32 = 0u;
const R: u32 = 0u;

// Must match `attention::Params` (tested). Strides are (batch, seq, head, offset), in elements.
struct Params {
    q: vec4<u32>,
    k: vec4<u32>,
    v: vec4<u32>,
    o: vec4<u32>,
    // (batch, head, seq, offset)
    lse: vec4<u32>,
    seq_q: u32,
    seq_k: u32,
    heads: u32,
    // query heads for each key head
    group: u32,
    // key j is visible to query i if j <= i + diagonal
    diagonal: i32,
    // scale * log2(e): scores are kept in base 2
    scale: f32,
    blocks_q: u32,
    groups: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; fn q_load4n(i: u32, n: u32) -> vec4<f32> { return q[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>; fn k_load4n(i: u32, n: u32) -> vec4<f32> { return k[i >> 2u]; } // @tensor
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; fn v_load4n(i: u32, n: u32) -> vec4<f32> { return v[i >> 2u]; } // @tensor
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>; fn o_store4n(i: u32, n: u32, x: vec4<f32>) { o[i >> 2u] = x; } // @tensor
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; fn lse_store_bits(i: u32, x: u32) { lse[i] = bitcast<f32>(x); } // @tensor

// below every real score, and finite: WGSL may assume that infinities do not occur
const HIDDEN: f32 = -1e30;

@compute @workgroup_size(WORKGROUP)
fn flash_subgroup(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let group = group_index(group_id, group_count);
    if group >= params.groups {
        return;
    }
    let block = group % params.blocks_q;
    let head = (group / params.blocks_q) % params.heads;
    let batch = group / (params.blocks_q * params.heads);
    let head_kv = head / params.group;
    let lane = subgroup_lane % LANES;

    // one past the last key that each row sees; past-the-end rows repeat the last one
    let first_row = block * (WORKGROUP * QUERIES);
    var row: array<u32, QUERIES>;
    var limit: array<u32, QUERIES>;
    // @unroll I QUERIES
    row[I] = min(first_row + I * WORKGROUP + local, params.seq_q - 1u);
    limit[I] = visible_keys(row[I]);
    // @end
    // of the last row of the workgroup: the same for all its invocations
    let last = visible_keys(min(first_row + WORKGROUP * QUERIES, params.seq_q) - 1u);

    // of its first row: keys before it are visible to every row
    let first_limit = visible_keys(first_row);

    let q_base = batch * params.q.x + head * params.q.z + params.q.w;
    let k_base = batch * params.k.x + head_kv * params.k.z + params.k.w;
    let v_base = batch * params.v.x + head_kv * params.v.z + params.v.w;

    var query: array<vec4<f32>, QUERIES * D4>;
    // @unroll I QUERIES
    // @unroll C D4
    query[I * D4 + C] = params.scale * q_load4n(q_base + row[I] * params.q.y + C * 4u, min(4u, HEAD_DIM - C * 4u));
    // @end
    // @end
    var m: array<f32, QUERIES>;
    var l: array<f32, QUERIES>;
    var acc: array<vec4<f32>, QUERIES * DV4>;
    // @unroll I QUERIES
    m[I] = HIDDEN;
    l[I] = 0.0;
    // @unroll C DV4
    acc[I * DV4 + C] = vec4<f32>(0.0);
    // @end
    // @end

    // where this lane's chunks of the first block lie, and the same chunk of the last row: rows
    // past the end repeat it. Written out of the loop by hand, for drivers that leave such in.
    var k_first: array<u32, K_REGS>;
    var k_last: array<u32, K_REGS>;
    // @unroll R K_REGS
    k_first[R] = k_base + row_of(R * LANES + lane, D4) * params.k.y + chunk_of(R * LANES + lane, D4);
    k_last[R] = k_base + (params.seq_k - 1u) * params.k.y + chunk_of(R * LANES + lane, D4);
    // @end
    var v_first: array<u32, V_REGS>;
    var v_last: array<u32, V_REGS>;
    // @unroll R V_REGS
    v_first[R] = v_base + row_of(R * LANES + lane, DV4) * params.v.y + chunk_of(R * LANES + lane, DV4);
    v_last[R] = v_base + (params.seq_k - 1u) * params.v.y + chunk_of(R * LANES + lane, DV4);
    // @end

    var k_step = 0u;
    var v_step = 0u;
    for (var start = 0u; start < last; start += BLOCK_K) {
        // [BLOCK_K, D4] spread over the lanes
        var rows: array<vec4<f32>, K_REGS>;
        // @unroll R K_REGS
        rows[R] = k_load4n(min(k_first[R] + k_step, k_last[R]), min(4u, HEAD_DIM - chunk_of(R * LANES + lane, D4)));
        // @end
        var s: array<f32, QUERIES * BLOCK_K>;
        // @unroll I QUERIES
        // @unroll J BLOCK_K
        s[I * BLOCK_K + J] = 0.0;
        // @end
        // @end
        // @unroll C D4
        // @unroll J BLOCK_K
        {
            let x = subgroupBroadcast(rows[(J * D4 + C) / LANES], (J * D4 + C) % LANES);
            // @unroll I QUERIES
            s[I * BLOCK_K + J] = fma(query[I * D4 + C].x, x.x, s[I * BLOCK_K + J]);
            s[I * BLOCK_K + J] = fma(query[I * D4 + C].y, x.y, s[I * BLOCK_K + J]);
            s[I * BLOCK_K + J] = fma(query[I * D4 + C].z, x.z, s[I * BLOCK_K + J]);
            s[I * BLOCK_K + J] = fma(query[I * D4 + C].w, x.w, s[I * BLOCK_K + J]);
            // @end
        }
        // @end
        // @end

        // online softmax; s becomes the weights
        var shrink: array<f32, QUERIES>;
        // @unroll I QUERIES
        {
            var top = m[I];
            // @unroll J BLOCK_K
            s[I * BLOCK_K + J] = select(HIDDEN, s[I * BLOCK_K + J], !PARTIAL || start + J < limit[I]);
            top = max(top, s[I * BLOCK_K + J]);
            // @end
            shrink[I] = weight(m[I] - top);
            m[I] = top;
            var sum = 0.0;
            // @unroll J BLOCK_K
            s[I * BLOCK_K + J] = select(0.0, weight(s[I * BLOCK_K + J] - top), !PARTIAL || start + J < limit[I]);
            sum += s[I * BLOCK_K + J];
            // @end
            l[I] = fma(l[I], shrink[I], sum);
        }
        // @end

        // [BLOCK_K, DV4] spread over the lanes
        var values: array<vec4<f32>, V_REGS>;
        // @unroll R V_REGS
        values[R] = v_load4n(min(v_first[R] + v_step, v_last[R]), min(4u, HEAD_DIM_V - chunk_of(R * LANES + lane, DV4)));
        // @end
        // where some row does not see some key, its weight is 0, but 0 * NaN is NaN
        if PARTIAL && start + BLOCK_K > first_limit {
            // @unroll R V_REGS
            values[R] = finite(values[R]);
            // @end
        }
        // @unroll C DV4
        {
            var x: array<vec4<f32>, BLOCK_K>;
            // @unroll J BLOCK_K
            x[J] = subgroupBroadcast(values[(J * DV4 + C) / LANES], (J * DV4 + C) % LANES);
            // @end
            // @unroll I QUERIES
            {
                var sum = acc[I * DV4 + C] * shrink[I];
                // @unroll J BLOCK_K
                sum = fma(vec4<f32>(s[I * BLOCK_K + J]), x[J], sum);
                // @end
                acc[I * DV4 + C] = sum;
            }
            // @end
        }
        // @end
        k_step += BLOCK_K * params.k.y;
        v_step += BLOCK_K * params.v.y;
    }

    // @unroll I QUERIES
    {
        let empty = limit[I] == 0u;
        if first_row + I * WORKGROUP + local < params.seq_q {
            let inverse = select(1.0 / l[I], 0.0, empty);
            let at = batch * params.o.x + row[I] * params.o.y + head * params.o.z + params.o.w;
            // @unroll C DV4
            o_store4n(at + C * 4u, min(4u, HEAD_DIM_V - C * 4u), acc[I * DV4 + C] * inverse);
            // @end
            // m is in base 2; -inf for a row that sees nothing
            let value = m[I] * 0.6931471805599453 + log(select(l[I], 1.0, empty));
            let at_lse = batch * params.lse.x + head * params.lse.y + row[I] * params.lse.z + params.lse.w;
            lse_store_bits(at_lse, select(bitcast<u32>(value), 0xff800000u, empty));
        }
    }
    // @end
}

// 2^x for x <= 0.
fn weight(x: f32) -> f32 {
    if SOFT_EXP2 {
        return exp2_fma(x);
    }
    // far below, where every exp2 gives 0 and none may give anything else
    return exp2(max(x, -200.0));
}

// Infinities and NaN, told by their bits, become 0.
fn finite(x: vec4<f32>) -> vec4<f32> {
    let exponent = bitcast<vec4<u32>>(x) & vec4<u32>(0x7f800000u);
    return select(x, vec4<f32>(0.0), exponent == vec4<u32>(0x7f800000u));
}

// Number of keys, from the first, that query `row` sees.
fn visible_keys(row: u32) -> u32 {
    if !CAUSAL {
        return params.seq_k;
    }
    return u32(clamp(i32(row) + params.diagonal + 1, 0, i32(params.seq_k)));
}

// Row of a block, and first element in it, of the block's chunk `index`, with `chunks` to a row;
// chunks past the block repeat its first.
fn row_of(index: u32, chunks: u32) -> u32 {
    return select(0u, index / chunks, index < BLOCK_K * chunks);
}

fn chunk_of(index: u32, chunks: u32) -> u32 {
    return select(0u, (index % chunks) * 4u, index < BLOCK_K * chunks);
}
