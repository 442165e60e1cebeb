//! Ring attention over simulated devices: each holds a shard of a document's keys and values, queries
//! meet one shard after the other, and the partial results are merged by their LSE. The output must be
//! that of one attention over the whole, and the weights must find the words they look for.
//!
//! `cargo run --example ring_attention`

use tilewise::{
    Context, DType, Layout, Result, Tensor,
    attention::{Attention, AttentionArgs, AttentionShape, Merge, MergeArgs, MergeShape, Split},
    reference::{self, AttentionInputs},
};

/// The start of a novel, whose words are keys.
const TEXT: &str = include_str!("../assets/moonstone.txt");
const WORDS: usize = 1027;
const SHARDS: u32 = 4;
const HEADS: u32 = 4;
const DIM: u32 = 32;

/// A fixed random direction for a word in a head; equal words have equal directions.
fn embed(word: &str, head: u32, salt: u64) -> Vec<f32> {
    let seed = word.bytes().fold(salt ^ u64::from(head), |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut state = seed;
    (0..DIM)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            #[expect(clippy::cast_precision_loss, reason = "24 bits are exact")]
            let x = (state >> 40) as f32 / 8_388_608.0 - 1.0;
            x
        })
        .collect()
}

/// `[1, words, HEADS, DIM]`
fn tensor(words: &[&str], salt: u64) -> Vec<f32> {
    words.iter().flat_map(|w| (0..HEADS).flat_map(move |h| embed(w, h, salt))).collect()
}

/// The problem of `seq_q` queries and `seq_k` keys.
fn problem(q: &[f32], k: &[f32]) -> (AttentionShape, Attention) {
    let row = (HEADS * DIM) as usize;
    #[expect(clippy::cast_possible_truncation, reason = "a few thousand words")]
    let [seq_q, seq_k] = [q.len(), k.len()].map(|n| (n / row) as u32);
    let shape = AttentionShape {
        batch: 1,
        seq_q,
        seq_k,
        heads: HEADS,
        heads_kv: HEADS,
        head_dim: DIM,
        head_dim_v: DIM,
    };
    // sharp: equal words score far above others
    (shape, Attention { scale: Some(1.5), split: Split::Never, ..Default::default() })
}

fn attend(ctx: &Context, q: &[f32], k: &[f32], v: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
    let (shape, options) = problem(q, k);
    let [seq_q, seq_k] = [shape.seq_q, shape.seq_k];
    let plan = options.plan(ctx, shape)?;
    let q = Tensor::upload(ctx, [1, seq_q, HEADS, DIM], q)?;
    let k = Tensor::upload(ctx, [1, seq_k, HEADS, DIM], k)?;
    let v = Tensor::upload(ctx, [1, seq_k, HEADS, DIM], v)?;
    let o = Tensor::zeros(ctx, [1, seq_q, HEADS, DIM], DType::F32)?;
    let lse = Tensor::zeros(ctx, [1, HEADS, seq_q], DType::F32)?;
    let args = AttentionArgs {
        lse: Some(lse.view()),
        ..AttentionArgs::new(q.view(), k.view(), v.view(), o.view())
    };
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    plan.encode(ctx, &mut encoder, &args)?;
    ctx.queue.submit([encoder.finish()]);
    Ok((o.download(ctx)?, lse.download(ctx)?))
}

fn main() -> Result<()> {
    let words: Vec<&str> = TEXT.split_whitespace().take(WORDS).collect();
    let queries: Vec<&str> = words.iter().copied().step_by(words.len() / 64).take(64).collect();
    let (q, k, v) = (tensor(&queries, 7), tensor(&words, 7), tensor(&words, 99));
    let row = (HEADS * DIM) as usize;

    let whole = Context::new_blocking()?;
    let (want, want_lse) = attend(&whole, &q, &k, &v)?;

    // a context for each shard, as if each were a machine; only o and the LSE travel
    let shard = words.len().div_ceil(SHARDS as usize) * row;
    let (mut parts, mut lses) = (Vec::new(), Vec::new());
    for (k, v) in k.chunks(shard).zip(v.chunks(shard)) {
        let device = Context::new_blocking()?;
        let (o, lse) = attend(&device, &q, k, v)?;
        println!("{} keys on {}", k.len() / row, device.device.adapter_info().name);
        parts.extend(o);
        lses.extend(lse);
    }

    let shape = MergeShape { parts: SHARDS, batch: 1, seq: 64, heads: HEADS, head_dim_v: DIM };
    let plan = Merge::default().plan(&whole, shape)?;
    let parts = Tensor::upload(&whole, [SHARDS, 1, 64, HEADS, DIM], &parts)?;
    let lses = Tensor::upload(&whole, [SHARDS, 1, HEADS, 64], &lses)?;
    let o = Tensor::zeros(&whole, [1, 64, HEADS, DIM], DType::F32)?;
    let lse = Tensor::zeros(&whole, [1, HEADS, 64], DType::F32)?;
    let mut encoder = whole.device.create_command_encoder(&Default::default());
    plan.encode(
        &whole,
        &mut encoder,
        &MergeArgs {
            o_parts: parts.view_as(Layout::contiguous(parts.shape()))?,
            lse_parts: lses.view(),
            o: o.view(),
            lse: Some(lse.view()),
        },
    )?;
    whole.queue.submit([encoder.finish()]);
    let (got, got_lse): (Vec<f32>, Vec<f32>) = (o.download(&whole)?, lse.download(&whole)?);

    // both against f64: merging may not cost more than the attention it stands for
    let [q64, k64, v64] = [&q, &k, &v].map(|x| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    let (shape, options) = problem(&q, &k);
    let inputs = AttentionInputs { q: &q64, k: &k64, v: &v64, ..Default::default() };
    let (exact, exact_lse) = reference::attention(&shape, &options, &inputs);
    let distance = |got: &[f32], want: &[f64]| {
        let error: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
        (error / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
    };
    let [one, ring] = [&want, &got].map(|o| distance(o, &exact));
    let [one_lse, ring_lse] = [&want_lse, &got_lse].map(|lse| distance(lse, &exact_lse));
    println!(
        "{} words, error against f64: at once {one:.1e}, LSE {one_lse:.1e}; in {SHARDS} shards \
         {ring:.1e}, LSE {ring_lse:.1e}",
        words.len()
    );
    assert!(ring <= 2.0 * one && ring_lse <= 2.0 * one_lse && one < 1e-5);
    // each query finds its own word among all shards: the output points along that word's value
    let found = queries
        .iter()
        .zip(got.chunks(row))
        .filter(|(word, out)| {
            let value: Vec<f64> = tensor(&[**word], 99).into_iter().map(f64::from).collect();
            distance(out, &value) < 0.2
        })
        .count();
    println!("{found} of {} queries found their word", queries.len());
    assert!(found * 10 >= queries.len() * 9);
    Ok(())
}
