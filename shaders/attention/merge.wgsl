// Merge of attention results over disjoint sets of keys, in the order of the parts.
// One invocation owns four channels of one row; it reads the row's LSEs twice, for their maximum and
// for the weights exp(lse_p - maximum).
// PAIRS: parts come from flash.wgsl as they stood in its registers, outputs not divided by the sum
// of their weights, and instead of an LSE, whose rounding would be an error of every weight, that
// sum, in units of WEIGHT_UNIT, and what their scores are relative to, in base 2: the largest, or a
// score about as large.
//   o_parts [P, B, T, H, Dv], lse_parts [P, B, H, T] or [P, B, H, T, 2], o [B, T, H, Dv],
//   lse [B, H, T]
// Source: Rabe and Staats 2021, arXiv:2112.05682, section 2. Twin: none; the reference is the op.
const HEAD_DIM_V: u32 = 64u; // @spec
const DV4: u32 = 16u; // @spec
// rows have different numbers of parts
const COUNTED: bool = true; // @spec
// parts are outputs not yet divided, with a reference and a sum
const PAIRS: bool = true; // @spec

// Must match `attention::merge::Params` (tested). Strides in elements.
struct Params {
    // (batch, seq, head, offset)
    o_parts: vec4<u32>,
    // (batch, head, seq, offset)
    lse_parts: vec4<u32>,
    o: vec4<u32>,
    lse: vec4<u32>,
    // distance from one part to the next
    o_part: u32,
    lse_part: u32,
    parts: u32,
    seq: u32,
    heads: u32,
    // number of invocations that have work
    items: u32,
    // place in the table of each (batch, seq)'s number of parts
    counts: u32,
    unused: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> o_parts: array<vec4<f32>>; fn o_parts_load4n(i: u32, n: u32) -> vec4<f32> { return o_parts[i >> 2u]; } // @tensor
@group(0) @binding(2) var<storage, read> lse_parts: array<f32>; fn lse_parts_load(i: u32) -> f32 { return lse_parts[i]; } // @tensor
@group(0) @binding(3) var<storage, read_write> o: array<vec4<f32>>; fn o_store4n(i: u32, n: u32, x: vec4<f32>) { o[i >> 2u] = x; } // @tensor
@group(0) @binding(4) var<storage, read_write> lse: array<f32>; fn lse_store_bits(i: u32, x: u32) { lse[i] = bitcast<f32>(x); } // @tensor
// @if COUNTED
@group(0) @binding(5) var<storage, read> table: array<u32>;
// @end

// below every LSE and reference, and finite
const HIDDEN: f32 = -3.3e38;
const LN_2: f32 = 0.6931471805599453;
const MINUS_INFINITY: u32 = 0xff800000u;

@compute @workgroup_size(64)
fn merge(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(num_workgroups) group_count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let item = group_index(group_id, group_count) * 64u + local;
    if item >= params.items {
        return;
    }
    let chunk = item % DV4;
    let row = item / DV4;
    let head = row % params.heads;
    let token = row / params.heads;
    let seq = token % params.seq;
    let batch = token / params.seq;
    // @if COUNTED
    let parts = table[params.counts + token];
    // @else
    let parts = params.parts;
    // @end
    let lse_at = batch * params.lse_parts.x + head * params.lse_parts.y + seq * params.lse_parts.z + params.lse_parts.w;
    let o_at = batch * params.o_parts.x + seq * params.o_parts.y + head * params.o_parts.z + params.o_parts.w + chunk * 4u;

    var top = HIDDEN;
    for (var p = 0u; p < parts; p++) {
        let x = lse_parts_load(lse_at + p * params.lse_part);
        // @if PAIRS
        // HIDDEN where that part saw no key
        top = max(top, x);
        // @else
        // -inf, told by its bits: that part saw no key
        top = max(top, select(x, HIDDEN, bitcast<u32>(x) == MINUS_INFINITY));
        // @end
    }
    var sum = 0.0;
    var acc = vec4<f32>(0.0);
    for (var p = 0u; p < parts; p++) {
        let x = lse_parts_load(lse_at + p * params.lse_part);
        // @if PAIRS
        let weights = lse_parts_load(lse_at + p * params.lse_part + 1u);
        let seen = weights != 0.0;
        let w = select(0.0, exp2_weight(x - top, false), seen);
        sum = fma(w, weights, sum);
        // @else
        let seen = bitcast<u32>(x) != MINUS_INFINITY;
        let w = select(0.0, exp2_weight((x - top) * 1.4426950408889634, false), seen);
        sum += w;
        // @end
        let part = o_parts_load4n(o_at + p * params.o_part, min(4u, HEAD_DIM_V - chunk * 4u));
        acc = fma(vec4<f32>(w), select(vec4<f32>(0.0), part, vec4<bool>(seen)), acc);
    }
    let empty = sum == 0.0;
    let inverse = select(1.0 / sum, 0.0, empty);
    let at = batch * params.o.x + seq * params.o.y + head * params.o.z + params.o.w + chunk * 4u;
    o_store4n(at, min(4u, HEAD_DIM_V - chunk * 4u), acc * inverse);
    if chunk == 0u {
        let value = top * select(1.0, LN_2, PAIRS) + log(select(sum * select(1.0, WEIGHT_UNITS, PAIRS), 1.0, empty));
        lse_store_bits(
            batch * params.lse.x + head * params.lse.y + seq * params.lse.z + params.lse.w,
            select(bitcast<u32>(value), MINUS_INFINITY, empty),
        );
    }
}
