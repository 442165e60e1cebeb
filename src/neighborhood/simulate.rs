//! What a tiling of a neighborhood attention costs, counted exactly and without a device.
//!
//! The fused kernel walks a tile of queries along one axis, the *walk axis* `a`; the other axes
//! are `b` and `c`. The tile's queries, flattened with `a` slowest, fall into groups of one query
//! for each invocation, and an invocation holds the queries of `slots` consecutive groups. Keys
//! are numbered through the box that the tile sees, row of `a` by row, and visited in blocks, in
//! order, until the oldest group has seen its last key; then that group is written out and the
//! next one takes its place. A new group whose window begins before the present key (windows bunch
//! up where they are shifted at a border) takes the walk back to its first key; the groups that
//! were there before skip what they have seen. [`walk`] is that schedule, as the kernel runs it.

use std::collections::{BTreeMap, VecDeque};

use super::{Axis, Border, NeighborhoodAttention, NeighborhoodShape, OP, RelativeBias};
use crate::{Caps, DType, Error, Result};

/// How the fused kernel cuts a problem: chosen by [`NeighborhoodAttention::candidates`], or given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighborhoodTiles<const D: usize> {
    /// Axis along which a workgroup walks.
    pub axis: usize,
    /// Queries of one workgroup along each axis, inside a dilation group.
    pub tile: [u32; D],
    /// Queries that an invocation holds at once.
    pub slots: u32,
    /// Keys visited between two updates of the softmax statistics.
    pub block_k: u32,
    /// Invocations of a workgroup.
    pub lanes: u32,
}

/// What steps of the fused kernel cost, in multiply-adds of one invocation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelCost {
    /// Fetching one element of a key or value row and handing it to the workgroup's invocations.
    pub load: f64,
    /// One score beyond its dot product: mask, exponential, sums.
    pub score: f64,
    /// One element of an accumulator, rescaled once for each block of keys.
    pub rescale: f64,
    /// One block of keys: its loop, its keys' places.
    pub block: f64,
    /// One element of a query that comes and of an output that leaves.
    pub query: f64,
    /// Starting a workgroup.
    pub workgroup: f64,
    /// Compiling one unrolled step of four multiply-adds, as its share of one run: small problems
    /// want small kernels.
    pub compile: f64,
    /// Workgroups that keep the device busy; with fewer, time grows in proportion.
    pub busy: f64,
    /// Vectors of four that an invocation can hold for queries and accumulators.
    pub registers: u32,
    /// The most unrolled steps of four multiply-adds that the compiler can take
    /// ([`Caps::unrolled`]).
    pub unrolled: u32,
}

impl KernelCost {
    /// A model of the device: constants measured on Mesa's CPU driver for CPUs, and guesses that
    /// favour parallelism for GPUs.
    pub fn of(caps: &Caps) -> Self {
        if caps.is_cpu() {
            // without subgroups every invocation fetches every key for itself
            let load = if caps.tier == crate::Tier::Subgroup { 2.0 } else { 12.0 };
            Self {
                load,
                score: 9.0,
                rescale: 1.8,
                block: 55.0,
                query: 49.0,
                workgroup: 2400.0,
                compile: 200.0,
                busy: 16.0,
                registers: 128,
                // beyond, Mesa's compiler takes more than a second and a half
                unrolled: caps.unrolled.min(725),
            }
        } else {
            Self {
                load: 2.0,
                score: 10.0,
                rescale: 1.0,
                block: 10.0,
                query: 4.0,
                workgroup: 500.0,
                compile: 20.0,
                busy: 1024.0,
                registers: 48,
                unrolled: caps.unrolled,
            }
        }
    }
}

/// Exact counts for one problem under one tiling. Scores are counted for all heads and maps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Simulation {
    /// Workgroups dispatched, empty ones at the end of short dilation groups included.
    pub workgroups: u64,
    /// Blocks of `block_k` keys that workgroups visit: the key tiles visited.
    pub key_blocks: u64,
    /// Scores that invocations compute, masked ones included.
    pub computed: u64,
    /// Scores inside a window: those that the result needs.
    pub useful: u64,
    /// Scores of full attention on the same map.
    pub full: u64,
    /// Loop trips of the invocations of the longest workgroup.
    pub trips: u64,
    /// Whether every query of a tile shares one window, so that no score needs a mask.
    pub aligned: bool,
    /// Predicted cost of the whole problem, in multiply-adds of one invocation.
    pub cost: f64,
}

impl Simulation {
    /// Scores computed in vain.
    pub fn wasted(&self) -> u64 {
        self.computed - self.useful
    }

    /// Share of the computed scores that the result needs, 0 to 1.
    pub fn efficiency(&self) -> f64 {
        self.useful as f64 / self.computed as f64
    }

    /// Speed-up over full attention if only useful scores cost anything: the bound set by the
    /// mathematics.
    pub fn speedup_bound(&self) -> f64 {
        self.full as f64 / self.useful as f64
    }

    /// Speed-up over full attention if every computed score costs the same: the bound set by the
    /// tiling.
    pub fn tile_bound(&self) -> f64 {
        self.full as f64 / self.computed as f64
    }
}

/// A tiling and what it costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate<const D: usize> {
    /// The tiling.
    pub tiles: NeighborhoodTiles<D>,
    /// Its counts.
    pub simulation: Simulation,
}

/// The best tiling for one stride.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StrideChoice<const D: usize> {
    /// The stride.
    pub stride: [u32; D],
    /// The cheapest tiling with it.
    pub best: Candidate<D>,
}

/// One axis cut into tiles: how long the groups are and where tiles begin. The walk axis comes
/// first, then the others in order; a problem of fewer axes has axes of one token at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) axis: Axis,
    pub(super) tile: u32,
}

impl Cut {
    /// Tiles in the longest group: every group is dispatched as many.
    pub(super) fn tiles(&self) -> u32 {
        self.axis.longest().div_ceil(self.tile)
    }

    /// Whether all queries of any tile share one window.
    fn aligned(&self) -> bool {
        let a = &self.axis;
        let one_window = a.tokens.is_multiple_of(a.dilation)
            && a.longest() == a.kernel_size
            && a.border == Border::Shift;
        !a.is_causal && (one_window || self.tile == 1 || a.stride.is_multiple_of(self.tile))
    }

    /// `(length, number)` of groups of equal length.
    fn lengths(&self) -> impl Iterator<Item = (u32, u64)> {
        let a = self.axis;
        let longer = a.tokens % a.dilation;
        [(a.tokens / a.dilation + 1, longer), (a.tokens / a.dilation, a.dilation - longer)]
            .into_iter()
            .filter(|&(length, count)| length > 0 && count > 0)
            .map(|(length, count)| (length, u64::from(count)))
    }

    /// First queries of the tiles of a group, each with the number of tiles that are like it: away
    /// from the ends windows move with their queries, and tiles repeat with the stride.
    fn starts(&self, length: u32) -> Vec<(u32, u64)> {
        let [tile, stride, kernel] =
            [self.tile, self.axis.stride, self.axis.kernel_size].map(u64::from);
        let total = u64::from(length).div_ceil(tile);
        let edge = (kernel + 2 * stride).div_ceil(tile) + 1;
        let middle = total.saturating_sub(2 * edge);
        let mut common = (tile, stride);
        while common.1 > 0 {
            common = (common.1, common.0 % common.1);
        }
        let period = stride / common.0;
        let first = |i: u64| u32::try_from(i * tile).unwrap_or(u32::MAX);
        if middle <= period {
            return (0..total).map(|i| (first(i), 1)).collect();
        }
        let ends = (0..edge).chain(total - edge..total).map(|i| (first(i), 1));
        let like = |i: u64| (first(edge + i), (middle - i).div_ceil(period));
        ends.chain((0..period).map(like)).collect()
    }

    /// Number of keys that a tile sees along this axis, with the number of such tiles.
    fn spans(&self) -> BTreeMap<u64, u64> {
        let mut spans = BTreeMap::new();
        for (length, count) in self.lengths() {
            for (first, number) in self.starts(length) {
                let last = first.saturating_add(self.tile).min(length) - 1;
                let span =
                    self.axis.window(last, length).end - self.axis.window(first, length).start;
                *spans.entry(span.unsigned_abs()).or_default() += count * number;
            }
        }
        spans
    }

    /// Keys seen by all queries together, each query's counted.
    fn useful(&self) -> u64 {
        let a = &self.axis;
        self.lengths()
            .map(|(length, count)| {
                let keys = |u| a.window(u, length).end - a.window(u, length).start;
                let queries = Cut { axis: *a, tile: 1 }.starts(length);
                count * queries.iter().map(|&(u, n)| keys(u).unsigned_abs() * n).sum::<u64>()
            })
            .sum()
    }
}

impl<const D: usize> NeighborhoodTiles<D> {
    /// The cuts along the walk axis and the two others.
    pub(super) fn cuts(&self, op: &NeighborhoodAttention<D>, spatial: [u32; D]) -> [Cut; 3] {
        let none = Axis {
            tokens: 1,
            kernel_size: 1,
            stride: 1,
            dilation: 1,
            is_causal: false,
            border: Border::Shift,
        };
        let mut cuts = [Cut { axis: none, tile: 1 }; 3];
        for (cut, a) in cuts.iter_mut().zip(self.order()) {
            *cut = Cut { axis: op.axis(a, spatial[a]), tile: self.tile[a] };
        }
        cuts
    }

    /// Steps of four multiply-adds that the kernel's text has unrolled.
    pub(super) fn unrolled(&self, head_dim: u32, head_dim_v: u32) -> u32 {
        let chunks = head_dim.div_ceil(4).saturating_add(head_dim_v.div_ceil(4));
        chunks.saturating_mul(self.slots).saturating_mul(self.block_k)
    }

    /// Whether the kernel lets several query groups leave between two walks: where they often see
    /// their last keys together. Otherwise a walk is one block at least, which is cheaper than to ask.
    /// Extra tokens are seen in one walk, when all groups are there, and so is a shared window.
    pub(super) fn turns(&self, cuts: &[Cut; 3], extra_tokens: u32) -> bool {
        let [a, b, c] = cuts;
        let rows = u64::from(self.lanes) / (u64::from(b.tile) * u64::from(c.tile)).max(1);
        extra_tokens > 0
            || aligned(cuts)
            || u64::from(a.axis.stride) > rows
            || 2 * u64::from(a.axis.kernel_size) > u64::from(a.axis.longest())
    }

    /// The axes, walk axis first.
    pub(super) fn order(&self) -> impl Iterator<Item = usize> {
        let walk = self.axis;
        std::iter::once(walk).chain((0..D).filter(move |&a| a != walk))
    }

    /// Checks a tiling against a problem.
    ///
    /// # Errors
    /// [`Error::Argument`] saying which rule is broken.
    pub(super) fn check(
        &self,
        op: &NeighborhoodAttention<D>,
        shape: &NeighborhoodShape<D>,
    ) -> Result<()> {
        let fail = |problem: String| Err(Error::argument(OP, "tiles", problem));
        if self.axis >= D {
            return fail(format!("axis {} of {D}", self.axis));
        }
        if self.slots == 0 || self.block_k == 0 || self.lanes == 0 || self.tile.contains(&0) {
            return fail(format!("{self:?} has a zero"));
        }
        let queries = self.tile.iter().fold(1u64, |n, &t| n.saturating_mul(t.into()));
        if queries > 1 << 24 || [self.slots, self.block_k, self.lanes].iter().any(|n| *n > 4096) {
            return fail(format!("{self:?} is larger than any device can run"));
        }
        let [a, b, c] = self.cuts(op, shape.spatial);
        let across = u64::from(b.tile) * u64::from(c.tile);
        if !aligned(&[a, b, c]) && !u64::from(self.lanes).is_multiple_of(across) {
            return fail(format!(
                "{across} queries across the walk axis do not divide {} lanes, and the tile's queries do not share \
                 one window",
                self.lanes
            ));
        }
        let groups = (u64::from(a.tile) * across).div_ceil(u64::from(self.lanes));
        if shape.extra_tokens > 0 && groups > u64::from(self.slots) {
            return fail(format!(
                "with extra tokens a tile is at most slots * lanes = {} queries",
                u64::from(self.slots) * u64::from(self.lanes)
            ));
        }
        Ok(())
    }
}

/// Whether every query of any tile shares one window with the others.
pub(super) fn aligned(cuts: &[Cut; 3]) -> bool {
    cuts.iter().all(Cut::aligned)
}

/// Number of key blocks that one workgroup visits. `groups` are the first key and one past the last
/// key of each query group, in order, in a box with `width` keys to a row of the walk axis; `extra`
/// keys follow the last. With `turns` groups leave until one has keys to see; otherwise each leaves
/// after a walk of at least one block.
fn walk(
    groups: &[(i64, i64)],
    width: i64,
    extra: i64,
    slots: u32,
    block_k: u32,
    turns: bool,
) -> u64 {
    /// One group in flight, uniform over the workgroup. An empty slot is all zeros.
    #[derive(Clone, Copy, Default)]
    struct Slot {
        start: i64,
        /// Keys before this one are seen.
        first: i64,
        done: i64,
    }
    let Some(&(origin, _)) = groups.first() else { return 0 };
    let end = groups.iter().map(|g| g.1).max().unwrap_or(origin);
    let mut held: VecDeque<Slot> = vec![Slot::default(); slots as usize].into();
    let (mut at, mut blocks) = (0i64, 0u64);
    let mut coming = groups.iter();
    for g in 0..groups.len() + slots as usize {
        let oldest = held[0];
        at = at.max(oldest.start);
        let unseen = oldest.first < oldest.done && at < oldest.done;
        if unseen || (!turns && g > 0) {
            let keys = (oldest.done - at).max(1).unsigned_abs();
            let steps = keys.div_ceil(u64::from(block_k));
            blocks += steps;
            at += i64::try_from(steps).unwrap_or(i64::MAX) * i64::from(block_k);
        }
        held.pop_front();
        let next = coming.next().map_or_else(Slot::default, |&(start, stop)| {
            let start = (start - origin) * width;
            let done =
                if extra > 0 { (end - origin) * width + extra } else { (stop - origin) * width };
            Slot { start, first: start, done }
        });
        if next.done > 0 && next.start < at {
            for slot in &mut held {
                slot.first = slot.first.max(at);
            }
            at = next.start;
        }
        held.push_back(next);
    }
    blocks
}

impl<const D: usize> NeighborhoodAttention<D> {
    /// Counts what the fused kernel does for a problem under a tiling. Exact; needs no device.
    ///
    /// # Errors
    /// As [`NeighborhoodAttention::check`], [`Error::Limit`] for more elements than a tensor may have,
    /// and [`Error::Argument`] for a tiling that the problem cannot have.
    pub fn simulate(
        &self,
        shape: &NeighborhoodShape<D>,
        tiles: &NeighborhoodTiles<D>,
        cost: &KernelCost,
    ) -> Result<Simulation> {
        self.check_size(shape)?;
        let op = self.fitted(shape.spatial);
        tiles.check(&op, shape)?;
        Ok(op.count(shape, tiles, cost))
    }

    fn count(
        &self,
        shape: &NeighborhoodShape<D>,
        tiles: &NeighborhoodTiles<D>,
        cost: &KernelCost,
    ) -> Simulation {
        let cuts = tiles.cuts(self, shape.spatial);
        let [a, b, c] = &cuts;
        let across = u64::from(b.tile) * u64::from(c.tile);
        let lanes = u64::from(tiles.lanes);
        let extra = i64::from(shape.extra_tokens);
        let turns = tiles.turns(&cuts, shape.extra_tokens);

        // tiles across the walk axis, by the number of keys in a row of the walk axis
        let mut widths: BTreeMap<u64, u64> = BTreeMap::new();
        for (wb, nb) in b.spans() {
            for (wc, nc) in c.spans() {
                *widths.entry(wb * wc).or_default() += nb * nc;
            }
        }
        let (mut key_blocks, mut groups_walked, mut trips) = (0u64, 0u64, 0u64);
        // groups as seen from their first key, and the blocks that a walk over them takes for each
        // width: most tiles are like the one before them
        let mut walked: (Vec<(i64, i64)>, Vec<u64>) = (Vec::new(), Vec::new());
        for (length, count) in a.lengths() {
            for (first, like) in a.starts(length) {
                let rows = first.saturating_add(a.tile).min(length) - first;
                let queries = u64::from(rows) * across;
                let row = |query: u64| first + u32::try_from(query / across).unwrap_or(u32::MAX);
                let origin = a.axis.window(first, length).start;
                let groups: Vec<(i64, i64)> = (0..queries.div_ceil(lanes))
                    .map(|g| {
                        let last = ((g + 1) * lanes).min(queries) - 1;
                        let start = a.axis.window(row(g * lanes), length).start;
                        (start - origin, a.axis.window(row(last), length).end - origin)
                    })
                    .collect();
                if walked.0 != groups {
                    let blocks = |&width: &u64| {
                        let width = i64::try_from(width).unwrap_or(i64::MAX);
                        walk(&groups, width, extra, tiles.slots, tiles.block_k, turns)
                    };
                    let blocks = widths.keys().map(blocks).collect();
                    walked = (groups, blocks);
                }
                let (groups, blocks) = &walked;
                for (&number, &blocks) in widths.values().zip(blocks) {
                    key_blocks += count * like * number * blocks;
                    // a group may come, be scored and leave in a loop of its own each
                    let turns = 3 * (groups.len() as u64 + u64::from(tiles.slots));
                    trips = trips.max(blocks + turns);
                    groups_walked += count * like * number * groups.len() as u64;
                }
            }
        }

        let problems = u64::from(shape.batch) * u64::from(shape.heads);
        let tokens = shape.tokens();
        let [key_blocks, groups_walked] = [key_blocks, groups_walked].map(|n| n * problems);
        let workgroups = problems
            * cuts
                .iter()
                .map(|c| u64::from(c.tiles()) * u64::from(c.axis.dilation))
                .product::<u64>();
        let keys = key_blocks * u64::from(tiles.block_k);
        let width = f64::from(shape.head_dim + shape.head_dim_v);
        let slots = f64::from(tiles.slots);
        let work = keys as f64 * (cost.load * width + slots * (width + cost.score))
            + key_blocks as f64 * slots * cost.rescale * f64::from(shape.head_dim_v)
            + key_blocks as f64 * cost.block
            + groups_walked as f64 * cost.query * width
            + workgroups as f64 * cost.workgroup;
        Simulation {
            workgroups,
            key_blocks,
            computed: keys.saturating_mul(u64::from(tiles.slots) * lanes),
            useful: problems
                * (cuts.iter().map(Cut::useful).product::<u64>()
                    + tokens * u64::from(shape.extra_tokens)),
            full: problems * tokens * (tokens + u64::from(shape.extra_tokens)),
            trips,
            aligned: aligned(&cuts),
            cost: work * (cost.busy / workgroups as f64).max(1.0)
                + cost.compile * f64::from(tiles.unrolled(shape.head_dim, shape.head_dim_v)),
        }
    }

    /// What a kernel's text weighs for a compiler, against [`KernelCost::unrolled`]: its unrolled
    /// steps of four multiply-adds, and loads, lookups and the state of slots as the steps that they
    /// cost SwiftShader's compiler: from a second to minutes and gigabytes within a few.
    fn weight(&self, shape: &NeighborhoodShape<D>, slots: u32, block_k: u32) -> u32 {
        let dims = [shape.head_dim, shape.head_dim_v];
        let chunks = dims[0].div_ceil(4) + dims[1].div_ceil(4);
        let words = if self.dtype == DType::F32 { 2 } else { 4 };
        let whole = if dims.iter().all(|d| d.is_multiple_of(4)) { 1 } else { 2 };
        let branches = if shape.extra_tokens > 0 { 4 } else { 0 };
        let load = words * whole + branches + u32::from(self.border == Border::Zeros);
        let score = match self.bias {
            RelativeBias::None => 2,
            RelativeBias::Table => 6,
            RelativeBias::Factorised { .. } => 8,
        };
        let block = block_k.saturating_mul(slots.saturating_mul(chunks + score) + chunks * load);
        // three quarters: what it takes is 85 by this count, and 64 by the unrolled steps alone
        (block.saturating_add(slots.saturating_mul(chunks + 8)) / 4).saturating_mul(3)
    }

    /// Tilings for workgroups of `lanes` invocations, cheapest first. A pure function of its
    /// arguments; never empty for a legal problem.
    ///
    /// # Errors
    /// As [`NeighborhoodAttention::check`], [`Error::Limit`] for more elements than a tensor may have,
    /// [`Error::Value`] for more lanes than any device has.
    pub fn candidates(
        &self,
        shape: &NeighborhoodShape<D>,
        lanes: u32,
        cost: &KernelCost,
    ) -> Result<Vec<Candidate<D>>> {
        self.check_size(shape)?;
        if self.shrink_to_fit {
            return self.fitted(shape.spatial).candidates(shape, lanes, cost);
        }
        if lanes == 0 || lanes > 4096 {
            return Err(Error::value(OP, "lanes", "1 to 4096", lanes));
        }
        let per_slot = shape.head_dim.div_ceil(4) + shape.head_dim_v.div_ceil(4);
        let most = (cost.registers / per_slot).clamp(1, 8);
        let fits = |slots: u32, block_k: u32| {
            self.weight(shape, slots, block_k) <= cost.unrolled || (slots == 1 && block_k == 1)
        };
        let mut found: Vec<Candidate<D>> = Vec::new();
        let mut consider = |tiles: NeighborhoodTiles<D>| {
            if !fits(tiles.slots, tiles.block_k) {
                return;
            }
            if tiles.check(self, shape).is_ok() && !found.iter().any(|c| c.tiles == tiles) {
                found.push(Candidate { tiles, simulation: self.count(shape, &tiles, cost) });
            }
        };
        let longest: [u32; D] = std::array::from_fn(|a| self.axis(a, shape.spatial[a]).longest());
        let shared: [u32; D] = std::array::from_fn(|a| {
            let one_window = longest[a] == self.kernel_size[a]
                && shape.spatial[a].is_multiple_of(self.dilation[a]);
            if one_window && self.border == Border::Shift { longest[a] } else { self.stride[a] }
        });
        for axis in 0..D {
            // boxes of queries that share one window
            if shared.iter().any(|&s| s > 1) && !self.is_causal.contains(&true) {
                let queries: u64 = shared.iter().map(|&s| u64::from(s)).product();
                let groups = queries.div_ceil(u64::from(lanes));
                for slots in 1..=most {
                    if u64::from(slots) <= groups {
                        let block_k = block_of(
                            self.kernel_size.iter().map(|&k| u64::from(k)).product(),
                            per_slot,
                        );
                        for block_k in [block_k, 2, 1] {
                            let small = block_k < 4;
                            if !small || !fits(slots, 4) {
                                consider(NeighborhoodTiles {
                                    axis,
                                    tile: shared,
                                    slots,
                                    block_k,
                                    lanes,
                                });
                            }
                        }
                    }
                }
            }
            // boxes across the walk axis that fill a whole number of rows
            let others: Vec<usize> = (0..D).filter(|&a| a != axis).collect();
            let divisors: Vec<u32> = (1..=lanes).filter(|&d| lanes.is_multiple_of(d)).collect();
            for &b in &divisors {
                for &c in
                    divisors.iter().filter(|&&c| u64::from(b) * u64::from(c) <= u64::from(lanes))
                {
                    let box_of = [b, c];
                    if (others.len()..2).any(|i| box_of[i] > 1)
                        || others
                            .iter()
                            .zip(box_of)
                            .any(|(&a, n)| n > longest[a].next_power_of_two())
                    {
                        continue;
                    }
                    let mut tile = [1; D];
                    for (&a, n) in others.iter().zip(box_of) {
                        tile[a] = n;
                    }
                    let rows_of_group = lanes / (b * c);
                    for slots in 1..=most {
                        let shortest = rows_of_group.saturating_mul(slots);
                        let mut rows =
                            longest[axis].next_multiple_of(rows_of_group).min(LONGEST_WALK);
                        loop {
                            tile[axis] = rows;
                            for block_k in [1, 2, 4, 8] {
                                if block_k == 4
                                    || (block_k == 8 && per_slot <= 16)
                                    || (block_k < 4 && !fits(slots, 4))
                                {
                                    consider(NeighborhoodTiles {
                                        axis,
                                        tile,
                                        slots,
                                        block_k,
                                        lanes,
                                    });
                                }
                            }
                            if rows <= shortest {
                                break;
                            }
                            rows = rows
                                .div_ceil(2)
                                .next_multiple_of(rows_of_group)
                                .max(shortest)
                                .min(rows - 1);
                        }
                    }
                }
            }
        }
        found.sort_by(|x, y| x.simulation.cost.total_cmp(&y.simulation.cost));
        Ok(found)
    }

    /// For every stride from 1 to the kernel size (the same on all axes, or the kernel size where
    /// that is smaller), the cheapest tiling; smallest stride first. With [`recommended_stride`]
    /// this answers what a coarser window would buy.
    ///
    /// # Errors
    /// As [`NeighborhoodAttention::candidates`].
    pub fn strides(
        &self,
        shape: &NeighborhoodShape<D>,
        lanes: u32,
        cost: &KernelCost,
    ) -> Result<Vec<StrideChoice<D>>> {
        self.check_size(shape)?;
        if self.shrink_to_fit {
            return self.fitted(shape.spatial).strides(shape, lanes, cost);
        }
        let largest = self.kernel_size.iter().copied().max().unwrap_or(1);
        let mut choices = Vec::new();
        for n in 1..=largest.min(64) {
            let stride = self.kernel_size.map(|k| n.min(k));
            let best = Self { stride, ..*self }.candidates(shape, lanes, cost)?.swap_remove(0);
            choices.push(StrideChoice { stride, best });
        }
        Ok(choices)
    }
}

/// The smallest stride whose cost is within a tenth of the cheapest one's.
pub fn recommended_stride<const D: usize>(choices: &[StrideChoice<D>]) -> Option<&StrideChoice<D>> {
    let least = choices.iter().map(|c| c.best.simulation.cost).min_by(f64::total_cmp)?;
    choices.iter().find(|c| c.best.simulation.cost <= 1.1 * least)
}

/// A block of 4 to 8 keys that divides `keys` if one does, else the least remainder.
fn block_of(keys: u64, per_slot: u32) -> u32 {
    let most = if per_slot <= 16 { 8 } else { 6 };
    (4..=most).rev().min_by_key(|&b| keys.next_multiple_of(u64::from(b)) - keys).unwrap_or(4)
}

/// Rows of one walk: longer ones would not be faster, and simulating them takes time.
const LONGEST_WALK: u32 = 1 << 14;

#[cfg(test)]
mod tests {
    use super::*;

    const COST: KernelCost = KernelCost {
        load: 9.0,
        score: 20.0,
        rescale: 1.0,
        block: 0.0,
        query: 40.0,
        workgroup: 5000.0,
        compile: 0.0,
        busy: 1.0,
        registers: 128,
        unrolled: 8192,
    };

    /// Tiles that stand for others are like them: the same counts as from every tile.
    #[test]
    fn tiles_stand_for_their_like() {
        let mut stood = 0;
        for kernel_size in [1, 2, 3, 6, 7] {
            for stride in 1..=kernel_size {
                for tile in [1, 2, 3, 4, 8, 12] {
                    for (border, is_causal) in [
                        (Border::Shift, false),
                        (Border::Shift, true),
                        (Border::Masked, false),
                        (Border::Zeros, false),
                    ] {
                        let tokens = 211;
                        let axis =
                            Axis { tokens, kernel_size, stride, dilation: 1, is_causal, border };
                        let cut = Cut { axis, tile };
                        // each tile as its windows' bounds, counted from its first query
                        let shape = |first: u32| -> Vec<(i64, i64)> {
                            (first..(first + tile).min(tokens))
                                .map(|u| axis.window(u, tokens))
                                .map(|w| (w.start - i64::from(first), w.end - i64::from(first)))
                                .collect()
                        };
                        let mut got = BTreeMap::<_, u64>::new();
                        for (first, n) in cut.starts(tokens) {
                            *got.entry(shape(first)).or_default() += n;
                            stood += n - 1;
                        }
                        let mut want = BTreeMap::<_, u64>::new();
                        for first in (0..tokens).step_by(tile as usize) {
                            *want.entry(shape(first)).or_default() += 1;
                        }
                        assert_eq!(got, want, "{axis:?} tile {tile}");
                    }
                }
            }
        }
        assert!(stood > 10_000, "{stood}");
    }

    /// A walk by brute force: every key that a group must see is seen exactly once by it.
    #[test]
    fn a_walk_sees_every_key_once() {
        let mut rewinds = 0;
        for length in [5u32, 9, 16, 23] {
            for kernel_size in 1..=length {
                for stride in [1, 2, 3, kernel_size].into_iter().filter(|&s| s <= kernel_size) {
                    for (slots, step, block_k) in
                        [(1u32, 1u32, 1u32), (2, 1, 3), (4, 2, 4), (3, 4, 2)]
                    {
                        let axis = Axis {
                            tokens: length,
                            kernel_size,
                            stride,
                            dilation: 1,
                            is_causal: false,
                            border: Border::Shift,
                        };
                        let groups: Vec<(i64, i64)> = (0..length)
                            .step_by(step as usize)
                            .map(|u| {
                                let last = (u + step).min(length) - 1;
                                (axis.window(u, length).start, axis.window(last, length).end)
                            })
                            .collect();
                        let width = 3;
                        let turns = length % 2 == 0;
                        let (blocks, seen) = replay(&groups, width, slots, block_k, turns);
                        assert_eq!(blocks, walk(&groups, width, 0, slots, block_k, turns));
                        for (g, &(start, end)) in groups.iter().enumerate() {
                            let first = groups[0].0 * width;
                            for key in start * width..end * width {
                                let n = seen[g].iter().filter(|&&k| k == key - first).count();
                                assert_eq!(n, 1, "group {g} key {key} of {groups:?}");
                            }
                        }
                        let least = (groups.last().unwrap().1 - groups[0].0).unsigned_abs()
                            * width.unsigned_abs();
                        rewinds +=
                            u64::from(blocks * u64::from(block_k) > least + u64::from(block_k));
                    }
                }
            }
        }
        assert!(rewinds > 50, "{rewinds} walks went back");
    }

    /// The kernel's loop on sets: which keys each group takes part in.
    fn replay(
        groups: &[(i64, i64)],
        width: i64,
        slots: u32,
        block_k: u32,
        turns: bool,
    ) -> (u64, Vec<Vec<i64>>) {
        let mut seen = vec![Vec::new(); groups.len()];
        // (group, start, first, done)
        let mut held: Vec<Option<(usize, i64, i64, i64)>> = vec![None; slots as usize];
        let (mut at, mut blocks) = (0, 0);
        for g in 0..groups.len() + slots as usize {
            let (start, first, done) =
                held[0].map_or((0, 0, 0), |(_, start, first, done)| (start, first, done));
            at = at.max(start);
            let unseen = first < done && at < done;
            if g > 0 && (unseen || !turns) {
                loop {
                    for key in at..at + i64::from(block_k) {
                        for &(group, start, first, done) in held.iter().flatten() {
                            if key >= start.max(first) && key < done {
                                seen[group].push(key);
                            }
                        }
                    }
                    at += i64::from(block_k);
                    blocks += 1;
                    if at >= done {
                        break;
                    }
                }
            }
            held.remove(0);
            let next = groups.get(g).map(|&(start, end)| {
                let start = (start - groups[0].0) * width;
                (g, start, start, (end - groups[0].0) * width)
            });
            if let Some((_, start, _, _)) = next
                && start < at
            {
                for slot in held.iter_mut().flatten() {
                    slot.2 = slot.2.max(at);
                }
                at = start;
            }
            held.push(next);
        }
        (blocks, seen)
    }

    #[test]
    fn counts_are_exact_on_problems_counted_by_hand() {
        // 8 queries of one row, window 3: one group of 8 lanes sees keys 0..8, in two blocks of 4
        let op = NeighborhoodAttention::new([3]);
        let shape = NeighborhoodShape { spatial: [8], heads: 2, ..Default::default() };
        let tiles = NeighborhoodTiles { axis: 0, tile: [8], slots: 1, block_k: 4, lanes: 8 };
        let s = op.simulate(&shape, &tiles, &COST).unwrap();
        assert_eq!((s.workgroups, s.key_blocks, s.computed), (2, 4, 2 * 64));
        assert_eq!((s.useful, s.full, s.wasted()), (2 * 24, 2 * 64, 2 * 40));
        assert!(!s.aligned);

        // blocks of 4 x 4: 16 queries share 16 keys, nothing is wasted
        let op = NeighborhoodAttention::block([8, 8], [4, 4]).unwrap();
        let shape = NeighborhoodShape { spatial: [8, 8], ..Default::default() };
        let tiles = NeighborhoodTiles { axis: 0, tile: [4, 4], slots: 2, block_k: 4, lanes: 8 };
        let s = op.simulate(&shape, &tiles, &COST).unwrap();
        assert!(s.aligned);
        assert_eq!((s.workgroups, s.key_blocks, s.wasted()), (4, 16, 0));
        assert_eq!(s.speedup_bound(), 4.0);

        // 2 x 4 queries to a workgroup of 8, window 3 x 3, walking down 8 rows of 8
        let op = NeighborhoodAttention::new([3, 3]);
        let tiles = NeighborhoodTiles { axis: 0, tile: [8, 4], slots: 4, block_k: 1, lanes: 8 };
        let s = op.simulate(&shape, &tiles, &COST).unwrap();
        // columns 0..4 see keys 0..5, columns 4..8 keys 3..8; all rows at once fit the slots
        assert_eq!((s.workgroups, s.key_blocks), (2, 2 * 8 * 5));
        assert_eq!(s.computed, 2 * 8 * 5 * 4 * 8);
        assert_eq!(s.useful, 64 * 9);
    }

    #[test]
    fn strided_windows_pay_and_are_recommended() {
        let op = NeighborhoodAttention::new([16, 16]);
        let shape = NeighborhoodShape { spatial: [64, 64], ..Default::default() };
        let choices = op.strides(&shape, 8, &COST).unwrap();
        assert_eq!(choices.len(), 16);
        let best = recommended_stride(&choices).unwrap();
        assert!(best.stride[0] > 1, "{best:?}");
        assert!(best.best.simulation.cost < choices[0].best.simulation.cost);
        // swapping the claim round is false: the comparison can fail
        assert!(choices[0].best.simulation.efficiency() < best.best.simulation.efficiency());
    }

    #[test]
    fn every_legal_problem_has_a_candidate() {
        for lanes in [1, 4, 8, 32, 64] {
            for spatial in [[1u32, 1, 1], [2, 3, 5], [7, 1, 30]] {
                for dilation in [[1, 1, 1], [1, 1, 2]] {
                    if dilation[2] > spatial[2] {
                        continue;
                    }
                    let kernel_size = std::array::from_fn(|a| (spatial[a] / dilation[a]).min(3));
                    let op = NeighborhoodAttention {
                        dilation,
                        ..NeighborhoodAttention::new(kernel_size)
                    };
                    for extra_tokens in [0, 3] {
                        let shape =
                            NeighborhoodShape { spatial, extra_tokens, ..Default::default() };
                        let all = op.candidates(&shape, lanes, &COST).unwrap();
                        assert!(!all.is_empty(), "{shape:?} {lanes}");
                        assert!(all.is_sorted_by(|x, y| x.simulation.cost <= y.simulation.cost));
                        // a compiler that takes little, and one that takes nothing
                        for unrolled in [64, 0] {
                            let weak = KernelCost { unrolled, ..COST };
                            let all = op.candidates(&shape, lanes, &weak).unwrap();
                            assert!(!all.is_empty(), "{shape:?} {lanes} {unrolled}");
                            for Candidate { tiles, .. } in all {
                                let steps = tiles.unrolled(shape.head_dim, shape.head_dim_v);
                                let least = tiles.slots == 1 && tiles.block_k == 1;
                                assert!(steps <= unrolled || least, "{tiles:?} {unrolled}");
                            }
                        }
                    }
                }
            }
        }
    }
}
