//! `POST /v1/completions`: one prompt or many, as text or as tokens.

use actix_web::{HttpRequest, HttpResponse, web};

use super::body::Body;
use super::edge;
use super::error::ApiError;
use super::generate::{self, Answer};
use super::sse::{self, EventWriter, Shape, Template};
use super::wire::completion::{CompletionRequest, Prompt};
use super::wire::logprobs::CompletionLogprobs;
use super::wire::response::{ChunkUsage, Completion, CompletionChoice, CompletionChunk, Head};
use super::{logprobs, prompt};
use crate::actors::messages::{Item, Prepare, Usage};
use crate::actors::services::Services;
use crate::base::clock;
use crate::base::id::{self, Kind};
use crate::route::ServedModel;
use crate::sample::TokenLogprobs;
use crate::sched::plan::Tokens;

pub async fn create(http: HttpRequest, services: web::Data<Services>, body: Body) -> Result<HttpResponse, ApiError> {
    let mut request = CompletionRequest::parse(&body, services.model.vocab_size as u32)?;
    prompt::check_model(&services.model, &request.model)?;
    let streaming = request.streaming;
    let wants_prompt_logprobs = request.sampling.prompt_logprobs.is_some();
    if request.echo && request.sampling.prompt_logprobs.is_none() {
        // An echoed prompt carries its log-probabilities as generated tokens do.
        request.sampling.prompt_logprobs = request.sampling.logprobs;
    }
    let wanted = Wanted {
        echo: request.echo,
        logprobs: request.sampling.logprobs.is_some(),
        prompt_logprobs: wants_prompt_logprobs,
        usage: streaming.include_usage,
        num_choices: request.sampling.n,
    };
    let running = generate::begin(&http, &services, prepare(&services, request), body.len()).await?;
    let reply = Reply {
        id: id::new(Kind::Completion),
        created: clock::unix_s(),
        services: services.clone(),
        wanted,
        prompts: running.prompts.clone(),
    };
    if streaming.stream {
        let request_id = edge::passport(&http)?.0;
        let shape = Chunks::new(reply);
        return Ok(sse::respond(running.reader, shape, request_id, services.timeouts.heartbeat));
    }
    let answer = generate::collect(running, wanted.num_choices).await?;
    let texts: Vec<String> = answer.choices.iter().enumerate().map(|(i, c)| reply.text(i, &c.text)).collect();
    Ok(HttpResponse::Ok().json(reply.whole(&answer, &texts)))
}

fn prepare(services: &web::Data<Services>, request: CompletionRequest) -> Prepare {
    let model = services.model.clone();
    Box::new(move || {
        let tokens = |prompt| match prompt {
            Prompt::Text(text) => prompt::encode_to_run(&model, &text, true),
            Prompt::Tokens(tokens) => Ok(tokens),
        };
        let prompts = request.prompts.into_iter().map(tokens).collect::<Result<_, _>>()?;
        let num_echoes = if request.echo { request.sampling.n } else { 0 };
        prompt::generation(&model, request.sampling, prompts, num_echoes)
    })
}

#[derive(Debug, Clone, Copy)]
struct Wanted {
    echo: bool,
    logprobs: bool,
    prompt_logprobs: bool,
    usage: bool,
    num_choices: u32,
}

/// What all parts of one answer share.
struct Reply {
    id: String,
    created: u64,
    services: web::Data<Services>,
    wanted: Wanted,
    prompts: Vec<Tokens>,
}

impl Reply {
    fn model(&self) -> &ServedModel {
        &self.services.model
    }

    fn head(&self) -> Head<'_> {
        let model = self.model();
        Head {
            id: &self.id,
            object: Head::TEXT,
            created: self.created,
            model: &model.name,
            system_fingerprint: Some(&model.fingerprint),
        }
    }

    fn prompt_of(&self, index: usize) -> usize {
        index / self.wanted.num_choices as usize
    }

    fn prompt_text(&self, prompt: usize) -> String {
        self.model().tokenizer.decode(&self.prompts[prompt], true)
    }

    fn text(&self, index: usize, generated: &str) -> String {
        let echoed = if self.wanted.echo { self.prompt_text(self.prompt_of(index)) } else { String::new() };
        echoed + generated
    }

    /// The prompt's own tokens, as the first part of an echoed choice's log-probabilities.
    fn echoed_logprobs(&self, prompt: usize, predicted: &[TokenLogprobs]) -> CompletionLogprobs {
        let tokenizer = &self.model().tokenizer;
        let mut out = CompletionLogprobs::default();
        if let Some(first) = self.prompts[prompt].first() {
            out.push(tokenizer.token_text(*first), !tokenizer.is_special(*first), None, None);
        }
        logprobs::add_completion(tokenizer, predicted, &mut out);
        out
    }

    fn whole<'a>(&'a self, answer: &'a Answer, texts: &'a [String]) -> Completion<'a> {
        let tokenizer = &self.model().tokenizer;
        let choice = |(index, choice): (usize, &'a generate::Finished)| {
            let predicted = &answer.prompt_logprobs[self.prompt_of(index)];
            let logprobs = self.wanted.logprobs.then(|| {
                let mut out = match self.wanted.echo {
                    true => self.echoed_logprobs(self.prompt_of(index), predicted),
                    false => CompletionLogprobs::default(),
                };
                logprobs::add_completion(tokenizer, &choice.tokens, &mut out);
                out
            });
            CompletionChoice {
                index: index as u32,
                text: &texts[index],
                logprobs,
                finish_reason: choice.finish.map(|f| f.as_str()),
                prompt_logprobs: self.wanted.prompt_logprobs.then(|| logprobs::prompt(tokenizer, predicted)),
            }
        };
        Completion {
            head: self.head(),
            choices: answer.choices.iter().enumerate().map(choice).collect(),
            usage: generate::usage(answer.usage),
        }
    }
}

/// The answer as a stream of chunks.
struct Chunks {
    reply: Reply,
    /// By index: characters told so far, where the next token's text begins.
    offsets: Vec<usize>,
    /// By prompt: log-probabilities that have come, until all have.
    prompt_logprobs: Vec<Vec<TokenLogprobs>>,
    usage_so_far: ChunkUsage,
    /// By index: a chunk that brings text and nothing else.
    templates: Vec<Template>,
}

impl Chunks {
    fn new(reply: Reply) -> Self {
        let num_prompts = reply.prompts.len();
        let offsets = vec![0; num_prompts * reply.wanted.num_choices as usize];
        let usage_so_far = if reply.wanted.usage { ChunkUsage::NotYet } else { ChunkUsage::NotAsked };
        let template = |index| {
            let choice =
                CompletionChoice { index, text: "", logprobs: None, finish_reason: None, prompt_logprobs: None };
            Template::new(&chunk(&reply, &[choice], usage_so_far), "text")
        };
        let templates = (0..).map(template).take(offsets.len()).collect();
        Self { reply, offsets, prompt_logprobs: vec![Vec::new(); num_prompts], usage_so_far, templates }
    }

    /// The prompt, as the first chunk of each of its choices.
    fn echo(&mut self, prompt: usize, events: &mut EventWriter) {
        let num_choices = self.reply.wanted.num_choices as usize;
        let text = self.reply.prompt_text(prompt);
        for index in prompt * num_choices..(prompt + 1) * num_choices {
            let logprobs =
                self.reply.wanted.logprobs.then(|| self.reply.echoed_logprobs(prompt, &self.prompt_logprobs[prompt]));
            self.offsets[index] = logprobs.as_ref().map_or(0, CompletionLogprobs::next_offset);
            let choice = CompletionChoice {
                index: index as u32,
                text: &text,
                logprobs,
                finish_reason: None,
                prompt_logprobs: None,
            };
            events.json(&chunk(&self.reply, &[choice], self.usage_so_far));
        }
    }
}

fn chunk<'a>(reply: &'a Reply, choices: &'a [CompletionChoice<'a>], usage: ChunkUsage) -> CompletionChunk<'a> {
    CompletionChunk { head: reply.head(), choices, usage }
}

impl Shape for Chunks {
    fn open(&mut self, events: &mut EventWriter) {
        for prompt in 0..self.reply.prompts.len() {
            // With log-probabilities a prompt is told when it has been computed; one token alone has none to wait for.
            if self.reply.wanted.echo && (!self.reply.wanted.logprobs || self.reply.prompts[prompt].len() == 1) {
                self.echo(prompt, events);
            }
        }
    }

    fn item(&mut self, item: Item, events: &mut EventWriter) {
        let delta = match item {
            Item::Texts(texts) => return events.texts(&self.templates[texts.index as usize], &texts),
            Item::Delta(delta) => delta,
            Item::Prompt { prompt, logprobs } => {
                self.prompt_logprobs[prompt].extend(logprobs);
                if self.prompt_logprobs[prompt].len() + 1 == self.reply.prompts[prompt].len() {
                    self.echo(prompt, events);
                }
                return;
            }
            Item::End(_) | Item::Error(_) => return,
        };
        if !self.reply.wanted.logprobs && delta.finish.is_none() {
            return events.text(&self.templates[delta.index as usize], &delta.text);
        }
        let logprobs = self.reply.wanted.logprobs.then(|| {
            let offset = &mut self.offsets[delta.index as usize];
            let mut out = CompletionLogprobs::starting_at(*offset);
            logprobs::add_completion(&self.reply.model().tokenizer, &delta.tokens, &mut out);
            *offset = out.next_offset();
            out
        });
        let choice = CompletionChoice {
            index: delta.index,
            text: &delta.text,
            logprobs,
            finish_reason: delta.finish.map(|f| f.as_str()),
            prompt_logprobs: None,
        };
        events.json(&chunk(&self.reply, &[choice], self.usage_so_far));
    }

    fn end(&mut self, usage: Usage, events: &mut EventWriter) {
        if self.reply.wanted.usage {
            events.json(&chunk(&self.reply, &[], ChunkUsage::Is(generate::usage(usage))));
        }
    }
}
