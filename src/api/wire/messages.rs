//! The conversation in a chat request: checked, cleaned of nulls, and kept as JSON, which is what templates read.

use serde_json::{Map, Value};

use super::fields::{self, Fields};
use crate::base::error::Error;

pub const MAX_MESSAGES: usize = 4096;
pub const MAX_PARTS: usize = 1024;
pub const MAX_TOOL_CALLS: usize = 128;
pub(super) const MAX_NAME_BYTES: usize = 256;

/// Takes `messages` and returns them as a JSON list of at least one message. Content is a string, null (only from the
/// assistant) or a list of text parts; what a template does not know of the rest, it does not read.
pub fn take_messages(fields: &mut Fields) -> Result<Value, Error> {
    let values = fields.list("messages", MAX_MESSAGES)?;
    let values = values.ok_or_else(|| fields.missing("messages", "give a list of at least one message"))?;
    if values.is_empty() {
        return Err(Error::invalid("messages", "messages is empty; give at least one message"));
    }
    let check = |(i, value)| message(Fields::of(format!("messages[{i}]"), value)?).map(Value::Object);
    values.into_iter().enumerate().map(check).collect()
}

fn message(mut fields: Fields) -> Result<Map<String, Value>, Error> {
    const ROLES: &str = "'system', 'developer', 'user', 'assistant' or 'tool'";
    let role = fields.string("role", MAX_NAME_BYTES)?;
    let role = role.ok_or_else(|| fields.missing("role", &format!("give {ROLES}")))?;
    let mut out = Map::new();
    out.insert("role".into(), role.clone().into());
    match role.as_str() {
        "system" | "developer" | "user" => {
            let content = take_content(&mut fields)?;
            out.insert("content".into(), content.ok_or_else(|| no_content(&fields))?);
        }
        "tool" => {
            let content = take_content(&mut fields)?;
            out.insert("content".into(), content.ok_or_else(|| no_content(&fields))?);
            take_text(&mut fields, "tool_call_id", MAX_NAME_BYTES, &mut out)?;
        }
        "assistant" => assistant(&mut fields, &mut out)?,
        other => {
            let path = fields.path("role");
            let message = format!("{path} = '{}' is not a known role; the roles are {ROLES}", fields::shown(other));
            return Err(Error::invalid(path, message));
        }
    }
    take_text(&mut fields, "name", MAX_NAME_BYTES, &mut out)?;
    fields.finish()?;
    Ok(out)
}

/// Clients send back the messages that they got, with every field that those had.
fn assistant(fields: &mut Fields, out: &mut Map<String, Value>) -> Result<(), Error> {
    let content = take_content(fields)?;
    let calls = fields.list("tool_calls", MAX_TOOL_CALLS)?.filter(|calls| !calls.is_empty());
    if content.is_none() && calls.is_none() {
        return Err(no_content(fields));
    }
    out.insert("content".into(), content.unwrap_or(Value::Null));
    take_text(fields, "reasoning_content", usize::MAX, out)?;
    if let Some(calls) = calls {
        let path = fields.path("tool_calls");
        let check = |(i, value)| tool_call(Fields::of(format!("{path}[{i}]"), value)?);
        out.insert("tool_calls".into(), calls.into_iter().enumerate().map(check).collect::<Result<_, _>>()?);
    }
    if fields.list("annotations", MAX_PARTS)?.is_some_and(|list| !list.is_empty()) {
        return Err(fields::unsupported(&fields.path("annotations"), "remove it"));
    }
    fields.refuse(&["refusal", "audio", "function_call"])
}

/// `arguments` is a string of JSON, as OpenAI sends it, or the object itself.
fn tool_call(mut fields: Fields) -> Result<Value, Error> {
    let mut out = Map::new();
    take_text(&mut fields, "id", MAX_NAME_BYTES, &mut out)?;
    let kind = fields.string("type", MAX_NAME_BYTES)?;
    if let Some(kind) = kind.filter(|kind| kind != "function") {
        let path = fields.path("type");
        let message = format!("{path} = '{}' is not supported; it must be 'function'", fields::shown(&kind));
        return Err(Error::invalid(path, message));
    }
    out.insert("type".into(), "function".into());
    let mut function = fields.object("function")?.ok_or_else(|| fields.missing("function", "give its name"))?;
    let mut called = Map::new();
    take_text(&mut function, "name", MAX_NAME_BYTES, &mut called)?;
    if called.is_empty() {
        return Err(function.missing("name", "give the function's name"));
    }
    let path = function.path("arguments");
    let arguments = match function.take("arguments").unwrap_or_else(|| Map::new().into()) {
        Value::String(text) if text.trim().is_empty() => Map::new().into(),
        arguments @ (Value::Object(_) | Value::String(_)) => arguments,
        other => return Err(fields::mistyped(&path, &other, "a string of JSON or an object")),
    };
    called.insert("arguments".into(), arguments);
    function.finish()?;
    out.insert("function".into(), called.into());
    // Streams number their calls, and clients put those back.
    fields.integer("index", 0..=i64::MAX)?;
    fields.finish()?;
    Ok(out.into())
}

fn take_text(fields: &mut Fields, name: &str, max: usize, out: &mut Map<String, Value>) -> Result<(), Error> {
    if let Some(text) = fields.string(name, max)? {
        out.insert(name.into(), text.into());
    }
    Ok(())
}

fn no_content(fields: &Fields) -> Error {
    fields.missing("content", "give a string or a list of text parts")
}

fn take_content(fields: &mut Fields) -> Result<Option<Value>, Error> {
    let path = fields.path("content");
    match fields.take("content") {
        None => Ok(None),
        Some(text @ Value::String(_)) => Ok(Some(text)),
        Some(parts @ Value::Array(_)) => {
            let parts = fields::list(&path, parts, MAX_PARTS)?;
            if parts.is_empty() {
                return Err(Error::invalid(&path, format!("{path} is empty; give at least one part")));
            }
            let check = |(i, value)| part(Fields::of(format!("{path}[{i}]"), value)?);
            parts.into_iter().enumerate().map(check).collect::<Result<_, _>>().map(Some)
        }
        Some(other) => Err(fields::mistyped(&path, &other, "a string or a list of text parts")),
    }
}

fn part(mut fields: Fields) -> Result<Value, Error> {
    let path = fields.path("type");
    let kind = fields.string("type", MAX_NAME_BYTES)?.ok_or_else(|| fields.missing("type", "give 'text'"))?;
    if kind != "text" {
        let message = format!("{path} = '{}' is not supported: this model reads text only", fields::shown(&kind));
        return Err(Error::invalid(path, message));
    }
    let text = fields.string("text", usize::MAX)?.ok_or_else(|| fields.missing("text", "give the part's text"))?;
    fields.finish()?;
    Ok(serde_json::json!({ "type": "text", "text": text }))
}
