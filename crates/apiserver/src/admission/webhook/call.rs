//! One call of one webhook.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use pilothouse_apimachinery::status::Status;
use serde_json::{Value, json};

use super::rules::GroupVersion;
use crate::json::{get, i64_at, str_at, texts};
use crate::outbound::kubeconfig::split_url;
use crate::outbound::tls::{self, Trust};
use crate::outbound::{Target, resolve};
use crate::request::{AdmissionRequest, Objects};

/// TLS configurations by CA bundle: parsing one for every call would cost more than the call.
#[derive(Default)]
pub struct Clients(Mutex<HashMap<String, Arc<rustls::ClientConfig>>>);

/// What a webhook answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Why not.
    pub status: Value,
    /// A JSON patch, if there is one.
    pub patch: Option<Vec<u8>>,
    /// Texts for the client.
    pub warnings: Vec<String>,
}

impl Clients {
    fn get(&self, bundle: &str) -> Result<Arc<rustls::ClientConfig>, String> {
        if let Some(known) = self.0.lock().get(bundle) {
            return Ok(known.clone());
        }
        let pem = STANDARD.decode(bundle).map_err(|e| format!("caBundle: {e}"))?;
        let trust = if pem.is_empty() { Trust::System } else { Trust::Pem(&pem) };
        let made = tls::client(trust, None)?;
        let mut known = self.0.lock();
        if known.len() > 100 {
            known.clear();
        }
        known.insert(bundle.to_string(), made.clone());
        Ok(made)
    }

    /// Where a webhook is reached, with path and query.
    fn target(
        &self,
        webhook: &Value,
        objects: &dyn Objects,
        seconds: i64,
    ) -> Result<(Target, String), String> {
        let config = get(webhook, &["clientConfig"]);
        let tls = self.get(str_at(config, &["caBundle"]))?;
        let url = str_at(config, &["url"]);
        if !url.is_empty() {
            let (_, host, port, path) = split_url(url)?;
            let separator = if path.contains('?') { '&' } else { '?' };
            let target = Target { host, port, addresses: vec![], tls: Some(tls) };
            return Ok((target, format!("{path}{separator}timeout={seconds}s")));
        }
        let service = |f| str_at(config, &["service", f]);
        let (namespace, name) = (service("namespace"), service("name"));
        let port = i64_at(config, &["service", "port"]).and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
        let path = format!("/{}", service("path").trim_start_matches('/'));
        let host = format!("{name}.{namespace}.svc");
        let addresses = resolve::service(objects, namespace, name, port)
            .map_err(|why| format!("Post \"https://{host}:{port}{path}?timeout={seconds}s\": {why}"))?;
        Ok((Target { host, port, addresses, tls: Some(tls) }, format!("{path}?timeout={seconds}s")))
    }

    /// Sends a review and reads the answer. The error's text is what stands behind `failed calling webhook "x": `.
    pub async fn call(
        &self,
        webhook: &Value,
        objects: &dyn Objects,
        review: &Value,
    ) -> Result<Answer, String> {
        let seconds = i64_at(webhook, &["timeoutSeconds"]).unwrap_or(10);
        let (target, path) = self.target(webhook, objects, seconds)?;
        let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or(10));
        let url = format!("Post \"https://{}{path}\"", target.authority());
        let (status, body) = target
            .post_json(&path, None, review.to_string().into_bytes(), limit, 16 << 20)
            .await
            .map_err(|e| format!("{url}: {e}"))?;
        if !status.is_success() {
            return Err(if status.as_u16() == 404 {
                "the server could not find the requested resource".to_string()
            } else {
                let text = String::from_utf8_lossy(&body);
                format!(
                    "an error on the server ({:?}) has prevented the request from succeeding",
                    text.trim()
                )
            });
        }
        let answer: Value = serde_json::from_slice(&body).map_err(|e| format!("invalid response: {e}"))?;
        read(&answer, review)
    }
}

/// Reads a review's answer.
fn read(answer: &Value, review: &Value) -> Result<Answer, String> {
    let version = str_at(review, &["apiVersion"]);
    let response = get(answer, &["response"]);
    if !response.is_object() {
        return Err("webhook response was absent".into());
    }
    let uid = str_at(review, &["request", "uid"]);
    if version == "admission.k8s.io/v1" {
        if str_at(answer, &["apiVersion"]) != version || str_at(answer, &["kind"]) != "AdmissionReview" {
            return Err(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
                str_at(answer, &["apiVersion"]),
                str_at(answer, &["kind"])
            ));
        }
        if str_at(response, &["uid"]) != uid {
            return Err(format!("expected response.uid={uid:?}, got {:?}", str_at(response, &["uid"])));
        }
    }
    let patch = match str_at(response, &["patch"]) {
        "" => None,
        text => Some(STANDARD.decode(text).map_err(|e| format!("response.patch: {e}"))?),
    };
    let patch_type = str_at(response, &["patchType"]);
    if patch.is_some()
        && patch_type != "JSONPatch"
        && !(patch_type.is_empty() && version != "admission.k8s.io/v1")
    {
        return Err(format!("webhook returned response.patch but not response.patchType: {patch_type:?}"));
    }
    Ok(Answer {
        allowed: get(response, &["allowed"]).as_bool().unwrap_or(false),
        status: get(response, &["status"]).clone(),
        patch,
        warnings: texts(response, &["warnings"]),
    })
}

/// A review of a request, with its objects as they are in a group's version.
pub fn review(
    webhook: &Value,
    r: &AdmissionRequest,
    seen: &GroupVersion,
    object: Value,
    old: Value,
) -> Option<Value> {
    let speaks = texts(webhook, &["admissionReviewVersions"]);
    let review_version = speaks.iter().find(|v| matches!(v.as_str(), "v1" | "v1beta1"))?;
    let gvk = |group: &str, version: &str| json!({"group": group, "version": version, "kind": r.kind});
    let gvr =
        |group: &str, version: &str| json!({"group": group, "version": version, "resource": r.resource});
    let mut user = json!({"username": r.user.name});
    if !r.user.uid.is_empty() {
        user["uid"] = json!(r.user.uid);
    }
    if !r.user.groups.is_empty() {
        user["groups"] = json!(r.user.groups);
    }
    if !r.user.extra.is_empty() {
        user["extra"] = json!(r.user.extra);
    }
    let mut request = json!({
        "uid": uuid::Uuid::new_v4().to_string(),
        "kind": gvk(&seen.group, &seen.version), "resource": gvr(&seen.group, &seen.version),
        "requestKind": gvk(&r.group, &r.version), "requestResource": gvr(&r.group, &r.version),
        "operation": super::rules::operation_name(r.operation),
        "userInfo": user, "object": object, "oldObject": old, "dryRun": r.dry_run, "options": r.options,
    });
    for (field, value) in [("name", &r.name), ("namespace", &r.namespace)] {
        if !value.is_empty() {
            request[field] = json!(value);
        }
    }
    if !r.subresource.is_empty() {
        request["subResource"] = json!(r.subresource);
        request["requestSubResource"] = json!(r.subresource);
    }
    Some(
        json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{review_version}"), "request": request}),
    )
}

/// What a webhook's refusal is to the client.
pub fn denial(name: &str, status: &Value) -> Status {
    let by = format!("admission webhook {name:?} denied the request");
    let message = match (str_at(status, &["message"]), str_at(status, &["reason"])) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code =
        i64_at(status, &["code"]).and_then(|c| u16::try_from(c).ok()).filter(|c| *c >= 400).unwrap_or(400);
    let mut out = Status::failure(code, str_at(status, &["reason"]), message);
    out.details =
        status.get("details").filter(|d| d.is_object()).and_then(|d| serde_json::from_value(d.clone()).ok());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;

    #[test]
    fn reads_answers() {
        let r = test_create("", "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "n"}}));
        let hook = json!({"admissionReviewVersions": ["v2", "v1"]});
        let seen = GroupVersion { group: String::new(), version: "v1".into() };
        let asked = review(&hook, &r, &seen, r.object.clone(), Value::Null).unwrap();
        assert_eq!(asked["request"]["operation"], "CREATE");
        let uid = asked["request"]["uid"].clone();
        let answer = |response: Value| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        let good = read(&answer(json!({"uid": uid, "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode("[]")})), &asked).unwrap();
        assert_eq!((good.allowed, good.patch.as_deref()), (true, Some(&b"[]"[..])));
        assert!(
            read(&answer(json!({"uid": "x", "allowed": true})), &asked)
                .unwrap_err()
                .contains("expected response.uid")
        );
        assert!(read(&answer(Value::Null), &asked).unwrap_err().contains("absent"));
    }

    #[test]
    fn says_who_denied() {
        let d = denial("w", &json!({"message": "no", "code": 418}));
        assert_eq!((d.code, d.message.as_str()), (418, "admission webhook \"w\" denied the request: no"));
        let d = denial("w", &Value::Null);
        assert_eq!(
            (d.code, d.message.as_str()),
            (400, "admission webhook \"w\" denied the request without explanation")
        );
    }
}
