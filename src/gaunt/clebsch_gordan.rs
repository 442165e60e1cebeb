//! The full tensor product: every path of Clebsch-Gordan coupling, each an output of its own.

use std::{collections::HashMap, fmt, str::FromStr, sync::Arc};

use super::maps::{Bilinear, BilinearRows, Pair};
use crate::{
    Context, DType, Error, Layout, Result, TensorView, dispatch::distinct_outputs, home::Home,
    reference::real_wigner_3j,
};

const OP: &str = "clebsch_gordan";

/// Largest degree of an input irrep of [`ClebschGordan`].
pub const MAX_CG_LMAX: u32 = 16;

/// `mul` copies of the irrep of degree `l` and parity `odd` or even.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Irrep {
    /// Multiplicity.
    pub mul: u32,
    /// Degree.
    pub l: u32,
    /// Changes sign under inversion.
    pub odd: bool,
}

/// A list of irreps, as e3nn writes it: `2x0e+1x1o`. In memory `[mul, 2 l + 1]` for each, one after
/// the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Irreps(pub Vec<Irrep>);

impl Irreps {
    /// One irrep of every degree to `lmax`, with the parity of the spherical harmonics:
    /// `1x0e+1x1o+1x2e+...`.
    pub fn spherical_harmonics(lmax: u32) -> Self {
        Self((0..=lmax).map(|l| Irrep { mul: 1, l, odd: l % 2 == 1 }).collect())
    }

    /// Elements in a row; `u64::MAX` if there are more.
    pub fn dim(&self) -> u64 {
        let row = |i: &Irrep| u64::from(i.mul).saturating_mul(2 * u64::from(i.l) + 1);
        self.0.iter().map(row).fold(0, u64::saturating_add)
    }
}

impl fmt::Display for Irrep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}{}", self.mul, self.l, if self.odd { 'o' } else { 'e' })
    }
}

impl fmt::Display for Irreps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (k, i) in self.0.iter().enumerate() {
            let plus = if k > 0 { "+" } else { "" };
            write!(f, "{plus}{i}")?;
        }
        Ok(())
    }
}

impl FromStr for Irreps {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = |part: &str| {
            Error::value(
                OP,
                "irreps",
                "terms such as 2x1o, joined by +",
                format!("{part:?} in {s:?}"),
            )
        };
        let irrep = |part: &str| {
            let part = part.trim();
            let (mul, rest) = part.split_once('x').unwrap_or(("1", part));
            let odd = match rest.chars().last() {
                Some('o') => true,
                Some('e') => false,
                _ => return Err(bad(part)),
            };
            let l = rest[..rest.len() - 1].parse().map_err(|_| bad(part))?;
            Ok(Irrep { mul: mul.parse().map_err(|_| bad(part))?, l, odd })
        };
        s.split('+')
            .filter(|p| !p.trim().is_empty())
            .map(irrep)
            .collect::<Result<Vec<_>>>()
            .map(Self)
    }
}

/// Scale of a path: inputs of this size, independent, have outputs of this size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IrrepNormalization {
    /// Components of variance 1: `sqrt(2 l3 + 1)` times a coupling tensor of Frobenius norm 1.
    /// e3nn's default.
    #[default]
    Component,
    /// Irreps of mean square norm 1: `sqrt((2 l1 + 1)(2 l2 + 1))` times it.
    Norm,
}

impl IrrepNormalization {
    /// What a coupling of degrees `l1`, `l2` to `l3` is multiplied by, squared.
    pub fn square(self, l1: u32, l2: u32, l3: u32) -> f64 {
        let [n1, n2, n3] = [l1, l2, l3].map(|l| 2.0 * f64::from(l) + 1.0);
        match self {
            Self::Component => n3,
            Self::Norm => n1 * n2,
        }
    }
}

/// One path: input irreps by position, and where its output starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// Position in the first list.
    pub first: usize,
    /// Position in the second list.
    pub second: usize,
    /// The output: multiplicity `mul1 * mul2`, the second's fastest.
    pub out: Irrep,
    /// First element of the output in a row.
    pub start: u32,
}

/// The full tensor product, as e3nn's `FullTensorProduct`: for every pair of irreps and every degree
/// `|l1 - l2| ..= l1 + l2`, `z = c sum w3j(l1, l2, l3) x y` with `c` of [`IrrepNormalization`].
/// Outputs are sorted by degree, odd before even, then by their order of appearance. Only outputs
/// that are kept are computed.
///
/// ```
/// use tilewise::gaunt::{ClebschGordan, Irreps};
/// # fn main() -> tilewise::Result<()> {
/// let product = ClebschGordan {
///     irreps1: "3x0e+2x1o+1x2e".parse()?,
///     irreps2: Irreps::spherical_harmonics(2),
///     filter: Some("0e+1o".parse()?),
///     ..Default::default()
/// };
/// assert_eq!(product.irreps_out().to_string(), "3x0e+2x0e+1x0e+3x1o+2x1o+2x1o+1x1o");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClebschGordan {
    /// Irreps of `x`, of degree at most [`MAX_CG_LMAX`].
    pub irreps1: Irreps,
    /// Irreps of `y`.
    pub irreps2: Irreps,
    /// Paths to larger degrees are left out.
    pub lmax_out: Option<u32>,
    /// Paths to other irreps are left out: e3nn's `filter_ir_out`. Each irrep once, with
    /// multiplicity 1, in any order; one that no path reaches changes nothing, and if none is
    /// reached, `z` has rows of 0 elements.
    pub filter: Option<Irreps>,
    /// Scale of the paths.
    pub normalization: IrrepNormalization,
    /// Element type of `x`, `y` and `z`.
    pub dtype: DType,
}

/// A compiled [`ClebschGordan`].
#[derive(Clone, Debug)]
pub struct ClebschGordanPlan {
    batch: u32,
    dims: [u32; 3],
    dtype: DType,
    paths: Vec<Path>,
    map: Bilinear,
    /// The device it was planned on.
    home: Arc<Home>,
}

/// Pairs of blocks to be coupled, and where their product goes.
pub(super) struct Coupled {
    pub(super) first: Irrep,
    pub(super) second: Irrep,
    /// Degree of the product: multiplicities `first.mul * second.mul`, the second's fastest.
    pub(super) l: u32,
    /// First elements in the rows of `x`, `y` and the product.
    pub(super) starts: [u32; 3],
    /// What the coupling tensor of norm 1 is multiplied by.
    pub(super) scale: f64,
}

/// Coupling tensors of norm 1, each made once, without their zeros.
#[derive(Default)]
pub(super) struct Tensors(HashMap<[u32; 3], Vec<([u32; 3], f64)>>);

impl Tensors {
    /// The entries `[i, j, k]` for degrees `l`, in row-major order.
    pub(super) fn of(&mut self, l: [u32; 3]) -> &[([u32; 3], f64)] {
        self.0.entry(l).or_insert_with(|| {
            let [_, n2, n3] = l.map(|l| 2 * l + 1);
            let w = real_wigner_3j(l[0], l[1], l[2]);
            (0u32..)
                .zip(w)
                .filter(|(_, value)| value.abs() > 1e-14)
                .map(|(at, value)| ([at / n3 / n2, at / n3 % n2, at % n3], value))
                .collect()
        })
    }
}

/// The map that makes all of `coupled`, in rows of `width`.
pub(super) fn couple(
    ctx: &Context,
    op: &'static str,
    width: u32,
    coupled: &[Coupled],
) -> Result<Bilinear> {
    let mut tensors = Tensors::default();
    // refused before it is made: it may be larger than the memory of this machine
    let terms = coupled.iter().map(|c| {
        let entries = tensors.of([c.first.l, c.second.l, c.l]).len() as u64;
        u64::from(c.first.mul).saturating_mul(c.second.mul.into()).saturating_mul(entries)
    });
    let entries = terms.fold(u64::from(width) + 1, u64::saturating_add);
    let (need, limit) = (entries.saturating_mul(16), ctx.caps.binding_size);
    if need > limit {
        return Err(Error::Limit { op, what: "bytes of coefficients", need, limit });
    }
    let mut outputs: Vec<(u32, Vec<Pair>)> = vec![(0, Vec::new()); width as usize];
    for c in coupled {
        let [n1, n2, n3] = [c.first.l, c.second.l, c.l].map(|l| 2 * l + 1);
        let entries = tensors.of([c.first.l, c.second.l, c.l]);
        for u in 0..c.first.mul {
            for v in 0..c.second.mul {
                for &([i, j, k], value) in entries {
                    let out = c.starts[2] + (u * c.second.mul + v) * n3 + k;
                    outputs[out as usize].1.push(Pair {
                        x: (c.starts[0] + u * n1 + i, 0),
                        y: (c.starts[1] + v * n2 + j, 0),
                        value: c.scale * value,
                    });
                }
            }
        }
    }
    Bilinear::new(ctx, op, &outputs)
}

impl Irreps {
    /// First element of every irrep in a row; rows are shorter than 2^24.
    pub(super) fn starts(&self) -> Vec<u32> {
        let lengths = self.0.iter().map(|i| i.mul * (2 * i.l + 1));
        lengths.scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect()
    }

    /// The length of a row, if it is legal.
    pub(super) fn row(&self, op: &'static str, what: &'static str) -> Result<u32> {
        u32::try_from(self.dim())
            .ok()
            .filter(|d| *d < 1 << 24)
            .ok_or_else(|| Error::shape(op, what, "rows shorter than 2^24", self.dim()))
    }

    /// The length of a row of an input, if it and all degrees are legal.
    pub(super) fn input_row(&self, op: &'static str, what: &'static str) -> Result<u32> {
        match self.0.iter().find(|i| i.l > MAX_CG_LMAX) {
            Some(i) => {
                Err(Error::shape(op, what, format!("degrees of at most {MAX_CG_LMAX}"), i.l))
            }
            None => self.row(op, what),
        }
    }
}

impl ClebschGordan {
    /// The paths that are kept, in the order of their outputs; none of an irrep above
    /// [`MAX_CG_LMAX`].
    pub fn paths(&self) -> Vec<Path> {
        let mut paths = Vec::new();
        let legal = |(_, irrep): &(usize, &Irrep)| irrep.l <= MAX_CG_LMAX;
        let kept = |l: u32, odd: bool| match &self.filter {
            Some(filter) => filter.0.iter().any(|i| i.l == l && i.odd == odd),
            None => true,
        };
        for (first, a) in self.irreps1.0.iter().enumerate().filter(legal) {
            for (second, b) in self.irreps2.0.iter().enumerate().filter(legal) {
                let top = (a.l + b.l).min(self.lmax_out.unwrap_or(u32::MAX));
                let odd = a.odd != b.odd;
                for l in (a.l.abs_diff(b.l)..=top).filter(|l| kept(*l, odd)) {
                    let out = Irrep { mul: a.mul.saturating_mul(b.mul), l, odd };
                    paths.push(Path { first, second, out, start: 0 });
                }
            }
        }
        // stable: appearance decides among equals
        paths.sort_by_key(|p| (p.out.l, !p.out.odd));
        let mut start = 0u32;
        for path in &mut paths {
            path.start = start;
            start = start.saturating_add(path.out.mul.saturating_mul(2 * path.out.l + 1));
        }
        paths
    }

    /// The irreps of the output.
    pub fn irreps_out(&self) -> Irreps {
        Irreps(self.paths().iter().map(|p| p.out).collect())
    }

    /// Checks the problem and makes the table, for `batch` rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for a degree or a row length out of range, [`Error::Value`] for an irrep that
    /// the filter has twice or with a multiplicity, [`Error::Limit`], [`Error::Compile`],
    /// [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, batch: u32) -> Result<ClebschGordanPlan> {
        self.dtype.expect_float(OP)?;
        let filter = self.filter.as_ref().map_or(&[][..], |f| &f.0);
        for (at, irrep) in filter.iter().enumerate() {
            let got = || format!("{irrep} at {at}");
            if irrep.mul != 1 {
                return Err(Error::value(OP, "filter", "irreps of multiplicity 1", got()));
            }
            if filter[..at].contains(irrep) {
                return Err(Error::value(OP, "filter", "each irrep once", got()));
            }
        }
        let dims = [self.irreps1.input_row(OP, "irreps1")?, self.irreps2.input_row(OP, "irreps2")?];
        let paths = self.paths();
        let out = Irreps(paths.iter().map(|p| p.out).collect());
        let dims = [dims[0], dims[1], out.row(OP, "irreps_out")?];
        let (starts1, starts2) = (self.irreps1.starts(), self.irreps2.starts());
        let couple_path = |path: &Path| {
            let (first, second) = (self.irreps1.0[path.first], self.irreps2.0[path.second]);
            Coupled {
                first,
                second,
                l: path.out.l,
                starts: [starts1[path.first], starts2[path.second], path.start],
                scale: self.normalization.square(first.l, second.l, path.out.l).sqrt(),
            }
        };
        let coupled: Vec<Coupled> = paths.iter().map(couple_path).collect();
        let map = couple(ctx, OP, dims[2], &coupled)?;
        ctx.kernel(Bilinear::key([self.dtype; 3], [false; 3], false))?;
        let home = Arc::clone(ctx.home());
        Ok(ClebschGordanPlan { batch, dims, dtype: self.dtype, paths, map, home })
    }
}

impl ClebschGordanPlan {
    /// The paths, in the order of their outputs.
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// Lengths of the rows of `x`, `y`, `z`.
    pub fn dims(&self) -> [u32; 3] {
        self.dims
    }

    /// The text of the kernel.
    pub fn wgsl(&self) -> String {
        Bilinear::key([self.dtype; 3], [false; 3], false).wgsl()
    }

    /// [`encode_pass`](Self::encode_pass) into the caller's encoder, in a compute pass of its own.
    ///
    /// # Errors
    /// As there.
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        x: TensorView<'_, 2>,
        y: TensorView<'_, 2>,
        z: TensorView<'_, 2>,
    ) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: None,
        });
        self.encode_pass(ctx, &mut pass, x, y, z)
    }

    /// Records the product `z` of `x` and `y`, `[batch, dims]` each, into the caller's compute
    /// pass; submits nothing.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Strides`], [`Error::OutOfRange`],
    /// [`Error::Misaligned`] or [`Error::Usage`] for a view that does not fit the plan,
    /// [`Error::SharedBuffer`], [`Error::Limit`], [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::OtherContext`] for a tensor, a buffer or a plan of another device.
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        x: TensorView<'_, 2>,
        y: TensorView<'_, 2>,
        z: TensorView<'_, 2>,
    ) -> Result<()> {
        ctx.expect_plan(OP, Some(&self.home))?;
        x.expect(OP, "x", [self.batch, self.dims[0]], self.dtype)?;
        y.expect(OP, "y", [self.batch, self.dims[1]], self.dtype)?;
        z.expect_output(OP, "z", [self.batch, self.dims[2]], self.dtype)?;
        distinct_outputs(ctx, OP, &[("z", z.buffer)], &[("x", x.buffer), ("y", y.buffer)])?;
        self.map.encode_pass(
            ctx,
            pass,
            OP,
            &BilinearRows {
                x: ("x", one_channel(&x)),
                y: ("y", one_channel(&y)),
                z: ("z", one_channel(&z)),
                weights: [None; 3],
                gather: None,
            },
        )
    }
}

/// `[B, n]` as `[B, 1, n]`.
pub(super) fn one_channel<'a>(view: &TensorView<'a, 2>) -> TensorView<'a, 3> {
    let ([b, n], [sb, sn]) = (view.layout.shape, view.layout.strides);
    let layout = Layout { shape: [b, 1, n], strides: [sb, 0, sn], offset: view.layout.offset };
    TensorView { buffer: view.buffer, layout, dtype: view.dtype }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn irreps_parse_and_print() {
        let irreps: Irreps = "2x0e+1x1o + 3x2e".parse().unwrap();
        assert_eq!(irreps.to_string(), "2x0e+1x1o+3x2e");
        assert_eq!(irreps.dim(), 2 + 3 + 15);
        assert_eq!("1o".parse::<Irreps>().unwrap().0[0], Irrep { mul: 1, l: 1, odd: true });
        for bad in ["2x1", "x1o", "ax0e", "1x-1o"] {
            let message = bad.parse::<Irreps>().unwrap_err().to_string();
            assert!(message.contains(bad), "{message}");
        }
    }

    #[test]
    fn outputs_are_sorted_as_e3nn_does() {
        let l2 = Irreps::spherical_harmonics(2);
        let cg = ClebschGordan { irreps1: l2.clone(), irreps2: l2, ..Default::default() };
        assert_eq!(
            cg.irreps_out().to_string(),
            "1x0e+1x0e+1x0e+1x1o+1x1o+1x1o+1x1o+1x1e+1x1e+1x2o+1x2o+1x2e+1x2e+1x2e+1x2e+1x3o+1x3o+1x3e+1x4e"
        );
    }
}
