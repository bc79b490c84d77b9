//! Drafts in a lane's steps: who gets rows for them, and blocks.
//!
//! Blocks that drafts need are taken only while every running sequence could still take one more: nobody is preempted
//! for a guess. What rejected rows have reserved goes back with the step's outcome.

use super::draft::{Drafter, Stake};
use super::lane::Lane;
use super::pace::MIN_PREFILL_ROWS;
use crate::kv::BLOCK_TOKENS;
use crate::model::TokenId;

impl<S: Clone> Lane<S> {
    /// What a step of `budget` rows may spend on drafts.
    pub(super) fn stake(&self, budget: usize) -> Stake {
        let Some(speculation) = &self.config.speculation else { return Stake::NONE };
        let decodes = self.running.iter().filter(|seq| seq.is_decoding()).count();
        let has_prompts = decodes < self.running.len() || self.waiting.num_jobs() > 0;
        let kept = decodes + if has_prompts { MIN_PREFILL_ROWS } else { 0 };
        let rows = budget.saturating_sub(kept);
        if speculation.always {
            return Stake::always(rows);
        }
        self.pace.stake(decodes, rows, has_prompts, self.config.max_slowdown)
    }

    /// Writes the drafts of a decode into `drafts`, and gives it the blocks for them.
    pub(super) fn draft(&mut self, index: usize, stake: &mut Stake, drafts: &mut Vec<TokenId>) {
        drafts.clear();
        let is_open = stake.is_open() && !self.running[index].job.progress.drafts_failed;
        let Some(speculation) = self.config.speculation.filter(|_| is_open) else { return };
        let spare_blocks = self.kv.num_available().saturating_sub(self.running.len());
        let max_sequence_tokens = self.config.max_sequence_tokens();
        let seq = &mut self.running[index];
        let mut drafter = seq.drafter.take().unwrap_or_else(|| Box::new(Drafter::new(&speculation, self.rates)));
        let (tokens, num_tokens) = (seq.tokens(), seq.num_tokens());
        drafter.catch_up(tokens, &mut self.rates);
        let places = (seq.table.blocks().len() + spare_blocks) * BLOCK_TOKENS - num_tokens;
        let max = speculation.max_drafts.min(seq.max_drafts(max_sequence_tokens)).min(places);
        drafter.draft(tokens, max, stake, drafts);
        seq.drafter = Some(drafter);
        let mut copies = Vec::new();
        let reserved = self.kv.reserve(&mut seq.table, num_tokens + drafts.len(), &mut copies);
        debug_assert!(reserved.is_ok() && copies.is_empty(), "there are blocks, and its last one is its own by now");
        if reserved.is_err() {
            drafts.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sample::{Sampled, SamplingParams};
    use crate::sched::job::{Event, Finish, Job};
    use crate::sched::plan::{SeqOutput, StepOutput, StepPlan};
    use crate::sched::tests::{Bench, CONFIG, finishes, job};
    use crate::sched::{LaneConfig, Speculation};

    const ALWAYS: Speculation = Speculation { max_drafts: 4, min_ngram: 2, max_ngram: 3, always: true };

    fn bench(speculation: Speculation) -> Bench {
        Bench::new(LaneConfig { speculation: Some(speculation), ..CONFIG })
    }

    /// Its prompt is one and a half periods of [`period`].
    fn periodic(id: u64, max_tokens: u32) -> Job<u64> {
        Job { prompt: (0..8).map(|i| 10 + i % 5).collect(), ..job(id, 8, max_tokens) }
    }

    fn period(position: usize) -> TokenId {
        10 + position as u32 % 5
    }

    /// Draws `text(position)` for each position, until a draft is not that.
    fn answer(plan: &StepPlan, text: impl Fn(usize) -> TokenId) -> StepOutput {
        let rows = plan.rows.iter().map(|rows| {
            let first = rows.start as usize + rows.tokens.len() - rows.drafts().len();
            let drawn = (0..rows.samples.len()).map(|i| text(first + i));
            let right = drawn.clone().zip(rows.drafts()).take_while(|(token, draft)| token == *draft).count();
            let sampled = drawn.take(right + 1).map(|token| Sampled { token, logprobs: None }).collect();
            SeqOutput { seq: rows.seq, sampled, prompt_logprobs: Vec::new() }
        });
        let drafts: usize = plan.rows.iter().map(|rows| rows.drafts().len()).sum();
        StepOutput { step: plan.step, rows: rows.collect(), elapsed_us: 100 + 10 * drafts as u64, replayed: false }
    }

    fn step(bench: &mut Bench, text: impl Fn(usize) -> TokenId) -> (StepPlan, Vec<Event>) {
        let plan = bench.plan(0).0.expect("something to compute");
        let deliveries = bench.lane.complete(answer(&plan, text));
        bench.lane.check().unwrap();
        (plan, deliveries.into_iter().flat_map(|delivery| delivery.events).collect())
    }

    fn tokens(events: &[Event]) -> Vec<TokenId> {
        let token = |event: &Event| if let Event::Token { sampled, .. } = event { Some(sampled.token) } else { None };
        events.iter().filter_map(token).collect()
    }

    #[test]
    fn right_drafts_bring_several_tokens_a_step_and_wrong_ones_nothing_else() {
        let mut bench = bench(ALWAYS);
        bench.lane.submit(periodic(1, 100));
        step(&mut bench, period);
        let (plan, events) = step(&mut bench, period);
        assert_eq!((&*plan.rows[0].tokens, plan.rows[0].num_drafts), (&[13, 14, 10, 11, 12][..], 4));
        assert_eq!(tokens(&events), [14, 10, 11, 12, 13]);
        let wrong = |position: usize| if position == 16 { 99 } else { period(position) };
        let (plan, events) = step(&mut bench, wrong);
        assert_eq!((plan.rows[0].start, plan.rows[0].drafts()), (13, &[14, 10, 11, 12][..]));
        assert_eq!(tokens(&events), [14, 10, 99], "two were right");
        assert_eq!(bench.lane.stats().blocks.held, 2, "what was reserved for the others went back");
        let (plan, _) = step(&mut bench, period);
        assert_eq!((plan.rows[0].start, &*plan.rows[0].tokens), (16, &[99][..]), "99 stood nowhere before");
        let stats = bench.lane.stats();
        assert_eq!((stats.drafts, stats.draft_tokens, stats.accepted_drafts), (2, 8, 6));
        assert_eq!((stats.prefill_tokens, stats.output_tokens), (8, 10));
    }

    #[test]
    fn a_rejected_guess_is_never_found_in_the_prefix_cache() {
        let mut bench = bench(ALWAYS);
        bench.lane.submit(periodic(1, 100));
        let wrong = |position: usize| if position == 14 { 99 } else { period(position) };
        step(&mut bench, wrong);
        // Drafts for positions 9 to 12, and then for 14 on: rows to the end of the block are computed with them.
        step(&mut bench, wrong);
        let (plan, events) = step(&mut bench, wrong);
        assert_eq!((plan.rows[0].start, plan.rows[0].tokens.len(), tokens(&events)), (13, 5, vec![99]));
        for _ in 0..4 {
            step(&mut bench, |_| 50);
        }
        let as_drawn: Vec<_> = (0..14).map(period).chain([99, 50, 50, 50]).collect();
        let as_guessed: Vec<_> = (0..18).map(period).collect();
        assert_eq!(bench.lane.cached_prefix_tokens(&as_drawn, 0), 16);
        assert_eq!(bench.lane.cached_prefix_tokens(&as_guessed, 0), 0);
    }

    #[test]
    fn each_row_is_drawn_from_as_if_the_drafts_before_it_were_drawn() {
        let mut bench = bench(ALWAYS);
        let params = SamplingParams { frequency_penalty: 1.0, ..SamplingParams::default() };
        let mut penalised = Job { params: Arc::new(params), ..periodic(1, 100) };
        penalised.stop.min_tokens = 3;
        bench.lane.submit(penalised);
        step(&mut bench, period);
        let plan = bench.plan(0).0.unwrap();
        let draws = &plan.rows[0].samples;
        let output = |num: usize| (8..8 + num).map(period).collect::<Vec<_>>();
        for (i, draw) in draws.iter().enumerate() {
            assert_eq!((draw.index as usize, draw.banned.is_empty()), (1 + i, 1 + i >= 3));
            assert_eq!(draw.history.as_ref().unwrap().output, output(1 + i));
        }
        assert_eq!(draws.len(), 5);
    }

    #[test]
    fn a_sequence_ends_within_its_drafts_where_it_would_without() {
        for (max_tokens, stop_token, expected, finish) in
            [(4, 7, &[14, 10, 11][..], Finish::Length), (100, 10, &[14, 10][..], Finish::Stop)]
        {
            let mut bench = bench(ALWAYS);
            let mut job = periodic(1, max_tokens);
            job.stop.stop_tokens = Arc::from([stop_token]);
            bench.lane.submit(job);
            step(&mut bench, period);
            let (plan, events) = step(&mut bench, period);
            assert!(plan.rows[0].drafts().len() < max_tokens as usize - 1, "no drafts beyond the last token");
            assert_eq!((tokens(&events), finishes(&events)), (expected.to_vec(), vec![(0, finish)]));
            let stats = bench.lane.stats();
            assert_eq!((stats.output_tokens as usize, stats.blocks.held), (1 + expected.len(), 0));
        }
    }

    #[test]
    fn an_output_that_does_not_follow_the_drafts_is_a_failed_step_and_then_there_are_none() {
        let mut bench = bench(ALWAYS);
        bench.lane.submit(periodic(1, 100));
        step(&mut bench, period);
        let plan = bench.plan(0).0.unwrap();
        let mut output = answer(&plan, period);
        output.rows[0].sampled.pop();
        assert!(bench.lane.complete(output).is_empty());
        assert_eq!(bench.lane.stats().failed_steps, 1);
        for _ in 0..3 {
            let (plan, events) = step(&mut bench, period);
            assert_eq!((plan.rows[0].num_drafts, tokens(&events).len()), (0, 1));
        }
    }

    #[test]
    fn drafts_leave_others_their_rows_and_blocks() {
        let speculation = Some(Speculation { max_drafts: 20, ..ALWAYS });
        let mut bench = Bench::new(LaneConfig { speculation, max_batch_tokens: 32, num_blocks: 8, ..CONFIG });
        (1..=2).for_each(|id| bench.lane.submit(periodic(id, 100)));
        step(&mut bench, period);
        bench.lane.submit(job(3, 40, 9));
        let (plan, _) = step(&mut bench, period);
        let lens: Vec<_> = plan.rows.iter().map(|rows| rows.tokens.len()).collect();
        assert_eq!(lens, [15, 1, 16], "a row for each decode, 16 for prompts");

        let mut bench = Bench::new(LaneConfig { speculation, num_blocks: 3, ..CONFIG });
        (1..=2).for_each(|id| bench.lane.submit(periodic(id, 30)));
        step(&mut bench, period);
        let (plan, _) = step(&mut bench, period);
        let lens: Vec<_> = plan.rows.iter().map(|rows| rows.tokens.len()).collect();
        assert_eq!(lens, [8, 8], "the last block is one that either may need: both have 16 tokens now");
        assert_eq!(bench.lane.stats().preemptions, 0);
    }

    #[test]
    fn drafts_grow_while_they_pay_and_stop_when_they_fail() {
        let speculation = Some(Speculation { always: false, max_drafts: 8, ..ALWAYS });
        let mut bench = Bench::new(LaneConfig { speculation, max_model_len: 2000, num_blocks: 128, ..CONFIG });
        bench.lane.submit(periodic(1, 1900));
        let mut drafts = |text: fn(usize) -> TokenId, steps| {
            let lens = (0..steps).map(|_| step(&mut bench, text).0.rows[0].drafts().len()).collect::<Vec<_>>();
            lens[lens.len() - 3..].to_vec()
        };
        assert_eq!(drafts(period, 40), [8, 8, 8]);
        // Two tokens come again and again, and what follows them never does.
        let never = |position: usize| [20, 21, 1000 + position as u32][position % 3];
        assert_eq!(drafts(never, 60), [0, 0, 0]);
    }
}
