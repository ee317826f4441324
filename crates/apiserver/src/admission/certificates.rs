//! Plug-ins about certificate signing requests: who may approve and sign, and what may be asked for.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use pilothouse_apimachinery::status::Status;
use x509_parser::prelude::FromDer;

use crate::json::{get, str_at};
use crate::request::{
    AdmissionRequest, Attributes, Authorizer, Decision, Objects, Operation, RequestInfo, Validation,
};

use super::is_about;

const GROUP: &str = "certificates.k8s.io";

/// Whether the user has a verb on a signer, or on all signers of its domain.
async fn permitted(authorizer: &dyn Authorizer, r: &AdmissionRequest, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    for name in [signer.to_string(), format!("{domain}/*")] {
        let request = RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: GROUP.into(),
            version: "*".into(),
            resource: "signers".into(),
            name,
            ..RequestInfo::default()
        };
        if authorizer.authorize(Attributes { user: &r.user, request: &request }).await == Decision::Allow {
            return true;
        }
    }
    false
}

fn is_update_of(r: &AdmissionRequest, subresource: &str) -> bool {
    r.group == GROUP
        && r.resource == "certificatesigningrequests"
        && r.subresource == subresource
        && r.operation == Operation::Update
}

/// `CertificateApproval`: approving needs the verb `approve` on the signer.
pub struct Approval(pub Arc<dyn Authorizer>);

#[async_trait]
impl Validation for Approval {
    async fn validate(&self, r: &AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        let signer = str_at(&r.object, &["spec", "signerName"]);
        if !is_update_of(r, "approval") || permitted(&*self.0, r, "approve", signer).await {
            return Ok(());
        }
        Err(super::forbidden(r, format!("user not permitted to approve requests with signerName {signer:?}")))
    }
}

/// `CertificateSigning`: setting the certificate needs the verb `sign` on the signer.
pub struct Signing(pub Arc<dyn Authorizer>);

#[async_trait]
impl Validation for Signing {
    async fn validate(&self, r: &AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        let part = |path: &[&str]| get(&r.object, path) == get(&r.old_object, path);
        if !is_update_of(r, "status") || (part(&["status", "certificate"]) && part(&["status", "conditions"]))
        {
            return Ok(());
        }
        let signer = str_at(&r.old_object, &["spec", "signerName"]);
        if permitted(&*self.0, r, "sign", signer).await {
            return Ok(());
        }
        Err(super::forbidden(r, format!("user not permitted to sign requests with signerName {signer:?}")))
    }
}

/// `CertificateSubjectRestriction`: no client certificates for `system:masters`.
pub struct SubjectRestriction;

/// The organizations of a request in PEM, itself in base64.
fn organizations(request: &str) -> Vec<String> {
    let Ok(pem) = base64::engine::general_purpose::STANDARD.decode(request) else { return Vec::new() };
    let Some(Ok(pem)) = x509_parser::pem::Pem::iter_from_buffer(&pem).next() else { return Vec::new() };
    let Ok((_, csr)) = x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents)
    else {
        return Vec::new();
    };
    let subject = &csr.certification_request_info.subject;
    subject.iter_organization().filter_map(|o| o.as_str().ok().map(String::from)).collect()
}

#[async_trait]
impl Validation for SubjectRestriction {
    async fn validate(&self, r: &AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        let signer = str_at(&r.object, &["spec", "signerName"]);
        let create = is_about(r, GROUP, "certificatesigningrequests") && r.operation == Operation::Create;
        if !create || signer != "kubernetes.io/kube-apiserver-client" {
            return Ok(());
        }
        if organizations(str_at(&r.object, &["spec", "request"])).iter().any(|o| o == "system:masters") {
            return Err(super::forbidden(
                r,
                format!("use of {signer} signer with system:masters group is not allowed"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::json;

    #[tokio::test]
    async fn no_masters_by_certificate() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut p = rcgen::CertificateParams::new(vec![]).unwrap();
        p.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let pem = p.serialize_request(&key).unwrap().pem().unwrap();
        let ask = |signer: &str| {
            let spec = json!({"signerName": signer, "request": base64::engine::general_purpose::STANDARD.encode(&pem)});
            test_create(
                GROUP,
                "certificatesigningrequests",
                "CertificateSigningRequest",
                json!({"metadata": {"name": "c"}, "spec": spec}),
            )
        };
        let o = FakeObjects::default();
        let e =
            SubjectRestriction.validate(&ask("kubernetes.io/kube-apiserver-client"), &o).await.unwrap_err();
        assert_eq!(
            e.message,
            "certificatesigningrequests.certificates.k8s.io \"c\" is forbidden: use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
        );
        SubjectRestriction.validate(&ask("example.com/x"), &o).await.unwrap();
    }
}
