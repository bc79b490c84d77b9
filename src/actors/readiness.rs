//! Whether a request sent now would make progress, found out by asking every part and every lane.
//!
//! Owns the rules for what is wrong with a lane. Never mends anything: that is the supervisor's.
//!
//! Invariant: the answer comes within [`MAX_ANSWER`], however many lanes are stuck.

use std::time::Duration;

use futures_util::future::join_all;

use super::lanes::Lanes;
use super::messages::{Inspect, LaneReport};
use super::services::Services;
use crate::base::metrics::metrics;

/// A scheduler that does not answer within this is as good as dead: it only ever enqueues.
const MAX_ANSWER: Duration = Duration::from_secs(1);

/// Why the server is not ready, each reason naming its lane; empty when it is. Tells the metrics, too.
pub async fn reasons(services: &Services) -> Vec<String> {
    let (lanes, max_step) = (&*services.lanes, services.timeouts.max_step);
    let troubles = join_all((0..lanes.len()).map(|lane| trouble(lanes, lane, max_step))).await;
    let troubles = troubles.into_iter().enumerate();
    let draining = services.live.is_draining().then(|| "draining".to_owned());
    let parts = [
        ("auth", services.auth.is_alive()),
        ("quota", services.quota.is_alive()),
        ("supervisor", services.supervisor.is_alive()),
    ];
    let dead = parts.into_iter().filter(|(_, is_alive)| !is_alive);
    let of_parts = dead.map(|(part, _)| format!("{part}: being restarted"));
    let of_lanes = troubles.filter_map(|(lane, trouble)| Some(format!("lane {lane}: {}", trouble?)));
    let reasons: Vec<String> = draining.into_iter().chain(of_parts).chain(of_lanes).collect();
    metrics().ready.set(if reasons.is_empty() { 1.0 } else { 0.0 });
    reasons
}

async fn trouble(lanes: &Lanes, lane: usize, max_step: Duration) -> Option<String> {
    let report = ask(lanes, lane).await;
    let health = metrics().lane_health(lane);
    let step_age = report.as_ref().ok().and_then(|report| report.step_age);
    health.step_age_s.set(step_age.unwrap_or_default().as_secs_f64());
    let trouble = match report {
        Ok(report) => report.trouble(max_step),
        Err(why) => Some(why.to_owned()),
    };
    health.ready.set(if trouble.is_none() { 1.0 } else { 0.0 });
    trouble
}

async fn ask(lanes: &Lanes, lane: usize) -> Result<LaneReport, &'static str> {
    if lanes.is_given_up(lane) {
        return Err("the scheduler kept dying and is given up");
    }
    if lanes.is_lost(lane) {
        return Err("the device is lost");
    }
    if !lanes.executor(lane).is_alive() {
        return Err("the executor is being restarted");
    }
    let address = lanes.address(lane).ok_or("not started")?;
    if !address.connected() {
        return Err("the scheduler is being restarted");
    }
    // A lane in a step hears nothing, and needs no other proof of life than that the step is young.
    let in_step = || lanes.step_age(lane).map(|age| LaneReport { step_age: Some(age), idle_age: None });
    if let Some(report) = in_step() {
        return Ok(report);
    }
    match tokio::time::timeout(MAX_ANSWER, address.send(Inspect)).await {
        // The next step may have begun before it read the question.
        Err(_) => in_step().ok_or("the scheduler does not answer"),
        Ok(Err(_)) => Err("the scheduler is being restarted"),
        Ok(Ok(report)) => Ok(report),
    }
}

impl LaneReport {
    /// What keeps the lane from making progress, if anything does. A lane without work is as good as one at work.
    fn trouble(&self, max_step: Duration) -> Option<String> {
        match (self.step_age, self.idle_age) {
            (Some(age), _) if age > max_step => Some(format!("a step has been running for {} ms", age.as_millis())),
            (None, Some(age)) if age > max_step => {
                Some(format!("no step for {} ms, with work waiting", age.as_millis()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::supervisor::{LaneSeed, Wards};
    use crate::exec::fake::{FakeExecutor, FakeSpec};
    use crate::sched::LaneConfig;

    const LIMIT: Duration = Duration::from_secs(2);

    fn report(step_age_s: Option<u64>, idle_age_s: Option<u64>) -> LaneReport {
        let age = |seconds: Option<u64>| seconds.map(Duration::from_secs);
        let (step_age, idle_age) = (age(step_age_s), age(idle_age_s));
        LaneReport { step_age, idle_age }
    }

    #[test]
    fn a_lane_is_well_when_it_steps_or_has_nothing_to_do() {
        for well in [report(None, None), report(Some(2), None), report(None, Some(1))] {
            assert_eq!(well.trouble(LIMIT), None, "{well:?}");
        }
    }

    #[test]
    fn a_lane_that_does_not_step_says_why() {
        let cases = [
            (report(Some(3), None), "a step has been running for 3000 ms"),
            (report(None, Some(5)), "no step for 5000 ms, with work waiting"),
        ];
        for (ill, why) in cases {
            assert_eq!(ill.trouble(LIMIT).as_deref(), Some(why));
        }
    }

    fn seed() -> LaneSeed {
        let config = LaneConfig {
            num_blocks: 8,
            max_batch_tokens: 16,
            max_chunk_tokens: 16,
            max_slowdown: 2.0,
            max_running: 2,
            max_model_len: 64,
            prefix_cache: true,
            speculation: None,
        };
        LaneSeed { executor: Box::new(FakeExecutor::new(FakeSpec::default(), 8)), config, steal_window: 4 }
    }

    #[test]
    fn a_lane_that_is_given_up_or_lost_says_so_and_the_other_is_well() {
        actix::System::new().block_on(async {
            let lanes = Wards::default().start_lanes(vec![seed(), seed(), seed()]).unwrap();
            lanes.give_up(0);
            lanes.set_lost(1);
            let given_up = trouble(&lanes, 0, LIMIT).await;
            assert_eq!(given_up.as_deref(), Some("the scheduler kept dying and is given up"));
            assert_eq!(trouble(&lanes, 1, LIMIT).await.as_deref(), Some("the device is lost"));
            assert_eq!(trouble(&lanes, 2, LIMIT).await, None);
        });
    }

    #[test]
    fn a_lane_in_a_step_is_asked_nothing_and_known_by_the_age_of_the_step() {
        actix::System::new().block_on(async {
            let lanes = Wards::default().start_lanes(vec![seed()]).unwrap();
            assert_eq!(trouble(&lanes, 0, LIMIT).await, None, "it lives");
            lanes.begin_step(0);
            let age = ask(&lanes, 0).await.map(|report| report.step_age);
            assert!(matches!(age, Ok(Some(age)) if age < LIMIT), "{age:?}");
            assert_eq!(trouble(&lanes, 0, LIMIT).await, None);
            tokio::time::sleep(Duration::from_millis(2)).await;
            let wedged = trouble(&lanes, 0, Duration::from_millis(1)).await;
            assert!(wedged.is_some_and(|why| why.starts_with("a step has been running for ")));
            lanes.end_step(0);
            assert_eq!(ask(&lanes, 0).await.map(|report| report.step_age), Ok(None));
        });
    }
}
