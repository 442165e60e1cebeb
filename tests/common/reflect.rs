//! What naga says about a shader's structs.

use naga::{Module, TypeInner};

/// Members of struct `name` as `(member, byte offset, byte size)`, and the struct's own size last
/// as `("", size, 0)`. Empty when there is no such struct.
pub(crate) fn struct_layout(module: &Module, name: &str) -> Vec<(String, u32, u32)> {
    let sizes = {
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).expect("types with a layout");
        layouter
    };
    for (_, ty) in module.types.iter() {
        let TypeInner::Struct { members, span } = &ty.inner else { continue };
        if ty.name.as_deref() != Some(name) {
            continue;
        }
        return members
            .iter()
            .map(|m| (m.name.clone().unwrap_or_default(), m.offset, sizes[m.ty].size))
            .chain([(String::new(), *span, 0)])
            .collect();
    }
    Vec::new()
}
