// The product of grids at every point, within one buffer: out = f0^p0 f1^p1 .. or, for four grids,
// f0 f3 - f1 f2. One invocation owns one point.
const WORKGROUP: u32 = 64u; // @spec
const GRIDS: u32 = 2u; // @spec
const CROSS: bool = false; // @spec

// Must match `gaunt::staged::PointwiseParams`. Starts are in elements.
struct Params {
    starts: array<vec4<u32>, 4>,
    powers: array<vec4<u32>, 4>,
    count: u32,
    out: u32,
    pad0: u32,
    pad1: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> grids: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn pointwise(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    if CROSS {
        let s = params.starts[0];
        grids[params.out + at] = grids[s.x + at] * grids[s.w + at] - grids[s.y + at] * grids[s.z + at];
        return;
    }
    var product = 1.0;
    for (var k = 0u; k < GRIDS; k++) {
        let f = grids[params.starts[k / 4u][k % 4u] + at];
        for (var p = 0u; p < params.powers[k / 4u][k % 4u]; p++) { product *= f; }
    }
    grids[params.out + at] = product;
}
