//! Tensors of a case on a device, with poison around them.

use std::cell::RefCell;
use std::ops::Deref;

use half::{bf16, f16};

use crate::conformance::run::{Output, Stop};
use crate::{Context, DType, Element, Error, Layout, Result, TensorView};

const OP: &str = "conformance";

/// Not a number in every float type: an entry that is used before it is written shows.
const POISON: u8 = 0xff;

/// Around what is written: a finite number in every float type, found unchanged afterwards.
const GUARD: u8 = 0xc3;

/// A device, and how the tensors of one case lie in their buffers.
pub(in crate::conformance) struct Rig<'a> {
    ctx: &'a Context,
    /// Elements before and after each tensor.
    margin: u32,
    written: RefCell<Vec<Guarded>>,
}

/// A buffer whose edges must stay as they are.
struct Guarded {
    what: &'static str,
    buffer: wgpu::Buffer,
    /// Bytes before what may be written, and where that ends.
    body: [usize; 2],
}

impl Deref for Rig<'_> {
    type Target = Context;
    fn deref(&self) -> &Context {
        self.ctx
    }
}

/// A tensor in the middle of a buffer.
pub(super) struct Tensor<const N: usize> {
    buffer: wgpu::Buffer,
    shape: [u32; N],
    dtype: DType,
    margin: u32,
}

impl<const N: usize> Tensor<N> {
    pub(super) fn view(&self) -> TensorView<'_, N> {
        let layout = Layout::contiguous(self.shape).with_offset(self.margin.into());
        TensorView { buffer: &self.buffer, layout, dtype: self.dtype }
    }

    /// Seen through a layout whose offset counts from the tensor's first element.
    pub(super) fn view_as<const M: usize>(&self, layout: Layout<M>) -> Result<TensorView<'_, M>> {
        let offset = layout.offset + u64::from(self.margin);
        TensorView::new(&self.buffer, layout.with_offset(offset), self.dtype)
    }

    pub(super) fn shape(&self) -> [u32; N] {
        self.shape
    }
}

impl<'a> Rig<'a> {
    pub(in crate::conformance) fn new(ctx: &'a Context, margin: u32) -> Self {
        Self { ctx, margin, written: RefCell::default() }
    }

    /// A buffer of `bytes` between two margins of `edge`.
    fn buffer(&self, bytes: &[u8], edge: u8, margin: usize) -> Result<wgpu::Buffer> {
        let mut all = vec![edge; margin];
        all.extend(bytes);
        all.resize((all.len() + margin).next_multiple_of(16).max(16), edge);
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST;
        let buffer = self.ctx.create_buffer(OP, all.len() as u64, usage)?;
        self.ctx.guard(OP, None, || self.ctx.queue.write_buffer(&buffer, 0, &all))?;
        Ok(buffer)
    }

    fn margin_bytes(&self, dtype: DType) -> usize {
        self.margin as usize * usize::try_from(dtype.size()).unwrap_or(1)
    }

    /// A tensor of type `dtype` holding `data`, rounded to it.
    ///
    /// # Errors
    /// [`Error::Shape`] if `data` has another length.
    pub(super) fn upload<const N: usize>(
        &self,
        shape: [u32; N],
        data: &[f32],
        dtype: DType,
    ) -> Result<Tensor<N>> {
        fn rounded<T: Element>(data: &[f32]) -> Vec<u8> {
            let data: Vec<T> = data.iter().map(|&x| T::from_f32(x)).collect();
            bytemuck::cast_slice(&data).to_vec()
        }
        let elements = Layout::contiguous(shape).elements();
        if elements != Some(data.len() as u64) {
            let expected = format!("elements for shape {shape:?}");
            return Err(Error::shape(OP, "data", expected, data.len()));
        }
        let bytes = match dtype {
            DType::F32 => rounded::<f32>(data),
            DType::F16 => rounded::<f16>(data),
            DType::BF16 => rounded::<bf16>(data),
            DType::I8 => rounded::<i8>(data),
            DType::U8 => rounded::<u8>(data),
        };
        let buffer = self.buffer(&bytes, POISON, self.margin_bytes(dtype))?;
        Ok(Tensor { buffer, shape, dtype, margin: self.margin })
    }

    /// A tensor for an output, full of NaN: an entry that the operator does not write fails the
    /// case.
    pub(super) fn poisoned<const N: usize>(
        &self,
        shape: [u32; N],
        dtype: DType,
    ) -> Result<Tensor<N>> {
        let layout = Layout::contiguous(shape);
        let bytes = layout.elements().and_then(|n| n.checked_mul(dtype.size()));
        let limit = self.ctx.caps.buffer_size;
        let bytes = bytes.filter(|&n| n <= limit).ok_or(Error::Limit {
            op: OP,
            what: "bytes in one buffer",
            need: bytes.unwrap_or(u64::MAX),
            limit,
        })?;
        let body = vec![POISON; usize::try_from(bytes).unwrap_or(usize::MAX)];
        let margin = self.margin_bytes(dtype);
        let buffer = self.buffer(&body, GUARD, margin)?;
        self.watch("an output", &buffer, [margin, margin + body.len()]);
        Ok(Tensor { buffer, shape, dtype, margin: self.margin })
    }

    /// A buffer for a plan's scratch, full of NaN.
    pub(super) fn scratch(&self, bytes: u64) -> Result<wgpu::Buffer> {
        let limit = self.ctx.caps.buffer_size;
        if bytes > limit {
            let what = "bytes in one buffer";
            return Err(Error::Limit { op: OP, what, need: bytes, limit });
        }
        let body = vec![POISON; usize::try_from(bytes).unwrap_or(usize::MAX)];
        // a plan uses a scratch buffer from its start
        let mut all = body.clone();
        all.extend(vec![GUARD; self.margin as usize * 4]);
        let buffer = self.buffer(&all, GUARD, 0)?;
        self.watch("scratch", &buffer, [0, body.len()]);
        Ok(buffer)
    }

    fn watch(&self, what: &'static str, buffer: &wgpu::Buffer, body: [usize; 2]) {
        if self.margin > 0 {
            self.written.borrow_mut().push(Guarded { what, buffer: buffer.clone(), body });
        }
    }

    /// Submits what `record` records.
    pub(super) fn submit(
        &self,
        record: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<()>,
    ) -> Result<()> {
        self.ctx.guard(OP, None, || {
            let mut encoder = self.ctx.device.create_command_encoder(&Default::default());
            record(&mut encoder)?;
            self.ctx.queue.submit([encoder.finish()]);
            Ok(())
        })?
    }

    fn bytes_of(&self, buffer: &wgpu::Buffer) -> Result<Vec<u8>> {
        let pending = self.ctx.start_read(buffer, buffer.size())?;
        self.ctx.wait(OP)?;
        pollster::block_on(pending)
    }

    /// Reads a tensor back as an output of the case.
    pub(super) fn output<const N: usize>(&self, name: &str, tensor: &Tensor<N>) -> Result<Output> {
        fn widened<T: Element>(data: &[u8]) -> Vec<f32> {
            bytemuck::pod_collect_to_vec::<u8, T>(data).into_iter().map(T::to_f32).collect()
        }
        let all = self.bytes_of(&tensor.buffer)?;
        let size = usize::try_from(tensor.dtype.size()).unwrap_or(1);
        let elements: usize = tensor.shape.iter().map(|&n| n as usize).product();
        let data = &all[tensor.margin as usize * size..][..elements * size];
        let data = match tensor.dtype {
            DType::F32 => widened::<f32>(data),
            DType::F16 => widened::<f16>(data),
            DType::BF16 => widened::<bf16>(data),
            DType::I8 => widened::<i8>(data),
            DType::U8 => widened::<u8>(data),
        };
        Ok(Output { name: name.into(), shape: tensor.shape.to_vec(), data })
    }

    /// Whether all margins are as they were.
    ///
    /// # Errors
    /// [`Stop::Failed`] if one was written.
    pub(in crate::conformance) fn check(&self) -> Result<(), Stop> {
        for guarded in self.written.borrow().iter() {
            let all = self.bytes_of(&guarded.buffer)?;
            let [start, end] = guarded.body;
            let changed = |from: usize, edge: &[u8]| {
                edge.iter().position(|&b| b != GUARD).map(|at| from + at)
            };
            if let Some(at) = changed(0, &all[..start]).or_else(|| changed(end, &all[end..])) {
                return Err(Stop::Failed(format!(
                    "byte {at} of the buffer of {} was written, which holds bytes {start}..{end}",
                    guarded.what
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes past either end of an output or past a scratch buffer are found; writes inside are not.
    #[test]
    fn a_write_outside_is_found() {
        let Ok(ctx) = Context::new_blocking() else {
            let allowed = std::env::var("TILEWISE_ALLOW_NO_GPU").is_ok_and(|v| v == "1");
            assert!(allowed, "no adapter; TILEWISE_ALLOW_NO_GPU=1 allows that");
            return;
        };
        let found = |pick: fn(&Tensor<1>, &wgpu::Buffer) -> (wgpu::Buffer, u64)| {
            let rig = Rig::new(&ctx, 8);
            let o = rig.poisoned([5], DType::F32).unwrap();
            let scratch = rig.scratch(20).unwrap();
            assert!(rig.output("o", &o).unwrap().data.iter().all(|x| x.is_nan()));
            let (buffer, at) = pick(&o, &scratch);
            ctx.queue.write_buffer(&buffer, at, &[0; 4]);
            ctx.queue.submit([]);
            rig.check()
        };
        // the margin has 32 bytes, then 20 of the tensor
        assert_eq!(found(|o, _| (o.buffer.clone(), 32)), Ok(()));
        assert_eq!(found(|o, _| (o.buffer.clone(), 48)), Ok(()));
        assert_eq!(found(|_, s| (s.clone(), 16)), Ok(()));
        for outside in [
            found(|o, _| (o.buffer.clone(), 28)),
            found(|o, _| (o.buffer.clone(), 52)),
            found(|_, s| (s.clone(), 20)),
        ] {
            let Err(Stop::Failed(why)) = outside else { panic!("{outside:?}") };
            assert!(why.contains("was written"), "{why}");
        }
    }

    /// What lies around an input is NaN, so that a kernel that reads it shows.
    #[test]
    fn inputs_lie_in_poison() {
        let Ok(ctx) = Context::new_blocking() else { return };
        let rig = Rig::new(&ctx, 8);
        let x = rig.upload([3], &[1.0, 2.0, 3.0], DType::F32).unwrap();
        let all: Vec<f32> = bytemuck::pod_collect_to_vec(&rig.bytes_of(&x.buffer).unwrap());
        assert_eq!(all[8..11], [1.0, 2.0, 3.0]);
        assert!(all[..8].iter().chain(&all[11..]).all(|x| x.is_nan()), "{all:?}");
    }
}
