// Plain attention, third kernel: one invocation for one element of the output.
//   v [B, S, Hkv, Dv], o [B, T, H, Dv], scores [B, H, T, S], by now weights
const HEAD_DIM_V: u32 = 64u; // @spec
const CAUSAL: bool = false; // @spec

// Must match `attention::UnfusedParams` (tested). Strides are (batch, seq, head, offset), in elements.
struct Params {
    q: vec4<u32>,
    k: vec4<u32>,
    v: vec4<u32>,
    o: vec4<u32>,
    lse: vec4<u32>,
    seq_q: u32,
    seq_k: u32,
    heads: u32,
    group: u32,
    diagonal: i32,
    scale: f32,
    blocks_q: u32,
    // number of elements
    groups: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> v: array<f32>; fn v_load(i: u32) -> f32 { return v[i]; } // @tensor
@group(0) @binding(2) var<storage, read_write> o: array<f32>; fn o_store(i: u32, x: f32) { o[i] = x; } // @tensor
@group(0) @binding(3) var<storage, read_write> scores: array<f32>; fn scores_load(i: u32) -> f32 { return scores[i]; } // @tensor

@compute @workgroup_size(64)
fn unfused_values(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = group_index(group_id, group_count) * 64u + lane;
    if item >= params.groups {
        return;
    }
    let c = item % HEAD_DIM_V;
    let row = (item / HEAD_DIM_V) % params.seq_q;
    let head = (item / (HEAD_DIM_V * params.seq_q)) % params.heads;
    let batch = item / (HEAD_DIM_V * params.seq_q * params.heads);
    let at = (item / HEAD_DIM_V) * params.seq_k;
    // hidden keys are not read: their weight is 0, but 0 * NaN is NaN
    var limit = params.seq_k;
    if CAUSAL {
        limit = u32(clamp(i32(row) + params.diagonal + 1, 0, i32(params.seq_k)));
    }
    let v_at = batch * params.v.x + (head / params.group) * params.v.z + params.v.w + c;
    var acc = 0.0;
    for (var j = 0u; j < limit; j++) {
        acc = fma(scores_load(at + j), v_load(v_at + j * params.v.y), acc);
    }
    o_store(batch * params.o.x + row * params.o.y + head * params.o.z + params.o.w + c, acc);
}
