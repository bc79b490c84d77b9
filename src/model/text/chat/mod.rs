//! Chat templates with Hugging Face semantics: messages in, prompt text out.
//!
//! Owns a compiled template in a sandbox: no files, no environment, no other templates, no clock (the caller's date), a
//! fixed budget of steps and of bytes. Knows nothing of tokens or of HTTP. The goldens in `tests/fixtures/templates`,
//! rendered by transformers, are matched byte for byte.
//!
//! Differences from Jinja2 that remain: `"%s" % x` is refused (`"%s"|format(x)` works), as are `varargs` and `kwargs` in
//! macros; iterating over `none` is empty where Python raises; `x.items` without a call is the key, not the method; `~`
//! writes floats beyond 1e16 or below 1e-4 without an exponent.

mod content;
mod filters;
mod methods;
mod python;
mod sandbox;
mod source;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use minijinja::{Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};

pub use content::{flatten_text_parts, parse_tool_arguments};

use crate::model::source::ChatSource;

const DEFAULT: &str = "chat template";
const TOOL_USE: &str = "tool_use template";

/// Why a prompt could not be made. Both what the template refuses and where it fails are the client's to know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// The template does not compile.
    #[error("{name}, line {line}: {message}")]
    Syntax { name: String, line: usize, message: String },
    /// The template itself refused the conversation with `raise_exception`.
    #[error("{0}")]
    Raised(String),
    /// The template failed on this conversation.
    #[error("{name}, line {line}: {message}")]
    Template { name: String, line: usize, message: String },
    /// The template ran too long or wrote too much.
    #[error("the chat template exceeded {what} ({limit}); send a shorter conversation")]
    Limit { what: &'static str, limit: u64 },
}

/// One conversation, as the template sees it.
#[derive(Debug, Clone, Copy)]
pub struct ChatInput<'a> {
    /// A list of messages, in OpenAI's shape; passed on as it is.
    pub messages: &'a Json,
    pub tools: Option<&'a Json>,
    pub add_generation_prompt: bool,
    /// `chat_template_kwargs`: further variables.
    pub kwargs: &'a Map<String, Json>,
    pub bos_token: &'a str,
    pub eos_token: &'a str,
    /// What `strftime_now` tells.
    pub now: jiff::civil::DateTime,
}

/// A compiled template; cheap to clone, shared by every thread.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    has_tool_use: bool,
    takes_parts: bool,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("has_tool_use", &self.has_tool_use)
            .field("takes_parts", &self.takes_parts)
            .finish()
    }
}

impl ChatTemplate {
    /// `tool_template` is used instead of `template` when tools are given.
    pub fn parse(template: &str, tool_template: Option<&str>) -> Result<ChatTemplate, ChatError> {
        let mut environment = sandbox::environment();
        add(&mut environment, DEFAULT, template)?;
        if let Some(template) = tool_template {
            add(&mut environment, TOOL_USE, template)?;
        }
        let mut parsed = ChatTemplate {
            environment: Arc::new(environment),
            has_tool_use: tool_template.is_some(),
            takes_parts: false,
        };
        parsed.takes_parts = content::takes_parts(&parsed);
        Ok(parsed)
    }

    /// None where the checkpoint has no chat template.
    pub fn from_source(source: &ChatSource) -> Result<Option<ChatTemplate>, ChatError> {
        let Some(template) = &source.template else { return Ok(None) };
        Self::parse(template, source.tool_template.as_deref()).map(Some)
    }

    /// Whether the template reads message content that is a list of parts. Where it does not, give it strings
    /// ([`flatten_text_parts`]): it would print the list as Python does, or fail.
    pub fn takes_parts(&self) -> bool {
        self.takes_parts
    }

    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, ChatError> {
        let name = if self.has_tool_use && input.tools.is_some() { TOOL_USE } else { DEFAULT };
        let template = self.environment.get_template(name).map_err(|error| template_error(name, &error))?;
        let mut out = sandbox::BoundedOutput::default();
        // A conversation is untrusted, and the engine has been seen to index past the end (minijinja 3.0.5, in slices,
        // see source.rs): its panic must not become the server's. Nothing outlives a rendering but `out`.
        let rendered =
            catch_unwind(AssertUnwindSafe(|| template.render_captured_to(context(input), &mut out).map(drop)));
        match rendered {
            Ok(Ok(())) => Ok(out.into_text()),
            Ok(Err(_)) if out.is_full() => {
                Err(ChatError::Limit { what: "its limit of output bytes", limit: sandbox::MAX_OUTPUT_BYTES as u64 })
            }
            Ok(Err(error)) => Err(template_error(name, &error)),
            Err(_) => {
                let message = "the template engine failed on this conversation".into();
                Err(ChatError::Template { name: name.into(), line: 0, message })
            }
        }
    }
}

fn add(environment: &mut Environment<'static>, name: &'static str, source: &str) -> Result<(), ChatError> {
    environment.add_template_owned(name, source::prepare(source)).map_err(|error| ChatError::Syntax {
        name: name.into(),
        line: error.line().unwrap_or(0),
        message: describe(&error),
    })
}

/// The variables transformers gives a template. `tools` and `documents` are none, not undefined, when absent; a special
/// token the tokenizer lacks is undefined.
fn context(input: &ChatInput<'_>) -> Value {
    let mut variables: Vec<(String, Value)> = vec![("documents".into(), Value::from(()))];
    for (name, token) in [("bos_token", input.bos_token), ("eos_token", input.eos_token)] {
        if !token.is_empty() {
            variables.push((name.into(), Value::from(token)));
        }
    }
    variables.extend(input.kwargs.iter().map(|(name, value)| (name.clone(), python::from_json(value))));
    variables.push(("messages".into(), python::from_json(input.messages)));
    variables.push(("tools".into(), input.tools.map_or(Value::from(()), python::from_json)));
    variables.push(("add_generation_prompt".into(), Value::from(input.add_generation_prompt)));
    variables.push(("strftime_now".into(), sandbox::strftime_now(input.now)));
    Value::from_pairs(variables)
}

fn template_error(name: &str, error: &minijinja::Error) -> ChatError {
    if let Some(message) = sandbox::raised_message(error) {
        return ChatError::Raised(message);
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return ChatError::Limit { what: "its limit of steps", limit: sandbox::MAX_STEPS };
    }
    ChatError::Template { name: name.into(), line: error.line().unwrap_or(0), message: describe(error) }
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}
