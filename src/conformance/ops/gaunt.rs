//! Gaunt tensor products and spherical harmonics.

use serde_json::Value;

use super::Op;
use super::rig::{Rig, Tensor};
use crate::conformance::case::Case;
use crate::conformance::run::{Outcome, Output, Stop};
use crate::gaunt::*;
use crate::{DType, Error, Layout, Result, TensorView, reference};

/// The operators of this family.
pub(super) const OPS: &[(&str, Op)] = &[
    ("gaunt_coeffs", gaunt_coeffs),
    ("spherical_harmonics", spherical_harmonics),
    ("gaunt_tp", gaunt_tp),
    ("gaunt_tp_weighted", gaunt_tp),
    ("gaunt_tp_bwd", gaunt_tp_bwd),
    ("gaunt_conv", gaunt_conv),
    ("gaunt_many_body", gaunt_many_body),
    ("gaunt_equivariance", gaunt_equivariance),
    ("s2grid", s2grid),
    ("sh_to_fourier", sh_to_fourier),
    ("cg_coeffs", cg_coeffs),
    ("cg_full_tp", cg_full_tp),
    ("cg_weighted_tp", cg_weighted_tp),
];

/// A product as the case's `L1`, `L2`, `Lout` say.
fn product(case: &Case, dtype: DType) -> Result<GauntTensorProduct, Stop> {
    Ok(GauntTensorProduct {
        lmax1: case.param_u32("L1")?,
        lmax2: case.param_u32("L2")?,
        lmax_out: case.param_u32("Lout")?,
        dtype,
        ..Default::default()
    })
}

/// Runs one product: inputs `[batch, channels, n]` and their weights `[channels, lmax + 1]`.
fn run<'a>(
    rig: &Rig<'_>,
    options: GauntTensorProduct,
    x: TensorView<'a, 3>,
    y: TensorView<'a, 3>,
    weights: [Option<TensorView<'a, 2>>; 3],
) -> Result<Tensor<3>> {
    let [batch, channels, _] = x.layout.shape;
    let plan = options.plan(rig, GauntShape { batch, channels })?;
    let z = rig.poisoned([batch, channels, (options.lmax_out + 1).pow(2)], options.dtype)?;
    let scratch = rig.scratch(plan.scratch_bytes())?;
    let args = GauntArgs {
        weight1: weights[0],
        weight2: weights[1],
        weight_out: weights[2],
        scratch: Some(&scratch),
        ..GauntArgs::new(x, y, z.view())
    };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    Ok(z)
}

/// Rows of the identity, each repeated `inner` times, the whole `outer` times.
fn unit_rows(n: u32, inner: u32, outer: u32) -> Vec<f32> {
    let row = |k: u32| (0..n).map(move |i| f32::from(u8::from(i == k)));
    (0..outer).flat_map(|_| (0..n).flat_map(|k| (0..inner).flat_map(move |_| row(k)))).collect()
}

/// Every coefficient, as the product of unit vectors on the device.
fn gaunt_coeffs(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let options = product(case, dtype)?;
    // also checks the degrees
    gaunt_coefficients(options.lmax1, options.lmax2, options.lmax_out, Coupling::Scalar)?;
    let [n1, n2, n3] = [options.lmax1, options.lmax2, options.lmax_out].map(|l| (l + 1).pow(2));
    // made on the host, so refused here
    let need = [n1, n2, n1.max(n2).max(n3), 4].iter().map(|&n| u64::from(n)).product();
    let limit = rig.caps.binding_size;
    if need > limit {
        let what = "bytes in the products of all unit vectors";
        return Err(Error::Limit { op: "conformance", what, need, limit }.into());
    }
    let x = rig.upload([n1 * n2, 1, n1], &unit_rows(n1, n2, 1), dtype)?;
    let y = rig.upload([n1 * n2, 1, n2], &unit_rows(n2, 1, n1), dtype)?;
    let z = run(rig, options, x.view(), y.view(), [None; 3])?;
    let mut g = rig.output("out.g", &z)?;
    g.shape = vec![n1, n2, n3];
    Ok(vec![g])
}

fn normalization(name: &str) -> Result<ShNormalization, Stop> {
    match name {
        "integral" => Ok(ShNormalization::Integral),
        "component" => Ok(ShNormalization::Component),
        "norm" => Ok(ShNormalization::Norm),
        other => Err(Stop::Refused(format!(
            "normalization: expected integral, component or norm, got {other}"
        ))),
    }
}

/// Directions of a case, refused where there is none.
fn directions(rig: &Rig<'_>, r: &[f32]) -> Result<Tensor<2>> {
    let (vectors, _) = r.as_chunks::<3>();
    check_directions(vectors)?;
    rig.upload([u32::try_from(vectors.len()).unwrap_or(u32::MAX), 3], r, DType::F32)
}

fn spherical_harmonics(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let ([n, _], r) = case.input::<2>("in.r")?;
    let lmax = case.param_u32("L")?;
    let normalization = normalization(case.param_str("normalization")?)?;
    let plan = SphericalHarmonics { lmax, normalization, dtype }.plan(rig, n)?;
    let r = directions(rig, r)?;
    let y = rig.poisoned([n, (lmax + 1).pow(2)], dtype)?;
    let args = SphericalHarmonicsArgs { r: r.view(), y: y.view(), weight: None };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    Ok(vec![rig.output("out.y", &y)?])
}

fn gaunt_tp(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let options = product(case, dtype)?;
    let (x_shape, x) = case.input::<3>("in.x")?;
    let (y_shape, y) = case.input::<3>("in.y")?;
    let (x, y) = (rig.upload(x_shape, x, dtype)?, rig.upload(y_shape, y, dtype)?);
    let mut weights: [Option<Tensor<2>>; 3] = [None, None, None];
    for (weight, name) in weights.iter_mut().zip(["in.w1", "in.w2", "in.w3"]) {
        if case.tensor(name).is_some() {
            let (shape, w) = case.input::<2>(name)?;
            *weight = Some(rig.upload(shape, w, DType::F32)?);
        }
    }
    let views = weights.each_ref().map(|w| w.as_ref().map(Tensor::view));
    let z = run(rig, options, x.view(), y.view(), views)?;
    Ok(vec![rig.output("out.z", &z)?])
}

/// Gradients of `sum(z * dz)` are products too.
fn gaunt_tp_bwd(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    if ["in.w1", "in.w2", "in.w3"].iter().any(|w| case.tensor(w).is_some()) {
        return Err(Stop::Unsupported("gradients of weights".into()));
    }
    let options = product(case, dtype)?;
    let [x, y, dz] = ["in.x", "in.y", "in.dz"].map(|name| -> Result<Tensor<3>, Stop> {
        let (shape, data) = case.input::<3>(name)?;
        Ok(rig.upload(shape, data, dtype)?)
    });
    let (x, y, dz) = (x?, y?, dz?);
    let z = run(rig, options, x.view(), y.view(), [None; 3])?;
    let dx = run(rig, options.gradient1(), y.view(), dz.view(), [None; 3])?;
    let dy = run(rig, options.gradient2(), dz.view(), x.view(), [None; 3])?;
    Ok(vec![rig.output("out.z", &z)?, rig.output("out.dx", &dx)?, rig.output("out.dy", &dy)?])
}

fn gaunt_conv(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let p = product(case, dtype)?;
    let (x_shape @ [edges, channels, _], x) = case.input::<3>("in.x")?;
    let (h_shape, h) = case.input::<2>("in.h")?;
    let (_, r) = case.input::<2>("in.r")?;
    let options = GauntConvolution {
        lmax1: p.lmax1,
        lmax2: p.lmax2,
        lmax_out: p.lmax_out,
        dtype,
        ..Default::default()
    };
    let plan = options.plan_messages(rig, edges, channels)?;
    let (x, r) = (rig.upload(x_shape, x, dtype)?, directions(rig, r)?);
    let filter = rig.upload(h_shape, h, DType::F32)?;
    let shared = Layout {
        shape: [edges, channels, p.lmax2 + 1],
        strides: [(p.lmax2 + 1).into(), 0, 1],
        offset: 0,
    };
    let y = rig.poisoned([edges, (p.lmax2 + 1).pow(2)], DType::F32)?;
    let messages = rig.poisoned([edges, channels, (p.lmax_out + 1).pow(2)], dtype)?;
    let scratch = rig.scratch(plan.scratch_bytes())?;
    let args = GauntConvolutionArgs {
        x: x.view(),
        r: r.view(),
        filter: filter.view_as(shared)?,
        y: y.view(),
        messages: messages.view(),
        out: None,
        scratch: Some(&scratch),
    };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    // the case's y is weighted already
    let weighted = rig.poisoned([edges, (p.lmax2 + 1).pow(2)], dtype)?;
    let harmonics =
        SphericalHarmonics { lmax: p.lmax2, dtype, ..Default::default() }.plan(rig, edges)?;
    let args =
        SphericalHarmonicsArgs { r: r.view(), y: weighted.view(), weight: Some(filter.view()) };
    rig.submit(|encoder| harmonics.encode(rig, encoder, &args))?;
    Ok(vec![rig.output("out.y", &weighted)?, rig.output("out.z", &messages)?])
}

fn gaunt_many_body(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let (shape @ [batch, channels, _], x) = case.input::<3>("in.x")?;
    let (lmax, power, lmax_out) =
        (case.param_u32("L")?, case.param_u32("nu")?, case.param_u32("Lout")?);
    let options = GauntManyBody { dtype, ..GauntManyBody::power(lmax, power, lmax_out) };
    let plan = options.plan(rig, GauntShape { batch, channels })?;
    let x = rig.upload(shape, x, dtype)?;
    let z = rig.poisoned([batch, channels, (lmax_out + 1).pow(2)], dtype)?;
    let scratch = rig.scratch(plan.scratch_bytes())?;
    let args = GauntManyBodyArgs { inputs: &[x.view()], z: z.view(), scratch: Some(&scratch) };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    Ok(vec![rig.output("out.z", &z)?])
}

/// The product, and the product of the rotated inputs.
fn gaunt_equivariance(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let options = product(case, dtype)?;
    let mut outputs = Vec::new();
    for (x, y, z) in [("in.x", "in.y", "out.z"), ("in.x_rot", "in.y_rot", "out.z_rot")] {
        let (x_shape, x) = case.input::<3>(x)?;
        let (y_shape, y) = case.input::<3>(y)?;
        let (x, y) = (rig.upload(x_shape, x, dtype)?, rig.upload(y_shape, y, dtype)?);
        outputs.push(rig.output(z, &run(rig, options, x.view(), y.view(), [None; 3])?)?);
    }
    Ok(outputs)
}

fn s2grid(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let (shape @ [batch, channels, _], x) = case.input::<3>("in.x")?;
    let grid = SphereGrid {
        lmax: case.param_u32("L")?,
        n_beta: case.param_u32("n_beta")?,
        n_alpha: case.param_u32("n_alpha")?,
        dtype,
    };
    let plan = grid.plan(rig, GauntShape { batch, channels })?;
    let x = rig.upload(shape, x, dtype)?;
    let f = rig.poisoned([batch, channels, grid.n_beta, grid.n_alpha], dtype)?;
    let scratch = rig.scratch(plan.scratch_bytes())?;
    rig.submit(|encoder| {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        plan.sh_to_grid(rig, &mut pass, x.view(), f.view(), &scratch)
    })?;
    let mut back = Vec::new();
    if case.tensor("out.x").is_some() {
        let x = rig.poisoned(shape, dtype)?;
        rig.submit(|encoder| {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            plan.grid_to_sh(rig, &mut pass, f.view(), x.view(), &scratch)
        })?;
        back.push(rig.output("out.x", &x)?);
    }
    #[expect(clippy::cast_possible_truncation, reason = "results are f32")]
    let list = |name: &str, values: Vec<f64>| Output {
        name: name.into(),
        shape: vec![u32::try_from(values.len()).unwrap_or(u32::MAX)],
        data: values.iter().map(|&v| v as f32).collect(),
    };
    back.extend([
        rig.output("out.f", &f)?,
        list("out.nodes", grid.nodes()),
        list("out.alpha", grid.longitudes()),
    ]);
    Ok(back)
}

fn sh_to_fourier(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let (shape @ [batch, channels, _], x) = case.input::<3>("in.x")?;
    let lmax = case.param_u32("L")?;
    let plan =
        SphereFourier { lmax, band: lmax, dtype }.plan(rig, GauntShape { batch, channels })?;
    let x = rig.upload(shape, x, dtype)?;
    let side = 2 * lmax + 1;
    let c = rig.poisoned([batch, channels, side, side, 2], dtype)?;
    rig.submit(|encoder| {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        plan.sh_to_fourier(rig, &mut pass, x.view(), c.view())
    })?;
    let pairs = rig.output("out.c", &c)?;
    let part = |name: &str, at: usize| Output {
        name: name.into(),
        shape: vec![batch, channels, side, side],
        data: pairs.data.iter().skip(at).step_by(2).copied().collect(),
    };
    let mut outputs = vec![part("out.re", 0), part("out.im", 1)];
    if case.tensor("out.x").is_some() {
        let x = rig.poisoned(shape, dtype)?;
        rig.submit(|encoder| {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            plan.fourier_to_sh(rig, &mut pass, c.view(), x.view())
        })?;
        outputs.push(rig.output("out.x", &x)?);
    }
    Ok(outputs)
}

/// The full product of unit vectors, undoing its component normalisation, is the coupling tensor.
#[expect(clippy::cast_possible_truncation, reason = "results are f32")]
fn cg_coeffs(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let lmax = case.param_u32("L")?;
    let irreps = Irreps::spherical_harmonics(lmax.min(MAX_CG_LMAX + 1));
    let cg =
        ClebschGordan { irreps1: irreps.clone(), irreps2: irreps, dtype, ..Default::default() };
    let n = (lmax.min(MAX_CG_LMAX + 1) + 1).pow(2);
    let plan = cg.plan(rig, n * n)?;
    let x = rig.upload([n * n, n], &unit_rows(n, n, 1), dtype)?;
    let y = rig.upload([n * n, n], &unit_rows(n, 1, n), dtype)?;
    let width = plan.dims()[2];
    let z = rig.poisoned([n * n, width], dtype)?;
    rig.submit(|encoder| {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        plan.encode_pass(rig, &mut pass, x.view(), y.view(), z.view())
    })?;
    let all = rig.output("", &z)?.data;
    let mut outputs = Vec::new();
    let mut ratio = vec![0.0; ((lmax + 1) * (lmax + 1) * (2 * lmax + 1)) as usize];
    for path in plan.paths() {
        let (l1, l2, l3) = (path.first as u32, path.second as u32, path.out.l);
        let [n1, n2, n3] = [l1, l2, l3].map(|l| 2 * l + 1);
        let mut w = Vec::new();
        for i in 0..n1 {
            for j in 0..n2 {
                let row = (l1 * l1 + i) * n + l2 * l2 + j;
                let from = (row * width + path.start) as usize;
                let scale = f64::from(n3).sqrt();
                w.extend(
                    all[from..from + n3 as usize].iter().map(|v| (f64::from(*v) / scale) as f32),
                );
            }
        }
        outputs.push(Output {
            name: format!("out.w3j_{l1}_{l2}_{l3}"),
            shape: vec![n1, n2, n3],
            data: w,
        });
        let degrees = f64::from(n1) * f64::from(n2) * f64::from(n3) / (4.0 * std::f64::consts::PI);
        let symbol = reference::wigner_3j(l1, l2, l3, 0, 0, 0).abs();
        ratio[((l1 * (lmax + 1) + l2) * (2 * lmax + 1) + l3) as usize] =
            (degrees.sqrt() * symbol) as f32;
    }
    let shape = vec![lmax + 1, lmax + 1, 2 * lmax + 1];
    outputs.push(Output { name: "out.gaunt_over_w3j".into(), shape, data: ratio });
    Ok(outputs)
}

fn irrep_normalization(case: &Case) -> Result<IrrepNormalization, Stop> {
    if !case.has_param("irrep_normalization") {
        return Ok(IrrepNormalization::Component);
    }
    match case.param_str("irrep_normalization")? {
        "component" => Ok(IrrepNormalization::Component),
        "norm" => Ok(IrrepNormalization::Norm),
        other => Err(Stop::Refused(format!(
            "irrep_normalization: expected component or norm, got {other}"
        ))),
    }
}

fn cg_full_tp(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let ([batch, n1], x) = case.input::<2>("in.x")?;
    let (y_shape, y) = case.input::<2>("in.y")?;
    let mut filter = None;
    if case.has_param("filter_ir_out") {
        let kept = case.param_as("filter_ir_out", "a list of irreps", |v| {
            v.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<_>>>()
        })?;
        filter = Some(kept.join("+").parse()?);
    }
    let cg = ClebschGordan {
        irreps1: case.param_str("irreps_in1")?.parse()?,
        irreps2: case.param_str("irreps_in2")?.parse()?,
        lmax_out: None,
        filter,
        normalization: irrep_normalization(case)?,
        dtype,
    };
    let plan = cg.plan(rig, batch)?;
    let (x, y) = (rig.upload([batch, n1], x, dtype)?, rig.upload(y_shape, y, dtype)?);
    let z = rig.poisoned([batch, plan.dims()[2]], dtype)?;
    rig.submit(|encoder| {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        plan.encode_pass(rig, &mut pass, x.view(), y.view(), z.view())
    })?;
    Ok(vec![rig.output("out.z", &z)?])
}

/// `[first, second, out, mode]`.
fn instruction(value: &Value) -> Option<Instruction> {
    let list = value.as_array()?;
    let place = |at: usize| usize::try_from(list.get(at)?.as_u64()?).ok();
    let connection = match list.get(3)?.as_str()? {
        "uvw" => Connection::Uvw,
        "uvu" => Connection::Uvu,
        _ => return None,
    };
    Some(Instruction { first: place(0)?, second: place(1)?, out: place(2)?, connection })
}

fn cg_weighted_tp(rig: &Rig<'_>, case: &Case, dtype: DType) -> Outcome {
    let ([batch, n1], x) = case.input::<2>("in.x")?;
    let (y_shape, y) = case.input::<2>("in.y")?;
    let (w_shape, w) = case.input::<2>("in.w")?;
    let path_normalization = match case.param_str("path_normalization")? {
        "element" => PathNormalization::Element,
        "path" => PathNormalization::Path,
        other => {
            let expected = "path_normalization: expected element or path";
            return Err(Stop::Refused(format!("{expected}, got {other}")));
        }
    };
    let product = WeightedTensorProduct {
        irreps1: case.param_str("irreps_in1")?.parse()?,
        irreps2: case.param_str("irreps_in2")?.parse()?,
        irreps_out: case.param_str("irreps_out")?.parse()?,
        instructions: case.param_as(
            "instructions",
            "a list of [first, second, out, uvw or uvu]",
            |v| v.as_array()?.iter().map(instruction).collect(),
        )?,
        irrep_normalization: irrep_normalization(case)?,
        path_normalization,
        dtype,
    };
    let plan = product.plan(rig, batch)?;
    let (x, y) = (rig.upload([batch, n1], x, dtype)?, rig.upload(y_shape, y, dtype)?);
    let w = rig.upload(w_shape, w, DType::F32)?;
    let z = rig.poisoned([batch, plan.dims()[2]], dtype)?;
    let scratch = rig.scratch(plan.scratch_bytes())?;
    let args = WeightedTensorProductArgs {
        x: x.view(),
        y: y.view(),
        w: w.view(),
        z: z.view(),
        scratch: Some(&scratch),
    };
    rig.submit(|encoder| plan.encode(rig, encoder, &args))?;
    Ok(vec![rig.output("out.z", &z)?])
}
