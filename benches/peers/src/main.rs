//! Attention of other crates beside this crate's: one adapter, one run, interleaved, wall clock from
//! submission to an idle device, medians. Every result is compared with the others' first.
//! burn's tensors are [batch, heads, rows, dim]; ours are [batch, rows, heads, dim], and, as "heads
//! first", views of its order.
//! `cargo run --release --manifest-path benches/peers/Cargo.toml [-- [--quick] [HEAD_DIM | full | causal | decode]]`
#![allow(clippy::cast_possible_truncation, reason = "sizes are small")]

use std::time::Instant;

use burn::tensor::{
    Device, DeviceKind, Tensor as BurnTensor, TensorData,
    module::{attention, attention_fallback},
    ops::AttentionModuleOptions,
};
use tilewise::{
    Context, DType, Layout, Tensor, Tier,
    attention::{Attention, AttentionArgs, AttentionShape, CausalAlignment, Mask},
    measure::{median, values},
    wgpu,
};

type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

/// `[batch, heads, rows, dim]` to `[batch, rows, heads, dim]`.
fn exchange(x: &[f32], [heads, rows, dim]: [usize; 3]) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for batch in x.chunks(heads * rows * dim) {
        for row in 0..rows {
            for head in 0..heads {
                out.extend_from_slice(&batch[(head * rows + row) * dim..][..dim]);
            }
        }
    }
    out
}

fn distance(got: &[f32], want: &[f32]) -> f64 {
    let (error, size) = got.iter().zip(want).fold((0f64, 0f64), |(e, n), (g, w)| {
        (e + f64::from(g - w).powi(2), n + f64::from(*w).powi(2))
    });
    (error / size).sqrt()
}

/// One contestant: runs once and waits for the device.
struct Runner<'a> {
    name: &'a str,
    run: Box<dyn FnMut() -> AnyResult<()> + 'a>,
    /// The output, `[batch, rows, heads, dim]`.
    read: Box<dyn Fn() -> AnyResult<Vec<f32>> + 'a>,
}

fn ours<'a>(
    name: &'a str,
    ctx: &'a Context,
    shape: AttentionShape,
    causal: bool,
    heads_first: bool,
    data: &'a [Vec<f32>; 3],
) -> AnyResult<Runner<'a>> {
    let upload = |x: &[f32], rows: u32| {
        let [h, n, d] = [shape.heads, rows, shape.head_dim].map(|n| n as usize);
        if heads_first {
            return Tensor::upload(ctx, [shape.batch, shape.heads, rows, shape.head_dim], x);
        }
        Tensor::upload(
            ctx,
            [shape.batch, rows, shape.heads, shape.head_dim],
            &exchange(x, [h, n, d]),
        )
    };
    let q = upload(&data[0], shape.seq_q)?;
    let (k, v) = (upload(&data[1], shape.seq_k)?, upload(&data[2], shape.seq_k)?);
    let dims = [shape.batch, shape.seq_q, shape.heads, shape.head_dim];
    let o = std::rc::Rc::new(Tensor::zeros(ctx, dims, DType::F32)?);
    let out = o.clone();
    let mask = if causal { Mask::Causal(CausalAlignment::BottomRight) } else { Mask::None };
    let mut planned = None;
    let run = move || -> AnyResult<()> {
        // the first call compiles
        if planned.is_none() {
            let plan = Attention { mask, ..Default::default() }.plan(ctx, shape)?;
            let scratch = Tensor::<1>::zeros(ctx, [plan.scratch_bytes() as u32 / 4], DType::F32)?;
            planned = Some((plan, scratch));
        }
        let Some((plan, scratch)) = &planned else { return Ok(()) };
        let mut encoder = ctx.device.create_command_encoder(&Default::default());
        let views = [&q, &k, &v].map(|x| match heads_first {
            true => x.view_as(Layout::contiguous(x.shape()).permuted([0, 2, 1, 3])),
            false => Ok(x.view()),
        });
        let [q, k, v] = views;
        let args = AttentionArgs {
            scratch: (plan.scratch_bytes() > 0).then_some(scratch.buffer()),
            ..AttentionArgs::new(q?, k?, v?, o.view())
        };
        plan.encode(ctx, &mut encoder, &args)?;
        ctx.queue.submit([encoder.finish()]);
        ctx.device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(())
    };
    Ok(Runner { name, run: Box::new(run), read: Box::new(move || Ok(out.download(ctx)?)) })
}

fn burns<'a>(
    name: &'a str,
    device: &'a Device,
    shape: AttentionShape,
    causal: bool,
    plain: bool,
    data: &'a [Vec<f32>; 3],
) -> Runner<'a> {
    let dims = [shape.heads, shape.seq_q, shape.head_dim].map(|n| n as usize);
    let upload = |x: &[f32], rows: u32| {
        let dims = [shape.batch, shape.heads, rows, shape.head_dim].map(|n| n as usize);
        BurnTensor::<4>::from_data(TensorData::new(x.to_vec(), dims), device)
    };
    let q = upload(&data[0], shape.seq_q);
    let (k, v) = (upload(&data[1], shape.seq_k), upload(&data[2], shape.seq_k));
    let options = AttentionModuleOptions { is_causal: causal, ..Default::default() };
    let out = std::rc::Rc::new(std::cell::RefCell::new(None));
    let kept = out.clone();
    let run = move || -> AnyResult<()> {
        let (q, k, v) = (q.clone(), k.clone(), v.clone());
        let o = if plain {
            attention_fallback(q, k, v, None, None, options)
        } else {
            attention(q, k, v, None, None, options)
        };
        device.sync().map_err(|e| format!("{e:?}"))?;
        *out.borrow_mut() = Some(o);
        Ok(())
    };
    let read = move || -> AnyResult<Vec<f32>> {
        let o: BurnTensor<4> = kept.borrow().clone().ok_or("nothing was run")?;
        let o = o.try_into_data().map_err(|e| format!("{e:?}"))?;
        let o: Vec<f32> = o.try_to_vec().map_err(|e| format!("{e:?}"))?;
        Ok(exchange(&o, dims))
    };
    Runner { name, run: Box::new(run), read: Box::new(read) }
}

fn main() -> AnyResult<()> {
    let quick = std::env::args().any(|a| a == "--quick");
    let subgroup = Context::new_blocking()?.with_tier(Tier::Subgroup)?;
    let portable = subgroup.with_tier(Tier::Portable)?;
    let info = subgroup.device.adapter_info();
    println!("{} ({}), {} {}", info.name, info.backend, info.driver, info.driver_info);
    let device = Device::wgpu(if info.device_type == wgpu::DeviceType::Cpu {
        DeviceKind::Cpu
    } else {
        DeviceKind::DefaultDevice
    });
    println!("burn's device: {device:?}");
    println!(
        "{:>22} {:>7} {:>21} {:>10} {:>9} {:>10} {:>9}",
        "[b, heads, n, d]", "", "", "first s", "ms", "x subgroup", "error"
    );

    let prefill = |heads, n, dim| AttentionShape::self_attention(1, n, heads, dim);
    // burn has no grouped heads: as many of keys as of queries
    let decode = |batch, n| AttentionShape { batch, seq_q: 1, ..prefill(8, n, 128) };
    let shapes = if quick {
        vec![prefill(2, 64, 16), decode(2, 64)]
    } else {
        let small = [512, 1024, 2048].map(|n| prefill(8, n, 64));
        [&small[..], &[prefill(16, 2048, 128), decode(8, 4096)]].concat()
    };
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    for shape in shapes {
        let kinds: &[&str] = if shape.seq_q == 1 { &["decode"] } else { &["full", "causal"] };
        let wanted = |kind: &str| {
            only.as_ref().is_none_or(|only| *only == shape.head_dim.to_string() || only == kind)
        };
        if !kinds.iter().any(|kind| wanted(kind)) {
            continue;
        }
        let s = shape;
        let count = |rows: u32| (s.batch * s.heads * rows * s.head_dim) as usize;
        let data = [(1, s.seq_q), (2, s.seq_k), (3, s.seq_k)]
            .map(|(seed, rows)| values(count(rows), seed));
        for kind in kinds.iter().filter(|kind| wanted(kind)) {
            let causal = *kind == "causal";
            let mut runners = vec![
                ours("tilewise subgroup", &subgroup, shape, causal, false, &data)?,
                ours("tilewise portable", &portable, shape, causal, false, &data)?,
                ours("subgroup, heads first", &subgroup, shape, causal, true, &data)?,
                ours("portable, heads first", &portable, shape, causal, true, &data)?,
                burns("burn attention", &device, shape, causal, false, &data),
                burns("burn plain tensors", &device, shape, causal, true, &data),
            ];
            let label = format!("[{}, {}, {}, {}]", s.batch, s.heads, s.seq_k, s.head_dim);
            let mut firsts = Vec::new();
            let mut outputs: Vec<Vec<f32>> = Vec::new();
            // one that fails is out of it; the others go on
            runners.retain_mut(|runner| {
                let started = Instant::now();
                let ran = (runner.run)();
                let first = started.elapsed().as_secs_f64();
                match ran.and_then(|()| (runner.read)()) {
                    Ok(output) => {
                        firsts.push(first);
                        outputs.push(output);
                        true
                    }
                    Err(error) => {
                        let line = error.to_string().replace('\n', " ");
                        println!("{label:>22} {kind:>7} {:>21} fails: {line:.120}", runner.name);
                        false
                    }
                }
            });
            let mut times = vec![Vec::new(); runners.len()];
            for _ in 0..if quick { 1 } else { 5 } {
                for (runner, times) in runners.iter_mut().zip(&mut times) {
                    let started = Instant::now();
                    (runner.run)()?;
                    times.push(started.elapsed().as_secs_f64());
                }
            }
            let medians: Vec<f64> = times.iter_mut().map(|t| median(t)).collect();
            for (i, runner) in runners.iter().enumerate() {
                let error = distance(&outputs[i], &outputs[0]);
                println!(
                    "{:>22} {:>7} {:>21} {:>10.2} {:>9.2} {:>10.2} {:>9.1e}",
                    label,
                    kind,
                    runner.name,
                    firsts[i],
                    medians[i] * 1e3,
                    medians[i] / medians[0],
                    error,
                );
                if error > 1e-4 {
                    println!("{:>53} gives another result: its time means nothing", runner.name);
                }
            }
        }
    }
    Ok(())
}
