use proptest::prelude::*;

use crate::model::text::{StopMatcher, Stopped};

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

/// The first place where a stop string ends, of those that end there the longest: (index, start, end).
fn naive(text: &str, stops: &[String]) -> Option<(usize, usize, usize)> {
    (1..=text.len()).find_map(|end| {
        let ending = |stop: &&String| !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes());
        let longest = stops.iter().filter(ending).map(String::len).max()?;
        let index = stops.iter().position(|stop| stop.len() == longest && ending(&stop))?;
        Some((index, end - longest, end))
    })
}

/// Length of the longest end of `text` with which a stop string could begin.
fn naive_held(text: &str, stops: &[String]) -> usize {
    let begins =
        |len: &usize| stops.iter().any(|stop| *len < stop.len() && text.as_bytes().ends_with(&stop.as_bytes()[..*len]));
    (0..=text.len()).rev().find(begins).unwrap_or(0)
}

fn chunks() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[abé]{0,4}", 0..12)
}

fn stops() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[abé]{0,5}", 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn agrees_with_a_naive_search_however_the_text_is_cut(chunks in chunks(), stops in stops(), includes in any::<bool>()) {
        let mut matcher = StopMatcher::new(&stops, includes);
        let (mut text, mut emitted, mut hit) = (String::new(), String::new(), None);
        for chunk in &chunks {
            let Stopped { emit, hit: now } = matcher.push(chunk);
            text.push_str(chunk);
            emitted.push_str(&emit);
            prop_assert!(hit.is_none() || (now.is_none() && emit.is_empty()));
            hit = hit.or(now);
            if hit.is_none() {
                prop_assert_eq!(text.len() - emitted.len(), naive_held(&text, &stops));
            }
        }
        emitted.push_str(&matcher.finish());
        let (expected, index) = match naive(&text, &stops) {
            Some((index, start, end)) => (&text[..if includes { end } else { start }], Some(index)),
            None => (&text[..], None),
        };
        prop_assert_eq!(emitted, expected);
        prop_assert_eq!(hit, index);
    }
}

#[test]
fn holds_back_only_what_may_still_become_a_stop_string() {
    let mut matcher = StopMatcher::new(&strings(&["\n\nUser:", "END"]), false);
    assert_eq!(matcher.push("Yes.\n"), Stopped { emit: "Yes.".into(), hit: None });
    assert_eq!(matcher.push("\nUs"), Stopped::default());
    assert_eq!(matcher.push("ual. E"), Stopped { emit: "\n\nUsual. ".into(), hit: None });
    assert_eq!(matcher.push("ND of it"), Stopped { emit: String::new(), hit: Some(1) });
    assert_eq!(matcher.push("more"), Stopped::default());
    assert_eq!(matcher.finish(), "");
}

#[test]
fn the_longest_of_those_that_end_together_wins() {
    let mut matcher = StopMatcher::new(&strings(&["b", "ab"]), false);
    assert_eq!(matcher.push("xab"), Stopped { emit: "x".into(), hit: Some(1) });
    let mut matcher = StopMatcher::new(&strings(&["b", "ab"]), true);
    assert_eq!(matcher.push("xabc"), Stopped { emit: "xab".into(), hit: Some(1) });
}

#[test]
fn without_stop_strings_everything_passes() {
    for stops in [vec![], strings(&[""])] {
        let mut matcher = StopMatcher::new(&stops, false);
        assert_eq!(matcher.push("anything"), Stopped { emit: "anything".into(), hit: None });
        assert_eq!(matcher.finish(), "");
    }
}
