// The first column of every head's circulant matrix: exp(b - largest b that counts) at distance
// s = i - j of query and key, s from 0 on and, from the end, backwards for s < 0; zero between. One
// invocation owns one element.
//   b: [H, 2 N - 1], by key minus query, from -(N - 1) on
//   scratch, at `start_in`: largest b [H]    at `start_out`: [H, L]
const WORKGROUP: u32 = 64u; // @spec
const CAUSAL: bool = false; // @spec

// Must match `relative::Params`. `x`: strides (batch, position, head) and offset of the rows at hand;
// `w`: likewise of directions (head, feature), or of another tensor; `b`: stride of heads and offset;
// `start_q`, `start_in`, `start_out`: first elements in scratch.
struct Params {
    x: vec4<u32>,
    w: vec4<u32>,
    b: vec2<u32>,
    first: u32,
    count: u32,
    heads: u32,
    seq: u32,
    // seq, rounded up to a multiple of 4: positions of features in scratch
    positions: u32,
    key_dim: u32,
    features: u32,
    value_dim: u32,
    length: u32,
    start_q: u32,
    start_in: u32,
    start_out: u32,
    pad: vec2<u32>,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scratch: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>; fn b_load(i: u32) -> f32 { return b[i]; } // @tensor

@compute @workgroup_size(WORKGROUP)
fn circulant(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let t = at % params.length;
    let head = at / params.length;
    let row = params.b.y + head * params.b.x;
    let ahead = t < params.seq;
    let behind = !CAUSAL && t + params.seq > params.length;
    // b's index of distance s is N - 1 - s
    let index = select(params.seq - 1u + (params.length - t), params.seq - 1u - t, ahead);
    var c = 0.0;
    if ahead || behind { c = exp(b_load(row + index) - scratch[params.start_in + head]); }
    scratch[params.start_out + at] = c;
}
