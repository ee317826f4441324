use std::collections::HashSet;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use redb::backends::FileBackend;
use redb::{BackendError, Database, StorageBackend};

use super::*;
use crate::Event;

fn key(i: usize) -> Bytes {
    format!("/registry/things/{i:05}").into()
}

async fn put(store: &EmbeddedStore, key: impl Into<Bytes>, value: impl Into<Bytes>) -> u64 {
    match store.put(key.into(), value.into(), Expect::Any, None).await.unwrap() {
        Outcome::Done { revision } => revision,
        conflict => panic!("{conflict:?}"),
    }
}

fn error<T>(result: Result<T, Error>) -> String {
    result.err().expect("an error").to_string()
}

/// A file on a disk that fills up, or breaks, when told so. As on a real one, what is already there can be written
/// over on a full disk.
#[derive(Debug)]
struct Faulty {
    file: FileBackend,
    blocks: Arc<Mutex<HashSet<u64>>>,
    full: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
}

impl Faulty {
    fn take_space(&self, offset: u64, len: usize) -> io::Result<()> {
        let mut blocks = self.blocks.lock();
        for block in offset / 4096..(offset + len as u64).div_ceil(4096) {
            if !blocks.contains(&block) && self.full.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            blocks.insert(block);
        }
        Ok(())
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is on fire"));
        }
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.take_space(offset, data.len())?;
        self.file.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

struct FaultyIo {
    full: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
}

impl log::Io for FaultyIo {
    fn write(&self, file: &std::fs::File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            // As much as there is room for.
            log::RealIo.write(file, &bytes[..bytes.len() / 2], offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        log::RealIo.write(file, bytes, offset)
    }
    fn sync(&self, file: &std::fs::File) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is on fire"));
        }
        log::RealIo.sync(file)
    }
}

#[derive(Default)]
struct Fault {
    log_full: Arc<AtomicBool>,
    log_broken: Arc<AtomicBool>,
    database_full: Arc<AtomicBool>,
}

fn open_faulty(dir: &Path) -> (Arc<EmbeddedStore>, Fault) {
    let fault = Fault::default();
    let (full, broken) = (fault.database_full.clone(), Arc::default());
    let blocks = Arc::<Mutex<HashSet<u64>>>::default();
    let opener: disk::Opener = Box::new(move |path| {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
        let file = Faulty {
            file: FileBackend::new(file)?,
            blocks: blocks.clone(),
            full: full.clone(),
            broken: Arc::clone(&broken),
        };
        Database::builder().set_cache_size(1 << 20).create_with_backend(file)
    });
    let io = FaultyIo { full: fault.log_full.clone(), broken: fault.log_broken.clone() };
    (EmbeddedStore::open_through(dir, Options::default(), opener, Box::new(io)).unwrap(), fault)
}

/// Lets go of a store without closing it, and returns when what it has under way is done.
async fn dropped(store: Arc<EmbeddedStore>) {
    // The sender goes after the files.
    let mut progress = store.inner.progress.subscribe();
    drop(store);
    while progress.changed().await.is_ok() {}
}

#[tokio::test]
async fn a_database_without_room_catches_up_later() {
    let dir = tempfile::tempdir().unwrap();
    let (store, fault) = open_faulty(dir.path());
    put(&store, "first", "1").await;
    fault.database_full.store(true, Ordering::SeqCst);
    // More than a log file holds before it goes into the database.
    for i in 0..12 {
        put(&store, key(i), vec![b'x'; 1 << 20]).await;
    }
    assert!(store.inner.storage.checkpoint().is_err());
    for i in 0..12 {
        assert_eq!(store.get(&key(i)).await.unwrap().0.unwrap().value.len(), 1 << 20);
    }
    fault.database_full.store(false, Ordering::SeqCst);
    store.inner.storage.checkpoint().unwrap();
    put(&store, key(3), "last").await;
    dropped(store).await;
    let (store, _) = open_faulty(dir.path());
    assert_eq!(&store.get(&key(3)).await.unwrap().0.unwrap().value[..], b"last");
    assert_eq!(store.get(&key(11)).await.unwrap().0.unwrap().value.len(), 1 << 20);
}

#[tokio::test]
async fn a_full_disk_stops_writes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (store, fault) = open_faulty(dir.path());
    let first = put(&store, "a", "1").await;
    fault.log_full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let result = store.put("a".into(), vec![b'x'; MAX_VALUE].into(), Expect::Any, None).await;
        assert!(matches!(result, Err(Error::NoSpace(_))), "{result:?}");
        let (kv, revision) = store.get(b"a").await.unwrap();
        assert_eq!((&kv.unwrap().value[..], revision), (&b"1"[..], first));
    }
    fault.log_full.store(false, Ordering::SeqCst);
    assert_eq!(put(&store, "a", "2").await, first + 1);
    store.close().await;
    let store = EmbeddedStore::open(dir.path()).unwrap();
    assert_eq!(&store.get(b"a").await.unwrap().0.unwrap().value[..], b"2");
}

#[tokio::test]
async fn a_disk_that_fails_to_sync_ends_writing_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let (store, fault) = open_faulty(dir.path());
    put(&store, "a", "1").await;
    fault.log_broken.store(true, Ordering::SeqCst);
    let text = error(store.put("a".into(), "2".into(), Expect::Any, None).await);
    assert!(text.contains("the disk is on fire"), "{text}");
    fault.log_broken.store(false, Ordering::SeqCst);
    assert!(matches!(store.put("a".into(), "3".into(), Expect::Any, None).await, Err(Error::Broken(_))));
    assert!(store.health().await[0].1.is_err());
}

#[tokio::test]
async fn little_room_stops_puts_before_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    put(&store, "a", "1").await;
    store.close().await;
    let options = Options { min_free: 1 << 60, ..Options::default() };
    let store = EmbeddedStore::open_with(dir.path(), options).unwrap();
    let text = error(store.put("a".into(), "2".into(), Expect::Any, None).await);
    assert!(text.contains("MiB are left"), "{text}");
    assert!(store.get(b"a").await.unwrap().0.is_some());
}

#[tokio::test]
async fn a_second_process_and_damaged_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    for i in 0..50 {
        put(&store, key(i), vec![b'x'; 3000]).await;
    }
    let text = error(EmbeddedStore::open(dir.path()));
    assert!(text.ends_with("is in use by another process"), "{text}");
    store.close().await;
    dropped(store).await;
    let file = dir.path().join("store.redb");
    let good = std::fs::read(&file).unwrap();
    type Damage = Box<dyn Fn(&mut Vec<u8>)>;
    let damage: [(&str, Damage); 3] = [
        ("no database", Box::new(|b| b[..9].copy_from_slice(b"#!/bin/sh"))),
        ("cut short", Box::new(|b| b.truncate(b.len() / 3))),
        ("zeroes", Box::new(|b| b[64..].fill(0))),
    ];
    for (name, damage) in damage {
        let mut bytes = good.clone();
        damage(&mut bytes);
        std::fs::write(&file, bytes).unwrap();
        let result = EmbeddedStore::open(dir.path());
        assert!(matches!(result, Err(Error::Broken(_))), "{name}");
        let text = error(result);
        assert!(text.contains("store.redb"), "{name}: {text}");
    }
    std::fs::write(&file, good).unwrap();
    assert!(EmbeddedStore::open(dir.path()).unwrap().get(&key(49)).await.unwrap().0.is_some());
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    for i in 0..20 {
        put(&store, key(i % 5), format!("v{i}")).await;
    }
    store.delete(key(4), Expect::Any).await.unwrap();
    store.compact(10).await.unwrap();
    let everything = || Range { start: "/".into(), end: "0".into(), ..Range::default() };
    let before = store.range(everything()).await.unwrap();
    store.close().await;
    assert!(matches!(store.get(b"a").await, Err(Error::Unavailable(_))));
    assert!(matches!(store.put("a".into(), "b".into(), Expect::Any, None).await, Err(Error::Unavailable(_))));
    dropped(store).await;
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let after = store.range(everything()).await.unwrap();
    assert_eq!((before.kvs, before.revision), (after.kvs, after.revision));
    let old = store.range(Range { revision: 12, ..everything() }).await.unwrap();
    assert_eq!(old.kvs.iter().map(|kv| kv.mod_revision).collect::<Vec<_>>(), [12, 8, 9, 10, 11]);
    let result = store.range(Range { revision: 9, ..everything() }).await;
    assert!(matches!(result, Err(Error::Compacted { oldest: 10 })), "{result:?}");
    assert_eq!(put(&store, "n", "").await, 23);
    // A deletion that is the newest change must not let its revision be used again.
    store.delete("n".into(), Expect::Any).await.unwrap();
    store.compact(24).await.unwrap();
    store.close().await;
    let store = EmbeddedStore::open(dir.path()).unwrap();
    assert_eq!(store.revision().await.unwrap(), 24);
}

#[tokio::test]
async fn a_watch_passes_from_disk_to_memory_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { recent: 4000, ..Options::default() };
    let store = EmbeddedStore::open_with(dir.path(), options).unwrap();
    for i in 0..2500 {
        put(&store, key(i % 7), format!("{i}")).await;
    }
    let mut watch = store.watch(Bytes::new(), 2).await.unwrap();
    let mut next = 2;
    while next < 2600 {
        if next > 2000 && store.revision().await.unwrap() < 2601 {
            for i in 0..100 {
                put(&store, key(i % 7), "late").await;
            }
        }
        for event in watch.next().await.unwrap().unwrap() {
            assert_eq!(event.revision(), next);
            assert!(matches!(event, Event::Put(_)), "{event:?}");
            next += 1;
        }
    }
}

#[tokio::test]
async fn time_to_live_goes_on_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    store.put("a".into(), "1".into(), Expect::Any, Some(Duration::from_millis(700))).await.unwrap();
    store.put("b".into(), "1".into(), Expect::Any, Some(Duration::from_secs(3600))).await.unwrap();
    let renewed = Some(Duration::from_millis(100));
    store.put("c".into(), "1".into(), Expect::Any, renewed).await.unwrap();
    let from = put(&store, "c", "2").await + 1;
    store.close().await;
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let mut watch = store.watch(Bytes::new(), from).await.unwrap();
    let events = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(&events[..], [Event::Delete { key, .. }] if key == "a"), "{events:?}");
    assert!(store.get(b"b").await.unwrap().0.is_some());
    assert_eq!(&store.get(b"c").await.unwrap().0.unwrap().value[..], b"2");
}
