//! Connections that the server opens itself: to kubelets, to webhooks, to what it proxies.

pub mod kubeconfig;
pub mod resolve;
pub mod tls;
pub mod webhook;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::request::{Body, full};

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where to connect.
#[derive(Clone)]
pub struct Target {
    /// Host for the `Host` header and, with TLS, the name the certificate must have.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Addresses to try instead of looking `host` up.
    pub addresses: Vec<SocketAddr>,
    /// TLS, where it is used.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// How long a connection may take to be made, as in Kubernetes' clients; what is asked over it may be due earlier.
const DIAL: Duration = Duration::from_secs(30);

/// Why there is no answer. The text is close to Go's (`dial tcp 1.2.3.4:10250: connect: connection refused`).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error("dial tcp {to}: {why}")]
    Dial {
        /// Address.
        to: String,
        /// Why.
        why: String,
    },
    /// The TLS handshake failed.
    #[error("{0}")]
    Tls(String),
    /// Time is up.
    #[error("context deadline exceeded")]
    Timeout,
    /// The other side does not speak HTTP, or broke off.
    #[error("{0}")]
    Http(String),
}

impl Target {
    /// `host:port`.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Opens a connection.
    pub async fn connect(&self, limit: Duration) -> Result<Box<dyn Stream>, Error> {
        tokio::time::timeout(limit, self.dial())
            .await
            .map_err(|_| Error::Dial { to: self.authority(), why: "i/o timeout".to_string() })?
    }

    async fn dial(&self) -> Result<Box<dyn Stream>, Error> {
        let tcp = match self.addresses.as_slice() {
            [] => TcpStream::connect((self.host.as_str(), self.port)).await,
            addresses => TcpStream::connect(addresses).await,
        };
        let tcp = tcp.map_err(|e| Error::Dial { to: self.authority(), why: dial_reason(&e) })?;
        let _ = tcp.set_nodelay(true);
        let Some(config) = &self.tls else { return Ok(Box::new(tcp)) };
        let name = ServerName::try_from(self.host.clone()).map_err(|e| Error::Tls(e.to_string()))?;
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        let tls = connector.connect(name, tcp).await.map_err(|e| Error::Tls(tls_reason(&e)))?;
        Ok(Box::new(tls))
    }

    /// Opens a connection for one request; its driver runs until the connection ends, upgrades included.
    pub async fn http(&self, limit: Duration) -> Result<SendRequest<Body>, Error> {
        let stream = self.connect(limit).await?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| Error::Http(e.to_string()))?;
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    /// Sends one request and waits for the head of the answer.
    pub async fn send(
        &self,
        mut request: http::Request<Body>,
        dial_limit: Duration,
    ) -> Result<http::Response<Incoming>, Error> {
        if !request.headers().contains_key(http::header::HOST)
            && let Ok(host) = http::HeaderValue::from_str(&self.authority())
        {
            request.headers_mut().insert(http::header::HOST, host);
        }
        let mut sender = self.http(dial_limit).await?;
        sender.send_request(request).await.map_err(|e| Error::Http(http_reason(&e)))
    }

    /// Posts JSON and reads the whole answer, at most `max` bytes.
    pub async fn post_json(
        &self,
        path_and_query: &str,
        authorization: Option<&str>,
        body: Vec<u8>,
        limit: Duration,
        max: usize,
    ) -> Result<(http::StatusCode, Bytes), Error> {
        let mut request = http::Request::post(path_and_query)
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "application/json, */*")
            .header(http::header::USER_AGENT, "kube-apiserver-admission");
        if let Some(a) = authorization {
            request = request.header(http::header::AUTHORIZATION, a);
        }
        let request = request.body(full(body)).map_err(|e| Error::Http(e.to_string()))?;
        let exchange = async {
            let response = self.send(request, DIAL).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), max).collect().await;
            Ok((status, body.map_err(|e| Error::Http(e.to_string()))?.to_bytes()))
        };
        tokio::time::timeout(limit, exchange).await.map_err(|_| Error::Timeout)?
    }

    /// Gets a path and reads the whole answer, at most 64 KiB: health checks.
    pub async fn get(&self, path: &str, limit: Duration) -> Result<(http::StatusCode, String), Error> {
        let request =
            http::Request::get(path).body(full(Bytes::new())).map_err(|e| Error::Http(e.to_string()))?;
        let exchange = async {
            let response = self.send(request, DIAL).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), 1 << 16).collect().await;
            let body = body.map_err(|e| Error::Http(e.to_string()))?.to_bytes();
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        tokio::time::timeout(limit, exchange).await.map_err(|_| Error::Timeout)?
    }
}

fn dial_reason(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        std::io::ErrorKind::TimedOut => "i/o timeout".into(),
        _ => e.to_string(),
    }
}

fn tls_reason(e: &std::io::Error) -> String {
    let inner = e.get_ref().and_then(|i| i.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            "x509: certificate signed by unknown authority".into()
        }
        Some(other) => format!("remote error: {other}"),
        None => e.to_string(),
    }
}

fn http_reason(e: &hyper::Error) -> String {
    if e.is_incomplete_message() || e.is_canceled() { "EOF".into() } else { e.to_string() }
}
