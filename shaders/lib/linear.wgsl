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

// Factor that a log gate stands for. Positive gates count as zero; the floor turns minus infinity
// into a finite number whose factor is zero all the same.
fn gate_factor(g: vec4<f32>) -> vec4<f32> {
    return exp(clamp(g, vec4<f32>(-1e4), vec4<f32>(0.0)));
}
