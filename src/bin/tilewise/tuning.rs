//! The file that holds an adapter's tuned tiles.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tilewise::{Context, Tuning};

use crate::Failure;

/// Version of the file's format.
const SCHEMA: u32 = 1;

/// What a table was measured on: it is worth nothing elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    schema: u32,
    tilewise: String,
    adapter: String,
    backend: String,
    driver: String,
    /// The class of device that its kernels were planned for.
    #[serde(default)]
    class: String,
}

#[derive(Serialize, Deserialize)]
struct File {
    origin: Origin,
    tuning: Tuning,
}

impl Origin {
    pub(crate) fn of(ctx: &Context) -> Self {
        let info = ctx.device.adapter_info();
        Self {
            schema: SCHEMA,
            tilewise: env!("CARGO_PKG_VERSION").into(),
            adapter: info.name.clone(),
            backend: info.backend.to_string(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
            class: ctx.caps.class.to_string(),
        }
    }

    /// Where this adapter's table is kept; `None` for a user without a home.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        let dirs = directories::ProjectDirs::from("", "", "tilewise")?;
        let Self { adapter, backend, driver, tilewise, class, .. } = self;
        let text = format!("{class} {adapter} {backend} {driver} {tilewise}");
        let mut name = String::from("tuning");
        for word in text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()) {
            name.push('-');
            name += &word.to_lowercase();
        }
        name.truncate(150);
        Some(dirs.cache_dir().join(name + ".json"))
    }

    /// Reads a table, if it is one and of this origin.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(crate) fn read(&self, path: &Path) -> Result<Tuning, Failure> {
        let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let file: File = serde_json::from_slice(&bytes)
            .map_err(|e| format!("{}: not a tuning table: {e}", path.display()))?;
        if file.origin != *self {
            let o = file.origin;
            return Err(format!(
                "{}: measured by tilewise {} on {} ({}, {}) with kernels for a {}, not on this",
                path.display(),
                o.tilewise,
                o.adapter,
                o.backend,
                o.driver,
                o.class
            )
            .into());
        }
        Ok(file.tuning)
    }

    /// Writes a table whole or not at all.
    pub(crate) fn write(&self, path: &Path, tuning: &Tuning) -> Result<(), Failure> {
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let file = File { origin: self.clone(), tuning: tuning.clone() };
        let text = serde_json::to_string_pretty(&file)? + "\n";
        // beside it, so that the rename stays on one file system
        let part = path.with_extension(format!("{}.part", std::process::id()));
        std::fs::write(&part, text).map_err(failed)?;
        std::fs::rename(&part, path).map_err(|e| {
            let _ = std::fs::remove_file(&part);
            failed(e).into()
        })
    }
}

/// The context with the table that the command line names, or with the adapter's own if there is
/// one. A table that cannot be trusted is passed over with a warning.
pub(crate) fn with_table(ctx: Context, wanted: Option<&str>) -> Result<Context, Failure> {
    let origin = Origin::of(&ctx);
    let path = match wanted {
        Some("off") => return Ok(ctx),
        Some(path) if !Path::new(path).exists() => {
            return Err(format!("--tuning {path}: no such file").into());
        }
        Some(path) => Some(PathBuf::from(path)),
        None => origin.path().filter(|p| p.exists()),
    };
    let Some(path) = path else { return Ok(ctx) };
    match origin.read(&path) {
        Ok(tuning) => Ok(ctx.with_tuning(tuning)),
        Err(e) => {
            eprintln!("warning: {e}; its tiles are not used");
            Ok(ctx)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Origin;
    use tilewise::{Tuned, Tuning};

    fn origin(adapter: &str) -> Origin {
        Origin {
            schema: 1,
            tilewise: "0.1.0".into(),
            adapter: adapter.into(),
            backend: "vulkan".into(),
            driver: "some driver 1.2".into(),
            class: "gpu".into(),
        }
    }

    #[test]
    fn tables_survive_and_others_are_refused() {
        let dir = std::env::temp_dir().join(format!("tilewise-tuning-{}", std::process::id()));
        let path = dir.join("deep/table.json");
        let tiles = vec![4, 8];
        let entries = [
            Tuned::Attention { workgroup: 8, queries: 4, block_k: 2 },
            Tuned::LinearAttention { chunk_size: 8 },
            Tuned::Neighborhood { axis: 0, tile: tiles, slots: 2, block_k: 4, lanes: 8 },
            Tuned::Gaunt { algorithm: tilewise::gaunt::Algorithm::Grid },
        ];
        let entries = entries.into_iter().enumerate().map(|(i, t)| (i.to_string(), t)).collect();
        let tuning = Tuning { entries };
        let own = origin("this one");
        own.write(&path, &tuning).unwrap();
        own.write(&path, &tuning).unwrap();
        assert_eq!(own.read(&path).unwrap(), tuning);
        // no part of a write is left behind
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);

        let said = origin("another").read(&path).unwrap_err().to_string();
        let origin = "on this one (vulkan, some driver 1.2) with kernels for a gpu, not on this";
        assert!(said.contains(origin), "{said}");
        let newer = Origin { tilewise: "9.0.0".into(), ..own.clone() };
        assert!(newer.read(&path).is_err());
        let text = std::fs::read_to_string(&path).unwrap();
        for broken in [&text[..text.len() / 2], "", "[]", "{\"origin\": 1}"] {
            std::fs::write(&path, broken).unwrap();
            let said = own.read(&path).unwrap_err().to_string();
            assert!(said.contains("not a tuning table"), "{said}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn every_adapter_has_a_file_of_its_own() {
        let [a, b] = ["GPU 1", "GPU 2"].map(|name| origin(name).path());
        // no home, no cache
        if let (Some(a), Some(b)) = (a, b) {
            assert_ne!(a, b);
            assert!(a.ends_with("tuning-gpu-gpu-1-vulkan-some-driver-1-2-0-1-0.json"), "{a:?}");
        }
    }
}
