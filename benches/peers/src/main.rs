//! Attention of other crates beside this crate's: one adapter, one run, interleaved, wall clock from
//! submission to an idle device, medians. Every result is compared with the others' first.
//! `cargo run --release --manifest-path benches/peers/Cargo.toml [-- --quick]`

use std::time::Instant;

use burn::tensor::{
    Device, DeviceKind, Tensor as BurnTensor, TensorData,
    module::{attention, attention_fallback},
    ops::AttentionModuleOptions,
};
use tilewise::{
    Context, DType, Tensor, Tier,
    attention::{Attention, AttentionArgs, AttentionShape, CausalAlignment, Mask},
    measure::{median, values},
    wgpu,
};

type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

/// `[heads, rows, dim]` to `[rows, heads, dim]` and back with the first two exchanged.
fn exchange(x: &[f32], heads: usize, rows: usize, dim: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in 0..rows {
        for head in 0..heads {
            out.extend_from_slice(&x[(head * rows + row) * dim..][..dim]);
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
    /// The output, `[rows, heads, dim]`.
    read: Box<dyn Fn() -> AnyResult<Vec<f32>> + 'a>,
}

fn ours<'a>(
    name: &'a str,
    ctx: &'a Context,
    shape: AttentionShape,
    causal: bool,
    data: &'a [Vec<f32>; 3],
) -> AnyResult<Runner<'a>> {
    let dims = [1, shape.seq_q, shape.heads, shape.head_dim];
    let (h, n, d) = (shape.heads as usize, shape.seq_q as usize, shape.head_dim as usize);
    let upload = |x: &[f32]| Tensor::upload(ctx, dims, &exchange(x, h, n, d));
    let (q, k, v) = (upload(&data[0])?, upload(&data[1])?, upload(&data[2])?);
    let o = std::rc::Rc::new(Tensor::zeros(ctx, dims, DType::F32)?);
    let out = o.clone();
    let mask = if causal { Mask::Causal(CausalAlignment::BottomRight) } else { Mask::None };
    let mut plan = None;
    let run = move || -> AnyResult<()> {
        let plan = match &mut plan {
            Some(plan) => plan,
            // the first call compiles
            none => none.insert(Attention { mask, ..Default::default() }.plan(ctx, shape)?),
        };
        let mut encoder = ctx.device.create_command_encoder(&Default::default());
        plan.encode(
            ctx,
            &mut encoder,
            &AttentionArgs::new(q.view(), k.view(), v.view(), o.view()),
        )?;
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
    let dims = [1, shape.heads as usize, shape.seq_q as usize, shape.head_dim as usize];
    let upload = |x: &[f32]| BurnTensor::<4>::from_data(TensorData::new(x.to_vec(), dims), device);
    let [q, k, v] = [&data[0], &data[1], &data[2]].map(|x| upload(x));
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
        let o: Vec<f32> = o.into_data().try_to_vec().map_err(|e| format!("{e:?}"))?;
        Ok(exchange(&o, dims[1], dims[2], dims[3]))
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
        "{:>22} {:>7} {:>20} {:>10} {:>9} {:>10} {:>9}",
        "[1, heads, n, d]", "", "", "first s", "ms", "x subgroup", "error"
    );

    let shapes: &[(u32, u32, u32)] = if quick {
        &[(2, 64, 16)]
    } else {
        &[(8, 512, 64), (8, 1024, 64), (8, 2048, 64), (16, 2048, 128)]
    };
    for &(heads, n, dim) in shapes {
        let shape = AttentionShape::self_attention(1, n, heads, dim);
        let count = (heads * n * dim) as usize;
        let data = [1, 2, 3].map(|seed| values(count, seed));
        for causal in [false, true] {
            let mut runners = vec![
                ours("tilewise subgroup", &subgroup, shape, causal, &data)?,
                ours("tilewise portable", &portable, shape, causal, &data)?,
                burns("burn attention", &device, shape, causal, false, &data),
                burns("burn plain tensors", &device, shape, causal, true, &data),
            ];
            let mut firsts = Vec::new();
            let mut outputs: Vec<Vec<f32>> = Vec::new();
            for runner in &mut runners {
                let started = Instant::now();
                (runner.run)()?;
                firsts.push(started.elapsed().as_secs_f64());
                outputs.push((runner.read)()?);
            }
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
                    "{:>22} {:>7} {:>20} {:>10.2} {:>9.2} {:>10.2} {:>9.1e}",
                    format!("[1, {heads}, {n}, {dim}]"),
                    if causal { "causal" } else { "full" },
                    runner.name,
                    firsts[i],
                    medians[i] * 1e3,
                    medians[i] / medians[0],
                    error,
                );
                if error > 1e-4 {
                    println!("{:>52} gives another result: its time means nothing", runner.name);
                }
            }
        }
    }
    Ok(())
}
