/// Kernelised attention with relative positions, as its sums are written:
/// `o_i = sum_j e^b[j - i] (phi(q_i) . phi(k_j)) v_j / sum_j e^b[j - i] (phi(q_i) . phi(k_j))`.
///
/// `shape` is `[rows, heads, n, features, value_dim]` with `rows` (batch, head) pairs, the head
/// fastest; features of queries and keys `[rows, n, features]`, `v` and the result
/// `[rows, n, value_dim]`, `b: [heads, 2 n - 1]` by key minus query, from `-(n - 1)` on. Causal:
/// keys after the query do not count. A key with `b = -inf` does not either; a row without keys is 0.
pub fn relative_attention(
    shape: [usize; 5],
    causal: bool,
    phi_q: &[f64],
    phi_k: &[f64],
    v: &[f64],
    b: &[f64],
) -> Vec<f64> {
    let [rows, heads, n, features, value_dim] = shape;
    let mut out = vec![0.0; rows * n * value_dim];
    for row in 0..rows {
        let phi = |x: &'_ [f64], t: usize| x[(row * n + t) * features..][..features].to_vec();
        for i in 0..n {
            let q = phi(phi_q, i);
            let (mut above, mut below) = (vec![0.0; value_dim], 0.0);
            let seen = 0..if causal { i + 1 } else { n };
            let bias = |j: usize| b[row % heads * (2 * n - 1) + j + n - 1 - i];
            // cancels, and keeps e^b finite
            let top = seen.clone().map(bias).fold(f64::NEG_INFINITY, f64::max);
            for j in seen.filter(|&j| bias(j) > f64::NEG_INFINITY) {
                let similarity: f64 = q.iter().zip(phi(phi_k, j)).map(|(q, k)| q * k).sum();
                let weight = similarity * (bias(j) - top).exp();
                below += weight;
                let v = &v[(row * n + j) * value_dim..][..value_dim];
                above.iter_mut().zip(v).for_each(|(a, v)| *a += weight * v);
            }
            if below == 0.0 {
                continue;
            }
            let o = &mut out[(row * n + i) * value_dim..][..value_dim];
            o.iter_mut().zip(above).for_each(|(o, a)| *o = a / below);
        }
    }
    out
}

/// Positive random features of vectors scaled to length 1:
/// `exp(w_m . x / |x| - 1/2) / sqrt(features)`.
///
/// `x: [rows, n, dim]` with the head fastest in `rows`, `w: [heads, features, dim]`; the result is
/// `[rows, n, features]`.
pub fn positive_features(shape: [usize; 5], x: &[f64], w: &[f64]) -> Vec<f64> {
    let [rows, heads, n, features, dim] = shape;
    let mut out = Vec::with_capacity(rows * n * features);
    for (at, x) in x.chunks_exact(dim).take(rows * n).enumerate() {
        let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let head = at / n % heads;
        for w in w[head * features * dim..][..features * dim].chunks_exact(dim) {
            let dot: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            out.push((dot / length - 0.5).exp() / (features as f64).sqrt());
        }
    }
    out
}
