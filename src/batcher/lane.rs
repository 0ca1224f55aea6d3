//! What waits in one lane, in deficit round robin by tenant. Pure data: no clock, no channel, no device.
//!
//! In: jobs with a price. Out: whose turn it is. Each tenant in turn is granted a quantum and is served while its jobs cost no more than
//! what it was granted; what is left over counts for its next turn as long as it has work. So of two tenants that both keep work
//! waiting, neither gets ahead of the other by more than a quantum and the price of a job, but for what goes between other work.
//!
//! # Source
//! M. Shreedhar and G. Varghese, "Efficient fair queuing using deficit round robin", SIGCOMM 1995.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::cost::Cost;
use crate::model::Tenant;

/// A job, by the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct JobId(pub(super) u64);

/// What a job costs: tokens and bytes for the budgets, a price for its tenant's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Priced {
    pub(super) cost: Cost,
    /// Expected time on the device in microseconds, at least 1. Fixed when the job arrives: a turn is paid in the money it was granted in.
    pub(super) price: u64,
}

/// What a tenant is granted in each round: a millisecond of the device. Small against what a person notices, so that tenants alternate finely.
pub(super) const QUANTUM: u64 = 1000;

/// What is on its way into a lane: let in by its outline, not yet prepared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Promised {
    pub(super) requests: usize,
    pub(super) tokens: usize,
    /// As [`Priced::price`].
    pub(super) price: u64,
}

impl Promised {
    pub(super) fn add(&mut self, other: Promised) {
        self.requests += other.requests;
        self.tokens += other.tokens;
        self.price += other.price;
    }

    fn subtract(&mut self, other: Promised) {
        self.requests -= other.requests;
        self.tokens -= other.tokens;
        self.price -= other.price;
    }
}

/// The jobs of one tenant.
#[derive(Debug, Default)]
struct Flow {
    jobs: BTreeMap<JobId, Priced>,
    deficit: u64,
    cost: Cost,
    price: u64,
}

/// Everything that waits in a lane.
#[derive(Debug, Default)]
pub(super) struct Lane {
    flows: HashMap<Tenant, Flow>,
    /// Tenants with work, the one whose turn it is first.
    round: VecDeque<Tenant>,
    /// Whether the first of them has been granted its quantum for this turn.
    granted: bool,
    len: usize,
    cost: Cost,
    price: u64,
    promised: HashMap<Tenant, Promised>,
    promised_in_all: Promised,
}

impl Lane {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Tokens and bytes of all that waits.
    pub(super) fn cost(&self) -> Cost {
        self.cost
    }

    /// Price of all that waits.
    pub(super) fn price(&self) -> u64 {
        self.price
    }

    /// What is on its way in.
    pub(super) fn promised(&self) -> Promised {
        self.promised_in_all
    }

    /// Counts what is on its way in.
    pub(super) fn promise(&mut self, tenant: Tenant, promised: Promised) {
        self.promised.entry(tenant).or_default().add(promised);
        self.promised_in_all.add(promised);
    }

    /// Takes back what [`Self::promise`] counted: it has come, or will not.
    pub(super) fn redeem(&mut self, tenant: Tenant, promised: Promised) {
        if let Some(own) = self.promised.get_mut(&tenant) {
            own.subtract(promised);
            if own.requests == 0 {
                self.promised.remove(&tenant);
            }
            self.promised_in_all.subtract(promised);
        }
    }

    /// Tokens of a tenant that wait or are on their way in.
    pub(super) fn tokens_of(&self, tenant: Tenant) -> usize {
        let waiting = self.flows.get(&tenant).map_or(0, |flow| flow.cost.tokens());
        waiting + self.promised.get(&tenant).map_or(0, |own| own.tokens)
    }

    /// Price of all of a tenant's that waits or is on its way in.
    fn price_of(&self, tenant: Tenant) -> u64 {
        let waiting = self.flows.get(&tenant).map_or(0, |flow| flow.price);
        waiting + self.promised.get(&tenant).map_or(0, |own| own.price)
    }

    /// What will be served before the last of a tenant's jobs, when another `price` of its own is added: of each tenant as much as fits
    /// beside it, and all of its own.
    pub(super) fn price_before(&self, tenant: Tenant, price: u64) -> u64 {
        let own = price + self.price_of(tenant);
        let only_promised = self.promised.keys();
        let only_promised = only_promised.filter(|tenant| !self.flows.contains_key(tenant));
        let tenants = self.flows.keys().chain(only_promised);
        let others = tenants.filter(|other| **other != tenant);
        own + others
            .map(|other| self.price_of(*other).min(own))
            .sum::<u64>()
    }

    /// Puts a job where its id says: behind those that came before it. A job that failed with others and is tried again so comes first.
    pub(super) fn push(&mut self, tenant: Tenant, id: JobId, priced: Priced) {
        let flow = self.flows.entry(tenant).or_default();
        if flow.jobs.is_empty() {
            self.round.push_back(tenant);
        }
        flow.jobs.insert(id, priced);
        flow.cost.add(priced.cost);
        flow.price += priced.price;
        self.len += 1;
        self.cost.add(priced.cost);
        self.price += priced.price;
    }

    /// Whose turn it is: the tenant and its oldest job.
    pub(super) fn head(&mut self) -> Option<(Tenant, JobId)> {
        let mut visited = 0;
        loop {
            let tenant = *self.round.front()?;
            let flow = self.flows.get_mut(&tenant)?;
            if !self.granted {
                flow.deficit += QUANTUM;
                self.granted = true;
            }
            let (&id, priced) = flow.jobs.first_key_value()?;
            if priced.price <= flow.deficit {
                return Some((tenant, id));
            }
            self.round.rotate_left(1);
            self.granted = false;
            visited += 1;
            if visited == self.round.len() {
                self.skip_rounds();
                visited = 0;
            }
        }
    }

    /// The first tenant in the round whose oldest job `fits`, and that job; its turn is then over. For work that goes between other
    /// work: whose turn it is does not count there, for a job that does not fit would keep out all that do.
    pub(super) fn fitting(
        &mut self,
        fits: impl Fn(Tenant, Priced) -> bool,
    ) -> Option<(Tenant, JobId)> {
        let mut round = self.round.iter().enumerate();
        let (at, tenant, id) = round.find_map(|(at, tenant)| {
            let (&id, &priced) = self.flows.get(tenant)?.jobs.first_key_value()?;
            fits(*tenant, priced).then_some((at, *tenant, id))
        })?;
        self.round.remove(at);
        self.round.push_back(tenant);
        self.granted &= at != 0;
        Some((tenant, id))
    }

    /// Grants at once what the rounds in which nobody can be served would grant.
    fn skip_rounds(&mut self) {
        let missing = |flow: &Flow| {
            let (_, priced) = flow.jobs.first_key_value()?;
            Some(priced.price.saturating_sub(flow.deficit).div_ceil(QUANTUM))
        };
        let rounds = self.flows.values().filter_map(missing).min().unwrap_or(0);
        for flow in self.flows.values_mut() {
            flow.deficit += rounds.saturating_sub(1) * QUANTUM;
        }
    }

    /// Takes the job [`Self::head`] named and has its tenant pay for it.
    pub(super) fn pop(&mut self, tenant: Tenant, id: JobId) {
        if let Some(priced) = self.remove(tenant, id)
            && let Some(flow) = self.flows.get_mut(&tenant)
        {
            flow.deficit = flow.deficit.saturating_sub(priced.price);
        }
    }

    /// Takes a job out that need not be served any more. A tenant without work leaves the round and keeps nothing of its grants.
    pub(super) fn remove(&mut self, tenant: Tenant, id: JobId) -> Option<Priced> {
        let flow = self.flows.get_mut(&tenant)?;
        let priced = flow.jobs.remove(&id)?;
        flow.cost.subtract(priced.cost);
        flow.price -= priced.price;
        if flow.jobs.is_empty() {
            self.flows.remove(&tenant);
            if self.round.front() == Some(&tenant) {
                self.granted = false;
            }
            self.round.retain(|other| *other != tenant);
        }
        self.len -= 1;
        self.cost.subtract(priced.cost);
        self.price -= priced.price;
        Some(priced)
    }

    /// Every job, for those who check the sums.
    #[cfg(test)]
    pub(super) fn jobs(&self) -> impl Iterator<Item = (Tenant, JobId, Priced)> + '_ {
        self.flows.iter().flat_map(|(tenant, flow)| {
            let jobs = flow.jobs.iter();
            jobs.map(|(id, priced)| (*tenant, *id, *priced))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn priced(price: u64) -> Priced {
        Priced {
            cost: Cost {
                text_tokens: price as usize,
                ..Cost::default()
            },
            price,
        }
    }

    fn served(lane: &mut Lane) -> Option<(Tenant, JobId)> {
        let (tenant, id) = lane.head()?;
        lane.pop(tenant, id);
        Some((tenant, id))
    }

    #[test]
    fn the_short_job_of_one_tenant_does_not_wait_for_the_long_ones_of_another() {
        let mut lane = Lane::default();
        for id in 0..10 {
            lane.push(Tenant(1), JobId(id), priced(50 * QUANTUM));
        }
        lane.push(Tenant(2), JobId(10), priced(QUANTUM));
        assert_eq!(served(&mut lane), Some((Tenant(2), JobId(10))));
        assert_eq!(served(&mut lane), Some((Tenant(1), JobId(0))));
    }

    #[test]
    fn between_other_work_tenants_whose_jobs_fit_take_turns_whoever_is_first() {
        let mut lane = Lane::default();
        for (id, tenant, price) in [(0, 1, 900), (1, 2, 5), (2, 2, 5), (3, 3, 5), (4, 1, 5)] {
            lane.push(Tenant(tenant), JobId(id), priced(price));
        }
        let mut order = Vec::new();
        while let Some((tenant, id)) = lane.fitting(|_, priced| priced.price < 10) {
            lane.pop(tenant, id);
            order.push(id.0);
        }
        // The first tenant's short job stands behind its own long one.
        assert_eq!(order, [1, 3, 2]);
        assert_eq!(served(&mut lane), Some((Tenant(1), JobId(0))));
        assert_eq!(served(&mut lane), Some((Tenant(1), JobId(4))));
        assert!(lane.is_empty() && lane.round.is_empty());
    }

    #[test]
    fn one_tenant_is_served_in_the_order_of_arrival_also_when_a_job_comes_back() {
        let mut lane = Lane::default();
        for id in [3, 4, 1] {
            lane.push(Tenant(1), JobId(id), priced(7));
        }
        let order: Vec<_> = std::iter::from_fn(|| served(&mut lane)).collect();
        assert_eq!(
            order.iter().map(|(_, id)| id.0).collect::<Vec<_>>(),
            [1, 3, 4]
        );
        assert!(lane.is_empty() && lane.flows.is_empty() && lane.round.is_empty());
    }

    #[test]
    fn what_is_expected_before_a_job_counts_no_more_of_a_flood_than_fits_beside_it() {
        let mut lane = Lane::default();
        lane.push(Tenant(1), JobId(0), priced(1_000_000));
        lane.push(Tenant(2), JobId(1), priced(30));
        assert_eq!(lane.price_before(Tenant(2), 70), 200);
        assert_eq!(lane.price_before(Tenant(3), 10), 30);
    }

    proptest! {
        #[test]
        fn of_two_tenants_with_work_none_gets_ahead_by_more_than_a_quantum_and_a_job(
            prices in prop::collection::vec((0..3u128, 1..5 * QUANTUM), 3..200),
        ) {
            let mut lane = Lane::default();
            let dearest = prices.iter().map(|(_, price)| *price).max().unwrap_or(0);
            for (id, (tenant, price)) in prices.iter().enumerate() {
                lane.push(Tenant(*tenant), JobId(id as u64), priced(*price));
            }
            let mut paid = [0i128; 3];
            let mut seen = vec![false; prices.len()];
            while let Some((tenant, id)) = served(&mut lane) {
                let (owner, price) = prices[id.0 as usize];
                prop_assert_eq!(Tenant(owner), tenant);
                prop_assert!(!std::mem::replace(&mut seen[id.0 as usize], true));
                paid[owner as usize] += i128::from(price);
                for (a, b) in [(0, 1), (0, 2), (1, 2)] {
                    let both = [a, b].iter().all(|t| lane.flows.contains_key(&Tenant(*t as u128)));
                    let ahead = (paid[a] - paid[b]).unsigned_abs();
                    prop_assert!(!both || ahead <= u128::from(dearest + QUANTUM), "{ahead}");
                }
            }
            prop_assert!(seen.iter().all(|seen| *seen));
            prop_assert_eq!((lane.len, lane.price, lane.cost), (0, 0, Cost::default()));
        }
    }

    #[test]
    fn what_is_on_its_way_in_counts_like_what_waits_until_it_is_redeemed() {
        let mut lane = Lane::default();
        let promised = |tokens, price| Promised {
            requests: 1,
            tokens,
            price,
        };
        lane.push(Tenant(1), JobId(0), priced(30));
        lane.promise(Tenant(1), promised(5, 40));
        lane.promise(Tenant(2), promised(7, 50));
        assert_eq!(
            (lane.tokens_of(Tenant(1)), lane.tokens_of(Tenant(2))),
            (35, 7)
        );
        assert_eq!(lane.price_before(Tenant(3), 60), 60 + 60 + 50);
        assert_eq!(lane.price_before(Tenant(1), 1), 71 + 50);
        lane.redeem(Tenant(1), promised(5, 40));
        lane.redeem(Tenant(2), promised(7, 50));
        assert_eq!(lane.promised(), Promised::default());
        assert!(lane.promised.is_empty());
        assert_eq!(lane.price_before(Tenant(3), 60), 60 + 30);
    }
}
