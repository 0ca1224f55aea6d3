//! Who is let in. Refusing costs nothing and is done at once; what is let in is expected to be answered in time.

use std::collections::HashSet;
use std::time::Duration;

use super::cost::Cost;
use super::lane::Lane;
use super::schedule::{Group, Instant, Phase, Running, Schedule};
use super::{BatcherError, Priority};
use crate::model::Tenant;

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
        match self.phase {
            Phase::Open => {}
            Phase::Draining => return Err(BatcherError::Draining),
            Phase::Lost => return Err(BatcherError::Unavailable),
        }
        if group.deadline <= now {
            return Err(BatcherError::Expired);
        }
        let mut seen = HashSet::new();
        let mut brought = Cost::default();
        let mut price = 0;
        for entry in &group.entries {
            // What is in flight already costs nothing more.
            if !self.is_in_flight(group.tenant, entry.key) && seen.insert(entry.key) {
                brought.add(entry.cost);
                price += self.price(entry.cost);
            }
        }
        if seen.is_empty() {
            return Ok(());
        }
        self.check_room(group.tenant, priority, brought)?;
        let ahead = self.ahead(now, (group.tenant, priority), price);
        let own = Duration::from_micros(price);
        // Nothing before it: then what it lacks is not room, and asking again would not help.
        let waits = !self.lanes.iter().all(Lane::is_empty);
        let allowed = group.deadline - now;
        // A quarter more: the expectation knows neither the passes' fixed part nor who comes next.
        if waits && self.speed.is_some() && (ahead + own) * 5 / 4 > allowed {
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
        let mut waiting = Cost::default();
        for lane in &self.lanes {
            waiting.add(lane.cost());
        }
        if self.lanes.iter().all(Lane::is_empty) {
            return Ok(());
        }
        let limit = self.policy.max_queue_tokens;
        // None is free where it does not fit at all.
        let free = limit.saturating_sub(waiting.tokens() + brought.tokens());
        let own = self.lanes[priority as usize].tokens_of(tenant) + brought.tokens();
        if own > free.saturating_mul(SHARE_OF_FREE) {
            return Err(BatcherError::Overloaded {
                unit: "tokens",
                waiting: waiting.tokens(),
                limit,
                retry_after: self.retry_after(),
            });
        }
        Ok(())
    }

    /// What is expected to run before the last input of a group that comes now.
    fn ahead(&self, now: Instant, (tenant, priority): (Tenant, Priority), price: u64) -> Duration {
        let lane = &self.lanes[priority as usize];
        let mut micros = lane.price_before(tenant, price).saturating_sub(price);
        if priority == Priority::Bulk {
            micros += self.lanes[Priority::Interactive as usize].price();
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

    /// When what waits now will have been computed.
    fn retry_after(&self) -> Duration {
        if self.speed.is_none() {
            return UNMEASURED_RETRY;
        }
        let micros = self.lanes.iter().map(Lane::price).sum();
        Duration::from_micros(micros).clamp(MIN_RETRY, MAX_RETRY)
    }
}

/// Whether something is computed so fast that it need not be kept from others who wait for an answer.
pub(super) fn is_light(cost: Cost) -> bool {
    cost.vision_tokens == 0 && cost.text_tokens <= LIGHT_TOKENS
}
