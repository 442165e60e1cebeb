// Which rows are to be made again exactly: 1 where what transforms may have added to the denominator
// and to the numerators, as an L2 norm over their channels, each over its size, is more than 1e-4, or
// NaN, or where a sum is not finite, or so small that products may have been flushed to 0; else 0.
// One invocation owns one query.
//   scratch, at `start_q`: features of queries [rows, M, positions]
//   scratch, at `start_in`: [rows, M (V + 1), L], with the row's sums as `contract` left them
//   scratch, at `w.w`: bounds [rows, M] pairs    at `start_out`: [rows, positions]
const WORKGROUP: u32 = 64u; // @spec
// For numerators and denominator together.
const TARGET: f32 = 1e-4;
const LARGE: f32 = 3e38;
const SMALL: f32 = 1e-30;

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
fn judge(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let t = at % params.positions;
    let row = at / params.positions;
    // past the last query there is nothing to make
    if t >= params.seq {
        scratch[params.start_out + at] = 0.0;
        return;
    }
    let from_q = params.start_q + row * params.features * params.positions + t;
    let from_bound = params.w.w + 2u * row * params.features;
    var lost_above = 0.0;
    var lost_below = 0.0;
    for (var m = 0u; m < params.features; m++) {
        let phi = abs(scratch[from_q + m * params.positions]);
        lost_below = fma(phi, scratch[from_bound + 2u * m], lost_below);
        lost_above = fma(phi, scratch[from_bound + 2u * m + 1u], lost_above);
    }
    let width = params.value_dim + 1u;
    let first = params.start_in + row * params.features * width * params.length + params.seq + t;
    let below = scratch[first + params.value_dim * params.length];
    var top = 0.0;
    for (var e = 0u; e < params.value_dim; e++) {
        top = max(top, abs(scratch[first + e * params.length]));
    }
    var sum = 0.0;
    for (var e = 0u; e < params.value_dim; e++) {
        let x = scratch[first + e * params.length] / max(top, 1e-37);
        sum = fma(x, x, sum);
    }
    let above = top * sqrt(sum);
    // no quotient of what is out of range
    let sound = below >= SMALL && below <= LARGE && above >= SMALL && above <= LARGE;
    let good = sound && lost_below / max(below, SMALL) + lost_above / max(above, SMALL) <= TARGET;
    scratch[params.start_out + at] = select(1.0, 0.0, good);
}
