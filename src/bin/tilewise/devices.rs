//! `tilewise devices`: what there is, and what of it matters here.

use serde_json::{Value, json};
use tilewise::{Context, wgpu};

use crate::{Failure, adapter, adapter::Target};

/// List the adapters, with driver, kernel tier, and the limits and features that matter.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tilewise devices
  tilewise devices --adapter gl
  tilewise devices --json")]
pub(crate) struct Args {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Prints the adapters; false if one of them does not open.
pub(crate) fn run(args: &Args, target: Target<'_>) -> Result<bool, Failure> {
    let opened = match target.adapter {
        Some(_) => vec![Ok(target.open()?)],
        None => target.open_all(),
    };
    if opened.is_empty() {
        if !adapter::none_allowed() {
            return Err(adapter::NO_ADAPTER.into());
        }
        eprintln!("{}", adapter::NO_ADAPTER);
    }
    let default = Context::new_blocking().ok().map(|ctx| ctx.device.adapter_info());
    let is_default = |info: &wgpu::AdapterInfo| default.as_ref() == Some(info);
    if args.json {
        let list: Vec<Value> = opened
            .iter()
            .map(|device| match device {
                Ok(ctx) => as_json(ctx, is_default(&ctx.device.adapter_info())),
                Err((name, error)) => json!({ "adapter": name, "error": error.to_string() }),
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&list)?);
    } else {
        for device in &opened {
            match device {
                Ok(ctx) => print_card(ctx, is_default(&ctx.device.adapter_info())),
                Err((name, error)) => println!("{name}\n  {error}\n"),
            }
        }
    }
    Ok(opened.iter().all(Result::is_ok))
}

fn print_card(ctx: &Context, default: bool) {
    let info = ctx.device.adapter_info();
    let caps = &ctx.caps;
    println!("{}{}", info.name, if default { "  (default)" } else { "" });
    let line = |what: &str, value: String| println!("  {what:<22}{value}");
    line("backend", format!("{}, {}", info.backend, kind(info.device_type)));
    line("driver", join(&[&info.driver, &info.driver_info]));
    line("kernels", format!("{}, for a {}", tiers(ctx), caps.class.name().to_uppercase()));
    let subgroup = match caps.subgroup {
        Some((min, max)) if min == max => min.to_string(),
        Some((min, max)) => format!("{min} to {max}"),
        None => "no".into(),
    };
    line("subgroup size", subgroup);
    line(
        "f16 arithmetic",
        format!("{} (f16 and bf16 storage work on every device)", yes(caps.f16)),
    );
    line("timestamps", yes(caps.timestamps).into());
    let shapes: Vec<String> =
        caps.matrix_shapes.iter().map(|(m, n, k)| format!("{m}x{n}x{k}")).collect();
    line("cooperative matrices", if shapes.is_empty() { "no".into() } else { shapes.join(" ") });
    line("workgroup memory", bytes(caps.workgroup_storage.into()));
    line("invocations", caps.invocations.to_string());
    line("workgroups per axis", caps.workgroups_per_dim.to_string());
    line("storage binding", bytes(caps.binding_size));
    line("buffer", bytes(caps.buffer_size));
    line("storage buffers", caps.storage_buffers.to_string());
    if caps.loop_trips != u64::MAX {
        let why = "this driver ends longer loops silently; plans stay below";
        line("loop iterations", format!("{} ({why})", caps.loop_trips));
    }
    println!();
}

fn as_json(ctx: &Context, default: bool) -> Value {
    let info = ctx.device.adapter_info();
    let caps = &ctx.caps;
    json!({
        "adapter": adapter::describe(&info),
        "default": default,
        "name": info.name,
        "backend": info.backend.to_str(),
        "type": kind(info.device_type),
        "driver": info.driver,
        "driver_info": info.driver_info,
        "tier": caps.tier.name(),
        "class": caps.class.name(),
        "subgroup_min": caps.subgroup.map(|s| s.0),
        "subgroup_max": caps.subgroup.map(|s| s.1),
        "f16": caps.f16,
        "timestamps": caps.timestamps,
        "matrix_shapes": caps.matrix_shapes,
        "workgroup_storage": caps.workgroup_storage,
        "invocations": caps.invocations,
        "workgroups_per_dim": caps.workgroups_per_dim,
        "binding_size": caps.binding_size,
        "buffer_size": caps.buffer_size,
        "offset_alignment": caps.offset_alignment,
        "storage_buffers": caps.storage_buffers,
        "loop_trips": (caps.loop_trips != u64::MAX).then_some(caps.loop_trips),
    })
}

fn tiers(ctx: &Context) -> String {
    match ctx.caps.tier {
        tilewise::Tier::Portable => "portable".into(),
        tier => format!("{tier} (portable too)"),
    }
}

fn kind(device: wgpu::DeviceType) -> &'static str {
    match device {
        wgpu::DeviceType::DiscreteGpu => "discrete GPU",
        wgpu::DeviceType::IntegratedGpu => "integrated GPU",
        wgpu::DeviceType::VirtualGpu => "virtual GPU",
        wgpu::DeviceType::Cpu => "software on the CPU",
        wgpu::DeviceType::Other => "unknown kind",
    }
}

fn yes(has: bool) -> &'static str {
    if has { "yes" } else { "no" }
}

fn join(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|p| !p.is_empty()).collect();
    if parts.is_empty() { "not named".into() } else { parts.join(", ") }
}

/// Bytes in the largest unit that they fill, rounded down to a tenth.
fn bytes(n: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|(unit, _)| n >= *unit) {
        Some((unit, name)) if n.is_multiple_of(unit) => format!("{} {name}", n / unit),
        Some((unit, name)) => {
            let tenths = u128::from(n) * 10 / u128::from(unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{n} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(16_384), "16 KiB");
        assert_eq!(bytes(128 << 20), "128 MiB");
        assert_eq!(bytes((2 << 30) - 1), "1.9 GiB");
        assert_eq!(bytes(100), "100 bytes");
        assert_eq!(bytes(u64::MAX), "17179869183.9 GiB");
    }
}
