// Copies states, or fills them with zero. One invocation moves four columns of one row.
//   from, to [B, H, K, V] f32; key sums are states of one column
// Twin: none, a copy.
const ROWS: u32 = 64u; // @spec
const V: u32 = 64u; // @spec
const V4: u32 = 16u; // @spec
const ZERO: bool = false; // @spec

// Must match `linear_attention::CopyParams` (tested). Strides are (batch, head, row, offset), in
// elements.
struct CopyParams {
    src: vec4<u32>,
    dst: vec4<u32>,
    heads: u32,
    // batch * heads * ROWS * V4
    count: u32,
}
@group(0) @binding(0) var<uniform> params: CopyParams;
@group(0) @binding(1) var<storage, read_write> src: array<vec4<f32>>; fn src_load4n(i: u32, n: u32) -> vec4<f32> { return src[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read_write> dst: array<vec4<f32>>; fn dst_store4n(i: u32, n: u32, x: vec4<f32>) { dst[i >> 2u] = x; } // @tensor

@compute @workgroup_size(64)
fn state_init(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = group_index(group_id, group_count) * 64u + local;
    if index >= params.count {
        return;
    }
    let column = (index % V4) * 4u;
    let columns = min(4u, V - column);
    let row = (index / V4) % ROWS;
    let pair = index / (V4 * ROWS);
    let b = pair / params.heads;
    let h = pair % params.heads;
    var x = vec4<f32>(0.0);
    if !ZERO {
        x = src_load4n(b * params.src.x + h * params.src.y + row * params.src.z + params.src.w + column, columns);
    }
    dst_store4n(b * params.dst.x + h * params.dst.y + row * params.dst.z + params.dst.w + column, columns, x);
}
