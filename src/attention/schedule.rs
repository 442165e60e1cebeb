//! Which kernel, and how the work is cut: one pure function of the device and the problem.

use super::{AttentionShape, MAX_HEAD_DIM, OP, Tiles};
use crate::{Caps, DType, Error, Result, Tier};

/// The kernel that a plan takes, and its tiles: [`AttentionPlan::schedule`](super::AttentionPlan::schedule).
///
/// A CPU gets [`Rows`](Self::Rows), and [`Decode`](Self::Decode) for at most four rows that share a key
/// head, with head sizes that are multiples of eight and keys shared out. A GPU gets
/// [`Groups`](Self::Groups) for at most eight such rows where keys are shared out, with head sizes that are
/// multiples of eight (of four in f32), and [`Tiled`](Self::Tiled) for everything else but a metric.
///
/// [`Attention::schedule`](super::Attention::schedule) asks for one, on any device. `Rows` takes every
/// problem. The others take no metric, and `Decode` and `Groups` no packed sequences, no more rows than
/// said, and only keys that are shared out ([`Split`](super::Split)). Tiles must fit the device. What
/// cannot be is an [`Error::Argument`](crate::Error::Argument) or
/// [`Error::Shape`](crate::Error::Shape) that says what would work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Schedule {
    /// An invocation owns whole rows, keys are handed round by broadcasts or workgroup memory: for CPU
    /// drivers, and for options that the others do not take (`shaders/attention/flash.wgsl`).
    Rows(Tiles),
    /// Two-dimensional register tiles over workgroup memory: for GPUs
    /// (`shaders/attention/tiled.wgsl`).
    Tiled(RegisterTiles),
    /// Few rows on a CPU: lanes share channels, not rows (`shaders/attention/decode.wgsl`).
    Decode(Tiles),
    /// Few rows on a GPU: groups of lanes share the channels of a key
    /// (`shaders/attention/groups.wgsl`).
    Groups(GroupTiles),
}

impl Schedule {
    /// Rows of one workgroup: a row is a query of one of the heads that share a key head.
    pub fn rows(&self) -> u32 {
        match self {
            Self::Rows(tiles) => tiles.workgroup * tiles.queries,
            Self::Tiled(tiles) => tiles.tile_q(),
            Self::Groups(tiles) => tiles.rows,
            Self::Decode(tiles) => tiles.queries,
        }
    }

    /// Keys between two corrections of the references, of a workgroup.
    pub fn keys(&self) -> u32 {
        match self {
            Self::Rows(tiles) | Self::Decode(tiles) => tiles.block_k,
            Self::Tiled(tiles) => tiles.tile_k(),
            Self::Groups(tiles) => tiles.tile_k(),
        }
    }
}

/// Tiles of [`Schedule::Groups`]: a workgroup owns `rows` rows, and `workgroup / lanes` groups of its
/// invocations pass over `block_k` keys each at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupTiles {
    /// Invocations of a workgroup.
    pub workgroup: u32,
    /// Invocations that share the channels of a key: a power of two.
    pub lanes: u32,
    /// Rows of a workgroup.
    pub rows: u32,
    /// Keys of a group at a time.
    pub block_k: u32,
    /// Channels that a lane has side by side: 16 bytes, or 8 of bytes.
    pub chunk: u32,
    /// Lanes add up by subgroup operations, not through workgroup memory.
    pub shuffles: bool,
}

impl GroupTiles {
    /// The most rows that are few.
    const MOST_ROWS: u64 = 8;

    /// The tiles for a problem on a GPU whose keys and values are `dtype`; `None` if its rows are too
    /// many, or are no whole chunks.
    ///
    /// All but `rows` depends on the heads and their sizes alone, so that a row's bits do not depend on
    /// the number of queries.
    pub(super) fn choose(caps: &Caps, shape: &AttentionShape, dtype: DType) -> Option<Self> {
        let pack = shape.heads / shape.heads_kv.max(1);
        // a problem without queries is planned like one with a query
        let rows = u64::from(shape.seq_q.max(1)) * u64::from(pack);
        let chunk = if dtype == DType::F32 { 4 } else { 8 };
        let dims = [shape.head_dim, shape.head_dim_v];
        if rows > Self::MOST_ROWS || dims.iter().any(|&d| d == 0 || !d.is_multiple_of(chunk)) {
            return None;
        }
        // what a lane holds of queries and outputs, how many rows at most, and lanes that share a key
        let (floats, most, lanes) = match (Registers::of(caps), pack) {
            (Registers::Few, _) => (40, 2, [4, 8, 16, 16]),
            (_, ..=4) => (128, 4, [4, 8, 16, 32]),
            _ => (128, 8, [4, 8, 16, 32]),
        };
        let held = |rows: u32, lanes: u32| {
            dims.iter().map(|dim| rows * chunk * (dim / chunk).div_ceil(lanes)).sum::<u32>()
        };
        let (most, lanes) = [most, most / 2, 1]
            .into_iter()
            .flat_map(|rows| lanes.map(|lanes| (rows, lanes)))
            .chain([(1, 32)])
            .find(|&(rows, lanes)| rows <= lanes && held(rows, lanes) <= floats)?;
        #[expect(clippy::cast_possible_truncation, reason = "at most eight")]
        let rows = (rows.next_power_of_two() as u32).min(most);
        let subgroup = caps.subgroup.filter(|_| caps.tier == Tier::Subgroup);
        let tiles = Self {
            workgroup: subgroup.map_or(128, |(_, max)| max.max(128)),
            lanes,
            rows,
            block_k: if most == 8 { 2 } else { 4 },
            chunk,
            shuffles: subgroup.is_some_and(|(min, _)| min >= lanes),
        };
        let fits = tiles.workgroup <= caps.invocations && tiles.bytes() <= caps.workgroup_storage;
        fits.then_some(tiles)
    }

    /// Refuses tiles that groups.wgsl has no place for.
    pub(super) fn check(self, caps: &Caps, shape: &AttentionShape, dtype: DType) -> Result<Self> {
        let chunk = if dtype == DType::F32 { 4 } else { 8 };
        let refuse =
            |expected: String| Err(Error::shape(OP, "schedule", expected, format!("{self:?}")));
        let powers = [self.workgroup, self.lanes, self.rows, self.block_k];
        if self.chunk != chunk || powers.iter().any(|n| !n.is_power_of_two()) {
            return refuse(format!("powers of two, and chunk = {chunk} for {dtype} keys"));
        }
        if self.rows > 8 || self.block_k > 4 || !(4..=32).contains(&self.lanes) {
            return refuse("at most 8 rows and 4 keys, and 4 to 32 lanes".to_owned());
        }
        let lines = self.rows * self.block_k / 4;
        if lines == 0 || self.rows > self.lanes {
            return refuse("rows * block_k at least 4, and no more rows than lanes".to_owned());
        }
        let (least, most) = match caps.subgroup.filter(|_| caps.tier == Tier::Subgroup) {
            Some((min, max)) if self.shuffles && self.lanes <= min => (max, caps.invocations),
            _ if self.shuffles => {
                return refuse(
                    "no shuffles, for subgroups here may be smaller than lanes".to_owned(),
                );
            }
            _ => (1, caps.invocations),
        };
        let least = least.max(self.lanes * lines);
        if self.workgroup < least || self.workgroup > most {
            return refuse(format!("a workgroup of {least} to {most} invocations"));
        }
        let floats =
            self.rows * ((shape.head_dim + shape.head_dim_v) / chunk).div_ceil(self.lanes) * chunk;
        if floats > 512 {
            return refuse(
                "more lanes or fewer rows: a lane would hold over 512 numbers".to_owned(),
            );
        }
        fits(self, self.workgroup, self.bytes(), caps)
    }

    /// Keys of a tile.
    pub fn tile_k(&self) -> u32 {
        self.workgroup / self.lanes * self.block_k
    }

    /// Bytes of workgroup memory.
    pub fn bytes(&self) -> u32 {
        self.rows * self.block_k / 4 * self.workgroup * 16
    }

    /// The most keys that one pass can visit within so many loop trips.
    pub(super) fn longest(&self, shape: &AttentionShape, trips: u64) -> u64 {
        // at the end two loops over the groups for each row, and one for each round of outputs
        let vectors = (shape.head_dim_v / self.chunk).div_ceil(self.lanes) * self.chunk / 4;
        let loops = 2 * self.rows + vectors * 4 / self.block_k;
        let end = u64::from(self.workgroup / self.lanes) * u64::from(loops);
        trips.saturating_sub(end).saturating_mul(self.tile_k().into())
    }
}

/// Refuses tiles that need more of a workgroup than the device has.
fn fits<T: std::fmt::Debug>(tiles: T, invocations: u32, bytes: u32, caps: &Caps) -> Result<T> {
    if invocations > caps.invocations || bytes > caps.workgroup_storage {
        return Err(Error::shape(
            OP,
            "schedule",
            format!(
                "at most {} invocations and {} bytes of workgroup memory",
                caps.invocations, caps.workgroup_storage
            ),
            format!("{invocations} and {bytes} for {tiles:?}"),
        ));
    }
    Ok(tiles)
}

/// Tiles of [`Schedule::Tiled`]: a workgroup of `lanes_k * lanes_q` invocations owns `lanes_q * rows` rows
/// and passes over `lanes_k * keys` keys at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegisterTiles {
    /// Invocations side by side along keys, and along the channels of outputs.
    pub lanes_k: u32,
    /// Invocations along rows.
    pub lanes_q: u32,
    /// Rows of one invocation: 4 or 8.
    pub rows: u32,
    /// Keys of one invocation: 4 or 8.
    pub keys: u32,
    /// Channels of queries and keys in workgroup memory at a time.
    pub depth: u32,
    /// Values in workgroup memory at a time.
    pub part: u32,
}

/// What a device can hold in registers, guessed from the only thing that tells: the sizes of its subgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registers {
    /// 255 floats a lane, and code that is better short: NVIDIA and Apple, subgroups of 32 alone.
    Many,
    /// As many, and a compiler that unrolls long loops: AMD, subgroups of 32 and 64.
    ManyUnrolled,
    /// 128 floats a lane: Intel before Xe3, smaller subgroups. What says nothing may be one, too.
    Few,
}

impl Registers {
    pub(crate) fn of(caps: &Caps) -> Self {
        match caps.subgroup {
            Some((32, 32)) => Self::Many,
            Some((min, _)) if min >= 32 => Self::ManyUnrolled,
            _ => Self::Few,
        }
    }
}

impl RegisterTiles {
    const fn new(lanes: [u32; 2], rows: u32, keys: u32, depth: u32, part: u32) -> Self {
        Self { lanes_k: lanes[0], lanes_q: lanes[1], rows, keys, depth, part }
    }

    /// The tiles for a problem on a GPU; `None` if none fit the device.
    pub(super) fn choose(caps: &Caps, shape: &AttentionShape) -> Option<Self> {
        use Registers::{Few, Many, ManyUnrolled};
        let dims = [shape.head_dim, shape.head_dim_v];
        // asked before a problem is checked, too
        if dims.iter().any(|dim| !(1..=MAX_HEAD_DIM).contains(dim)) {
            return None;
        }
        let t = Self::new;
        // the first that fits; wide outputs are shared by more lanes
        let list = match (Registers::of(caps), shape.head_dim_v) {
            (Many, ..=64) => [t([8, 16], 8, 8, 32, 32), t([8, 16], 8, 8, 16, 16)],
            (ManyUnrolled, ..=64) => [t([8, 16], 8, 8, 16, 16), t([8, 8], 8, 8, 16, 16)],
            (Few, ..=64) => [t([16, 16], 4, 4, 16, 16), t([16, 8], 4, 4, 16, 16)],
            (Many, ..=128) => [t([16, 16], 8, 4, 32, 32), t([16, 8], 8, 4, 16, 16)],
            (ManyUnrolled, ..=128) => [t([16, 8], 8, 4, 16, 16), t([16, 4], 8, 4, 16, 16)],
            (Few, ..=128) => [t([32, 8], 4, 4, 16, 16), t([32, 4], 4, 4, 8, 8)],
            (Many | ManyUnrolled, ..=256) => [t([32, 8], 8, 4, 16, 16), t([32, 4], 8, 4, 16, 8)],
            (Few, ..=256) => [t([64, 4], 4, 4, 8, 8), t([64, 2], 4, 4, 8, 4)],
            (Many | ManyUnrolled, _) => [t([64, 4], 8, 4, 16, 8), t([64, 4], 8, 4, 8, 4)],
            (Few, _) => [t([64, 4], 4, 4, 8, 4), t([64, 2], 4, 4, 8, 4)],
        };
        let rows = u64::from(shape.seq_q) * u64::from(shape.heads / shape.heads_kv.max(1));
        list.into_iter().find_map(|tiles| {
            let tiles = tiles.with_rows(rows);
            let fits = tiles.workgroup() <= caps.invocations
                && tiles.bytes(shape.head_dim_v) <= caps.workgroup_storage;
            fits.then_some(tiles)
        })
    }

    /// Refuses tiles that tiled.wgsl has no place for.
    pub(super) fn check(self, caps: &Caps, shape: &AttentionShape) -> Result<Self> {
        let refuse =
            |expected: &str| Err(Error::shape(OP, "schedule", expected, format!("{self:?}")));
        let powers = [self.lanes_k, self.lanes_q, self.depth, self.part];
        if powers.iter().any(|n| !n.is_power_of_two() || *n > 1024) {
            return refuse("lanes_k, lanes_q, depth and part powers of two of at most 1024");
        }
        if ![4, 8].contains(&self.rows) || ![4, 8].contains(&self.keys) {
            return refuse("4 or 8 rows and keys");
        }
        if self.lanes_k < 4 || self.depth < 4 || self.part < 4 || self.part > self.tile_k() {
            return refuse("lanes_k, depth and part at least 4, part at most lanes_k * keys");
        }
        if !self.lanes_q.is_multiple_of(self.keys / 4) {
            return refuse("lanes_q a multiple of keys / 4");
        }
        let floats = self.rows * (4 * self.chunks(shape.head_dim_v) + self.keys);
        if floats > 512 {
            return refuse("more lanes_k or fewer rows: a lane would hold over 512 sums");
        }
        fits(self, self.workgroup(), self.bytes(shape.head_dim_v), caps)
    }

    /// No more rows than there are, though lanes enough to stage keys. Sums are made in the same order: a
    /// row's bits do not depend on it.
    fn with_rows(self, rows: u64) -> Self {
        let mut tiles = self;
        let half = |t: &Self| Self { lanes_q: t.lanes_q / 2, ..*t };
        let able = |t: &Self| {
            t.lanes_q >= 1 && t.lanes_q.is_multiple_of(t.keys / 4) && t.workgroup() >= 128
        };
        while u64::from(tiles.tile_q()) / 2 >= rows && able(&half(&tiles)) {
            tiles = half(&tiles);
        }
        if u64::from(tiles.tile_q()) / 2 >= rows && tiles.rows == 8 {
            tiles.rows = 4;
        }
        tiles
    }

    /// Invocations of a workgroup.
    pub fn workgroup(&self) -> u32 {
        self.lanes_k * self.lanes_q
    }

    /// Rows of a workgroup.
    pub fn tile_q(&self) -> u32 {
        self.lanes_q * self.rows
    }

    /// Keys of a tile.
    pub fn tile_k(&self) -> u32 {
        self.lanes_k * self.keys
    }

    /// Chunks of four channels of the output that one invocation holds.
    pub(super) fn chunks(&self, head_dim_v: u32) -> u32 {
        head_dim_v.div_ceil(4).div_ceil(self.lanes_k)
    }

    /// Channels of keys in one line of workgroup memory, which is wide enough for a row of values.
    pub(super) fn fold(&self, head_dim_v: u32) -> u32 {
        let chunks = self.chunks(head_dim_v);
        [4, 2]
            .into_iter()
            .find(|fold| fold * self.keys / 4 <= chunks && self.depth.is_multiple_of(4 * fold))
            .unwrap_or(1)
    }

    /// Vec4s in such a line, over the lanes along keys.
    pub(super) fn width(&self, head_dim_v: u32) -> u32 {
        self.chunks(head_dim_v).max(self.fold(head_dim_v) * self.keys / 4)
    }

    /// Quads of lines of both arrays in workgroup memory: the turned queries or weights, and the keys,
    /// values or exchanged maxima.
    pub(super) fn lines(&self, head_dim_v: u32) -> [u32; 2] {
        let exchange = (self.lanes_q * self.rows / 4).div_ceil(self.width(head_dim_v));
        let right = (self.depth / self.fold(head_dim_v)).max(self.part).max(exchange);
        [self.depth.max(self.part) / 4, right.div_ceil(4)]
    }

    /// Bytes of workgroup memory.
    pub fn bytes(&self, head_dim_v: u32) -> u32 {
        let [left, right] = self.lines(head_dim_v);
        let left = left * 4 * self.rows / 4 * (self.lanes_q + 1);
        16 * (left + right * 4 * self.width(head_dim_v) * self.lanes_k)
    }

    /// The most keys that one pass can visit within so many loop trips.
    pub(super) fn longest(&self, shape: &AttentionShape, trips: u64) -> u64 {
        let slices = shape.head_dim.div_ceil(self.depth);
        let turns = self.depth / (4 * self.fold(shape.head_dim_v));
        let shares = (self.lanes_k / self.part).max(1);
        let parts = self.tile_k() / self.part;
        let shared = if shares > 1 { parts } else { 0 };
        let tile = 1 + slices * (1 + turns) + self.lanes_k + shared + parts * self.part / 4;
        let tiles = trips.saturating_sub(self.lanes_k.into()) / u64::from(tile);
        tiles.saturating_mul(self.tile_k().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CARDS;

    /// What groups.wgsl takes for granted, for every number of rows that it gets.
    #[test]
    fn groups_have_a_place_for_everything() {
        let tiers = |caps: Caps| {
            [Tier::Portable, Tier::Subgroup]
                .into_iter()
                .filter_map(move |tier| caps.with_tier(tier))
        };
        let mut seen = 0;
        for caps in CARDS.iter().map(crate::Card::caps).flat_map(tiers) {
            for (heads, seq_q) in (0..=8).flat_map(|seq| (1..=8).map(move |heads| (heads, seq))) {
                for dim in (4..=MAX_HEAD_DIM).step_by(4) {
                    let shape = AttentionShape {
                        heads,
                        head_dim_v: (dim / 8 * 4).max(4),
                        ..AttentionShape::self_attention(1, seq_q, 1, dim)
                    };
                    for dtype in [DType::F32, DType::F16, DType::I8] {
                        let Some(t) = GroupTiles::choose(&caps, &shape, dtype) else { continue };
                        seen += 1;
                        assert_eq!(t.check(&caps, &shape, dtype).unwrap(), t);
                        assert!(t.bytes() <= 16 << 10);
                        // one more query changes nothing but the rows
                        let more = AttentionShape { seq_q: seq_q + 1, ..shape };
                        if let Some(more) = GroupTiles::choose(&caps, &more, dtype) {
                            assert_eq!(GroupTiles { rows: t.rows, ..more }, t);
                        }
                    }
                }
            }
        }
        assert!(seen > 1000, "{seen}");
    }

    /// Every head size has tiles on every card and on the least that there is, and what the kernel takes
    /// for granted holds.
    #[test]
    fn every_problem_has_tiles() {
        for caps in CARDS.iter().map(crate::Card::caps) {
            for memory in [16 << 10, caps.workgroup_storage] {
                for invocations in [256, caps.invocations] {
                    let caps = Caps { workgroup_storage: memory, invocations, ..caps.clone() };
                    for dim in 1..=MAX_HEAD_DIM {
                        for seq in [1, 7, 40, 5000] {
                            let shape = AttentionShape::self_attention(1, seq, 1, dim);
                            let t = RegisterTiles::choose(&caps, &shape);
                            let t = t.unwrap_or_else(|| panic!("{caps:?} {shape:?}"));
                            assert_eq!(t.check(&caps, &shape).unwrap(), t);
                            assert!(t.depth.is_multiple_of(4 * t.fold(dim)));
                            assert!(t.width(dim) * t.lanes_k * 4 >= dim);
                        }
                    }
                }
            }
        }
    }
}
