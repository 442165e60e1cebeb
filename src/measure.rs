//! Timing on the device, and what the device can do at best.

use std::sync::LazyLock;

use crate::{
    Context, Result,
    dispatch::{Resource, dispatch, fold},
    shader::{Kernel, Key, Source, source},
};

/// Invocations in a workgroup of the kernels here.
const WORKGROUP: u32 = 64;

/// Where a [`Timing`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The device's own timestamps around the pass.
    Timestamps,
    /// The host's clock around submit and wait: includes the driver's overhead.
    Wall,
}

impl std::fmt::Display for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Timestamps => "GPU timestamps",
            Self::Wall => "wall clock, driver overhead included",
        })
    }
}

/// How long recorded work took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Seconds for one repetition.
    pub seconds: f64,
    /// What measured it.
    pub clock: Clock,
}

/// Times `repeats` recordings of `encode` in one compute pass, submitted and waited for.
///
/// Uses timestamps where the device has them (`Caps::timestamps`), else the host's clock, and the
/// result says which. One call is one sample: warm up first, repeat, take the median.
///
/// # Errors
/// Those of `encode`, and of submitting.
#[cfg(not(target_arch = "wasm32"))]
pub fn time(
    ctx: &Context,
    repeats: u32,
    mut encode: impl FnMut(&mut wgpu::ComputePass<'_>) -> Result<()>,
) -> Result<Timing> {
    stamped(ctx, repeats, |encoder, queries| {
        let mut pass = stamped_pass(encoder, queries, Some(0), Some(1));
        (0..repeats).try_for_each(|_| encode(&mut pass))
    })
}

/// [`time`] for what is recorded outside of passes or in several of them: all between two empty ones.
///
/// # Errors
/// As [`time`].
#[cfg(not(target_arch = "wasm32"))]
pub fn time_encoder(
    ctx: &Context,
    repeats: u32,
    mut encode: impl FnMut(&mut wgpu::CommandEncoder) -> Result<()>,
) -> Result<Timing> {
    stamped(ctx, repeats, |encoder, queries| {
        drop(stamped_pass(encoder, queries, None, Some(0)));
        (0..repeats).try_for_each(|_| encode(encoder))?;
        drop(stamped_pass(encoder, queries, Some(1), None));
        Ok(())
    })
}

/// A pass that notes the time at its ends.
#[cfg(not(target_arch = "wasm32"))]
fn stamped_pass<'a>(
    encoder: &'a mut wgpu::CommandEncoder,
    queries: Option<&wgpu::QuerySet>,
    begin: Option<u32>,
    end: Option<u32>,
) -> wgpu::ComputePass<'a> {
    let timestamp_writes = queries.map(|query_set| wgpu::ComputePassTimestampWrites {
        query_set,
        beginning_of_pass_write_index: begin,
        end_of_pass_write_index: end,
    });
    let descriptor = wgpu::ComputePassDescriptor { label: Some("time"), timestamp_writes };
    encoder.begin_compute_pass(&descriptor)
}

/// Times what `record` records with its two timestamps.
#[cfg(not(target_arch = "wasm32"))]
fn stamped(
    ctx: &Context,
    repeats: u32,
    record: impl FnOnce(&mut wgpu::CommandEncoder, Option<&wgpu::QuerySet>) -> Result<()>,
) -> Result<Timing> {
    const OP: &str = "time";
    let queries = ctx.caps.timestamps.then(|| {
        ctx.guard(OP, None, || {
            ctx.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some(OP),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            })
        })
    });
    let queries = queries.transpose()?;
    let stamps = ctx.create_buffer(
        OP,
        16,
        wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
    )?;
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    record(&mut encoder, queries.as_ref())?;
    if let Some(set) = &queries {
        encoder.resolve_query_set(set, 0..2, &stamps, 0);
    }
    ctx.wait(OP)?;
    let started = std::time::Instant::now();
    ctx.guard(OP, None, || ctx.queue.submit([encoder.finish()]))?;
    ctx.wait(OP)?;
    let wall = started.elapsed().as_secs_f64();
    let per = f64::from(repeats.max(1));
    if queries.is_some() {
        let pending = ctx.start_read(&stamps, 16)?;
        ctx.wait(OP)?;
        let bytes = pollster::block_on(pending)?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
        let elapsed = ticks[1].saturating_sub(ticks[0]);
        // a clock that did not move measured nothing
        if elapsed > 0 {
            // ticks are integers below 2^53 apart
            #[expect(clippy::cast_precision_loss, reason = "intervals are far below 2^53 ticks")]
            let seconds = elapsed as f64 * f64::from(ctx.queue.get_timestamp_period()) * 1e-9;
            return Ok(Timing { seconds: seconds / per, clock: Clock::Timestamps });
        }
    }
    Ok(Timing { seconds: wall / per, clock: Clock::Wall })
}

/// Fixed pseudo-random values in -1..1 to measure with; another `seed` gives others.
#[expect(clippy::cast_precision_loss, reason = "24 bits are exact")]
pub fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// The median of at least one sample; sorts `samples`.
///
/// # Panics
/// If there is no sample.
pub fn median(samples: &mut [f64]) -> f64 {
    assert!(!samples.is_empty(), "the median of no samples");
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// The f32 multiply-add rate of the device, in flop/s: what register-only code reaches, two flops
/// for each multiply-add. The best of several shapes of a loop without loads, the median of a few
/// runs each.
///
/// # Errors
/// Those of compiling and submitting.
#[cfg(not(target_arch = "wasm32"))]
pub fn multiply_add_peak(ctx: &Context) -> Result<f64> {
    multiply_add(ctx, MULTIPLY_ADD)
}

/// [`multiply_add_peak`] in f16 arithmetic; `None` where the device has none (`Caps::f16`).
///
/// # Errors
/// Those of compiling and submitting.
#[cfg(not(target_arch = "wasm32"))]
pub fn multiply_add_peak_f16(ctx: &Context) -> Result<Option<f64>> {
    ctx.caps.f16.then(|| multiply_add(ctx, *MULTIPLY_ADD_F16)).transpose()
}

const MULTIPLY_ADD: Source = source!("measure/multiply_add.wgsl");

/// The same loop in f16; the result is stored as f32.
static MULTIPLY_ADD_F16: LazyLock<Source> = LazyLock::new(|| {
    let text = MULTIPLY_ADD
        .text
        .replace("f32", "f16")
        .replace("array<f16>", "array<f32>")
        .replace("= sum.x + sum.y + sum.z + sum.w;", "= f32(sum.x + sum.y + sum.z + sum.w);");
    Source { path: "measure/multiply_add_f16.wgsl", text: format!("enable f16; {text}").leak() }
});

#[cfg(not(target_arch = "wasm32"))]
fn multiply_add(ctx: &Context, source: Source) -> Result<f64> {
    const OP: &str = "multiply_add_peak";
    const TRIPS: u32 = 2048;
    let groups: u32 = if ctx.caps.is_cpu() { 64 } else { 4096 };
    let out =
        ctx.create_buffer(OP, u64::from(groups * WORKGROUP) * 4, wgpu::BufferUsages::STORAGE)?;
    let mut best = 0f64;
    for chains in [2u32, 4, 6, 8] {
        let kernel = ctx.kernel(Key {
            source,
            entry: "multiply_add",
            spec: vec![("CHAINS", format!("{chains}u")), ("WORKGROUP", format!("{WORKGROUP}u"))],
            tensors: vec![],
        })?;
        let seconds = few(ctx, OP, &kernel, [TRIPS, groups, 0, 0], &[&out], [groups, 1, 1], 1)?;
        let flops = f64::from(groups)
            * f64::from(WORKGROUP)
            * f64::from(TRIPS)
            * f64::from(chains)
            * 4.0
            * 8.0;
        best = best.max(flops / seconds);
    }
    Ok(best)
}

/// The rate at which workgroups load from their own memory, in bytes/s: vectors of four floats,
/// neighbouring invocations neighbouring vectors. The median of a few runs.
///
/// # Errors
/// Those of compiling and submitting.
#[cfg(not(target_arch = "wasm32"))]
pub fn workgroup_rate(ctx: &Context) -> Result<f64> {
    const OP: &str = "workgroup_rate";
    /// Loads of one trip, `STEPS` in the kernel.
    const STEPS: u32 = 8;
    let trips: u32 = if ctx.caps.is_cpu() { 128 } else { 1024 };
    let groups: u32 = if ctx.caps.is_cpu() { 64 } else { 4096 };
    let out =
        ctx.create_buffer(OP, u64::from(groups * WORKGROUP) * 4, wgpu::BufferUsages::STORAGE)?;
    let kernel = ctx.kernel(Key {
        source: source!("measure/workgroup.wgsl"),
        entry: "workgroup_load",
        spec: vec![("WORKGROUP", format!("{WORKGROUP}u"))],
        tensors: vec![],
    })?;
    let seconds = few(ctx, OP, &kernel, [trips, 0, 0, 0], &[&out], [groups, 1, 1], 1)?;
    let loads = [groups, WORKGROUP, trips, STEPS].map(f64::from);
    Ok(16.0 * loads.iter().product::<f64>() / seconds)
}

/// Seconds that one dispatch of one workgroup with nothing to do takes among many in a pass.
///
/// # Errors
/// Those of compiling and submitting.
#[cfg(not(target_arch = "wasm32"))]
pub fn dispatch_overhead(ctx: &Context) -> Result<f64> {
    const OP: &str = "dispatch_overhead";
    let [from, to] = [0, 1].map(|_| ctx.create_buffer(OP, 16, wgpu::BufferUsages::STORAGE));
    let (from, to) = (from?, to?);
    let kernel = ctx.kernel(copy_key())?;
    few(ctx, OP, &kernel, [0; 4], &[&from, &to], [1, 1, 1], 200)
}

/// Median seconds of one dispatch of a kernel of this module, of a few runs.
#[cfg(not(target_arch = "wasm32"))]
fn few(
    ctx: &Context,
    op: &'static str,
    kernel: &Kernel,
    params: [u32; 4],
    buffers: &[&wgpu::Buffer],
    groups: [u32; 3],
    repeats: u32,
) -> Result<f64> {
    let resources: Vec<Resource<'_>> =
        buffers.iter().map(|b| Resource::Buffer(b.as_entire_buffer_binding())).collect();
    let mut samples = Vec::new();
    for sample in 0..6 {
        let timing = time(ctx, repeats, |pass| {
            dispatch(ctx, pass, op, kernel, bytemuck::bytes_of(&params), &resources, groups)
        })?;
        // the first run pays for the driver's own compilation
        if sample > 0 {
            samples.push(timing.seconds);
        }
    }
    Ok(median(&mut samples))
}

fn copy_key() -> Key {
    Key {
        source: source!("measure/copy.wgsl"),
        entry: "copy",
        spec: vec![("WORKGROUP", format!("{WORKGROUP}u"))],
        tensors: vec![],
    }
}

/// The rate at which the device copies one large buffer to another by a kernel of four floats to an
/// invocation, in bytes/s, each byte read and each written counted. The median of a few runs.
///
/// # Errors
/// Those of compiling and submitting, [`crate::Error::OutOfMemory`].
#[cfg(not(target_arch = "wasm32"))]
pub fn copy_rate(ctx: &Context) -> Result<f64> {
    const OP: &str = "copy_rate";
    // larger than the caches, within every device's binding
    let cells: u32 = if ctx.caps.is_cpu() { 1 << 21 } else { 1 << 22 };
    let bytes = u64::from(cells) * 16;
    let [from, to] = [0, 1].map(|_| ctx.create_buffer(OP, bytes, wgpu::BufferUsages::STORAGE));
    let (from, to) = (from?, to?);
    let kernel = ctx.kernel(copy_key())?;
    let groups = fold(OP, u64::from(cells / WORKGROUP), &ctx.caps)?;
    let seconds = few(ctx, OP, &kernel, [cells, 0, 0, 0], &[&from, &to], groups, 1)?;
    // sizes are powers of two far below 2^53
    #[expect(clippy::cast_precision_loss, reason = "exact")]
    let moved = 2.0 * bytes as f64;
    Ok(moved / seconds)
}
