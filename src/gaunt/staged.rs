//! Products too large to fuse: grids in scratch memory, one stage after the other.
//!
//! Any degree, any number of inputs. Colatitude and longitude synthesis of every input, the
//! pointwise product, and the two analyses are sparse linear maps of rows; see `program.rs` for
//! what they compute.

use super::{
    fused::Operand,
    maps::{Entry, Linear, Rows, Weight},
    program::{Column, Columns, Combine, Field, Nodes, Program, longitude},
    transforms::with_line,
};
use crate::{
    Context, DType, Error, Layout, Result, TensorView,
    dispatch::{Resource, dispatch, fold},
    shader::{Key, Source, source},
};

const POINTWISE: Source = source!("gaunt/pointwise.wgsl");

const WORKGROUP: u32 = 64;

/// Bytes of scratch that a plan asks for, unless one row needs more.
const SCRATCH: u64 = 32 << 20;

/// A product in stages.
#[derive(Debug)]
pub(crate) struct Staged {
    nodes: Nodes,
    combine: Combine,
    fields: Vec<FieldMaps>,
    analysis: FieldMaps,
    /// Orders of the widest function.
    width: u32,
    /// Rows at a time.
    chunk: u32,
}

/// The two maps of a function between coefficients and grid.
#[derive(Debug)]
struct FieldMaps {
    input: usize,
    /// Orders: `2 M + 1`.
    width: u32,
    colatitude: Linear,
    longitude: Linear,
}

// Must match `Params` in shaders/gaunt/pointwise.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PointwiseParams {
    starts: [[u32; 4]; 4],
    powers: [[u32; 4]; 4],
    count: u32,
    out: u32,
    pad: [u32; 2],
}

/// Place of an order in a row of orders: 0, then cosine and sine of each `m`.
fn order_index(m: u32, sign: char) -> usize {
    if m == 0 { 0 } else { (2 * m - 1) as usize + usize::from(sign == 's') }
}

fn orders(field: &Field) -> u32 {
    let mut n = 0;
    field.orders(|_, _, _| n += 1);
    n
}

fn degree_of(index: u32) -> u32 {
    index.isqrt()
}

impl Staged {
    pub(crate) fn new(
        ctx: &Context,
        op: &'static str,
        program: &Program,
        rows: u64,
    ) -> Result<Self> {
        let nodes = program.nodes();
        let columns = Columns::new(program);
        let lines = 2 * nodes.pairs;
        // a term's factor at parallel i, south of the equator from `pairs` on
        let factor = |column: Column, symmetric: bool, negative: bool, i: u32| {
            let value = columns.value(column, if i < nodes.pairs { i } else { lines - 1 - i });
            if negative != (i >= nodes.pairs && !symmetric) { -value } else { value }
        };
        let mut fields = Vec::new();
        for field in program.fields() {
            let width = orders(&field);
            let mut colatitude = Vec::new();
            for i in 0..lines {
                field.orders(|_, _, terms| {
                    let entry = |t: &super::program::Term| Entry {
                        index: t.index,
                        degree: degree_of(t.index),
                        value: factor(t.column, t.symmetric, t.negative, i),
                    };
                    colatitude.push((0, terms.iter().map(entry).collect()));
                });
            }
            fields.push(FieldMaps {
                input: field.input,
                width,
                colatitude: Linear::new(ctx, op, &colatitude)?,
                longitude: Linear::new(ctx, op, &longitude_synthesis(&field, nodes))?,
            });
        }
        let out = program.output();
        let width = orders(&out);
        let longitude = Linear::new(ctx, op, &longitude_analysis(&out, nodes))?;
        let mut colatitude: Vec<(u32, Vec<Entry>)> =
            (0..(program.lmax_out + 1).pow(2)).map(|k| (degree_of(k), Vec::new())).collect();
        out.orders(|m, sign, terms| {
            for term in terms {
                colatitude[term.index as usize].1 = (0..lines)
                    .map(|i| Entry {
                        index: i * width + u32::try_from(order_index(m, sign)).unwrap_or(0),
                        degree: 0,
                        value: factor(term.column, term.symmetric, false, i)
                            * factor(Column::Weight, true, false, i),
                    })
                    .collect();
            }
        });
        let analysis = FieldMaps {
            input: 0,
            width,
            colatitude: Linear::new(ctx, op, &colatitude)?,
            longitude,
        };
        let width = fields.iter().map(|f| f.width).max().unwrap_or(0).max(width);
        let mut plan =
            Self { nodes, combine: program.combine.clone(), fields, analysis, width, chunk: 1 };
        let row = 4 * plan.row_elements();
        let limit = SCRATCH.min(ctx.caps.binding_size);
        if row > ctx.caps.binding_size {
            return Err(Error::Limit {
                op,
                what: "bytes of scratch for one product",
                need: row,
                limit: ctx.caps.binding_size,
            });
        }
        plan.chunk = u32::try_from((limit / row).clamp(1, rows.max(1))).unwrap_or(u32::MAX);
        Ok(plan)
    }

    /// Elements of scratch for one row: a row of orders on every parallel, and the grids.
    fn row_elements(&self) -> u64 {
        let lines = u64::from(2 * self.nodes.pairs);
        lines * u64::from(self.width) + self.fields.len() as u64 * self.grid_elements()
    }

    fn grid_elements(&self) -> u64 {
        u64::from(2 * self.nodes.pairs) * u64::from(4 * self.nodes.quarter)
    }

    pub(crate) fn wgsl(&self) -> Vec<String> {
        let linear = Linear::key([false; 2], false, true, DType::F32, DType::F32);
        vec![linear.wgsl(), self.pointwise_key().wgsl()]
    }

    fn pointwise_key(&self) -> Key {
        Key {
            source: POINTWISE,
            entry: "pointwise",
            spec: vec![
                ("WORKGROUP", format!("{WORKGROUP}u")),
                ("GRIDS", format!("{}u", self.fields.len())),
                ("CROSS", (self.combine == Combine::Vector).to_string()),
            ],
            tensors: vec![],
        }
    }

    pub(crate) fn scratch_bytes(&self) -> u64 {
        4 * u64::from(self.chunk) * self.row_elements()
    }

    #[expect(clippy::too_many_arguments, reason = "the tensors of one call")]
    pub(crate) fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        op: &'static str,
        [batch, channels]: [u32; 2],
        inputs: &[Operand<'_>],
        z: &TensorView<'_, 3>,
        weight_out: Option<Weight<'_>>,
        scratch: &wgpu::Buffer,
    ) -> Result<()> {
        let rows = u64::from(batch) * u64::from(channels);
        let rows = u32::try_from(rows).map_err(|_| Error::Limit {
            op,
            what: "products in one call",
            need: rows,
            limit: u32::MAX.into(),
        })?;
        let (lines, around) = (2 * self.nodes.pairs, 4 * self.nodes.quarter);
        // [chunk, 1, lines, n] from an element of scratch on
        let part = |start: u64, chunk: u32, n: u32, stride_line: bool| TensorView {
            buffer: scratch,
            layout: Layout {
                shape: [
                    chunk,
                    1,
                    if stride_line { lines } else { 1 },
                    if stride_line { n } else { n * lines },
                ],
                strides: [
                    u64::from(lines) * u64::from(n),
                    0,
                    if stride_line { n.into() } else { 0 },
                    1,
                ],
                offset: start,
            },
            dtype: DType::F32,
        };
        let mut first = 0;
        while first < rows {
            let chunk = self.chunk.min(rows - first);
            let grids = u64::from(self.chunk) * u64::from(lines) * u64::from(self.width);
            let grid = |k: usize| grids + k as u64 * u64::from(self.chunk) * self.grid_elements();
            for (k, field) in self.fields.iter().enumerate() {
                let input = &inputs[field.input];
                let orders = |by_line| ("scratch", part(0, chunk, field.width, by_line));
                field.colatitude.encode_pass(
                    ctx,
                    pass,
                    op,
                    &Rows {
                        src: (input.name, with_line(&input.view)),
                        dst: orders(false),
                        rows: chunk,
                        channels,
                        first: [first, 0],
                        weights: [input.weight, None],
                        gather: input.gather,
                        dst_channels: 1,
                    },
                )?;
                field.longitude.encode_pass(
                    ctx,
                    pass,
                    op,
                    &within(orders(true), ("scratch", part(grid(k), chunk, around, true)), chunk),
                )?;
            }
            self.multiply(ctx, pass, op, chunk, &grid, scratch)?;
            let a = &self.analysis;
            let orders = |by_line| ("scratch", part(0, chunk, a.width, by_line));
            a.longitude.encode_pass(
                ctx,
                pass,
                op,
                &within(("scratch", part(grid(0), chunk, around, true)), orders(true), chunk),
            )?;
            a.colatitude.encode_pass(
                ctx,
                pass,
                op,
                &Rows {
                    src: orders(false),
                    dst: ("z", with_line(z)),
                    rows: chunk,
                    channels: 1,
                    first: [0, first],
                    weights: [None, weight_out],
                    gather: None,
                    dst_channels: channels,
                },
            )?;
            first += chunk;
        }
        Ok(())
    }

    /// The pointwise product of all grids, into the first.
    fn multiply(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        op: &'static str,
        chunk: u32,
        grid: &dyn Fn(usize) -> u64,
        scratch: &wgpu::Buffer,
    ) -> Result<()> {
        // scratch is at most a binding, so places in it fit u32
        let place = |k: usize| u32::try_from(grid(k)).unwrap_or(u32::MAX);
        let count = u32::try_from(u64::from(chunk) * self.grid_elements()).unwrap_or(u32::MAX);
        let mut params = PointwiseParams {
            starts: [[0; 4]; 4],
            powers: [[1; 4]; 4],
            count,
            out: place(0),
            pad: [0; 2],
        };
        for k in 0..self.fields.len() {
            params.starts[k / 4][k % 4] = place(k);
            if let Combine::Powers(powers) = &self.combine {
                params.powers[k / 4][k % 4] = powers[k];
            }
        }
        let kernel = ctx.kernel(self.pointwise_key())?;
        let groups = fold(op, u64::from(count.div_ceil(WORKGROUP)), &ctx.caps)?;
        let grids = Resource::Buffer(scratch.as_entire_buffer_binding());
        dispatch(ctx, pass, op, &kernel, bytemuck::bytes_of(&params), &[grids], groups)
    }
}

/// A map between two parts of scratch.
fn within<'a>(
    src: (&'static str, TensorView<'a, 4>),
    dst: (&'static str, TensorView<'a, 4>),
    rows: u32,
) -> Rows<'a> {
    Rows {
        src,
        dst,
        rows,
        channels: 1,
        first: [0, 0],
        weights: [None, None],
        gather: None,
        dst_channels: 1,
    }
}

/// Longitudes in order: `a_j`, half a step off zero.
fn longitude_synthesis(field: &Field, nodes: Nodes) -> Vec<(u32, Vec<Entry>)> {
    (0..4 * nodes.quarter)
        .map(|j| {
            let mut entries = Vec::new();
            field.orders(|m, sign, _| {
                let index = u32::try_from(order_index(m, sign)).unwrap_or(0);
                entries.push(Entry {
                    index,
                    degree: 0,
                    value: longitude(m, sign == 'c', j, nodes.quarter),
                });
            });
            (0, entries)
        })
        .collect()
}

fn longitude_analysis(field: &Field, nodes: Nodes) -> Vec<(u32, Vec<Entry>)> {
    let mut outputs = Vec::new();
    field.orders(|m, sign, _| {
        let entry =
            |j| Entry { index: j, degree: 0, value: longitude(m, sign == 'c', j, nodes.quarter) };
        outputs.push((0, (0..4 * nodes.quarter).map(entry).collect()));
    });
    outputs
}
