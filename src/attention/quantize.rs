//! Keys and values as int8.

use super::OP;
use crate::{Error, Result};

/// Rows as signed bytes with a scale for each head and block of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// `[batch, seq, heads, dim]`, in -127..=127.
    pub values: Vec<i8>,
    /// `[batch, heads, seq / block]` rounded up: an element is `value * scale`.
    pub scales: Vec<f32>,
}

/// Rounds `x`, `[batch, seq, heads, dim]`, to signed bytes: symmetric, one scale for each head and
/// `block` tokens, the largest magnitude of the block over 127. The error of an element is at most half
/// its scale.
///
/// A paged cache is quantised page by page: `[pages, page_size, heads, dim]`.
///
/// # Errors
/// [`Error::Shape`] if `x` has another length than `shape`, or an axis or `block` is 0,
/// [`Error::Value`] for elements that are not finite.
pub fn quantize(x: &[f32], shape: [u32; 4], block: u32) -> Result<Quantized> {
    let total = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d as usize));
    if total != Some(x.len()) {
        return Err(Error::shape(
            OP,
            "x",
            format!("elements for {shape:?}"),
            format!("{} elements", x.len()),
        ));
    }
    if block == 0 {
        return Err(Error::shape(OP, "block", "at least 1 token", 0));
    }
    if let Some(at) = x.iter().position(|x| !x.is_finite()) {
        return Err(Error::value(OP, "x", "finite elements", format!("{} at {at}", x[at])));
    }
    if let Some(axis) = shape.iter().position(|d| *d == 0) {
        let what = ["batch", "seq", "heads", "dim"][axis];
        return Err(Error::shape(OP, what, "at least 1", 0));
    }
    let [batch, seq, heads, dim] = shape.map(|d| d as usize);
    let (block, blocks) = (block as usize, seq.div_ceil(block as usize));
    let place = |b: usize, t: usize, h: usize| ((b * seq + t) * heads + h) * dim;
    let mut out = Quantized { values: vec![0; x.len()], scales: vec![0.0; batch * heads * blocks] };
    for b in 0..batch {
        for h in 0..heads {
            for part in 0..blocks {
                let tokens = part * block..((part + 1) * block).min(seq);
                let rows = tokens.map(|t| place(b, t, h)..place(b, t, h) + dim);
                let top = rows.clone().flat_map(|row| &x[row]).fold(0f32, |m, x| m.max(x.abs()));
                let scale = top / 127.0;
                out.scales[(b * heads + h) * blocks + part] = scale;
                // all zeros, or too small to divide by
                let inverse = if scale > f32::MIN_POSITIVE { scale.recip() } else { 0.0 };
                for at in rows.flatten() {
                    #[expect(clippy::cast_possible_truncation, reason = "clamped, and rounded")]
                    let value = (x[at] * inverse).round().clamp(-127.0, 127.0) as i8;
                    out.values[at] = value;
                }
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::quantize;

    #[test]
    fn errors_stay_within_half_a_step() {
        let shape = [2, 21, 3, 5];
        let x: Vec<f32> =
            (0u16..2 * 21 * 3 * 5).map(|i| (f32::from(i) * 0.7).sin() * 3.0).collect();
        let q = quantize(&x, shape, 8).unwrap();
        assert_eq!(q.scales.len(), 2 * 3 * 3);
        for (i, (&x, &v)) in x.iter().zip(&q.values).enumerate() {
            let (b, t, h) = (i / (21 * 15), i / 15 % 21, i / 5 % 3);
            let scale = q.scales[(b * 3 + h) * 3 + t / 8];
            assert!((x - f32::from(v) * scale).abs() <= 0.5001 * scale, "{i}: {x} {v} {scale}");
        }
        assert!(quantize(&x, [2, 21, 3, 6], 8).is_err());
        assert!(quantize(&x, shape, 0).is_err());
        assert!(quantize(&[f32::NAN], [1; 4], 1).is_err());
        assert_eq!(quantize(&[0.0; 4], [1, 1, 1, 4], 1).unwrap().values, [0; 4]);
    }
}
