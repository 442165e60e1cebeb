//! `--variants`: attention with each option and at each head size, as texts for compilers.

use tilewise::attention::{
    Attention, AttentionShape, BiasPositions, CausalAlignment, Mask, Split, Window,
};
use tilewise::{Card, DType, Error, Tier};

use crate::{Failure, adapter, texts::Texts};

/// Problems by names of their own: prefill of every kind of head, options one by one and together, and
/// decoding.
fn all(dtype: DType) -> Vec<(String, Attention, AttentionShape)> {
    let base = Attention { dtype, ..Default::default() };
    let causal = Attention { mask: Mask::Causal(CausalAlignment::BottomRight), ..base };
    let window = Window { left: Some(1023), right: None };
    let lengths = Attention { key_lengths: true, ..causal };
    let pages = Attention { page_size: Some(16), ..lengths };
    let every = Attention {
        window,
        softcap: Some(50.0),
        alibi: true,
        bias: true,
        visible: true,
        sinks: true,
        ..causal
    };
    let options = [
        ("window", Attention { window, ..causal }),
        ("softcap", Attention { softcap: Some(50.0), ..causal }),
        ("alibi", Attention { alibi: true, ..causal }),
        ("bias", Attention { bias: true, ..causal }),
        ("visible", Attention { visible: true, ..base }),
        ("sinks", Attention { sinks: true, ..causal }),
        ("key_lengths", lengths),
        ("pages", pages),
        ("int8", Attention { quantized: Some(16), ..causal }),
        ("int8 pages", Attention { quantized: Some(16), ..pages }),
        ("packed", Attention { packed: true, bias_positions: BiasPositions::Sequence, ..causal }),
        ("every option", every),
        (
            "every option, int8 pages",
            Attention { key_lengths: true, page_size: Some(16), quantized: Some(16), ..every },
        ),
    ];
    let mut all = Vec::new();
    let heads = |dims: [u32; 2], seq: [u32; 2], heads: [u32; 2]| AttentionShape {
        batch: 1,
        seq_q: seq[0],
        seq_k: seq[1],
        heads: heads[0],
        heads_kv: heads[1],
        head_dim: dims[0],
        head_dim_v: dims[1],
    };
    let long = [4096, 4096];
    for dims in [32, 40, 64, 72, 80, 96, 128, 256]
        .map(|d| [d, d])
        .into_iter()
        .chain([[192, 128], [576, 512]])
    {
        let s = heads(dims, long, [8, 8]);
        all.push((format!("prefill {}/{}", dims[0], dims[1]), base, s));
        all.push((format!("prefill {}/{} causal", dims[0], dims[1]), causal, s));
    }
    for dim in [64, 128] {
        for (name, op) in options {
            all.push((format!("prefill {dim} {name}"), op, heads([dim; 2], long, [8, 8])));
        }
    }
    // one query, and few, of heads that share keys, and of latent attention
    let decode = |group: u32, dims: [u32; 2]| heads(dims, [1, 4096], [8 * group, 8]);
    for (group, dim) in [(1, 64), (1, 128), (4, 64), (4, 128), (8, 128), (4, 256), (4, 96)] {
        all.push((format!("decode {dim} group {group}"), causal, decode(group, [dim; 2])));
    }
    for (name, op) in options.into_iter().filter(|(_, op)| !op.packed) {
        all.push((format!("decode 128 group 4 {name}"), op, decode(4, [128; 2])));
    }
    for group in [1, 16, 128] {
        let s = AttentionShape { heads: group, heads_kv: 1, ..decode(1, [576, 512]) };
        let op = Attention { split: Split::Keys(256), ..causal };
        all.push((format!("decode 576/512 group {group}"), op, s));
    }
    all
}

/// Writes the texts that a card gets for them; how many problems there are.
pub(crate) fn dump(
    card: &Card,
    tier: Option<Tier>,
    dtype: DType,
    texts: &mut Texts,
) -> Result<usize, Failure> {
    let mut count = 0;
    for (name, op, shape) in all(dtype) {
        // what a context of its own compiled is of this problem
        let ctx = adapter::imitated(card)?;
        let ctx = tier.map_or_else(|| Ok(ctx.clone()), |tier| ctx.with_tier(tier))?;
        match op.plan(&ctx, shape) {
            // a browser's eight buffers are too few for every option
            Err(error @ Error::Limit { .. }) => println!("left out: {name}: {error}"),
            plan => {
                plan.map_err(|e| format!("{name}: {e}"))?;
                texts.add(&ctx, Some(&format!("attention {name}, {dtype}")))?;
                count += 1;
            }
        }
    }
    Ok(count)
}
