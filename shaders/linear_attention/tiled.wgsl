// Linear attention for GPUs: chunks of tokens, two-dimensional register tiles over workgroup memory.
// One workgroup owns 4 TX columns of one (sequence, head, segment)'s state and walks the segment in chunks
// of CHUNK tokens. Invocation (tx, ty) holds, as vec4s of four columns, the state's rows of ty, the
// outputs of ROWS tokens, and the scores of these tokens with 4 GK keys. A chunk is four products:
//   scores = q k^T and q S over slices of DEPTH channels, which share q; then, over parts of PART tokens,
//   o = e^b (q S) + (scores e^(b_i - b_j), j <= i) v   and   S = S + (k e^-b)^T v,
// with b the log decay summed from the chunk's first token on, in two parts whose differences are exact.
// The state is worth e^(log + rest) times the numbers kept (decay_step in lib/linear.wgsl, here for chunks
// and not for tokens): weak gates wait until they have summed up to a factor. Queries, keys and scores
// are exponentiated once for each chunk. No subgroup operation: one text for every device.
//   q [B, T, Hq, D], k [B, S, Hk, D], v [B, S, Hv, V], o [B, T, H, V], state [B, H, K, V] f32,
//   gate [H] or [B, S, H], beta [B, S, H], z [.., B, H, segments, K] f32, decays [B, H, segments, K] f32,
//   logarithms
// Source: Yang et al. 2023, arXiv:2312.06635, section 4. Twin: none; the reference is the recurrence.
// @include linear_attention/params.wgsl

// what a segment does: begins from a state in memory, stores its last, stores its total decay
const LOADS: bool = true; // @spec
const STORES: bool = true; // @spec
const TOTALS: bool = true; // @spec
// the state fades; by gates of tokens; tokens have weights; outputs have a denominator
const FADES: bool = true; // @spec
const GATED: bool = true; // @spec
const WEIGHTED: bool = true; // @spec
const NORMED: bool = true; // @spec
const TX: u32 = 16u; // @spec
const TY: u32 = 8u; // @spec
// groups of four tokens, keys and rows of the state of one invocation
const GR: u32 = 2u; // @spec
const GK: u32 = 1u; // @spec
const GC: u32 = 2u; // @spec
// channels, and tokens, in workgroup memory at a time
const DEPTH: u32 = 16u; // @spec
const PART: u32 = 16u; // @spec
const SLICES: u32 = 1u; // @spec
// vec4s in a line of `shared_rows`: the larger of TX and TY * GC
const WIDTH: u32 = 16u; // @spec
// the larger of DEPTH / 4 and PART / 4
const LINES4: u32 = 4u; // @spec
// indices of unrolled blocks
const A: u32 = 0u;
const G: u32 = 0u;
const I: u32 = 0u;
const J: u32 = 0u;
const S: u32 = 0u;
const U: u32 = 0u;
const X: u32 = 0u;

const WORKGROUP: u32 = TX * TY;
const ROWS: u32 = 4u * GR;
const CHUNK: u32 = TY * ROWS;
const QUADS: u32 = CHUNK / 4u;
// rows of the state, those past the last feature zero
const KP: u32 = TY * 4u * GC;
const D4: u32 = (DIM + 3u) / 4u;
// groups of four channels in a slice, of four tokens in a part
const DEPTH4: u32 = DEPTH / 4u;
const PART4: u32 = PART / 4u;
// passes of all invocations that stage a slice of q or k, a part of v, and of k as rows of the state
const Q_PASSES: u32 = (QUADS * DEPTH4 + WORKGROUP - 1u) / WORKGROUP;
const V_PASSES: u32 = (TX * PART + WORKGROUP - 1u) / WORKGROUP;
const K_PASSES: u32 = (TY * GC * PART + WORKGROUP - 1u) / WORKGROUP;
// something is made ready before a chunk
const READY: bool = FADES || WEIGHTED;

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; fn q_load4n(i: u32, n: u32) -> vec4<f32> { return q[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>; fn k_load4n(i: u32, n: u32) -> vec4<f32> { return k[i >> 2u]; } // @tensor
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; fn v_load4n(i: u32, n: u32) -> vec4<f32> { return v[i >> 2u]; } // @tensor
@group(0) @binding(4) var<storage, read> gate: array<f32>; fn gate_load(i: u32) -> f32 { return gate[i]; } // @tensor
@group(0) @binding(5) var<storage, read> beta: array<f32>; fn beta_load(i: u32) -> f32 { return beta[i]; } // @tensor
@group(0) @binding(6) var<storage, read_write> o: array<vec4<f32>>; fn o_load4n(i: u32, n: u32) -> vec4<f32> { return o[i >> 2u]; } fn o_store4n(i: u32, n: u32, x: vec4<f32>) { o[i >> 2u] = x; } // @tensor
@group(0) @binding(7) var<storage, read_write> state: array<vec4<f32>>; fn state_load4n(i: u32, n: u32) -> vec4<f32> { return state[i >> 2u]; } fn state_store4n(i: u32, n: u32, x: vec4<f32>) { state[i >> 2u] = x; } // @tensor
@group(0) @binding(8) var<storage, read_write> z: array<f32>; fn z_load(i: u32) -> f32 { return z[i]; } fn z_store(i: u32, x: f32) { z[i] = x; } // @tensor
@group(0) @binding(9) var<storage, read_write> decays: array<f32>; fn decays_store(i: u32, x: f32) { decays[i] = x; } // @tensor

// All indices but the first and the lane's are constants, so that the checks of those that naga adds
// fold. [channel / 4][channel % 4][group of tokens][ty], one more than TY against bank conflicts: q, and
// the scores with keys for channels; [..][..][group of keys][tx]: k, and values with tokens for channels;
// [..][..][columns or rows]: the state, and k with tokens for channels.
var<workgroup> left: array<array<array<array<vec4<f32>, TY + 1u>, GR>, 4>, LINES4>;
var<workgroup> right: array<array<array<array<vec4<f32>, TX>, GK>, 4>, LINES4>;
var<workgroup> shared_rows: array<array<array<vec4<f32>, WIDTH>, 4>, LINES4>;
// the key sum of a slice
var<workgroup> sums: array<vec4<f32>, DEPTH4>;
// Of four gates each: sums from the first of them on, in two parts
var<workgroup> whole_gates: array<vec4<f32>, QUADS>;
var<workgroup> gate_rests: array<vec4<f32>, QUADS>;
// of each token: its summed log decay in two parts, and what its query and its key are multiplied by
var<workgroup> whole_logs: array<f32, CHUNK>;
var<workgroup> log_rests: array<f32, CHUNK>;
var<workgroup> query_factors: array<f32, CHUNK>;
var<workgroup> key_factors: array<f32, CHUNK>;
var<workgroup> weights: array<f32, CHUNK>;

// The part of a log decay that is a multiple of 2^-10: sums of 64 are exact, and so are differences of sums.
fn whole_part(log: f32) -> f32 {
    return ceil(log * 1024.0) * 0.0009765625;
}

// e^x for x <= 0.
fn fading(x: f32) -> f32 {
    let near = fma(x, decay_slope(vec4<f32>(max(x, -1.0))).x, 1.0);
    return select(near, gate_factor(vec4<f32>(x)).x, x < -1.0);
}

// e^x for x <= 0, as the device computes it; 0 far below, whatever it makes of such numbers
fn fading_fast(x: f32) -> f32 {
    return select(exp2(x * 1.4426950408889634), 0.0, x < -87.0);
}

@compute @workgroup_size(WORKGROUP)
fn tiled(
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
    let tx = local % TX;
    let ty = local / TX;

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

    // a column group past the last repeats it and is not stored
    let own = slice * TX + tx < V4;
    let column = min(slice * TX + tx, V4 - 1u) * 4u;
    let own_row = ty * ROWS;
    // first of the state's rows
    let own_channel = ty * (4u * GC);

    var state_of: array<vec4<f32>, 4u * GC>;
    // all lanes of a row follow the key sum
    var sum_k: array<vec4<f32>, GC>;
    // @unroll G GC
    sum_k[G] = vec4<f32>(0.0);
    // @unroll X 4
    state_of[4u * G + X] = vec4<f32>(0.0);
    // @if LOADS
    if own_channel + (4u * G + X) < DIM {
        state_of[4u * G + X] = state_load4n(
            s_base + (own_channel + (4u * G + X)) * params.state.z + column, min(4u, V - column));
        // @if NORMED
        sum_k[G][X] = z_load(params.z_in + z_at + own_channel + (4u * G + X));
        // @end
    }
    // @end
    // @end
    // @end
    // @if FADES
    // @if GATED
    // @else
    let gate_of_head = clamp(gate_load(g_base), -200.0, 0.0);
    // @end
    // @end
    // logarithms of what the state waits to fade by, in two parts, and of what has faded
    var wait = 0.0;
    var rest = 0.0;
    var gone = 0.0;

    // The bounds of inner loops, as no compiler knows them: unrolled, their loads are all put first, which Intel's
    // registers do not hold, and the text gets twice as long.
    let depth4 = DEPTH4 + params.zero;
    let part4 = PART4 + params.zero;
    // what this invocation stages of a slice: channels of four tokens; of a part: columns of a token
    let quad = local % QUADS;
    let v_column = v_base + min(slice * TX + tx, V4 - 1u) * 4u;
    for (var chunk = begin; chunk < end; chunk += CHUNK) {
        let n = min(CHUNK, end - chunk);
        // rows past the last repeat it: their outputs are not stored, as keys nobody sees them, and the state
        // takes zeros for them
        // @if READS
        var q_rows: array<u32, 4>;
        var k_rows: array<u32, 4>;
        // @unroll A 4
        q_rows[A] = q_base + min(chunk + quad * 4u + A, end - 1u) * params.q.y;
        // @if WRITES
        k_rows[A] = k_base + min(chunk + quad * 4u + A, end - 1u) * params.k.y;
        // @end
        // @end
        // @end
        // @if FADES
        var fade = 1.0;
        // @end
        // @if READY
        // @if GATED
        if local < QUADS {
            var log = vec2<f32>(0.0);
            var sum: array<vec2<f32>, 4>;
            // @unroll A 4
            {
                let t = local * 4u + A;
                if t < n {
                    let g = clamp(gate_load(g_base + (chunk + t) * params.gate.y), -200.0, 0.0);
                    let whole = whole_part(g);
                    log += vec2<f32>(whole, g - whole);
                }
                sum[A] = log;
            }
            // @end
            whole_gates[local] = vec4<f32>(sum[0].x, sum[1].x, sum[2].x, sum[3].x);
            gate_rests[local] = vec4<f32>(sum[0].y, sum[1].y, sum[2].y, sum[3].y);
        }
        // @end
        // @if WEIGHTED
        if local < CHUNK {
            weights[local] = 0.0;
            if local < n {
                weights[local] = beta_load(b_base + (chunk + local) * params.beta.y);
            }
        }
        // @end
        workgroupBarrier();
        // @if FADES
        {
            let t = local % CHUNK;
            // up to this token, and of all
            var log = vec2<f32>(0.0);
            var all = vec2<f32>(0.0);
            // @if GATED
            for (var u = 0u; u < QUADS; u++) {
                let quad = vec2<f32>(whole_gates[u].w, gate_rests[u].w);
                all += quad;
                // a gate has no effect on earlier tokens, NaN included
                log += select(vec2<f32>(0.0), quad, u < t / 4u);
            }
            log += vec2<f32>(whole_gates[t / 4u][t % 4u], gate_rests[t / 4u][t % 4u]);
            // @else
            let sum = gate_of_head * f32(n);
            all = vec2<f32>(whole_part(sum), sum - whole_part(sum));
            let sum_t = gate_of_head * f32(t + 1u);
            log = vec2<f32>(whole_part(sum_t), sum_t - whole_part(sum_t));
            // @end
            let step = decay_step(vec4<f32>(all.y), vec4<f32>(wait + all.x), vec4<f32>(rest));
            let up = fading((wait + log.x) + (rest + log.y));
            let down = select(1.0 / up, fading((all.x - log.x) + (all.y - log.y)), step.gone.x < 0.0);
            wait = step.log.x;
            rest = step.rest.x;
            gone += step.gone.x;
            fade = step.factor.x;
            if local < CHUNK {
                whole_logs[t] = log.x;
                log_rests[t] = log.y;
                query_factors[t] = up;
                key_factors[t] = down;
            }
        }
        // @end
        // @end

        // @if READS
        var acc: array<vec4<f32>, ROWS>;
        var den: array<vec4<f32>, GR>;
        var scores: array<vec4<f32>, ROWS * GK>;
        // @unroll I ROWS
        acc[I] = vec4<f32>(0.0);
        // @unroll J GK
        scores[J * ROWS + I] = vec4<f32>(0.0);
        // @end
        // @end
        // @unroll I GR
        den[I] = vec4<f32>(0.0);
        // @end
        for (var channels = 0u; channels < KP / 4u; channels += DEPTH4) {
            workgroupBarrier();
            // @unroll S Q_PASSES
            {
                let c = (S * WORKGROUP + local) / QUADS;
                if Q_PASSES * WORKGROUP == QUADS * DEPTH4 || c < DEPTH4 {
                    let channel = channels + c;
                    var x: array<vec4<f32>, 4>;
                    if KP / 4u == D4 || channel < D4 {
                        // @unroll A 4
                        x[A] = features(channel, q_load4n(q_rows[A] + channel * 4u, min(4u, DIM - channel * 4u)));
                        // @end
                    }
                    // @unroll A 4
                    left[c][A][quad % GR][quad / GR] = vec4<f32>(x[0][A], x[1][A], x[2][A], x[3][A]);
                    // @end
                    // @if WRITES
                    if KP / 4u == D4 || channel < D4 {
                        // @unroll A 4
                        {
                            x[A] = features(channel, k_load4n(k_rows[A] + channel * 4u, min(4u, DIM - channel * 4u)));
                            // @if WEIGHTED
                            // a weight of zero hides the key, whatever it holds
                            let weight = weights[quad * 4u + A];
                            x[A] = select(x[A] * weight, vec4<f32>(0.0), weight == 0.0);
                            // @end
                        }
                        // @end
                    }
                    // @unroll A 4
                    right[c][A][quad / TX][quad % TX] = vec4<f32>(x[0][A], x[1][A], x[2][A], x[3][A]);
                    // @end
                    // @end
                }
            }
            // @end
            // @unroll G GC
            {
                let channel = ty * GC + G;
                if channel / DEPTH4 == channels / DEPTH4 {
                    // @unroll X 4
                    shared_rows[channel % DEPTH4][X][tx] = state_of[4u * G + X];
                    // @end
                    // @if NORMED
                    if tx == 0u {
                        sums[channel % DEPTH4] = sum_k[G];
                    }
                    // @end
                }
            }
            // @end
            workgroupBarrier();
            for (var c = 0u; c < depth4; c++) {
                // @if NORMED
                let sum = sums[c];
                // @end
                // @unroll U 4
                {
                    var a: array<vec4<f32>, GR>;
                    // @unroll I GR
                    a[I] = left[c][U][I][ty];
                    // @end
                    let held = shared_rows[c][U][tx];
                    // @unroll I GR
                    // @unroll A 4
                    acc[4u * I + A] = fma(vec4<f32>(a[I][A]), held, acc[4u * I + A]);
                    // @end
                    // @if NORMED
                    den[I] = fma(a[I], vec4<f32>(sum[U]), den[I]);
                    // @end
                    // @end
                    // @if WRITES
                    // @unroll J GK
                    {
                        let b = right[c][U][J][tx];
                        // @unroll I GR
                        // @unroll A 4
                        scores[J * ROWS + 4u * I + A] = fma(vec4<f32>(a[I][A]), b, scores[J * ROWS + 4u * I + A]);
                        // @end
                        // @end
                    }
                    // @end
                    // @end
                }
                // @end
            }
        }
        // @if WRITES
        // @if FADES
        // @unroll I GR
        // @unroll A 4
        acc[4u * I + A] *= query_factors[own_row + (4u * I + A)];
        // @if NORMED
        den[I][A] *= query_factors[own_row + (4u * I + A)];
        // @end
        // @end
        // @end
        // @end
        // @unroll J GK
        // @unroll X 4
        {
            let key = (J * TX + tx) * 4u + X;
            // @if GATED
            let log = vec2<f32>(whole_logs[key], log_rests[key]);
            // @end
            // @unroll I ROWS
            {
                let row = own_row + I;
                var score = scores[J * ROWS + I][X];
                // @if FADES
                // @if GATED
                score *= fading_fast((whole_logs[row] - log.x) + (log_rests[row] - log.y));
                // @else
                score *= fading_fast(f32(max(i32(row) - i32(key), 0)) * gate_of_head);
                // @end
                // @end
                // what comes later is not seen, whatever it holds
                scores[J * ROWS + I][X] = select(score, 0.0, key > row);
            }
            // @end
        }
        // @end
        // @end
        // @end
        // @end

        // @if WRITES
        // outputs of the last chunk need no later state
        let updates = STORES || chunk + CHUNK < end;
        // @if FADES
        if updates {
            // @unroll G GC
            sum_k[G] *= fade;
            // @unroll X 4
            state_of[4u * G + X] *= fade;
            // @end
            // @end
        }
        // @end
        for (var part = 0u; part < CHUNK; part += PART) {
            workgroupBarrier();
            // @if READS
            // @unroll J GK
            {
                let quad = J * TX + tx;
                if quad / PART4 == part / PART {
                    // @unroll X 4
                    // @unroll I GR
                    left[quad % PART4][X][I][ty] = vec4<f32>(
                        scores[J * ROWS + 4u * I][X], scores[J * ROWS + 4u * I + 1u][X],
                        scores[J * ROWS + 4u * I + 2u][X], scores[J * ROWS + 4u * I + 3u][X]);
                    // @end
                    // @end
                }
            }
            // @end
            // @end
            // @unroll S V_PASSES
            {
                let t = S * TY + ty;
                if V_PASSES * TY == PART || t < PART {
                    let x = v_load4n(v_column + min(chunk + part + t, end - 1u) * params.v.y, min(4u, V - column));
                    right[t / 4u][t % 4u][0][tx] = select(vec4<f32>(0.0), x, part + t < n && visible(part + t));
                }
            }
            // @end
            if updates {
                // @unroll S K_PASSES
                {
                    let item = S * WORKGROUP + local;
                    let t = item / (TY * GC);
                    let c = item % (TY * GC);
                    if K_PASSES * WORKGROUP == PART * TY * GC || t < PART {
                        var x = vec4<f32>(0.0);
                        if KP / 4u == D4 || c < D4 {
                            x = features(c, k_load4n(
                                k_base + min(chunk + part + t, end - 1u) * params.k.y + c * 4u, min(4u, DIM - c * 4u)));
                            // @if WEIGHTED
                            x *= weights[part + t];
                            // @end
                            // @if FADES
                            x *= key_factors[part + t];
                            // @end
                        }
                        shared_rows[t / 4u][t % 4u][c] = select(vec4<f32>(0.0), x, part + t < n && visible(part + t));
                    }
                }
                // @end
            }
            workgroupBarrier();
            // @if READS
            if part + PART <= own_row + 1u {
                for (var t = 0u; t < part4; t++) {
                    // @unroll U 4
                    {
                        let b = right[t][U][0][tx];
                        // @unroll I GR
                        {
                            let a = left[t][U][I][ty];
                            // @unroll A 4
                            acc[4u * I + A] = fma(vec4<f32>(a[A]), b, acc[4u * I + A]);
                            // @end
                            // @if NORMED
                            den[I] += a;
                            // @end
                        }
                        // @end
                    }
                    // @end
                }
            } else if part < own_row + ROWS {
                // some token comes after some row: its score is 0, but 0 * NaN is NaN, and so with infinity
                for (var t = 0u; t < part4; t++) {
                    // @unroll U 4
                    {
                        let b = right[t][U][0][tx];
                        let token = part + t * 4u + U;
                        let bits = bitcast<vec4<u32>>(b) & vec4<u32>(0x7fffffffu);
                        let wild = max(max(bits.x, bits.y), max(bits.z, bits.w)) >= 0x7f800000u;
                        // @unroll I GR
                        {
                            let a = left[t][U][I][ty];
                            if !wild {
                                // @unroll A 4
                                acc[4u * I + A] = fma(vec4<f32>(a[A]), b, acc[4u * I + A]);
                                // @end
                            } else {
                                // @unroll A 4
                                if token <= own_row + (4u * I + A) {
                                    acc[4u * I + A] = fma(vec4<f32>(a[A]), b, acc[4u * I + A]);
                                }
                                // @end
                            }
                            // @if NORMED
                            den[I] += a;
                            // @end
                        }
                        // @end
                    }
                    // @end
                }
            }
            // @end
            if updates {
                for (var t = 0u; t < part4; t++) {
                    // @unroll U 4
                    {
                        let b = right[t][U][0][tx];
                        // @unroll G GC
                        {
                            let a = shared_rows[t][U][ty * GC + G];
                            // @unroll X 4
                            state_of[4u * G + X] = fma(vec4<f32>(a[X]), b, state_of[4u * G + X]);
                            // @end
                            // @if NORMED
                            sum_k[G] += a;
                            // @end
                        }
                        // @end
                    }
                    // @end
                }
            }
        }
        // @end

        // @if READS
        // @unroll I GR
        // @unroll A 4
        if own_row + (4u * I + A) < n && own {
            var sum = acc[4u * I + A] * params.scale;
            if NORM == 1u {
                sum = sum / (params.scale * den[I][A] + params.floor);
            }
            if NORM == 2u {
                sum = sum / max(den[I][A], params.floor);
            }
            o_store4n(o_base + (chunk + own_row + (4u * I + A)) * params.o.y + column, min(4u, V - column), sum);
        }
        // @end
        // @end
        // @end
    }

    // @if STORES
    // @if FADES
    // what the state still waits for is due
    {
        let parts = decay_late(wait + rest);
        var bits = vec4<u32>(0u);
        // @unroll G 4u * GC
        bits += bitcast<vec4<u32>>(state_of[G]);
        // @end
        let chance = decay_chance(bits);
        // @unroll G 4u * GC
        state_of[G] = decay_rest(state_of[G], parts, chance, params.zero);
        // @end
        // @unroll G GC
        // @unroll X 4
        {
            // of itself: who sums may have no column of the state
            let sum = vec4<f32>(sum_k[G][X]);
            sum_k[G][X] = decay_rest(sum, parts, decay_chance(bitcast<vec4<u32>>(sum)), params.zero).x;
        }
        // @end
        // @end
    }
    // @end
    // @unroll G GC
    // @unroll X 4
    if own_channel + (4u * G + X) < DIM {
        if own {
            state_store4n(
                s_base + (own_channel + (4u * G + X)) * params.state.z + column, min(4u, V - column), state_of[4u * G + X]);
        }
        // @if NORMED
        if slice == 0u && tx == 0u {
            z_store(params.z_out + z_at + own_channel + (4u * G + X), sum_k[G][X]);
        }
        // @end
    }
    // @end
    // @end
    // @end
    // @if TOTALS
    if slice == 0u && tx == 0u {
        // @unroll G 4u * GC
        if own_channel + G < DIM {
            decays_store(params.decays + z_at + own_channel + G, gone + (wait + rest));
        }
        // @end
    }
    // @end
}

// Whether token `t` of the chunk has a weight: one of zero hides key and value, whatever they hold.
fn visible(t: u32) -> bool {
    if UPDATE == 0u {
        return true;
    }
    return weights[t] != 0.0;
}
