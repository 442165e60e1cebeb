// Plain attention, first kernel: every score is computed by one invocation and stored.
//   q [B, T, H, D], k [B, S, Hkv, D], scores [B, H, T, S]
// The baseline that the tiled kernels are measured against.
const HEAD_DIM: u32 = 64u; // @spec

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
    // number of scores
    groups: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>; fn q_load(i: u32) -> f32 { return q[i]; } // @tensor
@group(0) @binding(2) var<storage, read> k: array<f32>; fn k_load(i: u32) -> f32 { return k[i]; } // @tensor
@group(0) @binding(3) var<storage, read_write> scores: array<f32>; fn scores_store(i: u32, x: f32) { scores[i] = x; } // @tensor

@compute @workgroup_size(64)
fn unfused_scores(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = group_index(group_id, group_count) * 64u + lane;
    if item >= params.groups {
        return;
    }
    let key = item % params.seq_k;
    let row = (item / params.seq_k) % params.seq_q;
    let head = (item / (params.seq_k * params.seq_q)) % params.heads;
    let batch = item / (params.seq_k * params.seq_q * params.heads);
    let q_at = batch * params.q.x + row * params.q.y + head * params.q.z + params.q.w;
    let k_at = batch * params.k.x + key * params.k.y + (head / params.group) * params.k.z + params.k.w;
    var s = 0.0;
    for (var c = 0u; c < HEAD_DIM; c++) {
        s = fma(q_load(q_at + c), k_load(k_at + c), s);
    }
    scores_store(item, s * params.scale);
}
