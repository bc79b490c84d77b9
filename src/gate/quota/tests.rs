use proptest::prelude::*;

use super::*;
use crate::gate::auth::tenant_salt;

fn principal(key: &str, rpm: Option<u64>, tpm: Option<u64>, concurrency: Option<u64>) -> Principal {
    let limits = Limits { rpm, tpm, concurrency };
    Principal { key_id: key.into(), tenant: "t".into(), salt: tenant_salt("t"), limits }
}

fn at(seconds: f64) -> Micros {
    (seconds * 1e6) as Micros
}

#[test]
fn the_whole_minute_may_come_in_a_burst_and_then_waits_for_the_window() {
    let p = principal("a", Some(3), None, None);
    let mut ledger = Ledger::new();
    let held: Vec<_> = (0..3).map(|_| ledger.reserve(at(10.4), &p, 5).unwrap()).collect();
    let refused = ledger.reserve(at(11.0), &p, 5).unwrap_err();
    // Charged in second 10, which is 60 s old as a whole at 71.
    assert_eq!(refused, QuotaError::Exceeded { limit: Limit::Rpm, max: 3, retry_after_s: 60 });
    assert!(ledger.reserve(at(70.9), &p, 5).is_err());
    let late = ledger.reserve(at(71.0), &p, 5).unwrap();
    for r in held.into_iter().chain([late]) {
        ledger.settle(at(72.0), r, 5);
    }
    assert_eq!(ledger.num_inside("a"), 0);
}

#[test]
fn what_was_not_used_comes_back_and_what_was_used_beyond_is_charged() {
    let p = principal("a", None, Some(100), None);
    let mut ledger = Ledger::new();
    let r = ledger.reserve(at(0.0), &p, 90).unwrap();
    assert!(matches!(ledger.reserve(at(1.0), &p, 20), Err(QuotaError::Exceeded { limit: Limit::Tpm, .. })));
    ledger.settle(at(2.0), r, 30);
    let r = ledger.reserve(at(3.0), &p, 70).unwrap();
    // 30 of second 0, and 100 now: 30 too many, which count from second 4 on.
    ledger.settle(at(4.0), r, 100);
    let refused = ledger.reserve(at(4.0), &p, 1).unwrap_err();
    assert_eq!(refused, QuotaError::Exceeded { limit: Limit::Tpm, max: 100, retry_after_s: 60 });
    let r = ledger.reserve(at(64.0), &p, 70).expect("second 0 and 3 have left, the excess of second 4 has not");
    ledger.settle(at(64.0), r, 70);
    assert!(ledger.reserve(at(64.0), &p, 1).is_err());
}

#[test]
fn a_refund_after_its_minute_is_none() {
    let p = principal("a", None, Some(100), None);
    let mut ledger = Ledger::new();
    let old = ledger.reserve(at(0.0), &p, 100).unwrap();
    let new = ledger.reserve(at(61.0), &p, 100).unwrap();
    ledger.settle(at(62.0), old, 0);
    assert!(ledger.reserve(at(62.0), &p, 1).is_err(), "the old one's tokens had left the window already");
    ledger.settle(at(62.0), new, 100);
}

#[test]
fn what_can_never_fit_is_told_apart_from_what_must_wait() {
    let p = principal("a", Some(1), Some(100), None);
    let mut ledger = Ledger::new();
    let error = ledger.reserve(0, &p, 101).unwrap_err();
    assert_eq!(error, QuotaError::TooLargeForLimit { tokens: 101, max: 100 });
    let client = Error::from(error);
    assert!(!client.retryable() && client.message.contains("101") && client.message.contains("100"));
    let r = ledger.reserve(0, &p, 100).unwrap();
    let client = Error::from(ledger.reserve(0, &p, 1).unwrap_err());
    assert!(client.retryable() && client.retry_after_s == Some(61), "{client:?}");
    ledger.settle(0, r, 100);
}

#[test]
fn places_come_back_and_the_wait_follows_how_long_requests_take() {
    let p = principal("a", None, None, Some(2));
    let mut ledger = Ledger::new();
    let first = ledger.reserve(at(0.0), &p, 1).unwrap();
    let second = ledger.reserve(at(4.0), &p, 1).unwrap();
    let wait = |ledger: &mut Ledger, now| match ledger.reserve(now, &p, 1) {
        Err(QuotaError::Exceeded { limit: Limit::Concurrency, max: 2, retry_after_s }) => retry_after_s,
        other => panic!("{other:?}"),
    };
    assert_eq!(wait(&mut ledger, at(5.0)), 1, "none has ended yet");
    ledger.settle(at(10.0), first, 1);
    let third = ledger.reserve(at(10.0), &p, 1).unwrap();
    assert_eq!(wait(&mut ledger, at(11.0)), 3, "the one of second 4 should take ten seconds like the first");
    assert_eq!(wait(&mut ledger, at(30.0)), 1, "it is overdue");
    ledger.settle(at(31.0), second, 1);
    ledger.settle(at(31.0), third, 1);
    assert_eq!(ledger.num_inside("a"), 0);
}

#[test]
fn keys_do_not_share_and_idle_ones_are_forgotten() {
    let mut ledger = Ledger::new();
    for n in 0..100 {
        let p = principal(&format!("key {n}"), Some(1), Some(10), Some(1));
        let r = ledger.reserve(at(1.0), &p, 10).unwrap();
        ledger.settle(at(2.0), r, 10);
    }
    let stays = principal("stays", None, None, None);
    let r = ledger.reserve(at(3.0), &stays, 1).unwrap();
    assert_eq!(ledger.accounts.len(), 101);
    let other = ledger.reserve(at(130.0), &principal("new", None, None, None), 1).unwrap();
    assert_eq!(ledger.accounts.len(), 2, "what holds a reservation stays");
    ledger.settle(at(131.0), r, 1);
    ledger.settle(at(131.0), other, 1);
}

#[test]
fn output_that_nobody_bounded_is_reserved_in_part() {
    let none = Limits::default();
    let tpm = |n| Limits { tpm: Some(n), ..none };
    assert_eq!(tokens_to_reserve([(10, 4000)], 2, Some(50), &none), 110);
    assert_eq!(tokens_to_reserve([(10, 20)], 1, Some(50), &none), 30, "the context ends earlier");
    assert_eq!(tokens_to_reserve([(10, 100_000)], 1, None, &none), 10 + UNBOUNDED_OUTPUT_TOKENS);
    assert_eq!(tokens_to_reserve([(10, 100_000)], 1, None, &tpm(100)), 100);
    assert_eq!(tokens_to_reserve([(10, 100_000)], 1, Some(500), &tpm(100)), 510, "asked for, so refused");
    assert_eq!(tokens_to_reserve([(200, 100_000)], 1, None, &tpm(100)), 200, "the prompt alone is too large");
    let three = [(10, 4000); 3];
    assert_eq!(tokens_to_reserve(three, 1, None, &tpm(2000)), 2000, "of all prompts together");
    assert_eq!(tokens_to_reserve(three, 2, Some(5), &tpm(2000)), 60);
    assert_eq!(tokens_to_reserve([(u64::MAX, u64::MAX)], 2, Some(u64::MAX), &none), u64::MAX);
}

#[derive(Debug, Clone)]
enum Step {
    Reserve(u64),
    /// Which one (modulo those inside), and which part of it was used, in quarters.
    Settle(usize, u64),
}

fn steps() -> impl Strategy<Value = Vec<(Micros, Step)>> {
    let step = prop_oneof![
        3 => (0u64..40).prop_map(Step::Reserve),
        2 => (any::<usize>(), 0u64..5).prop_map(|(i, q)| Step::Settle(i, q)),
    ];
    prop::collection::vec((0u64..15_000_000, step), 1..120)
}

/// What the model knows of an admitted request.
struct Admitted {
    when: Micros,
    charged: u64,
    held: Option<Reservation>,
}

fn charged_since(all: &[Admitted], after: Micros, now: Micros) -> (u64, u64) {
    let recent = all.iter().filter(|a| a.when > after && a.when <= now);
    recent.fold((0, 0), |(requests, tokens), a| (requests + 1, tokens + a.charged))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// Against a log of every request: no 60 s exceed a limit; nothing is refused that would fit in 61 s; the time told
    /// is enough, and a second less is not.
    #[test]
    fn no_minute_exceeds_a_limit_and_the_time_told_is_right(steps in steps(), rpm in 1u64..8, tpm in 39u64..150) {
        let p = principal("a", Some(rpm), Some(tpm), None);
        // Far enough from zero for the model's subtractions.
        let (mut ledger, mut all, mut now) = (Ledger::new(), Vec::<Admitted>::new(), at(1000.0));
        for (dt, step) in steps {
            now += dt;
            match step {
                Step::Reserve(tokens) => match ledger.reserve(now, &p, tokens) {
                    Ok(r) => {
                        all.push(Admitted { when: now, charged: tokens, held: Some(r) });
                        let (requests, tokens) = charged_since(&all, now - at(60.0), now);
                        prop_assert!(requests <= rpm && tokens <= tpm, "{requests} requests, {tokens} tokens");
                    }
                    Err(QuotaError::Exceeded { retry_after_s, limit, .. }) => {
                        let (r, t) = charged_since(&all, now - at(61.0), now);
                        prop_assert!(r + 1 > rpm || t + tokens > tpm, "refused without need: {r} {t}");
                        prop_assert!((1..=61).contains(&retry_after_s) && limit != Limit::Concurrency);
                        let then = now + retry_after_s * SECOND;
                        prop_assert!(matches!(ledger.clone().reserve(then, &p, tokens), Ok(r) if r.tokens() == tokens));
                        let early = ledger.clone().reserve(then - SECOND, &p, tokens);
                        prop_assert!(early.is_err(), "a second less would do");
                    }
                    Err(e) => prop_assert!(false, "{e}"),
                },
                Step::Settle(i, quarters) => {
                    let mut inside: Vec<_> = all.iter_mut().filter(|a| a.held.is_some()).collect();
                    if inside.is_empty() {
                        continue;
                    }
                    let i = i % inside.len();
                    let r = inside[i].held.take().unwrap();
                    let used = r.tokens() * quarters.min(4) / 4;
                    inside[i].charged = used;
                    ledger.settle(now, r, used);
                }
            }
        }
        for a in &mut all {
            if let Some(r) = a.held.take() {
                ledger.settle(now, r, 0);
            }
        }
        prop_assert_eq!(ledger.num_inside("a"), 0);
        let later = ledger.reserve(now + at(122.0), &principal("b", None, None, None), 0).unwrap();
        prop_assert_eq!(ledger.accounts.len(), 1, "the first key is forgotten");
        ledger.settle(now, later, 0);
    }

    #[test]
    fn no_more_are_inside_than_may_be(steps in steps(), max in 1u64..5) {
        let p = principal("a", None, None, Some(max));
        let (mut ledger, mut inside, mut now) = (Ledger::new(), Vec::new(), 0);
        for (dt, step) in steps {
            now += dt;
            match step {
                Step::Reserve(tokens) => {
                    let is_full = inside.len() as u64 == max;
                    match ledger.reserve(now, &p, tokens) {
                        Ok(r) => inside.push(r),
                        Err(QuotaError::Exceeded { limit, .. }) => prop_assert!(is_full && limit == Limit::Concurrency),
                        Err(e) => prop_assert!(false, "{e}"),
                    }
                }
                Step::Settle(i, _) if !inside.is_empty() => {
                    let r = inside.swap_remove(i % inside.len());
                    ledger.settle(now, r, 0);
                }
                Step::Settle(..) => {}
            }
            prop_assert!(inside.len() as u64 <= max);
            prop_assert_eq!(ledger.num_inside("a"), inside.len());
        }
    }

    /// The clock leaps ahead by hours (a machine that slept) and is now and then read a little too late: nobody stays
    /// shut out, and nobody is told to wait for longer than the window is.
    #[test]
    fn a_clock_that_leaps_shuts_nobody_out(
        leaps in prop::collection::vec((prop::sample::select(vec![0, 900, 60_000_000, 36_000_000_000]), 0u64..2000), 1..40),
    ) {
        let p = principal("a", Some(2), Some(50), Some(3));
        let (mut ledger, mut inside, mut now) = (Ledger::new(), Vec::new(), at(1.0));
        for (leap, late) in leaps {
            now += leap;
            match ledger.reserve(now - late, &p, 20) {
                Ok(r) => inside.push(r),
                Err(QuotaError::Exceeded { retry_after_s, limit: Limit::Rpm | Limit::Tpm, .. }) => {
                    prop_assert!((1..=62).contains(&retry_after_s), "{retry_after_s}");
                }
                Err(QuotaError::Exceeded { .. }) => inside.drain(..).for_each(|r| ledger.settle(now - late, r, 20)),
                Err(e) => prop_assert!(false, "{e}"),
            }
        }
        inside.drain(..).for_each(|r| ledger.settle(now, r, 20));
        prop_assert_eq!(ledger.num_inside("a"), 0);
        let free = ledger.reserve(now + at(62.0), &p, 50);
        prop_assert!(free.is_ok(), "{:?}", free);
    }
}
