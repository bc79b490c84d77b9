//! Tokens and what log-probabilities are made of, found on the device.
//!
//! Owns the memory for it: at most 24 MB for draws, and 280 bytes and for each chunk of the vocabulary 256 more for each of
//! [`ROUND`] scores. Invariant: logits are afterwards as they were.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::device::{Address, Device};
use super::launch::Launch;
use super::memory::Scratch;
use super::rows::{CudaRows, Element};
use crate::model::draws::{Answers, Draw, MAX_TOP, Requests, Score, Scored, WHOLE};
use crate::model::ops::DeviceError;

/// As in kernels/sample.h: tokens that a block takes, and how many chunks of a row there are at most.
const CHUNK: usize = 4096;
const MAX_CHUNKS: usize = 256;
pub const MAX_VOCAB: usize = CHUNK * MAX_CHUNKS;
/// Requests that share launches, which bounds the memory between them.
const ROUND: usize = 256;
/// Bytes of a `Tally`, and of a list.
const TALLY_BYTES: usize = 16 + 2048 * 12;
const LIST_BYTES: usize = 8192 * 8;
/// Changes that a block takes, about.
const CHANGES_PER_BLOCK: usize = 1024;
const MAX_CHANGE_BLOCKS: usize = 64;
const TOP_BYTES: usize = MAX_TOP * size_of::<Best>();

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Best {
    logit: f32,
    token: u32,
}

/// A [`Scored`] as the device writes it.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Record {
    max: f32,
    logit: f32,
    rank: u32,
    token: u32,
    total: u64,
    top: [Best; MAX_TOP],
}

/// Buffers of one lane.
#[derive(Default)]
pub struct Sampling {
    /// Draws, scores and changes, one after the other.
    requests: Scratch,
    bytes: Vec<u8>,
    /// Changed logits as they were.
    kept: Scratch,
    best_logits: Scratch,
    best_tokens: Scratch,
    tallies: Scratch,
    totals: Scratch,
    lists: Scratch,
    parts: Scratch,
    /// Records, then tokens; here and on the device.
    found: Scratch,
    records: Vec<u8>,
}

impl Sampling {
    pub fn run(
        &mut self,
        device: &Arc<dyn Device>,
        logits: &CudaRows,
        requests: &Requests,
        answers: &mut Answers,
    ) -> Result<(), DeviceError> {
        assert_eq!(logits.element(), Element::F32, "logits are float32");
        assert!(logits.width() <= MAX_VOCAB, "a vocabulary of {}", logits.width());
        self.answer(device, logits, requests)?;
        self.read(device, requests, logits.width(), answers)?;
        read_rows(device, logits, &requests.rows, &mut answers.logits)
    }

    /// Starts everything.
    fn answer(&mut self, device: &Arc<dyn Device>, logits: &CudaRows, requests: &Requests) -> Result<(), DeviceError> {
        let Requests { draws, changes, scores, .. } = requests;
        let found_bytes = size_of::<Record>() * scores.len() + size_of::<u32>() * draws.len();
        if found_bytes == 0 {
            return Ok(());
        }
        self.bytes.clear();
        self.bytes.extend_from_slice(bytemuck::cast_slice(draws));
        self.bytes.extend_from_slice(bytemuck::cast_slice(scores));
        self.bytes.extend_from_slice(bytemuck::cast_slice(changes));
        self.requests.reserve(device, self.bytes.len())?.write(0, &self.bytes)?;
        let found = self.found.reserve(device, found_bytes)?.address();
        let draws_at = self.requests.address();
        let scores_at = draws_at + size_of_val(&draws[..]) as u64;
        let changes_at = scores_at + size_of_val(&scores[..]) as u64;
        let tokens_at = found + (size_of::<Record>() * scores.len()) as u64;
        let step = Step { device, logits, chunks: logits.width().div_ceil(CHUNK), tokens_at };
        self.change(&step, draws, [draws_at, changes_at], changes.len(), false)?;
        for (i, draws) in draws.chunks(ROUND).enumerate() {
            self.draw(&step, draws, i * ROUND, draws_at)?;
        }
        self.change(&step, draws, [draws_at, changes_at], changes.len(), true)?;
        for (i, scores) in scores.chunks(ROUND).enumerate() {
            self.score(&step, scores, i * ROUND, [scores_at, found])?;
        }
        Ok(())
    }

    /// Changes logits, or undoes it.
    fn change(
        &mut self,
        step: &Step,
        draws: &[Draw],
        [draws_at, changes_at]: [Address; 2],
        num_changes: usize,
        undo: bool,
    ) -> Result<(), DeviceError> {
        if num_changes == 0 {
            return Ok(());
        }
        let most = draws.iter().map(|draw| draw.num_changes as usize).max().unwrap_or(0);
        let blocks = most.div_ceil(CHANGES_PER_BLOCK).min(MAX_CHANGE_BLOCKS);
        let kept = self.kept.reserve(step.device, size_of::<f32>() * num_changes)?;
        let launch = Launch::new("sample_change", [draws.len(), blocks, 1])
            .address(step.logits.address())
            .buffer(kept)
            .address(draws_at)
            .address(changes_at)
            .int(step.logits.width())
            .int(usize::from(undo));
        // SAFETY: each list of changes has a token once and below the vocabulary's size, and each row one list.
        unsafe { launch.start(&**step.device) }
    }

    /// The best tokens of the chunks of these requests' rows.
    fn best(
        &mut self,
        step: &Step,
        requests: Address,
        stride: usize,
        count: usize,
    ) -> Result<[Address; 2], DeviceError> {
        let logits = self.best_logits.reserve(step.device, size_of::<f32>() * count * step.chunks)?.address();
        let tokens = self.best_tokens.reserve(step.device, size_of::<u32>() * count * step.chunks)?.address();
        let launch = Launch::new("sample_best", [step.chunks, count, 1])
            .address(logits)
            .address(tokens)
            .address(requests)
            .int(stride / size_of::<u32>())
            .address(step.logits.address())
            .int(step.logits.width());
        // SAFETY: rows of requests are those of the logits, and there is room for all chunks of each.
        unsafe { launch.start(&**step.device)? };
        Ok([logits, tokens])
    }

    /// `draws` are those from the `first` on of all.
    fn draw(&mut self, step: &Step, draws: &[Draw], first: usize, draws_at: Address) -> Result<(), DeviceError> {
        let draws_at = draws_at + (first * size_of::<Draw>()) as u64;
        let [best_logits, best_tokens] = self.best(step, draws_at, size_of::<Draw>(), draws.len())?;
        let is_drawn = |draw: &&Draw| draw.temperature > 0.0;
        let has_cuts = draws.iter().filter(is_drawn).any(|draw| draw.top_k > 0 || draw.top_p < WHOLE);
        let with_rows = |launch: Launch| {
            launch
                .address(draws_at)
                .address(best_logits)
                .address(best_tokens)
                .address(step.logits.address())
                .int(step.logits.width())
        };
        let (mut tallies, mut lists, mut totals) = (0, 0, 0);
        let grid = [step.chunks, draws.len(), 1];
        if draws.iter().any(|draw| is_drawn(&draw)) {
            totals = self.totals.reserve(step.device, size_of::<u64>() * draws.len() * step.chunks)?.address();
            if has_cuts {
                let bytes = TALLY_BYTES * draws.len();
                tallies = self.tallies.reserve(step.device, bytes)?.address();
                lists = self.lists.reserve(step.device, LIST_BYTES * draws.len())?.address();
                // SAFETY: just reserved.
                unsafe { step.device.clear(tallies, bytes)? };
            }
            let weigh = with_rows(Launch::new("sample_weigh", grid).address(tallies).address(totals));
            // SAFETY: a tally for each draw where one has a cut, a total for each chunk of each.
            unsafe { weigh.start(&**step.device)? };
        }
        if has_cuts {
            let list = with_rows(Launch::new("sample_list", grid).address(tallies).address(lists));
            // SAFETY: a list for each draw, too.
            unsafe { list.start(&**step.device)? };
        }
        let tokens = step.tokens_at + (first * size_of::<u32>()) as u64;
        let launch = Launch::new("sample_draw", [draws.len(), 1, 1]).address(tokens);
        let launch = with_rows(launch.address(tallies).address(totals).address(lists)).int(step.chunks);
        // SAFETY: as above, and a token for each draw.
        unsafe { launch.start(&**step.device) }
    }

    /// `scores` are those from the `first` on of all.
    fn score(
        &mut self,
        step: &Step,
        scores: &[Score],
        first: usize,
        [scores_at, found]: [Address; 2],
    ) -> Result<(), DeviceError> {
        let scores_at = scores_at + (first * size_of::<Score>()) as u64;
        let found = found + (first * size_of::<Record>()) as u64;
        let [best_logits, best_tokens] = self.best(step, scores_at, size_of::<Score>(), scores.len())?;
        let parts = self.parts.reserve(step.device, TOP_BYTES * scores.len() * step.chunks)?.address();
        // SAFETY: a record for each score.
        unsafe { step.device.clear(found, size_of_val(scores) / size_of::<Score>() * size_of::<Record>())? };
        let launch = |kernel, grid| {
            Launch::new(kernel, grid)
                .address(found)
                .address(parts)
                .address(scores_at)
                .address(step.tokens_at)
                .address(best_logits)
                .address(best_tokens)
                .address(step.logits.address())
                .int(step.logits.width())
        };
        // SAFETY: tokens are below the vocabulary's size, as the executor checks, or drawn by one of the draws.
        unsafe {
            launch("sample_score", [step.chunks, scores.len(), 1]).start(&**step.device)?;
            launch("sample_merge", [scores.len(), 1, 1]).int(step.chunks).start(&**step.device)
        }
    }

    /// Brings what was found here.
    fn read(
        &mut self,
        device: &Arc<dyn Device>,
        requests: &Requests,
        vocab_size: usize,
        answers: &mut Answers,
    ) -> Result<(), DeviceError> {
        let Requests { draws, scores, .. } = requests;
        let record_bytes = size_of::<Record>() * scores.len();
        self.records.resize(record_bytes + size_of::<u32>() * draws.len(), 0);
        if !self.records.is_empty() {
            // SAFETY: as many were reserved.
            unsafe { device.download(&mut self.records, self.found.address())? };
        }
        let (records, tokens) = self.records.split_at(record_bytes);
        answers.tokens.clear();
        answers.tokens.extend(tokens.chunks_exact(size_of::<u32>()).map(bytemuck::pod_read_unaligned::<u32>));
        answers.scores.clear();
        let records = records.chunks_exact(size_of::<Record>()).map(bytemuck::pod_read_unaligned::<Record>);
        answers.scores.extend(records.zip(scores).map(|(record, score)| Scored {
            token: record.token,
            logit: record.logit,
            rank: record.rank,
            max: record.max,
            total: record.total,
            top: record.top[..vocab_size.min(score.top as usize)].iter().map(|best| (best.token, best.logit)).collect(),
        }));
        Ok(())
    }
}

/// What all launches of a step have.
struct Step<'a> {
    device: &'a Arc<dyn Device>,
    logits: &'a CudaRows,
    /// Of a row.
    chunks: usize,
    tokens_at: Address,
}

/// Brings single rows here, those that follow each other at once.
fn read_rows(device: &Arc<dyn Device>, rows: &CudaRows, wanted: &[u32], to: &mut Vec<f32>) -> Result<(), DeviceError> {
    let width = rows.width();
    to.resize(wanted.len() * width, 0.0);
    let mut rest = &mut to[..];
    for run in wanted.chunk_by(|a, b| a + 1 == *b) {
        let (part, later) = rest.split_at_mut(run.len() * width);
        rest = later;
        let from = rows.address() + (run[0] as usize * width * size_of::<f32>()) as u64;
        // SAFETY: rows that the executor asked the decoder for.
        unsafe { device.download(bytemuck::cast_slice_mut(part), from)? };
    }
    Ok(())
}

#[cfg(test)]
mod tests;
