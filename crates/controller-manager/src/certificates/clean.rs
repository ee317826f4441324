//! Removes old requests: answered ones after an hour, unanswered ones after a day, and those whose certificate has
//! expired.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::Api;
use kube::api::DeleteParams;

use super::issued;
use crate::context::Context;

const INTERVAL: Duration = Duration::from_secs(60);
const ANSWERED: i64 = 3600;
const PENDING: i64 = 24 * 3600;

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let requests = context.informer::<CertificateSigningRequest>();
    let api: Api<CertificateSigningRequest> = Api::all(context.client.clone());
    let stop = context.stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(INTERVAL) => {} }
            let now = Timestamp::now();
            for csr in requests.list().into_iter().filter(|c| outdated(c, now)) {
                let name = csr.metadata.name.as_deref().unwrap_or_default();
                if let Err(e) = api.delete(name, &DeleteParams::default()).await {
                    tracing::debug!(csr = name, "not removed: {e}");
                }
            }
        }
    });
    Ok(())
}

fn outdated(csr: &CertificateSigningRequest, now: Timestamp) -> bool {
    let age = |t: Timestamp| now.as_second() - t.as_second();
    let conditions = || csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let answered = |type_: &str| {
        conditions()
            .filter(|c| c.type_ == type_)
            .any(|c| c.last_update_time.as_ref().is_some_and(|t| age(t.0) > ANSWERED))
    };
    let answered_any = conditions().next().is_some();
    (answered("Approved") && issued(csr))
        || answered("Denied")
        || answered("Failed")
        || (!answered_any && csr.metadata.creation_timestamp.as_ref().is_some_and(|t| age(t.0) > PENDING))
        || expired(csr, now)
}

fn expired(csr: &CertificateSigningRequest, now: Timestamp) -> bool {
    let certificate = csr.status.as_ref().and_then(|s| s.certificate.as_ref());
    certificate
        .and_then(|c| x509_parser::pem::parse_x509_pem(&c.0).ok())
        .and_then(|(_, pem)| pem.parse_x509().ok().map(|x| x.validity().not_after.timestamp()))
        .is_some_and(|end| end < now.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answered_after_an_hour_pending_after_a_day() {
        let csr = |status: serde_json::Value| {
            serde_json::from_value::<CertificateSigningRequest>(json!({
                "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
                "metadata": {"name": "x", "creationTimestamp": "2024-01-01T00:00:00Z"},
                "spec": {"request": "", "signerName": "a/b"}, "status": status}))
            .unwrap()
        };
        let at = |s: &str| s.parse::<Timestamp>().unwrap();
        let denied = json!({"conditions": [{"type": "Denied", "status": "True", "lastUpdateTime": "2024-01-01T00:00:00Z"}]});
        assert!(!outdated(&csr(denied.clone()), at("2024-01-01T00:59:00Z")));
        assert!(outdated(&csr(denied), at("2024-01-01T01:01:00Z")));
        assert!(!outdated(&csr(json!({})), at("2024-01-01T23:00:00Z")));
        assert!(outdated(&csr(json!({})), at("2024-01-02T00:01:00Z")));
    }
}
