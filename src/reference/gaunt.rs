//! Gaunt coefficients, products of functions on the sphere, and their transforms.

use std::f64::consts::{PI, SQRT_2};

use super::{real_wigner_3j, spherical_harmonics, wigner_3j};
use crate::gaunt::ShNormalization::Integral;

/// Number of coefficients up to degree `lmax`.
fn dim(lmax: u32) -> usize {
    (lmax as usize + 1).pow(2)
}

/// `(l, m)` of the flat index `l^2 + l + m`.
fn degree_order(i: usize) -> (u32, i32) {
    let l = i.isqrt();
    // indices here are far below 2^31
    #[expect(clippy::cast_possible_truncation, reason = "degrees are small")]
    (l as u32, (i as i32) - ((l * l + l) as i32))
}

/// `(1 / 2 pi)` times the integral over `a` of the product of three of
/// `{ sqrt(2) sin(|m| a) for m < 0, 1, sqrt(2) cos(m a) for m > 0 }`.
fn trig_integral(m: [i32; 3]) -> f64 {
    // each is a sum of exponentials e^(i n a) with complex coefficients
    let terms = m.map(|m| match m.signum() {
        -1 => vec![(-m, 0.0, -SQRT_2 / 2.0), (m, 0.0, SQRT_2 / 2.0)],
        0 => vec![(0, 1.0, 0.0)],
        _ => vec![(m, SQRT_2 / 2.0, 0.0), (-m, SQRT_2 / 2.0, 0.0)],
    });
    let mut sum = 0.0;
    for &(n1, a, b) in &terms[0] {
        for &(n2, c, d) in &terms[1] {
            for &(n3, e, f) in &terms[2] {
                if n1 + n2 + n3 == 0 {
                    let (re, im) = (a * c - b * d, a * d + b * c);
                    sum += re * e - im * f;
                }
            }
        }
    }
    sum
}

/// The integral over the sphere of the product of three real orthonormal harmonics
/// `Y_(l1 m1) Y_(l2 m2) Y_(l3 m3)`.
///
/// `sqrt((2 l1 + 1)(2 l2 + 1)(2 l3 + 1) / 4 pi) (l1 l2 l3; 0 0 0) (l1 l2 l3; n1 n2 n3)` is the
/// integral of three complex harmonics; the part in the colatitude is the same for real ones.
pub fn gaunt_coefficient(l: [u32; 3], m: [i32; 3]) -> f64 {
    let trig = trig_integral(m);
    if trig == 0.0 || l.iter().sum::<u32>() % 2 == 1 {
        return 0.0;
    }
    // |m|s with signs that sum to zero
    let n = m.map(i32::abs);
    let signed = [[1, 1, -1], [1, -1, 1], [-1, 1, 1]]
        .map(|s| [s[0] * n[0], s[1] * n[1], s[2] * n[2]])
        .into_iter()
        .find(|n| n.iter().sum::<i32>() == 0);
    let Some(n) = signed else { return 0.0 };
    // complex harmonics carry the Condon-Shortley sign (-1)^n for n > 0
    let sign = if n.iter().filter(|&&n| n > 0 && n % 2 == 1).count() % 2 == 0 { 1.0 } else { -1.0 };
    let scale = l.iter().map(|&l| f64::from(2 * l + 1)).product::<f64>() / (4.0 * PI);
    trig * sign
        * scale.sqrt()
        * wigner_3j(l[0], l[1], l[2], 0, 0, 0)
        * wigner_3j(l[0], l[1], l[2], n[0], n[1], n[2])
}

/// All Gaunt coefficients `g[lm1, lm2, lm3]`, shape
/// `[(lmax1 + 1)^2, (lmax2 + 1)^2, (lmax_out + 1)^2]`.
pub fn gaunt_coefficients(lmax1: u32, lmax2: u32, lmax_out: u32) -> Vec<f64> {
    let mut g = Vec::with_capacity(dim(lmax1) * dim(lmax2) * dim(lmax_out));
    for i in 0..dim(lmax1) {
        for j in 0..dim(lmax2) {
            for k in 0..dim(lmax_out) {
                let [a, b, c] = [i, j, k].map(degree_order);
                g.push(gaunt_coefficient([a.0, b.0, c.0], [a.1, b.1, c.1]));
            }
        }
    }
    g
}

/// The coefficients `h[lm1, lm2, lm3]` of the vector product: the integral of
/// `Y_3 r . (grad Y_1 x grad Y_2)` over the unit sphere, antisymmetric in 1 and 2, non-zero only
/// for odd `l1 + l2 + l3`. Same shape as [`gaunt_coefficients`].
///
/// Evaluated in the Cartesian frame by quadrature that is exact for these polynomials:
/// equidistant longitudes and Gauss-Legendre in `cos b`, gradients by central differences with
/// extrapolation (error below 1e-12 to degree 8).
pub fn vector_coefficients(lmax1: u32, lmax2: u32, lmax_out: u32) -> Vec<f64> {
    let (d1, d2, d3) = (dim(lmax1), dim(lmax2), dim(lmax_out));
    let mut h = vec![0.0; d1 * d2 * d3];
    for (r, weight) in sphere_points(lmax1 + lmax2 + lmax_out) {
        let (g1, g2) = (gradient(lmax1, r), gradient(lmax2, r));
        let y3 = spherical_harmonics(lmax_out, Integral, &r);
        for i in 0..d1 {
            for j in 0..d2 {
                let (a, b) = (g1[i], g2[j]);
                let cross = [
                    a[1] * b[2] - a[2] * b[1],
                    a[2] * b[0] - a[0] * b[2],
                    a[0] * b[1] - a[1] * b[0],
                ];
                let radial = cross[0] * r[0] + cross[1] * r[1] + cross[2] * r[2];
                for k in 0..d3 {
                    h[(i * d2 + j) * d3 + k] += weight * radial * y3[k];
                }
            }
        }
    }
    h
}

/// The roots of the Legendre polynomial of degree `n`, increasing: `cos b` of the parallels of a
/// Gauss-Legendre grid.
pub(crate) fn parallels(n: u32) -> Vec<f64> {
    let root = |i: u32| {
        // bisection between the bounds of Bruns: independent of the kernels' tables
        let bound = |k: f64| (PI * (k / (f64::from(n) + 0.5))).cos();
        let (mut high, mut low) = (bound(f64::from(i) + 0.5), bound(f64::from(i) + 1.0));
        let sign = legendre(n, high).0.signum();
        for _ in 0..200 {
            let middle = 0.5 * (low + high);
            if legendre(n, middle).0.signum() == sign { high = middle } else { low = middle }
        }
        0.5 * (low + high)
    };
    (0..n).rev().map(root).collect()
}

/// Points and weights of a quadrature that is exact for polynomials of the given degree.
fn sphere_points(degree: u32) -> Vec<([f64; 3], f64)> {
    let n = degree / 2 + 1;
    let (count_a, mut points) = (degree + 1, Vec::new());
    for t in parallels(n) {
        let slope = legendre(n, t).1;
        let weight = 2.0 / ((1.0 - t * t) * slope * slope) * 2.0 * PI / f64::from(count_a);
        let s = (1.0 - t * t).sqrt();
        for j in 0..count_a {
            let a = 2.0 * PI * f64::from(j) / f64::from(count_a);
            points.push(([s * a.sin(), t, s * a.cos()], weight));
        }
    }
    points
}

/// `P_n(t)` and its derivative.
fn legendre(n: u32, t: f64) -> (f64, f64) {
    let (mut p, mut before) = (1.0, 0.0);
    for k in 0..n {
        let k = f64::from(k);
        (p, before) = (((2.0 * k + 1.0) * t * p - k * before) / (k + 1.0), p);
    }
    (p, f64::from(n) * (t * p - before) / (t * t - 1.0))
}

/// The tangential gradient of every harmonic at the unit vector `r`, in Cartesian components.
///
/// `sqrt(l (l + 1))` times the derivative along a rotation: rotating `r` about axis `k` changes
/// `Y_lm` by a combination of orders of the same degree, found here by central differences of the
/// rotated harmonic with Richardson's extrapolation (error below 1e-12 to degree 8).
fn gradient(lmax: u32, r: [f64; 3]) -> Vec<[f64; 3]> {
    let along = |v: [f64; 3], t: f64| -> Vec<f64> {
        let p = [
            r[0] * t.cos() + v[0] * t.sin(),
            r[1] * t.cos() + v[1] * t.sin(),
            r[2] * t.cos() + v[2] * t.sin(),
        ];
        spherical_harmonics(lmax, Integral, &p)
    };
    // a harmonic along a great circle is a trigonometric polynomial of degree l: its derivative at
    // 0 is an exact finite sum over equidistant points
    let n = 2 * lmax + 2;
    let derivative = |v: [f64; 3]| -> Vec<f64> {
        let mut d = vec![0.0; dim(lmax)];
        for j in 0..n {
            // odd multiples of pi / n: derivative of the interpolant (M. Riesz)
            let t = f64::from(2 * j + 1) * PI / f64::from(n);
            let sign = if j % 2 == 0 { 1.0 } else { -1.0 };
            let w = sign / (f64::from(2 * n) * (0.5 * t).sin().powi(2));
            for (d, y) in d.iter_mut().zip(along(v, t)) {
                *d += w * y;
            }
        }
        d
    };
    // two tangents
    let helper = if r[1].abs() < 0.9 { [0.0, 1.0, 0.0] } else { [1.0, 0.0, 0.0] };
    let cross = |a: [f64; 3], b: [f64; 3]| {
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    };
    let u = cross(helper, r);
    let norm = u.iter().map(|x| x * x).sum::<f64>().sqrt();
    let u = u.map(|x| x / norm);
    let v = cross(r, u);
    let (du, dv) = (derivative(u), derivative(v));
    du.iter().zip(&dv).map(|(a, b)| std::array::from_fn(|i| a * u[i] + b * v[i])).collect()
}

/// A bilinear map given by `c[i, j, k]`, applied to rows: `x: [rows, d1]`, `y: [rows, d2]` to
/// `[rows, d3]`.
fn contract(c: &[f64], d1: usize, d2: usize, d3: usize, x: &[f64], y: &[f64]) -> Vec<f64> {
    let rows = x.len() / d1;
    let mut z = vec![0.0; rows * d3];
    for row in 0..rows {
        for i in 0..d1 {
            for j in 0..d2 {
                let xy = x[row * d1 + i] * y[row * d2 + j];
                for k in 0..d3 {
                    z[row * d3 + k] += c[(i * d2 + j) * d3 + k] * xy;
                }
            }
        }
    }
    z
}

/// `z_(l3 m3) = sum G x_(l1 m1) y_(l2 m2)`, row by row: `x: [rows, (lmax1 + 1)^2]`,
/// `y: [rows, (lmax2 + 1)^2]` to `[rows, (lmax_out + 1)^2]`. The coefficients of the pointwise
/// product of two functions on the sphere, truncated.
pub fn gaunt_tensor_product(
    lmax1: u32,
    lmax2: u32,
    lmax_out: u32,
    x: &[f64],
    y: &[f64],
) -> Vec<f64> {
    let g = gaunt_coefficients(lmax1, lmax2, lmax_out);
    contract(&g, dim(lmax1), dim(lmax2), dim(lmax_out), x, y)
}

/// The coefficients of `r . (grad X x grad Y)`, row by row, shapes as [`gaunt_tensor_product`].
pub fn vector_tensor_product(
    lmax1: u32,
    lmax2: u32,
    lmax_out: u32,
    x: &[f64],
    y: &[f64],
) -> Vec<f64> {
    let h = vector_coefficients(lmax1, lmax2, lmax_out);
    contract(&h, dim(lmax1), dim(lmax2), dim(lmax_out), x, y)
}

/// Rows multiplied degree by degree: `x: [rows, (lmax + 1)^2]`, `w: [channels, lmax + 1]`, channel
/// `row % channels`.
pub fn weight_by_degree(lmax: u32, x: &[f64], w: &[f64]) -> Vec<f64> {
    let (d, n) = (dim(lmax), lmax as usize + 1);
    let channels = w.len() / n;
    x.iter()
        .enumerate()
        .map(|(at, x)| x * w[(at / d % channels) * n + degree_order(at % d).0 as usize])
        .collect()
}

/// The product of several functions, row by row, no intermediate truncated: `inputs` are
/// `(lmax, x: [rows, (lmax + 1)^2])`. Returns `[rows, (lmax_out + 1)^2]`.
pub fn gaunt_many_body(inputs: &[(u32, &[f64])], lmax_out: u32) -> Vec<f64> {
    let (mut lmax, first) = inputs[0];
    let mut z = first.to_vec();
    for &(l, x) in &inputs[1..] {
        z = gaunt_tensor_product(lmax, l, lmax + l, &z, x);
        lmax += l;
    }
    // truncated, or continued by zeros
    let (from, to) = (dim(lmax), dim(lmax_out));
    z.chunks_exact(from)
        .flat_map(|row| (0..to).map(|i| row.get(i).copied().unwrap_or(0.0)))
        .collect()
}

/// Values of `x: [rows, (lmax + 1)^2]` at unit or other vectors `r: [points, 3]`:
/// `[rows, points]`.
pub fn evaluate(lmax: u32, x: &[f64], r: &[f64]) -> Vec<f64> {
    let (d, y) = (dim(lmax), spherical_harmonics(lmax, Integral, r));
    x.chunks_exact(d)
        .flat_map(|row| {
            y.chunks_exact(d).map(|y| row.iter().zip(y).map(|(a, b)| a * b).sum::<f64>())
        })
        .collect()
}

/// The Fourier coefficients `c[u, v]`, `u, v = -lmax..=lmax`, of the function continued to the
/// torus, `f(b, a) = sum c[u, v] e^(i (u b + v a))`, complex pairs: `[rows, 2 lmax + 1, 2 lmax + 1, 2]`.
///
/// `f` is sampled on the torus by its Cartesian formula (`sin b` negative past `pi`), and the
/// discrete Fourier sum is written out.
pub fn sh_to_fourier(lmax: u32, x: &[f64]) -> Vec<f64> {
    let n = 2 * lmax as usize + 1;
    let angle = |i: usize| 2.0 * PI * i as f64 / n as f64;
    let mut r = Vec::new();
    for i in 0..n {
        for j in 0..n {
            let (b, a) = (angle(i), angle(j));
            r.extend([b.sin() * a.sin(), b.cos(), b.sin() * a.cos()]);
        }
    }
    let mut out = Vec::new();
    for f in evaluate(lmax, x, &r).chunks_exact(n * n) {
        let signed = |k: usize| k as f64 - f64::from(lmax);
        for u in 0..n {
            for v in 0..n {
                let (mut re, mut im) = (0.0, 0.0);
                for i in 0..n {
                    for j in 0..n {
                        let phase = -(signed(u) * angle(i) + signed(v) * angle(j));
                        re += f[i * n + j] * phase.cos();
                        im += f[i * n + j] * phase.sin();
                    }
                }
                out.extend([re / (n * n) as f64, im / (n * n) as f64]);
            }
        }
    }
    out
}

/// One pair of input blocks coupled to one output block by [`clebsch_gordan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Multiplicity.
    pub mul: u32,
    /// Degree.
    pub l: u32,
    /// First element in a row.
    pub start: usize,
}

/// One path of the full tensor product: `out = sqrt(2 l_out + 1) sum w3j x y`, for every pair of
/// copies `u`, `v` (`v` fastest). `x: [rows, width1]`, `y: [rows, width2]`, `out: [rows, width3]`.
pub fn clebsch_gordan(
    blocks: [Block; 3],
    x: &[f64],
    y: &[f64],
    out: &mut [f64],
    widths: [usize; 3],
) {
    let [a, b, c] = blocks;
    let w = real_wigner_3j(a.l, b.l, c.l);
    let [n1, n2, n3] = [a.l, b.l, c.l].map(|l| 2 * l as usize + 1);
    let scale = (n3 as f64).sqrt();
    for row in 0..x.len() / widths[0] {
        for u in 0..a.mul as usize {
            for v in 0..b.mul as usize {
                for i in 0..n1 {
                    for j in 0..n2 {
                        let xy = x[row * widths[0] + a.start + u * n1 + i]
                            * y[row * widths[1] + b.start + v * n2 + j];
                        for k in 0..n3 {
                            out[row * widths[2] + c.start + (u * b.mul as usize + v) * n3 + k] +=
                                scale * w[(i * n2 + j) * n3 + k] * xy;
                        }
                    }
                }
            }
        }
    }
}

/// Multiplicity, degree, and whether odd, of irreps that lie one after the other in a row.
pub type IrrepList<'a> = &'a [(u32, u32, bool)];

/// First element of every irrep in a row, and the row's length.
fn irrep_starts(irreps: IrrepList<'_>) -> (Vec<usize>, usize) {
    let mut row = 0;
    let mut starts = Vec::new();
    for &(mul, l, _) in irreps {
        starts.push(row);
        row += mul as usize * (2 * l as usize + 1);
    }
    (starts, row)
}

/// What a coupling tensor of norm 1 is multiplied by, squared: for components of variance 1, or for
/// irreps of mean square norm 1 (`norm`).
fn irrep_scale(l: [u32; 3], norm: bool) -> f64 {
    let [n1, n2, n3] = l.map(|l| f64::from(2 * l + 1));
    if norm { n1 * n2 } else { n3 }
}

/// The full tensor product of rows `x` and `y`, without the outputs that `keep(degree, odd)`
/// refuses: e3nn's `FullTensorProduct` with `filter_ir_out`. Returns the irreps of the output, by
/// degree, odd before even, then by pairs of inputs, and `z: [batch, ..]`.
pub fn full_tensor_product(
    irreps: [IrrepList<'_>; 2],
    keep: &dyn Fn(u32, bool) -> bool,
    norm: bool,
    [x, y]: [&[f64]; 2],
    batch: usize,
) -> (Vec<(u32, u32, bool)>, Vec<f64>) {
    let [(starts1, width1), (starts2, width2)] = irreps.map(irrep_starts);
    // each output, with the places of its inputs
    let mut outputs = Vec::new();
    for (a, &(mul1, l1, odd1)) in irreps[0].iter().enumerate() {
        for (b, &(mul2, l2, odd2)) in irreps[1].iter().enumerate() {
            for l in l1.abs_diff(l2)..=l1 + l2 {
                if keep(l, odd1 ^ odd2) {
                    outputs.push(((l, !(odd1 ^ odd2), a, b), mul1 * mul2));
                }
            }
        }
    }
    outputs.sort_by_key(|o| o.0);
    let list: Vec<(u32, u32, bool)> =
        outputs.iter().map(|&((l, even, ..), mul)| (mul, l, !even)).collect();
    let (starts, width) = irrep_starts(&list);
    let mut z = vec![0.0; batch * width];
    for (&((l, _, a, b), _), &start) in outputs.iter().zip(&starts) {
        let block = |(mul, l, _): (u32, u32, bool), start| Block { mul, l, start };
        let blocks = [
            block(irreps[0][a], starts1[a]),
            block(irreps[1][b], starts2[b]),
            Block { mul: 0, l, start },
        ];
        // that function scales components to variance 1
        let degrees = [blocks[0].l, blocks[1].l, l];
        let scale = (irrep_scale(degrees, norm) / irrep_scale(degrees, false)).sqrt();
        let mut own = vec![0.0; z.len()];
        if width1 > 0 {
            clebsch_gordan(blocks, x, y, &mut own, [width1, width2, width]);
        }
        z.iter_mut().zip(own).for_each(|(z, own)| *z += scale * own);
    }
    (list, z)
}

/// One path of [`weighted_tensor_product`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightedPath {
    /// Positions in the lists of `x`, `y`, `z`.
    pub places: [usize; 3],
    /// Weights `[mul1, mul2, mul_out]` (e3nn's `uvw`); otherwise `[mul1, mul2]`, copy `u` of `x` to
    /// copy `u` of `z` (`uvu`).
    pub mixes: bool,
}

/// The weighted tensor product: e3nn's `TensorProduct`. `w` is one row of weights, all paths'
/// one after the other, or one for each row of `x`. With `norm` irreps, otherwise components, keep
/// their size; with `by_path` every path to an output has the same share of it, otherwise every
/// term.
#[expect(clippy::too_many_arguments, reason = "the definition, with all its options")]
pub fn weighted_tensor_product(
    irreps: [IrrepList<'_>; 3],
    paths: &[WeightedPath],
    norm: bool,
    by_path: bool,
    x: &[f64],
    y: &[f64],
    w: &[f64],
    batch: usize,
) -> Vec<f64> {
    let [(starts1, width1), (starts2, width2), (starts3, width3)] = irreps.map(irrep_starts);
    let fan = |p: &WeightedPath| {
        let [mul1, mul2] = [irreps[0][p.places[0]].0, irreps[1][p.places[1]].0];
        f64::from(mul2) * if p.mixes { f64::from(mul1) } else { 1.0 }
    };
    let size = |p: &WeightedPath| {
        let [a, b, c] = [0, 1, 2].map(|i| irreps[i][p.places[i]].0 as usize);
        if p.mixes { a * b * c } else { a * b }
    };
    let row_of_weights: usize = paths.iter().map(size).sum();
    let shared = w.len() == row_of_weights;
    let mut z = vec![0.0; batch * width3];
    for row in 0..batch {
        let mut weights = if shared { w } else { &w[row * row_of_weights..] };
        for path in paths {
            let [(mul1, l1, _), (mul2, l2, _), (mul3, l3, _)] =
                [0, 1, 2].map(|i| irreps[i][path.places[i]]);
            let to_same = || paths.iter().filter(|other| other.places[2] == path.places[2]);
            let terms = if by_path {
                fan(path) * to_same().count() as f64
            } else {
                to_same().map(fan).sum()
            };
            let scale = (irrep_scale([l1, l2, l3], norm) / terms).sqrt();
            let c = real_wigner_3j(l1, l2, l3);
            let [n1, n2, n3] = [l1, l2, l3].map(|l| 2 * l as usize + 1);
            let (mul1, mul2, mul3) = (mul1 as usize, mul2 as usize, mul3 as usize);
            for u in 0..mul1 {
                for v in 0..mul2 {
                    for k in 0..n3 {
                        let mut coupled = 0.0;
                        for i in 0..n1 {
                            for j in 0..n2 {
                                coupled += c[(i * n2 + j) * n3 + k]
                                    * x[row * width1 + starts1[path.places[0]] + u * n1 + i]
                                    * y[row * width2 + starts2[path.places[1]] + v * n2 + j];
                            }
                        }
                        let out = row * width3 + starts3[path.places[2]] + k;
                        if path.mixes {
                            for w in 0..mul3 {
                                z[out + w * n3] +=
                                    scale * weights[(u * mul2 + v) * mul3 + w] * coupled;
                            }
                        } else {
                            z[out + u * n3] += scale * weights[u * mul2 + v] * coupled;
                        }
                    }
                }
            }
            weights = &weights[size(path)..];
        }
    }
    z
}

/// The matrix `D` of a rotation or reflection `r` (row-major 3 x 3, orthogonal) on coefficients of
/// degree up to `lmax`: `Y(r v) = D Y(v)`, block diagonal, `[(lmax + 1)^2, (lmax + 1)^2]`.
///
/// Projected with an exact quadrature: `D_ij` is the integral of `Y_i(r v) Y_j(v)`.
pub fn rotation_matrix(lmax: u32, r: &[f64; 9]) -> Vec<f64> {
    let d = dim(lmax);
    let mut matrix = vec![0.0; d * d];
    for (v, weight) in sphere_points(2 * lmax) {
        let turned: [f64; 3] = std::array::from_fn(|i| (0..3).map(|k| r[3 * i + k] * v[k]).sum());
        let (left, right) =
            (spherical_harmonics(lmax, Integral, &turned), spherical_harmonics(lmax, Integral, &v));
        for i in 0..d {
            for j in 0..d {
                if degree_order(i).0 == degree_order(j).0 {
                    matrix[i * d + j] += weight * left[i] * right[j];
                }
            }
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_are_integrals() {
        let l = 4;
        let g = gaunt_coefficients(l, l, 2 * l);
        let (d, d3) = (dim(l), dim(2 * l));
        let mut want = vec![0.0; g.len()];
        for (r, w) in sphere_points(4 * l) {
            let y = spherical_harmonics(2 * l, Integral, &r);
            for i in 0..d {
                for j in 0..d {
                    for k in 0..d3 {
                        want[(i * d + j) * d3 + k] += w * y[i] * y[j] * y[k];
                    }
                }
            }
        }
        for (g, w) in g.iter().zip(&want) {
            assert!((g - w).abs() < 1e-13, "{g} {w}");
        }
    }

    #[test]
    fn closed_forms() {
        let unit = 0.25 / PI;
        for l in 0..=16u32 {
            for m in -(l.cast_signed())..=l.cast_signed() {
                assert!((gaunt_coefficient([0, l, l], [0, m, m]) - unit.sqrt()).abs() < 1e-14);
            }
        }
        // integral of Y10 Y10 Y20 = 1 / sqrt(5 pi), of Y20^3 = sqrt(5 / pi) / 7
        assert!(
            (gaunt_coefficient([1, 1, 2], [0, 0, 0]) - (5.0 * PI).sqrt().recip()).abs() < 1e-15
        );
        assert!((gaunt_coefficient([2, 2, 2], [0, 0, 0]) - (5.0 / PI).sqrt() / 7.0).abs() < 1e-15);
    }

    #[test]
    fn non_zeros() {
        let count = |l, l3| gaunt_coefficients(l, l, l3).iter().filter(|g| g.abs() > 1e-12).count();
        assert_eq!([count(1, 2), count(2, 4), count(3, 6), count(4, 8)], [21, 162, 708, 2229]);
        assert_eq!([count(1, 1), count(2, 2), count(3, 3), count(4, 4)], [10, 83, 353, 1158]);
    }

    #[test]
    fn gaunt_is_clebsch_gordan_times_a_positive_factor() {
        for l1 in 0..=5u32 {
            for l2 in 0..=5u32 {
                for l3 in l1.abs_diff(l2)..=(l1 + l2).min(8) {
                    if (l1 + l2 + l3) % 2 == 1 {
                        continue;
                    }
                    let w = real_wigner_3j(l1, l2, l3);
                    let scale =
                        (f64::from((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1)) / (4.0 * PI)).sqrt()
                            * wigner_3j(l1, l2, l3, 0, 0, 0).abs();
                    let mut at = w.iter();
                    for m1 in -(l1.cast_signed())..=l1.cast_signed() {
                        for m2 in -(l2.cast_signed())..=l2.cast_signed() {
                            for m3 in -(l3.cast_signed())..=l3.cast_signed() {
                                let got = scale * at.next().unwrap();
                                let want = gaunt_coefficient([l1, l2, l3], [m1, m2, m3]);
                                assert!(
                                    (got - want).abs() < 1e-13,
                                    "{l1}{l2}{l3} {m1} {m2} {m3}: {got} {want}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn vector_coefficients_are_the_odd_couplings() {
        let (l1, l2, l3) = (2, 3, 4);
        let h = vector_coefficients(l1, l2, l3);
        let (d2, d3) = (dim(l2), dim(l3));
        // 1 x 1 -> 1: the integral of Y_z r.(grad Y_x x grad Y_y) is sqrt(3 / 4 pi)
        assert!(
            (h[(d2 + 2) * d3 + 3] - (0.75 / PI).sqrt()).abs() < 1e-13,
            "{}",
            h[(d2 + 2) * d3 + 3]
        );
        for (at, &got) in h.iter().enumerate() {
            let [a, b, c] = [at / d3 / d2, at / d3 % d2, at % d3].map(degree_order);
            if (a.0 + b.0 + c.0) % 2 == 0 {
                assert!(got.abs() < 1e-13, "{a:?} {b:?} {c:?}: {got}");
                continue;
            }
            // one factor for each triple of degrees
            let w = real_wigner_3j(a.0, b.0, c.0);
            let entry = |i: (u32, i32)| (i.1 + i.0.cast_signed()).unsigned_abs() as usize;
            let w = w[(entry(a) * (2 * b.0 as usize + 1) + entry(b)) * (2 * c.0 as usize + 1)
                + entry(c)];
            if w.abs() < 1e-12 {
                assert!(got.abs() < 1e-12, "{a:?} {b:?} {c:?}: {got}");
            }
        }
    }

    #[test]
    fn rotations_are_orthogonal_and_compose() {
        // a turn about y by 0.3 and an inversion
        let (s, c) = 0.3f64.sin_cos();
        let d = rotation_matrix(5, &[c, 0.0, s, 0.0, 1.0, 0.0, -s, 0.0, c]);
        let n = dim(5);
        for i in 0..n {
            for j in 0..n {
                let dot: f64 = (0..n).map(|k| d[i * n + k] * d[j * n + k]).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
        }
        let inversion = rotation_matrix(5, &[-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0]);
        for i in 0..n {
            let sign = if degree_order(i).0.is_multiple_of(2) { 1.0 } else { -1.0 };
            assert!((inversion[i * n + i] - sign).abs() < 1e-12);
        }
    }
}
