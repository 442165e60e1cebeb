// Fused product of two functions on the sphere, by their coefficients, for GPUs: one product is
// shared by ORDERS invocations, a workgroup takes PRODUCTS of them.
//   x0, x1: [B, C, (lmax_i + 1)^2]    z: [B, C, (lmax_out + 1)^2]
//   w0, w1, wz: [B, C, lmax + 1], by degree, optional    gather0, ..: [B], rows of x0, .., optional
// An invocation owns one order m = 0.. of one product: the coefficients (l, m) and (l, -m) of the
// inputs and of the output are its registers (where these are few, inputs are loaded in every round).
// In each round, PAIRS pairs of parallels go through workgroup memory:
//   1. it sums over degrees and leaves its order's cosine and sine on every parallel;
//   2. an invocation takes all orders of one parallel, multiplies, and leaves the product's orders;
//   3. it adds its order's share of every parallel to its degrees.
// A column of `cells` belongs to one invocation in 1 and 3, a row of them to one in 2: two barriers.
// Source: Luo et al. 2024, arXiv:2401.10216; Xie et al. 2025, arXiv:2506.13523.
const WORKGROUP: u32 = 36u; // @spec
const PRODUCTS: u32 = 6u; // @spec
const ORDERS: u32 = 6u; // @spec
const PAIRS: u32 = 2u; // @spec
const ROUNDS: u32 = 2u; // @spec
// vec4s for one order on one pair of parallels, see `legendre`
const QUADS: u32 = 2u; // @spec
// parallels of all products, and some to spread over banks
const STRIDE: u32 = 25u; // @spec

// @include gaunt/params.wgsl
// @bindings
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>;

// By order and parallel: cosine and sine of the first input, of the second; then those of the
// product, and nothing.
var<workgroup> cells: array<array<vec4<f32>, STRIDE>, ORDERS>;
// By pair of parallels and order: the Legendre functions of degrees 0.. on the northern one, zero
// below the order, and the quadrature weight.
var<workgroup> legendre: array<array<vec4<f32>, QUADS>, ROUNDS * PAIRS * ORDERS>;

@compute @workgroup_size(WORKGROUP)
fn orders(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    for (var i = local; i < ROUNDS * PAIRS * ORDERS * QUADS; i += WORKGROUP) {
        legendre[i / QUADS][i % QUADS] = table[i];
    }
    // neighbours own neighbouring orders, whose coefficients of one degree are neighbours
    let order = local % ORDERS;
    let own = local / ORDERS;
    let at = group_index(group, groups) * PRODUCTS + own;
    let p = min(at, params.count - 1u);
    let batch = p / params.channels;
    let channel = p % params.channels;
    // @load
    // @sums
    // degrees of even l - m are symmetric about the equator, the others antisymmetric
    let flip = select(1.0, -1.0, (order & 1u) == 1u);
    workgroupBarrier();

    for (var round = 0u; round < params.rounds; round++) {
        // @reload
        for (var i = 0u; i < params.pairs; i++) {
            let row = (round * PAIRS + i) * ORDERS + order;
            let north = 2u * i * PRODUCTS + own;
            let south = north + PRODUCTS;
            // @synthesis
        }
        workgroupBarrier();
        if local < 2u * PAIRS * PRODUCTS {
            // @ring
        }
        workgroupBarrier();
        for (var i = 0u; i < params.pairs; i++) {
            let row = (round * PAIRS + i) * ORDERS + order;
            let north = cells[order][2u * i * PRODUCTS + own].xy;
            let south = flip * cells[order][2u * i * PRODUCTS + own + PRODUCTS].xy;
            // @analysis
        }
    }
    if at >= params.count { return; }
    // @store
}
