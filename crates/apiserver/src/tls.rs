//! The serving certificate, and which one for which name.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use pilothouse_pki::{authority, files};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::{Config, KeyPair};

fn certified(pair: &KeyPair) -> io::Result<Arc<CertifiedKey>> {
    let fault = |path: &Path, e: String| io::Error::other(format!("{}: {e}", path.display()));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&pair.cert)
        .and_then(Iterator::collect)
        .map_err(|e| fault(&pair.cert, e.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&pair.key).map_err(|e| fault(&pair.key, e.to_string()))?;
    let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map_err(|e| fault(&pair.key, format!("with the certificate {}: {e}", pair.cert.display())))?;
    Ok(Arc::new(key))
}

/// The certificate in `--cert-dir`, made there if there is none: `apiserver.crt` and `apiserver.key`.
fn self_signed(config: &Config) -> io::Result<KeyPair> {
    let (cert, key) = (config.cert_dir.join("apiserver.crt"), config.cert_dir.join("apiserver.key"));
    if !cert.exists() || !key.exists() {
        std::fs::create_dir_all(&config.cert_dir)?;
        let host = config.advertise_address.to_string();
        let mut hosts = vec![host.clone()];
        hosts.extend(
            ["kubernetes.default.svc", "kubernetes.default", "kubernetes", "localhost"].map(String::from),
        );
        hosts.extend(
            config.service_cluster_ip_ranges.first().and_then(first_service_ip).map(|ip| ip.to_string()),
        );
        hosts.push("127.0.0.1".to_string());
        hosts.dedup();
        let issued = authority::self_signed(&host, &hosts).map_err(io::Error::other)?;
        files::write_private(&key, issued.key.as_bytes())?;
        files::write_public(&cert, issued.certificate.as_bytes())?;
    }
    Ok(KeyPair { cert, key, names: Vec::new() })
}

/// The first address of the service range: that of the `kubernetes` service.
pub fn first_service_ip(range: &ipnet::IpNet) -> Option<IpAddr> {
    range.hosts().next()
}

/// Picks a certificate by the name that the client asks for.
#[derive(Debug)]
struct ByName {
    default: Arc<CertifiedKey>,
    named: Vec<(Vec<String>, Arc<CertifiedKey>)>,
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
        None => pattern.eq_ignore_ascii_case(name),
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or("");
        let found = self.named.iter().find(|(names, _)| names.iter().any(|p| matches(p, name)));
        Some(found.map_or(&self.default, |(_, key)| key).clone())
    }
}

/// The names of a certificate, for pairs of `--tls-sni-cert-key` without names of their own.
fn names_of(key: &CertifiedKey) -> Vec<String> {
    let Some(leaf) = key.cert.first() else { return Vec::new() };
    let Ok((_, x509)) = x509_parser::parse_x509_certificate(leaf) else { return Vec::new() };
    let Ok(Some(san)) = x509.subject_alternative_name() else { return Vec::new() };
    let dns = san.value.general_names.iter().filter_map(|n| match n {
        x509_parser::extensions::GeneralName::DNSName(d) => Some((*d).to_string()),
        _ => None,
    });
    dns.collect()
}

/// The server's TLS configuration. `clients` verifies client certificates; none means they are not asked for.
pub fn server_config(
    config: &Config,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let pair = match &config.serving {
        Some(pair) => pair.clone(),
        None => self_signed(config)?,
    };
    let default = certified(&pair)?;
    let mut named = Vec::new();
    for pair in &config.sni {
        let key = certified(pair)?;
        let names = if pair.names.is_empty() { names_of(&key) } else { pair.names.clone() };
        named.push((names, key));
    }
    let versions: &[&rustls::SupportedProtocolVersion] = if config.tls_min_version == 13 {
        &[&rustls::version::TLS13]
    } else {
        &[&rustls::version::TLS13, &rustls::version::TLS12]
    };
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)?;
    let builder = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut tls = builder.with_cert_resolver(Arc::new(ByName { default, named }));
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn wildcards_cover_one_label() {
        assert!(matches("*.a.b", "x.a.b") && matches("A.b", "a.B"));
        assert!(!matches("*.a.b", "a.b") && !matches("*.a.b", "x.y.a.b"));
    }

    #[test]
    fn makes_a_certificate_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = crate::config::tests::embedded(dir.path());
        config.cert_dir = dir.path().join("pki");
        server_config(&config, None).unwrap();
        let key = config.cert_dir.join("apiserver.key");
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let before = std::fs::read(&key).unwrap();
        server_config(&config, None).unwrap();
        assert_eq!(std::fs::read(&key).unwrap(), before);
        config.serving = Some(KeyPair { cert: "/nonexistent".into(), key, names: Vec::new() });
        assert!(server_config(&config, None).unwrap_err().to_string().contains("/nonexistent"));
    }
}
