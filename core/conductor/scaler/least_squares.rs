//! Ordinary least squares: what a number has depended on, as a sum of a constant and so many times each column.
//!
//! Columns are centred, which gives the constant, and scaled to length 1, so that bytes and sines weigh the same; then
//! Householder's QR (Golub and Van Loan, *Matrix Computations*, 5.3) of the columns with the target beside them:
//!
//! ```text
//! [ Z | y − ȳ ] = Q · [ R  Qᵀy ]      β = R⁻¹ Qᵀy      residual sum of squares = ρ²
//!                     [ 0   ρ  ]
//! ```
//!
//! Rows go through it in blocks, each below the R of those before (the sequential form of TSQR; Demmel, Grigori, Hoemmen
//! and Langou, 2012), so that every matrix has a fixed size, stands on the stack, and nothing is allocated.
//!
//! | what comes | what becomes of it |
//! |---|---|
//! | a constant column | left out: its coefficient is 0 |
//! | a column that the ones before it give, to 1e-10 of its length | left out |
//! | columns that give one another to 1e-5 (a variance inflation of 1e10) | ridge: R over √λ·I, λ = 1e-8 |
//! | no more rows than coefficients | no fit |
//! | a number that is not finite, or whose square is not | no fit |

use nalgebra::{Const, DimMin, SMatrix, SVector, QR};

/// Most columns, without the constant.
pub const COLUMNS: usize = 7;
const WIDTH: usize = COLUMNS + 1;
/// The same of a fit without waves. Columns of zeros are turned with the rest and stay zeros, which takes more than all else.
const WIDTH_NARROW: usize = 4;
/// Rows that go through one decomposition: 60 rows, half an hour of samples, take one.
const BLOCK: usize = 64;
const STACK: usize = WIDTH + BLOCK;

/// A centred column is constant if it is this small beside its mean: what is left is rounding.
const CONSTANT: f64 = 1e-12;
/// A column of length 1 that sticks out this little from the space of those before is made of them and of rounding.
const DEPENDENT: f64 = 1e-10;
/// And this little: its coefficient would be noise, a hundred thousand times as large.
const COLLINEAR: f64 = 1e-5;
/// What ridge adds to the squared length of each column (Hoerl and Kennard, 1970). It outweighs the square of what is
/// collinear a hundredfold, and takes a hundred-millionth from what is not.
const RIDGE: f64 = 1e-8;

/// One observation, in any units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row {
    /// What it may depend on.
    pub columns: [f64; COLUMNS],
    /// What was observed.
    pub target: f64,
}

type Upper = SMatrix<f64, WIDTH, WIDTH>;

/// How a target depends on columns.
#[derive(Clone, Debug)]
pub struct Fit {
    rows: u32,
    degrees: u32,
    means: Row,
    coefficients: [f64; COLUMNS],
    residual_std: f64,
    is_ridge: bool,
    kept: Kept,
    /// R, with Qᵀy in the column after the last that was kept.
    triangle: Upper,
}

/// The columns that take part, in their order, and what brings each to length 1.
#[derive(Clone, Copy, Debug)]
struct Kept {
    count: usize,
    columns: [usize; COLUMNS],
    scales: [f64; COLUMNS],
}

impl Fit {
    /// Fits these rows, with those columns that are `used`. `None` if there are too few rows or a number is not finite.
    pub fn of<'a>(rows: impl Iterator<Item = &'a Row> + Clone, used: [bool; COLUMNS]) -> Option<Fit> {
        let (count, means) = means(rows.clone())?;
        let mut kept = varying(rows.clone(), count, &means, used);
        let mut triangle = decompose(rows, &means, &kept);
        while let Some(place) = first_below(DEPENDENT, &triangle, &kept) {
            leave_out(place, &mut triangle, &mut kept);
        }
        let degrees = count.checked_sub(1 + kept.count).filter(|degrees| *degrees > 0)?;
        let is_ridge = first_below(COLLINEAR, &triangle, &kept).is_some();
        if is_ridge {
            triangle = with_ridge(&triangle, kept.count);
        }
        let mut scaled: SVector<f64, WIDTH> = triangle.column(kept.count).into_owned();
        let rest = scaled[kept.count].powi(2);
        let square = triangle.view((0, 0), (kept.count, kept.count));
        if !square.solve_upper_triangular_mut(&mut scaled.rows_mut(0, kept.count)) {
            return None;
        }
        // With ridge, ρ² is the sum of squared residuals and of the penalty.
        let penalty = if is_ridge { RIDGE * scaled.rows(0, kept.count).norm_squared() } else { 0.0 };
        let mut coefficients = [0.0; COLUMNS];
        for place in 0..kept.count {
            coefficients[kept.columns[place]] = scaled[place] * kept.scales[place];
        }
        let residual_std = ((rest - penalty).max(0.0) / degrees as f64).sqrt();
        let is_finite = rest.is_finite() && coefficients.iter().all(|number| number.is_finite());
        is_finite.then_some(Fit {
            rows: count as u32,
            degrees: degrees as u32,
            means,
            coefficients,
            residual_std,
            is_ridge,
            kept,
            triangle,
        })
    }

    /// By how much the target grows with each column, in units of the one by units of the other; 0 of a column that was left
    /// out.
    pub fn coefficients(&self) -> [f64; COLUMNS] {
        self.coefficients
    }

    /// What the target is where every column is 0.
    pub fn intercept(&self) -> f64 {
        self.predict(&[0.0; COLUMNS])
    }

    /// What the target is expected to be with these columns: ȳ + Σ β (x − x̄).
    pub fn predict(&self, columns: &[f64; COLUMNS]) -> f64 {
        let terms =
            (0..COLUMNS).map(|column| self.coefficients[column] * (columns[column] - self.means.columns[column]));
        self.means.target + terms.sum::<f64>()
    }

    /// The standard error of that for one new observation, in units of the target: s √(1 + 1/n + z (RᵀR)⁻¹ zᵀ), where z are the
    /// columns centred and scaled. Times the quantile of [Student's t](super::student::two_sided) with [`Fit::degrees`] it is
    /// half the width of the prediction interval. With ridge it is that of the Bayesian whose prior is the ridge.
    pub fn prediction_error(&self, columns: &[f64; COLUMNS]) -> f64 {
        let mut centred = SVector::<f64, COLUMNS>::zeros();
        for place in 0..self.kept.count {
            let column = self.kept.columns[place];
            centred[place] = (columns[column] - self.means.columns[column]) * self.kept.scales[place];
        }
        let square = self.triangle.view((0, 0), (self.kept.count, self.kept.count));
        let mut weights = centred.rows_mut(0, self.kept.count);
        // It was solved once, so nothing on its diagonal is 0.
        let _ = square.tr_solve_upper_triangular_mut(&mut weights);
        self.residual_std * (1.0 + 1.0 / f64::from(self.rows) + weights.norm_squared()).sqrt()
    }

    /// The standard deviation of the residuals, in units of the target, over [`Fit::degrees`].
    pub fn residual_std(&self) -> f64 {
        self.residual_std
    }

    /// Rows less coefficients, the constant included; at least 1.
    pub fn degrees(&self) -> u32 {
        self.degrees
    }

    /// Whether columns were so close to one another that ridge had to tell them apart.
    pub fn is_ridge(&self) -> bool {
        self.is_ridge
    }

    /// Whether a column took part.
    pub fn has(&self, column: usize) -> bool {
        self.kept.columns[..self.kept.count].contains(&column)
    }
}

/// How many rows there are, and the mean of each column: from the first row on, so that a large offset costs no digits.
/// `None` of no rows, or if a mean is not finite.
fn means<'a>(mut rows: impl Iterator<Item = &'a Row>) -> Option<(usize, Row)> {
    let first = rows.next()?;
    let (mut count, mut sums) = (1, Row::default());
    for row in rows {
        count += 1;
        for column in 0..COLUMNS {
            sums.columns[column] += row.columns[column] - first.columns[column];
        }
        sums.target += row.target - first.target;
    }
    for column in 0..COLUMNS {
        sums.columns[column] = first.columns[column] + sums.columns[column] / count as f64;
    }
    sums.target = first.target + sums.target / count as f64;
    let is_finite = sums.target.is_finite() && sums.columns.iter().all(|mean| mean.is_finite());
    is_finite.then_some((count, sums))
}

/// The used columns that are not constant.
fn varying<'a>(rows: impl Iterator<Item = &'a Row>, count: usize, means: &Row, used: [bool; COLUMNS]) -> Kept {
    let mut squares = [0.0; COLUMNS];
    for row in rows {
        for ((square, number), mean) in squares.iter_mut().zip(&row.columns).zip(&means.columns) {
            *square += (number - mean).powi(2);
        }
    }
    let mut kept = Kept { count: 0, columns: [0; COLUMNS], scales: [0.0; COLUMNS] };
    for column in (0..COLUMNS).filter(|column| used[*column]) {
        let length = squares[column].sqrt();
        let noise = CONSTANT * means.columns[column].abs() * (count as f64).sqrt();
        if length > noise.max(f64::MIN_POSITIVE) {
            kept.columns[kept.count] = column;
            kept.scales[kept.count] = length.recip();
            kept.count += 1;
        }
    }
    kept
}

/// R of the kept columns with the target beside them; what is to the right of that is 0.
fn decompose<'a>(rows: impl Iterator<Item = &'a Row>, means: &Row, kept: &Kept) -> Upper {
    if kept.count >= WIDTH_NARROW {
        return decompose_in::<WIDTH>(rows, means, kept);
    }
    let mut triangle = Upper::zeros();
    let narrow = decompose_in::<WIDTH_NARROW>(rows, means, kept);
    triangle.fixed_view_mut::<WIDTH_NARROW, WIDTH_NARROW>(0, 0).copy_from(&narrow);
    triangle
}

/// The same in so many columns.
fn decompose_in<'a, const COUNT: usize>(
    rows: impl Iterator<Item = &'a Row>,
    means: &Row,
    kept: &Kept,
) -> SMatrix<f64, COUNT, COUNT>
where
    Const<STACK>: DimMin<Const<COUNT>, Output = Const<COUNT>>,
{
    let mut stack = SMatrix::<f64, STACK, COUNT>::zeros();
    let mut filled = WIDTH;
    for row in rows {
        if filled == STACK {
            let above = QR::new(stack).unpack_r();
            stack.fill(0.0);
            stack.fixed_rows_mut::<COUNT>(0).copy_from(&above);
            filled = WIDTH;
        }
        for place in 0..kept.count {
            let column = kept.columns[place];
            stack[(filled, place)] = (row.columns[column] - means.columns[column]) * kept.scales[place];
        }
        stack[(filled, kept.count)] = row.target - means.target;
        filled += 1;
    }
    QR::new(stack).unpack_r()
}

/// The first kept column that sticks out less than this from those before it.
fn first_below(bound: f64, triangle: &Upper, kept: &Kept) -> Option<usize> {
    (0..kept.count).find(|place| triangle[(*place, *place)] < bound)
}

/// Takes a kept column out, and brings the rest to triangular form again.
fn leave_out(place: usize, triangle: &mut Upper, kept: &mut Kept) {
    for after in place + 1..=kept.count {
        let column = triangle.column(after).into_owned();
        triangle.set_column(after - 1, &column);
    }
    triangle.column_mut(kept.count).fill(0.0);
    kept.columns.copy_within(place + 1.., place);
    kept.scales.copy_within(place + 1.., place);
    kept.count -= 1;
    *triangle = QR::new(*triangle).unpack_r();
}

/// R of the columns with √λ·I below them.
fn with_ridge(triangle: &Upper, count: usize) -> Upper {
    let mut stack = SMatrix::<f64, { 2 * WIDTH }, WIDTH>::zeros();
    stack.fixed_rows_mut::<WIDTH>(0).copy_from(triangle);
    for place in 0..count {
        stack[(WIDTH + place, place)] = RIDGE.sqrt();
    }
    QR::new(stack).unpack_r()
}

#[cfg(test)]
#[path = "least_squares/tests.rs"]
mod tests;
