//! `ImagePolicyWebhook`: somebody else says which images may run.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pilothouse_apimachinery::json::{Map, Value, json};
use pilothouse_apimachinery::status::Status;
use tokio::time::Instant;

use super::configuration::Configuration;
use super::{forbidden, is_about};
use crate::json::{bool_at, containers, get, i64_at, str_at};
use crate::outbound::kubeconfig::Remote;
use crate::request::{AdmissionRequest, Objects, Operation, Validation};

/// Answers kept.
const KEPT: usize = 1024;
/// How long the webhook may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Says of a pod that nobody could be asked.
const FAILED_OPEN: &str = "alpha.image-policy.k8s.io/failed-open";

/// The plug-in.
pub struct ImagePolicy {
    remote: Remote,
    allow_ttl: Duration,
    deny_ttl: Duration,
    default_allow: bool,
    answers: Mutex<HashMap<String, (Instant, Value)>>,
}

impl ImagePolicy {
    /// With its configuration, which must name a kubeconfig.
    pub fn new(configuration: &Configuration) -> Result<ImagePolicy, String> {
        let given = get(configuration.of("ImagePolicyWebhook"), &["imagePolicy"]);
        let file = str_at(given, &["kubeConfigFile"]);
        if file.is_empty() {
            return Err("ImagePolicyWebhook: imagePolicy.kubeConfigFile must be given".into());
        }
        // -1 is no keeping; nothing is the default.
        let ttl = |key: &str, default: u64| match i64_at(given, &[key]) {
            None | Some(0) => Duration::from_secs(default),
            Some(n) => Duration::from_secs(u64::try_from(n).unwrap_or(0)),
        };
        Ok(ImagePolicy {
            remote: Remote::load(Path::new(file))?,
            allow_ttl: ttl("allowTTL", 300),
            deny_ttl: ttl("denyTTL", 30),
            default_allow: bool_at(given, &["defaultAllow"]),
            answers: Mutex::default(),
        })
    }

    /// The status of a review; an error where nobody answers.
    async fn ask(&self, spec: &Value) -> Result<Value, String> {
        let key = spec.to_string();
        let now = Instant::now();
        if let Some((until, status)) = self.answers.lock().get(&key)
            && *until > now
        {
            return Ok(status.clone());
        }
        let review =
            json!({"apiVersion": "imagepolicy.k8s.io/v1alpha1", "kind": "ImageReview", "spec": spec});
        let answer = self.remote.review(&review, LIMIT).await.map_err(|e| e.to_string())?;
        let status = get(&answer, &["status"]).clone();
        let ttl = if bool_at(&status, &["allowed"]) { self.allow_ttl } else { self.deny_ttl };
        let mut answers = self.answers.lock();
        if answers.len() >= KEPT {
            answers.retain(|_, (until, _)| *until > now);
            if answers.len() >= KEPT {
                answers.clear();
            }
        }
        answers.insert(key, (now + ttl, status.clone()));
        Ok(status)
    }
}

/// What is asked about a pod.
fn spec(request: &AdmissionRequest) -> Value {
    let images: Vec<Value> = containers(get(&request.object, &["spec"]))
        .map(|(_, c)| json!({"image": str_at(c, &["image"])}))
        .collect();
    let annotations: Map = get(&request.object, &["metadata", "annotations"])
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, _)| k.contains(".image-policy.k8s.io/"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    json!({"containers": images, "annotations": annotations, "namespace": request.namespace})
}

#[async_trait]
impl Validation for ImagePolicy {
    async fn validate(&self, request: &AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        let ephemeral = request.resource == "pods" && request.subresource == "ephemeralcontainers";
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if !writes || !(is_about(request, "", "pods") || ephemeral) {
            return Ok(());
        }
        match self.ask(&spec(request)).await {
            Ok(status) if bool_at(&status, &["allowed"]) => Ok(()),
            Ok(status) => {
                let denied = "image policy webhook backend denied one or more images";
                let why = match str_at(&status, &["reason"]) {
                    "" => denied.to_string(),
                    reason => format!("{denied}: {reason}"),
                };
                Err(forbidden(request, why))
            }
            Err(e) if self.default_allow => {
                tracing::warn!("image policy webhook: {e}; {FAILED_OPEN}");
                Ok(())
            }
            Err(e) => Err(forbidden(request, e)),
        }
    }
}
