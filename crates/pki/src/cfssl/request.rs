//! Certificate requests (`*-csr.json`): whom a certificate is for, and its key.

use std::net::IpAddr;

use rcgen::{CertificateParams, DnValue, KeyIdMethod, KeyPair, PublicKeyData, RsaKeySize, SanType};
use serde::Deserialize;
use x509_parser::asn1_rs::{FromDer, Integer, OctetString, Sequence};

use super::Fault;
use crate::names::{self, pem};

/// What `print-defaults csr` shows.
pub(super) const DEFAULT: &str = r#"{
    "CN": "kubernetes",
    "hosts": [
        "127.0.0.1",
        "kubernetes.default.svc"
    ],
    "key": {
        "algo": "rsa",
        "size": 2048
    },
    "names": [
        {
            "C": "CN",
            "ST": "Beijing",
            "L": "Beijing",
            "O": "k8s",
            "OU": "System"
        }
    ]
}
"#;

/// A request as cfssl reads it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Request {
    #[serde(rename = "CN")]
    common_name: String,
    names: Vec<Name>,
    /// DNS names, addresses and mail addresses.
    pub hosts: Option<Vec<String>>,
    key: Option<KeyRequest>,
    /// For a certificate authority's own certificate.
    pub ca: Option<CaRequest>,
    #[serde(rename = "serialnumber")]
    serial_number: String,
}

/// One entry of `names`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Name {
    #[serde(rename = "C")]
    country: String,
    #[serde(rename = "ST")]
    state: String,
    #[serde(rename = "L")]
    locality: String,
    #[serde(rename = "O")]
    organization: String,
    #[serde(rename = "OU")]
    unit: String,
}

#[derive(Debug, Deserialize)]
struct KeyRequest {
    algo: String,
    size: u32,
}

/// `ca` of a request.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CaRequest {
    /// How long it holds.
    pub expiry: String,
    /// How long before now it begins.
    pub backdate: String,
    pathlen: u8,
    pathlenzero: bool,
}

impl CaRequest {
    /// How many authorities may be below it; any number where that is not said.
    pub fn path(&self) -> Option<u8> {
        (self.pathlen > 0 || self.pathlenzero).then_some(self.pathlen)
    }
}

/// A key pair, its PEM in the form that cfssl writes (PKCS #1, SEC 1), and its kind in words.
pub(super) struct Key {
    pub pair: KeyPair,
    pub pem: String,
    pub kind: String,
}

impl Request {
    /// Reads a request. `path` is named in errors.
    pub fn parse(text: &str, path: &str) -> Result<Request, Fault> {
        serde_json::from_str(text).map_err(|e| Fault::Input(format!("{path}: {e}")))
    }

    /// Alternative names, as a certificate's parameters; `hosts` replaces the request's where there are any.
    pub fn params(&self, hosts: &[String], path: &str) -> Result<CertificateParams, Fault> {
        let fault = |e: String| Fault::Input(format!("{path}: {e}"));
        let mut params = CertificateParams::default();
        let own = self.hosts.as_deref().unwrap_or_default();
        params.subject_alt_names =
            alternative_names(if hosts.is_empty() { own } else { hosts }).map_err(fault)?;
        Ok(params)
    }

    /// The subject as it is written: what `names` has of one kind goes together, as with Go.
    pub fn subject(&self, path: &str) -> Result<Vec<u8>, Fault> {
        type Part = (u8, fn(&Name) -> &String);
        let parts: [Part; 5] = [
            (6, |n| &n.country),
            (8, |n| &n.state),
            (7, |n| &n.locality),
            (10, |n| &n.organization),
            (11, |n| &n.unit),
        ];
        let mut sets: Vec<(u8, Vec<DnValue>)> = parts
            .into_iter()
            .map(|(kind, get)| {
                let values = self.names.iter().map(get).filter(|v| !v.is_empty());
                (kind, values.map(|v| dn_value(v)).collect())
            })
            .collect();
        let own = |text: &String| if text.is_empty() { Vec::new() } else { vec![dn_value(text)] };
        sets.push((3, own(&self.common_name)));
        sets.push((5, own(&self.serial_number)));
        sets.retain(|(_, values)| !values.is_empty());
        if sets.is_empty() {
            return Err(Fault::Input(format!("{path}: it has neither a CN nor names")));
        }
        Ok(names::name(&sets))
    }

    /// Makes the key that the request asks for: ECDSA P-256 where it does not say.
    pub fn key(&self, path: &str) -> Result<Key, Fault> {
        let (algo, size) = self.key.as_ref().map_or(("ecdsa", 256), |k| (k.algo.as_str(), k.size));
        let fault = |e: &str| Fault::Input(format!("{path}: key: {e}"));
        let rsa = |algorithm, size| KeyPair::generate_rsa_for(algorithm, size);
        let pair = match (algo, size) {
            ("rsa", 2048) => rsa(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
            ("rsa", 3072) => rsa(&rcgen::PKCS_RSA_SHA384, RsaKeySize::_3072),
            ("rsa", 4096) => rsa(&rcgen::PKCS_RSA_SHA512, RsaKeySize::_4096),
            ("rsa", ..2048) => return Err(fault("RSA key is too weak")),
            ("rsa", _) => return Err(fault("RSA keys have 2048, 3072 or 4096 bits")),
            ("ecdsa", 256) => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            ("ecdsa", 384) => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            ("ecdsa", 521) => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
            ("ecdsa", _) => return Err(fault("invalid curve: ECDSA keys have 256, 384 or 521 bits")),
            _ => return Err(fault(&format!("invalid algorithm {algo:?}: rsa or ecdsa"))),
        }?;
        let pem = classic_pem(&pair).ok_or_else(|| fault("it cannot be written"))?;
        Ok(Key { pair, pem, kind: format!("{algo}-{size}") })
    }
}

/// The key identifier that cfssl gives: SHA-1 of the public key.
pub(super) fn key_identifier(key: &impl PublicKeyData) -> KeyIdMethod {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, key.der_bytes());
    KeyIdMethod::PreSpecified(digest.as_ref().to_vec())
}

/// A value in the narrowest string type that holds it, as Go writes names: authorities are found by the bytes.
fn dn_value(text: &str) -> DnValue {
    match text.try_into() {
        Ok(printable) => DnValue::PrintableString(printable),
        Err(_) => DnValue::Utf8String(text.to_string()),
    }
}

/// Alternative names, DNS names first, then mail addresses, then addresses.
pub(super) fn alternative_names(hosts: &[String]) -> Result<Vec<SanType>, String> {
    let (mut dns, mut mail, mut ips) = (Vec::new(), Vec::new(), Vec::new());
    for host in hosts.iter().map(|h| h.trim()) {
        if host.is_empty() {
            return Err("hosts: an empty name".into());
        }
        let bad = |_| format!("hosts: {host:?} is not a name in ASCII");
        if let Ok(ip) = host.parse::<IpAddr>() {
            ips.push(SanType::IpAddress(ip));
        } else if looks_like_address(host) {
            return Err(format!("hosts: {host:?} is not an IP address"));
        } else if host.contains('@') {
            mail.push(SanType::Rfc822Name(host.try_into().map_err(bad)?));
        } else {
            dns.push(SanType::DnsName(host.try_into().map_err(bad)?));
        }
    }
    Ok([dns, mail, ips].concat())
}

/// Four numbers and dots, that is: a mistyped address would become a name that no client ever asks for.
fn looks_like_address(host: &str) -> bool {
    host.split('.').count() == 4 && host.split('.').all(|p| p.bytes().all(|b| b.is_ascii_digit()))
}

/// The PEM text of a key in its algorithm's own form.
fn classic_pem(pair: &KeyPair) -> Option<String> {
    use aws_lc_rs::encoding::{AsDer, EcPrivateKeyRfc5915Der};
    use aws_lc_rs::signature;
    let der = pair.serialized_der();
    for algorithm in [
        &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
        &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
        &signature::ECDSA_P521_SHA512_ASN1_SIGNING,
    ] {
        if let Ok(key) = signature::EcdsaKeyPair::from_private_key_der(algorithm, der) {
            let der: EcPrivateKeyRfc5915Der = key.private_key().as_der().ok()?;
            return Some(pem("EC PRIVATE KEY", der.as_ref()));
        }
    }
    // PKCS #8 holds a version, an algorithm and, in an octet string, the PKCS #1 key.
    let (_, outer) = Sequence::from_der(der).ok()?;
    let (rest, _version) = Integer::from_der(&outer.content).ok()?;
    let (rest, _algorithm) = Sequence::from_der(rest).ok()?;
    let (_, inner) = OctetString::from_der(rest).ok()?;
    Some(pem("RSA PRIVATE KEY", inner.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_in_their_classic_form() {
        for (request, label) in [
            (r#"{"CN": "a"}"#, "EC PRIVATE KEY"),
            (r#"{"CN": "a", "key": {"algo": "ecdsa", "size": 384}}"#, "EC PRIVATE KEY"),
            (r#"{"CN": "a", "key": {"algo": "rsa", "size": 2048}}"#, "RSA PRIVATE KEY"),
        ] {
            let key = Request::parse(request, "f").unwrap().key("f").unwrap();
            assert!(key.pem.starts_with(&format!("-----BEGIN {label}-----\n")));
            let again = KeyPair::from_pem(&key.pem).unwrap();
            assert_eq!(again.public_key_raw(), key.pair.public_key_raw());
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (request, text) in [
            (r#"{"CN": "a", "key": {"algo": "rsa", "size": 1024}}"#, "f: key: RSA key is too weak"),
            (r#"{"CN": "a", "key": {"algo": "ecdsa", "size": 255}}"#, "f: key: invalid curve"),
            (r#"{"CN": "a", "key": {"algo": "dsa", "size": 255}}"#, "f: key: invalid algorithm \"dsa\""),
        ] {
            let e = Request::parse(request, "f").unwrap().key("f").err().unwrap().to_string();
            assert!(e.starts_with(text), "{e}");
        }
        for (request, text) in [
            (r#"{"CN": "a", "hosts": ["20.0.0.1000"]}"#, "f: hosts: \"20.0.0.1000\" is not an IP address"),
            (r#"{"CN": "a", "hosts": [""]}"#, "f: hosts: an empty name"),
        ] {
            let e = Request::parse(request, "f").unwrap().params(&[], "f").unwrap_err().to_string();
            assert!(e.starts_with(text), "{e}");
        }
        let e = Request::parse("{}", "f").unwrap().subject("f").unwrap_err().to_string();
        assert_eq!(e, "f: it has neither a CN nor names");
        assert!(Request::parse("{\n", "f.json").unwrap_err().to_string().starts_with("f.json: EOF"));
    }
}
