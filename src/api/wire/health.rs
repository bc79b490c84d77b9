//! `GET /health/live` and `/health/ready`.

use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Live {
    /// Always `live`.
    #[schema(example = "live")]
    pub status: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Ready {
    /// `ready` or `not ready`.
    #[schema(example = "ready")]
    pub status: &'static str,
    /// Why not; empty when ready.
    pub reasons: Vec<String>,
}

impl Live {
    pub const LIVE: Self = Self { status: "live" };
}

impl Ready {
    pub fn new(reasons: Vec<String>) -> Self {
        Self { status: if reasons.is_empty() { "ready" } else { "not ready" }, reasons }
    }
}
