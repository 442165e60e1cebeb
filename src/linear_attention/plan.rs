//! From options and sizes to kernels and their order.

use super::{
    Decay, FeatureMap, Form, LinearAttention, LinearAttentionShape, MAX_DIM, Normalize, OP, Update,
    schedule::RegisterTiles,
};
use crate::{
    Caps, Context, DType, Error, Result, Tier,
    element::TensorDecl,
    shader::{Key, Source, source},
};

pub(super) const RECURRENT: Source = source!("linear_attention/recurrent.wgsl");
pub(super) const LOOP: Source = source!("linear_attention/loop_subgroup.wgsl");
pub(super) const CHUNK: Source = source!("linear_attention/chunk_portable.wgsl");
pub(super) const TILED: Source = source!("linear_attention/tiled.wgsl");
pub(super) const PASS: Source = source!("linear_attention/state_pass.wgsl");
pub(super) const SOFTMAX: Source = source!("linear_attention/state_softmax.wgsl");
pub(super) const INIT: Source = source!("linear_attention/state_init.wgsl");

/// Invocations of the kernels without tiles.
pub(super) const PLAIN_WORKGROUP: u64 = 64;

/// Bytes of `Params` before the bounds of packed sequences, and the least size of a uniform
/// binding that every device has.
pub(super) const PARAMS_BYTES: u32 = 192;
const UNIFORM_BYTES: u32 = 16_384;

/// Sequences in one packed batch: their bounds travel with the parameters.
pub const MAX_PACKED: u32 = (UNIFORM_BYTES - PARAMS_BYTES) / 4 - 1;

/// Which kernel walks the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    /// `recurrent.wgsl`
    Recurrent,
    /// `loop_subgroup.wgsl`
    Loop { workgroup: u32, columns: u32, lanes: u32, tokens: u32 },
    /// `chunk_portable.wgsl`
    Chunk { chunk: u32, step: u32, rk: u32, rg: u32, columns: u32, parts: u32 },
    /// `tiled.wgsl`
    Tiled(RegisterTiles),
}

/// How the sequence is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    /// One after the other, so many tokens in each dispatch.
    Loop { range: u32 },
    /// In parallel, then a scan: so many segments of so many tokens.
    Segments { count: u32, length: u32 },
}

/// What one dispatch of an engine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) writes: bool,
    pub(super) reads: bool,
    pub(super) loads: bool,
    pub(super) stores: bool,
    pub(super) totals: bool,
}

/// Which tensors of a call start every row at a multiple of four elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aligned {
    pub(super) q: bool,
    pub(super) k: bool,
    pub(super) v: bool,
    pub(super) o: bool,
    pub(super) gate: bool,
    pub(super) state: bool,
}

impl Aligned {
    pub(super) const ALL: Self =
        Self { q: true, k: true, v: true, o: true, gate: true, state: true };
}

/// Everything that planning decides.
#[derive(Clone, Debug)]
pub(super) struct Design {
    pub(super) shape: LinearAttentionShape,
    pub(super) options: LinearAttention,
    pub(super) tier: Tier,
    pub(super) features: u32,
    pub(super) engine: Engine,
    pub(super) split: Split,
    /// For reading without order: segments of queries.
    pub(super) query_segments: Split,
}

impl Design {
    pub(super) fn new(
        op: &LinearAttention,
        caps: &Caps,
        shape: LinearAttentionShape,
        reads: bool,
    ) -> Result<Self> {
        let features = check(op, &shape)?;
        let decode = shape.seq_k <= 8 && op.causal;
        let wants_chunks = op.chunk_size.is_some_and(|c| c != 1);
        let looped = loop_engine(caps, &shape, features, op);
        let tiles = RegisterTiles::choose(caps, &shape, features, op)
            .filter(|tiles| op.chunk_size.is_none_or(|size| size == tiles.chunk()));
        let engine = match op.form {
            Form::Recurrent => Engine::Recurrent,
            Form::Auto if decode && op.chunk_size.is_none() => Engine::Recurrent,
            _ => match (tiles, looped) {
                (Some(tiles), _) => Engine::Tiled(tiles),
                (None, Some(engine)) if !wants_chunks => engine,
                _ => chunk_engine(caps, &shape, features, op)?,
            },
        };
        if op.chunk_size.is_some() && op.form == Form::Recurrent {
            return Err(Error::argument(OP, "chunk_size", "the recurrent form takes no chunks"));
        }
        let mut design = Self {
            shape,
            options: op.clone(),
            tier: caps.tier,
            features,
            engine,
            split: Split::Loop { range: 0 },
            query_segments: Split::Loop { range: 0 },
        };
        design.split = design.choose_split(caps, op.form, reads)?;
        design.query_segments = design.choose_query_split(caps);
        Ok(design)
    }

    /// Slices of V, one workgroup each.
    pub(super) fn slices(&self) -> u32 {
        let v4 = self.shape.value_dim.div_ceil(4);
        match self.engine {
            Engine::Recurrent => 1,
            Engine::Loop { workgroup, columns, .. } => v4.div_ceil(workgroup * columns),
            Engine::Chunk { columns, .. } => v4.div_ceil(columns),
            Engine::Tiled(tiles) => v4.div_ceil(tiles.lanes_v),
        }
    }

    /// Independent workgroups without segments.
    fn units(&self) -> u64 {
        let states = u64::from(self.shape.batch) * u64::from(self.shape.heads);
        match self.engine {
            Engine::Recurrent => {
                (states * u64::from(self.shape.value_dim.div_ceil(4))).div_ceil(PLAIN_WORKGROUP)
            }
            _ => states * u64::from(self.slices()),
        }
    }

    /// Workgroups that keep a device busy.
    fn target(&self, caps: &Caps) -> u64 {
        match self.engine {
            _ if caps.is_cpu() => threads(),
            // four a multiprocessor of a large card
            Engine::Tiled(_) => 512,
            _ => 256,
        }
    }

    /// Tokens that one invocation can walk within the driver's bound on loops.
    fn longest_walk(&self, caps: &Caps) -> u32 {
        let limit = caps.loop_trips.saturating_sub(1024);
        let f = u64::from(self.features);
        let (trips, tokens) = match self.engine {
            Engine::Recurrent => (2 * f + 1, 1),
            Engine::Loop { tokens, .. } => (1, tokens.into()),
            Engine::Tiled(tiles) => (tiles.trips(), tiles.chunk().into()),
            Engine::Chunk { chunk, step, rk, rg, columns, parts } => {
                let [u, st, kp, w, cols, rg, parts] =
                    [chunk, step, rk * rg, rg * columns, columns, rg, parts].map(u64::from);
                let per = |n: u64| n.div_ceil(w);
                let scores =
                    per(parts * u) * (kp.div_ceil(parts) + 1) + per(u * u) * (1 + parts + u);
                let sums = (u / st) * (1 + per(st * cols) * (rg + u + 1));
                let tasks = if self.options.decay == Decay::PerChannel {
                    per(kp) * (1 + u)
                } else {
                    2 * per(u * kp)
                };
                let stage = tasks + per(u * cols) + per(u) + u;
                let edges = per(kp) * (1 + 2 * u);
                let norm = per(u) * (kp + u + 1) + per(kp) * (1 + u);
                (1 + stage + 2 * scores + edges + norm + 2 * sums + u * (u + 1) / 2 + 2 * u, u)
            }
        };
        let walk = (limit / trips).max(1).saturating_mul(tokens);
        u32::try_from(walk).unwrap_or(u32::MAX)
    }

    fn choose_split(&self, caps: &Caps, form: Form, reads: bool) -> Result<Split> {
        let walk = self.longest_walk(caps);
        let serial = Split::Loop { range: walk };
        let delta = self.options.update == Update::Delta;
        let can = self.engine != Engine::Recurrent && !delta;
        if form == Form::ChunkParallel && delta {
            return Err(Error::argument(
                OP,
                "form",
                "the delta rule has no parallel form here: its segments do not combine by a decay",
            ));
        }
        // a segment costs a second pass over its keys and values
        let least = if caps.is_cpu() { 256 } else { 64 };
        let target = self.target(caps);
        let wanted = match form {
            Form::ChunkParallel => (target / self.units().max(1)).max(2),
            Form::Auto if can && reads && self.units() * 2 <= target => {
                target / self.units().max(1)
            }
            // without outputs the second pass is not needed
            Form::Auto if can && !reads && self.units() < target => target / self.units().max(1),
            _ => return Ok(serial),
        };
        let tokens = self.shape.seq_k;
        let mut length = u64::from(tokens).div_ceil(wanted.max(1)).max(least);
        if form == Form::ChunkParallel && u64::from(tokens) <= length {
            // forced: cut however short
            length = u64::from(tokens).div_ceil(2).max(1);
        }
        match self.engine {
            Engine::Chunk { chunk, .. } => length = length.next_multiple_of(chunk.into()),
            Engine::Tiled(tiles) => length = length.next_multiple_of(tiles.chunk().into()),
            Engine::Loop { .. } | Engine::Recurrent => {}
        }
        let length = u32::try_from(length).unwrap_or(u32::MAX).min(walk).max(1);
        let count = tokens.div_ceil(length).max(1);
        if count == 1 && form == Form::Auto {
            return Ok(serial);
        }
        // the scan over them is one loop
        if u64::from(count) > caps.loop_trips {
            let (need, limit) = (count.into(), caps.loop_trips);
            let what = "loop trips on this driver for segments";
            return Err(Error::Limit { op: OP, what, need, limit });
        }
        Ok(Split::Segments { count, length })
    }

    fn choose_query_split(&self, caps: &Caps) -> Split {
        let walk = self.longest_walk(caps);
        if self.engine == Engine::Recurrent {
            return Split::Loop { range: walk };
        }
        let wanted = (self.target(caps) / self.units().max(1)).max(1);
        let length = u64::from(self.shape.seq_q).div_ceil(wanted).max(64).next_multiple_of(64);
        let length = u32::try_from(length).unwrap_or(u32::MAX).min(walk);
        Split::Segments { count: self.shape.seq_q.div_ceil(length).max(1), length }
    }

    /// The engine's kernel in a role.
    pub(super) fn engine_key(&self, role: Role, aligned: Aligned) -> Key {
        let (s, op) = (&self.shape, &self.options);
        let norm = op.normalize != Normalize::None;
        let v4 = s.value_dim.div_ceil(4);
        let mut spec = vec![
            ("DIM", number(s.key_dim)),
            ("V", number(s.value_dim)),
            ("V4", number(v4)),
            ("CU", number(self.bounds())),
            ("PACKED", op.packed.to_string()),
            ("DECAY", number(self.decay_kind())),
            ("UPDATE", number(self.update_kind())),
            (
                "NORM",
                number(match op.normalize {
                    Normalize::None => 0,
                    Normalize::Eps(_) => 1,
                    Normalize::Clamp(_) => 2,
                }),
            ),
            (
                "FEATURE",
                number(match op.feature_map {
                    FeatureMap::Identity => 0,
                    FeatureMap::EluPlusOne => 1,
                    FeatureMap::Relu => 2,
                    FeatureMap::Silu => 3,
                    FeatureMap::SquaredRelu => 4,
                    FeatureMap::Taylor2 => 5,
                }),
            ),
            ("WRITES", role.writes.to_string()),
            ("READS", role.reads.to_string()),
        ];
        let rows4 = s.key_dim.is_multiple_of(4);
        let columns4 = s.value_dim.is_multiple_of(4);
        let io = |present: bool, vec4: bool| present.then_some(TensorDecl::new(op.dtype, vec4));
        let f32s = |present: bool, vec4: bool| present.then_some(TensorDecl::new(DType::F32, vec4));
        let gated = role.writes && op.decay != Decay::None;
        // per-head decays are the plan's own table
        let gate = |vec4: bool| match op.decay {
            Decay::PerHead(_) => f32s(gated, false),
            _ => gated.then_some(TensorDecl::new(op.gate_dtype, vec4)),
        };
        let mut tensors = vec![
            ("v", io(role.writes, columns4 && aligned.v)),
            (
                "beta",
                (role.writes && op.update != Update::Add)
                    .then_some(TensorDecl::new(op.gate_dtype, false)),
            ),
            ("o", io(role.reads, columns4 && aligned.o)),
            ("z", f32s(norm, false)),
        ];
        let (source, entry, row_vec4) = match self.engine {
            Engine::Recurrent => {
                spec.push(("FEATURES", number(self.features)));
                spec.push(("Z", number(if norm { self.features } else { 1 })));
                tensors.push(("state", f32s(true, columns4 && aligned.state)));
                tensors.push(("gate", gate(false)));
                (RECURRENT, "recurrent", false)
            }
            Engine::Loop { workgroup, columns, lanes, tokens } => {
                let k4 = self.features.div_ceil(4);
                let rows = k4.div_ceil(lanes);
                spec.extend([
                    ("K4", number(k4)),
                    ("LOADS", role.loads.to_string()),
                    ("STORES", role.stores.to_string()),
                    ("TOTALS", role.totals.to_string()),
                    ("WORKGROUP", number(workgroup)),
                    ("COLUMNS", number(columns)),
                    ("SLICES", number(self.slices())),
                    ("TOKENS", number(tokens)),
                    ("LANES", number(lanes)),
                    ("ROWS", number(rows)),
                    ("STATE", number(k4 * 4 * columns)),
                    ("Z", number(if norm { k4 * 4 } else { 1 })),
                    ("TOTAL", number(rows)),
                ]);
                let vec4 = rows4 && aligned.gate && op.decay == Decay::PerChannel;
                tensors.push(("gate", gate(vec4)));
                tensors.push(("state", f32s(role.loads || role.stores, columns4 && aligned.state)));
                tensors.push(("decays", f32s(role.totals, self.features.is_multiple_of(4))));
                (LOOP, "loop_subgroup", rows4)
            }
            Engine::Chunk { chunk, step, rk, rg, columns, parts } => {
                let kp = rk * rg;
                let delta = op.update == Update::Delta;
                let channels = op.decay == Decay::PerChannel;
                let if_ = |yes: bool, n: u32| number(if yes { n } else { 1 });
                spec.extend([
                    ("FEATURES", number(self.features)),
                    ("LOADS", role.loads.to_string()),
                    ("STORES", role.stores.to_string()),
                    ("TOTALS", role.totals.to_string()),
                    ("CHUNK", number(chunk)),
                    ("STEP", number(step)),
                    ("RK", number(rk)),
                    ("RG", number(rg)),
                    ("COLUMNS", number(columns)),
                    ("SLICES", number(self.slices())),
                    ("PARTS", number(parts)),
                    ("GATE_TILE", if_(channels, chunk * kp)),
                    ("DELTA_TILE", if_(delta, chunk * kp)),
                    ("DELTA_SCORES", if_(delta, chunk * chunk)),
                    ("Z", if_(norm, kp)),
                    ("TOTAL", if_(role.totals, kp)),
                    ("TASKS", number(if channels { kp } else { chunk * kp })),
                    ("WAITS", if_(channels, rk.div_ceil(columns))),
                ]);
                tensors.push(("gate", gate(false)));
                tensors.push(("state", f32s(role.loads || role.stores, columns4 && aligned.state)));
                tensors.push(("decays", f32s(role.totals, false)));
                (CHUNK, "chunk_portable", false)
            }
            Engine::Tiled(tiles) => {
                let fades = role.writes && op.decay != Decay::None;
                spec.extend([
                    ("LOADS", role.loads.to_string()),
                    ("STORES", role.stores.to_string()),
                    ("TOTALS", role.totals.to_string()),
                    ("FADES", fades.to_string()),
                    ("GATED", (fades && op.decay == Decay::PerToken).to_string()),
                    ("WEIGHTED", (role.writes && op.update == Update::Weighted).to_string()),
                    ("NORMED", norm.to_string()),
                    ("TX", number(tiles.lanes_v)),
                    ("TY", number(tiles.lanes_t)),
                    ("GR", number(tiles.tokens / 4)),
                    ("GK", number(tiles.keys4())),
                    ("GC", number(tiles.rows / 4)),
                    ("DEPTH", number(tiles.depth)),
                    ("PART", number(tiles.part)),
                    ("LINES4", number(tiles.lines() / 4)),
                    ("SLICES", number(self.slices())),
                    ("WIDTH", number(tiles.width())),
                ]);
                tensors.push(("gate", gate(false)));
                tensors.push(("state", f32s(role.loads || role.stores, columns4 && aligned.state)));
                tensors.push(("decays", f32s(role.totals, false)));
                (TILED, "tiled", rows4)
            }
        };
        tensors.push(("q", io(role.reads, row_vec4 && aligned.q)));
        tensors.push(("k", io(role.writes, row_vec4 && aligned.k)));
        Key { source, entry, spec, tensors }
    }

    /// `state_pass.wgsl` over states of `rows` by `columns`.
    pub(super) fn pass_key(
        &self,
        rows: u32,
        columns: u32,
        loads: bool,
        stores: bool,
        vec4: bool,
    ) -> Key {
        let f32s = |present: bool, vec4: bool| present.then_some(TensorDecl::new(DType::F32, vec4));
        let decays = self.options.decay != Decay::None;
        Key {
            source: PASS,
            entry: "state_pass",
            spec: vec![
                ("ROWS", number(rows)),
                ("V", number(columns)),
                ("V4", number(columns.div_ceil(4))),
                ("DECAYS", decays.to_string()),
                ("LOADS", loads.to_string()),
                ("STORES", stores.to_string()),
            ],
            tensors: vec![
                ("own", f32s(true, columns.is_multiple_of(4))),
                ("decays", f32s(decays, false)),
                ("state", f32s(loads || stores, vec4 && columns.is_multiple_of(4))),
            ],
        }
    }

    /// `state_softmax.wgsl`, over states in scratch.
    pub(super) fn softmax_key(rows: u32, columns: u32) -> Key {
        let vec4 = columns.is_multiple_of(4);
        Key {
            source: SOFTMAX,
            entry: "state_softmax",
            spec: vec![
                ("ROWS", number(rows)),
                ("V", number(columns)),
                ("V4", number(columns.div_ceil(4))),
            ],
            tensors: vec![("state", Some(TensorDecl::new(DType::F32, vec4)))],
        }
    }

    /// `state_init.wgsl`: a copy, or zeros.
    pub(super) fn init_key(rows: u32, columns: u32, zero: bool, src4: bool, dst4: bool) -> Key {
        let even = columns.is_multiple_of(4);
        Key {
            source: INIT,
            entry: "state_init",
            spec: vec![
                ("ROWS", number(rows)),
                ("V", number(columns)),
                ("V4", number(columns.div_ceil(4))),
                ("ZERO", zero.to_string()),
            ],
            tensors: vec![
                ("src", (!zero).then_some(TensorDecl::new(DType::F32, src4 && even))),
                ("dst", Some(TensorDecl::new(DType::F32, dst4 && even))),
            ],
        }
    }

    /// Groups of four bounds in the parameters, rounded up so that few variants are compiled.
    pub(super) fn bounds(&self) -> u32 {
        if !self.options.packed {
            return 1;
        }
        let groups = (self.shape.batch + 1).div_ceil(4).next_power_of_two().max(4);
        groups.min((UNIFORM_BYTES - PARAMS_BYTES) / 16)
    }

    fn decay_kind(&self) -> u32 {
        match self.options.decay {
            Decay::None => 0,
            Decay::PerHead(_) => 1,
            Decay::PerToken => 2,
            Decay::PerChannel => 3,
        }
    }

    fn update_kind(&self) -> u32 {
        match self.options.update {
            Update::Add => 0,
            Update::Weighted => 1,
            Update::Delta => 2,
        }
    }
}

fn number(x: u32) -> String {
    format!("{x}u")
}

fn threads() -> u64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u64)
}

/// Registers instead of memory: where subgroups hand rows round, and the state fits.
fn loop_engine(
    caps: &Caps,
    s: &LinearAttentionShape,
    features: u32,
    op: &LinearAttention,
) -> Option<Engine> {
    let (min, max) = caps.subgroup?;
    if caps.tier != Tier::Subgroup || op.feature_map == FeatureMap::Taylor2 {
        return None;
    }
    let workgroup = max.max(min);
    if workgroup > caps.invocations {
        return None;
    }
    let v4 = s.value_dim.div_ceil(4);
    // numbers of one column group in one invocation
    let column = features.next_multiple_of(4) * 4;
    // a CPU spills to its first-level cache; a GPU invocation has some hundred registers
    let room = if caps.is_cpu() { 1024 } else { 128 };
    if column > room {
        return None;
    }
    // two columns share the rows' loads and broadcasts, while both leave room for the rest
    let states = u64::from(s.batch) * u64::from(s.heads);
    let wide = v4 > workgroup
        && 2 * column <= room.min(512)
        && states * u64::from(v4.div_ceil(2 * workgroup))
            >= if caps.is_cpu() { threads() } else { 256 };
    // what is too tall for that takes two tokens over the state at a time
    let pairs = caps.is_cpu()
        && features > 64
        && op.update != Update::Delta
        && 2 * features <= caps.unrolled;
    Some(Engine::Loop {
        workgroup,
        columns: if wide { 2 } else { 1 },
        lanes: min.min(32),
        tokens: if pairs { 2 } else { 1 },
    })
}

/// Chunk sizes that fit workgroup memory, largest first.
fn chunk_sizes(
    caps: &Caps,
    s: &LinearAttentionShape,
    features: u32,
    op: &LinearAttention,
) -> Vec<Engine> {
    let rk = match features {
        ..=64 => features.div_ceil(4).max(1),
        65..=128 => 16,
        _ => 32,
    };
    let rg = features.div_ceil(rk);
    let columns = s.value_dim.div_ceil(4).min(16);
    let kp = u64::from(rk * rg);
    let workgroup = rg * columns;
    let delta = op.update == Update::Delta;
    let mut found = Vec::new();
    for chunk in [16u32, 8, 4, 2, 1] {
        let u = u64::from(chunk);
        let parts = (workgroup / chunk).clamp(1, (512 / (chunk * chunk)).max(1)).min(8);
        let gates = if op.decay == Decay::PerChannel { u * kp } else { 1 };
        let corrections = if delta { u * kp + u * u } else { 2 };
        let scalars =
            2 * u * kp + gates + corrections + u64::from(parts) * u * u + u * u + 3 * u + 3 * kp;
        for step in [4u32, 2, 1].into_iter().filter(|st| chunk.is_multiple_of(*st)) {
            let vectors = u64::from(columns) * (u + u64::from(rg * step));
            let bytes = 4 * scalars + 16 * vectors;
            if bytes <= caps.workgroup_storage.into() && workgroup <= caps.invocations {
                found.push(Engine::Chunk { chunk, step, rk, rg, columns, parts });
                break;
            }
        }
    }
    found
}

impl LinearAttention {
    /// Chunk sizes that [`LinearAttention::chunk_size`] accepts for this problem on such a device,
    /// largest first; empty if the problem is refused.
    pub fn chunk_sizes(&self, caps: &Caps, shape: &LinearAttentionShape) -> Vec<u32> {
        let Ok(features) = check(self, shape) else { return Vec::new() };
        let size = |e| match e {
            Engine::Chunk { chunk, .. } => Some(chunk),
            _ => None,
        };
        let tiles = RegisterTiles::choose(caps, shape, features, self);
        let others = chunk_sizes(caps, shape, features, self).into_iter().filter_map(size);
        tiles.map(|tiles| tiles.chunk()).into_iter().chain(others).collect()
    }
}

fn chunk_engine(
    caps: &Caps,
    s: &LinearAttentionShape,
    features: u32,
    op: &LinearAttention,
) -> Result<Engine> {
    let all = chunk_sizes(caps, s, features, op);
    let size = |e: &Engine| match e {
        Engine::Chunk { chunk, .. } => *chunk,
        _ => 0,
    };
    let wanted = match op.chunk_size {
        Some(wanted) => all.iter().find(|e| size(e) == wanted),
        None => all.first(),
    };
    wanted.copied().ok_or_else(|| {
        let mut sizes = op.chunk_sizes(caps, s);
        sizes.reverse();
        Error::shape(
            OP,
            "chunk_size",
            format!("one of {sizes:?} for {features} key features on this device"),
            op.chunk_size.map_or("none".into(), |c| c.to_string()),
        )
    })
}

/// Checks options and sizes; returns the number of key features.
fn check(op: &LinearAttention, s: &LinearAttentionShape) -> Result<u32> {
    op.dtype.expect_float(OP)?;
    op.gate_dtype.expect_float(OP)?;
    if s.heads == 0 {
        return Err(Error::shape(OP, "heads", "at least 1", 0));
    }
    for (what, own) in [("heads_q", s.heads_q), ("heads_k", s.heads_k), ("heads_v", s.heads_v)] {
        if own == 0 || !s.heads.is_multiple_of(own) {
            return Err(Error::shape(OP, what, format!("a divisor of heads = {}", s.heads), own));
        }
    }
    for (what, dim) in [("key_dim", s.key_dim), ("value_dim", s.value_dim)] {
        if dim == 0 || dim > MAX_DIM {
            return Err(Error::shape(OP, what, format!("1 to {MAX_DIM}"), dim));
        }
    }
    let features = op.feature_map.features(s.key_dim);
    let Some(features) = u32::try_from(features).ok().filter(|f| *f <= MAX_DIM) else {
        return Err(Error::shape(
            OP,
            "key_dim",
            format!("at most {MAX_DIM} features; Taylor2 makes them of up to 21 channels"),
            format!("{} channels, {features} features", s.key_dim),
        ));
    };
    for (what, seq) in [("seq_q", s.seq_q), ("seq_k", s.seq_k)] {
        if seq > 1 << 30 {
            return Err(Error::shape(OP, what, format!("at most {}", 1u32 << 30), seq));
        }
    }
    if (op.causal || op.packed) && s.seq_q != s.seq_k {
        return Err(Error::shape(
            OP,
            "seq_q",
            format!("seq_k = {} (only unpacked non-causal attention takes two lengths)", s.seq_k),
            s.seq_q,
        ));
    }
    if !op.scale.is_finite() {
        return Err(Error::value(OP, "scale", "a finite number", op.scale));
    }
    if op.feature_map == FeatureMap::Taylor2 && op.scale < 0.0 {
        return Err(Error::value(
            OP,
            "scale",
            "at least 0 for Taylor2, which takes its root",
            op.scale,
        ));
    }
    match op.normalize {
        Normalize::Eps(eps) if !(eps.is_finite() && eps >= 0.0) => {
            return Err(Error::value(OP, "eps", "finite and at least 0", eps));
        }
        Normalize::Clamp(min) if !(min.is_finite() && min > 0.0) => {
            return Err(Error::value(OP, "clamp", "finite and greater than 0", min));
        }
        _ => {}
    }
    if let Decay::PerHead(log_decays) = &op.decay {
        if log_decays.len() as u64 != u64::from(s.heads) {
            return Err(Error::shape(
                OP,
                "per-head decays",
                format!("heads = {}", s.heads),
                log_decays.len(),
            ));
        }
        super::check_gates(log_decays)?;
    }
    if op.update == Update::Delta {
        if !op.causal {
            return Err(Error::argument(OP, "update", "the delta rule is causal"));
        }
        if op.normalize != Normalize::None {
            return Err(Error::argument(OP, "normalize", "the delta rule has no denominator"));
        }
    }
    if !op.causal && op.decay != Decay::None {
        return Err(Error::argument(
            OP,
            "decay",
            "decays need an order: set causal, or Decay::None",
        ));
    }
    if op.packed && s.batch > MAX_PACKED {
        return Err(Error::Limit {
            op: OP,
            what: "packed sequences",
            need: s.batch.into(),
            limit: MAX_PACKED.into(),
        });
    }
    if op.chunk_size == Some(0) {
        return Err(Error::shape(OP, "chunk_size", "at least 1", 0));
    }
    let product = |dims: [u32; 4]| dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.into()));
    let batch = if op.packed { 1 } else { s.batch };
    let wide = s.key_dim.max(s.value_dim).max(features);
    for dims in
        [[batch, s.seq_q.max(s.seq_k), s.heads, wide], [s.batch, s.heads, features, s.value_dim]]
    {
        let elements = product(dims).unwrap_or(u64::MAX);
        if elements > u64::from(u32::MAX) {
            return Err(Error::Limit {
                op: OP,
                what: "elements in one tensor",
                need: elements,
                limit: u32::MAX.into(),
            });
        }
    }
    Ok(features)
}

/// Compiles the kernels that aligned views use.
pub(super) fn compile(ctx: &Context, design: &Design, roles: &[Role]) -> Result<()> {
    for role in roles {
        ctx.kernel(design.engine_key(*role, Aligned::ALL))?;
    }
    Ok(())
}
