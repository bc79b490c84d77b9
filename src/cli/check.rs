//! `garrick check`: everything that a start does, short of listening.

use super::args::CheckArgs;
use super::progress::Progress;
use super::serve::{engine_exit, print_summary};
use super::{Exit, Failure};
use crate::app::{devices, engine};
use crate::base::config::Config;
use crate::exec::cuda::device::libraries::{Places, Wanted};
use crate::gate::auth::access;
use crate::store::Store;

pub fn run(args: CheckArgs) -> Result<(), Failure> {
    let config = args.serve.load()?;
    if args.cuda {
        print_gpus();
        print_libraries(&config);
    }
    let mut progress = Progress::new();
    let built = engine::build(&config, &mut |stage, done, total| progress.show(stage, done, total));
    progress.finish();
    let engine = built.map_err(|e| Failure::new(engine_exit(&e), e))?;
    let summary = engine.summary;
    print_summary(&summary);
    println!("listen  {}", config.server.listen);
    let keys = actix::System::new().block_on(async {
        let store = Store::open(&config.store.path).await?;
        let keys = store.count_keys().await;
        store.close().await;
        keys
    });
    let keys = keys.map_err(|e| Failure::new(Exit::Internal, e))?;
    println!("keys    {} in {}", keys.total, config.store.path);
    access(config.server.listen, keys).map_err(|e| Failure::new(Exit::Usage, e))?;
    println!("\nthe configuration and the model are good");
    Ok(())
}

fn print_gpus() {
    let gpus = match devices::gpus() {
        Ok(gpus) => gpus,
        Err(absent) => return println!("cuda    not usable: {absent}"),
    };
    for gpu in gpus {
        let (major, minor) = gpu.capability;
        let gib = |bytes: usize| bytes >> 30;
        println!(
            "cuda    {}: {}, compute capability {major}.{minor}, {} GiB, {} GiB of them free, kernels {}{}",
            gpu.ordinal,
            gpu.name,
            gib(gpu.total_bytes),
            gib(gpu.free_bytes),
            gpu.kernels,
            if gpu.is_prebuilt { "" } else { ", to be compiled by NVRTC" }
        );
    }
}

/// Where each of CUDA's libraries was found and what it is, or why not and what to do.
fn print_libraries(config: &Config) {
    let places = Places::new(config.engine.cuda_libraries.as_deref());
    for wanted in Wanted::ALL {
        let (name, purpose) = (wanted.name(), wanted.purpose());
        match places.open(wanted) {
            Ok(opened) => {
                let version = opened.version(wanted).unwrap_or_else(|reason| format!("not usable: {reason}"));
                println!("cuda    {name} {version}, in {} ({purpose})", opened.path.display());
            }
            Err(missing) => println!("cuda    no {name} ({purpose}): {missing}"),
        }
    }
}
