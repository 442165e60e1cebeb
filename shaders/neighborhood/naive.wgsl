// Naive neighborhood attention: one invocation owns one query of one head and gathers the keys of
// its window one by one. The baseline and second opinion of `fused.wgsl`, with the same meaning.
//   q [B, .., H, D], k [B, .., Hkv, D], v [B, .., Hkv, Dv], o [B, .., H, Dv], lse [B, .., H]
// Source: Hassani et al. 2024, arXiv:2403.04690. Twin: none; the reference is the whole op.
const HEAD_DIM: u32 = 64u; // @spec
const HEAD_DIM_V: u32 = 64u; // @spec
const D4: u32 = 16u; // @spec
const DV4: u32 = 16u; // @spec
const WORKGROUP: u32 = 64u; // @spec
// 0 none, 1 a table, 2 the query's dot products with rows of tables
const BIAS: u32 = 0u; // @spec
// the factor of those dot products: the scale of the scores, or 1
const BIAS_SCALED: bool = false; // @spec
// indices of unrolled blocks
const C: u32 = 0u;

// Must match `neighborhood::Params` (tested). Axes are in the order a, b, c; strides in elements.
struct Params {
    // tokens along the axes, batch
    tokens: vec4<u32>,
    // kernel size, extra tokens
    kernel: vec4<i32>,
    // queries that share a window
    stride: vec4<i32>,
    dilation: vec4<u32>,
    // of lib/window.wgsl
    rule: vec4<i32>,
    // queries of a workgroup
    tile: vec4<i32>,
    // tiles of the longest dilation group; workgroups in all
    tiles: vec4<u32>,
    // strides along the axes and the batch
    q_axes: vec4<u32>,
    k_axes: vec4<u32>,
    v_axes: vec4<u32>,
    o_axes: vec4<u32>,
    lse_axes: vec4<u32>,
    // (head stride, offset) of q, k; of v, o; of lse
    qk_head: vec4<u32>,
    vo_head: vec4<u32>,
    // then heads, query heads for each key head
    lse_head: vec4<u32>,
    // strides (batch, token, head, offset) of the extra keys and values
    extra_k: vec4<u32>,
    extra_v: vec4<u32>,
    // of a table: the step of one token along each axis; of rows: where each axis begins
    bias_axes: vec4<i32>,
    // (stride of a head, of a row; offset)
    bias_rows: vec4<u32>,
    // scale * log2(e): scores are kept in base 2
    scale: f32,
    // groups of queries whose sums may be formed anew, in the fused kernel
    again: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; fn q_load4n(i: u32, n: u32) -> vec4<f32> { return q[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>; fn k_load4n(i: u32, n: u32) -> vec4<f32> { return k[i >> 2u]; } // @tensor
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; fn v_load4n(i: u32, n: u32) -> vec4<f32> { return v[i >> 2u]; } // @tensor
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>; fn o_store4n(i: u32, n: u32, x: vec4<f32>) { o[i >> 2u] = x; } // @tensor
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; fn lse_store(i: u32, x: f32) { lse[i] = x; } // @tensor
@group(0) @binding(6) var<storage, read> extra_k: array<vec4<f32>>; fn extra_k_load4n(i: u32, n: u32) -> vec4<f32> { return extra_k[i >> 2u]; } // @tensor
@group(0) @binding(7) var<storage, read> extra_v: array<vec4<f32>>; fn extra_v_load4n(i: u32, n: u32) -> vec4<f32> { return extra_v[i >> 2u]; } // @tensor
@group(0) @binding(8) var<storage, read> bias: array<f32>; fn bias_load(i: u32) -> f32 { return bias[i]; } fn bias_load4n(i: u32, n: u32) -> vec4<f32> { return vec4<f32>(bias[i], 0.0, 0.0, 0.0); } // @tensor

// what scores count for at least, where maxima begin, and at most; finite, for WGSL may assume that
// infinities do not occur
const LEAST: f32 = -3e38;
const MOST: f32 = 3e38;
const LOG2_E: f32 = 1.4426950408889634;

@compute @workgroup_size(WORKGROUP)
fn naive(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let heads = params.lse_head.z;
    let map = params.tokens.x * params.tokens.y * params.tokens.z;
    let index = group_index(group_id, group_count) * WORKGROUP + local;
    if index >= params.tokens.w * map * heads {
        return;
    }
    let within = index % map;
    let token = vec3<u32>(
        within / (params.tokens.y * params.tokens.z),
        (within / params.tokens.z) % params.tokens.y,
        within % params.tokens.z,
    );
    let head = (index / map) % heads;
    let batch = index / (map * heads);
    let head_kv = head / params.lse_head.w;

    let residue = token % params.dilation.xyz;
    let u = vec3<i32>(token / params.dilation.xyz);
    let length = vec3<i32>(params.tokens.xyz / params.dilation.xyz)
        + select(vec3<i32>(0), vec3<i32>(1), residue < params.tokens.xyz % params.dilation.xyz);
    var begin: vec3<i32>;
    var end: vec3<i32>;
    for (var axis = 0u; axis < 3u; axis++) {
        begin[axis] = window_start(u[axis], length[axis], params.kernel[axis], params.stride[axis], params.rule[axis]);
        end[axis] = window_end(u[axis], length[axis], params.kernel[axis], params.stride[axis], params.rule[axis]);
    }

    let q_at = dot(params.q_axes.xyz, token) + batch * params.q_axes.w + head * params.qk_head.x + params.qk_head.y;
    let k_base = batch * params.k_axes.w + head_kv * params.qk_head.z + params.qk_head.w;
    let v_base = batch * params.v_axes.w + head_kv * params.vo_head.x + params.vo_head.y;
    var query: array<vec4<f32>, D4>;
    var acc: array<vec4<f32>, DV4>;
    // @unroll C D4
    query[C] = params.scale * q_load4n(q_at + C * 4u, min(4u, HEAD_DIM - C * 4u));
    // @end
    // @unroll C DV4
    acc[C] = vec4<f32>(0.0);
    // @end
    var m = LEAST;
    var l = 0.0;

    let size = end - begin;
    let keys = size.x * size.y * size.z;
    var key = begin;
    for (var n = 0; n < keys + params.kernel.w; n++) {
        // with zeros beyond the border a key can be off the map
        let inside = all(key >= vec3<i32>(0)) && all(key < length);
        let place = residue + vec3<u32>(clamp(key, vec3<i32>(0), length - 1)) * params.dilation.xyz;
        var score = 0.0;
        if n < keys {
            let at = k_base + dot(params.k_axes.xyz, place);
            // @unroll C D4
            score += dot(query[C], k_load4n(at + C * 4u, min(4u, HEAD_DIM - C * 4u)));
            // @end
            score = select(0.0, score, inside);
            let offset = key - u + params.kernel.xyz - 1;
            if BIAS == 1u {
                let row = u32(dot(offset, params.bias_axes.xyz));
                score += LOG2_E * bias_load(head * params.bias_rows.x + row + params.bias_rows.z);
            }
            if BIAS == 2u {
                var product = 0.0;
                for (var axis = 0u; axis < 3u; axis++) {
                    let row = u32(params.bias_axes[axis] + offset[axis]);
                    let row_at = row * params.bias_rows.y + params.bias_rows.z;
                    // an axis without a table has a negative begin
                    if params.bias_axes[axis] >= 0 {
                        // @unroll C D4
                        product += dot(
                            q_load4n(q_at + C * 4u, min(4u, HEAD_DIM - C * 4u)),
                            bias_load4n(row_at + C * 4u, min(4u, HEAD_DIM - C * 4u)),
                        );
                        // @end
                    }
                }
                score += select(LOG2_E, params.scale, BIAS_SCALED) * product;
            }
        } else {
            let at = batch * params.extra_k.x + u32(n - keys) * params.extra_k.y + head_kv * params.extra_k.z
                + params.extra_k.w;
            // @unroll C D4
            score += dot(query[C], extra_k_load4n(at + C * 4u, min(4u, HEAD_DIM - C * 4u)));
            // @end
        }

        score = at_least(select(score, MOST, score > MOST), LEAST);
        let top = max(m, score);
        let shrink = exp2_weight(m - top, false);
        let weight = exp2_unit(score - top, false);
        m = top;
        l = fma(l, shrink, weight);
        if n < keys {
            let at = v_base + dot(params.v_axes.xyz, place);
            // @unroll C DV4
            {
                let x = v_load4n(at + C * 4u, min(4u, HEAD_DIM_V - C * 4u));
                acc[C] = fma(vec4<f32>(weight), select(vec4<f32>(0.0), x, inside), acc[C] * shrink);
            }
            // @end
        } else {
            let at = batch * params.extra_v.x + u32(n - keys) * params.extra_v.y + head_kv * params.extra_v.z
                + params.extra_v.w;
            // @unroll C DV4
            {
                let x = extra_v_load4n(at + C * 4u, min(4u, HEAD_DIM_V - C * 4u));
                acc[C] = fma(vec4<f32>(weight), x, acc[C] * shrink);
            }
            // @end
        }

        // the next key of the window
        key.z += 1;
        if key.z == end.z {
            key.z = begin.z;
            key.y += 1;
        }
        if key.y == end.y {
            key.y = begin.y;
            key.x += 1;
        }
    }

    let o_at = dot(params.o_axes.xyz, token) + batch * params.o_axes.w + head * params.vo_head.z + params.vo_head.w;
    // @unroll C DV4
    o_store4n(o_at + C * 4u, min(4u, HEAD_DIM_V - C * 4u), acc[C] / l);
    // @end
    let lse_at = dot(params.lse_axes.xyz, token) + batch * params.lse_axes.w + head * params.lse_head.x
        + params.lse_head.y;
    // m is in base 2
    lse_store(lse_at, m * 0.6931471805599453 + log(l * WEIGHT_UNITS));
}
