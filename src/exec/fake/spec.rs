//! The text form of a fake model: `fake:key=value,…`, every key optional.

use std::fmt;
use std::str::FromStr;

use crate::sched::plan::{SeqRows, StepPlan};

/// How long a fake model takes, and what goes wrong with it.
#[derive(Debug, Clone, PartialEq)]
pub struct FakeSpec {
    /// Microseconds for each row of a prompt, and for each draft.
    pub prefill_us_per_token: f64,
    /// Microseconds for a step in which anything decodes, and for each sequence that does.
    pub decode_us_per_step: f64,
    pub decode_us_per_seq: f64,
    /// The last token is the end token.
    pub vocab: u32,
    /// What is drawn repeats itself after so many tokens, but for one token in sixteen; 0: never.
    pub period: u32,
    /// Drills, by the executor's own count of steps, from 1.
    pub panic_at_step: Option<u64>,
    pub fail_at_step: Option<u64>,
    /// Every step that computes this token panics.
    pub panic_on_token: Option<u64>,
    /// From that step on there is no device; or once it has computed this token.
    pub lose_at_step: Option<u64>,
    pub lose_on_token: Option<u64>,
    /// The device fails that step and those that follow, `fault_steps` in all, and can be used again.
    pub fault_at_step: Option<u64>,
    pub fault_steps: u64,
    /// That step takes `wedge_ms` longer.
    pub wedge_at_step: Option<u64>,
    pub wedge_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FakeSpecError {
    #[error("`{0}` is not a fake model; write `fake`, or `fake:key=value,…`")]
    NotFake(String),
    #[error("`{0}` in a fake model is not `key=value`")]
    NoValue(String),
    #[error("`{key}` is not a key of a fake model; the keys are {}", KEYS.join(", "))]
    UnknownKey { key: String },
    #[error("`{key}` is given twice in a fake model; keep one")]
    Twice { key: String },
    #[error("`{key}={value}` in a fake model must be {allowed}")]
    Value { key: &'static str, value: String, allowed: &'static str },
}

const KEYS: [&str; 14] = [
    "prefill_us_per_token",
    "decode_us_per_step",
    "decode_us_per_seq",
    "vocab",
    "period",
    "panic_at_step",
    "fail_at_step",
    "panic_on_token",
    "lose_at_step",
    "lose_on_token",
    "fault_at_step",
    "fault_steps",
    "wedge_at_step",
    "wedge_ms",
];

const PREFIX: &str = "fake";
/// A minute: a step that costs more is a wedge, for which there is a key.
const MAX_COST_US: f64 = 60e6;
const MAX_WEDGE_MS: u64 = 3_600_000;

impl Default for FakeSpec {
    fn default() -> Self {
        Self {
            prefill_us_per_token: 0.0,
            decode_us_per_step: 0.0,
            decode_us_per_seq: 0.0,
            vocab: 1024,
            period: 0,
            panic_at_step: None,
            fail_at_step: None,
            panic_on_token: None,
            lose_at_step: None,
            lose_on_token: None,
            fault_at_step: None,
            fault_steps: 1,
            wedge_at_step: None,
            wedge_ms: 60_000,
        }
    }
}

impl FakeSpec {
    /// Whether a model name means a fake model, well written or not.
    pub fn is_fake(model: &str) -> bool {
        model.strip_prefix(PREFIX).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    }

    /// The token that ends a generation, drawn only on request.
    pub fn end_token(&self) -> u32 {
        self.vocab - 1
    }

    /// What the step takes under the time model, in whole microseconds.
    pub fn cost_us(&self, plan: &StepPlan) -> u64 {
        // A row that is drawn from and has a past is a decode; so is the last token of a prompt that came alone. Its
        // drafts read the same past, as rows of a prompt do.
        let is_decode = |rows: &&SeqRows| {
            rows.tokens.len() - rows.drafts().len() == 1 && rows.start > 0 && !rows.samples.is_empty()
        };
        let num_decodes = plan.rows.iter().filter(is_decode).count();
        let num_prefilled = plan.num_tokens() - num_decodes;
        let step = if num_decodes > 0 { self.decode_us_per_step } else { 0.0 };
        let rows = self.decode_us_per_seq * num_decodes as f64 + self.prefill_us_per_token * num_prefilled as f64;
        (step + rows).round() as u64
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), FakeSpecError> {
        let known =
            *KEYS.iter().find(|k| **k == key).ok_or_else(|| FakeSpecError::UnknownKey { key: key.to_owned() })?;
        match known {
            "prefill_us_per_token" => self.prefill_us_per_token = cost(known, value)?,
            "decode_us_per_step" => self.decode_us_per_step = cost(known, value)?,
            "decode_us_per_seq" => self.decode_us_per_seq = cost(known, value)?,
            "period" => self.period = whole(known, value, 0..=1 << 20, "a whole number from 0 to 1048576")? as u32,
            "vocab" => self.vocab = whole(known, value, 2..=1 << 20, "a whole number from 2 to 1048576")? as u32,
            "wedge_ms" => {
                self.wedge_ms = whole(known, value, 0..=MAX_WEDGE_MS, "whole milliseconds from 0 to 3600000")?;
            }
            "fault_steps" => self.fault_steps = whole(known, value, 1..=u64::MAX, "a number of steps, from 1")?,
            "panic_on_token" | "lose_on_token" => {
                let token = Some(whole(known, value, 0..=u64::from(u32::MAX), "the number of a token")?);
                *(if known == "panic_on_token" { &mut self.panic_on_token } else { &mut self.lose_on_token }) = token;
            }
            _ => {
                let step = Some(whole(known, value, 1..=u64::MAX, "the number of a step, from 1")?);
                match known {
                    "panic_at_step" => self.panic_at_step = step,
                    "fail_at_step" => self.fail_at_step = step,
                    "lose_at_step" => self.lose_at_step = step,
                    "fault_at_step" => self.fault_at_step = step,
                    _ => self.wedge_at_step = step,
                }
            }
        }
        Ok(())
    }
}

impl FromStr for FakeSpec {
    type Err = FakeSpecError;

    fn from_str(text: &str) -> Result<Self, FakeSpecError> {
        let rest =
            text.strip_prefix(PREFIX).and_then(|rest| if rest.is_empty() { Some("") } else { rest.strip_prefix(':') });
        let rest = rest.ok_or_else(|| FakeSpecError::NotFake(text.to_owned()))?;
        let (mut spec, mut seen) = (Self::default(), Vec::new());
        for part in rest.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| FakeSpecError::NoValue(part.to_owned()))?;
            if seen.contains(&key) {
                return Err(FakeSpecError::Twice { key: key.to_owned() });
            }
            spec.set(key, value)?;
            seen.push(key);
        }
        Ok(spec)
    }
}

/// The text that gives this spec, without what is at its default.
impl fmt::Display for FakeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Self::default();
        let step = |step: Option<u64>| step.map(|step| step.to_string());
        let cost = |cost: f64, default: f64| (cost != default).then(|| cost.to_string());
        let values = [
            cost(self.prefill_us_per_token, default.prefill_us_per_token),
            cost(self.decode_us_per_step, default.decode_us_per_step),
            cost(self.decode_us_per_seq, default.decode_us_per_seq),
            (self.vocab != default.vocab).then(|| self.vocab.to_string()),
            (self.period != default.period).then(|| self.period.to_string()),
            step(self.panic_at_step),
            step(self.fail_at_step),
            step(self.panic_on_token),
            step(self.lose_at_step),
            step(self.lose_on_token),
            step(self.fault_at_step),
            (self.fault_steps != default.fault_steps).then(|| self.fault_steps.to_string()),
            step(self.wedge_at_step),
            (self.wedge_ms != default.wedge_ms).then(|| self.wedge_ms.to_string()),
        ];
        f.write_str(PREFIX)?;
        let given = KEYS.iter().zip(values).filter_map(|(key, value)| Some((key, value?)));
        given.enumerate().try_for_each(|(i, (key, value))| write!(f, "{}{key}={value}", if i == 0 { ':' } else { ',' }))
    }
}

fn cost(key: &'static str, value: &str) -> Result<f64, FakeSpecError> {
    let cost = value.parse().ok().filter(|cost| (0.0..=MAX_COST_US).contains(cost));
    cost.ok_or_else(|| FakeSpecError::Value {
        key,
        value: value.to_owned(),
        allowed: "microseconds from 0 to 60000000",
    })
}

fn whole(
    key: &'static str,
    value: &str,
    range: std::ops::RangeInclusive<u64>,
    allowed: &'static str,
) -> Result<u64, FakeSpecError> {
    let whole = value.parse().ok().filter(|whole| range.contains(whole));
    whole.ok_or_else(|| FakeSpecError::Value { key, value: value.to_owned(), allowed })
}
