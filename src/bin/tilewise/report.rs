//! What `tilewise conformance` found, as a table and as a file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Failure;

/// Cases and the worst error, as a part of the tolerance, of one operator and element type.
#[derive(Default)]
pub(crate) struct Worst {
    run: usize,
    failed: usize,
    of_tolerance: f64,
    case: String,
}

/// By operator and element type.
pub(crate) type Worsts = BTreeMap<(String, String), Worst>;

/// A report's path, refused where its ending is not known.
pub(crate) fn file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|e| e.to_str()) {
        Some("html" | "json") => Ok(path),
        _ => Err("expected a name that ends in .html or .json".into()),
    }
}

fn text<'a>(record: &'a Value, key: &str) -> &'a str {
    record[key].as_str().unwrap_or_default()
}

/// The worst of each operator among the records of cases that ran.
pub(crate) fn worst(records: &[Value]) -> Worsts {
    let mut worsts = Worsts::new();
    for record in records {
        let status = text(record, "status");
        if !matches!(status, "pass" | "fail") {
            continue;
        }
        let key = (text(record, "op").to_owned(), text(record, "dtype").to_owned());
        let worst = worsts.entry(key).or_default();
        worst.run += 1;
        worst.failed += usize::from(status == "fail");
        let share = record["of_tolerance"].as_f64().unwrap_or(0.0);
        if share > worst.of_tolerance {
            worst.of_tolerance = share;
            text(record, "case").clone_into(&mut worst.case);
        }
    }
    worsts
}

/// The worst errors as lines of text; empty where nothing ran.
pub(crate) fn table(worsts: &Worsts) -> String {
    if worsts.is_empty() {
        return String::new();
    }
    let head = ["operator", "dtype", "tried", "failed", "worst/tolerance"];
    let [a, b, c, d, e] = head;
    let mut out = format!("{a:<22} {b:<5} {c:>6} {d:>6} {e:>15}  case\n");
    for ((op, dtype), w) in worsts {
        let (run, failed, share, case) = (w.run, w.failed, w.of_tolerance, &w.case);
        let _ = writeln!(out, "{op:<22} {dtype:<5} {run:>6} {failed:>6} {share:>15.4}  {case}");
    }
    out
}

/// Writes a report in the format of the path's ending.
pub(crate) fn write(
    path: &Path,
    [passed, failed, skipped]: [usize; 3],
    worsts: &Worsts,
    records: &[Value],
) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let text = if path.extension().is_some_and(|e| e == "json") {
        let worst: Vec<Value> = worsts
            .iter()
            .map(|((op, dtype), w)| {
                json!({
                    "op": op, "dtype": dtype, "tried": w.run, "failed": w.failed,
                    "of_tolerance": w.of_tolerance, "case": w.case,
                })
            })
            .collect();
        serde_json::to_string_pretty(&json!({
            "version": version, "passed": passed, "failed": failed, "skipped": skipped,
            "worst": worst, "cases": records,
        }))?
    } else {
        html(version, [passed, failed, skipped], worsts, records)
    };
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()).into())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn row(cells: &[&str], tag: &str, class: &str) -> String {
    let cells: String = cells.iter().map(|c| format!("<{tag}>{}</{tag}>", escaped(c))).collect();
    format!("<tr class=\"{}\">{cells}</tr>\n", escaped(class))
}

/// A page that needs nothing else.
fn html(version: &str, counts: [usize; 3], worsts: &Worsts, records: &[Value]) -> String {
    let [passed, failed, skipped] = counts;
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>tilewise conformance</title>\n<style>body{{font-family:sans-serif;margin:2em}}\
         table{{border-collapse:collapse}}td,th{{border:1px solid #ccc;padding:.2em .6em;\
         text-align:left}}.fail{{background:#fcc}}.skip{{color:#777}}</style></head><body>\n\
         <h1>tilewise {version}: conformance</h1>\n\
         <p>{passed} passed, {failed} failed, {skipped} skipped</p>\n<h2>Worst errors</h2>\n<table>\n"
    );
    out += &row(&["operator", "type", "tried", "failed", "worst / tolerance", "case"], "th", "");
    for ((op, dtype), w) in worsts {
        let (run, failed) = (w.run.to_string(), w.failed.to_string());
        let share = format!("{:.4}", w.of_tolerance);
        let class = if w.failed > 0 { "fail" } else { "" };
        out += &row(&[op, dtype, &run, &failed, &share, &w.case], "td", class);
    }
    out += "</table>\n<h2>Cases</h2>\n<table>\n";
    out += &row(&["case", "adapter", "kernels", "type", "verdict", "of tolerance", ""], "th", "");
    for record in records {
        let share = record["of_tolerance"].as_f64().map(|s| format!("{s:.4}")).unwrap_or_default();
        let [case, adapter, tier, dtype, status, detail] =
            ["case", "adapter", "tier", "dtype", "status", "detail"].map(|key| text(record, key));
        out += &row(&[case, adapter, tier, dtype, status, &share, detail], "td", status);
    }
    out += "</table></body></html>\n";
    out
}
