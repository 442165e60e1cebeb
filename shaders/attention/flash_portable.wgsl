// FlashAttention-2 forward, portable tier: plain WGSL, no subgroups.
// One workgroup owns WORKGROUP * QUERIES consecutive query rows of one (batch, head); one
// invocation owns QUERIES of them (row = first + i * WORKGROUP + lane) and keeps their queries,
// running maxima, sums and outputs in registers. Keys pass in tiles of TILE_K, staged in workgroup
// memory where STAGED, else read from where they are (a CPU gains nothing from a copy); a tile
// passes in blocks of BLOCK_K, one correction of the running maximum each.
//   q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv], o [B, T, H, Dv], lse [B, H, T]
// Source: Dao 2023, arXiv:2307.08691, Algorithm 1. Twin: none; the reference is the whole op.
const HEAD_DIM: u32 = 64u; // @spec
const HEAD_DIM_V: u32 = 64u; // @spec
const D4: u32 = 16u; // @spec
const DV4: u32 = 16u; // @spec
const WORKGROUP: u32 = 32u; // @spec
const QUERIES: u32 = 4u; // @spec
const BLOCK_K: u32 = 4u; // @spec
const TILE_K: u32 = 32u; // @spec
const STAGED: bool = true; // @spec
// vec4s that one invocation stages
const K_STAGE: u32 = 16u; // @spec
const V_STAGE: u32 = 16u; // @spec
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

// [TILE_K, D4] and [TILE_K, DV4]; one element where nothing is staged
const STAGE: u32 = select(0u, 1u, STAGED);
var<workgroup> k_tile: array<vec4<f32>, STAGE * TILE_K * D4 + 1u - STAGE>;
var<workgroup> v_tile: array<vec4<f32>, STAGE * TILE_K * DV4 + 1u - STAGE>;

// below every real score, and finite: WGSL may assume that infinities do not occur
const HIDDEN: f32 = -1e30;

@compute @workgroup_size(WORKGROUP)
fn flash_portable(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = group_index(group_id, group_count);
    if group >= params.groups {
        return;
    }
    let block = group % params.blocks_q;
    let head = (group / params.blocks_q) % params.heads;
    let batch = group / (params.blocks_q * params.heads);
    let head_kv = head / params.group;

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

    for (var tile = 0u; tile < last; tile += TILE_K) {
        if STAGED {
            workgroupBarrier();
            // written out: on some drivers loop trips are counted
            // @unroll R K_STAGE
            if R * WORKGROUP + local < TILE_K * D4 {
                let i = R * WORKGROUP + local;
                k_tile[i] = k_row(k_base, tile + i / D4, i % D4);
            }
            // @end
            // @unroll R V_STAGE
            if R * WORKGROUP + local < TILE_K * DV4 {
                let i = R * WORKGROUP + local;
                v_tile[i] = v_row(v_base, tile + i / DV4, i % DV4);
            }
            // @end
            workgroupBarrier();
        }
        for (var block = 0u; block < min(TILE_K, last - tile); block += BLOCK_K) {
            let start = tile + block;
            var s: array<f32, QUERIES * BLOCK_K>;
            // @unroll I QUERIES
            // @unroll J BLOCK_K
            s[I * BLOCK_K + J] = 0.0;
            // @end
            // @end
            // @unroll C D4
            // @unroll J BLOCK_K
            {
                let x = k_at(k_base, tile, block + J, C);
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

            // where some row does not see some key, its weight is 0, but 0 * NaN is NaN
            let partial = PARTIAL && start + BLOCK_K > first_limit;
            // @unroll C DV4
            {
                var x: array<vec4<f32>, BLOCK_K>;
                // @unroll J BLOCK_K
                x[J] = v_at(v_base, tile, block + J, C);
                // @end
                if partial {
                    // @unroll J BLOCK_K
                    x[J] = finite(x[J]);
                    // @end
                }
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
        }
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

// Chunk `chunk` of key row `key`; rows past the end repeat the last.
fn k_row(base: u32, key: u32, chunk: u32) -> vec4<f32> {
    let at = base + min(key, params.seq_k - 1u) * params.k.y + chunk * 4u;
    return k_load4n(at, min(4u, HEAD_DIM - chunk * 4u));
}

// The same of a value row.
fn v_row(base: u32, key: u32, chunk: u32) -> vec4<f32> {
    let at = base + min(key, params.seq_k - 1u) * params.v.y + chunk * 4u;
    return v_load4n(at, min(4u, HEAD_DIM_V - chunk * 4u));
}

// Chunk of row `j` of the tile that begins at key `tile`, from where it is.
fn k_at(base: u32, tile: u32, j: u32, chunk: u32) -> vec4<f32> {
    if STAGED {
        return k_tile[j * D4 + chunk];
    }
    return k_row(base, tile + j, chunk);
}

fn v_at(base: u32, tile: u32, j: u32, chunk: u32) -> vec4<f32> {
    if STAGED {
        return v_tile[j * DV4 + chunk];
    }
    return v_row(base, tile + j, chunk);
}
