//! Straight-line DFTs of a few points, as lists of operations and as WGSL.
//!
//! WGSL has no way to say "a DFT of R values held in registers" for an R known only to the host,
//! so the text is made here: single assignments, constant twiddles, no arrays and no loops. The
//! same list is evaluated in f64 by the tests.

use std::{f64::consts::TAU, fmt::Write as _};

/// Longest DFT that is written out.
pub(crate) const MAX_RADIX: u32 = 64;

/// One operation on complex values, which are named by number: inputs first, then results.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    Add(usize, usize),
    Sub(usize, usize),
    /// `i x`
    TimesI(usize),
    /// `c x`, `c` real
    Scale(usize, f64),
    /// `c x + y`, `c` real
    MultiplyAdd(usize, f64, usize),
}

/// A forward DFT `X[k] = sum_j x[j] exp(-2 pi i j k / n)` of `n` values.
#[derive(Clone, Debug)]
pub(crate) struct Codelet {
    inputs: usize,
    ops: Vec<Op>,
    /// The value that holds each `X[k]`.
    outputs: Vec<usize>,
}

impl Codelet {
    /// # Panics
    /// If `n` is zero: a bug in this crate, never input.
    pub(crate) fn new(n: u32) -> Self {
        assert!(n > 0, "a DFT of no values");
        let inputs = n as usize;
        let mut codelet = Self { inputs, ops: Vec::new(), outputs: Vec::new() };
        codelet.outputs = codelet.dft(&(0..inputs).collect::<Vec<_>>());
        codelet
    }

    fn push(&mut self, op: Op) -> usize {
        self.ops.push(op);
        self.inputs + self.ops.len() - 1
    }

    fn dft(&mut self, x: &[usize]) -> Vec<usize> {
        match x.len() {
            1 => x.to_vec(),
            2 => vec![self.push(Op::Add(x[0], x[1])), self.push(Op::Sub(x[0], x[1]))],
            4 => {
                let [a, b] = [self.push(Op::Add(x[0], x[2])), self.push(Op::Sub(x[0], x[2]))];
                let [c, d] = [self.push(Op::Add(x[1], x[3])), self.push(Op::Sub(x[1], x[3]))];
                let d = self.push(Op::TimesI(d));
                vec![
                    self.push(Op::Add(a, c)),
                    self.push(Op::Sub(b, d)),
                    self.push(Op::Sub(a, c)),
                    self.push(Op::Add(b, d)),
                ]
            }
            n => match split(n) {
                Some(a) => self.composite(x, a, n / a),
                None => self.prime(x),
            },
        }
    }

    /// Cooley and Tukey: `b` DFTs of `a` values, twiddles, `a` DFTs of `b` values.
    fn composite(&mut self, x: &[usize], a: usize, b: usize) -> Vec<usize> {
        let n = a * b;
        let mut columns: Vec<Vec<usize>> =
            (0..b).map(|j| self.dft(&(0..a).map(|i| x[i * b + j]).collect::<Vec<_>>())).collect();
        for (j, column) in columns.iter_mut().enumerate() {
            for (k, value) in column.iter_mut().enumerate() {
                *value = self.twiddle(*value, j * k, n);
            }
        }
        let mut out = vec![0; n];
        for k in 0..a {
            let row: Vec<usize> = columns.iter().map(|c| c[k]).collect();
            for (q, value) in self.dft(&row).into_iter().enumerate() {
                out[k + a * q] = value;
            }
        }
        out
    }

    /// `x exp(-2 pi i e / n)`
    fn twiddle(&mut self, x: usize, e: usize, n: usize) -> usize {
        if e == 0 {
            return x;
        }
        let rotated = self.push(Op::TimesI(x));
        if 4 * e == 3 * n {
            return rotated;
        }
        if 4 * e == n {
            return self.push(Op::Scale(rotated, -1.0));
        }
        let (re, im) = root(e, n);
        let scaled = self.push(Op::Scale(x, re));
        self.push(Op::MultiplyAdd(rotated, im, scaled))
    }

    /// The sum as written, with the inputs paired `x[j] +- x[n - j]`: half the products.
    fn prime(&mut self, x: &[usize]) -> Vec<usize> {
        let n = x.len();
        let half = n / 2;
        let sums: Vec<usize> = (1..=half).map(|j| self.push(Op::Add(x[j], x[n - j]))).collect();
        let differences: Vec<usize> = (1..=half)
            .map(|j| {
                let d = self.push(Op::Sub(x[j], x[n - j]));
                self.push(Op::TimesI(d))
            })
            .collect();
        let mut out = vec![0; n];
        out[0] = sums.iter().fold(x[0], |sum, &s| self.push(Op::Add(sum, s)));
        for k in 1..=half {
            let (mut even, mut odd) = (x[0], None);
            for j in 1..=half {
                let (re, im) = root(j * k % n, n);
                even = self.push(Op::MultiplyAdd(sums[j - 1], re, even));
                odd = Some(match odd {
                    None => self.push(Op::Scale(differences[j - 1], im)),
                    Some(sum) => self.push(Op::MultiplyAdd(differences[j - 1], im, sum)),
                });
            }
            let odd = odd.unwrap_or(even);
            out[k] = self.push(Op::Add(even, odd));
            out[n - k] = self.push(Op::Sub(even, odd));
        }
        out
    }

    /// Appends WGSL that takes `{prefix}i0 ...` and leaves results in `let`s; returns their names
    /// in order. Every value is a `vec4<f32>`: two complex numbers `(re, im, re, im)`.
    pub(crate) fn wgsl(&self, prefix: &str, out: &mut String) -> Vec<String> {
        let name = |v: usize| {
            if v < self.inputs {
                format!("{prefix}i{v}")
            } else {
                format!("{prefix}v{}", v - self.inputs)
            }
        };
        for (i, op) in self.ops.iter().enumerate() {
            let value = match *op {
                Op::Add(a, b) => format!("{} + {}", name(a), name(b)),
                Op::Sub(a, b) => format!("{} - {}", name(a), name(b)),
                Op::TimesI(a) => {
                    let a = name(a);
                    format!("vec4<f32>(-{a}.y, {a}.x, -{a}.w, {a}.z)")
                }
                Op::Scale(a, c) => format!("{} * {}", name(a), literal(c)),
                Op::MultiplyAdd(a, c, b) => {
                    format!("fma({}, vec4<f32>({}), {})", name(a), literal(c), name(b))
                }
            };
            let _ = writeln!(out, "    let {prefix}v{i} = {value};");
        }
        self.outputs.iter().map(|&v| name(v)).collect()
    }
}

/// The first factor to split off, `None` for a prime.
fn split(n: usize) -> Option<usize> {
    if n.is_multiple_of(4) {
        return Some(4);
    }
    (2..n).take_while(|f| f * f <= n).find(|f| n.is_multiple_of(*f))
}

/// `exp(-2 pi i e / n)` as `(re, im)`, exact on the axes.
#[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^53")]
pub(crate) fn root(e: usize, n: usize) -> (f64, f64) {
    let e = e % n;
    // reduced to an eighth of the circle, where sine and cosine are most exact
    let (quarter, rest) = (4 * e / n, 4 * e % n);
    let angle = |x: usize| TAU * x as f64 / (4 * n) as f64;
    let (c, s) = if 2 * rest <= n {
        (angle(rest).cos(), angle(rest).sin())
    } else {
        (angle(n - rest).sin(), angle(n - rest).cos())
    };
    match quarter {
        0 => (c, -s),
        1 => (-s, -c),
        2 => (-c, s),
        _ => (s, c),
    }
}

/// The nearest f32, in digits that read back as it.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
fn literal(c: f64) -> String {
    format!("{:?}", c as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(codelet: &Codelet, x: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let mut v = x.to_vec();
        for op in &codelet.ops {
            let value = match *op {
                Op::Add(a, b) => (v[a].0 + v[b].0, v[a].1 + v[b].1),
                Op::Sub(a, b) => (v[a].0 - v[b].0, v[a].1 - v[b].1),
                Op::TimesI(a) => (-v[a].1, v[a].0),
                Op::Scale(a, c) => (v[a].0 * c, v[a].1 * c),
                Op::MultiplyAdd(a, c, b) => (v[a].0 * c + v[b].0, v[a].1 * c + v[b].1),
            };
            v.push(value);
        }
        codelet.outputs.iter().map(|&o| v[o]).collect()
    }

    #[test]
    fn every_codelet_is_the_dft() {
        for n in 1..=64u32 {
            let x: Vec<(f64, f64)> = (0..n)
                .map(|j| ((f64::from(j) * 1.7).sin(), (f64::from(j * j) * 0.3).cos()))
                .collect();
            let got = evaluate(&Codelet::new(n), &x);
            for (k, got) in got.iter().enumerate() {
                let mut want = (0.0, 0.0);
                for (j, x) in x.iter().enumerate() {
                    let angle = -TAU * (j * k % n as usize) as f64 / f64::from(n);
                    want.0 += x.0 * angle.cos() - x.1 * angle.sin();
                    want.1 += x.0 * angle.sin() + x.1 * angle.cos();
                }
                let error = (got.0 - want.0).hypot(got.1 - want.1);
                assert!(
                    error < 1e-12 * f64::from(n),
                    "n = {n}, k = {k}: {got:?}, expected {want:?}"
                );
            }
        }
    }

    /// Real operations on one complex number, a multiply-add as two.
    fn flops(codelet: &Codelet) -> u64 {
        let cost = |op: &Op| match op {
            Op::Add(..) | Op::Sub(..) | Op::Scale(..) => 2,
            Op::TimesI(_) => 0,
            Op::MultiplyAdd(..) => 4,
        };
        codelet.ops.iter().map(cost).sum()
    }

    #[test]
    fn powers_of_two_cost_what_they_should() {
        // 5 n log2 n is the textbook figure; a multiply-add counts two here
        for n in [4u32, 8, 16, 32] {
            let textbook = 5 * u64::from(n) * u64::from(n.ilog2());
            let flops = flops(&Codelet::new(n));
            assert!(flops <= textbook, "{n}: {flops} flops, textbook {textbook}");
        }
    }

    #[test]
    fn roots_are_exact_on_the_axes_and_close_elsewhere() {
        assert_eq!(root(0, 12), (1.0, -0.0));
        assert_eq!(root(3, 12), (-0.0, -1.0));
        assert_eq!(root(6, 12), (-1.0, 0.0));
        assert_eq!(root(9, 12), (0.0, 1.0));
        for n in [3usize, 7, 8, 100, 1023, 1 << 20] {
            for e in (0..n).step_by(1 + n / 97) {
                let angle = -TAU * e as f64 / n as f64;
                let (re, im) = root(e, n);
                assert!((re - angle.cos()).hypot(im - angle.sin()) < 1e-15, "{e} of {n}");
            }
        }
    }
}
