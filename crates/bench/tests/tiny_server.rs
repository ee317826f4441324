//! The whole program against a small API server in this process, over HTTP/1.1 and HTTP/2, with TLS and without.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use pilothouse_bench::args::Arguments;
use pilothouse_bench::commands;
use pilothouse_bench::report::{Cell, Report};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_rustls::TlsAcceptor;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Objects by path, and the events of their changes.
struct Server {
    objects: Mutex<BTreeMap<String, Value>>,
    events: broadcast::Sender<Bytes>,
    calls: Mutex<u32>,
}

impl Server {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let path = head.uri.path().to_string();
        let query = head.uri.query().unwrap_or_default();
        if head.headers.get(header::AUTHORIZATION).is_none_or(|t| t != "Bearer secret") {
            return Ok(text(StatusCode::UNAUTHORIZED, "who?"));
        }
        if path == "/metrics" {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            let text_ = format!("process_cpu_seconds_total {calls}\nprocess_resident_memory_bytes 1048576\n");
            return Ok(text(StatusCode::OK, &text_));
        }
        let is_collection = path.ends_with("/pods") || path.ends_with("/configmaps");
        if query.contains("watch=true") {
            let events = futures::stream::unfold(self.events.subscribe(), |mut r| async move {
                let event = r.recv().await.ok()?;
                Some((Ok::<_, Infallible>(Frame::data(event)), r))
            });
            return Ok(Response::new(BodyExt::boxed_unsync(StreamBody::new(events))));
        }
        let mut objects = self.objects.lock().unwrap();
        match (&head.method, is_collection) {
            (&Method::POST, true) => {
                let mut object: Value = serde_json::from_slice(&body).unwrap();
                let name = object["metadata"]["name"].as_str().unwrap().to_string();
                if path.ends_with("/pods") {
                    object["spec"]["nodeName"] = "n".into();
                    object["status"] = json!({"phase": "Running"});
                }
                let event = json!({"type": "ADDED", "object": object});
                objects.insert(format!("{path}/{name}"), object);
                let _ = self.events.send(format!("{event}\n").into());
                Ok(text(StatusCode::CREATED, "{}"))
            }
            (&Method::GET, true) => {
                let items: Vec<&Value> = objects.values().collect();
                let list = json!({"metadata": {"resourceVersion": "1"}, "items": items});
                Ok(text(StatusCode::OK, &list.to_string()))
            }
            (&Method::DELETE, false) => match objects.remove(&path) {
                Some(object) => {
                    let event = json!({"type": "DELETED", "object": object});
                    let _ = self.events.send(format!("{event}\n").into());
                    Ok(text(StatusCode::OK, "{}"))
                }
                None => Ok(text(StatusCode::NOT_FOUND, "gone")),
            },
            _ => match objects.get(&path) {
                Some(object) => Ok(text(StatusCode::OK, &object.to_string())),
                None => Ok(text(StatusCode::NOT_FOUND, "none")),
            },
        }
    }
}

fn text(status: StatusCode, body: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

async fn serve(tls: bool) -> (SocketAddr, Arc<Server>) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let server = Arc::new(Server {
        objects: Mutex::default(),
        events: broadcast::channel(10_000).0,
        calls: Mutex::default(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tls.then(|| {
        let key = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
        let mut config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                rustls_pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()).into(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    });
    let shared = server.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (server, acceptor) = (shared.clone(), acceptor.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| server.clone().answer(request));
                let builder = auto::Builder::new(TokioExecutor::new());
                match acceptor {
                    Some(acceptor) => {
                        let Ok(tls) = acceptor.accept(tcp).await else { return };
                        let _ = builder.serve_connection(TokioIo::new(tls), service).await;
                    }
                    None => {
                        let _ = builder.serve_connection(TokioIo::new(tcp), service).await;
                    }
                }
            });
        }
    });
    (address, server)
}

async fn bench(line: &str) -> anyhow::Result<Report> {
    let arguments = Arguments::try_parse_from(["bench"].into_iter().chain(line.split(' '))).unwrap();
    tokio::time::timeout(Duration::from_secs(60), commands::measure(&arguments)).await.unwrap()
}

#[tokio::test]
async fn load_over_both_protocols() {
    for (tls, flags) in [(true, ""), (true, " --http1"), (false, ""), (false, " --http1")] {
        let (address, server) = serve(tls).await;
        let scheme = if tls { "https" } else { "http" };
        let line = format!(
            "load --server {scheme}://{address} --insecure --token secret -n 50 --writers 4,8{flags}"
        );
        let report = bench(&line).await.unwrap();
        // Two kinds, two numbers of writers, five operations.
        assert_eq!(report.len(), 20, "{line}");
        assert_eq!(report.cell(0, "what"), Some(&Cell::Text("create ConfigMap".into())));
        for row in 0..20 {
            assert_eq!(report.cell(row, "n"), Some(&Cell::Count(50)));
            // The tiny server's CPU counter goes up by one second from one scrape to the next.
            assert_eq!(report.cell(row, "server CPU s per 1,000"), Some(&Cell::Number(20.0)));
        }
        assert!(server.objects.lock().unwrap().is_empty(), "what was made is removed");
    }
}

#[tokio::test]
async fn what_is_read_is_made_first() {
    let (address, server) = serve(true).await;
    let line = format!(
        "load --server https://{address} --insecure --token secret -n 10 --kinds pods --operations get --keep --rate 1000"
    );
    let report = bench(&line).await.unwrap();
    assert_eq!(report.len(), 1);
    assert_eq!(server.objects.lock().unwrap().len(), 10);
}

#[tokio::test]
async fn lists() {
    let (address, server) = serve(true).await;
    let line =
        format!("list --server https://{address} --insecure --token secret -n 20 --lists 5 --clients 2");
    let report = bench(&line).await.unwrap();
    assert_eq!(report.len(), 4);
    assert!(matches!(report.cell(0, "MB each"), Some(Cell::Number(mb)) if *mb > 0.03));
    assert!(server.objects.lock().unwrap().is_empty());
    let line = format!("{line} --chunk 5 --forms json,table --selector app=pilothouse-bench");
    assert_eq!(bench(&line).await.unwrap().len(), 4);
}

#[tokio::test]
async fn every_watcher_hears_everything() {
    let (address, _server) = serve(true).await;
    let line = format!(
        "watch --server https://{address} --insecure --token secret -n 30 --writers 3 --watchers 7 --per-connection 3"
    );
    let report = bench(&line).await.unwrap();
    assert_eq!(report.len(), 2);
    assert_eq!(report.cell(1, "events delivered"), Some(&Cell::Count(210)));
    assert!(matches!(report.cell(1, "s until all events are with all"), Some(Cell::Number(_))));
}

#[tokio::test]
async fn pods_are_seen_running_and_deleted() {
    let (address, server) = serve(true).await;
    let report =
        bench(&format!("pod --server https://{address} --insecure --token secret --runs 3")).await.unwrap();
    assert_eq!(report.len(), 4);
    assert_eq!(report.cell(3, "run"), Some(&Cell::Text("median".into())));
    assert!(matches!(report.cell(3, "ms to Running"), Some(Cell::Number(_))));
    assert!(server.objects.lock().unwrap().is_empty());
}

#[tokio::test]
async fn failures_are_errors() {
    let (address, _server) = serve(true).await;
    let line = format!("load --server https://{address} --insecure --token wrong -n 5 --kinds pods");
    assert!(format!("{:#}", bench(&line).await.unwrap_err()).contains("401"));
    let line = format!("start --server https://{address} --runs 1 -- true");
    assert!(format!("{:#}", bench(&line).await.unwrap_err()).contains("listens"));
}

#[tokio::test]
async fn a_command_that_ends_is_no_server() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let line = format!("start --server https://{free} --runs 1 -- false");
    assert!(format!("{:#}", bench(&line).await.unwrap_err()).contains("ended before it was ready"));
}
