//! What the server counts, and how a scraper reads it. In: events, from any room. Out: the Prometheus text format.
//!
//! Every name begins with `manifold_` and is a constant of `metric_names`. Labels take few values: routes as they are declared, never
//! a path as it was sent. A place that counts calls a method of [`Metrics`]; nothing on the way of a request waits for a scraper.

use std::fmt::Write;
use std::sync::LazyLock;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use super::backlog::BatcherCollector;
use super::device_memory::MemoryCollector;
use super::metric_names::{self as names, Name};
use super::process::ProcessCollector;

/// From a millisecond to the longest a request may take by default, in seconds.
const DURATIONS: [f64; 17] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0,
];
/// Tokens and inputs of a batch come in powers of two.
const COUNTS: [f64; 16] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0, 32768.0,
];
const RATIOS: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Reason {
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Modality {
    modality: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Cache {
    cache: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Fetch {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// What is served, for `manifold_model_info`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ModelLabels {
    /// The name answers carry.
    pub model: String,
    /// The commit it was pinned to; empty where there is none.
    pub revision: String,
    /// Number format.
    pub dtype: String,
    /// Device.
    pub device: String,
}

/// Tokens of what was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokensAnswered {
    /// Of text and template.
    pub text: usize,
    /// Of images.
    pub image: usize,
    /// Of videos.
    pub video: usize,
    /// How many of all of them were not computed again.
    pub cached: usize,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    in_flight: Gauge<i64, AtomicI64>,
    request_duration: Histograms<Route>,
    stage_duration: Histograms<Stage>,
    rejections: Family<Reason, Counter>,
    inputs: Counter,
    tokens: Family<Modality, Counter>,
    cached_tokens: Counter,
    cache_hits: Family<Cache, Counter>,
    cache_misses: Family<Cache, Counter>,
    fetches: Family<Fetch, Counter>,
    batch_tokens: Histogram,
    batch_sequences: Histogram,
    batch_fill: Histogram,
    connections: Counter,
    connections_open: Gauge<i64, AtomicI64>,
    connections_dropped: Family<Reason, Counter>,
    model: Family<ModelLabels, Gauge>,
}

/// The process's metrics. One for all rooms, as there is one log.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

fn durations() -> Histogram {
    Histogram::new(DURATIONS)
}

/// Registers `metric` and hands it back.
fn add<M: Metric + Clone>(registry: &mut Registry, (name, help): Name, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    fn new() -> Self {
        let mut r = Registry::default();
        let histograms = durations as fn() -> Histogram;
        let build = add(&mut r, names::BUILD_INFO, Family::<Build, Gauge>::default());
        let version = env!("CARGO_PKG_VERSION");
        build.get_or_create(&Build { version }).set(1);
        r.register_collector(Box::new(BatcherCollector));
        r.register_collector(Box::new(MemoryCollector));
        r.register_collector(Box::new(ProcessCollector));
        Metrics {
            requests: add(&mut r, names::REQUESTS, Family::default()),
            in_flight: add(&mut r, names::REQUESTS_IN_FLIGHT, Gauge::default()),
            request_duration: add(
                &mut r,
                names::REQUEST_DURATION,
                Family::new_with_constructor(histograms),
            ),
            stage_duration: add(
                &mut r,
                names::STAGE_DURATION,
                Family::new_with_constructor(histograms),
            ),
            rejections: add(&mut r, names::REJECTIONS, Family::default()),
            inputs: add(&mut r, names::INPUTS, Counter::default()),
            tokens: add(&mut r, names::TOKENS, Family::default()),
            cached_tokens: add(&mut r, names::CACHED_TOKENS, Counter::default()),
            cache_hits: add(&mut r, names::CACHE_HITS, Family::default()),
            cache_misses: add(&mut r, names::CACHE_MISSES, Family::default()),
            fetches: add(&mut r, names::FETCHES, Family::default()),
            batch_tokens: add(&mut r, names::BATCH_TOKENS, Histogram::new(COUNTS)),
            batch_sequences: add(&mut r, names::BATCH_SEQUENCES, Histogram::new(COUNTS)),
            batch_fill: add(&mut r, names::BATCH_FILL, Histogram::new(RATIOS)),
            connections: add(&mut r, names::CONNECTIONS, Counter::default()),
            connections_open: add(&mut r, names::CONNECTIONS_OPEN, Gauge::default()),
            connections_dropped: add(&mut r, names::CONNECTIONS_DROPPED, Family::default()),
            model: add(&mut r, names::MODEL_INFO, Family::default()),
            registry: r,
        }
    }

    /// A request has begun; dropping the guard ends it.
    pub fn request(&'static self) -> GaugeGuard {
        GaugeGuard::new(&self.in_flight)
    }

    /// A request was answered. `route` is one as it is declared.
    pub fn answered(&self, route: &str, status: u16, took: Duration) {
        let route = route.to_owned();
        let by_route = Route {
            route: route.clone(),
        };
        self.requests
            .get_or_create(&Answered { route, status })
            .inc();
        self.request_duration
            .get_or_create(&by_route)
            .observe(took.as_secs_f64());
    }

    /// An error was answered. `reason` is its code.
    pub fn rejected(&self, reason: &'static str) {
        self.rejections.get_or_create(&Reason { reason }).inc();
    }

    /// A stage of a request took this long.
    pub fn stage(&self, stage: &'static str, took: Duration) {
        let family = &self.stage_duration;
        family
            .get_or_create(&Stage { stage })
            .observe(took.as_secs_f64());
    }

    /// Vectors were answered.
    pub fn embedded(&self, inputs: usize, tokens: TokensAnswered) {
        self.inputs.inc_by(inputs as u64);
        for (modality, count) in [
            ("text", tokens.text),
            ("image", tokens.image),
            ("video", tokens.video),
        ] {
            let counter = self.tokens.get_or_create(&Modality { modality });
            counter.inc_by(count as u64);
        }
        self.cached_tokens.inc_by(tokens.cached as u64);
    }

    /// Inputs asked a cache.
    pub fn cache(&self, cache: &'static str, hits: usize, misses: usize) {
        let labels = Cache { cache };
        self.cache_hits.get_or_create(&labels).inc_by(hits as u64);
        self.cache_misses
            .get_or_create(&labels)
            .inc_by(misses as u64);
    }

    /// A media URL was fetched, or not.
    pub fn fetch(&self, outcome: &'static str) {
        self.fetches.get_or_create(&Fetch { outcome }).inc();
    }

    /// A forward pass was computed.
    pub fn batch(&self, sequences: usize, tokens: usize, max_tokens: usize) {
        self.batch_sequences.observe(sequences as f64);
        self.batch_tokens.observe(tokens as f64);
        self.batch_fill
            .observe(tokens as f64 / max_tokens.max(1) as f64);
    }

    /// A connection was accepted; dropping the guard closes it.
    pub fn connection(&'static self) -> GaugeGuard {
        self.connections.inc();
        GaugeGuard::new(&self.connections_open)
    }

    /// The server closed a connection of its own accord.
    pub fn connection_dropped(&self, reason: &'static str) {
        self.connections_dropped
            .get_or_create(&Reason { reason })
            .inc();
    }

    /// A model is served.
    pub fn model(&self, labels: &ModelLabels) {
        self.model.get_or_create(labels).set(1);
    }

    /// All numbers, in the OpenMetrics form of the text format or, when `plain`, in the older one that every scraper reads.
    pub fn render(&self, plain: bool) -> String {
        let mut text = String::new();
        // Writing to a `String` cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        if plain { as_plain(&text) } else { text }
    }
}

/// Counts one while it lives.
#[derive(Debug)]
pub struct GaugeGuard(&'static Gauge<i64, AtomicI64>);

impl GaugeGuard {
    fn new(gauge: &'static Gauge<i64, AtomicI64>) -> Self {
        gauge.inc();
        GaugeGuard(gauge)
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Writes a metric of several labels that is read at the time of the scrape.
pub(super) fn by_label<L: EncodeLabelSet, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): Name,
    metrics: impl Iterator<Item = (L, M)>,
) -> std::fmt::Result {
    let mut metrics = metrics.peekable();
    let Some((_, first)) = metrics.peek() else {
        return Ok(());
    };
    let mut family = encoder.encode_descriptor(name, help, None, first.metric_type())?;
    for (labels, metric) in metrics {
        metric.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Writes a gauge that is read at the time of the scrape.
pub(super) fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): Name,
    value: u64,
) -> std::fmt::Result {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(metric)
}

/// The older form differs in two things: the family of a counter has its `_total` too, and nothing marks the end.
///
/// # Source
/// Prometheus, "Exposition formats", text format 0.0.4; OpenMetrics 1.0, "Text format".
fn as_plain(open_metrics: &str) -> String {
    let counter = |line: &str| {
        let rest = line.strip_prefix("# TYPE ")?;
        rest.strip_suffix(" counter").map(str::to_owned)
    };
    let counters: Vec<String> = open_metrics.lines().filter_map(counter).collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        let (hash, keyword, name) = (words.next(), words.next(), words.next());
        let of_counter = hash == Some("#") && counters.iter().any(|it| Some(it.as_str()) == name);
        let _ = match (of_counter, keyword, name) {
            (true, Some(keyword), Some(name)) => {
                let rest = words.next().unwrap_or_default();
                writeln!(text, "# {keyword} {name}_total {rest}")
            }
            _ => writeln!(text, "{line}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_back_and_a_guard_gives_back_what_it_took() {
        let metrics: &'static Metrics = Box::leak(Box::new(Metrics::new()));
        metrics.answered("/v1/embeddings", 200, Duration::from_millis(3));
        metrics.answered("/v1/embeddings", 200, Duration::from_millis(3));
        metrics.rejected("queue_full");
        metrics.batch(3, 50, 100);
        metrics.embedded(
            2,
            TokensAnswered {
                text: 5,
                image: 7,
                video: 0,
                cached: 4,
            },
        );
        let in_flight = metrics.request();
        let text = metrics.render(false);
        for line in [
            "manifold_requests_total{route=\"/v1/embeddings\",status=\"200\"} 2",
            "manifold_request_duration_seconds_bucket{le=\"0.005\",route=\"/v1/embeddings\"} 2",
            "manifold_rejections_total{reason=\"queue_full\"} 1",
            "manifold_batch_fill_ratio_bucket{le=\"0.5\"} 1",
            "manifold_tokens_total{modality=\"image\"} 7",
            "manifold_cached_tokens_total 4",
            "manifold_requests_in_flight 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        drop(in_flight);
        assert!(
            metrics
                .render(false)
                .contains("manifold_requests_in_flight 0")
        );
    }

    #[test]
    fn the_plain_form_differs_only_in_the_names_of_counters_and_the_end() {
        let open = "# HELP a_b Some text.\n# TYPE a_b counter\na_b_total{x=\"# TYPE\"} 1\n# HELP g G.\n# TYPE g gauge\ng 2\n# EOF\n";
        let plain = "# HELP a_b_total Some text.\n# TYPE a_b_total counter\na_b_total{x=\"# TYPE\"} 1\n# HELP g G.\n# TYPE g gauge\ng 2\n";
        assert_eq!(as_plain(open), plain);
    }

    #[test]
    fn every_name_has_the_prefix_and_stands_once_and_in_the_readme() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(path).expect("a README");
        let all = names::ALL.map(|(name, _)| name);
        for (i, name) in all.iter().enumerate() {
            assert!(name.starts_with("manifold_"), "{name}");
            assert!(!all[..i].contains(name), "{name} stands twice");
            assert!(readme.contains(name), "the README does not say {name}");
        }
    }
}
