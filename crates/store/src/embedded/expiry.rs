//! Keys with a time to live: each is deleted by an ordinary write once its time has come.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::Inner;
use super::writer::{Change, Request};
use crate::Expect;

/// Pause before another try where a deletion failed.
const RETRY: Duration = Duration::from_secs(1);

/// When a key's time is over, by the clock of this process and by the wall clock, which survives it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    pub(super) unix_millis: u64,
}

impl Deadline {
    /// The moment `ttl` after now.
    pub(super) fn after(ttl: Duration, now_unix_millis: u64) -> Self {
        Deadline { at: Instant::now() + ttl, unix_millis: now_unix_millis + ttl.as_millis() as u64 }
    }
}

/// The keys that will expire, by the moment and by the revision that set it.
pub(super) struct Expiry {
    due: Mutex<Option<BTreeMap<(Instant, u64), Bytes>>>,
    changed: Notify,
}

impl Expiry {
    /// From what was on disk: revision, key, and the moment in milliseconds since 1970.
    pub(super) fn new(keys: Vec<(u64, Bytes, u64)>, now_unix_millis: u64) -> Self {
        let now = Instant::now();
        let due = keys
            .into_iter()
            .map(|(revision, key, at)| {
                ((now + Duration::from_millis(at.saturating_sub(now_unix_millis)), revision), key)
            })
            .collect();
        Expiry { due: Mutex::new(Some(due)), changed: Notify::new() }
    }

    /// Takes in that the write of `revision` gave `key` a deadline.
    pub(super) fn add(&self, revision: u64, key: Bytes, at: Instant) {
        let mut due = self.due.lock();
        let Some(due) = due.as_mut() else { return };
        due.insert((at, revision), key);
        if due.first_key_value().is_some_and(|(first, _)| *first == (at, revision)) {
            self.changed.notify_one();
        }
    }

    /// Ends [`run`].
    pub(super) fn stop(&self) {
        *self.due.lock() = None;
        self.changed.notify_one();
    }

    /// What is due, and when the next is; `None` when stopped.
    fn take_due(&self) -> Option<(Vec<(u64, Bytes)>, Option<Instant>)> {
        let now = Instant::now();
        let mut due = self.due.lock();
        let due = due.as_mut()?;
        let later = due.split_off(&(now, u64::MAX));
        let ready =
            std::mem::replace(due, later).into_iter().map(|((_, revision), key)| (revision, key)).collect();
        Some((ready, due.first_key_value().map(|((at, _), _)| *at)))
    }
}

/// Starts the task that deletes what is due, until the store is closed or dropped.
pub(super) fn run(inner: &Arc<Inner>) {
    let (expiry, inner) = (inner.expiry.clone(), Arc::downgrade(inner));
    tokio::spawn(async move {
        while let Some((ready, next)) = expiry.take_due() {
            if !ready.is_empty() && delete(&inner, &expiry, ready).await.is_none() {
                return;
            }
            match next {
                Some(at) => tokio::select! {
                    _ = tokio::time::sleep_until(at) => {}
                    _ = expiry.changed.notified() => {}
                },
                None => expiry.changed.notified().await,
            }
        }
    });
}

/// Deletes keys that are still at these revisions; `None` where the store is no more.
async fn delete(inner: &Weak<Inner>, expiry: &Expiry, ready: Vec<(u64, Bytes)>) -> Option<()> {
    let mut answers = Vec::with_capacity(ready.len());
    for (revision, key) in ready {
        let (reply, answer) = oneshot::channel();
        // A key that was written again meanwhile is no longer at this revision: nothing is deleted.
        let change = Change::Delete { key: key.clone(), expect: Expect::Revision(revision) };
        inner.upgrade()?.push(Request { change, reply }).ok()?;
        answers.push((revision, key, answer));
    }
    for (revision, key, answer) in answers {
        if !matches!(answer.await, Ok(Ok(_))) {
            expiry.add(revision, key, Instant::now() + RETRY);
        }
    }
    Some(())
}
