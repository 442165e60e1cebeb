//! Routes of a product, and the choice between them.

use super::{
    Algorithm,
    fused::{Fused, Operand},
    maps::{Bilinear, BilinearRows, Pair, Weight},
    program::{Program, Sampling},
    staged::Staged,
};
use crate::{Caps, Context, DType, Error, Result, TensorView};

/// Operations up to which a product is fused: what a driver compiles in some seconds.
const FUSED_OPERATIONS: u64 = 90_000;

/// Operations up to which the coefficients of the table route are written out.
const TABLE_OPERATIONS: u64 = 6_000;

/// Operations up to which the table is the planner's choice: degrees 1 and 1.
const TABLE_CHOSEN: u64 = 100;

/// A product by one route.
#[derive(Debug)]
pub(crate) struct Product {
    op: &'static str,
    route: Route,
}

#[derive(Debug)]
enum Route {
    Fused(Box<Fused>),
    /// Coefficients in a table.
    Bilinear {
        map: Bilinear,
        dtype: DType,
    },
    Staged(Box<Staged>),
}

/// The fastest algorithm for a product of two, as measured on a software driver (docs/PERFORMANCE.md);
/// devices do not differ enough for the choice to depend on them, as far as known. Pure.
pub(crate) fn select(_caps: &Caps, lmax1: u32, lmax2: u32, lmax_out: u32) -> Algorithm {
    let degrees = [lmax1, lmax2, lmax_out.min(lmax1.saturating_add(lmax2))];
    // no plan is made of these; counting their coefficients would take forever
    if degrees.iter().any(|l| *l > 2 * super::MAX_LMAX) {
        return Algorithm::Grid;
    }
    // a scaling or a scalar product needs no grid
    if degrees.contains(&0)
        || super::program::table_operations(lmax1, lmax2, lmax_out) <= TABLE_CHOSEN
    {
        return Algorithm::Table;
    }
    match degrees {
        // a tenth faster than the grid, each
        [3, 3, 3] => Algorithm::Table,
        [2, 2, 4] => Algorithm::Fourier,
        _ => Algorithm::Grid,
    }
}

impl Product {
    pub(crate) fn new(
        ctx: &Context,
        op: &'static str,
        program: Program,
        dtype: DType,
        rows: u64,
    ) -> Result<Self> {
        dtype.expect_float(op)?;
        let operations = program.operations();
        let limit =
            if program.sampling == Sampling::Table { TABLE_OPERATIONS } else { FUSED_OPERATIONS };
        let route = if operations <= limit {
            Route::Fused(Box::new(Fused::new(ctx, op, program, None, dtype)?))
        } else if program.sampling == Sampling::Table {
            let map = Bilinear::new(ctx, op, &table(&program))?;
            ctx.kernel(Bilinear::key([dtype; 3], [false; 3], false))?;
            Route::Bilinear { map, dtype }
        } else {
            Route::Staged(Box::new(Staged::new(ctx, op, &program, rows)?))
        };
        Ok(Self { op, route })
    }

    pub(crate) fn scratch_bytes(&self) -> u64 {
        match &self.route {
            Route::Staged(staged) => staged.scratch_bytes(),
            _ => 0,
        }
    }

    pub(crate) fn wgsl(&self) -> Vec<String> {
        match &self.route {
            Route::Fused(fused) => vec![fused.wgsl()],
            Route::Bilinear { dtype, .. } => {
                vec![Bilinear::key([*dtype; 3], [false; 3], false).wgsl()]
            }
            Route::Staged(staged) => staged.wgsl(),
        }
    }

    pub(crate) fn label(&self) -> String {
        match &self.route {
            Route::Fused(fused) => fused.label(),
            Route::Bilinear { dtype, .. } => Bilinear::key([*dtype; 3], [false; 3], false).label(),
            Route::Staged(_) => "gaunt in stages: linear, pointwise, linear".into(),
        }
    }

    /// Views are checked by the caller.
    #[expect(clippy::too_many_arguments, reason = "the tensors of one call")]
    pub(crate) fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        size: [u32; 2],
        inputs: &[Operand<'_>],
        z: &TensorView<'_, 3>,
        weight_out: Option<Weight<'_>>,
        scratch: Option<&wgpu::Buffer>,
    ) -> Result<()> {
        let op = self.op;
        match &self.route {
            Route::Fused(fused) => fused.encode_pass(ctx, pass, size, inputs, z, weight_out),
            Route::Bilinear { map, .. } => map.encode_pass(
                ctx,
                pass,
                op,
                &BilinearRows {
                    x: (inputs[0].name, inputs[0].view),
                    y: (inputs[1].name, inputs[1].view),
                    z: ("z", *z),
                    weights: [inputs[0].weight, inputs[1].weight, weight_out],
                    gather: inputs[0].gather,
                },
            ),
            Route::Staged(staged) => {
                let scratch = check_scratch(op, staged.scratch_bytes(), scratch)?;
                staged.encode_pass(ctx, pass, op, size, inputs, z, weight_out, scratch)
            }
        }
    }
}

/// The scratch buffer, if it will do.
pub(crate) fn check_scratch<'a>(
    op: &'static str,
    need: u64,
    scratch: Option<&'a wgpu::Buffer>,
) -> Result<&'a wgpu::Buffer> {
    let Some(buffer) = scratch else {
        return Err(Error::argument(op, "scratch", format!("needs {need} bytes, none given")));
    };
    if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
        return Err(Error::Usage { op, what: "scratch", missing: wgpu::BufferUsages::STORAGE });
    }
    if buffer.size() < need.max(4) {
        return Err(Error::OutOfRange { op, what: "scratch", end: need, size: buffer.size() });
    }
    Ok(buffer)
}

/// The coefficients by output.
fn table(program: &Program) -> Vec<(u32, Vec<Pair>)> {
    let mut outputs: Vec<(u32, Vec<Pair>)> =
        (0..(program.lmax_out + 1).pow(2)).map(|k| (k.isqrt(), Vec::new())).collect();
    for c in program.coefficients() {
        let at = |i: u32| (i, i.isqrt());
        outputs[c.out as usize].1.push(Pair { x: at(c.first), y: at(c.second), value: c.value });
    }
    outputs
}
