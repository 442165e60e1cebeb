//! Gaunt tensor products.

mod basis;

/// Scale of real spherical harmonics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ShNormalization {
    /// Orthonormal on the sphere: the integral of `Y^2` is 1. The Gaunt product's basis.
    #[default]
    Integral,
    /// `sum_m Y_lm^2 = 2 l + 1`.
    Component,
    /// `sum_m Y_lm^2 = 1`.
    Norm,
}

impl ShNormalization {
    /// What orthonormal harmonics of degree `l` are multiplied by.
    pub fn factor(self, l: u32) -> f64 {
        let four_pi = 4.0 * std::f64::consts::PI;
        match self {
            Self::Integral => 1.0,
            Self::Component => four_pi.sqrt(),
            Self::Norm => (four_pi / f64::from(2 * l + 1)).sqrt(),
        }
    }
}

