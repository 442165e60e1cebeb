// Scan over the segments of a sequence. One invocation owns four columns of one row of one
// (sequence, head)'s state, and goes through the segments in order: it replaces each segment's
// own state by the state that the segment begins from,
//   S_in[0] = initial,  S_in[n + 1] = e^decay[n] * S_in[n] + S_own[n],
// and stores the last as the final state. Key sums are states of one column.
//   segments [B, H, N, K, V] f32, decays [B, H, N, K] f32, state [B, H, K, V] f32
// Source: operator (a1, S1) o (a2, S2) = (a1 a2, a2 S1 + S2) of the chunked form, Yang et al. 2023,
// arXiv:2312.06635, section 3. Twin: none; the reference is the recurrence.
const ROWS: u32 = 64u; // @spec
const V: u32 = 64u; // @spec
const V4: u32 = 16u; // @spec
const DECAYS: bool = false; // @spec
const LOADS: bool = false; // @spec
const STORES: bool = false; // @spec

// Must match `linear_attention::StateParams` (tested). Strides are (batch, head, row, offset), in
// elements.
struct StateParams {
    state: vec4<u32>,
    heads: u32,
    segments: u32,
    // first elements of the segments' states and decays
    own: u32,
    decays: u32,
    // batch * heads * ROWS * V4
    count: u32,
    // 0, unknown to compilers
    zero: u32,
}
@group(0) @binding(0) var<uniform> params: StateParams;
@group(0) @binding(1) var<storage, read_write> own: array<vec4<f32>>; fn own_load4n(i: u32, n: u32) -> vec4<f32> { return own[i >> 2u]; } fn own_store4n(i: u32, n: u32, x: vec4<f32>) { own[i >> 2u] = x; } // @tensor
@group(0) @binding(2) var<storage, read_write> decays: array<f32>; fn decays_load(i: u32) -> f32 { return decays[i]; } // @tensor
@group(0) @binding(3) var<storage, read_write> state: array<vec4<f32>>; fn state_load4n(i: u32, n: u32) -> vec4<f32> { return state[i >> 2u]; } fn state_store4n(i: u32, n: u32, x: vec4<f32>) { state[i >> 2u] = x; } // @tensor

@compute @workgroup_size(64)
fn state_pass(
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
    let at = (pair / params.heads) * params.state.x + (pair % params.heads) * params.state.y
        + row * params.state.z + params.state.w + column;
    var carry = vec4<f32>(0.0);
    if LOADS {
        carry = state_load4n(at, columns);
    }
    for (var n = 0u; n < params.segments; n++) {
        let line = (pair * params.segments + n) * ROWS + row;
        let place = params.own + line * V + column;
        let mine = own_load4n(place, columns);
        own_store4n(place, columns, carry);
        if DECAYS {
            carry = decay_apply(carry, decay_parts(decays_load(params.decays + line)), mine, params.zero);
        } else {
            carry += mine;
        }
    }
    if STORES {
        state_store4n(at, columns, carry);
    }
}
