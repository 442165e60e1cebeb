//! Recording a plan's kernels.

use std::sync::Arc;

use super::{
    Decay, Form, LinearAttention, LinearAttentionShape, Normalize, OP, Update,
    plan::{
        Aligned, Design, Engine, MAX_PACKED, PARAMS_BYTES, PLAIN_WORKGROUP, Role, Split, compile,
    },
};
use crate::{
    Caps, Context, DType, Error, Result, TensorView, Tier,
    dispatch::{Resource, dispatch, fold},
    home::Home,
    shader::Key,
    tuning::{Tuned, plan_or, refuse},
};

/// The tensors of one linear attention call. Axis orders are those of
/// [the module](crate::linear_attention); strides are free but for the last axis.
#[derive(Clone, Copy, Debug)]
pub struct LinearAttentionArgs<'a> {
    /// Queries `[B, Tq, Hq, D]`.
    pub q: TensorView<'a, 4>,
    /// Keys `[B, Tk, Hk, D]`.
    pub k: TensorView<'a, 4>,
    /// Values `[B, Tk, Hv, V]`.
    pub v: TensorView<'a, 4>,
    /// Output `[B, Tq, H, V]`, written everywhere.
    pub o: TensorView<'a, 4>,
    /// Log gates `[B, Tk, H, 1]` for [`Decay::PerToken`], `[B, Tk, H, K]` for
    /// [`Decay::PerChannel`], at most 0; see [`check_gates`](super::check_gates). Kernels take a
    /// positive gate for 0.
    pub gates: Option<TensorView<'a, 4>>,
    /// Weights or betas `[B, Tk, H, 1]` for [`Update::Weighted`] and [`Update::Delta`].
    pub beta: Option<TensorView<'a, 4>>,
    /// State before the first token `[B, H, K, V]`, f32; `None` is zero.
    pub initial_state: Option<TensorView<'a, 4>>,
    /// State after the last token `[B, H, K, V]`, f32. May be the very view of `initial_state`:
    /// decoding then updates it in place, without a copy.
    pub final_state: Option<TensorView<'a, 4>>,
    /// Decayed sum of the keys before the first token `[B, H, K]`, f32, for normalised variants:
    /// given exactly when `initial_state` is.
    pub initial_key_sum: Option<TensorView<'a, 3>>,
    /// Sum of the keys after the last token `[B, H, K]`, f32, for normalised variants. May be the
    /// very view of `initial_key_sum`.
    pub final_key_sum: Option<TensorView<'a, 3>>,
    /// Bounds of packed sequences: sequence `n` has tokens `cu[n]..cu[n + 1]`, `cu[0]` is 0 and
    /// the last bound the number of tokens. Sequences may be empty.
    pub cu_seqlens: Option<&'a [u32]>,
    /// At least [`LinearAttentionPlan::scratch_bytes`] bytes with usage `STORAGE`, needed if that
    /// is not 0. Its contents are free after the commands have run.
    pub scratch: Option<&'a wgpu::Buffer>,
}

impl<'a> LinearAttentionArgs<'a> {
    /// Inputs and output, nothing optional.
    pub fn new(
        q: TensorView<'a, 4>,
        k: TensorView<'a, 4>,
        v: TensorView<'a, 4>,
        o: TensorView<'a, 4>,
    ) -> Self {
        Self {
            q,
            k,
            v,
            o,
            gates: None,
            beta: None,
            initial_state: None,
            final_state: None,
            initial_key_sum: None,
            final_key_sum: None,
            cu_seqlens: None,
            scratch: None,
        }
    }
}

/// The tensors of a state reduction: as [`LinearAttentionArgs`], without queries and output.
#[derive(Clone, Copy, Debug)]
pub struct StateArgs<'a> {
    /// Keys `[B, T, Hk, D]`.
    pub k: TensorView<'a, 4>,
    /// Values `[B, T, Hv, V]`.
    pub v: TensorView<'a, 4>,
    /// Log gates.
    pub gates: Option<TensorView<'a, 4>>,
    /// Weights or betas.
    pub beta: Option<TensorView<'a, 4>>,
    /// State before the first token `[B, H, K, V]`, f32.
    pub initial_state: Option<TensorView<'a, 4>>,
    /// State after the last token `[B, H, K, V]`, f32, written everywhere.
    pub final_state: TensorView<'a, 4>,
    /// Sum of the keys before the first token.
    pub initial_key_sum: Option<TensorView<'a, 3>>,
    /// Sum of the keys after the last token.
    pub final_key_sum: Option<TensorView<'a, 3>>,
    /// Bounds of packed sequences.
    pub cu_seqlens: Option<&'a [u32]>,
    /// Scratch of [`StatePlan::scratch_bytes`] bytes.
    pub scratch: Option<&'a wgpu::Buffer>,
}

impl<'a> StateArgs<'a> {
    /// Keys, values and the state, nothing optional.
    pub fn new(k: TensorView<'a, 4>, v: TensorView<'a, 4>, final_state: TensorView<'a, 4>) -> Self {
        Self {
            k,
            v,
            gates: None,
            beta: None,
            initial_state: None,
            final_state,
            initial_key_sum: None,
            final_key_sum: None,
            cu_seqlens: None,
            scratch: None,
        }
    }
}

/// A checked and compiled linear attention. Encode it as often as you like.
#[derive(Clone, Debug)]
pub struct LinearAttentionPlan(Inner);

/// A checked and compiled state reduction: `sum_t (decays after t) w_t k_t v_t^T` alone, without
/// outputs.
///
/// Without decay it is the Gram matrix `K^T V` over the sequence: channel attention (DaViT,
/// arXiv:2204.03645) is a softmax over the rows of this state, applied to the queries.
#[derive(Clone, Debug)]
pub struct StatePlan(Inner);

#[derive(Clone, Debug)]
pub(super) struct Inner {
    design: Design,
    reads: bool,
    /// Between writing and reading without order, the state becomes the softmax over the rows of
    /// so many times itself.
    pub(super) softmax: Option<f32>,
    /// Per-head log decays, on the device.
    slopes: Option<wgpu::Buffer>,
    /// The device it was planned on.
    pub(super) home: Arc<Home>,
}

impl LinearAttention {
    /// Checks the problem, chooses kernels and compiles them.
    ///
    /// # Errors
    /// [`Error::Shape`] for a size or a number of slopes that does not fit, [`Error::Value`] for a
    /// decay, scale or denominator out of range, [`Error::Argument`] for options that exclude each
    /// other, [`Error::Limit`] where the device or the integers are too small,
    /// [`Error::Compile`], [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, shape: LinearAttentionShape) -> Result<LinearAttentionPlan> {
        let tuned = self.tunable(&shape).then(|| ctx.tuning()).flatten().and_then(|table| {
            let entry = table.entries.get(&self.tuning_key(&ctx.caps, &shape))?;
            let &Tuned::LinearAttention { chunk_size } = entry else {
                return Some(Err(refuse(OP, "the entry is of another operator")));
            };
            let op = Self { chunk_size: Some(chunk_size), ..self.clone() };
            Some(Inner::new(&op, ctx, shape, true))
        });
        let key = || self.tuning_key(&ctx.caps, &shape);
        plan_or(key, tuned, || Inner::new(self, ctx, shape, true)).map(LinearAttentionPlan)
    }

    /// Whether a table is asked: for prefill with the chunk size left open.
    fn tunable(&self, shape: &LinearAttentionShape) -> bool {
        let decode = self.causal && shape.seq_k <= 8;
        self.chunk_size.is_none() && self.form != Form::Recurrent && !decode
    }

    /// The class of problems that a [`Tuning`](crate::Tuning) knows this one by.
    pub fn tuning_key(&self, caps: &Caps, shape: &LinearAttentionShape) -> String {
        let decay = match self.decay {
            Decay::None => "none",
            Decay::PerHead(_) => "head",
            Decay::PerToken => "token",
            Decay::PerChannel => "channel",
        };
        let norm = if self.normalize == Normalize::None { "" } else { " normalised" };
        format!(
            "linear_attention {} {} k{} v{} decay-{decay} {:?} {:?} {:?}{}{norm}",
            self.dtype,
            caps.tier,
            shape.key_dim,
            shape.value_dim,
            self.update,
            self.feature_map,
            self.form,
            if self.causal { " causal" } else { "" },
        )
    }

    /// Plans the final state alone; `scale`, `causal` and `seq_q` play no part (but for the
    /// rounding of Taylor features, which `scale` enters).
    ///
    /// # Errors
    /// As [`LinearAttention::plan`].
    pub fn plan_state(&self, ctx: &Context, shape: LinearAttentionShape) -> Result<StatePlan> {
        Inner::new(self, ctx, shape, false).map(StatePlan)
    }
}

impl LinearAttentionPlan {
    /// The problem.
    pub fn shape(&self) -> LinearAttentionShape {
        self.0.design.shape
    }

    /// Which kernels run.
    pub fn tier(&self) -> Tier {
        self.0.design.tier
    }

    /// Channels of the keys after the feature map: `K` of states, key sums and gates.
    pub fn features(&self) -> u32 {
        self.0.design.features
    }

    /// Segments that run in parallel; 1 where one workgroup walks a whole sequence.
    pub fn segments(&self) -> u32 {
        self.0.segments()
    }

    /// Tokens that the kernel takes at a time: 1 where the state never leaves the registers or is
    /// updated in memory.
    pub fn chunk_size(&self) -> u32 {
        match self.0.design.engine {
            Engine::Chunk { chunk, .. } => chunk,
            Engine::Tiled(tiles) => tiles.chunk(),
            Engine::Loop { .. } | Engine::Recurrent => 1,
        }
    }

    /// Bytes of scratch that any call of this plan needs at most; calls that give a final state
    /// may need less, and an error says how much.
    ///
    /// With `B` sequences, `H` heads, `K` features and `V` channels, and `N` the number of
    /// [segments](Self::segments), in bytes (each part rounded up to 256):
    /// - one workgroup for a whole sequence: 0, or `4 B H K V` where a call without a final state
    ///   must keep one (recurrent, without order, longer than one dispatch can walk, or with a
    ///   denominator, whose key sum may be asked for alone);
    /// - segments in parallel: `4 N B H K V` more, and with a decay `4 N B H K`;
    /// - with a denominator: `8 B H K` more, and `4 N B H K` with segments.
    ///
    /// Besides, each dispatch has its parameters: some hundred bytes.
    pub fn scratch_bytes(&self) -> u64 {
        self.0.scratch(true).total
    }

    /// A buffer of [`scratch_bytes`](Self::scratch_bytes) for calls with this plan, one after the
    /// other; `None` if that is 0.
    ///
    /// # Errors
    /// [`Error::OtherContext`] if the plan is of another device, [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn scratch(&self, ctx: &Context) -> Result<Option<wgpu::Buffer>> {
        ctx.expect_plan(OP, Some(&self.0.home))?;
        ctx.scratch(OP, self.scratch_bytes())
    }

    /// The text of each kernel, for aligned views.
    pub fn wgsl(&self) -> Vec<String> {
        self.0.keys().iter().map(Key::wgsl).collect()
    }

    /// File, entry point and constants of each kernel, for profilers.
    pub fn label(&self) -> String {
        self.0.keys().iter().map(Key::label).collect::<Vec<_>>().join("; ")
    }

    /// Records the kernels into the caller's encoder, in a compute pass of their own; submits
    /// nothing.
    ///
    /// # Errors
    /// As [`LinearAttentionPlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &LinearAttentionArgs<'_>,
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
    /// by kernels that the first such call compiles.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Strides`], [`Error::OutOfRange`],
    /// [`Error::Misaligned`] or [`Error::Usage`] for a view that does not fit the plan,
    /// [`Error::SharedBuffer`] for an output or state that shares a buffer (a final state may be
    /// the initial one), [`Error::Argument`] for an optional argument that is missing or cannot be
    /// taken, [`Error::Limit`] for a view that the device cannot bind, [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        a: &LinearAttentionArgs<'_>,
    ) -> Result<()> {
        let call = Call {
            io: Some((&a.q, &a.o)),
            k: &a.k,
            v: &a.v,
            gates: a.gates.as_ref(),
            beta: a.beta.as_ref(),
            states: (a.initial_state, a.final_state),
            key_sums: (a.initial_key_sum, a.final_key_sum),
            cu: a.cu_seqlens,
            scratch: a.scratch,
        };
        self.0.record(ctx, pass, &call)
    }
}

impl StatePlan {
    /// Bytes of scratch that any call of this plan needs at most.
    pub fn scratch_bytes(&self) -> u64 {
        self.0.scratch(false).total
    }

    /// A buffer of [`scratch_bytes`](Self::scratch_bytes) for calls with this plan, one after the
    /// other; `None` if that is 0.
    ///
    /// # Errors
    /// [`Error::OtherContext`] if the plan is of another device, [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn scratch(&self, ctx: &Context) -> Result<Option<wgpu::Buffer>> {
        ctx.expect_plan(OP, Some(&self.0.home))?;
        ctx.scratch(OP, self.scratch_bytes())
    }

    /// The text of each kernel, for aligned views.
    pub fn wgsl(&self) -> Vec<String> {
        self.0.keys().iter().map(Key::wgsl).collect()
    }

    /// Records the kernels into the caller's encoder, in a compute pass of their own; submits
    /// nothing.
    ///
    /// # Errors
    /// As [`LinearAttentionPlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &StateArgs<'_>,
    ) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: None,
        });
        self.encode_pass(ctx, &mut pass, args)
    }

    /// Records the kernels into the caller's compute pass; submits nothing.
    ///
    /// # Errors
    /// As [`LinearAttentionPlan::encode_pass`].
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        a: &StateArgs<'_>,
    ) -> Result<()> {
        let call = Call {
            io: None,
            k: &a.k,
            v: &a.v,
            gates: a.gates.as_ref(),
            beta: a.beta.as_ref(),
            states: (a.initial_state, Some(a.final_state)),
            key_sums: (a.initial_key_sum, a.final_key_sum),
            cu: a.cu_seqlens,
            scratch: a.scratch,
        };
        self.0.record(ctx, pass, &call)
    }
}

// Must match `Params` in shaders/linear_attention/params.wgsl (tested), where the bounds of packed sequences follow.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    q: [u32; 4],
    k: [u32; 4],
    v: [u32; 4],
    o: [u32; 4],
    gate: [u32; 4],
    beta: [u32; 4],
    state: [u32; 4],
    batch: u32,
    heads: u32,
    group_q: u32,
    group_k: u32,
    group_v: u32,
    tokens: u32,
    first: u32,
    last: u32,
    segments: u32,
    segment_len: u32,
    segment_stride: u32,
    z_in: u32,
    z_out: u32,
    decays: u32,
    z_pair: u32,
    z_segment: u32,
    scale: f32,
    floor: f32,
    zero: u32,
    pad: u32,
}

// Must match `StateParams` in shaders/linear_attention/state_pass.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct StateParams {
    state: [u32; 4],
    heads: u32,
    segments: u32,
    own: u32,
    decays: u32,
    count: u32,
    zero: u32,
    pad: [u32; 2],
}

// Must match `CopyParams` in shaders/linear_attention/state_init.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CopyParams {
    src: [u32; 4],
    dst: [u32; 4],
    heads: u32,
    count: u32,
    pad: [u32; 2],
}

// Must match `SoftmaxParams` in shaders/linear_attention/state_softmax.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SoftmaxParams {
    state: [u32; 4],
    heads: u32,
    count: u32,
    scale: f32,
    pad: u32,
}

/// One call's arguments, of any plan.
pub(super) struct Call<'a> {
    pub(super) io: Option<(&'a TensorView<'a, 4>, &'a TensorView<'a, 4>)>,
    pub(super) k: &'a TensorView<'a, 4>,
    pub(super) v: &'a TensorView<'a, 4>,
    pub(super) gates: Option<&'a TensorView<'a, 4>>,
    pub(super) beta: Option<&'a TensorView<'a, 4>>,
    pub(super) states: (Option<TensorView<'a, 4>>, Option<TensorView<'a, 4>>),
    pub(super) key_sums: (Option<TensorView<'a, 3>>, Option<TensorView<'a, 3>>),
    pub(super) cu: Option<&'a [u32]>,
    pub(super) scratch: Option<&'a wgpu::Buffer>,
}

/// A state or key sum somewhere in memory.
#[derive(Clone)]
struct Place<'a> {
    resource: Resource<'a>,
    /// Batch, head, row, offset, in elements.
    strides: [u32; 4],
    vec4: bool,
}

/// Byte offsets into scratch; each part begins at a multiple of 256.
#[derive(Clone, Copy, Default)]
pub(super) struct Scratch {
    state: u64,
    segments: u64,
    decays: u64,
    /// Two key sums for each (sequence, head).
    z: u64,
    /// Key sums of the segments.
    segment_z: u64,
    pub(super) total: u64,
}

impl Inner {
    pub(super) fn new(
        op: &LinearAttention,
        ctx: &Context,
        shape: LinearAttentionShape,
        reads: bool,
    ) -> Result<Self> {
        let mut op = op.clone();
        let mut shape = shape;
        if !reads {
            // the state of a sequence does not ask who reads it
            op.causal = true;
            shape.seq_q = shape.seq_k;
            shape.heads_q = shape.heads;
        }
        let design = Design::new(&op, &ctx.caps, shape, reads)?;
        let slopes = match &op.decay {
            Decay::PerHead(log_decays) => Some(ctx.table(OP, bytemuck::cast_slice(log_decays))?),
            _ => None,
        };
        let home = Arc::clone(ctx.home());
        let inner = Self { design, reads, softmax: None, slopes, home };
        compile(ctx, &inner.design, &inner.roles())?;
        Ok(inner)
    }

    /// Roles of the engine in a call without states, in order.
    fn roles(&self) -> Vec<Role> {
        let base =
            Role { writes: true, reads: self.reads, loads: false, stores: false, totals: false };
        let totals = self.design.options.decay != Decay::None;
        let stateful = self.design.engine == Engine::Recurrent;
        if !self.design.options.causal {
            let write = Role { reads: false, stores: true, ..base };
            let read =
                Role { writes: false, reads: true, loads: true, stores: false, totals: false };
            return vec![write, read];
        }
        match self.design.split {
            Split::Loop { .. } => {
                let keeps = !self.reads || stateful;
                vec![Role { stores: keeps, loads: stateful, ..base }]
            }
            Split::Segments { .. } => {
                let mut roles = vec![Role { reads: false, stores: true, totals, ..base }];
                if self.reads {
                    roles.push(Role { loads: true, ..base });
                }
                roles
            }
        }
    }

    pub(super) fn shape(&self) -> LinearAttentionShape {
        self.design.shape
    }

    pub(super) fn dtype(&self) -> DType {
        self.design.options.dtype
    }

    pub(super) fn softmax_key(&self) -> Key {
        Design::softmax_key(self.design.features, self.design.shape.value_dim)
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.roles().into_iter().map(|role| self.design.engine_key(role, Aligned::ALL)).collect()
    }

    fn segments(&self) -> u32 {
        match self.design.split {
            Split::Loop { .. } => 1,
            Split::Segments { count, .. } => count,
        }
    }

    fn normalized(&self) -> bool {
        self.design.options.normalize != Normalize::None
    }

    /// Whether a call must keep a state in memory even if nobody asked for it.
    fn keeps_state(&self, longest: u32) -> bool {
        let d = &self.design;
        let many = match d.split {
            Split::Loop { range } => longest > range,
            Split::Segments { .. } => false,
        };
        d.engine == Engine::Recurrent || many || !d.options.causal
    }

    pub(super) fn scratch(&self, with_state: bool) -> Scratch {
        let d = &self.design;
        let pairs = u64::from(d.shape.batch) * u64::from(d.shape.heads);
        let rows = pairs * u64::from(d.features);
        let state = rows * u64::from(d.shape.value_dim) * 4;
        let mut s = Scratch::default();
        let mut add = |bytes: u64| {
            let at = s.total;
            s.total += bytes.next_multiple_of(256);
            at
        };
        let longest = d.shape.seq_k;
        let mut parts = [0; 5];
        if with_state && (self.keeps_state(longest) || self.normalized()) {
            parts[0] = add(state);
        }
        if self.normalized() {
            parts[3] = add(2 * rows * 4);
        }
        if let Split::Segments { count, .. } = d.split {
            let n = u64::from(count);
            parts[1] = add(n * state);
            if d.options.decay != Decay::None {
                parts[2] = add(n * rows * 4);
            }
            if self.normalized() {
                parts[4] = add(n * rows * 4);
            }
        }
        [s.state, s.segments, s.decays, s.z, s.segment_z] = parts;
        s
    }

    pub(super) fn record(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        call: &Call<'_>,
    ) -> Result<()> {
        let bounds = self.check(ctx, call)?;
        let d = &self.design;
        let shape = d.shape;
        if shape.batch == 0 {
            return Ok(());
        }
        let longest = match &bounds {
            Some(cu) => cu.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0),
            None => shape.seq_k,
        };
        let (initial, last) = call.states;
        let (initial_z, last_z) = call.key_sums;
        let wants_state = last.is_some() || last_z.is_some();
        let keeps = self.keeps_state(longest) || wants_state;
        let own_state = keeps && last.is_none();
        let scratch = self.scratch(own_state);
        let buffer = self.check_scratch(call.scratch, scratch.total)?;

        let mut rec = Recorder::new(self, ctx, pass, call, bounds)?;
        let columns = shape.value_dim;
        let rows = d.features;
        let sums_bytes = sum_bytes(shape, rows);
        let half = u32_of(sums_bytes / 4);

        // where the state is kept, if anywhere, and whether it holds the initial one
        let mut place: Option<Place<'_>> = None;
        let mut loads = initial.is_some();
        if let Some(view) = last {
            place = Some(state_place(ctx, "final_state", &view)?);
        } else if own_state && let Some(buffer) = buffer {
            place = Some(scratch_place(buffer, scratch.state, shape, rows, columns));
        } else if let Some(view) = initial {
            place = Some(state_place(ctx, "initial_state", &view)?);
        }
        let in_place = match (initial, last) {
            (Some(a), Some(b)) => a.buffer == b.buffer,
            (Some(_), None) => !own_state,
            _ => false,
        };
        if let (Some(view), Some(to), false) = (initial, &place, in_place) {
            let from = state_place(ctx, "initial_state", &view)?;
            rec.init(Some(&from), to, rows, columns)?;
        }
        let mut sums: Option<[Place<'_>; 2]> = None;
        if self.normalized()
            && let Some(buffer) = buffer
        {
            let both = [0, half].map(|offset| Place {
                resource: range(buffer, scratch.z, 2 * sums_bytes),
                strides: [rows * shape.heads, rows, 1, offset],
                vec4: false,
            });
            if let Some(view) = initial_z {
                rec.init(Some(&sum_place(ctx, "initial_key_sum", &view)?), &both[0], rows, 1)?;
            }
            sums = Some(both);
        }
        if d.engine == Engine::Recurrent {
            // it has no registers to begin from zero in
            if !loads {
                if let Some(to) = &place {
                    rec.init(None, to, rows, columns)?;
                }
                if let Some(both) = &sums {
                    rec.init(None, &both[0], rows, 1)?;
                }
            }
            loads = true;
        }
        rec.z = sums.as_ref().map(|both| both[0].resource.clone());

        let causal_reads = self.reads && d.options.causal;
        let mut z_now = 0u32;
        match d.split {
            Split::Loop { range } => {
                let mut first = 0u32;
                loop {
                    let end = first.saturating_add(range).min(longest);
                    let role = Role {
                        writes: true,
                        reads: causal_reads,
                        loads,
                        stores: keeps,
                        totals: false,
                    };
                    rec.params.first = first;
                    rec.params.last = end;
                    rec.params.segments = 1;
                    rec.params.segment_len = end - first;
                    rec.params.z_in = z_now * half;
                    rec.params.z_out = (1 - z_now) * half;
                    rec.params.z_pair = rows;
                    rec.params.z_segment = 0;
                    rec.engine(role, place.as_ref(), 0, None)?;
                    if keeps {
                        z_now = 1 - z_now;
                    }
                    loads = true;
                    first = end;
                    if first >= longest {
                        break;
                    }
                }
            }
            Split::Segments { count, length } => {
                let Some(buffer) = buffer else { return Ok(()) };
                let totals = d.options.decay != Decay::None;
                let state = u64::from(rows) * u64::from(columns);
                let n = u64::from(count);
                let own = Place {
                    resource: range(buffer, scratch.segments, sums_bytes * n * u64::from(columns)),
                    strides: [
                        u32_of(state * n * u64::from(shape.heads)),
                        u32_of(state * n),
                        columns,
                        0,
                    ],
                    vec4: true,
                };
                let decays = range(buffer, scratch.decays, sums_bytes * n);
                let carried_z = std::mem::take(&mut rec.z);
                if carried_z.is_some() {
                    rec.z = Some(range(buffer, scratch.segment_z, sums_bytes * n));
                }
                rec.params.first = 0;
                rec.params.last = longest;
                rec.params.segments = count;
                rec.params.segment_len = length;
                rec.params.z_in = 0;
                rec.params.z_out = 0;
                rec.params.z_pair = rows * count;
                rec.params.z_segment = rows;
                let role = Role { writes: true, reads: false, loads: false, stores: true, totals };
                rec.engine(role, Some(&own), u32_of(state), totals.then_some(&decays))?;
                let decays = totals.then_some(&decays);
                rec.scan(&own, decays, place.as_ref(), (loads, keeps), rows, columns)?;
                if let Some(both) = &sums {
                    let own_z = Place {
                        resource: range(buffer, scratch.segment_z, sums_bytes * n),
                        strides: [0; 4],
                        vec4: false,
                    };
                    rec.scan(&own_z, decays, Some(&both[0]), (loads, true), rows, 1)?;
                }
                if causal_reads {
                    let role = Role {
                        writes: true,
                        reads: true,
                        loads: true,
                        stores: false,
                        totals: false,
                    };
                    rec.engine(role, Some(&own), u32_of(state), None)?;
                }
                rec.z = carried_z;
            }
        }
        if let (Some(scale), Some(place)) = (self.softmax, &place) {
            rec.softmax(place, scale)?;
        }
        if self.reads && !d.options.causal {
            let role =
                Role { writes: false, reads: true, loads: true, stores: false, totals: false };
            let (count, length) = match d.query_segments {
                Split::Segments { count, length } => (count, length),
                Split::Loop { range } => (1, range),
            };
            let longest = if rec.bounds.is_some() { longest } else { shape.seq_q };
            rec.params.tokens = shape.seq_q;
            rec.params.z_in = z_now * half;
            rec.params.z_pair = rows;
            rec.params.z_segment = 0;
            let mut first = 0u32;
            while first < longest {
                let end = first.saturating_add(length.saturating_mul(count)).min(longest);
                rec.params.first = first;
                rec.params.last = end;
                rec.params.segments = count;
                rec.params.segment_len = length;
                rec.engine(role, place.as_ref(), 0, None)?;
                first = end;
            }
        }
        if let (Some(view), Some(both)) = (last_z, &sums) {
            let from = &both[z_now as usize];
            rec.init(Some(from), &sum_place(ctx, "final_key_sum", &view)?, rows, 1)?;
        }
        Ok(())
    }

    /// Checks every argument; returns the bounds of packed sequences.
    fn check(&self, ctx: &Context, call: &Call<'_>) -> Result<Option<Vec<u32>>> {
        ctx.expect_plan(OP, Some(&self.home))?;
        let d = &self.design;
        let (s, op) = (d.shape, &d.options);
        let batch = if op.packed { 1 } else { s.batch };
        let mut outputs: Vec<(&'static str, &wgpu::Buffer)> = Vec::new();
        let mut inputs = vec![("k", call.k.buffer), ("v", call.v.buffer)];
        if let Some((q, o)) = call.io {
            q.expect(OP, "q", [batch, s.seq_q, s.heads_q, s.key_dim], op.dtype)?;
            o.expect_output(OP, "o", [batch, s.seq_q, s.heads, s.value_dim], op.dtype)?;
            inputs.push(("q", q.buffer));
            outputs.push(("o", o.buffer));
        }
        call.k.expect(OP, "k", [batch, s.seq_k, s.heads_k, s.key_dim], op.dtype)?;
        call.v.expect(OP, "v", [batch, s.seq_k, s.heads_v, s.value_dim], op.dtype)?;

        let optional =
            |what: &'static str, given: bool, needed: bool, why: &str| match (given, needed) {
                (false, true) => {
                    Err(Error::argument(OP, what, format!("needed {why}, none given")))
                }
                (true, false) => Err(Error::argument(OP, what, format!("only taken {why}"))),
                _ => Ok(()),
            };
        let gated = matches!(op.decay, Decay::PerToken | Decay::PerChannel);
        optional("gates", call.gates.is_some(), gated, "with Decay::PerToken or PerChannel")?;
        if let Some(gates) = call.gates {
            let width = if op.decay == Decay::PerChannel { d.features } else { 1 };
            gates.expect(OP, "gates", [batch, s.seq_k, s.heads, width], op.gate_dtype)?;
            inputs.push(("gates", gates.buffer));
        }
        let updated = op.update != Update::Add;
        optional("beta", call.beta.is_some(), updated, "with Update::Weighted or Delta")?;
        if let Some(beta) = call.beta {
            beta.expect(OP, "beta", [batch, s.seq_k, s.heads, 1], op.gate_dtype)?;
            inputs.push(("beta", beta.buffer));
        }
        optional("cu_seqlens", call.cu.is_some(), op.packed, "with packed sequences")?;

        let state_shape = [s.batch, s.heads, d.features, s.value_dim];
        let sum_shape = [s.batch, s.heads, d.features];
        let (initial, last) = call.states;
        if let Some(view) = &initial {
            view.expect_output(OP, "initial_state", state_shape, DType::F32)?;
            ctx.home().expect_buffer(OP, "initial_state", view.buffer)?;
        }
        if let Some(view) = &last {
            view.expect_output(OP, "final_state", state_shape, DType::F32)?;
            outputs.push(("final_state", view.buffer));
        }
        let (initial_z, last_z) = call.key_sums;
        let norm = self.normalized();
        let why = "with a denominator";
        if !norm {
            optional("initial_key_sum", initial_z.is_some(), false, why)?;
            optional("final_key_sum", last_z.is_some(), false, why)?;
        } else if initial.is_some() != initial_z.is_some() {
            return Err(Error::argument(
                OP,
                "initial_key_sum",
                "goes with initial_state: both or neither",
            ));
        }
        if let Some(view) = &initial_z {
            view.expect_output(OP, "initial_key_sum", sum_shape, DType::F32)?;
            ctx.home().expect_buffer(OP, "initial_key_sum", view.buffer)?;
        }
        if let Some(view) = &last_z {
            view.expect_output(OP, "final_key_sum", sum_shape, DType::F32)?;
            outputs.push(("final_key_sum", view.buffer));
        }
        // an initial state is bound writable (it may be the final one), so it shares with nobody
        let same = |a: &wgpu::Buffer, b: Option<&wgpu::Buffer>| b == Some(a);
        if let Some(view) = &initial {
            if same(view.buffer, last.as_ref().map(|v| v.buffer)) {
                if Some(view.layout) != last.map(|v| v.layout) {
                    return Err(Error::SharedBuffer {
                        op: OP,
                        output: "final_state",
                        other: "initial_state",
                    });
                }
            } else {
                outputs.push(("initial_state", view.buffer));
            }
        }
        if let Some(view) = &initial_z {
            if same(view.buffer, last_z.as_ref().map(|v| v.buffer)) {
                if Some(view.layout) != last_z.map(|v| v.layout) {
                    return Err(Error::SharedBuffer {
                        op: OP,
                        output: "final_key_sum",
                        other: "initial_key_sum",
                    });
                }
            } else {
                outputs.push(("initial_key_sum", view.buffer));
            }
        }
        if let Some(buffer) = call.scratch {
            outputs.push(("scratch", buffer));
        }
        crate::dispatch::distinct_outputs(ctx, OP, &outputs, &inputs)?;
        call.cu.map(|cu| self.check_bounds(cu)).transpose()
    }

    fn check_bounds(&self, cu: &[u32]) -> Result<Vec<u32>> {
        let s = self.design.shape;
        if cu.len() as u64 != u64::from(s.batch) + 1 {
            return Err(Error::shape(
                OP,
                "cu_seqlens",
                format!("batch + 1 = {} bounds", u64::from(s.batch) + 1),
                cu.len(),
            ));
        }
        debug_assert!(s.batch <= MAX_PACKED);
        if cu[0] != 0 {
            return Err(Error::shape(OP, "cu_seqlens", "0 as the first bound", cu[0]));
        }
        if let Some(i) = cu.windows(2).position(|w| w[0] > w[1]) {
            return Err(Error::shape(
                OP,
                "cu_seqlens",
                format!("bounds that do not fall, {} after index {i}", cu[i]),
                cu[i + 1],
            ));
        }
        let end = cu[cu.len() - 1];
        if end != s.seq_k {
            return Err(Error::shape(
                OP,
                "cu_seqlens",
                format!("seq_k = {} as the last bound", s.seq_k),
                end,
            ));
        }
        Ok(cu.to_vec())
    }

    fn check_scratch<'a>(
        &self,
        scratch: Option<&'a wgpu::Buffer>,
        need: u64,
    ) -> Result<Option<&'a wgpu::Buffer>> {
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

/// Bytes of one key sum of every (sequence, head).
fn sum_bytes(s: LinearAttentionShape, rows: u32) -> u64 {
    u64::from(s.batch) * u64::from(s.heads) * u64::from(rows) * 4
}

/// An index that planning has bounded.
fn u32_of(x: u64) -> u32 {
    u32::try_from(x).unwrap_or(u32::MAX)
}

fn range(buffer: &wgpu::Buffer, offset: u64, bytes: u64) -> Resource<'_> {
    let size = bytes.next_multiple_of(16).max(16).min(buffer.size() - offset);
    Resource::Buffer(wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) })
}

/// A state of every (sequence, head) at a place in scratch.
fn scratch_place(
    buffer: &wgpu::Buffer,
    offset: u64,
    s: LinearAttentionShape,
    rows: u32,
    columns: u32,
) -> Place<'_> {
    let state = u64::from(rows) * u64::from(columns);
    Place {
        resource: range(buffer, offset, sum_bytes(s, rows) * u64::from(columns)),
        strides: [u32_of(state * u64::from(s.heads)), u32_of(state), columns, 0],
        vec4: true,
    }
}

fn state_place<'a>(
    ctx: &Context,
    what: &'static str,
    view: &TensorView<'a, 4>,
) -> Result<Place<'a>> {
    let bound = view.bind(OP, what, &ctx.caps)?;
    let [b, h, row, _] = view.strides_u32();
    Ok(Place {
        resource: bound.resource,
        strides: [b, h, row, bound.offset],
        vec4: view.layout.is_multiple_of(4),
    })
}

/// A key sum as a state of one column.
fn sum_place<'a>(ctx: &Context, what: &'static str, view: &TensorView<'a, 3>) -> Result<Place<'a>> {
    let bound = view.bind(OP, what, &ctx.caps)?;
    let [b, h, row] = view.strides_u32();
    Ok(Place { resource: bound.resource, strides: [b, h, row, bound.offset], vec4: false })
}

/// What the dispatches of one call share.
struct Recorder<'a, 'p, 'c> {
    inner: &'a Inner,
    ctx: &'a Context,
    pass: &'a mut wgpu::ComputePass<'p>,
    params: Params,
    bounds: Option<Vec<u32>>,
    aligned: Aligned,
    q: Option<Resource<'c>>,
    k: Resource<'c>,
    v: Resource<'c>,
    o: Option<Resource<'c>>,
    gate: Option<Resource<'c>>,
    beta: Option<Resource<'c>>,
    z: Option<Resource<'c>>,
}

impl<'a, 'p, 'c> Recorder<'a, 'p, 'c> {
    fn new(
        inner: &'a Inner,
        ctx: &'a Context,
        pass: &'a mut wgpu::ComputePass<'p>,
        call: &Call<'c>,
        bounds: Option<Vec<u32>>,
    ) -> Result<Self>
    where
        'a: 'c,
    {
        let (s, op) = (inner.design.shape, &inner.design.options);
        let bind = |what: &'static str,
                    view: &TensorView<'c, 4>|
         -> Result<(Resource<'c>, [u32; 4], bool)> {
            let bound = view.bind(OP, what, &ctx.caps)?;
            let [b, t, h, _] = view.strides_u32();
            Ok((bound.resource, [b, t, h, bound.offset], view.layout.is_multiple_of(4)))
        };
        let (k, k_place, k4) = bind("k", call.k)?;
        let (v, v_place, v4) = bind("v", call.v)?;
        let q = call.io.map(|(q, _)| bind("q", q)).transpose()?;
        let o = call.io.map(|(_, o)| bind("o", o)).transpose()?;
        let gate = call.gates.map(|g| bind("gates", g)).transpose()?;
        let beta = call.beta.map(|b| bind("beta", b)).transpose()?;
        let place = |x: &Option<(Resource<'c>, [u32; 4], bool)>| x.as_ref().map_or([0; 4], |x| x.1);
        let even = |x: &Option<(Resource<'c>, [u32; 4], bool)>| x.as_ref().is_none_or(|x| x.2);
        let mut gate_place = place(&gate);
        if inner.slopes.is_some() {
            // the table of decays has one axis, the heads
            gate_place = [0, 0, 1, 0];
        }
        let params = Params {
            q: place(&q),
            k: k_place,
            v: v_place,
            o: place(&o),
            gate: gate_place,
            beta: place(&beta),
            state: [0; 4],
            batch: s.batch,
            heads: s.heads,
            group_q: s.heads / s.heads_q,
            group_k: s.heads / s.heads_k,
            group_v: s.heads / s.heads_v,
            tokens: s.seq_k,
            first: 0,
            last: s.seq_k,
            segments: 1,
            segment_len: s.seq_k,
            segment_stride: 0,
            z_in: 0,
            z_out: 0,
            decays: 0,
            z_pair: 0,
            z_segment: 0,
            scale: op.scale,
            floor: match op.normalize {
                Normalize::None => 0.0,
                Normalize::Eps(x) | Normalize::Clamp(x) => x,
            },
            zero: 0,
            pad: 0,
        };
        let aligned =
            Aligned { q: even(&q), k: k4, v: v4, o: even(&o), gate: even(&gate), state: true };
        let slopes = inner.slopes.as_ref().map(wgpu::Buffer::as_entire_binding);
        Ok(Self {
            inner,
            ctx,
            pass,
            params,
            bounds,
            aligned,
            q: q.map(|x| x.0),
            k,
            v,
            o: o.map(|x| x.0),
            gate: slopes.or(gate.map(|x| x.0)),
            beta: beta.map(|x| x.0),
            z: None,
        })
    }

    /// One dispatch of the engine, on the ranges in `params`.
    fn engine(
        &mut self,
        role: Role,
        state: Option<&Place<'c>>,
        segment_stride: u32,
        decays: Option<&Resource<'c>>,
    ) -> Result<()> {
        let d = &self.inner.design;
        let binds_state = role.loads || role.stores || d.engine == Engine::Recurrent;
        let state = state.filter(|_| binds_state);
        let mut aligned = self.aligned;
        aligned.state = state.is_none_or(|s| s.vec4);
        self.params.state = state.map_or([0; 4], |s| s.strides);
        self.params.segment_stride = segment_stride;
        let kernel = self.ctx.kernel(d.engine_key(role, aligned))?;
        let gated = d.options.decay != Decay::None;
        let beta = d.options.update != Update::Add;
        // in the order of the kernels' lines
        let resources: Vec<Resource<'_>> = [
            self.q.clone().filter(|_| role.reads),
            Some(self.k.clone()).filter(|_| role.writes),
            Some(self.v.clone()).filter(|_| role.writes),
            self.gate.clone().filter(|_| role.writes && gated),
            self.beta.clone().filter(|_| role.writes && beta),
            self.o.clone().filter(|_| role.reads),
            state.map(|s| s.resource.clone()),
            self.z.clone(),
            decays.cloned(),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut bytes = bytemuck::bytes_of(&self.params).to_vec();
        debug_assert_eq!(bytes.len(), PARAMS_BYTES as usize);
        let mut bounds = self.bounds.clone().unwrap_or_default();
        bounds.resize(d.bounds() as usize * 4, 0);
        bytes.extend_from_slice(bytemuck::cast_slice(&bounds));
        let pairs = u64::from(self.params.batch) * u64::from(self.params.heads);
        let groups = match d.engine {
            Engine::Recurrent => {
                (pairs * u64::from(d.shape.value_dim.div_ceil(4))).div_ceil(PLAIN_WORKGROUP)
            }
            _ => pairs * u64::from(self.params.segments) * u64::from(d.slices()),
        };
        let groups = fold(OP, groups, &self.ctx.caps)?;
        dispatch(self.ctx, self.pass, OP, &kernel, &bytes, &resources, groups)
    }

    /// Copies a state, or fills it with zeros.
    fn init(
        &mut self,
        from: Option<&Place<'_>>,
        to: &Place<'_>,
        rows: u32,
        columns: u32,
    ) -> Result<()> {
        let d = &self.inner.design;
        let key =
            Design::init_key(rows, columns, from.is_none(), from.is_some_and(|f| f.vec4), to.vec4);
        let kernel = self.ctx.kernel(key)?;
        let count = self.count(rows, columns);
        let params = CopyParams {
            src: from.map_or([0; 4], |f| f.strides),
            dst: to.strides,
            heads: d.shape.heads,
            count: u32_of(count),
            pad: [0; 2],
        };
        let resources: Vec<Resource<'_>> =
            from.map(|f| f.resource.clone()).into_iter().chain([to.resource.clone()]).collect();
        let groups = fold(OP, count.div_ceil(PLAIN_WORKGROUP), &self.ctx.caps)?;
        dispatch(self.ctx, self.pass, OP, &kernel, bytemuck::bytes_of(&params), &resources, groups)
    }

    /// Softmax over the rows of each column of a state.
    fn softmax(&mut self, state: &Place<'_>, scale: f32) -> Result<()> {
        let s = self.inner.design.shape;
        let kernel = self.ctx.kernel(self.inner.softmax_key())?;
        let count = self.count(1, s.value_dim);
        let params = SoftmaxParams {
            state: state.strides,
            heads: s.heads,
            count: u32_of(count),
            scale,
            pad: 0,
        };
        let resources = [state.resource.clone()];
        let groups = fold(OP, count.div_ceil(PLAIN_WORKGROUP), &self.ctx.caps)?;
        dispatch(self.ctx, self.pass, OP, &kernel, bytemuck::bytes_of(&params), &resources, groups)
    }

    /// Turns the segments' own states into those they begin from.
    fn scan(
        &mut self,
        own: &Place<'_>,
        decays: Option<&Resource<'_>>,
        state: Option<&Place<'_>>,
        (loads, stores): (bool, bool),
        rows: u32,
        columns: u32,
    ) -> Result<()> {
        let d = &self.inner.design;
        let state = state.filter(|_| loads || stores);
        let (loads, stores) = (loads && state.is_some(), stores && state.is_some());
        let vec4 = state.is_some_and(|s| s.vec4);
        let kernel = self.ctx.kernel(d.pass_key(rows, columns, loads, stores, vec4))?;
        let count = self.count(rows, columns);
        let params = StateParams {
            state: state.map_or([0; 4], |s| s.strides),
            heads: d.shape.heads,
            segments: self.params.segments,
            own: 0,
            decays: 0,
            count: u32_of(count),
            zero: 0,
            pad: [0; 2],
        };
        let resources: Vec<Resource<'_>> =
            [Some(&own.resource), decays, state.map(|s| &s.resource)]
                .into_iter()
                .flatten()
                .cloned()
                .collect();
        let groups = fold(OP, count.div_ceil(PLAIN_WORKGROUP), &self.ctx.caps)?;
        dispatch(self.ctx, self.pass, OP, &kernel, bytemuck::bytes_of(&params), &resources, groups)
    }

    fn count(&self, rows: u32, columns: u32) -> u64 {
        let s = self.inner.design.shape;
        u64::from(s.batch) * u64::from(s.heads) * u64::from(rows) * u64::from(columns.div_ceil(4))
    }
}

#[cfg(test)]
mod tests {
    use super::{CopyParams, PARAMS_BYTES, Params, SoftmaxParams, StateParams};
    use crate::linear_attention::plan::{INIT, PASS, SOFTMAX};
    use crate::test_support::reflect;
    use std::mem::{offset_of, size_of};

    /// Members of the struct in a kernel's text, with the lib functions that it calls.
    fn members(text: &str, name: &str) -> Vec<(String, u32, u32)> {
        let libs = [
            include_str!("../../shaders/lib/index.wgsl"),
            include_str!("../../shaders/lib/linear.wgsl"),
        ];
        let module = naga::front::wgsl::parse_str(&[&[text], &libs[..]].concat().join("\n"))
            .unwrap_or_else(|e| panic!("{}", e.emit_to_string(text)));
        reflect::struct_layout(&module, name)
    }

    macro_rules! fields {
        ($type:ty: $($field:ident),*) => {
            [$((stringify!($field), offset_of!($type, $field))),*]
        };
    }

    fn same(wgsl: &[(String, u32, u32)], rust: &[(&str, usize)]) {
        for (i, (name, offset)) in rust.iter().enumerate() {
            assert_eq!((wgsl[i].0.as_str(), wgsl[i].1 as usize), (*name, *offset));
        }
    }

    #[test]
    fn params_match_the_kernels() {
        let rust = fields!(Params: q, k, v, o, gate, beta, state, batch, heads, group_q, group_k,
            group_v, tokens, first, last, segments, segment_len, segment_stride, z_in, z_out,
            decays, z_pair, z_segment, scale, floor, zero, pad);
        let text = include_str!("../../shaders/linear_attention/params.wgsl");
        let wgsl = members(text, "Params");
        same(&wgsl, &rust);
        // the bounds follow
        let bounds = &wgsl[rust.len()];
        assert_eq!((bounds.0.as_str(), bounds.1), ("cu", PARAMS_BYTES));
        assert_eq!(size_of::<Params>(), PARAMS_BYTES as usize);
        let wgsl = members(PASS.text, "StateParams");
        same(&wgsl, &fields!(StateParams: state, heads, segments, own, decays, count, zero));
        assert_eq!(wgsl.last().map(|m| m.1 as usize), Some(size_of::<StateParams>()));
        let wgsl = members(INIT.text, "CopyParams");
        same(&wgsl, &fields!(CopyParams: src, dst, heads, count));
        assert_eq!(wgsl.last().map(|m| m.1 as usize), Some(size_of::<CopyParams>()));
        let wgsl = members(SOFTMAX.text, "SoftmaxParams");
        same(&wgsl, &fields!(SoftmaxParams: state, heads, count, scale, pad));
        assert_eq!(wgsl.last().map(|m| m.1 as usize), Some(size_of::<SoftmaxParams>()));
    }
}
