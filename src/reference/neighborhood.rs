//! Neighborhood attention, by listing for every query the keys that it sees.

use crate::neighborhood::{Axis, Border, NeighborhoodAttention, NeighborhoodShape, RelativeBias};

/// Inputs of [`neighborhood_attention`], row-major.
#[derive(Clone, Copy, Debug, Default)]
pub struct NeighborhoodInputs<'a> {
    /// Queries `[batch, *spatial, heads, head_dim]`.
    pub q: &'a [f64],
    /// Keys `[batch, *spatial, heads_kv, head_dim]`.
    pub k: &'a [f64],
    /// Values `[batch, *spatial, heads_kv, head_dim_v]`.
    pub v: &'a [f64],
    /// Extra keys `[batch, extra_tokens, heads_kv, head_dim]`.
    pub extra_k: &'a [f64],
    /// Extra values `[batch, extra_tokens, heads_kv, head_dim_v]`.
    pub extra_v: &'a [f64],
    /// With [`RelativeBias::Table`], `[heads, product of 2 * kernel_size - 1]`; with
    /// [`RelativeBias::Factorised`], `[sum of 2 * kernel_size - 1, head_dim]`, axis 0 first.
    pub bias: &'a [f64],
}

/// `softmax(scale * q k^T + bias) v` over each query's window, every score stored. Returns the
/// output `[batch, *spatial, heads, head_dim_v]` and the natural-log LSE `[batch, *spatial, heads]`.
///
/// Source: Hassani et al. 2024, arXiv:2403.04690, with the stride of arXiv:2504.16922; relative
/// bias and borders of Vaswani et al. 2021 (HaloNet), arXiv:2103.12731.
///
/// # Panics
/// If an input has another length than documented, or the problem is not legal.
pub fn neighborhood_attention<const D: usize>(
    op: &NeighborhoodAttention<D>,
    shape: &NeighborhoodShape<D>,
    x: &NeighborhoodInputs<'_>,
) -> (Vec<f64>, Vec<f64>) {
    let s = shape;
    let [batch, heads, heads_kv, dim, dim_v, extra] =
        [s.batch, s.heads, s.heads_kv, s.head_dim, s.head_dim_v, s.extra_tokens]
            .map(|n| n as usize);
    let tokens = s.spatial.iter().map(|&n| n as usize).product::<usize>();
    assert_eq!(x.q.len(), batch * tokens * heads * dim, "q");
    assert_eq!(x.k.len(), batch * tokens * heads_kv * dim, "k");
    assert_eq!(x.v.len(), batch * tokens * heads_kv * dim_v, "v");
    assert_eq!(x.extra_k.len(), batch * extra * heads_kv * dim, "extra_k");
    assert_eq!(x.extra_v.len(), batch * extra * heads_kv * dim_v, "extra_v");
    let scale = op.scale.map_or_else(|| (dim as f64).sqrt().recip(), f64::from);
    let spans = op.kernel_size.map(|k| 2 * k as usize - 1);

    // for each axis and each token on it, the keys that it sees
    let axes: [Axis; D] = std::array::from_fn(|a| fit(op, op.axis(a, s.spatial[a])));
    let lists: Vec<Vec<Vec<i64>>> =
        (0..D).map(|a| (0..s.spatial[a]).map(|token| visible(&axes[a], token)).collect()).collect();

    let mut out = Vec::with_capacity(batch * tokens * heads * dim_v);
    let mut lse = Vec::with_capacity(batch * tokens * heads);
    for b in 0..batch {
        for token in 0..tokens {
            let at = coordinates(token, s.spatial.map(|n| n as usize));
            for head in 0..heads {
                let head_kv = head / (heads / heads_kv);
                let row = ((b * tokens + token) * heads + head) * dim;
                let query = &x.q[row..row + dim];
                let mut scores = Vec::new();
                let mut values: Vec<Option<&[f64]>> = Vec::new();
                let count: usize = (0..D).map(|a| lists[a][at[a]].len()).product();
                for i in 0..count {
                    let within: [usize; D] =
                        coordinates(i, std::array::from_fn(|a| lists[a][at[a]].len()));
                    let key: [i64; D] = std::array::from_fn(|a| lists[a][at[a]][within[a]]);
                    // a key off the map, where the border lets one be seen, is all zeros
                    let inside = (0..D).all(|a| (0..i64::from(s.spatial[a])).contains(&key[a]));
                    let place =
                        key.iter().zip(s.spatial).fold(0, |n, (&k, d)| n * i64::from(d) + k);
                    let row = |width: usize| {
                        let place = usize::try_from(place).expect("a key on the map");
                        let start = ((b * tokens + place) * heads_kv + head_kv) * width;
                        start..start + width
                    };
                    let mut score = if inside { scale * dot(query, &x.k[row(dim)]) } else { 0.0 };
                    // offsets in steps of the dilation, from 0 to 2 * kernel_size - 2
                    let offset: [usize; D] = std::array::from_fn(|a| {
                        let steps = (key[a] - at[a] as i64) / i64::from(axes[a].dilation);
                        usize::try_from(steps + i64::from(op.kernel_size[a]) - 1)
                            .expect("an offset in the table")
                    });
                    match op.bias {
                        RelativeBias::None => {}
                        RelativeBias::Table => {
                            let entry =
                                offset.iter().zip(spans).fold(0, |n, (&o, span)| n * span + o);
                            score += x.bias[head * spans.iter().product::<usize>() + entry];
                        }
                        RelativeBias::Factorised { scaled } => {
                            let factor = if scaled { scale } else { 1.0 };
                            for a in 0..D {
                                let row = spans[..a].iter().sum::<usize>() + offset[a];
                                score += factor * dot(query, &x.bias[row * dim..][..dim]);
                            }
                        }
                    }
                    scores.push(score);
                    values.push(inside.then(|| &x.v[row(dim_v)]));
                }
                for m in 0..extra {
                    let row = (b * extra + m) * heads_kv + head_kv;
                    scores.push(scale * dot(query, &x.extra_k[row * dim..][..dim]));
                    values.push(Some(&x.extra_v[row * dim_v..][..dim_v]));
                }
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..dim_v).map(|c| {
                    let sum: f64 = weights
                        .iter()
                        .zip(&values)
                        .filter_map(|(w, v)| Some(w * v.as_ref()?[c]))
                        .sum();
                    sum / total
                }));
                lse.push(top + total.ln());
            }
        }
    }
    (out, lse)
}

/// An axis with a window that fits it, if the operator asks for that: the largest dilation that is no
/// longer than the axis, and with it the most keys and queries to a window that every group has room for.
fn fit<const D: usize>(op: &NeighborhoodAttention<D>, mut axis: Axis) -> Axis {
    if op.shrink_to_fit {
        while axis.dilation > axis.tokens {
            axis.dilation -= 1;
        }
        let on_map = axis.border == Border::Shift || axis.is_causal;
        let span = |axis: &Axis| u64::from(axis.kernel_size) * u64::from(axis.dilation);
        while on_map && span(&axis) > u64::from(axis.tokens) {
            axis.kernel_size -= 1;
        }
        while axis.stride > axis.kernel_size {
            axis.stride -= 1;
        }
    }
    axis
}

/// Tokens along one axis that query `token` sees, in rising order. With [`Border::Zeros`] some lie
/// outside the axis.
///
/// The rule in NATTEN's words: tokens split into `dilation` groups by their remainder. Inside its
/// group of `L` tokens, query `p` follows the leader of its stride group. Not causal: the leader is
/// the middle one, `min(p / stride * stride + stride / 2, L - 1)`, and the window of `kernel_size`
/// keys starts at `leader - kernel_size / 2`, clamped to `0..=L - kernel_size`. Causal: the leader
/// is the last one, and the query sees those of the leader's last `kernel_size` keys that are not
/// after itself.
pub(crate) fn visible(axis: &Axis, token: u32) -> Vec<i64> {
    let [token, tokens, kernel, stride, dilation] =
        [token, axis.tokens, axis.kernel_size, axis.stride, axis.dilation].map(i64::from);
    let group: Vec<i64> = (0..tokens).filter(|t| t % dilation == token % dilation).collect();
    let length = group.len() as i64;
    let p = group.iter().position(|&t| t == token).expect("a token of its own group") as i64;
    let stride_group = p / stride;
    let keys: Vec<i64> = if axis.is_causal {
        let leader = (stride_group * stride + stride - 1).min(length - 1);
        (0..length).filter(|&j| j <= p && j <= leader && j > leader - kernel).collect()
    } else {
        match axis.border {
            Border::Shift => {
                let leader = (stride_group * stride + stride / 2).min(length - 1);
                let start = (leader - kernel / 2).clamp(0, length - kernel);
                (start..start + kernel).collect()
            }
            // the window stays where the stride group puts it, ragged last group or not
            Border::Masked | Border::Zeros => {
                let start = stride_group * stride + stride / 2 - kernel / 2;
                let on_map = |j: &i64| axis.border == Border::Zeros || (0..length).contains(j);
                (start..start + kernel).filter(on_map).collect()
            }
        }
    };
    keys.into_iter().map(|j| j * dilation + token % dilation).collect()
}

fn coordinates<const D: usize>(index: usize, shape: [usize; D]) -> [usize; D] {
    let mut rest = index;
    let mut at = [0; D];
    for a in (0..D).rev() {
        at[a] = rest % shape[a];
        rest /= shape[a];
    }
    at
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
