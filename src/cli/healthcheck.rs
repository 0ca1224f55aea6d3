//! `manifold healthcheck`: asks the server on this machine whether it is ready, for containers whose image holds no `curl`.
//! In: where the server listens. Out: success, or why not.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConnection, StreamOwned};

use super::summary;
use crate::api;
use crate::config::ServerSettings;

/// Longer than the server may ever take to answer about its health.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks `GET /health/ready`.
///
/// # Errors
/// When nobody listens, or the answer is not 200.
pub(super) fn run(server: &ServerSettings) -> anyhow::Result<()> {
    let (host, port) = (server.host.as_str(), server.port);
    if port == 0 {
        bail!("server.port is 0, so the port is not known: set it for both, by MANIFOLD_PORT");
    }
    let found = (host, port).to_socket_addrs();
    let mut found = found.with_context(|| format!("cannot resolve {host}"))?;
    let address = found.next().context("the host has no address")?;
    let address = summary::reachable(address);
    let stream = connect(address)?;
    match &server.tls {
        None => ask(stream, address),
        Some(files) => {
            let name = ServerName::from(address.ip());
            let client = ClientConnection::new(api::own_client(files)?, name)?;
            ask(StreamOwned::new(client, stream), address)
        }
    }
}

fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("nobody answers at {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn ask(mut stream: impl Read + Write, address: SocketAddr) -> anyhow::Result<()> {
    let request =
        format!("GET /health/ready HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    // The status line is enough, and a stranger on the port must not fill our memory.
    let mut status = Vec::new();
    BufReader::new(stream.take(256)).read_until(b'\n', &mut status)?;
    let status = String::from_utf8_lossy(&status);
    let status = status.trim_end();
    match status.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => bail!("not ready: {address} answers {status:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn asked(answer: &'static str) -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            // All of it: closing a socket with unread bytes resets the connection.
            let lines = BufReader::new(&stream).lines();
            lines
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .count();
            stream.write_all(answer.as_bytes()).expect("written");
        });
        let result = connect(address).and_then(|stream| ask(stream, address));
        server.join().expect("the server ends");
        result
    }

    #[test]
    fn only_200_is_ready() {
        assert!(asked("HTTP/1.1 200 OK\r\n\r\n").is_ok());
        assert!(asked("HTTP/1.1 503 Service Unavailable\r\n\r\n").is_err());
        assert!(asked("220 mail.example.org\r\n").is_err());
        assert!(asked("").is_err());
    }

    #[test]
    fn nobody_listening_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        assert!(connect(address).is_err());
    }
}
