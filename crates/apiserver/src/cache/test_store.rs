//! A store in memory, for tests of what lies above the store.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use pilothouse_store::{Error, Event, Expect, KeyValue, Outcome, Range, RangeResult, Store, WatchStream};
use tokio::sync::broadcast;

struct Inner {
    revision: u64,
    log: Vec<Event>,
    compacted: u64,
    changed: broadcast::Sender<Event>,
}

/// Keeps every change ever made.
pub(crate) struct MemoryStore {
    inner: Mutex<Inner>,
    /// How often [`Store::revision`] was called.
    pub revisions_asked: AtomicU64,
}

impl Default for MemoryStore {
    fn default() -> Self {
        let inner = Inner { revision: 1, log: Vec::new(), compacted: 0, changed: broadcast::channel(4096).0 };
        MemoryStore { inner: Mutex::new(inner), revisions_asked: AtomicU64::new(0) }
    }
}

impl Inner {
    fn at(&self, revision: u64) -> BTreeMap<Bytes, KeyValue> {
        let mut map = BTreeMap::new();
        for e in self.log.iter().filter(|e| e.revision() <= revision) {
            match e {
                Event::Put(kv) => map.insert(kv.key.clone(), kv.clone()),
                Event::Delete { key, .. } => map.remove(key),
            };
        }
        map
    }

    fn write(&mut self, event: Event) -> u64 {
        self.revision = event.revision();
        self.log.push(event.clone());
        let _ = self.changed.send(event);
        self.revision
    }
}

fn holds(expect: Expect, current: Option<&KeyValue>) -> bool {
    match expect {
        Expect::Any => true,
        Expect::Absent => current.is_none(),
        Expect::Revision(r) => current.is_some_and(|kv| kv.mod_revision == r),
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &[u8]) -> Result<(Option<KeyValue>, u64), Error> {
        let inner = self.inner.lock();
        Ok((inner.at(inner.revision).remove(key), inner.revision))
    }

    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        let inner = self.inner.lock();
        let revision = if range.revision == 0 { inner.revision } else { range.revision };
        if revision < inner.compacted {
            return Err(Error::Compacted { oldest: inner.compacted });
        }
        if revision > inner.revision {
            return Err(Error::Future { newest: inner.revision });
        }
        let mut kvs: Vec<KeyValue> = inner
            .at(revision)
            .into_values()
            .filter(|kv| kv.key >= range.start && kv.key < range.end)
            .collect();
        let count = kvs.len();
        let more = range.limit > 0 && count > range.limit;
        if more {
            kvs.truncate(range.limit);
        }
        Ok(RangeResult { kvs, more, count, revision: inner.revision })
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        _: Option<Duration>,
    ) -> Result<Outcome, Error> {
        let mut inner = self.inner.lock();
        let previous = inner.at(inner.revision).remove(&key);
        if !holds(expect, previous.as_ref()) {
            return Ok(Outcome::Conflict { current: previous, revision: inner.revision });
        }
        let revision = inner.revision + 1;
        let create_revision = previous.as_ref().map_or(revision, |p| p.create_revision);
        let kv = KeyValue { key, value, create_revision, mod_revision: revision };
        inner.write(Event::Put(kv));
        Ok(Outcome::Done { revision })
    }

    async fn delete(&self, key: Bytes, expect: Expect) -> Result<Outcome, Error> {
        let mut inner = self.inner.lock();
        let previous = inner.at(inner.revision).remove(&key);
        if previous.is_none() || !holds(expect, previous.as_ref()) {
            return Ok(Outcome::Conflict { current: previous, revision: inner.revision });
        }
        let revision = inner.revision + 1;
        inner.write(Event::Delete { key, revision });
        Ok(Outcome::Done { revision })
    }

    async fn revision(&self) -> Result<u64, Error> {
        self.revisions_asked.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        Ok(self.inner.lock().revision)
    }

    async fn watch(&self, prefix: Bytes, from: u64) -> Result<WatchStream, Error> {
        let inner = self.inner.lock();
        if from <= inner.compacted {
            return Err(Error::Compacted { oldest: inner.compacted });
        }
        let old: Vec<Event> = inner
            .log
            .iter()
            .filter(|e| e.revision() >= from && e.key().starts_with(&prefix))
            .cloned()
            .collect();
        let live = futures::stream::unfold((inner.changed.subscribe(), prefix), |(mut rx, prefix)| async {
            loop {
                let event = rx.recv().await.ok()?;
                if event.key().starts_with(&prefix) {
                    return Some((Ok(vec![event]), (rx, prefix)));
                }
            }
        });
        Ok(futures::stream::iter(old.into_iter().map(|e| Ok(vec![e]))).chain(live).boxed())
    }

    async fn compact(&self, revision: u64) -> Result<(), Error> {
        self.inner.lock().compacted = revision;
        Ok(())
    }

    async fn health(&self) -> Vec<(String, Result<(), Error>)> {
        vec![("memory".into(), Ok(()))]
    }
}
