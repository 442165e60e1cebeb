//! What unit tests share with the tests under `tests/`.
#![allow(dead_code, reason = "a part is used here")]

#[path = "../tests/common/reflect.rs"]
pub(crate) mod reflect;
#[path = "../tests/common/uniformity.rs"]
pub(crate) mod uniformity;
