// Linear attention with the state in registers, subgroup tier.
// One workgroup owns WORKGROUP * COLUMNS groups of four columns of one (sequence, head, segment)'s
// state; one invocation keeps K rows of COLUMNS groups in registers and walks the segment's
// tokens, TOKENS of them in one pass over the state. The rows of q, k and the gates are loaded once
// per subgroup, a few floats by each lane, and handed round by broadcast: a token costs 2
// multiply-adds for each number of the state and a share of its decay, no workgroup memory and no
// barrier. Decays are products of factors, all at most 1, as in chunk_portable; weak gates wait until they
// have summed up to one (decay_step in lib/linear.wgsl).
//   q [B, T, Hq, D], k [B, S, Hk, D], v [B, S, Hv, V], o [B, T, H, V], state [B, H, K, V] f32,
//   gate [H], [B, S, H] or [B, S, H, K], beta [B, S, H], z [.., B, H, segments, K] f32,
//   decays [B, H, segments, K] f32, logarithms
// Source: Yang et al. 2023, arXiv:2312.06635, eq. 3; delta rule: Yang et al. 2024,
// arXiv:2406.06484, eq. 1. Twin: none; the reference is this recurrence.
// @include linear_attention/params.wgsl

// groups of four rows and columns
const K4: u32 = 16u; // @spec
// what a segment does: begins from a state in memory, stores its last, stores its total decay
const LOADS: bool = false; // @spec
const STORES: bool = false; // @spec
const TOTALS: bool = false; // @spec
const WORKGROUP: u32 = 8u; // @spec
const COLUMNS: u32 = 2u; // @spec
const SLICES: u32 = 1u; // @spec
// tokens that pass over the state together; one for the delta rule
const TOKENS: u32 = 2u; // @spec
// lanes that load and speak: no more than the smallest subgroup the device may use
const LANES: u32 = 8u; // @spec
// groups of four rows that one lane loads
const ROWS: u32 = 2u; // @spec
// numbers of the state in one invocation, of its key sum (or 1), of its total decays (or 1)
const STATE: u32 = 128u; // @spec
const Z: u32 = 1u; // @spec
const TOTAL: u32 = 1u; // @spec
// indices of unrolled blocks
const C: u32 = 0u;
const J: u32 = 0u;
const M: u32 = 0u;
const N: u32 = 0u;
const R: u32 = 0u;
const X: u32 = 0u;

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; fn q_load4n(i: u32, n: u32) -> vec4<f32> { return q[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>; fn k_load4n(i: u32, n: u32) -> vec4<f32> { return k[i >> 2u]; } // @tensor
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; fn v_load4n(i: u32, n: u32) -> vec4<f32> { return v[i >> 2u]; } // @tensor
@group(0) @binding(4) var<storage, read> gate: array<vec4<f32>>; fn gate_load4n(i: u32, n: u32) -> vec4<f32> { return gate[i >> 2u]; } fn gate_load(i: u32) -> f32 { return gate[i >> 2u][i & 3u]; } // @tensor
@group(0) @binding(5) var<storage, read> beta: array<f32>; fn beta_load(i: u32) -> f32 { return beta[i]; } // @tensor
@group(0) @binding(6) var<storage, read_write> o: array<vec4<f32>>; fn o_load4n(i: u32, n: u32) -> vec4<f32> { return o[i >> 2u]; } fn o_store4n(i: u32, n: u32, x: vec4<f32>) { o[i >> 2u] = x; } // @tensor
@group(0) @binding(7) var<storage, read_write> state: array<vec4<f32>>; fn state_load4n(i: u32, n: u32) -> vec4<f32> { return state[i >> 2u]; } fn state_store4n(i: u32, n: u32, x: vec4<f32>) { state[i >> 2u] = x; } // @tensor
@group(0) @binding(8) var<storage, read_write> z: array<f32>; fn z_load(i: u32) -> f32 { return z[i]; } fn z_store(i: u32, x: f32) { z[i] = x; } // @tensor
@group(0) @binding(9) var<storage, read_write> decays: array<vec4<f32>>; fn decays_load4n(i: u32, n: u32) -> vec4<f32> { return decays[i >> 2u]; } fn decays_store4n(i: u32, n: u32, x: vec4<f32>) { decays[i >> 2u] = x; } // @tensor

@compute @workgroup_size(WORKGROUP)
fn loop_subgroup(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let group = group_index(group_id, group_count);
    let slice = group % SLICES;
    let segment = (group / SLICES) % params.segments;
    let head = (group / (SLICES * params.segments)) % params.heads;
    let sequence = group / (SLICES * params.segments * params.heads);
    if sequence >= params.batch {
        return;
    }
    let lane = subgroup_lane % LANES;

    var batch = sequence;
    var start = 0u;
    var length = params.tokens;
    if PACKED {
        batch = 0u;
        start = bound(sequence);
        length = bound(sequence + 1u) - start;
    }
    let first = params.first + segment * params.segment_len;
    let begin = start + min(first, length);
    let end = start + min(min(first + params.segment_len, params.last), length);

    let q_base = batch * params.q.x + (head / params.group_q) * params.q.z + params.q.w;
    let k_base = batch * params.k.x + (head / params.group_k) * params.k.z + params.k.w;
    let v_base = batch * params.v.x + (head / params.group_v) * params.v.z + params.v.w;
    let o_base = batch * params.o.x + head * params.o.z + params.o.w;
    let g_base = batch * params.gate.x + head * params.gate.z + params.gate.w;
    let b_base = batch * params.beta.x + head * params.beta.z + params.beta.w;
    let s_base = sequence * params.state.x + head * params.state.y + params.state.w + segment * params.segment_stride;
    let z_at = (sequence * params.heads + head) * params.z_pair + segment * params.z_segment;

    // column groups of this invocation; those past the last repeat it and are not stored
    var own: array<bool, COLUMNS>;
    var column: array<u32, COLUMNS>;
    // @unroll J COLUMNS
    column[J] = (slice * COLUMNS + J) * WORKGROUP + local;
    own[J] = column[J] < V4;
    column[J] = min(column[J], V4 - 1u) * 4u;
    // @end

    var state_of: array<vec4<f32>, STATE>;
    // @unroll C K4
    // @unroll X 4
    // @unroll J COLUMNS
    state_of[(C * 4u + X) * COLUMNS + J] = vec4<f32>(0.0);
    if LOADS && C * 4u + X < DIM {
        state_of[(C * 4u + X) * COLUMNS + J] =
            state_load4n(s_base + (C * 4u + X) * params.state.z + column[J], min(4u, V - column[J]));
    }
    // @end
    // @end
    // @end
    var sum_k: array<f32, Z>;
    if NORM != 0u {
        // @unroll C Z
        sum_k[C] = 0.0;
        if LOADS && C < DIM {
            sum_k[C] = z_load(params.z_in + z_at + C);
        }
        // @end
    }
    // logarithms of what has faded, and of what the state waits to fade by: of the lane's rows, or of all
    var total: array<vec4<f32>, TOTAL>;
    // @unroll R TOTAL
    total[R] = vec4<f32>(0.0);
    // @end
    var waits: array<vec4<f32>, ROWS>;
    var rests: array<vec4<f32>, ROWS>;
    // @unroll R ROWS
    waits[R] = vec4<f32>(0.0);
    rests[R] = vec4<f32>(0.0);
    // @end
    var wait = 0.0;
    var rest = 0.0;
    for (var t = begin; t < end; t += TOKENS) {
        // row groups R * LANES + lane of the tokens' keys, queries and gates; past the last repeats
        // it. A token past the end changes nothing: its key and its gate are zero. Keys are divided by
        // what the state waits to fade by, queries and the keys that read multiplied by it.
        var keys: array<vec4<f32>, TOKENS * ROWS>;
        var readers: array<vec4<f32>, ROWS>;
        var queries: array<vec4<f32>, TOKENS * ROWS>;
        var gates: array<vec4<f32>, TOKENS * ROWS>;
        var value: array<vec4<f32>, TOKENS * COLUMNS>;
        var sum: array<vec4<f32>, TOKENS * COLUMNS>;
        var factors: array<f32, TOKENS>;
        var beta_of = 1.0;
        // @unroll N TOKENS
        {
            let live = TOKENS == 1u || t + N < end;
            let token = select(end - 1u, t + N, live);
            factors[N] = 1.0;
            var up = 1.0;
            // a decay per head has no stride of tokens
            if WRITES && (DECAY == 1u || DECAY == 2u) {
                let g = select(0.0, gate_load(g_base + token * params.gate.y), live);
                let step = decay_step(vec4<f32>(g), vec4<f32>(wait), vec4<f32>(rest));
                wait = step.log.x;
                rest = step.rest.x;
                factors[N] = step.factor.x;
                up = step.up.x;
                if TOTALS {
                    // @unroll R TOTAL
                    total[R] += step.gone.x;
                    // @end
                }
            }
            var weight = 1.0;
            if WRITES && UPDATE != 0u {
                beta_of = beta_load(b_base + token * params.beta.y);
                if UPDATE == 1u {
                    weight = beta_of;
                }
            }
            // a weight of zero hides key and value, whatever they hold
            let hidden = !live || (UPDATE != 0u && beta_of == 0.0);
            if !live {
                weight = 0.0;
            }
            // @unroll R ROWS
            {
                let row = min(R * LANES + lane, K4 - 1u);
                let n = min(4u, DIM - row * 4u);
                var ups = vec4<f32>(up);
                var downs = vec4<f32>(1.0 / up);
                if WRITES {
                    if DECAY == 3u {
                        var g = gate_load4n(g_base + token * params.gate.y + row * 4u, n);
                        if !live {
                            g = vec4<f32>(0.0);
                        }
                        let step = decay_step(g, waits[R], rests[R]);
                        waits[R] = step.log;
                        rests[R] = step.rest;
                        gates[N * ROWS + R] = step.factor;
                        ups = step.up;
                        downs = 1.0 / step.up;
                        if TOTALS {
                            total[R] += step.gone;
                        }
                    }
                    var key = features(row, k_load4n(k_base + token * params.k.y + row * 4u, n));
                    if UPDATE != 0u && hidden {
                        key = vec4<f32>(0.0);
                    }
                    if UPDATE == 1u || TOKENS > 1u {
                        key *= weight;
                    }
                    if UPDATE == 2u {
                        readers[R] = key * ups;
                    }
                    if DECAY != 0u {
                        key *= downs;
                    }
                    keys[N * ROWS + R] = key;
                }
                if READS {
                    queries[N * ROWS + R] = features(row, q_load4n(q_base + token * params.q.y + row * 4u, n));
                    if WRITES && DECAY != 0u {
                        queries[N * ROWS + R] *= ups;
                    }
                }
            }
            // @end
            // @unroll J COLUMNS
            sum[N * COLUMNS + J] = vec4<f32>(0.0);
            if WRITES {
                value[N * COLUMNS + J] = v_load4n(v_base + token * params.v.y + column[J], min(4u, V - column[J]));
                if UPDATE != 0u && hidden {
                    value[N * COLUMNS + J] = vec4<f32>(0.0);
                }
            }
            // @end
        }
        // @end

        // inner products of each query with the keys up to its own, decayed: from the lanes that
        // hold the rows
        var scores: array<f32, TOKENS * TOKENS>;
        if WRITES && READS {
            // @unroll N TOKENS
            {
                var key: array<vec4<f32>, ROWS>;
                // @unroll R ROWS
                key[R] = keys[N * ROWS + R];
                // @end
                // @unroll M TOKENS
                if M >= N {
                    var part = 0.0;
                    // @unroll R ROWS
                    if M > N && DECAY == 3u {
                        key[R] *= gates[M * ROWS + R];
                    } else if M > N && DECAY != 0u {
                        key[R] *= factors[M];
                    }
                    if R * LANES + lane < K4 {
                        part += dot(queries[M * ROWS + R], key[R]);
                    }
                    // @end
                    var score = 0.0;
                    // @unroll C LANES
                    score += subgroupBroadcast(part, C);
                    // @end
                    scores[M * TOKENS + N] = score;
                }
                // @end
            }
            // @end
        }
        // S_t^T q = S_{t-1}^T (decay q) + (k . q) v: reading the state before the tokens keeps the
        // reads clear of the writes. Queries decay from the first token on, keys to the last.
        var fade: array<vec4<f32>, ROWS>;
        if WRITES && DECAY != 0u {
            // @unroll R ROWS
            fade[R] = vec4<f32>(1.0);
            // @unroll N TOKENS
            if DECAY == 3u {
                fade[R] *= gates[N * ROWS + R];
            } else {
                fade[R] *= factors[N];
            }
            if READS {
                queries[N * ROWS + R] *= fade[R];
            }
            // @end
            // @unroll N TOKENS
            // @unroll M TOKENS
            if M > N && DECAY == 3u {
                keys[N * ROWS + R] *= gates[M * ROWS + R];
            } else if M > N {
                keys[N * ROWS + R] *= factors[M];
            }
            // @end
            // @end
            // @end
        }

        var den: array<f32, TOKENS>;
        if NORM != 0u {
            // @unroll M TOKENS
            den[M] = 0.0;
            // @unroll N TOKENS
            if M >= N {
                den[M] += scores[M * TOKENS + N];
            }
            // @end
            // @end
        }
        // the delta rule takes one token at a time
        if WRITES && UPDATE == 2u {
            // what the decayed state holds under this key
            var held: array<vec4<f32>, COLUMNS>;
            // @unroll J COLUMNS
            held[J] = vec4<f32>(0.0);
            // @end
            var faded: array<vec4<f32>, ROWS>;
            // @unroll R ROWS
            faded[R] = readers[R];
            if DECAY != 0u {
                faded[R] *= fade[R];
            }
            // @end
            // @unroll C K4
            {
                let key = subgroupBroadcast(faded[C / LANES], C % LANES);
                var query: vec4<f32>;
                if READS {
                    query = subgroupBroadcast(queries[C / LANES], C % LANES);
                }
                // @unroll X 4
                // @unroll J COLUMNS
                {
                    let s = state_of[(C * 4u + X) * COLUMNS + J];
                    held[J] = fma(vec4<f32>(key[X]), s, held[J]);
                    if READS {
                        sum[J] = fma(vec4<f32>(query[X]), s, sum[J]);
                    }
                }
                // @end
                // @end
            }
            // @end
            // @unroll J COLUMNS
            value[J] = beta_of * (value[J] - held[J]);
            // @end
        }
        // @unroll C K4
        {
            var key: array<vec4<f32>, TOKENS>;
            var query: array<vec4<f32>, TOKENS>;
            var factor = vec4<f32>(1.0);
            if WRITES {
                // @unroll N TOKENS
                key[N] = subgroupBroadcast(keys[N * ROWS + C / LANES], C % LANES);
                // @end
                if DECAY == 3u {
                    factor = subgroupBroadcast(fade[C / LANES], C % LANES);
                } else if DECAY != 0u {
                    factor = fade[0];
                }
            }
            if READS && UPDATE != 2u {
                // @unroll N TOKENS
                query[N] = subgroupBroadcast(queries[N * ROWS + C / LANES], C % LANES);
                // @end
            }
            // @unroll X 4
            // @unroll J COLUMNS
            {
                var s = state_of[(C * 4u + X) * COLUMNS + J];
                if READS && UPDATE != 2u {
                    // @unroll N TOKENS
                    sum[N * COLUMNS + J] = fma(vec4<f32>(query[N][X]), s, sum[N * COLUMNS + J]);
                    // @end
                }
                if WRITES {
                    if DECAY != 0u {
                        s *= factor[X];
                    }
                    // @unroll N TOKENS
                    s = fma(vec4<f32>(key[N][X]), value[N * COLUMNS + J], s);
                    // @end
                    state_of[(C * 4u + X) * COLUMNS + J] = s;
                }
            }
            // @end
            if NORM != 0u {
                var s = sum_k[(C * 4u + X) % Z];
                // @unroll N TOKENS
                den[N] = fma(query[N][X], s, den[N]);
                // @end
                if WRITES {
                    if DECAY != 0u {
                        s *= factor[X];
                    }
                    // @unroll N TOKENS
                    s += key[N][X];
                    // @end
                    sum_k[(C * 4u + X) % Z] = s;
                }
            }
            // @end
        }
        // @end
        if READS {
            // @unroll M TOKENS
            {
                if WRITES {
                    // @unroll N TOKENS
                    // @unroll J COLUMNS
                    if M >= N {
                        sum[M * COLUMNS + J] =
                            fma(vec4<f32>(scores[M * TOKENS + N]), value[N * COLUMNS + J], sum[M * COLUMNS + J]);
                    }
                    // @end
                    // @end
                }
                var factor = params.scale;
                if NORM == 1u {
                    factor = params.scale / (params.scale * den[M] + params.floor);
                }
                if NORM == 2u {
                    factor = params.scale / max(den[M], params.floor);
                }
                // @unroll J COLUMNS
                if own[J] && (TOKENS == 1u || t + M < end) {
                    o_store4n(
                        o_base + (t + M) * params.o.y + column[J],
                        min(4u, V - column[J]),
                        sum[M * COLUMNS + J] * factor,
                    );
                }
                // @end
            }
            // @end
        }
    }

    // what the state still waits for is due
    if STORES && WRITES && DECAY != 0u {
        var parts = decay_late(wait + rest);
        var bits = vec4<u32>(0u);
        // @unroll C K4 * 4u * COLUMNS
        bits += bitcast<vec4<u32>>(state_of[C]);
        // @end
        let chance = decay_chance(bits);
        // @unroll C K4
        {
            var late: vec4<f32>;
            if DECAY == 3u {
                late = subgroupBroadcast(waits[C / LANES] + rests[C / LANES], C % LANES);
            }
            // @unroll X 4
            {
                if DECAY == 3u {
                    parts = decay_late(late[X]);
                }
                // @unroll J COLUMNS
                state_of[(C * 4u + X) * COLUMNS + J] =
                    decay_rest(state_of[(C * 4u + X) * COLUMNS + J], parts, chance, params.zero);
                // @end
                if NORM != 0u {
                    // of itself: who sums may have no column of the state
                    let own = vec4<f32>(sum_k[(C * 4u + X) % Z]);
                    sum_k[(C * 4u + X) % Z] =
                        decay_rest(own, parts, decay_chance(bitcast<vec4<u32>>(own)), params.zero).x;
                }
            }
            // @end
        }
        // @end
    }
    if STORES {
        // @unroll C K4
        // @unroll X 4
        // @unroll J COLUMNS
        if own[J] && C * 4u + X < DIM {
            state_store4n(
                s_base + (C * 4u + X) * params.state.z + column[J],
                min(4u, V - column[J]),
                state_of[(C * 4u + X) * COLUMNS + J],
            );
        }
        // @end
        // @end
        // @end
        if NORM != 0u && slice == 0u && local == 0u {
            // @unroll C Z
            if C < DIM {
                z_store(params.z_out + z_at + C, sum_k[C]);
            }
            // @end
        }
    }
    if TOTALS {
        // @unroll C K4
        {
            var x = subgroupBroadcast(total[C / LANES], C % LANES);
            if DECAY == 3u {
                x += subgroupBroadcast(waits[C / LANES] + rests[C / LANES], C % LANES);
            } else {
                x += vec4<f32>(wait + rest);
            }
            if slice == 0u && local == 0u {
                decays_store4n(params.decays + z_at + C * 4u, min(4u, DIM - C * 4u), x);
            }
        }
        // @end
    }
}
