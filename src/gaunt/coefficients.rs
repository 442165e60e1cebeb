//! Tables of coupling coefficients, in f64.

use std::{
    collections::HashMap,
    f64::consts::{PI, SQRT_2},
};

use super::basis::{column, gauss_legendre, theta_row, theta_slope_row};

/// One non-zero coefficient: `z[out] += value * x[first] * y[second]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Coefficient {
    pub(crate) first: u32,
    pub(crate) second: u32,
    pub(crate) out: u32,
    pub(crate) value: f64,
}

/// The non-zero coefficients of a product of two functions, scalar or vector, sorted by output.
///
/// Integrals in the colatitude by Gauss-Legendre quadrature, in the longitude by equidistant
/// points, both exact for the degrees at hand: no more error than the rounding of the sums.
pub(crate) fn coefficients(
    lmax1: u32,
    lmax2: u32,
    lmax_out: u32,
    vector: bool,
) -> Vec<Coefficient> {
    let lmax_out = lmax_out.min(lmax1 + lmax2);
    let top = lmax1 + lmax2 + lmax_out;
    let lmax = lmax1.max(lmax2).max(lmax_out);
    let (nodes, weights) = gauss_legendre(top / 2 + 1);
    let rows: Vec<Vec<f64>> =
        nodes.iter().map(|&t| theta_row(lmax, t, ((1.0 - t) * (1.0 + t)).sqrt())).collect();
    let slopes: Vec<Vec<f64>> = rows.iter().map(|row| theta_slope_row(lmax, row)).collect();
    let mut known: HashMap<[i32; 3], f64> = HashMap::new();
    let mut around = |m: [i32; 3]| *known.entry(m).or_insert_with(|| trig_integral(m, top + 1));
    let mut found = Vec::new();
    for l1 in 0..=lmax1 {
        for l2 in 0..=lmax2 {
            for l3 in l1.abs_diff(l2)..=(l1 + l2).min(lmax_out) {
                if ((l1 + l2 + l3) % 2 == 1) != vector {
                    continue;
                }
                for m1 in orders(l1) {
                    for m2 in orders(l2) {
                        for m3 in partners(m1, m2, l3) {
                            let [n1, n2, n3] = [m1, m2, m3].map(i32::unsigned_abs);
                            let (a, b, c) = (column(l1, n1), column(l2, n2), column(l3, n3));
                            let value = if vector {
                                // the derivative of t_m is -m t_(-m)
                                let f = -f64::from(m2) * around([m1, -m2, m3]);
                                let g = -f64::from(m1) * around([-m1, m2, m3]);
                                if f == 0.0 && g == 0.0 {
                                    continue;
                                }
                                let sum: f64 = (0..nodes.len())
                                    .map(|i| {
                                        let sin = ((1.0 - nodes[i]) * (1.0 + nodes[i])).sqrt();
                                        let (row, slope) = (&rows[i], &slopes[i]);
                                        weights[i] * row[c] / sin
                                            * (slope[a] * row[b] * f - row[a] * slope[b] * g)
                                    })
                                    .sum();
                                2.0 * PI * sum
                            } else {
                                let around = around([m1, m2, m3]);
                                if around == 0.0 {
                                    continue;
                                }
                                let sum: f64 = rows
                                    .iter()
                                    .zip(&weights)
                                    .map(|(r, w)| w * r[a] * r[b] * r[c])
                                    .sum();
                                2.0 * PI * around * sum
                            };
                            // zeros by symmetry come out at some 1e-16
                            if value.abs() > 1e-14 {
                                let at = |l: u32, m: i32| (l * l + l).saturating_add_signed(m);
                                found.push(Coefficient {
                                    first: at(l1, m1),
                                    second: at(l2, m2),
                                    out: at(l3, m3),
                                    value,
                                });
                            }
                        }
                    }
                }
            }
        }
    }
    found.sort_by_key(|c| (c.out, c.first, c.second));
    found
}

fn orders(l: u32) -> std::ops::RangeInclusive<i32> {
    -l.cast_signed()..=l.cast_signed()
}

/// Orders of the output that can couple: `|m3|` is `|m1| + |m2|` or `||m1| - |m2||`.
fn partners(m1: i32, m2: i32, l3: u32) -> Vec<i32> {
    let (n1, n2) = (m1.abs(), m2.abs());
    let mut all = vec![n1 + n2, -(n1 + n2), n1 - n2, n2 - n1];
    all.sort_unstable();
    all.dedup();
    all.retain(|m| m.unsigned_abs() <= l3);
    all
}

/// Mean over `a` of the product of three `t_m`, each `{ sqrt(2) sin(|m| a), 1, sqrt(2) cos(m a) }`.
fn trig_integral(m: [i32; 3], steps: u32) -> f64 {
    let t = |m: i32, a: f64| match m.signum() {
        -1 => SQRT_2 * (f64::from(-m) * a).sin(),
        0 => 1.0,
        _ => SQRT_2 * (f64::from(m) * a).cos(),
    };
    let sum: f64 = (0..steps)
        .map(|j| {
            let a = 2.0 * PI * f64::from(j) / f64::from(steps);
            m.iter().map(|&m| t(m, a)).product::<f64>()
        })
        .sum();
    let mean = sum / f64::from(steps);
    if mean.abs() < 1e-12 { 0.0 } else { mean }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    #[test]
    fn quadrature_agrees_with_exact_symbols() {
        for (l1, l2, l3) in [(0, 0, 0), (1, 2, 3), (3, 3, 3), (4, 4, 8), (6, 2, 5)] {
            let (d2, d3) = ((l2 + 1) * (l2 + 1), (l3 + 1) * (l3 + 1));
            for vector in [false, true] {
                let mut want = if vector {
                    reference::vector_coefficients(l1, l2, l3)
                } else {
                    reference::gaunt_coefficients(l1, l2, l3)
                };
                for c in coefficients(l1, l2, l3, vector) {
                    want[((c.first * d2 + c.second) * d3 + c.out) as usize] -= c.value;
                }
                let worst = want.iter().fold(0.0f64, |w, x| w.max(x.abs()));
                assert!(worst < 1e-13, "{l1} {l2} {l3} vector {vector}: {worst}");
            }
        }
    }

    #[test]
    fn high_degrees_agree_with_exact_symbols() {
        let degree = |i: u32| i.isqrt();
        let order = |i: u32| i.cast_signed() - (degree(i) * degree(i) + degree(i)).cast_signed();
        let all = coefficients(12, 12, 12, false);
        for c in all.iter().step_by(37) {
            let i = [c.first, c.second, c.out];
            let want = reference::gaunt_coefficient(i.map(degree), i.map(order));
            assert!((c.value - want).abs() < 1e-13, "{c:?} {want}");
        }
        assert_eq!(coefficients(4, 4, 8, false).len(), 2229);
        assert_eq!(coefficients(4, 4, 4, false).len(), 1158);
    }
}
