//! A check of our own: races of a workgroup's invocations on workgroup memory.
//!
//! Software drivers run the invocations of a subgroup in lockstep and subgroups one after another,
//! so they may well give the right result without a barrier that a GPU needs. This pass runs a
//! kernel on naga's IR, all invocations of one workgroup statement by statement, with the numbers
//! that a dispatch was given, and keeps for every element of workgroup memory who has touched it
//! since the last barrier. It reports
//!
//! - an element that two invocations touch with no barrier between, one of them writing,
//! - an element that is read and was never written,
//! - an index past the end.
//!
//! Subgroups are taken to have 32 invocations, or all of a smaller workgroup. Integers and booleans that
//! come from ids, constants and the uniform buffer are computed;
//! whatever comes from other memory, and every float, is [`Value::Any`]. Both sides of a branch on
//! such a value are taken. Where a loop or an index of workgroup memory depends on one the pass
//! gives up with an error that says so. Storage buffers are not watched.

use std::collections::{BTreeSet, HashMap};

use naga::{
    AddressSpace, ArraySize, BinaryOperator as Op, Binding, Block, BuiltIn, Expression, Function,
    GlobalVariable, Handle, Literal, LocalVariable, MathFunction, Module, RelationalFunction,
    ScalarKind, Span, Statement, SwitchValue, Type, TypeInner, UnaryOperator,
    valid::{Capabilities, FunctionInfo, ModuleInfo, ValidationFlags, Validator},
};

/// Trips of one loop after which it counts as endless.
const TRIPS: u32 = 1 << 16;

/// Runs workgroup `group` of a dispatch of `groups` workgroups and returns what it found.
/// `params` are the bytes of the uniform buffer.
///
/// # Errors
/// The parser's or validator's message; what the pass cannot follow.
pub(crate) fn races(
    source: &str,
    params: &[u8],
    groups: [u32; 3],
    group: [u32; 3],
) -> Result<BTreeSet<String>, String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(source))?;
    let entry = match &module.entry_points[..] {
        [one] if one.stage == naga::ShaderStage::Compute => one,
        _ => return Err("expected one compute entry point".into()),
    };
    let lanes: u32 = entry.workgroup_size.iter().product();
    let subgroup = lanes.min(32);
    let mut run = Run {
        module: &module,
        info: &info,
        source,
        params,
        lanes,
        epoch: 1,
        cells: HashMap::new(),
        found: BTreeSet::new(),
    };
    let [width, height, _] = entry.workgroup_size;
    let vector = |x: [u32; 3]| Value::Many(x.map(Value::U32).to_vec());
    let local = |lane: u32| [lane % width, lane / width % height, lane / (width * height)];
    let mut arguments = Vec::new();
    for argument in &entry.function.arguments {
        let Some(Binding::BuiltIn(builtin)) = argument.binding else {
            return Err("an argument of the entry point is no built-in".into());
        };
        let each = |of: &dyn Fn(u32) -> Value| Lanes::Each((0..lanes).map(of).collect());
        arguments.push(match builtin {
            BuiltIn::WorkGroupId => Lanes::Same(vector(group)),
            BuiltIn::NumWorkGroups => Lanes::Same(vector(groups)),
            BuiltIn::LocalInvocationIndex => each(&Value::U32),
            BuiltIn::LocalInvocationId => each(&|lane| vector(local(lane))),
            BuiltIn::GlobalInvocationId => each(&|lane| {
                let at = local(lane);
                vector(std::array::from_fn(|a| group[a] * entry.workgroup_size[a] + at[a]))
            }),
            // full ones, in order; that no barrier depends on them is the uniformity lint's to see
            BuiltIn::SubgroupSize => Lanes::Same(Value::U32(subgroup)),
            BuiltIn::SubgroupId => each(&|lane| Value::U32(lane / subgroup)),
            BuiltIn::SubgroupInvocationId => each(&|lane| Value::U32(lane % subgroup)),
            _ => Lanes::Same(Value::Any),
        });
    }
    run.call(&entry.function, info.get_entry_point(0), arguments, &vec![Flow::On; lanes as usize])?;
    Ok(run.found)
}

/// A value of one invocation.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    /// Not known, of any type.
    Any,
    Bool(bool),
    U32(u32),
    I32(i32),
    /// A vector, array or struct.
    Many(Vec<Value>),
    Pointer(Root, Vec<Value>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Root {
    Local(Handle<LocalVariable>),
    Global(Handle<GlobalVariable>),
}

impl Value {
    /// What is wholly unknown is one [`Any`](Self::Any).
    fn many(parts: Vec<Value>) -> Self {
        if parts.iter().all(|p| *p == Self::Any) { Self::Any } else { Self::Many(parts) }
    }

    fn part(&self, index: &Value) -> Self {
        match (self, index) {
            (Self::Many(parts), Self::U32(i)) => {
                parts.get(*i as usize).cloned().unwrap_or(Self::Any)
            }
            (Self::Many(parts), Self::I32(i)) => {
                usize::try_from(*i).ok().and_then(|i| parts.get(i).cloned()).unwrap_or(Self::Any)
            }
            (Self::Pointer(root, path), index) => {
                let mut path = path.clone();
                path.push(index.clone());
                Self::Pointer(*root, path)
            }
            _ => Self::Any,
        }
    }

    fn at(&self, path: &[Value]) -> Self {
        path.iter().fold(self.clone(), |value, index| value.part(index))
    }

    /// Stores `value` at `path`.
    fn put(&mut self, path: &[Value], value: Value) {
        let Some((index, rest)) = path.split_first() else {
            *self = value;
            return;
        };
        let index = match *index {
            Self::U32(i) => i as usize,
            Self::I32(i) => usize::try_from(i).unwrap_or(usize::MAX),
            // somewhere
            _ => {
                *self = Self::Any;
                return;
            }
        };
        if let Self::Many(parts) = self
            && let Some(part) = parts.get_mut(index)
        {
            part.put(rest, value);
        }
    }
}

/// A value of every invocation.
#[derive(Clone, Debug)]
enum Lanes {
    Same(Value),
    Each(Vec<Value>),
}

impl Lanes {
    fn of(&self, lane: usize) -> &Value {
        match self {
            Self::Same(value) => value,
            Self::Each(values) => &values[lane],
        }
    }

    fn map(&self, f: impl Fn(&Value) -> Value) -> Self {
        match self {
            Self::Same(value) => Self::Same(f(value)),
            Self::Each(values) => Self::Each(values.iter().map(f).collect()),
        }
    }

    fn zip(&self, other: &Self, f: impl Fn(&Value, &Value) -> Value) -> Self {
        match (self, other) {
            (Self::Same(a), Self::Same(b)) => Self::Same(f(a, b)),
            (Self::Each(values), other) => {
                Self::Each(values.iter().enumerate().map(|(i, a)| f(a, other.of(i))).collect())
            }
            (one, Self::Each(values)) => {
                Self::Each(values.iter().enumerate().map(|(i, b)| f(one.of(i), b)).collect())
            }
        }
    }
}

/// Whether an invocation runs a statement.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flow {
    Off,
    On,
    /// It depends on what is not known.
    Maybe,
}

type Mask = Vec<Flow>;

fn runs(mask: &[Flow]) -> bool {
    mask.iter().any(|f| *f != Flow::Off)
}

/// Those of `mask` of whom `wanted` holds; on [`Value::Any`], perhaps.
fn those(mask: &[Flow], condition: &Lanes, wanted: bool) -> Mask {
    mask.iter()
        .enumerate()
        .map(|(lane, &flow)| match condition.of(lane) {
            _ if flow == Flow::Off => Flow::Off,
            Value::Bool(is) if *is == wanted => flow,
            Value::Bool(_) => Flow::Off,
            _ => Flow::Maybe,
        })
        .collect()
}

/// Who has touched an element since the last barrier.
#[derive(Clone, Default)]
struct Cell {
    written: bool,
    epoch: u32,
    /// Invocation and line.
    writer: Option<(usize, u32)>,
    reader: Option<(usize, u32)>,
    /// A second reader.
    other: Option<(usize, u32)>,
}

struct Run<'a> {
    module: &'a Module,
    info: &'a ModuleInfo,
    source: &'a str,
    params: &'a [u8],
    lanes: u32,
    /// Barriers passed.
    epoch: u32,
    cells: HashMap<Handle<GlobalVariable>, Vec<Cell>>,
    found: BTreeSet<String>,
}

/// Those who left a loop or a switch, or the body of a loop.
struct Leaving {
    is_loop: bool,
    broke: Mask,
    continued: Mask,
}

/// A call of a function by all its invocations.
struct Frame<'a> {
    function: &'a Function,
    info: &'a FunctionInfo,
    values: Vec<Option<Lanes>>,
    arguments: Vec<Lanes>,
    locals: HashMap<Handle<LocalVariable>, Lanes>,
    leaving: Vec<Leaving>,
    results: Vec<Option<Value>>,
}

impl<'a> Run<'a> {
    fn call(
        &mut self,
        function: &'a Function,
        info: &'a FunctionInfo,
        arguments: Vec<Lanes>,
        mask: &[Flow],
    ) -> Result<Lanes, String> {
        let mut frame = Frame {
            function,
            info,
            values: vec![None; function.expressions.len()],
            arguments,
            locals: HashMap::new(),
            leaving: Vec::new(),
            results: vec![None; self.lanes as usize],
        };
        for (handle, variable) in function.local_variables.iter() {
            let first = match variable.init {
                Some(init) => self.value(&mut frame, init)?,
                None => Lanes::Same(self.zero(variable.ty)),
            };
            frame.locals.insert(handle, first);
        }
        self.block(&mut frame, &function.body, mask.to_vec())?;
        let results = frame.results.into_iter().map(|r| r.unwrap_or(Value::Any)).collect();
        Ok(Lanes::Each(results))
    }

    fn line(&self, span: Span) -> u32 {
        if span.is_defined() { span.location(self.source).line_number } else { 0 }
    }

    fn zero(&self, ty: Handle<Type>) -> Value {
        match &self.module.types[ty].inner {
            TypeInner::Scalar(s) => zero_scalar(s.kind),
            TypeInner::Vector { size, scalar } => {
                Value::many(vec![zero_scalar(scalar.kind); *size as usize])
            }
            TypeInner::Array { base, size: ArraySize::Constant(n), .. } => {
                Value::many(vec![self.zero(*base); n.get() as usize])
            }
            TypeInner::Struct { members, .. } => {
                Value::many(members.iter().map(|m| self.zero(m.ty)).collect())
            }
            _ => Value::Any,
        }
    }

    /// Value of a constant expression.
    fn constant(&self, handle: Handle<Expression>) -> Value {
        match &self.module.global_expressions[handle] {
            Expression::Literal(literal) => literal_value(*literal),
            Expression::Constant(c) => self.constant(self.module.constants[*c].init),
            Expression::ZeroValue(ty) => self.zero(*ty),
            Expression::Compose { components, .. } => {
                Value::many(components.iter().map(|&c| self.constant(c)).collect())
            }
            Expression::Splat { size, value } => {
                Value::many(vec![self.constant(*value); *size as usize])
            }
            _ => Value::Any,
        }
    }

    /// What `ty` holds at byte `at` of the uniform buffer.
    fn uniform(&self, ty: &TypeInner, at: usize) -> Value {
        let scalar = |kind: ScalarKind, at: usize| {
            let bytes = self.params.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
            match (kind, bytes) {
                (ScalarKind::Uint, Some(b)) => Value::U32(u32::from_le_bytes(b)),
                (ScalarKind::Sint, Some(b)) => Value::I32(i32::from_le_bytes(b)),
                _ => Value::Any,
            }
        };
        match ty {
            TypeInner::Scalar(s) => scalar(s.kind, at),
            TypeInner::Vector { size, scalar: s } => {
                Value::many((0..*size as usize).map(|i| scalar(s.kind, at + 4 * i)).collect())
            }
            _ => Value::Any,
        }
    }

    /// Loads from the uniform buffer.
    fn load_uniform(&self, variable: Handle<GlobalVariable>, path: &[Value]) -> Value {
        let mut ty = &self.module.types[self.module.global_variables[variable].ty].inner;
        let scalar;
        let mut at = 0;
        for index in path {
            let Value::U32(index) = *index else { return Value::Any };
            let index = index as usize;
            match ty {
                TypeInner::Struct { members, .. } => {
                    at += members[index].offset as usize;
                    ty = &self.module.types[members[index].ty].inner;
                }
                TypeInner::Array { base, stride, .. } => {
                    at += index * *stride as usize;
                    ty = &self.module.types[*base].inner;
                }
                TypeInner::Vector { scalar: s, .. } => {
                    at += 4 * index;
                    scalar = TypeInner::Scalar(*s);
                    return self.uniform(&scalar, at);
                }
                _ => return Value::Any,
            }
        }
        self.uniform(ty, at)
    }

    /// Notes that an invocation touches an element of workgroup memory.
    fn touch(
        &mut self,
        variable: Handle<GlobalVariable>,
        path: &[Value],
        lane: usize,
        line: u32,
        writes: bool,
    ) -> Result<(), String> {
        let global = &self.module.global_variables[variable];
        let name = global.name.as_deref().unwrap_or("?");
        // arrays of arrays are one, of their elements
        let (mut len, mut index, mut ty) = (1, Some(0), global.ty);
        let mut path = path.iter();
        while let TypeInner::Array { base, size: ArraySize::Constant(n), .. } =
            &self.module.types[ty].inner
        {
            let n = n.get() as usize;
            let own = match path.next() {
                _ if n == 1 => 0,
                Some(Value::U32(i)) => *i as usize,
                Some(Value::I32(i)) => usize::try_from(*i).unwrap_or(usize::MAX),
                _ => return Err(format!("line {line}: an index of {name} depends on data")),
            };
            index = index.filter(|_| own < n).map(|at| at * n + own);
            len *= n;
            ty = *base;
        }
        let index = index.unwrap_or(usize::MAX);
        let cells = self.cells.entry(variable).or_insert_with(|| vec![Cell::default(); len]);
        let Some(cell) = cells.get_mut(index) else {
            self.found.insert(format!("line {line}: {name} is touched past its end"));
            return Ok(());
        };
        if cell.epoch != self.epoch {
            *cell = Cell { written: cell.written, epoch: self.epoch, ..Cell::default() };
        }
        let me = Some((lane, line));
        let is_other = |who: &Option<(usize, u32)>| who.filter(|(other, _)| *other != lane);
        let writer = is_other(&cell.writer).map(|(_, at)| ("written", at));
        let reader =
            [cell.reader, cell.other].iter().find_map(is_other).map(|(_, at)| ("read", at));
        let clash = if writes { writer.or(reader) } else { writer };
        if let Some((what, at)) = clash {
            let now = if writes { "written" } else { "read" };
            self.found.insert(format!(
                "{name} is {what} at line {at} and {now} at line {line} by another invocation, \
                 with no barrier between"
            ));
        }
        if writes {
            cell.writer = me;
            cell.written = true;
            return Ok(());
        }
        if !cell.written {
            self.found.insert(format!("line {line}: {name} is read before it is written"));
        }
        if cell.reader.is_none() {
            cell.reader = me;
        } else if is_other(&cell.reader).is_some() {
            cell.other = me;
        }
        Ok(())
    }

    /// Value of an expression that was emitted, or that needs no emit.
    fn value(
        &mut self,
        frame: &mut Frame<'a>,
        handle: Handle<Expression>,
    ) -> Result<Lanes, String> {
        if let Some(known) = &frame.values[handle.index()] {
            return Ok(known.clone());
        }
        let value = match &frame.function.expressions[handle] {
            Expression::Literal(literal) => Lanes::Same(literal_value(*literal)),
            Expression::Constant(c) => Lanes::Same(self.constant(self.module.constants[*c].init)),
            Expression::ZeroValue(ty) => Lanes::Same(self.zero(*ty)),
            Expression::FunctionArgument(i) => frame.arguments[*i as usize].clone(),
            Expression::GlobalVariable(v) => {
                Lanes::Same(Value::Pointer(Root::Global(*v), Vec::new()))
            }
            Expression::LocalVariable(v) => {
                Lanes::Same(Value::Pointer(Root::Local(*v), Vec::new()))
            }
            // constant expressions stand anywhere
            Expression::Compose { .. } | Expression::Splat { .. } => {
                self.compute(frame, handle, &[])?
            }
            other => return Err(format!("an expression that is not followed: {other:?}")),
        };
        frame.values[handle.index()] = Some(value.clone());
        Ok(value)
    }

    /// Computes an expression for all invocations; loads are those of `mask`.
    fn compute(
        &mut self,
        frame: &mut Frame<'a>,
        handle: Handle<Expression>,
        mask: &[Flow],
    ) -> Result<Lanes, String> {
        let function = frame.function;
        Ok(match &function.expressions[handle] {
            Expression::Load { pointer } => {
                let pointer = self.value(frame, *pointer)?;
                let line = self.line(function.expressions.get_span(handle));
                return self.load(frame, &pointer, mask, line);
            }
            Expression::Compose { ty, components } => {
                let vector = matches!(self.module.types[*ty].inner, TypeInner::Vector { .. });
                let parts: Vec<Lanes> =
                    components.iter().map(|&c| self.value(frame, c)).collect::<Result<_, _>>()?;
                let widths: Vec<usize> = components
                    .iter()
                    .map(|&c| if vector { self.width(frame, c) } else { 1 })
                    .collect();
                self.each(&parts, |values| {
                    let mut all = Vec::new();
                    for (value, &width) in values.iter().zip(&widths) {
                        match value {
                            Value::Many(inner) if vector => all.extend(inner.iter().cloned()),
                            other => all.extend(vec![(*other).clone(); width]),
                        }
                    }
                    Value::many(all)
                })
            }
            Expression::Splat { size, value } => {
                let n = *size as usize;
                self.value(frame, *value)?.map(|v| Value::many(vec![v.clone(); n]))
            }
            Expression::Swizzle { size, vector, pattern } => {
                let n = *size as usize;
                self.value(frame, *vector)?.map(|v| {
                    let parts = pattern[..n].iter().map(|c| v.part(&Value::U32(*c as u32)));
                    Value::many(parts.collect())
                })
            }
            Expression::Access { base, index } => {
                let (base, index) = (self.value(frame, *base)?, self.value(frame, *index)?);
                base.zip(&index, Value::part)
            }
            Expression::AccessIndex { base, index } => {
                let index = Value::U32(*index);
                self.value(frame, *base)?.map(|v| v.part(&index))
            }
            Expression::Unary { op, expr } => {
                let op = *op;
                self.value(frame, *expr)?.map(|v| unary(op, v))
            }
            Expression::Binary { op, left, right } => {
                let (left, right) = (self.value(frame, *left)?, self.value(frame, *right)?);
                left.zip(&right, |a, b| binary(*op, a, b))
            }
            Expression::Select { condition, accept, reject } => {
                let parts = [
                    self.value(frame, *condition)?,
                    self.value(frame, *accept)?,
                    self.value(frame, *reject)?,
                ];
                self.each(&parts, |v| select(v[0], v[1], v[2]))
            }
            Expression::Relational { fun, argument } => {
                let fun = *fun;
                self.value(frame, *argument)?.map(|v| relational(fun, v))
            }
            Expression::Math { fun, arg, arg1, arg2, arg3 } => {
                let mut parts = vec![self.value(frame, *arg)?];
                for other in [arg1, arg2, arg3].into_iter().flatten() {
                    parts.push(self.value(frame, *other)?);
                }
                let fun = *fun;
                self.each(&parts, |v| math(fun, v))
            }
            Expression::As { expr, kind, convert } => {
                let (kind, convert) = (*kind, convert.is_some());
                self.value(frame, *expr)?.map(|v| cast(kind, convert, v))
            }
            Expression::ArrayLength(_) => Lanes::Same(Value::Any),
            _ => return self.value(frame, handle),
        })
    }

    /// Components of a vector or scalar expression.
    fn width(&self, frame: &Frame<'a>, handle: Handle<Expression>) -> usize {
        match frame.info[handle].ty.inner_with(&self.module.types) {
            TypeInner::Vector { size, .. } => *size as usize,
            _ => 1,
        }
    }

    fn each(&self, parts: &[Lanes], f: impl Fn(&[&Value]) -> Value) -> Lanes {
        let at = |lane: usize| f(&parts.iter().map(|p| p.of(lane)).collect::<Vec<_>>());
        if parts.iter().all(|p| matches!(p, Lanes::Same(_))) {
            return Lanes::Same(at(0));
        }
        Lanes::Each((0..self.lanes as usize).map(at).collect())
    }

    fn load(
        &mut self,
        frame: &mut Frame<'a>,
        pointer: &Lanes,
        mask: &[Flow],
        line: u32,
    ) -> Result<Lanes, String> {
        let Value::Pointer(root, _) = pointer.of(0) else {
            return Err(format!("line {line}: a pointer that is not followed"));
        };
        let path = |v: &Value| match v {
            Value::Pointer(_, path) => path.clone(),
            _ => Vec::new(),
        };
        let variable = match *root {
            Root::Local(v) => {
                let local = &frame.locals[&v];
                return Ok(local.zip(pointer, |value, at| match at {
                    Value::Pointer(_, path) => value.at(path),
                    _ => Value::Any,
                }));
            }
            Root::Global(v) => v,
        };
        match self.module.global_variables[variable].space {
            AddressSpace::Uniform => Ok(pointer.map(|v| self.load_uniform(variable, &path(v)))),
            AddressSpace::WorkGroup => {
                for (lane, flow) in mask.iter().enumerate() {
                    if *flow != Flow::Off {
                        self.touch(variable, &path(pointer.of(lane)), lane, line, false)?;
                    }
                }
                Ok(Lanes::Same(Value::Any))
            }
            AddressSpace::Storage { .. } => Ok(Lanes::Same(Value::Any)),
            other => Err(format!("line {line}: memory that is not followed: {other:?}")),
        }
    }

    fn store(
        &mut self,
        frame: &mut Frame<'a>,
        pointer: &Lanes,
        value: &Lanes,
        mask: &[Flow],
        line: u32,
    ) -> Result<(), String> {
        let Value::Pointer(root, _) = pointer.of(0) else {
            return Err(format!("line {line}: a pointer that is not followed"));
        };
        let variable = match *root {
            Root::Global(v) => v,
            Root::Local(v) => {
                let lanes = self.lanes as usize;
                let Some(local) = frame.locals.get_mut(&v) else { return Ok(()) };
                if let (Lanes::Same(old), Lanes::Same(Value::Pointer(_, path)), Lanes::Same(new)) =
                    (&mut *local, pointer, value)
                    && mask.iter().all(|f| *f == Flow::On)
                {
                    old.put(path, new.clone());
                    return Ok(());
                }
                if let Lanes::Same(old) = local {
                    *local = Lanes::Each(vec![old.clone(); lanes]);
                }
                let Lanes::Each(all) = local else { return Ok(()) };
                for (lane, flow) in mask.iter().enumerate() {
                    let Value::Pointer(_, path) = pointer.of(lane) else { continue };
                    match flow {
                        Flow::Off => {}
                        Flow::On => all[lane].put(path, value.of(lane).clone()),
                        Flow::Maybe => all[lane].put(path, Value::Any),
                    }
                }
                return Ok(());
            }
        };
        if self.module.global_variables[variable].space == AddressSpace::WorkGroup {
            for (lane, flow) in mask.iter().enumerate() {
                if let (true, Value::Pointer(_, path)) = (*flow != Flow::Off, pointer.of(lane)) {
                    self.touch(variable, path, lane, line, true)?;
                }
            }
        }
        Ok(())
    }

    /// Runs a block; returns those who reach its end.
    fn block(
        &mut self,
        frame: &mut Frame<'a>,
        block: &'a Block,
        mut mask: Mask,
    ) -> Result<Mask, String> {
        for (statement, &span) in block.span_iter() {
            if !runs(&mask) {
                break;
            }
            mask = self.statement(frame, statement, span, mask)?;
        }
        Ok(mask)
    }

    fn statement(
        &mut self,
        frame: &mut Frame<'a>,
        statement: &'a Statement,
        span: Span,
        mask: Mask,
    ) -> Result<Mask, String> {
        let off = || vec![Flow::Off; mask.len()];
        match statement {
            Statement::Emit(range) => {
                for handle in range.clone() {
                    let value = self.compute(frame, handle, &mask)?;
                    frame.values[handle.index()] = Some(value);
                }
            }
            Statement::Block(block) => return self.block(frame, block, mask),
            Statement::If { condition, accept, reject } => {
                let condition = self.value(frame, *condition)?;
                let yes = self.block(frame, accept, those(&mask, &condition, true))?;
                let no = self.block(frame, reject, those(&mask, &condition, false))?;
                return join(&mask, &yes, &no, self.line(span));
            }
            Statement::Switch { selector, cases } => {
                let selector = self.value(frame, *selector)?;
                frame.leaving.push(Leaving { is_loop: false, broke: off(), continued: off() });
                let mut after = off();
                let mut falling = off();
                for (at, case) in cases.iter().enumerate() {
                    let chosen = selector.map(|v| Value::Bool(chooses(v, &case.value, cases, at)));
                    if (0..mask.len()).any(|l| *selector.of(l) == Value::Any) {
                        return Err(format!("line {}: a switch on data", self.line(span)));
                    }
                    let entering = merge(&those(&mask, &chosen, true), &falling);
                    let left = self.block(frame, &case.body, entering)?;
                    if case.fall_through {
                        falling = left;
                    } else {
                        falling = off();
                        after = merge(&after, &left);
                    }
                }
                let left = frame.leaving.pop().map_or_else(off, |l| l.broke);
                return Ok(merge(&merge(&after, &falling), &left));
            }
            Statement::Loop { body, continuing, break_if } => {
                let mut after = off();
                let mut inside = mask.clone();
                for _ in 0..TRIPS {
                    frame.leaving.push(Leaving { is_loop: true, broke: off(), continued: off() });
                    inside = self.block(frame, body, inside)?;
                    if let Some(left) = frame.leaving.pop() {
                        inside = merge(&inside, &left.continued);
                        after = merge(&after, &left.broke);
                    }
                    inside = self.block(frame, continuing, inside)?;
                    if let Some(condition) = break_if
                        && runs(&inside)
                    {
                        let condition = self.value(frame, *condition)?;
                        let leaves = those(&inside, &condition, true);
                        if (0..inside.len())
                            .any(|l| leaves[l] != Flow::Off && leaves[l] != inside[l])
                        {
                            return Err(format!("line {}: a loop on data", self.line(span)));
                        }
                        after = merge(&after, &leaves);
                        inside = those(&inside, &condition, false);
                    }
                    if !runs(&inside) {
                        return Ok(after);
                    }
                }
                return Err(format!("line {}: a loop without end", self.line(span)));
            }
            Statement::Break | Statement::Continue => {
                let breaks = matches!(statement, Statement::Break);
                if mask.contains(&Flow::Maybe) {
                    return Err(format!("line {}: a loop on data", self.line(span)));
                }
                let place = frame.leaving.iter_mut().rev().find(|l| breaks || l.is_loop);
                if let Some(place) = place {
                    let set = if breaks { &mut place.broke } else { &mut place.continued };
                    *set = merge(set, &mask);
                }
                return Ok(off());
            }
            Statement::Return { value } => {
                let value = match value {
                    Some(value) => self.value(frame, *value)?,
                    None => Lanes::Same(Value::Any),
                };
                let mut stay = off();
                for (lane, flow) in mask.iter().enumerate() {
                    match flow {
                        Flow::Off => {}
                        Flow::On => {
                            frame.results[lane].get_or_insert_with(|| value.of(lane).clone());
                        }
                        // goes on beside itself, with a result that is not known
                        Flow::Maybe => {
                            frame.results[lane] = Some(Value::Any);
                            stay[lane] = Flow::Maybe;
                        }
                    }
                }
                return Ok(stay);
            }
            Statement::ControlBarrier(_) => self.epoch += 1,
            Statement::MemoryBarrier(_) => {}
            Statement::Store { pointer, value } => {
                let (pointer, value) = (self.value(frame, *pointer)?, self.value(frame, *value)?);
                self.store(frame, &pointer, &value, &mask, self.line(span))?;
            }
            Statement::Call { function, arguments, result } => {
                let arguments: Vec<Lanes> =
                    arguments.iter().map(|&a| self.value(frame, a)).collect::<Result<_, _>>()?;
                let local = |a: &Lanes| matches!(a.of(0), Value::Pointer(Root::Local(_), _));
                if arguments.iter().any(local) {
                    return Err(format!("line {}: a pointer as an argument", self.line(span)));
                }
                let callee = &self.module.functions[*function];
                let value = self.call(callee, &self.info[*function], arguments, &mask)?;
                if let Some(result) = result {
                    frame.values[result.index()] = Some(value);
                }
            }
            Statement::WorkGroupUniformLoad { pointer, result } => {
                // a barrier on both sides
                self.epoch += 1;
                let pointer = self.value(frame, *pointer)?;
                let value = self.load(frame, &pointer, &mask, self.line(span))?;
                // what all agree on: followed where it is a word that is not 0, since kernels leave
                // early where one is
                let word = match frame.function.expressions[*result] {
                    Expression::WorkGroupUniformLoadResult { ty } => {
                        self.module.types[ty].inner.scalar_kind() == Some(ScalarKind::Uint)
                    }
                    _ => false,
                };
                let value = if word { Lanes::Same(Value::U32(1)) } else { value };
                frame.values[result.index()] = Some(value);
                self.epoch += 1;
            }
            // atomics do not race with each other; a plain access beside them is not looked for
            Statement::Atomic { result, .. } => {
                if let Some(result) = result {
                    frame.values[result.index()] = Some(Lanes::Same(Value::Any));
                }
            }
            Statement::SubgroupBallot { result, .. }
            | Statement::SubgroupGather { result, .. }
            | Statement::SubgroupCollectiveOperation { result, .. } => {
                frame.values[result.index()] = Some(Lanes::Same(Value::Any));
            }
            other => return Err(format!("a statement that is not followed: {other:?}")),
        }
        Ok(mask)
    }
}

fn merge(a: &[Flow], b: &[Flow]) -> Mask {
    a.iter().zip(b).map(|(&a, &b)| if a == Flow::Off { b } else { a }).collect()
}

/// Those who are left after both sides of a branch.
fn join(before: &[Flow], yes: &[Flow], no: &[Flow], line: u32) -> Result<Mask, String> {
    let mut after = merge(yes, no);
    for (lane, flow) in after.iter_mut().enumerate() {
        if *flow == Flow::Maybe {
            // both sides were taken and both must have come to their end
            if before[lane] == Flow::On && (yes[lane] == Flow::Off || no[lane] == Flow::Off) {
                return Err(format!("line {line}: a branch on data is left early"));
            }
            *flow = before[lane];
        }
    }
    Ok(after)
}

/// Whether a selector chooses a case; the default is chosen where no other is.
fn chooses(selector: &Value, value: &SwitchValue, cases: &[naga::SwitchCase], at: usize) -> bool {
    let is = |value: &SwitchValue| match (selector, value) {
        (Value::U32(s), SwitchValue::U32(v)) => s == v,
        (Value::I32(s), SwitchValue::I32(v)) => s == v,
        _ => false,
    };
    match value {
        SwitchValue::Default => {
            !cases.iter().enumerate().any(|(other, case)| other != at && is(&case.value))
        }
        value => is(value),
    }
}

fn zero_scalar(kind: ScalarKind) -> Value {
    match kind {
        ScalarKind::Uint => Value::U32(0),
        ScalarKind::Sint => Value::I32(0),
        ScalarKind::Bool => Value::Bool(false),
        _ => Value::Any,
    }
}

fn literal_value(literal: Literal) -> Value {
    match literal {
        Literal::U32(x) => Value::U32(x),
        Literal::I32(x) => Value::I32(x),
        Literal::Bool(x) => Value::Bool(x),
        _ => Value::Any,
    }
}

fn unary(op: UnaryOperator, value: &Value) -> Value {
    match (op, value) {
        (_, Value::Many(parts)) => Value::many(parts.iter().map(|p| unary(op, p)).collect()),
        (UnaryOperator::Negate, Value::I32(x)) => Value::I32(x.wrapping_neg()),
        (UnaryOperator::LogicalNot, Value::Bool(x)) => Value::Bool(!x),
        (UnaryOperator::BitwiseNot, Value::U32(x)) => Value::U32(!x),
        (UnaryOperator::BitwiseNot, Value::I32(x)) => Value::I32(!x),
        _ => Value::Any,
    }
}

fn binary(op: Op, a: &Value, b: &Value) -> Value {
    use Value::{Any, Bool, I32, Many, U32};
    match (op, a, b) {
        (_, Many(a), Many(b)) => {
            Value::many(a.iter().zip(b).map(|(a, b)| binary(op, a, b)).collect())
        }
        (_, Many(a), b) => Value::many(a.iter().map(|a| binary(op, a, b)).collect()),
        (_, a, Many(b)) => Value::many(b.iter().map(|b| binary(op, a, b)).collect()),
        (Op::LogicalAnd | Op::And, Bool(false), _) | (Op::LogicalAnd | Op::And, _, Bool(false)) => {
            Bool(false)
        }
        (Op::LogicalOr | Op::InclusiveOr, Bool(true), _)
        | (Op::LogicalOr | Op::InclusiveOr, _, Bool(true)) => Bool(true),
        (_, Bool(a), Bool(b)) => match op {
            Op::LogicalAnd | Op::And => Bool(*a && *b),
            Op::LogicalOr | Op::InclusiveOr => Bool(*a || *b),
            Op::Equal => Bool(a == b),
            Op::NotEqual => Bool(a != b),
            _ => Any,
        },
        (Op::ShiftLeft, U32(a), U32(b)) => a.checked_shl(*b).map_or(Any, U32),
        (Op::ShiftRight, U32(a), U32(b)) => a.checked_shr(*b).map_or(Any, U32),
        (Op::ShiftLeft, I32(a), U32(b)) => a.checked_shl(*b).map_or(Any, I32),
        (Op::ShiftRight, I32(a), U32(b)) => a.checked_shr(*b).map_or(Any, I32),
        (_, U32(a), U32(b)) => match op {
            Op::Add => U32(a.wrapping_add(*b)),
            Op::Subtract => U32(a.wrapping_sub(*b)),
            Op::Multiply => U32(a.wrapping_mul(*b)),
            Op::Divide => a.checked_div(*b).map_or(Any, U32),
            Op::Modulo => a.checked_rem(*b).map_or(Any, U32),
            Op::And => U32(a & b),
            Op::InclusiveOr => U32(a | b),
            Op::ExclusiveOr => U32(a ^ b),
            _ => compare(op, a, b),
        },
        (_, I32(a), I32(b)) => match op {
            Op::Add => I32(a.wrapping_add(*b)),
            Op::Subtract => I32(a.wrapping_sub(*b)),
            Op::Multiply => I32(a.wrapping_mul(*b)),
            Op::Divide => a.checked_div(*b).map_or(Any, I32),
            Op::Modulo => a.checked_rem(*b).map_or(Any, I32),
            Op::And => I32(a & b),
            Op::InclusiveOr => I32(a | b),
            Op::ExclusiveOr => I32(a ^ b),
            _ => compare(op, a, b),
        },
        _ => Any,
    }
}

fn compare<T: PartialOrd>(op: Op, a: &T, b: &T) -> Value {
    Value::Bool(match op {
        Op::Equal => a == b,
        Op::NotEqual => a != b,
        Op::Less => a < b,
        Op::LessEqual => a <= b,
        Op::Greater => a > b,
        Op::GreaterEqual => a >= b,
        _ => return Value::Any,
    })
}

fn select(condition: &Value, accept: &Value, reject: &Value) -> Value {
    match condition {
        Value::Bool(true) => accept.clone(),
        Value::Bool(false) => reject.clone(),
        Value::Many(each) => {
            let index = |i: usize| Value::U32(u32::try_from(i).unwrap_or(u32::MAX));
            let part = |(i, c)| select(c, &accept.part(&index(i)), &reject.part(&index(i)));
            Value::many(each.iter().enumerate().map(part).collect())
        }
        _ if accept == reject => accept.clone(),
        _ => Value::Any,
    }
}

fn relational(fun: RelationalFunction, value: &Value) -> Value {
    let Value::Many(parts) = value else { return Value::Any };
    let (end, other) = match fun {
        RelationalFunction::All => (false, true),
        RelationalFunction::Any => (true, false),
        _ => return Value::Any,
    };
    if parts.contains(&Value::Bool(end)) {
        Value::Bool(end)
    } else if parts.iter().all(|p| *p == Value::Bool(other)) {
        Value::Bool(other)
    } else {
        Value::Any
    }
}

fn math(fun: MathFunction, args: &[&Value]) -> Value {
    use Value::{I32, Many, U32};
    if fun == MathFunction::Dot
        && let [Many(a), Many(b)] = args
    {
        let products = a.iter().zip(b).map(|(a, b)| binary(Op::Multiply, a, b));
        return products.reduce(|a, b| binary(Op::Add, &a, &b)).unwrap_or(Value::Any);
    }
    if let Some(width) =
        args.iter().find_map(|a| if let Many(p) = a { Some(p.len()) } else { None })
    {
        let part = |i: usize| {
            let index = U32(u32::try_from(i).unwrap_or(u32::MAX));
            let of: Vec<Value> = args
                .iter()
                .map(|a| if matches!(a, Many(_)) { a.part(&index) } else { (*a).clone() })
                .collect();
            math(fun, &of.iter().collect::<Vec<_>>())
        };
        return Value::many((0..width).map(part).collect());
    }
    match (fun, args) {
        (MathFunction::Min, [U32(a), U32(b)]) => U32(*a.min(b)),
        (MathFunction::Max, [U32(a), U32(b)]) => U32(*a.max(b)),
        (MathFunction::Min, [I32(a), I32(b)]) => I32(*a.min(b)),
        (MathFunction::Max, [I32(a), I32(b)]) => I32(*a.max(b)),
        (MathFunction::Clamp, [U32(x), U32(low), U32(high)]) => U32(*x.max(low).min(high)),
        (MathFunction::Clamp, [I32(x), I32(low), I32(high)]) => I32(*x.max(low).min(high)),
        (MathFunction::Abs, [I32(x)]) => I32(x.wrapping_abs()),
        (MathFunction::Abs, [U32(x)]) => U32(*x),
        _ => Value::Any,
    }
}

/// A conversion, or with `convert` false the same bits as another type.
fn cast(kind: ScalarKind, convert: bool, value: &Value) -> Value {
    match (kind, value) {
        (_, Value::Many(parts)) => {
            Value::many(parts.iter().map(|p| cast(kind, convert, p)).collect())
        }
        (ScalarKind::Uint, Value::U32(x)) => Value::U32(*x),
        (ScalarKind::Sint, Value::I32(x)) => Value::I32(*x),
        (ScalarKind::Uint, Value::I32(x)) => Value::U32(x.cast_unsigned()),
        (ScalarKind::Sint, Value::U32(x)) => Value::I32(x.cast_signed()),
        (ScalarKind::Bool, Value::U32(x)) => Value::Bool(*x != 0),
        (ScalarKind::Bool, Value::I32(x)) => Value::Bool(*x != 0),
        (ScalarKind::Bool, Value::Bool(x)) => Value::Bool(*x),
        (ScalarKind::Uint, Value::Bool(x)) if convert => Value::U32(u32::from(*x)),
        (ScalarKind::Sint, Value::Bool(x)) if convert => Value::I32(i32::from(*x)),
        _ => Value::Any,
    }
}
