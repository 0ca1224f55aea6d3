//! The playground in headless Chromium, as a person would use it: a picture is dropped, two texts are typed, the matrix is read.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::clients::python_with;
use crate::sdks::run;
use crate::server::Server;

fn numbers(value: &Value) -> Vec<Vec<f64>> {
    let row = |row: &Value| {
        let cells = row.as_array().unwrap().iter();
        cells.map(|cell| cell.as_f64().unwrap()).collect()
    };
    value.as_array().unwrap().iter().map(row).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// What stands for a missing browser: `.ci/run` sets MANIFOLD_TEST_CLIENTS, and then nothing may be missing.
fn skipped(what: &str) {
    assert!(
        std::env::var_os("MANIFOLD_TEST_CLIENTS").is_none(),
        "{what} is missing"
    );
    eprintln!("skipped: {what} is not installed");
}

/// Holds the integers and bits the page computes against those the server answers the same call with.
fn stores_as_the_server_does(shell: &str, folder: &Path, stores: &Value) {
    for kind in ["int8", "binary"] {
        let of = format!("\"dimensions\":64,\"embedding_type\":\"{kind}\"");
        let typed = shell.replacen("\"dimensions\":64", &of, 1);
        assert_ne!(typed, shell);
        let mut curl = Command::new("bash");
        curl.args(["-c", &typed]).current_dir(folder);
        let answer: Value = serde_json::from_str(&run(&mut curl)).unwrap();
        for (one, page) in answer["data"]
            .as_array()
            .unwrap()
            .iter()
            .zip(numbers(&stores[kind]))
        {
            let given: Vec<i64> = serde_json::from_value(one["embedding"].clone()).unwrap();
            assert_eq!(page.len(), 64);
            if kind == "binary" {
                // Eight a byte, the first in the highest bit; the page has 1 and -1 for them.
                let bit = |i: usize| (given[i / 8] + 128) >> (7 - i % 8) & 1;
                let bits: Vec<f64> = (0..64).map(|i| (2 * bit(i) - 1) as f64).collect();
                assert_eq!(bits, page);
                continue;
            }
            // The page computes in f64 from digits: where the server's f32 is next to a half, they may part by one step.
            let steps = given.iter().zip(&page).map(|(a, b)| (*a as f64 - b).abs());
            let steps: Vec<f64> = steps.filter(|step| *step > 0.0).collect();
            let few = steps.len() <= 1 && steps.iter().all(|step| *step == 1.0);
            assert!(
                few && given.contains(&127) | given.contains(&-127),
                "{steps:?}"
            );
        }
    }
}

/// Runs what the page tells people to run, beside the files it names, and holds what it showed against the answers.
fn the_calls_it_shows_work(seen: &Value, files: [&Path; 2]) {
    // The calls it shows work, and the matrix at the dimensions that are set is that of the vectors it gives.
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::copy(file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let shell = seen["curl"].as_str().unwrap();
    let mut curl = Command::new("bash");
    curl.args(["-c", shell]).current_dir(folder.path());
    let answer: Value = serde_json::from_str(&run(&mut curl)).unwrap();
    let vectors: Vec<Vec<f64>> = (0..4)
        .map(|i| serde_json::from_value(answer["data"][i]["embedding"].clone()).unwrap())
        .collect();
    assert_eq!(vectors[0].len(), 64);
    let matrix = numbers(&seen["short"]);
    assert_eq!(matrix.len(), 4);
    for (i, row) in matrix.iter().enumerate() {
        for (j, &shown) in row.iter().enumerate() {
            let own = cosine(&vectors[i], &vectors[j]);
            assert!((own - shown).abs() <= 0.0006, "{i}, {j}: {shown}, {own}");
        }
    }
    if let Some(python) = python_with("openai") {
        let script = seen["python"].as_str().unwrap();
        let mut python = Command::new(python);
        python.args(["-c", script]).current_dir(folder.path());
        assert_eq!(run(&mut python).trim(), "[64, 64, 64, 64]");
    }
    stores_as_the_server_does(shell, folder.path(), &seen["stores"]);
}

#[test]
fn the_playground_compares_what_is_dropped_and_typed_and_has_no_barrier() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let Some(modules) = std::env::var_os("MANIFOLD_TEST_NODE_MODULES") else {
        return skipped("MANIFOLD_TEST_NODE_MODULES");
    };
    let modules = Path::new(&modules).join("node_modules");
    if !modules.join("playwright-core").exists() || !modules.join("axe-core").exists() {
        return skipped("playwright-core or axe-core");
    }
    let chromium =
        std::env::var("MANIFOLD_TEST_CHROMIUM").unwrap_or("/usr/bin/chromium".to_owned());
    if !Path::new(&chromium).exists() {
        return skipped("Chromium");
    }
    let server = Server::start(&["--dtype", "f32"], &[]);
    let url = format!("http://{}", server.address());
    let picture = fixtures.join("fixtures/parity/media/photo_cat.png");
    let clip = fixtures.join("fixtures/parity/media/clip_160x120.mp4");
    let mut driver = Command::new("node");
    driver
        .arg(fixtures.join("integration/playground.mjs"))
        .args([&format!("{url}/"), picture.to_str().unwrap()])
        .args([clip.to_str().unwrap(), &chromium])
        .args(std::env::var("MANIFOLD_TEST_SCREENSHOTS"))
        .env("NODE_PATH", &modules);
    let seen: Value = serde_json::from_str(&run(&mut driver)).unwrap();
    assert_eq!(seen["faults"], json!([]));
    assert_eq!(seen["violations"], json!([]));
    let requests = seen["requests"].as_array().unwrap();
    assert!(
        requests
            .iter()
            .all(|to| to.as_str().unwrap().starts_with(&url)),
        "{requests:?}"
    );
    assert_eq!(seen["light"]["matrix"], seen["dark"]["matrix"]);
    for other in ["bits", "short"] {
        assert_ne!(seen["light"][other], seen["light"]["matrix"]);
    }
    let near = seen["light"]["near"].as_array().unwrap();
    assert_eq!(
        (near.len(), &seen["light"]["of"]),
        (3, &json!("Of 2 a photo of a cat:"))
    );
    let explained = seen["light"]["explained"].as_array().unwrap();
    assert_eq!(explained.len(), 4);
    let told = explained[3].as_str().unwrap();
    assert!(
        told.contains("clip_160x120.mp4") && told.contains("frame times"),
        "{told}"
    );
    assert!(
        explained[0].as_str().unwrap().contains("<|image_pad|>"),
        "{}",
        explained[0]
    );
    the_calls_it_shows_work(&seen["light"], [&picture, &clip]);
}
