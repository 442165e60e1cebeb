// Decoding on a GPU: a few rows of one key head against many keys.
// One workgroup owns ROWS rows and passes over GROUPS * BLOCK_K keys at a time. A group of LANES invocations
// takes BLOCK_K of them; its lanes share the channels, dealt out in chunks of 16 bytes, so that neighbours
// read what lies side by side, and every element of a key or value is read once for all rows. A score is
// the sum of the lanes' products. Each group keeps references, sums and outputs of its own keys; at the
// end the groups' are added up in their order. A key's group depends on its place alone. The parts'
// results are merged in order by merge.wgsl.
// Subgroups may have any size from LANES on, and need not be alike; without them, or with smaller ones,
// lanes exchange their products through workgroup memory.
// Source: Dao 2023, arXiv:2307.08691, Algorithm 1; parts of keys as in Flash-Decoding (Dao, Haziza,
// Massa and Sizov 2023). Twin: none; the reference is the whole op.
// @include attention/params.wgsl
// @include attention/problem.wgsl

const WORKGROUP: u32 = 128u; // @spec
const LANES: u32 = 8u; // @spec
const ROWS: u32 = 4u; // @spec
const BLOCK_K: u32 = 4u; // @spec
const SUBGROUP: bool = true; // @spec
// halvings of LANES
const STEPS: u32 = 3u; // @spec
// vec4s of a chunk, and chunks of a row of k and of v
const CHUNK: u32 = 2u; // @spec
const DK: u32 = 16u; // @spec
const DV: u32 = 16u; // @spec
// chunks of one lane, and whether every lane has as many
const K_CHUNKS: u32 = 2u; // @spec
const V_CHUNKS: u32 = 2u; // @spec
const K_WHOLE: bool = true; // @spec
// a chunk of k and v is one load
const WIDE: bool = true; // @spec
// a block lies in one page
const ONE_PAGE: bool = true; // @spec
// indices of unrolled blocks
const A: u32 = 0u;
const C: u32 = 0u;
const I: u32 = 0u;
const J: u32 = 0u;
const N: u32 = 0u;
const S: u32 = 0u;
const T: u32 = 0u;
const W: u32 = 0u;

const GROUPS: u32 = WORKGROUP / LANES;
const TILE_K: u32 = GROUPS * BLOCK_K;
const K_VECS: u32 = K_CHUNKS * CHUNK;
const V_VECS: u32 = V_CHUNKS * CHUNK;
const WIDTH: u32 = 4u * CHUNK;
const SCORES: u32 = ROWS * BLOCK_K;
// lines of a vec4 for each invocation: the products of a block; at the end as many parts of outputs
const LINES: u32 = SCORES / 4u;
const ROUNDS: u32 = ROWS * V_VECS / LINES;

var<workgroup> lines: array<array<vec4<f32>, WORKGROUP>, LINES>;

@compute @workgroup_size(WORKGROUP)
fn groups(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    // @if SUBGROUP
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    // @else
    @builtin(local_invocation_index) local: u32,
    // @end
) {
    let index = group_index(group_id, group_count);
    if index >= params.groups {
        return;
    }
    // @if SUBGROUP
    let lane = subgroup_lane % LANES;
    let group = subgroup * (subgroup_size / LANES) + subgroup_lane / LANES;
    let place = group * LANES + lane;
    // @else
    let lane = local % LANES;
    let group = local / LANES;
    let place = local;
    // @end
    let piece = piece_of(index);
    let first_row = piece.block * ROWS;
    let reach = reach_of(piece, first_row, ROWS);

    var row: array<Row, ROWS>;
    var query: array<vec4<f32>, ROWS * K_VECS>;
    var m: array<f32, ROWS>;
    var l: array<f32, ROWS>;
    var acc: array<vec4<f32>, ROWS * V_VECS>;
    // @unroll I ROWS
    row[I] = row_at(piece, first_row + I);
    // @unroll C K_CHUNKS
    {
        let chunk = C * LANES + lane;
        let at = q_at(piece, row[I]) + min(chunk, DK - 1u) * WIDTH;
        // @unroll W CHUNK
        // a lane without a chunk adds nothing
        query[I * K_VECS + C * CHUNK + W] = select(vec4<f32>(0.0), params.scale * q_load4n(at + W * 4u, 4u), K_WHOLE || chunk < DK);
        // @end
    }
    // @end
    m[I] = LEAST;
    l[I] = 0.0;
    // @if SINKS
    // it belongs to the first split, and counts once
    if piece.split == 0u && group == 0u {
        m[I] = sink_of(row[I]);
        l[I] = WEIGHT_UNIT;
    }
    // @end
    // @unroll C V_VECS
    acc[I * V_VECS + C] = vec4<f32>(0.0);
    // @end
    // @end

    // tiles begin at multiples from the piece's first key: a row's bits depend on no other row
    let begin = piece.begin + (reach.first - piece.begin) / TILE_K * TILE_K;
    for (var start = begin; start < reach.last; start += TILE_K) {
        let partial = hides(reach, start, TILE_K);
        let own = start + group * BLOCK_K;
        // @if ONE_PAGE
        // rows of the page past the last key exist, and are hidden
        let key = min(own, (piece.seq_k - 1u) / BLOCK_K * BLOCK_K);
        let k_first = k_at(piece, key);
        let v_first = v_at(piece, key);
        // @end
        var s: array<f32, SCORES>;
        // @unroll I SCORES
        s[I] = 0.0;
        // @end
        // @unroll J BLOCK_K
        {
            // @if ONE_PAGE
            let at = k_first + J * params.k.y;
            // @else
            let at = k_at(piece, min(own + J, piece.seq_k - 1u));
            // @end
            // @unroll C K_CHUNKS
            {
                let x = k_chunk(at + min(C * LANES + lane, DK - 1u) * WIDTH);
                // @unroll I ROWS
                // @unroll W CHUNK
                // @unroll A 4
                s[I * BLOCK_K + J] = fma(query[I * K_VECS + C * CHUNK + W][A], x[W][A], s[I * BLOCK_K + J]);
                // @end
                // @end
                // @end
            }
            // @end
        }
        // @end
        // @if SUBGROUP
        // @unroll T STEPS
        // @unroll I SCORES
        s[I] += subgroupShuffleXor(s[I], LANES >> (T + 1u));
        // @end
        // @end
        // @else
        workgroupBarrier();
        // @unroll I LINES
        lines[I][place] = vec4<f32>(s[I * 4u], s[I * 4u + 1u], s[I * 4u + 2u], s[I * 4u + 3u]);
        // @end
        workgroupBarrier();
        // @unroll I LINES
        {
            var sum = vec4<f32>(0.0);
            // @unroll T LANES
            sum += lines[I][group * LANES + T];
            // @end
            // @unroll A 4
            s[I * 4u + A] = sum[A];
            // @end
        }
        // @end
        // @end

        // @if QUANTIZED
        // one scale for a block: SCALE_BLOCK is a multiple of BLOCK_K
        let scale_k = k_factor(piece, min(own, piece.seq_k - 1u));
        let scale_v = v_factor(piece, min(own, piece.seq_k - 1u));
        // @unroll I SCORES
        s[I] *= scale_k;
        // @end
        // @end
        // @if SHAPED
        // @unroll I ROWS
        // @unroll J BLOCK_K
        s[I * BLOCK_K + J] = score(row[I], own + J, s[I * BLOCK_K + J]);
        // @end
        // @end
        // @end
        // @if PARTIAL
        if partial {
            // @unroll I ROWS
            // @unroll J BLOCK_K
            s[I * BLOCK_K + J] = masked_score(row[I], own + J, s[I * BLOCK_K + J], bias_of(piece, row[I], own + J), seen_of(piece, row[I], own + J));
            // @end
            // @end
        }
        // @end
        // online softmax; s becomes the weights
        // @unroll I ROWS
        {
            var top = m[I];
            // @unroll J BLOCK_K
            top = max(top, s[I * BLOCK_K + J]);
            // @end
            let shrink = exp2_weight(m[I] - top, SOFT_EXP2);
            m[I] = top;
            l[I] *= shrink;
            // @unroll C V_VECS
            acc[I * V_VECS + C] *= shrink;
            // @end
            // @unroll J BLOCK_K
            s[I * BLOCK_K + J] = exp2_unit(s[I * BLOCK_K + J] - top, SOFT_EXP2);
            l[I] += s[I * BLOCK_K + J];
            // @if QUANTIZED
            // the scale of keys that are hidden may be anything
            s[I * BLOCK_K + J] = select(s[I * BLOCK_K + J] * scale_v, 0.0, s[I * BLOCK_K + J] == 0.0);
            // @end
            // @end
        }
        // @end
        // @unroll J BLOCK_K
        {
            // @if ONE_PAGE
            let at = v_first + J * params.v.y;
            // @else
            let at = v_at(piece, min(own + J, piece.seq_k - 1u));
            // @end
            // @unroll C V_CHUNKS
            {
                var x = v_chunk(at + min(C * LANES + lane, DV - 1u) * WIDTH);
                // @if PARTIAL
                // the weight of a key that some row does not see is 0, but 0 * NaN is NaN
                if partial {
                    // @unroll W CHUNK
                    x[W] = finite(x[W]);
                    // @end
                }
                // @end
                // @unroll I ROWS
                // @unroll W CHUNK
                acc[I * V_VECS + C * CHUNK + W] = fma(vec4<f32>(s[I * BLOCK_K + J]), x[W], acc[I * V_VECS + C * CHUNK + W]);
                // @end
                // @end
            }
            // @end
        }
        // @end
    }

    // the groups' references and sums
    workgroupBarrier();
    // @unroll I ROWS
    if lane == I {
        lines[0][I * GROUPS + group] = vec4<f32>(m[I], l[I], 0.0, 0.0);
    }
    // @end
    workgroupBarrier();
    // @unroll I ROWS
    {
        var top = lines[0][I * GROUPS].x;
        for (var g = 1u; g < GROUPS; g++) {
            top = max(top, lines[0][I * GROUPS + g].x);
        }
        var sum = 0.0;
        for (var g = 0u; g < GROUPS; g++) {
            let end = lines[0][I * GROUPS + g];
            sum = fma(end.y, exp2_weight(end.x - top, SOFT_EXP2), sum);
        }
        // merged as they are, see merge.wgsl
        let factor = exp2_weight(m[I] - top, SOFT_EXP2);
        // @unroll C V_VECS
        acc[I * V_VECS + C] *= factor;
        // @end
        if place == 0u && first_row + I < piece.rows {
            store_lse(piece, row[I], top, sum);
        }
    }
    // @end
    // and their outputs, LINES at a time
    // @unroll N ROUNDS
    workgroupBarrier();
    // @unroll S LINES
    lines[S][place] = acc[(N * LINES + S) % ROWS * V_VECS + (N * LINES + S) / ROWS];
    // @end
    workgroupBarrier();
    if place < LINES * LANES {
        let line = place / LANES;
        var sum = vec4<f32>(0.0);
        for (var g = 0u; g < GROUPS; g++) {
            sum += lines[line][g * LANES + lane];
        }
        let own_row = first_row + (N * LINES + line) % ROWS;
        let vec = (N * LINES + line) / ROWS;
        let chunk = vec / CHUNK * LANES + lane;
        if own_row < piece.rows && chunk < DV {
            o_store4n(o_at(piece, row_at(piece, own_row)) + chunk * WIDTH + vec % CHUNK * 4u, 4u, sum);
        }
    }
    // @end
}

// A chunk of k from element `at` on, and of v.
fn k_chunk(at: u32) -> array<vec4<f32>, CHUNK> {
    // @if WIDE
    return k_load8(at);
    // @else
    var x: array<vec4<f32>, CHUNK>;
    // @unroll W CHUNK
    x[W] = k_load4n(at + W * 4u, 4u);
    // @end
    return x;
    // @end
}

fn v_chunk(at: u32) -> array<vec4<f32>, CHUNK> {
    // @if WIDE
    return v_load8(at);
    // @else
    var x: array<vec4<f32>, CHUNK>;
    // @unroll W CHUNK
    x[W] = v_load4n(at + W * 4u, 4u);
    // @end
    return x;
    // @end
}
