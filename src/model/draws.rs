//! What is asked of a step's logits, in numbers that a device takes as they are.
//!
//! `sample` makes them of a request's parameters, and both it and a device draw by them: what a draw depends on is here and
//! in the logits, nowhere else. Records are laid out as kernels/sample.h has them.

use bytemuck::{Pod, Zeroable};

use super::TokenId;

/// In place of a token; no vocabulary is as large.
pub const NO_TOKEN: TokenId = TokenId::MAX;
/// Shares of a whole are counted in parts of this many.
pub const WHOLE: u64 = 1 << 53;

/// One token to draw.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Draw {
    /// Of logits.
    pub row: u32,
    /// Of [`Requests::changes`]. Of the draws of one row the first has the changes for all.
    pub first_change: u32,
    pub num_changes: u32,
    /// 0 is off.
    pub top_k: u32,
    /// 0 (or less): the largest logit is taken, and nothing below counts.
    pub temperature: f32,
    /// Of the largest weight, 0 to 1; 0 is off.
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    pub reserved: u32,
    /// Of [`WHOLE`], which is off.
    pub top_p: u64,
    /// Where the cumulative distribution is cut, below [`WHOLE`]: the random number.
    pub at: u64,
}

/// What becomes of a token's logit before it is drawn from. A list has a token once.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Change {
    pub token: TokenId,
    /// [`BANNED`]; or 0 where the history has no such token, else 1 and how often the output has it.
    pub seen: u32,
    /// Added last.
    pub bias: f32,
}

/// No penalty and no bias: the logit is minus infinity.
pub const BANNED: u32 = u32::MAX;

/// A token whose log-probability is wanted, with the largest logits of its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Score {
    /// Of logits, which count as they are without changes.
    pub row: u32,
    /// [`NO_TOKEN`]: what was drawn by `draw`.
    pub token: TokenId,
    /// Of [`Requests::draws`].
    pub draw: u32,
    /// How many of the largest; at most [`MAX_TOP`].
    pub top: u32,
}

/// The largest logits that a device finds for one [`Score`]. An API that allows more gets them from the host.
pub const MAX_TOP: usize = 32;

/// What is wanted of a step's logits.
#[derive(Debug, Default)]
pub struct Requests {
    pub draws: Vec<Draw>,
    pub changes: Vec<Change>,
    pub scores: Vec<Score>,
    /// Rows that the host wants to see, ascending.
    pub rows: Vec<u32>,
}

impl Requests {
    pub fn clear(&mut self) {
        let Requests { draws, changes, scores, rows } = self;
        draws.clear();
        changes.clear();
        scores.clear();
        rows.clear();
    }
}

/// What came of [`Requests`], each in its order.
#[derive(Debug, Default)]
pub struct Answers {
    /// [`NO_TOKEN`] where a logit of the row is not a number.
    pub tokens: Vec<TokenId>,
    pub scores: Vec<Scored>,
    /// `[rows, vocab]`
    pub logits: Vec<f32>,
}

/// How one token stands among the logits of its row. Log-probabilities follow (`sample`).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scored {
    pub token: TokenId,
    /// Of `token`; minus infinity where there is none.
    pub logit: f32,
    /// 1 and the number of tokens before it: with larger logits, or equal ones and lower numbers.
    pub rank: u32,
    /// The largest logit; not a number where any is not.
    pub max: f32,
    /// The sum of all weights beside the largest logit's, in units of [`UNIT`].
    pub total: u64,
    /// The largest logits, largest first, lowest token first among equals.
    pub top: Vec<(TokenId, f32)>,
}

/// Weights are multiples of this: so their sums are exact, and the same in every order.
pub const UNIT: f32 = 1.0 / (1u64 << 40) as f32;
