//! brw's assembly: `L3:` before a block, `(f0.0) op (8) target sources {..}  // message`.

use crate::program::{Cutter, Effect, Instruction, Kind, Program, number};

/// Reads a listing.
pub(crate) fn read(text: &str) -> Program {
    let mut cutter = Cutter::default();
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if let Some(label) = line.strip_suffix(':') {
            cutter.label(label);
            continue;
        }
        // what predicates it; `(W)` alone is no predicate: it writes whatever lanes are on
        let (mask, line) = match line.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((mask, rest)) => (mask, rest.trim_start()),
            None => ("", line),
        };
        let op = line.split_whitespace().next().unwrap_or("");
        let i = instruction(line, op);
        cutter.push(i);
        if op == "break" {
            // it names the loop's "while", which lanes that have left do not go round
            cutter.leave(labels(line).pop());
            continue;
        }
        // lanes that do not jump go on; "else" is met only by those that have done their part
        let (jumps, falls) = match op {
            "if" | "endif" | "while" | "cont" | "halt" | "goto" | "join" => (true, true),
            "else" => (true, false),
            "jmpi" => (true, mask.contains('f')),
            _ => (false, true),
        };
        if jumps {
            cutter.jump(labels(line), falls);
        } else if line.contains("EOT") {
            cutter.jump(Vec::new(), false);
        }
    }
    cutter.finish()
}

/// The labels that a jump names: `jip:L4 uip:L9`, or `L3` alone.
fn labels(line: &str) -> Vec<String> {
    let words = line.split(|c: char| c.is_whitespace() || c == ':');
    let is_label = |w: &&str| {
        w.strip_prefix('L').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    words.filter(is_label).map(String::from).collect()
}

/// A register without its region and type: `r4` of `r4<0>:f`.
fn register(operand: &str) -> &str {
    operand.split(['<', ':']).next().unwrap_or("")
}

fn instruction(line: &str, op: &str) -> Instruction {
    let (code, message) = line.split_once("//").unwrap_or((line, ""));
    let code = code.split('{').next().unwrap_or("");
    // `mov (8)`, `send.ugm (1)`, `cmp (8) (ge)f0.0`
    let lanes = code.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    let lanes = lanes.and_then(|(n, _)| n.trim().parse().ok()).unwrap_or(1);
    let rest = code.split_once(')').map_or("", |(_, rest)| rest).trim();
    let rest = match rest.strip_prefix('(') {
        Some(condition) => condition.split_once(char::is_whitespace).map_or("", |(_, r)| r),
        None => rest,
    };
    let operands: Vec<&str> = rest.split_whitespace().collect();
    let target = operands.first().map_or("", |o| register(o));
    let mut i = Instruction { vector: 1, lanes, target: target.into(), ..Default::default() };
    let message = message.split_once(';').map_or("", |(_, m)| m.trim());
    i.kind = if op == "mad" && (rest.contains(":f") || rest.contains(":hf")) {
        i.fma = 1;
        Kind::MultiplyAdd
    } else if op.starts_with("dpas") {
        Kind::Matrix
    } else if op.starts_with("math") {
        Kind::Transcendental
    } else if op.starts_with("send") {
        i.words = words(message);
        let load = message.starts_with("load");
        match message {
            m if m.contains("ss[") => Kind::Scratch,
            m if m.contains("fence") || m.contains("barrier") => Kind::Barrier,
            m if m.contains(".slm.") && load => Kind::SharedLoad,
            m if m.contains(".slm.") => Kind::SharedStore,
            m if m.contains(".ugm.") && load => Kind::GlobalLoad,
            m if m.contains(".ugm.") => Kind::GlobalStore,
            _ => Kind::Control,
        }
    } else if op == "sync.nop" {
        Kind::Wait
    } else if op == "sync.bar" {
        Kind::Barrier
    } else if rest.contains("r[a0") {
        // a register chosen by a lane's value; a chosen lane alone is a region of any operand, and free
        if lanes > 1 { Kind::Shuffle } else { Kind::Broadcast }
    } else if ["if", "else", "endif", "while", "break", "cont", "halt", "goto", "join", "jmpi"]
        .contains(&op)
    {
        Kind::Control
    } else {
        Kind::Vector
    };
    i.effect = effect(op, &operands);
    i
}

/// 32-bit words of one lane in a message: 4 of `load.slm.d32x4.a32`; a transposed `x8t` is of one lane.
fn words(message: &str) -> u32 {
    let part =
        message.split('.').find(|p| p.starts_with('d') && p[1..].starts_with(char::is_numeric));
    let Some(part) = part else { return 0 };
    let (bits, count) = part[1..].split_once('x').unwrap_or((&part[1..], "1"));
    let bits: u32 = bits.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(32);
    let count: u32 = count.trim_end_matches('t').parse().unwrap_or(1);
    bits.div_ceil(32).max(1) * count
}

/// What counts a loop's turns: moves, additions and comparisons of integers.
fn effect(op: &str, operands: &[&str]) -> Effect {
    let value = |operand: &str| number(register(operand));
    match (op, operands) {
        ("mov", [_, from]) if !from.contains(":f") => value(from).map_or(Effect::None, Effect::Set),
        ("add", [to, a, b]) if register(to) == register(a) => {
            value(b).map_or(Effect::None, Effect::Add)
        }
        ("cmp", [_, a, b]) if !b.contains(":f") => {
            value(b).map_or(Effect::None, |n| Effect::Compare(register(a).into(), n))
        }
        _ => Effect::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Part;

    const TEXT: &str = include_str!("../samples/intel.s");

    /// A loop of unknown length with one multiply-add, in it one of 16 turns with two.
    #[test]
    fn a_listing_is_counted() {
        let program = read(TEXT);
        let loops = program.loops();
        assert_eq!(loops.iter().map(|l| l.turns).collect::<Vec<_>>(), [None, Some(16.0)]);
        let (part, mix) = program.hot(8, 8.0);
        assert_eq!(part, Part::Loops(2));
        assert_eq!((mix.fma, mix.issued), (33.0, 13.0 + 16.0 * 8.0));
        assert_eq!((mix.shuffles, mix.broadcasts, mix.scratch), (1.0, 1.0, 1.0));
        assert_eq!((mix.shared, mix.shared_words), (16.0, 64.0));
        // of eight words for one lane of eight
        assert_eq!((mix.scratch_words, mix.global_words), (1.0, 1.0));
        assert_eq!((mix.transcendental, mix.barriers), (1.0, 1.0));
        // all but the exponential take one step
        assert_eq!(mix.steps, mix.issued + 3.0);
    }

    #[test]
    fn messages_tell_how_much_they_move() {
        for (message, wanted) in [
            ("load.slm.d32x4.a32", 4),
            ("load.ugm.d32.a32.bti[0]", 1),
            ("load.ugm.d32x8t.a32.ss[a0.4]", 8),
            ("load.ugm.d64x2.a64", 4),
            ("load.ugm.d16u32.a32", 1),
            ("barrier_msg (8)", 0),
        ] {
            assert_eq!(words(message), wanted, "{message}");
        }
    }
}
