//! What is typed: clap's definitions, and nothing but texts where the configuration decides what is legal.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};

use crate::base::config::MAX_QUOTA;

const AFTER_HELP: &str = "\
Configuration, weakest first: built-in defaults; config.yaml (or --config FILE); environment variables as \
GARRICK__SERVER__LISTEN; --set section.key=value; named options.

Exit status: 0 done; 64 wrong arguments, configuration or input; 66 the model cannot be opened; 69 not available (the \
port is taken, the server does not answer); 70 internal error; 75 no lane is left (devices lost), start it again.";

/// An LLM inference server: OpenAI's API, continuous batching, paged KV cache, keys and quotas, in one program.
#[derive(Debug, Parser)]
#[command(name = "garrick", version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Without a command: serve.
    #[command(flatten)]
    pub serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, on the stack, once")]
pub enum Command {
    /// Serve a model over HTTP (also what the program does without a command)
    Serve(ServeArgs),
    /// Check the configuration and open the model, say what would run, and stop
    Check(CheckArgs),
    /// Talk to a running server from the terminal
    ///
    /// Reads one message from each line of standard input and prints the answers as they come. Ctrl-C ends the answer,
    /// a second one (or the end of input) the chat.
    Chat(ChatArgs),
    /// Print the prompt text that a chat request becomes
    ///
    /// With --model, messages are prepared as the server does it; with --chat-template they reach the template as they
    /// are.
    Render(RenderArgs),
    /// Make, list and revoke API keys
    Keys(KeysArgs),
    /// Compile the CUDA kernels for a GPU that the program has none for, or anew
    Kernels(KernelsArgs),
    /// Measure a model without a server: prefill and decode, tokens a second
    Bench(BenchArgs),
    /// Measure a running server over HTTP: events and requests a second, times, processor time
    ///
    /// Keeps a number of streamed chat completions going, each on its own connection and the next as soon as one has
    /// ended, and counts events without reading their JSON. Works with any server of OpenAI's API over plain HTTP.
    Load(LoadArgs),
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// Configuration file [default: config.yaml, if there is one]
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// Sets one key, as kv.dtype=bf16; repeatable
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Configuration")]
    pub set: Vec<String>,
}

/// What to run and on what; each option stands for a key.
#[derive(Debug, Clone, Default, Args)]
pub struct ModelArgs {
    /// Checkpoint folder, .gguf file, or fake:… [model.path]
    #[arg(long, value_name = "PATH")]
    pub model: Option<String>,
    /// Name of the model in the API [model.served_name]
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,
    /// Bound on prompt plus output, in tokens [model.max_model_len]
    #[arg(long, value_name = "TOKENS")]
    pub max_model_len: Option<String>,
    /// What it runs on: auto (a GPU where there is one), cpu or cuda [engine.device]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Independent batches [engine.lanes]
    #[arg(long, value_name = "N")]
    pub lanes: Option<String>,
    /// Compute threads over all lanes [engine.threads]
    #[arg(long, value_name = "N")]
    pub threads: Option<String>,
    /// What weights are stored as: auto, f32, f16, bf16, fp8, int8, int4, int4_32 or int4_128 [engine.weights]
    #[arg(long, value_name = "FORMAT")]
    pub weights: Option<String>,
    /// What activations are rounded to: f32, bf16 or int8 [engine.compute]
    #[arg(long, value_name = "FORMAT")]
    pub compute: Option<String>,
    /// KV cache, as 2GiB [kv.memory]
    #[arg(long, value_name = "BYTES")]
    pub kv_memory: Option<String>,
}

/// What a server is started with.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// Address and port [server.listen]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// What is checked.
#[derive(Debug, Clone, Default, Args)]
pub struct CheckArgs {
    /// Say first which GPUs and libraries of CUDA were found, and which kernels they take
    #[arg(long)]
    pub cuda: bool,
    #[command(flatten)]
    pub serve: ServeArgs,
}

#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// Address of the server
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub url: String,
    /// API key [default: the environment variable GARRICK_API_KEY]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Served name of the model
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub model: String,
    /// System message that opens the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// 0 is greedy [default: the server's]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Longest answer, in tokens [default: the server's]
    #[arg(long, value_name = "TOKENS")]
    pub max_tokens: Option<u32>,
}

/// Exactly one of the two says where the template is.
#[derive(Debug, Clone, Args)]
pub struct RenderArgs {
    /// Checkpoint folder that carries the template
    #[arg(long, value_name = "PATH", required_unless_present = "chat_template", conflicts_with = "chat_template")]
    pub model: Option<PathBuf>,
    /// The template itself (Jinja)
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// JSON with messages, tools, add_generation_prompt, kwargs, bos_token, eos_token, now; - is standard input
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Sequences at once, one run for each number
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,4,16", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: Vec<u32>,
    /// Length of each prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub prompt_tokens: u32,
    /// Tokens generated by each sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub output_tokens: u32,
    /// Runs of each measurement; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,
    /// Measure the machine instead: memory bandwidth and multiplications
    #[arg(long)]
    pub probe: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Address of the server
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub url: String,
    /// API key [default: the environment variable GARRICK_API_KEY]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Served name of the model
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub model: String,
    /// Streams at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub streams: u32,
    /// max_tokens of each answer
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub tokens: u32,
    /// The user's message
    #[arg(long, value_name = "TEXT", default_value = "Tell me a story.")]
    pub prompt: String,
    /// Ask for the full length even where the model would end (vLLM's extension; Garrick knows it too)
    #[arg(long)]
    pub ignore_eos: bool,
    /// Seconds before anything is counted
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = seconds)]
    pub warm_up: f64,
    /// Seconds that count
    #[arg(long, value_name = "S", default_value_t = 5.0, value_parser = seconds)]
    pub duration: f64,
    /// The server's process: its processor time, with that of its children, is reported too
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// From nothing to a day.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("must be a number of seconds from 0 to 86400".into()),
    }
}

#[derive(Debug, Clone, Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    pub command: KeysCommand,
    #[command(flatten)]
    pub config: ConfigArgs,
}

#[derive(Debug, Clone, Subcommand)]
pub enum KeysCommand {
    /// Make a key and print it, once: only its hash is kept
    Create(CreateKeyArgs),
    /// List the keys, without their secrets
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Make a key invalid; servers notice within auth.cache_ttl_s
    Revoke {
        /// The key's id, as listed
        id: String,
    },
}

#[derive(Debug, Clone, Args)]
pub struct KernelsArgs {
    #[command(subcommand)]
    pub command: KernelsCommand,
    #[command(flatten)]
    pub config: ConfigArgs,
}

#[derive(Debug, Clone, Subcommand)]
pub enum KernelsCommand {
    /// Compile them with NVRTC, or a toolkit's nvcc, and keep them
    ///
    /// A start looks in engine.cuda_kernels before it takes the program's own kernels, and in the default folder where the
    /// program has none. No GPU is needed.
    Build(BuildKernelsArgs),
}

#[derive(Debug, Clone, Args)]
pub struct BuildKernelsArgs {
    /// What to compile for, as sm_103a; repeatable [default: the GPUs of this machine]
    #[arg(long, value_name = "CHIP", value_parser = chip)]
    pub chip: Vec<String>,
    /// Compile with this program instead of NVRTC
    #[arg(long, value_name = "PATH")]
    pub nvcc: Option<PathBuf>,
    /// Where they go [default: engine.cuda_kernels, else ~/.cache/garrick/kernels]
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
}

/// From sm_80 on: two or three digits, and what may follow them.
fn chip(text: &str) -> Result<String, String> {
    let number = text.strip_prefix("sm_").unwrap_or_default().trim_end_matches(['a', 'f']);
    let suffix = text.len() - "sm_".len().min(text.len()) - number.len();
    match number.parse::<u16>() {
        Ok(80..=999) if suffix <= 1 && !number.starts_with('+') => Ok(text.to_owned()),
        _ => Err("must be a chip from sm_80 on, as sm_90a, sm_103a or sm_120".into()),
    }
}

#[derive(Debug, Clone, Args)]
pub struct CreateKeyArgs {
    /// Whom the key belongs to; keys of one tenant share cached prefixes
    #[arg(long, value_name = "NAME")]
    pub tenant: String,
    /// What the key is for, as people call it
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// Requests in a minute, or unlimited [default: quota.rpm]
    #[arg(long, value_name = "N")]
    pub rpm: Option<Limit>,
    /// Tokens in a minute, or unlimited [default: quota.tpm]
    #[arg(long, value_name = "N")]
    pub tpm: Option<Limit>,
    /// Requests at once, or unlimited [default: quota.concurrency]
    #[arg(long, value_name = "N")]
    pub concurrency: Option<Limit>,
}

/// A number, or `unlimited` (none).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Option<u64>);

impl Limit {
    /// What was given, or else the configuration's default.
    pub fn or_default(given: Option<Limit>, default: Option<u64>) -> Option<u64> {
        given.map_or(default, |limit| limit.0)
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unlimited" {
            return Ok(Limit(None));
        }
        match text.parse::<u64>() {
            Ok(n) if (1..=MAX_QUOTA).contains(&n) => Ok(Limit(Some(n))),
            _ => Err(format!("must be an integer from 1 to {MAX_QUOTA}, or unlimited")),
        }
    }
}
