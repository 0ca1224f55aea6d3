//! What runs when: a state machine over a clock and a device it is given.
//!
//! In: groups of inputs ([`Schedule::submit`]), clients that leave, the end of a pass. Out: the next batch ([`Schedule::next`]) and
//! answers. It knows no thread, no channel and no time but the one it is told, so a simulation can drive it through years of faults.
//! `door` says who is let in, `forming` which of them run together, `settling` what becomes of a pass.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::content::ContentKey;
use super::cost::{Cost, Speed};
use super::counters::Counters;
use super::lane::{JobId, Priced};
use super::outline::Guess;
use super::track::Track;
use super::{BatchPolicy, BatcherError, Embedding, Priority};
use crate::model::{Task, Tenant};

/// Time since the schedule began.
pub(super) type Instant = Duration;

/// A client's place. Giving it up is [`Schedule::leave`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket(u64);

/// Inputs that enter together or not at all.
pub(super) struct Group<P, W> {
    pub(super) entries: Vec<Entry<P, W>>,
    /// Which model computes them.
    pub(super) task: Task,
    pub(super) tenant: Tenant,
    /// What the client asked for; `None` goes by cost.
    pub(super) priority: Option<Priority>,
    /// When nobody waits any more.
    pub(super) deadline: Instant,
    /// Whether it was let in before it was prepared.
    pub(super) promised: bool,
}

/// One input and who is told what comes of it.
pub(super) struct Entry<P, W> {
    pub(super) payload: P,
    pub(super) key: ContentKey,
    pub(super) cost: Cost,
    pub(super) waiter: W,
}

/// Somebody who waits for a job.
pub(super) struct Waiter<W> {
    ticket: Ticket,
    since: Instant,
    pub(super) deadline: Instant,
    reply: W,
}

/// One computation, and all who wait for it.
pub(super) struct Job<P, W> {
    pub(super) payload: P,
    pub(super) task: Task,
    pub(super) tenant: Tenant,
    key: ContentKey,
    pub(super) priority: Priority,
    pub(super) priced: Priced,
    pub(super) entered: Instant,
    /// It failed in company: the next pass is its own, and its last.
    pub(super) alone: bool,
    pub(super) running: bool,
    pub(super) waiters: Vec<Waiter<W>>,
}

/// A pass, by the order they began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PassId(pub(super) u64);

/// A pass the device has been given.
pub(super) struct Running {
    pub(super) id: PassId,
    pub(super) members: Vec<JobId>,
    pub(super) task: Task,
    pub(super) cost: Cost,
    pub(super) started: Instant,
    pub(super) expected: Duration,
    pub(super) priority: Priority,
    /// Whether the other lane had work when it began.
    pub(super) contended: bool,
    /// Whether the device may put a short one in between: it is neither short itself nor in between another.
    pub(super) yields: bool,
    /// Time it has lost so.
    pub(super) interrupted: Duration,
}

/// Whether anything is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// What was let in is finished, and no more.
    Draining,
    /// The device is gone.
    Lost,
}

/// Everything that waits or runs. `P` is what the device reads, `W` how a waiter is told.
pub(super) struct Schedule<P, W> {
    pub(super) policy: BatchPolicy,
    pub(super) phase: Phase,
    pub(super) lanes: [Track; 2],
    pub(super) jobs: BTreeMap<JobId, Job<P, W>>,
    /// Jobs by what they compute: a second one like it joins the first. Kept apart by tenant, for how long an answer takes tells whether
    /// somebody else asked the same.
    in_flight: HashMap<(Tenant, ContentKey), JobId>,
    tickets: HashMap<Ticket, JobId>,
    /// None, one, or one that yields and the one in between.
    pub(super) passes: Vec<Running>,
    /// Whether the device has room for a second pass beside a long one, as far as is known.
    pub(super) may_interrupt: bool,
    /// Of each model, as far as it is known.
    pub(super) speeds: [Option<Speed>; 2],
    /// What requests come to that are not yet prepared.
    pub(super) guess: Guess,
    /// What the device was found to have memory for.
    pub(super) learned_max_tokens: usize,
    /// Time of the device that interactive work took while bulk work waited, less what bulk work got for it; microseconds.
    pub(super) owed_to_bulk: i64,
    pub(super) counters: Counters,
    answers: Vec<(W, Result<Embedding, BatcherError>)>,
    ids: u64,
}

impl<P: Clone, W> Schedule<P, W> {
    pub(super) fn new(policy: BatchPolicy) -> Self {
        Schedule {
            policy,
            phase: Phase::Open,
            lanes: Default::default(),
            jobs: BTreeMap::new(),
            in_flight: HashMap::new(),
            tickets: HashMap::new(),
            passes: Vec::new(),
            may_interrupt: true,
            speeds: [None; 2],
            guess: Guess::default(),
            learned_max_tokens: usize::MAX,
            owed_to_bulk: 0,
            counters: Counters::default(),
            answers: Vec::new(),
            ids: 0,
        }
    }

    /// Lets a group in: all of its inputs or none.
    ///
    /// # Errors
    /// [`BatcherError::Overloaded`], [`BatcherError::TooLate`], [`BatcherError::Expired`], [`BatcherError::Draining`],
    /// [`BatcherError::Unavailable`].
    pub(super) fn submit(
        &mut self,
        now: Instant,
        group: Group<P, W>,
    ) -> Result<Vec<Ticket>, BatcherError> {
        let priority = self.priority_of(&group);
        let admitted = self.admit(now, &group, priority);
        if let Err(refusal) = admitted {
            self.counters.refuse(&refusal);
            return Err(refusal);
        }
        let (task, tenant, deadline) = (group.task, group.tenant, group.deadline);
        let mut enter = |entry: Entry<P, W>| {
            let ticket = Ticket(self.fresh_id());
            let waiter = Waiter {
                ticket,
                since: now,
                deadline,
                reply: entry.waiter,
            };
            let id = match self.in_flight.get(&(tenant, entry.key)) {
                Some(&id) => id,
                None => self.add_job(
                    now,
                    (task, tenant, priority),
                    (entry.payload, entry.key, entry.cost),
                ),
            };
            self.tickets.insert(ticket, id);
            if let Some(job) = self.jobs.get_mut(&id) {
                self.counters.computed_once += u64::from(!job.waiters.is_empty());
                job.waiters.push(waiter);
            }
            if priority == Priority::Interactive {
                self.promote(id);
            }
            ticket
        };
        Ok(group.entries.into_iter().map(&mut enter).collect())
    }

    fn add_job(
        &mut self,
        now: Instant,
        (task, tenant, priority): (Task, Tenant, Priority),
        (payload, key, cost): (P, ContentKey, Cost),
    ) -> JobId {
        let id = JobId(self.fresh_id());
        let price = self.price(task, cost, 1);
        let job = Job {
            payload,
            task,
            tenant,
            key,
            priority,
            priced: Priced { cost, price },
            entered: now,
            alone: false,
            running: false,
            waiters: Vec::new(),
        };
        self.lanes[priority as usize].push(task, tenant, (id, job.priced));
        self.in_flight.insert((tenant, key), id);
        self.jobs.insert(id, job);
        self.counters.inputs += 1;
        id
    }

    /// Whether the same is waiting or running already.
    pub(super) fn is_in_flight(&self, tenant: Tenant, key: ContentKey) -> bool {
        self.in_flight.contains_key(&(tenant, key))
    }

    pub(super) fn fresh_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// What jobs are charged that cost so much together: see [`Speed::charge`]. In microseconds; their tokens before anything is known.
    pub(super) fn price(&self, task: Task, cost: Cost, jobs: usize) -> u64 {
        let micros = match &self.speeds[task as usize] {
            Some(speed) => speed.charge(cost, jobs).as_micros() as u64,
            None => cost.tokens() as u64,
        };
        micros.max(1)
    }

    /// Somebody in a hurry has joined a job that waits with the bulk.
    fn promote(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.priority == Priority::Bulk && !job.running {
            self.lanes[Priority::Bulk as usize].remove(job.task, job.tenant, id);
            job.priority = Priority::Interactive;
            let hurried = &mut self.lanes[Priority::Interactive as usize];
            hurried.push(job.task, job.tenant, (id, job.priced));
        }
    }

    /// Gives a place up. A job that nobody waits for any more leaves the queue; one that runs is not interrupted.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        let Some(id) = self.tickets.remove(&ticket) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.waiters.retain(|waiter| waiter.ticket != ticket);
        self.counters.left += 1;
        if job.waiters.is_empty() && !job.running {
            self.remove_job(id);
        }
    }

    /// Tells those whose time is up. Whether anybody still waits; if not, the job is gone.
    pub(super) fn expire(&mut self, now: Instant, id: JobId) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else {
            return false;
        };
        for waiter in job.waiters.extract_if(.., |waiter| waiter.deadline <= now) {
            self.tickets.remove(&waiter.ticket);
            self.counters.expired += 1;
            self.answers
                .push((waiter.reply, Err(BatcherError::Expired)));
        }
        let wanted = !job.waiters.is_empty();
        if !wanted {
            self.remove_job(id);
        }
        wanted
    }

    /// Forgets a job, wherever it is.
    pub(super) fn remove_job(&mut self, id: JobId) -> Option<Job<P, W>> {
        let job = self.jobs.remove(&id)?;
        self.lanes[job.priority as usize].remove(job.task, job.tenant, id);
        self.in_flight.remove(&(job.tenant, job.key));
        for waiter in &job.waiters {
            self.tickets.remove(&waiter.ticket);
        }
        Some(job)
    }

    /// Ends a job, telling each who waits for it; `outcome` is given how long it waited for the pass.
    pub(super) fn answer(
        &mut self,
        id: JobId,
        started: Instant,
        outcome: impl Fn(Duration) -> Result<Embedding, BatcherError>,
    ) {
        let Some(job) = self.remove_job(id) else {
            return;
        };
        for waiter in job.waiters {
            let queued = started.saturating_sub(waiter.since);
            self.answers.push((waiter.reply, outcome(queued)));
        }
    }

    /// Lets nothing more in.
    pub(super) fn close(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Draining;
        }
    }

    /// The device is gone: nobody will be answered by it.
    pub(super) fn lose(&mut self) {
        self.phase = Phase::Lost;
        self.passes.clear();
        while let Some((&id, _)) = self.jobs.first_key_value() {
            self.answer(id, Instant::ZERO, |_| Err(BatcherError::Unavailable));
        }
    }

    /// What is to be told since the last call.
    pub(super) fn take_answers(&mut self) -> Vec<(W, Result<Embedding, BatcherError>)> {
        std::mem::take(&mut self.answers)
    }

    /// What is counted, and what waits now.
    pub(super) fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        for (lane, waiting) in self.lanes.iter().zip(&mut counters.waiting) {
            waiting.inputs = lane.len();
            waiting.cost = lane.cost();
            waiting.expected = Duration::from_micros(lane.price());
        }
        counters.running_inputs = self.passes.iter().map(|pass| pass.members.len()).sum();
        counters.learned_max_tokens =
            Some(self.learned_max_tokens).filter(|tokens| *tokens < usize::MAX);
        counters
    }
}

#[cfg(test)]
mod tests;
