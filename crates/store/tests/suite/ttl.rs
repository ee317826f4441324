use super::*;

pub async fn keys_go_when_their_time_is_over(store: Arc<dyn Store>) {
    let put_for = |key: &'static str, seconds| {
        let store = store.clone();
        async move {
            done(store.put(key.into(), "".into(), Expect::Any, Some(Duration::from_secs(seconds))).await)
        }
    };
    put_for("/t/short", 2).await;
    put_for("/t/other", 2).await;
    put_for("/t/long", 600).await;
    put_for("/t/renewed", 2).await;
    put_for("/t/renewed", 600).await;
    put_for("/t/kept", 2).await;
    let from = put(&*store, "/t/kept", "for good").await + 1;
    let start = std::time::Instant::now();
    let mut watch = store.watch("/t/".into(), from).await.unwrap();
    let events = take(&mut watch, 2).await;
    assert!(start.elapsed() > Duration::from_millis(1500), "too early: {:?}", start.elapsed());
    let mut gone = show(&events);
    gone.iter_mut().for_each(|e| e.truncate(e.find('@').unwrap()));
    gone.sort();
    assert_eq!(gone, ["-/t/other", "-/t/short"]);
    assert_eq!([events[0].revision(), events[1].revision()], [from, from + 1]);
    let left = store.range(under("/t/")).await.unwrap();
    assert_eq!(
        left.kvs.iter().map(|kv| &kv.key[3..]).collect::<Vec<_>>(),
        [&b"kept"[..], b"long", b"renewed"]
    );
}
