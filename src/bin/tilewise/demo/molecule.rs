//! Atoms of a molecule told apart by invariants of the densities of their neighbours.
//!
//! Around atom `i` the neighbours of one element, weighted by a function of their distance, are a
//! density on the sphere: `A_i = sum_j phi(r_ij) Y(r_ij)`, by element and radial function (a
//! channel each). That is a convolution over the pairs of atoms, with a filter of the distance.
//! Gaunt products then make what turns with the molecule, and contractions what does not:
//! `sum_m A_lm A_lm` (pairs of neighbours) and `sum_m A_lm (A A)_lm` (triples), for every degree.
#![expect(clippy::cast_possible_truncation, reason = "atoms are few, positions are f32")]

use std::path::Path;

use image::RgbImage;
use tilewise::{
    Context, DType, Layout, Tensor, TensorView,
    gaunt::{
        Algorithm, GauntArgs, GauntConvolution, GauntConvolutionArgs, GauntNormalization,
        GauntShape, GauntTensorProduct, Graph, ShNormalization, SortedEdges,
    },
    measure, reference, wgpu,
};

use super::{Noise, line, relative_rms};
use crate::Failure;

/// See assets/README.md.
const CAFFEINE: &str = include_str!("../../../../assets/caffeine.xyz");
/// Degree of the densities.
const LMAX: u32 = 6;
const DIM: u32 = (LMAX + 1) * (LMAX + 1);
const ELEMENTS: [&str; 4] = ["H", "C", "N", "O"];
/// Centres of the Gaussians that tell distances apart, and their width, in angstrom.
const CENTRES: [f64; 4] = [1.0, 1.9, 2.8, 3.7];
const WIDTH: f64 = 0.6;
/// Atoms farther apart do not see each other, in angstrom.
const CUTOFF: f64 = 5.0;
const CHANNELS: u32 = (ELEMENTS.len() * CENTRES.len()) as u32;
/// Turned copies of the molecule; every second one is mirrored too.
const TURNS: usize = 12;
const SEED: u64 = 1820;
/// Largest relative change under rotation, permutation and symmetry.
const MAX_CHANGE: f64 = 1e-5;
/// Largest relative RMS error against f64.
const MAX_ERROR: f64 = 1e-5;
/// An atom moved so far, in angstrom, must change its descriptor by so much, relatively.
const NUDGE: (f32, f64) = (0.05, 1e-3);
/// Bonds of the fullerene C60 between a pentagon and a hexagon, and between two hexagons, in
/// angstrom (electron diffraction: Hedberg et al. 1991, Science 254, 410).
const FULLERENE_BONDS: [f64; 2] = [1.458, 1.401];

#[derive(Clone, Copy)]
struct Atom {
    /// Place in `ELEMENTS`.
    element: usize,
    at: [f32; 3],
}

/// Every atom's invariants: `[order][atom][channel][degree]`, of pairs and of triples.
type Descriptors = [Vec<f32>; 2];

pub(super) fn run(ctx: &Context, _: &RgbImage, _: &Path) -> Result<(), Failure> {
    let caffeine = parse(CAFFEINE)?;
    let n = caffeine.len();
    let mut noise = Noise(SEED);
    let mut copies = vec![caffeine.clone()];
    copies.extend((0..TURNS).map(|k| turned(&caffeine, &mut noise, k % 2 == 1)));
    // the order reversed and rotated is as good as any
    let shuffled: Vec<usize> = (0..n).rev().map(|k| (k + 7) % n).collect();
    copies.push(shuffled.iter().map(|&k| caffeine[k]).collect());
    let mut nudged = caffeine.clone();
    nudged[0].at[0] += NUDGE.0;
    copies.push(nudged);
    let all = Molecules::new(&copies)?;
    let (descriptors, speed) = all.describe(ctx)?;
    let atoms = |copy: usize| copy * n..(copy + 1) * n;

    let error = all.error(&descriptors, n);
    let turns = (1..=TURNS)
        .flat_map(|k| (0..n).map(move |i| (k, i)))
        .map(|(k, i)| difference(&descriptors, k * n + i, i))
        .fold(0.0, f64::max);
    let order = shuffled
        .iter()
        .zip(atoms(TURNS + 1))
        .map(|(&k, i)| difference(&descriptors, i, k))
        .fold(0.0, f64::max);
    let nudge = difference(&descriptors, atoms(TURNS + 2).start, 0);
    let mut pairs: Vec<(f64, usize, usize)> = (0..n)
        .flat_map(|i| (i + 1..n).map(move |j| (i, j)))
        .map(|(i, j)| (difference(&descriptors, i, j), i, j))
        .collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));

    let fullerene = Molecules::new(&[fullerene()])?;
    let (ball, _) = fullerene.describe(ctx)?;
    let equal = (1..60).map(|i| difference(&ball, i, 0)).fold(0.0, f64::max);

    let name = |i: usize| format!("{}{}", ELEMENTS[caffeine[i].element], i + 1);
    line(
        "molecule",
        format!(
            "caffeine, {n} atoms; in all {} copies, {} pairs of atoms within {CUTOFF} A",
            copies.len(),
            all.edges.len()
        ),
    );
    line(
        "descriptor",
        format!(
            "{CHANNELS} densities to degree {LMAX}, pairs and triples by degree: {} numbers an atom",
            CHANNELS * (LMAX + 1) * 2
        ),
    );
    line("error against f64", format!("{error:.1e} relative RMS"));
    line("turned and mirrored", format!("{turns:.1e} at most, over {TURNS} copies"));
    line("atoms in another order", format!("{order:.1e} at most"));
    line(format!("{} moved by {} A", name(0), NUDGE.0).as_str(), format!("{nudge:.1e}"));
    let shown: Vec<String> =
        pairs[..4].iter().map(|&(d, i, j)| format!("{}~{} {d:.1e}", name(i), name(j))).collect();
    line(
        "closest atoms",
        format!("{} (the first two are mirror twins to 0.001 A)", shown.join(", ")),
    );
    line("C60, all 60 atoms alike", format!("{equal:.1e} at most"));
    speed.report();

    for (what, got, limit) in [
        ("the error against f64", error, MAX_ERROR),
        ("the change under rotation", turns, MAX_CHANGE),
        ("the change under permutation", order, MAX_CHANGE),
        ("the difference of equal atoms", equal, MAX_CHANGE),
        ("the inverse of the change by a nudge", nudge.recip(), NUDGE.1.recip()),
    ] {
        if got.is_nan() || got > limit {
            return Err(format!("{what} is {got:.1e}, at most {limit:.0e} wanted").into());
        }
    }
    Ok(())
}

/// Relative RMS distance of two atoms' descriptors, the larger of both orders.
fn difference(d: &Descriptors, i: usize, j: usize) -> f64 {
    let n = (CHANNELS * (LMAX + 1)) as usize;
    let one = |d: &[f32]| {
        let want: Vec<f64> = d[j * n..][..n].iter().map(|&x| x.into()).collect();
        relative_rms(&d[i * n..][..n], &want)
    };
    one(&d[0]).max(one(&d[1]))
}

/// Atoms of an xyz file.
fn parse(text: &str) -> Result<Vec<Atom>, Failure> {
    let mut lines = text.lines();
    let count: usize = lines.next().unwrap_or_default().trim().parse()?;
    let atoms: Vec<Atom> = lines
        .skip(1)
        .map(|line| {
            let mut words = line.split_whitespace();
            let element = words.next().unwrap_or_default();
            let element = ELEMENTS.iter().position(|e| *e == element);
            let mut at = [0.0; 3];
            for x in &mut at {
                *x = words.next().unwrap_or_default().parse()?;
            }
            let element = element.ok_or_else(|| format!("an unknown element: {line}"))?;
            Ok(Atom { element, at })
        })
        .collect::<Result<_, Failure>>()?;
    if atoms.len() == count { Ok(atoms) } else { Err("a wrong number of atoms".into()) }
}

/// The molecule turned at random about a random point, and mirrored or not.
fn turned(atoms: &[Atom], noise: &mut Noise, mirrored: bool) -> Vec<Atom> {
    let mut q = [0; 4].map(|_| noise.normal());
    let length = q.iter().map(|x| x * x).sum::<f64>().sqrt();
    q.iter_mut().for_each(|x| *x /= length);
    let [w, x, y, z] = q;
    let rows = [
        [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)],
        [2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)],
        [2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)],
    ];
    let shift = [0; 3].map(|_| noise.normal());
    let sign = if mirrored { -1.0 } else { 1.0 };
    let turn = |atom: &Atom| {
        let mut at = [0.0; 3];
        for ((at, row), shift) in at.iter_mut().zip(&rows).zip(shift) {
            let sum: f64 = row.iter().zip(atom.at).map(|(r, x)| r * f64::from(x)).sum();
            *at = (sign * sum + shift) as f32;
        }
        Atom { at, ..*atom }
    };
    atoms.iter().map(turn).collect()
}

/// A truncated icosahedron: two atoms on every edge of an icosahedron. Those next to a corner make
/// a pentagon, whose side is their distance from the corner; the two on an edge share the other
/// bond.
fn fullerene() -> Vec<Atom> {
    let [pentagon, shared] = FULLERENE_BONDS;
    let edge = 2.0 * pentagon + shared;
    let golden = f64::midpoint(1.0, 5f64.sqrt());
    // corners of an icosahedron of edge 2
    let mut corners = Vec::new();
    for (a, b) in [(1.0, golden), (-1.0, golden), (1.0, -golden), (-1.0, -golden)] {
        corners.extend([[0.0, a, b], [a, b, 0.0], [b, 0.0, a]]);
    }
    let mut atoms = Vec::new();
    for c in &corners {
        for d in &corners {
            let apart: f64 = c.iter().zip(d).map(|(c, d)| (c - d) * (c - d)).sum();
            if (apart - 4.0).abs() < 1e-9 {
                let mut at = [0.0; 3];
                for ((at, c), d) in at.iter_mut().zip(c).zip(d) {
                    *at = (edge / 2.0 * (c + (d - c) * pentagon / edge)) as f32;
                }
                atoms.push(Atom { element: 1, at });
            }
        }
    }
    atoms
}

/// Some molecules side by side: nodes are atoms, edges the pairs that see each other.
struct Molecules {
    features: Vec<f32>,
    edges: Vec<[u32; 2]>,
    vectors: Vec<[f32; 3]>,
    /// `[edges, channels, LMAX + 1]`
    filters: Vec<f32>,
    nodes: u32,
}

/// Times of the product on all densities.
struct Speed {
    products: u32,
    seconds: [f64; 2],
    chosen: Algorithm,
    clock: measure::Clock,
}

impl Speed {
    fn report(&self) {
        let [planned, table] = self.seconds.map(|s| s * 1e3);
        line(
            "time",
            format!(
                "{planned:.2} ms for {} products by the {:?} route; by the coefficient table {table:.1} ms, {:.0} times as long ({})",
                self.products,
                self.chosen,
                table / planned,
                self.clock
            ),
        );
    }
}

impl Molecules {
    fn new(molecules: &[Vec<Atom>]) -> Result<Self, Failure> {
        let mut all = Self {
            features: Vec::new(),
            edges: Vec::new(),
            vectors: Vec::new(),
            filters: Vec::new(),
            nodes: 0,
        };
        for atoms in molecules {
            for (i, destination) in atoms.iter().enumerate() {
                for (j, source) in atoms.iter().enumerate() {
                    let r: [f32; 3] = std::array::from_fn(|k| source.at[k] - destination.at[k]);
                    let length = r.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                    if i == j || length >= CUTOFF {
                        continue;
                    }
                    all.edges.push([all.nodes + j as u32, all.nodes + i as u32]);
                    all.vectors.push(r);
                    for channel in 0..CHANNELS as usize {
                        let x = (length - CENTRES[channel % CENTRES.len()]) / WIDTH;
                        let fade = 0.5 + 0.5 * (std::f64::consts::PI * length / CUTOFF).cos();
                        let filter = ((-0.5 * x * x).exp() * fade) as f32;
                        all.filters.extend([filter; LMAX as usize + 1]);
                    }
                }
                // a channel sees one element
                let seen = (0..CHANNELS as usize)
                    .map(|c| if c / CENTRES.len() == destination.element { 1.0 } else { 0.0 });
                all.features.extend(seen);
            }
            all.nodes += atoms.len() as u32;
        }
        tilewise::gaunt::check_directions(&all.vectors)?;
        let sorted = SortedEdges::new(all.nodes, &all.edges)?;
        all.vectors = sorted.sort("vectors", &all.vectors)?;
        all.filters = sorted.sort("filters", &all.filters)?;
        all.edges = sorted.edges().to_vec();
        Ok(all)
    }

    /// Densities, products, contractions, all on the device.
    fn describe(&self, ctx: &Context) -> Result<(Descriptors, Speed), Failure> {
        let (nodes, edges) = (self.nodes, self.edges.len() as u32);
        let convolution = GauntConvolution {
            lmax2: LMAX,
            lmax_out: LMAX,
            // a feature of 1 leaves the harmonics as they are
            normalization: GauntNormalization::Identity,
            ..Default::default()
        };
        let graph = Graph { nodes, edges: &self.edges };
        let convolution = convolution.plan(ctx, graph, CHANNELS)?;
        let features = Tensor::upload(ctx, [nodes, CHANNELS, 1], &self.features)?;
        let vectors = Tensor::upload(ctx, [edges, 3], self.vectors.as_flattened())?;
        let filters = Tensor::upload(ctx, [edges, CHANNELS, LMAX + 1], &self.filters)?;
        let harmonics = Tensor::zeros(ctx, [edges, DIM], DType::F32)?;
        let messages = Tensor::zeros(ctx, [edges, CHANNELS, DIM], DType::F32)?;
        let densities = Tensor::<3>::zeros(ctx, [nodes, CHANNELS, DIM], DType::F32)?;
        let squares = Tensor::<3>::zeros(ctx, [nodes, CHANNELS, DIM], DType::F32)?;

        let shape = GauntShape { batch: nodes, channels: CHANNELS };
        let product = GauntTensorProduct {
            normalization: GauntNormalization::Identity,
            ..GauntTensorProduct::new(LMAX, LMAX)
        };
        let [planned, table] = [None, Some(Algorithm::Table)]
            .map(|algorithm| GauntTensorProduct { algorithm, ..product }.plan(ctx, shape));
        let (planned, table) = (planned?, table?);
        // the scalar part of a product is the sum over all m of all degrees; with weights that are
        // 1 for one degree and 0 for the others, one row for each degree, it is that of the degree
        let rows = nodes * CHANNELS;
        let contraction = GauntTensorProduct { lmax_out: 0, ..product }
            .plan(ctx, GauntShape { batch: rows, channels: LMAX + 1 })?;
        let unit = LMAX as usize + 1;
        let one_degree: Vec<f32> =
            (0..unit * unit).map(|k| if k / unit == k % unit { 1.0 } else { 0.0 }).collect();
        let one_degree = Tensor::upload(ctx, [LMAX + 1, LMAX + 1], &one_degree)?;
        let repeated =
            Layout { shape: [rows, LMAX + 1, DIM], strides: [u64::from(DIM), 0, 1], offset: 0 };
        let invariants = [0; 2].map(|_| Tensor::<3>::zeros(ctx, [rows, LMAX + 1, 1], DType::F32));
        let [pairs, triples] = invariants;
        let (pairs, triples) = (pairs?, triples?);

        let multiply = |pass: &mut wgpu::ComputePass<'_>, plan: &tilewise::gaunt::GauntPlan| {
            let a = densities.view();
            plan.encode_pass(ctx, pass, &GauntArgs::new(a, a, squares.view()))
        };
        measure::time(ctx, 1, |pass| {
            let args = GauntConvolutionArgs {
                x: features.view(),
                r: vectors.view(),
                filter: filters.view(),
                y: harmonics.view(),
                messages: messages.view(),
                out: Some(densities.view()),
                scratch: None,
            };
            convolution.encode_pass(ctx, pass, &args)?;
            multiply(pass, &planned)?;
            let contract = |pass: &mut _, y: &Tensor<3>, z: TensorView<'_, 3>| {
                let args = GauntArgs {
                    weight1: Some(one_degree.view()),
                    ..GauntArgs::new(densities.view_as(repeated)?, y.view_as(repeated)?, z)
                };
                contraction.encode_pass(ctx, pass, &args)
            };
            contract(pass, &densities, pairs.view())?;
            contract(pass, &squares, triples.view())
        })?;
        let descriptors = [pairs.download(ctx)?, triples.download(ctx)?];
        let mut seconds = [Vec::new(), Vec::new()];
        let mut clock = measure::Clock::Wall;
        for sample in 0..4 {
            for (plan, seconds) in [&planned, &table].into_iter().zip(&mut seconds) {
                let timing = measure::time(ctx, 1, |pass| multiply(pass, plan))?;
                clock = timing.clock;
                // the first also pays for the driver's compiler
                if sample > 0 {
                    seconds.push(timing.seconds);
                }
            }
        }
        let speed = Speed {
            products: rows,
            seconds: seconds.map(|mut s| measure::median(&mut s)),
            chosen: planned.options().algorithm.unwrap_or(Algorithm::Grid),
            clock,
        };
        Ok((descriptors, speed))
    }

    /// Relative RMS error of the first `atoms` against f64, the larger of both orders.
    fn error(&self, got: &Descriptors, atoms: usize) -> f64 {
        let (dim, channels) = (DIM as usize, CHANNELS as usize);
        let mut densities = vec![0.0; atoms * channels * dim];
        let inside = |e: &&(usize, &[u32; 2])| (e.1[1] as usize) < atoms;
        for (e, [source, destination]) in self.edges.iter().enumerate().filter(|e| inside(&e)) {
            let r = self.vectors[e].map(f64::from);
            let y = reference::spherical_harmonics(LMAX, ShNormalization::Integral, &r);
            for c in 0..channels {
                let filter = f64::from(self.filters[(e * channels + c) * (LMAX as usize + 1)])
                    * f64::from(self.features[*source as usize * channels + c]);
                let at = (*destination as usize * channels + c) * dim;
                densities[at..][..dim].iter_mut().zip(&y).for_each(|(d, y)| *d += filter * y);
            }
        }
        let scale = GauntNormalization::Identity.factor();
        let squares = reference::gaunt_tensor_product(LMAX, LMAX, LMAX, &densities, &densities);
        let mut want = [Vec::new(), Vec::new()];
        for (a, b) in densities.chunks(dim).zip(squares.chunks(dim)) {
            for l in 0..=LMAX as usize {
                let degree = l * l..(l + 1) * (l + 1);
                let dot = |b: &[f64]| -> f64 {
                    a[degree.clone()].iter().zip(&b[degree.clone()]).map(|(a, b)| a * b).sum()
                };
                want[0].push(dot(a));
                want[1].push(scale * dot(b));
            }
        }
        let [pairs, triples] = [0, 1].map(|k| relative_rms(&got[k][..want[k].len()], &want[k]));
        pairs.max(triples)
    }
}

#[cfg(test)]
mod tests {
    use super::{CAFFEINE, FULLERENE_BONDS, fullerene, parse};

    #[test]
    fn molecules_are_what_they_should_be() {
        let caffeine = parse(CAFFEINE).unwrap();
        let count = |element| caffeine.iter().filter(|a| a.element == element).count();
        // C8 H10 N4 O2
        assert_eq!([count(0), count(1), count(2), count(3)], [10, 8, 4, 2]);
        let ball = fullerene();
        assert_eq!(ball.len(), 60);
        for a in &ball {
            let mut near: Vec<f64> = ball
                .iter()
                .map(|b| {
                    let square = |k: usize| f64::from(a.at[k] - b.at[k]).powi(2);
                    (square(0) + square(1) + square(2)).sqrt()
                })
                .collect();
            near.sort_by(f64::total_cmp);
            let [pentagon, shared] = FULLERENE_BONDS;
            for (got, want) in near[1..5].iter().zip([shared, pentagon, pentagon, 2.3]) {
                // three bonds, then nothing for long
                let good = if want == 2.3 { *got > want } else { (got - want).abs() < 1e-5 };
                assert!(good, "{near:?}");
            }
        }
        assert!(parse("1\n\nXx 0 0 0").is_err() && parse("2\n\nH 0 0 0").is_err());
    }
}
