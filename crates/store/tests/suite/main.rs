//! One suite for both stores: whatever holds for etcd holds for the embedded store.
#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "../common/etcd.rs"]
mod etcd;

mod compaction;
mod only_etcd;
mod ranges;
mod ttl;
mod watches;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use pilothouse_store::embedded::EmbeddedStore;
use pilothouse_store::etcd::{EtcdConfig, EtcdStore};
use pilothouse_store::{Error, Event, Expect, KeyValue, Outcome, Range, Store, WatchStream};

use crate::etcd::Etcd;

/// A store and what must live as long as it.
pub(crate) struct Fixture {
    store: Arc<dyn Store>,
    _keep: Box<dyn std::any::Any + Send>,
}

async fn embedded() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    Fixture { store, _keep: Box::new(dir) }
}

pub(crate) async fn connect(urls: &[&str]) -> Arc<EtcdStore> {
    let endpoints = urls.iter().map(|s| s.to_string()).collect();
    let config = EtcdConfig { endpoints, prefix: "/registry".into(), ..EtcdConfig::default() };
    let store = EtcdStore::connect(config).await.unwrap();
    ready(&*store).await;
    store
}

/// Waits until a freshly started etcd has a leader.
pub(crate) async fn ready(store: &dyn Store) {
    for _ in 0..100 {
        match store.revision().await {
            Ok(_) => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    panic!("etcd is not ready: {:?}", store.revision().await);
}

async fn real_etcd() -> Fixture {
    let etcd = Etcd::start(&["--max-request-bytes", "5000000"]);
    let store = connect(&[&etcd.url]).await;
    Fixture { store, _keep: Box::new(etcd) }
}

macro_rules! suite {
    ($($module:ident: $($case:ident),+;)+) => {
        mod on_embedded {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let fixture = crate::embedded().await;
                crate::$module::$case(fixture.store.clone()).await;
            })+)+
        }
        mod on_etcd {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let fixture = crate::real_etcd().await;
                crate::$module::$case(fixture.store.clone()).await;
            })+)+
        }
    };
}

suite! {
    writes: conditions_hold_or_nothing_happens, deletes, no_update_is_lost, revisions_are_consecutive, large_values,
        too_large_values, binary_keys, health;
    ranges: bounds_and_limits, pages_of_one_revision, ends_of_prefixes, revisions_of_the_past_and_future;
    compaction: history_before_it_is_gone, refuses_what_it_cannot_do;
    watches: events_come_once_and_in_order, from_the_past, only_the_prefix, many_watchers_see_the_same,
        resume_without_a_gap, large_catch_up, from_the_future, a_whole_key_space, compacted_start, of_slow_readers;
    ttl: keys_go_when_their_time_is_over;
}

pub(crate) async fn put(store: &dyn Store, key: impl Into<Bytes>, value: impl Into<Bytes>) -> u64 {
    done(store.put(key.into(), value.into(), Expect::Any, None).await)
}

pub(crate) async fn delete(store: &dyn Store, key: &str) -> u64 {
    done(store.delete(key.to_string().into(), Expect::Any).await)
}

pub(crate) fn done(result: Result<Outcome, Error>) -> u64 {
    match result {
        Ok(Outcome::Done { revision }) => revision,
        other => panic!("not done: {other:?}"),
    }
}

pub(crate) fn conflict(result: Result<Outcome, Error>) -> (Option<KeyValue>, u64) {
    match result {
        Ok(Outcome::Conflict { current, revision }) => (current, revision),
        other => panic!("no conflict: {other:?}"),
    }
}

pub(crate) fn under(prefix: &str) -> Range {
    Range {
        start: prefix.to_string().into(),
        end: pilothouse_store::prefix_end(prefix.as_bytes()),
        ..Range::default()
    }
}

/// The next `n` events, or a failed test after a while.
pub(crate) async fn take(watch: &mut WatchStream, n: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < n {
        let batch = tokio::time::timeout(Duration::from_secs(20), watch.next())
            .await
            .unwrap_or_else(|_| panic!("{} of {n} events came", events.len()))
            .expect("the watch ended")
            .unwrap();
        assert!(!batch.is_empty());
        events.extend(batch);
    }
    assert_eq!(events.len(), n, "more events than expected");
    events
}

/// `+key@revision` and `-key@revision`.
pub(crate) fn show(events: &[Event]) -> Vec<String> {
    let key = |e: &Event| String::from_utf8_lossy(e.key()).into_owned();
    events
        .iter()
        .map(|e| format!("{}{}@{}", if matches!(e, Event::Put(_)) { '+' } else { '-' }, key(e), e.revision()))
        .collect()
}
