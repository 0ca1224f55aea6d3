//! An HTTP/1.1 client that does as little as possible: written requests, counted answers. In: bytes of a request. Out: status and what
//! the scenarios ask of an answer.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a scenario wants to know of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Whether it says when to come again.
    pub(crate) retry_after: bool,
    /// What the server says each stage took.
    pub(crate) stages: String,
}

/// A connection that is kept.
pub(crate) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
    /// The body of the last answer.
    pub(crate) body: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            read: Vec::with_capacity(16 * 1024),
            body: Vec::new(),
        })
    }

    /// Sends one request and reads its answer. The connection can be used again after `Ok`.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request).await?;
        self.read.clear();
        loop {
            if let Some((head, length)) = head(&self.read) {
                while self.read.len() < head + length {
                    self.more().await?;
                }
                let lines = &self.read[..head];
                let status = std::str::from_utf8(&lines[9..12]).ok();
                let status = status.and_then(|text| text.parse().ok());
                let answer = Answer {
                    status: status.ok_or(io::ErrorKind::InvalidData)?,
                    retry_after: find(lines, b"\r\nretry-after: ").is_some(),
                    stages: value(lines, b"\r\nserver-timing: "),
                };
                self.body.clear();
                self.body.extend_from_slice(&self.read[head..head + length]);
                return Ok(answer);
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// What stands after the name of a header, or nothing.
fn value(lines: &[u8], name: &[u8]) -> String {
    let after = find(lines, name).map_or(&[][..], |at| &lines[at + name.len()..]);
    let line = after.split(|&byte| byte == b'\r').next();
    String::from_utf8_lossy(line.unwrap_or_default()).into_owned()
}

/// Where the head ends and how long the body is, once the head is whole.
fn head(read: &[u8]) -> Option<(usize, usize)> {
    const LENGTH: &[u8] = b"\r\ncontent-length: ";
    let end = find(read, b"\r\n\r\n")?;
    // hyper and nginx spell it differently.
    let lines = read[..end].to_ascii_lowercase();
    let length = find(&lines, LENGTH).map_or(0, |at| {
        let digits = lines[at + LENGTH.len()..].iter();
        let digits = digits.take_while(|byte| byte.is_ascii_digit());
        digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'))
    });
    Some((end + 4, length))
}

/// A `POST /v1/embeddings` of a body, with more header lines, each ended.
pub(crate) fn post(body: &str, headers: &str) -> Vec<u8> {
    format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A request for a path.
pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n").into_bytes()
}
