//! The schedule with a clock of the test's own: what is let in, what runs next, what becomes of it. A payload is the number its row spells.

mod simulation;

use std::collections::HashMap;

use super::*;
use crate::batcher::Outline;
use crate::batcher::forming::{Batch, Step};
use crate::engine::{Encoded, EngineError};

const POLICY: BatchPolicy = BatchPolicy {
    max_tokens: 1000,
    max_sequences: 8,
    max_queue_tokens: 10_000,
    max_pixel_bytes: 0,
    max_bulk: Duration::from_millis(50),
    max_wait: Duration::ZERO,
    max_cache_bytes: 0,
};

/// A schedule, its clock, and a device of a millisecond a pass and 0.1 ms a token.
struct Bench {
    schedule: Schedule<u64, u64>,
    now: Instant,
    keys: u64,
    /// What is submitted is for this model.
    task: Task,
    /// Begun and not ended.
    passes: Vec<PassId>,
    /// Whether the one begun last lets others between.
    yields: bool,
}

const HOUR: Duration = Duration::from_secs(3600);

fn text(tokens: usize) -> Cost {
    Cost {
        text_tokens: tokens,
        ..Cost::default()
    }
}

impl Bench {
    /// With a speed learned.
    fn new(policy: BatchPolicy) -> Self {
        let mut bench = Bench {
            schedule: Schedule::new(policy),
            now: Duration::ZERO,
            keys: 1000,
            task: Task::Embed,
            passes: Vec::new(),
            yields: false,
        };
        for i in 0..200 {
            let cost = text([1, 100, 900][i % 3]);
            let took = Duration::from_micros(1000 + 100 * cost.text_tokens as u64);
            let speed = Speed::learn(bench.schedule.speeds[0], cost, took);
            bench.schedule.speeds[0] = Some(speed);
        }
        bench
    }

    /// Lets a group in whose inputs are numbers no other has; returns them.
    fn submit(
        &mut self,
        tenant: u128,
        priority: Option<Priority>,
        costs: &[Cost],
    ) -> Result<Vec<u64>, BatcherError> {
        let deadline = self.now + HOUR;
        self.submit_until(tenant, priority, (costs, deadline))
    }

    fn submit_until(
        &mut self,
        tenant: u128,
        priority: Option<Priority>,
        (costs, deadline): (&[Cost], Instant),
    ) -> Result<Vec<u64>, BatcherError> {
        let first = self.keys;
        self.keys += costs.len() as u64;
        let entry = |(number, &cost): (u64, &Cost)| Entry {
            payload: number,
            key: ContentKey::made_of(number),
            cost,
            waiter: number,
        };
        let group = Group {
            entries: (first..).zip(costs).map(entry).collect(),
            task: self.task,
            tenant: Tenant(tenant),
            priority,
            deadline,
            promised: false,
        };
        self.schedule.submit(self.now, group)?;
        Ok((first..self.keys).collect())
    }

    /// Begins the next pass: the payloads of its members.
    fn begin(&mut self) -> Vec<u64> {
        match self.schedule.next(self.now) {
            Step::Run(batch) => {
                let Batch {
                    pass,
                    members,
                    yields,
                } = batch;
                self.passes.push(pass);
                self.yields = yields;
                members.into_iter().map(|(_, payload)| payload).collect()
            }
            Step::Wait(_) | Step::Finished => Vec::new(),
        }
    }

    /// Ends the pass of these members after the time the device takes.
    fn end(&mut self, members: &[u64]) {
        let pass = self.schedule.passes.last().expect("a pass");
        self.now += Duration::from_micros(1000 + 100 * pass.cost.tokens() as u64);
        let id = self.passes.pop().expect("a pass");
        let row = |&payload: &u64| Encoded {
            row: vec![payload as f32],
            cached_tokens: 0,
        };
        self.schedule
            .finish(self.now, id, Ok(members.iter().map(row).collect()));
    }

    fn fail(&mut self, error: EngineError) {
        self.now += Duration::from_millis(1);
        let id = self.passes.pop().expect("a pass");
        self.schedule.finish(self.now, id, Err(error));
    }

    fn pass(&mut self) -> Vec<u64> {
        let members = self.begin();
        if !members.is_empty() {
            self.end(&members);
        }
        members
    }

    /// Who was told since the last call, and whether what they wanted.
    fn told(&mut self) -> Vec<(u64, bool)> {
        let answers = self.schedule.take_answers().into_iter();
        let mut told: Vec<_> = answers
            .map(|(who, outcome)| (who, outcome.is_ok()))
            .collect();
        told.sort_unstable();
        told
    }
}

const BULK: Option<Priority> = Some(Priority::Bulk);
const INTERACTIVE: Option<Priority> = Some(Priority::Interactive);

fn memory() -> EngineError {
    EngineError::OutOfMemory {
        reason: String::new(),
    }
}

#[test]
fn a_lone_short_text_overtakes_the_bulk_that_waits() {
    let mut bench = Bench::new(POLICY);
    let bulk = bench.submit(1, None, &[text(400); 3]).unwrap();
    assert_eq!(
        bench.begin(),
        bulk[..1],
        "a pass of bulk work is 50 ms here"
    );
    let query = bench.submit(1, None, &[text(20)]).unwrap();
    bench.end(&bulk[..1]);
    assert_eq!(bench.pass(), query);
    assert_eq!(bench.pass(), bulk[1..2]);
}

#[test]
fn a_picture_and_a_long_text_are_bulk_unless_the_client_says_otherwise() {
    let bench = Bench::new(POLICY);
    let picture = Cost {
        text_tokens: 10,
        vision_tokens: 64,
        pixel_bytes: 1,
    };
    let lane = |costs: &[Cost], priority| {
        let entry = |cost: &Cost| Entry {
            payload: 0,
            key: ContentKey::made_of(0),
            cost: *cost,
            waiter: 0,
        };
        bench.schedule.priority_of(&Group {
            entries: costs.iter().map(entry).collect(),
            task: Task::Embed,
            tenant: Tenant(0),
            priority,
            deadline: HOUR,
            promised: false,
        })
    };
    assert_eq!(lane(&[text(512)], None), Priority::Interactive);
    assert_eq!(lane(&[text(512)], BULK), Priority::Bulk);
    assert_eq!(lane(&[text(513)], None), Priority::Bulk);
    assert_eq!(lane(&[picture], None), Priority::Bulk);
    assert_eq!(lane(&[picture], INTERACTIVE), Priority::Interactive);
    assert_eq!(lane(&[text(1), text(1)], None), Priority::Bulk);
}

#[test]
fn bulk_work_gets_its_tenth_while_interactive_work_never_ends() {
    let mut bench = Bench::new(POLICY);
    let bulk = bench.submit(1, BULK, &[text(300); 30]).unwrap();
    let (mut for_bulk, began) = (Duration::ZERO, bench.now);
    while bench.now - began < Duration::from_secs(10) {
        bench.submit(2, INTERACTIVE, &[text(300)]).unwrap();
        let before = bench.now;
        let members = bench.pass();
        if bulk.contains(&members[0]) {
            for_bulk += bench.now - before;
        }
    }
    let share = for_bulk.as_secs_f64() / (bench.now - began).as_secs_f64();
    assert!((0.07..0.12).contains(&share), "{share}");
}

#[test]
fn short_texts_of_the_interactive_lane_share_a_pass_however_long_it_takes() {
    let mut bench = Bench::new(POLICY);
    for _ in 0..8 {
        bench.submit(1, None, &[text(120)]).unwrap();
    }
    assert_eq!(bench.pass().len(), 8);
    // What is heavy does not get around the limit by calling itself interactive.
    bench.submit(1, INTERACTIVE, &[text(700); 3]).unwrap();
    assert_eq!(bench.pass().len(), 1);
}

#[test]
fn before_anything_is_measured_the_first_bulk_input_goes_alone() {
    let mut bench = Bench::new(POLICY);
    bench.schedule.speeds[0] = None;
    bench.submit(1, BULK, &[text(100); 4]).unwrap();
    assert_eq!(bench.pass().len(), 1);
    assert_eq!(bench.pass().len(), 3);
}

#[test]
fn it_takes_two_slow_passes_to_refuse_who_would_be_late() {
    let mut bench = Bench::new(POLICY);
    let (cost, slow) = (text(10), Duration::from_secs(60));
    let in_time = (&[cost][..], Duration::from_secs(5));
    let speed = Speed::learn(None, cost, slow);
    bench.schedule.speeds[0] = Some(speed);
    bench.submit(1, None, &[cost]).unwrap();
    bench.submit_until(1, None, in_time).unwrap();
    bench.schedule.speeds[0] = Some(Speed::learn(Some(speed), cost, slow));
    let refused = bench.submit_until(1, None, in_time);
    assert!(matches!(refused, Err(BatcherError::TooLate { .. })));
}

#[test]
fn a_full_queue_refuses_whole_groups_and_says_when_to_come_back() {
    let mut bench = Bench::new(POLICY);
    bench.submit(1, BULK, &[text(900); 9]).unwrap();
    let refused = bench.submit(1, BULK, &[text(900), text(600)]).unwrap_err();
    let BatcherError::Overloaded {
        waiting,
        limit,
        retry_after,
        ..
    } = refused
    else {
        panic!("{refused}")
    };
    assert_eq!((waiting, limit), (8100, 10_000));
    let expected = Duration::from_millis(810);
    assert!(
        retry_after > expected / 2 && retry_after < expected * 2,
        "{retry_after:?}"
    );
    assert_eq!(
        bench.schedule.counters().waiting_in(Priority::Bulk).inputs,
        9
    );
    assert_eq!(bench.schedule.counters().refused.full, 1);
}

#[test]
fn one_tenant_cannot_fill_the_queue_for_another_nor_bulk_for_a_query() {
    let mut bench = Bench::new(POLICY);
    while bench.submit(1, BULK, &[text(100)]).is_ok() {}
    let waiting = bench
        .schedule
        .counters()
        .waiting_in(Priority::Bulk)
        .cost
        .tokens();
    assert_eq!(waiting, 8800, "eight ninths");
    assert!(bench.submit(2, BULK, &[text(900)]).is_ok());
    assert!(bench.submit(1, None, &[text(100)]).is_ok());
}

#[test]
fn an_empty_queue_takes_a_group_larger_than_itself() {
    let mut bench = Bench::new(POLICY);
    bench.submit(1, BULK, &[text(900); 20]).unwrap();
    assert!(bench.submit(1, BULK, &[text(1)]).is_err());
}

#[test]
fn what_cannot_be_done_in_time_is_refused_unless_nothing_is_before_it() {
    let mut bench = Bench::new(POLICY);
    let soon = bench.now + Duration::from_millis(50);
    // 90 ms of its own: it is let in, for coming again would not help.
    bench.submit_until(1, BULK, (&[text(900)], soon)).unwrap();
    bench.begin();
    bench.submit(1, BULK, &[text(900)]).unwrap();
    let refused = bench
        .submit_until(1, BULK, (&[text(100)], soon))
        .unwrap_err();
    assert!(matches!(refused, BatcherError::TooLate { .. }), "{refused}");
    let late = bench
        .submit_until(1, BULK, (&[text(1)], bench.now))
        .unwrap_err();
    assert!(matches!(late, BatcherError::Expired), "{late}");
    let counters = bench.schedule.counters();
    assert_eq!(
        (counters.refused.too_late, counters.refused.expired),
        (1, 1)
    );
}

#[test]
fn a_pass_takes_nobody_along_for_whom_its_members_would_be_late() {
    let mut bench = Bench::new(POLICY);
    let mut submit = |tokens, deadline_ms| {
        let deadline = bench.now + Duration::from_millis(deadline_ms);
        bench.submit_until(1, None, (&[text(tokens)], deadline))
    };
    // 10 ms each and 1 ms a pass.
    let all: Vec<u64> = [25, 3_600_000, 3_600_000, 70]
        .into_iter()
        .flat_map(|deadline_ms| submit(100, deadline_ms).unwrap())
        .collect();
    assert_eq!(
        bench.pass(),
        &all[..1],
        "with another it would take 21 ms and perhaps a quarter more"
    );
    assert_eq!(bench.pass(), &all[1..], "31 ms, and the last has 59");
    assert!(bench.told().iter().all(|(_, in_time)| *in_time));
    // Who is late anyway does not keep others from coming along.
    bench.schedule.speeds[0] = None;
    let hopeless = bench.submit_until(
        1,
        None,
        (&[text(100)], bench.now + Duration::from_millis(5)),
    );
    let other = bench.submit(1, None, &[text(100)]).unwrap();
    bench.schedule.speeds = Bench::new(POLICY).schedule.speeds;
    assert_eq!(bench.pass(), [hopeless.unwrap(), other].concat());
}

#[test]
fn in_a_flood_what_is_let_in_is_answered_in_time() {
    let policy = BatchPolicy {
        max_sequences: 64,
        ..POLICY
    };
    // Three times what the device can do, where a pass takes a tenth and a third of the time that somebody has for nothing.
    for (tokens, deadline_ms, every_micros) in [(4, 10, 130), (10, 10, 330), (4, 3, 130)] {
        let mut bench = Bench::new(policy);
        let (mut deadlines, mut refused, mut late) = (HashMap::new(), 0, 0);
        let mut next = bench.now;
        while deadlines.len() < 2000 {
            let members = bench.begin();
            let begun = bench.now;
            let micros = 1000 + 100 * tokens * members.len() as u64;
            // Without work it waits for whoever comes next.
            let end = match members.len() {
                0 => next,
                _ => begun + Duration::from_micros(micros),
            };
            while next <= end {
                bench.now = next;
                let deadline = next + Duration::from_millis(deadline_ms);
                match bench.submit_until(1, None, (&[text(tokens as usize)], deadline)) {
                    Ok(number) => deadlines.insert(number[0], deadline),
                    Err(BatcherError::TooLate { .. }) => {
                        refused += 1;
                        None
                    }
                    Err(other) => panic!("{other}"),
                };
                next += Duration::from_micros(every_micros);
            }
            if members.is_empty() {
                continue;
            }
            bench.now = begun;
            bench.end(&members);
            late += members
                .iter()
                .filter(|&member| deadlines[member] < bench.now)
                .count();
            late += bench.told().iter().filter(|(_, in_time)| !in_time).count();
        }
        let let_in = deadlines.len();
        assert_eq!(
            late, 0,
            "{tokens} tokens: {let_in} let in, {refused} refused"
        );
        assert!(
            refused > let_in,
            "{tokens} tokens: {let_in} let in, {refused} refused"
        );
    }
}

#[test]
fn what_was_let_in_is_in_time_on_a_machine_that_slows_down() {
    let mut bench = Bench::new(POLICY);
    let deadline = bench.now + Duration::from_secs(1);
    let mut let_in = 0;
    while bench
        .submit_until(1, BULK, (&[text(100)], deadline))
        .is_ok()
    {
        let_in += 1;
    }
    // 10 ms each and 1 ms a pass, which each may have to pay.
    assert!(let_in > 50, "{let_in}");
    loop {
        let members = bench.begin();
        if members.is_empty() {
            break;
        }
        let expected = Duration::from_micros(1000 + 10_000 * members.len() as u64);
        bench.now += expected * 9 / 20;
        bench.end(&members);
    }
    let told = bench.told();
    assert!(told.iter().all(|(_, in_time)| *in_time), "{told:?}");
}

#[test]
fn whoever_runs_out_of_time_in_the_queue_is_told_and_costs_no_pass() {
    let mut bench = Bench::new(POLICY);
    let running = bench.submit(1, BULK, &[text(900)]).unwrap();
    bench.begin();
    let soon = bench.now + Duration::from_millis(120);
    let late = bench
        .submit_until(1, INTERACTIVE, (&[text(1)], soon))
        .unwrap();
    let patient = bench.submit(1, INTERACTIVE, &[text(1)]).unwrap();
    bench.now += Duration::from_millis(60);
    bench.end(&running);
    assert_eq!(bench.pass(), patient);
    assert_eq!(
        bench.told(),
        [(running[0], true), (late[0], false), (patient[0], true)]
    );
}

#[test]
fn the_poisoned_member_alone_fails_and_is_tried_twice() {
    let mut bench = Bench::new(POLICY);
    let all = bench.submit(1, INTERACTIVE, &[text(10); 3]).unwrap();
    assert_eq!(bench.begin(), all);
    bench.fail(EngineError::Panicked);
    assert_eq!(bench.pass(), all[..1]);
    assert_eq!(bench.begin(), all[1..2]);
    bench.fail(EngineError::Panicked);
    assert_eq!(bench.pass(), all[2..]);
    assert_eq!(
        bench.told(),
        [(all[0], true), (all[1], false), (all[2], true)]
    );
    assert_eq!(bench.begin(), [0; 0]);
}

#[test]
fn a_device_out_of_memory_is_given_half_from_then_on() {
    let mut bench = Bench::new(POLICY);
    let all = bench.submit(1, INTERACTIVE, &[text(100); 8]).unwrap();
    assert_eq!(bench.begin(), all);
    bench.fail(memory());
    assert_eq!(bench.schedule.counters().learned_max_tokens, Some(400));
    assert_eq!(bench.pass(), all[..4]);
    assert_eq!(bench.begin(), all[4..]);
    bench.fail(memory());
    assert_eq!(bench.pass(), all[4..6]);
    assert_eq!(bench.pass(), all[6..]);
    assert!(bench.told().iter().all(|(_, ok)| *ok));
}

#[test]
fn an_input_too_large_for_the_device_alone_fails_at_once() {
    let mut bench = Bench::new(POLICY);
    let all = bench.submit(1, INTERACTIVE, &[text(2000)]).unwrap();
    assert_eq!(bench.begin(), all);
    bench.fail(memory());
    assert_eq!(bench.told(), [(all[0], false)]);
    assert_eq!(bench.schedule.counters().learned_max_tokens, None);
}

#[test]
fn a_row_that_is_no_number_fails_its_own_input_only() {
    let mut bench = Bench::new(POLICY);
    let all = bench.submit(1, INTERACTIVE, &[text(10); 2]).unwrap();
    bench.begin();
    let row = |x: f32| Encoded {
        row: vec![1.0, x],
        cached_tokens: 0,
    };
    bench.schedule.finish(
        bench.now,
        bench.passes[0],
        Ok(vec![row(f32::NAN), row(2.0)]),
    );
    assert_eq!(bench.told(), [(all[0], false), (all[1], true)]);
}

#[test]
fn when_the_device_is_lost_all_are_told_at_once_and_nobody_is_let_in() {
    let mut bench = Bench::new(POLICY);
    let running = bench.submit(1, INTERACTIVE, &[text(10)]).unwrap();
    bench.begin();
    let waiting = bench.submit(1, BULK, &[text(10); 2]).unwrap();
    bench.fail(EngineError::Lost {
        reason: String::new(),
    });
    let told = bench.told();
    assert_eq!(
        told,
        [
            (running[0], false),
            (waiting[0], false),
            (waiting[1], false)
        ]
    );
    assert!(matches!(bench.schedule.next(bench.now), Step::Finished));
    let refused = bench.submit(1, BULK, &[text(10)]);
    assert!(matches!(refused, Err(BatcherError::Unavailable)));
}

#[test]
fn a_batch_that_may_grow_waits_as_long_as_it_was_told_to() {
    let mut bench = Bench::new(BatchPolicy {
        max_wait: Duration::from_millis(5),
        ..POLICY
    });
    let came = bench.now;
    let first = bench.submit(1, INTERACTIVE, &[text(10)]).unwrap();
    let wait = bench.schedule.next(bench.now);
    let until = came + Duration::from_millis(5);
    assert!(
        matches!(wait, Step::Wait(Some(time)) if time == until),
        "{wait:?}"
    );
    bench.now = until;
    assert_eq!(bench.pass(), first);
    // A whole one does not wait, nor does anything when no more can come.
    bench.submit(1, INTERACTIVE, &[text(10); 8]).unwrap();
    assert_eq!(bench.pass().len(), 8);
    bench.submit(1, INTERACTIVE, &[text(10)]).unwrap();
    bench.schedule.close();
    assert_eq!(bench.pass().len(), 1);
    assert!(matches!(bench.schedule.next(bench.now), Step::Finished));
}

#[test]
fn a_query_comes_between_the_layers_of_a_long_pass_and_nothing_heavy_does() {
    let mut bench = Bench::new(POLICY);
    let bulk = bench.submit(1, BULK, &[text(900)]).unwrap();
    assert_eq!(bench.begin(), bulk);
    assert!(bench.yields);
    bench.submit(1, BULK, &[text(10)]).unwrap();
    assert_eq!(bench.begin(), [0; 0], "bulk work does not come between");
    let query = bench.submit(2, None, &[text(20)]).unwrap();
    let speed = bench.schedule.speeds[0];
    assert_eq!(bench.begin(), query);
    bench.submit(2, None, &[text(20)]).unwrap();
    assert_eq!(
        bench.begin(),
        [0; 0],
        "nor does a second one beside the first"
    );
    bench.end(&query);
    assert_eq!(bench.told(), [(query[0], true)]);
    assert_ne!(bench.schedule.speeds[0], speed);
    assert_eq!(
        bench.schedule.passes[0].interrupted,
        Duration::from_micros(3000)
    );
    // A short pass is not interrupted.
    let mut bench = Bench::new(POLICY);
    let short = bench.submit(1, None, &[text(20)]).unwrap();
    assert_eq!(bench.begin(), short);
    assert!(!bench.yields);
    bench.submit(2, None, &[text(20)]).unwrap();
    assert_eq!(bench.begin(), [0; 0]);
}

#[test]
fn a_long_pass_that_ends_first_takes_nothing_from_the_one_in_between() {
    let mut bench = Bench::new(POLICY);
    let bulk = bench.submit(1, BULK, &[text(900)]).unwrap();
    bench.begin();
    bench.now += Duration::from_millis(90);
    let query = bench.submit(2, None, &[text(20)]).unwrap();
    assert_eq!(bench.begin(), query);
    let long = bench.passes.remove(0);
    bench.now += Duration::from_millis(1);
    let rows = vec![Encoded {
        row: vec![bulk[0] as f32],
        cached_tokens: 0,
    }];
    bench.schedule.finish(bench.now, long, Ok(rows));
    assert_eq!(bench.schedule.passes[0].interrupted, Duration::ZERO);
    let price = |bench: &Bench| bench.schedule.price(Task::Embed, text(1000), 1);
    let before = price(&bench);
    bench.end(&query);
    // It took 4 ms instead of the 3 that were expected.
    assert!((before..before * 11 / 10).contains(&price(&bench)));
}

#[test]
fn what_is_heavy_of_one_key_does_not_keep_the_queries_of_others_from_coming_between() {
    let mut bench = Bench::new(POLICY);
    let bulk = bench.submit(1, BULK, &[text(900)]).unwrap();
    assert_eq!(bench.begin(), bulk);
    bench.submit(1, INTERACTIVE, &[text(900)]).unwrap();
    assert_eq!(bench.begin(), [0; 0]);
    let query = bench.submit(2, None, &[text(20)]).unwrap();
    assert_eq!(bench.begin(), query);
}

#[test]
fn a_flood_of_queries_of_one_key_lets_those_of_others_between_and_none_of_its_own() {
    let mut bench = Bench::new(POLICY);
    let flood = bench.submit(1, INTERACTIVE, &[text(100); 8]).unwrap();
    assert_eq!(bench.begin(), flood, "81 ms, where bulk work may take 50");
    bench.submit(1, INTERACTIVE, &[text(100)]).unwrap();
    assert_eq!(bench.begin(), [0; 0], "it has had its turn");
    let query = bench.submit(2, None, &[text(20)]).unwrap();
    assert_eq!(bench.begin(), query);
    bench.end(&query);
    bench.end(&flood);
    assert_eq!(bench.told().len(), 9);
}

#[test]
fn a_pass_is_of_one_model_and_both_have_their_turns() {
    let mut bench = Bench::new(POLICY);
    bench.schedule.speeds[1] = bench.schedule.speeds[0];
    let embed = bench.submit(1, BULK, &[text(110); 8]).unwrap();
    bench.task = Task::Rerank;
    let rerank = bench.submit(1, BULK, &[text(110); 8]).unwrap();
    // Four of them take 44 of the 50 ms.
    let halves = [&embed[..4], &rerank[..4], &embed[4..], &rerank[4..]];
    for half in halves {
        assert_eq!(bench.pass(), half);
    }
    // A light pair comes between the layers of the other model's long pass, also where something heavy waits before it.
    bench.task = Task::Embed;
    let long = bench.submit(1, BULK, &[text(900)]).unwrap();
    assert_eq!(bench.begin(), long);
    bench.submit(2, INTERACTIVE, &[text(900)]).unwrap();
    bench.task = Task::Rerank;
    let pair = bench.submit(2, None, &[text(20)]).unwrap();
    assert_eq!(bench.begin(), pair);
}

#[test]
fn each_model_has_a_speed_of_its_own() {
    let mut bench = Bench::new(POLICY);
    let learned = bench.schedule.speeds[0];
    bench.task = Task::Rerank;
    bench.submit(1, BULK, &[text(100); 3]).unwrap();
    assert_eq!(bench.pass().len(), 1, "nothing is known of it yet");
    assert!(bench.schedule.speeds[1].is_some());
    assert_eq!(bench.schedule.speeds[0], learned);
}

#[test]
fn a_device_without_memory_for_a_second_pass_is_not_asked_for_one_again() {
    let mut bench = Bench::new(POLICY);
    let bulk = bench.submit(1, BULK, &[text(900)]).unwrap();
    bench.begin();
    let query = bench.submit(2, None, &[text(20)]).unwrap();
    assert_eq!(bench.begin(), query);
    bench.fail(memory());
    assert_eq!(bench.begin(), [0; 0]);
    bench.end(&bulk);
    assert_eq!(bench.pass(), query);
    assert_eq!(bench.told(), [(bulk[0], true), (query[0], true)]);
    assert_eq!(bench.schedule.counters().learned_max_tokens, None);
}

#[test]
fn somebody_in_a_hurry_takes_the_job_along_that_bulk_work_already_waits_for() {
    let mut bench = Bench::new(POLICY);
    let running = bench.submit(1, BULK, &[text(900)]).unwrap();
    bench.begin();
    let bulk = bench.submit(1, BULK, &[text(400), text(400)]).unwrap();
    bench.keys = bulk[1];
    bench.submit(1, INTERACTIVE, &[text(400)]).unwrap();
    bench.end(&running);
    assert_eq!(bench.pass(), [bulk[1]]);
    let told = [(running[0], true), (bulk[1], true), (bulk[1], true)];
    assert_eq!(bench.told(), told);
}

fn outline(tenant: u128, text_bytes: usize) -> Outline {
    Outline {
        task: Task::Embed,
        tenant: Tenant(tenant),
        priority: BULK,
        deadline: std::time::Instant::now(),
        inputs: 2,
        text_bytes,
        media: 0,
    }
}

#[test]
fn what_is_being_prepared_takes_its_room_in_the_queue_and_gives_it_back() {
    let mut bench = Bench::new(POLICY);
    bench.submit(1, BULK, &[text(900); 6]).unwrap();
    // Four bytes a token, until something else is learned.
    let promise = |bench: &mut Bench, tokens: usize| {
        let request = outline(1, 4 * tokens);
        bench.schedule.promise(bench.now, (&request, HOUR))
    };
    let coming = promise(&mut bench, 3000).unwrap();
    assert!(matches!(
        promise(&mut bench, 1500).unwrap_err(),
        BatcherError::Overloaded { waiting: 8400, .. }
    ));
    assert!(bench.submit(1, BULK, &[text(900), text(600)]).is_err());
    assert_eq!(bench.schedule.counters().refused.full, 2);
    bench.schedule.redeem(coming, None);
    assert!(bench.submit(1, BULK, &[text(900), text(600)]).is_ok());
}

#[test]
fn what_was_let_in_before_it_was_prepared_is_not_turned_away_for_what_came_after_it() {
    let mut bench = Bench::new(POLICY);
    bench.submit(1, BULK, &[text(900); 4]).unwrap();
    let soon = bench.now + Duration::from_millis(600);
    let promise = |bench: &mut Bench| {
        let request = outline(1, 4 * 300);
        bench.schedule.promise(bench.now, (&request, soon))
    };
    let first = promise(&mut bench).unwrap();
    while promise(&mut bench).is_ok() {}
    bench.schedule.redeem(first, Some(text(300)));
    let entry = |promised| Group {
        entries: vec![Entry {
            payload: 1,
            key: ContentKey::made_of(u64::from(promised)),
            cost: text(300),
            waiter: 1,
        }],
        task: Task::Embed,
        tenant: Tenant(1),
        priority: BULK,
        deadline: soon,
        promised,
    };
    let now = bench.now;
    // One more of the same is too late now.
    assert!(promise(&mut bench).is_ok() && promise(&mut bench).is_err());
    assert!(bench.schedule.submit(now, entry(false)).is_err());
    assert!(bench.schedule.submit(now, entry(true)).is_ok());
}

#[test]
fn who_would_be_too_late_is_told_so_before_anything_is_prepared() {
    let mut bench = Bench::new(POLICY);
    bench.submit(1, BULK, &[text(900); 4]).unwrap();
    let soon = bench.now + Duration::from_millis(300);
    let request = outline(2, 40);
    let refused = bench.schedule.promise(bench.now, (&request, soon));
    // Of the other key's work only as much is expected before it as it brings itself.
    assert!(refused.is_ok());
    let request = outline(1, 40);
    let refused = bench.schedule.promise(bench.now, (&request, soon));
    assert!(matches!(refused.unwrap_err(), BatcherError::TooLate { .. }));
    bench.schedule.close();
    let refused = bench.schedule.promise(bench.now, (&request, HOUR));
    assert!(matches!(refused.unwrap_err(), BatcherError::Draining));
}
