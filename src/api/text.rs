//! `POST /tokenize` and `/detokenize`: the model's text side without the model.

use actix_web::{HttpResponse, web};

use super::body::Body;
use super::error::ApiError;
use super::prompt;
use super::wire::tokenize::{DetokenizeRequest, DetokenizeResponse, TokenizeInput, TokenizeRequest, TokenizeResponse};
use crate::actors::admit::in_turn;
use crate::actors::services::Services;
use crate::base::error::Error;

pub async fn tokenize(services: web::Data<Services>, body: Body) -> Result<HttpResponse, ApiError> {
    let request = TokenizeRequest::parse(&body)?;
    if let Some(asked) = &request.model {
        prompt::check_model(&services.model, asked)?;
    }
    let (model, add_special) = (services.model.clone(), request.add_special_tokens);
    let input = request.input;
    let tokens = in_pool(&services, move || {
        let text = match input {
            TokenizeInput::Text(text) => text,
            TokenizeInput::Chat { messages, tools, template } => {
                prompt::render(&model, messages, tools.as_ref(), &template)?
            }
        };
        prompt::encode(&model, &text, add_special)
    })
    .await?;
    let tokenizer = &services.model.tokenizer;
    let token_strs = request.return_token_strs.then(|| tokens.iter().map(|t| tokenizer.token_text(*t)).collect());
    let max_model_len = services.model.max_model_len;
    Ok(HttpResponse::Ok().json(TokenizeResponse { count: tokens.len(), max_model_len, tokens: &tokens, token_strs }))
}

pub async fn detokenize(services: web::Data<Services>, body: Body) -> Result<HttpResponse, ApiError> {
    let request = DetokenizeRequest::parse(&body, services.model.vocab_size as u32)?;
    if let Some(asked) = &request.model {
        prompt::check_model(&services.model, asked)?;
    }
    let text = services.model.tokenizer.decode(&request.tokens, false);
    Ok(HttpResponse::Ok().json(DetokenizeResponse { prompt: &text }))
}

/// Runs text work beside that of generations, under the same bounds.
pub async fn in_pool<T: Send + 'static>(
    services: &Services,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let _permit = services.admission.try_admit()?;
    in_turn(services, work).await
}
