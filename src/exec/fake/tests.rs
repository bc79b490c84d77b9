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
