// What every schedule makes of the problem: which piece of the work is a workgroup's, where its rows and
// keys lie, which keys a row sees, what becomes of scores. An option of scores stands here alone.

// scores are more than products
const SHAPED: bool = SOFTCAP || ALIBI;
// any row may not see any key
const MASKED: bool = BIAS || MASK;

// What a workgroup works on: a block of the rows of one sequence and key head, and the keys from `begin`
// to `end`.
struct Piece {
    batch: u32,
    head_kv: u32,
    block: u32,
    split: u32,
    q_start: u32,
    seq_q: u32,
    k_start: u32,
    seq_k: u32,
    pages: u32,
    pair_q: u32,
    pair_k: u32,
    diagonal: i32,
    rows: u32,
    begin: u32,
    end: u32,
}

fn piece_of(group: u32) -> Piece {
    var piece: Piece;
    // heads before parts: the rows of all heads at a key are neighbours in memory
    // @if RAGGED
    // @if SPLIT
    let item = group / params.head_groups;
    piece.head_kv = group % params.head_groups;
    // @else
    let item = group % params.items;
    piece.head_kv = group / params.items;
    // @end
    piece.batch = table[item * 3u];
    piece.block = table[item * 3u + 1u];
    piece.split = table[item * 3u + 2u];
    let record = params.records + piece.batch * 7u;
    piece.q_start = table[record];
    piece.seq_q = table[record + 1u];
    piece.k_start = table[record + 2u];
    piece.seq_k = table[record + 3u];
    piece.pages = table[record + 4u];
    piece.pair_q = table[record + 5u];
    piece.pair_k = table[record + 6u];
    // @else
    piece.block = group % params.blocks_q;
    piece.head_kv = (group / params.blocks_q) % params.head_groups;
    piece.split = (group / (params.blocks_q * params.head_groups)) % params.splits;
    piece.batch = group / (params.blocks_q * params.splits * params.head_groups);
    piece.seq_q = params.seq_q;
    piece.seq_k = params.seq_k;
    // @end
    piece.diagonal = select(0, i32(piece.seq_k) - i32(piece.seq_q), BOTTOM_RIGHT);
    piece.rows = piece.seq_q * PACK;
    piece.end = piece.seq_k;
    // @if SPLIT
    piece.begin = piece.split * params.split_keys;
    piece.end = min(piece.begin + params.split_keys, piece.seq_k);
    // @end
    return piece;
}

// The keys that any of some rows sees, [first, last), and those that all of them see.
struct Reach { first: u32, last: u32, all_first: u32, all_last: u32 }
fn reach_of(piece: Piece, first_row: u32, count: u32) -> Reach {
    let from_row = i32(first_row / PACK) + piece.diagonal;
    let to_row = i32((min(first_row + count, piece.rows) - 1u) / PACK) + piece.diagonal;
    return Reach(
        max(key_lower(from_row, LEFT_BOUND, params.left, piece.seq_k), piece.begin),
        min(key_limit(to_row, RIGHT_BOUND, params.right, piece.seq_k), piece.end),
        key_lower(to_row, LEFT_BOUND, params.left, piece.seq_k),
        min(key_limit(from_row, RIGHT_BOUND, params.right, piece.seq_k), piece.end),
    );
}

// Whether some of those rows may not see some of `count` keys from `start` on.
fn hides(reach: Reach, start: u32, count: u32) -> bool {
    return PARTIAL && (MASKED || start + count > reach.all_last || (LEFT_BOUND && start < reach.all_first));
}

// A row, the keys that it sees, [lower, limit), its slope, and where its entries of bias and mask begin.
struct Row {
    query: u32,
    head: u32,
    position: i32,
    lower: u32,
    limit: u32,
    slope: f32,
    bias_at: u32,
    mask_at: u32,
}

// Past the end they repeat the last one.
fn row_at(piece: Piece, index: u32) -> Row {
    let at = min(index, piece.rows - 1u);
    var row: Row;
    row.query = at / PACK;
    row.head = piece.head_kv * PACK + at % PACK;
    row.position = i32(row.query) + piece.diagonal;
    row.lower = key_lower(row.position, LEFT_BOUND, params.left, piece.seq_k);
    row.limit = min(key_limit(row.position, RIGHT_BOUND, params.right, piece.seq_k), piece.end);
    // @if ALIBI
    row.slope = clamp(slopes_load(params.slopes_at + row.head), -MOST / LOG2_E, MOST / LOG2_E) * LOG2_E;
    // @end
    // @if BIAS
    row.bias_at = piece.batch * params.bias.x + row.head * params.bias.y + (piece.pair_q + row.query) * params.bias.z + piece.pair_k + params.bias.w;
    // @end
    // @if MASK
    row.mask_at = piece.batch * params.mask.x + row.head * params.mask.y + (piece.pair_q + row.query) * params.mask.z + piece.pair_k + params.mask.w;
    // @end
    return row;
}

// Where the key head's k and v begin; of pages, in the first page. Not kept in the piece: registers are
// dearer than a few scalar operations.
fn k_base(piece: Piece) -> u32 {
    // @if PAGED
    return piece.head_kv * params.k.z + params.k.w;
    // @else
    return piece.batch * params.k.x + piece.k_start * params.k.y + piece.head_kv * params.k.z + params.k.w;
    // @end
}

fn v_base(piece: Piece) -> u32 {
    // @if PAGED
    return piece.head_kv * params.v.z + params.v.w;
    // @else
    return piece.batch * params.v.x + piece.k_start * params.v.y + piece.head_kv * params.v.z + params.v.w;
    // @end
}

// Where a row of q, k, v and o begins.
fn q_at(piece: Piece, row: Row) -> u32 {
    return piece.batch * params.q.x + (piece.q_start + row.query) * params.q.y + row.head * params.q.z + params.q.w;
}

fn k_at(piece: Piece, key: u32) -> u32 {
    // @if PAGED
    return k_base(piece) + table[piece.pages + key / PAGE] * params.k.x + key % PAGE * params.k.y;
    // @else
    return k_base(piece) + key * params.k.y;
    // @end
}

fn v_at(piece: Piece, key: u32) -> u32 {
    // @if PAGED
    return v_base(piece) + table[piece.pages + key / PAGE] * params.v.x + key % PAGE * params.v.y;
    // @else
    return v_base(piece) + key * params.v.y;
    // @end
}

fn o_at(piece: Piece, row: Row) -> u32 {
    return piece.batch * params.o.x + (piece.q_start + row.query) * params.o.y + row.head * params.o.z + params.o.w + piece.split * params.o_split;
}

fn lse_at(piece: Piece, row: Row) -> u32 {
    return piece.batch * params.lse.x + row.head * params.lse.y + (piece.q_start + row.query) * params.lse.z + params.lse.w + piece.split * params.lse_split;
}

// @if QUANTIZED
// (batch or page, head, block) of a key's scales
fn scale_at(piece: Piece, key: u32) -> vec3<u32> {
    // @if PAGED
    return vec3<u32>(table[piece.pages + key / PAGE], piece.head_kv, key % PAGE / SCALE_BLOCK);
    // @else
    return vec3<u32>(piece.batch, piece.head_kv, (piece.k_start + key) / SCALE_BLOCK);
    // @end
}
// @end

// What the key's elements are multiplied by, and the value's.
fn k_factor(piece: Piece, key: u32) -> f32 {
    // @if QUANTIZED
    return k_scale_load(dot(scale_at(piece, key), params.k_scale.xyz) + params.k_scale.w);
    // @else
    return 1.0;
    // @end
}

fn v_factor(piece: Piece, key: u32) -> f32 {
    // @if QUANTIZED
    return v_scale_load(dot(scale_at(piece, key), params.v_scale.xyz) + params.v_scale.w);
    // @else
    return 1.0;
    // @end
}

// One more logit of a row, of a key without value.
fn sink_of(row: Row) -> f32 {
    // @if SINKS
    return clamp(sinks_load(params.sinks_at + row.head), LEAST / LOG2_E, MOST / LOG2_E) * LOG2_E;
    // @else
    return LEAST;
    // @end
}

// A row's score of a key, `raw` the scaled dot product in base 2, as it is if the key is visible.
fn score(row: Row, key: u32, raw: f32) -> f32 {
    var x = raw;
    // @if SOFTCAP
    x = params.softcap * tanh_fma(x * (1.0 / params.softcap));
    // @end
    // @if ALIBI
    x = at_least(x - row.slope * f32(abs(row.position - i32(key))), LEAST);
    // @end
    return x;
}

// The same after the row's entry of the bias, and HIDDEN where the key is not visible, whatever it was.
// `seen` is the row's entry of the mask.
fn masked_score(row: Row, key: u32, before: f32, bias: f32, seen: bool) -> f32 {
    var x = before;
    var visible = key < row.limit;
    // @if LEFT_BOUND
    visible = visible && key >= row.lower;
    // @end
    // @if BIAS
    // -inf, told by its bits
    visible = visible && bitcast<u32>(bias) != 0xff800000u;
    x += bias * LOG2_E;
    x = select(x, MOST, x > MOST);
    // @end
    // @if MASK
    visible = visible && seen;
    // @end
    return select(HIDDEN, at_least(x, LEAST), visible);
}

// A row's entries for a key.
fn bias_of(piece: Piece, row: Row, key: u32) -> f32 {
    return bias_load(row.bias_at + min(key, piece.seq_k - 1u));
}

fn seen_of(piece: Piece, row: Row, key: u32) -> bool {
    // @if MASK
    return mask_load(row.mask_at + min(key, piece.seq_k - 1u)) != 0.0;
    // @else
    return true;
    // @end
}

// What a row leaves when all keys are done: its reference and sum for the merge, or its LSE.
fn store_lse(piece: Piece, row: Row, reference: f32, sum: f32) {
    let at = lse_at(piece, row);
    let empty = sum == 0.0;
    // @if SPLIT
    lse_store_bits(at, bitcast<u32>(select(reference, HIDDEN, empty)));
    lse_store_bits(at + 1u, bitcast<u32>(sum));
    // @else
    if params.lse_wanted != 0u {
        // in base 2; -inf for a row that sees nothing
        let value = reference * 0.6931471805599453 + log(select(sum * WEIGHT_UNITS, 1.0, empty));
        lse_store_bits(at, select(bitcast<u32>(value), 0xff800000u, empty));
    }
    // @end
}
