//! The server over real sockets, before a runtime that pretends.

use super::*;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::api::{ApiError, PodApi};
use crate::images::keyring::Keyring;
use crate::kubelet::Dependencies;
use crate::node::NodeView;
use crate::objects::FixedObjects;
use crate::runtime::fake::FakeCri;
use crate::runtime::{Cri, ExecOutput, cri, labels};
use crate::volumes::fake::FakeVolumes;

struct NoApi;

#[async_trait]
impl PodApi for NoApi {
    async fn patch_status(&self, _: &str, _: &str, _: &Value) -> Result<Pod, ApiError> {
        Err(ApiError::NotFound)
    }
    async fn delete(&self, _: &str, _: &str, _: &str) -> Result<(), ApiError> {
        Err(ApiError::NotFound)
    }
    async fn create(&self, _: &Pod) -> Result<Pod, ApiError> {
        Err(ApiError::NotFound)
    }
}

struct World {
    cri: FakeCri,
    to: SocketAddr,
    log: std::path::PathBuf,
    _dir: tempfile::TempDir,
    _stop: pilothouse_component_base::signals::Stopper,
}

/// A kubelet with the running pod `n/p`, container `c`.
async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::testing::config(dir.path());
    let cri = FakeCri::with_images(&["busybox"]);
    let (recorder, _) = pilothouse_client::EventRecorder::for_test("kubelet");
    let metrics = Metrics::default();
    let kubelet = Kubelet::new(
        config,
        Dependencies {
            cri: Arc::new(cri.clone()),
            volumes: Arc::new(FakeVolumes::new(dir.path())),
            objects: Arc::new(FixedObjects::default()),
            api: Arc::new(NoApi),
            recorder,
            services: pilothouse_client::Informer::new(),
            metrics: crate::metrics::Metrics::new(&metrics, "node01"),
            cgroups: None,
            node: NodeView::new(Default::default(), "20.0.0.103".into(), 1 << 30),
            keyring: Keyring::default(),
        },
    );
    let log = dir.path().join("0.log");
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"containers": [{"name": "c"}, {"name": "waiting"}]}}))
    .unwrap();
    let sandbox = cri::PodSandboxConfig { labels: labels::sandbox_labels(&pod), ..Default::default() };
    let sandbox_id = cri.run_sandbox(sandbox, "").await.unwrap();
    let container = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
        labels: labels::container_labels(&pod, &pod.spec.as_ref().unwrap().containers[0]),
        log_path: log.display().to_string(),
        ..Default::default()
    };
    let id = cri.create_container(&sandbox_id, container, Default::default()).await.unwrap();
    cri.start_container(&id).await.unwrap();
    let status = |name: &str, state: Value| {
        json!({"name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state,
            "containerID": format!("fake://{id}")})
    };
    let status: PodStatus = serde_json::from_value(json!({"containerStatuses": [
        status("c", json!({"running": {}})),
        status("waiting", json!({"waiting": {"reason": "ContainerCreating"}}))]}))
    .unwrap();
    let pod = Arc::new(pod);
    kubelet.registry.set(pod.clone());
    kubelet.status.set(&pod, status);
    let port = Port {
        requests: metrics::Requests::new(&metrics),
        shown: Arc::new(Shown { stats: Stats::new(kubelet.clone()), kubelet, metrics }),
        auth: None,
        debugging: true,
        system_logs: true,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let (stopper, stop) = Stop::new();
    tokio::spawn(accept(listener, None, Arc::new(port), stop));
    cri.take_calls();
    World { cri, to, log, _dir: dir, _stop: stopper }
}

impl World {
    /// Sends a request and reads all of the answer.
    async fn ask(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let mut s = TcpStream::connect(self.to).await.unwrap();
        let text = format!("{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{headers}\r\n");
        s.write_all(text.as_bytes()).await.unwrap();
        let mut all = String::new();
        s.read_to_string(&mut all).await.unwrap();
        let (head, body) = all.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), unchunk(head, body))
    }
}

fn unchunk(head: &str, body: &str) -> String {
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        return body.to_string();
    }
    let (mut rest, mut out) = (body, String::new());
    while let Some((size, more)) = rest.split_once("\r\n") {
        let n = usize::from_str_radix(size, 16).unwrap();
        out.push_str(&more[..n]);
        rest = &more[n + 2..];
    }
    out
}

/// Reads the head of a request or an answer.
async fn head(s: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(s.read_u8().await.unwrap());
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_stream_goes_through_and_each_side_ends_by_itself() {
    let w = world().await;
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    w.cri.serve_streams_at(&format!("http://{}/exec/token", upstream.local_addr().unwrap()));
    let runtime = tokio::spawn(async move {
        let (mut s, _) = upstream.accept().await.unwrap();
        let asked = head(&mut s).await;
        s.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\nfirst")
            .await
            .unwrap();
        let mut got = String::new();
        s.read_to_string(&mut got).await.unwrap();
        // The client is done speaking; the answer still goes its way.
        s.write_all(format!("<{got}>").as_bytes()).await.unwrap();
        asked
    });
    let mut client = TcpStream::connect(w.to).await.unwrap();
    client
        .write_all(b"POST /exec/n/p/c?command=cat&command=a+b&input=1&output=1 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer secret\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: v3.channel.k8s.io\r\n\r\n")
        .await
        .unwrap();
    let answer = head(&mut client).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(
        answer.contains("upgrade: spdy/3.1") && answer.contains("x-stream-protocol-version: v4"),
        "{answer}"
    );
    let mut first = [0; 5];
    client.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"first");
    client.write_all(b"to the runtime").await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "<to the runtime>");
    let asked = runtime.await.unwrap().to_lowercase();
    assert!(asked.starts_with("post /exec/token http/1.1"), "{asked}");
    assert!(
        asked.contains("v4.channel") && asked.contains("v3.channel") && !asked.contains("secret"),
        "{asked}"
    );
    let calls = w.cri.take_calls().join("\n");
    assert!(calls.contains("cmd: [\"cat\", \"a b\"]") && calls.contains("stdin: true"), "{calls}");
}

#[tokio::test]
async fn streams_are_refused_as_in_v1_20() {
    let w = world().await;
    let upgrade =
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n";
    assert_eq!(w.ask("POST", "/exec/n/p/c?command=x", "").await.0, 400);
    assert_eq!(w.ask("POST", "/exec/n/nosuch/c?output=1", "").await, (404, "pod does not exist".into()));
    let (code, body) = w.ask("POST", "/exec/n/p/waiting?output=1", upgrade).await;
    assert_eq!((code, body.as_str()), (500, "container not found (\"waiting\")"));
    let (code, body) = w.ask("POST", "/attach/n/p/waiting?output=1", upgrade).await;
    assert_eq!((code, body.as_str()), (500, "container waiting not found in pod p_n"));
    w.cri.serve_streams_at("http://127.0.0.1:1/exec/x");
    assert_eq!(w.ask("POST", "/exec/n/p/c?output=1", "").await, (500, "Upgrade request required\n".into()));
    assert_eq!(w.ask("POST", "/portForward/n/p", "").await, (500, "Upgrade request required\n".into()));
    let (code, body) = w.ask("GET", "/portForward/n/p", upgrade).await;
    assert_eq!((code, body.as_str()), (400, "query parameter \"port\" is required"));
    assert_eq!(
        w.ask("POST", "/exec/n/p/c?output=1", "Accept: application/json\r\n").await,
        (406, "406: Not Acceptable".into())
    );
}

#[tokio::test]
async fn what_the_runtime_refuses_is_refused_at_once() {
    let w = world().await;
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    w.cri.serve_streams_at(&format!("http://{}/exec/token", upstream.local_addr().unwrap()));
    tokio::spawn(async move {
        let (mut s, _) = upstream.accept().await.unwrap();
        head(&mut s).await;
        s.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 11\r\n\r\nno such v5\n").await.unwrap();
        // It stays open: the refusal must not wait for its end.
        std::future::pending::<()>().await;
    });
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(w.ask("GET", "/exec/n/p/c?output=1", upgrade).await, (403, "no such v5\n".into()));
}

#[tokio::test]
async fn logs() {
    let w = world().await;
    std::fs::write(&w.log, "2020-01-01T00:00:00Z stdout F one\n2020-01-01T00:00:01Z stdout F two\n").unwrap();
    let get = async |q: &str| w.ask("GET", &format!("/containerLogs/n/p/{q}"), "").await;
    assert_eq!(get("c").await, (200, "one\ntwo\n".into()));
    assert_eq!(
        get("c?tailLines=1&timestamps=true").await,
        (200, "2020-01-01T00:00:01.000000000Z two\n".into())
    );
    assert_eq!(get("c?limitBytes=5").await, (200, "one\nt".into()));
    assert_eq!(get("c?tailLines=x").await, (400, "{\"message\": \"Unable to decode query.\"}".into()));
    assert_eq!(get("c?limitBytes=0").await, (422, "{\"message\": \"Invalid request.\"}".into()));
    assert_eq!(get("nosuch").await, (404, "container \"nosuch\" not found in pod \"p\"\n".into()));
    let why = "container \"waiting\" in pod \"p\" is waiting to start: ContainerCreating";
    assert_eq!(get("waiting").await, (400, why.into()));
    let why = "previous terminated container \"c\" in pod \"p\" not found";
    assert_eq!(get("c?previous=true").await, (400, why.into()));
    assert_eq!(w.ask("GET", "/containerLogs/n/q/c", "").await, (404, "pod \"q\" does not exist\n".into()));
}

#[tokio::test]
async fn a_followed_log_ends_with_its_container() {
    let w = world().await;
    std::fs::write(&w.log, "2020-01-01T00:00:00Z stdout F one\n").unwrap();
    let cri = w.cri.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cri.exit("c", 0);
    });
    assert_eq!(w.ask("GET", "/containerLogs/n/p/c?follow=true", "").await, (200, "one\n".into()));
}

#[tokio::test]
async fn pages() {
    let w = world().await;
    assert_eq!(w.ask("GET", "/healthz", "").await, (200, "ok".into()));
    let pods: Value = serde_json::from_str(&w.ask("GET", "/pods", "").await.1).unwrap();
    assert_eq!(
        (pods["kind"].as_str(), pods["items"][0]["metadata"]["name"].as_str()),
        (Some("PodList"), Some("p"))
    );
    let running: Value = serde_json::from_str(&w.ask("GET", "/runningpods/", "").await.1).unwrap();
    assert_eq!(running["items"][0]["spec"]["containers"][0]["name"], "c");
    let config: Value = serde_json::from_str(&w.ask("GET", "/configz", "").await.1).unwrap();
    assert_eq!(config["kubeletconfig"]["maxPods"], 110);
    let summary: Value = serde_json::from_str(&w.ask("GET", "/stats/summary", "").await.1).unwrap();
    assert_eq!(summary["pods"][0]["containers"][0]["name"], "c");
    assert!(w.ask("GET", "/metrics", "").await.1.contains("kubelet_http_requests_total{"));
    assert!(w.ask("GET", "/metrics/cadvisor", "").await.1.contains("machine_cpu_cores{"));
    assert!(w.ask("GET", "/metrics/resource", "").await.1.contains("scrape_error 0"));
    assert_eq!(w.ask("GET", "/nosuch", "").await, (404, "404 page not found\n".into()));
    w.cri.on_exec("echo hi", ExecOutput { stdout: b"hi\n".to_vec(), ..Default::default() });
    w.cri.on_exec("false", ExecOutput { stderr: b"no".to_vec(), exit_code: 1, ..Default::default() });
    assert_eq!(w.ask("POST", "/run/n/p/c?cmd=echo%20hi", "").await, (200, "hi\n".into()));
    assert_eq!(
        w.ask("POST", "/run/n/p/c?cmd=false", "").await,
        (500, "command 'false' exited with 1: no".into())
    );
}
