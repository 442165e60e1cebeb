//! From options and sizes to dispatches.

use std::sync::{Arc, LazyLock};

use super::{
    Algorithm, Border, KernelCost, NeighborhoodAttention, NeighborhoodShape, NeighborhoodTiles, OP,
    RelativeBias,
    simulate::{Cut, aligned},
};
use crate::{
    Caps, Context, DType, Error, Layout, Result, TensorView, Tier,
    attention::{Attention, AttentionArgs, AttentionPlan, AttentionShape, Split},
    caps::UNROLLED,
    dispatch::{Bound, Place, Resource, dispatch, distinct_outputs, fold},
    element::TensorDecl,
    home::Home,
    shader::{Key, Source, source},
    tuning::{Tuned, plan_or, refuse},
};

const FUSED: Source = source!("neighborhood/fused.wgsl");
const NAIVE: Source = source!("neighborhood/naive.wgsl");
const RELATIVE: Source = source!("neighborhood/relative.wgsl");

/// The fused kernel without subgroup operations: every invocation loads all that it uses, so that
/// nothing is left to hear from others.
static PORTABLE: LazyLock<Source> = LazyLock::new(|| {
    let text = FUSED
        .text
        .replace("subgroupBroadcast(", "own(")
        .replace("    @builtin(subgroup_invocation_id) subgroup_lane: u32,\n", "")
        .replace("subgroup_lane % LANES", "0u");
    Source { path: "neighborhood/fused_portable.wgsl", text: text.leak() }
});

/// A tensor view of any rank: the rank of a map depends on its number of axes.
///
/// Made of a [`TensorView`] with `into()`.
#[derive(Clone, Copy, Debug)]
pub struct MapView<'a> {
    buffer: &'a wgpu::Buffer,
    dtype: DType,
    rank: usize,
    shape: [u32; 6],
    strides: [u64; 6],
    offset: u64,
}

impl<'a, const N: usize> From<TensorView<'a, N>> for MapView<'a> {
    fn from(view: TensorView<'a, N>) -> Self {
        let l = view.layout;
        // of a rank that no map has, what does not fit is never looked at
        let axis = |a: usize| a.min(N.saturating_sub(1));
        Self {
            buffer: view.buffer,
            dtype: view.dtype,
            rank: N,
            shape: std::array::from_fn(|a| if a < N { l.shape[axis(a)] } else { 1 }),
            strides: std::array::from_fn(|a| if a < N { l.strides[axis(a)] } else { 0 }),
            offset: l.offset,
        }
    }
}

/// The tensors of one call. Strides are free but for the last axis.
#[derive(Clone, Copy, Debug)]
pub struct NeighborhoodArgs<'a> {
    /// Queries `[batch, *spatial, heads, head_dim]`.
    pub q: MapView<'a>,
    /// Keys `[batch, *spatial, heads_kv, head_dim]`.
    pub k: MapView<'a>,
    /// Values `[batch, *spatial, heads_kv, head_dim_v]`.
    pub v: MapView<'a>,
    /// Output `[batch, *spatial, heads, head_dim_v]`, written everywhere.
    pub o: MapView<'a>,
    /// Natural-log LSE `[batch, *spatial, heads]`, f32, written everywhere if given.
    pub lse: Option<MapView<'a>>,
    /// Extra keys `[batch, extra_tokens, heads_kv, head_dim]`, needed if there are extra tokens.
    pub extra_k: Option<TensorView<'a, 4>>,
    /// Extra values `[batch, extra_tokens, heads_kv, head_dim_v]`, needed with them.
    pub extra_v: Option<TensorView<'a, 4>>,
    /// The relative bias, f32, of shape [`NeighborhoodAttention::bias_shape`], needed if there is
    /// one.
    pub bias: Option<TensorView<'a, 2>>,
    /// At least [`NeighborhoodPlan::scratch_bytes`] bytes with usage `STORAGE`, needed if that is
    /// not 0. Its contents are free after the commands have run.
    pub scratch: Option<&'a wgpu::Buffer>,
}

impl<'a> NeighborhoodArgs<'a> {
    /// Inputs and output; no LSE, extra tokens, bias or scratch.
    pub fn new(
        q: impl Into<MapView<'a>>,
        k: impl Into<MapView<'a>>,
        v: impl Into<MapView<'a>>,
        o: impl Into<MapView<'a>>,
    ) -> Self {
        Self {
            q: q.into(),
            k: k.into(),
            v: v.into(),
            o: o.into(),
            lse: None,
            extra_k: None,
            extra_v: None,
            bias: None,
            scratch: None,
        }
    }
}

/// A checked and compiled neighborhood attention. Encode it as often as you like.
#[derive(Clone, Debug)]
pub struct NeighborhoodPlan<const D: usize> {
    shape: NeighborhoodShape<D>,
    op: NeighborhoodAttention<D>,
    tier: Tier,
    tiles: NeighborhoodTiles<D>,
    scale: f32,
    /// Lanes that load for their subgroup.
    lanes: u32,
    /// Whether exponentials are made of multiply-adds.
    soft_exp2: bool,
    /// Plain attention, for a window as large as the map.
    full: Option<AttentionPlan>,
    /// The device it was planned on, if any.
    home: Option<Arc<Home>>,
}

// Must match `Params` in shaders/neighborhood/fused.wgsl and naive.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    tokens: [u32; 4],
    kernel: [i32; 4],
    stride: [i32; 4],
    dilation: [u32; 4],
    rule: [i32; 4],
    tile: [i32; 4],
    tiles: [u32; 4],
    q_axes: [u32; 4],
    k_axes: [u32; 4],
    v_axes: [u32; 4],
    o_axes: [u32; 4],
    lse_axes: [u32; 4],
    qk_head: [u32; 4],
    vo_head: [u32; 4],
    lse_head: [u32; 4],
    extra_k: [u32; 4],
    extra_v: [u32; 4],
    bias_axes: [i32; 4],
    bias_rows: [u32; 4],
    scale: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

// Must match `Params` in shaders/neighborhood/relative.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct RelativeParams {
    tokens: [u32; 4],
    q_axes: [u32; 4],
    heads: [u32; 4],
    count: [u32; 4],
    scale: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

/// Invocations of a workgroup of the naive and the relative kernel.
const PLAIN_WORKGROUP: u32 = 64;

impl<const D: usize> NeighborhoodAttention<D> {
    /// Checks the problem, chooses tiles, compiles.
    ///
    /// # Errors
    /// As [`NeighborhoodAttention::check`]; [`Error::Limit`] where the device or the integers are
    /// too small, [`Error::Argument`] for tiles that the problem cannot have, [`Error::Compile`],
    /// [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, shape: NeighborhoodShape<D>) -> Result<NeighborhoodPlan<D>> {
        let mut plan = self.design_tuned(ctx, shape)?;
        plan.home = Some(Arc::clone(ctx.home()));
        if self.algorithm == Algorithm::Fused
            && self.is_full(&shape)
            && self.bias == RelativeBias::None
            && shape.extra_tokens == 0
            && self.tiles.is_none()
        {
            let seq = u32::try_from(shape.tokens()).unwrap_or(u32::MAX);
            let options = Attention {
                scale: self.scale,
                dtype: self.dtype,
                // needs no scratch
                split: Split::Never,
                ..Default::default()
            };
            let shape = AttentionShape {
                batch: shape.batch,
                seq_q: seq,
                seq_k: seq,
                heads: shape.heads,
                heads_kv: shape.heads_kv,
                head_dim: shape.head_dim,
                head_dim_v: shape.head_dim_v,
            };
            plan.full = Some(options.plan(ctx, shape)?);
        } else {
            for key in plan.keys([true; 6], false) {
                ctx.kernel(key)?;
            }
        }
        Ok(plan)
    }

    /// [`NeighborhoodAttention::design`], with the tiles that the context's table has for it.
    fn design_tuned(
        &self,
        ctx: &Context,
        shape: NeighborhoodShape<D>,
    ) -> Result<NeighborhoodPlan<D>> {
        let caps = &ctx.caps;
        let open = self.algorithm == Algorithm::Fused && self.tiles.is_none();
        let tuned =
            open.then(|| ctx.tuning()).flatten().and_then(|table| {
                let entry = table.entries.get(&self.tuning_key(caps, &shape))?;
                let Tuned::Neighborhood { axis, tile, slots, block_k, lanes } = entry else {
                    return Some(Err(refuse(OP, "the entry is of another operator")));
                };
                let (slots, block_k, lanes) = (*slots, *block_k, *lanes);
                let tiles = <[u32; D]>::try_from(tile.as_slice()).ok().map(|tile| {
                    NeighborhoodTiles { axis: *axis as usize, tile, slots, block_k, lanes }
                });
                // candidates have the lanes that subgroups need and texts that compilers take
                let all = self.tile_candidates(caps, &shape).unwrap_or_default();
                let Some(tiles) = tiles.filter(|tiles| all.contains(tiles)) else {
                    return Some(Err(refuse(OP, "the tiles are no candidate here")));
                };
                let plan = Self { tiles: Some(tiles), ..*self }.design(caps, shape);
                Some(plan.map(|plan| NeighborhoodPlan { op: *self, ..plan }))
            });
        plan_or(|| self.tuning_key(caps, &shape), tuned, || self.design(caps, shape))
    }

    /// The class of problems that a [`Tuning`](crate::Tuning) knows this one by: all but the batch
    /// and the number of heads.
    pub fn tuning_key(&self, caps: &Caps, shape: &NeighborhoodShape<D>) -> String {
        format!(
            "neighborhood {} {} map{:?} window{:?} stride{:?} dilation{:?} causal{:?} d{} v{} extra{} {:?} {:?}",
            self.dtype,
            caps.tier,
            shape.spatial,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.is_causal,
            shape.head_dim,
            shape.head_dim_v,
            shape.extra_tokens,
            self.border,
            self.bias,
        )
    }

    /// Tiles that a plan on such a device may have, by predicted cost, the planner's choice first.
    ///
    /// # Errors
    /// As [`NeighborhoodAttention::check`].
    pub fn tile_candidates(
        &self,
        caps: &Caps,
        shape: &NeighborhoodShape<D>,
    ) -> Result<Vec<NeighborhoodTiles<D>>> {
        let all = self.candidates(shape, workgroup(caps), &KernelCost::of(caps))?;
        let fits = all.into_iter().filter(|c| c.simulation.trips <= caps.loop_trips);
        Ok(fits.map(|c| c.tiles).collect())
    }

    /// The checks and choices of [`NeighborhoodAttention::plan`] without a device: nothing is
    /// compiled.
    ///
    /// # Errors
    /// As [`NeighborhoodAttention::plan`], but for those of the device.
    pub fn design(&self, caps: &Caps, shape: NeighborhoodShape<D>) -> Result<NeighborhoodPlan<D>> {
        self.check_size(&shape)?;
        let keys = self.window_keys(&shape);
        let too_long = |need: u64| Error::Limit {
            op: OP,
            what: "loop trips of one invocation on this driver",
            need,
            limit: caps.loop_trips,
        };
        let fastest =
            |tiles: &NeighborhoodTiles<D>| self.simulate(&shape, tiles, &KernelCost::of(caps));
        let workgroup = workgroup(caps);
        let tiles = match (self.algorithm, self.tiles) {
            (Algorithm::Naive, _) => {
                if keys > caps.loop_trips {
                    return Err(too_long(keys));
                }
                NeighborhoodTiles {
                    axis: 0,
                    tile: [1; D],
                    slots: 1,
                    block_k: 1,
                    lanes: PLAIN_WORKGROUP,
                }
            }
            (Algorithm::Fused, Some(tiles)) => {
                let simulation = fastest(&tiles)?;
                let chunks = shape.head_dim.div_ceil(4) + shape.head_dim_v.div_ceil(4);
                let unrolled = tiles.unrolled(shape.head_dim, shape.head_dim_v);
                // register tiles are written out: beyond this no compiler finishes
                if tiles.lanes > caps.invocations || unrolled > UNROLLED {
                    let problem = format!(
                        "at most {} lanes, and slots * block_k at most {} for these head sizes",
                        caps.invocations,
                        UNROLLED / chunks
                    );
                    return Err(Error::argument(OP, "tiles", problem));
                }
                if simulation.trips > caps.loop_trips {
                    return Err(too_long(simulation.trips));
                }
                tiles
            }
            (Algorithm::Fused, None) => {
                let all = self.candidates(&shape, workgroup, &KernelCost::of(caps))?;
                let fits = all.iter().find(|c| c.simulation.trips <= caps.loop_trips);
                let least = || all.iter().map(|c| c.simulation.trips).min().unwrap_or(u64::MAX);
                fits.ok_or_else(|| too_long(least()))?.tiles
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
        let default_scale = || f64::from(shape.head_dim).sqrt().recip() as f32;
        Ok(NeighborhoodPlan {
            shape,
            op: *self,
            tier: caps.tier,
            tiles,
            scale: self.scale.unwrap_or_else(default_scale),
            lanes: caps
                .subgroup
                .filter(|_| caps.tier == Tier::Subgroup)
                .map_or(1, |(min, _)| min.min(32)),
            soft_exp2: caps.cpu,
            full: None,
            home: None,
        })
    }

    /// Keys that one query may see.
    fn window_keys(&self, shape: &NeighborhoodShape<D>) -> u64 {
        let keys = self.kernel_size.iter().fold(1u64, |n, &k| n.saturating_mul(k.into()));
        keys.saturating_add(shape.extra_tokens.into())
    }

    /// [`NeighborhoodAttention::check`], and sizes that the kernels' integers hold.
    pub(super) fn check_size(&self, shape: &NeighborhoodShape<D>) -> Result<()> {
        self.check(shape)?;
        let heads = u64::from(shape.heads.max(shape.heads_kv));
        let rows = shape.tokens().saturating_mul(heads).saturating_mul(shape.batch.into());
        let elements = rows.saturating_mul(shape.head_dim.max(shape.head_dim_v).into());
        let products = self.relative_rows().saturating_mul(rows);
        if let Some(need) = [elements, products].into_iter().find(|&n| n > i32::MAX as u64) {
            let limit = i32::MAX as u64;
            return Err(Error::Limit { op: OP, what: "elements in one tensor", need, limit });
        }
        // a dispatch that no query needs is still described by the kernel's integers
        let keys = self.window_keys(shape);
        if keys > 1 << 30 {
            return Err(Error::Limit {
                op: OP,
                what: "keys in one window",
                need: keys,
                limit: 1 << 30,
            });
        }
        if self
            .bias_shape(shape)
            .is_some_and(|[rows, row]| u64::from(rows) * u64::from(row) > 1 << 30)
        {
            return Err(Error::Limit {
                op: OP,
                what: "elements of the bias",
                need: u64::MAX,
                limit: 1 << 30,
            });
        }
        Ok(())
    }

    /// Rows of all factorised tables together; 0 without.
    fn relative_rows(&self) -> u64 {
        match self.bias {
            RelativeBias::Factorised { .. } => {
                self.kernel_size.iter().map(|&k| u64::from(k) * 2 - 1).sum()
            }
            _ => 0,
        }
    }
}

/// Invocations of a workgroup of the fused kernel: one subgroup of any size that the device may
/// use, or as many as run together without.
fn workgroup(caps: &Caps) -> u32 {
    let one = if caps.cpu { 8 } else { 32 };
    caps.subgroup.map_or(one, |(_, max)| max).min(caps.invocations)
}

impl<const D: usize> NeighborhoodPlan<D> {
    /// The problem.
    pub fn shape(&self) -> NeighborhoodShape<D> {
        self.shape
    }

    /// How the work is cut.
    pub fn tiles(&self) -> NeighborhoodTiles<D> {
        self.tiles
    }

    /// Which kernels run.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Whether the window is the whole map and plain attention runs.
    pub fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// Bytes of scratch that [`NeighborhoodArgs::scratch`] must have: 0 but for a factorised bias,
    /// whose dot products are stored for each query and table row.
    pub fn scratch_bytes(&self) -> u64 {
        let s = self.shape;
        if self.op.algorithm == Algorithm::Naive {
            return 0;
        }
        4 * self.op.relative_rows() * s.tokens() * u64::from(s.batch) * u64::from(s.heads)
    }

    /// A buffer of [`scratch_bytes`](Self::scratch_bytes) for calls with this plan, one after the
    /// other; `None` if that is 0.
    ///
    /// # Errors
    /// [`Error::OtherContext`] if the plan is of another device, [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn scratch(&self, ctx: &Context) -> Result<Option<wgpu::Buffer>> {
        ctx.expect_plan(OP, self.home.as_ref())?;
        ctx.scratch(OP, self.scratch_bytes())
    }

    /// The text of each kernel, for aligned views and without LSE.
    pub fn wgsl(&self) -> Vec<String> {
        match &self.full {
            Some(full) => full.wgsl(),
            None => self.keys([true; 6], false).iter().map(Key::wgsl).collect(),
        }
    }

    /// File, entry point and constants of each kernel, for profilers.
    pub fn label(&self) -> String {
        match &self.full {
            Some(full) => full.label(),
            None => {
                self.keys([true; 6], false).iter().map(Key::label).collect::<Vec<_>>().join("; ")
            }
        }
    }

    /// Keys of the kernels, the main one last. `aligned` says which of q, k, v, o, extra_k and
    /// extra_v start every row at a multiple of four elements.
    fn keys(&self, aligned: [bool; 6], lse: bool) -> Vec<Key> {
        let (s, t) = (self.shape, self.tiles);
        let dtype = self.op.dtype;
        let number = |x: u32| format!("{x}u");
        let decl = |name: &'static str, aligned: bool, dim: u32| {
            (name, Some(TensorDecl::new(dtype, aligned && dim.is_multiple_of(4))))
        };
        let scalar = |name: &'static str, present: bool| {
            (name, present.then_some(TensorDecl::new(DType::F32, false)))
        };
        let extra = |(name, decl): (&'static str, Option<TensorDecl>)| {
            (name, decl.filter(|_| s.extra_tokens > 0))
        };
        let q = decl("q", aligned[0], s.head_dim);
        let tensors = vec![
            q,
            decl("k", aligned[1], s.head_dim),
            decl("v", aligned[2], s.head_dim_v),
            decl("o", aligned[3], s.head_dim_v),
            scalar("lse", lse),
            extra(decl("extra_k", aligned[4], s.head_dim)),
            extra(decl("extra_v", aligned[5], s.head_dim_v)),
            scalar("bias", self.op.bias != RelativeBias::None),
        ];
        let (d4, dv4) = (s.head_dim.div_ceil(4), s.head_dim_v.div_ceil(4));
        let (bias, scaled) = match self.op.bias {
            RelativeBias::None => (0, false),
            RelativeBias::Table => (1, false),
            RelativeBias::Factorised { scaled } => (2, scaled),
        };
        let mut spec = vec![
            ("HEAD_DIM", number(s.head_dim)),
            ("HEAD_DIM_V", number(s.head_dim_v)),
            ("D4", number(d4)),
            ("DV4", number(dv4)),
            ("WORKGROUP", number(t.lanes)),
            ("BIAS", number(bias)),
        ];
        if self.op.algorithm == Algorithm::Naive {
            spec.push(("BIAS_SCALED", scaled.to_string()));
            return vec![Key { source: NAIVE, entry: "naive", spec, tensors }];
        }
        let cuts = t.cuts(&self.op, s.spatial);
        let window: u64 = self.op.kernel_size.iter().map(|&k| u64::from(k)).product();
        let mask = match (aligned_tiles(&cuts), s.extra_tokens > 0) {
            (false, _) => 2,
            (true, false)
                if self.op.border != Border::Masked && window.is_multiple_of(t.block_k.into()) =>
            {
                0
            }
            (true, _) => 1,
        };
        let lanes = self.lanes;
        spec.extend([
            ("SLOTS", number(t.slots)),
            ("MOVES", number(t.slots - 1)),
            ("BLOCK_K", number(t.block_k)),
            ("LANES", number(lanes)),
            ("K_REGS", number((t.block_k * d4).div_ceil(lanes))),
            ("V_REGS", number((t.block_k * dv4).div_ceil(lanes))),
            ("MASK", number(mask)),
            ("SHARED", (mask != 2).to_string()),
            ("TURNS", t.turns(&cuts, s.extra_tokens).to_string()),
            ("SOFT_EXP2", self.soft_exp2.to_string()),
            ("ZEROS", (self.op.border == Border::Zeros).to_string()),
            ("EXTRA", (s.extra_tokens > 0).to_string()),
        ]);
        let source = if self.tier == Tier::Subgroup { FUSED } else { *PORTABLE };
        let mut keys = Vec::new();
        if bias == 2 {
            keys.push(Key {
                source: RELATIVE,
                entry: "relative",
                spec: vec![
                    ("HEAD_DIM", number(s.head_dim)),
                    ("D4", number(d4)),
                    ("WORKGROUP", number(PLAIN_WORKGROUP)),
                ],
                tensors: vec![q, scalar("table", true), scalar("products", true)],
            });
        }
        keys.push(Key { source, entry: "fused", spec, tensors });
        keys
    }

    /// Records the kernels into the caller's encoder, in a compute pass of their own; submits
    /// nothing.
    ///
    /// # Errors
    /// As [`NeighborhoodPlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &NeighborhoodArgs<'_>,
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
    /// [`Error::SharedBuffer`] for an output that shares a buffer, [`Error::Argument`] for an
    /// optional tensor that is missing or not wanted, [`Error::Limit`] for a view that the device
    /// cannot bind, [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &NeighborhoodArgs<'_>,
    ) -> Result<()> {
        ctx.expect_plan(OP, self.home.as_ref())?;
        let s = self.shape;
        let dtype = self.op.dtype;
        let map = |what, view: &MapView<'_>, tail: &[u32]| {
            check_map(what, view, s.batch, s.spatial, tail)
        };
        map("q", &args.q, &[s.heads, s.head_dim])?;
        map("k", &args.k, &[s.heads_kv, s.head_dim])?;
        map("v", &args.v, &[s.heads_kv, s.head_dim_v])?;
        map("o", &args.o, &[s.heads, s.head_dim_v])?;
        let q = widen::<D>(&args.q);
        let k = widen::<D>(&args.k);
        let v = widen::<D>(&args.v);
        let o = widen::<D>(&args.o);
        q.expect(OP, "q", q.layout.shape, dtype)?;
        k.expect(OP, "k", k.layout.shape, dtype)?;
        v.expect(OP, "v", v.layout.shape, dtype)?;
        o.expect_output(OP, "o", o.layout.shape, dtype)?;
        let mut outputs = vec![("o", Place::from(&o))];
        let mut inputs = vec![("q", args.q.buffer), ("k", args.k.buffer), ("v", args.v.buffer)];
        let mut lse_view = None;
        if let Some(lse) = &args.lse {
            map("lse", lse, &[s.heads])?;
            let view = widen::<D>(lse);
            view.expect_output(OP, "lse", view.layout.shape, DType::F32)?;
            lse_view = Some(view);
        }
        outputs.extend(lse_view.iter().map(|view| ("lse", Place::from(view))));
        let wanted = s.extra_tokens > 0;
        let extra_k = optional("extra_k", args.extra_k, wanted)?;
        let extra_v = optional("extra_v", args.extra_v, wanted)?;
        let bias = optional("bias", args.bias, self.op.bias != RelativeBias::None)?;
        if let (Some(k), Some(v)) = (&extra_k, &extra_v) {
            k.expect(OP, "extra_k", [s.batch, s.extra_tokens, s.heads_kv, s.head_dim], dtype)?;
            v.expect(OP, "extra_v", [s.batch, s.extra_tokens, s.heads_kv, s.head_dim_v], dtype)?;
            inputs.extend([("extra_k", k.buffer), ("extra_v", v.buffer)]);
        }
        if let (Some(bias), Some(shape)) = (&bias, self.op.bias_shape(&s)) {
            bias.expect(OP, "bias", shape, DType::F32)?;
            inputs.push(("bias", bias.buffer));
        }
        let scratch = self.check_scratch(args.scratch)?;
        outputs.extend(scratch.map(|buffer| ("scratch", Place::from(buffer))));
        distinct_outputs(ctx, OP, &outputs, &inputs)?;
        if s.batch == 0 {
            return Ok(());
        }
        if let Some(full) = &self.full
            && let Some(plain) = plain_args(args)
        {
            return full.encode_pass(ctx, pass, &plain);
        }

        let caps = &ctx.caps;
        let bound_q = q.bind(OP, "q", caps)?;
        let bound_k = k.bind(OP, "k", caps)?;
        let bound_v = v.bind(OP, "v", caps)?;
        let bound_o = o.bind(OP, "o", caps)?;
        let bound_lse = lse_view.map(|l| l.bind(OP, "lse", caps)).transpose()?;
        let bound_extra_k = extra_k.map(|e| e.bind(OP, "extra_k", caps)).transpose()?;
        let bound_extra_v = extra_v.map(|e| e.bind(OP, "extra_v", caps)).transpose()?;
        let bound_bias = bias.map(|b| b.bind(OP, "bias", caps)).transpose()?;
        let aligned = |view: &TensorView<'_, 6>| view.layout.is_multiple_of(4);
        let extra_aligned =
            |view: &Option<TensorView<'_, 4>>| view.is_none_or(|v| v.layout.is_multiple_of(4));
        let aligned = [
            aligned(&q),
            aligned(&k),
            aligned(&v),
            aligned(&o),
            extra_aligned(&extra_k),
            extra_aligned(&extra_v),
        ];
        let kernels = self
            .keys(aligned, args.lse.is_some())
            .into_iter()
            .map(|key| ctx.kernel(key))
            .collect::<Result<Vec<_>>>()?;

        let cuts = self.tiles.cuts(&self.op, s.spatial);
        let axes = |view: &TensorView<'_, 6>| {
            let strides = view.strides_u32();
            let mut out = [0; 4];
            for (to, a) in out.iter_mut().zip(self.tiles.order()) {
                *to = strides[1 + a];
            }
            out[3] = strides[0];
            out
        };
        let head = |view: &TensorView<'_, 6>| view.strides_u32()[4];
        let extra = |view: &Option<TensorView<'_, 4>>, bound: &Option<Bound<'_>>| {
            let [batch, token, head, _] = view.map_or([0; 4], |v| v.strides_u32());
            [batch, token, head, bound.as_ref().map_or(0, |b| b.offset)]
        };
        // by axis of the map: the step of one offset in a table, or the first row of its factors
        let mut bias_axes = [-1; 4];
        for (to, a) in bias_axes.iter_mut().zip(self.tiles.order()) {
            let span = |a: usize| int(self.op.kernel_size[a]) * 2 - 1;
            *to = match self.op.bias {
                RelativeBias::None => 0,
                RelativeBias::Table => (a + 1..D).map(span).product(),
                RelativeBias::Factorised { .. } => (0..a).map(span).sum(),
            };
        }
        let ints =
            |f: fn(&Cut) -> i32, last: u32| [f(&cuts[0]), f(&cuts[1]), f(&cuts[2]), int(last)];
        let words = |f: fn(&Cut) -> u32, last: u32| [f(&cuts[0]), f(&cuts[1]), f(&cuts[2]), last];
        let problems = u64::from(s.batch) * u64::from(s.heads);
        let groups = problems
            * cuts
                .iter()
                .map(|c| u64::from(c.tiles()) * u64::from(c.axis.dilation))
                .product::<u64>();
        let mut params = Params {
            tokens: words(|c| c.axis.tokens, s.batch),
            kernel: ints(|c| int(c.axis.kernel_size), s.extra_tokens),
            stride: ints(|c| int(c.axis.stride), 0),
            dilation: words(|c| c.axis.dilation, 0),
            rule: ints(
                |c| match c.axis.border {
                    _ if c.axis.is_causal => 3,
                    Border::Shift => 0,
                    Border::Masked => 1,
                    Border::Zeros => 2,
                },
                0,
            ),
            tile: ints(|c| int(c.tile), 0),
            tiles: words(Cut::tiles, u32::try_from(groups).unwrap_or(u32::MAX)),
            q_axes: axes(&q),
            k_axes: axes(&k),
            v_axes: axes(&v),
            o_axes: axes(&o),
            lse_axes: lse_view.as_ref().map_or([0; 4], axes),
            qk_head: [head(&q), bound_q.offset, head(&k), bound_k.offset],
            vo_head: [head(&v), bound_v.offset, head(&o), bound_o.offset],
            lse_head: [
                lse_view.as_ref().map_or(0, head),
                bound_lse.as_ref().map_or(0, |b| b.offset),
                s.heads,
                s.heads / s.heads_kv,
            ],
            extra_k: extra(&extra_k, &bound_extra_k),
            extra_v: extra(&extra_v, &bound_extra_v),
            bias_axes,
            bias_rows: [0; 4],
            scale: self.scale * std::f32::consts::LOG2_E,
            ..Default::default()
        };
        let row_stride = bias.map_or(0, |b| b.strides_u32()[0]);
        let bias_offset = bound_bias.as_ref().map_or(0, |b| b.offset);
        // a table's heads are apart by its row stride; factors' rows too
        params.bias_rows = [row_stride, row_stride, bias_offset, 0];

        let mut bias_resource = bound_bias.map(|b| b.resource);
        if let Some(scratch) = scratch {
            let rows = u32::try_from(self.op.relative_rows()).unwrap_or(u32::MAX);
            let bytes = self.scratch_bytes();
            if bytes > caps.binding_size {
                return Err(Error::Limit {
                    op: OP,
                    what: "bytes of stored bias",
                    need: bytes,
                    limit: caps.binding_size,
                });
            }
            let products = Resource::Buffer(wgpu::BufferBinding {
                buffer: scratch,
                offset: 0,
                size: wgpu::BufferSize::new(bytes),
            });
            let count = bytes / 4;
            let scaled = self.op.bias == (RelativeBias::Factorised { scaled: true });
            let relative = RelativeParams {
                tokens: params.tokens,
                q_axes: params.q_axes,
                heads: [head(&q), bound_q.offset, row_stride, bias_offset],
                count: [s.heads, rows, u32::try_from(count).unwrap_or(u32::MAX), 0],
                scale: if scaled { self.scale } else { 1.0 },
                ..Default::default()
            };
            let resources: Vec<Resource<'_>> =
                [Some(bound_q.resource.clone()), bias_resource.take(), Some(products.clone())]
                    .into_iter()
                    .flatten()
                    .collect();
            let groups = fold(OP, count.div_ceil(PLAIN_WORKGROUP.into()), caps)?;
            dispatch(
                ctx,
                pass,
                OP,
                &kernels[0],
                bytemuck::bytes_of(&relative),
                &resources,
                groups,
            )?;
            bias_resource = Some(products);
            params.bias_rows = [0, rows, 0, 0];
        }

        let mut resources =
            vec![bound_q.resource, bound_k.resource, bound_v.resource, bound_o.resource];
        resources.extend(bound_lse.map(|b| b.resource));
        resources.extend(bound_extra_k.map(|b| b.resource));
        resources.extend(bound_extra_v.map(|b| b.resource));
        resources.extend(bias_resource);
        let count = match self.op.algorithm {
            Algorithm::Fused => groups,
            Algorithm::Naive => (problems * s.tokens()).div_ceil(PLAIN_WORKGROUP.into()),
        };
        let kernel = &kernels[kernels.len() - 1];
        dispatch(
            ctx,
            pass,
            OP,
            kernel,
            bytemuck::bytes_of(&params),
            &resources,
            fold(OP, count, caps)?,
        )
    }

    fn check_scratch<'a>(
        &self,
        scratch: Option<&'a wgpu::Buffer>,
    ) -> Result<Option<&'a wgpu::Buffer>> {
        let need = self.scratch_bytes();
        if need == 0 {
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
        if buffer.size() < need {
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

/// Whether no score needs a mask for its place; the planner's word for it.
fn aligned_tiles(cuts: &[Cut; 3]) -> bool {
    aligned(cuts)
}

/// Extents and kernels are checked to be far below `i32::MAX`.
fn int(x: u32) -> i32 {
    i32::try_from(x).unwrap_or(i32::MAX)
}

/// An optional argument that must be there, or must not.
fn optional<T>(what: &'static str, argument: Option<T>, wanted: bool) -> Result<Option<T>> {
    match (argument, wanted) {
        (None, true) => Err(Error::argument(OP, what, "needed by this plan, none given")),
        (Some(_), false) => {
            Err(Error::argument(OP, what, "given, but this plan has no use for it"))
        }
        (argument, _) => Ok(argument),
    }
}

/// Checks rank and shape: `[batch, *spatial, *tail]`.
fn check_map<const D: usize>(
    what: &'static str,
    view: &MapView<'_>,
    batch: u32,
    spatial: [u32; D],
    tail: &[u32],
) -> Result<()> {
    let expected: Vec<u32> =
        std::iter::once(batch).chain(spatial).chain(tail.iter().copied()).collect();
    let got = &view.shape[..view.rank.min(6)];
    if view.rank != expected.len() || got != expected {
        let got = if view.rank > 6 { format!("{} axes", view.rank) } else { format!("{got:?}") };
        return Err(Error::shape(OP, what, format!("{expected:?}"), got));
    }
    Ok(())
}

/// `[batch, *spatial, ..]` with the map's missing axes, and a missing last one, put in as ones.
fn widen<'a, const D: usize>(view: &MapView<'a>) -> TensorView<'a, 6> {
    let mut shape = [1; 6];
    let mut strides = [0; 6];
    for a in 0..view.rank.min(6) {
        let to = if a <= D { a } else { a + 3 - D };
        shape[to] = view.shape[a];
        strides[to] = view.strides[a];
    }
    let layout = Layout { shape, strides, offset: view.offset };
    TensorView { buffer: view.buffer, layout, dtype: view.dtype }
}

/// The arguments of plain attention, if every map's axes can be seen as one.
fn plain_args<'a>(args: &NeighborhoodArgs<'a>) -> Option<AttentionArgs<'a>> {
    // `[batch, seq, heads, dim]`
    let flat = |view: &MapView<'a>| {
        let last = view.rank - 2;
        let mut seq = (1u32, 0u64);
        for a in (1..last).rev() {
            if view.shape[a] == 1 {
                continue;
            }
            if seq.0 == 1 {
                seq = (view.shape[a], view.strides[a]);
            } else if view.strides[a] == seq.1 * u64::from(seq.0) {
                seq.0 *= view.shape[a];
            } else {
                return None;
            }
        }
        let layout = Layout {
            shape: [view.shape[0], seq.0, view.shape[last], view.shape[last + 1]],
            strides: [view.strides[0], seq.1, view.strides[last], view.strides[last + 1]],
            offset: view.offset,
        };
        Some(TensorView { buffer: view.buffer, layout, dtype: view.dtype })
    };
    // attention's LSE is `[batch, heads, seq]`; a map's can be seen so only with a single head
    if args.lse.is_some() {
        return None;
    }
    Some(AttentionArgs::new(flat(&args.q)?, flat(&args.k)?, flat(&args.v)?, flat(&args.o)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_params, fields};

    /// Names, offsets and size of `Params` in every kernel's text and here.
    #[test]
    fn params_match() {
        let shape = NeighborhoodShape {
            spatial: [16, 16],
            heads: 1,
            heads_kv: 1,
            head_dim: 8,
            head_dim_v: 8,
            ..Default::default()
        };
        let op = NeighborhoodAttention {
            bias: RelativeBias::Factorised { scaled: true },
            ..NeighborhoodAttention::new([5, 5])
        };
        for (algorithm, stride) in
            [(Algorithm::Naive, [1; 2]), (Algorithm::Fused, [1; 2]), (Algorithm::Fused, [5; 2])]
        {
            let op = NeighborhoodAttention { algorithm, stride, ..op };
            let wgsl = op.design(&Caps::minimum(), shape).unwrap().wgsl();
            let (main, relative) = wgsl.split_last().unwrap();
            assert_params(
                main,
                fields!(Params: tokens kernel stride dilation rule tile tiles q_axes k_axes v_axes o_axes lse_axes qk_head vo_head lse_head extra_k extra_v bias_axes bias_rows scale pad0 pad1 pad2),
            );
            for text in relative {
                assert_params(
                    text,
                    fields!(RelativeParams: tokens q_axes heads count scale pad0 pad1 pad2),
                );
            }
        }
    }

    #[test]
    fn portable_text_has_no_subgroup_operation() {
        assert!(FUSED.text.contains("subgroupBroadcast("));
        let code = PORTABLE.text.lines().map(|l| l.split("//").next().unwrap_or_default());
        assert!(!code.collect::<String>().contains("subgroup"));
    }
}
