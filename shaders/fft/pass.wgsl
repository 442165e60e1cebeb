// One pass of a Fourier transform: DFTs of RADIX points, each by the LANES invocations of a slot.
//
// Axes of the data: `fast`, `slow`, `batch`, and the transformed one. With m = n / RADIX and p the
// product of the radices of earlier passes, row t < m reads points t + j m, j < RADIX, times
// exp(-2 pi i (t mod p) j / (p RADIX)), and writes points (t - t mod p) RADIX + t mod p + k p.
// Rows lie along the fast axis (ROWS_FAST) or the slow one; with m = 1 there is one row, t = 0,
// and both axes are other axes of the data.
// A slot takes REPEAT units, one after another. A unit is one row, its points two to a vec4 (re,
// im, re, im), or with PAIR_ROWS two neighbours along the fast axis, one in each half of every vec4.
// src, dst: complex numbers (re, im), or real ones; strides in numbers. Always the forward sign:
// an inverse swaps re and im on load and on store.
// Stages follow Stockham (van Loan 1992, Computational Frameworks for the FFT, section 1.7).
// The host writes BINDINGS, CELLS and BODY (src/fft/kernel.rs); here they are for a DFT of two points.
const LANES: u32 = 1u; // @spec
const SLOTS: u32 = 64u; // @spec
const REPEAT: u32 = 1u; // @spec
const SHARED: u32 = 1u; // @spec
const RADIX: u32 = 2u; // @spec
const PAIR_ROWS: bool = true; // @spec
const ROWS_FAST: bool = false; // @spec
const LANE_FAST: bool = true; // @spec
const HERMITIAN: bool = false; // @spec
const SWAP_IN: bool = false; // @spec
const TABLE_IN: bool = false; // @spec
const SWAP_BEFORE: bool = false; // @spec
const TABLE_OUT: bool = false; // @spec
const SWAP_AFTER: bool = false; // @spec
const LIMIT: bool = false; // @spec
const SCALE: bool = false; // @spec

// Must match fft::Params (tested).
struct Params {
    // rows or pairs of rows in all, and along the fast axis
    units: u32,
    fast_units: u32,
    fast: u32,
    slow: u32,
    in_offset: u32,
    in_step: u32,
    in_fast: u32,
    in_slow: u32,
    in_batch: u32,
    // points of the input; those past it are zero (TABLE_IN) or mirrored (HERMITIAN)
    in_len: u32,
    out_offset: u32,
    out_step: u32,
    out_fast: u32,
    out_slow: u32,
    out_batch: u32,
    // points of the output (LIMIT)
    out_len: u32,
    m: u32,
    p: u32,
    // starts of tables: in complex numbers, but stages in vec4s
    twiddle: u32,
    stages: u32,
    table_in: u32,
    table_out: u32,
    // length of a Hermitian transform
    n: u32,
    scale: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
// @generate BINDINGS
@group(0) @binding(1) var<storage, read> src: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> dst: array<vec2<f32>>;
fn src_get(i: u32) -> vec2<f32> { return src[i]; }
fn dst_put(i: u32, x: vec2<f32>) { dst[i] = x; }
// @end
@group(0) @binding(3) var<storage, read> table: array<vec4<f32>>;
// @generate CELLS
var<workgroup> shared_points: array<vec4<f32>, SLOTS * SHARED>;
// @end

fn table_get(i: u32) -> vec2<f32> {
    let v = table[i >> 1u];
    return select(v.xy, v.zw, (i & 1u) == 1u);
}

// Two complex products.
fn multiply(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return fma(a, b.xxzz, vec4<f32>(-a.y, a.x, -a.w, a.z) * b.yyww);
}

fn multiply1(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

// Point i of the transform that starts at `base`.
fn fetch(base: u32, i: u32) -> vec2<f32> {
    var point = i;
    if TABLE_IN {
        point = min(i, params.in_len - 1u);
    }
    var at = point;
    if HERMITIAN {
        at = select(point, params.n - point, 2u * point > params.n);
    }
    var x = src_get(base + at * params.in_step);
    if HERMITIAN {
        // the imaginary parts of the first and middle points are taken as zero
        let own = point == 0u || 2u * point == params.n;
        x.y = select(select(x.y, -x.y, 2u * point > params.n), 0.0, own);
    }
    if SWAP_IN {
        x = x.yx;
    }
    if TABLE_IN {
        x = select(multiply1(x, table_get(params.table_in + point)), vec2<f32>(0.0), i >= params.in_len);
    }
    return x;
}

// Two points ready to store.
fn finish(x: vec4<f32>) -> vec4<f32> {
    var y = x;
    if SWAP_BEFORE != SWAP_AFTER {
        y = y.yxwz;
    }
    if SCALE {
        y *= params.scale;
    }
    return y;
}

fn put(base: u32, i: u32, x: vec2<f32>) {
    if LIMIT && i >= params.out_len {
        return;
    }
    var y = x;
    if SWAP_BEFORE {
        y = y.yx;
    }
    if TABLE_OUT {
        y = multiply1(y, table_get(params.table_out + i));
    }
    if SWAP_AFTER {
        y = y.yx;
    }
    if SCALE {
        y *= params.scale;
    }
    dst_put(base + i * params.out_step, y);
}

@compute @workgroup_size(LANES * SLOTS)
fn fft_pass(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    // @generate LANE
    @builtin(local_invocation_index) lid: u32,
) {
    let lane = select(lid / SLOTS, lid % LANES, LANE_FAST);
    let slot = select(lid % SLOTS, lid / LANES, LANE_FAST);
    // @end
    let base = slot * SHARED;
    // @generate BEFORE
    // @end
    for (var turn = 0u; turn < REPEAT; turn++) {
        let unit = (group_index(wid, groups) * SLOTS + slot) * REPEAT + turn;
        // slots past the end repeat the last row, so that barriers meet everyone, and store nothing
        let live = unit < params.units;
        let u = min(unit, params.units - 1u);
        let f = u % params.fast_units;
        let s = (u / params.fast_units) % params.slow;
        let b = u / (params.fast_units * params.slow);
        let f0 = select(f, 2u * f, PAIR_ROWS);
        let f1 = min(f0 + 1u, params.fast - 1u);
        let both = f1 > f0;
        let t0 = select(select(0u, s, params.m > 1u), f0, ROWS_FAST);
        let t1 = select(t0, f1, ROWS_FAST);
        let k0 = t0 % params.p;
        let k1 = t1 % params.p;
        let o0 = (t0 - k0) * RADIX + k0;
        let o1 = (t1 - k1) * RADIX + k1;
        // rows are no axis of the data
        let in_rest = params.in_offset + b * params.in_batch + s * params.in_slow;
        let out_rest = params.out_offset + b * params.out_batch + s * params.out_slow;
        let in0 = in_rest + f0 * params.in_fast;
        let in1 = in_rest + f1 * params.in_fast;
        let out0 = out_rest + f0 * params.out_fast;
        let out1 = out_rest + f1 * params.out_fast;
        // @generate BODY
        let o = params.m;
        let x0 = vec4<f32>(fetch(in0, t0), fetch(in1, t1));
        let x1 = vec4<f32>(fetch(in0, t0 + o), fetch(in1, t1 + o));
        if live {
            put(out0, o0, x0.xy + x1.xy);
            put(out0, o0 + params.p, x0.xy - x1.xy);
            if both {
                put(out1, o1, x0.zw + x1.zw);
                put(out1, o1 + params.p, x0.zw - x1.zw);
            }
        }
        // @end
    }
}
