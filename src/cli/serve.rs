//! `garrick serve`: builds, announces, runs until told to stop.

use super::args::ServeArgs;
use super::progress::Progress;
use super::{Exit, Failure};
use crate::app::devices::GroupError;
use crate::app::engine::{EngineError, Summary};
use crate::app::{self, ServeError, Started};
use crate::base::{faults, panics, telemetry};
use crate::gate::auth::Access;

pub fn run(args: ServeArgs) -> Result<(), Failure> {
    let config = args.load()?;
    let _telemetry = telemetry::install(&config.telemetry).map_err(|e| Failure::new(Exit::Usage, e))?;
    panics::install();
    faults::start().map_err(|e| Failure::new(Exit::Usage, e))?;
    let mut progress = Progress::new();
    let bar = std::cell::RefCell::new(&mut progress);
    let mut show = |stage, done, total| bar.borrow_mut().show(stage, done, total);
    let announce = |started: Started| {
        bar.borrow().finish();
        print(&started);
    };
    actix::System::new().block_on(app::serve(config, &mut show, announce)).map_err(failure)
}

fn print(started: &Started) {
    let Started { address, model, summary, access } = started;
    print_summary(summary);
    let header = match access {
        Access::Open => {
            println!("access  open, to this machine only: there are no API keys (garrick keys create --tenant NAME)");
            ""
        }
        Access::Keyed => {
            println!("access  with an API key");
            " -H \"Authorization: Bearer $GARRICK_API_KEY\""
        }
    };
    println!("\nlistening on http://{address}\n");
    println!(
        "curl -s http://{address}/v1/chat/completions -H 'Content-Type: application/json'{header} \\\n  -d '{{\"model\": \
         \"{model}\", \"temperature\": 0, \"messages\": [{{\"role\": \"user\", \"content\": \"What is 27 + 58?\"}}]}}'\n"
    );
}

/// What runs, and what was asked for and does not.
pub fn print_summary(summary: &Summary) {
    println!("model   {}", summary.model);
    println!("device  {}", summary.device);
    if !summary.weights.is_empty() {
        println!("weights {}", summary.weights);
    }
    println!("kv      {}", summary.kv);
    println!("lanes   {}", summary.lanes);
    summary.warnings.iter().for_each(|warning| println!("warning {warning}"));
}

fn failure(error: ServeError) -> Failure {
    let exit = match &error {
        ServeError::OpenAbroad(_) | ServeError::Lane(_) => Exit::Usage,
        ServeError::Engine(error) => engine_exit(error),
        ServeError::Listen { .. } => Exit::Unavailable,
        ServeError::NoLaneLeft => Exit::TryAgain,
        ServeError::Store(_) | ServeError::Io(_) => Exit::Internal,
    };
    Failure::new(exit, error)
}

/// Whose fault it is: the configuration's, or the model's.
pub fn engine_exit(error: &EngineError) -> Exit {
    match error {
        EngineError::Model(_)
        | EngineError::Weights(_)
        | EngineError::Text(_)
        | EngineError::Chat(_)
        | EngineError::KvShape => Exit::NoInput,
        EngineError::Fake(_) | EngineError::Memory(_) | EngineError::Cpu(_) | EngineError::KvOnCpu => Exit::Usage,
        EngineError::Group(GroupError::NoGpu { .. }) => Exit::Unavailable,
        EngineError::Group(_) => Exit::Usage,
        EngineError::Device(_) | EngineError::GpuMemory(_) | EngineError::NoGpu(_) => Exit::Unavailable,
    }
}
