//! Timing on the device, and what the device can do at best.

use crate::{
    Context, Result,
    dispatch::{Resource, dispatch, fold},
    shader::{Key, source},
};

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

/// How long a pass took.
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
    {
        let writes = queries.as_ref().map(|query_set| wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        });
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: writes,
        });
        for _ in 0..repeats {
            encode(&mut pass)?;
        }
    }
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
    const OP: &str = "multiply_add_peak";
    const TRIPS: u32 = 2048;
    const WORKGROUP: u32 = 64;
    let groups: u32 = if ctx.caps.cpu { 64 } else { 4096 };
    let out =
        ctx.create_buffer(OP, u64::from(groups * WORKGROUP) * 4, wgpu::BufferUsages::STORAGE)?;
    let mut best = 0f64;
    for chains in [2u32, 4, 6, 8] {
        let kernel = ctx.kernel(Key {
            source: source!("measure/multiply_add.wgsl"),
            entry: "multiply_add",
            spec: vec![("CHAINS", format!("{chains}u")), ("WORKGROUP", format!("{WORKGROUP}u"))],
            tensors: vec![],
        })?;
        let params: [u32; 4] = [TRIPS, groups, 0, 0];
        let mut samples = Vec::new();
        for sample in 0..6 {
            let timing = time(ctx, 1, |pass| {
                let resources = [Resource::Buffer(out.as_entire_buffer_binding())];
                dispatch(
                    ctx,
                    pass,
                    OP,
                    &kernel,
                    bytemuck::bytes_of(&params),
                    &resources,
                    [groups, 1, 1],
                )
            })?;
            // the first run pays for the driver's own compilation
            if sample > 0 {
                samples.push(timing.seconds);
            }
        }
        let flops = f64::from(groups)
            * f64::from(WORKGROUP)
            * f64::from(TRIPS)
            * f64::from(chains)
            * 4.0
            * 8.0;
        best = best.max(flops / median(&mut samples));
    }
    Ok(best)
}

/// The rate at which the device copies one large buffer to another by a kernel of four floats to an
/// invocation, in bytes/s, each byte read and each written counted. The median of a few runs.
///
/// # Errors
/// Those of compiling and submitting, [`crate::Error::OutOfMemory`].
#[cfg(not(target_arch = "wasm32"))]
pub fn copy_rate(ctx: &Context) -> Result<f64> {
    const OP: &str = "copy_rate";
    const WORKGROUP: u32 = 64;
    // larger than the caches, within every device's binding
    let cells: u32 = if ctx.caps.cpu { 1 << 21 } else { 1 << 22 };
    let bytes = u64::from(cells) * 16;
    let [from, to] = [0, 1].map(|_| ctx.create_buffer(OP, bytes, wgpu::BufferUsages::STORAGE));
    let (from, to) = (from?, to?);
    let kernel = ctx.kernel(Key {
        source: source!("measure/copy.wgsl"),
        entry: "copy",
        spec: vec![("WORKGROUP", format!("{WORKGROUP}u"))],
        tensors: vec![],
    })?;
    let params: [u32; 4] = [cells, 0, 0, 0];
    let groups = fold(OP, u64::from(cells / WORKGROUP), &ctx.caps)?;
    let mut samples = Vec::new();
    for sample in 0..6 {
        let timing = time(ctx, 1, |pass| {
            let resources = [&from, &to].map(|b| Resource::Buffer(b.as_entire_buffer_binding()));
            dispatch(ctx, pass, OP, &kernel, bytemuck::bytes_of(&params), &resources, groups)
        })?;
        // the first run pays for the driver's own compilation
        if sample > 0 {
            samples.push(timing.seconds);
        }
    }
    // sizes are powers of two far below 2^53
    #[expect(clippy::cast_precision_loss, reason = "exact")]
    let moved = 2.0 * bytes as f64;
    Ok(moved / median(&mut samples))
}
