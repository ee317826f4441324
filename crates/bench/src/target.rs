//! Where the server is, and how to speak to it.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use http::Uri;
use pilothouse_pki::tls::AnyCertificate;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::args::Server;
use crate::kubeconfig::{self, Access};

/// A server, ready to be connected to.
#[derive(Clone)]
pub struct Target {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `host:port` as requests name it.
    pub authority: String,
    /// TLS; None for plain HTTP.
    pub tls: Option<Arc<ClientConfig>>,
    /// Bearer token.
    pub token: Option<String>,
    /// HTTP/1.1 rather than HTTP/2.
    pub http1: bool,
}

impl Target {
    /// From the command line. Fails for a server elsewhere that was not explicitly allowed.
    pub fn from_args(args: &Server) -> Result<Target> {
        let mut access = match &args.kubeconfig {
            Some(path) => kubeconfig::load(path)?,
            None => Access::default(),
        };
        let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
        if let Some(server) = &args.server {
            access.server.clone_from(server);
        }
        if access.server.is_empty() {
            bail!("either --server or --kubeconfig is needed");
        }
        if let Some(path) = &args.certificate_authority {
            access.authority = Some(read(path)?);
        }
        if let (Some(certificate), Some(key)) = (&args.client_certificate, &args.client_key) {
            access.identity = Some((read(certificate)?, read(key)?));
        }
        if let Some(path) = &args.token_file {
            access.token = Some(String::from_utf8(read(path)?)?.trim().to_string());
        }
        if let Some(token) = &args.token {
            access.token = Some(token.clone());
        }
        access.insecure |= args.insecure;
        let uri: Uri = access.server.parse().with_context(|| format!("server {:?}", access.server))?;
        let host = uri.host().ok_or_else(|| anyhow!("server {:?} has no host", access.server))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
        require_loopback(&host, args.allow_remote)?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => bail!("server {:?} is neither https nor http", access.server),
        };
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let tls = if secure { Some(Arc::new(tls(&access, args.http1)?)) } else { None };
        Ok(Target { host, port, authority, tls, token: access.token, http1: args.http1 })
    }

    /// The same server by HTTP/1.1.
    #[must_use]
    pub fn by_http1(&self) -> Target {
        let tls = self.tls.as_ref().map(|config| {
            let mut config = ClientConfig::clone(config);
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Arc::new(config)
        });
        Target { tls, http1: true, ..self.clone() }
    }

    /// The name to ask the server's certificate for.
    pub fn server_name(&self) -> Result<ServerName<'static>> {
        Ok(ServerName::try_from(self.host.clone())?)
    }
}

/// An error unless `host` is this machine, or others are allowed.
pub fn require_loopback(host: &str, allow_remote: bool) -> Result<()> {
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if local || allow_remote {
        return Ok(());
    }
    bail!("{host} is not this machine; say --allow-remote if it may be put under load")
}

fn tls(access: &Access, http1: bool) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match (&access.authority, access.insecure) {
        (_, true) => builder.dangerous().with_custom_certificate_verifier(AnyCertificate::new(Vec::new())),
        (Some(pem), false) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                roots.add(certificate?)?;
            }
            builder.with_root_certificates(roots)
        }
        (None, false) => bail!("the server's certificate authority is not known; give it, or --insecure"),
    };
    let mut config = match &access.identity {
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![if http1 { b"http/1.1".to_vec() } else { b"h2".to_vec() }];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> Server {
        Server { server: Some(url.into()), insecure: true, ..Server::default() }
    }

    #[test]
    fn urls() {
        let t = Target::from_args(&server("https://127.0.0.1:6443")).unwrap();
        assert_eq!((t.host.as_str(), t.port, t.authority.as_str()), ("127.0.0.1", 6443, "127.0.0.1:6443"));
        assert!(t.tls.is_some());
        let t = Target::from_args(&server("http://[::1]:8080")).unwrap();
        assert_eq!((t.host.as_str(), t.authority.as_str()), ("::1", "[::1]:8080"));
        assert!(t.tls.is_none());
        assert_eq!(Target::from_args(&server("https://localhost")).unwrap().port, 443);
    }

    #[test]
    fn only_loopback_unless_allowed() {
        let mut args = server("https://10.0.0.1:6443");
        assert!(Target::from_args(&args).is_err());
        args.allow_remote = true;
        assert!(Target::from_args(&args).is_ok());
        assert!(Target::from_args(&server("https://example.com")).is_err());
    }

    #[test]
    fn nothing_is_trusted_silently() {
        let args = Server { insecure: false, ..server("https://127.0.0.1:1") };
        assert!(Target::from_args(&args).is_err());
        assert!(Target::from_args(&Server::default()).is_err());
        assert!(Target::from_args(&server("ftp://127.0.0.1")).is_err());
    }
}
