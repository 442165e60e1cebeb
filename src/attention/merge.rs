//! Joining results over disjoint keys.

use std::sync::Arc;

use super::MAX_HEAD_DIM;
use crate::{
    Caps, Context, DType, Error, Result, TensorView,
    dispatch::{Place, Resource, dispatch, distinct_outputs, fold},
    element::TensorDecl,
    home::Home,
    shader::{Key, Source, source},
};

const OP: &str = "merge";
const MERGE: Source = source!("attention/merge.wgsl");

/// Sizes of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MergeShape {
    /// Partial results, over keys that no two of them share. At least 1.
    pub parts: u32,
    /// Independent problems. May be 0.
    pub batch: u32,
    /// Queries. May be 0.
    pub seq: u32,
    /// Heads.
    pub heads: u32,
    /// Length of an output row, 1 to [`MAX_HEAD_DIM`].
    pub head_dim_v: u32,
}

/// Merges attention results over disjoint sets of keys into the result over all of them:
/// `lse = ln sum_p exp(lse_p)`, `o = sum_p exp(lse_p - lse) o_p`, in the order of the parts
/// (Rabe and Staats 2021, arXiv:2112.05682, section 2).
///
/// A part whose LSE is -inf saw no key: its output is not looked at. Where all are, the output is 0
/// and the LSE -inf. A row whose other parts are -inf is copied bit for bit in f32.
///
/// Ring and sequence-parallel attention, prefill in chunks of keys, and extra keys are attention over
/// parts of the keys, each with [`AttentionArgs::lse`](super::AttentionArgs::lse), and one merge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merge {
    /// Element type of the merged output.
    pub dtype: DType,
    /// Element type of the partial outputs; f32 loses nothing.
    pub parts_dtype: DType,
}

/// The tensors of one merge; strides are free but for the last axis.
#[derive(Clone, Copy, Debug)]
pub struct MergeArgs<'a> {
    /// Partial outputs `[parts, batch, seq, heads, head_dim_v]`.
    pub o_parts: TensorView<'a, 5>,
    /// Their natural-log LSEs `[parts, batch, heads, seq]`, f32.
    pub lse_parts: TensorView<'a, 4>,
    /// Merged output `[batch, seq, heads, head_dim_v]`, written everywhere.
    pub o: TensorView<'a, 4>,
    /// Merged LSE `[batch, heads, seq]`, f32, written everywhere if given.
    pub lse: Option<TensorView<'a, 3>>,
}

/// A checked and compiled merge.
#[derive(Clone, Debug)]
pub struct MergePlan {
    shape: MergeShape,
    op: Merge,
    /// The device it was planned on, if any.
    home: Option<Arc<Home>>,
}

// Must match `Params` in shaders/attention/merge.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Params {
    pub(super) o_parts: [u32; 4],
    pub(super) lse_parts: [u32; 4],
    pub(super) o: [u32; 4],
    pub(super) lse: [u32; 4],
    pub(super) o_part: u32,
    pub(super) lse_part: u32,
    pub(super) parts: u32,
    pub(super) seq: u32,
    pub(super) heads: u32,
    pub(super) items: u32,
    pub(super) counts: u32,
    pub(super) unused: u32,
}

/// What parts the kernel reads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts {
    /// Rows have different numbers of them.
    pub(super) counted: bool,
    /// They are outputs not yet divided, with a reference and a sum, instead of outputs and LSEs.
    pub(super) pairs: bool,
}

/// The kernel for parts and an output so declared.
pub(super) fn key(
    head_dim_v: u32,
    [parts, o]: [TensorDecl; 2],
    lse: bool,
    Parts { counted, pairs }: Parts,
) -> Key {
    let plain = TensorDecl::new(DType::F32, false);
    Key {
        source: MERGE,
        entry: "merge",
        spec: vec![
            ("HEAD_DIM_V", format!("{head_dim_v}u")),
            ("DV4", format!("{}u", head_dim_v.div_ceil(4))),
            ("COUNTED", counted.to_string()),
            ("PAIRS", pairs.to_string()),
        ],
        tensors: vec![
            ("o_parts", Some(parts)),
            ("lse_parts", Some(plain)),
            ("o", Some(o)),
            ("lse", lse.then_some(plain)),
        ],
    }
}

/// Number of invocations.
pub(super) fn items(rows: u64, head_dim_v: u32) -> Result<u32> {
    let need = rows.saturating_mul(head_dim_v.div_ceil(4).into());
    u32::try_from(need).map_err(|_| Error::Limit {
        op: OP,
        what: "invocations",
        need,
        limit: u32::MAX.into(),
    })
}

impl Merge {
    /// Checks the problem and compiles.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Value`] for what is not accepted, [`Error::Limit`] where the
    /// integers or the driver's loops are too small, [`Error::Compile`], [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, shape: MergeShape) -> Result<MergePlan> {
        let mut plan = self.design(&ctx.caps, shape)?;
        plan.home = Some(Arc::clone(ctx.home()));
        ctx.kernel(plan.key([true; 2], true))?;
        Ok(plan)
    }

    /// The checks of [`Merge::plan`] without a device: nothing is compiled.
    ///
    /// # Errors
    /// As [`Merge::plan`], but for those of the device.
    pub fn design(&self, caps: &Caps, shape: MergeShape) -> Result<MergePlan> {
        self.dtype.expect_float(OP)?;
        self.parts_dtype.expect_float(OP)?;
        for (what, value) in [("parts", shape.parts), ("heads", shape.heads)] {
            if value == 0 {
                return Err(Error::shape(OP, what, "at least 1", 0));
            }
        }
        if shape.head_dim_v == 0 || shape.head_dim_v > MAX_HEAD_DIM {
            let expected = format!("1 to {MAX_HEAD_DIM}");
            return Err(Error::shape(OP, "head_dim_v", expected, shape.head_dim_v));
        }
        // two loops over the parts
        if u64::from(shape.parts) > caps.loop_trips / 2 {
            return Err(Error::Limit {
                op: OP,
                what: "parts on this driver",
                need: shape.parts.into(),
                limit: caps.loop_trips / 2,
            });
        }
        items(rows(&shape), shape.head_dim_v)?;
        Ok(MergePlan { shape, op: *self, home: None })
    }
}

fn rows(s: &MergeShape) -> u64 {
    [s.batch, s.seq, s.heads].iter().fold(1u64, |n, &d| n.saturating_mul(d.into()))
}

impl MergePlan {
    fn key(&self, aligned: [bool; 2], lse: bool) -> Key {
        let whole = self.shape.head_dim_v.is_multiple_of(4);
        let decl = |dtype, aligned: bool| TensorDecl::new(dtype, aligned && whole);
        let decls = [decl(self.op.parts_dtype, aligned[0]), decl(self.op.dtype, aligned[1])];
        key(self.shape.head_dim_v, decls, lse, Parts::default())
    }

    /// The text of the kernel, for aligned views and with LSE.
    pub fn wgsl(&self) -> Vec<String> {
        vec![self.key([true; 2], true).wgsl()]
    }

    /// Records the kernel into the caller's encoder, in a compute pass of its own; submits nothing.
    ///
    /// # Errors
    /// As [`MergePlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &MergeArgs<'_>,
    ) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: None,
        });
        self.encode_pass(ctx, &mut pass, args)
    }

    /// Records the kernel into the caller's compute pass; submits nothing.
    ///
    /// # Errors
    /// Those of a view that does not fit the plan: [`Error::Shape`], [`Error::DType`],
    /// [`Error::Strides`], [`Error::OutOfRange`], [`Error::Misaligned`], [`Error::Usage`],
    /// [`Error::SharedBuffer`], [`Error::Limit`]; [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &MergeArgs<'_>,
    ) -> Result<()> {
        ctx.expect_plan(OP, self.home.as_ref())?;
        let s = self.shape;
        let parts = [s.parts, s.batch, s.seq, s.heads, s.head_dim_v];
        args.o_parts.expect(OP, "o_parts", parts, self.op.parts_dtype)?;
        let lse_parts = [s.parts, s.batch, s.heads, s.seq];
        args.lse_parts.expect(OP, "lse_parts", lse_parts, DType::F32)?;
        args.o.expect_output(OP, "o", [s.batch, s.seq, s.heads, s.head_dim_v], self.op.dtype)?;
        let mut outputs = vec![("o", Place::from(&args.o))];
        if let Some(lse) = &args.lse {
            lse.expect_output(OP, "lse", [s.batch, s.heads, s.seq], DType::F32)?;
            outputs.push(("lse", Place::from(lse)));
        }
        let inputs = [("o_parts", args.o_parts.buffer), ("lse_parts", args.lse_parts.buffer)];
        distinct_outputs(ctx, OP, &outputs, &inputs)?;
        let items = items(rows(&s), s.head_dim_v)?;
        if items == 0 {
            return Ok(());
        }
        let o_parts = args.o_parts.bind(OP, "o_parts", &ctx.caps)?;
        let lse_parts = args.lse_parts.bind(OP, "lse_parts", &ctx.caps)?;
        let o = args.o.bind(OP, "o", &ctx.caps)?;
        let lse = args.lse.map(|l| l.bind(OP, "lse", &ctx.caps)).transpose()?;
        let [o_part, b, t, h, _] = args.o_parts.strides_u32();
        let [lse_part, lb, lh, lt] = args.lse_parts.strides_u32();
        let [ob, ot, oh, _] = args.o.strides_u32();
        let params = Params {
            o_parts: [b, t, h, o_parts.offset],
            lse_parts: [lb, lh, lt, lse_parts.offset],
            o: [ob, ot, oh, o.offset],
            lse: args.lse.zip(lse.as_ref()).map_or([0; 4], |(view, bound)| {
                let [b, h, t] = view.strides_u32();
                [b, h, t, bound.offset]
            }),
            o_part,
            lse_part,
            parts: s.parts,
            seq: s.seq,
            heads: s.heads,
            items,
            ..Params::default()
        };
        let aligned = [args.o_parts.layout.is_multiple_of(4), args.o.layout.is_multiple_of(4)];
        let kernel = ctx.kernel(self.key(aligned, args.lse.is_some()))?;
        let mut resources: Vec<Resource<'_>> =
            vec![o_parts.resource, lse_parts.resource, o.resource];
        resources.extend(lse.map(|l| l.resource));
        let groups = fold(OP, u64::from(items).div_ceil(64), &ctx.caps)?;
        dispatch(ctx, pass, OP, &kernel, bytemuck::bytes_of(&params), &resources, groups)
    }
}

#[cfg(test)]
mod tests {
    use super::{Merge, MergeShape, Params};
    use crate::{
        Caps,
        test_support::{assert_params, fields},
    };

    #[test]
    fn params_match() {
        let shape = MergeShape { parts: 2, batch: 1, seq: 3, heads: 2, head_dim_v: 8 };
        let plan = Merge::default().design(&Caps::minimum(), shape).unwrap();
        assert_params(
            &plan.wgsl()[0],
            fields!(Params: o_parts lse_parts o lse o_part lse_part parts seq heads items counts unused),
        );
    }
}
