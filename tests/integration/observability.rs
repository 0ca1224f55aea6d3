//! What operators see: metrics, log lines, spans.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::Server;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The value of a sample, its labels written as they stand.
fn sample(metrics: &str, name: &str) -> f64 {
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("{name} is not in\n{metrics}"));
    value.parse().unwrap()
}

async fn metrics(server: &Server) -> String {
    let answer = server.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("text/plain"));
    String::from_utf8(answer.bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_say_what_was_asked_and_what_it_cost() {
    let server = Server::start(&[], &[]);
    let body = json!({ "input": ["a cat", "a dog"] });
    let tokens = server.post(&body).await.json()["usage"]["total_tokens"].clone();
    server.post(&body).await;
    let refused = server.post(&json!({ "input": [] })).await;
    assert_eq!(refused.status, 400);
    let text = metrics(&server).await;
    for (name, expected) in [
        (
            "manifold_requests_total{route=\"/v1/embeddings\",status=\"200\"}",
            2.0,
        ),
        (
            "manifold_request_duration_seconds_count{route=\"/v1/embeddings\"}",
            3.0,
        ),
        (
            "manifold_stage_duration_seconds_count{stage=\"forward\"}",
            2.0,
        ),
        ("manifold_rejections_total{reason=\"invalid_value\"}", 1.0),
        ("manifold_inputs_total", 4.0),
        (
            "manifold_tokens_total{modality=\"text\"}",
            2.0 * tokens.as_f64().unwrap(),
        ),
        ("manifold_queue_sequences{lane=\"interactive\"}", 0.0),
        ("manifold_queue_tokens{lane=\"bulk\"}", 0.0),
        ("manifold_queue_refusals_total{reason=\"full\"}", 0.0),
        (
            "manifold_batch_failures_total{reason=\"out_of_memory\"}",
            0.0,
        ),
        ("manifold_batch_max_tokens", 16_384.0),
        ("manifold_pixel_bytes", 0.0),
        // This request itself.
        ("manifold_requests_in_flight", 1.0),
    ] {
        assert_eq!(sample(&text, name), expected, "{name}");
    }
    // The second request found the template that the first one left.
    assert!(sample(&text, "manifold_cache_hits_total{cache=\"prefix\"}") >= 2.0);
    assert!(sample(&text, "manifold_cached_tokens_total") > 0.0);
    assert!(sample(&text, "manifold_batch_tokens_sum") > 0.0);
    assert!(sample(&text, "manifold_batch_fill_ratio_count") >= 2.0);
    assert!(sample(&text, "manifold_connections_open") >= 1.0);
    let model = "manifold_model_info{model=\"manifold-tiny\",revision=\"\",dtype=\"";
    assert!(text.contains(model), "{text}");
    if cfg!(target_os = "linux") {
        assert!(sample(&text, "manifold_process_resident_memory_bytes") > 1e6);
        assert!(sample(&text, "manifold_process_open_fds") > 3.0);
        assert!(sample(&text, "manifold_process_cpu_seconds_total") > 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_need_the_key_beside_the_api_and_none_on_their_own_listener() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let server = Server::start(
        &["--metrics-address", &address.to_string()],
        &[("MANIFOLD_API_KEY", "secret")],
    );
    assert_eq!(server.get("/metrics").await.status, 401);
    let own = reqwest::get(format!("http://{address}/metrics"))
        .await
        .unwrap();
    assert_eq!(own.status(), 200);
    let text = own.text().await.unwrap();
    assert!(
        sample(
            &text,
            "manifold_rejections_total{reason=\"invalid_api_key\"}"
        ) >= 1.0
    );
    let models = reqwest::get(format!("http://{address}/v1/models")).await;
    assert_eq!(models.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn fetches_are_counted_by_what_came_of_them() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let picture = crate::server::media("parity", "tiny_20x20.png");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..read]).to_lowercase();
            let (status, body) = match request.split(' ').nth(1) {
                _ if request.contains("if-none-match: \"a\"") => ("304 Same", &[][..]),
                Some("/a.png") => ("200 OK", &picture[..]),
                _ => ("404 Not Found", &[][..]),
            };
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\nETag: \"a\"\r\nContent-Length: {length}\r\n\r\n");
            let _ = stream.write_all(&[head.as_bytes(), body].concat());
        }
    });
    let ports = format!("--media-allowed-ports={port}");
    let options = [
        "--allow-private-networks",
        &ports,
        "--cache-max-media-bytes=1000000",
    ];
    let server = Server::start(&options, &[]);
    let fetch = async |url: String| server.post(&json!({ "input": { "image": url } })).await;
    let here = format!("http://127.0.0.1:{port}");
    let first = fetch(format!("{here}/a.png")).await;
    let again = fetch(format!("{here}/a.png#b")).await;
    assert_eq!((first.status, again.status), (200, 200), "{}", again.json());
    assert_eq!(first.json()["data"], again.json()["data"]);
    assert_eq!(fetch(format!("{here}/missing")).await.status, 400);
    assert_eq!(fetch("http://127.0.0.1:1/".to_owned()).await.status, 400);
    assert_eq!(
        fetch("http://169.254.169.254/".to_owned()).await.status,
        400
    );
    let text = metrics(&server).await;
    for (outcome, expected) in [
        ("fetched", 1.0),
        ("kept", 1.0),
        ("failed", 1.0),
        ("blocked", 2.0),
    ] {
        let name = format!("manifold_fetches_total{{outcome=\"{outcome}\"}}");
        assert_eq!(sample(&text, &name), expected, "{outcome}");
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_one_line_with_its_id_route_status_time_tokens_and_trace() {
    let mut log = tempfile::NamedTempFile::new().unwrap();
    let mut server = Server::start_logging(
        &["--log-format=json", "--log-level=info,manifold::api=debug"],
        &[],
        log.reopen().unwrap().into(),
    );
    let headers = [
        ("content-type", "application/json"),
        ("x-request-id", "mine-1"),
        ("traceparent", TRACEPARENT),
    ];
    let body = json!({ "input": "a cat" }).to_string().into_bytes();
    let post = reqwest::Method::POST;
    let answer = server.send(post, "/v1/embeddings", &headers, body).await;
    assert_eq!(answer.status, 200);
    server.get("/nothing").await;
    tokio::task::spawn_blocking(move || server.stop())
        .await
        .unwrap();
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["message"] == "answered")
        .collect();
    let [embedded, missing] = &lines[..] else {
        panic!("two requests, so two lines:\n{text}");
    };
    assert_eq!(embedded["status"], 200);
    assert!(embedded["ms"].as_f64().unwrap() > 0.0);
    assert_eq!(embedded["tokens"], answer.json()["usage"]["total_tokens"]);
    let span = &embedded["span"];
    assert_eq!(
        (&span["id"], &span["route"], &span["trace_id"]),
        (&json!("mine-1"), &json!("/v1/embeddings"), &json!(TRACE))
    );
    assert_eq!(missing["status"], 404);
    assert_eq!(missing["code"], "not_found");
    assert_eq!(missing["span"]["route"], "unmatched");
}

/// A collector that hands on what each export holds.
fn collector() -> (String, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (exports, received) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if exports.send(export(stream)).is_err() {
                return;
            }
        }
    });
    (endpoint, received)
}

/// Reads one request and answers it; its first line and its body.
fn export(mut stream: TcpStream) -> (String, Vec<u8>) {
    let mut read = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let end = read.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length: "));
            let length: usize = length.unwrap().parse().unwrap();
            if read.len() >= end + 4 + length {
                let close = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(close).unwrap();
                let first = head.lines().next().unwrap().to_owned();
                return (first, read.split_off(end + 4));
            }
        }
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "the exporter closed early");
        read.extend_from_slice(&piece[..count]);
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn spans_of_requests_reach_the_collector_within_their_callers_trace() {
    let (endpoint, received) = collector();
    let mut server = Server::start(&["--log-otlp-endpoint", &endpoint], &[]);
    let headers = [
        ("content-type", "application/json"),
        ("traceparent", TRACEPARENT),
    ];
    let body = json!({ "input": "a cat" }).to_string().into_bytes();
    let post = reqwest::Method::POST;
    let answer = server.send(post, "/v1/embeddings", &headers, body).await;
    assert_eq!(answer.status, 200);
    // What is left is exported when the server stops.
    let code = tokio::task::spawn_blocking(move || server.stop()).await;
    assert_eq!(code.unwrap(), Some(0));
    let (first, body) = received.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(first, "post /v1/traces http/1.1");
    let holds = |part: &[u8]| body.windows(part.len()).any(|window| window == part);
    let bytes = |hex: &str| -> Vec<u8> {
        (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    };
    assert!(holds(&bytes(TRACE)), "the caller's trace");
    assert!(holds(&bytes("00f067aa0ba902b7")), "the caller's span");
    for name in [
        "/v1/embeddings",
        "http.response.status_code",
        "manifold.forward_us",
    ] {
        assert!(holds(name.as_bytes()), "{name}");
    }
}

#[test]
fn a_collector_that_is_no_address_is_refused_at_the_start() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_manifold"))
        .args(["serve", "--log-otlp-endpoint", "collector:4317"])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{words}");
    assert!(words.contains("log.otlp_endpoint") && words.contains("collector:4317"));
}
