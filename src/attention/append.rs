//! New keys and values into a paged cache.

use std::sync::Arc;

use super::MAX_HEAD_DIM;
use crate::{
    Context, DType, Error, Result, TensorView,
    dispatch::{Place, dispatch, distinct_outputs, fold, shares},
    element::TensorDecl,
    home::Home,
    shader::{Key, Source, source},
};

const OP: &str = "kv_append";
const APPEND: Source = source!("attention/append.wgsl");

/// Sizes of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvAppendShape {
    /// Sequences. May be 0.
    pub batch: u32,
    /// New tokens of each sequence. May be 0.
    pub seq: u32,
    /// Key and value heads.
    pub heads_kv: u32,
    /// Length of a key, 1 to [`MAX_HEAD_DIM`].
    pub head_dim: u32,
    /// Length of a value, 1 to [`MAX_HEAD_DIM`].
    pub head_dim_v: u32,
    /// Pages of the cache.
    pub pages: u32,
    /// Rows of a page, a power of two.
    pub page_size: u32,
}

/// Copies new keys and values into the pages of a cache (PagedAttention, arXiv:2309.06180): token `t`
/// of sequence `b` becomes row `first[b] + t` of that sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvAppend {
    /// Element type of all four tensors.
    pub dtype: DType,
}

/// The tensors of one append; strides are free but for the last axis.
#[derive(Clone, Copy, Debug)]
pub struct KvAppendArgs<'a> {
    /// New keys `[batch, seq, heads_kv, head_dim]`.
    pub k: TensorView<'a, 4>,
    /// New values `[batch, seq, heads_kv, head_dim_v]`.
    pub v: TensorView<'a, 4>,
    /// Keys of the cache `[pages, page_size, heads_kv, head_dim]`; other rows stay as they are.
    pub k_pages: TensorView<'a, 4>,
    /// Values of the cache `[pages, page_size, heads_kv, head_dim_v]`.
    pub v_pages: TensorView<'a, 4>,
    /// Rows that each sequence has already, `[batch]`.
    pub first: &'a [u32],
    /// Page that holds rows `i * page_size..` of a sequence, `[batch, width]` for any width that reaches
    /// the new rows.
    pub page_table: &'a [u32],
}

/// A checked and compiled append.
#[derive(Clone, Debug)]
pub struct KvAppendPlan {
    shape: KvAppendShape,
    op: KvAppend,
    /// The device it was planned on, if any.
    home: Option<Arc<Home>>,
}

// Must match `Params` in shaders/attention/append.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    src: [u32; 4],
    dst: [u32; 4],
    seq: u32,
    heads: u32,
    items: u32,
    unused: u32,
}

impl KvAppend {
    /// Checks the sizes and compiles.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Value`] for what is not accepted, [`Error::Limit`] where the
    /// integers are too small, [`Error::Compile`], [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, shape: KvAppendShape) -> Result<KvAppendPlan> {
        self.dtype.expect_float(OP)?;
        if shape.heads_kv == 0 {
            return Err(Error::shape(OP, "heads_kv", "at least 1", 0));
        }
        for (what, dim) in [("head_dim", shape.head_dim), ("head_dim_v", shape.head_dim_v)] {
            if dim == 0 || dim > MAX_HEAD_DIM {
                return Err(Error::shape(OP, what, format!("1 to {MAX_HEAD_DIM}"), dim));
            }
        }
        if !shape.page_size.is_power_of_two() {
            return Err(Error::shape(OP, "page_size", "a power of two", shape.page_size));
        }
        let rows = u64::from(shape.pages) * u64::from(shape.page_size);
        if rows > u64::from(u32::MAX) {
            let limit = u32::MAX.into();
            return Err(Error::Limit { op: OP, what: "rows of the cache", need: rows, limit });
        }
        let plan = KvAppendPlan { shape, op: *self, home: Some(Arc::clone(ctx.home())) };
        plan.items(shape.head_dim.max(shape.head_dim_v))?;
        for dim in [shape.head_dim, shape.head_dim_v] {
            ctx.kernel(plan.key(dim, [true; 2]))?;
        }
        Ok(plan)
    }
}

impl KvAppendPlan {
    fn key(&self, dim: u32, aligned: [bool; 2]) -> Key {
        let decl =
            |aligned: bool| Some(TensorDecl::new(self.op.dtype, aligned && dim.is_multiple_of(4)));
        Key {
            source: APPEND,
            entry: "append",
            spec: vec![
                ("HEAD_DIM", format!("{dim}u")),
                ("PAGE", format!("{}u", self.shape.page_size)),
            ],
            tensors: vec![("src", decl(aligned[0])), ("dst", decl(aligned[1]))],
        }
    }

    /// The texts of the kernels for keys and for values, for aligned views.
    pub fn wgsl(&self) -> Vec<String> {
        [self.shape.head_dim, self.shape.head_dim_v]
            .iter()
            .map(|&dim| self.key(dim, [true; 2]).wgsl())
            .collect()
    }

    fn items(&self, dim: u32) -> Result<u32> {
        let s = self.shape;
        let need = [s.batch, s.seq, s.heads_kv, dim.div_ceil(4)]
            .iter()
            .fold(1u64, |n, &d| n.saturating_mul(d.into()));
        let limit = u32::MAX.into();
        u32::try_from(need).map_err(|_| Error::Limit { op: OP, what: "invocations", need, limit })
    }

    /// Records the kernels into the caller's encoder, in a compute pass of their own; submits
    /// nothing.
    ///
    /// # Errors
    /// Those of a view that does not fit the plan; [`Error::Shape`] for a list of the wrong length,
    /// [`Error::Value`] for a row past the page table or a page past the cache, or for two new rows in
    /// one place; [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &KvAppendArgs<'_>,
    ) -> Result<()> {
        ctx.expect_plan(OP, self.home.as_ref())?;
        let s = self.shape;
        let dtype = self.op.dtype;
        args.k.expect(OP, "k", [s.batch, s.seq, s.heads_kv, s.head_dim], dtype)?;
        args.v.expect(OP, "v", [s.batch, s.seq, s.heads_kv, s.head_dim_v], dtype)?;
        let pages = |dim| [s.pages, s.page_size, s.heads_kv, dim];
        args.k_pages.expect_output(OP, "k_pages", pages(s.head_dim), dtype)?;
        args.v_pages.expect_output(OP, "v_pages", pages(s.head_dim_v), dtype)?;
        // each kernel binds one of either; what is new may come from the caches' own buffer
        let outputs =
            [("k_pages", Place::from(&args.k_pages)), ("v_pages", (&args.v_pages).into())];
        let inputs = [("k", Place::from(&args.k)), ("v", Place::from(&args.v))];
        distinct_outputs(ctx, OP, &outputs, &[] as &[(&'static str, Place<'_>)])?;
        for input in inputs {
            for output in outputs {
                shares(ctx, OP, output, input)?;
            }
        }
        let places = self.places(args)?;
        if places.is_empty() {
            return Ok(());
        }
        let table = ctx.table(OP, bytemuck::cast_slice(&places))?;
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: None,
        });
        for (names, src, dst) in
            [(["k", "k_pages"], &args.k, &args.k_pages), (["v", "v_pages"], &args.v, &args.v_pages)]
        {
            let dim = src.layout.shape[3];
            let items = self.items(dim)?;
            let aligned = [src.layout.is_multiple_of(4), dst.layout.is_multiple_of(4)];
            let mut key = self.key(dim, aligned);
            if src.buffer == dst.buffer {
                key.tensors[0].1 = key.tensors[0].1.map(TensorDecl::beside_outputs);
            }
            let kernel = ctx.kernel(key)?;
            let (from, to) =
                (src.bind(OP, names[0], &ctx.caps)?, dst.bind(OP, names[1], &ctx.caps)?);
            let place = |view: &TensorView<'_, 4>, offset: u32| {
                let [b, t, h, _] = view.strides_u32();
                [b, t, h, offset]
            };
            let params = Params {
                src: place(src, from.offset),
                dst: place(dst, to.offset),
                seq: s.seq,
                heads: s.heads_kv,
                items,
                unused: 0,
            };
            let resources = [from.resource, to.resource, table.as_entire_binding()];
            let groups = fold(OP, u64::from(items).div_ceil(64), &ctx.caps)?;
            dispatch(ctx, &mut pass, OP, &kernel, bytemuck::bytes_of(&params), &resources, groups)?;
        }
        Ok(())
    }

    /// Row of the cache, counted through its pages, of each new token.
    fn places(&self, args: &KvAppendArgs<'_>) -> Result<Vec<u32>> {
        let s = self.shape;
        let batch = s.batch as usize;
        if args.first.len() != batch {
            let expected = format!("{batch} sequences");
            return Err(Error::shape(OP, "first", expected, args.first.len()));
        }
        if batch == 0 || s.seq == 0 {
            return Ok(Vec::new());
        }
        if !args.page_table.len().is_multiple_of(batch) {
            return Err(Error::shape(
                OP,
                "page_table",
                format!("a whole number of pages for each of {batch} sequences"),
                format!("{} entries", args.page_table.len()),
            ));
        }
        let width = args.page_table.len() / batch;
        let mut places = Vec::with_capacity(batch * s.seq as usize);
        for (b, &first) in args.first.iter().enumerate() {
            for t in 0..s.seq {
                let row = u64::from(first) + u64::from(t);
                let index = usize::try_from(row / u64::from(s.page_size)).unwrap_or(usize::MAX);
                let page = args.page_table[b * width..(b + 1) * width].get(index);
                let Some(&page) = page else {
                    return Err(Error::value(
                        OP,
                        "first",
                        format!(
                            "rows below {} for {width} pages",
                            width as u64 * u64::from(s.page_size)
                        ),
                        format!("row {row} of sequence {b}"),
                    ));
                };
                if page >= s.pages {
                    return Err(Error::value(
                        OP,
                        "page_table",
                        format!("pages below {}", s.pages),
                        format!("page {page} for sequence {b}"),
                    ));
                }
                // below the rows of the cache, which fit
                let within = u32::try_from(row % u64::from(s.page_size)).unwrap_or(0);
                places.push(page * s.page_size + within);
            }
        }
        let mut sorted = places.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|w| w[0] == w[1]) {
            return Err(Error::value(
                OP,
                "page_table",
                "a place of its own for each new row",
                format!("page {} for two rows", twice[0] / s.page_size),
            ));
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::{KvAppend, KvAppendPlan, KvAppendShape, Params};
    use crate::test_support::{assert_params, fields};

    #[test]
    fn params_match() {
        let shape = KvAppendShape {
            batch: 1,
            seq: 2,
            heads_kv: 1,
            head_dim: 8,
            head_dim_v: 4,
            pages: 3,
            page_size: 4,
        };
        let plan = KvAppendPlan { shape, op: KvAppend::default(), home: None };
        for wgsl in plan.wgsl() {
            assert_params(&wgsl, fields!(Params: src dst seq heads items unused));
        }
    }
}
