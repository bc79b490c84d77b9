//! `POST /v1/chat/completions`, and the same body for the render route.

use serde_json::{Map, Value};

use super::fields::{self, Fields};
use super::messages::take_messages;
use super::sampling::{MAX_LOGPROBS, Sampling, Streaming, take_ignored};
use crate::base::error::Error;

pub const MAX_TOOLS: usize = 128;
pub(super) const MAX_KWARGS: usize = 64;
/// Values, counted at every depth, that a template's variables or tools may be made of: parsed they take much more memory
/// than the body that they came in.
pub const MAX_TEMPLATE_VALUES: usize = 10_000;
/// Of which one kind is known.
pub(super) const MAX_MODALITIES: usize = 8;
pub(super) const MAX_MODEL_BYTES: usize = 256;

/// Fields of OpenAI's that mean something and are not built here: dropping one would answer another question.
const UNSUPPORTED: &[&str] = &[
    "audio",
    "function_call",
    "functions",
    "moderation",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "tool_choice",
    "verbosity",
    "web_search_options",
];

/// Names that the server itself gives to a template.
const OWN_VARIABLES: &[&str] = &["messages", "tools", "add_generation_prompt", "bos_token", "eos_token"];

/// A validated chat request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    pub model: String,
    /// A JSON list of at least one message.
    pub messages: Value,
    pub template: TemplateInput,
    pub sampling: Sampling,
    pub streaming: Streaming,
}

/// What else the chat template reads.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateInput {
    pub add_generation_prompt: bool,
    pub kwargs: Map<String, Value>,
}

/// A chat request that is rendered and not run: it may carry tools.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderRequest {
    pub chat: ChatRequest,
    /// A JSON list of objects.
    pub tools: Option<Value>,
}

impl ChatRequest {
    pub fn parse(body: &[u8], vocab_size: u32) -> Result<Self, Error> {
        let mut fields = Fields::of_body(body)?;
        // Older and newer clients send an empty list for none.
        if fields.list("tools", MAX_TOOLS)?.is_some_and(|tools| !tools.is_empty()) {
            return Err(fields::unsupported("tools", "remove it"));
        }
        Self::of(fields, vocab_size)
    }

    fn of(mut fields: Fields, vocab_size: u32) -> Result<Self, Error> {
        let model = take_model(&mut fields)?;
        let messages = take_messages(&mut fields)?;
        let mut sampling = Sampling::take(&mut fields, vocab_size)?;
        sampling.logprobs = take_logprobs(&mut fields)?;
        let streaming = Streaming::take(&mut fields)?;
        refuse_prompt_logprobs_of_streams(&sampling, streaming)?;
        let template = TemplateInput::take(&mut fields)?;
        take_ignored(&mut fields)?;
        take_trivial(&mut fields)?;
        fields.refuse(UNSUPPORTED)?;
        fields.finish()?;
        Ok(Self { model, messages, template, sampling, streaming })
    }
}

impl RenderRequest {
    pub fn parse(body: &[u8], vocab_size: u32) -> Result<Self, Error> {
        let mut fields = Fields::of_body(body)?;
        let tools = take_tools(&mut fields)?;
        Ok(Self { chat: ChatRequest::of(fields, vocab_size)?, tools })
    }
}

impl TemplateInput {
    pub(super) fn take(fields: &mut Fields) -> Result<Self, Error> {
        let add_generation_prompt = fields.bool("add_generation_prompt")?.unwrap_or(true);
        if fields.bool("continue_final_message")? == Some(true) {
            let error = fields::unsupported("continue_final_message = true", "leave it out or set it to false");
            return Err(error.with_param("continue_final_message"));
        }
        let kwargs = fields.object("chat_template_kwargs")?.map(Fields::into_rest).unwrap_or_default();
        if kwargs.len() > MAX_KWARGS {
            let message =
                format!("chat_template_kwargs has {} entries, more than the limit of {MAX_KWARGS}", kwargs.len());
            return Err(Error::invalid("chat_template_kwargs", message));
        }
        for (name, value) in &kwargs {
            bound_values(&format!("chat_template_kwargs.{name}"), value)?;
        }
        if let Some(name) = OWN_VARIABLES.iter().find(|name| kwargs.contains_key(**name)) {
            let path = format!("chat_template_kwargs.{name}");
            let message = format!("{path} is set by the server; give it as a field of the request or not at all");
            return Err(Error::invalid(path, message));
        }
        Ok(Self { add_generation_prompt, kwargs })
    }
}

pub(super) fn take_model(fields: &mut Fields) -> Result<String, Error> {
    let model = fields.string("model", MAX_MODEL_BYTES)?;
    model.ok_or_else(|| fields.missing("model", "give the served model's name, or 'default'"))
}

/// A JSON list of objects, or none.
pub(super) fn take_tools(fields: &mut Fields) -> Result<Option<Value>, Error> {
    let tools = fields.list("tools", MAX_TOOLS)?.filter(|tools| !tools.is_empty());
    if let Some((i, tool)) = tools.iter().flatten().enumerate().find(|(_, tool)| !tool.is_object()) {
        return Err(fields::mistyped(&format!("tools[{i}]"), tool, "an object"));
    }
    let tools = tools.map(Value::Array);
    tools.iter().try_for_each(|tools| bound_values("tools", tools))?;
    Ok(tools)
}

fn bound_values(path: &str, value: &Value) -> Result<(), Error> {
    if num_values(value) <= MAX_TEMPLATE_VALUES {
        return Ok(());
    }
    let message = format!("{path} is made of more than {MAX_TEMPLATE_VALUES} values, the limit; give less");
    Err(Error::invalid(path, message))
}

/// Itself and everything in it. The parser has bounded the depth.
fn num_values(value: &Value) -> usize {
    1 + match value {
        Value::Array(values) => values.iter().map(num_values).sum(),
        Value::Object(map) => map.values().map(num_values).sum(),
        _ => 0,
    }
}

/// A streamed answer has no place for them that clients would look at.
pub(super) fn refuse_prompt_logprobs_of_streams(sampling: &Sampling, streaming: Streaming) -> Result<(), Error> {
    if streaming.stream && sampling.prompt_logprobs.is_some() {
        let message = "prompt_logprobs is not available in streams; set stream to false or remove it";
        return Err(Error::invalid("prompt_logprobs", message));
    }
    Ok(())
}

/// `logprobs` switches them on, `top_logprobs` says how many alternatives come with each token.
fn take_logprobs(fields: &mut Fields) -> Result<Option<u8>, Error> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_LOGPROBS)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as u8)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(Error::invalid("top_logprobs", "top_logprobs is allowed only with logprobs = true")),
    }
}

/// Fields with one value that asks for nothing special.
fn take_trivial(fields: &mut Fields) -> Result<(), Error> {
    if let Some(mut format) = fields.object("response_format")? {
        if format.string("type", MAX_MODEL_BYTES)?.as_deref() != Some("text") {
            let path = format.path("type");
            let message = format!("{path} must be 'text': this server supports no other response format yet");
            return Err(Error::invalid("response_format", message));
        }
        format.finish()?;
    }
    if let Some(modalities) = fields.list("modalities", MAX_MODALITIES)?
        && modalities.iter().any(|m| m != "text")
    {
        return Err(Error::invalid("modalities", "modalities must be ['text']: this model writes text only"));
    }
    Ok(())
}
