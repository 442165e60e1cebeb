//! From counts to figures: what a kernel takes on a card, and a bound by counting.
//!
//! The bound is a model, not a measurement: of the time that the card's units need for the hot loop,
//! each at its published rate and all of them perfectly side by side, the multiply-adds' part at their
//! peak rate. Waits, caches, bank conflicts, bandwidth beyond the first cache and everything outside
//! the hot loop are left out: no kernel is faster than its bound, and most are slower.

use crate::card::{Card, Vendor};
use crate::program::{Mix, Part};
use crate::translate::Kernel;
use crate::vulkan::Compiled;

/// What a kernel takes on a card.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Figures {
    pub(crate) subgroup: u32,
    /// Vector registers of a lane (AMD), registers of a lane (NVIDIA), the most of a thread that are live
    /// at once before any is spilled, in units of 32 bytes (Intel).
    pub(crate) registers: u64,
    /// Registers put aside into memory: how many (AMD), or by how many instructions (the others).
    pub(crate) spills: u64,
    /// Instructions that fetch them again; not told for AMD.
    pub(crate) fills: Option<u64>,
    /// Scalar registers put into vector ones (AMD), predicates into registers (NVIDIA).
    pub(crate) scalar_spills: u64,
    pub(crate) workgroup_memory: u32,
    /// Waves of a SIMD or warps of an SM at a time; Intel always has eight threads to an engine.
    pub(crate) waves: Option<u64>,
    pub(crate) code: u64,
    pub(crate) part: Part,
    pub(crate) mix: Mix,
    /// Multiply-adds among the instructions of the hot part: of all vector operations (AMD), of all
    /// that are issued (the others).
    pub(crate) share: Option<f64>,
    /// The bound, and what binds.
    pub(crate) bound: Option<(f64, &'static str)>,
}

/// The figures of a compiled kernel.
pub(crate) fn figures(
    card: &Card,
    compiled: &Compiled,
    (part, mix): (Part, Mix),
    kernel: &Kernel,
) -> Figures {
    let workgroup_memory = kernel.workgroup_memory;
    let told = |name: &str| compiled.statistics.get(name).copied();
    let get = |name: &str| told(name).unwrap_or(0);
    let subgroup = compiled.subgroup.max(1);
    let (registers, spills, fills, scalar_spills, waves) = match card.vendor {
        Vendor::Amd => {
            // RADV counts a wave of 64 twice
            let waves = get("Subgroups per SIMD") / u64::from(subgroup / 32).max(1);
            (get("VGPRs"), get("Spilled VGPRs"), None, get("Spilled SGPRs"), Some(waves))
        }
        Vendor::Nvidia => {
            let fills = Some(get("Fills from memory"));
            let mut waves = get("Max warps/SM");
            if let Some(groups) = card.shared.checked_div(workgroup_memory) {
                waves = waves.min(u64::from(groups * kernel.invocations.div_ceil(32)));
            }
            let registers = get("Number of GPRs");
            (registers, get("Spills to memory"), fills, get("Spills to reg"), Some(waves))
        }
        Vendor::Intel => (get("Max live registers"), get("Spills"), Some(get("Fills")), 0, None),
    };
    let among = match card.vendor {
        Vendor::Amd => mix.vector,
        _ => mix.issued,
    };
    let share = (mix.fma > 0.0 && mix.matrix == 0.0).then(|| mix.fma / among);
    let bound = share.map(|_| bound(card, &mix, subgroup));
    Figures {
        subgroup,
        registers,
        spills,
        fills,
        scalar_spills,
        workgroup_memory,
        waves,
        code: get("Code size"),
        part,
        mix,
        share,
        bound,
    }
}

/// The bound, as a part of the peak, and the unit that sets it. Times are clocks of one turn of the hot
/// part of one subgroup: on a SIMD (AMD), an SM (NVIDIA), a vector engine (Intel).
fn bound(card: &Card, mix: &Mix, subgroup: u32) -> (f64, &'static str) {
    let lanes = f64::from(subgroup);
    let at_peak = mix.fma * lanes / card.lanes;
    let units = match card.vendor {
        Vendor::Amd => {
            // 32 lanes a clock; multiply-adds of 64 lanes in one where the card has twice the rate
            let one = lanes / 32.0;
            let fma = if card.lanes > 32.0 && subgroup == 64 { one / 2.0 } else { one };
            let other = mix.vector - mix.fma - mix.transcendental - mix.matrix;
            let vector = mix.fma * fma + other * one + mix.transcendental * 4.0 * one
                - mix.paired * one
                + mix.matrix * 32.0;
            // two SIMDs share 128 bytes a clock of workgroup memory, 64 of the first cache
            let shared = mix.shared_words * lanes * 4.0 / 64.0;
            let cache = (mix.global_words + mix.scratch_words) * lanes * 4.0 / 32.0;
            [(vector, "vector"), (shared, "workgroup memory"), (cache, "cache"), (0.0, "")]
        }
        Vendor::Nvidia => {
            // four instructions a clock; shuffles and 128 bytes of memory one; transcendentals half of one
            let memory = mix.shared_words + mix.global_words + mix.scratch_words;
            let issue = mix.issued / 4.0;
            let slow = mix.transcendental * 2.0;
            let vector = at_peak.max(slow);
            [(issue, "issue"), (vector, "vector"), (mix.shuffles, "shuffles"), (memory, "memory")]
        }
        Vendor::Intel => {
            // the engines of a core share 128 bytes a clock
            let words = mix.shared_words + mix.global_words + mix.scratch_words;
            let memory = words * lanes * 4.0 / 128.0 * card.engines;
            [(mix.steps, "issue"), (memory, "memory"), (0.0, ""), (0.0, "")]
        }
    };
    let slowest = units.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((at_peak, ""));
    ((at_peak / slowest.0).min(1.0), slowest.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(card: &str, mix: Mix, subgroup: u32) -> (f64, &'static str) {
        bound(Card::find(card).unwrap(), &mix, subgroup)
    }

    #[test]
    fn bounds_follow_from_the_rates() {
        let mix =
            |fma, other| Mix { fma, vector: fma + other, issued: fma + other, ..Mix::default() };
        // all multiply-adds: the peak, where the machine is filled
        assert_eq!(of("rdna3", mix(100.0, 0.0), 64), (1.0, "vector"));
        assert_eq!(of("rdna3", mix(100.0, 0.0), 32).0, 0.5);
        assert_eq!(of("rdna2", mix(100.0, 0.0), 64).0, 1.0);
        // in a wave of 64, another instruction takes the time of two multiply-adds
        assert_eq!(of("rdna3", mix(100.0, 50.0), 64).0, 0.5);
        assert_eq!(of("rdna2", mix(100.0, 100.0), 64).0, 0.5);
        // a shuffle to each multiply-add leaves a quarter
        let shuffles = Mix { shuffles: 100.0, ..mix(100.0, 100.0) };
        assert_eq!(of("ada", shuffles.clone(), 32), (0.25, "shuffles"));
        // of an A100's half rate, a half
        assert_eq!(of("ampere", shuffles, 32).0, 0.5);
        assert_eq!(of("ada", mix(100.0, 100.0), 32), (0.5, "issue"));
        // 272 loads of four words by eight lanes on each of 16 engines
        let loads = Mix { steps: 2340.0, shared_words: 1088.0, ..mix(2068.0, 272.0) };
        let (part, unit) = of("dg2", loads, 8);
        assert_eq!(unit, "memory");
        assert!((part - 0.475).abs() < 0.001, "{part}");
    }
}
