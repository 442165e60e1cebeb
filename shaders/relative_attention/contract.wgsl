// Sums over the features, and their quotient. One invocation owns one channel of one query.
//   scratch, at `start_q`: features of queries [rows, M, positions]
//   scratch, at `start_in`: [rows, M (V + 1), L], rows (batch, head) from `first` on
//   o: output [B, N, H, V]
// Where rows are checked the sums stay in scratch for it: behind the last position of the first
// feature's columns, where the transforms left nothing of use.
const WORKGROUP: u32 = 64u; // @spec
const CHECKED: bool = true; // @spec

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
@group(0) @binding(2) var<storage, read_write> o: array<f32>; fn o_store(i: u32, v: f32) { o[i] = v; } // @tensor

@compute @workgroup_size(WORKGROUP)
fn contract(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let e = at % params.value_dim;
    let t = at / params.value_dim % params.seq;
    let chunk_row = at / params.value_dim / params.seq;
    let row = params.first + chunk_row;
    let base_q = params.start_q + chunk_row * params.features * params.positions + t;
    let width = params.value_dim + 1u;
    let base = params.start_in + chunk_row * params.features * width * params.length + t;
    var above = 0.0;
    var below = 0.0;
    for (var m = 0u; m < params.features; m++) {
        let phi = scratch[base_q + m * params.positions];
        above = fma(phi, scratch[base + (m * width + e) * params.length], above);
        below = fma(phi, scratch[base + (m * width + params.value_dim) * params.length], below);
    }
    if CHECKED {
        scratch[base + e * params.length + params.seq] = above;
        if e == 0u { scratch[base + params.value_dim * params.length + params.seq] = below; }
    }
    let batch = row / params.heads;
    let head = row % params.heads;
    // positive but for rounding
    let quotient = above / max(below, 1e-37);
    o_store(params.x.w + batch * params.x.x + t * params.x.y + head * params.x.z + e, quotient);
}
