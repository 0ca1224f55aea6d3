//! From a pooled hidden state to what a client asked for: truncate, normalise, quantise, encode, in that order, always.
//!
//! In: one row of the engine. Out: [`Values`] of a chosen [`Quantization`], or their little-endian bytes.

mod quantize;

pub use quantize::{Quantization, Values, quantize};

/// Fewest dimensions a client may ask for.
pub const MIN_DIMENSIONS: usize = 64;
/// Below this length a vector is divided by it instead: `torch.nn.functional.normalize`'s epsilon.
const MIN_NORM: f64 = 1e-12;
/// How far the length of a normalised vector may be from 1.
const NORM_TOLERANCE: f64 = 1e-3;

/// What is wrong with a vector, or with the dimensions asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum VectorError {
    /// More or fewer dimensions than the model gives.
    #[error("dimensions is {dimensions}, it must be between {minimum} and {maximum}")]
    Dimensions {
        /// What was asked for.
        dimensions: u64,
        /// Lowest.
        minimum: usize,
        /// The model's own size.
        maximum: usize,
    },
    /// A NaN or an infinity, or a length that is not 1: the model or the device is at fault.
    #[error("the model returned a vector that is not finite or has no length")]
    NotFinite,
}

/// Checks a Matryoshka size against the model's: any value in `64..=hidden` will do.
///
/// # Errors
/// [`VectorError::Dimensions`].
pub fn check_dimensions(dimensions: u64, hidden_size: usize) -> Result<usize, VectorError> {
    let minimum = MIN_DIMENSIONS.min(hidden_size);
    let out_of_range = VectorError::Dimensions {
        dimensions,
        minimum,
        maximum: hidden_size,
    };
    let dimensions = usize::try_from(dimensions).map_err(|_| out_of_range.clone())?;
    if (minimum..=hidden_size).contains(&dimensions) {
        Ok(dimensions)
    } else {
        Err(out_of_range)
    }
}

/// Cuts a row to its first `dimensions` values, then brings it to length 1 when `normalize`.
///
/// # Errors
/// [`VectorError::NotFinite`].
pub fn truncate(
    row: &[f32],
    dimensions: Option<usize>,
    normalize: bool,
) -> Result<Vec<f32>, VectorError> {
    let mut vector = row[..dimensions.unwrap_or(row.len()).min(row.len())].to_vec();
    if normalize {
        let norm = length(&vector).max(MIN_NORM);
        for value in &mut vector {
            *value = (f64::from(*value) / norm) as f32;
        }
    }
    let finite = vector.iter().all(|value| value.is_finite());
    if !finite || (normalize && (length(&vector) - 1.0).abs() > NORM_TOLERANCE) {
        return Err(VectorError::NotFinite);
    }
    Ok(vector)
}

fn length(vector: &[f32]) -> f64 {
    vector
        .iter()
        .map(|&value| f64::from(value) * f64::from(value))
        .sum::<f64>()
        .sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dimensions_outside_the_range_are_refused_with_both_ends() {
        assert_eq!(check_dimensions(64, 2048), Ok(64));
        assert_eq!(check_dimensions(2048, 2048), Ok(2048));
        for dimensions in [0, 63, 2049, u64::MAX] {
            let error = check_dimensions(dimensions, 2048).unwrap_err().to_string();
            assert!(
                error.contains(&dimensions.to_string()) && error.contains("64 and 2048"),
                "{error}"
            );
        }
    }

    #[test]
    fn nothing_without_a_length_leaves() {
        for row in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
            assert_eq!(truncate(&row, None, true), Err(VectorError::NotFinite));
        }
        assert_eq!(truncate(&[0.0, 2.0], None, false), Ok(vec![0.0, 2.0]));
    }

    proptest! {
        #[test]
        fn cutting_comes_before_normalising(row in prop::collection::vec(-10.0_f32..10.0, 2..80), cut in 1_usize..80) {
            prop_assume!(length(&row[..cut.min(row.len())]) > 1e-3);
            let vector = truncate(&row, Some(cut), true).unwrap();
            prop_assert_eq!(vector.len(), cut.min(row.len()));
            prop_assert!((length(&vector) - 1.0).abs() < 1e-6);
        }
    }
}
