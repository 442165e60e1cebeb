//! Scratch.
use tilewise::{Context, DType, Tensor, Tier, attention::*, measure, neighborhood::*};

fn run<const D: usize>(
    ctx: &Context,
    spatial: [u32; D],
    k: [u32; D],
    s: [u32; D],
    d: u32,
    top: usize,
    filter: &str,
) {
    let op = NeighborhoodAttention { stride: s, ..NeighborhoodAttention::new(k) };
    let shape = NeighborhoodShape {
        spatial,
        heads: 4,
        heads_kv: 4,
        head_dim: d,
        head_dim_v: d,
        ..Default::default()
    };
    let n: u32 = spatial.iter().product::<u32>();
    let data: Vec<f32> = (0..n * 4 * d)
        .map(|i| ((i.wrapping_mul(2654435761) >> 8) as f32 / (1 << 24) as f32) - 0.5)
        .collect();
    let t = Tensor::upload(ctx, [n * 4 * d], &data).unwrap();
    let o = Tensor::<1>::zeros(ctx, [n * 4 * d], DType::F32).unwrap();
    // D = 1, 2, 3
    macro_rules! view { ($t:expr, $($x:expr),*) => { $t.view_as(tilewise::Layout::contiguous([$($x),*])).unwrap() } }
    let mv = |t: &'_ Tensor<1>| -> Box<dyn Fn() -> ()> {
        let _ = t;
        Box::new(|| ())
    };
    let _ = mv;
    let time = |plan: &NeighborhoodPlan<D>| {
        let one = |reps| {
            measure::time(ctx, reps, |pass| {
                let (q, out): (MapView, MapView) = match D {
                    1 => {
                        (view!(t, 1, spatial[0], 4, d).into(), view!(o, 1, spatial[0], 4, d).into())
                    }
                    2 => (
                        view!(t, 1, spatial[0], spatial[1], 4, d).into(),
                        view!(o, 1, spatial[0], spatial[1], 4, d).into(),
                    ),
                    _ => (
                        view!(t, 1, spatial[0], spatial[1], spatial[2], 4, d).into(),
                        view!(o, 1, spatial[0], spatial[1], spatial[2], 4, d).into(),
                    ),
                };
                plan.encode_pass(ctx, pass, &NeighborhoodArgs::new(q, q, q, out))
            })
            .unwrap()
            .seconds
        };
        let first = one(1);
        let _ = first;
        let mut v: Vec<f64> = (0..5).map(|_| one(1)).collect();
        measure::median(&mut v)
    };
    let useful: f64 = {
        let c = op.candidates(&shape, 8, &KernelCost::of(&ctx.caps)).unwrap();
        c[0].simulation.useful as f64 * 4.0 * d as f64
    };
    let naive = NeighborhoodAttention { algorithm: tilewise::neighborhood::Algorithm::Naive, ..op }
        .plan(ctx, shape)
        .unwrap();
    let tn = time(&naive);
    // flash on a comparable size
    let fshape = AttentionShape::self_attention(1, 1024, 4, d);
    let fp = Attention::default().plan(ctx, fshape).unwrap();
    let tf = {
        let q = Tensor::<4>::zeros(ctx, [1, 1024, 4, d], DType::F32).unwrap();
        let oo = Tensor::<4>::zeros(ctx, [1, 1024, 4, d], DType::F32).unwrap();
        let one = || {
            measure::time(ctx, 1, |pass| {
                fp.encode_pass(
                    ctx,
                    pass,
                    &AttentionArgs::new(q.view(), q.view(), q.view(), oo.view()),
                )
            })
            .unwrap()
            .seconds
        };
        one();
        let mut v: Vec<f64> = (0..5).map(|_| one()).collect();
        measure::median(&mut v)
    };
    let fg = fshape.flops(Mask::None) / tf / 1e9;
    println!(
        "{spatial:?} k{k:?} s{s:?} d{d}: naive {:.2} ms; flash {:.1} GF/s {:?}",
        tn * 1e3,
        fg,
        fp.tiles()
    );
    let mut cands = op.candidates(&shape, 8, &KernelCost::of(&ctx.caps)).unwrap();
    if !filter.is_empty() {
        cands.retain(|c| format!("{:?}", c.tiles).contains(filter));
    }
    for c in cands.iter().take(top) {
        let plan = NeighborhoodAttention { tiles: Some(c.tiles), ..op }.plan(ctx, shape).unwrap();
        let tt = if std::env::var("LONG").is_ok() {
            let mut t = 0.0;
            for _ in 0..20 {
                t = time(&plan);
            }
            t
        } else {
            time(&plan)
        };
        let sm = &c.simulation;
        println!(
            "  ax{} tile {:?} slots {} bk {} wg {}{}: {:.2} ms  {:.1} GF/s ({:.0}% of flash) naive/{:.1}  eff {:.2}  t/cost {:.3} ns/kunit",
            c.tiles.axis,
            c.tiles.tile,
            c.tiles.slots,
            c.tiles.block_k,
            sm.workgroups,
            if sm.aligned { " aligned" } else { "" },
            tt * 1e3,
            useful / tt / 1e9,
            useful / tt / 1e9 / fg * 100.0,
            tn / tt,
            sm.efficiency(),
            tt * 1e12 / sm.cost
        );
    }
}
fn main() {
    let ctx = Context::new_blocking().unwrap();
    let ctx =
        if std::env::var("T0").is_ok() { ctx.with_tier(Tier::Portable).unwrap() } else { ctx };
    let a: Vec<String> = std::env::args().skip(1).collect();
    let top = a.get(1).and_then(|x| x.parse().ok()).unwrap_or(6);
    let filter = a.get(2).cloned().unwrap_or_default();
    let f = filter.as_str();
    match a.first().map_or("", |x| x.as_str()) {
        "p" => println!("{:.1}", measure::multiply_add_peak(&ctx).unwrap() / 1e9),
        "2a" => run(&ctx, [56, 56], [7, 7], [1, 1], 32, top, f),
        "2a64" => run(&ctx, [56, 56], [7, 7], [1, 1], 64, top, f),
        "2b" => run(&ctx, [64, 64], [13, 13], [1, 1], 32, top, f),
        "2b64" => run(&ctx, [64, 64], [13, 13], [1, 1], 64, top, f),
        "2c" => run(&ctx, [128, 128], [21, 21], [1, 1], 32, top, f),
        "2c64" => run(&ctx, [128, 128], [21, 21], [1, 1], 64, top, f),
        "1a" => run(&ctx, [4096], [63], [1], 32, top, f),
        "1a64" => run(&ctx, [4096], [63], [1], 64, top, f),
        "1b" => run(&ctx, [4096], [255], [1], 32, top, f),
        "1b64" => run(&ctx, [4096], [255], [1], 64, top, f),
        "3" => run(&ctx, [16, 16, 16], [5, 5, 5], [1, 1, 1], 32, top, f),
        "364" => run(&ctx, [16, 16, 16], [5, 5, 5], [1, 1, 1], 64, top, f),
        "2w" => run(&ctx, [56, 56], [7, 7], [7, 7], 32, top, f),
        "2s" => run(&ctx, [64, 64], [16, 16], [8, 8], 32, top, f),
        "1s" => run(&ctx, [4096], [64], [64], 32, top, f),
        x if x.starts_with("m") => {
            let n: u32 = x[1..].parse().unwrap();
            run(&ctx, [56, n], [7, 7], [1, 1], 32, top, f)
        }
        x if x.starts_with("k") => {
            let k: u32 = x[1..].parse().unwrap();
            run(&ctx, [4096], [k], [1], 32, top, f)
        }
        _ => panic!(),
    }
}
