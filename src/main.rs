//! The program: everything it does is in the library.

use std::process::ExitCode;

/// Many small, short-lived allocations from many threads (requests, tokens, events) are what it is good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(garrick::cli::run())
}
