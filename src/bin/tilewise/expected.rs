//! Failures that are known, by driver: a list kept as data, each with its reason.

use std::path::Path;

use serde_json::Value;

use crate::Failure;

/// The list that the program has without `--expected-failures`.
const DEFAULT: &str = include_str!("expected-failures.json");

/// One case that fails on some drivers.
pub(crate) struct Known {
    /// Name of the case.
    case: String,
    /// Part of the adapter's name, backend or driver, in any case.
    adapter: String,
    /// Element type; all without.
    dtype: Option<String>,
    /// Why, and whose fault it is.
    pub(crate) reason: String,
}

impl Known {
    pub(crate) fn matches(&self, case: &str, adapter: &str, dtype: &str) -> bool {
        self.case == case
            && adapter.to_lowercase().contains(&self.adapter.to_lowercase())
            && self.dtype.as_ref().is_none_or(|d| d == dtype)
    }
}

/// Reads a list: `[{"case": "..", "adapter": "..", "dtype": "f16", "reason": ".."}]`.
pub(crate) fn read(path: Option<&Path>) -> Result<Vec<Known>, Failure> {
    let (name, text) = match path {
        None => ("expected failures".into(), DEFAULT.to_owned()),
        Some(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|e| format!("{name}: {e}"))?;
            (name, text)
        }
    };
    let list: Vec<Value> = serde_json::from_str(&text).map_err(|e| format!("{name}: {e}"))?;
    list.iter()
        .enumerate()
        .map(|(at, entry)| {
            let field = |key: &str| entry[key].as_str().map(str::to_owned);
            let needed = |key: &str| {
                field(key)
                    .filter(|text| !text.is_empty())
                    .ok_or_else(|| format!("{name}: entry {at}: expected a text {key:?}"))
            };
            Ok(Known {
                case: needed("case")?,
                adapter: needed("adapter")?,
                dtype: field("dtype"),
                reason: needed("reason")?,
            })
        })
        .collect()
}
