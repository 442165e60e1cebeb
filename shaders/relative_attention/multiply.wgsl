// Spectra times their head's spectrum, in place. One invocation owns one complex number.
//   spectra, at `start_in`: [H, L / 2 + 1] pairs    at `start_out`: [rows, M (V + 1), L / 2 + 1] pairs, rows
//   (batch, head) from `first` on
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
@group(0) @binding(1) var<storage, read_write> spectra: array<vec2<f32>>;

@compute @workgroup_size(WORKGROUP)
fn multiply(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let half = params.length / 2u + 1u;
    let row = params.first + at / half / (params.features * (params.value_dim + 1u));
    let c = spectra[params.start_in + row % params.heads * half + at % half];
    let z = spectra[params.start_out + at];
    spectra[params.start_out + at] = vec2<f32>(c.x * z.x - c.y * z.y, c.x * z.y + c.y * z.x);
}
