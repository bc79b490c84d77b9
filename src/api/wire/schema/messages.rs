//! One message of a conversation, by role.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::{Record, any_of, empty_list, integer, list, null, object, reference, short_text, text, word};
use crate::api::wire::messages::{MAX_NAME_BYTES, MAX_PARTS, MAX_TOOL_CALLS};

/// A message, whoever wrote it.
pub struct Message;
/// A tool call as a client sends it back.
pub struct ToolCall;
/// A part of a message's content.
pub struct TextPart;

impl ToSchema for Message {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((ToolCall::name().into(), ToolCall::schema()));
        schemas.push((TextPart::name().into(), TextPart::schema()));
    }
}

impl PartialSchema for Message {
    fn schema() -> RefOr<Schema> {
        let of = |role: &[&'static str], what| Record::new(what).needed("role", word(role.iter().copied()), "");
        let name = |record: Record| record.optional("name", short_text(MAX_NAME_BYTES), "for templates that read it");
        let asked = of(&["system", "developer", "user"], "What the model is told or asked.");
        let asked = asked.needed("content", content(), "a text, or its parts");
        let told = of(&["tool"], "What a tool answered.").needed("content", content(), "a text, or its parts");
        let told = told.optional("tool_call_id", short_text(MAX_NAME_BYTES), "which call is answered");
        let said = of(&["assistant"], "What the model said before.")
            .needed("content", content(), "a text, or its parts")
            .optional("tool_calls", list(reference::<ToolCall>(), 0..=MAX_TOOL_CALLS), "what it called");
        let called = of(&["assistant"], "What the model called before.")
            .optional("content", content(), "a text, or its parts")
            .needed("tool_calls", list(reference::<ToolCall>(), 1..=MAX_TOOL_CALLS), "what it called");
        let (said, called) = (sent_back(said), sent_back(called));
        any_of([asked, said, called, told].map(|record| name(record).build().into())).into()
    }
}

/// Fields of the assistant's messages that clients send back as they got them.
fn sent_back(record: Record) -> Record {
    record
        .optional("reasoning_content", text(), "for templates that read it")
        .optional("annotations", empty_list(), "empty only")
        .optional("refusal", null(), "null only")
        .optional("audio", null(), "null only")
        .optional("function_call", null(), "null only")
}

fn content() -> Schema {
    any_of([text().into(), list(reference::<TextPart>(), 1..=MAX_PARTS).into()])
}

impl ToSchema for TextPart {}

impl PartialSchema for TextPart {
    fn schema() -> RefOr<Schema> {
        let part = Record::new("A part of a message.").needed("type", word(["text"]), "text only");
        part.needed("text", text(), "").build().into()
    }
}

impl ToSchema for ToolCall {}

impl PartialSchema for ToolCall {
    fn schema() -> RefOr<Schema> {
        let arguments = any_of([text().into(), object().into()]);
        let function = Record::new("").needed("name", short_text(MAX_NAME_BYTES), "").optional(
            "arguments",
            arguments,
            "a string of JSON, or the object itself",
        );
        Record::new("A call that the model made.")
            .optional("id", short_text(MAX_NAME_BYTES), "")
            .optional("type", word(["function"]), "")
            .needed("function", function.build(), "what was called")
            .optional("index", integer(0..=i64::MAX), "as streams number calls; ignored")
            .build()
            .into()
    }
}
