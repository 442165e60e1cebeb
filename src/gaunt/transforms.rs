//! Coefficients to values on a grid of the sphere or to a Fourier series of the torus, and back.

use std::{
    f64::consts::{PI, SQRT_2},
    sync::Arc,
};

use super::{
    GauntShape, MAX_LMAX,
    basis::{column, gauss_legendre, theta_row},
    check_degree,
    maps::{Entry, Linear, Rows},
    product::check_scratch,
    program::{series, series_projection},
};
use crate::{
    Context, DType, Error, Layout, Result, TensorView, dispatch::distinct_outputs, home::Home,
};

const GRID: &str = "sphere_grid";
const TORUS: &str = "sphere_fourier";

/// Largest number of nodes along one axis of a grid.
pub const MAX_NODES: u32 = 1024;

/// A grid of the sphere: Gauss-Legendre nodes of `cos b = y`, increasing, by equidistant longitudes
/// `a_k = 2 pi k / n_alpha`; the point is `(sin b sin a, cos b, sin b cos a)`.
///
/// Synthesis is exact on any grid. Analysis returns the coefficients of a function that was
/// synthesised from degree `lmax`, and for a product of two such functions of degrees summing to
/// `d`, exactly if `n_beta >= (d + lmax) / 2 + 1` and `n_alpha >= d + lmax + 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SphereGrid {
    /// Degree of the coefficients, at most [`MAX_LMAX`].
    pub lmax: u32,
    /// Parallels, 1 to [`MAX_NODES`].
    pub n_beta: u32,
    /// Longitudes, 1 to [`MAX_NODES`].
    pub n_alpha: u32,
    /// Element type of both sides.
    pub dtype: DType,
}

/// A compiled [`SphereGrid`].
#[derive(Debug)]
pub struct SphereGridPlan {
    options: SphereGrid,
    shape: GauntShape,
    synthesis: [Linear; 2],
    /// Absent on a grid too coarse to analyse.
    analysis: Option<[Linear; 2]>,
    /// The device it was planned on.
    home: Arc<Home>,
}

/// Coefficients to the two-dimensional Fourier series of the function continued to the torus,
/// `f(b, a) = sum_(u, v) c[u, v] e^(i (u b + v a))`, `u, v = -band..=band`, and back.
///
/// The continuation past `b = pi` is by the Cartesian formula, `sin b` negative:
/// `f(2 pi - b, a + pi) = f(b, a)`. Going back integrates over the sphere, exactly, for any series
/// of that symmetry: the product of two series of bands summing to `band` gives the Gaunt product.
/// (Luo et al. 2024, arXiv:2401.10216, with the half-range integrals in closed form.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SphereFourier {
    /// Degree of the coefficients, at most [`MAX_LMAX`].
    pub lmax: u32,
    /// Band of the series, `lmax` to `2 * MAX_LMAX`; what lies past `lmax` is zero-filled.
    pub band: u32,
    /// Element type of both sides.
    pub dtype: DType,
}

/// A compiled [`SphereFourier`].
#[derive(Debug)]
pub struct SphereFourierPlan {
    options: SphereFourier,
    shape: GauntShape,
    forward: Linear,
    back: Linear,
    /// The device it was planned on.
    home: Arc<Home>,
}

/// `(l, m)` of an index.
fn degree_order(k: u32) -> (u32, i32) {
    let l = k.isqrt();
    (l, k.cast_signed() - (l * l + l).cast_signed())
}

/// Place of order `m` in a row of orders `-lmax..=lmax`.
fn order_at(m: i32, lmax: u32) -> u32 {
    lmax.saturating_add_signed(m)
}

/// `{ sqrt(2) sin(|m| a), 1, sqrt(2) cos(m a) }`
fn trig(m: i32, a: f64) -> f64 {
    match m.signum() {
        -1 => SQRT_2 * (f64::from(-m) * a).sin(),
        0 => 1.0,
        _ => SQRT_2 * (f64::from(m) * a).cos(),
    }
}

impl SphereGrid {
    /// The smallest grid that holds the product of two functions of degrees `lmax1`, `lmax2` so
    /// that its coefficients up to `lmax` are exact: for transforms of degree `lmax` or of the
    /// factors alike.
    pub fn for_product(lmax1: u32, lmax2: u32, lmax: u32) -> Self {
        let top = lmax1.saturating_add(lmax2).saturating_add(lmax);
        Self { lmax, n_beta: top / 2 + 1, n_alpha: top.saturating_add(1), dtype: DType::F32 }
    }

    /// `cos b` of the parallels, increasing.
    pub fn nodes(&self) -> Vec<f64> {
        gauss_legendre(self.n_beta).0
    }

    /// Quadrature weights of the points of each parallel: their sum over the grid is `4 pi`.
    pub fn weights(&self) -> Vec<f64> {
        let around = 2.0 * PI / f64::from(self.n_alpha);
        gauss_legendre(self.n_beta).1.iter().map(|w| w * around).collect()
    }

    /// The longitudes.
    pub fn longitudes(&self) -> Vec<f64> {
        (0..self.n_alpha).map(|k| 2.0 * PI * f64::from(k) / f64::from(self.n_alpha)).collect()
    }

    /// Checks the problem and makes the tables.
    ///
    /// # Errors
    /// [`Error::Shape`] for a degree or a grid out of range, [`Error::Limit`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, shape: GauntShape) -> Result<SphereGridPlan> {
        let lmax = self.lmax;
        check_degree(GRID, "lmax", lmax, 2 * MAX_LMAX)?;
        self.dtype.expect_float(GRID)?;
        for (what, n) in [("n_beta", self.n_beta), ("n_alpha", self.n_alpha)] {
            if n == 0 || n > MAX_NODES {
                return Err(Error::shape(GRID, what, format!("1 to {MAX_NODES}"), n));
            }
        }
        let orders = 2 * lmax + 1;
        let (nodes, weights) = (self.nodes(), self.weights());
        let rows: Vec<Vec<f64>> =
            nodes.iter().map(|&t| theta_row(lmax, t, ((1.0 - t) * (1.0 + t)).sqrt())).collect();
        let signed = -lmax.cast_signed()..=lmax.cast_signed();
        let mut up = Vec::new();
        for row in &rows {
            for m in signed.clone() {
                let n = m.unsigned_abs();
                let entry = |l: u32| Entry {
                    index: (l * l + l).saturating_add_signed(m),
                    degree: 0,
                    value: row[column(l, n)],
                };
                up.push((0, (n..=lmax).map(entry).collect()));
            }
        }
        let longitudes = self.longitudes();
        let around = |a: f64| {
            let entry = |m: i32| Entry { index: order_at(m, lmax), degree: 0, value: trig(m, a) };
            (0, signed.clone().map(entry).collect())
        };
        let across: Vec<_> = longitudes.iter().map(|&a| around(a)).collect();
        let synthesis = [Linear::new(ctx, GRID, &up)?, Linear::new(ctx, GRID, &across)?];
        let fine = self.n_beta > lmax && self.n_alpha > 2 * lmax;
        let analysis = if fine {
            let back: Vec<_> = signed
                .clone()
                .map(|m| {
                    let entry =
                        |(k, &a): (u32, &f64)| Entry { index: k, degree: 0, value: trig(m, a) };
                    (0, (0..).zip(&longitudes).map(entry).collect())
                })
                .collect();
            let down: Vec<_> = (0..(lmax + 1).pow(2))
                .map(|k| {
                    let (l, m) = degree_order(k);
                    let entry = |i: u32| Entry {
                        index: i * orders + order_at(m, lmax),
                        degree: 0,
                        value: weights[i as usize] * rows[i as usize][column(l, m.unsigned_abs())],
                    };
                    (l, (0..self.n_beta).map(entry).collect())
                })
                .collect();
            Some([Linear::new(ctx, GRID, &back)?, Linear::new(ctx, GRID, &down)?])
        } else {
            None
        };
        Ok(SphereGridPlan {
            options: *self,
            shape,
            synthesis,
            analysis,
            home: Arc::clone(ctx.home()),
        })
    }
}

impl SphereGridPlan {
    /// The options.
    pub fn options(&self) -> SphereGrid {
        self.options
    }

    /// Bytes of scratch that either direction needs: a row of orders on every parallel.
    pub fn scratch_bytes(&self) -> u64 {
        let o = self.options;
        [self.shape.batch, self.shape.channels, o.n_beta, 2 * o.lmax + 1]
            .iter()
            .fold(4u64, |n, &d| n.saturating_mul(d.into()))
            .max(4)
    }

    /// A buffer of [`scratch_bytes`](Self::scratch_bytes) for calls with this plan, one after the
    /// other; `None` if that is 0. Here it never is.
    ///
    /// # Errors
    /// [`Error::OtherContext`] if the plan is of another device, [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn scratch(&self, ctx: &Context) -> Result<Option<wgpu::Buffer>> {
        ctx.expect_plan(GRID, Some(&self.home))?;
        ctx.scratch(GRID, self.scratch_bytes())
    }

    /// Records the values `f: [batch, channels, n_beta, n_alpha]` of the functions with
    /// coefficients `x: [batch, channels, (lmax + 1)^2]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Strides`], [`Error::OutOfRange`],
    /// [`Error::Misaligned`] or [`Error::Usage`] for a view that does not fit the plan,
    /// [`Error::SharedBuffer`], [`Error::Argument`] for missing scratch, [`Error::Limit`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn sh_to_grid(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        x: TensorView<'_, 3>,
        f: TensorView<'_, 4>,
        scratch: &wgpu::Buffer,
    ) -> Result<()> {
        ctx.expect_plan(GRID, Some(&self.home))?;
        self.check(x, f, scratch)?;
        f.expect_output(GRID, "f", self.grid_shape(), self.options.dtype)?;
        distinct_outputs(ctx, GRID, &[("f", f.buffer), ("scratch", scratch)], &[("x", x.buffer)])?;
        let [theta, phi] = &self.synthesis;
        let [flat, lined] = self.orders(scratch);
        self.map(ctx, pass, theta, ("x", with_line(&x)), flat)?;
        self.map(ctx, pass, phi, lined, ("f", f))
    }

    /// Records the coefficients `x` of the functions with values `f`; shapes as
    /// [`SphereGridPlan::sh_to_grid`].
    ///
    /// # Errors
    /// As [`SphereGridPlan::sh_to_grid`], and [`Error::Shape`] if the grid is too coarse:
    /// `n_beta > lmax` and `n_alpha > 2 lmax` are needed.
    pub fn grid_to_sh(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        f: TensorView<'_, 4>,
        x: TensorView<'_, 3>,
        scratch: &wgpu::Buffer,
    ) -> Result<()> {
        let o = self.options;
        let Some([phi, theta]) = &self.analysis else {
            return Err(Error::shape(
                GRID,
                "n_beta, n_alpha",
                format!(
                    "at least {} by {} to analyse degree {}",
                    o.lmax + 1,
                    2 * o.lmax + 1,
                    o.lmax
                ),
                format!("{} by {}", o.n_beta, o.n_alpha),
            ));
        };
        ctx.expect_plan(GRID, Some(&self.home))?;
        self.check(x, f, scratch)?;
        x.expect_output(GRID, "x", x.layout.shape, o.dtype)?;
        distinct_outputs(ctx, GRID, &[("x", x.buffer), ("scratch", scratch)], &[("f", f.buffer)])?;
        let [flat, lined] = self.orders(scratch);
        self.map(ctx, pass, phi, ("f", f), lined)?;
        self.map(ctx, pass, theta, flat, ("x", with_line(&x)))
    }

    fn grid_shape(&self) -> [u32; 4] {
        [self.shape.batch, self.shape.channels, self.options.n_beta, self.options.n_alpha]
    }

    fn check(
        &self,
        x: TensorView<'_, 3>,
        f: TensorView<'_, 4>,
        scratch: &wgpu::Buffer,
    ) -> Result<()> {
        let (o, s) = (self.options, self.shape);
        x.expect(GRID, "x", [s.batch, s.channels, (o.lmax + 1).pow(2)], o.dtype)?;
        f.expect(GRID, "f", self.grid_shape(), o.dtype)?;
        check_scratch(GRID, self.scratch_bytes(), Some(scratch))?;
        Ok(())
    }

    /// Scratch as one line of all orders, and as a line for each parallel.
    fn orders<'a>(&self, scratch: &'a wgpu::Buffer) -> [(&'static str, TensorView<'a, 4>); 2] {
        let (o, s) = (self.options, self.shape);
        let n = 2 * o.lmax + 1;
        [[s.batch, s.channels, 1, o.n_beta * n], [s.batch, s.channels, o.n_beta, n]].map(|shape| {
            (
                "scratch",
                TensorView {
                    buffer: scratch,
                    layout: Layout::contiguous(shape),
                    dtype: DType::F32,
                },
            )
        })
    }

    fn map(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        map: &Linear,
        src: (&'static str, TensorView<'_, 4>),
        dst: (&'static str, TensorView<'_, 4>),
    ) -> Result<()> {
        map.encode_pass(ctx, pass, GRID, &all_rows(self.shape, GRID, src, dst)?)
    }
}

/// All rows of both sides, in the same order.
fn all_rows<'a>(
    shape: GauntShape,
    op: &'static str,
    src: (&'static str, TensorView<'a, 4>),
    dst: (&'static str, TensorView<'a, 4>),
) -> Result<Rows<'a>> {
    let rows = u64::from(shape.batch) * u64::from(shape.channels);
    let rows = u32::try_from(rows).map_err(|_| Error::Limit {
        op,
        what: "rows in one call",
        need: rows,
        limit: u32::MAX.into(),
    })?;
    Ok(Rows {
        src,
        dst,
        rows,
        channels: shape.channels,
        dst_channels: shape.channels,
        first: [0, 0],
        weights: [None, None],
        gather: None,
    })
}

/// `[B, C, n]` as `[B, C, 1, n]`.
pub(crate) fn with_line<'a>(view: &TensorView<'a, 3>) -> TensorView<'a, 4> {
    let ([b, c, n], [sb, sc, sn]) = (view.layout.shape, view.layout.strides);
    let layout =
        Layout { shape: [b, c, 1, n], strides: [sb, sc, 0, sn], offset: view.layout.offset };
    TensorView { buffer: view.buffer, layout, dtype: view.dtype }
}

impl SphereFourier {
    /// Checks the problem and makes the tables, in closed form.
    ///
    /// # Errors
    /// [`Error::Shape`] for a degree or band out of range, [`Error::Limit`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, shape: GauntShape) -> Result<SphereFourierPlan> {
        let (lmax, band) = (self.lmax, self.band);
        check_degree(TORUS, "lmax", lmax, MAX_LMAX)?;
        self.dtype.expect_float(TORUS)?;
        if band < lmax || band > 2 * MAX_LMAX {
            return Err(Error::shape(
                TORUS,
                "band",
                format!("lmax = {lmax} to {}", 2 * MAX_LMAX),
                band,
            ));
        }
        let side = 2 * band + 1;
        let place =
            |u: i32, v: i32, part: u32| 2 * (order_at(u, band) * side + order_at(v, band)) + part;
        let mut forward: Vec<(u32, Vec<Entry>)> = vec![(0, Vec::new()); (2 * side * side) as usize];
        let mut back: Vec<(u32, Vec<Entry>)> = Vec::new();
        for k in 0..(lmax + 1).pow(2) {
            let (l, m) = degree_order(k);
            let n = m.unsigned_abs();
            let colatitude = torus_terms(&series(l, n), n);
            let longitude = exponentials(m);
            for &(u, a) in &colatitude {
                for &(v, b) in &longitude {
                    let c = times(a, b);
                    for (part, value) in [(0, c.0), (1, c.1)] {
                        if value.abs() > 1e-18 {
                            forward[place(u, v, part) as usize].1.push(Entry {
                                index: k,
                                degree: l,
                                value,
                            });
                        }
                    }
                }
            }
            // z = sum over u, v of c[u, v] times the integral of Y_lm e^(i (u b + v a)), v = +-m
            let project = series_projection(l, n, band);
            let mut entries = Vec::new();
            for u in -band.cast_signed()..=band.cast_signed() {
                let p = project[u.unsigned_abs() as usize];
                // the part of e^(i u b) that the order's functions of b are even or odd like
                let a = if n % 2 == 0 { (p, 0.0) } else { (0.0, p * f64::from(u.signum())) };
                for &(v, b) in &longitude {
                    // mean of t_m e^(i w a) is the coefficient of e^(-i w a) in t_m
                    let c = times(a, b);
                    let at = (u, -v);
                    // z is real: the real part of c * (re + i im)
                    for (part, value) in [(0, c.0), (1, -c.1)] {
                        if value.abs() > 1e-18 {
                            entries.push(Entry {
                                index: place(at.0, at.1, part),
                                degree: 0,
                                value,
                            });
                        }
                    }
                }
            }
            back.push((l, entries));
        }
        Ok(SphereFourierPlan {
            options: *self,
            shape,
            forward: Linear::new(ctx, TORUS, &forward)?,
            back: Linear::new(ctx, TORUS, &back)?,
            home: Arc::clone(ctx.home()),
        })
    }
}

/// Exponentials of a series of `cos(s b)` (even order) or `sin(s b)` (odd).
fn torus_terms(series: &[f64], order: u32) -> Vec<(i32, (f64, f64))> {
    let mut terms = Vec::new();
    for (s, &c) in (0..).zip(series) {
        if c.abs() < 1e-18 {
            continue;
        }
        match (s, order % 2) {
            (0, _) => terms.push((0, (c, 0.0))),
            (_, 0) => terms.extend([(s, (0.5 * c, 0.0)), (-s, (0.5 * c, 0.0))]),
            (_, _) => terms.extend([(s, (0.0, -0.5 * c)), (-s, (0.0, 0.5 * c))]),
        }
    }
    terms
}

/// Exponentials of `{ sqrt(2) sin(|m| a), 1, sqrt(2) cos(m a) }`.
fn exponentials(m: i32) -> Vec<(i32, (f64, f64))> {
    let h = 0.5 * SQRT_2;
    match m.signum() {
        -1 => vec![(-m, (0.0, -h)), (m, (0.0, h))],
        0 => vec![(0, (1.0, 0.0))],
        _ => vec![(m, (h, 0.0)), (-m, (h, 0.0))],
    }
}

fn times(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

impl SphereFourierPlan {
    /// The options.
    pub fn options(&self) -> SphereFourier {
        self.options
    }

    /// Records the series `c: [batch, channels, 2 band + 1, 2 band + 1, 2]` (complex pairs, the
    /// last three axes contiguous) of coefficients `x: [batch, channels, (lmax + 1)^2]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Strides`], [`Error::OutOfRange`],
    /// [`Error::Misaligned`] or [`Error::Usage`] for a view that does not fit the plan,
    /// [`Error::SharedBuffer`], [`Error::Limit`], [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn sh_to_fourier(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        x: TensorView<'_, 3>,
        c: TensorView<'_, 5>,
    ) -> Result<()> {
        ctx.expect_plan(TORUS, Some(&self.home))?;
        let series = self.check(&x, &c)?;
        c.expect_output(TORUS, "c", c.layout.shape, self.options.dtype)?;
        distinct_outputs(ctx, TORUS, &[("c", c.buffer)], &[("x", x.buffer)])?;
        let rows = all_rows(self.shape, TORUS, ("x", with_line(&x)), ("c", series))?;
        self.forward.encode_pass(ctx, pass, TORUS, &rows)
    }

    /// Records the coefficients `x` of the functions with series `c`: the integrals over the sphere
    /// of the series times each harmonic. Shapes as [`SphereFourierPlan::sh_to_fourier`]. The series
    /// must be that of a real function with the sphere's symmetry.
    ///
    /// # Errors
    /// As [`SphereFourierPlan::sh_to_fourier`].
    pub fn fourier_to_sh(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        c: TensorView<'_, 5>,
        x: TensorView<'_, 3>,
    ) -> Result<()> {
        ctx.expect_plan(TORUS, Some(&self.home))?;
        let series = self.check(&x, &c)?;
        x.expect_output(TORUS, "x", x.layout.shape, self.options.dtype)?;
        distinct_outputs(ctx, TORUS, &[("x", x.buffer)], &[("c", c.buffer)])?;
        let rows = all_rows(self.shape, TORUS, ("c", series), ("x", with_line(&x)))?;
        self.back.encode_pass(ctx, pass, TORUS, &rows)
    }

    /// Checks both sides; the series as rows.
    fn check<'a>(&self, x: &TensorView<'_, 3>, c: &TensorView<'a, 5>) -> Result<TensorView<'a, 4>> {
        let (o, s) = (self.options, self.shape);
        let side = 2 * o.band + 1;
        x.expect(TORUS, "x", [s.batch, s.channels, (o.lmax + 1).pow(2)], o.dtype)?;
        c.expect(TORUS, "c", [s.batch, s.channels, side, side, 2], o.dtype)?;
        let [sb, sc, su, sv, sp] = c.layout.strides;
        let contiguous = side == 1 || (su == 2 * u64::from(side) && sv == 2);
        if !contiguous {
            return Err(Error::Strides {
                op: TORUS,
                what: "c",
                expected: "contiguous series (the last three axes)",
                shape: c.layout.shape.to_vec(),
                strides: c.layout.strides.to_vec(),
            });
        }
        let layout = Layout {
            shape: [s.batch, s.channels, 1, 2 * side * side],
            strides: [sb, sc, 0, sp],
            offset: c.layout.offset,
        };
        Ok(TensorView { buffer: c.buffer, layout, dtype: c.dtype })
    }
}
