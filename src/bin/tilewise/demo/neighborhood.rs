//! Non-local means as it is used in practice: a pixel becomes the mean of those in a window around
//! it, weighted by how alike their patches are. That is neighborhood attention with the queries and
//! keys of `denoise`, here on the whole photograph.
#![expect(
    clippy::cast_possible_truncation,
    reason = "pixel counts are constants far below 2^32, noise is f32"
)]

use std::path::Path;

use image::RgbImage;
use tilewise::attention::{Attention, AttentionArgs, AttentionShape, Mask};
use tilewise::neighborhood::{
    Algorithm, KernelCost, NeighborhoodArgs, NeighborhoodAttention, NeighborhoodShape,
};
use tilewise::reference::{NeighborhoodInputs, neighborhood_attention};
use tilewise::{Context, Tensor, measure};

use super::denoise::{picture, queries_and_keys};
use super::{Noise, line, psnr, relative_rms, side_by_side};
use crate::Failure;

/// The photograph is `SIZE` x `SIZE` pixels.
const SIZE: usize = 512;
const WINDOW: usize = 13;
/// Patches are `PATCH` x `PATCH` pixels of three colours.
const PATCH: usize = 3;
const HEAD_DIM: usize = PATCH * PATCH * 3 + 1;
/// Standard deviation of the noise, on a scale of 0 to 1.
const SIGMA: f32 = 25.0 / 255.0;
const SEED: u64 = 2024;
/// `h^2` in units of the noise's share of a patch distance, found by trial on this photograph.
const WIDTH: f32 = 1.0;
/// Side of the crop that full attention denoises too, for its time.
const CROP: usize = 96;
/// Side of the corners and of the middle that are compared with the reference.
const CHECKED: usize = 26;
/// Decibels that denoising must gain.
const MIN_GAIN: f64 = 4.0;
/// Relative RMS error against f64.
const MAX_ERROR: f64 = 1e-5;

/// Denoises, reports, checks.
pub(super) fn run(ctx: &Context, photograph: &RgbImage, out: &Path) -> Result<(), Failure> {
    if photograph.dimensions() != (SIZE as u32, SIZE as u32) {
        return Err(format!("a photograph of {SIZE} x {SIZE} pixels is needed").into());
    }
    let original: Vec<f32> =
        photograph.as_raw().iter().map(|&byte| f32::from(byte) / 255.0).collect();
    let mut noise = Noise(SEED);
    let noisy: Vec<f32> = original.iter().map(|x| x + SIGMA * noise.normal() as f32).collect();
    let (q, k) = queries_and_keys(&noisy, SIZE, PATCH, WIDTH * SIGMA * SIGMA);

    let op = NeighborhoodAttention {
        scale: Some(1.0),
        ..NeighborhoodAttention::new([WINDOW as u32; 2])
    };
    let map = Map { size: SIZE, q: &q, k: &k, v: &noisy };
    let (denoised, seconds, clock) = map.attend(ctx, op)?;
    let naive = NeighborhoodAttention { algorithm: Algorithm::Naive, ..op };
    let (second, naive_seconds, _) = map.attend(ctx, naive)?;
    let (before, after) = (psnr(&noisy, &original), psnr(&denoised, &original));
    let widen = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let disagreement = relative_rms(&denoised, &widen(&second));

    let last = SIZE - CHECKED;
    let middle = last / 2;
    let mut error = 0f64;
    for corner in [[0, 0], [0, last], [last, 0], [last, last], [middle, middle]] {
        error = error.max(map.error(op, corner, &denoised));
    }

    // of a crop: the same window, and every pixel against all
    let crop =
        |x: &[f32], width: usize| -> Vec<f32> { rows(x, width, [middle, middle], CROP).collect() };
    let (crop_q, crop_k, crop_v) = (crop(&q, HEAD_DIM), crop(&k, HEAD_DIM), crop(&noisy, 3));
    let part = Map { size: CROP, q: &crop_q, k: &crop_k, v: &crop_v };
    let (_, window_seconds, _) = part.attend(ctx, op)?;
    let (full_seconds, full_flops) = part.full(ctx)?;

    let shape = map.shape();
    let tiles = op.design(&ctx.caps, shape)?.tiles();
    let count = op.simulate(&shape, &tiles, &KernelCost::of(&ctx.caps))?;
    let flops = |scores: u64| scores as f64 * 2.0 * (HEAD_DIM + 3) as f64;
    line("pixels", format!("{SIZE} x {SIZE}, each against {WINDOW} x {WINDOW} around it"));
    line("patches", format!("{PATCH} x {PATCH} x 3 colours: head_dim {HEAD_DIM}, head_dim_v 3"));
    line("PSNR before", format!("{before:.2} dB"));
    line("PSNR after", format!("{after:.2} dB ({:+.2} dB)", after - before));
    line("error against f64", format!("{error:.1e} relative RMS, corners and middle"));
    line("time", format!("{:.1} ms ({clock})", seconds * 1e3));
    line(
        "speed",
        format!(
            "{:.1} GFLOP/s of scores inside windows, {:.1} of all computed",
            flops(count.useful) / seconds * 1e-9,
            flops(count.computed) / seconds * 1e-9
        ),
    );
    line(
        "naive kernel",
        format!("{:.1} ms, {:.1} times as long", naive_seconds * 1e3, naive_seconds / seconds),
    );
    line(
        "full attention on a crop",
        format!(
            "{CROP} x {CROP}: {:.1} ms ({:.1} GFLOP/s), by windows {:.1} ms: {:.1} times faster",
            full_seconds * 1e3,
            full_flops / full_seconds * 1e-9,
            window_seconds * 1e3,
            full_seconds / window_seconds
        ),
    );

    let path = out.join("neighborhood.png");
    side_by_side(&[&original, &noisy, &denoised].map(|p| picture(p, SIZE)))
        .save(&path)
        .map_err(|e| format!("{}: {e}", path.display()))?;
    line("original, noisy, denoised", path.display());

    let gain = after - before;
    if gain.is_nan() || gain < MIN_GAIN {
        return Err(format!("gained {gain:.2} dB, wanted {MIN_GAIN}").into());
    }
    for (what, error) in [("f64", error), ("the naive kernel", disagreement)] {
        if error.is_nan() || error > MAX_ERROR {
            return Err(format!(
                "error {error:.1e} against {what}, at most {MAX_ERROR:.0e} wanted"
            )
            .into());
        }
    }
    Ok(())
}

/// Inputs of one square map: q and k `[size, size, HEAD_DIM]`, v `[size, size, 3]`.
struct Map<'a> {
    size: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

impl Map<'_> {
    fn shape(&self) -> NeighborhoodShape<2> {
        NeighborhoodShape {
            spatial: [self.size as u32; 2],
            head_dim: HEAD_DIM as u32,
            head_dim_v: 3,
            ..Default::default()
        }
    }

    /// The output, the seconds of one run, and the clock that measured them.
    fn attend(
        &self,
        ctx: &Context,
        op: NeighborhoodAttention<2>,
    ) -> Result<(Vec<f32>, f64, measure::Clock), Failure> {
        let plan = op.plan(ctx, self.shape())?;
        let side = self.size as u32;
        let map = |width: usize| [1, side, side, 1, width as u32];
        let q = Tensor::upload(ctx, map(HEAD_DIM), self.q)?;
        let k = Tensor::upload(ctx, map(HEAD_DIM), self.k)?;
        let v = Tensor::upload(ctx, map(3), self.v)?;
        let o = Tensor::upload(ctx, map(3), &vec![f32::NAN; self.v.len()])?;
        let args = NeighborhoodArgs::new(q.view(), k.view(), v.view(), o.view());
        let run = || measure::time(ctx, 1, |pass| plan.encode_pass(ctx, pass, &args));
        // the first dispatch also pays for the driver's compiler
        let first = run()?;
        let timing = run()?;
        Ok((o.download(ctx)?, timing.seconds.min(first.seconds), timing.clock))
    }

    /// Seconds and floating-point operations of full attention.
    fn full(&self, ctx: &Context) -> Result<(f64, f64), Failure> {
        let seq = (self.size * self.size) as u32;
        let shape = AttentionShape {
            head_dim_v: 3,
            ..AttentionShape::self_attention(1, seq, 1, HEAD_DIM as u32)
        };
        let plan = Attention { scale: Some(1.0), ..Default::default() }.plan(ctx, shape)?;
        let q = Tensor::upload(ctx, [1, seq, 1, HEAD_DIM as u32], self.q)?;
        let k = Tensor::upload(ctx, [1, seq, 1, HEAD_DIM as u32], self.k)?;
        let v = Tensor::upload(ctx, [1, seq, 1, 3], self.v)?;
        let o = Tensor::zeros(ctx, [1, seq, 1, 3], tilewise::DType::F32)?;
        let args = AttentionArgs::new(q.view(), k.view(), v.view(), o.view());
        let run = || measure::time(ctx, 1, |pass| plan.encode_pass(ctx, pass, &args));
        run()?;
        Ok((run()?.seconds, shape.flops(Mask::None)))
    }

    /// Relative RMS error of a square of `CHECKED` pixels from `corner` on, against the reference.
    fn error(&self, op: NeighborhoodAttention<2>, corner: [usize; 2], got: &[f32]) -> f64 {
        // the square and what its windows see
        let reach = WINDOW / 2;
        let side = CHECKED + 2 * reach;
        let seen = corner.map(|c| c.saturating_sub(reach).min(self.size - side));
        let widen =
            |x: &[f32], width| -> Vec<f64> { rows(x, width, seen, side).map(f64::from).collect() };
        let shape = NeighborhoodShape { spatial: [side as u32; 2], ..self.shape() };
        // where the map has more around the square, nothing of it lies within a window's reach
        let (want, _) = neighborhood_attention(
            &op,
            &shape,
            &NeighborhoodInputs {
                q: &widen(self.q, HEAD_DIM),
                k: &widen(self.k, HEAD_DIM),
                v: &widen(self.v, 3),
                ..Default::default()
            },
        );
        let (mut some, mut wanted) = (Vec::new(), Vec::new());
        for row in corner[0]..corner[0] + CHECKED {
            for column in corner[1]..corner[1] + CHECKED {
                some.extend(&got[(row * self.size + column) * 3..][..3]);
                let at = (row - seen[0]) * side + column - seen[1];
                wanted.extend(&want[at * 3..][..3]);
            }
        }
        relative_rms(&some, &wanted)
    }
}

/// The rows of `width` numbers of a square of `side` pixels of the photograph, from `corner` on.
fn rows(
    x: &[f32],
    width: usize,
    corner: [usize; 2],
    side: usize,
) -> impl Iterator<Item = f32> + '_ {
    (corner[0]..corner[0] + side)
        .flat_map(move |row| &x[(row * SIZE + corner[1]) * width..][..side * width])
        .copied()
}
