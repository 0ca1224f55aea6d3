//! Clients that are slow, silent or too loud: what they hold, and for how long.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server::Server;

const TIMEOUT: Duration = Duration::from_millis(400);
/// How much later than its time a connection may be closed on a busy machine.
const SLACK: Duration = Duration::from_secs(3);

fn impatient() -> Server {
    Server::start(
        &[
            "--server-idle-timeout-ms=400",
            "--server-body-timeout-ms=400",
        ],
        &[],
    )
}

/// Sends `start`, then `drop` again and again, until the server closes; how long that took and what it said.
async fn drip(server: &Server, start: &[u8], drop: &[u8]) -> (Duration, String) {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let began = Instant::now();
    stream.write_all(start).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let dripping = async {
        loop {
            tokio::time::sleep(TIMEOUT / 8).await;
            // Fails when the server has closed, which the reader notices too.
            if writer.write_all(drop).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut said = Vec::new();
    tokio::select! {
        () = dripping => {}
        read = reader.read_to_end(&mut said) => { read.ok(); }
        () = tokio::time::sleep(TIMEOUT + SLACK) => panic!("not closed: {:?}", String::from_utf8_lossy(start)),
    }
    (began.elapsed(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_headers_slow_bodies_and_idle_connections_are_closed_in_time() {
    let server = impatient();
    let post = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let declared = format!("{post}content-length: 1000\r\n\r\n{{\"input\":");
    let chunked = format!("{post}transfer-encoding: chunked\r\n\r\n");
    for (what, start, drop, status) in [
        ("nothing at all", "", "", ""),
        ("a header that never ends", "GET / HTTP/1.1\r\nx: ", "x", ""),
        (
            "headers one after the other",
            "GET / HTTP/1.1\r\n",
            "a: b\r\n",
            "",
        ),
        (
            "the start of HTTP/2",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "",
            "",
        ),
        ("a body that stops", &declared, "", "408"),
        ("a body that trickles", &declared, " ", "408"),
        ("chunks of one byte", &chunked, "1\r\n \r\n", "408"),
        (
            "an answer, then nothing",
            "GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n",
            "",
            "200",
        ),
    ] {
        let (took, said) = drip(&server, start.as_bytes(), drop.as_bytes()).await;
        assert!(took >= TIMEOUT / 2, "{what}: closed after {took:?}");
        let line = said.lines().next().unwrap_or_default();
        assert!(line.contains(status), "{what}: {line:?}");
        // An idle HTTP/2 connection is told that it ends, in that protocol's own words.
        assert!(
            !status.is_empty() || !said.contains("200"),
            "{what}: {said:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn above_the_limit_of_connections_health_is_answered_and_others_are_told_to_come_again() {
    let server = Server::start(&["--max-connections=3"], &[]);
    let health = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut begun = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(health).await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        begun.push(stream);
    }
    // Each of these is closed after its answer.
    let ask = async |request: &[u8]| {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut said = String::new();
        let read = tokio::time::timeout(SLACK, stream.read_to_string(&mut said)).await;
        read.expect("it is closed").unwrap();
        said
    };
    let said = ask(health).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let said = ask(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 429"), "{said}");
    assert!(said.contains("retry-after: "), "{said}");
    assert!(said.contains("all 3 connections are in use"), "{said}");
    // One that says nothing is not kept for as long as others.
    let mut silent = TcpStream::connect(server.address()).await.unwrap();
    let closed = tokio::time::timeout(2 * SLACK, silent.read(&mut [0; 1])).await;
    assert_eq!(closed.expect("it is closed").unwrap(), 0);
    // A place that becomes free is the next one's.
    begun.pop();
    let deadline = Instant::now() + SLACK;
    let models = format!("{}/v1/models", server.url);
    while reqwest::get(&models).await.unwrap().status() != 200 {
        assert!(Instant::now() < deadline, "no place became free");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_above_the_limit_is_refused() {
    let server = Server::start(&["--server-max-header-bytes=8192"], &[]);
    let head = |bytes: usize| {
        let value = "a".repeat(bytes);
        format!("GET /health/live HTTP/1.1\r\nhost: x\r\nx: {value}\r\nconnection: close\r\n\r\n")
    };
    for (bytes, status) in [(6000, "200"), (9000, "431")] {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(head(bytes).as_bytes()).await.unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.ok();
        let said = String::from_utf8_lossy(&said);
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{said}");
    }
}

/// A frame of HTTP/2.
///
/// # Source
/// RFC 9113, section 4.1.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cancels_what_it_asks_again_and_again_loses_its_connection() {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const ENHANCE_YOUR_CALM: u8 = 11;
    let server = Server::start(&["--server-max-resets=20"], &[]);
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let mut flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    flood.extend(frame(SETTINGS, 0, 0, &[]));
    // GET, http, /, authority x: entries of the static table, and one literal.
    let header = [0x82, 0x86, 0x84, 0x41, 1, b'x'];
    for id in (1..2001).step_by(2) {
        flood.extend(frame(HEADERS, 0x5, id, &header));
        flood.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
    }
    // The server may close before all of it is sent.
    stream.write_all(&flood).await.ok();
    let mut said = Vec::new();
    let read = stream.read_to_end(&mut said);
    let read = tokio::time::timeout(Duration::from_secs(5), read).await;
    read.expect("the connection stays open").ok();
    let mut rest = &said[..];
    let mut reason = None;
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        if rest[3] == GOAWAY {
            reason = rest.get(9 + 7).copied();
        }
        rest = &rest[(9 + length).min(rest.len())..];
    }
    assert_eq!(reason, Some(ENHANCE_YOUR_CALM), "{said:?}");
    assert_eq!(server.get("/health/live").await.status, 200);
}
