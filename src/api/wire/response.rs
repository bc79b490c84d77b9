//! Answers of chat and text completions, whole and in chunks. They borrow: a chunk is written for every token.

use serde::Serialize;
use utoipa::ToSchema;

use super::logprobs::{ChatLogprobs, CompletionLogprobs, PromptLogprobs};
use super::schema;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
    pub prompt_tokens_details: PromptTokensDetails,
    pub completion_tokens_details: CompletionTokensDetails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    pub cached_tokens: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct CompletionTokensDetails {
    /// Always 0: thinking is text like any other here.
    pub reasoning_tokens: u64,
}

impl Usage {
    pub fn new(prompt_tokens: u64, cached_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            completion_tokens_details: CompletionTokensDetails { reasoning_tokens: 0 },
        }
    }
}

/// What every answer and every chunk of a request repeats.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Head<'a> {
    pub id: &'a str,
    /// See the constants.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: &'a str,
    /// Changes when the same seed may give another text: program and model.
    #[schema(required = true)]
    pub system_fingerprint: Option<&'a str>,
}

impl Head<'_> {
    pub const CHAT: &'static str = "chat.completion";
    pub const CHAT_CHUNK: &'static str = "chat.completion.chunk";
    /// Whole and in chunks.
    pub const TEXT: &'static str = "text_completion";
}

/// A whole chat completion.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatCompletion<'a> {
    #[serde(flatten)]
    pub head: Head<'a>,
    pub choices: Vec<ChatChoice<'a>>,
    pub usage: Usage,
    /// Not OpenAI's (vLLM's): one entry for each prompt token, the first null; only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<PromptLogprobs>>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice<'a> {
    pub index: u32,
    pub message: ChatMessage<'a>,
    #[schema(required = true)]
    pub logprobs: Option<ChatLogprobs<'a>>,
    /// `stop` or `length`.
    #[schema(schema_with = schema::finish_reason)]
    pub finish_reason: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatMessage<'a> {
    /// Always `assistant`.
    pub role: &'static str,
    pub content: &'a str,
    /// Always null.
    #[schema(schema_with = schema::null, required = true)]
    pub refusal: Option<()>,
}

impl<'a> ChatMessage<'a> {
    pub fn new(content: &'a str) -> Self {
        Self { role: "assistant", content, refusal: None }
    }
}

/// `usage` of a chunk: absent unless asked for, then null on every chunk but the last, which has no choices.
#[derive(Debug, Clone, Copy)]
pub enum ChunkUsage {
    NotAsked,
    NotYet,
    Is(Usage),
}

impl ChunkUsage {
    fn is_absent(&self) -> bool {
        matches!(self, ChunkUsage::NotAsked)
    }
}

impl Serialize for ChunkUsage {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ChunkUsage::NotAsked | ChunkUsage::NotYet => serializer.serialize_none(),
            ChunkUsage::Is(usage) => usage.serialize(serializer),
        }
    }
}

/// One event of a chat stream.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChunk<'a> {
    #[serde(flatten)]
    pub head: Head<'a>,
    pub choices: &'a [ChatChunkChoice<'a>],
    #[serde(skip_serializing_if = "ChunkUsage::is_absent")]
    #[schema(value_type = Option<Usage>)]
    pub usage: ChunkUsage,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChunkChoice<'a> {
    pub index: u32,
    pub delta: ChatDelta<'a>,
    #[schema(required = true)]
    pub logprobs: Option<ChatLogprobs<'a>>,
    #[schema(schema_with = schema::finish_reason_or_null, required = true)]
    pub finish_reason: Option<&'static str>,
}

/// What is new: the first chunk of a choice has the role, the last may have nothing.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
}

impl<'a> ChatDelta<'a> {
    /// Opens a choice: role, and content that is empty yet.
    pub fn opening() -> Self {
        Self { role: Some("assistant"), content: Some("") }
    }

    pub fn text(content: &'a str) -> Self {
        Self { role: None, content: Some(content) }
    }
}

/// A whole text completion.
#[derive(Debug, Serialize, ToSchema)]
pub struct Completion<'a> {
    #[serde(flatten)]
    pub head: Head<'a>,
    pub choices: Vec<CompletionChoice<'a>>,
    pub usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice<'a> {
    pub index: u32,
    pub text: &'a str,
    #[schema(required = true)]
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`.
    #[schema(schema_with = schema::finish_reason_or_null, required = true)]
    pub finish_reason: Option<&'static str>,
    /// Not OpenAI's (vLLM's): one entry for each prompt token, the first null; only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<PromptLogprobs>>>,
}

/// One event of a text stream; `finish_reason` is null on all but a choice's last.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChunk<'a> {
    #[serde(flatten)]
    pub head: Head<'a>,
    pub choices: &'a [CompletionChoice<'a>],
    #[serde(skip_serializing_if = "ChunkUsage::is_absent")]
    #[schema(value_type = Option<Usage>)]
    pub usage: ChunkUsage,
}
