//! No driver: planning, validation and encoding on wgpu's noop backend, under the smallest limits
//! and under large ones; every bad input and the message that it gives.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod common;

use common::uniformity;
use tilewise::{
    Caps, Context, DType, DeviceClass, Error, Layout, Tensor, TensorView, Tier, Tuned, Tuning,
    attention::{
        Algorithm, Attention, AttentionArgs, AttentionPlan, AttentionShape, BiasPositions,
        CausalAlignment, GroupTiles, KvAppend, KvAppendShape, MAX_HEAD_DIM, Mask, Merge,
        MergeShape, RegisterTiles, Schedule, Split, Tiles, TripleAttention, TripleShape, Window,
    },
    wgpu,
};

/// A noop device with these limits and subgroups of 4 to 64, opened by this crate.
fn noop_with(limits: wgpu::Limits) -> Context {
    let options = wgpu::NoopBackendOptions {
        enable: true,
        limits: Some(limits),
        features: Some(wgpu::Features::SUBGROUP | wgpu::Features::SHADER_INT64),
        subgroup_min_size: Some(4),
        subgroup_max_size: Some(64),
        ..Default::default()
    };
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::NOOP;
    descriptor.backend_options.noop = options;
    let instance = wgpu::Instance::new(descriptor);
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).unwrap();
    pollster::block_on(Context::from_adapter(&adapter)).unwrap()
}

fn noop() -> Context {
    noop_with(wgpu::Limits::default())
}

fn encoder(ctx: &Context) -> wgpu::CommandEncoder {
    ctx.device.create_command_encoder(&Default::default())
}

/// Shapes and options that reach every variant of the attention kernels.
fn attention_variants() -> Vec<(AttentionShape, Attention)> {
    let mut all = Vec::new();
    for [d, dv] in [[64, 64], [16, 8], [7, 5], [256, 256]] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for mask in [Mask::None, Mask::Causal(CausalAlignment::BottomRight)] {
                for algorithm in [Algorithm::Flash, Algorithm::Unfused] {
                    let shape = AttentionShape {
                        batch: 1,
                        seq_q: 5,
                        seq_k: 7,
                        heads: 4,
                        heads_kv: 2,
                        head_dim: d,
                        head_dim_v: dv,
                    };
                    all.push((shape, Attention { mask, dtype, algorithm, ..Default::default() }));
                }
            }
        }
    }
    all
}

/// Options that change the text of the tiled kernels, each alone and in company.
fn attention_options() -> Vec<Attention> {
    let base = Attention { split: Split::Never, ..Default::default() };
    let paged = Attention { key_lengths: true, page_size: Some(16), ..base };
    let mut all = vec![
        Attention { split: Split::Keys(64), ..base },
        Attention { window: Window { left: Some(3), right: Some(2) }, ..base },
        Attention { softcap: Some(30.0), ..base },
        Attention { alibi: true, ..base },
        Attention { bias: true, ..base },
        Attention { visible: true, ..base },
        Attention { sinks: true, ..base },
        Attention { metric: true, ..base },
        Attention { packed: true, ..base },
        Attention {
            packed: true,
            bias: true,
            visible: true,
            bias_positions: BiasPositions::Pack,
            ..base
        },
        Attention { key_lengths: true, ..base },
        Attention { quantized: Some(16), ..base },
        paged,
        Attention { quantized: Some(16), split: Split::Auto, ..paged },
        Attention { packed: true, split: Split::Keys(128), ..paged },
        Attention { page_size: Some(1), ..paged },
    ];
    // as many at once as eight bindings allow
    all.extend([
        Attention { bias: true, visible: true, softcap: Some(5.0), key_lengths: true, ..base },
        Attention { alibi: true, sinks: true, metric: true, window: all[1].window, ..base },
    ]);
    all
}

/// Blocks of keys, and with them the bits of a row, do not depend on how many rows there are: packed
/// sequences are rows of one problem.
#[test]
fn blocks_do_not_depend_on_the_rows() {
    for tier in [Tier::Portable, Tier::Subgroup] {
        for (class, texels) in
            [(DeviceClass::Cpu, 8192), (DeviceClass::Cpu, 0), (DeviceClass::Gpu, 0)]
        {
            let subgroup = Some((8, 8));
            let caps = Caps { tier, class, texels, subgroup, ..Caps::minimum() };
            let caps = Caps { loop_trips: if texels > 0 { 60_000 } else { u64::MAX }, ..caps };
            for head_dim in [4, 32, 40, 64, 96, 128, 256, 512] {
                for visible in [false, true] {
                    let op = Attention { visible, split: Split::Never, ..Default::default() };
                    let cut = |rows| {
                        let shape = AttentionShape::self_attention(1, rows, 2, head_dim);
                        let shape = AttentionShape { seq_k: 39_900, ..shape };
                        let plan = op.design(&caps, shape).unwrap();
                        // all that sets the order of sums
                        match plan.schedule() {
                            Schedule::Rows(tiles) | Schedule::Decode(tiles) => {
                                let lazy = plan.wgsl()[0].contains("LAZY: bool = true");
                                [tiles.block_k, u32::from(lazy), 0, 0]
                            }
                            Schedule::Tiled(t) => [t.lanes_k, t.keys, t.depth, t.part],
                            other => panic!("{other:?}"),
                        }
                    };
                    for rows in [2, 33, 64, 65, 1000, 100_000] {
                        assert_eq!(cut(rows), cut(1), "{tier}, {class}, {texels}, {head_dim}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_attention_option_compiles_and_is_uniform() {
    let ctx = noop();
    for (tier, texels) in
        [(Tier::Portable, 0), (Tier::Portable, 8192), (Tier::Subgroup, 0), (Tier::Subgroup, 8192)]
    {
        let ctx = ctx.with_tier(tier).unwrap();
        let wide_loads = texels > 0;
        let ctx =
            ctx.with_caps(Caps { texels, wide_loads, class: DeviceClass::Cpu, ..ctx.caps.clone() });
        for options in attention_options() {
            for (seq_q, dims) in [(40, [64, 64]), (40, [7, 5]), (1, [64, 72])] {
                let options = match seq_q {
                    1 => Attention { split: Split::Keys(64), ..options },
                    _ => options,
                };
                let shape = AttentionShape {
                    batch: 1,
                    seq_q,
                    seq_k: 70,
                    heads: 4,
                    heads_kv: 2,
                    head_dim: dims[0],
                    head_dim_v: dims[1],
                };
                let plan = options.plan(&ctx, shape).unwrap();
                for wgsl in plan.wgsl() {
                    let report = uniformity::check_source(&wgsl).unwrap();
                    let faults: Vec<_> = report.barriers.union(&report.subgroups).collect();
                    assert!(faults.is_empty(), "{}: {faults:?}", plan.label());
                }
            }
        }
        let merge = MergeShape { parts: 3, batch: 1, seq: 5, heads: 2, head_dim_v: 7 };
        Merge::default().plan(&ctx, merge).unwrap();
        let triple = TripleShape {
            batch: 1,
            seq_q: 5,
            seq_1: 6,
            seq_2: 7,
            heads: 2,
            heads_kv: 1,
            head_dim: 12,
            head_dim_v: 5,
        };
        TripleAttention::default().plan(&ctx, triple).unwrap();
        let append = KvAppendShape {
            batch: 2,
            seq: 3,
            heads_kv: 2,
            head_dim: 8,
            head_dim_v: 5,
            pages: 9,
            page_size: 4,
        };
        KvAppend { dtype: DType::F16 }.plan(&ctx, append).unwrap();
    }
}

#[test]
fn every_attention_variant_compiles_and_encodes() {
    // what WebGPU promises everywhere: 16 KiB, 256 invocations, 8 storage buffers
    let small = noop();
    let large = noop_with(wgpu::Limits {
        max_compute_workgroup_storage_size: 65_536,
        max_compute_invocations_per_workgroup: 1024,
        ..Default::default()
    });
    for ctx in [&small, &large] {
        for tier in [Tier::Portable, Tier::Subgroup] {
            let ctx = ctx.with_tier(tier).unwrap();
            for (s, options) in attention_variants() {
                let plan = options.plan(&ctx, s).unwrap();
                for wgsl in plan.wgsl() {
                    let report = uniformity::check_source(&wgsl).unwrap();
                    let faults: Vec<_> = report.barriers.union(&report.subgroups).collect();
                    assert!(faults.is_empty(), "{}: {faults:?}", plan.label());
                }
                let zeros = |shape| Tensor::<4>::zeros(&ctx, shape, options.dtype).unwrap();
                let q = zeros([s.batch, s.seq_q, s.heads, s.head_dim]);
                let k = zeros([s.batch, s.seq_k, s.heads_kv, s.head_dim]);
                let v = zeros([s.batch, s.seq_k, s.heads_kv, s.head_dim_v]);
                let o = zeros([s.batch, s.seq_q, s.heads, s.head_dim_v]);
                let lse = Tensor::zeros(&ctx, [s.batch, s.heads, s.seq_q], DType::F32).unwrap();
                let words = u32::try_from(plan.scratch_bytes() / 4).unwrap();
                let scratch = Tensor::zeros(&ctx, [words.max(4)], DType::F32).unwrap();
                for lse in [None, Some(lse.view())] {
                    let args = AttentionArgs {
                        lse,
                        scratch: Some(scratch.buffer()),
                        ..AttentionArgs::new(q.view(), k.view(), v.view(), o.view())
                    };
                    plan.encode(&ctx, &mut encoder(&ctx), &args).unwrap();
                }
            }
        }
    }
}

/// Bytes of workgroup memory and invocations of a text's kernel, as naga lays them out.
fn footprint(wgsl: &str) -> (u32, u32) {
    let module = naga::front::wgsl::parse_str(wgsl).unwrap();
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    let shared = |v: &naga::GlobalVariable| v.space == naga::AddressSpace::WorkGroup;
    let variables = module.global_variables.iter().map(|(_, variable)| variable);
    let bytes = variables.filter(|v| shared(v)).map(|v| layouter[v.ty].size).sum();
    (bytes, module.entry_points[0].workgroup_size.iter().product())
}

/// Workgroup memory stays within what every device has.
#[test]
fn portable_kernels_fit_sixteen_kibibytes() {
    let sizes = (1..=MAX_HEAD_DIM).step_by(37).chain([64, 65, 128, 129, 256, 257, MAX_HEAD_DIM]);
    for d in sizes {
        for class in [DeviceClass::Cpu, DeviceClass::Gpu] {
            let caps = Caps::minimum().with_class(class);
            let s = AttentionShape::self_attention(1, 100, 1, d);
            let plan = Attention::default().design(&caps, s).unwrap();
            let (bytes, workgroup) = footprint(&plan.wgsl()[0]);
            assert!(bytes <= 16_384 && workgroup <= 256, "head_dim {d}, {class}: {bytes} bytes");
            if let Schedule::Tiled(tiles) = plan.schedule() {
                assert_eq!((tiles.bytes(d), tiles.workgroup()), (bytes, workgroup), "{d}");
            }
        }
    }
}

struct Tensors {
    q: Tensor<4>,
    k: Tensor<4>,
    o: Tensor<4>,
    lse: Tensor<3>,
}

fn tensors(ctx: &Context) -> Tensors {
    let zeros = |shape| Tensor::zeros(ctx, shape, DType::F32).unwrap();
    Tensors {
        q: zeros([1, 5, 4, 8]),
        k: zeros([1, 7, 2, 8]),
        o: zeros([1, 5, 4, 8]),
        lse: Tensor::zeros(ctx, [1, 4, 5], DType::F32).unwrap(),
    }
}

const SHAPE: AttentionShape = AttentionShape {
    batch: 1,
    seq_q: 5,
    seq_k: 7,
    heads: 4,
    heads_kv: 2,
    head_dim: 8,
    head_dim_v: 8,
};

/// The error of encoding with changed arguments.
fn refused<'a>(
    ctx: &Context,
    plan: &AttentionPlan,
    t: &'a Tensors,
    change: impl FnOnce(&mut AttentionArgs<'a>),
) -> Error {
    let mut args = AttentionArgs::new(t.q.view(), t.k.view(), t.k.view(), t.o.view());
    args.lse = Some(t.lse.view());
    change(&mut args);
    plan.encode(ctx, &mut encoder(ctx), &args).unwrap_err()
}

/// Each bad input, its error, and words that the message must have. Run with `--nocapture` for the
/// list.
#[test]
fn bad_input() {
    let ctx = noop();
    let base = Attention { split: Split::Never, ..Default::default() };
    let plan = base.plan(&ctx, SHAPE).unwrap();
    let t = tensors(&ctx);
    let mut list: Vec<(&str, Error, &[&str])> = Vec::new();

    // plan: sizes and options
    let planned = |shape: AttentionShape| base.plan(&ctx, shape).unwrap_err();
    list.push((
        "head_dim 0",
        planned(AttentionShape { head_dim: 0, ..SHAPE }),
        &["head_dim", "1 to 576", "got 0"],
    ));
    list.push((
        "head_dim 577",
        planned(AttentionShape { head_dim: 577, ..SHAPE }),
        &["1 to 576", "got 577"],
    ));
    list.push((
        "no heads",
        planned(AttentionShape { heads: 0, ..SHAPE }),
        &["heads", "at least 1", "got 0"],
    ));
    list.push((
        "heads not divisible",
        planned(AttentionShape { heads: 5, ..SHAPE }),
        &["heads", "a multiple of heads_kv = 2", "got 5"],
    ));
    for (name, scale) in [("NaN scale", f32::NAN), ("infinite scale", f32::INFINITY)] {
        let error =
            Attention { scale: Some(scale), ..Default::default() }.plan(&ctx, SHAPE).unwrap_err();
        list.push((name, error, &["scale", "a finite number"]));
    }
    list.push((
        "sizes past u32",
        planned(AttentionShape { batch: 1 << 16, seq_q: 1 << 16, ..SHAPE }),
        &["elements in one tensor", "137438953472", "4294967295"],
    ));
    let most = (1 << 30) - 2;
    list.push((
        "sizes past u64",
        planned(AttentionShape {
            batch: u32::MAX,
            seq_q: most,
            seq_k: most,
            heads: u32::MAX,
            heads_kv: 1,
            ..SHAPE
        }),
        &["elements in one tensor", "18446744073709551615"],
    ));
    let schedule = Some(Schedule::Rows(Tiles { workgroup: 4096, queries: 1, block_k: 1 }));
    let error = Attention { schedule, ..Default::default() }.plan(&ctx, SHAPE).unwrap_err();
    list.push(("tiles too large", error, &["schedule", "at most 256", "4096"]));
    // kernels that are asked for where there is no such form; each says what would work
    let asked = |schedule, change: fn(&mut Attention, &mut AttentionShape)| {
        let mut op = Attention { schedule: Some(schedule), ..Default::default() };
        let mut shape = AttentionShape { seq_q: 1, heads: 4, heads_kv: 1, ..SHAPE };
        change(&mut op, &mut shape);
        op.plan(&ctx, shape).unwrap_err()
    };
    let register = RegisterTiles { lanes_k: 8, lanes_q: 16, rows: 4, keys: 4, depth: 16, part: 16 };
    let chunk = 4;
    let group = GroupTiles { workgroup: 64, lanes: 8, rows: 4, block_k: 2, chunk, shuffles: false };
    let (tiled, groups) = (Schedule::Tiled, Schedule::Groups);
    let decode = Schedule::Decode(Tiles { workgroup: 8, queries: 4, block_k: 2 });
    list.extend([
        (
            "a schedule of the unfused kernels",
            asked(tiled(register), |op, _| op.algorithm = Algorithm::Unfused),
            &["schedule", "unfused", "Algorithm::Flash"][..],
        ),
        (
            "tiled with a metric",
            asked(tiled(register), |op, _| op.metric = true),
            &["schedule", "Tiled takes no metric", "Rows"],
        ),
        (
            "too many rows for groups",
            asked(groups(group), |_, shape| shape.seq_q = 3),
            &["schedule", "at most 8 rows", "12", "Tiled"],
        ),
        (
            "too many rows for decode",
            asked(decode, |_, shape| shape.seq_q = 2),
            &["schedule", "at most 4 rows", "8", "Tiled"],
        ),
        (
            "groups over whole keys",
            asked(groups(group), |op, _| op.split = Split::Never),
            &["schedule", "shared out", "Split::Keys"],
        ),
        (
            "groups of a pack",
            asked(groups(group), |op, _| op.packed = true),
            &["schedule", "packed", "Tiled"],
        ),
        (
            "groups of odd heads",
            asked(groups(group), |_, shape| shape.head_dim = 9),
            &["schedule", "multiples of 4", "9"],
        ),
        (
            "decode where subgroups differ in size",
            asked(
                Schedule::Decode(Tiles { workgroup: 4096, queries: 4, block_k: 2 }),
                |_, shape| (shape.head_dim, shape.head_dim_v) = (16, 8),
            ),
            &["schedule", "subgroups of one size", "Groups"],
        ),
        (
            "register tiles past the workgroup",
            asked(tiled(RegisterTiles { lanes_q: 1024, ..register }), |_, _| ()),
            &["schedule", "invocations", "8192"],
        ),
        (
            "register tiles past the memory",
            asked(tiled(RegisterTiles { part: 32, depth: 1024, ..register }), |_, _| ()),
            &["schedule", "bytes of workgroup memory"],
        ),
        (
            "register tiles of three rows",
            asked(tiled(RegisterTiles { rows: 3, ..register }), |_, _| ()),
            &["schedule", "4 or 8 rows", "rows: 3"],
        ),
        (
            "register tiles with a part past the tile",
            asked(tiled(RegisterTiles { part: 64, ..register }), |_, _| ()),
            &["schedule", "part at most lanes_k * keys"],
        ),
        (
            "register tiles that no compiler finishes",
            asked(tiled(RegisterTiles { lanes_k: 4, ..register }), |_, shape| {
                shape.head_dim_v = 576;
            }),
            &["schedule", "over 512 sums"],
        ),
        (
            "chunks of another type",
            asked(groups(GroupTiles { chunk: 8, ..group }), |_, _| ()),
            &["schedule", "chunk = 4 for f32"],
        ),
        (
            "groups with a few lanes for many rows",
            asked(groups(GroupTiles { lanes: 4, rows: 8, ..group }), |_, _| ()),
            &["schedule", "no more rows than lanes"],
        ),
        (
            "groups smaller than their lines",
            asked(groups(GroupTiles { workgroup: 8, rows: 8, ..group }), |_, _| ()),
            &["schedule", "a workgroup of 32 to"],
        ),
        (
            "shuffles without subgroups",
            asked(
                groups(GroupTiles { lanes: 32, workgroup: 256, shuffles: true, ..group }),
                |_, _| (),
            ),
            &["schedule", "no shuffles"],
        ),
    ]);
    let mut counted = ctx.caps.clone();
    counted.loop_trips = 60_000;
    // a portable kernel on a CPU stages keys in a loop while the trips last, and as many keys as ever
    let cpu = Caps { class: DeviceClass::Cpu, tier: Tier::Portable, ..counted.clone() };
    for (keys, rolled) in [(20_000, true), (33_000, false), (100_000, false), (900_000, false)] {
        let wide = AttentionShape { seq_k: keys, head_dim: 64, head_dim_v: 64, ..SHAPE };
        let plan = Attention { split: Split::Never, ..base }.design(&cpu, wide).unwrap();
        assert_eq!(plan.wgsl()[0].contains("r += 1u"), rolled, "{keys} keys");
    }
    let error =
        base.plan(&ctx.with_caps(counted), AttentionShape { seq_k: 1 << 27, ..SHAPE }).unwrap_err();
    list.push((
        "more keys than the driver's loops",
        error,
        &["keys in one pass on this driver", "134217728"],
    ));
    let unfused = Attention { algorithm: Algorithm::Unfused, ..Default::default() };
    let error =
        unfused.plan(&ctx, AttentionShape { seq_q: 20_000, seq_k: 20_000, ..SHAPE }).unwrap_err();
    list.push(("scores past a binding", error, &["bytes of scratch", "6400000000", "134217728"]));

    // encode: views
    list.push((
        "mismatched shape",
        refused(&ctx, &plan, &t, |a| a.k = t.q.view()),
        &["k", "expected [1, 7, 2, 8]", "got [1, 5, 4, 8]"],
    ));
    let half = Tensor::<4>::zeros(&ctx, [1, 7, 2, 8], DType::F16).unwrap();
    list.push((
        "another element type",
        refused(&ctx, &plan, &t, |a| a.v = half.view()),
        &["v", "expected elements of type f32, got f16"],
    ));
    list.push((
        "a view past its buffer",
        refused(&ctx, &plan, &t, |a| a.q.layout.offset = 1),
        &["q", "ends at byte 644", "its buffer at byte 640"],
    ));
    list.push((
        "last stride not 1",
        refused(&ctx, &plan, &t, |a| {
            a.q.layout = Layout::contiguous([1, 4, 8, 5]).permuted([0, 3, 1, 2]);
        }),
        &["q", "contiguous last axis", "[160, 1, 40, 5]"],
    ));
    list.push((
        "strides past u64",
        refused(&ctx, &plan, &t, |a| a.q.layout.strides[1] = u64::MAX),
        &["q", "ends at byte 18446744073709551615", "its buffer at byte 640"],
    ));
    list.push((
        "output overlapping an input",
        refused(&ctx, &plan, &t, |a| a.o = t.q.view()),
        &["output o shares its buffer with q"],
    ));
    list.push((
        "output written twice",
        refused(&ctx, &plan, &t, |a| a.o.layout.strides[1] = 0),
        &["o", "whose elements do not overlap"],
    ));
    list.push((
        "scratch missing",
        {
            let plan = unfused.plan(&ctx, SHAPE).unwrap();
            refused(&ctx, &plan, &t, |_| {})
        },
        &["scratch", "768 bytes", "none given"],
    ));
    let buffer = |size, usage| {
        ctx.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    };
    let tiny = buffer(64, wgpu::BufferUsages::STORAGE);
    list.push((
        "scratch too small",
        {
            let plan = unfused.plan(&ctx, SHAPE).unwrap();
            refused(&ctx, &plan, &t, |a| a.scratch = Some(&tiny))
        },
        &["scratch", "768", "64"],
    ));

    // options and lists
    let option = |change: &dyn Fn(&mut Attention)| {
        let mut op = base;
        change(&mut op);
        op.plan(&ctx, SHAPE).unwrap_err()
    };
    let range = &["softcap", "a positive finite number"];
    list.push(("softcap 0", option(&|op| op.softcap = Some(0.0)), range));
    list.push(("NaN softcap", option(&|op| op.softcap = Some(f32::NAN)), range));
    list.push((
        "page size 0",
        option(&|op| (op.key_lengths, op.page_size) = (true, Some(0))),
        &["page_size", "a power of two", "got 0"],
    ));
    list.push((
        "page size 12",
        option(&|op| (op.key_lengths, op.page_size) = (true, Some(12))),
        &["page_size", "a power of two", "got 12"],
    ));
    list.push((
        "pages without lengths",
        option(&|op| op.page_size = Some(16)),
        &["pages need key_lengths"],
    ));
    list.push((
        "int8 of 8 tokens",
        option(&|op| op.quantized = Some(8)),
        &["quantized", "a power of two from 16", "got 8"],
    ));
    list.push((
        "split at 100 keys",
        option(&|op| op.split = Split::Keys(100)),
        &["split", "a positive multiple of 64", "got 100"],
    ));
    list.push((
        "int8 as element type",
        option(&|op| op.dtype = DType::I8),
        &["dtype", "f32, f16 or bf16", "got i8"],
    ));
    list.push((
        "unfused with a window",
        option(&|op| (op.algorithm, op.softcap) = (Algorithm::Unfused, Some(1.0))),
        &["algorithm", "causal mask and a scale only"],
    ));
    let given = |op: Attention, change: &dyn Fn(&mut AttentionArgs<'_>)| {
        let plan = op.plan(&ctx, SHAPE).unwrap();
        let mut args = AttentionArgs::new(t.q.view(), t.k.view(), t.k.view(), t.o.view());
        change(&mut args);
        plan.encode(&ctx, &mut encoder(&ctx), &args).unwrap_err()
    };
    let three = Tensor::<1>::zeros(&ctx, [3], DType::F32).unwrap();
    for (name, op) in [
        ("slopes of the wrong length", Attention { alibi: true, ..base }),
        ("sinks of the wrong length", Attention { sinks: true, ..base }),
    ] {
        let error = {
            let plan = op.plan(&ctx, SHAPE).unwrap();
            let mut args = AttentionArgs::new(t.q.view(), t.k.view(), t.k.view(), t.o.view());
            (args.slopes, args.sinks) =
                (op.alibi.then(|| three.view()), op.sinks.then(|| three.view()));
            plan.encode(&ctx, &mut encoder(&ctx), &args).unwrap_err()
        };
        list.push((name, error, &["expected [4]", "got [3]"]));
    }
    list.push((
        "slopes missing",
        given(Attention { alibi: true, ..base }, &|_| {}),
        &["slopes", "the plan needs it"],
    ));
    let narrow = Tensor::<4>::zeros(&ctx, [1, 1, 5, 6], DType::F32).unwrap();
    let mask = Tensor::<4>::zeros(&ctx, [1, 2, 5, 7], DType::U8).unwrap();
    for (name, op, words) in [
        (
            "bias that does not broadcast",
            Attention { bias: true, ..base },
            &["bias", "[1, 4, 5, 7], or 1", "got [1, 1, 5, 6]"],
        ),
        (
            "mask of the wrong shape",
            Attention { visible: true, ..base },
            &["visible", "[1, 4, 5, 7], or 1", "got [1, 2, 5, 7]"],
        ),
    ] {
        let plan = op.plan(&ctx, SHAPE).unwrap();
        let mut args = AttentionArgs::new(t.q.view(), t.k.view(), t.k.view(), t.o.view());
        args.bias = op.bias.then(|| narrow.view());
        args.visible = op.visible.then(|| mask.view());
        list.push((name, plan.encode(&ctx, &mut encoder(&ctx), &args).unwrap_err(), words));
    }
    let packed = Attention { packed: true, ..base };
    let bounds = |cu_q: &'static [u32], cu_k: &'static [u32]| {
        given(packed, &|a| (a.cu_seqlens_q, a.cu_seqlens_k) = (Some(cu_q), Some(cu_k)))
    };
    list.push((
        "cu_seqlens that fall",
        bounds(&[0, 4, 3, 5], &[0, 1, 2, 7]),
        &["cu_seqlens_q", "never fall", "3 after 4"],
    ));
    list.push((
        "positions of a pack that is none",
        option(&|op| op.bias_positions = BiasPositions::Pack),
        &["bias_positions", "need packed sequences"],
    ));
    // over the pack, by sequence, and with room to spare
    let sizes = [[1, 1, 5, 7], [2, 1, 3, 4], [2, 1, 4, 4]];
    let by_sequence = "[2, 4, 3, 4], or 1 on any of the first three axes (BiasPositions::Sequence";
    let by_pack = "[1, 4, 5, 7], or 1 on any of the first three axes (BiasPositions::Pack";
    for (bias_positions, i, words) in [
        (BiasPositions::Sequence, 0, ["bias", by_sequence, "got [1, 1, 5, 7]"]),
        (BiasPositions::Sequence, 2, ["bias", by_sequence, "got [2, 1, 4, 4]"]),
        (BiasPositions::Pack, 1, ["bias", by_pack, "got [2, 1, 3, 4]"]),
        (BiasPositions::Pack, 2, ["bias", by_pack, "got [2, 1, 4, 4]"]),
    ] {
        let wrong = Tensor::<4>::zeros(&ctx, sizes[i], DType::F32).unwrap();
        let mask = Tensor::<4>::zeros(&ctx, sizes[i], DType::U8).unwrap();
        for (bias, visible) in [(true, false), (false, true)] {
            let op = Attention { bias, visible, bias_positions, ..packed };
            let plan = op.plan(&ctx, SHAPE).unwrap();
            let args = AttentionArgs {
                bias: bias.then(|| wrong.view()),
                visible: visible.then(|| mask.view()),
                cu_seqlens_q: Some(&[0, 2, 5]),
                cu_seqlens_k: Some(&[0, 3, 7]),
                ..AttentionArgs::new(t.q.view(), t.k.view(), t.k.view(), t.o.view())
            };
            let error = plan.encode(&ctx, &mut encoder(&ctx), &args).unwrap_err();
            let words = [if bias { words[0] } else { "visible" }, words[1], words[2]];
            list.push(("bias or mask of another meaning", error, words.to_vec().leak()));
        }
    }
    list.push((
        "cu_seqlens past the end",
        bounds(&[0, 5], &[0, 8]),
        &["cu_seqlens_k", "seq_k = 7 as the last bound", "got 8"],
    ));
    list.push((
        "cu_seqlens of other numbers",
        bounds(&[0, 5], &[0, 2, 7]),
        &["cu_seqlens_k", "1 sequences", "got 2"],
    ));
    list.push((
        "cu_seqlens not planned for",
        given(base, &|a| a.cu_seqlens_q = Some(&[0, 5])),
        &["cu_seqlens_q", "the plan was made without"],
    ));
    list.push((
        "a length past seq_k",
        given(Attention { key_lengths: true, ..base }, &|a| a.key_lengths = Some(&[8])),
        &["key_lengths", "at most seq_k = 7", "got 8 for sequence 0"],
    ));
    let paged = Attention { key_lengths: true, page_size: Some(2), ..base };
    let cache = Tensor::<4>::zeros(&ctx, [6, 2, 2, 8], DType::F32).unwrap();
    for (name, table, words) in [
        (
            "a page that does not exist",
            &[0u32, 9, 0, 0][..],
            &["page_table", "pages below 6", "got page 9"][..],
        ),
        ("a page table too short", &[0, 1], &["page_table", "1 sequences of 4 pages"]),
    ] {
        let plan = paged.plan(&ctx, SHAPE).unwrap();
        let mut args = AttentionArgs::new(t.q.view(), cache.view(), cache.view(), t.o.view());
        (args.key_lengths, args.page_table) = (Some(&[4][..]), Some(table));
        list.push((name, plan.encode(&ctx, &mut encoder(&ctx), &args).unwrap_err(), words));
    }

    // tensors
    let odd = buffer(30, wgpu::BufferUsages::STORAGE);
    let error = TensorView::new(&odd, Layout::contiguous([15]), DType::F16).unwrap_err();
    list.push(("f16 buffer of odd bytes", error, &["a multiple of 4", "got 30"]));
    let plain = buffer(64, wgpu::BufferUsages::COPY_DST);
    let error = TensorView::new(&plain, Layout::contiguous([4]), DType::F32).unwrap_err();
    list.push(("buffer without STORAGE", error, &["lacks usage", "STORAGE"]));
    let error = Tensor::<2>::zeros(&ctx, [1 << 20, 1 << 20], DType::F32).unwrap_err();
    list.push((
        "tensor larger than a buffer",
        error,
        &["bytes in one buffer", "4398046511104", "268435456"],
    ));
    let error = Tensor::<3>::zeros(&ctx, [u32::MAX; 3], DType::F32).unwrap_err();
    list.push(("tensor past u64", error, &["bytes", "18446744073709551615"]));
    let error = Tensor::upload(&ctx, [4], &[0f32; 3]).unwrap_err();
    list.push(("data of another length", error, &["4 elements", "got 3"]));
    let error = t.q.download::<half::f16>(&ctx).unwrap_err();
    list.push(("download as another type", error, &["expected elements of type f32, got f16"]));
    let mut caps = ctx.caps.clone();
    caps.binding_size = 256;
    let small = ctx.with_caps(caps);
    let error = refused(&small, &base.plan(&small, SHAPE).unwrap(), &t, |_| {});
    list.push((
        "a view past the binding limit",
        error,
        &["bytes spanned by one tensor", "640", "256"],
    ));
    let portable = noop_without_subgroups();
    let error = portable.with_tier(Tier::Subgroup).unwrap_err();
    list.push(("a tier that the device lacks", error, &["lacks", "SUBGROUP"]));

    for (name, error, words) in &list {
        let message = error.to_string();
        println!("{name:36} {message}");
        for word in *words {
            assert!(message.contains(word), "{name}: {message:?} does not say {word:?}");
        }
    }
}

fn noop_without_subgroups() -> Context {
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    Context::from_wgpu(device, queue)
}

#[test]
fn each_error_is_its_own_variant() {
    let ctx = noop();
    let t = tensors(&ctx);
    let plan = Attention { split: Split::Never, ..Default::default() }.plan(&ctx, SHAPE).unwrap();
    let shared =
        refused(&ctx, &plan, &t, |a| a.o = t.k.view_as(t.o.view().layout).unwrap_or(t.q.view()));
    assert!(matches!(shared, Error::SharedBuffer { .. }), "{shared:?}");
    let range = refused(&ctx, &plan, &t, |a| a.o.layout.offset = 4);
    assert!(matches!(range, Error::OutOfRange { .. }), "{range:?}");
    let strides = refused(&ctx, &plan, &t, |a| a.o.layout.strides[2] = 0);
    assert!(matches!(strides, Error::Strides { .. }), "{strides:?}");
    let limit = Tensor::<1>::zeros(&ctx, [u32::MAX], DType::F32).unwrap_err();
    assert!(matches!(limit, Error::Limit { .. }), "{limit:?}");
}

#[test]
fn a_destroyed_device_is_an_error_everywhere() {
    let ctx = noop();
    let t = tensors(&ctx);
    let plan = Attention { split: Split::Never, ..Default::default() }.plan(&ctx, SHAPE).unwrap();
    ctx.device.destroy();
    let lost = |result: Result<(), Error>| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error:?}");
    };
    lost(Tensor::<1>::zeros(&ctx, [4], DType::F32).map(drop));
    lost(
        Attention::default()
            .plan(&ctx, AttentionShape { head_dim: 12, head_dim_v: 12, ..SHAPE })
            .map(drop),
    );
    let args = AttentionArgs::new(t.q.view(), t.k.view(), t.k.view(), t.o.view());
    lost(plan.encode(&ctx, &mut encoder(&ctx), &args));
    lost(t.q.download::<f32>(&ctx).map(drop));
    // and a new context works
    let again = noop();
    Attention::default().plan(&again, SHAPE).unwrap();
}

#[test]
fn empty_problems_encode_nothing() {
    let ctx = noop();
    // the last would need gigabytes of host memory if its sequences were listed
    for (batch, seq_q, seq_k) in [(0, 5, 7), (1, 0, 7), (u32::MAX, 0, 0)] {
        let shape = AttentionShape { batch, seq_q, seq_k, ..SHAPE };
        let plan = Attention::default().plan(&ctx, shape).unwrap();
        let zeros = |shape| Tensor::<4>::zeros(&ctx, shape, DType::F32).unwrap();
        let (q, k) = (zeros([batch, seq_q, 4, 8]), zeros([batch, seq_k, 2, 8]));
        let o = zeros([batch, seq_q, 4, 8]);
        let args = AttentionArgs::new(q.view(), k.view(), k.view(), o.view());
        plan.encode(&ctx, &mut encoder(&ctx), &args).unwrap();
        assert_eq!(o.shape(), [batch, seq_q, 4, 8]);
    }
}

#[test]
fn kernels_are_compiled_once() {
    let ctx = noop();
    let long = AttentionShape { seq_q: 500, seq_k: 700, ..SHAPE };
    Attention::default().plan(&ctx, long).unwrap();
    let first = ctx.compiled_kernels();
    // another length, another scale: the same text
    let longer = AttentionShape { seq_q: 1000, seq_k: 600, ..SHAPE };
    Attention { scale: Some(2.0), ..Default::default() }.plan(&ctx.clone(), longer).unwrap();
    assert_eq!(ctx.compiled_kernels(), first);
}

#[test]
fn a_context_crosses_threads() {
    fn both<T: Send + Sync + Clone>() {}
    both::<Context>();
    let ctx = noop();
    std::thread::scope(|scope| {
        for d in [8, 16, 24] {
            let ctx = &ctx;
            scope.spawn(move || {
                Attention::default().plan(ctx, AttentionShape { head_dim: d, ..SHAPE }).unwrap();
            });
        }
    });
}

/// A context whose table has one entry.
fn tuned(ctx: &Context, key: String, tuned: Tuned) -> Context {
    ctx.with_tuning(Tuning { entries: [(key, tuned)].into() })
}

#[test]
fn a_tuning_table_changes_the_plan_and_never_makes_it_illegal() {
    use tilewise::gaunt::{Algorithm as Route, GauntShape, GauntTensorProduct};
    use tilewise::linear_attention::{LinearAttention, LinearAttentionShape};
    use tilewise::neighborhood::{NeighborhoodAttention, NeighborhoodShape, NeighborhoodTiles};

    // what a GPU gets no table changes
    let ctx = noop().with_class(DeviceClass::Cpu);
    let caps = &ctx.caps;
    let rows = |plan: &AttentionPlan| match plan.schedule() {
        Schedule::Rows(tiles) => tiles,
        other => panic!("{other:?}"),
    };
    let foreign = Tuned::LinearAttention { chunk_size: 4 };

    let shape = AttentionShape::self_attention(1, 100, 2, 32);
    let op = Attention::default();
    let key = op.tuning_key(caps, &shape);
    let own = op.plan(&ctx, shape).unwrap();
    let all = op.candidates(caps, &shape);
    assert_eq!(all[0], rows(&own));
    let gpu = caps.with_class(DeviceClass::Gpu);
    assert_eq!(op.candidates(&gpu, &shape).len(), 1);
    let other = *all.last().unwrap();
    let entry = |t: Tiles| Tuned::Attention {
        workgroup: t.workgroup,
        queries: t.queries,
        block_k: t.block_k,
    };
    let plan = op.plan(&tuned(&ctx, key.clone(), entry(other)), shape).unwrap();
    assert_eq!(rows(&plan), other);
    assert_ne!(plan.wgsl(), own.wgsl());
    // tiles that the caller names count more than a table's
    let named = Attention { schedule: Some(Schedule::Rows(all[0])), ..op };
    let plan = named.plan(&tuned(&ctx, key.clone(), entry(other)), shape).unwrap();
    assert_eq!(rows(&plan), all[0]);
    // too large, not whole subgroups, nothing at all, of another operator
    let bad = [
        Tiles { workgroup: 1 << 20, ..other },
        Tiles { workgroup: other.workgroup + 1, ..other },
        Tiles { queries: 1 << 16, block_k: 1 << 16, ..other },
        Tiles { queries: 0, ..other },
    ];
    for entry in bad.map(entry).into_iter().chain([foreign.clone()]) {
        let plan = op.plan(&tuned(&ctx, key.clone(), entry.clone()), shape).unwrap();
        assert_eq!(plan.wgsl(), own.wgsl(), "{entry:?}");
    }
    // keys of other problems are not looked at; the batch and the number of keys are in none
    let plan = op.plan(&tuned(&ctx, "attention".into(), entry(other)), shape).unwrap();
    assert_eq!(rows(&plan), rows(&own));
    let longer = AttentionShape { batch: 3, seq_k: 5000, ..shape };
    assert_eq!(op.tuning_key(caps, &longer), key);
    let causal = Attention { mask: Mask::Causal(CausalAlignment::BottomRight), ..op };
    assert_ne!(causal.tuning_key(caps, &shape), key);
    // a problem that is refused says so itself
    let none = AttentionShape { heads: 0, ..shape };
    let key_of_none = op.tuning_key(caps, &none);
    let error = op.plan(&tuned(&ctx, key_of_none, entry(other)), none).unwrap_err();
    assert!(matches!(error, Error::Shape { what: "heads", .. }), "{error}");

    let shape = LinearAttentionShape::new(1, 100, 2, 32, 32);
    let op = LinearAttention::default();
    let key = op.tuning_key(caps, &shape);
    let own = op.plan(&ctx, shape).unwrap().wgsl();
    let size = *op.chunk_sizes(caps, &shape).iter().find(|&&c| c > 1 && c < 16).unwrap();
    for (chunk_size, changes) in [(size, true), (3, false), (1 << 30, false), (0, false)] {
        let entry = Tuned::LinearAttention { chunk_size };
        let plan = op.plan(&tuned(&ctx, key.clone(), entry), shape).unwrap();
        assert_eq!(plan.wgsl() != own, changes, "{chunk_size}");
    }

    let shape = NeighborhoodShape { spatial: [20, 20], ..Default::default() };
    let op = NeighborhoodAttention::new([5, 5]);
    let key = op.tuning_key(caps, &shape);
    let own = op.plan(&ctx, shape).unwrap();
    let other = *op.tile_candidates(caps, &shape).unwrap().last().unwrap();
    let entry = |t: NeighborhoodTiles<2>, tile: &[u32]| Tuned::Neighborhood {
        axis: u32::try_from(t.axis).unwrap(),
        tile: tile.to_vec(),
        slots: t.slots,
        block_k: t.block_k,
        lanes: t.lanes,
    };
    let plan = op.plan(&tuned(&ctx, key.clone(), entry(other, &other.tile)), shape).unwrap();
    assert_eq!(plan.tiles(), other);
    assert_ne!(plan.tiles(), own.tiles());
    for entry in [
        entry(other, &[4]),
        entry(other, &[0, 4]),
        entry(NeighborhoodTiles { axis: 9, ..other }, &other.tile),
        entry(NeighborhoodTiles { lanes: 3, ..other }, &other.tile),
        entry(NeighborhoodTiles { slots: 4096, ..other }, &other.tile),
        foreign.clone(),
    ] {
        let plan = op.plan(&tuned(&ctx, key.clone(), entry.clone()), shape).unwrap();
        assert_eq!(plan.tiles(), own.tiles(), "{entry:?}");
    }

    let op = GauntTensorProduct::new(4, 4);
    let shape = GauntShape { batch: 1, channels: 8 };
    let key = op.tuning_key(caps);
    let own = op.plan(&ctx, shape).unwrap();
    let entry = Tuned::Gaunt { algorithm: Route::Fourier };
    let plan = op.plan(&tuned(&ctx, key.clone(), entry.clone()), shape).unwrap();
    assert_eq!(plan.options().algorithm, Some(Route::Fourier));
    assert_ne!(plan.wgsl(), own.wgsl());
    assert_eq!(op.plan(&tuned(&ctx, key, foreign), shape).unwrap().wgsl(), own.wgsl());
    // a vector product has no Fourier route
    let vector = GauntTensorProduct { coupling: tilewise::gaunt::Coupling::Vector, ..op };
    let plan = vector.plan(&tuned(&ctx, vector.tuning_key(caps), entry), shape).unwrap();
    assert_eq!(plan.options().algorithm, Some(vector.select(caps)));
}

/// A compiler that unrolls badly gets no more than eight scores of a block to unroll.
#[test]
fn decoding_for_a_slow_compiler() {
    let caps =
        Caps { class: DeviceClass::Cpu, unrolled: 64, subgroup: Some((4, 4)), ..Caps::minimum() };
    for tier in [Tier::Portable, Tier::Subgroup] {
        for head_dim in [8, 16, 32, 40, 64, 128] {
            for heads in [1, 2, 3, 4] {
                let shape = AttentionShape {
                    seq_k: 300,
                    heads,
                    heads_kv: 1,
                    ..AttentionShape::self_attention(1, 1, 1, head_dim)
                };
                let plan =
                    Attention::default().design(&Caps { tier, ..caps.clone() }, shape).unwrap();
                let Schedule::Decode(tiles) = plan.schedule() else {
                    panic!("{:?}", plan.schedule())
                };
                assert!(
                    tiles.queries * tiles.block_k <= 8,
                    "{tier}, {head_dim}, {heads}: {tiles:?}"
                );
            }
        }
    }
}

/// How keys are shared out unless told, by the parts that scratch has room for.
#[test]
fn keys_are_shared_out_by_rows_alone() {
    let caps = noop().caps;
    for (class, heads, heads_kv, seq_q, parts) in [
        (DeviceClass::Cpu, 8, 2, 4, 32),
        (DeviceClass::Gpu, 8, 2, 4, 32),
        (DeviceClass::Cpu, 8, 2, 5, 0),
        (DeviceClass::Gpu, 8, 2, 5, 0),
        // latent attention, and many heads of one key head; then too many queries
        (DeviceClass::Gpu, 16, 1, 1, 32),
        (DeviceClass::Gpu, 128, 1, 1, 4),
        (DeviceClass::Gpu, 64, 2, 4, 4),
        (DeviceClass::Gpu, 64, 2, 5, 0),
        (DeviceClass::Cpu, 128, 1, 1, 0),
    ] {
        let caps = caps.with_class(class);
        let mut before = None;
        for batch in [1, 3] {
            let shape = AttentionShape { batch, seq_q, seq_k: 8192, heads, heads_kv, ..SHAPE };
            let plan = Attention::default().design(&caps, shape).unwrap();
            let rows = u64::from(batch * seq_q * heads);
            let part = |width: u64| (4 * rows * parts * width).next_multiple_of(256);
            let width = u64::from(shape.head_dim_v.next_multiple_of(4));
            assert_eq!(plan.scratch_bytes(), part(width) + part(2), "{class}, {shape:?}");
            let schedule = *before.get_or_insert(plan.schedule());
            assert_eq!(plan.schedule(), schedule);
        }
    }
}
