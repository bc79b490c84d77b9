use std::future::Future;

use super::*;

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn key(n: u8) -> NewKey {
    NewKey {
        id: format!("key_{n}"),
        tenant: "acme'; DROP TABLE keys; --".into(),
        name: n.is_multiple_of(2).then(|| "ci".into()),
        sha256: [n; 32],
        prefix: "gk_ab12".into(),
        rpm: Some(60),
        tpm: None,
        concurrency: Some(u64::from(n) + 1),
        created_at: 1_700_000_000 + u64::from(n),
    }
}

#[test]
fn keys_come_back_as_they_went_in_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    run(async {
        let store = Store::open(&path).await.unwrap();
        assert_eq!(store.count_keys().await.unwrap(), KeyCounts { active: 0, total: 0 });
        store.create_key(&key(1)).await.unwrap();
        store.create_key(&key(2)).await.unwrap();
        store.close().await;
    });
    run(async {
        let store = Store::open(&path).await.unwrap();
        let rows = store.list_keys(10).await.unwrap();
        assert_eq!(rows.iter().map(|r| r.key.clone()).collect::<Vec<_>>(), [key(2), key(1)]);
        assert_eq!(store.list_keys(1).await.unwrap().len(), 1);
        assert_eq!(store.find_by_hash(&[1; 32]).await.unwrap().unwrap().key, key(1));
        assert_eq!(store.find_by_hash(&[3; 32]).await.unwrap(), None);
    });
}

#[test]
fn a_revoked_key_is_dated_once_and_stays_on_the_list() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = Store::open(dir.path().join("a.db")).await.unwrap();
        store.create_key(&key(1)).await.unwrap();
        assert_eq!(store.revoke_key("key_9", 5).await.unwrap(), None);
        assert_eq!(store.revoke_key("key_1", 5).await.unwrap().unwrap().revoked_at, Some(5));
        assert_eq!(store.revoke_key("key_1", 6).await.unwrap().unwrap().revoked_at, Some(5));
        assert_eq!(store.find_by_hash(&[1; 32]).await.unwrap().unwrap().revoked_at, Some(5));
        assert_eq!(store.count_keys().await.unwrap(), KeyCounts { active: 0, total: 1 });
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = Store::open(dir.path().join("a.db")).await.unwrap();
        store.create_key(&key(1)).await.unwrap();
        let again = store.create_key(&key(1)).await.unwrap_err();
        assert!(matches!(again, StoreError::KeyExists { .. }), "{again}");
        let huge = store.create_key(&NewKey { tpm: Some(u64::MAX), ..key(2) }).await.unwrap_err();
        assert!(huge.to_string().starts_with("tpm = 18446744073709551615"), "{huge}");
        for bad in ["", "two\nlines", &"x".repeat(MAX_NAME_BYTES + 1)] {
            let nameless = store.create_key(&NewKey { tenant: bad.into(), ..key(2) }).await.unwrap_err();
            assert!(nameless.to_string().contains("tenant must be 1 to 128 bytes"), "{nameless}");
            let named = store.create_key(&NewKey { name: Some(bad.into()), ..key(2) }).await.unwrap_err();
            assert!(named.to_string().contains("name must be 1 to 128 bytes"), "{named}");
        }
        assert_eq!(store.count_keys().await.unwrap().total, 1);
    });
}

#[test]
fn a_row_edited_by_hand_is_named() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = Store::open(dir.path().join("a.db")).await.unwrap();
        store.create_key(&key(1)).await.unwrap();
        sqlx::query("UPDATE keys SET created_at = -4").execute(&store.pool).await.unwrap();
        let e = store.list_keys(1).await.unwrap_err().to_string();
        assert!(e.contains("created_at = -4") && e.contains("key_1") && e.contains("a.db"), "{e}");
    });
}

#[test]
fn errors_name_the_file_and_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("notes.txt");
    std::fs::write(&text, "these are notes and no database, whatever the configuration says".repeat(20)).unwrap();
    let e = run(Store::open(&text)).unwrap_err().to_string();
    assert!(e.contains("notes.txt") && e.contains("not an SQLite file"), "{e}");
    let e = run(Store::open(dir.path().join("no/such/a.db"))).unwrap_err().to_string();
    assert!(e.contains("no/such/a.db") && e.contains("store.path"), "{e}");

    let client = crate::base::error::Error::from(run(Store::open(&text)).unwrap_err());
    assert!(!client.message.contains("notes") && client.internal.unwrap().contains("notes"), "nothing internal");
}

#[test]
fn a_store_of_a_newer_program_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    run(async {
        let store = Store::open(&path).await.unwrap();
        let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                     VALUES (9000, 'later', 1, x'00', 1)";
        sqlx::query(later).execute(&store.pool).await.unwrap();
        store.close().await;
        let e = Store::open(&path).await.unwrap_err();
        assert!(matches!(e, StoreError::TooNew { version: 9000, .. }), "{e}");
    });
}

#[test]
fn every_migration_is_in_the_program() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
    let files =
        std::fs::read_dir(dir).unwrap().filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "sql"));
    assert_eq!(MIGRATIONS.iter().count(), files.count(), "touch src/store/mod.rs and build again");
}
