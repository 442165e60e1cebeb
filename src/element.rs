//! Element types of tensors in memory, and the WGSL that reads and writes them.
//!
//! Arithmetic is f32 on every device. f16 and bf16 are *storage*: a kernel sees them as packed
//! halves of `u32` words and converts on load and store, so that no device feature is needed
//! (`SHADER_F16` is missing on many). A kernel file declares each tensor on one line,
//!
//! ```wgsl
//! @group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; fn q_load4(i: u32) -> vec4<f32> { return q[i >> 2u]; } // @tensor
//! ```
//!
//! which is valid WGSL for f32; [`TensorDecl::wgsl`] writes the line again for the element type,
//! alignment and direction at hand.

use half::{bf16, f16};

use crate::{
    Error,
    texels::{self, ROW},
};

/// Element type of a tensor in memory. Sums are f32 whatever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision, 4 bytes.
    #[default]
    F32,
    /// IEEE half precision, 2 bytes, as storage.
    F16,
    /// bfloat16, 2 bytes, as storage. Stores round to nearest, ties to even.
    BF16,
    /// Signed bytes: quantised keys and values. No operator computes in it.
    I8,
    /// Bytes: boolean masks, 0 for false.
    U8,
}

impl DType {
    /// Size of one element in bytes.
    pub const fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::I8 | Self::U8 => 1,
        }
    }

    /// Lower-case name: `f32`, `f16`, `bf16`, `i8`, `u8`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I8 => "i8",
            Self::U8 => "u8",
        }
    }

    /// Refuses what operators do not compute with: the integers.
    pub(crate) fn expect_float(self, op: &'static str) -> Result<(), Error> {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => Ok(()),
            Self::I8 | Self::U8 => Err(Error::value(op, "dtype", "f32, f16 or bf16", self)),
        }
    }

    /// Half the distance from 1 to the next larger number: the relative error of one rounding.
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            Self::F32 => 5.960_464_477_539_063e-8,
            Self::F16 => 4.882_812_5e-4,
            Self::BF16 => 3.906_25e-3,
            Self::I8 | Self::U8 => 0.5,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::BF16),
            other => Err(format!("expected f32, f16 or bf16, got {other}")),
        }
    }
}

/// A Rust type whose slices can be uploaded to and downloaded from a tensor.
pub trait Element: bytemuck::Pod {
    /// The element type in memory.
    const DTYPE: DType;
    /// The nearest element to `x`.
    fn from_f32(x: f32) -> Self;
    /// The value, exactly.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    fn from_f32(x: f32) -> Self {
        x
    }
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

impl Element for i8 {
    const DTYPE: DType = DType::I8;
    #[expect(clippy::cast_possible_truncation, reason = "a float cast saturates")]
    fn from_f32(x: f32) -> Self {
        x.round() as Self
    }
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

impl Element for u8 {
    const DTYPE: DType = DType::U8;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float cast saturates"
    )]
    fn from_f32(x: f32) -> Self {
        x.round() as Self
    }
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

/// Whether a tensor is read eight elements at a time, and by which words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Eights {
    #[default]
    No,
    /// One load of all eight, or two of f32: for GPUs.
    Words,
    /// Words of 64 bits. Mesa's llvmpipe before release 25 loads a word of one lane after the other, and
    /// one of 64 bits as fast as one of 32.
    LongWords,
}

/// How a kernel sees one tensor binding: everything that changes its declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TensorDecl {
    pub(crate) dtype: DType,
    /// Every row starts at a multiple of four elements and is a multiple of four long.
    pub(crate) vec4: bool,
    /// Read from a texture, see [`texels`](crate::texels); `vec4`, and read only.
    pub(crate) texels: bool,
    /// Read eight elements at a time, where rows start at multiples of eight; `vec4`, and read only.
    pub(crate) eights: Eights,
    /// Floats read two at a time, f32 as a 64-bit word, where rows start at multiples of two; read only.
    pub(crate) pairs: bool,
    /// Bound as what is written, though it is only read: for an input in the buffer of an output. Not
    /// with the forms above.
    pub(crate) beside: bool,
}

impl TensorDecl {
    pub(crate) const fn new(dtype: DType, vec4: bool) -> Self {
        Self { dtype, vec4, texels: false, eights: Eights::No, pairs: false, beside: false }
    }

    /// The same, for an input that lies in the buffer of an output: within one kernel, a device lets a
    /// buffer be read only or written.
    pub(crate) fn beside_outputs(self) -> Self {
        Self { beside: true, ..self }
    }

    /// One line of WGSL that declares binding `index` as `name`, with its access functions.
    ///
    /// Indices are in elements from the start of the binding.
    /// - read: `NAME_load(i)`, `NAME_load4(i)` (four consecutive; `i` a multiple of four where
    ///   `vec4`), `NAME_load4n(i, n)` (the first `n` of four, then zeros).
    /// - write: `NAME_store(i, x)`, `NAME_store4(i, x)`, `NAME_store4n(i, n, x)`; for scalar f32
    ///   also `NAME_store_bits(i, u)`: WGSL has no infinity, an LSE of -inf is stored as its bits.
    /// - a write binding can be read too, through the same load functions.
    ///
    /// Unaligned 16-bit stores go through integer atomics: two invocations may own the two halves
    /// of one word, and each must leave the other half as it is. `NAME_store` of an aligned
    /// 16-bit tensor is not generated: a kernel that needs it asks for `vec4: false`.
    ///
    /// Bytes can only be read.
    pub(crate) fn wgsl(self, name: &str, index: u32, writable: bool) -> String {
        match self.eights {
            Eights::No => {}
            Eights::Words => return self.words_wgsl(name, index),
            Eights::LongWords => return self.long_words_wgsl(name, index),
        }
        if self.pairs {
            return self.pairs_wgsl(name, index);
        }
        if matches!(self.dtype, DType::I8 | DType::U8) {
            return self.bytes_wgsl(name, index);
        }
        if self.texels {
            return self.texels_wgsl(name, index);
        }
        let access = if writable || self.beside { "read_write" } else { "read" };
        let packed = self.dtype != DType::F32;
        let (cell, load, load4, load4n): (&str, String, String, String) = match (packed, self.vec4)
        {
            (false, true) => (
                "vec4<f32>",
                format!("return {name}[i >> 2u][i & 3u];"),
                format!("return {name}[i >> 2u];"),
                format!("return {name}_load4(i);"),
            ),
            (false, false) => (
                "f32",
                format!("return {name}[i];"),
                format!(
                    "return vec4<f32>({name}[i], {name}[i + 1u], {name}[i + 2u], {name}[i + 3u]);"
                ),
                load4n_by_element(name),
            ),
            (true, true) => (
                "vec2<u32>",
                format!(
                    "let w = {name}[i >> 2u]; return {decode}(w)[i & 3u];",
                    decode = self.decode4()
                ),
                format!("return {decode}({name}[i >> 2u]);", decode = self.decode4()),
                format!("return {name}_load4(i);"),
            ),
            (true, false) => {
                let word = if writable {
                    format!("atomicLoad(&{name}[i >> 1u])")
                } else {
                    format!("{name}[i >> 1u]")
                };
                (
                    if writable { "atomic<u32>" } else { "u32" },
                    format!("return {decode}({word}, i & 1u);", decode = self.decode1()),
                    format!(
                        "return vec4<f32>({name}_load(i), {name}_load(i + 1u), {name}_load(i + 2u), {name}_load(i + 3u));"
                    ),
                    load4n_by_element(name),
                )
            }
        };
        let mut line = format!(
            "@group(0) @binding({index}) var<storage, {access}> {name}: array<{cell}>; \
             fn {name}_load(i: u32) -> f32 {{ {load} }} \
             fn {name}_load4(i: u32) -> vec4<f32> {{ {load4} }} \
             fn {name}_load4n(i: u32, n: u32) -> vec4<f32> {{ {load4n} }}"
        );
        if writable {
            let store1 = match (packed, self.vec4) {
                (false, true) => Some(format!("{name}[i >> 2u][i & 3u] = x;")),
                (false, false) => Some(format!("{name}[i] = x;")),
                (true, true) => None,
                (true, false) => Some(format!(
                    "let s = (i & 1u) * 16u; let h = {encode}(x) << s; \
                     atomicAnd(&{name}[i >> 1u], ~(0xffffu << s)); atomicOr(&{name}[i >> 1u], h);",
                    encode = self.encode1()
                )),
            };
            let (store4, store4n) = match (packed, self.vec4) {
                (false, true) => (format!("{name}[i >> 2u] = x;"), format!("{name}_store4(i, x);")),
                (true, true) => (
                    format!("{name}[i >> 2u] = {encode}(x);", encode = self.encode4()),
                    format!("{name}_store4(i, x);"),
                ),
                (_, false) => (
                    format!(
                        "{name}_store(i, x.x); {name}_store(i + 1u, x.y); {name}_store(i + 2u, x.z); {name}_store(i + 3u, x.w);"
                    ),
                    format!(
                        "if n > 0u {{ {name}_store(i, x.x); }} if n > 1u {{ {name}_store(i + 1u, x.y); }} \
                         if n > 2u {{ {name}_store(i + 2u, x.z); }} if n > 3u {{ {name}_store(i + 3u, x.w); }}"
                    ),
                ),
            };
            if self == Self::new(DType::F32, false) {
                line += &format!(
                    " fn {name}_store_bits(i: u32, x: u32) {{ {name}[i] = bitcast<f32>(x); }}"
                );
            }
            if let Some(store1) = store1 {
                line += &format!(" fn {name}_store(i: u32, x: f32) {{ {store1} }}");
            }
            line += &format!(
                " fn {name}_store4(i: u32, x: vec4<f32>) {{ {store4} }} \
                 fn {name}_store4n(i: u32, n: u32, x: vec4<f32>) {{ {store4n} }}"
            );
        }
        line
    }

    /// [`wgsl`](Self::wgsl) for bytes: four to a word.
    fn bytes_wgsl(self, name: &str, index: u32) -> String {
        // the sign is spread by an arithmetic shift from the top
        let (load, load4) = if self.dtype == DType::I8 {
            (
                format!(
                    "return f32(bitcast<i32>({name}[i >> 2u] << (24u - (i & 3u) * 8u)) >> 24u);"
                ),
                format!(
                    "let w = {name}[i >> 2u]; return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(w << 24u, w << 16u, w << 8u, w)) >> vec4<u32>(24u));"
                ),
            )
        } else {
            (
                format!("return f32(({name}[i >> 2u] >> ((i & 3u) * 8u)) & 255u);"),
                format!(
                    "let w = {name}[i >> 2u]; return vec4<f32>((vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));"
                ),
            )
        };
        let (load4, load4n) = if self.vec4 {
            (load4, format!("return {name}_load4(i);"))
        } else {
            (
                format!(
                    "return vec4<f32>({name}_load(i), {name}_load(i + 1u), {name}_load(i + 2u), {name}_load(i + 3u));"
                ),
                load4n_by_element(name),
            )
        };
        format!(
            "@group(0) @binding({index}) var<storage, read> {name}: array<u32>; \
             fn {name}_load(i: u32) -> f32 {{ {load} }} \
             fn {name}_load4(i: u32) -> vec4<f32> {{ {load4} }} \
             fn {name}_load4n(i: u32, n: u32) -> vec4<f32> {{ {load4n} }}"
        )
    }

    /// [`wgsl`](Self::wgsl) for sixteen bytes to a texel; 16-bit rows are whole texels, and
    /// `NAME_load8(i)` gives the eight elements of one.
    ///
    /// Storage textures, as their loads know no mip levels: llvmpipe looks a sampled texture's up for
    /// every lane.
    fn texels_wgsl(self, name: &str, index: u32) -> String {
        let elements = texels::elements(self.dtype);
        let (load4, load8) = match elements {
            4 => ("bitcast<vec4<f32>>(t)".to_owned(), String::new()),
            _ => {
                let decode = self.decode4();
                (
                    format!("{decode}(select(t.xy, t.zw, (i & 4u) != 0u))"),
                    format!(
                        " fn {name}_load8(i: u32) -> array<vec4<f32>, 2> {{ let t = {name}_texel(i); return array<vec4<f32>, 2>({decode}(t.xy), {decode}(t.zw)); }}"
                    ),
                )
            }
        };
        let (mask, texel, row) = (ROW - 1, elements.ilog2(), (elements * ROW).ilog2());
        format!(
            "@group(0) @binding({index}) var {name}: texture_storage_2d<rgba32uint, read>; \
             fn {name}_texel(i: u32) -> vec4<u32> {{ return textureLoad({name}, vec2<u32>((i >> {texel}u) & {mask}u, i >> {row}u)); }} \
             fn {name}_load(i: u32) -> f32 {{ return {name}_load4(i)[i & 3u]; }} \
             fn {name}_load4(i: u32) -> vec4<f32> {{ let t = {name}_texel(i); return {load4}; }} \
             fn {name}_load4n(i: u32, n: u32) -> vec4<f32> {{ return {name}_load4(i); }}{load8}"
        )
    }

    /// [`wgsl`](Self::wgsl) for eight elements at a time, of which `NAME_load8(i)` is the only access.
    fn words_wgsl(self, name: &str, index: u32) -> String {
        let (cell, two) = match self.dtype {
            DType::F32 => {
                let at = "let at = i >> 2u;";
                (
                    "vec4<f32>",
                    format!("{at} return array<vec4<f32>, 2>({name}[at], {name}[at + 1u]);"),
                )
            }
            DType::F16 | DType::BF16 => {
                let half = |words: &str| format!("{}(w.{words})", self.decode4());
                let (x, y) = (half("xy"), half("zw"));
                let w = format!("let w = {name}[i >> 3u];");
                ("vec4<u32>", format!("{w} return array<vec4<f32>, 2>({x}, {y});"))
            }
            DType::I8 | DType::U8 => {
                let four = |w: &str| self.four_bytes(&format!("w.{w}"));
                let (x, y) = (four("x"), four("y"));
                let w = format!("let w = {name}[i >> 3u];");
                ("vec2<u32>", format!("{w} return array<vec4<f32>, 2>({x}, {y});"))
            }
        };
        format!(
            "@group(0) @binding({index}) var<storage, read> {name}: array<{cell}>; \
             fn {name}_load8(i: u32) -> array<vec4<f32>, 2> {{ {two} }}"
        )
    }

    /// Four bytes of the word `w` as floats, spread by a shift from the top, which for the signed keeps
    /// the sign.
    fn four_bytes(self, w: &str) -> String {
        let int = if self.dtype == DType::I8 { "i32" } else { "u32" };
        format!(
            "vec4<f32>(bitcast<vec4<{int}>>(vec4<u32>({w}) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u))"
        )
    }

    /// The same by words of 64 bits, which are no WGSL.
    fn long_words_wgsl(self, name: &str, index: u32) -> String {
        let (cell, two) = match self.dtype {
            DType::F32 => (
                "vec4<u64>",
                "return array<vec4<f32>, 2>(bitcast<vec4<f32>>(vec4<u32>(u32(w.x), u32(w.x >> 32u), u32(w.y), u32(w.y >> 32u))), \
                 bitcast<vec4<f32>>(vec4<u32>(u32(w.z), u32(w.z >> 32u), u32(w.w), u32(w.w >> 32u))));"
                    .to_owned(),
            ),
            DType::F16 | DType::BF16 => (
                "vec2<u64>",
                format!(
                    "return array<vec4<f32>, 2>({decode}(vec2<u32>(u32(w.x), u32(w.x >> 32u))), {decode}(vec2<u32>(u32(w.y), u32(w.y >> 32u))));",
                    decode = self.decode4()
                ),
            ),
            DType::I8 | DType::U8 => {
                let (x, y) = (self.four_bytes("u32(w)"), self.four_bytes("u32(w >> 32u)"));
                ("u64", format!("return array<vec4<f32>, 2>({x}, {y});"))
            }
        };
        format!(
            "@group(0) @binding({index}) var<storage, read> {name}: array<{cell}>; \
             fn {name}_load8(i: u32) -> array<vec4<f32>, 2> {{ let w = {name}[i >> 3u]; {two} }}"
        )
    }

    /// [`wgsl`](Self::wgsl) for two elements at a time, by `NAME_load2(i)` or one of them.
    fn pairs_wgsl(self, name: &str, index: u32) -> String {
        let (cell, x, y) = match self.dtype {
            DType::F32 => {
                ("u64", "bitcast<f32>(u32(w))".to_owned(), "bitcast<f32>(u32(w >> 32u))".to_owned())
            }
            _ => {
                let one = |half: u32| format!("{}(w, {half}u)", self.decode1());
                ("u32", one(0), one(1))
            }
        };
        format!(
            "@group(0) @binding({index}) var<storage, read> {name}: array<{cell}>; \
             fn {name}_load2(i: u32) -> vec2<f32> {{ let w = {name}[i >> 1u]; return vec2<f32>({x}, {y}); }} \
             fn {name}_load(i: u32) -> f32 {{ return {name}_load2(i)[i & 1u]; }}"
        )
    }

    /// The line of an optional tensor that is absent: no binding, loads of zero, no stores.
    pub(crate) fn absent(name: &str, writable: bool) -> String {
        let mut line = format!(
            "fn {name}_load(i: u32) -> f32 {{ return 0.0; }} \
             fn {name}_load4(i: u32) -> vec4<f32> {{ return vec4<f32>(0.0); }} \
             fn {name}_load4n(i: u32, n: u32) -> vec4<f32> {{ return vec4<f32>(0.0); }}"
        );
        if writable {
            line += &format!(
                " fn {name}_store(i: u32, x: f32) {{ }} fn {name}_store_bits(i: u32, x: u32) {{ }} \
                 fn {name}_store4(i: u32, x: vec4<f32>) {{ }} \
                 fn {name}_store4n(i: u32, n: u32, x: vec4<f32>) {{ }}"
            );
        }
        line
    }

    fn decode4(self) -> &'static str {
        if self.dtype == DType::BF16 { "decode4_bf16" } else { "decode4_f16" }
    }
    fn encode4(self) -> &'static str {
        if self.dtype == DType::BF16 { "encode4_bf16" } else { "encode4_f16" }
    }
    fn decode1(self) -> &'static str {
        if self.dtype == DType::BF16 { "decode1_bf16" } else { "decode1_f16" }
    }
    fn encode1(self) -> &'static str {
        if self.dtype == DType::BF16 { "encode1_bf16" } else { "encode1_f16" }
    }
}

/// Body of `load4n`: never reads past `n`, so that a row's tail cannot pick up a neighbour's NaN.
fn load4n_by_element(name: &str) -> String {
    format!(
        "var x = vec4<f32>(0.0); if n > 0u {{ x.x = {name}_load(i); }} if n > 1u {{ x.y = {name}_load(i + 1u); }} \
         if n > 2u {{ x.z = {name}_load(i + 2u); }} if n > 3u {{ x.w = {name}_load(i + 3u); }} return x;"
    )
}
