//! From the sampler's numbers to the two APIs' words.

use super::wire::logprobs::{
    ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, PromptLogprob, PromptLogprobs, TokenText, TopLogprobs,
};
use crate::model::TokenId;
use crate::model::text::Tokenizer;
use crate::sample::TokenLogprobs;

pub fn chat<'a>(tokenizer: &'a Tokenizer, tokens: &[TokenLogprobs]) -> ChatLogprobs<'a> {
    let text = |token: TokenId, logprob: f32| TokenText::new(tokenizer.token_bytes(token), logprob);
    let one = |t: &TokenLogprobs| ChatTokenLogprob {
        token: text(t.token, t.logprob),
        top_logprobs: t.top.iter().map(|&(token, logprob)| text(token, logprob)).collect(),
    };
    ChatLogprobs { content: tokens.iter().map(one).collect(), refusal: None }
}

/// Adds generated tokens, or prompt tokens that something predicted.
pub fn add_completion(tokenizer: &Tokenizer, tokens: &[TokenLogprobs], out: &mut CompletionLogprobs) {
    for t in tokens {
        let top: TopLogprobs = t.top.iter().map(|&(token, l)| (tokenizer.token_text(token), l)).collect();
        out.push(tokenizer.token_text(t.token), !tokenizer.is_special(t.token), Some(t.logprob), Some(top));
    }
}

/// One entry for each prompt token; nothing predicted the first.
pub fn prompt(tokenizer: &Tokenizer, tokens: &[TokenLogprobs]) -> Vec<Option<PromptLogprobs>> {
    let entry = |token: TokenId, logprob: f32, rank: u32| {
        (token, PromptLogprob { logprob, rank, decoded_token: tokenizer.token_text(token) })
    };
    let one = |t: &TokenLogprobs| {
        let own = std::iter::once(entry(t.token, t.logprob, t.rank));
        let top = t.top.iter().enumerate().map(|(i, &(token, logprob))| entry(token, logprob, i as u32 + 1));
        Some(PromptLogprobs(own.chain(top).collect()))
    };
    std::iter::once(None).chain(tokens.iter().map(one)).collect()
}
