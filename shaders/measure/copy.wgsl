// One large copy, four floats to an invocation: what moving memory costs at the least.
const WORKGROUP: u32 = 64u; // @spec

struct Params { cells: u32, pad0: u32, pad1: u32, pad2: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> from_cells: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> to_cells: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn copy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at < params.cells { to_cells[at] = from_cells[at]; }
}
