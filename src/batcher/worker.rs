//! The loop between the schedule and the engine: tells the one what time it is and the other what to compute.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::Fate;
use super::forming::{Batch, Step};
use super::schedule::Phase;
use super::shared::{Payload, Shared};
use crate::engine::{Encoded, EngineError};
use crate::model::PackedBatch;
use crate::telemetry;

type Rows = Result<Vec<Encoded>, EngineError>;

/// Runs until the schedule is closed and empty, or the device lost. `encode` begins with a batch when it is called, not when it is
/// first polled.
pub(super) async fn run<E, F>(shared: Arc<Shared>, encode: E) -> Fate
where
    E: Fn(PackedBatch) -> F,
    F: Future<Output = Rows>,
{
    let mut passes = FuturesUnordered::new();
    let mut ended = None;
    loop {
        let arrival = shared.arrived.notified();
        let (step, answers, phase) = {
            let mut schedule = shared.lock();
            if let Some((pass, size, rows)) = ended.take() {
                record(&shared, size, &rows);
                schedule.finish(shared.now(), pass, rows);
            }
            let step = schedule.next(shared.now());
            (step, schedule.take_answers(), schedule.phase)
        };
        match step {
            Step::Run(batch) => {
                let packed = pack(&batch);
                let size = (packed.sequences(), packed.tokens());
                let rows = encode(packed);
                passes.push(async move { (batch.pass, size, rows.await) });
                // Only now, so that the device does not wait while a thousand clients are told.
                shared.tell(answers);
            }
            Step::Wait(until) => {
                shared.tell(answers);
                tokio::select! {
                    biased;
                    Some(pass) = passes.next() => ended = Some(pass),
                    // `notify_one` leaves a permit when nobody waits yet, so an arrival since the look is not missed.
                    () = arrival => {}
                    () = pause(until, &shared) => {}
                }
            }
            Step::Finished => {
                shared.tell(answers);
                return match phase {
                    Phase::Lost => Fate::Lost,
                    Phase::Open | Phase::Draining => Fate::Finished,
                };
            }
        }
    }
}

/// Counts a pass that succeeded.
fn record(shared: &Shared, (sequences, tokens): (usize, usize), rows: &Rows) {
    if rows.is_ok() {
        telemetry::metrics().batch(sequences, tokens, shared.policy.max_tokens);
    }
}

/// Until that time, or for ever.
async fn pause(until: Option<Duration>, shared: &Shared) {
    match until {
        Some(until) => tokio::time::sleep(until.saturating_sub(shared.now())).await,
        None => std::future::pending().await,
    }
}

fn pack(batch: &Batch<Arc<Payload>>) -> PackedBatch {
    PackedBatch {
        media_keys: batch
            .members
            .iter()
            .flat_map(|(_, payload)| payload.media_keys.iter().copied())
            .collect(),
        tenants: batch.members.iter().map(|(tenant, _)| *tenant).collect(),
        is_short: !batch.yields,
        ..PackedBatch::pack(batch.members.iter().map(|(_, payload)| &payload.sequence))
    }
}
