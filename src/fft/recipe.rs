//! How a transform is cut into passes and passes into stages. Pure: no device.
//!
//! A transform of length `n` is one or more *passes*, a dispatch each. A pass is a Stockham stage
//! of large radix `R` done by a workgroup: with `p` the product of the radices before it and
//! `m = n / R`, row `t` (of `m`) reads `x[t + j m]`, multiplies by `w_{pR}^{(t mod p) j}`, takes
//! the DFT over `j < R` and writes `y[(t - t mod p) R + t mod p + k p]` (van Loan 1992, section
//! 1.7). Inside the pass the same rule cuts `R` into *stages* of radix at most
//! [`MAX_RADIX`], exchanged through workgroup memory. Lengths with a prime factor above that go by
//! Bluestein's convolution at a smooth length of at least `2 n - 1`.

use super::codelet::MAX_RADIX;
use crate::{Caps, Tier, caps::UNROLLED};

/// Two complex numbers share one `vec4<f32>` throughout: which two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pairing {
    /// Neighbouring points of one transform.
    Points,
    /// The same point of two neighbouring transforms.
    Rows,
}

/// One dispatch: a DFT of `radix` points in one workgroup, or in one invocation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pass {
    pub(crate) radix: u32,
    /// Product of the radices of the passes before.
    pub(crate) p: u32,
    /// Rows of one transform: its length divided by `radix`.
    pub(crate) m: u32,
    /// Radices whose product is `radix`.
    pub(crate) stages: Vec<u32>,
    pub(crate) pairing: Pairing,
    /// Two stages that exchange by shuffles among this many lanes of a subgroup, a power of two,
    /// instead of through workgroup memory.
    pub(crate) shuffle: Option<u32>,
    /// Exchanges go by halves of every `vec4`, through half the workgroup memory: on a GPU it is
    /// workgroup memory that limits how many waves a core holds.
    pub(crate) halved: bool,
}

impl Pass {
    /// Invocations that work on one row or pair of rows: butterflies of the busiest stage.
    pub(crate) fn lanes(&self) -> u32 {
        if let Some(lanes) = self.shuffle {
            return lanes;
        }
        self.stages.iter().map(|&r| self.butterflies(r)).max().unwrap_or(1)
    }

    /// Butterflies, or pairs of them, in a stage of radix `r`.
    pub(crate) fn butterflies(&self, r: u32) -> u32 {
        let count = self.radix / r;
        if self.pairing == Pairing::Points { count / 2 } else { count }
    }

    /// `vec4`s, or halves of them, in workgroup memory for one row or pair of rows.
    pub(crate) fn shared(&self) -> u32 {
        match (self.stages.len(), self.pairing) {
            _ if self.shuffle.is_some() => 0,
            (0 | 1, _) => 0,
            (_, Pairing::Points) => self.radix / 2,
            (_, Pairing::Rows) => self.radix,
        }
    }

    /// Bytes of workgroup memory for one row or pair of rows.
    pub(crate) fn shared_bytes(&self) -> u32 {
        self.shared() * if self.halved { 8 } else { 16 }
    }

    /// Rows or pairs of rows that one workgroup takes.
    pub(crate) fn slots(&self, caps: &Caps) -> u32 {
        // enough invocations to fill a subgroup of any size, few enough for registers
        let mut wanted = ((if self.shuffle.is_some() { 32 } else { 64 }) / self.lanes()).max(1);
        // rows of a later or earlier pass are neighbours: memory is read in runs of 64 bytes at least
        if !caps.is_cpu() && self.m > 1 && self.pairing == Pairing::Rows {
            wanted = wanted.max((256 / self.lanes()).min(4));
        }
        let fits = match self.shared_bytes() {
            0 => wanted,
            shared => workgroup_vec4s(caps) * 16 / shared,
        };
        wanted.min(fits).clamp(1, (caps.invocations / self.lanes()).max(1))
    }
}

/// How one axis is transformed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Recipe {
    /// Nothing to do but to scale and copy, as a pass of radix 1.
    Direct(Vec<Pass>),
    /// The passes of a transform of length `m`, used twice.
    Bluestein {
        /// Length of the convolution.
        m: u32,
        /// Its passes.
        passes: Vec<Pass>,
    },
}

/// What a recipe may use.
#[derive(Clone, Debug, PartialEq)]
struct Budget {
    caps: Caps,
    /// Largest radix of a stage that exchanges through workgroup memory.
    radix: u32,
    /// Largest prime radix of a stage.
    prime: u32,
    /// Largest radix of a stage that does not.
    alone: u32,
    /// Most lanes that may exchange by shuffles; 1 for none.
    lanes: u32,
    /// Largest radix of a pass, for either pairing.
    points: u32,
    rows: u32,
    /// See [`Pass::halved`].
    halved: bool,
    costs: Costs,
}

/// What things cost for one point, in the time of loading and storing it by `vec4`s. On a CPU
/// measured with Mesa's llvmpipe, where loads are made lane by lane and barriers split the code;
/// on a GPU a guess: memory is what counts.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Costs {
    /// Loading or storing one complex number at a time, instead of two.
    single: f64,
    /// Twiddles of a later pass.
    twiddle: f64,
    /// An exchange through workgroup memory.
    shared: f64,
    /// An exchange by shuffles.
    shuffle: f64,
    flop: f64,
    /// Each point above 16 that an invocation holds.
    spill: f64,
    /// A run of 16 bytes where memory moves 64; half of it for one of 32.
    narrow: f64,
}

const CPU: Costs = Costs {
    single: 0.8,
    twiddle: 0.5,
    shared: 3.0,
    shuffle: 0.15,
    flop: 0.01,
    spill: 0.02,
    narrow: 0.0,
};
const GPU: Costs = Costs {
    single: 0.1,
    twiddle: 0.2,
    shared: 0.2,
    shuffle: 0.1,
    flop: 0.003,
    spill: 0.01,
    narrow: 1.0,
};

/// `vec4`s of workgroup memory that kernels here use: no more than every device has, or 32 KiB.
fn workgroup_vec4s(caps: &Caps) -> u32 {
    caps.workgroup_storage.min(32 << 10) / 16
}

impl Budget {
    fn of(caps: &Caps) -> Self {
        let shared = workgroup_vec4s(caps);
        // long butterflies make long kernels, which some compilers cannot take
        let weak = caps.unrolled < UNROLLED;
        let halves = if caps.is_cpu() { 1 } else { 2 };
        Self {
            caps: caps.clone(),
            // a CPU spills registers to its nearest cache at little cost and pays for each
            // exchange through memory; a GPU the other way round
            radix: if weak || !caps.is_cpu() { 8 } else { MAX_RADIX / 2 },
            // without them, lengths of those factors go by four times as many steps
            prime: match (weak, caps.is_cpu()) {
                (true, _) => 8,
                (_, true) => MAX_RADIX / 2,
                _ => 13,
            },
            alone: if weak {
                8
            } else if caps.is_cpu() {
                MAX_RADIX
            } else {
                16
            },
            // where a load costs as much as dozens of shuffles; elsewhere workgroup memory is fast
            // and an invocation's registers are few
            lanes: caps
                .subgroup
                .filter(|_| caps.is_cpu() && !weak && caps.tier == Tier::Subgroup)
                .map_or(1, |(min, _)| 1 << min.min(16).ilog2()),
            points: (2 * shared * halves).min(4096),
            rows: (shared * halves).min(2048),
            halved: !caps.is_cpu(),
            costs: if caps.is_cpu() { CPU } else { GPU },
        }
    }

    /// Stages whose product is `n`, largest first.
    fn factors(&self, n: u32) -> Option<Vec<u32>> {
        let prime = |d: u32| (2..d).take_while(|f| f * f <= d).all(|f| !d.is_multiple_of(f));
        let allowed = |d: u32| d <= self.radix || d <= self.prime && prime(d);
        factors(n, self.radix.max(self.prime), &allowed)
    }
}

impl Recipe {
    /// The recipe for length `n`; `contiguous` if its points are neighbours in memory.
    pub(crate) fn new(n: u32, contiguous: bool, caps: &Caps) -> Self {
        let budget = Budget::of(caps);
        match passes(n, contiguous, &budget) {
            Some((_, passes)) => Self::Direct(passes),
            None => {
                let (m, passes) = convolution(n, &budget);
                Self::Bluestein { m, passes }
            }
        }
    }
}

/// The convolution length for Bluestein's method: the cheapest smooth one.
fn convolution(n: u32, budget: &Budget) -> (u32, Vec<Pass>) {
    let least = 2 * u64::from(n) - 1;
    let most = least.next_power_of_two();
    let smooth = |mut m: u64| {
        for f in [2, 3, 5, 7] {
            while m.is_multiple_of(f) {
                m /= f;
            }
        }
        m == 1
    };
    // the first few and the power of two: those between cost more than they save
    (least..most)
        .filter(|&m| smooth(m))
        .take(8)
        .chain([most])
        .filter_map(|m| {
            let m = u32::try_from(m).ok()?;
            let (cost, passes) = passes(m, true, budget)?;
            Some((cost * f64::from(m), m, passes))
        })
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, m, passes)| (m, passes))
        // a power of two always has passes
        .unwrap_or_else(|| unreachable!("no smooth length from {least} to {most}"))
}

/// What a pass costs for each point. `contiguous` is of the data: points are neighbours.
fn pass_cost(pass: &Pass, contiguous: bool, budget: &Budget) -> f64 {
    let c = &budget.costs;
    let even = |n: u32| n.is_multiple_of(2);
    let (input, output) = match pass.pairing {
        Pairing::Points => (true, true),
        Pairing::Rows if contiguous => {
            let alone = pass.stages.len() == 1;
            let runs = pass.shuffle.is_some_and(|lanes| pass.stages[0].is_multiple_of(2 * lanes));
            let run = even(pass.radix) && pass.p == 1;
            (
                if pass.m > 1 { even(pass.m) } else { run && alone },
                if pass.p > 1 { even(pass.m) && even(pass.p) } else { run && (alone || runs) },
            )
        }
        // pairs of columns
        Pairing::Rows => (true, true),
    };
    let singles = f64::from(u8::from(!input) + u8::from(!output));
    // neighbouring slots read neighbouring rows, two numbers each
    let run = f64::from((16 * pass.slots(&budget.caps)).min(64));
    let narrow = if contiguous && pass.m > 1 {
        (64.0 / run - 1.0) / 3.0 * f64::from(1 + u8::from(pass.p > 1))
    } else {
        0.0
    };
    let twiddles = if pass.p > 1 { c.twiddle + if input { 0.0 } else { c.single } } else { 0.0 };
    #[expect(clippy::cast_precision_loss, reason = "a few stages")]
    let exchanges = (pass.stages.len() - 1) as f64;
    let exchange = if pass.shuffle.is_some() { c.shuffle } else { c.shared };
    let flops: f64 = pass.stages.iter().map(|&r| flops(r)).sum();
    let held = pass.stages.iter().max().copied().unwrap_or(1);
    let spill = f64::from(held.saturating_sub(16));
    1.0 + singles * c.single
        + twiddles
        + exchanges * exchange
        + flops * c.flop
        + spill * c.spill
        + narrow * c.narrow
}

/// Real operations for each point of a DFT of length `n`, about.
fn flops(mut n: u32) -> f64 {
    let mut sum = 0.0;
    let mut f = 2;
    while n > 1 {
        while n.is_multiple_of(f) {
            n /= f;
            sum += if f == 2 { 5.0 } else { 2.0 * f64::from(f) + 3.0 };
        }
        f += 1;
    }
    sum
}

/// The cheapest passes of a direct transform and their cost for each point; `None` if `n` has too
/// large a prime factor.
fn passes(n: u32, contiguous: bool, budget: &Budget) -> Option<(f64, Vec<Pass>)> {
    let mut best: Option<(f64, Vec<Pass>)> = None;
    let mut offer = |passes: Vec<Pass>| {
        let cost = passes.iter().map(|p| pass_cost(p, contiguous, budget)).sum();
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, passes));
        }
    };
    let pairings: &[Pairing] =
        if contiguous { &[Pairing::Points, Pairing::Rows] } else { &[Pairing::Rows] };
    for &pairing in pairings {
        for (stages, shuffle) in ways(n, budget, pairing) {
            let halved = budget.halved && shuffle.is_none();
            offer(vec![Pass { radix: n, p: 1, m: 1, stages, pairing, shuffle, halved }]);
        }
    }
    if n <= budget.alone {
        return best;
    }
    // several passes read pairs of rows
    let pass = |radix: u32, p: u32, (stages, shuffle): &Way| Pass {
        radix,
        p,
        m: n / radix,
        stages: stages.clone(),
        pairing: Pairing::Rows,
        shuffle: *shuffle,
        halved: budget.halved && shuffle.is_none(),
    };
    let largest = budget.rows.min(n / 2);
    let parts: Vec<(u32, Vec<Way>)> = (2..=largest)
        .filter(|d| n.is_multiple_of(*d))
        .map(|d| (d, ways(d, budget, Pairing::Rows)))
        .filter(|(_, ways)| !ways.is_empty())
        .collect();
    let find = |d: u32| parts.iter().find(|(part, _)| *part == d).map(|(_, ways)| ways);
    for (a, first) in &parts {
        if let Some(second) = find(n / a) {
            for x in first {
                for y in second {
                    offer(vec![pass(*a, 1, x), pass(n / a, *a, y)]);
                }
            }
        }
    }
    // three passes pay only where two would be long
    if n > 4096 {
        for (a, first) in &parts {
            for (b, second) in parts.iter().filter(|(b, _)| (n / a).is_multiple_of(*b)) {
                let Some(third) = find(n / a / b) else { continue };
                // one way each: the most lanes come first
                offer(vec![
                    pass(*a, 1, &first[0]),
                    pass(*b, *a, &second[0]),
                    pass(n / a / b, a * b, &third[0]),
                ]);
            }
        }
    }
    best
}

/// Stages of a pass, and the lanes that shuffle between them.
type Way = (Vec<u32>, Option<u32>);

/// Every way to do a pass.
fn ways(radix: u32, budget: &Budget, pairing: Pairing) -> Vec<Way> {
    let plain = stages(radix, budget, pairing).map(|stages| (stages, None));
    shuffled_stages(radix, budget, pairing)
        .into_iter()
        .map(|(stages, lanes)| (stages, Some(lanes)))
        .chain(plain)
        .collect()
}

/// Two stages with a transpose of lanes and registers between them, and the number of lanes: the
/// second stage is as long as there are rows in the lanes, and each lane gets as many of its
/// results as the others.
fn shuffled_stages(radix: u32, budget: &Budget, pairing: Pairing) -> Vec<(Vec<u32>, u32)> {
    let rows = if pairing == Pairing::Points { 2 } else { 1 };
    let short = |r| budget.factors(r).is_some();
    (1..=budget.lanes.ilog2())
        .rev()
        .map(|log| 1 << log)
        .filter_map(|lanes| {
            let (first, last) = (radix / (rows * lanes), rows * lanes);
            let exact = radix == first * last && first.is_multiple_of(last);
            let fits = exact && first > 1 && first <= MAX_RADIX && short(first);
            fits.then(|| (vec![first, last], lanes))
        })
        .collect()
}

/// The stages of a pass, `None` if it does not fit a workgroup or the pairing.
fn stages(radix: u32, budget: &Budget, pairing: Pairing) -> Option<Vec<u32>> {
    let (largest, halves) = match pairing {
        Pairing::Points => (budget.points, 2),
        Pairing::Rows => (budget.rows, 1),
    };
    if radix > largest {
        return None;
    }
    if radix <= budget.alone {
        // one stage is one invocation, and has no neighbouring points; primes are dear
        let short = budget.factors(radix).is_some();
        return (pairing == Pairing::Rows && (radix == 1 || short)).then(|| vec![radix]);
    }
    let stages = budget.factors(radix)?;
    let least = stages.iter().min().copied().unwrap_or(1);
    if radix / least / halves > budget.caps.invocations {
        return None;
    }
    if pairing == Pairing::Rows {
        return Some(stages);
    }
    // each stage must read and write points by twos: even rows, an even first radix, even products
    let fits = |order: &[u32]| {
        order[0].is_multiple_of(2) && order.iter().all(|r| (radix / r).is_multiple_of(2))
    };
    // an even factor in front makes every later product even
    let mut order = stages;
    order.sort_by_key(|r| (r % 2, u32::MAX - r));
    fits(&order).then_some(order)
}

/// The fewest factors of at most `most`, each allowed, whose product is `n`; the most equal among
/// those. Largest first. `None` if there are none.
fn factors(n: u32, most: u32, allowed: &dyn Fn(u32) -> bool) -> Option<Vec<u32>> {
    fn search(n: u32, most: u32, count: usize, divisors: &[u32]) -> Option<Vec<u32>> {
        if count == 1 {
            return (n <= most && divisors.contains(&n)).then(|| vec![n]);
        }
        // not increasing; the smallest possible first factor gives the most equal ones
        let mut best: Option<Vec<u32>> = None;
        for &d in divisors {
            if d < 2
                || d > most
                || !n.is_multiple_of(d)
                || u64::from(d).saturating_pow(u32::try_from(count).unwrap_or(u32::MAX))
                    < u64::from(n)
            {
                continue;
            }
            if let Some(rest) = search(n / d, d, count - 1, divisors) {
                let candidate: Vec<u32> = std::iter::once(d).chain(rest).collect();
                let least = |v: &Vec<u32>| v.last().copied().unwrap_or(0);
                if best.as_ref().is_none_or(|b| least(b) < least(&candidate)) {
                    best = Some(candidate);
                }
            }
        }
        best
    }
    let divisors: Vec<u32> =
        (1..=most.min(n)).filter(|d| n.is_multiple_of(*d) && allowed(*d)).collect();
    (1..=20).find_map(|count| search(n, most, count, &divisors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceClass;
    use crate::fft::codelet::root;

    fn cpu() -> Caps {
        Caps {
            class: DeviceClass::Cpu,
            workgroup_storage: 32 << 10,
            invocations: 1024,
            ..Caps::minimum()
        }
    }

    fn gpu() -> Caps {
        Caps::minimum()
    }

    fn multiply(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
        (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
    }

    fn dft(x: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let n = x.len();
        (0..n)
            .map(|k| {
                x.iter().enumerate().fold((0.0, 0.0), |sum, (j, &x)| {
                    let term = multiply(x, root(j * k, n));
                    (sum.0 + term.0, sum.1 + term.1)
                })
            })
            .collect()
    }

    /// The rule of the module's head, with `inner` for the DFT of `r` points.
    fn stockham(
        x: &[(f64, f64)],
        r: usize,
        p: usize,
        inner: impl Fn(&[(f64, f64)]) -> Vec<(f64, f64)>,
    ) -> Vec<(f64, f64)> {
        let m = x.len() / r;
        let mut y = vec![(f64::NAN, f64::NAN); x.len()];
        for t in 0..m {
            let row: Vec<_> =
                (0..r).map(|j| multiply(x[t + j * m], root((t % p) * j, p * r))).collect();
            for (k, value) in inner(&row).into_iter().enumerate() {
                y[(t - t % p) * r + t % p + k * p] = value;
            }
        }
        y
    }

    fn run(passes: &[Pass], x: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let mut x = x.to_vec();
        for pass in passes {
            assert_eq!(pass.m * pass.radix, u32::try_from(x.len()).unwrap());
            x = stockham(&x, pass.radix as usize, pass.p as usize, |row: &[(f64, f64)]| {
                let (mut row, mut p) = (row.to_vec(), 1);
                for &r in &pass.stages {
                    row = stockham(&row, r as usize, p, dft);
                    p *= r as usize;
                }
                row
            });
        }
        x
    }

    #[test]
    fn every_direct_recipe_is_the_dft() {
        let mut direct = 0;
        let lanes8 = Caps { subgroup: Some((8, 8)), tier: Tier::Subgroup, ..cpu() };
        for caps in [cpu(), lanes8, gpu()] {
            for n in (1..=256).chain([512, 1000, 1024, 2048, 2187, 4096, 6561]) {
                for contiguous in [true, false] {
                    let Recipe::Direct(passes) = Recipe::new(n, contiguous, &caps) else {
                        continue;
                    };
                    direct += 1;
                    let x: Vec<_> = (0..n)
                        .map(|j| ((f64::from(j) * 0.7).sin(), (f64::from(j) * 1.3).cos()))
                        .collect();
                    let (got, want) = (run(&passes, &x), dft(&x));
                    let error = got
                        .iter()
                        .zip(&want)
                        .map(|(g, w)| (g.0 - w.0).hypot(g.1 - w.1))
                        .fold(0.0, f64::max);
                    assert!(error < 1e-11 * f64::from(n), "n = {n}, {passes:?}: {error}");
                }
            }
        }
        assert!(direct > 500, "only {direct} direct recipes");
    }

    #[test]
    fn every_pass_fits_its_device() {
        let small = Caps { invocations: 64, workgroup_storage: 8 << 10, ..Caps::minimum() };
        let lanes8 = Caps { subgroup: Some((8, 8)), tier: Tier::Subgroup, ..cpu() };
        for caps in [cpu(), lanes8, gpu(), small] {
            for n in (1..3000).chain([4096, 10_007, 1 << 16, 1 << 20, 1_000_003, 3u32.pow(12)]) {
                for contiguous in [true, false] {
                    let recipe = Recipe::new(n, contiguous, &caps);
                    let (length, passes) = match &recipe {
                        Recipe::Direct(passes) => (n, passes),
                        Recipe::Bluestein { m, passes } => (*m, passes),
                    };
                    assert!(length >= n);
                    let mut p = 1;
                    for pass in passes {
                        assert_eq!((pass.p, pass.m * pass.radix), (p, length));
                        assert_eq!(pass.stages.iter().product::<u32>(), pass.radix);
                        assert!(pass.stages.iter().all(|&r| r <= MAX_RADIX));
                        let slots = pass.slots(&caps);
                        assert!(
                            slots >= 1 && slots * pass.lanes() <= caps.invocations,
                            "{n}: {pass:?}"
                        );
                        assert!(
                            slots * pass.shared_bytes() <= caps.workgroup_storage,
                            "{n}: {pass:?}"
                        );
                        p *= pass.radix;
                    }
                    assert_eq!(p, length);
                }
            }
        }
    }

    #[test]
    fn recipes_are_as_expected() {
        let stages = |n, caps: &Caps| match Recipe::new(n, true, caps) {
            Recipe::Direct(passes) => passes.into_iter().map(|p| p.stages).collect(),
            Recipe::Bluestein { .. } => Vec::new(),
        };
        assert_eq!(stages(1, &cpu()), [[1]]);
        assert_eq!(stages(32, &cpu()), [[32]]);
        // where barriers are dear, two passes rather than an exchange
        assert_eq!(stages(1024, &cpu()), [[32], [32]]);
        let lanes8 = Caps { subgroup: Some((8, 8)), tier: Tier::Subgroup, ..cpu() };
        assert_eq!(stages(1024, &lanes8), [[64, 16]]);
        assert_eq!(stages(128, &lanes8), [[16, 8]]);
        assert_eq!(stages(1024, &gpu()), [[8, 8, 4, 4]]);
        assert_eq!(stages(1 << 16, &gpu()), [vec![8, 4, 4], vec![8, 8, 8]]);
        assert_eq!(stages(169, &gpu()), [[13, 13]]);
        // three passes in runs of 64 bytes, not two in runs of 16
        assert_eq!(stages(1 << 20, &gpu()).len(), 3);
        assert_eq!(stages(31, &cpu()), [[31]]);
        // a prime above the largest radix
        assert!(stages(37, &cpu()).is_empty());
        let Recipe::Bluestein { m, .. } = Recipe::new(37, true, &cpu()) else {
            panic!("37 is prime")
        };
        assert!((73..=128).contains(&m), "{m}");
    }
}
