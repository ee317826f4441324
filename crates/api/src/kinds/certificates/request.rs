//! What stands in a certificate signing request.

use std::collections::BTreeSet;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

/// All key usages, sorted.
pub(super) const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

fn first_pem(bytes: &[u8]) -> Option<Pem> {
    Pem::iter_from_buffer(bytes).next()?.ok()
}

/// Why the bytes are no signed request, if they are not.
pub(super) fn fault(bytes: &[u8]) -> Option<String> {
    let Some(pem) = first_pem(bytes).filter(|pem| pem.label == "CERTIFICATE REQUEST") else {
        return Some("PEM block type must be CERTIFICATE REQUEST".into());
    };
    match X509CertificationRequest::from_der(&pem.contents) {
        Ok((_, csr)) => match csr.verify_signature() {
            Ok(()) => None,
            Err(_) => Some("x509: signature verification failed".into()),
        },
        Err(e) => Some(truncated(&pem.contents).unwrap_or_else(|| format!("asn1: structure error: {e}"))),
    }
}

/// What Go says of DER whose first element is not all there.
fn truncated(der: &[u8]) -> Option<String> {
    let short = || Some("asn1: syntax error: truncated tag or length".to_string());
    let Some(&length) = der.get(1) else { return short() };
    let (head, length) = match usize::from(length) {
        n if n < 0x80 => (2, n),
        n => {
            let Some(bytes) = der.get(2..2 + (n & 0x7f)) else { return short() };
            let length =
                bytes.iter().fold(0usize, |sum, b| sum.saturating_mul(256).saturating_add((*b).into()));
            (2 + bytes.len(), length)
        }
    };
    (der.len() - head < length).then(|| "asn1: syntax error: data truncated".to_string())
}

/// The signer that v1beta1 gives a request that names none: kubelets' own certificates are recognised by what is in
/// the request.
pub(super) fn default_signer(bytes: &[u8], usages: &BTreeSet<&str>) -> &'static str {
    kubelet_signer(bytes, usages).unwrap_or(super::LEGACY_UNKNOWN)
}

fn kubelet_signer(bytes: &[u8], usages: &BTreeSet<&str>) -> Option<&'static str> {
    let pem = first_pem(bytes).filter(|pem| pem.label == "CERTIFICATE REQUEST")?;
    let (_, csr) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let subject = &csr.certification_request_info.subject;
    let organizations: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    if organizations != ["system:nodes"] || !name.starts_with("system:node:") {
        return None;
    }
    let (mut hosts, mut others) = (0, 0);
    for extension in csr.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension {
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(_) | GeneralName::IPAddress(_) => hosts += 1,
                    _ => others += 1,
                }
            }
        }
    }
    let needs = |usage: &'static str| BTreeSet::from(["digital signature", "key encipherment", usage]);
    if others == 0 && hosts == 0 && *usages == needs("client auth") {
        return Some("kubernetes.io/kube-apiserver-client-kubelet");
    }
    if others == 0 && hosts > 0 && *usages == needs("server auth") {
        return Some("kubernetes.io/kubelet-serving");
    }
    None
}

/// Why the bytes are no chain of certificates, if there are any and they are not.
pub(super) fn certificate_fault(bytes: &[u8]) -> Option<String> {
    if bytes.is_empty() {
        return None;
    }
    let mut found = false;
    for pem in Pem::iter_from_buffer(bytes) {
        let Ok(pem) = pem else { break };
        if pem.label != "CERTIFICATE" {
            return Some(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", pem.label));
        }
        if let Err(e) = pem.parse_x509() {
            return Some(e.to_string());
        }
        found = true;
    }
    (!found).then(|| "must contain at least one CERTIFICATE PEM block".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pem() {
        assert_eq!(fault(b"x").as_deref(), Some("PEM block type must be CERTIFICATE REQUEST"));
        assert_eq!(default_signer(b"x", &BTreeSet::new()), "kubernetes.io/legacy-unknown");
        assert_eq!(certificate_fault(b""), None);
        assert!(certificate_fault(b"x").is_some());
    }
}
