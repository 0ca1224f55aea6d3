//! The loop between the queue and the engine: while a batch computes, the next one gathers, and is packed as soon as it cannot grow.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use super::{BatcherError, Embedding, Outcome, Shared, Ticket};
use crate::engine::{Encoded, EngineError};
use crate::model::PackedBatch;
use crate::telemetry;

type Rows = Result<Vec<Encoded>, EngineError>;

/// A batch ready for the engine, and who waits for its rows.
struct Formed {
    tickets: Vec<Ticket>,
    packed: PackedBatch,
}

impl Formed {
    fn of(tickets: Vec<Ticket>) -> Self {
        let packed = PackedBatch::pack(tickets.iter().map(|ticket| &ticket.sequence));
        Formed { tickets, packed }
    }

    /// Leaves out those whose client has left since the batch was formed.
    fn refreshed(mut self) -> Self {
        let before = self.tickets.len();
        self.tickets.retain(Ticket::is_wanted);
        if self.tickets.len() == before {
            self
        } else {
            Formed::of(self.tickets)
        }
    }
}

/// Runs until the queue is closed and empty.
pub(super) async fn run<E, F>(shared: Arc<Shared>, encode: E)
where
    E: Fn(PackedBatch) -> F,
    F: Future<Output = Rows>,
{
    let mut staged = None;
    loop {
        let formed = match staged.take().map(Formed::refreshed) {
            Some(formed) if formed.tickets.is_empty() => continue,
            Some(formed) => formed,
            None => match next(&shared).await {
                Some(formed) => formed,
                None => return,
            },
        };
        let Formed { tickets, packed } = formed;
        let tokens = packed.tokens();
        let started = Instant::now();
        let mut pass = pin!(encode(packed));
        let rows = loop {
            // The pass first: once the device is free, nothing else matters.
            tokio::select! {
                biased;
                rows = &mut pass => break rows,
                formed = next_whole(&shared), if staged.is_none() => staged = Some(formed),
            }
        };
        settle(&shared, &encode, tickets, (rows, tokens, started)).await;
    }
}

/// Waits for work; `None` when no more will come.
async fn next(shared: &Shared) -> Option<Formed> {
    loop {
        let arrival = shared.arrived.notified();
        {
            let mut state = shared.lock();
            let tickets = state.queue.next_batch(Ticket::is_wanted);
            if !tickets.is_empty() {
                drop(state);
                return Some(Formed::of(tickets));
            }
            if state.closed {
                return None;
            }
        }
        // `notify_one` leaves a permit when nobody waits yet, so an arrival between the look and the wait is not missed.
        arrival.await;
    }
}

/// Waits until the queue holds a batch that cannot grow. What is less stays in the queue, where it may still gain company.
async fn next_whole(shared: &Shared) -> Formed {
    loop {
        let arrival = shared.arrived.notified();
        {
            let mut state = shared.lock();
            if state.queue.has_whole_batch() {
                let tickets = state.queue.next_batch(Ticket::is_wanted);
                drop(state);
                if !tickets.is_empty() {
                    return Formed::of(tickets);
                }
                continue;
            }
        }
        arrival.await;
    }
}

/// Hands out the rows of a batch; when it failed, each member is tried once more alone, so that one poisoned input does not take
/// its neighbours along.
async fn settle<E, F>(
    shared: &Shared,
    encode: &E,
    tickets: Vec<Ticket>,
    (rows, tokens, started): (Rows, usize, Instant),
) where
    E: Fn(PackedBatch) -> F,
    F: Future<Output = Rows>,
{
    let forward = started.elapsed();
    let sequences = tickets.len();
    let outcome = |encoded: Encoded, ticket: &Ticket| Embedding {
        row: encoded.row,
        cached_tokens: encoded.cached_tokens,
        queued: started - ticket.since,
        forward,
    };
    match rows {
        Ok(rows) if rows.len() == sequences => {
            shared.lock().learn(tokens, forward);
            let forward_ms = forward.as_millis() as u64;
            tracing::debug!(sequences, tokens, forward_ms, "batch");
            telemetry::metrics().batch(sequences, tokens, shared.policy.max_tokens);
            for (row, ticket) in rows.into_iter().zip(tickets) {
                let embedding = outcome(row, &ticket);
                answer(ticket, Ok(embedding));
            }
        }
        Err(error @ EngineError::Stopped) => {
            tracing::error!(%error, "the engine is gone");
            for ticket in tickets {
                answer(ticket, Err(BatcherError::Unavailable));
            }
        }
        failed => {
            let error = failed.map_or_else(|error| error, |rows| miscounted(sequences, rows.len()));
            tracing::error!(%error, sequences, tokens, "a batch failed; its members are tried alone");
            for ticket in tickets.into_iter().filter(Ticket::is_wanted) {
                let row = alone(encode, &ticket).await;
                let outcome = row.map(|row| Embedding {
                    forward: started.elapsed(),
                    ..outcome(row, &ticket)
                });
                answer(ticket, outcome);
            }
        }
    }
}

async fn alone<E, F>(encode: &E, ticket: &Ticket) -> Result<Encoded, BatcherError>
where
    E: Fn(PackedBatch) -> F,
    F: Future<Output = Rows>,
{
    match encode(PackedBatch::pack([&ticket.sequence])).await {
        Ok(mut rows) => match rows.pop() {
            Some(row) if rows.is_empty() => Ok(row),
            row => Err(BatcherError::Failed(miscounted(
                1,
                rows.len() + usize::from(row.is_some()),
            ))),
        },
        Err(EngineError::Stopped) => Err(BatcherError::Unavailable),
        Err(error) => Err(BatcherError::Failed(error)),
    }
}

fn miscounted(sequences: usize, rows: usize) -> EngineError {
    EngineError::Forward {
        reason: format!("{rows} rows came back for {sequences} sequences"),
    }
}

fn answer(ticket: Ticket, outcome: Outcome) {
    // A client that left meanwhile has no use for the row.
    let _ = ticket.reply.send(outcome);
}
