//! From a validated request to a running generation, and from its items to a whole answer: what both OpenAI routes do.

use std::time::Duration;

use actix_web::{HttpRequest, web};

use super::connection::Connection;
use super::{edge, wire};
use crate::actors::messages::{Begin, Delta, FinishReason, Item, Prepare, Usage};
use crate::actors::outlet::{OutletReader, outlet};
use crate::actors::request::RequestActor;
use crate::actors::services::{Services, Timeouts};
use crate::base::error::Error;
use crate::sample::TokenLogprobs;
use crate::sched::plan::Tokens;

const TIMEOUT_HEADER: &str = "x-request-timeout-ms";
/// Seconds until another replica, or this server again, should have taken over.
const DRAIN_RETRY_AFTER_S: u64 = 5;

/// A generation under way.
pub struct Running {
    pub reader: OutletReader,
    pub prompts: Vec<Tokens>,
}

/// Starts a request actor and waits until lanes have taken the request. Dropping the future, as actix-web does when the
/// client leaves, cancels it.
pub async fn begin(
    http: &HttpRequest,
    services: &web::Data<Services>,
    prepare: Prepare,
    input_bytes: usize,
) -> Result<Running, Error> {
    if services.live.is_draining() {
        return Err(Error::draining(DRAIN_RETRY_AFTER_S));
    }
    let (_, principal) = edge::passport(http)?;
    let timeout = timeout(http, &services.timeouts)?;
    let (writer, mut reader) = outlet();
    if let Some(connection) = http.conn_data::<Connection>().cloned() {
        reader.on_cut(move || connection.close());
    }
    let actor = RequestActor::begin(services.clone().into_inner(), principal, writer, edge::span(http));
    // Again, now that the drain would wait for it: otherwise it might stop the server under this request.
    if services.live.is_draining() {
        return Err(Error::draining(DRAIN_RETRY_AFTER_S));
    }
    let accepted = actor.send(Begin { prepare, input_bytes, timeout }).await.map_err(Error::internal)??;
    Ok(Running { reader, prompts: accepted.prompts })
}

fn timeout(http: &HttpRequest, timeouts: &Timeouts) -> Result<Option<Duration>, Error> {
    let Some(value) = http.headers().get(TIMEOUT_HEADER) else { return Ok(timeouts.default_deadline) };
    let max_ms = timeouts.max_deadline.as_millis() as u64;
    value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .filter(|ms| (1..=max_ms).contains(ms))
        .map(|ms| Some(Duration::from_millis(ms)))
        .ok_or_else(|| {
            let message = format!("X-Request-Timeout-Ms must be a whole number from 1 to {max_ms}");
            Error::invalid("X-Request-Timeout-Ms", message)
        })
}

/// A generation that has ended well.
pub struct Answer {
    /// By index: prompt by prompt, choice by choice.
    pub choices: Vec<Finished>,
    /// By prompt.
    pub prompt_logprobs: Vec<Vec<TokenLogprobs>>,
    pub usage: Usage,
}

#[derive(Default)]
pub struct Finished {
    pub text: String,
    pub tokens: Vec<TokenLogprobs>,
    pub finish: Option<FinishReason>,
}

/// Usage as the wire has it.
pub fn usage(usage: Usage) -> wire::response::Usage {
    wire::response::Usage::new(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
}

/// Waits for the end of the stream.
pub async fn collect(mut running: Running, num_choices: u32) -> Result<Answer, Error> {
    let num_prompts = running.prompts.len();
    let mut choices: Vec<Finished> = Vec::new();
    choices.resize_with(num_prompts * num_choices as usize, Finished::default);
    let mut prompt_logprobs = vec![Vec::new(); num_prompts];
    loop {
        match running.reader.next().await {
            Some(Item::Texts(texts)) => choices[texts.index as usize].text.push_str(texts.all()),
            Some(Item::Delta(Delta { index, text, tokens, finish })) => {
                let choice = &mut choices[index as usize];
                choice.text.push_str(&text);
                choice.tokens.extend(tokens);
                choice.finish = finish.or(choice.finish);
            }
            Some(Item::Prompt { prompt, logprobs }) => prompt_logprobs[prompt].extend(logprobs),
            Some(Item::End(usage)) => return Ok(Answer { choices, prompt_logprobs, usage }),
            Some(Item::Error(error)) => return Err(error),
            None => return Err(Error::internal("the stream ended without a last word")),
        }
    }
}
