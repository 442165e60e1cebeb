//! Softmax attention, tiled with an online softmax: memory beyond inputs and outputs does not grow
//! with the number of scores.
//!
//! For each batch and query head, `o = softmax(scale * q kᵀ + mask) v` and
//! `lse = ln(sum_j exp(scale * q k_j))` over the visible keys, natural logarithm
//! (Dao 2023, arXiv:2307.08691). A row that sees no key gives output 0 and LSE -inf.

use crate::{
    Caps, Context, DType, Error, Result, TensorView, Tier,
    dispatch::{Resource, dispatch, distinct_outputs, fold},
    element::TensorDecl,
    shader::{Key, Source, source},
};

const OP: &str = "attention";
const SUBGROUP: Source = source!("attention/flash_subgroup.wgsl");
const PORTABLE: Source = source!("attention/flash_portable.wgsl");
const SCORES: Source = source!("attention/unfused_scores.wgsl");
const SOFTMAX: Source = source!("attention/unfused_softmax.wgsl");
const VALUES: Source = source!("attention/unfused_values.wgsl");

/// The largest `head_dim` and `head_dim_v`.
pub const MAX_HEAD_DIM: u32 = 256;

/// Sizes of an attention problem.
///
/// `q` and `o` are `[batch, seq_q, heads, head_dim]` and `[batch, seq_q, heads, head_dim_v]`, `k`
/// and `v` `[batch, seq_k, heads_kv, head_dim]` and `[batch, seq_k, heads_kv, head_dim_v]`, `lse`
/// is `[batch, heads, seq_q]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    /// Independent problems. May be 0.
    pub batch: u32,
    /// Queries. May be 0.
    pub seq_q: u32,
    /// Keys. May be 0: then every output is 0 and every LSE -inf.
    pub seq_k: u32,
    /// Query heads, a multiple of `heads_kv`.
    pub heads: u32,
    /// Key and value heads: `heads` for multi-head, 1 for multi-query, between for grouped-query
    /// attention. Query head `h` reads key head `h / (heads / heads_kv)`.
    pub heads_kv: u32,
    /// Length of a query and a key, 1 to [`MAX_HEAD_DIM`].
    pub head_dim: u32,
    /// Length of a value and an output row, 1 to [`MAX_HEAD_DIM`].
    pub head_dim_v: u32,
}

impl AttentionShape {
    /// Multi-head self-attention: as many keys as queries, one head size.
    pub fn self_attention(batch: u32, seq: u32, heads: u32, head_dim: u32) -> Self {
        Self {
            batch,
            seq_q: seq,
            seq_k: seq,
            heads,
            heads_kv: heads,
            head_dim,
            head_dim_v: head_dim,
        }
    }

    /// Floating-point operations of the two products, two for each multiply-add, counting visible
    /// scores only.
    pub fn flops(&self, mask: Mask) -> f64 {
        let rows = f64::from(self.batch) * f64::from(self.heads);
        let scores: f64 = match mask {
            Mask::None => f64::from(self.seq_q) * f64::from(self.seq_k),
            Mask::Causal(align) => {
                let diagonal = align.diagonal(self.seq_q, self.seq_k);
                let seen =
                    |row: u32| (i64::from(row) + diagonal + 1).clamp(0, i64::from(self.seq_k));
                #[expect(clippy::cast_precision_loss, reason = "a length is exact in f64")]
                (0..self.seq_q).map(|row| seen(row) as f64).sum()
            }
        };
        2.0 * rows * scores * (f64::from(self.head_dim) + f64::from(self.head_dim_v))
    }
}

/// Where the causal diagonal lies when `seq_q` and `seq_k` differ. There is no default: libraries
/// disagree, and a guess is a silent error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CausalAlignment {
    /// The last query sees every key: key `j` is visible to query `i` if
    /// `j <= i + seq_k - seq_q`. As FlashAttention since 2.1; decoding and chunked prefill want this.
    BottomRight,
    /// The first query sees the first key only: `j <= i`. As PyTorch's `is_causal`.
    TopLeft,
}

impl CausalAlignment {
    /// `j <= i + diagonal` for visible keys.
    pub fn diagonal(self, seq_q: u32, seq_k: u32) -> i64 {
        match self {
            Self::BottomRight => i64::from(seq_k) - i64::from(seq_q),
            Self::TopLeft => 0,
        }
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mask {
    /// All.
    #[default]
    None,
    /// Those up to its own position.
    Causal(CausalAlignment),
}

/// How the work is cut. [`Attention::plan`] chooses unless told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiles {
    /// Invocations in a workgroup.
    pub workgroup: u32,
    /// Query rows that one invocation owns; a workgroup owns `workgroup * queries` rows.
    pub queries: u32,
    /// Keys that pass between two corrections of the running maximum.
    pub block_k: u32,
}

/// How attention is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Tiled, online softmax, no scores in memory.
    #[default]
    Flash,
    /// Scores stored, normalised and applied by plain kernels, one element each. The baseline of
    /// the benchmarks and a second opinion in tests; needs `4 * batch * heads * seq_q * seq_k`
    /// bytes of scratch.
    Unfused,
}

/// Options of attention. `Default` is unmasked f32 attention scaled by `1 / sqrt(head_dim)`.
///
/// ```no_run
/// use tilewise::{Context, Tensor, attention::*};
/// # fn main() -> tilewise::Result<()> {
/// let ctx = Context::new_blocking()?;
/// let shape = AttentionShape::self_attention(1, 128, 8, 64);
/// let plan = Attention { mask: Mask::Causal(CausalAlignment::BottomRight), ..Default::default() }
///     .plan(&ctx, shape)?;
/// let q = Tensor::upload(&ctx, [1, 128, 8, 64], &vec![0.1f32; 128 * 8 * 64])?;
/// let o = Tensor::zeros(&ctx, [1, 128, 8, 64], q.dtype())?;
/// let mut encoder = ctx.device.create_command_encoder(&Default::default());
/// plan.encode(&ctx, &mut encoder, &AttentionArgs::new(q.view(), q.view(), q.view(), o.view()))?;
/// ctx.queue.submit([encoder.finish()]);
/// let out: Vec<f32> = o.download(&ctx)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Attention {
    /// Which keys a query sees.
    pub mask: Mask,
    /// Factor of the scores; `None` is `1 / sqrt(head_dim)`. Finite.
    pub scale: Option<f32>,
    /// Element type of `q`, `k`, `v` and `o`. Sums are f32 whatever it is; `lse` is always f32.
    pub dtype: DType,
    /// Tiled, or the plain baseline.
    pub algorithm: Algorithm,
    /// How to cut the work, instead of the planner's choice.
    pub tiles: Option<Tiles>,
}

/// The tensors of one attention call. Axis orders are those of [`AttentionShape`]; strides are
/// free but for the last axis.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// Queries `[batch, seq_q, heads, head_dim]`.
    pub q: TensorView<'a, 4>,
    /// Keys `[batch, seq_k, heads_kv, head_dim]`.
    pub k: TensorView<'a, 4>,
    /// Values `[batch, seq_k, heads_kv, head_dim_v]`.
    pub v: TensorView<'a, 4>,
    /// Output `[batch, seq_q, heads, head_dim_v]`, written everywhere.
    pub o: TensorView<'a, 4>,
    /// Natural-log LSE `[batch, heads, seq_q]`, f32, written everywhere if given.
    pub lse: Option<TensorView<'a, 3>>,
    /// At least [`AttentionPlan::scratch_bytes`] bytes with usage `STORAGE`, needed if that is not
    /// 0. Its contents are free after the commands have run.
    pub scratch: Option<&'a wgpu::Buffer>,
}

impl<'a> AttentionArgs<'a> {
    /// Inputs and output; no LSE, no scratch.
    pub fn new(
        q: TensorView<'a, 4>,
        k: TensorView<'a, 4>,
        v: TensorView<'a, 4>,
        o: TensorView<'a, 4>,
    ) -> Self {
        Self { q, k, v, o, lse: None, scratch: None }
    }
}

/// A checked and compiled attention. Encode it as often as you like.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    shape: AttentionShape,
    options: Attention,
    tier: Tier,
    tiles: Tiles,
    scale: f32,
    /// The device's own exp2 is dear.
    soft_exp2: bool,
    /// Lanes that load for their subgroup.
    lanes: u32,
    /// Keys staged at a time by the portable kernel.
    tile_k: u32,
}

// Must match `Params` in shaders/attention/flash_*.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    q: [u32; 4],
    k: [u32; 4],
    v: [u32; 4],
    o: [u32; 4],
    lse: [u32; 4],
    seq_q: u32,
    seq_k: u32,
    heads: u32,
    group: u32,
    diagonal: i32,
    scale: f32,
    blocks_q: u32,
    groups: u32,
}

impl Attention {
    /// Checks the problem, chooses tiles, compiles.
    ///
    /// # Errors
    /// [`Error::Shape`] for a size that is not accepted, [`Error::Value`] for a scale that is not
    /// finite, [`Error::Limit`] where the device or the integers are too small,
    /// [`Error::Compile`], [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, shape: AttentionShape) -> Result<AttentionPlan> {
        let plan = self.design(&ctx.caps, shape)?;
        for key in plan.keys([true; 2], false) {
            ctx.kernel(key)?;
        }
        Ok(plan)
    }

    /// The checks and choices of [`Attention::plan`] without a device: nothing is compiled.
    ///
    /// # Errors
    /// As [`Attention::plan`], but for those of the device.
    pub fn design(&self, caps: &Caps, shape: AttentionShape) -> Result<AttentionPlan> {
        check_shape(&shape)?;
        let scale = self.scale.unwrap_or_else(|| {
            #[expect(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
            let scale = f64::from(shape.head_dim).sqrt().recip() as f32;
            scale
        });
        if !scale.is_finite() {
            return Err(Error::value(OP, "scale", "a finite number", scale));
        }
        let mut tiles = match self.tiles {
            Some(tiles) => check_tiles(caps, &shape, tiles)?,
            None => select_tiles(caps, &shape),
        };
        let mut keys = longest(caps, &shape, self.algorithm, tiles);
        // longer blocks make fewer trips
        while self.tiles.is_none() && u64::from(shape.seq_k) > keys {
            let longer = Tiles { block_k: tiles.block_k * 2, ..tiles };
            match check_tiles(caps, &shape, longer) {
                Ok(longer) => tiles = longer,
                Err(_) => break,
            }
            keys = longest(caps, &shape, self.algorithm, tiles);
        }
        if u64::from(shape.seq_k) > keys {
            return Err(Error::Limit {
                op: OP,
                what: "keys in one pass on this driver",
                need: shape.seq_k.into(),
                limit: keys,
            });
        }
        if self.algorithm == Algorithm::Unfused && scratch_bytes(&shape) > caps.binding_size {
            return Err(Error::Limit {
                op: OP,
                what: "bytes of stored scores",
                need: scratch_bytes(&shape),
                limit: caps.binding_size,
            });
        }
        let lanes = caps.subgroup.map_or(1, |(min, _)| min.min(32));
        let tile_k = tile_k(caps, &shape, tiles);
        Ok(AttentionPlan {
            shape,
            options: *self,
            tier: caps.tier,
            tiles,
            scale,
            soft_exp2: caps.cpu,
            lanes,
            tile_k,
        })
    }

    /// Tiles that [`Attention::tiles`] accepts for this problem on such a device, the planner's
    /// choice first.
    pub fn supported_tiles(caps: &Caps, shape: &AttentionShape) -> Vec<Tiles> {
        let first = select_tiles(caps, shape);
        let mut all = vec![first];
        for workgroup in [8, 16, 32, 64, 128, 256] {
            for queries in [1, 2, 4, 8] {
                for block_k in [1, 2, 4, 8, 16] {
                    let tiles = Tiles { workgroup, queries, block_k };
                    if tiles != first && check_tiles(caps, shape, tiles).is_ok() {
                        all.push(tiles);
                    }
                }
            }
        }
        all
    }
}

fn check_shape(s: &AttentionShape) -> Result<()> {
    for (what, value) in [("heads", s.heads), ("heads_kv", s.heads_kv)] {
        if value == 0 {
            return Err(Error::shape(OP, what, "at least 1", 0));
        }
    }
    for (what, value) in [("head_dim", s.head_dim), ("head_dim_v", s.head_dim_v)] {
        if value == 0 || value > MAX_HEAD_DIM {
            return Err(Error::shape(OP, what, format!("1 to {MAX_HEAD_DIM}"), value));
        }
    }
    if !s.heads.is_multiple_of(s.heads_kv) {
        return Err(Error::shape(
            OP,
            "heads",
            format!("a multiple of heads_kv = {}", s.heads_kv),
            s.heads,
        ));
    }
    // positions are compared as i32 in the kernels
    for (what, value) in [("seq_q", s.seq_q), ("seq_k", s.seq_k)] {
        if value > 1 << 30 {
            return Err(Error::shape(OP, what, format!("at most {}", 1u32 << 30), value));
        }
    }
    let product = |dims: [u32; 4]| dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.into()));
    for dims in [
        [s.batch, s.seq_q, s.heads, s.head_dim.max(s.head_dim_v)],
        [s.batch, s.seq_k, s.heads_kv, s.head_dim.max(s.head_dim_v)],
    ] {
        let elements = product(dims).unwrap_or(u64::MAX);
        if elements > u64::from(u32::MAX) {
            return Err(Error::Limit {
                op: OP,
                what: "elements in one tensor",
                need: elements,
                limit: u32::MAX.into(),
            });
        }
    }
    Ok(())
}

fn scratch_bytes(s: &AttentionShape) -> u64 {
    [s.batch, s.heads, s.seq_q, s.seq_k].iter().fold(4u64, |n, &d| n.saturating_mul(d.into()))
}

fn check_tiles(caps: &Caps, shape: &AttentionShape, t: Tiles) -> Result<Tiles> {
    let positive = t.workgroup > 0 && t.queries > 0 && t.block_k > 0;
    // register tiles are written out: beyond this no compiler finishes
    let chunks = shape.head_dim.div_ceil(4) + shape.head_dim_v.div_ceil(4);
    let unrolled = u64::from(chunks) * u64::from(t.queries) * u64::from(t.block_k);
    // lanes that speak for their subgroup must all be there
    let whole = match (caps.tier, caps.subgroup) {
        (Tier::Subgroup, Some((_, max))) => max,
        _ => 1,
    };
    if !positive
        || t.workgroup > caps.invocations
        || !t.workgroup.is_multiple_of(whole)
        || unrolled > 8192
    {
        return Err(Error::shape(
            OP,
            "tiles",
            format!(
                "positive, workgroup a multiple of {whole} and at most {}, queries * block_k at most {} \
                 for these head sizes",
                caps.invocations,
                8192 / chunks
            ),
            format!("{t:?}"),
        ));
    }
    Ok(t)
}

/// Keys that the portable kernel stages at a time: whole blocks that fit the workgroup memory that
/// every device has.
fn tile_k(caps: &Caps, shape: &AttentionShape, tiles: Tiles) -> u32 {
    let row = 16 * (shape.head_dim.div_ceil(4) + shape.head_dim_v.div_ceil(4));
    let fits = (caps.workgroup_storage.min(16_384) / row).min(64);
    (fits / tiles.block_k * tiles.block_k).max(tiles.block_k)
}

/// The most keys that one pass can visit within the driver's loop trips.
fn longest(caps: &Caps, shape: &AttentionShape, algorithm: Algorithm, tiles: Tiles) -> u64 {
    let (block, tile) = (u64::from(tiles.block_k), u64::from(tile_k(caps, shape, tiles)));
    match (algorithm, caps.tier) {
        // three loops over a row
        (Algorithm::Unfused, _) => caps.loop_trips / 3,
        (Algorithm::Flash, Tier::Subgroup) => caps.loop_trips.saturating_mul(block),
        // a trip for each tile and one for each block in it
        (Algorithm::Flash, Tier::Portable) => {
            (caps.loop_trips / (tile / block + 1)).saturating_mul(tile)
        }
    }
}

/// Tiles for a problem on a device. Pure.
///
/// On a CPU a register tile of four queries pays for each broadcast or load, and a workgroup of
/// one subgroup wastes least at a causal edge; on a GPU registers are scarce and one query for
/// each invocation keeps them. Wide heads take fewer queries.
fn select_tiles(caps: &Caps, shape: &AttentionShape) -> Tiles {
    let wide = shape.head_dim.max(shape.head_dim_v);
    let queries = match (caps.cpu, wide) {
        (true, ..=64) => 4,
        (true, ..=128) => 2,
        _ => 1,
    };
    let block_k = match (caps.cpu, wide) {
        (true, ..=32) => 4,
        (true, ..=64) => 2,
        (_, ..=64) => 4,
        _ => 2,
    };
    let widest = caps.subgroup.map_or(32, |(_, max)| max);
    let workgroup = match (caps.cpu, caps.tier) {
        (true, Tier::Subgroup) => widest,
        // rows staged in workgroup memory serve more queries
        (true, Tier::Portable) => 32,
        (false, _) => widest.max(64),
    };
    let workgroup = workgroup.min(caps.invocations);
    // no more rows to an invocation than there are: a short problem compiles faster, too
    let queries = queries.min(shape.seq_q.div_ceil(workgroup.max(1)).max(1).next_power_of_two());
    Tiles { workgroup, queries, block_k }
}

impl AttentionPlan {
    /// The problem.
    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// How the work is cut.
    pub fn tiles(&self) -> Tiles {
        self.tiles
    }

    /// Which kernels run.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Bytes of scratch that [`AttentionArgs::scratch`] must have; 0 for the tiled kernels.
    pub fn scratch_bytes(&self) -> u64 {
        match self.options.algorithm {
            Algorithm::Flash => 0,
            Algorithm::Unfused => scratch_bytes(&self.shape),
        }
    }

    /// The text of each kernel, for aligned views and without LSE.
    pub fn wgsl(&self) -> Vec<String> {
        self.keys([true; 2], false).iter().map(Key::wgsl).collect()
    }

    /// File, entry point and constants of each kernel, for profilers.
    pub fn label(&self) -> String {
        self.keys([true; 2], false).iter().map(Key::label).collect::<Vec<_>>().join("; ")
    }

    /// Keys of the kernels, in order. `aligned` says whether all rows of the inputs, and of the
    /// output, start at multiples of four elements.
    fn keys(&self, aligned: [bool; 2], lse: bool) -> Vec<Key> {
        let (s, t) = (self.shape, self.tiles);
        let dtype = self.options.dtype;
        let decl = |name: &'static str, aligned: bool, dim: u32| {
            (name, Some(TensorDecl { dtype, vec4: aligned && dim.is_multiple_of(4) }))
        };
        let f32_decl =
            |present: bool| present.then_some(TensorDecl { dtype: DType::F32, vec4: false });
        let number = |x: u32| format!("{x}u");
        let causal = (self.options.mask != Mask::None).to_string();
        let (q, k) = (decl("q", aligned[0], s.head_dim), decl("k", aligned[0], s.head_dim));
        let (v, o) = (decl("v", aligned[0], s.head_dim_v), decl("o", aligned[1], s.head_dim_v));
        if self.options.algorithm == Algorithm::Unfused {
            let scalar = |name: &'static str| (name, Some(TensorDecl { dtype, vec4: false }));
            let scores = ("scores", f32_decl(true));
            return vec![
                Key {
                    source: SCORES,
                    entry: "unfused_scores",
                    spec: vec![("HEAD_DIM", number(s.head_dim))],
                    tensors: vec![scalar("q"), scalar("k"), scores],
                },
                Key {
                    source: SOFTMAX,
                    entry: "unfused_softmax",
                    spec: vec![("CAUSAL", causal.clone())],
                    tensors: vec![("lse", f32_decl(lse)), scores],
                },
                Key {
                    source: VALUES,
                    entry: "unfused_values",
                    spec: vec![("HEAD_DIM_V", number(s.head_dim_v)), ("CAUSAL", causal)],
                    tensors: vec![scalar("v"), scalar("o"), scores],
                },
            ];
        }
        let (d4, dv4) = (s.head_dim.div_ceil(4), s.head_dim_v.div_ceil(4));
        let ragged = !s.seq_k.is_multiple_of(t.block_k);
        let mut spec = vec![
            ("HEAD_DIM", number(s.head_dim)),
            ("HEAD_DIM_V", number(s.head_dim_v)),
            ("D4", number(d4)),
            ("DV4", number(dv4)),
            ("WORKGROUP", number(t.workgroup)),
            ("QUERIES", number(t.queries)),
            ("BLOCK_K", number(t.block_k)),
            ("CAUSAL", causal),
            ("PARTIAL", (self.options.mask != Mask::None || ragged).to_string()),
            ("SOFT_EXP2", self.soft_exp2.to_string()),
        ];
        let tensors = vec![q, k, v, o, ("lse", f32_decl(lse))];
        if self.tier == Tier::Subgroup {
            let lanes = self.lanes;
            spec.push(("LANES", number(lanes)));
            spec.push(("K_REGS", number((t.block_k * d4).div_ceil(lanes))));
            spec.push(("V_REGS", number((t.block_k * dv4).div_ceil(lanes))));
            return vec![Key { source: SUBGROUP, entry: "flash_subgroup", spec, tensors }];
        }
        spec.push(("TILE_K", number(self.tile_k)));
        spec.push(("STAGED", (self.tile_k > t.block_k).to_string()));
        spec.push(("K_STAGE", number((self.tile_k * d4).div_ceil(t.workgroup))));
        spec.push(("V_STAGE", number((self.tile_k * dv4).div_ceil(t.workgroup))));
        vec![Key { source: PORTABLE, entry: "flash_portable", spec, tensors }]
    }

    /// Records the kernels into the caller's encoder, in a compute pass of their own; submits
    /// nothing.
    ///
    /// # Errors
    /// As [`AttentionPlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &AttentionArgs<'_>,
    ) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: None,
        });
        self.encode_pass(ctx, &mut pass, args)
    }

    /// Records the kernels into the caller's compute pass; submits nothing. Nothing is recorded if
    /// an argument is refused.
    ///
    /// Views whose rows do not start at multiples of four elements are read one element at a time,
    /// by a kernel that the first such call compiles.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Strides`], [`Error::OutOfRange`],
    /// [`Error::Misaligned`] or [`Error::Usage`] for a view that does not fit the plan,
    /// [`Error::SharedBuffer`] for an output that shares a buffer, [`Error::Argument`] for missing
    /// scratch, [`Error::Limit`] for a view that the device cannot bind, [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &AttentionArgs<'_>,
    ) -> Result<()> {
        let s = self.shape;
        let dtype = self.options.dtype;
        args.q.expect(OP, "q", [s.batch, s.seq_q, s.heads, s.head_dim], dtype)?;
        args.k.expect(OP, "k", [s.batch, s.seq_k, s.heads_kv, s.head_dim], dtype)?;
        args.v.expect(OP, "v", [s.batch, s.seq_k, s.heads_kv, s.head_dim_v], dtype)?;
        args.o.expect_output(OP, "o", [s.batch, s.seq_q, s.heads, s.head_dim_v], dtype)?;
        let mut outputs = vec![("o", args.o.buffer)];
        if let Some(lse) = &args.lse {
            lse.expect_output(OP, "lse", [s.batch, s.heads, s.seq_q], DType::F32)?;
            outputs.push(("lse", lse.buffer));
        }
        let scratch = self.check_scratch(args.scratch)?;
        if let Some(scratch) = scratch {
            outputs.push(("scratch", scratch));
        }
        let inputs = [("q", args.q.buffer), ("k", args.k.buffer), ("v", args.v.buffer)];
        distinct_outputs(OP, &outputs, &inputs)?;

        if s.batch == 0 || s.seq_q == 0 {
            return Ok(());
        }
        let q = args.q.bind(OP, "q", &ctx.caps)?;
        let k = args.k.bind(OP, "k", &ctx.caps)?;
        let v = args.v.bind(OP, "v", &ctx.caps)?;
        let o = args.o.bind(OP, "o", &ctx.caps)?;
        let lse = args.lse.map(|l| l.bind(OP, "lse", &ctx.caps)).transpose()?;
        let place = |view: &TensorView<'_, 4>, offset: u32| {
            let [b, t, h, _] = view.strides_u32();
            [b, t, h, offset]
        };
        let rows = self.tiles.workgroup * self.tiles.queries;
        let blocks_q = s.seq_q.div_ceil(rows);
        let groups = u64::from(blocks_q) * u64::from(s.heads) * u64::from(s.batch);
        let diagonal = match self.options.mask {
            Mask::None => 0,
            Mask::Causal(align) => align.diagonal(s.seq_q, s.seq_k),
        };
        let mut params = Params {
            q: place(&args.q, q.offset),
            k: place(&args.k, k.offset),
            v: place(&args.v, v.offset),
            o: place(&args.o, o.offset),
            lse: args.lse.zip(lse.as_ref()).map_or([0; 4], |(view, bound)| {
                let [b, h, t] = view.strides_u32();
                [b, h, t, bound.offset]
            }),
            seq_q: s.seq_q,
            seq_k: s.seq_k,
            heads: s.heads,
            group: s.heads / s.heads_kv,
            // lengths are at most 2^30
            diagonal: i32::try_from(diagonal).unwrap_or(i32::MAX),
            scale: self.scale * std::f32::consts::LOG2_E,
            blocks_q,
            groups: u32::try_from(groups).unwrap_or(u32::MAX),
        };
        let whole = |view: &TensorView<'_, 4>| view.layout.is_multiple_of(4);
        let aligned = [whole(&args.q) && whole(&args.k) && whole(&args.v), whole(&args.o)];
        let kernels = self
            .keys(aligned, args.lse.is_some())
            .into_iter()
            .map(|key| ctx.kernel(key))
            .collect::<Result<Vec<_>>>()?;
        let lse: Vec<Resource<'_>> = lse.into_iter().map(|l| l.resource).collect();

        if let Some(scratch) = scratch {
            let scores = Resource::Buffer(wgpu::BufferBinding {
                buffer: scratch,
                offset: 0,
                size: wgpu::BufferSize::new(self.scratch_bytes().max(16).min(scratch.size())),
            });
            // one invocation for each score, then for each row, then for each output element
            let mut run = |kernel: usize, items: u64, resources: Vec<Resource<'_>>| {
                let count = items.div_ceil(64);
                params.groups = u32::try_from(items).unwrap_or(u32::MAX);
                let bytes = bytemuck::bytes_of(&params);
                dispatch(
                    ctx,
                    pass,
                    OP,
                    &kernels[kernel],
                    bytes,
                    &resources,
                    fold(OP, count, &ctx.caps)?,
                )
            };
            let rows = u64::from(s.batch) * u64::from(s.heads) * u64::from(s.seq_q);
            run(0, rows * u64::from(s.seq_k), vec![q.resource, k.resource, scores.clone()])?;
            run(1, rows, lse.into_iter().chain([scores.clone()]).collect())?;
            return run(2, rows * u64::from(s.head_dim_v), vec![v.resource, o.resource, scores]);
        }
        let mut resources = vec![q.resource, k.resource, v.resource, o.resource];
        resources.extend(lse);
        dispatch(
            ctx,
            pass,
            OP,
            &kernels[0],
            bytemuck::bytes_of(&params),
            &resources,
            fold(OP, groups, &ctx.caps)?,
        )
    }

    fn check_scratch<'a>(
        &self,
        scratch: Option<&'a wgpu::Buffer>,
    ) -> Result<Option<&'a wgpu::Buffer>> {
        let need = self.scratch_bytes();
        if need == 0 && self.options.algorithm == Algorithm::Flash {
            return Ok(None);
        }
        let Some(buffer) = scratch else {
            return Err(Error::argument(OP, "scratch", format!("needs {need} bytes, none given")));
        };
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::Usage {
                op: OP,
                what: "scratch",
                missing: wgpu::BufferUsages::STORAGE,
            });
        }
        if buffer.size() < need.max(4) {
            return Err(Error::OutOfRange {
                op: OP,
                what: "scratch",
                end: need,
                size: buffer.size(),
            });
        }
        Ok(Some(buffer))
    }
}
