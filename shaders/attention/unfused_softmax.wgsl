// Plain attention, second kernel: one invocation turns one row of scores into weights.
//   scores [B, H, T, S], lse [B, H, T]
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
    // number of rows
    groups: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> lse: array<f32>; fn lse_store_bits(i: u32, x: u32) { lse[i] = bitcast<f32>(x); } // @tensor
@group(0) @binding(2) var<storage, read_write> scores: array<f32>; fn scores_load(i: u32) -> f32 { return scores[i]; } fn scores_store(i: u32, x: f32) { scores[i] = x; } // @tensor

@compute @workgroup_size(64)
fn unfused_softmax(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = group_index(group_id, group_count) * 64u + lane;
    if item >= params.groups {
        return;
    }
    let row = item % params.seq_q;
    let head = (item / params.seq_q) % params.heads;
    let batch = item / (params.seq_q * params.heads);
    let at = item * params.seq_k;
    var limit = params.seq_k;
    if CAUSAL {
        limit = u32(clamp(i32(row) + params.diagonal + 1, 0, i32(params.seq_k)));
    }
    // below every real score, and finite
    var top = -3e38;
    for (var j = 0u; j < limit; j++) {
        top = max(top, scores_load(at + j));
    }
    var sum = 0.0;
    for (var j = 0u; j < limit; j++) {
        let p = exp2_weight(scores_load(at + j) - top, false);
        scores_store(at + j, p);
        sum += p;
    }
    let empty = limit == 0u;
    let inverse = select(1.0 / sum, 0.0, empty);
    for (var j = 0u; j < params.seq_k; j++) {
        scores_store(at + j, select(0.0, scores_load(at + j) * inverse, j < limit));
    }
    let value = top * 0.6931471805599453 + log(select(sum, 1.0, empty));
    let lse_at = batch * params.lse.x + head * params.lse.y + row * params.lse.z + params.lse.w;
    lse_store_bits(lse_at, select(bitcast<u32>(value), 0xff800000u, empty));
}
