// Fused neighborhood attention, both tiers.
// One workgroup owns a tile of queries of one (batch, head, dilation group) and walks it along
// axis a; the other axes are b and c. The tile's queries, flattened with a slowest, fall into
// groups of WORKGROUP, one query to an invocation, which keeps the queries of SLOTS consecutive
// groups with their running maxima, sums and outputs in registers. Keys are numbered through the
// box that the tile sees, row of a by row, and pass in blocks of BLOCK_K. When the oldest group
// has seen its last key it is written out and the next takes its place; where the coming group's
// window begins before the present key, the walk goes back to its first one and the others skip
// what they have seen. Where all queries of a tile share one window (SHARED), SLOTS groups come,
// walk the whole box and leave together. The schedule is uniform over the workgroup.
// Loops test at their end: software drivers run a body once more to find that it is over.
//   q [B, .., H, D], k [B, .., Hkv, D], v [B, .., Hkv, Dv], o [B, .., H, Dv], lse [B, .., H]
// Each lane loads a share of a block's rows and every lane hears the others' by broadcast; in the
// portable tier the host puts `own` for the broadcast, LANES is 1, and each invocation loads all.
// No workgroup memory, no barrier.
// A key that a query does not see weighs 0 in its sums, but 0 * NaN is NaN: sums that are not finite
// when a query leaves are formed anew, of the keys that it sees alone. Where windows are SHARED there
// is no such key.
// Source: Hassani et al. 2024, arXiv:2403.04690; stride from arXiv:2504.16922; online softmax from
// Dao 2023, arXiv:2307.08691. Twin: none; `naive.wgsl` is the second opinion, `simulate.rs` runs
// the schedule.
const HEAD_DIM: u32 = 64u; // @spec
const HEAD_DIM_V: u32 = 64u; // @spec
const D4: u32 = 16u; // @spec
const DV4: u32 = 16u; // @spec
const WORKGROUP: u32 = 8u; // @spec
const SLOTS: u32 = 4u; // @spec
// SLOTS - 1
const MOVES: u32 = 3u; // @spec
const BLOCK_K: u32 = 4u; // @spec
// lanes that load and speak: no more than the smallest subgroup the device may use
const LANES: u32 = 8u; // @spec
const K_REGS: u32 = 8u; // @spec
const V_REGS: u32 = 8u; // @spec
// 0: all queries of a tile share one window and blocks divide it; 1: blocks do not divide it;
// 2: a box test for every score
const MASK: u32 = 2u; // @spec
// MASK is not 2
const SHARED: bool = true; // @spec
// several groups may leave between two walks; otherwise a walk is one block at least
const TURNS: bool = true; // @spec
// exp2 by multiply-adds
const SOFT_EXP2: bool = false; // @spec
// keys off the map are zeros that take part
const ZEROS: bool = false; // @spec
// 0 none, 1 a table, 2 rows of dot products made by relative.wgsl
const BIAS: u32 = 0u; // @spec
const EXTRA: bool = false; // @spec
// indices of unrolled blocks
const C: u32 = 0u;
const I: u32 = 0u;
const J: u32 = 0u;
const R: u32 = 0u;

// Must match `neighborhood::Params` (tested). Axes are in the order a, b, c; strides in elements.
struct Params {
    // tokens along the axes, batch
    tokens: vec4<u32>,
    // kernel size, extra tokens
    kernel: vec4<i32>,
    // queries that share a window
    stride: vec4<i32>,
    dilation: vec4<u32>,
    // of lib/window.wgsl
    rule: vec4<i32>,
    // queries of a workgroup
    tile: vec4<i32>,
    // tiles of the longest dilation group; workgroups in all
    tiles: vec4<u32>,
    // strides along the axes and the batch
    q_axes: vec4<u32>,
    k_axes: vec4<u32>,
    v_axes: vec4<u32>,
    o_axes: vec4<u32>,
    lse_axes: vec4<u32>,
    // (head stride, offset) of q, k; of v, o; of lse
    qk_head: vec4<u32>,
    vo_head: vec4<u32>,
    // then heads, query heads for each key head
    lse_head: vec4<u32>,
    // strides (batch, token, head, offset) of the extra keys and values
    extra_k: vec4<u32>,
    extra_v: vec4<u32>,
    // of a table: the step of one token along each axis; of rows: where each axis begins
    bias_axes: vec4<i32>,
    // (stride of a head, of a row; offset)
    bias_rows: vec4<u32>,
    // scale * log2(e): scores are kept in base 2
    scale: f32,
    // groups of queries whose sums may be formed anew
    again: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; fn q_load4n(i: u32, n: u32) -> vec4<f32> { return q[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>; fn k_load4n(i: u32, n: u32) -> vec4<f32> { return k[i >> 2u]; } // @tensor
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; fn v_load4n(i: u32, n: u32) -> vec4<f32> { return v[i >> 2u]; } // @tensor
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>; fn o_store4n(i: u32, n: u32, x: vec4<f32>) { o[i >> 2u] = x; } // @tensor
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; fn lse_store(i: u32, x: f32) { lse[i] = x; } // @tensor
@group(0) @binding(6) var<storage, read> extra_k: array<vec4<f32>>; fn extra_k_load4n(i: u32, n: u32) -> vec4<f32> { return extra_k[i >> 2u]; } // @tensor
@group(0) @binding(7) var<storage, read> extra_v: array<vec4<f32>>; fn extra_v_load4n(i: u32, n: u32) -> vec4<f32> { return extra_v[i >> 2u]; } // @tensor
@group(0) @binding(8) var<storage, read> bias: array<f32>; fn bias_load(i: u32) -> f32 { return bias[i]; } // @tensor

// below every real score, and finite: WGSL may assume that infinities do not occur
const HIDDEN: f32 = -3.3e38;
// what scores count for at least, where maxima begin, so far above HIDDEN that a hidden key weighs
// nothing, and what they count for at most
const LEAST: f32 = -3e38;
const MOST: f32 = 3e38;
const LOG2_E: f32 = 1.4426950408889634;

// A query's place in the dilation group, and whether there is a query.
struct Place { at: vec3<i32>, live: bool }

@compute @workgroup_size(WORKGROUP)
fn fused(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let lane = subgroup_lane % LANES;
    let group = group_index(group_id, group_count);
    if group >= params.tiles.w {
        return;
    }
    var rest = group;
    var tile: vec3<u32>;
    tile.z = rest % params.tiles.z;
    rest /= params.tiles.z;
    tile.y = rest % params.tiles.y;
    rest /= params.tiles.y;
    tile.x = rest % params.tiles.x;
    rest /= params.tiles.x;
    var residue: vec3<u32>;
    residue.z = rest % params.dilation.z;
    rest /= params.dilation.z;
    residue.y = rest % params.dilation.y;
    rest /= params.dilation.y;
    residue.x = rest % params.dilation.x;
    rest /= params.dilation.x;
    let head = rest % params.lse_head.z;
    let batch = rest / params.lse_head.z;
    let head_kv = head / params.lse_head.w;

    // of this dilation group; the first `tokens % dilation` have one more
    let length = vec3<i32>(params.tokens.xyz / params.dilation.xyz)
        + select(vec3<i32>(0), vec3<i32>(1), residue < params.tokens.xyz % params.dilation.xyz);
    let first = vec3<i32>(tile) * params.tile.xyz;
    // tiles are counted for the longest group
    if any(first >= length) {
        return;
    }
    let size = min(params.tile.xyz, length - first);
    let across = params.tile.y * params.tile.z;
    let queries = size.x * across;
    let groups = (queries + i32(WORKGROUP) - 1) / i32(WORKGROUP);

    // the box of keys: rows from `origin` on, each `width` keys
    let origin = start_of(first, length, 0u);
    let box_start = vec2<i32>(start_of(first, length, 1u), start_of(first, length, 2u));
    let last = first + size - 1;
    let box_size = vec2<i32>(end_of(last, length, 1u), end_of(last, length, 2u)) - box_start;
    let width = box_size.x * box_size.y;
    // one past the last key of the box; extra tokens follow
    let box_end = (end_of(last, length, 0u) - origin) * width;

    // one token on in the dilation group, and the group's token 0
    let q_step = params.q_axes.xyz * params.dilation.xyz;
    let k_step = params.k_axes.xyz * params.dilation.xyz;
    let v_step = params.v_axes.xyz * params.dilation.xyz;
    let o_step = params.o_axes.xyz * params.dilation.xyz;
    let lse_step = params.lse_axes.xyz * params.dilation.xyz;
    let q_base = base_of(params.q_axes, residue, batch) + head * params.qk_head.x + params.qk_head.y;
    let k_base = base_of(params.k_axes, residue, batch) + head_kv * params.qk_head.z + params.qk_head.w;
    let v_base = base_of(params.v_axes, residue, batch) + head_kv * params.vo_head.x + params.vo_head.y;
    let o_base = base_of(params.o_axes, residue, batch) + head * params.vo_head.z + params.vo_head.w;
    let lse_base = base_of(params.lse_axes, residue, batch) + head * params.lse_head.x + params.lse_head.y;
    let extra_k_base = batch * params.extra_k.x + head_kv * params.extra_k.z + params.extra_k.w;
    let extra_v_base = batch * params.extra_v.x + head_kv * params.extra_v.z + params.extra_v.w;

    // @if SHARED
    let last_key = vec3<i32>(origin + box_end / width, box_start + box_size) - 1;
    // @else
    // across the walk axis an invocation's window is the same in all its groups
    let column = place_of(0, local, first, size).at;
    let per_group = i32(WORKGROUP) / across;
    let near = min(column, length - 1);
    let see_start = vec2<i32>(start_of(near, length, 1u), start_of(near, length, 2u));
    let see_end = vec2<i32>(end_of(near, length, 1u), end_of(near, length, 2u));
    // @end

    var query: array<vec4<f32>, SLOTS * D4>;
    var acc: array<vec4<f32>, SLOTS * DV4>;
    var m: array<f32, SLOTS>;
    var l: array<f32, SLOTS>;
    // where the query's bias begins
    var bias_at: array<vec3<i32>, SLOTS>;
    // @if SHARED
    // @else
    // keys that this invocation's query sees and has not seen, as numbers in the box
    var from_key: array<i32, SLOTS>;
    var to_key: array<i32, SLOTS>;
    // of the whole group: its first row of keys, the first key not seen, one past the last; all 0: no
    // group
    var start_row: array<i32, SLOTS>;
    var unseen: array<i32, SLOTS>;
    var done: array<i32, SLOTS>;
    // @end
    // @unroll I SLOTS
    m[I] = LEAST;
    l[I] = 0.0;
    bias_at[I] = vec3<i32>(0);
    // @unroll C D4
    query[I * D4 + C] = vec4<f32>(0.0);
    // @end
    // @unroll C DV4
    acc[I * DV4 + C] = vec4<f32>(0.0);
    // @end
    // @if SHARED
    // @else
    from_key[I] = 0;
    to_key[I] = 0;
    start_row[I] = 0;
    unseen[I] = 0;
    done[I] = 0;
    // @end
    // @end

    // the next key: its number and its place
    var at = 0;
    var row = origin;
    var col = vec2<i32>(0);
    // the group that comes next
    var g = 0;
    loop {
        // @if SHARED
        // SLOTS groups come
        var coming = 0;
        loop {
            // @unroll I MOVES
            bias_at[I] = bias_at[I + 1u];
            // @unroll C D4
            query[I * D4 + C] = query[(I + 1u) * D4 + C];
            // @end
            // @end
            let seat = min(place_of(g + coming, local, first, size).at, length - 1);
            if BIAS != 0u {
                bias_at[MOVES] = bias_begin(seat, residue, batch, head);
            }
            let q_at = q_base + dot(vec3<u32>(seat), q_step);
            // @unroll C D4
            query[MOVES * D4 + C] = params.scale * q_load4n(q_at + C * 4u, min(4u, HEAD_DIM - C * 4u));
            // @end
            coming += 1;
            if coming >= i32(SLOTS) {
                break;
            }
        }
        // @unroll I SLOTS
        m[I] = LEAST;
        l[I] = 0.0;
        // @unroll C DV4
        acc[I * DV4 + C] = vec4<f32>(0.0);
        // @end
        // @end
        at = 0;
        row = origin;
        col = vec2<i32>(0);
        let target_key = select(box_end, box_end + params.kernel.w, EXTRA);
        // @else
        // the oldest group leaves and the next comes; with TURNS until the oldest has keys to see
        // @if TURNS
        loop {
        // @end
            let leaving = place_in(g - i32(SLOTS), column, first, size, per_group);
            if g >= i32(SLOTS) && leaving.live {
                let place = vec3<u32>(leaving.at);
                let o_at = o_base + dot(place, o_step);
                let inverse = 1.0 / l[0];
                // see the top; as many leave so as the driver's loops have trips for
                var lost = false;
                // @unroll C DV4
                lost = lost || any(not_finite(acc[C]));
                // @end
                if lost && u32(g - i32(SLOTS)) < params.again {
                    let begin = vec3<i32>(row_start(leaving.at.x, length.x), see_start);
                    let end = vec3<i32>(row_end(leaving.at.x, length.x), see_end);
                    let span = end - begin;
                    let keys = span.x * span.y * span.z;
                    let q_at = q_base + dot(place, q_step);
                    let bias_0 = bias_begin(leaving.at, residue, batch, head);
                    // @unroll C DV4
                    acc[C] = vec4<f32>(0.0);
                    // @end
                    var n = 0;
                    loop {
                        let key = begin + vec3<i32>(n / (span.y * span.z), n / span.z % span.y, n % span.z);
                        let inside = vec3<u32>(clamp(key, vec3<i32>(0), length - 1));
                        let pad = ZEROS && any(key != vec3<i32>(inside));
                        let extra = EXTRA && n >= keys;
                        let extra_k_at = extra_k_base + u32(n - keys) * params.extra_k.y;
                        let extra_v_at = extra_v_base + u32(n - keys) * params.extra_v.y;
                        var score = 0.0;
                        var c = 0u;
                        loop {
                            var x: vec4<f32>;
                            if extra {
                                x = extra_k_load4n(extra_k_at + c * 4u, min(4u, HEAD_DIM - c * 4u));
                            } else {
                                x = k_load4n(k_base + dot(inside, k_step) + c * 4u, min(4u, HEAD_DIM - c * 4u));
                            }
                            score += dot(params.scale * q_load4n(q_at + c * 4u, min(4u, HEAD_DIM - c * 4u)), x);
                            c += 1u;
                            if c >= D4 {
                                break;
                            }
                        }
                        score = select(score, 0.0, pad && !extra);
                        if BIAS != 0u && !extra {
                            score += LOG2_E * bias_of(bias_0, key, true);
                        }
                        let weight = exp2_unit(min(score, MOST) - m[0], SOFT_EXP2);
                        c = 0u;
                        loop {
                            var x: vec4<f32>;
                            if extra {
                                x = extra_v_load4n(extra_v_at + c * 4u, min(4u, HEAD_DIM_V - c * 4u));
                            } else {
                                x = v_load4n(v_base + dot(inside, v_step) + c * 4u, min(4u, HEAD_DIM_V - c * 4u));
                            }
                            x = select(x, vec4<f32>(0.0), pad && !extra);
                            // @unroll C DV4
                            acc[C] = fma(vec4<f32>(weight), select(vec4<f32>(0.0), x, c == C), acc[C]);
                            // @end
                            c += 1u;
                            if c >= DV4 {
                                break;
                            }
                        }
                        n += 1;
                        if n >= keys + params.kernel.w {
                            break;
                        }
                    }
                }
                // @unroll C DV4
                o_store4n(o_at + C * 4u, min(4u, HEAD_DIM_V - C * 4u), acc[C] * inverse);
                // @end
                // m is in base 2
                lse_store(lse_base + dot(place, lse_step), m[0] * 0.6931471805599453 + log(l[0] * WEIGHT_UNITS));
            }
            // @unroll I MOVES
            from_key[I] = from_key[I + 1u];
            to_key[I] = to_key[I + 1u];
            start_row[I] = start_row[I + 1u];
            unseen[I] = unseen[I + 1u];
            done[I] = done[I + 1u];
            bias_at[I] = bias_at[I + 1u];
            m[I] = m[I + 1u];
            l[I] = l[I + 1u];
            // @unroll C D4
            query[I * D4 + C] = query[(I + 1u) * D4 + C];
            // @end
            // @unroll C DV4
            acc[I * DV4 + C] = acc[(I + 1u) * DV4 + C];
            // @end
            // @end

            let comes = g < groups;
            let low = first.x + g * per_group;
            let high = min(low + per_group, first.x + size.x) - 1;
            let low_row = row_start(low, length.x) - origin;
            let low_key = low_row * width;
            var high_key = (row_end(high, length.x) - origin) * width;
            if EXTRA {
                high_key = box_end + params.kernel.w;
            }
            if comes && low_key < at {
                // the walk goes back; the others have seen all before `at`
                // @unroll I MOVES
                from_key[I] = max(from_key[I], at);
                unseen[I] = max(unseen[I], at);
                // @end
                at = low_key;
                row = origin + low_row;
                col = vec2<i32>(0);
            }
            let coming = place_in(g, column, first, size, per_group);
            let seat = min(coming.at, length - 1);
            let sees = comes && coming.live;
            start_row[MOVES] = select(0, low_row, comes);
            unseen[MOVES] = select(0, low_key, comes);
            done[MOVES] = select(0, high_key, comes);
            from_key[MOVES] = select(0, (row_start(seat.x, length.x) - origin) * width, sees);
            to_key[MOVES] = select(0, (row_end(seat.x, length.x) - origin) * width, sees);
            m[MOVES] = LEAST;
            l[MOVES] = 0.0;
            if BIAS != 0u {
                bias_at[MOVES] = bias_begin(seat, residue, batch, head);
            }
            let q_at = q_base + dot(vec3<u32>(seat), q_step);
            // @unroll C D4
            query[MOVES * D4 + C] = params.scale * q_load4n(q_at + C * 4u, min(4u, HEAD_DIM - C * 4u));
            // @end
            // @unroll C DV4
            acc[MOVES * DV4 + C] = vec4<f32>(0.0);
            // @end

            g += 1;
            if at < start_row[0] * width {
                at = start_row[0] * width;
                row = origin + start_row[0];
                col = vec2<i32>(0);
            }
        // @if TURNS
            if g >= groups + i32(SLOTS) || max(at, unseen[0]) < done[0] {
                break;
            }
        }
        // @end
        if g >= groups + i32(SLOTS) {
            break;
        }
        let target_key = done[0];
        // @end
        loop {
            // addresses of the block's rows; of its first chunk only, as all chunks follow
            var k_at: array<u32, BLOCK_K>;
            var v_at: array<u32, BLOCK_K>;
            // the keys' places, for the bias
            var spot: array<vec3<i32>, BLOCK_K>;
            // @if SHARED
            // @else
            // in this invocation's window across the walk axis
            var near_b: array<bool, BLOCK_K>;
            // @end
            var padded: array<bool, BLOCK_K>;
            // @unroll J BLOCK_K
            {
                // @if SHARED
                // a block may run past the box, where it repeats the last key
                let key = select(vec3<i32>(row, box_start + col), last_key, MASK == 1u && at + i32(J) >= box_end);
                // @else
                let key = vec3<i32>(row, box_start + col);
                // @end
                // a block may run past the box; with ZEROS the box leaves the map
                let inside = vec3<u32>(clamp(key, vec3<i32>(0), length - 1));
                k_at[J] = k_base + dot(inside, k_step);
                v_at[J] = v_base + dot(inside, v_step);
                spot[J] = key;
                // @if SHARED
                // @else
                near_b[J] = all(key.yz >= see_start) && all(key.yz < see_end);
                // @end
                padded[J] = ZEROS && any(key != vec3<i32>(inside));
                // the next key
                col.y += 1;
                let wrap_c = col.y == box_size.y;
                col = select(col, vec2<i32>(col.x + 1, 0), wrap_c);
                let wrap_b = col.x == box_size.x;
                col.x = select(col.x, 0, wrap_b);
                row += select(0, 1, wrap_b);
                if EXTRA {
                    let extra = clamp(at + i32(J) - box_end, 0, params.kernel.w - 1);
                    let follows = at + i32(J) >= box_end;
                    k_at[J] = select(k_at[J], extra_k_base + u32(extra) * params.extra_k.y, follows);
                    v_at[J] = select(v_at[J], extra_v_base + u32(extra) * params.extra_v.y, follows);
                    padded[J] = padded[J] && !follows;
                }
            }
            // @end

            // [BLOCK_K, D4] spread over the lanes
            var rows: array<vec4<f32>, K_REGS>;
            // @unroll R K_REGS
            {
                let index = min(R * LANES + lane, BLOCK_K * D4 - 1u);
                let j = index / D4;
                let chunk = (index % D4) * 4u;
                var address = k_at[(R * LANES) / D4];
                var pad = padded[(R * LANES) / D4];
                if D4 % LANES != 0u {
                    // @unroll J BLOCK_K
                    address = select(address, k_at[J], j == J);
                    pad = select(pad, padded[J], j == J);
                    // @end
                }
                let n = min(4u, HEAD_DIM - chunk);
                if EXTRA && at + i32(j) >= box_end {
                    rows[R] = extra_k_load4n(address + chunk, n);
                } else {
                    rows[R] = k_load4n(address + chunk, n);
                }
                if ZEROS {
                    rows[R] = select(rows[R], vec4<f32>(0.0), pad);
                }
            }
            // @end
            var s: array<f32, SLOTS * BLOCK_K>;
            // @unroll I SLOTS
            // @unroll J BLOCK_K
            s[I * BLOCK_K + J] = 0.0;
            // @end
            // @end
            // @unroll C D4
            // @unroll J BLOCK_K
            {
                let x = subgroupBroadcast(rows[(J * D4 + C) / LANES], (J * D4 + C) % LANES);
                // @unroll I SLOTS
                s[I * BLOCK_K + J] = fma(query[I * D4 + C].x, x.x, s[I * BLOCK_K + J]);
                s[I * BLOCK_K + J] = fma(query[I * D4 + C].y, x.y, s[I * BLOCK_K + J]);
                s[I * BLOCK_K + J] = fma(query[I * D4 + C].z, x.z, s[I * BLOCK_K + J]);
                s[I * BLOCK_K + J] = fma(query[I * D4 + C].w, x.w, s[I * BLOCK_K + J]);
                // @end
            }
            // @end
            // @end

            // online softmax; s becomes the weights
            var shrink: array<f32, SLOTS>;
            // @unroll I SLOTS
            {
                var top = m[I];
                // @unroll J BLOCK_K
                {
                    let key = at + i32(J);
                    // @if SHARED
                    var visible = MASK == 0u || key < box_end;
                    // @else
                    var visible = near_b[J] && key >= from_key[I] && key < to_key[I];
                    // @end
                    if BIAS != 0u {
                        let bias = bias_of(bias_at[I], spot[J], visible);
                        // extra tokens have none
                        s[I * BLOCK_K + J] += select(0.0, LOG2_E * bias, visible);
                        s[I * BLOCK_K + J] = at_least(select(s[I * BLOCK_K + J], MOST, s[I * BLOCK_K + J] > MOST), LEAST);
                    }
                    if EXTRA {
                        visible = visible || (key >= box_end && key < target_key);
                    }
                    s[I * BLOCK_K + J] = select(HIDDEN, s[I * BLOCK_K + J], visible);
                    top = max(top, s[I * BLOCK_K + J]);
                }
                // @end
                shrink[I] = exp2_weight(m[I] - top, SOFT_EXP2);
                m[I] = top;
                var sum = 0.0;
                // @unroll J BLOCK_K
                s[I * BLOCK_K + J] = exp2_unit(s[I * BLOCK_K + J] - top, SOFT_EXP2);
                sum += s[I * BLOCK_K + J];
                // @end
                l[I] = fma(l[I], shrink[I], sum);
            }
            // @end

            // [BLOCK_K, DV4] spread over the lanes
            var values: array<vec4<f32>, V_REGS>;
            // @unroll R V_REGS
            {
                let index = min(R * LANES + lane, BLOCK_K * DV4 - 1u);
                let j = index / DV4;
                let chunk = (index % DV4) * 4u;
                var address = v_at[(R * LANES) / DV4];
                var pad = padded[(R * LANES) / DV4];
                if DV4 % LANES != 0u {
                    // @unroll J BLOCK_K
                    address = select(address, v_at[J], j == J);
                    pad = select(pad, padded[J], j == J);
                    // @end
                }
                let n = min(4u, HEAD_DIM_V - chunk);
                if EXTRA && at + i32(j) >= box_end {
                    values[R] = extra_v_load4n(address + chunk, n);
                } else {
                    values[R] = v_load4n(address + chunk, n);
                }
                if ZEROS {
                    values[R] = select(values[R], vec4<f32>(0.0), pad);
                }
            }
            // @end
            // @unroll C DV4
            // @unroll I SLOTS
            acc[I * DV4 + C] *= shrink[I];
            // @end
            // @unroll J BLOCK_K
            {
                let x = subgroupBroadcast(values[(J * DV4 + C) / LANES], (J * DV4 + C) % LANES);
                // @unroll I SLOTS
                acc[I * DV4 + C] = fma(vec4<f32>(s[I * BLOCK_K + J]), x, acc[I * DV4 + C]);
                // @end
            }
            // @end
            // @end
            at += i32(BLOCK_K);
            if at >= target_key {
                break;
            }
        }

        // @if SHARED
        // they leave
        var going = 0;
        loop {
            let leaving = place_of(g + going, local, first, size);
            if leaving.live {
                let place = vec3<u32>(leaving.at);
                let o_at = o_base + dot(place, o_step);
                let inverse = 1.0 / l[0];
                // @unroll C DV4
                o_store4n(o_at + C * 4u, min(4u, HEAD_DIM_V - C * 4u), acc[C] * inverse);
                // @end
                // m is in base 2
                lse_store(lse_base + dot(place, lse_step), m[0] * 0.6931471805599453 + log(l[0] * WEIGHT_UNITS));
            }
            // @unroll I MOVES
            m[I] = m[I + 1u];
            l[I] = l[I + 1u];
            // @unroll C DV4
            acc[I * DV4 + C] = acc[(I + 1u) * DV4 + C];
            // @end
            // @end
            going += 1;
            if going >= i32(SLOTS) {
                break;
            }
        }
        g += i32(SLOTS);
        if g >= groups {
            break;
        }
        // @end
    }
}

// Window of a token along one axis, by the axis' own rule.
fn start_of(u: vec3<i32>, length: vec3<i32>, axis: u32) -> i32 {
    return window_start(u[axis], length[axis], params.kernel[axis], params.stride[axis], params.rule[axis]);
}

fn end_of(u: vec3<i32>, length: vec3<i32>, axis: u32) -> i32 {
    return window_end(u[axis], length[axis], params.kernel[axis], params.stride[axis], params.rule[axis]);
}

fn row_start(u: i32, length: i32) -> i32 {
    return window_start(u, length, params.kernel.x, params.stride.x, params.rule.x);
}

fn row_end(u: i32, length: i32) -> i32 {
    return window_end(u, length, params.kernel.x, params.stride.x, params.rule.x);
}

// First element of a dilation group's token 0.
fn base_of(axes: vec4<u32>, residue: vec3<u32>, batch: u32) -> u32 {
    return dot(axes.xyz, residue) + batch * axes.w;
}

// Query of invocation `local` in query group g of the tile.
fn place_of(g: i32, local: u32, first: vec3<i32>, size: vec3<i32>) -> Place {
    let index = g * i32(WORKGROUP) + i32(local);
    let at = vec3<i32>(
        index / (params.tile.y * params.tile.z),
        (index / params.tile.z) % params.tile.y,
        index % params.tile.z,
    );
    return Place(first + at, all(at < size));
}

// The same where windows differ: the queries across the walk axis divide the workgroup, and an
// invocation keeps its column.
fn place_in(g: i32, column: vec3<i32>, first: vec3<i32>, size: vec3<i32>, per_group: i32) -> Place {
    let at = vec3<i32>(column.x + g * per_group, column.yz);
    return Place(at, all(at - first < size));
}

// Where the bias of the query at `seat` begins.
fn bias_begin(seat: vec3<i32>, residue: vec3<u32>, batch: u32, head: u32) -> vec3<i32> {
    if BIAS == 1u {
        // entry of offset 0 is at kernel - 1 along each axis
        let entry = dot(params.kernel.xyz - 1 - seat, params.bias_axes.xyz);
        return vec3<i32>(entry + i32(head * params.bias_rows.x + params.bias_rows.z), 0, 0);
    }
    let token = residue + vec3<u32>(seat) * params.dilation.xyz;
    let number = ((batch * params.tokens.x + token.x) * params.tokens.y + token.y) * params.tokens.z + token.z;
    let begin = i32((number * params.lse_head.z + head) * params.bias_rows.y);
    return begin + params.bias_axes.xyz + params.kernel.xyz - 1 - seat;
}

// The portable tier's broadcast: an invocation has loaded all that it hears.
fn own(x: vec4<f32>, lane: u32) -> vec4<f32> {
    return x;
}

// Bias of the key at `spot` for the query whose bias begins at `begin`; in natural units.
fn bias_of(begin: vec3<i32>, spot: vec3<i32>, visible: bool) -> f32 {
    if BIAS == 1u {
        return bias_load(u32(select(0, begin.x + dot(spot, params.bias_axes.xyz), visible)));
    }
    // an axis without a table has a negative begin
    let there = params.bias_axes.xyz >= vec3<i32>(0);
    let index = vec3<u32>(select(vec3<i32>(0), begin + spot, there & vec3<bool>(visible)));
    let parts = vec3<f32>(bias_load(index.x), bias_load(index.y), bias_load(index.z));
    return dot(parts, select(vec3<f32>(0.0), vec3<f32>(1.0), there));
}
