//! Client certificates: the common name is the user, organizations are the groups.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use pilothouse_pki::tls::AnyCertificate;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};

use crate::outbound::tls;
use crate::request::UserInfo;

/// At most so many verified certificates are remembered.
const REMEMBERED: usize = 4096;

/// The verifier for the TLS handshake: asks for a certificate and has its key proven, but trusts nobody. Whether a
/// certificate is trusted is decided with the request, so that a stranger gets 401 as in Kubernetes, not a TLS alert.
pub fn client_verifier(roots: &[&RootCertStore]) -> Arc<dyn ClientCertVerifier> {
    AnyCertificate::new(roots.iter().flat_map(|r| r.subjects()).collect())
}

/// Verifies certificates against a CA and reads who they are for.
pub struct ClientCertificates {
    verifier: Arc<dyn ClientCertVerifier>,
    /// By hash of the leaf: who, and until when (seconds since 1970).
    known: Mutex<HashMap<[u8; 32], (UserInfo, i64)>>,
}

impl ClientCertificates {
    /// Trusts the certificates in a PEM file; the error names it.
    pub fn load(file: &Path) -> Result<ClientCertificates, String> {
        Self::new(tls::roots_of_file(file)?).map_err(|e| format!("{}: {e}", file.display()))
    }

    /// Trusts these roots.
    pub fn new(roots: RootCertStore) -> Result<ClientCertificates, String> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider())
            .build()
            .map_err(|e| e.to_string())?;
        Ok(ClientCertificates { verifier, known: Mutex::default() })
    }

    /// Who a chain (leaf first) is for, or why it is not trusted.
    pub fn user(&self, chain: &[Bytes]) -> Result<UserInfo, String> {
        let leaf = chain.first().ok_or("no certificate")?;
        let hash: [u8; 32] = Sha256::digest(leaf).into();
        let now = jiff::Timestamp::now().as_second();
        if let Some((user, until)) = self.known.lock().get(&hash)
            && *until > now
        {
            return Ok(user.clone());
        }
        let ders: Vec<CertificateDer<'_>> = chain.iter().map(|c| CertificateDer::from(c.as_ref())).collect();
        self.verifier.verify_client_cert(&ders[0], &ders[1..], UnixTime::now()).map_err(|e| e.to_string())?;
        let (user, until) = subject(leaf)?;
        let mut known = self.known.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(hash, (user.clone(), until));
        Ok(user)
    }
}

/// Who a certificate is for, and the end of its validity in seconds since 1970.
fn subject(der: &[u8]) -> Result<(UserInfo, i64), String> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|e| e.to_string())?;
    let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().unwrap_or("").to_string();
    // As in Go, the last common name counts.
    let name = cert.subject().iter_common_name().last().map(text).unwrap_or_default();
    let groups = cert.subject().iter_organization().map(text).collect();
    if name.is_empty() {
        return Err("certificate has no common name".into());
    }
    Ok((UserInfo { name, groups, ..UserInfo::default() }, cert.validity().not_after.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    fn ca(name: &str) -> (rcgen::Certificate, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut p = CertificateParams::new(vec![]).unwrap();
        p.distinguished_name.push(DnType::CommonName, name);
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = p.self_signed(&key).unwrap();
        (cert, Issuer::new(p, key))
    }

    fn leaf(issuer: &Issuer<'static, KeyPair>, usage: ExtendedKeyUsagePurpose) -> Bytes {
        let key = KeyPair::generate().unwrap();
        let mut p = CertificateParams::new(vec![]).unwrap();
        p.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        p.distinguished_name.push(DnType::CommonName, "system:node:n1");
        p.extended_key_usages = vec![usage];
        Bytes::copy_from_slice(p.signed_by(&key, issuer).unwrap().der())
    }

    #[test]
    fn reads_who_a_trusted_certificate_is_for() {
        let (cert, issuer) = ca("ours");
        let x = ClientCertificates::new(tls::roots(cert.pem().as_bytes()).unwrap()).unwrap();
        let good = leaf(&issuer, ExtendedKeyUsagePurpose::ClientAuth);
        for _ in 0..2 {
            let user = x.user(std::slice::from_ref(&good)).unwrap();
            assert_eq!(
                (user.name.as_str(), user.groups.as_slice()),
                ("system:node:n1", &["system:nodes".to_string()][..])
            );
        }
        assert!(x.user(&[leaf(&ca("ours").1, ExtendedKeyUsagePurpose::ClientAuth)]).is_err());
        assert!(x.user(&[leaf(&issuer, ExtendedKeyUsagePurpose::ServerAuth)]).is_err());
    }
}
