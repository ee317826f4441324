//! Writes: a queue, and whoever is at work on it. All writes that wait become one transaction.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::disk::{Batch, Row};
use super::expiry::Deadline;
use super::index::Version;
use super::{Inner, Progress, closed};
use crate::{Error, Event, Expect, KeyValue, Outcome};

/// How many writes and how many bytes of values go into one transaction.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 16 << 20;
/// How many compacted revisions one transaction deletes.
const GARBAGE: usize = 1000;

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

/// Writes that wait, and what compaction left to delete.
pub(super) struct Queue {
    waiting: VecDeque<Request>,
    garbage: Vec<u64>,
    busy: bool,
    closed: bool,
    idle: Option<oneshot::Sender<()>>,
}

impl Queue {
    /// An empty queue; `garbage` is what an earlier process left to delete.
    pub(super) fn new(garbage: Vec<u64>) -> Self {
        Queue { waiting: VecDeque::new(), garbage, busy: false, closed: false, idle: None }
    }

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

    /// The next batch and garbage to delete with it; `None` ends the work.
    fn next(&mut self) -> Option<(Vec<Request>, Vec<u64>)> {
        let (mut n, mut bytes) = (0, 0);
        while n < self.waiting.len().min(BATCH) && bytes < BATCH_BYTES {
            if let Change::Put { value, .. } = &self.waiting[n].change {
                bytes += value.len();
            }
            n += 1;
        }
        // What is left to delete is found again at the next start.
        if n == 0 && (self.garbage.is_empty() || self.closed) {
            self.busy = false;
            if let Some(idle) = self.idle.take() {
                let _ = idle.send(());
            }
            return None;
        }
        let keep = self.garbage.len().saturating_sub(GARBAGE);
        Some((self.waiting.drain(..n).collect(), self.garbage.split_off(keep)))
    }
}

/// What a key holds in the course of a batch.
type Current = Option<(Version, Bytes)>;

/// A batch under construction: decided, not yet durable.
#[derive(Default)]
struct Plan {
    batch: Batch,
    events: Vec<Event>,
    expiring: Vec<(u64, Bytes, Deadline)>,
    /// What the batch has made of keys so far.
    keys: HashMap<Bytes, Current>,
}

impl Inner {
    /// Works until the queue is empty. Blocks.
    pub(super) fn drain(&self) {
        loop {
            let Some((requests, garbage)) = self.queue.lock().next() else { return };
            if let Err(garbage) = self.process(requests, garbage) {
                // No room even to delete: wait for the next write to try again.
                let mut queue = self.queue.lock();
                queue.garbage.extend(garbage);
                if queue.waiting.is_empty() {
                    queue.busy = false;
                    if let Some(idle) = queue.idle.take() {
                        let _ = idle.send(());
                    }
                    return;
                }
            }
        }
    }

    /// Decides, writes and answers one batch. Gives `garbage` back where it could not be deleted.
    fn process(&self, requests: Vec<Request>, garbage: Vec<u64>) -> Result<(), Vec<u64>> {
        let base = self.state.read().index.revision();
        let free = self.free_space();
        let mut plan = Plan::default();
        let mut answers = Vec::with_capacity(requests.len());
        let mut compactions = Vec::new();
        for Request { change, reply } in requests {
            if reply.is_closed() {
                continue;
            }
            match change {
                Change::Compact { revision } => compactions.push((revision, reply)),
                change => answers.push((self.decide(&mut plan, base, free, change), reply)),
            }
        }
        let compacted = {
            let mut compacted = None;
            let mut state = self.state.write();
            for (revision, reply) in compactions {
                let (oldest, newest) = (state.index.compacted(), base);
                let result = if revision <= oldest {
                    Err(Error::Compacted { oldest })
                } else if revision > newest {
                    Err(Error::Future { newest })
                } else {
                    self.queue.lock().garbage.extend(state.index.compact(revision));
                    compacted = Some(revision);
                    Ok(Reply::Compacted)
                };
                answers.push((result, reply));
            }
            compacted
        };
        plan.batch.compacted = compacted;
        plan.batch.garbage = garbage;
        let idle = plan.batch.rows.is_empty() && plan.batch.garbage.is_empty() && compacted.is_none();
        let written = if idle { Ok(()) } else { self.disk.commit(&plan.batch) };
        if written.is_ok() {
            self.publish(plan.events, &plan.batch, plan.expiring);
        }
        for (answer, reply) in answers {
            let _ = reply.send(written.clone().and(answer));
        }
        if written.is_ok() { Ok(()) } else { Err(plan.batch.garbage) }
    }

    /// Makes a durable batch visible to reads and watches.
    fn publish(&self, events: Vec<Event>, batch: &Batch, expiring: Vec<(u64, Bytes, Deadline)>) {
        if batch.rows.is_empty() {
            return;
        }
        let revision = {
            let mut state = self.state.write();
            for (row, _) in &batch.rows {
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
        let now = base + plan.batch.rows.len() as u64;
        let current = match plan.keys.get(&key) {
            Some(current) => current.clone(),
            None => self.current(&key)?,
        };
        let kv = |(version, value): &(Version, Bytes)| KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: version.create,
            mod_revision: version.revision,
        };
        let previous = current.as_ref().map(kv);
        let modified = previous.as_ref().map_or(0, |kv| kv.mod_revision);
        let holds = match expect {
            Expect::Any => true,
            Expect::Absent => previous.is_none(),
            Expect::Revision(revision) => modified == revision,
        };
        if !holds || (write.is_none() && previous.is_none()) {
            return Ok(Reply::Outcome(Outcome::Conflict { current: previous, revision: now }));
        }
        let needed = if write.is_some() { self.min_free } else { self.min_free / 4 };
        if free < needed {
            let text = format!("{}: {} MiB are left on the file system", self.dir.display(), free >> 20);
            return Err(Error::NoSpace(text));
        }
        let revision = now + 1;
        let expires = write.as_ref().and_then(|(_, e)| *e);
        let (create, value) = match write {
            Some((value, _)) => (previous.as_ref().map_or(revision, |kv| kv.create_revision), value),
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
            plan.events.push(Event::Delete { key, revision, previous: previous.clone() });
        } else {
            plan.keys.insert(key.clone(), Some((version, value.clone())));
            let kv = KeyValue { key, value: value.clone(), create_revision: create, mod_revision: revision };
            plan.events.push(Event::Put { kv, previous: previous.clone() });
        }
        plan.batch.rows.push((row, value));
        Ok(Reply::Outcome(Outcome::Done { revision, previous }))
    }

    /// What a key holds, from memory or disk.
    fn current(&self, key: &Bytes) -> Result<Current, Error> {
        let state = self.state.read();
        let Some((key, version)) = state.index.latest(key) else { return Ok(None) };
        if let Some(kv) = state.ring.value(version.revision) {
            return Ok(Some((version, kv.value)));
        }
        let snapshot = self.disk.snapshot()?;
        drop(state);
        Ok(Some((version, self.load(&snapshot, key, version)?.value)))
    }

    /// Bytes that are left on the file system; everything where it does not say.
    fn free_space(&self) -> u64 {
        nix::sys::statvfs::statvfs(&self.dir)
            .map(|s| s.blocks_available() * s.fragment_size())
            .unwrap_or(u64::MAX)
    }
}
