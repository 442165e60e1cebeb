// Real spherical harmonics of directions. One invocation owns one vector; the recurrences are
// written out for one lmax: see src/gaunt/harmonics.rs.
//   r: [N, 3]    y: [N, (lmax + 1)^2]    weight: [N, lmax + 1], by degree, optional
// A zero vector has no direction: its degrees above 0 are 0, the mean over all directions.
const WORKGROUP: u32 = 64u; // @spec
const WEIGHTED: bool = false; // @spec

// Must match `gaunt::harmonics::Params`. Strides are (vector, offset), in elements.
struct Params { r: vec2<u32>, y: vec2<u32>, weight: vec2<u32>, count: u32, pad: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> r: array<f32>; fn r_load(i: u32) -> f32 { return r[i]; } // @tensor
@group(0) @binding(2) var<storage, read_write> y: array<f32>; fn y_store(i: u32, v: f32) { y[i] = v; } // @tensor
@group(0) @binding(3) var<storage, read> weight: array<f32>; fn weight_load(i: u32) -> f32 { return weight[i]; } // @tensor

// The number of these bits times 2^power, where the largest of a vector comes out from 1 to 2. By
// integers: drivers may take numbers below 2^-126 for zero, and divide none of the largest.
fn scale(bits: u32, power: i32) -> f32 {
    let size = bits & 0x7fffffffu;
    // a number below 2^-126 is its bits times 2^-149
    let small = f32(size) * bitcast<f32>(u32(max(power - 22, 0)) << 23u);
    let exponent = i32(size >> 23u) + power;
    let large = bitcast<f32>(select(0u, (u32(exponent) << 23u) | (size & 0x7fffffu), exponent > 0));
    let positive = select(large, small, size < 0x800000u);
    return select(positive, -positive, bits != size);
}

@compute @workgroup_size(WORKGROUP)
fn harmonics(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let start = params.r.y + at * params.r.x;
    var scaled = vec3<f32>(r_load(start), r_load(start + 1u), r_load(start + 2u));
    let bits = bitcast<vec3<u32>>(scaled);
    let size = bits & vec3<u32>(0x7fffffffu);
    let largest = max(max(size.x, size.y), size.z);
    let some = largest > 0u;
    // below 2^-60, from 2^60 on: scaled first, so that squares neither overflow nor vanish
    if largest - 0x21800000u >= 0x3c000000u {
        var power = 127 - i32(largest >> 23u);
        if largest < 0x800000u { power = 149 - i32(firstLeadingBit(largest)); }
        // infinity and NaN stay what they are
        if largest >= 0x7f800000u { power = 0; }
        scaled = vec3<f32>(scale(bits.x, power), scale(bits.y, power), scale(bits.z, power));
    }
    // the direction of nothing is the zero vector, with square 0 in the recurrences
    let v = scaled / select(1.0, sqrt(dot(scaled, scaled)), some);
    let out = params.y.y + at * params.y.x;
    let weight_row = params.weight.y + at * params.weight.x;
    // @body
}
