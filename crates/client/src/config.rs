//! From a kubeconfig file to a [`kube::Client`].

use std::path::Path;

use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::limit::{Limit, LimitLayer};

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
    // Watches are quiet for long; liveness of the connection is TCP's and HTTP/2's business.
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

/// A client for a configuration, held to a limit where there is one.
pub fn client(config: Config, limit: Option<Limit>) -> Result<Client, kube::Error> {
    match limit {
        None => Client::try_from(config),
        Some(limit) => Ok(ClientBuilder::try_from(config)?.with_layer(&LimitLayer::new(limit)).build()),
    }
}

fn http_user_agent() -> http::HeaderName {
    http::header::USER_AGENT
}
