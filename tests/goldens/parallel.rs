//! Golden models on several ranks of the CUDA device's emulator, each a thread with a shard (tensor parallelism).

use std::sync::Arc;
use std::thread;

use garrick::exec::cuda::CudaOps;
use garrick::exec::cuda::device::{Communicator, Order, Threads};
use garrick::model::shard::Shard;

use super::*;
use crate::cuda::{check_error, emulator};

/// A group of ranks, all with a KV cache of their own heads.
struct Group {
    ranks: Vec<Model<CudaOps>>,
    communicators: Vec<Arc<dyn Communicator>>,
}

/// Releases the other ranks when its own panics.
struct Guard<'a>(&'a dyn Communicator);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.abort();
        }
    }
}

impl Group {
    /// None where there is no emulator.
    fn load(name: &str, num_ranks: usize, max_model_len: Option<usize>) -> Option<Group> {
        let emulator = emulator(Order::Random(2))?;
        let communicators = Threads::connect(num_ranks);
        let rank = |(i, end): (usize, &Arc<dyn Communicator>)| {
            let ops = CudaOps::of_group(emulator(), end.clone());
            Model::open_shard(ops, &folder(name), KvDtype::Bf16, max_model_len, Shard::new(i, num_ranks))
        };
        Some(Group { ranks: communicators.iter().enumerate().map(rank).collect(), communicators })
    }

    /// Logits at every position, `chunk` tokens a step.
    fn prefill(&mut self, tokens: &[u32], chunk: usize) -> Vec<f32> {
        thread::scope(|scope| {
            let run = |(model, end): (_, &Arc<dyn Communicator>)| {
                let (model, end): (&mut Model<CudaOps>, _) = (model, end.clone());
                scope.spawn(move || {
                    let _guard = Guard(&*end);
                    model.prefill(tokens, chunk)
                })
            };
            let ranks: Vec<_> = self.ranks.iter_mut().zip(&self.communicators).map(run).collect();
            let mut logits: Vec<Vec<f32>> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
            assert!(logits[1..].iter().all(Vec::is_empty), "the first rank gives the logits");
            logits.swap_remove(0)
        })
    }
}

fn check(name: &str, num_ranks: usize, is_moe: bool) {
    let golden = Golden::read(name);
    for case in cases(name, golden.prompts.len()) {
        let Some(mut group) = Group::load(name, num_ranks, case.max_model_len) else { return };
        for i in case.prompts {
            let logits = group.prefill(&golden.prompts[i], 48);
            check_error(name, &golden, i, &logits, is_moe, &format!("{num_ranks} ranks"));
        }
    }
}

fn check_refused(name: &str) {
    let source = garrick::model::source::open(&folder(name), None, &mut |_, _| ()).unwrap();
    let error = Shard::new(0, 2).spec(&source.spec).unwrap_err().to_string();
    assert!(error.contains("only 1 rank is possible"), "{name}: {error}");
}

macro_rules! on_ranks {
    ($test:ident, $name:literal, $is_moe:literal) => {
        #[test]
        fn $test() {
            // Whole rows of q and k are normalised there, over the heads of all ranks.
            if $name == "olmo2" { check_refused($name) } else { check($name, 2, $is_moe) }
        }
    };
}

models!(on_ranks);

/// Two ranks for each of two key/value heads.
#[test]
fn four_ranks_share_two_key_value_heads() {
    check("llama-yarn-head64", 4, false);
}

/// One head for all.
#[test]
fn four_ranks_have_the_same_key_value_head() {
    check("llama-head80-gqa8", 4, false);
}

/// Experts of twelve columns on each rank.
#[test]
fn four_ranks_share_experts() {
    check("qwen3-moe", 4, true);
}

/// Norms behind the sums.
#[test]
fn four_ranks_normalise_sums() {
    check("gemma3", 4, false);
}
