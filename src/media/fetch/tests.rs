//! The fetch policy against servers on the loopback.

mod again;
mod encrypted;
mod hops;

use super::policy::NOT_PUBLIC;
use super::*;
use crate::media::{MediaLoader, MediaSource};
use std::sync::atomic::{AtomicUsize, Ordering};
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
    let loaded = MediaLoader::new(settings).unwrap().load(&source, 0).await;
    loaded.map(|loaded| loaded.bytes)
}

/// The same with other times, for the steps that no setting bounds.
async fn load_within(
    settings: &MediaSettings,
    times: (Duration, Duration),
    url: &str,
) -> Result<Bytes, MediaError> {
    let mut fetcher = Fetcher::new(settings).unwrap();
    let shared = Arc::get_mut(&mut fetcher.0).unwrap();
    (shared.times.connect, shared.times.first_byte) = times;
    let url = Url::parse(url).unwrap();
    fetcher.fetch(&url, 0).await.map(|fetched| fetched.body)
}

fn is_failed(result: &Result<Bytes, MediaError>) -> bool {
    matches!(result, Err(MediaError::FetchFailed { .. }))
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
fn one_refused_address_among_many_refuses_the_name_as_if_it_did_not_exist() {
    let judge = |allow_private_networks: bool, texts: &[&str]| {
        let settings = MediaSettings {
            allow_private_networks,
            ..MediaSettings::default()
        };
        let of = |text: &&str| SocketAddr::new(text.parse().unwrap(), 80);
        let addresses: Vec<SocketAddr> = texts.iter().map(of).collect();
        let url = Url::parse("http://name.example/").unwrap();
        let checked = Fetcher::new(&settings).unwrap().0.checked(&url, &addresses);
        checked.map_err(|error| error.to_string())
    };
    let refused = Err(UNREACHABLE.to_owned());
    assert!(judge(false, &["8.8.8.8", "2606:4700::1111"]).is_ok());
    assert_eq!(judge(false, &["8.8.8.8", "127.0.0.1"]), refused);
    assert_eq!(judge(false, &["127.0.0.1", "8.8.8.8"]), refused);
    assert_eq!(judge(false, &["8.8.8.8", "::ffff:10.0.0.1"]), refused);
    assert_eq!(judge(false, &[]), refused);
    assert!(judge(true, &["8.8.8.8", "127.0.0.1"]).is_ok());
    assert_eq!(judge(true, &["8.8.8.8", "169.254.169.254"]), refused);
}

#[test]
fn this_machines_own_addresses_are_known_without_a_packet() {
    let own = |text: &str| is_own(SocketAddr::new(text.parse().unwrap(), 80));
    assert!(own("127.0.0.1"));
    assert!(!own("8.8.8.8") && !own("2606:4700::1111"));
}

#[tokio::test]
async fn servers_that_take_a_connection_and_say_nothing_are_left_at_the_first_byte() {
    let times = (Duration::from_secs(5), Duration::from_millis(200));
    for drip in [Vec::new(), b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()] {
        let (port, _requests) = server(drip, true).await;
        let began = Instant::now();
        let url = format!("http://127.0.0.1:{port}/");
        let result = load_within(&open(port), times, &url).await;
        assert!(is_failed(&result), "{result:?}");
        assert!(began.elapsed() < Duration::from_secs(3));
    }
}

#[tokio::test]
async fn servers_that_take_no_connection_are_left_in_time() {
    // A full backlog: the kernel answers no more connections.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let connecting = tokio::net::TcpStream::connect(("127.0.0.1", port));
        waiting.push(tokio::time::timeout(Duration::from_millis(50), connecting).await);
    }
    let began = Instant::now();
    let times = (Duration::from_millis(200), Duration::from_secs(5));
    let result = load_within(&open(port), times, &format!("http://127.0.0.1:{port}/")).await;
    assert!(is_failed(&result), "{result:?}");
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn heads_that_never_end_or_are_huge_are_refused() {
    let long = format!(
        "200 OK\r\nX: {}\r\nContent-Length: 1",
        "a".repeat(100 << 10)
    );
    let many = format!("200 OK{}\r\nContent-Length: 1", "\r\nX: a".repeat(1000));
    let interim = "100 Continue\r\n\r\nHTTP/1.1 ".repeat(20_000);
    for head in [long, many, interim] {
        let (port, _requests) = server(answer(&head, b"x"), true).await;
        let times = (Duration::from_secs(5), Duration::from_millis(500));
        let url = format!("http://127.0.0.1:{port}/");
        let result = load_within(&open(port), times, &url).await;
        assert!(is_failed(&result), "{result:?}");
    }
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    for nonsense in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"220 smtp.example ESMTP\r\n",
        b"+OK redis\r\n",
        b"<html>no head</html>",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ] {
        let (port, _requests) = server(nonsense.to_vec(), false).await;
        let result = load(&open(port), &format!("http://127.0.0.1:{port}/")).await;
        assert!(
            is_failed(&result),
            "{:?}: {result:?}",
            String::from_utf8_lossy(nonsense)
        );
    }
}

#[tokio::test]
async fn endless_chunks_are_cut_off_at_the_limit() {
    let chunks = b"1\r\nx\r\n".repeat(1001);
    let head = "200 OK\r\nTransfer-Encoding: chunked";
    let (port, _requests) = server(answer(head, &chunks), true).await;
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
async fn more_bytes_than_announced_are_not_read() {
    let (port, _requests) = server(answer("200 OK\r\nContent-Length: 3", b"picture"), false).await;
    let body = load(&open(port), &format!("http://127.0.0.1:{port}/")).await;
    assert_eq!(&body.unwrap()[..], b"pic");
}

#[tokio::test]
async fn only_so_many_fetches_of_one_host_go_on_at_a_time_and_a_client_that_leaves_frees_its_place()
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, seen) = (Arc::clone(&now), Arc::clone(&most));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let now = Arc::clone(&counted);
            seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = socket.read(&mut request).await;
                tokio::time::sleep(Duration::from_millis(30)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                let _ = socket.write_all(&ok(b"picture")).await;
            });
        }
    });
    let settings = MediaSettings {
        max_fetches_per_host: 3,
        ..open(port)
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    // The same host by two names.
    let urls = ["127.0.0.1", "localhost"].map(|host| format!("http://{host}:{port}/"));
    let urls = urls.map(|url| Url::parse(&url).unwrap());
    let fetches = (0..12).map(|i| fetcher.fetch(&urls[i % 2], 0));
    for fetched in futures_util::future::join_all(fetches).await {
        assert_eq!(&fetched.unwrap().body[..], b"picture");
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
    let left = futures_util::future::join_all((0..6).map(|_| fetcher.fetch(&urls[0], 0)));
    assert!(
        tokio::time::timeout(Duration::from_millis(10), left)
            .await
            .is_err()
    );
    assert!(fetcher.fetch(&urls[0], 0).await.is_ok());
}

#[tokio::test]
async fn metadata_is_refused_even_where_private_networks_are_allowed() {
    for host in [
        "metadata.google.internal",
        "METADATA.google.internal.",
        "169.254.169.254",
        "0xa9fea9fe",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "168.63.129.16",
        "100.100.100.200",
    ] {
        let result = load(&open(80), &format!("http://{host}/latest/meta-data/")).await;
        assert!(is_blocked(&result), "{host}: {result:?}");
    }
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
