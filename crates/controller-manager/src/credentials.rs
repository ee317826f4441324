//! `--use-service-account-credentials`: each controller acts as a service account of its own in `kube-system`, whose
//! role (`system:controller:<account>`) gives it what it needs and no more.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Config};
use pilothouse_client::limit::Limit;
use pilothouse_client::token::{self, Bearer};
use pilothouse_component_base::signals::Stop;

use crate::control::has_code;

const NAMESPACE: &str = "kube-system";
/// How long a token is asked for.
const LIFE: i64 = 3600;

/// The service account of a controller; `None` for those that act as the controller manager itself.
pub fn account(controller: &str) -> Option<&'static str> {
    Some(match controller {
        "attachdetach" => "attachdetach-controller",
        "clusterrole-aggregation" => "clusterrole-aggregation-controller",
        "cronjob" => "cronjob-controller",
        "csrapproving" | "csrsigning" | "csrcleaner" => "certificate-controller",
        "daemonset" => "daemon-set-controller",
        "deployment" => "deployment-controller",
        "disruption" => "disruption-controller",
        "endpoint" => "endpoint-controller",
        "endpointslice" => "endpointslice-controller",
        "endpointslicemirroring" => "endpointslicemirroring-controller",
        "garbagecollector" => "generic-garbage-collector",
        "horizontalpodautoscaling" => "horizontal-pod-autoscaler",
        "job" => "job-controller",
        "local-path" => "local-path-provisioner",
        "namespace" => "namespace-controller",
        "nodeipam" | "nodelifecycle" => "node-controller",
        "persistentvolume-binder" => "persistent-volume-binder",
        "persistentvolume-expander" => "expand-controller",
        "podgc" => "pod-garbage-collector",
        "pv-protection" => "pv-protection-controller",
        "pvc-protection" => "pvc-protection-controller",
        "replicaset" => "replicaset-controller",
        "replicationcontroller" => "replication-controller",
        "resourcequota" => "resourcequota-controller",
        "root-ca-cert-publisher" => "root-ca-cert-publisher",
        "serviceaccount" => "service-account-controller",
        "statefulset" => "statefulset-controller",
        "ttl" => "ttl-controller",
        "ttl-after-finished" => "ttl-after-finished-controller",
        "bootstrapsigner" => "bootstrap-signer",
        "tokencleaner" => "token-cleaner",
        _ => return None,
    })
}

/// A client that acts as `account`. Makes the account where it is missing, waits for its first token, and asks for
/// further ones in time until `stop`.
pub async fn client(
    config: &Config,
    own: &Client,
    account: &'static str,
    limit: Option<Limit>,
    stop: Stop,
) -> Result<Client, kube::Error> {
    let bearer = Bearer::default();
    let api: Api<ServiceAccount> = Api::namespaced(own.clone(), NAMESPACE);
    let mut wait = refresh(&api, account, &bearer).await?;
    let b = bearer.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(wait) => {} }
            wait = match refresh(&api, account, &b).await {
                Ok(w) => w,
                Err(e) => {
                    tracing::warn!(account, "no new token: {e}");
                    Duration::from_secs(10)
                }
            };
        }
    });
    token::client(config, bearer, limit)
}

/// Asks for a token; returns when to ask again.
async fn refresh(api: &Api<ServiceAccount>, account: &str, bearer: &Bearer) -> Result<Duration, kube::Error> {
    let request = TokenRequest {
        spec: Some(TokenRequestSpec { expiration_seconds: Some(LIFE), ..Default::default() }),
        ..Default::default()
    };
    let answer = match api.create_token_request(account, &PostParams::default(), &request).await {
        Err(e) if has_code(&e, 404) => {
            let new = ServiceAccount {
                metadata: ObjectMeta { name: Some(account.into()), ..Default::default() },
                ..Default::default()
            };
            match api.create(&PostParams::default(), &new).await {
                Ok(_) => {}
                Err(e) if has_code(&e, 409) => {}
                Err(e) => return Err(e),
            }
            api.create_token_request(account, &PostParams::default(), &request).await?
        }
        other => other?,
    };
    let status = answer.status.unwrap_or_default();
    bearer.set(status.token.as_deref().unwrap_or_default());
    let life = status.expiration_timestamp.map_or(LIFE, |t| t.0.as_second() - Timestamp::now().as_second());
    Ok(Duration::from_secs(u64::try_from(life * 4 / 5).unwrap_or(0).max(10)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_controller_but_the_token_maker_has_an_account() {
        for c in crate::controllers::ALL {
            assert_eq!(super::account(c.name).is_none(), c.name == "serviceaccount-token", "{}", c.name);
        }
    }
}
