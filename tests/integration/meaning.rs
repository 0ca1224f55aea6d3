//! The model inside the binary means something: what README shows on its first page, and a text finds its picture in several languages.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::sdks::run;
use crate::server::{Server, media};

const PICTURES: [&str; 3] = ["cat.png", "pizza.png", "rocket.png"];

/// Which of the pictures is nearest to a text.
async fn nearest(server: &Server, query: &str) -> usize {
    let pictures =
        PICTURES.map(|name| json!({ "image": BASE64_STANDARD.encode(media("demo", name)) }));
    let body = json!({ "query": query, "documents": pictures }).to_string();
    let headers = [("content-type", "application/json")];
    let answer = server
        .send(
            reqwest::Method::POST,
            "/v1/rerank",
            &headers,
            body.into_bytes(),
        )
        .await
        .json();
    let index = answer["results"][0]["index"].as_u64();
    usize::try_from(index.unwrap_or_else(|| panic!("{answer}"))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_finds_its_picture_in_several_languages_and_scripts() {
    let server = Server::start(&[], &[]);
    for (query, picture) in [
        ("cat", 0),
        ("Katze", 0),
        ("кошка", 0),
        ("猫", 0),
        ("chat", 0),
        ("gato", 0),
        ("pizza", 1),
        ("пицца", 1),
        ("ピザ", 1),
        ("rocket", 2),
        ("ロケット", 2),
    ] {
        assert_eq!(nearest(&server, query).await, picture, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_calls_of_the_readme_find_the_right_picture() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(top.join("README.md")).unwrap();
    let block = readme
        .split("```sh\n")
        .find(|block| block.contains("b64() {"));
    let shell = block.and_then(|block| block.split("```").next()).unwrap();
    let server = Server::start(&[], &[]);
    let shell = shell.replace("http://127.0.0.1:8080", &server.url);
    let printed = run(Command::new("bash").args(["-c", &shell]).current_dir(top));
    // One answer after the other.
    let mut answers = serde_json::Deserializer::from_str(&printed).into_iter::<Value>();
    let mut next = || answers.next().unwrap().unwrap();
    let vectors = next();
    assert_eq!(
        vectors["data"].as_array().map(Vec::len),
        Some(3),
        "{vectors}"
    );
    for wanted in [0, 1] {
        let ranked = next();
        assert_eq!(ranked["results"][0]["index"], wanted, "{ranked}");
    }
}
