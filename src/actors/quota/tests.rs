use super::*;
use crate::base::error::Code;
use crate::gate::auth::Limits;

fn principal(tpm: u64, concurrency: u64) -> Principal {
    let limits = Limits { rpm: None, tpm: Some(tpm), concurrency: Some(concurrency) };
    Principal { limits, ..(*Principal::local()).clone() }
}

fn reserve(tokens: u64) -> Reserve {
    Reserve { principal: principal(100, 2).into(), tokens }
}

#[test]
fn a_lease_charges_what_was_used_and_returns_the_rest() {
    actix::System::new().block_on(async {
        let quota = QuotaActor::new().start();
        let lease = quota.send(reserve(100)).await.unwrap().unwrap();
        let refused = quota.send(reserve(50)).await.unwrap().unwrap_err();
        assert!(refused.code == Code::RateLimited && refused.retry_after_s.is_some_and(|s| (60..=61).contains(&s)));
        lease.use_tokens(30);
        lease.use_tokens(20);
        drop(lease);
        let lease = quota.send(reserve(50)).await.unwrap().unwrap();
        assert_eq!(quota.send(reserve(1)).await.unwrap().unwrap_err().code, Code::RateLimited);
        lease.use_tokens(50);
        lease.settle(10);
        drop(quota.send(reserve(40)).await.unwrap().unwrap());
        let too_large = quota.send(reserve(101)).await.unwrap().unwrap_err();
        assert_eq!(too_large.code, Code::InvalidRequest);
    });
}

#[test]
fn nothing_is_lost_when_requesters_and_the_actor_go() {
    actix::System::new().block_on(async {
        let actor = QuotaActor::new();
        let ledger = actor.ledger.clone();
        let quota = actor.start();
        // Asked for and given up before the answer came.
        for _ in 0..50 {
            let mut request = Box::pin(quota.send(reserve(1)));
            assert!(futures_util::poll!(&mut request).is_pending());
            drop(request);
        }
        let last = quota.send(reserve(1)).await.unwrap().unwrap();
        assert_eq!(ledger.lock().num_inside("local"), 1, "the abandoned ones came back");

        // Dropped on another thread, after the actor ended.
        drop(quota);
        actix::clock::sleep(std::time::Duration::from_millis(10)).await;
        std::thread::spawn(move || drop(last)).join().unwrap();
        assert_eq!(ledger.lock().num_inside("local"), 0);
    });
}
