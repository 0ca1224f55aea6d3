//! Every golden request in every spelling that can express it: the same bits each time, and the reference's vector.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};

use crate::openapi::Document;
use crate::peers::{self, COHERE, DASHSCOPE, TEI, VOYAGE};
use crate::server::{Server, fixture, media, shown};

/// How media strings and parts are written.
#[derive(Clone, Copy, PartialEq)]
enum Style {
    /// `image_url` and `video_url` objects with data URIs.
    Url,
    /// `image_base64` and `video_base64`, bare base64.
    Base64,
    /// `image` and `video` with strings, as Qwen writes them.
    Qwen,
    /// `input_image` and `input_video`.
    Input,
    /// `file://`.
    File,
}

const STYLES: [Style; 5] = [
    Style::Url,
    Style::Base64,
    Style::Qwen,
    Style::Input,
    Style::File,
];

struct Golden<'a> {
    fixture: &'a str,
    request: &'a Value,
}

fn as_list(value: &Value) -> Vec<Value> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(values) => values.clone(),
        value => vec![value.clone()],
    }
}

impl Golden<'_> {
    /// A media file as a string of a style.
    fn string(&self, file: &Value, style: Style) -> String {
        let name = file.as_str().unwrap();
        let data = || BASE64_STANDARD.encode(media(self.fixture, name));
        let kind = if name.ends_with("mp4") {
            "video/mp4"
        } else if name.ends_with("jpg") {
            "image/jpeg"
        } else {
            "image/png"
        };
        match style {
            Style::Base64 => data(),
            Style::File => format!(
                "file://{}",
                fixture(self.fixture).join("media").join(name).display()
            ),
            _ => format!("data:{kind};base64,{}", data()),
        }
    }

    fn video(&self, video: &Value, style: Style) -> Value {
        if video["file"].is_string() {
            return self.string(&video["file"], style).into();
        }
        let frames: Vec<Value> = as_list(&video["frames"])
            .iter()
            .map(|frame| self.string(frame, style).into())
            .collect();
        match (&video["sample_fps"], style) {
            (Value::Null, Style::Qwen | Style::File) => frames.into(),
            (Value::Null, _) => json!({ "frames": frames }),
            (fps, _) => json!({ "frames": frames, "fps": fps }),
        }
    }

    /// One part of `content`.
    fn part(&self, part: &Value, style: Style) -> Value {
        if part["text"].is_string() {
            return json!({ "type": "text", "text": part["text"] });
        }
        if part["image"].is_string() {
            let string = self.string(&part["image"], style);
            return match style {
                Style::Url | Style::File => {
                    json!({ "type": "image_url", "image_url": { "url": string, "detail": "auto" } })
                }
                Style::Base64 => json!({ "type": "image_base64", "image_base64": string }),
                Style::Qwen => json!({ "type": "image", "image": string }),
                Style::Input => json!({ "type": "input_image", "image_url": string }),
            };
        }
        let video = self.video(&part["video"], style);
        match (style, video.is_string()) {
            (Style::Url | Style::File, true) => {
                json!({ "type": "video_url", "video_url": { "url": video } })
            }
            (Style::Base64, true) => json!({ "type": "video_base64", "video_base64": video }),
            (Style::Input, true) => {
                json!({ "type": "input_video", "input_video": { "data": video, "format": "mp4" } })
            }
            _ => json!({ "type": "video", "video": video }),
        }
    }

    /// The parts, in the reference's order for the object form.
    fn parts(&self) -> Vec<Value> {
        let object = &self.request["object"];
        let mut parts = as_list(&self.request["content"]);
        parts.extend(
            as_list(&object["video"])
                .into_iter()
                .map(|video| json!({ "video": video })),
        );
        parts.extend(
            as_list(&object["image"])
                .into_iter()
                .map(|image| json!({ "image": image })),
        );
        parts.extend(
            as_list(&object["text"])
                .into_iter()
                .map(|text| json!({ "text": text })),
        );
        parts
    }

    fn object(&self, style: Style) -> Option<Value> {
        let object = self.request["object"].as_object()?;
        let mut spelled = Map::new();
        for (kind, value) in object {
            let one = |value: &Value| match kind.as_str() {
                "text" => value.clone(),
                "image" => self.string(value, style).into(),
                _ => self.video(value, style),
            };
            let value = match value {
                Value::Array(values) => values.iter().map(one).collect(),
                value => one(value),
            };
            spelled.insert(kind.clone(), value);
        }
        Some(spelled.into())
    }

    /// The request's own options as the wire has them.
    fn options(&self) -> Map<String, Value> {
        let mut options = Map::new();
        for (name, value) in self.request["options"].as_object().into_iter().flatten() {
            match name.as_str() {
                "max_length" => {
                    options.insert("max_tokens".to_owned(), value.clone());
                    options.insert("truncate".to_owned(), "REFERENCE".into());
                }
                name => drop(options.insert(name.to_owned(), value.clone())),
            }
        }
        options
    }

    fn body(&self, field: &str, value: Value, instruction: bool) -> Value {
        let mut body = self.options();
        body.insert(field.to_owned(), value);
        if instruction && self.request["instruction"].is_string() {
            body.insert(
                "instruction".to_owned(),
                self.request["instruction"].clone(),
            );
        }
        body.into()
    }

    fn all(&self) -> Vec<Value> {
        let mut bodies = Vec::new();
        let instruction = &self.request["instruction"];
        let parts = self.parts();
        for style in STYLES {
            let spelled: Vec<Value> = parts.iter().map(|part| self.part(part, style)).collect();
            if let Some(object) = self.object(style) {
                bodies.push(self.body("input", object.clone(), true));
                bodies.push(self.body("input", json!([object]), true));
            }
            let mut content = json!({ "content": spelled });
            bodies.push(self.body("input", content.clone(), true));
            if instruction.is_string() {
                content["instruction"] = instruction.clone();
                bodies.push(self.body("input", json!([content]), false));
            }
            let mut messages = Vec::new();
            if instruction.is_string() {
                messages.push(json!({ "role": "system", "content": instruction }));
            }
            messages.push(json!({ "role": "user", "content": spelled }));
            bodies.push(self.body("messages", json!(messages), true));
            bodies.push(self.body("input", json!(messages), true));
            bodies.push(self.body("input", json!([messages]), true));
            // vLLM's recipe for this model.
            messages
                .push(json!({ "role": "assistant", "content": [{ "type": "text", "text": "" }] }));
            let mut recipe = self.body("messages", json!(messages), true);
            recipe["continue_final_message"] = true.into();
            recipe["add_special_tokens"] = true.into();
            bodies.push(recipe);
            if let [only] = &spelled[..] {
                bodies.push(self.body("input", only.clone(), true));
                bodies.push(self.body("input", json!([only]), true));
            }
        }
        if let [only] = &parts[..]
            && only["text"].is_string()
        {
            bodies.push(self.body("input", only["text"].clone(), true));
            bodies.push(self.body("input", json!([only["text"]]), true));
            bodies.push(self.body(
                "messages",
                json!([{ "role": "user", "content": only["text"] }]),
                true,
            ));
        }
        bodies
    }
}

impl Golden<'_> {
    /// The same content in the schemas of peers: the route and the body.
    fn of_peers(&self) -> Vec<(&'static str, Value)> {
        let instruction = &self.request["instruction"];
        let mut options = self.options();
        // Only one of them knows how to cut as the reference does.
        let cut = options.contains_key("truncate");
        if instruction.is_string() {
            options.insert("instruction".to_owned(), instruction.clone());
        }
        let with = |field: &str, value: Value| {
            let mut body = options.clone();
            body.insert(field.to_owned(), value);
            Value::from(body)
        };
        let mut bodies = Vec::new();
        for style in STYLES {
            let parts = self.parts();
            let spelled: Vec<Value> = parts.iter().map(|part| self.part(part, style)).collect();
            let inputs = json!([{ "content": spelled }]);
            bodies.push((COHERE, with("inputs", inputs.clone())));
            if cut {
                continue;
            }
            bodies.push((VOYAGE, with("inputs", inputs.clone())));
            bodies.push((TEI, with("inputs", inputs)));
            let Some(object) = self.object(style) else {
                continue;
            };
            bodies.push((TEI, with("inputs", object.clone())));
            let mut parameters = self.options();
            if instruction.is_string() {
                parameters.insert("instruct".to_owned(), instruction.clone());
            }
            // One object has all kinds, or each kind is one of the contents: one vector either way.
            let whole = json!({ "contents": [object] });
            let contents: Vec<Value> = object
                .as_object()
                .unwrap()
                .iter()
                .map(|(kind, value)| json!({ (kind.as_str()): value }))
                .collect();
            if contents.is_empty() {
                continue;
            }
            bodies.push((
                DASHSCOPE,
                json!({ "input": whole, "parameters": parameters }),
            ));
            parameters.insert("enable_fusion".to_owned(), true.into());
            let apart = json!({ "contents": contents });
            bodies.push((
                DASHSCOPE,
                json!({ "input": apart, "parameters": parameters }),
            ));
        }
        if let [only] = &self.parts()[..]
            && only["text"].is_string()
            && !cut
        {
            bodies.push((COHERE, with("texts", json!([only["text"]]))));
            bodies.push((TEI, with("inputs", only["text"].clone())));
        }
        bodies
    }
}

fn golden(fixture_name: &str, id: &str) -> Vec<f32> {
    let bytes = std::fs::read(fixture(fixture_name).join("goldens.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors
        .tensor(&format!("{id}/embedding"))
        .unwrap()
        .data()
        .to_vec();
    data.chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

async fn check(server: &Server, golden_request: &Golden<'_>) {
    let id = golden_request.request["id"].as_str().unwrap();
    let mut first: Option<Vec<f32>> = None;
    for body in golden_request.all() {
        let vector = server.vectors(&body).await.remove(0);
        match &first {
            None => first = Some(vector),
            Some(first) => assert_eq!(first, &vector, "{id} spelled {}", shown(&body)),
        }
    }
    let ours = first.unwrap();
    for (path, body) in golden_request.of_peers() {
        let answer = peers::post(server, path, &body).await;
        assert_eq!(answer.status, 200, "{id} at {path}: {}", answer.json());
        let vectors = peers::vectors_of(path, &answer.json());
        assert_eq!(
            vectors,
            std::slice::from_ref(&ours),
            "{id} at {path}: {}",
            shown(&body)
        );
    }
    let theirs = golden(golden_request.fixture, id);
    let text = golden_request.request.to_string();
    // Special-token strings in user text stay text: those ids differ from the reference's by design.
    if id == "text_special_tokens_in_input" {
        return;
    }
    let largest = ours
        .iter()
        .zip(&theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    if text.contains(".jpg") {
        let cosine: f32 = ours.iter().zip(&theirs).map(|(a, b)| a * b).sum();
        assert!(cosine >= 0.9999, "{id}: cosine {cosine}");
    } else {
        let tolerance = if text.contains("video") { 2e-4 } else { 1e-5 };
        assert!(largest <= tolerance, "{id}: max abs {largest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_spelling_of_every_golden_request_gives_the_reference_vector_bit_for_bit() {
    for name in ["parity", "parity-untied"] {
        let server = Server::of(name);
        let bytes = std::fs::read(fixture(name).join("requests.json")).unwrap();
        let requests: Value = serde_json::from_slice(&bytes).unwrap();
        for request in requests["requests"].as_array().unwrap() {
            // One spelling of the largest picture is enough: it is 7000 patches of arithmetic each time.
            let golden_request = Golden {
                fixture: name,
                request,
            };
            if request["id"] == "img_huge" {
                let body =
                    golden_request.body("input", golden_request.object(Style::File).unwrap(), true);
                let ours = server.vectors(&body).await.remove(0);
                let largest = ours
                    .iter()
                    .zip(golden(name, "img_huge"))
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                assert!(largest <= 1e-5, "img_huge: max abs {largest}");
                continue;
            }
            check(&server, &golden_request).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_all_kinds_equals_each_alone_bit_for_bit_in_both_precisions() {
    for dtype in ["f32", "bf16", "int8"] {
        let model = fixture("parity").join("model");
        let server = Server::start(
            &[
                "--model",
                model.to_str().unwrap(),
                "--dtype",
                dtype,
                "--threads",
                "2",
            ],
            &[],
        );
        let bytes = std::fs::read(fixture("parity").join("requests.json")).unwrap();
        let requests: Value = serde_json::from_slice(&bytes).unwrap();
        let wanted = [
            "text_short",
            "text_long",
            "text_zh",
            "img_tiny",
            "img_odd",
            "video_frames",
            "interleaved",
            "img_list_text",
        ];
        let requests = requests["requests"].as_array().unwrap().iter();
        let items: Vec<Value> = requests
            .filter(|request| wanted.contains(&request["id"].as_str().unwrap()))
            .map(|request| {
                let golden_request = Golden {
                    fixture: "parity",
                    request,
                };
                let parts: Vec<Value> = golden_request
                    .parts()
                    .iter()
                    .map(|part| golden_request.part(part, Style::Url))
                    .collect();
                json!({ "content": parts })
            })
            .collect();
        let mut alone = Vec::new();
        for item in &items {
            alone.push(server.vectors(&json!({ "input": [item] })).await.remove(0));
        }
        assert_eq!(
            server.vectors(&json!({ "input": items })).await,
            alone,
            "{dtype}: one request"
        );
        // Many at the same time share forward passes in whatever way they meet.
        let rounds = (0..6).flat_map(|_| items.iter().zip(&alone));
        let all = rounds.map(async |(item, alone)| {
            assert_eq!(
                &server.vectors(&json!({ "input": item })).await[0],
                alone,
                "{dtype}: at the same time"
            );
        });
        futures_util::future::join_all(all).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_spelling_is_in_the_published_schema() {
    let server = Server::of("parity");
    let document = Document::of(&server).await;
    for name in ["parity", "parity-untied"] {
        let bytes = std::fs::read(fixture(name).join("requests.json")).unwrap();
        let requests: Value = serde_json::from_slice(&bytes).unwrap();
        for request in requests["requests"].as_array().unwrap() {
            let golden_request = Golden {
                fixture: name,
                request,
            };
            let native = golden_request.all().into_iter();
            let native = native.map(|body| ("/v1/embeddings", body));
            for (path, body) in native.chain(golden_request.of_peers()) {
                let complaints = document.complaints(document.body_schema(path), &body);
                assert!(
                    complaints.is_empty(),
                    "{path} {}: {complaints:?}",
                    shown(&body)
                );
            }
        }
    }
}
