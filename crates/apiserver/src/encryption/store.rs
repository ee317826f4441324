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

fn fault(key: &[u8], why: &str) -> Error {
    Error::Broken(format!("unable to transform key {:?}: {why}", String::from_utf8_lossy(key)))
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
        sealed.map(Bytes::from).map_err(|why| fault(key, &why))
    }

    /// The value as it was written.
    fn open(&self, mut kv: KeyValue) -> Result<KeyValue, Error> {
        let Some(rule) = self.of(&kv.key) else { return Ok(kv) };
        let matching = rule.transformers.iter().position(|t| kv.value.starts_with(t.prefix.as_bytes()));
        let opened = matching.ok_or_else(|| "no matching prefix found".to_string()).and_then(|n| {
            let value = rule.transformers.get(n).ok_or("no provider")?.open(&kv.key, &kv.value)?;
            Ok((n, value))
        });
        let (n, value) = opened.map_err(|why| fault(&kv.key, &why))?;
        let mut stale = self.stale.lock();
        if n > 0 {
            stale.insert(kv.key.clone());
        } else if !stale.is_empty() {
            stale.remove(&kv.key);
        }
        kv.value = value.into();
        Ok(kv)
    }

    /// The same of a change that somebody else has made. What no key opens is passed on as it is: nobody can read it,
    /// but what comes behind it.
    fn open_change(&self, kv: KeyValue) -> KeyValue {
        self.open(kv.clone()).unwrap_or_else(|e| {
            tracing::error!("{e}");
            kv
        })
    }

    fn open_event(&self, event: Event) -> Event {
        match event {
            Event::Put(kv) => Event::Put(self.open_change(kv)),
            Event::Delete { key, revision } => {
                self.stale.lock().remove(&key);
                Event::Delete { key, revision }
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

    fn outcome(&self, outcome: Outcome) -> Result<Outcome, Error> {
        Ok(match outcome {
            Outcome::Conflict { current, revision } => {
                Outcome::Conflict { current: current.map(|kv| self.rules.open(kv)).transpose()?, revision }
            }
            done => done,
        })
    }
}

#[async_trait]
impl Store for EncryptedStore {
    async fn get(&self, key: &[u8]) -> Result<(Option<KeyValue>, u64), Error> {
        let (found, revision) = self.below.get(key).await?;
        Ok((found.map(|kv| self.rules.open(kv)).transpose()?, revision))
    }

    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        let mut found = self.below.range(range).await?;
        // Nothing is left out silently: who has the wrong keys does not get ready.
        found.kvs = found.kvs.into_iter().map(|kv| self.rules.open(kv)).collect::<Result<_, Error>>()?;
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
        let outcome = self.outcome(outcome)?;
        if matches!(outcome, Outcome::Done { .. }) {
            self.rules.stale.lock().remove(&key);
        }
        Ok(outcome)
    }

    async fn delete(&self, key: Bytes, expect: Expect) -> Result<Outcome, Error> {
        self.outcome(self.below.delete(key, expect).await?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::test_store::MemoryStore;
    use crate::encryption::transform::Transformer;

    fn around(below: &Arc<MemoryStore>, transformers: Vec<Transformer>) -> Arc<EncryptedStore> {
        let rule = Encrypted { prefixes: vec!["secrets/".into()], transformers };
        EncryptedStore::new(below.clone(), "/registry/", vec![rule])
    }

    fn key(name: &str, byte: u8) -> Transformer {
        Transformer::new("aesgcm", name, &[byte; 32]).unwrap()
    }

    #[tokio::test]
    async fn what_no_key_opens_is_an_error() {
        let below = Arc::new(MemoryStore::default());
        let at = "/registry/secrets/a/b";
        let one = around(&below, vec![key("one", 1)]);
        one.put(at.into(), "v".into(), Expect::Absent, None).await.unwrap();
        let two = around(&below, vec![key("two", 2), Transformer::identity()]);
        let all = || Range { start: "/registry/".into(), end: "/registry0".into(), ..Range::default() };
        let text = "unable to transform key \"/registry/secrets/a/b\": identity transformer tried to read encrypted data";
        assert_eq!(two.get(at.as_bytes()).await.unwrap_err().to_string(), text);
        assert_eq!(two.range(all()).await.unwrap_err().to_string(), text);
        assert!(two.put(at.into(), "w".into(), Expect::Absent, None).await.is_err());
        let only = around(&below, vec![key("two", 2)]);
        assert!(only.get(at.as_bytes()).await.unwrap_err().to_string().ends_with("no matching prefix found"));
        // Of another resource it is no business.
        two.put("/registry/pods/a/b".into(), "{}".into(), Expect::Absent, None).await.unwrap();
        assert_eq!(below.get(b"/registry/pods/a/b").await.unwrap().0.unwrap().value, "{}");
        // Both keys: it is read, and to be written anew.
        let both = around(&below, vec![key("two", 2), key("one", 1)]);
        assert_eq!(both.range(all()).await.unwrap().kvs[1].value, "v");
        assert!(both.is_stale(at.as_bytes()));
        both.put(at.into(), "v".into(), Expect::Any, None).await.unwrap();
        assert!(!both.is_stale(at.as_bytes()));
        assert_eq!(two.get(at.as_bytes()).await.unwrap().0.unwrap().value, "v");
    }
}
