//! Neighborhood attention in one, two or three dimensions, with NATTEN's exact meaning.

mod plan;
mod simulate;
mod window;

pub use plan::{MapView, NeighborhoodArgs, NeighborhoodPlan};
pub use simulate::{
    Candidate, KernelCost, NeighborhoodTiles, Simulation, StrideChoice, recommended_stride,
};
pub(crate) use window::Axis;

use crate::{DType, Error, Result};

const OP: &str = "neighborhood attention";

/// What a query near the edge of the map sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Border {
    /// The window is shifted inward until it fits: every query has all its keys. NATTEN's rule.
    #[default]
    Shift,
    /// The window stays and its keys off the map are left out, as under a mask.
    Masked,
    /// The window stays and its keys off the map are zeros that take part: their score is the
    /// relative bias alone and their value zero. HaloNet's zero padding without a mask.
    Zeros,
}

/// A bias added to the scores, looked up by the offset of the key from the query.
///
/// On each axis the offset counts steps of the dilation and runs from `-(kernel_size - 1)` to
/// `kernel_size - 1`; entry `offset + kernel_size - 1` of a table belongs to it. Extra tokens have
/// no bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RelativeBias {
    /// None.
    #[default]
    None,
    /// One number for each head and offset: `[heads, product over the axes of 2 * kernel_size - 1]`,
    /// the last axis fastest (Swin, MaxViT, early NATTEN).
    Table,
    /// The query's dot products with a row of each axis' own table, the same for all heads, summed
    /// over the axes (HaloNet). The tables `[2 * kernel_size - 1, head_dim]` follow each other in
    /// one tensor, axis 0 first.
    Factorised {
        /// Whether the products are multiplied by the scale of the scores.
        scaled: bool,
    },
}

/// Options of neighborhood attention on `D` = 1, 2 or 3 axes.
///
/// Each query attends to a box of keys around it: the product over the axes of one interval each.
/// On an axis, tokens first split into `dilation` groups by their remainder; all that follows
/// happens inside the query's group of `L` tokens. Queries `p` of one stride group
/// (`p / stride` the same) share the window of their leader `min(p / stride * stride + stride / 2,
/// L - 1)`: `kernel_size` keys from `leader - kernel_size / 2` on, so that an even window has one
/// more key on the left, shifted inward at the borders. On a causal axis the leader is the last of
/// the stride group and the query sees those of the leader's last `kernel_size` keys that are not
/// after itself.
///
/// A key reaches the queries that see it and no others, NaN and infinities too, but for maps whose
/// windows are so large that Mesa's llvmpipe before release 25 has no loop trips left to form sums anew
/// ([`Caps::loop_trips`](crate::Caps::loop_trips)): there a query close by may have NaN as well. Scores
/// with their bias beyond 2e38 either way count as that. Values may be up to 1e37 in size; below 1e-24 a
/// driver that takes denormal numbers for 0 loses what weighs little.
///
/// Special cases: `stride = kernel_size` is window attention ([`block`](Self::block)); kernel 1 on
/// an axis attends along the other axes alone (axial attention); a kernel as long as every axis is
/// ordinary attention, and is computed as such.
///
/// ```
/// use tilewise::neighborhood::NeighborhoodAttention;
/// let op = NeighborhoodAttention { dilation: [2, 2], ..NeighborhoodAttention::new([7, 7]) };
/// assert_eq!(op.stride, [1, 1]);
/// ```
///
/// Source: Hassani et al. 2024, arXiv:2403.04690; stride from Hassani et al. 2025,
/// arXiv:2504.16922.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NeighborhoodAttention<const D: usize> {
    /// Keys in a window along each axis, `1..=extent / dilation`; without an upper limit where the
    /// border is not [`Border::Shift`] and the axis not causal, or with
    /// [`shrink_to_fit`](Self::shrink_to_fit).
    pub kernel_size: [u32; D],
    /// Queries in a row that share one window, `1..=kernel_size`.
    pub stride: [u32; D],
    /// Distance between neighbours, `1..=extent`; at least 1 with
    /// [`shrink_to_fit`](Self::shrink_to_fit).
    pub dilation: [u32; D],
    /// Whether a window too large for the map shrinks to what fits, each axis for itself, instead of
    /// being refused: networks with one window for all their stages, as DiNAT, meet such maps.
    ///
    /// On an axis of `n` tokens, if the border is [`Border::Shift`] or the axis causal,
    /// `kernel_size` becomes the lesser of itself and `n / dilation` rounded down, the shortest
    /// dilation group, or 1 where that is 0; `stride` becomes the lesser of itself and the new
    /// `kernel_size`. With any border, `dilation` becomes the lesser of itself and `n`: beyond, every
    /// token is alone in its group. All else is then as if these had been given: the parity that says
    /// where an even window has its extra key, causal axes. [`fitted`](Self::fitted) says what runs.
    /// Windows that fit are left alone.
    ///
    /// A relative bias keeps its tables for the given `kernel_size`, and they are looked up by the
    /// offset from their middle: one set of weights serves maps of every size.
    ///
    /// ```
    /// use tilewise::neighborhood::{NeighborhoodAttention, RelativeBias};
    /// let op = NeighborhoodAttention {
    ///     dilation: [1, 4],
    ///     bias: RelativeBias::Table,
    ///     shrink_to_fit: true,
    ///     ..NeighborhoodAttention::new([7, 7])
    /// };
    /// // 5 of 7 rows fit; of columns, 3 with 4 tokens between neighbours
    /// let runs = op.fitted([5, 14]);
    /// assert_eq!((runs.kernel_size, runs.dilation), ([5, 3], [1, 4]));
    /// // the tables have 13 by 13 entries for each head all the same
    /// assert_eq!(op.bias_shape(&Default::default()), Some([1, 169]));
    /// ```
    pub shrink_to_fit: bool,
    /// Whether a query sees only keys up to itself on the axis.
    pub is_causal: [bool; D],
    /// Factor of the scores; `None` for `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// What queries near the edge see. A causal axis is the same with [`Border::Shift`] and
    /// [`Border::Masked`], and refused with [`Border::Zeros`].
    pub border: Border,
    /// Bias by relative position.
    pub bias: RelativeBias,
    /// Element type of `q`, `k`, `v`, `o` and the extra tokens. Sums are f32 whatever it is; `lse`
    /// and the bias are always f32.
    pub dtype: DType,
    /// Fused, or the plain baseline.
    pub algorithm: Algorithm,
    /// How to cut the work, instead of the planner's choice.
    pub tiles: Option<NeighborhoodTiles<D>>,
}

/// How neighborhood attention is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Tiles of queries share the keys around them; online softmax, no scores in memory. A window
    /// as large as the map goes to [`Attention`](crate::attention::Attention).
    #[default]
    Fused,
    /// One invocation for each query gathers its window. The baseline of the benchmarks and a
    /// second opinion in tests.
    Naive,
}

/// Sizes of a problem; no data.
///
/// `q` and `o` are `[batch, *spatial, heads, head_dim]`, `k` `[batch, *spatial, heads_kv,
/// head_dim]`, `v` the same with `head_dim_v`, as `o`. Query head `h` reads key head
/// `h / (heads / heads_kv)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighborhoodShape<const D: usize> {
    /// Independent maps.
    pub batch: u32,
    /// Tokens along each axis.
    pub spatial: [u32; D],
    /// Query heads, a multiple of `heads_kv`.
    pub heads: u32,
    /// Key and value heads.
    pub heads_kv: u32,
    /// Length of a query and of a key.
    pub head_dim: u32,
    /// Length of a value and of an output.
    pub head_dim_v: u32,
    /// Extra keys and values, `[batch, extra_tokens, heads_kv, ..]`, that every query sees.
    pub extra_tokens: u32,
}

impl<const D: usize> Default for NeighborhoodShape<D> {
    /// One map of one token and one head, 64 wide: for `..Default::default()`.
    fn default() -> Self {
        Self {
            batch: 1,
            spatial: [1; D],
            heads: 1,
            heads_kv: 1,
            head_dim: 64,
            head_dim_v: 64,
            extra_tokens: 0,
        }
    }
}

impl<const D: usize> NeighborhoodShape<D> {
    /// Tokens of one map.
    pub fn tokens(&self) -> u64 {
        self.spatial.iter().fold(1, |n, &d| n.saturating_mul(d.into()))
    }
}

/// Names of the options along each axis, for messages.
const KERNEL_SIZE: [&str; 3] = ["kernel_size[0]", "kernel_size[1]", "kernel_size[2]"];
const STRIDE: [&str; 3] = ["stride[0]", "stride[1]", "stride[2]"];
const DILATION: [&str; 3] = ["dilation[0]", "dilation[1]", "dilation[2]"];
const IS_CAUSAL: [&str; 3] = ["is_causal[0]", "is_causal[1]", "is_causal[2]"];
const SPATIAL: [&str; 3] = ["spatial[0]", "spatial[1]", "spatial[2]"];

impl<const D: usize> NeighborhoodAttention<D> {
    /// Windows of `kernel_size` keys around every query: stride and dilation 1, not causal.
    pub fn new(kernel_size: [u32; D]) -> Self {
        Self {
            kernel_size,
            stride: [1; D],
            dilation: [1; D],
            shrink_to_fit: false,
            is_causal: [false; D],
            scale: None,
            border: Border::Shift,
            bias: RelativeBias::None,
            dtype: DType::F32,
            algorithm: Algorithm::Fused,
            tiles: None,
        }
    }

    /// The windows that run on a map of this size: with [`shrink_to_fit`](Self::shrink_to_fit) those
    /// that fit, and that option off; else the same. Its tables of a relative bias would be smaller:
    /// [`bias_shape`](Self::bias_shape) is for `self`.
    pub fn fitted(&self, spatial: [u32; D]) -> Self {
        let mut op = Self { shrink_to_fit: false, ..*self };
        if !self.shrink_to_fit {
            return op;
        }
        for (a, &tokens) in spatial.iter().enumerate() {
            op.dilation[a] = self.dilation[a].min(tokens).max(1);
            if self.fits(a) {
                let group = tokens / op.dilation[a];
                op.kernel_size[a] = self.kernel_size[a].min(group.max(1));
            }
            op.stride[a] = self.stride[a].min(op.kernel_size[a]);
        }
        op
    }

    /// Whether windows along an axis must lie on the map.
    fn fits(&self, axis: usize) -> bool {
        self.border == Border::Shift || self.is_causal[axis]
    }

    /// Shape of the bias tensor: `[heads, offsets]` of a table, `[rows, head_dim]` of factors.
    pub fn bias_shape(&self, shape: &NeighborhoodShape<D>) -> Option<[u32; 2]> {
        let spans = self.kernel_size.map(|k| k.saturating_mul(2).saturating_sub(1));
        match self.bias {
            RelativeBias::None => None,
            RelativeBias::Table => {
                Some([shape.heads, spans.iter().fold(1, |n, &span| n.saturating_mul(span))])
            }
            RelativeBias::Factorised { .. } => {
                Some([spans.iter().fold(0, |n, &span| n.saturating_add(span)), shape.head_dim])
            }
        }
    }

    /// Block (window) attention: the map is cut into blocks of `window` tokens, and each attends
    /// within itself. Swin's unshifted windows, MaxViT's block attention, DaViT's windows.
    ///
    /// # Errors
    /// [`Error::Value`] if an extent of the map is not a multiple of the window.
    pub fn block(spatial: [u32; D], window: [u32; D]) -> Result<Self> {
        divides("window", spatial, window)?;
        Ok(Self { stride: window, ..Self::new(window) })
    }

    /// Grid attention: `grid` tokens along each axis, spread evenly over the whole map, attend to
    /// each other. MaxViT's grid attention. A relative bias counts in steps of the grid.
    ///
    /// # Errors
    /// [`Error::Value`] if an extent of the map is not a multiple of the grid.
    pub fn grid(spatial: [u32; D], grid: [u32; D]) -> Result<Self> {
        divides("grid", spatial, grid)?;
        // all queries of a group share its one window, which the stride says to the planner
        Ok(Self {
            stride: grid,
            dilation: std::array::from_fn(|a| spatial[a] / grid[a]),
            ..Self::new(grid)
        })
    }

    /// Halo attention: the map is cut into blocks, and all queries of a block see the block and
    /// `halo` tokens around it. `border` says what lies off the map: HaloNet pads with zeros and
    /// masks nothing ([`Border::Zeros`]); [`Border::Masked`] leaves the padding out;
    /// [`Border::Shift`] moves the window inward.
    ///
    /// In HaloNet's code a factorised table counts a key's position from the edge of the window
    /// and a query's from the edge of its block: its entry for an offset is `halo` rows after the
    /// entry of [`RelativeBias::Factorised`].
    ///
    /// Source: Vaswani et al. 2021, arXiv:2103.12731.
    ///
    /// # Errors
    /// [`Error::Value`] if an extent of the map is not a multiple of the block.
    pub fn halo(
        spatial: [u32; D],
        block: [u32; D],
        halo: [u32; D],
        border: Border,
    ) -> Result<Self> {
        divides("block", spatial, block)?;
        let kernel_size =
            std::array::from_fn(|a| halo[a].saturating_mul(2).saturating_add(block[a]));
        Ok(Self { stride: block, border, ..Self::new(kernel_size) })
    }

    /// One axis of a map with `tokens` tokens along it, as the options say: see
    /// [`fitted`](Self::fitted).
    pub(crate) fn axis(&self, axis: usize, tokens: u32) -> Axis {
        Axis {
            tokens,
            kernel_size: self.kernel_size[axis],
            stride: self.stride[axis],
            dilation: self.dilation[axis],
            is_causal: self.is_causal[axis],
            border: self.border,
        }
    }

    /// Whether every query sees every key of the map.
    pub fn is_full(&self, shape: &NeighborhoodShape<D>) -> bool {
        let op = self.fitted(shape.spatial);
        (0..D).all(|a| {
            op.kernel_size[a] == shape.spatial[a]
                && op.dilation[a] == 1
                && !op.is_causal[a]
                && op.border == Border::Shift
        })
    }

    /// Checks options and sizes against each other.
    ///
    /// # Errors
    /// [`Error::Value`] or [`Error::Shape`], naming the axis and its legal range.
    pub fn check(&self, shape: &NeighborhoodShape<D>) -> Result<()> {
        const { assert!(D >= 1 && D <= 3, "neighborhood attention has 1, 2 or 3 axes") };
        self.dtype.expect_float(OP)?;
        let s = shape;
        for a in 0..D {
            let (extent, kernel) = (s.spatial[a], self.kernel_size[a]);
            if extent == 0 {
                return Err(Error::shape(OP, SPATIAL[a], "at least 1", 0));
            }
            // positions are signed 32-bit in the kernels, windows reaching off the map included
            if extent > MAX_EXTENT {
                return Err(Error::shape(OP, SPATIAL[a], format!("at most {MAX_EXTENT}"), extent));
            }
            let (dilation, shrink) = (self.dilation[a], self.shrink_to_fit);
            if dilation == 0 || dilation > if shrink { MAX_EXTENT } else { extent } {
                let legal = match shrink {
                    true => format!("1..={MAX_EXTENT}"),
                    false => format!("1..={extent}, the extent (or shrink_to_fit)"),
                };
                return Err(Error::value(OP, DILATION[a], legal, dilation));
            }
            let fits = self.fits(a) && !shrink;
            let largest = if fits { extent / dilation } else { MAX_EXTENT };
            if kernel == 0 || kernel > largest {
                let why = if fits {
                    format!(
                        "1..={largest}, the shortest dilation group of {extent} tokens at dilation \
                         {dilation} (or shrink_to_fit)"
                    )
                } else {
                    format!("1..={largest}")
                };
                return Err(Error::value(OP, KERNEL_SIZE[a], why, kernel));
            }
            if self.stride[a] == 0 || self.stride[a] > kernel {
                let legal = format!("1..={kernel}, the kernel size");
                return Err(Error::value(OP, STRIDE[a], legal, self.stride[a]));
            }
            if self.is_causal[a] && self.border == Border::Zeros {
                return Err(Error::value(OP, IS_CAUSAL[a], "false with Border::Zeros", true));
            }
        }
        if let Some(scale) = self.scale.filter(|s| !s.is_finite()) {
            return Err(Error::value(OP, "scale", "a finite number", scale));
        }
        if s.heads_kv == 0 || !s.heads.is_multiple_of(s.heads_kv) || s.heads == 0 {
            let legal = format!("a positive multiple of heads_kv = {}", s.heads_kv);
            return Err(Error::shape(OP, "heads", legal, s.heads));
        }
        for (what, n) in [("head_dim", s.head_dim), ("head_dim_v", s.head_dim_v)] {
            if n == 0 || n > MAX_HEAD_DIM {
                return Err(Error::shape(OP, what, format!("1..={MAX_HEAD_DIM}"), n));
            }
        }
        Ok(())
    }
}

/// Longest axis and largest kernel: sums of two positions stay in `i32`.
const MAX_EXTENT: u32 = 1 << 29;

/// The largest `head_dim` and `head_dim_v`.
pub const MAX_HEAD_DIM: u32 = 256;

fn divides<const D: usize>(what: &'static str, spatial: [u32; D], part: [u32; D]) -> Result<()> {
    for a in 0..D {
        if part[a] == 0 || !spatial[a].is_multiple_of(part[a]) {
            let legal = format!("a divisor of the extent {} on axis {a}", spatial[a]);
            return Err(Error::value(OP, what, legal, part[a]));
        }
    }
    Ok(())
}
