//! One request over one connection of its own. In: addresses that were checked, and a URL. Out: the head of the answer, and its body to read.
//!
//! Nothing is between the check and the dialling: no pool, no proxy, no second resolution. Heads are bounded here, bodies by who reads them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, CONNECTION, HOST, HeaderValue, IF_NONE_MATCH, USER_AGENT,
};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use url::{Host, Position, Url};

/// Largest head of an answer.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Most header fields of an answer.
const MAX_HEADERS: usize = 128;
/// How much of a body an HTTP/2 server may send before it is read.
const WINDOW_BYTES: u32 = 1 << 20;

/// A connection on which one request can be sent.
#[derive(Debug)]
pub(super) enum Connection {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

/// An answer, and the task that reads its connection: it ends with this.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) response: Response<Incoming>,
    _connection: Driver,
}

#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Connects to an address.
///
/// # Errors
/// When nobody answers there.
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    if stream.peer_addr()?.ip() != address.ip() {
        return Err(io::Error::other("the peer is another than was dialled"));
    }
    Ok(stream)
}

/// Encrypts a connection where the URL says so.
///
/// # Errors
/// When the peer is not who the URL names.
pub(super) async fn encrypt(
    url: &Url,
    stream: TcpStream,
    tls: &Arc<ClientConfig>,
) -> io::Result<Connection> {
    if url.scheme() != "https" {
        return Ok(Connection::Plain(stream));
    }
    let connector = TlsConnector::from(Arc::clone(tls));
    let encrypted = connector.connect(server_name(url)?, stream).await?;
    Ok(Connection::Encrypted(Box::new(encrypted)))
}

fn server_name(url: &Url) -> io::Result<ServerName<'static>> {
    match url.host() {
        Some(Host::Ipv4(v4)) => Ok(ServerName::from(IpAddr::V4(v4))),
        Some(Host::Ipv6(v6)) => Ok(ServerName::from(IpAddr::V6(v6))),
        Some(Host::Domain(name)) => {
            // A certificate names no root.
            let name = name.trim_end_matches('.').to_owned();
            ServerName::try_from(name).map_err(io::Error::other)
        }
        None => Err(io::ErrorKind::InvalidInput.into()),
    }
}

impl Connection {
    /// Asks for the URL; returns when the head of the answer is there. `tag`: only if the body is another than this one.
    ///
    /// # Errors
    /// When what comes back is no answer, or its head is too large.
    pub(super) async fn get(self, url: &Url, tag: Option<&HeaderValue>) -> io::Result<Exchange> {
        match self {
            Connection::Plain(stream) => get_http1(stream, request(url, tag, false)?).await,
            Connection::Encrypted(stream) => {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let request = request(url, tag, is_http2)?;
                if is_http2 {
                    get_http2(*stream, request).await
                } else {
                    get_http1(*stream, request).await
                }
            }
        }
    }
}

fn request(
    url: &Url,
    tag: Option<&HeaderValue>,
    is_http2: bool,
) -> io::Result<Request<Empty<Bytes>>> {
    let host = &url[Position::BeforeHost..Position::AfterPort];
    let target = if is_http2 {
        &url[..Position::AfterQuery]
    } else {
        &url[Position::BeforePath..Position::AfterQuery]
    };
    let mut request = Request::get(target)
        .header(USER_AGENT, concat!("manifold/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "image/*, video/*;q=0.9, */*;q=0.1")
        .header(ACCEPT_ENCODING, "identity");
    if !is_http2 {
        request = request.header(HOST, host).header(CONNECTION, "close");
    }
    if let Some(tag) = tag {
        request = request.header(IF_NONE_MATCH, tag);
    }
    request.body(Empty::new()).map_err(io::Error::other)
}

async fn get_http1(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> io::Result<Exchange> {
    let handshake = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        // The buffer alone bounds no head that comes at once.
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = handshake.map_err(io::Error::other)?;
    let driver = Driver(tokio::spawn(async move {
        // Why it ended, the answer and its body say too.
        connection.await.ok();
    }));
    let response = sender.send_request(request).await;
    Ok(Exchange {
        response: response.map_err(io::Error::other)?,
        _connection: driver,
    })
}

async fn get_http2(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> io::Result<Exchange> {
    let handshake = http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = handshake.map_err(io::Error::other)?;
    let driver = Driver(tokio::spawn(async move {
        connection.await.ok();
    }));
    let response = sender.send_request(request).await;
    Ok(Exchange {
        response: response.map_err(io::Error::other)?,
        _connection: driver,
    })
}

/// Whether an address is one of this machine's. Public ones are too where the machine has one, and what listens behind its firewall would answer.
/// No packet is sent: connecting a datagram socket only asks the routes which address it would be sent from.
pub(super) fn is_own(address: SocketAddr) -> bool {
    let any = match address.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let source = UdpSocket::bind((any, 0))
        .and_then(|socket| socket.connect(address).and_then(|()| socket.local_addr()));
    source.is_ok_and(|source| source.ip() == address.ip())
}
