//! An API server over a real socket, for tests: started on a store, spoken to by HTTPS.

pub(crate) mod proto;
pub(crate) mod webhook;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use pilothouse_apimachinery::json::Value;
use pilothouse_apiserver::config::Config;
use pilothouse_apiserver::outbound::{Target, tls};
use pilothouse_apiserver::request::full;
use pilothouse_apiserver::server::{Server, open_store};
use pilothouse_component_base::flags::{self, Flags};
use pilothouse_component_base::signals::{Stop, Stopper};
use pilothouse_store::Store;
use tempfile::TempDir;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) stopper: Stopper,
    pub(crate) server: Server,
}

/// A client of a server.
#[derive(Clone)]
pub(crate) struct Api(pub(crate) Target);

pub(crate) fn config(dir: &TempDir, more: &[&str]) -> Config {
    let path = |p: &str| dir.path().join(p).display().to_string();
    std::fs::write(dir.path().join("tokens.csv"), "T,admin,1,\"system:masters\"\nJ,jane,2\n").unwrap();
    let mut args = vec![
        "--emulated-version=1.20".to_string(),
        "--storage-backend=embedded".into(),
        format!("--data-dir={}", path("data")),
        format!("--cert-dir={}", path("pki")),
        format!("--token-auth-file={}", path("tokens.csv")),
        "--bind-address=127.0.0.1".into(),
        "--secure-port=0".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--disable-admission-plugins=ServiceAccount".into(),
    ];
    args.extend(more.iter().map(ToString::to_string));
    Config::from_flags(&Flags::parse(&flags::table(pilothouse_apiserver::FLAGS), args).unwrap()).unwrap()
}

pub(crate) async fn start_on(dir: TempDir, store: Arc<dyn Store>, more: &[&str]) -> World {
    let (stopper, stop) = Stop::new();
    let server = Server::start(config(&dir, more), store.clone(), stop).await.unwrap();
    let world = World { dir, store, stopper, server };
    let api = world.api();
    tokio::time::timeout(LIMIT, async {
        while api.get("/readyz").await.0 != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the server does not become ready");
    world
}

pub(crate) async fn start(more: &[&str]) -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&config(&dir, more)).await.unwrap();
    start_on(dir, store, more).await
}

/// A server of the newest release.
pub(crate) async fn start_newest(more: &[&str]) -> World {
    let mut flags = vec!["--emulated-version="];
    flags.extend(more);
    start(&flags).await
}

impl World {
    pub(crate) fn api(&self) -> Api {
        let pem = std::fs::read(self.dir.path().join("pki/apiserver.crt")).unwrap();
        Api(Target {
            host: "localhost".into(),
            port: self.server.address.port(),
            tls: Some(tls::client(tls::Trust::Pem(&pem), None).unwrap()),
            addresses: vec![self.server.address],
        })
    }

    pub(crate) async fn stop(self) -> TempDir {
        self.stopper.stop();
        tokio::time::timeout(LIMIT, self.server.wait()).await.expect("the server does not stop");
        self.dir
    }
}

impl Api {
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> http::Response<Incoming> {
        let mut request = http::Request::builder().method(method).uri(path);
        if !headers.iter().any(|(n, _)| *n == "authorization") {
            request = request.header("authorization", "Bearer T");
        }
        for (name, value) in headers.iter().filter(|(_, v)| !v.is_empty()) {
            request = request.header(*name, *value);
        }
        self.0.send(request.body(full(body)).unwrap(), LIMIT).await.unwrap()
    }

    pub(crate) async fn json(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> (StatusCode, Value) {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let response = self.send(method, path, headers, body).await;
        let code = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.json(Method::GET, path, &[], &Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.json(Method::POST, path, &[("content-type", "application/json")], &body).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.json(Method::PUT, path, &[("content-type", "application/json")], body).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.json(Method::PATCH, path, &[("content-type", "application/merge-patch+json")], &body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.json(Method::DELETE, path, &[], &Value::Null).await
    }

    /// Asks as the user of this token.
    pub(crate) async fn ask(&self, token: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        let user = format!("Bearer {token}");
        let headers = [("authorization", user.as_str()), ("content-type", "application/json")];
        let (code, answer) = self.json(method.parse().unwrap(), path, &headers, &body).await;
        (code.as_u16(), answer)
    }

    /// Creates what must be creatable; answers what was made.
    pub(crate) async fn create(&self, path: &str, body: Value) -> Value {
        let (code, made) = self.post(path, body).await;
        assert_eq!(code, StatusCode::CREATED, "{made}");
        made
    }

    /// Reads again and again until the answer is as wanted.
    pub(crate) async fn until(&self, path: &str, reached: impl Fn(StatusCode, &Value) -> bool) -> Value {
        let look = async {
            loop {
                let (code, body) = self.get(path).await;
                if reached(code, &body) {
                    return body;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, look).await.expect(path)
    }

    pub(crate) async fn watch(&self, path: &str) -> Events {
        let response = self.send(Method::GET, path, &[], Bytes::new()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Events { body: response.into_body(), buffer: Vec::new() }
    }
}

/// Makes a CustomResourceDefinition and waits until all its versions are served.
pub(crate) async fn define(api: &Api, crd: Value) {
    api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd.clone()).await;
    for version in crd["spec"]["versions"].as_array().unwrap() {
        let text = |value: &Value| value.as_str().unwrap().to_string();
        let (group, plural) = (text(&crd["spec"]["group"]), text(&crd["spec"]["names"]["plural"]));
        let path = format!("/apis/{group}/{}/{plural}", text(&version["name"]));
        api.until(&path, |code, _| code == StatusCode::OK).await;
    }
}

/// A running watch.
pub(crate) struct Events {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; none at the end of the watch.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(LIMIT, self.body.frame()).await.expect("no event comes")?;
            if let Ok(data) = frame.ok()?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    pub(crate) async fn expect(&mut self, type_: &str, name: &str) -> Value {
        let event = self.next().await.expect("the watch has ended");
        assert_eq!(
            (event["type"].as_str(), event["object"]["metadata"]["name"].as_str()),
            (Some(type_), Some(name))
        );
        event["object"].clone()
    }
}
