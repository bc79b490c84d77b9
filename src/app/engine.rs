//! From the configuration to lanes that can start: opens the model, puts it on its device, divides memory and threads.

use std::path::Path;
use std::sync::Arc;

use super::cores;
use super::memory::{self, Demand, TooLittle};
use crate::actors::supervisor::LaneSeed;
use crate::base::clock;
use crate::base::config::{
    Compute as ComputeChoice, Config, Isa as IsaChoice, KvDtype as KvChoice, SamplingDefaults, Scheduler, Speculative,
    Weights as WeightsChoice,
};
use crate::exec::cpu::{self, Compute, CpuError, CpuOps, CpuOptions, Format, Isa, Peaks, Stored};
use crate::exec::fake::{FakeExecutor, FakeSpec, FakeSpecError, text};
use crate::exec::runner::ModelExecutor;
use crate::exec::{BLOCK_TOKENS, Executor};
use crate::model::decoder::Decoder;
use crate::model::ops::DeviceError;
use crate::model::ops::KvDtype;
use crate::model::source::{self, ChatSource, GenerationDefaults, ModelError, ModelSource};
use crate::model::text::{ChatError, ChatTemplate, TextError, Tokenizer};
use crate::model::weights::{Dtype, WeightsError};
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
    #[error(transparent)]
    Cpu(#[from] CpuError),
    #[error(transparent)]
    Device(#[from] DeviceError),
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
    let num_blocks = num_blocks(config, FAKE_BLOCK_BYTES, max_model_len)?;
    let executors = (0..config.engine.lanes)
        .map(|_| Box::new(FakeExecutor::new(spec.clone(), num_blocks)) as Box<dyn Executor>)
        .collect();
    let (eos_tokens, generation) = (vec![spec.end_token()], GenerationDefaults::default());
    let side = TextSide { tokenizer, chat: text::chat_source(), eos_tokens, generation };
    let sizes = Sizes { vocab_size: spec.vocab as usize, max_model_len, num_blocks, block_bytes: FAKE_BLOCK_BYTES };
    let about = About { model: format!("{spec} (no model: tokens are made up)"), ..About::default() };
    finish(config, side, executors, sizes, about)
}

fn real(config: &Config, progress: Progress) -> Result<Engine, EngineError> {
    let source = open(config, progress)?;
    cpu::give_back_free();
    // As asked for, or the model's own: the spec is made for one.
    let max_model_len = source.spec.max_positions;
    let (isa, compute, weights) = (isa(config), compute(config), weights(config));
    let dtype = kv_dtype(config, &source);
    let block_bytes = cpu::kv_bytes_per_block(&source.spec, dtype).ok_or(EngineError::KvShape)?;

    let lanes = config.engine.lanes;
    let threads = threads(config);
    let options = |lane: usize| CpuOptions {
        threads: threads / lanes + usize::from(lane < threads % lanes),
        isa,
        compute,
        weights,
    };
    let mut first = CpuOps::new(options(0))?;
    let mut on_load = |done, total| progress("loading weights", done, total);
    let decoder = Decoder::load(&mut first, &source.spec, &source.tensors, &mut on_load)?;
    let num_blocks = num_blocks(config, block_bytes, max_model_len)?;
    let parameters: usize = source.tensors.values().map(|t| t.num_elements()).sum();
    let about = About {
        model: format!("{}, {:.1} M parameters", source.spec.model_type, parameters as f64 / 1e6),
        weights: describe_weights(&first),
        warnings: describe_obstacles(&first),
    };

    let shared: Vec<_> = (1..lanes)
        .map(|lane| {
            let mut ops = CpuOps::new(options(lane))?;
            let decoder = decoder.share(&mut ops);
            Ok((ops, decoder))
        })
        .collect::<Result<_, CpuError>>()?;
    let executors = std::iter::once((first, decoder))
        .chain(shared)
        .map(|(ops, decoder)| {
            let device = format!("cpu ({}, {} thread(s))", ops.isa(), ops.threads());
            Ok(Box::new(ModelExecutor::new(ops, decoder, device, dtype, num_blocks)?) as Box<dyn Executor>)
        })
        .collect::<Result<_, DeviceError>>()?;
    let sizes = Sizes { vocab_size: source.spec.vocab_size, max_model_len, num_blocks, block_bytes };
    let ModelSource { tokenizer, chat, eos_tokens, generation, .. } = source;
    finish(config, TextSide { tokenizer, chat, eos_tokens, generation }, executors, sizes, about)
}

/// As "bf16, 942 MiB, computed in bf16", for every format that there is.
fn describe_weights(ops: &CpuOps) -> String {
    let one = |s: &Stored| format!("{}, {} MiB, computed in {}", s.format, s.bytes >> 20, s.compute);
    ops.stored().iter().map(one).collect::<Vec<_>>().join("; ")
}

fn describe_obstacles(ops: &CpuOps) -> Vec<String> {
    let asked = ops.compute();
    let one = |s: &Stored| {
        let obstacle = s.obstacle(asked, ops.isa())?;
        Some(format!(
            "engine.compute={asked} does not apply to {} MiB of {} weights, which are computed in {}: {obstacle}",
            s.bytes >> 20,
            s.format,
            s.compute
        ))
    };
    ops.stored().iter().filter_map(one).collect()
}

fn open(config: &Config, progress: Progress) -> Result<ModelSource, EngineError> {
    let mut on_open = |done, total| progress("opening the model", done, total);
    let max_model_len = config.model.max_model_len.map(|len| len as usize);
    Ok(source::open(Path::new(&config.model.path), max_model_len, &mut on_open)?)
}

fn isa(config: &Config) -> Option<Isa> {
    match config.engine.isa {
        IsaChoice::Auto => None,
        IsaChoice::Avx512Dot => Some(Isa::Avx512Dot),
        IsaChoice::Avx512 => Some(Isa::Avx512),
        IsaChoice::Avx2 => Some(Isa::Avx2),
        IsaChoice::Scalar => Some(Isa::Scalar),
    }
}

fn compute(config: &Config) -> Compute {
    match config.engine.compute {
        ComputeChoice::F32 => Compute::F32,
        ComputeChoice::Bf16 => Compute::Bf16,
        ComputeChoice::Int8 => Compute::Int8,
    }
}

fn weights(config: &Config) -> Option<Format> {
    match config.engine.weights {
        WeightsChoice::Auto => None,
        WeightsChoice::F32 => Some(Format::F32),
        WeightsChoice::F16 => Some(Format::F16),
        WeightsChoice::Bf16 => Some(Format::Bf16),
        WeightsChoice::Int8 => Some(Format::Int8),
        WeightsChoice::Int4Of32 => Some(Format::Int4Min(1)),
        WeightsChoice::Int4 => Some(Format::Int4Min(2)),
        WeightsChoice::Int4Of128 => Some(Format::Int4Min(4)),
    }
}

/// What the machine gives at most, with the configured threads and level.
pub fn probe(config: &Config) -> Result<Peaks, CpuError> {
    cpu::probe(CpuOptions { threads: threads(config), isa: isa(config), ..CpuOptions::default() })
}

/// `auto` keeps the KV cache in 16 bits when the weights are, or activations are rounded anyway; quantised weights stand
/// for float32 numbers.
fn kv_dtype(config: &Config, source: &ModelSource) -> KvDtype {
    let is_wide = |dtype: Dtype| dtype == Dtype::F32 || dtype.is_quantised();
    let weights_are_wide = || source.tensors.values().any(|t| t.shape.len() > 1 && is_wide(t.dtype));
    match config.kv.dtype {
        KvChoice::F32 => KvDtype::F32,
        KvChoice::Bf16 => KvDtype::Bf16,
        KvChoice::Int8 => KvDtype::Int8,
        KvChoice::Auto if config.engine.compute == ComputeChoice::F32 && weights_are_wide() => KvDtype::F32,
        KvChoice::Auto => KvDtype::Bf16,
    }
}

/// Compute threads over all lanes; every lane has at least one.
fn threads(config: &Config) -> usize {
    config.engine.threads.unwrap_or_else(cores::physical).max(config.engine.lanes)
}

fn num_blocks(config: &Config, block_bytes: usize, max_model_len: usize) -> Result<usize, TooLittle> {
    let demand = Demand {
        block_bytes,
        num_lanes: config.engine.lanes,
        max_running: config.scheduler.max_running,
        max_model_len,
    };
    // Where nothing says how much is free, a gigabyte is a safe guess; kv.memory overrides it.
    memory::blocks_per_lane(&config.kv, memory::free_bytes().unwrap_or(1 << 30), demand)
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

/// What people are told of a model.
#[derive(Default)]
struct About {
    model: String,
    weights: String,
    warnings: Vec<String>,
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
    num_blocks: usize,
    block_bytes: usize,
}

fn finish(
    config: &Config,
    side: TextSide,
    executors: Vec<Box<dyn Executor>>,
    sizes: Sizes,
    about: About,
) -> Result<Engine, EngineError> {
    let lane = LaneConfig {
        num_blocks: sizes.num_blocks,
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
        model: format!("{} ({}), context {} tokens", model.name, about.model, sizes.max_model_len),
        device: executors.first().map(|e| e.info().device.clone()).unwrap_or_default(),
        weights: about.weights,
        kv: format!(
            "{} blocks of {BLOCK_TOKENS} tokens a lane ({} MiB)",
            sizes.num_blocks,
            (sizes.num_blocks * sizes.block_bytes) >> 20
        ),
        lanes: format!("{}, up to {} sequences each", config.engine.lanes, config.scheduler.max_running),
        warnings: about.warnings,
    };
    let steal_window = config.scheduler.steal_window;
    let seeds =
        executors.into_iter().map(|executor| LaneSeed { executor, config: lane.clone(), steal_window }).collect();
    Ok(Engine { model, seeds, summary })
}
