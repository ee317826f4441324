//! What a signing request asks for, and which signers may grant it. Texts are those of
//! `k8s.io/kubernetes/pkg/apis/certificates`.

use std::net::IpAddr;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// Signs client certificates that the API server takes.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signs kubelets' client certificates.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs kubelets' serving certificates.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Signs what older clients ask for.
pub const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

/// A parsed PKCS #10 request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Common name.
    pub common_name: String,
    /// Organizations.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// IP addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// E-mail addresses.
    pub email_addresses: Vec<String>,
    /// URIs.
    pub uris: Vec<String>,
}

impl Request {
    /// Parses PEM. Also checks that the request is signed by its own key.
    pub fn parse(pem: &[u8]) -> Result<Request, String> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem)
            .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_string())?;
        if pem.label != "CERTIFICATE REQUEST" {
            return Err("PEM block type must be CERTIFICATE REQUEST".into());
        }
        let (_, csr) = X509CertificationRequest::from_der(&pem.contents).map_err(|e| e.to_string())?;
        csr.verify_signature().map_err(|e| e.to_string())?;
        let subject = &csr.certification_request_info.subject;
        let text =
            |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().unwrap_or_default().to_string();
        let mut request = Request {
            common_name: subject.iter_common_name().next().map(text).unwrap_or_default(),
            organizations: subject.iter_organization().map(text).collect(),
            ..Default::default()
        };
        for extension in csr.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(n) => request.dns_names.push((*n).to_string()),
                    GeneralName::RFC822Name(n) => request.email_addresses.push((*n).to_string()),
                    GeneralName::URI(n) => request.uris.push((*n).to_string()),
                    GeneralName::IPAddress(b) => match (<[u8; 4]>::try_from(*b), <[u8; 16]>::try_from(*b)) {
                        (Ok(a), _) => request.ip_addresses.push(a.into()),
                        (_, Ok(a)) => request.ip_addresses.push(a.into()),
                        _ => return Err("malformed IP address".into()),
                    },
                    _ => {}
                }
            }
        }
        Ok(request)
    }

    fn is_node(&self) -> Result<(), &'static str> {
        if self.organizations != ["system:nodes"] {
            return Err("subject organization is not system:nodes");
        }
        if !self.common_name.starts_with("system:node:") {
            return Err("subject common name does not begin with system:node: ");
        }
        Ok(())
    }

    /// Why it is not a kubelet's client certificate request, or nothing.
    pub fn check_kubelet_client(&self, usages: &[String]) -> Result<(), &'static str> {
        self.is_node()?;
        if !self.dns_names.is_empty() || !self.ip_addresses.is_empty() {
            return Err("DNS subjectAltNames are not allowed").map_err(|e| {
                if self.dns_names.is_empty() { "IP subjectAltNames are not allowed" } else { e }
            });
        }
        if !self.email_addresses.is_empty() {
            return Err("Email subjectAltNames are not allowed");
        }
        if !self.uris.is_empty() {
            return Err("URI subjectAltNames are not allowed");
        }
        if !same_set(usages, &["key encipherment", "digital signature", "client auth"]) {
            return Err("usages did not match [client auth digital signature key encipherment]");
        }
        Ok(())
    }

    /// Why it is not a kubelet's serving certificate request, or nothing.
    pub fn check_kubelet_serving(&self, usages: &[String]) -> Result<(), &'static str> {
        self.is_node()?;
        if self.dns_names.is_empty() && self.ip_addresses.is_empty() {
            return Err("DNS or IP subjectAltName is required");
        }
        if !self.email_addresses.is_empty() {
            return Err("Email subjectAltNames are not allowed");
        }
        if !self.uris.is_empty() {
            return Err("URI subjectAltNames are not allowed");
        }
        if !same_set(usages, &["key encipherment", "digital signature", "server auth"]) {
            return Err("usages did not match [digital signature key encipherment server auth]");
        }
        Ok(())
    }
}

fn same_set(usages: &[String], wanted: &[&str]) -> bool {
    usages.len() == wanted.len() && wanted.iter().all(|w| usages.iter().any(|u| u == w))
}

/// Why a signer refuses a request, or nothing; an unknown signer is somebody else's and not asked here.
pub fn refusal(signer: &str, request: &Request, usages: &[String]) -> Result<(), String> {
    let allowed = |list: &[&str]| match usages.iter().find(|u| !list.contains(&u.as_str())) {
        Some(u) => Err(format!("invalid usage for client certificate: {u}")),
        None if usages.iter().any(|u| u == "client auth") => Ok(()),
        None => Err("missing required usage for client certificate: client auth".to_string()),
    };
    match signer {
        CLIENT => allowed(&["digital signature", "key encipherment", "client auth"]),
        KUBELET_CLIENT => request.check_kubelet_client(usages).map_err(String::from),
        KUBELET_SERVING => request.check_kubelet_serving(usages).map_err(String::from),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_pki::Subject;

    fn parse(subject: Subject) -> Request {
        Request::parse(pilothouse_pki::authority::request(&subject).unwrap().certificate.as_bytes()).unwrap()
    }

    fn usages(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn knows_a_kubelets_request() {
        let node = |hosts: &[&str]| {
            parse(Subject {
                common_name: "system:node:n1".into(),
                organization: Some("system:nodes".into()),
                hosts: hosts.iter().map(ToString::to_string).collect(),
            })
        };
        let client = usages(&["digital signature", "key encipherment", "client auth"]);
        let serving = usages(&["digital signature", "key encipherment", "server auth"]);
        assert_eq!(node(&[]).check_kubelet_client(&client), Ok(()));
        assert_eq!(node(&[]).check_kubelet_serving(&serving), Err("DNS or IP subjectAltName is required"));
        assert_eq!(node(&["n1", "10.0.0.1"]).check_kubelet_serving(&serving), Ok(()));
        assert!(node(&["n1"]).check_kubelet_client(&client).is_err());
        let jane = parse(Subject { common_name: "jane".into(), ..Default::default() });
        assert!(refusal(KUBELET_CLIENT, &jane, &client).is_err());
        assert_eq!(refusal(CLIENT, &jane, &client), Ok(()));
        assert_eq!(
            refusal(CLIENT, &jane, &usages(&["server auth"])),
            Err("invalid usage for client certificate: server auth".into())
        );
    }

    #[test]
    fn refuses_junk() {
        for junk in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(Request::parse(junk.as_bytes()).is_err());
        }
    }
}
