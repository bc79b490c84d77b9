//! Liveness, readiness and metrics.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};

use super::wire::health::{Live, Ready};
use crate::actors::messages::Inspect;
use crate::actors::services::Services;
use crate::base::metrics::metrics;

/// A scheduler that does not answer within this is as good as dead: it only ever enqueues.
const MAX_ANSWER: Duration = Duration::from_secs(1);

/// The process runs and its HTTP side answers. Nothing more: an orchestrator restarts what fails this.
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(Live::LIVE)
}

/// Whether a request sent now would make progress: every lane answers, none has been at one step for too long, and the
/// server is not draining.
pub async fn ready(services: web::Data<Services>) -> HttpResponse {
    let mut reasons = Vec::new();
    if services.live.is_draining() {
        reasons.push("draining".to_owned());
    }
    for lane in 0..services.lanes.len() {
        if let Some(reason) = trouble(&services, lane).await {
            reasons.push(format!("lane {lane}: {reason}"));
        }
    }
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    HttpResponse::build(status).json(Ready::new(reasons))
}

async fn trouble(services: &Services, lane: usize) -> Option<String> {
    let Some(address) = services.lanes.address(lane) else { return Some("not started".into()) };
    let max_step = services.timeouts.max_step;
    match tokio::time::timeout(MAX_ANSWER, address.send(Inspect)).await {
        Err(_) => Some("the scheduler does not answer".into()),
        Ok(Err(_)) => Some("the scheduler is being restarted".into()),
        Ok(Ok(report)) => match report.step_age {
            Some(age) if age > max_step => Some(format!("a step has been running for {} ms", age.as_millis())),
            _ => None,
        },
    }
}

/// Prometheus text.
pub async fn prometheus(services: web::Data<Services>) -> HttpResponse {
    metrics().permits_in_use.set(services.admission.in_use().0 as f64);
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(metrics().render())
}
