// FlashAttention-2 forward for GPUs: two-dimensional register tiles over workgroup memory.
// One workgroup owns TY * ROWS rows of one (sequence, group of heads). Keys pass in tiles of TX * KEYS. An
// invocation (tx, ty) holds, as vec4s of four rows, the scores of ROWS rows and KEYS keys, TX apart,
// and the outputs of the same rows and CHUNKS chunks of four channels, TX apart. Scores are summed over
// slices of DEPTH channels of q and k, both turned over as they are staged; outputs over parts of PART
// keys, whose weights and values are staged alike. So each element that is read from workgroup memory
// serves ROWS or KEYS multiply-adds of a lane. No subgroup operation: one text for every device.
// Source: Dao 2023, arXiv:2307.08691, Algorithm 1. Twin: none; the reference is the whole op.
// @include attention/params.wgsl
// @include attention/problem.wgsl

const TX: u32 = 8u; // @spec
const TY: u32 = 16u; // @spec
// groups of four rows, and of four keys, of one invocation
const GR: u32 = 2u; // @spec
const GK: u32 = 2u; // @spec
const CHUNKS: u32 = 2u; // @spec
const DEPTH: u32 = 16u; // @spec
const SLICES: u32 = 4u; // @spec
// whether every slice is full
const WHOLE: bool = true; // @spec
const PART: u32 = 16u; // @spec
// A part is the keys of so many columns of the tile, or a column has so many parts.
const COLUMNS: u32 = 2u; // @spec
const SHARES: u32 = 1u; // @spec
// Channels of k that lie side by side in a line of workgroup memory as wide as a value's row
const FOLD: u32 = 1u; // @spec
// quads of channels in `left` and `right`, and vec4s in a line of `right` over TX
const LEFT: u32 = 4u; // @spec
const RIGHT: u32 = 4u; // @spec
const WIDTH: u32 = 2u; // @spec
// passes of all invocations that stage a slice or a part
const Q_PASSES: u32 = 1u; // @spec
const K_PASSES: u32 = 1u; // @spec
const V_PASSES: u32 = 2u; // @spec
// a column has several parts
const SHARED: bool = false; // @spec
// indices of unrolled blocks
const A: u32 = 0u;
const C: u32 = 0u;
const I: u32 = 0u;
const J: u32 = 0u;
const P: u32 = 0u;
const S: u32 = 0u;
const U: u32 = 0u;

const WORKGROUP: u32 = TX * TY;
const ROWS: u32 = 4u * GR;
const KEYS: u32 = 4u * GK;
const TILE_Q: u32 = TY * ROWS;
const TILE_K: u32 = TX * KEYS;
const PARTS: u32 = KEYS / COLUMNS;
const UNROLL: u32 = 4u * FOLD;
const D4: u32 = (HEAD_DIM + 3u) / 4u;
const DV4: u32 = (HEAD_DIM_V + 3u) / 4u;

// All indices but the first and the lane's are constants, so that the checks of those that naga adds
// fold. [channel / 4][channel % 4][group of rows][ty], one more than TY against bank conflicts: q, and
// the weights with keys for channels; [channel / FOLD / 4][channel / FOLD % 4][..][tx]: k, and values with
// keys for channels; in `right` lanes exchange maxima and sums, too.
var<workgroup> left: array<array<array<array<vec4<f32>, TY + 1u>, GR>, 4>, LEFT>;
var<workgroup> right: array<array<array<array<vec4<f32>, TX>, WIDTH>, 4>, RIGHT>;

@compute @workgroup_size(WORKGROUP)
fn tiled(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = group_index(group_id, group_count);
    if group >= params.groups {
        return;
    }
    let piece = piece_of(group);
    let tx = local % TX;
    let ty = local / TX;
    let first_row = piece.block * TILE_Q;
    let own_row = first_row + ty * ROWS;
    let reach = reach_of(piece, first_row, TILE_Q);

    // four rows of q that this invocation stages, and the first of their channels
    let q_quad = local % (TY * GR);
    let q_chunk = local / (TY * GR);
    var q_rows: array<u32, 4>;
    // @unroll A 4
    q_rows[A] = q_at(piece, row_at(piece, first_row + q_quad * 4u + A));
    // @end
    // of k: four keys that lie TX apart
    let k_quad = local % (TX * GK);
    let k_chunk = local / (TX * GK);
    let k_own = k_quad % TX + k_quad / TX * (4u * TX);

    var m: array<vec4<f32>, GR>;
    var l: array<vec4<f32>, GR>;
    var acc: array<vec4<f32>, CHUNKS * 4u * GR>;
    // @unroll I GR
    m[I] = vec4<f32>(LEAST);
    l[I] = vec4<f32>(0.0);
    // @if SINKS
    // it belongs to the first split, and counts once
    if piece.split == 0u {
        // @unroll A 4
        m[I][A] = sink_of(row_at(piece, own_row + I * 4u + A));
        // @end
        l[I] = vec4<f32>(select(0.0, 1.0, tx == 0u));
    }
    // @end
    // @unroll C CHUNKS * 4u
    acc[C * GR + I] = vec4<f32>(0.0);
    // @end
    // @end

    // tiles begin at multiples from the piece's first key: a row's bits depend on no other row
    let begin = piece.begin + (reach.first - piece.begin) / TILE_K * TILE_K;
    for (var start = begin; start < reach.last; start += TILE_K) {
        let partial = hides(reach, start, TILE_K);
        var s: array<vec4<f32>, KEYS * GR>;
        // @unroll J KEYS
        // @unroll I GR
        s[J * GR + I] = vec4<f32>(0.0);
        // @end
        // @end
        var k_rows: array<u32, 4>;
        // @if QUANTIZED
        var k_factors: array<f32, 4>;
        // @end
        // @unroll A 4
        {
            let key = min(start + k_own + A * TX, piece.seq_k - 1u);
            k_rows[A] = k_at(piece, key);
            // @if QUANTIZED
            k_factors[A] = k_factor(piece, key);
            // @end
        }
        // @end
        for (var slice = 0u; slice < SLICES; slice++) {
            let chunk = slice * (DEPTH / 4u);
            workgroupBarrier();
            // @unroll S Q_PASSES
            {
                let c = q_chunk + S * (TX / GR);
                if c < DEPTH / 4u {
                    var x: array<vec4<f32>, 4>;
                    // @if WHOLE
                    // @unroll A 4
                    x[A] = params.scale * q_load4n(q_rows[A] + (chunk + c) * 4u, 4u);
                    // @end
                    // @else
                    // channels past the end are zero
                    if chunk + c < D4 {
                        // @unroll A 4
                        x[A] = params.scale * q_load4n(q_rows[A] + (chunk + c) * 4u, min(4u, HEAD_DIM - (chunk + c) * 4u));
                        // @end
                    }
                    // @end
                    // @unroll A 4
                    left[c][A][q_quad % GR][q_quad / GR] = vec4<f32>(x[0][A], x[1][A], x[2][A], x[3][A]);
                    // @end
                }
            }
            // @end
            // @unroll S K_PASSES
            {
                let c = k_chunk + S * (TY / GK);
                if c < DEPTH / 4u {
                    var x: array<vec4<f32>, 4>;
                    // @if WHOLE
                    // @unroll A 4
                    x[A] = k_load4n(k_rows[A] + (chunk + c) * 4u, 4u);
                    // @end
                    // @else
                    if chunk + c < D4 {
                        // @unroll A 4
                        x[A] = k_load4n(k_rows[A] + (chunk + c) * 4u, min(4u, HEAD_DIM - (chunk + c) * 4u));
                        // @end
                    }
                    // @end
                    // @if QUANTIZED
                    // @unroll A 4
                    x[A] *= k_factors[A];
                    // @end
                    // @end
                    // channel c * 4 + A is part of line (c * 4 + A) / FOLD
                    // @unroll A 4
                    right[c / FOLD][c % FOLD * (4u / FOLD) + A / FOLD][A % FOLD * GK + k_quad / TX][k_quad % TX] =
                        vec4<f32>(x[0][A], x[1][A], x[2][A], x[3][A]);
                    // @end
                }
            }
            // @end
            workgroupBarrier();
            for (var c = 0u; c < DEPTH / UNROLL; c++) {
                // @unroll U UNROLL
                {
                    var a: array<vec4<f32>, GR>;
                    // @unroll I GR
                    a[I] = left[c * FOLD + U / 4u][U % 4u][I][ty];
                    // @end
                    var b: array<vec4<f32>, GK>;
                    // @unroll J GK
                    b[J] = right[c][U / FOLD][U % FOLD * GK + J][tx];
                    // @end
                    // @unroll J KEYS
                    // @unroll I GR
                    s[J * GR + I] = fma(vec4<f32>(b[J / 4u][J % 4u]), a[I], s[J * GR + I]);
                    // @end
                    // @end
                }
                // @end
            }
        }
        // @if SHAPED
        // @unroll I GR
        // @unroll A 4
        {
            let row = row_at(piece, own_row + I * 4u + A);
            // @unroll J KEYS
            s[J * GR + I][A] = score(row, start + tx + J * TX, s[J * GR + I][A]);
            // @end
        }
        // @end
        // @end
        // @end
        // @if PARTIAL
        if partial {
            // @unroll I GR
            // @unroll A 4
            {
                let row = row_at(piece, own_row + I * 4u + A);
                // @unroll J KEYS
                s[J * GR + I][A] = masked_score(row, start + tx + J * TX, s[J * GR + I][A], bias_of(piece, row, start + tx + J * TX), seen_of(piece, row, start + tx + J * TX));
                // @end
            }
            // @end
            // @end
        }
        // @end

        // online softmax; s becomes the weights
        var top: array<vec4<f32>, GR>;
        workgroupBarrier();
        // @unroll I GR
        top[I] = s[I];
        // @unroll J KEYS
        top[I] = max(top[I], s[J * GR + I]);
        // @end
        exchange(ty * GR + I, tx, top[I]);
        // @end
        workgroupBarrier();
        for (var t = 1u; t < TX; t++) {
            // @unroll I GR
            top[I] = max(top[I], exchanged(ty * GR + I, (t + tx) % TX));
            // @end
        }
        // @unroll I GR
        {
            let reference = max(m[I], top[I]);
            let change = m[I] - reference;
            var shrink = vec4<f32>(0.0);
            // @unroll A 4
            shrink[A] = exp2_weight(change[A], SOFT_EXP2);
            // @end
            m[I] = reference;
            l[I] *= shrink;
            // @unroll C CHUNKS * 4u
            acc[C * GR + I] *= shrink;
            // @end
            // @unroll J KEYS
            {
                let x = s[J * GR + I] - reference;
                // far below 0, whatever the device's exp2 makes of such numbers
                s[J * GR + I] = select(exp2(x), vec4<f32>(0.0), x < vec4<f32>(-150.0));
                l[I] += s[J * GR + I];
            }
            // @end
        }
        // @end

        // @unroll P PARTS
        // @if SHARED
        for (var share = 0u; share < SHARES; share++) {
        // @else
        {
        // @end
            workgroupBarrier();
            // @if SHARED
            let part = P * TX + share * PART;
            if tx / PART == share {
                // @unroll I GR
                left[tx % PART / 4u][tx % 4u][I][ty] = s[P * GR + I];
                // @end
            }
            // @else
            let part = P * PART;
            // @unroll J COLUMNS
            // @unroll I GR
            left[J * (TX / 4u) + tx / 4u][tx % 4u][I][ty] = s[(P * COLUMNS + J) * GR + I];
            // @end
            // @end
            // @end
            // @unroll S V_PASSES
            {
                let item = S * WORKGROUP + local;
                let t = item / (TX * CHUNKS);
                let c = item % (TX * CHUNKS);
                if t < PART {
                    let key = min(start + part + t, piece.seq_k - 1u);
                    var x = vec4<f32>(0.0);
                    if c < DV4 {
                        x = v_load4n(v_at(piece, key) + c * 4u, min(4u, HEAD_DIM_V - c * 4u));
                    }
                    // weights are at most 1: values are this small a part, for sums are in f32
                    x *= v_factor(piece, key) * WEIGHT_UNIT;
                    // @if PARTIAL
                    // the weight of a key that some row does not see is 0, but 0 * NaN is NaN
                    if partial {
                        x = finite(x);
                    }
                    // @end
                    right[t / 4u][t % 4u][c / TX][c % TX] = x;
                }
            }
            // @end
            workgroupBarrier();
            for (var t = 0u; t < PART / 4u; t++) {
                // @unroll U 4
                {
                    var a: array<vec4<f32>, GR>;
                    // @unroll I GR
                    a[I] = left[t][U][I][ty];
                    // @end
                    var b: array<vec4<f32>, CHUNKS>;
                    // @unroll C CHUNKS
                    b[C] = right[t][U][C][tx];
                    // @end
                    // @unroll C CHUNKS * 4u
                    // @unroll I GR
                    acc[C * GR + I] = fma(vec4<f32>(b[C / 4u][C % 4u]), a[I], acc[C * GR + I]);
                    // @end
                    // @end
                }
                // @end
            }
        }
        // @end
    }

    // the lanes' sums
    workgroupBarrier();
    // @unroll I GR
    exchange(ty * GR + I, tx, l[I]);
    l[I] = vec4<f32>(0.0);
    // @end
    workgroupBarrier();
    for (var t = 0u; t < TX; t++) {
        // @unroll I GR
        l[I] += exchanged(ty * GR + I, t);
        // @end
    }
    // @unroll I GR
    // @unroll A 4
    {
        let index = own_row + I * 4u + A;
        if index < piece.rows {
            let row = row_at(piece, index);
            let sum = l[I][A] * WEIGHT_UNIT;
            // @if SPLIT
            // merged as they are, see merge.wgsl
            let inverse = 1.0;
            // @else
            let inverse = select(1.0 / sum, 0.0, sum == 0.0);
            // @end
            let at = o_at(piece, row);
            // @unroll C CHUNKS
            if C * TX + tx < DV4 {
                let chunk = C * TX + tx;
                let x = vec4<f32>(acc[C * 4u * GR + I][A], acc[(C * 4u + 1u) * GR + I][A], acc[(C * 4u + 2u) * GR + I][A], acc[(C * 4u + 3u) * GR + I][A]);
                o_store4n(at + chunk * 4u, min(4u, HEAD_DIM_V - chunk * 4u), x * inverse);
            }
            // @end
            if tx == 0u {
                store_lse(piece, row, m[I][A], sum);
            }
        }
    }
    // @end
    // @end
}

// Line `line` of TX numbers, one for each lane.
fn exchange(line: u32, lane: u32, x: vec4<f32>) {
    right[line / (4u * WIDTH)][line / WIDTH % 4u][line % WIDTH][lane] = x;
}

fn exchanged(line: u32, lane: u32) -> vec4<f32> {
    return right[line / (4u * WIDTH)][line / WIDTH % 4u][line % WIDTH][lane];
}
