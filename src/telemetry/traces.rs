//! Traces: a request's place in its caller's trace, and the export of spans to a collector.
//!
//! In: `traceparent` headers and the address of an OTLP collector. Out: fields of log spans; spans in the collector. The exporter
//! speaks to the one address the operator named, from a thread of its own: a collector that is slow or gone loses spans, not requests.

use std::fmt;
use std::time::Duration;

use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::Registry;
use url::Url;

use super::TelemetryError;

/// Where OTLP over HTTP takes spans, beneath a collector's address.
///
/// # Source
/// OpenTelemetry protocol 1.x, "OTLP/HTTP Request".
const TRACES_PATH: &str = "v1/traces";
/// Time the last spans have to reach the collector when the process ends.
const LAST_EXPORT: Duration = Duration::from_secs(5);

/// Exports what is left when it goes.
#[derive(Debug)]
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    /// Time that may take.
    pub(super) last_export: Duration,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(self.last_export) {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

/// The URL spans are sent to: `endpoint` is a collector's address or the whole URL.
pub(super) fn traces_url(endpoint: &str) -> Option<Url> {
    let mut url = Url::parse(endpoint).ok()?;
    let right = matches!(url.scheme(), "http" | "https") && url.host().is_some();
    if !right || url.query().is_some() || url.fragment().is_some() {
        return None;
    }
    let path = url.path().trim_end_matches('/').to_owned();
    if !path.ends_with(TRACES_PATH) {
        url.set_path(&format!("{path}/{TRACES_PATH}"));
    }
    Some(url)
}

pub(super) type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// A layer that hands our spans to the collector at `url`.
pub(super) fn layer(url: &Url) -> Result<(BoxedLayer, Exporter), TelemetryError> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(url.as_str())
        .build()
        .map_err(|error| TelemetryError::Exporter {
            endpoint: url.to_string(),
            reason: error.to_string(),
        })?;
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(env!("CARGO_PKG_NAME"));
    }
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let provider = SdkTracerProvider::builder()
        .with_resource(resource.with_attribute(version).build())
        .with_batch_exporter(exporter)
        .build();
    let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
    // Our own spans only: the exporter's HTTP client has some too, and exporting those would never end.
    let ours = Targets::new().with_target(env!("CARGO_PKG_NAME"), LevelFilter::INFO);
    let layer = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_target(false)
        .with_location(false)
        .with_threads(false)
        .with_filter(ours);
    let exporter = Exporter {
        provider,
        last_export: LAST_EXPORT,
    };
    Ok((Box::new(layer), exporter))
}

/// The caller's span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
}

impl TraceParent {
    /// Reads a `traceparent` header; `None` when it is not one, and then a trace begins here.
    ///
    /// # Source
    /// W3C Trace Context, "traceparent Header Field Values": lower-case hex, ids that are not all zero, version `ff` forbidden, later
    /// versions may be longer.
    pub fn parse(header: &str) -> Option<Self> {
        let mut fields = header.split('-');
        let [version] = hex(fields.next()?)?;
        let parent = TraceParent {
            trace: hex(fields.next()?)?,
            span: hex(fields.next()?)?,
            flags: hex::<1>(fields.next()?)?[0],
        };
        let zero = parent.trace == [0; 16] || parent.span == [0; 8];
        let long = version == 0 && fields.next().is_some();
        (version != 0xff && !zero && !long).then_some(parent)
    }
}

/// Exactly `N` bytes of lower-case hexadecimal.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 2 * N || !text.bytes().all(lower) {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

impl fmt::Display for TraceParent {
    /// The trace's id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.trace
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The span of a request: its fields stand beside each log line of the request. With an exporter it is a child of the caller's span;
/// without, the caller's trace is named all the same.
pub fn request_span(id: &str, route: &str, parent: Option<TraceParent>) -> Span {
    // Of the highest level, so that lines of every level carry it.
    if !super::exports_traces() {
        return match parent {
            Some(parent) => tracing::error_span!("request", id, route, trace_id = %parent),
            None => tracing::error_span!("request", id, route),
        };
    }
    let span = tracing::error_span!(
        "request",
        id,
        route,
        trace_id = tracing::field::Empty,
        otel.kind = "server"
    );
    if let Some(parent) = parent {
        let context = SpanContext::new(
            TraceId::from_bytes(parent.trace),
            SpanId::from_bytes(parent.span),
            TraceFlags::new(parent.flags) & TraceFlags::SAMPLED,
            true,
            TraceState::NONE,
        );
        // Fails where this span's target is filtered out, and then nothing is exported either.
        let _ = span.set_parent(Context::new().with_remote_span_context(context));
    }
    let trace = span.context().span().span_context().trace_id();
    span.record("trace_id", tracing::field::display(trace));
    span
}

/// Adds what is known of a request at its end; without an exporter, nothing.
pub fn set_attributes(span: &Span, numbers: &[(&'static str, i64)], failed: bool) {
    if !super::exports_traces() {
        return;
    }
    for (name, value) in numbers {
        span.set_attribute(*name, *value);
    }
    if failed {
        span.set_status(opentelemetry::trace::Status::error(""));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let right = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent = TraceParent::parse(right).expect("the standard's own example");
        assert_eq!(parent.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.flags, 1);
        let later = format!("cc{}-more", &right[2..]);
        assert_eq!(TraceParent::parse(&later), Some(parent));
        for wrong in [
            "",
            "00",
            &format!("{right}-more"),
            &right.to_uppercase(),
            &format!("ff{}", &right[2..]),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "0é-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_collector_is_an_http_address_with_or_without_the_path() {
        let url = |text| traces_url(text).map(String::from);
        let full = Some("http://c:4318/v1/traces".to_owned());
        assert_eq!(url("http://c:4318"), full);
        assert_eq!(url("http://c:4318/"), full);
        assert_eq!(url("http://c:4318/v1/traces"), full);
        assert_eq!(
            url("https://c/otlp").as_deref(),
            Some("https://c/otlp/v1/traces")
        );
        for wrong in ["", "c:4318", "grpc://c:4317", "http://", "http://c/?x=1"] {
            assert_eq!(url(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(header in ".{0,80}") {
            TraceParent::parse(&header);
        }

        #[test]
        fn what_is_written_by_the_standard_is_read_back(trace in 1_u128.., span in 1_u64.., flags: u8) {
            let parent = TraceParent::parse(&format!("00-{trace:032x}-{span:016x}-{flags:02x}"));
            let expected = TraceParent { trace: trace.to_be_bytes(), span: span.to_be_bytes(), flags };
            prop_assert_eq!(parent, Some(expected));
        }
    }
}
