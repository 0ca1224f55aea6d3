//! The OpenAPI document against the running server: its examples work, its answers are as described, its fields are read.

use serde_json::{Map, Value, json};

use crate::peers;
use crate::server::{Server, fixture, shown};

/// The document of a server, and validators for its schemas.
pub(crate) struct Document {
    pub(crate) whole: Value,
}

impl Document {
    pub(crate) async fn of(server: &Server) -> Self {
        let answer = server.get("/openapi.json").await;
        assert_eq!(answer.status, 200);
        Document {
            whole: answer.json(),
        }
    }

    /// What is wrong with a value by a schema of the document.
    pub(crate) fn complaints(&self, schema: &Value, value: &Value) -> Vec<String> {
        // Nothing would be a schema that allows everything.
        assert!(schema.is_object(), "there is no such schema");
        let mut rooted = schema.clone();
        rooted["components"] = self.whole["components"].clone();
        let validator = jsonschema::draft202012::new(&rooted).unwrap();
        let complaints = validator.iter_errors(value);
        complaints
            .map(|error| {
                format!("{}: {error}", error.instance_path())
                    .chars()
                    .take(300)
                    .collect()
            })
            .collect()
    }

    pub(crate) fn body_schema(&self, path: &str) -> &Value {
        &self.whole["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    }

    /// The schema of an answer in JSON; nothing where the status is not described.
    pub(crate) fn answer_schema(&self, (path, method): (&str, &str), status: u16) -> &Value {
        let response = &self.whole["paths"][path][method]["responses"][status.to_string()];
        &response["content"]["application/json"]["schema"]
    }

    fn examples(&self, path: &str) -> Map<String, Value> {
        let content = &self.whole["paths"][path]["post"]["requestBody"]["content"];
        content["application/json"]["examples"]
            .as_object()
            .unwrap()
            .clone()
    }

    fn posts(&self) -> Vec<String> {
        let paths = self.whole["paths"].as_object().unwrap().iter();
        let posts = paths.filter(|(_, methods)| methods["post"].is_object());
        posts.map(|(path, _)| path.clone()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_is_described_and_answered_as_described() {
    let server = Server::of("parity");
    let document = Document::of(&server).await;
    let posts = document.posts();
    assert!(posts.len() >= 7, "{posts:?}");
    for path in &posts {
        for (name, example) in document.examples(path) {
            let body = &example["value"];
            let complaints = document.complaints(document.body_schema(path), body);
            assert!(complaints.is_empty(), "{path} {name}: {complaints:?}");
            let answer = peers::post(&server, path, body).await;
            assert_eq!(answer.status, 200, "{path} {name}: {}", answer.json());
            let schema = document.answer_schema((path, "post"), 200);
            let complaints = document.complaints(schema, &answer.json());
            assert!(
                complaints.is_empty(),
                "{path} {name}: {complaints:?}\n{}",
                shown(&answer.json())
            );
        }
    }
    assert_described(&document, &server).await;
    // With a reranker beside, and alone, there is more and less to tell.
    let model = fixture("parity").join("model");
    let reranker = ["--reranker", model.to_str().unwrap()];
    let named = [
        "--served-reranker-name",
        "judge",
        "--model",
        "manifold-tiny",
    ];
    let beside = [&reranker[..], &named].concat();
    for arguments in [&beside[..], &reranker] {
        let server = Server::start(arguments, &[]);
        let document = Document::of(&server).await;
        let info = server.get("/info").await.json();
        let schema = document.answer_schema(("/info", "get"), 200);
        let complaints = document.complaints(schema, &info);
        assert!(complaints.is_empty(), "{arguments:?}: {complaints:?}");
        // A field that is not described, or is of another type, is seen.
        for changed in [
            json!({ "surprise": 1 }),
            json!({ "limits": {} }),
            json!({ "models": [] }),
        ] {
            let mut info = info.clone();
            let fields = changed.as_object().unwrap().clone();
            info.as_object_mut().unwrap().extend(fields);
            assert!(!document.complaints(schema, &info).is_empty(), "{changed}");
        }
        let echoed = json!({ "query": "x", "documents": ["a"], "user": "u", "max_pixels": 65536 });
        let answer = peers::post(&server, "/v1/rerank", &echoed).await;
        assert_eq!(answer.header("x-ignored-fields"), "");
        let schema = document.answer_schema(("/v1/rerank", "post"), 200);
        let complaints = document.complaints(schema, &answer.json());
        assert!(complaints.is_empty(), "{complaints:?}");
    }
}

/// Holds the answers to all that is read against the document.
async fn assert_described(document: &Document, server: &Server) {
    for (path, methods) in document.whole["paths"].as_object().unwrap() {
        if methods["get"].is_null() {
            continue;
        }
        let answer = server.get(&path.replace("{id}", "model")).await;
        assert_eq!(answer.status, 200, "{path}");
        let content = methods["get"]["responses"]["200"]["content"]
            .as_object()
            .unwrap();
        let kind = answer.header("content-type");
        assert!(
            content.keys().any(|known| kind.starts_with(known.as_str())),
            "{path}: {kind}"
        );
        if kind == "application/json" {
            let complaints = document.complaints(&content[kind]["schema"], &answer.json());
            assert!(complaints.is_empty(), "{path}: {complaints:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_described_field_is_read_and_refused_when_it_is_of_another_type() {
    let server = Server::of("parity");
    let document = Document::of(&server).await;
    let wrong = json!([{ "wrong": { "wrong": [] } }]);
    for path in document.posts() {
        let schema = document.body_schema(&path).clone();
        let examples = document.examples(&path);
        let (_, example) = examples.iter().next().unwrap();
        let mut tried = 0;
        for (at, fields) in [
            ("", &schema),
            ("parameters", &schema["properties"]["parameters"]),
        ] {
            let Some(fields) = fields["properties"].as_object() else {
                continue;
            };
            for name in fields.keys() {
                let mut body = example["value"].clone();
                // The one input the example has would stand beside another way to give it.
                if ["messages", "images", "inputs", "texts", "input"].contains(&name.as_str()) {
                    body = json!({});
                }
                match at {
                    "" => body[name] = wrong.clone(),
                    at => body[at][name] = wrong.clone(),
                }
                let complaints = document.complaints(&schema, &body);
                assert!(
                    !complaints.is_empty(),
                    "{path}: {at} {name} may be anything"
                );
                let answer = peers::post(&server, &path, &body).await;
                assert_eq!(answer.status, 400, "{path} {at} {name}: {}", answer.json());
                let complaints = document
                    .complaints(document.answer_schema((&path, "post"), 400), &answer.json());
                assert!(complaints.is_empty(), "{path}: {complaints:?}");
                assert_eq!(answer.header("x-ignored-fields"), "", "{path} {at} {name}");
                tried += 1;
            }
        }
        assert!(tried >= 12, "{path}: {tried}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_viewer_is_served_with_a_policy_that_loads_nothing_else() {
    let server = Server::of("parity");
    let page = server.get("/docs").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(
        page.header("content-security-policy")
            .contains("default-src 'none'")
    );
}
