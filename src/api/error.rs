//! Errors on the wire: OpenAI's body, an HTTP status, `Retry-After`. The only place where a code meets a status.

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde_json::json;

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
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::Overloaded | Code::Draining | Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        // Nobody reads it: the client has closed (nginx's own number for that).
        Code::Cancelled => StatusCode::from_u16(499).expect("a legal status"),
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// OpenAI's word for the family of an error.
fn kind(code: Code) -> &'static str {
    match code {
        Code::InvalidRequest | Code::ContextLengthExceeded | Code::TooLarge => "invalid_request_error",
        Code::NotFound | Code::ModelNotFound => "not_found_error",
        Code::Unauthenticated => "authentication_error",
        Code::Forbidden => "permission_error",
        Code::RateLimited => "rate_limit_error",
        Code::Overloaded | Code::Draining | Code::Unavailable => "overloaded_error",
        Code::DeadlineExceeded => "timeout_error",
        Code::Cancelled => "cancelled_error",
        Code::Internal => "server_error",
    }
}

/// The body, as a response or as the data of an event in the middle of a stream.
pub fn body(error: &Error, request_id: &str) -> serde_json::Value {
    json!({"error": {
        "message": error.message,
        "type": kind(error.code),
        "param": error.param,
        "code": error.code.as_str(),
        "request_id": request_id,
    }})
}

pub fn response(error: &Error, request_id: &str) -> HttpResponse {
    let mut response = HttpResponse::build(status(error.code));
    response.insert_header((CONTENT_TYPE, "application/json"));
    if let Some(seconds) = error.retry_after_s {
        response.insert_header((RETRY_AFTER, seconds));
    }
    if error.code == Code::Unauthenticated {
        response.insert_header((WWW_AUTHENTICATE, "Bearer"));
    }
    response.body(body(error, request_id).to_string())
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
                assert!(status == 429 || status.is_server_error(), "{code} is worth another try but says {status}");
            }
        }
    }

    #[test]
    fn nothing_internal_is_shown() {
        let shown = body(&Error::internal("sqlite: /var/lib/x.db is broken"), "req_1").to_string();
        assert!(!shown.contains("sqlite") && shown.contains("req_1"), "{shown}");
    }
}
