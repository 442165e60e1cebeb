// A one-dimensional range of workgroups folded into the three dimensions of a dispatch.

// Index of this workgroup. The fold may overshoot: compare with the true count.
fn group_index(id: vec3<u32>, groups: vec3<u32>) -> u32 {
    return id.x + groups.x * (id.y + groups.y * id.z);
}
