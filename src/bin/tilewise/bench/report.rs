//! What a run leaves behind: JSON, CSV, and the comparison with an earlier run.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tilewise::Context;

use crate::{Failure, adapter};

/// Version of the JSON: changes when a field changes its meaning or goes.
pub(crate) const SCHEMA: u32 = 1;

/// A whole run. Documented in docs/BENCH.md.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: u32,
    pub(crate) tilewise: String,
    /// Seconds since 1970, UTC.
    pub(crate) time: u64,
    pub(crate) quick: bool,
    /// Whether tiles came from a tuning table where it had any.
    pub(crate) tuned: bool,
    pub(crate) device: Device,
    pub(crate) ceilings: Ceilings,
    pub(crate) results: Vec<Row>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) backend: String,
    pub(crate) driver: String,
    pub(crate) tier: String,
    /// What kernels were planned for; empty in older files.
    #[serde(default)]
    pub(crate) class: String,
    pub(crate) subgroup: Option<(u32, u32)>,
    pub(crate) workgroup_storage: u32,
    pub(crate) clock: String,
}

/// What the device does at best: the better of before and after all cases.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Ceilings {
    /// flop/s
    pub(crate) multiply_add_f32: f64,
    /// flop/s; none without f16 arithmetic.
    pub(crate) multiply_add_f16: Option<f64>,
    /// bytes/s, read and written
    pub(crate) copy: f64,
    /// bytes/s, read
    pub(crate) workgroup_memory: f64,
    /// Seconds.
    pub(crate) dispatch: f64,
}

/// One case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What comparisons match by.
    pub(crate) id: String,
    pub(crate) op: String,
    /// What `--shape` takes.
    pub(crate) shape: String,
    pub(crate) dtype: String,
    pub(crate) tier: String,
    /// The curve that this case is a point of, and where on it.
    pub(crate) series: String,
    pub(crate) axis: String,
    pub(crate) x: f64,
    /// Median of the samples, each the mean of `repeats` calls.
    pub(crate) seconds: f64,
    /// The fastest and the slowest sample.
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) samples: u32,
    pub(crate) repeats: u32,
    /// Sets of tensors that the calls went round.
    pub(crate) copies: u32,
    pub(crate) clock: String,
    pub(crate) flops: f64,
    pub(crate) bytes: f64,
    /// The ceiling that binds: `multiply_add`, `copy` or `dispatch`.
    pub(crate) bound: String,
    /// Time at the binding ceiling over the time measured.
    pub(crate) fraction: f64,
    /// Relative RMS error against the f64 reference, at sampled places.
    pub(crate) error: f64,
    /// With `--first-use`: seconds of a first use and of a second: planned, tensors uploaded, run once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first_use: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) second_use: Option<f64>,
    /// With `--gain`: median seconds with the planner's own tiles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) planner: Option<f64>,
}

impl Device {
    pub(crate) fn of(ctx: &Context) -> Self {
        let info = ctx.device.adapter_info();
        Self {
            name: info.name.clone(),
            backend: info.backend.to_string(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
            tier: ctx.caps.tier.to_string(),
            class: ctx.caps.class.to_string(),
            subgroup: ctx.caps.subgroup,
            workgroup_storage: ctx.caps.workgroup_storage,
            clock: if ctx.caps.timestamps { "GPU timestamps" } else { "wall clock" }.into(),
        }
    }
}

impl Ceilings {
    pub(crate) fn measure(ctx: &Context) -> Result<Self, Failure> {
        use tilewise::measure as m;
        Ok(Self {
            multiply_add_f32: m::multiply_add_peak(ctx)?,
            multiply_add_f16: m::multiply_add_peak_f16(ctx)?,
            copy: m::copy_rate(ctx)?,
            workgroup_memory: m::workgroup_rate(ctx)?,
            dispatch: m::dispatch_overhead(ctx)?,
        })
    }

    /// The better of two measurements: machines drift, and a ceiling is the best there is.
    pub(crate) fn best(self, other: Self) -> Self {
        Self {
            multiply_add_f32: self.multiply_add_f32.max(other.multiply_add_f32),
            multiply_add_f16: self
                .multiply_add_f16
                .zip(other.multiply_add_f16)
                .map(|(a, b)| a.max(b)),
            copy: self.copy.max(other.copy),
            workgroup_memory: self.workgroup_memory.max(other.workgroup_memory),
            dispatch: self.dispatch.min(other.dispatch),
        }
    }

    /// The name of the ceiling that binds, and the seconds that it allows at the least. Sums are
    /// f32 whatever the element type, so the f16 rate binds nothing.
    pub(crate) fn bound(&self, flops: f64, bytes: f64) -> (&'static str, f64) {
        let all = [
            ("multiply_add", flops / self.multiply_add_f32),
            ("copy", bytes / self.copy),
            ("dispatch", self.dispatch),
        ];
        all.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(("dispatch", 0.0))
    }
}

impl Report {
    /// Reads an earlier run.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let bad = |e: &dyn std::fmt::Display| format!("--baseline {}: {e}", path.display());
        let bytes = std::fs::read(path).map_err(|e| bad(&e))?;
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| bad(&format!("not JSON: {e}")))?;
        let schema = value.get("schema").and_then(serde_json::Value::as_u64);
        if schema != Some(SCHEMA.into()) {
            let got = schema.map_or("none".into(), |s| s.to_string());
            return Err(
                bad(&format!("expected schema {SCHEMA} of tilewise bench, got {got}")).into()
            );
        }
        Ok(serde_json::from_value(value).map_err(|e| bad(&e))?)
    }

    pub(crate) fn write_json(&self, path: &Path) -> Result<(), Failure> {
        write(path, &(serde_json::to_string_pretty(self)? + "\n"))
    }

    /// One line for each case. No field has a quote in it.
    pub(crate) fn write_csv(&self, path: &Path) -> Result<(), Failure> {
        let mut text = String::from(
            "op,shape,dtype,tier,seconds,low,high,samples,repeats,copies,flops,bytes,bound,fraction,error\n",
        );
        for r in &self.results {
            text += &format!(
                "{},\"{}\",{},{},{:e},{:e},{:e},{},{},{},{:e},{:e},{},{:.4},{:e}\n",
                r.op,
                r.shape,
                r.dtype,
                r.tier,
                r.seconds,
                r.low,
                r.high,
                r.samples,
                r.repeats,
                r.copies,
                r.flops,
                r.bytes,
                r.bound,
                r.fraction,
                r.error
            );
        }
        write(path, &text)
    }
}

/// How a case moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    Slower,
    Faster,
    /// Within the spread.
    Same,
}

/// Changes smaller than this count as none, whatever the spread.
const LEAST: f64 = 0.03;

/// Whether the samples of two runs lie apart: no sample of one among those of the other.
pub(crate) fn moved(old: &Row, new: &Row) -> Moved {
    let ratio = new.seconds / old.seconds;
    if new.low > old.high && ratio > 1.0 + LEAST {
        Moved::Slower
    } else if new.high < old.low && ratio < 1.0 - LEAST {
        Moved::Faster
    } else {
        Moved::Same
    }
}

/// Prints how every case moved; returns how many are slower.
pub(crate) fn compare(old: &Report, new: &Report) -> Result<usize, Failure> {
    let place = |d: &Device| format!("{} ({}, {})", d.name, d.backend, d.driver);
    println!("\nagainst tilewise {} of {}", old.tilewise, adapter::date(old.time));
    if place(&old.device) != place(&new.device) {
        println!("  that was another device: {}", place(&old.device));
    }
    let drift = new.ceilings.multiply_add_f32 / old.ceilings.multiply_add_f32;
    println!("  the device's own multiply-add rate is {drift:.2} of what it was");
    let (mut slower, mut matched) = (0, 0);
    for row in &new.results {
        let Some(before) = old.results.iter().find(|r| r.id == row.id) else {
            println!("  {:8} {}", "new", row.id);
            continue;
        };
        matched += 1;
        let word = match moved(before, row) {
            Moved::Slower => "SLOWER",
            Moved::Faster => "faster",
            Moved::Same => "same",
        };
        slower += usize::from(word == "SLOWER");
        println!("  {word:8} {:>6.2} x the time: {}", row.seconds / before.seconds, row.id);
    }
    if matched == 0 {
        return Err("--baseline: it has none of these cases".into());
    }
    println!("{slower} of {matched} slower beyond the spread");
    Ok(slower)
}

/// Writes a file, and says which one on failure.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    Ok(std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?)
}

#[cfg(test)]
mod tests {
    use super::{Ceilings, Moved, Row, moved};

    fn row(low: f64, seconds: f64, high: f64) -> Row {
        Row {
            id: "x".into(),
            op: "x".into(),
            shape: String::new(),
            dtype: "f32".into(),
            tier: "portable".into(),
            series: String::new(),
            axis: String::new(),
            x: 1.0,
            seconds,
            low,
            high,
            samples: 3,
            repeats: 1,
            copies: 1,
            clock: String::new(),
            flops: 1.0,
            bytes: 1.0,
            bound: String::new(),
            fraction: 1.0,
            error: 0.0,
            first_use: None,
            second_use: None,
            planner: None,
        }
    }

    #[test]
    fn only_what_leaves_the_spread_has_moved() {
        let old = row(0.9, 1.0, 1.2);
        assert_eq!(moved(&old, &row(1.3, 1.4, 1.5)), Moved::Slower);
        assert_eq!(moved(&old, &row(1.1, 1.4, 1.5)), Moved::Same);
        assert_eq!(moved(&old, &row(0.5, 0.6, 0.8)), Moved::Faster);
        // apart, but by less than counts
        let sharp = row(1.0, 1.0, 1.0);
        assert_eq!(moved(&sharp, &row(1.01, 1.01, 1.01)), Moved::Same);
    }

    #[test]
    fn the_slowest_part_binds() {
        let c = Ceilings {
            multiply_add_f32: 100.0,
            multiply_add_f16: None,
            copy: 10.0,
            workgroup_memory: 1.0,
            dispatch: 0.5,
        };
        assert_eq!(c.bound(1000.0, 10.0), ("multiply_add", 10.0));
        assert_eq!(c.bound(1000.0, 200.0), ("copy", 20.0));
        assert_eq!(c.bound(1.0, 1.0), ("dispatch", 0.5));
    }
}
