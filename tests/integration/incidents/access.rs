//! Who may ask what, whatever a request calls itself, and clients that flood.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::connections::frame;
use crate::server::Server;

/// The status line of the answer to these very bytes.
async fn status(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let reading = stream.read_to_end(&mut said);
    let _ = tokio::time::timeout(Duration::from_secs(5), reading).await;
    String::from_utf8_lossy(&said)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_host_and_no_spelling_of_a_path_opens_a_route() {
    let server = Server::start(&[], &[("MANIFOLD_API_KEY", "secret")]);
    let hosts = [
        "x",
        "x/health",
        "x/health/live?",
        "x/health#",
        "localhost/health/live",
        "",
        "[::1]/health",
        "x\r\nX-Forwarded-Prefix: /health",
        "x\r\nX-Original-URL: /health/live",
    ];
    let targets = [
        "/v1/models",
        "/v1/models?/health",
        "/v1/models#/health/live",
        "//v1/models",
        "/health/../v1/models",
        "/health/live/../../v1/models",
        "/health/live/%2e%2e/%2e%2e/v1/models",
        "/health%2f..%2fv1/models",
        "/v1/models;/health/live",
        "/v1/models/health/live",
        "/%76%31/models",
        "/V1/MODELS",
        "/v1/models/",
        "http://x/v1/models",
        "http://x/health/live/../../v1/models",
        "http:///health/live",
        "*",
        "/metrics",
        "/health/live/x",
    ];
    for host in hosts {
        for target in targets {
            let request =
                format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let line = status(&server, &request).await;
            // An address that names no path has none but `/`, and what is no request is none of a route.
            let closed = line.contains(" 401 ") || line.contains(" 400 ");
            assert!(closed, "{target} of {host:?}: {line:?}");
        }
    }
    let open = status(
        &server,
        "GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert!(open.await.contains(" 200 "));
    let keyed = "GET /v1/models HTTP/1.1\r\nHost: x/health\r\nAuthorization: Bearer secret\r\nConnection: close\r\n\r\n";
    let keyed = status(&server, keyed).await;
    assert!(keyed.contains(" 200 "), "{keyed}");
}

/// Floods that nothing honest looks like: their connection is closed.
const CLOSED: &[&str] = &["closed"];
/// Others may be taken as they come, or their sender made to wait: they cost no memory and nobody else's answer.
const BORNE: &[&str] = &["closed", "no longer read", "taken"];
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// POST, http, /, authority x: entries of the static table, and one literal.
const REQUEST: [u8; 6] = [0x83, 0x86, 0x84, 0x41, 1, b'x'];

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_http2_frames_end_their_connection_and_no_other() {
    let server = Server::start(&[], &[]);
    let field = [&[0, 1, b'y', 0x7f, 0x81, 0x07][..], &[b'a'; 1024]].concat();
    let floods = [
        (
            "continuations",
            CLOSED,
            frame(HEADERS, 0, 1, &REQUEST),
            frame(CONTINUATION, 0, 1, &field),
        ),
        (
            "empty continuations",
            CLOSED,
            frame(HEADERS, 0, 1, &REQUEST),
            frame(CONTINUATION, 0, 1, &[]),
        ),
        (
            "empty data",
            CLOSED,
            frame(HEADERS, END_HEADERS, 1, &REQUEST),
            frame(DATA, 0, 1, &[]),
        ),
        ("pings", BORNE, Vec::new(), frame(PING, 0, 0, &[0; 8])),
        (
            "settings",
            BORNE,
            Vec::new(),
            frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]),
        ),
        (
            "windows",
            BORNE,
            Vec::new(),
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        ),
    ];
    for (what, outcomes, start, flood) in floods {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[]));
        hello.extend(start);
        stream.write_all(&hello).await.unwrap();
        // Without ever reading, as somebody does who wants the answers to pile up.
        let piece = flood.repeat(1 + (64 << 10) / flood.len());
        let flooding = async {
            for _ in 0..400 {
                if stream.write_all(&piece).await.is_err() {
                    return "closed";
                }
            }
            "taken"
        };
        let flooded = tokio::time::timeout(Duration::from_secs(2), flooding).await;
        let outcome = flooded.unwrap_or("no longer read");
        println!("{what}: {outcome}");
        assert!(outcomes.contains(&outcome), "{what}: {outcome}");
        let live = tokio::time::timeout(Duration::from_secs(5), server.get("/health/live")).await;
        assert_eq!(live.expect("nobody else is answered").status, 200, "{what}");
        let resident = memory(&server);
        assert!(resident < 1 << 30, "{what}: {resident} bytes");
    }
}

/// Resident bytes of the server, where the system tells.
fn memory(server: &Server) -> u64 {
    let path = format!("/proc/{}/statm", server.child.id());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
