//! Compares an output with the wanted one.

use super::case::{CaseTensor, Data, Tolerance};

/// What was measured of an output that passed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distance {
    /// Largest absolute difference over the finite entries.
    pub max_abs: f64,
    /// `||got - want|| / ||want||` over the finite entries; 0 if `want` is all zero.
    pub rel_l2: f64,
    /// How much of the tolerance that takes: the largest of `|got - want| / (atol + rtol * |want|)`
    /// and of the relative Euclidean error over its limit. At most 1; 0 where equality is wanted.
    pub of_tolerance: f64,
}

/// Judges `got`, of shape `shape`, against `want`.
///
/// Passes when the shapes are equal, the non-finite entries are the same ones with the same
/// values, `|got - want| <= atol + rtol * |want|` everywhere else, and the relative Euclidean
/// error is at most `rel_l2`.
///
/// # Errors
/// The first of these rules that is broken, with the numbers.
pub fn judge(
    want: &CaseTensor,
    shape: &[u32],
    got: &[f32],
    tolerance: Tolerance,
) -> Result<Distance, String> {
    if shape != want.shape {
        return Err(format!("shape {shape:?}, wanted {:?}", want.shape));
    }
    let want: Vec<f64> = match &want.data {
        Data::F32(v) => v.iter().map(|&x| x.into()).collect(),
        Data::U8(v) => v.iter().map(|&x| x.into()).collect(),
        Data::I32(v) => v.iter().map(|&x| x.into()).collect(),
    };
    if got.len() != want.len() {
        return Err(format!("{} entries for shape {shape:?}, wanted {}", got.len(), want.len()));
    }
    let pairs: Vec<(f64, f64)> = want.into_iter().zip(got.iter().map(|&x| x.into())).collect();

    let Tolerance::Close { atol, rtol, rel_l2 } = tolerance else {
        let differ = pairs.iter().filter(|(w, g)| w != g).count();
        return match pairs.iter().position(|(w, g)| w != g) {
            None => Ok(Distance::default()),
            Some(i) => Err(format!(
                "{differ} of {} entries differ where equality is wanted; entry {i}: wanted {}, got {}",
                pairs.len(),
                pairs[i].0,
                got[i]
            )),
        };
    };

    let same = |w: f64, g: f64| w.is_finite() || w == g || (w.is_nan() && g.is_nan());
    if let Some(i) = pairs.iter().position(|&(w, g)| !same(w, g)) {
        let count = pairs.iter().filter(|&&(w, g)| !same(w, g)).count();
        return Err(format!(
            "{count} non-finite entries differ; entry {i}: wanted {}, got {}",
            pairs[i].0, got[i]
        ));
    }
    let finite: Vec<(usize, f64, f64)> = pairs
        .iter()
        .enumerate()
        .filter(|(_, (w, _))| w.is_finite())
        .map(|(i, &(w, g))| (i, w, g))
        .collect();
    if let Some(&(i, w, _)) = finite.iter().find(|(_, _, g)| !g.is_finite()) {
        let count = finite.iter().filter(|(_, _, g)| !g.is_finite()).count();
        return Err(format!(
            "{count} non-finite entries where finite ones are wanted; entry {i}: wanted {w}, got {}",
            got[i]
        ));
    }

    let mut distance = Distance::default();
    let (mut over, mut worst) = (0, None);
    let (mut error2, mut want2) = (0.0, 0.0);
    for &(i, w, g) in &finite {
        let e = (g - w).abs();
        error2 += e * e;
        want2 += w * w;
        if e > atol + rtol * w.abs() {
            over += 1;
            if worst.is_none() || e > distance.max_abs {
                worst = Some((i, w));
            }
        }
        distance.max_abs = distance.max_abs.max(e);
        if e > 0.0 {
            distance.of_tolerance = distance.of_tolerance.max(e / (atol + rtol * w.abs()));
        }
    }
    if want2 > 0.0 {
        distance.rel_l2 = (error2 / want2).sqrt();
        if distance.rel_l2 > 0.0 {
            distance.of_tolerance = distance.of_tolerance.max(distance.rel_l2 / rel_l2);
        }
    }
    if let Some((i, w)) = worst {
        return Err(format!(
            "{over} of {} entries over atol {atol:.3e} + rtol {rtol:.3e}; largest error {:.3e}, relative L2 {:.3e}; entry {i}: wanted {w}, got {}",
            finite.len(),
            distance.max_abs,
            distance.rel_l2,
            got[i]
        ));
    }
    if distance.rel_l2 > rel_l2 {
        return Err(format!(
            "relative L2 {:.3e} over {rel_l2:.3e}; largest error {:.3e}",
            distance.rel_l2, distance.max_abs
        ));
    }
    Ok(distance)
}
