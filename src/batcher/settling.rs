//! What becomes of a pass: rows go to those who wait, and what failed is tried again where that can help.

use std::time::Duration;

use super::cost::Speed;
use super::forming::BULK_SHARE;
use super::lane::JobId;
use super::schedule::{Instant, PassId, Running, Schedule};
use super::{BatcherError, Embedding, Priority};
use crate::engine::{Encoded, EngineError};

impl<P: Clone, W> Schedule<P, W> {
    /// A pass has ended.
    pub(super) fn finish(
        &mut self,
        now: Instant,
        pass: PassId,
        rows: Result<Vec<Encoded>, EngineError>,
    ) {
        let Some(at) = self.passes.iter().position(|running| running.id == pass) else {
            return;
        };
        let pass = self.passes.remove(at);
        let took = net(now, &pass);
        // Only what was put in between another kept that from its work.
        for other in self.passes.iter_mut().filter(|other| other.id < pass.id) {
            other.interrupted += took;
        }
        self.settle_shares(now, &pass);
        match rows {
            Ok(rows) if rows.len() == pass.members.len() => self.hand_out(now, &pass, rows),
            Ok(rows) => {
                let error = EngineError::Forward {
                    reason: format!(
                        "{} rows came back for {} sequences",
                        rows.len(),
                        pass.members.len()
                    ),
                };
                self.fail(&pass, &error);
            }
            Err(error) => self.fail(&pass, &error),
        }
    }

    /// Books the time of a pass between the lanes.
    fn settle_shares(&mut self, now: Instant, pass: &Running) {
        let micros = net(now, pass).as_micros() as i64;
        match (pass.priority, pass.contended) {
            (Priority::Interactive, true) => self.owed_to_bulk += micros,
            (Priority::Bulk, true) => self.owed_to_bulk -= (BULK_SHARE - 1) * micros,
            // Nobody was kept waiting.
            (_, false) => self.owed_to_bulk = 0,
        }
    }

    fn hand_out(&mut self, now: Instant, pass: &Running, rows: Vec<Encoded>) {
        let forward = now.saturating_sub(pass.started);
        let took = net(now, pass);
        let speed = &mut self.speeds[pass.task as usize];
        *speed = Some(Speed::learn(*speed, pass.cost, took));
        let counters = &mut self.counters;
        counters.batches += 1;
        counters.batch_inputs += pass.members.len() as u64;
        counters.text_tokens += pass.cost.text_tokens as u64;
        counters.vision_tokens += pass.cost.vision_tokens as u64;
        counters.computing += took;
        for (&id, encoded) in pass.members.iter().zip(rows) {
            if encoded.row.iter().any(|x| !x.is_finite()) {
                // The same numbers again would be the same: it is not tried a second time.
                self.fail_for_good(id, pass, &EngineError::NotFinite);
                continue;
            }
            let Encoded { row, cached_tokens } = encoded;
            self.answer(id, pass.started, |queued| {
                Ok(Embedding {
                    row: row.clone(),
                    cached_tokens,
                    from_cache: false,
                    queued,
                    forward,
                })
            });
        }
    }

    fn fail(&mut self, pass: &Running, error: &EngineError) {
        self.counters.failed_batches += 1;
        let sequences = pass.members.len();
        let tokens = pass.cost.tokens();
        if error.is_lasting() {
            tracing::error!(%error, sequences, tokens, "the device is lost");
            self.lose();
            return;
        }
        let is_memory = matches!(error, EngineError::OutOfMemory { .. });
        if is_memory {
            self.counters.out_of_memory += 1;
        }
        // Not that it is too large: there is something else.
        let in_between = is_memory && !self.passes.is_empty();
        if in_between {
            self.may_interrupt = false;
            tracing::warn!(%error, "the device has no memory for a second pass; queries wait for long ones from now on");
        } else if is_memory && sequences > 1 {
            self.learned_max_tokens = (tokens / 2).max(1);
            let max_tokens = self.learned_max_tokens;
            tracing::warn!(%error, sequences, tokens, max_tokens, "the device ran out of memory; passes are smaller from now on");
        } else {
            tracing::error!(%error, sequences, tokens, "a pass failed");
        }
        for &id in &pass.members {
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            if !in_between && (job.alone || (is_memory && sequences == 1)) {
                self.fail_for_good(id, pass, error);
            } else {
                // One poisoned input must not take its neighbours along, nor a passing fault all of them.
                job.alone |= !is_memory;
                self.put_back(id);
            }
        }
    }

    fn fail_for_good(&mut self, id: JobId, pass: &Running, error: &EngineError) {
        tracing::error!(%error, "an input cannot be computed");
        self.counters.failed_inputs += 1;
        self.answer(id, pass.started, |_| {
            Err(BatcherError::Failed(error.clone()))
        });
    }

    /// Has a job wait again, in its old place, if anybody still wants it.
    fn put_back(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.running = false;
        let (task, tenant, priority) = (job.task, job.tenant, job.priority);
        let waiting = (id, job.priced);
        if job.waiters.is_empty() {
            self.remove_job(id);
        } else {
            self.lanes[priority as usize].push(task, tenant, waiting);
        }
    }
}

/// The time a pass took itself.
pub(super) fn net(now: Instant, pass: &Running) -> Duration {
    now.saturating_sub(pass.started)
        .saturating_sub(pass.interrupted)
}
