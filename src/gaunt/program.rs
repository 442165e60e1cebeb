//! The text of fused product kernels.
//!
//! One invocation computes one product in registers: coefficients in, a pair of parallels of the
//! sphere at a time (colatitudes `b` and `pi - b`), coefficients out. No grid or spectrum leaves
//! the invocation. Register arrays need constant indices, so the arithmetic is written out here,
//! for one shape at a time; the frame around it is `shaders/gaunt/product.wgsl`.
//!
//! For one pair of parallels, with `t_m` one of `{ sqrt(2) sin(|m| a), 1, sqrt(2) cos(m a) }`:
//!
//! 1. *Colatitude synthesis.* `A_m(b) = sum_l T_lm(b) x_lm`. Terms of even `l - m` are symmetric
//!    about the equator and those of odd `l - m` antisymmetric, so one pass over the coefficients
//!    serves both parallels.
//! 2. *Longitude synthesis.* `f(a) = sum_m A_m t_m(a)` at `4 Q` equidistant longitudes, half a
//!    step off zero. Cosines and sines of even and odd `m` are summed apart at `Q` longitudes in
//!    `(0, pi/2)`; the values at `a, -a, pi - a, pi + a` are their signed sums.
//! 3. The pointwise product, and 2 and 1 transposed, with quadrature weights.
//!
//! On the grid route `T_lm` are Legendre functions at Gauss-Legendre nodes. On the Fourier route
//! coefficients are first taken to a series in `cos(s b)`, `sin(s b)` by exact tables, `T` are
//! those cosines and sines at equidistant `b`, and the product's series is projected back with the
//! half-range integrals. Both are exact for the degrees at hand.

use std::{
    collections::HashMap,
    f64::consts::{PI, SQRT_2},
    fmt::Write as _,
};

use super::{
    basis::{column, gauss_legendre, half_range, theta_fourier, theta_row, theta_slope_row},
    coefficients::{Coefficient, coefficients},
};

/// How the values of the factors combine at a point.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Combine {
    /// The product of all, each raised to its power.
    Powers(Vec<u32>),
    /// `r . (grad f x grad g)` of two inputs.
    Vector,
}

/// Where the sphere is sampled, if it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Sampling {
    /// Nowhere: the non-zero coefficients of the product, one by one. Two inputs only.
    Table,
    GaussLegendre,
    Fourier,
}

/// A fused product: all that its arithmetic depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Program {
    pub(crate) sampling: Sampling,
    /// Degree of each input.
    pub(crate) lmax: Vec<u32>,
    pub(crate) combine: Combine,
    pub(crate) lmax_out: u32,
    /// Factor of the output, the bits of an f64.
    pub(crate) scale: u64,
}

/// Numbers of nodes: half the parallels, a quarter of the longitudes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nodes {
    pub(crate) pairs: u32,
    pub(crate) quarter: u32,
}

/// A function of colatitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Column {
    Theta(u32, u32),
    /// `d/db Theta`
    Slope(u32, u32),
    /// `m Theta / sin b`
    Around(u32, u32),
    Cos(u32),
    Sin(u32),
    Weight,
}

/// A coefficient's part in `A_m`: `sign * column * coefficient`, symmetric about the equator or not.
pub(crate) struct Term {
    /// Of the row of coefficients; unused for Fourier series.
    pub(crate) index: u32,
    coefficient: String,
    pub(crate) column: Column,
    pub(crate) symmetric: bool,
    pub(crate) negative: bool,
}

/// A function on the sphere by order: terms of the cosine and the sine of every `m`.
pub(crate) struct Field {
    name: String,
    /// Which input it is made of.
    pub(crate) input: usize,
    cos: Vec<Vec<Term>>,
    sin: Vec<Vec<Term>>,
}

/// Generated parts of a kernel.
#[derive(Debug)]
pub(crate) struct Text {
    /// Statements from the inputs `x0_5`, ... to the outputs `z5`, ...
    pub(crate) body: String,
    /// Rows of the colatitude table, one for each pair, where the loop over parallels is kept.
    pub(crate) table: Vec<f32>,
}

/// How the loop over parallels reads its constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Constants {
    /// Written out for every pair: no loop.
    Literal,
    /// Read from the table at the same address by all invocations.
    Uniform,
    /// Read by the first `lanes` lanes of a subgroup and handed round.
    Broadcast { lanes: u32 },
}

impl Program {
    /// Largest degree of the untruncated product.
    pub(crate) fn degree(&self) -> u32 {
        match &self.combine {
            Combine::Powers(powers) => self.lmax.iter().zip(powers).map(|(l, p)| l * p).sum(),
            Combine::Vector => self.lmax.iter().sum(),
        }
    }

    /// The degrees of the output that can be other than zero.
    pub(crate) fn live_out(&self) -> u32 {
        self.lmax_out.min(self.degree())
    }

    /// Smallest exact numbers of nodes of the shapes that the kernel can use.
    pub(crate) fn nodes(&self) -> Nodes {
        let (degree, out) = (self.degree(), self.live_out());
        // 4 Q > degree + out
        let quarter = (degree + out) / 4 + 1;
        let pairs = match self.sampling {
            // 2 pairs >= floor((degree + out) / 2) + 1
            Sampling::Table | Sampling::GaussLegendre => ((degree + out) / 2 + 1).div_ceil(2),
            // 4 pairs >= 2 degree + 1 nodes on the circle
            Sampling::Fourier => (2 * degree + 1).div_ceil(4),
        };
        Nodes { pairs, quarter }
    }

    /// Multiply-adds and adds of one product, as the kernel does them.
    pub(crate) fn operations(&self) -> u64 {
        if self.sampling == Sampling::Table {
            return table_operations(self.lmax[0], self.lmax[1], self.live_out());
        }
        let Nodes { pairs, quarter } = self.nodes();
        let (pairs, quarter) = (u64::from(pairs), u64::from(quarter));
        let fields = self.fields();
        let around = |m: u64| 2 * quarter * ((2 * m + 1) + 8);
        let inputs: u64 = fields
            .iter()
            .map(|f| {
                let terms: usize = f.cos.iter().chain(&f.sin).map(Vec::len).sum();
                terms as u64 + 2 * (2 * f.cos.len() as u64 - 1) + around(f.cos.len() as u64 - 1)
            })
            .sum();
        let m = u64::from(self.live_out());
        let out = self.out_terms() as u64 + 4 * (2 * m + 1) + around(m);
        let multiply = 8 * quarter * fields.len() as u64;
        let convert = match self.sampling {
            Sampling::Table | Sampling::GaussLegendre => 0,
            Sampling::Fourier => {
                let l3 = |l: u64| l * l * l / 3 + l * l;
                self.lmax.iter().map(|&l| l3(u64::from(l))).sum::<u64>()
                    + (m + 1) * (m + 1) * (u64::from(self.degree()) + 1) / 2
            }
        };
        pairs * (inputs + out + multiply) + convert
    }

    fn out_terms(&self) -> usize {
        let (m, degree) = (self.live_out() as usize, self.degree() as usize);
        match self.sampling {
            Sampling::Table | Sampling::GaussLegendre => (m + 1) * (m + 1),
            Sampling::Fourier => (2 * m + 1) * (degree + 1),
        }
    }

    /// The inputs as functions on the sphere.
    pub(crate) fn fields(&self) -> Vec<Field> {
        let mut fields = Vec::new();
        for (i, &l) in self.lmax.iter().enumerate() {
            let term = |l: u32, m: i32, column: Column, symmetric: bool| {
                let index = (l * l + l).saturating_add_signed(m);
                Term {
                    index,
                    coefficient: format!("x{i}_{index}"),
                    column,
                    symmetric,
                    negative: false,
                }
            };
            let signed = |m: u32, cos: bool| if cos { m.cast_signed() } else { -m.cast_signed() };
            match (self.sampling, &self.combine) {
                (Sampling::Fourier, _) => {
                    fields.push(series_field(&format!("f{i}"), &format!("x{i}f"), i, l, l))
                }
                (_, Combine::Powers(_)) => {
                    fields.push(Field::new(format!("f{i}"), i, l, |l, m, cos| {
                        term(l, signed(m, cos), Column::Theta(l, m), (l - m) % 2 == 0)
                    }))
                }
                (_, Combine::Vector) => {
                    fields.push(Field::new(format!("b{i}"), i, l, |l, m, cos| {
                        term(l, signed(m, cos), Column::Slope(l, m), (l - m) % 2 == 1)
                    }));
                    // the derivative of sin is cos, that of cos is -sin
                    let mut around = Field::new(format!("a{i}"), i, l, |l, m, cos| Term {
                        negative: !cos,
                        ..term(l, signed(m, !cos), Column::Around(l, m), (l - m) % 2 == 0)
                    });
                    around.cos[0].clear();
                    fields.push(around);
                }
            }
        }
        fields
    }

    /// The value at four longitudes from the fields' values `f0v`, ...
    fn combined(&self) -> String {
        match &self.combine {
            Combine::Vector => "b0v * a1v - a0v * b1v".into(),
            Combine::Powers(powers) => {
                let factors = powers
                    .iter()
                    .enumerate()
                    .flat_map(|(i, &p)| (0..p).map(move |_| format!("f{i}v")));
                factors.collect::<Vec<_>>().join(" * ")
            }
        }
    }

    /// The non-zero coefficients of a product of two.
    pub(crate) fn coefficients(&self) -> Vec<Coefficient> {
        let scale = f64::from_bits(self.scale);
        let mut all = coefficients(
            self.lmax[0],
            self.lmax[1],
            self.lmax_out,
            self.combine == Combine::Vector,
        );
        all.iter_mut().for_each(|c| c.value *= scale);
        all
    }

    /// The table route: every non-zero coefficient, grouped by the product that it multiplies.
    fn table_text(&self) -> Text {
        let mut all = self.coefficients();
        all.sort_by_key(|c| (c.first, c.second, c.out));
        let mut body = String::new();
        for k in 0..(self.lmax_out + 1).pow(2) {
            let _ = writeln!(body, "var z{k} = 0.0;");
        }
        for same in all.chunk_by(|a, b| (a.first, a.second) == (b.first, b.second)) {
            let (i, j) = (same[0].first, same[0].second);
            let _ = write!(body, "{{ let p = x0_{i} * x1_{j};");
            for c in same {
                let _ = write!(body, " z{0} = fma({1}, p, z{0});", c.out, literal(c.value));
            }
            body.push_str(" }\n");
        }
        Text { body, table: Vec::new() }
    }

    /// Writes the arithmetic.
    pub(crate) fn text(&self, constants: Constants) -> Text {
        if self.sampling == Sampling::Table {
            return self.table_text();
        }
        let nodes = self.nodes();
        let columns = Columns::new(self);
        let fields = self.fields();
        let mut body = String::new();
        if self.sampling == Sampling::Fourier {
            for (i, &l) in self.lmax.iter().enumerate() {
                to_fourier(&mut body, i, l);
            }
        }
        let out = self.output();
        for name in out.names() {
            let _ = writeln!(body, "var {name} = 0.0;");
        }
        let lanes = match constants {
            Constants::Broadcast { lanes } => lanes,
            _ => 1,
        };
        let mut table = Vec::new();
        if constants == Constants::Literal {
            for pair in 0..nodes.pairs {
                let _ = writeln!(body, "{{ // parallels {pair} and {}", 2 * nodes.pairs - 1 - pair);
                self.pair(
                    &mut body,
                    &fields,
                    &out,
                    &mut |c| literal(columns.value(c, pair)),
                    nodes.quarter,
                );
                body.push_str("}\n");
            }
        } else {
            let mut used = Used::default();
            let mut inner = String::new();
            self.pair(&mut inner, &fields, &out, &mut |c| used.name(c), nodes.quarter);
            #[expect(clippy::cast_possible_truncation, reason = "a few thousand columns at most")]
            let quads = (used.list.len() as u32).div_ceil(4).next_multiple_of(lanes);
            let _ = writeln!(body, "for (var pair = 0u; pair < {}u; pair++) {{", nodes.pairs);
            let live = used.list.len().div_ceil(4);
            match constants {
                Constants::Broadcast { .. } => {
                    for chunk in 0..quads / lanes {
                        let _ = writeln!(
                            body,
                            "let q{chunk} = table[pair * {quads}u + {}u + lane];",
                            chunk * lanes
                        );
                    }
                    for k in 0..live {
                        let (chunk, lane) = (k / lanes as usize, k % lanes as usize);
                        let _ = writeln!(body, "let t{k} = subgroupBroadcast(q{chunk}, {lane}u);");
                    }
                }
                _ => {
                    for k in 0..live {
                        let _ = writeln!(body, "let t{k} = table[pair * {quads}u + {k}u];");
                    }
                }
            }
            body.push_str(&inner);
            body.push_str("}\n");
            for pair in 0..nodes.pairs {
                let mut row: Vec<f32> =
                    used.list.iter().map(|&c| to_f32(columns.value(c, pair))).collect();
                row.resize(quads as usize * 4, 0.0);
                table.extend(row);
            }
        }
        if self.sampling == Sampling::Fourier {
            self.project_fourier(&mut body);
        }
        for k in (self.live_out() + 1).pow(2)..(self.lmax_out + 1).pow(2) {
            let _ = writeln!(body, "let z{k} = 0.0;");
        }
        Text { body, table }
    }

    /// The output's accumulators: those of the coefficients, or of the product's Fourier series.
    pub(crate) fn output(&self) -> Field {
        let out = self.live_out();
        if self.sampling == Sampling::Fourier {
            return series_field("z", "zf", 0, out, self.degree());
        }
        Field::new("z".into(), 0, out, |l, m, cos| {
            let index = if cos { l * l + l + m } else { l * l + l - m };
            let symmetric = (l - m) % 2 == 0;
            Term {
                index,
                coefficient: format!("z{index}"),
                column: Column::Theta(l, m),
                symmetric,
                negative: false,
            }
        })
    }

    /// One pair of parallels.
    fn pair(
        &self,
        body: &mut String,
        fields: &[Field],
        out: &Field,
        constant: &mut dyn FnMut(Column) -> String,
        quarter: u32,
    ) {
        for field in fields {
            field.orders(|m, sign, terms| {
                let name = format!("{}{sign}{m}", field.name);
                let mut part = |symmetric: bool| {
                    let sum: Vec<(String, String)> = terms
                        .iter()
                        .filter(|t| t.symmetric == symmetric)
                        .map(|t| {
                            let factor = constant(t.column);
                            let factor = if t.negative { format!("(-({factor}))") } else { factor };
                            (factor, t.coefficient.clone())
                        })
                        .collect();
                    (!sum.is_empty()).then(|| products(&sum))
                };
                for (part, sum) in [("e", part(true)), ("o", part(false))] {
                    if let Some(sum) = sum {
                        let _ = writeln!(body, "let {name}{part} = {sum};");
                    }
                }
            });
        }
        // whether an order has terms symmetric, and antisymmetric, about the equator
        let parts = |terms: &[Term]| [true, false].map(|s| terms.iter().any(|t| t.symmetric == s));
        for field in fields {
            field.orders(|m, sign, terms| {
                let name = format!("{}{sign}{m}", field.name);
                let _ = match parts(terms) {
                    [true, true] => writeln!(
                        body,
                        "let {name}n = {name}e + {name}o; let {name}p = {name}e - {name}o;"
                    ),
                    [true, false] => {
                        writeln!(body, "let {name}n = {name}e; let {name}p = {name}e;")
                    }
                    [false, true] => {
                        writeln!(body, "let {name}n = {name}o; let {name}p = -{name}o;")
                    }
                    [false, false] => writeln!(body, "let {name}n = 0.0; let {name}p = 0.0;"),
                };
            });
        }
        for side in ["n", "p"] {
            self.parallel(body, fields, out, side, quarter);
        }
        out.orders(|m, sign, _| {
            let h = format!("h{sign}{m}");
            let _ = writeln!(body, "let {h}e = {h}n + {h}p; let {h}o = {h}n - {h}p;");
        });
        let weight = constant(Column::Weight);
        out.orders(|m, sign, terms| {
            let h = format!("h{sign}{m}");
            for (part, present) in ["e", "o"].into_iter().zip(parts(terms)) {
                if present {
                    let _ = writeln!(body, "let {h}{part}w = {weight} * {h}{part};");
                }
            }
            for term in terms {
                let part = if term.symmetric { "e" } else { "o" };
                let z = &term.coefficient;
                let _ = writeln!(body, "{z} = fma({}, {h}{part}w, {z});", constant(term.column));
            }
        });
    }

    /// One parallel: from the orders of the fields, `f0c3n` and so on, to those of their product,
    /// `hc3n` and so on; `side` is the last letter.
    fn parallel(&self, body: &mut String, fields: &[Field], out: &Field, side: &str, quarter: u32) {
        let trig = |m: u32, j: u32, cos: bool| longitude(m, cos, j, quarter);
        for j in 0..quarter {
            // folded over the four longitudes: (cos even, cos odd, sin even, sin odd)
            let _ = writeln!(body, "var g{j}{side}: vec4<f32>;\n{{");
            for field in fields {
                let f = &field.name;
                let sum = |cos: bool, odd: u32| {
                    let terms: Vec<(String, String)> = (if cos { 0 } else { 1 }..field.cos.len())
                        .map(|m| u32::try_from(m).unwrap_or(0))
                        .filter(|m| m % 2 == odd)
                        .map(|m| {
                            let name = format!("{f}{}{m}{side}", if cos { "c" } else { "s" });
                            let factor =
                                if m == 0 { String::new() } else { literal(trig(m, j, cos)) };
                            (factor, name)
                        })
                        .collect();
                    products(&terms)
                };
                let _ = writeln!(
                    body,
                    "let {f}ce = {}; let {f}co = {}; let {f}se = {}; let {f}so = {};",
                    sum(true, 0),
                    sum(true, 1),
                    sum(false, 0),
                    sum(false, 1)
                );
                let _ = writeln!(
                    body,
                    "let {f}v = vec4<f32>({f}ce + {f}co + ({f}se + {f}so), {f}ce + {f}co - ({f}se + {f}so), \
                     {f}ce - {f}co - ({f}se - {f}so), {f}ce - {f}co + ({f}se - {f}so));"
                );
            }
            let _ = writeln!(body, "let p = {};", self.combined());
            let _ = writeln!(
                body,
                "g{j}{side} = vec4<f32>((p.x + p.y) + (p.z + p.w), (p.x + p.y) - (p.z + p.w), \
                 (p.x - p.y) + (p.w - p.z), (p.x - p.y) - (p.w - p.z));\n}}"
            );
        }
        out.orders(|m, sign, _| {
            let component = match (sign, m % 2) {
                ('c', 0) => "x",
                ('c', _) => "y",
                (_, 0) => "z",
                _ => "w",
            };
            let terms = (0..quarter).map(|j| {
                let factor = if m == 0 { String::new() } else { literal(trig(m, j, sign == 'c')) };
                (factor, format!("g{j}{side}.{component}"))
            });
            let sum = products(&terms.collect::<Vec<_>>());
            let _ = writeln!(body, "let h{sign}{m}{side} = {sum};");
        });
    }

    /// Coefficients of the output from the product's Fourier series.
    fn project_fourier(&self, body: &mut String) {
        for l in 0..=self.live_out() {
            for m in 0..=l {
                let back = series_projection(l, m, self.degree());
                for sign in if m == 0 { &['c'][..] } else { &['c', 's'][..] } {
                    let sum: Vec<(String, String)> = back
                        .iter()
                        .enumerate()
                        .filter(|(_, c)| c.abs() > 1e-18)
                        // a cosine or sine of s > 0 has mean square 1/2 on the circle
                        .map(|(s, c)| {
                            (literal(if s == 0 { *c } else { 2.0 * c }), format!("zf{sign}{m}_{s}"))
                        })
                        .collect();
                    let k = if *sign == 'c' { l * l + l + m } else { l * l + l - m };
                    let _ = writeln!(body, "let z{k} = {};", products(&sum));
                }
            }
        }
    }
}

impl Field {
    /// All `(l, m)` up to `lmax` by order.
    fn new(name: String, input: usize, lmax: u32, term: impl Fn(u32, u32, bool) -> Term) -> Self {
        let side = |cos: bool| {
            (0..=lmax)
                .map(|m| {
                    if m == 0 && !cos {
                        Vec::new()
                    } else {
                        (m..=lmax).map(|l| term(l, m, cos)).collect()
                    }
                })
                .collect()
        };
        Self { name, input, cos: side(true), sin: side(false) }
    }

    /// Calls `f(m, 'c' or 's', terms)` for every order; no sine of order 0.
    pub(crate) fn orders(&self, mut f: impl FnMut(u32, char, &[Term])) {
        for (m, (cos, sin)) in (0..).zip(self.cos.iter().zip(&self.sin)) {
            f(m, 'c', cos);
            if m > 0 {
                f(m, 's', sin);
            }
        }
    }

    fn names(&self) -> Vec<&str> {
        self.cos.iter().chain(&self.sin).flatten().map(|t| t.coefficient.as_str()).collect()
    }
}

/// A field given by its Fourier series in the colatitude: cosines for even `m`, sines for odd.
fn series_field(name: &str, coefficient: &str, input: usize, orders: u32, degree: u32) -> Field {
    let side = |sign: char| {
        (0..=orders)
            .map(|m| {
                if m == 0 && sign == 's' {
                    return Vec::new();
                }
                (m % 2..=degree)
                    .map(|s| Term {
                        index: 0,
                        coefficient: format!("{coefficient}{sign}{m}_{s}"),
                        column: if m % 2 == 0 { Column::Cos(s) } else { Column::Sin(s) },
                        // cos(s (pi - b)) = (-1)^s cos(s b), sin(s (pi - b)) = -(-1)^s sin(s b)
                        symmetric: (s + m) % 2 == 0,
                        negative: false,
                    })
                    .collect()
            })
            .collect()
    };
    Field { name: name.into(), input, cos: side('c'), sin: side('s') }
}

/// Real series of `Theta_lm`: of `cos(s b)` (even `m`) or `sin(s b)` (odd `m`), `s = 0..=l`.
pub(crate) fn series(l: u32, m: u32) -> Vec<f64> {
    let c = theta_fourier(l, m);
    let l = l as usize;
    (0..=l)
        .map(|s| match (s, m % 2) {
            (0, 0) => c[l],
            (_, 0) => c[l + s] + c[l - s],
            // i c e^(i s b) - i c e^(-i s b) = -2 c sin(s b)
            (_, _) => -(c[l + s] - c[l - s]),
        })
        .collect()
}

/// `2 pi` times the integral over `b` in `0..pi` of `Theta_lm sin b` times `cos(s b)` or
/// `sin(s b)`, `s = 0..=degree`.
pub(crate) fn series_projection(l: u32, m: u32, degree: u32) -> Vec<f64> {
    let c = series(l, m);
    (0..=degree.cast_signed())
        .map(|s| {
            let sum: f64 = (0..)
                .zip(&c)
                .map(|(u, c)| {
                    let (difference, sum) = (half_range(u - s), half_range(u + s));
                    0.5 * c * if m.is_multiple_of(2) { difference + sum } else { difference - sum }
                })
                .sum();
            2.0 * PI * sum
        })
        .collect()
}

/// Series of input `i` from its coefficients.
fn to_fourier(body: &mut String, i: usize, lmax: u32) {
    for m in 0..=lmax {
        let columns: Vec<Vec<f64>> = (m..=lmax).map(|l| series(l, m)).collect();
        for sign in if m == 0 { &['c'][..] } else { &['c', 's'][..] } {
            for s in m % 2..=lmax {
                let sum: Vec<(String, String)> = (m..=lmax)
                    .filter(|l| s <= *l && (l + s) % 2 == 0)
                    .map(|l| {
                        let k = if *sign == 'c' { l * l + l + m } else { l * l + l - m };
                        (literal(columns[(l - m) as usize][s as usize]), format!("x{i}_{k}"))
                    })
                    .collect();
                let _ = writeln!(body, "let x{i}f{sign}{m}_{s} = {};", products(&sum));
            }
        }
    }
}

/// `t_m` at longitude `j + 1/2` of `4 quarter`: `sqrt(2) cos(m a)`, `sqrt(2) sin(m a)`, or 1.
pub(crate) fn longitude(m: u32, cos: bool, j: u32, quarter: u32) -> f64 {
    let angle = f64::from(m) * (f64::from(j) + 0.5) * PI / f64::from(2 * quarter);
    if m == 0 { 1.0 } else { SQRT_2 * if cos { angle.cos() } else { angle.sin() } }
}

/// Values of columns at the nodes.
pub(crate) struct Columns {
    sampling: Sampling,
    nodes: Nodes,
    /// `(cos b, sin b, weight)` of the northern parallels
    parallels: Vec<(f64, f64, f64)>,
    theta: Vec<Vec<f64>>,
    slope: Vec<Vec<f64>>,
}

impl Columns {
    pub(crate) fn new(program: &Program) -> Self {
        let (sampling, nodes) = (program.sampling, program.nodes());
        let lmax = program.live_out().max(program.lmax.iter().copied().max().unwrap_or(0));
        let around = f64::from_bits(program.scale) / f64::from(4 * nodes.quarter);
        let parallels: Vec<(f64, f64, f64)> = match sampling {
            Sampling::Table | Sampling::GaussLegendre => {
                let (x, w) = gauss_legendre(2 * nodes.pairs);
                x.iter()
                    .zip(&w)
                    .rev()
                    .take(nodes.pairs as usize)
                    .map(|(&x, &w)| (x, ((1.0 - x) * (1.0 + x)).sqrt(), 2.0 * PI * w * around))
                    .collect()
            }
            // the weight of a node on the circle: both halves contribute the same
            Sampling::Fourier => (0..nodes.pairs)
                .map(|i| {
                    let b = 2.0 * PI * (f64::from(i) + 0.5) / f64::from(4 * nodes.pairs);
                    (b.cos(), b.sin(), 2.0 * around / f64::from(4 * nodes.pairs))
                })
                .collect(),
        };
        let (mut theta, mut slope) = (Vec::new(), Vec::new());
        if sampling != Sampling::Fourier {
            theta = parallels.iter().map(|&(c, s, _)| theta_row(lmax, c, s)).collect();
            slope = theta.iter().map(|row| theta_slope_row(lmax, row)).collect();
        }
        Self { sampling, nodes, parallels, theta, slope }
    }

    /// The value at the northern parallel of a pair.
    pub(crate) fn value(&self, c: Column, pair: u32) -> f64 {
        let at = pair as usize;
        let (_, sin, weight) = self.parallels[at];
        let b = 2.0 * PI * (f64::from(pair) + 0.5) / f64::from(4 * self.nodes.pairs);
        debug_assert!(
            self.sampling == Sampling::Fourier || !matches!(c, Column::Cos(_) | Column::Sin(_))
        );
        match c {
            Column::Theta(l, m) => self.theta[at][column(l, m)],
            Column::Slope(l, m) => self.slope[at][column(l, m)],
            Column::Around(l, m) => f64::from(m) * self.theta[at][column(l, m)] / sin,
            Column::Cos(s) => (f64::from(s) * b).cos(),
            Column::Sin(s) => (f64::from(s) * b).sin(),
            Column::Weight => weight,
        }
    }
}

/// Operations of the table route, without making the table: products of two elements, and non-zero
/// coefficients (and the few that vanish by accident). A pair of orders `m1, m2` couples to `|m3| = |m1| + |m2|` and `||m1| - |m2||`, in
/// one of the two signs each, and to every degree of the right parity that has such an order.
pub(crate) fn table_operations(lmax1: u32, lmax2: u32, lmax_out: u32) -> u64 {
    let mut sum = 0;
    for (l1, l2) in (0..=lmax1).flat_map(|l1| (0..=lmax2).map(move |l2| (l1, l2))) {
        let (low, top) = (l1.abs_diff(l2), (l1 + l2).min(lmax_out));
        let degrees = |m: u32| {
            // the first degree from both bounds on whose parity is that of l1 + l2
            let first = low.max(m) + (low.max(m) + low) % 2;
            if first > top { 0 } else { u64::from((top - first) / 2 + 1) }
        };
        for (m1, m2) in (0..=l1).flat_map(|m1| (0..=l2).map(move |m2| (m1, m2))) {
            let signs = [m1, m2].into_iter().filter(|m| *m > 0).count();
            let near = degrees(m1.abs_diff(m2));
            let far = if signs == 2 { degrees(m1 + m2) } else { 0 };
            let coupled = |n: u64| if n > 0 { n + 1 } else { 0 };
            // a cosine times a sine of the same order has no part of order 0
            sum += if m1 == m2 && m1 > 0 {
                2 * (coupled(near + far) + coupled(far))
            } else {
                coupled(near + far) << signs
            };
        }
    }
    sum
}

/// The sum of products, as a chain of fused multiply-adds: drivers do not fuse on their own. An
/// empty factor is 1.
pub(crate) fn products(terms: &[(String, String)]) -> String {
    let mut sum = String::new();
    for (factor, value) in terms {
        sum = match (sum.is_empty(), factor.is_empty()) {
            (true, true) => value.clone(),
            (true, false) => format!("{factor} * {value}"),
            (false, true) => format!("{sum} + {value}"),
            (false, false) => format!("fma({factor}, {value}, {sum})"),
        };
    }
    if sum.is_empty() { "0.0".into() } else { sum }
}

/// Columns in the order of first use.
#[derive(Default)]
struct Used {
    list: Vec<Column>,
    place: HashMap<Column, usize>,
}

impl Used {
    fn name(&mut self, c: Column) -> String {
        let at = *self.place.entry(c).or_insert_with(|| {
            self.list.push(c);
            self.list.len() - 1
        });
        format!("t{}.{}", at / 4, ["x", "y", "z", "w"][at % 4])
    }
}

/// The nearest f32, as WGSL.
pub(crate) fn literal(x: f64) -> String {
    format!("{:?}", to_f32(x))
}

pub(crate) fn to_f32(x: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "tables are rounded once, here")]
    let rounded = x as f32;
    rounded
}

#[cfg(test)]
mod tests {
    use super::{coefficients, table_operations};

    #[test]
    fn operations_of_the_table_are_counted_right() {
        for (lmax1, lmax2, lmax_out) in
            [(0, 0, 0), (1, 1, 2), (2, 2, 2), (3, 3, 6), (4, 4, 4), (5, 2, 4), (6, 6, 0), (0, 5, 9)]
        {
            let all = coefficients(lmax1, lmax2, lmax_out, false);
            let mut pairs: Vec<_> = all.iter().map(|c| (c.first, c.second)).collect();
            pairs.sort_unstable();
            pairs.dedup();
            let (got, want) =
                (table_operations(lmax1, lmax2, lmax_out), (all.len() + pairs.len()) as u64);
            // some coefficients vanish by accident
            assert!(
                got >= want && got - want <= want / 50,
                "{lmax1} {lmax2} {lmax_out}: {got} {want}"
            );
        }
    }
}
