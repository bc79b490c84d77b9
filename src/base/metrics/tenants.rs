//! Series by tenant, bounded in number.
//!
//! Invariant: at most as many tenants as allowed, and [`OTHER`], have series. Who came first keeps its own: a series
//! that changed its meaning would be worse than a tenant without one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use super::registry::Registry;
use super::series::Counter;
use super::table;

/// The label of all tenants beyond the bound (and of a tenant that has this very name).
const OTHER: &str = "other";

/// Handles of one tenant.
#[derive(Debug, Clone)]
pub struct TenantMetrics {
    pub requests: Counter,
    pub prompt_tokens: Counter,
    pub generated_tokens: Counter,
    pub refusals: Counter,
}

#[derive(Debug, Default)]
pub struct Tenants {
    max: AtomicUsize,
    known: RwLock<HashMap<Box<str>, TenantMetrics>>,
}

impl Tenants {
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    pub fn of(&self, registry: &Registry, tenant: &str) -> TenantMetrics {
        if let Some(known) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(tenant) {
            return known.clone();
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= self.max.load(Ordering::Relaxed) && !known.contains_key(tenant) {
            return TenantMetrics::new(registry, OTHER);
        }
        known.entry(tenant.into()).or_insert_with(|| TenantMetrics::new(registry, tenant)).clone()
    }
}

impl TenantMetrics {
    fn new(registry: &Registry, tenant: &str) -> Self {
        Self {
            requests: registry.counter(&table::TENANT_REQUESTS, &[tenant]),
            prompt_tokens: registry.counter(&table::TENANT_TOKENS, &[tenant, "prompt"]),
            generated_tokens: registry.counter(&table::TENANT_TOKENS, &[tenant, "generated"]),
            refusals: registry.counter(&table::TENANT_REFUSALS, &[tenant]),
        }
    }
}
