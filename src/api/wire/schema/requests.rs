//! The bodies of requests, field by field, in the order of docs/api.md.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType};
use utoipa::{PartialSchema, ToSchema};

use super::messages::Message;
use super::{
    Record, any_of, boolean, empty_list, integer, list, map, number, object, only_false, positive, reference,
    short_text, text, token, word,
};
use crate::api::wire::chat::{ChatRequest, MAX_KWARGS, MAX_MODALITIES, MAX_MODEL_BYTES, MAX_TOOLS, RenderRequest};
use crate::api::wire::completion::{CompletionRequest, MAX_PROMPT_TOKENS, MAX_PROMPTS, MAX_TOTAL_CHOICES};
use crate::api::wire::messages::MAX_MESSAGES;
use crate::api::wire::sampling::*;
use crate::api::wire::tokenize::{DetokenizeRequest, MAX_TOKENS, TokenizeRequest};

type Schemas = Vec<(String, RefOr<Schema>)>;

fn messages_too(schemas: &mut Schemas) {
    schemas.push((Message::name().into(), Message::schema()));
    Message::schemas(schemas);
}

impl ToSchema for ChatRequest {
    fn schemas(schemas: &mut Schemas) {
        messages_too(schemas);
    }
}

impl PartialSchema for ChatRequest {
    fn schema() -> RefOr<Schema> {
        let tools = "empty only; the render route takes tools";
        chat("A conversation to be continued.").optional("tools", empty_list(), tools).build().into()
    }
}

impl ToSchema for RenderRequest {}

impl PartialSchema for RenderRequest {
    fn schema() -> RefOr<Schema> {
        let tools = "what the model may call, as its template reads it";
        let request = chat("A conversation to be rendered as a prompt; it is not run.");
        request.optional("tools", list(object(), 0..=MAX_TOOLS), tools).build().into()
    }
}

impl ToSchema for CompletionRequest {}

impl PartialSchema for CompletionRequest {
    fn schema() -> RefOr<Schema> {
        let prompts = [
            text().into(),
            list(text(), 1..=MAX_PROMPTS).into(),
            list(token(), 1..=MAX_PROMPT_TOKENS).into(),
            list(list(token(), 1..=MAX_PROMPT_TOKENS), 1..=MAX_PROMPTS).into(),
        ];
        let prompts_are = format!(
            "a text, several, token ids, or several lists of them; {MAX_TOTAL_CHOICES} choices at most over all prompts"
        );
        let request = Record::new("One or more texts to be continued.");
        let request = model(request).needed("prompt", any_of(prompts), &prompts_are);
        let request = sampling(streaming(request))
            .optional("logprobs", integer(0..=MAX_LOGPROBS), "each token's log-probability, and that many of the best")
            .optional("echo", boolean(), "the answer begins with the prompt")
            .optional("best_of", integer(1..=MAX_CHOICES), "equal to n only")
            .optional("suffix", short_text(0), "empty only");
        ignored(request).build().into()
    }
}

impl ToSchema for TokenizeRequest {
    fn schemas(schemas: &mut Schemas) {
        messages_too(schemas);
    }
}

impl PartialSchema for TokenizeRequest {
    fn schema() -> RefOr<Schema> {
        let of_text = Record::new("A text.").needed("prompt", text(), "the text");
        let of_chat = Record::new("A conversation.").needed("messages", messages(), "the conversation").optional(
            "tools",
            list(object(), 0..=MAX_TOOLS),
            "what the model may call, as its template reads it",
        );
        let finish = |request: Record, special| {
            request
                .optional("model", short_text(MAX_MODEL_BYTES), "the served name, or default")
                .optional("add_special_tokens", boolean(), special)
                .optional("return_token_strs", boolean(), "the text of each token too")
                .build()
                .into()
        };
        any_of([
            finish(of_text, "whether the tokenizer adds its own tokens, such as the beginning of text; true"),
            finish(template(of_chat), "whether the tokenizer adds its own tokens; false: the template writes them"),
        ])
        .into()
    }
}

impl ToSchema for DetokenizeRequest {}

impl PartialSchema for DetokenizeRequest {
    fn schema() -> RefOr<Schema> {
        Record::new("Tokens to be written as text.")
            .needed("tokens", list(token(), 0..=MAX_TOKENS), "ids of the model's tokens")
            .optional("model", short_text(MAX_MODEL_BYTES), "the served name, or default")
            .build()
            .into()
    }
}

/// What a chat request and one to be rendered have in common.
fn chat(what: &str) -> Record {
    let request = model(Record::new(what)).needed("messages", messages(), "the conversation, oldest first");
    let request = sampling(streaming(request))
        .optional("logprobs", boolean(), "the log-probability of each token")
        .optional("top_logprobs", integer(0..=MAX_LOGPROBS), "that many of the likeliest tokens; with logprobs only");
    let format = Record::new("").needed("type", word(["text"]), "");
    let request = template(request).optional("response_format", format.build(), "text only").optional(
        "modalities",
        list(word(["text"]), 0..=MAX_MODALITIES),
        "text only",
    );
    ignored(request)
}

fn model(request: Record) -> Record {
    request.needed("model", short_text(MAX_MODEL_BYTES), "the served name, or default")
}

fn messages() -> Schema {
    list(reference::<Message>(), 1..=MAX_MESSAGES).into()
}

fn streaming(request: Record) -> Record {
    let options = Record::new("").optional("include_usage", boolean(), "usage in a last chunk").optional(
        "include_obfuscation",
        boolean(),
        "ignored: nothing is padded",
    );
    request.optional("stream", boolean(), "the answer as server-sent events").optional(
        "stream_options",
        options.build(),
        "with stream only",
    )
}

fn sampling(request: Record) -> Record {
    let stop = any_of([stop_string().into(), list(stop_string(), 0..=MAX_STOP_STRINGS).into()]);
    let token_id = ObjectBuilder::from(text()).pattern(Some("^(0|[1-9][0-9]*)$")).build();
    let bias = map(number(LOGIT_BIAS), MAX_LOGIT_BIAS).property_names(Some(token_id)).build();
    let stop_tokens = list(token(), 0..=MAX_STOP_TOKENS);
    request
        .optional("max_tokens", integer(OUTPUT_TOKENS), "longest answer in tokens; to the context's end without it")
        .optional("max_completion_tokens", integer(OUTPUT_TOKENS), "the newer name of max_tokens")
        .optional("min_tokens", integer(MIN_TOKENS), "no stop before this many tokens; at most max_tokens")
        .optional("n", integer(1..=MAX_CHOICES), "choices for a prompt; no more than scheduler.max_running")
        .optional("temperature", number(TEMPERATURE), "0 is greedy")
        .optional("top_p", positive(MAX_TOP_P), "nucleus")
        .optional("top_k", integer(TOP_K), "0 and -1: off")
        .optional("min_p", number(MIN_P), "least share of the best token's probability")
        .optional("frequency_penalty", number(PENALTY), "by how often a token came")
        .optional("presence_penalty", number(PENALTY), "by whether a token came")
        .optional("repetition_penalty", positive(MAX_REPETITION_PENALTY), "1: off")
        .optional("logit_bias", bias, "by token id")
        .optional("seed", integer(SEED), "the same seed gives the same text, on the same device and build")
        .optional("stop", stop, "ends the answer, and is no part of it")
        .optional("include_stop_str_in_output", boolean(), "keep the stop string in the text")
        .optional("stop_token_ids", stop_tokens, "end the answer as the model's own end tokens do")
        .optional("ignore_eos", boolean(), "go on after the model's end token")
        .optional("prompt_logprobs", integer(0..=MAX_LOGPROBS), "log-probabilities of the prompt; not in streams")
}

fn stop_string() -> ObjectBuilder {
    ObjectBuilder::from(short_text(MAX_STOP_BYTES)).min_length(Some(1))
}

fn template(request: Record) -> Record {
    let kwargs = map(ObjectBuilder::new().schema_type(SchemaType::AnyValue), MAX_KWARGS);
    request
        .optional("add_generation_prompt", boolean(), "for the template; true")
        .optional("continue_final_message", only_false(), "false only")
        .optional("chat_template_kwargs", kwargs.build(), "variables for the template, but none that the server sets")
}

/// What OpenAI takes and what changes nothing in an answer.
fn ignored(request: Record) -> Record {
    let name = short_text(MAX_METADATA_NAME_BYTES);
    let metadata = map(short_text(MAX_METADATA_VALUE_BYTES), MAX_METADATA).property_names(Some(name)).build();
    let texts = IGNORED_TEXTS
        .iter()
        .fold(request, |request, name| request.optional(name, short_text(MAX_IGNORED_BYTES), "accepted, ignored"));
    texts
        .optional("metadata", metadata, "accepted, ignored")
        .optional("store", only_false(), "false only: nothing is stored")
        .optional("service_tier", word(SERVICE_TIERS), "accepted, ignored")
}
