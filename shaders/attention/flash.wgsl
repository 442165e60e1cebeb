// FlashAttention-2 forward, both tiers, every option.
// One workgroup owns WORKGROUP * QUERIES rows of one (sequence, group of heads); one invocation owns
// QUERIES of them (row = first + i * WORKGROUP + lane) and keeps their queries, running maxima (or
// what stands for them, see LAZY), sums and outputs in registers. Keys pass in blocks of BLOCK_K, at most
// one correction of the maximum each.
// SUBGROUP: each lane loads a share of the block's rows with vec4 loads, and every lane hears the
// others' by broadcast. No workgroup memory, no barrier. Otherwise keys pass in tiles of TILE_K,
// staged in workgroup memory where STAGED, else read from where they are.
// SPLIT: the keys of a row are cut at multiples of split_keys, a workgroup each; the partial results
// are merged in order by merge.wgsl.
// Source: Dao 2023, arXiv:2307.08691, Algorithm 1. Twin: none; the reference is the whole op.
// @include attention/params.wgsl
// @include attention/problem.wgsl

const WORKGROUP: u32 = 32u; // @spec
const QUERIES: u32 = 4u; // @spec
const BLOCK_K: u32 = 4u; // @spec
const SUBGROUP: bool = true; // @spec
// lanes that load and speak: no more than the smallest subgroup the device may use
const LANES: u32 = 8u; // @spec
// chunks of four channels that one load of k or v brings, and whether these are two: of 64-bit words, or
// of texels of eight elements
const LOAD: u32 = 1u; // @spec
const WIDE: bool = false; // @spec
// a block's two entries of the bias are one load
const BIAS_PAIRS: bool = false; // @spec
// a block's entries of the mask lie in one word
const MASK_WORDS: bool = true; // @spec
const TILE_K: u32 = 32u; // @spec
const STAGED: bool = true; // @spec
// keys whose scores are summed at a time: so few that the sums stay in registers
const PASS_KEYS: u32 = 1u; // @spec
// queries are loaded and outputs stored in a loop over chunks, a select for each register, not in
// lines of their own: some drivers take long to compile a load
const ROLLED: bool = false; // @spec
// keys and values are staged in a loop, for the same reason
const STAGE_ROLLED: bool = false; // @spec
// A store that never happens ends a basic block in Mesa's llvmpipe; else the loop is one, and LLVM's
// time to put its thousands of instructions' variables into registers grows with its square.
const CUT: bool = false; // @spec
// Another after the dot products, which LLVM else orders by what is done with each score later: all
// keys for one query after the other, every broadcast by way of memory.
const CUT_SCORES: bool = false; // @spec
// Weights are relative to a reference, not to the running maximum: 0 until a row's first scores are
// more than NEAR from it, or any more than ABOVE over it. Outputs are rescaled a few times in all,
// mostly never, instead of at every block; the division by the sum leaves nothing of the reference. A
// block that moves it is scored twice.
const LAZY: bool = false; // @spec

const D4: u32 = (HEAD_DIM + 3u) / 4u;
const DV4: u32 = (HEAD_DIM_V + 3u) / 4u;
// loads and registers of a lane for its share of a block's keys and values
const K_LOADS: u32 = (BLOCK_K * D4 + LOAD * LANES - 1u) / (LOAD * LANES);
const V_LOADS: u32 = (BLOCK_K * DV4 + LOAD * LANES - 1u) / (LOAD * LANES);
const K_REGS: u32 = K_LOADS * LOAD;
const V_REGS: u32 = V_LOADS * LOAD;
// vec4s that one invocation stages
const K_STAGE: u32 = (TILE_K * D4 + WORKGROUP - 1u) / WORKGROUP;
const V_STAGE: u32 = (TILE_K * DV4 + WORKGROUP - 1u) / WORKGROUP;
const PASSES: u32 = BLOCK_K / PASS_KEYS;
// indices of unrolled blocks
const P: u32 = 0u;
const C: u32 = 0u;
const I: u32 = 0u;
const J: u32 = 0u;
const R: u32 = 0u;

// [TILE_K, D4] and [TILE_K, DV4]; one element where nothing is staged
const STAGE: u32 = select(0u, 1u, STAGED);
// @if SUBGROUP
// @else
var<workgroup> k_tile: array<vec4<f32>, STAGE * TILE_K * D4 + 1u - STAGE>;
var<workgroup> v_tile: array<vec4<f32>, STAGE * TILE_K * DV4 + 1u - STAGE>;
// @end

// How far a row's scores, in base 2, may be above the reference, and how far its first may be off it:
// a row's largest weight is from WEIGHT_UNIT / 2^NEAR to WEIGHT_UNIT * 2^ABOVE. Many values that are
// large and weigh as much must not add up to infinity, nor small ones vanish.
const ABOVE: f32 = 8.0;
const NEAR: f32 = 4.0;

@compute @workgroup_size(WORKGROUP)
fn flash(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    // @if SUBGROUP
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    // @end
) {
    let group = group_index(group_id, group_count);
    if group >= params.groups {
        return;
    }
    let piece = piece_of(group);
    // @if SUBGROUP
    let lane = subgroup_lane % LANES;
    // @end

    let first_row = piece.block * (WORKGROUP * QUERIES);
    // @if SUBGROUP
    // @else
    // @if STAGED
    // @else
    // nobody waits for an invocation without rows
    if first_row + local >= piece.rows {
        return;
    }
    // @end
    // @end
    var row: array<Row, QUERIES>;
    var q_row: array<u32, QUERIES>;
    // @unroll I QUERIES
    row[I] = row_at(piece, first_row + I * WORKGROUP + local);
    q_row[I] = q_at(piece, row[I]);
    // @end
    // the same for all invocations of the workgroup
    let reach = reach_of(piece, first_row, WORKGROUP * QUERIES);
    let first = reach.first / BLOCK_K * BLOCK_K;
    let last = reach.last;

    var query: array<vec4<f32>, QUERIES * D4>;
    // @if METRIC
    // the row vector q G, one channel of q at a time
    // @unroll I QUERIES
    // @unroll C D4
    query[I * D4 + C] = vec4<f32>(0.0);
    // @end
    // @end
    for (var c = 0u; c < HEAD_DIM; c++) {
        // @unroll I QUERIES
        {
            let x = params.scale * q_load(q_row[I] + c);
            let at = row[I].head * params.metric.x + c * params.metric.y + params.metric.w;
            // @unroll C D4
            query[I * D4 + C] = fma(vec4<f32>(x), metric_load4n(at + C * 4u, min(4u, HEAD_DIM - C * 4u)), query[I * D4 + C]);
            // @end
        }
        // @end
    }
    // @else
    // @if ROLLED
    var c = 0u;
    loop {
        // @unroll I QUERIES
        {
            let x = params.scale * q_load4n(q_row[I] + c * 4u, min(4u, HEAD_DIM - c * 4u));
            // @unroll C D4
            query[I * D4 + C] = select(query[I * D4 + C], x, c == C);
            // @end
        }
        // @end
        continuing {
            c += 1u;
            break if c == D4;
        }
    }
    // @else
    // @unroll I QUERIES
    // @unroll C D4
    query[I * D4 + C] = params.scale * q_load4n(q_row[I] + C * 4u, min(4u, HEAD_DIM - C * 4u));
    // @end
    // @end
    // @end
    // @end
    var m: array<f32, QUERIES>;
    var l: array<f32, QUERIES>;
    var acc: array<vec4<f32>, QUERIES * DV4>;
    // @unroll I QUERIES
    // @if LAZY
    m[I] = 0.0;
    // @else
    m[I] = LEAST;
    // @end
    l[I] = 0.0;
    // @if SINKS
    // one more logit, of a key without value; it belongs to the first split
    if piece.split == 0u {
        m[I] = sink_of(row[I]);
        l[I] = WEIGHT_UNIT;
    }
    // @end
    // @unroll C DV4
    acc[I * DV4 + C] = vec4<f32>(0.0);
    // @end
    // @end
    // @if SUBGROUP
    // where this lane's chunks of the first block lie, and the same chunk of the last row: rows
    // past the end repeat it. Written out of the loop by hand, for drivers that leave such in.
    var k_first: array<u32, K_LOADS>;
    var k_last: array<u32, K_LOADS>;
    // @unroll R K_LOADS
    k_first[R] = k_base(piece) + row_of((R * LANES + lane) * LOAD, D4) * params.k.y + chunk_of((R * LANES + lane) * LOAD, D4);
    k_last[R] = k_base(piece) + (piece.seq_k - 1u) * params.k.y + chunk_of((R * LANES + lane) * LOAD, D4);
    // @end
    var v_first: array<u32, V_LOADS>;
    var v_last: array<u32, V_LOADS>;
    // @unroll R V_LOADS
    v_first[R] = v_base(piece) + row_of((R * LANES + lane) * LOAD, DV4) * params.v.y + chunk_of((R * LANES + lane) * LOAD, DV4);
    v_last[R] = v_base(piece) + (piece.seq_k - 1u) * params.v.y + chunk_of((R * LANES + lane) * LOAD, DV4);
    // @end
    var k_step = first * params.k.y;
    var v_step = first * params.v.y;
    // @if LAZY
    var moved: array<f32, QUERIES>;
    // @unroll I QUERIES
    moved[I] = m[I];
    // @end
    var start = first;
    if first < last {
    loop {
        // @unroll I QUERIES
        {
            let moves = moved[I] != m[I];
            // where it moves down there is nothing to scale yet
            let shrink = select(1.0, exp2_weight(min(m[I] - moved[I], 0.0), SOFT_EXP2), moves);
            m[I] = moved[I];
            l[I] *= shrink;
            // @unroll C DV4
            acc[I * DV4 + C] *= shrink;
            // @end
        }
        // @end
    loop {
    // @else
    for (var start = first; start < last; start += BLOCK_K) {
    // @end
        // @if PAGED
        // a block lies in one page; rows of the page past the last key exist, and are hidden
        let page = table[piece.pages + start / PAGE];
        k_step = page * params.k.x + start % PAGE * params.k.y;
        v_step = page * params.v.x + start % PAGE * params.v.y;
        // @end
        // [BLOCK_K, D4] spread over the lanes
        var rows: array<vec4<f32>, K_REGS>;
        // @unroll R K_LOADS
        // @if PAGED
        // @if WIDE
        {
            let eight = k_load8(k_first[R] + k_step);
            rows[R * 2u] = eight[0];
            rows[R * 2u + 1u] = eight[1];
        }
        // @else
        rows[R] = k_load4n(k_first[R] + k_step, min(4u, HEAD_DIM - chunk_of(R * LANES + lane, D4)));
        // @end
        // @else
        // @if WIDE
        {
            let eight = k_load8(min(k_first[R] + k_step, k_last[R]));
            rows[R * 2u] = eight[0];
            rows[R * 2u + 1u] = eight[1];
        }
        // @else
        rows[R] = k_load4n(min(k_first[R] + k_step, k_last[R]), min(4u, HEAD_DIM - chunk_of(R * LANES + lane, D4)));
        // @end
        // @end
        // @end
    // @else
    for (var tile = first; tile < last; tile += TILE_K) {
        // @if STAGED
        workgroupBarrier();
        // @if STAGE_ROLLED
        var r = 0u;
        loop {
            let i = r * WORKGROUP + local;
            if i < TILE_K * D4 {
                k_tile[i] = k_row(piece, tile + i / D4, i % D4);
            }
            continuing {
                r += 1u;
                break if r == K_STAGE;
            }
        }
        r = 0u;
        loop {
            let i = r * WORKGROUP + local;
            if i < TILE_K * DV4 {
                v_tile[i] = v_row(piece, tile + i / DV4, i % DV4);
            }
            continuing {
                r += 1u;
                break if r == V_STAGE;
            }
        }
        // @else
        // written out: on some drivers loop trips are counted
        // @unroll R K_STAGE
        if R * WORKGROUP + local < TILE_K * D4 {
            let i = R * WORKGROUP + local;
            k_tile[i] = k_row(piece, tile + i / D4, i % D4);
        }
        // @end
        // @unroll R V_STAGE
        if R * WORKGROUP + local < TILE_K * DV4 {
            let i = R * WORKGROUP + local;
            v_tile[i] = v_row(piece, tile + i / DV4, i % DV4);
        }
        // @end
        // @end
        workgroupBarrier();
        // @end
    for (var start = tile; start < min(tile + TILE_K, last); start += BLOCK_K) {
        // @if PAGED
        let page = table[piece.pages + start / PAGE];
        // @end
    // @end
        var s: array<f32, QUERIES * BLOCK_K>;
        // @unroll I QUERIES
        // @unroll J BLOCK_K
        s[I * BLOCK_K + J] = 0.0;
        // @end
        // @end
        // @unroll P PASSES
        // @unroll C D4
        // @unroll J PASS_KEYS
        {
            // @if SUBGROUP
            let x = subgroupBroadcast(rows[((P * PASS_KEYS + J) * D4 + C) / LOAD / LANES * LOAD + C % LOAD], ((P * PASS_KEYS + J) * D4 + C) / LOAD % LANES);
            // @else
            // @if STAGED
            let x = k_tile[(start - tile + P * PASS_KEYS + J) * D4 + C];
            // @else
            let x = k_row(piece, start + P * PASS_KEYS + J, C);
            // @end
            // @end
            // @unroll I QUERIES
            {
                let y = query[I * D4 + C];
                s[I * BLOCK_K + P * PASS_KEYS + J] = fma(y.w, x.w, fma(y.z, x.z, fma(y.y, x.y, fma(y.x, x.x, s[I * BLOCK_K + P * PASS_KEYS + J]))));
            }
            // @end
        }
        // @end
        // @end
        // @end
        // @if CUT_SCORES
        if params.never != 0u {
            lse_store_bits(0u, 0u);
        }
        // @end

        // @if QUANTIZED
        // one scale for a block: SCALE_BLOCK is a multiple of BLOCK_K
        let scale_k = k_factor(piece, start);
        let scale_v = v_factor(piece, start);
        // @end
        // online softmax; s becomes the weights
        // @if LAZY
        var move_any = false;
        // @else
        var shrink: array<f32, QUERIES>;
        // @end
        // @unroll I QUERIES
        {
            // @if LAZY
            // where every key is visible every score counts, whatever it is
            var top = select(LEAST, HIDDEN, PARTIAL);
            // @else
            var top = m[I];
            // @end
            // @if MASK_WORDS
            let word = mask[(row[I].mask_at + start) >> 2u] >> ((start & 3u) * 8u);
            // @end
            // @if BIAS_PAIRS
            let pair = bias_load2(row[I].bias_at + start);
            // @end
            // @unroll J BLOCK_K
            // @if QUANTIZED
            s[I * BLOCK_K + J] *= scale_k;
            // @end
            s[I * BLOCK_K + J] = score(row[I], start + J, s[I * BLOCK_K + J]);
            // @if PARTIAL
            {
                // @if BIAS_PAIRS
                let bias = pair[J];
                // @else
                let bias = bias_of(piece, row[I], start + J);
                // @end
                // @if MASK_WORDS
                let seen = ((word >> (J * 8u)) & 255u) != 0u;
                // @else
                let seen = seen_of(piece, row[I], start + J);
                // @end
                s[I * BLOCK_K + J] = masked_score(row[I], start + J, s[I * BLOCK_K + J], bias, seen);
            }
            // @end
            top = max(top, s[I * BLOCK_K + J]);
            // @end
            // @if LAZY
            // each row by its own scores: its bits must not depend on its neighbours
            let far = top > m[I] + ABOVE || (l[I] == 0.0 && abs(top - m[I]) > NEAR && top != HIDDEN);
            moved[I] = select(m[I], top, far);
            move_any = move_any || far;
            // @else
            shrink[I] = exp2_weight(m[I] - top, SOFT_EXP2);
            m[I] = top;
            // @end
        }
        // @end
        // @if LAZY
        if subgroupAny(move_any) {
            break;
        }
        // @end
        // @unroll I QUERIES
        {
            var sum = 0.0;
            // @unroll J BLOCK_K
            s[I * BLOCK_K + J] = exp2_unit(s[I * BLOCK_K + J] - m[I], SOFT_EXP2);
            sum += s[I * BLOCK_K + J];
            // @end
            // @if LAZY
            l[I] += sum;
            // @else
            l[I] = fma(l[I], shrink[I], sum);
            // @end
            // @if QUANTIZED
            // @unroll J BLOCK_K
            // @if PARTIAL
            // the scale of keys that are hidden may be anything
            s[I * BLOCK_K + J] = select(s[I * BLOCK_K + J] * scale_v, 0.0, s[I * BLOCK_K + J] == 0.0);
            // @else
            s[I * BLOCK_K + J] *= scale_v;
            // @end
            // @end
            // @end
        }
        // @end

        // where some row does not see some key, its weight is 0, but 0 * NaN is NaN
        let partial = !QUANTIZED && hides(reach, start, BLOCK_K);
        // @if SUBGROUP
        // [BLOCK_K, DV4] spread over the lanes
        var values: array<vec4<f32>, V_REGS>;
        // @unroll R V_LOADS
        // @if PAGED
        // @if WIDE
        {
            let eight = v_load8(v_first[R] + v_step);
            values[R * 2u] = eight[0];
            values[R * 2u + 1u] = eight[1];
        }
        // @else
        values[R] = v_load4n(v_first[R] + v_step, min(4u, HEAD_DIM_V - chunk_of(R * LANES + lane, DV4)));
        // @end
        // @else
        // @if WIDE
        {
            let eight = v_load8(min(v_first[R] + v_step, v_last[R]));
            values[R * 2u] = eight[0];
            values[R * 2u + 1u] = eight[1];
        }
        // @else
        values[R] = v_load4n(min(v_first[R] + v_step, v_last[R]), min(4u, HEAD_DIM_V - chunk_of(R * LANES + lane, DV4)));
        // @end
        // @end
        // @end
        // @if PARTIAL
        if partial {
            // @unroll R V_REGS
            values[R] = finite(values[R]);
            // @end
        }
        // @end
        // @end
        // @if CUT
        if params.never != 0u {
            lse_store_bits(0u, 0u);
        }
        // @end
        // @unroll C DV4
        {
            var x: array<vec4<f32>, BLOCK_K>;
            // @unroll J BLOCK_K
            // @if SUBGROUP
            x[J] = subgroupBroadcast(values[(J * DV4 + C) / LOAD / LANES * LOAD + C % LOAD], (J * DV4 + C) / LOAD % LANES);
            // @else
            // @if STAGED
            x[J] = v_tile[(start - tile + J) * DV4 + C];
            // @else
            x[J] = v_row(piece, start + J, C);
            // @end
            // @if PARTIAL
            if partial {
                x[J] = finite(x[J]);
            }
            // @end
            // @end
            // @end
            // @unroll I QUERIES
            {
                // @if LAZY
                var sum = acc[I * DV4 + C];
                // @else
                var sum = acc[I * DV4 + C] * shrink[I];
                // @end
                // @unroll J BLOCK_K
                sum = fma(vec4<f32>(s[I * BLOCK_K + J]), x[J], sum);
                // @end
                acc[I * DV4 + C] = sum;
            }
            // @end
        }
        // @end
        // @if SUBGROUP
        // @if PAGED
        // @else
        k_step += BLOCK_K * params.k.y;
        v_step += BLOCK_K * params.v.y;
        // @end
        // @if LAZY
        start += BLOCK_K;
        continuing {
            break if start >= last;
        }
    }
        continuing {
            break if start >= last;
        }
    }
        // @end
        // @else
    }
        // @end
    }

    // @unroll I QUERIES
    {
        if first_row + I * WORKGROUP + local < piece.rows {
            // @if SPLIT
            // merged as they are, see merge.wgsl
            let inverse = 1.0;
            // @else
            let inverse = select(1.0 / l[I], 0.0, l[I] == 0.0);
            // @end
            let at = o_at(piece, row[I]);
            // @if ROLLED
            var c = 0u;
            loop {
                var x = acc[I * DV4];
                // @unroll C DV4
                x = select(x, acc[I * DV4 + C], c == C);
                // @end
                o_store4n(at + c * 4u, min(4u, HEAD_DIM_V - c * 4u), x * inverse);
                continuing {
                    c += 1u;
                    break if c == DV4;
                }
            }
            // @else
            // @unroll C DV4
            o_store4n(at + C * 4u, min(4u, HEAD_DIM_V - C * 4u), acc[I * DV4 + C] * inverse);
            // @end
            // @end
            store_lse(piece, row[I], m[I], l[I]);
        }
    }
    // @end
}

// Row of a block, and first element in it, of the block's chunk `index`, with `chunks` to a row;
// chunks past the block repeat its first.
fn row_of(index: u32, chunks: u32) -> u32 {
    return select(0u, index / chunks, index < BLOCK_K * chunks);
}

fn chunk_of(index: u32, chunks: u32) -> u32 {
    return select(0u, (index % chunks) * 4u, index < BLOCK_K * chunks);
}

// @if SUBGROUP
// @else
// Chunk `chunk` of key row `key`, from where it is; past the end they repeat the last.
fn k_row(piece: Piece, key: u32, chunk: u32) -> vec4<f32> {
    return k_load4n(k_at(piece, min(key, piece.seq_k - 1u)) + chunk * 4u, min(4u, HEAD_DIM - chunk * 4u));
}

// The same of a value row.
fn v_row(piece: Piece, key: u32, chunk: u32) -> vec4<f32> {
    return v_load4n(v_at(piece, min(key, piece.seq_k - 1u)) + chunk * 4u, min(4u, HEAD_DIM_V - chunk * 4u));
}
// @end
