//! The kubelet's own server: its pods, their logs and streams, statistics and metrics, on port 10250 for those who may
//! ask, and on the read-only port, where there is one, for everybody.

pub mod answer;
pub mod auth;
pub mod logs;
pub mod metrics;
pub mod pods;
pub mod query;
pub mod route;
pub mod streams;
pub mod tls;
pub mod tunnel;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use pilothouse_component_base::metrics::Metrics;
use pilothouse_component_base::signals::Stop;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::kubelet::Kubelet;
use crate::stats::{Stats, prometheus, summary};
use answer::Answer;
use auth::{ApiReviews, Auth, Reviews};
use route::{Found, Route};

/// Handshakes and heads of requests that take longer are given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a kubelet that went before (one with an older certificate, or the original) may still hold a port.
const HAND_OVER: Duration = Duration::from_secs(60);

/// What the server shows.
pub struct Shown {
    /// The kubelet.
    pub kubelet: Arc<Kubelet>,
    /// What is used.
    pub stats: Arc<Stats>,
    /// The process' metrics.
    pub metrics: Metrics,
}

/// One port.
struct Port {
    shown: Arc<Shown>,
    auth: Option<Arc<Auth>>,
    requests: metrics::Requests,
    debugging: bool,
    system_logs: bool,
}

type Chain = Arc<Vec<CertificateDer<'static>>>;

impl Port {
    fn read_only(&self) -> bool {
        self.auth.is_none()
    }

    async fn answer(&self, request: Request<Incoming>, chain: Chain) -> Answer {
        let labels = metrics::labels(request.method().as_str(), request.uri().path(), self.read_only());
        self.requests.begin(&labels);
        let started = Instant::now();
        let answer = self.handle(request, chain).await;
        self.requests.end(&labels, started.elapsed());
        answer
    }

    async fn handle(&self, request: Request<Incoming>, chain: Chain) -> Answer {
        let path = request.uri().path().to_string();
        let accept = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
        let found = route::find(request.method(), &path, accept, self.debugging);
        if found == Found::Unknown {
            return answer::text(404, "404 page not found\n");
        }
        if let Found::Redirect(to) = &found {
            return answer::redirect(to);
        }
        if let Some(auth) = &self.auth
            && let Err(refusal) = auth.check(request.method(), &path, request.headers(), &chain).await
        {
            return refusal;
        }
        match found {
            Found::Route(r) => self.serve(r, request).await,
            Found::Refused(code, why) => answer::text(code, why),
            Found::Redirect(_) | Found::Unknown => answer::text(404, "404 page not found\n"),
        }
    }

    async fn serve(&self, route: Route, request: Request<Incoming>) -> Answer {
        let Shown { kubelet, stats, metrics: all } = self.shown.as_ref();
        let query = request.uri().query().unwrap_or("").to_string();
        match route {
            Route::Healthz(check) => healthz(kubelet, check, &query),
            Route::Pods => answer::json(&pods::pods(kubelet)),
            Route::RunningPods => match pods::running(kubelet).await {
                Ok(list) => answer::json(&list),
                Err(e) => answer::text(500, e.to_string()),
            },
            Route::Summary => {
                let pairs = query::pairs(&query);
                let small = query::first(&pairs, "only_cpu_and_memory") == "true";
                let node = &kubelet.config.node_name;
                answer::json(&summary::summary(node, &*stats.sample().await, small))
            }
            Route::Metrics => {
                let mut text = all.encode_only(|name| !name.starts_with("prober_"));
                text.push_str(&prometheus::logs(&stats.watch().borrow()));
                answer::of(200, answer::METRICS, text)
            }
            Route::ProbeMetrics => {
                let text = all.encode_only(|name| name.starts_with("prober_"));
                answer::of(200, answer::METRICS, text)
            }
            Route::CadvisorMetrics => {
                let sample = stats.sample().await;
                let root = kubelet.config.root_dir.clone();
                let text = tokio::task::spawn_blocking(move || prometheus::cadvisor(&sample, &root)).await;
                answer::of(200, answer::METRICS, text.unwrap_or_default())
            }
            Route::ResourceMetrics => {
                answer::of(200, answer::METRICS, prometheus::resource(&*stats.sample().await))
            }
            Route::Configz => answer::json(&json!({"kubeletconfig": configz(kubelet.config.kubelet.json())})),
            Route::SystemLogs(_) if !self.system_logs => answer::error(405, "logs endpoint is disabled."),
            Route::SystemLogs(path) => {
                let root = kubelet.config.pod_logs.parent().unwrap_or(&kubelet.config.pod_logs);
                logs::system_logs(root, &path).await
            }
            Route::ContainerLogs(t) => logs::container_logs(kubelet, &query, &t).await,
            Route::Exec(t) => streams::exec(kubelet, request, &t).await,
            Route::Attach(t) => streams::attach(kubelet, request, &t).await,
            Route::PortForward(t) => streams::port_forward(kubelet, request, &t).await,
            Route::Run(t) => streams::run(kubelet, &query, &t).await,
            Route::LogLevel if request.method() == Method::PUT => {
                answer::of(400, "text/plain", "the verbosity of a running kubelet cannot be changed\n")
            }
            Route::LogLevel => answer::of(406, "text/plain", "unsupported http method\n"),
        }
    }
}

/// The configuration without empty lists and maps, which Go leaves out.
fn configz(config: &Value) -> Value {
    let mut shown = config.clone();
    if let Some(fields) = shown.as_object_mut() {
        fields.retain(|_, v| !(*v == json!([]) || *v == json!({}) || v.is_null()));
    }
    shown
}

/// How long the runtime may not be looked at before the kubelet counts as stuck.
fn syncloop(kubelet: &Kubelet) -> Result<(), String> {
    let limit = (kubelet.config.sync_frequency * 2).max(Duration::from_secs(300));
    match kubelet.since_look() {
        Some(ago) if ago > limit => {
            Err(format!("sync Loop took longer than expected: {}s ago", ago.as_secs()))
        }
        _ => Ok(()),
    }
}

fn healthz(kubelet: &Kubelet, check: &str, query: &str) -> Answer {
    let stuck = syncloop(kubelet).err();
    if matches!(check, "ping" | "log") {
        return answer::text(200, "ok");
    }
    if check == "syncloop" {
        return match stuck {
            None => answer::text(200, "ok"),
            Some(e) => answer::error(500, &format!("internal server error: {e}")),
        };
    }
    let line = if stuck.is_some() { "[-]syncloop failed: reason withheld" } else { "[+]syncloop ok" };
    let verbose = format!("[+]ping ok\n[+]log ok\n{line}\n");
    if stuck.is_some() {
        return answer::error(500, &format!("{verbose}healthz check failed"));
    }
    let wanted = query::pairs(query).iter().any(|(k, _)| k == "verbose");
    answer::text(200, if wanted { format!("{verbose}healthz check passed\n") } else { "ok".into() })
}

async fn listen(address: IpAddr, port: u16) -> Result<TcpListener, String> {
    let to = SocketAddr::new(address, port);
    let end = Instant::now() + HAND_OVER;
    let mut said = false;
    loop {
        match TcpListener::bind(to).await {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < end => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(
                        "{to} is held by another process; waiting up to {}s for it",
                        HAND_OVER.as_secs()
                    );
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            done => return done.map_err(|e| format!("failed to listen on {to}: {e}")),
        }
    }
}

/// Accepts connections until `stop`.
async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, port: Arc<Port>, stop: Stop) {
    loop {
        let stream = tokio::select! {
            _ = stop.wait() => return,
            c = listener.accept() => match c {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of file descriptors, for one: it gets better by waiting only.
                    tracing::warn!("accept: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        tokio::spawn(connection(stream, tls.clone(), port.clone()));
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, port: Arc<Port>) {
    let Some(acceptor) = tls else { return speak(stream, Chain::default(), port).await };
    match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let chain: Chain = Arc::new(chain.iter().map(|c| c.clone().into_owned()).collect());
            speak(stream, chain, port).await;
        }
        Ok(Err(e)) => tracing::debug!("TLS handshake: {e}"),
        Err(_) => tracing::debug!("TLS handshake: timeout"),
    }
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, chain: Chain, port: Arc<Port>) {
    let service = service_fn(move |request| {
        let (port, chain) = (port.clone(), chain.clone());
        async move { Ok::<_, Infallible>(port.answer(request, chain).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder.http2().timer(TokioTimer::new());
    if let Err(e) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!("connection: {e}");
    }
}

/// Opens the kubelet's ports and serves them until `stop`: the server's own and the read-only one. An address in use, or a certificate that cannot be read, is an error at once. `client` has the kubelet's credentials,
/// with which tokens and access are asked about; without it neither is granted.
pub async fn start(shown: Shown, client: Option<kube::Client>, stop: Stop) -> Result<(), String> {
    let config = shown.kubelet.config.clone();
    let shown = Arc::new(shown);
    let requests = metrics::Requests::new(&shown.metrics);
    if config.kubelet.bool("enableServer") {
        let reviews = client.map(|client| {
            let node = config.node_name.clone();
            Arc::new(ApiReviews { client, node }) as Arc<dyn Reviews>
        });
        let port = Port {
            shown: shown.clone(),
            auth: Some(Arc::new(Auth::new(&config.kubelet, reviews)?)),
            requests: requests.clone(),
            debugging: config.kubelet.bool("enableDebuggingHandlers"),
            system_logs: config.kubelet.bool("enableSystemLogHandler"),
        };
        let acceptor = TlsAcceptor::from(tls::server_config(&config)?);
        let listener = listen(config.address, config.port).await?;
        tokio::spawn(accept(listener, Some(acceptor), Arc::new(port), stop.clone()));
    }
    if config.read_only_port != 0 {
        let port = Port { shown: shown.clone(), auth: None, requests, debugging: false, system_logs: false };
        let listener = listen(config.address, config.read_only_port).await?;
        tokio::spawn(accept(listener, None, Arc::new(port), stop.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
