//! A checkpoint on a device, and executors over it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use garrick::exec::Executor;
use garrick::exec::cpu::{CpuOps, CpuOptions, Isa};
use garrick::exec::cuda::CudaOps;
use garrick::exec::cuda::device::{Emulator, Order};
use garrick::exec::runner::ModelExecutor;
use garrick::model::decoder::Decoder;
use garrick::model::ops::{KvDtype, Ops};
use garrick::model::source::{self, ModelSource};
use garrick::model::spec::Spec;

/// Loaded once; executors share its weights and have threads and KV memory of their own.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Model {
    Cpu(CpuOps, Decoder<CpuOps>),
    /// On the emulator of its kernels.
    Cuda(CudaOps, Decoder<CudaOps>),
}

fn load<O: Ops>(ops: &mut O, name: &str) -> Decoder<O> {
    let ModelSource { spec, tensors, .. } = source::open(&folder(name), None, &mut |_, _| ()).unwrap();
    Decoder::load(ops, &spec, &tensors, &mut |_, _| ()).unwrap()
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
        let decoder = load(&mut ops, name);
        Self::Cpu(ops, decoder)
    }

    /// None where the emulator's library is missing (`scripts/check-kernels.sh shim` makes it), which is a failure in CI.
    pub fn emulated(name: &str) -> Option<Self> {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kernels/libgarrick_kernels_shim.so");
        if !library.exists() {
            let message = format!("{} is missing: run scripts/check-kernels.sh shim", library.display());
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
            eprintln!("skipped: {message}");
            return None;
        }
        // SAFETY: built from this tree by the script.
        let device = unsafe { Emulator::open(&library, Order::Random(2)) }.unwrap();
        let mut ops = CudaOps::new(Arc::new(device));
        let decoder = load(&mut ops, name);
        Some(Self::Cuda(ops, decoder))
    }

    /// What computes, as `AVX2`.
    pub fn device(&self) -> String {
        match self {
            Self::Cpu(ops, _) => ops.isa().to_string(),
            Self::Cuda(..) => "CUDA's emulator".into(),
        }
    }

    /// Plain Rust is 15 times slower than vectors where the compiler optimises as little as it does for tests.
    pub fn is_slow(&self) -> bool {
        match self {
            Self::Cpu(ops, _) => ops.isa() == Isa::Scalar,
            Self::Cuda(..) => true,
        }
    }

    fn spec(&self) -> &Spec {
        match self {
            Self::Cpu(_, decoder) => decoder.spec(),
            Self::Cuda(_, decoder) => decoder.spec(),
        }
    }

    pub fn vocab_size(&self) -> usize {
        self.spec().vocab_size
    }

    /// Longest sequence.
    pub fn max_positions(&self) -> usize {
        self.spec().max_positions
    }

    /// `threads` are the CPU's.
    pub fn executor(&self, threads: usize, dtype: KvDtype, num_blocks: usize) -> Box<dyn Executor> {
        fn new<O: Ops + Send + 'static>(
            mut ops: O,
            decoder: &Decoder<O>,
            dtype: KvDtype,
            num_blocks: usize,
        ) -> Box<dyn Executor>
        where
            Decoder<O>: Send,
        {
            let decoder = decoder.share(&mut ops);
            Box::new(ModelExecutor::new(ops, decoder, "any".into(), dtype, num_blocks).unwrap())
        }
        match self {
            Self::Cpu(ops, decoder) => new(ops.fork(threads).unwrap(), decoder, dtype, num_blocks),
            Self::Cuda(ops, decoder) => new(ops.fork(), decoder, dtype, num_blocks),
        }
    }
}
