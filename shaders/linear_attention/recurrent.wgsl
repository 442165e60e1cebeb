// Linear attention token by token, the state in memory: for decoding, and the plainest form.
// One invocation owns four columns of one (sequence, head)'s state and walks its tokens; nobody
// else touches these columns, so there is no barrier. Each token reads and writes the state once
// (the delta rule reads it twice).
//   q [B, T, Hq, D], k [B, S, Hk, D], v [B, S, Hv, V], o [B, T, H, V], state [B, H, K, V] f32,
//   gate [H], [B, S, H] or [B, S, H, K], beta [B, S, H], z [2, B, H, K] f32
// Source: Yang et al. 2023, arXiv:2312.06635, eq. 3. Twin: none; the reference is this recurrence.
// @include linear_attention/params.wgsl

const FEATURES: u32 = 64u; // @spec
// length of the private key sum: FEATURES, or 1 without a denominator
const Z: u32 = 1u; // @spec

@group(0) @binding(1) var<storage, read> q: array<f32>; fn q_load(i: u32) -> f32 { return q[i]; } // @tensor
@group(0) @binding(2) var<storage, read> k: array<f32>; fn k_load(i: u32) -> f32 { return k[i]; } // @tensor
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; fn v_load4n(i: u32, n: u32) -> vec4<f32> { return v[i >> 2u]; } // @tensor
@group(0) @binding(4) var<storage, read> gate: array<f32>; fn gate_load(i: u32) -> f32 { return gate[i]; } // @tensor
@group(0) @binding(5) var<storage, read> beta: array<f32>; fn beta_load(i: u32) -> f32 { return beta[i]; } // @tensor
@group(0) @binding(6) var<storage, read_write> o: array<vec4<f32>>; fn o_store4n(i: u32, n: u32, x: vec4<f32>) { o[i >> 2u] = x; } // @tensor
@group(0) @binding(7) var<storage, read_write> state: array<vec4<f32>>; fn state_load4n(i: u32, n: u32) -> vec4<f32> { return state[i >> 2u]; } fn state_store4n(i: u32, n: u32, x: vec4<f32>) { state[i >> 2u] = x; } // @tensor
@group(0) @binding(8) var<storage, read_write> z: array<f32>; fn z_load(i: u32) -> f32 { return z[i]; } fn z_store(i: u32, x: f32) { z[i] = x; } // @tensor

fn q_feature(row: u32, c: u32) -> f32 {
    if FEATURE == 5u {
        let f = taylor_feature(c, DIM, params.scale);
        var x = f.factor;
        if f.i < DIM { x *= q_load(row + f.i); }
        if f.j < DIM { x *= q_load(row + f.j); }
        return x;
    }
    return feature_map(FEATURE, vec4<f32>(q_load(row + c))).x;
}

fn k_feature(row: u32, c: u32) -> f32 {
    if FEATURE == 5u {
        let f = taylor_feature(c, DIM, params.scale);
        var x = f.factor;
        if f.i < DIM { x *= k_load(row + f.i); }
        if f.j < DIM { x *= k_load(row + f.j); }
        return x;
    }
    return feature_map(FEATURE, vec4<f32>(k_load(row + c))).x;
}

fn q_feature_if(row: u32, c: u32) -> f32 {
    if READS {
        return q_feature(row, c);
    }
    return 0.0;
}

@compute @workgroup_size(64)
fn recurrent(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = group_index(group_id, group_count) * 64u + local;
    let sequence = index / (V4 * params.heads);
    if sequence >= params.batch {
        return;
    }
    let column = (index % V4) * 4u;
    let columns = min(4u, V - column);
    let head = (index / V4) % params.heads;

    var batch = sequence;
    var begin = params.first;
    var end = min(params.last, params.tokens);
    if PACKED {
        batch = 0u;
        let start = bound(sequence);
        end = start + min(params.last, bound(sequence + 1u) - start);
        begin = start + params.first;
    }
    let q_base = batch * params.q.x + (head / params.group_q) * params.q.z + params.q.w;
    let k_base = batch * params.k.x + (head / params.group_k) * params.k.z + params.k.w;
    let v_base = batch * params.v.x + (head / params.group_v) * params.v.z + params.v.w + column;
    let o_base = batch * params.o.x + head * params.o.z + params.o.w + column;
    let g_base = batch * params.gate.x + head * params.gate.z + params.gate.w;
    let b_base = batch * params.beta.x + head * params.beta.z + params.beta.w;
    let s_base = sequence * params.state.x + head * params.state.y + params.state.w + column;
    let z_at = (sequence * params.heads + head) * params.z_pair;

    // every invocation follows the key sum on its own
    var sum_k: array<f32, Z>;
    if NORM != 0u {
        for (var c = 0u; c < FEATURES; c++) {
            sum_k[c] = z_load(params.z_in + z_at + c);
        }
    }
    for (var t = begin; t < end; t++) {
        let q_row = q_base + t * params.q.y;
        let k_row = k_base + t * params.k.y;
        let g_row = g_base + t * params.gate.y;
        // a decay per head has no stride of tokens
        var decay = vec2<f32>(1.0, 0.0);
        if DECAY == 1u || DECAY == 2u {
            decay = decay_parts(gate_load(g_row));
        }
        var weight = 1.0;
        if UPDATE != 0u {
            weight = beta_load(b_base + t * params.beta.y);
        }
        var value = vec4<f32>(0.0);
        if WRITES {
            value = v_load4n(v_base + t * params.v.y, columns);
        }
        if UPDATE == 2u {
            // what the decayed state holds under this key
            var held = vec4<f32>(0.0);
            for (var c = 0u; c < FEATURES; c++) {
                if DECAY == 3u {
                    decay = decay_parts(gate_load(g_row + c));
                }
                let s = state_load4n(s_base + c * params.state.z, columns);
                held += (k_feature(k_row, c) * (decay.x + decay.y)) * s;
            }
            value -= held;
        }
        // a weight of zero hides key and value, whatever they hold
        let hidden = UPDATE != 0u && weight == 0.0;
        if hidden {
            value = vec4<f32>(0.0);
        }
        var sum = vec4<f32>(0.0);
        var den = 0.0;
        for (var c = 0u; c < FEATURES; c++) {
            var s = state_load4n(s_base + c * params.state.z, columns);
            var key = 0.0;
            if WRITES {
                if !hidden {
                    key = k_feature(k_row, c) * weight;
                }
                if DECAY == 3u {
                    decay = decay_parts(gate_load(g_row + c));
                }
                if DECAY == 0u {
                    s += key * value;
                } else {
                    s = decay_apply(s, decay, key * value, params.zero);
                }
                state_store4n(s_base + c * params.state.z, columns, s);
            }
            let query = q_feature_if(q_row, c);
            sum += query * s;
            if NORM != 0u {
                if WRITES {
                    sum_k[c] = decay_apply(vec4<f32>(sum_k[c]), decay, vec4<f32>(key), params.zero).x;
                }
                den += query * sum_k[c];
            }
        }
        if READS {
            let factor = select(params.scale, 1.0, FEATURE == 5u);
            if NORM == 1u {
                sum = sum / (factor * den + params.floor);
            }
            if NORM == 2u {
                sum = sum / max(den, params.floor);
            }
            o_store4n(o_base + t * params.o.y, columns, sum * factor);
        }
    }
    if NORM != 0u && WRITES && column == 0u {
        for (var c = 0u; c < FEATURES; c++) {
            z_store(params.z_out + z_at + c, sum_k[c]);
        }
    }
}
