//! What decides the bits of an answer, so that two machines can be told apart or found to be the same.
//!
//! In: a checkpoint's [`Fingerprint`], the template, the constants of preprocessing, where it is computed. Out: one id of all of it.

use sha2::{Digest, Sha256};

use crate::engine::{EngineInfo, Fingerprint, hexadecimal};
use crate::processor::{FILE_TOTAL_PIXELS, LIST_TOTAL_PIXELS, PixelOptions};

/// What a model is and how it is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Digests of the checkpoint.
    pub fingerprint: Fingerprint,
    /// The prompt around an input, with names in braces where the input goes.
    pub template: String,
    /// Name and value of each constant pixels are prepared by, defaults of the settings among them.
    pub preprocessing: Vec<(&'static str, String)>,
    /// Number format, device and kernels.
    pub numeric_mode: String,
    /// SHA-256 of all of the above, hexadecimal.
    pub id: String,
}

impl Proof {
    /// Gathers it.
    pub fn new(
        fingerprint: Fingerprint,
        template: String,
        pixels: &PixelOptions,
        info: &EngineInfo,
    ) -> Self {
        let total = |own: u64| pixels.total_pixels.unwrap_or(own).to_string();
        let preprocessing = vec![
            ("min_pixels", pixels.min_pixels.to_string()),
            ("max_pixels", pixels.max_pixels.to_string()),
            ("fps", pixels.fps.to_string()),
            ("max_frames", pixels.max_frames.to_string()),
            ("file_total_pixels", total(FILE_TOTAL_PIXELS)),
            ("list_total_pixels", total(LIST_TOTAL_PIXELS)),
            ("patch_size", "16".to_owned()),
            ("temporal_patch_size", "2".to_owned()),
            ("merge_size", "2".to_owned()),
            ("image_mean", "0.5".to_owned()),
            ("image_std", "0.5".to_owned()),
            ("resample", "bicubic (Pillow 12)".to_owned()),
        ];
        let numeric_mode = format!("{} on {}, {}", info.dtype, info.device, info.kernels);
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            // Each after its length, so that no two lists of texts run together to the same bytes.
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        let Fingerprint {
            weights,
            tokenizer,
            config,
        } = &fingerprint;
        for text in [weights, tokenizer, config, &template, &numeric_mode] {
            add(text);
        }
        for (name, value) in &preprocessing {
            add(name);
            add(value);
        }
        Proof {
            id: hexadecimal(&hash.finalize()),
            fingerprint,
            template,
            preprocessing,
            numeric_mode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> EngineInfo {
        EngineInfo {
            device: "cpu".to_owned(),
            dtype: "f32",
            kernels: "plain".to_owned(),
            threads: 1,
            hidden_size: 64,
            max_position_embeddings: 4096,
            parameters: 1,
            reuses_prefixes: true,
        }
    }

    fn fingerprint(weights: &str) -> Fingerprint {
        Fingerprint {
            weights: weights.to_owned(),
            tokenizer: "t".to_owned(),
            config: "c".to_owned(),
        }
    }

    #[test]
    fn whatever_decides_a_bit_changes_the_id_and_nothing_else_does() {
        let pixels = PixelOptions::default();
        let id = |weights: &str, template: &str, pixels: &PixelOptions, info: &EngineInfo| {
            Proof::new(fingerprint(weights), template.to_owned(), pixels, info).id
        };
        let same = id("w", "x", &pixels, &info());
        assert_eq!(same.len(), 64);
        let threads = EngineInfo {
            threads: 2,
            ..info()
        };
        assert_eq!(same, id("w", "x", &pixels, &threads));
        let bf16 = EngineInfo {
            dtype: "bf16",
            ..info()
        };
        let smaller = PixelOptions {
            max_pixels: 1,
            ..pixels
        };
        let others = [
            id("v", "x", &pixels, &info()),
            id("w", "y", &pixels, &info()),
            id("w", "x", &smaller, &info()),
            id("w", "x", &pixels, &bf16),
        ];
        assert!(others.iter().all(|other| *other != same));
    }
}
