//! What can go wrong with the file, and what to do about it.

use std::path::{Path, PathBuf};

use sqlx::migrate::MigrateError;

use crate::base::error::Error;

/// Names the file and the next step. For the operator: clients get [`Error`] without any of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the store {}: {advice} ({source})", path.display())]
    Open { path: PathBuf, advice: &'static str, source: sqlx::Error },
    #[error(
        "the store {} has schema version {version}, which this program does not know: it was written by a newer one; \
         run that, or set store.path to another file", path.display()
    )]
    TooNew { path: PathBuf, version: i64 },
    #[error("cannot bring the store {} up to date: {advice} ({source})", path.display())]
    Migrate { path: PathBuf, advice: &'static str, source: MigrateError },
    #[error("the store {} did not answer: {advice} ({source})", path.display())]
    Query { path: PathBuf, advice: &'static str, source: sqlx::Error },
    #[error("the store {} was removed or replaced since it was opened; restart the server", path.display())]
    Replaced { path: PathBuf },
    #[error("key '{id}' is already in the store {}; make another id", path.display())]
    KeyExists { path: PathBuf, id: String },
    #[error("the store {} holds {column} = {value} for key '{id}', which is no valid value; restore it from a backup", path.display())]
    BadRow { path: PathBuf, id: String, column: &'static str, value: String },
    #[error("a key's {column} must be 1 to {max} bytes of printable text")]
    BadText { column: &'static str, max: usize },
    #[error("{column} = {value} does not fit the store, which keeps at most {}", i64::MAX)]
    OutOfRange { column: &'static str, value: u64 },
}

impl StoreError {
    pub(super) fn open(path: &Path, source: sqlx::Error) -> Self {
        Self::Open { path: path.to_owned(), advice: advice(&source), source }
    }

    pub(super) fn query(path: &Path, source: sqlx::Error) -> Self {
        Self::Query { path: path.to_owned(), advice: advice(&source), source }
    }

    pub(super) fn migrate(path: &Path, source: MigrateError) -> Self {
        let path = path.to_owned();
        match source {
            MigrateError::VersionMissing(version) | MigrateError::VersionTooNew(version, _) => {
                Self::TooNew { path, version }
            }
            MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) if is_foreign(&e) => Self::open(&path, e),
            source => {
                let advice = "its schema was changed by something else; restore it or set store.path to another file";
                Self::Migrate { path, advice, source }
            }
        }
    }
}

impl From<StoreError> for Error {
    /// A client learns only that the store is not there now.
    fn from(error: StoreError) -> Self {
        Error::unavailable("keys cannot be checked at the moment; try again", 1).with_internal(error)
    }
}

/// SQLite's primary result code (<https://sqlite.org/rescode.html>): the low byte of the extended one.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// Errors of the file rather than of the schema.
fn is_foreign(error: &sqlx::Error) -> bool {
    primary_code(error).is_none_or(|code| code != 1)
}

fn advice(error: &sqlx::Error) -> &'static str {
    match (primary_code(error), error) {
        (Some(5 | 6), _) => "another process holds it; end that, or try again",
        (Some(8), _) => "it may not be written; check its permissions and its folder's",
        (Some(10), _) => "the disk reports an error; check it",
        (Some(11), _) => "its contents are damaged; restore it from a backup",
        (Some(13), _) => "the disk is full; make room",
        (Some(14), _) => "check that its folder exists and may be written, or set store.path",
        (Some(26), _) => "it is not an SQLite file; set store.path to another",
        (_, sqlx::Error::PoolTimedOut) => {
            "it stayed busy: another process holds it, or the disk does not answer; end that, or try again"
        }
        (_, sqlx::Error::PoolClosed) => "it was closed, as it is when the server shuts down",
        _ => "check the file and its folder",
    }
}
