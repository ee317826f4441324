//! A certificate authority: a key pair that signs certificates.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use time::OffsetDateTime;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::X509Certificate;

use crate::files;
use crate::names::{self, Asked};

/// Clocks of hosts differ a little: certificates are valid from a moment before they were made, as Kubernetes' are.
const BACKDATE: Duration = Duration::from_secs(300);

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// The file is there and is not what it should be.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The request cannot be granted as it is.
    #[error("certificate request: {0}")]
    Request(String),
    /// The crypto library failed.
    #[error("certificate: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// To say who a client is.
    Client,
    /// To say who a server is.
    Server,
    /// Both.
    Both,
}

impl Usage {
    fn extended(self) -> Vec<ExtendedKeyUsagePurpose> {
        match self {
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

/// Whom a certificate is for.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// User.
    pub common_name: String,
    /// Group.
    pub organization: Option<String>,
    /// DNS names and IP addresses.
    pub hosts: Vec<String>,
}

/// A certificate with its key, in PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS #8.
    pub key: String,
}

impl Issued {
    /// Writes `<stem>.crt` and `<stem>.key`.
    pub fn write(&self, dir: &Path, stem: &str) -> Result<(), Error> {
        files::write_private(&dir.join(format!("{stem}.key")), self.key.as_bytes())?;
        files::write_public(&dir.join(format!("{stem}.crt")), self.certificate.as_bytes())?;
        Ok(())
    }
}

/// See the module.
pub struct Authority {
    certificate: String,
    /// Its name as it is written: certificates are found by the bytes.
    subject: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new one: ECDSA P-256, valid for `years`.
    pub fn generate(common_name: &str, years: u32) -> Result<(Authority, Issued), Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
        ];
        validity(&mut params, Duration::from_secs(u64::from(years) * 365 * 86_400));
        let certificate = params.self_signed(&key)?.pem();
        let issued = Issued { certificate, key: key.serialize_pem() };
        Ok((Self::from_pem(&issued.certificate, &issued.key, common_name)?, issued))
    }

    /// From PEM text. `what` names the source in errors.
    pub fn from_pem(certificate: &str, key: &str, what: &str) -> Result<Authority, Error> {
        Self::parse(certificate, key, what, what)
    }

    fn parse(certificate: &str, key: &str, what: &str, key_what: &str) -> Result<Authority, Error> {
        let bad = |reason: String| Error::Malformed { path: what.to_string(), reason };
        let key = KeyPair::from_pem(key).map_err(|e| Error::Malformed {
            path: key_what.to_string(),
            reason: format!("not a private key: {e}"),
        })?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes())
            .map_err(|e| bad(format!("not a certificate: {e}")))?;
        let x509 = pem.parse_x509().map_err(|e| bad(format!("not a certificate: {e}")))?;
        if x509.public_key().raw != key.subject_public_key_info() {
            let whose = if key_what == what { "the key" } else { key_what };
            return Err(bad(format!("{whose} is not the key of this certificate")));
        }
        if !x509.validity().is_valid() {
            return Err(bad("the certificate has expired or is not yet valid".into()));
        }
        let mut params = CertificateParams::default();
        params.key_identifier_method = key_identifier(&x509);
        let subject = x509.subject().as_raw().to_vec();
        Ok(Authority { certificate: certificate.to_string(), subject, issuer: Issuer::new(params, key) })
    }

    /// From two files.
    pub fn load(certificate: &Path, key: &Path) -> Result<Authority, Error> {
        let (what, key_what) = (certificate.display().to_string(), key.display().to_string());
        Self::parse(&files::read(certificate)?, &files::read(key)?, &what, &key_what)
    }

    /// From `<stem>.crt` and `<stem>.key`, which are made where neither is there.
    pub fn load_or_generate(dir: &Path, stem: &str, common_name: &str) -> Result<Authority, Error> {
        let (cert, key) = (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")));
        if cert.exists() || key.exists() {
            return Self::load(&cert, &key);
        }
        let (authority, issued) = Self::generate(common_name, 10)?;
        issued.write(dir, stem)?;
        Ok(authority)
    }

    /// Signs a certificate of these parameters for a key; its subject is given as it is to be written. PEM.
    pub(crate) fn certify(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        subject: &[u8],
    ) -> Result<String, Error> {
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        let made = params.signed_by(key, &self.issuer)?;
        names::certificate(&made, &self.subject, subject, self.issuer.key())
    }

    /// The authority's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Makes a key and a certificate for it.
    pub fn issue(&self, subject: &Subject, usage: Usage, valid: Duration) -> Result<Issued, Error> {
        let key = KeyPair::generate()?;
        let mut params = leaf(subject, usage.extended())?;
        validity(&mut params, valid);
        let made = params.signed_by(&key, &self.issuer)?;
        let own = names::subject(&made)?;
        let certificate = names::certificate(&made, &self.subject, &own, self.issuer.key())?;
        Ok(Issued { certificate, key: key.serialize_pem() })
    }

    /// Signs a PEM request. The subject, names and key are the request's; usages and times are the signer's: for
    /// `expires` from now, but never longer than the authority itself.
    pub fn sign(&self, request: &str, usages: &[String], expires: Duration) -> Result<String, Error> {
        let Asked { mut params, key, subject } = names::asked(request).map_err(Error::Request)?;
        params.is_ca = IsCa::NoCa;
        params.key_usages = usages.iter().filter_map(|u| key_usage(u)).collect();
        params.extended_key_usages = usages.iter().filter_map(|u| extended_key_usage(u)).collect();
        validity(&mut params, expires);
        params.not_after = params.not_after.min(self.expires_at()?);
        self.certify(params, &key, &subject)
    }

    /// When its own certificate ends.
    pub(crate) fn expires_at(&self) -> Result<OffsetDateTime, Error> {
        let bad = |e: String| Error::Malformed { path: "authority".into(), reason: e };
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(self.certificate.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let x509 = pem.parse_x509().map_err(|e| bad(e.to_string()))?;
        Ok(x509.validity().not_after.to_datetime())
    }
}

/// By what an authority's key is named in what it signs.
fn key_identifier(authority: &X509Certificate) -> KeyIdMethod {
    let given = authority.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(k) => Some(KeyIdMethod::PreSpecified(k.0.to_vec())),
        _ => None,
    });
    given.unwrap_or(KeyIdMethod::Sha256)
}

/// A self-signed server certificate, as `kube-apiserver` and `kubelet` make one where they are given none.
pub fn self_signed(common_name: &str, hosts: &[String]) -> Result<Issued, Error> {
    let subject = Subject { common_name: common_name.to_string(), organization: None, hosts: hosts.to_vec() };
    let key = KeyPair::generate()?;
    let mut params = leaf(&subject, Usage::Server.extended())?;
    validity(&mut params, Duration::from_secs(365 * 86_400));
    let certificate = params.self_signed(&key)?.pem();
    Ok(Issued { certificate, key: key.serialize_pem() })
}

/// A new key and a PEM request for it, as a kubelet makes one.
pub fn request(subject: &Subject) -> Result<Issued, Error> {
    let key = KeyPair::generate()?;
    let mut params = leaf(subject, Vec::new())?;
    params.key_usages.clear();
    params.use_authority_key_identifier_extension = false;
    let csr = params.serialize_request(&key)?.pem()?;
    Ok(Issued { certificate: csr, key: key.serialize_pem() })
}

/// A key pair to sign service-account tokens with: private and public key, PEM. RSA of 2,048 bits, as the classic
/// installs make it, so that tokens are RS256.
pub fn service_account_key() -> Result<(String, String), Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256)?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

fn leaf(subject: &Subject, extended: Vec<ExtendedKeyUsagePurpose>) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(o) = &subject.organization {
        params.distinguished_name.push(DnType::OrganizationName, o.as_str());
    }
    params.distinguished_name.push(DnType::CommonName, subject.common_name.as_str());
    for host in &subject.hosts {
        params.subject_alt_names.push(match host.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(host.as_str().try_into()?),
        });
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = extended;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn validity(params: &mut CertificateParams, valid: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + valid;
}

pub(crate) fn serial() -> Result<rcgen::SerialNumber, Error> {
    let mut bytes = [0u8; 20];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Request("no randomness".into()))?;
    bytes[0] &= 0x7f;
    Ok(rcgen::SerialNumber::from_slice(&bytes))
}

/// Usages as `spec.usages` of a CertificateSigningRequest names them.
pub(crate) fn key_usage(name: &str) -> Option<KeyUsagePurpose> {
    Some(match name {
        "signing" | "digital signature" => KeyUsagePurpose::DigitalSignature,
        "content commitment" => KeyUsagePurpose::ContentCommitment,
        "key encipherment" => KeyUsagePurpose::KeyEncipherment,
        "key agreement" => KeyUsagePurpose::KeyAgreement,
        "data encipherment" => KeyUsagePurpose::DataEncipherment,
        "cert sign" => KeyUsagePurpose::KeyCertSign,
        "crl sign" => KeyUsagePurpose::CrlSign,
        "encipher only" => KeyUsagePurpose::EncipherOnly,
        "decipher only" => KeyUsagePurpose::DecipherOnly,
        _ => return None,
    })
}

pub(crate) fn extended_key_usage(name: &str) -> Option<ExtendedKeyUsagePurpose> {
    Some(match name {
        "any" => ExtendedKeyUsagePurpose::Any,
        "server auth" => ExtendedKeyUsagePurpose::ServerAuth,
        "client auth" => ExtendedKeyUsagePurpose::ClientAuth,
        "code signing" => ExtendedKeyUsagePurpose::CodeSigning,
        "email protection" | "s/mime" => ExtendedKeyUsagePurpose::EmailProtection,
        "timestamping" => ExtendedKeyUsagePurpose::TimeStamping,
        "ocsp signing" => ExtendedKeyUsagePurpose::OcspSigning,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pem: &str) -> x509_parser::pem::Pem {
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1
    }

    #[test]
    fn issues_and_signs() {
        let (ca, _) = Authority::generate("kubernetes", 10).unwrap();
        let subject = Subject {
            common_name: "system:node:n1".into(),
            organization: Some("system:nodes".into()),
            hosts: vec!["n1".into(), "10.0.0.1".into()],
        };
        let csr = request(&subject).unwrap();
        let usages = ["digital signature", "key encipherment", "client auth"].map(String::from);
        let pem = parse(&ca.sign(&csr.certificate, &usages, Duration::from_secs(3600)).unwrap());
        let cert = pem.parse_x509().unwrap();
        assert_eq!(cert.subject().to_string(), "O=system:nodes, CN=system:node:n1");
        let ca_pem = parse(ca.certificate());
        let ca_x509 = ca_pem.parse_x509().unwrap();
        cert.verify_signature(Some(ca_x509.public_key())).unwrap();
        let eku = cert.extended_key_usage().unwrap().unwrap();
        assert!(eku.value.client_auth && !eku.value.server_auth);
        assert!(!cert.is_ca());

        let issued = ca.issue(&subject, Usage::Server, Duration::from_secs(60)).unwrap();
        let pem = parse(&issued.certificate);
        pem.parse_x509().unwrap().verify_signature(Some(ca_x509.public_key())).unwrap();
    }

    #[test]
    fn never_outlives_the_authority() {
        let (ca, _) = Authority::generate("short", 1).unwrap();
        let csr = request(&Subject { common_name: "x".into(), ..Default::default() }).unwrap();
        let pem =
            parse(&ca.sign(&csr.certificate, &["client auth".into()], Duration::from_secs(1 << 32)).unwrap());
        let ca_pem = parse(ca.certificate());
        let (end, own) = (
            pem.parse_x509().unwrap().validity().not_after.timestamp(),
            ca_pem.parse_x509().unwrap().validity().not_after.timestamp(),
        );
        assert_eq!(end, own);
    }

    #[test]
    fn refuses_what_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let (_, a) = Authority::generate("a", 1).unwrap();
        let (_, b) = Authority::generate("b", 1).unwrap();
        assert!(
            Authority::from_pem(&a.certificate, &b.key, "ca.crt")
                .err()
                .unwrap()
                .to_string()
                .contains("ca.crt")
        );
        assert!(Authority::from_pem("x", &a.key, "f").is_err());
        let (ca, _) = Authority::generate("a", 1).unwrap();
        assert!(matches!(ca.sign("junk", &[], Duration::ZERO), Err(Error::Request(_))));
        a.write(dir.path(), "ca").unwrap();
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        let e = Authority::load_or_generate(dir.path(), "ca", "a").err().unwrap().to_string();
        assert!(e.contains("ca.key"), "{e}");
    }
}
