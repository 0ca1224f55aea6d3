//! The fetch policy against servers on the loopback.

use super::*;
use crate::media::{MediaLoader, MediaSource};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Answers every connection with `answer`, then does what `after` says; hands out the requests it read.
async fn server(answer: Vec<u8>, keep_open: bool) -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (requests, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (answer, requests) = (answer.clone(), requests.clone());
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let read = socket.read(&mut request).await.unwrap_or(0);
                let _ = requests.send(String::from_utf8_lossy(&request[..read]).into_owned());
                let _ = socket.write_all(&answer).await;
                if keep_open {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
            });
        }
    });
    (port, received)
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    let mut all = format!("HTTP/1.1 {head}\r\n\r\n").into_bytes();
    all.extend_from_slice(body);
    all
}

fn ok(body: &[u8]) -> Vec<u8> {
    answer(&format!("200 OK\r\nContent-Length: {}", body.len()), body)
}

/// A policy that lets tests reach the loopback at `port`.
fn open(port: u16) -> MediaSettings {
    MediaSettings {
        max_bytes: 1000,
        allow_private_networks: true,
        allowed_ports: vec![port],
        fetch_timeout: Duration::from_secs(5),
        ..MediaSettings::default()
    }
}

async fn load(settings: &MediaSettings, url: &str) -> Result<Bytes, MediaError> {
    let source = MediaSource::parse(url, settings.max_bytes)?;
    MediaLoader::new(settings).unwrap().load(&source).await
}

fn is_blocked(result: &Result<Bytes, MediaError>) -> bool {
    matches!(result, Err(MediaError::Blocked { .. }))
}

#[tokio::test]
async fn a_body_is_fetched_with_a_plain_request() {
    let (port, mut requests) = server(ok(b"picture"), false).await;
    let body = load(&open(port), &format!("http://127.0.0.1:{port}/a.png?x=1"))
        .await
        .unwrap();
    assert_eq!(&body[..], b"picture");
    let request = requests.recv().await.unwrap().to_ascii_lowercase();
    assert!(request.starts_with("get /a.png?x=1 http/1.1"), "{request}");
    assert!(
        request.contains("accept-encoding: identity")
            && !request.contains("cookie")
            && !request.contains("referer"),
        "{request}"
    );
}

#[tokio::test]
async fn names_are_resolved_and_dialled_when_their_addresses_are_allowed() {
    let (port, _requests) = server(ok(b"picture"), false).await;
    assert!(
        load(&open(port), &format!("http://localhost:{port}/"))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn chunked_bodies_are_read_whole() {
    let (port, _requests) = server(
        answer(
            "200 OK\r\nTransfer-Encoding: chunked",
            b"3\r\npic\r\n4\r\nture\r\n0\r\n\r\n",
        ),
        false,
    )
    .await;
    assert_eq!(
        &load(&open(port), &format!("http://127.0.0.1:{port}/"))
            .await
            .unwrap()[..],
        b"picture"
    );
}

#[tokio::test]
async fn a_length_above_the_limit_is_refused_before_the_body() {
    // The server never sends the body it announces: waiting for it would end in the timeout.
    let (port, _requests) = server(answer("200 OK\r\nContent-Length: 1001", b""), true).await;
    let result = load(&open(port), &format!("http://127.0.0.1:{port}/")).await;
    assert!(
        matches!(
            result,
            Err(MediaError::TooLarge {
                value: 1001,
                limit: 1000,
                ..
            })
        ),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_body_without_a_length_is_cut_off_at_the_limit() {
    let (port, _requests) = server(answer("200 OK\r\nConnection: close", &[0; 1001]), true).await;
    let result = load(&open(port), &format!("http://127.0.0.1:{port}/")).await;
    assert!(
        matches!(result, Err(MediaError::TooLarge { limit: 1000, .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_body_shorter_than_announced_is_an_error() {
    let (port, _requests) = server(answer("200 OK\r\nContent-Length: 10", b"pict"), false).await;
    let result = load(&open(port), &format!("http://127.0.0.1:{port}/")).await;
    assert!(
        matches!(result, Err(MediaError::FetchFailed { .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (target, mut reached) = server(ok(b"picture"), false).await;
    let location =
        format!("302 Found\r\nLocation: http://127.0.0.1:{target}/\r\nContent-Length: 0");
    let (port, _requests) = server(answer(&location, b""), false).await;
    let mut settings = open(port);
    settings.allowed_ports.push(target);
    assert!(is_blocked(
        &load(&settings, &format!("http://127.0.0.1:{port}/")).await
    ));
    assert!(reached.try_recv().is_err(), "the target was asked");
}

#[tokio::test]
async fn errors_tell_neither_the_status_nor_the_address() {
    for head in [
        "404 Not Found",
        "500 Oops",
        "401 Unauthorized",
        "206 Partial Content",
    ] {
        let (port, _requests) = server(
            answer(&format!("{head}\r\nContent-Length: 6"), b"secret"),
            false,
        )
        .await;
        let text = load(&open(port), &format!("http://127.0.0.1:{port}/"))
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(text, UNREACHABLE);
    }
    // A port nobody listens at reads the same.
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    assert_eq!(
        load(&open(free), &format!("http://127.0.0.1:{free}/"))
            .await
            .unwrap_err()
            .to_string(),
        UNREACHABLE
    );
}

#[tokio::test]
async fn encoded_bodies_are_refused() {
    let (port, _requests) = server(
        answer(
            "200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3",
            b"abc",
        ),
        false,
    )
    .await;
    assert!(matches!(
        load(&open(port), &format!("http://127.0.0.1:{port}/")).await,
        Err(MediaError::FetchFailed { .. })
    ));
}

#[tokio::test]
async fn slow_servers_are_left_at_the_timeout() {
    for slow in [Vec::new(), answer("200 OK\r\nContent-Length: 10", b"pict")] {
        let (port, _requests) = server(slow, true).await;
        let mut settings = open(port);
        settings.fetch_timeout = Duration::from_millis(200);
        let began = Instant::now();
        let result = load(&settings, &format!("http://127.0.0.1:{port}/")).await;
        assert!(
            matches!(result, Err(MediaError::FetchFailed { .. })),
            "{result:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(3));
    }
}

#[tokio::test]
async fn addresses_that_are_not_public_are_refused_in_every_spelling() {
    let (port, mut requests) = server(ok(b"secret"), false).await;
    let mut settings = open(port);
    settings.allow_private_networks = false;
    for host in [
        "127.0.0.1",
        "127.1",
        "127.0.0.1.",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "0.0.0.0",
        "0",
        "localhost",
        "LOCALHOST",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "10.0.0.1",
        "192.168.0.1",
        "metadata.google.internal",
        "metadata.google.internal.",
        "１２７.0.0.1",
        "127。0。0。1",
    ] {
        for url in [
            format!("http://{host}:{port}/"),
            format!("http:\\\\{host}:{port}\\"),
        ] {
            let result = load(&settings, &url).await;
            assert!(is_blocked(&result), "{url}: {result:?}");
            assert_eq!(result.unwrap_err().to_string(), NOT_PUBLIC, "{url}");
        }
    }
    // Whether a resolver knows "localhost." differs between systems; either way nothing is reached.
    assert!(
        load(&settings, &format!("http://localhost.:{port}/"))
            .await
            .is_err()
    );
    assert!(requests.try_recv().is_err(), "the server was reached");
}

#[test]
fn one_refused_address_among_many_refuses_the_name() {
    let addresses = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| SocketAddr::new(text.parse().unwrap(), 0))
            .collect::<Vec<_>>()
    };
    assert!(checked_addresses(addresses(&["8.8.8.8", "2606:4700::1111"]), false).is_ok());
    assert!(checked_addresses(addresses(&["8.8.8.8", "127.0.0.1"]), false).is_err());
    assert!(checked_addresses(addresses(&["8.8.8.8", "::ffff:10.0.0.1"]), false).is_err());
    assert!(checked_addresses(addresses(&["8.8.8.8", "127.0.0.1"]), true).is_ok());
}

#[tokio::test]
async fn metadata_hosts_are_refused_even_where_private_networks_are_allowed() {
    assert!(is_blocked(
        &load(
            &open(80),
            "http://metadata.google.internal/computeMetadata/v1/"
        )
        .await
    ));
}

#[tokio::test]
async fn other_ports_are_refused() {
    let (port, mut requests) = server(ok(b"picture"), false).await;
    let mut settings = open(port);
    settings.allowed_ports = vec![80, 443];
    assert!(is_blocked(
        &load(&settings, &format!("http://127.0.0.1:{port}/")).await
    ));
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn hosts_outside_the_allowed_domains_are_refused() {
    let (port, _requests) = server(ok(b"picture"), false).await;
    let mut settings = open(port);
    settings.allowed_domains = vec!["localhost".to_owned()];
    assert!(
        load(&settings, &format!("http://localhost:{port}/"))
            .await
            .is_ok()
    );
    assert!(is_blocked(
        &load(&settings, &format!("http://127.0.0.1:{port}/")).await
    ));
    assert!(is_blocked(
        &load(&settings, &format!("http://localhost.evil.example:{port}/")).await
    ));
}

#[tokio::test]
async fn no_url_is_fetched_where_fetching_is_off() {
    let (port, mut requests) = server(ok(b"picture"), false).await;
    let settings = MediaSettings {
        url_fetch: false,
        ..open(port)
    };
    assert!(is_blocked(
        &load(&settings, &format!("http://127.0.0.1:{port}/")).await
    ));
    assert!(requests.try_recv().is_err());
}
