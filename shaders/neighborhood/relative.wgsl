// Dot products of every query with every row of the relative tables, for a factorised bias: one
// invocation owns one (token, head) and row. `fused.wgsl` then looks a score's bias up.
//   q [B, .., H, D], tables [R, D], out [B * tokens * H, R], where R = sum of 2 * kernel - 1
// Source: Vaswani et al. 2021, arXiv:2103.12731. Twin: none; the output is a part of the op's.
const HEAD_DIM: u32 = 64u; // @spec
const D4: u32 = 16u; // @spec
const WORKGROUP: u32 = 64u; // @spec
// indices of unrolled blocks
const C: u32 = 0u;

// Must match `neighborhood::RelativeParams` (tested). Axes are in the order a, b, c.
struct Params {
    // tokens along the axes, batch
    tokens: vec4<u32>,
    // strides along the axes and the batch
    q_axes: vec4<u32>,
    // stride of a head, offset; stride of a table row, offset
    heads: vec4<u32>,
    // (query heads, rows, invocations)
    count: vec4<u32>,
    // the scale of the scores, or 1
    scale: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; fn q_load4n(i: u32, n: u32) -> vec4<f32> { return q[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>; fn table_load4n(i: u32, n: u32) -> vec4<f32> { return table[i >> 2u]; } // @tensor
@group(0) @binding(3) var<storage, read_write> products: array<f32>; fn products_store(i: u32, x: f32) { products[i] = x; } // @tensor

@compute @workgroup_size(WORKGROUP)
fn relative(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = group_index(group_id, group_count) * WORKGROUP + local;
    if index >= params.count.z {
        return;
    }
    let row = index % params.count.y;
    let number = index / params.count.y;
    let head = number % params.count.x;
    var rest = number / params.count.x;
    let c = rest % params.tokens.z;
    rest /= params.tokens.z;
    let b = rest % params.tokens.y;
    rest /= params.tokens.y;
    let place = vec3<u32>(rest % params.tokens.x, b, c);
    let batch = rest / params.tokens.x;
    let q_at = dot(params.q_axes.xyz, place) + batch * params.q_axes.w + head * params.heads.x + params.heads.y;
    let table_at = row * params.heads.z + params.heads.w;
    var sum = 0.0;
    // @unroll C D4
    sum += dot(
        q_load4n(q_at + C * 4u, min(4u, HEAD_DIM - C * 4u)),
        table_load4n(table_at + C * 4u, min(4u, HEAD_DIM - C * 4u)),
    );
    // @end
    products_store(index, sum * params.scale);
}
