//! Step plans through the executor: the same logits, drawn from as a lane asks.

use std::sync::Arc;

use garrick::exec::runner::ModelExecutor;
use garrick::exec::{ExecError, Executor};
use garrick::model::decoder::Decoder;
use garrick::model::ops::{KvDtype, Ops};
use garrick::model::source;
use garrick::sample::{SampleSpec, SamplingParams};
use garrick::sched::plan::{PromptLogprobs, SeqId, SeqRows, StepPlan};

use crate::harness::{Golden, NUM_BLOCKS, folder};
use crate::naive::Naive;

pub const MODEL: &str = "llama";

/// An executor of the model on any device.
pub fn executor_on<O: Ops>(mut ops: O) -> ModelExecutor<O> {
    let source = source::open(&folder(MODEL), None, &mut |_, _| ()).unwrap();
    let decoder = Decoder::load(&mut ops, &source.spec, &source.tensors, &mut |_, _| ()).unwrap();
    ModelExecutor::new(ops, decoder, "any".into(), KvDtype::Bf16, NUM_BLOCKS).unwrap()
}

fn executor() -> ModelExecutor<Naive> {
    let source = source::open(&folder(MODEL), None, &mut |_, _| ()).unwrap();
    let mut ops = Naive::new();
    let (mut last, mut calls) = ((0, 0), 0);
    let mut progress = |done, total| {
        assert!(done >= last.0 && done <= total);
        (last, calls) = ((done, total), calls + 1);
    };
    let decoder = Decoder::load(&mut ops, &source.spec, &source.tensors, &mut progress).unwrap();
    assert!(last.0 == last.1 && calls == source.tensors.len(), "{last:?} after {calls} calls");
    ModelExecutor::new(ops, decoder, "naive".into(), KvDtype::F32, NUM_BLOCKS).unwrap()
}

pub fn greedy(choice: u32, logprobs: Option<u8>) -> SampleSpec {
    let params = SamplingParams { temperature: 0.0, logprobs, ..SamplingParams::default() };
    SampleSpec { params: Arc::new(params), choice, index: 0, history: None, banned: Arc::new([]) }
}

pub fn rows(seq: u64, tokens: &[u32], start: u32, blocks: &[u32]) -> SeqRows {
    SeqRows {
        seq: SeqId(seq),
        start,
        tokens: tokens.to_vec(),
        num_drafts: 0,
        blocks: blocks.to_vec(),
        samples: Vec::new(),
        prompt_logprobs: None,
    }
}

pub fn plan(rows: Vec<SeqRows>) -> StepPlan {
    StepPlan { step: 1, copies: Vec::new(), rows }
}

#[test]
fn info_counts_what_was_allocated() {
    let executor = executor();
    let info = executor.info();
    assert_eq!((info.num_blocks, info.vocab_size, info.device.as_str()), (NUM_BLOCKS, 320, "naive"));
    // Four layers, K and V, 16 tokens of 32 values of 4 bytes.
    assert_eq!(info.kv_bytes, NUM_BLOCKS * 4 * 2 * 16 * 32 * 4);
}

#[test]
fn sequences_of_one_step_get_their_own_tokens_in_order() {
    let golden = Golden::read(MODEL);
    let mut executor = executor();
    let mut both = vec![rows(7, &golden.prompts[3], 0, &[9, 4]), rows(3, &golden.prompts[1], 0, &[2])];
    both[0].samples = vec![greedy(0, None), greedy(1, Some(2))];
    both[1].samples = vec![greedy(0, None)];
    let output = executor.step(&plan(both)).unwrap();
    assert_eq!((output.step, output.rows[0].seq, output.rows[1].seq), (1, SeqId(7), SeqId(3)));
    let tokens: Vec<u32> = output.rows[0].sampled.iter().map(|s| s.token).collect();
    assert_eq!(tokens, [golden.greedy[3][0]; 2]);
    assert_eq!(output.rows[1].sampled[0].token, golden.greedy[1][0]);
    assert_eq!(output.rows[0].sampled[1].logprobs.as_ref().unwrap().rank, 1);

    // A decode beside a prompt that is still unfinished and draws nothing.
    let mut next = vec![rows(3, &golden.greedy[1][..1], 7, &[2]), rows(8, &golden.prompts[4][..20], 0, &[11, 12])];
    next[0].samples = vec![greedy(0, None)];
    let output = executor.step(&plan(next)).unwrap();
    assert_eq!(output.rows[0].sampled[0].token, golden.greedy[1][1]);
    assert!(output.rows[1].sampled.is_empty() && output.rows[1].prompt_logprobs.is_empty());
}

#[test]
fn prompt_logprobs_come_in_order_over_chunks() {
    let golden = Golden::read(MODEL);
    let (prompt, logits) = (&golden.prompts[3], &golden.logits[3]);
    let mut executor = executor();
    let mut found = Vec::new();
    for (start, end) in [(0, 6), (6, 7), (7, prompt.len())] {
        let mut chunk = rows(1, &prompt[start..end], start as u32, &[0, 1]);
        chunk.prompt_logprobs = Some(PromptLogprobs { top: 1, next: prompt.get(end).copied() });
        if end == prompt.len() {
            chunk.samples = vec![greedy(0, None)];
        }
        let output = executor.step(&plan(vec![chunk])).unwrap().rows.remove(0);
        found.extend(output.prompt_logprobs);
        let sampled: Vec<u32> = output.sampled.iter().map(|s| s.token).collect();
        let expected = if end == prompt.len() { &golden.greedy[3][..1] } else { &[] };
        assert_eq!(sampled, expected);
    }
    assert_eq!(found.len(), prompt.len() - 1);
    for (i, entry) in found.iter().enumerate() {
        let row = &logits[i * 320..][..320];
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        let expected = f64::from(row[prompt[i + 1] as usize]) - sum.ln();
        assert_eq!((entry.token, entry.top.len()), (prompt[i + 1], 1));
        assert!((f64::from(entry.logprob) - expected).abs() < 2e-3, "{i}: {} {expected}", entry.logprob);
    }
}

#[test]
fn a_copied_block_continues_the_fork() {
    let golden = Golden::read(MODEL);
    let mut executor = executor();
    executor.step(&plan(vec![rows(1, &golden.prompts[1], 0, &[5])])).unwrap();
    let mut fork = rows(2, &golden.greedy[1][..1], 7, &[30]);
    fork.samples = vec![greedy(0, None)];
    let output = executor.step(&StepPlan { step: 2, copies: vec![(5, 30)], rows: vec![fork] }).unwrap();
    assert_eq!(output.rows[0].sampled[0].token, golden.greedy[1][1]);
}

#[test]
fn what_cannot_be_run_fails_the_step_and_names_the_sequence() {
    let golden = Golden::read(MODEL);
    let mut executor = executor();
    let mut failure = |rows: SeqRows| match executor.step(&plan(vec![rows])) {
        Err(ExecError::Failed(message)) => message,
        other => panic!("{other:?}"),
    };
    assert!(failure(rows(41, &[5, 320], 0, &[0])).contains("token 320 of sequence 41"));
    let blocks: Vec<u32> = (0..33).collect();
    assert!(failure(rows(40, &[5, 5], 511, &blocks)).contains("sequence 40 has 513 positions; at most 512"));
    assert!(failure(rows(42, &[], 0, &[0])).contains("sequence 42"));
    // Position 16 of a sequence whose first block was never written: this device starts its cache as not-a-number.
    let mut unwritten = rows(43, &[5], 16, &[20, 21]);
    unwritten.samples = vec![greedy(0, None)];
    let message = failure(unwritten);
    assert!(message.contains("sequence 43") && message.contains("not a number"), "{message}");

    let mut after = rows(44, &golden.prompts[2], 0, &[20]);
    after.samples = vec![greedy(0, None)];
    assert_eq!(executor.step(&plan(vec![after])).unwrap().rows[0].sampled[0].token, golden.greedy[2][0]);
}
