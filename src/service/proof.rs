//! What decides the bits of an answer, so that two machines can be told apart or found to be the same.
//!
//! In: a checkpoint's [`Fingerprint`], the template, the constants of preprocessing, where it is computed. Out: one id of all of it.

use sha2::{Digest, Sha256};

use crate::engine::{EngineInfo, Fingerprint, hexadecimal};
use crate::model::{PIXEL_MEAN, PIXEL_STD};
use crate::processor::{
    FILE_TOTAL_PIXELS, FRAMES, LIST_TOTAL_PIXELS, MERGE, PATCH, PixelOptions, RESAMPLE,
};

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
    /// Names of the constants of preprocessing, in the order they are told in.
    pub const PREPROCESSING: [&str; 12] = [
        "min_pixels",
        "max_pixels",
        "fps",
        "max_frames",
        "file_total_pixels",
        "list_total_pixels",
        "patch_size",
        "temporal_patch_size",
        "merge_size",
        "image_mean",
        "image_std",
        "resample",
    ];

    /// Gathers it.
    pub fn new(
        fingerprint: Fingerprint,
        template: String,
        pixels: &PixelOptions,
        info: &EngineInfo,
    ) -> Self {
        let preprocessing = preprocessing(pixels);
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

/// The constants, from where pixels are prepared by them.
fn preprocessing(pixels: &PixelOptions) -> Vec<(&'static str, String)> {
    let total = |own: u64| pixels.total_pixels.unwrap_or(own).to_string();
    let values = [
        pixels.min_pixels.to_string(),
        pixels.max_pixels.to_string(),
        pixels.fps.to_string(),
        pixels.max_frames.to_string(),
        total(FILE_TOTAL_PIXELS),
        total(LIST_TOTAL_PIXELS),
        PATCH.to_string(),
        FRAMES.to_string(),
        MERGE.to_string(),
        PIXEL_MEAN.to_string(),
        PIXEL_STD.to_string(),
        RESAMPLE.to_owned(),
    ];
    Proof::PREPROCESSING.into_iter().zip(values).collect()
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
    fn the_constants_are_those_the_checkpoint_says_its_pixels_are_prepared_by() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/parity/model/preprocessor_config.json"
        );
        let text = std::fs::read_to_string(path).expect("the fixture");
        let says: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let told = preprocessing(&PixelOptions::default());
        let told = |name: &str| {
            let mut all = told.iter();
            all.find(|(known, _)| *known == name)
                .map(|(_, value)| value.as_str())
        };
        for name in ["patch_size", "temporal_patch_size", "merge_size"] {
            assert_eq!(told(name), Some(says[name].to_string().as_str()), "{name}");
        }
        for name in ["image_mean", "image_std"] {
            for channel in says[name].as_array().expect("channels") {
                assert_eq!(told(name), Some(channel.to_string().as_str()), "{name}");
            }
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
