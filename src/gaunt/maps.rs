//! Sparse linear and bilinear maps of rows, from tables made on the host.

use super::program::to_f32;
use crate::{
    Context, DType, Error, Result, TensorView,
    dispatch::{Bound, Resource, dispatch, fold},
    element::TensorDecl,
    shader::{Key, Source, source},
};

const LINEAR: Source = source!("gaunt/linear.wgsl");
const BILINEAR: Source = source!("gaunt/bilinear.wgsl");

const WORKGROUP: u32 = 64;

/// An index and a degree share a word.
const MAX_INDEX: u32 = 1 << 24;

/// One term of a linear map's output: `value * src[index]`; `degree` picks the input weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) index: u32,
    pub(crate) degree: u32,
    pub(crate) value: f64,
}

/// One term of a bilinear map's output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    /// Index and degree in `x`.
    pub(crate) x: (u32, u32),
    /// Index and degree in `y`.
    pub(crate) y: (u32, u32),
    pub(crate) value: f64,
}

/// A linear map on the device.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    table: wgpu::Buffer,
    pub(crate) n_out: u32,
}

/// A bilinear map on the device.
#[derive(Clone, Debug)]
pub(crate) struct Bilinear {
    table: wgpu::Buffer,
    n_out: u32,
}

// Must match `Params` in shaders/gaunt/linear.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct LinearParams {
    src: [u32; 4],
    dst: [u32; 4],
    weight_in: [u32; 4],
    weight_out: [u32; 4],
    count: u32,
    n_out: u32,
    channels: u32,
    lines: u32,
    first_src: u32,
    first_dst: u32,
    dst_channels: u32,
    pad: u32,
}

// Must match `Params` in shaders/gaunt/bilinear.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct BilinearParams {
    x: [u32; 4],
    y: [u32; 4],
    z: [u32; 4],
    weight_x: [u32; 4],
    weight_y: [u32; 4],
    weight_z: [u32; 4],
    rows: u32,
    channels: u32,
    count: u32,
    pad: u32,
}

/// A named weight, `[batch, channels, lmax + 1]`.
pub(crate) type Weight<'a> = (&'static str, TensorView<'a, 3>);

/// The rows that one [`Linear::encode_pass`] maps, and from where to where.
pub(crate) struct Rows<'a> {
    /// `[batch, channels, lines, n_in]`.
    pub(crate) src: (&'static str, TensorView<'a, 4>),
    /// `[batch, channels, lines, n_out]`.
    pub(crate) dst: (&'static str, TensorView<'a, 4>),
    /// Rows, of `lines` lines each.
    pub(crate) rows: u32,
    /// Channels of `src`: a row is `(batch, channel)`.
    pub(crate) channels: u32,
    pub(crate) dst_channels: u32,
    /// First row of either side.
    pub(crate) first: [u32; 2],
    pub(crate) weights: [Option<Weight<'a>>; 2],
    pub(crate) gather: Option<&'a wgpu::Buffer>,
}

fn decl(dtype: DType) -> TensorDecl {
    TensorDecl::new(dtype, false)
}

fn place<const N: usize>(view: &TensorView<'_, N>, bound: &Bound<'_>) -> [u32; 4] {
    let mut place = [0; 4];
    for (p, s) in place.iter_mut().zip(&view.strides_u32()[..N - 1]) {
        *p = *s;
    }
    place[3] = bound.offset;
    place
}

fn count_u32(op: &'static str, count: u64) -> Result<u32> {
    u32::try_from(count).map_err(|_| Error::Limit {
        op,
        what: "elements in one call",
        need: count,
        limit: u32::MAX.into(),
    })
}

/// Starts of every output's entries, counted after the starts themselves.
fn starts(lengths: impl Iterator<Item = usize>) -> Vec<u32> {
    let mut all = vec![0u32];
    for n in lengths {
        all.push(all[all.len() - 1] + u32::try_from(n).expect("a table fits u32"));
    }
    let shift = u32::try_from(all.len()).expect("a table fits u32");
    all.iter().map(|s| s + shift).collect()
}

/// Refuses outputs of more terms than the driver's loops make trips.
fn check_terms(ctx: &Context, op: &'static str, terms: impl Iterator<Item = u64>) -> Result<()> {
    let (need, limit) = (terms.max().unwrap_or(0), ctx.caps.loop_trips);
    match need > limit {
        true => Err(Error::Limit { op, what: "terms of one output on this driver", need, limit }),
        false => Ok(()),
    }
}

impl Linear {
    /// `outputs`: the degree and the terms of each.
    pub(crate) fn new(
        ctx: &Context,
        op: &'static str,
        outputs: &[(u32, Vec<Entry>)],
    ) -> Result<Self> {
        check_terms(ctx, op, outputs.iter().map(|o| o.1.len() as u64))?;
        let starts = starts(outputs.iter().map(|o| o.1.len()));
        let mut table: Vec<[u32; 2]> = starts
            .iter()
            .zip(outputs.iter().map(|o| o.0).chain([0]))
            .map(|(s, d)| [*s, d])
            .collect();
        for entry in outputs.iter().flat_map(|o| &o.1) {
            debug_assert!(entry.index < MAX_INDEX && entry.degree < 256);
            table.push([entry.index | entry.degree << 24, to_f32(entry.value).to_bits()]);
        }
        let n_out = count_u32(op, outputs.len() as u64)?;
        Ok(Self { table: ctx.table(op, bytemuck::cast_slice(&table))?, n_out })
    }

    /// The kernel's key.
    pub(crate) fn key(
        weights: [bool; 2],
        gather: bool,
        within: bool,
        src: DType,
        dst: DType,
    ) -> Key {
        Key {
            source: LINEAR,
            entry: "linear",
            spec: vec![
                ("WORKGROUP", format!("{WORKGROUP}u")),
                ("WEIGHT_IN", weights[0].to_string()),
                ("WEIGHT_OUT", weights[1].to_string()),
                ("GATHER", gather.to_string()),
                ("WITHIN", within.to_string()),
            ],
            tensors: vec![
                ("src", (!within).then(|| decl(src))),
                ("dst", Some(decl(dst))),
                ("weight_in", weights[0].then(|| decl(DType::F32))),
                ("weight_out", weights[1].then(|| decl(DType::F32))),
            ],
        }
    }

    /// Records the map of some rows.
    pub(crate) fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        op: &'static str,
        rows: &Rows<'_>,
    ) -> Result<()> {
        let (src, dst) = (&rows.src.1, &rows.dst.1);
        let lines = dst.layout.shape[2];
        let count = count_u32(op, u64::from(rows.rows) * u64::from(lines) * u64::from(self.n_out))?;
        if count == 0 {
            return Ok(());
        }
        let within = src.buffer == dst.buffer;
        let mut params = LinearParams {
            src: [0; 4],
            dst: [0; 4],
            weight_in: [0; 4],
            weight_out: [0; 4],
            count,
            n_out: self.n_out,
            channels: rows.channels,
            lines,
            first_src: rows.first[0],
            first_dst: rows.first[1],
            dst_channels: rows.dst_channels,
            pad: 0,
        };
        let mut resources = vec![Resource::Buffer(self.table.as_entire_buffer_binding())];
        resources
            .push(Resource::Buffer(rows.gather.unwrap_or(&self.table).as_entire_buffer_binding()));
        if within {
            // scratch: both sides by their place in the whole buffer
            for (params, view) in [(&mut params.src, src), (&mut params.dst, dst)] {
                let [b, c, line, _] = view.strides_u32();
                *params = [b, c, line, count_u32(op, view.layout.offset)?];
            }
            resources.push(Resource::Buffer(dst.buffer.as_entire_buffer_binding()));
        } else {
            let (from, to) =
                (src.bind(op, rows.src.0, &ctx.caps)?, dst.bind(op, rows.dst.0, &ctx.caps)?);
            (params.src, params.dst) = (place(src, &from), place(dst, &to));
            resources.extend([from.resource, to.resource]);
        }
        for (weight, params) in
            rows.weights.iter().zip([&mut params.weight_in, &mut params.weight_out])
        {
            if let Some((name, view)) = weight {
                let bound = view.bind(op, name, &ctx.caps)?;
                *params = place(view, &bound);
                resources.push(bound.resource);
            }
        }
        let [weight_in, weight_out] = [0, 1].map(|i| rows.weights[i].is_some());
        let kernel = ctx.kernel(Self::key(
            [weight_in, weight_out],
            rows.gather.is_some(),
            within,
            src.dtype,
            dst.dtype,
        ))?;
        let groups = fold(op, u64::from(count).div_ceil(WORKGROUP.into()), &ctx.caps)?;
        dispatch(ctx, pass, op, &kernel, bytemuck::bytes_of(&params), &resources, groups)
    }
}

/// The tensors of a bilinear map: `x`, `y`, `z`: `[batch, channels, n]`.
pub(crate) struct BilinearRows<'a> {
    pub(crate) x: (&'static str, TensorView<'a, 3>),
    pub(crate) y: (&'static str, TensorView<'a, 3>),
    pub(crate) z: (&'static str, TensorView<'a, 3>),
    pub(crate) weights: [Option<Weight<'a>>; 3],
    pub(crate) gather: Option<&'a wgpu::Buffer>,
}

impl Bilinear {
    /// `outputs`: the degree and the terms of each.
    pub(crate) fn new(
        ctx: &Context,
        op: &'static str,
        outputs: &[(u32, Vec<Pair>)],
    ) -> Result<Self> {
        check_terms(ctx, op, outputs.iter().map(|o| o.1.len() as u64))?;
        let starts = starts(outputs.iter().map(|o| o.1.len()));
        let mut table: Vec<[u32; 4]> = starts
            .iter()
            .zip(outputs.iter().map(|o| o.0).chain([0]))
            .map(|(s, d)| [*s, d, 0, 0])
            .collect();
        for pair in outputs.iter().flat_map(|o| &o.1) {
            debug_assert!(pair.x.0.max(pair.y.0) < MAX_INDEX && pair.x.1.max(pair.y.1) < 256);
            table.push([
                pair.x.0 | pair.x.1 << 24,
                pair.y.0 | pair.y.1 << 24,
                to_f32(pair.value).to_bits(),
                0,
            ]);
        }
        let n_out = count_u32(op, outputs.len() as u64)?;
        Ok(Self { table: ctx.table(op, bytemuck::cast_slice(&table))?, n_out })
    }

    /// The kernel's key for the types of `x`, `y`, `z`.
    pub(crate) fn key(dtypes: [DType; 3], weights: [bool; 3], gather: bool) -> Key {
        Key {
            source: BILINEAR,
            entry: "bilinear",
            spec: vec![
                ("WORKGROUP", format!("{WORKGROUP}u")),
                ("WEIGHT_X", weights[0].to_string()),
                ("WEIGHT_Y", weights[1].to_string()),
                ("WEIGHT_Z", weights[2].to_string()),
                ("GATHER", gather.to_string()),
            ],
            tensors: vec![
                ("x", Some(decl(dtypes[0]))),
                ("y", Some(decl(dtypes[1]))),
                ("z", Some(decl(dtypes[2]))),
                ("weight_x", weights[0].then(|| decl(DType::F32))),
                ("weight_y", weights[1].then(|| decl(DType::F32))),
                ("weight_z", weights[2].then(|| decl(DType::F32))),
            ],
        }
    }

    /// Records the map of all rows of `z`.
    pub(crate) fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        op: &'static str,
        rows: &BilinearRows<'_>,
    ) -> Result<()> {
        let [batch, channels, _] = rows.z.1.layout.shape;
        let n = u64::from(batch) * u64::from(channels);
        let count = count_u32(op, n.saturating_mul(self.n_out.into()))?;
        if count == 0 {
            return Ok(());
        }
        let mut params = BilinearParams {
            x: [0; 4],
            y: [0; 4],
            z: [0; 4],
            weight_x: [0; 4],
            weight_y: [0; 4],
            weight_z: [0; 4],
            rows: count / self.n_out,
            channels,
            count,
            pad: 0,
        };
        let mut resources = vec![
            Resource::Buffer(self.table.as_entire_buffer_binding()),
            Resource::Buffer(rows.gather.unwrap_or(&self.table).as_entire_buffer_binding()),
        ];
        for ((name, view), at) in [&rows.x, &rows.y, &rows.z].into_iter().zip([
            &mut params.x,
            &mut params.y,
            &mut params.z,
        ]) {
            let bound = view.bind(op, name, &ctx.caps)?;
            *at = place(view, &bound);
            resources.push(bound.resource);
        }
        let places = [&mut params.weight_x, &mut params.weight_y, &mut params.weight_z];
        for (weight, at) in rows.weights.iter().zip(places) {
            if let Some((name, view)) = weight {
                let bound = view.bind(op, name, &ctx.caps)?;
                *at = place(view, &bound);
                resources.push(bound.resource);
            }
        }
        let weights = [0, 1, 2].map(|i| rows.weights[i].is_some());
        let dtypes = [rows.x.1.dtype, rows.y.1.dtype, rows.z.1.dtype];
        let kernel = ctx.kernel(Self::key(dtypes, weights, rows.gather.is_some()))?;
        let groups = fold(op, u64::from(count).div_ceil(WORKGROUP.into()), &ctx.caps)?;
        dispatch(ctx, pass, op, &kernel, bytemuck::bytes_of(&params), &resources, groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_params, fields};

    #[test]
    fn params_match() {
        let f32 = DType::F32;
        assert_params(
            &Linear::key([false; 2], false, false, f32, f32).wgsl(),
            fields!(LinearParams: src dst weight_in weight_out count n_out channels lines first_src first_dst dst_channels pad),
        );
        assert_params(
            &Bilinear::key([f32; 3], [false; 3], false).wgsl(),
            fields!(BilinearParams: x y z weight_x weight_y weight_z rows channels count pad),
        );
    }
}
