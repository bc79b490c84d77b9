//! Liveness, readiness and metrics.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};

use super::wire::health::{Live, Ready};
use crate::actors::readiness;
use crate::actors::services::Services;
use crate::base::metrics::metrics;

/// The process runs and its HTTP side answers. Nothing more: an orchestrator restarts what fails this.
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(Live::LIVE)
}

/// Whether a request sent now would make progress: every lane answers, has its executor and has not been at one step for
/// too long, and the server is not draining.
pub async fn ready(services: web::Data<Services>) -> HttpResponse {
    let reasons = readiness::reasons(&services).await;
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    HttpResponse::build(status).json(Ready::new(reasons))
}

/// Prometheus text. What is true only at the moment is asked for now.
pub async fn prometheus(services: web::Data<Services>) -> HttpResponse {
    readiness::reasons(&services).await;
    let (requests, waiting_tokens) = services.admission.in_use();
    metrics().permits_in_use.set(requests as f64);
    metrics().waiting_tokens.set(waiting_tokens as f64);
    let lanes = &services.lanes;
    (0..lanes.len()).for_each(|lane| metrics().lane(lane).waiting.set(lanes.num_waiting(lane) as f64));
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(metrics().render())
}
