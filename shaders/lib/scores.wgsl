// Which keys attention sees, and what it does to scores and values.

// One past the last key that a query at `position` sees, of those no further than `right` behind it if
// there is a bound.
fn key_limit(position: i32, bounded: bool, right: i32, seq_k: u32) -> u32 {
    return select(seq_k, u32(clamp(position + right + 1, 0, i32(seq_k))), bounded);
}

// The first key that it sees, no further than `left` before it.
fn key_lower(position: i32, bounded: bool, left: i32, seq_k: u32) -> u32 {
    return select(0u, u32(clamp(position - left, 0, i32(seq_k))), bounded);
}

// Infinities and NaN, told by their bits.
fn not_finite(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u);
}

// They become 0.
fn finite(x: vec4<f32>) -> vec4<f32> {
    return select(x, vec4<f32>(0.0), not_finite(x));
}

// The larger of the two, and NaN if x is: `max` may lose it.
fn at_least(x: f32, least: f32) -> f32 {
    return select(x, least, x < least);
}

// tanh(x) to one unit in the last place, safe for every x. Below 1, where 1 - 2 / (e^2x + 1) has few digits
// left, x + x^3 P(x^2) with a P of degree 6 (least squares in f64, relative error 2e-8 before rounding).
fn tanh_fma(x: f32) -> f32 {
    let y = x * x;
    var p = fma(y, -0.00039285881, 0.0024201088);
    p = fma(y, p, -0.0081062876);
    p = fma(y, p, 0.021592896);
    p = fma(y, p, -0.0539154);
    p = fma(y, p, 0.13332893);
    p = fma(y, p, -0.33333322);
    let small = fma(x * y, p, x);
    // the argument is kept where the result is 1 to f32, and NaN
    let e = exp2(select(abs(x), 10.0, abs(x) > 10.0) * 2.885390081777927);
    let large = 1.0 - 2.0 / (e + 1.0);
    return select(select(large, -large, x < 0.0), small, y < 1.0);
}
