//! What the tests share: devices, random numbers, poisoned tensors, the comparator.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "test sizes are small"
)]

pub mod noop;
pub mod reflect;
pub mod uniformity;

use std::{cell::OnceCell, sync::OnceLock};

use half::{bf16, f16};
use tilewise::{
    Caps, Card, Context, DType, DeviceClass, Element, Layout, Result, Tensor, TensorView, Tier,
    wgpu,
};

/// A device to test on, with kernels of one tier.
#[derive(Clone)]
pub struct Device {
    /// Adapter, backend and tier, for messages.
    pub name: String,
    pub ctx: Context,
}

/// Every adapter present, once for each tier that it can run.
///
/// Tests, and with them their threads, share devices, but for those of OpenGL: there wgpu holds one
/// lock while kernels run, and whoever waits for it for six seconds panics.
///
/// # Panics
/// If there is no adapter, unless `TILEWISE_ALLOW_NO_GPU=1`: tests that silently skip prove nothing.
pub fn devices() -> &'static [Device] {
    static SHARED: OnceLock<Vec<Device>> = OnceLock::new();
    thread_local! {
        static DEVICES: OnceCell<&'static [Device]> = const { OnceCell::new() };
    }
    let all = || {
        let mut found = SHARED.get_or_init(|| open(|backend| backend != wgpu::Backend::Gl)).clone();
        found.extend(open(|backend| backend == wgpu::Backend::Gl));
        &*some(found).leak()
    };
    DEVICES.with(|devices| *devices.get_or_init(all))
}

/// Every adapter present like [`devices`], but opened for the caller alone: for a test that watches
/// what a device allocates, which other tests would disturb.
///
/// # Panics
/// As [`devices`].
pub fn devices_alone() -> Vec<Device> {
    some(open(|_| true))
}

/// The devices here, but for those whose compilers are slow at long texts and get another kernel,
/// planned for as such a card. Only portable kernels: a card's subgroups are not the device's.
pub fn gpus(card: &str) -> Vec<Device> {
    let card = Card::find(card).unwrap();
    let fast = |d: &&Device| d.ctx.caps.unrolled >= Caps::minimum().unrolled;
    let portable = |d: &&Device| d.ctx.caps.tier == Tier::Portable;
    let plan = |Device { name, ctx }: &Device| {
        let own = ctx.caps.with_class(DeviceClass::Gpu);
        let caps = Caps {
            subgroup: card.subgroup,
            workgroup_storage: card.workgroup_storage.min(own.workgroup_storage),
            invocations: card.invocations.min(own.invocations),
            ..own
        };
        Device { name: format!("{name}, as {}", card.name), ctx: ctx.with_caps(caps) }
    };
    devices().iter().filter(fast).filter(portable).map(plan).collect()
}

/// Refuses to test nothing, see [`devices`].
fn some(found: Vec<Device>) -> Vec<Device> {
    if found.is_empty() {
        let allowed = std::env::var("TILEWISE_ALLOW_NO_GPU").is_ok_and(|v| v == "1");
        assert!(allowed, "no adapter found: run scripts/setup.sh, or set TILEWISE_ALLOW_NO_GPU=1");
        eprintln!("skipped: no adapter (TILEWISE_ALLOW_NO_GPU=1)");
    }
    found
}

/// Opens the adapters of some backends.
fn open(wanted: impl Fn(wgpu::Backend) -> bool) -> Vec<Device> {
    let mut found = Vec::new();
    for adapter in pollster::block_on(Context::adapters()) {
        let info = adapter.get_info();
        if !wanted(info.backend) {
            continue;
        }
        let ctx = match pollster::block_on(Context::from_adapter(&adapter)) {
            Ok(ctx) => ctx,
            Err(error) => panic!("{} ({}): {error}", info.name, info.backend),
        };
        for tier in [Tier::Portable, Tier::Subgroup] {
            match ctx.with_tier(tier) {
                Ok(ctx) => found.push(Device {
                    name: format!("{} ({}, {tier})", info.name, info.backend),
                    ctx,
                }),
                Err(missing) => {
                    eprintln!("skipped: {} ({}), {tier}: {missing}", info.name, info.backend)
                }
            }
        }
    }
    found
}

/// Whether every device is to take every case: `TILEWISE_SLOW=1`.
pub fn slow() -> bool {
    std::env::var("TILEWISE_SLOW").is_ok_and(|v| v == "1")
}

/// Whether device `device` takes a case that has this number: of the devices that compile fast each
/// takes its turn; those that compile slowly (seconds for a kernel) take one in `spread`, unless
/// there are no others. When [`slow`], all take all.
pub fn in_turn(device: usize, case: u32, spread: u32) -> bool {
    if slow() {
        return true;
    }
    let most = Caps::minimum().unrolled;
    let all = devices();
    let fast: Vec<usize> = (0..all.len()).filter(|&i| all[i].ctx.caps.unrolled >= most).collect();
    match fast.iter().position(|&i| i == device) {
        Some(place) => case as usize % fast.len() == place,
        None => fast.is_empty() || case.wrapping_add(device as u32).is_multiple_of(spread),
    }
}

/// Deals a test's cases over the devices, see [`in_turn`].
pub struct Deal {
    device: usize,
    spread: u32,
    case: u32,
}

impl Deal {
    pub fn new(device: usize, spread: u32) -> Self {
        Self { device, spread, case: 0 }
    }

    /// Whether this device takes the next case.
    pub fn takes(&mut self) -> bool {
        self.case += 1;
        in_turn(self.device, self.case, self.spread)
    }
}

/// A fixed generator (SplitMix64): the same numbers on every platform.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `low..high`.
    pub fn range(&mut self, low: u32, high: u32) -> u32 {
        low + u32::try_from(self.next() % u64::from(high - low)).unwrap()
    }

    /// Uniform in -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    pub fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }

    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.range(0, u32::try_from(all.len()).unwrap()) as usize]
    }
}

/// Each value as `dtype` holds it.
pub fn rounded(x: &[f32], dtype: DType) -> Vec<f32> {
    let round = |x: &f32| match dtype {
        DType::F32 => *x,
        DType::F16 => f16::from_f32(*x).to_f32(),
        DType::BF16 => bf16::from_f32(*x).to_f32(),
        DType::I8 | DType::U8 => x.round(),
    };
    x.iter().map(round).collect()
}

pub fn to_f64(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Relative root-mean-square error of `got` against `want`.
///
/// # Panics
/// If the lengths differ or a value of `got` is not finite.
pub fn rel_rms(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "length");
    if let Some(at) = got.iter().position(|x| !x.is_finite()) {
        panic!("element {at} is {}, expected {}", got[at], want[at]);
    }
    let error: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    let size: f64 = want.iter().map(|w| w * w).sum();
    if error == 0.0 { 0.0 } else { (error / size.max(f64::MIN_POSITIVE)).sqrt() }
}

/// A tensor inside a larger buffer: NaN where it lies, a pattern before and after it.
pub struct Guarded<const N: usize> {
    whole: Tensor<1>,
    pub layout: Layout<N>,
}

/// Elements before and after a guarded tensor.
const GUARD: u32 = 64;

impl<const N: usize> Guarded<N> {
    /// `layout` is moved behind the front guard.
    pub fn new(ctx: &Context, layout: Layout<N>, dtype: DType) -> Self {
        let end = u32::try_from(layout.end().unwrap()).unwrap();
        let whole = match dtype {
            DType::F32 => Self::filled::<f32>(ctx, end),
            DType::F16 => Self::filled::<f16>(ctx, end),
            DType::BF16 => Self::filled::<bf16>(ctx, end),
            DType::I8 | DType::U8 => panic!("no operator writes bytes"),
        };
        Self { whole, layout: layout.with_offset(layout.offset + u64::from(GUARD)) }
    }

    fn filled<T: Element>(ctx: &Context, end: u32) -> Tensor<1> {
        let guard = [T::from_f32(7.0); GUARD as usize];
        let mut data = vec![T::from_f32(f32::NAN); end as usize];
        data.splice(0..0, guard);
        data.extend(guard);
        let len = u32::try_from(data.len()).unwrap();
        Tensor::upload(ctx, [len], &data).unwrap()
    }

    pub fn view(&self) -> TensorView<'_, N> {
        self.whole.view_as(self.layout).unwrap()
    }

    /// The elements, row-major by shape.
    ///
    /// # Panics
    /// If a guard, or a gap between the elements, was written.
    pub fn read(&self, ctx: &Context) -> Vec<f32> {
        let all = download(ctx, &self.whole);
        let mut seen = vec![false; all.len()];
        let places = indices(&self.layout);
        for &at in &places {
            seen[at] = true;
        }
        for (at, value) in all.iter().enumerate() {
            let guard = at < GUARD as usize || at >= all.len() - GUARD as usize;
            if guard {
                assert_eq!(*value, 7.0, "guard element {at} of {} was written", all.len());
            } else if !seen[at] {
                assert!(value.is_nan(), "element {at} lies between rows and was written: {value}");
            }
        }
        places.iter().map(|&at| all[at]).collect()
    }
}

/// Places in the buffer of all elements of a layout, row-major by shape.
pub fn indices<const N: usize>(layout: &Layout<N>) -> Vec<usize> {
    let total = usize::try_from(layout.elements().unwrap()).unwrap();
    (0..total)
        .map(|flat| {
            let (mut rest, mut at) = (flat as u64, layout.offset);
            for axis in (0..N).rev() {
                let size = u64::from(layout.shape[axis]);
                at += rest % size * layout.strides[axis];
                rest /= size;
            }
            usize::try_from(at).unwrap()
        })
        .collect()
}

/// A layout of this shape with room between rows, heads-first or heads-last at random, and an
/// offset; sometimes a multiple of four everywhere, sometimes not.
pub fn random_layout(rng: &mut Rng, shape: [u32; 4]) -> Layout<4> {
    let [b, t, h, d] = shape.map(u64::from);
    let pad = u64::from(*rng.pick(&[0u32, 0, 4, 8, 3]));
    let row = d + pad;
    let strides = if rng.range(0, 2) == 0 {
        [t * h * row, h * row, row, 1]
    } else {
        [t * h * row, row, t * row, 1]
    };
    let _ = b;
    Layout { shape, strides, offset: u64::from(*rng.pick(&[0u32, 0, 4, 16, 5])) }
}

/// Uploads values, row-major by shape, into a layout; gaps hold NaN.
pub fn upload_as<const N: usize>(
    ctx: &Context,
    layout: Layout<N>,
    values: &[f32],
    dtype: DType,
) -> Result<Tensor<1>> {
    let end = usize::try_from(layout.end().unwrap()).unwrap().max(1);
    let mut data = vec![f32::NAN; end];
    for (&at, value) in indices(&layout).iter().zip(values) {
        data[at] = *value;
    }
    let len = [u32::try_from(end).unwrap()];
    match dtype {
        DType::F32 => Tensor::upload(ctx, len, &data),
        DType::F16 => Tensor::upload(ctx, len, &convert::<f16>(&data)),
        DType::BF16 => Tensor::upload(ctx, len, &convert::<bf16>(&data)),
        DType::I8 => Tensor::upload(ctx, len, &convert::<i8>(&data)),
        DType::U8 => Tensor::upload(ctx, len, &convert::<u8>(&data)),
    }
}

fn convert<T: Element>(x: &[f32]) -> Vec<T> {
    x.iter().map(|&x| T::from_f32(x)).collect()
}

/// All elements of a tensor as f32.
pub fn download<const N: usize>(ctx: &Context, tensor: &Tensor<N>) -> Vec<f32> {
    let widen16 = |x: Vec<f16>| x.into_iter().map(f16::to_f32).collect();
    let widenb = |x: Vec<bf16>| x.into_iter().map(bf16::to_f32).collect();
    match tensor.dtype() {
        DType::F32 => tensor.download::<f32>(ctx).unwrap(),
        DType::F16 => widen16(tensor.download::<f16>(ctx).unwrap()),
        DType::BF16 => widenb(tensor.download::<bf16>(ctx).unwrap()),
        DType::I8 | DType::U8 => panic!("no operator writes bytes"),
    }
}

/// Records with `encode`, submits and waits.
pub fn run(
    ctx: &Context,
    encode: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<()>,
) -> Result<()> {
    let mut encoder = ctx.device.create_command_encoder(&Default::default());
    encode(&mut encoder)?;
    ctx.queue.submit([encoder.finish()]);
    ctx.wait("test")
}
