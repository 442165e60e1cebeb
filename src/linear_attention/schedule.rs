//! Which engine, and its tiles: pure functions of the device and the problem.

use super::{Decay, FeatureMap, LinearAttention, LinearAttentionShape, Update};
use crate::{Caps, DeviceClass, attention::Registers, caps::UNROLLED};

/// Tiles of `shaders/linear_attention/tiled.wgsl`: a workgroup of `lanes_v * lanes_t` invocations owns
/// `4 lanes_v` columns of a state and walks chunks of `lanes_t * tokens` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RegisterTiles {
    /// Invocations side by side along the columns of the state, and along the keys of scores.
    pub(super) lanes_v: u32,
    /// Invocations along tokens, and along the rows of the state.
    pub(super) lanes_t: u32,
    /// Tokens of one invocation: 4 or 8.
    pub(super) tokens: u32,
    /// Rows of the state of one invocation.
    pub(super) rows: u32,
    /// Channels of queries and keys in workgroup memory at a time.
    pub(super) depth: u32,
    /// Values, and keys as rows of the state, in workgroup memory at a time.
    pub(super) part: u32,
}

impl RegisterTiles {
    /// The tiles for a problem on a GPU; `None` where another kernel runs: on CPUs, where the compiler
    /// is slow at long texts, and for rules that these products do not compute.
    pub(super) fn choose(
        caps: &Caps,
        shape: &LinearAttentionShape,
        features: u32,
        op: &LinearAttention,
    ) -> Option<Self> {
        let taken = op.decay != Decay::PerChannel
            && op.update != Update::Delta
            && op.feature_map != FeatureMap::Taylor2;
        if caps.class != DeviceClass::Gpu || caps.unrolled < UNROLLED || !taken {
            return None;
        }
        // few registers hold half as many tokens, and a tall state is shared by more lanes
        let [lanes_t, tokens] = match (Registers::of(caps), features) {
            (Registers::Few, _) | (_, 129..) => [16, 4],
            _ => [8, 8],
        };
        // eight would have to hold twice as many scores each
        let few = Registers::of(caps) == Registers::Few;
        let lanes_v = if shape.value_dim > 32 || few { 16 } else { 8 };
        let rows = features.div_ceil(4 * lanes_t) * 4;
        // where code is better short, longer slices: they are staged by all lanes, and end less often
        let long = if Registers::of(caps) == Registers::Many { [32, 16] } else { [16, 16] };
        [long, [16, 16], [8, 8], [4, 4]]
            .map(|[depth, part]| Self { lanes_v, lanes_t, tokens, rows, depth, part })
            .into_iter()
            .find(|t| t.workgroup() <= caps.invocations && t.bytes() <= caps.workgroup_storage)
    }

    /// Invocations of a workgroup.
    pub(super) fn workgroup(&self) -> u32 {
        self.lanes_v * self.lanes_t
    }

    /// Tokens of a chunk.
    pub(super) fn chunk(&self) -> u32 {
        self.lanes_t * self.tokens
    }

    /// Groups of four keys of one invocation.
    pub(super) fn keys4(&self) -> u32 {
        self.chunk() / (4 * self.lanes_v)
    }

    /// Rows of the state, those past the last feature zero.
    pub(super) fn all_rows(&self) -> u32 {
        self.lanes_t * self.rows
    }

    /// Vec4s in a line of workgroup memory that holds a row of the state, or of keys.
    pub(super) fn width(&self) -> u32 {
        self.lanes_v.max(self.all_rows() / 4)
    }

    /// Lines of workgroup memory.
    pub(super) fn lines(&self) -> u32 {
        self.depth.max(self.part)
    }

    /// Bytes of workgroup memory.
    pub(super) fn bytes(&self) -> u32 {
        let left = self.tokens / 4 * (self.lanes_t + 1);
        let vectors = self.lines() * (left + self.keys4() * self.lanes_v + self.width());
        // a vec4 of the key sum each four channels, eight numbers a token at most
        16 * vectors + 4 * self.depth + 32 * self.chunk()
    }

    /// Loop trips that one chunk takes at most.
    pub(super) fn trips(&self) -> u64 {
        let slices = self.all_rows() / self.depth;
        let parts = self.chunk() / self.part;
        let slices = slices * (1 + self.depth / 4);
        (1 + self.chunk() / 4 + slices + parts * (1 + 2 * self.part / 4)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CARDS, linear_attention::MAX_DIM};

    /// Every head size has tiles on every card and on the least that there is, and what the kernel takes
    /// for granted holds.
    #[test]
    fn every_problem_has_tiles() {
        for caps in CARDS.iter().map(crate::Card::caps) {
            for memory in [16 << 10, caps.workgroup_storage] {
                let caps = Caps { workgroup_storage: memory, ..caps.clone() };
                for features in 1..=MAX_DIM {
                    for value_dim in [1, 16, 33, 64, 256] {
                        let op = LinearAttention::default();
                        let shape = LinearAttentionShape::new(1, 100, 1, features, value_dim);
                        let t = RegisterTiles::choose(&caps, &shape, features, &op);
                        let t = t.unwrap_or_else(|| panic!("{caps:?} {shape:?}"));
                        assert!(t.bytes() <= memory && t.workgroup() <= caps.invocations);
                        // a lane makes a token ready, and whole quads are summed
                        assert!(t.chunk() <= t.workgroup() && t.chunk() <= 64);
                        assert_eq!(t.keys4() * 4 * t.lanes_v, t.chunk());
                        assert!(t.all_rows() >= features && t.rows.is_multiple_of(4));
                        assert!(t.all_rows().is_multiple_of(t.depth) && t.depth.is_multiple_of(4));
                        assert!(t.chunk().is_multiple_of(t.part) && t.part.is_multiple_of(4));
                        assert!(t.workgroup().is_multiple_of(t.chunk() / 4));
                    }
                }
            }
        }
    }
}
