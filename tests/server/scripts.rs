//! Python programs, which no compiler reads: most of them measure, some on a GPU only, so that no test runs them.

use std::fs;
use std::path::PathBuf;

use crate::fixture::{project, python_with, succeeds};

/// Every Python file of the project, and programs of Python without its ending.
fn programs() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["scripts", "scripts/bench", "scripts/gpu", "kernels/prebuilt", "kernels/tests", "tests/server"] {
        for entry in fs::read_dir(project().join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let is_python = path.extension().is_some_and(|ending| ending == "py")
                || (path.extension().is_none()
                    && fs::read(&path).is_ok_and(|bytes| bytes.starts_with(b"#!/usr/bin/env python3")));
            if is_python {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn a_linter_finds_no_error_in_python() {
    let programs = programs();
    assert!(programs.iter().any(|path| path.ends_with("scripts/gpu/gemm.py")), "{programs:?}");
    assert!(programs.iter().any(|path| path.ends_with("scripts/bench-cpu")), "{programs:?}");
    let Some(mut python) = python_with("pylint") else { return };
    // Errors only; what a program imports need not be here.
    succeeds(python.args(["-m", "pylint", "-E", "--disable=import-error,no-name-in-module"]).args(programs));
}
