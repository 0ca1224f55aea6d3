//! What the machine around a server says or lacks: proxies in its environment, programs that are not installed.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::clips;
use crate::server::{Server, media};

/// Answers every connection with a picture; counts nothing, asks nothing.
fn picture_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = media("parity", "tiny_20x20.png");
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_of_the_environment_are_not_asked() {
    let port = picture_server();
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    proxy.set_nonblocking(true).unwrap();
    let at = format!("http://{}", proxy.local_addr().unwrap());
    let ports = format!("--media-allowed-ports={port}");
    let variables = [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ];
    let environment = variables.map(|name| (name, at.as_str()));
    let arguments = ["--allow-private-networks", &ports];
    for roots in ["system", "webpki"] {
        let roots = format!("--media-tls-roots={roots}");
        let server = Server::start(&[&arguments[..], &[&roots]].concat(), &environment);
        for host in ["127.0.0.1", "localhost"] {
            let url = format!("http://{host}:{port}/a.png");
            let body = json!({ "input": { "image": url } });
            assert_eq!(server.vectors(&body).await.len(), 1);
        }
        // To a name that only a proxy would know, neither.
        let body = json!({ "input": { "image": format!("http://no.such.name.invalid:{port}/") } });
        assert_eq!(
            server.post(&body).await.json()["error"]["code"],
            "media_fetch_failed"
        );
    }
    assert!(proxy.accept().is_err(), "the proxy was asked");
}

/// Serves a picture by https as `localhost`, and writes the certificate of the authority that vouches for it, which is new each time.
async fn encrypted_picture_server(authority_pem: &Path) -> u16 {
    let authority = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).unwrap();
    std::fs::write(authority_pem, root.pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, authority);
    let own = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&own, &issuer).unwrap();
    let key = PrivateKeyDer::try_from(own.serialize_der()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = media("parity", "tiny_20x20.png");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let _ = stream.read(&mut [0; 4096]).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
            let _ = stream.shutdown().await;
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_the_system_is_told_of_is_believed_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let [ours, other] = ["ours.pem", "other.pem"].map(|name| directory.path().join(name));
    let port = encrypted_picture_server(&ours).await;
    encrypted_picture_server(&other).await;
    let ports = format!("--media-allowed-ports={port}");
    for (roots, told, is_believed) in [
        ("system", &ours, true),
        ("system", &other, false),
        ("webpki", &ours, false),
    ] {
        let roots = format!("--media-tls-roots={roots}");
        let server = Server::start(
            &["--allow-private-networks", &ports, &roots],
            &[("SSL_CERT_FILE", told.to_str().unwrap())],
        );
        let body = json!({ "input": { "image": format!("https://localhost:{port}/a.png") } });
        let answer = server.post(&body).await.json();
        if is_believed {
            assert!(answer["data"][0]["embedding"].is_array(), "{answer}");
        } else {
            assert_eq!(answer["error"]["code"], "media_fetch_failed", "{roots}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ffmpeg_runs_and_says_what_a_video_needs() {
    let nothing = tempfile::tempdir().unwrap();
    let path = nothing.path().to_str().unwrap();
    let server = Server::start(&[], &[("PATH", path)]);
    assert_eq!(server.vectors(&json!({ "input": "a cat" })).await.len(), 1);
    let image = BASE64_STANDARD.encode(media("parity", "tiny_20x20.png"));
    let frames = json!({ "input": { "video": [image, image] } });
    assert_eq!(server.vectors(&frames).await.len(), 1);
    let video = json!({ "input": { "video": BASE64_STANDARD.encode(clips::clip()) } });
    let answer = server.post(&video).await;
    let error = &answer.json()["error"];
    assert_eq!(
        (answer.status, error["code"].as_str()),
        (400, Some("unsupported_media"))
    );
    let words = error["message"].as_str().unwrap();
    assert!(words.contains("apt-get install ffmpeg"), "{words}");
    assert!(!words.contains(path), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_video_of_a_shape_nobody_resizes_is_refused_before_it_is_decoded() {
    let strip = clips::make(
        "a.mp4",
        &[
            "-f",
            "lavfi",
            "-i",
            "testsrc2=s=3232x16:r=5:d=1",
            "-pix_fmt",
            "yuv420p",
            "-c:v",
            "libx264",
        ],
    );
    // In the decoder's place a program that would take its time.
    let home = tempfile::tempdir().unwrap();
    let decoder = home.path().join("sleep");
    std::fs::copy("/bin/sleep", &decoder).unwrap();
    let arguments = ["--media-ffmpeg", decoder.to_str().unwrap()];
    let server = Server::start(&arguments, &[]);
    let body = json!({ "input": { "video": BASE64_STANDARD.encode(strip) } });
    let answer = tokio::time::timeout(Duration::from_secs(20), server.post(&body)).await;
    let error = answer.unwrap().json()["error"].clone();
    assert_eq!(error["code"], "invalid_video", "{error}");
    assert!(
        error["message"].as_str().unwrap().contains("200"),
        "{error}"
    );
}
