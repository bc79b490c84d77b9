//! `GET /v1/models` and `/v1/models/{id}`.

use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Model<'a> {
    pub id: &'a str,
    /// Always `model`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub owned_by: &'static str,
    /// Bound on prompt plus output, in tokens. Not OpenAI's; vLLM has it too.
    pub max_model_len: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList<'a> {
    /// Always `list`.
    pub object: &'static str,
    pub data: &'a [Model<'a>],
}

impl<'a> Model<'a> {
    pub fn new(id: &'a str, created: u64, max_model_len: usize) -> Self {
        Self { id, object: "model", created, owned_by: "garrick", max_model_len }
    }
}

impl<'a> ModelList<'a> {
    pub fn new(data: &'a [Model<'a>]) -> Self {
        Self { object: "list", data }
    }
}
