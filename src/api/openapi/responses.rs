//! Answers: the good one of each operation, and the refusals that operations share.

use std::collections::BTreeMap;

use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::response::{ResponseBuilder, Responses, ResponsesBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{ComponentsBuilder, Content, Ref, RefOr};

use super::REQUEST_ID;
use super::operations::{Answer, OPERATIONS, Operation};
use crate::api::error::status;
use crate::api::wire::error::{self, ErrorBody};
use crate::api::wire::health::Ready;
use crate::api::wire::schema::{any_of, integer, object, reference, text, word};
use crate::base::error::Code;

const RETRY_AFTER: &str = "Retry-After";
const SHOULD_RETRY: &str = "X-Should-Retry";
const WWW_AUTHENTICATE: &str = "WWW-Authenticate";
const JSON: &str = "application/json";

/// Every answer of an operation.
pub fn of(operation: &Operation) -> Responses {
    let good = good(operation);
    let mut responses = ResponsesBuilder::new().response("200", good.build());
    match operation.answer {
        Answer::Readiness => {
            let body = Content::new(Some(reference::<Ready>()));
            responses = responses.response("503", with_id("Not ready; the body says why.").content(JSON, body).build());
        }
        Answer::NoReadiness => responses = responses.response("503", with_id("Not ready.").build()),
        _ => {}
    }
    for status in by_status(operation.codes).keys() {
        responses = responses.response(status.to_string(), Ref::from_response_name(name(*status)));
    }
    responses.build()
}

fn good(operation: &Operation) -> ResponseBuilder {
    let good = with_id("Good.");
    match &operation.answer {
        Answer::Json(schema) => good.content(JSON, Content::new(Some(schema()))),
        Answer::Readiness => good.content(JSON, Content::new(Some(reference::<Ready>()))),
        Answer::Streamed { whole, chunk } => good
            .description("Good: whole, or with `stream` as events.")
            .content(JSON, Content::new(Some(whole())))
            .content("text/event-stream", Content::new(Some(event(chunk())))),
        Answer::Text(kind) => good.content(*kind, Content::new(Some(text()))),
        Answer::Document => good.content(JSON, Content::new(Some(object()))),
        Answer::Nothing | Answer::NoReadiness => good,
    }
}

/// One event: OpenAPI 3.1 has no words for a stream, so the schema is of its items, as 3.2's `itemSchema` is.
fn event(chunk: RefOr<Schema>) -> Schema {
    let said = any_of([chunk, reference::<ErrorBody>()]);
    let json = ObjectBuilder::from(text())
        .content_media_type(JSON)
        .content_schema(Some(said))
        .description(Some("a chunk, or the error body if the generation fails"));
    let end = ObjectBuilder::from(word(["[DONE]"])).description(Some("the last event"));
    let data = any_of([json.into(), end.into()]);
    let id = ObjectBuilder::from(text()).pattern(Some("^[0-9]+$")).description(Some("0, 1, 2, …"));
    let event = ObjectBuilder::new().schema_type(Type::Object).description(Some("A server-sent event."));
    event.property("id", id).property("data", data).required("id").required("data").build().into()
}

/// Headers and refusals that operations refer to.
pub fn shared(mut components: ComponentsBuilder) -> ComponentsBuilder {
    let header = |schema, about: &str| HeaderBuilder::new().schema(Some(schema)).description(Some(about)).build();
    let headers: [(&str, Header); 4] = [
        (REQUEST_ID, header(text(), "the request's id: the client's, or one made here")),
        (RETRY_AFTER, header(integer(0..=u32::MAX.into()), "seconds until another try may succeed")),
        (SHOULD_RETRY, header(word(["false"]), "it would only fail again; OpenAI's SDKs heed it")),
        (WWW_AUTHENTICATE, header(word(["Bearer"]), "how to give a key")),
    ];
    for (name, header) in headers {
        components = components.header(name, header);
    }
    let used: Vec<Code> =
        Code::ALL.into_iter().filter(|code| OPERATIONS.iter().any(|of| of.codes.contains(code))).collect();
    for (status, codes) in by_status(&used) {
        let lines = codes.iter().map(|code| format!("- `{}`: {}", error::code(*code), when(*code)));
        let body = Content::new(Some(reference::<ErrorBody>()));
        let mut response = with_id(&lines.collect::<Vec<_>>().join("\n")).content(JSON, body);
        for header in headers_of(status) {
            response = response.header_ref(*header, header_ref(header));
        }
        components = components.response(name(status), response.build());
    }
    components
}

fn headers_of(status: u16) -> &'static [&'static str] {
    match status {
        401 => &[WWW_AUTHENTICATE],
        429 | 503 => &[RETRY_AFTER],
        504 => &[SHOULD_RETRY],
        _ => &[],
    }
}

fn header_ref(name: &str) -> Ref {
    Ref::new(format!("#/components/headers/{name}"))
}

fn with_id(description: &str) -> ResponseBuilder {
    ResponseBuilder::new().description(description).header_ref(REQUEST_ID, header_ref(REQUEST_ID))
}

fn name(status: u16) -> String {
    format!("Error{status}")
}

fn by_status(codes: &[Code]) -> BTreeMap<u16, Vec<Code>> {
    let mut statuses: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        statuses.entry(status(*code).as_u16()).or_default().push(*code);
    }
    statuses
}

fn when(code: Code) -> &'static str {
    match code {
        Code::InvalidRequest => "a field is missing, malformed, out of range or not supported; `param` names it",
        Code::ContextLengthExceeded => "prompt and output do not fit the context or the KV cache",
        Code::Unauthenticated => "no key, or one that is mistyped, unknown or revoked",
        Code::Forbidden => "a good key without the right to this",
        Code::NotFound => "no such route",
        Code::ModelNotFound => "another model than the served one",
        Code::MethodNotAllowed => "the route has other methods, which `Allow` lists",
        Code::TooLarge => "the body is larger than `server.max_body_bytes`",
        Code::RequestTimeout => "the body did not arrive in time; the connection is closed",
        Code::RateLimited => "a limit of the key: requests or tokens a minute, requests at once",
        Code::Overloaded => "too many requests or tokens are inside",
        Code::DeadlineExceeded => "the request's deadline passed",
        Code::Cancelled => "the client left",
        Code::Draining => "the server is shutting down",
        Code::Unavailable => "no lane runs, or keys cannot be looked up",
        Code::Internal => "a defect; the log has the reason under the request's id",
    }
}
