//! Approves kubelets' client certificates where RBAC says that the requester may have them without a person's look.

use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;
use kube::{Api, Client};
use pilothouse_client::{Queue, key_of};

use super::request::{KUBELET_CLIENT, Request};
use super::{has_condition, issued};
use crate::context::Context;

/// Which subresource a requester needs `create` on, and what the approval then says.
const RECOGNIZERS: [(&str, &str, bool); 2] = [
    ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.", true),
    ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.", false),
];

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let queue: Queue<String> = Queue::new();
    let requests = context.informer::<CertificateSigningRequest>();
    let q = queue.clone();
    requests.on_change(move |c| q.add(key_of(&**c.object())));
    let client = context.client.clone();
    queue.run("csrapproving", 2, context.stop.clone(), move |name| {
        let (client, csr) = (client.clone(), requests.get(&name));
        async move {
            match csr {
                Some(csr) => sync(&client, &csr).await.map(|()| None),
                None => Ok(None),
            }
        }
    });
    Ok(())
}

async fn sync(client: &Client, csr: &CertificateSigningRequest) -> Result<(), kube::Error> {
    if issued(csr) || has_condition(csr, "Approved") || has_condition(csr, "Denied") {
        return Ok(());
    }
    let spec = &csr.spec;
    let usages = spec.usages.as_deref().unwrap_or_default();
    if spec.signer_name != KUBELET_CLIENT {
        return Ok(());
    }
    let Ok(request) = Request::parse(&spec.request.0) else { return Ok(()) };
    if request.check_kubelet_client(usages).is_err() {
        return Ok(());
    }
    let is_self = spec.username.as_deref() == Some(request.common_name.as_str());
    for (subresource, message, self_only) in RECOGNIZERS {
        if self_only && !is_self {
            continue;
        }
        if allowed(client, csr, subresource).await? {
            return approve(client, csr, message).await;
        }
    }
    Ok(())
}

async fn allowed(
    client: &Client,
    csr: &CertificateSigningRequest,
    subresource: &str,
) -> Result<bool, kube::Error> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: csr.spec.username.clone(),
            uid: csr.spec.uid.clone(),
            groups: csr.spec.groups.clone(),
            extra: csr.spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                verb: Some("create".into()),
                subresource: Some(subresource.into()),
                version: Some("*".into()),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    let answer =
        Api::<SubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|s| s.allowed))
}

async fn approve(client: &Client, csr: &CertificateSigningRequest, message: &str) -> Result<(), kube::Error> {
    let mut csr = csr.clone();
    let name = csr.metadata.name.clone().unwrap_or_default();
    csr.status.get_or_insert_default().conditions.get_or_insert_default().push(
        CertificateSigningRequestCondition {
            type_: "Approved".into(),
            status: "True".into(),
            reason: Some("AutoApproved".into()),
            message: Some(message.into()),
            last_update_time: Some(Time(Timestamp::now())),
            last_transition_time: None,
        },
    );
    Api::<CertificateSigningRequest>::all(client.clone())
        .replace_subresource("approval", &name, &PostParams::default(), &csr)
        .await?;
    Ok(())
}
