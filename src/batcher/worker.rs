//! The loop between the schedule and the engine: tells the one what time it is and the other what to compute.

use std::future::Future;
use std::sync::Arc;

use super::forming::{Batch, Step};
use super::schedule::Phase;
use super::{Fate, Outcome, Reply, Shared};
use crate::engine::{Encoded, EngineError};
use crate::model::{PackedBatch, Sequence};

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
                tell(answers);
                ended = Some(pass.await);
            }
            Step::Wait(until) => {
                tell(answers);
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
                tell(answers);
                return match phase {
                    Phase::Lost => Fate::Lost,
                    Phase::Open | Phase::Draining => Fate::Finished,
                };
            }
        }
    }
}

fn pack(batch: &Batch<Arc<Sequence>>) -> PackedBatch {
    PackedBatch {
        tenants: batch.members.iter().map(|(tenant, _)| *tenant).collect(),
        ..PackedBatch::pack(batch.members.iter().map(|(_, sequence)| &**sequence))
    }
}

/// Hands out answers.
pub(super) fn tell(answers: Vec<(Reply, Outcome)>) {
    for (reply, outcome) in answers {
        // A client that left meanwhile has no use for it.
        let _ = reply.send(outcome);
    }
}
