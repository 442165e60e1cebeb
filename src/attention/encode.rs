//! Recording a planned attention.

use super::{
    Algorithm, AttentionArgs, AttentionPlan, BiasPositions, Mask, OP, base_2, merge,
    plan::Variant,
    table::{self, Table},
};
use crate::{
    Context, DType, Error, Result, TensorView,
    dispatch::{Bound, Place, Resource, dispatch, distinct_outputs, fold, shares},
    texels,
};

// Must match `Params` in shaders/attention/params.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    q: [u32; 4],
    k: [u32; 4],
    v: [u32; 4],
    o: [u32; 4],
    lse: [u32; 4],
    bias: [u32; 4],
    mask: [u32; 4],
    k_scale: [u32; 4],
    v_scale: [u32; 4],
    metric: [u32; 4],
    seq_q: u32,
    seq_k: u32,
    head_groups: u32,
    left: i32,
    right: i32,
    scale: f32,
    softcap: f32,
    blocks_q: u32,
    groups: u32,
    splits: u32,
    split_keys: u32,
    o_split: u32,
    lse_split: u32,
    items: u32,
    records: u32,
    lse_wanted: u32,
    slopes_at: u32,
    sinks_at: u32,
    never: u32,
    pad: u32,
}

// Must match `Params` in shaders/attention/unfused_*.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct UnfusedParams {
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

/// A softcap in base 2. Its inverse, and scores times that, are normal numbers, for drivers may take
/// what is smaller for 0. A cap above is one that hardly any score comes near, one below leaves none of
/// any score.
fn cap_base_2(cap: f32) -> f32 {
    (cap * std::f32::consts::LOG2_E).clamp(1.2e-38, 1e30)
}

/// Strides of all axes but the last, and the offset.
fn place<const N: usize>(view: &TensorView<'_, N>, bound: &Bound<'_>) -> [u32; 4] {
    let strides = view.strides_u32();
    let mut out = [0; 4];
    out[..N - 1].copy_from_slice(&strides[..N - 1]);
    out[3] = bound.offset;
    out
}

/// Strides (batch, head, seq) and offset of an LSE.
fn place_lse(view: &TensorView<'_, 3>, bound: &Bound<'_>) -> [u32; 4] {
    let [b, h, t] = view.strides_u32();
    [b, h, t, bound.offset]
}

/// An optional input: present if and only if the plan wants it.
fn wanted<'v, 'a, const N: usize>(
    what: &'static str,
    view: &'v Option<TensorView<'a, N>>,
    wanted: bool,
) -> Result<Option<&'v TensorView<'a, N>>> {
    match (view, wanted) {
        (Some(_), false) => Err(Error::argument(OP, what, "given, but the plan was made without")),
        (None, true) => Err(Error::argument(OP, what, "the plan needs it, none given")),
        (view, _) => Ok(view.as_ref()),
    }
}

/// A bias or mask: each of its first three axes may be 1. `axes` says what `full` is made of where
/// that is not plain.
fn broadcasts(
    what: &'static str,
    view: &TensorView<'_, 4>,
    full: [u32; 4],
    axes: &str,
) -> Result<()> {
    let shape = view.layout.shape;
    if (0..4).all(|axis| shape[axis] == full[axis] || (axis < 3 && shape[axis] == 1)) {
        return view.check(OP, what);
    }
    Err(Error::shape(
        OP,
        what,
        format!("{full:?}, or 1 on any of the first three axes{axes}"),
        format!("{shape:?}"),
    ))
}

impl AttentionPlan {
    /// Records the kernels into the caller's encoder, in a compute pass of their own, and before it
    /// what copies [`encode_pass`](Self::encode_pass) speaks of; submits nothing.
    ///
    /// # Errors
    /// As [`AttentionPlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &AttentionArgs<'_>,
    ) -> Result<()> {
        let (call, table) = self.check(ctx, args)?;
        let textures = match self.texels(ctx, args, &table)? {
            // the driver copies faster than a kernel
            Some([q, k, v]) if [&q, &k, &v].iter().all(|input| input.copyable()) => {
                // nothing is recorded for a call that is refused
                self.check_bindings(ctx, args)?;
                for key in self.keys(Variant { texels: true, ..call }) {
                    ctx.kernel(key)?;
                }
                Some([
                    q.copy(ctx, OP, encoder)?,
                    k.copy(ctx, OP, encoder)?,
                    v.copy(ctx, OP, encoder)?,
                ])
            }
            _ => None,
        };
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: None,
        });
        self.record(ctx, &mut pass, args, call, &table, textures)
    }

    /// Records the kernels into the caller's compute pass; submits nothing. Nothing is recorded if
    /// an argument is refused.
    ///
    /// Views whose rows do not start at multiples of four elements are read one element at a time,
    /// by a kernel that the first such call compiles. On devices that read textures faster than
    /// buffers ([`Caps::texels`](crate::Caps::texels)), keys and values that many queries read, and
    /// the queries, are copied into textures, which take as much memory again until the work is done;
    /// in a pass a kernel has to do it, and [`encode`](Self::encode) is faster. Where rows of 16-bit
    /// elements do not start at multiples of eight, or the views span far more than is read of them,
    /// the buffers are read, by a kernel that the first such call compiles.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Strides`], [`Error::OutOfRange`],
    /// [`Error::Misaligned`] or [`Error::Usage`] for a view that does not fit the plan,
    /// [`Error::SharedBuffer`] for an output that shares a buffer, [`Error::OtherContext`] for a
    /// tensor, buffer or plan of another device, [`Error::Argument`] for an optional argument that is missing or not planned for, [`Error::Value`] for lengths, bounds or
    /// pages out of range, [`Error::Limit`] for a view that the device cannot bind, [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &AttentionArgs<'_>,
    ) -> Result<()> {
        let (call, table) = self.check(ctx, args)?;
        self.record(ctx, pass, args, call, &table, None)
    }

    /// Whether every view can be bound.
    fn check_bindings(&self, ctx: &Context, args: &AttentionArgs<'_>) -> Result<()> {
        fn bind<const N: usize>(
            ctx: &Context,
            what: &'static str,
            view: Option<&TensorView<'_, N>>,
        ) -> Result<()> {
            view.map_or(Ok(()), |view| view.bind(OP, what, &ctx.caps).map(drop))
        }
        bind(ctx, "o", Some(&args.o))?;
        bind(ctx, "lse", args.lse.as_ref())?;
        bind(ctx, "slopes", args.slopes.as_ref())?;
        bind(ctx, "bias", args.bias.as_ref())?;
        bind(ctx, "visible", args.visible.as_ref())?;
        bind(ctx, "sinks", args.sinks.as_ref())?;
        bind(ctx, "metric", args.metric.as_ref())
    }

    /// Queries, keys and values to be copied into textures, if the plan wants it and they can be.
    fn texels<'a>(
        &self,
        ctx: &Context,
        args: &AttentionArgs<'a>,
        table: &Table,
    ) -> Result<Option<[texels::Input<'a>; 3]>> {
        let (s, caps) = (self.shape, &ctx.caps);
        // only where rows begin with a texel
        let elements = u64::from(texels::elements(self.options.dtype));
        let views = [&args.q, &args.k, &args.v];
        let whole = views.iter().all(|view| view.layout.is_multiple_of(elements));
        // not a whole tensor for the sake of one of its heads, or of the few keys in a large cache
        let rows_q = u64::from(s.batch) * u64::from(s.seq_q) * u64::from(s.heads);
        let rows_k = table.keys * u64::from(s.heads_kv);
        let sparse = |view: &TensorView<'_, 4>, rows: u64, dim: u32| {
            let span = view.layout.end().unwrap_or(u64::MAX).saturating_sub(view.layout.offset);
            span > (rows * u64::from(dim)).saturating_mul(8).saturating_add(1 << 16)
        };
        let sparse = sparse(&args.q, rows_q, s.head_dim)
            || sparse(&args.k, rows_k, s.head_dim)
            || sparse(&args.v, rows_k, s.head_dim_v);
        if !self.texels || !whole || sparse || self.is_empty() {
            return Ok(None);
        }
        let bound =
            [args.q.bind(OP, "q", caps)?, args.k.bind(OP, "k", caps)?, args.v.bind(OP, "v", caps)?];
        let inputs = bound.map(|bound| texels::Input::new(caps, &bound.resource));
        let [Some(q), Some(k), Some(v)] = inputs else { return Ok(None) };
        Ok(Some([q, k, v]))
    }

    /// Whether there is nothing to write.
    fn is_empty(&self) -> bool {
        self.shape.batch == 0 || self.shape.seq_q == 0
    }

    /// Checks the arguments; which kernels the call needs, and where its sequences lie.
    fn check(&self, ctx: &Context, args: &AttentionArgs<'_>) -> Result<(Variant, Table)> {
        ctx.expect_plan(OP, self.home.as_ref())?;
        let (s, op) = (self.shape, &self.options);
        let kv_dtype = if op.quantized.is_some() { DType::I8 } else { op.dtype };
        args.q.expect(OP, "q", [s.batch, s.seq_q, s.heads, s.head_dim], op.dtype)?;
        // in pages, their number is the view's
        let (pages, rows) = match op.page_size {
            Some(page_size) => (args.k.layout.shape[0], page_size),
            None => (s.batch, s.seq_k),
        };
        args.k.expect(OP, "k", [pages, rows, s.heads_kv, s.head_dim], kv_dtype)?;
        args.v.expect(OP, "v", [pages, rows, s.heads_kv, s.head_dim_v], kv_dtype)?;
        args.o.expect_output(OP, "o", [s.batch, s.seq_q, s.heads, s.head_dim_v], op.dtype)?;
        let mut inputs = Vec::new();
        let mut outputs = vec![("o", Place::from(&args.o))];
        if let Some(lse) = &args.lse {
            lse.expect_output(OP, "lse", [s.batch, s.heads, s.seq_q], DType::F32)?;
            outputs.push(("lse", Place::from(lse)));
        }
        let slopes = wanted("slopes", &args.slopes, op.alibi)?;
        let sinks = wanted("sinks", &args.sinks, op.sinks)?;
        for (what, view) in [("slopes", slopes), ("sinks", sinks)] {
            if let Some(view) = view {
                view.expect(OP, what, [s.heads], DType::F32)?;
                inputs.push((what, view.buffer));
            }
        }
        let metric = wanted("metric", &args.metric, op.metric)?;
        if let Some(view) = metric {
            view.expect(OP, "metric", [s.heads, s.head_dim, s.head_dim], DType::F32)?;
            inputs.push(("metric", view.buffer));
        }
        let k_scale = wanted("k_scale", &args.k_scale, op.quantized.is_some())?;
        let v_scale = wanted("v_scale", &args.v_scale, op.quantized.is_some())?;
        for (what, view) in [("k_scale", k_scale), ("v_scale", v_scale)] {
            if let (Some(view), Some(block)) = (view, op.quantized) {
                view.expect(OP, what, [pages, s.heads_kv, rows.div_ceil(block)], DType::F32)?;
                inputs.push((what, view.buffer));
            }
        }
        let bias = wanted("bias", &args.bias, op.bias)?;
        let visible = wanted("visible", &args.visible, op.visible)?;
        let (full, axes) = self.bias_shape(args);
        for (what, view) in [("bias", bias), ("visible", visible)] {
            if let Some(view) = view {
                broadcasts(what, view, full, axes)?;
                inputs.push((what, view.buffer));
            }
        }
        if let Some(view) = bias
            && view.dtype != op.dtype
            && view.dtype != DType::F32
        {
            return Err(Error::DType { op: OP, what: "bias", expected: op.dtype, got: view.dtype });
        }
        if let Some(view) = visible
            && view.dtype != DType::U8
        {
            return Err(Error::DType {
                op: OP,
                what: "visible",
                expected: DType::U8,
                got: view.dtype,
            });
        }
        let scratch = self.check_scratch(args.scratch)?;
        if let Some(scratch) = scratch {
            outputs.push(("scratch", Place::from(scratch)));
        }
        let mut beside = [false; 3];
        let rows = [("q", &args.q), ("k", &args.k), ("v", &args.v)];
        for ((what, view), beside) in rows.into_iter().zip(&mut beside) {
            for output in &outputs {
                *beside |= shares(ctx, OP, *output, (what, view.into()))?;
            }
            // bytes are read in no other way than as what is only read
            if !*beside || view.dtype == DType::I8 {
                inputs.push((what, view.buffer));
            }
        }
        distinct_outputs(ctx, OP, &outputs, &inputs)?;
        let group = s.heads / s.heads_kv;
        let rows = self.schedule().rows();
        // also checks that none of a table's parts is given without being planned for
        let table = table::build(op, &s, args, pages, group, rows, self.split)?;
        let variant = Variant {
            aligned: [
                args.q.layout.is_multiple_of(4),
                args.k.layout.is_multiple_of(4) && args.v.layout.is_multiple_of(4),
                args.o.layout.is_multiple_of(4),
            ],
            // an empty tensor's binding is no larger than a word
            aligned8: [&args.k, &args.v]
                .iter()
                .all(|x| x.layout.is_multiple_of(8) && !x.layout.shape.contains(&0)),
            lse: args.lse.is_some(),
            bias_f32: bias.is_some_and(|view| view.dtype == DType::F32),
            metric_aligned: metric.is_none_or(|view| view.layout.is_multiple_of(4)),
            mask_aligned: visible.is_none_or(|view| view.layout.is_multiple_of(4)),
            bias_aligned: bias.is_none_or(|view| view.layout.is_multiple_of(2)),
            texels: false,
            beside,
        };
        Ok((variant, table))
    }

    /// Shape of a bias or mask that repeats along no axis, and what that is for packed sequences.
    fn bias_shape(&self, args: &AttentionArgs<'_>) -> ([u32; 4], &'static str) {
        let (s, op) = (self.shape, &self.options);
        if !op.packed {
            return ([s.batch, s.heads, s.seq_q, s.seq_k], "");
        }
        // bounds that are none are refused later
        let longest = |bounds: Option<&[u32]>| {
            let lengths = bounds.unwrap_or_default().windows(2).map(|w| w[1].saturating_sub(w[0]));
            lengths.max().unwrap_or_default()
        };
        let count = |list: Option<&[u32]>| {
            u32::try_from(list.map_or(0, <[u32]>::len).saturating_sub(1)).unwrap_or(u32::MAX)
        };
        match (op.bias_positions, op.page_size) {
            (BiasPositions::Sequence, None) => (
                [
                    count(args.cu_seqlens_q),
                    s.heads,
                    longest(args.cu_seqlens_q),
                    longest(args.cu_seqlens_k),
                ],
                " (BiasPositions::Sequence: sequences, heads, longest queries, longest keys)",
            ),
            (BiasPositions::Sequence, Some(_)) => (
                [count(args.cu_seqlens_q), s.heads, longest(args.cu_seqlens_q), s.seq_k],
                " (BiasPositions::Sequence: sequences, heads, longest queries, seq_k)",
            ),
            (BiasPositions::Pack, None) => (
                [1, s.heads, s.seq_q, s.seq_k],
                " (BiasPositions::Pack: 1, heads, queries and keys of all sequences)",
            ),
            (BiasPositions::Pack, Some(_)) => {
                let lengths = args.key_lengths.unwrap_or_default();
                let keys = lengths.iter().fold(0, |sum: u32, &n| sum.saturating_add(n));
                (
                    [1, s.heads, s.seq_q, keys],
                    " (BiasPositions::Pack: 1, heads, queries and key_lengths of all sequences)",
                )
            }
        }
    }

    /// Records a checked call, with `textures` of queries, keys and values where they have been copied.
    fn record(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &AttentionArgs<'_>,
        variant: Variant,
        table: &Table,
        textures: Option<[wgpu::TextureView; 3]>,
    ) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        if self.options.algorithm == Algorithm::Unfused {
            return self.encode_unfused(ctx, pass, args, variant);
        }
        let (s, op, caps) = (self.shape, &self.options, &ctx.caps);
        let inputs = match textures {
            None => self.texels(ctx, args, table)?,
            Some(_) => None,
        };
        let texels = textures.is_some() || inputs.is_some();
        let kernels = self
            .keys(Variant { texels, ..variant })
            .into_iter()
            .map(|key| ctx.kernel(key))
            .collect::<Result<Vec<_>>>()?;
        let group = s.heads / s.heads_kv;
        let rows_q = u64::from(s.seq_q) * u64::from(group);
        let rows = u64::from(self.schedule().rows());
        let number = |what, need: u64| {
            u32::try_from(need).map_err(|_| Error::Limit {
                op: OP,
                what,
                need,
                limit: u32::MAX.into(),
            })
        };
        let blocks_q = number("blocks of rows", rows_q.div_ceil(rows))?;
        let parts = self.parts();
        let items = match op.ragged() {
            true => u64::from(table.items),
            false => {
                [s.batch, blocks_q, parts].iter().fold(1, |n: u64, &d| n.saturating_mul(d.into()))
            }
        };
        let groups = items.saturating_mul(s.heads_kv.into());
        let (left, right) = op.reach();
        // the reach is at most MAX_SEQ
        let reach = |keys: i64| i32::try_from(keys).unwrap_or(i32::MAX);
        let mut params = Params {
            seq_q: s.seq_q,
            seq_k: s.seq_k,
            head_groups: s.heads_kv,
            left: reach(left),
            right: reach(right),
            scale: base_2(self.scale),
            softcap: op.softcap.map_or(0.0, cap_base_2),
            blocks_q,
            groups: number("workgroups", groups)?,
            splits: parts,
            split_keys: self.split.unwrap_or(0),
            items: table.items,
            records: table.records,
            lse_wanted: u32::from(args.lse.is_some() || self.split.is_some()),
            ..Params::default()
        };
        // a binding that nothing is written to
        let no_lse = match args.lse.is_none() && self.split.is_none() {
            true => Some(ctx.create_buffer(OP, 16, wgpu::BufferUsages::STORAGE)?),
            false => None,
        };
        let mut resources = Vec::new();
        let q = args.q.bind(OP, "q", caps)?;
        let k = args.k.bind(OP, "k", caps)?;
        let v = args.v.bind(OP, "v", caps)?;
        let o = args.o.bind(OP, "o", caps)?;
        let lse = args.lse.as_ref().map(|l| l.bind(OP, "lse", caps)).transpose()?;
        let o_place = place(&args.o, &o);
        let lse_place = match (&args.lse, &lse) {
            (Some(view), Some(bound)) => place_lse(view, bound),
            _ => [0; 4],
        };
        params.q = place(&args.q, &q);
        params.k = place(&args.k, &k);
        params.v = place(&args.v, &v);
        resources.extend([q.resource, k.resource, v.resource]);

        // partial results: [part, batch, seq, head, channel] and [part, batch, head, seq, 2]
        let width = s.head_dim_v.next_multiple_of(4);
        let rows_all = u64::from(s.batch) * u64::from(s.seq_q) * u64::from(s.heads);
        let partial = match args.scratch {
            Some(scratch) if self.split.is_some() => {
                let [o_bytes, lse_bytes] = self.scratch_parts();
                let elements = u64::from(parts) * rows_all * u64::from(width);
                number("elements of partial outputs", elements)?;
                // fits, as their sum over all parts does
                let stride = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
                let per_batch = |n: u64| if s.batch > 1 { stride(n) } else { 0 };
                let (heads, seq) = (u64::from(s.heads), u64::from(s.seq_q));
                let wide = u64::from(width);
                params.o = [per_batch(seq * heads * wide), stride(heads * wide), width, 0];
                params.lse = [per_batch(2 * heads * seq), stride(2 * seq), 2, 0];
                params.o_split = stride(rows_all * wide);
                params.lse_split = stride(2 * rows_all);
                let range = |offset: u64, bytes: u64| {
                    Resource::Buffer(wgpu::BufferBinding {
                        buffer: scratch,
                        offset,
                        size: wgpu::BufferSize::new(bytes),
                    })
                };
                Some([range(0, o_bytes), range(o_bytes, lse_bytes)])
            }
            _ => None,
        };
        match &partial {
            Some(partial) => resources.extend(partial.iter().cloned()),
            None => {
                params.o = o_place;
                params.lse = lse_place;
                resources.push(o.resource.clone());
                let given = lse.as_ref().map(|l| l.resource.clone());
                let unused = || no_lse.as_ref().map(wgpu::Buffer::as_entire_binding);
                resources.extend(given.or_else(unused));
            }
        }
        if let Some(view) = &args.slopes {
            let bound = view.bind(OP, "slopes", caps)?;
            params.slopes_at = bound.offset;
            resources.push(bound.resource);
        }
        if let Some(view) = &args.bias {
            let bound = view.bind(OP, "bias", caps)?;
            params.bias = place(view, &bound);
            resources.push(bound.resource);
        }
        if let Some(view) = &args.visible {
            let bound = view.bind(OP, "visible", caps)?;
            params.mask = place(view, &bound);
            resources.push(bound.resource);
        }
        if let Some(view) = &args.sinks {
            let bound = view.bind(OP, "sinks", caps)?;
            params.sinks_at = bound.offset;
            resources.push(bound.resource);
        }
        for (what, view, at) in [
            ("k_scale", &args.k_scale, &mut params.k_scale),
            ("v_scale", &args.v_scale, &mut params.v_scale),
        ] {
            if let Some(view) = view {
                let bound = view.bind(OP, what, caps)?;
                let [b, h, _] = view.strides_u32();
                *at = [b, h, 1, bound.offset];
                resources.push(bound.resource);
            }
        }
        if let Some(view) = &args.metric {
            let bound = view.bind(OP, "metric", caps)?;
            params.metric = place(view, &bound);
            resources.push(bound.resource);
        }
        let table_buffer = match op.ragged() {
            true => Some(ctx.table(OP, bytemuck::cast_slice(&table.words))?),
            false => None,
        };
        resources.extend(table_buffer.as_ref().map(wgpu::Buffer::as_entire_binding));
        let grid = fold(OP, groups, caps)?;
        // last of all, for nothing is recorded if an argument is refused
        let textures = match inputs {
            Some([q, k, v]) => Some([
                q.copy_in_pass(ctx, OP, pass)?,
                k.copy_in_pass(ctx, OP, pass)?,
                v.copy_in_pass(ctx, OP, pass)?,
            ]),
            None => textures,
        };
        if let Some(textures) = &textures {
            resources.splice(..3, textures.iter().map(Resource::TextureView));
        }
        dispatch(ctx, pass, OP, &kernels[0], bytemuck::bytes_of(&params), &resources, grid)?;

        let Some([o_parts, lse_parts]) = partial else { return Ok(()) };
        let items = merge::items(rows_all, s.head_dim_v)?;
        let merged = merge::Params {
            o_parts: params.o,
            lse_parts: params.lse,
            o: o_place,
            lse: lse_place,
            o_part: params.o_split,
            lse_part: params.lse_split,
            parts,
            seq: s.seq_q,
            heads: s.heads,
            items,
            counts: table.counts,
            unused: 0,
        };
        let mut resources = vec![o_parts, lse_parts, o.resource];
        resources.extend(lse.map(|l| l.resource));
        resources.extend(table_buffer.as_ref().map(wgpu::Buffer::as_entire_binding));
        let grid = fold(OP, u64::from(items).div_ceil(64), caps)?;
        dispatch(ctx, pass, OP, &kernels[1], bytemuck::bytes_of(&merged), &resources, grid)
    }

    fn encode_unfused(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &AttentionArgs<'_>,
        variant: Variant,
    ) -> Result<()> {
        let s = self.shape;
        let Some(scratch) = args.scratch else { return Ok(()) };
        let q = args.q.bind(OP, "q", &ctx.caps)?;
        let k = args.k.bind(OP, "k", &ctx.caps)?;
        let v = args.v.bind(OP, "v", &ctx.caps)?;
        let o = args.o.bind(OP, "o", &ctx.caps)?;
        let lse = args.lse.as_ref().map(|l| l.bind(OP, "lse", &ctx.caps)).transpose()?;
        let diagonal = match self.options.mask {
            Mask::None => 0,
            Mask::Causal(align) => align.diagonal(s.seq_q, s.seq_k),
        };
        let mut params = UnfusedParams {
            q: place(&args.q, &q),
            k: place(&args.k, &k),
            v: place(&args.v, &v),
            o: place(&args.o, &o),
            lse: match (&args.lse, &lse) {
                (Some(view), Some(bound)) => place_lse(view, bound),
                _ => [0; 4],
            },
            seq_q: s.seq_q,
            seq_k: s.seq_k,
            heads: s.heads,
            group: s.heads / s.heads_kv,
            // lengths are below 2^30
            diagonal: i32::try_from(diagonal).unwrap_or(i32::MAX),
            scale: base_2(self.scale),
            blocks_q: 0,
            groups: 0,
        };
        let kernels = self
            .keys(variant)
            .into_iter()
            .map(|key| ctx.kernel(key))
            .collect::<Result<Vec<_>>>()?;
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
        let lse = lse.map(|l| l.resource);
        run(1, rows, lse.into_iter().chain([scores.clone()]).collect())?;
        run(2, rows * u64::from(s.head_dim_v), vec![v.resource, o.resource, scores])
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

#[cfg(test)]
mod tests {
    use super::{Params, UnfusedParams};
    use crate::{
        Caps, DeviceClass,
        attention::{Algorithm, Attention, AttentionShape},
        test_support::{assert_params, fields},
    };

    #[test]
    fn params_match() {
        let shape = AttentionShape::self_attention(1, 40, 2, 16);
        let flash = Attention::default();
        let unfused = Attention { algorithm: Algorithm::Unfused, ..flash };
        // decoding on a CPU; its second kernel merges
        let cpu = Caps { class: DeviceClass::Cpu, ..Caps::minimum() };
        let decode = flash.design(&cpu, AttentionShape { seq_q: 1, ..shape }).unwrap();
        assert!(decode.label().starts_with("attention/decode:decode"));
        let first = decode.wgsl().swap_remove(0);
        for wgsl in flash.design(&Caps::minimum(), shape).unwrap().wgsl().iter().chain([&first]) {
            assert_params(
                wgsl,
                fields!(Params: q k v o lse bias mask k_scale v_scale metric seq_q seq_k head_groups left right scale softcap blocks_q groups splits split_keys o_split lse_split items records lse_wanted slopes_at sinks_at never pad),
            );
        }
        for wgsl in unfused.design(&Caps::minimum(), shape).unwrap().wgsl() {
            assert_params(
                &wgsl,
                fields!(UnfusedParams: q k v o lse seq_q seq_k heads group diagonal scale blocks_q groups),
            );
        }
    }

    #[test]
    #[should_panic(expected = "left == right")]
    fn a_struct_that_does_not_match_is_seen() {
        let shape = AttentionShape::self_attention(1, 40, 2, 16);
        let wgsl = Attention::default().design(&Caps::minimum(), shape).unwrap().wgsl();
        assert_params(&wgsl[0], fields!(UnfusedParams: q k v o lse seq_q));
    }
}
