//! Python programs, which no compiler reads: most of them measure, some on a GPU only, so that no test runs them.

use std::fs;
use std::path::PathBuf;

use crate::fixture::{project, python_with, succeeds};

const FOLDERS: [&str; 9] = [
    "kernels/prebuilt",
    "kernels/tests",
    "scripts",
    "scripts/bench",
    "scripts/gpu",
    "tests/fixtures/gguf",
    "tests/fixtures/jinja",
    "tests/server",
    "tools/demo-model",
];

/// The Python files of a folder, and programs of Python without its ending.
fn programs(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(project().join(folder)).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let is_python = |path: &PathBuf| match path.extension() {
        Some(ending) => ending == "py",
        None => fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"#!/usr/bin/env python3")),
    };
    paths.filter(is_python).collect()
}

#[test]
fn a_linter_finds_no_error_in_python() {
    // Folder by folder, as some have modules of the same name.
    for folder in FOLDERS {
        let programs = programs(folder);
        assert!(!programs.is_empty(), "{folder} has no Python");
        for (there, name) in [("scripts", "bench-cpu"), ("scripts/gpu", "gemm.py")] {
            assert!(folder != there || programs.iter().any(|path| path.ends_with(name)), "{programs:?}");
        }
        let Some(mut python) = python_with("pylint") else { return };
        // Errors only; what a program imports need not be here.
        succeeds(python.args(["-m", "pylint", "-E", "--disable=import-error,no-name-in-module"]).args(programs));
    }
}
