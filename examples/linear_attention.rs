//! Gated linear attention over the bytes of a real text, in f16: a prefill in one call, then token
//! by token from the state it leaves. Both are compared with the f64 reference over the whole.
#![allow(clippy::cast_possible_truncation, reason = "sizes are small")]

use half::f16;
use tilewise::{
    Context, DType, Layout, Tensor,
    linear_attention::{
        Decay, LinearAttention, LinearAttentionArgs, LinearAttentionShape, check_gates,
    },
    reference::{self, LinearAttentionInputs},
};

const TOKENS: u32 = 400;
const PREFILL: u32 = 384;
const HEADS: u32 = 2;
const K: u32 = 32;
const V: u32 = 48;

fn main() -> tilewise::Result<()> {
    let text = include_bytes!("../assets/moonstone.txt");
    let ctx = Context::new_blocking()?;
    // [1, TOKENS, HEADS, width]: each byte a pattern of its bits
    let embed = |width: u32, salt: usize| -> Vec<f16> {
        (0..TOKENS * HEADS * width)
            .map(|i| i as usize)
            .map(|i| {
                let (c, head) = (i % width as usize, i / width as usize % HEADS as usize);
                let byte = usize::from(text[i / (HEADS * width) as usize]);
                let bit = byte.wrapping_mul(2 * (head + c) + salt) >> (c % 8) & 1;
                f16::from_f32(if bit == 1 { 0.25 } else { -0.25 })
            })
            .collect()
    };
    let (q, k, v) = (embed(K, 3), embed(K, 5), embed(V, 7));
    // a space lets much be forgotten, other bytes little; each channel at its own rate
    let gates: Vec<f32> = (0..TOKENS * HEADS * K)
        .map(|i| {
            let rate = if text[(i / (HEADS * K)) as usize] == b' ' { 0.2 } else { 0.005 };
            -rate * (1 + i % K) as f32 / K as f32
        })
        .collect();
    check_gates(&gates)?;

    let scale = (K as f32).sqrt().recip();
    let op = LinearAttention {
        decay: Decay::PerChannel,
        scale,
        dtype: DType::F16,
        ..Default::default()
    };
    let shape = |tokens| LinearAttentionShape::new(1, tokens, HEADS, K, V);
    let (prefill, step) = (op.plan(&ctx, shape(PREFILL))?, op.plan(&ctx, shape(1))?);

    let tq = Tensor::upload(&ctx, [1, TOKENS, HEADS, K], &q)?;
    let tk = Tensor::upload(&ctx, [1, TOKENS, HEADS, K], &k)?;
    let tv = Tensor::upload(&ctx, [1, TOKENS, HEADS, V], &v)?;
    let tg = Tensor::upload(&ctx, [1, TOKENS, HEADS, K], &gates)?;
    let o = Tensor::zeros(&ctx, [1, TOKENS, HEADS, V], DType::F16)?;
    let state = Tensor::zeros(&ctx, [1, HEADS, K, V], DType::F32)?;
    let (of_prefill, of_step) = (prefill.scratch(&ctx)?, step.scratch(&ctx)?);

    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    let mut at = 0;
    while at < TOKENS {
        let (plan, scratch, n) =
            if at == 0 { (&prefill, &of_prefill, PREFILL) } else { (&step, &of_step, 1) };
        // a window on tokens at..at + n, no copy
        let rows = |width: u32| {
            Layout::contiguous([1, n, HEADS, width]).with_offset(u64::from(at * HEADS * width))
        };
        let args = LinearAttentionArgs {
            gates: Some(tg.view_as(rows(K))?),
            // the same view: updated in place
            initial_state: Some(state.view()),
            final_state: Some(state.view()),
            scratch: scratch.as_ref(),
            ..LinearAttentionArgs::new(
                tq.view_as(rows(K))?,
                tk.view_as(rows(K))?,
                tv.view_as(rows(V))?,
                o.view_as(rows(V))?,
            )
        };
        plan.encode(&ctx, &mut encoder, &args)?;
        at += n;
    }
    ctx.queue.submit([encoder.finish()]);

    let wide = |x: &[f16]| x.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
    let gates: Vec<f64> = gates.iter().map(|&g| f64::from(g)).collect();
    let want = reference::linear_attention(
        &op,
        &shape(TOKENS),
        &LinearAttentionInputs {
            q: &wide(&q),
            k: &wide(&k),
            v: &wide(&v),
            gates: &gates,
            ..Default::default()
        },
    );
    let relative = |got: &[f64], want: &[f64]| -> f64 {
        let error: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
        (error / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
    };
    let outputs = relative(&wide(&o.download(&ctx)?), &want.o);
    let last: Vec<f64> = state.download::<f32>(&ctx)?.into_iter().map(f64::from).collect();
    let states = relative(&last, &want.state);
    println!("{}, {} kernels", ctx.device.adapter_info().name, prefill.tier());
    println!(
        "{PREFILL} tokens in one call, {} one by one: relative error {outputs:.1e} (f16), state {states:.1e} (f32)",
        TOKENS - PREFILL
    );
    // a gate that stays the same for long rounds the same way each time: 1.9e-6 measured
    assert!(outputs < 2.0 * DType::F16.unit_roundoff() && states < 4e-6);
    Ok(())
}
