//! Names that rcgen cannot write: with several values of one kind (two groups, say), which Go's programs put into one
//! set. Certificates and requests are made with what rcgen can do, and then get the names as bytes and a new signature.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DnValue, KeyPair, SanType, SigningKey, SubjectPublicKeyInfo};
use x509_parser::asn1_rs::{Any, FromDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use crate::Error;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const BIT_STRING: u8 = 0x03;
const OID: u8 = 0x06;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
/// Where in a certificate: version, serial number, algorithm, issuer, validity, subject.
const ISSUER: usize = 3;
const SUBJECT: usize = 5;

/// A DER element: tag, length, content.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect();
            out.push(0x80 | bytes.len() as u8);
            out.extend(bytes);
        }
    }
    out.extend_from_slice(content);
    out
}

/// The elements one after the other, each with its head.
fn elements(mut rest: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (after, _) = Any::from_der(rest).map_err(|e| Error::Request(e.to_string()))?;
        let (one, left) = rest.split_at(rest.len() - after.len());
        all.push(one);
        rest = left;
    }
    Ok(all)
}

fn content(der: &[u8]) -> Result<&[u8], Error> {
    Ok(Any::from_der(der).map_err(|e| Error::Request(e.to_string()))?.1.data)
}

/// A name: sets of values, each with the last numbers of its kind's identifier (2.5.4.*).
pub(crate) fn name(sets: &[(u8, Vec<DnValue>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, values) in sets {
        let mut members: Vec<Vec<u8>> = values
            .iter()
            .map(|value| {
                let text = match value {
                    DnValue::PrintableString(s) => element(PRINTABLE, s.as_str().as_bytes()),
                    DnValue::Utf8String(s) => element(UTF8, s.as_bytes()),
                    // Those are the two that are made here.
                    _ => element(UTF8, b""),
                };
                element(SEQUENCE, &[element(OID, &[0x55, 4, *kind]), text].concat())
            })
            .collect();
        // DER has the members of a set in order.
        members.sort();
        out.extend(element(SET, &members.concat()));
    }
    element(SEQUENCE, &out)
}

/// The same signed thing with other elements at some places of what is signed, signed by `key`; as PEM.
fn signed_anew(der: &[u8], changes: &[(usize, &[u8])], key: &KeyPair, label: &str) -> Result<String, Error> {
    let [signed, algorithm, _] = elements(content(der)?)?[..] else {
        return Err(Error::Request("not something that is signed".into()));
    };
    let mut parts = elements(content(signed)?)?;
    for (place, new) in changes {
        *parts.get_mut(*place).ok_or_else(|| Error::Request("an element is missing".into()))? = new;
    }
    let signed = element(SEQUENCE, &parts.concat());
    let signature = [&[0u8][..], &key.sign(&signed)?].concat();
    let der = element(SEQUENCE, &[&signed, algorithm, &element(BIT_STRING, &signature)].concat());
    Ok(pem(label, &der))
}

fn parts_of(made: &rcgen::Certificate) -> Result<Vec<&[u8]>, Error> {
    let signed = elements(content(made.der())?)?.first().copied().unwrap_or_default();
    elements(content(signed)?)
}

/// The subject of a certificate.
pub(crate) fn subject(made: &rcgen::Certificate) -> Result<Vec<u8>, Error> {
    Ok(parts_of(made)?.get(SUBJECT).copied().unwrap_or_default().to_vec())
}

/// A certificate with these names in place of those that it has; it is signed anew where that changes it.
pub(crate) fn certificate(
    made: &rcgen::Certificate,
    issuer: &[u8],
    subject: &[u8],
    key: &KeyPair,
) -> Result<String, Error> {
    let parts = parts_of(made)?;
    if parts.get(ISSUER) == Some(&issuer) && parts.get(SUBJECT) == Some(&subject) {
        return Ok(made.pem());
    }
    signed_anew(made.der(), &[(ISSUER, issuer), (SUBJECT, subject)], key, "CERTIFICATE")
}

/// A request with this subject.
pub(crate) fn request(params: &CertificateParams, subject: &[u8], key: &KeyPair) -> Result<String, Error> {
    let made = params.serialize_request(key)?;
    // Version, subject.
    signed_anew(made.der(), &[(1, subject)], key, "CERTIFICATE REQUEST")
}

/// A PEM text as Go writes it.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// What a request asks for.
pub(crate) struct Asked {
    /// Alternative names; the rest is the signer's to say.
    pub params: CertificateParams,
    /// The key that the certificate is for.
    pub key: SubjectPublicKeyInfo,
    /// The subject as it is written.
    pub subject: Vec<u8>,
}

/// Reads a PEM request and checks that it is signed by its own key.
pub(crate) fn asked(text: &str) -> Result<Asked, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).map_err(|e| e.to_string())?;
    let (_, csr) = X509CertificationRequest::from_der(&pem.contents).map_err(|e| e.to_string())?;
    csr.verify_signature().map_err(|e| e.to_string())?;
    let info = &csr.certification_request_info;
    let mut params = CertificateParams::default();
    for extension in csr.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            params.subject_alt_names.push(alternative(name)?);
        }
    }
    let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|e| e.to_string())?;
    Ok(Asked { params, key, subject: info.subject.as_raw().to_vec() })
}

fn alternative(name: &GeneralName<'_>) -> Result<SanType, String> {
    let ascii = |e: rcgen::Error| e.to_string();
    Ok(match name {
        GeneralName::DNSName(n) => SanType::DnsName((*n).try_into().map_err(ascii)?),
        GeneralName::RFC822Name(n) => SanType::Rfc822Name((*n).try_into().map_err(ascii)?),
        GeneralName::URI(n) => SanType::URI((*n).try_into().map_err(ascii)?),
        GeneralName::IPAddress(b) => match (<[u8; 4]>::try_from(*b), <[u8; 16]>::try_from(*b)) {
            (Ok(a), _) => SanType::IpAddress(a.into()),
            (_, Ok(a)) => SanType::IpAddress(a.into()),
            _ => return Err("malformed IP address".into()),
        },
        _ => return Err("an alternative name of an unknown kind".into()),
    })
}
