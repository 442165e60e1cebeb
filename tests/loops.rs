//! No device: every loop of every kernel, and what bounds its trips.
//!
//! Mesa's llvmpipe before release 25 ends every loop in silence after some 65,535 trips of an
//! invocation, nested loops summed (`Caps::loop_trips`). So a loop either makes trips by a constant, or
//! its planner knows the limit: tried here with a problem that needs more than a small limit allows,
//! which must be refused, or cut. A loop that is not listed is a fault.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod common;

use std::{collections::BTreeSet, fs, path::Path};

use naga::{Block, Statement};
use tilewise::{
    Caps, Context, DType, DeviceClass, Error, Result, Tier,
    attention::{
        Algorithm as Form, Attention, AttentionShape, Merge, MergeShape, Split, TripleAttention,
        TripleShape,
    },
    gaunt::{
        Algorithm as Route, Connection, GauntConvolution, GauntShape, GauntTensorProduct, Graph,
        Instruction, Irreps, SphereGrid, WeightedTensorProduct,
    },
    linear_attention::{
        self, LinearAttention, LinearAttentionShape, RelativeAttention, RelativeAttentionShape,
        RelativeFeatures, RelativeMethod,
    },
    neighborhood::{Algorithm as Cover, NeighborhoodAttention, NeighborhoodShape, RelativeBias},
};

/// Why a loop ends in time.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    /// By so many trips, far below any limit.
    Constant(&'static str),
    /// The planner of this name in [`PLANNERS`] refuses or cuts what takes more.
    Planner(&'static str),
    /// The planner cuts into dispatches: this test, in this file, runs past the limit.
    Tested(&'static str, &'static str),
}
use Bound::{Constant, Planner, Tested};

/// Loops by file, in order, each with its first line up to the brace.
#[rustfmt::skip]
const LOOPS: &[(&str, &[(&str, Bound)])] = &[
    ("attention/decode.wgsl", &[
        ("for (var start = first; start < reach.last; start += BLOCK_K) {", Planner("decode")),
    ]),
    ("attention/flash.wgsl", &[
        ("for (var c = 0u; c < HEAD_DIM; c++) {", Constant("HEAD_DIM")),
        ("loop {", Constant("D4")),
        ("loop {", Planner("flash")),
        ("loop {", Planner("flash")),
        ("for (var start = first; start < last; start += BLOCK_K) {", Planner("flash")),
        ("for (var tile = first; tile < last; tile += TILE_K) {", Planner("flash")),
        ("loop {", Planner("flash")),
        ("loop {", Planner("flash")),
        ("for (var start = tile; start < min(tile + TILE_K, last); start += BLOCK_K) {", Planner("flash")),
        ("loop {", Constant("QUERIES * DV4")),
    ]),
    ("attention/merge.wgsl", &[
        ("for (var p = 0u; p < parts; p++) {", Planner("merge")),
        ("for (var p = 0u; p < parts; p++) {", Planner("parts")),
    ]),
    ("attention/groups.wgsl", &[
        ("for (var start = begin; start < reach.last; start += TILE_K) {", Planner("groups")),
        ("for (var g = 1u; g < GROUPS; g++) {", Planner("groups")),
        ("for (var g = 0u; g < GROUPS; g++) {", Planner("groups")),
        ("for (var g = 0u; g < GROUPS; g++) {", Planner("groups")),
    ]),
    ("attention/tiled.wgsl", &[
        ("for (var start = begin; start < reach.last; start += TILE_K) {", Planner("tiled")),
        ("for (var slice = 0u; slice < SLICES; slice++) {", Planner("tiled")),
        ("for (var c = 0u; c < DEPTH / UNROLL; c++) {", Planner("tiled")),
        ("for (var t = 1u; t < TX; t++) {", Planner("tiled")),
        ("for (var share = 0u; share < SHARES; share++) {", Planner("tiled")),
        ("for (var t = 0u; t < PART / 4u; t++) {", Planner("tiled")),
        ("for (var t = 0u; t < TX; t++) {", Constant("TX, at most 64")),
    ]),
    ("attention/triple.wgsl", &[
        ("for (var j = 0u; j < seq_1; j++) {", Planner("triple")),
        ("for (var start = 0u; start < seq_2; start += BLOCK) {", Planner("triple")),
    ]),
    ("attention/unfused_scores.wgsl", &[
        ("for (var c = 0u; c < HEAD_DIM; c++) {", Constant("HEAD_DIM")),
    ]),
    ("attention/unfused_softmax.wgsl", &[
        ("for (var j = 0u; j < limit; j++) {", Planner("unfused")),
        ("for (var j = 0u; j < limit; j++) {", Planner("unfused")),
        ("for (var j = 0u; j < params.seq_k; j++) {", Planner("unfused")),
    ]),
    ("attention/unfused_values.wgsl", &[
        ("for (var j = 0u; j < limit; j++) {", Planner("unfused")),
    ]),
    ("fft/pass.wgsl", &[
        ("for (var turn = 0u; turn < REPEAT; turn++) {", Constant("REPEAT, at most 8")),
    ]),
    ("gaunt/bilinear.wgsl", &[
        ("for (var e = table[o].x; e < last; e++) {", Planner("gaunt table")),
    ]),
    ("gaunt/linear.wgsl", &[
        ("for (var e = table[o].x; e < last; e++) {", Planner("gaunt map")),
    ]),
    ("gaunt/orders.wgsl", &[
        ("for (var i = local; i < ROUNDS * PAIRS * ORDERS * QUADS; i += WORKGROUP) {", Constant("ROUNDS * PAIRS * QUADS, below 64")),
        ("for (var round = 0u; round < params.rounds; round++) {", Constant("ROUNDS, at most 3")),
        ("for (var i = 0u; i < params.pairs; i++) {", Constant("PAIRS, at most 6")),
        ("for (var i = 0u; i < params.pairs; i++) {", Constant("PAIRS, at most 6")),
    ]),
    ("gaunt/pointwise.wgsl", &[
        ("for (var k = 0u; k < GRIDS; k++) {", Constant("GRIDS, at most 7")),
        ("for (var p = 0u; p < params.powers[k / 4u][k % 4u]; p++) {", Constant("powers, at most MAX_DEGREE each")),
    ]),
    ("gaunt/segment_sum.wgsl", &[
        ("for (var e = starts[node]; e < last; e++) {", Planner("gaunt convolution")),
    ]),
    ("gaunt/weighted.wgsl", &[
        ("for (var path = own.x; path < own.y; path += 2u) {", Planner("gaunt weighted paths")),
        ("for (var pair = 0u; pair < a.x; pair++) {", Planner("gaunt weighted uvw")),
        ("for (var v = 0u; v < a.x; v++) {", Planner("gaunt weighted uvu")),
        ("for (var e = range.x; e < range.y; e++) {", Planner("gaunt weighted uvu")),
    ]),
    ("linear_attention/chunk_portable.wgsl", &[
        ("for (var c = local; c < KP; c += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var chunk = begin; chunk < end; chunk += CHUNK) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var task = local; task < TASKS; task += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var i = task; i < CHUNK * KP; i += TASKS) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var i = local; i < CHUNK * COLUMNS; i += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var i = local; i < CHUNK; i += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var i = 0u; i < CHUNK; i++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var side = select(1u, 0u, READS); side < select(1u, 2u, UPDATE == 2u); side++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var task = local; task < PARTS * CHUNK; task += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var c = part; c < KP; c += PARTS) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var p = local; p < CHUNK * CHUNK; p += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var part = 0u; part < PARTS; part++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var u = j + 1u; u <= i; u++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var c = local; c < KP; c += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var i = 0u; i < CHUNK; i++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var i = CHUNK; i > 0u; i--) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var i = local; i < CHUNK; i += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var c = 0u; c < KP; c++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var j = 0u; j <= i; j++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var c = local; c < KP; c += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var i = 0u; i < CHUNK; i++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var i0 = 0u; i0 < CHUNK; i0 += STEP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var p = local; p < STEP * COLUMNS; p += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var rows = 0u; rows < RG; rows++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var i = 1u; i < CHUNK; i++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var j = 0u; j < i; j++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var i0 = 0u; i0 < CHUNK; i0 += STEP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var p = local; p < STEP * COLUMNS; p += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var rows = 0u; rows < RG; rows++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var j = 0u; j <= i; j++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var i = 0u; i < CHUNK; i++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var c = local; c < KP && DECAY == 3u; c += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var c = 0u; c < KP && DECAY != 3u && local == 0u; c++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var c = local; c < FEATURES; c += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var c = local; c < FEATURES; c += WORKGROUP) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
    ]),
    ("linear_attention/loop_subgroup.wgsl", &[
        ("for (var t = begin; t < end; t += TOKENS) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
    ]),
    ("linear_attention/recurrent.wgsl", &[
        ("for (var c = 0u; c < FEATURES; c++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var t = begin; t < end; t++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var c = 0u; c < FEATURES; c++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var c = 0u; c < FEATURES; c++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
        ("for (var c = 0u; c < FEATURES; c++) {", Tested("tests/linear_attention.rs", "longer_than_one_dispatch")),
    ]),
    ("linear_attention/state_pass.wgsl", &[
        ("for (var n = 0u; n < params.segments; n++) {", Planner("linear segments")),
    ]),
    ("linear_attention/state_softmax.wgsl", &[
        ("for (var row = 1u; row < ROWS; row++) {", Constant("ROWS, at most MAX_DIM")),
        ("for (var row = 0u; row < ROWS; row++) {", Constant("ROWS, at most MAX_DIM")),
        ("for (var row = 0u; row < ROWS; row++) {", Constant("ROWS, at most MAX_DIM")),
    ]),
    ("linear_attention/tiled.wgsl", &[
        ("for (var chunk = begin; chunk < end; chunk += CHUNK) {", Tested("tests/linear_attention.rs", "packed_sequences_on_a_gpu")),
        ("for (var u = 0u; u < QUADS; u++) {", Tested("tests/linear_attention.rs", "packed_sequences_on_a_gpu")),
        ("for (var channels = 0u; channels < KP / 4u; channels += DEPTH4) {", Tested("tests/linear_attention.rs", "packed_sequences_on_a_gpu")),
        ("for (var c = 0u; c < depth4; c++) {", Tested("tests/linear_attention.rs", "packed_sequences_on_a_gpu")),
        ("for (var part = 0u; part < CHUNK; part += PART) {", Tested("tests/linear_attention.rs", "packed_sequences_on_a_gpu")),
        ("for (var t = 0u; t < part4; t++) {", Tested("tests/linear_attention.rs", "packed_sequences_on_a_gpu")),
        ("for (var t = 0u; t < part4; t++) {", Tested("tests/linear_attention.rs", "packed_sequences_on_a_gpu")),
        ("for (var t = 0u; t < part4; t++) {", Tested("tests/linear_attention.rs", "packed_sequences_on_a_gpu")),
    ]),
    ("measure/multiply_add.wgsl", &[
        ("for (var t = 0u; t < params.trips; t++) {", Constant("params.trips, TRIPS of measure.rs")),
    ]),
    ("measure/workgroup.wgsl", &[
        ("for (var at = local; at < CELLS; at += WORKGROUP) {", Constant("CELLS / WORKGROUP")),
        ("for (var t = 0u; t < params.trips; t++) {", Constant("params.trips, at most 1024")),
    ]),
    ("neighborhood/fused.wgsl", &[
        ("loop {", Planner("neighborhood fused")),
        ("loop {", Planner("neighborhood fused")),
        ("loop {", Planner("neighborhood fused")),
        ("loop {", Planner("neighborhood fused")),
        ("loop {", Planner("neighborhood fused")),
        ("loop {", Planner("neighborhood fused")),
        ("loop {", Planner("neighborhood fused")),
        ("loop {", Planner("neighborhood fused")),
    ]),
    ("neighborhood/naive.wgsl", &[
        ("for (var axis = 0u; axis < 3u; axis++) {", Constant("3 axes")),
        ("for (var n = 0; n < keys + params.kernel.w; n++) {", Planner("neighborhood naive")),
        ("for (var axis = 0u; axis < 3u; axis++) {", Planner("neighborhood factorised")),
    ]),
    ("relative_attention/bounds.wgsl", &[
        ("for (var e = 0u; e < params.value_dim; e++) {", Planner("relative values")),
        ("for (var e = 0u; e < params.value_dim; e++) {", Planner("relative values")),
    ]),
    ("relative_attention/contract.wgsl", &[
        ("for (var m = 0u; m < params.features; m++) {", Planner("relative features")),
    ]),
    ("relative_attention/exact.wgsl", &[
        ("for (var start = 0u; start < last; start += TILE) {", Planner("relative exact")),
        ("for (var m = 0u; m < params.features; m += DEPTH) {", Planner("relative exact")),
        ("for (var d = 0u; d < DEPTH; d += STEP) {", Planner("relative exact")),
        ("for (var j = 0u; j < TILE; j += STEP) {", Planner("relative exact")),
    ]),
    ("relative_attention/features.wgsl", &[
        ("for (var d = 0u; d < params.key_dim; d++) {", Planner("relative key_dim")),
    ]),
    ("relative_attention/judge.wgsl", &[
        ("for (var m = 0u; m < params.features; m++) {", Planner("relative features")),
        ("for (var e = 0u; e < params.value_dim; e++) {", Planner("relative values")),
        ("for (var e = 0u; e < params.value_dim; e++) {", Planner("relative values")),
    ]),
    ("relative_attention/largest.wgsl", &[
        ("for (var i = local; i < used; i += WORKGROUP) {", Planner("relative biases")),
        ("for (var i = 0u; i < WORKGROUP; i++) {", Constant("WORKGROUP")),
    ]),
    ("relative_attention/norm.wgsl", &[
        ("for (var i = local; i < params.seq; i += WORKGROUP) {", Planner("relative norms")),
        ("for (var i = 0u; i < WORKGROUP; i++) {", Constant("WORKGROUP")),
        ("for (var i = local; i < params.seq; i += WORKGROUP) {", Planner("relative norms")),
        ("for (var i = 0u; i < WORKGROUP; i++) {", Constant("WORKGROUP")),
    ]),
    // written by the host
    ("src/gaunt/program.rs", &[
        ("for (var pair = 0u; pair < {}u; pair++) {", Constant("pairs of parallels, at most MAX_DEGREE")),
    ]),
];

/// Plans a problem that takes more trips than the limit beside it.
type Try = fn(&Context) -> Result<()>;

const PLANNERS: &[(&str, u64, Try)] = &[
    ("flash", 1500, |ctx| attention(ctx, Form::Flash, Split::Never, [64, 1 << 26])),
    // what takes more is given to flash, which refuses it
    ("tiled", 1500, |ctx| attention(ctx, Form::Flash, Split::Never, [64, 1 << 26])),
    ("decode", 1500, |ctx| attention(ctx, Form::Flash, Split::Keys(1 << 26), [1, 1 << 26])),
    ("groups", 1500, |ctx| attention(ctx, Form::Flash, Split::Keys(1 << 26), [8, 1 << 26])),
    ("parts", 1500, |ctx| attention(ctx, Form::Flash, Split::Keys(64), [1, 751 * 64])),
    ("unfused", 1500, |ctx| attention(ctx, Form::Unfused, Split::Never, [1, 501])),
    ("merge", 1500, |ctx| {
        let shape = MergeShape { parts: 751, batch: 1, seq: 1, heads: 1, head_dim_v: 4 };
        Merge::default().plan(ctx, shape).map(drop)
    }),
    ("triple", 1500, |ctx| {
        let shape = TripleShape {
            batch: 1,
            seq_q: 1,
            seq_1: 751,
            seq_2: 4,
            heads: 1,
            heads_kv: 1,
            head_dim: 4,
            head_dim_v: 4,
        };
        TripleAttention::default().plan(ctx, shape).map(drop)
    }),
    ("linear segments", 1500, |ctx| {
        let shape = LinearAttentionShape::new(1, 1 << 23, 1, 4, 4);
        let form = linear_attention::Form::ChunkParallel;
        let op = LinearAttention { form, ..Default::default() };
        op.plan(&ctx.with_tier(Tier::Portable)?, shape).map(drop)
    }),
    ("gaunt table", 10, |ctx| {
        let algorithm = Some(Route::Table);
        let op = GauntTensorProduct { algorithm, ..GauntTensorProduct::new(6, 6) };
        op.plan(ctx, GauntShape { batch: 1, channels: 1 }).map(drop)
    }),
    ("gaunt map", 10, |ctx| {
        let op = SphereGrid { lmax: 6, n_beta: 16, n_alpha: 16, dtype: DType::F32 };
        op.plan(ctx, GauntShape { batch: 1, channels: 1 }).map(drop)
    }),
    ("gaunt convolution", 1500, |ctx| {
        let op = GauntConvolution { lmax1: 1, lmax2: 1, lmax_out: 1, ..Default::default() };
        let graph = Graph { nodes: 1, edges: &[[0, 0]; 1501] };
        op.plan(ctx, graph, 1).map(drop)
    }),
    ("gaunt weighted paths", 1500, |ctx| {
        let path = Instruction { first: 0, second: 0, out: 0, connection: Connection::Uvw };
        let one: Irreps = "1x0e".parse()?;
        let op = WeightedTensorProduct {
            irreps1: one.clone(),
            irreps2: one.clone(),
            irreps_out: one,
            instructions: vec![path; 1501],
            ..Default::default()
        };
        op.plan(ctx, 1).map(drop)
    }),
    ("gaunt weighted uvw", 1500, |ctx| weighted(ctx, Connection::Uvw, ["40x0e", "40x0e", "1x0e"])),
    ("gaunt weighted uvu", 1500, |ctx| weighted(ctx, Connection::Uvu, ["1x0e", "1501x0e", "1x0e"])),
    ("neighborhood fused", 100, |ctx| map(ctx, NeighborhoodAttention::new([4096]), [4097])),
    ("neighborhood naive", 1500, |ctx| {
        let algorithm = Cover::Naive;
        map(ctx, NeighborhoodAttention { algorithm, ..NeighborhoodAttention::new([1501]) }, [1600])
    }),
    ("neighborhood factorised", 1500, |ctx| {
        let (algorithm, bias) = (Cover::Naive, RelativeBias::Factorised { scaled: false });
        let op = NeighborhoodAttention { algorithm, bias, ..NeighborhoodAttention::new([20, 20]) };
        map(ctx, op, [30, 30])
    }),
    ("relative exact", 1500, |ctx| relative(ctx, RelativeMethod::Exact, 6400, 1)),
    ("relative biases", 1500, |ctx| relative(ctx, RelativeMethod::Transform, 160_000, 1)),
    ("relative features", 1500, |ctx| {
        let shape = RelativeAttentionShape { key_dim: 1, ..relative_shape(2) };
        let (features, method) = (RelativeFeatures::Random(1501), RelativeMethod::Transform);
        RelativeAttention { features, method, ..Default::default() }.plan(ctx, shape).map(drop)
    }),
    // not refused, but made exactly
    ("relative values", 1500, |ctx| {
        let shape = RelativeAttentionShape { value_dim: 751, ..relative_shape(2000) };
        by_transforms(ctx, shape)
    }),
    ("relative norms", 1500, |ctx| by_transforms(ctx, relative_shape(30_000))),
    ("relative key_dim", 1500, |ctx| relative(ctx, RelativeMethod::Exact, 2, 1501)),
];

fn attention(ctx: &Context, algorithm: Form, split: Split, [seq_q, seq_k]: [u32; 2]) -> Result<()> {
    let shape = AttentionShape {
        batch: 1,
        seq_q,
        seq_k,
        heads: 1,
        heads_kv: 1,
        head_dim: 8,
        head_dim_v: 8,
    };
    Attention { algorithm, split, ..Default::default() }.plan(ctx, shape).map(drop)
}

fn map<const D: usize>(
    ctx: &Context,
    op: NeighborhoodAttention<D>,
    spatial: [u32; D],
) -> Result<()> {
    let shape = NeighborhoodShape {
        batch: 1,
        spatial,
        heads: 1,
        heads_kv: 1,
        head_dim: 4,
        head_dim_v: 4,
        extra_tokens: 0,
    };
    op.plan(ctx, shape).map(drop)
}

fn weighted(ctx: &Context, connection: Connection, irreps: [&str; 3]) -> Result<()> {
    let op = WeightedTensorProduct {
        irreps1: irreps[0].parse()?,
        irreps2: irreps[1].parse()?,
        irreps_out: irreps[2].parse()?,
        instructions: vec![Instruction { first: 0, second: 0, out: 0, connection }],
        ..Default::default()
    };
    op.plan(ctx, 1).map(drop)
}

fn relative_shape(seq: u32) -> RelativeAttentionShape {
    RelativeAttentionShape { batch: 1, seq, heads: 1, key_dim: 1, value_dim: 1 }
}

fn relative(ctx: &Context, method: RelativeMethod, seq: u32, key_dim: u32) -> Result<()> {
    let shape = RelativeAttentionShape { key_dim, ..relative_shape(seq) };
    RelativeAttention { method, ..Default::default() }.plan(ctx, shape).map(drop)
}

/// By transforms with rows checked; else an error.
fn by_transforms(ctx: &Context, shape: RelativeAttentionShape) -> Result<()> {
    let limit = ctx.caps.loop_trips;
    let plan = RelativeAttention::default().plan(ctx, shape)?;
    let what = "relative attention by transforms is too much for this driver";
    let refused =
        Error::Limit { op: "relative_attention", what, need: limit.saturating_add(1), limit };
    if plan.by_transforms() { Ok(()) } else { Err(refused) }
}

/// A noop device whose driver makes so many trips.
fn noop(loop_trips: u64) -> Context {
    let ctx = pollster::block_on(Context::from_adapter(&common::noop::noop_adapter())).unwrap();
    ctx.with_caps(Caps { loop_trips, ..ctx.caps.clone() })
}

/// The first line of every loop of a text, up to the brace. Texts that the host writes have them in
/// `writeln!`.
fn loops(text: &str) -> Vec<&str> {
    let heads = text.lines().filter_map(|line| {
        let line = line.trim();
        let line = line.strip_prefix("let _ = writeln!(body, \"").unwrap_or(line);
        let starts = ["for (", "while ", "loop {"].iter().any(|start| line.starts_with(start));
        // in `writeln!` braces are doubled
        let brace = line.find("{{").or_else(|| line.find('{'))?;
        starts.then(|| line.get(..=brace)).flatten()
    });
    heads.collect()
}

/// Files under `folder` with this ending, as (path from the root of the crate, text).
fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    fn visit(folder: &Path, ending: &str, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, ending, found);
            } else if path.extension().is_some_and(|e| e == ending) {
                let root = Path::new(env!("CARGO_MANIFEST_DIR"));
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), ending, &mut found);
    found.sort();
    found
}

#[test]
fn every_loop_is_listed() {
    let mut sources = files("shaders", "wgsl");
    // loops of Rust are no loops of WGSL
    let written =
        |text: &str| text.lines().any(|l| l.contains("\"for (var") || l.contains("\"loop {"));
    sources.extend(files("src", "rs").into_iter().filter(|(_, text)| written(text)));
    let mut faults = Vec::new();
    for (name, text) in &sources {
        let mut found = loops(text);
        if name.ends_with(".rs") {
            found.retain(|head| head.starts_with("for (var"));
        }
        let name = name.strip_prefix("shaders/").unwrap_or(name);
        let listed = LOOPS.iter().find(|(file, _)| *file == name).map_or(&[][..], |(_, list)| list);
        let listed: Vec<&str> = listed.iter().map(|(head, _)| *head).collect();
        if found != listed {
            faults.push(format!("{name} has the loops {found:#?}, listed are {listed:#?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let known = |name: &str| sources.iter().any(|(file, _)| file.ends_with(name));
    assert!(LOOPS.iter().all(|(file, _)| known(file)), "a file is listed that is none");
}

#[test]
fn every_bound_holds() {
    let bounds = || LOOPS.iter().flat_map(|(_, list)| *list).map(|(_, bound)| *bound);
    let named: BTreeSet<&str> = bounds()
        .filter_map(|bound| if let Planner(name) = bound { Some(name) } else { None })
        .collect();
    let tried: BTreeSet<&str> = PLANNERS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(named, tried);
    for bound in bounds() {
        if let Tested(file, test) = bound {
            let tests = files("tests", "rs");
            let (_, text) = tests.iter().find(|(name, _)| name == file).expect(file);
            assert!(text.contains(&format!("\nfn {test}() {{")), "{file} has no test {test}");
        }
    }
    for (name, limit, attempt) in PLANNERS {
        for (tier, class) in [
            (Tier::Portable, DeviceClass::Cpu),
            (Tier::Portable, DeviceClass::Gpu),
            (Tier::Subgroup, DeviceClass::Cpu),
            (Tier::Subgroup, DeviceClass::Gpu),
        ] {
            let [short, free] = [*limit, u64::MAX]
                .map(|trips| noop(trips).with_tier(tier).unwrap().with_class(class));
            attempt(&free).unwrap_or_else(|e| panic!("{name}: {e}"));
            match attempt(&short) {
                Err(Error::Limit { what, limit: got, .. }) => {
                    assert!(what.contains("driver"), "{name}: {what}");
                    // a limit on something that takes trips
                    assert!(got < 1 << 26, "{name}: {got}");
                }
                other => {
                    panic!(
                        "{name}, {tier}, {class}: more than {limit} trips are not refused: {other:?}"
                    )
                }
            }
        }
    }
}

/// Lines on which loops start.
fn starts(block: &Block, text: &str, found: &mut BTreeSet<usize>) {
    for (statement, span) in block.span_iter() {
        match statement {
            Statement::Loop { body, continuing, .. } => {
                found.insert(span.location(text).line_number as usize);
                starts(body, text, found);
                starts(continuing, text, found);
            }
            Statement::Block(inner) => starts(inner, text, found),
            Statement::If { accept, reject, .. } => {
                starts(accept, text, found);
                starts(reject, text, found);
            }
            Statement::Switch { cases, .. } => {
                cases.iter().for_each(|case| starts(&case.body, text, found));
            }
            _ => {}
        }
    }
}

/// A text that a planner made has no loop that the list, which is of lines, does not see.
#[test]
fn no_loop_is_overlooked() {
    let plain =
        |head: &str| head.replace("{}", "0").replace("{{", "{").replace(char::is_numeric, "");
    let listed: BTreeSet<String> =
        LOOPS.iter().flat_map(|(_, list)| *list).map(|(head, _)| plain(head)).collect();
    let mut seen = BTreeSet::new();
    for tier in [Tier::Portable, Tier::Subgroup] {
        let ctx = noop(u64::MAX).with_tier(tier).unwrap();
        for class in [DeviceClass::Gpu, DeviceClass::Cpu] {
            let ctx = ctx.with_class(class);
            PLANNERS.iter().for_each(|(.., attempt)| attempt(&ctx).unwrap());
        }
        for text in ctx.compiled_wgsl() {
            // naga does without
            let text = text.replace("enable subgroups;", "");
            let module = naga::front::wgsl::parse_str(&text).unwrap();
            let functions = module.functions.iter().map(|(_, f)| f);
            let entries = module.entry_points.iter().map(|e| &e.function);
            let mut lines = BTreeSet::new();
            functions.chain(entries).for_each(|f| starts(&f.body, &text, &mut lines));
            for line in lines {
                let line = text.lines().nth(line - 1).unwrap();
                let head = loops(line);
                let [head] = head[..] else { panic!("a loop starts within a line: {line}") };
                assert!(listed.contains(&plain(head)), "not listed: {head}");
                seen.insert(head.to_owned());
            }
        }
    }
    assert!(seen.len() > 20, "{seen:#?}");
}
