//! What every request passes: an id, the door, the clock, the error's last form.
//!
//! Default is shut: a route is open only if it is listed in [`is_open`].

use std::sync::Arc;
use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{ALLOW, AUTHORIZATION, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, HttpRequest, web};

use super::error::{ApiError, response};
use crate::actors::auth::Authenticate;
use crate::actors::services::Services;
use crate::base::error::Error;
use crate::base::id;
use crate::base::metrics::metrics;
use crate::gate::auth::Principal;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: the client's `X-Request-Id` when it is well formed, else ours.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

/// Who sent the request, as the auth actor found.
#[derive(Debug, Clone)]
pub struct Caller(pub Arc<Principal>);

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
    // Inner layers answer with errors instead of failing: a failure would have no request to be answered to (and
    // actix-web's router panics on a request that somebody still holds a clone of).
    let mut answer = next.call(request).await?.map_into_boxed_body();
    if let Some(error) = answer.response().error() {
        let max_body = answer.request().app_data::<web::Data<MaxBody>>().map_or(0, |max| max.0);
        let error = external(error, max_body);
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
    metrics().request_done(route(answer.request()), answer.status().as_u16(), began.elapsed().as_secs_f64());
    Ok(answer)
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
        match services.auth.send(Authenticate { secret }).await.map_err(Error::internal).flatten() {
            Ok(principal) => drop(request.extensions_mut().insert(Caller(principal))),
            Err(error) => return Ok(request.error_response(ApiError(error))),
        }
    }
    Ok(next.call(request).await?.map_into_boxed_body())
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
