//! The one error that leaves the server: what a client may read, kept apart from what only the log may.
//!
//! Owns the codes and whether trying again can help. Never knows about HTTP: statuses and bodies are the API layer's.
//!
//! Invariant: `message` holds nothing internal; whatever describes our own state goes to `internal`.

use std::fmt;

/// What went wrong, in a word that clients may match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// A field is missing, malformed or out of range.
    InvalidRequest,
    /// Prompt and output do not fit the model's context or the KV pool.
    ContextLengthExceeded,
    /// No key, or one that is unknown or revoked.
    Unauthenticated,
    /// A good key without the right to this.
    Forbidden,
    /// No such route or object.
    NotFound,
    ModelNotFound,
    /// The route has other methods.
    MethodNotAllowed,
    /// The body is larger than `server.max_body_bytes`.
    TooLarge,
    /// The body did not arrive within `server.read_timeout_s`.
    RequestTimeout,
    /// A limit of this key.
    RateLimited,
    /// A limit of the server: no permit, or too many tokens waiting.
    Overloaded,
    /// The request's own deadline passed.
    DeadlineExceeded,
    /// The client went away, or asked for the end.
    Cancelled,
    /// The server is shutting down.
    Draining,
    /// Not ready to serve yet, or no longer making progress.
    Unavailable,
    /// Our fault; the reason is in the log under the request's id.
    Internal,
}

impl Code {
    /// Every code, for tables and tests.
    pub const ALL: [Code; 16] = [
        Code::InvalidRequest,
        Code::ContextLengthExceeded,
        Code::Unauthenticated,
        Code::Forbidden,
        Code::NotFound,
        Code::ModelNotFound,
        Code::MethodNotAllowed,
        Code::TooLarge,
        Code::RequestTimeout,
        Code::RateLimited,
        Code::Overloaded,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::Draining,
        Code::Unavailable,
        Code::Internal,
    ];

    /// The word in logs, metrics and bodies.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::InvalidRequest => "invalid_request",
            Code::ContextLengthExceeded => "context_length_exceeded",
            Code::Unauthenticated => "unauthenticated",
            Code::Forbidden => "forbidden",
            Code::NotFound => "not_found",
            Code::ModelNotFound => "model_not_found",
            Code::MethodNotAllowed => "method_not_allowed",
            Code::TooLarge => "too_large",
            Code::RequestTimeout => "request_timeout",
            Code::RateLimited => "rate_limited",
            Code::Overloaded => "overloaded",
            Code::DeadlineExceeded => "deadline_exceeded",
            Code::Cancelled => "cancelled",
            Code::Draining => "draining",
            Code::Unavailable => "unavailable",
            Code::Internal => "internal",
        }
    }

    /// Whether the same request may succeed later without being changed.
    pub const fn retryable(self) -> bool {
        match self {
            Code::RequestTimeout
            | Code::RateLimited
            | Code::Overloaded
            | Code::Draining
            | Code::Unavailable
            | Code::Internal => true,
            Code::InvalidRequest
            | Code::ContextLengthExceeded
            | Code::Unauthenticated
            | Code::Forbidden
            | Code::NotFound
            | Code::ModelNotFound
            | Code::MethodNotAllowed
            | Code::TooLarge
            | Code::DeadlineExceeded
            | Code::Cancelled => false,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error on its way to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    /// For the client.
    pub message: String,
    /// For the log.
    pub internal: Option<String>,
    /// The request's field at fault, as `messages[2].content`.
    pub param: Option<String>,
    /// When to come back, computed; only with codes that are [`Code::retryable`].
    pub retry_after_s: Option<u64>,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), internal: None, param: None, retry_after_s: None }
    }

    /// A field of the request is wrong.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, message).with_param(param)
    }

    /// The request is wrong as a whole (not JSON, say), with no one field at fault.
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, message)
    }

    pub fn context_length(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::ContextLengthExceeded, message).with_param(param)
    }

    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(Code::Unauthenticated, message)
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(Code::Forbidden, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    pub fn model_not_found(asked: &str, served: &str) -> Self {
        let asked: String = asked.chars().take(200).collect();
        Self::new(Code::ModelNotFound, format!("the model '{asked}' does not exist here; '{served}' is served"))
            .with_param("model")
    }

    /// `allowed`: the methods that there are, as `GET, HEAD`.
    pub fn method_not_allowed(method: &str, allowed: &str) -> Self {
        let method: String = method.chars().take(32).collect();
        Self::new(Code::MethodNotAllowed, format!("this route does not take {method}; it takes {allowed}"))
    }

    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(Code::TooLarge, format!("the body is larger than the limit of {limit_bytes} bytes"))
    }

    pub fn rate_limited(message: impl Into<String>, retry_after_s: u64) -> Self {
        Self::new(Code::RateLimited, message).with_retry_after(retry_after_s)
    }

    pub fn overloaded(message: impl Into<String>, retry_after_s: u64) -> Self {
        Self::new(Code::Overloaded, message).with_retry_after(retry_after_s)
    }

    pub fn deadline_exceeded(message: impl Into<String>) -> Self {
        Self::new(Code::DeadlineExceeded, message)
    }

    pub fn cancelled() -> Self {
        Self::new(Code::Cancelled, "the request was cancelled")
    }

    /// `retry_after_s`: when another replica, or this one restarted, should answer.
    pub fn draining(retry_after_s: u64) -> Self {
        Self::new(Code::Draining, "the server is shutting down; try again").with_retry_after(retry_after_s)
    }

    pub fn unavailable(message: impl Into<String>, retry_after_s: u64) -> Self {
        Self::new(Code::Unavailable, message).with_retry_after(retry_after_s)
    }

    /// `internal` goes to the log only; the client reads a fixed sentence.
    pub fn internal(internal: impl fmt::Display) -> Self {
        Self::new(Code::Internal, "internal error; the server's log has the reason under this request's id")
            .with_internal(internal)
    }

    /// The body did not arrive within `limit_s`.
    pub fn read_timeout(limit_s: u64) -> Self {
        let message = format!("the body did not arrive within {limit_s} s (server.read_timeout_s); send it faster");
        Self::new(Code::RequestTimeout, message)
    }

    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub fn with_internal(mut self, internal: impl fmt::Display) -> Self {
        self.internal = Some(internal.to_string());
        self
    }

    pub fn with_retry_after(mut self, retry_after_s: u64) -> Self {
        self.retry_after_s = Some(retry_after_s);
        self
    }

    pub fn retryable(&self) -> bool {
        self.code.retryable()
    }
}

/// For the client: code and message, nothing internal.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_never_reads_what_is_internal() {
        let e = Error::internal("sqlite: disk image is malformed at /var/lib/garrick.db");
        assert!(!e.to_string().contains("sqlite"));
        assert!(e.internal.as_deref().unwrap().contains("sqlite"));
        assert!(e.retryable());
    }

    #[test]
    fn codes_are_distinct_words() {
        let mut words: Vec<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Code::ALL.len());
        assert!(words.iter().all(|w| w.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }

    #[test]
    fn an_unknown_model_names_both_and_stays_short() {
        let e = Error::model_not_found(&"x".repeat(10_000), "demo");
        assert_eq!(e.param.as_deref(), Some("model"));
        assert!(e.message.contains("'demo'") && e.message.len() < 300, "{}", e.message);
    }
}
