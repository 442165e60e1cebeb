// What the circulant matrices multiply: every feature of the keys times every channel of the
// values and times 1, for the denominator, padded with zeros. One invocation owns one element.
//   scratch, at `start_in`: features of keys [rows, M, positions]    rows: values [B, N, H, V]
//   scratch, at `start_out`: [rows, M (V + 1), L], rows (batch, head) from `first` on
const WORKGROUP: u32 = 64u; // @spec

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

@compute @workgroup_size(WORKGROUP)
fn expand(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let t = at % params.length;
    let column = at / params.length % (params.features * (params.value_dim + 1u));
    let chunk_row = at / params.length / (params.features * (params.value_dim + 1u));
    let row = params.first + chunk_row;
    let m = column / (params.value_dim + 1u);
    let e = column % (params.value_dim + 1u);
    var product = 0.0;
    if t < params.seq {
        product = scratch[params.start_in + (chunk_row * params.features + m) * params.positions + t];
        if e < params.value_dim {
            let batch = row / params.heads;
            let head = row % params.heads;
            product *= rows_load(params.x.w + batch * params.x.x + t * params.x.y + head * params.x.z + e);
        }
    }
    scratch[params.start_out + at] = product;
}
