//! Connections to the server. Thin on purpose: what the client does takes CPU from the server that it measures.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use crate::target::Target;

/// Flow-control windows as Kubernetes' own clients ask for them.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

enum Sender {
    One(Mutex<http1::SendRequest<Full<Bytes>>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// One request.
#[derive(Debug, Clone)]
pub struct Call {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// What the answer may be.
    pub accept: &'static str,
    /// Type of the body.
    pub content_type: &'static str,
    /// Body.
    pub body: Bytes,
}

/// JSON's media type.
pub const JSON: &str = "application/json";

impl Call {
    /// A GET for JSON.
    pub fn get(path: impl Into<String>) -> Call {
        Call { method: Method::GET, path: path.into(), accept: JSON, content_type: "", body: Bytes::new() }
    }

    /// A request with a JSON body.
    pub fn with(method: Method, path: impl Into<String>, body: impl Into<Bytes>) -> Call {
        Call { method, path: path.into(), accept: JSON, content_type: JSON, body: body.into() }
    }
}

/// Some connections that the clients of a measurement share.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    senders: Vec<Sender>,
    next: AtomicUsize,
    target: Target,
}

impl Client {
    /// Connects. `connections` counts HTTP/2 connections; with HTTP/1.1 each of `clients` gets its own.
    pub async fn connect(target: &Target, connections: usize, clients: usize) -> Result<Client> {
        let n = if target.http1 { clients } else { connections.min(clients) }.max(1);
        let mut senders = Vec::with_capacity(n);
        for _ in 0..n {
            senders.push(open(target).await.with_context(|| format!("connecting to {}", target.authority))?);
        }
        Ok(Client(Arc::new(Inner { senders, next: AtomicUsize::new(0), target: target.clone() })))
    }

    /// Sends `call` on the connection of client number `client`; the answer's head.
    pub async fn send(&self, client: usize, call: Call) -> Result<Response<Incoming>> {
        let target = &self.0.target;
        let request = Request::builder().method(call.method);
        let mut request = match (&target.tls, target.http1) {
            (_, true) => request.uri(call.path).header(header::HOST, &target.authority),
            (Some(_), false) => request.uri(format!("https://{}{}", target.authority, call.path)),
            (None, false) => request.uri(format!("http://{}{}", target.authority, call.path)),
        };
        request = request.header(header::ACCEPT, call.accept).header(header::USER_AGENT, "pilothouse-bench");
        if !call.content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, call.content_type);
        }
        if let Some(token) = &target.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(call.body))?;
        match &self.0.senders[client % self.0.senders.len()] {
            Sender::Two(sender) => Ok(sender.clone().send_request(request).await?),
            Sender::One(sender) => {
                let mut sender = sender.lock().await;
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
        }
    }

    /// Sends and reads the whole answer; an answer other than 2xx is an error that shows it.
    pub async fn call(&self, client: usize, call: Call) -> Result<Bytes> {
        let response = self.send(client, call).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{status}: {}", excerpt(&body));
        }
        Ok(body)
    }

    /// Sends and reads the whole answer without keeping it: how many bytes it had.
    pub async fn drain(&self, client: usize, call: Call) -> Result<u64> {
        let response = self.send(client, call).await?;
        if !response.status().is_success() {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{status}: {}", excerpt(&body));
        }
        let mut body = response.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, |d| d.len() as u64);
        }
        Ok(bytes)
    }

    /// `call` on some connection.
    pub async fn any(&self, call: Call) -> Result<Bytes> {
        let next = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.call(next, call).await
    }
}

fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned()
}

async fn open(target: &Target) -> Result<Sender> {
    let tcp = TcpStream::connect((target.host.as_str(), target.port)).await?;
    tcp.set_nodelay(true)?;
    match &target.tls {
        None => handshake(tcp, target.http1).await,
        Some(config) => {
            let tls = TlsConnector::from(config.clone()).connect(target.server_name()?, tcp).await?;
            if !target.http1 && tls.get_ref().1.alpn_protocol() != Some(b"h2") {
                return Err(anyhow!("the server does not speak HTTP/2; say --http1"));
            }
            handshake(tls, target.http1).await
        }
    }
}

async fn handshake<I: AsyncRead + AsyncWrite + Send + Unpin + 'static>(io: I, http1: bool) -> Result<Sender> {
    let io = TokioIo::new(io);
    if http1 {
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        return Ok(Sender::One(Mutex::new(sender)));
    }
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(64 << 10)
        .handshake(io)
        .await?;
    tokio::spawn(connection);
    Ok(Sender::Two(sender))
}
