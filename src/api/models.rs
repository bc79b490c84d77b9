//! `GET /v1/models`.

use actix_web::{HttpResponse, web};

use super::error::ApiError;
use super::prompt;
use super::wire::models::{Model, ModelList};
use crate::actors::services::Services;

fn served(services: &Services) -> Model<'_> {
    let model = &services.model;
    Model::new(&model.name, model.created, model.max_model_len)
}

pub async fn list(services: web::Data<Services>) -> HttpResponse {
    HttpResponse::Ok().json(ModelList::new(&[served(&services)]))
}

pub async fn get(services: web::Data<Services>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    prompt::check_model(&services.model, &id)?;
    Ok(HttpResponse::Ok().json(served(&services)))
}
