//! Strided views of buffers, and buffers with a shape.

use std::sync::Arc;

use crate::{Context, DType, Element, Error, Result, home::Memory};

/// Shape, strides and offset of a dense tensor, in elements.
///
/// The last axis must have stride 1 (an axis of size 1 may have any). A stride of 0 repeats an
/// input along an axis; outputs may not repeat. Axis order is fixed by each operator, heads-last
/// as in FlashAttention (`[batch, seq, heads, head_dim]`); data in another order is described by
/// its strides and needs no copy:
///
/// ```
/// # use tilewise::Layout;
/// // heads-first memory [batch, heads, seq, head_dim], seen as [batch, seq, heads, head_dim]
/// let [b, h, n, d] = [2, 8, 100, 64];
/// let view = Layout::contiguous([b, h, n, d]).permuted([0, 2, 1, 3]);
/// assert_eq!(view.shape, [b, n, h, d]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout<const N: usize> {
    /// Number of elements along each axis.
    pub shape: [u32; N],
    /// Distance between neighbours along each axis.
    pub strides: [u64; N],
    /// Position of the first element in the buffer.
    pub offset: u64,
}

impl<const N: usize> Layout<N> {
    /// Row-major, without gaps, from the start of the buffer.
    ///
    /// Strides saturate where the number of elements passes `u64`; such a layout is refused when
    /// a view is made of it.
    pub fn contiguous(shape: [u32; N]) -> Self {
        let mut strides = [1u64; N];
        for axis in (0..N.saturating_sub(1)).rev() {
            strides[axis] = strides[axis + 1].saturating_mul(u64::from(shape[axis + 1]));
        }
        Self { shape, strides, offset: 0 }
    }

    /// The same data with its axes in another order: axis `i` of the result is `axes[i]` of this.
    ///
    /// # Panics
    /// If `axes` is not a permutation of `0..N`.
    #[must_use]
    pub fn permuted(self, axes: [usize; N]) -> Self {
        let mut seen = [false; N];
        for &axis in &axes {
            assert!(axis < N && !seen[axis], "{axes:?} is not a permutation of 0..{N}");
            seen[axis] = true;
        }
        Self {
            shape: axes.map(|a| self.shape[a]),
            strides: axes.map(|a| self.strides[a]),
            offset: self.offset,
        }
    }

    /// The same strides from another first element.
    #[must_use]
    pub fn with_offset(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    /// Number of elements, or `None` past `u64`.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::from(d)))
    }

    /// One past the last element that the layout reaches, `offset` included; 0 past nothing.
    /// `None` past `u64`.
    pub fn end(&self) -> Option<u64> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape
            .iter()
            .zip(self.strides)
            .try_fold(self.offset, |end, (&d, s)| end.checked_add(u64::from(d - 1).checked_mul(s)?))
            .and_then(|last| last.checked_add(1))
    }

    /// Whether every stride that is used, and the offset, is a multiple of `n`.
    pub fn is_multiple_of(&self, n: u64) -> bool {
        self.offset.is_multiple_of(n)
            && (0..N.saturating_sub(1))
                .all(|axis| self.shape[axis] <= 1 || self.strides[axis].is_multiple_of(n))
    }

    /// Whether no two indices reach the same element (sufficient, not necessary: axes must nest).
    pub fn is_injective(&self) -> bool {
        // in an empty tensor nothing overlaps
        if self.shape.contains(&0) {
            return true;
        }
        let mut axes: Vec<usize> = (0..N).filter(|&a| self.shape[a] > 1).collect();
        axes.sort_by_key(|&a| self.strides[a]);
        let mut reach = 1u64;
        for a in axes {
            if self.strides[a] < reach {
                return false;
            }
            reach = self.strides[a].saturating_mul(u64::from(self.shape[a]));
        }
        true
    }
}

/// A typed, strided window on a buffer that someone else owns.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a, const N: usize> {
    /// The buffer; needs usage `STORAGE`.
    pub buffer: &'a wgpu::Buffer,
    /// Where the elements lie.
    pub layout: Layout<N>,
    /// What the elements are.
    pub dtype: DType,
}

impl<'a, const N: usize> TensorView<'a, N> {
    /// A view of `buffer`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the layout reaches past the buffer, [`Error::Misaligned`] if the buffer's size is not a multiple of 4 bytes,
    /// [`Error::Strides`] if the last axis is not contiguous, [`Error::Usage`] without `STORAGE`.
    pub fn new(buffer: &'a wgpu::Buffer, layout: Layout<N>, dtype: DType) -> Result<Self> {
        let view = Self { buffer, layout, dtype };
        view.check("tensor", "view")?;
        Ok(view)
    }

    /// The checks of [`TensorView::new`], in the name of `op` and its argument `what`: fields are
    /// public, so every operator checks again.
    pub(crate) fn check(&self, op: &'static str, what: &'static str) -> Result<()> {
        let l = &self.layout;
        let size = self.buffer.size();
        // past u64 is past any buffer
        let end = l.end().and_then(|end| end.checked_mul(self.dtype.size())).unwrap_or(u64::MAX);
        if end > size {
            return Err(Error::OutOfRange { op, what, end, size });
        }
        if !size.is_multiple_of(4) {
            return Err(Error::Misaligned {
                op,
                what,
                quantity: "the buffer's size in bytes",
                multiple: 4,
                got: size,
            });
        }
        if N > 0 && l.shape[N - 1] > 1 && l.strides[N - 1] != 1 {
            return Err(Error::Strides {
                op,
                what,
                expected: "a contiguous last axis (stride 1)",
                shape: l.shape.to_vec(),
                strides: l.strides.to_vec(),
            });
        }
        if !self.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::Usage { op, what, missing: wgpu::BufferUsages::STORAGE });
        }
        Ok(())
    }
}

/// A buffer with a shape and an element type; owns its memory, row-major.
///
/// A clone shares the buffer.
#[derive(Clone, Debug)]
pub struct Tensor<const N: usize> {
    memory: Arc<Memory>,
    layout: Layout<N>,
    dtype: DType,
}

impl<const N: usize> Tensor<N> {
    /// Allocates a tensor of zeros.
    ///
    /// # Errors
    /// [`Error::Limit`] if the device cannot hold or bind it, [`Error::OutOfMemory`] if it has no
    /// room now, [`Error::DeviceLost`].
    pub fn zeros(ctx: &Context, shape: [u32; N], dtype: DType) -> Result<Self> {
        let layout = Layout::contiguous(shape);
        let bytes = Self::bytes(&layout, dtype)?;
        let buffer = ctx.create_buffer("tensor", bytes, Self::USAGE)?;
        Ok(Self { memory: Memory::new(buffer, Arc::clone(ctx.home())), layout, dtype })
    }

    /// Allocates a tensor and fills it with `data`, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] if `data` has another length than `shape`; those of [`Tensor::zeros`].
    pub fn upload<T: Element>(ctx: &Context, shape: [u32; N], data: &[T]) -> Result<Self> {
        let tensor = Self::zeros(ctx, shape, T::DTYPE)?;
        tensor.write(ctx, data)?;
        Ok(tensor)
    }

    /// Replaces all elements by `data`, row-major. The copy is part of the queue's next submission.
    ///
    /// # Errors
    /// [`Error::Shape`] if `data` has another length, [`Error::DType`] if it has another type,
    /// [`Error::OtherContext`] if the tensor was made on another device.
    pub fn write<T: Element>(&self, ctx: &Context, data: &[T]) -> Result<()> {
        ctx.home().expect("tensor", "the tensor to write", Some(self.memory.home()))?;
        let elements = self.layout.elements().unwrap_or(u64::MAX);
        if T::DTYPE != self.dtype {
            return Err(Error::DType {
                op: "tensor",
                what: "data",
                expected: self.dtype,
                got: T::DTYPE,
            });
        }
        if data.len() as u64 != elements {
            return Err(Error::shape(
                "tensor",
                "data",
                format!("{elements} elements for shape {:?}", self.layout.shape),
                data.len(),
            ));
        }
        if data.is_empty() {
            return Ok(());
        }
        let bytes: &[u8] = bytemuck::cast_slice(data);
        ctx.guard("tensor", Some(bytes.len() as u64), || {
            // a copy moves whole words; an odd 16-bit tail is padded
            let whole = bytes.len() & !3;
            ctx.queue.write_buffer(self.buffer(), 0, &bytes[..whole]);
            if whole < bytes.len() {
                let mut word = [0u8; 4];
                word[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
                ctx.queue.write_buffer(self.buffer(), whole as u64, &word);
            }
        })
    }

    /// Reads all elements back, row-major, as `T`, and blocks until they are here.
    ///
    /// # Errors
    /// [`Error::DType`] if the tensor holds another type, [`Error::OtherContext`] if it was made on
    /// another device, [`Error::DeviceLost`], [`Error::OutOfMemory`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn download<T: Element>(&self, ctx: &Context) -> Result<Vec<T>> {
        let pending = self.start_download::<T>(ctx)?;
        ctx.wait("download")?;
        pollster::block_on(pending)
    }

    /// Reads all elements back, row-major. On native targets something must poll the device
    /// meanwhile, as for any `map_async` of wgpu; in a browser the event loop does.
    ///
    /// # Errors
    /// As [`Tensor::download`].
    pub async fn download_async<T: Element>(&self, ctx: &Context) -> Result<Vec<T>> {
        self.start_download(ctx)?.await
    }

    /// The whole tensor as a view.
    pub fn view(&self) -> TensorView<'_, N> {
        TensorView { buffer: self.buffer(), layout: self.layout, dtype: self.dtype }
    }

    /// The buffer seen through another layout, of any rank.
    ///
    /// # Errors
    /// As [`TensorView::new`].
    pub fn view_as<const M: usize>(&self, layout: Layout<M>) -> Result<TensorView<'_, M>> {
        TensorView::new(self.buffer(), layout, self.dtype)
    }

    /// Number of elements along each axis.
    pub fn shape(&self) -> [u32; N] {
        self.layout.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The buffer. Usages: `STORAGE | COPY_SRC | COPY_DST`.
    ///
    /// Through this reference operators know the tensor's device; a clone of the buffer does not tell.
    pub fn buffer(&self) -> &wgpu::Buffer {
        self.memory.buffer()
    }

    const USAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
        .union(wgpu::BufferUsages::COPY_SRC)
        .union(wgpu::BufferUsages::COPY_DST);

    fn bytes(layout: &Layout<N>, dtype: DType) -> Result<u64> {
        layout.elements().and_then(|n| n.checked_mul(dtype.size())).ok_or(Error::Limit {
            op: "tensor",
            what: "bytes",
            need: u64::MAX,
            limit: u64::MAX - 1,
        })
    }

    fn start_download<T: Element>(
        &self,
        ctx: &Context,
    ) -> Result<impl Future<Output = Result<Vec<T>>> + use<T, N>> {
        if T::DTYPE != self.dtype {
            return Err(Error::DType {
                op: "download",
                what: "T",
                expected: self.dtype,
                got: T::DTYPE,
            });
        }
        ctx.home().expect("download", "the tensor", Some(self.memory.home()))?;
        let bytes = Self::bytes(&self.layout, self.dtype)?;
        let pending = ctx.start_read(self.buffer(), bytes)?;
        Ok(async move { Ok(bytemuck::pod_collect_to_vec(&pending.await?)) })
    }
}
