// A sparse linear map, row by row: dst[row, o] = sum over entries of o of c * src[row, i].
// One invocation owns one output element. A row is (batch, channel, line): coefficients have one
// line, grids one for each parallel.
//   src: [B, C, LINES, n_in]   dst: [B, C, LINES, n_out]   weight_*: [C, lmax + 1], by degree
//   table: (first entry, degree) for each output and one past the last, then the entries,
//   (index | degree << 24, f32 coefficient)
const WORKGROUP: u32 = 64u; // @spec
const WEIGHT_IN: bool = false; // @spec
const WEIGHT_OUT: bool = false; // @spec
const GATHER: bool = false; // @spec
// src is another part of dst's buffer
const WITHIN: bool = false; // @spec

// Must match `gaunt::maps::LinearParams`. Strides are (batch, channel, line, offset), in elements.
struct Params {
    src: vec4<u32>,
    dst: vec4<u32>,
    weight_in: vec4<u32>,
    weight_out: vec4<u32>,
    count: u32,
    n_out: u32,
    channels: u32,
    lines: u32,
    first_src: u32,
    first_dst: u32,
    dst_channels: u32,
    pad: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> gather: array<u32>;
@group(0) @binding(3) var<storage, read> src: array<f32>; fn src_load(i: u32) -> f32 { return src[i]; } // @tensor
@group(0) @binding(4) var<storage, read_write> dst: array<f32>; fn dst_load(i: u32) -> f32 { return dst[i]; } fn dst_store(i: u32, x: f32) { dst[i] = x; } // @tensor
@group(0) @binding(5) var<storage, read> weight_in: array<f32>; fn weight_in_load(i: u32) -> f32 { return weight_in[i]; } // @tensor
@group(0) @binding(6) var<storage, read> weight_out: array<f32>; fn weight_out_load(i: u32) -> f32 { return weight_out[i]; } // @tensor

@compute @workgroup_size(WORKGROUP)
fn linear(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let o = at % params.n_out;
    let line = at / params.n_out % params.lines;
    let row = at / params.n_out / params.lines;

    let source_row = row + params.first_src;
    let to = row + params.first_dst;
    let from_batch = source_row / params.channels;
    var batch = from_batch;
    if GATHER { batch = gather[batch]; }
    let channel = source_row % params.channels;
    let base = params.src.w + batch * params.src.x + channel * params.src.y + line * params.src.z;

    var sum = 0.0;
    let last = table[o + 1u].x;
    for (var e = table[o].x; e < last; e++) {
        let entry = table[e];
        let i = base + (entry.x & 0xffffffu);
        var x = 0.0;
        if WITHIN { x = dst_load(i); } else { x = src_load(i); }
        if WEIGHT_IN { x *= weight_in_load(params.weight_in.w + from_batch * params.weight_in.x + channel * params.weight_in.y + (entry.x >> 24u)); }
        sum = fma(bitcast<f32>(entry.y), x, sum);
    }
    let to_batch = to / params.dst_channels;
    let to_channel = to % params.dst_channels;
    if WEIGHT_OUT { sum *= weight_out_load(params.weight_out.w + to_batch * params.weight_out.x + to_channel * params.weight_out.y + table[o].y); }
    dst_store(params.dst.w + to_batch * params.dst.x + to_channel * params.dst.y + line * params.dst.z + o, sum);
}
