// The sums as they are written, tile by tile: o_i = sum_j w_ij v_j / sum_j w_ij with
// w_ij = e^(b[j - i] - r_i) phi(q_i).phi(k_j). The reference r_i is the largest
// b[j - i] + ln |phi(q_i).phi(k_j)| of the keys so far, give or take ln 2, so that the largest weight
// of every row is near 1 whatever b and the features are: nothing overflows, nothing is subtracted, and
// what underflows is below the row's rounding. A key with b = -inf, or after a causal query, has no
// weight, and no effect whatever it holds.
//
// One workgroup owns TILE queries and TILE channels, and visits TILE keys at a time. Invocation
// (a, c) owns queries 4 a to 4 a + 3, first with keys 4 c to 4 c + 3 of a tile, then with channels
// 4 c to 4 c + 3.
//   phi: features of queries, at `start_q`, and keys, at `start_in`, [rows, M, positions]
//   rows: values [B, N, H, V], `x`    b: [H, 2 N - 1]    o: output [B, N, H, V], `w`
// Repairing, only queries with a flag are written, and a tile without one is left as it is.
//   phi: flags at `start_out`, [rows, positions], 0 or 1
// Source: Luo et al. 2021, arXiv:2106.12566.
const CAUSAL: bool = true; // @spec
const REPAIR: bool = true; // @spec
const WORKGROUP: u32 = 64u;
// Queries, keys and channels of a tile.
const TILE: u32 = 32u;
// Fours of them.
const FOURS: u32 = 8u;
// Features at a time.
const DEPTH: u32 = 16u;
// Steps in an unrolled loop.
const STEP: u32 = 8u;
const I: u32 = 0u; // @index
// Below it, b hides its keys.
const HIDDEN: f32 = -3.3e38;
const LOWEST: f32 = -3.4e38;

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
@group(0) @binding(1) var<storage, read> phi: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> rows: array<f32>; fn rows_load4n(i: u32, n: u32) -> vec4<f32> { return vec4<f32>(rows[i]); } // @tensor
@group(0) @binding(3) var<storage, read> b: array<f32>; fn b_load(i: u32) -> f32 { return b[i]; } // @tensor
@group(0) @binding(4) var<storage, read_write> o: array<f32>; fn o_store4n(i: u32, n: u32, x: vec4<f32>) { o[i] = x.x; } // @tensor

// Four queries, or keys, of one feature.
var<workgroup> tile_q: array<vec4<f32>, DEPTH * FOURS>;
var<workgroup> tile_k: array<vec4<f32>, DEPTH * FOURS>;
// Four channels of one key.
var<workgroup> tile_v: array<vec4<f32>, TILE * FOURS>;
// Weights of one key for four queries.
var<workgroup> tile_w: array<vec4<f32>, TILE * FOURS>;
// What each invocation found for its four queries.
var<workgroup> found: array<vec4<f32>, WORKGROUP>;
// @if REPAIR
// Whether a query of the tile has a flag.
var<workgroup> flagged: u32;

// Flags of four queries, 0 past the last.
fn flags_load(chunk_row: u32, four: u32) -> vec4<f32> {
    let fours = params.positions / 4u;
    if four >= fours { return vec4<f32>(0.0); }
    return phi[params.start_out / 4u + chunk_row * fours + four];
}
// @end

// Feature m of four positions, 0 past the last.
fn phi_load(start: u32, m: u32, four: u32) -> vec4<f32> {
    if m >= params.features || 4u * four >= params.positions { return vec4<f32>(0.0); }
    return phi[start / 4u + m * (params.positions / 4u) + four];
}

// ln of positive numbers, give or take ln 2; within bounds that keep e^(b - reference) in range.
fn rough_ln(x: vec4<f32>) -> vec4<f32> {
    let exponent = vec4<i32>(bitcast<vec4<u32>>(x) >> vec4<u32>(23u)) - vec4<i32>(127);
    return 0.6931472 * vec4<f32>(clamp(exponent, vec4<i32>(-100), vec4<i32>(100)));
}

// The reference that one query's similarities to four keys ask for.
fn highest(similarity: vec4<f32>, bias: vec4<f32>, counts: vec4<bool>) -> f32 {
    let size = abs(similarity);
    let all = select(vec4<f32>(LOWEST), bias + rough_ln(size), counts & (size > vec4<f32>(0.0)));
    return max(max(all.x, all.y), max(all.z, all.w));
}

// Which of four keys, with these biases, count for a query.
fn seen(keys: vec4<u32>, query: u32, bias: vec4<f32>) -> vec4<bool> {
    // an index behind the last key, or behind the query where the mask is causal
    let end = select(params.seq, min(params.seq, query + 1u), CAUSAL);
    return (keys < vec4<u32>(end)) & (bias > vec4<f32>(HIDDEN));
}

// e^x, and 0 far below, whatever the device's exp makes of such numbers.
fn shrink(x: vec4<f32>) -> vec4<f32> {
    return exp(max(x, vec4<f32>(-200.0)));
}

fn weigh(similarity: vec4<f32>, bias: vec4<f32>, counts: vec4<bool>, reference: f32) -> vec4<f32> {
    return select(vec4<f32>(0.0), similarity * shrink(bias - reference), counts);
}

// Bias at a place counted from the first of its head.
fn bias_at(start: u32, at: i32) -> f32 {
    return b_load(start + u32(clamp(at, 0, 2 * i32(params.seq) - 2)));
}

@compute @workgroup_size(WORKGROUP)
fn exact(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let unit = group_index(id, groups);
    if unit >= params.count { return; }
    let tiles = (params.seq + TILE - 1u) / TILE;
    let slabs = (params.value_dim + TILE - 1u) / TILE;
    let slab = unit % slabs;
    // under a causal mask the longest rows first
    let tile = tiles - 1u - unit / slabs % tiles;
    let chunk_row = unit / slabs / tiles;
    let batch = (params.first + chunk_row) / params.heads;
    let head = (params.first + chunk_row) % params.heads;
    let a = local / FOURS;
    let c = local % FOURS;
    let query = tile * TILE + 4u * a;
    let channel = slab * TILE + 4u * c;
    let channels = max(channel, params.value_dim) - channel;

    let start_q = params.start_q + chunk_row * params.features * params.positions;
    let start_k = params.start_in + chunk_row * params.features * params.positions;
    let from_v = params.x.w + batch * params.x.x + head * params.x.z + channel;
    let from_b = params.b.y + head * params.b.x;

    var writes = vec4<u32>(query, query + 1u, query + 2u, query + 3u) < vec4<u32>(params.seq);
    // @if REPAIR
    if local == 0u {
        var flags = vec4<f32>(0.0);
        // @unroll I FOURS
        flags = max(flags, flags_load(chunk_row, tile * FOURS + I));
        // @end
        flagged = select(0u, 1u, any(flags > vec4<f32>(0.0)));
    }
    if workgroupUniformLoad(&flagged) == 0u { return; }
    writes = writes & (flags_load(chunk_row, tile * FOURS + a) > vec4<f32>(0.0));
    // @end

    var reference = vec4<f32>(LOWEST);
    var below = vec4<f32>(0.0);
    var o0 = vec4<f32>(0.0);
    var o1 = vec4<f32>(0.0);
    var o2 = vec4<f32>(0.0);
    var o3 = vec4<f32>(0.0);
    let last = select(params.seq, min(params.seq, (tile + 1u) * TILE), CAUSAL);
    for (var start = 0u; start < last; start += TILE) {
        var s0 = vec4<f32>(0.0);
        var s1 = vec4<f32>(0.0);
        var s2 = vec4<f32>(0.0);
        var s3 = vec4<f32>(0.0);
        for (var m = 0u; m < params.features; m += DEPTH) {
            // the queries stay where they fit
            if start == 0u || params.features > DEPTH {
                tile_q[local] = phi_load(start_q, m + a, tile * FOURS + c);
                tile_q[local + WORKGROUP] = phi_load(start_q, m + a + FOURS, tile * FOURS + c);
            }
            tile_k[local] = phi_load(start_k, m + a, start / 4u + c);
            tile_k[local + WORKGROUP] = phi_load(start_k, m + a + FOURS, start / 4u + c);
            workgroupBarrier();
            for (var d = 0u; d < DEPTH; d += STEP) {
                // @unroll I STEP
                {
                    let q = tile_q[(d + I) * FOURS + a];
                    let k = tile_k[(d + I) * FOURS + c];
                    s0 = fma(vec4<f32>(q.x), k, s0);
                    s1 = fma(vec4<f32>(q.y), k, s1);
                    s2 = fma(vec4<f32>(q.z), k, s2);
                    s3 = fma(vec4<f32>(q.w), k, s3);
                }
                // @end
            }
            workgroupBarrier();
        }

        // the seven diagonals that four queries and four keys meet on, by key minus query
        let key = start + 4u * c;
        let middle = i32(params.seq) - 1 + i32(key) - i32(query);
        let d0 = bias_at(from_b, middle - 3);
        let d1 = bias_at(from_b, middle - 2);
        let d2 = bias_at(from_b, middle - 1);
        let d3 = bias_at(from_b, middle);
        let d4 = bias_at(from_b, middle + 1);
        let d5 = bias_at(from_b, middle + 2);
        let d6 = bias_at(from_b, middle + 3);
        let b0 = vec4<f32>(d3, d4, d5, d6);
        let b1 = vec4<f32>(d2, d3, d4, d5);
        let b2 = vec4<f32>(d1, d2, d3, d4);
        let b3 = vec4<f32>(d0, d1, d2, d3);
        let keys = vec4<u32>(key, key + 1u, key + 2u, key + 3u);
        let c0 = seen(keys, query, b0);
        let c1 = seen(keys, query + 1u, b1);
        let c2 = seen(keys, query + 2u, b2);
        let c3 = seen(keys, query + 3u, b3);
        found[local] = vec4<f32>(
            highest(s0, b0, c0), highest(s1, b1, c1), highest(s2, b2, c2), highest(s3, b3, c3));
        // @unroll I 4
        {
            let key_v = start + a + I * FOURS;
            let count = select(0u, channels, key_v < params.seq);
            tile_v[local + I * WORKGROUP] = rows_load4n(from_v + key_v * params.x.y, count);
        }
        // @end
        workgroupBarrier();

        let before = reference;
        // @unroll I FOURS
        reference = max(reference, found[a * FOURS + I]);
        // @end
        let kept = shrink(before - reference);
        o0 *= kept.x;
        o1 *= kept.y;
        o2 *= kept.z;
        o3 *= kept.w;
        let w0 = weigh(s0, b0, c0, reference.x);
        let w1 = weigh(s1, b1, c1, reference.y);
        let w2 = weigh(s2, b2, c2, reference.z);
        let w3 = weigh(s3, b3, c3, reference.w);
        let one = vec4<f32>(1.0);
        below = fma(below, kept, vec4<f32>(dot(w0, one), dot(w1, one), dot(w2, one), dot(w3, one)));
        tile_w[4u * c * FOURS + a] = vec4<f32>(w0.x, w1.x, w2.x, w3.x);
        tile_w[(4u * c + 1u) * FOURS + a] = vec4<f32>(w0.y, w1.y, w2.y, w3.y);
        tile_w[(4u * c + 2u) * FOURS + a] = vec4<f32>(w0.z, w1.z, w2.z, w3.z);
        tile_w[(4u * c + 3u) * FOURS + a] = vec4<f32>(w0.w, w1.w, w2.w, w3.w);
        workgroupBarrier();

        for (var j = 0u; j < TILE; j += STEP) {
            // @unroll I STEP
            {
                let w = tile_w[(j + I) * FOURS + a];
                let x = tile_v[(j + I) * FOURS + c];
                var x0 = x;
                var x1 = x;
                var x2 = x;
                var x3 = x;
                // what has no weight may be NaN
                if any(w == vec4<f32>(0.0)) {
                    x0 = select(vec4<f32>(0.0), x, w.x != 0.0);
                    x1 = select(vec4<f32>(0.0), x, w.y != 0.0);
                    x2 = select(vec4<f32>(0.0), x, w.z != 0.0);
                    x3 = select(vec4<f32>(0.0), x, w.w != 0.0);
                }
                o0 = fma(vec4<f32>(w.x), x0, o0);
                o1 = fma(vec4<f32>(w.y), x1, o1);
                o2 = fma(vec4<f32>(w.z), x2, o2);
                o3 = fma(vec4<f32>(w.w), x3, o3);
            }
            // @end
        }
    }

    found[local] = below;
    workgroupBarrier();
    var total = vec4<f32>(0.0);
    // @unroll I FOURS
    total += found[a * FOURS + I];
    // @end
    // a row without weights is 0
    total = select(total, vec4<f32>(1.0), total == vec4<f32>(0.0));
    let from_o = params.w.w + batch * params.w.x + head * params.w.z + channel;
    if writes.x { o_store4n(from_o + query * params.w.y, channels, o0 / total.x); }
    if writes.y { o_store4n(from_o + (query + 1u) * params.w.y, channels, o1 / total.y); }
    if writes.z { o_store4n(from_o + (query + 2u) * params.w.y, channels, o2 / total.z); }
    if writes.w { o_store4n(from_o + (query + 3u) * params.w.y, channels, o3 / total.w); }
}
