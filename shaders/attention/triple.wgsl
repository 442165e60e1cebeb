// Attention over pairs of keys: s_ijk = scale * sum_c q_ic k1_jc k2_kc, softmax over all (j, k),
// o_i = sum_jk p_ijk (v1_j * v2_k). For each j this is attention of the query q_i * k1_j over k2 and v2,
// whose output is multiplied by v1_j; the slices are joined by the online softmax.
// One invocation owns one query of one head.
//   q [B, T, H, D], k1 [B, S1, Hkv, D], k2 [B, S2, Hkv, D], v1 [B, S1, Hkv, Dv], v2 [B, S2, Hkv, Dv]
// Source: arXiv:2310.04064, definition 1.2. Twin: none; the reference is the whole op.
const HEAD_DIM: u32 = 16u; // @spec
const HEAD_DIM_V: u32 = 16u; // @spec
const D4: u32 = 4u; // @spec
const DV4: u32 = 4u; // @spec
// keys of the inner set that pass between two corrections of the maximum
const BLOCK: u32 = 4u; // @spec
const CAUSAL: bool = true; // @spec
const C: u32 = 0u;
const J: u32 = 0u;

// Must match `attention::triple::Params` (tested). Strides are (batch, seq, head, offset).
struct Params {
    q: vec4<u32>,
    k1: vec4<u32>,
    k2: vec4<u32>,
    v1: vec4<u32>,
    v2: vec4<u32>,
    o: vec4<u32>,
    // (batch, head, seq, offset)
    lse: vec4<u32>,
    seq_q: u32,
    seq_1: u32,
    seq_2: u32,
    heads: u32,
    group: u32,
    items: u32,
    // scale * log2(e)
    scale: f32,
    unused: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; fn q_load4n(i: u32, n: u32) -> vec4<f32> { return q[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read> k1: array<vec4<f32>>; fn k1_load4n(i: u32, n: u32) -> vec4<f32> { return k1[i >> 2u]; } // @tensor
@group(0) @binding(3) var<storage, read> k2: array<vec4<f32>>; fn k2_load4n(i: u32, n: u32) -> vec4<f32> { return k2[i >> 2u]; } // @tensor
@group(0) @binding(4) var<storage, read> v1: array<vec4<f32>>; fn v1_load4n(i: u32, n: u32) -> vec4<f32> { return v1[i >> 2u]; } // @tensor
@group(0) @binding(5) var<storage, read> v2: array<vec4<f32>>; fn v2_load4n(i: u32, n: u32) -> vec4<f32> { return v2[i >> 2u]; } // @tensor
@group(0) @binding(6) var<storage, read_write> o: array<vec4<f32>>; fn o_store4n(i: u32, n: u32, x: vec4<f32>) { o[i >> 2u] = x; } // @tensor
@group(0) @binding(7) var<storage, read_write> lse: array<f32>; fn lse_store_bits(i: u32, x: u32) { lse[i] = bitcast<f32>(x); } // @tensor

// below every real score, and finite; and what scores count for at least, where maxima begin
const HIDDEN: f32 = -3.3e38;
const LEAST: f32 = -3e38;

@compute @workgroup_size(32)
fn triple(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let item = group_index(group_id, group_count) * 32u + local;
    if item >= params.items {
        return;
    }
    let row = item % params.seq_q;
    let head = (item / params.seq_q) % params.heads;
    let batch = item / (params.seq_q * params.heads);
    let head_kv = head / params.group;
    let q_at = batch * params.q.x + row * params.q.y + head * params.q.z + params.q.w;
    let k1_at = batch * params.k1.x + head_kv * params.k1.z + params.k1.w;
    let k2_at = batch * params.k2.x + head_kv * params.k2.z + params.k2.w;
    let v1_at = batch * params.v1.x + head_kv * params.v1.z + params.v1.w;
    let v2_at = batch * params.v2.x + head_kv * params.v2.z + params.v2.w;
    // with a causal mask a query sees the pairs of which neither is after it
    let seq_1 = select(params.seq_1, min(params.seq_1, row + 1u), CAUSAL);
    let seq_2 = select(params.seq_2, min(params.seq_2, row + 1u), CAUSAL);

    var query: array<vec4<f32>, D4>;
    // @unroll C D4
    query[C] = params.scale * q_load4n(q_at + C * 4u, min(4u, HEAD_DIM - C * 4u));
    // @end
    var m = LEAST;
    var l = 0.0;
    var acc: array<vec4<f32>, DV4>;
    // @unroll C DV4
    acc[C] = vec4<f32>(0.0);
    // @end
    for (var j = 0u; j < seq_1; j++) {
        var modified: array<vec4<f32>, D4>;
        // @unroll C D4
        modified[C] = query[C] * k1_load4n(k1_at + j * params.k1.y + C * 4u, min(4u, HEAD_DIM - C * 4u));
        // @end
        var first: array<vec4<f32>, DV4>;
        // @unroll C DV4
        first[C] = v1_load4n(v1_at + j * params.v1.y + C * 4u, min(4u, HEAD_DIM_V - C * 4u));
        // @end
        for (var start = 0u; start < seq_2; start += BLOCK) {
            var s: array<f32, BLOCK>;
            var top = m;
            // @unroll J BLOCK
            {
                let at = k2_at + min(start + J, seq_2 - 1u) * params.k2.y;
                var sum = 0.0;
                // @unroll C D4
                sum += dot(modified[C], k2_load4n(at + C * 4u, min(4u, HEAD_DIM - C * 4u)));
                // @end
                s[J] = select(HIDDEN, at_least(sum, LEAST), start + J < seq_2);
                top = max(top, s[J]);
            }
            // @end
            let shrink = exp2_weight(m - top, false);
            m = top;
            var total = 0.0;
            // @unroll J BLOCK
            s[J] = exp2_unit(s[J] - top, false);
            total += s[J];
            // @end
            l = fma(l, shrink, total);
            // @unroll C DV4
            {
                var sum = vec4<f32>(0.0);
                // @unroll J BLOCK
                sum = fma(vec4<f32>(s[J]), v2_load4n(v2_at + min(start + J, seq_2 - 1u) * params.v2.y + C * 4u, min(4u, HEAD_DIM_V - C * 4u)), sum);
                // @end
                acc[C] = fma(first[C], sum, acc[C] * shrink);
            }
            // @end
        }
    }
    let empty = l == 0.0;
    let inverse = select(1.0 / l, 0.0, empty);
    let at = batch * params.o.x + row * params.o.y + head * params.o.z + params.o.w;
    // @unroll C DV4
    o_store4n(at + C * 4u, min(4u, HEAD_DIM_V - C * 4u), acc[C] * inverse);
    // @end
    let value = m * 0.6931471805599453 + log(select(l * WEIGHT_UNITS, 1.0, empty));
    lse_store_bits(
        batch * params.lse.x + head * params.lse.y + row * params.lse.z + params.lse.w,
        select(bitcast<u32>(value), 0xff800000u, empty),
    );
}
