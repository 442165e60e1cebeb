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

@compute @workgroup_size(WORKGROUP)
fn harmonics(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let start = params.r.y + at * params.r.x;
    let raw = vec3<f32>(r_load(start), r_load(start + 1u), r_load(start + 2u));
    // scaled first, so that squares neither overflow nor vanish
    let size = max(max(abs(raw.x), abs(raw.y)), abs(raw.z));
    let some = size > 0.0;
    let scaled = raw / select(1.0, size, some);
    // the direction of nothing is the zero vector, with square 0 in the recurrences
    let v = scaled / select(1.0, sqrt(dot(scaled, scaled)), some);
    let out = params.y.y + at * params.y.x;
    let weight_row = params.weight.y + at * params.weight.x;
    let live = select(0.0, 1.0, some);
    // @body
}
