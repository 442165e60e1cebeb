//! From a kernel file and its constants to a compiled pipeline.
//!
//! A kernel is a plain WGSL file with six kinds of marked lines, each valid WGSL as it stands:
//!
//! - `const HEAD_DIM: u32 = 64u; // @spec`, or `alias NAME = ...; // @spec`: the value is replaced.
//! - `@group(0) @binding(1) var<storage, read> q: ... // @tensor`: the line is written again for
//!   the tensor's element type and alignment, see [`TensorDecl`]. An absent optional tensor leaves
//!   no binding; bindings are numbered in the order of their lines.
//! - `// @unroll NAME` ... `// @end`: see [`unroll`].
//! - `// @if NAME` ... `// @else` ... `// @end`: only one part stays, by the value of a
//!   `const NAME: bool` of the file. As it stands a file means the first part.
//! - `// @generate NAME` ... `// @end`: the lines between, an example, are replaced by the text that
//!   the host gives as the value of `NAME`.
//! - `// @include PATH`: a file of [`PARTS`] that several kernels share, with marked lines of its own.
//!
//! Files of `shaders/lib` follow the kernel (WGSL needs no order), so that line numbers in
//! messages are the kernel's own.

use std::{borrow::Cow, collections::HashMap, fmt::Write as _};

use crate::{
    Context, Error, Result,
    element::{DType, Eights, TensorDecl},
};

/// A kernel file: its path under `shaders/`, for messages, and its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) path: &'static str,
    pub(crate) text: &'static str,
}

/// A [`Source`] of the file at this path under `shaders/`.
macro_rules! source {
    ($path:literal) => {
        $crate::shader::Source {
            path: $path,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path)),
        }
    };
}
pub(crate) use source;

/// Files of pure functions, appended where a kernel names them.
const LIBS: &[Source] = &[
    source!("lib/element.wgsl"),
    source!("lib/exp2.wgsl"),
    source!("lib/index.wgsl"),
    source!("lib/linear.wgsl"),
    source!("lib/scores.wgsl"),
    source!("lib/window.wgsl"),
];

/// Files that kernels include.
const PARTS: &[Source] = &[
    source!("attention/params.wgsl"),
    source!("attention/problem.wgsl"),
    source!("gaunt/params.wgsl"),
    source!("linear_attention/params.wgsl"),
];

/// One kernel specialised: everything that changes its WGSL, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) source: Source,
    pub(crate) entry: &'static str,
    /// Value of every `@spec` line, as WGSL.
    pub(crate) spec: Vec<(&'static str, String)>,
    /// Declaration of every `@tensor` line.
    /// `None` for an optional tensor that is absent: its line is dropped.
    pub(crate) tensors: Vec<(&'static str, Option<TensorDecl>)>,
}

impl Key {
    /// The final text.
    pub(crate) fn wgsl(&self) -> String {
        let mut text = specialize(self.source.text, &self.spec, &self.tensors);
        // a lib function that calls another lib's is not found here; none does
        let kernel = text.clone();
        for lib in LIBS {
            let used = lib
                .text
                .lines()
                .filter_map(|l| l.strip_prefix("fn ")?.split('(').next())
                .any(|name| names(&kernel, name));
            if used {
                text.push('\n');
                text.push_str(lib.text);
            }
        }
        text
    }

    /// The final text as a browser's compiler wants it: with the directive without which it refuses
    /// subgroup operations, and which naga does not know yet, and without its own word on what is
    /// uniform where a vote decides: it takes no vote to be the same in all of a subgroup. The lint in
    /// tests/common/uniformity.rs does, and looks at all texts.
    pub(crate) fn browser_wgsl(&self) -> String {
        let mut text = self.wgsl();
        if names(&text, "subgroupAny") {
            text.insert_str(0, "diagnostic(off, subgroup_uniformity);\n");
        }
        if uses_subgroups(&text) {
            text.insert_str(0, "enable subgroups;\n");
        }
        text
    }

    /// Whether this is WGSL, not naga's extension of it.
    pub(crate) fn is_portable(&self) -> bool {
        let words = |decl: TensorDecl| {
            decl.eights == Eights::LongWords || (decl.pairs && decl.dtype == DType::F32)
        };
        self.tensors.iter().all(|(_, decl)| !decl.is_some_and(words))
    }

    /// File, entry point and constants, for profilers and messages.
    pub(crate) fn label(&self) -> String {
        let mut label = format!("{}:{}", self.source.path.trim_end_matches(".wgsl"), self.entry);
        // generated text, which has many lines, is no part of a label
        for (name, value) in self.spec.iter().filter(|(_, value)| !value.contains('\n')) {
            let _ = write!(label, " {name}={value}");
        }
        for (name, decl) in &self.tensors {
            if let Some(decl) = decl {
                let four = match decl {
                    TensorDecl { texels: true, .. } => " texels",
                    TensorDecl { eights: Eights::Words | Eights::LongWords, .. } => "x8",
                    TensorDecl { pairs: true, .. } => "x2",
                    TensorDecl { vec4: true, .. } => "x4",
                    _ => "",
                };
                let beside = if decl.beside { " beside" } else { "" };
                let _ = write!(label, " {name}:{}{four}{beside}", decl.dtype);
            }
        }
        label
    }
}

/// Whether `text` has a subgroup operation or builtin outside its comments.
fn uses_subgroups(text: &str) -> bool {
    text.lines().filter_map(|line| line.split("//").next()).any(|code| {
        code.contains("@builtin(subgroup")
            || code.match_indices("subgroup").any(|(at, word)| {
                let before = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                !before && code[at + word.len()..].starts_with(|c: char| c.is_ascii_uppercase())
            })
    })
}

/// Whether `text` uses `name` as a whole word.
fn names(text: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name)
        .any(|(at, _)| !text[..at].ends_with(word) && !text[at + name.len()..].starts_with(word))
}

/// Replaces the value of each `@spec` line, writes each `@tensor` line anew, unrolls `@unroll`.
///
/// # Panics
/// If the names given and the names in the file are not the same sets: a bug in this crate, never
/// input.
pub(crate) fn specialize(
    source: &str,
    spec: &[(&'static str, String)],
    tensors: &[(&'static str, Option<TensorDecl>)],
) -> String {
    let (mut specs_seen, mut tensors_seen, mut binding) = (0, 0, 0);
    let source = include(source);
    let mut out = String::with_capacity(source.len());
    let (source, generated) = generate(&source, spec);
    specs_seen += generated;
    for line in source.lines() {
        if line.ends_with("// @spec") {
            let (head, _) =
                line.split_once('=').unwrap_or_else(|| panic!("@spec without a value: {line}"));
            let name = head.split([':', ' ']).nth(1).unwrap_or_default();
            let value = spec
                .iter()
                .find(|(n, _)| *n == name)
                .unwrap_or_else(|| panic!("no value for @spec {name}"));
            let _ = write!(out, "{head}= {}; // @spec", value.1);
            specs_seen += 1;
        } else if line.ends_with("// @tensor") {
            let (writable, name) = tensor_line(line);
            let decl = tensors
                .iter()
                .find(|(n, _)| *n == name)
                .unwrap_or_else(|| panic!("no declaration for @tensor {name}"));
            match decl.1 {
                Some(decl) => {
                    let _ = write!(out, "{} // @tensor", decl.wgsl(name, binding, writable));
                    binding += 1;
                }
                None => out.push_str(&TensorDecl::absent(name, writable)),
            }
            tensors_seen += 1;
        } else if let Some((_, rest)) =
            line.strip_prefix("@group(0) @binding(").and_then(|rest| rest.split_once(')'))
        {
            let _ = write!(out, "@group(0) @binding({binding}){rest}");
            binding += 1;
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    assert_eq!(specs_seen, spec.len(), "@spec lines and values differ");
    assert_eq!(tensors_seen, tensors.len(), "@tensor lines and declarations differ");
    fold(&unroll(&out))
}

/// Computes constant arguments and indices, such as `[2u * D4 + 3u]`, whose names are constants of
/// the file: naga's time for a function grows with the square of the expressions in it.
fn fold(text: &str) -> String {
    let constants = constants(text);
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let (code, comment) = line.split_at(line.find("//").unwrap_or(line.len()));
        let mut rest = code;
        while let Some(at) = rest.find(['[', '(', ',']) {
            let (before, inner) = rest.split_at(at + 1);
            out.push_str(before);
            rest = inner;
            let argument = &inner[..argument_end(inner)];
            // a name or a number alone is as good as it stands
            if argument.contains(['+', '-', '*', '/', '%'])
                && let Some(value) = Constants(&constants, argument).value()
            {
                let _ = write!(out, "{}{value}u", if before.ends_with(',') { " " } else { "" });
                rest = &inner[argument.len()..];
            }
        }
        out.push_str(rest);
        out.push_str(comment);
        out.push('\n');
    }
    out
}

/// Every `const NAME: u32 = VALUE;` line, with values of numbers and of constants before it.
fn constants(text: &str) -> HashMap<&str, u32> {
    let mut all = HashMap::new();
    for line in text.lines() {
        let parts = line.strip_prefix("const ").and_then(|rest| rest.split_once(": u32 = "));
        let value = parts.and_then(|(name, value)| Some((name, value.split(';').next()?)));
        if let Some((name, value)) = value
            && let Some(value) = Constants(&all, value).value()
        {
            all.insert(name, value);
        }
    }
    all
}

/// Where the comma or bracket stands that ends the argument at the start of `text`.
fn argument_end(text: &str) -> usize {
    let mut depth = 0u32;
    let end = text.find(|c| match c {
        '(' | '[' => {
            depth += 1;
            false
        }
        ')' | ']' if depth > 0 => {
            depth -= 1;
            false
        }
        _ => matches!(c, ')' | ']') || depth == 0 && matches!(c, ',' | ';'),
    });
    end.unwrap_or(text.len())
}

/// A reader of constant `u32` expressions: the values of names, and what is left to read.
struct Constants<'a>(&'a HashMap<&'a str, u32>, &'a str);

impl Constants<'_> {
    /// The value, if the text is a constant expression to its end and no step overflows.
    fn value(mut self) -> Option<u32> {
        let value = self.sum()?;
        self.1.trim().is_empty().then_some(value)
    }

    fn sum(&mut self) -> Option<u32> {
        let mut sum = self.product()?;
        loop {
            sum = match self.operator(&['+', '-']) {
                Some('+') => sum.checked_add(self.product()?)?,
                Some(_) => sum.checked_sub(self.product()?)?,
                None => return Some(sum),
            };
        }
    }

    fn product(&mut self) -> Option<u32> {
        let mut product = self.operand()?;
        loop {
            product = match self.operator(&['*', '/', '%']) {
                Some('*') => product.checked_mul(self.operand()?)?,
                Some('/') => product.checked_div(self.operand()?)?,
                Some(_) => product.checked_rem(self.operand()?)?,
                None => return Some(product),
            };
        }
    }

    fn operand(&mut self) -> Option<u32> {
        if self.operator(&['(']).is_some() {
            let value = self.sum();
            return self.operator(&[')']).and(value);
        }
        let text = self.1.trim_start();
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.1 = rest;
        match self.0.get(word) {
            Some(&value) => Some(value),
            None => word.strip_suffix('u')?.parse().ok(),
        }
    }

    fn operator(&mut self, any: &[char]) -> Option<char> {
        let text = self.1.trim_start();
        let first = text.chars().next().filter(|c| any.contains(c))?;
        self.1 = &text[1..];
        Some(first)
    }
}

/// Replaces each `@include` line by the file that it names.
///
/// # Panics
/// If that is not in [`PARTS`]: a bug in this crate, never input.
fn include(source: &str) -> Cow<'_, str> {
    const MARK: &str = "// @include ";
    if !source.contains(MARK) {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    for line in source.lines() {
        match line.strip_prefix(MARK) {
            Some(path) => {
                let part = PARTS.iter().find(|part| part.path == path);
                out.push_str(part.unwrap_or_else(|| panic!("{line}: no such part")).text);
            }
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    Cow::Owned(out)
}

/// Replaces each `@generate` block by the text of its name; returns how many there were.
///
/// # Panics
/// If a block is not closed or has no text: a bug in this crate, never input.
fn generate<'a>(source: &'a str, spec: &[(&'static str, String)]) -> (Cow<'a, str>, usize) {
    const MARK: &str = "// @generate ";
    if !source.contains(MARK) {
        return (Cow::Borrowed(source), 0);
    }
    let (mut out, mut count) = (String::with_capacity(source.len()), 0);
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.trim().strip_prefix(MARK) {
            let (_, text) = spec
                .iter()
                .find(|(n, _)| *n == name)
                .unwrap_or_else(|| panic!("no text for @generate {name}"));
            out.push_str(text);
            assert!(lines.any(|l| l.trim() == "// @end"), "@generate {name} without @end");
            count += 1;
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    (Cow::Owned(out), count)
}

/// Whether a `@tensor` line's tensor is written, and its name.
fn tensor_line(line: &str) -> (bool, &str) {
    let parse = || {
        let rest = line.split("var<storage, ").nth(1)?;
        let (access, rest) = rest.split_once("> ")?;
        Some((access == "read_write", rest.split(':').next()?))
    };
    parse().unwrap_or_else(|| panic!("not a tensor declaration: {line}"))
}

/// Writes out marked loops: registers tiles and constant-lane broadcasts need constant indices,
/// which WGSL only has in unrolled text.
///
/// ```wgsl
/// // @unroll I 4
/// acc[I] = fma(x, w[I], acc[I]);
/// // @end
/// ```
///
/// repeats the lines with `I` (a whole word) replaced by `0`, `1`, `2`, `3` and a `u` suffix left
/// to the text. The count is a number or a constant expression of `const NAME: u32` lines of the file
/// (after specialisation). Loops nest. As WGSL, the block is its first pass only if `I` is declared: a
/// file does so with `const I: u32 = 0u; // @index`, which the expansion leaves in place.
///
/// The same pass resolves `// @if NAME` ... `// @else` ... `// @end`, see [`switch`].
///
/// # Panics
/// If a block is not closed or its count not known: a bug in this crate, never input.
fn unroll(text: &str) -> String {
    /// What ended a block.
    #[derive(PartialEq)]
    enum Stop {
        File,
        Else,
        End,
    }
    fn expand<'a>(
        lines: &mut impl Iterator<Item = &'a str>,
        text: &str,
        known: &HashMap<&str, u32>,
    ) -> (String, Stop) {
        let mut out = String::new();
        while let Some(line) = lines.next() {
            let mark = line.trim();
            match mark {
                "// @end" => return (out, Stop::End),
                "// @else" => return (out, Stop::Else),
                _ => {}
            }
            if let Some(name) = mark.strip_prefix("// @if ") {
                let wanted = switch(text, name).unwrap_or_else(|| panic!("{mark}: not known"));
                let (yes, stop) = expand(lines, text, known);
                let no = match stop {
                    Stop::Else => {
                        let (no, stop) = expand(lines, text, known);
                        assert!(stop == Stop::End, "{mark} without @end");
                        no
                    }
                    Stop::End => String::new(),
                    Stop::File => panic!("{mark} without @end"),
                };
                out.push_str(if wanted { &yes } else { &no });
            } else if let Some(rest) = mark.strip_prefix("// @unroll ") {
                let (name, count) = rest.split_once(' ').unwrap_or_else(|| panic!("bad {mark}"));
                // a bare number, or an expression of the text's constants
                let n = (count.parse().ok())
                    .or_else(|| Constants(known, count).value())
                    .unwrap_or_else(|| panic!("{mark}: {count} is not known"));
                let (body, stop) = expand(lines, text, known);
                assert!(stop == Stop::End, "{mark} without @end");
                for i in 0..n {
                    out.push_str(&replace_word(&body, name, &format!("{i}u")));
                }
            } else {
                out.push_str(line);
                out.push('\n');
            }
        }
        (out, Stop::File)
    }
    if !text.contains("// @unroll ") && !text.contains("// @if ") {
        return text.to_owned();
    }
    let (out, stop) = expand(&mut text.lines(), text, &constants(text));
    assert!(stop == Stop::File, "@else or @end without a block");
    out
}

/// Value of a `const NAME: bool = VALUE;` line: `true`, `false`, another such name, or several with
/// `||` between them.
fn switch(text: &str, name: &str) -> Option<bool> {
    let head = format!("const {name}: bool = ");
    let line = text.lines().find_map(|l| l.strip_prefix(&head))?;
    line.split(';').next()?.split("||").try_fold(false, |any, term| {
        let term = term.trim();
        let value = term.parse().ok().or_else(|| switch(text, term))?;
        Some(any || value)
    })
}

fn replace_word(text: &str, word: &str, with: &str) -> String {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let whole = !before.ends_with(part) && !after.starts_with(part);
        out.push_str(before);
        out.push_str(if whole { with } else { word });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// What a binding is, read from the kernel's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    /// `var<uniform>`
    Uniform,
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    Write,
    /// `texture_storage_2d<rgba32uint, read>`
    TextureRead,
    /// `texture_storage_2d<rgba32uint, write>`
    TextureWrite,
}

impl Binding {
    fn ty(self) -> wgpu::BindingType {
        let buffer = |ty| wgpu::BindingType::Buffer {
            ty,
            has_dynamic_offset: false,
            min_binding_size: None,
        };
        let texture = |access| wgpu::BindingType::StorageTexture {
            access,
            format: wgpu::TextureFormat::Rgba32Uint,
            view_dimension: wgpu::TextureViewDimension::D2,
        };
        match self {
            Self::Uniform => buffer(wgpu::BufferBindingType::Uniform),
            Self::Read => buffer(wgpu::BufferBindingType::Storage { read_only: true }),
            Self::Write => buffer(wgpu::BufferBindingType::Storage { read_only: false }),
            Self::TextureRead => texture(wgpu::StorageTextureAccess::ReadOnly),
            Self::TextureWrite => texture(wgpu::StorageTextureAccess::WriteOnly),
        }
    }
}

/// A compiled kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) label: String,
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    /// In order of their index, which counts from 0 without gaps.
    pub(crate) bindings: Vec<Binding>,
    #[cfg(test)]
    pub(crate) wgsl: String,
}

impl Kernel {
    pub(crate) fn compile(ctx: &Context, key: &Key) -> Result<Self> {
        let wgsl = key.wgsl();
        let label = key.label();
        let bindings = bindings(&wgsl);
        let storage =
            bindings.iter().filter(|b| matches!(b, Binding::Read | Binding::Write)).count() as u64;
        if storage > u64::from(ctx.caps.storage_buffers) {
            return Err(Error::Limit {
                op: key.entry,
                what: "storage buffers in one kernel",
                need: storage,
                limit: u64::from(ctx.caps.storage_buffers),
            });
        }
        let started = std::time::Instant::now();
        // GL drivers refuse names of 256 bytes and more; ours are ASCII
        let label = label.get(..250).map_or_else(|| label.clone(), str::to_owned);
        let wgsl = if cfg!(target_arch = "wasm32") { key.browser_wgsl() } else { wgsl };
        let compiled = ctx.guard(key.entry, None, || {
            let checks = wgpu::ShaderRuntimeChecks {
                // every loop here ends by construction, and bounding costs a factor of two
                force_loop_bounding: false,
                // divisors are constants or checked on the host
                int_div_checks: false,
                ..wgpu::ShaderRuntimeChecks::checked()
            };
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(&label),
                source: wgpu::ShaderSource::Wgsl(Cow::Borrowed(&wgsl)),
            };
            // SAFETY: bounds checks stay on; the loops of our own kernels are bounded by their
            // parameters and no integer division in them can have a zero divisor.
            let module = unsafe { ctx.device.create_shader_module_trusted(descriptor, checks) };
            let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
                .zip(&bindings)
                .map(|(binding, kind)| wgpu::BindGroupLayoutEntry {
                    binding,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: kind.ty(),
                    count: None,
                })
                .collect();
            let layout = ctx.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(&label),
                entries: &entries,
            });
            let pipeline_layout =
                ctx.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                    label: Some(&label),
                    bind_group_layouts: &[Some(&layout)],
                    ..Default::default()
                });
            let pipeline = ctx.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(key.entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // kernels write workgroup memory before they read it
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: None,
            });
            (pipeline, layout)
        });
        let (pipeline, layout) = match compiled {
            Ok(parts) => parts,
            Err(Error::Device { message, .. }) => {
                return Err(Error::Compile { kernel: label, message });
            }
            Err(other) => return Err(other),
        };
        log::debug!("compiled {label} in {:.1?}", started.elapsed());
        Ok(Self {
            label,
            pipeline,
            layout,
            bindings,
            #[cfg(test)]
            wgsl,
        })
    }
}

/// The bindings of a kernel text, by index.
///
/// # Panics
/// If the indices have gaps: a bug in this crate, never input.
fn bindings(wgsl: &str) -> Vec<Binding> {
    let mut found: Vec<(u32, Binding)> = wgsl
        .lines()
        .filter(|line| line.starts_with("@group(0)"))
        .filter_map(|line| {
            let index = line.split("@binding(").nth(1)?.split(')').next()?.parse().ok()?;
            let kind = if line.contains("var<uniform>") {
                Binding::Uniform
            } else if line.contains("var<storage, read_write>") {
                Binding::Write
            } else if line.contains(": texture_storage_2d<rgba32uint, read>") {
                Binding::TextureRead
            } else if line.contains(": texture_storage_2d<rgba32uint, write>") {
                Binding::TextureWrite
            } else {
                Binding::Read
            };
            Some((index, kind))
        })
        .collect();
    found.sort_by_key(|(index, _)| *index);
    assert!(
        found.iter().map(|f| f.0).eq(0..u32::try_from(found.len()).unwrap_or(0)),
        "bindings have gaps"
    );
    found.into_iter().map(|(_, kind)| kind).collect()
}

#[cfg(test)]
mod tests {
    use super::{fold, include, switch, unroll};

    #[test]
    fn loops_are_written_out_by_constant_expressions() {
        let head = "const N: u32 = 2u;\nconst M: u32 = N * 3u - 4u;\n";
        for count in ["2", "N", "M", "M * 2u - N", "(N + 4u) / 3u"] {
            let text = format!("{head}// @unroll I {count}\nf(I);\n// @end\n");
            assert_eq!(unroll(&text), format!("{head}f(0u);\nf(1u);\n"), "{count}");
        }
        let unknown = format!("{head}// @unroll I K\nf(I);\n// @end\n");
        assert!(std::panic::catch_unwind(|| unroll(&unknown)).is_err());
    }

    #[test]
    fn switches_may_be_of_others() {
        let text = "const A: bool = false; // @spec\nconst B: bool = true;\n\
                    const C: bool = A || B;\nconst D: bool = A || A;\nconst E: bool = A || Z;\n";
        let values = ["A", "B", "C", "D", "E"].map(|name| switch(text, name));
        assert_eq!(values, [Some(false), Some(true), Some(true), Some(false), None]);
    }

    #[test]
    fn files_are_included_by_name() {
        let text = include("a\n// @include attention/problem.wgsl\nb\n").into_owned();
        assert!(
            text.starts_with("a\n") && text.ends_with("\nb\n") && text.contains("\nstruct Piece {")
        );
        assert!(std::panic::catch_unwind(|| include("// @include nothing.wgsl").len()).is_err());
    }

    #[test]
    fn constants_are_computed_in_arguments_and_indices() {
        for (text, want) in [
            ("s[1u * N + 2u] = f(x[(3u + N) / 2u % 4u], (1u + 2u) * N);", "s[6u] = f(x[3u], 12u);"),
            // only whole arguments, and only what stays in range
            ("f(x + 2u * N, 1u - 2u, 5u / 0u, N - 1u)", "f(x + 2u * N, 1u - 2u, 5u / 0u, 3u)"),
            ("g(a, h(b, N * N), c)[N + 1u]", "g(a, h(b, 16u), c)[5u]"),
            // other types, single words and comments stay
            (
                "f(1 + 2, 1.0 + 2.0, N, 4u, M + 1u) // [1u + 1u]",
                "f(1 + 2, 1.0 + 2.0, N, 4u, M + 1u) // [1u + 1u]",
            ),
            ("if (a < N) { b(); }", "if (a < N) { b(); }"),
        ] {
            let head = "const N: u32 = 4u;\n";
            assert_eq!(fold(&format!("{head}{text}")), format!("{head}{want}\n"));
        }
    }
}
