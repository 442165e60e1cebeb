//! The Fourier transform on every adapter present, against rustfft in f64 and the DFT sum.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod common;

use common::{Deal, rel_rms};
use rustfft::{FftPlanner, num_complex::Complex};
use tilewise::{
    Context, DType, DeviceClass, Error, Layout, Tensor, TensorView,
    fft::{Direction, Fft, FftArgs, FftPlan, MAX_LENGTH, Normalization},
    reference, wgpu,
};

/// The relative RMS error of one transform of length `n` may be this: measured 1e-7 to 3e-7, see
/// `accuracy_is_that_of_plain_f32`.
const BUDGET: f64 = 5e-7;

/// Every device, in every tier that it can run.
fn contexts() -> impl Iterator<Item = Context> {
    common::devices().iter().map(|d| fresh(&d.ctx))
}

/// Numbers in -1..1 from a fixed seed.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    common::Rng(seed).vec(len)
}

/// rustfft along both axes of `[.., n0, n1]`, f64.
fn rustfft(shape: [u32; 2], direction: Direction, x: &[f64]) -> Vec<f64> {
    let [n0, n1] = shape.map(|n| n as usize);
    let mut planner = FftPlanner::new();
    let mut plan = |n| match direction {
        Direction::Forward => planner.plan_fft_forward(n),
        Direction::Inverse => planner.plan_fft_inverse(n),
    };
    let mut data: Vec<Complex<f64>> = x.chunks(2).map(|p| Complex::new(p[0], p[1])).collect();
    plan(n1).process(&mut data);
    if n0 > 1 {
        let columns = plan(n0);
        for image in data.chunks_mut(n0 * n1) {
            for c in 0..n1 {
                let mut column: Vec<_> = (0..n0).map(|r| image[r * n1 + c]).collect();
                columns.process(&mut column);
                for (r, value) in column.into_iter().enumerate() {
                    image[r * n1 + c] = value;
                }
            }
        }
    }
    data.into_iter().flat_map(|c| [c.re, c.im]).collect()
}

fn scratch(ctx: &Context, plan: &FftPlan) -> Option<wgpu::Buffer> {
    let size = plan.scratch_bytes().max(plan.scratch_bytes_in_place());
    let usage = wgpu::BufferUsages::STORAGE;
    (size > 0).then(|| {
        ctx.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    })
}

fn run(ctx: &Context, plan: &FftPlan, input: TensorView<'_, 4>, output: TensorView<'_, 4>) {
    let scratch = scratch(ctx, plan);
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    plan.encode(ctx, &mut encoder, &FftArgs { input, output, scratch: scratch.as_ref() }).unwrap();
    ctx.queue.submit([encoder.finish()]);
}

/// Points along the axes of the input and output, and numbers in their last axis.
fn sides(fft: &Fft, batch: u32) -> [[u32; 4]; 2] {
    let [rows, columns] = fft.shape;
    let whole = [batch, rows, columns, 2];
    if !fft.real {
        return [whole, whole];
    }
    let (time, half) = ([batch, rows, columns, 1], [batch, rows, columns / 2 + 1, 2]);
    if fft.direction == Direction::Forward { [time, half] } else { [half, time] }
}

/// The expected output of `fft` for `x`, from the complex transform `transform` of whole data.
fn expected(
    fft: &Fft,
    x: &[f32],
    transform: impl Fn([u32; 2], Direction, &[f64]) -> Vec<f64>,
) -> Vec<f64> {
    let [n0, n1] = fft.shape.map(|n| n as usize);
    let half = n1 / 2 + 1;
    let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let points = (n0 * n1) as f64;
    let scale = match fft.normalization {
        Normalization::None => 1.0,
        Normalization::Unitary => 1.0 / points.sqrt(),
        Normalization::ByLength => 1.0 / points,
    };
    let y = match (fft.real, fft.direction) {
        (false, direction) => transform(fft.shape, direction, &x),
        (true, Direction::Forward) => {
            let whole: Vec<f64> = x.iter().flat_map(|&x| [x, 0.0]).collect();
            let y = transform(fft.shape, Direction::Forward, &whole);
            y.chunks(2 * n1).flat_map(|row| row[..2 * half].to_vec()).collect()
        }
        (true, Direction::Inverse) => {
            // the columns first, then each row from its Hermitian half
            let mut columns = Vec::new();
            for image in x.chunks(2 * n0 * half) {
                let transposed: Vec<f64> = (0..half)
                    .flat_map(|c| {
                        (0..n0).flat_map(move |r| {
                            [image[2 * (r * half + c)], image[2 * (r * half + c) + 1]]
                        })
                    })
                    .collect();
                let done = transform([1, n0 as u32], Direction::Inverse, &transposed);
                for r in 0..n0 {
                    let at = |c: usize| (done[2 * (c * n0 + r)], done[2 * (c * n0 + r) + 1]);
                    for c in 0..n1 {
                        let (re, im) = if c < half { at(c) } else { at(n1 - c) };
                        let own = c == 0 || 2 * c == n1;
                        columns.extend([
                            re,
                            if own {
                                0.0
                            } else if c < half {
                                im
                            } else {
                                -im
                            },
                        ]);
                    }
                }
            }
            let y = transform([1, n1 as u32], Direction::Inverse, &columns);
            y.into_iter().step_by(2).collect()
        }
    };
    y.into_iter().map(|y| y * scale).collect()
}

/// One dense transform on one device against `transform`; returns the error.
fn error(
    ctx: &Context,
    fft: &Fft,
    batch: u32,
    transform: impl Fn([u32; 2], Direction, &[f64]) -> Vec<f64>,
) -> f64 {
    let [in_shape, out_shape] = sides(fft, batch);
    let len = |s: [u32; 4]| s.iter().map(|&n| n as usize).product::<usize>();
    let x = noise(u64::from(fft.shape[1]) * 31 + u64::from(fft.shape[0]), len(in_shape));
    let input = Tensor::upload(ctx, in_shape, &x).unwrap();
    // poisoned: a point never written is NaN
    let output = Tensor::upload(ctx, out_shape, &vec![f32::NAN; len(out_shape)]).unwrap();
    let plan = fft.plan(ctx, batch).unwrap();
    run(ctx, &plan, input.view(), output.view());
    rel_rms(&output.download::<f32>(ctx).unwrap(), &expected(fft, &x, transform))
}

fn check(ctx: &Context, fft: &Fft, batch: u32) {
    let error = error(ctx, fft, batch, rustfft);
    let name = ctx.device.adapter_info().name;
    assert!(error < BUDGET, "{name}: {fft:?}, batch {batch}: {error:e}");
}

fn line(n: u32) -> Fft {
    Fft { shape: [1, n], ..Default::default() }
}

/// A context of its own on the same device: what it compiles is freed with it.
fn fresh(ctx: &Context) -> Context {
    Context::from_wgpu(ctx.device.clone(), ctx.queue.clone()).with_caps(ctx.caps.clone())
}

/// Which of many lengths to try on device `d`: the shortest on all, the others in turn, and of those
/// above 64, each of which is a kernel to compile, a scattered sixth unless there is time.
fn in_turn(d: usize, n: u32) -> bool {
    let scattered = n.wrapping_mul(2_654_435_761) >> 16;
    let sampled = common::slow() || n <= 64 || scattered.is_multiple_of(6);
    n <= 16 || (sampled && common::in_turn(d, n, 31))
}

#[test]
fn every_length_to_512() {
    for (d, ctx) in contexts().enumerate() {
        let started = std::time::Instant::now();
        let lengths: Vec<u32> = (1..=512).filter(|&n| in_turn(d, n)).collect();
        for &n in &lengths {
            let direction = if n % 3 == 0 { Direction::Inverse } else { Direction::Forward };
            check(&fresh(&ctx), &Fft { direction, ..line(n) }, 3);
        }
        let name = &common::devices()[d].name;
        println!("{name}: {} lengths in {:.1?}", lengths.len(), started.elapsed());
    }
}

#[test]
fn every_length_to_128_real_and_back() {
    for (d, ctx) in contexts().enumerate() {
        for n in (1..=128).filter(|&n| n <= 8 || (n > 32 && in_turn(d, n))) {
            for direction in [Direction::Forward, Direction::Inverse] {
                check(&fresh(&ctx), &Fft { direction, real: true, ..line(n) }, 2);
            }
        }
    }
}

#[test]
fn small_lengths_are_the_sum() {
    for ctx in contexts() {
        for shape in [[1, 1], [1, 2], [1, 12], [5, 7], [8, 1], [16, 9]] {
            for direction in [Direction::Forward, Direction::Inverse] {
                for real in [false, true] {
                    let fft = Fft { shape, direction, real, ..Default::default() };
                    let error = error(&ctx, &fft, 2, reference::dft);
                    assert!(error < BUDGET, "{fft:?}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn longer_lengths() {
    for (d, ctx) in contexts().enumerate() {
        let mut deal = Deal::new(d, 5);
        for (n, batch) in [
            (521, 2),
            (600, 3),
            (625, 1),
            (729, 2),
            (1000, 2),
            (1021, 1),
            (1024, 5),
            (1331, 1),
            (2048, 2),
            (2187, 1),
            (2310, 1),
            (3125, 2),
            (4096, 3),
            (4099, 1),
            (8192, 1),
            (10_000, 2),
            (19_683, 1),
            (65_536, 2),
            (65_537, 1),
            (100_000, 1),
            (1 << 18, 1),
            (1 << 20, 1),
        ] {
            if !deal.takes() {
                continue;
            }
            let direction = if n % 3 == 0 { Direction::Inverse } else { Direction::Forward };
            check(&ctx, &Fft { direction, ..line(n) }, batch);
        }
        for n in [1000, 1021, 4096, 30_030, 1 << 17] {
            for direction in [Direction::Forward, Direction::Inverse] {
                if !deal.takes() {
                    continue;
                }
                check(&ctx, &Fft { direction, real: true, ..line(n) }, 1);
            }
        }
    }
}

/// The recipes of GPUs, whose stages exchange by halves, on the drivers that are here: every radix,
/// one pass and two, real and complex, odd batches, and the same bits again.
#[test]
fn cut_for_a_gpu() {
    let lengths =
        [2, 6, 8, 9, 11, 13, 16, 17, 30, 32, 49, 60, 64, 77, 100, 121, 128, 143, 169, 210]
            .into_iter()
            .chain([256, 343, 500, 512, 1000, 1021, 1024, 1331, 2048, 2187, 4096, 5005, 10_000])
            .chain([1 << 15, 1 << 16, 1 << 18]);
    for (d, ctx) in contexts().enumerate() {
        let ctx = ctx.with_class(DeviceClass::Gpu);
        let started = std::time::Instant::now();
        let mut deal = Deal::new(d, 5);
        for (k, n) in lengths.clone().enumerate() {
            // two thirds of them, unless there is time
            if n > 8 && (!deal.takes() || k % 3 == 1 && !common::slow()) {
                continue;
            }
            let direction = [Direction::Forward, Direction::Inverse][k % 2];
            check(&fresh(&ctx), &Fft { direction, real: k / 2 % 2 == 1, ..line(n) }, 3);
        }
        for shape in [[8, 8], [21, 21], [64, 48], [100, 3], [1024, 5]] {
            if deal.takes() {
                check(&ctx, &Fft { shape, ..Default::default() }, 3);
            }
        }
        println!("{}: {:.1?}", common::devices()[d].name, started.elapsed());
        let (fft, batch) = (line(1000), 5);
        let x = noise(3, 10_000);
        let plan = fft.plan(&ctx, batch).unwrap();
        let bits = || {
            let [input, output] = [&x, &vec![f32::NAN; 10_000]]
                .map(|data| Tensor::upload(&ctx, [batch, 1, 1000, 2], data).unwrap());
            run(&ctx, &plan, input.view(), output.view());
            output.download::<f32>(&ctx).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(bits(), bits());
    }
}

#[test]
fn two_dimensions() {
    for (d, ctx) in contexts().enumerate() {
        let mut deal = Deal::new(d, 5);
        for shape in [
            [2, 3],
            [8, 8],
            [21, 21],
            [25, 24],
            [64, 48],
            [37, 41],
            [100, 3],
            [256, 128],
            [4096, 6],
            [3, 2048],
        ] {
            for direction in [Direction::Forward, Direction::Inverse] {
                for real in [false, true] {
                    if !deal.takes() {
                        continue;
                    }
                    let normalization = Normalization::Unitary;
                    check(&ctx, &Fft { shape, direction, real, normalization }, 3);
                }
            }
        }
    }
}

#[test]
fn strided_offset_and_in_place() {
    for (d, ctx) in contexts().enumerate() {
        let mut deal = Deal::new(d, 4);
        for n in [6u32, 7, 64, 100, 101, 1024, 4096] {
            for shape in [[1, n], [n, 5], [4, n]] {
                if !deal.takes() {
                    continue;
                }
                let fft =
                    Fft { shape, normalization: Normalization::ByLength, ..Default::default() };
                let plan = fft.plan(&ctx, 2).unwrap();
                let [rows, columns] = shape;
                // transposed, with a gap between rows and an odd number of points in front
                let strides =
                    [u64::from(rows * 2 + 6) * u64::from(columns), 2, u64::from(rows * 2 + 6), 1];
                let layout = Layout { shape: [2, rows, columns, 2], strides, offset: 2 };
                let len = layout.end().unwrap() as usize + 4;
                let x = noise(n.into(), len);
                let at = |b: u32, r: u32, c: u32, part: u32| {
                    let index = [b, r, c, part];
                    2 + index.iter().zip(strides).map(|(&i, s)| u64::from(i) * s).sum::<u64>()
                        as usize
                };
                let gather = |x: &[f32]| {
                    let mut out = Vec::new();
                    for b in 0..2 {
                        for r in 0..rows {
                            for c in 0..columns {
                                out.extend([x[at(b, r, c, 0)], x[at(b, r, c, 1)]]);
                            }
                        }
                    }
                    out
                };
                let want = expected(&fft, &gather(&x), rustfft);

                // from strided to dense and strided to strided, apart
                let input = Tensor::upload(&ctx, [len as u32], &x).unwrap();
                let dense = Tensor::zeros(&ctx, [2, rows, columns, 2], DType::F32).unwrap();
                let view = input.view_as(layout).unwrap();
                run(&ctx, &plan, view, dense.view());
                let error = rel_rms(&dense.download::<f32>(&ctx).unwrap(), &want);
                assert!(error < BUDGET, "to dense, {shape:?}: {error:e}");

                // in place; what lies between the points stays
                run(&ctx, &plan, view, view);
                let got = input.download::<f32>(&ctx).unwrap();
                let error = rel_rms(&gather(&got), &want);
                assert!(error < BUDGET, "in place, {shape:?}: {error:e}");
                let mut rest = got;
                for b in 0..2 {
                    for r in 0..rows {
                        for c in 0..columns {
                            for part in 0..2 {
                                rest[at(b, r, c, part)] = x[at(b, r, c, part)];
                            }
                        }
                    }
                }
                assert!(rest == x, "in place, {shape:?}: wrote between the points");
            }
        }
    }
}

#[test]
fn there_and_back_is_the_identity() {
    for ctx in contexts() {
        for shape in [[1, 1024], [1, 97], [12, 35]] {
            let there = Fft { shape, normalization: Normalization::Unitary, ..Default::default() };
            let back = Fft { direction: Direction::Inverse, ..there };
            let [rows, columns] = shape;
            let x = noise(5, (2 * rows * columns) as usize);
            let tensor = Tensor::upload(&ctx, [1, rows, columns, 2], &x).unwrap();
            for fft in [there, back] {
                run(&ctx, &fft.plan(&ctx, 1).unwrap(), tensor.view(), tensor.view());
            }
            let want: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let error = rel_rms(&tensor.download::<f32>(&ctx).unwrap(), &want);
            assert!(error < 2.0 * BUDGET, "{shape:?}: {error:e}");
        }
    }
}

#[test]
fn a_small_device_and_the_same_bits_again() {
    for (d, ctx) in contexts().enumerate() {
        let mut deal = Deal::new(d, 5);
        let small = ctx.with_caps(tilewise::Caps::minimum());
        for n in [48, 97, 360, 1024, 2000, 4096, 1 << 16] {
            if !deal.takes() {
                continue;
            }
            check(&small, &line(n), 2);
            let x = Tensor::upload(&ctx, [2, 1, n, 2], &noise(9, 4 * n as usize)).unwrap();
            let plan = line(n).plan(&small, 2).unwrap();
            let bits = || {
                let y = Tensor::zeros(&ctx, [2, 1, n, 2], DType::F32).unwrap();
                run(&small, &plan, x.view(), y.view());
                y.download::<f32>(&ctx).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert_eq!(bits(), bits(), "{n}");
        }
    }
}

#[test]
fn accuracy_is_that_of_plain_f32() {
    for ctx in contexts() {
        for n in [64u32, 1000, 1024, 4096, 1 << 16] {
            let x = noise(u64::from(n) * 31 + 1, 4 * n as usize);
            let want = expected(&line(n), &x, rustfft);
            let mut plain: Vec<Complex<f32>> =
                x.chunks(2).map(|p| Complex::new(p[0], p[1])).collect();
            FftPlanner::new().plan_fft_forward(n as usize).process(&mut plain);
            let plain: Vec<f32> = plain.into_iter().flat_map(|c| [c.re, c.im]).collect();
            let (ours, theirs) = (error(&ctx, &line(n), 2, rustfft), rel_rms(&plain, &want));
            println!(
                "{}: n = {n}: {ours:.2e}, rustfft in f32 {theirs:.2e}",
                ctx.device.adapter_info().name
            );
            assert!(ours < 2.0 * theirs, "n = {n}: {ours:e}, rustfft in f32 {theirs:e}");
        }
    }
}

#[test]
fn bad_input_is_refused() {
    let Some(ctx) = contexts().next() else { return };
    let refuse = |error: Error, text: &str| {
        let message = error.to_string();
        println!("{message}");
        assert!(message.contains(text), "{message}: expected it to contain {text}");
    };
    refuse(line(0).plan(&ctx, 1).unwrap_err(), "shape[1]: expected 1 to 16777216, got 0");
    refuse(
        Fft { shape: [MAX_LENGTH + 1, 4], ..Default::default() }.plan(&ctx, 1).unwrap_err(),
        "shape[0]: expected 1 to 16777216, got 16777217",
    );
    let plan = line(16).plan(&ctx, 2).unwrap();
    let long = line(1 << 15).plan(&ctx, 1).unwrap();
    let x = Tensor::zeros(&ctx, [2, 1, 16, 2], DType::F32).unwrap();
    let y = Tensor::zeros(&ctx, [2, 1, 16, 2], DType::F32).unwrap();
    let wide = Tensor::zeros(&ctx, [512], DType::F32).unwrap();
    let half = Tensor::zeros(&ctx, [2, 1, 16, 2], DType::F16).unwrap();
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    let mut refused =
        |plan: &FftPlan, input, output, scratch: Option<&wgpu::Buffer>, text: &str| {
            let args = FftArgs { input, output, scratch };
            refuse(plan.encode(&ctx, &mut encoder, &args).unwrap_err(), text);
        };
    let view = |shape: [u32; 4], strides: [u64; 4], offset| {
        wide.view_as(Layout { shape, strides, offset }).unwrap()
    };
    let shape = [2, 1, 16, 2];
    refused(
        &plan,
        view([2, 1, 15, 2], [30, 30, 2, 1], 0),
        y.view(),
        None,
        "input: expected [2, 1, 16, 2], got [2, 1, 15, 2]",
    );
    refused(&plan, x.view(), half.view(), None, "output: expected elements of type f32, got f16");
    refused(
        &plan,
        view(shape, [33, 33, 2, 1], 0),
        y.view(),
        None,
        "must be a multiple of 2, got 33",
    );
    refused(
        &plan,
        view(shape, [32, 32, 2, 1], 1),
        y.view(),
        None,
        "must be a multiple of 2, got 1",
    );
    refused(
        &plan,
        x.view(),
        view(shape, [0, 32, 2, 1], 0),
        None,
        "output whose elements do not overlap",
    );
    refused(
        &plan,
        view(shape, [32, 32, 2, 1], 0),
        view(shape, [32, 32, 2, 1], 64),
        None,
        "shares its buffer with input",
    );
    let a = Tensor::zeros(&ctx, [1, 1, 1 << 15, 2], DType::F32).unwrap();
    refused(&long, a.view(), a.view(), None, "scratch: needs 262144 bytes, none given");
    refused(
        &long,
        a.view(),
        a.view(),
        Some(wide.buffer()),
        "ends at byte 262144, its buffer at byte 2048",
    );
    refused(&long, a.view(), a.view(), Some(a.buffer()), "scratch shares its buffer with input");
    let past = TensorView {
        buffer: wide.buffer(),
        layout: Layout { shape, strides: [500, 32, 2, 1], offset: 0 },
        dtype: DType::F32,
    };
    refused(
        &plan,
        past,
        y.view(),
        None,
        "input: the view ends at byte 2128, its buffer at byte 2048",
    );
    let real = Fft { real: true, ..line(16) }.plan(&ctx, 2).unwrap();
    let time = Tensor::zeros(&ctx, [2, 1, 16, 1], DType::F32).unwrap();
    refused(&real, time.view(), y.view(), None, "output: expected [2, 1, 9, 2], got [2, 1, 16, 2]");

    // nothing to do is no error
    let none = line(16).plan(&ctx, 0).unwrap();
    let empty = Tensor::zeros(&ctx, [0, 1, 16, 2], DType::F32).unwrap();
    run(&ctx, &none, empty.view(), y.view_as(Layout::contiguous([0, 1, 16, 2])).unwrap());
}
