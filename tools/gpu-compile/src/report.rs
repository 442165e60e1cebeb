//! Tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::card::{Card, Vendor};
use crate::model::Figures;
use crate::texts::Text;
use crate::worker::to_json;

/// A text on a card, and what became of it.
pub(crate) struct Row {
    pub(crate) card: &'static Card,
    pub(crate) text: Text,
    pub(crate) figures: Result<Box<Figures>, String>,
    /// Budgets that it breaks.
    pub(crate) breaches: Vec<String>,
    pub(crate) seconds: f64,
}

/// A part in percent, or a dash.
fn percent(part: Option<f64>) -> String {
    part.map_or("-".into(), |p| format!("{:.0} %", 100.0 * p))
}

/// Spills and, where the driver tells, fills.
fn spills(f: &Figures) -> String {
    match f.fills {
        Some(fills) if f.spills + fills > 0 => format!("{}/{fills}", f.spills),
        _ => f.spills.to_string(),
    }
}

/// Bytes, in KiB from 1024.
fn bytes(n: u64) -> String {
    if n >= 1024 { format!("{:.1} K", n as f64 / 1024.0) } else { n.to_string() }
}

/// Heads of the columns; figures are on the right.
const COLUMNS: [&str; 12] = [
    "regs", "spills", "scalar", "shared", "waves", "hot part", "mul-add", "bcast", "shuffle",
    "scratch", "code", "bound",
];

fn cells(f: &Figures) -> [String; 12] {
    let bound = f.bound.map_or("-".into(), |(part, by)| format!("{:.0} % {by}", 100.0 * part));
    [
        f.registers.to_string(),
        spills(f),
        f.scalar_spills.to_string(),
        bytes(f.workgroup_memory.into()),
        f.waves.map_or("-".into(), |w| w.to_string()),
        f.part.text(),
        percent(f.share),
        format!("{:.0}", f.mix.broadcasts),
        format!("{:.0}", f.mix.shuffles),
        format!("{:.0}", f.mix.scratch),
        bytes(f.code),
        bound,
    ]
}

/// A table for a terminal, of one card.
pub(crate) fn table(card: &Card, device: &str, driver: &str, rows: &[&Row]) -> String {
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    for row in rows {
        let mut name = row.text.kernel().to_string();
        if !row.text.problem().is_empty() {
            let _ = write!(name, " [{}]", row.text.problem());
        }
        let cells = match &row.figures {
            Ok(f) => cells(f).to_vec(),
            Err(why) => vec![format!("FAILED: {why}")],
        };
        lines.push((name, cells));
    }
    let name = lines.iter().map(|l| l.0.chars().count()).max().unwrap_or(0);
    let width = |c: usize| {
        let of_cells = lines.iter().filter(|l| l.1.len() > 1).map(|l| l.1[c].chars().count());
        of_cells.chain([COLUMNS[c].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut out = format!("\n{}: {device}, {driver}\n{:name$}", card.name, "kernel");
    for (head, width) in COLUMNS.iter().zip(&widths) {
        let _ = write!(out, "  {head:>width$}");
    }
    out.push('\n');
    for (title, cells) in &lines {
        let _ = write!(out, "{title:name$}");
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(out, "  {cell:>width$}");
        }
        out.push('\n');
    }
    out
}

/// Everything, for other programs.
pub(crate) fn json(rows: &[Row], drivers: &BTreeMap<String, String>) -> Value {
    let kernels: Vec<Value> = rows
        .iter()
        .map(|row| {
            let mut value = match &row.figures {
                Ok(f) => to_json(f),
                Err(why) => json!({"failed": why}),
            };
            value["card"] = row.card.name.into();
            value["kernel"] = row.text.label.as_str().into();
            value["problems"] = json!(row.text.problems);
            value["text"] = row.text.path.file_name().map(|n| n.to_string_lossy()).into();
            value["breaches"] = json!(row.breaches);
            value["seconds"] = json!((row.seconds * 1000.0).round() / 1000.0);
            value
        })
        .collect();
    json!({"schema": 1, "drivers": drivers, "kernels": kernels})
}

/// The part of docs/GPUS.md between its markers.
const START: &str = "<!-- figures: written by scripts/gpu-compile.sh --markdown -->";
const END: &str = "<!-- end of figures -->";

/// Puts the figures between the markers of a document; a document without any gets them at its end.
pub(crate) fn into_document(old: &str, figures: &str) -> Result<String, String> {
    let part = format!("{START}\n{figures}\n{END}");
    match (old.find(START), old.find(END)) {
        (Some(start), Some(end)) if start < end => {
            Ok(format!("{}{part}{}", &old[..start], &old[end + END.len()..]))
        }
        (None, None) if old.is_empty() => Ok(format!("{part}\n")),
        (None, None) => Ok(format!("{}\n\n{part}\n", old.trim_end())),
        _ => Err("one of the two markers is missing".into()),
    }
}

/// Tables of the benches' and variants' kernels: for each vendor, cards side by side.
pub(crate) fn markdown(rows: &[Row], drivers: &BTreeMap<String, String>, date: &str) -> String {
    let mut out = format!("Of {date}.\n");
    for vendor in [Vendor::Amd, Vendor::Nvidia, Vendor::Intel] {
        let mut cards: Vec<&Card> = Vec::new();
        // kernels by problem, name and, where one problem has several of a name, their order
        let mut table: BTreeMap<(String, String, usize), BTreeMap<&str, String>> = BTreeMap::new();
        let mut seen: BTreeMap<(String, String, &str), usize> = BTreeMap::new();
        for row in rows.iter().filter(|r| r.card.vendor == vendor && r.text.tabled) {
            if !cards.iter().any(|c| c.name == row.card.name) {
                cards.push(row.card);
            }
            let (problem, kernel) = (row.text.problem().to_string(), row.text.kernel().to_string());
            let nth = seen.entry((problem.clone(), kernel.clone(), row.card.name)).or_default();
            let cell = match &row.figures {
                Ok(f) => {
                    let mut cell = format!("{} / {}", f.registers, spills(f));
                    if let Some(waves) = f.waves {
                        let _ = write!(cell, " / {waves}w");
                    }
                    if let (Some(share), Some((bound, by))) = (f.share, f.bound) {
                        let (share, bound) = (100.0 * share, 100.0 * bound);
                        let _ = write!(cell, ", {share:.0} %, ≤ {bound:.0} % ({by})");
                    }
                    cell
                }
                Err(why) => why.clone(),
            };
            table.entry((problem, kernel, *nth)).or_default().insert(row.card.name, cell);
            *nth += 1;
        }
        if cards.is_empty() {
            continue;
        }
        let driver = drivers.get(cards[0].name).map_or("", String::as_str);
        let _ = write!(out, "\n### {}\n\n{driver}.\n\n| kernel |", vendor.title());
        for card in &cards {
            let _ = write!(out, " {} |", card.name);
        }
        out.push_str("\n|---|");
        out.push_str(&"---|".repeat(cards.len()));
        out.push('\n');
        for ((problem, kernel, nth), cells) in &table {
            let turn = if *nth > 0 { format!(" ({})", nth + 1) } else { String::new() };
            let _ = write!(out, "| {problem}: `{kernel}`{turn} |");
            for card in &cards {
                let cell = cells.get(card.name).map_or("-", String::as_str);
                let _ = write!(out, " {cell} |");
            }
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_go_between_the_markers_and_nowhere_else() {
        let once = into_document("# Title\n\ntext\n", "one").unwrap();
        assert!(once.starts_with("# Title\n\ntext\n\n<!--"), "{once}");
        let twice = into_document(&format!("{once}\nafter\n"), "two").unwrap();
        assert!(twice.contains("text") && twice.contains("two") && twice.ends_with("\nafter\n"));
        assert!(!twice.contains("one"), "{twice}");
        assert!(into_document(END, "x").is_err());
    }
}
