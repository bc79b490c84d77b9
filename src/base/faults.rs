//! Points at which a test makes the running server panic.
//!
//! Owns where they are armed: the folder that `GARRICK_FAULTS` names. A test makes an empty file there, named after a
//! point (`Scheduler.Tick`); whoever comes by that point next removes the file and panics. Removing is atomic, so each
//! file is one panic, and the test sees by its absence that it happened.
//!
//! In builds without debug assertions (`--release`) a point is nothing at all, and the variable is refused: what is not
//! compiled in can be neither slow nor dangerous. Never call it while a lock is held that others depend on.

/// Names the folder.
pub const VARIABLE: &str = "GARRICK_FAULTS";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE} is set, but this build has no fault points; unset it, or use a build with debug assertions")]
pub struct NotCompiledIn;

/// Reads the variable once. Without it no point ever does anything.
pub fn start() -> Result<(), NotCompiledIn> {
    let Some(folder) = std::env::var_os(VARIABLE) else { return Ok(()) };
    if !cfg!(debug_assertions) {
        return Err(NotCompiledIn);
    }
    tracing::warn!(folder = %folder.display(), "fault points can be armed: this server is for drills");
    #[cfg(debug_assertions)]
    armed::start(folder.into());
    Ok(())
}

/// Panics if a test armed `point`.
#[inline(always)]
pub fn hit(point: &str) {
    #[cfg(debug_assertions)]
    armed::hit(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

#[cfg(debug_assertions)]
mod armed {
    use std::path::PathBuf;
    use std::sync::OnceLock;

    static FOLDER: OnceLock<PathBuf> = OnceLock::new();

    pub fn start(folder: PathBuf) {
        FOLDER.get_or_init(|| folder);
    }

    pub fn hit(point: &str) {
        let Some(folder) = FOLDER.get() else { return };
        if std::fs::remove_file(folder.join(point)).is_ok() {
            panic!("drill: {point}");
        }
    }
}
