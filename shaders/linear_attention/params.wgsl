// What every kernel that walks tokens is given, included by each: the problem, its rule, its sizes.
const DIM: u32 = 64u; // @spec
const V: u32 = 64u; // @spec
// groups of four columns
const V4: u32 = 16u; // @spec
const CU: u32 = 1u; // @spec
const PACKED: bool = false; // @spec
// logarithms: 0 none, 1 per head, 2 per token, 3 per token and channel
const DECAY: u32 = 0u; // @spec
// 0 add, 1 weighted, 2 delta rule
const UPDATE: u32 = 0u; // @spec
// 0 none, 1 eps, 2 clamp
const NORM: u32 = 0u; // @spec
const FEATURE: u32 = 0u; // @spec
// what a token does: changes the state, reads it
const WRITES: bool = true; // @spec
const READS: bool = true; // @spec

// Must match `linear_attention::Params` (tested). Strides are (batch, token, head, offset), in
// elements; those of the state (batch, head, row, offset).
struct Params {
    q: vec4<u32>,
    k: vec4<u32>,
    v: vec4<u32>,
    o: vec4<u32>,
    gate: vec4<u32>,
    beta: vec4<u32>,
    state: vec4<u32>,
    batch: u32,
    heads: u32,
    // heads of the state for each head of q, k, v
    group_q: u32,
    group_k: u32,
    group_v: u32,
    // tokens of a sequence, and the range of them that this dispatch takes
    tokens: u32,
    first: u32,
    last: u32,
    segments: u32,
    segment_len: u32,
    // distance of the states of neighbouring segments
    segment_stride: u32,
    // first elements of the key sums before and after, and of the decays; their distance from
    // one (sequence, head) and from one segment to the next
    z_in: u32,
    z_out: u32,
    decays: u32,
    z_pair: u32,
    z_segment: u32,
    scale: f32,
    // eps or least value of the denominator
    floor: f32,
    // 0, unknown to compilers
    zero: u32,
    pad: u32,
    // bounds of packed sequences
    cu: array<vec4<u32>, CU>,
}
@group(0) @binding(0) var<uniform> params: Params;

// First token of packed sequence `n`.
fn bound(n: u32) -> u32 {
    return params.cu[n >> 2u][n & 3u];
}

// The map of one group of four features; those past the last stay zero.
fn features(group: u32, x: vec4<f32>) -> vec4<f32> {
    let y = feature_map(FEATURE, x);
    if DIM % 4u == 0u {
        return y;
    }
    let c = vec4<u32>(group * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
    return select(vec4<f32>(0.0), y, c < vec4<u32>(DIM));
}
