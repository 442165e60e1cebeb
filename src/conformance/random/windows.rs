//! Neighborhood attention, and the window operators of vision models that it expresses.

use super::{Class, Problem};
use crate::neighborhood::{Border, NeighborhoodAttention, NeighborhoodShape, RelativeBias};
use crate::reference::{self, NeighborhoodInputs};

pub(super) fn natten<const D: usize>(p: &mut Problem) {
    let most = [90, 14, 7][D - 1];
    let kernel_most = [16, 7, 4][D - 1];
    let mut op = NeighborhoodAttention::<D>::new([1; D]);
    let mut spatial = [1; D];
    for (axis, extent) in spatial.iter_mut().enumerate() {
        let kernel = p.rng.range(1, kernel_most);
        let dilation = p.rng.range(1, 2);
        // each dilation group holds a window
        *extent = p.rng.range(kernel * dilation, (kernel * dilation).max(most));
        op.kernel_size[axis] = kernel;
        op.dilation[axis] = dilation;
        op.stride[axis] = if p.rng.chance(60) { 1 } else { p.rng.range(1, kernel) };
        op.is_causal[axis] = p.rng.chance(25);
    }
    let heads_kv = p.rng.range(1, 2);
    let dim = p.rng.pick(&[7, 8, 16, 30, 32, 64]);
    let s = NeighborhoodShape {
        batch: p.rng.range(1, 2),
        spatial,
        heads: heads_kv * p.rng.range(1, 2),
        heads_kv,
        head_dim: dim,
        head_dim_v: dim,
        extra_tokens: if p.rng.chance(20) { p.rng.range(1, 9) } else { 0 },
    };
    p.param("kernel_size", op.kernel_size.to_vec());
    p.param("stride", op.stride.to_vec());
    p.param("dilation", op.dilation.to_vec());
    p.param("is_causal", op.is_causal.to_vec());
    op.scale = Some(p.scale(dim));
    let shape = |heads: u32, last: &[u32]| {
        let mut shape = vec![s.batch];
        shape.extend(spatial);
        shape.push(heads);
        shape.extend(last);
        shape
    };
    let q = p.normal("in.q", &shape(s.heads, &[dim]));
    let k = p.normal("in.k", &shape(heads_kv, &[dim]));
    let v = p.normal("in.v", &shape(heads_kv, &[dim]));
    let (mut extra_k, mut extra_v) = (Vec::new(), Vec::new());
    if s.extra_tokens > 0 {
        let shape = [s.batch, s.extra_tokens, heads_kv, dim];
        (extra_k, extra_v) = (p.normal("in.extra_k", &shape), p.normal("in.extra_v", &shape));
    }
    let inputs =
        NeighborhoodInputs { q: &q, k: &k, v: &v, extra_k: &extra_k, extra_v: &extra_v, bias: &[] };
    let (o, lse) = reference::neighborhood_attention(&op, &s, &inputs);
    p.output("out.o", &shape(s.heads, &[dim]), &o, Class::Plain);
    p.output("out.lse", &shape(s.heads, &[]), &lse, Class::Plain);
}

/// Maps `[batch, .., (heads d)]` of a window operator.
struct Maps<const D: usize> {
    shape: NeighborhoodShape<D>,
    /// Axes in the case, where the heads are joined.
    axes: Vec<u32>,
    scale: f32,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl<const D: usize> Maps<D> {
    fn new(p: &mut Problem, spatial: [u32; D]) -> Self {
        let [batch, heads] = [p.batch(2), p.rng.range(1, 3)];
        let d = p.rng.pick(&[1, 3, 8, 12, 16, 24, 32, 40]);
        p.param("heads", heads);
        p.param("d", d);
        let scale = p.scale(d);
        let axes: Vec<u32> = [batch].into_iter().chain(spatial).chain([heads * d]).collect();
        let (q, k) = (p.normal("in.q", &axes), p.normal("in.k", &axes));
        let unit = p.unit();
        let v = p.input("in.v", &axes, unit, [-96, 96]);
        let shape = NeighborhoodShape {
            batch,
            spatial,
            heads,
            heads_kv: heads,
            head_dim: d,
            head_dim_v: d,
            extra_tokens: 0,
        };
        Self { shape, axes, scale, q, k, v }
    }

    fn attended(&self, op: NeighborhoodAttention<D>, bias: &[f64]) -> Vec<f64> {
        let op = NeighborhoodAttention { scale: Some(self.scale), ..op };
        let inputs =
            NeighborhoodInputs { q: &self.q, k: &self.k, v: &self.v, bias, ..Default::default() };
        reference::neighborhood_attention(&op, &self.shape, &inputs).0
    }
}

/// MaxViT's attention in `part` by `part` windows, or over as many tokens spread over the map.
pub(super) fn maxvit(p: &mut Problem, grid: bool) {
    // windows of one token, maps of one window, and maps without tokens among them
    let part: [u32; 2] = std::array::from_fn(|_| p.rng.range(1, 7));
    let spatial = part.map(|n| n * p.rng.range(1, 4));
    p.param("window", part.to_vec());
    let maps = Maps::new(p, spatial);
    let biased = p.rng.chance(50);
    let mut op = NeighborhoodAttention::new(part);
    op.stride = part;
    if grid {
        op.dilation = std::array::from_fn(|a| spatial[a] / part[a]);
    }
    let mut bias = Vec::new();
    if biased {
        op.bias = RelativeBias::Table;
        let heads = maps.shape.heads as usize;
        let rows = part.iter().map(|n| 2 * n - 1).product();
        let table = p.input("in.rel_table", &[rows, maps.shape.heads], 1.0 / 64.0, [-128, 128]);
        // the table's rows count query minus key, those of the reference key minus query
        for head in 0..heads {
            bias.extend(table.chunks(heads).rev().map(|row| row[head]));
        }
    }
    p.output("out.o", &maps.axes, &maps.attended(op, &bias), Class::Plain);
}

/// Blocks that see a frame of tokens around them, as far as the map goes.
pub(super) fn halo(p: &mut Problem) {
    let [block, halo] = [p.rng.range(1, 6), p.rng.range(0, 4)];
    let spatial = [block * p.rng.range(1, 4), block * p.rng.range(1, 4)];
    p.param("block", block);
    p.param("halo", halo);
    let maps = Maps::new(p, spatial);
    let side = block + 2 * halo;
    let mut op = NeighborhoodAttention::new([side; 2]);
    op.stride = [block; 2];
    op.border = Border::Masked;
    let mut bias = Vec::new();
    if p.rng.chance(50) {
        op.bias = RelativeBias::Factorised { scaled: true };
        let [rows, d] = [2 * side - 1, maps.shape.head_dim];
        for name in ["in.rel_h", "in.rel_w"] {
            let table = p.input(name, &[rows, d], 1.0 / 64.0, [-64, 64]);
            // the case counts a key from the window's edge and a query from its block's: what the
            // reference calls offset `o` is `o + halo` here, and the first `halo` rows are unused
            bias.extend(&table[(halo * d) as usize..]);
            bias.extend(std::iter::repeat_n(0.0, (halo * d) as usize));
        }
    }
    p.output("out.o", &maps.axes, &maps.attended(op, &bias), Class::Plain);
}

/// Attention along each axis alone, summed.
pub(super) fn axial(p: &mut Problem) {
    match p.rng.range(1, 3) {
        1 => axial_on::<1>(p, 150),
        2 => axial_on::<2>(p, 24),
        _ => axial_on::<3>(p, 9),
    }
}

fn axial_on<const D: usize>(p: &mut Problem, most: u32) {
    let spatial: [u32; D] = std::array::from_fn(|_| p.rng.length(most).min(most));
    p.param("shape", spatial.to_vec());
    let maps = Maps::new(p, spatial);
    let mut sum = vec![0.0; maps.q.len()];
    for axis in 0..D {
        let mut kernel = [1; D];
        kernel[axis] = spatial[axis];
        let part = maps.attended(NeighborhoodAttention::new(kernel), &[]);
        sum.iter_mut().zip(part).for_each(|(s, x)| *s += x);
    }
    p.output("out.o", &maps.axes, &sum, Class::Plain);
}
