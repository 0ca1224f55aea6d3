//! Who is let in. Refusing costs nothing and is done at once; what is let in is expected to be answered in time.

use std::collections::HashSet;
use std::time::Duration;

use super::cost::Cost;
use super::lane::Promised;
use super::outline::Outline;
use super::schedule::{Group, Instant, Phase, Running, Schedule};
use super::track::Track;
use super::{BatcherError, Priority};
use crate::model::{Task, Tenant};

/// A lone text of at most so many tokens is somebody waiting for an answer: a query, seldom a document.
pub(super) const LIGHT_TOKENS: usize = 512;
/// One tenant may have so many times as much waiting in a lane as is still free. Alone it so fills eight ninths of the queue, and there
/// is always room for the first requests of somebody else, and in the other lane.
const SHARE_OF_FREE: usize = 8;
/// Retry-After while the device's speed is not known.
const UNMEASURED_RETRY: Duration = Duration::from_secs(1);
/// Shortest Retry-After.
const MIN_RETRY: Duration = Duration::from_millis(100);
/// Longest Retry-After: the official SDKs ignore one above 120 s, and a client should ask again long before.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// A request that was let in by its outline.
#[derive(Debug)]
pub(super) struct Promise {
    task: Task,
    tenant: Tenant,
    priority: Priority,
    pub(super) promised: Promised,
    /// How many inputs it has.
    pub(super) inputs: usize,
    /// Its bytes of text and its media.
    outline: (usize, usize),
}

impl<P: Clone, W> Schedule<P, W> {
    /// The lane of a group whose client named none.
    pub(super) fn priority_of(&self, group: &Group<P, W>) -> Priority {
        let by_cost = match &group.entries[..] {
            [lone] if is_light(lone.cost) => Priority::Interactive,
            _ => Priority::Bulk,
        };
        group.priority.unwrap_or(by_cost)
    }

    /// Whether there is room and time for a group.
    pub(super) fn admit(
        &self,
        now: Instant,
        group: &Group<P, W>,
        priority: Priority,
    ) -> Result<(), BatcherError> {
        self.check_phase(now, group.deadline)?;
        let mut seen = HashSet::new();
        let mut brought = Cost::default();
        let mut price = 0;
        for entry in &group.entries {
            // What is in flight already costs nothing more.
            if !self.is_in_flight(group.tenant, entry.key) && seen.insert(entry.key) {
                brought.add(entry.cost);
                price += self.price(group.task, entry.cost, 1);
            }
        }
        if seen.is_empty() {
            return Ok(());
        }
        if group.promised {
            // It was let in, and what came after it does not count; but the bound is one.
            return self.check_bound(brought);
        }
        self.check_room(group.tenant, priority, brought)?;
        let whose = (group.task, group.tenant, priority);
        self.check_time(now, whose, (price, group.deadline))
    }

    /// Lets a request in by what is known of it before it is prepared; what it is expected to cost counts from now on, until
    /// [`Self::redeem`]. What then comes is let in or not by [`Self::admit`].
    pub(super) fn promise(
        &mut self,
        now: Instant,
        (outline, deadline): (&Outline, Instant),
    ) -> Result<Promise, BatcherError> {
        let media = outline.media;
        let cost = self.guess.cost(outline.text_bytes, media);
        let light = outline.inputs == 1 && media == 0 && is_light(cost);
        let by_cost = match light {
            true => Priority::Interactive,
            false => Priority::Bulk,
        };
        let (tenant, priority) = (outline.tenant, outline.priority.unwrap_or(by_cost));
        let task = outline.task;
        let price = self.price(task, cost, outline.inputs);
        let checked = self
            .check_phase(now, deadline)
            .and_then(|()| self.check_room(tenant, priority, cost))
            .and_then(|()| self.check_time(now, (task, tenant, priority), (price, deadline)));
        if let Err(refusal) = checked {
            self.counters.refuse(&refusal);
            return Err(refusal);
        }
        let promised = Promised {
            requests: 1,
            tokens: cost.tokens(),
            price,
        };
        self.lanes[priority as usize].promise(task, tenant, promised);
        Ok(Promise {
            task,
            tenant,
            priority,
            promised,
            inputs: outline.inputs,
            outline: (outline.text_bytes, media),
        })
    }

    /// What was promised has come, at this cost, or will not.
    pub(super) fn redeem(&mut self, promise: Promise, cost: Option<Cost>) {
        self.lanes[promise.priority as usize].redeem(
            promise.task,
            promise.tenant,
            promise.promised,
        );
        if let Some(cost) = cost {
            self.guess.learn(promise.outline, cost);
        }
    }

    fn check_phase(&self, now: Instant, deadline: Instant) -> Result<(), BatcherError> {
        match self.phase {
            Phase::Draining => Err(BatcherError::Draining),
            Phase::Lost => Err(BatcherError::Unavailable),
            Phase::Open if deadline <= now => Err(BatcherError::Expired),
            Phase::Open => Ok(()),
        }
    }

    /// Whether nothing waits and nothing is on its way in.
    fn is_idle(&self) -> bool {
        let idle = |lane: &Track| lane.is_empty() && lane.promised().requests == 0;
        self.lanes.iter().all(idle)
    }

    /// Whether it is expected to be answered in time.
    fn check_time(
        &self,
        now: Instant,
        whose: (Task, Tenant, Priority),
        (price, deadline): (u64, Instant),
    ) -> Result<(), BatcherError> {
        let ahead = self.ahead(now, whose, price);
        let allowed = deadline - now;
        // All of a pass are answered at its end: it waits for the fixed part of its own, and for one more where that before it was cut short.
        let late = self.speeds[whose.0 as usize].is_some_and(|speed| {
            let own = Duration::from_micros(price) + speed.fixed() * 2;
            // A machine that others use, too, slows down by a quarter and more for seconds, and a deep queue is no less busy for being a
            // little shorter.
            speed.is_confirmed() && ahead * 3 / 2 + cautious(own) > allowed
        });
        // Nothing before it: then what it lacks is not room, and asking again would not help.
        if late && !self.is_idle() {
            return Err(BatcherError::TooLate {
                allowed,
                retry_after: ahead.clamp(MIN_RETRY, MAX_RETRY),
            });
        }
        Ok(())
    }

    /// Whether the queue has room. An empty one takes anything: a group larger than the whole queue could otherwise never be served.
    fn check_room(
        &self,
        tenant: Tenant,
        priority: Priority,
        brought: Cost,
    ) -> Result<(), BatcherError> {
        if self.is_idle() {
            return Ok(());
        }
        let tokens = |lane: &Track| lane.cost().tokens() + lane.promised().tokens;
        let waiting: usize = self.lanes.iter().map(tokens).sum();
        let limit = self.policy.max_queue_tokens;
        // None is free where it does not fit at all.
        let free = limit.saturating_sub(waiting + brought.tokens());
        let own = self.lanes[priority as usize].tokens_of(tenant) + brought.tokens();
        if own > free.saturating_mul(SHARE_OF_FREE) {
            return Err(BatcherError::Overloaded {
                unit: "tokens",
                waiting,
                limit,
                retry_after: self.retry_after(),
            });
        }
        Ok(())
    }

    /// What is expected to run before the last input of a group that comes now.
    fn ahead(
        &self,
        now: Instant,
        (task, tenant, priority): (Task, Tenant, Priority),
        price: u64,
    ) -> Duration {
        let lane = &self.lanes[priority as usize];
        let mut micros = lane.price_before(task, tenant, price).saturating_sub(price);
        if priority == Priority::Bulk {
            micros += expected(&self.lanes[Priority::Interactive as usize]);
        }
        let rest = |pass: &Running| (pass.started + pass.expected).saturating_sub(now);
        let running: Duration = self.passes.iter().map(rest).sum();
        running + Duration::from_micros(micros)
    }

    /// Counts a refusal that was decided elsewhere, and says when to come back.
    pub(super) fn refuse(&mut self, mut refusal: BatcherError) -> BatcherError {
        if let BatcherError::Overloaded { retry_after, .. } = &mut refusal {
            *retry_after = self.retry_after();
        }
        self.counters.refuse(&refusal);
        refusal
    }

    /// Whether what waits stays within its bound; an empty queue takes anything.
    fn check_bound(&self, brought: Cost) -> Result<(), BatcherError> {
        let waiting: usize = self.lanes.iter().map(|lane| lane.cost().tokens()).sum();
        let limit = self.policy.max_queue_tokens;
        if waiting > 0 && waiting + brought.tokens() > limit {
            return Err(BatcherError::Overloaded {
                unit: "tokens",
                waiting,
                limit,
                retry_after: self.retry_after(),
            });
        }
        Ok(())
    }

    /// When what waits now will have been computed.
    fn retry_after(&self) -> Duration {
        if self.speeds.iter().all(Option::is_none) {
            return UNMEASURED_RETRY;
        }
        let micros = self.lanes.iter().map(expected).sum();
        Duration::from_micros(micros).clamp(MIN_RETRY, MAX_RETRY)
    }
}

/// Microseconds that all that waits in a lane or is on its way in is expected to take.
fn expected(lane: &Track) -> u64 {
    lane.price() + lane.promised().price
}

/// How long something expected may take all the same: a quarter more, for the expectation knows neither who comes next nor what else the
/// machine will do.
pub(super) fn cautious(expected: Duration) -> Duration {
    expected * 5 / 4
}

/// Whether something is computed so fast that it need not be kept from others who wait for an answer.
pub(super) fn is_light(cost: Cost) -> bool {
    cost.vision_tokens == 0 && cost.text_tokens <= LIGHT_TOKENS
}
