//! WGSL to what drivers are given, by naga as wgpu 30 calls it.
//!
//! The crate's kernels are trusted modules: bounds checks stay, loops are not bounded, divisions not
//! checked, workgroup memory not zeroed (see `Kernel::compile` in `src/shader.rs`).

use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy as Policy};
use naga::{AddressSpace, ImageClass, TypeInner};
use serde_json::{Value, json};

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

/// A text that has been read and found valid.
pub(crate) struct Module {
    module: naga::Module,
    info: ModuleInfo,
    /// Name of the only entry point.
    entry: String,
    /// Whether it has subgroup operations.
    pub(crate) subgroups: bool,
    /// Whether it computes with f16.
    pub(crate) f16: bool,
}

/// What stands at a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Uniform,
    Storage,
    Image,
    Sampled,
}

const PLACES: [(Place, &str); 4] = [
    (Place::Uniform, "uniform"),
    (Place::Storage, "storage"),
    (Place::Image, "image"),
    (Place::Sampled, "sampled"),
];

/// What a driver needs to know of a kernel beside its SPIR-V.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kernel {
    /// Name of the entry point.
    pub(crate) entry: String,
    /// Group, index and what is there.
    pub(crate) bindings: Vec<(u32, u32, Place)>,
    /// Invocations in a workgroup.
    pub(crate) invocations: u32,
    /// Bytes of workgroup memory, before a driver rounds them up.
    pub(crate) workgroup_memory: u32,
}

impl Kernel {
    /// For a worker.
    pub(crate) fn to_json(&self) -> Value {
        let name = |place| PLACES.iter().find(|p| p.0 == place).map_or("", |p| p.1);
        let bindings: Vec<Value> =
            self.bindings.iter().map(|(group, index, p)| json!([group, index, name(*p)])).collect();
        json!({
            "entry": self.entry,
            "bindings": bindings,
            "invocations": self.invocations,
            "workgroup_memory": self.workgroup_memory,
        })
    }

    /// What [`to_json`](Self::to_json) made.
    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        let number = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let binding = |value: &Value| {
            let place = PLACES.iter().find(|p| value[2].as_str() == Some(p.1))?.0;
            Some((number(&value[0])?, number(&value[1])?, place))
        };
        Some(Self {
            entry: value["entry"].as_str()?.into(),
            bindings: value["bindings"].as_array()?.iter().map(binding).collect::<Option<_>>()?,
            invocations: number(&value["invocations"])?,
            workgroup_memory: number(&value["workgroup_memory"])?,
        })
    }
}

/// Directives that only browsers want: naga has subgroups without being asked.
const FOR_BROWSERS: [&str; 2] = ["enable subgroups;", "diagnostic(off, subgroup_uniformity);"];

impl Module {
    /// Reads a text as wgpu does.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut plain = text;
        while let Some(rest) = FOR_BROWSERS.iter().find_map(|line| plain.strip_prefix(line)) {
            plain = rest.trim_start_matches(['\r', '\n']);
        }
        let module = naga::front::wgsl::Frontend::new_with_options(naga::front::wgsl::Options {
            parse_doc_comments: false,
            capabilities: Capabilities::all(),
        })
        .parse(plain)
        .map_err(|e| one_line(&e.emit_to_string(plain)))?;
        let info = Validator::new(ValidationFlags::all(), Capabilities::all())
            .validate(&module)
            .map_err(|e| one_line(&e.emit_to_string(plain)))?;
        let [entry] = &module.entry_points[..] else {
            return Err(format!("{} entry points, not one", module.entry_points.len()));
        };
        let entry = entry.name.clone();
        let word = |word: &str| {
            plain.lines().any(|line| line.split("//").next().is_some_and(|c| c.contains(word)))
        };
        let (subgroups, f16) = (word("subgroup"), word("enable f16;"));
        Ok(Self { module, info, entry, subgroups, f16 })
    }

    /// What a driver needs to know of it.
    pub(crate) fn kernel(&self) -> Kernel {
        let context = self.module.to_ctx();
        let (mut bindings, mut workgroup_memory) = (Vec::new(), 0);
        for (_, var) in self.module.global_variables.iter() {
            let inner = &self.module.types[var.ty].inner;
            if var.space == AddressSpace::WorkGroup {
                workgroup_memory += inner.size(context);
            }
            let Some(at) = var.binding else { continue };
            let place = match (var.space, inner) {
                (AddressSpace::Uniform, _) => Place::Uniform,
                (
                    AddressSpace::Handle,
                    TypeInner::Image { class: ImageClass::Storage { .. }, .. },
                ) => Place::Image,
                (AddressSpace::Handle, _) => Place::Sampled,
                _ => Place::Storage,
            };
            bindings.push((at.group, at.binding, place));
        }
        Kernel {
            entry: self.entry.clone(),
            bindings,
            invocations: self.module.entry_points[0].workgroup_size.iter().product(),
            workgroup_memory,
        }
    }

    /// SPIR-V as wgpu-hal's Vulkan backend makes it for a device with robustBufferAccess2 (all of
    /// Mesa's have it): buffers are the driver's to check.
    pub(crate) fn spirv(&self) -> Result<Vec<u32>, String> {
        use spv::Capability as C;
        let mut capabilities = vec![
            C::Shader,
            C::Matrix,
            C::Sampled1D,
            C::Image1D,
            C::ImageQuery,
            C::DerivativeControl,
            C::StorageImageExtendedFormats,
            C::Int8,
            C::Int16,
            C::Int64,
            C::Float16,
            C::DotProductInputAllKHR,
            C::DotProductInput4x8BitKHR,
            C::DotProductInput4x8BitPackedKHR,
            C::DotProductKHR,
        ];
        if self.subgroups {
            capabilities.extend([
                C::GroupNonUniform,
                C::GroupNonUniformVote,
                C::GroupNonUniformArithmetic,
                C::GroupNonUniformBallot,
                C::GroupNonUniformShuffle,
                C::GroupNonUniformShuffleRelative,
                C::GroupNonUniformQuad,
            ]);
        }
        let mut options = spv::Options {
            lang_version: (1, 6),
            flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
            capabilities: Some(capabilities.into_iter().collect()),
            bounds_check_policies: BoundsCheckPolicies {
                index: Policy::Restrict,
                buffer: Policy::Unchecked,
                image_load: Policy::Unchecked,
                binding_array: Policy::Unchecked,
            },
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            force_loop_bounding: false,
            emit_int_div_checks: false,
            fake_missing_bindings: false,
            ..Default::default()
        };
        for (_, var) in self.module.global_variables.iter() {
            if let Some(at) = var.binding {
                let place = spv::BindingInfo {
                    descriptor_set: at.group,
                    binding: at.binding,
                    binding_array_size: None,
                };
                options.binding_map.insert(at, place);
            }
        }
        let pipeline = spv::PipelineOptions {
            entry_point: self.entry.clone(),
            shader_stage: naga::ShaderStage::Compute,
        };
        spv::write_vec(&self.module, &self.info, &options, Some(&pipeline))
            .map_err(|e| e.to_string())
    }

    /// Metal's language as wgpu-hal makes it; how many bytes.
    pub(crate) fn metal(&self, version: (u8, u8)) -> Result<usize, String> {
        let mut resources = msl::BindingMap::default();
        let (mut buffers, mut textures) = (0, 0);
        for (_, var) in self.module.global_variables.iter() {
            let Some(at) = var.binding else { continue };
            let mut target = msl::BindTarget::default();
            let slot = match var.space {
                AddressSpace::Handle => (&mut target.texture, &mut textures),
                _ => (&mut target.buffer, &mut buffers),
            };
            *slot.0 = Some(*slot.1);
            *slot.1 += 1;
            target.mutable = matches!(
                var.space,
                AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE)
            ) || var.space == AddressSpace::Handle;
            resources.insert(at, target);
        }
        let sizes_buffer = Some(buffers);
        let place = msl::EntryPointResources { resources, immediates_buffer: None, sizes_buffer };
        let options = msl::Options {
            lang_version: version,
            per_entry_point_map: [(self.entry.clone(), place)].into_iter().collect(),
            fake_missing_bindings: false,
            bounds_check_policies: BoundsCheckPolicies {
                index: Policy::Restrict,
                buffer: Policy::Restrict,
                image_load: Policy::Restrict,
                binding_array: Policy::Unchecked,
            },
            zero_initialize_workgroup_memory: false,
            force_loop_bounding: false,
            emit_int_div_checks: false,
            ..Default::default()
        };
        let pipeline = msl::PipelineOptions {
            entry_point: Some((naga::ShaderStage::Compute, self.entry.clone())),
            allow_and_force_point_size: false,
            vertex_pulling_transform: true,
            vertex_buffer_mappings: Vec::new(),
            binding_array_length_map: Default::default(),
        };
        let (text, written) = msl::write_string(&self.module, &self.info, &options, &pipeline)
            .map_err(|e| e.to_string())?;
        for name in written.entry_point_names {
            name.map_err(|e| e.to_string())?;
        }
        Ok(text.len())
    }

    /// DirectX's language as wgpu-hal makes it; how many bytes.
    pub(crate) fn directx(&self, model: hlsl::ShaderModel) -> Result<usize, String> {
        let mut options = hlsl::Options {
            shader_model: model,
            fake_missing_bindings: false,
            zero_initialize_workgroup_memory: false,
            restrict_indexing: true,
            force_loop_bounding: false,
            ..Default::default()
        };
        let mut register = 0;
        for (_, var) in self.module.global_variables.iter() {
            if let Some(at) = var.binding {
                let target = hlsl::BindTarget { space: 0, register, ..Default::default() };
                options.binding_map.insert(at, target);
                register += 1;
            }
        }
        // wgpu gives every kernel the number of workgroups, which DirectX does not know
        options.special_constants_binding =
            Some(hlsl::BindTarget { space: 1, register: 0, ..Default::default() });
        let pipeline = hlsl::PipelineOptions {
            entry_point: Some((naga::ShaderStage::Compute, self.entry.clone())),
        };
        let mut text = String::new();
        let written = hlsl::Writer::new(&mut text, &options, &pipeline)
            .write(&self.module, &self.info, None)
            .map_err(|e| e.to_string())?;
        for name in written.entry_point_names {
            name.map_err(|e| e.to_string())?;
        }
        Ok(text.len())
    }
}

/// A message over several lines as one.
fn one_line(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    let mut line = words.join(" ");
    if let Some((at, _)) = line.char_indices().nth(300) {
        line.truncate(at);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "enable subgroups;\ndiagnostic(off, subgroup_uniformity);
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
var<workgroup> part: array<vec4<f32>, 12>;
@compute @workgroup_size(8, 4)
fn double(@builtin(local_invocation_index) i: u32) {
    part[i % 12u] = vec4(subgroupAdd(out[i]));
    workgroupBarrier();
    out[i] = part[0].x;
}
";

    #[test]
    fn a_text_for_browsers_is_read_and_written_for_every_backend() {
        let module = Module::read(TEXT).unwrap();
        let kernel = module.kernel();
        assert_eq!((kernel.invocations, kernel.workgroup_memory), (32, 192));
        assert_eq!(kernel.bindings, [(0, 0, Place::Storage)]);
        assert_eq!(Kernel::from_json(&kernel.to_json()), Some(kernel));
        assert_eq!((module.entry.as_str(), module.subgroups, module.f16), ("double", true, false));
        assert_eq!(module.spirv().unwrap()[0], 0x0723_0203);
        assert!(module.metal((2, 1)).unwrap() > 100);
        assert!(module.directx(hlsl::ShaderModel::V6_0).unwrap() > 100);
    }

    #[test]
    fn what_is_no_kernel_is_refused_in_one_line() {
        for text in ["fn f() -> u32 { return 1.5; }", "@compute", ""] {
            let said = Module::read(text).err().unwrap();
            assert!(!said.contains('\n') && !said.is_empty(), "{said}");
        }
    }
}
