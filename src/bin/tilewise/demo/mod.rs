//! `tilewise demo`: real work on a real photograph, a real text and a real molecule, each part checked.

mod denoise;
mod molecule;
mod neighborhood;
mod stream;

use std::path::{Path, PathBuf};

use image::RgbImage;
use tilewise::Context;

use crate::{Failure, adapter, adapter::Target, tuning};

/// Work on a photograph, a text and a molecule with each family of kernels, and check the results.
///
/// Denoises by attention: a part of the photograph where every pixel looks at every other one, and
/// all of it where each looks around itself. Streams a book through linear
/// attention and predicts each byte from what came before. Tells the atoms of a molecule apart by
/// Gaunt products, however it is turned. Each part prints what it measured and compares itself with
/// the f64 reference; the command fails if a part does not hold.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tilewise demo
  tilewise demo --out pictures --adapter gl
  tilewise demo --part denoise")]
pub(crate) struct Args {
    /// Folder for the pictures
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Only this part (may be repeated)
    #[arg(long = "part", value_name = "NAME", value_parser = PARTS.map(|(name, _)| name))]
    parts: Vec<String>,
}

/// One part: prints what it does, writes its pictures, returns an error if its check fails.
type Part = fn(&Context, &RgbImage, &Path) -> Result<(), Failure>;

const PARTS: [(&str, Part); 4] = [
    ("denoise", denoise::run),
    ("neighborhood", neighborhood::run),
    ("stream", stream::run),
    ("molecule", molecule::run),
];

/// Public domain; see assets/README.md.
static PHOTOGRAPH: &[u8] = include_bytes!("../../../../assets/astronaut.png");

/// Runs the parts; false if one failed.
pub(crate) fn run(args: &Args, target: Target<'_>, table: Option<&str>) -> Result<bool, Failure> {
    let ctx = tuning::with_table(target.open()?, table)?;
    println!("on {}, {} kernels", adapter::describe(&ctx.device.adapter_info()), ctx.caps.tier);
    let photograph = image::load_from_memory(PHOTOGRAPH)?.into_rgb8();
    std::fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    let mut good = true;
    for (name, part) in PARTS {
        if !args.parts.is_empty() && !args.parts.iter().any(|p| p == name) {
            continue;
        }
        println!("\n{name}");
        if let Err(error) = part(&ctx, &photograph, &args.out) {
            eprintln!("error: {name}: {error}");
            good = false;
        }
    }
    Ok(good)
}

/// One line of a part's report.
fn line(what: &str, value: impl std::fmt::Display) {
    println!("  {what:<26}{value}");
}

/// Relative RMS distance of `got` from `want`; infinite if the lengths differ or a value is not
/// finite.
fn relative_rms(got: &[f32], want: &[f64]) -> f64 {
    if got.len() != want.len() || got.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let (mut error, mut norm) = (0.0, 0.0);
    for (&g, &w) in got.iter().zip(want) {
        error += (f64::from(g) - w).powi(2);
        norm += w * w;
    }
    (error / norm).sqrt()
}

/// Peak signal-to-noise ratio in dB of values whose range is 0 to 1.
fn psnr(got: &[f32], want: &[f32]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(&g, &w)| f64::from(g - w).powi(2)).sum::<f64>()
        / want.len() as f64;
    -10.0 * error.log10()
}

/// Normally distributed numbers from a fixed seed: SplitMix64 and the Box-Muller transform.
struct Noise(u64);

impl Noise {
    /// A uniform number in (0, 1].
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + 0.5 / (1u64 << 53) as f64
    }

    /// A number of mean 0 and standard deviation 1.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// Pictures of one size side by side, with a gap of white.
fn side_by_side(pictures: &[RgbImage]) -> RgbImage {
    const GAP: u32 = 4;
    let (width, height) = pictures.first().map_or((1, 1), RgbImage::dimensions);
    let total = pictures.iter().map(|p| p.width() + GAP).sum::<u32>().max(GAP + 1) - GAP;
    let mut sheet = RgbImage::from_pixel(total, height, image::Rgb([255; 3]));
    for (picture, x) in pictures.iter().zip((0..).step_by((width + GAP) as usize)) {
        image::imageops::replace(&mut sheet, picture, x, 0);
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::{Noise, psnr, relative_rms};

    #[test]
    fn noise_has_the_right_moments() {
        let mut noise = Noise(1);
        let samples: Vec<f64> = (0..100_000).map(|_| noise.normal()).collect();
        let mean = samples.iter().sum::<f64>() / 1e5;
        let variance = samples.iter().map(|x| x * x).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn measures_see_errors() {
        let tenth = relative_rms(&[1.0, 1.1], &[1.0, 1.0]);
        assert!((tenth - 0.1 / 2f64.sqrt()).abs() < 1e-7, "{tenth}");
        assert_eq!(relative_rms(&[1.0], &[1.0, 1.0]), f64::INFINITY);
        assert_eq!(relative_rms(&[f32::NAN], &[1.0]), f64::INFINITY);
        assert!((psnr(&[0.1, 0.5], &[0.0, 0.5]) - 23.0103).abs() < 1e-3);
    }
}
