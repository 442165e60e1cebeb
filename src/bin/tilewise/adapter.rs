//! Which adapter a command runs on.

use tilewise::wgpu::{self, Adapter, AdapterInfo};
use tilewise::{CARDS, Card, Context, DeviceClass};

use crate::Failure;

/// What a command runs on: `--adapter` and `--class`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) adapter: Option<&'a str>,
    pub(crate) class: Option<DeviceClass>,
}

impl Target<'_> {
    /// Opens the adapter that is wanted, or the context's own choice.
    pub(crate) fn open(self) -> Result<Context, Failure> {
        let Some(wanted) = self.adapter else {
            return Ok(self.planned(Context::new_blocking()?));
        };
        let adapters = pollster::block_on(Context::adapters());
        let infos: Vec<AdapterInfo> = adapters.iter().map(Adapter::get_info).collect();
        let chosen = find(&infos, wanted)?;
        Ok(self.planned(pollster::block_on(Context::from_adapter(&adapters[chosen]))?))
    }

    /// Opens every adapter; those that do not open come with their description and the error.
    pub(crate) fn open_all(self) -> Vec<Result<Context, (String, tilewise::Error)>> {
        pollster::block_on(Context::adapters())
            .iter()
            .map(|a| match pollster::block_on(Context::from_adapter(a)) {
                Ok(ctx) => Ok(self.planned(ctx)),
                Err(error) => Err((describe(&a.get_info()), error)),
            })
            .collect()
    }

    fn planned(self, ctx: Context) -> Context {
        self.class.map_or(ctx.clone(), |class| ctx.with_class(class))
    }
}

/// The card of that name.
pub(crate) fn card(name: &str) -> Result<&'static Card, String> {
    let names: Vec<&str> = CARDS.iter().map(|card| card.name).collect();
    Card::find(name).ok_or_else(|| format!("no such card; there are: {}", names.join(" ")))
}

/// A device that computes nothing, planned for as if it were `card`: for the texts of its kernels.
pub(crate) fn imitated(card: &Card) -> Result<Context, Failure> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::NOOP;
    descriptor.backend_options.noop = wgpu::NoopBackendOptions {
        enable: true,
        limits: Some(wgpu::Limits {
            max_storage_buffer_binding_size: card.binding_size,
            max_buffer_size: card.caps().buffer_size,
            max_storage_buffers_per_shader_stage: card.storage_buffers,
            min_storage_buffer_offset_alignment: card.offset_alignment,
            max_compute_workgroup_storage_size: card.workgroup_storage,
            max_compute_invocations_per_workgroup: card.invocations,
            max_compute_workgroup_size_x: card.invocations,
            max_compute_workgroup_size_y: card.invocations,
            ..Default::default()
        }),
        features: Some(wgpu::Features::SUBGROUP | wgpu::Features::SHADER_F16),
        subgroup_min_size: Some(card.subgroup.map_or(4, |s| s.0)),
        subgroup_max_size: Some(card.subgroup.map_or(4, |s| s.1)),
        ..Default::default()
    };
    let instance = wgpu::Instance::new(descriptor);
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
    let ctx = pollster::block_on(Context::from_adapter(&adapter))?;
    Ok(ctx.with_caps(card.caps()))
}

/// Name and backend on one line.
pub(crate) fn describe(info: &AdapterInfo) -> String {
    let driver = if info.driver_info.is_empty() { &info.driver } else { &info.driver_info };
    let tail = if driver.is_empty() { String::new() } else { format!(", {driver}") };
    format!("{} ({}{tail})", info.name, info.backend)
}

/// A day and minute in UTC, from seconds since 1970.
pub(crate) fn date(time: u64) -> String {
    // days counted from 1 March of the year 0: leap days come last
    let days = time / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let (hour, minute) = (time / 3600 % 24, time / 60 % 60);
    format!("{:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC", era * 400 + year + next)
}

/// The first adapter whose backend is `wanted`, else whose name contains it, else whose driver
/// does. Backends come first so that `gl` does not find a name like `Google`.
fn find(infos: &[AdapterInfo], wanted: &str) -> Result<usize, Failure> {
    let wanted_lower = wanted.to_lowercase();
    let contains = |text: &str| text.to_lowercase().contains(&wanted_lower);
    infos
        .iter()
        .position(|i| i.backend.to_str() == wanted_lower)
        .or_else(|| infos.iter().position(|i| contains(&i.name)))
        .or_else(|| infos.iter().position(|i| contains(&i.driver) || contains(&i.driver_info)))
        .ok_or_else(|| {
            let list: Vec<String> = infos.iter().map(|i| format!("\n  {}", describe(i))).collect();
            match list.as_slice() {
                [] => NO_ADAPTER.into(),
                _ => format!("no adapter matches {wanted:?}; there are:{}", list.concat()).into(),
            }
        })
}

/// What to say on a machine without any adapter.
pub(crate) const NO_ADAPTER: &str =
    "no adapter found; scripts/setup.sh installs a software driver where there is no GPU";

/// Whether a machine without any adapter is acceptable.
pub(crate) fn none_allowed() -> bool {
    std::env::var("TILEWISE_ALLOW_NO_GPU").is_ok_and(|v| v == "1")
}

#[cfg(test)]
mod tests {
    use super::{date, find};
    use tilewise::wgpu::{AdapterInfo, Backend, DeviceType};

    fn info(name: &str, backend: Backend) -> AdapterInfo {
        AdapterInfo { name: name.into(), ..AdapterInfo::new(DeviceType::Cpu, backend) }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_735_689_599), "2024-12-31 23:59 UTC");
    }

    #[test]
    fn a_backend_is_found_before_a_name() {
        let all = [
            info("SwiftShader Device (Google)", Backend::Vulkan),
            info("llvmpipe (LLVM 15)", Backend::Vulkan),
            info("llvmpipe (LLVM 15)", Backend::Gl),
        ];
        assert_eq!(find(&all, "GL").unwrap(), 2);
        assert_eq!(find(&all, "swiftshader").unwrap(), 0);
        assert_eq!(find(&all, "LLVMPIPE").unwrap(), 1);
        let error = find(&all, "radeon").unwrap_err().to_string();
        assert!(error.contains("radeon") && error.contains("llvmpipe (LLVM 15) (gl)"), "{error}");
        assert!(find(&[], "gl").unwrap_err().to_string().contains("no adapter found"));
    }
}
