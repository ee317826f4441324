//! `EventRateLimit`: so many events a second, and no more.

use std::collections::HashMap;

use async_trait::async_trait;
use parking_lot::Mutex;
use pilothouse_apimachinery::status::Status;
use tokio::time::Instant;

use super::configuration::Configuration;
use super::is_about;
use crate::json::{i64_at, list_at, str_at};
use crate::request::{AdmissionRequest, Objects, Operation, Validation};

/// Buckets kept where the configuration does not say.
const KEPT: usize = 4096;

/// Tokens that come back with time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// Of what events are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Server,
    Namespace,
    User,
    SourceAndObject,
}

struct Limit {
    kind: Kind,
    name: &'static str,
    qps: f64,
    burst: f64,
    kept: usize,
    buckets: Mutex<HashMap<String, Bucket>>,
}

/// The plug-in.
pub struct EventRateLimit(Vec<Limit>);

impl EventRateLimit {
    /// With the limits of its configuration.
    pub fn new(configuration: &Configuration) -> Result<EventRateLimit, String> {
        let limits = list_at(configuration.of("EventRateLimit"), &["limits"]).iter().map(|limit| {
            let (kind, name) = match str_at(limit, &["type"]) {
                "Server" => (Kind::Server, "Server"),
                "Namespace" => (Kind::Namespace, "Namespace"),
                "User" => (Kind::User, "User"),
                "SourceAndObject" => (Kind::SourceAndObject, "SourceAndObject"),
                other => return Err(format!("EventRateLimit: limits[].type: Unsupported value: {other:?}")),
            };
            let number = |key: &str| i64_at(limit, &[key]).filter(|n| *n > 0);
            let must = |key: &str| {
                number(key)
                    .map(|n| n as f64)
                    .ok_or_else(|| format!("EventRateLimit: limits[].{key}: must be positive"))
            };
            Ok(Limit {
                kind,
                name,
                qps: must("qps")?,
                burst: must("burst")?,
                kept: number("cacheSize").and_then(|n| usize::try_from(n).ok()).unwrap_or(KEPT),
                buckets: Mutex::default(),
            })
        });
        let limits = limits.collect::<Result<Vec<Limit>, String>>()?;
        if limits.is_empty() {
            return Err("EventRateLimit: limits: Invalid value: []: must not be empty".into());
        }
        Ok(EventRateLimit(limits))
    }
}

impl Limit {
    fn key(&self, request: &AdmissionRequest) -> String {
        let event = &request.object;
        let part = |path: &[&str]| str_at(event, path).to_string();
        match self.kind {
            Kind::Server => String::new(),
            Kind::Namespace => request.namespace.clone(),
            Kind::User => request.user.name.clone(),
            Kind::SourceAndObject => ["kind", "namespace", "name", "uid", "apiVersion"]
                .iter()
                .fold(part(&["source", "component"]) + &part(&["source", "host"]), |key, field| {
                    key + &part(&["involvedObject", field])
                }),
        }
    }

    /// Takes a token of a key's bucket, if there is one.
    fn take(&self, key: &str) -> bool {
        let now = Instant::now();
        let mut buckets = self.buckets.lock();
        if buckets.len() >= self.kept && !buckets.contains_key(key) {
            let oldest = buckets.iter().min_by_key(|(_, b)| b.at).map(|(k, _)| k.clone());
            oldest.and_then(|k| buckets.remove(&k));
        }
        let bucket = buckets.entry(key.to_string()).or_insert(Bucket { tokens: self.burst, at: now });
        let back = now.duration_since(bucket.at).as_secs_f64() * self.qps;
        *bucket = Bucket { tokens: (bucket.tokens + back).min(self.burst), at: now };
        let there = bucket.tokens >= 1.0;
        if there {
            bucket.tokens -= 1.0;
        }
        there
    }
}

#[async_trait]
impl Validation for EventRateLimit {
    async fn validate(&self, request: &AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        let event = is_about(request, "", "events") || is_about(request, "events.k8s.io", "events");
        if !writes || !event || request.dry_run {
            return Ok(());
        }
        // Each limit counts, also when another has refused.
        let refusals: Vec<String> = self
            .0
            .iter()
            .filter_map(|limit| {
                let key = limit.key(request);
                (!limit.take(&key)).then(|| format!("limit reached on type {} for key {key}", limit.name))
            })
            .collect();
        match refusals.into_iter().next() {
            None => Ok(()),
            Some(why) => Err(Status::too_many_requests(why, 0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pilothouse_apimachinery::json::{Value, json};

    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;

    fn plugin(limits: Value) -> Result<EventRateLimit, String> {
        EventRateLimit::new(&Configuration::for_test("EventRateLimit", json!({"limits": limits})))
    }

    fn event(namespace: &str) -> AdmissionRequest {
        let mut request = test_create("", "events", "Event", json!({"metadata": {"name": "e"}}));
        request.namespace = namespace.into();
        request
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_and_no_more() {
        let o = FakeObjects::default();
        let p = plugin(json!([{"type": "Namespace", "qps": 1, "burst": 2, "cacheSize": 2}])).unwrap();
        for _ in 0..2 {
            p.validate(&event("a"), &o).await.unwrap();
        }
        let refused = p.validate(&event("a"), &o).await.unwrap_err();
        assert_eq!(
            (refused.code, refused.message.as_str()),
            (429, "limit reached on type Namespace for key a")
        );
        p.validate(&event("b"), &o).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        p.validate(&event("a"), &o).await.unwrap();
        assert!(p.validate(&event("a"), &o).await.is_err());
        // Too many namespaces: the one that was quiet longest is forgotten.
        p.validate(&event("c"), &o).await.unwrap();
        assert_eq!(p.0[0].buckets.lock().len(), 2);
        p.validate(&test_create("", "pods", "Pod", json!({})), &o).await.unwrap();
    }

    #[test]
    fn limits_must_make_sense() {
        assert!(plugin(json!([])).err().unwrap().contains("must not be empty"));
        assert!(plugin(json!([{"type": "Nope", "qps": 1, "burst": 1}])).err().unwrap().contains("Nope"));
        assert!(plugin(json!([{"type": "Server", "burst": 1}])).err().unwrap().contains("qps"));
    }
}
