//! The server over a real socket, with the embedded store: what crosses its parts.

use std::time::Duration;

use crate::common::{LIMIT, start, start_on};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_store::embedded::EmbeddedStore;

fn config_map(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": {"k": "v"}})
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_lives_and_dies() {
    let world = start(&[]).await;
    let api = world.api();
    let (code, made) = api.post(MAPS, config_map("a", json!({"x": "1"}))).await;
    assert_eq!(code, StatusCode::CREATED);
    let path = format!("{MAPS}/a");
    assert_eq!(api.get(&path).await, (StatusCode::OK, made.clone()));

    // What changes nothing is no write.
    let (code, same) = api.put(&path, &made).await;
    assert_eq!((code, version(&same)), (StatusCode::OK, version(&made)));
    let (code, changed) = api.patch(&path, json!({"data": {"k": "w"}})).await;
    assert_eq!(code, StatusCode::OK);
    assert!(version(&changed) > version(&made));
    let (code, conflict) = api.put(&path, &made).await;
    assert_eq!((code, conflict["reason"].as_str()), (StatusCode::CONFLICT, Some("Conflict")));

    let (_, list) = api.get(&format!("{MAPS}?labelSelector=x%3D1")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert!(list["items"][0].get("kind").is_none());
    assert!(version(&list) >= version(&changed));

    assert_eq!(api.delete(&path).await.0, StatusCode::OK);
    assert_eq!(api.get(&path).await.0, StatusCode::NOT_FOUND);
    assert_eq!(api.delete(&path).await.0, StatusCode::NOT_FOUND);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_tell_everything_once_and_in_order() {
    let world = start(&[]).await;
    let api = world.api();
    api.post(MAPS, config_map("old", json!({"app": "x"}))).await;
    let (_, list) = api.get(MAPS).await;
    let rv = version(&list);
    let mut later = api.watch(&format!("{MAPS}?watch=true&resourceVersion={rv}")).await;
    let mut all = api.watch(&format!("{MAPS}?watch=1&labelSelector=app%3Dx")).await;
    all.expect("ADDED", "old").await;

    let (_, made) = api.post(MAPS, config_map("new", json!({"app": "y"}))).await;
    let path = format!("{MAPS}/new");
    api.patch(&path, json!({"metadata": {"labels": {"app": "x"}}})).await;
    api.patch(&path, json!({"metadata": {"labels": {"app": "z"}}})).await;
    api.delete(&path).await;

    assert_eq!(later.expect("ADDED", "new").await["kind"], "ConfigMap");
    later.expect("MODIFIED", "new").await;
    let last = later.expect("MODIFIED", "new").await;
    let gone = later.expect("DELETED", "new").await;
    assert!(version(&gone) > version(&last) && version(&last) > version(&made));
    // To a selector, a change of labels is an arrival or a departure.
    all.expect("ADDED", "new").await;
    let left = all.expect("DELETED", "new").await;
    assert_eq!((left["metadata"]["labels"]["app"].as_str(), version(&left)), (Some("x"), version(&last)));

    // A server that starts now knows no history of before; that is told in the watch.
    let two = start_on(tempfile::tempdir().unwrap(), world.store.clone(), &[]).await;
    let mut lost = two.api().watch(&format!("{MAPS}?watch=true&resourceVersion=1")).await;
    let error = lost.next().await.unwrap();
    assert_eq!((error["type"].as_str(), error["object"]["code"].as_u64()), (Some("ERROR"), Some(410)));
    assert!(lost.next().await.is_none());
    two.stop().await;

    let started = std::time::Instant::now();
    let mut short = api.watch(&format!("{MAPS}?watch=true&timeoutSeconds=1&allowWatchBookmarks=true")).await;
    short.expect("ADDED", "old").await;
    while short.next().await.is_some() {}
    assert!(started.elapsed() < Duration::from_secs(10));

    // The server's end is the watches' end.
    world.stopper.stop();
    assert!(later.next().await.is_none());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_of_one_moment() {
    let world = start(&[]).await;
    let api = world.api();
    for i in 0..5 {
        api.post(MAPS, config_map(&format!("m{i}"), json!({}))).await;
    }
    let (_, first) = api.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"].as_str().unwrap().to_string();
    api.delete(&format!("{MAPS}/m3")).await;
    api.post(MAPS, config_map("m9", json!({}))).await;
    let (_, second) = api.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    let names = |list: &Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_string())
            .collect()
    };
    assert_eq!(names(&second), ["m2", "m3"]);
    assert_eq!(version(&second), version(&first));
    let (_, exact) =
        api.get(&format!("{MAPS}?resourceVersion={}&resourceVersionMatch=Exact", version(&first))).await;
    assert_eq!(names(&exact), ["m0", "m1", "m2", "m3", "m4"]);
    let (code, _) = api.get(&format!("{MAPS}?resourceVersion=999999")).await;
    assert_eq!(code, StatusCode::GATEWAY_TIMEOUT);

    // A page whose moment is forgotten can be had of the present.
    let now = world.store.revision().await.unwrap();
    world.store.compact(now).await.unwrap();
    let (code, expired) = api.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!((code, expired["reason"].as_str()), (StatusCode::GONE, Some("Expired")));
    let token = expired["metadata"]["continue"].as_str().unwrap();
    let (code, rest) = api.get(&format!("{MAPS}?limit=5&continue={token}")).await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(names(&rest), ["m2", "m4", "m9"]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_get_kubernetes_answers() {
    let world = start(&[]).await;
    let api = world.api();
    let code =
        |method: Method, path: &'static str, headers: Vec<(&'static str, &'static str)>, body: Bytes| {
            let api = api.clone();
            async move { api.send(method, path, &headers, body).await.status().as_u16() }
        };
    let none = Bytes::new;
    assert_eq!(code(Method::GET, MAPS, vec![("authorization", "Bearer wrong")], none()).await, 401);
    assert_eq!(code(Method::GET, MAPS, vec![("authorization", "")], none()).await, 403);
    assert_eq!(code(Method::GET, MAPS, vec![("authorization", "Bearer J")], none()).await, 403);
    assert_eq!(code(Method::GET, MAPS, vec![("accept", "text/html")], none()).await, 406);
    assert_eq!(code(Method::GET, "/api/v1/nothings", vec![], none()).await, 404);
    assert_eq!(code(Method::GET, "/nowhere", vec![], none()).await, 404);
    assert_eq!(code(Method::GET, "/api/v1/watch", vec![], none()).await, 500);
    assert_eq!(code(Method::POST, "/api/v1/configmaps", vec![], none()).await, 405);
    assert_eq!(code(Method::POST, MAPS, vec![], Bytes::from(vec![b' '; 4 << 20])).await, 413);
    assert_eq!(code(Method::PATCH, MAPS, vec![], none()).await, 405);
    assert_eq!(code(Method::GET, "/api/v1/configmaps?limit=x", vec![], none()).await, 400);
    let response = api.send(Method::GET, MAPS, &[], none()).await;
    assert_eq!(response.headers()["cache-control"], "no-cache, private");
    assert!(response.headers().contains_key("audit-id"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_go_round_as_protobuf() {
    let world = start(&[]).await;
    let api = world.api();
    api.post(MAPS, config_map("a", json!({"x": "1"}))).await;
    let proto = "application/vnd.kubernetes.protobuf";
    let response = api.send(Method::GET, &format!("{MAPS}/a"), &[("accept", proto)], Bytes::new()).await;
    assert_eq!(response.headers()["content-type"], proto);
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.starts_with(b"k8s\0"));
    let response = api.send(Method::PUT, &format!("{MAPS}/a"), &[("content-type", proto)], bytes).await;
    assert_eq!(response.status(), StatusCode::OK);
    let list = api.send(Method::GET, MAPS, &[("accept", proto)], Bytes::new()).await;
    assert!(list.into_body().collect().await.unwrap().to_bytes().starts_with(b"k8s\0"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_resources_come_and_go_with_their_definition() {
    let world = start(&[]).await;
    let api = world.api();
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.e.com"},
        "spec": {"group": "e.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": {
                    "n": {"type": "integer", "default": 7}}}}}}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(api.post(definitions, definition).await.0, StatusCode::CREATED);
    let things = "/apis/e.com/v1/namespaces/default/things";
    tokio::time::timeout(LIMIT, async {
        while api.get(things).await.0 != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let thing =
        json!({"apiVersion": "e.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"odd": 1}});
    let (code, made) = api.post(things, thing).await;
    assert_eq!((code, &made["spec"]), (StatusCode::CREATED, &json!({"n": 7})));
    let mut watch = api.watch(&format!("{things}?watch=true")).await;
    watch.expect("ADDED", "t").await;
    assert_eq!(api.get("/apis/e.com/v1").await.1["resources"][0]["name"], "things");

    let one = format!("{definitions}/things.e.com");
    assert_eq!(api.delete(&one).await.0, StatusCode::OK);
    watch.expect("DELETED", "t").await;
    tokio::time::timeout(LIMIT, async {
        while api.get(&one).await.0 != StatusCode::NOT_FOUND
            || api.get(things).await.0 != StatusCode::NOT_FOUND
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_of_one_store_agree() {
    let one = start(&[]).await;
    let two = start_on(tempfile::tempdir().unwrap(), one.store.clone(), &[]).await;
    let (a, b) = (one.api(), two.api());
    for i in 0..20 {
        let name = format!("m{i}");
        assert_eq!(a.post(MAPS, config_map(&name, json!({}))).await.0, StatusCode::CREATED);
        // What one has acknowledged, the other knows.
        let (code, read) = b.get(&format!("{MAPS}/{name}")).await;
        assert_eq!(code, StatusCode::OK);
        let (code, changed) = b.patch(&format!("{MAPS}/{name}"), json!({"data": {"k": "w"}})).await;
        assert_eq!(code, StatusCode::OK);
        assert!(version(&changed) > version(&read));
        assert_eq!(a.put(&format!("{MAPS}/{name}"), &read).await.0, StatusCode::CONFLICT);
    }
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_by_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data/store");
    std::fs::create_dir_all(&data).unwrap();
    let store = EmbeddedStore::open(&data).unwrap();
    let world = start_on(dir, store.clone(), &[]).await;
    let (_, made) = world.api().post(MAPS, config_map("a", json!({}))).await;
    let dir = world.stop().await;
    store.close().await;
    let world = start_on(dir, EmbeddedStore::open(&data).unwrap(), &[]).await;
    assert_eq!(world.api().get(&format!("{MAPS}/a")).await, (StatusCode::OK, made));
    world.stop().await;
}
