// The L2 norm of the first `seq` numbers of lines of `length`. One workgroup owns one line.
//   scratch, at `start_in`: lines [count, length]    at `start_out`: [count]
// Squares are of numbers over the largest one, so that none overflows, nor vanishes where it counts.
// Every sum has one order. A NaN or an infinity makes a norm that is not finite, or NaN.
const WORKGROUP: u32 = 64u; // @spec

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

var<workgroup> parts: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn norm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let line = group_index(group, groups);
    if line >= params.count { return; }
    let first = params.start_in + line * params.length;
    var top = 0.0;
    for (var i = local; i < params.seq; i += WORKGROUP) { top = max(top, abs(scratch[first + i])); }
    parts[local] = top;
    workgroupBarrier();
    for (var i = 0u; i < WORKGROUP; i++) { top = max(top, parts[i]); }
    workgroupBarrier();
    // a norm of 0 is of zeros alone: what would be flushed to 0 counts as this
    let scale = max(top, 1e-37);
    var sum = 0.0;
    for (var i = local; i < params.seq; i += WORKGROUP) {
        let x = scratch[first + i] / scale;
        sum = fma(x, x, sum);
    }
    parts[local] = sum;
    workgroupBarrier();
    if local == 0u {
        var total = 0.0;
        for (var i = 0u; i < WORKGROUP; i++) { total += parts[i]; }
        scratch[params.start_out + line] = scale * sqrt(total);
    }
}
