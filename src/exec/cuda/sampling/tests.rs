//! What the kernels draw is what [`sample`] draws, bit for bit. Without the emulator's library (`scripts/check-kernels.sh
//! shim` makes it) the tests are skipped and say so, except in CI, where its absence is a failure.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::super::CudaOps;
use super::super::device::Order;
use super::super::tests::emulator;
use super::*;
use crate::model::TokenId;
use crate::model::draws::NO_TOKEN;
use crate::model::ops::Ops;
use crate::sample::{self, History, SampleSpec, SamplingParams, Scratch as SampleScratch, TokenLogprobs};

fn device(order: Order) -> Option<Arc<dyn Device>> {
    emulator(order).map(|device| Arc::new(device) as Arc<dyn Device>)
}

/// Rows of logits on a device.
struct Bench {
    device: Arc<dyn Device>,
    ops: CudaOps,
    rows: CudaRows,
    logits: Vec<f32>,
    scratch: SampleScratch,
}

impl Bench {
    fn new(device: &Arc<dyn Device>, vocab_size: usize, logits: Vec<f32>) -> Bench {
        let mut rows = CudaRows::default();
        rows.reshape(device, logits.len() / vocab_size, vocab_size, Element::F32).unwrap();
        // SAFETY: as many were reserved.
        unsafe { device.upload(rows.address(), bytemuck::cast_slice(&logits)).unwrap() };
        let scratch = SampleScratch::default();
        Bench { device: device.clone(), ops: CudaOps::new(device.clone()), rows, logits, scratch }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.logits[row * self.rows.width()..][..self.rows.width()]
    }

    /// Draws each row's specs on the device and here; panics where they differ, or the logits have changed.
    fn check(&mut self, specs: &[Vec<SampleSpec>]) -> Vec<TokenId> {
        let mut requests = Requests::default();
        for (row, specs) in specs.iter().enumerate() {
            let first = requests.draws.len();
            let vocab_size = self.rows.width();
            assert!(sample::request(specs, row as u32, vocab_size, &mut self.scratch, &mut requests));
            for (draw, spec) in (first..).zip(specs) {
                if let Some(top) = spec.params.logprobs {
                    let top = u32::from(top);
                    requests.scores.push(Score { row: row as u32, token: NO_TOKEN, draw: draw as u32, top });
                }
            }
        }
        let mut answers = Answers::default();
        self.ops.draw(&self.rows, &requests, &mut answers).unwrap();
        let mut tokens = answers.tokens.iter();
        let mut scores = answers.scores.into_iter();
        for (row, specs) in specs.iter().enumerate() {
            for spec in specs {
                let expected = sample::sample(self.row(row), spec, &mut SampleScratch::default());
                let logprobs = spec.params.logprobs.map(|_| TokenLogprobs::from(scores.next().unwrap()));
                assert_eq!(*tokens.next().unwrap(), expected.token, "row {row}: {spec:?}");
                assert_eq!(logprobs, expected.logprobs.map(|l| *l), "row {row}: {spec:?}");
            }
        }
        assert!(tokens.next().is_none() && scores.next().is_none());
        let mut after = Vec::new();
        self.rows.read(&self.device, &mut after).unwrap();
        assert!(after.iter().zip(&self.logits).all(|(a, b)| a.to_bits() == b.to_bits()), "logits have changed");
        answers.tokens
    }
}

fn spec(params: SamplingParams) -> SampleSpec {
    SampleSpec { params: Arc::new(params), choice: 0, index: 0, history: None, banned: Arc::new([]) }
}

/// Logits as models have them, many equals, and very flat ones.
fn any_logits(count: usize) -> impl Strategy<Value = Vec<f32>> {
    let one = prop_oneof![
        (-9.0f32..9.0).boxed(),
        (-3i32..3).prop_map(|x| x as f32).boxed(),
        (-0.01f32..0.01).boxed(),
        prop_oneof![20 => -6.0f32..9.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(0.0), 1 => Just(-0.0)].boxed(),
    ];
    // The seed makes the rest: a vector of this many strategies is slow.
    (any::<u64>(), prop::collection::vec(one, 64)).prop_map(move |(seed, some)| {
        let pick = |i: usize| sample::philox4x32([i as u32, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
        (0..count)
            .map(|i| {
                let [a, b, ..] = pick(i);
                some[a as usize % some.len()] * if b % 8 == 0 { 1.0 } else { (b % 1000) as f32 / 1000.0 }
            })
            .collect()
    })
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    let temperature = prop_oneof![Just(0.0f32), Just(1.0), 0.01f32..4.0];
    let top_k = prop_oneof![3 => Just(0u32), 2 => 1u32..50, 1 => 50u32..20_000];
    let top_p = prop_oneof![2 => Just(1.0f32), 1 => 0.0f32..1.0, 1 => 0.9f32..1.0];
    let min_p = prop_oneof![2 => Just(0.0f32), 1 => 0.0f32..0.3];
    let penalties = prop_oneof![Just((1.0f32, 0.0f32, 0.0f32)), (0.5f32..2.0, -2.0f32..2.0, -2.0f32..2.0)];
    let bias = prop::collection::vec((0u32..6000, -100.0f32..100.0), 0..4);
    let logprobs = prop_oneof![2 => Just(None), 1 => (0u8..=32).prop_map(Some)];
    (temperature, top_k, top_p, min_p, penalties, bias, logprobs, any::<u64>()).prop_map(
        |(temperature, top_k, top_p, min_p, penalties, logit_bias, logprobs, seed)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty: penalties.0,
            frequency_penalty: penalties.1,
            presence_penalty: penalties.2,
            logit_bias,
            logprobs,
            seed,
        },
    )
}

fn any_spec() -> impl Strategy<Value = SampleSpec> {
    let tokens = || prop::collection::vec(0u32..6000, 0..30);
    (any_params(), tokens(), tokens(), prop::collection::vec(0u32..6000, 0..3), 0u32..4, 0u32..1000).prop_map(
        |(params, prompt, output, banned, choice, index)| {
            let history = params.needs_history().then(|| History { prompt: prompt.into(), output });
            SampleSpec { choice, index, history, banned: banned.into(), ..spec(params) }
        },
    )
}

#[test]
fn what_is_drawn_is_what_the_host_draws() {
    for (order, cases) in [(Order::Forward, 12), (Order::Random(7), 12)] {
        let Some(device) = device(order) else { return };
        let vocab = prop_oneof![Just(1usize), 2usize..400, Just(4096), Just(4104), 5000usize..13_000];
        let row = || prop::collection::vec(any_spec(), 1..4);
        let rows = (vocab, 1usize..4).prop_flat_map(move |(vocab, rows)| {
            (Just(vocab), any_logits(vocab * rows), prop::collection::vec(row(), rows))
        });
        let mut runner =
            TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) });
        let check = |(vocab, logits, mut specs): (usize, Vec<f32>, Vec<Vec<SampleSpec>>)| {
            // Choices of one row differ in their random numbers only.
            for row in &mut specs {
                let first = row[0].clone();
                let choice = |(i, spec): (usize, &SampleSpec)| SampleSpec {
                    choice: i as u32,
                    index: spec.index,
                    ..first.clone()
                };
                *row = row.iter().enumerate().map(choice).collect();
            }
            Bench::new(&device, vocab, logits).check(&specs);
            Ok(())
        };
        runner.run(&rows, check).unwrap();
    }
}

/// More draws and scores than share launches.
#[test]
fn many_draws_of_small_rows() {
    let Some(device) = device(Order::Reverse) else { return };
    let num_rows = ROUND + 9;
    let logits = (0..num_rows * 33).map(|i| (i * 31 % 101) as f32 / 9.0).collect();
    let of_row = |row: usize| {
        let params = SamplingParams {
            temperature: (row % 3) as f32 / 2.0,
            top_k: (row % 2) as u32 * 5,
            logprobs: (!row.is_multiple_of(5)).then_some((row % 40).min(MAX_TOP) as u8),
            logit_bias: if row.is_multiple_of(4) { vec![(row as u32 % 33, 1.5)] } else { Vec::new() },
            seed: row as u64,
            ..SamplingParams::default()
        };
        vec![spec(params)]
    };
    let tokens = Bench::new(&device, 33, logits).check(&(0..num_rows).map(of_row).collect::<Vec<_>>());
    assert!(tokens[ROUND..].iter().any(|token| *token != tokens[ROUND]));
}

/// A list that overflows, where the row itself is gone through; and one that just does not.
#[test]
fn flat_distributions_under_a_large_top_p() {
    let Some(device) = device(Order::Forward) else { return };
    for vocab in [8192, 8193, 12_000] {
        let logits = (0..vocab).map(|i| (i * 7919 % vocab) as f32 * 1e-7).collect();
        let drawn = |top_k, seed| {
            let params = SamplingParams { top_p: 0.97, min_p: 0.01, top_k, seed, ..SamplingParams::default() };
            SampleSpec { choice: seed as u32, ..spec(params) }
        };
        Bench::new(&device, vocab, logits).check(&[vec![drawn(0, 1), drawn(0, 2), drawn(8190, 3)]]);
    }
}

#[test]
fn infinite_logits_and_none_leave_no_choice() {
    let Some(device) = device(Order::Forward) else { return };
    let nothing = f32::NEG_INFINITY;
    let logits = [[nothing; 3], [1.0, f32::INFINITY, f32::INFINITY], [nothing, nothing, 2.0]];
    let params =
        |temperature| SamplingParams { temperature, top_p: 0.5, logprobs: Some(2), ..SamplingParams::default() };
    let row = vec![spec(params(0.0)), spec(params(0.7))];
    let tokens = Bench::new(&device, 3, logits.concat()).check(&[row.clone(), row.clone(), row]);
    assert_eq!(tokens, [0, 0, 1, 1, 2, 2]);
}

#[test]
fn what_is_not_a_number_is_found_even_where_it_is_banned() {
    let Some(device) = device(Order::Forward) else { return };
    let mut bench = Bench::new(&device, 3, vec![1.0, f32::NAN, 3.0, 1.0, 2.0, 3.0]);
    let mut requests = Requests::default();
    for row in 0..2 {
        let banned = SampleSpec { banned: Arc::new([1]), ..spec(SamplingParams::default()) };
        assert!(sample::request(&[banned], row, 3, &mut bench.scratch, &mut requests));
        requests.scores.push(Score { row, token: 0, draw: 0, top: 1 });
    }
    requests.rows = vec![1];
    let mut answers = Answers::default();
    bench.ops.draw(&bench.rows, &requests, &mut answers).unwrap();
    assert_eq!(answers.tokens[0], NO_TOKEN);
    assert!(answers.tokens[1] != NO_TOKEN && answers.scores[0].max.is_nan() && answers.scores[1].max == 3.0);
    assert_eq!(answers.logits, [1.0, 2.0, 3.0]);
}

#[test]
fn draws_of_a_row_that_see_other_logits_are_the_hosts() {
    let mut requests = Requests::default();
    let penalised = |presence_penalty, output: &[TokenId]| {
        let params = SamplingParams { presence_penalty, ..SamplingParams::default() };
        let history = History { prompt: Arc::new([]), output: output.to_vec() };
        SampleSpec { history: Some(history), ..spec(params) }
    };
    let mut ask = |specs: &[SampleSpec]| {
        let accepted = sample::request(specs, 0, 9, &mut SampleScratch::default(), &mut requests);
        (accepted, requests.draws.len(), requests.changes.len())
    };
    assert_eq!(ask(&[penalised(1.0, &[4, 5]), penalised(1.0, &[4, 5])]), (true, 2, 2));
    assert_eq!(ask(&[penalised(1.0, &[4, 5]), penalised(1.0, &[4, 6])]), (false, 2, 2));
    assert_eq!(ask(&[penalised(1.0, &[4, 5]), penalised(1.5, &[4, 5])]), (false, 2, 2));
}
