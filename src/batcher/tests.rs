//! The batcher around a device that does what a test tells it: rows spell the first id of their sequence, so that a swapped row shows,
//! and every prefix is as if kept.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::*;
use crate::model::{Sequence, Tenant};

fn sequence(id: u32, tokens: usize) -> Sequence {
    Sequence {
        input_ids: vec![id; tokens],
        position_ids: std::array::from_fn(|_| (0..tokens as u32).collect()),
        media: Vec::new(),
        vision_rows: Vec::new(),
        prefix_tokens: 0,
        task: Task::Embed,
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
    max_queue_tokens: 40,
    max_pixel_bytes: 1000,
    max_bulk: Duration::from_secs(1000),
    max_wait: Duration::ZERO,
    max_cache_bytes: 0,
};

fn no_heart() -> Heartbeat {
    Heartbeat::new(Duration::ZERO)
}

/// A request somebody waits for.
fn interactive(sequences: Vec<Sequence>) -> Submission {
    let input = |sequence: Sequence| Input {
        identity: Identity::of(&sequence),
        sequence,
        held: Held::default(),
        follows: false,
    };
    Submission {
        inputs: sequences.into_iter().map(input).collect(),
        tenant: Tenant::default(),
        priority: Some(Priority::Interactive),
        deadline: Instant::now() + Duration::from_secs(3600),
        reservation: None,
    }
}

fn submit(batcher: &Batcher, sequences: Vec<Sequence>) -> Result<Vec<Pending>, BatcherError> {
    batcher.submit(interactive(sequences))
}

async fn answers(pending: Vec<Pending>) -> Vec<Result<Embedding, BatcherError>> {
    let mut answers = Vec::new();
    for pending in pending {
        answers.push(pending.row().await);
    }
    answers
}

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
        Batcher::with_encoder(policy, no_heart(), move |batch| {
            let device = device.clone();
            device.started.fetch_add(1, Ordering::SeqCst);
            async move {
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
    let first = submit(&batcher, vec![sequence(1, 1)]).unwrap();
    device.until_started(1).await;
    let rest: Vec<Pending> = (2..5)
        .flat_map(|id| submit(&batcher, vec![sequence(id, 2)]).unwrap())
        .collect();
    device.gate.add_permits(2);
    for (id, pending) in (1..).zip(first.into_iter().chain(rest)) {
        assert_eq!(pending.row().await.unwrap().row, [id as f32]);
    }
    assert_eq!(device.sizes(), [1, 3]);
}

#[tokio::test]
async fn the_poisoned_member_of_a_batch_fails_alone() {
    let device = Device::new(100);
    let batcher = device.batcher(POLICY);
    let ids = [1, 13, 2];
    let pending = submit(&batcher, ids.map(|id| sequence(id, 1)).to_vec()).unwrap();
    let outcomes = answers(pending).await;
    assert_eq!(outcomes[0].as_ref().unwrap().row, [1.0]);
    assert!(matches!(
        outcomes[1],
        Err(BatcherError::Failed(EngineError::Panicked))
    ));
    assert_eq!(outcomes[2].as_ref().unwrap().row, [2.0]);
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
        let pending = submit(&batcher, sequences.into()).unwrap();
        for (id, answer) in ids.into_iter().zip(answers(pending).await) {
            let cached = answer.map(|embedding| embedding.cached_tokens);
            assert_eq!(cached.ok(), (id != 13).then_some(id as usize % 3));
        }
    }
}

#[tokio::test]
async fn the_same_input_of_two_clients_is_computed_once_though_one_leaves() {
    let device = Device::new(0);
    let batcher = device.batcher(POLICY);
    let _first = submit(&batcher, vec![sequence(1, 1)]).unwrap();
    device.until_started(1).await;
    let leaving = submit(&batcher, vec![sequence(2, 3)]).unwrap();
    let staying = submit(&batcher, vec![sequence(2, 3), sequence(2, 3)]).unwrap();
    drop(leaving);
    device.gate.add_permits(1);
    device.until_started(2).await;
    // Also while it is being computed.
    let joining = submit(&batcher, vec![sequence(2, 3)]).unwrap();
    device.gate.add_permits(1);
    for answer in answers(staying.into_iter().chain(joining).collect()).await {
        assert_eq!(answer.unwrap().row, [2.0]);
    }
    assert_eq!(device.sizes(), [1, 1]);
    assert_eq!(batcher.counters().computed_once, 3);
}

#[tokio::test]
async fn what_two_tenants_ask_alike_is_computed_for_each() {
    let device = Device::new(0);
    let batcher = device.batcher(POLICY);
    let _first = submit(&batcher, vec![sequence(1, 1)]).unwrap();
    device.until_started(1).await;
    let mine = submit(&batcher, vec![sequence(2, 3)]).unwrap();
    let theirs = batcher.submit(Submission {
        tenant: Tenant(7),
        ..interactive(vec![sequence(2, 3)])
    });
    device.gate.add_permits(2);
    let both = mine.into_iter().chain(theirs.unwrap()).collect();
    assert!(answers(both).await.iter().all(Result::is_ok));
    assert_eq!(device.sizes(), [1, 2]);
}

#[tokio::test]
async fn clients_that_leave_free_their_places_at_once() {
    let device = Device::new(0);
    let batcher = device.batcher(POLICY);
    let first = submit(&batcher, vec![sequence(1, 1)]).unwrap();
    device.until_started(1).await;
    let leaving = submit(
        &batcher,
        vec![sequence(2, 7), sequence(3, 7), sequence(4, 7)],
    )
    .unwrap();
    let refused = submit(
        &batcher,
        vec![sequence(5, 8), sequence(6, 8), sequence(7, 8)],
    );
    assert!(matches!(refused, Err(BatcherError::Overloaded { .. })));
    drop(leaving);
    assert_eq!(
        batcher.counters().waiting_in(Priority::Interactive),
        Waiting::default()
    );
    let staying = submit(
        &batcher,
        vec![sequence(5, 8), sequence(6, 8), sequence(7, 8)],
    )
    .unwrap();
    device.gate.add_permits(100);
    let all = first.into_iter().chain(staying).collect();
    assert!(answers(all).await.iter().all(Result::is_ok));
    assert_eq!(device.sizes(), [1, 1, 1, 1]);
}

#[tokio::test]
async fn a_drain_finishes_what_was_accepted_and_takes_nothing_more() {
    let device = Device::new(0);
    let batcher = device.batcher(POLICY);
    let pending = submit(&batcher, (0..9).map(|id| sequence(id, 2)).collect()).unwrap();
    device.until_started(1).await;
    let draining = tokio::spawn({
        let batcher = batcher.clone();
        async move { batcher.drain().await }
    });
    let refused = loop {
        match submit(&batcher, vec![sequence(99, 1)]) {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, BatcherError::Draining), "{refused}");
    device.gate.add_permits(100);
    draining.await.unwrap();
    for (id, answer) in answers(pending).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap().row, [id as f32]);
    }
    assert!(!batcher.is_lost());
}

#[tokio::test]
async fn an_engine_that_stopped_is_told_apart_from_an_input_that_fails() {
    let batcher =
        Batcher::with_encoder(POLICY, no_heart(), |_| async { Err(EngineError::Stopped) });
    let pending = submit(&batcher, vec![sequence(1, 1)]).unwrap();
    let answer = answers(pending).await.remove(0);
    assert!(
        matches!(answer, Err(BatcherError::Unavailable)),
        "{answer:?}"
    );
    batcher.lost().await;
    assert!(batcher.is_lost());
    let refused = submit(&batcher, vec![sequence(1, 1)]);
    assert!(matches!(refused, Err(BatcherError::Unavailable)));
}

#[tokio::test]
async fn a_worker_that_panics_leaves_nobody_waiting() {
    let batcher = Batcher::with_encoder(POLICY, no_heart(), |batch: PackedBatch| async move {
        assert_eq!(batch.sequences(), 0, "on purpose");
        Ok(Vec::new())
    });
    let pending = submit(&batcher, vec![sequence(1, 1), sequence(2, 1)]).unwrap();
    for answer in answers(pending).await {
        assert!(
            matches!(answer, Err(BatcherError::Unavailable)),
            "{answer:?}"
        );
    }
    batcher.lost().await;
}

#[tokio::test]
async fn a_device_that_miscounts_is_an_error_not_a_swapped_row() {
    let batcher = Batcher::with_encoder(POLICY, no_heart(), |_| async { Ok(Vec::new()) });
    let pending = submit(&batcher, vec![sequence(1, 1)]).unwrap();
    let answer = answers(pending).await.remove(0);
    assert!(matches!(answer, Err(BatcherError::Failed(_))), "{answer:?}");
}

#[tokio::test]
async fn with_a_wait_configured_a_lone_input_waits_for_company_and_no_longer() {
    let device = Device::new(100);
    let batcher = device.batcher(BatchPolicy {
        max_wait: Duration::from_millis(300),
        ..POLICY
    });
    let first = submit(&batcher, vec![sequence(1, 1)]).unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(device.sizes(), [0; 0]);
    let second = submit(&batcher, vec![sequence(2, 1)]).unwrap();
    let both = first.into_iter().chain(second).collect();
    assert!(answers(both).await.iter().all(Result::is_ok));
    assert_eq!(device.sizes(), [2]);
}

#[tokio::test]
async fn a_row_that_is_kept_is_given_again_without_a_pass_and_to_its_tenant_only() {
    let device = Device::new(100);
    let batcher = device.batcher(BatchPolicy {
        max_cache_bytes: 1 << 20,
        ..POLICY
    });
    assert!(batcher.keeps_rows());
    let first = answers(submit(&batcher, vec![sequence(1, 3), sequence(13, 1)]).unwrap()).await;
    assert!(!first[0].as_ref().unwrap().from_cache && first[1].is_err());
    // What failed is not kept; what is new is computed beside what is known.
    let again = vec![sequence(2, 1), sequence(1, 3), sequence(13, 1)];
    let again = answers(submit(&batcher, again).unwrap()).await;
    let known = again[1].as_ref().unwrap();
    assert_eq!((known.from_cache, known.cached_tokens), (true, 3));
    assert_eq!(known.row, first[0].as_ref().unwrap().row);
    assert!(!again[0].as_ref().unwrap().from_cache && again[2].is_err());
    let others = batcher.submit(Submission {
        tenant: Tenant(7),
        ..interactive(vec![sequence(1, 3)])
    });
    assert!(
        !answers(others.unwrap()).await[0]
            .as_ref()
            .unwrap()
            .from_cache
    );
    let counters = batcher.counters();
    assert_eq!((counters.cache_hits, counters.cache_misses), (1, 5));
    assert!(counters.cache_bytes > 0);
}

#[tokio::test]
async fn a_place_is_held_for_what_is_being_prepared_until_it_comes_or_is_dropped() {
    let device = Device::new(0);
    let batcher = device.batcher(POLICY);
    let outline = |tokens: usize| Outline {
        task: Task::Embed,
        tenant: Tenant::default(),
        priority: Some(Priority::Interactive),
        deadline: Instant::now() + Duration::from_secs(3600),
        inputs: 1,
        text_bytes: 4 * tokens,
        media: 0,
    };
    let limit = POLICY.max_queue_tokens;
    let place = batcher.reserve(&outline(limit)).unwrap();
    let refused = batcher.reserve(&outline(1)).unwrap_err();
    assert!(
        matches!(refused, BatcherError::Overloaded { .. }),
        "{refused}"
    );
    drop(place);
    let place = batcher.reserve(&outline(limit)).unwrap();
    let mut submission = interactive(vec![sequence(1, 1)]);
    submission.reservation = Some(place);
    let _pending = batcher.submit(submission).unwrap();
    assert!(batcher.reserve(&outline(1)).is_ok());
}

#[tokio::test]
async fn pixels_are_held_until_they_are_computed_or_nobody_wants_them() {
    let device = Device::new(0);
    let batcher = device.batcher(POLICY);
    let submit = |id: u32, bytes: usize| {
        let mut submission = interactive(vec![sequence(id, 1)]);
        submission.inputs[0].held = batcher.hold(bytes, 0)?;
        batcher.submit(submission)
    };
    let first = submit(1, 400).unwrap();
    device.until_started(1).await;
    let second = submit(2, 400).unwrap();
    let full = submit(3, 400).unwrap_err();
    assert!(
        matches!(
            full,
            BatcherError::Overloaded {
                waiting: 800,
                limit: 1000,
                ..
            }
        ),
        "{full}"
    );
    let never = batcher.hold(400, 700).unwrap_err();
    assert!(
        matches!(never, BatcherError::TooManyPixels { limit: 1000 }),
        "{never}"
    );
    assert_eq!(batcher.counters().refused.full, 1);
    drop(second);
    assert_eq!(batcher.counters().pixel_bytes, 400);
    // Also when the client leaves, what is being computed is in memory.
    drop(first);
    assert_eq!(batcher.counters().pixel_bytes, 400);
    device.gate.add_permits(1);
    while batcher.counters().pixel_bytes > 0 {
        tokio::task::yield_now().await;
    }
}
