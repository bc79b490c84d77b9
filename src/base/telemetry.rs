//! Logs and traces: where they go, in which shape.
//!
//! Owns the process's tracing subscriber and the exporter behind it. Never decides what is logged; texts of prompts and
//! answers are not, anywhere.
//!
//! Invariant: dropping [`Telemetry`] has sent every finished span, or given up after [`FLUSH_TIMEOUT`].

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, Tracer, TracerProvider};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing::{Level, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::clock;
use super::config::{self, LogFormat};

/// Longest wait for the collector at the end, and for one export.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("telemetry.log_level is '{0}', which does not parse: {1}")]
    LogLevel(String, String),
    #[error("telemetry.otlp_endpoint is '{0}', to which no exporter can be made: {1}")]
    Exporter(String, String),
    #[error("a tracing subscriber is installed already")]
    Installed,
}

/// Keep it until the end of the program.
#[must_use = "traces are flushed when it drops"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Installs the subscriber: log lines to standard error, and spans to the collector when one is configured. Call it
/// outside any async runtime (the exporter's HTTP client has a thread of its own).
pub fn install(config: &config::Telemetry) -> Result<Telemetry, TelemetryError> {
    let (subscriber, telemetry) = build(config)?;
    subscriber.try_init().map_err(|_| TelemetryError::Installed)?;
    if let Some(provider) = &telemetry.provider {
        let _ = TRACER.set(provider.tracer(env!("CARGO_PKG_NAME")));
    }
    Ok(telemetry)
}

/// For spans whose times are known only afterwards; set while traces are exported.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// A stretch of a request's way that is told of when it is over: the threads that a request passes do not hold its
/// span, they note times. In microseconds of [`clock`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    name: &'static str,
    start_us: u64,
    end_us: u64,
    tokens: Vec<(&'static str, u64)>,
}

impl Hop {
    pub fn new(name: &'static str, start_us: u64, end_us: u64) -> Self {
        Self { name, start_us, end_us, tokens: Vec::new() }
    }

    /// How many tokens it was about, as an attribute of the span.
    pub fn with(mut self, attribute: &'static str, tokens: u64) -> Self {
        self.tokens.push((attribute, tokens));
        self
    }
}

/// Sends the hops to the collector as children of the request's span; nothing when no traces are exported.
pub fn record_hops(request: &tracing::Span, hops: &[Hop]) {
    let Some(tracer) = TRACER.get() else { return };
    let (parent, instant, wall) = (request.context(), Instant::now(), SystemTime::now());
    let time = |us| wall - instant.saturating_duration_since(clock::instant_at(us));
    for hop in hops {
        let attributes = hop.tokens.iter().map(|(name, n)| KeyValue::new(*name, i64::try_from(*n).unwrap_or(i64::MAX)));
        let span = tracer.span_builder(hop.name).with_start_time(time(hop.start_us)).with_attributes(attributes);
        span.start_with_context(tracer, &parent).end_with_timestamp(time(hop.end_us));
    }
}

/// The HTTP server tells of its workers at INFO, after we have said where it listens. Whoever names it gets all of it.
fn quieten(filter: EnvFilter, log_level: &str) -> EnvFilter {
    match "actix_server=warn".parse() {
        Ok(directive) if !log_level.contains("actix_server") => filter.add_directive(directive),
        _ => filter,
    }
}

fn build(config: &config::Telemetry) -> Result<(impl Subscriber + Send + Sync, Telemetry), TelemetryError> {
    let filter = EnvFilter::builder()
        .with_regex(false)
        .parse(&config.log_level)
        .map_err(|e| TelemetryError::LogLevel(config.log_level.clone(), e.to_string()))?;
    let filter = quieten(filter, &config.log_level);
    let lines = match config.log_format {
        LogFormat::Pretty => tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_writer(std::io::stderr)
            .boxed(),
    };
    let provider = config.otlp_endpoint.as_deref().map(provider).transpose()?;
    // Our own spans only: the exporter's HTTP client traces too, and would feed itself.
    let ours = Targets::new().with_target(env!("CARGO_PKG_NAME"), Level::INFO);
    let spans = provider.as_ref().map(|p| {
        let tracer = p.tracer(env!("CARGO_PKG_NAME"));
        tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false).with_filter(ours)
    });
    Ok((tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans), Telemetry { provider }))
}

/// Exports in batches from a thread of its own, with a bounded queue that drops spans rather than wait.
fn provider(endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let failed = |e: &dyn std::fmt::Display| TelemetryError::Exporter(endpoint.to_owned(), e.to_string());
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_timeout(FLUSH_TIMEOUT)
        .build()
        .map_err(|e| failed(&e))?;
    let resource = Resource::builder()
        .with_service_name(env!("CARGO_PKG_NAME"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(e) = provider.shutdown_with_timeout(FLUSH_TIMEOUT)
        {
            eprintln!("the last traces did not reach the collector: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Reads one request, answers 200 and returns what was read.
    fn serve_one(mut stream: TcpStream) -> Vec<u8> {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            let n = stream.read(&mut chunk).unwrap();
            assert!(n > 0, "the exporter hung up");
            request.extend_from_slice(&chunk[..n]);
            let text = String::from_utf8_lossy(&request).to_lowercase();
            let Some((head, _)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
            if request.len() >= head.len() + 4 + length.trim().parse::<usize>().unwrap() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
                return request;
            }
        }
    }

    #[test]
    fn spans_reach_the_collector_before_the_guard_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        let collector = std::thread::spawn(move || serve_one(listener.accept().unwrap().0));
        let config = config::Telemetry { otlp_endpoint: Some(endpoint), log_level: "off".into(), ..Default::default() };
        let (subscriber, telemetry) = build(&config).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info_span!("a_span_of_ours", tokens = 7).in_scope(|| {});
            tracing::info_span!(target: "reqwest", "a_span_of_others").in_scope(|| {});
        });
        drop(telemetry);
        let request = String::from_utf8_lossy(&collector.join().unwrap()).into_owned();
        assert!(request.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("a_span_of_ours") && request.contains("service.name"), "{request}");
        assert!(!request.contains("a_span_of_others"), "{request}");
    }

    #[test]
    fn a_level_that_does_not_parse_is_named() {
        let config = config::Telemetry { log_level: "a=b=c".into(), ..Default::default() };
        let Err(e) = build(&config) else { panic!("accepted") };
        assert!(e.to_string().starts_with("telemetry.log_level is 'a=b=c'"), "{e}");
    }
}
