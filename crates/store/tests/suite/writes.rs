use std::collections::BTreeSet;

use super::*;

pub async fn conditions_hold_or_nothing_happens(store: Arc<dyn Store>) {
    let key = || Bytes::from("/registry/a");
    let before = store.revision().await.unwrap();
    let created = done(store.put(key(), "1".into(), Expect::Absent, None).await);
    assert_eq!(created, before + 1);
    let (current, revision) = conflict(store.put(key(), "2".into(), Expect::Absent, None).await);
    let kv = KeyValue { key: key(), value: "1".into(), create_revision: created, mod_revision: created };
    assert_eq!((current, revision), (Some(kv), created));
    let updated = done(store.put(key(), "2".into(), Expect::Revision(created), None).await);
    assert_eq!(updated, created + 1);
    let (current, _) = conflict(store.put(key(), "3".into(), Expect::Revision(created), None).await);
    let current = current.unwrap();
    assert_eq!((current.create_revision, current.mod_revision), (created, updated));
    let (current, revision) =
        conflict(store.put("/b".into(), "".into(), Expect::Revision(created), None).await);
    assert_eq!((current, revision), (None, updated));
    let again = done(store.put(key(), "2".into(), Expect::Any, None).await);
    assert_eq!(again, updated + 1);
    let (kv, revision) = store.get(&key()).await.unwrap();
    let kv = kv.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, revision), (created, again, again));
    assert_eq!(store.get(b"/b").await.unwrap(), (None, again));
}

pub async fn deletes(store: Arc<dyn Store>) {
    let key = || Bytes::from("/registry/a");
    let (current, revision) = conflict(store.delete(key(), Expect::Any).await);
    assert_eq!((current, revision), (None, store.revision().await.unwrap()));
    let created = put(&*store, key(), "1").await;
    let (current, _) = conflict(store.delete(key(), Expect::Revision(created + 7)).await);
    assert_eq!(current.unwrap().mod_revision, created);
    let deleted = done(store.delete(key(), Expect::Revision(created)).await);
    assert_eq!(deleted, created + 1);
    assert_eq!(conflict(store.delete(key(), Expect::Revision(created)).await), (None, deleted));
    // A key that comes back is a new key.
    let again = put(&*store, key(), "2").await;
    let kv = store.get(&key()).await.unwrap().0.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (again, again));
    let last = done(store.delete(key(), Expect::Any).await);
    assert_eq!(last, again + 1);
}

pub async fn no_update_is_lost(store: Arc<dyn Store>) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 15;
    let key = || Bytes::from("/registry/counter");
    put(&*store, key(), "0").await;
    let writers = (0..WRITERS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut kv = store.get(&key()).await.unwrap().0.unwrap();
            let mut left = EACH;
            while left > 0 {
                let n: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
                let expect = Expect::Revision(kv.mod_revision);
                match store.put(key(), (n + 1).to_string().into(), expect, None).await.unwrap() {
                    Outcome::Done { revision } => {
                        left -= 1;
                        kv.mod_revision = revision;
                        kv.value = (n + 1).to_string().into();
                    }
                    Outcome::Conflict { current, .. } => kv = current.unwrap(),
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let kv = store.get(&key()).await.unwrap().0.unwrap();
    assert_eq!(kv.value, (WRITERS * EACH).to_string());
}

pub async fn revisions_are_consecutive(store: Arc<dyn Store>) {
    let before = store.revision().await.unwrap();
    let writers = (0..10).map(|w| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for i in 0..20 {
                let key = format!("/registry/{w}");
                revisions.push(match i % 5 {
                    4 => delete(&*store, &key).await,
                    _ => put(&*store, key, "v").await,
                });
                assert!(store.revision().await.unwrap() >= revisions[i]);
            }
            assert!(revisions.is_sorted());
            revisions
        })
    });
    let mut all = BTreeSet::new();
    for writer in writers.collect::<Vec<_>>() {
        all.extend(writer.await.unwrap());
    }
    assert!(all.into_iter().eq(before + 1..=before + 200));
    assert_eq!(store.revision().await.unwrap(), before + 200);
}

pub async fn large_values(store: Arc<dyn Store>) {
    for (i, size) in [0, 1, 4095, 4096, 1 << 20, 3 << 20].into_iter().enumerate() {
        let value: Bytes = (0..size).map(|n| (n * 31 + i) as u8).collect();
        put(&*store, format!("/registry/{i}"), value.clone()).await;
        let kv = store.get(format!("/registry/{i}").as_bytes()).await.unwrap().0.unwrap();
        assert!(kv.value == value, "value of {size} bytes");
    }
    let all = store.range(under("/registry/")).await.unwrap();
    assert_eq!(all.kvs.iter().map(|kv| kv.value.len()).max(), Some(3 << 20));
}

pub async fn too_large_values(store: Arc<dyn Store>) {
    let result = store.put("/registry/a".into(), vec![b'x'; 10 << 20].into(), Expect::Any, None).await;
    assert!(matches!(result, Err(Error::TooLarge)), "{result:?}");
    assert!(store.get(b"/registry/a").await.unwrap().0.is_none());
    put(&*store, "/registry/a", "small").await;
}

pub async fn binary_keys(store: Arc<dyn Store>) {
    let keys: [&[u8]; 6] = [b"\0", b"\0\0", b"a\0b", b"a\x01", b"\xff", b"\xff\xff"];
    for key in keys {
        put(&*store, key, key).await;
    }
    let all = store.range(Range { start: "\0".into(), end: "\0".into(), ..Range::default() }).await.unwrap();
    assert_eq!(all.kvs.iter().map(|kv| &kv.key[..]).collect::<Vec<_>>(), keys);
    for key in keys {
        assert_eq!(&store.get(key).await.unwrap().0.unwrap().value[..], key);
        done(store.delete(Bytes::from(key), Expect::Any).await);
    }
}

pub async fn health(store: Arc<dyn Store>) {
    let health = store.health().await;
    assert_eq!(health.len(), 1);
    assert!(health[0].1.is_ok(), "{health:?}");
}
