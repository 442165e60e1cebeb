//! Twiddle factors and chirps, computed in f64 and rounded once.

use std::collections::HashMap;

use super::{
    codelet::root,
    recipe::{Pairing, Pass},
};

/// The tables of one plan, in one buffer of `vec4<f32>`.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// Complex numbers, an even number in each table.
    data: Vec<[f32; 2]>,
    known: HashMap<Kind, u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Stages(Vec<u32>, Pairing),
    Lanes { stages: Vec<u32>, pairing: Pairing },
    Pass { p: u32, radix: u32, r: u32 },
    Chirp(u32),
    Kernel { n: u32, m: u32 },
}

/// How a stage of radix `r` gets its twiddles `w^j`: `w^j0` and `w^(a j1)` from memory, with
/// `j = j0 + a j1`, and their product: a load costs far more than a multiplication.
pub(crate) fn digits(r: u32) -> u32 {
    if r <= 5 {
        return r;
    }
    // the divisor nearest below the square root; a prime has none and loads all
    (2..r).take_while(|a| a * a <= r).filter(|a| r.is_multiple_of(*a)).last().unwrap_or(r)
}

/// The exponents `j` of the twiddles `w^j` that a stage of radix `r` loads, in order.
pub(crate) fn exponents(r: u32) -> Vec<u32> {
    let a = digits(r);
    (1..a).chain((1..r / a).map(|j1| a * j1)).collect()
}

/// `vec4`s that the stage of radix `r` reads for one butterfly, or pair of them.
pub(crate) fn entries(r: u32, pairing: Pairing) -> u32 {
    let count = u32::try_from(exponents(r).len()).unwrap_or(u32::MAX);
    if pairing == Pairing::Points { count } else { count.div_ceil(2) }
}

impl Tables {
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.data)
    }

    /// Finds or makes a table; returns its start, counted in complex numbers.
    fn table(&mut self, kind: Kind, make: impl FnOnce() -> Vec<(f64, f64)>) -> u32 {
        if let Some(&start) = self.known.get(&kind) {
            return start;
        }
        let start = u32::try_from(self.data.len()).unwrap_or(u32::MAX);
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        self.data.extend(make().into_iter().map(|(re, im)| [re as f32, im as f32]));
        if self.data.len() % 2 == 1 {
            self.data.push([0.0; 2]);
        }
        self.known.insert(kind, start);
        start
    }

    /// Twiddles between the stages of a pass, in `vec4`s from the start of the buffer. Stage after
    /// stage; for each `k` (or pair of them) the `exponents`.
    pub(crate) fn stages(&mut self, pass: &Pass) -> u32 {
        let pairing = pass.pairing;
        self.table(Kind::Stages(pass.stages.clone(), pairing), || {
            let mut out = Vec::new();
            let mut p = 1;
            for &r in &pass.stages {
                if p > 1 {
                    let w = |k: u32, e: u32| root((k * e) as usize, (p * r) as usize);
                    match pairing {
                        Pairing::Points => {
                            for k in (0..p).step_by(2) {
                                out.extend(
                                    exponents(r).into_iter().flat_map(|e| [w(k, e), w(k + 1, e)]),
                                );
                            }
                        }
                        Pairing::Rows => {
                            for k in 0..p {
                                out.extend(exponents(r).into_iter().map(|e| w(k, e)));
                                if exponents(r).len() % 2 == 1 {
                                    out.push((0.0, 0.0));
                                }
                            }
                        }
                    }
                }
                p *= r;
            }
            out
        }) / 2
    }

    /// Twiddles between two stages that exchange by shuffles, in `vec4`s: for each lane the
    /// `exponents` of its row (or pair of rows) `q`, `w^{q e}`.
    pub(crate) fn lanes(&mut self, pass: &Pass) -> u32 {
        let (stages, pairing) = (pass.stages.clone(), pass.pairing);
        self.table(Kind::Lanes { stages, pairing }, || {
            let [first, last] = [pass.stages[0], pass.stages[1]];
            let w = |q: u32, e: u32| root((q * e) as usize, pass.radix as usize);
            let mut out = Vec::new();
            match pairing {
                Pairing::Points => {
                    for q in (0..last).step_by(2) {
                        out.extend(
                            exponents(first).into_iter().flat_map(|e| [w(q, e), w(q + 1, e)]),
                        );
                    }
                }
                Pairing::Rows => {
                    for q in 0..last {
                        out.extend(exponents(first).into_iter().map(|e| w(q, e)));
                        if exponents(first).len() % 2 == 1 {
                            out.push((0.0, 0.0));
                        }
                    }
                }
            }
            out
        }) / 2
    }

    /// Twiddles before a later pass, `w^{k j}` with `w = w_{pR}` and `j = a + s i`, `s` the rows of
    /// its first stage: `w^{k a}` at `a p + k`, then `w^{k s e}` for the `exponents` of that stage.
    /// `w^{k s i}` is a product of two of the latter.
    pub(crate) fn pass(&mut self, pass: &Pass) -> u32 {
        let (p, radix, r) = (pass.p, pass.radix, pass.stages[0]);
        self.table(Kind::Pass { p, radix, r }, || {
            let n = p as usize * radix as usize;
            let rows = radix / r;
            (0..rows)
                .chain(exponents(r).into_iter().map(|e| rows * e))
                .flat_map(|j| (0..p as usize).map(move |k| root(k * j as usize, n)))
                .collect()
        })
    }

    /// Bluestein's chirp `exp(-pi i j^2 / n)` for `j < n`.
    pub(crate) fn chirp(&mut self, n: u32) -> u32 {
        self.table(Kind::Chirp(n), || (0..n).map(|j| chirp(j, n)).collect())
    }

    /// The transform of length `m` of the conjugate chirp, even around 0, divided by `m`.
    pub(crate) fn kernel(&mut self, n: u32, m: u32) -> u32 {
        self.table(Kind::Kernel { n, m }, || {
            let mut b = vec![(0.0, 0.0); m as usize];
            for j in 0..n {
                let (re, im) = chirp(j, n);
                b[j as usize] = (re, -im);
                b[((m - j) % m) as usize] = (re, -im);
            }
            let scale = 1.0 / f64::from(m);
            host_dft(&b).into_iter().map(|(re, im)| (re * scale, im * scale)).collect()
        })
    }
}

fn chirp(j: u32, n: u32) -> (f64, f64) {
    // j^2 mod 2n: exact where j^2 as a float would not be
    let e = u64::from(j) * u64::from(j) % (2 * u64::from(n));
    root(usize::try_from(e).unwrap_or(usize::MAX), 2 * n as usize)
}

/// A transform in f64 by Stockham stages of prime radix, for tables only.
pub(crate) fn host_dft(x: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let n = x.len();
    let (mut x, mut rest, mut p) = (x.to_vec(), n, 1);
    while rest > 1 {
        let r = (2..=rest).find(|f| rest.is_multiple_of(*f)).unwrap_or(rest);
        let m = n / r;
        let roots: Vec<(f64, f64)> = (0..p * r).map(|e| root(e, p * r)).collect();
        let mut y = vec![(0.0, 0.0); n];
        for t in 0..m {
            let k = t % p;
            for q in 0..r {
                let mut sum = (0.0, 0.0);
                for j in 0..r {
                    // w_{pr}^{kj} w_r^{jq}
                    let w = roots[j * (k + p * q) % (p * r)];
                    let v = x[t + j * m];
                    sum.0 += v.0 * w.0 - v.1 * w.1;
                    sum.1 += v.0 * w.1 + v.1 * w.0;
                }
                y[(t - k) * r + k + q * p] = sum;
            }
        }
        x = y;
        p *= r;
        rest /= r;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_dft_is_the_dft() {
        for n in [1usize, 2, 3, 12, 35, 64, 210, 121] {
            let x: Vec<(f64, f64)> =
                (0..n).map(|j| ((j as f64).sin(), (j as f64 * 0.3).cos())).collect();
            for (k, got) in host_dft(&x).into_iter().enumerate() {
                let want = x.iter().enumerate().fold((0.0, 0.0), |s, (j, v)| {
                    let w = root(j * k, n);
                    (s.0 + v.0 * w.0 - v.1 * w.1, s.1 + v.0 * w.1 + v.1 * w.0)
                });
                assert!((got.0 - want.0).hypot(got.1 - want.1) < 1e-12 * n as f64, "{k} of {n}");
            }
        }
    }

    #[test]
    fn two_digits_give_every_twiddle() {
        for r in 2..=64 {
            let (a, loaded) = (digits(r), exponents(r));
            for j in 1..r {
                let parts = [j % a, j / a * a];
                assert!(parts.iter().all(|e| *e == 0 || loaded.contains(e)), "w^{j} of radix {r}");
            }
        }
        assert_eq!(exponents(32), [1, 2, 3, 4, 8, 12, 16, 20, 24, 28]);
    }
}
