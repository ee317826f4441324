//! TLS for connections that the server opens.

use std::path::Path;
use std::sync::Arc;

use pilothouse_pki::tls::AnyCertificate;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// The cryptography of this program.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// How the other side is verified.
pub enum Trust<'a> {
    /// By the certificates in PEM.
    Pem(&'a [u8]),
    /// By the certificates that the machine trusts.
    System,
    /// Not at all.
    Anything,
}

/// A certificate chain and its key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The roots in PEM text.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(pem) {
        store.add(cert.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    }
    if store.is_empty() { Err("no valid certificates found".into()) } else { Ok(store) }
}

/// The roots in a file; the error names it.
pub fn roots_of_file(path: &Path) -> Result<RootCertStore, String> {
    let pem = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    roots(&pem).map_err(|e| format!("{}: {e}", path.display()))
}

/// A certificate and its key from PEM text.
pub fn identity(certificate: &[u8], key: &[u8]) -> Result<Identity, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(|e| e.to_string())?;
    if chain.is_empty() {
        return Err("no certificate in PEM data".into());
    }
    Ok((chain, PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("private key: {e}"))?))
}

/// A certificate and its key from files; errors name the file.
pub fn identity_of_files(certificate: &Path, key: &Path) -> Result<Identity, String> {
    let read = |p: &Path| std::fs::read(p).map_err(|e| format!("{}: {e}", p.display()));
    let (chain, der) =
        identity(&read(certificate)?, &read(key)?).map_err(|e| format!("{}: {e}", certificate.display()))?;
    CertifiedKey::from_der(chain.clone(), der.clone_key(), &provider())
        .map_err(|e| format!("{}, with the certificate {}: {e}", key.display(), certificate.display()))?;
    Ok((chain, der))
}

/// A client's configuration: HTTP/1.1 without ALPN, as upgrades need it.
pub fn client(trust: Trust<'_>, identity: Option<Identity>) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match trust {
        Trust::Pem(pem) => builder.dangerous().with_custom_certificate_verifier(Known::new(pem)?),
        Trust::System => {
            let files = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
            let pem = files.iter().find_map(|f| std::fs::read(f).ok()).unwrap_or_default();
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
            builder.with_root_certificates(store)
        }
        // Kubelets' own certificates, where no CA for them is configured, as Kubernetes does.
        Trust::Anything => {
            builder.dangerous().with_custom_certificate_verifier(AnyCertificate::new(Vec::new()))
        }
    };
    let config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())?,
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Verifies by roots, and takes a certificate that is itself one of them, as Go does: many webhooks have just one.
#[derive(Debug)]
struct Known {
    roots: Vec<CertificateDer<'static>>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl Known {
    fn new(pem: &[u8]) -> Result<Arc<Known>, String> {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(pem)?), provider())
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Arc::new(Known { roots: CertificateDer::pem_slice_iter(pem).flatten().collect(), verifier }))
    }
}

/// Whether a certificate is valid now and has the name.
fn fits(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), rustls::Error> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
    if !parsed.validity().is_valid() {
        return Err(rustls::Error::InvalidCertificate(CertificateError::Expired));
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.roots.iter().any(|root| root == end_entity) {
            return fits(end_entity, server_name).map(|()| ServerCertVerified::assertion());
        }
        self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_may_be_its_own_root() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["s.default.svc".to_string()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let own = params.self_signed(&key).unwrap();
        let known = Known::new(own.pem().as_bytes()).unwrap();
        let verify = |name: &str| {
            let name = ServerName::try_from(name.to_string()).unwrap();
            known.verify_server_cert(own.der(), &[], &name, &[], UnixTime::now())
        };
        assert!(verify("s.default.svc").is_ok());
        assert!(verify("other.default.svc").is_err());
    }
}
