//! Signs approved requests for the built-in signers with the cluster's CA.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;
use kube::{Api, Client};
use pilothouse_client::{Queue, key_of};
use pilothouse_pki::Authority;

use super::request::{Request, refusal};
use super::{has_condition, issued};
use crate::context::Context;

/// Shorter certificates are not asked for, whatever `expirationSeconds` says (KEP-2784).
const SHORTEST: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Pki(#[from] pilothouse_pki::Error),
}

struct Signer {
    client: Client,
    /// By the signer's name.
    authorities: BTreeMap<&'static str, Authority>,
    duration: Duration,
}

/// Starts the controller; does nothing without `--cluster-signing-*-file`.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let config = &context.config;
    if config.cluster_signing.is_empty() {
        return Ok(());
    }
    let mut authorities = BTreeMap::new();
    for (name, (cert, key)) in &config.cluster_signing {
        authorities.insert(*name, Authority::load(cert, key)?);
    }
    let signer = Arc::new(Signer {
        client: context.client.clone(),
        authorities,
        duration: config.cluster_signing_duration,
    });
    let queue: Queue<String> = Queue::new();
    let requests = context.informer::<CertificateSigningRequest>();
    let q = queue.clone();
    requests.on_change(move |c| q.add(key_of(&**c.object())));
    queue.run("csrsigning", 2, context.stop.clone(), move |name| {
        let (signer, csr) = (signer.clone(), requests.get(&name));
        async move {
            match csr {
                Some(csr) => signer.sync(&csr).await.map(|()| None),
                None => Ok(None),
            }
        }
    });
    Ok(())
}

impl Signer {
    async fn sync(&self, csr: &CertificateSigningRequest) -> Result<(), Error> {
        let signer = csr.spec.signer_name.as_str();
        let Some(authority) = self.authorities.get(signer) else { return Ok(()) };
        if !has_condition(csr, "Approved")
            || has_condition(csr, "Denied")
            || has_condition(csr, "Failed")
            || issued(csr)
        {
            return Ok(());
        }
        let usages = csr.spec.usages.clone().unwrap_or_default();
        let checked = Request::parse(&csr.spec.request.0)
            .map_err(|e| format!("unable to parse csr: {e}"))
            .and_then(|request| refusal(signer, &request, &usages));
        let mut updated = csr.clone();
        let status = updated.status.get_or_insert_default();
        match checked {
            Err(message) => {
                let now = Time(Timestamp::now());
                status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                    type_: "Failed".into(),
                    status: "True".into(),
                    reason: Some("SignerValidationFailure".into()),
                    message: Some(message),
                    last_update_time: Some(now),
                    last_transition_time: None,
                });
            }
            Ok(()) => {
                let wanted =
                    csr.spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
                let duration = wanted.map_or(self.duration, |w| w.max(SHORTEST).min(self.duration));
                let pem = String::from_utf8_lossy(&csr.spec.request.0);
                let certificate = authority.sign(&pem, &usages, duration)?;
                status.certificate = Some(ByteString(certificate.into_bytes()));
            }
        }
        let name = csr.metadata.name.as_deref().unwrap_or_default();
        Api::<CertificateSigningRequest>::all(self.client.clone())
            .replace_status(name, &PostParams::default(), &updated)
            .await?;
        Ok(())
    }
}
