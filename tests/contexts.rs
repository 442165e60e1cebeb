//! Contexts, tensors and plans together. Tensors, buffers and plans of another device than the
//! context's are refused by every operator, and by name: nothing is read, written or recorded.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod common;

use std::{cell::Cell, collections::BTreeSet, path::Path};

use half::{bf16, f16};
use tilewise::{
    Context, DType, Error, Layout, Result, Tensor, TensorView,
    attention::{Algorithm as AttentionAlgorithm, *},
    fft::*,
    gaunt::*,
    linear_attention::*,
    neighborhood::*,
    wgpu,
};

/// A noop device in an instance of its own: its buffers have the same numbers as those of the next.
fn noop() -> Context {
    pollster::block_on(Context::from_adapter(&common::noop::noop_adapter())).unwrap()
}

/// Two devices; one tensor, or the plan, is made on the other.
struct Maker<'a> {
    ctx: &'a Context,
    other: &'a Context,
    /// Which tensor, in the order they are made.
    stranger: Option<usize>,
    plan: &'a Context,
    made: Cell<usize>,
}

impl Maker<'_> {
    fn of<const N: usize>(&self, shape: [u32; N], dtype: DType) -> Tensor<N> {
        let at = self.made.replace(self.made.get() + 1);
        let ctx = if self.stranger == Some(at) { self.other } else { self.ctx };
        Tensor::zeros(ctx, shape, dtype).unwrap()
    }

    fn f32<const N: usize>(&self, shape: [u32; N]) -> Tensor<N> {
        self.of(shape, DType::F32)
    }

    /// A buffer of at least one element.
    fn scratch(&self, bytes: u64) -> Tensor<1> {
        self.f32([(bytes / 4).max(1) as u32])
    }
}

/// The type whose plan is encoded, and one call with all tensors that it can take.
type Call = fn(&Maker<'_>, &mut wgpu::CommandEncoder) -> Result<()>;

const CALLS: &[(&str, Call)] = &[
    ("AttentionPlan", biased),
    ("AttentionPlan", masked),
    ("AttentionPlan", quantized),
    ("AttentionPlan", unfused),
    ("MergePlan", merge),
    ("KvAppendPlan", append),
    ("TriplePlan", triple),
    ("LinearAttentionPlan", linear),
    ("LinearAttentionPlan", gated),
    ("StatePlan", state),
    ("ChannelAttentionPlan", channel),
    ("RelativeAttentionPlan", relative),
    ("NeighborhoodPlan", neighborhood),
    ("FftPlan", fft),
    ("GauntPlan", product),
    ("GauntManyBodyPlan", many_body),
    ("GauntConvolutionPlan", convolution),
    ("SphericalHarmonicsPlan", harmonics),
    ("ClebschGordanPlan", clebsch_gordan),
    ("WeightedTensorProductPlan", weighted),
    ("SphereGridPlan", to_grid),
    ("SphereGridPlan", from_grid),
    ("SphereFourierPlan", to_fourier),
    ("SphereFourierPlan", from_fourier),
];

/// Without scratch.
const WHOLE: Attention = Attention {
    split: Split::Never,
    mask: Mask::None,
    window: Window { left: None, right: None },
    scale: None,
    softcap: None,
    alibi: false,
    bias: false,
    visible: false,
    sinks: false,
    metric: false,
    packed: false,
    bias_positions: BiasPositions::Sequence,
    key_lengths: false,
    page_size: None,
    quantized: None,
    dtype: DType::F32,
    algorithm: AttentionAlgorithm::Flash,
    schedule: None,
};

fn biased(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = AttentionShape::self_attention(1, 8, 2, 8);
    let plan = Attention { alibi: true, bias: true, ..WHOLE }.plan(m.plan, shape)?;
    let [q, k, v, o] = [0; 4].map(|_| m.f32([1, 8, 2, 8]));
    let (lse, slopes, bias) = (m.f32([1, 2, 8]), m.f32([2]), m.f32([1, 2, 8, 8]));
    let args = AttentionArgs {
        lse: Some(lse.view()),
        slopes: Some(slopes.view()),
        bias: Some(bias.view()),
        ..AttentionArgs::new(q.view(), k.view(), v.view(), o.view())
    };
    plan.encode(m.ctx, encoder, &args)
}

fn masked(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = AttentionShape::self_attention(1, 8, 2, 8);
    let options = Attention { visible: true, sinks: true, metric: true, ..WHOLE };
    let plan = options.plan(m.plan, shape)?;
    let [q, k, v, o] = [0; 4].map(|_| m.f32([1, 8, 2, 8]));
    let (sinks, metric) = (m.f32([2]), m.f32([2, 8, 8]));
    let visible = m.of([1, 2, 8, 8], DType::U8);
    let args = AttentionArgs {
        visible: Some(visible.view()),
        sinks: Some(sinks.view()),
        metric: Some(metric.view()),
        ..AttentionArgs::new(q.view(), k.view(), v.view(), o.view())
    };
    plan.encode(m.ctx, encoder, &args)
}

fn quantized(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = AttentionShape::self_attention(1, 16, 2, 8);
    let plan = Attention { quantized: Some(16), ..WHOLE }.plan(m.plan, shape)?;
    let [q, o] = [0; 2].map(|_| m.f32([1, 16, 2, 8]));
    let [k, v] = [0; 2].map(|_| m.of([1, 16, 2, 8], DType::I8));
    let [k_scale, v_scale] = [0; 2].map(|_| m.f32([1, 2, 1]));
    let args = AttentionArgs {
        k_scale: Some(k_scale.view()),
        v_scale: Some(v_scale.view()),
        ..AttentionArgs::new(q.view(), k.view(), v.view(), o.view())
    };
    plan.encode(m.ctx, encoder, &args)
}

fn unfused(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = AttentionShape::self_attention(1, 8, 2, 8);
    let options = Attention { algorithm: AttentionAlgorithm::Unfused, ..Default::default() };
    let plan = options.plan(m.plan, shape)?;
    let [q, k, v, o] = [0; 4].map(|_| m.f32([1, 8, 2, 8]));
    let scratch = m.scratch(plan.scratch_bytes());
    let args = AttentionArgs {
        scratch: Some(scratch.buffer()),
        ..AttentionArgs::new(q.view(), k.view(), v.view(), o.view())
    };
    plan.encode(m.ctx, encoder, &args)
}

fn merge(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = MergeShape { parts: 2, batch: 1, seq: 3, heads: 2, head_dim_v: 8 };
    let plan = Merge::default().plan(m.plan, shape)?;
    let (o_parts, lse_parts) = (m.f32([2, 1, 3, 2, 8]), m.f32([2, 1, 2, 3]));
    let (o, lse) = (m.f32([1, 3, 2, 8]), m.f32([1, 2, 3]));
    let args = MergeArgs {
        o_parts: o_parts.view(),
        lse_parts: lse_parts.view(),
        o: o.view(),
        lse: Some(lse.view()),
    };
    plan.encode(m.ctx, encoder, &args)
}

fn append(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = KvAppendShape {
        batch: 1,
        seq: 2,
        heads_kv: 2,
        head_dim: 8,
        head_dim_v: 8,
        pages: 3,
        page_size: 4,
    };
    let plan = KvAppend::default().plan(m.plan, shape)?;
    let [k, v] = [0; 2].map(|_| m.f32([1, 2, 2, 8]));
    let [k_pages, v_pages] = [0; 2].map(|_| m.f32([3, 4, 2, 8]));
    let args = KvAppendArgs {
        k: k.view(),
        v: v.view(),
        k_pages: k_pages.view(),
        v_pages: v_pages.view(),
        first: &[1],
        page_table: &[0, 1, 2],
    };
    plan.encode(m.ctx, encoder, &args)
}

fn triple(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = TripleShape {
        batch: 1,
        seq_q: 3,
        seq_1: 4,
        seq_2: 4,
        heads: 2,
        heads_kv: 2,
        head_dim: 8,
        head_dim_v: 8,
    };
    let plan = TripleAttention::default().plan(m.plan, shape)?;
    let [q, o] = [0; 2].map(|_| m.f32([1, 3, 2, 8]));
    let [k1, k2, v1, v2] = [0; 4].map(|_| m.f32([1, 4, 2, 8]));
    let lse = m.f32([1, 2, 3]);
    let args = TripleArgs {
        q: q.view(),
        k1: k1.view(),
        k2: k2.view(),
        v1: v1.view(),
        v2: v2.view(),
        o: o.view(),
        lse: Some(lse.view()),
    };
    plan.encode(m.ctx, encoder, &args)
}

/// The plan owns the decays.
fn linear(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = LinearAttentionShape::new(1, 20, 2, 8, 8);
    let options = LinearAttention {
        decay: Decay::PerHead(vec![-0.1, -0.2]),
        normalize: Normalize::Eps(1.0),
        feature_map: FeatureMap::EluPlusOne,
        form: Form::ChunkParallel,
        ..Default::default()
    };
    let plan = options.plan(m.plan, shape)?;
    let [q, k, v, o] = [0; 4].map(|_| m.f32([1, 20, 2, 8]));
    let [first, last] = [0; 2].map(|_| m.f32([1, 2, 8, 8]));
    let [first_sum, last_sum] = [0; 2].map(|_| m.f32([1, 2, 8]));
    let scratch = m.scratch(plan.scratch_bytes());
    let args = LinearAttentionArgs {
        initial_state: Some(first.view()),
        final_state: Some(last.view()),
        initial_key_sum: Some(first_sum.view()),
        final_key_sum: Some(last_sum.view()),
        scratch: Some(scratch.buffer()),
        ..LinearAttentionArgs::new(q.view(), k.view(), v.view(), o.view())
    };
    plan.encode(m.ctx, encoder, &args)
}

fn gated(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = LinearAttentionShape::new(1, 20, 2, 8, 8);
    let options =
        LinearAttention { decay: Decay::PerToken, update: Update::Delta, ..Default::default() };
    let plan = options.plan(m.plan, shape)?;
    let [q, k, v, o] = [0; 4].map(|_| m.f32([1, 20, 2, 8]));
    let [gates, beta] = [0; 2].map(|_| m.f32([1, 20, 2, 1]));
    let args = LinearAttentionArgs {
        gates: Some(gates.view()),
        beta: Some(beta.view()),
        ..LinearAttentionArgs::new(q.view(), k.view(), v.view(), o.view())
    };
    plan.encode(m.ctx, encoder, &args)
}

fn state(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = LinearAttentionShape::new(1, 20, 2, 8, 8);
    let plan = LinearAttention::default().plan_state(m.plan, shape)?;
    let [k, v] = [0; 2].map(|_| m.f32([1, 20, 2, 8]));
    let state = m.f32([1, 2, 8, 8]);
    plan.encode(m.ctx, encoder, &StateArgs::new(k.view(), v.view(), state.view()))
}

fn channel(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = ChannelAttentionShape { batch: 1, tokens: 5, heads: 2, channels: 8 };
    let plan = ChannelAttention::default().plan(m.plan, shape)?;
    let [q, k, v, o] = [0; 4].map(|_| m.f32([1, 5, 2, 8]));
    let scratch = m.scratch(plan.scratch_bytes());
    let args = ChannelAttentionArgs {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        o: o.view(),
        scratch: Some(scratch.buffer()),
    };
    plan.encode(m.ctx, encoder, &args)
}

fn relative(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = RelativeAttentionShape { batch: 1, seq: 5, heads: 2, key_dim: 4, value_dim: 4 };
    let options = RelativeAttention { features: RelativeFeatures::Random(4), ..Default::default() };
    let plan = options.plan(m.plan, shape)?;
    let [q, k, v, o] = [0; 4].map(|_| m.f32([1, 5, 2, 4]));
    let (b, w) = (m.f32([2, 9]), m.f32([2, 4, 4]));
    let scratch = m.scratch(plan.scratch_bytes());
    let args = RelativeAttentionArgs {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        b: b.view(),
        w: Some(w.view()),
        o: o.view(),
        scratch: Some(scratch.buffer()),
    };
    plan.encode(m.ctx, encoder, &args)
}

fn neighborhood(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let shape = NeighborhoodShape {
        batch: 1,
        spatial: [6, 6],
        heads: 2,
        heads_kv: 2,
        head_dim: 8,
        head_dim_v: 8,
        extra_tokens: 3,
    };
    let options = NeighborhoodAttention {
        bias: RelativeBias::Factorised { scaled: true },
        ..NeighborhoodAttention::new([3, 3])
    };
    let plan = options.plan(m.plan, shape)?;
    let [q, k, v, o] = [0; 4].map(|_| m.f32([1, 6, 6, 2, 8]));
    let lse = m.f32([1, 6, 6, 2]);
    let [extra_k, extra_v] = [0; 2].map(|_| m.f32([1, 3, 2, 8]));
    let bias = m.f32(options.bias_shape(&shape).unwrap());
    let scratch = m.scratch(plan.scratch_bytes());
    let args = NeighborhoodArgs {
        lse: Some(lse.view().into()),
        extra_k: Some(extra_k.view()),
        extra_v: Some(extra_v.view()),
        bias: Some(bias.view()),
        scratch: Some(scratch.buffer()),
        ..NeighborhoodArgs::new(q.view(), k.view(), v.view(), o.view())
    };
    plan.encode(m.ctx, encoder, &args)
}

fn fft(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let plan = Fft { shape: [1, 1 << 14], ..Default::default() }.plan(m.plan, 1)?;
    let [input, output] = [0; 2].map(|_| m.f32([1, 1, 1 << 14, 2]));
    let scratch = m.scratch(plan.scratch_bytes());
    let scratch = Some(scratch.buffer());
    plan.encode(m.ctx, encoder, &FftArgs { input: input.view(), output: output.view(), scratch })
}

const FEW: GauntShape = GauntShape { batch: 2, channels: 3 };

fn product(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let plan = GauntTensorProduct::new(1, 1).plan(m.plan, FEW)?;
    let [x, y, z] = [0; 3].map(|_| m.f32([2, 3, 4]));
    let [weight1, weight2, weight_out] = [0; 3].map(|_| m.f32([3, 2]));
    let args = GauntArgs {
        weight1: Some(weight1.view()),
        weight2: Some(weight2.view()),
        weight_out: Some(weight_out.view()),
        ..GauntArgs::new(x.view(), y.view(), z.view())
    };
    plan.encode(m.ctx, encoder, &args)
}

fn many_body(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let options =
        GauntManyBody { factors: vec![(1, 1), (1, 2)], lmax_out: 1, ..Default::default() };
    let plan = options.plan(m.plan, FEW)?;
    let inputs = [0; 2].map(|_| m.f32([2, 3, 4]));
    let z = m.f32([2, 3, 4]);
    let inputs = inputs.each_ref().map(Tensor::view);
    let args = GauntManyBodyArgs { inputs: &inputs, z: z.view(), scratch: None };
    plan.encode(m.ctx, encoder, &args)
}

fn convolution(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let options = GauntConvolution { lmax1: 1, lmax2: 1, lmax_out: 1, ..Default::default() };
    let graph = Graph { nodes: 2, edges: &[[1, 0], [0, 1]] };
    let plan = options.plan(m.plan, graph, 3)?;
    let (x, r, filter) = (m.f32([2, 3, 4]), m.f32([2, 3]), m.f32([2, 3, 2]));
    let (y, messages, out) = (m.f32([2, 4]), m.f32([2, 3, 4]), m.f32([2, 3, 4]));
    let args = GauntConvolutionArgs {
        x: x.view(),
        r: r.view(),
        filter: filter.view(),
        y: y.view(),
        messages: messages.view(),
        out: Some(out.view()),
        scratch: None,
    };
    plan.encode(m.ctx, encoder, &args)
}

fn harmonics(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let plan = SphericalHarmonics { lmax: 1, ..Default::default() }.plan(m.plan, 5)?;
    let (r, y, weight) = (m.f32([5, 3]), m.f32([5, 4]), m.f32([5, 2]));
    let args = SphericalHarmonicsArgs { r: r.view(), y: y.view(), weight: Some(weight.view()) };
    plan.encode(m.ctx, encoder, &args)
}

fn clebsch_gordan(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let irreps = Irreps::spherical_harmonics(1);
    let options = ClebschGordan { irreps1: irreps.clone(), irreps2: irreps, ..Default::default() };
    let plan = options.plan(m.plan, 2)?;
    let [x, y, z] = plan.dims().map(|n| m.f32([2, n]));
    plan.encode(m.ctx, encoder, x.view(), y.view(), z.view())
}

fn weighted(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let irreps = Irreps::spherical_harmonics(1);
    let options =
        WeightedTensorProduct::fully_connected(irreps.clone(), irreps.clone(), irreps.clone());
    let plan = options.plan(m.plan, 2)?;
    let [x, y, z] = plan.dims().map(|n| m.f32([2, n]));
    let (w, scratch) = (m.f32([2, plan.weights()]), m.scratch(plan.scratch_bytes()));
    let args = WeightedTensorProductArgs {
        x: x.view(),
        y: y.view(),
        w: w.view(),
        z: z.view(),
        scratch: Some(scratch.buffer()),
    };
    plan.encode(m.ctx, encoder, &args)
}

fn grid(m: &Maker<'_>) -> Result<(SphereGridPlan, Tensor<3>, Tensor<4>, Tensor<1>)> {
    let plan = SphereGrid { lmax: 1, n_beta: 3, n_alpha: 4, dtype: DType::F32 };
    let plan = plan.plan(m.plan, FEW)?;
    let scratch = m.scratch(plan.scratch_bytes());
    Ok((plan, m.f32([2, 3, 4]), m.f32([2, 3, 3, 4]), scratch))
}

fn to_grid(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let (plan, x, f, scratch) = grid(m)?;
    let mut pass = encoder.begin_compute_pass(&Default::default());
    plan.sh_to_grid(m.ctx, &mut pass, x.view(), f.view(), scratch.buffer())
}

fn from_grid(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let (plan, x, f, scratch) = grid(m)?;
    let mut pass = encoder.begin_compute_pass(&Default::default());
    plan.grid_to_sh(m.ctx, &mut pass, f.view(), x.view(), scratch.buffer())
}

fn to_fourier(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let plan = SphereFourier { lmax: 1, band: 1, dtype: DType::F32 }.plan(m.plan, FEW)?;
    let (x, c) = (m.f32([2, 3, 4]), m.f32([2, 3, 3, 3, 2]));
    let mut pass = encoder.begin_compute_pass(&Default::default());
    plan.sh_to_fourier(m.ctx, &mut pass, x.view(), c.view())
}

fn from_fourier(m: &Maker<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    let plan = SphereFourier { lmax: 1, band: 1, dtype: DType::F32 }.plan(m.plan, FEW)?;
    let (x, c) = (m.f32([2, 3, 4]), m.f32([2, 3, 3, 3, 2]));
    let mut pass = encoder.begin_compute_pass(&Default::default());
    plan.fourier_to_sh(m.ctx, &mut pass, c.view(), x.view())
}

/// That `result` is the refusal, naming both devices.
fn refused<T: std::fmt::Debug>(result: Result<T>, what: &str) -> (&'static str, &'static str) {
    match result {
        Err(Error::OtherContext { op, what: argument, owner, given }) => {
            assert!(!op.is_empty() && !argument.is_empty(), "{what}");
            assert_ne!(owner, given, "{what}");
            assert!(given.starts_with("device "), "{what}: {given}");
            (op, argument)
        }
        other => panic!("{what}: {other:?}"),
    }
}

/// Every operator refuses each of its tensors, and its plan, of another device: here of another
/// instance of wgpu, whose buffers have the same numbers.
#[test]
fn every_operator_refuses_what_is_not_its_contexts() {
    let (a, b) = (noop(), noop());
    assert!(!a.same_device(&b) && a.same_device(&a.clone()));
    for (name, call) in CALLS {
        let run = |stranger, plan: &Context| {
            let made = Cell::new(0);
            let maker = Maker { ctx: &a, other: &b, stranger, plan, made };
            let mut encoder = a.device.create_command_encoder(&Default::default());
            let result = call(&maker, &mut encoder);
            let scope = a.device.push_error_scope(wgpu::ErrorFilter::Validation);
            a.queue.submit([encoder.finish()]);
            let complaint = pollster::block_on(scope.pop());
            assert!(complaint.is_none(), "{name}: {complaint:?}");
            (result, maker.made.get())
        };
        let (result, tensors) = run(None, &a);
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut seen = BTreeSet::new();
        for stranger in 0..tensors {
            let what = format!("{name}, tensor {stranger} of {tensors}");
            seen.insert(refused(run(Some(stranger), &a).0, &what).1);
        }
        // each by its own name
        assert_eq!(seen.len(), tensors, "{name}: {seen:?}");
        let (_, what) = refused(run(None, &b).0, &format!("{name}, its plan"));
        assert_eq!(what, "the plan", "{name}");
    }
}

/// No type that is encoded is missing above.
#[test]
fn every_plan_of_the_crate_is_among_them() {
    fn plans(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                plans(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for line in text.lines() {
                let Some(rest) = line.strip_prefix("pub struct ") else { continue };
                let name = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap();
                if name.ends_with("Plan") {
                    found.insert(name.to_owned());
                }
            }
        }
    }
    let mut found = BTreeSet::new();
    plans(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let called: BTreeSet<String> = CALLS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(called, found);
}

/// A plan that was made without a device, and clones and other views of a context, go with all.
#[test]
fn contexts_of_one_device_belong_together() {
    let a = noop();
    let adopted = [0; 2].map(|_| Context::from_wgpu(a.device.clone(), a.queue.clone()));
    let others = [
        a.clone(),
        a.with_caps(tilewise::Caps::minimum()),
        a.with_tier(tilewise::Tier::Portable).unwrap(),
        a.with_tuning(tilewise::Tuning::default()),
    ];
    for other in adopted.iter().chain(&others) {
        assert!(a.same_device(other) && other.same_device(&adopted[0]));
        for (name, call) in &CALLS[..6] {
            for stranger in [None, Some(0), Some(2)] {
                let made = Cell::new(0);
                let maker = Maker { ctx: &a, other, stranger, plan: other, made };
                let mut encoder = a.device.create_command_encoder(&Default::default());
                call(&maker, &mut encoder).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
    }
    // two devices that wgpu calls equal
    let b = noop();
    assert_eq!(a.device, b.device);
    let foreign = Context::from_wgpu(b.device.clone(), b.queue.clone());
    assert!(foreign.same_device(&b) && !foreign.same_device(&a));
    let of_b = Tensor::<1>::zeros(&b, [4], DType::F32).unwrap();
    of_b.write(&foreign, &[1.0f32; 4]).unwrap();
    refused(of_b.write(&a, &[1.0f32; 4]), "write");

    let designed = Merge::default()
        .design(
            &tilewise::Caps::minimum(),
            MergeShape { parts: 1, batch: 1, seq: 1, heads: 1, head_dim_v: 4 },
        )
        .unwrap();
    for ctx in [&a, &b] {
        let zeros = |n| Tensor::<5>::zeros(ctx, [1, 1, 1, 1, n], DType::F32).unwrap();
        let (parts, lse) = (zeros(4), Tensor::zeros(ctx, [1; 4], DType::F32).unwrap());
        let o = Tensor::zeros(ctx, [1, 1, 1, 4], DType::F32).unwrap();
        let args =
            MergeArgs { o_parts: parts.view(), lse_parts: lse.view(), o: o.view(), lse: None };
        let mut encoder = ctx.device.create_command_encoder(&Default::default());
        designed.encode(ctx, &mut encoder, &args).unwrap();
    }
}

/// On every adapter, with data: nothing of the one device is read or written through the other.
#[test]
fn data_stays_with_its_device() {
    let open = || pollster::block_on(Context::adapters());
    for (first, second) in open().iter().zip(open()) {
        let name = first.get_info().name;
        let a = pollster::block_on(Context::from_adapter(first)).unwrap();
        let b = pollster::block_on(Context::from_adapter(&second)).unwrap();
        let shape = [1, 4, 1, 4];
        let on = |ctx: &Context, x: f32| Tensor::upload(ctx, shape, &[x; 16]).unwrap();
        let (ones, twos) = (on(&a, 1.0), on(&b, 2.0));
        assert_eq!(refused(twos.download::<f32>(&a), &name), ("download", "the tensor"));
        assert_eq!(
            refused(pollster::block_on(twos.download_async::<f32>(&a)), &name),
            ("download", "the tensor")
        );
        assert_eq!(
            refused(ones.write(&b, &[3.0f32; 16]), &name),
            ("tensor", "the tensor to write")
        );
        let attention = AttentionShape::self_attention(1, 4, 1, 4);
        let plan = WHOLE.plan(&a, attention).unwrap();
        let o = on(&a, 5.0);
        let encode = |plan: &AttentionPlan, args: &AttentionArgs<'_>| {
            common::run(&a, |encoder| plan.encode(&a, encoder, args))
        };
        let good = AttentionArgs::new(ones.view(), ones.view(), ones.view(), o.view());
        let bad = AttentionArgs { k: twos.view(), ..good };
        assert_eq!(refused(encode(&plan, &bad), &name), ("attention", "k"));
        assert_eq!(o.download::<f32>(&a).unwrap(), [5.0; 16], "{name}");

        // wgpu knows the devices of its buffers within one instance, which is all but OpenGL's
        let unfused = Attention { algorithm: AttentionAlgorithm::Unfused, ..Default::default() };
        let unfused = unfused.plan(&a, attention).unwrap();
        let raw = |ctx: &Context| {
            ctx.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("raw"),
                size: unfused.scratch_bytes().max(16),
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        };
        if first.get_info().backend != wgpu::Backend::Gl {
            let foreign = raw(&b);
            let bad = AttentionArgs { scratch: Some(&foreign), ..good };
            let mut encoder = a.device.create_command_encoder(&Default::default());
            let result = unfused.encode(&a, &mut encoder, &bad);
            assert_eq!(refused(result, &name), ("attention", "a buffer"));
            assert_eq!(o.download::<f32>(&a).unwrap(), [5.0; 16], "{name}");
        }
        let own = raw(&a);
        encode(&unfused, &AttentionArgs { scratch: Some(&own), ..good }).unwrap();
        assert_eq!(o.download::<f32>(&a).unwrap(), [1.0; 16], "{name}");
        encode(&plan, &good).unwrap();
        assert_eq!(o.download::<f32>(&a).unwrap(), [1.0; 16], "{name}");
        assert_eq!(ones.download::<f32>(&a).unwrap(), [1.0; 16], "{name}");
        assert_eq!(twos.download::<f32>(&b).unwrap(), [2.0; 16], "{name}");
    }
}

/// As many bytes as are asked for, or none; and none for another device's plan.
#[test]
fn plans_make_their_scratch() {
    let (a, b) = (noop(), noop());
    let check = |what: &str, need: u64, of: &dyn Fn(&Context) -> Result<Option<wgpu::Buffer>>| {
        let buffer = of(&a).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(buffer.is_some(), need > 0, "{what}: {need} bytes");
        if let Some(buffer) = buffer {
            assert!(buffer.size() >= need && buffer.size() < need + 16, "{what}");
            assert!(buffer.usage().contains(wgpu::BufferUsages::STORAGE), "{what}");
        }
        refused(of(&b), what);
    };
    let shape = AttentionShape::self_attention(1, 8, 2, 8);
    let plan = WHOLE.plan(&a, shape).unwrap();
    check("attention", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
    assert_eq!(plan.scratch_bytes(), 0);
    for options in [
        Attention { algorithm: AttentionAlgorithm::Unfused, ..WHOLE },
        Attention { split: Split::Keys(64), ..WHOLE },
    ] {
        let plan = options.plan(&a, AttentionShape { seq_k: 200, ..shape }).unwrap();
        assert!(plan.scratch_bytes() > 0);
        check("attention with scratch", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
    }
    for form in [Form::Recurrent, Form::ChunkParallel] {
        let shape = LinearAttentionShape::new(1, 200, 2, 8, 8);
        let options = LinearAttention { form, ..Default::default() };
        let plan = options.plan(&a, shape).unwrap();
        check("linear_attention", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
        let plan = options.plan_state(&a, shape).unwrap();
        check("state", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
    }
    let shape = ChannelAttentionShape { batch: 1, tokens: 5, heads: 2, channels: 8 };
    let plan = ChannelAttention::default().plan(&a, shape).unwrap();
    check("channel_attention", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
    for method in [RelativeMethod::Exact, RelativeMethod::Auto, RelativeMethod::Transform] {
        // more than is made exactly
        let seq = 200;
        let shape = RelativeAttentionShape { batch: 1, seq, heads: 2, key_dim: 4, value_dim: 4 };
        let plan = RelativeAttention { method, ..Default::default() }.plan(&a, shape).unwrap();
        check("relative_attention", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
    }
    for bias in [RelativeBias::None, RelativeBias::Factorised { scaled: true }] {
        let shape = NeighborhoodShape {
            batch: 1,
            spatial: [6, 6],
            heads: 2,
            heads_kv: 2,
            head_dim: 8,
            head_dim_v: 8,
            extra_tokens: 0,
        };
        let options = NeighborhoodAttention { bias, ..NeighborhoodAttention::new([3, 3]) };
        let plan = options.plan(&a, shape).unwrap();
        check("neighborhood", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
    }
    for n in [16, 1 << 14] {
        let plan = Fft { shape: [1, n], ..Default::default() }.plan(&a, 1).unwrap();
        check("fft", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
        check("fft in place", plan.scratch_bytes_in_place(), &|ctx| plan.scratch_in_place(ctx));
    }
    let plan = GauntTensorProduct::new(2, 2).plan(&a, FEW).unwrap();
    check("gaunt", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
    let plan = GauntManyBody::power(1, 2, 1).plan(&a, FEW).unwrap();
    check("many", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
    let irreps = Irreps::spherical_harmonics(1);
    let options = WeightedTensorProduct::fully_connected(irreps.clone(), irreps.clone(), irreps);
    let plan = options.plan(&a, 2).unwrap();
    check("weighted", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
    let options = GauntConvolution { lmax1: 1, lmax2: 1, lmax_out: 1, ..Default::default() };
    let plan = options.plan_messages(&a, 2, 3).unwrap();
    check("convolution", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
    let plan = SphereGrid { lmax: 1, n_beta: 3, n_alpha: 4, dtype: DType::F32 };
    let plan = plan.plan(&a, FEW).unwrap();
    check("grid", plan.scratch_bytes(), &|ctx| plan.scratch(ctx));
}

/// Parts of layouts, by the places of their elements; mistakes are refused by name.
#[test]
fn layouts_are_cut() {
    let whole = Layout { offset: 7, ..Layout::contiguous([2, 5, 3, 4]) };
    let all = common::indices(&whole);
    let at = |i: [usize; 4]| all[((i[0] * 5 + i[1]) * 3 + i[2]) * 4 + i[3]];
    for index in 0..3 {
        let one: Layout<3> = whole.select(2, index).unwrap();
        assert_eq!(one.shape, [2, 5, 4]);
        let places = common::indices(&one);
        for (flat, place) in places.iter().enumerate() {
            assert_eq!(*place, at([flat / 20, flat / 4 % 5, index as usize, flat % 4]));
        }
    }
    let some = whole.narrow(1, 2, 3).unwrap();
    assert_eq!(some.shape, [2, 3, 3, 4]);
    let places = common::indices(&some);
    for (flat, place) in places.iter().enumerate() {
        assert_eq!(*place, at([flat / 36, 2 + flat / 12 % 3, flat / 4 % 3, flat % 4]));
    }
    let apart: Layout<5> = whole.split(3, 2).unwrap();
    assert_eq!((apart.shape, apart.strides), ([2, 5, 3, 2, 2], [60, 12, 4, 2, 1]));
    assert_eq!(common::indices(&apart), all);
    assert_eq!(whole.with_strides([1, 2, 3, 4]).strides, [1, 2, 3, 4]);
    assert_eq!(whole.narrow(1, 5, 0).unwrap().end(), Some(0));

    let named = |result: Result<()>, want: &str| {
        assert_eq!(result.unwrap_err().to_string(), format!("layout: {want}"));
    };
    let none = |result: Result<Layout<4>>| result.map(drop);
    named(none(whole.narrow(4, 0, 1)), "axis: expected below 4, got 4");
    named(none(whole.narrow(1, 3, 3)), "range: expected within 0..5, got 3..6");
    named(
        none(whole.narrow(1, u32::MAX, 2)),
        "range: expected within 0..5, got 4294967295..4294967297",
    );
    named(whole.select::<3>(2, 3).map(drop), "index: expected below 3, got 3");
    named(whole.select::<2>(2, 0).map(drop), "axes of the result: expected 3, got 2");
    named(whole.select::<3>(9, 0).map(drop), "axis: expected below 4, got 9");
    named(whole.split::<5>(3, 3).map(drop), "parts: expected a divisor of 4, got 3");
    named(whole.split::<5>(3, 0).map(drop), "parts: expected a divisor of 4, got 0");
    named(whole.split::<4>(3, 2).map(drop), "axes of the result: expected 5, got 4");
    // a product that does not fit is refused where a view is made
    let ctx = noop();
    let tensor = Tensor::<1>::zeros(&ctx, [200], DType::F32).unwrap();
    let far = whole.with_strides([u64::MAX, 4, 4, 1]).narrow(0, 1, 1).unwrap();
    assert!(matches!(tensor.view_as(far), Err(Error::OutOfRange { .. })));
    for axes in [[0, 0, 1, 2], [0, 1, 2, 4], [usize::MAX, 1, 2, 3]] {
        let wrong = whole.permuted(axes).with_offset(0);
        assert!(matches!(tensor.view_as(wrong), Err(Error::OutOfRange { .. })), "{axes:?}");
    }
    tensor.view_as(whole.permuted([0, 2, 1, 3])).unwrap();
}

/// 16-bit tensors from and to f32: to the nearest, ties to even.
#[test]
fn values_are_rounded_to_nearest_even() {
    for device in common::devices() {
        let ctx = &device.ctx;
        let there = |dtype, x: &[f32]| {
            let n = [x.len() as u32];
            let tensor = Tensor::<1>::upload_f32(ctx, n, dtype, x).unwrap();
            assert_eq!(tensor.dtype(), dtype);
            tensor.download_f32(ctx).unwrap()
        };
        let ulp = |bits: i32| 2f32.powi(-bits);
        let ties = |bits: i32| {
            let u = ulp(bits);
            (
                vec![1.0 + 0.5 * u, 1.0 + 1.5 * u, -1.0 - 0.5 * u, 1.0 + 0.5625 * u, 0.25],
                vec![1.0, 1.0 + 2.0 * u, -1.0, 1.0 + u, 0.25],
            )
        };
        for (dtype, bits) in [(DType::F16, 10), (DType::BF16, 7)] {
            let (given, want) = ties(bits);
            assert_eq!(there(dtype, &given), want, "{} {dtype}", device.name);
        }
        assert_eq!(there(DType::F32, &[0.1, -0.0, 1e-40]), [0.1, -0.0, 1e-40]);
        assert_eq!(there(DType::I8, &[-1.25, 300.0, 2.75]), [-1.0, 127.0, 3.0]);
        assert_eq!(there(DType::U8, &[-1.25, 300.0, 2.75]), [0.0, 255.0, 3.0]);
        let halves = Tensor::upload(ctx, [3], &[f16::MAX, f16::ONE, f16::MIN]).unwrap();
        assert_eq!(halves.download_f32(ctx).unwrap(), [65504.0, 1.0, -65504.0]);
        let brains = Tensor::upload(ctx, [1], &[bf16::from_f32(3.0)]).unwrap();
        assert_eq!(
            pollster::block_on(async {
                let pending = brains.download_f32_async(ctx);
                let mut pending = std::pin::pin!(pending);
                loop {
                    let waker = std::task::Waker::noop();
                    let mut cx = std::task::Context::from_waker(waker);
                    match pending.as_mut().poll(&mut cx) {
                        std::task::Poll::Ready(values) => break values.unwrap(),
                        std::task::Poll::Pending => ctx.wait("test").unwrap(),
                    }
                }
            }),
            [3.0]
        );
        let short = Tensor::<1>::upload_f32(ctx, [3], DType::F16, &[1.0; 2]);
        assert!(matches!(short, Err(Error::Shape { .. })));
    }
}

/// One kernel more than are held: the oldest goes, and is compiled again when it is needed.
#[test]
fn kernels_beyond_the_limit_are_forgotten() {
    let ctx = Context::new_blocking().unwrap();
    let ctx = Context::from_wgpu(ctx.device.clone(), ctx.queue.clone());
    let clone = ctx.clone();
    let merge = |dim: u32| {
        let shape = MergeShape { parts: 2, batch: 1, seq: 1, heads: 1, head_dim_v: dim };
        Merge::default().plan(&ctx, shape).unwrap()
    };
    let result = |plan: &MergePlan, dim: u32| {
        let parts = Tensor::upload_f32(
            &ctx,
            [2, 1, 1, 1, dim],
            DType::F32,
            &(0..2 * dim).map(|i| if i < dim { 1.0 } else { 3.0 }).collect::<Vec<_>>(),
        );
        let (parts, o) = (parts.unwrap(), Tensor::zeros(&ctx, [1, 1, 1, dim], DType::F32).unwrap());
        let lse_parts = Tensor::zeros(&ctx, [2, 1, 1, 1], DType::F32).unwrap();
        let lse = Tensor::zeros(&ctx, [1, 1, 1], DType::F32).unwrap();
        let args = MergeArgs {
            o_parts: parts.view(),
            lse_parts: lse_parts.view(),
            o: o.view(),
            lse: Some(lse.view()),
        };
        let compiled = ctx.compile_ahead(|encoder| plan.encode(&ctx, encoder, &args)).unwrap();
        common::run(&ctx, |encoder| plan.encode(&ctx, encoder, &args)).unwrap();
        let (got, want) = (o.download_f32(&ctx).unwrap(), 2.0);
        assert!(got.iter().all(|x| (x - want).abs() < 1e-6), "{got:?}");
        compiled
    };
    let plans = [4, 8, 12].map(merge);
    assert_eq!(ctx.compiled_kernels(), 3);
    assert_eq!(result(&plans[2], 12), 0);
    let limited = ctx.with_kernel_limit(2);
    for held in [&ctx, &limited, &clone] {
        assert_eq!(held.compiled_kernels(), 2);
    }
    for _ in 0..2 {
        for (plan, dim) in plans.iter().zip([4, 8, 12]) {
            // in turn, each is the oldest when it is needed again
            assert_eq!(result(plan, dim), 1, "{dim}");
            assert_eq!(ctx.compiled_kernels(), 2);
        }
    }
    // texts stay
    assert_eq!(ctx.compiled_wgsl().len(), 3);
    ctx.forget_kernels();
    assert_eq!((ctx.compiled_kernels(), ctx.compiled_wgsl().len()), (0, 3));
    assert_eq!((result(&plans[0], 4), result(&plans[0], 4)), (1, 0));
    assert_eq!(ctx.compiled_kernels(), 1);
}

/// What wgpu refuses is told with the cause first and the kernel's label last.
#[test]
fn a_refusal_begins_with_its_cause() {
    let ctx = noop();
    let shape = MergeShape { parts: 1, batch: 1, seq: 1, heads: 1, head_dim_v: 4 };
    let plan = Merge::default().plan(&ctx, shape).unwrap();
    let parts = Tensor::zeros(&ctx, [1; 5].map(|n| n), DType::F32).unwrap();
    let parts = parts.view_as(Layout { shape: [1, 1, 1, 1, 4], ..Layout::contiguous([1; 5]) });
    // the buffer has room for four
    let parts = parts.unwrap();
    let lse = Tensor::zeros(&ctx, [1; 4], DType::F32).unwrap();
    let o = Tensor::zeros(&ctx, [1, 1, 1, 4], DType::F32).unwrap();
    o.buffer().destroy();
    let args = MergeArgs { o_parts: parts, lse_parts: lse.view(), o: o.view(), lse: None };
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    let error = plan.encode(&ctx, &mut encoder, &args).unwrap_err();
    let Error::Device { message, .. } = &error else { panic!("{error:?}") };
    assert!(message.starts_with("Buffer with 'tensor' label has been destroyed"), "{message}");
    assert!(message.contains("attention/merge:merge") && !message.contains('\n'), "{message}");
    let (cause, label) = (message.find("destroyed"), message.find("attention/merge:merge"));
    assert!(cause < label, "{message}");
}

/// Keys and values of a cache in one buffer: one after the other, and side by side; what is new
/// lies in the same buffer.
#[test]
fn a_cache_may_be_one_buffer() {
    for device in common::devices() {
        let ctx = &device.ctx;
        for dtype in [DType::F32, DType::F16] {
            for dim in [4u32, 3] {
                one_cache(ctx, dtype, dim, &format!("{}, {dtype}, {dim}", device.name));
            }
        }
    }
}

fn one_cache(ctx: &Context, dtype: DType, dim: u32, what: &str) {
    let (pages, size, heads, seq) = (3, 4, 2, 2);
    let shape = KvAppendShape {
        batch: 1,
        seq,
        heads_kv: heads,
        head_dim: dim,
        head_dim_v: dim,
        pages,
        page_size: size,
    };
    let plan = KvAppend { dtype }.plan(ctx, shape).unwrap();
    let new = Layout::contiguous([1, seq, heads, dim]);
    let cache = Layout::contiguous([pages, size, heads, dim]);
    let (new_len, cache_len) = (new.end().unwrap(), cache.end().unwrap());
    // k, v, then the cache: halves, and in turn
    let both = Layout::contiguous([pages, size, 2, heads, dim]);
    let start = 2 * new_len;
    let halves = [cache.with_offset(start), cache.with_offset(start + cache_len)];
    let turns = [0, 1].map(|i| both.with_offset(start).select(2, i).unwrap());
    for places in [halves, turns] {
        let length = (start + 2 * cache_len) as usize;
        let data: Vec<f32> =
            (0..length).map(|i| if (i as u64) < start { i as f32 + 1.0 } else { -1.0 }).collect();
        let arena = Tensor::<1>::upload_f32(ctx, [length as u32], dtype, &data).unwrap();
        let args = |k: Layout<4>, v: Layout<4>| KvAppendArgs {
            k: arena.view_as(new).unwrap(),
            v: arena.view_as(new.with_offset(new_len)).unwrap(),
            k_pages: arena.view_as(k).unwrap(),
            v_pages: arena.view_as(v).unwrap(),
            first: &[3],
            page_table: &[2, 0],
        };
        let [k, v] = places;
        common::run(ctx, |encoder| plan.encode(ctx, encoder, &args(k, v))).unwrap();
        let got = arena.download_f32(ctx).unwrap();
        let mut want = data.clone();
        // rows 3 and 4 of the sequence: the last of page 2, the first of page 0
        for (which, layout) in places.iter().enumerate() {
            let all = common::indices(layout);
            let row = (heads * dim) as usize;
            for (token, place) in [(0usize, 2 * size + size - 1), (1, 0)] {
                for c in 0..row {
                    want[all[place as usize * row + c]] =
                        data[which * new_len as usize + token * row + c];
                }
            }
        }
        assert_eq!(got, want, "{what}");
        // a word in common
        let off = if dtype == DType::F32 { 1 } else { 2 };
        let bad = [(k, k.with_offset(k.offset + off)), (k, k), (new, v)];
        for (k, v) in bad.into_iter().filter(|(k, _)| k.shape == cache.shape) {
            let refusal = common::run(ctx, |encoder| plan.encode(ctx, encoder, &args(k, v)));
            assert!(
                matches!(
                    refusal,
                    Err(Error::SharedBuffer { output: "v_pages", other: "k_pages", .. })
                ),
                "{what}: {refusal:?}"
            );
        }
        let onto = KvAppendArgs { v_pages: arena.view_as(cache).unwrap(), ..args(k, v) };
        let refusal = common::run(ctx, |encoder| plan.encode(ctx, encoder, &onto));
        assert!(matches!(refusal, Err(Error::SharedBuffer { .. })), "{what}: {refusal:?}");
        assert_eq!(arena.download_f32(ctx).unwrap(), want, "{what}");
    }
}

/// Outputs and LSE in one buffer, of each operator of the attention family.
#[test]
fn outputs_may_share_a_buffer() {
    for device in common::devices() {
        let ctx = &device.ctx;
        let (seq, heads, dim) = (5, 2, 8);
        let values = common::Rng(3).vec((seq * heads * dim) as usize);
        let x = Tensor::upload(ctx, [1, seq, heads, dim], &values).unwrap();
        let rows = Layout::contiguous([1, seq, heads, dim]);
        let sums = Layout::contiguous([1, heads, seq]);
        let end = rows.end().unwrap();
        let apart = Tensor::zeros(ctx, rows.shape, DType::F32).unwrap();
        let lse = Tensor::zeros(ctx, sums.shape, DType::F32).unwrap();
        let length = (end + sums.end().unwrap()) as u32;
        let plan = WHOLE.plan(ctx, AttentionShape::self_attention(1, seq, heads, dim)).unwrap();
        let arena =
            Tensor::upload(ctx, [length + 3], &vec![f32::NAN; length as usize + 3]).unwrap();
        let encode = |o: TensorView<'_, 4>, lse: TensorView<'_, 3>| {
            let args = AttentionArgs {
                lse: Some(lse),
                ..AttentionArgs::new(x.view(), x.view(), x.view(), o)
            };
            common::run(ctx, |encoder| plan.encode(ctx, encoder, &args))
        };
        let of = |offset| arena.view_as(sums.with_offset(offset)).unwrap();
        encode(apart.view(), lse.view()).unwrap();
        encode(arena.view_as(rows).unwrap(), of(end)).unwrap();
        let got: Vec<f32> = arena.download(ctx).unwrap();
        let mut want: Vec<f32> = apart.download(ctx).unwrap();
        want.extend(lse.download::<f32>(ctx).unwrap());
        assert_eq!(got[..length as usize], want, "{}", device.name);
        assert!(got[length as usize..].iter().all(|x| x.is_nan()), "{}", device.name);
        let refusal = encode(arena.view_as(rows).unwrap(), of(end - 1));
        assert!(
            matches!(refusal, Err(Error::SharedBuffer { output: "lse", other: "o", .. })),
            "{refusal:?}"
        );
        let said = refusal.unwrap_err().to_string();
        assert!(said.starts_with("attention: output lse shares its buffer with o; "), "{said}");
        // q, k and v beside the output, read as they were
        let packed = [&values[..], &values, &values].concat();
        let start = 3 * end;
        let mut all = packed.clone();
        all.resize((start + u64::from(length)) as usize, f32::NAN);
        let unfused = Attention { algorithm: AttentionAlgorithm::Unfused, ..WHOLE };
        let shape = AttentionShape::self_attention(1, seq, heads, dim);
        for (dtype, options) in [
            (DType::F32, WHOLE),
            (DType::F16, WHOLE),
            (DType::F32, unfused),
            (DType::F32, Attention { split: Split::Keys(64), ..WHOLE }),
        ] {
            let plan = Attention { dtype, ..options }.plan(ctx, shape).unwrap();
            let scratch = plan.scratch(ctx).unwrap();
            let arena = Tensor::<1>::upload_f32(ctx, [all.len() as u32], dtype, &all).unwrap();
            let rounded = Tensor::upload_f32(ctx, rows.shape, dtype, &values).unwrap();
            let apart = Tensor::zeros(ctx, rows.shape, dtype).unwrap();
            let encode = |q, k, v, o| {
                let scratch = scratch.as_ref();
                let args = AttentionArgs { scratch, ..AttentionArgs::new(q, k, v, o) };
                common::run(ctx, |encoder| plan.encode(ctx, encoder, &args))
            };
            let x = rounded.view();
            encode(x, x, x, apart.view()).unwrap();
            let want = apart.download_f32(ctx).unwrap();
            let part = |i: u64| arena.view_as(rows.with_offset(i * end)).unwrap();
            for (q, k, v) in
                [(part(0), part(1), part(2)), (part(0), x, x), (x, part(1), x), (x, x, part(2))]
            {
                encode(q, k, v, part(3)).unwrap();
                let got = arena.download_f32(ctx).unwrap();
                let o = &got[start as usize..(start + end) as usize];
                let error = common::rel_rms(o, &common::to_f64(&want));
                assert!(error < 2.0 * dtype.unit_roundoff(), "{}: {error:e}", device.name);
                assert_eq!(got[..start as usize], common::rounded(&packed, dtype));
            }
            let onto = encode(x, part(3), x, part(3));
            assert!(matches!(onto, Err(Error::SharedBuffer { output: "o", other: "k", .. })));
            let tail = arena.view_as(rows.with_offset(4 * end - 1));
            assert!(
                tail.is_err()
                    || matches!(
                        encode(x, x, tail.unwrap(), part(3)),
                        Err(Error::SharedBuffer { .. })
                    )
            );
        }
        // other inputs are only read, and outputs written
        let plan = Attention { bias: true, ..WHOLE }.plan(ctx, shape).unwrap();
        let bias = Layout::contiguous([1, heads, seq, seq]).with_offset(end);
        let arena = Tensor::<1>::zeros(ctx, [2 * end as u32], DType::F32).unwrap();
        let args = AttentionArgs {
            bias: Some(arena.view_as(bias).unwrap()),
            ..AttentionArgs::new(x.view(), x.view(), x.view(), arena.view_as(rows).unwrap())
        };
        let refusal = common::run(ctx, |encoder| plan.encode(ctx, encoder, &args));
        assert!(matches!(refusal, Err(Error::SharedBuffer { output: "o", other: "bias", .. })));
    }
}
