//! Out of memory: an error, after which the context goes on, or at least another can be opened.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod common;

use tilewise::{
    Context, DType, Error, Tensor,
    attention::{Attention, AttentionArgs, AttentionShape},
    wgpu,
};

/// Adapters of the backends that `wanted` names, opened by this crate, with an instance that gives
/// no more than so many percent of the memory that the driver says there is.
fn open(backends: wgpu::Backends, percent: u8) -> Vec<(String, Context)> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    descriptor.memory_budget_thresholds.for_resource_creation = Some(percent);
    let instance = wgpu::Instance::new(descriptor);
    pollster::block_on(instance.enumerate_adapters(backends))
        .into_iter()
        .filter_map(|adapter| {
            let name = adapter.get_info().name;
            Some((name, pollster::block_on(Context::from_adapter(&adapter)).ok()?))
        })
        .collect()
}

/// Attention of one head over a few tokens, from upload to download.
fn works(ctx: &Context) -> tilewise::Result<()> {
    let shape = AttentionShape::self_attention(1, 4, 1, 8);
    let plan = Attention::default().plan(ctx, shape)?;
    let x = Tensor::upload(ctx, [1, 4, 1, 8], &[0.5f32; 32])?;
    let o = Tensor::zeros(ctx, [1, 4, 1, 8], DType::F32)?;
    let scratch = plan.scratch(ctx)?;
    let args = AttentionArgs {
        scratch: scratch.as_ref(),
        ..AttentionArgs::new(x.view(), x.view(), x.view(), o.view())
    };
    common::run(ctx, |encoder| plan.encode(ctx, encoder, &args))?;
    let got: Vec<f32> = o.download(ctx)?;
    assert!(got.iter().all(|x| (x - 0.5).abs() < 1e-6), "{got:?}");
    Ok(())
}

/// More than any machine has, on a device that says it could: the allocation itself fails.
#[test]
fn a_buffer_larger_than_the_machine_is_an_error() {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::NOOP;
    // whose checks of indirect calls make every buffer shorter than 4 GiB
    descriptor.flags = wgpu::InstanceFlags::empty();
    descriptor.backend_options.noop = wgpu::NoopBackendOptions {
        enable: true,
        limits: Some(wgpu::Limits {
            max_buffer_size: 1 << 62,
            max_storage_buffer_binding_size: 1 << 62,
            ..Default::default()
        }),
        ..Default::default()
    };
    let instance = wgpu::Instance::new(descriptor);
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).unwrap();
    let ctx = pollster::block_on(Context::from_adapter(&adapter)).unwrap();
    for _ in 0..3 {
        let error = Tensor::<2>::zeros(&ctx, [1 << 31, 1 << 29], DType::F32).unwrap_err();
        let want = Error::OutOfMemory { op: "tensor", bytes: Some(1 << 62) };
        assert_eq!(error, want);
        assert!(error.to_string().contains("asked for 4611686018427387904 bytes"), "{error}");
    }
    // nothing is lost by it
    assert_eq!(ctx.lost(), None);
    let x = Tensor::upload(&ctx, [4], &[1f32, 2.0, 3.0, 4.0]).unwrap();
    assert_eq!(x.download::<f32>(&ctx).unwrap(), [1.0, 2.0, 3.0, 4.0]);
}

/// Tensor after tensor until the driver's budget is spent; then all are dropped.
#[test]
fn a_device_without_memory_is_an_error_and_works_again() {
    let mut exhausted = Vec::new();
    for percent in [2, 5, 10, 30] {
        for (name, ctx) in open(wgpu::Backends::VULKAN, percent) {
            // what a graphics card has is not this test's to take
            if !ctx.caps.is_cpu() || exhausted.contains(&name) {
                continue;
            }
            // what others use may be over the threshold already
            if works(&ctx).is_err() {
                continue;
            }
            let words = ctx.caps.buffer_size.min(1 << 30) / 16 * 4;
            let mut held = Vec::new();
            let error = loop {
                match Tensor::<1>::zeros(&ctx, [words as u32], DType::F32) {
                    // few: not every driver leaves out the pages of what is never written
                    Ok(tensor) if held.len() < 4 => held.push(tensor),
                    Ok(_) => break None,
                    Err(error) => break Some(error),
                }
            };
            let Some(error) = error else { continue };
            let want = Error::OutOfMemory { op: "tensor", bytes: Some(words * 4) };
            assert_eq!(error, want, "{name}");
            println!("{name}: {error}, after {} tensors, at {percent} %", held.len());
            drop(held);
            ctx.wait("test").unwrap();
            works(&ctx).unwrap_or_else(|e| panic!("{name}: {e}"));
            exhausted.push(name);
        }
    }
    if exhausted.is_empty() {
        eprintln!("skipped: no software driver with VK_EXT_memory_budget");
    }
}
