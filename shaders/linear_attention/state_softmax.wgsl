// Softmax over the rows of each column of a state. One invocation owns four columns of one
// (sequence, head)'s state.
//   state [B, H, K, V] f32, in place
// Source: channel group attention, Ding et al. 2022, arXiv:2204.03645, eq. 4. Twin: none; the
// reference is the definition.
const ROWS: u32 = 64u; // @spec
const V: u32 = 64u; // @spec
const V4: u32 = 16u; // @spec

// Must match `linear_attention::SoftmaxParams` (tested). Strides are (batch, head, row, offset),
// in elements.
struct SoftmaxParams {
    state: vec4<u32>,
    heads: u32,
    // batch * heads * V4
    count: u32,
    scale: f32,
    pad: u32,
}
@group(0) @binding(0) var<uniform> params: SoftmaxParams;
@group(0) @binding(1) var<storage, read_write> state: array<vec4<f32>>; fn state_load4n(i: u32, n: u32) -> vec4<f32> { return state[i >> 2u]; } fn state_store4n(i: u32, n: u32, x: vec4<f32>) { state[i >> 2u] = x; } // @tensor

@compute @workgroup_size(64)
fn state_softmax(
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
    let pair = index / V4;
    let at = (pair / params.heads) * params.state.x + (pair % params.heads) * params.state.y
        + params.state.w + column;
    var top = params.scale * state_load4n(at, columns);
    for (var row = 1u; row < ROWS; row++) {
        top = max(top, params.scale * state_load4n(at + row * params.state.z, columns));
    }
    var sum = vec4<f32>(0.0);
    for (var row = 0u; row < ROWS; row++) {
        let x = exp(params.scale * state_load4n(at + row * params.state.z, columns) - top);
        state_store4n(at + row * params.state.z, columns, x);
        sum += x;
    }
    for (var row = 0u; row < ROWS; row++) {
        let x = state_load4n(at + row * params.state.z, columns);
        state_store4n(at + row * params.state.z, columns, x / sum);
    }
}
