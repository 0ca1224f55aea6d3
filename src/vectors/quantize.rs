//! Smaller numbers for the same direction.
//!
//! # Source
//! numpy `packbits` and sentence-transformers `quantize_embeddings` for the binary types; the scale per vector of `int8` is ours,
//! for the model was trained with quantisation but its scales are not published.

use half::{bf16, f16};

/// The number format of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// IEEE single precision.
    Float,
    /// IEEE half precision, rounded to nearest even.
    Float16,
    /// Brain floating point, rounded to nearest even.
    Bfloat16,
    /// `round(x * 127 / max|x|)`.
    Int8,
    /// `int8 + 128`.
    Uint8,
    /// The bytes of `ubinary`, minus 128.
    Binary,
    /// A bit for each `x > 0`, eight a byte, most significant first.
    Ubinary,
}

impl Quantization {
    /// All of them, by the names clients use.
    pub const NAMES: [(&'static str, Quantization); 7] = [
        ("float", Quantization::Float),
        ("float16", Quantization::Float16),
        ("bfloat16", Quantization::Bfloat16),
        ("int8", Quantization::Int8),
        ("uint8", Quantization::Uint8),
        ("binary", Quantization::Binary),
        ("ubinary", Quantization::Ubinary),
    ];

    /// By the name clients use.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, quantization)| *quantization)
    }

    /// The name clients use.
    pub fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(_, quantization)| *quantization == self)
            .map_or("", |(name, _)| name)
    }
}

/// A vector in one number format.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// [`Quantization::Float`].
    Float(Vec<f32>),
    /// [`Quantization::Float16`].
    Float16(Vec<f16>),
    /// [`Quantization::Bfloat16`].
    Bfloat16(Vec<bf16>),
    /// [`Quantization::Int8`] and [`Quantization::Binary`].
    Int8 {
        /// The numbers.
        values: Vec<i8>,
        /// What one step is worth; absent for binary.
        scale: Option<f32>,
    },
    /// [`Quantization::Uint8`] and [`Quantization::Ubinary`].
    Uint8 {
        /// The numbers.
        values: Vec<u8>,
        /// What one step is worth; absent for binary.
        scale: Option<f32>,
    },
}

impl Values {
    /// The numbers one after another, little-endian.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            Values::Float(values) => values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
            Values::Float16(values) => values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
            Values::Bfloat16(values) => values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
            Values::Int8 { values, .. } => values.iter().map(|&value| value as u8).collect(),
            Values::Uint8 { values, .. } => values.clone(),
        }
    }

    /// Whether every number is finite: half precision ends at 65504, which a vector that was not normalised may exceed.
    pub fn is_finite(&self) -> bool {
        match self {
            Values::Float(values) => values.iter().all(|value| value.is_finite()),
            Values::Float16(values) => values.iter().all(|value| value.is_finite()),
            Values::Bfloat16(values) => values.iter().all(|value| value.is_finite()),
            Values::Int8 { .. } | Values::Uint8 { .. } => true,
        }
    }

    /// What one step of an integer is worth, where that means something.
    pub fn scale(&self) -> Option<f32> {
        match self {
            Values::Int8 { scale, .. } | Values::Uint8 { scale, .. } => *scale,
            Values::Float(_) | Values::Float16(_) | Values::Bfloat16(_) => None,
        }
    }
}

/// Brings a vector into a number format.
pub fn quantize(vector: &[f32], quantization: Quantization) -> Values {
    match quantization {
        Quantization::Float => Values::Float(vector.to_vec()),
        Quantization::Float16 => {
            Values::Float16(vector.iter().map(|&x| f16::from_f32(x)).collect())
        }
        Quantization::Bfloat16 => {
            Values::Bfloat16(vector.iter().map(|&x| bf16::from_f32(x)).collect())
        }
        Quantization::Int8 => {
            let (values, scale) = symmetric(vector);
            Values::Int8 {
                values,
                scale: Some(scale),
            }
        }
        Quantization::Uint8 => {
            let (values, scale) = symmetric(vector);
            let values = values
                .into_iter()
                .map(|value| (i16::from(value) + 128) as u8)
                .collect();
            Values::Uint8 {
                values,
                scale: Some(scale),
            }
        }
        Quantization::Ubinary => Values::Uint8 {
            values: signs(vector),
            scale: None,
        },
        Quantization::Binary => {
            let values = signs(vector)
                .into_iter()
                .map(|byte| (i16::from(byte) - 128) as i8)
                .collect();
            Values::Int8 {
                values,
                scale: None,
            }
        }
    }
}

/// -127..=127 and what one step is worth.
fn symmetric(vector: &[f32]) -> (Vec<i8>, f32) {
    let highest = vector
        .iter()
        .fold(0.0_f32, |highest, x| highest.max(x.abs()));
    if highest == 0.0 {
        return (vec![0; vector.len()], 0.0);
    }
    let values = vector
        .iter()
        .map(|x| (f64::from(*x) * 127.0 / f64::from(highest)).round_ties_even() as i8);
    (values.collect(), highest / 127.0)
}

fn signs(vector: &[f32]) -> Vec<u8> {
    let byte = |bits: &[f32]| {
        bits.iter()
            .enumerate()
            .fold(0, |byte, (i, x)| byte | (u8::from(*x > 0.0) << (7 - i)))
    };
    vector.chunks(8).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bits_are_packed_as_numpy_packs_them() {
        let vector = [1.0, -1.0, 0.5, 0.0, -0.1, 0.2, 0.3, 0.4, 1.0, -1.0];
        assert_eq!(
            quantize(&vector, Quantization::Ubinary).to_le_bytes(),
            [0b1010_0111, 0b1000_0000]
        );
        let Values::Int8 { values, .. } = quantize(&vector, Quantization::Binary) else {
            panic!()
        };
        assert_eq!(values, [0b1010_0111_u8 as i16 - 128, 0].map(|v| v as i8));
    }

    #[test]
    fn what_half_precision_cannot_hold_is_noticed() {
        let vector = [70_000.0, 1.0];
        assert!(!quantize(&vector, Quantization::Float16).is_finite());
        assert!(quantize(&vector, Quantization::Bfloat16).is_finite());
    }

    #[test]
    fn every_name_reads_back() {
        for (name, quantization) in Quantization::NAMES {
            assert_eq!(Quantization::from_name(name), Some(quantization));
            assert_eq!(quantization.name(), name);
        }
        assert_eq!(Quantization::from_name("int4"), None);
    }

    proptest! {
        #[test]
        fn int8_is_within_half_a_step(vector in prop::collection::vec(-1.0_f32..1.0, 1..40)) {
            let Values::Int8 { values, scale } = quantize(&vector, Quantization::Int8) else { panic!() };
            let scale = scale.unwrap();
            for (x, q) in vector.iter().zip(&values) {
                prop_assert!((x - f32::from(*q) * scale).abs() <= scale * 0.5001);
            }
            let Values::Uint8 { values: shifted, .. } = quantize(&vector, Quantization::Uint8) else { panic!() };
            prop_assert!(values.iter().zip(shifted).all(|(q, u)| i16::from(*q) + 128 == i16::from(u)));
        }
    }
}
