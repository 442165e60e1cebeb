//! Inputs copied into textures, for drivers that read texels faster than buffers.
//!
//! Mesa's llvmpipe before release 25 compiles a load from a storage buffer as a loop over lanes that
//! puts one word at a time into a vector, by way of memory where the processor has no masks for
//! vectors; a texel is fetched for all lanes without a loop. A texture here is the bound part of a
//! buffer, byte for byte, sixteen bytes to a texel and [`ROW`] texels to a row, so that a kernel
//! indexes it as it would the buffer. It is bound as a storage texture: a sampled one has mip
//! levels, which llvmpipe looks up for every lane.

use crate::{
    Caps, Context, Result,
    dispatch::{Resource, dispatch, fold},
    element::{DType, TensorDecl},
    shader::{Key, Source, source},
};

/// Texels in a row of such a texture. A power of two.
pub(crate) const ROW: u32 = 4096;

/// Elements in a texel.
pub(crate) fn elements(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 4,
        DType::F16 | DType::BF16 => 8,
        DType::I8 | DType::U8 => 16,
    }
}

const COPY: Source = source!("texels.wgsl");

// Must match `Params` in shaders/texels.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    texels: u32,
}

/// The kernel that copies.
fn key() -> Key {
    Key {
        source: COPY,
        entry: "copy_texels",
        spec: vec![("ROW", format!("{ROW}u"))],
        tensors: vec![("words", Some(TensorDecl::new(DType::F32, true)))],
    }
}

/// A bound input that fits a texture.
pub(crate) struct Input<'a> {
    range: wgpu::BufferBinding<'a>,
    texels: u32,
}

impl<'a> Input<'a> {
    /// `None` if `bound` has to be read where it is: too large for a texture, or its buffer ends
    /// within a texel.
    pub(crate) fn new(caps: &Caps, bound: &Resource<'a>) -> Option<Self> {
        let Resource::Buffer(range) = bound else { return None };
        let bytes = range.size?.get();
        let texels = u32::try_from(bytes / 16).ok()?;
        let fits = caps.texels >= ROW && texels.div_ceil(ROW) <= caps.texels;
        (fits && bytes.is_multiple_of(16)).then(|| Self { range: range.clone(), texels })
    }

    /// Whether the driver may copy from the buffer.
    pub(crate) fn copyable(&self) -> bool {
        self.range.buffer.usage().contains(wgpu::BufferUsages::COPY_SRC)
    }

    fn texture(
        &self,
        ctx: &Context,
        op: &'static str,
        filled_by: wgpu::TextureUsages,
    ) -> Result<wgpu::Texture> {
        let height = self.texels.div_ceil(ROW);
        let bytes = 16 * u64::from(ROW) * u64::from(height);
        ctx.guard(op, Some(bytes), || {
            ctx.device.create_texture(&wgpu::TextureDescriptor {
                label: Some(op),
                size: wgpu::Extent3d { width: ROW, height, depth_or_array_layers: 1 },
                mip_level_count: 1,
                sample_count: 1,
                dimension: wgpu::TextureDimension::D2,
                format: wgpu::TextureFormat::Rgba32Uint,
                usage: wgpu::TextureUsages::STORAGE_BINDING | filled_by,
                view_formats: &[],
            })
        })
    }

    /// Makes the texture; the driver copies, outside of a pass.
    pub(crate) fn copy(
        &self,
        ctx: &Context,
        op: &'static str,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<wgpu::TextureView> {
        let texture = self.texture(ctx, op, wgpu::TextureUsages::COPY_DST)?;
        let (rows, rest) = (self.texels / ROW, self.texels % ROW);
        ctx.guard(op, None, || {
            let mut part = |first: u32, width: u32, height: u32| {
                if width * height == 0 {
                    return;
                }
                let offset = self.range.offset + u64::from(first) * u64::from(16 * ROW);
                let source = wgpu::TexelCopyBufferInfo {
                    buffer: self.range.buffer,
                    layout: wgpu::TexelCopyBufferLayout {
                        offset,
                        bytes_per_row: Some(16 * ROW),
                        rows_per_image: None,
                    },
                };
                let target = wgpu::TexelCopyTextureInfo {
                    origin: wgpu::Origin3d { x: 0, y: first, z: 0 },
                    ..texture.as_image_copy()
                };
                let size = wgpu::Extent3d { width, height, depth_or_array_layers: 1 };
                encoder.copy_buffer_to_texture(source, target, size);
            };
            part(0, ROW, rows);
            part(rows, rest, 1);
            texture.create_view(&wgpu::TextureViewDescriptor::default())
        })
    }

    /// Makes the texture; a kernel copies, within a pass.
    pub(crate) fn copy_in_pass(
        &self,
        ctx: &Context,
        op: &'static str,
        pass: &mut wgpu::ComputePass<'_>,
    ) -> Result<wgpu::TextureView> {
        let texture = self.texture(ctx, op, wgpu::TextureUsages::empty())?;
        let view =
            ctx.guard(op, None, || texture.create_view(&wgpu::TextureViewDescriptor::default()))?;
        let params = Params { texels: self.texels };
        let resources = [Resource::Buffer(self.range.clone()), Resource::TextureView(&view)];
        let groups = fold(op, u64::from(self.texels).div_ceil(64), &ctx.caps)?;
        let kernel = ctx.kernel(key())?;
        dispatch(ctx, pass, op, &kernel, bytemuck::bytes_of(&params), &resources, groups)?;
        Ok(view)
    }
}

#[cfg(test)]
mod tests {
    use super::{Params, key};
    use crate::test_support::{assert_params, fields};

    #[test]
    fn params_match() {
        assert_params(&key().wgsl(), fields!(Params: texels));
    }
}
