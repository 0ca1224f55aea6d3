//! Small checkpoints for the tests of this room: files by name, written where a test wants them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// The files of a checkpoint.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// A safetensors file of the given tensors; the bytes of each count up from the length of its name.
pub(super) fn safetensors(tensors: &[(&str, Dtype, &[usize])]) -> Vec<u8> {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(name, dtype, shape)| {
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            (0..bytes).map(|i| (i + name.len()) as u8).collect()
        })
        .collect();
    let views: HashMap<&str, TensorView> = tensors
        .iter()
        .zip(&data)
        .map(|((name, dtype, shape), data)| {
            (
                *name,
                TensorView::new(*dtype, shape.to_vec(), data).unwrap(),
            )
        })
        .collect();
    safetensors::serialize(&views, None).unwrap()
}

fn text_files() -> Files {
    Files::from([
        (
            "config.json".to_owned(),
            br#"{"model_type":"qwen3_vl"}"#.to_vec(),
        ),
        (
            "tokenizer.json".to_owned(),
            br#"{"version":"1.0"}"#.to_vec(),
        ),
    ])
}

/// A checkpoint with one weight file of about 200 kB.
pub(super) fn single() -> Files {
    let mut files = text_files();
    let tensors: [(&str, Dtype, &[usize]); 3] = [
        ("a.weight", Dtype::BF16, &[200, 500]),
        ("b.weight", Dtype::F32, &[7]),
        ("norm", Dtype::F16, &[3]),
    ];
    files.insert("model.safetensors".to_owned(), safetensors(&tensors));
    files
}

/// A checkpoint with two shards, `one.safetensors` (a, b) and `two.safetensors` (c).
pub(super) fn sharded() -> Files {
    let mut files = text_files();
    files.insert(
        "one.safetensors".to_owned(),
        safetensors(&[("a", Dtype::BF16, &[2, 3]), ("b", Dtype::F32, &[4])]),
    );
    files.insert(
        "two.safetensors".to_owned(),
        safetensors(&[("c", Dtype::F16, &[5, 1])]),
    );
    files.insert(
        "model.safetensors.index.json".to_owned(),
        index(&[
            ("a", "one.safetensors"),
            ("b", "one.safetensors"),
            ("c", "two.safetensors"),
        ]),
    );
    files
}

/// An index of shards.
pub(super) fn index(weight_map: &[(&str, &str)]) -> Vec<u8> {
    let weight_map: BTreeMap<_, _> = weight_map.iter().copied().collect();
    serde_json::to_vec(
        &serde_json::json!({"metadata": {"total_size": 1}, "weight_map": weight_map}),
    )
    .unwrap()
}

/// Writes the files into a directory.
pub(super) fn write(files: &Files, directory: &Path) {
    for (name, bytes) in files {
        std::fs::write(directory.join(name), bytes).unwrap();
    }
}
