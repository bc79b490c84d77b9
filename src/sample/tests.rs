use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn spec(params: SamplingParams, index: u32) -> SampleSpec {
    SampleSpec { params: Arc::new(params), choice: 0, index, history: None, banned: Arc::new([]) }
}

fn with_history(params: SamplingParams, prompt: &[TokenId], output: &[TokenId]) -> SampleSpec {
    let history = History { prompt: prompt.into(), output: output.to_vec() };
    SampleSpec { history: Some(history), ..spec(params, output.len() as u32) }
}

fn run(logits: &[f32], spec: &SampleSpec) -> Sampled {
    sample(logits, spec, &mut Scratch::default())
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..Default::default() }
}

/// Logits as a draw sees them.
fn adjusted(logits: &[f32], spec: &SampleSpec) -> Vec<f32> {
    let (mut out, mut changes) = (logits.to_vec(), Vec::new());
    adjust::Collector::default().collect(spec, logits.len(), &mut changes);
    adjust::adjust(&mut out, &changes, &spec.draw());
    out
}

/// The kept set by sorting, in double precision; `None` where a border is too close to call.
fn naive_set(logits: &[f32], params: &SamplingParams) -> Option<Vec<TokenId>> {
    let t = f64::from(params.temperature);
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |i: usize| (f64::from(logits[i] - max) / t).exp();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    if params.top_p < 1.0 {
        let mut mass = 0.0;
        let mut keep = 0;
        while keep < order.len() && (keep == 0 || mass < f64::from(params.top_p)) {
            mass += weight(order[keep]) / total;
            keep += 1;
            if (mass - f64::from(params.top_p)).abs() < 1e-6 {
                return None;
            }
        }
        order.truncate(keep);
    }
    if order.iter().any(|&i| (weight(i) - f64::from(params.min_p)).abs() < 1e-6 && weight(i) < 1.0) {
        return None;
    }
    order.retain(|&i| weight(i) >= f64::from(params.min_p));
    let mut set: Vec<TokenId> = order.into_iter().map(|i| i as TokenId).collect();
    set.sort_unstable();
    Some(set)
}

/// The set that can be drawn: every border of the cumulative distribution is visited.
fn drawable(logits: &[f32], params: &SamplingParams) -> Vec<TokenId> {
    let mut candidates = draw::Candidates::default();
    let draw = spec(params.clone(), 0).draw();
    let mut set: Vec<TokenId> =
        (0..4_000).map(|i| draw::draw(logits, &Draw { at: i * (WHOLE / 4_000), ..draw }, &mut candidates)).collect();
    set.dedup();
    set
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    assert_eq!(run(&[1.0, 3.0, 3.0, 2.0], &spec(greedy(), 0)).token, 1);
    let mut logits = vec![0.0; 1000];
    logits[997] = 1.0;
    assert_eq!(run(&logits, &spec(greedy(), 0)).token, 997);
}

#[test]
fn nothing_to_draw_is_token_zero() {
    for bad in [f32::NEG_INFINITY, f32::NAN] {
        for temperature in [0.0, 1.0] {
            let params = SamplingParams { temperature, logprobs: Some(2), ..Default::default() };
            let sampled = run(&[bad; 9], &spec(params, 0));
            assert_eq!(sampled.token, 0);
            assert_eq!(sampled.logprobs.unwrap().logprob, f32::NEG_INFINITY);
        }
    }
}

#[test]
fn frequencies_follow_the_distribution() {
    let probabilities = [0.4, 0.3, 0.15, 0.1, 0.05];
    let logits: Vec<f32> = probabilities.iter().map(|p: &f32| p.ln() + 3.0).collect();
    let params = Arc::new(SamplingParams { seed: 11, ..Default::default() });
    let n = 40_000;
    let mut counts = [0f64; 5];
    let mut scratch = Scratch::default();
    for index in 0..n {
        let spec = SampleSpec { params: params.clone(), choice: index % 4, index, history: None, banned: Arc::new([]) };
        counts[sample(&logits, &spec, &mut scratch).token as usize] += 1.0;
    }
    let chi2: f64 = probabilities
        .iter()
        .zip(counts)
        .map(|(&p, c)| (c - f64::from(p) * f64::from(n)).powi(2) / (f64::from(p) * f64::from(n)))
        .sum();
    // Four degrees of freedom: 99.9 % stay under 18.5.
    assert!(chi2 < 18.5, "chi square {chi2}: {counts:?}");
}

#[test]
fn temperature_sharpens() {
    let logits = [0.0, 1.0];
    let share = |temperature: f32| {
        let params = SamplingParams { temperature, ..Default::default() };
        let draws = (0..4000).filter(|&i| run(&logits, &spec(params.clone(), i)).token == 1).count();
        draws as f32 / 4000.0
    };
    for temperature in [0.25f32, 1.0, 4.0] {
        let expected = 1.0 / (1.0 + (-1.0 / temperature).exp());
        assert!((share(temperature) - expected).abs() < 0.03, "temperature {temperature}");
    }
    assert_eq!(share(1e-30), 1.0);
}

#[test]
fn penalties_by_hand() {
    let logits = [2.0, -2.0, 5.0, 1.0];
    let penalised = |params: SamplingParams| adjusted(&logits, &with_history(params, &[0, 1, 1, 99], &[2, 2, 0]));
    let repetition = SamplingParams { repetition_penalty: 2.0, ..greedy() };
    assert_eq!(penalised(repetition), [1.0, -4.0, 2.5, 1.0]);
    let frequency = SamplingParams { frequency_penalty: 0.5, ..greedy() };
    assert_eq!(penalised(frequency), [1.5, -2.0, 4.0, 1.0]);
    let presence = SamplingParams { presence_penalty: 1.5, ..greedy() };
    assert_eq!(penalised(presence), [0.5, -2.0, 3.5, 1.0]);
}

#[test]
fn bias_moves_and_bans_win() {
    let logits = [1.0, 2.0, 3.0];
    let biased = SamplingParams { logit_bias: vec![(0, 100.0), (77, 5.0)], ..greedy() };
    assert_eq!(run(&logits, &spec(biased.clone(), 0)).token, 0);
    let banned = SampleSpec { banned: Arc::new([0, 2, 500]), ..spec(biased, 0) };
    assert_eq!(run(&logits, &banned).token, 1);
}

#[test]
fn logprobs_are_of_the_raw_logits() {
    let logits = [0.1f32.ln(), 0.6f32.ln(), 0.3f32.ln()];
    let params = SamplingParams { logit_bias: vec![(0, 50.0)], logprobs: Some(2), ..greedy() };
    let sampled = run(&logits, &spec(params, 0));
    let logprobs = sampled.logprobs.unwrap();
    assert_eq!((sampled.token, logprobs.token, logprobs.rank), (0, 0, 3));
    assert!((logprobs.logprob - 0.1f32.ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2]);
    assert!((logprobs.top[0].1 - 0.6f32.ln()).abs() < 1e-6);
}

#[test]
fn scratch_carries_nothing_over() {
    let mut scratch = Scratch::default();
    let params = SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.4, seed: 5, ..Default::default() };
    let long: Vec<f32> = (0..500).map(|i| ((i * 37) % 101) as f32 / 20.0).collect();
    for (len, index) in [(500, 0), (20, 1), (500, 2), (3, 3)] {
        let spec = SampleSpec { index, ..with_history(params.clone(), &[1, 2, 450], &[2, 400, 2]) };
        let reused = sample(&long[..len], &spec, &mut scratch);
        assert_eq!(reused, run(&long[..len], &spec));
    }
}

fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        prop::collection::vec(-12.0f32..12.0, 1..200),
        // Many equals, so that borders fall among them.
        prop::collection::vec((-4i32..4).prop_map(|x| x as f32), 1..200),
    ]
}

fn any_filters() -> impl Strategy<Value = SamplingParams> {
    let top_p = prop_oneof![Just(1.0f32), 0.0f32..1.0];
    let min_p = prop_oneof![Just(0.0f32), 0.0f32..1.0];
    (0.2f32..3.0, 0u32..60, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
        ..Default::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn filters_agree_with_sorting(logits in any_logits(), params in any_filters()) {
        if let Some(expected) = naive_set(&logits, &params) {
            let drawn = drawable(&logits, &params);
            for token in &drawn {
                prop_assert!(expected.contains(token), "{token} was drawn, {expected:?} are allowed");
            }
            // A token too unlikely to be hit by 4 000 steps may be missing.
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for &token in &expected {
                let weight = ((logits[token as usize] - max) / params.temperature).exp();
                prop_assert!(weight < 0.06 || drawn.contains(&token), "{token} is never drawn of {expected:?}");
            }
        }
    }

    #[test]
    fn penalties_agree_with_counting(
        logits in prop::collection::vec(-9.0f32..9.0, 1..50),
        prompt in prop::collection::vec(0u32..60, 0..40),
        output in prop::collection::vec(0u32..60, 0..40),
        (repetition, frequency, presence) in (0.5f32..2.0, -2.0f32..2.0, -2.0f32..2.0),
    ) {
        let params = SamplingParams {
            repetition_penalty: repetition, frequency_penalty: frequency, presence_penalty: presence, ..greedy()
        };
        let mut counts: HashMap<u32, f32> = prompt.iter().map(|&t| (t, 0.0)).collect();
        output.iter().for_each(|&t| *counts.entry(t).or_default() += 1.0);
        let expected: Vec<f32> = logits.iter().enumerate().map(|(i, &x)| match counts.get(&(i as u32)) {
            None => x,
            Some(&n) => {
                let x = if x > 0.0 { x / repetition } else { x * repetition };
                x - n * frequency - if n > 0.0 { presence } else { 0.0 }
            }
        }).collect();
        let out = adjusted(&logits, &with_history(params, &prompt, &output));
        for (a, b) in out.iter().zip(&expected) {
            prop_assert!((a - b).abs() < 1e-4, "{a} is not {b}");
        }
    }

    #[test]
    fn same_seed_same_token(logits in any_logits(), params in any_filters(), seed: u64, index: u32) {
        let spec = spec(SamplingParams { seed, logprobs: Some(3), ..params }, index);
        prop_assert_eq!(run(&logits, &spec), run(&logits, &spec));
    }

    #[test]
    fn logprobs_agree_with_the_definition(logits in any_logits(), pick: prop::sample::Index, top in 0usize..20) {
        let token = pick.index(logits.len());
        let got = token_logprobs(&logits, token as u32, top);
        let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let logprob = |i: usize| f64::from(logits[i]) - sum.ln();
        prop_assert!((f64::from(got.logprob) - logprob(token)).abs() < 1e-5);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        prop_assert_eq!(got.rank as usize, 1 + order.iter().position(|&i| i == token).unwrap());
        prop_assert_eq!(got.top.len(), top.min(logits.len()));
        for (&i, &(id, p)) in order.iter().zip(&got.top) {
            prop_assert_eq!(i as u32, id);
            prop_assert!((f64::from(p) - logprob(i)).abs() < 1e-5);
        }
    }

    /// Whatever the numbers, nothing panics, the token exists, and it could be drawn.
    #[test]
    fn any_floats(
        logits in prop::collection::vec(prop_oneof![any::<f32>(), Just(f32::NAN), Just(f32::INFINITY), -5.0f32..5.0], 1..80),
        (temperature, top_p, min_p, repetition, frequency) in any::<(f32, f32, f32, f32, f32)>(),
        top_k in 0u32..90,
        output in prop::collection::vec(0u32..100, 0..9),
        bias in prop::collection::vec((0u32..100, any::<f32>()), 0..4),
        u in 0.0f64..1.0,
    ) {
        let params = SamplingParams {
            temperature, top_p, min_p, top_k, repetition_penalty: repetition, frequency_penalty: frequency,
            logit_bias: bias, logprobs: Some(5), seed: u.to_bits(), ..Default::default()
        };
        let spec = SampleSpec { banned: Arc::new([3]), ..with_history(params, &[1], &output) };
        let adjusted = adjusted(&logits, &spec);
        let sampled = sample(&logits, &spec, &mut Scratch::default());
        prop_assert!((sampled.token as usize) < logits.len());
        let possible = |x: f32| x > f32::NEG_INFINITY;
        prop_assert!(possible(adjusted[sampled.token as usize]) || !adjusted.iter().any(|&x| possible(x)));
        prop_assert!(!sampled.logprobs.unwrap().logprob.is_nan());
    }
}
