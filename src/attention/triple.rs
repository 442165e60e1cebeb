//! Softmax over pairs of keys.

use std::sync::Arc;

use crate::{
    Caps, Context, DType, Error, Result, TensorView,
    dispatch::{Place, dispatch, distinct_outputs, fold},
    element::TensorDecl,
    home::Home,
    shader::{Key, Source, source},
};

const OP: &str = "triple_attention";
const TRIPLE: Source = source!("attention/triple.wgsl");

/// Keys of the inner set that pass between two corrections of the maximum.
const BLOCK: u32 = 4;

/// The largest head sizes: a row of queries, its product with a key, and two rows of values are kept in
/// registers.
const MAX_DIM: u32 = 128;

/// Sizes of a triple attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TripleShape {
    /// Independent problems. May be 0.
    pub batch: u32,
    /// Queries. May be 0.
    pub seq_q: u32,
    /// Keys of the first set. May be 0.
    pub seq_1: u32,
    /// Keys of the second set. May be 0.
    pub seq_2: u32,
    /// Query heads, a multiple of `heads_kv`.
    pub heads: u32,
    /// Heads of keys and values.
    pub heads_kv: u32,
    /// Length of a query and a key, 1 to 128.
    pub head_dim: u32,
    /// Length of a value, 1 to 128.
    pub head_dim_v: u32,
}

/// Attention over pairs of keys (arXiv:2310.04064): `s_ijk = scale * sum_c q_ic k1_jc k2_kc`, softmax over
/// all pairs `(j, k)` at once, `o_i = sum_jk p_ijk (v1_j * v2_k)`, elementwise product; exact, in
/// `seq_q * seq_1 * seq_2` steps and memory for inputs and outputs only.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TripleAttention {
    /// A query sees the pairs of which neither key is after it: `j <= i` and `k <= i`.
    pub causal: bool,
    /// Factor of the scores; `None` is `1 / sqrt(head_dim)`. Finite.
    pub scale: Option<f32>,
    /// Element type of all tensors but the LSE.
    pub dtype: DType,
}

/// The tensors of one triple attention; strides are free but for the last axis.
#[derive(Clone, Copy, Debug)]
pub struct TripleArgs<'a> {
    /// Queries `[batch, seq_q, heads, head_dim]`.
    pub q: TensorView<'a, 4>,
    /// First keys `[batch, seq_1, heads_kv, head_dim]`.
    pub k1: TensorView<'a, 4>,
    /// Second keys `[batch, seq_2, heads_kv, head_dim]`.
    pub k2: TensorView<'a, 4>,
    /// First values `[batch, seq_1, heads_kv, head_dim_v]`.
    pub v1: TensorView<'a, 4>,
    /// Second values `[batch, seq_2, heads_kv, head_dim_v]`.
    pub v2: TensorView<'a, 4>,
    /// Output `[batch, seq_q, heads, head_dim_v]`, written everywhere.
    pub o: TensorView<'a, 4>,
    /// Natural-log LSE over pairs `[batch, heads, seq_q]`, f32, written everywhere if given.
    pub lse: Option<TensorView<'a, 3>>,
}

/// A checked and compiled triple attention.
#[derive(Clone, Debug)]
pub struct TriplePlan {
    shape: TripleShape,
    op: TripleAttention,
    scale: f32,
    /// The device it was planned on, if any.
    home: Option<Arc<Home>>,
}

// Must match `Params` in shaders/attention/triple.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    q: [u32; 4],
    k1: [u32; 4],
    k2: [u32; 4],
    v1: [u32; 4],
    v2: [u32; 4],
    o: [u32; 4],
    lse: [u32; 4],
    seq_q: u32,
    seq_1: u32,
    seq_2: u32,
    heads: u32,
    group: u32,
    items: u32,
    scale: f32,
    unused: u32,
}

impl TripleAttention {
    /// Checks the problem and compiles.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Value`] for what is not accepted, [`Error::Limit`] where the device,
    /// its loops or the integers are too small, [`Error::Compile`], [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, shape: TripleShape) -> Result<TriplePlan> {
        let mut plan = self.design(&ctx.caps, shape)?;
        plan.home = Some(Arc::clone(ctx.home()));
        ctx.kernel(plan.key([true; 3], false))?;
        Ok(plan)
    }

    /// The checks of [`TripleAttention::plan`] without a device: nothing is compiled.
    ///
    /// # Errors
    /// As [`TripleAttention::plan`], but for those of the device.
    pub fn design(&self, caps: &Caps, shape: TripleShape) -> Result<TriplePlan> {
        self.dtype.expect_float(OP)?;
        let s = shape;
        for (what, value) in [("heads", s.heads), ("heads_kv", s.heads_kv)] {
            if value == 0 {
                return Err(Error::shape(OP, what, "at least 1", 0));
            }
        }
        if !s.heads.is_multiple_of(s.heads_kv) {
            let expected = format!("a multiple of heads_kv = {}", s.heads_kv);
            return Err(Error::shape(OP, "heads", expected, s.heads));
        }
        for (what, dim) in [("head_dim", s.head_dim), ("head_dim_v", s.head_dim_v)] {
            if dim == 0 || dim > MAX_DIM {
                return Err(Error::shape(OP, what, format!("1 to {MAX_DIM}"), dim));
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
        let default = f64::from(s.head_dim).sqrt().recip() as f32;
        let scale = self.scale.unwrap_or(default);
        if !scale.is_finite() {
            return Err(Error::value(OP, "scale", "a finite number", scale));
        }
        let limit = |what, need: u64, limit: u64| match need > limit {
            true => Err(Error::Limit { op: OP, what, need, limit }),
            false => Ok(()),
        };
        if caps.storage_buffers < 7 {
            limit("storage buffers in one kernel", 7, caps.storage_buffers.into())?;
        }
        // a trip for each first key, and for each block of second keys with it
        let trips = u64::from(s.seq_1) * (u64::from(s.seq_2.div_ceil(BLOCK)) + 1);
        limit("loop trips on this driver for seq_1 * seq_2 / 4", trips, caps.loop_trips)?;
        let product = |dims: &[u32]| dims.iter().fold(1u64, |n, &d| n.saturating_mul(d.into()));
        let widest = s.head_dim.max(s.head_dim_v);
        for dims in [
            [s.batch, s.seq_q, s.heads, widest],
            [s.batch, s.seq_1, s.heads_kv, widest],
            [s.batch, s.seq_2, s.heads_kv, widest],
        ] {
            limit("elements in one tensor", product(&dims), u32::MAX.into())?;
        }
        Ok(TriplePlan { shape, op: *self, scale, home: None })
    }
}

impl TriplePlan {
    /// `aligned` for the tensors of queries and keys, of values, and of the output.
    fn key(&self, aligned: [bool; 3], lse: bool) -> Key {
        let s = self.shape;
        let decl = |aligned: bool, dim: u32| {
            Some(TensorDecl::new(self.op.dtype, aligned && dim.is_multiple_of(4)))
        };
        let (keys, values) = (decl(aligned[0], s.head_dim), decl(aligned[1], s.head_dim_v));
        Key {
            source: TRIPLE,
            entry: "triple",
            spec: vec![
                ("HEAD_DIM", format!("{}u", s.head_dim)),
                ("HEAD_DIM_V", format!("{}u", s.head_dim_v)),
                ("D4", format!("{}u", s.head_dim.div_ceil(4))),
                ("DV4", format!("{}u", s.head_dim_v.div_ceil(4))),
                ("BLOCK", format!("{BLOCK}u")),
                ("CAUSAL", self.op.causal.to_string()),
            ],
            tensors: vec![
                ("q", keys),
                ("k1", keys),
                ("k2", keys),
                ("v1", values),
                ("v2", values),
                ("o", decl(aligned[2], s.head_dim_v)),
                ("lse", lse.then_some(TensorDecl::new(DType::F32, false))),
            ],
        }
    }

    /// The text of the kernel, for aligned views and with LSE.
    pub fn wgsl(&self) -> Vec<String> {
        vec![self.key([true; 3], true).wgsl()]
    }

    /// Records the kernel into the caller's encoder, in a compute pass of its own; submits nothing.
    ///
    /// # Errors
    /// Those of a view that does not fit the plan: [`Error::Shape`], [`Error::DType`],
    /// [`Error::Strides`], [`Error::OutOfRange`], [`Error::Misaligned`], [`Error::Usage`],
    /// [`Error::SharedBuffer`], [`Error::Limit`]; [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &TripleArgs<'_>,
    ) -> Result<()> {
        ctx.expect_plan(OP, self.home.as_ref())?;
        let (s, dtype) = (self.shape, self.op.dtype);
        args.q.expect(OP, "q", [s.batch, s.seq_q, s.heads, s.head_dim], dtype)?;
        args.k1.expect(OP, "k1", [s.batch, s.seq_1, s.heads_kv, s.head_dim], dtype)?;
        args.k2.expect(OP, "k2", [s.batch, s.seq_2, s.heads_kv, s.head_dim], dtype)?;
        args.v1.expect(OP, "v1", [s.batch, s.seq_1, s.heads_kv, s.head_dim_v], dtype)?;
        args.v2.expect(OP, "v2", [s.batch, s.seq_2, s.heads_kv, s.head_dim_v], dtype)?;
        args.o.expect_output(OP, "o", [s.batch, s.seq_q, s.heads, s.head_dim_v], dtype)?;
        let mut outputs = vec![("o", Place::from(&args.o))];
        if let Some(lse) = &args.lse {
            lse.expect_output(OP, "lse", [s.batch, s.heads, s.seq_q], DType::F32)?;
            outputs.push(("lse", Place::from(lse)));
        }
        let inputs = [
            ("q", &args.q),
            ("k1", &args.k1),
            ("k2", &args.k2),
            ("v1", &args.v1),
            ("v2", &args.v2),
        ];
        distinct_outputs(ctx, OP, &outputs, &inputs.map(|(name, view)| (name, view.buffer)))?;
        if s.batch == 0 || s.seq_q == 0 {
            return Ok(());
        }
        let bound = inputs
            .map(|(name, view)| Ok((view, view.bind(OP, name, &ctx.caps)?)))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let place = |view: &TensorView<'_, 4>, offset: u32| {
            let [b, t, h, _] = view.strides_u32();
            [b, t, h, offset]
        };
        let places: Vec<[u32; 4]> =
            bound.iter().map(|(view, bound)| place(view, bound.offset)).collect();
        let o = args.o.bind(OP, "o", &ctx.caps)?;
        let lse = args.lse.as_ref().map(|l| l.bind(OP, "lse", &ctx.caps)).transpose()?;
        let rows = u64::from(s.batch) * u64::from(s.heads) * u64::from(s.seq_q);
        let params = Params {
            q: places[0],
            k1: places[1],
            k2: places[2],
            v1: places[3],
            v2: places[4],
            o: place(&args.o, o.offset),
            lse: args.lse.zip(lse.as_ref()).map_or([0; 4], |(view, bound)| {
                let [b, h, t] = view.strides_u32();
                [b, h, t, bound.offset]
            }),
            seq_q: s.seq_q,
            seq_1: s.seq_1,
            seq_2: s.seq_2,
            heads: s.heads,
            group: s.heads / s.heads_kv,
            // at most the elements of the output
            items: u32::try_from(rows).unwrap_or(u32::MAX),
            scale: self.scale * std::f32::consts::LOG2_E,
            unused: 0,
        };
        let whole =
            |views: &[&TensorView<'_, 4>]| views.iter().all(|view| view.layout.is_multiple_of(4));
        let aligned = [
            whole(&[&args.q, &args.k1, &args.k2]),
            whole(&[&args.v1, &args.v2]),
            whole(&[&args.o]),
        ];
        let kernel = ctx.kernel(self.key(aligned, args.lse.is_some()))?;
        let mut resources: Vec<_> = bound.into_iter().map(|(_, bound)| bound.resource).collect();
        resources.push(o.resource);
        resources.extend(lse.map(|l| l.resource));
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: None,
        });
        let groups = fold(OP, rows.div_ceil(32), &ctx.caps)?;
        dispatch(ctx, &mut pass, OP, &kernel, bytemuck::bytes_of(&params), &resources, groups)
    }
}

#[cfg(test)]
mod tests {
    use super::{Params, TripleAttention, TripleShape};
    use crate::{
        Caps,
        test_support::{assert_params, fields},
    };

    #[test]
    fn params_match() {
        let shape = TripleShape {
            batch: 1,
            seq_q: 2,
            seq_1: 3,
            seq_2: 4,
            heads: 2,
            heads_kv: 1,
            head_dim: 8,
            head_dim_v: 4,
        };
        let plan = TripleAttention::default().design(&Caps::minimum(), shape).unwrap();
        assert_params(
            &plan.wgsl()[0],
            fields!(Params: q k1 k2 v1 v2 o lse seq_q seq_1 seq_2 heads group items scale unused),
        );
    }
}
