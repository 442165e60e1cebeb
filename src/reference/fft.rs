use std::f64::consts::TAU;

use crate::fft::Direction;

/// The unnormalised discrete Fourier transform
/// `X[k0, k1] = sum_(j0, j1) x[j0, j1] exp(-+ 2 pi i (j0 k0 / n0 + j1 k1 / n1))`, each axis as its
/// sum is written.
///
/// `x` and the result are `[batch, n0, n1]` complex numbers as pairs `(re, im)`. For real data
/// give zero imaginary parts.
///
/// # Panics
/// If `x` is not a whole number of transforms.
pub fn dft(shape: [u32; 2], direction: Direction, x: &[f64]) -> Vec<f64> {
    let [n0, n1] = shape.map(|n| n as usize);
    assert!(x.len().is_multiple_of(2 * n0 * n1), "{} numbers for shape {shape:?}", x.len());
    let mut out = Vec::with_capacity(x.len());
    for x in x.chunks(2 * n0 * n1) {
        // along rows
        let mut rows = vec![0.0; x.len()];
        for (from, to) in x.chunks(2 * n1).zip(rows.chunks_mut(2 * n1)) {
            line(
                n1,
                direction,
                |j| (from[2 * j], from[2 * j + 1]),
                |k, re, im| {
                    (to[2 * k], to[2 * k + 1]) = (re, im);
                },
            );
        }
        // along columns
        let mut both = vec![0.0; x.len()];
        for c in 0..n1 {
            let at = |row: usize| 2 * (row * n1 + c);
            line(
                n0,
                direction,
                |j| (rows[at(j)], rows[at(j) + 1]),
                |k, re, im| {
                    (both[at(k)], both[at(k) + 1]) = (re, im);
                },
            );
        }
        out.extend(both);
    }
    out
}

fn line(
    n: usize,
    direction: Direction,
    get: impl Fn(usize) -> (f64, f64),
    mut put: impl FnMut(usize, f64, f64),
) {
    let sign = if direction == Direction::Forward { -1.0 } else { 1.0 };
    #[expect(clippy::cast_precision_loss, reason = "a length is exact in f64")]
    let roots: Vec<(f64, f64)> =
        (0..n).map(|e| (sign * TAU * e as f64 / n as f64).sin_cos()).map(|(s, c)| (c, s)).collect();
    for k in 0..n {
        let (mut re, mut im) = (0.0, 0.0);
        for j in 0..n {
            let (x, y) = get(j);
            let (c, s) = roots[j * k % n];
            re += x * c - y * s;
            im += x * s + y * c;
        }
        put(k, re, im);
    }
}
