//! Clients that leave before they are answered: what they had asked for is given up where it stands. Claims: a fetch is broken off, what waits
//! for the device is taken out of the queue, and both within seconds, not when they would have come to an end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::server::Server;

/// How late a busy machine may be.
const SLACK: Duration = Duration::from_secs(3);

/// Asks and does not wait for the answer.
fn asking(
    server: &Server,
    body: &Value,
) -> tokio::task::JoinHandle<reqwest::Result<reqwest::Response>> {
    let request = reqwest::Client::new()
        .post(format!("{}/v1/embeddings", server.url))
        .header("content-type", "application/json")
        .body(body.to_string());
    tokio::spawn(request.send())
}

/// The next connection of a host that says nothing, once a request came over it.
async fn asked(host: &TcpListener) -> TcpStream {
    let (mut stream, _) = host.accept().await.unwrap();
    let mut request = [0; 4096];
    assert!(stream.read(&mut request).await.unwrap() > 0);
    stream
}

/// Until the other side has closed.
async fn closed(mut stream: TcpStream) {
    let end = tokio::time::timeout(SLACK, stream.read(&mut [0; 64])).await;
    // A reset closes, too.
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_ends_when_the_client_leaves_and_at_the_deadline() {
    let host = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = host.local_addr().unwrap();
    let ports = format!("--media-allowed-ports={}", address.port());
    // Longer than the test may take: it is not the fetch's own time that ends it.
    let patience = "--media-fetch-timeout-ms=60000";
    let server = Server::start(&["--allow-private-networks", &ports, patience], &[]);
    let body = json!({ "input": { "image": format!("http://{address}/a.png") } });

    let client = asking(&server, &body);
    let stream = asked(&host).await;
    client.abort();
    closed(stream).await;

    let header = [
        ("x-request-timeout-ms", "400"),
        ("content-type", "application/json"),
    ];
    let bytes = body.to_string().into_bytes();
    let answer = server.send(reqwest::Method::POST, "/v1/embeddings", &header, bytes);
    let (answer, ()) = tokio::join!(answer, async { closed(asked(&host).await).await });
    assert_eq!(answer.status, 504, "{}", answer.json());
    assert_eq!(answer.json()["error"]["code"], "deadline_exceeded");
}

/// Tokens that wait for the device, in both lanes.
async fn waiting(server: &Server) -> f64 {
    let text = server.get("/metrics").await;
    let text = String::from_utf8(text.bytes).unwrap();
    text.lines()
        .filter(|line| line.starts_with("manifold_queue_tokens{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_device_goes_with_its_client() {
    let server = Server::start(&[], &[]);
    // Each takes the device a good while, and no two are the same.
    let texts = |of: &str, count: usize| -> Value {
        let text = |number| format!("{of} {number} {}", "to be or not to be ".repeat(400));
        json!({ "input": (0..count).map(text).collect::<Vec<_>>() })
    };
    let first = asking(&server, &texts("first", 6));
    let second = asking(&server, &texts("second", 60));
    let until = async |few: bool| {
        let began = Instant::now();
        // Of the second, the larger part still waits; of the first alone there never is so much.
        while (waiting(&server).await < 60_000.0) != few {
            assert!(
                began.elapsed() < Duration::from_secs(30),
                "few is not {few}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    until(false).await;
    second.abort();
    let left = Instant::now();
    until(true).await;
    assert!(left.elapsed() < SLACK, "{:?}", left.elapsed());
    let answer = first.await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    let metrics = server.get("/metrics").await;
    let metrics = String::from_utf8(metrics.bytes).unwrap();
    let dropped = metrics.lines().find_map(|line| {
        line.strip_prefix("manifold_inputs_dropped_total{reason=\"left\"} ")?
            .parse::<u64>()
            .ok()
    });
    assert!(dropped.is_some_and(|count| count > 0), "{metrics}");
}
