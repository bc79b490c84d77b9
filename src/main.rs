use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(garrick::cli::run())
}
