use super::*;

/// Writers at work while a watch runs: each revision comes once, in order, with what the key held before.
pub async fn events_come_once_and_in_order(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    let mut watch = store.watch("/w/".into(), from).await.unwrap();
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..30 {
                    let key = format!("/w/{}", (w + i) % 3);
                    if i % 4 == 3 {
                        let _ = store.delete(key.into(), Expect::Any).await.unwrap();
                    } else {
                        put(&*store, key, format!("{w}-{i}")).await;
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let last = store.revision().await.unwrap();
    let events = take(&mut watch, (last + 1 - from) as usize).await;
    check_history(&events, from);
}

/// Plays events on an empty key space: revisions and creations must fit.
fn check_history(events: &[Event], from: u64) {
    let mut keys = std::collections::HashMap::<Bytes, KeyValue>::new();
    for (event, revision) in events.iter().zip(from..) {
        assert_eq!(event.revision(), revision);
        match event {
            Event::Put(kv) => {
                assert_eq!(kv.create_revision, keys.get(&kv.key).map_or(revision, |p| p.create_revision));
                keys.insert(kv.key.clone(), kv.clone());
            }
            Event::Delete { key, .. } => {
                assert!(keys.remove(key).is_some(), "at {revision}");
            }
        }
    }
}

pub async fn from_the_past(store: Arc<dyn Store>) {
    let first = put(&*store, "/a", "1").await;
    put(&*store, "/a", "2").await;
    delete(&*store, "/a").await;
    let mut watch = store.watch("/".into(), first).await.unwrap();
    let events = take(&mut watch, 3).await;
    check_history(&events, first);
    put(&*store, "/a", "4").await;
    assert_eq!(show(&take(&mut watch, 1).await), [format!("+/a@{}", first + 3)]);
    let mut later = store.watch("/".into(), first + 2).await.unwrap();
    let events = take(&mut later, 2).await;
    assert_eq!(show(&events), [format!("-/a@{}", first + 2), format!("+/a@{}", first + 3)]);
}

pub async fn only_the_prefix(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    let mut watch = store.watch("/pods/".into(), from).await.unwrap();
    for key in ["/pods", "/pods/a", "/pods0", "/podsx/a", "/pods/b", "/nodes/a"] {
        put(&*store, key, "").await;
    }
    delete(&*store, "/pods/a").await;
    let expected = [
        format!("+/pods/a@{}", from + 1),
        format!("+/pods/b@{}", from + 4),
        format!("-/pods/a@{}", from + 6),
    ];
    assert_eq!(show(&take(&mut watch, 3).await), expected);
}

pub async fn many_watchers_see_the_same(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    let mut watchers = Vec::new();
    for i in 0..10 {
        put(&*store, format!("/m/{i}"), "early").await;
        watchers.push(store.watch("/m/".into(), from).await.unwrap());
    }
    for i in 0..40 {
        put(&*store, format!("/m/{}", i % 10), "late").await;
    }
    let expected = take(&mut watchers[0], 50).await;
    check_history(&expected, from);
    for watcher in &mut watchers[1..] {
        assert_eq!(take(watcher, 50).await, expected);
    }
}

/// Whoever watches again from where it was misses nothing and sees nothing twice.
pub async fn resume_without_a_gap(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for i in 0..100 {
                put(&*store, format!("/r/{}", i % 5), format!("{i}")).await;
            }
        })
    };
    let (mut next, mut events) = (from, Vec::new());
    while next < from + 100 {
        let mut watch = store.watch("/r/".into(), next).await.unwrap();
        for _ in 0..2 {
            if next < from + 100 {
                let batch = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap();
                events.extend(batch.unwrap().unwrap());
                next = events.last().unwrap().revision() + 1;
            }
        }
    }
    writer.await.unwrap();
    assert_eq!(events.len(), 100);
    check_history(&events, from);
}

/// More than one message of etcd's can hold.
pub async fn large_catch_up(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    for i in 0..40u8 {
        put(&*store, format!("/l/{}", i % 3), vec![i; 400_000]).await;
    }
    let mut watch = store.watch("/l/".into(), from).await.unwrap();
    check_history(&take(&mut watch, 40).await, from);
}

pub async fn from_the_future(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 3;
    let mut watch = store.watch("/".into(), from).await.unwrap();
    for i in 0..4 {
        put(&*store, format!("/{i}"), "").await;
    }
    assert_eq!(show(&take(&mut watch, 2).await), [format!("+/2@{from}"), format!("+/3@{}", from + 1)]);
}

pub async fn a_whole_key_space(store: Arc<dyn Store>) {
    let first = put(&*store, &b"\0"[..], "").await;
    put(&*store, &b"\xff\xff"[..], "").await;
    let mut watch = store.watch(Bytes::new(), first).await.unwrap();
    check_history(&take(&mut watch, 2).await, first);
}

pub async fn compacted_start(store: Arc<dyn Store>) {
    let first = put(&*store, "/a", "1").await;
    let second = put(&*store, "/a", "2").await;
    let third = put(&*store, "/a", "3").await;
    store.compact(second).await.unwrap();
    let mut watch = store.watch("/".into(), first).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap();
    assert!(matches!(end, Some(Err(Error::Compacted { oldest })) if oldest == second), "{end:?}");
    assert!(watch.next().await.is_none());
    let mut watch = store.watch("/".into(), third).await.unwrap();
    let events = take(&mut watch, 1).await;
    assert!(matches!(&events[0], Event::Put(kv) if kv.value == "3"), "{events:?}");
}

/// A reader that takes its time gets everything, as long as history reaches back.
pub async fn of_slow_readers(store: Arc<dyn Store>) {
    let from = store.revision().await.unwrap() + 1;
    let mut watch = store.watch("/s/".into(), from).await.unwrap();
    put(&*store, "/s/0", "").await;
    assert_eq!(take(&mut watch, 1).await.len(), 1);
    for i in 0..60u8 {
        put(&*store, format!("/s/{}", i % 4), vec![i; 200_000]).await;
    }
    let events = take(&mut watch, 60).await;
    assert!(events.iter().map(Event::revision).eq(from + 1..from + 61));
}
