//! `tilewise bench gaunt --routes`: Gaunt products by every route, over degrees.

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use plotters::prelude::*;
use serde_json::{Value, json};
use tilewise::gaunt::Algorithm;

use super::Args;
use super::route_cases::{Case, MAX_TENSOR_BYTES, Measured, ROUTES_ALL, Route, growth, measure};
use crate::{Failure, adapter, adapter::Target};

/// Products in a call of the coefficient-table routes at large degrees, where one takes seconds.
const FEW: u32 = 1024;

/// Degree from which the table route runs on [`FEW`] products only.
const TABLE_GROWS: u32 = 5;

/// Gaunt tensor products of degree l and l, to l and to 2 l, by every route.
///
/// Results of the routes are compared before they are timed. Prints microseconds for one product,
/// the useful rate of the planner's choice as a share of the multiply-add rate measured in the
/// same minute, and a fit of the growth with the degree.
pub(super) fn run(args: &Args, target: Target<'_>) -> Result<bool, Failure> {
    let samples = args.samples.unwrap_or(9);
    let ctx = target.open()?;
    let device = adapter::describe(&ctx.device.adapter_info());
    println!("on {device}, {} kernels; {} products in a call", ctx.caps.tier, args.products);
    println!("us for one product; * is the planner's choice; + is of a call of {FEW} products");
    let bar = ProgressBar::new(2 * u64::from(args.lmax)).with_style(
        ProgressStyle::with_template("  {bar:40} {pos}/{len} {elapsed}")
            .expect("the template is valid"),
    );
    let mut all: Vec<[Vec<Measured>; 2]> = Vec::new();
    for doubled in [false, true] {
        let mut tables = [Vec::new(), Vec::new()];
        bar.suspend(|| print_head(doubled));
        for lmax in 1..=args.lmax {
            bar.inc(1);
            let lmax_out = if doubled { 2 * lmax } else { lmax };
            let case = Case { lmax, lmax_out, batch: 1, channels: args.products };
            if !case.fits() {
                let limit = MAX_TENSOR_BYTES >> 20;
                bar.suspend(|| println!("{lmax:>4} left out: a tensor of more than {limit} MiB"));
                continue;
            }
            let small = Case { channels: args.products.min(FEW), ..case };
            let by_table = |r| r == Route::Gaunt(Algorithm::Table);
            let table_apart = lmax >= TABLE_GROWS && small != case;
            let fused = |r| matches!(r, Route::Gaunt(_)) && !(table_apart && by_table(r));
            let (m, _) = measure(&ctx, case, &fused, samples)?;
            let (t, _) = if table_apart {
                measure(&ctx, small, &by_table, samples)?
            } else {
                (m.clone(), Vec::new())
            };
            bar.suspend(|| print_line(&m, &t, table_apart));
            tables[0].push(m);
            tables[1].push(t);
            ctx.forget_kernels();
        }
        bar.suspend(|| print_growth(&tables));
        all.push(tables);
    }
    bar.finish_and_clear();
    if let Some(path) = &args.json {
        let list: Vec<Value> =
            all.iter().flat_map(|t| t.iter().flatten()).map(|m| as_json(m, &device)).collect();
        std::fs::write(path, serde_json::to_string_pretty(&list)? + "\n")
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    if let Some(path) = &args.plot {
        draw(path, &all, &format!("{device}, {} products", args.products))
            .map_err(|e| format!("{}: {e}", path.display()))?;
        println!("\ndrawn into {}", path.display());
    }
    Ok(true)
}

fn print_head(doubled: bool) {
    println!("\nl, l to {}", if doubled { "2 l" } else { "l" });
    print!("{:>4}", "l");
    for route in &ROUTES_ALL[..3] {
        print!(" {:>11}", route.name());
    }
    println!(" {:>9} {:>8} {:>8} {:>8}", "GFLOP/s", "of peak", "of best", "x copy");
}

/// `m` holds the grid and Fourier routes, `t` the table's.
fn print_line(m: &Measured, t: &Measured, apart: bool) {
    print!("{:>4}", m.case.lmax);
    for (at, route) in ROUTES_ALL[..3].iter().enumerate() {
        let from = if at == 0 { t } else { m };
        let star = if *route == Route::Gaunt(m.planned) { "*" } else { "" };
        let plus = if at == 0 && apart { "+" } else { "" };
        let each = from.seconds[at].map(|s| s * 1e6 / f64::from(from.case.products()));
        print!(" {:>11}", each.map_or("-".into(), |s| format!("{star}{plus}{s:.3}")));
    }
    let number = |x: Option<f64>, scale: f64| {
        x.map_or("-".into(), |x| format!("{:.*}", if scale == 100.0 { 1 } else { 2 }, x * scale))
    };
    println!(
        " {:>9} {:>7}% {:>8} {:>8}",
        number(m.planned_seconds().map(|s| m.flops() / s), 1e-9),
        number(m.share_of_peak(), 100.0),
        number(m.planned_over_best(), 1.0),
        number(m.over_copy(), 1.0),
    );
}

/// Seconds for one product by route `at`.
fn times(tables: &[Vec<Measured>; 2], at: usize) -> Vec<(u32, f64)> {
    tables[usize::from(at == 0)]
        .iter()
        .filter_map(|m| m.seconds[at].map(|s| (m.case.lmax, s / f64::from(m.case.products()))))
        .collect()
}

fn print_growth(tables: &[Vec<Measured>; 2]) {
    let fits: Vec<String> = ROUTES_ALL[..3]
        .iter()
        .enumerate()
        .filter_map(|(at, r)| growth(&times(tables, at)).map(|e| format!("{} {e:.2}", r.name())))
        .collect();
    if !fits.is_empty() {
        println!("exponent of the growth with l, from l = 4 on: {}", fits.join(", "));
    }
}

fn as_json(m: &Measured, device: &str) -> Value {
    let seconds: serde_json::Map<String, Value> = ROUTES_ALL
        .iter()
        .zip(m.seconds)
        .filter_map(|(r, s)| s.map(|s| (r.name().to_string(), s.into())))
        .collect();
    json!({
        "device": device,
        "lmax": m.case.lmax,
        "lmax_out": m.case.lmax_out,
        "products": m.case.products(),
        "planned": Route::Gaunt(m.planned).name(),
        "seconds": seconds,
        "clock": m.clock.to_string(),
        "flops": m.flops(),
        "bytes": m.case.bytes(),
        "multiply_add_peak": m.peak,
        "copy_rate": m.copy,
    })
}

const COLOURS: [RGBColor; 3] =
    [RGBColor(200, 60, 40), RGBColor(30, 90, 180), RGBColor(40, 140, 70)];

/// Time of one product against the degree, by route; one panel for each output degree.
fn draw(path: &Path, all: &[[Vec<Measured>; 2]], title: &str) -> Result<(), Failure> {
    let root = SVGBackend::new(path, (1000, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 18))?;
    let micro = |tables, at| -> Vec<(f64, f64)> {
        times(tables, at).iter().map(|&(l, s)| (f64::from(l), s * 1e6)).collect()
    };
    let lines = || all.iter().flat_map(|t| (0..3).flat_map(move |at| micro(t, at)));
    let low = lines().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = lines().map(|p| p.1).fold(0.0, f64::max);
    let last = lines().map(|p| p.0).fold(1.0, f64::max);
    if low > high {
        return Err("nothing to draw".into());
    }
    for ((area, tables), out) in root.split_evenly((1, 2)).iter().zip(all).zip(["l", "2 l"]) {
        let mut chart = ChartBuilder::on(area)
            .caption(format!("l, l to {out}"), ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(60)
            .build_cartesian_2d(0.5..last + 0.5, (low * 0.7..high * 1.4).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("degree l")
            .y_desc("us for one product")
            .x_labels(13)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y}"))
            .light_line_style(RGBColor(240, 240, 240))
            .draw()?;
        for (at, colour) in COLOURS.into_iter().enumerate() {
            let line = micro(tables, at);
            chart
                .draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))?
                .label(ROUTES_ALL[at].name())
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
            chart.draw_series(line.iter().map(|&p| Circle::new(p, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(200, 200, 200))
            .draw()?;
    }
    root.present()?;
    Ok(())
}
