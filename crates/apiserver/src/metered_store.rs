//! A store whose calls are counted: `etcd_request_duration_seconds`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pilothouse_api::scheme::Scheme;
use pilothouse_component_base::metrics::Metrics;
use pilothouse_store::{Error, Expect, KeyValue, Outcome, Range, RangeResult, Store, WatchStream};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    operation: &'static str,
    r#type: Arc<str>,
}

/// The buckets of v1.20.
const BUCKETS: [f64; 8] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0];

/// The store.
pub struct MeteredStore {
    below: Arc<dyn Store>,
    durations: Family<Labels, Histogram, fn() -> Histogram>,
    root: String,
    /// Go's names of types, by what stands in keys.
    types: HashMap<String, Arc<str>>,
    other: Arc<str>,
}

/// Go's name of a built-in kind's type: `*core.Pod`, `*rbac.Role`.
fn go_type(group: &str, kind: &str) -> String {
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    format!("*{package}.{kind}")
}

impl MeteredStore {
    /// Counts the calls of a store among `metrics`. `root` is `/registry/`.
    pub fn new(below: Arc<dyn Store>, root: &str, scheme: &Scheme, metrics: &Metrics) -> Arc<MeteredStore> {
        let durations: Family<Labels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        metrics.register(|r| {
            r.register(
                "etcd_request_duration_seconds",
                "Etcd request latency in seconds for each operation and object type",
                durations.clone(),
            );
        });
        let types = scheme
            .hubs()
            .map(|hub| (hub.storage_prefix().to_string(), go_type(&hub.group, &hub.kind).into()))
            .collect();
        let other = "*unstructured.Unstructured".into();
        Arc::new(MeteredStore { below, durations, root: root.to_string(), types, other })
    }

    fn type_of(&self, key: &[u8]) -> Arc<str> {
        let key = std::str::from_utf8(key).ok().and_then(|k| k.strip_prefix(&self.root)).unwrap_or("");
        // Of most kinds one part of the key, of some two.
        let mut slashes = key.match_indices('/').map(|(i, _)| i);
        let (one, two) = (slashes.next().unwrap_or(key.len()), slashes.next().unwrap_or(key.len()));
        let found = self.types.get(&key[..one]).or_else(|| self.types.get(&key[..two]));
        found.unwrap_or(&self.other).clone()
    }

    async fn timed<T>(&self, operation: &'static str, key: &[u8], call: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let outcome = call.await;
        let labels = Labels { operation, r#type: self.type_of(key) };
        self.durations.get_or_create(&labels).observe(started.elapsed().as_secs_f64());
        outcome
    }
}

#[async_trait]
impl Store for MeteredStore {
    async fn get(&self, key: &[u8]) -> Result<(Option<KeyValue>, u64), Error> {
        self.timed("get", key, self.below.get(key)).await
    }

    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        let start = range.start.clone();
        self.timed(if range.count_only { "count" } else { "list" }, &start, self.below.range(range)).await
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Outcome, Error> {
        let operation = if expect == Expect::Absent { "create" } else { "update" };
        self.timed(operation, &key.clone(), self.below.put(key, value, expect, ttl)).await
    }

    async fn delete(&self, key: Bytes, expect: Expect) -> Result<Outcome, Error> {
        self.timed("delete", &key.clone(), self.below.delete(key, expect)).await
    }

    async fn revision(&self) -> Result<u64, Error> {
        self.below.revision().await
    }

    async fn watch(&self, prefix: Bytes, from: u64) -> Result<WatchStream, Error> {
        self.below.watch(prefix, from).await
    }

    async fn compact(&self, revision: u64) -> Result<(), Error> {
        self.below.compact(revision).await
    }

    async fn health(&self) -> Vec<(String, Result<(), Error>)> {
        self.below.health().await
    }

    fn is_stale(&self, key: &[u8]) -> bool {
        self.below.is_stale(key)
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::Release;

    use super::*;
    use crate::cache::test_store::MemoryStore;

    #[tokio::test]
    async fn calls_are_counted_by_operation_and_type() {
        let metrics = Metrics::default();
        let scheme = Scheme::new(Release::V1_20);
        let store = MeteredStore::new(Arc::new(MemoryStore::default()), "/registry/", &scheme, &metrics);
        for key in [
            "/registry/pods/a/b",
            "/registry/services/specs/a/b",
            "/registry/e.com/widgets/a/b",
            "/registry/minions/n",
        ] {
            store.put(key.into(), "{}".into(), Expect::Absent, None).await.unwrap();
            store.get(key.as_bytes()).await.unwrap();
        }
        let text = metrics.encode();
        for line in [
            "etcd_request_duration_seconds_count{operation=\"create\",type=\"*core.Pod\"} 1",
            "etcd_request_duration_seconds_count{operation=\"get\",type=\"*core.Service\"} 1",
            "etcd_request_duration_seconds_count{operation=\"create\",type=\"*core.Node\"} 1",
            "etcd_request_duration_seconds_count{operation=\"get\",type=\"*unstructured.Unstructured\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
