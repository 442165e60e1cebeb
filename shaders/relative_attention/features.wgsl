// Features of queries or keys: given, or positive random features of the normalised vector,
// phi_m = exp(w_m . x / |x|). The factors exp(-1/2) and features^(-1/2) cancel in the quotient.
// One invocation owns one feature. Positions from N to the next multiple of 4 have features 0.
//   rows: [B, N, H, D]    w: [H, M, D]
//   scratch, at `start_out`: [rows, M, positions], rows (batch, head) from `first` on
// Source: Luo et al. 2021, arXiv:2106.12566.
const WORKGROUP: u32 = 64u; // @spec
const RANDOM: bool = true; // @spec

// Must match `relative::Params`. `x`: strides (batch, position, head) and offset of the rows at hand;
// `w`: likewise of directions (head, feature), or of another tensor; `b`: stride of heads and offset;
// `start_q`, `start_in`, `start_out`: first elements in scratch.
struct Params {
    x: vec4<u32>,
    w: vec4<u32>,
    b: vec2<u32>,
    first: u32,
    count: u32,
    heads: u32,
    seq: u32,
    // seq, rounded up to a multiple of 4: positions of features in scratch
    positions: u32,
    key_dim: u32,
    features: u32,
    value_dim: u32,
    length: u32,
    start_q: u32,
    start_in: u32,
    start_out: u32,
    pad: vec2<u32>,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scratch: array<f32>;
@group(0) @binding(2) var<storage, read> rows: array<f32>; fn rows_load(i: u32) -> f32 { return rows[i]; } // @tensor
@group(0) @binding(3) var<storage, read> w: array<f32>; fn w_load(i: u32) -> f32 { return w[i]; } // @tensor

@compute @workgroup_size(WORKGROUP)
fn features(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let t = at % params.positions;
    let m = at / params.positions % params.features;
    let row = params.first + at / params.positions / params.features;
    let head = row % params.heads;
    let place = min(t, params.seq - 1u);
    let from_x = params.x.w + row / params.heads * params.x.x + place * params.x.y + head * params.x.z;
    var phi = 0.0;
    if RANDOM {
        let from_w = params.w.w + head * params.w.x + m * params.w.y;
        var dot = 0.0;
        var square = 0.0;
        for (var d = 0u; d < params.key_dim; d++) {
            let value = rows_load(from_x + d);
            dot = fma(value, w_load(from_w + d), dot);
            square = fma(value, value, square);
        }
        phi = exp(dot * inverseSqrt(max(square, 1e-24)));
    } else {
        phi = rows_load(from_x + m);
    }
    scratch[params.start_out + at] = select(0.0, phi, t < params.seq);
}
