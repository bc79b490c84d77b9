//! One behaviour at a time; whole fleets are simulated beside the fake executor.

use std::sync::Arc;

use super::config::LaneConfigError;
use super::job::{CancelFlag, Delivery, Event, Finish, Job, Progress, RequestId, StopRules};
use super::plan::{SeqOutput, StepOutput, StepPlan};
use super::*;
use crate::kv::BLOCK_TOKENS;
use crate::model::TokenId;
use crate::sample::{Sampled, SamplingParams, TokenLogprobs};

pub(super) const CONFIG: LaneConfig = LaneConfig {
    num_blocks: 16,
    max_batch_tokens: 64,
    max_chunk_tokens: 32,
    max_slowdown: 2.0,
    max_running: 4,
    max_model_len: 200,
    prefix_cache: true,
    speculation: None,
};

pub(super) struct Bench {
    pub lane: Lane<u64>,
    pub window: FifoWindow<u64>,
}

impl Bench {
    pub fn new(config: LaneConfig) -> Self {
        Self { lane: Lane::new(config).unwrap(), window: FifoWindow::new(16) }
    }

    pub fn plan(&mut self, now: u64) -> (Option<StepPlan>, Vec<Delivery<u64>>) {
        let Planned { plan, deliveries } = self.lane.plan(now, &mut self.window);
        self.lane.check().unwrap();
        (plan, deliveries)
    }

    /// Plans and completes a step in which every draw gives `token`.
    pub fn step(&mut self, token: TokenId) -> (StepPlan, Vec<Event>) {
        let plan = self.plan(1000).0.expect("something to compute");
        let deliveries = self.lane.complete(answer(&plan, token));
        self.lane.check().unwrap();
        (plan, deliveries.into_iter().flat_map(|delivery| delivery.events).collect())
    }
}

pub(super) fn answer(plan: &StepPlan, token: TokenId) -> StepOutput {
    let logprobs = |token| TokenLogprobs { token, logprob: -1.0, rank: 1, top: Vec::new() };
    let rows = plan.rows.iter().map(|rows| SeqOutput {
        seq: rows.seq,
        sampled: rows.samples.iter().map(|_| Sampled { token, logprobs: None }).collect(),
        prompt_logprobs: rows.prompt_logprobs.map_or_else(Vec::new, |wanted| {
            rows.tokens[1..].iter().copied().chain(wanted.next).map(logprobs).collect()
        }),
    });
    StepOutput { step: plan.step, rows: rows.collect(), elapsed_us: 1, replayed: false }
}

pub(super) fn job(id: u64, prompt_len: usize, max_tokens: u32) -> Job<u64> {
    Job {
        request: RequestId(id),
        sink: id,
        prompt: (0..prompt_len as u32).map(|i| i + 1000 * id as u32).collect(),
        params: Arc::new(SamplingParams::default()),
        stop: StopRules { stop_tokens: Arc::from([7]), min_tokens: 0, max_tokens },
        prompt_logprobs: None,
        salt: 0,
        arrived_at: id,
        deadline: None,
        cancel: CancelFlag::default(),
        branches: Job::<u64>::new_branches(1),
        progress: Progress::default(),
    }
}

fn lens(plan: &StepPlan) -> Vec<usize> {
    plan.rows.iter().map(|rows| rows.tokens.len()).collect()
}

pub(super) fn finishes(events: &[Event]) -> Vec<(u32, Finish)> {
    let finish = |event: &Event| match event {
        Event::Finished { choice, finish } => Some((*choice, finish.clone())),
        _ => None,
    };
    events.iter().filter_map(finish).collect()
}

#[test]
fn decodes_go_first_then_chunks_then_new_jobs_within_the_budget() {
    let mut bench = Bench::new(LaneConfig { max_batch_tokens: 40, ..CONFIG });
    bench.lane.submit(job(1, 10, 9));
    assert_eq!(lens(&bench.step(1).0), [10]);
    bench.lane.submit(job(2, 50, 9));
    bench.lane.submit(job(3, 20, 9));
    let (plan, _) = bench.step(1);
    assert_eq!(lens(&plan), [1, 32, 7], "a decode, a whole chunk, and what the budget leaves");
    assert_eq!(plan.rows.iter().map(|rows| rows.samples.len()).collect::<Vec<_>>(), [1, 0, 0]);
    let (plan, events) = bench.step(1);
    assert_eq!(lens(&plan), [1, 18, 13]);
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Token { .. })).count(), 3);
}

#[test]
fn a_choice_ends_by_stop_token_after_min_tokens_or_by_length() {
    let mut bench = Bench::new(CONFIG);
    let mut first = job(1, 4, 9);
    first.stop.min_tokens = 2;
    bench.lane.submit(first);
    let (plan, events) = bench.step(7);
    assert_eq!(*plan.rows[0].samples[0].banned, [7]);
    assert_eq!(finishes(&events), [], "a banned token that comes all the same does not stop");
    bench.step(1);
    let (plan, events) = bench.step(7);
    assert!(plan.rows[0].samples[0].banned.is_empty());
    assert!(matches!(&events[0], Event::Token { sampled, .. } if sampled.token == 7));
    assert_eq!(finishes(&events), [(0, Finish::Stop)]);

    bench.lane.submit(job(2, 4, 1));
    assert_eq!(finishes(&bench.step(1).1), [(0, Finish::Length)]);
    assert!(!bench.lane.has_work());
    assert_eq!(bench.lane.stats().blocks.held, 0);
}

#[test]
fn a_sequence_ends_where_context_or_kv_memory_ends() {
    for (max_model_len, num_blocks) in [(20, 16), (200, 1)] {
        let mut bench = Bench::new(LaneConfig { max_model_len, num_blocks, ..CONFIG });
        bench.lane.submit(job(1, 14, 1000));
        let num_tokens = (1..).find(|_| !finishes(&bench.step(1).1).is_empty()).unwrap();
        assert_eq!(14 + num_tokens, max_model_len.min(num_blocks * BLOCK_TOKENS));
    }
}

#[test]
fn a_prompt_alone_is_scored_with_max_tokens_0() {
    let mut bench = Bench::new(CONFIG);
    let scored = Job { prompt_logprobs: Some(0), ..job(1, 40, 0) };
    let prompt = scored.prompt.clone();
    bench.lane.submit(scored);
    let mut events = bench.step(1).1;
    events.extend(bench.step(1).1);
    let logprobs: Vec<_> = events
        .iter()
        .filter_map(|event| if let Event::Prompt(logprobs) = event { Some(logprobs) } else { None })
        .flatten()
        .map(|logprobs| logprobs.token)
        .collect();
    assert_eq!(logprobs, prompt[1..]);
    assert_eq!(finishes(&events), [(0, Finish::Length)]);
}

#[test]
fn choices_share_the_prompt_and_are_copied_on_write() {
    let mut bench = Bench::new(CONFIG);
    bench.lane.submit(Job { branches: Job::<u64>::new_branches(3), ..job(1, 20, 9) });
    let (plan, _) = bench.step(1);
    assert_eq!(plan.rows[0].samples.iter().map(|sample| sample.choice).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(bench.lane.stats().blocks.held, 2);
    let (plan, _) = bench.step(1);
    assert_eq!((lens(&plan), plan.copies.len()), (vec![1, 1, 1], 2));
    assert_eq!(bench.lane.stats().blocks.held, 4, "one full block in common, three partly filled");
}

#[test]
fn a_cached_prefix_skips_prefill_unless_its_logprobs_are_wanted() {
    let mut bench = Bench::new(CONFIG);
    bench.lane.submit(job(1, 32, 1));
    bench.step(1);
    let again = Job { request: RequestId(2), ..job(1, 32, 1) };
    assert_eq!(bench.lane.cached_prefix_tokens(&again.prompt, 0), 16);
    bench.lane.submit(again.clone());
    let (plan, events) = bench.step(1);
    assert_eq!((plan.rows[0].start, lens(&plan)), (16, vec![16]));
    assert!(matches!(events[0], Event::Started { cached_tokens: 16, queued_us: 999 }));
    bench.lane.submit(Job { prompt_logprobs: Some(1), ..again });
    assert_eq!(bench.step(1).0.rows[0].start, 0);
    let stats = bench.lane.stats();
    assert_eq!((stats.prefix_queries, stats.prefix_hits), (64, 16));
}

#[test]
fn the_youngest_is_preempted_keeps_its_tokens_and_goes_first_among_the_waiting() {
    let mut bench = Bench::new(LaneConfig { num_blocks: 5, prefix_cache: false, ..CONFIG });
    bench.lane.submit(job(1, 31, 99));
    bench.lane.submit(job(2, 15, 99));
    bench.lane.submit(job(3, 15, 99));
    bench.step(1);
    assert_eq!(bench.lane.stats().running, 2, "the third would have left no block in reserve");
    while bench.lane.stats().preemptions == 0 {
        bench.step(1);
    }
    let stats = bench.lane.stats();
    assert_eq!((stats.running, stats.waiting_jobs), (1, 2));
    let preempted = bench.window.pop().unwrap();
    assert_eq!(preempted.request, RequestId(2));
    assert!(preempted.progress.started && preempted.branches[0].output.len() > 1);
}

#[test]
fn what_is_over_before_it_runs_is_told_without_a_step() {
    let mut bench = Bench::new(CONFIG);
    let cancelled = job(1, 4, 9);
    cancelled.cancel.set();
    bench.lane.submit(cancelled);
    bench.lane.submit(Job { deadline: Some(50), ..job(2, 4, 9) });
    bench.lane.submit(job(3, 0, 9));
    bench.lane.submit(job(4, 5000, 9));
    let text_ended = job(5, 4, 9);
    text_ended.cancel.finish_choice(0);
    bench.lane.submit(text_ended);
    let (plan, deliveries) = bench.plan(50);
    assert!(plan.is_none());
    let mut told: Vec<_> = deliveries.iter().map(|d| (d.request.0, finishes(&d.events)[0].1.clone())).collect();
    told.sort_by_key(|&(request, _)| request);
    assert_eq!(told[..2], [(1, Finish::Cancelled), (2, Finish::DeadlineExceeded)]);
    assert!(matches!(&told[2].1, Finish::Failed(error) if error.contains("no tokens")));
    assert!(matches!(&told[3].1, Finish::Failed(error) if error.contains("5001") && error.contains("200")));
    assert!(told.len() == 4 && !bench.lane.has_work());
}

#[test]
fn a_client_that_leaves_during_a_step_gets_no_token_and_holds_no_block_after_it() {
    let mut bench = Bench::new(CONFIG);
    let left = job(1, 20, 9);
    let cancel = left.cancel.clone();
    bench.lane.submit(left);
    let plan = bench.plan(0).0.unwrap();
    cancel.set();
    let deliveries = bench.lane.complete(answer(&plan, 1));
    assert_eq!(*deliveries[0].events, [Event::Finished { choice: 0, finish: Finish::Cancelled }]);
    assert_eq!(bench.lane.stats().blocks.held, 0);
}

#[test]
fn a_text_that_ends_frees_its_blocks_at_once_and_drops_the_token_in_flight() {
    let mut bench = Bench::new(CONFIG);
    bench.lane.submit(job(1, 20, 9));
    bench.step(1);
    let plan = bench.plan(0).0.unwrap();
    bench.lane.finish(RequestId(1), 0);
    assert_eq!(bench.lane.stats().blocks.held, 0);
    assert!(bench.lane.complete(answer(&plan, 1)).is_empty());
}

#[test]
fn after_a_failed_step_suspects_run_alone_and_only_the_cause_fails() {
    let mut bench = Bench::new(CONFIG);
    (1..=3).for_each(|id| bench.lane.submit(job(id, 10, 5)));
    assert_eq!(bench.plan(0).0.unwrap().rows.len(), 3);
    assert!(bench.lane.fail("boom").is_empty());
    let mut failed = Vec::new();
    for _ in 0..3 {
        let plan = bench.plan(0).0.unwrap();
        assert_eq!(plan.rows.len(), 1);
        let is_cause = plan.rows[0].tokens[0] >= 2000 && plan.rows[0].tokens[0] < 3000;
        let deliveries = if is_cause { bench.lane.fail("boom") } else { bench.lane.complete(answer(&plan, 1)) };
        failed.extend(deliveries.iter().flat_map(|d| finishes(&d.events)).map(|(_, finish)| finish));
    }
    assert_eq!(failed, [Finish::Failed("boom".into())]);
    assert_eq!(bench.step(1).0.rows.len(), 2, "the others go on together");
}

#[test]
fn outputs_that_answer_no_plan_have_no_effect_or_fail_the_step() {
    let mut bench = Bench::new(CONFIG);
    bench.lane.submit(job(1, 10, 5));
    let first = bench.plan(0).0.unwrap();
    bench.lane.fail("too slow");
    let second = bench.plan(0).0.unwrap();
    assert!(bench.lane.complete(answer(&first, 1)).is_empty(), "an output that comes too late");
    assert!(bench.lane.has_step_in_flight());
    let deliveries = bench.lane.complete(StepOutput { rows: Vec::new(), ..answer(&second, 1) });
    assert!(matches!(&finishes(&deliveries[0].events)[0].1, Finish::Failed(e) if e.contains("does not match")));
}

#[test]
fn lost_memory_is_computed_again() {
    let mut bench = Bench::new(CONFIG);
    bench.lane.submit(job(1, 40, 5));
    bench.step(1);
    let lost = bench.plan(0).0.unwrap();
    assert!(bench.lane.lose_memory("executor died").is_empty());
    assert_eq!(bench.lane.stats().blocks.free, 16, "nothing is cached");
    let (again, _) = bench.step(1);
    assert_eq!((lost.rows[0].start, again.rows[0].start), (32, 0));
}

#[test]
fn draining_ends_everything_once() {
    let mut bench = Bench::new(LaneConfig { max_running: 1, ..CONFIG });
    (1..=3).for_each(|id| bench.lane.submit(job(id, 10, 5)));
    let plan = bench.plan(0).0.unwrap();
    assert_eq!(bench.window.len(), 2);
    let deliveries = bench.lane.drain(&mut bench.window, &Finish::Cancelled);
    assert_eq!(deliveries.iter().map(|d| d.request.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(bench.lane.complete(answer(&plan, 1)).is_empty());
    bench.lane.check().unwrap();
    assert_eq!((bench.lane.has_work(), bench.lane.stats().blocks.held), (false, 0));
}

#[test]
fn limits_that_cannot_work_are_refused_by_name() {
    let error = |config: LaneConfig| Lane::<u64>::new(config).unwrap_err();
    assert_eq!(error(LaneConfig { num_blocks: 0, ..CONFIG }), LaneConfigError::Zero { name: "num_blocks" });
    assert!(matches!(error(LaneConfig { max_batch_tokens: 3, ..CONFIG }), LaneConfigError::TooFewRows { .. }));
    for (min_ngram, max_ngram) in [(0, 3), (4, 3), (2, 9)] {
        let speculation = Some(Speculation { max_drafts: 4, min_ngram, max_ngram, always: false });
        assert!(matches!(error(LaneConfig { speculation, ..CONFIG }), LaneConfigError::Ngrams { .. }));
    }
    assert_eq!(CONFIG.fits(199, 1, 4), Ok(()));
    assert_eq!(CONFIG.fits(200, 9, 1), Err(DoesNotFit::TooLong { needed: 201, limit: 200 }));
    assert_eq!(CONFIG.fits(9, 9, 5), Err(DoesNotFit::TooManyChoices { num_choices: 5, max_running: 4 }));
    assert_eq!((CONFIG.fits(200, 0, 1), CONFIG.max_new_tokens(150)), (Ok(()), 50));
}

#[test]
fn placement_follows_the_prefix_within_a_margin() {
    let lane = |waiting_tokens, cached_prefix_tokens| LaneLoad { waiting_tokens, running: 0, cached_prefix_tokens };
    assert_eq!(place(&[], 100), None);
    assert_eq!(place(&[lane(0, 0), lane(100, 64)], 100), Some(1));
    assert_eq!(place(&[lane(0, 0), lane(101, 64)], 100), Some(0));
    assert_eq!(place(&[lane(5, 16), lane(4, 16), lane(4, 16)], 100), Some(1));
}

#[test]
fn nothing_is_told_of_a_text_that_ended_however_its_sequence_ends() {
    type Ending = fn(&mut Bench, &StepPlan) -> Vec<Delivery<u64>>;
    let endings: [Ending; 4] = [
        |bench, _| bench.lane.fail("again"),
        |bench, plan| bench.lane.complete(answer(plan, 7)),
        |bench, _| bench.lane.drain(&mut bench.window, &Finish::Cancelled),
        |bench, _| {
            bench.lane.lose_memory("again");
            bench.plan(0).1
        },
    ];
    for end in endings {
        let mut bench = Bench::new(CONFIG);
        let ended = job(1, 10, 5);
        let cancel = ended.cancel.clone();
        bench.lane.submit(ended);
        bench.plan(0);
        bench.lane.fail("once");
        let plan = bench.plan(0).0.unwrap();
        cancel.finish_choice(0);
        let events: Vec<_> = end(&mut bench, &plan).into_iter().flat_map(|delivery| delivery.events).collect();
        assert_eq!(finishes(&events), []);
        assert!(!events.iter().any(|event| matches!(event, Event::Token { .. })));
        assert!(bench.plan(0).0.is_none() && bench.lane.stats().blocks.held == 0);
    }
}
