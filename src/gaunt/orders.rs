//! The arithmetic of `shaders/gaunt/orders.wgsl`, written out for one product.
//!
//! The sums are those of `program.rs`, shared by the lanes of a product: a lane for each order
//! between coefficients and parallels, a lane for each parallel between orders and points. Values
//! at the four longitudes `a, -a, pi - a, pi + a` are never formed: of both factors there are the
//! parts that are even or odd under `a -> -a` and under `a -> a + pi`, and the product's parts are
//! sums of products of those, multiply-adds all.

use std::fmt::Write as _;

use super::{
    program::{Column, Columns, Program, literal, longitude, products, to_f32},
    schedule::OrderTiles,
};

/// Generated parts of a kernel.
#[derive(Debug)]
pub(crate) struct OrderText {
    /// Sums over degrees, on both parallels of a pair: into `cells` at `north` and `south`.
    pub(crate) synthesis: String,
    /// From the orders of the inputs on a parallel to those of the product.
    pub(crate) ring: String,
    /// From `north` and `south` to the degrees `z0`, `z1`, .. of the product.
    pub(crate) analysis: String,
    /// Rows of Legendre functions and weights, see the kernel.
    pub(crate) table: Vec<f32>,
}

/// The parts of a function on a ring of four longitudes, by what they do under `a -> -a` (cosines
/// are even) and under `a -> a + pi` (even orders are): products of two have the product of both.
const PARTS: [(&str, bool, u32); 4] =
    [("ce", true, 0), ("co", true, 1), ("se", false, 0), ("so", false, 1)];

impl OrderText {
    pub(crate) fn new(program: &Program, tiles: &OrderTiles) -> Self {
        Self {
            synthesis: synthesis(program, tiles),
            ring: ring(program),
            analysis: analysis(program, tiles),
            table: table(program, tiles),
        }
    }
}

fn element(l: u32) -> String {
    format!("t{}.{}", l / 4, ["x", "y", "z", "w"][l as usize % 4])
}

/// The row of the table, in registers.
fn row(out: &mut String, tiles: &OrderTiles) {
    for q in 0..tiles.quads() {
        let _ = writeln!(out, "let t{q} = legendre[row][{q}u];");
    }
}

fn synthesis(program: &Program, tiles: &OrderTiles) -> String {
    let mut out = String::new();
    row(&mut out, tiles);
    for (i, &lmax) in program.lmax.iter().enumerate() {
        for (first, name) in [(0, "a"), (1, "b")] {
            let sum = (first..=lmax).step_by(2).fold(String::new(), |sum, l| {
                let t = element(l);
                if sum.is_empty() {
                    format!("{t} * x{i}_{l}")
                } else {
                    format!("fma(vec2<f32>({t}), x{i}_{l}, {sum})")
                }
            });
            let sum = if sum.is_empty() { "vec2<f32>(0.0)".into() } else { sum };
            let _ = writeln!(out, "let {name}{i} = {sum};");
        }
    }
    out.push_str(
        "let even = vec4<f32>(a0, a1);\nlet odd = vec4<f32>(b0, b1);\n\
         cells[order][north] = even + odd;\ncells[order][south] = flip * (even - odd);\n",
    );
    out
}

fn ring(program: &Program) -> String {
    let quarter = program.nodes().quarter;
    let (top, live) = (program.lmax.iter().copied().max().unwrap_or(0), program.live_out());
    let mut out = String::new();
    for m in 0..=top {
        let _ = writeln!(out, "let o{m} = cells[{m}u][local];");
    }
    for m in 0..=live {
        let _ = writeln!(out, "var hc{m} = 0.0; var hs{m} = 0.0;");
    }
    let at = |m: u32, j: u32, cos: bool| literal(longitude(m, cos, j, quarter));
    for j in 0..quarter {
        out.push_str("{\n");
        for (i, &lmax) in program.lmax.iter().enumerate() {
            for (part, cos, odd) in PARTS {
                let component = ["x", "y", "z", "w"][2 * i + usize::from(!cos)];
                let terms: Vec<(String, String)> = (u32::from(!cos)..=lmax)
                    .filter(|m| m % 2 == odd)
                    .map(|m| {
                        let factor = if m == 0 { String::new() } else { at(m, j, cos) };
                        (factor, format!("o{m}.{component}"))
                    })
                    .collect();
                let _ = writeln!(out, "let f{i}{part} = {};", products(&terms));
            }
        }
        for (part, cos, odd) in PARTS {
            let terms: Vec<(String, String)> = PARTS
                .iter()
                .map(|(first, c, o)| {
                    let (second, ..) = PARTS
                        .iter()
                        .find(|(_, c2, o2)| (c == c2) == cos && (o + o2) % 2 == odd)
                        .unwrap_or(&PARTS[0]);
                    (format!("f0{first}"), format!("f1{second}"))
                })
                .collect();
            let _ = writeln!(out, "let g{part} = {};", products(&terms));
            for m in (u32::from(!cos)..=live).filter(|m| m % 2 == odd) {
                let h = format!("h{}{m}", if cos { "c" } else { "s" });
                let _ = if m == 0 {
                    writeln!(out, "{h} += g{part};")
                } else {
                    writeln!(out, "{h} = fma({}, g{part}, {h});", at(m, j, cos))
                };
            }
        }
        out.push_str("}\n");
    }
    for m in 0..=live {
        let _ = writeln!(out, "cells[{m}u][local] = vec4<f32>(hc{m}, hs{m}, 0.0, 0.0);");
    }
    out
}

fn analysis(program: &Program, tiles: &OrderTiles) -> String {
    let mut out = String::new();
    row(&mut out, tiles);
    let weight = element(tiles.orders);
    let _ = writeln!(out, "let even = {weight} * (north + south);");
    let _ = writeln!(out, "let odd = {weight} * (north - south);");
    for l in 0..=program.live_out() {
        let part = if l % 2 == 0 { "even" } else { "odd" };
        let _ = writeln!(out, "z{l} = fma(vec2<f32>({}), {part}, z{l});", element(l));
    }
    out
}

fn table(program: &Program, tiles: &OrderTiles) -> Vec<f32> {
    let columns = Columns::new(program);
    let pairs = program.nodes().pairs;
    let mut all = Vec::new();
    for pair in 0..tiles.rounds * tiles.pairs {
        for m in 0..tiles.orders {
            let mut row = vec![0.0; 4 * tiles.quads() as usize];
            // rows past the last pair are of weight 0
            if pair < pairs {
                for l in m..tiles.orders {
                    row[l as usize] = to_f32(columns.value(Column::Theta(l, m), pair));
                }
                // a part of the product is a mean over four longitudes, the sum is wanted
                let weight = 4.0 * columns.value(Column::Weight, pair);
                row[tiles.orders as usize] = to_f32(weight);
            }
            all.extend(row);
        }
    }
    all
}
