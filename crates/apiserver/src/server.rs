//! The API server as a process: store, cache, parts, listener, and the way to its end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use pilothouse_component_base::batched::Batched;
use pilothouse_component_base::notify;
use pilothouse_component_base::signals::{Stop, Stopper};
use pilothouse_pki::{authority, files};
use pilothouse_store::embedded::EmbeddedStore;
use pilothouse_store::etcd::{EtcdConfig, EtcdStore};
use pilothouse_store::{Store, snapshot};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::config::{Backend, Config};
use crate::encryption::{self, store::EncryptedStore};
use crate::request::{Connection, Response};
use crate::state::ServerState;
use crate::{authentication, bootstrap, compaction, crd, outbound, serve, tls};

/// How long a client may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the cache may take to read the store at start.
const FILL: Duration = Duration::from_secs(300);

/// Runs an API server until `stop`.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    if let Backend::Embedded(dir) = &config.backend {
        let store = open_embedded(dir)?;
        let outcome = serve_on(config, store.clone(), stop).await;
        store.close().await;
        return outcome;
    }
    let store = open_store(&config).await?;
    serve_on(config, store, stop).await
}

async fn serve_on(config: Config, store: Arc<dyn Store>, stop: Stop) -> anyhow::Result<()> {
    Server::start(config, store, stop).await?.wait().await;
    Ok(())
}

fn open_embedded(dir: &Path) -> anyhow::Result<Arc<EmbeddedStore>> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let store = EmbeddedStore::open(dir).with_context(|| dir.display().to_string())?;
    // Without it, snapshots are made of the stopped store only.
    if let Err(e) = snapshot::serve(&store) {
        tracing::warn!("no snapshots while the store is in use: {e}");
    }
    Ok(store)
}

/// Opens the store that the flags name.
pub async fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    Ok(match &config.backend {
        Backend::Embedded(dir) => open_embedded(dir)?,
        Backend::Etcd { servers, ca, cert, key } => {
            let store = EtcdStore::connect(EtcdConfig {
                endpoints: servers.clone(),
                ca_file: ca.clone(),
                cert_file: cert.clone(),
                key_file: key.clone(),
                prefix: config.etcd_prefix.clone(),
            })
            .await?;
            if !config.etcd_startup_timeout.is_zero() {
                let reached = store.reached(config.etcd_startup_timeout).await;
                reached.with_context(|| match ca {
                    Some(ca) => format!("--etcd-servers, by the authority in {}", ca.display()),
                    None => "--etcd-servers".into(),
                })?;
            }
            store
        }
    })
}

/// A running server.
pub struct Server {
    /// Its parts.
    pub state: Arc<ServerState>,
    /// The address it listens on.
    pub address: SocketAddr,
    main: JoinHandle<()>,
}

impl Server {
    /// Starts a server on a store. It answers when this returns, and is ready a little later.
    pub async fn start(mut config: Config, store: Arc<dyn Store>, stop: Stop) -> anyhow::Result<Server> {
        service_account_keys(&mut config)?;
        let config = Arc::new(config);
        let store = encrypted(&config, store)?;
        let listener = TcpListener::bind(config.bind)
            .await
            .with_context(|| format!("failed to create listener: failed to listen on {}", config.bind))?;
        let address = listener.local_addr()?;
        let (drainer, drain) = Stop::new();
        let (state, feed) = ServerState::build(&config, store.clone(), address, drain.clone())?;
        let clients =
            authentication::x509::client_verifier(&client_roots(&config)?.iter().collect::<Vec<_>>());
        let tls = tls::server_config(&config, Some(clients))?;

        let tasks = TaskTracker::new();
        // The cache is kept up to the very end: requests that are still in work read from it.
        let (feed_stopper, feed_stop) = Stop::new();
        tasks.spawn(feed.run(async move { feed_stop.wait().await }));
        tasks.spawn(compaction::run(store, config.compaction_interval, drain.clone()));
        tasks.spawn(after_start(state.clone(), drain.clone()));

        let ends = Ends { stop, drainer, drain, feed: feed_stopper, tasks };
        let main = tokio::spawn(main(state.clone(), listener, TlsAcceptor::from(tls), ends));
        tracing::info!(%address, release = %state.release.git_version(), "serving securely");
        Ok(Server { state, address, main })
    }

    /// Returns when the server has ended.
    pub async fn wait(self) {
        if let Err(e) = self.main.await {
            tracing::error!("the server ended unexpectedly: {e}");
        }
    }
}

/// The store with encryption around it, where that is configured.
fn encrypted(config: &Config, store: Arc<dyn Store>) -> anyhow::Result<Arc<dyn Store>> {
    let Some(file) = &config.encryption_config else { return Ok(store) };
    let rules = encryption::load(file, config.release).map_err(anyhow::Error::msg)?;
    let root = format!("/{}/", config.etcd_prefix.trim_matches('/'));
    Ok(EncryptedStore::new(store, &root, rules))
}

/// Makes a key for service account tokens where none is given, below `--data-dir`. Servers that share an etcd must know
/// the same key: several of them have to be given one.
fn service_account_keys(config: &mut Config) -> anyhow::Result<()> {
    let given =
        config.service_account_signing_key_file.is_some() || !config.service_account_key_files.is_empty();
    if given {
        return Ok(());
    }
    let (key, public) = (config.data_dir.join("sa.key"), config.data_dir.join("sa.pub"));
    if !key.exists() || !public.exists() {
        let (private_pem, public_pem) = authority::service_account_key()?;
        std::fs::create_dir_all(&config.data_dir).with_context(|| {
            format!(
                "service account keys, which --service-account-key-file may name: {}",
                config.data_dir.display()
            )
        })?;
        files::write_private(&key, private_pem.as_bytes())?;
        files::write_public(&public, public_pem.as_bytes())?;
    }
    config.service_account_signing_key_file = Some(key);
    config.service_account_key_files = vec![public];
    Ok(())
}

fn client_roots(config: &Config) -> anyhow::Result<Vec<rustls::RootCertStore>> {
    let header = config.request_header.as_ref().map(|h| &h.client_ca);
    let files = config.client_ca_file.iter().chain(header);
    files.map(|f| outbound::tls::roots_of_file(f).map_err(anyhow::Error::msg)).collect()
}

/// What runs once the cache is filled: custom resources, then the objects that every cluster has.
async fn after_start(state: Arc<ServerState>, stop: Stop) {
    let filled = async {
        while state.cache.catch_up(FILL).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = stop.wait() => return,
        () = filled => {}
    }
    state.health.synced.set();
    let (ready, custom) = tokio::sync::oneshot::channel();
    let definitions = tokio::spawn(crd::run(state.clone(), ready, stop.clone()));
    let _ = custom.await;
    state.health.hooks_done_except(&[
        "rbac/bootstrap-roles",
        "bootstrap-controller",
        "scheduling/bootstrap-system-priority-classes",
    ]);
    let registration = tokio::spawn(crate::apiservices::run(state.clone(), stop.clone()));
    let others = tokio::spawn(crate::aggregation::availability::run(state.clone(), stop.clone()));
    let flows = tokio::spawn(crate::flow_schemas::run(state.clone(), stop.clone()));
    let objects: BoxFuture<'static, ()> = Box::pin(bootstrap::run(state.clone(), stop.clone()));
    objects.await;
    state.health.hooks_done_except(&[]);
    notify::ready("kube-apiserver", &format!("serving {}", state.release.git_version()));
    stop.wait().await;
    definitions.abort();
    registration.abort();
    others.abort();
    flows.abort();
}

/// What ends the parts of a server, in this order.
struct Ends {
    /// Says when to begin.
    stop: Stop,
    /// Ends long-running requests.
    drainer: Stopper,
    drain: Stop,
    /// Ends the cache.
    feed: Stopper,
    /// What runs beside the requests.
    tasks: TaskTracker,
}

/// Accepts connections until it is time to stop, then lets go of them in order.
async fn main(state: Arc<ServerState>, listener: TcpListener, acceptor: TlsAcceptor, ends: Ends) {
    let Ends { stop, drainer, drain, feed, tasks } = ends;
    let connections = TaskTracker::new();
    let delay = state.config.shutdown_delay;
    let stopping = async {
        stop.wait().await;
        // Load balancers see this and send new requests elsewhere, while we go on serving.
        state.health.stopping.set();
        tokio::time::sleep(delay).await;
    };
    tokio::pin!(stopping);
    loop {
        let accepted = tokio::select! {
            () = &mut stopping => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                connections.spawn(connection(state.clone(), acceptor.clone(), stream, peer, drain.clone()));
            }
            Err(e) => {
                tracing::warn!("accepting a connection: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    // Ends watches and tells idle connections to go; requests in work are finished.
    drainer.stop();
    connections.close();
    tasks.close();
    let limit = state.config.request_timeout.max(Duration::from_secs(1));
    if tokio::time::timeout(limit, connections.wait()).await.is_err() {
        tracing::warn!("some requests were still running at the end");
    }
    feed.stop();
    let _ = tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await;
    tracing::info!("the API server has stopped");
}

async fn connection(
    state: Arc<ServerState>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    drain: Stop,
) {
    let _ = stream.set_nodelay(true);
    let Ok(local) = stream.local_addr() else { return };
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            tracing::debug!(%peer, "TLS handshake error: {e}");
            return;
        }
        Err(_) => return,
    };
    let session = stream.get_ref().1;
    let http2 = session.alpn_protocol() == Some(b"h2");
    let certificates = session.peer_certificates().unwrap_or_default();
    let certificates = Arc::new(certificates.iter().map(|c| Bytes::copy_from_slice(c)).collect());
    let facts = Connection { peer, local, certificates };
    let max_streams = match state.config.max_streams {
        0 => 250,
        n => n,
    };
    let service = service_fn(move |request| {
        let work: BoxFuture<'static, Response> =
            Box::pin(serve::handle(state.clone(), facts.clone(), request));
        async move { Ok::<_, std::convert::Infallible>(work.await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(max_streams)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(4 << 20)
        // What a stream holds that its client does not take: there may be thousands of watches.
        .max_send_buf_size(64 * 1024)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(30));
    // Connections of HTTP/1.1 may become others, which need not flush what they write.
    let stream: Box<dyn Duplex> = if http2 { Box::new(Batched::new(stream)) } else { Box::new(stream) };
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = drain.wait() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(e) = outcome {
        tracing::debug!(%peer, "connection: {e}");
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}
