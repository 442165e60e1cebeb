//! What unit tests share with the tests under `tests/`.
#![allow(dead_code, reason = "a part is used here")]

#[path = "../tests/common/noop.rs"]
mod noop;
#[path = "../tests/common/races.rs"]
pub(crate) mod races;
#[path = "../tests/common/reflect.rs"]
pub(crate) mod reflect;
#[path = "../tests/common/uniformity.rs"]
pub(crate) mod uniformity;

/// Names and offsets of a struct's fields, and its size.
macro_rules! fields {
    ($type:ty: $($field:ident)*) => {
        (
            [$((stringify!($field), std::mem::offset_of!($type, $field))),*].to_vec(),
            std::mem::size_of::<$type>(),
        )
    };
}
pub(crate) use fields;

/// Asserts that `Params` of a kernel's text has these fields, offsets and size, see [`fields`].
pub(crate) fn assert_params(wgsl: &str, (fields, size): (Vec<(&str, usize)>, usize)) {
    let module = naga::front::wgsl::parse_str(wgsl).unwrap_or_else(|e| panic!("{e}"));
    let found = reflect::struct_layout(&module, "Params");
    let (last, members) = found.split_last().expect("a struct Params");
    let members: Vec<_> =
        members.iter().map(|(name, at, _)| (name.as_str(), *at as usize)).collect();
    assert_eq!(members, fields);
    assert_eq!(last.1 as usize, size);
}

/// A device that computes nothing, with subgroups of 4 to 64.
pub(crate) fn noop() -> crate::Context {
    pollster::block_on(crate::Context::from_adapter(&noop::noop_adapter())).unwrap()
}
