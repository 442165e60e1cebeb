// What the fused products are given, included by each.
// Must match `gaunt::Params` (tested). Strides are (batch, channel, offset, unused), in elements.
struct Params {
    count: u32,
    channels: u32,
    // where lanes share a product: rounds, and pairs of parallels in each, of which compilers would make
    // copies of the loops' bodies: longer code, and more registers
    rounds: u32,
    pairs: u32,
    rows: array<vec4<u32>, 8>,
    weights: array<vec4<u32>, 8>,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> z: array<f32>; fn z_store(i: u32, x: f32) { z[i] = x; } // @tensor
