//! Real spherical harmonics.

use crate::gaunt::ShNormalization;

/// `Y_lm(r / |r|)` for every vector of `r: [n, 3]`, in the order `l^2 + l + m`: `[n, (lmax + 1)^2]`.
///
/// Real, no Condon-Shortley sign, polar axis y (the convention of e3nn):
/// `r / |r| = (sin b sin a, cos b, sin b cos a)` and
/// `Y_lm = N_lm P_l^|m|(cos b) * { sqrt(2) sin(|m| a) for m < 0, 1, sqrt(2) cos(m a) for m > 0 }`,
/// `N_lm^2 = (2 l + 1) / (4 pi) (l - |m|)! / (l + |m|)!`. Degree 1 is `sqrt(3 / 4 pi) (x, y, z)`.
/// A zero vector gives NaN.
pub fn spherical_harmonics(lmax: u32, normalization: ShNormalization, r: &[f64]) -> Vec<f64> {
    let mut out = Vec::with_capacity(r.len() / 3 * (lmax as usize + 1).pow(2));
    for v in r.chunks_exact(3) {
        let norm = (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]).sqrt();
        let (x, y, z) = (v[0] / norm, v[1] / norm, v[2] / norm);
        for l in 0..=lmax {
            let scale = normalization.factor(l);
            for m in -(l.cast_signed())..=l.cast_signed() {
                let m_abs = m.unsigned_abs();
                // (sin b)^|m| e^(i |m| a) = (z + i x)^|m|
                let (mut re, mut im) = (1.0, 0.0);
                for _ in 0..m_abs {
                    (re, im) = (re * z - im * x, re * x + im * z);
                }
                let trig = match m.signum() {
                    -1 => std::f64::consts::SQRT_2 * im,
                    0 => 1.0,
                    _ => std::f64::consts::SQRT_2 * re,
                };
                out.push(scale * reduced_legendre(l, m_abs, y) * trig);
            }
        }
    }
    out
}

/// `N_lm P_l^m(t) / (1 - t^2)^(m / 2)`, a polynomial in `t`, without the Condon-Shortley sign.
///
/// `P_m^m` is `(2 m - 1)!!`; then `(l - m) P_l = (2 l - 1) t P_(l-1) - (l + m - 1) P_(l-2)`.
fn reduced_legendre(l: u32, m: u32, t: f64) -> f64 {
    let (mut before, mut p) = (0.0, (1..=m).map(|k| f64::from(2 * k - 1)).product::<f64>());
    for k in m + 1..=l {
        let next =
            (f64::from(2 * k - 1) * t * p - f64::from(k + m - 1) * before) / f64::from(k - m);
        (before, p) = (p, next);
    }
    // (l - m)! / (l + m)!
    let ratio = (l - m + 1..=l + m).map(f64::from).product::<f64>().recip();
    (f64::from(2 * l + 1) / (4.0 * std::f64::consts::PI) * ratio).sqrt() * p
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms() {
        let v = [0.3, -0.5, 0.81];
        let n = v.iter().map(|c: &f64| c * c).sum::<f64>().sqrt();
        let (x, y, z) = (v[0] / n, v[1] / n, v[2] / n);
        let got = spherical_harmonics(3, ShNormalization::Component, &v);
        let s = |k: f64| k.sqrt();
        let want = [
            1.0,
            s(3.0) * x,
            s(3.0) * y,
            s(3.0) * z,
            s(15.0) * x * z,
            s(15.0) * x * y,
            s(5.0) * (y * y - 0.5 * (x * x + z * z)),
            s(15.0) * y * z,
            s(15.0) * 0.5 * (z * z - x * x),
            s(35.0 / 8.0) * x * (3.0 * z * z - x * x),
            s(105.0) * x * y * z,
            s(21.0 / 8.0) * x * (5.0 * y * y - 1.0),
            0.5 * s(7.0) * y * (5.0 * y * y - 3.0),
            s(21.0 / 8.0) * z * (5.0 * y * y - 1.0),
            s(105.0) * 0.5 * y * (z * z - x * x),
            s(35.0 / 8.0) * z * (z * z - 3.0 * x * x),
        ];
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-14, "{got:?}");
        }
    }

    #[test]
    fn sums_over_orders() {
        for v in [
            [0.0, 1.0, 0.0],
            [0.0, -2.0, 0.0],
            [1e-9, 1.0, 1e-9],
            [0.4, 0.5, -0.6],
            [1.0, 0.0, 0.0],
        ] {
            for (norm, want) in [
                (ShNormalization::Norm, 1.0),
                (ShNormalization::Component, f64::NAN),
                (ShNormalization::Integral, f64::NAN),
            ] {
                let y = spherical_harmonics(16, norm, &v);
                for l in 0..=16usize {
                    let sum: f64 = y[l * l..(l + 1) * (l + 1)].iter().map(|c| c * c).sum();
                    let want = match norm {
                        ShNormalization::Norm => want,
                        ShNormalization::Component => 2.0 * l as f64 + 1.0,
                        ShNormalization::Integral => {
                            (2.0 * l as f64 + 1.0) / (4.0 * std::f64::consts::PI)
                        }
                    };
                    assert!((sum / want - 1.0).abs() < 1e-13, "{v:?} {norm:?} {l}: {sum}");
                }
            }
        }
    }
}
