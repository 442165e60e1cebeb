//! Folders of texts, as `tilewise bench` and `conformance --as CARD --dump-wgsl DIR` write them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A text that a card is given.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub(crate) path: PathBuf,
    /// The kernel: file, entry point, constants.
    pub(crate) label: String,
    /// Problems that need it, those of the first folder first.
    pub(crate) problems: Vec<String>,
    /// Whether it is of a bench's case or of a variant: one of the tables of docs/GPUS.md.
    pub(crate) tabled: bool,
}

impl Text {
    /// The file of the kernel; of a generated one, which has no other name, what its label says first.
    pub(crate) fn kernel(&self) -> &str {
        self.label.split([' ', ':']).next().unwrap_or(&self.label)
    }

    /// Its file's name without the ending: the same text has the same name in every folder.
    pub(crate) fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The first problem that needs it.
    pub(crate) fn problem(&self) -> &str {
        self.problems.first().map_or("", String::as_str)
    }
}

/// The texts of a card, each once: `DIR/CARD/SET/*.wgsl`, sets in the order of their names, where
/// `bench` is before `golden`. Only kernels whose labels start with `prefix`.
pub(crate) fn read(dir: &Path, card: &str, prefix: &str) -> Result<Vec<Text>, String> {
    let said = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let place = dir.join(card);
    let mut sets: Vec<PathBuf> = std::fs::read_dir(&place)
        .map_err(|e| said(&place, &e))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect();
    sets.sort();
    let mut found: BTreeMap<String, Text> = BTreeMap::new();
    for set in sets {
        let list = set.join("index.json");
        let text = std::fs::read_to_string(&list).map_err(|e| said(&list, &e))?;
        let all: Value = serde_json::from_str(&text).map_err(|e| said(&list, &e))?;
        let all = all.as_object().ok_or_else(|| said(&list, &"no list of texts"))?;
        let name = set.file_name().unwrap_or_default().to_string_lossy();
        let tabled = name.starts_with("bench") || name.starts_with("variants");
        for (file, kernel) in all {
            let label = kernel["label"].as_str().unwrap_or("").to_string();
            if !label.starts_with(prefix) {
                continue;
            }
            let problems = kernel["problems"].as_array().into_iter().flatten();
            let problems = problems.filter_map(|p| p.as_str().map(String::from));
            let text = found.entry(file.clone()).or_insert_with(|| Text {
                path: set.join(file),
                label,
                problems: Vec::new(),
                tabled,
            });
            for problem in problems {
                if !text.problems.contains(&problem) {
                    text.problems.push(problem);
                }
            }
        }
    }
    let mut texts: Vec<Text> = found.into_values().collect();
    texts.sort_by(|a, b| {
        (!a.tabled, a.kernel(), &a.problems).cmp(&(!b.tabled, b.kernel(), &b.problems))
    });
    Ok(texts)
}
