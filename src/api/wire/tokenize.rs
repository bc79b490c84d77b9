//! `POST /tokenize`, `/detokenize` and the answer of `/v1/chat/completions/render`. The first two have vLLM's shapes.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::chat::{MAX_MODEL_BYTES, TemplateInput, take_tools};
use super::fields::{self, Fields};
use super::messages::take_messages;
use crate::base::error::Error;
use crate::model::TokenId;

/// The body's own limit is met first.
pub(super) const MAX_TOKENS: usize = 1 << 24;

#[derive(Debug, Clone, PartialEq)]
pub struct TokenizeRequest {
    /// None is the served one.
    pub model: Option<String>,
    pub input: TokenizeInput,
    /// Whether the tokenizer adds its beginning-of-text and the like. By default a text gets them; a rendered chat
    /// does not, since its template writes them.
    pub add_special_tokens: bool,
    pub return_token_strs: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum TokenizeInput {
    Text(String),
    /// A JSON list of messages, and of tools if there are any.
    Chat {
        messages: Value,
        tools: Option<Value>,
        template: TemplateInput,
    },
}

impl TokenizeRequest {
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        let mut fields = Fields::of_body(body)?;
        let model = fields.string("model", MAX_MODEL_BYTES)?;
        let input = match fields.string("prompt", usize::MAX)? {
            Some(text) => TokenizeInput::Text(text),
            None if !fields.has("messages") => return Err(fields.missing("prompt", "give a text, or else messages")),
            None => TokenizeInput::Chat {
                messages: take_messages(&mut fields)?,
                tools: take_tools(&mut fields)?,
                template: TemplateInput::take(&mut fields)?,
            },
        };
        let is_text = matches!(input, TokenizeInput::Text(_));
        let add_special_tokens = fields.bool("add_special_tokens")?.unwrap_or(is_text);
        let return_token_strs = fields.bool("return_token_strs")?.unwrap_or(false);
        fields.finish()?;
        Ok(Self { model, input, add_special_tokens, return_token_strs })
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct TokenizeResponse<'a> {
    pub count: usize,
    pub max_model_len: usize,
    #[schema(value_type = Vec<u32>)]
    pub tokens: &'a [TokenId],
    /// Null unless asked for.
    #[schema(required = true)]
    pub token_strs: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetokenizeRequest {
    /// None is the served one.
    pub model: Option<String>,
    pub tokens: Vec<TokenId>,
}

impl DetokenizeRequest {
    pub fn parse(body: &[u8], vocab_size: u32) -> Result<Self, Error> {
        let mut fields = Fields::of_body(body)?;
        let model = fields.string("model", MAX_MODEL_BYTES)?;
        let tokens = fields.list("tokens", MAX_TOKENS)?;
        let tokens = tokens.ok_or_else(|| fields.missing("tokens", "give a list of token ids"))?;
        let tokens = fields::tokens("tokens", tokens, vocab_size)?;
        fields.finish()?;
        Ok(Self { model, tokens })
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct DetokenizeResponse<'a> {
    pub prompt: &'a str,
}

/// The prompt that a chat request becomes.
#[derive(Debug, Serialize, ToSchema)]
pub struct RenderResponse<'a> {
    pub prompt: &'a str,
    pub count: usize,
    #[schema(value_type = Vec<u32>)]
    pub tokens: &'a [TokenId],
}
