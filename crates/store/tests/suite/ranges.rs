use super::*;
use pilothouse_store::prefix_end;

fn keys(result: &pilothouse_store::RangeResult) -> Vec<String> {
    result.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

pub async fn bounds_and_limits(store: Arc<dyn Store>) {
    for key in ["/a", "/b/1", "/b/2", "/b/3", "/b0", "/c"] {
        put(&*store, key, key).await;
    }
    let revision = store.revision().await.unwrap();
    let all = store.range(under("/b/")).await.unwrap();
    assert_eq!(
        (keys(&all), all.more, all.count, all.revision),
        (vec!["/b/1".into(), "/b/2".into(), "/b/3".into()], false, 3, revision)
    );
    let some = store.range(Range { limit: 2, ..under("/b/") }).await.unwrap();
    assert_eq!((keys(&some), some.more, some.count), (vec!["/b/1".into(), "/b/2".into()], true, 3));
    let exact = store.range(Range { limit: 3, ..under("/b/") }).await.unwrap();
    assert_eq!((exact.kvs.len(), exact.more), (3, false));
    let count = store.range(Range { count_only: true, ..under("/b") }).await.unwrap();
    assert_eq!((count.kvs.len(), count.more, count.count), (0, false, 4));
    let none = store.range(under("/nothing")).await.unwrap();
    assert_eq!((none.kvs.len(), none.more, none.count, none.revision), (0, false, 0, revision));
    let one = store.range(Range { start: "/b/2".into(), ..Range::default() }).await.unwrap();
    assert_eq!(keys(&one), ["/b/2"]);
    let half = Range { start: "/b/2".into(), end: "/b0".into(), ..Range::default() };
    assert_eq!(keys(&store.range(half).await.unwrap()), ["/b/2", "/b/3"]);
    let rest = Range { start: "/b0".into(), end: "\0".into(), ..Range::default() };
    assert_eq!(keys(&store.range(rest).await.unwrap()), ["/b0", "/c"]);
    let backwards = Range { start: "/c".into(), end: "/a".into(), ..Range::default() };
    assert_eq!(store.range(backwards).await.unwrap().count, 0);
}

/// The pages of one revision together are what was there at that revision, whatever is written meanwhile.
pub async fn pages_of_one_revision(store: Arc<dyn Store>) {
    for i in 0..50 {
        put(&*store, format!("/p/{i:03}"), "old").await;
    }
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for i in 0..60 {
                put(&*store, format!("/p/{:03}", (i * 7) % 55), "new").await;
                if i % 3 == 0 {
                    let _ =
                        store.delete(format!("/p/{:03}", (i * 11) % 50).into(), Expect::Any).await.unwrap();
                }
            }
        })
    };
    let whole = store.range(under("/p/")).await.unwrap();
    let (mut start, mut paged) = (Bytes::from("/p/"), Vec::new());
    loop {
        let range = Range { start, limit: 7, revision: whole.revision, ..under("/p/") };
        let page = store.range(range).await.unwrap();
        assert_eq!(page.count, whole.count - paged.len());
        assert!(page.revision >= whole.revision);
        paged.extend(page.kvs);
        if !page.more {
            break;
        }
        let mut next = paged.last().unwrap().key.to_vec();
        next.push(0);
        start = next.into();
    }
    assert_eq!(paged, whole.kvs);
    writer.await.unwrap();
    let later = store.range(Range { revision: whole.revision, ..under("/p/") }).await.unwrap();
    assert_eq!(later.kvs, whole.kvs);
}

pub async fn ends_of_prefixes(store: Arc<dyn Store>) {
    assert_eq!(prefix_end(b"a"), "b");
    assert_eq!(prefix_end(b"a\xff"), "b");
    assert_eq!(prefix_end(b"\xff\xff"), "\0");
    assert_eq!(prefix_end(b""), "\0");
    for key in [&b"a\xff"[..], b"a\xff\x01", b"b", b"\xff\xfe", b"\xff\xff", b"\xff\xff\x01"] {
        put(&*store, key, "").await;
    }
    for (prefix, n) in [(&b"a\xff"[..], 2), (b"a", 2), (b"\xff\xff", 2), (b"\xff", 3), (b"\0", 0)] {
        let range =
            Range { start: prefix.into(), end: prefix_end(prefix), count_only: true, ..Range::default() };
        assert_eq!(store.range(range).await.unwrap().count, n, "{prefix:?}");
    }
    let all = Range { start: "\0".into(), end: prefix_end(b""), count_only: true, ..Range::default() };
    assert_eq!(store.range(all).await.unwrap().count, 6);
}

pub async fn revisions_of_the_past_and_future(store: Arc<dyn Store>) {
    let first = put(&*store, "/a", "1").await;
    let second = put(&*store, "/a", "2").await;
    let third = delete(&*store, "/a").await;
    let fourth = put(&*store, "/a", "4").await;
    for (revision, value) in [(first, Some("1")), (second, Some("2")), (third, None), (fourth, Some("4"))] {
        let result = store.range(Range { revision, ..under("/a") }).await.unwrap();
        let found = result.kvs.first().map(|kv| kv.value.clone());
        assert_eq!(found, value.map(Bytes::from), "at {revision}");
        assert_eq!(result.revision, fourth);
    }
    let result = store.range(Range { revision: fourth + 1, ..under("/a") }).await;
    assert!(matches!(result, Err(Error::Future { newest }) if newest == fourth), "{result:?}");
}
