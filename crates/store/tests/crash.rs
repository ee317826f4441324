//! The embedded store under kill -9: another process writes and says what was acknowledged, is killed at a random
//! moment, and the store is opened again.
#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use pilothouse_store::embedded::EmbeddedStore;
use pilothouse_store::{Event, Expect, Outcome, Range, Store};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const DIR: &str = "PILOTHOUSE_TEST_CRASH_DIR";
const ROUND: &str = "PILOTHOUSE_TEST_CRASH_ROUND";
const WRITERS: usize = 12;
const KEYS: usize = 6;

/// A value that tells whether it is whole: its own name over and over, of a length that its name determines.
fn value(name: &str) -> Bytes {
    let n: usize = name.bytes().map(usize::from).sum();
    name.repeat(1 + n * 7 % 400).into()
}

/// The other process. Does nothing as an ordinary test.
#[test]
fn child() {
    let (Ok(dir), Ok(round)) = (std::env::var(DIR), std::env::var(ROUND)) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = EmbeddedStore::open(dir.as_ref()).unwrap();
        println!("\nopen {}", store.revision().await.unwrap());
        // What each writer has said last: history is compacted up to the oldest, so that what a writer did and could
        // not say any more is in the history, however long its thread was held up.
        let said: Arc<[AtomicU64; WRITERS]> = Arc::default();
        let writers = (0..WRITERS).map(|w| {
            let (store, round, said) = (store.clone(), round.clone(), said.clone());
            tokio::spawn(async move {
                for i in 0.. {
                    let key = format!("/w{w}/{}", i % KEYS);
                    let name = format!("{round}.{w}.{i};");
                    let result = if i % 5 == 4 {
                        store.delete(key.clone().into(), Expect::Any).await.unwrap()
                    } else {
                        store.put(key.clone().into(), value(&name), Expect::Any, None).await.unwrap()
                    };
                    if let Outcome::Done { revision } = result {
                        let what = if i % 5 == 4 { "-" } else { &name };
                        // One write, so that a kill leaves at most the last line unfinished.
                        let line = format!("ack {revision} {key} {what}\n");
                        std::io::stdout().write_all(line.as_bytes()).unwrap();
                        said[w].store(revision, Relaxed);
                        let oldest = said.iter().map(|s| s.load(Relaxed)).min().unwrap();
                        if revision % 97 == 0 && oldest > 0 {
                            let _ = store.compact(oldest).await;
                        }
                    }
                }
            })
        });
        futures::future::join_all(writers.collect::<Vec<_>>()).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_is_half_written() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| rand::rng().random::<u64>());
    let rounds = std::env::var("ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(8);
    println!("SEED={seed} ROUNDS={rounds}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    // Per key the last write that was acknowledged, or that was there after a start: its revision and value (none
    // where it was a deletion).
    let mut acknowledged = BTreeMap::<String, (u64, Option<Bytes>)>::new();
    // Per writer the revision of its last acknowledged write.
    let mut said = BTreeMap::<String, u64>::new();
    let mut used = BTreeSet::new();
    let mut last = 1;
    for round in 0..rounds {
        let patience = Duration::from_micros(random.random_range(0..400_000));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
        let opened = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|l| String::from_utf8(l).ok()?.strip_prefix("open ")?.parse::<u64>().ok());
        assert_eq!(opened, Some(last), "round {round}: revision after the start");
        let reader = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
        tokio::time::sleep(patience).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let mut newest = 0;
        for line in reader.join().unwrap() {
            let Ok(line) = String::from_utf8(line) else { continue };
            let mut words = line.split(' ');
            let (Some("ack"), Some(revision), Some(key), Some(what)) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                continue;
            };
            // The kernel wrote the line as a whole or its end is missing; names and deletions have an end.
            if what != "-" && !what.ends_with(';') {
                continue;
            }
            let revision = revision.parse().unwrap();
            assert!(used.insert(revision), "round {round}: revision {revision} was used twice");
            newest = newest.max(revision);
            said.insert(writer(key).to_string(), revision);
            let write = (revision, (what != "-").then(|| value(what)));
            let entry = acknowledged.entry(key.to_string()).or_insert_with(|| write.clone());
            if entry.0 < revision {
                *entry = write;
            }
        }
        let store = EmbeddedStore::open(dir.path()).unwrap();
        last = store.revision().await.unwrap();
        assert!(last >= newest, "round {round}: {newest} was acknowledged, the store is at {last}");
        check(&store, &mut acknowledged, &said, last).await;
        // What was written and not acknowledged used its revisions, too.
        used.extend(newest + 1..=last);
        store.close().await;
    }
    println!("{} revisions, {} keys", last, acknowledged.len());
    assert!(last > 100, "the writers were never at work");
}

/// `/w3` of `/w3/5`.
fn writer(key: &str) -> &str {
    &key[..key.rfind('/').unwrap()]
}

async fn check(
    store: &EmbeddedStore,
    acknowledged: &mut BTreeMap<String, (u64, Option<Bytes>)>,
    said: &BTreeMap<String, u64>,
    last: u64,
) {
    let everything = Range { start: "/".into(), end: "0".into(), ..Range::default() };
    let now: BTreeMap<_, _> =
        store.range(everything).await.unwrap().kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
    for kv in now.values() {
        let text = std::str::from_utf8(&kv.value).unwrap();
        let name = &text[..=text.find(';').unwrap()];
        assert!(kv.value == value(name), "half a value of {:?}", kv.key);
        assert!(kv.create_revision <= kv.mod_revision && kv.mod_revision <= last);
    }
    for (key, (revision, value)) in acknowledged {
        match now.get(key.as_bytes()) {
            // A later write was under way when the process was killed. What it did stays.
            Some(kv) if kv.mod_revision > *revision => {
                (*revision, *value) = (kv.mod_revision, Some(kv.value.clone()));
            }
            Some(kv) => assert!(kv.mod_revision == *revision && Some(&kv.value) == value.as_ref(), "{key}"),
            None if value.is_none() => {}
            None => {
                // The one write of that writer that was not acknowledged.
                let deleted = deletions(store, said[writer(key)] + 1, last).await;
                let Some(deletion) = deleted.get(key.as_bytes()) else {
                    panic!("{key} of revision {revision} is lost");
                };
                (*revision, *value) = (*deletion, None);
            }
        }
    }
}

/// The keys that were deleted from a revision on, and when.
async fn deletions(store: &EmbeddedStore, from: u64, last: u64) -> BTreeMap<Bytes, u64> {
    let mut deleted = BTreeMap::new();
    if from > last {
        return deleted;
    }
    let mut watch = store.watch(Bytes::new(), from).await.unwrap();
    let mut next = from;
    while next <= last {
        for event in watch.next().await.unwrap().unwrap() {
            assert_eq!(event.revision(), next);
            next += 1;
            if let Event::Delete { key, revision, .. } = event {
                deleted.insert(key, revision);
            }
        }
    }
    deleted
}
