//! The tree itself: one struct for each section of `config.yaml`, in the order of the file.

use std::net::{Ipv4Addr, SocketAddr};

use serde::Serialize;

/// Everything that can be configured. Serialises to the shape of `config.yaml`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Config {
    pub server: Server,
    pub model: Model,
    pub engine: Engine,
    pub kv: Kv,
    pub scheduler: Scheduler,
    pub admission: Admission,
    pub auth: Auth,
    pub quota: Quota,
    pub store: Store,
    pub telemetry: Telemetry,
}

/// HTTP.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Server {
    pub listen: SocketAddr,
    /// HTTP worker threads; see [`Server::num_workers`].
    pub workers: Option<usize>,
    pub max_body_bytes: usize,
    /// Open connections over all workers.
    pub max_connections: usize,
    /// How long a client may take to send a request's head, and again its body.
    pub read_timeout_s: u64,
    /// How long an idle connection stays open.
    pub keep_alive_s: u64,
    /// How long running streams may go on after SIGTERM.
    pub drain_timeout_s: u64,
    /// Silence on a stream after which a comment is sent.
    pub heartbeat_s: u64,
    /// A reader that takes nothing for this long is cut.
    pub stall_timeout_s: u64,
    /// Bytes that one stream may hold for a slow reader.
    pub max_stream_buffer_bytes: usize,
    /// Whether `/docs` and `/openapi.json` exist; they need no key.
    pub docs: bool,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            workers: None,
            max_body_bytes: 2 << 20,
            max_connections: 4096,
            read_timeout_s: 30,
            keep_alive_s: 75,
            drain_timeout_s: 30,
            heartbeat_s: 15,
            stall_timeout_s: 30,
            max_stream_buffer_bytes: 256 << 10,
            docs: true,
        }
    }
}

impl Server {
    /// HTTP workers on a machine of `cores`: few, since the executor wants the cores and one worker carries far more
    /// requests than a CPU model answers.
    pub fn num_workers(&self, cores: usize) -> usize {
        self.workers.unwrap_or(cores.clamp(1, 2))
    }
}

/// What is served.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Model {
    /// A checkpoint folder, a `.gguf` file, or `fake:…`.
    pub path: String,
    /// The name in the API; by default the last part of the path.
    pub served_name: Option<String>,
    /// Bound on prompt plus output, in tokens; by default the model's own.
    pub max_model_len: Option<u32>,
    pub sampling_defaults: SamplingDefaults,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            path: "models/demo".into(),
            served_name: None,
            max_model_len: None,
            sampling_defaults: SamplingDefaults::Model,
        }
    }
}

impl Model {
    /// The name in the API: the configured one, or the last part of the path (a file's without `.gguf`; `fake` for
    /// `fake:…`).
    pub fn name(&self) -> &str {
        if let Some(name) = &self.served_name {
            return name;
        }
        if self.path.starts_with("fake:") {
            return "fake";
        }
        let last = self.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        match last.strip_suffix(".gguf").unwrap_or(last) {
            // The working folder and its parents have no name in the path.
            "" | "." | ".." => "model",
            name => name,
        }
    }
}

/// Where sampling parameters that a request leaves out come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplingDefaults {
    /// The model's `generation_config.json`, then OpenAI's defaults.
    Model,
    /// OpenAI's defaults only: temperature 1, top_p 1.
    OpenAi,
}

/// Devices and how they compute.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Engine {
    pub device: Device,
    /// Lanes of this process, one for each GPU first; CPU lanes share the weights and split threads and KV memory.
    pub lanes: usize,
    /// GPUs that share each lane's model.
    pub tensor_parallel: usize,
    /// Compute threads over all lanes; by default the physical cores.
    pub threads: Option<usize>,
    pub isa: Isa,
    pub weights: Weights,
    pub compute: Compute,
    /// Whether decode steps on GPUs are launched as one graph each.
    pub cuda_graphs: bool,
    /// Whether GPUs use own kernels for every matrix product, in which no row depends on those beside it, even where there
    /// is a faster library; on the CPU it is always so.
    pub batch_invariant: bool,
    /// Folders that are searched first for CUDA's libraries, separated as in PATH.
    pub cuda_libraries: Option<String>,
    /// A folder of kernels that were compiled on this machine, which come before the program's own.
    pub cuda_kernels: Option<String>,
    /// A step that runs longer than this makes the server not ready, until it ends.
    pub max_step_s: u64,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            lanes: 1,
            tensor_parallel: 1,
            threads: None,
            isa: Isa::Auto,
            weights: Weights::Auto,
            compute: Compute::F32,
            cuda_graphs: true,
            batch_invariant: false,
            cuda_libraries: None,
            cuda_kernels: None,
            max_step_s: 30,
        }
    }
}

/// What steps run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// GPUs where there are some, else the CPU.
    Auto,
    Cpu,
    Cuda,
}

/// Instruction set of the CPU kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Isa {
    /// The best that the CPU has.
    Auto,
    /// AVX-512 with BF16 and VNNI.
    Avx512Dot,
    Avx512,
    Avx2,
    Scalar,
}

/// What activations are rounded to before they are multiplied with weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    F32,
    /// bfloat16 where the weights are bfloat16 and the CPU has the instruction.
    Bf16,
    /// Eight bits in groups where the weights are quantised.
    Int8,
}

/// What weight matrices are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// As the checkpoint has them.
    Auto,
    F32,
    F16,
    Bf16,
    /// E4M3 with a scale for each row: 8 bits a weight, on GPUs only.
    Fp8,
    /// In groups of 32 with a scale: 8.5 bits a weight.
    Int8,
    /// Above a minimum in groups of 64: 4.5 bits a weight.
    Int4,
    /// The same in groups of 32: 5 bits.
    #[serde(rename = "int4_32")]
    Int4Of32,
    /// In groups of 128: 4.25 bits.
    #[serde(rename = "int4_128")]
    Int4Of128,
}

/// KV cache.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kv {
    /// Bytes over all lanes; by default [`Kv::memory_share`] decides.
    pub memory: Option<u64>,
    /// Share of the memory that the machine (or its container), or the GPU, has left after the weights; used when `memory`
    /// is not set. By default 0.5 on the CPU and 0.9 on a GPU.
    pub memory_share: Option<f64>,
    pub dtype: KvDtype,
    pub prefix_cache: bool,
}

impl Default for Kv {
    fn default() -> Self {
        Self { memory: None, memory_share: None, dtype: KvDtype::Auto, prefix_cache: true }
    }
}

/// Type of one KV element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// Follows the weights and the way of computing.
    Auto,
    F32,
    Bf16,
    Int8,
    /// On GPUs only.
    Fp8,
}

/// Batching.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scheduler {
    /// Token budget of one step: decodes first, then chunks of prompts.
    pub max_batch_tokens: usize,
    /// How many times as long a step may take because of prompts beside running streams, about.
    pub max_slowdown: f64,
    /// Sequences that run at once in one lane.
    pub max_running: usize,
    /// Waiting jobs that a lane shows to the others, for those with room to take. 0: none are taken.
    pub steal_window: usize,
    pub speculative: Speculative,
    /// Tokens drafted for one sequence in one step, at most.
    pub num_speculative_tokens: usize,
    /// Tokens that must have stood before in the same order: so many at least, the most looked for first.
    pub prompt_lookup_min: usize,
    pub prompt_lookup_max: usize,
}

/// When tokens are drafted by prompt lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Speculative {
    /// Where it pays by what was measured.
    Auto,
    Always,
    Off,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            max_batch_tokens: 512,
            max_slowdown: 2.0,
            max_running: 64,
            steal_window: 64,
            speculative: Speculative::Auto,
            num_speculative_tokens: 8,
            prompt_lookup_min: 2,
            prompt_lookup_max: 4,
        }
    }
}

/// The door: what is let in, and for how long.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Admission {
    /// Permits: requests inside at once, waiting or running.
    pub max_requests: usize,
    /// Prompt tokens that may wait for a device at once.
    pub max_waiting_tokens: usize,
    /// Deadline of a request that names none.
    pub default_timeout_ms: Option<u64>,
    /// The longest deadline that a request may ask for.
    pub max_timeout_ms: u64,
    /// Threads that render templates and tokenise.
    pub tokenizer_threads: usize,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            max_requests: 1024,
            max_waiting_tokens: 1 << 20,
            default_timeout_ms: None,
            max_timeout_ms: 3_600_000,
            tokenizer_threads: 2,
        }
    }
}

/// Keys and who needs one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Auth {
    /// How long a key that was looked up is believed; a revoked key works at most this long.
    pub cache_ttl_s: u64,
    /// Keys (known and unknown) remembered at once.
    pub max_cached_keys: usize,
    /// Whether `/metrics` answers without a key.
    pub metrics_open: bool,
}

impl Default for Auth {
    fn default() -> Self {
        Self { cache_ttl_s: 10, max_cached_keys: 10_000, metrics_open: false }
    }
}

/// Limits that a new key gets when its maker names none. None is unlimited.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Quota {
    /// Requests in a minute.
    pub rpm: Option<u64>,
    /// Tokens, of prompt and output, in a minute.
    pub tpm: Option<u64>,
    /// Requests inside at once.
    pub concurrency: Option<u64>,
}

/// Where state is kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Store {
    /// SQLite file, created when missing.
    pub path: String,
}

impl Default for Store {
    fn default() -> Self {
        Self { path: "garrick.db".into() }
    }
}

/// Logs and traces.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Telemetry {
    pub log_format: LogFormat,
    /// Level, or directives as `info,garrick::sched=debug`.
    pub log_level: String,
    /// Base address of an OTLP/HTTP collector; traces are exported when it is set.
    pub otlp_endpoint: Option<String>,
    /// Tenants with metrics of their own; the others are counted together.
    pub max_tenant_labels: usize,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log_format: LogFormat::Pretty, log_level: "info".into(), otlp_endpoint: None, max_tenant_labels: 100 }
    }
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Pretty,
    Json,
}
