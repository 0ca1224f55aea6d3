//! `multipart/form-data`: what curl sends with `-F`, and what must not get through.

use serde_json::{Value, json};

use crate::peers::picture;
use crate::server::{Answer, Server, media, vectors};

/// A field of a form: its name, the name of its file if it is one, its bytes.
type Field<'a> = (&'a str, Option<&'a str>, &'a [u8]);

fn form(fields: &[Field<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file, bytes) in fields {
        let file = file.map_or(String::new(), |file| format!("; filename=\"{file}\""));
        let head =
            format!("--xyz\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend(head.into_bytes());
        body.extend_from_slice(bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--xyz--\r\n");
    body
}

async fn send(server: &Server, path: &str, body: Vec<u8>) -> Answer {
    let headers = [("content-type", "multipart/form-data; boundary=xyz")];
    server
        .send(reqwest::Method::POST, path, &headers, body)
        .await
}

async fn post(server: &Server, fields: &[Field<'_>]) -> Answer {
    send(server, "/v1/embeddings", form(fields)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_of_pictures_and_texts_is_the_object_that_has_them() {
    let server = Server::of("parity");
    let (tiny, odd) = (
        media("parity", "tiny_20x20.png"),
        media("parity", "odd_100x37.png"),
    );
    let object = json!({
        "input": { "image": [picture("odd_100x37.png"), picture("tiny_20x20.png")], "text": ["first", "12"], "id": "7" },
        "instruction": "Find it", "dimensions": 64, "max_pixels": 65536,
    });
    let answer = post(
        &server,
        &[
            ("text", None, b"first"),
            ("image", Some("odd.png"), &odd),
            ("dimensions", None, b"64"),
            ("image", Some("tiny.png"), &tiny),
            ("instruction", None, b"Find it"),
            ("max_pixels", None, b"65536"),
            ("text", Some("a.txt"), b"12"),
            ("id", None, b"7"),
            ("surprise", None, b"x"),
        ],
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    assert_eq!(vectors(&answer.json()), server.vectors(&object).await);
    assert_eq!(answer.json()["data"][0]["id"], "7");
    assert_eq!(answer.header("x-ignored-fields"), "surprise");

    let clip = media("parity", "clip_160x120.mp4");
    let answer = post(
        &server,
        &[("video", Some("a.mp4"), &clip), ("fps", None, b"2")],
    )
    .await;
    let root = crate::server::fixture("parity").join("media/clip_160x120.mp4");
    let object = json!({ "input": { "video": format!("file://{}", root.display()) }, "fps": 2 });
    assert_eq!(vectors(&answer.json()), server.vectors(&object).await);

    // A media string in place of a file, and input as it is in JSON.
    let uri = picture("tiny_20x20.png");
    let answer = post(&server, &[("image", None, uri.as_bytes())]).await;
    let object = json!({ "input": { "image": uri } });
    assert_eq!(vectors(&answer.json()), server.vectors(&object).await);
    let answer = post(
        &server,
        &[
            ("input", None, br#"["a", "b"]"#),
            ("truncate", None, b"true"),
        ],
    )
    .await;
    assert_eq!(
        vectors(&answer.json()),
        server.vectors(&json!({ "input": ["a", "b"] })).await
    );
    let explained = send(
        &server,
        "/v1/embeddings/explain",
        form(&[("text", None, b"a cat")]),
    )
    .await;
    assert_eq!(explained.json()["data"][0]["parts"][0]["at"], "text");
}

/// Forms, and the code and field of their refusal.
fn wrong_forms(png: &[u8]) -> Vec<(&'static str, Vec<Field<'_>>, &'static str, Value)> {
    vec![
        ("nothing", vec![], "invalid_value", json!("input")),
        (
            "no picture",
            vec![("image", Some("a.png"), &b"GIF89a"[..])],
            "invalid_image",
            json!("image"),
        ),
        (
            "half a picture",
            vec![
                ("text", None, &b"a"[..]),
                ("image", Some("a.png"), png),
                ("image", Some("b.png"), &png[..60]),
            ],
            "invalid_image",
            json!("image[1]"),
        ),
        (
            "no media string",
            vec![("image", None, &b"!"[..])],
            "invalid_value",
            json!("image"),
        ),
        (
            "not UTF-8",
            vec![("text", None, &b"\xff"[..])],
            "invalid_value",
            json!("text"),
        ),
        (
            "twice",
            vec![
                ("text", None, &b"a"[..]),
                ("user", None, &b"a"[..]),
                ("user", None, &b"b"[..]),
            ],
            "invalid_value",
            json!("user"),
        ),
        (
            "two ways",
            vec![("text", None, &b"a"[..]), ("input", None, &b"b"[..])],
            "invalid_value",
            json!("input"),
        ),
        (
            "a word for a number",
            vec![("text", None, &b"a"[..]), ("dimensions", None, &b"few"[..])],
            "invalid_dimensions",
            json!("dimensions"),
        ),
        (
            "too long",
            vec![
                (
                    "text",
                    None,
                    &b"a b c d e f g h i j k l m n o p q r s t u"[..],
                ),
                ("max_tokens", None, &b"20"[..]),
            ],
            "context_length_exceeded",
            json!("text"),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_is_wrong_is_told_where() {
    let server = Server::of("parity");
    let png = media("parity", "tiny_20x20.png");
    for (what, fields, code, param) in wrong_forms(&png) {
        let answer = post(&server, &fields).await;
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["code"], &error["param"]),
            (400, &json!(code), &param),
            "{what}: {error}"
        );
    }
    let whole = form(&[("text", None, b"a")]);
    for broken in [&whole[..whole.len() - 12], b"", b"--abc\r\n"] {
        let answer = send(&server, "/v1/embeddings", broken.to_vec()).await;
        assert_eq!(answer.status, 400, "{}", answer.json());
    }
    // Only the OpenAI routes take forms.
    let answer = send(&server, "/embed", whole).await;
    assert_eq!(answer.status, 415);
}
