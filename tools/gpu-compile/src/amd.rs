//! ACO's assembly (RDNA): `BB3:` before a block, one instruction a line, comments after `;`.

use crate::program::{Cutter, Effect, Instruction, Kind, Program, number};

/// Reads a listing.
pub(crate) fn read(text: &str) -> Program {
    let mut cutter = Cutter::default();
    for line in text.lines() {
        let line = line.split(';').next().unwrap_or("").trim();
        // "(then repeated 4 times)" stands after padding
        if line.is_empty() || line.starts_with('(') {
            continue;
        }
        if let Some(label) = line.strip_suffix(':') {
            cutter.label(label);
            continue;
        }
        let (op, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        cutter.push(instruction(line, op, rest));
        if op.starts_with("s_cbranch") || op == "s_branch" {
            cutter.jump(vec![rest.trim().into()], op != "s_branch");
        } else if op.starts_with("s_endpgm") || op.starts_with("s_setpc") {
            cutter.jump(Vec::new(), false);
        }
    }
    cutter.finish()
}

/// Whether it multiplies and adds floats; `v_mad_u32_u24` does not.
fn multiplies(op: &str) -> bool {
    const NAMES: [&str; 9] =
        ["fma_", "fmac_", "fmaak_", "fmamk_", "mac_f", "mad_f", "mad_mix", "mad_legacy", "dot2"];
    let name = op.trim_start_matches("v_").trim_start_matches("dual_").trim_start_matches("pk_");
    NAMES.iter().any(|n| name.starts_with(n))
}

/// 32-bit words of one lane in a load or store.
fn words(op: &str) -> u32 {
    let wide = [("b512", 16), ("b256", 8), ("b128", 4), ("x4", 4), ("b96", 3), ("x3", 3)];
    let two = if op.contains("2addr") { 2 } else { 1 };
    let all = wide.iter().chain(&[("b64", 2), ("x2", 2)]);
    two * all.clone().find(|(name, _)| op.contains(name)).map_or(1, |(_, n)| *n)
}

fn instruction(line: &str, op: &str, rest: &str) -> Instruction {
    let mut i = Instruction { kind: Kind::Scalar, ..Default::default() };
    let mut operands = rest.split(',').map(str::trim);
    i.target = operands.next().unwrap_or("").into();
    if op.starts_with("v_dual_") {
        i.kind = Kind::Vector;
        i.vector = 2;
        let halves = line.split("::").map(|h| h.split_whitespace().next().unwrap_or(""));
        i.fma = halves.filter(|op| multiplies(op)).count() as u32;
    } else if let Some(name) = op.strip_prefix("v_") {
        const SLOW: [&str; 7] = ["exp_", "log_", "rcp_", "rsq_", "sqrt_", "sin_", "cos_"];
        i.vector = 1;
        i.kind = if name.contains("wmma") {
            Kind::Matrix
        } else if multiplies(op) {
            i.fma = 1;
            Kind::MultiplyAdd
        } else if SLOW.iter().any(|slow| name.starts_with(slow)) {
            Kind::Transcendental
        } else if ["readlane", "readfirstlane", "writelane"].iter().any(|n| name.starts_with(n)) {
            Kind::Broadcast
        } else if name.starts_with("permlane") || line.contains("dpp") || line.contains(" row_") {
            Kind::Shuffle
        } else {
            Kind::Vector
        };
    } else if let Some(name) = op.strip_prefix("ds_") {
        i.words = words(op);
        i.kind = if name.contains("permute") || name.contains("swizzle") {
            Kind::Shuffle
        } else if name.contains("addtid") {
            // ACO spills into workgroup memory that is left over
            Kind::Scratch
        } else if name.contains("load") || name.contains("read") {
            Kind::SharedLoad
        } else {
            Kind::SharedStore
        };
    } else if op.starts_with("scratch_") {
        i.words = words(op);
        i.kind = Kind::Scratch;
    } else if ["buffer_", "global_", "flat_", "image_"].iter().any(|n| op.starts_with(n)) {
        i.words = words(op);
        i.kind = if op.contains("inv") || op.contains("wb") {
            i.words = 0;
            Kind::Barrier
        } else if op.contains("load") {
            Kind::GlobalLoad
        } else {
            Kind::GlobalStore
        };
    } else if op.starts_with("s_barrier") {
        i.kind = Kind::Barrier;
    } else if ["s_wait", "s_delay", "s_clause", "s_nop", "s_set_inst", "s_code_end"]
        .iter()
        .any(|n| op.starts_with(n))
    {
        i.kind = Kind::Wait;
    } else if op.contains("branch") || op.starts_with("s_endpgm") {
        i.kind = Kind::Control;
    }
    i.effect = effect(op, &i.target, operands.next(), operands.next());
    if matches!(i.effect, Effect::Compare(..)) || op.starts_with("s_cmp") {
        i.target = String::new();
    }
    i
}

/// What counts a loop's turns: moves, additions and comparisons of integers.
fn effect(op: &str, first: &str, second: Option<&str>, third: Option<&str>) -> Effect {
    let name = op.trim_end_matches("_e32").trim_end_matches("_e64");
    let second = second.unwrap_or("");
    if matches!(name, "s_mov_b32" | "s_movk_i32" | "v_mov_b32") {
        return number(second).map_or(Effect::None, Effect::Set);
    }
    if name == "s_addk_i32" {
        return number(second).map_or(Effect::None, |n| Effect::Add(i64::from(n as i16)));
    }
    if matches!(name, "s_add_u32" | "s_add_i32" | "v_add_nc_u32") {
        let third = third.unwrap_or("");
        let by = match (first == second, first == third) {
            (true, _) => number(third),
            (_, true) => number(second),
            _ => None,
        };
        return by.map_or(Effect::None, Effect::Add);
    }
    if name.starts_with("s_cmp") && !name.contains("_f") {
        return number(second).map_or(Effect::None, |n| Effect::Compare(first.into(), n));
    }
    // the constant stands first: v_cmp_gt_u32 vcc, 64, v1
    let integers = name.ends_with("u32") || name.ends_with("i32");
    if name.starts_with("v_cmp_") && integers {
        return number(second)
            .map_or(Effect::None, |n| Effect::Compare(third.unwrap_or("").into(), n));
    }
    if name.starts_with("v_cmpx_") && integers {
        return number(first).map_or(Effect::None, |n| Effect::Compare(second.into(), n));
    }
    Effect::None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Part;

    const TEXT: &str = include_str!("../samples/amd.s");

    /// An outer loop of unknown length: two multiply-adds of its own and an inner loop of four turns
    /// with five.
    #[test]
    fn a_listing_is_counted() {
        let program = read(TEXT);
        let loops = program.loops();
        assert_eq!(loops.iter().map(|l| l.turns).collect::<Vec<_>>(), [None, Some(4.0)]);
        let (part, mix) = program.hot(64, 64.0);
        assert_eq!(part, Part::Loops(2));
        assert_eq!((mix.fma, mix.vector, mix.paired), (22.0, 38.0, 4.0));
        assert_eq!((mix.broadcasts, mix.shuffles, mix.scratch), (5.0, 1.0, 1.0));
        assert_eq!((mix.shared, mix.shared_words), (4.0, 16.0));
        assert_eq!((mix.global, mix.global_words, mix.barriers), (1.0, 4.0, 1.0));
        assert_eq!(mix.transcendental, 1.0);
    }

    #[test]
    fn instructions_have_their_kinds() {
        let kind = |line: &str| {
            let (op, rest) = line.split_once(' ').unwrap_or((line, ""));
            instruction(line, op, rest).kind
        };
        for (line, wanted) in [
            ("v_fmac_f32_e32 v1, s2, v3", Kind::MultiplyAdd),
            ("v_pk_fma_f16 v1, v2, v3, v4", Kind::MultiplyAdd),
            ("v_fma_mix_f32 v1, v2, v3, v4", Kind::MultiplyAdd),
            ("v_mad_u32_u24 v1, v2, v3, v4", Kind::Vector),
            ("v_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]", Kind::Matrix),
            ("v_permlanex16_b32 v1, v2, s3, s4", Kind::Shuffle),
            ("v_add_f32_dpp v1, v2, v3 row_shl:1", Kind::Shuffle),
            ("ds_bpermute_b32 v1, v2, v3", Kind::Shuffle),
            ("ds_store_b128 v1, v[2:5]", Kind::SharedStore),
            ("ds_load_addtid_b32 v1 offset:4", Kind::Scratch),
            ("buffer_store_b32 v1, v2, s[0:3], 0", Kind::GlobalStore),
            ("buffer_gl0_inv", Kind::Barrier),
            ("s_buffer_load_b512 s[0:15], s[4:7], 0", Kind::Scalar),
            ("s_wait_loadcnt 0x0", Kind::Wait),
        ] {
            assert_eq!(kind(line), wanted, "{line}");
        }
    }
}
