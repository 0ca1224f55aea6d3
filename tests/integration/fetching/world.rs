//! Everything outside: a name server whose answers stand in the names that are asked for, and a web server at every address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{NAME_SERVER, urls};

/// For the names and addresses of honest https URLs.
pub(super) fn make_certificate(directory: &Path) {
    let made = rcgen::generate_simple_self_signed(urls::CERTIFIED.map(str::to_owned)).unwrap();
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(directory.join("cert.pem"), made.cert.pem()).unwrap();
}

fn acceptor(directory: &Path) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(directory.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem")).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config).into()
}

/// Answers until it is killed.
pub(super) fn serve(directory: &Path, picture: Vec<u8>) {
    let acceptor = acceptor(directory);
    let picture: Arc<[u8]> = picture.into();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let names = UdpSocket::bind((NAME_SERVER, 53)).await.unwrap();
        tokio::spawn(answer_names(names));
        for port in [80, 443] {
            // Both families: a socket of IPv6 takes both.
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .await
                .unwrap();
            let (acceptor, picture) = (acceptor.clone(), Arc::clone(&picture));
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (acceptor, picture) = (acceptor.clone(), Arc::clone(&picture));
                    tokio::spawn(async move {
                        if port == 80 {
                            answer(stream, &picture).await;
                        } else if let Ok(stream) = acceptor.accept(stream).await {
                            answer(stream, &picture).await;
                        }
                    });
                }
            });
        }
        println!("ready");
        std::future::pending::<()>().await;
    });
}

/// One answer: a picture, or the redirect that stands in the path, `/to/CODE/HOPS/URL`.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, picture: &[u8]) {
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await {
            Ok(read) if read > 0 => request.extend_from_slice(&piece[..read]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let steps: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let said = match steps[..] {
        ["to", code, hops, url] => {
            let hops: usize = hops.parse().unwrap_or(0);
            let place = if hops > 1 {
                format!("/to/{code}/{}/{url}", hops - 1)
            } else {
                let url = base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(url);
                String::from_utf8(url.unwrap_or_default()).unwrap_or_default()
            };
            format!("HTTP/1.1 {code} R\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n")
                .into_bytes()
        }
        ["chunked"] => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let mut said = head.as_bytes().to_vec();
            for piece in picture.chunks(50) {
                said.extend(format!("{:x}\r\n", piece.len()).as_bytes());
                said.extend_from_slice(piece);
                said.extend(b"\r\n");
            }
            said.extend(b"0\r\n\r\n");
            said
        }
        _ => {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                picture.len()
            );
            [head.as_bytes(), picture].concat()
        }
    };
    let _ = stream.write_all(&said).await;
    let _ = stream.shutdown().await;
}

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;

/// Answers questions: the addresses stand in the name, each a label, before a word that says how they are told.
async fn answer_names(socket: UdpSocket) {
    // How often each question was asked: a name server that rebinds answers otherwise the next time.
    let mut asked: HashMap<(String, u16), usize> = HashMap::new();
    let mut packet = [0; 1500];
    while let Ok((read, from)) = socket.recv_from(&mut packet).await {
        let Some((name, kind, end)) = question(&packet[..read]) else {
            continue;
        };
        let count = asked.entry((name.clone(), kind)).or_default();
        let records = records(&name, kind, *count);
        *count += 1;
        let Some(records) = records else {
            continue;
        };
        // No such name, or an answer: recursion was wanted and is available.
        let code = if records.is_empty() && !is_known(&name) {
            3
        } else {
            0
        };
        let mut said = packet[..2].to_vec();
        said.extend([0x81, 0x80 | code, 0, 1]);
        said.extend((records.len() as u16).to_be_bytes());
        said.extend([0, 0, 0, 0]);
        said.extend(&packet[12..end]);
        said.extend(records.concat());
        let _ = socket.send_to(&said, from).await;
    }
}

/// The name a packet asks for, in lower case, of which kind, and where the question ends.
fn question(packet: &[u8]) -> Option<(String, u16, usize)> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*packet.get(at)?);
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(packet.get(at + 1..at + 1 + length)?).to_lowercase());
        at += 1 + length;
    }
    let kind = u16::from_be_bytes([*packet.get(at + 1)?, *packet.get(at + 2)?]);
    Some((labels.join("."), kind, at + 5))
}

fn is_known(name: &str) -> bool {
    name.ends_with(urls::ZONE) || name.ends_with("metadata.google.internal")
}

/// An address as a label: `v4-10-0-0-1`, or `v6-` and 32 digits.
fn address(label: &str) -> Option<IpAddr> {
    if let Some(v4) = label.strip_prefix("v4-") {
        return v4
            .replace('-', ".")
            .parse::<Ipv4Addr>()
            .ok()
            .map(IpAddr::V4);
    }
    let bits = u128::from_str_radix(label.strip_prefix("v6-")?, 16).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

/// A record that may not be kept: its owner as a name or, `None`, what was asked for.
fn record(owner: Option<&str>, kind: u16, data: &[u8]) -> Vec<u8> {
    let mut record = owner.map_or(vec![0xc0, 12], encoded);
    record.extend(kind.to_be_bytes());
    record.extend([0, 1, 0, 0, 0, 0]);
    record.extend((data.len() as u16).to_be_bytes());
    record.extend(data);
    record
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// The answer to a question that was asked `count` times before; `None`: silence.
fn records(name: &str, kind: u16, count: usize) -> Option<Vec<Vec<u8>>> {
    let labels: Vec<&str> = name.split('.').collect();
    let mut addresses: Vec<IpAddr> = labels.iter().map_while(|label| address(label)).collect();
    let mode = labels.get(addresses.len()).copied().unwrap_or_default();
    if mode == "silent" {
        return None;
    }
    let is_asked = |address: &IpAddr| match kind {
        A => address.is_ipv4(),
        AAAA => address.is_ipv6(),
        _ => false,
    };
    addresses.retain(is_asked);
    if mode == "rebind" {
        let now = count.min(addresses.len().saturating_sub(1));
        addresses = addresses.get(now).copied().into_iter().collect();
    }
    let mut records = Vec::new();
    let mut owner = None;
    let aliases: &[&str] = match mode {
        "alias" => &["a.example"],
        "aliases" => &["a.example", "b.example", "c.example", "d.example"],
        "metadata" => &["metadata.google.internal"],
        _ => &[],
    };
    for alias in aliases {
        records.push(record(owner, CNAME, &encoded(alias)));
        owner = Some(*alias);
    }
    for address in addresses {
        records.push(match address {
            IpAddr::V4(v4) => record(owner, A, &v4.octets()),
            IpAddr::V6(v6) => record(owner, AAAA, &v6.octets()),
        });
    }
    Some(records)
}
