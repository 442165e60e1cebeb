//! Attention recorded into an application's own encoder, between passes of its own, on a device
//! that the application owns. Checks itself: a photograph's rows attend to each other, and the
//! result is compared with the f64 reference.
#![allow(clippy::cast_possible_truncation, reason = "sizes are small")]

use tilewise::{
    Context, DType, Tensor,
    attention::{Attention, AttentionArgs, AttentionShape},
    reference, wgpu,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // the application's own device, opened as it likes
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_features: adapter.features() & wgpu::Features::SUBGROUP,
        required_limits: adapter.limits(),
        ..Default::default()
    }))?;
    let handler_calls = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = handler_calls.clone();
    device.on_uncaptured_error(std::sync::Arc::new(move |_| {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }));

    let ctx = Context::from_wgpu(device.clone(), queue.clone());
    // 64 rows of the image as tokens, 64 grey levels each
    let image =
        image::open(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/astronaut.png"))?.to_luma8();
    let tokens: Vec<f32> = (0..64)
        .flat_map(|y| (0..64).map(move |x| (x, y)))
        .map(|(x, y)| f32::from(image.get_pixel(x * 8, y * 8).0[0]) / 255.0)
        .collect();
    let shape = AttentionShape::self_attention(1, 64, 1, 64);
    let plan = Attention::default().plan(&ctx, shape)?;
    let x = Tensor::upload(&ctx, [1, 64, 1, 64], &tokens)?;
    let o = Tensor::zeros(&ctx, [1, 64, 1, 64], DType::F32)?;
    let copy = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("the application's own"),
        size: 64 * 64 * 4,
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });

    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.clear_buffer(&copy, 0, None);
    plan.encode(&ctx, &mut encoder, &AttentionArgs::new(x.view(), x.view(), x.view(), o.view()))?;
    // the application's next command sees the result, in the same submission
    encoder.copy_buffer_to_buffer(o.buffer(), 0, &copy, 0, 64 * 64 * 4);
    // a mistake is an error here, not a call of the application's handler
    let refused = plan.encode(
        &ctx,
        &mut encoder,
        &AttentionArgs::new(x.view(), x.view(), x.view(), x.view()),
    );
    println!("refused: {}", refused.unwrap_err());
    queue.submit([encoder.finish()]);

    let got: Vec<f32> = o.download(&ctx)?;
    let wide: Vec<f64> = tokens.iter().map(|&x| f64::from(x)).collect();
    let (want, _) = reference::attention(
        &shape,
        &Attention::default(),
        &reference::AttentionInputs { q: &wide, k: &wide, v: &wide, ..Default::default() },
    );
    let error: f64 = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    let relative = (error / norm).sqrt();
    println!("{}: relative error against f64 {relative:.1e}", device.adapter_info().name);
    assert!(relative < 1e-6);
    assert_eq!(handler_calls.load(std::sync::atomic::Ordering::Relaxed), 0);
    Ok(())
}
