//! What work costs and how fast it goes. In: token counts, and how long passes took. Out: how long others will take.

use std::time::Duration;

use crate::model::Sequence;

/// What computing something takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Tokens of text, the template's included.
    pub text_tokens: usize,
    /// Tokens that pictures and videos become.
    pub vision_tokens: usize,
    /// Memory its pixels hold until it is computed.
    pub pixel_bytes: usize,
}

impl Cost {
    /// What a sequence costs.
    pub fn of(sequence: &Sequence) -> Self {
        let vision_tokens = sequence.vision_rows.len();
        Cost {
            text_tokens: sequence.input_ids.len().saturating_sub(vision_tokens),
            vision_tokens,
            pixel_bytes: sequence.media.iter().map(|media| media.pixels.len()).sum(),
        }
    }

    /// What a sequence costs whose first tokens, those of its prefix, are computed for another.
    pub fn of_rest(sequence: &Sequence) -> Self {
        let prefix = sequence.prefix_tokens;
        let shared = sequence
            .vision_rows
            .partition_point(|&row| (row as usize) < prefix);
        let whole = Cost::of(sequence);
        Cost {
            text_tokens: whole.text_tokens - (prefix - shared),
            vision_tokens: whole.vision_tokens - shared,
            ..whole
        }
    }

    /// Tokens of either kind: positions of the language model.
    pub fn tokens(self) -> usize {
        self.text_tokens + self.vision_tokens
    }

    pub(super) fn add(&mut self, other: Cost) {
        self.text_tokens += other.text_tokens;
        self.vision_tokens += other.vision_tokens;
        self.pixel_bytes += other.pixel_bytes;
    }

    pub(super) fn subtract(&mut self, other: Cost) {
        self.text_tokens -= other.text_tokens;
        self.vision_tokens -= other.vision_tokens;
        self.pixel_bytes -= other.pixel_bytes;
    }
}

/// How much longer a token of a picture takes than one of text, until it is measured: the vision tower comes before the language model.
///
/// # Source
/// The README's table: 768 tokens of a picture in 4.05 s, 2048 of text in 3.52 s.
const VISION_PRIOR: f64 = 3.0;
/// Part of the first pass that is taken for what a pass costs whatever is in it.
const FIXED_PRIOR: f64 = 0.25;
/// How far one pass moves the estimate: enough to follow a machine that gets busy within some ten passes.
const STEP: f64 = 0.3;
/// A pass that took more than this many times as long as expected, or less than that part of it, says no more than one that did.
const OUTLIER: f64 = 4.0;
/// Passes at the start that may be slow because all is done for the first time: weights are read in, threads wake, memory is made.
const COLD_PASSES: u8 = 3;
/// Times the estimate moves towards one of those that was faster: each goes a part of the way that depends on the make-up, all of them arrive.
const ROUNDS: usize = 8;

/// What a pass takes: a fixed part, and a part for each token of text and of pictures. Learned from the passes themselves.
///
/// The three parts are not measured apart; a pass that took longer than expected raises each in proportion to its share of the
/// expectation, which passes of different make-up pull apart. The first passes say the most that one takes: where the next are faster, they
/// are believed at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speed {
    fixed_s: f64,
    text_token_s: f64,
    vision_token_s: f64,
    /// Passes it was learned from, as far as they are counted: up to [`COLD_PASSES`].
    passes: u8,
}

impl Speed {
    /// Takes the first pass for typical.
    fn first(cost: Cost, took_s: f64) -> Self {
        let tokens = cost.text_tokens as f64 + VISION_PRIOR * cost.vision_tokens as f64;
        let text_token_s = (1.0 - FIXED_PRIOR) * took_s / tokens.max(1.0);
        Speed {
            fixed_s: FIXED_PRIOR * took_s,
            text_token_s,
            vision_token_s: VISION_PRIOR * text_token_s,
            passes: 1,
        }
    }

    /// Whether more than one pass says so: the first alone may have read the weights in.
    pub(super) fn is_confirmed(&self) -> bool {
        self.passes > 1
    }

    /// Learns from a pass; `known` is what the passes before it taught.
    pub(super) fn learn(known: Option<Self>, cost: Cost, took: Duration) -> Self {
        let took_s = took.as_secs_f64().max(1e-6);
        let Some(mut speed) = known else {
            return Speed::first(cost, took_s);
        };
        let expected = (speed.fixed() + speed.marginal(cost)).as_secs_f64();
        if speed.passes < COLD_PASSES && took_s < expected {
            for _ in 0..ROUNDS {
                speed.approach(cost, took_s, (1.0, f64::INFINITY));
            }
        } else {
            speed.approach(cost, took_s, (STEP, OUTLIER));
        }
        speed.passes = (speed.passes + 1).min(COLD_PASSES);
        speed
    }

    /// Moves towards what a pass took by a part of the way, of at most a factor; each of the three by its share in what was expected.
    fn approach(&mut self, cost: Cost, took_s: f64, (step, most): (f64, f64)) {
        let text = cost.text_tokens as f64 * self.text_token_s;
        let vision = cost.vision_tokens as f64 * self.vision_token_s;
        let expected = self.fixed_s + text + vision;
        let surprise = (took_s / expected).clamp(1.0 / most, most);
        let factor = |part: f64| surprise.powf(step * part / expected);
        let factors = (factor(self.fixed_s), factor(text), factor(vision));
        self.fixed_s *= factors.0;
        self.text_token_s *= factors.1;
        self.vision_token_s *= factors.2;
    }

    /// What any pass takes, whatever is in it.
    pub(super) fn fixed(&self) -> Duration {
        Duration::from_secs_f64(self.fixed_s)
    }

    /// What a sequence adds to a pass.
    pub(super) fn marginal(&self, cost: Cost) -> Duration {
        let text = cost.text_tokens as f64 * self.text_token_s;
        Duration::from_secs_f64(text + cost.vision_tokens as f64 * self.vision_token_s)
    }

    /// What so many sequences that cost so much together are charged: what they add, and what they pay of the fixed part of passes in which
    /// some have to wait for the next one. Those are short, so that nobody in them is late, and a third of their time is fixed, if it must be;
    /// but none of them pays it more than once.
    ///
    /// # Source
    /// A simulation of this rule and of how passes are formed, at three times what a device can do and more, passes off by a tenth of their
    /// time, means of twenty runs. Where a pass took 0.38 s and 0.42 s for each and deadlines were 20 s away, 46 of 163 that were let in were
    /// late while they were charged for what they add alone; charged so, and the door expecting two fixed parts more, none of 158 (passes off
    /// by a fifth: 4 of 162). Where a pass took a second, 0.4 s for each, and deadlines were 8 s away, 3 of 104 were late with a quarter in
    /// the place of the third, and 0.1 of 108 with it.
    pub(super) fn charge(&self, cost: Cost, sequences: usize) -> Duration {
        let added = self.marginal(cost);
        added + (self.fixed() * sequences as u32).min(added / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(text_tokens: usize, vision_tokens: usize) -> Cost {
        Cost {
            text_tokens,
            vision_tokens,
            pixel_bytes: 0,
        }
    }

    /// A device of 5 ms a pass, 0.1 ms a token of text and 0.5 ms one of pictures.
    fn took(cost: Cost) -> Duration {
        Duration::from_micros(
            5000 + 100 * cost.text_tokens as u64 + 500 * cost.vision_tokens as u64,
        )
    }

    #[test]
    fn what_begins_as_another_costs_only_the_rest() {
        let sequence = Sequence {
            input_ids: vec![0; 20],
            position_ids: Default::default(),
            media: Vec::new(),
            vision_rows: vec![2, 3, 4, 5, 12, 13],
            prefix_tokens: 10,
            task: crate::model::Task::Rerank,
        };
        let (whole, rest) = (Cost::of(&sequence), Cost::of_rest(&sequence));
        assert_eq!((whole.text_tokens, whole.vision_tokens), (14, 6));
        assert_eq!((rest.text_tokens, rest.vision_tokens), (8, 2));
    }

    #[test]
    fn passes_of_different_make_up_teach_what_each_kind_takes() {
        let mut speed = None;
        for i in 0..300 {
            let pass = [cost(20, 0), cost(2000, 0), cost(50, 1800), cost(400, 100)][i % 4];
            speed = Some(Speed::learn(speed, pass, took(pass)));
        }
        let speed = speed.unwrap();
        for pass in [cost(10, 0), cost(1000, 0), cost(30, 600)] {
            let expected = (speed.fixed() + speed.marginal(pass)).as_secs_f64();
            let ratio = expected / took(pass).as_secs_f64();
            assert!((0.85..1.15).contains(&ratio), "{pass:?}: {ratio}");
        }
    }

    #[test]
    fn one_pass_that_hung_does_not_spoil_the_estimate() {
        let pass = cost(1000, 0);
        let mut speed = Speed::learn(None, pass, took(pass));
        speed = Speed::learn(Some(speed), pass, Duration::from_secs(3600));
        let ratio = (speed.fixed() + speed.marginal(pass)).as_secs_f64() / took(pass).as_secs_f64();
        assert!((1.0..1.6).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_slow_first_pass_is_forgotten_with_the_next_ones() {
        let pass = cost(100, 0);
        let mut speed = Speed::learn(None, pass, Duration::from_secs(30));
        assert!(!speed.is_confirmed());
        for _ in 1..COLD_PASSES {
            speed = Speed::learn(Some(speed), pass, took(pass));
        }
        assert!(speed.is_confirmed());
        let ratio = (speed.fixed() + speed.marginal(pass)).as_secs_f64() / took(pass).as_secs_f64();
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
    }

    #[test]
    fn what_is_charged_holds_a_part_of_the_fixed_part_and_never_more_than_all_of_it() {
        let speed = Speed {
            fixed_s: 0.4,
            text_token_s: 0.01,
            vision_token_s: 0.02,
            passes: 1,
        };
        let charge =
            |cost, sequences| (speed.charge(cost, sequences).as_secs_f64() * 1000.0).round();
        assert_eq!(charge(cost(20, 0), 1), 300.0);
        assert_eq!(charge(cost(100, 100), 1), 3400.0);
        assert_eq!(charge(cost(100, 100), 3), 4200.0);
        assert_eq!(charge(cost(100, 100), 9), 4500.0);
    }

    #[test]
    fn a_pass_of_no_time_and_one_of_no_tokens_leave_numbers_that_can_be_used() {
        let mut speed = Speed::learn(None, cost(0, 0), Duration::ZERO);
        for _ in 0..100 {
            speed = Speed::learn(Some(speed), cost(1, 0), Duration::ZERO);
        }
        assert!(speed.marginal(cost(1000, 1000)).as_secs_f64().is_finite());
        assert!(speed.fixed() <= Duration::from_micros(1));
    }
}
