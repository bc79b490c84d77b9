//! `garrick kernels build`: machine code for a GPU, made of the sources in the program.

use std::time::Instant;

use super::args::{BuildKernelsArgs, KernelsArgs, KernelsCommand};
use super::progress::Progress;
use super::{Exit, Failure};
use crate::app::devices::cuda::kernel_options;
use crate::app::devices::gpus;
use crate::exec::cuda::compile::Compiler;
use crate::exec::cuda::kernels::KernelOptions;

pub fn run(args: KernelsArgs) -> Result<(), Failure> {
    let config = args.config.load(&[])?;
    let KernelsCommand::Build(build) = args.command;
    let own = kernel_options(&config);
    let options = KernelOptions { folder: build.out.clone().or(own.folder.clone()), ..own.clone() };
    let Some(builds) = options.builds() else {
        return Err(Failure::new(Exit::Usage, "neither XDG_CACHE_HOME nor HOME is set: say where with --out"));
    };
    let compiler = match &build.nvcc {
        Some(program) => Compiler::nvcc(program),
        None => Compiler::nvrtc(&options.libraries),
    };
    let compiler = compiler.map_err(|e| Failure::new(Exit::Unavailable, e))?;
    for chip in chips(&build)? {
        let (began, mut progress) = (Instant::now(), Progress::new());
        let built = compiler.build(&chip, &mut |done, total| progress.show("compiling kernels", done, total));
        progress.finish();
        let cubins = built.map_err(|e| Failure::new(Exit::Unavailable, e))?;
        let put = builds.put(&chip, &compiler.about(), &cubins);
        let path = put.map_err(|e| Failure::new(Exit::Internal, format!("{}: {e}", builds.folder().display())))?;
        let bytes: usize = cubins.iter().map(|cubin| cubin.bytes.len()).sum();
        println!(
            "{chip}: {} files, {} KiB, by {} in {:.1} s, in {}",
            cubins.len(),
            bytes >> 10,
            compiler.about(),
            began.elapsed().as_secs_f64(),
            path.display()
        );
    }
    if own.folder.as_deref() != Some(builds.folder()) {
        println!("to have them taken before the program's own: engine.cuda_kernels={}", builds.folder().display());
    }
    Ok(())
}

/// Those asked for, or of the GPUs here, each once.
fn chips(build: &BuildKernelsArgs) -> Result<Vec<String>, Failure> {
    let mut chips = build.chip.clone();
    if chips.is_empty() {
        let gpus = gpus().map_err(|e| Failure::new(Exit::Unavailable, format!("name a chip with --chip: {e}")))?;
        chips.extend(gpus.into_iter().map(|gpu| gpu.chip()));
    }
    chips.sort();
    chips.dedup();
    Ok(chips)
}
