//! Grouped-query causal attention over the bytes of a real text, in f16, with its LSE; the
//! attention of the last token is compared with the f64 reference.
#![allow(clippy::cast_possible_truncation, reason = "sizes are small")]

use half::f16;
use tilewise::{
    Context, DType, Tensor,
    attention::{Attention, AttentionArgs, AttentionShape, CausalAlignment, Mask},
    reference,
};

fn main() -> tilewise::Result<()> {
    let text = include_str!("../README.md");
    let bytes = &text.as_bytes()[..512];
    let ctx = Context::new_blocking()?;
    let shape = AttentionShape {
        batch: 1,
        seq_q: 512,
        seq_k: 512,
        heads: 4,
        heads_kv: 2,
        head_dim: 32,
        head_dim_v: 32,
    };
    let mask = Mask::Causal(CausalAlignment::BottomRight);
    let plan = Attention { mask, dtype: DType::F16, ..Default::default() }.plan(&ctx, shape)?;

    // heads-first in memory, [batch, heads, seq, head_dim]; each byte a pattern of its bits
    let embed = |heads: usize, salt: usize| -> Vec<f16> {
        (0..heads * 512 * 32)
            .map(|i| {
                let (head, token, c) = (i / (512 * 32), i / 32 % 512, i % 32);
                let bit = usize::from(bytes[token]).wrapping_mul(head + salt) >> (c % 8) & 1;
                f16::from_f32(if bit == 1 { 0.5 } else { -0.5 })
            })
            .collect()
    };
    let (q, k, v) = (embed(4, 3), embed(2, 3), embed(2, 5));
    // as one projection gives them: queries, keys and values in one buffer, after one another
    let qkv = Tensor::upload(&ctx, [1, 8, 512, 32], &[&q[..], &k, &v].concat())?;
    let rows = qkv.view().layout.permuted([0, 2, 1, 3]);
    let o = Tensor::zeros(&ctx, [1, 512, 4, 32], DType::F16)?;
    let lse = Tensor::zeros(&ctx, [1, 4, 512], DType::F32)?;
    let args = AttentionArgs {
        lse: Some(lse.view()),
        ..AttentionArgs::new(
            qkv.view_as(rows.narrow(2, 0, 4)?)?,
            qkv.view_as(rows.narrow(2, 4, 2)?)?,
            qkv.view_as(rows.narrow(2, 6, 2)?)?,
            o.view(),
        )
    };
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    plan.encode(&ctx, &mut encoder, &args)?;
    ctx.queue.submit([encoder.finish()]);

    let got: Vec<f16> = o.download(&ctx)?;
    let got_lse: Vec<f32> = lse.download(&ctx)?;
    // the reference takes heads-last, contiguous
    let wide = |x: &[f16], heads: usize| -> Vec<f64> {
        (0..512 * heads * 32)
            .map(|i| x[(i / 32 % heads * 512 + i / (32 * heads)) * 32 + i % 32].to_f64())
            .collect()
    };
    let (q, k, v) = (wide(&q, 4), wide(&k, 2), wide(&v, 2));
    let (want, want_lse) = reference::attention(
        &shape,
        &Attention { mask, ..Default::default() },
        &reference::AttentionInputs { q: &q, k: &k, v: &v, ..Default::default() },
    );
    let (mut error, mut norm) = (0.0, 0.0);
    for (g, w) in got.iter().zip(&want) {
        error += (g.to_f64() - w).powi(2);
        norm += w * w;
    }
    let relative = f64::sqrt(error / norm);
    let lse_error =
        got_lse.iter().zip(&want_lse).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
    println!("{}, {} kernels", ctx.device.adapter_info().name, plan.tier());
    println!("relative error against f64 {relative:.1e}, LSE within {lse_error:.1e}");
    assert!(relative < 2.0 * DType::F16.unit_roundoff() && lse_error < 1e-5);
    Ok(())
}
