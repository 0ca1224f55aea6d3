//! The parsers against bytes nobody meant.

use proptest::prelude::*;
use safetensors::Dtype;

use super::*;
use crate::engine::sample_checkpoint::safetensors;

fn parse(bytes: Vec<u8>) -> Result<Vec<(String, HostTensor)>, EngineError> {
    let owner: SharedBytes = Arc::new(bytes);
    read_tensors(&owner, Path::new("x.safetensors"))
}

fn assert_every_tensor_lies_within(bytes: Vec<u8>) {
    for (_, tensor) in parse(bytes).into_iter().flatten() {
        // Slicing panics when the range is out of bounds.
        assert_eq!(
            tensor.bytes().len(),
            tensor.elements() * tensor.dtype.size_bytes()
        );
    }
}

#[test]
fn offsets_near_the_end_of_the_number_line_are_an_error_not_a_panic() {
    let huge = usize::MAX / 16;
    let one = |name: &str, start: usize| {
        let end = start + huge * 2;
        format!(r#""{name}":{{"dtype":"BF16","shape":[{huge}],"data_offsets":[{start},{end}]}}"#)
    };
    let entries: Vec<String> = (0..7).map(|i| one(&i.to_string(), i * huge * 2)).collect();
    let header = format!("{{{}}}", entries.join(","));
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    assert!(
        parse(bytes)
            .unwrap_err()
            .to_string()
            .contains("is truncated")
    );
}

#[test]
fn layout_prefers_the_single_file_and_names_a_pickle() {
    assert_eq!(
        WeightLayout::of(["model.safetensors", INDEX_FILE, "a.bin"]),
        Ok(WeightLayout::Single)
    );
    assert_eq!(
        WeightLayout::of([INDEX_FILE, "a.bin"]),
        Ok(WeightLayout::Sharded)
    );
    assert!(
        WeightLayout::of(["config.json", "a.bin"])
            .unwrap_err()
            .contains("a.bin")
    );
    assert!(
        WeightLayout::of(["model.safetensors.part"])
            .unwrap_err()
            .contains("neither")
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        assert_every_tensor_lies_within(bytes);
    }

    #[test]
    fn arbitrary_headers_never_panic(
        dtype in prop::sample::select(vec!["F32", "BF16", "F16", "I8", "X"]),
        shape in prop::collection::vec(prop_oneof![0..5u64, any::<u64>()], 0..4),
        offsets in prop::array::uniform2(prop_oneof![0..64u64, any::<u64>()]),
        tail in 0..64usize,
    ) {
        let header = serde_json::json!({"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).to_string();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; tail]].concat();
        assert_every_tensor_lies_within(bytes);
    }

    #[test]
    fn one_changed_byte_never_panics(at in 0..300usize, value in any::<u8>()) {
        let mut bytes = safetensors(&[("a", Dtype::F32, &[2, 3]), ("b", Dtype::BF16, &[5])]);
        let at = at % bytes.len();
        bytes[at] = value;
        assert_every_tensor_lies_within(bytes);
    }

    #[test]
    fn every_cut_of_a_file_is_refused(keep in 0..1000usize) {
        let mut bytes = safetensors(&[("a", Dtype::F32, &[2, 3]), ("b", Dtype::BF16, &[5])]);
        bytes.truncate(keep % bytes.len());
        prop_assert!(parse(bytes).is_err());
    }

    #[test]
    fn index_only_yields_plain_names(json in r#"\{"weight_map":\{"a":"[./a-z\\\\]{0,12}(\.safetensors)?"\}\}"#) {
        if let Ok(index) = ShardIndex::parse(json.as_bytes(), Path::new("index.json")) {
            for shard in index.shards() {
                let components: Vec<_> = Path::new(shard).components().collect();
                prop_assert!(matches!(components[..], [std::path::Component::Normal(_)]), "{shard}");
            }
        }
    }
}
