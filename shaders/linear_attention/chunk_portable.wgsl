// Linear attention in chunks, portable tier.
// One workgroup owns COLUMNS groups of four columns of one (sequence, head, segment)'s state and
// walks the segment in chunks of CHUNK tokens. Invocation (rows, cols) keeps RK rows of one column
// group in registers. A chunk's q, k, v and gates pass through workgroup memory once, and
//   o_i   = (q_i e^{b_i}) S_in + sum_{j <= i} (sum_c q_ic k_jc e^{b_ic - b_jc}) v_j
//   S_out = e^{b_last} S_in + sum_j (k_j e^{b_last - b_j}) v_j^T
// with b the log decay accumulated from the chunk's first token on. Decays of a range of tokens
// are products of factors, all at most 1: nothing overflows however strong the gates are, and no
// difference of large sums is taken. Weak gates wait until they have summed up to a factor: meanwhile
// keys are divided by what the state waits to fade by and queries multiplied by it (decay_step in
// lib/linear.wgsl).
// Delta rule: v_j is replaced by u_j, the solution of the unit triangular system
//   u_i + beta_i sum_{j < i} (sum_c k_ic k_jc e^{b_ic - b_jc}) u_j = beta_i (v_i - (k_i e^{b_i}) S_in),
// by forward substitution.
//   q [B, T, Hq, D], k [B, S, Hk, D], v [B, S, Hv, V], o [B, T, H, V], state [B, H, K, V] f32,
//   gate [H], [B, S, H] or [B, S, H, K], beta [B, S, H], z [.., B, H, segments, K] f32,
//   decays [B, H, segments, K] f32, logarithms
// Source: Yang et al. 2023, arXiv:2312.06635, section 4; delta rule: Yang et al. 2024,
// arXiv:2406.06484, section 3. Twin: none; the reference is the recurrence.
// @include linear_attention/params.wgsl

const FEATURES: u32 = 64u; // @spec
// what a segment does: begins from a state in memory, stores its last, stores its total decay
const LOADS: bool = false; // @spec
const STORES: bool = false; // @spec
const TOTALS: bool = false; // @spec
// tokens in a chunk, and those of them whose products are summed at a time
const CHUNK: u32 = 8u; // @spec
const STEP: u32 = 4u; // @spec
// rows in one invocation, groups of rows and of columns in a workgroup
const RK: u32 = 16u; // @spec
const RG: u32 = 4u; // @spec
const COLUMNS: u32 = 16u; // @spec
const SLICES: u32 = 1u; // @spec
// parts of the channels that scores are summed in
const PARTS: u32 = 8u; // @spec
// sizes of arrays that some variants do without: CHUNK * KP, CHUNK^2, KP, or 1
const GATE_TILE: u32 = 1u; // @spec
const DELTA_TILE: u32 = 1u; // @spec
const DELTA_SCORES: u32 = 1u; // @spec
const Z: u32 = 1u; // @spec
const TOTAL: u32 = 1u; // @spec
// what is staged at a time, CHUNK * KP, or KP where a channel's tokens depend on one another; channels
// that one invocation stages then, or 1
const TASKS: u32 = 512u; // @spec
const WAITS: u32 = 1u; // @spec
// rows, those past the last feature zero
const KP: u32 = RG * RK;
const WORKGROUP: u32 = RG * COLUMNS;
// indices of unrolled blocks
const I: u32 = 0u;
const R: u32 = 0u;

@group(0) @binding(1) var<storage, read> q: array<f32>; fn q_load(i: u32) -> f32 { return q[i]; } // @tensor
@group(0) @binding(2) var<storage, read> k: array<f32>; fn k_load(i: u32) -> f32 { return k[i]; } // @tensor
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; fn v_load4n(i: u32, n: u32) -> vec4<f32> { return v[i >> 2u]; } // @tensor
@group(0) @binding(4) var<storage, read> gate: array<f32>; fn gate_load(i: u32) -> f32 { return gate[i]; } // @tensor
@group(0) @binding(5) var<storage, read> beta: array<f32>; fn beta_load(i: u32) -> f32 { return beta[i]; } // @tensor
@group(0) @binding(6) var<storage, read_write> o: array<vec4<f32>>; fn o_load4n(i: u32, n: u32) -> vec4<f32> { return o[i >> 2u]; } fn o_store4n(i: u32, n: u32, x: vec4<f32>) { o[i >> 2u] = x; } // @tensor
@group(0) @binding(7) var<storage, read_write> state: array<vec4<f32>>; fn state_load4n(i: u32, n: u32) -> vec4<f32> { return state[i >> 2u]; } fn state_store4n(i: u32, n: u32, x: vec4<f32>) { state[i >> 2u] = x; } // @tensor
@group(0) @binding(8) var<storage, read_write> z: array<f32>; fn z_load(i: u32) -> f32 { return z[i]; } fn z_store(i: u32, x: f32) { z[i] = x; } // @tensor
@group(0) @binding(9) var<storage, read_write> decays: array<f32>; fn decays_store(i: u32, x: f32) { decays[i] = x; } // @tensor

// [CHUNK, KP]
var<workgroup> queries: array<f32, CHUNK * KP>;
var<workgroup> keys: array<f32, CHUNK * KP>;
var<workgroup> gates: array<f32, GATE_TILE>;
var<workgroup> old_keys: array<f32, DELTA_TILE>;
// [CHUNK, COLUMNS]
var<workgroup> values: array<vec4<f32>, CHUNK * COLUMNS>;
// [RG, STEP, COLUMNS]
var<workgroup> products: array<vec4<f32>, RG * STEP * COLUMNS>;
// [PARTS, CHUNK, CHUNK]
var<workgroup> score_parts: array<f32, PARTS * CHUNK * CHUNK>;
// [CHUNK, CHUNK]
var<workgroup> scores: array<f32, CHUNK * CHUNK>;
var<workgroup> delta_scores: array<f32, DELTA_SCORES>;
var<workgroup> factors: array<f32, CHUNK>;
var<workgroup> betas: array<f32, CHUNK>;
// before that, what the state waits to fade by at each token, see `up_of`
var<workgroup> denominators: array<f32, CHUNK>;
// decay over the chunk
var<workgroup> fade: array<f32, KP>;
var<workgroup> sum_k: array<f32, Z>;
var<workgroup> totals: array<f32, TOTAL>;

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


// Whether the weight or beta of token `t`, at `at` in memory, is zero: it hides key and value,
// whatever they hold.
fn hidden(at: u32) -> bool {
    if UPDATE == 0u {
        return false;
    }
    return beta_load(at) == 0.0;
}

// Factor of channel `c` at token `i` of the chunk.
fn factor_of(i: u32, c: u32) -> f32 {
    if DECAY == 3u {
        return gates[(i * KP + c) % GATE_TILE];
    }
    if DECAY == 0u {
        return 1.0;
    }
    return factors[i];
}

// What the state waits to fade by at token `i`, for all channels; those with gates of their own have it in
// their keys and queries.
fn up_of(i: u32) -> f32 {
    if DECAY == 1u || DECAY == 2u {
        return denominators[i];
    }
    return 1.0;
}

@compute @workgroup_size(WORKGROUP)
fn chunk_portable(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = group_index(group_id, group_count);
    let slice = group % SLICES;
    let segment = (group / SLICES) % params.segments;
    let head = (group / (SLICES * params.segments)) % params.heads;
    let sequence = group / (SLICES * params.segments * params.heads);
    if sequence >= params.batch {
        return;
    }

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

    let first_row = (local / COLUMNS) * RK;
    let cols = local % COLUMNS;
    // a column group past the last repeats it and is not stored
    let own = slice * COLUMNS + cols < V4;
    let column = min(slice * COLUMNS + cols, V4 - 1u) * 4u;

    var s: array<vec4<f32>, RK>;
    // @unroll R RK
    s[R] = vec4<f32>(0.0);
    if LOADS && first_row + R < FEATURES {
        s[R] = state_load4n(s_base + (first_row + R) * params.state.z + column, min(4u, V - column));
    }
    // @end
    for (var c = local; c < KP; c += WORKGROUP) {
        if NORM != 0u {
            sum_k[c % Z] = 0.0;
            if LOADS && c < FEATURES {
                sum_k[c % Z] = z_load(params.z_in + z_at + c);
            }
        }
        if TOTALS {
            totals[c % TOTAL] = 0.0;
        }
    }
    // what the state waits to fade by, in two parts: of this invocation's channels, or, in the first
    // invocation, of all, with the logarithm of what has faded
    var waits: array<vec2<f32>, WAITS>;
    var wait = vec2<f32>(0.0);
    var gone = 0.0;

    for (var chunk = begin; chunk < end; chunk += CHUNK) {
        let n = min(CHUNK, end - chunk);
        workgroupBarrier();
        for (var task = local; task < TASKS; task += WORKGROUP) {
            for (var i = task; i < CHUNK * KP; i += TASKS) {
                let t = chunk + i / KP;
                let c = i % KP;
                let live = i / KP < n && c < FEATURES;
                var query = 0.0;
                var key = 0.0;
                if live && READS {
                    query = q_feature(q_base + t * params.q.y, c);
                }
                if live && WRITES && !hidden(b_base + t * params.beta.y) {
                    key = k_feature(k_base + t * params.k.y, c);
                    if UPDATE == 1u {
                        key *= beta_load(b_base + t * params.beta.y);
                    }
                }
                var up = 1.0;
                if DECAY == 3u {
                    var g = 0.0;
                    if live && WRITES {
                        g = gate_load(g_base + t * params.gate.y + c);
                    }
                    let before = waits[task / WORKGROUP];
                    let step = decay_step(vec4<f32>(g), vec4<f32>(before.x), vec4<f32>(before.y));
                    waits[task / WORKGROUP] = vec2<f32>(step.log.x, step.rest.x);
                    gates[i % GATE_TILE] = step.factor.x;
                    up = step.up.x;
                    if TOTALS {
                        totals[c % TOTAL] += step.gone.x;
                    }
                }
                queries[i] = query * up;
                keys[i] = key / up;
                if UPDATE == 2u {
                    old_keys[i % DELTA_TILE] = key * up;
                }
            }
        }
        for (var i = local; i < CHUNK * COLUMNS; i += WORKGROUP) {
            let group = min(slice * COLUMNS + i % COLUMNS, V4 - 1u) * 4u;
            var x = vec4<f32>(0.0);
            if WRITES && i / COLUMNS < n && !hidden(b_base + (chunk + i / COLUMNS) * params.beta.y) {
                x = v_load4n(v_base + (chunk + i / COLUMNS) * params.v.y + group, min(4u, V - group));
            }
            values[i] = x;
        }
        if UPDATE == 2u {
            for (var i = local; i < CHUNK; i += WORKGROUP) {
                var beta_of = 0.0;
                if i < n {
                    beta_of = beta_load(b_base + (chunk + i) * params.beta.y);
                }
                betas[i] = beta_of;
            }
        }
        if WRITES && (DECAY == 1u || DECAY == 2u) && local == 0u {
            for (var i = 0u; i < CHUNK; i++) {
                // a decay per head has no stride of tokens
                var g = 0.0;
                if i < n {
                    g = gate_load(g_base + (chunk + i) * params.gate.y);
                }
                let step = decay_step(vec4<f32>(g), vec4<f32>(wait.x), vec4<f32>(wait.y));
                wait = vec2<f32>(step.log.x, step.rest.x);
                gone += step.gone.x;
                factors[i] = step.factor.x;
                denominators[i] = step.up.x;
            }
        }
        workgroupBarrier();

        // decayed inner products of the chunk's tokens: queries with keys, then keys with keys
        if WRITES && (READS || UPDATE == 2u) {
            for (var side = select(1u, 0u, READS); side < select(1u, 2u, UPDATE == 2u); side++) {
                for (var task = local; task < PARTS * CHUNK; task += WORKGROUP) {
                    let j = task % CHUNK;
                    let part = task / CHUNK;
                    var sum: array<f32, CHUNK>;
                    // @unroll I CHUNK
                    sum[I] = 0.0;
                    // @end
                    for (var c = part; c < KP; c += PARTS) {
                        // k_j decayed to token I
                        var key = keys[j * KP + c];
                        // @unroll I CHUNK
                        if I >= j {
                            if DECAY == 3u && I > j {
                                key *= gates[(I * KP + c) % GATE_TILE];
                            }
                            if side == 0u {
                                sum[I] = fma(queries[I * KP + c], key, sum[I]);
                            } else {
                                sum[I] = fma(old_keys[(I * KP + c) % DELTA_TILE], key, sum[I]);
                            }
                        }
                        // @end
                    }
                    // @unroll I CHUNK
                    score_parts[(part * CHUNK + I) * CHUNK + j] = sum[I];
                    // @end
                }
                workgroupBarrier();
                for (var p = local; p < CHUNK * CHUNK; p += WORKGROUP) {
                    let i = p / CHUNK;
                    let j = p % CHUNK;
                    var sum = 0.0;
                    for (var part = 0u; part < PARTS; part++) {
                        sum += score_parts[part * CHUNK * CHUNK + p];
                    }
                    if DECAY == 1u || DECAY == 2u {
                        sum *= up_of(i) / up_of(j);
                        for (var u = j + 1u; u <= i; u++) {
                            sum *= factors[u];
                        }
                    }
                    if side == 0u {
                        scores[p] = select(0.0, sum, j <= i);
                    } else {
                        delta_scores[p % DELTA_SCORES] = select(0.0, sum * betas[i], j < i);
                    }
                }
                workgroupBarrier();
            }
        }

        // queries decayed from the chunk's start, keys to its end
        if DECAY != 0u {
            for (var c = local; c < KP; c += WORKGROUP) {
                var run = 1.0;
                for (var i = 0u; i < CHUNK; i++) {
                    run *= factor_of(i, c);
                    let reach = run * up_of(i);
                    queries[i * KP + c] *= reach;
                    if UPDATE == 2u {
                        old_keys[(i * KP + c) % DELTA_TILE] *= reach;
                    }
                }
                fade[c] = run;
                var back = 1.0;
                for (var i = CHUNK; i > 0u; i--) {
                    keys[(i - 1u) * KP + c] *= back / up_of(i - 1u);
                    back *= factor_of(i - 1u, c);
                }
            }
            workgroupBarrier();
        }

        if NORM != 0u {
            if READS {
                for (var i = local; i < CHUNK; i += WORKGROUP) {
                    var den = 0.0;
                    for (var c = 0u; c < KP; c++) {
                        den = fma(queries[i * KP + c], sum_k[c % Z], den);
                    }
                    if WRITES {
                        for (var j = 0u; j <= i; j++) {
                            den += scores[i * CHUNK + j];
                        }
                    }
                    denominators[i] = den;
                }
                workgroupBarrier();
            }
            if WRITES {
                for (var c = local; c < KP; c += WORKGROUP) {
                    var sum = sum_k[c % Z];
                    if DECAY != 0u {
                        sum *= fade[c];
                    }
                    for (var i = 0u; i < CHUNK; i++) {
                        sum += keys[i * KP + c];
                    }
                    sum_k[c % Z] = sum;
                }
            }
        }

        if UPDATE == 2u {
            for (var i0 = 0u; i0 < CHUNK; i0 += STEP) {
                // @unroll I STEP
                {
                    var sum = vec4<f32>(0.0);
                    let at = (i0 + I) * KP + first_row;
                    // @unroll R RK
                    sum += old_keys[(at + R) % DELTA_TILE] * s[R];
                    // @end
                    products[((local / COLUMNS) * STEP + I) * COLUMNS + cols] = sum;
                }
                // @end
                workgroupBarrier();
                for (var p = local; p < STEP * COLUMNS; p += WORKGROUP) {
                    var held = vec4<f32>(0.0);
                    for (var rows = 0u; rows < RG; rows++) {
                        held += products[rows * STEP * COLUMNS + p];
                    }
                    let i = i0 + p / COLUMNS;
                    let at = i * COLUMNS + p % COLUMNS;
                    values[at] = betas[i] * (values[at] - held);
                }
                workgroupBarrier();
            }
            if local < COLUMNS {
                for (var i = 1u; i < CHUNK; i++) {
                    var u = values[i * COLUMNS + local];
                    for (var j = 0u; j < i; j++) {
                        u -= delta_scores[(i * CHUNK + j) % DELTA_SCORES] * values[j * COLUMNS + local];
                    }
                    values[i * COLUMNS + local] = u;
                }
            }
            // reading has a barrier before it needs the values
            if !READS {
                workgroupBarrier();
            }
        }

        if READS {
            for (var i0 = 0u; i0 < CHUNK; i0 += STEP) {
                // @unroll I STEP
                {
                    var sum = vec4<f32>(0.0);
                    let at = (i0 + I) * KP + first_row;
                    // @unroll R RK
                    sum += queries[at + R] * s[R];
                    // @end
                    products[((local / COLUMNS) * STEP + I) * COLUMNS + cols] = sum;
                }
                // @end
                workgroupBarrier();
                for (var p = local; p < STEP * COLUMNS; p += WORKGROUP) {
                    let i = i0 + p / COLUMNS;
                    let group = slice * COLUMNS + p % COLUMNS;
                    var sum = vec4<f32>(0.0);
                    for (var rows = 0u; rows < RG; rows++) {
                        sum += products[rows * STEP * COLUMNS + p];
                    }
                    if WRITES {
                        for (var j = 0u; j <= i; j++) {
                            sum += scores[i * CHUNK + j] * values[j * COLUMNS + p % COLUMNS];
                        }
                    }
                    if i < n && group < V4 {
                        let factor = select(params.scale, 1.0, FEATURE == 5u);
                        if NORM == 1u {
                            sum = sum / (factor * denominators[i] + params.floor);
                        }
                        if NORM == 2u {
                            sum = sum / max(denominators[i], params.floor);
                        }
                        o_store4n(
                            o_base + (chunk + i) * params.o.y + group * 4u,
                            min(4u, V - group * 4u),
                            sum * factor,
                        );
                    }
                }
                workgroupBarrier();
            }
        }

        if WRITES {
            if DECAY != 0u {
                // @unroll R RK
                s[R] *= fade[first_row + R];
                // @end
            }
            for (var i = 0u; i < CHUNK; i++) {
                let x = values[i * COLUMNS + cols];
                // @unroll R RK
                s[R] += keys[i * KP + first_row + R] * x;
                // @end
            }
        }
    }

    // what the state still waits for is due
    if WRITES && DECAY != 0u && (STORES || TOTALS) {
        workgroupBarrier();
        for (var c = local; c < KP && DECAY == 3u; c += WORKGROUP) {
            let late = waits[c / WORKGROUP];
            fade[c] = late.x + late.y;
            if TOTALS {
                totals[c % TOTAL] += fade[c];
            }
        }
        for (var c = 0u; c < KP && DECAY != 3u && local == 0u; c++) {
            fade[c] = wait.x + wait.y;
            if TOTALS {
                totals[c % TOTAL] = gone + fade[c];
            }
        }
        workgroupBarrier();
        var bits = vec4<u32>(0u);
        // @unroll R RK
        bits += bitcast<vec4<u32>>(s[R]);
        // @end
        // @unroll R RK
        s[R] = decay_rest(s[R], decay_late(fade[first_row + R]), decay_chance(bits), params.zero);
        // @end
    }
    if STORES {
        // @unroll R RK
        if own && first_row + R < FEATURES {
            state_store4n(s_base + (first_row + R) * params.state.z + column, min(4u, V - column), s[R]);
        }
        // @end
        // by those who summed them
        if NORM != 0u && slice == 0u {
            for (var c = local; c < FEATURES; c += WORKGROUP) {
                var sum = sum_k[c % Z];
                if WRITES && DECAY != 0u {
                    // of itself: who sums may have no column of the state
                    let own = vec4<f32>(sum);
                    let chance = decay_chance(bitcast<vec4<u32>>(own));
                    sum = decay_rest(own, decay_late(fade[c]), chance, params.zero).x;
                }
                z_store(params.z_out + z_at + c, sum);
            }
        }
    }
    if TOTALS && slice == 0u {
        for (var c = local; c < FEATURES; c += WORKGROUP) {
            decays_store(params.decays + z_at + c, totals[c % TOTAL]);
        }
    }
}
