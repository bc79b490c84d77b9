//! The OpenAPI 3.1 document of this server: its routes, what they take and what they answer.
//!
//! Owns the table of operations and the words about them; types and limits are those of [`super::wire`]. Says nothing
//! of one server's configuration, so that the document is the same everywhere and anyone may read it.
//!
//! Invariant: operations are the registered routes, and fields those that the parsers take (tests compare both ways).

mod operations;
mod responses;
#[cfg(test)]
mod tests;

use utoipa::ToSchema;
use utoipa::openapi::path::{OperationBuilder, ParameterBuilder, ParameterIn, PathsBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::Schema;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    Components, ComponentsBuilder, ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr,
    Required,
};

use super::wire::{chat, completion, error, health, models, response, schema, tokenize};
use crate::base::id;
use operations::{OPERATIONS, Operation};

const ABOUT: &str = "OpenAI's API over one model, with vLLM's names for what is added. `null` is the same as absent. \
    A field that is not in a request's schema is refused by name. A path with another method answers 405 and `Allow`.";
const TAGS: &[(&str, &str)] = &[
    ("generate", "Text from the model."),
    ("model", "What is served, and its text side without the model."),
    ("operate", "For those who run the server."),
];
/// The name of the security scheme.
const KEY: &str = "key";
const REQUEST_ID: &str = "X-Request-Id";
const TIMEOUT: &str = "X-Request-Timeout-Ms";

pub fn document() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Garrick")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()));
    let tags = TAGS.iter().map(|(name, about)| TagBuilder::new().name(*name).description(Some(*about)).build());
    let mut paths = PathsBuilder::new().build();
    for operation in OPERATIONS {
        paths.add_path_operation(operation.path, vec![operation.method.clone()], describe(operation));
    }
    OpenApiBuilder::new()
        .info(info.build())
        .tags(Some(tags))
        .security(Some([SecurityRequirement::new(KEY, [""; 0])]))
        .paths(paths)
        .components(Some(components()))
        .build()
}

fn describe(of: &Operation) -> utoipa::openapi::path::Operation {
    let mut operation = OperationBuilder::new()
        .operation_id(Some(of.id))
        .tag(of.tag)
        .summary(Some(of.summary))
        .description((!of.description.is_empty()).then_some(of.description))
        .parameter_ref(Ref::new(format!("#/components/parameters/{REQUEST_ID}")))
        .responses(responses::of(of));
    if of.path.contains("{id}") {
        let parameter = ParameterBuilder::new().name("id").parameter_in(ParameterIn::Path).required(Required::True);
        operation = operation.parameter(parameter.schema(Some(schema::text())).description(Some("the model's name")));
    }
    if of.takes_timeout() {
        operation = operation.parameter_ref(Ref::new(format!("#/components/parameters/{TIMEOUT}")));
    }
    if let Some(body) = &of.body {
        let content = ContentBuilder::new().schema(Some((body.schema)())).example(Some((body.example)())).build();
        let body = RequestBodyBuilder::new().content("application/json", content).required(Some(Required::True));
        operation = operation.request_body(Some(body.build()));
    }
    if of.open {
        operation = operation.securities(Some([]));
    }
    operation.build()
}

fn components() -> Components {
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("gk_…")
        .description(Some("The API key. A server that has no keys is open and does not look at it."));
    // A malformed id is replaced and not refused, which a schema cannot say.
    let request_id = format!(
        "names the request in answers and logs: 1 to {} of A-Z a-z 0-9 . _ : / + = -; any other is replaced",
        id::MAX_CLIENT_ID_LEN
    );
    let request_id = ParameterBuilder::new()
        .name(REQUEST_ID)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(request_id))
        .schema(Some(schema::text()));
    let timeout = ParameterBuilder::new()
        .name(TIMEOUT)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("the request's deadline in milliseconds, up to `admission.max_timeout_ms`"))
        .schema(Some(schema::integer(1..=u32::MAX.into())));
    let components = ComponentsBuilder::new()
        .security_scheme(KEY, SecurityScheme::Http(key.build()))
        .parameter(REQUEST_ID, request_id.build())
        .parameter(TIMEOUT, timeout.build());
    schemas(responses::shared(components)).build()
}

/// The types that operations name, and what those are made of.
fn schemas(components: ComponentsBuilder) -> ComponentsBuilder {
    let mut all = Vec::new();
    add::<chat::ChatRequest>(&mut all);
    add::<chat::RenderRequest>(&mut all);
    add::<completion::CompletionRequest>(&mut all);
    add::<tokenize::TokenizeRequest>(&mut all);
    add::<tokenize::DetokenizeRequest>(&mut all);
    add::<response::ChatCompletion>(&mut all);
    add::<response::ChatChunk>(&mut all);
    add::<response::Completion>(&mut all);
    add::<response::CompletionChunk>(&mut all);
    add::<models::ModelList>(&mut all);
    add::<tokenize::TokenizeResponse>(&mut all);
    add::<tokenize::DetokenizeResponse>(&mut all);
    add::<tokenize::RenderResponse>(&mut all);
    add::<health::Live>(&mut all);
    add::<health::Ready>(&mut all);
    add::<error::ErrorBody>(&mut all);
    components.schemas_from_iter(all)
}

fn add<T: ToSchema>(all: &mut Vec<(String, RefOr<Schema>)>) {
    all.push((T::name().into_owned(), T::schema()));
    T::schemas(all);
}
