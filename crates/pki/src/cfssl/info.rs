//! `cfssl certinfo`: what a certificate says, as JSON.

use std::net::IpAddr;

use serde::Serialize;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::X509Certificate;
use x509_parser::time::ASN1Time;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::args::Args;
use super::{Fault, read};

/// Fields in the order in which cfssl prints them.
#[derive(Debug, Serialize)]
struct Info {
    subject: Name,
    issuer: Name,
    serial_number: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sans: Vec<String>,
    not_before: String,
    not_after: String,
    sigalg: String,
    authority_key_id: String,
    subject_key_id: String,
    pem: String,
}

#[derive(Debug, Default, Serialize)]
struct Name {
    #[serde(skip_serializing_if = "String::is_empty")]
    common_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    serial_number: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    country: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    organization: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    organizational_unit: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    locality: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    province: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
}

/// `certinfo -cert FILE`.
pub(super) fn main(args: &[String]) -> Result<String, Fault> {
    let args = Args::parse(&[("cert", true)], args)?;
    let path = args.need("cert")?;
    let text = read(path)?;
    show(&text).map_err(|e| Fault::Input(format!("{path}: {e}")))
}

fn show(text: &str) -> Result<String, String> {
    let (rest, pem) =
        x509_parser::pem::parse_x509_pem(text.as_bytes()).map_err(|e| format!("not a certificate: {e}"))?;
    if String::from_utf8_lossy(rest).contains("-----BEGIN") {
        return Err("the PEM file should contain only one object".into());
    }
    let cert = pem.parse_x509().map_err(|e| format!("not a certificate: {e}"))?;
    let begin = text.find("-----BEGIN").unwrap_or(0);
    let info = Info {
        subject: name(cert.subject()),
        issuer: name(cert.issuer()),
        serial_number: cert.serial.to_string(),
        sans: alternative_names(&cert),
        not_before: rfc3339(&cert.validity().not_before),
        not_after: rfc3339(&cert.validity().not_after),
        sigalg: signature_algorithm(&cert.signature_algorithm.algorithm.to_id_string()),
        authority_key_id: key_id(&cert, true),
        subject_key_id: key_id(&cert, false),
        pem: format!("{}\n", text[begin..].trim_end()),
    };
    serde_json::to_string_pretty(&info).map(|s| s + "\n").map_err(|e| e.to_string())
}

fn name(name: &X509Name) -> Name {
    fn joined<'a>(values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> String {
        values.map(text).collect::<Vec<_>>().join(",")
    }
    Name {
        common_name: joined(name.iter_common_name()),
        serial_number: joined(name.iter_by_oid(&x509_parser::oid_registry::OID_X509_SERIALNUMBER)),
        country: joined(name.iter_country()),
        organization: joined(name.iter_organization()),
        organizational_unit: joined(name.iter_organizational_unit()),
        locality: joined(name.iter_locality()),
        province: joined(name.iter_state_or_province()),
        names: name.iter_attributes().map(text).collect(),
    }
}

fn text(value: &AttributeTypeAndValue) -> String {
    value.as_str().map_or_else(|_| String::from_utf8_lossy(value.as_slice()).into_owned(), String::from)
}

fn alternative_names(cert: &X509Certificate) -> Vec<String> {
    let Ok(Some(names)) = cert.subject_alternative_name() else { return Vec::new() };
    let (mut dns, mut ips) = (Vec::new(), Vec::new());
    for n in &names.value.general_names {
        match n {
            GeneralName::DNSName(n) => dns.push(n.to_string()),
            GeneralName::IPAddress(b) => ips.extend(address(b)),
            _ => {}
        }
    }
    dns.extend(ips);
    dns
}

fn address(bytes: &[u8]) -> Option<String> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
        .map(|ip| ip.to_string())
}

fn rfc3339(t: &ASN1Time) -> String {
    let t = t.to_datetime();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    )
}

fn signature_algorithm(oid: &str) -> String {
    match oid {
        "1.2.840.113549.1.1.5" => "SHA1WithRSA",
        "1.2.840.113549.1.1.11" => "SHA256WithRSA",
        "1.2.840.113549.1.1.12" => "SHA384WithRSA",
        "1.2.840.113549.1.1.13" => "SHA512WithRSA",
        "1.2.840.10045.4.1" => "ECDSAWithSHA1",
        "1.2.840.10045.4.3.2" => "ECDSAWithSHA256",
        "1.2.840.10045.4.3.3" => "ECDSAWithSHA384",
        "1.2.840.10045.4.3.4" => "ECDSAWithSHA512",
        "1.3.101.112" => "Ed25519",
        other => other,
    }
    .to_string()
}

fn key_id(cert: &X509Certificate, of_authority: bool) -> String {
    let id = cert.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(a) if of_authority => a.key_identifier.as_ref().map(|k| k.0),
        ParsedExtension::SubjectKeyIdentifier(k) if !of_authority => Some(k.0),
        _ => None,
    });
    id.unwrap_or_default().iter().map(|b| format!("{b:02X}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_certificate() {
        let issued = crate::authority::self_signed("a.b", &["a.b".into(), "10.0.0.1".into()]).unwrap();
        let shown: serde_json::Value = serde_json::from_str(&show(&issued.certificate).unwrap()).unwrap();
        assert_eq!(shown["subject"]["common_name"], "a.b");
        assert_eq!(shown["sans"], serde_json::json!(["a.b", "10.0.0.1"]));
        assert_eq!(shown["sigalg"], "ECDSAWithSHA256");
        let two = issued.certificate.repeat(2);
        assert_eq!(show(&two).unwrap_err(), "the PEM file should contain only one object");
        assert!(show(&issued.key).unwrap_err().starts_with("not a certificate"));
    }
}
