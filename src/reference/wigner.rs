//! Wigner 3-j symbols, exactly, and the coupling tensors of real spherical harmonics.

/// Largest `l1 + l2 + l3`: the integer sums below stay under `2^120`.
const MAX_SUM: u32 = 120;

/// The Wigner 3-j symbol `(l1 l2 l3; m1 m2 m3)` of integer degrees, zero where a selection rule
/// forbids it.
///
/// Racah's single sum, written with binomials so that every term is an integer: the sum is exact,
/// and the square root of a ratio of factorials is taken from its prime factors. The relative
/// error is a few units of `2^-53`.
///
/// # Panics
/// If `l1 + l2 + l3 > 120`, where the integers would overflow.
pub fn wigner_3j(l1: u32, l2: u32, l3: u32, m1: i32, m2: i32, m3: i32) -> f64 {
    assert!(l1 + l2 + l3 <= MAX_SUM, "wigner_3j: l1 + l2 + l3 = {} exceeds 120", l1 + l2 + l3);
    let (j1, j2, j3) = (l1.cast_signed(), l2.cast_signed(), l3.cast_signed());
    let (a, b, c) = (j1 + j2 - j3, j1 - j2 + j3, -j1 + j2 + j3);
    if m1 + m2 + m3 != 0 || m1.abs() > j1 || m2.abs() > j2 || m3.abs() > j3 || a.min(b).min(c) < 0 {
        return 0.0;
    }
    let sum: i128 = (0..=a)
        .map(|k| {
            let term = binomial(a, k) * binomial(b, j1 - m1 - k) * binomial(c, j2 + m2 - k);
            if k % 2 == 0 { term } else { -term }
        })
        .sum();
    let square = factorial_ratio(
        &[j1 + m1, j1 - m1, j2 + m2, j2 - m2, j3 + m3, j3 - m3],
        &[j1 + j2 + j3 + 1, a, b, c],
    );
    let sign = if (j1 - j2 - m3) % 2 == 0 { 1.0 } else { -1.0 };
    sign * square.sqrt() * sum as f64
}

/// `n` over `k`, zero outside `0..=n`. Exact for `n <= 120`.
fn binomial(n: i32, k: i32) -> i128 {
    if k < 0 || k > n {
        return 0;
    }
    (1..=i128::from(k.min(n - k))).fold(1, |c, i| c * (i128::from(n) + 1 - i) / i)
}

/// Product of the factorials of `over` divided by that of `under`, from prime exponents.
fn factorial_ratio(over: &[i32], under: &[i32]) -> f64 {
    let largest = *over.iter().chain(under).max().unwrap_or(&0);
    let exponent = |p: i32, n: i32| -> i32 {
        // Legendre: the exponent of p in n!
        std::iter::successors(Some(n / p), |&q| (q > 0).then(|| q / p)).sum()
    };
    (2..=largest)
        .filter(|&p| (2..p).take_while(|d| d * d <= p).all(|d| p % d != 0))
        .map(|p| {
            let e = over.iter().map(|&n| exponent(p, n)).sum::<i32>()
                - under.iter().map(|&n| exponent(p, n)).sum::<i32>();
            f64::from(p).powi(e)
        })
        .product()
}

/// The coupling tensor `w[m1, m2, m3]` of three real irreps, shape `[2 l1 + 1, 2 l2 + 1, 2 l3 + 1]`,
/// in the convention of e3nn's `wigner_3j`: real basis with polar axis y, Frobenius norm 1, and
/// e3nn's sign. All zeros where the triangle rule fails.
///
/// The complex Clebsch-Gordan coefficients `<l1 m1 l2 m2|l3 m3>` are taken to the real basis with
/// `Y_real = Q^H Y_complex`, `Q` including the factor `(-i)^l` that makes the result real for odd
/// `l1 + l2 + l3` too.
pub fn real_wigner_3j(l1: u32, l2: u32, l3: u32) -> Vec<f64> {
    let [n1, n2, n3] = [l1, l2, l3].map(|l| 2 * l as usize + 1);
    let mut w = vec![0.0; n1 * n2 * n3];
    if l3 > l1 + l2 || l1.abs_diff(l2) > l3 {
        return w;
    }
    let (s1, s2, s3) = (l1.cast_signed(), l2.cast_signed(), l3.cast_signed());
    // (-i)^(l1 + l2 - l3), the three bases' common phases
    let phase = (l1 + l2 + 3 * l3) % 4;
    for m1 in -s1..=s1 {
        for m2 in -s2..=s2 {
            let m3 = m1 + m2;
            if m3.abs() > s3 {
                continue;
            }
            let sign = if (s1 - s2 + m3) % 2 == 0 { 1.0 } else { -1.0 };
            let cg = sign * f64::from(2 * l3 + 1).sqrt() * wigner_3j(l1, l2, l3, m1, m2, -m3);
            for (r1, q1) in real_terms(m1) {
                for (r2, q2) in real_terms(m2) {
                    for (r3, q3) in real_terms(m3) {
                        let q = mul(mul(q1, q2), (q3.0, -q3.1));
                        // times (-i)^phase, real part
                        let re = [q.0, q.1, -q.0, -q.1][phase as usize];
                        let at = |r: i32, s: i32| (r + s).unsigned_abs() as usize;
                        w[(at(r1, s1) * n2 + at(r2, s2)) * n3 + at(r3, s3)] += cg * re;
                    }
                }
            }
        }
    }
    let norm = w.iter().map(|x| x * x).sum::<f64>().sqrt();
    w.iter_mut().for_each(|x| *x /= norm);
    w
}

/// Row `m` of the unitary `Q` without its factor `(-i)^l`: `(real index, complex entry)`.
fn real_terms(m: i32) -> Vec<(i32, (f64, f64))> {
    let h = std::f64::consts::FRAC_1_SQRT_2;
    let sign = if m % 2 == 0 { 1.0 } else { -1.0 };
    match m.signum() {
        -1 => vec![(-m, (h, 0.0)), (m, (0.0, -h))],
        0 => vec![(0, (1.0, 0.0))],
        _ => vec![(m, (sign * h, 0.0)), (-m, (0.0, sign * h))],
    }
}

fn mul(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms() {
        // (l 0 l; m 0 -m) = (-1)^(l - m) / sqrt(2 l + 1)
        for l in 0..=40u32 {
            for m in -(l.cast_signed())..=l.cast_signed() {
                let sign = if (l.cast_signed() - m) % 2 == 0 { 1.0 } else { -1.0 };
                let want = sign / f64::from(2 * l + 1).sqrt();
                assert!((wigner_3j(l, 0, l, m, 0, -m) / want - 1.0).abs() < 1e-13);
            }
        }
        // (l l 1; m -m 0) = (-1)^(l - m) m / sqrt(l (l + 1) (2 l + 1))
        for l in 1..=40u32 {
            for m in 1..=l.cast_signed() {
                let sign = if (l.cast_signed() - m) % 2 == 0 { 1.0 } else { -1.0 };
                let want = sign * f64::from(m)
                    / (f64::from(l) * f64::from(l + 1) * f64::from(2 * l + 1)).sqrt();
                assert!((wigner_3j(l, l, 1, m, -m, 0) / want - 1.0).abs() < 1e-13);
            }
        }
        assert!((wigner_3j(2, 2, 2, 0, 0, 0) + (2.0f64 / 35.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn orthogonality() {
        // sum over m1, m2 of (2 l3 + 1) w^2 = 1
        for (l1, l2) in [(3u32, 5u32), (12, 12), (16, 16), (20, 31)] {
            for l3 in l1.max(l2) - l1.min(l2)..=l1 + l2 {
                for m3 in [0, l3.cast_signed() / 2, l3.cast_signed()] {
                    let mut sum = 0.0;
                    for m1 in -(l1.cast_signed())..=l1.cast_signed() {
                        sum += wigner_3j(l1, l2, l3, m1, -m3 - m1, m3).powi(2);
                    }
                    assert!(
                        (sum * f64::from(2 * l3 + 1) - 1.0).abs() < 1e-13,
                        "{l1} {l2} {l3} {m3}: {sum}"
                    );
                }
            }
        }
    }

    #[test]
    fn selection_rules_give_zero() {
        assert_eq!(wigner_3j(1, 1, 3, 0, 0, 0), 0.0);
        assert_eq!(wigner_3j(1, 1, 1, 0, 0, 0), 0.0);
        assert_eq!(wigner_3j(2, 2, 2, 1, 1, 1), 0.0);
        assert!(real_wigner_3j(1, 1, 3).iter().all(|&x| x == 0.0));
    }

    #[test]
    fn one_one_one_is_the_cross_product() {
        // e3nn: w3j(1, 1, 1) = epsilon / sqrt(6)
        let w = real_wigner_3j(1, 1, 1);
        let h = 1.0 / 6.0f64.sqrt();
        for (i, j, k, s) in
            [(0, 1, 2, h), (1, 2, 0, h), (2, 0, 1, h), (1, 0, 2, -h), (2, 1, 0, -h), (0, 2, 1, -h)]
        {
            assert!((w[(i * 3 + j) * 3 + k] - s).abs() < 1e-14, "{w:?}");
        }
    }
}
