// Feature maps and gates of linear attention.

// Element-wise feature maps, numbered as in `linear_attention::FeatureMap`.
fn feature_map(kind: u32, x: vec4<f32>) -> vec4<f32> {
    switch kind {
        case 1u: {
            // far below, where exp gives 0 and none may give anything else, it is kept from the driver
            return select(exp(clamp(x, vec4<f32>(-200.0), vec4<f32>(0.0))), x + 1.0, x > vec4<f32>(0.0));
        }
        case 2u: {
            return max(x, vec4<f32>(0.0));
        }
        case 3u: {
            // e^-|x| does not overflow: x sigmoid(x) is 0 for the most negative x
            let e = exp(max(-abs(x), vec4<f32>(-200.0)));
            return x * select(vec4<f32>(1.0), e, x < vec4<f32>(0.0)) / (1.0 + e);
        }
        case 4u: {
            let y = max(x, vec4<f32>(0.0));
            return y * y;
        }
        default: {
            return x;
        }
    }
}

// Feature `c` of the second Taylor polynomial over `dim` channels: the two channels whose product
// it is (`dim` stands for the constant one), and what that is multiplied by.
struct TaylorFeature { i: u32, j: u32, factor: f32 }
fn taylor_feature(c: u32, dim: u32, scale: f32) -> TaylorFeature {
    if c == 0u {
        return TaylorFeature(dim, dim, 1.0);
    }
    if c <= dim {
        return TaylorFeature(c - 1u, dim, sqrt(scale));
    }
    // row i of the upper triangle begins at i * dim - i * (i - 1) / 2
    let p = c - 1u - dim;
    let b = 2.0 * f32(dim) + 1.0;
    var i = u32(max(0.5 * (b - sqrt(max(b * b - 8.0 * f32(p), 0.0))), 0.0));
    // the root may round across a whole number
    if i > 0u && i * dim - i * (i - 1u) / 2u > p {
        i -= 1u;
    }
    if (i + 1u) * dim - (i + 1u) * i / 2u <= p {
        i += 1u;
    }
    let j = i + p - (i * dim - i * (i - 1u) / 2u);
    return TaylorFeature(i, j, scale * select(1.0, 0.70710678118654752, i == j));
}

// Factor that a log gate stands for, to about one unit in the last place. Positive gates count as
// zero; below -87, minus infinity included, the factor is zero: f32 has none so small.
fn gate_factor(g: vec4<f32>) -> vec4<f32> {
    let x = clamp(g, vec4<f32>(-87.0), vec4<f32>(0.0));
    // x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts, the first exact in few bits
    let n = round(x * 1.4426950408889634);
    let r = fma(n, vec4<f32>(-1.4286068e-6), fma(n, vec4<f32>(-0.693145751953125), x));
    var p = fma(r, vec4<f32>(0.00019841270), vec4<f32>(0.0013888889));
    p = fma(r, p, vec4<f32>(0.0083333333));
    p = fma(r, p, vec4<f32>(0.041666667));
    p = fma(r, p, vec4<f32>(0.16666667));
    p = fma(r, p, vec4<f32>(0.5));
    p = fma(r, p, vec4<f32>(1.0));
    p = fma(r, p, vec4<f32>(1.0));
    let power = bitcast<vec4<f32>>((vec4<i32>(n) + 127) << vec4<u32>(23u));
    return select(p * power, vec4<f32>(0.0), g < vec4<f32>(-87.0));
}

// (e^x - 1) / x for -1 <= x <= 0, within 1.3e-7: a polynomial of degree 6, interpolated in f64.
fn decay_slope(x: vec4<f32>) -> vec4<f32> {
    var p = fma(x, vec4<f32>(0.000137424184), vec4<f32>(0.001324818));
    p = fma(x, p, vec4<f32>(0.00830117054));
    p = fma(x, p, vec4<f32>(0.0416592546));
    p = fma(x, p, vec4<f32>(0.166666031));
    p = fma(x, p, vec4<f32>(0.5));
    return fma(x, p, vec4<f32>(1.0));
}

// A log gate `g` as two factors: s decays to `a s + b s`, with `a` 1 and `b` what the factor lacks to 1
// where that is little, so that it has all its digits; elsewhere `a` is 0 and `b` the factor.
fn decay_parts(g: f32) -> vec2<f32> {
    let x = clamp(g, -200.0, 0.0);
    if x < -0.5 {
        return vec2<f32>(0.0, gate_factor(vec4<f32>(x)).x);
    }
    return vec2<f32>(1.0, x * decay_slope(vec4<f32>(x)).x);
}

// The same for what has waited, `late` above -1.
fn decay_late(late: f32) -> vec2<f32> {
    return vec2<f32>(1.0, late * decay_slope(vec4<f32>(late)).x);
}

// A state decayed in such parts, with `more` added: what changes is summed first and then rounded
// once against the state, so that what is less than half of its last place is not lost each time.
// `zero` is 0 and no compiler knows it: left alone, they sum in an order of their own.
fn decay_apply(s: vec4<f32>, parts: vec2<f32>, more: vec4<f32>, zero: u32) -> vec4<f32> {
    let change = bitcast<vec4<u32>>(fma(vec4<f32>(parts.y), s, more)) | vec4<u32>(zero);
    return fma(vec4<f32>(parts.x), s, bitcast<vec4<f32>>(change));
}

// What is left of a decay at the end of a call, for numbers `s`: not rounded to nearest, but up or down by
// chance, in proportion. A state that changes by nearly the same in each of many calls would else err
// to the same side each time. `chance` is of `decay_chance`.
fn decay_rest(s: vec4<f32>, parts: vec2<f32>, chance: f32, zero: u32) -> vec4<f32> {
    // half of a last place of s, at most
    let unit = bitcast<vec4<f32>>(bitcast<vec4<u32>>(s) & vec4<u32>(0x7f800000u));
    return decay_apply(s, parts, unit * select(chance, 0.0, parts.y == 0.0), zero);
}

// A number from -2^-24 to 2^-24 that follows from the bits of a state, summed.
fn decay_chance(bits: vec4<u32>) -> f32 {
    let all = bits.x + bits.y + bits.z + bits.w;
    return (f32((all * 2654435761u) >> 8u) - 8388607.5) * 7.105427357601002e-15;
}

// Walking along tokens, a state is kept apart from what it has yet to fade by: it is worth
// e^(log + rest) times the numbers kept, `log` a multiple of 2^-24 above -0.5 and `rest` what is left
// below that, so that no sum of gates is rounded. Only when `log` falls below -0.5 are the numbers
// multiplied, by `factor`. Factors of single tokens would not do: near 1 f32 has few digits for
// what they lack to 1, and multiplying by them rounds each time, to the same side.
struct DecayStep {
    log: vec4<f32>,
    rest: vec4<f32>,
    // of the numbers kept, at this token: mostly 1
    factor: vec4<f32>,
    // what reads them is to be multiplied by this after that, and what is added divided by it
    up: vec4<f32>,
    // logarithm of `factor`
    gone: vec4<f32>,
}
fn decay_step(g: vec4<f32>, log: vec4<f32>, rest: vec4<f32>) -> DecayStep {
    let x = clamp(g, vec4<f32>(-200.0), vec4<f32>(0.0)) + rest;
    let whole = round(x * 16777216.0) * 5.9604644775390625e-8;
    let sum = log + whole;
    var power = fma(sum, decay_slope(sum), vec4<f32>(1.0));
    if any(sum < vec4<f32>(-1.0)) {
        power = select(power, gate_factor(sum), sum < vec4<f32>(-1.0));
    }
    let due = sum < vec4<f32>(-0.5);
    return DecayStep(
        select(sum, vec4<f32>(0.0), due),
        x - whole,
        select(vec4<f32>(1.0), power, due),
        select(power, vec4<f32>(1.0), due),
        select(vec4<f32>(0.0), sum, due),
    );
}
