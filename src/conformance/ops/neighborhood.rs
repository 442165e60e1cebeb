//! Neighborhood attention and the window operators that it expresses.

use super::rig::{Rig, Tensor};
use super::{Op, not_built};
use crate::conformance::case::Case;
use crate::conformance::run::{Outcome, Output, Stop};
use crate::neighborhood::{
    Border, NeighborhoodArgs, NeighborhoodAttention, NeighborhoodShape, RelativeBias,
};
use crate::{DType, Result};

/// The operators of this family.
pub(super) const OPS: &[(&str, Op)] = &[
    ("natten_1d", natten::<1, 4, 3>),
    ("natten_2d", natten::<2, 5, 4>),
    ("natten_3d", natten::<3, 6, 5>),
    ("maxvit_block", maxvit),
    ("maxvit_grid", maxvit),
    ("halo", halo),
    ("axial", axial),
    ("natten_bwd_1d", not_built),
    ("natten_bwd_2d", not_built),
];

/// NATTEN's operator on `D` axes: `R = D + 3` axes of a tensor, `L = D + 2` of the LSE.
fn natten<const D: usize, const R: usize, const L: usize>(
    rig: &Rig<'_>,
    case: &Case,
    dtype: DType,
) -> Outcome {
    let (q_shape, q) = case.input::<R>("in.q")?;
    let (k_shape, k) = case.input::<R>("in.k")?;
    let (v_shape, v) = case.input::<R>("in.v")?;
    let [causal] = [case.param_bools("is_causal")?];
    let op = NeighborhoodAttention {
        stride: axes("stride", &case.param_u32s("stride")?)?,
        dilation: axes("dilation", &case.param_u32s("dilation")?)?,
        is_causal: axes("is_causal", &causal)?,
        scale: case.param_f32("scale")?,
        dtype,
        ..NeighborhoodAttention::<D>::new(axes("kernel_size", &case.param_u32s("kernel_size")?)?)
    };
    let extra = match case.tensor("in.extra_k") {
        Some(_) => Some((case.input::<4>("in.extra_k")?, case.input::<4>("in.extra_v")?)),
        None => None,
    };
    let shape = NeighborhoodShape {
        batch: q_shape[0],
        spatial: std::array::from_fn(|a| q_shape[a + 1]),
        heads: q_shape[R - 2],
        heads_kv: k_shape[R - 2],
        head_dim: q_shape[R - 1],
        head_dim_v: v_shape[R - 1],
        extra_tokens: extra.map_or(0, |((k_shape, _), _)| k_shape[1]),
    };
    let plan = op.plan(rig, shape)?;
    let mut o_shape = q_shape;
    o_shape[R - 1] = shape.head_dim_v;
    let q = rig.upload(q_shape, q, dtype)?;
    let k = rig.upload(k_shape, k, dtype)?;
    let v = rig.upload(v_shape, v, dtype)?;
    let o = rig.poisoned(o_shape, dtype)?;
    let lse_shape: [u32; L] = std::array::from_fn(|a| q_shape[a]);
    let lse = rig.poisoned(lse_shape, DType::F32)?;
    let extra = match extra {
        Some(((k_shape, k), (v_shape, v))) => {
            Some((rig.upload(k_shape, k, dtype)?, rig.upload(v_shape, v, dtype)?))
        }
        None => None,
    };
    let args = NeighborhoodArgs {
        lse: Some(lse.view().into()),
        extra_k: extra.as_ref().map(|(k, _)| k.view()),
        extra_v: extra.as_ref().map(|(_, v)| v.view()),
        ..NeighborhoodArgs::new(q.view(), k.view(), v.view(), o.view())
    };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    Ok(vec![rig.output("out.o", &o)?, rig.output("out.lse", &lse)?])
}

/// One value for each axis.
fn axes<T: Copy, const D: usize>(name: &str, values: &[T]) -> Result<[T; D], Stop> {
    values
        .try_into()
        .map_err(|_| Stop::Refused(format!("{name}: expected {D} axes, got {}", values.len())))
}

/// Maps `[b, .., (h d)]` of a case, whose channels are heads of `d`.
struct Maps<const D: usize, const R: usize> {
    shape: NeighborhoodShape<D>,
    /// `[b, .., h, d]`
    view: [u32; R],
    tensors: [Tensor<R>; 3],
}

impl<const D: usize, const R: usize> Maps<D, R> {
    /// `C = D + 2` axes in the case, `R = D + 3` with the heads apart.
    fn read<const C: usize>(rig: &Rig<'_>, case: &Case, dtype: DType) -> Result<Self, Stop> {
        let (heads, head_dim) = (case.param_u32("heads")?, case.param_u32("d")?);
        let (shape, _) = case.input::<C>("in.q")?;
        let spatial: [u32; D] = std::array::from_fn(|a| shape[a + 1]);
        let mut view = [0; R];
        view[..=D].copy_from_slice(&shape[..=D]);
        [view[R - 2], view[R - 1]] = [heads, head_dim];
        let tensor = |name| {
            let (_, data) = case.input::<C>(name)?;
            Ok::<_, Stop>(rig.upload(view, data, dtype)?)
        };
        let tensors = [tensor("in.q")?, tensor("in.k")?, tensor("in.v")?];
        let shape = NeighborhoodShape {
            batch: shape[0],
            spatial,
            heads,
            heads_kv: heads,
            head_dim,
            head_dim_v: head_dim,
            extra_tokens: 0,
        };
        Ok(Self { shape, view, tensors })
    }

    /// Runs an operator on the maps; the output's heads are joined again.
    fn run(
        &self,
        rig: &Rig<'_>,
        op: &NeighborhoodAttention<D>,
        bias: Option<&Tensor<2>>,
    ) -> Result<Tensor<R>, Stop> {
        let plan = op.plan(rig, self.shape)?;
        let o = rig.poisoned(self.view, op.dtype)?;
        let scratch = rig.scratch(plan.scratch_bytes())?;
        let [q, k, v] = &self.tensors;
        let args = NeighborhoodArgs {
            bias: bias.map(Tensor::view),
            scratch: Some(&scratch),
            ..NeighborhoodArgs::new(q.view(), k.view(), v.view(), o.view())
        };
        rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
        Ok(o)
    }
}

/// `out.o` of shape `[b, .., (h d)]`.
fn joined<const R: usize>(rig: &Rig<'_>, o: &Tensor<R>) -> Outcome {
    let mut out = rig.output("out.o", o)?;
    let last = out.shape.pop().unwrap_or(1);
    if let Some(channels) = out.shape.last_mut() {
        *channels *= last;
    }
    Ok(vec![out])
}

/// MaxViT's block and grid attention, whose bias table is looked up by query minus key.
fn maxvit(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let maps = Maps::<2, 5>::read::<4>(rig, case, dtype)?;
    let window = axes("window", &case.param_u32s("window")?)?;
    let op = match case.op.as_str() {
        "maxvit_block" => NeighborhoodAttention::block(maps.shape.spatial, window)?,
        _ => NeighborhoodAttention::grid(maps.shape.spatial, window)?,
    };
    let mut op = NeighborhoodAttention { scale: case.param_f32("scale")?, dtype, ..op };
    let mut bias = None;
    if case.tensor("in.rel_table").is_some() {
        let ([rows, heads], table) = case.input::<2>("in.rel_table")?;
        op.bias = RelativeBias::Table;
        // `[offsets, heads]` to `[heads, offsets]`; reversed, offsets change their sign
        let turned: Vec<f32> = (0..heads as usize)
            .flat_map(|h| table.iter().skip(h).step_by(heads as usize).rev())
            .copied()
            .collect();
        bias = Some(rig.upload([heads, rows], &turned, DType::F32)?);
    }
    joined(rig, &maps.run(rig, &op, bias.as_ref())?)
}

/// Halo attention; keys off the map are masked.
fn halo(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let maps = Maps::<2, 5>::read::<4>(rig, case, dtype)?;
    let (block, halo) = (case.param_u32("block")?, case.param_u32("halo")?);
    let op =
        NeighborhoodAttention::halo(maps.shape.spatial, [block; 2], [halo; 2], Border::Masked)?;
    let mut op = NeighborhoodAttention { scale: case.param_f32("scale")?, dtype, ..op };
    let mut bias = None;
    if case.tensor("in.rel_h").is_some() {
        op.bias = RelativeBias::Factorised { scaled: true };
        let ([rows, dim], h) = case.input::<2>("in.rel_h")?;
        let (_, w) = case.input::<2>("in.rel_w")?;
        // the case counts keys from the window's edge: `halo` rows on
        let moved: Vec<f32> = [h, w]
            .iter()
            .flat_map(|table| (0..rows).map(move |row| (table, (row + halo).min(rows - 1))))
            .flat_map(|(table, row)| &table[(row * dim) as usize..((row + 1) * dim) as usize])
            .copied()
            .collect();
        bias = Some(rig.upload([2 * rows, dim], &moved, DType::F32)?);
    }
    joined(rig, &maps.run(rig, &op, bias.as_ref())?)
}

/// Attention along each axis alone, summed.
fn axial(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    match case.param_u32s("shape")?.len() {
        1 => axial_on::<1, 4, 3>(rig, case, dtype),
        2 => axial_on::<2, 5, 4>(rig, case, dtype),
        3 => axial_on::<3, 6, 5>(rig, case, dtype),
        n => Err(Stop::Unsupported(format!("axial attention on {n} axes"))),
    }
}

fn axial_on<const D: usize, const R: usize, const C: usize>(
    rig: &Rig<'_>,
    case: &Case,
    dtype: DType,
) -> Outcome {
    let maps = Maps::<D, R>::read::<C>(rig, case, dtype)?;
    let mut sum: Option<Vec<Output>> = None;
    for axis in 0..D {
        let mut kernel_size = [1; D];
        kernel_size[axis] = maps.shape.spatial[axis];
        let op = NeighborhoodAttention {
            scale: case.param_f32("scale")?,
            dtype,
            ..NeighborhoodAttention::new(kernel_size)
        };
        let part = joined(rig, &maps.run(rig, &op, None)?)?;
        match &mut sum {
            None => sum = Some(part),
            Some(sum) => sum[0].data.iter_mut().zip(&part[0].data).for_each(|(s, p)| *s += p),
        }
    }
    Ok(sum.unwrap_or_default())
}
