//! What happens around a request: everything that must not matter.

use garrick::kv::BLOCK_TOKENS;
use garrick::sched::{LaneConfig, Speculation};

use crate::crowd::{CROWD, MAX_TOKENS};
use crate::random::Random;
use crate::run::Witnessed;

/// Blocks that hold the longest sequence of a crowd, the least with which all of it can be served.
const MIN_BLOCKS: usize = MAX_TOKENS.div_ceil(BLOCK_TOKENS);
/// Enough for all choices of a crowd at once.
const PLENTY_OF_BLOCKS: usize = 1024;
/// A crowd's choices, three each at most.
const MAX_RUNNING: usize = 96;

#[derive(Debug, Clone)]
pub struct Situation {
    /// Compute threads of each lane; more than one lane passes waiting jobs on.
    pub lanes: Vec<usize>,
    pub num_blocks: usize,
    pub max_batch_tokens: usize,
    pub max_chunk_tokens: usize,
    pub max_running: usize,
    pub prefix_cache: bool,
    /// By request: the round of the lanes in which it arrives.
    pub arrivals: Vec<u64>,
    /// By request: the round in which its client leaves, if it does.
    pub leaves: Vec<Option<u64>>,
    /// Every so many steps one is lost after it was computed.
    pub lost_steps: Option<u64>,
    /// Tokens are guessed and computed ahead.
    pub speculation: Option<Speculation>,
    /// Times that the crowd comes: the second time it finds its own prefixes.
    pub visits: usize,
    /// For what lanes pass on to each other.
    pub seed: u64,
}

impl Situation {
    /// All at once on one thread, nothing in short supply, nothing cached.
    pub fn calm(num_requests: usize) -> Self {
        Self {
            lanes: vec![1],
            num_blocks: PLENTY_OF_BLOCKS,
            max_batch_tokens: 4096,
            max_chunk_tokens: 4096,
            max_running: MAX_RUNNING,
            prefix_cache: false,
            arrivals: vec![0; num_requests],
            leaves: vec![None; num_requests],
            lost_steps: None,
            speculation: None,
            visits: 1,
            seed: 0,
        }
    }

    /// Anything goes.
    pub fn random(seed: u64, num_requests: usize) -> Self {
        let mut random = Random::new(!seed);
        let max_running = random.pick(&[3, 8, 32, MAX_RUNNING]);
        let num_lanes = random.pick(&[1, 1, 1, 2]);
        let last_arrival = random.pick(&[1, 1, 20, 100]);
        let leavers = random.pick(&[5, 100]);
        Self {
            lanes: (0..num_lanes).map(|_| random.pick(&[1, 1, 2, 3, 5])).collect(),
            num_blocks: random.pick(&[MIN_BLOCKS, 24, 40, 80, PLENTY_OF_BLOCKS]),
            max_batch_tokens: random.pick(&[MAX_RUNNING, 128, 300, 1024]),
            max_chunk_tokens: random.pick(&[1, 7, 16, 33, 64, 1024]),
            max_running,
            prefix_cache: !random.once_in(4),
            arrivals: (0..num_requests).map(|_| random.within(0..last_arrival) as u64).collect(),
            leaves: (0..num_requests).map(|_| random.once_in(leavers).then(|| random.within(0..60) as u64)).collect(),
            lost_steps: random.once_in(4).then(|| random.within(15..60) as u64),
            visits: random.pick(&[1, 1, 2]),
            seed: random.next(),
            speculation: random.once_in(2).then(|| guesses(random.pick(&[1, 4, 20]))),
        }
    }

    pub fn lane_config(&self, max_model_len: usize) -> LaneConfig {
        LaneConfig {
            num_blocks: self.num_blocks,
            max_batch_tokens: self.max_batch_tokens,
            max_chunk_tokens: self.max_chunk_tokens,
            max_slowdown: 2.0,
            max_running: self.max_running,
            max_model_len,
            prefix_cache: self.prefix_cache,
            speculation: self.speculation,
        }
    }
}

/// Drafts wherever a single token stood before: most are wrong, and whoever repeats itself gets them all right.
fn guesses(max_drafts: usize) -> Speculation {
    Speculation { max_drafts, min_ngram: 1, max_ngram: 3, always: true }
}

/// What it is called, how to make it, and whether what it is called happened.
pub type Named = (&'static str, fn() -> Situation, fn(&Witnessed) -> bool);

/// Situations with one thing out of the ordinary each, for a crowd.
pub const NAMED: [Named; 9] = [
    ("among 31 others, some of them forked", calm, |seen| seen.max_sequences >= 32 && seen.copies > 0),
    ("token by token", || chunked(1, 300), |seen| seen.chunks > 500),
    ("in chunks that straddle blocks", || chunked(7, 100), |seen| seen.chunks > 100 && seen.max_rows == 100),
    ("in large chunks", || chunked(33, 300), |seen| seen.chunks > 10 && seen.max_rows == 300),
    ("on 3 threads", || Situation { lanes: vec![3], ..calm() }, |seen| seen.max_rows > 500),
    ("on more threads than cores", || Situation { lanes: vec![17], ..chunked(64, 128) }, |seen| seen.max_rows == 128),
    ("found in the prefix cache", cached, |seen| seen.prefix_hits > 300),
    ("in another order, a few at a time", reversed, |seen| (2..32).contains(&seen.max_sequences)),
    (
        "after lost steps, in the middle of prompts too",
        || Situation { lost_steps: Some(40), ..chunked(16, 128) },
        |seen| seen.lost_steps > 0 && seen.chunks > 30,
    ),
];

/// For a crowd of talkers.
pub const SHORT_OF_BLOCKS: [Named; 3] = [
    ("preempted", || Situation { num_blocks: 30, ..chunked(5, 300) }, |seen| seen.preemptions > 5),
    (
        "preempted, and resumed after its own prefix",
        || Situation { num_blocks: 40, ..cached() },
        |seen| seen.preemptions > 5 && seen.prefix_hits > 0,
    ),
    ("preempted, and resumed by another lane", moved, |seen| seen.preemptions > 5 && seen.passed_on_begun > 1),
];

/// For a crowd of parrots.
pub const DRAFTED: [Named; 3] = [
    ("with drafts", guessing, |seen| seen.accepted > 200 && seen.rejected > 200),
    (
        "with drafts, preempted, and resumed after its own prefix",
        || Situation { num_blocks: 40, prefix_cache: true, visits: 2, ..guessing() },
        |seen| seen.preemptions > 5 && seen.prefix_hits > 0 && seen.accepted > 200 && seen.rejected > 200,
    ),
    (
        "with drafts, after lost steps",
        || Situation { lost_steps: Some(20), ..guessing() },
        |seen| seen.lost_steps > 0 && seen.accepted > 20,
    ),
];

fn calm() -> Situation {
    Situation::calm(CROWD)
}

fn chunked(max_chunk_tokens: usize, max_batch_tokens: usize) -> Situation {
    Situation { max_chunk_tokens, max_batch_tokens, ..calm() }
}

/// The second time each prompt is there but for its end.
fn cached() -> Situation {
    Situation { prefix_cache: true, visits: 2, ..calm() }
}

fn guessing() -> Situation {
    Situation { speculation: Some(guesses(8)), ..calm() }
}

fn reversed() -> Situation {
    Situation { arrivals: (0..CROWD as u64).rev().map(|i| i * 2).collect(), ..calm() }
}

fn moved() -> Situation {
    Situation { lanes: vec![1, 2], num_blocks: 20, ..calm() }
}
