//! One call of one webhook.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilothouse_apimachinery::json::{Value, from_value, json, strings_at};
use pilothouse_apimachinery::status::Status;

use super::rules::GroupVersion;
use crate::admission::expressions::request_value;
use crate::json::{get, i64_at, str_at, texts};
use crate::outbound::webhook::Clients;
use crate::request::{AdmissionRequest, Objects};

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
    /// Annotations for the audit record.
    pub annotations: Vec<(String, String)>,
}

/// Sends a review and reads the answer. The error's text is what stands behind `failed calling webhook "x": `.
pub async fn call(
    clients: &Clients,
    webhook: &Value,
    objects: &dyn Objects,
    review: &Value,
) -> Result<Answer, String> {
    let seconds = i64_at(webhook, &["timeoutSeconds"]).and_then(|s| u64::try_from(s).ok()).unwrap_or(10);
    read(&clients.post(webhook, objects, review, seconds).await?, review)
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
        annotations: strings_at(response, &["auditAnnotations"])
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect(),
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
    let mut request = request_value(r, seen);
    request["uid"] = json!(uuid::Uuid::new_v4().to_string());
    request["object"] = object;
    request["oldObject"] = old;
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
    out.details = status.get("details").filter(|d| d.is_object()).and_then(|d| from_value(d.clone()).ok());
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
