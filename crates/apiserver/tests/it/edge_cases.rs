//! What reimplementations of the Kubernetes API get wrong: each with the outcome that clients count on.

use std::time::{Duration, Instant};

use crate::common::{Api, LIMIT, start, start_newest};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use pilothouse_apimachinery::json::{Value, json};
use tokio::io::AsyncReadExt;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const JSON: (&str, &str) = ("content-type", "application/json");

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

async fn text(api: &Api, path: &str, headers: &[(&str, &str)]) -> (u16, http::HeaderMap, String) {
    let response = api.send(Method::GET, path, headers, Bytes::new()).await;
    let (code, head) = (response.status().as_u16(), response.headers().clone());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, head, String::from_utf8_lossy(&body).into_owned())
}

fn header<'a>(head: &'a http::HeaderMap, name: &str) -> &'a str {
    head.get(name).map_or("", |v| v.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_versions_of_reads() {
    let world = start(&[]).await;
    let api = world.api();
    let (_, made) = api.post(MAPS, map("a")).await;
    // A list is as new as the store, whatever is in it.
    let (_, empty) = api.get("/api/v1/namespaces/default/secrets?labelSelector=no%3Dne").await;
    assert!(version(&empty) >= version(&made));
    let (_, list) = api.get(MAPS).await;
    assert!(version(&list) >= version(&made));
    for query in ["", "?resourceVersion=0", &format!("?resourceVersion={}", version(&made))] {
        assert_eq!(api.get(&format!("{MAPS}/a{query}")).await.1["metadata"]["name"], "a", "{query}");
    }
    // A page at an old version is of that moment.
    api.post(MAPS, map("b")).await;
    let (_, old) = api.get(&format!("{MAPS}?limit=5&resourceVersion={}", version(&made))).await;
    assert!(old["items"].as_array().unwrap().iter().all(|i| i["metadata"]["name"] != "b"));
    let bad = async |query: &str| {
        let (code, answer) = api.get(&format!("{MAPS}?{query}")).await;
        (code.as_u16(), answer["message"].as_str().unwrap_or_default().to_string())
    };
    for query in [
        "resourceVersionMatch=Exact",
        "resourceVersionMatch=Exact&resourceVersion=0",
        "resourceVersionMatch=Nope&resourceVersion=1",
    ] {
        let (code, message) = bad(query).await;
        assert!((400..=422).contains(&code), "{query}: {code} {message}");
        assert!(message.contains("resourceVersionMatch"), "{query}: {message}");
    }
    let (_, page) = api.get(&format!("{MAPS}?limit=1")).await;
    let token = page["metadata"]["continue"].as_str().unwrap();
    assert_eq!(bad(&format!("continue={token}&resourceVersion=5")).await.0, 400);
    assert_eq!(api.get(&format!("{MAPS}?continue={token}&resourceVersion=0")).await.0, StatusCode::OK);
    // A version that has not been yet is waited for, but not for long.
    let started = Instant::now();
    let response =
        api.send(Method::GET, &format!("{MAPS}?resourceVersion=99999999"), &[], Bytes::new()).await;
    assert_eq!(response.status(), 504);
    assert!(started.elapsed() > Duration::from_secs(1) && started.elapsed() < Duration::from_secs(20));
    assert_eq!(header(response.headers(), "retry-after"), "1");
    let status: Value =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert!(status["message"].as_str().unwrap().contains("Too large resource version"));
    assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_as_clients_open_them() {
    let world = start(&[]).await;
    let api = world.api();
    api.post(MAPS, map("a")).await;
    let (_, list) = api.get(MAPS).await;
    // The answer begins before anything happens.
    let mut quiet = api.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&list))).await;
    // The old form of paths.
    let mut old = api
        .watch(&format!("/api/v1/watch/namespaces/default/configmaps?resourceVersion={}", version(&list)))
        .await;
    let mut one = api.watch("/api/v1/watch/namespaces/default/configmaps/a").await;
    one.expect("ADDED", "a").await;
    api.post(MAPS, map("b")).await;
    for events in [&mut quiet, &mut old] {
        let event = events.expect("ADDED", "b").await;
        assert_eq!((&event["kind"], &event["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    }
    api.patch(&format!("{MAPS}/a"), json!({"data": {"k": "w"}})).await;
    one.expect("MODIFIED", "a").await;

    // Bookmarks come to those who ask for them, and have a version and nothing else.
    let mut asked = api
        .watch(&format!(
            "{MAPS}?watch=1&timeoutSeconds=3&allowWatchBookmarks=true&resourceVersion={}",
            version(&list)
        ))
        .await;
    let mut unasked =
        api.watch(&format!("{MAPS}?watch=1&timeoutSeconds=3&resourceVersion={}", version(&list))).await;
    let mut seen = Vec::new();
    while let Some(event) = asked.next().await {
        seen.push(event);
    }
    let bookmark = seen.iter().find(|e| e["type"] == "BOOKMARK").unwrap_or_else(|| panic!("{seen:?}"));
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert!(version(&bookmark["object"]) >= version(&list));
    assert!(bookmark["object"].get("data").is_none() && bookmark["object"]["metadata"].get("name").is_none());
    while let Some(event) = unasked.next().await {
        assert_ne!(event["type"], "BOOKMARK");
    }

    // Over a WebSocket: an event a text frame.
    let upgrade = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let response = api.send(Method::GET, &format!("{MAPS}?watch=1"), &upgrade, Bytes::new()).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(header(response.headers(), "sec-websocket-accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    for name in ["a", "b"] {
        let event = tokio::time::timeout(LIMIT, frame(&mut stream)).await.unwrap();
        assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!(name)));
    }
    drop(stream);
    world.stop().await;
}

/// The JSON of a text frame.
async fn frame(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Value {
    assert_eq!(stream.read_u8().await.unwrap(), 0x81, "a whole text frame");
    let length = match stream.read_u8().await.unwrap() {
        126 => u64::from(stream.read_u16().await.unwrap()),
        127 => stream.read_u64().await.unwrap(),
        n => u64::from(n),
    };
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_can_begin_with_the_state() {
    let world = start_newest(&[]).await;
    let api = world.api();
    api.post(MAPS, map("a")).await;
    let (code, status) = api.get(&format!("{MAPS}?watch=1&sendInitialEvents=true")).await;
    assert_eq!((code.as_u16(), &status["reason"]), (422, &json!("Invalid")), "{status}");
    let mut events = api
        .watch(&format!("{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&fieldSelector=metadata.name%3Da"))
        .await;
    events.expect("ADDED", "a").await;
    let end = events.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_may_not_say() {
    let world = start(&[]).await;
    let api = world.api();
    let mut object = map("");
    object["metadata"] = json!({"generateName": "gen-", "uid": "mine", "creationTimestamp": "2001-01-01T00:00:00Z",
        "deletionTimestamp": "2001-01-01T00:00:00Z", "selfLink": "/x", "generation": 7});
    let (code, made) = api.post(MAPS, object).await;
    assert_eq!(code, StatusCode::CREATED);
    let name = made["metadata"]["name"].as_str().unwrap();
    let suffix = name.strip_prefix("gen-").unwrap();
    assert!(suffix.len() == 5 && suffix.chars().all(|c| "bcdfghjklmnpqrstvwxz2456789".contains(c)), "{name}");
    assert_ne!(made["metadata"]["uid"], "mine");
    assert!(!made["metadata"]["creationTimestamp"].as_str().unwrap().starts_with("2001"));
    assert!(made["metadata"].get("deletionTimestamp").is_none());
    let mut long = map("");
    long["metadata"] = json!({"generateName": "g".repeat(70)});
    assert_eq!(api.post(MAPS, long).await.1["metadata"]["name"].as_str().unwrap().len(), 63);

    let mut object = map("rv");
    object["metadata"]["resourceVersion"] = json!("5");
    let (_, status) = api.post(MAPS, object).await;
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("resourceVersion should not be set on objects to be created")
    );

    // Deletion cannot be asked for by a write, nor taken back.
    let mut kept = map("kept");
    kept["metadata"]["finalizers"] = json!(["e.com/f"]);
    let (_, made) = api.post(MAPS, kept).await;
    let path = format!("{MAPS}/kept");
    let (code, going) = api.delete(&path).await;
    assert!(code == StatusCode::OK && going["metadata"]["deletionTimestamp"].is_string(), "{going}");
    assert_eq!(going["metadata"]["uid"], made["metadata"]["uid"]);
    let (_, same) = api.patch(&path, json!({"metadata": {"deletionTimestamp": null}})).await;
    assert_eq!(same["metadata"]["deletionTimestamp"], going["metadata"]["deletionTimestamp"]);
    let (code, status) = api.patch(&path, json!({"metadata": {"finalizers": ["e.com/f", "e.com/g"]}})).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("no new finalizers can be added if the object is being deleted")
    );
    assert_eq!(api.patch(&path, json!({"metadata": {"finalizers": null}})).await.0, StatusCode::OK);
    assert_eq!(api.get(&path).await.0, StatusCode::NOT_FOUND);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_and_their_conditions() {
    let world = start(&[]).await;
    let api = world.api();
    let path = format!("{MAPS}/a");
    let (_, made) = api.post(MAPS, map("a")).await;
    // Without a version an update is unconditional; a stale one is a conflict, in these words.
    let (code, changed) = api
        .put(
            &path,
            &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "2"}}),
        )
        .await;
    assert_eq!(code, StatusCode::OK);
    let (code, conflict) = api.put(&path, &made).await;
    assert_eq!((code, conflict["reason"].as_str()), (StatusCode::CONFLICT, Some("Conflict")));
    assert_eq!(
        conflict["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let stale =
        json!({"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "data": {"k": "3"}});
    assert_eq!(api.patch(&path, stale).await.0, StatusCode::CONFLICT);
    let (_, same) = api.patch(&path, json!({"data": {"k": "2"}})).await;
    assert_eq!(version(&same), version(&changed));
    assert_eq!(api.put(&format!("{MAPS}/nobody"), &map("nobody")).await.0, StatusCode::NOT_FOUND);
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    assert_eq!(api.put(&format!("{leases}/l"), &lease).await.0, StatusCode::CREATED);

    // Many patch at once: the server tries again by itself.
    let patches = (0..20).map(|i| {
        let (api, path) = (api.clone(), path.clone());
        tokio::spawn(async move { api.patch(&path, json!({"data": {format!("k{i}"): "v"}})).await.0 })
    });
    for done in futures::future::join_all(patches).await {
        assert_eq!(done.unwrap(), StatusCode::OK);
    }
    assert_eq!(api.get(&path).await.1["data"].as_object().unwrap().len(), 21);

    let wrong = json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    let (code, status) = api.json(Method::DELETE, &path, &[JSON], &wrong).await;
    assert_eq!(code, StatusCode::CONFLICT);
    assert!(status["message"].as_str().unwrap().contains("the UID in the precondition"), "{status}");
    let both = json!({"orphanDependents": true, "propagationPolicy": "Background"});
    assert_eq!(api.json(Method::DELETE, &path, &[JSON], &both).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let (code, gone) = api.delete(&path).await;
    assert_eq!((code, &gone["kind"], &gone["status"]), (StatusCode::OK, &json!("Status"), &json!("Success")));
    assert_eq!(gone["details"]["name"], "a");
    assert_eq!(gone["details"]["uid"], made["metadata"]["uid"]);
    api.post(MAPS, map("b")).await;
    let (code, list) = api.delete(MAPS).await;
    assert_eq!((code, &list["kind"]), (StatusCode::OK, &json!("ConfigMapList")));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_nothing_is_no_event() {
    let world = start(&[]).await;
    let api = world.api();
    let (_, made) = api.post(MAPS, map("a")).await;
    let path = format!("{MAPS}/a");
    let mut events = api.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&made))).await;
    let (code, same) = api.json(Method::PUT, &path, &[JSON], &made).await;
    assert_eq!((code, version(&same)), (StatusCode::OK, version(&made)));
    for patch in [json!({}), json!({"data": {"k": "v"}}), json!({"data": {"nobody": null}})] {
        let (code, same) = api.patch(&path, patch).await;
        assert_eq!((code, version(&same)), (StatusCode::OK, version(&made)));
    }
    let (_, changed) = api.patch(&path, json!({"data": {"k": "w"}})).await;
    let event = events.expect("MODIFIED", "a").await;
    assert_eq!(version(&event), version(&changed));

    // A collection that is deleted is told as the list that it was.
    api.post(MAPS, map("b")).await;
    let (code, gone) = api.delete(&format!("{MAPS}?fieldSelector=metadata.name!%3Dkube-root-ca.crt")).await;
    assert_eq!(
        (code, &gone["kind"], &gone["apiVersion"]),
        (StatusCode::OK, &json!("ConfigMapList"), &json!("v1"))
    );
    let names: Vec<_> = gone["items"].as_array().unwrap().iter().map(|i| &i["metadata"]["name"]).collect();
    assert_eq!(names, [&json!("a"), &json!("b")]);
    events.expect("ADDED", "b").await;
    for name in ["a", "b"] {
        events.expect("DELETED", name).await;
    }
    world.stop().await;
}

/// Until the OpenAPI document has a definition, or has it no longer.
async fn until_defined(api: &Api, name: &str, wanted: bool) -> Value {
    let look = async {
        loop {
            let (_, _, body) = text(api, "/openapi/v2", &[]).await;
            let definition = serde_json::from_str::<Value>(&body).unwrap()["definitions"][name].clone();
            if definition.is_null() != wanted {
                return definition;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, look).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_have_custom_kinds_while_they_are_served() {
    let world = start(&[]).await;
    let api = world.api();
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.shop.example.com"},
        "spec": {"group": "shop.example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    let (code, answer) = api.post(definitions, definition).await;
    assert_eq!(code, StatusCode::CREATED, "{answer}");
    let shown = until_defined(&api, "com.example.shop.v1.Widget", true).await;
    assert_eq!(
        shown["x-kubernetes-group-version-kind"],
        json!([{"group": "shop.example.com", "kind": "Widget", "version": "v1"}])
    );
    assert_eq!(shown["properties"]["spec"]["properties"]["size"]["type"], "integer");
    // When it goes, so does its group, soon and everywhere.
    assert_eq!(api.delete(&format!("{definitions}/widgets.shop.example.com")).await.0, StatusCode::OK);
    until_defined(&api, "com.example.shop.v1.Widget", false).await;
    let service = "/apis/apiregistration.k8s.io/v1/apiservices/v1.shop.example.com";
    let gone = async {
        let listed =
            |all: Value| all["groups"].as_array().unwrap().iter().any(|g| g["name"] == "shop.example.com");
        while listed(api.get("/apis").await.1) || api.get(service).await.0 != StatusCode::NOT_FOUND {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.unwrap();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spec_and_status_are_apart() {
    let world = start(&[]).await;
    let api = world.api();
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}, "status": {"replicas": 9}});
    let (_, made) = api.post(deployments, object).await;
    assert_eq!((&made["metadata"]["generation"], made["status"].get("replicas")), (&json!(1), None));
    let path = format!("{deployments}/d");
    let (_, scaled) = api.patch(&path, json!({"spec": {"replicas": 3}, "status": {"replicas": 7}})).await;
    assert_eq!((&scaled["metadata"]["generation"], scaled["status"].get("replicas")), (&json!(2), None));
    let (_, told) = api
        .patch(&format!("{path}/status"), json!({"spec": {"replicas": 5}, "status": {"replicas": 3}}))
        .await;
    assert_eq!(
        (&told["metadata"]["generation"], &told["spec"]["replicas"], &told["status"]["replicas"]),
        (&json!(2), &json!(3), &json!(3))
    );
    let (_, labelled) = api.patch(&path, json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(labelled["metadata"]["generation"], 2);
    // Scale has a selector that is a text.
    let (_, scale) = api.get(&format!("{path}/scale")).await;
    assert_eq!((&scale["kind"], &scale["status"]["selector"]), (&json!("Scale"), &json!("a=b")));
    let (code, scale) = api.patch(&format!("{path}/scale"), json!({"spec": {"replicas": 4}})).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (StatusCode::OK, &json!(4)));
    assert_eq!(api.get(&path).await.1["metadata"]["generation"], 3);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_go_when_they_may() {
    let world = start(&[]).await;
    let api = world.api();
    api.post(PODS, pod("free")).await;
    // Nobody runs it: it goes at once, and is the answer.
    let (code, gone) = api.delete(&format!("{PODS}/free")).await;
    assert_eq!((code, &gone["kind"]), (StatusCode::OK, &json!("Pod")));
    assert_eq!(api.get(&format!("{PODS}/free")).await.0, StatusCode::NOT_FOUND);
    let mut bound = pod("bound");
    bound["spec"]["nodeName"] = json!("n");
    api.post(PODS, bound).await;
    let path = format!("{PODS}/bound");
    let (_, going) = api.delete(&path).await;
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    // Again, sooner, is possible; later is not.
    let grace = async |n: i64| {
        api.json(Method::DELETE, &path, &[JSON], &json!({"gracePeriodSeconds": n})).await.1["metadata"]["deletionGracePeriodSeconds"].clone()
    };
    assert_eq!(grace(60).await, 30);
    assert_eq!(grace(5).await, 5);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    api.post(PODS, pod("p")).await;
    assert_eq!(api.post(&format!("{PODS}/p/binding"), binding.clone()).await.0, StatusCode::CREATED);
    let (_, p) = api.get(&format!("{PODS}/p")).await;
    assert!(
        p["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["type"] == "PodScheduled" && c["status"] == "True")
    );
    assert_eq!(api.post(&format!("{PODS}/p/binding"), binding).await.0, StatusCode::CONFLICT);
    // A dry run shows what would be, and leaves nothing.
    let (code, shown) = api.post(&format!("{PODS}?dryRun=All"), pod("dry")).await;
    assert_eq!((code, &shown["spec"]["terminationGracePeriodSeconds"]), (StatusCode::CREATED, &json!(30)));
    assert!(shown["metadata"]["uid"].is_string());
    assert_eq!(api.get(&format!("{PODS}/dry")).await.0, StatusCode::NOT_FOUND);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patches_and_apply() {
    let world = start(&[]).await;
    let api = world.api();
    api.post(PODS, pod("p")).await;
    let path = format!("{PODS}/p");
    let send = async |content_type: &str, path: &str, body: Value| {
        api.json(Method::PATCH, path, &[("content-type", content_type)], &body).await
    };
    let (code, status) = send("text/plain", &path, json!({})).await;
    assert_eq!((code.as_u16(), &status["reason"]), (415, &json!("UnsupportedMediaType")));
    let jp = "application/json-patch+json";
    let (code, _) = send(jp, &path, json!([{"op": "test", "path": "/metadata/name", "value": "x"}])).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    let (code, _) = send(jp, &path, json!([{"op": "remove", "path": "/metadata/nope"}])).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    let add = json!([{"op": "add", "path": "/metadata/annotations", "value": {}},
        {"op": "add", "path": "/metadata/annotations/a~1b", "value": "v"},
        {"op": "add", "path": "/spec/tolerations/-", "value": {"key": "k", "operator": "Exists"}}]);
    let (code, patched) = send(jp, &path, add).await;
    assert_eq!(
        (code, &patched["metadata"]["annotations"]["a/b"]),
        (StatusCode::OK, &json!("v")),
        "{patched}"
    );
    assert_eq!(patched["spec"]["tolerations"].as_array().unwrap().last().unwrap()["key"], "k");

    let smp = "application/strategic-merge-patch+json";
    let (_, merged) = send(
        smp,
        &path,
        json!({"metadata": {"labels": {"x": "1"}}, "spec": {"containers": [{"name": "c", "image": "i:2"}]}}),
    )
    .await;
    assert_eq!(merged["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(merged["spec"]["containers"][0]["image"], "i:2");
    let (_, merged) =
        send(smp, &path, json!({"metadata": {"labels": {"$patch": "replace", "y": "2"}}})).await;
    assert_eq!(merged["metadata"]["labels"], json!({"y": "2"}));
    let (code, _) = send(smp, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/x", json!({})).await;
    assert_eq!(code, StatusCode::NOT_FOUND);

    // Applying: who owns what.
    let apply = "application/apply-patch+yaml";
    let of = |k: &str, v: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {k: v}});
    let (code, _) = send(apply, &format!("{MAPS}/m"), of("k", "1")).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    let at = |manager: &str, more: &str| format!("{MAPS}/m?fieldManager={manager}{more}");
    let (code, made) = send(apply, &at("one", ""), of("k", "1")).await;
    assert_eq!(code, StatusCode::CREATED);
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["manager"], &entry["operation"], &entry["fieldsType"]),
        (&json!("one"), &json!("Apply"), &json!("FieldsV1"))
    );
    let (code, conflict) = send(apply, &at("two", ""), of("k", "2")).await;
    assert_eq!(code, StatusCode::CONFLICT);
    let cause = &conflict["details"]["causes"][0];
    assert_eq!((&cause["reason"], &cause["field"]), (&json!("FieldManagerConflict"), &json!(".data.k")));
    assert!(cause["message"].as_str().unwrap().starts_with("conflict with \"one\""), "{cause}");
    assert_eq!(send(apply, &at("two", ""), of("k", "1")).await.0, StatusCode::OK);
    assert_eq!(send(apply, &at("two", "&force=true"), of("k", "2")).await.1["data"]["k"], "2");
    let (_, shrunk) = send(apply, &at("two", ""), of("l", "3")).await;
    assert_eq!(shrunk["data"], json!({"l": "3"}));
    let mut managed = of("l", "3");
    managed["metadata"]["managedFields"] = json!([entry]);
    assert_eq!(send(apply, &at("two", ""), managed).await.0, StatusCode::BAD_REQUEST);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_and_forms() {
    let world = start(&[]).await;
    let api = world.api();
    for path in ["/api", "/api/", "/apis", "/apis/", "/apis/apps", "/apis/apps/v1", "/api/v1"] {
        assert_eq!(api.get(path).await.0, StatusCode::OK, "{path}");
    }
    let (_, version) = api.get("/version").await;
    assert_eq!(
        (&version["major"], &version["minor"], &version["gitVersion"]),
        (&json!("1"), &json!("20"), &json!("v1.20.2"))
    );
    assert_eq!(text(&api, "/version", &[("authorization", "")]).await.0, 200);
    let proto = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let (code, head, _) = text(&api, "/openapi/v2", &[("accept", proto)]).await;
    assert!(code == 200 && header(&head, "content-type").ends_with("+protobuf"), "{head:?}");
    let (_, head, body) = text(&api, "/openapi/v2", &[]).await;
    let document: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]["x-kubernetes-patch-merge-key"],
        "name"
    );
    let tag = header(&head, "etag").to_string();
    assert_eq!(text(&api, "/openapi/v2", &[("if-none-match", &tag)]).await.0, 304);

    api.post(PODS, pod("p")).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let (_, head, body) = text(&api, PODS, &[("accept", table)]).await;
    let rows: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&rows["kind"], &rows["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert!(header(&head, "content-type").starts_with("application/json"));
    let names: Vec<&str> =
        rows["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["Name", "Ready", "Status", "Restarts", "Age", "IP", "Node", "Nominated Node", "Readiness Gates"]
    );
    assert_eq!(rows["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let (_, _, body) = text(&api, &format!("{PODS}?includeObject=None"), &[("accept", table)]).await;
    let rows: Value = serde_json::from_str(&body).unwrap();
    assert!(rows["rows"][0]["object"].is_null(), "{}", rows["rows"][0]["object"]);
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let (_, _, body) = text(&api, PODS, &[("accept", partial)]).await;
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["kind"], "PartialObjectMetadataList");
    for (accept, code) in [
        ("text/html", 406),
        ("*/*", 200),
        ("", 200),
        ("application/vnd.kubernetes.protobuf,application/json", 200),
    ] {
        assert_eq!(text(&api, PODS, &[("accept", accept)]).await.0, code, "{accept}");
    }
    // Of a watch in rows the first says what the columns are.
    let response = api
        .send(Method::GET, &format!("{PODS}?watch=1&timeoutSeconds=1"), &[("accept", table)], Bytes::new())
        .await;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let events: Vec<Value> =
        serde_json::Deserializer::from_slice(&body).into_iter().map(Result::unwrap).collect();
    assert!(events[0]["object"]["columnDefinitions"].as_array().is_some_and(|c| !c.is_empty()));

    let (_, list) = api.get(&format!("{PODS}?fieldSelector=status.phase%3DPending,spec.nodeName%3D")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(api.get(&format!("{PODS}?fieldSelector=spec.nope%3D1")).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(
        api.get(&format!("{PODS}?fieldSelector=metadata.name%20in%20(a)")).await.0,
        StatusCode::BAD_REQUEST
    );
    let mut labelled = pod("l");
    labelled["metadata"]["labels"] = json!({"a": "1", "g": "5"});
    api.post(PODS, labelled).await;
    for (selector, found) in [
        ("a", 1),
        ("!a", 1),
        ("a+in+(1,2)", 1),
        ("a+notin+(1)", 1),
        ("a!%3D1", 1),
        ("g%3E4", 1),
        ("g%3E5", 0),
        ("a,!g", 0),
    ] {
        let (_, list) = api.get(&format!("{PODS}?labelSelector={selector}")).await;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(found), "{selector}: {list}");
    }
    let (code, status) = api.get(&format!("{PODS}/nobody")).await;
    assert_eq!(
        (code.as_u16(), status),
        (
            404,
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "pods \"nobody\" not found",
            "reason": "NotFound", "details": {"name": "nobody", "kind": "pods"}, "code": 404})
        )
    );
    let (_, status) = api.json(Method::GET, PODS, &[("authorization", "Bearer J")], &Value::Null).await;
    assert_eq!(
        status["message"],
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_of_today() {
    let world = start_newest(&[]).await;
    let api = world.api();
    let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let beta = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
    for (accept, media, kind) in [
        (format!("{v2},{beta},application/json"), v2, "APIGroupDiscoveryList"),
        (format!("{beta},application/json"), beta, "APIGroupDiscoveryList"),
        ("application/json".to_string(), "application/json", "APIGroupList"),
    ] {
        let (_, head, body) = text(&api, "/apis", &[("accept", &accept)]).await;
        assert_eq!(header(&head, "content-type"), media);
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["kind"], kind);
        assert_eq!(header(&head, "cache-control"), "public");
        let tag = header(&head, "etag").to_string();
        assert_eq!(text(&api, "/apis", &[("accept", &accept), ("if-none-match", &tag)]).await.0, 304);
    }
    let (_, index) = api.get("/openapi/v3").await;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="));
    let (code, head, body) = text(&api, url, &[]).await;
    assert_eq!((code, header(&head, "cache-control")), (200, "public, immutable"));
    let document: Value = serde_json::from_str(&body).unwrap();
    assert!(document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"].is_object());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_its_checks() {
    let world = start(&[]).await;
    let api = world.api();
    for path in [
        "/healthz",
        "/livez",
        "/readyz",
        "/readyz/etcd",
        "/livez/ping",
        "/readyz/poststarthook/rbac/bootstrap-roles",
    ] {
        let (code, head, body) = text(&api, path, &[]).await;
        assert_eq!((code, body.as_str()), (200, "ok"), "{path}");
        assert!(header(&head, "content-type").starts_with("text/plain"), "{path}");
    }
    assert_eq!(text(&api, "/readyz/nope", &[]).await.0, 404);
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(text(&api, path, &[("authorization", "")]).await.0, 200, "{path}");
    }
    let (_, _, body) = text(&api, "/readyz?verbose", &[]).await;
    for line in [
        "[+]ping ok",
        "[+]log ok",
        "[+]etcd ok",
        "[+]informer-sync ok",
        "[+]poststarthook/start-kube-apiserver-admission-initializer ok",
        "[+]poststarthook/generic-apiserver-start-informers ok",
        "[+]poststarthook/crd-informer-synced ok",
        "[+]poststarthook/rbac/bootstrap-roles ok",
        "[+]poststarthook/scheduling/bootstrap-system-priority-classes ok",
        "[+]poststarthook/apiservice-registration-controller ok",
        "[+]shutdown ok",
        "readyz check passed",
    ] {
        assert!(body.lines().any(|l| l == line), "{line}\n{body}");
    }
    let (_, _, body) = text(&api, "/livez?verbose&exclude=etcd&exclude=nope", &[]).await;
    assert!(body.contains("[+]etcd excluded: ok\n") && body.contains("no matches for \"nope\""), "{body}");

    // The end: first the load balancers are told, and requests go on; then watches end, as a stream ends.
    let world2 = start(&["--shutdown-delay-duration=2s"]).await;
    let api2 = world2.api();
    let mut watch = api2.watch(&format!("{MAPS}?watch=1")).await;
    let names = tokio::spawn(async move {
        while let Some(event) = watch.next().await {
            assert_ne!(event["type"], "ERROR");
        }
    });
    world2.stopper.stop();
    tokio::time::timeout(LIMIT, async {
        while text(&api2, "/readyz", &[]).await.0 != 500 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(text(&api2, "/livez", &[]).await.0, 200);
    assert_eq!(api2.post(MAPS, map("late")).await.0, StatusCode::CREATED);
    tokio::time::timeout(LIMIT, names).await.unwrap().unwrap();
    world2.stop().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_under_kubernetes_names() {
    let world = start(&[]).await;
    let api = world.api();
    api.post(MAPS, map("a")).await;
    let (_, _, body) = text(&api, "/metrics", &[]).await;
    for name in [
        "apiserver_request_total{",
        "apiserver_request_duration_seconds_bucket{",
        "apiserver_current_inflight_requests{request_kind=\"mutating\"}",
        "etcd_object_counts{resource=\"configmaps\"} ",
        "apiserver_flowcontrol_dispatched_requests_total{priority_level=\"exempt\",flow_schema=\"exempt\"} ",
        "apiserver_flowcontrol_request_concurrency_limit{priority_level=\"workload-low\"} ",
    ] {
        assert!(body.lines().any(|l| l.starts_with(name)), "{name}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_quotas_and_rights() {
    let world = start(&[]).await;
    let api = world.api();
    let (code, status) = api.post("/api/v1/namespaces/nowhere/configmaps", map("a")).await;
    assert_eq!((code.as_u16(), &status["message"]), (404, &json!("namespaces \"nowhere\" not found")));
    for name in ["default", "kube-system", "kube-public"] {
        assert_eq!(
            api.delete(&format!("/api/v1/namespaces/{name}")).await.0,
            StatusCode::FORBIDDEN,
            "{name}"
        );
    }
    api.post(
        "/api/v1/namespaces",
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "going"}}),
    )
    .await;
    let (_, going) = api.delete("/api/v1/namespaces/going").await;
    assert_eq!(
        (&going["status"]["phase"], &going["spec"]["finalizers"]),
        (&json!("Terminating"), &json!(["kubernetes"]))
    );
    let (code, status) = api.post("/api/v1/namespaces/going/configmaps", map("a")).await;
    assert_eq!(
        (code.as_u16(), &status["details"]["causes"][0]["reason"]),
        (403, &json!("NamespaceTerminating"))
    );

    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "1", "count/configmaps": "1"}}});
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    api.post(quotas, quota).await;
    api.json(Method::PATCH, &format!("{quotas}/q/status"), &[("content-type", "application/merge-patch+json")],
        &json!({"status": {"hard": {"pods": "1", "count/configmaps": "1"}, "used": {"pods": "0", "count/configmaps": "0"}}})).await;
    assert_eq!(api.post(&format!("{PODS}?dryRun=All"), pod("dry")).await.0, StatusCode::CREATED);
    assert_eq!(api.post(PODS, pod("a")).await.0, StatusCode::CREATED);
    let (code, status) = api.post(PODS, pod("b")).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        status["message"],
        "pods \"b\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"
    );

    // Impersonation, and what one may do.
    let (_, review) = api
        .json(
            Method::POST,
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &[JSON, ("impersonate-user", "jane")],
            &json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}}}),
        )
        .await;
    assert_eq!(review["status"]["allowed"], false);
    let (code, _) = api
        .json(
            Method::GET,
            PODS,
            &[("authorization", "Bearer J"), ("impersonate-user", "admin")],
            &Value::Null,
        )
        .await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_wait_their_turn() {
    // Two places for everybody who is nobody special, and clients that hold theirs as long as they like.
    let world =
        start(&["--max-requests-inflight=1", "--max-mutating-requests-inflight=1", "--request-timeout=4s"])
            .await;
    let api = world.api();
    let who = |path: &'static str, token: &'static str| {
        let api = api.clone();
        async move {
            let token = format!("Bearer {token}");
            text(&api, path, &[("authorization", &token)]).await
        }
    };
    // The configuration is taken on a moment after it is there.
    let named = |head: &http::HeaderMap| !header(head, "x-kubernetes-pf-flowschema-uid").is_empty();
    tokio::time::timeout(LIMIT, async {
        while !named(&who(PODS, "T").await.1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let (_, head, _) = who(PODS, "T").await;
    let (schema, level) =
        (header(&head, "x-kubernetes-pf-flowschema-uid"), header(&head, "x-kubernetes-pf-prioritylevel-uid"));
    let flow = "/apis/flowcontrol.apiserver.k8s.io/v1beta1";
    assert_eq!(api.get(&format!("{flow}/flowschemas/exempt")).await.1["metadata"]["uid"], schema);
    assert_eq!(
        api.get(&format!("{flow}/prioritylevelconfigurations/exempt")).await.1["metadata"]["uid"],
        level
    );
    let (code, head, _) = who(PODS, "J").await;
    assert_eq!(code, 403);
    let global = api.get(&format!("{flow}/flowschemas/global-default")).await.1;
    assert_eq!(global["metadata"]["uid"], header(&head, "x-kubernetes-pf-flowschema-uid"));

    // One of jane's requests takes the level's only place and does not end; the next waits and is refused.
    let rule = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "jane"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}]});
    let (code, _) = api.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", rule).await;
    assert_eq!(code, StatusCode::CREATED);
    let stuck = api.0.clone();
    let holding = tokio::spawn(async move {
        use futures::StreamExt;
        let frames = futures::stream::iter([Bytes::from_static(b"{")]).chain(futures::stream::pending());
        let frames = frames.map(|b| Ok::<_, std::convert::Infallible>(hyper::body::Frame::data(b)));
        let body = http_body_util::StreamBody::new(frames).map_err(|e| match e {}).boxed_unsync();
        let request = http::Request::post(MAPS)
            .header("authorization", "Bearer J")
            .header("content-type", "application/json");
        stuck.send(request.body(body).unwrap(), LIMIT).await.map(|r| r.status().as_u16())
    });
    let executing = "apiserver_flowcontrol_current_executing_requests{priority_level=\"global-default\",flow_schema=\"global-default\"} 1";
    tokio::time::timeout(LIMIT, async {
        while !text(&api, "/metrics", &[]).await.2.contains(executing) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let (code, head, body) = who(PODS, "J").await;
    assert_eq!((code, header(&head, "retry-after")), (429, "1"), "{body}");
    assert!(body.contains("Too many requests, please try again later."), "{body}");
    let (_, _, dump) = who("/debug/api_priority_and_fairness/dump_priority_levels", "T").await;
    assert!(
        dump.starts_with(
            "PriorityLevelName, ActiveQueues, IsIdle, IsQuiescing, WaitingRequests, ExecutingRequests,"
        ),
        "{dump}"
    );
    // Administrators are served all the while, and watches take no place.
    assert_eq!(who(PODS, "T").await.0, 200);
    let mut watches = Vec::new();
    for _ in 0..10 {
        watches.push(api.watch(&format!("{MAPS}?watch=1")).await);
    }
    assert_eq!(holding.await.unwrap().unwrap(), 504);
    assert_eq!(who(PODS, "J").await.0, 200);
    world.stop().await;
}
