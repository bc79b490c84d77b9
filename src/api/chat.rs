//! `POST /v1/chat/completions`, and the prompt that such a request becomes.

use actix_web::{HttpRequest, HttpResponse, web};

use super::body::Body;
use super::edge;
use super::error::ApiError;
use super::generate::{self, Answer};
use super::sse::{self, EventWriter, Shape, Template};
use super::wire::chat::{ChatRequest, RenderRequest};
use super::wire::response::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatMessage, ChunkUsage, Head,
};
use super::wire::tokenize::RenderResponse;
use super::{logprobs, prompt};
use crate::actors::messages::{Item, Prepare, Usage};
use crate::actors::services::Services;
use crate::base::clock;
use crate::base::error::{Code, Error};
use crate::base::id::{self, Kind};
use crate::route::ServedModel;

pub async fn create(http: HttpRequest, services: web::Data<Services>, body: Body) -> Result<HttpResponse, ApiError> {
    let request = ChatRequest::parse(&body, services.model.vocab_size as u32)?;
    prompt::check_model(&services.model, &request.model)?;
    let (streaming, num_choices) = (request.streaming, request.sampling.n);
    let wants_logprobs = request.sampling.logprobs.is_some();
    let wants_prompt_logprobs = request.sampling.prompt_logprobs.is_some();
    let running = generate::begin(&http, &services, prepare(&services, request), body.len()).await.map_err(in_chat)?;
    let reply = Reply { id: id::new(Kind::ChatCompletion), created: clock::unix_s(), services: services.clone() };
    if streaming.stream {
        let shape = Chunks::new(reply, num_choices, wants_logprobs, streaming.include_usage);
        let request_id = edge::passport(&http)?.0;
        return Ok(sse::respond(running.reader, shape, request_id, services.timeouts.heartbeat));
    }
    let answer = generate::collect(running, num_choices).await?;
    Ok(HttpResponse::Ok().json(reply.whole(&answer, wants_logprobs, wants_prompt_logprobs)))
}

fn prepare(services: &web::Data<Services>, request: ChatRequest) -> Prepare {
    let model = services.model.clone();
    Box::new(move || {
        let text = prompt::render(&model, request.messages, None, &request.template)?;
        let tokens = prompt::encode_to_run(&model, &text, false)?;
        prompt::generation(&model, request.sampling, vec![tokens], 0)
    })
}

/// In a chat, a prompt that is too long is a matter of `messages`.
fn in_chat(error: Error) -> Error {
    match (error.code, error.param.as_deref()) {
        (Code::ContextLengthExceeded | Code::InvalidRequest, Some("prompt")) => error.with_param("messages"),
        _ => error,
    }
}

/// `POST /v1/chat/completions/render`: costs no model time, and may carry tools.
pub async fn render(services: web::Data<Services>, body: Body) -> Result<HttpResponse, ApiError> {
    let request = RenderRequest::parse(&body, services.model.vocab_size as u32)?;
    prompt::check_model(&services.model, &request.chat.model)?;
    let model = services.model.clone();
    let (text, tokens) = super::text::in_pool(&services, move || {
        let chat = request.chat;
        let text = prompt::render(&model, chat.messages, request.tools.as_ref(), &chat.template)?;
        let tokens = prompt::encode(&model, &text, false)?;
        Ok((text, tokens))
    })
    .await?;
    Ok(HttpResponse::Ok().json(RenderResponse { prompt: &text, count: tokens.len(), tokens: &tokens }))
}

/// What all parts of one answer repeat.
struct Reply {
    id: String,
    created: u64,
    services: web::Data<Services>,
}

impl Reply {
    fn model(&self) -> &ServedModel {
        &self.services.model
    }

    fn head(&self, object: &'static str) -> Head<'_> {
        let model = self.model();
        Head {
            id: &self.id,
            object,
            created: self.created,
            model: &model.name,
            system_fingerprint: Some(&model.fingerprint),
        }
    }

    fn whole<'a>(
        &'a self,
        answer: &'a Answer,
        wants_logprobs: bool,
        wants_prompt_logprobs: bool,
    ) -> ChatCompletion<'a> {
        let tokenizer = &self.model().tokenizer;
        let choice = |(index, choice): (usize, &'a generate::Finished)| ChatChoice {
            index: index as u32,
            message: ChatMessage::new(&choice.text),
            logprobs: wants_logprobs.then(|| logprobs::chat(tokenizer, &choice.tokens)),
            finish_reason: choice.finish.map_or("stop", |f| f.as_str()),
        };
        ChatCompletion {
            head: self.head(Head::CHAT),
            choices: answer.choices.iter().enumerate().map(choice).collect(),
            usage: generate::usage(answer.usage),
            prompt_logprobs: wants_prompt_logprobs.then(|| logprobs::prompt(tokenizer, &answer.prompt_logprobs[0])),
        }
    }
}

/// The answer as a stream of chunks.
struct Chunks {
    reply: Reply,
    wants_logprobs: bool,
    usage_so_far: ChunkUsage,
    /// By choice: a chunk that brings text and nothing else.
    templates: Vec<Template>,
}

impl Chunks {
    fn new(reply: Reply, num_choices: u32, wants_logprobs: bool, wants_usage: bool) -> Self {
        let usage_so_far = if wants_usage { ChunkUsage::NotYet } else { ChunkUsage::NotAsked };
        let template = |index| {
            let choice = ChatChunkChoice { index, delta: ChatDelta::text(""), logprobs: None, finish_reason: None };
            Template::new(&chunk(&reply, &[choice], usage_so_far), "content")
        };
        let templates = (0..num_choices).map(template).collect();
        Self { reply, wants_logprobs, usage_so_far, templates }
    }
}

fn chunk<'a>(reply: &'a Reply, choices: &'a [ChatChunkChoice<'a>], usage: ChunkUsage) -> ChatChunk<'a> {
    ChatChunk { head: reply.head(Head::CHAT_CHUNK), choices, usage }
}

impl Shape for Chunks {
    fn open(&mut self, events: &mut EventWriter) {
        for index in (0..).take(self.templates.len()) {
            let choice = ChatChunkChoice { index, delta: ChatDelta::opening(), logprobs: None, finish_reason: None };
            events.json(&chunk(&self.reply, &[choice], self.usage_so_far));
        }
    }

    fn item(&mut self, item: Item, events: &mut EventWriter) {
        let delta = match item {
            Item::Texts(texts) => return events.texts(&self.templates[texts.index as usize], &texts),
            Item::Delta(delta) => delta,
            _ => return,
        };
        if !self.wants_logprobs && !delta.text.is_empty() && delta.finish.is_none() {
            return events.text(&self.templates[delta.index as usize], &delta.text);
        }
        let tokenizer = &self.reply.model().tokenizer;
        let choice = ChatChunkChoice {
            index: delta.index,
            delta: if delta.text.is_empty() { ChatDelta::default() } else { ChatDelta::text(&delta.text) },
            logprobs: self.wants_logprobs.then(|| logprobs::chat(tokenizer, &delta.tokens)),
            finish_reason: delta.finish.map(|f| f.as_str()),
        };
        events.json(&chunk(&self.reply, &[choice], self.usage_so_far));
    }

    fn end(&mut self, usage: Usage, events: &mut EventWriter) {
        if let ChunkUsage::NotYet = self.usage_so_far {
            events.json(&chunk(&self.reply, &[], ChunkUsage::Is(generate::usage(usage))));
        }
    }
}
