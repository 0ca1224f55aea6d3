//! Schemathesis over the published document, with every check: no server error, no answer that is not as described.
//!
//! It comes from the registry, so it runs where it is installed: `MANIFOLD_TEST_SCHEMATHESIS`, or `target/sdk/schemathesis`. Where
//! `MANIFOLD_TEST_CLIENTS` is set, as in CI, its absence is a failure. Each route gets 40 random bodies and follows its links;
//! `MANIFOLD_TEST_SCHEMATHESIS_EXAMPLES` says how many instead, and then every schema is gone through case by case too, which is more than
//! a hundred thousand cases and takes a quarter of an hour.

use std::path::{Path, PathBuf};
use std::process::Command;

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

#[tokio::test(flavor = "multi_thread")]
async fn no_request_the_document_leads_to_breaks_the_server_or_the_document() {
    let Some(program) = schemathesis() else {
        return;
    };
    let examples = std::env::var("MANIFOLD_TEST_SCHEMATHESIS_EXAMPLES");
    let (examples, phases) = match examples {
        Ok(examples) => (examples, "examples,coverage,fuzzing,stateful"),
        Err(_) => ("40".to_owned(), "examples,fuzzing,stateful"),
    };
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
    let config =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/clients/schemathesis.toml");
    // It leaves what it learned where it runs.
    let folder = tempfile::tempdir().unwrap();
    let run = Command::new(program)
        .current_dir(folder.path())
        .arg("--config-file")
        .arg(config)
        .args(["run", &format!("{}/openapi.json", server.url)])
        .args(["-H", &format!("Authorization: Bearer {KEY}")])
        .args(["--checks", "all", "--max-examples", &examples])
        .args(["--phases", phases])
        .args(["--seed", "1", "--workers", "1", "--request-timeout", "60"])
        .args(["--suppress-health-check", "all"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&run.stderr)
    );
    println!("{said}");
}
