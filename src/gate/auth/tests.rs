use proptest::prelude::*;

use super::*;
use crate::store::NewKey;

const TTL: Micros = 10_000_000;

fn secret(n: u8) -> Secret {
    Secret::from_bytes(&[n; 32])
}

fn row(n: u8, revoked_at: Option<u64>) -> KeyRow {
    let key = NewKey {
        id: format!("key_{n}"),
        tenant: format!("tenant {}", n % 2),
        name: None,
        sha256: secret(n).hash().0,
        prefix: secret(n).shown().to_owned(),
        rpm: Some(60),
        tpm: None,
        concurrency: Some(2),
        created_at: 0,
    };
    KeyRow { key, revoked_at }
}

fn found(n: u8, row: Option<KeyRow>) -> Found {
    Found::Key(secret(n).hash(), row.map(Box::new))
}

fn counts(active: u64, total: u64) -> KeyCounts {
    KeyCounts { active, total }
}

#[test]
fn without_keys_only_loopback_is_open() {
    for loopback in ["127.0.0.1:80", "127.1.2.3:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
        assert_eq!(access(loopback.parse().unwrap(), counts(0, 0)), Ok(Access::Open), "{loopback}");
        assert_eq!(access(loopback.parse().unwrap(), counts(0, 1)), Ok(Access::Keyed), "{loopback}");
    }
    for abroad in ["0.0.0.0:80", "[::]:80", "192.168.0.1:80", "[::ffff:10.0.0.1]:80"] {
        let e = access(abroad.parse().unwrap(), counts(0, 0)).unwrap_err().to_string();
        assert!(e.contains(abroad) && e.contains("garrick keys create"), "{e}");
        assert_eq!(access(abroad.parse().unwrap(), counts(1, 1)), Ok(Access::Keyed), "{abroad}");
    }
}

#[test]
fn an_open_door_takes_any_secret_until_a_key_is_made() {
    let mut door = Doorkeeper::new(0, Access::Open, TTL, 8);
    let enter = Answer::Enter(Principal::local());
    assert_eq!(door.authenticate(TTL - 1, Some("sk-dummy")), enter);
    assert_eq!(door.authenticate(TTL, None), Answer::Ask(Question::AnyKeys));
    assert_eq!(door.learn(TTL, &Found::Keys(counts(0, 0)), None), enter);
    assert_eq!(door.authenticate(2 * TTL - 1, None), enter);
    // A key was made and revoked in between: closed, for good.
    assert_eq!(door.learn(2 * TTL, &Found::Keys(counts(0, 1)), None), Answer::Refuse(Refusal::NoKey));
    let ask = Answer::Ask(Question::Key(secret(1).hash()));
    assert_eq!(door.learn(2 * TTL, &Found::Keys(counts(0, 1)), Some(secret(1).reveal())), ask);
    assert_eq!(door.authenticate(2 * TTL, Some("sk-dummy")), Answer::Refuse(Refusal::BadKey));
}

#[test]
fn an_unsure_door_asks_before_it_lets_anyone_in() {
    let mut door = Doorkeeper::unsure(Access::Open, TTL, 8);
    assert_eq!(door.authenticate(0, None), Answer::Ask(Question::AnyKeys));
    assert_eq!(door.learn(0, &Found::Keys(counts(1, 1)), None), Answer::Refuse(Refusal::NoKey));
    let mut door = Doorkeeper::unsure(Access::Open, TTL, 8);
    assert_eq!(door.learn(5, &Found::Keys(counts(0, 0)), None), Answer::Enter(Principal::local()));
    assert_eq!(door.authenticate(5 + TTL - 1, None), Answer::Enter(Principal::local()));
}

#[test]
fn a_key_is_asked_for_once_and_believed_until_its_time() {
    let mut door = Doorkeeper::new(0, Access::Keyed, TTL, 8);
    let good = secret(1).reveal().to_owned();
    assert_eq!(door.authenticate(0, None), Answer::Refuse(Refusal::NoKey));
    assert_eq!(door.authenticate(0, Some("gk_short")), Answer::Refuse(Refusal::BadKey));
    assert_eq!(door.authenticate(5, Some(&good)), Answer::Ask(Question::Key(secret(1).hash())));
    let enter = Answer::Enter(Principal::of_key(&row(1, None)).into());
    assert_eq!(door.learn(5, &found(1, Some(row(1, None))), Some(&good)), enter);
    assert_eq!(door.authenticate(5 + TTL - 1, Some(&good)), enter);
    assert_eq!(door.authenticate(5 + TTL, Some(&good)), Answer::Ask(Question::Key(secret(1).hash())));
    // Revoked meanwhile.
    let refuse = Answer::Refuse(Refusal::BadKey);
    assert_eq!(door.learn(5 + TTL, &found(1, Some(row(1, Some(3)))), Some(&good)), refuse);
    assert_eq!(door.authenticate(6 + TTL, Some(&good)), refuse);
}

#[test]
fn a_key_forgotten_is_asked_for_again() {
    let mut door = Doorkeeper::new(0, Access::Keyed, TTL, 8);
    for n in [1, 2] {
        door.learn(0, &found(n, Some(row(n, None))), None);
    }
    door.forget("key_1");
    assert_eq!(door.authenticate(0, Some(secret(1).reveal())), Answer::Ask(Question::Key(secret(1).hash())));
    assert!(matches!(door.authenticate(0, Some(secret(2).reveal())), Answer::Enter(_)));
}

#[test]
fn a_row_of_another_hash_is_no_key() {
    let mut door = Doorkeeper::new(0, Access::Keyed, TTL, 8);
    let answer = door.learn(0, &found(1, Some(row(2, None))), Some(secret(1).reveal()));
    assert_eq!(answer, Answer::Refuse(Refusal::BadKey));
}

#[test]
fn a_flood_of_unknown_keys_pushes_no_good_one_out() {
    let mut door = Doorkeeper::new(0, Access::Keyed, TTL, 8);
    door.learn(0, &found(0, Some(row(0, None))), None);
    for n in 1..=200 {
        door.learn(1, &found(n, None), None);
    }
    assert!(matches!(door.authenticate(2, Some(secret(0).reveal())), Answer::Enter(_)));
    assert_eq!(door.cache.len(), 1 + 2);
}

#[test]
fn tenants_have_salts_of_their_own_and_share_them_between_keys() {
    let [a, b, c] = [1, 2, 3].map(|n| Principal::of_key(&row(n, None)));
    assert_eq!(a.salt, c.salt);
    assert_ne!(a.salt, b.salt);
    assert_ne!(Principal::local().salt, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Against the plain rule: the latest word on a hash counts if it is younger than the limit. The cache may have
    /// forgotten more, never less, and stays within its bound.
    #[test]
    fn the_cache_never_says_what_the_store_did_not(
        steps in prop::collection::vec((0u64..8, 0u8..12, any::<bool>(), any::<bool>()), 1..120),
        max in 1usize..10,
    ) {
        let (mut cache, mut said, mut now) = (KeyCache::new(10, max), std::collections::HashMap::new(), 0);
        for (dt, n, is_put, known) in steps {
            now += dt;
            let hash = secret(n).hash();
            if is_put {
                let verdict = if known { Verdict::Known(Principal::of_key(&row(n, None)).into()) } else { Verdict::Unknown };
                cache.put(now, hash, verdict.clone());
                said.insert(n, (now, verdict));
                prop_assert_eq!(cache.get(now, &hash), said.get(&n).map(|s| &s.1));
            }
            if let Some(verdict) = cache.get(now, &hash) {
                let (at, truth) = &said[&n];
                prop_assert!(verdict == truth && now - at < 10);
            }
            prop_assert!(cache.len() <= max.max(2));
        }
    }
}
