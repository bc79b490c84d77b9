//! How much each key may take: requests and tokens in a minute, and requests at once.
//!
//! Owns the ledger: what every key was charged lately and what it holds now. Never knows whether a request exists, runs
//! or fails; it is told at the beginning (`reserve`) and at the end (`settle`).
//!
//! Semantics: rpm and tpm bound *every* span of 60 seconds, not calendar minutes, and allow a burst up to the whole
//! limit within it. A request counts, and its tokens count, at the moment it was admitted: what it did not use is given
//! back to that moment, what it used beyond its reservation is charged when it ends. A refused request counts for
//! nothing.
//!
//! Invariant: as long as no request uses more than it reserved, the charges of any 60 seconds stay within the limits.

mod window;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::auth::{Limits, Principal};
use crate::base::error::Error;
use crate::sched::job::Micros;
use window::Window;

/// What is reserved for each choice of a request that does not bound its output: a typical long answer. More is charged
/// at the end. Reserving all that the context allows would let a key run one request at a time.
pub const UNBOUNDED_OUTPUT_TOKENS: u64 = 1024;

const SECOND: Micros = 1_000_000;
/// Between two searches for keys that are idle; each looks at every account.
const SWEEP_EVERY: Micros = 60 * SECOND;

/// A limit of a key, in the word that metrics and messages use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Rpm,
    Tpm,
    Concurrency,
}

impl Limit {
    pub const fn as_str(self) -> &'static str {
        match self {
            Limit::Rpm => "rpm",
            Limit::Tpm => "tpm",
            Limit::Concurrency => "concurrency",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// Worth another try after `retry_after_s`. For rpm and tpm that is enough unless more requests come, and at most a
    /// second too long unless some end early; for concurrency it is when the oldest request should end, going by how
    /// long this key's requests took.
    #[error("the key's limit of {max} {} is used up; try again in {retry_after_s} s", what(*limit))]
    Exceeded { limit: Limit, max: u64, retry_after_s: u64 },
    /// Waiting cannot help.
    #[error(
        "the request may use {tokens} tokens (prompt and max_tokens for each choice), and its key {max} in a minute; \
         lower max_tokens or shorten the prompt"
    )]
    TooLargeForLimit { tokens: u64, max: u64 },
}

fn what(limit: Limit) -> &'static str {
    match limit {
        Limit::Rpm => "requests a minute (rpm)",
        Limit::Tpm => "tokens a minute (tpm)",
        Limit::Concurrency => "requests at once (concurrency)",
    }
}

impl From<QuotaError> for Error {
    fn from(error: QuotaError) -> Self {
        match error {
            QuotaError::Exceeded { retry_after_s, .. } => Error::rate_limited(error.to_string(), retry_after_s),
            QuotaError::TooLargeForLimit { .. } => Error::invalid_request(error.to_string()),
        }
    }
}

/// Tokens to reserve for a request: its prompts (each a number of tokens, and the room that the context leaves behind
/// it), shared by the choices, and for each of `num_choices` the output that it asked for (`max_tokens`), or else
/// [`UNBOUNDED_OUTPUT_TOKENS`], within that room. A request that did not bound its output is never too large for tpm
/// because of it.
pub fn tokens_to_reserve(
    prompts: impl IntoIterator<Item = (u64, u64)>,
    num_choices: u64,
    max_tokens: Option<u64>,
    limits: &Limits,
) -> u64 {
    let (mut tokens, mut num_prompt) = (0u64, 0u64);
    for (len, room) in prompts {
        let output = max_tokens.unwrap_or(UNBOUNDED_OUTPUT_TOKENS).min(room);
        num_prompt = num_prompt.saturating_add(len);
        tokens = tokens.saturating_add(len).saturating_add(output.saturating_mul(num_choices));
    }
    match (max_tokens, limits.tpm) {
        (None, Some(tpm)) => tokens.min(tpm.max(num_prompt)),
        _ => tokens,
    }
}

/// Given by [`Ledger::reserve`], taken back by [`Ledger::settle`]; until then it holds one of the key's places.
#[derive(Debug)]
#[must_use = "a reservation that is not settled holds its tokens and its place for ever"]
pub struct Reservation {
    key_id: Arc<str>,
    serial: u64,
    /// The window's slot that was charged.
    slot: u64,
    tokens: u64,
}

impl Reservation {
    pub fn tokens(&self) -> u64 {
        self.tokens
    }
}

/// All keys' accounts.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    accounts: HashMap<Arc<str>, Account>,
    next_serial: u64,
    swept_at: Micros,
}

/// What one key was charged in the last minute and holds now.
#[derive(Debug, Clone, Default)]
struct Account {
    requests: Window,
    tokens: Window,
    /// Serial numbers of what is inside, with the time of entry: the first is the oldest.
    inside: BTreeMap<u64, Micros>,
    /// Running mean of how long requests stay inside.
    mean_stay: Option<Micros>,
}

impl Ledger {
    pub fn new() -> Self {
        Self::default()
    }

    /// Charges one request of `tokens` to the key, or says which limit it meets: of several the one that takes longest.
    pub fn reserve(&mut self, now: Micros, principal: &Principal, tokens: u64) -> Result<Reservation, QuotaError> {
        self.sweep(now);
        let limits = &principal.limits;
        if let Some(max) = limits.tpm.filter(|max| tokens > *max) {
            return Err(QuotaError::TooLargeForLimit { tokens, max });
        }
        let account = self.accounts.entry(principal.key_id.clone()).or_default();
        account.check(now, limits, tokens)?;
        account.requests.charge(now, 1);
        let slot = account.tokens.charge(now, tokens);
        self.next_serial += 1;
        account.inside.insert(self.next_serial, now);
        Ok(Reservation { key_id: principal.key_id.clone(), serial: self.next_serial, slot, tokens })
    }

    /// The request is over and used `used` tokens, whether it was finished, aborted or never began.
    pub fn settle(&mut self, now: Micros, reservation: Reservation, used: u64) {
        // An account that holds a reservation is never swept.
        let Some(account) = self.accounts.get_mut(&reservation.key_id) else { return };
        if let Some(since) = account.inside.remove(&reservation.serial) {
            account.note_stay(now.saturating_sub(since));
        }
        match used.checked_sub(reservation.tokens) {
            Some(excess) if excess > 0 => {
                account.tokens.charge(now, excess);
            }
            Some(_) => {}
            None => account.tokens.refund(reservation.slot, reservation.tokens - used),
        }
    }

    /// Requests of the key that are inside now.
    pub fn num_inside(&self, key_id: &str) -> usize {
        self.accounts.get(key_id).map_or(0, |account| account.inside.len())
    }

    /// Forgets keys that hold nothing and were charged nothing in the last minute, so that memory follows the keys in
    /// use and not all that ever came.
    fn sweep(&mut self, now: Micros) {
        if now.saturating_sub(self.swept_at) < SWEEP_EVERY {
            return;
        }
        self.swept_at = now;
        self.accounts.retain(|_, account| !account.is_idle(now));
    }
}

impl Account {
    fn check(&mut self, now: Micros, limits: &Limits, tokens: u64) -> Result<(), QuotaError> {
        let rpm = limits.rpm.and_then(|max| Some((Limit::Rpm, max, self.requests.wait(now, 1, max)?)));
        let tpm = limits.tpm.and_then(|max| Some((Limit::Tpm, max, self.tokens.wait(now, tokens, max)?)));
        let places = limits.concurrency.filter(|max| self.inside.len() as u64 >= *max);
        let places = places.map(|max| (Limit::Concurrency, max, self.wait_for_place(now)));
        match [rpm, tpm, places].into_iter().flatten().max_by_key(|(_, _, wait)| *wait) {
            Some((limit, max, wait)) => {
                Err(QuotaError::Exceeded { limit, max, retry_after_s: wait.div_ceil(SECOND).max(1) })
            }
            None => Ok(()),
        }
    }

    /// Until the oldest request inside should end; zero (the header's least, one second) when that is overdue or none
    /// has ended yet.
    fn wait_for_place(&self, now: Micros) -> Micros {
        let oldest = self.inside.first_key_value().map_or(now, |(_, since)| *since);
        self.mean_stay.map_or(0, |stay| oldest.saturating_add(stay).saturating_sub(now))
    }

    /// Each new stay weighs an eighth.
    fn note_stay(&mut self, stay: Micros) {
        self.mean_stay = Some(self.mean_stay.map_or(stay, |mean| mean - mean / 8 + stay / 8));
    }

    fn is_idle(&mut self, now: Micros) -> bool {
        self.inside.is_empty() && self.requests.is_empty(now) && self.tokens.is_empty(now)
    }
}

#[cfg(test)]
mod tests;
