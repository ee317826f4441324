//! A copy of the whole store as it is at one moment, history included, made while the store is in use.

use std::path::{Path, PathBuf};

use super::disk::{Batch, Disk, file_opener};
use super::{EmbeddedStore, Inner};
use crate::Error;

/// Bytes of the copy that are kept in memory.
const CACHE: usize = 4 << 20;

/// What [`EmbeddedStore::copy_to`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// The database file.
    pub file: PathBuf,
    /// The store's revision at that moment.
    pub revision: u64,
    /// How many keys there were.
    pub keys: usize,
}

impl EmbeddedStore {
    /// Makes a database file in the folder `to`, with everything that the store holds at this moment; a store that
    /// is opened there goes on at the same revision. Reads and writes go on meanwhile. Blocks.
    ///
    /// Fails with [`Error::NoSpace`] where there would not be room left for the store itself.
    pub fn copy_to(&self, to: &Path) -> Result<Copied, Error> {
        self.inner.copy_to(to)
    }
}

impl Inner {
    pub(super) fn copy_to(&self, to: &Path) -> Result<Copied, Error> {
        self.storage.check_open()?;
        // The snapshot is taken while the index cannot move on: both are of one revision.
        let state = self.state.read();
        let revision = state.index.revision();
        let compacted = state.index.compacted();
        let (_, keys) = state.index.range(&[0], &[0xff], revision, Some(0));
        let snapshot = self.storage.snapshot()?;
        drop(state);

        let (disk, _) = Disk::open(to, file_opener(CACHE))?;
        let mut from = 1;
        while from <= revision {
            let rows = snapshot.part(from, revision)?;
            let Some((last, _)) = rows.last() else { break };
            from = last.version.revision + 1;
            // Whoever closes the store waits for the snapshot to go.
            self.storage.check_open()?;
            let size: u64 = rows.iter().map(|(_, value)| value.len() as u64).sum();
            if self.free_space() < self.min_free + 4 * size {
                return Err(Error::NoSpace(format!("{}: no room for a copy", to.display())));
            }
            disk.commit(&Batch { rows, ..Batch::default() })?;
        }
        if compacted > 0 {
            disk.commit(&Batch { compacted: Some(compacted), ..Batch::default() })?;
        }
        disk.close();
        Ok(Copied { file: to.join(super::disk::FILE), revision, keys })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::{Expect, Range, Store};

    async fn put(store: &EmbeddedStore, key: &str, value: &str) {
        store.put(key.to_string().into(), value.to_string().into(), Expect::Any, None).await.unwrap();
    }

    fn everything(revision: u64) -> Range {
        Range { start: vec![0].into(), end: vec![0xff].into(), revision, ..Range::default() }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_copy_is_of_one_moment_while_writes_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&dir.path().join("store")).unwrap();
        for i in 0..300 {
            put(&store, &format!("k{}", i % 40), &format!("{i}").repeat(2000)).await;
        }
        store.delete("k7".into(), Expect::Any).await.unwrap();
        store.compact(200).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn({
            let (store, stop) = (store.clone(), stop.clone());
            async move {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    // In pairs: a copy has one more of `a` or as many.
                    put(&store, "a", &n.to_string()).await;
                    put(&store, "b", &n.to_string()).await;
                }
                n
            }
        });
        let mut copies = Vec::new();
        for i in 0..4 {
            let to = dir.path().join(format!("copy{i}"));
            let from = store.clone();
            copies.push(tokio::task::spawn_blocking(move || (from.copy_to(&to).unwrap(), to)).await.unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        assert!(writer.await.unwrap() > 0);
        for (copied, to) in copies {
            let copy = EmbeddedStore::open(&to).unwrap();
            assert_eq!(copy.revision().await.unwrap(), copied.revision);
            let got = copy.range(everything(0)).await.unwrap();
            assert_eq!(got.count, copied.keys);
            assert_eq!(got.kvs, store.range(everything(copied.revision)).await.unwrap().kvs);
            assert!(!got.kvs.iter().any(|kv| kv.key == "k7"));
            // Its history is there, too, as far as it is kept.
            let then = copy.range(everything(250)).await.unwrap().kvs;
            assert_eq!(then, store.range(everything(250)).await.unwrap().kvs);
            assert!(matches!(copy.range(everything(150)).await, Err(Error::Compacted { oldest: 200 })));
            put(&copy, "new", "x").await;
            assert_eq!(copy.revision().await.unwrap(), copied.revision + 1);
            copy.close().await;
        }
    }

    #[tokio::test]
    async fn an_empty_store_and_a_closed_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&dir.path().join("store")).unwrap();
        let to = dir.path().join("copy");
        let copied = store.copy_to(&to).unwrap();
        assert_eq!((copied.revision, copied.keys), (store.revision().await.unwrap(), 0));
        let copy = EmbeddedStore::open(&to).unwrap();
        assert_eq!(copy.revision().await.unwrap(), copied.revision);
        store.close().await;
        assert!(matches!(store.copy_to(&dir.path().join("other")), Err(Error::Unavailable(_))));
    }
}
