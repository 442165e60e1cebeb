//! The report as one HTML file that needs nothing else: device, roofline, curves, table.

use std::{collections::BTreeMap, fmt::Write as _};

use plotters::prelude::*;

use super::{
    problem::seconds,
    report::{Report, Row},
};
use crate::{Failure, adapter};

const COLOURS: [RGBColor; 6] = [
    RGBColor(30, 90, 180),
    RGBColor(200, 60, 40),
    RGBColor(40, 140, 70),
    RGBColor(150, 80, 170),
    RGBColor(200, 140, 20),
    RGBColor(60, 60, 60),
];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1080px;margin:2em auto;padding:0 1em}\
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2em}p.small{color:#666;margin:.2em 0}\
table{border-collapse:collapse;font-size:13px;width:100%}td,th{padding:.25em .6em;border-bottom:1px solid #ddd;text-align:left}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}dl{display:grid;grid-template-columns:max-content 1fr;gap:.15em 1.2em}\
dt{color:#666}dd{margin:0}.charts{display:flex;flex-wrap:wrap;gap:1em}svg{max-width:100%;height:auto}\
.bar{display:inline-block;height:.7em;background:#1e5ab4;margin-right:.5em}";

/// Points of curves by their names.
type Lines<'a> = BTreeMap<&'a str, Vec<(f64, f64)>>;

/// The whole file.
pub(crate) fn page(report: &Report) -> Result<String, Failure> {
    let (d, c) = (&report.device, &report.ceilings);
    let mut out = String::new();
    let title = format!("tilewise bench: {}", escape(&d.name));
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n\
         <p class=\"small\">tilewise {}, {}{}{}</p>\n<dl>",
        escape(&report.tilewise),
        adapter::date(report.time),
        if report.quick { ", quick" } else { "" },
        if report.tuned { ", tuned tiles" } else { "" },
    )?;
    let subgroup = d.subgroup.map_or("none".into(), |(min, max)| match min == max {
        true => min.to_string(),
        false => format!("{min} to {max}"),
    });
    let cards = [
        ("Backend and driver", format!("{}, {}", d.backend, d.driver)),
        ("Kernels", format!("{}, for a {}", d.tier, d.class.to_uppercase())),
        ("Subgroups", subgroup),
        ("Workgroup memory", format!("{} KiB", d.workgroup_storage >> 10)),
        ("Clock", d.clock.clone()),
        ("Multiply-add, f32", rate(c.multiply_add_f32, "flop/s")),
        (
            "Multiply-add, f16",
            c.multiply_add_f16.map_or("no f16 arithmetic".into(), |r| rate(r, "flop/s")),
        ),
        ("Copy, read and written", rate(c.copy, "B/s")),
        ("Workgroup memory, read", rate(c.workgroup_memory, "B/s")),
        ("Empty dispatch", seconds(c.dispatch)),
    ];
    for (name, value) in cards {
        write!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&value))?;
    }
    write!(
        out,
        "</dl>\n<h2>Roofline</h2>\n<p class=\"small\">Useful flops over the bytes that must move at least \
         once, under the ceilings measured in the same run.</p>\n{}\n<h2>Time over size</h2>\n\
         <div class=\"charts\">\n",
        roofline(report)?
    )?;
    let mut curves: BTreeMap<(&str, &str), Lines<'_>> = BTreeMap::new();
    for row in &report.results {
        let curve = curves.entry((&row.op, &row.axis)).or_default();
        curve.entry(&row.series).or_default().push((row.x, row.seconds * 1e3));
    }
    for ((op, axis), mut lines) in curves {
        lines.retain(|_, line| line.len() > 1);
        if !lines.is_empty() {
            out += &curve(op, axis, &lines)?;
            out.push('\n');
        }
    }
    out += "</div>\n<h2>All cases</h2>\n<p class=\"small\">Median time of one call, and the fastest and slowest \
            sample. The share is of the ceiling that binds: the time it allows over the time \
            measured; more than 100 % comes out of caches. The error is against the f64 reference, relative RMS at sampled places.</p>\n\
            <table><tr><th>operator</th><th>problem</th><th>type</th><th class=\"n\">time</th>\
            <th class=\"n\">fastest to slowest</th><th class=\"n\">Gflop/s</th><th class=\"n\">GB/s</th>\
            <th>share of ceiling</th><th class=\"n\">error</th></tr>\n";
    for r in &report.results {
        writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{} to {}</td>\
             <td class=\"n\">{:.1}</td><td class=\"n\">{:.2}</td>\
             <td style=\"white-space:nowrap\"><span class=\"bar\" style=\"width:{:.0}px\"></span>{:.0} % of {}</td><td class=\"n\">{:.0e}</td></tr>",
            escape(&r.op),
            escape(&r.shape).replace(',', ", "),
            r.dtype,
            seconds(r.seconds),
            seconds(r.low),
            seconds(r.high),
            r.flops / r.seconds * 1e-9,
            r.bytes / r.seconds * 1e-9,
            60.0 * r.fraction.clamp(0.0, 1.0),
            100.0 * r.fraction,
            r.bound.replace('_', "-"),
            r.error,
        )?;
    }
    out += "</table>\n</body></html>\n";
    Ok(out)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn rate(x: f64, unit: &str) -> String {
    match x {
        1e12.. => format!("{:.2} T{unit}", x * 1e-12),
        _ => format!("{:.2} G{unit}", x * 1e-9),
    }
}

/// A number on a logarithmic axis.
fn label(x: f64) -> String {
    match x {
        1e4.. => format!("{:.0}k", x / 1e3),
        _ => format!("{}", (x * 1e6).round() / 1e6),
    }
}

fn roofline(report: &Report) -> Result<String, Failure> {
    let (peak, copy) = (report.ceilings.multiply_add_f32, report.ceilings.copy);
    let point = |r: &Row| (r.flops / r.bytes, r.flops / r.seconds * 1e-9);
    let points = || report.results.iter().map(point);
    let ridge = peak / copy;
    let left = points().map(|p| p.0).fold(ridge, f64::min) / 2.0;
    let right = points().map(|p| p.0).fold(ridge, f64::max) * 4.0;
    let low = points().map(|p| p.1).fold(peak * 1e-9, f64::min) / 3.0;
    let high = peak * 1e-9 * 2.5;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (1000, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d((left..right).log_scale(), (low..high).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("flops per byte")
            .y_desc("Gflop/s")
            .x_label_formatter(&|x| label(*x))
            .y_label_formatter(&|y| label(*y))
            .light_line_style(RGBColor(245, 245, 245))
            .draw()?;
        let roof = [left, ridge, right].map(|x| (x, (x * copy).min(peak) * 1e-9));
        chart.draw_series(LineSeries::new(roof, RGBColor(120, 120, 120).stroke_width(2)))?;
        let mut ops: Vec<&str> = Vec::new();
        for row in &report.results {
            if !ops.contains(&row.op.as_str()) {
                ops.push(&row.op);
            }
        }
        for (op, colour) in ops.into_iter().zip(COLOURS) {
            let own = report.results.iter().filter(|r| r.op == op);
            chart
                .draw_series(own.map(|r| Circle::new(point(r), 5, colour.mix(0.75).filled())))?
                .label(op)
                .legend(move |(x, y)| Circle::new((x + 8, y), 5, colour.filled()));
        }
        legend(&mut chart, SeriesLabelPosition::LowerRight)?;
        root.present()?;
    }
    Ok(svg)
}

fn legend<'a, 'b: 'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>,
    at: SeriesLabelPosition,
) -> Result<(), Failure>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart
        .configure_series_labels()
        .position(at)
        .margin(8)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(210, 210, 210))
        .label_font(("sans-serif", 13))
        .draw()?;
    Ok(())
}

/// Milliseconds over a size, both logarithmic.
fn curve(op: &str, axis: &str, lines: &Lines<'_>) -> Result<String, Failure> {
    let all = || lines.values().flatten();
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let low = all().map(pick).fold(f64::INFINITY, f64::min);
        (low, all().map(pick).fold(0.0, f64::max))
    };
    let ((left, right), (low, high)) = (range(|p| p.0), range(|p| p.1));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (510, 360)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(op, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(38)
            .y_label_area_size(60)
            .build_cartesian_2d(
                // powers of two are marked: sizes mostly are
                left.log2() - 0.2..right.log2() + 0.2,
                // room for the legend above the lines
                (low / 1.5..high * 1.5 * (high / low).max(4.0).powf(0.5)).log_scale(),
            )?;
        chart
            .configure_mesh()
            .x_desc(axis)
            .y_desc("ms for one call")
            .x_labels(8)
            .x_label_formatter(&|x| match (x - x.round()).abs() < 1e-6 {
                true => label(x.exp2()),
                false => String::new(),
            })
            .y_label_formatter(&|y| label(*y))
            .light_line_style(RGBColor(245, 245, 245))
            .draw()?;
        for ((name, line), colour) in lines.iter().zip(COLOURS.into_iter().cycle()) {
            let mut line: Vec<_> = line.iter().map(|p| (p.0.log2(), p.1)).collect();
            line.sort_by(|a, b| a.0.total_cmp(&b.0));
            chart
                .draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))?
                .label(*name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
                });
            chart.draw_series(line.into_iter().map(|p| Circle::new(p, 3, colour.filled())))?;
        }
        legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
        root.present()?;
    }
    Ok(svg)
}
