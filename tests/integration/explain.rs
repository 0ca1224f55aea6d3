//! `/v1/embeddings/explain`: what it tells is what the vector is made of.

use serde_json::{Value, json};

use crate::peers::picture;
use crate::server::{Server, fixture};

async fn explain(server: &Server, body: &Value) -> Value {
    let answer = crate::peers::post(server, "/v1/embeddings/explain", body).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_agree_with_the_embedding_and_the_reference() {
    let server = Server::of("parity");
    let bytes = std::fs::read(fixture("parity").join("requests.json")).unwrap();
    let requests: Value = serde_json::from_slice(&bytes).unwrap();
    let goldens = std::fs::read(fixture("parity").join("goldens.json")).unwrap();
    let goldens: Value = serde_json::from_slice(&goldens).unwrap();
    let root = fixture("parity").join("media");
    let file = |name: &Value| format!("file://{}", root.join(name.as_str().unwrap()).display());
    let mut seen = 0;
    for request in requests["requests"].as_array().unwrap() {
        let object = &request["object"];
        // The plainest ones: one picture, one video file, one text.
        let mut input = json!({});
        if object["text"].is_string() {
            input["text"] = object["text"].clone();
        }
        if object["image"].is_string() {
            input["image"] = file(&object["image"]).into();
        }
        if object["video"]["file"].is_string() {
            input["video"] = file(&object["video"]["file"]).into();
        }
        let all = object.as_object().map_or(0, serde_json::Map::len);
        if input.as_object().unwrap().len() != all || all == 0 || !request["options"].is_null() {
            continue;
        }
        if request["instruction"].is_string() {
            input["instruction"] = request["instruction"].clone();
        }
        let id = request["id"].as_str().unwrap();
        if id == "text_special_tokens_in_input" {
            continue;
        }
        let told = explain(&server, &json!({ "input": input })).await;
        let told = &told["data"][0];
        let parts = told["parts"].as_array().unwrap();
        let of_parts: u64 = parts
            .iter()
            .map(|part| part["tokens"].as_u64().unwrap())
            .sum();
        let total = told["tokens"]["total"].as_u64().unwrap();
        assert_eq!(
            of_parts + told["tokens"]["template"].as_u64().unwrap(),
            total,
            "{id}"
        );
        let mut golden = goldens["requests"].as_array().unwrap().iter();
        let golden = golden.find(|golden| golden["id"] == id).unwrap();
        assert_eq!(json!(total), golden["num_tokens"], "{id}");
        assert_eq!(told["prompt"], golden["prompt"], "{id}");
        seen += 1;
    }
    assert!(seen >= 20, "{seen} requests were plain enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_is_told_apart() {
    let server = Server::of("parity");
    let clip = fixture("parity").join("media/clip_160x120.mp4");
    let body = json!({
        "input": [
            { "content": [
                { "type": "text", "text": "hello " },
                { "type": "text", "text": "world" },
                { "type": "image_url", "image_url": { "url": picture("odd_100x37.png") } },
                { "type": "video", "video": format!("file://{}", clip.display()) },
            ], "id": "all", "instruction": "Find it" },
            { "video": { "frames": [picture("frame_00.png"), picture("frame_01.png"), picture("frame_02.png")], "fps": 4 } },
        ],
        "strange": 1,
    });
    let answer = crate::peers::post(&server, "/v1/embeddings/explain", &body).await;
    assert_eq!(answer.header("x-ignored-fields"), "strange");
    let told = answer.json();
    let first = &told["data"][0];
    assert_eq!(
        (&first["id"], &first["object"]),
        (&json!("all"), &json!("embedding.explanation"))
    );
    assert_eq!(
        first["prompt"],
        "<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\nhello world<|vision_start|><|image_pad|><|vision_end|>\
         <|vision_start|><|video_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    );
    let parts = first["parts"].as_array().unwrap();
    let kinds: Vec<&str> = parts
        .iter()
        .map(|part| part["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["text", "text", "image", "video"]);
    assert_eq!(parts[2]["at"], "input[0].content[2].image_url");
    // 100 x 37 becomes 96 x 64 at the least area; what matters is that tokens, grid and size agree.
    let image = &parts[2];
    assert_eq!(
        (&image["width"], &image["height"]),
        (&json!(100), &json!(37))
    );
    let (width, height) = (
        image["resized_width"].as_u64().unwrap(),
        image["resized_height"].as_u64().unwrap(),
    );
    assert_eq!(image["grid_thw"], json!([1, height / 16, width / 16]));
    assert_eq!(image["tokens"], width * height / 1024 + 2);
    let video = &parts[3];
    let times = video["frame_times"].as_array().unwrap();
    let pairs = video["pair_times"].as_array().unwrap();
    assert_eq!(times.len(), 2 * pairs.len());
    assert_eq!(video["grid_thw"][0], pairs.len());
    let fps = video["source_fps"].as_f64().unwrap();
    for (time, index) in times.iter().zip(video["frame_indices"].as_array().unwrap()) {
        let expected = index.as_f64().unwrap() / fps;
        assert!((time.as_f64().unwrap() - expected).abs() < 1e-9);
    }
    let list = &told["data"][1]["parts"][0];
    assert_eq!(list["frame_times"], json!([0.0, 0.25, 0.5]));
    assert_eq!(list["frame_indices"], json!([0, 1, 2]));
    // Three frames are two pairs: the last is shown twice.
    assert_eq!(list["pair_times"], json!([0.125, 0.625]));
    let embedded = server.post(&body).await.json();
    for name in ["prompt_tokens", "total_tokens"] {
        assert_eq!(told["usage"][name], embedded["usage"][name], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_truncation_takes_is_told_and_what_cannot_be_embedded_is_refused_alike() {
    let server = Server::of("parity");
    let text = "one two three four five six seven eight nine ten eleven twelve";
    let told = explain(&server, &json!({ "input": { "text": [text, "and more"] } })).await;
    let whole = told["data"][0]["tokens"]["total"].as_u64().unwrap();
    let body = json!({ "input": { "text": [text, "and more"] }, "max_tokens": whole - 4, "truncate": "END" });
    let told = explain(&server, &body).await;
    let told = &told["data"][0];
    assert_eq!(
        told["truncation"],
        json!({ "mode": "END", "max_tokens": whole - 4, "truncated": true, "cut_tokens": 4 })
    );
    assert_eq!(told["tokens"]["total"], whole - 4);
    let cut = |part: usize| told["parts"][part]["cut_tokens"].as_u64().unwrap();
    assert!(cut(1) > 0 && cut(0) + cut(1) == 4, "{told}");

    for (body, code) in [
        (
            json!({ "input": text, "max_tokens": 20 }),
            "context_length_exceeded",
        ),
        (
            json!({ "input": { "image": "data:,x" } }),
            "unsupported_media",
        ),
        (
            json!({ "input": text, "model": "other" }),
            "model_not_found",
        ),
    ] {
        let refused = crate::peers::post(&server, "/v1/embeddings/explain", &body).await;
        let same = server.post(&body).await;
        assert_eq!(refused.json(), same.json());
        assert_eq!(refused.json()["error"]["code"], code);
    }
    let partial = json!({ "input": ["a", { "image": "data:,x" }, 3], "on_error": "partial" });
    let told = explain(&server, &partial).await;
    assert_eq!(told["data"][0]["parts"][0]["tokens"], 1);
    assert_eq!(told["data"][1]["error"]["code"], "unsupported_media");
    assert_eq!(told["data"][2]["error"]["param"], "input[2]");
}
