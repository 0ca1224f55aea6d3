//! The numbers a score is. In: a logit, or two vectors. Out: how relevant one is to the other.

use super::{Computed, Outcome, Scored};

/// What a row of the engine says of a pair.
pub(super) fn scored(row: Outcome<Computed>) -> Outcome<Scored> {
    let computed = row?;
    // The engine has checked that it is finite.
    let logit = computed.row.first().copied().unwrap_or(f32::NAN);
    Ok(Scored {
        score: sigmoid(logit),
        raw: logit,
        tokens: computed.tokens,
        cached_tokens: computed.cached_tokens,
        truncated: computed.truncated,
    })
}

/// The score of a logit.
fn sigmoid(logit: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32
}

/// Of vectors of length 1.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.sum::<f64>().clamp(-1.0, 1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_of_a_logit_is_its_sigmoid_and_never_out_of_range() {
        for (logit, score) in [(0.0, 0.5), (1.0, 0.731_058_6), (-1.0, 0.268_941_43)] {
            assert_eq!(sigmoid(logit), score);
        }
        assert_eq!([f32::MIN, f32::MAX].map(sigmoid), [0.0, 1.0]);
    }

    #[test]
    fn a_cosine_is_of_vectors_in_their_order() {
        assert!((cosine(&[0.6, 0.8], &[0.8, 0.6]) - 0.96).abs() < 1e-6);
        assert_eq!(cosine(&[1.0, 0.0], &[-1.0, 0.0]), -1.0);
    }
}
