//! `garrick keys`: make, list, revoke.

use comfy_table::{Table, presets};
use serde_json::json;

use super::args::{CreateKeyArgs, KeysArgs, KeysCommand, Limit};
use super::{Exit, Failure};
use crate::base::clock;
use crate::base::config::Config;
use crate::gate::key::Secret;
use crate::store::{KeyRow, NewKey, Store, StoreError};

/// Rows that `list` prints; more keys than people read.
const MAX_LISTED: u32 = 10_000;

pub fn run(args: KeysArgs) -> Result<(), Failure> {
    let config = args.config.load(&[])?;
    actix::System::new().block_on(async {
        let store = Store::open(&config.store.path).await.map_err(store_failure)?;
        let done = match args.command {
            KeysCommand::Create(args) => create(&store, &config, args).await,
            KeysCommand::List { json } => list(&store, json).await,
            KeysCommand::Revoke { id } => revoke(&store, &id).await,
        };
        store.close().await;
        done
    })
}

async fn create(store: &Store, config: &Config, args: CreateKeyArgs) -> Result<(), Failure> {
    let tenant = args.tenant.trim();
    if tenant.is_empty() || tenant.len() > 128 || tenant.chars().any(char::is_control) {
        return Err(Failure::new(Exit::Usage, "--tenant must be 1 to 128 bytes of printable text"));
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|e| Failure::new(Exit::Internal, format!("no random numbers: {e}")))?;
    let secret = Secret::from_bytes(&random);
    let key = NewKey {
        id: format!("key_{}", uuid::Uuid::now_v7().simple()),
        tenant: tenant.to_owned(),
        name: args.name,
        sha256: secret.hash().0,
        prefix: secret.shown().to_owned(),
        rpm: Limit::or_default(args.rpm, config.quota.rpm),
        tpm: Limit::or_default(args.tpm, config.quota.tpm),
        concurrency: Limit::or_default(args.concurrency, config.quota.concurrency),
        created_at: clock::unix_s(),
    };
    store.create_key(&key).await.map_err(store_failure)?;
    eprintln!("{} for tenant {} (kept as a hash only: this is the one time that the key is shown)", key.id, key.tenant);
    println!("{}", secret.reveal());
    Ok(())
}

async fn list(store: &Store, as_json: bool) -> Result<(), Failure> {
    let rows = store.list_keys(MAX_LISTED).await.map_err(store_failure)?;
    if as_json {
        let keys: Vec<_> = rows.iter().map(to_json).collect();
        println!("{}", serde_json::Value::from(keys));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["ID", "TENANT", "NAME", "KEY", "RPM", "TPM", "CONCURRENCY", "CREATED", "STATE"]);
    let limit = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    for KeyRow { key, revoked_at } in &rows {
        table.add_row([
            key.id.clone(),
            key.tenant.clone(),
            key.name.clone().unwrap_or_default(),
            format!("{}…", key.prefix),
            limit(key.rpm),
            limit(key.tpm),
            limit(key.concurrency),
            date(key.created_at),
            revoked_at.map_or("active".to_owned(), |at| format!("revoked {}", date(at))),
        ]);
    }
    println!("{table}");
    Ok(())
}

async fn revoke(store: &Store, id: &str) -> Result<(), Failure> {
    match store.revoke_key(id, clock::unix_s()).await.map_err(store_failure)? {
        Some(_) => {
            println!("{id} is revoked; running servers notice within auth.cache_ttl_s");
            Ok(())
        }
        None => Err(Failure::new(Exit::Usage, format!("there is no key {id}; 'garrick keys list' shows them"))),
    }
}

fn to_json(row: &KeyRow) -> serde_json::Value {
    let KeyRow { key, revoked_at } = row;
    json!({
        "id": key.id, "tenant": key.tenant, "name": key.name, "prefix": key.prefix, "rpm": key.rpm, "tpm": key.tpm,
        "concurrency": key.concurrency, "created_at": key.created_at, "revoked_at": revoked_at,
    })
}

fn date(unix_s: u64) -> String {
    jiff::Timestamp::from_second(unix_s as i64).map_or_else(|_| unix_s.to_string(), |t| t.to_string())
}

fn store_failure(error: StoreError) -> Failure {
    Failure::new(Exit::Internal, error)
}
