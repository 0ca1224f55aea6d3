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

    /// Appends something of `tokens` tokens, unless that makes the queue too long. An empty queue takes anything: what is larger
    /// than the whole queue could otherwise never be served.
    pub(super) fn push(&mut self, tokens: usize, item: T) -> Result<(), Full> {
        if !self.is_empty() && self.tokens + tokens > self.policy.max_queue_tokens {
            return Err(Full {
                queued_tokens: self.tokens,
            });
        }
        self.tokens += tokens;
        self.waiting.push_back((tokens, item));
        Ok(())
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

    proptest! {
        #[test]
        fn batches_keep_order_and_budgets_and_lose_nothing(
            costs in prop::collection::vec(1_usize..50, 0..60), max_tokens in 1_usize..80, max_sequences in 1_usize..10,
        ) {
            let policy = BatchPolicy { max_tokens, max_sequences, max_queue_tokens: 400 };
            let mut queue = Queue::new(policy);
            let mut accepted = Vec::new();
            for (i, &cost) in costs.iter().enumerate() {
                match queue.push(cost, i) {
                    Ok(()) => accepted.push(i),
                    Err(full) => prop_assert!(full.queued_tokens + cost > 400),
                }
            }
            let mut served = Vec::new();
            while !queue.is_empty() {
                let batch = queue.next_batch(|i| i % 7 != 3);
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
