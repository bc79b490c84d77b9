//! From the configuration to lanes that can start: opens the model, puts it on its devices.

use std::path::Path;
use std::sync::Arc;

use super::devices::{self, GroupError, Lanes};
use super::memory::TooLittle;
use crate::actors::supervisor::LaneSeed;
use crate::base::clock;
use crate::base::config::{Config, SamplingDefaults, Scheduler, Speculative};
use crate::exec::cpu::{self, CpuError};
use crate::exec::cuda::device::Absent;
use crate::exec::fake::{FakeExecutor, FakeSpec, FakeSpecError, text};
use crate::exec::{BLOCK_TOKENS, Executor};
use crate::model::ops::DeviceError;
use crate::model::source::{self, ChatSource, GenerationDefaults, ModelError, ModelSource};
use crate::model::text::{ChatError, ChatTemplate, TextError, Tokenizer};
use crate::model::weights::WeightsError;
use crate::route::ServedModel;
use crate::sample::SamplingParams;
use crate::sched::{LaneConfig, Speculation};

/// Context of a fake model whose configuration sets none.
const FAKE_MODEL_LEN: usize = 8192;
/// A fake block's KV, for the arithmetic of `kv.memory`.
const FAKE_BLOCK_BYTES: usize = 16 * BLOCK_TOKENS;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("{0}")]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Fake(#[from] FakeSpecError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error("the chat template does not compile: {0}")]
    Chat(#[from] ChatError),
    #[error(transparent)]
    Memory(#[from] TooLittle),
    #[error("one KV block of this model has more bytes than can be counted; its config.json cannot be right")]
    KvShape,
    #[error("kv.dtype is fp8, which only GPUs keep, and the model runs on the CPU; use auto, f32, bf16 or int8")]
    KvOnCpu,
    #[error(transparent)]
    Cpu(#[from] CpuError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("{0}")]
    GpuMemory(String),
    #[error("engine.device is cuda, but {0}")]
    NoGpu(Absent),
    #[error(transparent)]
    Group(#[from] GroupError),
}

/// Everything that serving needs, built but not started.
pub struct Engine {
    pub model: ServedModel,
    pub seeds: Vec<LaneSeed>,
    pub summary: Summary,
}

/// What `garrick serve` and `garrick check` print.
#[derive(Debug, Clone)]
pub struct Summary {
    pub model: String,
    pub device: String,
    /// What the weights are in memory and how they are computed; empty where there are none.
    pub weights: String,
    pub kv: String,
    pub lanes: String,
    /// What was asked for and does not apply.
    pub warnings: Vec<String>,
}

/// Called with a stage's name, and bytes done and in all.
pub type Progress<'a> = &'a mut dyn FnMut(&'static str, u64, u64);

pub fn build(config: &Config, progress: Progress) -> Result<Engine, EngineError> {
    if FakeSpec::is_fake(&config.model.path) { fake(config) } else { real(config, progress) }
}

/// What the text side gets, whatever the model.
struct TextSide {
    tokenizer: Tokenizer,
    chat: ChatSource,
    eos_tokens: Vec<u32>,
    generation: GenerationDefaults,
}

fn fake(config: &Config) -> Result<Engine, EngineError> {
    let spec: FakeSpec = config.model.path.parse()?;
    let tokenizer = text::tokenizer(&spec)?;
    let max_model_len = config.model.max_model_len.map_or(FAKE_MODEL_LEN, |len| len as usize);
    let num_blocks = devices::cpu::num_blocks(config, FAKE_BLOCK_BYTES, max_model_len)?;
    let executors = (0..config.engine.lanes)
        .map(|_| Box::new(FakeExecutor::new(spec.clone(), num_blocks)) as Box<dyn Executor>)
        .collect();
    let lanes =
        Lanes { executors, num_blocks, block_bytes: FAKE_BLOCK_BYTES, weights: String::new(), warnings: Vec::new() };
    let (eos_tokens, generation) = (vec![spec.end_token()], GenerationDefaults::default());
    let side = TextSide { tokenizer, chat: text::chat_source(), eos_tokens, generation };
    let sizes = Sizes { vocab_size: spec.vocab as usize, max_model_len };
    finish(config, side, lanes, sizes, format!("{spec} (no model: tokens are made up)"))
}

fn real(config: &Config, progress: Progress) -> Result<Engine, EngineError> {
    let source = open(config, progress)?;
    cpu::give_back_free();
    let lanes = devices::open(config, &source, progress)?;
    let parameters: usize = source.tensors.values().map(|t| t.num_elements()).sum();
    let model = format!("{}, {:.1} M parameters", source.spec.model_type, parameters as f64 / 1e6);
    // As asked for, or the model's own: the spec is made for one.
    let (vocab_size, max_model_len) = (source.spec.vocab_size, source.spec.max_positions);
    let ModelSource { tokenizer, chat, eos_tokens, generation, .. } = source;
    finish(
        config,
        TextSide { tokenizer, chat, eos_tokens, generation },
        lanes,
        Sizes { vocab_size, max_model_len },
        model,
    )
}

fn open(config: &Config, progress: Progress) -> Result<ModelSource, EngineError> {
    let mut on_open = |done, total| progress("opening the model", done, total);
    let max_model_len = config.model.max_model_len.map(|len| len as usize);
    Ok(source::open(Path::new(&config.model.path), max_model_len, &mut on_open)?)
}

/// The checkpoint's word where it has one, else OpenAI's. `do_sample: false` is Hugging Face's way to say greedy.
fn sampling_defaults(generation: &GenerationDefaults) -> SamplingParams {
    let openai = SamplingParams::default();
    let greedy = generation.do_sample == Some(false);
    SamplingParams {
        temperature: if greedy { 0.0 } else { generation.temperature.unwrap_or(openai.temperature) },
        top_k: generation.top_k.unwrap_or(openai.top_k),
        top_p: generation.top_p.unwrap_or(openai.top_p),
        min_p: generation.min_p.unwrap_or(openai.min_p),
        repetition_penalty: generation.repetition_penalty.unwrap_or(openai.repetition_penalty),
        ..openai
    }
}

fn speculation(scheduler: &Scheduler) -> Option<Speculation> {
    let speculation = Speculation {
        max_drafts: scheduler.num_speculative_tokens,
        min_ngram: scheduler.prompt_lookup_min,
        max_ngram: scheduler.prompt_lookup_max,
        always: scheduler.speculative == Speculative::Always,
    };
    (scheduler.speculative != Speculative::Off).then_some(speculation)
}

struct Sizes {
    vocab_size: usize,
    max_model_len: usize,
}

/// `about` is what people are told of the model.
fn finish(config: &Config, side: TextSide, lanes: Lanes, sizes: Sizes, about: String) -> Result<Engine, EngineError> {
    let Lanes { executors, num_blocks, block_bytes, weights, warnings } = lanes;
    let lane = LaneConfig {
        num_blocks,
        max_batch_tokens: config.scheduler.max_batch_tokens,
        max_chunk_tokens: config.scheduler.max_batch_tokens,
        max_slowdown: config.scheduler.max_slowdown,
        max_running: config.scheduler.max_running,
        max_model_len: sizes.max_model_len,
        prefix_cache: config.kv.prefix_cache,
        speculation: speculation(&config.scheduler),
    };
    let model = ServedModel {
        name: config.model.name().to_owned(),
        chat_template: ChatTemplate::from_source(&side.chat)?,
        tokenizer: side.tokenizer,
        bos_token: side.chat.bos_token,
        eos_token: side.chat.eos_token,
        vocab_size: sizes.vocab_size,
        max_model_len: sizes.max_model_len,
        max_sequence_tokens: lane.max_sequence_tokens(),
        max_running: lane.max_running,
        eos_tokens: Arc::from(side.eos_tokens),
        defaults: match config.model.sampling_defaults {
            SamplingDefaults::Model => sampling_defaults(&side.generation),
            SamplingDefaults::OpenAi => SamplingParams::default(),
        },
        fingerprint: format!("garrick-{}-{}", env!("CARGO_PKG_VERSION"), config.model.name()),
        created: clock::unix_s(),
    };
    let summary = Summary {
        model: format!("{} ({about}), context {} tokens", model.name, sizes.max_model_len),
        device: executors.first().map(|e| e.info().device.clone()).unwrap_or_default(),
        weights,
        kv: format!("{num_blocks} blocks of {BLOCK_TOKENS} tokens a lane ({} MiB)", (num_blocks * block_bytes) >> 20),
        lanes: format!("{}, up to {} sequences each", config.engine.lanes, config.scheduler.max_running),
        warnings,
    };
    let steal_window = config.scheduler.steal_window;
    let seeds =
        executors.into_iter().map(|executor| LaneSeed { executor, config: lane.clone(), steal_window }).collect();
    Ok(Engine { model, seeds, summary })
}
