//! Non-local means is softmax attention (Buades, Coll and Morel 2005): a pixel becomes the mean of
//! all pixels, weighted by `exp(-|p_i - p_j|^2 / h^2)`, where `p` are the patches around them.
//!
//! The softmax does not see what is common to a row, so `|p_i|^2` drops out and the weights are
//! `softmax_j(q_i . k_j)` with `q_i = [p_i, 1]` and `k_j = [2 p_j, -|p_j|^2] / h^2`.
#![expect(
    clippy::cast_possible_truncation,
    reason = "pixel counts are constants far below 2^32, colours are clamped, noise is f32"
)]

use std::path::Path;

use image::{Rgb, RgbImage};
use indicatif::{ProgressBar, ProgressStyle};
use tilewise::attention::{Attention, AttentionArgs, AttentionShape, Mask};
use tilewise::{Context, Layout, Tensor, measure, reference, wgpu};

use super::{Noise, line, psnr, relative_rms, side_by_side};
use crate::Failure;

/// The crop is `SIZE` x `SIZE` pixels, from the column and row `CROP` of the photograph.
const SIZE: usize = 128;
const CROP: (u32, u32) = (160, 60);
const PIXELS: usize = SIZE * SIZE;
/// Standard deviation of the noise, on a scale of 0 to 1.
const SIGMA: f32 = 25.0 / 255.0;
const SEED: u64 = 2005;
/// Patches are `PATCH` x `PATCH` pixels of three colours.
const PATCH: usize = 5;
const FEATURES: usize = PATCH * PATCH * 3;
const HEAD_DIM: usize = FEATURES + 1;
/// `h^2` in units of the noise's share of a patch distance, found by trial on this photograph.
const WIDTH: f32 = 0.5;
/// Queries in one submission, so that progress can be shown and no driver loses patience.
const CHUNK: usize = 2048;
/// One in so many rows is compared with the reference.
const CHECK_EVERY: usize = 256;
/// Decibels that denoising must gain.
const MIN_GAIN: f64 = 4.0;
/// Relative RMS error against f64.
const MAX_ERROR: f64 = 1e-5;

/// Denoises, reports, checks.
pub(super) fn run(ctx: &Context, photograph: &RgbImage, out: &Path) -> Result<(), Failure> {
    let crop = image::imageops::crop_imm(photograph, CROP.0, CROP.1, SIZE as u32, SIZE as u32);
    let original: Vec<f32> =
        crop.to_image().as_raw().iter().map(|&byte| f32::from(byte) / 255.0).collect();
    let mut noise = Noise(SEED);
    let noisy: Vec<f32> = original.iter().map(|x| x + SIGMA * noise.normal() as f32).collect();

    let (q, k) = queries_and_keys(&noisy, SIZE, PATCH, WIDTH * SIGMA * SIGMA);
    let shape = AttentionShape {
        batch: 1,
        seq_q: CHUNK as u32,
        seq_k: PIXELS as u32,
        heads: 1,
        heads_kv: 1,
        head_dim: HEAD_DIM as u32,
        head_dim_v: 3,
    };
    let (denoised, seconds, clock) = attend(ctx, shape, &q, &k, &noisy)?;

    let (before, after) = (psnr(&noisy, &original), psnr(&denoised, &original));
    let error = relative_rms_of_rows(shape, &q, &k, &noisy, &denoised);
    let chunks = (PIXELS / CHUNK) as f64;
    let gflops = chunks * shape.flops(Mask::None) / seconds * 1e-9;
    line("pixels", format!("{SIZE} x {SIZE}, each against all: {PIXELS} x {PIXELS} scores"));
    line("patches", format!("{PATCH} x {PATCH} x 3 colours: head_dim {HEAD_DIM}, head_dim_v 3"));
    line("PSNR before", format!("{before:.2} dB"));
    line("PSNR after", format!("{after:.2} dB ({:+.2} dB)", after - before));
    line(
        "error against f64",
        format!("{error:.1e} relative RMS, over {} rows", PIXELS / CHECK_EVERY),
    );
    line("time", format!("{:.1} ms ({clock})", seconds * 1e3));
    line("speed", format!("{gflops:.1} GFLOP/s"));

    let path = out.join("denoise.png");
    side_by_side(&[&original, &noisy, &denoised].map(|p| picture(p, SIZE)))
        .save(&path)
        .map_err(|e| format!("{}: {e}", path.display()))?;
    line("original, noisy, denoised", path.display());

    let gain = after - before;
    if gain.is_nan() || gain < MIN_GAIN {
        return Err(format!("gained {gain:.2} dB, wanted {MIN_GAIN}").into());
    }
    if error.is_nan() || error > MAX_ERROR {
        return Err(format!("error {error:.1e} against f64, at most {MAX_ERROR:.0e} wanted").into());
    }
    Ok(())
}

/// Queries and keys `[size * size, patch * patch * 3 + 1]` of a picture `[size, size, 3]`; `h^2` is
/// `width` for each number of a patch.
///
/// The mean patch is taken off first: distances do not change and the products stay small, where
/// f32 is fine.
pub(super) fn queries_and_keys(
    picture: &[f32],
    size: usize,
    patch: usize,
    width: f32,
) -> (Vec<f32>, Vec<f32>) {
    let (pixels, features) = (size * size, patch * patch * 3);
    let reach = (patch / 2) as isize;
    // mirrored at the border, the border itself not repeated
    let mirrored = |x: isize| {
        let last = size as isize - 1;
        (last - (last - x.abs()).abs()) as usize
    };
    let mut patches = vec![0.0; pixels * features];
    for (i, patch) in patches.chunks_exact_mut(features).enumerate() {
        let (row, column) = ((i / size) as isize, (i % size) as isize);
        let around = (-reach..=reach).flat_map(|dy| (-reach..=reach).map(move |dx| (dy, dx)));
        for (colours, (dy, dx)) in patch.chunks_exact_mut(3).zip(around) {
            let at = mirrored(row + dy) * size + mirrored(column + dx);
            colours.copy_from_slice(&picture[at * 3..][..3]);
        }
    }
    let mut mean = vec![0.0f64; features];
    for patch in patches.chunks_exact(features) {
        mean.iter_mut().zip(patch).for_each(|(m, &x)| *m += f64::from(x) / pixels as f64);
    }
    for patch in patches.chunks_exact_mut(features) {
        patch.iter_mut().zip(&mean).for_each(|(x, m)| *x -= *m as f32);
    }
    let h2 = width * features as f32;
    let mut q = Vec::with_capacity(pixels * (features + 1));
    let mut k = Vec::with_capacity(pixels * (features + 1));
    for patch in patches.chunks_exact(features) {
        q.extend(patch);
        q.push(1.0);
        k.extend(patch.iter().map(|x| 2.0 * x / h2));
        k.push(-patch.iter().map(|x| x * x).sum::<f32>() / h2);
    }
    (q, k)
}

/// Attention of all pixels, `shape.seq_q` queries at a time; returns the output, the seconds and
/// the clock that measured them.
fn attend(
    ctx: &Context,
    shape: AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
) -> Result<(Vec<f32>, f64, measure::Clock), Failure> {
    let plan = Attention { scale: Some(1.0), ..Default::default() }.plan(ctx, shape)?;
    let all = |width| [1, PIXELS as u32, 1, width];
    let q = Tensor::upload(ctx, all(shape.head_dim), q)?;
    let k = Tensor::upload(ctx, all(shape.head_dim), k)?;
    let v = Tensor::upload(ctx, all(3), v)?;
    let o = Tensor::upload(ctx, all(3), &vec![f32::NAN; PIXELS * 3])?;
    let chunk = |width: u32, start: u64| {
        Layout::contiguous([1, shape.seq_q, 1, width]).with_offset(start * u64::from(width))
    };
    let run = |pass: &mut wgpu::ComputePass<'_>, start: u64| {
        let q = q.view_as(chunk(shape.head_dim, start))?;
        let o = o.view_as(chunk(3, start))?;
        plan.encode_pass(ctx, pass, &AttentionArgs::new(q, k.view(), v.view(), o))
    };
    let bar = ProgressBar::new((PIXELS / CHUNK) as u64).with_style(
        ProgressStyle::with_template("  {bar:40} {pos}/{len} {elapsed}")
            .expect("the template is valid"),
    );
    bar.tick();
    // the first dispatch also pays for the driver's compiler
    measure::time(ctx, 1, |pass| run(pass, 0))?;
    let mut seconds = 0.0;
    let mut clock = measure::Clock::Timestamps;
    for start in (0..PIXELS as u64).step_by(CHUNK) {
        let timing = measure::time(ctx, 1, |pass| run(pass, start))?;
        seconds += timing.seconds;
        clock = timing.clock;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((o.download(ctx)?, seconds, clock))
}

/// Error of every `CHECK_EVERY`-th row against the reference.
fn relative_rms_of_rows(
    shape: AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    got: &[f32],
) -> f64 {
    let widen = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let rows = || (0..PIXELS).step_by(CHECK_EVERY);
    let some_q: Vec<f64> = rows().flat_map(|row| widen(&q[row * HEAD_DIM..][..HEAD_DIM])).collect();
    let shape = AttentionShape { seq_q: rows().count() as u32, ..shape };
    let (want, _) = reference::attention(
        &shape,
        &Attention { scale: Some(1.0), ..Default::default() },
        &reference::AttentionInputs {
            q: &some_q,
            k: &widen(k),
            v: &widen(v),
            ..Default::default()
        },
    );
    let some: Vec<f32> = rows().flat_map(|row| got[row * 3..][..3].iter().copied()).collect();
    relative_rms(&some, &want)
}

/// Values of 0 to 1 as a picture; what lies outside is clipped.
pub(super) fn picture(values: &[f32], size: usize) -> RgbImage {
    let byte = |x: f32| (x.clamp(0.0, 1.0) * 255.0).round() as u8;
    RgbImage::from_fn(size as u32, size as u32, |x, y| {
        let at = (y as usize * size + x as usize) * 3;
        Rgb([byte(values[at]), byte(values[at + 1]), byte(values[at + 2])])
    })
}
