//! Reads golden cases: safetensors files whose header carries a `golden` JSON text.
//!
//! The container is parsed here rather than by a library: a header whose offsets overflow must be
//! an error that names the file, on every build profile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::DType;

/// Largest header that is read, in bytes. The largest golden header is under 20 KB.
const MAX_HEADER: u64 = 64 << 20;

/// Why a case cannot be read. Every message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaseError {
    /// The file or folder cannot be read, or a result not written.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not a safetensors file, or its header contradicts its length.
    #[error("{}: not a safetensors file: {problem}", path.display())]
    Container {
        /// File.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The header has no `golden` entry, or one that does not describe a case.
    #[error("{}: golden: {problem}", path.display())]
    Golden {
        /// File.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A tensor that is missing, of an unknown element type, or of another shape than the case says.
    #[error("{}: tensor {name}: {problem}", path.display())]
    Tensor {
        /// File.
        path: PathBuf,
        /// Tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

/// The elements of a case's tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Values.
    F32(Vec<f32>),
    /// Masks, 1 = visible.
    U8(Vec<u8>),
    /// Lengths.
    I32(Vec<i32>),
}

/// A tensor of a case, contiguous and row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseTensor {
    /// Sizes, outermost first. Their product is the number of elements and fits `u32`s each.
    pub shape: Vec<u32>,
    /// Elements.
    pub data: Data,
}

/// What a case wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// The outputs of the file, within the tolerance.
    Values,
    /// A refusal of the arguments.
    Error,
}

/// How far an output may be from the wanted one; see [`judge`](super::judge).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Equal in every entry.
    Exact,
    /// `|got - want| <= atol + rtol * |want|` everywhere and `||got - want|| <= rel_l2 * ||want||`.
    Close {
        /// Absolute part.
        atol: f64,
        /// Relative part.
        rtol: f64,
        /// Of the whole tensor, Euclidean.
        rel_l2: f64,
    },
}

impl Tolerance {
    /// This tolerance with every figure multiplied by `factor`.
    pub fn times(self, factor: f64) -> Self {
        match self {
            Self::Exact => Self::Exact,
            Self::Close { atol, rtol, rel_l2 } => {
                Self::Close { atol: atol * factor, rtol: rtol * factor, rel_l2: rel_l2 * factor }
            }
        }
    }
}

/// One golden case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name of the case: letters, digits, `_`, `-`, `.`; names the result file.
    pub name: String,
    /// Operator, e.g. `sdpa`.
    pub op: String,
    /// Family, e.g. `natten`.
    pub family: String,
    /// Every argument of the operator, by name.
    pub params: Map<String, Value>,
    /// Axis names of each tensor.
    pub dims: BTreeMap<String, String>,
    /// The exact definition, in words and formulas.
    pub semantics: String,
    /// Values or a refusal.
    pub expect: Expect,
    /// An operator beyond the core: unsupported is fine.
    pub optional: bool,
    /// The case can be run with 16-bit tensors.
    pub f16_applicable: bool,
    /// The inputs lose nothing in f16.
    pub inputs_f16_exact: bool,
    /// Per element type (`f32`, `f16`), per output.
    pub(super) tolerance: BTreeMap<String, BTreeMap<String, Tolerance>>,
    /// `in.*` and `out.*`.
    pub(super) tensors: BTreeMap<String, CaseTensor>,
}

impl Case {
    /// Reads one file.
    ///
    /// # Errors
    /// [`CaseError`], naming the file: it cannot be read, is truncated, lies about its shapes, is
    /// not safetensors at all, or its `golden` text is missing or malformed.
    pub fn read(path: &Path) -> Result<Self, CaseError> {
        let bytes =
            std::fs::read(path).map_err(|source| CaseError::Io { path: path.into(), source })?;
        Self::parse(path, &bytes)
    }

    /// Parses the bytes of a file; `path` only serves the messages.
    ///
    /// # Errors
    /// As [`Case::read`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, CaseError> {
        let container = |problem| CaseError::Container { path: path.into(), problem };
        let golden = |problem| CaseError::Golden { path: path.into(), problem };
        let (header, body) = split(bytes).map_err(container)?;
        let mut header: Map<String, Value> =
            serde_json::from_str(header).map_err(|e| container(format!("header: {e}")))?;
        let meta = header.remove("__metadata__");

        let tensors = read_tensors(path, header, body)?;

        let text = meta
            .as_ref()
            .and_then(|m| m.get("golden"))
            .ok_or_else(|| golden("the header has no such entry".into()))?;
        let text = text.as_str().ok_or_else(|| golden("expected a JSON text".into()))?;
        let raw: Golden =
            serde_json::from_str(&quote_non_finite(text)).map_err(|e| golden(e.to_string()))?;

        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if raw.name.is_empty() || raw.name.starts_with('.') || !raw.name.chars().all(plain) {
            return Err(golden(format!(
                "name: expected letters, digits, `_`, `-` and `.`, got {:?}",
                raw.name
            )));
        }
        for (name, shape) in &raw.shapes {
            let tensor =
                |problem| CaseError::Tensor { path: path.into(), name: name.clone(), problem };
            let got = tensors
                .get(name)
                .ok_or_else(|| tensor("the case names it, the file lacks it".into()))?;
            if !got.shape.iter().map(|&n| u64::from(n)).eq(shape.iter().copied()) {
                return Err(tensor(format!(
                    "the case says shape {shape:?}, the file has {:?}",
                    got.shape
                )));
            }
        }
        let mut tolerance = BTreeMap::new();
        for (dtype, outputs) in raw.tolerance {
            let mut of_dtype = BTreeMap::new();
            for (name, t) in outputs {
                if !tensors.contains_key(&name) {
                    return Err(golden(format!("tolerance.{dtype}: the file has no {name}")));
                }
                let t = t.check().map_err(|e| golden(format!("tolerance.{dtype}.{name}: {e}")))?;
                of_dtype.insert(name, t);
            }
            tolerance.insert(dtype, of_dtype);
        }
        if raw.expect == Expect::Values && tolerance.get("f32").is_none_or(BTreeMap::is_empty) {
            return Err(golden("a case that expects values needs tolerance.f32".into()));
        }
        Ok(Self {
            name: raw.name,
            op: raw.op,
            family: raw.family,
            params: raw.params,
            dims: raw.dims,
            semantics: raw.semantics,
            expect: raw.expect,
            optional: raw.optional,
            f16_applicable: raw.f16_applicable,
            inputs_f16_exact: raw.inputs_f16_exact,
            tolerance,
            tensors,
        })
    }

    /// Outputs to be judged for tensors of type `dtype`, with their tolerances. bf16 has 8 times
    /// the tolerances of f16, for its 8 times larger unit roundoff.
    pub fn tolerances(&self, dtype: DType) -> Vec<(&str, Tolerance)> {
        let (key, factor) = match dtype {
            DType::F32 => ("f32", 1.0),
            DType::F16 => ("f16", 1.0),
            DType::BF16 => ("f16", 8.0),
            // no operator's outputs are integers
            DType::I8 | DType::U8 => return Vec::new(),
        };
        let of_dtype = self.tolerance.get(key).into_iter().flatten();
        of_dtype.map(|(name, t)| (name.as_str(), t.times(factor))).collect()
    }

    /// The tensor of that name, e.g. `in.q`, if the case has it.
    pub fn tensor(&self, name: &str) -> Option<&CaseTensor> {
        self.tensors.get(name)
    }

    /// Names of the tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

/// Paths of the `.safetensors` files in `dir` and its folders, sorted.
///
/// # Errors
/// [`CaseError::Io`] if a folder cannot be listed.
pub fn case_files(dir: &Path) -> Result<Vec<PathBuf>, CaseError> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let io = |source| CaseError::Io { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let path = entry.path();
            // a link to a folder is not followed, so that a circle of links ends
            if entry.file_type().map_err(io)?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "safetensors") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The `golden` text, as written.
#[derive(Deserialize)]
struct Golden {
    name: String,
    op: String,
    family: String,
    params: Map<String, Value>,
    #[serde(default)]
    dims: BTreeMap<String, String>,
    #[serde(default)]
    shapes: BTreeMap<String, Vec<u64>>,
    #[serde(default)]
    semantics: String,
    expect: Expect,
    #[serde(default)]
    pub(super) tolerance: BTreeMap<String, BTreeMap<String, RawTolerance>>,
    #[serde(default)]
    optional: bool,
    #[serde(default)]
    f16_applicable: bool,
    #[serde(default)]
    inputs_f16_exact: bool,
}

#[derive(Deserialize)]
struct RawTolerance {
    #[serde(default)]
    exact: bool,
    atol: Option<f64>,
    rtol: Option<f64>,
    rel_l2: Option<f64>,
}

impl RawTolerance {
    fn check(&self) -> Result<Tolerance, String> {
        if self.exact {
            return Ok(Tolerance::Exact);
        }
        let figure = |name: &str, v: Option<f64>| match v {
            Some(x) if x.is_finite() && x >= 0.0 => Ok(x),
            Some(x) => Err(format!("{name}: expected a finite number >= 0, got {x}")),
            None => Err(format!("{name} is missing")),
        };
        Ok(Tolerance::Close {
            atol: figure("atol", self.atol)?,
            rtol: figure("rtol", self.rtol)?,
            rel_l2: figure("rel_l2", self.rel_l2)?,
        })
    }
}

/// One tensor's entry in the header.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Header text and body of a safetensors file.
fn split(bytes: &[u8]) -> Result<(&str, &[u8]), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("{} bytes, too few for the 8-byte header length", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("header length {length}, the limit is {MAX_HEADER}"));
    }
    let (header, body) = usize::try_from(length)
        .ok()
        .and_then(|n| rest.split_at_checked(n))
        .ok_or_else(|| format!("header length {length}, {} bytes follow", rest.len()))?;
    let header = std::str::from_utf8(header).map_err(|e| format!("header: {e}"))?;
    Ok((header, body))
}

/// Checks every entry against the body and copies the elements out.
fn read_tensors(
    path: &Path,
    header: Map<String, Value>,
    body: &[u8],
) -> Result<BTreeMap<String, CaseTensor>, CaseError> {
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::with_capacity(header.len());
    for (name, entry) in header {
        let fail = |problem| CaseError::Tensor { path: path.into(), name: name.clone(), problem };
        let entry: Entry = serde_json::from_value(entry).map_err(|e| fail(e.to_string()))?;
        let size: u64 = match entry.dtype.as_str() {
            "F32" | "I32" => 4,
            "U8" | "BOOL" => 1,
            other => {
                return Err(fail(format!(
                    "element type: expected F32, I32, U8 or BOOL, got {other}"
                )));
            }
        };
        let bytes = entry.shape.iter().try_fold(size, |n, &d| n.checked_mul(d));
        let shape: Option<Vec<u32>> = entry.shape.iter().map(|&d| d.try_into().ok()).collect();
        let (Some(bytes), Some(shape)) = (bytes, shape) else {
            return Err(fail(format!("shape {:?} is too large", entry.shape)));
        };
        let (start, end) = entry.data_offsets;
        if end.checked_sub(start) != Some(bytes) {
            return Err(fail(format!(
                "shape {:?} of {} takes {bytes} bytes, its offsets say {start}..{end}",
                entry.shape, entry.dtype
            )));
        }
        let data = usize::try_from(start)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(s, e)| body.get(s..e))
            .ok_or_else(|| {
                fail(format!("offsets {start}..{end}, the file holds {} bytes", body.len()))
            })?;
        let data = match entry.dtype.as_str() {
            "F32" => Data::F32(words(data).map(f32::from_le_bytes).collect()),
            "I32" => Data::I32(words(data).map(i32::from_le_bytes).collect()),
            _ => Data::U8(data.to_vec()),
        };
        ranges.push((start, end));
        tensors.insert(name, CaseTensor { shape, data });
    }
    // the tensors tile the body: no gap, no overlap, nothing after the last
    ranges.sort_unstable();
    let tiled = ranges.iter().try_fold(0, |at, &(s, e)| (s == at).then_some(e));
    if tiled != Some(body.len() as u64) {
        return Err(CaseError::Container {
            path: path.into(),
            problem: format!(
                "the tensors do not cover the {} bytes after the header once",
                body.len()
            ),
        });
    }
    Ok(tensors)
}

/// Four bytes at a time; the length is a multiple of four by the caller's check.
fn words(data: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    data.as_chunks::<4>().0.iter().copied()
}

/// Puts the bare words `NaN`, `Infinity` and `-Infinity`, which Python writes into JSON, between
/// quotes; text inside strings is left alone.
fn quote_non_finite(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        let word = (!in_string)
            .then(|| ["NaN", "-Infinity", "Infinity"].into_iter().find(|w| rest.starts_with(w)))
            .flatten();
        if let Some(word) = word {
            out.extend(['"']);
            out.push_str(word);
            out.push('"');
            rest = &rest[word.len()..];
            continue;
        }
        let mut taken = c.len_utf8();
        if in_string && c == '\\' {
            // the escaped character, so that `\"` does not end the string
            taken += rest[taken..].chars().next().map_or(0, char::len_utf8);
        } else if c == '"' {
            in_string = !in_string;
        }
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::quote_non_finite;

    #[test]
    fn non_finite_words_are_quoted_outside_strings_only() {
        assert_eq!(
            quote_non_finite(r#"{"a": NaN, "b": [-Infinity, Infinity], "NaN": "NaN \" NaN"}"#),
            r#"{"a": "NaN", "b": ["-Infinity", "Infinity"], "NaN": "NaN \" NaN"}"#
        );
        assert_eq!(quote_non_finite("\"\\"), "\"\\");
    }
}
