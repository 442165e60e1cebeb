use crate::attention::{AttentionShape, CausalAlignment, Mask};

/// `softmax(scale * q kᵀ + mask) v` and its natural-log LSE, every score computed.
///
/// `q` is `[batch, seq_q, heads, head_dim]`, `k` and `v` `[batch, seq_k, heads_kv, ..]`; returns
/// `o` `[batch, seq_q, heads, head_dim_v]` and `lse` `[batch, heads, seq_q]`. A row that sees no
/// key gives 0 and -inf.
///
/// # Panics
/// If a slice is shorter than its shape.
pub fn attention(
    shape: &AttentionShape,
    mask: Mask,
    scale: f64,
    q: &[f64],
    k: &[f64],
    v: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let [b, t, s] = [shape.batch, shape.seq_q, shape.seq_k].map(|x| x as usize);
    let [h, h_kv, d, d_v] =
        [shape.heads, shape.heads_kv, shape.head_dim, shape.head_dim_v].map(|x| x as usize);
    let mut o = vec![0.0; b * t * h * d_v];
    let mut lse = vec![f64::NEG_INFINITY; b * h * t];
    for batch in 0..b {
        for head in 0..h {
            let head_kv = head / (h / h_kv);
            for row in 0..t {
                let query = &q[((batch * t + row) * h + head) * d..][..d];
                let visible: Vec<usize> = (0..s)
                    .filter(|&key| match mask {
                        Mask::None => true,
                        // the last row sees the last key
                        Mask::Causal(CausalAlignment::BottomRight) => key + t <= row + s,
                        Mask::Causal(CausalAlignment::TopLeft) => key <= row,
                    })
                    .collect();
                let scores: Vec<f64> = visible
                    .iter()
                    .map(|&key| {
                        let k_row = &k[((batch * s + key) * h_kv + head_kv) * d..][..d];
                        scale * query.iter().zip(k_row).map(|(a, b)| a * b).sum::<f64>()
                    })
                    .collect();
                let Some(top) = scores.iter().copied().reduce(f64::max) else { continue };
                let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum();
                lse[(batch * h + head) * t + row] = top + sum.ln();
                let out = &mut o[((batch * t + row) * h + head) * d_v..][..d_v];
                for (&key, score) in visible.iter().zip(&scores) {
                    let weight = (score - top).exp() / sum;
                    let v_row = &v[((batch * s + key) * h_kv + head_kv) * d_v..][..d_v];
                    for (x, value) in out.iter_mut().zip(v_row) {
                        *x += weight * value;
                    }
                }
            }
        }
    }
    (o, lse)
}
