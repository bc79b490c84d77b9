//! The command line: reads arguments, builds the configuration, runs a command, answers with an exit status.
//!
//! Owns the commands' names, help and exit codes. Never computes: each command calls the layers below.
//!
//! Invariant: a port is bound and a model opened only after every argument and key was found legal.

mod address;
pub mod args;
mod bench;
pub mod chat;
mod check;
mod kernels;
mod keys;
mod load;
mod progress;
pub mod render;
mod serve;
mod settings;

use clap::Parser;

use crate::base::clock;
use args::{Cli, Command};

/// How the program ends; the numbers are those of BSD's sysexits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Arguments, configuration or input are wrong.
    Usage = 64,
    /// The model cannot be opened.
    NoInput = 66,
    /// A port is taken, a server does not answer.
    Unavailable = 69,
    Internal = 70,
    /// No device is left, and a new process may find one.
    TryAgain = 75,
}

/// Why a command ended badly: its exit status and what standard error says.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl ToString) -> Self {
        Self { exit, message: message.to_string() }
    }
}

/// Runs the program on the process's arguments and returns its exit status.
pub fn run() -> u8 {
    clock::start();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Nobody is left to tell when standard error is closed.
            let _ = e.print();
            return if e.use_stderr() { Exit::Usage as u8 } else { 0 };
        }
    };
    match dispatch(cli) {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit as u8
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => serve::run(args),
        Command::Check(args) => check::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Render(args) => render::run(args),
        Command::Keys(args) => keys::run(args),
        Command::Kernels(args) => kernels::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Load(args) => load::run(args),
    }
}

#[cfg(test)]
mod tests;
