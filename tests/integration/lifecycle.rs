//! Start and stop.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::server::{Server, fixture, media};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_was_accepted_and_exits_with_0() {
    let model = fixture("parity").join("model");
    let patient = ["--server-drain-timeout-ms", "90000"];
    let mut server = Server::start(
        &[&["--model", model.to_str().unwrap()][..], &patient].concat(),
        &[],
    );
    // The largest picture of the fixture keeps the encoder busy for a while, on a busy machine for long.
    let image = BASE64_STANDARD.encode(media("parity", "huge_2400x1800.png"));
    let body = json!({ "input": { "image": image } });
    let url = server.url.clone();
    let request = tokio::spawn(async move {
        let client = reqwest::Client::new();
        let sent = client
            .post(format!("{url}/v1/embeddings"))
            .header("content-type", "application/json")
            .body(body.to_string());
        sent.send().await.unwrap().status().as_u16()
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(
        !request.is_finished(),
        "the request must still be running for the test to mean something"
    );
    let stopped = tokio::task::spawn_blocking(move || server.stop());
    assert_eq!(request.await.unwrap(), 200);
    assert_eq!(stopped.await.unwrap(), Some(0));
}

#[test]
fn a_wrong_start_says_why_and_exits_with_2_or_1() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_manifold"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, words) = run(&["serve", "--port", "99999", "--batch-max-tokens", "0"]);
    assert_eq!(code, 2, "{words}");
    assert!(
        words.contains("99999") && words.contains("batch"),
        "{words}"
    );
    let (code, words) = run(&["serve", "--port", "0", "--model", "./no-such-directory"]);
    assert_eq!(code, 1, "{words}");
    assert!(words.contains("no-such-directory"), "{words}");
    let (code, words) = run(&["serve", "--port", "0", "--device", "cuda"]);
    assert!(code == 70 || cfg!(feature = "cuda"), "{code}: {words}");
}

#[test]
fn verify_finds_the_embedded_model_right() {
    for dtype in ["f32", "bf16", "int8"] {
        let output = Command::new(env!("CARGO_BIN_EXE_manifold"))
            .args(["verify", "--dtype", dtype])
            .output()
            .unwrap();
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{dtype}: {table}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            table.contains("text_ja") && table.contains("all in one batch"),
            "{table}"
        );
    }
    // Another model of other weights has no built-in case: that is said, not passed over.
    let other = fixture("parity-untied").join("model");
    let output = Command::new(env!("CARGO_BIN_EXE_manifold"))
        .args(["verify", "--model", other.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
}
