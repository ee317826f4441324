//! Where objects are kept: the [`Store`] trait and its two implementations.
//!
//! The contract is etcd's (<https://etcd.io/docs/v3.4/learning/api/>): one key space, one counter of revisions that
//! every write moves on by one, compare-and-swap on a key's last revision, history until it is compacted, and a watch
//! over the whole key space that delivers every revision once and in order. Both implementations pass one suite.

pub mod embedded;
pub mod etcd;
pub mod snapshot;

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

/// One key with its value at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Full key, such as `/registry/pods/default/web-0`.
    pub key: Bytes,
    /// What was stored.
    pub value: Bytes,
    /// Revision at which the key last came into being.
    pub create_revision: u64,
    /// Revision of the last write.
    pub mod_revision: u64,
}

/// What must hold of a key for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key does not exist.
    Absent,
    /// The key exists and was last written at this revision.
    Revision(u64),
}

/// How a conditional write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done and durable.
    Done {
        /// The write's revision.
        revision: u64,
    },
    /// [`Expect`] did not hold; nothing was written. What the key holds now, and the store's revision.
    Conflict {
        /// What the key holds now.
        current: Option<KeyValue>,
        /// The store's revision when that was read.
        revision: u64,
    },
}

/// What to read in [`Store::range`].
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// First key, included.
    pub start: Bytes,
    /// First key not included; see [`prefix_end`].
    pub end: Bytes,
    /// At most so many; 0 for all.
    pub limit: usize,
    /// At which revision; 0 for now.
    pub revision: u64,
    /// Only count.
    pub count_only: bool,
}

/// What [`Store::range`] read.
#[derive(Debug, Clone, Default)]
pub struct RangeResult {
    /// In key order.
    pub kvs: Vec<KeyValue>,
    /// Whether `limit` cut the answer.
    pub more: bool,
    /// How many keys the range holds, `limit` aside.
    pub count: usize,
    /// The store's revision when it was read.
    pub revision: u64,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was written. This is what it holds now; `mod_revision` is the event's revision.
    Put(KeyValue),
    /// The key was deleted, by a client or because its time to live ran out.
    Delete {
        /// The key.
        key: Bytes,
        /// The revision of the deletion.
        revision: u64,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &Bytes {
        match self {
            Event::Put(kv) => &kv.key,
            Event::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> u64 {
        match self {
            Event::Put(kv) => kv.mod_revision,
            Event::Delete { revision, .. } => *revision,
        }
    }
}

/// Why the store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The revision asked for is no longer, or a watch fell behind the history that is kept.
    #[error("required revision has been compacted; oldest is {oldest}")]
    Compacted {
        /// The oldest revision that can still be read.
        oldest: u64,
    },
    /// The revision asked for has not happened yet.
    #[error("required revision is a future revision; newest is {newest}")]
    Future {
        /// The store's revision.
        newest: u64,
    },
    /// Key or value are over the store's limit.
    #[error("request is too large")]
    TooLarge,
    /// The disk or quota is full; reads still work.
    #[error("no space: {0}")]
    NoSpace(String),
    /// The store cannot be reached or has no quorum. A write may or may not have happened.
    #[error("store is unavailable: {0}")]
    Unavailable(String),
    /// The store's files are damaged or another process holds them.
    #[error("{0}")]
    Broken(String),
}

/// The events of consecutive revisions, oldest first. A revision is never split over two batches.
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<Vec<Event>, Error>> + Send>>;

/// A store. All methods may be called concurrently; a write that returned `Done` survives any crash.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one key, linearizably. Also gives the store's revision.
    async fn get(&self, key: &[u8]) -> Result<(Option<KeyValue>, u64), Error>;

    /// Reads a range of keys; linearizable where `revision` is 0.
    async fn range(&self, range: Range) -> Result<RangeResult, Error>;

    /// Writes a key if `expect` holds. With `ttl`, the key deletes itself after that time.
    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Outcome, Error>;

    /// Deletes a key if `expect` holds. Deleting a key that is absent with [`Expect::Any`] is `Conflict` with no
    /// current value.
    async fn delete(&self, key: Bytes, expect: Expect) -> Result<Outcome, Error>;

    /// The store's revision, linearizably: at least that of every write that returned before the call.
    async fn revision(&self) -> Result<u64, Error>;

    /// All changes of keys under `prefix` from revision `from` (included) on, without a gap. Ends with
    /// [`Error::Compacted`] where history no longer reaches back, and with [`Error::Unavailable`] when the
    /// connection is lost: the caller watches again from where it was.
    async fn watch(&self, prefix: Bytes, from: u64) -> Result<WatchStream, Error>;

    /// Forgets history before `revision`.
    async fn compact(&self, revision: u64) -> Result<(), Error>;

    /// Whether the store answers; for health checks, with the endpoints' names. One entry per endpoint.
    async fn health(&self) -> Vec<(String, Result<(), Error>)>;

    /// Whether a value would be written otherwise than it is stored: with another key of encryption. Such a value is
    /// written again even where nothing in it changes.
    fn is_stale(&self, _key: &[u8]) -> bool {
        false
    }
}

/// The end of the range of all keys that begin with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    // An empty end means "to the last key" in etcd's terms: a single zero byte.
    if end.is_empty() { Bytes::from_static(b"\0") } else { Bytes::from(end) }
}
