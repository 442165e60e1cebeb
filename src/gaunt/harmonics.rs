//! Real spherical harmonics of directions, on the device.

use std::{fmt::Write as _, sync::Arc};

use super::{
    ShNormalization, check_degree,
    fused::{interned, store_each},
    program::literal,
};
use crate::{
    Context, DType, Error, Result, Tensor, TensorView,
    dispatch::{Resource, dispatch, distinct_outputs, fold},
    element::TensorDecl,
    home::Home,
    shader::{Key, Source, source},
};

const OP: &str = "spherical_harmonics";
const FRAME: Source = source!("gaunt/harmonics.wgsl");
const WORKGROUP: u32 = 64;

/// Largest degree of [`SphericalHarmonics`].
pub const MAX_SH_LMAX: u32 = 16;

/// Options of spherical harmonics: `y_lm = Y_lm(r / |r|)`, optionally times a weight by degree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SphericalHarmonics {
    /// Largest degree, at most [`MAX_SH_LMAX`].
    pub lmax: u32,
    /// Scale of the harmonics.
    pub normalization: ShNormalization,
    /// Element type of `y`. Vectors and weights are f32.
    pub dtype: DType,
}

/// The tensors of one call.
#[derive(Clone, Copy, Debug)]
pub struct SphericalHarmonicsArgs<'a> {
    /// Vectors `[n, 3]`, f32, of any finite length, to the smallest and the largest numbers that there
    /// are, also where the driver takes numbers below 2^-126 for zero. A zero vector has no direction:
    /// its degrees above 0 come out as 0, whatever their weights (see [`check_directions`]).
    pub r: TensorView<'a, 2>,
    /// `[n, (lmax + 1)^2]`, written everywhere.
    pub y: TensorView<'a, 2>,
    /// `[n, lmax + 1]`, f32: `y_lm` is multiplied by its entry for `l`.
    pub weight: Option<TensorView<'a, 2>>,
}

/// Checked and compiled spherical harmonics of `n` vectors.
#[derive(Clone, Debug)]
pub struct SphericalHarmonicsPlan {
    options: SphericalHarmonics,
    n: u32,
    /// With stores of single elements, and of four.
    text: [&'static str; 2],
    /// The device it was planned on.
    home: Arc<Home>,
}

// Must match `Params` in shaders/gaunt/harmonics.wgsl (tested).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    r: [u32; 2],
    y: [u32; 2],
    weight: [u32; 2],
    count: u32,
    pad: u32,
}

/// Refuses vectors without a direction: zero, or not finite.
///
/// # Errors
/// [`Error::Value`] naming the first such vector.
pub fn check_directions(r: &[[f32; 3]]) -> Result<()> {
    for (i, v) in r.iter().enumerate() {
        if !v.iter().all(|c| c.is_finite()) || v.iter().all(|c| *c == 0.0) {
            return Err(Error::value(
                OP,
                "r",
                "finite vectors other than zero",
                format!("{v:?} at {i}"),
            ));
        }
    }
    Ok(())
}

/// Vectors on the device, `[n, 3]`, after [`check_directions`].
///
/// # Errors
/// Those of [`check_directions`] and [`Tensor::upload`].
pub fn upload_directions(ctx: &Context, r: &[[f32; 3]]) -> Result<Tensor<2>> {
    check_directions(r)?;
    let n = u32::try_from(r.len())
        .map_err(|_| Error::shape(OP, "r", "fewer than 2^32 vectors", r.len()))?;
    Tensor::upload(ctx, [n, 3], r.as_flattened())
}

impl SphericalHarmonics {
    /// Checks the problem and compiles, for `n` vectors.
    ///
    /// # Errors
    /// [`Error::Shape`] for a degree out of range, [`Error::Compile`], [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, n: u32) -> Result<SphericalHarmonicsPlan> {
        check_degree(OP, "lmax", self.lmax, MAX_SH_LMAX)?;
        self.dtype.expect_float(OP)?;
        let text = [false, true].map(|vec4| {
            let body = self.body(vec4);
            interned(FRAME.text.lines().fold(String::new(), |mut text, line| {
                if line.trim() == "// @body" {
                    text.push_str(&body);
                } else {
                    let _ = writeln!(text, "{line}");
                }
                text
            }))
        });
        let home = Arc::clone(ctx.home());
        let plan = SphericalHarmonicsPlan { options: *self, n, text, home };
        ctx.kernel(plan.key(plan.vec4(), false))?;
        Ok(plan)
    }

    /// `Y_lm = K_lm p_lm(y) t_m` with `t_m` the real or imaginary part of `(z + i x)^m` and `p_lm`
    /// by its recurrence in `l` from `p_mm = 1`, scaled so that all are of order 1:
    /// `p_l = y p_(l-1) - b_l p_(l-2)`, exact at the poles since no sine or angle is formed.
    fn body(&self, vec4: bool) -> String {
        let lmax = self.lmax;
        let mut body = String::from("let re0 = 1.0; let im0 = 0.0;\n");
        for m in 1..=lmax {
            let _ = writeln!(
                body,
                "let re{m} = re{0} * v.z - im{0} * v.x; let im{m} = re{0} * v.x + im{0} * v.z;",
                m - 1
            );
        }
        for m in 0..=lmax {
            // normalised: T_l = a_l (y T_(l-1) - T_(l-2) / a_(l-1)), a_l = sqrt((4 l^2 - 1) / (l^2 - m^2))
            let a = |l: u32| {
                let (l2, m2) = (f64::from(l) * f64::from(l), f64::from(m) * f64::from(m));
                ((4.0 * l2 - 1.0) / (l2 - m2)).sqrt()
            };
            for l in m..=lmax {
                let name = format!("p{l}_{m}");
                let _ = match l - m {
                    0 => writeln!(body, "let {name} = 1.0;"),
                    1 => writeln!(body, "let {name} = {} * v.y * p{}_{m};", literal(a(l)), l - 1),
                    _ => writeln!(
                        body,
                        "let {name} = fma({} * v.y, p{}_{m}, {} * p{}_{m});",
                        literal(a(l)),
                        l - 1,
                        literal(-a(l) / a(l - 1)),
                        l - 2
                    ),
                };
            }
        }
        // N_mm (2 m - 1)!!, the first of each order
        let start = |m: u32| {
            let ratio = |k: u32| f64::from(2 * k + 1) / f64::from(2 * k);
            ((1..=m).map(ratio).product::<f64>() * 0.25 / std::f64::consts::PI).sqrt()
        };
        let mut value = Vec::new();
        for l in 0..=lmax {
            let scale = self.normalization.factor(l);
            let _ = writeln!(
                body,
                "var s{l} = 1.0; if WEIGHTED {{ s{l} = weight_load(weight_row + {l}u); }}"
            );
            // nothing has degree 0 only, whatever its weights
            if l > 0 {
                let _ = writeln!(body, "s{l} = select(0.0, s{l}, some);");
            }
            for k in 0..=2 * l {
                let m = k.abs_diff(l);
                let (t, c) = match k.cmp(&l) {
                    std::cmp::Ordering::Less => (format!(" * im{m}"), std::f64::consts::SQRT_2),
                    std::cmp::Ordering::Equal => (String::new(), 1.0),
                    std::cmp::Ordering::Greater => (format!(" * re{m}"), std::f64::consts::SQRT_2),
                };
                value.push(format!("{} * p{l}_{m}{t} * s{l}", literal(scale * start(m) * c)));
            }
        }
        if vec4 {
            for (k, four) in value.chunks(4).enumerate() {
                let _ =
                    writeln!(body, "y_store4(out + {}u, vec4<f32>({}));", 4 * k, four.join(", "));
            }
        } else {
            body.push_str(&store_each("y", self.dtype, &value));
        }
        body
    }
}

impl SphericalHarmonicsPlan {
    /// Number of vectors.
    pub fn n(&self) -> u32 {
        self.n
    }

    /// The text of the kernel, for contiguous views without weights.
    pub fn wgsl(&self) -> String {
        self.key(self.vec4(), false).wgsl()
    }

    fn vec4(&self) -> bool {
        (self.options.lmax + 1).is_multiple_of(2)
    }

    fn key(&self, vec4: bool, weighted: bool) -> Key {
        let scalar = |present: bool| present.then_some(TensorDecl::new(DType::F32, false));
        Key {
            source: Source { path: FRAME.path, text: self.text[usize::from(vec4)] },
            entry: "harmonics",
            spec: vec![("WORKGROUP", format!("{WORKGROUP}u")), ("WEIGHTED", weighted.to_string())],
            tensors: vec![
                ("r", scalar(true)),
                ("y", Some(TensorDecl::new(self.options.dtype, vec4))),
                ("weight", scalar(weighted)),
            ],
        }
    }

    /// Records the kernel into the caller's encoder, in a compute pass of its own; submits nothing.
    ///
    /// # Errors
    /// As [`SphericalHarmonicsPlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &SphericalHarmonicsArgs<'_>,
    ) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(OP),
            timestamp_writes: None,
        });
        self.encode_pass(ctx, &mut pass, args)
    }

    /// Records the kernel into the caller's compute pass; submits nothing.
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
        args: &SphericalHarmonicsArgs<'_>,
    ) -> Result<()> {
        ctx.expect_plan(OP, Some(&self.home))?;
        let lmax = self.options.lmax;
        args.r.expect(OP, "r", [self.n, 3], DType::F32)?;
        args.y.expect_output(OP, "y", [self.n, (lmax + 1).pow(2)], self.options.dtype)?;
        let mut inputs = vec![("r", args.r.buffer)];
        if let Some(weight) = &args.weight {
            weight.expect(OP, "weight", [self.n, lmax + 1], DType::F32)?;
            inputs.push(("weight", weight.buffer));
        }
        distinct_outputs(ctx, OP, &[("y", args.y.buffer)], &inputs)?;
        if self.n == 0 {
            return Ok(());
        }
        let (r, y) = (args.r.bind(OP, "r", &ctx.caps)?, args.y.bind(OP, "y", &ctx.caps)?);
        let mut params = Params {
            r: [args.r.strides_u32()[0], r.offset],
            y: [args.y.strides_u32()[0], y.offset],
            weight: [0; 2],
            count: self.n,
            pad: 0,
        };
        let mut resources: Vec<Resource<'_>> = vec![r.resource, y.resource];
        if let Some(weight) = &args.weight {
            let bound = weight.bind(OP, "weight", &ctx.caps)?;
            params.weight = [weight.strides_u32()[0], bound.offset];
            resources.push(bound.resource);
        }
        let vec4 = self.vec4() && args.y.layout.is_multiple_of(4);
        let kernel = ctx.kernel(self.key(vec4, args.weight.is_some()))?;
        let groups = fold(OP, u64::from(self.n).div_ceil(WORKGROUP.into()), &ctx.caps)?;
        dispatch(ctx, pass, OP, &kernel, bytemuck::bytes_of(&params), &resources, groups)
    }
}
