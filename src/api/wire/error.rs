//! The body of every error.

use serde::Serialize;
use utoipa::ToSchema;

use super::schema;
use crate::base::error::{Code, Error};

/// `{"error": {…}}`, as in an `error` event of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody<'a> {
    pub error: ErrorObject<'a>,
}

/// OpenAI's four fields, all always there, and the id under which the log has more.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorObject<'a> {
    pub message: &'a str,
    #[serde(rename = "type")]
    #[schema(schema_with = schema::error_type)]
    pub kind: &'static str,
    /// The field at fault, as `messages[2].content`.
    #[schema(required = true)]
    pub param: Option<&'a str>,
    #[schema(schema_with = schema::error_code)]
    pub code: &'static str,
    pub request_id: &'a str,
}

impl<'a> ErrorBody<'a> {
    /// Nothing internal: [`Error::message`] is for clients by contract.
    pub fn new(error: &'a Error, request_id: &'a str) -> Self {
        Self {
            error: ErrorObject {
                message: &error.message,
                kind: kind(error.code),
                param: error.param.as_deref(),
                code: code(error.code),
                request_id,
            },
        }
    }
}

/// OpenAI's word where it has one that its clients match on.
pub(in crate::api) fn code(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => "invalid_api_key",
        Code::RateLimited => "rate_limit_exceeded",
        other => other.as_str(),
    }
}

pub(in crate::api) fn kind(code: Code) -> &'static str {
    match code {
        Code::InvalidRequest
        | Code::ContextLengthExceeded
        | Code::NotFound
        | Code::ModelNotFound
        | Code::MethodNotAllowed
        | Code::TooLarge => "invalid_request_error",
        Code::Unauthenticated => "authentication_error",
        Code::Forbidden => "permission_error",
        Code::RateLimited => "rate_limit_error",
        Code::Overloaded | Code::Draining | Code::Unavailable => "service_unavailable_error",
        Code::RequestTimeout | Code::DeadlineExceeded => "timeout_error",
        Code::Cancelled => "cancelled_error",
        Code::Internal => "server_error",
    }
}
