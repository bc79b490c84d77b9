//! A checkpoint on a device, and executors over it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use garrick::exec::Executor;
use garrick::exec::cpu::{CpuOps, CpuOptions, Isa};
use garrick::exec::cuda::CudaOps;
use garrick::exec::cuda::device::{Device, Emulator, Order, Threads};
use garrick::exec::parallel::TensorParallel;
use garrick::exec::runner::ModelExecutor;
use garrick::model::decoder::Decoder;
use garrick::model::ops::{KvDtype, Ops};
use garrick::model::shard::Shard;
use garrick::model::source::{self, ModelSource};
use garrick::model::spec::Spec;

/// Loaded once; executors share its weights and have threads and KV memory of their own.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Model {
    Cpu(CpuOps, Decoder<CpuOps>),
    /// On the emulator of its kernels.
    Cuda(CudaOps, Decoder<CudaOps>),
    /// The same on several ranks with a shard each, and the whole model's shape.
    Ranks(Vec<(Arc<dyn Device>, Decoder<CudaOps>)>, Spec),
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
    fn emulator() -> Option<Arc<Emulator>> {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kernels/libgarrick_kernels_shim.so");
        if !library.exists() {
            let message = format!("{} is missing: run scripts/check-kernels.sh shim", library.display());
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
            eprintln!("skipped: {message}");
            return None;
        }
        // SAFETY: built from this tree by the script.
        Some(Arc::new(unsafe { Emulator::open(&library, Order::Random(2)) }.unwrap()))
    }

    /// One rank. None where [`emulator`](Self::emulator) is none.
    pub fn emulated(name: &str) -> Option<Self> {
        let mut ops = CudaOps::new(Self::emulator()?);
        let decoder = load(&mut ops, name);
        Some(Self::Cuda(ops, decoder))
    }

    /// Several ranks.
    pub fn emulated_ranks(name: &str, num_ranks: usize) -> Option<Self> {
        let ModelSource { spec, tensors, .. } = source::open(&folder(name), None, &mut |_, _| ()).unwrap();
        let rank = |i: usize| {
            let device: Arc<dyn Device> = Self::emulator()?;
            let shard = Shard::new(i, num_ranks);
            let ops = &mut CudaOps::new(device.clone());
            Some((device, Decoder::load_shard(ops, &spec, &tensors, shard, &mut |_, _| ()).unwrap()))
        };
        Some(Self::Ranks((0..num_ranks).map(rank).collect::<Option<_>>()?, spec))
    }

    /// What computes, as `AVX2`.
    pub fn device(&self) -> String {
        match self {
            Self::Cpu(ops, _) => ops.isa().to_string(),
            Self::Cuda(..) => "CUDA's emulator".into(),
            Self::Ranks(ranks, _) => format!("{} ranks of CUDA's emulator", ranks.len()),
        }
    }

    /// Plain Rust is 15 times slower than vectors where the compiler optimises as little as it does for tests.
    pub fn is_slow(&self) -> bool {
        match self {
            Self::Cpu(ops, _) => ops.isa() == Isa::Scalar,
            Self::Cuda(..) | Self::Ranks(..) => true,
        }
    }

    fn spec(&self) -> &Spec {
        match self {
            Self::Cpu(_, decoder) => decoder.spec(),
            Self::Cuda(_, decoder) => decoder.spec(),
            Self::Ranks(_, spec) => spec,
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
            Self::Ranks(ranks, _) => {
                let ends = Threads::connect(ranks.len());
                let rank = |((device, decoder), end): (&(Arc<dyn Device>, Decoder<CudaOps>), _)| {
                    let mut ops = CudaOps::of_group(device.clone(), end);
                    let decoder = decoder.share(&mut ops);
                    (ops, decoder)
                };
                let ranks = ranks.iter().zip(ends.clone()).map(rank).collect();
                let release = Box::new(move || ends.iter().for_each(|end| end.abort()));
                Box::new(TensorParallel::new(ranks, "any".into(), dtype, num_blocks, release).unwrap())
            }
        }
    }
}
