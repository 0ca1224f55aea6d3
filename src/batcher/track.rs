//! What waits with one priority: a lane for each model, for a pass is of one. Pure data, as the lanes are.
//!
//! In: jobs. Out: which model's turn it is, and in its lane whose. The model whose jobs were given less of the device goes next; one that
//! had nothing to do saves nothing up.

use super::cost::Cost;
use super::lane::{JobId, Lane, Priced, Promised};
use crate::model::{Task, Tenant};

/// The lanes of one priority.
#[derive(Debug, Default)]
pub(super) struct Track {
    /// By [`Task`].
    lanes: [Lane; 2],
    /// What each model's jobs cost that were served, from the last time that both had as much.
    served: [u64; 2],
}

impl Track {
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.iter().all(Lane::is_empty)
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.iter().map(Lane::len).sum()
    }

    /// Tokens and bytes of all that waits.
    pub(super) fn cost(&self) -> Cost {
        let mut cost = Cost::default();
        for lane in &self.lanes {
            cost.add(lane.cost());
        }
        cost
    }

    /// Price of all that waits.
    pub(super) fn price(&self) -> u64 {
        self.lanes.iter().map(Lane::price).sum()
    }

    /// What is on its way in.
    pub(super) fn promised(&self) -> Promised {
        let mut promised = Promised::default();
        for lane in &self.lanes {
            promised.add(lane.promised());
        }
        promised
    }

    /// Counts what is on its way in: see [`Lane::promise`].
    pub(super) fn promise(&mut self, task: Task, tenant: Tenant, promised: Promised) {
        self.lanes[task as usize].promise(tenant, promised);
    }

    /// Takes back what [`Self::promise`] counted.
    pub(super) fn redeem(&mut self, task: Task, tenant: Tenant, promised: Promised) {
        self.lanes[task as usize].redeem(tenant, promised);
    }

    /// Tokens of a tenant that wait or are on their way in.
    pub(super) fn tokens_of(&self, tenant: Tenant) -> usize {
        self.lanes.iter().map(|lane| lane.tokens_of(tenant)).sum()
    }

    /// What will be served before the last of a tenant's jobs for a model, when another `price` of its own is added: what its lane says,
    /// and of the other model's jobs as much as fits beside that.
    pub(super) fn price_before(&self, task: Task, tenant: Tenant, price: u64) -> u64 {
        let own = self.lanes[task as usize].price_before(tenant, price);
        let other = &self.lanes[1 - task as usize];
        own + (other.price() + other.promised().price).min(own)
    }

    /// Puts a job where its id says: see [`Lane::push`].
    pub(super) fn push(&mut self, task: Task, tenant: Tenant, job: (JobId, Priced)) {
        let own = task as usize;
        if self.lanes[own].is_empty() {
            self.served[own] = self.served[own].max(self.served[1 - own]);
        }
        self.lanes[own].push(tenant, job.0, job.1);
    }

    /// Whose models' turns they are, the next one first; those without work have none.
    pub(super) fn turns(&self) -> impl Iterator<Item = Task> + use<> {
        let mut tasks = Task::ALL;
        tasks.sort_by_key(|&task| self.served[task as usize]);
        let waits = tasks.map(|task| !self.lanes[task as usize].is_empty());
        let both = tasks.into_iter().zip(waits);
        both.filter(|(_, waits)| *waits).map(|(task, _)| task)
    }

    /// Whose turn it is among a model's jobs: the tenant and its oldest.
    pub(super) fn head(&mut self, task: Task) -> Option<(Tenant, JobId)> {
        self.lanes[task as usize].head()
    }

    /// Among a model's jobs the next that `fits`: see [`Lane::fitting`].
    pub(super) fn fitting(
        &mut self,
        task: Task,
        fits: impl Fn(Tenant, Priced) -> bool,
    ) -> Option<(Tenant, JobId)> {
        self.lanes[task as usize].fitting(fits)
    }

    /// Takes the job [`Self::head`] named, and has its tenant and its model pay for it.
    pub(super) fn pop(&mut self, task: Task, tenant: Tenant, (id, priced): (JobId, Priced)) {
        self.lanes[task as usize].pop(tenant, id);
        self.served[task as usize] += priced.price;
        let least = self.served[0].min(self.served[1]);
        self.served = self.served.map(|served| served - least);
    }

    /// Takes a job out that need not be served any more.
    pub(super) fn remove(&mut self, task: Task, tenant: Tenant, id: JobId) {
        self.lanes[task as usize].remove(tenant, id);
    }

    /// Every job, for those who check the sums.
    #[cfg(test)]
    pub(super) fn jobs(&self) -> impl Iterator<Item = (Tenant, JobId, Priced)> + '_ {
        self.lanes.iter().flat_map(Lane::jobs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Tenant = Tenant(1);

    fn job(id: u64, price: u64) -> (JobId, Priced) {
        let cost = Cost::default();
        (JobId(id), Priced { cost, price })
    }

    fn serve(track: &mut Track, price: u64) -> Option<Task> {
        let task = track.turns().next()?;
        let (tenant, id) = track.head(task)?;
        track.pop(task, tenant, job(id.0, price));
        Some(task)
    }

    #[test]
    fn the_models_share_the_device_evenly_and_none_saves_up() {
        let mut track = Track::default();
        for id in 0..100 {
            track.push(Task::Embed, ONE, job(id, 10));
        }
        for _ in 0..50 {
            assert_eq!(serve(&mut track, 10), Some(Task::Embed));
        }
        // It had nothing to do for 500 and does not get them now; its jobs are three times as dear.
        for id in 100..110 {
            track.push(Task::Rerank, ONE, job(id, 30));
        }
        let mut turns = [0; 2];
        for _ in 0..16 {
            let task = track.turns().next().unwrap();
            let price = [10, 30][task as usize];
            turns[serve(&mut track, price).unwrap() as usize] += 1;
        }
        assert_eq!(turns, [12, 4]);
    }

    #[test]
    fn what_is_before_a_job_counts_no_more_of_the_other_model_than_fits_beside_it() {
        let mut track = Track::default();
        track.push(Task::Embed, Tenant(2), job(1, 1_000_000));
        track.push(Task::Rerank, Tenant(3), job(2, 50));
        assert_eq!(track.price_before(Task::Rerank, ONE, 100), 300);
        assert_eq!(track.price_before(Task::Embed, ONE, 100), 250);
        assert_eq!((track.len(), track.price()), (2, 1_000_050));
        track.remove(Task::Embed, Tenant(2), JobId(1));
        assert!(track.turns().eq([Task::Rerank]) && !track.is_empty());
    }
}
