//! A Vulkan device that only compiles, and what its driver tells of a pipeline
//! (VK_KHR_pipeline_executable_properties).

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};

use crate::translate::{Kernel, Place};
use ash::{ext, khr, vk};

/// A device as wgpu-hal 30 opens it, with what tells of pipelines.
pub(crate) struct Device {
    device: ash::Device,
    executables: khr::pipeline_executable_properties::Device,
    /// Name of the device.
    pub(crate) name: String,
    /// The driver's release.
    pub(crate) driver: String,
    // these go last: the device is of the instance, and its functions are the library's
    instance: ash::Instance,
    _entry: ash::Entry,
}

/// What a driver made of a text.
pub(crate) struct Compiled {
    /// Lanes of a subgroup.
    pub(crate) subgroup: u32,
    /// The driver's statistics, by its names for them.
    pub(crate) statistics: BTreeMap<String, u64>,
    /// The assembly.
    pub(crate) assembly: String,
}

/// Why a device is not open.
pub(crate) enum Unopened {
    /// The driver does not offer the card.
    Absent(String),
    /// It does, and does not open it, or something else is wrong.
    Broken(String),
}

impl From<String> for Unopened {
    fn from(why: String) -> Self {
        Self::Broken(why)
    }
}

fn text(result: vk::Result) -> String {
    format!("{result:?}")
}

/// A name in an array of C.
fn name(array: &[std::ffi::c_char]) -> String {
    let bytes = array.iter().take_while(|c| **c != 0).map(|c| c.cast_unsigned());
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

impl Device {
    /// The first device that the drivers in the environment offer.
    pub(crate) fn open() -> Result<Self, Unopened> {
        // SAFETY: the library is the Vulkan loader, whose start has no conditions
        let entry = unsafe { ash::Entry::load() }.map_err(|e| e.to_string())?;
        let app = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let info = vk::InstanceCreateInfo::default().application_info(&app);
        // SAFETY: the structures live until the call is over
        let instance = unsafe { entry.create_instance(&info, None) }.map_err(|e| match e {
            vk::Result::ERROR_INCOMPATIBLE_DRIVER => {
                Unopened::Absent("the driver offers no device".into())
            }
            other => Unopened::Broken(text(other)),
        })?;
        // SAFETY: the instance lives
        let physical = match unsafe { instance.enumerate_physical_devices() } {
            Ok(all) => all.first().copied(),
            // the loader's word for drivers without a device
            Err(vk::Result::ERROR_INITIALIZATION_FAILED) => None,
            Err(other) => return Err(Unopened::Broken(text(other))),
        };
        let physical =
            physical.ok_or_else(|| Unopened::Absent("the driver offers no such card".into()))?;
        let mut of_driver = vk::PhysicalDeviceDriverProperties::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut of_driver);
        // SAFETY: `physical` is of this instance, and the chain ends where it should
        unsafe { instance.get_physical_device_properties2(physical, &mut properties) };
        let title = name(&properties.properties.device_name);
        let driver = name(&of_driver.driver_info);
        // SAFETY: `physical` is of this instance
        let extensions = unsafe { instance.enumerate_device_extension_properties(physical) };
        let extensions: Vec<String> =
            extensions.map_err(text)?.iter().map(|e| name(&e.extension_name)).collect();
        let has = |name: &CStr| extensions.iter().any(|e| e.as_bytes() == name.to_bytes());
        if !has(khr::pipeline_executable_properties::NAME) {
            return Err("the driver does not tell of pipelines".to_string().into());
        }
        // without it wgpu has naga write the checks of buffers
        if !has(ext::robustness2::NAME) {
            return Err("the driver has no robustBufferAccess2".to_string().into());
        }
        let wanted =
            [khr::pipeline_executable_properties::NAME.as_ptr(), ext::robustness2::NAME.as_ptr()];
        let mut tells = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
            .pipeline_executable_info(true);
        let mut robust = vk::PhysicalDeviceRobustness2FeaturesEXT::default()
            .robust_buffer_access2(true)
            .robust_image_access2(true);
        let mut of_11 = vk::PhysicalDeviceVulkan11Features::default()
            .storage_buffer16_bit_access(true)
            .uniform_and_storage_buffer16_bit_access(true);
        let mut of_12 = vk::PhysicalDeviceVulkan12Features::default()
            .shader_float16(true)
            .shader_int8(true)
            .storage_buffer8_bit_access(true)
            .vulkan_memory_model(true)
            .vulkan_memory_model_device_scope(true)
            .shader_subgroup_extended_types(true);
        let mut of_13 = vk::PhysicalDeviceVulkan13Features::default()
            .subgroup_size_control(true)
            .compute_full_subgroups(true)
            .robust_image_access(true)
            .shader_integer_dot_product(true)
            .maintenance4(true);
        let features = vk::PhysicalDeviceFeatures::default()
            .robust_buffer_access(true)
            .shader_int64(true)
            .shader_int16(true);
        let queue =
            [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
        let info = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queue)
            .enabled_extension_names(&wanted)
            .enabled_features(&features)
            .push_next(&mut tells)
            .push_next(&mut of_11)
            .push_next(&mut of_12)
            .push_next(&mut of_13)
            .push_next(&mut robust);
        // SAFETY: `physical` is of this instance, the structures live until the call is over, and the
        // names end with zeros
        let device = unsafe { instance.create_device(physical, &info, None) }.map_err(text)?;
        let executables = khr::pipeline_executable_properties::Device::new(&instance, &device);
        Ok(Self { device, executables, name: title, driver, instance, _entry: entry })
    }

    /// Compiles SPIR-V as wgpu does: the driver chooses the size of subgroups.
    pub(crate) fn compile(&self, kernel: &Kernel, words: &[u32]) -> Result<Compiled, String> {
        let mut sets: BTreeMap<u32, Vec<vk::DescriptorSetLayoutBinding<'_>>> = BTreeMap::new();
        for (group, index, place) in &kernel.bindings {
            let kind = match place {
                Place::Uniform => vk::DescriptorType::UNIFORM_BUFFER,
                Place::Storage => vk::DescriptorType::STORAGE_BUFFER,
                Place::Image => vk::DescriptorType::STORAGE_IMAGE,
                Place::Sampled => vk::DescriptorType::SAMPLED_IMAGE,
            };
            sets.entry(*group).or_default().push(
                vk::DescriptorSetLayoutBinding::default()
                    .binding(*index)
                    .descriptor_type(kind)
                    .descriptor_count(1)
                    .stage_flags(vk::ShaderStageFlags::COMPUTE),
            );
        }
        let d = &self.device;
        let mut layouts = Vec::new();
        for bindings in sets.values() {
            let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(bindings);
            // SAFETY: the device lives, and the bindings until the call is over
            layouts.push(unsafe { d.create_descriptor_set_layout(&info, None) }.map_err(text)?);
        }
        let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&layouts);
        // SAFETY: the layouts are of this device
        let layout = unsafe { d.create_pipeline_layout(&info, None) }.map_err(text)?;
        let info = vk::ShaderModuleCreateInfo::default().code(words);
        // SAFETY: naga wrote the words from a module that it found valid
        let shader = unsafe { d.create_shader_module(&info, None) }.map_err(text)?;
        let entry = CString::new(kernel.entry.as_str()).map_err(|e| e.to_string())?;
        let mut stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(shader)
            .name(&entry);
        stage = stage.flags(vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE);
        let info = vk::ComputePipelineCreateInfo::default()
            .flags(
                vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                    | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR,
            )
            .stage(stage)
            .layout(layout);
        // SAFETY: module, entry point and layout belong together and live until the call is over
        let made = unsafe { d.create_compute_pipelines(vk::PipelineCache::null(), &[info], None) };
        let compiled = match made {
            Ok(pipelines) => {
                let compiled = self.tell(pipelines[0]);
                // SAFETY: it was made here, and nothing uses it any more
                unsafe { d.destroy_pipeline(pipelines[0], None) };
                compiled
            }
            Err((_, error)) => Err(text(error)),
        };
        // SAFETY: they were made here, and nothing uses them any more
        unsafe {
            d.destroy_shader_module(shader, None);
            d.destroy_pipeline_layout(layout, None);
            for layout in layouts {
                d.destroy_descriptor_set_layout(layout, None);
            }
        }
        compiled
    }

    /// What the driver tells of a pipeline's first executable, of which compute pipelines have one.
    fn tell(&self, pipeline: vk::Pipeline) -> Result<Compiled, String> {
        let of = vk::PipelineInfoKHR::default().pipeline(pipeline);
        // SAFETY: the pipeline lives, and its device has the extension
        let all = unsafe { self.executables.get_pipeline_executable_properties(&of) };
        let all = all.map_err(text)?;
        let first = all.first().ok_or("the driver tells of no executable")?;
        let which = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(0);
        // SAFETY: the pipeline was made with CAPTURE_STATISTICS, and has this executable
        let told = unsafe { self.executables.get_pipeline_executable_statistics(&which) };
        let mut statistics = BTreeMap::new();
        for s in told.map_err(text)? {
            use vk::PipelineExecutableStatisticFormatKHR as Format;
            // SAFETY: the format says which field was written; all are plain numbers
            let value = unsafe {
                match s.format {
                    Format::BOOL32 => u64::from(s.value.b32),
                    Format::INT64 => u64::try_from(s.value.i64).unwrap_or(0),
                    Format::FLOAT64 => s.value.f64 as u64,
                    _ => s.value.u64,
                }
            };
            statistics.insert(name(&s.name), value);
        }
        let assembly = self.assembly(&which)?;
        Ok(Compiled { subgroup: first.subgroup_size, statistics, assembly })
    }

    /// The assembly among the driver's texts.
    fn assembly(&self, which: &vk::PipelineExecutableInfoKHR<'_>) -> Result<String, String> {
        let get = self.executables.fp().get_pipeline_executable_internal_representations_khr;
        let device = self.device.handle();
        let mut count = 0;
        // SAFETY: without an array the function only counts
        unsafe { get(device, which, &mut count, std::ptr::null_mut()) }.result().map_err(text)?;
        let mut texts =
            vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
        // SAFETY: the array has as many places as it says; without data the function tells sizes
        unsafe { get(device, which, &mut count, texts.as_mut_ptr()) }.result().map_err(text)?;
        let mut data: Vec<Vec<u8>> = texts.iter().map(|t| vec![0; t.data_size + 1]).collect();
        for (text, data) in texts.iter_mut().zip(&mut data) {
            text.p_data = data.as_mut_ptr().cast();
        }
        // SAFETY: each text has a place of the size that was told, and one byte more
        unsafe { get(device, which, &mut count, texts.as_mut_ptr()) }.result().map_err(text)?;
        let at = texts
            .iter()
            .position(|t| name(&t.name).to_lowercase().contains("assembly"))
            .ok_or("the driver tells no assembly")?;
        let end = data[at].iter().position(|b| *b == 0).unwrap_or(data[at].len());
        Ok(String::from_utf8_lossy(&data[at][..end]).into_owned())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: all that was made on the device is gone, and the instance goes after it
        unsafe {
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}
