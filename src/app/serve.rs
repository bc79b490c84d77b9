//! Start and stop of a server.
//!
//! Start: store → door → model → lanes → actors → HTTP. Nothing listens before everything below it works. Stop, on
//! SIGTERM or SIGINT: refuse new work, let running streams finish up to a limit, end the rest with an error event, close
//! the listener, close the store. A second signal ends the waiting at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;

use super::descriptors;
use super::engine::{self, Engine, EngineError, Progress, Summary};
use crate::actors::auth::AuthActor;
use crate::actors::quota::QuotaActor;
use crate::actors::seat::Seat;
use crate::actors::services::{LiveRequests, Services, Timeouts};
use crate::actors::stream::StreamLimits;
use crate::actors::supervisor::{LaneSeed, Wards};
use crate::api::{self, Bound, Edge};
use crate::base::clock;
use crate::base::config::{self, Config, KvDtype};
use crate::base::metrics::{Served, metrics};
use crate::exec::BLOCK_TOKENS;
use crate::gate::admission::{Admission, Limits};
use crate::gate::auth::{Access, Doorkeeper, OpenAbroad, access};
use crate::sched::LaneConfigError;
use crate::store::{Store, StoreError};

/// How often a drain looks whether everyone has left.
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// After the error events were sent: time for them to reach the sockets.
const LAST_WORDS: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    OpenAbroad(#[from] OpenAbroad),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the scheduler's limits do not fit together: {0}")]
    Lane(#[from] LaneConfigError),
    #[error("cannot listen on {address}: {source}; set server.listen (or --listen) to a free port")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("no lane is left: start the server again, which finds the devices that can be used")]
    NoLaneLeft,
    #[error("the server failed: {0}")]
    Io(#[from] std::io::Error),
}

/// What a server says of itself once it answers.
pub struct Started<'a> {
    pub address: SocketAddr,
    pub model: &'a str,
    pub summary: &'a Summary,
    pub access: Access,
}

/// Runs a server until it is told to stop. `announce` is called once it answers.
pub async fn serve(config: Config, progress: Progress<'_>, announce: impl FnOnce(Started)) -> Result<(), ServeError> {
    descriptors::make_room(config.server.max_connections);
    let store = Store::open(&config.store.path).await?;
    let access = access(config.server.listen, store.count_keys().await?)?;
    let Engine { model, seeds, summary } = engine::build(&config, progress)?;
    let name = model.name.clone();
    let bound = bind(&config)?;
    describe(&config, &name, &seeds);
    let wards = Wards::default();
    let lanes = wards.start_lanes(seeds)?;
    let supervisor = Arc::new(Seat::default());
    let services = Arc::new(Services {
        model: Arc::new(model),
        lanes,
        admission: Admission::new(Limits {
            max_requests: config.admission.max_requests,
            max_waiting_tokens: config.admission.max_waiting_tokens,
        }),
        auth: start_auth(&wards, &store, access, &config.auth),
        quota: {
            let quota = QuotaActor::new();
            wards.start("Quota", move || quota.clone())
        },
        supervisor: supervisor.clone(),
        prepare_turns: Arc::new(Semaphore::new(config.admission.tokenizer_threads)),
        stream_limits: StreamLimits {
            stall_timeout: Duration::from_secs(config.server.stall_timeout_s),
            max_buffer_bytes: config.server.max_stream_buffer_bytes,
        },
        timeouts: Timeouts {
            default_deadline: config.admission.default_timeout_ms.map(Duration::from_millis),
            max_deadline: Duration::from_millis(config.admission.max_timeout_ms),
            heartbeat: Duration::from_secs(config.server.heartbeat_s),
            max_step: Duration::from_secs(config.engine.max_step_s),
        },
        live: LiveRequests::default(),
    });
    // Before the port answers: a signal that comes with the first request must find its handler.
    let signals = Signals::new()?;
    let address = bound.address;
    let server = bound.serve(services.clone(), edge(&config))?;
    let handle = server.handle();
    let running = actix::spawn(server);
    announce(Started { address, model: &name, summary: &summary, access });
    let drain_limit = Duration::from_secs(config.server.drain_timeout_s);
    let end = tokio::select! {
        end = signals.drain(&services, drain_limit) => end,
        () = wards.keep(supervisor) => Ok(()),
    };
    handle.stop(true).await;
    store.close().await;
    running.await.map_err(std::io::Error::other)??;
    end
}

/// What metrics say that does not change.
fn describe(config: &Config, name: &str, seeds: &[LaneSeed]) {
    let word = |value: KvDtype| match value {
        KvDtype::Auto => "auto",
        KvDtype::F32 => "f32",
        KvDtype::Bf16 => "bf16",
        KvDtype::Int8 => "int8",
        KvDtype::Fp8 => "fp8",
    };
    metrics().set_served(Served {
        model_name: name.to_owned(),
        block_tokens: BLOCK_TOKENS,
        num_blocks: seeds.iter().map(|seed| seed.config.num_blocks).sum(),
        cache_dtype: word(config.kv.dtype).to_owned(),
        prefix_cache: config.kv.prefix_cache,
    });
    metrics().set_max_tenants(config.telemetry.max_tenant_labels);
    metrics().permits.set(config.admission.max_requests as f64);
    metrics().max_waiting_tokens.set(config.admission.max_waiting_tokens as f64);
    // Lanes have no trouble to tell of until they are asked, and no restarts either: the series begin with the process.
    for (lane, seed) in seeds.iter().enumerate() {
        metrics().set_lane_device(lane, &seed.executor.info().device);
        drop(metrics().lane_health(lane));
    }
}

/// A new one after a death has forgotten what was looked up, and whether the server is still open.
fn start_auth(wards: &Wards, store: &Store, access: Access, config: &config::Auth) -> Arc<Seat<AuthActor>> {
    let (store, ttl, max_keys) = (store.clone(), config.cache_ttl_s * 1_000_000, config.max_cached_keys);
    let mut first = Some(Doorkeeper::new(clock::now_us(), access, ttl, max_keys));
    wards.start("Auth", move || {
        let door = first.take().unwrap_or_else(|| Doorkeeper::unsure(access, ttl, max_keys));
        AuthActor::new(store.clone(), door)
    })
}

fn bind(config: &Config) -> Result<Bound, ServeError> {
    let address = config.server.listen;
    api::bind(&config.server).map_err(|source| ServeError::Listen { address, source })
}

fn edge(config: &Config) -> Edge {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Edge {
        server: config.server.clone(),
        num_workers: config.server.num_workers(cores),
        metrics_open: config.auth.metrics_open,
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for a signal, or until no lane is left; then until everyone has left or the limit (or the patience of who
    /// sends signals) is over.
    async fn drain(mut self, services: &Services, limit: Duration) -> Result<(), ServeError> {
        let end = tokio::select! {
            () = self.next() => Ok(()),
            () = services.lanes.none_left() => Err(ServeError::NoLaneLeft),
        };
        services.live.start_draining();
        tracing::info!(requests = services.live.len(), limit_s = limit.as_secs(), "draining");
        let deadline = Instant::now() + limit;
        tokio::select! {
            () = all_left(services, deadline) => {}
            () = self.next() => tracing::warn!("a second signal: not waiting any longer"),
        }
        if !services.live.is_empty() {
            tracing::warn!(requests = services.live.len(), "ending what is still running");
            services.live.shut_down();
            all_left(services, Instant::now() + LAST_WORDS).await;
        }
        end
    }
}

async fn all_left(services: &Services, deadline: Instant) {
    while !services.live.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
}
