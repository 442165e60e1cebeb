// New keys and values of some sequences into the pages of a cache.
// One invocation owns four channels of one new row of one tensor (k, then v).
//   k [B, T, Hkv, D], v [B, T, Hkv, Dv], k_pages [P, PAGE, Hkv, D], v_pages [P, PAGE, Hkv, Dv]
// Source: PagedAttention, arXiv:2309.06180. Twin: none.
const HEAD_DIM: u32 = 64u; // @spec
const PAGE: u32 = 16u; // @spec

// Must match `attention::append::Params` (tested). Strides are (batch or page, seq, head, offset).
struct Params {
    src: vec4<u32>,
    dst: vec4<u32>,
    seq: u32,
    heads: u32,
    items: u32,
    unused: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<vec4<f32>>; fn src_load4n(i: u32, n: u32) -> vec4<f32> { return src[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read_write> dst: array<vec4<f32>>; fn dst_store4n(i: u32, n: u32, x: vec4<f32>) { dst[i >> 2u] = x; } // @tensor
// (page, row of the page) of each (batch, seq)
@group(0) @binding(3) var<storage, read> table: array<u32>;

@compute @workgroup_size(64)
fn append(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let item = group_index(group_id, group_count) * 64u + local;
    if item >= params.items {
        return;
    }
    let chunks = (HEAD_DIM + 3u) / 4u;
    let chunk = item % chunks;
    let head = (item / chunks) % params.heads;
    let token = item / (chunks * params.heads);
    let n = min(4u, HEAD_DIM - chunk * 4u);
    let source = token / params.seq * params.src.x + token % params.seq * params.src.y + head * params.src.z + params.src.w;
    let place = table[token];
    let target_row = place / PAGE * params.dst.x + place % PAGE * params.dst.y + head * params.dst.z + params.dst.w;
    dst_store4n(target_row + chunk * 4u, n, src_load4n(source + chunk * 4u, n));
}
