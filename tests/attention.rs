//! Attention on every adapter and tier, against the f64 reference.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod common;

use std::collections::BTreeSet;

use common::{
    Deal, Device, Guarded, Rng, devices, gpus, in_turn, random_layout, rel_rms, rounded, run, slow,
    to_f64, upload_as,
};
use tilewise::{
    Caps, Context, DType, DeviceClass, Error, Layout, Tensor, TensorView, Tier,
    attention::{
        Algorithm, Attention, AttentionArgs, AttentionShape, BiasPositions, CausalAlignment,
        GroupTiles, KvAppend, KvAppendArgs, KvAppendShape, Mask, Merge, MergeArgs, MergeShape,
        RegisterTiles, Schedule, Split, Tiles, TripleArgs, TripleAttention, TripleShape, Window,
        quantize,
    },
    reference, wgpu,
};

const BOTTOM_RIGHT: Mask = Mask::Causal(CausalAlignment::BottomRight);
const TOP_LEFT: Mask = Mask::Causal(CausalAlignment::TopLeft);

/// The inputs of a problem as the reference takes them, in f32.
#[derive(Clone, Default)]
struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Where keys and values are bytes, what they stand for before rounding.
    exact: Option<[Vec<f64>; 2]>,
    slopes: Vec<f32>,
    /// Not broadcast.
    bias: Vec<f32>,
    visible: Vec<bool>,
    sinks: Vec<f32>,
    metric: Vec<f32>,
    key_lengths: Vec<u32>,
}

impl Inputs {
    fn reference(&self, s: &AttentionShape, options: &Attention) -> (Vec<f64>, Vec<f64>) {
        let [k, v] = self.exact.clone().unwrap_or_else(|| [to_f64(&self.k), to_f64(&self.v)]);
        let inputs = reference::AttentionInputs {
            q: &to_f64(&self.q),
            k: &k,
            v: &v,
            slopes: &to_f64(&self.slopes),
            bias: &to_f64(&self.bias),
            visible: &self.visible,
            sinks: &to_f64(&self.sinks),
            metric: &to_f64(&self.metric),
            key_lengths: &self.key_lengths,
        };
        reference::attention(s, options, &inputs)
    }

    /// Attention as one would write it in a loop, in f32: its error against f64 sets the budget.
    fn plain(&self, s: &AttentionShape, op: &Attention) -> Vec<f32> {
        let [t, n, h, hk] = [s.seq_q, s.seq_k, s.heads, s.heads_kv].map(|x| x as usize);
        let [d, dv] = [s.head_dim, s.head_dim_v].map(|x| x as usize);
        let scale = op.scale.unwrap_or((d as f32).sqrt().recip());
        let mut o = vec![0f32; s.batch as usize * t * h * dv];
        for at in 0..s.batch as usize * t * h {
            let (b, row, head) = (at / (t * h), at / h % t, at % h);
            let keys = self.key_lengths.get(b).map_or(n, |&n| n as usize);
            let position = match op.mask {
                TOP_LEFT => row as i64,
                _ => row as i64 + keys as i64 - t as i64,
            };
            let left = op.window.left.map_or(i64::MAX, i64::from);
            let mut right = op.window.right.map_or(i64::MAX, i64::from);
            if op.mask != Mask::None {
                right = 0;
            }
            let mut query = self.q[at * d..][..d].to_vec();
            if op.metric {
                let g = |r: usize, c: usize| self.metric[(head * d + r) * d + c];
                query = (0..d).map(|c| (0..d).map(|r| query[r] * g(r, c)).sum()).collect();
            }
            let place = |j: usize| (b * n + j) * hk + head / (h / hk);
            let mut scores = Vec::new();
            for j in 0..keys {
                let away = position - j as i64;
                let cell = ((b * h + head) * t + row) * n + j;
                if away > left || -away > right || (op.visible && !self.visible[cell]) {
                    continue;
                }
                let k = &self.k[place(j) * d..][..d];
                let mut x = scale * query.iter().zip(k).map(|(a, b)| a * b).sum::<f32>();
                if let Some(cap) = op.softcap {
                    x = cap * (x / cap).tanh();
                }
                if op.alibi {
                    x -= self.slopes[head] * away.unsigned_abs() as f32;
                }
                if op.bias {
                    x += self.bias[cell];
                }
                if x > f32::NEG_INFINITY {
                    scores.push((j, x));
                }
            }
            let sink = op.sinks.then(|| self.sinks[head]);
            let all = || scores.iter().map(|(_, x)| *x).chain(sink);
            let top = all().fold(f32::MIN, f32::max);
            let sum: f32 = all().map(|x| (x - top).exp()).sum();
            for c in 0..dv {
                let part =
                    |(j, x): &(usize, f32)| (x - top).exp() / sum * self.v[place(*j) * dv + c];
                o[at * dv + c] = scores.iter().map(part).sum();
            }
        }
        o
    }
}

struct Problem {
    shape: AttentionShape,
    options: Attention,
    layouts: [Layout<4>; 4],
}

impl Problem {
    fn new(shape: AttentionShape, options: Attention) -> Self {
        let s = shape;
        let layouts = [
            [s.batch, s.seq_q, s.heads, s.head_dim],
            [s.batch, s.seq_k, s.heads_kv, s.head_dim],
            [s.batch, s.seq_k, s.heads_kv, s.head_dim_v],
            [s.batch, s.seq_q, s.heads, s.head_dim_v],
        ]
        .map(Layout::contiguous);
        Self { shape, options, layouts }
    }

    /// Errors of output and LSE, and the budget: twice the error of the plain loop.
    fn run(&self, ctx: &Context, rng: &mut Rng) -> Errors {
        let (s, op) = (self.shape, self.options);
        let mut inputs = Inputs::default();
        let mut random = |shape: [u32; 4]| rounded(&rng.vec(count(&shape)), op.dtype);
        inputs.q = random(self.layouts[0].shape);
        inputs.k = random(self.layouts[1].shape);
        inputs.v = random(self.layouts[2].shape);
        let scores = [s.batch, s.heads, s.seq_q, s.seq_k];
        if op.alibi {
            inputs.slopes = rng.vec(s.heads as usize).iter().map(|x| x.abs() * 0.3).collect();
        }
        if op.sinks {
            inputs.sinks = rng.vec(s.heads as usize).iter().map(|x| x * 2.0).collect();
        }
        if op.metric {
            inputs.metric = rng.vec((s.heads * s.head_dim * s.head_dim) as usize);
        }
        if op.key_lengths {
            inputs.key_lengths = (0..s.batch).map(|_| rng.range(0, s.seq_k + 1)).collect();
        }
        // bias and mask repeat along a random choice of axes
        let mut repeated = || -> [u32; 4] {
            let mut shape = scores;
            for axis in shape.iter_mut().take(3) {
                if rng.range(0, 2) == 0 {
                    *axis = 1;
                }
            }
            shape
        };
        let (bias_shape, mask_shape) = (repeated(), repeated());
        let bias: Vec<f32> = (0..count(&bias_shape))
            .map(|_| if rng.range(0, 8) == 0 { f32::NEG_INFINITY } else { 2.0 * rng.unit() })
            .collect();
        let bias_dtype = *rng.pick(&[DType::F32, op.dtype]);
        let bias = rounded(&bias, bias_dtype);
        let mask: Vec<f32> =
            (0..count(&mask_shape)).map(|_| f32::from(u8::from(rng.range(0, 3) > 0))).collect();
        if op.bias {
            inputs.bias = spread(&bias, bias_shape, scores);
        }
        if op.visible {
            inputs.visible = spread(&mask, mask_shape, scores).iter().map(|&x| x > 0.0).collect();
        }

        let plan = op.plan(ctx, s).unwrap();
        let keys = Keys::new(ctx, self, &mut inputs, rng);
        let tq = upload_as(ctx, self.layouts[0], &inputs.q, op.dtype).unwrap();
        let o = Guarded::new(ctx, self.layouts[3], op.dtype);
        let lse = Guarded::new(ctx, Layout::contiguous([s.batch, s.heads, s.seq_q]), DType::F32);
        let scratch = scratch(ctx, plan.scratch_bytes());
        // slopes and sinks lie behind something else
        let vector =
            |x: &[f32]| Tensor::upload(ctx, [s.heads + 3], &[&[f32::NAN; 3], x].concat()).unwrap();
        let behind = Layout::contiguous([s.heads]).with_offset(3);
        let slopes = op.alibi.then(|| vector(&inputs.slopes));
        let sinks = op.sinks.then(|| vector(&inputs.sinks));
        let metric = op.metric.then(|| {
            Tensor::upload(ctx, [s.heads, s.head_dim, s.head_dim], &inputs.metric).unwrap()
        });
        let bias = upload_as(ctx, Layout::contiguous(bias_shape), &bias, bias_dtype).unwrap();
        let mask = upload_as(ctx, Layout::contiguous(mask_shape), &mask, DType::U8).unwrap();
        let args = AttentionArgs {
            lse: Some(lse.view()),
            scratch: Some(&scratch),
            slopes: slopes.as_ref().map(|x| x.view_as(behind).unwrap()),
            sinks: sinks.as_ref().map(|x| x.view_as(behind).unwrap()),
            metric: metric.as_ref().map(Tensor::view),
            bias: op.bias.then(|| bias.view_as(Layout::contiguous(bias_shape)).unwrap()),
            visible: op.visible.then(|| mask.view_as(Layout::contiguous(mask_shape)).unwrap()),
            key_lengths: op.key_lengths.then_some(&inputs.key_lengths),
            page_table: op.page_size.map(|_| &keys.table[..]),
            k_scale: keys.scales.as_ref().map(|s| s[0].view()),
            v_scale: keys.scales.as_ref().map(|s| s[1].view()),
            ..AttentionArgs::new(
                tq.view_as(self.layouts[0]).unwrap(),
                keys.k.view_as(keys.layouts[0]).unwrap(),
                keys.v.view_as(keys.layouts[1]).unwrap(),
                o.view(),
            )
        };
        run(ctx, |encoder| plan.encode(ctx, encoder, &args)).unwrap();

        let (want, want_lse) = inputs.reference(&s, &op);
        let simple = rounded(&inputs.plain(&s, &op), op.dtype);
        let (got, got_lse) = (o.read(ctx), lse.read(ctx));
        // rows that see nothing are compared exactly, and apart from the others
        let d_v = s.head_dim_v as usize;
        let (mut lse_seen, mut lse_want) = (Vec::new(), Vec::new());
        for (i, (&got_lse, &want_lse)) in got_lse.iter().zip(&want_lse).enumerate() {
            if want_lse.is_finite() {
                lse_seen.push(got_lse);
                lse_want.push(want_lse);
                continue;
            }
            assert_eq!(got_lse, f32::NEG_INFINITY, "LSE of a row that sees nothing");
            let (t, h) = (s.seq_q as usize, s.heads as usize);
            let (b, head, row) = (i / (h * t), i / t % h, i % t);
            let out = &got[((b * t + row) * h + head) * d_v..][..d_v];
            assert!(out.iter().all(|x| *x == 0.0), "output of a row that sees nothing: {out:?}");
        }
        Errors {
            o: rel_rms(&got, &want),
            // of a value near 0 no relative error can be asked: an LSE is a logarithm
            lse: lse_seen
                .iter()
                .zip(&lse_want)
                .map(|(g, w)| (f64::from(*g) - w).abs() / w.abs().max(1.0))
                .fold(0.0, f64::max),
            plain: rel_rms(&simple, &want),
            top: lse_want.iter().fold(0.0, |top, x| x.abs().max(top)),
        }
    }

    fn check(&self, device: &Device, rng: &mut Rng) {
        let e = self.run(&device.ctx, rng);
        // a plain loop on the host has an exact exp; on a device it may be off by 3 ulp (WGSL's
        // accuracy table), which shows where a row has one or two keys. And where rows are few, so
        // are the roundings of their largest scores, each of which moves a weight by half a unit in
        // the last place of the score: a plain loop may be lucky with them.
        let floor = (2.0 * self.options.dtype.unit_roundoff())
            .max(0.5 * e.top * DType::F32.unit_roundoff());
        let budget = 2.0 * e.plain.max(floor);
        let what =
            || format!("{}: {:?} {:?} {:?}", device.name, self.shape, self.options, self.layouts);
        assert!(e.o <= budget, "{}\n output error {:.2e}, budget {budget:.2e}", what(), e.o);
        assert!(e.lse <= 4e-6, "{}\n LSE error {:.2e}", what(), e.lse);
    }
}

/// Keys and values as a call takes them: strided, in pages, or as bytes.
struct Keys {
    k: Tensor<1>,
    v: Tensor<1>,
    layouts: [Layout<4>; 2],
    table: Vec<u32>,
    scales: Option<[Tensor<3>; 2]>,
}

impl Keys {
    /// Where keys are bytes, the inputs become what the bytes stand for.
    fn new(ctx: &Context, problem: &Problem, inputs: &mut Inputs, rng: &mut Rng) -> Self {
        let (s, op) = (problem.shape, problem.options);
        let mut layouts = [problem.layouts[1], problem.layouts[2]];
        let mut data = [inputs.k.clone(), inputs.v.clone()];
        let mut table = Vec::new();
        // place of each row of k and v among the rows of memory
        let mut places: Vec<usize> = (0..(s.batch * s.seq_k) as usize).collect();
        if let Some(size) = op.page_size {
            let width = s.seq_k.div_ceil(size);
            // a spare page, and every page somewhere else than its turn
            let pages = s.batch * width + 1;
            let mut order: Vec<u32> = (0..pages).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, rng.range(0, i as u32 + 1) as usize);
            }
            table = order[..(s.batch * width) as usize].to_vec();
            for (row, place) in places.iter_mut().enumerate() {
                let (b, j) = (row as u32 / s.seq_k, row as u32 % s.seq_k);
                *place = (table[(b * width + j / size) as usize] * size + j % size) as usize;
            }
            for (layout, data) in layouts.iter_mut().zip(&mut data) {
                let [.., h, d] = layout.shape;
                let row = (h * d) as usize;
                let mut paged = vec![f32::NAN; (pages * size) as usize * row];
                for (from, &to) in data.chunks(row).zip(&places) {
                    paged[to * row..][..row].copy_from_slice(from);
                }
                *layout = Layout::contiguous([pages, size, h, d]);
                *data = paged;
            }
            // an entry that no key of its sequence needs may name a page that does not exist
            for (b, &length) in inputs.key_lengths.iter().enumerate() {
                for entry in table[b * width as usize..][..width as usize]
                    .iter_mut()
                    .skip(length.div_ceil(size) as usize)
                {
                    *entry = u32::MAX;
                }
            }
        }
        let Some(block) = op.quantized else {
            let [k, v] = [0, 1].map(|i| upload_as(ctx, layouts[i], &data[i], op.dtype).unwrap());
            return Self { k, v, layouts, table, scales: None };
        };
        let mut scales = Vec::new();
        let mut bytes = Vec::new();
        let mut exact = [Vec::new(), Vec::new()];
        for (i, x) in data.iter().enumerate() {
            let shape @ [b, t, h, d] = layouts[i].shape;
            // rows of pages that no key fills are zero in a cache of bytes
            let finite: Vec<f32> = x.iter().map(|x| if x.is_nan() { 0.0 } else { *x }).collect();
            let q = quantize(&finite, shape, block).unwrap();
            let blocks = t.div_ceil(block);
            scales.push(Tensor::upload(ctx, [b, h, blocks], &q.scales).unwrap());
            let values: Vec<f32> = q.values.iter().map(|&x| f32::from(x)).collect();
            let row = (h * d) as usize;
            let input = if i == 0 { &mut inputs.k } else { &mut inputs.v };
            for (out, &place) in input.chunks_mut(row).zip(&places) {
                let (page, token) = (place as u32 / t, place as u32 % t);
                for (c, x) in out.iter_mut().enumerate() {
                    let head = c as u32 / d;
                    let scale = q.scales[((page * h + head) * blocks + token / block) as usize];
                    *x = values[place * row + c] * scale;
                    exact[i].push(f64::from(values[place * row + c]) * f64::from(scale));
                }
            }
            bytes.push(upload_as(ctx, layouts[i], &values, DType::I8).unwrap());
        }
        inputs.exact = Some(exact);
        let v = bytes.pop().unwrap();
        let k = bytes.pop().unwrap();
        let v_scale = scales.pop().unwrap();
        let k_scale = scales.pop().unwrap();
        Self { k, v, layouts, table, scales: Some([k_scale, v_scale]) }
    }
}

fn count(shape: &[u32]) -> usize {
    shape.iter().map(|&d| d as usize).product()
}

/// `x` of shape `from`, repeated along its axes of 1 up to shape `to`.
fn spread(x: &[f32], from: [u32; 4], to: [u32; 4]) -> Vec<f32> {
    let mut out = Vec::with_capacity(count(&to));
    for flat in 0..count(&to) {
        let (mut rest, mut at, mut stride) = (flat, 0, 1);
        for axis in (0..4).rev() {
            let i = rest % to[axis] as usize;
            rest /= to[axis] as usize;
            at += if from[axis] == 1 { 0 } else { i * stride };
            stride *= from[axis] as usize;
        }
        out.push(x[at]);
    }
    out
}

fn scratch(ctx: &Context, bytes: u64) -> wgpu::Buffer {
    ctx.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes.max(16),
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    })
}

struct Errors {
    o: f64,
    lse: f64,
    plain: f64,
    /// Largest magnitude of an LSE, which that of the largest score is close to.
    top: f64,
}

fn shape(
    batch: u32,
    [seq_q, seq_k]: [u32; 2],
    [heads, heads_kv]: [u32; 2],
    [d, dv]: [u32; 2],
) -> AttentionShape {
    AttentionShape { batch, seq_q, seq_k, heads, heads_kv, head_dim: d, head_dim_v: dv }
}

#[test]
fn comparator_rejects_wrong_answers() {
    let want = [1.0, 2.0, 3.0];
    assert_eq!(rel_rms(&[1.0, 2.0, 3.0], &want), 0.0);
    assert!(rel_rms(&[1.0, 2.0, 3.3], &want) > 0.05);
    // one lost row in a thousand, too small for an absolute tolerance
    let small = vec![1e-6; 1000];
    let mut lost = vec![1e-6f32; 1000];
    lost[999] = 0.0;
    assert!(rel_rms(&lost, &small) > 0.03);
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(std::panic::catch_unwind(|| rel_rms(&[1.0, 2.0, bad], &want)).is_err());
    }
    assert!(std::panic::catch_unwind(|| rel_rms(&[1.0, 2.0], &want)).is_err());
}

#[test]
fn sizes_around_the_tile() {
    for (index, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(index, 3);
        let mut rng = Rng(1);
        let plan = Attention::default()
            .plan(&device.ctx, AttentionShape::self_attention(1, 512, 1, 12))
            .unwrap();
        let tile = plan.schedule().rows();
        for n in [1, 2, tile - 1, tile, tile + 1, tile / 2, 2 * tile + 3] {
            for mask in [Mask::None, BOTTOM_RIGHT] {
                if !deal.takes() {
                    continue;
                }
                let options = Attention { mask, ..Default::default() };
                Problem::new(shape(1, [n, n], [2, 1], [12, 12]), options).check(device, &mut rng);
            }
        }
    }
}

#[test]
fn more_queries_than_keys_and_fewer() {
    for (index, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(index, 5);
        let mut rng = Rng(2);
        for [seq_q, seq_k] in [[37, 21], [21, 37], [1, 100], [100, 1], [5, 0], [3, 0]] {
            for mask in [Mask::None, BOTTOM_RIGHT, TOP_LEFT] {
                if !deal.takes() {
                    continue;
                }
                let options = Attention { mask, ..Default::default() };
                Problem::new(shape(2, [seq_q, seq_k], [2, 2], [16, 16]), options)
                    .check(device, &mut rng);
            }
        }
    }
}

#[test]
fn head_sizes() {
    for (index, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(index, 8);
        let mut rng = Rng(3);
        for dims in [
            [1, 1],
            [3, 5],
            [5, 3],
            [40, 40],
            [64, 32],
            [72, 80],
            [128, 128],
            [192, 128],
            [256, 256],
        ] {
            if !deal.takes() {
                continue;
            }
            let options = Attention { mask: BOTTOM_RIGHT, ..Default::default() };
            Problem::new(shape(1, [19, 23], [2, 1], dims), options).check(device, &mut rng);
            device.ctx.forget_kernels();
        }
    }
}

#[test]
fn element_types() {
    for (index, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(index, 3);
        let mut rng = Rng(4);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for dims in [[16, 16], [7, 9]] {
                if !deal.takes() {
                    continue;
                }
                let options = Attention { dtype, mask: BOTTOM_RIGHT, ..Default::default() };
                Problem::new(shape(2, [33, 40], [4, 2], dims), options).check(device, &mut rng);
            }
        }
    }
}

/// Options at random, as many of them as the bindings of `device` allow.
fn random_options(rng: &mut Rng, device: &Device) -> Attention {
    let often = |rng: &mut Rng| rng.range(0, 4) == 0;
    let reach = |rng: &mut Rng| *rng.pick(&[None, Some(0), Some(1), Some(5), Some(30)]);
    let mut op = Attention {
        mask: *rng.pick(&[Mask::None, BOTTOM_RIGHT, TOP_LEFT]),
        scale: *rng.pick(&[None, Some(0.7), Some(-0.1), Some(0.0), Some(3.0)]),
        dtype: *rng.pick(&[DType::F32, DType::F16, DType::BF16]),
        split: *rng.pick(&[Split::Auto, Split::Never, Split::Keys(64)]),
        ..Default::default()
    };
    if rng.range(0, 3) == 0 {
        op.window = Window { left: reach(rng), right: reach(rng) };
    }
    if often(rng) {
        op.softcap = Some(*rng.pick(&[0.5, 2.0, 50.0]));
    }
    op.key_lengths = often(rng);
    if op.key_lengths && rng.range(0, 2) == 0 {
        op.page_size = Some(*rng.pick(&[1, 4, 16, 32]));
    }
    if often(rng) && op.page_size.is_none_or(|page| page >= 16) {
        op.quantized = Some(16);
    }
    // most with little to unroll: every combination is a kernel to compile
    if rng.range(0, 4) > 0 {
        let workgroup = device.ctx.caps.subgroup.map_or(8, |(_, most)| most.max(8));
        let tiles = Tiles { workgroup, queries: 1, block_k: *rng.pick(&[1, 2]) };
        op.schedule = Some(Schedule::Rows(tiles));
        if op.page_size == Some(1) {
            op.schedule = None;
        }
    }
    for option in 0..5 {
        let mut more = op;
        let flag = match option {
            0 => &mut more.alibi,
            1 => &mut more.bias,
            2 => &mut more.visible,
            3 => &mut more.sinks,
            _ => &mut more.metric,
        };
        *flag = often(rng);
        // a device with few bindings takes few at once
        if more.design(&device.ctx.caps, shape(1, [1, 1], [1, 1], [4, 4])).is_ok() {
            op = more;
        }
    }
    op
}

/// Random problems, views and options; the seed of a failure is in its message.
#[test]
fn random_problems() {
    let count = if slow() { 1000 } else { 100 };
    for (index, device) in devices().iter().enumerate() {
        let mut ran = 0;
        for seed in 0..count {
            if !in_turn(index, seed as u32, 20) {
                continue;
            }
            let mut rng = Rng(1000 + seed);
            let heads_kv = rng.range(1, 4);
            let mut s = shape(
                rng.range(1, 3),
                [rng.range(1, 70), rng.range(1, 70)],
                [heads_kv * rng.range(1, 4), heads_kv],
                // few sizes: every new one is a kernel to compile
                *rng.pick(&[[16, 16], [8, 20], [7, 3]]),
            );
            let options = random_options(&mut rng, device);
            if options.scale == Some(0.0) {
                // All rows of a head are one mean of values: of six such numbers the error of one
                // correct sum is often more than twice that of another, of sixty never.
                (s.batch, s.head_dim, s.head_dim_v) = (if options.packed { 1 } else { 3 }, 8, 20);
            }
            let mut problem = Problem::new(s, options);
            problem.layouts = problem.layouts.map(|l| random_layout(&mut rng, l.shape));
            println!("seed {}", 1000 + seed);
            problem.check(device, &mut rng);
            ran += 1;
        }
        println!("{}: {ran} problems", device.name);
        device.ctx.forget_kernels();
    }
}

/// Few rows of a key head, whose channels lanes share: chunks that are no whole number of lanes, words
/// of every type, views that do not start at one, and options at random.
#[test]
fn decoding() {
    let count = if slow() { 500 } else { 40 };
    for (index, device) in devices().iter().enumerate() {
        let mut ran = 0;
        for seed in 0..count {
            if !in_turn(index, seed as u32, 20) {
                continue;
            }
            let mut rng = Rng(5000 + seed);
            // more than eight chunks are more than one to a lane
            let dims = *rng.pick(&[[8, 8], [24, 16], [8, 72], [72, 8]]);
            let [seq_q, group] = *rng.pick(&[[1, 1], [1, 2], [1, 3], [1, 4], [2, 2], [3, 1]]);
            let heads_kv = rng.range(1, 4);
            let keys = *rng.pick(&[1, 3, 4, 63, 64, 65, 131, 257]);
            let batch = rng.range(1, 4);
            let s = shape(batch, [seq_q, keys], [heads_kv * group, heads_kv], dims);
            let mut options = Attention {
                schedule: None,
                metric: false,
                split: *rng.pick(&[Split::Auto, Split::Keys(64)]),
                // rows that are all alike are too few to compare errors by, see random_problems
                scale: *rng.pick(&[None, Some(0.7), Some(-0.1)]),
                ..random_options(&mut rng, device)
            };
            // every other one reads whole words, some of them bytes
            if seed % 4 == 1 {
                options.page_size = options.page_size.map(|_| 16);
                options.quantized = Some(16);
            }
            let mut problem = Problem::new(s, options);
            if seed % 2 == 0 {
                problem.layouts = problem.layouts.map(|l| random_layout(&mut rng, l.shape));
            }
            println!("seed {}", 5000 + seed);
            let lanes = options.plan(&device.ctx, s).unwrap().label().contains("decode:decode");
            assert_eq!(lanes, device.ctx.caps.is_cpu());
            problem.check(device, &mut rng);
            ran += 1;
        }
        println!("{}: {ran} problems", device.name);
        device.ctx.forget_kernels();
    }
}

/// The same numbers in rows that start at whole words and in rows that do not, one row and three, the
/// same bits; a hidden key and value of NaN is in none.
#[test]
fn decoding_reads_words_or_elements() {
    for (index, device) in everywhere().iter().enumerate() {
        let (mut deal, ctx) = (Deal::new(index, 2), &device.ctx);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            if !deal.takes() {
                continue;
            }
            let (h, n, d) = (3, 70, 72);
            let mut rng = Rng(51);
            let q = rng.vec((h * d) as usize);
            let (mut k, mut v) = (rng.vec((n * d) as usize), rng.vec((n * d) as usize));
            for x in k[(69 * d) as usize..].iter_mut().chain(&mut v[(69 * d) as usize..]) {
                *x = f32::NAN;
            }
            let op = Attention { dtype, key_lengths: true, ..Default::default() };
            let decode = |heads: u32, pad: u64, offset: u64| -> Vec<f32> {
                let s = shape(1, [1, n], [heads, 1], [d, d]);
                let plan = op.plan(ctx, s).unwrap();
                let layout = Layout {
                    strides: [0, 72 + pad, 0, 1],
                    offset,
                    ..Layout::contiguous([1, n, 1, d])
                };
                let up = |x: &[f32]| upload_as(ctx, layout, x, dtype).unwrap();
                let (k, v) = (up(&k), up(&v));
                let row = Layout::contiguous([1, 1, heads, d]);
                let q = upload_as(ctx, row, &q[..(heads * d) as usize], dtype).unwrap();
                let o = Guarded::new(ctx, row, dtype);
                let scratch = scratch(ctx, plan.scratch_bytes());
                let args = AttentionArgs {
                    key_lengths: Some(&[69]),
                    scratch: Some(&scratch),
                    ..AttentionArgs::new(
                        q.view_as(row).unwrap(),
                        k.view_as(layout).unwrap(),
                        v.view_as(layout).unwrap(),
                        o.view(),
                    )
                };
                run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
                o.read(ctx)
            };
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let whole = decode(3, 0, 0);
            assert!(whole.iter().all(|x| x.is_finite()), "{}", device.name);
            for (pad, offset) in [(8, 16), (4, 0), (3, 5)] {
                let other = decode(3, pad, offset);
                assert_eq!(bits(&whole), bits(&other), "{}, {dtype}, {pad}, {offset}", device.name);
            }
            for heads in [1, 2] {
                let some = decode(heads, 0, 0);
                assert_eq!(bits(&some), bits(&whole[..some.len()]), "{}, {heads}", device.name);
            }
        }
    }
}

/// Each option alone, on sizes that leave ragged tails.
#[test]
fn each_option() {
    let base = Attention { split: Split::Never, ..Default::default() };
    let paged = Attention { key_lengths: true, page_size: Some(16), ..base };
    let window = |left, right| Attention { window: Window { left, right }, ..base };
    let all = [
        Attention { split: Split::Keys(64), mask: BOTTOM_RIGHT, ..base },
        window(Some(3), Some(2)),
        window(Some(0), Some(0)),
        Attention { mask: TOP_LEFT, ..window(Some(7), None) },
        Attention { softcap: Some(0.7), ..base },
        Attention { alibi: true, mask: BOTTOM_RIGHT, ..base },
        Attention { bias: true, ..base },
        Attention { visible: true, ..base },
        Attention { sinks: true, mask: BOTTOM_RIGHT, ..base },
        Attention { sinks: true, split: Split::Keys(64), ..base },
        Attention { metric: true, ..base },
        Attention { key_lengths: true, ..base },
        Attention { quantized: Some(16), ..base },
        Attention { mask: BOTTOM_RIGHT, ..paged },
        Attention { quantized: Some(16), split: Split::Keys(64), ..paged },
        Attention { page_size: Some(1), ..paged },
    ];
    for (index, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(index, 8);
        for options in all {
            if !deal.takes() {
                continue;
            }
            let mut rng = Rng(20);
            let mut problem = Problem::new(shape(2, [37, 131], [4, 2], [12, 8]), options);
            problem.check(device, &mut rng);
            problem.shape.seq_q = 3;
            let problem = Problem::new(problem.shape, options);
            problem.check(device, &mut rng);
        }
        device.ctx.forget_kernels();
    }
}

/// One latent head of 576 channels whose first 512 are the values.
#[test]
fn latent_keys() {
    for (index, device) in devices().iter().enumerate() {
        // the longest kernel there is: one device, and the golden cases on all
        if !in_turn(index, 1, u32::MAX) {
            continue;
        }
        let ctx = &device.ctx;
        let mut rng = Rng(21);
        let s = shape(2, [2, 50], [8, 1], [576, 512]);
        let op = Attention { mask: BOTTOM_RIGHT, scale: Some(0.0721), ..Default::default() };
        let plan = op.plan(ctx, s).unwrap();
        let (q, kv) = (rng.vec(2 * 2 * 8 * 576), rng.vec(2 * 50 * 576));
        let tq = Tensor::upload(ctx, [2, 2, 8, 576], &q).unwrap();
        let cache = Tensor::upload(ctx, [2, 50, 1, 576], &kv).unwrap();
        let values = Layout { shape: [2, 50, 1, 512], ..cache.view().layout };
        let o = Guarded::new(ctx, Layout::contiguous([2, 2, 8, 512]), DType::F32);
        let scratch = scratch(ctx, plan.scratch_bytes());
        let args = AttentionArgs {
            scratch: Some(&scratch),
            ..AttentionArgs::new(tq.view(), cache.view(), cache.view_as(values).unwrap(), o.view())
        };
        run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
        let v = kv.chunks(576).flat_map(|row| row[..512].to_vec()).collect();
        let inputs = Inputs { q, k: kv, v, ..Default::default() };
        let (want, _) = inputs.reference(&s, &op);
        let plain = rel_rms(&inputs.plain(&s, &op), &want);
        let error = rel_rms(&o.read(ctx), &want);
        assert!(error <= 2.0 * plain.max(1.2e-7), "{}: {error:.1e} {plain:.1e}", device.name);
        ctx.forget_kernels();
    }
}

/// Packed sequences, empty ones among them, against each one alone; with keys in one row or in pages,
/// and with a bias for each head and a mask for all of them, by positions of the sequence or the pack.
#[test]
fn packed_sequences() {
    let (lens_q, lens_k) = ([5u32, 0, 40, 1, 33], [9u32, 4, 40, 0, 70]);
    let bounds = |lens: &[u32]| {
        let sum = |all: &mut u32, &n: &u32| {
            *all += n;
            Some(*all)
        };
        [0].into_iter().chain(lens.iter().scan(0, sum)).collect::<Vec<u32>>()
    };
    let (cu_q, cu_k) = (bounds(&lens_q), bounds(&lens_k));
    let [total_q, total_k] = [cu_q[5], cu_k[5]];
    for (index, device) in devices().iter().enumerate() {
        let ctx = &device.ctx;
        let (by_sequence, by_pack) = (Some(BiasPositions::Sequence), Some(BiasPositions::Pack));
        for (i, split, dtype, paged, positions) in [
            (0, Split::Auto, DType::F32, false, None),
            (1, Split::Keys(64), DType::F16, false, None),
            (2, Split::Never, DType::F16, true, None),
            (3, Split::Keys(64), DType::F32, true, None),
            (4, Split::Auto, DType::F32, false, by_pack),
            (5, Split::Keys(64), DType::F16, false, by_pack),
            (6, Split::Auto, DType::BF16, true, by_pack),
            (7, Split::Never, DType::F16, false, by_sequence),
            (8, Split::Keys(64), DType::F32, true, by_sequence),
        ] {
            if !in_turn(index, i, 4) {
                continue;
            }
            let mut rng = Rng(22);
            let (h, hk, d, dv) = (4, 2, 12, 8);
            let vec = |rng: &mut Rng, n: u32| rounded(&rng.vec(n as usize), dtype);
            let q = vec(&mut rng, total_q * h * d);
            let k = vec(&mut rng, total_k * hk * d);
            let v = vec(&mut rng, total_k * hk * dv);
            let op = Attention {
                mask: BOTTOM_RIGHT,
                packed: true,
                split,
                dtype,
                // no more bindings than every device has
                alibi: positions.is_none(),
                bias: positions.is_some(),
                visible: positions.is_some(),
                bias_positions: positions.unwrap_or_default(),
                key_lengths: paged,
                page_size: paged.then_some(16),
                ..Default::default()
            };
            let longest = if paged { 70 } else { total_k };
            // place of the entry of each query and key of a sequence in the bias and the mask of a head
            let pack = positions == by_pack;
            let [batch, rows, columns] = if pack { [1, total_q, total_k] } else { [5, 40, 70] };
            let place = |heads: u32, seq: usize, head: u32, i: u32, j: u32| {
                let [a, i, j] =
                    if pack { [0, cu_q[seq] + i, cu_k[seq] + j] } else { [seq as u32, i, j] };
                (((a * heads + head) * rows + i) * columns + j) as usize
            };
            let entries = |heads: u32, seq: usize| -> Vec<usize> {
                let [t, n] = [lens_q[seq], lens_k[seq]];
                (0..heads * t * n)
                    .map(|at| place(heads, seq, at / (t * n), at / n % t, at % n))
                    .collect()
            };
            // entries of no pair are never used
            let mut bias = vec![f32::NAN; (batch * h * rows * columns) as usize];
            let mut mask = vec![1.0; (batch * rows * columns) as usize];
            for seq in 0..5 {
                for at in entries(h, seq) {
                    let hidden = rng.range(0, 8) == 0;
                    bias[at] = if hidden { f32::NEG_INFINITY } else { 2.0 * rng.unit() };
                }
                for at in entries(1, seq) {
                    mask[at] = f32::from(u8::from(rng.range(0, 3) > 0));
                }
            }
            let bias_dtype = if i == 6 { DType::F32 } else { dtype };
            let bias = rounded(&bias, bias_dtype);
            // rows of the mask begin at whole words, though a sequence's keys may not, and those of
            // the bias do not
            let room = |heads: u32, step: u32, offset: u64| Layout {
                shape: [batch, heads, rows, columns],
                strides: [heads * rows * step, rows * step, step, 1].map(u64::from),
                offset,
            };
            let bias_layout = room(h, columns + 1 + columns % 2, 3);
            let mask_layout = room(1, columns.next_multiple_of(4), 8);
            let tbias = upload_as(ctx, bias_layout, &bias, bias_dtype).unwrap();
            let tmask = upload_as(ctx, mask_layout, &mask, DType::U8).unwrap();
            let s = shape(1, [total_q, longest], [h, hk], [d, dv]);
            let plan = op.plan(ctx, s).unwrap();
            let slopes = [0.1f32, 0.2, 0.3, 0.4];
            let tslopes = Tensor::upload(ctx, [4], &slopes).unwrap();
            let tq = upload_as(ctx, Layout::contiguous([1, total_q, h, d]), &q, dtype).unwrap();
            // pages in order of the sequences, five for each
            let table: Vec<u32> = (0..25).rev().collect();
            let store = |x: &[f32], d: u32| {
                if !paged {
                    let layout = Layout::contiguous([1, total_k, hk, d]);
                    return (layout, upload_as(ctx, layout, x, dtype).unwrap());
                }
                let row = (hk * d) as usize;
                let mut cache = vec![f32::NAN; 25 * 16 * row];
                for (seq, pair) in cu_k.windows(2).enumerate() {
                    for (t, from) in (pair[0]..pair[1]).enumerate() {
                        let to = table[seq * 5 + t / 16] as usize * 16 + t % 16;
                        cache[to * row..][..row].copy_from_slice(&x[from as usize * row..][..row]);
                    }
                }
                let layout = Layout::contiguous([25, 16, hk, d]);
                (layout, upload_as(ctx, layout, &cache, dtype).unwrap())
            };
            let ((lk, tk), (lv, tv)) = (store(&k, d), store(&v, dv));
            let o = Guarded::new(ctx, Layout::contiguous([1, total_q, h, dv]), dtype);
            let lse = Guarded::new(ctx, Layout::contiguous([1, h, total_q]), DType::F32);
            let scratch = scratch(ctx, plan.scratch_bytes());
            let args = AttentionArgs {
                lse: Some(lse.view()),
                scratch: Some(&scratch),
                slopes: op.alibi.then(|| tslopes.view()),
                bias: op.bias.then(|| tbias.view_as(bias_layout).unwrap()),
                visible: op.visible.then(|| tmask.view_as(mask_layout).unwrap()),
                cu_seqlens_q: Some(&cu_q),
                cu_seqlens_k: (!paged).then_some(&cu_k[..]),
                key_lengths: paged.then_some(&lens_k[..]),
                page_table: paged.then_some(&table[..]),
                ..AttentionArgs::new(
                    tq.view_as(Layout::contiguous([1, total_q, h, d])).unwrap(),
                    tk.view_as(lk).unwrap(),
                    tv.view_as(lv).unwrap(),
                    o.view(),
                )
            };
            run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
            let (got, got_lse) = (o.read(ctx), lse.read(ctx));
            let all = reference::packed_attention(
                &AttentionShape { seq_k: total_k, ..s },
                &op,
                &reference::AttentionInputs {
                    q: &to_f64(&q),
                    k: &to_f64(&k),
                    v: &to_f64(&v),
                    slopes: &to_f64(&slopes),
                    bias: &to_f64(&bias),
                    visible: &spread(&mask, [batch, 1, rows, columns], [batch, h, rows, columns])
                        .iter()
                        .map(|&x| x > 0.0)
                        .collect::<Vec<_>>(),
                    ..Default::default()
                },
                &cu_q,
                &cu_k,
            );
            for seq in 0..5 {
                let rows_of = |cu: &[u32], width: u32| {
                    (cu[seq] * width) as usize..(cu[seq + 1] * width) as usize
                };
                let alone = shape(1, [lens_q[seq], lens_k[seq]], [h, hk], [d, dv]);
                let inputs = Inputs {
                    q: q[rows_of(&cu_q, h * d)].to_vec(),
                    k: k[rows_of(&cu_k, hk * d)].to_vec(),
                    v: v[rows_of(&cu_k, hk * dv)].to_vec(),
                    slopes: slopes.to_vec(),
                    bias: entries(h, seq).into_iter().map(|at| bias[at]).collect(),
                    visible: (0..h)
                        .flat_map(|_| entries(1, seq))
                        .map(|at| mask[at] > 0.0)
                        .collect(),
                    ..Default::default()
                };
                let (want, want_lse) = inputs.reference(&alone, &op);
                assert!(all.0[rows_of(&cu_q, h * dv)] == want, "{op:?} {seq}");
                let error = rel_rms(&got[rows_of(&cu_q, h * dv)], &want);
                let plain = rel_rms(&rounded(&inputs.plain(&alone, &op), dtype), &want);
                let budget = 2.0 * plain.max(2.0 * dtype.unit_roundoff());
                assert!(error <= budget, "{} {op:?} {seq}: {error:.1e}", device.name);
                for (at, want) in want_lse.iter().enumerate() {
                    let (head, row) = (at / lens_q[seq] as usize, at % lens_q[seq] as usize);
                    let got = got_lse[head * total_q as usize + cu_q[seq] as usize + row];
                    let same = f64::from(got) == *want || (f64::from(got) - want).abs() < 1e-5;
                    assert!(same, "{} {op:?} {seq}: LSE {got} {want}", device.name);
                }
            }
        }
        ctx.forget_kernels();
    }
}

/// A row's bits do not depend on the batch that it sits in, nor on the longest of its sequences.
#[test]
fn decoding_does_not_depend_on_the_batch() {
    for device in everywhere() {
        let ctx = &device.ctx;
        let mut rng = Rng(23);
        let lengths = [700u32, 1, 300, 256, 513];
        let (h, hk, d) = (4u32, 2u32, 16u32);
        let row = (hk * d) as usize;
        let q = rng.vec(5 * (h * d) as usize);
        let caches: Vec<[Vec<f32>; 2]> =
            lengths.iter().map(|&n| [0, 1].map(|_| rng.vec(n as usize * row))).collect();
        let decode = |batch: &[usize]| -> Vec<Vec<u32>> {
            let most = batch.iter().map(|&b| lengths[b]).max().unwrap();
            let n = batch.len() as u32;
            let s = shape(n, [1, most], [h, hk], [d, d]);
            let op = Attention { key_lengths: true, ..Default::default() };
            let plan = op.plan(ctx, s).unwrap();
            let mut data = [Vec::new(), Vec::new()];
            let mut queries: Vec<f32> = Vec::new();
            for &b in batch {
                for (all, one) in data.iter_mut().zip(&caches[b]) {
                    all.extend(one);
                    all.resize(all.len() + (most - lengths[b]) as usize * row, f32::NAN);
                }
                queries.extend(&q[b * (h * d) as usize..][..(h * d) as usize]);
            }
            let tq = Tensor::upload(ctx, [n, 1, h, d], &queries).unwrap();
            let [tk, tv] = data.map(|x| Tensor::upload(ctx, [n, most, hk, d], &x).unwrap());
            let o = Tensor::zeros(ctx, [n, 1, h, d], DType::F32).unwrap();
            let scratch = scratch(ctx, plan.scratch_bytes());
            let of_batch: Vec<u32> = batch.iter().map(|&b| lengths[b]).collect();
            let args = AttentionArgs {
                key_lengths: Some(&of_batch),
                scratch: Some(&scratch),
                ..AttentionArgs::new(tq.view(), tk.view(), tv.view(), o.view())
            };
            run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
            let out: Vec<f32> = o.download(ctx).unwrap();
            out.chunks((h * d) as usize).map(|x| x.iter().map(|x| x.to_bits()).collect()).collect()
        };
        let all = decode(&[0, 1, 2, 3, 4]);
        for (b, together) in all.iter().enumerate() {
            assert_eq!(&decode(&[b])[0], together, "{} sequence {b}", device.name);
        }
        let other = decode(&[4, 2]);
        assert_eq!([&other[0], &other[1]], [&all[4], &all[2]], "{}", device.name);
    }
}

/// Attention over three shards of the keys, one of them hidden from some rows, merged.
#[test]
fn merged_shards_are_the_whole() {
    for device in devices() {
        let ctx = &device.ctx;
        for (dtype, d) in [(DType::F32, 16), (DType::F16, 16), (DType::F32, 7)] {
            let mut rng = Rng(24);
            let s = shape(2, [33, 90], [4, 2], [d, d]);
            let vec = |rng: &mut Rng, n: u32| rounded(&rng.vec(n as usize), dtype);
            let (q, k, v) = (
                vec(&mut rng, 2 * 33 * 4 * d),
                vec(&mut rng, 2 * 90 * 2 * d),
                vec(&mut rng, 2 * 90 * 2 * d),
            );
            let up = |x: &[f32], dims: [u32; 4]| {
                upload_as(ctx, Layout::contiguous(dims), x, dtype).unwrap()
            };
            let (tq, tk, tv) =
                (up(&q, [2, 33, 4, d]), up(&k, [2, 90, 2, d]), up(&v, [2, 90, 2, d]));
            let parts = Tensor::zeros(ctx, [3, 2, 33, 4, d], dtype).unwrap();
            let lses = Tensor::zeros(ctx, [3, 2, 4, 33], DType::F32).unwrap();
            // a causal mask of the whole: rows before a shard's first key see none of it
            for (part, (first, length)) in
                [(0u32, 20u32), (20, 15), (35, 55)].into_iter().enumerate()
            {
                let part = part as u64;
                let op =
                    Attention { visible: true, dtype, split: Split::Never, ..Default::default() };
                let shard = shape(2, [33, length], [4, 2], [d, d]);
                let mask: Vec<f32> = (0..33 * length)
                    .map(|i| f32::from(u8::from(first + i % length <= i / length)))
                    .collect();
                let mask_layout = Layout::contiguous([1, 1, 33, length]);
                let tmask = upload_as(ctx, mask_layout, &mask, DType::U8).unwrap();
                let plan = op.plan(ctx, shard).unwrap();
                let keys = Layout {
                    shape: [2, length, 2, d],
                    offset: u64::from(first * 2 * d),
                    ..Layout::contiguous([2, 90, 2, d])
                };
                let size = u64::from(2 * 33 * 4 * d);
                let out = Layout::contiguous([2, 33, 4, d]).with_offset(part * size);
                let lse = Layout::contiguous([2, 4, 33]).with_offset(part * 2 * 4 * 33);
                let args = AttentionArgs {
                    lse: Some(lses.view_as(lse).unwrap()),
                    visible: Some(tmask.view_as(mask_layout).unwrap()),
                    ..AttentionArgs::new(
                        tq.view_as(Layout::contiguous([2, 33, 4, d])).unwrap(),
                        tk.view_as(keys).unwrap(),
                        tv.view_as(keys).unwrap(),
                        parts.view_as(out).unwrap(),
                    )
                };
                run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
            }
            let o = Guarded::new(ctx, Layout::contiguous([2, 33, 4, d]), dtype);
            let lse = Guarded::new(ctx, Layout::contiguous([2, 4, 33]), DType::F32);
            let merge = Merge { dtype, parts_dtype: dtype };
            let sizes = MergeShape { parts: 3, batch: 2, seq: 33, heads: 4, head_dim_v: d };
            let plan = merge.plan(ctx, sizes).unwrap();
            let args = MergeArgs {
                o_parts: parts.view(),
                lse_parts: lses.view(),
                o: o.view(),
                lse: Some(lse.view()),
            };
            run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
            let inputs = Inputs { q, k, v, ..Default::default() };
            let op = Attention { mask: TOP_LEFT, ..Default::default() };
            let (want, want_lse) = inputs.reference(&s, &op);
            // parts are rounded, too
            let error = rel_rms(&o.read(ctx), &want);
            assert!(error < 4.0 * dtype.unit_roundoff().max(1e-7), "{}: {error:.1e}", device.name);
            let error = rel_rms(&lse.read(ctx), &want_lse);
            assert!(error < 1e-6, "{}: LSE {error:.1e}", device.name);
        }
        ctx.forget_kernels();
    }
}

/// A part that saw no key is not looked at, whatever its output holds; a row with one other part is that
/// part, bit for bit; a row with none is empty.
#[test]
fn merge_ignores_parts_without_keys() {
    for device in devices() {
        let ctx = &device.ctx;
        let (none, nan) = (f32::NEG_INFINITY, f32::NAN);
        // three parts of three rows of two channels
        let o_parts = [[nan, nan, 0.3, -7.1, nan, nan], [0.1, 0.7, nan, nan, nan, nan], [nan; 6]];
        let lse_parts = [[none, -3.3, none], [90.7, none, none], [none; 3]];
        let o_parts = Tensor::upload(ctx, [3, 1, 3, 1, 2], &o_parts.concat()).unwrap();
        let lse_parts = Tensor::upload(ctx, [3, 1, 1, 3], &lse_parts.concat()).unwrap();
        let o = Guarded::new(ctx, Layout::contiguous([1, 3, 1, 2]), DType::F32);
        let lse = Guarded::new(ctx, Layout::contiguous([1, 1, 3]), DType::F32);
        let sizes = MergeShape { parts: 3, batch: 1, seq: 3, heads: 1, head_dim_v: 2 };
        let plan = Merge::default().plan(ctx, sizes).unwrap();
        let args = MergeArgs {
            o_parts: o_parts.view(),
            lse_parts: lse_parts.view(),
            o: o.view(),
            lse: Some(lse.view()),
        };
        run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
        assert_eq!(o.read(ctx), [0.1, 0.7, 0.3, -7.1, 0.0, 0.0], "{}", device.name);
        assert_eq!(lse.read(ctx), [90.7, -3.3, none], "{}", device.name);
    }
}

#[test]
fn pairs_of_keys() {
    for device in devices() {
        let ctx = &device.ctx;
        let mut rng = Rng(25);
        for (causal, dims, dtype) in
            [(false, [16, 16], DType::F32), (true, [16, 8], DType::F16), (true, [5, 3], DType::F32)]
        {
            let [d, dv] = dims;
            let (t, s1, s2, h, hk) = (9u32, 7u32, if causal { 9 } else { 6 }, 4u32, 2u32);
            let tensor = |rng: &mut Rng, n: u32, h: u32, d: u32| {
                let layout = random_layout(rng, [2, n, h, d]);
                let x = rounded(&rng.vec((2 * n * h * d) as usize), dtype);
                (upload_as(ctx, layout, &x, dtype).unwrap(), layout, to_f64(&x))
            };
            let q = tensor(&mut rng, t, h, d);
            let k1 = tensor(&mut rng, s1, hk, d);
            let k2 = tensor(&mut rng, s2, hk, d);
            let v1 = tensor(&mut rng, s1, hk, dv);
            let v2 = tensor(&mut rng, s2, hk, dv);
            let o = Guarded::new(ctx, random_layout(&mut rng, [2, t, h, dv]), dtype);
            let lse = Guarded::new(ctx, Layout::contiguous([2, h, t]), DType::F32);
            let op = TripleAttention { causal, scale: Some(0.9), dtype };
            let s = TripleShape {
                batch: 2,
                seq_q: t,
                seq_1: s1,
                seq_2: s2,
                heads: h,
                heads_kv: hk,
                head_dim: d,
                head_dim_v: dv,
            };
            let args = TripleArgs {
                q: q.0.view_as(q.1).unwrap(),
                k1: k1.0.view_as(k1.1).unwrap(),
                k2: k2.0.view_as(k2.1).unwrap(),
                v1: v1.0.view_as(v1.1).unwrap(),
                v2: v2.0.view_as(v2.1).unwrap(),
                o: o.view(),
                lse: Some(lse.view()),
            };
            let plan = op.plan(ctx, s).unwrap();
            run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
            let (want, want_lse) =
                reference::triple_attention(&s, &op, &q.2, &k1.2, &k2.2, &v1.2, &v2.2);
            let error = rel_rms(&o.read(ctx), &want);
            assert!(error < 4.0 * dtype.unit_roundoff(), "{} {op:?}: {error:.1e}", device.name);
            for (got, want) in lse.read(ctx).iter().zip(&want_lse) {
                assert!((f64::from(*got) - want).abs() < 4e-6, "{}: {got} {want}", device.name);
            }
        }
    }
}

#[test]
fn appended_rows_land_in_their_pages() {
    for device in devices() {
        let ctx = &device.ctx;
        for (dtype, [d, dv]) in [(DType::F32, [8, 4]), (DType::F16, [5, 3]), (DType::BF16, [8, 8])]
        {
            let mut rng = Rng(26);
            let (batch, seq, h, pages, size) = (2u32, 3u32, 2u32, 7u32, 4u32);
            let append = KvAppend { dtype };
            let s = KvAppendShape {
                batch,
                seq,
                heads_kv: h,
                head_dim: d,
                head_dim_v: dv,
                pages,
                page_size: size,
            };
            let plan = append.plan(ctx, s).unwrap();
            let new = |rng: &mut Rng, d: u32| {
                let x = rounded(&rng.vec((batch * seq * h * d) as usize), dtype);
                (upload_as(ctx, Layout::contiguous([batch, seq, h, d]), &x, dtype).unwrap(), x)
            };
            let (tk, k) = new(&mut rng, d);
            let (tv, v) = new(&mut rng, dv);
            let k_pages = Guarded::new(ctx, Layout::contiguous([pages, size, h, d]), dtype);
            let v_pages = Guarded::new(ctx, Layout::contiguous([pages, size, h, dv]), dtype);
            let (first, table) = ([6u32, 3], [9, 2, 5, 0, 4, 9]);
            let args = KvAppendArgs {
                k: tk.view_as(Layout::contiguous([batch, seq, h, d])).unwrap(),
                v: tv.view_as(Layout::contiguous([batch, seq, h, dv])).unwrap(),
                k_pages: k_pages.view(),
                v_pages: v_pages.view(),
                first: &first,
                page_table: &table,
            };
            run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
            for (cache, x, d) in [(&k_pages, &k, d), (&v_pages, &v, dv)] {
                let got = cache.read(ctx);
                let row = (h * d) as usize;
                let mut want = vec![f32::NAN; got.len()];
                // rows 6, 7, 8 of the first sequence, 3, 4, 5 of the second
                let places = [2 * 4 + 2, 2 * 4 + 3, 5 * 4, 3, 4 * 4, 4 * 4 + 1];
                for (from, to) in x.chunks(row).zip(places) {
                    want[to * row..][..row].copy_from_slice(from);
                }
                let same = got.iter().zip(&want).all(|(g, w)| g == w || (g.is_nan() && w.is_nan()));
                assert!(same, "{} {dtype}: {got:?} {want:?}", device.name);
            }
            let mut encoder = ctx.device.create_command_encoder(&Default::default());
            let mut refused = |first: &[u32], page_table: &[u32]| {
                plan.encode(ctx, &mut encoder, &KvAppendArgs { first, page_table, ..args })
                    .unwrap_err()
                    .to_string()
            };
            assert!(refused(&[6, 3], &[9, 2, 7, 0, 4, 9]).contains("pages below 7"));
            assert!(refused(&[10, 3], &table).contains("rows below 12"));
            assert!(refused(&[6], &table).contains("2 sequences"));
            assert!(refused(&[6, 3], &[9, 2, 5, 2, 4, 9]).contains("two rows"));
            let plan = KvAppend { dtype }.plan(ctx, KvAppendShape { page_size: 6, ..s });
            assert!(matches!(plan, Err(Error::Shape { .. })));
        }
    }
}

#[test]
fn unfused_agrees() {
    for device in devices() {
        let mut rng = Rng(6);
        for mask in [Mask::None, BOTTOM_RIGHT] {
            let options = Attention { mask, algorithm: Algorithm::Unfused, ..Default::default() };
            Problem::new(shape(2, [33, 21], [4, 2], [24, 20]), options).check(device, &mut rng);
        }
    }
}

#[test]
fn every_supported_tile_is_right() {
    for (index, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(index, 12);
        let mut rng = Rng(7);
        let s = shape(1, [43, 39], [1, 1], [12, 8]);
        for tiles in Attention::supported_tiles(&device.ctx.caps, &s) {
            // the largest take seconds to compile and add nothing
            if tiles.queries * tiles.block_k > 8 || tiles.workgroup > 64 {
                continue;
            }
            if !deal.takes() {
                continue;
            }
            let options = Attention {
                schedule: Some(Schedule::Rows(tiles)),
                mask: BOTTOM_RIGHT,
                ..Default::default()
            };
            Problem::new(s, options).check(device, &mut rng);
        }
        device.ctx.forget_kernels();
    }
}

/// Every kernel runs on every device if it is asked for, with tiles that no planner chooses, too.
#[test]
fn schedules_that_are_asked_for() {
    let register = |[lanes_k, lanes_q]: [u32; 2], rows, keys, depth, part| {
        Schedule::Tiled(RegisterTiles { lanes_k, lanes_q, rows, keys, depth, part })
    };
    let groups = |workgroup, lanes, rows, block_k| {
        let tiles = GroupTiles { workgroup, lanes, rows, block_k, chunk: 4, shuffles: false };
        Schedule::Groups(tiles)
    };
    for (index, device) in devices().iter().enumerate() {
        let caps = &device.ctx.caps;
        let mut deal = Deal::new(index, 4);
        let mut rng = Rng(77);
        let decode = |block_k| {
            let workgroup = match (caps.tier, caps.subgroup) {
                (Tier::Subgroup, Some((_, max))) => max,
                _ => 8,
            };
            Schedule::Decode(Tiles { workgroup, queries: 4, block_k })
        };
        // queries, heads to a key head, head sizes
        let cases = [
            (register([4, 2], 4, 4, 4, 4), 11, 1, [12, 8]),
            (register([8, 16], 4, 4, 8, 16), 67, 2, [20, 12]),
            (register([16, 4], 8, 4, 16, 64), 33, 1, [16, 16]),
            (register([4, 8], 4, 8, 16, 4), 40, 1, [9, 5]),
            (register([32, 2], 4, 8, 8, 8), 5, 1, [8, 100]),
            (groups(32, 4, 4, 1), 4, 1, [16, 12]),
            (groups(64, 8, 8, 2), 3, 2, [32, 32]),
            (groups(16, 16, 1, 4), 1, 2, [24, 8]),
            (groups(128, 32, 2, 4), 2, 1, [128, 160]),
            (decode(1), 2, 2, [16, 8]),
            (decode(2), 4, 1, [24, 32]),
        ];
        for (schedule, seq_q, group, dims) in cases {
            if !deal.takes() {
                continue;
            }
            let split = match schedule {
                Schedule::Tiled(_) => *rng.pick(&[Split::Never, Split::Keys(64)]),
                _ => Split::Keys(64),
            };
            let mask = *rng.pick(&[Mask::None, BOTTOM_RIGHT]);
            let options = Attention {
                schedule: Some(schedule),
                split,
                mask,
                alibi: rng.range(0, 2) == 0,
                visible: rng.range(0, 2) == 0,
                ..Default::default()
            };
            let s = shape(2, [seq_q, *rng.pick(&[43, 131])], [2 * group, 2], dims);
            assert_eq!(options.plan(&device.ctx, s).unwrap().schedule(), schedule);
            Problem::new(s, options).check(device, &mut rng);
        }
        device.ctx.forget_kernels();
    }
}

/// Mesa's llvmpipe before release 25 ends loops after 65,535 trips: see `Caps::loop_trips`.
#[test]
fn seventy_thousand_keys() {
    for device in devices() {
        let mut rng = Rng(8);
        let split = Split::Never;
        Problem::new(
            shape(1, [3, 70_000], [1, 1], [16, 16]),
            Attention { split, ..Default::default() },
        )
        .check(device, &mut rng);
        Problem::new(shape(1, [2, 70_000], [1, 1], [64, 64]), Attention::default())
            .check(device, &mut rng);
        // 33,000: too many for the portable kernel to stage them in a loop, if its trips are counted
        for keys in [33_000, 70_000] {
            let options = Attention { split, ..Default::default() };
            Problem::new(shape(1, [1, keys], [1, 1], [64, 64]), options).check(device, &mut rng);
        }
        // one part, of more blocks than such a loop has trips
        let options = Attention { split: Split::Keys(270_016), ..Default::default() };
        Problem::new(shape(1, [1, 270_000], [1, 1], [8, 8]), options).check(device, &mut rng);
    }
}

/// Scores that rise, fall, start far below or jump, so that the reference of the weights has to move,
/// for some rows and not for their neighbours, whose bits must not change for it.
#[test]
fn scores_far_from_each_other() {
    type Score = fn(u32) -> f32;
    let patterns: [(&str, Score); 6] = [
        ("rising", |j| 1.7 * j as f32),
        ("falling", |j| -1.7 * j as f32),
        ("low", |j| -300.0 + (j % 7) as f32 * 0.3),
        ("low, then high", |j| if j < 150 { -150.0 } else { 150.0 }),
        ("high, then low", |j| if j < 150 { 150.0 } else { -150.0 }),
        ("jumping", |j| (j * 37 % 101) as f32 * 2.0 - 100.0),
    ];
    let base = Attention { scale: Some(1.0), ..Default::default() };
    for (d, Device { name, ctx }) in everywhere().iter().enumerate() {
        let mut deal = Deal::new(d, 2);
        // no texture is so small: the same text reads buffers
        let buffers = ctx.with_caps(Caps { texels: 1, ..ctx.caps.clone() });
        for (pattern, score) in patterns {
            for (rows, op) in [
                (70, base),
                (70, Attention { mask: BOTTOM_RIGHT, sinks: true, ..base }),
                (70, Attention { window: Window { left: Some(9), right: Some(1) }, ..base }),
                (33, Attention { split: Split::Keys(64), ..base }),
                // parts that a row sees nothing of
                (130, Attention { split: Split::Keys(64), mask: TOP_LEFT, ..base }),
            ] {
                if !deal.takes() {
                    continue;
                }
                let s = shape(1, [rows, 300], [1, 1], [8, 8]);
                let mut rng = Rng(41);
                let mut k = rng.vec(300 * 8);
                for (j, row) in k.chunks_mut(8).enumerate() {
                    row[0] = score(j as u32);
                }
                let v = rng.vec(300 * 8);
                let noise = rng.vec(rows as usize * 8);
                let queries = |factor: fn(usize) -> f32| -> Vec<f32> {
                    let row = |(r, x): (usize, &[f32])| [&[factor(r)], &x[1..]].concat();
                    noise.chunks(8).enumerate().flat_map(row).collect()
                };
                let mixed = queries(|r| [0.997, 0.01, -1.003, 0.0, 0.3][r % 5]);
                // the same for every fifth row
                let calm = queries(|r| if r % 5 == 0 { 0.997 } else { 0.01 });
                let up = |x: &[f32], n: u32| Tensor::upload(ctx, [1, n, 1, 8], x).unwrap();
                let (tk, tv) = (up(&k, 300), up(&v, 300));
                let sinks = Tensor::upload(ctx, [1], &[3.0f32]).unwrap();
                let run_on = |ctx: &Context, q: &[f32]| {
                    let plan = op.plan(ctx, s).unwrap();
                    let tq = up(q, rows);
                    let out = Guarded::new(ctx, Layout::contiguous([1, rows, 1, 8]), DType::F32);
                    let lse = Guarded::new(ctx, Layout::contiguous([1, 1, rows]), DType::F32);
                    let scratch = scratch(ctx, plan.scratch_bytes());
                    let args = AttentionArgs {
                        sinks: op.sinks.then_some(sinks.view()),
                        lse: Some(lse.view()),
                        scratch: (plan.scratch_bytes() > 0).then_some(&scratch),
                        ..AttentionArgs::new(tq.view(), tk.view(), tv.view(), out.view())
                    };
                    run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
                    [out.read(ctx), lse.read(ctx)]
                };
                let inputs = Inputs {
                    q: mixed.clone(),
                    k: k.clone(),
                    v: v.clone(),
                    sinks: vec![3.0],
                    ..Default::default()
                };
                let (want, want_lse) = inputs.reference(&s, &op);
                let plain = rel_rms(&inputs.plain(&s, &op), &want);
                let message = format!("{name}, {pattern}, {rows} rows, {op:?}");
                for ctx in [ctx, &buffers] {
                    let [got, lse] = run_on(ctx, &mixed);
                    let error = rel_rms(&got, &want);
                    assert!(error <= 2.0 * plain.max(1.2e-7), "{message}: {error:e}, {plain:e}");
                    let error = rel_rms(&lse, &want_lse);
                    assert!(error < 1e-6, "{message}: LSE {error:e}");
                    let [other, _] = run_on(ctx, &calm);
                    for r in (0..rows as usize).step_by(5) {
                        let row = r * 8..r * 8 + 8;
                        assert_eq!(other[row.clone()], got[row], "{message}: row {r} alone");
                    }
                }
            }
        }
        // a key of no weight before all others, values near the ends of what f32 holds
        let s = shape(1, [33, 64], [1, 1], [8, 8]);
        for (first, size) in [(-1e31, 1.0), (-2000.0, 1.0), (-17.0, 1e-26), (10.0, 1e30)] {
            let score = |j: u32| if j < 2 { first } else { -100.0 - (j % 3) as f32 };
            let k: Vec<f32> = (0..64).flat_map(|j| [&[score(j)][..], &[0.0; 7]].concat()).collect();
            let v: Vec<f32> = Rng(43).vec(64 * 8).iter().map(|x| x * size).collect();
            let q = [1.0f32, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0].repeat(33);
            let up = |x: &[f32], n: u32| Tensor::upload(ctx, [1, n, 1, 8], x).unwrap();
            let (tq, tk, tv) = (up(&q, 33), up(&k, 64), up(&v, 64));
            let out = Guarded::new(ctx, Layout::contiguous([1, 33, 1, 8]), DType::F32);
            let args = AttentionArgs::new(tq.view(), tk.view(), tv.view(), out.view());
            run(ctx, |e| base.plan(ctx, s).unwrap().encode(ctx, e, &args)).unwrap();
            let inputs = Inputs { q, k, v, ..Default::default() };
            let error = rel_rms(&out.read(ctx), &inputs.reference(&s, &base).0);
            assert!(error < 3e-6, "{name}, first keys {first}, values {size}: {error:e}");
        }
        // every block moves the reference: as many loop trips as there can be, and too many for it
        for keys in [39_000, 60_000] {
            let s = shape(1, [3, keys], [1, 1], [4, 4]);
            let k: Vec<f32> = (0..keys).flat_map(|j| [17.0 * j as f32, 0.0, 0.0, 0.0]).collect();
            let v = Rng(42).vec(keys as usize * 4);
            let up = |x: &[f32], n: u32| Tensor::upload(ctx, [1, n, 1, 4], x).unwrap();
            let (tq, tk, tv) = (up(&[1.0, 0.0, 0.0, 0.0].repeat(3), 3), up(&k, keys), up(&v, keys));
            let out = Guarded::new(ctx, Layout::contiguous([1, 3, 1, 4]), DType::F32);
            let op = Attention { split: Split::Never, ..base };
            let args = AttentionArgs::new(tq.view(), tk.view(), tv.view(), out.view());
            run(ctx, |e| op.plan(ctx, s).unwrap().encode(ctx, e, &args)).unwrap();
            // e^-17 is 4e-8
            let want = to_f64(&v[v.len() - 4..].repeat(3));
            let error = rel_rms(&out.read(ctx), &want);
            assert!(error < 1e-6, "{name}, {keys} rising keys: {error:e}");
        }
    }
}

/// Every device, and one as a GPU, whose schedule is another.
fn everywhere() -> Vec<Device> {
    devices().iter().cloned().chain(gpus("browser").into_iter().next()).collect()
}

/// Whether a plan there is of a schedule for GPUs, as it must be wherever one can be.
fn expect_for_gpu(gpu: &Device, s: AttentionShape, options: &Attention) {
    let schedule = options.plan(&gpu.ctx, s).unwrap().schedule();
    let for_gpu = matches!(schedule, Schedule::Tiled(_) | Schedule::Groups(_));
    assert_eq!(for_gpu, !options.metric, "{}: {schedule:?}", gpu.name);
}

/// The schedule for GPUs, which runs anywhere: sizes around its tiles, head sizes around its slices and
/// chunks, each option alone and all of them.
#[test]
fn cut_for_a_gpu() {
    let base = Attention { split: Split::Never, ..Default::default() };
    let causal = Attention { mask: BOTTOM_RIGHT, ..base };
    let window = Window { left: Some(20), right: Some(3) };
    let everything = Attention {
        window,
        softcap: Some(2.0),
        alibi: true,
        bias: true,
        visible: true,
        sinks: true,
        ..causal
    };
    let mut cases = vec![
        (shape(2, [65, 67], [4, 2], [12, 8]), causal),
        (shape(1, [1, 1], [1, 1], [7, 3]), base),
        (shape(1, [127, 63], [2, 1], [16, 16]), base),
        (shape(1, [128, 64], [1, 1], [16, 32]), causal),
        (shape(1, [129, 65], [1, 1], [32, 16]), causal),
        (shape(1, [64, 300], [1, 1], [40, 72]), Attention { dtype: DType::F16, ..causal }),
        (shape(1, [259, 131], [2, 1], [64, 64]), causal),
        (shape(1, [40, 131], [4, 4], [80, 96]), Attention { dtype: DType::BF16, ..base }),
        (shape(1, [35, 70], [2, 2], [128, 128]), causal),
        (shape(1, [33, 40], [1, 1], [192, 128]), causal),
        (shape(1, [20, 150], [2, 1], [256, 256]), causal),
        (shape(1, [9, 130], [4, 1], [576, 512]), causal),
        (shape(1, [17, 33], [1, 1], [1, 1]), base),
        // near what old llvmpipe's loops take
        (shape(1, [2, 100_000], [1, 1], [3, 4]), base),
        (shape(1, [9, 131], [2, 2], [12, 8]), Attention { split: Split::Keys(64), ..base }),
        (shape(2, [3, 700], [8, 2], [64, 64]), Attention { split: Split::Auto, ..causal }),
        (shape(1, [2, 2100], [20, 1], [24, 16]), Attention { split: Split::Auto, ..causal }),
        (shape(1, [9, 40], [2, 1], [16, 16]), Attention { metric: true, ..base }),
        (shape(1, [70, 70], [2, 1], [16, 16]), Attention { window, ..base }),
        (shape(1, [50, 70], [2, 1], [16, 16]), Attention { softcap: Some(2.0), ..base }),
        (shape(1, [50, 70], [3, 1], [16, 16]), Attention { alibi: true, ..causal }),
        (shape(1, [50, 70], [2, 1], [16, 16]), Attention { bias: true, ..causal }),
        (shape(1, [50, 70], [2, 1], [16, 16]), Attention { visible: true, ..base }),
        (shape(1, [50, 70], [2, 1], [16, 16]), Attention { sinks: true, ..causal }),
        (shape(2, [50, 90], [2, 1], [16, 16]), everything),
        (shape(1, [5, 130], [2, 1], [16, 16]), Attention { split: Split::Auto, ..everything }),
    ];
    let lengths = Attention { key_lengths: true, ..causal };
    let pages = Attention { page_size: Some(16), ..lengths };
    let bytes = Attention { quantized: Some(16), ..base };
    for op in [lengths, pages, bytes, Attention { quantized: Some(16), ..pages }] {
        cases.push((shape(2, [30, 90], [2, 1], [16, 32]), op));
    }
    // tiles for many registers, for compilers that unroll, and for what a browser tells; the last compile
    // soonest here
    let cards = ["browser", "ada", "rdna3"].map(gpus);
    let mut rng = Rng(9);
    for (case, (s, options)) in cases.into_iter().enumerate() {
        let mut problem = Problem::new(s, options);
        problem.layouts = problem.layouts.map(|l| random_layout(&mut rng, l.shape));
        for (card, gpus) in cards.iter().enumerate() {
            // the first takes all; texts of the others take old Mesa's compiler half a minute each
            let takes_card = card == 0 || [1, 4, 10].contains(&(case + card));
            for (index, gpu) in gpus.iter().enumerate() {
                if slow() || (takes_card && index == case / 2 % gpus.len()) {
                    expect_for_gpu(gpu, s, &options);
                    problem.check(gpu, &mut rng);
                    gpu.ctx.forget_kernels();
                }
            }
        }
    }
}

/// Few rows, which groups of lanes compute: every width of a group and number of rows, by shuffles and
/// through workgroup memory.
#[test]
fn few_rows_on_a_gpu() {
    // of a large GPU, sizes of heads, queries and heads that share keys
    let cases = [
        (true, [64, 64], [1, 8]),
        (true, [24, 16], [1, 5]),
        (false, [8, 8], [1, 1]),
        (true, [128, 136], [1, 4]),
        (false, [8, 72], [2, 2]),
        (true, [72, 8], [8, 1]),
        (false, [128, 136], [1, 8]),
        (true, [64, 64], [2, 2]),
        (true, [24, 16], [1, 2]),
        (false, [64, 64], [3, 1]),
        (true, [8, 8], [1, 3]),
        (true, [128, 136], [1, 8]),
        (false, [24, 16], [1, 1]),
        (false, [64, 64], [1, 4]),
        (false, [72, 8], [1, 3]),
    ];
    let mut seen = BTreeSet::new();
    for (index, Device { name, ctx }) in devices().iter().enumerate() {
        let own = ctx.caps.with_class(DeviceClass::Gpu);
        // its own registers, and those of larger cards; groups are no wider than its subgroups
        let wide = Caps { subgroup: Some((32, 32)), ..own.clone() };
        let gpus = [("a GPU", own), ("a large GPU", wide)].map(|(kind, caps)| Device {
            name: format!("{name}, as {kind}"),
            ctx: ctx.with_caps(caps),
        });
        let count = if slow() { 400 } else { cases.len() as u64 };
        for seed in 0..count {
            if !in_turn(index, seed as u32, 20) {
                continue;
            }
            let mut rng = Rng(7000 + seed);
            let (large, dims, [seq_q, group]) = cases[seed as usize % cases.len()];
            // a slow compiler gets what it would get as a GPU, and no more
            let large = large && ctx.caps.unrolled >= Caps::minimum().unrolled;
            let gpu = &gpus[usize::from(large)];
            let heads_kv = rng.range(1, 4);
            let keys = *rng.pick(&[1, 3, 4, 63, 64, 65, 131, 257]);
            let s = shape(rng.range(1, 4), [seq_q, keys], [heads_kv * group, heads_kv], dims);
            let mut options = Attention {
                schedule: None,
                metric: false,
                split: *rng.pick(&[Split::Auto, Split::Keys(64)]),
                // rows that are all alike are too few to compare errors by, see random_problems
                scale: *rng.pick(&[None, Some(0.7), Some(-0.1)]),
                ..random_options(&mut rng, gpu)
            };
            // every other one reads whole words, some of them bytes, in pages and not
            if seed % 4 == 1 {
                options.page_size = options.page_size.map(|_| 16);
                options.quantized = Some(16);
            }
            let Schedule::Groups(tiles) = options.plan(&gpu.ctx, s).unwrap().schedule() else {
                panic!("{}: {s:?} {options:?}", gpu.name);
            };
            let width = ctx.caps.subgroup.map_or(u32::MAX, |(min, _)| min);
            if tiles.shuffles && tiles.lanes > width {
                continue;
            }
            seen.insert((tiles.lanes, tiles.rows, tiles.shuffles));
            let mut problem = Problem::new(s, options);
            if seed % 2 == 0 {
                problem.layouts = problem.layouts.map(|l| random_layout(&mut rng, l.shape));
            }
            println!("seed {}: {}, {tiles:?}", 7000 + seed, gpu.name);
            problem.check(gpu, &mut rng);
            gpu.ctx.forget_kernels();
        }
    }
    println!("lanes, rows and shuffles: {seen:?}");
    let lanes: BTreeSet<u32> = seen.iter().map(|x| x.0).collect();
    let rows: BTreeSet<u32> = seen.iter().map(|x| x.1).collect();
    assert!(lanes.is_superset(&[4, 8, 16].into()) && rows.is_superset(&[1, 2, 4, 8].into()));
    let able = devices().iter().any(|d| d.ctx.caps.tier == Tier::Subgroup);
    assert!(seen.iter().any(|x| !x.2) && seen.iter().any(|x| x.2) == able);
}

/// Few rows whose keys lie in pages, larger and smaller than a block, before and after what is seen; and
/// a row's bits, which another query beside it does not change.
#[test]
fn few_rows_in_pages_and_windows() {
    let fast = |d: &&Device| d.ctx.caps.unrolled >= Caps::minimum().unrolled;
    for Device { name, ctx } in devices().iter().filter(fast).take(2) {
        let name = format!("{name}, as a GPU");
        let gpu = Device { name, ctx: ctx.with_class(DeviceClass::Gpu) };
        let mut rng = Rng(71);
        let base = Attention { mask: BOTTOM_RIGHT, ..Default::default() };
        for (page, quantized, seq_q) in [(16, None, 1), (2, None, 2), (16, Some(16), 2)] {
            let op = Attention {
                window: Window { left: Some(100), right: None },
                key_lengths: true,
                page_size: Some(page),
                quantized,
                ..base
            };
            let s = shape(2, [seq_q, 257], [4, 2], [24, 16]);
            assert!(matches!(op.plan(&gpu.ctx, s).unwrap().schedule(), Schedule::Groups(_)));
            Problem::new(s, op).check(&gpu, &mut rng);
        }
        let op = Attention {
            window: Window { left: Some(300), right: None },
            split: Split::Keys(512),
            ..base
        };
        let (d, n) = (16, 600);
        let x = Inputs {
            q: rng.vec(2 * d),
            k: rng.vec(n * d),
            v: rng.vec(n * d),
            ..Default::default()
        };
        let alone = Inputs { q: x.q[d..].to_vec(), ..x.clone() };
        let [both, one] = [(2, &x), (1, &alone)].map(|(seq_q, x)| {
            let s = shape(1, [seq_q, n as u32], [1, 1], [d as u32, d as u32]);
            assert!(matches!(op.plan(&gpu.ctx, s).unwrap().schedule(), Schedule::Groups(_)));
            let [o, _] = call(&gpu.ctx, s, &op, x, None);
            o.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        });
        assert_eq!(both[d..], one, "{}", gpu.name);
        // keys within what is read that a mask hides
        let op = Attention { visible: true, ..Default::default() };
        let s = shape(1, [2, 70], [1, 1], [16, 16]);
        let hidden = |j: usize| j % 7 == 3;
        let mut x = Inputs {
            q: rng.vec(2 * d),
            k: rng.vec(70 * d),
            v: rng.vec(70 * d),
            visible: (0..2 * 70).map(|i| !hidden(i % 70)).collect(),
            ..Default::default()
        };
        let (want, _) = x.reference(&s, &op);
        for bad in [f32::NAN, f32::INFINITY] {
            for j in (0..70).filter(|&j| hidden(j)) {
                x.k[j * d..][..d].fill(bad);
                x.v[j * d..][..d].fill(bad);
            }
            let [got, _] = call(&gpu.ctx, s, &op, &x, None);
            let error = rel_rms(&got, &want);
            assert!(error < 1e-6, "{}: {bad}: {error:e}", gpu.name);
        }
        gpu.ctx.forget_kernels();
    }
}

/// Options, sizes and views at random, as on a GPU.
#[test]
fn random_problems_for_gpus() {
    let gpus = gpus("browser");
    for seed in 0..if slow() { 500 } else { 12 } {
        let Some(gpu) = gpus.get(seed as usize % gpus.len().max(1)) else { continue };
        let mut rng = Rng(9000 + seed);
        let heads_kv = rng.range(1, 4);
        let s = shape(
            rng.range(1, 3),
            [rng.range(1, 150), rng.range(1, 150)],
            [heads_kv * rng.range(1, 4), heads_kv],
            *rng.pick(&[[16, 16], [8, 20], [7, 3], [40, 24]]),
        );
        let options = Attention {
            schedule: None,
            // rows that are all alike are too few to compare errors by, see random_problems
            scale: *rng.pick(&[None, Some(0.7), Some(-0.1)]),
            ..random_options(&mut rng, gpu)
        };
        println!("seed {}: {}", 9000 + seed, gpu.name);
        expect_for_gpu(gpu, s, &options);
        let mut problem = Problem::new(s, options);
        problem.layouts = problem.layouts.map(|l| random_layout(&mut rng, l.shape));
        problem.check(gpu, &mut rng);
        gpu.ctx.forget_kernels();
    }
}

/// Where rows of a mask start at whole words, a block's entries are one word of it.
#[test]
fn masks_read_by_words() {
    for (d, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 3);
        let workgroup = device.ctx.caps.subgroup.map_or(32, |(_, max)| max);
        for (keys, block_k) in [(4, 4), (40, 2), (44, 4), (60, 2), (64, 4)] {
            let schedule = Some(Schedule::Rows(Tiles { workgroup, queries: 2, block_k }));
            let op = Attention { visible: true, schedule, ..Default::default() };
            let s = shape(2, [37, keys], [4, 2], [12, 8]);
            if deal.takes() {
                assert!(op.plan(&device.ctx, s).unwrap().wgsl()[0].contains("let word = mask["));
                Problem::new(s, op).check(device, &mut Rng(33));
            }
        }
    }
}

/// Where rows of a bias start at even entries, a block's two are one word of it; not where the keys are
/// odd in number, and the last of them stands alone.
#[test]
fn biases_read_by_pairs() {
    for (d, device) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 3);
        let workgroup = device.ctx.caps.subgroup.map_or(32, |(_, max)| max);
        for (keys, dtype) in [(2, DType::F32), (40, DType::F16), (66, DType::F32), (41, DType::F32)]
        {
            let schedule = Some(Schedule::Rows(Tiles { workgroup, queries: 2, block_k: 2 }));
            let op = Attention { bias: true, schedule, dtype, ..Default::default() };
            let s = shape(2, [37, keys], [4, 2], [12, 8]);
            if deal.takes() {
                let text = &op.plan(&device.ctx, s).unwrap().wgsl()[0];
                let pairs = device.ctx.caps.wide_loads && keys % 2 == 0;
                assert_eq!(text.contains("let pair = bias_load2("), pairs, "{}", device.name);
                for seed in [34, 35] {
                    Problem::new(s, op).check(device, &mut Rng(seed));
                }
            }
        }
    }
}

/// Queries, keys and values read from textures give the bits that buffers give: rows of texels whole
/// and in part, views that start in the middle of a buffer, heads first, every element type; also where
/// only a kernel may copy, and where rows begin within a texel and are read as they are.
#[test]
fn texels_are_the_buffers() {
    for (d, Device { name, ctx }) in devices().iter().enumerate() {
        let mut deal = Deal::new(d, 2);
        let size = ctx.device.limits().max_texture_dimension_2d;
        let with = |texels| ctx.with_caps(Caps { texels, ..ctx.caps.clone() });
        // too small for any texture
        let (textures, buffers) = (with(size), with(1));
        let schedule = Some(Schedule::Rows(Tiles {
            workgroup: ctx.caps.subgroup.map_or(8, |(_, max)| max),
            queries: 1,
            block_k: 2,
        }));
        // 300 keys of 2 heads of 64 are 2 rows and 1408 texels, 256 of one head one row
        for (rows, keys, heads, dims, dtype, mask) in [
            (66, 300, 2, [64, 32], DType::F32, Mask::None),
            (70, 300, 2, [64, 32], DType::F16, BOTTOM_RIGHT),
            (70, 300, 2, [64, 32], DType::BF16, BOTTOM_RIGHT),
            (300, 256, 1, [64, 64], DType::F32, BOTTOM_RIGHT),
            // 35,000 blocks, near the 60,000 trips that an old llvmpipe's loops are trusted with
            (65, 70_000, 1, [4, 4], DType::F32, Mask::None),
            (65, 3, 1, [4, 8], DType::F32, Mask::None),
            (65, 5, 1, [24, 8], DType::F16, Mask::None),
            (65, 0, 1, [4, 8], DType::F32, Mask::None),
        ] {
            if !deal.takes() {
                continue;
            }
            let s = shape(1, [rows, keys], [heads, heads], dims);
            let op = Attention { dtype, mask, schedule, ..Default::default() };
            let mut rng = Rng(31);
            // k starts in the middle and has its heads first, v has gaps between its rows
            let q_layout = Layout::contiguous([1, rows, heads, dims[0]]);
            let k_layout = Layout::contiguous([1, heads, keys, dims[0]]).permuted([0, 2, 1, 3]);
            let k_layout = k_layout.with_offset(24);
            let v_layout = Layout::contiguous([1, keys, heads + 1, dims[1]]);
            let v_layout = Layout { shape: [1, keys, heads, dims[1]], ..v_layout };
            let mut random = |layout: Layout<4>| {
                upload_as(ctx, layout, &rng.vec(count(&layout.shape)), dtype).unwrap()
            };
            let [q, k, v] = [q_layout, k_layout, v_layout].map(&mut random);
            let q = q.view_as(q_layout).unwrap();
            let k = k.view_as(k_layout).unwrap();
            let v = v.view_as(v_layout).unwrap();
            // the same in a buffer that the driver may not copy and that is no longer than it must be
            let fixed = ctx.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: (v_layout.end().unwrap() * dtype.size()).next_multiple_of(4).max(16),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            run(ctx, |e| {
                e.copy_buffer_to_buffer(v.buffer, 0, &fixed, 0, fixed.size().min(v.buffer.size()));
                Ok(())
            })
            .unwrap();
            let v_fixed = TensorView { buffer: &fixed, ..v };
            // eight bytes on: no whole texel
            let k_within = match dtype {
                DType::F32 => k,
                _ => TensorView { layout: k_layout.with_offset(20), ..k },
            };
            let bits = |ctx: &Context, k, v, in_pass: bool| {
                let out = Guarded::new(ctx, Layout::contiguous([1, rows, heads, dims[1]]), dtype);
                let args = AttentionArgs::new(q, k, v, out.view());
                let plan = op.plan(ctx, s).unwrap();
                run(ctx, |e| match in_pass {
                    true => {
                        plan.encode_pass(ctx, &mut e.begin_compute_pass(&Default::default()), &args)
                    }
                    false => plan.encode(ctx, e, &args),
                })
                .unwrap();
                out.read(ctx).into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let want = bits(&buffers, k, v, false);
            let message = format!("{name}, {rows} rows, {keys} keys, {dtype}");
            assert!(
                op.plan(&textures, s).unwrap().wgsl()[0].contains("texture_storage_2d"),
                "{message}"
            );
            assert!(bits(&textures, k, v, false) == want, "{message}, textures");
            assert!(bits(&textures, k, v, true) == want, "{message}, in a pass");
            assert!(bits(&textures, k, v_fixed, false) == want, "{message}, not to be copied");
            let within = bits(&buffers, k_within, v, false);
            assert!(bits(&textures, k_within, v, false) == within, "{message}, within a texel");
        }
    }
}

/// More workgroups than one dimension of a dispatch holds.
#[test]
fn folded_grid() {
    for device in devices() {
        let mut rng = Rng(9);
        let mut caps = device.ctx.caps.clone();
        caps.workgroups_per_dim = 7;
        let small = Device { name: device.name.clone(), ctx: device.ctx.with_caps(caps) };
        Problem::new(shape(3, [40, 9], [5, 5], [8, 8]), Attention::default())
            .check(&small, &mut rng);
    }
    // the real limit, on the first device only: 66,000 workgroups
    if let Some(device) = devices().first() {
        let mut rng = Rng(10);
        let schedule = Some(Schedule::Rows(Tiles { workgroup: 32, queries: 1, block_k: 1 }));
        let options = Attention { schedule, ..Default::default() };
        Problem::new(shape(1, [1, 2], [66_000, 1], [4, 4]), options).check(device, &mut rng);
    }
}

/// A key or value that no row sees may hold anything.
#[test]
fn hidden_nan_never_reaches_an_output() {
    for device in everywhere() {
        let ctx = &device.ctx;
        for algorithm in [Algorithm::Flash, Algorithm::Unfused] {
            let s = shape(1, [24, 24], [1, 1], [16, 16]);
            let mut rng = Rng(11);
            let q = rng.vec(24 * 16);
            let (mut k, mut v) = (rng.vec(24 * 16), rng.vec(24 * 16));
            // top-left causal: the last key is hidden from all rows but the last
            let mask = TOP_LEFT;
            for x in k[23 * 16..].iter_mut().chain(&mut v[23 * 16..]) {
                *x = f32::NAN;
            }
            let plan = Attention { mask, algorithm, ..Default::default() }.plan(ctx, s).unwrap();
            let up = |x: &[f32]| Tensor::upload(ctx, [1, 24, 1, 16], x).unwrap();
            let o = Guarded::new(ctx, Layout::contiguous([1, 24, 1, 16]), DType::F32);
            let scratch = Tensor::zeros(ctx, [24 * 24 + 4], DType::F32).unwrap();
            let (tq, tk, tv) = (up(&q), up(&k), up(&v));
            let mut args = AttentionArgs::new(tq.view(), tk.view(), tv.view(), o.view());
            args.scratch = Some(scratch.buffer());
            run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
            let rows = &o.read(ctx)[..23 * 16];
            let first = AttentionShape { seq_q: 23, seq_k: 23, ..s };
            let inputs = Inputs { q: q.clone(), k: k.clone(), v: v.clone(), ..Default::default() };
            let (want, _) = inputs.reference(&first, &Attention { mask, ..Default::default() });
            assert!(rel_rms(rows, &want) < 1e-6, "{} {algorithm:?}", device.name);
        }
    }
}

#[test]
fn bitwise_repeatable() {
    for device in everywhere() {
        let ctx = &device.ctx;
        let s = shape(1, [65, 70], [4, 2], [32, 32]);
        let mut rng = Rng(12);
        let up = |x: Vec<f32>, shape| Tensor::upload(ctx, shape, &x).unwrap();
        let q = up(rng.vec(65 * 4 * 32), [1, 65, 4, 32]);
        let k = up(rng.vec(70 * 2 * 32), [1, 70, 2, 32]);
        let plan = Attention { mask: BOTTOM_RIGHT, ..Default::default() }.plan(ctx, s).unwrap();
        let once = || {
            let o = Tensor::zeros(ctx, [1, 65, 4, 32], DType::F32).unwrap();
            let args = AttentionArgs::new(q.view(), k.view(), k.view(), o.view());
            run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
            o.download::<f32>(ctx).unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let first = once();
        for _ in 0..20 {
            assert_eq!(first, once(), "{}", device.name);
        }
    }
}

/// Runs a problem as its inputs say, rows without gaps; keys and values are bytes with these scales
/// where some are given, and then lie in pages one after the other if the options want pages.
fn call(
    ctx: &Context,
    s: AttentionShape,
    op: &Attention,
    x: &Inputs,
    scales: Option<&[Vec<f32>; 2]>,
) -> [Vec<f32>; 2] {
    let plan = op.plan(ctx, s).unwrap();
    let scores = Layout::contiguous([s.batch, s.heads, s.seq_q, s.seq_k]);
    let rows = |n: u32, d: u32| match op.page_size {
        Some(page) => Layout::contiguous([s.batch * n / page, page, s.heads_kv, d]),
        None => Layout::contiguous([s.batch, n, s.heads_kv, d]),
    };
    let (lk, lv) = (rows(s.seq_k, s.head_dim), rows(s.seq_k, s.head_dim_v));
    let kv_dtype = if scales.is_some() { DType::I8 } else { op.dtype };
    let lq = Layout::contiguous([s.batch, s.seq_q, s.heads, s.head_dim]);
    let tq = upload_as(ctx, lq, &x.q, op.dtype).unwrap();
    let tk = upload_as(ctx, lk, &x.k, kv_dtype).unwrap();
    let tv = upload_as(ctx, lv, &x.v, kv_dtype).unwrap();
    let o = Layout::contiguous([s.batch, s.seq_q, s.heads, s.head_dim_v]);
    let o = Guarded::new(ctx, o, op.dtype);
    let lse = Guarded::new(ctx, Layout::contiguous([s.batch, s.heads, s.seq_q]), DType::F32);
    let scratch = scratch(ctx, plan.scratch_bytes());
    let vector = |x: &[f32]| Tensor::upload(ctx, [s.heads], x).unwrap();
    let slopes = op.alibi.then(|| vector(&x.slopes));
    let sinks = op.sinks.then(|| vector(&x.sinks));
    let bias = op.bias.then(|| upload_as(ctx, scores, &x.bias, DType::F32).unwrap());
    let mask: Vec<f32> = x.visible.iter().map(|&seen| f32::from(u8::from(seen))).collect();
    let mask = op.visible.then(|| upload_as(ctx, scores, &mask, DType::U8).unwrap());
    let scales = scales.map(|both| {
        let [b, t, h, _] = lk.shape;
        let blocks = t.div_ceil(op.quantized.unwrap());
        both.each_ref().map(|x| Tensor::upload(ctx, [b, h, blocks], x).unwrap())
    });
    let table: Vec<u32> = (0..op.page_size.map_or(0, |page| s.batch * s.seq_k / page)).collect();
    let args = AttentionArgs {
        lse: Some(lse.view()),
        scratch: Some(&scratch),
        slopes: slopes.as_ref().map(Tensor::view),
        sinks: sinks.as_ref().map(Tensor::view),
        bias: bias.as_ref().map(|x| x.view_as(scores).unwrap()),
        visible: mask.as_ref().map(|x| x.view_as(scores).unwrap()),
        key_lengths: op.key_lengths.then_some(&x.key_lengths[..]),
        page_table: op.page_size.map(|_| &table[..]),
        k_scale: scales.as_ref().map(|s| s[0].view()),
        v_scale: scales.as_ref().map(|s| s[1].view()),
        ..AttentionArgs::new(
            tq.view_as(lq).unwrap(),
            tk.view_as(lk).unwrap(),
            tv.view_as(lv).unwrap(),
            o.view(),
        )
    };
    run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
    [o.read(ctx), lse.read(ctx)]
}

/// The largest error of an LSE, relative to its size where that is above 1; infinities must agree.
fn lse_error(got: &[f32], want: &[f64]) -> f64 {
    let error = |(g, w): (&f32, &f64)| match w.is_finite() {
        true => (f64::from(*g) - w).abs() / w.abs().max(1.0),
        false if f64::from(*g) == *w => 0.0,
        false => f64::INFINITY,
    };
    got.iter()
        .zip(want)
        .map(error)
        .map(|e| if e.is_nan() { f64::INFINITY } else { e })
        .fold(0.0, f64::max)
}

/// The ways that rows and keys are shared out: most rows of a tile, few, one that lanes share, parts.
const WAYS: [([u32; 2], Split); 4] = [
    ([70, 64], Split::Never),
    ([5, 64], Split::Never),
    ([1, 64], Split::Auto),
    ([70, 128], Split::Keys(64)),
];

/// Whether a device takes the next case of [`WAYS`]: those that compile fast all take the first.
fn takes_way(deal: &mut Deal, device: &Device, split: Split, seq_q: u32) -> bool {
    let fast = device.ctx.caps.unrolled >= Caps::minimum().unrolled;
    deal.takes() || (fast && split == Split::Never && seq_q == 70)
}

/// Keys that are hidden by whatever means, whose scales are NaN or infinite.
#[test]
fn scales_of_hidden_keys_may_be_anything() {
    let base = Attention { quantized: Some(16), ..Default::default() };
    let lengths = Attention { key_lengths: true, ..base };
    for (index, device) in everywhere().iter().enumerate() {
        let (mut deal, ctx) = (Deal::new(index, 8), &device.ctx);
        for (way, ([t, n], split)) in WAYS.into_iter().enumerate() {
            for (option, op) in [
                Attention { visible: true, ..base },
                Attention { bias: true, ..base },
                lengths,
                Attention { page_size: Some(16), ..lengths },
                // the first block of keys is before every row's window
                Attention { window: Window { left: Some(3), right: None }, ..base },
            ]
            .into_iter()
            .enumerate()
            {
                // every other pair of a way and an option; few rows on a GPU have a kernel of their own
                let few = !ctx.caps.is_cpu() && split == Split::Auto;
                let taken = deal.takes() || few;
                if !slow() && ((way + option) % 2 == 1 || !taken) {
                    continue;
                }
                let op = Attention { split, ..op };
                // rows of the window stand at the last keys
                let t = if op.window.left.is_some() { t.min(5) } else { t };
                let s = shape(1, [t, n], [2, 1], [16, 8]);
                let mut rng = Rng(61);
                let mut bytes = |d: u32| -> Vec<f32> {
                    (0..n * d).map(|_| rng.range(0, 255) as f32 - 127.0).collect()
                };
                let (k, v) = (bytes(16), bytes(8));
                let q = rng.vec((t * 2 * 16) as usize);
                let hidden = |j: u32| match () {
                    () if op.key_lengths => j >= 48,
                    () if op.window.left.is_some() => j < 16,
                    () => (16..32).contains(&j),
                };
                let cells = || (0..2 * t * n).map(|i| hidden(i % n));
                let mut x = Inputs { q, key_lengths: vec![48], ..Default::default() };
                if op.visible {
                    x.visible = cells().map(|hidden| !hidden).collect();
                }
                if op.bias {
                    let bias = |hidden| if hidden { f32::NEG_INFINITY } else { 0.25 };
                    x.bias = cells().map(bias).collect();
                }
                if !op.key_lengths {
                    x.key_lengths.clear();
                }
                let scale = 0.01;
                let real = |bytes: &[f32]| bytes.iter().map(|x| x * scale).collect();
                let known = Inputs { k: real(&k), v: real(&v), ..x.clone() };
                let (want, want_lse) = known.reference(&s, &op);
                x.k = k;
                x.v = v;
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let scales: Vec<f32> =
                        (0..n / 16).map(|b| if hidden(b * 16) { bad } else { scale }).collect();
                    let [got, lse] = call(ctx, s, &op, &x, Some(&[scales.clone(), scales]));
                    let message = format!("{}, {bad}, {t} x {n}, {op:?}", device.name);
                    assert!(got.iter().all(|x| x.is_finite()), "{message}: {:?}", &got[..4]);
                    let error = rel_rms(&got, &want);
                    assert!(error < 1e-6, "{message}: {error:e}");
                    assert!(lse_error(&lse, &want_lse) < 4e-6, "{message}: LSE");
                }
            }
        }
        ctx.forget_kernels();
    }
}

/// Finite numbers added to the scores of keys whose values are old bytes: those weigh nothing.
#[test]
fn finite_masks_hide_garbage() {
    for (index, device) in everywhere().iter().enumerate() {
        let (mut deal, ctx) = (Deal::new(index, 4), &device.ctx);
        for ([t, n], split) in WAYS {
            if !takes_way(&mut deal, device, split, t) {
                continue;
            }
            let op = Attention { bias: true, split, ..Default::default() };
            let s = shape(1, [t, n], [2, 1], [16, 8]);
            for (mask, size) in [
                (-1e4, 1e30),
                (-1e9, 1e30),
                (f32::MIN, 1e30),
                (-1e4, 3e38),
                (f32::MIN, -3e38),
                (-200.0, 3e38),
            ] {
                let mut rng = Rng(62);
                let mut x = Inputs {
                    q: rng.vec((t * 2 * 16) as usize),
                    k: rng.vec((n * 16) as usize),
                    v: rng.vec((n * 8) as usize),
                    ..Default::default()
                };
                // padding at the front, in the middle and behind
                let padded = |j: u32| j < 6 || (24..33).contains(&j) || j >= n - 5;
                for (at, v) in x.v.iter_mut().enumerate().filter(|(at, _)| padded(*at as u32 / 8)) {
                    *v = if at % 2 == 0 { size } else { -size };
                }
                x.bias = (0..2 * t * n).map(|i| if padded(i % n) { mask } else { 0.0 }).collect();
                let (want, want_lse) = x.reference(&s, &op);
                let [got, lse] = call(ctx, s, &op, &x, None);
                let message = format!("{}, {mask}, {size}, {t} x {n}, {split:?}", device.name);
                let error = rel_rms(&got, &want);
                println!("{message}: {error:.1e}");
                assert!(error < 1e-6, "{message}: {error:e}");
                assert!(lse_error(&lse, &want_lse) < 4e-6, "{message}: LSE");
            }
        }
        ctx.forget_kernels();
    }
}

/// Values near the ends of f32 under scores that are far from 0 or from each other: the sums of weighted
/// values stay in range.
#[test]
fn values_near_the_ends_of_f32() {
    type Score = fn(u32) -> f32;
    // with the least size whose sums keep their digits where a driver takes denormal numbers for 0
    let scores: [(&str, f32, Score); 7] = [
        ("high", 1e-30, |_| 9.0),
        ("zero", 1e-30, |_| 0.0),
        ("low", 1e-30, |_| -9.0),
        ("rising", 1e-30, |j| -5.0 + 0.2 * (j % 64) as f32),
        ("rising fast", 1e-30, |j| 100.0 + 0.5 * (j % 64) as f32),
        // a reference that does not move until it must is behind nearly all of them
        ("higher after the first", 1e-24, |j| if j < 8 { 0.0 } else { 11.0 }),
        ("a little higher after the first", 1e-24, |j| if j < 8 { 2.5 } else { 8.0 }),
    ];
    for (index, device) in everywhere().iter().enumerate() {
        let (mut deal, ctx) = (Deal::new(index, 4), &device.ctx);
        for ([t, n], split) in WAYS {
            if !takes_way(&mut deal, device, split, t) {
                continue;
            }
            let op = Attention { scale: Some(1.0), split, ..Default::default() };
            let s = shape(1, [t, n], [1, 1], [8, 8]);
            for size in [1e-30, 1e-24, 1e34, 1e37] {
                // kernels for GPUs promise what is documented, and no more
                if size < 1e-24 && !ctx.caps.is_cpu() {
                    continue;
                }
                for (what, _, score) in scores.iter().filter(|(_, least, _)| size >= *least) {
                    let mut rng = Rng(63);
                    let k = (0..n).flat_map(|j| [&[score(j)][..], &[0.0; 7]].concat());
                    let x = Inputs {
                        q: [1.0f32, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0].repeat(t as usize),
                        k: k.collect(),
                        v: rng
                            .vec((n * 8) as usize)
                            .iter()
                            .map(|x| (x.abs() + 0.5) * size / 1.5)
                            .collect(),
                        ..Default::default()
                    };
                    let (want, _) = x.reference(&s, &op);
                    let [got, _] = call(ctx, s, &op, &x, None);
                    let message =
                        format!("{}, {size:e}, scores {what}, {t} x {n}, {split:?}", device.name);
                    assert!(got.iter().all(|x| x.is_finite()), "{message}: {:?}", &got[..4]);
                    let error = rel_rms(&got, &want);
                    assert!(error < 2e-6, "{message}: {error:e}");
                }
            }
        }
        ctx.forget_kernels();
    }
}

/// Softcaps that are no cap in f32, that leave nothing of the scores, and between.
#[test]
fn softcaps_of_any_size() {
    for (index, device) in everywhere().iter().enumerate() {
        let (mut deal, ctx) = (Deal::new(index, 4), &device.ctx);
        for ([t, n], split) in WAYS {
            if !takes_way(&mut deal, device, split, t) {
                continue;
            }
            let s = shape(1, [t, n], [2, 1], [16, 8]);
            let mut rng = Rng(64);
            let x = Inputs {
                q: rng.vec((t * 2 * 16) as usize).iter().map(|x| x * 4.0).collect(),
                k: rng.vec((n * 16) as usize),
                v: rng.vec((n * 8) as usize),
                ..Default::default()
            };
            for cap in [f32::MAX, 1e38, 1e30, 1e6, 2.0, 1e-3, 1e-30, 1e-38, f32::from_bits(1)] {
                let op = Attention { softcap: Some(cap), split, ..Default::default() };
                let (want, want_lse) = x.reference(&s, &op);
                let [got, lse] = call(ctx, s, &op, &x, None);
                let message = format!("{}, softcap {cap:e}, {t} x {n}, {split:?}", device.name);
                let error = rel_rms(&got, &want);
                assert!(error < 2e-6, "{message}: {error:e}");
                assert!(lse_error(&lse, &want_lse) < 4e-6, "{message}: LSE");
            }
        }
        ctx.forget_kernels();
    }
}

/// Scores, biases, slopes, sinks and scales of any size that f32 holds.
#[test]
fn scores_of_any_size() {
    type Bias = fn(u32) -> f32;
    let biases: [(&str, Bias); 7] = [
        ("one key far above", |j| if j == 37 { 1e30 } else { 0.0 }),
        ("one key further above", |j| if j == 37 { 3e38 } else { -3e38 }),
        ("two keys far above", |j| if j % 32 == 5 { 1e30 } else { -1e30 }),
        ("one key less far below", |j| if j == 37 { -1e30 } else { -2e30 }),
        ("one key not at the bottom", |j| if j == 37 { -1e38 } else { f32::MIN }),
        ("all at the bottom", |_| f32::MIN),
        ("all far below, some hidden", |j| if j % 3 == 0 { f32::NEG_INFINITY } else { -1e31 }),
    ];
    for (index, device) in everywhere().iter().enumerate() {
        let (mut deal, ctx) = (Deal::new(index, 4), &device.ctx);
        for ([t, n], split) in WAYS {
            if !takes_way(&mut deal, device, split, t) {
                continue;
            }
            let s = shape(1, [t, n], [1, 1], [8, 8]);
            let mut rng = Rng(65);
            let x = Inputs {
                q: rng.vec((t * 8) as usize),
                k: rng.vec((n * 8) as usize),
                v: rng.vec((n * 8) as usize),
                ..Default::default()
            };
            let base = Attention { split, ..Default::default() };
            let check = |what: &str, op: &Attention, x: &Inputs| {
                let [got, lse] = call(ctx, s, op, x, None);
                let (want, want_lse) = x.reference(&s, op);
                let message = format!("{}, {what}, {t} x {n}, {split:?}", device.name);
                let error = rel_rms(&got, &want);
                assert!(error < 2e-6, "{message}: {error:e}");
                // what is beyond 2e38 counts as that
                let bounded: Vec<f64> =
                    want_lse.iter().map(|x| x.clamp(-2.07e38, 2.07e38)).collect();
                let bounded =
                    if want_lse.iter().any(|x| x.is_infinite()) { want_lse } else { bounded };
                let error = lse_error(&lse, &bounded);
                assert!(
                    error < 1e-2 && (error < 4e-6 || bounded[0].abs() > 2e38),
                    "{message}: LSE {error:e}"
                );
            };
            for (what, bias) in biases {
                // f32 has no digits left for the scores themselves beside such numbers
                let flat = Inputs {
                    q: vec![0.0; x.q.len()],
                    bias: (0..t * n).map(|i| bias(i % n)).collect(),
                    ..x.clone()
                };
                check(what, &Attention { bias: true, ..base }, &flat);
            }
            for slope in [1e30, 2e38, 3.4e38, 1e-38] {
                let x = Inputs { slopes: vec![slope], ..x.clone() };
                // every row stands at a key of its own
                if t <= n {
                    let op = Attention { alibi: true, mask: BOTTOM_RIGHT, ..base };
                    check(&format!("slope {slope:e}"), &op, &x);
                }
            }
            for sink in [1e30, 3e38, -1e30, f32::MIN] {
                let x = Inputs { sinks: vec![sink], ..x.clone() };
                check(&format!("sink {sink:e}"), &Attention { sinks: true, ..base }, &x);
            }
            for scale in [1e-40, -1e-44, 0.0] {
                check(&format!("scale {scale:e}"), &Attention { scale: Some(scale), ..base }, &x);
            }
            let by = |x: &[f32], factor: f32| x.iter().map(|x| x * factor).collect::<Vec<f32>>();
            // no key denormal, which a driver may take for 0
            let small = Inputs { q: by(&x.q, 1e-5), k: by(&x.k, 1e-33), ..x.clone() };
            check("scale 2.3e38", &Attention { scale: Some(2.3e38), ..base }, &small);
        }
        ctx.forget_kernels();
    }
}

/// Parts whose LSEs are far from 0 and from each other; those of no weight may hold large numbers, those
/// without keys anything.
#[test]
fn merge_of_far_parts() {
    for device in devices() {
        let ctx = &device.ctx;
        let s = MergeShape { parts: 3, batch: 1, seq: 1, heads: 7, head_dim_v: 4 };
        let none = f32::NEG_INFINITY;
        // for each head the LSEs of its parts, the values that they hold, and what is wanted
        let heads: [([f32; 3], [f32; 3], f32, f32); 7] = [
            ([1e30, -1e30, 0.0], [2.0, 3e38, -3e38], 2.0, 1e30),
            ([-1e30, -2e30, -1e31], [2.0, 3e38, 5.0], 2.0, -1e30),
            ([-3e38, none, none], [2.0, f32::NAN, f32::INFINITY], 2.0, -3e38),
            ([none, 3e38, -3e38], [f32::NAN, 2.0, 3e38], 2.0, 3e38),
            ([none; 3], [f32::NAN; 3], 0.0, none),
            ([-1e4, 0.0, 0.0], [1e30, 1.0, 3.0], 2.0, std::f32::consts::LN_2),
            ([0.0, f32::NAN, none], [1.0, 1.0, 1.0], f32::NAN, f32::NAN),
        ];
        let lse: Vec<f32> = (0..3).flat_map(|p| heads.map(|head| head.0[p])).collect();
        let parts: Vec<f32> =
            (0..3).flat_map(|p| heads.map(|head| head.1[p])).flat_map(|x| [x; 4]).collect();
        let plan = Merge::default().plan(ctx, s).unwrap();
        let parts = Tensor::upload(ctx, [3, 1, 1, 7, 4], &parts).unwrap();
        let lses = Tensor::upload(ctx, [3, 1, 7, 1], &lse).unwrap();
        let o = Guarded::new(ctx, Layout::contiguous([1, 1, 7, 4]), DType::F32);
        let lse = Guarded::new(ctx, Layout::contiguous([1, 7, 1]), DType::F32);
        let args = MergeArgs {
            o_parts: parts.view(),
            lse_parts: lses.view(),
            o: o.view(),
            lse: Some(lse.view()),
        };
        run(ctx, |e| plan.encode(ctx, e, &args)).unwrap();
        let (o, lse) = (o.read(ctx), lse.read(ctx));
        for (i, (lses, _, want, want_lse)) in heads.iter().enumerate() {
            let close = |x: f32, want: f32| {
                x == want || (x - want).abs() <= 1e-6 * want.abs() || (x.is_nan() && want.is_nan())
            };
            let message =
                format!("{}, LSEs {lses:?}: {:?}, {}", device.name, &o[i * 4..][..4], lse[i]);
            assert!(o[i * 4..][..4].iter().all(|x| close(*x, *want)), "{message}");
            // what a driver's logarithm makes of NaN is not known, but that it is no number
            let close =
                if want_lse.is_nan() { !lse[i].is_finite() } else { close(lse[i], *want_lse) };
            assert!(close, "{message}");
        }
    }
}
