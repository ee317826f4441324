//! The serving certificate: the one that is named, or the one that the API server signed. Files that change are read
//! again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use pilothouse_pki::tls::AnyCertificate;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::time::Instant;

use crate::certificates::Store;
use crate::config::Config;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Where certificate and key are: the files that are named, or the one pair that the API server signed.
fn files(config: &Config) -> Result<(PathBuf, PathBuf), String> {
    match (&config.tls_cert_file, &config.tls_private_key_file) {
        (Some(cert), Some(key)) => Ok((cert.clone(), key.clone())),
        (None, None) if config.server_tls_bootstrap => {
            let current = Store::server(&config.cert_dir).current();
            Ok((current.clone(), current))
        }
        _ => Err("tlsCertFile and tlsPrivateKeyFile must be given together".into()),
    }
}

fn load(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, String> {
    let read = |p: &Path| std::fs::read(p).map_err(|e| format!("{}: {e}", p.display()));
    let chain = CertificateDer::pem_slice_iter(&read(cert)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("{}: {e:?}", cert.display()))?;
    let der = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| format!("{}: {e:?}", key.display()))?;
    let signer =
        provider().key_provider.load_private_key(der).map_err(|e| format!("{}: {e}", key.display()))?;
    let certified = CertifiedKey::new(chain, signer);
    certified.keys_match().map_err(|e| format!("{} and {}: {e}", cert.display(), key.display()))?;
    Ok(Arc::new(certified))
}

#[derive(Debug)]
struct Loaded {
    key: Option<Arc<CertifiedKey>>,
    modified: Option<SystemTime>,
    looked: Instant,
}

/// The certificate in two files.
#[derive(Debug)]
pub struct FileCertificate {
    cert: PathBuf,
    key: PathBuf,
    loaded: Mutex<Loaded>,
}

impl FileCertificate {
    /// The certificate that is there. `late`: it may also come later.
    pub fn new(cert: PathBuf, key: PathBuf, late: bool) -> Result<FileCertificate, String> {
        let first = match load(&cert, &key) {
            Ok(k) => Some(k),
            Err(_) if late && !cert.exists() => None,
            Err(e) => return Err(e),
        };
        let modified = modified(&cert);
        let loaded = Loaded { key: first, modified, looked: Instant::now() };
        Ok(FileCertificate { cert, key, loaded: Mutex::new(loaded) })
    }

    fn current(&self) -> Option<Arc<CertifiedKey>> {
        let mut l = self.loaded.lock();
        if l.key.is_none() || l.looked.elapsed() >= LOOK {
            l.looked = Instant::now();
            let now = modified(&self.cert);
            if now != l.modified || l.key.is_none() {
                match load(&self.cert, &self.key) {
                    Ok(k) => (l.key, l.modified) = (Some(k), now),
                    Err(e) => tracing::warn!("serving certificate not loaded: {e}"),
                }
            }
        }
        l.key.clone()
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

impl ResolvesServerCert for FileCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

/// TLS as the configuration has it: certificate, `tlsMinVersion`, `tlsCipherSuites`.
pub fn server_config(config: &Config) -> Result<Arc<ServerConfig>, String> {
    let (cert, key) = files(config)?;
    let certificate = FileCertificate::new(cert, key, config.server_tls_bootstrap)?;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    let suites = config.kubelet.strings("tlsCipherSuites");
    if !suites.is_empty() {
        // TLS 1.3's suites are not for choosing, as in Go.
        let wanted = |name: &str| name.starts_with("TLS13_") || suites.iter().any(|s| same_suite(s, name));
        provider.cipher_suites.retain(|s| wanted(s.suite().as_str().unwrap_or("")));
    }
    let versions: &[&rustls::SupportedProtocolVersion] = match config.kubelet.string("tlsMinVersion").as_str()
    {
        "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" => {
            &[&rustls::version::TLS13, &rustls::version::TLS12]
        }
        "VersionTLS13" => &[&rustls::version::TLS13],
        other => return Err(format!("unknown tls version {other:?}")),
    };
    let mut tls = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .map_err(|e| e.to_string())?
        // Nobody is trusted yet: a stranger gets 401, not an alert.
        .with_client_cert_verifier(AnyCertificate::new(Vec::new()))
        .with_cert_resolver(Arc::new(certificate));
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// Go leaves out the hash of the ChaCha20 suites in their older names.
fn same_suite(go: &str, rustls: &str) -> bool {
    go == rustls || format!("{go}_SHA256") == rustls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_newer_certificate_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = crate::testing::config(dir.path());
        let (cert, key) = (dir.path().join("kubelet.crt"), dir.path().join("kubelet.key"));
        config.tls_cert_file = Some(cert.clone());
        config.tls_private_key_file = Some(key.clone());
        let make = || crate::certificates::self_signed(&cert, &key, "node01", "20.0.0.103").unwrap();
        assert!(server_config(&config).is_err(), "there is none yet");
        make();
        server_config(&config).unwrap();
        let c = FileCertificate::new(cert.clone(), key.clone(), false).unwrap();
        let first = c.current().unwrap();
        std::fs::remove_file(&cert).unwrap();
        make();
        let later = std::fs::File::options().write(true).open(&cert).unwrap();
        later.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
        assert!(Arc::ptr_eq(&first, &c.current().unwrap()), "not looked at yet");
        tokio::time::advance(LOOK).await;
        assert!(!Arc::ptr_eq(&first, &c.current().unwrap()));
    }

    #[test]
    fn a_certificate_may_come_later_where_the_api_server_signs_it() {
        let no = PathBuf::from("/nonexistent/x");
        assert!(FileCertificate::new(no.clone(), no.clone(), false).is_err());
        assert!(FileCertificate::new(no.clone(), no, true).unwrap().current().is_none());
        assert!(same_suite(
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"
        ));
    }
}
