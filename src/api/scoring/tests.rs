//! Bodies of the routes that score: what is read of them and what is refused.

use super::*;
use crate::batcher::Priority;
use crate::service::PartContent;

fn read_items(body: &Value) -> Result<Vec<RankItem>, ApiError> {
    let settings = ApiSettings::default();
    let reading = Reading {
        settings: &settings,
        pixels: settings.pixels,
    };
    reading.items("documents", body)
}

fn parsed(body: Value) -> Result<Taken<Vec<RankItem>>, ApiError> {
    fn read(body: Fields<'_>, reading: Reading<'_>) -> Result<Asked<Vec<RankItem>>, ApiError> {
        let documents = reading.items("documents", &body.map["documents"])?;
        Ok(Asked {
            queries: Vec::new(),
            pairs: Vec::new(),
            own: documents.clone(),
            documents,
        })
    }
    let Value::Object(map) = body else {
        panic!("an object")
    };
    parse(&map, &ApiSettings::default(), (&["documents"], read))
}

#[test]
fn every_spelling_of_a_document_is_the_same_document() {
    let image = "data:image/png;base64,aGVsbG8=";
    let spellings = json!([
        [{ "type": "image_url", "image_url": { "url": image } }, "a cat"],
        { "content": [{ "type": "image", "image": image }, { "type": "text", "text": "a cat" }] },
        { "image": image, "text": "a cat" },
    ]);
    let items = read_items(&spellings).unwrap();
    let contents = |item: &RankItem| {
        let contents = item.parts.iter().map(|part| part.content.clone());
        contents.collect::<Vec<PartContent>>()
    };
    assert_eq!(contents(&items[0]).len(), 2);
    assert!(
        items
            .iter()
            .all(|item| contents(item) == contents(&items[0]))
    );
    let texts = json!(["a", { "text": "a" }, { "content": "a" }, { "type": "text", "text": "a" }]);
    let items = read_items(&texts).unwrap();
    assert!(
        items
            .iter()
            .all(|item| contents(item) == contents(&items[0]))
    );
    // vLLM's list of parts is as many documents.
    let parts = json!({ "content": [{ "type": "text", "text": "a" }, { "type": "image", "image": image }] });
    assert_eq!(read_items(&parts).unwrap().len(), 2);
    // A document without anything is the text NULL, as in the reference.
    assert_eq!(read_items(&json!([{}])).unwrap()[0].parts, []);
}

#[test]
fn what_is_no_document_is_refused_with_its_path() {
    for (body, param) in [
        (json!("a"), "documents"),
        (json!([]), "documents"),
        (json!([1]), "documents[0]"),
        (json!(["a", null]), "documents[1]"),
        (json!(["a", { "title": "b" }]), "documents[1].title"),
        (
            json!([{ "text": "a", "instruction": "b" }]),
            "documents[0].instruction",
        ),
        (json!([{ "type": "audio" }]), "documents[0].type"),
        (
            json!(["a", { "image": "ftp://example.com/a.png" }]),
            "documents[1].image",
        ),
        (json!({ "content": ["a"], "x": 1 }), "documents.x"),
    ] {
        let error = read_items(&body).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{body}: {error:?}");
    }
    let many = json!(vec!["a"; 2049]);
    assert_eq!(
        read_items(&many).unwrap_err().code,
        ErrorCode::TooManyInputs
    );
}

#[test]
fn a_numeric_priority_is_a_lane_as_for_embeddings() {
    let priority = |value: Value| {
        let taken = parsed(json!({ "documents": ["a"], "priority": value }));
        taken.unwrap().request.priority
    };
    assert_eq!(priority(json!(3)), Some(Priority::Bulk));
    assert_eq!((priority(json!(0)), priority(Value::Null)), (None, None));
}

#[test]
fn options_are_read_and_others_are_named() {
    let taken = parsed(json!({
        "model": "m", "documents": ["a"], "instruct": "find", "truncate": "END", "max_tokens_per_doc": 100,
        "priority": "interactive", "rank_fields": ["x"], "user": "u", "max_pixels": 5000,
    }));
    let taken = taken.unwrap();
    assert_eq!(taken.model.as_deref(), Some("m"));
    assert_eq!(taken.ignored, ["rank_fields"]);
    let request = taken.request;
    assert_eq!(request.instruction.as_deref(), Some("find"));
    assert_eq!(request.priority, Some(Priority::Interactive));
    assert_eq!(request.limit.context.truncation, Truncation::End);
    assert_eq!(request.limit.max_document_tokens, Some(100));
    for (field, value) in [
        ("truncate", json!("REFERENCE")),
        ("priority", json!("now")),
        ("max_tokens_per_doc", json!(0)),
        ("instruction", json!(1)),
        ("input_type", json!("nothing like it")),
        ("max_pixels", json!(0)),
        ("user", json!([])),
        ("model", json!(7)),
    ] {
        let mut body = json!({ "documents": ["a"] });
        body[field] = value;
        let error = parsed(body).err().unwrap();
        assert_eq!(error.param.as_deref(), Some(field), "{error:?}");
    }
}
