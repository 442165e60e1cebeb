use crate::attention::{
    Attention, AttentionShape, BiasPositions, CausalAlignment, Mask, TripleAttention, TripleShape,
};

/// Inputs of the reference, row-major without gaps; those of options that are off are empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionInputs<'a> {
    /// `[batch, seq_q, heads, head_dim]`
    pub q: &'a [f64],
    /// `[batch, seq_k, heads_kv, head_dim]`
    pub k: &'a [f64],
    /// `[batch, seq_k, heads_kv, head_dim_v]`
    pub v: &'a [f64],
    /// ALiBi slopes `[heads]`.
    pub slopes: &'a [f64],
    /// Additive bias `[batch, heads, seq_q, seq_k]`, not broadcast.
    pub bias: &'a [f64],
    /// Boolean mask `[batch, heads, seq_q, seq_k]`, not broadcast; false hides.
    pub visible: &'a [bool],
    /// Sink logits `[heads]`.
    pub sinks: &'a [f64],
    /// `[heads, head_dim, head_dim]`
    pub metric: &'a [f64],
    /// Keys of each batch.
    pub key_lengths: &'a [u32],
}

/// Attention with every option of [`Attention`] that changes its meaning, every score computed; and its
/// natural-log LSE.
///
/// Returns `o` `[batch, seq_q, heads, head_dim_v]` and `lse` `[batch, heads, seq_q]`. A row that sees no
/// key gives 0, and -inf or its sink. Packed sequences (see [`packed_attention`]), pages and int8 are not
/// known here: they say how inputs are stored.
///
/// # Panics
/// If a slice is shorter than its shape.
pub fn attention(
    shape: &AttentionShape,
    options: &Attention,
    inputs: &AttentionInputs<'_>,
) -> (Vec<f64>, Vec<f64>) {
    let [b, t, s] = [shape.batch, shape.seq_q, shape.seq_k].map(|x| x as usize);
    let [h, h_kv, d, d_v] =
        [shape.heads, shape.heads_kv, shape.head_dim, shape.head_dim_v].map(|x| x as usize);
    let scale = options.scale.map_or(1.0 / (d as f64).sqrt(), f64::from);
    let mut o = vec![0.0; b * t * h * d_v];
    let mut lse = vec![f64::NEG_INFINITY; b * h * t];
    for batch in 0..b {
        let keys = inputs.key_lengths.get(batch).map_or(s, |&n| n as usize);
        for head in 0..h {
            let head_kv = head / (h / h_kv);
            for row in 0..t {
                let mut query = inputs.q[((batch * t + row) * h + head) * d..][..d].to_vec();
                if options.metric {
                    let g = &inputs.metric[head * d * d..][..d * d];
                    query = (0..d).map(|c| (0..d).map(|r| query[r] * g[r * d + c]).sum()).collect();
                }
                // where the query stands among the keys
                let position = match options.mask {
                    Mask::Causal(CausalAlignment::TopLeft) => row as i64,
                    _ => row as i64 + keys as i64 - t as i64,
                };
                let mut scores = Vec::new();
                for key in 0..keys {
                    let distance = position - key as i64;
                    let at = ((batch * h + head) * t + row) * s + key;
                    let before = options.window.left.is_some_and(|left| distance > i64::from(left));
                    let after =
                        options.window.right.is_some_and(|right| -distance > i64::from(right));
                    let future = options.mask != Mask::None && distance < 0;
                    let hidden = options.visible && !inputs.visible[at];
                    if before || after || future || hidden {
                        continue;
                    }
                    let k_row = &inputs.k[((batch * s + key) * h_kv + head_kv) * d..][..d];
                    let mut score =
                        scale * query.iter().zip(k_row).map(|(a, b)| a * b).sum::<f64>();
                    if let Some(cap) = options.softcap {
                        score = f64::from(cap) * (score / f64::from(cap)).tanh();
                    }
                    if options.alibi {
                        score -= inputs.slopes[head] * distance.abs() as f64;
                    }
                    if options.bias {
                        score += inputs.bias[at];
                    }
                    if score > f64::NEG_INFINITY {
                        scores.push((key, score));
                    }
                }
                let sink = options.sinks.then(|| inputs.sinks[head]);
                let top = scores.iter().map(|(_, x)| *x).chain(sink).reduce(f64::max);
                let Some(top) = top else { continue };
                let sum = scores.iter().map(|(_, x)| *x).chain(sink).map(|x| (x - top).exp());
                let sum = sum.sum::<f64>();
                lse[(batch * h + head) * t + row] = top + sum.ln();
                let out = &mut o[((batch * t + row) * h + head) * d_v..][..d_v];
                for (key, score) in scores {
                    let weight = (score - top).exp() / sum;
                    let v_row = &inputs.v[((batch * s + key) * h_kv + head_kv) * d_v..][..d_v];
                    for (x, value) in out.iter_mut().zip(v_row) {
                        *x += weight * value;
                    }
                }
            }
        }
    }
    (o, lse)
}

/// [`attention`] of packed sequences, one after the other: sequence `a` has queries
/// `bounds_q[a]..bounds_q[a + 1]` and keys `bounds_k[a]..bounds_k[a + 1]`.
///
/// Shapes are those of one problem of `seq_q` queries and `seq_k` keys, but for bias and mask with
/// [`BiasPositions::Sequence`]: `[sequences, heads, longest queries, longest keys]`. Not broadcast either.
/// `key_lengths` are not used.
///
/// # Panics
/// If a slice is shorter than its shape, or a bound greater than the next.
pub fn packed_attention(
    shape: &AttentionShape,
    options: &Attention,
    inputs: &AttentionInputs<'_>,
    bounds_q: &[u32],
    bounds_k: &[u32],
) -> (Vec<f64>, Vec<f64>) {
    let [h, hk, d, dv] =
        [shape.heads, shape.heads_kv, shape.head_dim, shape.head_dim_v].map(|x| x as usize);
    let total = shape.seq_q as usize;
    let longest = |bounds: &[u32]| {
        bounds.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    };
    let (longest_q, longest_k) = (longest(bounds_q), longest(bounds_k));
    let mut o = vec![0.0; total * h * dv];
    let mut lse = vec![0.0; h * total];
    for (a, (queries, keys)) in bounds_q.windows(2).zip(bounds_k.windows(2)).enumerate() {
        let [q0, q1, k0, k1] = [queries[0], queries[1], keys[0], keys[1]].map(|x| x as usize);
        let (t, n) = (q1 - q0, k1 - k0);
        // entry of the bias and of the mask for a head, query and key of this sequence
        let entry = |head: usize, i: usize, j: usize| match options.bias_positions {
            BiasPositions::Sequence => ((a * h + head) * longest_q + i) * longest_k + j,
            BiasPositions::Pack => (head * total + q0 + i) * shape.seq_k as usize + k0 + j,
        };
        let entries: Vec<usize> =
            (0..h * t * n).map(|x| entry(x / (t * n), x / n % t, x % n)).collect();
        let bias: Vec<f64> =
            if options.bias { entries.iter().map(|&x| inputs.bias[x]).collect() } else { vec![] };
        let visible: Vec<bool> = if options.visible {
            entries.iter().map(|&x| inputs.visible[x]).collect()
        } else {
            vec![]
        };
        let alone = AttentionShape {
            batch: 1,
            seq_q: queries[1] - queries[0],
            seq_k: keys[1] - keys[0],
            ..*shape
        };
        let part = AttentionInputs {
            q: &inputs.q[q0 * h * d..q1 * h * d],
            k: &inputs.k[k0 * hk * d..k1 * hk * d],
            v: &inputs.v[k0 * hk * dv..k1 * hk * dv],
            bias: &bias,
            visible: &visible,
            key_lengths: &[],
            ..*inputs
        };
        let (part_o, part_lse) = attention(&alone, options, &part);
        o[q0 * h * dv..q1 * h * dv].copy_from_slice(&part_o);
        for head in 0..h {
            lse[head * total + q0..][..t].copy_from_slice(&part_lse[head * t..][..t]);
        }
    }
    (o, lse)
}

/// Softmax over pairs of keys, every pair computed: `s_ijk = scale * sum_c q_ic k1_jc k2_kc`,
/// `o_i = sum_jk p_ijk (v1_j * v2_k)`; and the natural-log LSE over pairs.
///
/// Arrays as [`TripleArgs`](crate::attention::TripleArgs) has them, without gaps. Returns `o`
/// `[batch, seq_q, heads, head_dim_v]` and `lse` `[batch, heads, seq_q]`.
///
/// # Panics
/// If a slice is shorter than its shape.
pub fn triple_attention(
    s: &TripleShape,
    options: &TripleAttention,
    q: &[f64],
    k1: &[f64],
    k2: &[f64],
    v1: &[f64],
    v2: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let [b, t, h] = [s.batch, s.seq_q, s.heads].map(|x| x as usize);
    let [n1, n2, hk, d, dv] =
        [s.seq_1, s.seq_2, s.heads_kv, s.head_dim, s.head_dim_v].map(|x| x as usize);
    let scale = options.scale.map_or(1.0 / (d as f64).sqrt(), f64::from);
    let mut o = vec![0.0; b * t * h * dv];
    let mut lse = vec![f64::NEG_INFINITY; b * h * t];
    for at in 0..b * t * h {
        let (batch, row, head) = (at / (t * h), at / h % t, at % h);
        let head_kv = head / (h / hk);
        let first =
            |x: &[f64], j: usize, c: usize, d: usize| x[((batch * n1 + j) * hk + head_kv) * d + c];
        let second =
            |x: &[f64], k: usize, c: usize, d: usize| x[((batch * n2 + k) * hk + head_kv) * d + c];
        let seen = |n: usize| if options.causal { n.min(row + 1) } else { n };
        let pairs: Vec<(usize, usize)> =
            (0..seen(n1)).flat_map(|j| (0..seen(n2)).map(move |k| (j, k))).collect();
        let score = |&(j, k): &(usize, usize)| {
            let term = |c| q[at * d + c] * first(k1, j, c, d) * second(k2, k, c, d);
            scale * (0..d).map(term).sum::<f64>()
        };
        let scores: Vec<f64> = pairs.iter().map(score).collect();
        let Some(top) = scores.iter().copied().reduce(f64::max) else { continue };
        let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum();
        lse[(batch * h + head) * t + row] = top + sum.ln();
        for c in 0..dv {
            let term = |(&(j, k), x): (&(usize, usize), &f64)| {
                (x - top).exp() / sum * first(v1, j, c, dv) * second(v2, k, c, dv)
            };
            o[at * dv + c] = pairs.iter().zip(&scores).map(term).sum();
        }
    }
    (o, lse)
}
