// 2^x in multiply-adds, for software drivers, whose own exp2 costs as much as twenty of them.

// 2^x for -100 <= x < 127, clamped below, so that no product of a weight and a value is denormal:
// CPUs take a hundred cycles for one. Within 1 ulp. x is split into the nearest integer, which
// moves the exponent's bits, and a rest in [-0.5, 0.5], for which a polynomial of degree 6 has a
// relative error of 2e-9 before rounding (least maximum error, fitted in f64).
fn exp2_fma(x: f32) -> f32 {
    let y = max(x, -100.0);
    let whole = round(y);
    let rest = y - whole;
    var p = fma(1.5345808e-4, rest, 1.3399931e-3);
    p = fma(p, rest, 9.618489e-3);
    p = fma(p, rest, 5.5503286e-2);
    p = fma(p, rest, 2.4022646e-1);
    p = fma(p, rest, 6.9314718e-1);
    p = fma(p, rest, 1.0);
    return bitcast<f32>(bitcast<i32>(p) + (i32(whole) << 23u));
}

// The same for a weight, x <= 0 or little above: `soft`, or the device's own where that is fast.
fn exp2_weight(x: f32, soft: bool) -> f32 {
    if soft {
        return exp2_fma(x);
    }
    // far below, where every exp2 gives 0 and none may give anything else
    return exp2(max(x, -200.0));
}
