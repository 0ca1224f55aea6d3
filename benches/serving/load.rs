//! Load of two kinds. In: requests and a rate, or a number of clients. Out: a [`Report`] of what came back and how late.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::LocalSet;

use crate::client::{Answer, Connection};

/// What a request looks like: by its number, so that no two are the same.
pub(crate) type Requests = Rc<dyn Fn(u64) -> Vec<u8>>;

/// Stands for a request that had no answer at all.
pub(crate) const BROKEN: u16 = 0;

/// What came back.
#[derive(Default)]
pub(crate) struct Report {
    /// Latencies by status.
    by_status: BTreeMap<u16, Vec<Duration>>,
    /// What the server says of each that had vectors, beside its latency.
    stages: Vec<(Duration, String)>,
    /// Refusals that do not say when to come again.
    pub(crate) without_retry_after: usize,
    /// Until the last was answered: what a device did at once counts whole. After a load ends, what waits is worked off without refusals
    /// beside it; the longer the deadline, the larger that share.
    pub(crate) lasted: Duration,
}

impl Report {
    fn add(&mut self, answer: Option<Answer>, latency: Duration) {
        let status = answer.as_ref().map_or(BROKEN, |answer| answer.status);
        let refused = matches!(status, 429 | 503);
        let silent = answer.as_ref().is_some_and(|answer| !answer.retry_after);
        if let Some(answer) = answer.filter(|_| status == 200) {
            self.stages.push((latency, answer.stages));
        }
        self.without_retry_after += usize::from(refused && silent);
        self.by_status.entry(status).or_default().push(latency);
    }

    /// Adds what came back of another load of the same kind, and the time it took.
    pub(crate) fn join(&mut self, other: Report) {
        for (status, latencies) in other.by_status {
            self.by_status.entry(status).or_default().extend(latencies);
        }
        self.stages.extend(other.stages);
        self.without_retry_after += other.without_retry_after;
        self.lasted += other.lasted;
    }

    pub(crate) fn count(&self, status: u16) -> usize {
        self.by_status.get(&status).map_or(0, Vec::len)
    }

    pub(crate) fn total(&self) -> usize {
        self.by_status.values().map(Vec::len).sum()
    }

    /// How many were neither answered with vectors nor refused as the queue refuses.
    pub(crate) fn faults(&self) -> usize {
        self.total() - self.count(200) - self.count(429) - self.count(503)
    }

    /// Answered with vectors, a second.
    pub(crate) fn goodput(&self) -> f64 {
        self.count(200) as f64 / self.lasted.as_secs_f64()
    }

    /// A quantile of the latencies of some statuses, in milliseconds.
    pub(crate) fn quantile(&self, statuses: &[u16], quantile: f64) -> f64 {
        let of = |status: &u16| self.by_status.get(status).into_iter().flatten();
        let mut latencies: Vec<Duration> = statuses.iter().flat_map(of).copied().collect();
        latencies.sort();
        let last = latencies.len().saturating_sub(1);
        let at = (last as f64 * quantile).ceil() as usize;
        latencies
            .get(at)
            .map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }

    /// The slowest with vectors, a line each: where the time went.
    pub(crate) fn slowest(&mut self, count: usize) -> String {
        self.stages
            .sort_by_key(|(latency, _)| std::cmp::Reverse(*latency));
        let line = |(latency, stages): &(Duration, String)| {
            format!("  {:.2} ms: {stages}\n", latency.as_secs_f64() * 1e3)
        };
        self.stages.iter().take(count).map(line).collect()
    }

    pub(crate) fn shown(&self) -> String {
        let counts: Vec<String> = self
            .by_status
            .iter()
            .map(|(status, latencies)| match *status {
                BROKEN => format!("{} broken", latencies.len()),
                status => format!("{} x {status}", latencies.len()),
            })
            .collect();
        let of = |quantile| self.quantile(&[200], quantile);
        format!(
            "{:.0} answers/s; of 200: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms; {}",
            self.goodput(),
            of(0.5),
            of(0.99),
            of(0.999),
            counts.join(", ")
        )
    }
}

/// One client: asks over a connection that is opened again when it broke.
async fn ask(connection: &mut Option<Connection>, address: &str, request: &[u8]) -> Option<Answer> {
    if connection.is_none() {
        *connection = Connection::open(address).await.ok();
    }
    let open = connection.as_mut()?;
    let answer = open.ask(request).await.ok();
    if answer.is_none() {
        *connection = None;
    }
    answer
}

/// `clients` that each ask as soon as they were answered.
pub(crate) async fn closed(
    address: &str,
    clients: usize,
    lasting: Duration,
    requests: Requests,
) -> Report {
    let report = Rc::new(RefCell::new(Report::default()));
    let number = Rc::new(Cell::new(0));
    let began = Instant::now();
    let tasks = LocalSet::new();
    for _ in 0..clients {
        let (report, number, requests) = (report.clone(), number.clone(), requests.clone());
        let address = address.to_owned();
        tasks.spawn_local(async move {
            let mut connection = None;
            while began.elapsed() < lasting {
                let request = requests(number.replace(number.get() + 1));
                let sent = Instant::now();
                let answer = ask(&mut connection, &address, &request).await;
                report.borrow_mut().add(answer, sent.elapsed());
            }
        });
    }
    tasks.await;
    let mut report = report.take();
    report.lasted = began.elapsed();
    report
}

/// How long a connection may lie unused and be used again: less than the 20 seconds after which our server closes one.
const KEPT: Duration = Duration::from_secs(5);

/// How a load without regard to answers comes.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// Requests a second.
    pub(crate) rate: f64,
    /// Those due within such a time are due together at its beginning; zero: each at its own time.
    pub(crate) burst: Duration,
    /// Most connections.
    pub(crate) connections: usize,
}

impl Pace {
    /// Each request at its own time.
    pub(crate) fn even(rate: f64, connections: usize) -> Self {
        Pace {
            rate,
            burst: Duration::ZERO,
            connections,
        }
    }

    /// When a request is due, since the load began.
    fn due(self, number: u64) -> Duration {
        let due = number as f64 / self.rate;
        let burst = self.burst.as_secs_f64();
        Duration::from_secs_f64(if burst > 0.0 {
            (due / burst).floor() * burst
        } else {
            due
        })
    }
}

/// Requests at a fixed rate, whatever becomes of them, over at most so many connections: the one that was free last, as a proxy's pool has
/// it, or a new one. Where all of those wait, the next request is late, and its latency says so: it counts from when it was due.
pub(crate) async fn open(
    address: &str,
    pace: Pace,
    lasting: Duration,
    requests: Requests,
) -> Report {
    let report = Rc::new(RefCell::new(Report::default()));
    let number = Rc::new(Cell::new(0_u64));
    let free: Rc<RefCell<Vec<(Connection, Instant)>>> = Rc::default();
    let began = Instant::now();
    let tasks = LocalSet::new();
    for _ in 0..pace.connections {
        let (report, number, requests) = (report.clone(), number.clone(), requests.clone());
        let (address, free) = (address.to_owned(), free.clone());
        tasks.spawn_local(async move {
            loop {
                let mine = number.replace(number.get() + 1);
                let due = pace.due(mine);
                if due >= lasting {
                    return;
                }
                let request = requests(mine);
                let due = began + due;
                tokio::time::sleep_until(due.into()).await;
                let last = free.borrow_mut().pop();
                let fresh = last.filter(|(_, since)| since.elapsed() < KEPT);
                let mut connection = fresh.map(|(connection, _)| connection);
                let answer = ask(&mut connection, &address, &request).await;
                report.borrow_mut().add(answer, due.elapsed());
                let kept = connection.map(|connection| (connection, Instant::now()));
                free.borrow_mut().extend(kept);
            }
        });
    }
    tasks.await;
    let mut report = report.take();
    report.lasted = began.elapsed();
    report
}
