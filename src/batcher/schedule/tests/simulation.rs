//! The schedule through random days: virtual time, clients that come, leave and run out of time, and a device that is slow, panics, runs
//! out of memory, gives what is no number, hangs or dies. Everything follows from a seed.
//!
//! A row is a hash of its input, so an answer that reached somebody else shows. After every step the sums are checked against the
//! jobs; at the end everybody has been answered once or has left, and nothing is held any more.
//!
//! `MANIFOLD_SIM_SEED=n` replays one seed, `MANIFOLD_SIM_SEEDS=n` says how many are tried.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet};

use super::*;
use crate::batcher::door::{Promise, is_light};
use crate::batcher::lane::QUANTUM;
use crate::batcher::outline::Outline;

/// Numbers that follow from a seed.
///
/// # Source
/// SplitMix64: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed(self.0)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound.max(1)
    }

    fn chance(&mut self, of_a_thousand: u64) -> bool {
        self.below(1000) < of_a_thousand
    }

    /// Between the bounds, small ones as often as large ones.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        let bits = 64 - (high / low.max(1)).leading_zeros();
        let scale = self.below(u64::from(bits)) as u32;
        (low + self.below(low << scale)).min(high)
    }
}

fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Which of the four lanes: by priority and model.
fn lane_of(priority: Priority, task: Task) -> usize {
    2 * priority as usize + task as usize
}

/// What a row spells of its input: sixteen bits a number, so that f32 holds each exactly.
fn row_of(content: u64) -> Vec<f32> {
    let hash = mixed(content ^ 0xA5A5);
    (0..4).map(|i| (hash >> (16 * i) & 0xFFFF) as f32).collect()
}

/// What an input does to the device.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Nature {
    Harmless,
    Panics,
    NoNumber,
}

/// What the device reads. Everything about it follows from its content.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Input {
    content: u64,
    tokens: usize,
    nature: Nature,
}

/// What a day is like.
#[derive(Debug)]
struct Climate {
    /// Most inputs that are told apart: few, and many are the same.
    contents: u64,
    tenants: u64,
    /// Of a thousand inputs.
    panicking: u64,
    no_number: u64,
    /// Of a thousand passes.
    failing: u64,
    hanging: u64,
    miscounting: u64,
    dying: u64,
    /// Tokens the device has memory for.
    memory: usize,
    micros_a_pass: u64,
    micros_a_token: u64,
    /// Mean time between requests.
    pause_micros: u64,
    requests: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Departure(u64),
    /// What was promised has been prepared.
    Prepared(u64),
    PassEnds(PassId),
    Look,
}

/// What is on its way in: its place, its inputs, its lane, and when nobody waits any more.
type Coming = (
    Promise,
    (Task, Tenant, Vec<Input>),
    Option<Priority>,
    Instant,
);

/// Somebody who waits.
struct Client {
    tenant: Tenant,
    ticket: Ticket,
    input: Input,
    deadline: Instant,
}

struct World {
    dice: Dice,
    climate: Climate,
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    schedule: Schedule<Input, u64>,
    waiting: BTreeMap<u64, Client>,
    coming: BTreeMap<u64, Coming>,
    passes: Vec<Pass>,
    failed_alone: HashSet<u64>,
    begun: u64,
    /// Tokens of the smallest pass of several inputs that the device had no memory for.
    too_much: usize,
    arrived: u64,
    names: u64,
    /// For each lane, by how much one tenant got ahead of another while both had work.
    ahead: [BTreeMap<(Tenant, Tenant), i128>; 4],
    dearest: u64,
    tally: Tally,
}

/// An input on its way in; a third of them are half pictures.
fn entry((name, &input): (u64, &Input)) -> Entry<Input, u64> {
    let vision_tokens = match input.content % 3 {
        0 => input.tokens / 2,
        _ => 0,
    };
    let cost = Cost {
        text_tokens: input.tokens - vision_tokens,
        vision_tokens,
        pixel_bytes: 3 * vision_tokens,
    };
    Entry {
        payload: input,
        key: ContentKey::made_of(input.content),
        cost,
        waiter: name,
    }
}

/// A pass: its number, its members, and what it will come to.
type Pass = (PassId, Vec<Input>, Result<Vec<Encoded>, EngineError>);

/// What happened, so that a simulation in which nothing does is seen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    answered: u64,
    failed: u64,
    expired: u64,
    refused: u64,
    left: u64,
    shared: u64,
    lost: u64,
    out_of_memory: u64,
    between: u64,
    prepared: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let often = |dice: &mut Dice, most: u64| {
            if dice.chance(500) {
                dice.below(most)
            } else {
                0
            }
        };
        let climate = Climate {
            contents: dice.between(4, 4000),
            tenants: 1 + dice.below(4),
            panicking: often(&mut dice, 60),
            no_number: often(&mut dice, 60),
            failing: often(&mut dice, 80),
            hanging: often(&mut dice, 30),
            miscounting: often(&mut dice, 20),
            dying: if dice.chance(300) { 20 } else { 0 },
            memory: if dice.chance(400) {
                dice.between(50, 1500) as usize
            } else {
                usize::MAX
            },
            micros_a_pass: dice.between(50, 20_000),
            micros_a_token: dice.between(1, 500),
            pause_micros: dice.between(50, 100_000),
            requests: 20 + dice.below(100),
        };
        let policy = BatchPolicy {
            max_tokens: dice.between(16, 2000) as usize,
            max_sequences: dice.between(1, 32) as usize,
            max_queue_tokens: dice.between(64, 20_000) as usize,
            max_pixel_bytes: 0,
            max_bulk: Duration::from_micros(dice.between(100, 100_000)),
            max_wait: Duration::from_micros(often(&mut dice, 5000)),
            max_cache_bytes: 0,
        };
        let mut world = World {
            dice,
            climate,
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            schedule: Schedule::new(policy),
            waiting: BTreeMap::new(),
            coming: BTreeMap::new(),
            passes: Vec::new(),
            failed_alone: HashSet::new(),
            begun: 0,
            too_much: usize::MAX,
            arrived: 0,
            names: 0,
            ahead: Default::default(),
            dearest: 0,
            tally: Tally::default(),
        };
        world.after(0, Event::Arrival);
        world
    }

    fn after(&mut self, micros: u64, event: Event) {
        self.names += 1;
        let at = self.now + Duration::from_micros(micros);
        self.events.push(Reverse((at, self.names, event)));
    }

    /// Until all requests have come and all that was let in has been seen to.
    fn run(mut self) -> Tally {
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            match event {
                Event::Arrival => self.arrive(),
                Event::Departure(name) => self.depart(name),
                Event::Prepared(name) => self.prepared(name),
                Event::PassEnds(number) => self.end_pass(number),
                Event::Look => {}
            }
            self.check();
            self.look();
            self.check();
            self.hear();
        }
        self.check_end();
        self.tally
    }

    fn input(&mut self, task: Task) -> Input {
        // What one model is asked is never what the other is.
        let content = 2 * self.dice.below(self.climate.contents) + task as u64;
        // Its own dice, so that the same content is the same input.
        let mut own = Dice(content);
        let tokens = own.between(1, 900) as usize;
        let (panicking, no_number) = (self.climate.panicking, self.climate.no_number);
        let nature = match own.below(1000) {
            x if x < panicking => Nature::Panics,
            x if x < panicking + no_number => Nature::NoNumber,
            _ => Nature::Harmless,
        };
        Input {
            content,
            tokens,
            nature,
        }
    }

    fn arrive(&mut self) {
        self.arrived += 1;
        if self.arrived < self.climate.requests {
            let pause = self.dice.below(2 * self.climate.pause_micros);
            self.after(pause, Event::Arrival);
        } else {
            self.schedule.close();
        }
        let many = match self.dice.chance(400) {
            true => self.dice.between(2, 40),
            false => 1,
        };
        let task = Task::ALL[usize::from(self.dice.chance(300))];
        let inputs: Vec<Input> = (0..many).map(|_| self.input(task)).collect();
        let tenant = Tenant(u128::from(self.dice.below(self.climate.tenants)));
        let patience = Duration::from_micros(self.dice.between(1000, 600_000_000));
        let priority = [None, BULK, INTERACTIVE][self.dice.below(3) as usize];
        let deadline = self.now + patience;
        if self.dice.chance(500) {
            self.submit((task, tenant, inputs), priority, (deadline, false));
        } else {
            self.promise((task, tenant, inputs), priority, deadline);
        }
    }

    /// Has a request take a place before it is prepared.
    fn promise(
        &mut self,
        (task, tenant, inputs): (Task, Tenant, Vec<Input>),
        priority: Option<Priority>,
        deadline: Instant,
    ) {
        let tokens: usize = inputs.iter().map(|input| input.tokens).sum();
        let outline = Outline {
            task,
            tenant,
            priority,
            deadline: std::time::Instant::now(),
            inputs: inputs.len(),
            text_bytes: tokens * self.dice.between(1, 8) as usize,
            media: self.dice.below(3) as usize,
        };
        let before = (self.held(), self.promised());
        let asked = self.schedule.promise(self.now, (&outline, deadline));
        let Ok(promise) = asked else {
            self.tally.refused += 1;
            let held = (self.held(), self.promised());
            assert_eq!(held, before, "a refused request left something behind");
            return;
        };
        let most = self.schedule.policy.max_queue_tokens;
        let tokens = self.held().0 + self.promised().1;
        let idle = before.0.1 == 0 && before.1.0 == 0;
        assert!(
            idle || tokens <= most,
            "{tokens} tokens wait or are promised"
        );
        let preparing = self.dice.between(1, 1_000_000);
        self.after(preparing, Event::Prepared(self.names + 1));
        let coming = (promise, (task, tenant, inputs), priority, deadline);
        self.coming.insert(self.names, coming);
    }

    fn prepared(&mut self, name: u64) {
        let (promise, (task, tenant, inputs), priority, deadline) =
            self.coming.remove(&name).expect("it was promised");
        // Some leave, or could not be prepared.
        if self.dice.chance(200) {
            self.schedule.redeem(promise, None);
            return;
        }
        let tokens = inputs.iter().map(|input| input.tokens).sum();
        self.schedule.redeem(promise, Some(text(tokens)));
        self.tally.prepared += 1;
        self.submit((task, tenant, inputs), priority, (deadline, true));
    }

    fn submit(
        &mut self,
        (task, tenant, inputs): (Task, Tenant, Vec<Input>),
        priority: Option<Priority>,
        (deadline, promised): (Instant, bool),
    ) {
        let first = self.names + 1;
        self.names += inputs.len() as u64;
        let group = Group {
            entries: (first..).zip(&inputs).map(entry).collect(),
            task,
            tenant,
            priority,
            deadline,
            promised,
        };
        let before = self.held();
        let joined = self.schedule.counters().computed_once;
        match self.schedule.submit(self.now, group) {
            Ok(tickets) => {
                assert_eq!(tickets.len(), inputs.len());
                self.check_budget(before);
                self.tally.shared += self.schedule.counters().computed_once - joined;
                for ((name, ticket), input) in (first..).zip(tickets).zip(inputs) {
                    self.waiting.insert(
                        name,
                        Client {
                            tenant,
                            ticket,
                            input,
                            deadline,
                        },
                    );
                    if self.dice.chance(100) {
                        let stays = self.dice.between(1, 1_000_000);
                        self.after(stays, Event::Departure(name));
                    }
                }
            }
            Err(_) => {
                self.tally.refused += 1;
                assert_eq!(self.held(), before, "a refused group left something behind");
            }
        }
    }

    /// Requests and tokens that are on their way in.
    fn promised(&self) -> (usize, usize) {
        let lanes = self.schedule.lanes.iter().map(Track::promised);
        lanes.fold((0, 0), |(requests, tokens), lane| {
            (requests + lane.requests, tokens + lane.tokens)
        })
    }

    /// Tokens and inputs that wait.
    fn held(&self) -> (usize, usize) {
        let lanes = self.schedule.lanes.iter();
        lanes.fold((0, 0), |(tokens, inputs), lane| {
            (tokens + lane.cost().tokens(), inputs + lane.len())
        })
    }

    fn check_budget(&self, before: (usize, usize)) {
        let (tokens, inputs) = self.held();
        let policy = &self.schedule.policy;
        if before.1 > 0 && inputs > before.1 {
            assert!(tokens <= policy.max_queue_tokens, "{tokens} tokens wait");
        }
    }

    fn depart(&mut self, name: u64) {
        if let Some(client) = self.waiting.remove(&name) {
            self.tally.left += 1;
            self.schedule.leave(client.ticket);
        }
    }

    /// Does what the schedule says is to be done now.
    fn look(&mut self) {
        let backlogged = self.backlogged();
        let waits = self.held().1 > 0;
        match self.schedule.next(self.now) {
            Step::Run(batch) => {
                self.check_pass(&batch);
                self.check_fairness(&backlogged);
                let members = batch.members.into_iter().map(|(_, input)| input);
                self.begin_pass(batch.pass, members.collect());
            }
            Step::Wait(Some(until)) => {
                assert!(until > self.now && waits);
                let longest = match &self.schedule.passes[..] {
                    [] => self.schedule.policy.max_wait,
                    // It is owed a part of what was put in between.
                    [long] => long.interrupted,
                    _ => panic!("two passes run and something is waited for"),
                };
                assert!(until <= self.now + longest);
                self.events.push(Reverse((until, self.names, Event::Look)));
            }
            Step::Wait(None) => {
                let idle = self.passes.is_empty() && self.held().1 > 0;
                assert!(!idle, "the device is free and something waits");
            }
            Step::Finished => {
                assert!(self.schedule.phase != Phase::Open && self.schedule.jobs.is_empty());
            }
        }
    }

    fn begin_pass(&mut self, pass: PassId, members: Vec<Input>) {
        assert!(self.passes.len() < 2, "three passes at a time");
        self.tally.between += self.passes.len() as u64;
        assert_eq!(self.tally.lost, 0, "a dead device was asked");
        self.begun += 1;
        assert!(self.begun < 100_000, "passes without end");
        let tokens: usize = members.iter().map(|input| input.tokens).sum();
        let climate = &self.climate;
        let mut micros = climate.micros_a_pass + climate.micros_a_token * tokens as u64;
        micros += self.dice.below(micros);
        if self.dice.chance(climate.hanging) {
            micros += self.dice.between(1_000_000, 600_000_000);
        }
        let reason = String::new();
        let panics = members.iter().any(|input| input.nature == Nature::Panics);
        let outcome: Result<Vec<Encoded>, _> = if self.dice.chance(climate.dying) {
            Err(EngineError::Lost { reason })
        } else if tokens > climate.memory {
            Err(EngineError::OutOfMemory { reason })
        } else if panics {
            Err(EngineError::Panicked)
        } else if self.dice.chance(climate.failing) {
            Err(EngineError::Forward { reason })
        } else {
            let encode = |input: &Input| {
                let mut row = row_of(input.content);
                if input.nature == Nature::NoNumber {
                    row[3] = f32::NAN;
                }
                Encoded {
                    row,
                    cached_tokens: 0,
                }
            };
            let few = usize::from(self.dice.chance(climate.miscounting));
            Ok(members.iter().skip(few).map(encode).collect())
        };
        let complete = outcome
            .as_ref()
            .is_ok_and(|rows| rows.len() == members.len());
        if members.len() == 1 && !complete {
            self.failed_alone.insert(members[0].content);
        }
        self.passes.push((pass, members, outcome));
        self.after(micros, Event::PassEnds(pass));
    }

    fn end_pass(&mut self, pass: PassId) {
        let at = self
            .passes
            .iter()
            .position(|(running, ..)| *running == pass);
        let (_, members, outcome) = self.passes.remove(at.expect("it runs"));
        if let Err(error) = &outcome {
            self.tally.lost += u64::from(error.is_lasting());
            let memory = matches!(error, EngineError::OutOfMemory { .. });
            self.tally.out_of_memory += u64::from(memory);
            if memory && members.len() > 1 && self.passes.is_empty() {
                let tokens = members.iter().map(|input| input.tokens).sum();
                self.too_much = self.too_much.min(tokens);
            }
        }
        self.schedule.finish(self.now, pass, outcome);
    }

    /// Takes what clients are told, each once, each its own.
    fn hear(&mut self) {
        for (name, outcome) in self.schedule.take_answers() {
            let Some(client) = self.waiting.remove(&name) else {
                panic!("somebody was told who had left or been told: {outcome:?}");
            };
            let input = client.input;
            match outcome {
                Ok(embedding) => {
                    assert_eq!(embedding.row, row_of(input.content), "a crossed answer");
                    assert_eq!(input.nature, Nature::Harmless);
                    self.tally.answered += 1;
                }
                Err(BatcherError::Failed(error)) => {
                    let own = input.nature == Nature::NoNumber;
                    let tried = self.failed_alone.contains(&input.content);
                    assert!(own || tried, "failed without being tried alone: {error}");
                    self.tally.failed += 1;
                }
                Err(BatcherError::Expired) => {
                    assert!(
                        client.deadline <= self.now,
                        "told too early that it is too late"
                    );
                    self.tally.expired += 1;
                }
                Err(BatcherError::Unavailable) => assert_eq!(self.schedule.phase, Phase::Lost),
                Err(error) => panic!("let in and then refused: {error}"),
            }
        }
    }

    /// Who has work waiting, by [`lane_of`].
    fn backlogged(&self) -> [BTreeSet<Tenant>; 4] {
        let mut tenants: [BTreeSet<Tenant>; 4] = Default::default();
        for (tenant, id, _) in self.schedule.lanes.iter().flat_map(Track::jobs) {
            let job = &self.schedule.jobs[&id];
            tenants[lane_of(job.priority, job.task)].insert(tenant);
        }
        tenants
    }

    /// The bounds of a pass.
    fn check_pass(&self, batch: &Batch<Input>) {
        let schedule = &self.schedule;
        let pass = schedule.passes.last().expect("a pass runs");
        let tokens: usize = batch.members.iter().map(|(_, input)| input.tokens).sum();
        assert!(!batch.members.is_empty() && batch.members.len() <= schedule.policy.max_sequences);
        let mut seen = HashSet::new();
        for (id, (tenant, input)) in pass.members.iter().zip(&batch.members) {
            let job = &schedule.jobs[id];
            assert_eq!((job.tenant, job.payload), (*tenant, *input));
            assert_eq!(job.task, pass.task, "two models in one pass");
            assert!(
                seen.insert((*tenant, input.content)),
                "computed twice at once"
            );
            assert!(job.waiters.iter().all(|waiter| waiter.deadline > self.now));
            assert!(!job.waiters.is_empty(), "nobody wants it");
            let beside = schedule.passes.len() > 1;
            assert!(
                !beside || is_light(job.priced.cost),
                "heavy work in between"
            );
            assert!(
                !job.alone || batch.members.len() == 1,
                "a suspect in company"
            );
        }
        if batch.members.len() > 1 {
            assert!(
                tokens <= (self.too_much / 2).max(1),
                "it ran out of memory before"
            );
            let most = schedule.policy.max_tokens.min(schedule.learned_max_tokens);
            assert!(
                tokens <= most,
                "{tokens} tokens in a pass of at most {most}"
            );
            let speed = schedule.speeds[pass.task as usize].as_ref();
            let time = speed.map_or(Duration::ZERO, |speed| speed.marginal(pass.cost));
            let slack = Duration::from_micros(batch.members.len() as u64);
            let slice = schedule.bulk_slice(pass.task) + slack;
            let bulk = pass.priority == Priority::Bulk;
            assert!(
                !bulk || time <= slice,
                "{time:?} of bulk work, {slice:?} allowed"
            );
        }
    }

    /// Of two tenants that keep work waiting in a lane, none gets ahead by more than a quantum and a job; twice that between any two
    /// moments, for the other may have been ahead at the first. What goes between the layers of another pass is served whosever turn it is,
    /// while that pass serves the others: nobody is ahead for it, but who pays for it later is not behind either.
    fn check_fairness(&mut self, before: &[BTreeSet<Tenant>; 4]) {
        let after = self.backlogged();
        let pass = self.schedule.passes.last().expect("a pass runs");
        let in_turn = self.schedule.passes.len() == 1;
        let lane = lane_of(pass.priority, pass.task);
        let both: Vec<Tenant> = before[lane].intersection(&after[lane]).copied().collect();
        for id in &pass.members {
            let job = &self.schedule.jobs[id];
            for &other in both.iter().filter(|other| **other != job.tenant) {
                if both.contains(&job.tenant) {
                    let price = i128::from(job.priced.price);
                    let gained = if in_turn { price } else { 0 };
                    *self.ahead[lane].entry((job.tenant, other)).or_default() += gained;
                    *self.ahead[lane].entry((other, job.tenant)).or_default() -= price;
                }
            }
        }
        let most = i128::from(self.dearest + QUANTUM);
        for (pair, ahead) in &self.ahead[lane] {
            assert!(
                *ahead <= 2 * most,
                "{pair:?}: {ahead} ahead, at most {most}"
            );
        }
    }

    /// Whether all sums are those of the jobs, and nobody is forgotten.
    fn check(&mut self) {
        let schedule = &self.schedule;
        let mut queued = 0;
        for lane in &schedule.lanes {
            let mut cost = Cost::default();
            let mut price = 0;
            for (tenant, id, priced) in lane.jobs() {
                let job = &schedule.jobs[&id];
                assert!(!job.running && job.tenant == tenant && job.priced == priced);
                assert!(!job.waiters.is_empty(), "a place is held for nobody");
                cost.add(priced.cost);
                price += priced.price;
                queued += 1;
                self.dearest = self.dearest.max(priced.price);
            }
            assert_eq!((lane.cost(), lane.price()), (cost, price));
        }
        let coming = self.coming.values().map(|coming| coming.0.promised);
        let sums = coming.fold((0, 0), |(requests, tokens), promised| {
            (requests + promised.requests, tokens + promised.tokens)
        });
        assert_eq!(self.promised(), sums, "a promise is forgotten or kept");
        let running = schedule.jobs.values().filter(|job| job.running).count();
        assert_eq!(
            queued + running,
            schedule.jobs.len(),
            "a job is nowhere or twice"
        );
        let members = schedule.passes.iter().map(|pass| pass.members.len());
        assert_eq!(running, members.sum::<usize>());
        assert_eq!(schedule.jobs.len(), schedule.in_flight.len());
        for client in self.waiting.values() {
            // Those who have been told already are not looked for.
            if let Some(id) = schedule.tickets.get(&client.ticket) {
                let job = &schedule.jobs[id];
                assert_eq!((job.tenant, job.payload), (client.tenant, client.input));
            }
        }
        let waiters: usize = schedule.jobs.values().map(|job| job.waiters.len()).sum();
        assert_eq!(waiters, schedule.tickets.len());
        assert_eq!(
            waiters + schedule.answers.len(),
            self.waiting.len(),
            "somebody is lost"
        );
        let backlogged = self.backlogged();
        for (ahead, tenants) in self.ahead.iter_mut().zip(&backlogged) {
            ahead.retain(|(a, b), _| tenants.contains(a) && tenants.contains(b));
        }
    }

    fn check_end(&self) {
        assert!(
            self.waiting.is_empty(),
            "{} were never told",
            self.waiting.len()
        );
        assert!(self.schedule.jobs.is_empty() && self.schedule.passes.is_empty());
        assert!(self.schedule.tickets.is_empty() && self.schedule.in_flight.is_empty());
        assert_eq!((self.held(), self.promised()), ((0, 0), (0, 0)));
        assert_eq!(self.arrived, self.climate.requests);
    }
}

/// What a variable of the environment says, if it is set.
fn asked(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is {text:?}, not a number")),
    )
}

#[test]
fn no_day_crosses_loses_or_doubles_an_answer_or_leaks_a_place() {
    let seeds = match asked("MANIFOLD_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..asked("MANIFOLD_SIM_SEEDS").unwrap_or(200),
    };
    let mut total = Tally::default();
    for seed in seeds.clone() {
        let day = std::panic::catch_unwind(|| World::new(seed).run());
        let Ok(tally) = day else {
            panic!("the day of MANIFOLD_SIM_SEED={seed} went wrong, see above");
        };
        total.answered += tally.answered;
        total.failed += tally.failed;
        total.expired += tally.expired;
        total.refused += tally.refused;
        total.left += tally.left;
        total.shared += tally.shared;
        total.lost += tally.lost;
        total.out_of_memory += tally.out_of_memory;
        total.between += tally.between;
        total.prepared += tally.prepared;
    }
    println!("{seeds:?}: {total:?}");
    if seeds.end - seeds.start >= 200 {
        let Tally {
            answered,
            failed,
            expired,
            refused,
            left,
            shared,
            lost,
            out_of_memory,
            between,
            prepared,
        } = total;
        let least = [
            answered,
            failed,
            expired,
            refused,
            left,
            shared,
            lost,
            out_of_memory,
            between,
            prepared,
        ];
        assert!(
            least.iter().all(|count| *count > 10),
            "days on which nothing happens: {total:?}"
        );
    }
}

#[test]
fn a_seed_gives_the_same_day_again() {
    for seed in 0..20 {
        assert_eq!(World::new(seed).run(), World::new(seed).run());
    }
}
