//! A compiled kernel as blocks of instructions, its loops, and what the hot one is made of.

/// What an instruction is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A multiply-add of 32-bit floats, or of pairs of 16-bit ones.
    MultiplyAdd,
    /// A product of matrices.
    Matrix,
    /// Exponentials, logarithms, reciprocals, roots.
    Transcendental,
    /// Any other vector instruction, or, where all are alike, any other at all.
    #[default]
    Vector,
    /// A lane's value to all lanes or to a scalar register.
    Broadcast,
    /// Values from lane to lane.
    Shuffle,
    /// A load from workgroup memory.
    SharedLoad,
    /// A store to workgroup memory.
    SharedStore,
    /// A load from a buffer.
    GlobalLoad,
    /// A store to a buffer.
    GlobalStore,
    /// Memory of the invocation itself, where spilled registers live.
    Scratch,
    /// A barrier or a fence.
    Barrier,
    /// A scalar instruction beside the vector ones (AMD).
    Scalar,
    /// A branch, or what prepares one.
    Control,
    /// Takes no place among those issued: it says how long to wait.
    Wait,
}

/// What an instruction does to a register that may count a loop's turns.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Effect {
    /// Nothing that is followed.
    #[default]
    None,
    /// Sets it to a constant.
    Set(i64),
    /// Adds a constant to it.
    Add(i64),
    /// Compares that register with a constant.
    Compare(String, i64),
}

/// An instruction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Instruction {
    pub(crate) kind: Kind,
    /// Vector operations in it: 2 if two share a line, 0 if it is none.
    pub(crate) vector: u32,
    /// Multiply-adds among them.
    pub(crate) fma: u32,
    /// 32-bit words that a lane loads or stores.
    pub(crate) words: u32,
    /// Lanes that it is for, or 0 if for all of the subgroup.
    pub(crate) lanes: u32,
    /// The register that it writes.
    pub(crate) target: String,
    pub(crate) effect: Effect,
}

/// Instructions that run one after another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Block {
    pub(crate) code: Vec<Instruction>,
    /// Blocks that may be next.
    pub(crate) next: Vec<usize>,
}

/// A kernel: blocks in the order of the listing, of which the first is where it starts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub(crate) blocks: Vec<Block>,
}

/// Counts of instructions, of one turn of a loop; fractions come from weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Mix {
    /// All that are issued.
    pub(crate) issued: f64,
    /// Vector operations.
    pub(crate) vector: f64,
    /// Lines that hold two of them.
    pub(crate) paired: f64,
    pub(crate) fma: f64,
    pub(crate) matrix: f64,
    pub(crate) transcendental: f64,
    pub(crate) broadcasts: f64,
    pub(crate) shuffles: f64,
    pub(crate) shared: f64,
    /// Words that a subgroup moves from and to workgroup memory, in words of one lane.
    pub(crate) shared_words: f64,
    pub(crate) global: f64,
    pub(crate) global_words: f64,
    pub(crate) scratch: f64,
    pub(crate) scratch_words: f64,
    pub(crate) barriers: f64,
    /// Sums over instructions of the lanes that they are for, in steps of the machine's width.
    pub(crate) steps: f64,
}

impl Mix {
    /// Adds an instruction `weight` times. `lanes`: of a subgroup; `width`: of the machine, for steps.
    fn add(&mut self, i: &Instruction, weight: f64, lanes: u32, width: f64) {
        if i.kind == Kind::Wait {
            return;
        }
        let of = if i.lanes == 0 { lanes } else { i.lanes };
        // of a load by few lanes, as a part of one by all
        let words = weight * f64::from(i.words) * f64::from(of) / f64::from(lanes.max(1));
        self.issued += weight;
        self.vector += weight * f64::from(i.vector);
        self.paired += if i.vector > 1 { weight } else { 0.0 };
        self.fma += weight * f64::from(i.fma);
        let mut slow = 1.0;
        match i.kind {
            Kind::Matrix => self.matrix += weight,
            Kind::Transcendental => {
                self.transcendental += weight;
                slow = 4.0;
            }
            Kind::Broadcast => self.broadcasts += weight,
            Kind::Shuffle => self.shuffles += weight,
            Kind::SharedLoad | Kind::SharedStore => {
                self.shared += weight;
                self.shared_words += words;
            }
            Kind::GlobalLoad | Kind::GlobalStore => {
                self.global += weight;
                self.global_words += words;
            }
            Kind::Scratch => {
                self.scratch += weight;
                self.scratch_words += words;
            }
            Kind::Barrier => self.barriers += weight,
            _ => {}
        }
        // a message to memory leaves the engine in one step
        let steps = match i.kind {
            Kind::SharedLoad
            | Kind::SharedStore
            | Kind::GlobalLoad
            | Kind::GlobalStore
            | Kind::Scratch
            | Kind::Barrier => 1.0,
            _ => (f64::from(of) / width).ceil().max(1.0),
        };
        self.steps += weight * steps * slow;
    }
}

/// A natural loop: blocks from which its head is reached again without leaving it.
#[derive(Clone, Debug)]
pub(crate) struct Loop {
    /// Its blocks, sorted.
    pub(crate) blocks: Vec<usize>,
    /// The smallest loop around it.
    pub(crate) parent: Option<usize>,
    /// Times that it goes round, if the code says so.
    pub(crate) turns: Option<f64>,
}

/// What the hot part of a kernel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A loop with the loops in it, each by its number of turns.
    Loops(usize),
    /// All of the kernel: it has no loop, or none that matters.
    Whole,
}

impl Part {
    /// In words.
    pub(crate) fn text(self) -> String {
        match self {
            Self::Loops(1) => "loop".into(),
            Self::Loops(n) => format!("{n} loops"),
            Self::Whole => "whole".into(),
        }
    }
}

/// Turns of a loop of unknown length, where it is weighed against code outside: as ACO does.
const UNKNOWN_TURNS: f64 = 8.0;

impl Program {
    /// The loops, inner ones after those around them.
    pub(crate) fn loops(&self) -> Vec<Loop> {
        let count = self.blocks.len();
        let before = self.before();
        let dominators = self.dominators(&before);
        let dominates = |a: usize, mut b: usize| loop {
            if a == b {
                return true;
            }
            match dominators[b] {
                Some(up) if up != b => b = up,
                _ => return false,
            }
        };
        let mut bodies: Vec<(usize, Vec<bool>)> = Vec::new();
        for (from, block) in self.blocks.iter().enumerate() {
            for &head in &block.next {
                if dominators[from].is_none() || !dominates(head, from) {
                    continue;
                }
                let at = bodies.iter().position(|(h, _)| *h == head).unwrap_or_else(|| {
                    let mut body = vec![false; count];
                    body[head] = true;
                    bodies.push((head, body));
                    bodies.len() - 1
                });
                let body = &mut bodies[at].1;
                let mut todo = vec![from];
                while let Some(b) = todo.pop() {
                    if !body[b] {
                        body[b] = true;
                        todo.extend(before[b].iter().filter(|p| dominators[**p].is_some()));
                    }
                }
            }
        }
        let size = |body: &[bool]| body.iter().filter(|b| **b).count();
        bodies.sort_by_key(|(head, body)| (std::cmp::Reverse(size(body)), *head));
        let mut found: Vec<Loop> = Vec::new();
        for (head, body) in bodies {
            let parent = found.iter().rposition(|outer| outer.blocks.binary_search(&head).is_ok());
            let blocks = (0..count).filter(|b| body[*b]).collect();
            found.push(Loop { turns: self.turns(head, &body), blocks, parent });
        }
        found
    }

    /// For each block, those that may be before it.
    fn before(&self) -> Vec<Vec<usize>> {
        let mut before = vec![Vec::new(); self.blocks.len()];
        for (from, block) in self.blocks.iter().enumerate() {
            for &to in &block.next {
                before[to].push(from);
            }
        }
        before
    }

    /// For each block that can be reached, the last one that every way to it passes (Cooper, Harvey
    /// and Kennedy 2001, A simple, fast dominance algorithm).
    fn dominators(&self, before: &[Vec<usize>]) -> Vec<Option<usize>> {
        let count = self.blocks.len();
        let mut found = vec![None; count];
        if count == 0 {
            return found;
        }
        // depth first, each block after those that follow it
        let (mut order, mut seen) = (Vec::new(), vec![false; count]);
        let mut stack = vec![(0, 0)];
        seen[0] = true;
        while let Some((block, at)) = stack.pop() {
            match self.blocks[block].next.get(at) {
                None => order.push(block),
                Some(&next) => {
                    stack.push((block, at + 1));
                    if !seen[next] {
                        seen[next] = true;
                        stack.push((next, 0));
                    }
                }
            }
        }
        let mut place = vec![0; count];
        for (i, b) in order.iter().enumerate() {
            place[*b] = i;
        }
        found[0] = Some(0);
        let mut changed = true;
        while changed {
            changed = false;
            for &b in order.iter().rev().skip(1) {
                let mut common: Option<usize> = None;
                for &p in before[b].iter().filter(|p| found[**p].is_some()) {
                    common = Some(match common {
                        None => p,
                        Some(mut a) => {
                            let mut c = p;
                            while a != c {
                                // the one that comes earlier in time has the higher place
                                while place[a] < place[c] {
                                    a = found[a].unwrap_or(0);
                                }
                                while place[c] < place[a] {
                                    c = found[c].unwrap_or(0);
                                }
                            }
                            a
                        }
                    });
                }
                if common.is_some() && found[b] != common {
                    found[b] = common;
                    changed = true;
                }
            }
        }
        found
    }

    /// How often a loop goes round, where a register that it compares with a constant grows by a
    /// constant, from a constant or from a lane's number below the step.
    fn turns(&self, head: usize, body: &[bool]) -> Option<f64> {
        let inside = || {
            let blocks = self.blocks.iter().enumerate().filter(|(b, _)| body[*b]);
            blocks.flat_map(|(_, block)| &block.code)
        };
        let leaves = |b: usize| self.blocks[b].next.iter().any(|n| !body[*n]);
        for b in (0..self.blocks.len()).filter(|b| body[*b]) {
            // a break stands in a block of its own, or after its comparison
            if !leaves(b) && !self.blocks[b].next.contains(&head) {
                continue;
            }
            for i in &self.blocks[b].code {
                let Effect::Compare(register, bound) = &i.effect else { continue };
                let mut step = None;
                let mut other = false;
                for j in inside().filter(|j| j.target == *register) {
                    match (&j.effect, step) {
                        (Effect::Add(by), None) => step = Some(*by),
                        _ => other = true,
                    }
                }
                let Some(step) = step.filter(|_| !other) else { continue };
                let outside = self.blocks.iter().take(head).enumerate();
                let last = outside
                    .filter(|(b, _)| !body[*b])
                    .flat_map(|(_, block)| &block.code)
                    .rfind(|j| j.target == *register);
                let first = match last.map(|j| &j.effect) {
                    Some(Effect::Set(value)) => *value,
                    _ if step > 1 => 0,
                    _ => continue,
                };
                let way = bound - first;
                if way.signum() == step.signum() && way != 0 {
                    let turns = (way.abs() + step.abs() - 1) / step.abs();
                    if turns <= 4096 {
                        return Some(turns as f64);
                    }
                }
            }
        }
        None
    }

    /// The mix of the hot part: of the loop nest with the most multiply-adds, where loops with a known
    /// number of turns count that often in the loop around them, and the others for themselves.
    ///
    /// `lanes`: of a subgroup; `width`: lanes that the machine takes in one step.
    pub(crate) fn hot(&self, lanes: u32, width: f64) -> (Part, Mix) {
        let loops = self.loops();
        let is_child = |l: &Loop, of: Option<usize>| l.parent == of;
        // blocks with their weights: of a loop, or of all that is in none of unknown length
        let nest = |root: Option<usize>| {
            let mut weights = vec![0.0; self.blocks.len()];
            let mut part = Vec::new();
            let mut todo = vec![(root, 1.0)];
            while let Some((at, weight)) = todo.pop() {
                let all: Vec<usize> = match at {
                    Some(l) => loops[l].blocks.clone(),
                    None => (0..self.blocks.len()).collect(),
                };
                part.extend(at);
                for b in all {
                    let inner =
                        loops.iter().any(|l| is_child(l, at) && l.blocks.binary_search(&b).is_ok());
                    if !inner {
                        weights[b] = weight;
                    }
                }
                for (child, l) in loops.iter().enumerate().filter(|(_, l)| is_child(l, at)) {
                    if let Some(turns) = l.turns {
                        todo.push((Some(child), weight * turns));
                    }
                }
            }
            let mut mix = Mix::default();
            for (block, weight) in self.blocks.iter().zip(&weights).filter(|(_, w)| **w > 0.0) {
                for i in &block.code {
                    mix.add(i, *weight, lanes, width);
                }
            }
            (mix, part.len())
        };
        let work = |mix: &Mix| mix.fma + 100.0 * mix.matrix;
        let (whole, _) = nest(None);
        let best = (0..loops.len())
            .filter(|l| loops[*l].turns.is_none() || loops[*l].parent.is_none())
            .map(|l| (nest(Some(l)), loops[l].turns.unwrap_or(UNKNOWN_TURNS)))
            .max_by(|a, b| (work(&a.0.0) * a.1).total_cmp(&(work(&b.0.0) * b.1)));
        match best {
            Some(((mix, count), turns)) if work(&mix) * turns > work(&whole) => {
                (Part::Loops(count), mix)
            }
            // loops of known length are in it already
            _ => (Part::Whole, whole),
        }
    }
}

/// A number as assembly writes it: decimal or hexadecimal, negative or not.
pub(crate) fn number(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let value = match digits.strip_prefix("0x") {
        // registers have 32 bits
        Some(hex) => i64::from(u32::from_str_radix(hex, 16).ok()?.cast_signed()),
        None => digits.parse().ok()?,
    };
    Some(sign * value)
}

/// Blocks of a listing whose control flow is written as labels and jumps: cut at both.
#[derive(Default)]
pub(crate) struct Cutter {
    blocks: Vec<Block>,
    labels: std::collections::HashMap<String, usize>,
    /// Jumps of each block, by label, and whether the next block may follow.
    jumps: Vec<(Vec<String>, bool)>,
    /// Blocks whose jumps go past the block that the label is at.
    past: Vec<usize>,
    open: bool,
}

impl Cutter {
    /// The next instruction is where this label is.
    pub(crate) fn label(&mut self, name: &str) {
        self.open = false;
        self.labels.insert(name.into(), self.blocks.len());
    }

    /// Adds an instruction to the block that is open.
    pub(crate) fn push(&mut self, i: Instruction) {
        if !self.open {
            self.blocks.push(Block::default());
            self.jumps.push((Vec::new(), true));
            self.open = true;
        }
        if let Some(block) = self.blocks.last_mut() {
            block.code.push(i);
        }
    }

    /// Ends the block: it jumps to the labels, and with `falls` to what comes next.
    pub(crate) fn jump(&mut self, labels: Vec<String>, falls: bool) {
        if self.open
            && let Some(last) = self.jumps.last_mut()
        {
            *last = (labels, falls);
        }
        self.open = false;
    }

    /// Ends the block: it leaves a loop whose last block is at the label, or goes on.
    pub(crate) fn leave(&mut self, label: Option<String>) {
        if self.open {
            self.past.push(self.blocks.len() - 1);
        }
        self.jump(label.into_iter().collect(), true);
    }

    /// The blocks with their ways.
    pub(crate) fn finish(mut self) -> Program {
        let count = self.blocks.len();
        for (b, (labels, falls)) in self.jumps.into_iter().enumerate() {
            let past = usize::from(self.past.contains(&b));
            let mut next: Vec<usize> =
                labels.iter().filter_map(|l| Some(self.labels.get(l)? + past)).collect();
            if falls {
                next.push(b + 1);
            }
            // a label at the very end is of no block
            next.retain(|n| *n < count);
            next.sort_unstable();
            next.dedup();
            self.blocks[b].next = next;
        }
        Program { blocks: self.blocks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fma() -> Instruction {
        Instruction { kind: Kind::MultiplyAdd, vector: 1, fma: 1, ..Default::default() }
    }

    fn other() -> Instruction {
        Instruction { vector: 1, ..Default::default() }
    }

    fn program(blocks: &[(&[Instruction], &[usize])]) -> Program {
        let block =
            |b: &(&[Instruction], &[usize])| Block { code: b.0.to_vec(), next: b.1.to_vec() };
        Program { blocks: blocks.iter().map(block).collect() }
    }

    /// The listing may have a loop's body before its head.
    #[test]
    fn a_loop_is_found_whatever_the_order_of_its_blocks() {
        let p = program(&[(&[], &[2]), (&[fma()], &[2]), (&[other()], &[1, 3]), (&[], &[])]);
        let loops = p.loops();
        assert_eq!((loops.len(), &loops[0].blocks[..]), (1, &[1, 2][..]));
        let (part, mix) = p.hot(32, 32.0);
        assert_eq!((part, mix.fma, mix.issued), (Part::Loops(1), 1.0, 2.0));
    }

    #[test]
    fn loops_of_known_length_count_that_often() {
        let register = |effect| Instruction { target: "r1".into(), effect, ..other() };
        let compare = Instruction { effect: Effect::Compare("r1".into(), 16), ..other() };
        // 0 → outer 1 → inner 2 (four turns) → 3 → outer
        let p = program(&[
            (&[], &[1]),
            (&[fma(), register(Effect::Set(0))], &[2]),
            (&[fma(), fma(), register(Effect::Add(4)), compare], &[2, 3]),
            (&[other()], &[1, 4]),
            (&[], &[]),
        ]);
        let loops = p.loops();
        assert_eq!(loops.len(), 2);
        assert_eq!((loops[1].turns, loops[1].parent), (Some(4.0), Some(0)));
        let (part, mix) = p.hot(32, 32.0);
        assert_eq!((part, mix.fma, mix.issued), (Part::Loops(2), 9.0, 19.0));
    }

    #[test]
    fn of_loops_of_unknown_length_the_one_with_most_multiply_adds_counts_alone() {
        let p = program(&[
            (&[], &[1]),
            (&[other()], &[2]),
            (&[fma(), fma()], &[2, 3]),
            (&[fma()], &[1, 4]),
            (&[fma()], &[]),
        ]);
        let (part, mix) = p.hot(32, 32.0);
        assert_eq!((part, mix.fma, mix.issued), (Part::Loops(1), 2.0, 2.0));
    }

    #[test]
    fn straight_code_is_taken_whole() {
        let p = program(&[(&[fma(), other()], &[1]), (&[other()], &[1, 2]), (&[], &[])]);
        let (part, mix) = p.hot(32, 32.0);
        assert_eq!((part, mix.fma, mix.issued), (Part::Whole, 1.0, 2.0));
        assert_eq!(program(&[]).hot(32, 32.0).1, Mix::default());
    }

    #[test]
    fn numbers_are_read_as_assembly_writes_them() {
        for (text, value) in [("16", 16), ("0x400", 1024), ("-4", -4), ("0xffffffff", -1)] {
            assert_eq!(number(text), Some(value));
        }
        assert_eq!(number("s4"), None);
    }
}
