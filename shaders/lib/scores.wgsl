// What attention does to scores and values.

// Infinities and NaN, told by their bits, become 0.
fn finite(x: vec4<f32>) -> vec4<f32> {
    let exponent = bitcast<vec4<u32>>(x) & vec4<u32>(0x7f800000u);
    return select(x, vec4<f32>(0.0), exponent == vec4<u32>(0x7f800000u));
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
    // the argument is kept where the result is 1 to f32
    let e = exp2(min(abs(x), 10.0) * 2.885390081777927);
    let large = 1.0 - 2.0 / (e + 1.0);
    return select(select(large, -large, x < 0.0), small, y < 1.0);
}
