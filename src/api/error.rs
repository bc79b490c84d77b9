//! Errors on the wire: OpenAI's body, an HTTP status, `Retry-After`. The only place where a code meets a status.

use actix_web::http::StatusCode;
use actix_web::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};

use super::wire::error::ErrorBody;
use crate::base::error::{Code, Error};

/// What handlers fail with. [`super::edge`] adds the request's id to the body.
#[derive(Debug, Clone)]
pub struct ApiError(pub Error);

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

pub fn status(code: Code) -> StatusCode {
    match code {
        Code::InvalidRequest | Code::ContextLengthExceeded => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Forbidden => StatusCode::FORBIDDEN,
        Code::NotFound | Code::ModelNotFound => StatusCode::NOT_FOUND,
        Code::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::Overloaded | Code::Draining | Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        // Nobody reads it: the client has closed (nginx's own number for that).
        Code::Cancelled => StatusCode::from_u16(499).expect("a legal status"),
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// OpenAI's SDKs try every 5xx again unless this tells them not to.
const SHOULD_RETRY: &str = "x-should-retry";

pub fn response(error: &Error, request_id: &str) -> HttpResponse {
    let mut response = HttpResponse::build(status(error.code));
    if let Some(seconds) = error.retry_after_s {
        response.insert_header((RETRY_AFTER, seconds));
    }
    if error.code == Code::Unauthenticated {
        response.insert_header((WWW_AUTHENTICATE, "Bearer"));
    }
    if error.code == Code::RequestTimeout {
        // What is left of the body is not waited for.
        response.force_close();
    }
    if !error.retryable() && status(error.code).is_server_error() {
        response.insert_header((SHOULD_RETRY, "false"));
    }
    response.json(ErrorBody::new(error, request_id))
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        status(self.0.code)
    }

    fn error_response(&self) -> HttpResponse {
        response(&self.0, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status_that_says_whose_fault_it_is() {
        for code in Code::ALL {
            let status = status(code);
            assert!(status.is_client_error() || status.is_server_error(), "{code}");
            if code.retryable() {
                assert!(
                    status == 429 || status == 408 || status.is_server_error(),
                    "{code} is worth another try but says {status}"
                );
            }
        }
    }
}
