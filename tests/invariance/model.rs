//! A checkpoint on the CPU device, and executors over it.

use std::path::{Path, PathBuf};

use garrick::exec::cpu::{CpuOps, CpuOptions, Isa};
use garrick::exec::runner::ModelExecutor;
use garrick::model::decoder::Decoder;
use garrick::model::ops::KvDtype;
use garrick::model::source::{self, ModelSource};

/// Loaded once; executors share its weights and have threads and KV memory of their own.
pub struct Model {
    ops: CpuOps,
    decoder: Decoder<CpuOps>,
}

fn folder(name: &str) -> PathBuf {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    if name == "demo" { project.join("models/demo") } else { project.join("tests/fixtures/models").join(name) }
}

impl Model {
    /// One of tests/fixtures/models, or `demo`.
    pub fn load(name: &str, isa: Isa) -> Self {
        Self::with(name, CpuOptions { isa: Some(isa), ..CpuOptions::default() })
    }

    pub fn with(name: &str, options: CpuOptions) -> Self {
        let mut ops = CpuOps::new(CpuOptions { threads: 1, ..options }).unwrap();
        let ModelSource { spec, tensors, .. } = source::open(&folder(name), None, &mut |_, _| ()).unwrap();
        let decoder = Decoder::load(&mut ops, &spec, &tensors, &mut |_, _| ()).unwrap();
        Self { ops, decoder }
    }

    pub fn isa(&self) -> Isa {
        self.ops.isa()
    }

    pub fn vocab_size(&self) -> usize {
        self.decoder.spec().vocab_size
    }

    /// Longest sequence.
    pub fn max_positions(&self) -> usize {
        self.decoder.spec().max_positions
    }

    pub fn executor(&self, threads: usize, dtype: KvDtype, num_blocks: usize) -> ModelExecutor<CpuOps> {
        let mut ops = self.ops.fork(threads).unwrap();
        let decoder = self.decoder.share(&mut ops);
        ModelExecutor::new(ops, decoder, "cpu".into(), dtype, num_blocks).unwrap()
    }
}
