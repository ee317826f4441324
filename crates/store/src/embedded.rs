//! The store of a single machine: a log, and a database written by [redb](https://docs.rs/redb).
//!
//! The design is etcd's. A write is durable once it is in the log, one append and one sync for all writes that wait at
//! the same moment; each is acknowledged after it, and reads see only what is durable. Every few MiB the log goes into
//! the database, a table from revision to change. An index from key to revisions is rebuilt in memory at the start.
//! Values stay on disk (in redb's page cache) and are not kept twice: the API server's watch cache has them already.
//! The last few MiB of events are kept in memory for watches.

mod copy;
mod disk;
mod expiry;
mod feed;
mod index;
mod log;
mod ring;
mod storage;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

pub use self::copy::Copied;
use self::expiry::Expiry;
use self::index::{Index, Version};
use self::ring::Ring;
use self::storage::{Snapshot, Storage};
use self::writer::{Change, Queue, Reply, Request};
use crate::{Error, Expect, KeyValue, Outcome, Range, RangeResult, Store, WatchStream};

/// The largest value, in bytes: Kubernetes' limit of 3 MiB for a request body, and room for what the server adds.
pub const MAX_VALUE: usize = (3 << 20) + (1 << 19);
/// Ranges that return more than this are read on a thread where blocking is allowed.
const INLINE_READS: usize = 100;

/// What can be chosen in [`EmbeddedStore::open_with`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Puts are refused with [`Error::NoSpace`] while the file system has less room than this, in bytes, so that
    /// deletions and compaction still have what they need to make room.
    pub min_free: u64,
    /// How many bytes of recent events are kept in memory for watches.
    pub recent: usize,
    /// How many bytes of the file are kept in memory.
    pub cache: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { min_free: 32 << 20, recent: 8 << 20, cache: 24 << 20 }
    }
}

/// See the module. Made by [`EmbeddedStore::open`].
pub struct EmbeddedStore {
    inner: Arc<Inner>,
}

/// How far the store is; watched by every reader of the stream of events.
#[derive(Debug, Clone, Copy)]
struct Progress {
    revision: u64,
    closed: bool,
}

struct State {
    index: Index,
    ring: Ring,
}

struct Inner {
    dir: PathBuf,
    min_free: u64,
    storage: Storage,
    state: RwLock<State>,
    progress: watch::Sender<Progress>,
    queue: Mutex<Queue>,
    expiry: Arc<Expiry>,
}

impl EmbeddedStore {
    /// Opens the store in `dir`, which is made where it does not exist. Needs a tokio runtime.
    ///
    /// Fails with [`Error::Broken`] where another process has the store open or the file is damaged.
    pub fn open(dir: &Path) -> Result<Arc<Self>, Error> {
        Self::open_with(dir, Options::default())
    }

    /// As [`EmbeddedStore::open`], with options.
    pub fn open_with(dir: &Path, options: Options) -> Result<Arc<Self>, Error> {
        let cache = options.cache;
        Self::open_through(dir, options, disk::file_opener(cache), Box::new(log::RealIo))
    }

    fn open_through(
        dir: &Path,
        options: Options,
        opener: disk::Opener,
        io: Box<dyn log::Io>,
    ) -> Result<Arc<Self>, Error> {
        let (storage, opened) = Storage::open(dir, opener, io)?;
        let revision = opened.index.revision();
        let inner = Arc::new(Inner {
            dir: dir.to_path_buf(),
            min_free: options.min_free,
            storage,
            state: RwLock::new(State { index: opened.index, ring: Ring::new(revision + 1, options.recent) }),
            progress: watch::channel(Progress { revision, closed: false }).0,
            queue: Mutex::new(Queue::default()),
            expiry: Arc::new(Expiry::new(opened.expiring, unix_millis())),
        });
        expiry::run(&inner);
        Ok(Arc::new(EmbeddedStore { inner }))
    }

    /// Waits for the writes that are under way and closes the file, so that it can be opened again. Everything that is
    /// asked of the store afterwards fails with [`Error::Unavailable`], and watches end with it.
    pub async fn close(&self) {
        let idle = self.inner.queue.lock().close();
        if let Some(idle) = idle {
            let _ = idle.await;
        }
        self.inner.expiry.stop();
        let inner = self.inner.clone();
        let _ = tokio::task::spawn_blocking(move || inner.storage.close()).await;
        self.inner.progress.send_modify(|p| p.closed = true);
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Ends when the store has been closed or is gone altogether.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + use<> {
        let mut progress = self.inner.progress.subscribe();
        async move {
            let _ = progress.wait_for(|p| p.closed).await;
        }
    }

    async fn submit(&self, change: Change) -> Result<Reply, Error> {
        let (reply, answer) = oneshot::channel();
        self.inner.push(Request { change, reply })?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    async fn write(&self, change: Change) -> Result<Outcome, Error> {
        match self.submit(change).await? {
            Reply::Outcome(outcome) => Ok(outcome),
            Reply::Compacted => Err(Error::Broken("a write was answered as a compaction".into())),
        }
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.inner.expiry.stop();
    }
}

impl Inner {
    /// Queues a write and sees to it that somebody is at work on the queue.
    fn push(self: &Arc<Self>, request: Request) -> Result<(), Error> {
        if self.queue.lock().push(request)? {
            let inner = self.clone();
            tokio::task::spawn_blocking(move || inner.drain());
        }
        Ok(())
    }

    /// Reads the value that goes with a version.
    fn load(&self, snapshot: &Snapshot<'_>, key: Bytes, version: Version) -> Result<KeyValue, Error> {
        self.with_value(key, version, snapshot.value(version.revision)?)
    }

    fn with_value(&self, key: Bytes, version: Version, value: Option<Bytes>) -> Result<KeyValue, Error> {
        let Version { revision, create } = version;
        let missing = || format!("{}: the value of revision {revision} is missing", self.dir.display());
        let value = value.ok_or_else(|| Error::Broken(missing()))?;
        Ok(KeyValue { key, value, create_revision: create, mod_revision: revision })
    }

    fn read_range(&self, range: &Range) -> Result<RangeResult, Error> {
        let state = self.state.read();
        let revision = state.index.revision();
        let at = if range.revision == 0 { revision } else { range.revision };
        if at > revision {
            return Err(Error::Future { newest: revision });
        }
        if at < state.index.compacted() {
            return Err(Error::Compacted { oldest: state.index.compacted() });
        }
        let (found, count) = state.index.range(
            &range.start,
            &range.end,
            at,
            if range.count_only { Some(0) } else { limit(range) },
        );
        if found.is_empty() {
            return Ok(RangeResult { kvs: Vec::new(), more: false, count, revision });
        }
        // The snapshot is taken while the index cannot move on, so that compaction cannot take the values away.
        let snapshot = self.storage.snapshot()?;
        drop(state);
        let mut values = snapshot.values(found.iter().map(|(_, version)| version.revision))?;
        let with_value = |(key, version): (Bytes, Version)| {
            self.with_value(key, version, values.remove(&version.revision))
        };
        let kvs: Vec<KeyValue> = found.into_iter().map(with_value).collect::<Result<_, _>>()?;
        Ok(RangeResult { more: kvs.len() < count, kvs, count, revision })
    }
}

fn limit(range: &Range) -> Option<usize> {
    (range.limit > 0).then_some(range.limit)
}

fn closed() -> Error {
    Error::Unavailable("the store is closed".into())
}

/// Milliseconds since 1970: times to live are counted in these on disk, so that they go on over a restart.
fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_millis() as u64).unwrap_or(0)
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &[u8]) -> Result<(Option<KeyValue>, u64), Error> {
        let state = self.inner.state.read();
        let revision = state.index.revision();
        let Some((key, version)) = state.index.latest(key) else {
            self.inner.storage.check_open()?;
            return Ok((None, revision));
        };
        if let Some(kv) = state.ring.value(version.revision) {
            return Ok((Some(kv), revision));
        }
        let snapshot = self.inner.storage.snapshot()?;
        drop(state);
        Ok((Some(self.inner.load(&snapshot, key, version)?), revision))
    }

    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        self.inner.storage.check_open()?;
        if range.count_only || (range.limit > 0 && range.limit <= INLINE_READS) {
            return self.inner.read_range(&range);
        }
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.read_range(&range))
            .await
            .unwrap_or_else(|e| Err(Error::Broken(format!("read failed: {e}"))))
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Outcome, Error> {
        if key.is_empty() {
            return Err(Error::Broken("key is not provided".into()));
        }
        if value.len() > MAX_VALUE {
            return Err(Error::TooLarge);
        }
        let expires = ttl.map(|t| expiry::Deadline::after(t, unix_millis()));
        self.write(Change::Put { key, value, expect, expires }).await
    }

    async fn delete(&self, key: Bytes, expect: Expect) -> Result<Outcome, Error> {
        self.write(Change::Delete { key, expect }).await
    }

    async fn revision(&self) -> Result<u64, Error> {
        self.inner.storage.check_open()?;
        Ok(self.inner.progress.borrow().revision)
    }

    async fn watch(&self, prefix: Bytes, from: u64) -> Result<WatchStream, Error> {
        self.inner.storage.check_open()?;
        Ok(feed::watch(self.inner.clone(), prefix, from))
    }

    async fn compact(&self, revision: u64) -> Result<(), Error> {
        self.submit(Change::Compact { revision }).await.map(|_| ())
    }

    async fn health(&self) -> Vec<(String, Result<(), Error>)> {
        vec![("embedded".into(), self.inner.storage.health())]
    }
}

#[cfg(test)]
mod tests;
