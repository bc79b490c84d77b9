use super::*;
use crate::base::error::Code;
use crate::gate::auth::Access;
use crate::gate::key::Secret;
use crate::store::NewKey;

const TTL: u64 = 3_600_000_000;

fn key(n: u8) -> (Secret, NewKey) {
    let secret = Secret::from_bytes(&[n; 32]);
    let key = NewKey {
        id: format!("key_{n}"),
        tenant: "acme".into(),
        name: None,
        sha256: secret.hash().0,
        prefix: secret.shown().into(),
        rpm: None,
        tpm: None,
        concurrency: None,
        created_at: 1,
    };
    (secret, key)
}

fn authenticate(secret: Option<&Secret>) -> Authenticate {
    Authenticate { secret: secret.map(|s| s.reveal().to_owned()) }
}

#[test]
fn keys_open_the_door_until_they_are_revoked() {
    let dir = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let store = Store::open(dir.path().join("a.db")).await.unwrap();
        let ((good, row), (stranger, _)) = (key(1), key(2));
        store.create_key(&row).await.unwrap();
        let auth = AuthActor::new(store.clone(), Doorkeeper::new(0, Access::Keyed, TTL, 100)).start();

        // A cold burst: every one is answered, though more come than lookups may run.
        let burst = (0..4 * MAX_LOOKUPS).map(|_| auth.send(authenticate(Some(&good))));
        for answer in futures_util::future::join_all(burst).await {
            assert_eq!(&*answer.unwrap().unwrap().tenant, "acme");
        }
        for bad in [None, Some(&stranger)] {
            assert_eq!(auth.send(authenticate(bad)).await.unwrap().unwrap_err().code, Code::Unauthenticated);
        }
        // The row is dated; the cache believes its own until it is told.
        store.revoke_key("key_1", 2).await.unwrap();
        assert!(auth.send(authenticate(Some(&good))).await.unwrap().is_ok());
        auth.send(KeyRevoked { key_id: "key_1".into() }).await.unwrap();
        assert_eq!(auth.send(authenticate(Some(&good))).await.unwrap().unwrap_err().code, Code::Unauthenticated);
    });
}

#[test]
fn a_revocation_overtakes_a_lookup_under_way() {
    let dir = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let store = Store::open(dir.path().join("a.db")).await.unwrap();
        let (good, row) = key(1);
        store.create_key(&row).await.unwrap();
        let auth = AuthActor::new(store.clone(), Doorkeeper::new(0, Access::Keyed, TTL, 100)).start();
        let mut early = Box::pin(auth.send(authenticate(Some(&good))));
        assert!(futures_util::poll!(&mut early).is_pending());
        // The lookup and the update race; whichever wins, the revocation's message comes after both began.
        store.revoke_key("key_1", 2).await.unwrap();
        auth.send(KeyRevoked { key_id: "key_1".into() }).await.unwrap();
        let _either = early.await.unwrap();
        assert!(auth.send(authenticate(Some(&good))).await.unwrap().is_err(), "the old row was not believed");
    });
}

#[test]
fn an_open_door_closes_when_the_first_key_is_made() {
    let dir = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let store = Store::open(dir.path().join("a.db")).await.unwrap();
        let auth = AuthActor::new(store.clone(), Doorkeeper::new(0, Access::Open, 0, 100)).start();
        assert_eq!(auth.send(authenticate(None)).await.unwrap().unwrap(), Principal::local());
        let (good, row) = key(1);
        store.create_key(&row).await.unwrap();
        assert_eq!(auth.send(authenticate(None)).await.unwrap().unwrap_err().code, Code::Unauthenticated);
        assert_eq!(&*auth.send(authenticate(Some(&good))).await.unwrap().unwrap().key_id, "key_1");
    });
}

#[test]
fn a_store_that_fails_is_not_an_open_door() {
    let dir = tempfile::tempdir().unwrap();
    actix::System::new().block_on(async {
        let store = Store::open(dir.path().join("a.db")).await.unwrap();
        for access in [Access::Open, Access::Keyed] {
            let auth = AuthActor::new(store.clone(), Doorkeeper::new(0, access, 0, 100)).start();
            store.close().await;
            let error = auth.send(authenticate(Some(&key(1).0))).await.unwrap().unwrap_err();
            assert_eq!(error.code, Code::Unavailable);
            assert!(error.internal.unwrap().contains("a.db") && !error.message.contains("a.db"));
        }
    });
}
