//! A job that has been admitted: it holds KV blocks.

use std::sync::Arc;

use super::draft::Drafter;
use super::job::{Branch, Event, Finish, Job};
use super::plan::{PromptLogprobs, SeqId};
use crate::kv::{BlockTable, TokenParts};
use crate::model::TokenId;
use crate::sample::{History, SampleSpec};

/// One sequence of tokens and its blocks. It stands for all choices of its job until the prompt is computed, and for
/// one choice from then on.
#[derive(Debug)]
pub(super) struct Sequence<S> {
    pub id: SeqId,
    pub job: Job<S>,
    pub table: BlockTable,
    /// Reported once, with the first step that succeeds.
    pub queued_us: u64,
    pub cached_tokens: u32,
    /// Made with the first step that could have drafts.
    pub drafter: Option<Box<Drafter>>,
}

impl<S> Sequence<S> {
    /// Tokens known so far.
    pub fn num_tokens(&self) -> usize {
        self.job.num_tokens()
    }

    /// Tokens known but not computed; never 0 between steps.
    pub fn num_pending(&self) -> usize {
        self.num_tokens() - self.table.num_tokens()
    }

    /// Takes one row in every step.
    pub fn is_decoding(&self) -> bool {
        self.num_pending() == 1 && !self.output().is_empty()
    }

    /// Running sequences it counts for: a prompt with `n` choices becomes `n`.
    pub fn num_branches(&self) -> usize {
        self.job.branches.len()
    }

    pub fn output(&self) -> &[TokenId] {
        self.job.branches.first().map_or(&[], |branch| &branch.output)
    }

    pub fn tokens(&self) -> TokenParts<'_> {
        TokenParts { prompt: &self.job.prompt, output: self.output() }
    }

    /// Writes the draws that a step ending at `end` tokens makes: none before the last known token. `draws` may hold
    /// those of an earlier step, whose shared parts stay.
    pub fn samples(&self, end: usize, no_tokens: &Arc<[TokenId]>, draws: &mut Vec<SampleSpec>) {
        let wanted = end == self.num_tokens() && self.job.stop.max_tokens > 0;
        let branches = if wanted { self.job.branches.as_slice() } else { &[] };
        draws.truncate(branches.len());
        for (draw, branch) in draws.iter_mut().zip(branches) {
            self.renew(draw, branch, no_tokens);
        }
        draws.extend(branches[draws.len()..].iter().map(|branch| self.sample(branch, no_tokens)));
    }

    /// Adds the draws of the rows of `drafts`, each as it will be if all drafts up to its row are drawn.
    pub fn draft_samples(&self, drafts: &[TokenId], no_tokens: &Arc<[TokenId]>, draws: &mut Vec<SampleSpec>) {
        let Some(branch) = self.job.branches.first() else { return };
        for num in 1..=drafts.len() {
            let mut draw = self.sample(branch, no_tokens);
            draw.index += num as u32;
            draw.banned = self.banned(draw.index, no_tokens).clone();
            if let Some(history) = &mut draw.history {
                history.output.extend_from_slice(&drafts[..num]);
            }
            draws.push(draw);
        }
    }

    /// As [`Sequence::sample`]; counting references anew in every step would cost more than all the rest.
    fn renew(&self, draw: &mut SampleSpec, branch: &Branch, no_tokens: &Arc<[TokenId]>) {
        let banned = self.banned(branch.output.len() as u32, no_tokens);
        if !Arc::ptr_eq(&draw.params, &self.job.params) || self.job.params.needs_history() {
            *draw = self.sample(branch, no_tokens);
            return;
        }
        (draw.choice, draw.index) = (branch.choice, branch.output.len() as u32);
        if !Arc::ptr_eq(&draw.banned, banned) {
            draw.banned = banned.clone();
        }
    }

    /// Stop tokens, among the first `min_tokens`.
    fn banned<'a>(&'a self, index: u32, no_tokens: &'a Arc<[TokenId]>) -> &'a Arc<[TokenId]> {
        if index < self.job.stop.min_tokens { &self.job.stop.stop_tokens } else { no_tokens }
    }

    fn sample(&self, branch: &Branch, no_tokens: &Arc<[TokenId]>) -> SampleSpec {
        let params = &self.job.params;
        SampleSpec {
            params: params.clone(),
            choice: branch.choice,
            index: branch.output.len() as u32,
            history: params
                .needs_history()
                .then(|| History { prompt: self.job.prompt.clone(), output: branch.output.clone() }),
            banned: self.banned(branch.output.len() as u32, no_tokens).clone(),
        }
    }

    /// Tokens that may still be drawn after the next one.
    pub fn max_drafts(&self, max_sequence_tokens: usize) -> usize {
        let output = (self.job.stop.max_tokens as usize).saturating_sub(self.output().len());
        output.min(max_sequence_tokens.saturating_sub(self.num_tokens())).saturating_sub(1)
    }

    /// What a chunk that ends at `end` tokens must report about the prompt.
    pub fn prompt_logprobs(&self, end: usize) -> Option<PromptLogprobs> {
        let top = self.job.prompt_logprobs?;
        self.lacks_prompt_logprobs().then(|| PromptLogprobs { top, next: self.job.prompt.get(end).copied() })
    }

    pub fn lacks_prompt_logprobs(&self) -> bool {
        lacks_prompt_logprobs(&self.job)
    }

    /// Why its first branch ends with the token just appended, if it does.
    pub fn finish_after(&self, token: TokenId, max_sequence_tokens: usize) -> Option<Finish> {
        let (stop, num_output) = (&self.job.stop, self.output().len());
        // A stop token among the first `min_tokens` was banned; one that is drawn nevertheless does not count.
        if num_output > stop.min_tokens as usize && stop.stop_tokens.contains(&token) {
            return Some(Finish::Stop);
        }
        let is_full = num_output >= stop.max_tokens as usize || self.num_tokens() >= max_sequence_tokens;
        is_full.then_some(Finish::Length)
    }

    /// `Finished` for every branch that the text side has not ended.
    pub fn finished(&self, finish: &Finish) -> Vec<Event> {
        finished(&self.job, finish)
    }
}

pub(super) fn lacks_prompt_logprobs<S>(job: &Job<S>) -> bool {
    job.prompt_logprobs.is_some() && (job.progress.num_prompt_logprobs as usize) + 1 < job.prompt.len()
}

/// `Finished` for every branch that the text side has not ended in the meantime.
pub(super) fn finished<S>(job: &Job<S>, finish: &Finish) -> Vec<Event> {
    let going_on = job.branches.iter().filter(|branch| !job.cancel.is_finished(branch.choice));
    going_on.map(|branch| Event::Finished { choice: branch.choice, finish: finish.clone() }).collect()
}
