//! The clients' side: what each was told, and whether it may have been told that.

use std::collections::BTreeMap;

use super::lanes::Sink;
use super::request::Request;
use crate::sched::MAX_RESCUES;
use crate::sched::job::{Delivery, Event, Finish, Micros, RequestId};

pub struct Account {
    pub request: Request,
    has_started: bool,
    /// While it has not started: the lane where it waits, and since when.
    waits: (usize, Micros),
    num_prompt_logprobs: usize,
    /// Steps of its own that devices failed.
    num_faults: usize,
    /// By choice: tokens so far, and how it ended.
    choices: Vec<(usize, Option<End>)>,
}

#[derive(PartialEq)]
enum End {
    Told(Finish),
    /// A stop string; nobody is told.
    ByText,
    /// Its lane died: the last sink is gone.
    Dropped,
}

#[derive(Default)]
pub struct Ledger {
    pub accounts: BTreeMap<RequestId, Account>,
    /// A healthy request may fail as well: steps fail at random.
    pub may_fail: bool,
    pub num_finished: [u64; 7],
}

impl Account {
    pub fn is_ended(&self) -> bool {
        self.choices.iter().all(|(_, end)| end.is_some())
    }
}

impl Ledger {
    pub fn open(&mut self, request: Request, lane: usize, now: Micros) {
        let choices = request.alone.iter().map(|_| (0, None)).collect();
        let account =
            Account { request, has_started: false, waits: (lane, now), num_prompt_logprobs: 0, num_faults: 0, choices };
        self.accounts.insert(account.request.job.request, account);
    }

    /// A device failed a step in which these had a part.
    pub fn blame(&mut self, requests: Vec<RequestId>) {
        for id in requests {
            self.accounts.get_mut(&id).expect("a request of this fleet").num_faults += 1;
        }
    }

    /// A waiting request was stolen.
    pub fn moved(&mut self, id: RequestId, lane: usize, now: Micros) {
        if let Some(account) = self.accounts.get_mut(&id) {
            account.waits = (lane, now);
        }
    }

    /// In a lane nobody is seen by the device before one who is older and waited there when the step was planned.
    pub fn check_order(&self, deliveries: &[Delivery<Sink>], lane: usize, planned_at: Micros) -> Result<(), String> {
        let age = |account: &Account| (account.request.job.arrived_at, account.request.job.request);
        let starts = |delivery: &&Delivery<Sink>| matches!(delivery.events.first(), Some(Event::Started { .. }));
        let starting: Vec<_> = deliveries.iter().filter(starts).map(|delivery| delivery.request).collect();
        let Some(youngest) = starting.iter().map(|id| age(&self.accounts[id])).max() else { return Ok(()) };
        let is_passed_over = |account: &&Account| {
            let (at, since) = account.waits;
            let waits = !account.has_started && !account.is_ended() && !account.request.job.cancel.is_set();
            waits && at == lane && since <= planned_at && !starting.contains(&account.request.job.request)
        };
        match self.accounts.values().filter(is_passed_over).map(age).min() {
            Some(oldest) if oldest < youngest => Err(format!("{youngest:?} started while {oldest:?} waits")),
            _ => Ok(()),
        }
    }

    /// Ends those whose last sink is gone, which only the death of a lane may bring about.
    pub fn close_dropped(&mut self, may_die: bool) -> Result<(), String> {
        for (id, account) in self.accounts.iter_mut().filter(|(_, account)| !account.is_ended()) {
            if Sink::strong_count(&account.request.job.sink) > 1 {
                continue;
            }
            if !may_die {
                return Err(format!("nobody is left to end request {}", id.0));
            }
            for (_, end) in account.choices.iter_mut().filter(|(_, end)| end.is_none()) {
                *end = Some(End::Dropped);
                self.num_finished[6] += 1;
            }
        }
        Ok(())
    }

    /// A request that has ended but whose sink somebody still holds.
    pub fn held_sink(&self) -> Option<RequestId> {
        let held = |account: &&Account| Sink::strong_count(&account.request.job.sink) > 1;
        self.accounts.values().find(held).map(|account| account.request.job.request)
    }

    /// Checks a delivery, and returns the choices whose text ends with it.
    pub fn receive(&mut self, delivery: Delivery<Sink>, now: Micros) -> Result<Vec<u32>, String> {
        let (id, mut stopped) = (delivery.request, Vec::new());
        let account = self.accounts.get_mut(&id).ok_or("a delivery for an unknown request")?;
        if *delivery.sink != id.0 || delivery.events.is_empty() {
            return Err(format!("request {} got an empty delivery or another's", id.0));
        }
        for event in delivery.events {
            let told = format!("request {}, {event:?}", id.0);
            let outcome = account.hear(event, self.may_fail, now, &mut self.num_finished);
            stopped.extend(outcome.map_err(|error| format!("{told}: {error}"))?);
        }
        Ok(stopped)
    }
}

impl Account {
    fn hear(
        &mut self,
        event: Event,
        may_fail: bool,
        now: Micros,
        num_finished: &mut [u64; 7],
    ) -> Result<Option<u32>, String> {
        let is_cancelled = self.request.job.cancel.is_set();
        if let Event::Token { choice, .. } | Event::Finished { choice, .. } = event
            && self.choices[choice as usize].1 == Some(End::ByText)
        {
            // Until the lane can know, the text side ignores what still comes; from then on nothing may come.
            let is_marked = self.request.job.cancel.is_finished(choice);
            return if is_marked { Err("told something after the text side ended it".into()) } else { Ok(None) };
        }
        match event {
            Event::Finished { choice, finish } => {
                self.hear_finish(choice, &finish, may_fail, now)?;
                num_finished[match &finish {
                    Finish::Stop => 0,
                    Finish::Length => 1,
                    Finish::Cancelled => 2,
                    Finish::DeadlineExceeded => 3,
                    Finish::Failed(_) => 4,
                }] += 1;
                self.choices[choice as usize].1 = Some(End::Told(finish));
                return Ok(None);
            }
            _ if is_cancelled => return Err("told something after it was cancelled".into()),
            Event::Started { cached_tokens, .. } => {
                if self.has_started || cached_tokens as usize >= self.request.job.prompt.len() {
                    return Err("started twice, or cached to the last token".into());
                }
                self.has_started = true;
            }
            Event::Prompt(logprobs) => {
                for logprobs in logprobs {
                    self.num_prompt_logprobs += 1;
                    if self.request.job.prompt.get(self.num_prompt_logprobs) != Some(&logprobs.token) {
                        return Err(format!("prompt log-probability {} is wrong", self.num_prompt_logprobs));
                    }
                }
            }
            Event::Token { choice, sampled } => {
                self.hear_prompt_is_complete()?;
                let (tokens, _) = &self.request.alone[choice as usize];
                let (num_tokens, end) = &mut self.choices[choice as usize];
                if end.is_some() || tokens.get(*num_tokens) != Some(&sampled.token) {
                    return Err(format!("alone it gives {tokens:?}, this is its token {num_tokens}"));
                }
                *num_tokens += 1;
                let is_stopped = choice == 0 && self.request.stops_text_at == Some(*num_tokens);
                // Where the lane ends the choice with this very token, text side and lane end it both.
                if is_stopped && *num_tokens < tokens.len() {
                    *end = Some(End::ByText);
                    num_finished[5] += 1;
                    return Ok(Some(choice));
                }
            }
        }
        Ok(None)
    }

    fn hear_finish(&mut self, choice: u32, finish: &Finish, may_fail: bool, now: Micros) -> Result<(), String> {
        let (tokens, expected) = &self.request.alone[choice as usize];
        let (num_tokens, end) = &self.choices[choice as usize];
        let job = &self.request.job;
        let is_allowed = match finish {
            Finish::Stop | Finish::Length => {
                self.hear_prompt_is_complete()?;
                finish == expected && *num_tokens == tokens.len() && !job.cancel.is_set()
            }
            Finish::Cancelled => job.cancel.is_set(),
            Finish::DeadlineExceeded => job.deadline.is_some_and(|deadline| deadline <= now),
            Finish::Failed(_) => {
                may_fail || self.num_faults > usize::from(MAX_RESCUES) || job.prompt.contains(&super::request::POISON)
            }
        };
        if end.is_some() || !is_allowed {
            return Err(format!("not allowed after {num_tokens} of {} tokens, alone {expected:?}", tokens.len()));
        }
        Ok(())
    }

    fn hear_prompt_is_complete(&self) -> Result<(), String> {
        let job = &self.request.job;
        let wanted = if job.prompt_logprobs.is_some() { job.prompt.len() - 1 } else { 0 };
        if !self.has_started || self.num_prompt_logprobs != wanted {
            return Err(format!("not started, or {} of {wanted} prompt log-probabilities", self.num_prompt_logprobs));
        }
        Ok(())
    }
}
