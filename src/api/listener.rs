//! Connections: our own accept loop, for a stock one has no timer and lets a slow client hold its connection for ever.
//!
//! One rule closes silent, slow and idle clients of either protocol: a connection ends when for `idle_timeout` no request was in
//! flight and no piece of an answer was taken. What has not finished its handshake or its header has no request yet; how slowly a
//! request's body may come is its handler's to bound.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, Version, header};
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::tls::Tls;
use crate::telemetry;

/// Pieces an answer is handed to the connection in.
const PIECE_BYTES: usize = 64 * 1024;

/// Connections above the limit that are still answered, so that who asks for health is told and everyone else is refused at once. Beyond
/// these, clients wait in the kernel's queue.
const SPARE_CONNECTIONS: usize = 64;
/// Longest time such a connection may be idle.
const SPARE_IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Marks a request that came over a connection above the limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crowded;

/// Limits of connections.
#[derive(Debug, Clone)]
pub struct ListenerSettings {
    /// Most connections at a time.
    pub max_connections: usize,
    /// Time a client has to send its headers, and may leave a connection unused.
    pub idle_timeout: Duration,
    /// Largest head of a request.
    pub max_header_bytes: usize,
    /// Most requests at a time on one connection, where the protocol has such.
    pub max_streams: u32,
    /// Most of those that a client may cancel before they were looked at; a client that cancels more loses its connection.
    pub max_resets: usize,
    /// How long connections are still accepted after the signal to stop, so that load balancers notice first.
    pub drain_delay: Duration,
    /// Time requests that were accepted have to finish.
    pub drain_timeout: Duration,
    /// What connections are encrypted with.
    pub tls: Option<Tls>,
}

impl Default for ListenerSettings {
    fn default() -> Self {
        ListenerSettings {
            max_connections: 4096,
            idle_timeout: Duration::from_secs(20),
            max_header_bytes: 64 * 1024,
            max_streams: 256,
            max_resets: 64,
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
            tls: None,
        }
    }
}

/// Serves until `stop` resolves, then finishes what was accepted. Whether all of it could be finished.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    settings: ListenerSettings,
    stop: impl Future<Output = ()>,
) -> bool {
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let room = Arc::new(Semaphore::new(settings.max_connections + SPARE_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let (stopping, stopped) = watch::channel(());
    let builder = builder(&settings);
    let accept = async {
        loop {
            // Room is made sure of before the connection is taken.
            let Ok(room) = room.clone().acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: a pause lets some close.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            // Small answers should not wait for an acknowledgement.
            let _ = stream.set_nodelay(true);
            let place = places.clone().try_acquire_owned().ok();
            let connection = Connection {
                router: router.clone(),
                builder: builder.clone(),
                watcher: graceful.watcher(),
                stopped: stopped.clone(),
                idle_timeout: match place {
                    Some(_) => settings.idle_timeout,
                    None => settings.idle_timeout.min(SPARE_IDLE_TIMEOUT),
                },
                is_crowded: place.is_none(),
            };
            let tls = settings.tls.as_ref().map(Tls::acceptor);
            tokio::spawn(connection.run(stream, tls, (room, place)));
        }
    };
    tokio::select! {
        () = accept => {}
        () = async { stop.await; tokio::time::sleep(settings.drain_delay).await } => {}
    }
    drop(listener);
    drop(stopping);
    tokio::time::timeout(settings.drain_timeout, graceful.shutdown())
        .await
        .is_ok()
}

/// What speaks both protocols within the limits.
fn builder(settings: &ListenerSettings) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.idle_timeout)
        .max_buf_size(settings.max_header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(settings.idle_timeout)
        .max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(settings.max_streams)
        .max_pending_accept_reset_streams(settings.max_resets)
        .max_local_error_reset_streams(settings.max_resets);
    builder
}

/// One client's connection.
struct Connection {
    router: Router,
    builder: Builder<TokioExecutor>,
    watcher: Watcher,
    /// Ends when the server stops.
    stopped: watch::Receiver<()>,
    idle_timeout: Duration,
    is_crowded: bool,
}

/// What a connection holds while it is open.
type Place = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<TlsAcceptor>, _place: Place) {
        let _open = telemetry::metrics().connection();
        let activity = Activity::new();
        let idle_timeout = self.idle_timeout;
        let of_requests = activity.clone();
        let serve = async move {
            match tls {
                None => self.serve(stream, of_requests).await,
                Some(tls) => self.serve_encrypted(stream, tls, of_requests).await,
            }
        };
        tokio::select! {
            () = serve => {}
            () = activity.idle_for(idle_timeout) => {
                telemetry::metrics().connection_dropped("idle");
                tracing::debug!("an idle connection is closed");
            }
        }
    }

    async fn serve_encrypted(mut self, stream: TcpStream, tls: TlsAcceptor, activity: Activity) {
        let shaken = tokio::select! {
            shaken = tls.accept(stream) => shaken,
            // Nothing was asked yet, so nothing is lost.
            _ = self.stopped.changed() => return,
        };
        match shaken {
            Ok(stream) => self.serve(stream, activity).await,
            Err(error) => {
                telemetry::metrics().connection_dropped("handshake");
                tracing::debug!(%error, "a connection could not be encrypted");
            }
        }
    }

    async fn serve<S>(self, stream: S, activity: Activity)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (router, is_crowded) = (self.router, self.is_crowded);
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            if is_crowded {
                request.extensions_mut().insert(Crowded);
            }
            answer(router.clone(), request, activity.clone())
        });
        let connection = self
            .builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        if let Err(error) = self.watcher.watch(connection).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

async fn answer(
    router: Router,
    request: Request<Incoming>,
    activity: Activity,
) -> Result<Response, Infallible> {
    let _in_flight = activity.begin();
    let closes =
        request.extensions().get::<Crowded>().is_some() && request.version() < Version::HTTP_2;
    let mut response = router.oneshot(request.map(Body::new)).await?;
    if closes {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    Ok(response.map(|body| {
        Body::new(Paced {
            body,
            rest: Bytes::new(),
            activity: activity.clone(),
        })
    }))
}

/// Whether a connection is in use: requests being answered, and when last something moved.
#[derive(Clone)]
struct Activity(Arc<Mutex<(usize, Instant)>>);

impl Activity {
    fn new() -> Self {
        Activity(Arc::new(Mutex::new((0, Instant::now()))))
    }

    fn note(&self, change: impl FnOnce(&mut usize)) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state.0);
        state.1 = Instant::now();
    }

    fn begin(&self) -> InFlight {
        self.note(|requests| *requests += 1);
        InFlight(self.clone())
    }

    /// Waits until nothing has been in flight or moved for `timeout`.
    async fn idle_for(&self, timeout: Duration) {
        loop {
            let (requests, moved) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let end = if requests == 0 { moved } else { now } + timeout;
            if end <= now {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// A request being answered.
struct InFlight(Activity);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.note(|requests| *requests -= 1);
    }
}

/// A body handed out in small pieces, so that each piece the client takes is seen, and so is a client that takes none.
struct Paced {
    body: Body,
    rest: Bytes,
    activity: Activity,
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.activity.note(|_| ());
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let of_body = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + rest);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    const BIG: usize = 3 * PIECE_BYTES + 17;

    struct Server {
        address: std::net::SocketAddr,
        stop: oneshot::Sender<()>,
        done: tokio::task::JoinHandle<bool>,
    }

    async fn server(idle: Duration) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let slow = async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            "slow"
        };
        let router = Router::new()
            .route("/slow", get(slow))
            .route("/big", get(async || "x".repeat(BIG)));
        let settings = ListenerSettings {
            idle_timeout: idle,
            ..ListenerSettings::default()
        };
        let (stop, stopped) = oneshot::channel();
        let done = tokio::spawn(serve(listener, router, settings, async {
            let _ = stopped.await;
        }));
        Server {
            address,
            stop,
            done,
        }
    }

    /// Sends `bytes`, then reads until the server closes.
    async fn exchange(server: &Server, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let read = tokio::time::timeout(Duration::from_secs(10), read).await;
        read.expect("the server keeps the connection for ever").ok();
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn silent_slow_and_idle_clients_are_closed() {
        let server = server(Duration::from_millis(100)).await;
        for sent in [
            "",
            "PRI * HTTP/2.0\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET /slow HTTP/1.1\r\nhost: x\r\nx-never: ",
        ] {
            let answer = exchange(&server, sent.as_bytes()).await;
            assert!(!answer.contains("200 OK"), "{sent:?}: {answer}");
        }
        let kept_alive = exchange(&server, b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(kept_alive.contains("200 OK"), "{kept_alive}");
    }

    #[tokio::test]
    async fn a_request_in_flight_is_not_idle() {
        let server = server(Duration::from_millis(100)).await;
        let answer = exchange(&server, b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.ends_with("slow"), "{answer}");
    }

    #[tokio::test]
    async fn a_large_answer_arrives_whole_and_says_its_length() {
        let server = server(Duration::from_secs(5)).await;
        let request = b"GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let answer = exchange(&server, request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {BIG}")), "{head}");
        assert_eq!(body.len(), BIG);
    }

    #[tokio::test]
    async fn a_stop_finishes_what_is_in_flight() {
        let server = server(Duration::from_secs(5)).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(request).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.stop.send(()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("slow"), "{answer}");
        assert!(server.done.await.unwrap());
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}
