//! Linear attention: time for each token, share of the multiply-add peak measured in the same
//! run, and the decode rate. `cargo bench --bench linear_attention -- FILTER`.
//!
//! Two counts of flops are printed: what the recurrence needs at least, `4 K V` for each token and
//! head (write and read the state), and what the usual chunked form with chunks of 64 does,
//! `4 K V + 2 * 64 (K + V)`.

#[path = "../src/bin/tilewise/bench/cases.rs"]
mod cases;

use std::{cell::RefCell, time::Duration};

use criterion::{Criterion, Throughput};
use tilewise::{
    Context, DType, Layout, Tensor, TensorView,
    attention::{Attention, AttentionArgs, AttentionShape, CausalAlignment, Mask},
    linear_attention::{
        Decay, Form, LinearAttention, LinearAttentionArgs, LinearAttentionPlan,
        LinearAttentionShape, Update,
    },
    measure::{copy_rate, median, multiply_add_peak, time},
    wgpu,
};

struct Bench {
    ctx: Context,
    criterion: Criterion,
    peak: f64,
    /// Bytes read and written in a second by a kernel that copies.
    copy: f64,
    quick: bool,
}

/// Fixed pseudo-random values in -1..1.
fn values(n: usize) -> Vec<f32> {
    let mut x = 0x2545_f491u32;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            (x >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// Axis order in memory; operators see `[B, T, H, D]`.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    HeadsFirst,
    HeadsLast,
}

struct Rows {
    tensor: Tensor<4>,
    layout: Layout<4>,
}

impl Rows {
    fn new(ctx: &Context, order: Order, [b, t, h, d]: [u32; 4], map: impl Fn(f32) -> f32) -> Self {
        let (shape, layout) = match order {
            Order::HeadsLast => ([b, t, h, d], Layout::contiguous([b, t, h, d])),
            Order::HeadsFirst => {
                ([b, h, t, d], Layout::contiguous([b, h, t, d]).permuted([0, 2, 1, 3]))
            }
        };
        let n: usize = shape.iter().map(|&n| n as usize).product();
        let data: Vec<f32> = values(n).into_iter().map(map).collect();
        Self { tensor: Tensor::upload(ctx, shape, &data).unwrap(), layout }
    }

    fn view(&self) -> TensorView<'_, 4> {
        self.tensor.view_as(self.layout).unwrap()
    }
}

fn scratch(ctx: &Context, bytes: u64) -> wgpu::Buffer {
    ctx.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("scratch"),
        size: bytes.max(16),
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    })
}

/// Tensors of one problem, and its plan.
struct Problem {
    plan: LinearAttentionPlan,
    q: Rows,
    k: Rows,
    v: Rows,
    o: Rows,
    gates: Option<Rows>,
    beta: Option<Rows>,
    state: Option<Tensor<4>>,
    scratch: wgpu::Buffer,
}

impl Problem {
    fn new(
        ctx: &Context,
        op: &LinearAttention,
        s: LinearAttentionShape,
        order: Order,
        state: bool,
    ) -> Self {
        let dims = |d: u32| [s.batch, s.seq_k, s.heads, d];
        let keys = (s.key_dim as f32).sqrt().recip();
        let gate = |x: f32| -0.05 * (1.0 + x);
        let plan = op.plan(ctx, s).unwrap();
        Self {
            q: Rows::new(ctx, order, dims(s.key_dim), |x| x),
            k: Rows::new(ctx, order, dims(s.key_dim), |x| x * keys),
            v: Rows::new(ctx, order, dims(s.value_dim), |x| x),
            o: Rows::new(ctx, order, dims(s.value_dim), |_| f32::NAN),
            gates: match op.decay {
                Decay::PerToken => Some(Rows::new(ctx, order, dims(1), gate)),
                Decay::PerChannel => Some(Rows::new(ctx, order, dims(s.key_dim), gate)),
                _ => None,
            },
            beta: (op.update != Update::Add)
                .then(|| Rows::new(ctx, order, dims(1), |x| 0.5 + 0.5 * x)),
            state: state.then(|| {
                let shape = [s.batch, s.heads, s.key_dim, s.value_dim];
                Tensor::zeros(ctx, shape, DType::F32).unwrap()
            }),
            scratch: scratch(ctx, plan.scratch_bytes()),
            plan,
        }
    }

    fn encode(&self, ctx: &Context, pass: &mut wgpu::ComputePass<'_>) -> tilewise::Result<()> {
        let state = self.state.as_ref().map(Tensor::view);
        let args = LinearAttentionArgs {
            gates: self.gates.as_ref().map(Rows::view),
            beta: self.beta.as_ref().map(Rows::view),
            initial_state: state,
            final_state: state,
            scratch: Some(&self.scratch),
            ..LinearAttentionArgs::new(self.q.view(), self.k.view(), self.v.view(), self.o.view())
        };
        self.plan.encode_pass(ctx, pass, &args)
    }

    /// Downloads the output: the answer is finite and not all zero.
    fn check(&self, ctx: &Context) {
        time(ctx, 1, |pass| self.encode(ctx, pass)).unwrap();
        let o: Vec<f32> = self.o.tensor.download(ctx).unwrap();
        assert!(o.iter().all(|x| x.is_finite()) && o.iter().any(|x| *x != 0.0));
    }
}

impl Bench {
    /// Median seconds of `encode`, through criterion.
    fn run(
        &mut self,
        id: &str,
        tokens: u64,
        encode: impl Fn(&mut wgpu::ComputePass<'_>) -> tilewise::Result<()>,
    ) -> Option<f64> {
        let samples = RefCell::new(Vec::new());
        let ctx = &self.ctx;
        let mut group = self.criterion.benchmark_group("linear_attention");
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(500));
        group.throughput(Throughput::Elements(tokens));
        group.bench_function(id, |b| {
            b.iter_custom(|n| {
                let mut total = Duration::ZERO;
                for _ in 0..n {
                    let t = time(ctx, 1, &encode).unwrap().seconds;
                    samples.borrow_mut().push(t);
                    total += Duration::from_secs_f64(t);
                }
                total
            });
        });
        group.finish();
        let mut samples = samples.into_inner();
        (!samples.is_empty()).then(|| median(&mut samples))
    }

    fn prefill(
        &mut self,
        name: &str,
        op: &LinearAttention,
        s: LinearAttentionShape,
        order: Order,
    ) -> Option<f64> {
        let axes = if order == Order::HeadsFirst { "bhtd" } else { "bthd" };
        let id = format!(
            "{name}/{axes}/b{}_h{}_t{}_k{}_v{}",
            s.batch, s.heads, s.seq_k, s.key_dim, s.value_dim
        );
        if !self.wanted(&id) {
            return None;
        }
        let ctx = self.ctx.clone();
        let carried = name.starts_with("carried/");
        let problem = Problem::new(&ctx, op, s, order, carried);
        problem.check(&ctx);
        let heads = u64::from(s.batch) * u64::from(s.heads);
        let tokens = heads * u64::from(s.seq_k);
        let seconds = self.run(&id, tokens, |pass| problem.encode(&ctx, pass))?;
        let (k, v, n) = (f64::from(s.key_dim), f64::from(s.value_dim), tokens as f64);
        let state = 4.0 * k * v * n / seconds;
        let chunked = (4.0 * k * v + 128.0 * (k + v)) * n / seconds;
        println!(
            "  {:.2} ms, {:.0} ns for each token and head; 4KV {:.1} GFLOP/s = {:.1} % of peak, chunk-64 count {:.1} GFLOP/s = {:.1} %; {} segments, scratch {:.2} MB",
            seconds * 1e3,
            seconds / n * 1e9,
            state * 1e-9,
            100.0 * state / self.peak,
            chunked * 1e-9,
            100.0 * chunked / self.peak,
            problem.plan.segments(),
            problem.plan.scratch_bytes() as f64 * 1e-6,
        );
        Some(seconds)
    }

    fn decode(&mut self, name: &str, op: &LinearAttention, sequences: u32, heads: u32, dim: u32) {
        let s = LinearAttentionShape::new(sequences, 1, heads, dim, dim);
        let id = format!("decode/{name}/b{sequences}_h{heads}_k{dim}_v{dim}");
        if !self.wanted(&id) {
            return;
        }
        let ctx = self.ctx.clone();
        let problem = Problem::new(&ctx, op, s, Order::HeadsLast, true);
        problem.check(&ctx);
        let Some(seconds) = self.run(&id, sequences.into(), |pass| problem.encode(&ctx, pass))
        else {
            return;
        };
        let pairs = f64::from(sequences) * f64::from(heads);
        let d = f64::from(dim);
        let bytes = pairs * (2.0 * d * d + 5.0 * d) * 4.0;
        println!(
            "  {:.0} us a step, {:.0} tokens/s, {:.2} GB/s of states, rows and outputs = {:.0} % of a copy",
            seconds * 1e6,
            f64::from(sequences) / seconds,
            bytes / seconds * 1e-9,
            100.0 * bytes / seconds / self.copy
        );
    }

    fn flash(&mut self, t: u32, h: u32, d: u32) -> Option<f64> {
        let id = format!("flash_causal/bhtd/b1_h{h}_t{t}_k{d}_v{d}");
        if !self.wanted(&id) {
            return None;
        }
        let ctx = self.ctx.clone();
        let mask = Mask::Causal(CausalAlignment::BottomRight);
        let plan = Attention { mask, ..Default::default() }
            .plan(&ctx, AttentionShape::self_attention(1, t, h, d))
            .unwrap();
        let [q, k, v, o] = [0; 4].map(|_| Rows::new(&ctx, Order::HeadsFirst, [1, t, h, d], |x| x));
        let args = AttentionArgs::new(q.view(), k.view(), v.view(), o.view());
        let seconds = if t > 8192 {
            // seconds a run: criterion's ten samples would take minutes
            let mut samples: Vec<f64> = (0..3)
                .map(|_| time(&ctx, 1, |pass| plan.encode_pass(&ctx, pass, &args)).unwrap().seconds)
                .collect();
            median(&mut samples)
        } else {
            self.run(&id, (t * h).into(), |pass| plan.encode_pass(&ctx, pass, &args))?
        };
        println!("  {id}: {:.2} ms", seconds * 1e3);
        Some(seconds)
    }

    /// Whether the command line asks for this id: criterion's own filter comes too late to spare
    /// the uploads.
    fn wanted(&self, id: &str) -> bool {
        let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
        filter.is_none_or(|f| f.split(',').any(|f| id.contains(f)))
    }
}

fn main() {
    let ctx = Context::new_blocking().expect("a device");
    // `cargo test --benches`: each case once, small
    let quick = !std::env::args().any(|a| a == "--bench");
    let peak = multiply_add_peak(&ctx).expect("the peak");
    let copy = copy_rate(&ctx).expect("the rate of a copy");
    let info = ctx.device.adapter_info();
    println!(
        "{} ({} {}), {}; multiply-add peak {:.1} GFLOP/s, copy {:.2} GB/s",
        info.name,
        info.driver,
        info.driver_info,
        ctx.caps.tier,
        peak * 1e-9,
        copy * 1e-9
    );
    let criterion = Criterion::default().without_plots().configure_from_args();
    let mut bench = Bench { ctx, criterion, peak, copy, quick };

    let lightning = |heads: u32| LinearAttention {
        decay: Decay::lightning(3, 24, heads).expect("heads"),
        form: Form::ChunkLoop,
        ..Default::default()
    };
    let gla = |k: u32| LinearAttention {
        decay: Decay::PerChannel,
        scale: (k as f32).sqrt().recip(),
        form: Form::ChunkLoop,
        ..Default::default()
    };
    let mut lengths = if bench.quick { vec![64] } else { cases::LINEAR_LENGTHS.to_vec() };
    if !bench.quick {
        lengths.push(65_536);
    }
    for (heads, dim) in [(8, 64), (4, 128)] {
        for order in [Order::HeadsFirst, Order::HeadsLast] {
            for &t in &lengths {
                let s = LinearAttentionShape::new(1, t, heads, dim, dim);
                bench.prefill("lightning", &lightning(heads), s, order);
                bench.prefill("gla", &gla(dim), s, order);
            }
        }
        let t = if bench.quick { 64 } else { 4096 };
        let s = LinearAttentionShape::new(1, t, heads, dim, dim);
        let first = Order::HeadsFirst;
        let with =
            |form, chunk_size, op: LinearAttention| LinearAttention { form, chunk_size, ..op };
        let simple = LinearAttention { decay: Decay::PerToken, ..lightning(heads) };
        bench.prefill("simple_gla", &simple, s, first);
        bench.prefill("carried/lightning", &lightning(heads), s, first);
        bench.prefill(
            "parallel/lightning",
            &with(Form::ChunkParallel, None, lightning(heads)),
            s,
            first,
        );
        bench.prefill("parallel/gla", &with(Form::ChunkParallel, None, gla(dim)), s, first);
        bench.prefill(
            "chunk8/lightning",
            &with(Form::ChunkLoop, Some(8), lightning(heads)),
            s,
            first,
        );
        bench.prefill("chunk8/gla", &with(Form::ChunkLoop, Some(8), gla(dim)), s, first);
        bench.prefill(
            "delta",
            &LinearAttention {
                update: Update::Delta,
                ..LinearAttention { decay: Decay::None, ..simple.clone() }
            },
            s,
            first,
        );
        bench.prefill(
            "gated_delta",
            &LinearAttention { update: Update::Delta, ..simple },
            s,
            first,
        );
        let one = LinearAttentionShape::new(1, t, 1, dim, dim);
        bench.prefill("auto_one_head/gla", &with(Form::Auto, None, gla(dim)), one, first);
        bench.prefill("loop_one_head/gla", &gla(dim), one, first);
        let s = LinearAttentionShape { seq_q: t / 4, seq_k: t / 4, ..s };
        bench.prefill(
            "recurrent/lightning",
            &with(Form::Recurrent, None, lightning(heads)),
            s,
            first,
        );
        bench.prefill("recurrent/gla", &with(Form::Recurrent, None, gla(dim)), s, first);
        for sequences in [1, 8, 64] {
            bench.decode(
                "gla",
                &LinearAttention { form: Form::Auto, ..gla(dim) },
                sequences,
                heads,
                dim,
            );
        }
        let lengths: &[u32] = if bench.quick { &[64] } else { &[4096, 16384] };
        for &t in lengths {
            let s = LinearAttentionShape::new(1, t, heads, dim, dim);
            if let Some(flash) = bench.flash(t, heads, dim)
                && let Some(linear) =
                    bench.prefill("vs_flash/lightning", &lightning(heads), s, first)
            {
                println!(
                    "  causal flash attention takes {:.1} times as long at {t} tokens",
                    flash / linear
                );
            }
        }
    }
    let again = multiply_add_peak(&bench.ctx).expect("the peak");
    println!("multiply-add peak at the end {:.1} GFLOP/s", again * 1e-9);
    bench.criterion.final_summary();
}
