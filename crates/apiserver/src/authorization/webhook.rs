//! Authorization by a webhook: a SubjectAccessReview for each question, answers kept for a while
//! (<https://kubernetes.io/docs/reference/access-authn-authz/webhook/>).

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use pilothouse_apimachinery::json::{Value, json};
use tokio::time::Instant;

use crate::config::Config;
use crate::json::{bool_at, str_at};
use crate::outbound::kubeconfig::Remote;
use crate::request::{Attributes, Decision};

/// At most so many answers are kept.
const KEPT: usize = 8192;

/// The webhook.
pub struct Webhook {
    remote: Remote,
    allow_ttl: Duration,
    deny_ttl: Duration,
    answers: Mutex<HashMap<String, (Instant, Decision, String)>>,
}

/// The spec of a SubjectAccessReview about a request.
fn spec(attributes: Attributes<'_>) -> Value {
    let (u, r) = (attributes.user, attributes.request);
    let mut spec = json!({"user": u.name, "groups": u.groups, "uid": u.uid, "extra": u.extra});
    if r.is_resource {
        spec["resourceAttributes"] = json!({
            "namespace": r.namespace, "verb": r.verb, "group": r.group, "version": r.version,
            "resource": r.resource, "subresource": r.subresource, "name": r.name,
        });
    } else {
        spec["nonResourceAttributes"] = json!({"path": r.path, "verb": r.verb});
    }
    spec
}

impl Webhook {
    /// The webhook that the flags name.
    pub fn new(config: &Config) -> Result<Webhook, String> {
        let file = config
            .authorization_webhook
            .as_deref()
            .ok_or("--authorization-webhook-config-file is not given")?;
        Ok(Webhook {
            remote: Remote::load(file)?,
            allow_ttl: config.authorization_webhook_allow_ttl,
            deny_ttl: config.authorization_webhook_deny_ttl,
            answers: Mutex::default(),
        })
    }

    /// Decides.
    pub async fn authorize(&self, attributes: Attributes<'_>) -> Decision {
        self.decide(attributes).await.0
    }

    /// Decides, with the reason whatever the decision is.
    pub async fn decide(&self, attributes: Attributes<'_>) -> (Decision, String) {
        let spec = spec(attributes);
        let key = spec.to_string();
        let now = Instant::now();
        if let Some((until, decision, why)) = self.answers.lock().get(&key)
            && *until > now
        {
            return (decision.clone(), why.clone());
        }
        let review =
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
        let answer = match self.remote.review(&review, Duration::from_secs(30)).await {
            Ok(answer) => answer,
            Err(e) => {
                tracing::warn!("authorization webhook: {e}");
                return (Decision::NoOpinion(String::new()), String::new());
            }
        };
        let status = &answer["status"];
        let why = str_at(status, &["reason"]).to_string();
        let (decision, ttl) = if bool_at(status, &["allowed"]) {
            (Decision::Allow, self.allow_ttl)
        } else if bool_at(status, &["denied"]) {
            (Decision::Deny(why.clone()), self.deny_ttl)
        } else {
            (Decision::NoOpinion(why.clone()), self.deny_ttl)
        };
        let mut answers = self.answers.lock();
        if answers.len() >= KEPT {
            answers.retain(|_, (until, ..)| *until > now);
        }
        if answers.len() < KEPT {
            answers.insert(key, (now + ttl, decision.clone(), why.clone()));
        }
        (decision, why)
    }
}
