//! NAK's assembly: `block 4 L7 [2, 3] -> {` to `} -> [5, 6]`, in it `r1 p0 = op sources // notes`.

use crate::program::{Block, Effect, Instruction, Kind, Program, number};

/// Reads a listing.
pub(crate) fn read(text: &str) -> Program {
    let mut numbers: Vec<usize> = Vec::new();
    let mut blocks: Vec<Block> = Vec::new();
    for line in text.lines() {
        let trimmed = line.trim();
        if line.starts_with("block") {
            let number = line.split_whitespace().nth(1).and_then(|n| n.parse().ok());
            numbers.push(number.unwrap_or(blocks.len()));
            blocks.push(Block::default());
        } else if let Some(block) = blocks.last_mut() {
            if let Some(rest) = trimmed.strip_prefix('}') {
                let next = rest.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
                block.next = next.collect();
            } else if !trimmed.is_empty() {
                block.code.push(instruction(trimmed));
            }
        }
    }
    // blocks are named by numbers; theirs in the listing are what counts here
    for block in &mut blocks {
        let places = block.next.iter().filter_map(|n| numbers.iter().position(|m| m == n));
        block.next = places.collect();
    }
    Program { blocks }
}

/// 32-bit words of one lane in a load or store: by its last `.b32`, `.b64` or `.b128`.
fn words(op: &str) -> u32 {
    op.split('.')
        .rev()
        .find_map(|part| part.strip_prefix('b')?.parse::<u32>().ok())
        .map_or(1, |b| b.div_ceil(32))
}

fn instruction(line: &str) -> Instruction {
    let code = line.split("//").next().unwrap_or("").trim();
    let (targets, right) = match code.split_once(" = ") {
        Some((targets, right)) => (targets.trim(), right.trim()),
        None => ("", code),
    };
    // a predicate may stand before either
    let plain = |text: &str| -> String {
        let words = text.split_whitespace().skip_while(|w| w.starts_with('@'));
        words.collect::<Vec<_>>().join(" ")
    };
    let (targets, right) = (plain(targets), plain(right));
    let op = right.split(' ').next().unwrap_or("");
    let mut i = Instruction {
        vector: 1,
        target: targets.split(' ').next().unwrap_or("").into(),
        ..Default::default()
    };
    let starts = |names: &[&str]| names.iter().any(|n| op.starts_with(n));
    i.kind = if starts(&["ffma", "hfma2"]) {
        i.fma = 1;
        Kind::MultiplyAdd
    } else if starts(&["hmma", "imma"]) {
        Kind::Matrix
    } else if op.starts_with("mufu") {
        Kind::Transcendental
    } else if op.starts_with("shfl") {
        Kind::Shuffle
    } else if op.starts_with("r2ur") {
        Kind::Broadcast
    } else if starts(&["ld.shared", "lds"]) {
        Kind::SharedLoad
    } else if starts(&["st.shared", "sts"]) {
        Kind::SharedStore
    } else if starts(&["ld.local", "ldl", "st.local", "stl"]) {
        Kind::Scratch
    } else if starts(&["ld.global", "ldg", "ld.a64"]) {
        Kind::GlobalLoad
    } else if starts(&["st.global", "stg", "st.a64", "atom", "red."]) {
        Kind::GlobalStore
    } else if starts(&["bar", "membar", "ccctl"]) {
        Kind::Barrier
    } else if starts(&["bra", "bssy", "bsync", "bclear", "nop", "exit", "warpsync", "bmov", "brk"])
    {
        Kind::Control
    } else {
        Kind::Vector
    };
    if matches!(
        i.kind,
        Kind::SharedLoad | Kind::SharedStore | Kind::GlobalLoad | Kind::GlobalStore | Kind::Scratch
    ) {
        i.words = words(op);
    }
    i.effect = effect(&right, &i.target);
    i
}

/// What counts a loop's turns: moves, additions and comparisons of integers.
fn effect(code: &str, target: &str) -> Effect {
    let mut words = code.split(' ');
    let op = words.next().unwrap_or("");
    let sources: Vec<&str> = words.collect();
    let constants: Vec<i64> = sources.iter().filter_map(|s| number(s)).collect();
    match (op, &constants[..]) {
        ("mov", [value]) => Effect::Set(*value),
        // rZ is zero
        ("mov", []) if sources == ["rZ"] || sources == ["urZ"] => Effect::Set(0),
        ("iadd3", [by]) => {
            let others = sources.iter().filter(|s| number(s).is_none() && !s.ends_with("rZ"));
            if others.eq([&target]) { Effect::Add(*by) } else { Effect::None }
        }
        (_, [bound]) if op.starts_with("isetp") => {
            let register = sources.iter().find(|s| number(s).is_none()).copied().unwrap_or("");
            Effect::Compare(register.into(), *bound)
        }
        _ => Effect::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Part;

    const TEXT: &str = include_str!("../samples/nvidia.s");

    /// A loop of unknown length with one multiply-add, in it one of eight turns with three.
    #[test]
    fn a_listing_is_counted() {
        let program = read(TEXT);
        let loops = program.loops();
        assert_eq!(loops.iter().map(|l| l.turns).collect::<Vec<_>>(), [None, Some(8.0)]);
        let (part, mix) = program.hot(32, 32.0);
        assert_eq!(part, Part::Loops(2));
        assert_eq!((mix.fma, mix.issued), (25.0, 9.0 + 8.0 * 8.0 + 3.0));
        assert_eq!((mix.shuffles, mix.broadcasts, mix.scratch), (8.0, 1.0, 2.0));
        assert_eq!((mix.shared, mix.shared_words), (8.0, 32.0));
        assert_eq!((mix.global_words, mix.transcendental, mix.barriers), (1.0, 1.0, 1.0));
    }

    #[test]
    fn instructions_have_their_kinds() {
        for (line, wanted) in [
            ("r1      = ffma.ftz r2 r3 r1   // delay=4", Kind::MultiplyAdd),
            ("@!p0    r1 = hfma2 r2 r3 r1", Kind::MultiplyAdd),
            ("r4..8   = hmma.m16n8k16.f32 r0..4 r8..10 rZ", Kind::Matrix),
            ("@p0     st.global.a64.strong.gpu.b128 [r4..6+rZ] r8..12", Kind::GlobalStore),
            ("r1 p0   = iadd3 r1 c[0x1][0x30] rZ", Kind::Vector),
            ("@!p0            bra pT L14", Kind::Control),
            ("bar.sync", Kind::Barrier),
        ] {
            assert_eq!(instruction(line).kind, wanted, "{line}");
        }
        assert_eq!(words("st.global.a64.strong.gpu.b128"), 4);
        assert_eq!(words("ld.shared.strong.cta.b16"), 1);
    }
}
