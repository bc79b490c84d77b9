//! From messages or text to tokens: what every route that takes a prompt does, on the preparation pool.

use serde_json::Value;

use crate::actors::messages::Generation;
use crate::api::wire::Sampling;
use crate::api::wire::chat::TemplateInput;
use crate::base::error::Error;
use crate::base::faults;
use crate::model::TokenId;
use crate::model::text::{ChatError, ChatInput, flatten_text_parts, parse_tool_arguments};
use crate::route::ServedModel;

/// The text that a conversation becomes.
pub fn render(
    model: &ServedModel,
    mut messages: Value,
    tools: Option<&Value>,
    template: &TemplateInput,
) -> Result<String, Error> {
    let Some(chat_template) = &model.chat_template else {
        let message = format!("the model '{}' has no chat template; use /v1/completions", model.name);
        return Err(Error::invalid("messages", message));
    };
    parse_tool_arguments(&mut messages);
    if !chat_template.takes_parts() {
        flatten_text_parts(&mut messages);
    }
    let input = ChatInput {
        messages: &messages,
        tools,
        add_generation_prompt: template.add_generation_prompt,
        kwargs: &template.kwargs,
        bos_token: &model.bos_token,
        eos_token: &model.eos_token,
        now: jiff::Zoned::now().datetime(),
    };
    chat_template.render(&input).map_err(|error| match error {
        ChatError::Syntax { .. } => Error::internal(error),
        _ => Error::invalid("messages", error.to_string()),
    })
}

/// As [`encode`], for a prompt that is to be run: one that is far too long is refused before it costs memory.
pub fn encode_to_run(model: &ServedModel, text: &str, add_special: bool) -> Result<Vec<TokenId>, Error> {
    model.fits_text(text.len())?;
    encode(model, text, add_special)
}

/// A rendered chat has written its own special tokens; a plain text gets the tokenizer's.
pub fn encode(model: &ServedModel, text: &str, add_special: bool) -> Result<Vec<TokenId>, Error> {
    faults::hit("text.encode");
    model.tokenizer.encode(text, add_special).map_err(Error::internal)
}

/// Most log-probabilities that one answer may have, alternatives included: some 100 MB of JSON.
pub const MAX_ANSWER_LOGPROBS: usize = 4 << 20;

/// What is to be generated after `prompts`, each of which is echoed `num_echoes` times.
pub fn generation(
    model: &ServedModel,
    sampling: Sampling,
    prompts: Vec<Vec<TokenId>>,
    num_echoes: u32,
) -> Result<Generation, Error> {
    bound_logprobs(model, &sampling, &prompts, num_echoes)?;
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(Error::internal)?;
    let params = sampling.params(&model.defaults, u64::from_le_bytes(seed));
    let eos: &[TokenId] = if sampling.ignore_eos { &[] } else { &model.eos_tokens };
    Ok(Generation {
        prompts: prompts.into_iter().map(Into::into).collect(),
        num_choices: sampling.n,
        params: params.into(),
        stop_tokens: eos.iter().chain(&sampling.stop_token_ids).copied().collect(),
        min_tokens: sampling.min_tokens,
        max_tokens: sampling.max_tokens,
        stop_strings: sampling.stop.into(),
        include_stop: sampling.include_stop,
        prompt_logprobs: sampling.prompt_logprobs,
    })
}

/// Before anything is computed: a small request can ask for an answer of any size.
fn bound_logprobs(
    model: &ServedModel,
    sampling: &Sampling,
    prompts: &[Vec<TokenId>],
    num_echoes: u32,
) -> Result<(), Error> {
    let each = |wanted: Option<u8>| wanted.map_or(0, |top| 1 + usize::from(top));
    let of_prompts = each(sampling.prompt_logprobs) * num_echoes.max(1) as usize;
    let of_outputs = each(sampling.logprobs) * sampling.n as usize;
    let wanted: usize = prompts
        .iter()
        .map(|prompt| {
            let room = model.max_new_tokens(prompt.len());
            prompt.len() * of_prompts + sampling.max_tokens.map_or(room, |max| max.min(room)) as usize * of_outputs
        })
        .sum();
    if wanted <= MAX_ANSWER_LOGPROBS {
        return Ok(());
    }
    let message = format!(
        "the answer may have {wanted} log-probabilities, alternatives included; the limit is {MAX_ANSWER_LOGPROBS}: \
         lower logprobs, n or max_tokens, or send the prompts one by one"
    );
    Err(Error::invalid("logprobs", message))
}

/// The one model of this server, by any of its names.
pub fn check_model(model: &ServedModel, asked: &str) -> Result<(), Error> {
    if model.answers_to(asked) { Ok(()) } else { Err(Error::model_not_found(asked, &model.name)) }
}
