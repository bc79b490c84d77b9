//! The table of keys: for each, how its value is read and where it goes. The only list of what may be configured.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::sections::{Compute, Config, Device, Isa, KvDtype, LogFormat, SamplingDefaults, Speculative, Weights};
use super::value::{Allowed, Value};

/// One key.
pub struct Key {
    /// `section.key`.
    pub path: &'static str,
    pub(super) set: fn(&mut Config, &Value) -> Result<(), Allowed>,
}

const fn key(path: &'static str, set: fn(&mut Config, &Value) -> Result<(), Allowed>) -> Key {
    Key { path, set }
}

/// Every key, in the order of `config.yaml`.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("server.listen", |c, v| put(&mut c.server.listen, address(v))),
    key("server.workers", |c, v| put(&mut c.server.workers, opt_int(v, 1..=256))),
    key("server.max_body_bytes", |c, v| put(&mut c.server.max_body_bytes, v.int(1024..=1 << 30))),
    key("server.max_connections", |c, v| put(&mut c.server.max_connections, v.int(1..=1_000_000))),
    key("server.read_timeout_s", |c, v| put(&mut c.server.read_timeout_s, v.int(1..=3600))),
    key("server.keep_alive_s", |c, v| put(&mut c.server.keep_alive_s, v.int(1..=3600))),
    key("server.drain_timeout_s", |c, v| put(&mut c.server.drain_timeout_s, v.int(0..=3600))),
    key("server.heartbeat_s", |c, v| put(&mut c.server.heartbeat_s, v.int(1..=3600))),
    key("server.stall_timeout_s", |c, v| put(&mut c.server.stall_timeout_s, v.int(1..=3600))),
    key("server.max_stream_buffer_bytes", |c, v| put(&mut c.server.max_stream_buffer_bytes, v.int(4096..=1 << 30))),
    key("server.docs", |c, v| put(&mut c.server.docs, v.boolean())),
    key("model.path", |c, v| put(&mut c.model.path, v.text(4096))),
    key("model.served_name", |c, v| put(&mut c.model.served_name, opt(v, |v| v.text(256)))),
    key("model.max_model_len", |c, v| put(&mut c.model.max_model_len, opt_int(v, 1..=16 << 20))),
    key("model.sampling_defaults", |c, v| put(&mut c.model.sampling_defaults, v.word(&[
        ("model", SamplingDefaults::Model), ("openai", SamplingDefaults::OpenAi),
    ]))),
    key("engine.device", |c, v| put(&mut c.engine.device, v.word(&[
        ("auto", Device::Auto), ("cpu", Device::Cpu), ("cuda", Device::Cuda),
    ]))),
    key("engine.lanes", |c, v| put(&mut c.engine.lanes, v.int(1..=64))),
    key("engine.tensor_parallel", |c, v| put(&mut c.engine.tensor_parallel, v.int(1..=16))),
    key("engine.threads", |c, v| put(&mut c.engine.threads, opt_int(v, 1..=1024))),
    key("engine.isa", |c, v| put(&mut c.engine.isa, v.word(&[
        ("auto", Isa::Auto), ("avx512dot", Isa::Avx512Dot), ("avx512", Isa::Avx512), ("avx2", Isa::Avx2), ("scalar", Isa::Scalar),
    ]))),
    key("engine.weights", |c, v| put(&mut c.engine.weights, v.word(&[
        ("auto", Weights::Auto), ("f32", Weights::F32), ("f16", Weights::F16), ("bf16", Weights::Bf16),
        ("fp8", Weights::Fp8), ("int8", Weights::Int8), ("int4", Weights::Int4),
        ("int4_32", Weights::Int4Of32), ("int4_128", Weights::Int4Of128),
    ]))),
    key("engine.compute", |c, v| put(&mut c.engine.compute, v.word(&[
        ("f32", Compute::F32), ("bf16", Compute::Bf16), ("int8", Compute::Int8),
    ]))),
    key("engine.cuda_graphs", |c, v| put(&mut c.engine.cuda_graphs, v.boolean())),
    key("engine.batch_invariant", |c, v| put(&mut c.engine.batch_invariant, v.boolean())),
    key("engine.cuda_libraries", |c, v| put(&mut c.engine.cuda_libraries, opt(v, |v| v.text(4096)))),
    key("engine.cuda_kernels", |c, v| put(&mut c.engine.cuda_kernels, opt(v, |v| v.text(4096)))),
    key("engine.max_step_s", |c, v| put(&mut c.engine.max_step_s, v.int(1..=3600))),
    key("kv.memory", |c, v| put(&mut c.kv.memory, opt_memory(v))),
    key("kv.memory_share", |c, v| put(&mut c.kv.memory_share, opt(v, |v| v.number(0.0, 0.95)))),
    key("kv.dtype", |c, v| put(&mut c.kv.dtype, v.word(&[
        ("auto", KvDtype::Auto), ("f32", KvDtype::F32), ("bf16", KvDtype::Bf16), ("int8", KvDtype::Int8), ("fp8", KvDtype::Fp8),
    ]))),
    key("kv.prefix_cache", |c, v| put(&mut c.kv.prefix_cache, v.boolean())),
    key("scheduler.max_batch_tokens", |c, v| put(&mut c.scheduler.max_batch_tokens, v.int(1..=65_536))),
    key("scheduler.max_slowdown", |c, v| put(&mut c.scheduler.max_slowdown, v.number(1.0, 1e6))),
    key("scheduler.max_running", |c, v| put(&mut c.scheduler.max_running, v.int(1..=4096))),
    key("scheduler.steal_window", |c, v| put(&mut c.scheduler.steal_window, v.int(0..=1024))),
    key("scheduler.speculative", |c, v| put(&mut c.scheduler.speculative, v.word(&[
        ("auto", Speculative::Auto), ("always", Speculative::Always), ("off", Speculative::Off),
    ]))),
    key("scheduler.num_speculative_tokens", |c, v| put(&mut c.scheduler.num_speculative_tokens, v.int(1..=64))),
    key("scheduler.prompt_lookup_min", |c, v| put(&mut c.scheduler.prompt_lookup_min, v.int(1..=8))),
    key("scheduler.prompt_lookup_max", |c, v| put(&mut c.scheduler.prompt_lookup_max, v.int(1..=8))),
    key("admission.max_requests", |c, v| put(&mut c.admission.max_requests, v.int(1..=100_000))),
    key("admission.max_waiting_tokens", |c, v| put(&mut c.admission.max_waiting_tokens, v.int(1..=1 << 40))),
    key("admission.default_timeout_ms", |c, v| put(&mut c.admission.default_timeout_ms, opt_int(v, 1..=MAX_TIMEOUT_MS))),
    key("admission.max_timeout_ms", |c, v| put(&mut c.admission.max_timeout_ms, v.int(1..=MAX_TIMEOUT_MS))),
    key("admission.tokenizer_threads", |c, v| put(&mut c.admission.tokenizer_threads, v.int(1..=256))),
    key("auth.cache_ttl_s", |c, v| put(&mut c.auth.cache_ttl_s, v.int(0..=3600))),
    key("auth.max_cached_keys", |c, v| put(&mut c.auth.max_cached_keys, v.int(16..=10_000_000))),
    key("auth.metrics_open", |c, v| put(&mut c.auth.metrics_open, v.boolean())),
    key("quota.rpm", |c, v| put(&mut c.quota.rpm, opt_int(v, 1..=MAX_QUOTA.into()))),
    key("quota.tpm", |c, v| put(&mut c.quota.tpm, opt_int(v, 1..=MAX_QUOTA.into()))),
    key("quota.concurrency", |c, v| put(&mut c.quota.concurrency, opt_int(v, 1..=MAX_QUOTA.into()))),
    key("store.path", |c, v| put(&mut c.store.path, v.text(4096))),
    key("telemetry.log_format", |c, v| put(&mut c.telemetry.log_format, v.word(&[
        ("pretty", LogFormat::Pretty), ("json", LogFormat::Json),
    ]))),
    key("telemetry.log_level", |c, v| put(&mut c.telemetry.log_level, log_level(v))),
    key("telemetry.otlp_endpoint", |c, v| put(&mut c.telemetry.otlp_endpoint, opt(v, endpoint))),
    key("telemetry.max_tenant_labels", |c, v| put(&mut c.telemetry.max_tenant_labels, v.int(0..=10_000))),
];

/// A week: longer ones are mistakes of unit.
const MAX_TIMEOUT_MS: i128 = 7 * 24 * 3600 * 1000;
/// Of one key, in a minute or at once. Far above any use; products with a minute in microseconds fit 128 bits only.
pub const MAX_QUOTA: u64 = 1_000_000_000_000;

fn put<T>(field: &mut T, read: Result<T, Allowed>) -> Result<(), Allowed> {
    *field = read?;
    Ok(())
}

fn opt<T>(v: &Value, read: impl Fn(&Value) -> Result<T, Allowed>) -> Result<Option<T>, Allowed> {
    if v.is_null() {
        return Ok(None);
    }
    read(v).map(Some).map_err(|Allowed(what)| Allowed(format!("null or {what}")))
}

fn opt_int<T: TryFrom<i128>>(v: &Value, range: RangeInclusive<i128>) -> Result<Option<T>, Allowed> {
    opt(v, |v| v.int(range.clone()))
}

fn opt_memory(v: &Value) -> Result<Option<u64>, Allowed> {
    match v {
        Value::Text(t) | Value::Untyped(t) if t.trim() == "auto" => Ok(None),
        v => opt(v, |v| v.bytes(1 << 20)),
    }
}

fn address(v: &Value) -> Result<SocketAddr, Allowed> {
    match v {
        Value::Text(t) | Value::Untyped(t) => t.trim().parse().ok(),
        _ => None,
    }
    .ok_or_else(|| Allowed("an IP address and a port, as 127.0.0.1:8080 or [::]:8080".into()))
}

fn log_level(v: &Value) -> Result<String, Allowed> {
    let allowed =
        || Allowed("error, warn, info, debug, trace or off, or directives as info,garrick::sched=debug".into());
    let text = v.text(1024).map_err(|_| allowed())?;
    for directive in text.split(',') {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level).trim();
        if !["error", "warn", "info", "debug", "trace", "off"].contains(&level) {
            return Err(allowed());
        }
    }
    match tracing_subscriber::EnvFilter::builder().with_regex(false).parse(&text) {
        Ok(_) => Ok(text),
        Err(_) => Err(allowed()),
    }
}

fn endpoint(v: &Value) -> Result<String, Allowed> {
    let allowed =
        || Allowed("an address as http://localhost:4318 (without TLS: send through a local collector)".into());
    let text = v.text(2048).map_err(|_| allowed())?;
    match reqwest::Url::parse(&text) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Ok(text),
        _ => Err(allowed()),
    }
}

/// The key of that path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.path == path)
}

/// The sections, in order.
pub fn sections() -> Vec<&'static str> {
    let mut names: Vec<_> = KEYS.iter().filter_map(|k| k.path.split('.').next()).collect();
    names.dedup();
    names
}

/// The keys of a section, without its name.
pub fn keys_of(section: &str) -> Vec<&'static str> {
    KEYS.iter().filter_map(|k| k.path.strip_prefix(section)?.strip_prefix('.')).collect()
}
