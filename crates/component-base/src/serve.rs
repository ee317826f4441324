//! The small HTTP port that scheduler, controller manager, proxy and kubelet have beside their work: `/healthz`,
//! `/livez`, `/readyz` and `/metrics`, plain or with TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

use crate::metrics::{self, Metrics};
use crate::signals::Stop;

/// A named check: `Ok` or why not.
pub type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What a page of the component's own shows at the moment: status, media type and text.
pub type Page = Arc<dyn Fn() -> (StatusCode, &'static str, String) + Send + Sync>;

/// The media type of plain text.
pub const PLAIN: &str = "text/plain; charset=utf-8";

/// What the port serves.
#[derive(Clone, Default)]
pub struct Health {
    /// Pages of the component's own by path, such as `/proxyMode`; they come before all others.
    pub pages: Vec<(String, Page)>,
    /// Checks by name, in the order they are printed. `ping` always comes first and is not listed here.
    pub checks: Vec<(String, Check)>,
    /// What `/metrics` shows.
    pub metrics: Metrics,
}

impl Health {
    /// The answer for one path: status, media type and body, in the form of the Kubernetes health endpoints
    /// (<https://kubernetes.io/docs/reference/using-api/health-checks/>). `None` for any other path.
    pub fn answer(&self, path: &str, query: &str) -> Option<(StatusCode, &'static str, String)> {
        if let Some((_, page)) = self.pages.iter().find(|(p, _)| p == path) {
            return Some(page());
        }
        if path == "/metrics" {
            return Some((StatusCode::OK, metrics::TEXT, self.metrics.encode()));
        }
        let name = ["healthz", "livez", "readyz"].into_iter().find(|n| path.trim_start_matches('/') == *n)?;
        let mut failed = false;
        let mut verbose = String::from("[+]ping ok\n");
        for (check, f) in &self.checks {
            match f() {
                Ok(()) => verbose.push_str(&format!("[+]{check} ok\n")),
                Err(_) => {
                    failed = true;
                    verbose.push_str(&format!("[-]{check} failed: reason withheld\n"));
                }
            }
        }
        Some(if failed {
            (StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{verbose}{name} check failed\n"))
        } else if query.split('&').any(|p| p == "verbose" || p.starts_with("verbose=")) {
            (StatusCode::OK, PLAIN, format!("{verbose}{name} check passed\n"))
        } else {
            (StatusCode::OK, PLAIN, "ok".to_string())
        })
    }
}

/// Serves `health` on `addr` until `stop`; with TLS where `tls` is given. An address in use is an error at once.
pub async fn serve(
    addr: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    health: Health,
    stop: Stop,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(addr)
        .await
        .map_err(|e| std::io::Error::new(e.kind(), format!("failed to listen on {addr}: {e}")))?;
    let acceptor = tls.map(tokio_rustls::TlsAcceptor::from);
    tokio::spawn(async move {
        loop {
            let conn = tokio::select! { _ = stop.wait() => return, c = listener.accept() => c };
            let Ok((stream, _)) = conn else { continue };
            let (health, acceptor) = (health.clone(), acceptor.clone());
            tokio::spawn(async move {
                let service = service_fn(move |req: Request<Incoming>| {
                    let answer = health.answer(req.uri().path(), req.uri().query().unwrap_or(""));
                    async move {
                        let (status, media, body) =
                            answer.unwrap_or((StatusCode::NOT_FOUND, PLAIN, "404 page not found\n".into()));
                        let mut resp = Response::new(Full::new(Bytes::from(body)));
                        *resp.status_mut() = status;
                        let headers = resp.headers_mut();
                        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media));
                        headers.insert(
                            header::X_CONTENT_TYPE_OPTIONS,
                            header::HeaderValue::from_static("nosniff"),
                        );
                        Ok::<_, Infallible>(resp)
                    }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = match acceptor {
                    Some(a) => match a.accept(stream).await {
                        Ok(s) => builder.serve_connection(TokioIo::new(s), service).await,
                        Err(_) => return,
                    },
                    None => builder.serve_connection(TokioIo::new(stream), service).await,
                };
            });
        }
    });
    Ok(())
}

/// A TLS server configuration from PEM text, without client certificates.
pub fn tls_config(certificates: &[u8], key: &[u8]) -> std::io::Result<Arc<rustls::ServerConfig>> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let bad = |e: String| std::io::Error::new(std::io::ErrorKind::InvalidData, e);
    let chain = CertificateDer::pem_slice_iter(certificates)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(format!("certificate: {e:?}")))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad(format!("private key: {e:?}")))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| bad(e.to_string()))?;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(checks: &[(&str, Result<(), String>)]) -> Health {
        let check = |(name, result): &(&str, Result<(), String>)| {
            let result = result.clone();
            (name.to_string(), Arc::new(move || result.clone()) as Check)
        };
        let page: Page = Arc::new(|| (StatusCode::ACCEPTED, PLAIN, "nftables".into()));
        let pages = vec![("/proxyMode".to_string(), page.clone()), ("/healthz".to_string(), page)];
        Health { pages, checks: checks.iter().map(check).collect(), metrics: Metrics::default() }
    }

    fn said(health: &Health, path: &str, query: &str) -> Option<(u16, String)> {
        health.answer(path, query).map(|(status, _, text)| (status.as_u16(), text))
    }

    #[test]
    fn checks_are_answered() {
        let good = health(&[("leader", Ok(()))]);
        assert_eq!(said(&good, "/readyz", ""), Some((200, "ok".into())));
        let verbose = "[+]ping ok\n[+]leader ok\nlivez check passed\n";
        assert_eq!(said(&good, "/livez", "verbose"), Some((200, verbose.into())));
        assert_eq!(said(&good, "/livez", "x=1&verbose=true"), Some((200, verbose.into())));
        assert_eq!(said(&good, "/livez/leader", ""), None);
        // Why it fails may be nobody's business.
        let bad = health(&[("leader", Err("secret".into())), ("other", Ok(()))]);
        let why = "[+]ping ok\n[-]leader failed: reason withheld\n[+]other ok\nreadyz check failed\n";
        assert_eq!(said(&bad, "/readyz", ""), Some((500, why.into())));
    }

    #[test]
    fn a_components_own_pages_come_first() {
        let health = health(&[("leader", Err("x".into()))]);
        assert_eq!(said(&health, "/proxyMode", ""), Some((202, "nftables".into())));
        assert_eq!(said(&health, "/healthz", ""), Some((202, "nftables".into())));
        assert_eq!(said(&health, "/proxymode", ""), None);
        let metrics = health.answer("/metrics", "").unwrap();
        assert_eq!((metrics.0, metrics.1), (StatusCode::OK, metrics::TEXT));
    }
}
