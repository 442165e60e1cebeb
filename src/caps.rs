//! What planning may know of a device.

/// Which kind of kernel runs: chosen from [`Caps`], or forced for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Plain WGSL: 16 KiB of workgroup memory, 256 invocations, no subgroups. Runs everywhere.
    #[default]
    Portable,
    /// Subgroup operations, right for every subgroup size from 4 to 128.
    Subgroup,
}

impl Tier {
    /// Lower-case name: `portable`, `subgroup`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Subgroup => "subgroup",
        }
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Tier {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "portable" => Ok(Self::Portable),
            "subgroup" => Ok(Self::Subgroup),
            other => Err(format!("expected portable or subgroup, got {other}")),
        }
    }
}

/// What kind of machine a device is. Kernels cut their work for one or the other: a GPU hides the time
/// of loads behind many lanes and shares operands through workgroup memory, a CPU driver has few lanes,
/// dear loads and a compiler that is slow at long texts.
///
/// Read from the device ([`Caps::of`]), or forced: `Context::with_class`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceClass {
    /// A GPU; also what a browser hides.
    #[default]
    Gpu,
    /// A CPU that a software driver makes look like one.
    Cpu,
}

impl DeviceClass {
    /// Lower-case name: `gpu`, `cpu`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
        }
    }
}

impl std::fmt::Display for DeviceClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DeviceClass {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "gpu" => Ok(Self::Gpu),
            "cpu" => Ok(Self::Cpu),
            other => Err(format!("expected gpu or cpu, got {other}")),
        }
    }
}

/// The limits and features that planning reads. Plain data: a plan can be tried without a device,
/// and a smaller device imitated on a larger one (`Context::with_caps`).
#[derive(Clone, Debug, PartialEq)]
pub struct Caps {
    /// Kernels of this tier are chosen.
    pub tier: Tier,
    /// Bytes of workgroup memory.
    pub workgroup_storage: u32,
    /// Invocations in one workgroup, in all and along x.
    pub invocations: u32,
    /// Workgroups along one dimension of a dispatch.
    pub workgroups_per_dim: u32,
    /// Bytes that one storage binding can span.
    pub binding_size: u64,
    /// Bytes of one buffer.
    pub buffer_size: u64,
    /// Alignment of a storage binding's offset, in bytes.
    pub offset_alignment: u32,
    /// Storage buffers in one kernel.
    pub storage_buffers: u32,
    /// Smallest and largest subgroup the device may use, `None` without subgroup operations.
    pub subgroup: Option<(u32, u32)>,
    /// 16-bit float arithmetic in kernels. Storage in f16 needs nothing.
    pub f16: bool,
    /// Timestamps at pass boundaries.
    pub timestamps: bool,
    /// Cooperative matrix shapes `(m, n, k)` with f16 inputs and f32 sums.
    pub matrix_shapes: Vec<(u32, u32, u32)>,
    /// Loop iterations that one invocation may make in all, nested loops summed.
    ///
    /// Mesa's llvmpipe before release 25 ends every loop, in silence, after about 65,535 trips. Where
    /// [`attention`](crate::attention) reads more than some 39,000 keys in one pass there, its texts,
    /// and with them the bits of its results, are others.
    pub loop_trips: u64,
    /// Unrolled steps of four multiply-adds that the driver's compiler takes in a second or so.
    ///
    /// SwiftShader's needs minutes and gigabytes where others need a tenth of a second.
    pub unrolled: u32,
    /// The largest width and height of textures, where inputs that are read often are better copied
    /// into some (4096 texels wide), else 0. It also chooses tiles and texts, so that results have other
    /// bits with another value.
    ///
    /// On Mesa's llvmpipe before release 25 a load from a buffer takes several times as long as one
    /// from a texture. Each call needs as much memory again as its inputs span, until its work is done.
    pub texels: u32,
    /// Kernels may read buffers in 64-bit words (`Features::SHADER_INT64`), and gain by it: the driver
    /// loads one word of one lane after the other.
    pub wide_loads: bool,
    /// What kind of machine it is.
    pub class: DeviceClass,
}

/// Beyond this no compiler finishes in good time.
pub(crate) const UNROLLED: u32 = 8192;

impl Caps {
    /// The least that any WebGPU device offers: portable tier.
    pub fn minimum() -> Self {
        Self {
            tier: Tier::Portable,
            workgroup_storage: 16_384,
            invocations: 256,
            workgroups_per_dim: 65_535,
            binding_size: 128 << 20,
            buffer_size: 256 << 20,
            offset_alignment: 256,
            storage_buffers: 8,
            subgroup: None,
            f16: false,
            timestamps: false,
            matrix_shapes: Vec::new(),
            loop_trips: u64::MAX,
            unrolled: UNROLLED,
            texels: 0,
            wide_loads: false,
            class: DeviceClass::Gpu,
        }
    }

    /// Reads an opened device.
    pub fn of(device: &wgpu::Device) -> Self {
        let limits = device.limits();
        let features = device.features();
        let info = device.adapter_info();
        let old = old_llvmpipe(&info);
        let subgroup = features
            .contains(wgpu::Features::SUBGROUP)
            .then_some((info.subgroup_min_size, info.subgroup_max_size))
            // broadcasts need at least four lanes; a device that reports less is misreporting
            .filter(|&(min, max)| min >= 4 && max >= min);
        Self {
            tier: if subgroup.is_some() { Tier::Subgroup } else { Tier::Portable },
            workgroup_storage: limits.max_compute_workgroup_storage_size,
            invocations: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x),
            workgroups_per_dim: limits.max_compute_workgroups_per_dimension,
            binding_size: limits.max_storage_buffer_binding_size,
            buffer_size: limits.max_buffer_size,
            offset_alignment: limits.min_storage_buffer_offset_alignment,
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            subgroup,
            f16: features.contains(wgpu::Features::SHADER_F16),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            matrix_shapes: Vec::new(),
            loop_trips: if old { 60_000 } else { u64::MAX },
            unrolled: if info.name.contains("SwiftShader") { 64 } else { UNROLLED },
            texels: match limits.max_texture_dimension_2d {
                size if old
                    && size >= crate::texels::ROW
                    && limits.max_storage_textures_per_shader_stage >= 3 =>
                {
                    size
                }
                _ => 0,
            },
            wide_loads: old && features.contains(wgpu::Features::SHADER_INT64),
            class: match info.device_type {
                wgpu::DeviceType::Cpu => DeviceClass::Cpu,
                _ => DeviceClass::Gpu,
            },
        }
    }

    /// The same device with only kernels of `tier`, or `None` if it cannot run them.
    pub fn with_tier(&self, tier: Tier) -> Option<Self> {
        let able = tier == Tier::Portable || self.subgroup.is_some();
        able.then(|| Self { tier, ..self.clone() })
    }

    /// The same device planned for as one of `class`. What only CPU drivers gain by is off for a GPU;
    /// limits, and what a driver's compiler cannot take, stay. Any device can run either.
    #[must_use]
    pub fn with_class(&self, class: DeviceClass) -> Self {
        let caps = Self { class, ..self.clone() };
        match class {
            DeviceClass::Gpu => Self { texels: 0, wide_loads: false, ..caps },
            DeviceClass::Cpu => caps,
        }
    }

    /// Whether [`class`](Self::class) is [`DeviceClass::Cpu`].
    pub fn is_cpu(&self) -> bool {
        self.class == DeviceClass::Cpu
    }
}

/// Whether this is Mesa's llvmpipe before release 25: its loops end after some 65,535 trips, and its
/// loads from buffers go lane by lane. A release that cannot be read is taken for an old one.
fn old_llvmpipe(info: &wgpu::AdapterInfo) -> bool {
    let text = format!("{} {} {}", info.name, info.driver, info.driver_info);
    let release = || {
        let version = text.split("Mesa ").nth(1)?;
        version.split('.').next()?.trim().parse::<u32>().ok()
    };
    text.contains("llvmpipe") && release().is_none_or(|release| release < 25)
}
