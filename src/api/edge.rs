//! What every request passes: an id, the door, the clock, the error's last form.
//!
//! Default is shut: a route is open only if it is listed in [`is_open`].

use std::sync::Arc;
use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::{ALLOW, AUTHORIZATION, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, HttpRequest, HttpResponse, ResponseError, web};
use tracing::{Instrument, Span};

use super::error::{ApiError, response};
use crate::actors::auth::Authenticate;
use crate::actors::services::Services;
use crate::base::error::{Code, Error};
use crate::base::metrics::metrics;
use crate::base::{faults, id};
use crate::gate::auth::Principal;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: the client's `X-Request-Id` when it is well formed, else ours.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

/// Who sent the request, as the auth actor found.
#[derive(Debug, Clone)]
pub struct Caller(pub Arc<Principal>);

/// The span of a request that may generate; its hops are children of it.
#[derive(Debug, Clone)]
struct RequestSpan(Span);

/// Which routes, besides health, answer without a key.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    pub metrics: bool,
    /// The page about the API and the document behind it: a browser sends no key when it opens a page.
    pub docs: bool,
}

/// `server.max_body_bytes`, for the message of a refusal.
#[derive(Debug, Clone, Copy)]
pub struct MaxBody(pub usize);

/// The outermost layer: gives an id, measures, and puts the id into whatever leaves.
pub async fn identify(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let began = Instant::now();
    let given = request.headers().get(REQUEST_ID).and_then(|v| v.to_str().ok());
    let request_id = RequestId(id::request_id(given).into());
    request.extensions_mut().insert(request_id.clone());
    // By path: nobody may hold a clone of a request that the router has still to see, or it panics.
    let route = route(request.request());
    // Health checks and scrapes would fill the traces with nothing.
    let span = match *request.method() {
        Method::POST => tracing::info_span!("request", id = &*request_id.0, route),
        _ => Span::none(),
    };
    request.extensions_mut().insert(RequestSpan(span.clone()));
    // Inner layers answer with errors instead of failing, which would leave no request to be answered to: what fails has
    // panicked, and was caught by the layer below.
    let Ok(answer) = next.call(request).instrument(span).await else {
        metrics().error(Code::Internal.as_str());
        metrics().request_done(route, 500, began.elapsed().as_secs_f64());
        return Err(Panicked(request_id).into());
    };
    let mut answer = answer.map_into_boxed_body();
    if let Some(error) = answer.response().error() {
        let max_body = answer.request().app_data::<web::Data<MaxBody>>().map_or(0, |max| max.0);
        let error = external(error, max_body);
        metrics().error(error.code.as_str());
        if let Some(internal) = &error.internal {
            tracing::error!(request_id = &*request_id.0, internal, "the request failed");
        }
        // Which methods a route has, only the router knew.
        let allow = answer.headers_mut().remove(ALLOW).next();
        answer = answer.into_response(response(&error, &request_id.0));
        allow.map(|allow| answer.headers_mut().insert(ALLOW, allow));
    }
    let value = HeaderValue::from_str(&request_id.0).expect("ids are checked for legal characters");
    answer.headers_mut().insert(REQUEST_ID, value);
    metrics().request_done(route, answer.status().as_u16(), began.elapsed().as_secs_f64());
    Ok(answer)
}

/// A handler panicked, and the request went with it; the log has the panic.
#[derive(Debug)]
struct Panicked(RequestId);

impl std::fmt::Display for Panicked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "request {} panicked", self.0.0)
    }
}

impl ResponseError for Panicked {
    fn error_response(&self) -> HttpResponse {
        let request_id = &*self.0.0;
        tracing::error!(request_id, "the request's handler panicked");
        let mut response = response(&Error::internal("a panic"), request_id);
        let value = HeaderValue::from_str(request_id).expect("ids are checked for legal characters");
        response.headers_mut().insert(REQUEST_ID, value);
        response
    }
}

/// The error in our form; actix's own (a body that is too large, a path that cannot be decoded) are translated.
fn external(error: &actix_web::Error, max_body: usize) -> Error {
    if let Some(ApiError(error)) = error.as_error::<ApiError>() {
        return error.clone();
    }
    let status = error.as_response_error().status_code();
    match status.as_u16() {
        404 => Error::not_found("no such route"),
        413 => Error::too_large(max_body),
        400..=499 => Error::invalid_request(error.to_string()),
        _ => Error::internal(error),
    }
}

/// The pattern of the route, so that made-up paths cannot fill the metrics.
fn route(request: &HttpRequest) -> &'static str {
    let pattern = request.match_pattern();
    super::ROUTES.iter().find(|r| Some(**r) == pattern.as_deref()).copied().unwrap_or("unknown")
}

/// The door: everything but health (and what the configuration opens) needs a principal.
pub async fn authenticate(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let open = request.app_data::<web::Data<Open>>().expect("installed by the server");
    if !is_open(request.path(), open) {
        let services = request.app_data::<web::Data<Services>>().expect("installed by the server").clone();
        let secret = bearer(&request).map(str::to_owned);
        match services.auth.ask(Authenticate { secret }).instrument(auth_span(&request)).await.flatten() {
            Ok(principal) => drop(request.extensions_mut().insert(Caller(principal))),
            Err(error) => return Ok(request.error_response(ApiError(error))),
        }
    }
    faults::hit("http.handler");
    Ok(next.call(request).await?.map_into_boxed_body())
}

/// Only for requests that are traced at all.
fn auth_span(request: &ServiceRequest) -> Span {
    match *request.method() {
        Method::POST => tracing::info_span!("auth"),
        _ => Span::none(),
    }
}

/// The span that [`identify`] gave the request.
pub fn span(request: &HttpRequest) -> Span {
    request.extensions().get::<RequestSpan>().map_or_else(Span::none, |span| span.0.clone())
}

fn is_open(path: &str, open: &Open) -> bool {
    match path {
        "/health/live" | "/health/ready" => true,
        "/metrics" => open.metrics,
        "/docs" | "/openapi.json" => open.docs,
        _ => false,
    }
}

fn bearer(request: &ServiceRequest) -> Option<&str> {
    let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}

/// The id and the principal of a request that came through both layers.
pub fn passport(request: &HttpRequest) -> Result<(RequestId, Arc<Principal>), Error> {
    let extensions = request.extensions();
    let id = extensions.get::<RequestId>().cloned();
    let caller = extensions.get::<Caller>().cloned();
    id.zip(caller).map(|(id, caller)| (id, caller.0)).ok_or_else(|| Error::internal("a handler without a door"))
}
