use super::*;

pub async fn history_before_it_is_gone(store: Arc<dyn Store>) {
    let first = put(&*store, "/a", "1").await;
    let second = put(&*store, "/a", "2").await;
    put(&*store, "/b", "1").await;
    delete(&*store, "/b").await;
    let last = put(&*store, "/c", "1").await;
    store.compact(second).await.unwrap();
    let at = |revision| Range { revision, ..under("/") };
    let result = store.range(at(first)).await;
    assert!(matches!(result, Err(Error::Compacted { oldest }) if oldest == second), "{result:?}");
    assert_eq!(store.range(at(second)).await.unwrap().kvs.len(), 1);
    assert_eq!(store.range(at(second + 1)).await.unwrap().kvs.len(), 2);
    store.compact(last).await.unwrap();
    let now = store.range(at(last)).await.unwrap();
    assert_eq!(now.kvs.iter().map(|kv| kv.mod_revision).collect::<Vec<_>>(), [second, last]);
    assert_eq!(now.kvs[0].create_revision, first);
    assert!(matches!(store.range(at(second + 1)).await, Err(Error::Compacted { oldest }) if oldest == last));
    assert_eq!(put(&*store, "/a", "3").await, last + 1);
}

pub async fn refuses_what_it_cannot_do(store: Arc<dyn Store>) {
    for i in 0..5 {
        put(&*store, "/a", format!("{i}")).await;
    }
    let newest = store.revision().await.unwrap();
    let result = store.compact(newest + 1).await;
    assert!(matches!(result, Err(Error::Future { newest: n }) if n == newest), "{result:?}");
    store.compact(newest - 1).await.unwrap();
    for again in [newest - 1, newest - 2] {
        let result = store.compact(again).await;
        assert!(matches!(result, Err(Error::Compacted { oldest }) if oldest == newest - 1), "{result:?}");
    }
    store.compact(newest).await.unwrap();
}
