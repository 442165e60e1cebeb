// Products of irreps summed with weights: one invocation owns one element k of one copy of an
// output irrep, and goes through the paths that reach it; neighbours own neighbouring elements.
//   x: [B, n1]   y: [B, n2]   w: [1|B, weights]   z: [B, n]
//   t: [B, m], the couplings of paths that mix all pairs of copies, made before, see bilinear.wgsl
//   table: (first path, one past the last, copy, k) for each output, then the paths, two vectors each:
//   - all pairs (u, v) mixed into every copy w, z[w, k] += W[u, v, w] t[u, v, k]:
//     (pairs, start in t, first weight, 0) (2 l3 + 1, copies of the output, 0, 0)
//   - copy u to copy u, z[u, k] += W[u, v] sum c x[u, i] y[v, j]:
//     (copies of y, start in x, first weight, 1) (2 l1 + 1, start in y, 2 l2 + 1, ranges), with
//     (first entry, one past the last, 0, 0) for each k at ranges, and entries (i, j, f32 c, 0)
const WORKGROUP: u32 = 64u; // @spec
// paths of either kind
const MIXED: bool = true; // @spec
const OWN: bool = true; // @spec

// Must match `gaunt::weighted::Params` (tested). Places are (batch stride, offset), in elements.
struct Params {
    x: vec2<u32>,
    y: vec2<u32>,
    w: vec2<u32>,
    t: vec2<u32>,
    z: vec2<u32>,
    count: u32,
    n_out: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> x: array<f32>; fn x_load(i: u32) -> f32 { return x[i]; } // @tensor
@group(0) @binding(3) var<storage, read> y: array<f32>; fn y_load(i: u32) -> f32 { return y[i]; } // @tensor
@group(0) @binding(4) var<storage, read> w: array<f32>; fn w_load(i: u32) -> f32 { return w[i]; } // @tensor
@group(0) @binding(5) var<storage, read> t: array<f32>; fn t_load(i: u32) -> f32 { return t[i]; } // @tensor
@group(0) @binding(6) var<storage, read_write> z: array<f32>; fn z_store(i: u32, v: f32) { z[i] = v; } // @tensor

@compute @workgroup_size(WORKGROUP)
fn weighted(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = group_index(group, groups) * WORKGROUP + local;
    if at >= params.count { return; }
    let o = at % params.n_out;
    let row = at / params.n_out;
    let own = table[o];
    let w_row = params.w.y + row * params.w.x;

    var sum = 0.0;
    for (var path = own.x; path < own.y; path += 2u) {
        let a = table[path];
        let b = table[path + 1u];
        if MIXED && a.w == 0u {
            var pair_at = params.t.y + row * params.t.x + a.y + own.w;
            var weight = w_row + a.z + own.z;
            for (var pair = 0u; pair < a.x; pair++) {
                sum = fma(w_load(weight), t_load(pair_at), sum);
                pair_at += b.x;
                weight += b.y;
            }
        }
        if OWN && a.w == 1u {
            let x_copy = params.x.y + row * params.x.x + a.y + own.z * b.x;
            var y_copy = params.y.y + row * params.y.x + b.y;
            let weight = w_row + a.z + own.z * a.x;
            let range = table[b.w + own.w];
            for (var v = 0u; v < a.x; v++) {
                var coupled = 0.0;
                for (var e = range.x; e < range.y; e++) {
                    let entry = table[e];
                    coupled = fma(bitcast<f32>(entry.z) * x_load(x_copy + entry.x), y_load(y_copy + entry.y), coupled);
                }
                sum = fma(w_load(weight + v), coupled, sum);
                y_copy += b.z;
            }
        }
    }
    z_store(params.z.y + row * params.z.x + o, sum);
}
