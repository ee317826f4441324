//! Watches. A watch is only a position in the sequence of revisions: it reads on from the recent events or, where
//! those no longer reach back, from disk. A slow reader costs nothing.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use tokio::sync::watch;

use super::{Inner, Progress, closed};
use crate::{Error, Event, WatchStream};

/// How many revisions one batch looks at.
const BATCH: usize = 1000;
/// How many bytes of values one batch reads from disk.
const BATCH_BYTES: usize = 4 << 20;

struct Feed {
    inner: Arc<Inner>,
    prefix: Bytes,
    next: u64,
    progress: watch::Receiver<Progress>,
}

/// See [`Store::watch`](crate::Store::watch). 0 means from the next write on.
pub(super) fn watch(inner: Arc<Inner>, prefix: Bytes, from: u64) -> WatchStream {
    let progress = inner.progress.subscribe();
    let next = if from == 0 { progress.borrow().revision + 1 } else { from };
    let feed = Feed { inner, prefix, next, progress };
    Box::pin(stream::unfold(Some(feed), |feed| async {
        let mut feed = feed?;
        match feed.batch().await {
            Ok(events) => Some((Ok(events), Some(feed))),
            Err(e) => Some((Err(e), None)),
        }
    }))
}

impl Feed {
    /// The next events, waiting for them.
    async fn batch(&mut self) -> Result<Vec<Event>, Error> {
        loop {
            let Progress { revision, closed: is_closed } = *self.progress.borrow_and_update();
            if is_closed {
                return Err(closed());
            }
            if self.next > revision {
                self.progress.changed().await.map_err(|_| closed())?;
                continue;
            }
            let (events, next) = match self.recent()? {
                Some(read) => read,
                None => {
                    let (inner, prefix, from) = (self.inner.clone(), self.prefix.clone(), self.next);
                    tokio::task::spawn_blocking(move || history(&inner, &prefix, from))
                        .await
                        .map_err(|e| Error::Broken(format!("read failed: {e}")))??
                }
            };
            self.next = next;
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    fn recent(&self) -> Result<Option<(Vec<Event>, u64)>, Error> {
        let state = self.inner.state.read();
        let oldest = state.index.compacted();
        if self.next < oldest {
            return Err(Error::Compacted { oldest });
        }
        Ok(state.ring.read(self.next, &self.prefix, BATCH))
    }
}

/// Reads events from disk, from revision `from` to at most where the recent events begin.
fn history(inner: &Inner, prefix: &Bytes, from: u64) -> Result<(Vec<Event>, u64), Error> {
    let state = inner.state.read();
    let oldest = state.index.compacted();
    if from < oldest {
        return Err(Error::Compacted { oldest });
    }
    let to = state.ring.first().min(from + BATCH as u64);
    // Taken while compaction cannot move on: from here on nothing in `from..to` can go away.
    let snapshot = inner.storage.snapshot()?;
    drop(state);

    let (mut events, mut bytes) = (Vec::new(), 0);
    for row in snapshot.rows(from, to)? {
        if !row.key.starts_with(prefix) {
            continue;
        }
        let revision = row.version.revision;
        if row.version.create == 0 {
            events.push(Event::Delete { key: row.key, revision });
        } else {
            let kv = inner.load(&snapshot, row.key, row.version)?;
            bytes += kv.value.len();
            events.push(Event::Put(kv));
        }
        if bytes > BATCH_BYTES {
            return Ok((events, revision + 1));
        }
    }
    Ok((events, to))
}
