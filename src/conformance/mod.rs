//! Golden cases: read them, run them on a device, judge the results.
//!
//! A case is a safetensors file with inputs, wanted outputs, the operator's arguments and a
//! tolerance, computed in f64 by another implementation. The format is described in
//! `tests/golden/FORMAT.md`; `tests/golden/verify.py` judges the results of a run independently.
//!
//! ```no_run
//! use tilewise::conformance::{self, Case};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let ctx = tilewise::Context::new_blocking()?;
//! for path in conformance::case_files("tests/golden".as_ref())? {
//!     let case = Case::read(&path)?;
//!     let outcome = conformance::run(&ctx, &case, tilewise::DType::F32);
//!     println!("{}: {:?}", case.name, conformance::verdict(&case, tilewise::DType::F32, &outcome));
//! }
//! # Ok(())
//! # }
//! ```

mod case;
mod judge;
mod ops;
#[cfg(test)]
mod race_tests;
mod random;
mod results;
mod run;

pub use case::{Case, CaseError, CaseTensor, Data, Expect, Tolerance, case_files};
pub use judge::{Distance, judge};
pub use random::{random_case, random_ops};
pub use results::write_result;
pub use run::{Outcome, Output, Stop, Verdict, run, run_guarded, verdict};
