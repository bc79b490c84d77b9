//! `garrick check`: everything that a start does, short of listening.

use super::args::ServeArgs;
use super::progress::Progress;
use super::serve::{engine_exit, print_summary};
use super::{Exit, Failure};
use crate::app::engine;
use crate::gate::auth::access;
use crate::store::Store;

pub fn run(args: ServeArgs) -> Result<(), Failure> {
    let config = args.load()?;
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
