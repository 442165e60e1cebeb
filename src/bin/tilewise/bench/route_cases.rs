//! Gaunt products to time: the cases, the routes, how each is timed. `tilewise bench gaunt --routes` and
//! `cargo bench --bench gaunt` share this file; the inputs serve the other benches too.

use tilewise::{
    Context, DType, Result, Tensor,
    gaunt::{Algorithm, ClebschGordan, GauntArgs, GauntShape, GauntTensorProduct, Irreps},
    measure::{Clock, copy_rate, median, multiply_add_peak, time_encoder, values},
    wgpu,
};

/// Largest tensor of a case: larger ones are left out, and the report says so.
pub(crate) const MAX_TENSOR_BYTES: u64 = 128 << 20;

/// A run that takes longer than this is not repeated.
const LONG: f64 = 0.5;

/// One sample takes at least so long, by repeating the product.
const SHORT: f64 = 2e-3;

/// Largest relative distance between two routes.
const ROUTES: f64 = 2e-6;

/// Products of degree `lmax` and `lmax`, to `lmax_out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) lmax: u32,
    pub(crate) lmax_out: u32,
    pub(crate) batch: u32,
    pub(crate) channels: u32,
}

/// Ways to a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Gaunt(Algorithm),
    /// The full Clebsch-Gordan product, every path an output of its own: more work, and the
    /// customary baseline.
    ClebschGordan,
}

/// All routes, in the order of the tables.
pub(crate) const ROUTES_ALL: [Route; 4] = [
    Route::Gaunt(Algorithm::Table),
    Route::Gaunt(Algorithm::Grid),
    Route::Gaunt(Algorithm::Fourier),
    Route::ClebschGordan,
];

/// Times of one case.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) case: Case,
    pub(crate) planned: Algorithm,
    /// Seconds for all products of the case, by `ROUTES_ALL`; `None` for a route left out.
    pub(crate) seconds: [Option<f64>; 4],
    pub(crate) clock: Clock,
    /// Multiply-add rate of the device in the same minute, flop/s.
    pub(crate) peak: f64,
    /// Copy rate in the same minute, bytes/s.
    pub(crate) copy: f64,
}

impl Route {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gaunt(Algorithm::Table) => "table",
            Self::Gaunt(Algorithm::Grid) => "grid",
            Self::Gaunt(Algorithm::Fourier) => "fourier",
            Self::ClebschGordan => "full CG",
        }
    }
}

impl Case {
    pub(crate) fn product(&self) -> GauntTensorProduct {
        GauntTensorProduct::new(self.lmax, self.lmax_out)
    }

    pub(crate) fn products(&self) -> u32 {
        self.batch * self.channels
    }

    /// Bytes of `x`, `y` and `z`, each moved once.
    pub(crate) fn bytes(&self) -> f64 {
        let row = 2 * (self.lmax + 1).pow(2) + (self.lmax_out + 1).pow(2);
        4.0 * f64::from(row) * f64::from(self.products())
    }

    /// Whether the largest tensor is small enough.
    pub(crate) fn fits(&self) -> bool {
        let row = u64::from((self.lmax.max(self.lmax_out) + 1).pow(2));
        4 * row * u64::from(self.products()) <= MAX_TENSOR_BYTES
    }
}

impl Measured {
    /// Seconds of the planner's choice.
    pub(crate) fn planned_seconds(&self) -> Option<f64> {
        let at = ROUTES_ALL.iter().position(|r| *r == Route::Gaunt(self.planned))?;
        self.seconds[at]
    }

    /// The planner's choice against the fastest route to the same product.
    pub(crate) fn planned_over_best(&self) -> Option<f64> {
        let best = self.seconds[..3].iter().flatten().copied().fold(f64::INFINITY, f64::min);
        self.planned_seconds().map(|s| s / best)
    }

    /// Useful flops per second of the planner's choice, as a share of the peak.
    pub(crate) fn share_of_peak(&self) -> Option<f64> {
        self.planned_seconds().map(|s| self.flops() / s / self.peak)
    }

    /// Useful flops: those of the smallest exact grid, whatever the route.
    pub(crate) fn flops(&self) -> f64 {
        self.case.product().flops() * f64::from(self.case.products())
    }

    /// Time of the planner's choice against moving the bytes once at the copy rate.
    pub(crate) fn over_copy(&self) -> Option<f64> {
        self.planned_seconds().map(|s| s * self.copy / self.case.bytes())
    }
}

/// Records one call of a route.
type Run = Box<dyn Fn(&mut wgpu::CommandEncoder) -> Result<()>>;

/// A route ready to run.
struct Ready {
    run: Run,
    repeats: u32,
    samples: Vec<f64>,
    wanted: u32,
}

/// Inputs of a case, `[products, (lmax + 1)^2]` each.
pub(crate) fn inputs(case: &Case) -> [Vec<f32>; 2] {
    let n = (case.products() * (case.lmax + 1).pow(2)) as usize;
    [values(n, 1), values(n, 2)]
}

/// Runs every route that `wanted` names on the same inputs, checks that their results agree, and
/// times them turn about, `samples` times each; long runs less often. Returns the times and the
/// result.
pub(crate) fn measure(
    ctx: &Context,
    case: Case,
    wanted: &dyn Fn(Route) -> bool,
    samples: u32,
) -> Result<(Measured, Vec<f32>)> {
    let [x, y] = inputs(&case);
    let shape = |l: u32| [case.batch, case.channels, (l + 1).pow(2)];
    let x = Tensor::upload(ctx, shape(case.lmax), &x)?;
    let y = Tensor::upload(ctx, shape(case.lmax), &y)?;
    let mut clock = Clock::Wall;
    let mut agreed: Vec<f32> = Vec::new();
    let mut ready: Vec<Option<Ready>> = Vec::new();
    for route in ROUTES_ALL {
        if !wanted(route) {
            ready.push(None);
            continue;
        }
        let run = match route {
            Route::Gaunt(algorithm) => {
                let z = Tensor::zeros(ctx, shape(case.lmax_out), DType::F32)?;
                let run = gaunt(ctx, &case, algorithm, [&x, &y, &z])?;
                time_encoder(ctx, 1, |encoder| run(encoder))?;
                let got: Vec<f32> = z.download(ctx)?;
                if agreed.is_empty() {
                    agreed = got;
                } else {
                    let error = relative_rms(&got, &agreed);
                    assert!(error <= ROUTES, "{case:?} {}: off by {error:.1e}", route.name());
                }
                run
            }
            Route::ClebschGordan => {
                let run = clebsch_gordan(ctx, &case, [&x, &y])?;
                time_encoder(ctx, 1, |encoder| run(encoder))?;
                run
            }
        };
        let once = time_encoder(ctx, 1, |encoder| run(encoder))?;
        clock = once.clock;
        let repeats = (SHORT / once.seconds.max(1e-7)).ceil().clamp(1.0, 500.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let repeats = repeats as u32;
        let (samples, wanted) =
            if once.seconds > LONG { (vec![once.seconds], 1) } else { (Vec::new(), samples) };
        ready.push(Some(Ready { run, repeats, samples, wanted }));
    }
    for _ in 0..samples {
        for route in ready.iter_mut().flatten() {
            if route.samples.len() < route.wanted as usize {
                route.samples.push(
                    time_encoder(ctx, route.repeats, |encoder| (route.run)(encoder))?.seconds,
                );
            }
        }
    }
    let mut seconds = [None; 4];
    for (seconds, ready) in seconds.iter_mut().zip(&mut ready) {
        *seconds = ready.as_mut().map(|r| median(&mut r.samples));
    }
    let planned = case.product().select(&ctx.caps);
    let (peak, copy) = (multiply_add_peak(ctx)?, copy_rate(ctx)?);
    Ok((Measured { case, planned, seconds, clock, peak, copy }, agreed))
}

fn gaunt(
    ctx: &Context,
    case: &Case,
    algorithm: Algorithm,
    [x, y, z]: [&Tensor<3>; 3],
) -> Result<Run> {
    let product = GauntTensorProduct { algorithm: Some(algorithm), ..case.product() };
    let plan = product.plan(ctx, GauntShape { batch: case.batch, channels: case.channels })?;
    let scratch = plan.scratch(ctx)?;
    let (ctx, [x, y, z]) = (ctx.clone(), [x, y, z].map(Clone::clone));
    Ok(Box::new(move |encoder| {
        let args =
            GauntArgs { scratch: scratch.as_ref(), ..GauntArgs::new(x.view(), y.view(), z.view()) };
        plan.encode(&ctx, encoder, &args)
    }))
}

fn clebsch_gordan(ctx: &Context, case: &Case, [x, y]: [&Tensor<3>; 2]) -> Result<Run> {
    let irreps = Irreps::spherical_harmonics(case.lmax);
    let product = ClebschGordan {
        irreps1: irreps.clone(),
        irreps2: irreps,
        lmax_out: Some(case.lmax_out),
        ..Default::default()
    };
    let plan = product.plan(ctx, case.products())?;
    let z = Tensor::zeros(ctx, [case.products(), plan.dims()[2]], DType::F32)?;
    let (ctx, [x, y]) = (ctx.clone(), [x, y].map(Clone::clone));
    let row = tilewise::Layout::contiguous([case.products(), (case.lmax + 1).pow(2)]);
    Ok(Box::new(move |encoder| {
        plan.encode(&ctx, encoder, x.view_as(row)?, y.view_as(row)?, z.view())
    }))
}

/// Relative RMS distance; infinite if a value is not finite.
pub(crate) fn relative_rms(got: &[f32], want: &[f32]) -> f64 {
    if got.len() != want.len() || got.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let (error, size) = got.iter().zip(want).fold((0.0, 0.0), |(e, s), (g, w)| {
        (e + f64::from(g - w).powi(2), s + f64::from(*w).powi(2))
    });
    (error / size).sqrt()
}

/// The exponent `e` of `time ~ lmax^e`, by least squares of logarithms, over degrees from 4 on.
/// `None` with fewer than three of them.
pub(crate) fn growth(times: &[(u32, f64)]) -> Option<f64> {
    let points: Vec<(f64, f64)> =
        times.iter().filter(|(l, _)| *l >= 4).map(|&(l, t)| (f64::from(l).ln(), t.ln())).collect();
    if points.len() < 3 {
        return None;
    }
    let n = points.len() as f64;
    let (sx, sy) = points.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
    let (mx, my) = (sx / n, sy / n);
    let (sxy, sxx) = points
        .iter()
        .fold((0.0, 0.0), |(a, b), (x, y)| (a + (x - mx) * (y - my), b + (x - mx) * (x - mx)));
    Some(sxy / sxx)
}
