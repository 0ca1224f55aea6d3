//! What tells a checkpoint from others. In: a [`Checkpoint`]. Out: digests.
//!
//! Reading every byte of the weights would lengthen the start of a server by seconds, so what every start computes is a digest of each
//! tensor's name, type, shape and a few pages: training of any kind changes all tensors, so it tells any two models apart, and loading
//! reads the same pages anyway. It does not see a byte that changed elsewhere; [`hash_weights`] does, on all cores, and `manifold verify`
//! prints it.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::Checkpoint;
use crate::kernels::HostTensor;

/// What is read of a tensor's beginning, middle and end: a page each.
const SAMPLE_BYTES: usize = 4096;
/// What a thread hashes at a time.
const CHUNK_BYTES: usize = 16 << 20;

/// Digests of a checkpoint, SHA-256, hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// Of all tensors' names, types, shapes and samples.
    pub weights: String,
    /// Of `tokenizer.json`.
    pub tokenizer: String,
    /// Of `config.json`.
    pub config: String,
}

impl Fingerprint {
    /// Computes them; a few milliseconds, or as long as the disk takes for a few thousand pages.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let of = |bytes: &[u8]| hexadecimal(&Sha256::digest(bytes));
        Fingerprint {
            weights: hash_tensors(checkpoint, sample),
            tokenizer: of(&checkpoint.tokenizer_json),
            config: of(&checkpoint.config_json),
        }
    }
}

/// The digest of every byte of the weights, whatever files they are in.
pub fn hash_weights(checkpoint: &Checkpoint) -> String {
    hash_tensors(checkpoint, |tensor| {
        let chunks = tensor.bytes().par_chunks(CHUNK_BYTES);
        let digests: Vec<[u8; 32]> = chunks.map(|chunk| Sha256::digest(chunk).into()).collect();
        // It was read once and will not be again.
        tensor.release();
        digests.concat()
    })
}

/// Of each tensor, by name: its name, type and shape, and what `content` says of it.
fn hash_tensors(checkpoint: &Checkpoint, content: impl Fn(&HostTensor) -> Vec<u8>) -> String {
    let mut hash = Sha256::new();
    for (name, tensor) in &checkpoint.weights {
        let head = format!("{name} {:?} {:?} ", tensor.dtype, tensor.shape);
        let content = content(tensor);
        for part in [head.as_bytes(), &content] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hexadecimal(&hash.finalize())
}

/// A digest in small letters.
pub fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sample(tensor: &HostTensor) -> Vec<u8> {
    let bytes = tensor.bytes();
    let last = bytes.len().saturating_sub(SAMPLE_BYTES);
    let mut sample = Vec::with_capacity(3 * SAMPLE_BYTES);
    for start in [0, last / 2, last] {
        let end = (start + SAMPLE_BYTES).min(bytes.len());
        sample.extend_from_slice(&bytes[start..end]);
    }
    sample
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::CheckpointSource;

    fn tiny() -> Checkpoint {
        Checkpoint::open(&CheckpointSource::Embedded).unwrap()
    }

    /// With one byte of a tensor changed.
    fn changed(name: &str, at: usize) -> Checkpoint {
        let mut checkpoint = tiny();
        let tensor = checkpoint.weights.get_mut(name).unwrap();
        let mut bytes = tensor.bytes().to_vec();
        bytes[at] ^= 1;
        tensor.range = 0..bytes.len();
        tensor.owner = Arc::new(bytes);
        checkpoint
    }

    const LARGE: &str = "model.language_model.embed_tokens.weight";

    #[test]
    fn the_same_weights_have_the_same_digests_and_a_byte_anywhere_changes_the_full_one() {
        let full = hash_weights(&tiny());
        assert_eq!(full, hash_weights(&tiny()));
        let bytes = tiny().weights[LARGE].bytes().len();
        for at in [0, SAMPLE_BYTES + 1, bytes - 1] {
            assert_ne!(full, hash_weights(&changed(LARGE, at)), "byte {at}");
        }
    }

    #[test]
    fn the_quick_digest_sees_the_ends_of_every_tensor_its_name_and_its_shape() {
        let quick = Fingerprint::of(&tiny());
        assert_eq!(quick, Fingerprint::of(&tiny()));
        let bytes = tiny().weights[LARGE].bytes().len();
        for at in [0, bytes - 1] {
            assert_ne!(quick.weights, Fingerprint::of(&changed(LARGE, at)).weights);
        }
        let mut reshaped = tiny();
        reshaped.weights.get_mut(LARGE).unwrap().shape.reverse();
        assert_ne!(quick.weights, Fingerprint::of(&reshaped).weights);
        let mut renamed = tiny();
        let tensor = renamed.weights.remove(LARGE).unwrap();
        renamed.weights.insert("another".to_owned(), tensor);
        assert_ne!(quick.weights, Fingerprint::of(&renamed).weights);
        let mut other_tokens = tiny();
        other_tokens.tokenizer_json.push(b' ');
        assert_ne!(quick.tokenizer, Fingerprint::of(&other_tokens).tokenizer);
    }
}
