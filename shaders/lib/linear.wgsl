// Feature maps and gates of linear attention.

// Element-wise feature maps, numbered as in `linear_attention::FeatureMap`.
fn feature_map(kind: u32, x: vec4<f32>) -> vec4<f32> {
    switch kind {
        case 1u: {
            return select(exp(min(x, vec4<f32>(0.0))), x + 1.0, x > vec4<f32>(0.0));
        }
        case 2u: {
            return max(x, vec4<f32>(0.0));
        }
        case 3u: {
            // exp stays finite: WGSL may assume that infinities do not occur
            return x / (1.0 + exp(min(-x, vec4<f32>(80.0))));
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

// Factor that a log gate stands for, to about one unit in the last place: decays multiply up over
// many tokens, and drivers' own exp may be off by many units. Positive gates count as zero; below
// -87, minus infinity included, the factor is zero.
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
