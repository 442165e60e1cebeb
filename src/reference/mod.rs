//! What each operator means: its formula in f64, written as directly as possible, without tiles
//! and without code shared with the kernels. Slow; for checking.

pub mod neighborhood;
