//! What is typed: clap's definitions, and nothing but texts where the configuration decides what is legal.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

const AFTER_HELP: &str = "\
Configuration, weakest first: built-in defaults, config.yaml (or --config FILE), environment variables
GARRICK__SECTION__KEY, --set section.key=value, named options.

Exit status: 0 done; 64 wrong arguments, configuration or input; 66 the model cannot be opened;
69 not available (the port is taken, the server does not answer); 70 internal error.";

/// An LLM inference server: OpenAI's API, continuous batching, paged KV cache, keys and quotas, in one program.
#[derive(Debug, Parser)]
#[command(name = "garrick", version, after_help = AFTER_HELP, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Talk to a running server from the terminal
    ///
    /// Reads one message from each line of standard input and prints the answers as they come. Ctrl-C ends the answer,
    /// a second one (or the end of input) the chat.
    Chat(ChatArgs),
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
    /// Independent batches [engine.lanes]
    #[arg(long, value_name = "N")]
    pub lanes: Option<String>,
    /// Compute threads over all lanes [engine.threads]
    #[arg(long, value_name = "N")]
    pub threads: Option<String>,
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
