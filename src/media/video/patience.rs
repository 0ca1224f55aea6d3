//! How long a video is waited for. In: a request's deadline, whoever waits, and the time one step may take. Out: whether there is still a point in
//! decoding.
//!
//! Decoding blocks a thread, and a thread cannot be dropped as a request's future is. So the future keeps a [`Waiter`], whose end the
//! thread sees.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Somebody who waits, until this is dropped.
#[derive(Debug)]
pub struct Waiter {
    _alive: Arc<()>,
}

/// Until when, and for whom, a video is decoded.
#[derive(Debug, Clone, Default)]
pub struct Patience {
    until: Option<Instant>,
    waiter: Option<Weak<()>>,
}

impl Patience {
    /// Of a request: it ends at its deadline, or with the waiter.
    pub fn until(deadline: Instant) -> (Waiter, Self) {
        let alive = Arc::new(());
        let patience = Self {
            until: Some(deadline),
            waiter: Some(Arc::downgrade(&alive)),
        };
        (Waiter { _alive: alive }, patience)
    }

    /// Whether nobody waits any more.
    pub(super) fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
            || (self.waiter.as_ref()).is_some_and(|waiter| waiter.strong_count() == 0)
    }

    /// Of a step that begins now and may take `most`.
    pub(super) fn end(&self, most: Duration) -> End<'_> {
        let own = Instant::now() + most;
        End {
            deadline: self.until.map_or(own, |until| until.min(own)),
            patience: self,
        }
    }
}

/// When a step of decoding is broken off.
#[derive(Debug, Clone, Copy)]
pub(super) struct End<'a> {
    pub(super) deadline: Instant,
    pub(super) patience: &'a Patience,
}

impl End<'_> {
    pub(super) fn has_come(&self) -> bool {
        Instant::now() >= self.deadline || self.patience.is_over()
    }
}

/// Bytes that cannot be read any more once the end has come: a decoder that runs here stops when it wants more of them.
pub(super) struct Patient<'a, R> {
    inner: R,
    end: End<'a>,
}

impl<'a, R> Patient<'a, R> {
    pub(super) fn new(inner: R, end: End<'a>) -> Self {
        Self { inner, end }
    }
}

impl<R: Read> Read for Patient<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.end.has_come() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.inner.read(buffer)
    }
}

impl<R: Seek> Seek for Patient<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_at_the_deadline_or_with_the_waiter_and_else_never() {
        let (soon, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let (waiter, patience) = Patience::until(later);
        assert!(!patience.is_over());
        let end = patience.end(Duration::from_secs(3600));
        assert_eq!((end.deadline, end.has_come()), (later, false));
        let at_once = patience.end(Duration::ZERO);
        assert!(at_once.deadline < later && at_once.has_come());
        let mut bytes = Patient::new(&b"some"[..], end);
        assert_eq!(bytes.read(&mut [0; 2]).unwrap(), 2);
        let mut no_bytes = Patient::new(&b"some"[..], at_once);
        assert!(no_bytes.read(&mut [0; 2]).is_err());
        let kept = patience.clone();
        drop(waiter);
        assert!(patience.is_over() && kept.is_over());
        assert!(end.has_come() && bytes.read(&mut [0; 2]).is_err());
        let (_waiter, patience) = Patience::until(soon);
        assert!(patience.is_over());
        assert!(!Patience::default().is_over());
        assert!(!Patience::default().end(Duration::from_secs(60)).has_come());
    }
}
