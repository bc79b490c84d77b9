//! API keys, as kept: everything but the secret.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Store, StoreError};

/// Longest name of a tenant or a key.
pub const MAX_NAME_BYTES: usize = 128;

/// A key to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    pub id: String,
    pub tenant: String,
    /// What people call it.
    pub name: Option<String>,
    /// Hash of the secret.
    pub sha256: [u8; 32],
    /// The secret's first characters, to tell keys apart.
    pub prefix: String,
    /// Requests in a minute; none is unlimited. So are the next two.
    pub rpm: Option<u64>,
    /// Tokens in a minute.
    pub tpm: Option<u64>,
    /// Requests inside at once.
    pub concurrency: Option<u64>,
    /// Seconds since 1970.
    pub created_at: u64,
}

/// A key as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    pub key: NewKey,
    /// Seconds since 1970; none while the key is valid.
    pub revoked_at: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyCounts {
    /// Not revoked.
    pub active: u64,
    /// Ever made.
    pub total: u64,
}

impl Store {
    /// Errors: the id or the hash is already there, tenant or name is no short text, a limit is larger than SQLite's
    /// integers.
    pub async fn create_key(&self, key: &NewKey) -> Result<(), StoreError> {
        check_text("tenant", &key.tenant)?;
        key.name.as_deref().map_or(Ok(()), |name| check_text("name", name))?;
        let insert = "INSERT INTO keys (id, tenant, name, sha256, prefix, rpm, tpm, concurrency, created_at)
                      VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let done = sqlx::query(insert)
            .bind(&key.id)
            .bind(&key.tenant)
            .bind(&key.name)
            .bind(&key.sha256[..])
            .bind(&key.prefix)
            .bind(to_column("rpm", key.rpm)?)
            .bind(to_column("tpm", key.tpm)?)
            .bind(to_column("concurrency", key.concurrency)?)
            .bind(to_column("created_at", Some(key.created_at))?)
            .execute(&self.pool)
            .await;
        match done {
            Ok(_) => Ok(()),
            Err(e) if e.as_database_error().is_some_and(|e| e.is_unique_violation()) => {
                Err(StoreError::KeyExists { path: self.path.clone(), id: key.id.clone() })
            }
            Err(e) => Err(self.query_error(e)),
        }
    }

    /// At most `max` keys, revoked ones too, newest first.
    pub async fn list_keys(&self, max: u32) -> Result<Vec<KeyRow>, StoreError> {
        let select = "SELECT * FROM keys ORDER BY created_at DESC, id DESC LIMIT ?";
        let rows = sqlx::query(select).bind(max).fetch_all(&self.pool).await;
        rows.map_err(|e| self.query_error(e))?.iter().map(|row| self.to_key(row)).collect()
    }

    /// Makes a key invalid from `now` (seconds since 1970) on. A key that is revoked already keeps its date.
    /// Returns the key, or none when there is none of that id.
    pub async fn revoke_key(&self, id: &str, now: u64) -> Result<Option<KeyRow>, StoreError> {
        let now = to_column("revoked_at", Some(now))?;
        let update = "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL";
        let done = sqlx::query(update).bind(now).bind(id).execute(&self.pool).await;
        done.map_err(|e| self.query_error(e))?;
        let row = sqlx::query("SELECT * FROM keys WHERE id = ?").bind(id).fetch_optional(&self.pool).await;
        row.map_err(|e| self.query_error(e))?.map(|row| self.to_key(&row)).transpose()
    }

    /// The key with this hash, revoked or not.
    pub async fn find_by_hash(&self, sha256: &[u8; 32]) -> Result<Option<KeyRow>, StoreError> {
        self.check_in_place()?;
        let row = sqlx::query("SELECT * FROM keys WHERE sha256 = ?").bind(&sha256[..]).fetch_optional(&self.pool).await;
        row.map_err(|e| self.query_error(e))?.map(|row| self.to_key(&row)).transpose()
    }

    pub async fn count_keys(&self) -> Result<KeyCounts, StoreError> {
        self.check_in_place()?;
        let select = "SELECT count(*) - count(revoked_at), count(*) FROM keys";
        let counts: (i64, i64) = sqlx::query_as(select).fetch_one(&self.pool).await.map_err(|e| self.query_error(e))?;
        Ok(KeyCounts { active: counts.0.unsigned_abs(), total: counts.1.unsigned_abs() })
    }

    /// Every value is checked: the file may have been edited by hand.
    fn to_key(&self, row: &SqliteRow) -> Result<KeyRow, StoreError> {
        let bad = |e: sqlx::Error| self.query_error(e);
        let id: String = row.try_get("id").map_err(bad)?;
        let number = |column: &'static str| -> Result<Option<u64>, StoreError> {
            let Some(value) = row.try_get::<Option<i64>, _>(column).map_err(bad)? else { return Ok(None) };
            let wrong = |_| self.bad_row(&id, column, value.to_string());
            u64::try_from(value).map(Some).map_err(wrong)
        };
        let sha256: Vec<u8> = row.try_get("sha256").map_err(bad)?;
        let sha256 = <[u8; 32]>::try_from(sha256.as_slice())
            .map_err(|_| self.bad_row(&id, "sha256", format!("{} bytes", sha256.len())))?;
        let created_at = number("created_at")?.unwrap_or_default();
        let key = NewKey {
            tenant: row.try_get("tenant").map_err(bad)?,
            name: row.try_get("name").map_err(bad)?,
            sha256,
            prefix: row.try_get("prefix").map_err(bad)?,
            rpm: number("rpm")?,
            tpm: number("tpm")?,
            concurrency: number("concurrency")?,
            created_at,
            id: id.clone(),
        };
        Ok(KeyRow { key, revoked_at: number("revoked_at")? })
    }

    fn bad_row(&self, id: &str, column: &'static str, value: String) -> StoreError {
        StoreError::BadRow { path: self.path.clone(), id: id.to_owned(), column, value }
    }
}

fn check_text(column: &'static str, text: &str) -> Result<(), StoreError> {
    let fits = (1..=MAX_NAME_BYTES).contains(&text.len()) && !text.chars().any(char::is_control);
    fits.then_some(()).ok_or(StoreError::BadText { column, max: MAX_NAME_BYTES })
}

fn to_column(column: &'static str, value: Option<u64>) -> Result<Option<i64>, StoreError> {
    value.map(|value| i64::try_from(value).map_err(|_| StoreError::OutOfRange { column, value })).transpose()
}
