//! Schemathesis over the published document, with every check: no server error, no answer that is not as described.
//!
//! It comes from the registry, so it runs where it is installed: `MANIFOLD_TEST_SCHEMATHESIS`, or `target/sdk/schemathesis`. Where
//! `MANIFOLD_TEST_CLIENTS` is set, as in CI, its absence is a failure. Each route gets 40 random bodies and follows its links;
//! `MANIFOLD_TEST_SCHEMATHESIS_EXAMPLES` says how many instead (330 are more than ten thousand cases), and
//! `MANIFOLD_TEST_SCHEMATHESIS_PHASES` what else is done: with `coverage` every schema is gone through case by case too, which is more
//! than a hundred thousand cases.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::server::{Server, fixture};

const KEY: &str = "fuzzing";

fn schemathesis() -> Option<PathBuf> {
    let named = std::env::var_os("MANIFOLD_TEST_SCHEMATHESIS").map(PathBuf::from);
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = named.unwrap_or_else(|| top.join("target/sdk/schemathesis/bin/schemathesis"));
    if program.exists() {
        return Some(program);
    }
    assert!(
        std::env::var_os("MANIFOLD_TEST_CLIENTS").is_none(),
        "there is no {}: install schemathesis",
        program.display()
    );
    eprintln!("skipped: there is no {}", program.display());
    None
}

/// Codes of what only decoding, fetching or the vocabulary can tell.
const BY_CONTENT: [&str; 6] = [
    "invalid_image",
    "invalid_video",
    "unsupported_media",
    "media_fetch_failed",
    "media_url_blocked",
    "context_length_exceeded",
];
/// What else no schema can say: how fields must agree with each other, and what a string must be beyond a pattern.
const BEYOND_SCHEMAS: [&str; 14] = [
    " mean the same and have different values",
    ", more than max_pixels, ",
    " it must be after start, ",
    "start, end and num_frames choose those of a video file",
    " mixes video files and pictures",
    " cannot stand beside raw",
    "encoding_format is \"bytes\"",
    " it must be one for all, or one for each",
    "token id ",
    "the input has no tokens",
    "expected a data: URI, base64, or",
    "a data: URI needs a comma",
    "marked as base64 and is not",
    "not a valid URL",
];

/// The refusals of bodies that the document allows, where the document could have said so.
fn needless(report: &Path) -> Vec<String> {
    let report = std::fs::read_to_string(report).unwrap();
    let events = report
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let (mut found, mut looked_at) = (Vec::new(), 0);
    for event in events {
        let recorder = &event["ScenarioFinished"]["recorder"];
        for (id, met) in recorder["interactions"].as_object().into_iter().flatten() {
            let case = &recorder["cases"][id]["value"];
            let is_allowed = case["meta"]["generation"]["mode"] == "positive";
            // The fields of a form are all text.
            let is_json = case["media_type"] == "application/json";
            looked_at += usize::from(is_allowed && is_json);
            if !is_allowed || !is_json || met["response"]["status_code"] != 400 {
                continue;
            }
            let body = met["response"]["content"]["$base64"].as_str();
            let body = STANDARD.decode(body.unwrap_or_default()).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            // As each family writes errors.
            let error = match &body["error"] {
                error @ Value::Object(_) => error,
                _ => &body,
            };
            let (code, message) = (error["code"].as_str(), error["message"].as_str());
            let (code, message) = (code.unwrap_or_default(), message.unwrap_or_default());
            let is_beyond = BEYOND_SCHEMAS.iter().any(|words| message.contains(words));
            if !is_beyond && !BY_CONTENT.contains(&code) {
                found.push(format!(
                    "{}: {message}: {}",
                    recorder["label"], case["body"]
                ));
            }
        }
    }
    // Another version may write its report in another way.
    assert!(
        looked_at > 100,
        "only {looked_at} bodies were found in the report"
    );
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_the_document_leads_to_breaks_the_server_or_the_document() {
    let Some(program) = schemathesis() else {
        return;
    };
    let said = |name: &str, usual: &str| std::env::var(name).unwrap_or(usual.to_owned());
    let examples = said("MANIFOLD_TEST_SCHEMATHESIS_EXAMPLES", "40");
    let phases = said(
        "MANIFOLD_TEST_SCHEMATHESIS_PHASES",
        "examples,fuzzing,stateful",
    );
    let model = fixture("parity").join("model");
    let server = Server::start(
        &[
            "--model",
            model.to_str().unwrap(),
            "--reranker",
            model.to_str().unwrap(),
            "--served-reranker-name",
            "judge",
            "--no-url-fetch",
        ],
        &[("MANIFOLD_API_KEY", KEY)],
    );
    // It leaves what it learned where it runs.
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.ndjson");
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/clients");
    let run = Command::new(program)
        .current_dir(folder.path())
        .env("SCHEMATHESIS_HOOKS", clients.join("hooks.py"))
        .arg("--config-file")
        .arg(clients.join("schemathesis.toml"))
        .args(["run", &format!("{}/openapi.json", server.url)])
        .args(["-H", &format!("Authorization: Bearer {KEY}")])
        .args(["--checks", "all", "--max-examples", &examples])
        .args(["--phases", &phases])
        .args(["--seed", "1", "--workers", "1", "--request-timeout", "60"])
        .args(["--suppress-health-check", "all"])
        .arg("--report-ndjson-path")
        .arg(&report)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&run.stderr)
    );
    println!("{said}");
    let needless = needless(&report);
    assert!(needless.is_empty(), "{}", needless.join("\n"));
}
