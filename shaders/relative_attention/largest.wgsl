// The largest b of every head, of the positions that count. One workgroup owns one head.
//   b: [H, 2 N - 1], by key minus query, from -(N - 1) on    scratch, at `start_out`: [H]
const WORKGROUP: u32 = 256u; // @spec
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

var<workgroup> tops: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn largest(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    // the last workgroups of a folded dispatch repeat the last head
    let head = min(group_index(group, groups), params.heads - 1u);
    let row = params.b.y + head * params.b.x;
    // keys after the query do not count where the mask is causal
    let used = select(2u * params.seq - 1u, params.seq, CAUSAL);
    var top = -3.4e38;
    for (var i = local; i < used; i += WORKGROUP) { top = max(top, b_load(row + i)); }
    tops[local] = top;
    workgroupBarrier();
    for (var i = 0u; i < WORKGROUP; i++) { top = max(top, tops[i]); }
    // several workgroups may write the same number
    if local == 0u { scratch[params.start_out + head] = top; }
}
