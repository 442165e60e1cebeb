// What transforms may add to sums over one feature, the same for every position: for the denominator,
// and for the numerators as the L2 norm over their channels. One invocation owns one feature.
//   scratch, at `start_q`: norms of the circulants [H]
//   scratch, at `start_in`: norms of the columns [rows, M (V + 1)], rows (batch, head) from `first` on
//   scratch, at `start_out`: [rows, M] pairs
const WORKGROUP: u32 = 64u; // @spec
// Of one sum, over norm times norm and the root of the number of stages: rounding, by what is measured
// with room (tested).
const ROUNDING: f32 = 2.0 * 5.9604645e-8;
// What a sum may lose to numbers so small that a device takes them for 0, be it all of them.
const FLUSHED: f32 = 1e-28;

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

@compute @workgroup_size(WORKGROUP)
fn bounds(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let head = (params.first + at / params.features) % params.heads;
    let norm = scratch[params.start_q + head];
    let each = ROUNDING * sqrt(log2(f32(params.length))) * norm;
    let first = params.start_in + at * (params.value_dim + 1u);
    var top = 0.0;
    for (var e = 0u; e < params.value_dim; e++) { top = max(top, scratch[first + e]); }
    var sum = 0.0;
    for (var e = 0u; e < params.value_dim; e++) {
        let x = scratch[first + e] / max(top, 1e-37);
        sum = fma(x, x, sum);
    }
    let above = top * sqrt(sum);
    let below = scratch[first + params.value_dim];
    scratch[params.start_out + 2u * at] = fma(each, below, FLUSHED);
    scratch[params.start_out + 2u * at + 1u] = fma(each, above, FLUSHED);
}
