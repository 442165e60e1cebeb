//! Binding views and dispatching workgroups.

use crate::{Caps, Context, DType, Error, Result, TensorView, shader::Kernel};

/// One resource of a dispatch, in the order of the kernel's bindings.
pub(crate) type Resource<'a> = wgpu::BindingResource<'a>;

/// The part of a view's buffer that a kernel binds, and the view's place in it.
pub(crate) struct Bound<'a> {
    pub(crate) resource: Resource<'a>,
    /// First element of the view, counted from the start of the binding.
    pub(crate) offset: u32,
}

impl<'a, const N: usize> TensorView<'a, N> {
    /// Checks the view against what the operator expects, argument by argument.
    pub(crate) fn expect(
        &self,
        op: &'static str,
        what: &'static str,
        shape: [u32; N],
        dtype: DType,
    ) -> Result<()> {
        if self.layout.shape != shape {
            return Err(Error::shape(
                op,
                what,
                format!("{shape:?}"),
                format!("{:?}", self.layout.shape),
            ));
        }
        if self.dtype != dtype {
            return Err(Error::DType { op, what, expected: dtype, got: self.dtype });
        }
        self.check(op, what)
    }

    /// [`expect`](Self::expect), for an output: no element may be written twice.
    pub(crate) fn expect_output(
        &self,
        op: &'static str,
        what: &'static str,
        shape: [u32; N],
        dtype: DType,
    ) -> Result<()> {
        self.expect(op, what, shape, dtype)?;
        if !self.layout.is_injective() {
            return Err(Error::Strides {
                op,
                what,
                expected: "an output whose elements do not overlap",
                shape: self.layout.shape.to_vec(),
                strides: self.layout.strides.to_vec(),
            });
        }
        Ok(())
    }

    /// The smallest range to bind: it may start inside the buffer, so a view of a buffer larger
    /// than the binding limit is fine as long as the view itself is not.
    pub(crate) fn bind(
        &self,
        op: &'static str,
        what: &'static str,
        caps: &Caps,
    ) -> Result<Bound<'a>> {
        let size = self.dtype.size();
        let align = u64::from(caps.offset_alignment).max(16);
        // an empty view has no place: its offset may lie past the buffer
        let offset = if self.layout.end() == Some(0) { 0 } else { self.layout.offset };
        let start = offset.saturating_mul(size) / align * align;
        let end = self.layout.end().and_then(|e| e.checked_mul(size)).unwrap_or(u64::MAX);
        // whole vec4s, as far as the buffer goes; check() has made its size a multiple of 4
        let end =
            end.max(start.saturating_add(16)).checked_next_multiple_of(16).unwrap_or(u64::MAX);
        let end = end.min(self.buffer.size());
        let span = end.saturating_sub(start);
        if span > caps.binding_size {
            return Err(Error::Limit {
                op,
                what: "bytes spanned by one tensor",
                need: span,
                limit: caps.binding_size,
            });
        }
        let offset = u32::try_from(offset - start / size).map_err(|_| Error::OutOfRange {
            op,
            what,
            end,
            size: self.buffer.size(),
        })?;
        let resource = Resource::Buffer(wgpu::BufferBinding {
            buffer: self.buffer,
            offset: start,
            size: wgpu::BufferSize::new(span),
        });
        Ok(Bound { resource, offset })
    }

    /// Strides as a kernel takes them. A binding spans less than 2^32 elements, so every stride
    /// that is used fits; one along an axis of size 1 is never used.
    pub(crate) fn strides_u32(&self) -> [u32; N] {
        std::array::from_fn(|a| {
            if self.layout.shape[a] <= 1 {
                0
            } else {
                u32::try_from(self.layout.strides[a]).unwrap_or(0)
            }
        })
    }
}

/// Where an argument lies.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    buffer: &'a wgpu::Buffer,
    /// In elements; `None` for all of the buffer.
    layout: Option<(&'a [u32], &'a [u64], u64)>,
    /// Bytes of an element.
    size: u64,
}

impl<'a> From<&'a wgpu::Buffer> for Place<'a> {
    fn from(buffer: &'a wgpu::Buffer) -> Self {
        Self { buffer, layout: None, size: 1 }
    }
}

impl<'a, const N: usize> From<&'a TensorView<'_, N>> for Place<'a> {
    fn from(view: &'a TensorView<'_, N>) -> Self {
        let layout = &view.layout;
        let layout = Some((&layout.shape[..], &layout.strides[..], layout.offset));
        Self { buffer: view.buffer, layout, size: view.dtype.size() }
    }
}

impl Place<'_> {
    /// Axes of more than one element: their lengths, and strides in bytes; and the first byte.
    /// `None` past `u64`, and where nothing is said but the buffer.
    fn bytes(&self) -> Option<(Vec<[u64; 2]>, u64)> {
        let (shape, strides, offset) = self.layout?;
        let axes = shape.iter().zip(strides).filter(|(n, _)| **n > 1);
        let axes: Option<Vec<_>> =
            axes.map(|(&n, s)| Some([n.into(), s.checked_mul(self.size)?])).collect();
        Some((axes?, offset.checked_mul(self.size)?))
    }

    /// The words, within each `period` bytes, in which all elements lie.
    fn within(&self, period: u64) -> Option<[u64; 2]> {
        let (axes, first) = self.bytes()?;
        let inner = axes.iter().filter(|[_, stride]| !stride.is_multiple_of(period));
        let start = first % period;
        let end = inner.copied().try_fold(start.checked_add(self.size)?, |end, [n, stride]| {
            end.checked_add((n - 1).checked_mul(stride)?)
        })?;
        // what passes a period's end begins again in the next
        (end <= period).then_some([start / 4, end.div_ceil(4)])
    }

    /// Whether the two can be seen to have no word of four bytes in common: kernels write those whole.
    fn apart(&self, other: &Self) -> bool {
        if self.buffer != other.buffer {
            return true;
        }
        let nothing = |place: &Self| place.layout.is_some_and(|(shape, ..)| shape.contains(&0));
        if nothing(self) || nothing(other) {
            return true;
        }
        let (Some((a, _)), Some((b, _))) = (self.bytes(), other.bytes()) else { return false };
        // one after the other, or, as keys and values side by side in a row, in turn
        let periods =
            a.iter().chain(&b).map(|[_, stride]| *stride).filter(|s| *s > 0 && s % 4 == 0);
        periods.chain([1 << 62]).any(|period| match (self.within(period), other.within(period)) {
            (Some(a), Some(b)) => a[1] <= b[0] || b[1] <= a[0],
            _ => false,
        })
    }
}

/// Whether an input lies in the buffer of an output, refused if the two may overlap, or if one is of
/// another device: before they are compared, for buffers of two devices may be equal.
pub(crate) fn shares(
    ctx: &Context,
    op: &'static str,
    (output, written): (&'static str, Place<'_>),
    (input, read): (&'static str, Place<'_>),
) -> Result<bool> {
    ctx.home().expect_buffer(op, output, written.buffer)?;
    ctx.home().expect_buffer(op, input, read.buffer)?;
    if !written.apart(&read) {
        return Err(Error::SharedBuffer { op, output, other: input });
    }
    Ok(written.buffer == read.buffer)
}

/// Refuses buffers of another device, outputs that share a buffer with an input, and outputs that
/// overlap or may overlap: all of a buffer that is given without a layout counts.
pub(crate) fn distinct_outputs<'a>(
    ctx: &Context,
    op: &'static str,
    outputs: &[(&'static str, impl Into<Place<'a>> + Copy)],
    inputs: &[(&'static str, impl Into<Place<'a>> + Copy)],
) -> Result<()> {
    let place = |(what, place): (&'static str, Place<'a>)| {
        ctx.home().expect_buffer(op, what, place.buffer).map(|()| (what, place))
    };
    let outputs: Vec<_> =
        outputs.iter().map(|&(what, of)| place((what, of.into()))).collect::<Result<_>>()?;
    let inputs: Vec<_> =
        inputs.iter().map(|&(what, of)| place((what, of.into()))).collect::<Result<_>>()?;
    for (i, (output, at)) in outputs.iter().enumerate() {
        let within = |(_, other): &&(&'static str, Place<'_>)| other.buffer == at.buffer;
        if let Some((other, _)) = inputs.iter().find(within) {
            return Err(Error::SharedBuffer { op, output, other });
        }
        if let Some((other, _)) = outputs[..i].iter().find(|(_, other)| !other.apart(at)) {
            return Err(Error::SharedBuffer { op, output, other });
        }
    }
    Ok(())
}

/// Folds `count` workgroups into a dispatch within the device's limit per dimension; the kernel
/// finds its index with `group_index` and compares it with the true count.
pub(crate) fn fold(op: &'static str, count: u64, caps: &Caps) -> Result<[u32; 3]> {
    let limit = u64::from(caps.workgroups_per_dim).max(1);
    let too_many = || Error::Limit {
        op,
        what: "workgroups",
        need: count,
        limit: limit.saturating_pow(3).min(u64::from(u32::MAX)),
    };
    // the index in the kernel is a u32
    let total = u32::try_from(count).map_err(|_| too_many())?;
    if u64::from(total) <= limit {
        return Ok([total, 1, 1]);
    }
    let planes = count.div_ceil(limit * limit);
    let rows = count.div_ceil(planes).div_ceil(limit);
    let x = count.div_ceil(planes * rows);
    let dims = [x, rows, planes];
    if planes > limit || x * rows * planes > u64::from(u32::MAX) {
        return Err(too_many());
    }
    Ok(dims.map(|d| u32::try_from(d).unwrap_or(u32::MAX)))
}

/// Records one dispatch. `params` are the bytes of the kernel's `Params`, bound at 0.
pub(crate) fn dispatch(
    ctx: &Context,
    pass: &mut wgpu::ComputePass<'_>,
    op: &'static str,
    kernel: &Kernel,
    params: &[u8],
    resources: &[Resource<'_>],
    groups: [u32; 3],
) -> Result<()> {
    debug_assert_eq!(resources.len() + 1, kernel.bindings.len(), "{}", kernel.label);
    if groups.contains(&0) {
        return Ok(());
    }
    #[cfg(test)]
    ctx.note(crate::context::Dispatched {
        label: kernel.label.clone(),
        wgsl: kernel.wgsl.clone(),
        params: params.to_vec(),
        groups,
    });
    let uniform = ctx.uniform(op, params)?;
    ctx.guard(op, None, || {
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
            .zip(std::iter::once(uniform.as_entire_binding()).chain(resources.iter().cloned()))
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
            .collect();
        let group = ctx.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&kernel.label),
            layout: &kernel.layout,
            entries: &entries,
        });
        pass.set_pipeline(&kernel.pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
    })
}
