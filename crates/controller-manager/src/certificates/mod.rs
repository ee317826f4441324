//! Certificate signing requests and bootstrap tokens.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/>

pub mod approve;
pub mod bootstrap;
pub mod clean;
pub mod request;
pub mod sign;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

/// Whether a request has a condition of that type.
pub(crate) fn has_condition(csr: &CertificateSigningRequest, type_: &str) -> bool {
    csr.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == type_)
}

/// Whether a request has its certificate.
pub(crate) fn issued(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}
