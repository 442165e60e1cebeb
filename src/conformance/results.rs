//! Writes results for an independent judge.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use super::case::{Case, CaseError, Expect};
use super::run::{Outcome, Stop};

/// Writes `NAME.safetensors` (outputs), `NAME.error` (refused) or `NAME.skip` (not supported) into
/// `dir`, and removes what an earlier run left for the case under the other names.
///
/// A device failure is written as `NAME.error` where values were wanted, and not at all where a
/// refusal was: it must not count as one.
///
/// # Errors
/// [`CaseError::Io`] if the folder cannot be made or a file not written.
pub fn write_result(dir: &Path, case: &Case, outcome: &Outcome) -> Result<(), CaseError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| CaseError::Io { path, source }
    };
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    for ending in ["safetensors", "error", "skip"] {
        let path = dir.join(format!("{}.{ending}", case.name));
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&path)(e)),
            _ => {}
        }
    }
    let (ending, bytes) = match outcome {
        Ok(outputs) => {
            let bytes: Vec<(Vec<usize>, Vec<u8>)> = outputs
                .iter()
                .map(|o| {
                    let shape = o.shape.iter().map(|&n| n as usize).collect();
                    (shape, o.data.iter().flat_map(|x| x.to_le_bytes()).collect())
                })
                .collect();
            let views: Result<Vec<_>, _> = outputs
                .iter()
                .zip(&bytes)
                .map(|(o, (shape, b))| {
                    TensorView::new(Dtype::F32, shape.clone(), b).map(|v| (o.name.as_str(), v))
                })
                .collect();
            let text = views.and_then(|v| safetensors::serialize(v, None));
            let path = dir.join(format!("{}.safetensors", case.name));
            ("safetensors", text.map_err(std::io::Error::other).map_err(io(&path))?)
        }
        Err(Stop::Refused(why)) => ("error", why.clone().into_bytes()),
        Err(Stop::Unsupported(why)) => ("skip", why.clone().into_bytes()),
        Err(Stop::Failed(why)) if case.expect == Expect::Values => {
            ("error", why.clone().into_bytes())
        }
        Err(Stop::Failed(_)) => return Ok(()),
    };
    let path = dir.join(format!("{}.{ending}", case.name));
    std::fs::write(&path, bytes).map_err(io(&path))
}
