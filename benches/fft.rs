//! Transforms side by side with rustfft on the same processor, all threads of rayon. Ratios count:
//! both are timed in the same run, turn about. `cargo test --benches` runs one of each.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

#[path = "../src/bin/tilewise/bench/cases.rs"]
mod cases;

use rayon::prelude::*;
use rustfft::{FftPlanner, num_complex::Complex};
use tilewise::{
    Context, DType, Tensor,
    fft::{Direction, Fft, FftArgs},
    measure::{median, time},
};

/// Out of place, as ours: the input stays as it is.
fn rustfft(shape: [u32; 2], input: &[Complex<f32>], output: &mut [Complex<f32>]) {
    let [rows, columns] = shape.map(|n| n as usize);
    let mut planner = FftPlanner::new();
    let (along, across) = (planner.plan_fft_forward(columns), planner.plan_fft_forward(rows));
    let images = input.par_chunks(rows * columns).zip(output.par_chunks_mut(rows * columns));
    images.for_each_init(
        || {
            let along = along.get_immutable_scratch_len();
            let across = across.get_inplace_scratch_len();
            (vec![Complex::default(); along.max(across)], vec![Complex::default(); rows])
        },
        |(scratch, column), (input, output)| {
            along.process_immutable_with_scratch(input, output, scratch);
            if rows > 1 {
                for c in 0..columns {
                    for (r, value) in column.iter_mut().enumerate() {
                        *value = output[r * columns + c];
                    }
                    across.process_with_scratch(column, scratch);
                    for (r, value) in column.iter().enumerate() {
                        output[r * columns + c] = *value;
                    }
                }
            }
        },
    );
}

fn main() -> tilewise::Result<()> {
    // cargo test --benches passes no --bench
    let samples = if std::env::args().any(|a| a == "--bench") { 15 } else { 1 };
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let ctx = Context::new_blocking()?;
    let info = ctx.device.adapter_info();
    println!(
        "{}, {} {}; {} threads",
        info.name,
        info.driver,
        info.driver_info,
        rayon::current_num_threads()
    );
    println!(
        "{:24} {:>7} {:>6} {:>10} {:>9} {:>10} {:>9} {:>6} {:>9}",
        "transform",
        "batch",
        "passes",
        "ours, ms",
        "GFLOP/s",
        "rustfft",
        "GFLOP/s",
        "ratio",
        "error"
    );
    for (shape, batch) in cases::TRANSFORMS {
        let name = if shape[0] == 1 {
            format!("{}", shape[1])
        } else {
            format!("{}x{}", shape[0], shape[1])
        };
        if filter.as_ref().is_some_and(|f| *f != name) {
            continue;
        }
        let points = shape[0] * shape[1];
        let x: Vec<f32> = (0..points * batch * 2).map(|i| ((i % 1013) as f32).sin()).collect();
        let dims = [batch, shape[0], shape[1], 2];
        let (input, output) =
            (Tensor::upload(&ctx, dims, &x)?, Tensor::zeros(&ctx, dims, DType::F32)?);
        let plan =
            Fft { shape, direction: Direction::Forward, ..Default::default() }.plan(&ctx, batch)?;
        let scratch = plan.scratch(&ctx)?;
        let args =
            FftArgs { input: input.view(), output: output.view(), scratch: scratch.as_ref() };
        let source: Vec<Complex<f32>> = x.chunks(2).map(|p| Complex::new(p[0], p[1])).collect();
        let mut data = vec![Complex::default(); source.len()];
        let (mut ours, mut theirs, mut clock) = (Vec::new(), Vec::new(), None);
        // the first of each pays for compilation and page faults
        for sample in 0..=samples {
            let timing = time(&ctx, 1, |pass| plan.encode_pass(&ctx, pass, &args))?;
            let started = std::time::Instant::now();
            rustfft(shape, &source, &mut data);
            let elapsed = started.elapsed().as_secs_f64();
            clock = Some(timing.clock);
            if sample > 0 {
                ours.push(timing.seconds);
                theirs.push(elapsed);
            }
        }
        // right before fast
        let got: Vec<f32> = output.download(&ctx)?;
        let (mut error, mut norm) = (0f64, 0f64);
        for (g, w) in got.iter().zip(data.iter().flat_map(|c| [c.re, c.im])) {
            error += f64::from(g - w).powi(2);
            norm += f64::from(w).powi(2);
        }
        let error = (error / norm).sqrt();
        assert!(error < 1e-6, "{name}: {error:e}");
        let (ours, theirs) = (median(&mut ours), median(&mut theirs));
        let flops = 5.0 * f64::from(points) * f64::from(points).log2() * f64::from(batch) * 1e-9;
        println!(
            "{name:24} {batch:>7} {:>6} {:>10.3} {:>9.2} {:>10.3} {:>9.2} {:>6.2} {error:>9.1e}  {}",
            plan.passes(),
            ours * 1e3,
            flops / ours,
            theirs * 1e3,
            flops / theirs,
            ours / theirs,
            clock.map(|c| c.to_string()).unwrap_or_default(),
        );
    }
    Ok(())
}
