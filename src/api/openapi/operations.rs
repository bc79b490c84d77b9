//! The table of operations.

use serde_json::{Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::path::HttpMethod;
use utoipa::openapi::schema::Schema;

use crate::api::wire::schema::reference;
use crate::api::wire::{chat, completion, health, models, response, tokenize};
use crate::base::error::Code;

/// One method of one path.
pub struct Operation {
    pub method: HttpMethod,
    pub path: &'static str,
    pub id: &'static str,
    pub tag: &'static str,
    pub summary: &'static str,
    pub description: &'static str,
    pub body: Option<Body>,
    pub answer: Answer,
    /// What it may fail with.
    pub codes: &'static [Code],
    /// Whether it answers without a key.
    pub open: bool,
}

pub struct Body {
    pub schema: fn() -> RefOr<Schema>,
    pub example: fn() -> Value,
}

/// What a good answer is.
pub enum Answer {
    Json(fn() -> RefOr<Schema>),
    /// Whole, or as events with `stream`.
    Streamed {
        whole: fn() -> RefOr<Schema>,
        chunk: fn() -> RefOr<Schema>,
    },
    /// 200, or the same body with 503.
    Readiness,
    /// Of this type.
    Text(&'static str),
    /// The OpenAPI document.
    Document,
    /// The head alone.
    Nothing,
    /// The head of a readiness answer.
    NoReadiness,
}

impl Operation {
    /// Whether it waits for a generation, which may have a deadline.
    pub fn takes_timeout(&self) -> bool {
        self.codes.contains(&Code::DeadlineExceeded)
    }
}

/// What every route behind the door may fail with: no key, keys that cannot be looked up, a defect.
const GUARDED: &[Code] = &[Code::Unauthenticated, Code::Unavailable, Code::Internal];
const TEXT: &[Code] = &[
    Code::InvalidRequest,
    Code::Unauthenticated,
    Code::ModelNotFound,
    Code::TooLarge,
    Code::RequestTimeout,
    Code::Overloaded,
    Code::Unavailable,
    Code::Internal,
];
const GENERATION: &[Code] = &[
    Code::InvalidRequest,
    Code::ContextLengthExceeded,
    Code::Unauthenticated,
    Code::ModelNotFound,
    Code::TooLarge,
    Code::RequestTimeout,
    Code::RateLimited,
    Code::Overloaded,
    Code::Draining,
    Code::Unavailable,
    Code::DeadlineExceeded,
    Code::Internal,
];

/// From this an operation takes what it does not say.
const BASE: Operation = Operation {
    method: HttpMethod::Get,
    path: "",
    id: "",
    tag: "",
    summary: "",
    description: "",
    body: None,
    answer: Answer::Nothing,
    codes: &[],
    open: false,
};

pub const OPERATIONS: &[Operation] = &[
    Operation {
        method: HttpMethod::Post,
        path: "/v1/chat/completions",
        id: "create_chat_completion",
        tag: "generate",
        summary: "Continue a conversation",
        description: "The answer comes whole, or with `stream` as server-sent events.",
        body: Some(Body { schema: reference::<chat::ChatRequest>, example: chat_example }),
        answer: Answer::Streamed {
            whole: reference::<response::ChatCompletion>,
            chunk: reference::<response::ChatChunk>,
        },
        codes: GENERATION,
        open: false,
    },
    Operation {
        method: HttpMethod::Post,
        path: "/v1/completions",
        id: "create_completion",
        tag: "generate",
        summary: "Continue texts",
        description: "One prompt or many, as text or as token ids. Choice `i` of prompt `p` has the index `p × n + i`.",
        body: Some(Body { schema: reference::<completion::CompletionRequest>, example: completion_example }),
        answer: Answer::Streamed {
            whole: reference::<response::Completion>,
            chunk: reference::<response::CompletionChunk>,
        },
        codes: GENERATION,
        open: false,
    },
    Operation {
        path: "/v1/models",
        id: "list_models",
        tag: "model",
        summary: "The served model, as a list",
        answer: Answer::Json(reference::<models::ModelList>),
        codes: GUARDED,
        ..BASE
    },
    Operation {
        path: "/v1/models/{id}",
        id: "get_model",
        tag: "model",
        summary: "The served model, by its name or `default`",
        answer: Answer::Json(reference::<models::Model>),
        codes: &[Code::Unauthenticated, Code::ModelNotFound, Code::Unavailable, Code::Internal],
        ..BASE
    },
    Operation {
        method: HttpMethod::Post,
        path: "/v1/chat/completions/render",
        id: "render_chat_completion",
        tag: "model",
        summary: "The prompt that a conversation becomes",
        description: "Costs no model time. Takes tools.",
        body: Some(Body { schema: reference::<chat::RenderRequest>, example: render_example }),
        answer: Answer::Json(reference::<tokenize::RenderResponse>),
        codes: TEXT,
        open: false,
    },
    Operation {
        method: HttpMethod::Post,
        path: "/tokenize",
        id: "tokenize",
        tag: "model",
        summary: "Text or a conversation to tokens",
        body: Some(Body { schema: reference::<tokenize::TokenizeRequest>, example: || json!({"prompt": "27 + 58"}) }),
        answer: Answer::Json(reference::<tokenize::TokenizeResponse>),
        codes: TEXT,
        ..BASE
    },
    Operation {
        method: HttpMethod::Post,
        path: "/detokenize",
        id: "detokenize",
        tag: "model",
        summary: "Tokens to text",
        body: Some(Body { schema: reference::<tokenize::DetokenizeRequest>, example: || json!({"tokens": [40, 41]}) }),
        answer: Answer::Json(reference::<tokenize::DetokenizeResponse>),
        codes: TEXT,
        ..BASE
    },
    Operation {
        path: "/health/live",
        id: "live",
        tag: "operate",
        summary: "Whether the process answers",
        answer: Answer::Json(reference::<health::Live>),
        open: true,
        ..BASE
    },
    Operation {
        method: HttpMethod::Head,
        path: "/health/live",
        id: "live_head",
        tag: "operate",
        summary: "Whether the process answers, without a body",
        open: true,
        ..BASE
    },
    Operation {
        path: "/health/ready",
        id: "ready",
        tag: "operate",
        summary: "Whether a request sent now would make progress",
        answer: Answer::Readiness,
        open: true,
        ..BASE
    },
    Operation {
        method: HttpMethod::Head,
        path: "/health/ready",
        id: "ready_head",
        tag: "operate",
        summary: "Whether a request sent now would make progress, without a body",
        answer: Answer::NoReadiness,
        open: true,
        ..BASE
    },
    Operation {
        path: "/metrics",
        id: "metrics",
        tag: "operate",
        summary: "Prometheus text",
        description: "Open with `auth.metrics_open`.",
        answer: Answer::Text("text/plain"),
        codes: GUARDED,
        ..BASE
    },
    Operation {
        path: "/openapi.json",
        id: "openapi",
        tag: "operate",
        summary: "This document",
        answer: Answer::Document,
        open: true,
        ..BASE
    },
    Operation {
        path: "/docs",
        id: "docs",
        tag: "operate",
        summary: "A page about this document, where requests can be tried",
        answer: Answer::Text("text/html"),
        open: true,
        ..BASE
    },
];

fn chat_example() -> Value {
    let messages = json!([{"role": "user", "content": "What is 27 + 58?"}]);
    json!({"model": "default", "messages": messages, "temperature": 0, "max_tokens": 64, "stream": true})
}

fn completion_example() -> Value {
    json!({"model": "default", "prompt": "Once", "temperature": 0, "max_tokens": 32, "stream": true})
}

fn render_example() -> Value {
    json!({"model": "default", "messages": [{"role": "user", "content": "What is 27 + 58?"}]})
}
