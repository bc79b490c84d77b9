//! Layer 3: what outlives the process. One SQLite file behind sqlx.
//!
//! Owns the file, its schema (`migrations/`, applied when it is opened) and every SQL statement. Never knows what a
//! secret looks like, who asks, or HTTP.
//!
//! Invariant: values reach SQL as parameters only; a key's row is never deleted.

mod error;
mod keys;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

pub use error::StoreError;
pub use keys::{KeyCounts, KeyRow, MAX_NAME_BYTES, NewKey};

/// A new file in `migrations/` is seen only when this file is compiled again; a test compares the two.
static MIGRATIONS: Migrator = sqlx::migrate!();

/// Each is a thread; lookups are short and rare, since keys are cached.
const MAX_CONNECTIONS: u32 = 2;
/// Another process may hold the file's lock for a moment (`garrick keys create` beside a server).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// An open store. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
    path: PathBuf,
    /// Device and inode of the open file; none where they cannot be told.
    identity: Option<(u64, u64)>,
}

impl Store {
    /// Opens the SQLite file at `path`, makes it when missing, and brings its schema up to date.
    ///
    /// Errors: the folder is missing or not writable, the file is not SQLite's, another process holds it, or its schema
    /// is of a newer version than this program.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .foreign_keys(true)
            // Readers and the one writer do not wait for each other.
            .journal_mode(SqliteJournalMode::Wal)
            // A revocation must survive a power cut; writes are rare enough to be synced each.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(BUSY_TIMEOUT)
            .connect_with(options)
            .await
            .map_err(|e| StoreError::open(path, e))?;
        let store = Self { pool, path: path.to_owned(), identity: identity(path) };
        MIGRATIONS.run(&store.pool).await.map_err(|e| StoreError::migrate(path, e))?;
        Ok(store)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for running statements, folds the write-ahead log into the file and closes it.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// An open file lives on without its name: whoever asks it would not hear of keys revoked in the file that took its
    /// place.
    fn check_in_place(&self) -> Result<(), StoreError> {
        let is_in_place = self.identity.is_none() || self.identity == identity(&self.path);
        if is_in_place { Ok(()) } else { Err(StoreError::Replaced { path: self.path.clone() }) }
    }

    fn query_error(&self, error: sqlx::Error) -> StoreError {
        StoreError::query(&self.path, error)
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests;
