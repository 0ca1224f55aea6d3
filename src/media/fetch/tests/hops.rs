//! Redirects: which are followed, and that each hop stands under the whole rule.

use super::*;
use proptest::prelude::*;

fn policy(max_redirects: usize) -> Policy {
    Policy::new(&MediaSettings {
        max_redirects,
        ..MediaSettings::default()
    })
}

fn next(from: &str, location: &str) -> Result<String, MediaError> {
    let from = Url::parse(from).unwrap();
    let next = policy(3).redirected(&from, Some(location.as_bytes()), 0);
    next.map(|url| url.to_string())
}

/// Answers the path `/n` with a redirect to `/n-1` and `/0` with a body; and notes what was asked.
async fn chain(status: &'static str) -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (requests, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let read = socket.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let left: u32 = path.trim_start_matches('/').parse().unwrap_or(0);
            let _ = requests.send(path.to_owned());
            let said = match left {
                0 => ok(b"picture"),
                left => answer(
                    &format!("{status}\r\nLocation: {}\r\nContent-Length: 0", left - 1),
                    b"",
                ),
            };
            let _ = socket.write_all(&said).await;
        }
    });
    (port, received)
}

#[tokio::test]
async fn as_many_redirects_are_followed_as_the_operator_says_and_no_more() {
    for status in ["301 M", "302 F", "303 S", "307 T", "308 P"] {
        let (port, _asked) = chain(status).await;
        let settings = MediaSettings {
            max_redirects: 2,
            ..open(port)
        };
        let url = |hops: u32| format!("http://127.0.0.1:{port}/{hops}");
        for hops in 0..3 {
            let body = load(&settings, &url(hops)).await;
            assert_eq!(&body.unwrap()[..], b"picture", "{status} {hops}");
        }
        let result = load(&settings, &url(3)).await;
        assert!(is_blocked(&result), "{status}: {result:?}");
    }
    let (port, mut asked) = chain("302 F").await;
    let result = load(&open(port), &format!("http://127.0.0.1:{port}/1")).await;
    assert!(is_blocked(&result), "{result:?}");
    assert_eq!(asked.recv().await.as_deref(), Some("/1"));
    assert!(asked.try_recv().is_err(), "the target was asked");
}

#[tokio::test]
async fn other_statuses_with_a_location_are_not_followed() {
    for status in [
        "300 Multiple Choices",
        "304 Not Modified",
        "201 Created",
        "399 X",
    ] {
        let (port, mut asked) = chain(status).await;
        let settings = MediaSettings {
            max_redirects: 3,
            ..open(port)
        };
        let result = load(&settings, &format!("http://127.0.0.1:{port}/1")).await;
        assert!(is_failed(&result), "{status}: {result:?}");
        asked.recv().await.unwrap();
        assert!(asked.try_recv().is_err(), "{status} was followed");
    }
}

#[tokio::test]
async fn a_redirect_to_a_refused_address_never_reaches_it() {
    let (target, mut reached) = server(ok(b"secret"), false).await;
    // The first hop is let through as a private one; metadata never is.
    for place in [
        "http://169.254.169.254/latest/",
        "http://[fd00:ec2::254]/",
        "http://metadata/",
    ] {
        let head = format!("302 Found\r\nLocation: {place}\r\nContent-Length: 0");
        let (port, _requests) = server(answer(&head, b""), false).await;
        let mut settings = open(port);
        settings.max_redirects = 3;
        settings.allowed_ports.extend([80, target]);
        let result = load(&settings, &format!("http://127.0.0.1:{port}/")).await;
        assert!(is_blocked(&result), "{place}: {result:?}");
    }
    let head = format!("302 Found\r\nLocation: http://127.0.0.1:{target}/\r\nContent-Length: 0");
    let (port, _requests) = server(answer(&head, b""), false).await;
    let mut settings = open(port);
    settings.max_redirects = 3;
    let result = load(&settings, &format!("http://127.0.0.1:{port}/")).await;
    assert!(
        is_blocked(&result),
        "the port of the second hop: {result:?}"
    );
    assert!(reached.try_recv().is_err(), "the target was reached");
}

#[test]
fn locations_are_read_as_urls_are() {
    for (from, location, to) in [
        ("http://a.example/x/y?z#w", "b", "http://a.example/x/b"),
        ("http://a.example/x", "/b?c", "http://a.example/b?c"),
        ("http://a.example/x", "//b.example/c", "http://b.example/c"),
        (
            "https://a.example/x",
            "//b.example/c",
            "https://b.example/c",
        ),
        (
            "http://a.example/x",
            "https://b.example/#c",
            "https://b.example/",
        ),
        ("http://a.example/x", "/ü", "http://a.example/%C3%BC"),
        ("http://a.example/x", r"\\b.example\c", "http://b.example/c"),
    ] {
        assert_eq!(next(from, location).unwrap(), to, "{location}");
    }
}

#[test]
fn a_redirect_may_go_nowhere_a_url_may_not() {
    let long = format!("/{}", "a".repeat(9000));
    for (from, location) in [
        ("https://a.example/", "http://a.example/"),
        ("https://a.example/", "http:b"),
        ("http://a.example/", "ftp://a.example/"),
        ("http://a.example/", "file:///etc/passwd"),
        ("http://a.example/", "data:image/png;base64,AAAA"),
        ("http://a.example/", "javascript:alert(1)"),
        ("http://a.example/", "http://user@a.example/"),
        ("http://a.example/", "http://a.example:22/"),
        ("http://a.example/", "http://10.0.0.1/"),
        ("http://a.example/", "//0x7f.1/"),
        ("http://a.example/", r"/\169.254.169.254/"),
        ("http://a.example/", "http:/\t/127.0.0.1/"),
        ("http://a.example/", "http://[::ffff:10.0.0.1]/"),
        ("http://a.example/", "http://localhost/"),
        ("http://a.example/", "http://"),
        ("http://a.example/", &long),
    ] {
        assert!(next(from, location).is_err(), "{from} to {location}");
    }
    let from = Url::parse("http://a.example/").unwrap();
    assert!(policy(3).redirected(&from, None, 0).is_err());
    assert!(policy(3).redirected(&from, Some(b"/\xff"), 0).is_err());
    assert!(policy(3).redirected(&from, Some(b"/b"), 3).is_err());
}

proptest! {
    #[test]
    fn whatever_a_redirect_says_it_leads_only_where_the_policy_allows(location in ".{0,60}", tls in any::<bool>()) {
        let from = if tls { "https://a.example/x" } else { "http://a.example/x" };
        let from = Url::parse(from).unwrap();
        let policy = policy(1);
        if let Ok(next) = policy.redirected(&from, Some(location.as_bytes()), 0) {
            prop_assert!(policy.check(&next).is_ok());
            prop_assert!(!tls || next.scheme() == "https");
        }
    }
}
