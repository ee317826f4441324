//! The members of the etcd cluster, and which one is in use.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, GetOptions, TlsOptions};
use futures::future::join_all;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use pilothouse_component_base::batched::Batched;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::codegen::http::Uri;
use tower::{Service, ServiceExt};

use super::convert;
use crate::Error;

/// How long a member may take to answer the first question.
const PROBE: Duration = Duration::from_secs(5);
/// How much a member may send ahead, in bytes: a page of a long list.
const WINDOW: u32 = 4 << 20;
/// Between two rounds of such questions.
const PAUSE: Duration = Duration::from_millis(250);

/// What may be done when a call fails, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    /// May be sent again to another member.
    Read(Duration),
    /// May be sent again only where it was certainly not sent.
    Write(Duration),
}

struct Endpoint {
    url: String,
    client: Client,
}

/// See the module.
pub(super) struct Endpoints {
    all: Vec<Endpoint>,
    current: AtomicUsize,
}

impl Endpoints {
    /// Prepares a connection to each of `urls`, those without a scheme included.
    pub(super) async fn new(urls: &[String], tls: &TlsOptions) -> Result<Self, Error> {
        let mut all = Vec::with_capacity(urls.len());
        for url in urls {
            let fault = |e: &dyn std::error::Error| Error::Broken(format!("etcd endpoint {url}: {e}"));
            let endpoint = connection(url, tls).map_err(|e| fault(&e))?;
            let channel = Channel::Tonic(endpoint.connect_with_connector_lazy(connector()));
            let options = ConnectOptions::new().with_require_leader(true);
            let client = Client::from_channel(channel, Some(options)).await.map_err(|e| fault(&e))?;
            all.push(Endpoint { url: url.clone(), client });
        }
        if all.is_empty() {
            return Err(Error::Broken("etcd: no endpoints are given".into()));
        }
        Ok(Endpoints { all, current: AtomicUsize::new(0) })
    }

    /// Calls the member in use, and others where that fails and `call` allows it.
    pub(super) async fn call<'a, T, F, Fut>(&'a self, call: Call, f: F) -> Result<T, Error>
    where
        F: Fn(&'a Client) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let (limit, again) = match call {
            Call::Read(limit) => (limit, true),
            Call::Write(limit) => (limit, false),
        };
        let mut last = Error::Unavailable("no etcd endpoint".into());
        for _ in 0..self.all.len() {
            let i = self.current.load(Ordering::Relaxed) % self.all.len();
            let endpoint = &self.all[i];
            let (error, sent) = match tokio::time::timeout(limit, f(&endpoint.client)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(e)) => (convert::error(&e), !convert::not_sent(&e)),
                Err(_) => (Error::Unavailable(format!("no answer within {} s", limit.as_secs())), true),
            };
            if !convert::is_members_fault(&error) {
                return Err(error);
            }
            let why = cause(error);
            self.leave(i, &why);
            last = Error::Unavailable(format!("etcd {}: {why}", endpoint.url));
            if sent && !again {
                break;
            }
        }
        Err(last)
    }

    /// Goes on to the next member, unless somebody else already did.
    fn leave(&self, i: usize, why: &str) {
        if self.all.len() > 1 {
            let next = (i + 1) % self.all.len();
            if self.current.compare_exchange(i, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                tracing::warn!("etcd: leaving {} for {}: {why}", self.all[i].url, self.all[next].url);
            }
        }
    }

    /// Returns once a member answers, whatever it says; what is wrong with each of them where none does within `limit`.
    pub(super) async fn reached(&self, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        let mut why = vec![String::from("no answer"); self.all.len()];
        let rounds = async {
            loop {
                let probes = self.all.iter().zip(&mut why).map(|(endpoint, why)| async move {
                    let left = deadline.saturating_duration_since(Instant::now());
                    match tokio::time::timeout(PROBE.min(left), endpoint.client.maintenance_client().status())
                        .await
                    {
                        Ok(Ok(_)) => true,
                        Ok(Err(e)) if convert::is_answer(&e) => true,
                        Ok(Err(e)) => {
                            *why = cause(convert::error(&e));
                            false
                        }
                        // What it was the last time says more.
                        Err(_) => false,
                    }
                });
                if join_all(probes).await.contains(&true) {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        if tokio::time::timeout_at(deadline, rounds).await.is_ok() {
            return Ok(());
        }
        let members: Vec<String> =
            self.all.iter().zip(why).map(|(endpoint, why)| format!("{}: {why}", endpoint.url)).collect();
        Err(Error::Unavailable(format!(
            "etcd cannot be reached within {} s: {}",
            limit.as_secs(),
            members.join("; ")
        )))
    }

    /// Whether each member answers a read that needs the cluster's agreement.
    pub(super) async fn health(&self, key: &[u8], limit: Duration) -> Vec<(String, Result<(), Error>)> {
        join_all(self.all.iter().map(|endpoint| async move {
            let read = async {
                let options = GetOptions::new().with_count_only();
                endpoint.client.kv_client().get(key, Some(options)).await
            };
            let result = match tokio::time::timeout(limit, read).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(e)) => Err(convert::error(&e)),
                Err(_) => Err(Error::Unavailable(format!("no answer within {} s", limit.as_secs()))),
            };
            (endpoint.url.clone(), result)
        }))
        .await
    }
}

/// How a member is connected to: straight, as it is ours to choose another one.
fn connection(url: &str, tls: &TlsOptions) -> Result<tonic::transport::Endpoint, tonic::transport::Error> {
    let with_scheme = if url.contains("://") { url.to_string() } else { format!("http://{url}") };
    // Pings find a peer that is gone without a word; etcd refuses them more often than every five seconds, and while
    // nothing is under way.
    let endpoint = tonic::transport::Endpoint::from_shared(with_scheme)?
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(false)
        .connect_timeout(Duration::from_secs(3))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    if url.starts_with("https://") { endpoint.tls_config(tls.clone()) } else { Ok(endpoint) }
}

/// What makes the connection to a member.
fn connector() -> impl Service<Uri, Response = Io, Error = io::Error, Future: Send> + Send + 'static {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(Duration::from_secs(30)));
    connector.map_response(|stream| TokioIo::new(Batched::new(stream.into_inner()))).map_err(io::Error::other)
}

type Io = TokioIo<Batched<TcpStream>>;

fn cause(e: Error) -> String {
    match e {
        Error::Unavailable(text) => text,
        e => e.to_string(),
    }
}
