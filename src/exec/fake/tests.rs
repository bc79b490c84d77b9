use proptest::prelude::*;

use super::*;

#[test]
fn a_spec_says_what_it_read() {
    let text = "fake:prefill_us_per_token=2.5,decode_us_per_step=300,vocab=99,fail_at_step=3";
    let spec: FakeSpec = text.parse().unwrap();
    assert_eq!((spec.prefill_us_per_token, spec.vocab, spec.fail_at_step), (2.5, 99, Some(3)));
    assert_eq!(spec.to_string(), text);
    assert_eq!("fake".parse::<FakeSpec>(), Ok(FakeSpec::default()));
    assert_eq!("fake:".parse::<FakeSpec>(), Ok(FakeSpec::default()));
}

#[test]
fn errors_name_the_key_and_what_is_allowed() {
    let error = |text: &str| text.parse::<FakeSpec>().unwrap_err().to_string();
    assert!(error("fake:vocab=1").contains("`vocab=1`"));
    assert!(error("fake:prefill_us_per_token=NaN").contains("microseconds from 0"));
    assert!(error("fake:speed=9").contains("`speed`") && error("fake:speed=9").contains("decode_us_per_seq"));
    assert!(error("fake:vocab").contains("key=value"));
    assert!(error("fake:vocab=9,vocab=9").contains("twice"));
    assert!(error("faker").contains("not a fake model"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_parses_or_is_refused(text in "fake(:?)([a-z_]{0,12}=?[0-9.e-]{0,6},?){0,4}") {
        if let Ok(spec) = text.parse::<FakeSpec>() {
            prop_assert_eq!(spec.to_string().parse::<FakeSpec>(), Ok(spec));
        }
    }
}

mod steps {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use super::super::*;
    use crate::model::TokenId;
    use crate::sample::{SampleSpec, Sampled, SamplingParams};
    use crate::sched::plan::{PromptLogprobs, SeqId};

    fn draw(params: SamplingParams, choice: u32, banned: &[TokenId]) -> SampleSpec {
        SampleSpec { params: Arc::new(params), choice, index: 0, history: None, banned: banned.into() }
    }

    fn plan(start: u32, tokens: &[TokenId], blocks: &[u32], samples: Vec<SampleSpec>) -> StepPlan {
        let (tokens, blocks) = (tokens.to_vec(), blocks.to_vec());
        let rows = SeqRows { seq: SeqId(1), start, tokens, num_drafts: 0, blocks, samples, prompt_logprobs: None };
        StepPlan { step: 1, copies: Vec::new(), rows: vec![rows] }
    }

    fn fake(text: &str) -> FakeExecutor {
        FakeExecutor::new(text.parse().unwrap(), 8)
    }

    fn sampled(output: StepOutput) -> Vec<Sampled> {
        output.rows.into_iter().flat_map(|rows| rows.sampled).collect()
    }

    #[test]
    fn tokens_depend_on_the_past_not_on_chunks_or_blocks() {
        let prompt: Vec<TokenId> = (0..40).collect();
        let sample = || vec![draw(SamplingParams::default(), 0, &[])];
        let whole = sampled(fake("fake").step(&plan(0, &prompt, &[0, 1, 2], sample())).unwrap());
        let mut chunked = fake("fake").reading_everything();
        chunked.step(&plan(0, &prompt[..20], &[5, 3], Vec::new())).unwrap();
        assert_eq!(sampled(chunked.step(&plan(20, &prompt[20..], &[5, 3, 7], sample())).unwrap()), whole);
        let mixed_up = chunked.step(&plan(20, &prompt[20..], &[3, 5, 7], sample())).unwrap_err();
        assert!(mixed_up.to_string().contains("another's KV at position 0"));
    }

    #[test]
    fn greedy_ignores_the_seed_and_sampling_does_not() {
        let params = |temperature, seed| SamplingParams { temperature, seed, ..SamplingParams::default() };
        let tokens = |temperature| {
            let samples = (0..20).map(|seed| draw(params(temperature, seed), seed as u32, &[])).collect();
            let mut tokens = sampled(fake("fake").step(&plan(0, &[1, 2], &[0], samples)).unwrap());
            tokens.dedup();
            tokens.len()
        };
        assert_eq!(tokens(0.0), 1);
        assert!(tokens(1.0) > 10);
    }

    #[test]
    fn banned_tokens_are_never_drawn_and_the_end_token_only_on_request() {
        let end = 3;
        let bias = |bias| SamplingParams { logit_bias: vec![(end, bias)], ..SamplingParams::default() };
        let token = |params, banned: &[TokenId], past| {
            let plan = plan(0, &[past], &[0], vec![draw(params, 0, banned)]);
            sampled(fake("fake:vocab=4").step(&plan).unwrap())[0].token
        };
        for past in 0..50 {
            assert_ne!(token(SamplingParams::default(), &[], past), end);
            assert_eq!(token(SamplingParams::default(), &[0, 2], past), 1);
            assert_eq!(token(bias(100.0), &[], past), end);
            assert_ne!(token(bias(100.0), &[end], past), end);
        }
    }

    #[test]
    fn logprobs_are_of_the_drawn_token_and_of_the_prompts_next_ones() {
        let params = SamplingParams { logprobs: Some(3), ..SamplingParams::default() };
        let mut plan = plan(0, &[4, 5, 6], &[0], vec![draw(params, 0, &[])]);
        plan.rows[0].prompt_logprobs = Some(PromptLogprobs { top: 2, next: Some(9) });
        let output = fake("fake").step(&plan).unwrap().rows.remove(0);
        let own = output.sampled[0].logprobs.clone().unwrap();
        assert_eq!((own.token, own.rank, own.top.len()), (output.sampled[0].token, 1, 3));
        assert!(own.top.is_sorted_by(|a, b| a.1 > b.1) && own.top.iter().map(|t| t.1.exp()).sum::<f32>() < 1.0);
        assert_eq!(output.prompt_logprobs.iter().map(|l| l.token).collect::<Vec<_>>(), [5, 6, 9]);
    }

    #[test]
    fn draws_go_on_while_drafts_are_right() {
        let spec = |index| SampleSpec { index, ..draw(SamplingParams::default(), 0, &[]) };
        let mut one_by_one = fake("fake");
        let mut tokens = vec![5];
        for index in 0..3 {
            let plan = plan(index, &tokens[index as usize..], &[0], vec![spec(index)]);
            tokens.push(sampled(one_by_one.step(&plan).unwrap())[0].token);
        }
        for (drafts, num_draws) in [(&tokens[1..3], 3), (&[tokens[1], 0], 2), (&[0, tokens[2]], 1)] {
            let rows: Vec<_> = tokens[..1].iter().chain(drafts).copied().collect();
            let mut plan = plan(0, &rows, &[0], (0..3).map(spec).collect());
            plan.rows[0].num_drafts = 2;
            let drawn = sampled(fake("fake").step(&plan).unwrap());
            assert_eq!(drawn.iter().map(|drawn| drawn.token).collect::<Vec<_>>(), tokens[1..=num_draws]);
        }
        assert_eq!("fake:period=3".parse::<FakeSpec>().unwrap().to_string(), "fake:period=3");
    }

    #[test]
    fn a_period_repeats_but_for_a_few_tokens() {
        let draws = (0..400).map(|index| SampleSpec { index, ..draw(SamplingParams::default(), 0, &[]) }).collect();
        let tokens = sampled(fake("fake:period=5").step(&plan(0, &[9], &[0], draws)).unwrap());
        let repeated = tokens.windows(6).filter(|window| window[0].token == window[5].token).count();
        assert!((300..390).contains(&repeated), "{repeated}");
    }

    #[test]
    fn a_step_takes_what_the_time_model_says() {
        let text = "fake:prefill_us_per_token=100,decode_us_per_step=3000,decode_us_per_seq=500";
        let mut fake = fake(text);
        let prefill = plan(0, &[1; 20], &[0, 1], Vec::new());
        let decode = plan(20, &[1], &[0, 1], vec![draw(SamplingParams::default(), 0, &[])]);
        assert_eq!((fake.spec().cost_us(&prefill), fake.spec().cost_us(&decode)), (2000, 3500));
        let started = Instant::now();
        assert_eq!(fake.step(&prefill).unwrap().elapsed_us, 2000);
        assert!(started.elapsed() >= Duration::from_millis(2));
    }

    #[test]
    fn drills_fail_wedge_and_panic_at_their_step_and_only_there() {
        let mut fake = fake("fake:fail_at_step=2,wedge_at_step=3,wedge_ms=20,panic_at_step=4");
        let plan = plan(0, &[1], &[0], Vec::new());
        fake.step(&plan).unwrap();
        assert!(fake.step(&plan).unwrap_err().to_string().contains("fail_at_step=2"));
        let started = Instant::now();
        fake.step(&plan).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(20));
        assert!(catch_unwind(AssertUnwindSafe(|| fake.step(&plan))).is_err());
        fake.step(&plan).unwrap();
    }

    #[test]
    fn a_device_fails_for_some_steps_and_is_lost_for_ever() {
        let mut fake = fake("fake:fault_at_step=2,fault_steps=2,lose_on_token=9");
        let plan = |token| plan(0, &[token], &[0], Vec::new());
        let outcomes = [1, 1, 1, 1, 9, 1].map(|token| match fake.step(&plan(token)) {
            Ok(_) => "good",
            Err(ExecError::Device(_)) => "failed",
            Err(ExecError::Lost(_)) => "lost",
            Err(error) => panic!("{error}"),
        });
        assert_eq!(outcomes, ["good", "failed", "failed", "good", "lost", "lost"]);
    }

    #[test]
    fn a_plan_beyond_the_memory_is_an_error() {
        let error = |blocks: &[u32]| fake("fake").step(&plan(0, &[1; 20], blocks, Vec::new())).unwrap_err().to_string();
        assert!(error(&[0]).contains("1 blocks but writes position 16"));
        assert!(error(&[0, 8]).contains("block 8"));
    }
}
