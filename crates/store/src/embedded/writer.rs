//! Writes: a queue, and whoever is at work on it. All writes that wait become durable together.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::disk::Row;
use super::expiry::Deadline;
use super::index::Version;
use super::{Inner, Progress, closed};
use crate::{Error, Event, Expect, KeyValue, Outcome};

/// How many writes and how many bytes of values become durable together.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 16 << 20;

/// What is asked for.
pub(super) enum Change {
    Put { key: Bytes, value: Bytes, expect: Expect, expires: Option<Deadline> },
    Delete { key: Bytes, expect: Expect },
    Compact { revision: u64 },
}

/// How it went.
pub(super) enum Reply {
    Outcome(Outcome),
    Compacted,
}

/// What is asked for and who wants to know how it went.
pub(super) struct Request {
    pub(super) change: Change,
    pub(super) reply: oneshot::Sender<Result<Reply, Error>>,
}

/// Writes that wait.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<Request>,
    busy: bool,
    closed: bool,
    idle: Option<oneshot::Sender<()>>,
}

impl Queue {
    /// Adds a request. `true` tells the caller to start [`Inner::drain`]: nobody is at work.
    pub(super) fn push(&mut self, request: Request) -> Result<bool, Error> {
        if self.closed {
            return Err(closed());
        }
        self.waiting.push_back(request);
        Ok(!std::mem::replace(&mut self.busy, true))
    }

    /// Refuses requests from now on; fires when those before are done.
    pub(super) fn close(&mut self) -> Option<oneshot::Receiver<()>> {
        self.closed = true;
        if !self.busy {
            return None;
        }
        let (tx, rx) = oneshot::channel();
        self.idle = Some(tx);
        Some(rx)
    }

    /// The next batch; `None` ends the work.
    fn next(&mut self) -> Option<Vec<Request>> {
        let (mut n, mut bytes) = (0, 0);
        while n < self.waiting.len().min(BATCH) && bytes < BATCH_BYTES {
            if let Change::Put { value, .. } = &self.waiting[n].change {
                bytes += value.len();
            }
            n += 1;
        }
        if n == 0 {
            self.busy = false;
            if let Some(idle) = self.idle.take() {
                let _ = idle.send(());
            }
            return None;
        }
        Some(self.waiting.drain(..n).collect())
    }
}

/// What a key holds in the course of a batch.
type Current = Option<(Version, Bytes)>;

/// A batch under construction: decided, not yet durable.
#[derive(Default)]
struct Plan {
    rows: Vec<(Row, Bytes)>,
    events: Vec<Event>,
    expiring: Vec<(u64, Bytes, Deadline)>,
    /// What the batch has made of keys so far.
    keys: HashMap<Bytes, Current>,
}

impl Inner {
    /// Works until the queue is empty. Blocks.
    pub(super) fn drain(self: &Arc<Self>) {
        loop {
            let Some(requests) = self.queue.lock().next() else { return };
            self.process(requests);
            if self.storage.wants_checkpoint() {
                let me = self.clone();
                // Its errors are told in the log, and writes find out by themselves when there is no room.
                tokio::task::spawn_blocking(move || me.storage.checkpoint());
            }
        }
    }

    /// Decides, writes and answers one batch.
    fn process(&self, requests: Vec<Request>) {
        let base = self.state.read().index.revision();
        let free = self.free_space();
        let mut plan = Plan::default();
        let mut answers = Vec::with_capacity(requests.len());
        for Request { change, reply } in requests {
            if reply.is_closed() {
                continue;
            }
            let answer = match change {
                Change::Compact { revision } => self.compact(revision, base),
                change => self.decide(&mut plan, base, free, change),
            };
            answers.push((answer, reply));
        }
        let written = if plan.rows.is_empty() { Ok(()) } else { self.storage.append(&plan.rows) };
        if written.is_ok() {
            self.publish(plan.events, &plan.rows, plan.expiring);
        }
        for (answer, reply) in answers {
            let _ = reply.send(written.clone().and(answer));
        }
    }

    /// Forgets history. Changes of the same batch are not in the index yet and are not touched.
    fn compact(&self, revision: u64, newest: u64) -> Result<Reply, Error> {
        let mut state = self.state.write();
        let oldest = state.index.compacted();
        if revision <= oldest {
            return Err(Error::Compacted { oldest });
        }
        if revision > newest {
            return Err(Error::Future { newest });
        }
        self.storage.discard(state.index.compact(revision), revision);
        Ok(Reply::Compacted)
    }

    /// Makes a durable batch visible to reads and watches.
    fn publish(&self, events: Vec<Event>, rows: &[(Row, Bytes)], expiring: Vec<(u64, Bytes, Deadline)>) {
        if rows.is_empty() {
            return;
        }
        let revision = {
            let mut state = self.state.write();
            for (row, _) in rows {
                state.index.apply(&row.key, row.version);
            }
            for event in events {
                state.ring.push(event);
            }
            state.index.revision()
        };
        for (revision, key, deadline) in expiring {
            self.expiry.add(revision, key, deadline.at);
        }
        self.progress.send_modify(|p: &mut Progress| p.revision = revision);
    }

    /// Decides one write and, where it happens, adds it to the batch.
    fn decide(&self, plan: &mut Plan, base: u64, free: u64, change: Change) -> Result<Reply, Error> {
        let (key, expect, write) = match change {
            Change::Put { key, value, expect, expires } => (key, expect, Some((value, expires))),
            Change::Delete { key, expect } => (key, expect, None),
            Change::Compact { .. } => return Ok(Reply::Compacted),
        };
        let now = base + plan.rows.len() as u64;
        let previous = match plan.keys.get(&key) {
            Some(current) => current.as_ref().map(|(version, _)| *version),
            None => self.state.read().index.latest(&key).map(|(_, version)| version),
        };
        let modified = previous.map_or(0, |version| version.revision);
        let holds = match expect {
            Expect::Any => true,
            Expect::Absent => previous.is_none(),
            Expect::Revision(revision) => modified == revision,
        };
        if !holds || (write.is_none() && previous.is_none()) {
            let current = match plan.keys.get(&key) {
                Some(current) => current.clone(),
                None => self.current(&key)?,
            };
            let current = current.map(|(version, value)| KeyValue {
                key,
                value,
                create_revision: version.create,
                mod_revision: version.revision,
            });
            return Ok(Reply::Outcome(Outcome::Conflict { current, revision: now }));
        }
        let needed = if write.is_some() { self.min_free } else { self.min_free / 4 };
        if free < needed {
            let text = format!("{}: {} MiB are left on the file system", self.dir.display(), free >> 20);
            return Err(Error::NoSpace(text));
        }
        let revision = now + 1;
        let expires = write.as_ref().and_then(|(_, e)| *e);
        let (create, value) = match write {
            Some((value, _)) => (previous.map_or(revision, |version| version.create), value),
            None => (0, Bytes::new()),
        };
        let version = Version { revision, create };
        let row = Row {
            version,
            previous: modified,
            expires: expires.map_or(0, |e| e.unix_millis),
            key: key.clone(),
        };
        if let Some(deadline) = expires {
            plan.expiring.push((revision, key.clone(), deadline));
        }
        if create == 0 {
            plan.keys.insert(key.clone(), None);
            plan.events.push(Event::Delete { key, revision });
        } else {
            plan.keys.insert(key.clone(), Some((version, value.clone())));
            let kv = KeyValue { key, value: value.clone(), create_revision: create, mod_revision: revision };
            plan.events.push(Event::Put(kv));
        }
        plan.rows.push((row, value));
        Ok(Reply::Outcome(Outcome::Done { revision }))
    }

    /// What a key holds, from memory or disk.
    fn current(&self, key: &Bytes) -> Result<Current, Error> {
        let state = self.state.read();
        let Some((key, version)) = state.index.latest(key) else { return Ok(None) };
        if let Some(kv) = state.ring.value(version.revision) {
            return Ok(Some((version, kv.value)));
        }
        let snapshot = self.storage.snapshot()?;
        drop(state);
        Ok(Some((version, self.load(&snapshot, key, version)?.value)))
    }

    /// Bytes that are left on the file system; everything where it does not say.
    pub(super) fn free_space(&self) -> u64 {
        nix::sys::statvfs::statvfs(&self.dir)
            .map(|s| s.blocks_available() * s.fragment_size())
            .unwrap_or(u64::MAX)
    }
}
