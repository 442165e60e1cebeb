//! Where caffeine's oxygens and nitrogens lie, as two functions on the sphere, and their product:
//! by spherical harmonics of the directions, sums, and one Gaunt tensor product on the device. The
//! product is checked where it must hold, at directions on the sphere.
#![allow(clippy::cast_possible_truncation, reason = "sizes are small")]

use tilewise::{
    Context, DType, Result, Tensor,
    gaunt::{
        GauntArgs, GauntShape, GauntTensorProduct, ShNormalization, SphericalHarmonics,
        SphericalHarmonicsArgs, upload_directions,
    },
    reference,
};

const LMAX: u32 = 5;

fn main() -> Result<()> {
    let ctx = Context::new_blocking()?;
    let atoms: Vec<(&str, [f32; 3])> = include_str!("../assets/caffeine.xyz")
        .lines()
        .skip(2)
        .map(|line| {
            let mut words = line.split_whitespace();
            let element = words.next().unwrap_or_default();
            (element, [0; 3].map(|_| words.next().and_then(|w| w.parse().ok()).unwrap_or(0.0)))
        })
        .collect();
    let n = (LMAX + 1).pow(2) as usize;

    // the harmonics of every atom's direction from the origin, [atoms, n]
    let directions: Vec<[f32; 3]> = atoms.iter().map(|(_, at)| *at).collect();
    let r = upload_directions(&ctx, &directions)?;
    let y = Tensor::zeros(&ctx, [atoms.len() as u32, n as u32], DType::F32)?;
    let harmonics =
        SphericalHarmonics { lmax: LMAX, ..Default::default() }.plan(&ctx, atoms.len() as u32)?;
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    let args = SphericalHarmonicsArgs { r: r.view(), y: y.view(), weight: None };
    harmonics.encode(&ctx, &mut encoder, &args)?;
    ctx.queue.submit([encoder.finish()]);
    let y: Vec<f32> = y.download(&ctx)?;

    // coefficients of the two densities, [1, 1, n] each
    let density = |element: &str| {
        let mut sum = vec![0f32; n];
        for ((e, _), y) in atoms.iter().zip(y.chunks(n)) {
            if *e == element {
                sum.iter_mut().zip(y).for_each(|(s, y)| *s += y);
            }
        }
        sum
    };
    let (oxygen, nitrogen) = (density("O"), density("N"));

    // all degrees of the product, so that it is exact
    let product = GauntTensorProduct::new(LMAX, 2 * LMAX);
    let plan = product.plan(&ctx, GauntShape { batch: 1, channels: 1 })?;
    let tx = Tensor::upload(&ctx, [1, 1, n as u32], &oxygen)?;
    let ty = Tensor::upload(&ctx, [1, 1, n as u32], &nitrogen)?;
    let tz = Tensor::zeros(&ctx, [1, 1, (2 * LMAX + 1).pow(2)], DType::F32)?;
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    plan.encode(&ctx, &mut encoder, &GauntArgs::new(tx.view(), ty.view(), tz.view()))?;
    ctx.queue.submit([encoder.finish()]);
    let z: Vec<f32> = tz.download(&ctx)?;

    // values in the directions of all atoms, in f64
    let at: Vec<f64> = directions.as_flattened().iter().map(|&x| x.into()).collect();
    let values = |lmax: u32, c: &[f32]| {
        let y = reference::spherical_harmonics(lmax, ShNormalization::Integral, &at);
        let sum = |y: &[f64]| y.iter().zip(c).map(|(y, c)| y * f64::from(*c)).sum::<f64>();
        y.chunks((lmax + 1).pow(2) as usize).map(sum).collect::<Vec<f64>>()
    };
    let (f, g, fg) = (values(LMAX, &oxygen), values(LMAX, &nitrogen), values(2 * LMAX, &z));
    let want: Vec<f64> = f.iter().zip(&g).map(|(f, g)| f * g).collect();
    let error: f64 = fg.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum();
    let size: f64 = want.iter().map(|w| w * w).sum();
    let relative = (error / size).sqrt();
    println!(
        "{}: degrees {LMAX} and {LMAX} to {}, by the {:?} route",
        ctx.device.adapter_info().name,
        2 * LMAX,
        product.select(&ctx.caps)
    );
    println!("values of the product in {} directions: within {relative:.1e}", want.len());
    assert!(size > 0.1 && relative < 2e-6);
    Ok(())
}
