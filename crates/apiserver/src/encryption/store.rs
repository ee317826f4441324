//! A store whose values of some resources are encrypted in the one below it. Everybody above sees them as they are.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use pilothouse_store::{Error, Event, Expect, KeyValue, Outcome, Range, RangeResult, Store, WatchStream};

use super::Encrypted;

/// The rules, and which values are not as they would be written now.
struct Rules {
    /// `/registry/`.
    root: String,
    rules: Vec<Encrypted>,
    stale: Mutex<HashSet<Bytes>>,
}

impl Rules {
    fn of(&self, key: &[u8]) -> Option<&Encrypted> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(&self.root)?;
        self.rules.iter().find(|r| r.has(key))
    }

    fn seal(&self, key: &[u8], value: Bytes) -> Result<Bytes, Error> {
        let Some(transformer) = self.of(key).and_then(|rule| rule.transformers.first()) else {
            return Ok(value);
        };
        let sealed = transformer.seal(key, &value);
        sealed.map(Bytes::from).map_err(|why| {
            Error::Broken(format!("unable to transform key {:?}: {why}", String::from_utf8_lossy(key)))
        })
    }

    /// The value as it was written. One that no key opens stays as it is: nobody can read it, which is said once here.
    fn open(&self, mut kv: KeyValue) -> KeyValue {
        let Some(rule) = self.of(&kv.key) else { return kv };
        let matching = rule.transformers.iter().position(|t| kv.value.starts_with(t.prefix.as_bytes()));
        let opened = matching.ok_or_else(|| "no matching prefix found".to_string()).and_then(|n| {
            let value = rule.transformers.get(n).ok_or("no provider")?.open(&kv.key, &kv.value)?;
            Ok((n, value))
        });
        match opened {
            Ok((n, value)) => {
                let mut stale = self.stale.lock();
                if n > 0 {
                    stale.insert(kv.key.clone());
                } else if !stale.is_empty() {
                    stale.remove(&kv.key);
                }
                kv.value = value.into();
            }
            Err(why) => {
                tracing::error!("unable to transform key {:?}: {why}", String::from_utf8_lossy(&kv.key));
            }
        }
        kv
    }

    fn open_event(&self, event: Event) -> Event {
        match event {
            Event::Put { kv, previous } => {
                // The older value first: the newer one says whether the key is stale.
                let previous = previous.map(|p| self.open(p));
                Event::Put { kv: self.open(kv), previous }
            }
            Event::Delete { key, revision, previous } => {
                let previous = previous.map(|p| self.open(p));
                self.stale.lock().remove(&key);
                Event::Delete { key, revision, previous }
            }
        }
    }
}

/// The store.
pub struct EncryptedStore {
    below: Arc<dyn Store>,
    rules: Arc<Rules>,
}

impl EncryptedStore {
    /// Lays encryption around a store. `root` is `/registry/`.
    pub fn new(below: Arc<dyn Store>, root: &str, rules: Vec<Encrypted>) -> Arc<EncryptedStore> {
        Arc::new(EncryptedStore {
            below,
            rules: Arc::new(Rules { root: root.to_string(), rules, stale: Mutex::default() }),
        })
    }

    fn outcome(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Done { revision, previous } => {
                Outcome::Done { revision, previous: previous.map(|kv| self.rules.open(kv)) }
            }
            Outcome::Conflict { current, revision } => {
                Outcome::Conflict { current: current.map(|kv| self.rules.open(kv)), revision }
            }
        }
    }
}

#[async_trait]
impl Store for EncryptedStore {
    async fn get(&self, key: &[u8]) -> Result<(Option<KeyValue>, u64), Error> {
        let (found, revision) = self.below.get(key).await?;
        Ok((found.map(|kv| self.rules.open(kv)), revision))
    }

    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        let mut found = self.below.range(range).await?;
        found.kvs = found.kvs.into_iter().map(|kv| self.rules.open(kv)).collect();
        Ok(found)
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Outcome, Error> {
        let sealed = self.rules.seal(&key, value)?;
        let outcome = self.below.put(key.clone(), sealed, expect, ttl).await?;
        let outcome = self.outcome(outcome);
        if matches!(outcome, Outcome::Done { .. }) {
            self.rules.stale.lock().remove(&key);
        }
        Ok(outcome)
    }

    async fn delete(&self, key: Bytes, expect: Expect) -> Result<Outcome, Error> {
        Ok(self.outcome(self.below.delete(key, expect).await?))
    }

    async fn revision(&self) -> Result<u64, Error> {
        self.below.revision().await
    }

    async fn watch(&self, prefix: Bytes, from: u64) -> Result<WatchStream, Error> {
        let rules = self.rules.clone();
        let events = self.below.watch(prefix, from).await?;
        Ok(Box::pin(
            events.map(move |batch| Ok(batch?.into_iter().map(|event| rules.open_event(event)).collect())),
        ))
    }

    async fn compact(&self, revision: u64) -> Result<(), Error> {
        self.below.compact(revision).await
    }

    async fn health(&self) -> Vec<(String, Result<(), Error>)> {
        self.below.health().await
    }

    fn is_stale(&self, key: &[u8]) -> bool {
        self.rules.stale.lock().contains(key)
    }
}
