//! Which fused kernel, and how the work is cut: one pure function of the device and the product.

use super::program::{Combine, Nodes, Program, Sampling};
use crate::Caps;

/// How `shaders/gaunt/orders.wgsl` cuts the work: a lane for every order of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OrderTiles {
    /// Lanes of a product: orders of the largest degree.
    pub(crate) orders: u32,
    /// Products of a workgroup.
    pub(crate) products: u32,
    /// Pairs of parallels in workgroup memory at a time.
    pub(crate) pairs: u32,
    /// How often.
    pub(crate) rounds: u32,
    /// Inputs are loaded in every round, instead of being kept.
    pub(crate) reload: bool,
}

/// Degrees, from where on a lane's registers do not hold a product, and as far as they hold an order
/// and a parallel.
const DEGREES: std::ops::RangeInclusive<u32> = 5..=12;

/// Invocations of a workgroup, about.
const WORKGROUP: u32 = 128;

impl OrderTiles {
    /// The tiles for a product on a GPU; `None` where one lane computes a product: on a CPU, whose
    /// lanes have no neighbours to wait for, at low degrees, and for what the kernel does not take
    /// (one input, more than two, powers, vector products, Fourier series).
    pub(crate) fn choose(caps: &Caps, program: &Program) -> Option<Self> {
        let degree = program.lmax.iter().copied().max()?.max(program.live_out());
        let two = program.combine == Combine::Powers(vec![1, 1]);
        let grid = program.sampling == Sampling::GaussLegendre;
        if caps.is_cpu() || !two || !grid || !DEGREES.contains(&degree) {
            return None;
        }
        let orders = degree + 1;
        let Nodes { pairs, .. } = program.nodes();
        // as many lanes for parallels as there are for orders, or fewer
        let rounds = pairs.div_ceil(orders / 2);
        // subgroups below 32 are Intel's, whose lanes hold 128 numbers before Xe3, not 256; what does
        // not say may be one, too
        let reload = caps.subgroup.is_none_or(|(min, _)| min < 32);
        let tiles =
            |products| Self { orders, products, pairs: pairs.div_ceil(rounds), rounds, reload };
        (1..=WORKGROUP.min(caps.invocations) / orders)
            .rev()
            .map(tiles)
            .find(|tiles| tiles.bytes() <= caps.workgroup_storage)
    }

    /// Invocations of a workgroup.
    pub(crate) fn workgroup(&self) -> u32 {
        self.orders * self.products
    }

    /// `vec4`s of one order: those of all parallels, and up to seven so that lanes of neighbouring
    /// orders meet different banks.
    pub(crate) fn stride(&self) -> u32 {
        (2 * self.pairs * self.products).next_multiple_of(8) + 1
    }

    /// `vec4`s of the table for one order on one pair of parallels.
    pub(crate) fn quads(&self) -> u32 {
        (self.orders + 1).div_ceil(4)
    }

    /// Bytes of workgroup memory.
    pub(crate) fn bytes(&self) -> u32 {
        16 * self.orders * (self.stride() + self.rounds * self.pairs * self.quads())
    }
}
