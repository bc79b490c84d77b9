//! Batch invariance, proved on the real executor: what a request gets does not depend on what happens around it.
//!
//! A crowd of 32 random requests ([`crowd`]) is answered twice: each request alone, whole, on one thread and without a
//! prefix cache; and all of them in a [`situation`] that cuts, mixes, preempts, forks, drafts, fails and moves them. Tokens and
//! the bits of every log-probability, the prompt's too, must be the same. Nothing here allows a tolerance.
//!
//! The named situations say what breaks when one thing is wrong; the mixes cross everything, at each instruction set
//! of this machine. A failed mix prints the command that plays it again; `GARRICK_INVARIANCE_MIXES=50` runs more of
//! them than the suite has time for.

mod crowd;
mod model;
mod random;
mod run;
mod situation;

use std::env;

use garrick::exec::cpu::{Compute, CpuOptions, Format, Isa};
use garrick::model::ops::KvDtype;

use crowd::{CROWD, Request};
use model::Model;
use run::{Answer, Witnessed};
use situation::{DRAFTED, NAMED, Named, SHORT_OF_BLOCKS, Situation};

/// Mixes of each device and model.
const NUM_MIXES: u64 = 1;
/// Where computing is slow.
const SMALL_CROWD: usize = 10;

/// Answers of a crowd, each request alone.
struct Alone {
    dtype: KvDtype,
    requests: Vec<Request>,
    answers: Vec<Answer>,
}

impl Alone {
    fn new(model: &Model, dtype: KvDtype, requests: Vec<Request>) -> Self {
        let answers = requests.iter().map(|request| run::alone(model, dtype, request)).collect();
        Self { dtype, requests, answers }
    }

    /// Runs the crowd in a situation; an error says what came out differently.
    fn compare(&self, model: &Model, situation: &Situation) -> Result<Witnessed, String> {
        let (answers, witnessed) = run::together(model, self.dtype, &self.requests, situation);
        for (i, (answer, alone)) in answers.iter().zip(&self.answers).enumerate() {
            let left = situation.leaves[i].is_some();
            if let Some(difference) = answer.difference(alone, left) {
                return Err(format!(
                    "{}, {:?} KV: request {i} of the crowd is not what it is alone: {difference}\n{:?}\n{situation:?}",
                    model.device(),
                    self.dtype,
                    self.requests[i]
                ));
            }
        }
        Ok(witnessed)
    }
}

const DTYPES: [KvDtype; 2] = [KvDtype::F32, KvDtype::Bf16];

/// Situations one by one; in each, what it is named for must have happened.
fn named(name: &str, make: impl Fn(&Model, u64, usize) -> Vec<Request>, situations: &[Named]) {
    let model = Model::load(name, Isa::detect());
    for dtype in DTYPES {
        let alone = Alone::new(&model, dtype, make(&model, name.len() as u64, CROWD));
        for (what, situation, happened) in situations {
            match alone.compare(&model, &situation()) {
                Ok(seen) => assert!(happened(&seen), "{name}: {what}: it did not happen: {seen:?}"),
                Err(difference) => panic!("{name}: {what}: {difference}"),
            }
        }
    }
}

/// Seeds of the mixes; the environment may name one or ask for more.
fn seeds() -> Vec<u64> {
    let number = |name: &str| Some(env::var(name).ok()?.parse().unwrap_or_else(|e| panic!("{name}: {e}")));
    match (number("GARRICK_INVARIANCE_SEED"), number("GARRICK_INVARIANCE_MIXES")) {
        (Some(seed), _) => vec![seed],
        (None, mixes) => (0..mixes.unwrap_or(NUM_MIXES)).collect(),
    }
}

/// Random crowds in random situations, at some instruction sets.
fn mixed(name: &str, isas: impl Iterator<Item = Isa>, dtypes: &[KvDtype]) {
    mixed_on(name, isas.map(|isa| Model::load(name, isa)), dtypes);
}

/// The same for models as they are given.
fn mixed_on(name: &str, models: impl Iterator<Item = Model>, dtypes: &[KvDtype]) {
    let mut seen = Witnessed::default();
    for model in models {
        let crowd = if model.is_slow() { SMALL_CROWD } else { CROWD };
        for seed in seeds() {
            for (i, &dtype) in dtypes.iter().enumerate() {
                // Another crowd for each dtype; the name takes part so that each model meets situations of its own.
                let own = seed << 16 | (name.len() << 1 | i) as u64;
                let make = match own {
                    _ if own.is_multiple_of(3) => crowd::talkers,
                    _ if own % 4 == 3 => crowd::parrots,
                    _ => crowd::requests,
                };
                let alone = Alone::new(&model, dtype, make(&model, own, crowd));
                match alone.compare(&model, &Situation::random(own, crowd)) {
                    Ok(witnessed) => seen += witnessed,
                    Err(difference) => panic!(
                        "{name}: {difference}\nplay it again: GARRICK_INVARIANCE_SEED={seed} cargo test --test \
                         invariance {}",
                        name.replace('-', "_")
                    ),
                }
            }
        }
    }
    assert!(seen.max_sequences > 1 && seen.chunks > 0, "{name}: little happened: {seen:?}");
}

/// All of one model. Names are given twice because a test cannot be named by a string.
macro_rules! invariance {
    ($($test:ident = $name:literal),* $(,)?) => {
        $(mod $test {
            use super::*;

            #[test]
            fn named() {
                super::named($name, crowd::requests, &NAMED);
            }

            #[test]
            fn short_of_blocks() {
                super::named($name, crowd::talkers, &SHORT_OF_BLOCKS);
            }

            #[test]
            fn drafted() {
                super::named($name, crowd::parrots, &DRAFTED);
            }

            #[test]
            fn mixed() {
                super::mixed($name, Isa::available().filter(|isa| *isa != Isa::Scalar), &DTYPES);
            }
        })*
    };
}

// Attention that looks back only so far, with and without soft caps; two experts a token, and three, whose order would
// show in the sum; whole rows normalised; heads and widths that differ from the others'.
invariance! {
    gemma2 = "gemma2",
    llama_head80_gqa8 = "llama-head80-gqa8",
    mistral_window = "mistral-window",
    mixtral = "mixtral",
    olmo2 = "olmo2",
    qwen3_moe = "qwen3-moe",
}

mod scalar {
    use super::*;

    #[test]
    fn gemma2() {
        mixed("gemma2", [Isa::Scalar].into_iter(), &[KvDtype::F32]);
    }

    #[test]
    fn mixtral() {
        mixed("mixtral", [Isa::Scalar].into_iter(), &[KvDtype::Bf16]);
    }
}

/// Activations rounded before rounded weights, at the level that has most ways to multiply them; K and V in bytes.
mod rounded {
    use super::*;

    fn check(name: &str, compute: Compute, weights: Format) {
        let options = CpuOptions { compute, weights: Some(weights), ..CpuOptions::default() };
        mixed_on(name, std::iter::once(Model::with(name, options)), &[KvDtype::Bf16, KvDtype::Int8]);
    }

    #[test]
    fn gemma2() {
        check("gemma2", Compute::Bf16, Format::Bf16);
    }

    #[test]
    fn qwen3_moe() {
        check("qwen3-moe", Compute::Int8, Format::Int8);
    }

    #[test]
    fn demo() {
        check("demo", Compute::Int8, Format::Int4Min(2));
    }
}

/// The kernels for GPUs, launched as for a GPU, on their emulator.
mod cuda {
    use super::*;

    fn check(name: &str, dtypes: &[KvDtype]) {
        if let Some(model) = Model::emulated(name) {
            mixed_on(name, std::iter::once(model), dtypes);
        }
    }

    /// By the plain kernel, as its heads are small.
    #[test]
    fn gemma2() {
        check("gemma2", &[KvDtype::F32, KvDtype::Int8, KvDtype::Fp8]);
    }

    /// By the tiles.
    #[test]
    fn llama_yarn_head64() {
        check("llama-yarn-head64", &[KvDtype::Bf16, KvDtype::Int8, KvDtype::Fp8]);
    }

    #[test]
    fn mixtral() {
        check("mixtral", &[KvDtype::Bf16]);
    }
}

/// The bundled model: the widest here, so that single rows are shared among threads too.
mod demo {
    use super::*;

    #[test]
    fn mixed() {
        super::mixed("demo", [Isa::detect()].into_iter(), &DTYPES);
    }
}
