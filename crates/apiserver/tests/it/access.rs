//! Who may do what, and tunnels to kubelets, over real sockets.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apiserver::outbound::tls;
use pilothouse_apiserver::request::{Body, full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::common::{Api, LIMIT, start};

/// A node whose kubelet listens on this port, and a pod that is bound to it.
async fn node_and_pod(api: &Api, port: u16) {
    api.create("/api/v1/nodes", json!({"metadata": {"name": "n1"}})).await;
    let (_, mut node) = api.ask("T", "GET", "/api/v1/nodes/n1", Value::Null).await;
    node["status"] = json!({"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}});
    assert_eq!(api.ask("T", "PUT", "/api/v1/nodes/n1/status", node).await.0, 200);
    let spec = json!({"containers": [{"name": "c", "image": "i"}]});
    api.create("/api/v1/namespaces/default/pods", json!({"metadata": {"name": "p"}, "spec": spec})).await;
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    let (code, _) = api.ask("T", "POST", "/api/v1/namespaces/default/pods/p/binding", binding).await;
    assert_eq!(code, 201);
}

/// A kubelet with TLS: logs come in two pieces, the second when told; streams answer in capitals once the other side
/// has ended.
async fn kubelet(second: Arc<Notify>) -> u16 {
    let pair = rcgen::generate_simple_self_signed(["n1".to_string()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, second) = (acceptor.clone(), second.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(tcp).await.unwrap();
                let service = service_fn(move |r| answer(r, second.clone()));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let _ = connection.with_upgrades().await;
            });
        }
    });
    port
}

async fn answer(
    mut request: http::Request<Incoming>,
    second: Arc<Notify>,
) -> Result<http::Response<Body>, Infallible> {
    let path = request.uri().path_and_query().unwrap().to_string();
    if path.starts_with("/containerLogs/") {
        let pieces = futures::stream::iter(["first\n", "second\n"]).then(move |piece| {
            let second = second.clone();
            async move {
                if piece.starts_with('s') {
                    second.notified().await;
                }
                Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(piece.as_bytes())))
            }
        });
        return Ok(http::Response::new(StreamBody::new(pieces).map_err(Into::into).boxed_unsync()));
    }
    assert_eq!(path, "/exec/default/p/c?input=1&output=1&command=tr");
    assert!(!request.headers().contains_key("authorization"));
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all.to_ascii_uppercase()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let response =
        http::Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "SPDY/3.1");
    Ok(response.body(full(Bytes::new())).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_as_they_are_written() {
    let world = start(&[]).await;
    let api = world.api();
    let second = Arc::new(Notify::new());
    node_and_pod(&api, kubelet(second.clone()).await).await;
    let path = "/api/v1/namespaces/default/pods/p/log?follow=true";
    let response = api.send(Method::GET, path, &[], Bytes::new()).await;
    assert_eq!(response.headers()["content-type"], "text/plain");
    let mut body = response.into_body();
    let first = tokio::time::timeout(LIMIT, body.frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "first\n");
    second.notify_one();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "second\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_in_one_direction_at_a_time() {
    let world = start(&[]).await;
    let api = world.api();
    node_and_pod(&api, kubelet(Arc::default()).await).await;
    let path = "/api/v1/namespaces/default/pods/p/exec?container=c&stdin=1&stdout=true&command=tr";
    let headers = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    let response = api.send(Method::POST, path, &headers, Bytes::new()).await;
    assert_eq!(response.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut all)).await.unwrap().unwrap();
    assert_eq!(all, b"HELLO");
    let as_jane = [headers[0], headers[1], ("authorization", "Bearer J")];
    let refused = api.send(Method::POST, path, &as_jane, Bytes::new()).await;
    assert_eq!(refused.status(), 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_die_with_what_they_are_bound_to() {
    let world = start(&[]).await;
    let api = world.api();
    api.create("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "bot"}})).await;
    let secret = api.create("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await;
    let reference =
        json!({"apiVersion": "v1", "kind": "Secret", "name": "s", "uid": secret["metadata"]["uid"]});
    let path = "/api/v1/namespaces/default/serviceaccounts/bot/token";
    let made = api.create(path, json!({"spec": {"boundObjectRef": reference}})).await;
    let token = made["status"]["token"].as_str().unwrap();
    let (code, refusal) = api.ask(token, "GET", "/api/v1/namespaces/default/pods", Value::Null).await;
    assert_eq!(code, 403);
    assert!(
        refusal["message"]
            .as_str()
            .unwrap()
            .contains("User \"system:serviceaccount:default:bot\" cannot list")
    );
    let path = "/api/v1/namespaces/default/secrets/s";
    assert_eq!(api.ask("T", "DELETE", path, Value::Null).await.0, 200);
    // Tokens are checked against the cache; a consistent read brings it up to the deletion.
    assert_eq!(api.ask("T", "GET", path, Value::Null).await.0, 404);
    assert_eq!(api.ask(token, "GET", "/api/v1/namespaces/default/pods", Value::Null).await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_away_what_he_does_not_hold() {
    let world = start(&[]).await;
    let api = world.api();
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let rule = |verbs: Value, group: &str, resources: Value| json!({"verbs": verbs, "apiGroups": [group], "resources": resources});
    let roles = rule(json!(["create"]), "rbac.authorization.k8s.io", json!(["roles", "rolebindings"]));
    let own =
        json!({"metadata": {"name": "own"}, "rules": [roles, rule(json!(["get"]), "", json!(["pods"]))]});
    api.create(&format!("{rbac}/roles"), own).await;
    let bind = |name: &str, kind: &str, role: &str, user: &str| {
        json!({"metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "User", "name": user}]})
    };
    api.create(&format!("{rbac}/rolebindings"), bind("own", "Role", "own", "jane")).await;
    let role = |name: &str, verbs: Value| json!({"metadata": {"name": name}, "rules": [rule(verbs, "", json!(["pods"]))]});
    let roles = format!("{rbac}/roles");
    assert_eq!(api.ask("J", "POST", &roles, role("a", json!(["get"]))).await.0, 201);
    let (code, refusal) = api.ask("J", "POST", &roles, role("b", json!(["get", "delete"]))).await;
    assert_eq!(code, 403);
    assert_eq!(
        refusal["message"],
        "roles.rbac.authorization.k8s.io \"b\" is forbidden: user \"jane\" (groups=[\"system:authenticated\"]) is attempting \
         to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
    );
    let bindings = format!("{rbac}/rolebindings");
    assert_eq!(api.ask("J", "POST", &bindings, bind("c", "Role", "a", "eve")).await.0, 201);
    let (code, _) = api.ask("J", "POST", &bindings, bind("d", "ClusterRole", "cluster-admin", "eve")).await;
    assert_eq!(code, 403);
}
