// 2^x in multiply-adds, for software drivers, whose own exp2 costs as much as twenty of them.

// 2^x for x < 127; 0 below -126, where the result would be denormal: CPUs take a hundred cycles for
// one. Within 1 ulp; NaN stays NaN. x is split into the nearest integer, which moves the exponent's
// bits, and a rest in [-0.5, 0.5], for which a polynomial of degree 6 has a relative error of 2e-9
// before rounding (least maximum error, fitted in f64).
fn exp2_fma(x: f32) -> f32 {
    let whole = round(x);
    let rest = x - whole;
    var p = fma(1.5345808e-4, rest, 1.3399931e-3);
    p = fma(p, rest, 9.618489e-3);
    p = fma(p, rest, 5.5503286e-2);
    p = fma(p, rest, 2.4022646e-1);
    p = fma(p, rest, 6.9314718e-1);
    p = fma(p, rest, 1.0);
    return select(bitcast<f32>(bitcast<i32>(p) + (i32(whole) << 23u)), 0.0, x < -126.0);
}

// 2^x for the factor of a correction, x <= 0 or little above: `soft`, or the device's own where that
// is fast. 0 far below, whatever the device's exp2 makes of such numbers.
fn exp2_weight(x: f32, soft: bool) -> f32 {
    if soft {
        return exp2_fma(x);
    }
    return select(exp2(x), 0.0, x < -150.0);
}

// Weights of attention are this small a part of 2^(score - reference), for sums of weighted values
// are in f32: with weights of up to 1, thirty-five values of 1e37 would be too much.
const WEIGHT_UNIT: f32 = 9.5367431640625e-7; // 2^-20
const WEIGHT_UNITS: f32 = 1048576.0;

// WEIGHT_UNIT * 2^x for a weight, x little above 0; 0 below -105. `soft`: the coefficients are those of
// `exp2_fma`, times the unit, so that it costs nothing.
fn exp2_unit(x: f32, soft: bool) -> f32 {
    if soft {
        let whole = round(x);
        let rest = x - whole;
        var p = fma(1.5345808e-4 * WEIGHT_UNIT, rest, 1.3399931e-3 * WEIGHT_UNIT);
        p = fma(p, rest, 9.618489e-3 * WEIGHT_UNIT);
        p = fma(p, rest, 5.5503286e-2 * WEIGHT_UNIT);
        p = fma(p, rest, 2.4022646e-1 * WEIGHT_UNIT);
        p = fma(p, rest, 6.9314718e-1 * WEIGHT_UNIT);
        p = fma(p, rest, WEIGHT_UNIT);
        return select(bitcast<f32>(bitcast<i32>(p) + (i32(whole) << 23u)), 0.0, x < -105.0);
    }
    return select(exp2(x) * WEIGHT_UNIT, 0.0, x < -150.0);
}
