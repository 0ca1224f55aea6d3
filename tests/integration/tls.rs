//! Encrypted connections, and what SIGHUP reads again.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use reqwest::{Certificate, Client, Version};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::Server;

/// Writes a new certificate for `localhost` and its key; returns the certificate in PEM.
fn make(directory: &Path) -> String {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(directory.join("cert.pem"), made.cert.pem()).unwrap();
    made.cert.pem()
}

fn flags(directory: &Path) -> [String; 2] {
    ["cert", "key"].map(|what| {
        let file: PathBuf = directory.join(format!("{what}.pem"));
        format!("--tls-{what}={}", file.display())
    })
}

fn server(directory: &Path) -> (Server, String) {
    let flags = flags(directory);
    let server = Server::start(&[&flags[0], &flags[1]], &[]);
    assert!(
        server.url.starts_with("https://127.0.0.1:"),
        "{}",
        server.url
    );
    let url = server.url.replace("127.0.0.1", "localhost");
    (server, url)
}

/// A client that trusts one certificate.
fn client(pem: &str) -> reqwest::ClientBuilder {
    let trusted = Certificate::from_pem(pem.as_bytes()).unwrap();
    Client::builder()
        .no_proxy()
        .tls_certs_only([trusted])
        .resolve("localhost", ([127, 0, 0, 1], 0).into())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_trust_the_certificate_are_answered_in_both_protocols_and_others_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let pem = make(directory.path());
    let (server, url) = server(directory.path());
    for (client, version) in [
        (client(&pem), Version::HTTP_2),
        (client(&pem).http1_only(), Version::HTTP_11),
    ] {
        let request = client.build().unwrap().post(format!("{url}/v1/embeddings"));
        let request = request.header("content-type", "application/json");
        let answer = request.body(json!({"input": "a cat"}).to_string()).send();
        let answer = answer.await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
        let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert!(body["data"][0]["embedding"].is_array());
    }
    let strangers = tempfile::tempdir().unwrap();
    let other = client(&make(strangers.path())).build().unwrap();
    assert!(
        other
            .get(format!("{url}/health/live"))
            .send()
            .await
            .is_err()
    );
    // Who speaks no TLS gets no HTTP.
    let mut plain = tokio::net::TcpStream::connect(server.address())
        .await
        .unwrap();
    let request = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n";
    plain.write_all(request).await.unwrap();
    let mut said = Vec::new();
    plain.read_to_end(&mut said).await.ok();
    assert!(!String::from_utf8_lossy(&said).contains("HTTP/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_never_ends_is_closed_in_time() {
    let directory = tempfile::tempdir().unwrap();
    make(directory.path());
    let [cert, key] = flags(directory.path());
    let server = Server::start(&[&cert, &key, "--server-idle-timeout-ms=300"], &[]);
    let mut silent = tokio::net::TcpStream::connect(server.address())
        .await
        .unwrap();
    let mut said = Vec::new();
    let closed = silent.read_to_end(&mut said);
    let closed = tokio::time::timeout(Duration::from_secs(5), closed).await;
    closed.expect("the connection stays open").ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_check_knows_the_server_by_its_certificate() {
    let directory = tempfile::tempdir().unwrap();
    make(directory.path());
    let (server, _) = server(directory.path());
    let port = server.address().rsplit_once(':').unwrap().1.to_owned();
    let check = |directory: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_manifold"));
        command.args(["healthcheck", "--port", &port]);
        command.args(flags(directory)).output().unwrap()
    };
    let own = check(directory.path());
    assert!(
        own.status.success(),
        "{}",
        String::from_utf8_lossy(&own.stderr)
    );
    let strangers = tempfile::tempdir().unwrap();
    make(strangers.path());
    assert_eq!(check(strangers.path()).status.code(), Some(1));
}

/// Asks until `right`; a reload takes a moment.
async fn eventually(mut right: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !right().await {
        assert!(Instant::now() < deadline, "the reload changed nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reads_certificate_and_keys_again_and_keeps_what_was_when_they_are_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    std::fs::write(&keys, "first\n").unwrap();
    make(directory.path());
    let [cert, key] = flags(directory.path());
    let file = format!("--api-key-file={}", keys.display());
    let server = Server::start(&[&cert, &key, &file], &[]);
    let url = server.url.replace("127.0.0.1", "localhost");
    let pem = make(directory.path());
    let status = async |key: &str| {
        let client = client(&pem).build().unwrap();
        let request = client.get(format!("{url}/v1/models"));
        let sent = request
            .header("authorization", format!("Bearer {key}"))
            .send()
            .await;
        sent.ok().map(|answer| answer.status().as_u16())
    };
    assert_eq!(
        status("first").await,
        None,
        "the old certificate is still there"
    );
    std::fs::write(&keys, "second\n").unwrap();
    server.signal("HUP");
    eventually(async || status("second").await == Some(200)).await;
    assert_eq!(status("first").await, Some(401));
    std::fs::write(&keys, "").unwrap();
    std::fs::write(directory.path().join("cert.pem"), "").unwrap();
    server.signal("HUP");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(status("second").await, Some(200));
}

#[test]
fn a_certificate_that_cannot_be_read_stops_the_start_and_is_named() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_manifold"))
            .args(["serve", "--port", "0"])
            .args(arguments)
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), words)
    };
    let (code, words) = run(&["--tls-cert=no-such.pem", "--tls-key=no-such.key"]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("no-such.pem cannot be read"), "{words}");
    let (code, words) = run(&["--tls-cert=no-such.pem"]);
    assert_eq!(code, Some(2), "{words}");
    assert!(
        words.contains("server.tls_cert needs server.tls_key"),
        "{words}"
    );
}
