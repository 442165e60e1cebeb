//! Where caffeine's oxygens and nitrogens lie, as two functions on the sphere, and their product:
//! by spherical harmonics of the directions, sums, and one Gaunt tensor product on the device. The
//! product is checked where it must hold, at directions on the sphere. Then the numbers that no
//! rotation changes: the scalars of the Clebsch-Gordan product, and a weighted sum of them.
#![allow(clippy::cast_possible_truncation, reason = "sizes are small")]

use tilewise::{
    Context, DType, Layout, Result, Tensor,
    gaunt::{
        ClebschGordan, GauntArgs, GauntShape, GauntTensorProduct, Irreps, ShNormalization,
        SphericalHarmonics, SphericalHarmonicsArgs, WeightedTensorProduct,
        WeightedTensorProductArgs, upload_directions,
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

    // of the Clebsch-Gordan product only the scalars, one for each degree
    let irreps = Irreps::spherical_harmonics(LMAX);
    let scalars = ClebschGordan {
        irreps1: irreps.clone(),
        irreps2: irreps.clone(),
        filter: Some("0e".parse()?),
        ..Default::default()
    };
    let plan = scalars.plan(&ctx, 1)?;
    let row = Layout::contiguous([1, n as u32]);
    let (rx, ry) = (tx.view_as(row)?, ty.view_as(row)?);
    let rz = Tensor::zeros(&ctx, [1, LMAX + 1], DType::F32)?;
    // and a sum of them, with weights as a network would have learnt them
    let sum = WeightedTensorProduct::fully_connected(irreps.clone(), irreps, "0e".parse()?);
    let sum_plan = sum.plan(&ctx, 1)?;
    let weights: Vec<f32> = (0..=LMAX).map(|l| 0.5f32.powi(l.cast_signed())).collect();
    let w = Tensor::upload(&ctx, [1, LMAX + 1], &weights)?;
    let energy = Tensor::zeros(&ctx, [1, 1], DType::F32)?;
    let scratch = sum_plan.scratch(&ctx)?;
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    plan.encode(&ctx, &mut encoder, rx, ry, rz.view())?;
    let args = WeightedTensorProductArgs {
        x: rx,
        y: ry,
        w: w.view(),
        z: energy.view(),
        scratch: scratch.as_ref(),
    };
    sum_plan.encode(&ctx, &mut encoder, &args)?;
    ctx.queue.submit([encoder.finish()]);
    let (rz, energy): (Vec<f32>, Vec<f32>) = (rz.download(&ctx)?, energy.download(&ctx)?);
    println!("scalars by degree {rz:.3?}, their weighted sum {:.4}", energy[0]);
    let mut want = 0.0;
    for (l, got) in rz.iter().enumerate() {
        let degree = l * l..(l + 1) * (l + 1);
        let dot: f32 =
            oxygen[degree.clone()].iter().zip(&nitrogen[degree]).map(|(a, b)| a * b).sum();
        let scalar = dot / (2.0 * l as f32 + 1.0).sqrt();
        assert!((got - scalar).abs() < 1e-5);
        want += weights[l] * scalar / (LMAX as f32 + 1.0).sqrt();
    }
    assert!((energy[0] - want).abs() < 1e-5);
    Ok(())
}
