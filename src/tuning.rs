//! Measured tiles instead of modelled ones.

use std::collections::BTreeMap;

use crate::{Error, Result, gaunt};

/// Tiles that measurement found better than the planner's choice, by class of problem: plain data,
/// for programs that ship a table of their own or read one from a file (with feature `cli` it
/// serialises by serde).
///
/// A context that has one ([`Context::with_tuning`](crate::Context::with_tuning)) looks into it for
/// every plan that leaves its tiles open. An entry that is not legal for the problem and the
/// device is passed over with a warning in the log: it never reaches the device.
///
/// Keys are made by `tuning_key` of the operators' options. They name all that a result's bits may
/// depend on through the tiles and nothing else: never the batch or a number of keys.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize, serde::Deserialize))]
pub struct Tuning {
    /// Tiles by key.
    pub entries: BTreeMap<String, Tuned>,
}

/// The tiles of one class of problems.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "cli", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "cli", serde(rename_all = "snake_case"))]
pub enum Tuned {
    /// [`attention::Tiles`](crate::attention::Tiles).
    Attention {
        /// Invocations in a workgroup.
        workgroup: u32,
        /// Query rows of one invocation.
        queries: u32,
        /// Keys between two corrections of the running maximum.
        block_k: u32,
    },
    /// [`LinearAttention::chunk_size`](crate::linear_attention::LinearAttention::chunk_size).
    LinearAttention {
        /// Tokens taken at a time.
        chunk_size: u32,
    },
    /// [`NeighborhoodTiles`](crate::neighborhood::NeighborhoodTiles).
    Neighborhood {
        /// Axis along which a workgroup walks.
        axis: u32,
        /// Queries of one workgroup along each axis.
        tile: Vec<u32>,
        /// Queries that an invocation holds at once.
        slots: u32,
        /// Keys visited between two updates of the softmax statistics.
        block_k: u32,
        /// Invocations of a workgroup.
        lanes: u32,
    },
    /// The route of a Gaunt product.
    Gaunt {
        /// Table, grid or Fourier series.
        algorithm: gaunt::Algorithm,
    },
}

/// The plan that `tuned` gives, or the planner's own if there is none or it is refused.
pub(crate) fn plan_or<P>(
    key: impl FnOnce() -> String,
    tuned: Option<Result<P>>,
    own: impl FnOnce() -> Result<P>,
) -> Result<P> {
    match tuned {
        Some(Ok(plan)) => Ok(plan),
        Some(Err(refused)) => {
            // a problem that is refused whatever its tiles says so itself
            let plan = own()?;
            log::warn!("tuning table: {}: {refused}; passed over", key());
            Ok(plan)
        }
        None => own(),
    }
}

/// What is wrong with an entry.
pub(crate) fn refuse(op: &'static str, problem: &str) -> Error {
    Error::argument(op, "tuning", problem)
}
