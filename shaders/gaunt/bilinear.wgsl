// A sparse bilinear map, row by row: z[row, o] = sum over entries of o of c * x[row, i] * y[row, j].
// The coefficient-table route of products, and the Clebsch-Gordan product. One invocation owns one
// output element; neighbours own the same output of neighbouring rows and read the same entries.
//   x, y, z: [B, C, n]    weight_*: [C, lmax + 1], by degree
//   table: (first entry, degree, 0, 0) for each output and one past the last, then the entries,
//   (i | degree << 24, j | degree << 24, f32 coefficient, 0)
const WORKGROUP: u32 = 64u; // @spec
const WEIGHT_X: bool = false; // @spec
const WEIGHT_Y: bool = false; // @spec
const WEIGHT_Z: bool = false; // @spec
const GATHER: bool = false; // @spec

// Must match `gaunt::maps::BilinearParams`. Strides are (batch, channel, unused, offset), in elements.
struct Params {
    x: vec4<u32>,
    y: vec4<u32>,
    z: vec4<u32>,
    weight_x: vec4<u32>,
    weight_y: vec4<u32>,
    weight_z: vec4<u32>,
    rows: u32,
    channels: u32,
    count: u32,
    pad: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> gather: array<u32>;
@group(0) @binding(3) var<storage, read> x: array<f32>; fn x_load(i: u32) -> f32 { return x[i]; } // @tensor
@group(0) @binding(4) var<storage, read> y: array<f32>; fn y_load(i: u32) -> f32 { return y[i]; } // @tensor
@group(0) @binding(5) var<storage, read_write> z: array<f32>; fn z_store(i: u32, v: f32) { z[i] = v; } // @tensor
@group(0) @binding(6) var<storage, read> weight_x: array<f32>; fn weight_x_load(i: u32) -> f32 { return weight_x[i]; } // @tensor
@group(0) @binding(7) var<storage, read> weight_y: array<f32>; fn weight_y_load(i: u32) -> f32 { return weight_y[i]; } // @tensor
@group(0) @binding(8) var<storage, read> weight_z: array<f32>; fn weight_z_load(i: u32) -> f32 { return weight_z[i]; } // @tensor

@compute @workgroup_size(WORKGROUP)
fn bilinear(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let o = at / params.rows;
    let row = at % params.rows;
    let batch = row / params.channels;
    let channel = row % params.channels;
    var source_row = batch;
    if GATHER { source_row = gather[batch]; }
    let x_row = params.x.w + source_row * params.x.x + channel * params.x.y;
    let y_row = params.y.w + batch * params.y.x + channel * params.y.y;
    let weight_x_row = params.weight_x.w + batch * params.weight_x.x + channel * params.weight_x.y;
    let weight_y_row = params.weight_y.w + batch * params.weight_y.x + channel * params.weight_y.y;

    var sum = 0.0;
    let last = table[o + 1u].x;
    for (var e = table[o].x; e < last; e++) {
        let entry = table[e];
        var c = bitcast<f32>(entry.z);
        if WEIGHT_X { c *= weight_x_load(weight_x_row + (entry.x >> 24u)); }
        if WEIGHT_Y { c *= weight_y_load(weight_y_row + (entry.y >> 24u)); }
        sum = fma(c * x_load(x_row + (entry.x & 0xffffffu)), y_load(y_row + (entry.y & 0xffffffu)), sum);
    }
    if WEIGHT_Z { sum *= weight_z_load(params.weight_z.w + batch * params.weight_z.x + channel * params.weight_z.y + table[o].y); }
    z_store(params.z.w + batch * params.z.x + channel * params.z.y + o, sum);
}
