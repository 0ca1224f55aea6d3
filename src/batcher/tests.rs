//! The batcher around a device that does what a test tells it: rows spell the first id of their sequence, so that a swapped row shows,
//! and every prefix is as if kept.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::*;

fn sequence(id: u32, tokens: usize) -> Sequence {
    Sequence {
        input_ids: vec![id; tokens],
        position_ids: std::array::from_fn(|_| (0..tokens as u32).collect()),
        media: Vec::new(),
        vision_rows: Vec::new(),
        prefix_tokens: 0,
    }
}

fn rows(batch: &PackedBatch) -> Vec<Encoded> {
    let starts = &batch.cu_seqlens[..batch.sequences()];
    starts
        .iter()
        .zip(&batch.prefix_tokens)
        .map(|(&start, &prefix_tokens)| Encoded {
            row: vec![batch.input_ids[start as usize] as f32],
            cached_tokens: prefix_tokens,
        })
        .collect()
}

const POLICY: BatchPolicy = BatchPolicy {
    max_tokens: 8,
    max_sequences: 4,
    max_queue_tokens: 20,
};

/// A device that notes the size of each batch and computes one for every permit of `gate`; id 13 makes it fail.
#[derive(Clone)]
struct Device {
    gate: Arc<Semaphore>,
    sizes: Arc<Mutex<Vec<usize>>>,
    started: Arc<AtomicUsize>,
}

impl Device {
    fn new(permits: usize) -> Self {
        Device {
            gate: Arc::new(Semaphore::new(permits)),
            sizes: Arc::default(),
            started: Arc::default(),
        }
    }

    fn batcher(&self, policy: BatchPolicy) -> Batcher {
        let device = self.clone();
        Batcher::with_encoder(policy, move |batch| {
            let device = device.clone();
            async move {
                device.started.fetch_add(1, Ordering::SeqCst);
                device.gate.acquire().await.unwrap().forget();
                device.sizes.lock().unwrap().push(batch.sequences());
                match batch.input_ids.contains(&13) {
                    true => Err(EngineError::Panicked),
                    false => Ok(rows(&batch)),
                }
            }
        })
    }

    async fn until_started(&self, batches: usize) {
        while self.started.load(Ordering::SeqCst) < batches {
            tokio::task::yield_now().await;
        }
    }

    fn sizes(&self) -> Vec<usize> {
        self.sizes.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn what_arrives_during_a_pass_shares_the_next_one() {
    let device = Device::new(0);
    let batcher = device.batcher(POLICY);
    let first = batcher.submit(vec![sequence(1, 1)]).unwrap();
    device.until_started(1).await;
    let rest: Vec<Pending> = (2..5)
        .flat_map(|id| batcher.submit(vec![sequence(id, 2)]).unwrap())
        .collect();
    device.gate.add_permits(2);
    for (id, pending) in (1..).zip(first.into_iter().chain(rest)) {
        assert_eq!(pending.row().await.unwrap().row, [id as f32]);
    }
    assert_eq!(device.sizes(), [1, 3]);
}

#[tokio::test]
async fn a_whole_batch_is_formed_while_the_device_is_busy() {
    let device = Device::new(0);
    let batcher = device.batcher(POLICY);
    let _first = batcher.submit(vec![sequence(1, 1)]).unwrap();
    device.until_started(1).await;
    let second: Vec<Sequence> = (2..6).map(|id| sequence(id, 1)).collect();
    let _second = batcher.submit(second).unwrap();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(batcher.handle.shared.lock().queue.tokens(), 0);
    assert_eq!(device.started.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_poisoned_member_of_a_batch_fails_alone() {
    let device = Device::new(100);
    let batcher = device.batcher(POLICY);
    let ids = [1, 13, 2];
    let pending = batcher
        .submit(ids.map(|id| sequence(id, 1)).to_vec())
        .unwrap();
    let mut outcomes = Vec::new();
    for pending in pending {
        outcomes.push(pending.row().await.map(|embedding| embedding.row));
    }
    assert_eq!(outcomes[0].as_ref().unwrap(), &[1.0]);
    assert!(matches!(
        outcomes[1],
        Err(BatcherError::Failed(EngineError::Panicked))
    ));
    assert_eq!(outcomes[2].as_ref().unwrap(), &[2.0]);
    assert_eq!(device.sizes(), [3, 1, 1, 1]);
}

#[tokio::test]
async fn each_row_comes_with_its_own_count_of_cached_tokens() {
    // 13 makes the batch fail, so the others' counts are those of a pass alone.
    for ids in [[1, 2, 3], [1, 13, 3]] {
        let batcher = Device::new(100).batcher(POLICY);
        let sequences = ids.map(|id| Sequence {
            prefix_tokens: id as usize % 3,
            ..sequence(id, 2)
        });
        for (id, pending) in ids
            .into_iter()
            .zip(batcher.submit(sequences.into()).unwrap())
        {
            let cached = pending.row().await.map(|embedding| embedding.cached_tokens);
            assert_eq!(cached.ok(), (id != 13).then_some(id as usize % 3));
        }
    }
}

#[tokio::test]
async fn a_full_queue_refuses_a_whole_request_and_says_when_to_come_back() {
    let device = Device::new(0);
    let batcher = device.batcher(POLICY);
    let _computing = batcher.submit(vec![sequence(1, 1)]).unwrap();
    device.until_started(1).await;
    let _waiting = batcher
        .submit(vec![sequence(2, 7), sequence(3, 6)])
        .unwrap();
    // 2 is staged already, so 6 tokens wait.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let error = batcher
        .submit(vec![sequence(4, 7), sequence(5, 8)])
        .unwrap_err();
    let BatcherError::Overloaded {
        queued_tokens,
        limit,
        retry_after,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((queued_tokens, limit), (6, 20));
    assert!(retry_after >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_client_that_left_costs_no_pass() {
    let device = Device::new(0);
    let batcher = device.batcher(POLICY);
    let first = batcher.submit(vec![sequence(1, 1)]).unwrap();
    device.until_started(1).await;
    let leaving = batcher.submit(vec![sequence(2, 1)]).unwrap();
    let staying = batcher.submit(vec![sequence(3, 1)]).unwrap();
    drop(leaving);
    device.gate.add_permits(100);
    for pending in first.into_iter().chain(staying) {
        pending.row().await.unwrap();
    }
    assert_eq!(device.sizes(), [1, 1]);
}

#[tokio::test]
async fn those_who_leave_a_formed_batch_are_left_out_of_it() {
    let device = Device::new(0);
    let batcher = device.batcher(POLICY);
    let first = batcher.submit(vec![sequence(1, 1)]).unwrap();
    device.until_started(1).await;
    let mut formed = batcher
        .submit((2..6).map(|id| sequence(id, 1)).collect())
        .unwrap();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    formed.truncate(1);
    device.gate.add_permits(100);
    for pending in first.into_iter().chain(formed) {
        pending.row().await.unwrap();
    }
    assert_eq!(device.sizes(), [1, 1]);
}

#[tokio::test]
async fn a_drain_finishes_what_was_accepted_and_takes_nothing_more() {
    let device = Device::new(0);
    let batcher = device.batcher(POLICY);
    let pending = batcher
        .submit((0..9).map(|id| sequence(id, 2)).collect())
        .unwrap();
    device.until_started(1).await;
    let draining = tokio::spawn({
        let batcher = batcher.clone();
        async move { batcher.drain().await }
    });
    while !batcher.handle.shared.lock().closed {
        tokio::task::yield_now().await;
    }
    assert!(matches!(
        batcher.submit(vec![sequence(1, 1)]),
        Err(BatcherError::Draining)
    ));
    device.gate.add_permits(100);
    draining.await.unwrap();
    for (id, pending) in pending.into_iter().enumerate() {
        assert_eq!(pending.row().await.unwrap().row, [id as f32]);
    }
}

#[tokio::test]
async fn an_engine_that_stopped_is_told_apart_from_an_input_that_fails() {
    let batcher = Batcher::with_encoder(POLICY, |_| async { Err(EngineError::Stopped) });
    let error = batcher.embed(sequence(1, 1)).await.unwrap_err();
    assert!(matches!(error, BatcherError::Unavailable), "{error}");
}

#[tokio::test]
async fn a_device_that_miscounts_is_an_error_not_a_swapped_row() {
    let batcher = Batcher::with_encoder(POLICY, |_| async { Ok(Vec::new()) });
    let error = batcher.embed(sequence(1, 1)).await.unwrap_err();
    assert!(matches!(error, BatcherError::Failed(_)), "{error}");
}
