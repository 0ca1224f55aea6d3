//! Request bodies. In: a body as it comes. Out: its bytes and the memory they hold; or why not, when it is too large, comes too slowly,
//! or when all bodies together are too much.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::error::{ApiError, ErrorCode};

/// A body has its patience for each so many bytes, so that large ones may take longer and a trickle may not.
const STEP_BYTES: usize = 64 * 1024;

/// Bytes that bodies may hold together.
#[derive(Debug, Clone)]
pub(super) struct BodyMemory {
    /// A permit is a byte.
    free: Arc<Semaphore>,
    limit: usize,
}

/// What a body takes of a [`BodyMemory`] until it is dropped.
#[derive(Debug, Default)]
pub(super) struct HeldBody(Option<OwnedSemaphorePermit>);

impl BodyMemory {
    /// A memory of so many bytes.
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        BodyMemory {
            free: Arc::new(Semaphore::new(limit)),
            limit,
        }
    }

    /// The body, refused as soon as it is known to be over `limit`, when less than [`STEP_BYTES`] of it came within `patience`, and when
    /// there is no memory left for it: what never comes takes none.
    ///
    /// # Errors
    /// The codes are those of `request_too_large`, `request_timeout`, `invalid_json`, `queue_full`.
    pub(super) async fn read(
        &self,
        request: Request,
        limit: usize,
        patience: Duration,
    ) -> Result<(Bytes, HeldBody), ApiError> {
        let mut held = HeldBody::default();
        let body = read(request, limit, patience, |bytes| {
            self.grow(&mut held, bytes)
        })
        .await?;
        Ok((body, held))
    }

    fn grow(&self, held: &mut HeldBody, bytes: usize) -> Result<(), ApiError> {
        let more = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| Arc::clone(&self.free).try_acquire_many_owned(bytes).ok());
        let more = more.ok_or_else(|| {
            let message = format!(
                "the bodies of all requests together are at the limit of {} bytes (limits.max_held_bytes)",
                self.limit
            );
            ApiError::new(ErrorCode::QueueFull, message)
        })?;
        match &mut held.0 {
            Some(own) => own.merge(more),
            own => *own = Some(more),
        }
        Ok(())
    }
}

async fn read(
    request: Request,
    limit: usize,
    patience: Duration,
    mut hold: impl FnMut(usize) -> Result<(), ApiError>,
) -> Result<Bytes, ApiError> {
    let declared = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    let mut body = request.into_body();
    // Most bodies come in one piece, which is then not copied.
    let mut first = Bytes::new();
    let mut read = BytesMut::new();
    let mut deadline = Instant::now() + patience;
    let mut due = STEP_BYTES;
    loop {
        let frame = timeout_at(deadline, body.frame()).await;
        let frame = frame.map_err(|_| too_slow(patience))?;
        let Some(frame) = frame else {
            return Ok(if read.is_empty() {
                first
            } else {
                read.freeze()
            });
        };
        let frame = frame.map_err(|_| {
            let message = "the body ended before it was complete";
            ApiError::new(ErrorCode::InvalidJson, message)
        })?;
        // What is no data are trailers, which say nothing here.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let length = first.len().max(read.len());
        if data.len() > limit - length {
            return Err(too_large(limit));
        }
        hold(data.len())?;
        if length == 0 {
            first = data;
        } else {
            if read.is_empty() {
                read.extend_from_slice(&first);
            }
            read.extend_from_slice(&data);
        }
        let length = first.len().max(read.len());
        if length >= due {
            due = length + STEP_BYTES;
            deadline = Instant::now() + patience;
        }
    }
}

/// A body over the limit.
pub(super) fn too_large(limit: usize) -> ApiError {
    let message = format!("the body is larger than the limit of {limit} bytes");
    ApiError::new(ErrorCode::RequestTooLarge, message)
}

/// A body that stops or trickles.
pub(super) fn too_slow(patience: Duration) -> ApiError {
    let ms = patience.as_millis();
    let message = format!("the body came too slowly: {STEP_BYTES} bytes of it may take {ms} ms");
    ApiError::new(ErrorCode::RequestTimeout, message)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::HeaderValue;
    use futures_util::stream::{self, StreamExt};

    use super::*;

    async fn read(request: Request, limit: usize, patience: Duration) -> Result<Bytes, ApiError> {
        let memory = BodyMemory::new(usize::MAX);
        Ok(memory.read(request, limit, patience).await?.0)
    }

    fn code<T>(result: Result<T, ApiError>) -> Option<ErrorCode> {
        result.err().map(|error| error.code)
    }

    /// A body without a declared length.
    fn streamed(pieces: Vec<&'static str>) -> Request {
        let pieces = pieces.into_iter().map(Ok::<_, std::io::Error>);
        Request::new(Body::from_stream(stream::iter(pieces)))
    }

    /// `count` pieces of `bytes` each, one every `pause`, then nothing more for ever.
    fn trickle(count: usize, bytes: usize, pause: Duration) -> Request {
        let pieces = stream::iter(0..count).then(move |_| async move {
            tokio::time::sleep(pause).await;
            Ok::<_, std::io::Error>(Bytes::from(vec![b' '; bytes]))
        });
        Request::new(Body::from_stream(pieces.chain(stream::pending())))
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_declared_or_not() {
        let patience = Duration::from_secs(5);
        for pieces in [vec!["12345"], vec!["12", "345"], vec!["", "1", "23", "45"]] {
            let whole = read(streamed(pieces), 5, patience).await;
            assert_eq!(whole.expect("it fits"), "12345");
        }
        for pieces in [vec!["123456"], vec!["12", "3456"]] {
            let long = read(streamed(pieces), 5, patience).await;
            assert_eq!(code(long), Some(ErrorCode::RequestTooLarge));
        }
        let mut declared = Request::new(Body::empty());
        declared
            .headers_mut()
            .insert("content-length", HeaderValue::from(6));
        let error = read(declared, 5, patience).await.expect_err("refused");
        assert_eq!(error.code, ErrorCode::RequestTooLarge);
        assert!(error.message.contains("5 bytes"), "{}", error.message);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_or_trickles_is_given_up_and_a_large_one_may_take_its_time() {
        let patience = Duration::from_secs(20);
        let limit = 1 << 30;
        let second = Duration::from_secs(1);
        for slow in [trickle(0, 0, second), trickle(1_000_000, 1, second)] {
            let began = Instant::now();
            let given_up = read(slow, limit, patience).await;
            assert_eq!(code(given_up), Some(ErrorCode::RequestTimeout));
            assert_eq!(began.elapsed(), patience);
        }
        // 100 seconds long, but never slower than 64 KiB in 20 seconds; it is given up only where it stops.
        let began = Instant::now();
        let steady = read(trickle(100, 8192, second), limit, patience).await;
        assert_eq!(code(steady), Some(ErrorCode::RequestTimeout));
        assert!(began.elapsed() > 5 * patience, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn bodies_together_hold_no_more_than_there_is_and_give_it_back() {
        let memory = BodyMemory::new(10);
        let patience = Duration::from_secs(5);
        let next = async |pieces| memory.read(streamed(pieces), 8, patience).await;
        let (body, first) = next(vec!["123", "456"]).await.expect("there is room");
        assert_eq!(body, "123456");
        let error = next(vec!["1234", "5"]).await.expect_err("refused");
        assert_eq!(error.code, ErrorCode::QueueFull);
        assert!(error.message.contains("10 bytes"), "{}", error.message);
        // What came of the refused one is free again.
        let (_, second) = next(vec!["12", "34"]).await.expect("there is room");
        assert_eq!(memory.free.available_permits(), 0);
        drop((first, second));
        assert_eq!(memory.free.available_permits(), 10);
    }
}
