//! The loop between the schedule and the engine: tells the one what time it is and the other what to compute.

use std::future::Future;
use std::sync::Arc;

use super::Fate;
use super::forming::{Batch, Step};
use super::schedule::Phase;
use super::shared::{Payload, Shared};
use crate::engine::{Encoded, EngineError};
use crate::model::PackedBatch;

type Rows = Result<Vec<Encoded>, EngineError>;

/// Runs until the schedule is closed and empty, or the device lost. `encode` begins with a batch when it is called, not when it is
/// first polled.
pub(super) async fn run<E, F>(shared: Arc<Shared>, encode: E) -> Fate
where
    E: Fn(PackedBatch) -> F,
    F: Future<Output = Rows>,
{
    let mut ended = None;
    loop {
        let arrival = shared.arrived.notified();
        let (step, answers, phase) = {
            let mut schedule = shared.lock();
            if let Some(rows) = ended.take() {
                schedule.finish(shared.now(), rows);
            }
            let step = schedule.next(shared.now());
            (step, schedule.take_answers(), schedule.phase)
        };
        match step {
            Step::Run(batch) => {
                let pass = encode(pack(&batch));
                // Only now, so that the device does not wait while a thousand clients are told.
                shared.tell(answers);
                ended = Some(pass.await);
            }
            Step::Wait(until) => {
                shared.tell(answers);
                match until {
                    // `notify_one` leaves a permit when nobody waits yet, so an arrival since the look is not missed.
                    None => arrival.await,
                    Some(until) => {
                        let pause = until.saturating_sub(shared.now());
                        let _ = tokio::time::timeout(pause, arrival).await;
                    }
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

fn pack(batch: &Batch<Arc<Payload>>) -> PackedBatch {
    PackedBatch {
        media_keys: batch
            .members
            .iter()
            .flat_map(|(_, payload)| payload.media_keys.iter().copied())
            .collect(),
        tenants: batch.members.iter().map(|(tenant, _)| *tenant).collect(),
        ..PackedBatch::pack(batch.members.iter().map(|(_, payload)| &payload.sequence))
    }
}
