//! Tokens of service accounts in projected volumes: asked for through TokenRequest, bound to the pod, and asked for
//! anew well before they expire (<https://kubernetes.io/docs/concepts/storage/projected-volumes/>).

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;

use crate::pod::PodExt;

/// A token is renewed at the latest after this many seconds.
const LONGEST: i64 = 24 * 3600;

struct Held {
    token: String,
    renew_at: i64,
}

/// The tokens of all pods.
#[derive(Default)]
pub struct Tokens {
    held: Mutex<HashMap<(String, String, i64), Held>>,
}

impl Tokens {
    /// A token for a pod, as the projection asks for it.
    pub async fn get(
        &self,
        client: &Client,
        pod: &Pod,
        projection: &ServiceAccountTokenProjection,
    ) -> Result<String, String> {
        let audience = projection.audience.clone().unwrap_or_default();
        let seconds = projection.expiration_seconds.unwrap_or(3600);
        let key = (pod.uid().to_string(), audience.clone(), seconds);
        let now = Timestamp::now().as_second();
        if let Some(h) = self.held.lock().get(&key).filter(|h| now < h.renew_at) {
            return Ok(h.token.clone());
        }
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(if audience.is_empty() { Vec::new() } else { vec![audience] }),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.name().into()),
                    uid: Some(pod.uid().into()),
                }),
            }),
            ..Default::default()
        };
        let account = pod.pod_spec().service_account_name.as_deref().unwrap_or("default");
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), pod.namespace());
        let answer =
            accounts.create_token_request(account, &PostParams::default(), &request).await.map_err(|e| {
                match e {
                    kube::Error::Api(s) => format!("failed to fetch token: {}", s.message),
                    other => format!("failed to fetch token: {other}"),
                }
            })?;
        let status = answer.status.ok_or("failed to fetch token: the answer has none")?;
        let token = status.token.ok_or("failed to fetch token: the answer has none")?;
        let expires = status.expiration_timestamp.map_or(now, |t| t.0.as_second());
        self.held.lock().insert(key, Held { token: token.clone(), renew_at: renew_at(now, expires) });
        Ok(token)
    }

    /// Forgets a pod's tokens.
    pub fn forget(&self, uid: &str) {
        self.held.lock().retain(|(u, _, _), _| u != uid);
    }
}

/// When to ask anew: at four fifths of its life, or after a day.
fn renew_at(now: i64, expires: i64) -> i64 {
    let life = expires - now;
    now + (life * 4 / 5).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renews_in_time() {
        assert_eq!(renew_at(1000, 1000 + 3600), 1000 + 2880);
        assert_eq!(renew_at(0, 10 * LONGEST), LONGEST);
    }
}
