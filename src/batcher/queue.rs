//! What waits, in order, and which of it goes next. Pure data: no clock, no channel, no device.

use std::collections::VecDeque;

use super::BatchPolicy;

/// Things of a cost, first in, first out, bounded by the cost of all of them together.
#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: VecDeque<(usize, T)>,
    tokens: usize,
    policy: BatchPolicy,
}

/// A queue that cannot take more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full {
    /// Tokens that wait.
    pub(super) queued_tokens: usize,
}

impl<T> Queue<T> {
    pub(super) fn new(policy: BatchPolicy) -> Self {
        Queue {
            waiting: VecDeque::new(),
            tokens: 0,
            policy,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Cost of all that waits.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Appends the members of a group with their costs: all, or none when that makes the queue too long. What `is_wanted` denies
    /// makes room first. An empty queue takes anything: a group larger than the whole queue could otherwise never be served.
    pub(super) fn push_all(
        &mut self,
        group: Vec<(usize, T)>,
        is_wanted: impl Fn(&T) -> bool,
    ) -> Result<(), Full> {
        let cost: usize = group.iter().map(|(tokens, _)| tokens).sum();
        if self.is_full_for(cost) {
            self.waiting.retain(|(_, item)| is_wanted(item));
            self.tokens = self.waiting.iter().map(|(tokens, _)| tokens).sum();
        }
        if self.is_full_for(cost) {
            return Err(Full {
                queued_tokens: self.tokens,
            });
        }
        self.tokens += cost;
        self.waiting.extend(group);
        Ok(())
    }

    fn is_full_for(&self, cost: usize) -> bool {
        !self.is_empty() && self.tokens + cost > self.policy.max_queue_tokens
    }

    /// Whether the next batch cannot grow by what may yet arrive: either budget ends before the queue does.
    pub(super) fn has_whole_batch(&self) -> bool {
        let mut batch_tokens = 0;
        for (count, (tokens, _)) in self.waiting.iter().enumerate() {
            batch_tokens += tokens;
            if count > 0 && batch_tokens > self.policy.max_tokens {
                return true;
            }
            if batch_tokens >= self.policy.max_tokens || count + 1 >= self.policy.max_sequences {
                return true;
            }
        }
        false
    }

    /// Takes the next batch: from the front, as many as the budgets allow, at least one. What `is_wanted` denies is dropped.
    pub(super) fn next_batch(&mut self, is_wanted: impl Fn(&T) -> bool) -> Vec<T> {
        let mut batch = Vec::new();
        let mut batch_tokens = 0;
        while let Some((tokens, _)) = self.waiting.front() {
            let fits = batch_tokens + tokens <= self.policy.max_tokens
                && batch.len() < self.policy.max_sequences;
            if !batch.is_empty() && !fits {
                break;
            }
            let Some((tokens, item)) = self.waiting.pop_front() else {
                break;
            };
            self.tokens -= tokens;
            if is_wanted(&item) {
                batch_tokens += tokens;
                batch.push(item);
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: BatchPolicy = BatchPolicy {
        max_tokens: 10,
        max_sequences: 3,
        max_queue_tokens: 20,
    };

    fn all(_: &usize) -> bool {
        true
    }

    #[test]
    fn a_group_that_does_not_fit_leaves_nothing_behind() {
        let mut queue = Queue::new(POLICY);
        queue.push_all(vec![(15, 0)], all).unwrap();
        let full = queue.push_all(vec![(3, 1), (3, 2)], all).unwrap_err();
        assert_eq!((full.queued_tokens, queue.tokens()), (15, 15));
        assert_eq!(queue.next_batch(all), [0]);
        assert!(queue.is_empty());
    }

    #[test]
    fn those_who_left_make_room() {
        let mut queue = Queue::new(POLICY);
        queue.push_all(vec![(15, 0), (5, 1)], all).unwrap();
        queue.push_all(vec![(14, 2)], |item| *item != 0).unwrap();
        assert_eq!((queue.tokens(), queue.next_batch(all)), (19, vec![1]));
    }

    #[test]
    fn an_empty_queue_takes_what_is_larger_than_itself_and_serves_it_alone() {
        let mut queue = Queue::new(POLICY);
        queue.push_all(vec![(500, 0), (1, 1)], all).unwrap();
        assert!(queue.push_all(vec![(1, 2)], all).is_err());
        assert_eq!(queue.next_batch(all), [0]);
        assert_eq!(queue.next_batch(all), [1]);
    }

    #[test]
    fn a_batch_is_whole_when_a_budget_ends_it() {
        for (costs, whole) in [
            (vec![], false),
            (vec![9], false),
            (vec![10], true),
            (vec![11], true),
            (vec![5, 6], true),
            (vec![1, 1], false),
            (vec![1, 1, 1], true),
        ] {
            let mut queue = Queue::new(POLICY);
            let group = costs.iter().map(|&cost| (cost, 0)).collect();
            queue.push_all(group, all).unwrap();
            assert_eq!(queue.has_whole_batch(), whole, "{costs:?}");
        }
    }

    proptest! {
        #[test]
        fn batches_keep_order_and_budgets_and_lose_nothing(
            costs in prop::collection::vec(1_usize..50, 0..60), max_tokens in 1_usize..80, max_sequences in 1_usize..10,
        ) {
            let policy = BatchPolicy { max_tokens, max_sequences, max_queue_tokens: 400 };
            let mut queue = Queue::new(policy);
            let mut accepted = Vec::new();
            for (i, &cost) in costs.iter().enumerate() {
                match queue.push_all(vec![(cost, i)], |_| true) {
                    Ok(()) => accepted.push(i),
                    Err(full) => prop_assert!(full.queued_tokens + cost > 400),
                }
            }
            let mut served = Vec::new();
            while !queue.is_empty() {
                let whole = queue.has_whole_batch();
                let batch = queue.next_batch(|i| i % 7 != 3);
                prop_assert!(whole || queue.is_empty(), "a batch that could grow left something behind");
                let tokens: usize = batch.iter().map(|&i| costs[i]).sum();
                prop_assert!(batch.len() <= 1 || tokens <= max_tokens, "{} tokens in {:?}", tokens, &batch);
                prop_assert!(batch.len() <= max_sequences);
                served.extend(batch);
            }
            accepted.retain(|i| i % 7 != 3);
            prop_assert_eq!(served, accepted);
            prop_assert_eq!(queue.tokens, 0);
        }
    }
}
