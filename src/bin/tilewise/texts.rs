//! `--dump-wgsl`: the texts of kernels in a folder, with a list that says what each is of.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tilewise::Context;

use crate::Failure;

/// The list's name in the folder.
const LIST: &str = "index.json";

/// What a text is of.
#[derive(Deserialize, Serialize)]
struct Kernel {
    /// File of the text, entry point and constants.
    label: String,
    /// Problems that need it, where it is known of which it is.
    problems: Vec<String>,
}

/// Texts by file name, each once.
pub(crate) struct Texts {
    dir: PathBuf,
    list: BTreeMap<String, Kernel>,
}

impl Texts {
    /// A folder, made if it is not there; what other runs wrote into it stays.
    pub(crate) fn open(dir: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let path = dir.join(LIST);
        let list = match std::fs::read_to_string(&path) {
            Ok(text) => {
                serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?
            }
            Err(_) => BTreeMap::new(),
        };
        Ok(Self { dir: dir.into(), list })
    }

    /// Writes the texts of a device's kernels: those of `problem`, if that is all that it compiled.
    pub(crate) fn add(&mut self, ctx: &Context, problem: Option<&str>) -> Result<(), Failure> {
        for (label, text) in ctx.compiled_texts() {
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            let name = format!("{:016x}.wgsl", hasher.finish());
            let path = self.dir.join(&name);
            std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
            let kernel =
                self.list.entry(name).or_insert_with(|| Kernel { label, problems: Vec::new() });
            if let Some(problem) = problem
                && !kernel.problems.iter().any(|p| p == problem)
            {
                kernel.problems.push(problem.into());
            }
        }
        Ok(())
    }

    /// Writes the list; how many texts there are.
    pub(crate) fn finish(self) -> Result<usize, Failure> {
        let path = self.dir.join(LIST);
        std::fs::write(&path, serde_json::to_string_pretty(&self.list)?)
            .map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(self.list.len())
    }
}
