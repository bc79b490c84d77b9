//! Whole fleets of lanes over fake executors in virtual time: random arrivals, cancels, stop strings, deadlines,
//! tiny pools, thefts, failed steps, poisoned requests, lost memory, dying schedulers and failing devices, from one seed.
//!
//! It stands here and not under `sched` because it looks at both sides of the plan, and imports run downward.
//! `GARRICK_SIM_SEED=17` replays one seed; `GARRICK_SIM_SEEDS=5000` runs that many.

mod fleet;
mod lanes;
mod ledger;
mod pays;
mod request;

use fleet::Fleet;

const DEFAULT_SEEDS: u64 = 1000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

#[test]
fn every_fleet_keeps_its_books() {
    let seeds = match number("GARRICK_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("GARRICK_SIM_SEEDS").unwrap_or(DEFAULT_SEEDS),
    };
    let mut totals = fleet::Totals::default();
    for seed in seeds.clone() {
        match std::panic::catch_unwind(|| Fleet::new(seed).run()) {
            Ok(Ok(run)) => totals.add(&run),
            Ok(Err(error)) => panic!("{error}\nreplay with GARRICK_SIM_SEED={seed}"),
            Err(_) => panic!("a panic, see above\nreplay with GARRICK_SIM_SEED={seed}"),
        }
    }
    if seeds.end - seeds.start >= DEFAULT_SEEDS {
        totals.assert_everything_happened();
    }
}

/// splitmix64, as good as the simulation needs.
#[derive(Clone)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// From `low` to `high`, both included.
    fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.range(1, n) == 1
    }
}
