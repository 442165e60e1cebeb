// Sums of consecutive messages: dst[node] = sum of src[e] for e in starts[node]..starts[node + 1],
// in that order. One invocation owns one element of one node; no atomics, the same bits every run.
//   src: [E, C, n]    dst: [N, C, n]
const WORKGROUP: u32 = 64u; // @spec

// Must match `gaunt::convolution::SumParams`. Strides are (batch, channel, offset, unused).
struct Params { src: vec4<u32>, dst: vec4<u32>, count: u32, n: u32, channels: u32, pad: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> starts: array<u32>;
@group(0) @binding(2) var<storage, read> src: array<f32>; fn src_load(i: u32) -> f32 { return src[i]; } // @tensor
@group(0) @binding(3) var<storage, read_write> dst: array<f32>; fn dst_store(i: u32, x: f32) { dst[i] = x; } // @tensor

@compute @workgroup_size(WORKGROUP)
fn segment_sum(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let k = at % params.n;
    let channel = at / params.n % params.channels;
    let node = at / params.n / params.channels;
    let column = params.src.z + channel * params.src.y + k;
    var sum = 0.0;
    let last = starts[node + 1u];
    for (var e = starts[node]; e < last; e++) { sum += src_load(column + e * params.src.x); }
    dst_store(params.dst.z + node * params.dst.x + channel * params.dst.y + k, sum);
}
