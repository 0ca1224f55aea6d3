//! Directories, good and bad, and the model inside the binary.

use std::path::Path;

use safetensors::Dtype;
use tempfile::TempDir;

use super::*;
use crate::engine::sample_checkpoint::{Files, index, safetensors, sharded, single, write};
use crate::kernels::WeightDtype;

fn open(files: &Files) -> Result<Checkpoint, String> {
    let directory = TempDir::new().unwrap();
    write(files, directory.path());
    open_directory(directory.path())
}

fn open_directory(path: &Path) -> Result<Checkpoint, String> {
    Checkpoint::open(&CheckpointSource::Directory(path.to_owned()))
        .map_err(|error| error.to_string())
}

/// The error must hold every one of the words.
fn assert_refused(files: &Files, words: &[&str]) {
    let error = open(files).expect_err("the checkpoint is refused");
    for word in words {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

#[test]
fn single_file_gives_every_tensor_with_its_bytes() {
    let checkpoint = open(&single()).unwrap();
    assert_eq!(
        checkpoint.weights.keys().collect::<Vec<_>>(),
        ["a.weight", "b.weight", "norm"]
    );
    let tensor = &checkpoint.weights["b.weight"];
    assert_eq!(
        (tensor.dtype, tensor.shape.as_slice()),
        (WeightDtype::F32, [7].as_slice())
    );
    assert_eq!(tensor.bytes(), (8..36).collect::<Vec<u8>>());
    let tensor = &checkpoint.weights["norm"];
    assert_eq!(
        (tensor.dtype, tensor.bytes()),
        (WeightDtype::F16, [4, 5, 6, 7, 8, 9].as_slice())
    );
    assert_eq!(checkpoint.weights["a.weight"].bytes().len(), 200 * 500 * 2);
    assert_eq!(checkpoint.config_json, br#"{"model_type":"qwen3_vl"}"#);
    assert_eq!(checkpoint.tokenizer_json, br#"{"version":"1.0"}"#);
}

#[test]
fn shards_give_the_union_of_their_tensors() {
    let checkpoint = open(&sharded()).unwrap();
    assert_eq!(
        checkpoint.weights.keys().collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    assert_eq!(
        checkpoint.weights["c"].bytes(),
        (1..11).collect::<Vec<u8>>()
    );
    assert_eq!(checkpoint.weights["c"].shape, [5, 1]);
}

#[test]
fn tensors_of_one_file_share_one_map() {
    let checkpoint = open(&single()).unwrap();
    let map = |name: &str| (*checkpoint.weights[name].owner).as_ref().as_ptr();
    assert_eq!(map("a.weight"), map("norm"));
}

#[test]
fn single_file_counts_where_an_index_is_there_too() {
    let mut files = sharded();
    files.extend(single());
    assert!(open(&files).unwrap().weights.contains_key("norm"));
}

#[test]
fn name_is_the_directory_behind_dots_and_links() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("my-model");
    std::fs::create_dir(&directory).unwrap();
    write(&single(), &directory);
    assert_eq!(
        open_directory(&directory.join(".")).unwrap().name,
        "my-model"
    );
    assert_eq!(open_directory(&directory).unwrap().revision, None);
}

#[test]
fn path_that_is_no_directory_is_refused() {
    let parent = TempDir::new().unwrap();
    let file = parent.path().join("model.safetensors");
    std::fs::write(&file, b"").unwrap();
    assert!(
        open_directory(&file)
            .unwrap_err()
            .ends_with("model.safetensors: is not a directory")
    );
    assert!(
        open_directory(&parent.path().join("absent"))
            .unwrap_err()
            .ends_with("absent: does not exist")
    );
}

#[test]
fn missing_file_is_named() {
    for name in ["config.json", "tokenizer.json"] {
        let mut files = single();
        files.remove(name);
        assert_refused(&files, &[name, "is missing"]);
    }
    let mut files = single();
    files.remove("model.safetensors");
    assert_refused(
        &files,
        &["has neither model.safetensors nor model.safetensors.index.json"],
    );
}

#[test]
fn pickle_file_is_named_and_not_loaded() {
    for pickle in ["pytorch_model.bin", "consolidated.00.pth", "model.pt"] {
        let mut files = single();
        files.remove("model.safetensors");
        files.insert(pickle.to_owned(), b"\x80\x04".to_vec());
        assert_refused(&files, &[pickle, "only safetensors is loaded"]);
        // Beside safetensors it does no harm.
        files.extend(single());
        assert!(open(&files).is_ok());
    }
}

#[test]
fn index_with_a_missing_shard_names_it() {
    let mut files = sharded();
    files.remove("two.safetensors");
    assert_refused(&files, &["two.safetensors", "is missing"]);
}

#[test]
fn index_with_a_tensor_the_shard_lacks_names_both() {
    let mut files = sharded();
    let map = [("a", "one.safetensors"), ("d", "two.safetensors")];
    files.insert("model.safetensors.index.json".to_owned(), index(&map));
    assert_refused(
        &files,
        &["tensor d", "two.safetensors, which does not have it"],
    );
    // In another shard than the index says is as wrong as nowhere.
    let map = [("a", "two.safetensors"), ("b", "one.safetensors")];
    files.insert("model.safetensors.index.json".to_owned(), index(&map));
    assert_refused(
        &files,
        &["tensor a", "two.safetensors, which does not have it"],
    );
}

#[test]
fn tensor_in_two_shards_is_refused() {
    let mut files = sharded();
    files.insert(
        "two.safetensors".to_owned(),
        safetensors(&[("a", Dtype::F16, &[1]), ("c", Dtype::F16, &[1])]),
    );
    assert_refused(
        &files,
        &["tensor a", "both in one.safetensors and in two.safetensors"],
    );
}

#[test]
fn index_that_leads_out_of_the_directory_is_refused() {
    for path in [
        "../two.safetensors",
        "/etc/two.safetensors",
        "..\\two.safetensors",
        "sub/two.safetensors",
        ".safetensors",
        "two.bin",
        "",
    ] {
        let mut files = sharded();
        files.insert(
            "model.safetensors.index.json".to_owned(),
            index(&[("a", path)]),
        );
        assert_refused(
            &files,
            &[
                "index.json",
                "tensor a",
                "not the name of a safetensors file beside it",
            ],
        );
    }
}

#[test]
fn damaged_index_is_refused() {
    for json in [
        "",
        "[]",
        "{}",
        r#"{"weight_map":{}}"#,
        r#"{"weight_map":{"a":1}}"#,
    ] {
        let mut files = sharded();
        files.insert(
            "model.safetensors.index.json".to_owned(),
            json.as_bytes().to_vec(),
        );
        assert_refused(&files, &["model.safetensors.index.json"]);
    }
}

#[test]
fn truncated_file_is_named_with_both_lengths() {
    let mut files = single();
    let weights = files.get_mut("model.safetensors").unwrap();
    weights.truncate(weights.len() - 1);
    assert_refused(
        &files,
        &[
            "model.safetensors: is truncated",
            "describes 200034 bytes of tensors, 200033 follow",
        ],
    );
}

#[test]
fn file_with_bytes_after_the_tensors_is_refused() {
    let mut files = single();
    files.get_mut("model.safetensors").unwrap().push(0);
    assert_refused(&files, &["has bytes that belong to no tensor"]);
}

#[test]
fn header_length_that_lies_is_refused() {
    for length in [0, 3, u64::from(u32::MAX), u64::MAX] {
        let mut files = single();
        files.get_mut("model.safetensors").unwrap()[..8].copy_from_slice(&length.to_le_bytes());
        assert_refused(&files, &["model.safetensors"]);
    }
    let mut files = single();
    files.insert("model.safetensors".to_owned(), vec![]);
    assert_refused(
        &files,
        &["model.safetensors: is not a safetensors file: it has 0 bytes"],
    );
}

#[test]
fn header_whose_offsets_lie_is_refused() {
    let faults = [
        // Overlap, gap, end before start, and a length that is not shape times element size.
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,12]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,12]}}"#,
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,12]}}"#,
    ];
    for header in faults {
        let bytes = [
            &(header.len() as u64).to_le_bytes()[..],
            header.as_bytes(),
            &[0; 12],
        ]
        .concat();
        let mut files = single();
        files.insert("model.safetensors".to_owned(), bytes);
        assert_refused(
            &files,
            &["model.safetensors: has an invalid safetensors header"],
        );
    }
}

#[test]
fn foreign_element_type_names_the_tensor() {
    for (dtype, word) in [
        (Dtype::F8_E4M3, "F8_E4M3"),
        (Dtype::I64, "I64"),
        (Dtype::F64, "F64"),
    ] {
        let mut files = single();
        files.insert(
            "model.safetensors".to_owned(),
            safetensors(&[("ids", dtype, &[2])]),
        );
        assert_refused(
            &files,
            &[
                "tensor ids",
                word,
                "model.safetensors",
                "F32, F16 and BF16 are loaded",
            ],
        );
    }
}

#[test]
fn embedded_model_is_whole_and_aligned() {
    let checkpoint = Checkpoint::open(&CheckpointSource::Embedded).unwrap();
    assert_eq!(
        (checkpoint.name.as_str(), checkpoint.revision),
        ("manifold-tiny", None)
    );
    let norm = &checkpoint.weights["model.language_model.norm.weight"];
    assert_eq!(
        (norm.dtype, norm.shape.as_slice()),
        (WeightDtype::Bf16, [256].as_slice())
    );
    for (name, tensor) in &checkpoint.weights {
        assert_eq!(
            tensor.bytes().len(),
            tensor.elements() * tensor.dtype.size_bytes(),
            "{name}"
        );
        assert_eq!(
            tensor.bytes().as_ptr() as usize % tensor.dtype.size_bytes(),
            0,
            "{name} is misaligned"
        );
    }
    let config: serde_json::Value = serde_json::from_slice(&checkpoint.config_json).unwrap();
    assert_eq!(config["model_type"], "qwen3_vl");
}

#[cfg(target_os = "linux")]
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        * 1024
}

#[test]
#[cfg(target_os = "linux")]
fn opening_two_gigabytes_leaves_them_on_the_disk() {
    let elements = 1usize << 30;
    let end = elements * 2;
    let header =
        format!(r#"{{"big":{{"dtype":"BF16","shape":[{elements}],"data_offsets":[0,{end}]}}}}"#);
    let directory = TempDir::new().unwrap();
    write(&single(), directory.path());
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let path = directory.path().join("model.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    // A sparse file: the length is real, the blocks are not.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len((bytes.len() + end) as u64).unwrap();

    let before = resident_bytes();
    let checkpoint = open_directory(directory.path()).unwrap();
    let grown = resident_bytes().saturating_sub(before);
    assert_eq!(checkpoint.weights["big"].bytes().len(), end);
    // Other tests of this process may run meanwhile, hence the generous limit.
    assert!(grown < 256 << 20, "opening took {grown} bytes of memory");
}
