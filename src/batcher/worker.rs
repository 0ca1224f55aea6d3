//! The loop between the queue and the engine: while a batch computes, the next one is formed from what has come in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{BatcherError, Embedding, Shared, Ticket};
use crate::engine::{Engine, EngineError};
use crate::model::{PackedBatch, Sequence};

/// Runs until the queue is closed and empty.
pub(super) async fn run(shared: Arc<Shared>, engine: Engine) {
    loop {
        let batch = next_batch(&shared).await;
        if batch.is_empty() {
            return;
        }
        serve(&shared, &engine, batch).await;
    }
}

/// Waits for work. An empty batch means that no more will come.
async fn next_batch(shared: &Shared) -> Vec<Ticket> {
    loop {
        // Registered before looking, so that a push between the look and the wait is not missed.
        let arrival = shared.arrived.notified();
        {
            let mut state = shared.lock();
            let batch = state
                .queue
                .next_batch(|ticket: &Ticket| !ticket.reply.is_closed());
            if !batch.is_empty() || state.closed {
                return batch;
            }
        }
        arrival.await;
    }
}

/// Computes a batch and hands out its rows; when it fails, each member is tried once more alone, so that one poisoned input does
/// not take its neighbours along.
async fn serve(shared: &Shared, engine: &Engine, tickets: Vec<Ticket>) {
    let started = Instant::now();
    let tokens: usize = tickets
        .iter()
        .map(|ticket| ticket.sequence.input_ids.len())
        .sum();
    let waits: Vec<Duration> = tickets
        .iter()
        .map(|ticket| started - ticket.since)
        .collect();
    let (sequences, replies): (Vec<Sequence>, Vec<_>) = tickets
        .into_iter()
        .map(|ticket| (ticket.sequence, ticket.reply))
        .unzip();
    let size = sequences.len();
    match engine.encode(PackedBatch::pack(&sequences)).await {
        Ok(rows) => {
            let forward = started.elapsed();
            shared.lock().learn(tokens, forward);
            tracing::debug!(
                sequences = size,
                tokens,
                forward_ms = forward.as_millis() as u64,
                "batch"
            );
            for ((row, reply), queued) in rows.into_iter().zip(replies).zip(waits) {
                answer(
                    reply,
                    Ok(Embedding {
                        row,
                        queued,
                        forward,
                    }),
                );
            }
        }
        Err(error @ EngineError::Stopped) => {
            tracing::error!(%error, "the engine is gone");
            for reply in replies {
                answer(reply, Err(BatcherError::Unavailable));
            }
        }
        Err(error) => {
            tracing::error!(%error, sequences = size, tokens, "a batch failed; its members are tried alone");
            for ((sequence, reply), queued) in sequences.into_iter().zip(replies).zip(waits) {
                let started = Instant::now();
                let result = engine.encode(PackedBatch::pack([&sequence])).await;
                let result = result
                    .map_err(BatcherError::Failed)
                    .map(|mut rows| Embedding {
                        row: rows.swap_remove(0),
                        queued,
                        forward: started.elapsed(),
                    });
                answer(reply, result);
            }
        }
    }
}

fn answer(
    reply: oneshot::Sender<Result<Embedding, BatcherError>>,
    result: Result<Embedding, BatcherError>,
) {
    // A client that left meanwhile has no use for the row.
    let _ = reply.send(result);
}
