//! Strided views of buffers, and buffers with a shape.

use std::sync::Arc;

use half::{bf16, f16};

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

const LAYOUT: &str = "layout";

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
    /// If `axes` is not a permutation of `0..N`, the result has strides past any buffer; such a layout
    /// is refused when a view is made of it.
    #[must_use]
    pub fn permuted(self, axes: [usize; N]) -> Self {
        let mut sorted = axes;
        sorted.sort_unstable();
        if sorted != std::array::from_fn(|axis| axis) {
            return Self { strides: [u64::MAX; N], ..self };
        }
        Self {
            shape: axes.map(|a| self.shape[a]),
            strides: axes.map(|a| self.strides[a]),
            offset: self.offset,
        }
    }

    /// The same shape from the same first element with other distances between neighbours.
    #[must_use]
    pub fn with_strides(self, strides: [u64; N]) -> Self {
        Self { strides, ..self }
    }

    /// Indices `start..start + len` of axis `axis`.
    ///
    /// # Errors
    /// [`Error::Shape`] for an axis that is not there, or a range past its end.
    pub fn narrow(self, axis: usize, start: u32, len: u32) -> Result<Self> {
        let n = self.axis(axis)?;
        if u64::from(start) + u64::from(len) > u64::from(n) {
            let got = format!("{start}..{}", u64::from(start) + u64::from(len));
            return Err(Error::shape(LAYOUT, "range", format!("within 0..{n}"), got));
        }
        let mut narrow = self;
        narrow.shape[axis] = len;
        // past an empty axis nothing lies
        if len > 0 {
            let skipped = u64::from(start).saturating_mul(self.strides[axis]);
            narrow.offset = self.offset.saturating_add(skipped);
        }
        Ok(narrow)
    }

    /// Index `index` of axis `axis`, which is left out: `M` is `N - 1`.
    ///
    /// ```
    /// # use tilewise::Layout;
    /// # fn main() -> tilewise::Result<()> {
    /// // queries, keys and values of one projection, [batch, seq, 3, heads, head_dim]
    /// let [b, n, h, d] = [2, 100, 8, 64];
    /// let qkv = Layout::contiguous([b, n, 3, h, d]);
    /// let [q, k, v] = [qkv.select(2, 0)?, qkv.select(2, 1)?, qkv.select(2, 2)?];
    /// assert_eq!((v.shape, v.offset), ([b, n, h, d], 2 * 8 * 64));
    /// # let _ = (q, k); Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] for an axis or an index that is not there, or another `M`.
    pub fn select<const M: usize>(self, axis: usize, index: u32) -> Result<Layout<M>> {
        if M + 1 != N {
            return Err(Error::shape(LAYOUT, "axes of the result", N.saturating_sub(1), M));
        }
        let n = self.axis(axis)?;
        if index >= n {
            return Err(Error::shape(LAYOUT, "index", format!("below {n}"), index));
        }
        let kept = |i: usize| if i < axis { i } else { i + 1 };
        Ok(Layout {
            shape: std::array::from_fn(|i| self.shape[kept(i)]),
            strides: std::array::from_fn(|i| self.strides[kept(i)]),
            offset: self.offset.saturating_add(u64::from(index).saturating_mul(self.strides[axis])),
        })
    }

    /// Axis `axis` as two, `parts` of equal length one after the other: `M` is `N + 1`.
    ///
    /// ```
    /// # use tilewise::Layout;
    /// # fn main() -> tilewise::Result<()> {
    /// // channels of all heads side by side
    /// let rows: Layout<4> = Layout::contiguous([2, 100, 512]).split(2, 8)?;
    /// assert_eq!(rows.shape, [2, 100, 8, 64]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] for an axis that is not there, parts that do not divide it, or another `M`.
    pub fn split<const M: usize>(self, axis: usize, parts: u32) -> Result<Layout<M>> {
        if M != N + 1 {
            return Err(Error::shape(LAYOUT, "axes of the result", N + 1, M));
        }
        let n = self.axis(axis)?;
        if parts == 0 || !n.is_multiple_of(parts) {
            return Err(Error::shape(LAYOUT, "parts", format!("a divisor of {n}"), parts));
        }
        let (len, stride) = (n / parts, self.strides[axis]);
        let of = |i: usize| if i <= axis { i } else { i - 1 };
        let mut split = Layout {
            shape: std::array::from_fn(|i| self.shape[of(i)]),
            strides: std::array::from_fn(|i| self.strides[of(i)]),
            offset: self.offset,
        };
        (split.shape[axis], split.shape[axis + 1]) = (parts, len);
        split.strides[axis] = stride.saturating_mul(len.into());
        Ok(split)
    }

    /// The length of an axis.
    fn axis(&self, axis: usize) -> Result<u32> {
        self.shape
            .get(axis)
            .copied()
            .ok_or_else(|| Error::shape(LAYOUT, "axis", format!("below {N}"), axis))
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

    /// [`Tensor::upload`] of values that are rounded to `dtype`: to the nearest, ties to even (to the
    /// nearest that there is, for integers).
    ///
    /// # Errors
    /// As [`Tensor::upload`].
    pub fn upload_f32(ctx: &Context, shape: [u32; N], dtype: DType, data: &[f32]) -> Result<Self> {
        match dtype {
            DType::F32 => Self::upload(ctx, shape, data),
            DType::F16 => Self::upload(ctx, shape, &rounded::<f16>(data)),
            DType::BF16 => Self::upload(ctx, shape, &rounded::<bf16>(data)),
            DType::I8 => Self::upload(ctx, shape, &rounded::<i8>(data)),
            DType::U8 => Self::upload(ctx, shape, &rounded::<u8>(data)),
        }
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

    /// [`Tensor::download`] of any element type, as the values that the elements stand for.
    ///
    /// # Errors
    /// As [`Tensor::download`], but for the type.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn download_f32(&self, ctx: &Context) -> Result<Vec<f32>> {
        let pending = self.start_download_f32(ctx)?;
        ctx.wait("download")?;
        pollster::block_on(pending)
    }

    /// [`Tensor::download_async`] of any element type, as [`Tensor::download_f32`].
    ///
    /// # Errors
    /// As there.
    pub async fn download_f32_async(&self, ctx: &Context) -> Result<Vec<f32>> {
        self.start_download_f32(ctx)?.await
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
        let pending = self.start_read(ctx)?;
        Ok(async move { Ok(bytemuck::pod_collect_to_vec(&pending.await?)) })
    }

    fn start_download_f32(
        &self,
        ctx: &Context,
    ) -> Result<impl Future<Output = Result<Vec<f32>>> + use<N>> {
        let (pending, dtype) = (self.start_read(ctx)?, self.dtype);
        Ok(async move {
            let bytes = pending.await?;
            Ok(match dtype {
                DType::F32 => widened::<f32>(&bytes),
                DType::F16 => widened::<f16>(&bytes),
                DType::BF16 => widened::<bf16>(&bytes),
                DType::I8 => widened::<i8>(&bytes),
                DType::U8 => widened::<u8>(&bytes),
            })
        })
    }

    fn start_read(&self, ctx: &Context) -> Result<impl Future<Output = Result<Vec<u8>>> + use<N>> {
        ctx.home().expect("download", "the tensor", Some(self.memory.home()))?;
        let bytes = Self::bytes(&self.layout, self.dtype)?;
        ctx.start_read(self.buffer(), bytes)
    }
}

fn rounded<T: Element>(data: &[f32]) -> Vec<T> {
    data.iter().map(|&x| T::from_f32(x)).collect()
}

fn widened<T: Element>(bytes: &[u8]) -> Vec<f32> {
    bytemuck::pod_collect_to_vec::<u8, T>(bytes).into_iter().map(T::to_f32).collect()
}
