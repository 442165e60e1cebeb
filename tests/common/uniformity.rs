//! A lint of our own: barriers and subgroup operations in non-uniform control flow.
//!
//! naga judges a shader without following local variables, so it lets some faults through and
//! wgpu hands them to the driver, where a barrier that only some invocations reach hangs or
//! corrupts. Browsers (Tint) reject the same shader outright. This pass follows values through
//! local variables, loops and calls on naga's IR, with the rules of the WGSL specification's
//! uniformity analysis:
//!
//! - Every value and every point of control flow has a [`Level`]. Join is the maximum.
//! - Workgroup-uniform: constants, overrides, `workgroup_id`, `num_workgroups`, uniform buffers,
//!   array lengths, read-only storage at a uniform index, `workgroupUniformLoad`.
//! - Subgroup-uniform: `subgroup_id`, broadcasts, ballots, reductions.
//! - Divergent: the other invocation ids, workgroup memory, read-write storage, atomics, scans.
//! - A variable takes the join of all values stored to it and of the control flow at each store;
//!   its place in the program is not looked at, which is stricter than the specification.
//! - After a `break`, `continue` or `return` under a condition, the rest of the loop body (all its
//!   iterations) or function is at that condition's level. A loop gathers its `break`s and
//!   `continue`s again at its end, a function its `return`s at the caller.
//! - Functions are walked once for each set of levels of their arguments and of the call.

use std::collections::{BTreeSet, HashMap, HashSet};

use naga::{
    AddressSpace, Arena, Binding, Block, BuiltIn, CollectiveOperation, Expression, Function,
    GatherMode, GlobalVariable, Handle, LocalVariable, Module, Span, Statement, StorageAccess,
    TypeInner,
    valid::{Capabilities, ModuleInfo, ValidationFlags, Validator},
};

/// Who agrees on a value, or passes a point of the program together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Level {
    /// All invocations of a workgroup.
    #[default]
    Workgroup,
    /// All invocations of a subgroup.
    Subgroup,
    /// Nobody in particular.
    Divergent,
}

use Level::{Divergent, Subgroup, Workgroup};

/// What the lint found. Each entry names the function and, given the source, the line.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Barriers and `workgroupUniformLoad`s that some invocations of a workgroup may miss.
    pub(crate) barriers: BTreeSet<String>,
    /// Subgroup operations that some invocations of a subgroup may miss.
    pub(crate) subgroups: BTreeSet<String>,
}

/// All faults of a module, barriers first. Empty for a sound module.
pub(crate) fn check(module: &Module, _info: &ModuleInfo) -> Vec<String> {
    let report = analyse(module, "");
    report.barriers.into_iter().chain(report.subgroups).collect()
}

/// Parses, validates and lints WGSL text.
///
/// # Errors
/// The parser's or validator's message.
pub(crate) fn check_source(source: &str) -> Result<Report, String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(source))?;
    Ok(analyse(&module, source))
}

/// Walks every compute entry point. `source` gives line numbers; it may be empty.
pub(crate) fn analyse(module: &Module, source: &str) -> Report {
    let mut lint = Lint {
        module,
        source,
        privates: HashMap::new(),
        calls: HashMap::new(),
        reported: HashSet::new(),
        reporting: false,
        report: Report::default(),
        changed: true,
    };
    // private variables only ever rise: walk until they rest, then once more to report
    while std::mem::take(&mut lint.changed) {
        lint.calls.clear();
        lint.entries();
    }
    lint.reporting = true;
    lint.entries();
    lint.report
}

/// Levels that a call brings in: control flow, arguments, and what pointer arguments point to.
#[derive(Clone, PartialEq, Eq, Hash)]
struct CallKey {
    function: Handle<Function>,
    control: Level,
    arguments: Vec<(Level, Level)>,
}

/// What a call leaves behind: its value, and what its pointer arguments point to.
#[derive(Clone)]
struct CallEffect {
    value: Level,
    pointees: Vec<Level>,
}

struct Lint<'a> {
    module: &'a Module,
    source: &'a str,
    privates: HashMap<Handle<GlobalVariable>, Level>,
    calls: HashMap<CallKey, CallEffect>,
    reported: HashSet<CallKey>,
    /// On in the last walk only, when all levels are known.
    reporting: bool,
    report: Report,
    changed: bool,
}

impl Lint<'_> {
    fn entries(&mut self) {
        for entry in &self.module.entry_points {
            if entry.stage != naga::ShaderStage::Compute {
                continue;
            }
            let arguments = entry
                .function
                .arguments
                .iter()
                .map(|a| match (&a.binding, &self.module.types[a.ty].inner) {
                    (Some(b), _) => (binding_level(b), Workgroup),
                    // a struct of built-ins is as uniform as its least uniform member
                    (None, TypeInner::Struct { members, .. }) => {
                        let worst = members
                            .iter()
                            .map(|m| m.binding.as_ref().map_or(Divergent, binding_level))
                            .max();
                        (worst.unwrap_or_default(), Workgroup)
                    }
                    (None, _) => (Divergent, Workgroup),
                })
                .collect();
            self.function(&entry.function, &entry.name, Workgroup, arguments);
        }
    }

    fn function(
        &mut self,
        function: &Function,
        name: &str,
        control: Level,
        arguments: Vec<(Level, Level)>,
    ) -> CallEffect {
        let mut walk = Walk {
            function,
            name,
            values: vec![None; function.expressions.len()],
            locals: HashMap::new(),
            loops: HashMap::new(),
            arguments,
            value: Workgroup,
            changed: true,
        };
        let reporting = std::mem::take(&mut self.reporting);
        while std::mem::take(&mut walk.changed) {
            walk.values.fill(None);
            walk.block(self, &function.body, control);
        }
        if reporting {
            self.reporting = true;
            walk.values.fill(None);
            walk.block(self, &function.body, control);
        }
        CallEffect {
            value: walk.value,
            pointees: walk.arguments.iter().map(|&(_, pointee)| pointee).collect(),
        }
    }

    fn call(&mut self, key: CallKey) -> CallEffect {
        let to_report = self.reporting && !self.reported.contains(&key);
        if let Some(known) = self.calls.get(&key)
            && !to_report
        {
            return known.clone();
        }
        let function = &self.module.functions[key.function];
        let name = function.name.clone().unwrap_or_default();
        let effect = self.function(function, &name, key.control, key.arguments.clone());
        if to_report {
            self.reported.insert(key.clone());
        }
        self.calls.insert(key, effect.clone());
        effect
    }

    fn message(&mut self, walk: &Walk<'_>, span: Span, what: &str, level: Level, barrier: bool) {
        if !self.reporting {
            return;
        }
        let place = if self.source.is_empty() || !span.is_defined() {
            String::new()
        } else {
            format!(" line {}", span.location(self.source).line_number)
        };
        let flow = match level {
            Workgroup => "uniform",
            Subgroup => "subgroup-uniform",
            Divergent => "non-uniform",
        };
        let text = format!("{}{place}: {what} in {flow} control flow", walk.name);
        let Report { barriers, subgroups } = &mut self.report;
        if barrier { barriers } else { subgroups }.insert(text);
    }
}

fn binding_level(binding: &Binding) -> Level {
    match binding {
        Binding::BuiltIn(
            BuiltIn::WorkGroupId
            | BuiltIn::NumWorkGroups
            | BuiltIn::WorkGroupSize
            | BuiltIn::NumSubgroups
            | BuiltIn::SubgroupSize,
        ) => Workgroup,
        Binding::BuiltIn(BuiltIn::SubgroupId) => Subgroup,
        _ => Divergent,
    }
}

/// Levels at which control leaves a block other than at its end, each `None` where it cannot.
#[derive(Clone, Copy, Default)]
struct Exits {
    breaks: Option<Level>,
    continues: Option<Level>,
    returns: Option<Level>,
}

impl Exits {
    fn join(self, other: Self) -> Self {
        Self {
            breaks: self.breaks.max(other.breaks),
            continues: self.continues.max(other.continues),
            returns: self.returns.max(other.returns),
        }
    }

    /// The level that those who stay are left at.
    fn level(self) -> Level {
        self.breaks.max(self.continues).max(self.returns).unwrap_or_default()
    }
}

struct Walk<'a> {
    function: &'a Function,
    name: &'a str,
    values: Vec<Option<Level>>,
    locals: HashMap<Handle<LocalVariable>, Level>,
    /// Level at which each loop's body is entered, by the address of its statement.
    loops: HashMap<*const Statement, Level>,
    /// Level of each argument, and of what it points to.
    arguments: Vec<(Level, Level)>,
    /// Join of the returned values.
    value: Level,
    changed: bool,
}

/// The variable behind a pointer.
enum Root {
    Local(Handle<LocalVariable>),
    Global(Handle<GlobalVariable>),
    Argument(u32),
    Unknown,
}

impl Walk<'_> {
    fn arena(&self) -> &Arena<Expression> {
        &self.function.expressions
    }

    fn root(&self, pointer: Handle<Expression>) -> Root {
        match self.arena()[pointer] {
            Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => {
                self.root(base)
            }
            Expression::LocalVariable(v) => Root::Local(v),
            Expression::GlobalVariable(v) => Root::Global(v),
            Expression::FunctionArgument(i) => Root::Argument(i),
            _ => Root::Unknown,
        }
    }

    /// Level of what lies behind `pointer`, its indices apart.
    fn pointee(&self, lint: &Lint<'_>, pointer: Handle<Expression>) -> Level {
        match self.root(pointer) {
            Root::Local(v) => self.locals.get(&v).copied().unwrap_or_default(),
            Root::Global(v) => match lint.module.global_variables[v].space {
                AddressSpace::Uniform | AddressSpace::Immediate => Workgroup,
                AddressSpace::Storage { access } if !access.contains(StorageAccess::STORE) => {
                    Workgroup
                }
                AddressSpace::Private => lint.privates.get(&v).copied().unwrap_or_default(),
                _ => Divergent,
            },
            Root::Argument(i) => self.arguments[i as usize].1,
            Root::Unknown => Divergent,
        }
    }

    /// Raises what lies behind `pointer` to `level`.
    fn raise(&mut self, lint: &mut Lint<'_>, pointer: Handle<Expression>, level: Level) {
        let (slot, changed) = match self.root(pointer) {
            Root::Local(v) => (self.locals.entry(v).or_default(), &mut self.changed),
            Root::Argument(i) => (&mut self.arguments[i as usize].1, &mut self.changed),
            Root::Global(v) if lint.module.global_variables[v].space == AddressSpace::Private => {
                (lint.privates.entry(v).or_default(), &mut lint.changed)
            }
            // shared memory is divergent whatever is stored there
            Root::Global(_) | Root::Unknown => return,
        };
        if level > *slot {
            *slot = level;
            *changed = true;
        }
    }

    /// Level of an expression. Loads read the variables as they stand.
    fn level(&mut self, lint: &Lint<'_>, handle: Handle<Expression>) -> Level {
        if let Some(known) = self.values[handle.index()] {
            return known;
        }
        let mut operands = Vec::new();
        let own = match &self.arena()[handle] {
            Expression::Literal(_)
            | Expression::Constant(_)
            | Expression::Override(_)
            | Expression::ZeroValue(_)
            | Expression::ArrayLength(_)
            // as pointers; what they point to is asked for at the load
            | Expression::LocalVariable(_)
            | Expression::GlobalVariable(_) => Workgroup,
            Expression::FunctionArgument(i) => self.arguments[*i as usize].0,
            Expression::Load { pointer } => {
                operands.push(*pointer);
                self.pointee(lint, *pointer)
            }
            Expression::Compose { components, .. } => {
                operands.extend(components);
                Workgroup
            }
            Expression::Access { base, index } => {
                operands.extend([*base, *index]);
                Workgroup
            }
            Expression::AccessIndex { base, .. } => {
                operands.push(*base);
                Workgroup
            }
            Expression::Splat { value, .. } => {
                operands.push(*value);
                Workgroup
            }
            Expression::Swizzle { vector, .. } => {
                operands.push(*vector);
                Workgroup
            }
            Expression::Unary { expr, .. } | Expression::As { expr, .. } => {
                operands.push(*expr);
                Workgroup
            }
            Expression::Binary { left, right, .. } => {
                operands.extend([*left, *right]);
                Workgroup
            }
            Expression::Select { condition, accept, reject } => {
                operands.extend([*condition, *accept, *reject]);
                Workgroup
            }
            Expression::Relational { argument, .. } => {
                operands.push(*argument);
                Workgroup
            }
            Expression::Math { arg, arg1, arg2, arg3, .. } => {
                operands.push(*arg);
                operands.extend([arg1, arg2, arg3].into_iter().flatten());
                Workgroup
            }
            // textures, ray queries and the like are not used here; results of statements are
            // set where the statement is walked
            _ => Divergent,
        };
        let level = operands.into_iter().fold(own, |l, e| l.max(self.level(lint, e)));
        self.values[handle.index()] = Some(level);
        level
    }

    fn set(&mut self, result: Handle<Expression>, level: Level) {
        self.values[result.index()] = Some(level);
    }

    /// Walks a block entered at level `control`.
    fn block(&mut self, lint: &mut Lint<'_>, block: &Block, control: Level) -> Exits {
        let mut control = control;
        let mut exits = Exits::default();
        for (statement, &span) in block.span_iter() {
            let left = self.statement(lint, statement, span, control);
            exits = exits.join(left);
            control = control.max(left.level());
        }
        exits
    }

    fn statement(
        &mut self,
        lint: &mut Lint<'_>,
        statement: &Statement,
        span: Span,
        control: Level,
    ) -> Exits {
        match statement {
            Statement::Emit(range) => {
                for handle in range.clone() {
                    self.values[handle.index()] = None;
                }
                for handle in range.clone() {
                    self.level(lint, handle);
                }
            }
            Statement::Block(block) => return self.block(lint, block, control),
            Statement::If { condition, accept, reject } => {
                let inner = control.max(self.level(lint, *condition));
                let accepted = self.block(lint, accept, inner);
                return accepted.join(self.block(lint, reject, inner));
            }
            Statement::Switch { selector, cases } => {
                let inner = control.max(self.level(lint, *selector));
                let exits = cases
                    .iter()
                    .map(|c| self.block(lint, &c.body, inner))
                    .fold(Exits::default(), Exits::join);
                return Exits { breaks: None, ..exits };
            }
            Statement::Loop { body, continuing, break_if } => {
                let id = std::ptr::from_ref(statement);
                loop {
                    let entry = control.max(self.loops.get(&id).copied().unwrap_or_default());
                    let inside = self.block(lint, body, entry);
                    let after_body = entry.max(inside.level());
                    let exits = inside.join(self.block(lint, continuing, after_body));
                    let mut back = after_body.max(exits.level());
                    if let Some(condition) = break_if {
                        back = back.max(self.level(lint, *condition));
                    }
                    // the second and later iterations run at the level of the back edge
                    if back == entry {
                        return Exits { returns: exits.returns, ..Exits::default() };
                    }
                    self.loops.insert(id, back);
                }
            }
            Statement::Break => return Exits { breaks: Some(control), ..Exits::default() },
            Statement::Continue => return Exits { continues: Some(control), ..Exits::default() },
            Statement::Return { value } => {
                let mut level = control;
                if let Some(value) = value {
                    level = level.max(self.level(lint, *value));
                }
                if level > self.value {
                    self.value = level;
                    self.changed = true;
                }
                return Exits { returns: Some(control), ..Exits::default() };
            }
            Statement::Kill => return Exits { returns: Some(control), ..Exits::default() },
            Statement::ControlBarrier(_) if control > Workgroup => {
                lint.message(self, span, "a barrier", control, true);
            }
            Statement::Store { pointer, value } => {
                // through a divergent index each invocation writes another element
                let level = control.max(self.level(lint, *pointer)).max(self.level(lint, *value));
                self.raise(lint, *pointer, level);
            }
            Statement::Atomic { result: Some(result), .. } => self.set(*result, Divergent),
            Statement::WorkGroupUniformLoad { pointer, result } => {
                let level = control.max(self.level(lint, *pointer));
                if level > Workgroup {
                    let what = "workgroupUniformLoad, or its address,";
                    lint.message(self, span, what, level, true);
                }
                self.set(*result, level);
            }
            Statement::Call { function, arguments, result } => {
                let levels = arguments
                    .iter()
                    .map(|&a| {
                        let pointee = if self.is_pointer(lint, *function, a, arguments) {
                            self.pointee(lint, a)
                        } else {
                            Workgroup
                        };
                        (self.level(lint, a), pointee)
                    })
                    .collect();
                let effect = lint.call(CallKey { function: *function, control, arguments: levels });
                for (&argument, &pointee) in arguments.iter().zip(&effect.pointees) {
                    if self.is_pointer(lint, *function, argument, arguments) {
                        self.raise(lint, argument, pointee);
                    }
                }
                if let Some(result) = result {
                    self.set(*result, effect.value);
                }
            }
            Statement::SubgroupBallot { result, .. } => {
                self.subgroup(lint, span, "subgroupBallot", control);
                self.set(*result, control.max(Subgroup));
            }
            Statement::SubgroupGather { mode, argument, result } => {
                self.subgroup(lint, span, "a subgroup broadcast or shuffle", control);
                let level = match mode {
                    GatherMode::BroadcastFirst => Subgroup,
                    GatherMode::Broadcast(i) | GatherMode::Shuffle(i) => {
                        self.level(lint, *i).max(Subgroup)
                    }
                    _ => self.level(lint, *argument).max(Subgroup),
                };
                self.set(*result, control.max(level));
            }
            Statement::SubgroupCollectiveOperation { collective_op, result, .. } => {
                self.subgroup(lint, span, "a subgroup reduction or scan", control);
                let level = match collective_op {
                    CollectiveOperation::Reduce => Subgroup,
                    _ => Divergent,
                };
                self.set(*result, control.max(level));
            }
            // orders memory, gathers nobody
            Statement::MemoryBarrier(_) => {}
            // stores to textures, ray queries, cooperative matrices: no barrier in them
            _ => {}
        }
        Exits::default()
    }

    fn subgroup(&mut self, lint: &mut Lint<'_>, span: Span, what: &str, control: Level) {
        if control > Subgroup {
            lint.message(self, span, what, control, false);
        }
    }

    /// Whether parameter of `function` that takes `argument` is a pointer.
    fn is_pointer(
        &self,
        lint: &Lint<'_>,
        function: Handle<Function>,
        argument: Handle<Expression>,
        arguments: &[Handle<Expression>],
    ) -> bool {
        let parameters = &lint.module.functions[function].arguments;
        arguments.iter().zip(parameters).any(|(&a, p)| {
            a == argument
                && matches!(
                    lint.module.types[p.ty].inner,
                    TypeInner::Pointer { .. } | TypeInner::ValuePointer { .. }
                )
        })
    }
}
