// The rate of workgroup memory: every invocation sums vectors of four floats out of a tile that
// its workgroup filled once. Neighbours read neighbouring vectors, a new place in every trip.
const WORKGROUP: u32 = 64u; // @spec
const CELLS: u32 = 512u; // 8 KiB
const STEPS: u32 = 8u; // loads of one trip
const I: u32 = 0u; // index of unrolled blocks

struct Params { trips: u32, pad0: u32, pad1: u32, pad2: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
var<workgroup> tile: array<vec4<f32>, CELLS>;

@compute @workgroup_size(WORKGROUP)
fn workgroup_load(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    for (var at = local; at < CELLS; at += WORKGROUP) { tile[at] = vec4<f32>(f32(at) + f32(id.x & 3u)); }
    workgroupBarrier();
    var sum: array<vec4<f32>, STEPS>;
    for (var t = 0u; t < params.trips; t++) {
        let at = local + t * 65u;
        // @unroll I STEPS
        sum[I] += tile[(at + I * 64u) % CELLS];
        // @end
    }
    var total = vec4<f32>(0.0);
    // @unroll I STEPS
    total += sum[I];
    // @end
    out[id.x] = total.x + total.y + total.z + total.w;
}
