//! What concerns only etcd: members that die, hang or run full, and TLS.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Writes keys one after the other until told to stop; what was acknowledged, by revision.
fn writer(store: Arc<EtcdStore>, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<Vec<(u64, String)>> {
    tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        let mut i = 0;
        while !stop.load(Ordering::Relaxed) {
            i += 1;
            let key = format!("/registry/k/{i:05}");
            match store.put(key.clone().into(), "v".into(), Expect::Any, None).await {
                Ok(Outcome::Done { revision }) => acknowledged.push((revision, key)),
                Ok(conflict) => panic!("{conflict:?}"),
                Err(Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(e) => panic!("{e}"),
            }
        }
        acknowledged
    })
}

/// Watches everything, again and again from where it was, until revision `last`.
async fn follow(store: &dyn Store, from: u64, last: u64) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let mut next = from;
    while next <= last {
        let mut watch = match store.watch("/registry/".into(), next).await {
            Ok(watch) => watch,
            Err(Error::Unavailable(_)) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            Err(e) => panic!("{e}"),
        };
        while next <= last {
            match tokio::time::timeout(Duration::from_secs(30), watch.next()).await.unwrap() {
                Some(Ok(batch)) => {
                    next = batch.last().unwrap().revision() + 1;
                    events.extend(batch);
                }
                Some(Err(Error::Unavailable(_))) | None => break,
                Some(Err(e)) => panic!("{e}"),
            }
        }
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_killed_loses_nothing_acknowledged() {
    let mut etcd = Etcd::start(&[]);
    let store = connect(&[&etcd.url]).await;
    let from = store.revision().await.unwrap() + 1;
    let stop = Arc::new(AtomicBool::new(false));
    let watched = {
        let store = store.clone();
        // 400 writes happen in any case before the watch ends.
        tokio::spawn(async move { follow(&*store, from, from + 400).await })
    };
    let writer = writer(store.clone(), stop.clone());
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        etcd.kill();
        etcd.restart();
        ready(&*store).await;
    }
    let events = tokio::time::timeout(Duration::from_secs(60), watched).await.unwrap().unwrap();
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.await.unwrap();
    let all = store.range(under("/registry/")).await.unwrap();
    for (revision, key) in &acknowledged {
        let kv = all.kvs.iter().find(|kv| kv.key == key.as_bytes());
        assert_eq!(kv.map(|kv| kv.mod_revision), Some(*revision), "{key}");
    }
    assert!(events.iter().map(Event::revision).zip(from..).all(|(a, b)| a == b));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_is_left_for_another() {
    let mut members = Etcd::cluster(3);
    let urls: Vec<&str> = members.iter().map(|m| m.url.as_str()).collect();
    let store = connect(&urls).await;
    assert!(store.health().await.iter().all(|(_, r)| r.is_ok()));
    let first = put(&*store, "/registry/a", "1").await;
    members[0].pause();
    let start = std::time::Instant::now();
    // The first call may fail when its time is up, the next ones go elsewhere.
    let mut tries = 0;
    let revision = loop {
        tries += 1;
        match store.put("/registry/a".into(), "2".into(), Expect::Any, None).await {
            Ok(Outcome::Done { revision }) => break revision,
            Err(Error::Unavailable(_)) if tries < 5 => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    assert!(revision > first);
    let mut watch = store.watch("/registry/".into(), revision).await.unwrap();
    assert_eq!(take(&mut watch, 1).await[0].revision(), revision);
    let health = store.health().await;
    assert_eq!(health.iter().map(|(_, r)| r.is_ok()).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!(health[0].0, members[0].url);
    members[0].resume();
    // Without a quorum there are no answers; with it, there are again.
    members[1].kill();
    members[2].kill();
    assert!(matches!(store.get(b"/registry/a").await, Err(Error::Unavailable(_))));
    members[1].restart();
    ready(&*store).await;
    assert_eq!(&store.get(b"/registry/a").await.unwrap().0.unwrap().value[..], b"2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_quota_stops_writes_and_nothing_else() {
    let etcd = Etcd::start(&["--quota-backend-bytes", "2000000"]);
    let store = connect(&[&etcd.url]).await;
    put(&*store, "/registry/a", "1").await;
    let mut i = 0;
    let error = loop {
        i += 1;
        match store.put(format!("/registry/{i}").into(), vec![b'x'; 300_000].into(), Expect::Any, None).await
        {
            Ok(_) => assert!(i < 50),
            Err(e) => break e,
        }
    };
    assert!(matches!(error, Error::NoSpace(_)), "{error:?}");
    assert!(store.get(b"/registry/a").await.unwrap().0.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_client_certificates() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(file("ca.pem"), params.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, ca_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_string()]).unwrap();
        std::fs::write(file(&format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(file(&format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }
    let path = |name: &str| file(name).display().to_string();
    let (cert, key, ca) = (path("server.pem"), path("server-key.pem"), path("ca.pem"));
    let etcd = Etcd::start_with(
        "https",
        &["--cert-file", &cert, "--key-file", &key, "--trusted-ca-file", &ca, "--client-cert-auth"],
    );
    let config = EtcdConfig {
        endpoints: vec![etcd.url.clone()],
        ca_file: Some(file("ca.pem")),
        cert_file: Some(file("client.pem")),
        key_file: Some(file("client-key.pem")),
        prefix: "/registry".into(),
    };
    let store = EtcdStore::connect(config.clone()).await.unwrap();
    ready(&*store).await;
    put(&*store, "/registry/a", "1").await;
    let stranger = EtcdConfig { cert_file: None, key_file: None, ..config.clone() };
    let stranger = EtcdStore::connect(stranger).await.unwrap();
    assert!(matches!(stranger.get(b"/registry/a").await, Err(Error::Unavailable(_))));
    let missing = EtcdConfig { ca_file: Some(file("nowhere.pem")), ..config };
    let text = EtcdStore::connect(missing).await.err().unwrap().to_string();
    assert!(text.contains("nowhere.pem"), "{text}");
}

#[tokio::test]
async fn nothing_there_is_an_error_in_time() {
    let config = EtcdConfig {
        endpoints: vec!["http://127.0.0.1:1".into(), "http://127.0.0.1:2".into()],
        prefix: "/registry".into(),
        ..EtcdConfig::default()
    };
    let store = EtcdStore::connect(config).await.unwrap();
    let start = std::time::Instant::now();
    for result in [store.revision().await.err(), store.watch("/".into(), 1).await.err()] {
        assert!(matches!(result, Some(Error::Unavailable(_))), "{result:?}");
    }
    let result = store.put("/a".into(), "".into(), Expect::Any, None).await;
    assert!(matches!(result, Err(Error::Unavailable(_))), "{result:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(EtcdStore::connect(EtcdConfig::default()).await.is_err());
}
