//! Quantiles of Student's t distribution, for whole degrees of freedom.
//!
//! With a whole number of degrees ν the probability within ±t is a finite sum of positive terms in θ = atan(t / √ν)
//! (Abramowitz and Stegun, 26.7.3 and 26.7.4):
//!
//! ```text
//! ν odd:   A = 2/π · (θ + sin θ · (cos θ + 2/3 cos³ θ + … + (2·4···(ν−3))/(1·3···(ν−2)) cos^(ν−2) θ))
//! ν even:  A = sin θ · (1 + 1/2 cos² θ + … + (1·3···(ν−3))/(2·4···(ν−2)) cos^(ν−2) θ)
//! ```
//!
//! It is concave in θ, and its slope is the last term of the sum once more, so that Newton's steps from 0 come to the
//! quantile from below and cannot pass it.

use std::f64::consts::{FRAC_PI_2, PI};

/// Newton's steps double the right digits; from 0 to 95 % they are fewer than ten.
const STEPS_MAX: u32 = 64;

/// The t that a variable of Student's distribution with so many degrees of freedom stays within, on both sides, with this
/// probability: 0.95 gives the factor of a 95 % interval. Right to 1e-10 of itself for probabilities up to 0.999.
///
/// The probability is held to 0 to 1 − 1e-12, and degrees to 1 or more; it takes time in proportion to the degrees, about
/// 1 µs for a hundred.
pub fn two_sided(probability: f64, degrees: u32) -> f64 {
    let (wanted, degrees) = (probability.clamp(0.0, 1.0 - 1e-12), degrees.max(1));
    let mut theta = 0.0f64;
    for _ in 0..STEPS_MAX {
        let (within, slope) = within(theta, degrees);
        let step = (wanted - within) / slope;
        let next = (theta + step).min(FRAC_PI_2);
        if step.is_nan() || next <= theta {
            break;
        }
        theta = next;
    }
    f64::from(degrees).sqrt() * theta.tan()
}

/// The probability within ±θ, and how it grows with θ.
fn within(theta: f64, degrees: u32) -> (f64, f64) {
    let (sine, cosine) = theta.sin_cos();
    let is_odd = degrees % 2 == 1;
    // The first of each sum: cos θ with the factor 2/π, or 1.
    let mut power = if is_odd { cosine } else { 1.0 };
    let (mut sum, mut term) = (0.0, 0.0);
    let mut order = if is_odd { 3 } else { 2 };
    let mut coefficient = 1.0;
    while order <= degrees {
        term = coefficient * power;
        sum += term;
        coefficient *= f64::from(order - 1) / f64::from(order);
        power *= cosine * cosine;
        order += 2;
    }
    match is_odd {
        true if degrees == 1 => (theta * 2.0 / PI, 2.0 / PI),
        true => ((theta + sine * sum) * 2.0 / PI, f64::from(degrees - 1) * term * cosine * 2.0 / PI),
        false => (sine * sum, f64::from(degrees - 1) * term * cosine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_agree_with_those_of_scipy() {
        let mut compared = 0;
        for line in include_str!("../../../tests/fixtures/scaler/student.txt").lines() {
            let numbers: Vec<f64> = line.split(' ').map(|word| word.parse().expect("it is a number")).collect();
            let [probability, degrees, wanted] = numbers[..] else { panic!("{line:?} has not three numbers") };
            let found = two_sided(probability, degrees as u32);
            assert!((found / wanted - 1.0).abs() < 1e-10, "{probability} {degrees}: {found} instead of {wanted}");
            compared += 1;
        }
        assert!(compared > 100, "only {compared} were compared");
    }

    #[test]
    fn one_and_two_degrees_have_their_closed_forms() {
        assert!((two_sided(0.95, 1) - (PI * 0.475).tan()).abs() < 1e-12 * 12.7);
        assert!((two_sided(0.95, 2) - 0.95 * (2.0 / (1.0 - 0.95f64.powi(2))).sqrt()).abs() < 1e-12 * 4.3);
    }

    #[test]
    fn what_is_no_probability_or_no_degree_has_an_answer() {
        assert_eq!(two_sided(0.0, 5), 0.0);
        assert_eq!(two_sided(-3.0, 5), 0.0);
        assert_eq!(two_sided(0.95, 0), two_sided(0.95, 1));
        for probability in [1.0, 2.0, f64::INFINITY, f64::NAN] {
            assert!(two_sided(probability, 30).is_finite(), "{probability}");
        }
    }
}
