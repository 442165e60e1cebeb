//! Gaunt products, spherical harmonics and their transforms on every adapter and tier, against the
//! f64 reference.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]
#![allow(clippy::needless_range_loop, reason = "indices are those of the formula")]

mod common;

use std::{
    f64::consts::PI,
    sync::{Mutex, PoisonError},
};

use common::{Deal, Device, Guarded, Rng, devices, rel_rms, rounded, run, to_f64, upload_as};
use tilewise::{Context, DType, DeviceClass, Error, Layout, Tensor, gaunt::*, reference, wgpu};

/// Largest relative error between any two routes, and of any against f64.
const ROUTES: f64 = 2e-6;

/// Largest relative change under a rotation that should commute.
const EQUIVARIANCE: f64 = 5e-6;

fn dim(l: u32) -> u32 {
    (l + 1).pow(2)
}

fn scratch(ctx: &Context, bytes: u64) -> wgpu::Buffer {
    ctx.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes.next_multiple_of(16).max(16),
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    })
}

/// A product as one would write it with tables in f32, by coefficients or on a grid: its error
/// against f64 sets the budget.
struct Plain {
    grid: bool,
    points: usize,
    tables: Vec<f32>,
    /// Values of the harmonics of both inputs and, weighted, of the output.
    harmonics: [Vec<f32>; 3],
}

impl Plain {
    fn new(p: &GauntTensorProduct, grid: bool) -> Self {
        let scale = p.normalization.factor();
        let cast = |v: Vec<f64>, s: f64| v.into_iter().map(|x| (x * s) as f32).collect::<Vec<_>>();
        if !grid {
            let g = gaunt_coefficients(p.lmax1, p.lmax2, p.lmax_out, p.coupling).unwrap();
            return Self { grid, points: 0, tables: cast(g, scale), harmonics: Default::default() };
        }
        let sphere = SphereGrid::for_product(p.lmax1, p.lmax2, p.lmax_out);
        let mut r = Vec::new();
        let mut w = Vec::new();
        for (y, weight) in sphere.nodes().into_iter().zip(sphere.weights()) {
            for a in sphere.longitudes() {
                let s = (1.0 - y * y).sqrt();
                r.extend([s * a.sin(), y, s * a.cos()]);
                w.push(weight * scale);
            }
        }
        let harmonics = [p.lmax1, p.lmax2, p.lmax_out]
            .map(|l| reference::spherical_harmonics(l, ShNormalization::Integral, &r));
        let [x, y, mut z] = harmonics;
        for (row, w) in z.chunks_mut(dim(p.lmax_out) as usize).zip(&w) {
            row.iter_mut().for_each(|v| *v *= w);
        }
        Self {
            grid,
            points: w.len(),
            tables: vec![],
            harmonics: [cast(x, 1.0), cast(y, 1.0), cast(z, 1.0)],
        }
    }

    fn product(&self, p: &GauntTensorProduct, x: &[f32], y: &[f32]) -> Vec<f32> {
        let [d1, d2, d3] = [p.lmax1, p.lmax2, p.lmax_out].map(|l| dim(l) as usize);
        let mut out = Vec::new();
        for (x, y) in x.chunks(d1).zip(y.chunks(d2)) {
            let mut z = vec![0f32; d3];
            if self.grid {
                for at in 0..self.points {
                    let dot = |v: &[f32], h: &[f32], d: usize| -> f32 {
                        v.iter().zip(&h[at * d..]).map(|(a, b)| a * b).sum()
                    };
                    let f = dot(x, &self.harmonics[0], d1) * dot(y, &self.harmonics[1], d2);
                    for (z, h) in z.iter_mut().zip(&self.harmonics[2][at * d3..]) {
                        *z += f * h;
                    }
                }
            } else {
                for i in 0..d1 {
                    for j in 0..d2 {
                        let xy = x[i] * y[j];
                        for (z, g) in z.iter_mut().zip(&self.tables[(i * d2 + j) * d3..]) {
                            *z += g * xy;
                        }
                    }
                }
            }
            out.extend(z);
        }
        out
    }
}

/// The definition, scaled, with weights.
fn definition(p: &GauntTensorProduct, x: &[f64], y: &[f64]) -> Vec<f64> {
    let f = match p.coupling {
        Coupling::Scalar => reference::gaunt_tensor_product,
        Coupling::Vector => reference::vector_tensor_product,
    };
    let mut z = f(p.lmax1, p.lmax2, p.lmax_out, x, y);
    z.iter_mut().for_each(|z| *z *= p.normalization.factor());
    z
}

/// Runs a product of contiguous rows.
fn simple(
    ctx: &Context,
    p: GauntTensorProduct,
    [batch, channels]: [u32; 2],
    x: &[f32],
    y: &[f32],
) -> Vec<f32> {
    let plan = p.plan(ctx, GauntShape { batch, channels }).unwrap();
    let layout = |l: u32| Layout::contiguous([batch, channels, dim(l)]);
    let tx = upload_as(ctx, layout(p.lmax1), x, p.dtype).unwrap();
    let ty = upload_as(ctx, layout(p.lmax2), y, p.dtype).unwrap();
    let z = Guarded::new(ctx, layout(p.lmax_out), p.dtype);
    let scratch = scratch(ctx, plan.scratch_bytes());
    let args = GauntArgs {
        scratch: Some(&scratch),
        ..GauntArgs::new(
            tx.view_as(layout(p.lmax1)).unwrap(),
            ty.view_as(layout(p.lmax2)).unwrap(),
            z.view(),
        )
    };
    run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
    z.read(ctx)
}

/// One test at a time: wgpu's GL backend gives up on a context that another thread holds for
/// longer than a second, and the drivers compile for longer.
fn each_device(test: impl Fn(&Device)) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for device in devices() {
        let started = std::time::Instant::now();
        test(device);
        eprintln!("{}: {:.1?}", device.name, started.elapsed());
    }
}

#[test]
fn comparator_sees_a_wrong_answer() {
    let p = GauntTensorProduct::new(2, 2);
    let mut rng = Rng(1);
    let (x, y) = (rng.vec(9), rng.vec(9));
    let want = definition(&p, &to_f64(&x), &to_f64(&y));
    let mut got: Vec<f32> = want.iter().map(|&v| v as f32).collect();
    assert!(rel_rms(&got, &want) < 1e-7);
    got[3] *= 1.0001;
    assert!(rel_rms(&got, &want) > ROUTES);
}

/// A layout of rows with room between and an offset; sometimes repeated over batch or channels.
fn random_rows(rng: &mut Rng, [b, c, n]: [u32; 3], input: bool) -> Layout<3> {
    let row = u64::from(n + *rng.pick(&[0u32, 0, 0, 1, 3, 4]));
    let row = if rng.range(0, 3) == 0 { row.next_multiple_of(4) } else { row };
    let offset = u64::from(*rng.pick(&[0u32, 0, 4, 5, 30]));
    let mut strides = [row * u64::from(c), row, 1];
    if input {
        match rng.range(0, 6) {
            0 => strides = [row, 0, 1],
            1 => strides = [0, row, 1],
            _ => {}
        }
    } else if rng.range(0, 3) == 0 {
        // channels outermost
        strides = [row, row * u64::from(b), 1];
    }
    Layout { shape: [b, c, n], strides, offset }
}

/// What every element reads from a buffer holding `data` at distinct places.
fn seen(layout: &Layout<3>, rng: &mut Rng, dtype: DType) -> (Vec<f32>, Vec<f32>) {
    let places = common::indices(layout);
    let mut stored = std::collections::HashMap::new();
    let values: Vec<f32> = places
        .iter()
        .map(|at| *stored.entry(*at).or_insert_with(|| rounded(&[rng.unit()], dtype)[0]))
        .collect();
    (values.clone(), values)
}

/// A product of rows that lie anywhere, with weights or without, against the definition.
fn agrees(device: &Device, p: GauntTensorProduct, [b, c]: [u32; 2], rng: &mut Rng, what: &str) {
    let (ctx, dtype, coupling) = (&device.ctx, p.dtype, p.coupling);
    let what = format!("{what}: {p:?} [{b}, {c}]");
    let (lx, ly) = (
        random_rows(rng, [b, c, dim(p.lmax1)], true),
        random_rows(rng, [b, c, dim(p.lmax2)], true),
    );
    let lz = random_rows(rng, [b, c, dim(p.lmax_out)], false);
    let ((x, sx), (y, sy)) = (seen(&lx, rng, dtype), seen(&ly, rng, dtype));
    let weighted: [bool; 3] = std::array::from_fn(|_| rng.range(0, 3) == 0);
    let weights: [Option<Vec<f32>>; 3] = std::array::from_fn(|i| {
        let l = [p.lmax1, p.lmax2, p.lmax_out][i];
        weighted[i].then(|| rng.vec((c * (l + 1)) as usize))
    });

    let plan = p.plan(ctx, GauntShape { batch: b, channels: c }).unwrap();
    let (tx, ty) = (upload_as(ctx, lx, &x, dtype).unwrap(), upload_as(ctx, ly, &y, dtype).unwrap());
    let z = Guarded::new(ctx, lz, dtype);
    let tw: [Option<Tensor<2>>; 3] = std::array::from_fn(|i| {
        let l = [p.lmax1, p.lmax2, p.lmax_out][i];
        weights[i].as_ref().map(|w| Tensor::upload(ctx, [c, l + 1], w).unwrap())
    });
    let args = GauntArgs {
        weight1: tw[0].as_ref().map(Tensor::view),
        weight2: tw[1].as_ref().map(Tensor::view),
        weight_out: tw[2].as_ref().map(Tensor::view),
        ..GauntArgs::new(tx.view_as(lx).unwrap(), ty.view_as(ly).unwrap(), z.view())
    };
    run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();

    let scale = |v: Vec<f64>, w: &Option<Vec<f32>>, l: u32| match w {
        Some(w) => reference::weight_by_degree(l, &v, &to_f64(w)),
        None => v,
    };
    let (wx, wy) =
        (scale(to_f64(&sx), &weights[0], p.lmax1), scale(to_f64(&sy), &weights[1], p.lmax2));
    let want = scale(definition(&p, &wx, &wy), &weights[2], p.lmax_out);
    let got = z.read(ctx);
    if want.iter().all(|w| w.abs() < 1e-12) {
        assert!(got.iter().all(|g| g.abs() < 1e-6), "{what}: zeros expected");
        return;
    }
    let narrow = |v: &[f64]| v.iter().map(|&x| x as f32).collect::<Vec<_>>();
    // the plain grid has no gradients; a vector product is held to the coefficients' error
    let grid = plan.options().algorithm != Some(Algorithm::Table) && coupling == Coupling::Scalar;
    let plain = Plain::new(&p, grid).product(&p, &narrow(&wx), &narrow(&wy));
    let plain = scale(to_f64(&plain), &weights[2], p.lmax_out);
    let plain = rel_rms(&rounded(&narrow(&plain), dtype), &want);
    // one rounding at least: small problems can come out exact
    let floor = if coupling == Coupling::Vector { 4.0 } else { 2.0 } * DType::F32.unit_roundoff();
    let (error, budget) = (rel_rms(&got, &want), 2.0 * plain.max(floor));
    assert!(
        error <= budget,
        "{what} {:?}: error {error:.2e}, budget {budget:.2e}",
        plan.options().algorithm
    );
}

#[test]
fn products_agree_with_the_definition() {
    each_device(|device| {
        let mut rng = Rng(7);
        for case in 0..40 {
            let dtype = *rng.pick(&[DType::F32, DType::F32, DType::F16, DType::BF16]);
            let coupling = *rng.pick(&[Coupling::Scalar, Coupling::Scalar, Coupling::Vector]);
            let algorithms = match coupling {
                Coupling::Scalar => {
                    &[None, Some(Algorithm::Table), Some(Algorithm::Grid), Some(Algorithm::Fourier)]
                        [..]
                }
                Coupling::Vector => &[None, Some(Algorithm::Table), Some(Algorithm::Grid)],
            };
            let p = GauntTensorProduct {
                lmax1: rng.range(0, 6),
                lmax2: rng.range(0, 6),
                lmax_out: rng.range(0, 7),
                normalization: *rng.pick(&[
                    GauntNormalization::Orthonormal,
                    GauntNormalization::Identity,
                    GauntNormalization::Fourier,
                ]),
                coupling,
                dtype,
                algorithm: *rng.pick(algorithms),
            };
            let shape = [rng.range(1, 12), rng.range(1, 10)];
            agrees(device, p, shape, &mut rng, &format!("{}, case {case}", device.name));
        }
    });
}

/// The same device, planned for as a GPU.
fn as_a_gpu(device: &Device) -> Device {
    let name = format!("{}, as a GPU", device.name);
    Device { name, ctx: device.ctx.with_class(DeviceClass::Gpu) }
}

/// Products of a workgroup where lanes share a product, and memory is not what limits them.
fn tile(degree: u32) -> u32 {
    128 / (degree + 1)
}

/// What a GPU gets: at low degrees a lane for a product, from 5 to 12 a lane for an order; equal degrees
/// and others, full tiles and not, views, weights and types at random.
#[test]
fn cut_for_a_gpu() {
    let mixed = [
        [5, 3, 7],
        [8, 2, 6],
        [3, 9, 4],
        [12, 6, 12],
        [6, 11, 3],
        [1, 6, 6],
        [4, 4, 8],
        [2, 3, 9],
        [7, 7, 1],
        [10, 1, 10],
        [5, 5, 10],
        [6, 6, 12],
        [12, 12, 12],
        [9, 12, 11],
    ];
    let degrees: Vec<[u32; 3]> = (0..=12).map(|l| [l; 3]).chain(mixed).collect();
    let turn = std::cell::Cell::new(0);
    each_device(|device| {
        let gpu = as_a_gpu(device);
        let mut rng = Rng(31 + turn.get() as u64);
        // the drivers' own compilation is what takes the time: each tries some of them
        let mut deal = Deal::new(turn.get(), 3);
        turn.set(turn.get() + 1);
        for (k, &[lmax1, lmax2, lmax_out]) in degrees.iter().enumerate() {
            if !deal.takes() {
                continue;
            }
            let p = GauntTensorProduct {
                lmax1,
                lmax2,
                lmax_out,
                dtype: [DType::F32, DType::F32, DType::F16, DType::BF16][rng.range(0, 4) as usize],
                ..Default::default()
            };
            let degree = lmax1.max(lmax2).max(lmax_out.min(lmax1 + lmax2));
            let plan = p.plan(&gpu.ctx, GauntShape { batch: 1, channels: 1 }).unwrap();
            let shared = (5..=12).contains(&degree);
            assert_eq!(plan.label().starts_with("gaunt/orders"), shared, "{}", plan.label());
            let t = tile(degree);
            let counts = [1, t - 1, t, t + 1, 2 * t + 3];
            let count = counts[k % 5];
            let shape = if k % 2 == 0 { [count, 1] } else { [1, count] };
            agrees(&gpu, p, shape, &mut rng, &gpu.name);
            let shape = [3, counts[(k + 2) % 5].div_ceil(3)];
            agrees(&gpu, GauntTensorProduct { dtype: DType::F32, ..p }, shape, &mut rng, &gpu.name);
        }
    });
}

/// A product that is not finite spoils no other, and the others keep their bits; a run has the bits of
/// another.
#[test]
fn products_of_a_workgroup_are_apart() {
    each_device(|device| {
        let gpu = as_a_gpu(device);
        for (l, dtype) in [(5, DType::F32), (6, DType::F16), (8, DType::F32)] {
            let p = GauntTensorProduct { dtype, ..GauntTensorProduct::new(l, l) };
            let n = dim(l) as usize;
            let count = 2 * tile(l) + 3;
            let mut rng = Rng(5);
            let [x, y] = [0; 2].map(|_| rng.vec(n * count as usize));
            let clean = simple(&gpu.ctx, p, [count, 1], &x, &y);
            assert!(clean.iter().all(|v| v.is_finite()));
            assert_eq!(clean, simple(&gpu.ctx, p, [count, 1], &x, &y), "{}", gpu.name);
            for (bad, poison) in [(0, f32::NAN), (tile(l), f32::INFINITY), (count - 1, f32::NAN)] {
                let mut x = x.clone();
                let own = bad as usize * n..(bad as usize + 1) * n;
                x[own.clone()].fill(poison);
                let got = simple(&gpu.ctx, p, [count, 1], &x, &y);
                for (k, (got, clean)) in got.iter().zip(&clean).enumerate() {
                    let inside = own.contains(&k);
                    assert!(inside || got.to_bits() == clean.to_bits(), "{} {l}: {k}", gpu.name);
                }
                assert!(got[own].iter().any(|v| !v.is_finite()));
            }
        }
    });
}

#[test]
fn routes_agree_to_degree_12() {
    each_device(|device| {
        let ctx = &device.ctx;
        // the drivers' own compilation is what takes the time; the fastest tests every degree
        let all = ctx.caps.tier == tilewise::Tier::Subgroup;
        let degrees: Vec<u32> = if all { (1..=12).collect() } else { vec![1, 2, 4, 7, 12] };
        for l in degrees {
            let outs = if all && l <= 8 { vec![l, 2 * l] } else { vec![l] };
            for lmax_out in outs {
                let mut rng = Rng(u64::from(l));
                let (b, c) = (1, 9);
                let (x, y) = (rng.vec((c * dim(l)) as usize), rng.vec((c * dim(l)) as usize));
                let p = GauntTensorProduct::new(l, lmax_out);
                let want = definition(&p, &to_f64(&x), &to_f64(&y));
                let z = [Algorithm::Table, Algorithm::Grid, Algorithm::Fourier].map(|a| {
                    let z =
                        simple(ctx, GauntTensorProduct { algorithm: Some(a), ..p }, [b, c], &x, &y);
                    let error = rel_rms(&z, &want);
                    assert!(
                        error < ROUTES,
                        "{}: {l} to {lmax_out} {a:?}: {error:.2e}",
                        device.name
                    );
                    z
                });
                for (i, j) in [(0, 1), (0, 2), (1, 2)] {
                    let error = rel_rms(&z[i], &to_f64(&z[j]));
                    assert!(
                        error < ROUTES,
                        "{}: {l} to {lmax_out}, {i} {j}: {error:.2e}",
                        device.name
                    );
                }
            }
        }
    });
}

/// The definition as an integral: values on a grid that is exact for the degrees at hand, in f64.
fn integrated(p: &GauntTensorProduct, x: &[f64], y: &[f64]) -> Vec<f64> {
    let grid = SphereGrid::for_product(p.lmax1, p.lmax2, p.lmax_out);
    let (mut r, mut w) = (Vec::new(), Vec::new());
    for (y, weight) in grid.nodes().into_iter().zip(grid.weights()) {
        for a in grid.longitudes() {
            let s = (1.0 - y * y).sqrt();
            r.extend([s * a.sin(), y, s * a.cos()]);
            w.push(weight);
        }
    }
    let (f, g) = (reference::evaluate(p.lmax1, x, &r), reference::evaluate(p.lmax2, y, &r));
    let h = reference::spherical_harmonics(p.lmax_out, ShNormalization::Integral, &r);
    let (points, d) = (w.len(), dim(p.lmax_out) as usize);
    let mut z = vec![0.0; f.len() / points * d];
    for (at, (f, g)) in f.iter().zip(&g).enumerate() {
        let (row, point) = (at / points, at % points);
        for (z, h) in z[row * d..(row + 1) * d].iter_mut().zip(&h[point * d..]) {
            *z += f * g * h * w[point];
        }
    }
    z
}

#[test]
fn degrees_past_the_fused_kernels() {
    let (b, c) = (2, 3);
    let mut rng = Rng(3);
    let cases: Vec<_> = [(3, 2, 4), (24, 24, 24), (32, 5, 36), (16, 16, 40)]
        .map(|(lmax1, lmax2, lmax_out)| {
            let grid = Some(Algorithm::Grid);
            let p = GauntTensorProduct {
                lmax1,
                lmax2,
                lmax_out,
                algorithm: grid,
                ..Default::default()
            };
            let [x, y] = [lmax1, lmax2].map(|l| rng.vec((b * c * dim(l)) as usize));
            let want = integrated(&p, &to_f64(&x), &to_f64(&y));
            (p, x, y, want)
        })
        .into();
    // the integral is the definition
    let (p, x, y, want) = &cases[0];
    let exact = definition(p, &to_f64(x), &to_f64(y));
    assert!(want.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 1e-12));
    each_device(|device| {
        for (p, x, y, want) in &cases[1..] {
            let plan = p.plan(&device.ctx, GauntShape { batch: b, channels: c }).unwrap();
            assert!(plan.scratch_bytes() > 0, "{p:?} is fused: no test of the stages");
            let error = rel_rms(&simple(&device.ctx, *p, [b, c], x, y), want);
            assert!(error < ROUTES, "{}: {p:?}: {error:.2e}", device.name);
        }
    });
}

/// A random rotation (from a unit quaternion), a reflection of it, and their determinants.
fn orthogonal(rng: &mut Rng) -> [([f64; 9], f64); 2] {
    let mut q = [0.0f64; 4];
    loop {
        q.iter_mut().for_each(|v| *v = f64::from(rng.unit()));
        let n = q.iter().map(|v| v * v).sum::<f64>();
        if n > 0.1 && n < 1.0 {
            q.iter_mut().for_each(|v| *v /= n.sqrt());
            break;
        }
    }
    let [w, x, y, z] = q;
    let r = [
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
    let mut mirrored = r;
    mirrored[..3].iter_mut().for_each(|v| *v = -*v);
    [(r, 1.0), (mirrored, -1.0)]
}

/// Rows turned by a block-diagonal matrix.
fn turn(matrix: &[f64], x: &[f32], n: usize) -> Vec<f32> {
    x.chunks(n)
        .flat_map(|row| {
            (0..n).map(move |i| {
                (0..n).map(|j| matrix[i * n + j] * f64::from(row[j])).sum::<f64>() as f32
            })
        })
        .collect()
}

#[test]
fn products_commute_with_rotations_and_reflections() {
    each_device(|device| {
        let ctx = &device.ctx;
        let (l, c) = (8, 8);
        let n = dim(l) as usize;
        let mut rng = Rng(11);
        let (x, y) = (rng.vec(c as usize * n), rng.vec(c as usize * n));
        for (algorithm, coupling) in [
            (Algorithm::Table, Coupling::Scalar),
            (Algorithm::Grid, Coupling::Scalar),
            (Algorithm::Fourier, Coupling::Scalar),
            (Algorithm::Grid, Coupling::Vector),
        ] {
            let p = GauntTensorProduct {
                algorithm: Some(algorithm),
                coupling,
                ..GauntTensorProduct::new(l, l)
            };
            let z = simple(ctx, p, [1, c], &x, &y);
            let norm = z.iter().map(|v| v * v).sum::<f32>().sqrt();
            assert!(norm > 1.0, "a trivial output: {norm}");
            for (r, determinant) in orthogonal(&mut rng) {
                let d = reference::rotation_matrix(l, &r);
                // the vector product is a pseudoscalar
                let sign = if coupling == Coupling::Vector { determinant } else { 1.0 };
                let want: Vec<f64> = to_f64(&turn(&d, &z, n)).iter().map(|v| sign * v).collect();
                let got = simple(ctx, p, [1, c], &turn(&d, &x, n), &turn(&d, &y, n));
                let error = rel_rms(&got, &want);
                let change = rel_rms(&got, &to_f64(&z));
                assert!(change > 0.1, "the rotation changed nothing: {change}");
                assert!(error < EQUIVARIANCE, "{} {p:?} {determinant}: {error:.2e}", device.name);
            }
        }
    });
}

#[test]
fn gradients_are_products() {
    each_device(|device| {
        let mut rng = Rng(5);
        for (coupling, l) in [
            (Coupling::Scalar, [3, 1, 1]),
            (Coupling::Scalar, [2, 3, 4]),
            (Coupling::Vector, [2, 2, 3]),
        ] {
            let p = GauntTensorProduct {
                lmax1: l[0],
                lmax2: l[1],
                lmax_out: l[2],
                coupling,
                ..Default::default()
            };
            let c = 5u32;
            let [x, y, dz] = l.map(|l| rng.vec((c * dim(l)) as usize));
            // the derivative of sum(z dz) along every unit vector: the definition is bilinear
            let gradient = |which: usize| -> Vec<f64> {
                let n = dim(l[which]) as usize;
                let mut g = vec![0.0; c as usize * n];
                for k in 0..n {
                    let unit: Vec<f64> =
                        (0..c as usize * n).map(|i| f64::from(u8::from(i % n == k))).collect();
                    let z = match which {
                        0 => definition(&p, &unit, &to_f64(&y)),
                        _ => definition(&p, &to_f64(&x), &unit),
                    };
                    let d3 = dim(l[2]) as usize;
                    for row in 0..c as usize {
                        g[row * n + k] =
                            (0..d3).map(|i| z[row * d3 + i] * f64::from(dz[row * d3 + i])).sum();
                    }
                }
                g
            };
            let dx = simple(&device.ctx, p.gradient1(), [1, c], &y, &dz);
            let dy = simple(&device.ctx, p.gradient2(), [1, c], &dz, &x);
            assert!(rel_rms(&dx, &gradient(0)) < ROUTES, "{} {p:?} dx", device.name);
            assert!(rel_rms(&dy, &gradient(1)) < ROUTES, "{} {p:?} dy", device.name);
        }
    });
}

#[test]
fn spherical_harmonics_to_degree_16() {
    each_device(|device| {
        let ctx = &device.ctx;
        let mut rng = Rng(2);
        let mut r: Vec<[f32; 3]> = (0..50).map(|_| std::array::from_fn(|_| rng.unit())).collect();
        // the poles and their neighbourhood, axes, lengths at either end of f32
        r.extend([
            [0.0, 1.0, 0.0],
            [0.0, -3.0, 0.0],
            [1e-7, 1.0, 0.0],
            [1.0, 0.0, 0.0],
            [0.0, 0.0, -1.0],
        ]);
        r.extend([[1e-30, 2e-30, -1e-30], [1e30, 3e30, 2e30], [1e-20, 1.0, 1e-20]]);
        let flat = to_f64(r.as_flattened());
        let n = u32::try_from(r.len()).unwrap();
        let normalizations =
            [ShNormalization::Integral, ShNormalization::Component, ShNormalization::Norm];
        for (at, lmax) in [0, 1, 2, 3, 5, 8, 16].into_iter().enumerate() {
            // every kernel takes a slow driver a second: all three at one degree, else one in turn
            let turn = at % 3..at % 3 + 1;
            for normalization in &normalizations[if lmax == 3 { 0..3 } else { turn }] {
                let normalization = *normalization;
                for (dtype, weighted) in [(DType::F32, false), (DType::F16, true)] {
                    let plan =
                        SphericalHarmonics { lmax, normalization, dtype }.plan(ctx, n).unwrap();
                    let tr = upload_directions(ctx, &r).unwrap();
                    let row = u64::from(dim(lmax)) + 3 * u64::from(weighted);
                    let layout = Layout { shape: [n, dim(lmax)], strides: [row, 1], offset: 0 };
                    let y = Guarded::new(ctx, layout, dtype);
                    let w = rng.vec((n * (lmax + 1)) as usize);
                    let tw = Tensor::upload(ctx, [n, lmax + 1], &w).unwrap();
                    let args = SphericalHarmonicsArgs {
                        r: tr.view(),
                        y: y.view(),
                        weight: weighted.then(|| tw.view()),
                    };
                    run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
                    let mut want = reference::spherical_harmonics(lmax, normalization, &flat);
                    if weighted {
                        // a "channel" for every vector
                        want = reference::weight_by_degree(lmax, &want, &to_f64(&w));
                    }
                    // the error of f32 arithmetic is that of the rounded direction, times the degree
                    let budget = 2.0
                        * (f64::from(lmax + 1) * DType::F32.unit_roundoff()
                            + if dtype == DType::F32 { 0.0 } else { dtype.unit_roundoff() });
                    let error = rel_rms(&y.read(ctx), &want);
                    assert!(
                        error < budget,
                        "{} lmax {lmax} {normalization:?} {dtype}: {error:.2e}",
                        device.name
                    );
                }
            }
        }
        // a zero vector has degree 0 only
        let zero = Tensor::upload(ctx, [1, 3], &[0.0f32; 3]).unwrap();
        let y = Guarded::new(ctx, Layout::contiguous([1, 16]), DType::F32);
        let plan = SphericalHarmonics { lmax: 3, ..Default::default() }.plan(ctx, 1).unwrap();
        run(ctx, |e| {
            plan.encode(
                ctx,
                e,
                &SphericalHarmonicsArgs { r: zero.view(), y: y.view(), weight: None },
            )
        })
        .unwrap();
        let got = y.read(ctx);
        assert!((f64::from(got[0]) - (0.25 / PI).sqrt()).abs() < 1e-7);
        assert!(got[1..].iter().all(|v| *v == 0.0), "{got:?}");
    });
}

#[test]
fn grid_and_fourier_transforms() {
    each_device(|device| {
        let ctx = &device.ctx;
        let mut rng = Rng(9);
        for lmax in [0u32, 1, 2, 5, 9, 16] {
            let shape = GauntShape { batch: 2, channels: 3 };
            let (b, c) = (shape.batch, shape.channels);
            let x = rng.vec((b * c * dim(lmax)) as usize);
            let tx = Tensor::upload(ctx, [b, c, dim(lmax)], &x).unwrap();

            let grid =
                SphereGrid { n_alpha: 2 * lmax + 4, ..SphereGrid::for_product(lmax, 0, lmax) };
            let plan = grid.plan(ctx, shape).unwrap();
            let f = Guarded::new(
                ctx,
                Layout::contiguous([b, c, grid.n_beta, grid.n_alpha]),
                DType::F32,
            );
            let back = Guarded::new(ctx, Layout::contiguous([b, c, dim(lmax)]), DType::F32);
            let s = scratch(ctx, plan.scratch_bytes());
            run(ctx, |encoder| {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                plan.sh_to_grid(ctx, &mut pass, tx.view(), f.view(), &s)?;
                plan.grid_to_sh(ctx, &mut pass, f.view(), back.view(), &s)
            })
            .unwrap();
            let mut r = Vec::new();
            for y in grid.nodes() {
                for a in grid.longitudes() {
                    let sin = (1.0 - y * y).sqrt();
                    r.extend([sin * a.sin(), y, sin * a.cos()]);
                }
            }
            let want = reference::evaluate(lmax, &to_f64(&x), &r);
            assert!(rel_rms(&f.read(ctx), &want) < ROUTES, "{} lmax {lmax}: values", device.name);
            assert!(
                rel_rms(&back.read(ctx), &to_f64(&x)) < ROUTES,
                "{} lmax {lmax}: back",
                device.name
            );

            let band = lmax + 2;
            let plan = SphereFourier { lmax, band, ..Default::default() }.plan(ctx, shape).unwrap();
            let side = 2 * band + 1;
            let series = Guarded::new(ctx, Layout::contiguous([b, c, side, side, 2]), DType::F32);
            let back = Guarded::new(ctx, Layout::contiguous([b, c, dim(lmax)]), DType::F32);
            run(ctx, |encoder| {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                plan.sh_to_fourier(ctx, &mut pass, tx.view(), series.view())?;
                plan.fourier_to_sh(ctx, &mut pass, series.view(), back.view())
            })
            .unwrap();
            let got = series.read(ctx);
            if lmax <= 9 {
                // the series with its margin of zeros
                let own = (2 * lmax + 1) as usize;
                let tight = reference::sh_to_fourier(lmax, &to_f64(&x));
                let mut want = vec![0.0; got.len()];
                for (row, block) in tight.chunks(own * own * 2).enumerate() {
                    for u in 0..own {
                        let at = (row * side as usize + u + 2) * side as usize * 2 + 4;
                        want[at..at + own * 2]
                            .copy_from_slice(&block[u * own * 2..(u + 1) * own * 2]);
                    }
                }
                assert!(rel_rms(&got, &want) < ROUTES, "{} lmax {lmax}: series", device.name);
            }
            assert!(
                rel_rms(&back.read(ctx), &to_f64(&x)) < ROUTES,
                "{} lmax {lmax}: from series",
                device.name
            );
        }
    });
}

#[test]
fn many_body_products_are_not_truncated_between() {
    each_device(|device| {
        let ctx = &device.ctx;
        let mut rng = Rng(4);
        for (factors, lmax_out) in [
            (vec![(2, 3)], 2),
            (vec![(3, 2)], 6),
            (vec![(1, 4)], 4),
            (vec![(2, 1), (1, 1), (3, 1)], 3),
            (vec![(2, 2), (1, 1)], 7),
            (vec![(6, 3)], 6),
        ] {
            for algorithm in [Algorithm::Grid, Algorithm::Fourier] {
                let options = GauntManyBody {
                    factors: factors.clone(),
                    lmax_out,
                    algorithm: Some(algorithm),
                    ..Default::default()
                };
                let (b, c) = (2, 6);
                let plan = options.plan(ctx, GauntShape { batch: b, channels: c }).unwrap();
                let data: Vec<Vec<f32>> =
                    factors.iter().map(|f| rng.vec((b * c * dim(f.0)) as usize)).collect();
                let tensors: Vec<Tensor<3>> = data
                    .iter()
                    .zip(&factors)
                    .map(|(x, f)| Tensor::upload(ctx, [b, c, dim(f.0)], x).unwrap())
                    .collect();
                let views: Vec<_> = tensors.iter().map(Tensor::view).collect();
                let z = Guarded::new(ctx, Layout::contiguous([b, c, dim(lmax_out)]), DType::F32);
                let s = scratch(ctx, plan.scratch_bytes());
                let args = GauntManyBodyArgs { inputs: &views, z: z.view(), scratch: Some(&s) };
                run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
                let wide: Vec<Vec<f64>> = data.iter().map(|x| to_f64(x)).collect();
                let inputs: Vec<(u32, &[f64])> = factors
                    .iter()
                    .zip(&wide)
                    .flat_map(|(f, x)| (0..f.1).map(|_| (f.0, x.as_slice())))
                    .collect();
                let want = reference::gaunt_many_body(&inputs, lmax_out);
                let error = rel_rms(&z.read(ctx), &want);
                assert!(error < ROUTES, "{} {factors:?} {algorithm:?}: {error:.2e}", device.name);
            }
        }
    });
}

#[test]
fn convolution_gathers_and_sums_in_order() {
    each_device(|device| {
        let mut rng = Rng(6);
        let gpu = as_a_gpu(device);
        for (device, l1, l2, l3, algorithm) in [
            (device, 2, 2, 2, None),
            (device, 1, 3, 2, Some(Algorithm::Grid)),
            (device, 9, 2, 9, Some(Algorithm::Table)),
            (&gpu, 5, 2, 5, None),
            (&gpu, 6, 4, 3, None),
        ] {
            let ctx = &device.ctx;
            let (nodes, channels) = (7u32, 5u32);
            // node 3 has no edge; node 5 has most
            let mut edges: Vec<[u32; 2]> = (0..40)
                .map(|_| [rng.range(0, nodes), *rng.pick(&[0u32, 1, 2, 4, 5, 5, 5, 6])])
                .collect();
            edges.sort_by_key(|e| e[1]);
            let e = u32::try_from(edges.len()).unwrap();
            let options = GauntConvolution {
                lmax1: l1,
                lmax2: l2,
                lmax_out: l3,
                algorithm,
                ..Default::default()
            };
            let plan = options.plan(ctx, Graph { nodes, edges: &edges }, channels).unwrap();
            let x = rng.vec((nodes * channels * dim(l1)) as usize);
            let r: Vec<[f32; 3]> = (0..e).map(|_| std::array::from_fn(|_| rng.unit())).collect();
            let h = rng.vec((e * channels * (l2 + 1)) as usize);
            let tx = Tensor::upload(ctx, [nodes, channels, dim(l1)], &x).unwrap();
            let tr = upload_directions(ctx, &r).unwrap();
            let th = Tensor::upload(ctx, [e, channels, l2 + 1], &h).unwrap();
            let y = Guarded::new(ctx, Layout::contiguous([e, dim(l2)]), DType::F32);
            let messages =
                Guarded::new(ctx, Layout::contiguous([e, channels, dim(l3)]), DType::F32);
            let once = || {
                let out =
                    Guarded::new(ctx, Layout::contiguous([nodes, channels, dim(l3)]), DType::F32);
                let args = GauntConvolutionArgs {
                    x: tx.view(),
                    r: tr.view(),
                    filter: th.view(),
                    y: y.view(),
                    messages: messages.view(),
                    out: Some(out.view()),
                    scratch: None,
                };
                run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
                out.read(ctx)
            };
            let got = once();
            assert_eq!(got, once(), "{}: two runs differ", device.name);

            let (d1, d2, d3) = (dim(l1) as usize, dim(l2) as usize, dim(l3) as usize);
            let harmonics = reference::spherical_harmonics(
                l2,
                ShNormalization::Integral,
                &to_f64(r.as_flattened()),
            );
            let (mut gathered, mut filtered) = (Vec::new(), Vec::new());
            for (k, edge) in edges.iter().enumerate() {
                for ch in 0..channels as usize {
                    let row = edge[0] as usize * channels as usize + ch;
                    gathered.extend(to_f64(&x[row * d1..(row + 1) * d1]));
                    let own =
                        &h[(k * channels as usize + ch) * (l2 as usize + 1)..][..l2 as usize + 1];
                    filtered.extend(reference::weight_by_degree(
                        l2,
                        &harmonics[k * d2..(k + 1) * d2],
                        &to_f64(own),
                    ));
                }
            }
            let z = reference::gaunt_tensor_product(l1, l2, l3, &gathered, &filtered);
            let row = channels as usize * d3;
            let mut want = vec![0.0; nodes as usize * row];
            for (edge, z) in edges.iter().zip(z.chunks(row)) {
                want[edge[1] as usize * row..][..row].iter_mut().zip(z).for_each(|(w, z)| *w += z);
            }
            assert!(rel_rms(&y.read(ctx), &harmonics) < ROUTES, "{}", device.name);
            assert!(rel_rms(&messages.read(ctx), &z) < ROUTES, "{}", device.name);
            assert!(rel_rms(&got, &want) < ROUTES, "{}", device.name);
            assert!(got[3 * row..4 * row].iter().all(|v| *v == 0.0), "a node without edges");
        }
    });
}

#[test]
fn clebsch_gordan_has_every_path() {
    each_device(|device| {
        let ctx = &device.ctx;
        let cg = ClebschGordan {
            irreps1: "2x0e+1x1o+2x3e".parse().unwrap(),
            irreps2: "1x2o+3x1e".parse().unwrap(),
            ..Default::default()
        };
        let batch = 6u32;
        let plan = cg.plan(ctx, batch).unwrap();
        let [n1, n2, n3] = plan.dims();
        let mut rng = Rng(8);
        let (x, y) = (rng.vec((batch * n1) as usize), rng.vec((batch * n2) as usize));
        let (tx, ty) = (
            Tensor::upload(ctx, [batch, n1], &x).unwrap(),
            Tensor::upload(ctx, [batch, n2], &y).unwrap(),
        );
        let z = Guarded::new(ctx, Layout::contiguous([batch, n3]), DType::F32);
        run(ctx, |encoder| {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            plan.encode_pass(ctx, &mut pass, tx.view(), ty.view(), z.view())
        })
        .unwrap();
        let mut want = vec![0.0; (batch * n3) as usize];
        let starts = |irreps: &Irreps| {
            let lengths = irreps.0.iter().map(|i| (i.mul * (2 * i.l + 1)) as usize);
            lengths.scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect::<Vec<usize>>()
        };
        let (s1, s2) = (starts(&cg.irreps1), starts(&cg.irreps2));
        for path in plan.paths() {
            let block = |i: Irrep, start: usize| reference::Block { mul: i.mul, l: i.l, start };
            let blocks = [
                block(cg.irreps1.0[path.first], s1[path.first]),
                block(cg.irreps2.0[path.second], s2[path.second]),
                block(path.out, path.start as usize),
            ];
            let widths = [n1, n2, n3].map(|n| n as usize);
            reference::clebsch_gordan(blocks, &to_f64(&x), &to_f64(&y), &mut want, widths);
        }
        let error = rel_rms(&z.read(ctx), &want);
        assert!(error < 4.0 * DType::F32.unit_roundoff(), "{}: {error:.2e}", device.name);
    });
}

/// Multiplicity, degree and parity, as the reference takes them.
fn list(irreps: &Irreps) -> Vec<(u32, u32, bool)> {
    irreps.0.iter().map(|i| (i.mul, i.l, i.odd)).collect()
}

/// Rows with room between and an offset.
fn loose(rng: &mut Rng, [b, n]: [u32; 2]) -> Layout<2> {
    let row = u64::from(n) + u64::from(*rng.pick(&[0u32, 1, 2, 3]));
    let offset = u64::from(*rng.pick(&[0u32, 4, 5]));
    Layout { shape: [b, n], strides: [row, 1], offset }
}

#[test]
fn clebsch_gordan_keeps_what_is_asked() {
    each_device(|device| {
        let ctx = &device.ctx;
        let mut rng = Rng(18);
        let cases = [
            ("2x1o+1x4e", "1x2e+2x3o", None),
            ("2x1o+1x4e", "1x2e+2x3o", Some("1o+3o")),
            ("2x1o+1x4e", "1x2e+2x3o", Some("4e+2o+0e+5o")),
            ("3x0e+2x1o+1x2e", "1x0e+1x1o+1x2e", Some("0e+1o")),
            // an irrep with either parity; a degree that no path reaches; nothing at all
            ("1x1e+2x1o+1x0o", "1x1o+1x1e", Some("1e")),
            ("1x1e+2x1o+1x0o", "1x1o+1x1e", Some("7e+0o")),
            ("1x1e", "2x1e", Some("3o")),
            ("1x1e", "2x1e", Some("")),
        ];
        for (at, (a, b, kept)) in cases.into_iter().enumerate() {
            let norm = at % 2 == 1;
            let dtype = [DType::F32, DType::F16, DType::BF16][at % 3];
            let filter: Option<Irreps> = kept.map(|kept| kept.parse().unwrap());
            let cg = ClebschGordan {
                irreps1: a.parse().unwrap(),
                irreps2: b.parse().unwrap(),
                lmax_out: None,
                filter: filter.clone(),
                normalization: if norm {
                    IrrepNormalization::Norm
                } else {
                    IrrepNormalization::Component
                },
                dtype,
            };
            let what = format!("{} {a} x {b} to {kept:?}", device.name);
            let batch = [5u32, 65][at % 2];
            let plan = cg.plan(ctx, batch).unwrap();
            let [n1, n2, n3] = plan.dims();
            let (lx, ly) = (loose(&mut rng, [batch, n1]), loose(&mut rng, [batch, n2]));
            let x = rounded(&rng.vec((batch * n1) as usize), dtype);
            let y = rounded(&rng.vec((batch * n2) as usize), dtype);
            let (tx, ty) =
                (upload_as(ctx, lx, &x, dtype).unwrap(), upload_as(ctx, ly, &y, dtype).unwrap());
            let z = Guarded::new(ctx, loose(&mut rng, [batch, n3]), dtype);
            run(ctx, |encoder| {
                let (x, y) = (tx.view_as(lx)?, ty.view_as(ly)?);
                plan.encode(ctx, encoder, x, y, z.view())
            })
            .unwrap();
            let keep = |l: u32, odd: bool| {
                filter.as_ref().is_none_or(|f| f.0.iter().any(|i| i.l == l && i.odd == odd))
            };
            let (out, want) = reference::full_tensor_product(
                [&list(&cg.irreps1), &list(&cg.irreps2)],
                &keep,
                norm,
                [&to_f64(&x), &to_f64(&y)],
                batch as usize,
            );
            assert_eq!(list(&cg.irreps_out()), out, "{what}");
            let error = rel_rms(&z.read(ctx), &want);
            assert!(error < 4.0 * dtype.unit_roundoff(), "{what}: {error:.2e}");
        }
    });
}

/// Runs a weighted product of rows that lie loosely, and compares.
fn weighted_case(
    device: &Device,
    rng: &mut Rng,
    product: &WeightedTensorProduct,
    batch: u32,
    shared: bool,
) {
    let (ctx, dtype) = (&device.ctx, product.dtype);
    let what = format!("{}: {product:?} {batch} {shared}", device.name);
    let plan = product.plan(ctx, batch).unwrap();
    let [n1, n2, n3] = plan.dims();
    let rows = if shared { 1 } else { batch };
    let [lx, ly, lw] = [[batch, n1], [batch, n2], [rows, plan.weights()]].map(|s| loose(rng, s));
    let x = rounded(&rng.vec((batch * n1) as usize), dtype);
    let y = rounded(&rng.vec((batch * n2) as usize), dtype);
    let w = rng.vec((rows * plan.weights()) as usize);
    let tx = upload_as(ctx, lx, &x, dtype).unwrap();
    let ty = upload_as(ctx, ly, &y, dtype).unwrap();
    let tw = upload_as(ctx, lw, &w, DType::F32).unwrap();
    let z = Guarded::new(ctx, loose(rng, [batch, n3]), dtype);
    let scratch = scratch(ctx, plan.scratch_bytes());
    let args = WeightedTensorProductArgs {
        x: tx.view_as(lx).unwrap(),
        y: ty.view_as(ly).unwrap(),
        w: tw.view_as(lw).unwrap(),
        z: z.view(),
        scratch: (plan.scratch_bytes() > 0).then_some(&scratch),
    };
    run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
    let got = z.read(ctx);
    run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
    assert_eq!(got, z.read(ctx), "{what}: two runs differ");

    let paths: Vec<reference::WeightedPath> = product
        .instructions
        .iter()
        .map(|i| reference::WeightedPath {
            places: [i.first, i.second, i.out],
            mixes: i.connection == Connection::Uvw,
        })
        .collect();
    let lists = [&product.irreps1, &product.irreps2, &product.irreps_out].map(list);
    let want = reference::weighted_tensor_product(
        lists.each_ref().map(Vec::as_slice),
        &paths,
        product.irrep_normalization == IrrepNormalization::Norm,
        product.path_normalization == PathNormalization::Path,
        &to_f64(&x),
        &to_f64(&y),
        &to_f64(&w),
        batch as usize,
    );
    let error = rel_rms(&got, &want);
    assert!(error < 8.0 * dtype.unit_roundoff(), "{what}: {error:.2e}");
}

#[test]
fn weighted_products_agree_with_the_definition() {
    each_device(|device| {
        let mut rng = Rng(21);
        let full = WeightedTensorProduct::fully_connected(
            "4x0e+3x1o+2x2e".parse().unwrap(),
            "1x0e+1x1o+1x2e".parse().unwrap(),
            "5x0e+4x1o+3x2e+2x0o".parse().unwrap(),
        );
        let own = |out: &str, all: &[[usize; 3]]| WeightedTensorProduct {
            irreps1: "33x0e+5x1o+2x1e".parse().unwrap(),
            irreps2: "1x0e+2x1o+1x2e".parse().unwrap(),
            irreps_out: out.parse().unwrap(),
            instructions: all
                .iter()
                .map(|&[first, second, out]| Instruction {
                    first,
                    second,
                    out,
                    connection: Connection::Uvu,
                })
                .collect(),
            ..Default::default()
        };
        // an irrep of either parity, an output that nothing reaches, one reached three times
        let apart = own(
            "33x0e+1x4o+5x1o+2x1e+33x1o+2x1o",
            &[
                [0, 0, 0],
                [1, 0, 2],
                [1, 2, 2],
                [2, 0, 3],
                [2, 2, 3],
                [0, 1, 4],
                [2, 1, 5],
                [2, 1, 5],
            ],
        );
        let mut mixed = own("5x1o+33x0e", &[[1, 0, 0], [1, 2, 0], [0, 0, 1]]);
        for instruction in [[0, 1, 0], [1, 1, 1], [2, 1, 0]] {
            let [first, second, out] = instruction;
            let connection = Connection::Uvw;
            mixed.instructions.insert(1, Instruction { first, second, out, connection });
        }
        let all = [full, apart, mixed];
        for (at, batch) in [1u32, 2, 17, 63, 64, 65].into_iter().enumerate() {
            let product = WeightedTensorProduct {
                irrep_normalization: [IrrepNormalization::Component, IrrepNormalization::Norm]
                    [at / 3],
                path_normalization: [PathNormalization::Path, PathNormalization::Element][at % 2],
                dtype: [DType::F32, DType::F16, DType::F32, DType::BF16][at % 4],
                ..all[at % 3].clone()
            };
            for shared in [true, false] {
                weighted_case(device, &mut rng, &product, batch, shared);
            }
        }
        // no paths: zeros everywhere, no weights
        weighted_case(device, &mut rng, &own("2x1o", &[]), 3, true);
        // irreps without copies
        let none = WeightedTensorProduct::fully_connected(
            "0x0e+2x1o".parse().unwrap(),
            "1x0e+0x1o".parse().unwrap(),
            "3x1o+0x0e+2x0e".parse().unwrap(),
        );
        weighted_case(device, &mut rng, &none, 4, false);
    });
}

#[test]
fn bad_products_of_irreps_are_refused_with_numbers() {
    let device = &devices()[0];
    let ctx = &device.ctx;
    let irreps: Irreps = "2x0e+3x1o".parse().unwrap();
    let cg =
        ClebschGordan { irreps1: irreps.clone(), irreps2: irreps.clone(), ..Default::default() };
    for (filter, parts) in [
        ("0e+1o+0e", ["filter", "each irrep once", "1x0e at 2"]),
        ("0e+2x1o", ["filter", "multiplicity 1", "2x1o at 1"]),
    ] {
        let filter = Some(filter.parse().unwrap());
        let parts = [&["clebsch_gordan"], &parts[..]].concat();
        refused(ClebschGordan { filter, ..cg.clone() }.plan(ctx, 1), &parts);
    }
    let product =
        WeightedTensorProduct::fully_connected(irreps.clone(), irreps.clone(), irreps.clone());
    let with = |first, second, out, connection| {
        let mut product = product.clone();
        product.instructions.push(Instruction { first, second, out, connection });
        product.plan(ctx, 2)
    };
    let (uvw, uvu) = (Connection::Uvw, Connection::Uvu);
    let op = "weighted_tensor_product";
    refused(with(2, 0, 0, uvw), &[op, "first", "below 2", "2 in instruction 4"]);
    refused(with(0, 3, 0, uvw), &[op, "second", "below 2", "3 in instruction 4"]);
    refused(with(0, 0, 9, uvw), &[op, "out", "below 2", "9 in instruction 4"]);
    refused(with(1, 1, 1, uvw), &[op, "parity", "3x1o and 3x1o to 3x1o in instruction 4"]);
    refused(with(0, 0, 1, uvw), &[op, "degree", "2x0e and 2x0e to 3x1o in instruction 4"]);
    refused(with(0, 1, 1, uvu), &[op, "2 copies", "2x0e and 3x1o to 3x1o in instruction 4"]);
    let deep = WeightedTensorProduct { irreps2: "1x17e".parse().unwrap(), ..product.clone() };
    refused(deep.plan(ctx, 1), &[op, "irreps2", "16", "17"]);

    let plan = product.plan(ctx, 2).unwrap();
    let row = |n| Tensor::<2>::zeros(ctx, [2, n], DType::F32).unwrap();
    let (x, y, z, w) = (row(11), row(11), row(11), row(plan.weights()));
    let args = WeightedTensorProductArgs {
        x: x.view(),
        y: y.view(),
        w: w.view(),
        z: z.view(),
        scratch: None,
    };
    let encode = |args: &WeightedTensorProductArgs<'_>| run(ctx, |e| plan.encode(ctx, e, args));
    let n = plan.weights();
    assert_eq!(u64::from(n), 2 * 2 * 2 + 3 * (2 * 3 * 3));
    refused(encode(&args), &[op, "scratch", "none given"]);
    let buffer = scratch(ctx, plan.scratch_bytes());
    let args = WeightedTensorProductArgs { scratch: Some(&buffer), ..args };
    encode(&args).unwrap();
    let short = row(n - 1);
    let short = WeightedTensorProductArgs { w: short.view(), ..args };
    refused(
        encode(&short),
        &[op, "w", &format!("[1, {n}] or [2, {n}]"), &format!("[2, {}]", n - 1)],
    );
    let three = Tensor::<2>::zeros(ctx, [3, n], DType::F32).unwrap();
    let three = WeightedTensorProductArgs { w: three.view(), ..args };
    refused(encode(&three), &[op, "w", &format!("[3, {n}]")]);
    let same = WeightedTensorProductArgs { z: x.view(), ..args };
    refused(encode(&same), &[op, "z", "shares its buffer"]);
}

/// Directions of vectors of any length: denormal numbers, which drivers may take for zero in their
/// arithmetic, and numbers whose squares or whose reciprocals are none.
#[test]
fn harmonics_of_the_shortest_and_longest_vectors() {
    each_device(|device| {
        let ctx = &device.ctx;
        let tiny = f32::from_bits(1);
        let mut r = vec![
            [3e-40, -4e-40, 1e-41],
            [tiny, 0.0, 0.0],
            [tiny, -tiny, 2.0 * tiny],
            // the parts of a vector on either side of the smallest ordinary number
            [f32::MIN_POSITIVE, 0.5 * f32::MIN_POSITIVE, -0.9 * f32::MIN_POSITIVE],
            [1e-38, 2e-39, -3e-39],
            [2e-37, 3e-39, -1e-38],
            [f32::MAX, -f32::MAX, f32::MAX],
            [3e38, 1e38, -2e38],
            [0.0, 3e38, 1e-30],
            [0.0, -1e-45, 0.0],
        ];
        let mut rng = Rng(3);
        for exponent in [-40, -38, -37, -30, -19, -18, 0, 17, 18, 19, 25, 37] {
            let size = 10f64.powi(exponent);
            r.push(std::array::from_fn(|_| (size * f64::from(rng.unit())) as f32));
        }
        let n = u32::try_from(r.len()).unwrap();
        let tr = upload_directions(ctx, &r).unwrap();
        let lmax = 3;
        let plan = SphericalHarmonics { lmax, ..Default::default() }.plan(ctx, n).unwrap();
        let y = Guarded::new(ctx, Layout::contiguous([n, dim(lmax)]), DType::F32);
        let args = SphericalHarmonicsArgs { r: tr.view(), y: y.view(), weight: None };
        run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
        let row = dim(lmax) as usize;
        for (r, got) in r.iter().zip(y.read(ctx).chunks(row)) {
            // exact in f64, and scaled there
            let exact = to_f64(r);
            let size = exact.iter().fold(0f64, |m, x| m.max(x.abs()));
            let unit: Vec<f64> = exact.iter().map(|x| x / size).collect();
            let want = reference::spherical_harmonics(lmax, ShNormalization::Integral, &unit);
            let error = rel_rms(got, &want);
            assert!(error < 5e-7, "{}: {r:?}: {error:.2e}", device.name);
        }
    });
}

/// A vector without direction has degree 0 only, whatever the weights of the others are.
#[test]
fn a_zero_vector_hides_the_weights_of_its_degrees() {
    each_device(|device| {
        let ctx = &device.ctx;
        let tr = Tensor::upload(ctx, [2, 3], &[0.0f32, -0.0, 0.0, 0.0, 2.0, 0.0]).unwrap();
        let plan = SphericalHarmonics { lmax: 2, ..Default::default() }.plan(ctx, 2).unwrap();
        let weight = [0.5, f32::NAN, f32::INFINITY, 1.0, 2.0, 0.0];
        let weight = Tensor::upload(ctx, [2, 3], &weight).unwrap();
        let y = Guarded::new(ctx, Layout::contiguous([2, 9]), DType::F32);
        let args =
            SphericalHarmonicsArgs { r: tr.view(), y: y.view(), weight: Some(weight.view()) };
        run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
        let y0 = (0.25 / PI).sqrt();
        let mut want = vec![0.0; 18];
        (want[0], want[9], want[11]) = (0.5 * y0, y0, 2.0 * (0.75 / PI).sqrt());
        let got = y.read(ctx);
        assert!(rel_rms(&got, &want) < 5e-7, "{}: {got:?}", device.name);
    });
}

/// What belongs to no edge of the plan has no effect: rows past the edges, nodes that no edge leaves,
/// what was in the outputs.
#[test]
fn what_no_edge_uses_has_no_effect() {
    each_device(|device| {
        let ctx = &device.ctx;
        let mut rng = Rng(16);
        for algorithm in [Algorithm::Grid, Algorithm::Table] {
            let (l, nodes, channels) = (2u32, 6u32, 3u32);
            // node 1 sends nothing, nodes 0 and 4 get nothing
            let given = [[0, 3], [2, 5], [5, 1], [4, 3], [3, 2], [0, 5], [2, 3]];
            let sorted = SortedEdges::new(nodes, &given).unwrap();
            let (e, room) = (7u32, 10u32);
            let options =
                GauntConvolution { lmax1: l, lmax2: l, lmax_out: l, ..Default::default() };
            let options = GauntConvolution { algorithm: Some(algorithm), ..options };
            let plan = options.plan(ctx, sorted.graph(), channels).unwrap();
            let x = rng.vec((nodes * channels * dim(l)) as usize);
            let r = rng.vec((e * 3) as usize);
            let h = rng.vec((e * (l + 1)) as usize);
            let outputs = |poison: Option<f32>| {
                let (mut x, mut r, mut h) = (x.clone(), r.clone(), h.clone());
                r.resize((room * 3) as usize, poison.unwrap_or(0.5));
                h.resize((room * (l + 1)) as usize, poison.unwrap_or(0.5));
                if let Some(poison) = poison {
                    let row = (channels * dim(l)) as usize;
                    x[row..2 * row].fill(poison);
                }
                let tx = Tensor::upload(ctx, [nodes, channels, dim(l)], &x).unwrap();
                let tr = Tensor::upload(ctx, [room, 3], &r).unwrap();
                let th = Tensor::upload(ctx, [room, l + 1], &h).unwrap();
                let filter = Layout {
                    shape: [e, channels, l + 1],
                    strides: [u64::from(l + 1), 0, 1],
                    offset: 0,
                };
                let rows =
                    |n| Guarded::new(ctx, Layout::contiguous([n, channels, dim(l)]), DType::F32);
                let y = Guarded::new(ctx, Layout::contiguous([e, dim(l)]), DType::F32);
                let (messages, out) = (rows(e), rows(nodes));
                let args = GauntConvolutionArgs {
                    x: tx.view(),
                    r: tr.view_as(Layout::contiguous([e, 3])).unwrap(),
                    filter: th.view_as(filter).unwrap(),
                    y: y.view(),
                    messages: messages.view(),
                    out: Some(out.view()),
                    scratch: None,
                };
                run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();
                (y.read(ctx), messages.read(ctx), out.read(ctx))
            };
            let clean = outputs(None);
            let row = (channels * dim(l)) as usize;
            for node in [0, 4] {
                assert!(clean.2[node * row..][..row].iter().all(|v| *v == 0.0), "{}", device.name);
            }
            assert!(clean.2.iter().all(|v| v.is_finite()));
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert_eq!(clean, outputs(Some(poison)), "{}: {algorithm:?} {poison}", device.name);
            }
        }
    });
}

#[test]
fn edges_are_sorted_and_back() {
    let mut rng = Rng(4);
    for (nodes, count) in [(1, 0), (1, 5), (0, 0), (9, 1), (7, 200), (300, 40)] {
        let given: Vec<[u32; 2]> =
            (0..count).map(|_| [rng.range(0, nodes), rng.range(0, nodes)]).collect();
        let sorted = SortedEdges::new(nodes, &given).unwrap();
        let mut want: Vec<u32> = (0..count).collect();
        want.sort_by_key(|e| given[*e as usize][1]);
        assert_eq!(sorted.order(), want);
        assert_eq!(sorted.edges(), sorted.sort("edges", &given).unwrap());
        assert_eq!(sorted.unsort("edges", sorted.edges()).unwrap(), given);
        assert_eq!(sorted.starts().len(), nodes as usize + 1);
        for node in 0..nodes {
            let [from, to] = [0, 1].map(|k| sorted.starts()[node as usize + k] as usize);
            assert!(sorted.edges()[from..to].iter().all(|e| e[1] == node));
        }
        assert_eq!(*sorted.starts().last().unwrap(), count);
        let rows = rng.vec(3 * count as usize);
        let moved = sorted.sort("r", &rows).unwrap();
        for (at, e) in sorted.order().iter().enumerate() {
            assert_eq!(moved[3 * at..][..3], rows[3 * *e as usize..][..3]);
        }
        assert_eq!(sorted.unsort("r", &moved).unwrap(), rows);
    }
    let op = "sorted_edges";
    refused(SortedEdges::new(3, &[[0, 1], [3, 2]]), &[op, "source", "below 3", "3 in edge 1"]);
    refused(SortedEdges::new(3, &[[0, 5]]), &[op, "destination", "below 3", "5 in edge 0"]);
    refused(SortedEdges::new(u32::MAX, &[]), &[op, "nodes", "268435456", "4294967295"]);
    let two = SortedEdges::new(2, &[[0, 1], [1, 0]]).unwrap();
    refused(two.sort("lengths", &[1.0; 3]), &[op, "lengths", "2 edges", "3"]);
    let none = SortedEdges::new(2, &[]).unwrap();
    refused(none.unsort("lengths", &[1.0]), &[op, "lengths", "0 edges", "1"]);
}

#[test]
fn empty_problems_do_nothing() {
    for device in devices() {
        let ctx = &device.ctx;
        let x = Tensor::zeros(ctx, [0, 4, 9], DType::F32).unwrap();
        let z = Tensor::zeros(ctx, [0, 4, 9], DType::F32).unwrap();
        let plan =
            GauntTensorProduct::new(2, 2).plan(ctx, GauntShape { batch: 0, channels: 4 }).unwrap();
        run(ctx, |e| plan.encode(ctx, e, &GauntArgs::new(x.view(), x.view(), z.view()))).unwrap();
    }
}

/// The message of a refusal, which must hold all of `parts`.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, parts: &[&str]) {
    let message = result.expect_err("should be refused").to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn bad_input_is_refused_with_numbers() {
    let Some(device) = devices().first() else { return };
    let ctx = &device.ctx;
    let shape = GauntShape { batch: 2, channels: 3 };
    let product = |l1, l2, l3| GauntTensorProduct {
        lmax1: l1,
        lmax2: l2,
        lmax_out: l3,
        ..Default::default()
    };
    refused(product(33, 2, 2).plan(ctx, shape), &["gaunt_tensor_product", "lmax1", "32", "33"]);
    refused(product(2, 40, 2).plan(ctx, shape), &["lmax2", "32", "40"]);
    refused(product(2, 2, 65).plan(ctx, shape), &["lmax_out", "64", "65"]);
    let vector = GauntTensorProduct {
        coupling: Coupling::Vector,
        algorithm: Some(Algorithm::Fourier),
        ..product(2, 2, 2)
    };
    refused(vector.plan(ctx, shape), &["algorithm", "Fourier", "Grid"]);

    let plan = product(2, 1, 2).plan(ctx, shape).unwrap();
    let tensor = |l| Tensor::<3>::zeros(ctx, [2, 3, dim(l)], DType::F32).unwrap();
    let (x, y, z) = (tensor(2), tensor(1), tensor(2));
    let encode = |args: &GauntArgs<'_>| {
        let mut encoder = ctx.device.create_command_encoder(&Default::default());
        plan.encode(ctx, &mut encoder, args)
    };
    let good = GauntArgs::new(x.view(), y.view(), z.view());
    // mismatched degrees
    refused(encode(&GauntArgs { y: x.view(), ..good }), &["y", "[2, 3, 4]", "[2, 3, 9]"]);
    refused(encode(&GauntArgs { z: y.view(), ..good }), &["z", "[2, 3, 9]", "[2, 3, 4]"]);
    refused(encode(&GauntArgs { z: x.view(), ..good }), &["output z", "x", "buffer"]);
    // weights of the wrong length
    let w = Tensor::<2>::zeros(ctx, [3, 4], DType::F32).unwrap();
    refused(
        encode(&GauntArgs { weight1: Some(w.view()), ..good }),
        &["weight1", "[3, 3]", "[3, 4]"],
    );
    let w = Tensor::<2>::zeros(ctx, [2, 3], DType::F32).unwrap();
    refused(
        encode(&GauntArgs { weight_out: Some(w.view()), ..good }),
        &["weight_out", "[3, 3]", "[2, 3]"],
    );
    let half = Tensor::<3>::zeros(ctx, [2, 3, 9], DType::F16).unwrap();
    refused(encode(&GauntArgs { x: half.view(), ..good }), &["x", "f32", "f16"]);
    let large = GauntTensorProduct { algorithm: Some(Algorithm::Grid), ..product(20, 20, 20) };
    let plan = large.plan(ctx, GauntShape { batch: 1, channels: 1 }).unwrap();
    let (x, z) = (
        Tensor::<3>::zeros(ctx, [1, 1, 441], DType::F32).unwrap(),
        Tensor::<3>::zeros(ctx, [1, 1, 441], DType::F32).unwrap(),
    );
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    let need = plan.scratch_bytes().to_string();
    refused(
        plan.encode(ctx, &mut encoder, &GauntArgs::new(x.view(), x.view(), z.view())),
        &["scratch", &need],
    );

    // directions
    refused(
        SphericalHarmonics { lmax: 17, ..Default::default() }.plan(ctx, 1),
        &["lmax", "16", "17"],
    );
    refused(check_directions(&[[1.0, 0.0, 0.0], [0.0; 3]]), &["r", "other than zero", "at 1"]);
    refused(check_directions(&[[f32::NAN, 0.0, 0.0]]), &["finite", "NaN", "at 0"]);

    // graphs
    let conv = GauntConvolution { lmax1: 1, lmax2: 1, lmax_out: 1, ..Default::default() };
    refused(
        conv.plan(ctx, Graph { nodes: 3, edges: &[[0, 1], [3, 2]] }, 1),
        &["source", "below 3", "3 in edge 1"],
    );
    refused(
        conv.plan(ctx, Graph { nodes: 3, edges: &[[0, 1], [0, 9]] }, 1),
        &["destination", "below 3", "9 in edge 1"],
    );
    refused(
        conv.plan(ctx, Graph { nodes: 3, edges: &[[0, 2], [0, 1]] }, 1),
        &["order", "1 in edge 1 after 2"],
    );

    // several factors
    let many = |factors: &[(u32, u32)], lmax_out| {
        GauntManyBody { factors: factors.to_vec(), lmax_out, ..Default::default() }.plan(ctx, shape)
    };
    refused(many(&[], 1), &["factors", "0"]);
    refused(many(&[(2, 0)], 1), &["power", "0"]);
    refused(many(&[(20, 4)], 1), &["degree", "64", "80"]);
    let plan = many(&[(1, 1), (1, 1)], 1).unwrap();
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    let args = GauntManyBodyArgs { inputs: &[y.view()], z: z.view(), scratch: None };
    refused(plan.encode(ctx, &mut encoder, &args), &["inputs", "2", "1"]);

    // transforms
    let grid = |lmax, n_beta, n_alpha| SphereGrid { lmax, n_beta, n_alpha, dtype: DType::F32 };
    refused(grid(3, 0, 7).plan(ctx, shape), &["n_beta", "0"]);
    let coarse = grid(3, 3, 7).plan(ctx, shape).unwrap();
    let f = Tensor::<4>::zeros(ctx, [2, 3, 3, 7], DType::F32).unwrap();
    let s = scratch(ctx, coarse.scratch_bytes());
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    let x = tensor(3);
    refused(coarse.grid_to_sh(ctx, &mut pass, f.view(), x.view(), &s), &["4 by 7", "3 by 7"]);
    refused(
        SphereFourier { lmax: 3, band: 2, dtype: DType::F32 }.plan(ctx, shape),
        &["band", "3", "2"],
    );
    refused("1x2z".parse::<Irreps>(), &["irreps", "1x2z"]);
    let deep = ClebschGordan {
        irreps1: "1x17e".parse().unwrap(),
        irreps2: "1x0e".parse().unwrap(),
        ..Default::default()
    };
    refused(deep.plan(ctx, 1), &["irreps1", "16", "17"]);
}

#[test]
fn planner_prefers_the_table_at_small_degrees_only() {
    let caps = tilewise::Caps::minimum();
    assert_eq!(GauntTensorProduct::new(1, 1).select(&caps), Algorithm::Table);
    assert_eq!(GauntTensorProduct::new(8, 8).select(&caps), Algorithm::Grid);
    let forced =
        GauntTensorProduct { algorithm: Some(Algorithm::Fourier), ..GauntTensorProduct::new(1, 1) };
    assert_eq!(forced.select(&caps), Algorithm::Fourier);
    // whatever the planner chooses, a vector product has a route
    for (l, out) in (0..=4).flat_map(|l| (0..=2 * l).map(move |out| (l, out))) {
        let vector =
            GauntTensorProduct { coupling: Coupling::Vector, ..GauntTensorProduct::new(l, out) };
        assert_ne!(vector.select(&caps), Algorithm::Fourier, "{l} to {out}");
    }
}
