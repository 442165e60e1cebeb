// The multiply-add ceiling: CHAINS independent vec4 chains in registers, no loads in the loop.
// Each trip makes four steps of every chain: CHAINS * 4 * 4 multiply-adds.
const CHAINS: u32 = 8u; // @spec
const WORKGROUP: u32 = 64u; // @spec
const I: u32 = 0u; // index of unrolled blocks

struct Params { trips: u32, groups: u32, pad0: u32, pad1: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn multiply_add(@builtin(global_invocation_id) id: vec3<u32>) {
    let x = vec4<f32>(0.5 + f32(id.x & 7u) * 0.001);
    let y = vec4<f32>(0.25, 0.5, 0.75, 1.0);
    var a: array<vec4<f32>, CHAINS>;
    // @unroll I CHAINS
    a[I] = vec4<f32>(f32((id.x & 1023u) + I));
    // @end
    for (var t = 0u; t < params.trips; t++) {
        // @unroll I CHAINS
        a[I] = fma(a[I], x, y);
        // @end
        // @unroll I CHAINS
        a[I] = fma(a[I], x, y);
        // @end
        // @unroll I CHAINS
        a[I] = fma(a[I], x, y);
        // @end
        // @unroll I CHAINS
        a[I] = fma(a[I], x, y);
        // @end
    }
    var sum = vec4<f32>(0.0);
    // @unroll I CHAINS
    sum += a[I];
    // @end
    out[id.x] = sum.x + sum.y + sum.z + sum.w;
}
