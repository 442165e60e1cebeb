//! Neighborhood attention on every adapter present, against the f64 reference.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

use tilewise::{
    Context, DType, Tensor, Tier,
    neighborhood::*,
    reference::{NeighborhoodInputs, neighborhood_attention},
};

#[test]
fn quick() {
    let ctx = Context::new_blocking().unwrap();
    println!("{:?}", ctx.caps);
    for tier in [Tier::Subgroup, Tier::Portable] {
        let Ok(ctx) = ctx.with_tier(tier) else { continue };
        for algorithm in [Algorithm::Naive, Algorithm::Fused] {
            let op = NeighborhoodAttention { algorithm, ..NeighborhoodAttention::new([7, 7]) };
            let shape = NeighborhoodShape {
                spatial: [20, 24],
                heads: 2,
                heads_kv: 2,
                head_dim: 32,
                head_dim_v: 32,
                ..Default::default()
            };
            let n = 20 * 24 * 2 * 32;
            let mut x = 1u32;
            let mut rnd = || {
                x = x.wrapping_mul(1664525).wrapping_add(1013904223);
                (x >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            let q: Vec<f32> = (0..n).map(|_| rnd() * 4.0).collect();
            let k: Vec<f32> = (0..n).map(|_| rnd() * 4.0).collect();
            let v: Vec<f32> = (0..n).map(|_| rnd()).collect();
            let dims = [1, 20, 24, 2, 32];
            let [tq, tk, tv] = [&q, &k, &v].map(|d| Tensor::upload(&ctx, dims, d).unwrap());
            let o = Tensor::upload(&ctx, dims, &vec![f32::NAN; n]).unwrap();
            let lse = Tensor::<4>::zeros(&ctx, [1, 20, 24, 2], DType::F32).unwrap();
            let plan = op.plan(&ctx, shape).unwrap();
            println!("{:?}\n{}", plan.tiles(), plan.label());
            let mut args = NeighborhoodArgs::new(tq.view(), tk.view(), tv.view(), o.view());
            args.lse = Some(lse.view().into());
            let mut enc = ctx.device.create_command_encoder(&Default::default());
            plan.encode(&ctx, &mut enc, &args).unwrap();
            ctx.queue.submit([enc.finish()]);
            let got: Vec<f32> = o.download(&ctx).unwrap();
            let got_lse: Vec<f32> = lse.download(&ctx).unwrap();
            let f = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let (want, want_lse) = neighborhood_attention(
                &op,
                &shape,
                &NeighborhoodInputs { q: &f(&q), k: &f(&k), v: &f(&v), ..Default::default() },
            );
            let err = |a: &[f32], b: &[f64]| {
                let d: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
                (d / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
            };
            println!(
                "{tier} {algorithm:?} o {:e} lse {:e}",
                err(&got, &want),
                err(&got_lse, &want_lse)
            );
        }
    }
}
