//! Neighborhood attention over a real photograph: each pixel of a crop attends to those around it,
//! with dilation along one axis, a relative bias and the LSE; the result is compared with the f64
//! reference, and the simulator says what the tiling costs.
#![allow(clippy::cast_possible_truncation, reason = "sizes are small")]

use tilewise::{
    Context, DType, Tensor,
    neighborhood::{
        KernelCost, NeighborhoodArgs, NeighborhoodAttention, NeighborhoodShape, RelativeBias,
    },
    reference::{NeighborhoodInputs, neighborhood_attention},
};

/// The crop, and where it begins in the photograph.
const SIZE: [u32; 2] = [48, 64];
const CORNER: [u32; 2] = [100, 200];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let photograph = image::load_from_memory(include_bytes!("../assets/astronaut.png"))?;
    let crop = photograph.crop_imm(CORNER[0], CORNER[1], SIZE[1], SIZE[0]).into_rgb8();
    let ctx = Context::new_blocking()?;
    let shape = NeighborhoodShape {
        spatial: SIZE,
        heads: 2,
        heads_kv: 1,
        head_dim: 4,
        head_dim_v: 3,
        ..Default::default()
    };
    let op = NeighborhoodAttention {
        dilation: [1, 2],
        bias: RelativeBias::Table,
        scale: Some(1.0),
        ..NeighborhoodAttention::new([7, 5])
    };

    // softmax over -|p - p'|^2 / h^2 of colours p; head 0 with a wide h, head 1 with a narrow one
    let colours: Vec<f32> = crop.as_raw().iter().map(|&x| f32::from(x) / 255.0).collect();
    let (mut q, mut k) = (Vec::new(), Vec::new());
    for p in colours.chunks_exact(3) {
        for sharpness in [20.0, 200.0] {
            q.extend([p[0], p[1], p[2], 0.5].map(|x| 2.0 * sharpness * x));
        }
        k.extend([p[0], p[1], p[2], -p.iter().map(|x| x * x).sum::<f32>()]);
    }
    // nearer pixels count more: -0.1 for each squared step
    let [rows, row] = op.bias_shape(&shape).unwrap_or_default();
    let bias: Vec<f32> = (0..rows * row)
        .map(|i| {
            let (y, x) = ((i % row / 9) as f32 - 6.0, (i % 9) as f32 - 4.0);
            -0.1 * (y * y + x * x)
        })
        .collect();

    let [height, width] = SIZE;
    let tq = Tensor::upload(&ctx, [1, height, width, 2, 4], &q)?;
    let tk = Tensor::upload(&ctx, [1, height, width, 1, 4], &k)?;
    let tv = Tensor::upload(&ctx, [1, height, width, 1, 3], &colours)?;
    let table = Tensor::upload(&ctx, [rows, row], &bias)?;
    let o = Tensor::zeros(&ctx, [1, height, width, 2, 3], DType::F32)?;
    let lse = Tensor::zeros(&ctx, [1, height, width, 2], DType::F32)?;
    let plan = op.plan(&ctx, shape)?;
    let args = NeighborhoodArgs {
        lse: Some(lse.view().into()),
        bias: Some(table.view()),
        ..NeighborhoodArgs::new(tq.view(), tk.view(), tv.view(), o.view())
    };
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    plan.encode(&ctx, &mut encoder, &args)?;
    ctx.queue.submit([encoder.finish()]);

    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let inputs = NeighborhoodInputs {
        q: &wide(&q),
        k: &wide(&k),
        v: &wide(&colours),
        bias: &wide(&bias),
        ..Default::default()
    };
    let (want, want_lse) = neighborhood_attention(&op, &shape, &inputs);
    let relative = |got: &[f32], want: &[f64]| {
        let (mut error, mut norm) = (0.0, 0.0);
        for (g, w) in got.iter().zip(want) {
            error += (f64::from(*g) - w).powi(2);
            norm += w * w;
        }
        f64::sqrt(error / norm)
    };
    let error = relative(&o.download::<f32>(&ctx)?, &want);
    let lse_error = relative(&lse.download::<f32>(&ctx)?, &want_lse);
    let cost = op.simulate(&shape, &plan.tiles(), &KernelCost::of(&ctx.caps))?;
    println!("{}, {} kernels", ctx.device.adapter_info().name, plan.tier());
    println!("relative error against f64 {error:.1e}, of the LSE {lse_error:.1e}");
    println!(
        "{} scores computed, {:.0} % of them useful; full attention has {}",
        cost.computed,
        100.0 * cost.efficiency(),
        cost.full
    );
    // scores of up to 400 carry their rounding into the exponentials
    assert!(error < 2e-5 && lse_error < 1e-6);
    Ok(())
}
