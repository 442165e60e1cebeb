// Copies a buffer into a texture, sixteen bytes to a texel, one invocation each.
const ROW: u32 = 4096u; // @spec

// Must match `texels::Params` (tested).
struct Params {
    texels: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> words: array<vec4<f32>>; fn words_load4(i: u32) -> vec4<f32> { return words[i >> 2u]; } // @tensor
@group(0) @binding(2) var texels: texture_storage_2d<rgba32uint, write>;

@compute @workgroup_size(64)
fn copy_texels(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = group_index(group_id, group_count) * 64u + local;
    if i < params.texels {
        textureStore(texels, vec2<u32>(i % ROW, i / ROW), bitcast<vec4<u32>>(words_load4(i * 4u)));
    }
}
