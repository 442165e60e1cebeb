//! Gaunt tensor products by every route, against a product by rustfft on the same processor and
//! against the full Clebsch-Gordan product, with the device's multiply-add and copy rates of the
//! same minute. `cargo bench --bench gaunt [-- LMAX..]`; `cargo test --benches` runs each kind of
//! case once, small.
#![allow(clippy::cast_possible_truncation, reason = "degrees and grids are small")]

#[path = "../src/bin/tilewise/bench/cases.rs"]
mod cases;
#[path = "../src/bin/tilewise/bench/route_cases.rs"]
mod route_cases;

use rayon::prelude::*;
use route_cases::{Case, Measured, ROUTES_ALL, Route, growth, inputs, measure, relative_rms};
use rustfft::{Fft, FftPlanner, num_complex::Complex};
use std::{f64::consts::PI, sync::Arc, time::Instant};
use tilewise::{
    Context, Result,
    gaunt::{Algorithm, ShNormalization},
    measure::median,
    reference,
};

/// The product by two-dimensional Fourier series and rustfft, two products at a time: `x + i y` is
/// one transform, and so are the products of a pair of rows on the way back.
struct Cpu {
    /// Grid of the torus: colatitudes, longitudes.
    size: [usize; 2],
    /// Entries `(place on the grid, factor)` of every input coefficient.
    to: Vec<Vec<(usize, Complex<f32>)>>,
    /// Likewise of every output coefficient.
    back: Vec<Vec<(usize, Complex<f32>)>>,
    /// Backward and forward, along longitudes and colatitudes.
    transforms: [[Arc<dyn Fft<f32>>; 2]; 2],
}

/// The next length whose prime factors are 2, 3 and 5.
fn smooth(n: usize) -> usize {
    (n..)
        .find(|&n| {
            let mut rest = n;
            for p in [2, 3, 5] {
                while rest.is_multiple_of(p) {
                    rest /= p;
                }
            }
            rest == 1
        })
        .unwrap_or(n)
}

/// A frequency `(s, t)` of the torus and the coefficient of `e^(i (s b + t a))`.
type Entry = ((i32, i32), Complex<f64>);

/// Fourier coefficients of every harmonic to `lmax`, without zeros. Along the meridian `a = 0` a
/// harmonic of order `m >= 0` is its function of colatitude, continued past the pole; that of `-m`
/// has the same, with a sine of longitude for the cosine.
fn series(lmax: u32) -> Vec<Vec<Entry>> {
    let (n, l_max) = ((lmax + 1).pow(2) as usize, lmax as i32);
    let around = 2 * l_max + 1;
    let angle = |i: i32| 2.0 * PI * f64::from(i) / f64::from(around);
    let meridian: Vec<f64> =
        (0..around).flat_map(|i| [0.0, angle(i).cos(), angle(i).sin()]).collect();
    let values = reference::spherical_harmonics(lmax, ShNormalization::Integral, &meridian);
    let mut all = vec![Vec::new(); n];
    for l in 0..=l_max {
        for m in 0..=l {
            let (cos, sin) = ((l * l + l + m) as usize, (l * l + l - m) as usize);
            for s in -l..=l {
                let sum: Complex<f64> = (0..around)
                    .map(|i| Complex::cis(-f64::from(s) * angle(i)) * values[i as usize * n + cos])
                    .sum();
                let c = sum / f64::from(around);
                if c.norm() < 1e-14 {
                    continue;
                }
                if m == 0 {
                    all[cos].push(((s, 0), c));
                } else {
                    all[cos].extend([((s, m), c / 2.0), ((s, -m), c / 2.0)]);
                    let half = c / Complex::new(0.0, 2.0);
                    all[sin].extend([((s, m), half), ((s, -m), -half)]);
                }
            }
        }
    }
    all
}

/// The integral of `e^(i n b) sin b` over half the circle.
fn half_circle(n: i32) -> Complex<f64> {
    match n {
        1 | -1 => Complex::new(0.0, f64::from(n) * PI / 2.0),
        n if n % 2 == 0 => Complex::new(2.0 / (1.0 - f64::from(n).powi(2)), 0.0),
        _ => Complex::ZERO,
    }
}

impl Cpu {
    fn new(lmax: u32, lmax_out: u32) -> Self {
        let degree = 2 * lmax as i32;
        let size =
            [smooth(2 * degree as usize + 1), smooth((degree as u32 + lmax_out) as usize + 1)];
        let place = |s: i32, t: i32| {
            let wrap = |f: i32, n: usize| f.rem_euclid(n as i32) as usize;
            wrap(s, size[0]) * size[1] + wrap(t, size[1])
        };
        let narrow = |c: Complex<f64>| Complex::new(c.re as f32, c.im as f32);
        let to = series(lmax)
            .iter()
            .map(|row| row.iter().map(|&((s, t), c)| (place(s, t), narrow(c))).collect())
            .collect();
        let scale = 2.0 * PI / (size[0] * size[1]) as f64;
        let back = series(lmax_out)
            .iter()
            .map(|row| {
                let mut orders: Vec<i32> = row.iter().map(|((_, t), _)| *t).collect();
                orders.sort_unstable();
                orders.dedup();
                let mut entries = Vec::new();
                for t in orders {
                    for s in -degree..=degree {
                        let sum: Complex<f64> = row
                            .iter()
                            .filter(|((_, order), _)| *order == t)
                            .map(|((u, _), c)| c * half_circle(s + u))
                            .sum();
                        if sum.norm() > 1e-15 {
                            entries.push((place(s, -t), narrow(sum * scale)));
                        }
                    }
                }
                entries
            })
            .collect();
        let mut planner = FftPlanner::new();
        let mut both = |n: usize| [planner.plan_fft_inverse(n), planner.plan_fft_forward(n)];
        let ([inverse, forward], [inverse_across, forward_across]) = (both(size[1]), both(size[0]));
        Self { size, to, back, transforms: [[inverse, inverse_across], [forward, forward_across]] }
    }

    /// In two dimensions; `other` holds the transpose between.
    fn transform(&self, which: usize, grid: &mut [Complex<f32>], other: &mut [Complex<f32>]) {
        let [rows, columns] = self.size;
        let transpose = |from: &[Complex<f32>], to: &mut [Complex<f32>], rows, columns| {
            for r in 0..rows {
                for c in 0..columns {
                    to[c * rows + r] = from[r * columns + c];
                }
            }
        };
        let [along, across] = &self.transforms[which];
        along.process(grid);
        transpose(grid, other, rows, columns);
        across.process(other);
        transpose(other, grid, columns, rows);
    }

    fn product(&self, x: &[f32], y: &[f32], z: &mut [f32]) {
        let (n, n_out) = (self.to.len(), self.back.len());
        let points = self.size[0] * self.size[1];
        x.par_chunks(2 * n)
            .zip(y.par_chunks(2 * n))
            .zip(z.par_chunks_mut(2 * n_out))
            .for_each_init(
                || [0; 3].map(|_| vec![Complex::default(); points]),
                |[grid, other, products], ((x, y), z)| {
                    products.fill(Complex::default());
                    for (row, (x, y)) in x.chunks(n).zip(y.chunks(n)).enumerate() {
                        grid.fill(Complex::default());
                        for ((x, y), entries) in x.iter().zip(y).zip(&self.to) {
                            let value = Complex::new(*x, *y);
                            entries.iter().for_each(|(at, c)| grid[*at] += c * value);
                        }
                        self.transform(0, grid, other);
                        for (p, fg) in products.iter_mut().zip(grid.iter()) {
                            let fg = fg.re * fg.im;
                            if row == 0 { p.re = fg } else { p.im = fg }
                        }
                    }
                    self.transform(1, products, other);
                    for (k, entries) in self.back.iter().enumerate() {
                        let sum: Complex<f32> =
                            entries.iter().map(|(at, c)| c * products[*at]).sum();
                        z[k] = sum.re;
                        if let Some(second) = z.get_mut(n_out + k) {
                            *second = sum.im;
                        }
                    }
                },
            );
    }
}

fn main() -> Result<()> {
    // cargo test --benches passes no --bench
    let quick = !std::env::args().any(|a| a == "--bench");
    let mut degrees: Vec<u32> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    if degrees.is_empty() {
        degrees = if quick { vec![2] } else { cases::DEGREES.to_vec() };
    }
    let samples = if quick { 1 } else { 9 };
    let ctx = Context::new_blocking()?;
    let info = ctx.device.adapter_info();
    println!(
        "{} ({}), {} {}, {} kernels; rustfft on {} threads",
        info.name,
        info.backend,
        info.driver,
        info.driver_info,
        ctx.caps.tier,
        rayon::current_num_threads()
    );
    println!(
        "us for one product; 'of peak': useful flops of the planner's choice against the measured\n\
         multiply-add rate; 'x copy': its time against moving its bytes once; * the planner's choice"
    );
    let sizes: &[[u32; 2]] = if quick { &[[4, 16]] } else { &[[8, 128], [128, 128], [1024, 128]] };
    for &[batch, channels] in sizes {
        for doubled in [false, true] {
            table(&ctx, [batch, channels], doubled, &degrees, samples)?;
        }
    }
    Ok(())
}

fn table(
    ctx: &Context,
    [batch, channels]: [u32; 2],
    doubled: bool,
    degrees: &[u32],
    samples: u32,
) -> Result<()> {
    println!("\n{batch} x {channels} products, l, l to {}", if doubled { "2 l" } else { "l" });
    print!("{:>4}", "l");
    for route in ROUTES_ALL {
        print!(" {:>9}", route.name());
    }
    println!(
        " {:>9} {:>8} {:>7} {:>8} {:>7} {:>7} {:>8} {:>8}",
        "rustfft", "GFLOP/s", "of peak", "of best", "x copy", "ms", "table/gr", "cpu/plan"
    );
    let mut all: Vec<Measured> = Vec::new();
    let mut cpu_times = Vec::new();
    for &lmax in degrees {
        let lmax_out = if doubled { 2 * lmax } else { lmax };
        let case = Case { lmax, lmax_out, batch, channels };
        if !case.fits() {
            println!("{lmax:>4} left out: a tensor of more than 128 MiB");
            continue;
        }
        // the baselines by coefficients take seconds where there are many
        let few = case.products() <= 1024;
        let wanted = |route| match route {
            Route::Gaunt(Algorithm::Table) => few || lmax <= 6,
            Route::ClebschGordan => few && lmax <= 8,
            Route::Gaunt(_) => true,
        };
        let (m, z) = measure(ctx, case, &wanted, samples)?;
        let cpu = Cpu::new(lmax, lmax_out);
        let [x, y] = inputs(&case);
        let mut theirs = vec![0.0; z.len()];
        let mut times = Vec::new();
        for sample in 0..=samples.min(5) {
            let started = Instant::now();
            cpu.product(&x, &y, &mut theirs);
            if sample > 0 {
                times.push(started.elapsed().as_secs_f64());
            }
        }
        let error = relative_rms(&z, &theirs);
        assert!(error < 2e-6, "{case:?}: {error:.1e} from rustfft's");
        let cpu = median(&mut times);
        let each = 1e6 / f64::from(case.products());
        print!("{lmax:>4}");
        for (route, seconds) in ROUTES_ALL.iter().zip(m.seconds) {
            let star = if *route == Route::Gaunt(m.planned) { "*" } else { "" };
            let text = seconds.map_or("-".into(), |s| format!("{star}{:.3}", s * each));
            print!(" {text:>9}");
        }
        let planned = m.planned_seconds().unwrap_or(f64::NAN);
        let ratio = match m.seconds {
            [Some(table), Some(grid), ..] => format!("{:.2}", table / grid),
            _ => "-".into(),
        };
        println!(
            " {:>9.3} {:>8.2} {:>6.1}% {:>8.2} {:>7.1} {:>7.2} {:>8} {:>8.1}",
            cpu * each,
            m.flops() / planned * 1e-9,
            100.0 * m.share_of_peak().unwrap_or(f64::NAN),
            m.planned_over_best().unwrap_or(f64::NAN),
            m.over_copy().unwrap_or(f64::NAN),
            planned * 1e3,
            ratio,
            cpu / planned
        );
        cpu_times.push((lmax, cpu));
        all.push(m);
        ctx.forget_kernels();
    }
    print!("growth from l = 4 on, time ~ l^e:");
    for (at, route) in ROUTES_ALL.iter().enumerate() {
        let times: Vec<_> =
            all.iter().filter_map(|m| m.seconds[at].map(|s| (m.case.lmax, s))).collect();
        if let Some(e) = growth(&times) {
            print!(" {} {e:.2},", route.name());
        }
    }
    if let Some(e) = growth(&cpu_times) {
        print!(" rustfft {e:.2},");
    }
    let mean = |f: &dyn Fn(&Measured) -> f64| all.iter().map(f).sum::<f64>() / all.len() as f64;
    println!(
        " mean peak {:.0} GFLOP/s, mean copy {:.1} GB/s, {}",
        mean(&|m| m.peak) * 1e-9,
        mean(&|m| m.copy) * 1e-9,
        all.last().map(|m| m.clock.to_string()).unwrap_or_default()
    );
    Ok(())
}
