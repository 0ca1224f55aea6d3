//! What the batcher tells a scraper, read at each scrape. In: a [`BatcherReading`]. Out: gauges and counters.

use std::sync::OnceLock;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::metric_names as names;
use super::metrics::{Reason, by_label, gauge};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Lane {
    lane: &'static str,
}

/// What waits in a lane for a forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneDepth {
    /// `interactive`, `bulk`.
    pub lane: &'static str,
    /// How many inputs.
    pub sequences: u64,
    /// Their tokens, which is what the limit of the queue counts.
    pub tokens: u64,
    /// How long the device is expected to take for them.
    pub expected: Duration,
}

/// One moment of the batcher. Lists are of label values and numbers, which count from the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatcherReading {
    /// What waits, by lane.
    pub lanes: Vec<LaneDepth>,
    /// Requests that were not let in, by reason.
    pub refused: Vec<(&'static str, u64)>,
    /// Inputs that were let in and not computed, by reason.
    pub dropped: Vec<(&'static str, u64)>,
    /// Inputs that shared the computation of another in flight.
    pub shared: u64,
    /// Passes that failed, by reason.
    pub failed: Vec<(&'static str, u64)>,
    /// Most tokens a pass has now: fewer than the setting after the device ran out of memory.
    pub max_tokens: u64,
    /// Bytes of pixels held now.
    pub pixel_bytes: u64,
    /// Bytes of kept vectors now.
    pub cache_bytes: u64,
}

type BatcherSource = Box<dyn Fn() -> Option<BatcherReading> + Send + Sync>;

static BATCHER: OnceLock<BatcherSource> = OnceLock::new();

/// Names who knows what waits; asked at each scrape, so that no request pays for it. The first source stays.
pub fn watch_batcher(source: impl Fn() -> Option<BatcherReading> + Send + Sync + 'static) {
    let _ = BATCHER.set(Box::new(source));
}

/// Asks the source that was named.
#[derive(Debug)]
pub(super) struct BatcherCollector;

impl Collector for BatcherCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        match BATCHER.get().and_then(|source| source()) {
            Some(reading) => encode_reading(&reading, &mut encoder),
            None => Ok(()),
        }
    }
}

fn encode_reading(
    reading: &BatcherReading,
    encoder: &mut DescriptorEncoder<'_>,
) -> std::fmt::Result {
    let lanes = |value: fn(&LaneDepth) -> f64| {
        let lanes = reading.lanes.iter();
        lanes.map(move |depth| (Lane { lane: depth.lane }, ConstGauge::new(value(depth))))
    };
    let waiting = lanes(|depth| depth.sequences as f64);
    by_label(encoder, names::QUEUE_SEQUENCES, waiting)?;
    by_label(
        encoder,
        names::QUEUE_TOKENS,
        lanes(|depth| depth.tokens as f64),
    )?;
    let expected = lanes(|depth| depth.expected.as_secs_f64());
    by_label(encoder, names::QUEUE_SECONDS, expected)?;
    for (name, counts) in [
        (names::QUEUE_REFUSALS, &reading.refused),
        (names::INPUTS_DROPPED, &reading.dropped),
        (names::BATCH_FAILURES, &reading.failed),
    ] {
        let counts = counts.iter();
        let counts = counts.map(|&(reason, count)| (Reason { reason }, ConstCounter::new(count)));
        by_label(encoder, name, counts)?;
    }
    let (name, help) = names::INPUTS_SHARED;
    let shared = ConstCounter::new(reading.shared);
    let metric = encoder.encode_descriptor(name, help, None, shared.metric_type())?;
    shared.encode(metric)?;
    gauge(encoder, names::BATCH_MAX_TOKENS, reading.max_tokens)?;
    gauge(encoder, names::PIXEL_BYTES, reading.pixel_bytes)?;
    gauge(encoder, names::CACHE_BYTES, reading.cache_bytes)
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn what_the_batcher_says_is_written_by_label() {
        let depth = |lane, sequences| LaneDepth {
            lane,
            sequences,
            tokens: 10 * sequences,
            expected: Duration::from_millis(250),
        };
        let reading = BatcherReading {
            lanes: vec![depth("interactive", 1), depth("bulk", 2)],
            refused: vec![("full", 3), ("too_late", 0)],
            dropped: vec![("left", 4)],
            shared: 5,
            failed: vec![("out_of_memory", 6)],
            max_tokens: 7,
            pixel_bytes: 8,
            cache_bytes: 9,
        };
        #[derive(Debug)]
        struct Fixed(BatcherReading);
        impl Collector for Fixed {
            fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
                encode_reading(&self.0, &mut encoder)
            }
        }
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Fixed(reading)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("it is written");
        for line in [
            "manifold_queue_sequences{lane=\"interactive\"} 1.0",
            "manifold_queue_tokens{lane=\"bulk\"} 20.0",
            "manifold_queue_expected_seconds{lane=\"bulk\"} 0.25",
            "manifold_queue_refusals_total{reason=\"full\"} 3",
            "manifold_queue_refusals_total{reason=\"too_late\"} 0",
            "manifold_inputs_dropped_total{reason=\"left\"} 4",
            "manifold_inputs_shared_total 5",
            "manifold_batch_failures_total{reason=\"out_of_memory\"} 6",
            "manifold_batch_max_tokens 7",
            "manifold_pixel_bytes 8",
            "manifold_cache_bytes 9",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
