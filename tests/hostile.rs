//! Hostile arguments: zero, one, the largest, next to powers of two, not a number, strides that
//! overflow, offsets past the end. A descriptor is planned or refused by name, in good time, and what
//! is planned is encoded without a complaint of wgpu; nothing panics. On wgpu's noop backend, whose
//! checks are those of the real ones.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod common;

use std::{
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use common::{Rng, slow};
use tilewise::{
    Caps, Context, DType, Error, Layout, Result, Tensor, TensorView, Tier,
    attention::{Algorithm as AttentionAlgorithm, *},
    fft::{Direction, Fft, FftArgs, Normalization},
    gaunt::{self, *},
    linear_attention::*,
    neighborhood::{
        self, Border, KernelCost, NeighborhoodArgs, NeighborhoodAttention, NeighborhoodShape,
        NeighborhoodTiles, RelativeBias, recommended_stride,
    },
    wgpu,
};

/// A noop device with the least that WebGPU promises, subgroups of 4 to 64.
fn noop() -> Context {
    pollster::block_on(Context::from_adapter(&common::noop::noop_adapter())).unwrap()
}

/// Sane values, and now and then hostile ones in their place.
struct Hostile {
    rng: Rng,
    /// Of a hundred values.
    percent: u32,
}

impl Hostile {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5a5a);
        // a third of the problems is sane altogether, so that encoding is reached
        let percent = *rng.pick(&[0, 8, 25]);
        Self { rng, percent }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.range(0, 100) < percent
    }

    fn strikes(&mut self) -> bool {
        let percent = self.percent;
        self.chance(percent)
    }

    /// A number at which arithmetic breaks.
    fn number(&mut self) -> u32 {
        match self.rng.range(0, 8) {
            0 => 0,
            1 => u32::MAX,
            2 => u32::MAX - self.rng.range(1, 70),
            3 => 1 << self.rng.range(0, 32),
            4 => (1u32 << self.rng.range(1, 32)) - 1,
            5 => (1u32 << self.rng.range(1, 32)).saturating_add(1),
            6 => self.rng.next() as u32,
            _ => self.rng.range(0, 1 << 16),
        }
    }

    /// One of `low..=high`, or a hostile number.
    fn size(&mut self, low: u32, high: u32) -> u32 {
        if self.strikes() { self.number() } else { self.rng.range(low, high + 1) }
    }

    fn pick<T: Copy>(&mut self, sane: &[T]) -> T {
        *self.rng.pick(sane)
    }

    /// One of `sane`, or a hostile number.
    fn size_of(&mut self, sane: &[u32]) -> u32 {
        if self.strikes() { self.number() } else { self.pick(sane) }
    }

    fn wide(&mut self) -> u64 {
        match self.rng.range(0, 5) {
            0 => u64::MAX,
            1 => u64::MAX / 4,
            2 => 1 << self.rng.range(0, 64),
            3 => u64::from(self.number()),
            _ => self.rng.range(0, 100).into(),
        }
    }

    fn real(&mut self) -> f32 {
        let hostile = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN_POSITIVE,
            f32::MIN_POSITIVE / 16.0,
            0.0,
            -0.0,
            -1.0,
        ];
        if self.strikes() { self.pick(&hostile) } else { self.pick(&[1.0, 0.125, 2.5]) }
    }

    fn maybe<T>(&mut self, percent: u32, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.chance(percent).then(|| make(self))
    }

    fn dtype(&mut self) -> DType {
        let hostile = [DType::I8, DType::U8];
        if self.strikes() {
            self.pick(&hostile)
        } else {
            self.pick(&[DType::F32, DType::F32, DType::F16, DType::BF16])
        }
    }
}

/// A device, and what was learnt so far.
struct Trial {
    ctx: Context,
    planned: u32,
    refused: u32,
    encoded: u32,
}

/// Longest that planning may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Elements of the largest tensor that is made.
const LARGEST: u64 = 1 << 18;

impl Trial {
    fn new() -> Self {
        Self { ctx: noop(), planned: 0, refused: 0, encoded: 0 }
    }

    /// What `f` returns; a panic or a long time fails the test, by the problem that caused it.
    fn timely<T>(problem: &dyn Debug, f: impl Fn() -> T) -> T {
        let mut shortest = Duration::MAX;
        // a slow machine is not blamed for one bad moment
        for _ in 0..3 {
            let start = Instant::now();
            let result = catch_unwind(AssertUnwindSafe(&f));
            shortest = shortest.min(start.elapsed());
            let result = result.unwrap_or_else(|_| panic!("panicked for {problem:?}"));
            if shortest < PATIENCE {
                return result;
            }
        }
        panic!("took {shortest:?} for {problem:?}");
    }

    /// Plans; the plan if the problem was legal.
    fn plan<T>(&mut self, problem: &dyn Debug, f: impl Fn(&Context) -> Result<T>) -> Option<T> {
        // tens of kilobytes each, thousands of them
        if self.ctx.compiled_kernels() > 200 {
            self.ctx.forget_kernels();
        }
        match Self::timely(problem, || f(&self.ctx)) {
            Ok(plan) => {
                self.planned += 1;
                Some(plan)
            }
            Err(error) => {
                named(&error, problem);
                self.refused += 1;
                None
            }
        }
    }

    /// A tensor of zeros; `None` if it is not small.
    fn zeros<const N: usize>(&self, shape: [u32; N], dtype: DType) -> Option<Tensor<N>> {
        let elements = Layout::contiguous(shape).elements()?;
        (elements <= LARGEST).then(|| Tensor::zeros(&self.ctx, shape, dtype).unwrap())
    }

    /// A buffer for scratch; `None` if it is not small.
    fn scratch(&self, bytes: u64) -> Option<wgpu::Buffer> {
        let words = u32::try_from(bytes.div_ceil(4)).ok()?;
        Some(self.zeros([words], DType::F32)?.buffer().clone())
    }

    /// Encodes and submits: accepted, and no complaint of wgpu.
    fn encode(
        &mut self,
        problem: &dyn Debug,
        f: impl Fn(&Context, &mut wgpu::CommandEncoder) -> Result<()>,
    ) {
        self.attempt(problem, f).unwrap_or_else(|e| panic!("{e} for {problem:?}"));
        self.encoded += 1;
    }

    /// Encodes arguments that may be illegal: accepted or refused by name, and no complaint of
    /// wgpu.
    fn provoke(
        &mut self,
        problem: &dyn Debug,
        f: impl Fn(&Context, &mut wgpu::CommandEncoder) -> Result<()>,
    ) {
        match self.attempt(problem, f) {
            Ok(()) => self.encoded += 1,
            Err(error) => named(&error, problem),
        }
    }

    fn attempt(
        &self,
        problem: &dyn Debug,
        f: impl Fn(&Context, &mut wgpu::CommandEncoder) -> Result<()>,
    ) -> Result<()> {
        let device = &self.ctx.device;
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let result = Self::timely(problem, || {
            let mut encoder = device.create_command_encoder(&Default::default());
            let result = f(&self.ctx, &mut encoder);
            self.ctx.queue.submit([encoder.finish()]);
            result
        });
        let complaint = pollster::block_on(scope.pop());
        assert!(complaint.is_none(), "{complaint:?} for {problem:?}");
        result
    }
}

/// An error that a caller can mend: of a kind that names operator and argument.
fn named(error: &Error, problem: &dyn Debug) {
    let (op, what) = match error {
        Error::Shape { op, what, .. }
        | Error::Value { op, what, .. }
        | Error::DType { op, what, .. }
        | Error::OutOfRange { op, what, .. }
        | Error::Misaligned { op, what, .. }
        | Error::Strides { op, what, .. }
        | Error::Usage { op, what, .. }
        | Error::Argument { op, what, .. }
        | Error::Limit { op, what, .. } => (*op, *what),
        Error::SharedBuffer { op, output, .. } => (*op, *output),
        other => panic!("{other:?} for {problem:?}"),
    };
    assert!(!op.is_empty() && !what.is_empty(), "{error:?} for {problem:?}");
}

/// A view with one field changed.
fn spoilt<'a, const N: usize>(h: &mut Hostile, view: TensorView<'a, N>) -> TensorView<'a, N> {
    let mut view = view;
    let axis = h.rng.range(0, N as u32) as usize;
    match h.rng.range(0, 4) {
        0 => view.layout.offset = h.wide(),
        1 => view.layout.strides[axis] = h.wide(),
        2 => view.layout.shape[axis] = h.number(),
        _ => view.dtype = h.pick(&[DType::F32, DType::F16, DType::I8]),
    }
    view
}

/// Runs `trial` for many seeds.
fn many(count: u64, trial: impl Fn(&mut Trial, &mut Hostile)) {
    let mut t = Trial::new();
    let count = if slow() { 20 * count } else { count };
    for seed in 0..count {
        let portable = seed % 2 == 0;
        let tier = if portable { Tier::Portable } else { Tier::Subgroup };
        t.ctx = t.ctx.with_tier(tier).unwrap();
        trial(&mut t, &mut Hostile::new(seed));
    }
    println!("{} planned, {} refused, {} encoded", t.planned, t.refused, t.encoded);
    // all three come up, or the generator tests nothing
    let few = u32::try_from(count / 20).unwrap();
    assert!(t.planned > few && t.refused > few && t.encoded > few);
}

fn attention_problem(h: &mut Hostile) -> (Attention, AttentionShape) {
    let heads_kv = h.size(1, 3);
    let shape = AttentionShape {
        batch: h.size(0, 2),
        seq_q: h.size(0, 40),
        seq_k: h.size(0, 70),
        heads: heads_kv.wrapping_mul(h.size(1, 3)),
        heads_kv,
        head_dim: h.size_of(&[8, 16, 33, 64]),
        head_dim_v: h.size_of(&[8, 16, 64]),
    };
    let alignment = h.pick(&[CausalAlignment::BottomRight, CausalAlignment::TopLeft]);
    let plain = h.chance(40);
    let option = |h: &mut Hostile| !plain && h.chance(15);
    let pages = option(h);
    let options = Attention {
        mask: if h.chance(50) { Mask::None } else { Mask::Causal(alignment) },
        window: Window {
            left: h.maybe(20, |h| h.size(0, 50)),
            right: h.maybe(20, |h| h.size(0, 50)),
        },
        scale: h.maybe(50, Hostile::real),
        softcap: h.maybe(15, Hostile::real),
        alibi: option(h),
        bias: option(h),
        visible: option(h),
        sinks: option(h),
        metric: option(h),
        packed: option(h),
        bias_positions: if option(h) { BiasPositions::Pack } else { BiasPositions::Sequence },
        key_lengths: pages || option(h),
        page_size: pages.then(|| h.size_of(&[1, 4, 16])),
        quantized: (!plain).then(|| h.maybe(10, |h| h.size_of(&[16, 64]))).flatten(),
        split: match h.rng.range(0, 4) {
            0 => Split::Keys(h.size_of(&[64, 128])),
            1 => Split::Never,
            _ => Split::Auto,
        },
        dtype: h.dtype(),
        algorithm: if plain && h.chance(20) {
            AttentionAlgorithm::Unfused
        } else {
            AttentionAlgorithm::Flash
        },
        schedule: h.maybe(15, attention_schedule),
    };
    (options, shape)
}

/// Any kernel with any tiles, most of them those of a planner.
fn attention_schedule(h: &mut Hostile) -> Schedule {
    let tiles = |h: &mut Hostile| Tiles {
        workgroup: h.size_of(&[8, 64, 128]),
        queries: h.size(1, 2),
        block_k: h.size_of(&[1, 2, 4]),
    };
    match h.rng.range(0, 4) {
        0 => Schedule::Rows(tiles(h)),
        1 => Schedule::Decode(tiles(h)),
        2 => Schedule::Tiled(RegisterTiles {
            lanes_k: h.size_of(&[8, 16]),
            lanes_q: h.size_of(&[8, 16]),
            rows: h.size_of(&[4, 8]),
            keys: h.size_of(&[4, 8]),
            depth: h.size_of(&[8, 16, 32]),
            part: h.size_of(&[8, 16, 32]),
        }),
        _ => Schedule::Groups(GroupTiles {
            workgroup: h.size_of(&[128]),
            lanes: h.size_of(&[4, 8, 16]),
            rows: h.size_of(&[1, 2, 4]),
            block_k: h.size_of(&[2, 4]),
            chunk: h.size_of(&[4, 8]),
            shuffles: h.chance(30),
        }),
    }
}

/// Checks and choices without a device are pure and quick: many more of them.
#[test]
fn attention_designs() {
    let all = [Caps::minimum(), noop().caps];
    let count = if slow() { 400_000 } else { 20_000 };
    for seed in 0..count {
        let h = &mut Hostile::new(1_000_000 + seed);
        let problem = attention_problem(h);
        let (options, shape) = problem;
        let caps = h.rng.pick(&all);
        Trial::timely(&problem, || {
            if let Err(error) = options.design(caps, shape) {
                named(&error, &problem);
            }
            let _ = options.tuning_key(caps, &shape);
        });
        if seed % 20 == 0 {
            Trial::timely(&problem, || {
                let _ = (options.candidates(caps, &shape), options.flops(&shape));
            });
        }
        let merge = MergeShape {
            parts: h.size(0, 5),
            batch: h.size(0, 2),
            seq: h.size(0, 40),
            heads: h.size(0, 4),
            head_dim_v: h.size(1, 64),
        };
        let triple = TripleShape {
            batch: h.size(0, 2),
            seq_q: h.size(0, 20),
            seq_1: h.size(0, 20),
            seq_2: h.size(0, 20),
            heads: h.size(1, 4),
            heads_kv: h.size(1, 2),
            head_dim: h.size(1, 64),
            head_dim_v: h.size(1, 64),
        };
        let (of_merge, of_triple) = (
            Merge { dtype: h.dtype(), parts_dtype: h.dtype() },
            TripleAttention {
                causal: h.chance(50),
                scale: h.maybe(50, Hostile::real),
                dtype: h.dtype(),
            },
        );
        Trial::timely(&(of_merge, merge), || {
            if let Err(error) = of_merge.design(caps, merge) {
                named(&error, &merge);
            }
        });
        Trial::timely(&(of_triple, triple), || {
            if let Err(error) = of_triple.design(caps, triple) {
                named(&error, &triple);
            }
        });
    }
}

/// Plain, packed, paged, quantised, decoding.
#[test]
fn attention_plans_and_calls() {
    many(160, |t, h| {
        let problem = attention_problem(h);
        let (options, s) = problem;
        let Some(plan) = t.plan(&problem, |ctx| options.plan(ctx, s)) else { return };
        let bytes = |quantized: bool| if quantized { DType::I8 } else { options.dtype };
        let kv_dtype = bytes(options.quantized.is_some());
        let pages = options.page_size.map(|size| [s.seq_k.div_ceil(size).max(1), size]);
        let [kv_batch, kv_rows] = pages.unwrap_or([s.batch, s.seq_k]);
        let made = (|| {
            let q = t.zeros([s.batch, s.seq_q, s.heads, s.head_dim], options.dtype)?;
            let k = t.zeros([kv_batch, kv_rows, s.heads_kv, s.head_dim], kv_dtype)?;
            let v = t.zeros([kv_batch, kv_rows, s.heads_kv, s.head_dim_v], kv_dtype)?;
            let o = t.zeros([s.batch, s.seq_q, s.heads, s.head_dim_v], options.dtype)?;
            let lse = t.zeros([s.batch, s.heads, s.seq_q], DType::F32)?;
            let slopes = t.zeros([s.heads], DType::F32)?;
            let bias = t.zeros([1, 1, s.seq_q, s.seq_k], options.dtype)?;
            let visible = t.zeros([1, 1, 1, s.seq_k], DType::U8)?;
            let metric = t.zeros([s.heads, s.head_dim, s.head_dim], DType::F32)?;
            let blocks = kv_rows.div_ceil(options.quantized.unwrap_or(16));
            let scales = t.zeros([kv_batch, s.heads_kv, blocks], DType::F32)?;
            let scratch = t.scratch(plan.scratch_bytes())?;
            Some((q, k, v, o, lse, slopes, bias, visible, metric, scales, scratch))
        })();
        let Some((q, k, v, o, lse, slopes, bias, visible, metric, scales, scratch)) = made else {
            return;
        };
        // packed, the number of sequences is that of the bounds below
        let sequences = if options.packed { 1 } else { s.batch as usize };
        let lengths = vec![s.seq_k; sequences];
        let table: Vec<u32> = match pages {
            Some([pages, _]) => (0..sequences).flat_map(|_| 0..pages).collect(),
            None => Vec::new(),
        };
        let (cu_q, cu_k) = ([0, s.seq_q], [0, s.seq_k]);
        let paged = pages.is_some();
        let args = AttentionArgs {
            lse: h.chance(50).then(|| lse.view()),
            slopes: options.alibi.then(|| slopes.view()),
            bias: options.bias.then(|| bias.view()),
            visible: options.visible.then(|| visible.view()),
            sinks: options.sinks.then(|| slopes.view()),
            metric: options.metric.then(|| metric.view()),
            k_scale: options.quantized.map(|_| scales.view()),
            v_scale: options.quantized.map(|_| scales.view()),
            cu_seqlens_q: options.packed.then_some(&cu_q[..]),
            cu_seqlens_k: (options.packed && !paged).then_some(&cu_k[..]),
            key_lengths: options.key_lengths.then_some(&lengths[..]),
            page_table: paged.then_some(&table[..]),
            scratch: Some(&scratch),
            ..AttentionArgs::new(q.view(), k.view(), v.view(), o.view())
        };
        // a page table of no keys has no columns
        if !(paged && s.seq_k == 0) {
            t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        }
        for _ in 0..4 {
            let mut bad = args;
            let numbers = [h.number(), h.number(), h.number()];
            match h.rng.range(0, 10) {
                0 => bad.q = spoilt(h, bad.q),
                1 => bad.k = spoilt(h, bad.k),
                2 => bad.v = spoilt(h, bad.v),
                3 => bad.o = spoilt(h, bad.o),
                4 => bad.lse = Some(spoilt(h, lse.view())),
                5 => bad.bias = Some(spoilt(h, bias.view())),
                6 => bad.cu_seqlens_q = Some(&numbers),
                7 => bad.key_lengths = Some(&numbers[..1]),
                8 => bad.page_table = Some(&numbers),
                _ => bad.k_scale = Some(spoilt(h, scales.view())),
            }
            t.provoke(&(problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
        }
    });
}

#[test]
fn merging_pairs_and_caches() {
    many(60, |t, h| {
        let s = MergeShape {
            parts: h.size(1, 5),
            batch: h.size(0, 2),
            seq: h.size(0, 40),
            heads: h.size(0, 4),
            head_dim_v: h.size(1, 64),
        };
        let op = Merge { dtype: h.dtype(), parts_dtype: h.dtype() };
        let problem = (op, s);
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, s)) else { return };
        let made = (|| {
            let parts =
                t.zeros([s.parts, s.batch, s.seq, s.heads, s.head_dim_v], op.parts_dtype)?;
            let lses = t.zeros([s.parts, s.batch, s.heads, s.seq], DType::F32)?;
            Some((parts, lses, t.zeros([s.batch, s.seq, s.heads, s.head_dim_v], op.dtype)?))
        })();
        let Some((parts, lses, o)) = made else { return };
        let args =
            MergeArgs { o_parts: parts.view(), lse_parts: lses.view(), o: o.view(), lse: None };
        t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        for _ in 0..3 {
            let mut bad = args;
            match h.rng.range(0, 3) {
                0 => bad.o_parts = spoilt(h, bad.o_parts),
                1 => bad.lse_parts = spoilt(h, bad.lse_parts),
                _ => bad.o = spoilt(h, bad.o),
            }
            t.provoke(&(problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
        }
    });
    many(60, |t, h| {
        let heads_kv = h.size(1, 2);
        let s = TripleShape {
            batch: h.size(0, 2),
            seq_q: h.size(0, 20),
            seq_1: h.size(0, 20),
            seq_2: h.size(0, 20),
            heads: heads_kv.wrapping_mul(h.size(1, 2)),
            heads_kv,
            head_dim: h.size(1, 40),
            head_dim_v: h.size(1, 40),
        };
        let op = TripleAttention {
            causal: h.chance(20),
            scale: h.maybe(50, Hostile::real),
            dtype: h.dtype(),
        };
        let problem = (op, s);
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, s)) else { return };
        let made = (|| {
            let row = |n, heads, dim| t.zeros([s.batch, n, heads, dim], op.dtype);
            let q = row(s.seq_q, s.heads, s.head_dim)?;
            let (k1, k2) =
                (row(s.seq_1, heads_kv, s.head_dim)?, row(s.seq_2, heads_kv, s.head_dim)?);
            let (v1, v2) =
                (row(s.seq_1, heads_kv, s.head_dim_v)?, row(s.seq_2, heads_kv, s.head_dim_v)?);
            Some((q, k1, k2, v1, v2, row(s.seq_q, s.heads, s.head_dim_v)?))
        })();
        let Some((q, k1, k2, v1, v2, o)) = made else { return };
        let args = TripleArgs {
            q: q.view(),
            k1: k1.view(),
            k2: k2.view(),
            v1: v1.view(),
            v2: v2.view(),
            o: o.view(),
            lse: None,
        };
        t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        for _ in 0..3 {
            let mut bad = args;
            match h.rng.range(0, 3) {
                0 => bad.q = spoilt(h, bad.q),
                1 => bad.k2 = spoilt(h, bad.k2),
                _ => bad.o = spoilt(h, bad.o),
            }
            t.provoke(&(problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
        }
    });
    many(60, |t, h| {
        let s = KvAppendShape {
            batch: h.size(0, 2),
            seq: h.size(0, 9),
            heads_kv: h.size(1, 2),
            head_dim: h.size(1, 16),
            head_dim_v: h.size(1, 16),
            pages: h.size(12, 20),
            page_size: h.size_of(&[1, 4, 8]),
        };
        let op = KvAppend { dtype: h.dtype() };
        let problem = (op, s);
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, s)) else { return };
        let made = (|| {
            let k = t.zeros([s.batch, s.seq, s.heads_kv, s.head_dim], op.dtype)?;
            let v = t.zeros([s.batch, s.seq, s.heads_kv, s.head_dim_v], op.dtype)?;
            let k_pages = t.zeros([s.pages, s.page_size, s.heads_kv, s.head_dim], op.dtype)?;
            let v_pages = t.zeros([s.pages, s.page_size, s.heads_kv, s.head_dim_v], op.dtype)?;
            Some((k, v, k_pages, v_pages))
        })();
        let Some((k, v, k_pages, v_pages)) = made else { return };
        // as many pages for each sequence as the rows at their front may need
        let columns = s.seq.div_ceil(s.page_size);
        let table: Vec<u32> = (0..s.batch * columns).collect();
        let args = KvAppendArgs {
            k: k.view(),
            v: v.view(),
            k_pages: k_pages.view(),
            v_pages: v_pages.view(),
            first: &vec![0; s.batch as usize],
            page_table: &table,
        };
        let fits = table.iter().all(|page| *page < s.pages);
        if fits {
            t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        }
        for _ in 0..3 {
            let numbers = [h.number(), h.number()];
            let mut bad = args;
            match h.rng.range(0, 4) {
                0 => bad.k = spoilt(h, bad.k),
                1 => bad.v_pages = spoilt(h, bad.v_pages),
                2 => bad.first = &numbers[..(s.batch as usize).min(2)],
                _ => bad.page_table = &numbers,
            }
            t.provoke(&(problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
        }
    });
    for seed in 0..3000 {
        let h = &mut Hostile { percent: 40, ..Hostile::new(seed) };
        let (shape, block) = ([0; 4].map(|_| h.size(0, 3)), h.size(0, 20));
        let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d.into()));
        let length = elements.filter(|n| *n < 1000).unwrap_or(7);
        let mut x = vec![0.5f32; length as usize];
        if let (Some(last), true) = (x.last_mut(), h.chance(30)) {
            *last = h.real();
        }
        Trial::timely(&(shape, block), || {
            if let Err(error) = quantize(&x, shape, block) {
                named(&error, &shape);
            }
        });
    }
}

fn linear_problem(h: &mut Hostile) -> (LinearAttention, LinearAttentionShape) {
    let heads = h.size(0, 3);
    let seq = h.size(0, 70);
    let causal = h.chance(70);
    let shape = LinearAttentionShape {
        batch: h.size(0, 2),
        seq_q: if causal && !h.strikes() { seq } else { h.size(0, 40) },
        seq_k: seq,
        heads,
        heads_q: if h.strikes() { h.number() } else { heads },
        heads_k: if h.strikes() { h.number() } else { heads },
        heads_v: if h.strikes() { h.number() } else { heads },
        key_dim: h.size_of(&[4, 8, 16, 20]),
        value_dim: h.size_of(&[4, 8, 24, 30]),
    };
    let per_head = |h: &mut Hostile| {
        let n = if h.strikes() { 5 } else { heads.min(100) };
        Decay::PerHead((0..n).map(|_| if h.strikes() { h.real() } else { -0.1 }).collect())
    };
    let decay = match h.rng.range(0, 5) {
        0 if causal => per_head(h),
        1 if causal => Decay::PerToken,
        2 if causal => Decay::PerChannel,
        3 if h.strikes() => Decay::PerToken,
        _ => Decay::None,
    };
    let options = LinearAttention {
        decay,
        update: if causal {
            h.pick(&[Update::Add, Update::Add, Update::Weighted, Update::Delta])
        } else {
            h.pick(&[Update::Add, Update::Weighted])
        },
        normalize: match h.rng.range(0, 4) {
            0 => Normalize::Eps(h.real()),
            1 => Normalize::Clamp(h.real()),
            _ => Normalize::None,
        },
        feature_map: h.pick(&[
            FeatureMap::Identity,
            FeatureMap::Identity,
            FeatureMap::EluPlusOne,
            FeatureMap::Relu,
            FeatureMap::Silu,
            FeatureMap::SquaredRelu,
            FeatureMap::Taylor2,
        ]),
        scale: h.real(),
        causal,
        form: h.pick(&[
            Form::Auto,
            Form::Auto,
            Form::Recurrent,
            Form::ChunkLoop,
            Form::ChunkParallel,
        ]),
        chunk_size: h.maybe(20, |h| h.size_of(&[4, 8, 16])),
        packed: h.chance(15),
        dtype: h.dtype(),
        gate_dtype: h.dtype(),
    };
    (options, shape)
}

#[test]
fn linear_attention_plans_and_calls() {
    many(200, |t, h| {
        let problem = linear_problem(h);
        let (options, s) = problem.clone();
        let caps = t.ctx.caps.clone();
        Trial::timely(&problem, || {
            (options.tuning_key(&caps, &s), options.chunk_sizes(&caps, &s)).0.len()
        });
        if h.chance(30) {
            let Some(plan) = t.plan(&problem, |ctx| options.plan_state(ctx, s)) else { return };
            let _ = (plan.scratch_bytes(), plan.wgsl());
            return;
        }
        let Some(plan) = t.plan(&problem, |ctx| options.plan(ctx, s)) else { return };
        let tensors = if options.packed { 1 } else { s.batch };
        let channels = if options.decay == Decay::PerChannel { plan.features() } else { 1 };
        let made = (|| {
            let q = t.zeros([tensors, s.seq_q, s.heads_q, s.key_dim], options.dtype)?;
            let k = t.zeros([tensors, s.seq_k, s.heads_k, s.key_dim], options.dtype)?;
            let v = t.zeros([tensors, s.seq_k, s.heads_v, s.value_dim], options.dtype)?;
            let o = t.zeros([tensors, s.seq_q, s.heads, s.value_dim], options.dtype)?;
            let gates = t.zeros([tensors, s.seq_k, s.heads, channels], options.gate_dtype)?;
            let beta = t.zeros([tensors, s.seq_k, s.heads, 1], options.gate_dtype)?;
            let state = t.zeros([s.batch, s.heads, plan.features(), s.value_dim], DType::F32)?;
            Some((q, k, v, o, gates, beta, state, t.scratch(plan.scratch_bytes())?))
        })();
        let Some((q, k, v, o, gates, beta, state, scratch)) = made else { return };
        let mut bounds: Vec<u32> = vec![0; s.batch as usize + 1];
        *bounds.last_mut().unwrap() = s.seq_k;
        let args = LinearAttentionArgs {
            gates: matches!(options.decay, Decay::PerToken | Decay::PerChannel)
                .then(|| gates.view()),
            beta: (options.update != Update::Add).then(|| beta.view()),
            final_state: h.chance(50).then(|| state.view()),
            cu_seqlens: options.packed.then_some(&bounds[..]),
            scratch: Some(&scratch),
            ..LinearAttentionArgs::new(q.view(), k.view(), v.view(), o.view())
        };
        // without a sequence, no bounds end at the tokens there are
        if !(options.packed && s.batch == 0) {
            t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        }
        for _ in 0..4 {
            let mut bad = args;
            let numbers = [h.number(), h.number(), h.number()];
            match h.rng.range(0, 7) {
                0 => bad.q = spoilt(h, bad.q),
                1 => bad.k = spoilt(h, bad.k),
                2 => bad.v = spoilt(h, bad.v),
                3 => bad.o = spoilt(h, bad.o),
                4 => bad.gates = Some(spoilt(h, gates.view())),
                5 => bad.final_state = Some(spoilt(h, state.view())),
                _ => bad.cu_seqlens = Some(&numbers),
            }
            t.provoke(&(&problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
        }
    });
    many(80, |t, h| {
        let s = ChannelAttentionShape {
            batch: h.size(0, 2),
            tokens: h.size(0, 50),
            heads: h.size(0, 3),
            channels: h.size(1, 32),
        };
        let op = ChannelAttention { scale: h.real(), dtype: h.dtype() };
        let problem = (op, s);
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, s)) else { return };
        let made = (|| {
            let row = || t.zeros([s.batch, s.tokens, s.heads, s.channels], op.dtype);
            Some((row()?, row()?, t.scratch(plan.scratch_bytes())?))
        })();
        let Some((x, o, scratch)) = made else { return };
        let args = ChannelAttentionArgs {
            q: x.view(),
            k: x.view(),
            v: x.view(),
            o: o.view(),
            scratch: Some(&scratch),
        };
        t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        let bad = ChannelAttentionArgs { q: spoilt(h, args.q), ..args };
        t.provoke(&(problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
    });
    // decays that are made from numbers
    for seed in 0..2000 {
        let h = &mut Hostile { percent: 40, ..Hostile::new(seed) };
        let (layer, layers, heads) = (h.size(0, 4), h.size(1, 8), h.size(0, 40));
        Trial::timely(&(layer, layers, heads), || {
            for decay in [
                Decay::lightning(layer, layers, heads),
                Decay::lightning_alibi(layer, layers, heads),
                Decay::alibi(heads),
                Decay::retention(heads),
            ] {
                if let Err(error) = decay {
                    named(&error, &heads);
                }
            }
        });
    }
}

#[test]
fn relative_attention_plans_and_calls() {
    many(80, |t, h| {
        let s = RelativeAttentionShape {
            batch: h.size(0, 2),
            seq: h.size(1, 40),
            heads: h.size(0, 3),
            key_dim: h.size(1, 16),
            value_dim: h.size(1, 16),
        };
        let features = match h.chance(50) {
            true => RelativeFeatures::Given,
            false => RelativeFeatures::Random(h.size(1, 16)),
        };
        let method = match h.rng.range(0, 4) {
            0 => RelativeMethod::Exact,
            1 => RelativeMethod::Transform,
            _ => RelativeMethod::Auto,
        };
        let op = RelativeAttention { features, causal: h.chance(50), method, dtype: h.dtype() };
        let problem = (op, s);
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, s)) else { return };
        let made = (|| {
            let q = t.zeros([s.batch, s.seq, s.heads, s.key_dim], op.dtype)?;
            let v = t.zeros([s.batch, s.seq, s.heads, s.value_dim], op.dtype)?;
            let o = t.zeros([s.batch, s.seq, s.heads, s.value_dim], op.dtype)?;
            let b = t.zeros([s.heads, 2 * s.seq - 1], DType::F32)?;
            let w = match features {
                RelativeFeatures::Given => None,
                RelativeFeatures::Random(n) => Some(t.zeros([s.heads, n, s.key_dim], DType::F32)?),
            };
            Some((q, v, o, b, w, t.scratch(plan.scratch_bytes())?))
        })();
        let Some((q, v, o, b, w, scratch)) = made else { return };
        let args = RelativeAttentionArgs {
            q: q.view(),
            k: q.view(),
            v: v.view(),
            b: b.view(),
            w: w.as_ref().map(Tensor::view),
            o: o.view(),
            scratch: Some(&scratch),
        };
        t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        for _ in 0..3 {
            let mut bad = args;
            match h.rng.range(0, 3) {
                0 => bad.q = spoilt(h, bad.q),
                1 => bad.b = spoilt(h, bad.b),
                _ => bad.o = spoilt(h, bad.o),
            }
            t.provoke(&(problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
        }
    });
}

fn map_problem<const D: usize>(
    h: &mut Hostile,
) -> (NeighborhoodAttention<D>, NeighborhoodShape<D>) {
    let mut op = NeighborhoodAttention::<D>::new([1; D]);
    let mut spatial = [1; D];
    for (axis, extent) in spatial.iter_mut().enumerate() {
        let (kernel, dilation) = (h.rng.range(1, 6), h.rng.range(1, 3));
        *extent = h.size(kernel * dilation, kernel * dilation + 6);
        let (kernel, dilation) = (h.size_of(&[kernel]), h.size_of(&[dilation]));
        (op.kernel_size[axis], op.dilation[axis]) = (kernel, dilation);
        op.stride[axis] = h.size_of(&[1, 1, kernel]);
        op.is_causal[axis] = h.chance(15);
    }
    if h.chance(30) {
        op.border = h.pick(&[Border::Shift, Border::Masked, Border::Zeros]);
    }
    op.bias = match h.rng.range(0, 5) {
        0 => RelativeBias::Table,
        1 => RelativeBias::Factorised { scaled: h.chance(50) },
        _ => RelativeBias::None,
    };
    op.scale = h.maybe(50, Hostile::real);
    op.dtype = h.dtype();
    if h.chance(20) {
        op.algorithm = neighborhood::Algorithm::Naive;
    }
    op.tiles = h.maybe(10, |h| NeighborhoodTiles {
        axis: h.size(0, D as u32 - 1) as usize,
        tile: std::array::from_fn(|_| h.size_of(&[1, 2, 4])),
        slots: h.size_of(&[1, 2]),
        block_k: h.size_of(&[1, 2, 4]),
        lanes: h.size_of(&[1, 4]),
    });
    let heads_kv = h.size(1, 2);
    let shape = NeighborhoodShape {
        batch: h.size(0, 2),
        spatial,
        heads: heads_kv.wrapping_mul(h.size(1, 2)),
        heads_kv,
        head_dim: h.size_of(&[8, 12, 16]),
        head_dim_v: h.size_of(&[8, 16]),
        extra_tokens: if h.chance(20) { h.size(0, 5) } else { 0 },
    };
    // no draw of its own: all else stays as it was
    op.shrink_to_fit = (op.kernel_size[0] ^ spatial[0]).is_multiple_of(4);
    (op, shape)
}

fn map_designs<const D: usize>(count: u64) {
    let all = [Caps::minimum(), noop().caps];
    for seed in 0..if slow() { 20 * count } else { count } {
        let h = &mut Hostile::new(seed ^ (D as u64) << 40);
        let problem = map_problem::<D>(h);
        let (op, shape) = problem;
        let caps = h.rng.pick(&all);
        // windows are counted one by one as far as they differ: seconds for very large ones
        if op.kernel_size.iter().any(|k| (4097..=1 << 29).contains(k)) {
            continue;
        }
        Trial::timely(&problem, || {
            if let Err(error) = op.design(caps, shape) {
                named(&error, &problem);
            }
            let _ = (op.tuning_key(caps, &shape), op.bias_shape(&shape), op.is_full(&shape));
        });
        if seed % 10 == 0 {
            let cost = KernelCost::of(caps);
            let tiles = op.tiles;
            Trial::timely(&problem, || {
                if let Some(Err(error)) = tiles.map(|tiles| op.simulate(&shape, &tiles, &cost)) {
                    named(&error, &problem);
                }
                if let Err(error) = op.tile_candidates(caps, &shape) {
                    named(&error, &problem);
                }
            });
            let lanes = h.size_of(&[32, 64]);
            Trial::timely(&(lanes, problem), || {
                if let Err(error) = op.candidates(&shape, lanes, &cost) {
                    named(&error, &problem);
                }
            });
        }
        let (parts, halos): ([u32; D], [u32; D]) =
            (std::array::from_fn(|_| h.size(0, 4)), std::array::from_fn(|_| h.size(0, 4)));
        Trial::timely(&(shape.spatial, parts, halos), || {
            for made in [
                NeighborhoodAttention::block(shape.spatial, parts),
                NeighborhoodAttention::grid(shape.spatial, parts),
                NeighborhoodAttention::halo(shape.spatial, parts, halos, Border::Zeros),
            ] {
                if let Err(error) = made.and_then(|op| op.design(caps, shape)) {
                    named(&error, &parts);
                }
            }
        });
    }
}

#[test]
fn neighborhood_designs() {
    map_designs::<1>(3000);
    map_designs::<2>(2000);
    map_designs::<3>(1000);
    let op = NeighborhoodAttention::<1>::new([3]);
    let cost = KernelCost::of(&Caps::minimum());
    let shape = NeighborhoodShape { spatial: [9], ..Default::default() };
    let choices = op.strides(&shape, 32, &cost).unwrap();
    assert!(recommended_stride(&choices).is_some() && recommended_stride::<1>(&[]).is_none());
}

fn map_calls<const D: usize, const R: usize, const L: usize>(count: u64) {
    many(count, |t, h| {
        let problem = map_problem::<D>(h);
        let (op, s) = problem;
        if op.kernel_size.iter().any(|k| (4097..=1 << 29).contains(k)) {
            return;
        }
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, s)) else { return };
        let dims = |heads, dim| -> [u32; R] {
            let mut dims = [s.batch; R];
            dims[1..=D].copy_from_slice(&s.spatial);
            [dims[R - 2], dims[R - 1]] = [heads, dim];
            dims
        };
        let made = (|| {
            let q = t.zeros(dims(s.heads, s.head_dim), op.dtype)?;
            let k = t.zeros(dims(s.heads_kv, s.head_dim), op.dtype)?;
            let v = t.zeros(dims(s.heads_kv, s.head_dim_v), op.dtype)?;
            let o = t.zeros(dims(s.heads, s.head_dim_v), op.dtype)?;
            let lse_dims: [u32; L] = std::array::from_fn(|a| dims(s.heads, 1)[a]);
            let lse = t.zeros(lse_dims, DType::F32)?;
            let extra = [s.batch, s.extra_tokens, s.heads_kv];
            let extra = |dim| t.zeros([extra[0], extra[1], extra[2], dim], op.dtype);
            let (extra_k, extra_v) = (extra(s.head_dim)?, extra(s.head_dim_v)?);
            let bias = t.zeros(op.bias_shape(&s).unwrap_or([1, 1]), DType::F32)?;
            Some((q, k, v, o, lse, extra_k, extra_v, bias, t.scratch(plan.scratch_bytes())?))
        })();
        let Some((q, k, v, o, lse, extra_k, extra_v, bias, scratch)) = made else { return };
        let more = s.extra_tokens > 0;
        let args = NeighborhoodArgs {
            lse: h.chance(50).then(|| lse.view().into()),
            extra_k: more.then(|| extra_k.view()),
            extra_v: more.then(|| extra_v.view()),
            bias: (op.bias != RelativeBias::None).then(|| bias.view()),
            scratch: Some(&scratch),
            ..NeighborhoodArgs::new(q.view(), k.view(), v.view(), o.view())
        };
        t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        for _ in 0..4 {
            let mut bad = args;
            match h.rng.range(0, 6) {
                0 => bad.q = spoilt(h, q.view()).into(),
                1 => bad.k = spoilt(h, k.view()).into(),
                2 => bad.o = spoilt(h, o.view()).into(),
                3 => bad.lse = Some(spoilt(h, lse.view()).into()),
                4 => bad.bias = Some(spoilt(h, bias.view())),
                // another rank
                _ => bad.v = extra_v.view().into(),
            }
            t.provoke(&(problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
        }
    });
}

#[test]
fn neighborhood_plans_and_calls() {
    map_calls::<1, 4, 3>(80);
    map_calls::<2, 5, 4>(80);
    map_calls::<3, 6, 5>(60);
}

#[test]
fn fft_plans_and_calls() {
    many(120, |t, h| {
        let fft = Fft {
            shape: [h.size_of(&[1, 1, 8, 21]), h.size(1, 300)],
            direction: h.pick(&[Direction::Forward, Direction::Inverse]),
            normalization: h.pick(&[Normalization::None, Normalization::Unitary]),
            real: h.chance(40),
        };
        let batch = h.size(0, 3);
        let problem = (fft, batch);
        // tables as long as the transform take as long as they take
        if fft.shape.iter().any(|n| (1 << 18..=1 << 24).contains(n)) {
            return;
        }
        let Some(plan) = t.plan(&problem, |ctx| fft.plan(ctx, batch)) else { return };
        let [rows, columns] = fft.shape;
        let forward = fft.direction == Direction::Forward;
        let sides = |time: bool| match (fft.real, time == forward) {
            (false, _) => [batch, rows, columns, 2],
            (true, true) => [batch, rows, columns, 1],
            (true, false) => [batch, rows, columns / 2 + 1, 2],
        };
        let made = (|| {
            let input = t.zeros(sides(true), DType::F32)?;
            let output = t.zeros(sides(false), DType::F32)?;
            Some((input, output, t.scratch(plan.scratch_bytes())?))
        })();
        let Some((input, output, scratch)) = made else { return };
        let scratch = (plan.scratch_bytes() > 0).then_some(&scratch);
        let args = FftArgs { input: input.view(), output: output.view(), scratch };
        t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        for _ in 0..3 {
            let mut bad = args;
            match h.rng.range(0, 3) {
                0 => bad.input = spoilt(h, bad.input),
                1 => bad.output = spoilt(h, bad.output),
                _ => bad.scratch = None,
            }
            t.provoke(&(problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
        }
    });
}

/// A degree that kernels of this test are built for, or a hostile one.
fn degree(h: &mut Hostile) -> u32 {
    h.size(0, 3)
}

fn dim(l: u32) -> u32 {
    (l + 1).saturating_mul(l + 1)
}

#[test]
fn gaunt_products() {
    many(120, |t, h| {
        let op = GauntTensorProduct {
            lmax1: degree(h),
            lmax2: degree(h),
            lmax_out: degree(h),
            normalization: GauntNormalization::default(),
            coupling: h.pick(&[Coupling::Scalar, Coupling::Scalar, Coupling::Vector]),
            dtype: h.dtype(),
            algorithm: h.maybe(50, |h| {
                h.pick(&[
                    gaunt::Algorithm::Table,
                    gaunt::Algorithm::Grid,
                    gaunt::Algorithm::Fourier,
                ])
            }),
        };
        let s = GauntShape { batch: h.size(0, 5), channels: h.size(0, 6) };
        let problem = (op, s);
        let caps = t.ctx.caps.clone();
        Trial::timely(&problem, || {
            let _ = (op.flops(), op.select(&caps), op.tuning_key(&caps));
        });
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, s)) else { return };
        let made = (|| {
            let row = |l| t.zeros([s.batch, s.channels, dim(l)], op.dtype);
            let (x, y, z) = (row(op.lmax1)?, row(op.lmax2)?, row(op.lmax_out)?);
            let w = t.zeros([s.channels, op.lmax1 + 1], DType::F32)?;
            Some((x, y, z, w, t.scratch(plan.scratch_bytes())?))
        })();
        let Some((x, y, z, w, scratch)) = made else { return };
        let args = GauntArgs {
            weight1: h.chance(30).then(|| w.view()),
            scratch: Some(&scratch),
            ..GauntArgs::new(x.view(), y.view(), z.view())
        };
        t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        for _ in 0..3 {
            let mut bad = args;
            match h.rng.range(0, 4) {
                0 => bad.x = spoilt(h, bad.x),
                1 => bad.y = spoilt(h, bad.y),
                2 => bad.z = spoilt(h, bad.z),
                _ => bad.weight1 = Some(spoilt(h, w.view())),
            }
            t.provoke(&(problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
        }
    });
    many(80, |t, h| {
        let factors: Vec<(u32, u32)> =
            (0..h.size(1, 3).min(9)).map(|_| (h.size(0, 2), h.size(1, 3))).collect();
        let op = GauntManyBody {
            factors,
            lmax_out: degree(h),
            dtype: h.dtype(),
            algorithm: h
                .maybe(40, |h| h.pick(&[gaunt::Algorithm::Grid, gaunt::Algorithm::Fourier])),
            ..Default::default()
        };
        let s = GauntShape { batch: h.size(0, 5), channels: h.size(0, 6) };
        let problem = (op.clone(), s);
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, s)) else { return };
        let made = (|| {
            let row = |l| t.zeros([s.batch, s.channels, dim(l)], op.dtype);
            let inputs: Option<Vec<_>> = op.factors.iter().map(|f| row(f.0)).collect();
            Some((inputs?, row(op.lmax_out)?, t.scratch(plan.scratch_bytes())?))
        })();
        let Some((inputs, z, scratch)) = made else { return };
        let views: Vec<TensorView<'_, 3>> = inputs.iter().map(Tensor::view).collect();
        let args = GauntManyBodyArgs { inputs: &views, z: z.view(), scratch: Some(&scratch) };
        t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        let mut bad_views = views.clone();
        bad_views[0] = spoilt(h, views[0]);
        let bad = GauntManyBodyArgs { inputs: &bad_views, ..args };
        t.provoke(&(&problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
        let none = GauntManyBodyArgs { inputs: &[], ..args };
        t.provoke(&(&problem, none), |ctx, encoder| plan.encode(ctx, encoder, &none));
    });
}

#[test]
fn gaunt_convolutions_and_harmonics() {
    many(80, |t, h| {
        let op = GauntConvolution {
            lmax1: degree(h),
            lmax2: degree(h),
            lmax_out: degree(h),
            dtype: h.dtype(),
            ..Default::default()
        };
        let nodes = h.size(1, 6);
        let count = h.size(0, 9).min(9);
        let mut edges: Vec<[u32; 2]> = (0..count)
            .map(|_| {
                [0; 2].map(|_| if h.strikes() { h.number() } else { h.rng.range(0, nodes.max(1)) })
            })
            .collect();
        if !h.strikes() {
            edges.sort_by_key(|e| e[1]);
        }
        let c = h.size(0, 5);
        let problem = (op, nodes, edges.clone(), c);
        let plan = t.plan(&problem, |ctx| op.plan(ctx, Graph { nodes, edges: &edges }, c));
        let Some(plan) = plan else { return };
        let made = (|| {
            let x = t.zeros([nodes, c, dim(op.lmax1)], op.dtype)?;
            let r = t.zeros([count, 3], DType::F32)?;
            let filter = t.zeros([count, c, op.lmax2 + 1], DType::F32)?;
            let y = t.zeros([count, dim(op.lmax2)], DType::F32)?;
            let messages = t.zeros([count, c, dim(op.lmax_out)], op.dtype)?;
            let out = t.zeros([nodes, c, dim(op.lmax_out)], op.dtype)?;
            Some((x, r, filter, y, messages, out, t.scratch(plan.scratch_bytes())?))
        })();
        let Some((x, r, filter, y, messages, out, scratch)) = made else { return };
        let args = GauntConvolutionArgs {
            x: x.view(),
            r: r.view(),
            filter: filter.view(),
            y: y.view(),
            messages: messages.view(),
            out: Some(out.view()),
            scratch: Some(&scratch),
        };
        t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        for _ in 0..3 {
            let mut bad = args;
            match h.rng.range(0, 4) {
                0 => bad.x = spoilt(h, bad.x),
                1 => bad.filter = spoilt(h, bad.filter),
                2 => bad.messages = spoilt(h, bad.messages),
                _ => bad.out = None,
            }
            t.provoke(&(&problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
        }
    });
    many(60, |t, h| {
        let op = SphericalHarmonics {
            lmax: degree(h),
            normalization: h.pick(&[ShNormalization::Integral, ShNormalization::Norm]),
            dtype: h.dtype(),
        };
        let n = h.size(0, 50);
        let problem = (op, n);
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, n)) else { return };
        let made =
            (|| Some((t.zeros([n, 3], DType::F32)?, t.zeros([n, dim(op.lmax)], op.dtype)?)))();
        let Some((r, y)) = made else { return };
        let args = SphericalHarmonicsArgs { r: r.view(), y: y.view(), weight: None };
        t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        for _ in 0..3 {
            let mut bad = args;
            match h.rng.range(0, 2) {
                0 => bad.r = spoilt(h, bad.r),
                _ => bad.y = spoilt(h, bad.y),
            }
            t.provoke(&(problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
        }
    });
}

#[test]
fn gaunt_transforms() {
    fn pass(encoder: &mut wgpu::CommandEncoder) -> wgpu::ComputePass<'_> {
        encoder.begin_compute_pass(&Default::default())
    }
    many(80, |t, h| {
        let op = SphereGrid {
            lmax: degree(h),
            n_beta: h.size(1, 9),
            n_alpha: h.size(1, 12),
            dtype: h.dtype(),
        };
        let s = GauntShape { batch: h.size(0, 4), channels: h.size(0, 4) };
        let problem = (op, s);
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, s)) else { return };
        let made = (|| {
            let x = t.zeros([s.batch, s.channels, dim(op.lmax)], op.dtype)?;
            let f = t.zeros([s.batch, s.channels, op.n_beta, op.n_alpha], op.dtype)?;
            Some((x, f, t.scratch(plan.scratch_bytes())?))
        })();
        let Some((x, f, scratch)) = made else { return };
        t.encode(&problem, |ctx, encoder| {
            plan.sh_to_grid(ctx, &mut pass(encoder), x.view(), f.view(), &scratch)
        });
        let bad = spoilt(h, f.view());
        t.provoke(&(problem, bad), |ctx, encoder| {
            plan.grid_to_sh(ctx, &mut pass(encoder), bad, x.view(), &scratch)
        });
    });
    many(80, |t, h| {
        let lmax = degree(h);
        let band = if h.strikes() { h.number() } else { lmax.saturating_add(h.rng.range(0, 3)) };
        let op = SphereFourier { lmax, band, dtype: h.dtype() };
        let s = GauntShape { batch: h.size(0, 4), channels: h.size(0, 4) };
        let problem = (op, s);
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, s)) else { return };
        let side = 2 * band + 1;
        let made = (|| {
            let x = t.zeros([s.batch, s.channels, dim(lmax)], op.dtype)?;
            Some((x, t.zeros([s.batch, s.channels, side, side, 2], op.dtype)?))
        })();
        let Some((x, c)) = made else { return };
        t.encode(&problem, |ctx, encoder| {
            plan.sh_to_fourier(ctx, &mut pass(encoder), x.view(), c.view())
        });
        let bad = spoilt(h, c.view());
        t.provoke(&(problem, bad), |ctx, encoder| {
            plan.fourier_to_sh(ctx, &mut pass(encoder), bad, x.view())
        });
    });
    many(80, |t, h| {
        let mut list = || {
            Irreps(
                (0..h.rng.range(0, 4))
                    .map(|_| Irrep { mul: h.size(0, 3), l: h.size(0, 3), odd: h.chance(50) })
                    .collect(),
            )
        };
        let (irreps1, irreps2) = (list(), list());
        let op = ClebschGordan {
            irreps1,
            irreps2,
            lmax_out: h.maybe(30, |h| h.size(0, 4)),
            filter: h.maybe(30, |h| {
                let irrep = |h: &mut Hostile| Irrep {
                    mul: h.size(1, 1),
                    l: h.size(0, 4),
                    odd: h.chance(50),
                };
                Irreps((0..h.rng.range(0, 4)).map(|_| irrep(h)).collect())
            }),
            normalization: *h.rng.pick(&[IrrepNormalization::Component, IrrepNormalization::Norm]),
            dtype: h.dtype(),
        };
        let batch = h.size(0, 6);
        let problem = (op.clone(), batch);
        // a table of millions of coefficients takes as long as it takes
        if (1 << 16..1 << 27).contains(&op.irreps_out().dim()) {
            return;
        }
        Trial::timely(&problem, || {
            let _ = (op.irreps_out().dim(), op.irreps1.to_string().parse::<Irreps>());
        });
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, batch)) else { return };
        let [n1, n2, n3] = plan.dims();
        let row = |n| t.zeros([batch, n], op.dtype);
        let (Some(x), Some(y), Some(z)) = (row(n1), row(n2), row(n3)) else { return };
        t.encode(&problem, |ctx, encoder| {
            plan.encode_pass(ctx, &mut pass(encoder), x.view(), y.view(), z.view())
        });
        let bad = spoilt(h, x.view());
        t.provoke(&(&problem, bad), |ctx, encoder| {
            plan.encode_pass(ctx, &mut pass(encoder), bad, y.view(), z.view())
        });
    });
    many(80, |t, h| {
        let mut list = || {
            Irreps(
                (0..h.rng.range(1, 4))
                    .map(|_| Irrep { mul: h.size(1, 2), l: h.size(0, 2), odd: h.chance(50) })
                    .collect(),
            )
        };
        let (irreps1, irreps2, irreps_out) = (list(), list(), list());
        let mut op = WeightedTensorProduct {
            dtype: h.dtype(),
            ..WeightedTensorProduct::fully_connected(irreps1, irreps2, irreps_out)
        };
        for i in &mut op.instructions {
            if h.chance(20) {
                i.connection = Connection::Uvu;
            }
            if h.strikes() {
                i.out = h.number() as usize;
            }
        }
        let batch = h.size(0, 6);
        let problem = (op.clone(), batch);
        let large = 1 << 16..1 << 30;
        if large.contains(&op.irreps_out.dim()) || large.contains(&op.weights()) {
            return;
        }
        let Some(plan) = t.plan(&problem, |ctx| op.plan(ctx, batch)) else { return };
        let [n1, n2, n3] = plan.dims();
        let row = |n| t.zeros([batch, n], op.dtype);
        let (Some(x), Some(y), Some(z)) = (row(n1), row(n2), row(n3)) else { return };
        let Some(w) = t.zeros([1, plan.weights()], DType::F32) else { return };
        let Some(scratch) = t.scratch(plan.scratch_bytes()) else { return };
        let args = WeightedTensorProductArgs {
            x: x.view(),
            y: y.view(),
            w: w.view(),
            z: z.view(),
            scratch: Some(&scratch),
        };
        t.encode(&problem, |ctx, encoder| plan.encode(ctx, encoder, &args));
        let bad = WeightedTensorProductArgs { w: spoilt(h, w.view()), ..args };
        t.provoke(&(&problem, bad), |ctx, encoder| plan.encode(ctx, encoder, &bad));
    });
    for seed in 0..2000 {
        let h = &mut Hostile { percent: 30, ..Hostile::new(seed) };
        let l = [0; 3].map(|_| degree(h));
        Trial::timely(&l, || {
            let grid = SphereGrid::for_product(l[0], l[1], l[2]);
            if grid.n_beta <= MAX_NODES && grid.n_alpha <= MAX_NODES {
                let _ = (grid.nodes(), grid.weights(), grid.longitudes());
            }
            if let Err(error) = gaunt_coefficients(l[0], l[1], l[2], Coupling::Scalar) {
                named(&error, &l);
            }
        });
    }
}

/// Texts of irreps: parsed or refused, whatever they are.
#[test]
fn irreps_of_any_text() {
    let parts =
        ["1", "x", "0", "e", "o", "+", " ", "4294967295", "99999999999999999999", "-", "é", ""];
    for seed in 0..20_000 {
        let mut rng = Rng(seed);
        let text: String = (0..rng.range(0, 9)).map(|_| *rng.pick(&parts)).collect();
        let parsed = Trial::timely(&text, || text.parse::<Irreps>());
        match parsed {
            Ok(irreps) => {
                let again: Irreps = irreps.to_string().parse().unwrap();
                assert_eq!(again, irreps, "{text:?}");
                let _ = irreps.dim();
            }
            Err(error) => named(&error, &text),
        }
    }
}

/// Layouts and tensors of any numbers.
#[test]
fn layouts_of_any_numbers() {
    let ctx = noop();
    let tensor = Tensor::<1>::zeros(&ctx, [64], DType::F32).unwrap();
    let mut fit = 0;
    for seed in 0..20_000 {
        let h = &mut Hostile { percent: 40, ..Hostile::new(seed) };
        let shape: [u32; 3] = [0; 3].map(|_| h.size(0, 4));
        let mut layout = Layout::contiguous(shape);
        if h.chance(50) {
            layout = layout.permuted([0, 2, 1]);
        }
        for axis in 0..3 {
            if h.strikes() {
                layout.strides[axis] = h.wide();
            }
        }
        layout = layout.with_offset(if h.strikes() { h.wide() } else { 0 });
        let view = Trial::timely(&layout, || {
            let _ = (layout.elements(), layout.end(), layout.is_injective());
            tensor.view_as(layout)
        });
        match view {
            Ok(_) => fit += 1,
            Err(error) => named(&error, &layout),
        }
        let dtype = h.dtype();
        // large ones are legal, and are not made here
        if layout.elements().is_none_or(|n| n > 1 << 40) {
            let made = Trial::timely(&shape, || Tensor::<3>::zeros(&ctx, shape, dtype));
            named(&made.expect_err("no device holds it"), &shape);
        }
    }
    assert!(fit > 500, "{fit}");
}
