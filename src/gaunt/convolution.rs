//! Equivariant convolution over the edges of a graph.

use std::sync::Arc;

use super::{
    Algorithm, GauntNormalization, MAX_LMAX, MAX_SH_LMAX, ShNormalization, SphericalHarmonics,
    SphericalHarmonicsArgs, SphericalHarmonicsPlan, check_degree,
    fused::Operand,
    product::{self, Product},
    program::{Combine, Program},
};
use crate::{
    Context, DType, Error, Layout, Result, TensorView,
    dispatch::{Resource, dispatch, distinct_outputs, fold},
    element::TensorDecl,
    home::Home,
    shader::{Key, Source, source},
};

const OP: &str = "gaunt_convolution";
const SUM: Source = source!("gaunt/segment_sum.wgsl");
const WORKGROUP: u32 = 64;

/// Options of a convolution: for every edge `e` from node `s` to node `d`, and every channel,
/// `message_e = x_s (x) (filter_e Y(r_e / |r_e|))`, the Gaunt product with harmonics weighted by
/// degree; then, for every node, the sum of the messages that reach it, in the order of its edges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GauntConvolution {
    /// Degree of the features, at most [`MAX_LMAX`].
    pub lmax1: u32,
    /// Degree of the harmonics, at most [`MAX_SH_LMAX`].
    pub lmax2: u32,
    /// Degree of the messages.
    pub lmax_out: u32,
    /// Scale of the product. The harmonics are orthonormal.
    pub normalization: GauntNormalization,
    /// Element type of features, messages and sums. Vectors, filters and harmonics are f32.
    pub dtype: DType,
    /// Instead of the planner's choice.
    pub algorithm: Option<Algorithm>,
}

/// The tensors of one convolution over `n` nodes, `e` edges, `c` channels.
#[derive(Clone, Copy, Debug)]
pub struct GauntConvolutionArgs<'a> {
    /// Features `[n, c, (lmax1 + 1)^2]`; where the graph was planned without nodes,
    /// `[e, c, (lmax1 + 1)^2]`, one row for each edge.
    pub x: TensorView<'a, 3>,
    /// Edge vectors `[e, 3]`, f32. See [`check_directions`](super::check_directions).
    pub r: TensorView<'a, 2>,
    /// Filters by degree `[e, c, lmax2 + 1]`, f32; a channel stride of 0 shares them. All are used,
    /// those of a zero vector too, whose harmonics above degree 0 are 0: give it finite ones.
    pub filter: TensorView<'a, 3>,
    /// Harmonics of the edges `[e, (lmax2 + 1)^2]`, f32, written everywhere; not weighted.
    pub y: TensorView<'a, 2>,
    /// Messages `[e, c, (lmax_out + 1)^2]`, written everywhere.
    pub messages: TensorView<'a, 3>,
    /// Sums `[n, c, (lmax_out + 1)^2]`, written everywhere, zero for a node without edges. Needed
    /// if the graph has nodes, refused if not.
    pub out: Option<TensorView<'a, 3>>,
    /// At least [`GauntConvolutionPlan::scratch_bytes`] bytes with usage `STORAGE`, needed if that
    /// is not 0.
    pub scratch: Option<&'a wgpu::Buffer>,
}

/// A graph for a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Graph<'a> {
    /// Number of nodes.
    pub nodes: u32,
    /// `[source, destination]` of every edge, sorted by destination; see [`SortedEdges`].
    pub edges: &'a [[u32; 2]],
}

/// The edges of a graph, sorted by destination, and the way between their order and the order that
/// they were given in. What goes with edges (vectors, filters, features of edges) is sorted along.
///
/// ```
/// use tilewise::gaunt::SortedEdges;
/// # fn main() -> tilewise::Result<()> {
/// let given = [[0, 2], [1, 0], [2, 2], [2, 0]];
/// let sorted = SortedEdges::new(3, &given)?;
/// assert_eq!(sorted.edges(), [[1, 0], [2, 0], [0, 2], [2, 2]]);
/// assert_eq!(sorted.order(), [1, 3, 0, 2]);
/// assert_eq!(sorted.starts(), [0, 2, 2, 4]);
/// // a length for each edge, in the order of the convolution and back
/// let lengths = sorted.sort("lengths", &[0.0, 0.1, 0.2, 0.3])?;
/// assert_eq!(lengths, [0.1, 0.3, 0.0, 0.2]);
/// assert_eq!(sorted.unsort("lengths", &lengths)?, [0.0, 0.1, 0.2, 0.3]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SortedEdges {
    nodes: u32,
    edges: Vec<[u32; 2]>,
    starts: Vec<u32>,
    order: Vec<u32>,
}

/// Largest number of nodes of [`SortedEdges`].
pub const MAX_GRAPH_NODES: u32 = 1 << 28;

const EDGES: &str = "sorted_edges";

impl SortedEdges {
    /// Sorts `[source, destination]` of every edge by destination. Edges to one node stay in the
    /// order that they are given in, so that sums over them are the same every time. Takes time and
    /// memory in proportion to nodes and edges.
    ///
    /// # Errors
    /// [`Error::Value`] for an edge that names an absent node, [`Error::Shape`] for more than
    /// [`MAX_GRAPH_NODES`] nodes or 2^32 edges.
    pub fn new(nodes: u32, edges: &[[u32; 2]]) -> Result<Self> {
        if nodes > MAX_GRAPH_NODES {
            return Err(Error::shape(EDGES, "nodes", format!("at most {MAX_GRAPH_NODES}"), nodes));
        }
        if u32::try_from(edges.len()).is_err() {
            return Err(Error::shape(EDGES, "edges", "fewer than 2^32", edges.len()));
        }
        check_nodes(EDGES, nodes, edges)?;
        let starts = starts(nodes, edges);
        let mut next = starts.clone();
        let mut order = vec![0; edges.len()];
        for (e, [_, destination]) in (0u32..).zip(edges) {
            let place = &mut next[*destination as usize];
            order[*place as usize] = e;
            *place += 1;
        }
        let sorted = order.iter().map(|e| edges[*e as usize]).collect();
        Ok(Self { nodes, edges: sorted, starts, order })
    }

    /// For [`GauntConvolution::plan`].
    pub fn graph(&self) -> Graph<'_> {
        Graph { nodes: self.nodes, edges: &self.edges }
    }

    /// `[source, destination]` of every edge, sorted.
    pub fn edges(&self) -> &[[u32; 2]] {
        &self.edges
    }

    /// Of every sorted edge, its place in the list that was given.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// The first sorted edge to every node, and one past the last: those to node `n` are
    /// `starts[n]..starts[n + 1]`.
    pub fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Elements for each edge, `[edges, ..]` row-major, from the given order to the sorted.
    /// `what` names them in a message.
    ///
    /// # Errors
    /// [`Error::Shape`] for a number of elements that is no multiple of the number of edges.
    pub fn sort<T: Clone>(&self, what: &'static str, rows: &[T]) -> Result<Vec<T>> {
        let n = self.row(what, rows.len())?;
        Ok(self.order.iter().flat_map(|e| &rows[*e as usize * n..][..n]).cloned().collect())
    }

    /// The way back: elements for each edge from the sorted order to the given.
    ///
    /// # Errors
    /// As [`SortedEdges::sort`].
    pub fn unsort<T: Clone>(&self, what: &'static str, rows: &[T]) -> Result<Vec<T>> {
        let n = self.row(what, rows.len())?;
        let mut place = vec![0; self.order.len()];
        for (at, e) in self.order.iter().enumerate() {
            place[*e as usize] = at;
        }
        Ok(place.iter().flat_map(|at| &rows[at * n..][..n]).cloned().collect())
    }

    /// Elements of one edge.
    fn row(&self, what: &'static str, len: usize) -> Result<usize> {
        let edges = self.order.len();
        if len.checked_rem(edges).unwrap_or(len) != 0 {
            return Err(Error::shape(EDGES, what, format!("a multiple of {edges} edges"), len));
        }
        Ok(len.checked_div(edges).unwrap_or(0))
    }
}

/// Refuses edges that name absent nodes.
fn check_nodes(op: &'static str, nodes: u32, edges: &[[u32; 2]]) -> Result<()> {
    for (e, [source, destination]) in edges.iter().enumerate() {
        for (what, node) in [("edges: source", source), ("edges: destination", destination)] {
            if *node >= nodes {
                let expected = format!("a node below {nodes}");
                return Err(Error::value(op, what, expected, format!("{node} in edge {e}")));
            }
        }
    }
    Ok(())
}

/// The first edge to every node, and one past the last, when sorted by destination.
fn starts(nodes: u32, edges: &[[u32; 2]]) -> Vec<u32> {
    let mut starts = vec![0u32; nodes as usize + 1];
    for [_, destination] in edges {
        starts[*destination as usize + 1] += 1;
    }
    for node in 1..starts.len() {
        starts[node] += starts[node - 1];
    }
    starts
}

/// A checked and compiled convolution.
#[derive(Debug)]
pub struct GauntConvolutionPlan {
    options: GauntConvolution,
    nodes: Option<u32>,
    edges: u32,
    channels: u32,
    harmonics: SphericalHarmonicsPlan,
    product: Product,
    /// Source of every edge, and the first edge of every node and one past the last.
    graph: Option<[wgpu::Buffer; 2]>,
    /// The device it was planned on.
    home: Arc<Home>,
}

// Must match `Params` in shaders/gaunt/segment_sum.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SumParams {
    src: [u32; 4],
    dst: [u32; 4],
    count: u32,
    n: u32,
    channels: u32,
    pad: u32,
}

impl GauntConvolution {
    /// Checks the graph, compiles. The plan holds the graph; vectors, filters and features may
    /// change between calls.
    ///
    /// # Errors
    /// [`Error::Value`] for an edge that names an absent node or is out of order, [`Error::Shape`]
    /// for a degree out of range, [`Error::Limit`], [`Error::Compile`], [`Error::DeviceLost`].
    pub fn plan(
        &self,
        ctx: &Context,
        graph: Graph<'_>,
        channels: u32,
    ) -> Result<GauntConvolutionPlan> {
        let (need, limit) = (4 * (u64::from(graph.nodes) + 1), ctx.caps.binding_size);
        if need > limit {
            return Err(Error::Limit { op: OP, what: "bytes for the nodes' edges", need, limit });
        }
        check_nodes(OP, graph.nodes, graph.edges)?;
        if let Some(e) = (1..graph.edges.len()).find(|e| graph.edges[*e][1] < graph.edges[e - 1][1])
        {
            let [before, after] = [graph.edges[e - 1][1], graph.edges[e][1]];
            return Err(Error::value(
                OP,
                "edges: destination",
                "an order that does not decrease (SortedEdges sorts)",
                format!("{after} in edge {e} after {before}"),
            ));
        }
        let starts = starts(graph.nodes, graph.edges);
        let busiest = starts.windows(2).map(|s| s[1] - s[0]).max().unwrap_or(0);
        if u64::from(busiest) > ctx.caps.loop_trips {
            return Err(Error::Limit {
                op: OP,
                what: "edges into one node on this driver",
                need: busiest.into(),
                limit: ctx.caps.loop_trips,
            });
        }
        let sources: Vec<u32> = graph.edges.iter().map(|e| e[0]).collect();
        let buffers = [
            ctx.table(OP, bytemuck::cast_slice(&sources))?,
            ctx.table(OP, bytemuck::cast_slice(&starts))?,
        ];
        let edges = u32::try_from(graph.edges.len())
            .map_err(|_| Error::shape(OP, "edges", "fewer than 2^32", graph.edges.len()))?;
        let mut plan = self.plan_messages(ctx, edges, channels)?;
        plan.nodes = Some(graph.nodes);
        plan.graph = Some(buffers);
        ctx.kernel(plan.sum_key())?;
        Ok(plan)
    }

    /// A convolution without a graph: features are given, and messages kept, edge by edge.
    ///
    /// # Errors
    /// As [`GauntConvolution::plan`].
    pub fn plan_messages(
        &self,
        ctx: &Context,
        edges: u32,
        channels: u32,
    ) -> Result<GauntConvolutionPlan> {
        check_degree(OP, "lmax1", self.lmax1, MAX_LMAX)?;
        check_degree(OP, "lmax2", self.lmax2, MAX_SH_LMAX)?;
        check_degree(OP, "lmax_out", self.lmax_out, 2 * MAX_LMAX)?;
        let algorithm = self
            .algorithm
            .unwrap_or_else(|| product::select(&ctx.caps, self.lmax1, self.lmax2, self.lmax_out));
        let program = Program {
            sampling: algorithm.sampling(),
            lmax: vec![self.lmax1, self.lmax2],
            combine: Combine::Powers(vec![1, 1]),
            lmax_out: self.lmax_out,
            scale: self.normalization.factor().to_bits(),
        };
        let rows = u64::from(edges) * u64::from(channels);
        let harmonics = SphericalHarmonics {
            lmax: self.lmax2,
            normalization: ShNormalization::Integral,
            dtype: DType::F32,
        };
        Ok(GauntConvolutionPlan {
            options: *self,
            nodes: None,
            edges,
            channels,
            harmonics: harmonics.plan(ctx, edges)?,
            product: Product::new(ctx, OP, program, self.dtype, rows)?,
            graph: None,
            home: Arc::clone(ctx.home()),
        })
    }
}

impl GauntConvolutionPlan {
    /// The options.
    pub fn options(&self) -> GauntConvolution {
        self.options
    }

    /// Bytes of scratch that [`GauntConvolutionArgs::scratch`] must have.
    pub fn scratch_bytes(&self) -> u64 {
        self.product.scratch_bytes()
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

    /// The text of each kernel, for contiguous views.
    pub fn wgsl(&self) -> Vec<String> {
        let mut all = vec![self.harmonics.wgsl()];
        all.extend(self.product.wgsl());
        all.push(self.sum_key().wgsl());
        all
    }

    fn sum_key(&self) -> Key {
        let decl = Some(TensorDecl::new(self.options.dtype, false));
        Key {
            source: SUM,
            entry: "segment_sum",
            spec: vec![("WORKGROUP", format!("{WORKGROUP}u"))],
            tensors: vec![("src", decl), ("dst", decl)],
        }
    }

    /// Records the kernels into the caller's encoder, in a compute pass of their own; submits
    /// nothing.
    ///
    /// # Errors
    /// As [`GauntConvolutionPlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &GauntConvolutionArgs<'_>,
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
    /// # Errors
    /// As [`GauntPlan::encode_pass`](super::GauntPlan::encode_pass).
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        args: &GauntConvolutionArgs<'_>,
    ) -> Result<()> {
        ctx.expect_plan(OP, Some(&self.home))?;
        let o = &self.options;
        let (edges, channels) = (self.edges, self.channels);
        let dim = |l: u32| (l + 1).pow(2);
        args.x.expect(OP, "x", [self.nodes.unwrap_or(edges), channels, dim(o.lmax1)], o.dtype)?;
        args.filter.expect(OP, "filter", [edges, channels, o.lmax2 + 1], DType::F32)?;
        args.r.expect(OP, "r", [edges, 3], DType::F32)?;
        args.y.expect_output(OP, "y", [edges, dim(o.lmax2)], DType::F32)?;
        args.messages.expect_output(OP, "messages", [edges, channels, dim(o.lmax_out)], o.dtype)?;
        let mut outputs = vec![("messages", args.messages.buffer), ("y", args.y.buffer)];
        match (self.nodes, &args.out) {
            (Some(nodes), Some(out)) => {
                out.expect_output(OP, "out", [nodes, channels, dim(o.lmax_out)], o.dtype)?;
                outputs.push(("out", out.buffer));
            }
            (Some(nodes), None) => {
                return Err(Error::argument(
                    OP,
                    "out",
                    format!("the graph has {nodes} nodes; sums are needed"),
                ));
            }
            (None, Some(_)) => {
                return Err(Error::argument(OP, "out", "the plan has no graph to sum over"));
            }
            (None, None) => {}
        }
        if self.scratch_bytes() > 0 {
            let scratch = product::check_scratch(OP, self.scratch_bytes(), args.scratch)?;
            outputs.push(("scratch", scratch));
        }
        let inputs = [("x", args.x.buffer), ("r", args.r.buffer), ("filter", args.filter.buffer)];
        distinct_outputs(ctx, OP, &outputs, &inputs)?;

        self.harmonics.encode_pass(
            ctx,
            pass,
            &SphericalHarmonicsArgs { r: args.r, y: args.y, weight: None },
        )?;
        // one row of harmonics for all channels of an edge
        let shared = Layout {
            shape: [edges, channels, dim(o.lmax2)],
            strides: [args.y.layout.strides[0], 0, 1],
            offset: args.y.layout.offset,
        };
        let y = TensorView { buffer: args.y.buffer, layout: shared, dtype: DType::F32 };
        let gather = self.graph.as_ref().map(|g| &g[0]);
        let operands = [
            Operand { name: "x", view: args.x, weight: None, gather },
            Operand { name: "y", view: y, weight: Some(("filter", args.filter)), gather: None },
        ];
        self.product.encode_pass(
            ctx,
            pass,
            [edges, channels],
            &operands,
            &args.messages,
            None,
            args.scratch,
        )?;
        match (&self.graph, &args.out) {
            (Some([_, starts]), Some(out)) => self.sum(ctx, pass, starts, &args.messages, out),
            _ => Ok(()),
        }
    }

    fn sum(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        starts: &wgpu::Buffer,
        messages: &TensorView<'_, 3>,
        out: &TensorView<'_, 3>,
    ) -> Result<()> {
        let [nodes, channels, n] = out.layout.shape;
        let count = u64::from(nodes) * u64::from(channels) * u64::from(n);
        if count == 0 {
            return Ok(());
        }
        let (src, dst) =
            (messages.bind(OP, "messages", &ctx.caps)?, out.bind(OP, "out", &ctx.caps)?);
        let place = |view: &TensorView<'_, 3>, offset: u32| {
            let [b, c, _] = view.strides_u32();
            [b, c, offset, 0]
        };
        let params = SumParams {
            src: place(messages, src.offset),
            dst: place(out, dst.offset),
            count: u32::try_from(count).map_err(|_| Error::Limit {
                op: OP,
                what: "elements of out",
                need: count,
                limit: u32::MAX.into(),
            })?,
            n,
            channels,
            pad: 0,
        };
        let kernel = ctx.kernel(self.sum_key())?;
        let resources =
            [Resource::Buffer(starts.as_entire_buffer_binding()), src.resource, dst.resource];
        let groups = fold(OP, count.div_ceil(WORKGROUP.into()), &ctx.caps)?;
        dispatch(ctx, pass, OP, &kernel, bytemuck::bytes_of(&params), &resources, groups)
    }
}
