//! A device that computes nothing; wgpu checks what it is given like for any other.

/// The adapter of wgpu's noop backend, with the least that WebGPU promises and subgroups of 4 to 64.
pub(crate) fn noop_adapter() -> wgpu::Adapter {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::NOOP;
    descriptor.backend_options.noop = wgpu::NoopBackendOptions {
        enable: true,
        limits: Some(wgpu::Limits::default()),
        features: Some(wgpu::Features::SUBGROUP),
        subgroup_min_size: Some(4),
        subgroup_max_size: Some(64),
        ..Default::default()
    };
    let instance = wgpu::Instance::new(descriptor);
    pollster::block_on(instance.request_adapter(&Default::default())).unwrap()
}
