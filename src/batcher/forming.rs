//! Which of what waits runs together, and when: chosen at the last moment, when the device is free, so that whoever came during a pass
//! has its turn. Nothing is padded, so a batch is made by naming its members.
//!
//! A pass of anything but short texts yields: the device stops it for a pass of short interactive texts, for one picture takes many
//! times as long as a query and cannot be split. So does a pass of many short texts, for those whose texts are not in it: one key's flood
//! of queries must not be what another's query waits for.
//!
//! All of a pass are answered at its end. So it takes nobody along for whom one of those who are in it already would be late.

use std::collections::HashSet;
use std::time::Duration;

use super::Priority;
use super::cost::Cost;
use super::door::{cautious, is_light};
use super::lane::{JobId, Priced};
use super::schedule::{Instant, PassId, Phase, Running, Schedule};
use super::settling::net;
use crate::model::{Task, Tenant};

/// Bulk work gets at least this part of the device while interactive work could take all of it.
pub(super) const BULK_SHARE: i64 = 10;
/// A pass of bulk work may take this many times as long as a pass takes whatever is in it: shorter ones would mostly pay for that.
const WORTH_A_PASS: u32 = 4;

/// What to do now.
#[derive(Debug)]
pub(super) enum Step<P> {
    /// Give the device this.
    Run(Batch<P>),
    /// Nothing, until something arrives, the pass ends or this time comes.
    Wait(Option<Instant>),
    /// Nothing ever again.
    Finished,
}

/// The members of a pass, in order.
#[derive(Debug, Clone)]
pub(super) struct Batch<P> {
    pub(super) pass: PassId,
    pub(super) members: Vec<(Tenant, P)>,
    /// Whether another may come between.
    pub(super) yields: bool,
}

impl<P: Clone, W> Schedule<P, W> {
    /// What to do now.
    pub(super) fn next(&mut self, now: Instant) -> Step<P> {
        if self.phase == Phase::Lost {
            return Step::Finished;
        }
        match &self.passes[..] {
            [] => {}
            [long] if long.yields && self.may_interrupt => return self.put_between(now),
            _ => return Step::Wait(None),
        }
        while let Some(priority) = self.turn() {
            if let Some(until) = self.company_until(now, priority) {
                return Step::Wait(Some(until));
            }
            let Some(task) = self.lanes[priority as usize].turns().next() else {
                continue;
            };
            let members = self.form(now, (priority, task), None);
            if !members.is_empty() {
                return Step::Run(self.start(now, (priority, task), members));
            }
        }
        match self.phase {
            Phase::Open => Step::Wait(None),
            _ => Step::Finished,
        }
    }

    /// The short texts whose turn it is, while something long runs. It gets on all the same: of the time both take, bulk work's share.
    fn put_between(&mut self, now: Instant) -> Step<P> {
        if self.lanes[Priority::Interactive as usize].is_empty() {
            return Step::Wait(None);
        }
        let long = &self.passes[0];
        let own = net(now, long);
        let owed = (long.interrupted / (BULK_SHARE - 1) as u32).saturating_sub(own);
        if !owed.is_zero() {
            return Step::Wait(Some(now + owed));
        }
        let aboard = match long.priority {
            Priority::Bulk => HashSet::new(),
            Priority::Interactive => long
                .members
                .iter()
                .filter_map(|id| self.jobs.get(id).map(|job| job.tenant))
                .collect(),
        };
        for task in self.lanes[Priority::Interactive as usize].turns() {
            let members = self.form(now, (Priority::Interactive, task), Some(&aboard));
            if !members.is_empty() {
                return Step::Run(self.start(now, (Priority::Interactive, task), members));
            }
        }
        Step::Wait(None)
    }

    /// Whose turn it is: interactive work's, unless bulk work was kept waiting for more than its share.
    fn turn(&mut self) -> Option<Priority> {
        let waits = |priority: Priority| !self.lanes[priority as usize].is_empty();
        match (waits(Priority::Interactive), waits(Priority::Bulk)) {
            (false, false) => None,
            (true, false) => {
                self.owed_to_bulk = 0;
                Some(Priority::Interactive)
            }
            (false, true) => Some(Priority::Bulk),
            (true, true) => {
                let slices = Task::ALL.map(|task| self.bulk_slice(task).as_micros() as i64);
                let slice = slices[0].max(slices[1]);
                let owed = self.owed_to_bulk >= (BULK_SHARE - 1) * slice.max(1);
                Some(if owed {
                    Priority::Bulk
                } else {
                    Priority::Interactive
                })
            }
        }
    }

    /// Until when a batch that may yet grow waits for company, where the operator wants it to.
    fn company_until(&self, now: Instant, priority: Priority) -> Option<Instant> {
        let lane = &self.lanes[priority as usize];
        let is_whole =
            lane.cost().tokens() >= self.max_tokens() || lane.len() >= self.policy.max_sequences;
        if self.policy.max_wait.is_zero() || is_whole || self.phase != Phase::Open {
            return None;
        }
        let waiting = self.jobs.values().filter(|job| !job.running);
        let oldest = waiting.map(|job| job.entered).min()?;
        Some(oldest + self.policy.max_wait).filter(|until| *until > now)
    }

    fn max_tokens(&self) -> usize {
        self.policy.max_tokens.min(self.learned_max_tokens)
    }

    /// How long a pass of bulk work of a model may take. Before anything was measured, the first input alone shows it.
    pub(super) fn bulk_slice(&self, task: Task) -> Duration {
        self.speeds[task as usize]
            .as_ref()
            .map_or(Duration::ZERO, |speed| {
                self.policy.max_bulk.max(speed.fixed() * WORTH_A_PASS)
            })
    }

    /// Takes the members of the next pass out of a model's lane: in its order, as many as the budgets allow, at least one. None when all
    /// whose turn it was had run out of time. For a pass `between` another, of tenants who are not aboard that, only short texts.
    fn form(
        &mut self,
        now: Instant,
        (priority, task): (Priority, Task),
        between: Option<&HashSet<Tenant>>,
    ) -> Vec<JobId> {
        let (max_tokens, slice) = (self.max_tokens(), self.bulk_slice(task));
        let speed = self.speeds[task as usize];
        let mut members = Vec::new();
        let mut whole = Cost::default();
        let mut heavy = Duration::ZERO;
        // When the first of those will have gone who are in time as far as is known.
        let mut earliest = Instant::MAX;
        let fits_between = |aboard: &HashSet<Tenant>, tenant, priced: Priced| {
            is_light(priced.cost) && !aboard.contains(&tenant)
        };
        loop {
            let lane = &mut self.lanes[priority as usize];
            let next = match between {
                None => lane.head(task),
                Some(aboard) => {
                    lane.fitting(task, |tenant, priced| fits_between(aboard, tenant, priced))
                }
            };
            let Some((tenant, id)) = next else {
                break;
            };
            if !self.expire(now, id) {
                continue;
            }
            let Some(job) = self.jobs.get(&id) else {
                break;
            };
            let (priced, cost) = (job.priced, job.priced.cost);
            let gone = job.waiters.iter().map(|waiter| waiter.deadline).max();
            let gone = gone.unwrap_or(Instant::MAX);
            let (alone, is_heavy) = (job.alone, priority == Priority::Bulk || !is_light(cost));
            let time = match &speed {
                Some(speed) if is_heavy => speed.marginal(cost),
                _ => Duration::ZERO,
            };
            if between.is_some() && alone {
                break;
            }
            let mut with_it = whole;
            with_it.add(cost);
            let ends = speed.map_or(now, |speed| {
                now + cautious(speed.fixed() + speed.marginal(with_it))
            });
            let fits = with_it.tokens() <= max_tokens
                && ends <= earliest
                && members.len() < self.policy.max_sequences
                && (!is_heavy || heavy + time <= slice)
                && !alone;
            if !members.is_empty() && !fits {
                break;
            }
            self.lanes[priority as usize].pop(task, tenant, (id, priced));
            members.push(id);
            whole = with_it;
            if ends <= gone {
                earliest = earliest.min(gone);
            }
            heavy += time;
            // Before the first measurement nobody can say what a second one would take.
            if alone || (is_heavy && speed.is_none()) {
                break;
            }
        }
        members
    }

    fn start(
        &mut self,
        now: Instant,
        (priority, task): (Priority, Task),
        members: Vec<JobId>,
    ) -> Batch<P> {
        let pass = PassId(self.fresh_id());
        let mut batch = Batch {
            pass,
            members: Vec::with_capacity(members.len()),
            yields: false,
        };
        let mut cost = Cost::default();
        let mut yields = priority == Priority::Bulk;
        for id in &members {
            if let Some(job) = self.jobs.get_mut(id) {
                job.running = true;
                cost.add(job.priced.cost);
                yields |= !is_light(job.priced.cost);
                batch.members.push((job.tenant, job.payload.clone()));
            }
        }
        let expected = self.speeds[task as usize]
            .as_ref()
            .map_or(Duration::ZERO, |speed| speed.fixed() + speed.marginal(cost));
        batch.yields = yields || expected > self.bulk_slice(task);
        // What is in between another is stopped for nothing.
        let yields = batch.yields && self.passes.is_empty();
        let other = match priority {
            Priority::Interactive => Priority::Bulk,
            Priority::Bulk => Priority::Interactive,
        };
        self.passes.push(Running {
            id: pass,
            members,
            task,
            cost,
            started: now,
            expected,
            priority,
            contended: !self.lanes[other as usize].is_empty(),
            yields,
            interrupted: Duration::ZERO,
        });
        batch
    }
}
