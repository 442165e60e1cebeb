//! Host side of the fused product kernel: variants, views, dispatch.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    maps::Weight,
    orders::OrderText,
    program::{Constants, Program, Sampling, Text},
    schedule::OrderTiles,
};
use crate::{
    Context, DType, Error, Result, TensorView, Tier,
    dispatch::{Bound, Resource, dispatch, fold},
    element::TensorDecl,
    shader::{Kernel, Key, Source, source},
};

const FRAME: Source = source!("gaunt/product.wgsl");
const ORDERS_FRAME: Source = source!("gaunt/orders.wgsl");

/// Invocations in a workgroup.
const WORKGROUP: u32 = 64;

/// Inputs that one kernel can take: the length of `Params::rows`, less the output.
pub(crate) const MAX_INPUTS: usize = 7;

/// Operations up to which the loop over parallels is written out with literal constants. Beyond,
/// drivers take seconds to compile the text, and the loop is as fast or faster.
const LITERAL_OPERATIONS: u64 = 2500;

/// A fused product, designed for a device.
#[derive(Debug)]
pub(crate) struct Fused {
    op: &'static str,
    program: Program,
    form: Form,
    dtype: DType,
    /// `None` where constants are literals.
    table: Option<wgpu::Buffer>,
    kernels: Mutex<HashMap<Variant, Arc<Kernel>>>,
}

/// The kernel of a fused product.
#[derive(Debug)]
enum Form {
    /// An invocation owns a product.
    Lane { constants: Constants, text: Text },
    /// An invocation owns an order of a product.
    Orders { tiles: OrderTiles, text: OrderText },
}

/// How a row of coefficients is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Load {
    /// Rows start at multiples of four elements.
    Aligned,
    /// Four at a time, moved into place: rows start anywhere, but the binding is whole vectors.
    Shifted,
    /// One element at a time.
    Scalar,
}

/// What changes the text for one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct InputVariant {
    load: Load,
    dtype: DType,
    weight: bool,
    gather: bool,
}

/// All that changes the text besides the program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Variant {
    inputs: Vec<InputVariant>,
    store4: bool,
    weight_out: bool,
}

/// One input: `view: [batch or nodes, channels, (lmax + 1)^2]`.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub(crate) name: &'static str,
    pub(crate) view: TensorView<'a, 3>,
    pub(crate) weight: Option<Weight<'a>>,
    /// Row of `view` for every batch index: checked `u32`s.
    pub(crate) gather: Option<&'a wgpu::Buffer>,
}

// Must match `Params` in shaders/gaunt/params.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    count: u32,
    channels: u32,
    /// Rounds, and pairs of parallels in each, where lanes share a product.
    rounds: u32,
    pairs: u32,
    rows: [[u32; 4]; 8],
    weights: [[u32; 4]; 8],
}

impl Fused {
    pub(crate) fn new(
        ctx: &Context,
        op: &'static str,
        program: Program,
        constants: Option<Constants>,
        dtype: DType,
    ) -> Result<Self> {
        dtype.expect_float(op)?;
        let form = match OrderTiles::choose(&ctx.caps, &program) {
            Some(tiles) if constants.is_none() => {
                Form::Orders { tiles, text: OrderText::new(&program, &tiles) }
            }
            _ => {
                let constants = constants.unwrap_or_else(|| default_constants(&ctx.caps, &program));
                Form::Lane { constants, text: program.text(constants) }
            }
        };
        let table = match &form {
            Form::Lane { text, .. } => &text.table,
            Form::Orders { text, .. } => &text.table,
        };
        let table =
            if table.is_empty() { None } else { Some(ctx.table(op, bytemuck::cast_slice(table))?) };
        let plan = Self { op, program, form, dtype, table, kernels: Mutex::default() };
        // the variant of contiguous views without options
        plan.kernel(ctx, plan.plain())?;
        Ok(plan)
    }

    fn plain(&self) -> Variant {
        let input = |&l: &u32| InputVariant {
            load: match self.form {
                Form::Orders { .. } => Load::Scalar,
                Form::Lane { .. } if (l + 1).is_multiple_of(2) => Load::Aligned,
                Form::Lane { .. } => Load::Shifted,
            },
            dtype: self.dtype,
            weight: false,
            gather: false,
        };
        Variant {
            inputs: self.program.lmax.iter().map(input).collect(),
            store4: self.by_lane() && (self.program.lmax_out + 1).is_multiple_of(2),
            weight_out: false,
        }
    }

    fn by_lane(&self) -> bool {
        matches!(self.form, Form::Lane { .. })
    }

    pub(crate) fn wgsl(&self) -> String {
        self.key(&self.plain()).wgsl()
    }

    pub(crate) fn label(&self) -> String {
        self.key(&self.plain()).label()
    }

    fn kernel(&self, ctx: &Context, variant: Variant) -> Result<Arc<Kernel>> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(&variant) {
            return Ok(Arc::clone(kernel));
        }
        let kernel = ctx.kernel(self.key(&variant))?;
        kernels.insert(variant, Arc::clone(&kernel));
        Ok(kernel)
    }

    /// Fills the frame in.
    fn key(&self, v: &Variant) -> Key {
        let (mut bindings, mut load, mut store) = (String::new(), String::new(), String::new());
        let mut tensors = vec![("z", Some(TensorDecl::new(self.dtype, v.store4)))];
        let scalar = |dtype| Some(TensorDecl::new(dtype, false));
        for (i, (&lmax, input)) in self.program.lmax.iter().zip(&v.inputs).enumerate() {
            let InputVariant { load: mode, dtype, weight, gather } = *input;
            if mode == Load::Scalar {
                let _ = writeln!(
                    bindings,
                    "@group(0) @binding(0) var<storage, read> x{i}: array<f32>; // @tensor"
                );
                tensors.push((NAMES[i].0, scalar(dtype)));
            } else {
                let cell = if dtype == DType::F32 { "vec4<f32>" } else { "vec2<u32>" };
                let _ = writeln!(
                    bindings,
                    "@group(0) @binding(0) var<storage, read> x{i}: array<{cell}>;"
                );
            }
            if weight {
                let _ = writeln!(
                    bindings,
                    "@group(0) @binding(0) var<storage, read> w{i}: array<f32>; // @tensor"
                );
                tensors.push((NAMES[i].1, scalar(DType::F32)));
            }
            if gather {
                let _ = writeln!(
                    bindings,
                    "@group(0) @binding(0) var<storage, read> gather{i}: array<u32>;"
                );
            }
            let batch = if gather { format!("gather{i}[batch]") } else { "batch".into() };
            let k = i + 1;
            let _ = writeln!(
                load,
                "let row{i} = params.rows[{k}].z + {batch} * params.rows[{k}].x + channel * params.rows[{k}].y;"
            );
            match self.form {
                Form::Lane { .. } => load_row(&mut load, i, lmax, input),
                Form::Orders { .. } => load_orders(&mut load, i, lmax, weight),
            }
        }
        if v.weight_out {
            let _ = writeln!(
                bindings,
                "@group(0) @binding(0) var<storage, read> wz: array<f32>; // @tensor"
            );
            tensors.push(("wz", scalar(DType::F32)));
        }
        let (mut builtins, mut sums) = (String::new(), String::new());
        let p = &self.program;
        let problem = format!("{:?} {:?} {:?} to {}", p.sampling, p.lmax, p.combine, p.lmax_out);
        let (frame, path, entry, spec);
        let mut parts = Vec::new();
        match &self.form {
            Form::Lane { constants, text } => {
                if self.table.is_some() {
                    bindings.push_str(
                        "@group(0) @binding(0) var<storage, read> table: array<vec4<f32>>;\n",
                    );
                }
                self.store_row(&mut store, v);
                if let Constants::Broadcast { lanes } = constants {
                    builtins.push_str("@builtin(subgroup_invocation_id) subgroup_lane: u32,\n");
                    let _ = writeln!(load, "let lane = min(subgroup_lane, {}u);", lanes - 1);
                }
                parts.extend([("// @body", text.body.as_str()), ("// @load", &load)]);
                frame = FRAME;
                path = format!("gaunt/product {problem} {constants:?}.wgsl");
                entry = "product";
                spec = vec![("WORKGROUP", format!("{WORKGROUP}u"))];
            }
            Form::Orders { tiles, text } => {
                for l in 0..=p.live_out() {
                    let _ = writeln!(sums, "var z{l} = vec2<f32>(0.0);");
                }
                self.store_orders(&mut store, tiles, v);
                let place = if tiles.reload { "// @reload" } else { "// @load" };
                parts.extend([("// @sums", sums.as_str()), (place, &load)]);
                parts.push(("// @synthesis", text.synthesis.as_str()));
                parts.push(("// @ring", text.ring.as_str()));
                parts.push(("// @analysis", text.analysis.as_str()));
                frame = ORDERS_FRAME;
                path = format!("gaunt/orders {problem}.wgsl");
                entry = "orders";
                spec = [
                    ("WORKGROUP", tiles.workgroup()),
                    ("PRODUCTS", tiles.products),
                    ("ORDERS", tiles.orders),
                    ("PAIRS", tiles.pairs),
                    ("ROUNDS", tiles.rounds),
                    ("QUADS", tiles.quads()),
                    ("STRIDE", tiles.stride()),
                ]
                .map(|(name, value)| (name, format!("{value}u")))
                .into();
            }
        }
        parts.extend([
            ("// @bindings", bindings.as_str()),
            ("// @builtins", &builtins),
            ("// @store", &store),
        ]);
        let mut text = String::with_capacity(32 << 10);
        for line in frame.text.lines() {
            if let Some((_, part)) = parts.iter().find(|(mark, _)| *mark == line.trim()) {
                text.push_str(part);
            } else {
                text.push_str(line);
                text.push('\n');
            }
        }
        Key { source: Source { path: interned(path), text: interned(text) }, entry, spec, tensors }
    }

    fn store_row(&self, store: &mut String, v: &Variant) {
        store.push_str(
            "let out = params.rows[0].z + batch * params.rows[0].x + channel * params.rows[0].y;\n",
        );
        let lmax = self.program.lmax_out;
        let mut value = Vec::new();
        for l in 0..=lmax {
            if v.weight_out {
                let _ = writeln!(
                    store,
                    "let uz_{l} = wz_load(params.weights[0].z + batch * params.weights[0].x + channel * params.weights[0].y + {l}u);"
                );
            }
            for k in l * l..(l + 1) * (l + 1) {
                value.push(if v.weight_out { format!("z{k} * uz_{l}") } else { format!("z{k}") });
            }
        }
        if v.store4 {
            for (k, four) in value.chunks(4).enumerate() {
                let _ =
                    writeln!(store, "z_store4(out + {}u, vec4<f32>({}));", 4 * k, four.join(", "));
            }
        } else {
            store.push_str(&store_each("z", self.dtype, &value));
        }
    }

    /// Every lane stores its order of every degree; degrees that no product reaches are zero.
    fn store_orders(&self, store: &mut String, tiles: &OrderTiles, v: &Variant) {
        store.push_str(
            "let out = params.rows[0].z + batch * params.rows[0].x + channel * params.rows[0].y;\n",
        );
        for l in 0..=self.program.live_out() {
            let middle = l * l + l;
            let _ = writeln!(store, "if order <= {l}u {{");
            if v.weight_out {
                let _ = writeln!(
                    store,
                    "z{l} *= wz_load(params.weights[0].z + batch * params.weights[0].x + channel * params.weights[0].y + {l}u);"
                );
            }
            let _ = writeln!(
                store,
                "z_store(out + {middle}u + order, z{l}.x);\n\
                 if order > 0u {{ z_store(out + {middle}u - order, z{l}.y); }}\n}}"
            );
        }
        let (first, end) =
            ((self.program.live_out() + 1).pow(2), (self.program.lmax_out + 1).pow(2));
        for k in (first..end).step_by(tiles.orders as usize) {
            let _ =
                writeln!(store, "if {k}u + order < {end}u {{ z_store(out + {k}u + order, 0.0); }}");
        }
    }

    /// Records the product of `count = batch * channels` rows. Views are checked against
    /// `[batch or rows, channels, (lmax + 1)^2]` by the caller.
    pub(crate) fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        [batch, channels]: [u32; 2],
        inputs: &[Operand<'_>],
        z: &TensorView<'_, 3>,
        weight_out: Option<Weight<'_>>,
    ) -> Result<()> {
        let op = self.op;
        let count = u64::from(batch) * u64::from(channels);
        if count == 0 {
            return Ok(());
        }
        let count = u32::try_from(count).map_err(|_| Error::Limit {
            op,
            what: "products in one call",
            need: count,
            limit: u32::MAX.into(),
        })?;
        let (products, rounds, pairs) = match &self.form {
            Form::Lane { .. } => (WORKGROUP, 0, 0),
            Form::Orders { tiles, .. } => (tiles.products, tiles.rounds, tiles.pairs),
        };
        let (rows, weights) = ([[0; 4]; 8], [[0; 4]; 8]);
        let mut params = Params { count, channels, rounds, pairs, rows, weights };
        let place = |view: &TensorView<'_, 3>, bound: &Bound<'_>| {
            let [b, c, _] = view.strides_u32();
            [b, c, bound.offset, 0]
        };
        let out = z.bind(op, "z", &ctx.caps)?;
        params.rows[0] = place(z, &out);
        let mut resources = vec![out.resource];
        let mut variant = Variant {
            inputs: Vec::new(),
            store4: self.by_lane()
                && (self.program.lmax_out + 1).is_multiple_of(2)
                && z.layout.is_multiple_of(4),
            weight_out: weight_out.is_some(),
        };
        for (i, input) in inputs.iter().enumerate() {
            let bound = input.view.bind(op, input.name, &ctx.caps)?;
            params.rows[i + 1] = place(&input.view, &bound);
            variant.inputs.push(InputVariant {
                load: if self.by_lane() { load_mode(&input.view) } else { Load::Scalar },
                dtype: input.view.dtype,
                weight: input.weight.is_some(),
                gather: input.gather.is_some(),
            });
            resources.push(bound.resource);
            if let Some((name, weight)) = &input.weight {
                let bound = weight.bind(op, name, &ctx.caps)?;
                params.weights[i + 1] = place(weight, &bound);
                resources.push(bound.resource);
            }
            resources.extend(input.gather.map(|b| Resource::Buffer(b.as_entire_buffer_binding())));
        }
        if let Some((name, weight)) = &weight_out {
            let bound = weight.bind(op, name, &ctx.caps)?;
            params.weights[0] = place(weight, &bound);
            resources.push(bound.resource);
        }
        resources
            .extend(self.table.as_ref().map(|t| Resource::Buffer(t.as_entire_buffer_binding())));
        let kernel = self.kernel(ctx, variant)?;
        let groups = fold(op, u64::from(count.div_ceil(products)), &ctx.caps)?;
        dispatch(ctx, pass, op, &kernel, bytemuck::bytes_of(&params), &resources, groups)
    }
}

/// Names of inputs and their weights in the kernel.
const NAMES: [(&str, &str); MAX_INPUTS] = [
    ("x0", "w0"),
    ("x1", "w1"),
    ("x2", "w2"),
    ("x3", "w3"),
    ("x4", "w4"),
    ("x5", "w5"),
    ("x6", "w6"),
];

fn load_mode(view: &TensorView<'_, 3>) -> Load {
    // the last elements of a buffer that is not a whole number of vectors are out of a vector's reach
    let cell = 4 * view.dtype.size();
    let end = view.layout.end().and_then(|e| e.checked_mul(view.dtype.size())).unwrap_or(u64::MAX);
    if end > view.buffer.size() / cell * cell {
        Load::Scalar
    } else if view.layout.is_multiple_of(4) {
        Load::Aligned
    } else {
        Load::Shifted
    }
}

fn default_constants(caps: &crate::Caps, program: &Program) -> Constants {
    if program.sampling == Sampling::Table || program.operations() <= LITERAL_OPERATIONS {
        return Constants::Literal;
    }
    match caps.subgroup {
        // a CPU reads a table once for each lane; elsewhere a uniform address is read once
        Some((min, _)) if caps.is_cpu() && caps.tier == Tier::Subgroup => {
            Constants::Broadcast { lanes: min.min(8) }
        }
        _ => Constants::Uniform,
    }
}

/// Stores of a row that may start anywhere. Of 16-bit elements, two make a word: all words but the
/// first and last belong to this row alone and are stored whole, by the parity of the row's start;
/// the halves at the ends go through `NAME_store`, which spares the neighbour's half.
pub(crate) fn store_each(name: &str, dtype: DType, value: &[String]) -> String {
    let mut text = String::new();
    let n = value.len();
    if dtype == DType::F32 || n < 4 {
        for (k, one) in value.iter().enumerate() {
            let _ = writeln!(text, "{name}_store(out + {k}u, {one});");
        }
        return text;
    }
    let encode = if dtype == DType::F16 { "encode1_f16" } else { "encode1_bf16" };
    text.push_str("let odd = (out & 1u) == 1u;\nlet word = (out + 1u) >> 1u;\n");
    for (k, one) in value.iter().enumerate() {
        let _ = writeln!(text, "let e{k} = {one};\nlet h{k} = {encode}(e{k});");
    }
    for k in 0..(n - 1) / 2 {
        let (a, b, c) = (2 * k, 2 * k + 1, 2 * k + 2);
        let _ = writeln!(
            text,
            "atomicStore(&{name}[word + {k}u], select(h{a}, h{b}, odd) | (select(h{b}, h{c}, odd) << 16u));"
        );
    }
    let last = n - 1;
    if n % 2 == 1 {
        let _ = writeln!(
            text,
            "{name}_store(out + select({last}u, 0u, odd), select(e{last}, e0, odd));"
        );
    } else {
        let before = n - 2;
        let _ = writeln!(
            text,
            "{name}_store(out + select({before}u, 0u, odd), select(e{before}, e0, odd));\n\
             {name}_store(out + {last}u, e{last});"
        );
    }
    text
}

/// Generated text lives as long as the process: one for each shape used, some hundred KB at most.
pub(crate) fn interned(text: String) -> &'static str {
    static TEXTS: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let texts = texts.get_or_insert_default();
    if let Some(known) = texts.get(text.as_str()) {
        return known;
    }
    let text: &'static str = Box::leak(text.into_boxed_str());
    texts.insert(text);
    text
}

/// `x0_5` and so on: cosine and sine of the lane's order, of every degree. What is no coefficient of
/// the row is zero, whatever lies there.
fn load_orders(load: &mut String, i: usize, lmax: u32, weight: bool) {
    for l in 0..=lmax {
        let middle = l * l + l;
        let times = if weight {
            let k = i + 1;
            let _ = writeln!(
                load,
                "let u{i}_{l} = w{i}_load(params.weights[{k}].z + batch * params.weights[{k}].x + channel * params.weights[{k}].y + {l}u);"
            );
            format!(" * u{i}_{l}")
        } else {
            String::new()
        };
        let _ = writeln!(
            load,
            "let k{i}_{l} = min(order, {l}u);\n\
             let c{i}_{l} = x{i}_load(row{i} + {middle}u + k{i}_{l}){times};\n\
             let s{i}_{l} = x{i}_load(row{i} + {middle}u - k{i}_{l}){times};\n\
             let x{i}_{l} = select(vec2<f32>(0.0), vec2<f32>(c{i}_{l}, select(0.0, s{i}_{l}, order > 0u)), order <= {l}u);"
        );
    }
}

/// `x0_5` and so on from the row at `row0`.
fn load_row(load: &mut String, i: usize, lmax: u32, input: &InputVariant) {
    let InputVariant { load: mode, dtype, weight, .. } = *input;
    let n = (lmax + 1).pow(2);
    let raw = |k: u32| {
        let at = format!("x{i}[(row{i} >> 2u) + {k}u]");
        match dtype {
            DType::F32 => at,
            DType::F16 => format!("decode4_f16({at})"),
            DType::BF16 => format!("decode4_bf16({at})"),
            DType::I8 | DType::U8 => unreachable!("refused by the plan"),
        }
    };
    match mode {
        Load::Aligned => {
            for k in 0..n.div_ceil(4) {
                let _ = writeln!(load, "let v{i}_{k} = {};", raw(k));
            }
        }
        Load::Shifted => {
            // the last vector is needed only where the row reaches it; elsewhere its index may
            // lie past the end, where reads are of no consequence
            let _ = writeln!(load, "let s{i} = row{i} & 3u;");
            for k in 0..=n.div_ceil(4) {
                let _ = writeln!(load, "let r{i}_{k} = {};", raw(k));
            }
            for k in 0..n.div_ceil(4) {
                let (a, b) = (format!("r{i}_{k}"), format!("r{i}_{}", k + 1));
                let _ = writeln!(
                    load,
                    "let v{i}_{k} = select(select({a}, vec4<f32>({a}.yzw, {b}.x), s{i} == 1u), \
                     select(vec4<f32>({a}.zw, {b}.xy), vec4<f32>({a}.w, {b}.xyz), s{i} == 3u), s{i} >= 2u);"
                );
            }
        }
        Load::Scalar => {
            for k in 0..n {
                let _ = writeln!(load, "let e{i}_{k} = x{i}_load(row{i} + {k}u);");
            }
        }
    }
    for l in 0..=lmax {
        if weight {
            let k = i + 1;
            let _ = writeln!(
                load,
                "let u{i}_{l} = w{i}_load(params.weights[{k}].z + batch * params.weights[{k}].x + channel * params.weights[{k}].y + {l}u);"
            );
        }
        for k in l * l..(l + 1) * (l + 1) {
            let element = match mode {
                Load::Scalar => format!("e{i}_{k}"),
                _ => format!("v{i}_{}.{}", k / 4, ["x", "y", "z", "w"][k as usize % 4]),
            };
            let times = if weight { format!(" * u{i}_{l}") } else { String::new() };
            let _ = writeln!(load, "let x{i}_{k} = {element}{times};");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::{
        DeviceClass,
        gaunt::GauntShape,
        gaunt::GauntTensorProduct,
        test_support::{assert_params, fields, noop},
    };

    #[test]
    fn params_match() {
        for (class, kernel) in [(DeviceClass::Cpu, "product"), (DeviceClass::Gpu, "orders")] {
            let ctx = noop().with_class(class);
            let shape = GauntShape { batch: 1, channels: 1 };
            let plan = GauntTensorProduct::new(5, 5).plan(&ctx, shape).unwrap();
            let wgsl = plan.wgsl();
            assert!(wgsl[0].contains(&format!("fn {kernel}(")), "{class}");
            assert_params(&wgsl[0], fields!(Params: count channels rounds pairs rows weights));
        }
    }
}
