//! Blurs a photograph by multiplying its spectrum, there and back on the device, and compares some
//! pixels with the convolution as its sum is written. Run with `--features cli`, which reads PNG.
#![allow(clippy::cast_possible_truncation, reason = "sizes are small")]

use tilewise::{
    Context, DType, Tensor,
    fft::{Direction, Fft, FftArgs, Normalization},
};

/// Standard deviation of the blur, in pixels.
const SIGMA: f64 = 3.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ctx = Context::new_blocking()?;
    let picture = image::load_from_memory(include_bytes!("../assets/astronaut.png"))?.into_luma8();
    let (columns, rows) = picture.dimensions();
    let pixels: Vec<f32> = picture.as_raw().iter().map(|&p| f32::from(p) / 255.0).collect();
    // distance round the edge: the transform takes the picture as periodic
    let weight = |d: u32, n: u32| (-0.5 * (f64::from(d.min(n - d)) / SIGMA).powi(2)).exp();
    let total = |n: u32| (0..n).map(|d| weight(d, n)).sum::<f64>();
    let norm = total(rows) * total(columns);
    let blur: Vec<f32> = (0..rows)
        .flat_map(|r| (0..columns).map(move |c| (r, c)))
        .map(|(r, c)| (weight(r, rows) * weight(c, columns) / norm) as f32)
        .collect();

    // both real pictures in one batch, to the half of their spectra that determines the rest
    let shape = [rows, columns];
    let forward = Fft { shape, real: true, ..Default::default() }.plan(&ctx, 2)?;
    let half = columns / 2 + 1;
    let input = Tensor::upload(&ctx, [2, rows, columns, 1], &[pixels.clone(), blur].concat())?;
    let spectra = Tensor::zeros(&ctx, [2, rows, half, 2], DType::F32)?;
    let scratch = forward.scratch(&ctx)?;
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    let args = FftArgs { input: input.view(), output: spectra.view(), scratch: scratch.as_ref() };
    forward.encode(&ctx, &mut encoder, &args)?;
    ctx.queue.submit([encoder.finish()]);

    let spectra: Vec<f32> = spectra.download(&ctx)?;
    let (picture, blur) = spectra.split_at(spectra.len() / 2);
    let product: Vec<f32> = picture
        .chunks(2)
        .zip(blur.chunks(2))
        .flat_map(|(a, b)| [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]])
        .collect();

    let inverse = Fft {
        shape,
        real: true,
        direction: Direction::Inverse,
        normalization: Normalization::ByLength,
    }
    .plan(&ctx, 1)?;
    let input = Tensor::upload(&ctx, [1, rows, half, 2], &product)?;
    let output = Tensor::zeros(&ctx, [1, rows, columns, 1], DType::F32)?;
    let scratch = inverse.scratch(&ctx)?;
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    let args = FftArgs { input: input.view(), output: output.view(), scratch: scratch.as_ref() };
    inverse.encode(&ctx, &mut encoder, &args)?;
    ctx.queue.submit([encoder.finish()]);
    let blurred: Vec<f32> = output.download(&ctx)?;

    let (mut error, mut size, mut count) = (0.0, 0.0, 0);
    for at in (0..rows * columns).step_by(7919) {
        let (r, c) = (at / columns, at % columns);
        let mut want = 0.0;
        for (row, line) in (0..rows).zip(pixels.chunks(columns as usize)) {
            let sum: f64 = (0..columns)
                .zip(line)
                .map(|(column, p)| weight(column.abs_diff(c), columns) * f64::from(*p))
                .sum();
            want += weight(row.abs_diff(r), rows) * sum / norm;
        }
        error += (f64::from(blurred[at as usize]) - want).powi(2);
        size += want * want;
        count += 1;
    }
    let relative = f64::sqrt(error / size);
    println!("{}: {columns} x {rows} pixels", ctx.device.adapter_info().name);
    println!("relative error against the sum, {count} pixels: {relative:.1e}");
    assert!(relative < 1e-6);
    Ok(())
}
