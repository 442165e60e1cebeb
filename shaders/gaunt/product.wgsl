// Fused product of functions on the sphere, by their coefficients.
// One invocation owns one product, a row p = (batch, channel), from coefficients to coefficients;
// nothing but those is read or written. The arithmetic between is written out for one shape:
// see src/gaunt/program.rs for what it computes.
//   x0, x1, ..: [B, C, (lmax_i + 1)^2]    z: [B, C, (lmax_out + 1)^2]
//   w0, .., wz: [B, C, lmax + 1], by degree, optional    gather0, ..: [B], rows of x0, .., optional
// Source: Luo et al. 2024, arXiv:2401.10216; Xie et al. 2025, arXiv:2506.13523.
const WORKGROUP: u32 = 64u; // @spec

// @include gaunt/params.wgsl
// @bindings

@compute @workgroup_size(WORKGROUP)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    // @builtins
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    // invocations past the end repeat the last product, so that all take part in broadcasts
    let p = min(at, params.count - 1u);
    let batch = p / params.channels;
    let channel = p % params.channels;
    // @load
    // @body
    if at >= params.count { return; }
    // @store
}
