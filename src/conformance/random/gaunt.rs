//! Gaunt tensor products, spherical harmonics and their transforms.

use serde_json::json;

use super::{Class, Problem};
use crate::gaunt::ShNormalization;
use crate::reference;

/// Number of coefficients up to degree `l`.
fn dim(l: u32) -> u32 {
    (l + 1) * (l + 1)
}

/// Degrees of a product, as arguments.
fn degrees(p: &mut Problem, most: u32) -> [u32; 3] {
    let [a, b] = [p.rng.range(0, most), p.rng.range(0, most)];
    let l = [a, b, p.rng.range(0, a + b)];
    for (name, l) in ["L1", "L2", "Lout"].into_iter().zip(l) {
        p.param(name, l);
    }
    l
}

pub(super) fn gaunt_tp(p: &mut Problem, weighted: bool) {
    let [l1, l2, l3] = degrees(p, 6);
    let [b, c] = [p.rng.range(1, 70), p.rng.range(1, 9)];
    let n = |l: u32| (l + 1) * (l + 1);
    let mut x = p.normal("in.x", &[b, c, n(l1)]);
    let mut y = p.normal("in.y", &[b, c, n(l2)]);
    if weighted {
        let mut weigh = |name: &str, l: u32, x: &mut Vec<f64>| {
            let w = p.normal(name, &[c, l + 1]);
            *x = reference::weight_by_degree(l, x, &w);
        };
        weigh("in.w1", l1, &mut x);
        weigh("in.w2", l2, &mut y);
    }
    let mut z = reference::gaunt_tensor_product(l1, l2, l3, &x, &y);
    if weighted {
        let w = p.normal("in.w3", &[c, l3 + 1]);
        z = reference::weight_by_degree(l3, &z, &w);
    }
    p.output("out.z", &[b, c, n(l3)], &z, Class::Products);
}

/// Vectors of whole 64ths, none of them zero.
fn vectors(p: &mut Problem, n: u32) -> Vec<f64> {
    let mut r = p.normal("in.r", &[n, 3]);
    for v in r.chunks_mut(3) {
        if v.iter().map(|x| x * x).sum::<f64>() < 0.1 {
            v[1] = 1.0;
        }
    }
    p.given("in.r", &[n, 3], &r);
    r
}

pub(super) fn gaunt_conv(p: &mut Problem) {
    let [l1, l2, l3] = degrees(p, 4);
    let [edges, c] = [p.rng.range(1, 60), p.rng.range(1, 9)];
    let n = |l: u32| (l + 1) * (l + 1);
    let x = p.normal("in.x", &[edges, c, n(l1)]);
    let h = p.normal("in.h", &[edges, l2 + 1]);
    let r = vectors(p, edges);
    let harmonics = reference::spherical_harmonics(l2, ShNormalization::Integral, &r);
    let width = n(l2) as usize;
    let y: Vec<f64> = harmonics
        .chunks(width)
        .zip(h.chunks(l2 as usize + 1))
        .flat_map(|(y, h)| reference::weight_by_degree(l2, y, h))
        .collect();
    let wide: Vec<f64> =
        y.chunks(width).flat_map(|y| (0..c).flat_map(|_| y.to_vec()).collect::<Vec<_>>()).collect();
    let z = reference::gaunt_tensor_product(l1, l2, l3, &x, &wide);
    p.output("out.y", &[edges, n(l2)], &y, Class::Ratios);
    p.output("out.z", &[edges, c, n(l3)], &z, Class::Ratios);
}

pub(super) fn gaunt_many_body(p: &mut Problem) {
    let [l, power] = [p.rng.range(1, 3), p.rng.range(2, 3)];
    let out = p.rng.range(0, l * power);
    let [b, c] = [p.rng.range(1, 20), p.rng.range(1, 6)];
    p.param("L", l);
    p.param("nu", power);
    p.param("Lout", out);
    let x = p.normal("in.x", &[b, c, (l + 1) * (l + 1)]);
    let z = reference::gaunt_many_body(&vec![(l, &x[..]); power as usize], out);
    p.output("out.z", &[b, c, (out + 1) * (out + 1)], &z, Class::Products);
}

pub(super) fn spherical_harmonics(p: &mut Problem) {
    let [l, n] = [p.rng.range(0, 10), p.rng.range(1, 200)];
    let (name, normalization) = p.rng.pick(&[
        ("integral", ShNormalization::Integral),
        ("component", ShNormalization::Component),
        ("norm", ShNormalization::Norm),
    ]);
    p.param("L", l);
    p.param("normalization", name);
    let r = vectors(p, n);
    let y = reference::spherical_harmonics(l, normalization, &r);
    p.output("out.y", &[n, (l + 1) * (l + 1)], &y, Class::Ratios);
}

/// Multiplicity, degree, whether odd.
type List = Vec<(u32, u32, bool)>;

/// A list of irreps: 1 to `most` of them.
fn irreps(p: &mut Problem, most: u32) -> List {
    (0..p.rng.range(1, most))
        .map(|_| (p.rng.range(1, 3), p.rng.range(0, 3), p.rng.chance(50)))
        .collect()
}

/// As e3nn writes it.
fn written(list: &[(u32, u32, bool)]) -> String {
    let term =
        |&(mul, l, odd): &(u32, u32, bool)| format!("{mul}x{l}{}", if odd { "o" } else { "e" });
    list.iter().map(term).collect::<Vec<_>>().join("+")
}

/// Elements in a row.
fn row(list: &[(u32, u32, bool)]) -> u32 {
    list.iter().map(|(mul, l, _)| mul * (2 * l + 1)).sum()
}

/// Returns whether it is by the norm.
fn irrep_normalization(p: &mut Problem) -> bool {
    let norm = p.rng.chance(40);
    p.param("irrep_normalization", if norm { "norm" } else { "component" });
    norm
}

/// Every path, or those to some irreps.
pub(super) fn cg_full_tp(p: &mut Problem) {
    let (a, b) = (irreps(p, 3), irreps(p, 3));
    p.param("irreps_in1", written(&a));
    p.param("irreps_in2", written(&b));
    let norm = irrep_normalization(p);
    let mut kept: Option<Vec<(u32, bool)>> = None;
    if p.rng.chance(60) {
        // one that is there, and others that may be
        let (first, second) = (p.rng.pick(&a), p.rng.pick(&b));
        let own = (first.1.abs_diff(second.1), first.2 != second.2);
        let all = (0..16).map(|at| (at / 2, at % 2 == 1));
        kept = Some(all.filter(|one| *one == own || p.rng.chance(30)).collect());
    }
    let names = kept.as_ref().map(|kept| {
        kept.iter()
            .map(|(l, odd)| format!("{l}{}", if *odd { "o" } else { "e" }))
            .collect::<Vec<_>>()
    });
    p.param("filter_ir_out", names);
    let batch = p.rng.range(1, 40);
    let x = p.normal("in.x", &[batch, row(&a)]);
    let y = p.normal("in.y", &[batch, row(&b)]);
    let keep = |l, odd| kept.as_ref().is_none_or(|kept| kept.contains(&(l, odd)));
    let (out, z) = reference::full_tensor_product([&a, &b], &keep, norm, [&x, &y], batch as usize);
    p.output("out.z", &[batch, row(&out)], &z, Class::Products);
}

/// Some of the paths between some irreps, of both kinds.
pub(super) fn cg_weighted_tp(p: &mut Problem) {
    let (a, b) = (irreps(p, 3), irreps(p, 3));
    // outputs that paths reach, often with as many copies as an input, and one that perhaps none does
    let mut out = irreps(p, 2);
    out.truncate(1);
    for _ in 0..p.rng.range(1, 4) {
        let (first, second) = (p.rng.pick(&a), p.rng.pick(&b));
        let l = p.rng.range(first.1.abs_diff(second.1), first.1 + second.1);
        let mul = if p.rng.chance(60) { first.0 } else { p.rng.range(1, 4) };
        out.push((mul, l, first.2 != second.2));
    }
    let (mut paths, mut instructions, mut weights) = (Vec::new(), Vec::new(), 0);
    for (i, first) in a.iter().enumerate() {
        for (j, second) in b.iter().enumerate() {
            for (k, third) in out.iter().enumerate() {
                let degrees = first.1.abs_diff(second.1)..=first.1 + second.1;
                let legal = degrees.contains(&third.1) && third.2 == (first.2 != second.2);
                if !legal || p.rng.chance(15) {
                    continue;
                }
                let mixes = first.0 != third.0 || p.rng.chance(50);
                let pairs = first.0 * second.0;
                weights += if mixes { pairs * third.0 } else { pairs };
                paths.push(reference::WeightedPath { places: [i, j, k], mixes });
                instructions.push(json!([i, j, k, if mixes { "uvw" } else { "uvu" }]));
            }
        }
    }
    p.param("irreps_in1", written(&a));
    p.param("irreps_in2", written(&b));
    p.param("irreps_out", written(&out));
    p.param("instructions", instructions);
    let norm = irrep_normalization(p);
    let by_path = p.rng.chance(50);
    p.param("path_normalization", if by_path { "path" } else { "element" });
    let batch = p.batch(40);
    let shared = p.rng.chance(50);
    p.param("shared_weights", shared);
    let x = p.normal("in.x", &[batch, row(&a)]);
    let y = p.normal("in.y", &[batch, row(&b)]);
    let w = p.normal("in.w", &[if shared { 1 } else { batch }, weights]);
    let z = reference::weighted_tensor_product(
        [&a, &b, &out],
        &paths,
        norm,
        by_path,
        &x,
        &y,
        &w,
        batch as usize,
    );
    p.output("out.z", &[batch, row(&out)], &z, Class::Products);
}

/// Every coefficient.
pub(super) fn gaunt_coeffs(p: &mut Problem) {
    let [l1, l2, l3] = degrees(p, 3);
    let g = reference::gaunt_coefficients(l1, l2, l3);
    p.output("out.g", &[dim(l1), dim(l2), dim(l3)], &g, Class::Plain);
}

/// A product and the gradients of `sum(z * dz)`, each a sum over the dense coefficients.
pub(super) fn gaunt_tp_bwd(p: &mut Problem) {
    let [l1, l2, l3] = degrees(p, 5);
    let [b, c] = [p.batch(20), p.rng.range(1, 9)];
    let [n1, n2, n3] = [l1, l2, l3].map(dim);
    let unit = p.unit();
    let x = p.input("in.x", &[b, c, n1], unit, [-96, 96]);
    let y = p.normal("in.y", &[b, c, n2]);
    let dz = p.normal("in.dz", &[b, c, n3]);
    let g = reference::gaunt_coefficients(l1, l2, l3);
    let [d1, d2, d3] = [n1, n2, n3].map(|n| n as usize);
    let (mut z, mut dx, mut dy) = (vec![0.0; dz.len()], vec![0.0; x.len()], vec![0.0; y.len()]);
    for row in 0..(b * c) as usize {
        for (at, &g) in g.iter().enumerate().filter(|(_, g)| **g != 0.0) {
            let (i, j, k) = (row * d1 + at / d3 / d2, row * d2 + at / d3 % d2, row * d3 + at % d3);
            z[k] += g * x[i] * y[j];
            dx[i] += g * y[j] * dz[k];
            dy[j] += g * x[i] * dz[k];
        }
    }
    p.output("out.z", &[b, c, n3], &z, Class::Products);
    p.output("out.dx", &[b, c, n1], &dx, Class::Products);
    p.output("out.dy", &[b, c, n2], &dy, Class::Products);
}

/// A rotation from a quaternion, sometimes with a reflection.
fn orthogonal(p: &mut Problem) -> [f64; 9] {
    let mut q = [0.0; 4].map(|_: f64| f64::from(p.rng.range(0, 200)) - 100.0);
    if q.iter().all(|x| *x == 0.0) {
        q[0] = 1.0;
    }
    let norm = q.iter().map(|x| x * x).sum::<f64>().sqrt();
    let [w, x, y, z] = q.map(|x| x / norm);
    let turn = [
        1.0 - 2.0 * (y * y + z * z),
        2.0 * (x * y - w * z),
        2.0 * (x * z + w * y),
        2.0 * (x * y + w * z),
        1.0 - 2.0 * (x * x + z * z),
        2.0 * (y * z - w * x),
        2.0 * (x * z - w * y),
        2.0 * (y * z + w * x),
        1.0 - 2.0 * (x * x + y * y),
    ];
    let sign = if p.rng.chance(30) { -1.0 } else { 1.0 };
    turn.map(|x| sign * x)
}

/// The product of turned inputs is the turned product.
pub(super) fn gaunt_equivariance(p: &mut Problem) {
    // what is turned is not exact in 16 bits
    p.half = false;
    let [l1, l2, l3] = degrees(p, 5);
    let [b, c] = [p.batch(4), p.rng.range(1, 6)];
    let x = p.normal("in.x", &[b, c, dim(l1)]);
    let y = p.normal("in.y", &[b, c, dim(l2)]);
    let z = reference::gaunt_tensor_product(l1, l2, l3, &x, &y);
    let turns: Vec<[f64; 9]> = (0..b).map(|_| orthogonal(p)).collect();
    let turned = |l: u32, x: &[f64]| -> Vec<f64> {
        let n = dim(l) as usize;
        let mut out = Vec::with_capacity(x.len());
        for (turn, rows) in turns.iter().zip(x.chunks(c as usize * n)) {
            let matrix = reference::rotation_matrix(l, turn);
            for row in rows.chunks(n) {
                out.extend(
                    matrix.chunks(n).map(|m| m.iter().zip(row).map(|(m, x)| m * x).sum::<f64>()),
                );
            }
        }
        out
    };
    p.given("in.x_rot", &[b, c, dim(l1)], &turned(l1, &x));
    p.given("in.y_rot", &[b, c, dim(l2)], &turned(l2, &y));
    p.output("out.z", &[b, c, dim(l3)], &z, Class::Products);
    p.output("out.z_rot", &[b, c, dim(l3)], &turned(l3, &z), Class::Products);
}

/// Values on a grid; where it is fine enough, also the way back.
pub(super) fn s2grid(p: &mut Problem) {
    let l = p.rng.range(0, 9);
    let [n_beta, n_alpha] = [p.rng.range(1, l + 5), p.rng.range(1, 2 * l + 9)];
    p.param("L", l);
    p.param("n_beta", n_beta);
    p.param("n_alpha", n_alpha);
    let [b, c] = [p.batch(12), p.rng.range(1, 7)];
    let unit = p.unit();
    let x = p.input("in.x", &[b, c, dim(l)], unit, [-96, 96]);
    let nodes = reference::parallels(n_beta);
    let around = |k: u32| 2.0 * std::f64::consts::PI * f64::from(k) / f64::from(n_alpha);
    let alpha: Vec<f64> = (0..n_alpha).map(around).collect();
    let mut points = Vec::new();
    for &t in &nodes {
        let s = (1.0 - t * t).sqrt();
        points.extend(alpha.iter().flat_map(|a| [s * a.sin(), t, s * a.cos()]));
    }
    let f = reference::evaluate(l, &x, &points);
    p.output("out.f", &[b, c, n_beta, n_alpha], &f, Class::Products);
    p.output("out.nodes", &[n_beta], &nodes, Class::Plain);
    p.output("out.alpha", &[n_alpha], &alpha, Class::Plain);
    if n_beta > l && n_alpha > 2 * l {
        p.output("out.x", &[b, c, dim(l)], &x, Class::Products);
    }
}

/// The Fourier series on the torus, and the way back.
pub(super) fn sh_to_fourier(p: &mut Problem) {
    let l = p.rng.range(0, 6);
    p.param("L", l);
    let [b, c] = [p.batch(5), p.rng.range(1, 5)];
    let unit = p.unit();
    let x = p.input("in.x", &[b, c, dim(l)], unit, [-96, 96]);
    let series = reference::sh_to_fourier(l, &x);
    let side = 2 * l + 1;
    for (part, name) in ["out.re", "out.im"].into_iter().enumerate() {
        let half: Vec<f64> = series.iter().skip(part).step_by(2).copied().collect();
        p.output(name, &[b, c, side, side], &half, Class::Products);
    }
    p.output("out.x", &[b, c, dim(l)], &x, Class::Products);
}

/// The coupling tensors, and how much of each a Gaunt product has.
pub(super) fn cg_coeffs(p: &mut Problem) {
    let lmax = p.rng.range(0, 4);
    p.param("L", lmax);
    let count = 2 * lmax + 1;
    let mut ratio = vec![0.0; ((lmax + 1) * (lmax + 1) * count) as usize];
    for l1 in 0..=lmax {
        for l2 in 0..=lmax {
            for l3 in l1.abs_diff(l2)..=l1 + l2 {
                let shape = [l1, l2, l3].map(|l| 2 * l + 1);
                let name = format!("out.w3j_{l1}_{l2}_{l3}");
                let w = reference::real_wigner_3j(l1, l2, l3);
                p.output(&name, &shape, &w, Class::Plain);
                // the tensors have norm 1: the factor is the norm of the Gaunt coefficients
                let orders = |l: u32| -l.cast_signed()..=l.cast_signed();
                let mut square = 0.0;
                for m1 in orders(l1) {
                    for m2 in orders(l2) {
                        for m3 in orders(l3) {
                            square +=
                                reference::gaunt_coefficient([l1, l2, l3], [m1, m2, m3]).powi(2);
                        }
                    }
                }
                ratio[((l1 * (lmax + 1) + l2) * count + l3) as usize] = f64::sqrt(square);
            }
        }
    }
    p.output("out.gaunt_over_w3j", &[lmax + 1, lmax + 1, count], &ratio, Class::Plain);
}
