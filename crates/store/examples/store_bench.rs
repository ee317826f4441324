//! Durable puts per second of both stores side by side, and how fast the embedded one starts.
//!
//! `cargo run --release -p pilothouse-store --example store_bench [-- SECONDS [OBJECTS]]`
#![expect(clippy::unwrap_used, reason = "a benchmark ends where something fails")]

#[path = "../tests/common/etcd.rs"]
#[expect(dead_code, reason = "tests use the rest of it")]
mod etcd;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pilothouse_store::embedded::EmbeddedStore;
use pilothouse_store::etcd::{EtcdConfig, EtcdStore};
use pilothouse_store::{Expect, Range, Store};

const VALUE: usize = 1024;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().and_then(|s| s.parse().ok()).unwrap_or(5);
    let objects: usize = args.next().and_then(|s| s.parse().ok()).unwrap_or(50_000);
    let dir = tempfile::tempdir().unwrap();
    let server = etcd::Etcd::start(&["--data-dir", &dir.path().join("etcd").display().to_string()]);
    let config = EtcdConfig { endpoints: vec![server.url.clone()], ..EtcdConfig::default() };
    let etcd: Arc<dyn Store> = EtcdStore::connect(config).await.unwrap();
    while etcd.revision().await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let embedded = EmbeddedStore::open(&dir.path().join("embedded")).unwrap();
    println!("puts of {VALUE} B   writers   per second   mean ms");
    for writers in [1, 16, 64] {
        for (name, store) in [("etcd", etcd.clone()), ("embedded", embedded.clone() as Arc<dyn Store>)] {
            let (puts, took) = run(store, writers, Duration::from_secs(seconds)).await;
            let rate = puts as f64 / took.as_secs_f64();
            println!("{name:14} {writers:9} {rate:12.0} {:9.2}", writers as f64 * 1e3 / rate);
        }
    }
    embedded.close().await;
    start(&dir.path().join("many"), objects).await;
}

async fn run(store: Arc<dyn Store>, writers: u64, time: Duration) -> (u64, Duration) {
    let puts = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|w| {
            let (store, puts) = (store.clone(), puts.clone());
            tokio::spawn(async move {
                for i in 0.. {
                    if begin.elapsed() > time {
                        return;
                    }
                    let key = format!("/registry/configmaps/default/{writers}-{w}-{i}");
                    store.put(key.into(), vec![b'x'; VALUE].into(), Expect::Absent, None).await.unwrap();
                    puts.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    (puts.load(Ordering::Relaxed), begin.elapsed())
}

async fn start(dir: &Path, objects: usize) {
    let store = EmbeddedStore::open(dir).unwrap();
    let each = objects.div_ceil(64);
    let tasks: Vec<_> = (0..64)
        .map(|w| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..each {
                    let key = format!("/registry/pods/default/{w:02}-{i:05}");
                    store.put(key.into(), Bytes::from(vec![b'x'; 2048]), Expect::Any, None).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    // As after a kill: the file as it is, not closed.
    let killed = dir.with_extension("killed");
    std::fs::create_dir(&killed).unwrap();
    for file in ["store.redb", "log.0", "log.1"] {
        std::fs::copy(dir.join(file), killed.join(file)).unwrap();
    }
    store.close().await;
    drop(store);
    for (name, dir) in [("after a close", dir), ("after a kill", &killed)] {
        let before = resident();
        let (begin, cpu) = (Instant::now(), cpu_millis());
        let store = EmbeddedStore::open(dir).unwrap();
        let (opened, cpu) = (begin.elapsed(), cpu_millis() - cpu);
        let grown = resident().saturating_sub(before);
        let begin = Instant::now();
        let all = Range { start: "/".into(), end: "\0".into(), ..Range::default() };
        let n = store.range(all).await.unwrap().kvs.len();
        println!(
            "open {n} objects of 2 KiB {name}: {opened:.1?} ({cpu} ms of CPU), {} MiB more resident; read them all: {:.1?}",
            grown >> 10,
            begin.elapsed()
        );
        store.close().await;
    }
}

/// CPU time of this process, in steps of 10 ms.
fn cpu_millis() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map(|(_, f)| f.split(' ').collect()).unwrap_or_default();
    [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<u64>().ok()).sum::<u64>() * 10
}

/// Resident memory in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
