//! Tensor products of irreps with learned weights.

use std::sync::Arc;

use super::{
    Irrep, IrrepNormalization, Irreps, MAX_CG_LMAX,
    clebsch_gordan::{Coupled, Tensors, couple, one_channel},
    maps::{Bilinear, BilinearRows},
    product::check_scratch,
    program::to_f32,
};
use crate::{
    Context, DType, Error, Layout, Result, TensorView,
    dispatch::{Resource, dispatch, distinct_outputs, fold},
    element::TensorDecl,
    home::Home,
    shader::{Key, Source, source},
};

const OP: &str = "weighted_tensor_product";
const SOURCE: Source = source!("gaunt/weighted.wgsl");
const WORKGROUP: u32 = 64;

/// Bytes of scratch that a plan asks for, unless one row needs more.
const SCRATCH: u64 = 32 << 20;

/// How the copies of the irreps of a path are connected, by e3nn's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Connection {
    /// Every pair of copies to every copy of the output, weights `[mul1, mul2, mul_out]`:
    /// `z_w += sum_uv W[u, v, w] x_u (x) y_v`.
    Uvw,
    /// Copy `u` to copy `u` (`mul_out = mul1`), weights `[mul1, mul2]`:
    /// `z_u += sum_v W[u, v] x_u (x) y_v`.
    Uvu,
}

/// One path of a [`WeightedTensorProduct`]: irreps by their positions in the three lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// Position in `irreps1`.
    pub first: usize,
    /// Position in `irreps2`.
    pub second: usize,
    /// Position in `irreps_out`.
    pub out: usize,
    /// How copies are connected.
    pub connection: Connection,
}

/// How a path is scaled for the number of terms that are summed. The fan of a path is `mul1 * mul2`
/// for [`Connection::Uvw`], `mul2` for [`Connection::Uvu`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PathNormalization {
    /// By the sum of the fans of all paths to the same output: all terms count alike. e3nn's default.
    #[default]
    Element,
    /// By the path's own fan times the number of paths to the same output: all paths count alike.
    Path,
}

/// A weighted tensor product, as e3nn's `TensorProduct` with weights for every instruction:
///
/// `z = sum over instructions of sqrt(a / n) W (w3j x y)`, `a` of [`IrrepNormalization`], `n` of
/// [`PathNormalization`], `W` by [`Connection`]. Outputs that no instruction reaches are 0.
///
/// A row of weights has those of all instructions, one after the other, row-major each.
///
/// ```
/// use tilewise::gaunt::WeightedTensorProduct;
/// # fn main() -> tilewise::Result<()> {
/// let product = WeightedTensorProduct::fully_connected(
///     "4x0e+3x1o+2x2e".parse()?,
///     "1x0e+1x1o+1x2e".parse()?,
///     "5x0e+4x1o+3x2e".parse()?,
/// );
/// assert_eq!((product.instructions.len(), product.weights()), (11, 126));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct WeightedTensorProduct {
    /// Irreps of `x`, of degree at most [`MAX_CG_LMAX`].
    pub irreps1: Irreps,
    /// Irreps of `y`, likewise.
    pub irreps2: Irreps,
    /// Irreps of `z`, in this order.
    pub irreps_out: Irreps,
    /// The paths. Any number of them may reach one output, and any may be there twice.
    pub instructions: Vec<Instruction>,
    /// Scale by degrees.
    pub irrep_normalization: IrrepNormalization,
    /// Scale by numbers of terms.
    pub path_normalization: PathNormalization,
    /// Element type of `x`, `y` and `z`. Weights are f32, and so is arithmetic.
    pub dtype: DType,
}

/// The tensors of one call.
#[derive(Clone, Copy, Debug)]
pub struct WeightedTensorProductArgs<'a> {
    /// `[batch, n1]`.
    pub x: TensorView<'a, 2>,
    /// `[batch, n2]`.
    pub y: TensorView<'a, 2>,
    /// f32, `[1, weights]`, shared by the batch, or `[batch, weights]`.
    pub w: TensorView<'a, 2>,
    /// `[batch, n_out]`, written everywhere.
    pub z: TensorView<'a, 2>,
    /// At least [`WeightedTensorProductPlan::scratch_bytes`] bytes with usage `STORAGE`, needed if
    /// that is not 0.
    pub scratch: Option<&'a wgpu::Buffer>,
}

/// A checked and compiled [`WeightedTensorProduct`].
#[derive(Clone, Debug)]
pub struct WeightedTensorProductPlan {
    options: WeightedTensorProduct,
    batch: u32,
    dims: [u32; 3],
    weights: u32,
    table: wgpu::Buffer,
    /// Couplings of the instructions that mix all pairs.
    mixed: Option<Mixed>,
    /// Whether an instruction keeps copies apart.
    own: bool,
    /// The device it was planned on.
    home: Arc<Home>,
}

#[derive(Clone, Debug)]
struct Mixed {
    map: Bilinear,
    /// Elements of a row.
    width: u32,
    /// Rows at a time.
    chunk: u32,
}

// Must match `Params` in shaders/gaunt/weighted.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    x: [u32; 2],
    y: [u32; 2],
    w: [u32; 2],
    t: [u32; 2],
    z: [u32; 2],
    count: u32,
    n_out: u32,
}

impl WeightedTensorProduct {
    /// Every path from a pair of irreps to an irrep of the output, [`Connection::Uvw`]: e3nn's
    /// `FullyConnectedTensorProduct`.
    pub fn fully_connected(irreps1: Irreps, irreps2: Irreps, irreps_out: Irreps) -> Self {
        let mut instructions = Vec::new();
        for (first, a) in irreps1.0.iter().enumerate() {
            for (second, b) in irreps2.0.iter().enumerate() {
                for (out, c) in irreps_out.0.iter().enumerate() {
                    if couples([a.l, b.l, c.l]) && c.odd == (a.odd != b.odd) {
                        let connection = Connection::Uvw;
                        instructions.push(Instruction { first, second, out, connection });
                    }
                }
            }
        }
        Self { irreps1, irreps2, irreps_out, instructions, ..Default::default() }
    }

    /// Weights in a row; `u64::MAX` if there are more. An instruction that names absent irreps, which
    /// no plan has, counts none.
    pub fn weights(&self) -> u64 {
        let count = |i: &Instruction| self.count(i).unwrap_or(0);
        self.instructions.iter().map(count).fold(0, u64::saturating_add)
    }

    fn count(&self, i: &Instruction) -> Option<u64> {
        let muls = [
            self.irreps1.0.get(i.first)?.mul,
            self.irreps2.0.get(i.second)?.mul,
            self.irreps_out.0.get(i.out)?.mul,
        ];
        let [a, b, c] = muls.map(u64::from);
        let pairs = a.saturating_mul(b);
        Some(if i.connection == Connection::Uvw { pairs.saturating_mul(c) } else { pairs })
    }

    /// The irreps of an instruction that names present ones.
    fn irreps_of(&self, i: &Instruction) -> [Irrep; 3] {
        [self.irreps1.0[i.first], self.irreps2.0[i.second], self.irreps_out.0[i.out]]
    }

    /// Terms that a path sums.
    fn fan(&self, i: &Instruction) -> f64 {
        let [a, b, _] = self.irreps_of(i).map(|irrep| f64::from(irrep.mul));
        if i.connection == Connection::Uvw { a * b } else { b }
    }

    /// What a legal instruction multiplies the coupling tensor of norm 1 by.
    fn scale(&self, i: &Instruction) -> f64 {
        let [l1, l2, l3] = self.irreps_of(i).map(|irrep| irrep.l);
        let to_same = self.instructions.iter().filter(|other| other.out == i.out);
        let n: f64 = match self.path_normalization {
            PathNormalization::Element => to_same.map(|other| self.fan(other)).sum(),
            PathNormalization::Path => to_same.map(|_| self.fan(i)).sum(),
        };
        // without terms there is nothing to scale
        (self.irrep_normalization.square(l1, l2, l3) / n.max(1.0)).sqrt()
    }

    fn check(&self) -> Result<()> {
        for (at, i) in self.instructions.iter().enumerate() {
            let place = |what, irreps: &Irreps, got: usize| match irreps.0.get(got) {
                Some(irrep) => Ok(*irrep),
                None => Err(Error::value(
                    OP,
                    what,
                    format!("a position below {}", irreps.0.len()),
                    format!("{got} in instruction {at}"),
                )),
            };
            let a = place("instructions: first", &self.irreps1, i.first)?;
            let b = place("instructions: second", &self.irreps2, i.second)?;
            let c = place("instructions: out", &self.irreps_out, i.out)?;
            let refuse = |expected: String| {
                let got = format!("{a} and {b} to {c} in instruction {at}");
                Err(Error::value(OP, "instructions", expected, got))
            };
            if !couples([a.l, b.l, c.l]) {
                return refuse("an output of degree |l1 - l2| to l1 + l2".into());
            }
            if c.odd != (a.odd != b.odd) {
                return refuse("an output of the product's parity".into());
            }
            if i.connection == Connection::Uvu && c.mul != a.mul {
                return refuse(format!("{} copies of the output for uvu", a.mul));
            }
        }
        Ok(())
    }

    /// Checks the problem, makes the tables and compiles, for `batch` rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for a degree or a row length out of range, [`Error::Value`] for an
    /// instruction that names an absent irrep or that parity, degrees or copies forbid,
    /// [`Error::Limit`], [`Error::Compile`], [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, batch: u32) -> Result<WeightedTensorProductPlan> {
        self.dtype.expect_float(OP)?;
        let dims = [
            self.irreps1.input_row(OP, "irreps1")?,
            self.irreps2.input_row(OP, "irreps2")?,
            self.irreps_out.row(OP, "irreps_out")?,
        ];
        self.check()?;
        let weights = u32::try_from(self.weights())
            .ok()
            .filter(|n| u64::from(*n) * 4 <= ctx.caps.binding_size)
            .ok_or(Error::Limit {
                op: OP,
                what: "bytes of weights in a row",
                need: self.weights().saturating_mul(4),
                limit: ctx.caps.binding_size,
            })?;
        let (coupled, width) = self.coupled()?;
        let mixed = if width == 0 {
            None
        } else {
            let (row, limit) = (4 * u64::from(width), ctx.caps.binding_size);
            if row > limit {
                let what = "bytes of scratch for one product";
                return Err(Error::Limit { op: OP, what, need: row, limit });
            }
            let chunk = (SCRATCH.min(limit) / row.max(4)).clamp(1, u64::from(batch.max(1)));
            let map = couple(ctx, OP, width, &coupled)?;
            Some(Mixed { map, width, chunk: u32::try_from(chunk).unwrap_or(u32::MAX) })
        };
        let plan = WeightedTensorProductPlan {
            options: self.clone(),
            batch,
            dims,
            weights,
            table: self.table(ctx, dims[2])?,
            mixed,
            own: self.instructions.iter().any(|i| i.connection == Connection::Uvu),
            home: Arc::clone(ctx.home()),
        };
        ctx.kernel(plan.key())?;
        if plan.mixed.is_some() {
            ctx.kernel(plan.mixed_key())?;
        }
        Ok(plan)
    }

    /// The couplings of the instructions that mix all pairs, one after the other in rows of this
    /// length.
    fn coupled(&self) -> Result<(Vec<Coupled>, u32)> {
        let (starts1, starts2) = (self.irreps1.starts(), self.irreps2.starts());
        let (mut all, mut width) = (Vec::new(), 0u64);
        for i in self.instructions.iter().filter(|i| i.connection == Connection::Uvw) {
            let [first, second, Irrep { l, .. }] = self.irreps_of(i);
            let start = width;
            width += u64::from(first.mul) * u64::from(second.mul) * u64::from(2 * l + 1);
            // the next start, too, is in range
            let end = u32::try_from(width).map_err(|_| {
                Error::shape(OP, "instructions", "fewer than 2^32 pairs of elements", width)
            })?;
            all.push(Coupled {
                first,
                second,
                l,
                starts: [starts1[i.first], starts2[i.second], u32::try_from(start).unwrap_or(end)],
                scale: self.scale(i),
            });
        }
        Ok((all, u32::try_from(width).unwrap_or(u32::MAX)))
    }

    /// The table of shaders/gaunt/weighted.wgsl.
    fn table(&self, ctx: &Context, n_out: u32) -> Result<wgpu::Buffer> {
        let mut tensors = Tensors::default();
        // entries by k of every instruction that keeps copies apart
        let mut entries: Vec<Vec<Vec<[u32; 4]>>> = Vec::new();
        for i in &self.instructions {
            let l = self.irreps_of(i).map(|irrep| irrep.l);
            let scale = self.scale(i);
            let mut by_k = Vec::new();
            if i.connection == Connection::Uvu {
                by_k.resize(2 * l[2] as usize + 1, Vec::new());
                for &([a, b, k], value) in tensors.of(l) {
                    by_k[k as usize].push([a, b, to_f32(scale * value).to_bits(), 0]);
                }
            }
            entries.push(by_k);
        }
        let ranges: usize = entries.iter().map(Vec::len).sum();
        let terms: usize = entries.iter().flatten().map(Vec::len).sum();
        let heads = u64::from(n_out) + 2 * self.instructions.len() as u64 + ranges as u64;
        let (need, limit) = (16 * (heads + terms as u64), ctx.caps.binding_size);
        if need > limit {
            return Err(Error::Limit { op: OP, what: "bytes of tables", need, limit });
        }
        // a table of less than 2^32 bytes, which a binding is, has indices in u32
        let index = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);

        let (starts1, starts2) = (self.irreps1.starts(), self.irreps2.starts());
        let (mut paths, mut range_table, mut entry_table) =
            (Vec::new(), Vec::new(), Vec::<[u32; 4]>::new());
        let mut first_path = Vec::new();
        let mut trips = vec![0u64; self.irreps_out.0.len()];
        let first_range = n_out as usize + 2 * self.instructions.len();
        let first_entry = first_range + ranges;
        let mut weight_starts = Vec::new();
        let (mut weight, mut pairs) = (0u32, 0u32);
        let mut pair_starts = Vec::new();
        for i in &self.instructions {
            let [a, b, c] = self.irreps_of(i);
            weight_starts.push(weight);
            weight += u32::try_from(self.count(i).unwrap_or(0)).unwrap_or(0);
            pair_starts.push(pairs);
            if i.connection == Connection::Uvw {
                pairs += a.mul * b.mul * (2 * c.l + 1);
            }
        }
        // by output
        for (out, trips) in trips.iter_mut().enumerate() {
            first_path.push(index(n_out as usize + paths.len()));
            for (at, i) in self.instructions.iter().enumerate().filter(|(_, i)| i.out == out) {
                let [a, b, c] = self.irreps_of(i);
                let [n1, n2, n3] = [a.l, b.l, c.l].map(|l| 2 * l + 1);
                match i.connection {
                    Connection::Uvw => {
                        paths.push([a.mul * b.mul, pair_starts[at], weight_starts[at], 0]);
                        paths.push([n3, c.mul, 0, 0]);
                        *trips += 1 + u64::from(a.mul) * u64::from(b.mul);
                    }
                    Connection::Uvu => {
                        paths.push([b.mul, starts1[i.first], weight_starts[at], 1]);
                        let ranges = index(first_range + range_table.len());
                        paths.push([n1, starts2[i.second], n2, ranges]);
                        for terms in &entries[at] {
                            let first = first_entry + entry_table.len();
                            range_table.push([index(first), index(first + terms.len()), 0, 0]);
                            entry_table.extend(terms);
                        }
                        let longest = entries[at].iter().map(Vec::len).max().unwrap_or(0) as u64;
                        *trips += 1 + u64::from(b.mul) * (1 + longest);
                    }
                }
            }
        }
        first_path.push(index(n_out as usize + paths.len()));
        let most = trips.iter().copied().max().unwrap_or(0);
        if most > ctx.caps.loop_trips {
            return Err(Error::Limit {
                op: OP,
                what: "terms of one output on this driver",
                need: most,
                limit: ctx.caps.loop_trips,
            });
        }
        let mut table = Vec::new();
        for (out, irrep) in self.irreps_out.0.iter().enumerate() {
            for copy in 0..irrep.mul {
                let outputs =
                    (0..=2 * irrep.l).map(|k| [first_path[out], first_path[out + 1], copy, k]);
                table.extend(outputs);
            }
        }
        table.extend(paths.into_iter().chain(range_table).chain(entry_table));
        ctx.table(OP, bytemuck::cast_slice(&table))
    }
}

/// The triangle rule; no sum of legal degrees overflows.
fn couples([l1, l2, l3]: [u32; 3]) -> bool {
    l1.max(l2) <= MAX_CG_LMAX && (l1.abs_diff(l2)..=l1 + l2).contains(&l3)
}

impl WeightedTensorProductPlan {
    /// The options.
    pub fn options(&self) -> &WeightedTensorProduct {
        &self.options
    }

    /// Lengths of the rows of `x`, `y`, `z`.
    pub fn dims(&self) -> [u32; 3] {
        self.dims
    }

    /// Length of a row of weights.
    pub fn weights(&self) -> u32 {
        self.weights
    }

    /// Bytes of scratch that [`WeightedTensorProductArgs::scratch`] must have: 0 without
    /// [`Connection::Uvw`].
    pub fn scratch_bytes(&self) -> u64 {
        self.mixed.as_ref().map_or(0, |m| 4 * u64::from(m.width) * u64::from(m.chunk))
    }

    /// A buffer of [`scratch_bytes`](Self::scratch_bytes) for calls with this plan, one after the
    /// other; `None` if that is 0.
    ///
    /// # Errors
    /// [`Error::OtherContext`] if the plan is of another device, [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn scratch(&self, ctx: &Context) -> Result<Option<wgpu::Buffer>> {
        ctx.expect_plan(OP, Some(&self.home))?;
        ctx.scratch(OP, self.scratch_bytes())
    }

    /// The text of each kernel.
    pub fn wgsl(&self) -> Vec<String> {
        let mixed = self.mixed.iter().map(|_| self.mixed_key().wgsl());
        mixed.chain([self.key().wgsl()]).collect()
    }

    fn mixed_key(&self) -> Key {
        let dtype = self.options.dtype;
        Bilinear::key([dtype, dtype, DType::F32], [false; 3], false)
    }

    fn key(&self) -> Key {
        let decl = |dtype| Some(TensorDecl::new(dtype, false));
        let (mixed, own, dtype) = (self.mixed.is_some(), self.own, self.options.dtype);
        Key {
            source: SOURCE,
            entry: "weighted",
            spec: vec![
                ("WORKGROUP", format!("{WORKGROUP}u")),
                ("MIXED", mixed.to_string()),
                ("OWN", own.to_string()),
            ],
            tensors: vec![
                ("x", decl(dtype).filter(|_| own)),
                ("y", decl(dtype).filter(|_| own)),
                ("w", decl(DType::F32)),
                ("t", decl(DType::F32).filter(|_| mixed)),
                ("z", decl(dtype)),
            ],
        }
    }

    /// [`encode_pass`](Self::encode_pass) into the caller's encoder, in a compute pass of its own.
    ///
    /// # Errors
    /// As there.
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &WeightedTensorProductArgs<'_>,
    ) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: None,
        });
        self.encode_pass(ctx, &mut pass, args)
    }

    /// Records the product into the caller's compute pass; submits nothing. Nothing is recorded if
    /// an argument is refused.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Strides`], [`Error::OutOfRange`],
    /// [`Error::Misaligned`] or [`Error::Usage`] for a view that does not fit the plan,
    /// [`Error::SharedBuffer`], [`Error::Argument`] for missing scratch, [`Error::Limit`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &WeightedTensorProductArgs<'_>,
    ) -> Result<()> {
        ctx.expect_plan(OP, Some(&self.home))?;
        let (batch, dtype) = (self.batch, self.options.dtype);
        args.x.expect(OP, "x", [batch, self.dims[0]], dtype)?;
        args.y.expect(OP, "y", [batch, self.dims[1]], dtype)?;
        let shape = args.w.layout.shape;
        if shape != [1, self.weights] && shape != [batch, self.weights] {
            let n = self.weights;
            let expected = format!("[1, {n}] or [{batch}, {n}]");
            return Err(Error::shape(OP, "w", expected, format!("{shape:?}")));
        }
        args.w.expect(OP, "w", shape, DType::F32)?;
        args.z.expect_output(OP, "z", [batch, self.dims[2]], dtype)?;
        let mut outputs = vec![("z", args.z.buffer)];
        if self.scratch_bytes() > 0 {
            let scratch = check_scratch(OP, self.scratch_bytes(), args.scratch)?;
            outputs.push(("scratch", scratch));
        }
        let inputs = [("x", args.x.buffer), ("y", args.y.buffer), ("w", args.w.buffer)];
        distinct_outputs(ctx, OP, &outputs, &inputs)?;
        if self.dims[2] == 0 {
            return Ok(());
        }
        let chunk = self.mixed.as_ref().map_or(batch, |m| m.chunk);
        let mut first = 0;
        while first < batch {
            let rows = chunk.min(batch - first);
            self.encode_rows(ctx, pass, args, first, rows)?;
            first += rows;
        }
        Ok(())
    }

    fn encode_rows(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &WeightedTensorProductArgs<'_>,
        first: u32,
        rows: u32,
    ) -> Result<()> {
        let [x, y, w, z] = [args.x, args.y, args.w, args.z].map(|view| part(&view, first, rows));
        let count = u64::from(rows) * u64::from(self.dims[2]);
        let count32 = u32::try_from(count).map_err(|_| Error::Limit {
            op: OP,
            what: "elements in one call",
            need: count,
            limit: u32::MAX.into(),
        })?;
        let mut t = None;
        if let (Some(mixed), Some(buffer)) = (&self.mixed, args.scratch) {
            let layout = Layout::contiguous([rows, mixed.width]);
            let pairs = TensorView { buffer, layout, dtype: DType::F32 };
            mixed.map.encode_pass(
                ctx,
                pass,
                OP,
                &BilinearRows {
                    x: ("x", one_channel(&x)),
                    y: ("y", one_channel(&y)),
                    z: ("scratch", one_channel(&pairs)),
                    weights: [None; 3],
                    gather: None,
                },
            )?;
            t = Some(pairs);
        }
        let views = [
            ("x", self.own.then_some(x)),
            ("y", self.own.then_some(y)),
            ("w", Some(w)),
            ("scratch", t),
            ("z", Some(z)),
        ];
        let mut places = [[0; 2]; 5];
        let mut resources = vec![Resource::Buffer(self.table.as_entire_buffer_binding())];
        for ((name, view), place) in views.iter().zip(&mut places) {
            if let Some(view) = view {
                let bound = view.bind(OP, name, &ctx.caps)?;
                *place = [view.strides_u32()[0], bound.offset];
                resources.push(bound.resource);
            }
        }
        let [x, y, w, t, z] = places;
        let params = Params { x, y, w, t, z, count: count32, n_out: self.dims[2] };
        let kernel = ctx.kernel(self.key())?;
        let groups = fold(OP, count.div_ceil(WORKGROUP.into()), &ctx.caps)?;
        dispatch(ctx, pass, OP, &kernel, bytemuck::bytes_of(&params), &resources, groups)
    }
}

/// Some rows of a view; of one that has a single row for all, that row.
fn part<'a>(view: &TensorView<'a, 2>, first: u32, rows: u32) -> TensorView<'a, 2> {
    let mut layout = view.layout;
    if layout.shape[0] > 1 {
        layout.shape[0] = rows;
        layout.offset += u64::from(first) * layout.strides[0];
    }
    TensorView { layout, ..*view }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Tensor,
        test_support::{assert_params, fields, noop},
    };

    #[test]
    fn params_match() {
        let irreps: Irreps = "2x0e+2x1o".parse().unwrap();
        let mut product =
            WeightedTensorProduct::fully_connected(irreps.clone(), irreps.clone(), irreps);
        product.instructions[0].connection = Connection::Uvu;
        let wgsl = product.plan(&noop(), 3).unwrap().wgsl();
        assert_params(&wgsl[1], fields!(Params: x y w t z count n_out));
    }

    /// Rows that go through scratch a few at a time are those that go through it at once.
    #[test]
    fn chunks_change_nothing() {
        let Ok(ctx) = Context::new_blocking() else {
            let allowed = std::env::var("TILEWISE_ALLOW_NO_GPU").is_ok_and(|v| v == "1");
            assert!(allowed, "no adapter; TILEWISE_ALLOW_NO_GPU=1 allows that");
            return;
        };
        let irreps: Irreps = "2x0e+2x1o".parse().unwrap();
        let mut product =
            WeightedTensorProduct::fully_connected(irreps.clone(), irreps.clone(), irreps);
        product
            .instructions
            .push(Instruction { connection: Connection::Uvu, ..product.instructions[1] });
        let batch = 11;
        let mut plan = product.plan(&ctx, batch).unwrap();
        let row = |n: u32, seed: u32| {
            let data: Vec<f32> = (0..batch * n).map(|i| ((i * 37 + seed) as f32).sin()).collect();
            Tensor::upload(&ctx, [batch, n], &data).unwrap()
        };
        let [n1, n2, n3] = plan.dims();
        let (x, y, w) = (row(n1, 1), row(n2, 2), row(plan.weights(), 3));
        let mut run = |chunk: u32| {
            plan.mixed.as_mut().unwrap().chunk = chunk;
            let z = row(n3, 4);
            let scratch = plan.scratch(&ctx).unwrap();
            let args = WeightedTensorProductArgs {
                x: x.view(),
                y: y.view(),
                w: w.view(),
                z: z.view(),
                scratch: scratch.as_ref(),
            };
            let mut encoder = ctx.device.create_command_encoder(&Default::default());
            plan.encode(&ctx, &mut encoder, &args).unwrap();
            ctx.queue.submit([encoder.finish()]);
            z.download::<f32>(&ctx).unwrap()
        };
        let all = run(batch);
        for chunk in [1, 4, 10] {
            assert_eq!(all, run(chunk), "{chunk} rows at a time");
        }
    }
}
