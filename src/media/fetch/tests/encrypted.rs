//! https: whom we believe, HTTP/2 as well as HTTP/1.1, and servers that misuse either.

use std::convert::Infallible;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

use super::*;

/// A server's side of TLS for `name`, and a client's that believes it.
fn both_sides(name: &str, protocol: &[u8]) -> (TlsAcceptor, ClientConfig) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    server.alpn_protocols = vec![protocol.to_vec()];
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    (Arc::new(server).into(), trust::believing(roots).unwrap())
}

/// Accepts connections and hands each, decrypted, to `serve`.
async fn tls_server<F, S>(acceptor: TlsAcceptor, serve: S) -> u16
where
    F: Future<Output = ()> + Send + 'static,
    S: Fn(TlsStream<TcpStream>) -> F + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(socket).await {
                tokio::spawn(serve(stream));
            }
        }
    });
    port
}

async fn fetch(port: u16, client: ClientConfig, path: &str) -> Result<Bytes, MediaError> {
    let mut fetcher = Fetcher::with_tls(&open(port), client);
    let shared = Arc::get_mut(&mut fetcher.0).unwrap();
    shared.times.first_byte = Duration::from_millis(700);
    shared.times.whole = Duration::from_secs(2);
    let url = Url::parse(&format!("https://localhost:{port}{path}")).unwrap();
    fetcher.fetch(&url, 0).await.map(|fetched| fetched.body)
}

#[tokio::test]
async fn bodies_come_by_http2_where_the_server_speaks_it() {
    let (acceptor, client) = both_sides("localhost", b"h2");
    let port = tls_server(acceptor, async |stream| {
        let serve = service_fn(async |request: hyper::Request<Incoming>| {
            let seen = format!("{:?} {}", request.version(), request.uri());
            Ok::<_, Infallible>(Response::new(seen))
        });
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), serve)
            .await;
    })
    .await;
    let body = fetch(port, client, "/a?b").await.unwrap();
    let expected = format!("HTTP/2.0 https://localhost:{port}/a?b");
    assert_eq!(String::from_utf8_lossy(&body), expected);
}

#[tokio::test]
async fn bodies_come_by_http1_where_the_server_speaks_only_that() {
    let (acceptor, client) = both_sides("localhost", b"http/1.1");
    let port = tls_server(acceptor, async |mut stream| {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        let _ = stream.write_all(&ok(b"picture")).await;
        let _ = stream.shutdown().await;
    })
    .await;
    assert_eq!(&fetch(port, client, "/").await.unwrap()[..], b"picture");
}

#[tokio::test]
async fn certificates_of_others_and_of_nobody_are_refused() {
    let (acceptor, client) = both_sides("other.example", b"http/1.1");
    let served = async |mut stream: TlsStream<TcpStream>| {
        let _ = stream.write_all(&ok(b"secret")).await;
    };
    let port = tls_server(acceptor, served).await;
    let result = fetch(port, client, "/").await;
    assert_eq!(result.unwrap_err().to_string(), UNREACHABLE, "another's");
    let (acceptor, _) = both_sides("localhost", b"http/1.1");
    let port = tls_server(acceptor, served).await;
    for roots in [
        crate::media::TlsRoots::System,
        crate::media::TlsRoots::Webpki,
    ] {
        let client = trust::tls_config(roots).unwrap();
        let result = fetch(port, client, "/").await;
        assert_eq!(result.unwrap_err().to_string(), UNREACHABLE, "{roots:?}");
    }
}

#[tokio::test]
async fn mozillas_list_is_believed_whole_and_no_authority_beside_it() {
    let listed = webpki_root_certs::TLS_SERVER_ROOT_CERTS.len();
    let mut roots = trust::mozillas().unwrap();
    assert!(roots.len() == listed && listed > 100, "{listed}");
    let one_of_them = b"ISRG Root X1";
    let is_it = |subject: &[u8]| subject.windows(12).any(|it| it == one_of_them);
    assert!(roots.roots.iter().any(|root| is_it(&root.subject)));

    let authority = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).unwrap();
    let issuer = rcgen::Issuer::new(params, authority);
    let own = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&own, &issuer).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(own.serialize_der()).unwrap(),
        )
        .unwrap();
    let port = tls_server(Arc::new(server).into(), async |mut stream| {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(&ok(b"picture")).await;
        let _ = stream.shutdown().await;
    })
    .await;
    let listed_only = trust::tls_config(crate::media::TlsRoots::Webpki).unwrap();
    let result = fetch(port, listed_only, "/").await;
    assert_eq!(result.unwrap_err().to_string(), UNREACHABLE);
    roots.add(root.der().clone()).unwrap();
    let and_this_one = trust::believing(roots).unwrap();
    assert_eq!(
        &fetch(port, and_this_one, "/").await.unwrap()[..],
        b"picture"
    );
}

/// A frame of HTTP/2.
///
/// # Source
/// RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200`, in the static table of HPACK.
const STATUS_200: u8 = 0x88;
/// A literal field, `x: ` and a kilobyte, not indexed: its length in HPACK's seven-bit prefix.
fn long_field() -> Vec<u8> {
    let mut field = vec![0, 1, b'x', 0x7f, 0x81, 0x07];
    field.extend([b'a'; 1024]);
    field
}

/// A head of 100 KB, and one that never ends.
fn endless_heads() -> (Vec<u8>, Vec<u8>) {
    let fields: Vec<u8> = (0..100).flat_map(|_| long_field()).collect();
    let mut many = frame(HEADERS, 0, 1, &[STATUS_200]);
    for piece in fields.chunks(16_000) {
        many.extend(frame(CONTINUATION, 0, 1, piece));
    }
    many.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
    let mut flood = frame(HEADERS, 0, 1, &[STATUS_200]);
    for _ in 0..1000 {
        flood.extend(frame(CONTINUATION, 0, 1, &long_field()));
    }
    (many, flood)
}

/// What each server says once TLS stands, and how its connection ends.
fn misuses() -> Vec<(&'static str, Vec<u8>)> {
    let settings = frame(SETTINGS, 0, 0, &[]);
    let head = frame(HEADERS, END_HEADERS, 1, &[STATUS_200]);
    let after = |frames: &[Vec<u8>]| [&settings[..], &frames.concat()].concat();
    let (many, flood) = endless_heads();
    vec![
        ("no HTTP/2 at all", b"HTTP/1.1 200 OK\r\n\r\n".repeat(9)),
        ("nothing", Vec::new()),
        ("settings alone", settings.clone()),
        ("goodbye", after(&[frame(GOAWAY, 0, 0, &[0; 8])])),
        ("a reset", after(&[frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])])),
        (
            "no status",
            after(&[frame(HEADERS, END_HEADERS | END_STREAM, 1, &[])]),
        ),
        (
            "HPACK out of its table",
            after(&[frame(HEADERS, END_HEADERS, 1, &[0xff, 0xff, 0xff])]),
        ),
        ("a head of 100 KB", after(&[many])),
        ("continuations without end", after(&[flood])),
        (
            "a body before its head",
            after(&[frame(DATA, END_STREAM, 1, b"x")]),
        ),
        (
            "a body of another stream",
            after(&[head.clone(), frame(DATA, END_STREAM, 3, b"x")]),
        ),
        (
            "a promise",
            after(&[frame(
                PUSH_PROMISE,
                END_HEADERS,
                1,
                &[0, 0, 0, 2, STATUS_200],
            )]),
        ),
        (
            "a reset within the body",
            after(&[
                head.clone(),
                frame(DATA, 0, 1, b"x"),
                frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]),
            ]),
        ),
        (
            "a body that stops",
            after(&[head.clone(), frame(DATA, 0, 1, b"x")]),
        ),
        (
            "empty frames and no end",
            after(&[head.clone(), frame(DATA, 0, 1, b"").repeat(50_000)]),
        ),
        (
            "pings and no end",
            after(&[head, frame(PING, 0, 0, &[0; 8]).repeat(50_000)]),
        ),
        (
            "a frame of 16 MB",
            after(&[vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]]),
        ),
    ]
}

#[tokio::test]
async fn misuses_of_http2_are_failures_in_time() {
    for (what, said) in misuses() {
        let (acceptor, client) = both_sides("localhost", b"h2");
        let port = tls_server(acceptor, move |mut stream| {
            let said = said.clone();
            async move {
                let (mut reader, mut writer) = tokio::io::split(&mut stream);
                let sink = async {
                    let mut read = [0; 4096];
                    while reader.read(&mut read).await.is_ok_and(|read| read > 0) {}
                };
                let talk = async {
                    // Once the request is there: an answer before it is none.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let _ = writer.write_all(&said).await;
                    let _ = writer.flush().await;
                    tokio::time::sleep(Duration::from_secs(60)).await;
                };
                tokio::join!(sink, talk);
            }
        })
        .await;
        let began = Instant::now();
        let result = fetch(port, client, "/").await;
        assert!(is_failed(&result), "{what}: {result:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{what}");
    }
}

#[tokio::test]
async fn a_body_by_http2_is_cut_off_at_the_limit() {
    let (acceptor, client) = both_sides("localhost", b"h2");
    let port = tls_server(acceptor, async |mut stream| {
        let mut said = frame(SETTINGS, 0, 0, &[]);
        said.extend(frame(HEADERS, END_HEADERS, 1, &[STATUS_200]));
        said.extend(frame(DATA, 0, 1, &[0; 600]).repeat(2));
        tokio::time::sleep(Duration::from_millis(20)).await;
        let _ = stream.write_all(&said).await;
        let mut read = [0; 4096];
        while stream.read(&mut read).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let result = fetch(port, client, "/").await;
    assert!(
        matches!(
            result,
            Err(MediaError::TooLarge {
                value: 1200,
                limit: 1000,
                ..
            })
        ),
        "{result:?}"
    );
}
