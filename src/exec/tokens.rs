//! Tokens from a device that draws: what a plan asks of its logits, and what becomes of the answers.
//!
//! Never draws. Invariant: a sequence is answered by the device alone or by the host alone, and gets the same either way.

use smallvec::SmallVec;

use super::ExecError;
use super::runner::num_logit_rows;
use crate::model::TokenId;
use crate::model::draws::{Answers, MAX_TOP, NO_TOKEN, Requests, Score};
use crate::sample::{self, Sampled, Scratch, TokenLogprobs};
use crate::sched::plan::{SeqOutput, SeqRows, StepPlan};

/// One lane's; kept between steps.
#[derive(Default)]
pub(super) struct Tokens {
    pub requests: Requests,
    pub answers: Answers,
    scratch: Scratch,
    /// For each sequence of the plan.
    is_hosts: Vec<bool>,
}

impl Tokens {
    /// Asks for all that the plan wants, of logits that lie in the order in which the runner asked for them. The rows of
    /// sequences that a device cannot answer are asked for as they are.
    pub fn ask(&mut self, plan: &StepPlan, vocab_size: usize) {
        self.requests.clear();
        self.is_hosts.clear();
        let mut row = 0;
        for rows in &plan.rows {
            let Requests { draws, changes, scores, .. } = &self.requests;
            let before = (draws.len(), changes.len(), scores.len());
            let end = row + num_logit_rows(rows) as u32;
            let is_devices = self.ask_device(rows, row, vocab_size);
            if !is_devices {
                let Requests { draws, changes, scores, rows } = &mut self.requests;
                draws.truncate(before.0);
                changes.truncate(before.1);
                scores.truncate(before.2);
                rows.extend(row..end);
            }
            self.is_hosts.push(!is_devices);
            row = end;
        }
    }

    /// False where a device cannot: it finds [`MAX_TOP`] alternatives at most, and changes a row once for all of its draws.
    fn ask_device(&mut self, rows: &SeqRows, first_row: u32, vocab_size: usize) -> bool {
        if let Some(prompt) = rows.prompt_logprobs {
            let tokens = rows.tokens[1..].iter().copied().chain(prompt.next);
            let score = |(row, token)| Score { row, token, draw: 0, top: prompt.top.into() };
            self.requests.scores.extend((first_row..).zip(tokens).map(score));
        }
        let first_draw = self.requests.draws.len();
        let Tokens { requests, scratch, .. } = self;
        let asked = if rows.num_drafts > 0 {
            let mut each = (first_row..).zip(rows.samples.chunks(1));
            each.all(|(row, spec)| sample::request(spec, row, vocab_size, scratch, requests))
        } else {
            let row = (first_row + num_logit_rows(rows) as u32).saturating_sub(1);
            sample::request(&rows.samples, row, vocab_size, scratch, requests)
        };
        if !asked {
            return false;
        }
        for (draw, spec) in (first_draw..).zip(&rows.samples) {
            if let Some(top) = spec.params.logprobs {
                let row = requests.draws[draw].row;
                requests.scores.push(Score { row, token: NO_TOKEN, draw: draw as u32, top: top.into() });
            }
        }
        let tops = rows.samples.iter().filter_map(|spec| spec.params.logprobs);
        tops.chain(rows.prompt_logprobs.map(|prompt| prompt.top)).all(|top| usize::from(top) <= MAX_TOP)
    }

    /// Sequences that the host must answer, from [`Answers::logits`].
    pub fn hosts<'a>(&self, plan: &'a StepPlan) -> impl Iterator<Item = &'a SeqRows> {
        plan.rows.iter().zip(&self.is_hosts).filter(|(_, is_hosts)| **is_hosts).map(|(rows, _)| rows)
    }

    /// What every sequence of the plan gets. `hosts` are the outputs of [`Tokens::hosts`].
    pub fn take(&mut self, plan: &StepPlan, hosts: Vec<SeqOutput>) -> Result<Vec<SeqOutput>, ExecError> {
        let mut hosts = hosts.into_iter();
        let mut tokens = self.answers.tokens.iter().copied();
        let mut scores = self.answers.scores.drain(..).map(|scored| {
            let is_number = !scored.max.is_nan();
            is_number.then(|| TokenLogprobs::from(scored))
        });
        let one = |(rows, is_hosts): (&SeqRows, &bool)| {
            if *is_hosts {
                return Ok(hosts.next().expect("an output for each of the host's sequences"));
            }
            take_one(rows, &mut tokens, &mut scores)
                .ok_or_else(|| ExecError::Failed(format!("a logit of sequence {} is not a number", rows.seq.0)))
        };
        plan.rows.iter().zip(&self.is_hosts).map(one).collect()
    }
}

/// `None` where a logit is not a number: weights or a kernel are broken, and a token drawn nevertheless would hide it.
fn take_one(
    rows: &SeqRows,
    tokens: &mut impl Iterator<Item = TokenId>,
    scores: &mut impl Iterator<Item = Option<TokenLogprobs>>,
) -> Option<SeqOutput> {
    // The last row's next token may be one that is drawn.
    let num_scored = rows.prompt_logprobs.map_or(0, |p| rows.tokens.len() - 1 + usize::from(p.next.is_some()));
    let prompt_logprobs = scores.take(num_scored).collect::<Option<Vec<TokenLogprobs>>>()?;
    let mut output = SeqOutput { seq: rows.seq, sampled: SmallVec::new(), prompt_logprobs };
    let mut is_right = true;
    for (i, (spec, token)) in rows.samples.iter().zip(tokens).enumerate() {
        let scored = spec.params.logprobs.map(|_| scores.next().flatten());
        // Rows behind a wrong draft were drawn from too, for nobody.
        if !is_right {
            continue;
        }
        if token == NO_TOKEN {
            return None;
        }
        let logprobs = match scored {
            Some(scored) => Some(Box::new(scored?)),
            None => None,
        };
        output.sampled.push(Sampled { token, logprobs });
        is_right = rows.num_drafts == 0 || rows.drafts().get(i) == Some(&token);
    }
    Some(output)
}
