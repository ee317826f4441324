//! From a kubeconfig file to a [`kube::Client`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use parking_lot::RwLock;
use tower::ServiceBuilder;
use tower::retry::RetryLayer;

use crate::limit::{Limit, LimitLayer};

/// A connection on which nothing has come for so long is asked whether it still stands, …
const KEEPALIVE: Duration = Duration::from_secs(30);
/// … again and again at this distance, …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// … and is given up after so many questions.
const KEEPALIVE_RETRIES: u32 = 3;
/// What has been sent and is not acknowledged for so long is not going to be.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Why no client could be made. The text names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be read or is not one.
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// The TLS set-up or the address is bad.
    #[error("kubeconfig {path}: {source}")]
    Client {
        /// The file.
        path: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// Reads a kubeconfig's current context. Relative file names in it are taken from the kubeconfig's folder.
pub async fn load(path: &Path) -> Result<Config, Error> {
    let err = |source| Error::Kubeconfig { path: path.display().to_string(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(err)?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(err)?;
    // Watches are quiet for long; whether a connection still stands is found out by [`client`].
    config.read_timeout = None;
    Ok(config)
}

/// The same for a program that calls itself `user_agent`.
pub async fn load_named(path: &Path, user_agent: &str) -> Result<Config, Error> {
    let mut config = load(path).await?;
    if let Ok(v) = user_agent.parse() {
        config.headers.push((http_user_agent(), v));
    }
    Ok(config)
}

/// A client for a kubeconfig's current context; `user_agent` is what the server's audit log and managed fields show.
pub async fn connect(path: &Path, user_agent: &str) -> Result<Client, Error> {
    connect_limited(path, user_agent, None).await
}

/// The same, held to a limit where there is one.
pub async fn connect_limited(path: &Path, user_agent: &str, limit: Option<Limit>) -> Result<Client, Error> {
    client(load_named(path, user_agent).await?, limit)
        .map_err(|source| Error::Client { path: path.display().to_string(), source: Box::new(source) })
}

/// A client for a configuration, held to a limit where there is one. It is as kube makes it, but its connections find out
/// when the other end is gone without a word: a server behind an address that has moved, or a machine that lost its
/// power. A watch would be silent for ever on such a one.
pub fn client(config: Config, limit: Option<Limit>) -> Result<Client, kube::Error> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(config.connect_timeout);
    http.set_keepalive(Some(KEEPALIVE));
    http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    http.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let https = config.rustls_https_connector_with_connector(http)?;
    let connections =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(https);
    let service = ServiceBuilder::new()
        .option_layer(limit.map(LimitLayer::new))
        .layer(config.base_uri_layer())
        .option_layer(config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry())))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(connections);
    Ok(Client::new(service, config.default_namespace))
}

/// A client whose connections can be exchanged while it is in use; see [`replaceable`].
#[derive(Clone)]
pub struct Replace(Arc<RwLock<Client>>);

impl Replace {
    /// Requests go through `client` from now on. Those under way, watches among them, go on where they are.
    pub fn with(&self, client: Client) {
        *self.0.write() = client;
    }
}

/// A client that sends what it is asked through `first`, until that is replaced: by one with a newer certificate, say.
pub fn replaceable(first: Client) -> (Client, Replace) {
    let namespace = first.default_namespace().to_string();
    let current = Arc::new(RwLock::new(first));
    let replace = Replace(current.clone());
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let client = current.read().clone();
        async move { client.send(request).await }
    });
    (Client::new(service, namespace), replace)
}

fn http_user_agent() -> http::HeaderName {
    http::header::USER_AGENT
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's table says by `02` that a connection is kept alive.
    fn kept_alive(port: u16) -> bool {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        table.lines().any(|l| {
            let fields: Vec<&str> = l.split_whitespace().collect();
            fields.get(2).is_some_and(|to| to.ends_with(&format!(":{port:04X}")))
                && fields.get(5).is_some_and(|timer| timer.starts_with("02:"))
        })
    }

    /// A server that answers every request with a version of this name.
    async fn server_of(version: &'static str) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let body = format!(
            r#"{{"major":"1","minor":"20","gitVersion":"{version}","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}}"#
        );
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0u8; 4096];
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut request).await;
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, format!("{head}{body}").as_bytes())
                    .await;
            }
        });
        client(Config::new(format!("http://127.0.0.1:{port}").parse().unwrap()), None).unwrap()
    }

    #[tokio::test]
    async fn a_client_goes_on_with_the_connections_of_another() {
        let (client, replace) = replaceable(server_of("one").await);
        let kept = client.clone();
        assert_eq!(client.apiserver_version().await.unwrap().git_version, "one");
        replace.with(server_of("two").await);
        assert_eq!(kept.apiserver_version().await.unwrap().git_version, "two");
    }

    #[tokio::test]
    async fn quiet_connections_are_asked_whether_they_stand() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = client(Config::new(format!("http://127.0.0.1:{port}").parse().unwrap()), None).unwrap();
        let request = tokio::spawn(async move { server.apiserver_version().await.map(|_| ()) });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut first = [0u8; 1];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut first).await.unwrap();
        assert!(kept_alive(port));
        drop(stream);
        assert!(request.await.unwrap().is_err());
    }
}
