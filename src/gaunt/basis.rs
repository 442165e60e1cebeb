//! Functions of the colatitude, and the nodes they are sampled at. All in f64.

use std::f64::consts::PI;

/// Nodes and weights of Gauss-Legendre quadrature on `[-1, 1]`, nodes increasing.
///
/// Newton's method on `P_n` from the asymptotic roots; exact for polynomials of degree
/// `2 n - 1` and below, to a few units of `2^-53`.
pub(crate) fn gauss_legendre(n: u32) -> (Vec<f64>, Vec<f64>) {
    let count = n as usize;
    let (mut nodes, mut weights) = (vec![0.0; count], vec![0.0; count]);
    for i in 0..count.div_ceil(2) {
        let mut x = (PI * (i as f64 + 0.75) / (f64::from(n) + 0.5)).cos();
        let mut slope = 1.0;
        for _ in 0..100 {
            // (k + 1) P_(k+1) = (2 k + 1) x P_k - k P_(k-1)
            let (mut p, mut before) = (1.0, 0.0);
            for k in 0..n {
                let k = f64::from(k);
                (p, before) = (((2.0 * k + 1.0) * x * p - k * before) / (k + 1.0), p);
            }
            slope = f64::from(n) * (x * p - before) / (x * x - 1.0);
            let step = p / slope;
            x -= step;
            if step.abs() < 1e-16 {
                break;
            }
        }
        let weight = 2.0 / ((1.0 - x * x) * slope * slope);
        (nodes[count - 1 - i], weights[count - 1 - i]) = (x, weight);
        (nodes[i], weights[i]) = (-x, weight);
    }
    if count % 2 == 1 {
        nodes[count / 2] = 0.0;
    }
    (nodes, weights)
}

/// Position of `(l, m)`, `0 <= m <= l`, in a [`theta_row`].
pub(crate) fn column(l: u32, m: u32) -> usize {
    (l * (l + 1) / 2 + m) as usize
}

/// `N_lm P_l^m(cos b)` for all `0 <= m <= l <= lmax`, no Condon-Shortley sign, at [`column`].
///
/// The recurrence is on the normalised functions: stable, no overflow, for degrees in the
/// hundreds.
pub(crate) fn theta_row(lmax: u32, cos: f64, sin: f64) -> Vec<f64> {
    let mut row = vec![0.0; column(lmax, lmax) + 1];
    let mut diagonal = (0.25 / PI).sqrt();
    for m in 0..=lmax {
        if m > 0 {
            diagonal *= sin * (f64::from(2 * m + 1) / f64::from(2 * m)).sqrt();
        }
        let m2 = f64::from(m) * f64::from(m);
        let (mut before, mut now, mut last_ratio) = (0.0, diagonal, 0.0);
        row[column(m, m)] = now;
        for l in m + 1..=lmax {
            let l2 = f64::from(l) * f64::from(l);
            let ratio = ((4.0 * l2 - 1.0) / (l2 - m2)).sqrt();
            // coefficient of the function two degrees below: ratio_l / ratio_(l-1), 0 at the start
            let back = if l == m + 1 { 0.0 } else { ratio / last_ratio };
            (now, before) = (ratio * cos * now - back * before, now);
            last_ratio = ratio;
            row[column(l, m)] = now;
        }
    }
    row
}

/// Derivative with respect to the colatitude `b` of [`theta_row`], same order.
///
/// `d/db Theta_lm = (a_(l,m) Theta_(l,m-1) - a_(l,m+1) Theta_(l,m+1)) / 2` with
/// `a_(l,m) = sqrt((l + m)(l - m + 1))`, and for `m = 0` it is `-sqrt(l (l + 1)) Theta_(l,1)`.
/// (Signs are those without Condon-Shortley.)
pub(crate) fn theta_slope_row(lmax: u32, row: &[f64]) -> Vec<f64> {
    let mut slope = vec![0.0; row.len()];
    let a = |l: u32, m: u32| (f64::from(l + m) * f64::from(l - m + 1)).sqrt();
    for l in 0..=lmax {
        for m in 0..=l {
            let up = if m < l { a(l, m + 1) * row[column(l, m + 1)] } else { 0.0 };
            slope[column(l, m)] =
                if m == 0 { -up } else { 0.5 * (a(l, m) * row[column(l, m - 1)] - up) };
        }
    }
    slope
}

/// `sum_u c[u] e^(i u b)` of `N_lm P_l^m(cos b)`: the coefficients `c[l + u]`, `u = -l..=l`, of
/// the function continued to the whole circle with a signed `sin b`.
///
/// They are real for even `m`, imaginary for odd `m`; what is returned is `c` or `c / i`.
/// Closed form: `Theta_lm(b) = i^m sqrt((2l+1)/4pi) sum_u d_um d_u0 e^(i u b)` with the Wigner
/// matrix `d = d^l(pi / 2)`.
pub(crate) fn theta_fourier(l: u32, m: u32) -> Vec<f64> {
    let d = |u: i32, m: u32| quarter_turn(l, u, m.cast_signed());
    let scale = (f64::from(2 * l + 1) / (4.0 * PI)).sqrt();
    // i^m, over i for odd m
    let sign = if (m / 2).is_multiple_of(2) { 1.0 } else { -1.0 };
    let l = l.cast_signed();
    (-l..=l).map(|u| sign * scale * d(u, m) * d(u, 0)).collect()
}

/// `d^l_(u m)(pi / 2)`: `2^-l sqrt((l+u)!(l-u)! / ((l+m)!(l-m)!)) sum_k (-1)^(k+u-m) C(l+m, k+?)...`
/// as a sum of products of two binomials, exact in integers for `l <= 60`.
fn quarter_turn(l: u32, u: i32, m: i32) -> f64 {
    let l = l.cast_signed();
    // d_(u m) = sum_k (-1)^(k + u - m) / 2^l
    //   * sqrt((l+u)!(l-u)!(l+m)!(l-m)!) / ((l+m-k)! k! (l-u-k)! (u-m+k)!)
    // and (l+m)!/((l+m-k)! k!) = C(l+m, k), (l-m)!/((l-u-k)!(u-m+k)!) = C(l-m, l-u-k)
    let sum: i128 = (0..=l + m)
        .map(|k| {
            let term = binomial(l + m, k) * binomial(l - m, l - u - k);
            if (k + u - m).rem_euclid(2) == 0 { term } else { -term }
        })
        .sum();
    // sqrt of (l+u)!(l-u)! / ((l+m)!(l-m)!): a product of max(|u|,|m|) - min(|u|,|m|) ratios
    let (small, large) = (u.abs().min(m.abs()), u.abs().max(m.abs()));
    let mut ratio = 1.0;
    for k in small + 1..=large {
        // (l + k)! (l - k)! over (l + k - 1)! (l - k + 1)!
        ratio *= f64::from(l + k) / f64::from(l - k + 1);
    }
    if u.abs() < m.abs() {
        ratio = 1.0 / ratio;
    }
    ratio.sqrt() * sum as f64 / f64::powi(2.0, l)
}

fn binomial(n: i32, k: i32) -> i128 {
    if k < 0 || k > n {
        return 0;
    }
    (1..=i128::from(k.min(n - k))).fold(1, |c, i| c * (i128::from(n) + 1 - i) / i)
}

/// The integral over `b` in `0..pi` of `cos(n b) sin(b)`.
pub(crate) fn half_range(n: i32) -> f64 {
    if n % 2 == 0 { 2.0 / (1.0 - f64::from(n) * f64::from(n)) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{gaunt::ShNormalization, reference::spherical_harmonics};

    #[test]
    fn quadrature_is_exact() {
        let (x, w) = gauss_legendre(3);
        let s = 0.6f64.sqrt();
        for (got, want) in
            x.iter().zip([-s, 0.0, s]).chain(w.iter().zip([5.0 / 9.0, 8.0 / 9.0, 5.0 / 9.0]))
        {
            assert!((got - want).abs() < 1e-15);
        }
        for n in [1u32, 2, 7, 16, 33, 97] {
            let (x, w) = gauss_legendre(n);
            for power in [0, 2.min(2 * n - 2), 2 * n - 2].map(u32::cast_signed) {
                let got: f64 = x.iter().zip(&w).map(|(x, w)| w * x.powi(power)).sum();
                let want = 2.0 / f64::from(power + 1);
                assert!((got / want - 1.0).abs() < 1e-13, "{n} {power}: {got} {want}");
            }
        }
    }

    #[test]
    fn theta_is_the_reference_at_longitude_zero() {
        for b in [0.0f64, 1e-7, 0.3, 1.1, PI / 2.0, 2.8, PI] {
            let row = theta_row(40, b.cos(), b.sin());
            let y = spherical_harmonics(40, ShNormalization::Integral, &[0.0, b.cos(), b.sin()]);
            for l in 0..=40u32 {
                for m in 0..=l {
                    let k = if m == 0 { 1.0 } else { std::f64::consts::SQRT_2 };
                    let want = y[(l * l + l + m) as usize];
                    assert!((row[column(l, m)] * k - want).abs() < 1e-12, "{l} {m} {b}");
                }
            }
        }
    }

    #[test]
    fn slope_is_the_derivative() {
        let (b, h) = (0.7f64, 1e-5);
        let slope = theta_slope_row(12, &theta_row(12, b.cos(), b.sin()));
        let (up, down) = (
            theta_row(12, (b + h).cos(), (b + h).sin()),
            theta_row(12, (b - h).cos(), (b - h).sin()),
        );
        for (i, s) in slope.iter().enumerate() {
            assert!((s - (up[i] - down[i]) / (2.0 * h)).abs() < 1e-7, "{i}");
        }
    }

    #[test]
    fn fourier_series_sum_to_theta() {
        for l in [0u32, 1, 2, 3, 7, 12, 24, 33] {
            for m in 0..=l {
                let c = theta_fourier(l, m);
                for b in [0.0f64, 0.4, 1.9, 3.3, 6.0] {
                    // real part for even m (cosines), the sines for odd m
                    let got: f64 = (-(l.cast_signed())..=l.cast_signed())
                        .zip(&c)
                        .map(|(u, c)| {
                            let angle = f64::from(u) * b;
                            if m % 2 == 0 { c * angle.cos() } else { -c * angle.sin() }
                        })
                        .sum();
                    let want = theta_row(l, b.cos(), b.sin())[column(l, m)];
                    assert!(
                        (got - want).abs() < 1e-13 * f64::from(l + 1),
                        "{l} {m} {b}: {got} {want}"
                    );
                }
            }
        }
    }
}
