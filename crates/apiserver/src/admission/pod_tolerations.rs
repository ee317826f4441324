//! `PodTolerationRestriction`: which tolerations a namespace gives its pods, and which they may have.

use async_trait::async_trait;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;

use super::configuration::Configuration;
use super::is_about;
use crate::json::{containers, entry, get, i64_at, list_at, set, str_at};
use crate::request::{AdmissionRequest, Mutation, Objects, Operation, Validation};

const DEFAULTS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const ALLOWED: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";

/// The plug-in, with what holds where a namespace says nothing.
pub struct PodTolerations {
    defaults: Vec<Value>,
    allowed: Vec<Value>,
}

impl PodTolerations {
    /// With its configuration.
    pub fn new(configuration: &Configuration) -> PodTolerations {
        let of = |key: &str| list_at(configuration.of("PodTolerationRestriction"), &[key]).to_vec();
        PodTolerations { defaults: of("default"), allowed: of("whitelist") }
    }
}

/// Whether one toleration tolerates all that another does.
fn covers(more: &Value, less: &Value) -> bool {
    let text = |t: &Value, key: &str| str_at(t, &[key]).to_string();
    if more == less {
        return true;
    }
    let operator =
        |t: &Value| if text(t, "operator").is_empty() { "Equal".to_string() } else { text(t, "operator") };
    let every_key = text(more, "key").is_empty() && operator(more) == "Exists";
    if text(more, "key") != text(less, "key") && !every_key {
        return false;
    }
    if !text(more, "effect").is_empty() && text(more, "effect") != text(less, "effect") {
        return false;
    }
    if text(more, "effect") == "NoExecute"
        && let Some(most) = i64_at(more, &["tolerationSeconds"])
        && i64_at(less, &["tolerationSeconds"]).is_none_or(|n| n > most)
    {
        return false;
    }
    match operator(more).as_str() {
        "Exists" => true,
        _ => operator(less) == "Equal" && text(more, "value") == text(less, "value"),
    }
}

/// Both lists without what another one of them covers.
fn merge(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (i, t) in all.iter().enumerate() {
        let before = merged.iter().any(|m| covers(m, t));
        let later = all[i + 1..].iter().any(|o| o != t && covers(o, t));
        if !before && !later {
            merged.push((*t).clone());
        }
    }
    merged
}

/// A list in an annotation; none where there is no annotation.
fn annotated(namespace: Option<&Value>, key: &str) -> Result<Option<Vec<Value>>, Status> {
    let Some(text) = namespace.and_then(|n| entry(n, &["metadata", "annotations"], key)) else {
        return Ok(None);
    };
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(text).map(Some).map_err(|e| Status::failure(500, "", e.to_string()))
}

/// Whether a pod asks for nothing.
fn is_best_effort(pod: &Value) -> bool {
    let asks = |c: &Value, of: &str| {
        get(c, &["resources", of]).as_object().is_some_and(|r| r.keys().any(|k| k == "cpu" || k == "memory"))
    };
    !containers(get(pod, &["spec"]))
        .any(|(list, c)| list != "ephemeralContainers" && (asks(c, "requests") || asks(c, "limits")))
}

fn concerns(request: &AdmissionRequest) -> bool {
    is_about(request, "", "pods") && matches!(request.operation, Operation::Create | Operation::Update)
}

#[async_trait]
impl Mutation for PodTolerations {
    async fn admit(&self, request: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        if !concerns(request) {
            return Ok(());
        }
        let path = ["spec", "tolerations"];
        let mut tolerations = list_at(&request.object, &path).to_vec();
        if request.operation == Operation::Create {
            let namespace = objects.get("", "namespaces", "", &request.namespace);
            let defaults =
                annotated(namespace.as_deref(), DEFAULTS)?.unwrap_or_else(|| self.defaults.clone());
            if !defaults.is_empty() {
                tolerations = merge(&defaults, &tolerations);
            }
        }
        if !is_best_effort(&request.object) {
            let pressure = json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"});
            tolerations = merge(&tolerations, &[pressure]);
        }
        if !tolerations.is_empty() {
            set(&mut request.object, &path, tolerations);
        }
        self.validate(request, objects).await
    }
}

#[async_trait]
impl Validation for PodTolerations {
    async fn validate(&self, request: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let tolerations = list_at(&request.object, &["spec", "tolerations"]);
        if !concerns(request) || tolerations.is_empty() {
            return Ok(());
        }
        let namespace = objects.get("", "namespaces", "", &request.namespace);
        let allowed = annotated(namespace.as_deref(), ALLOWED)?.unwrap_or_else(|| self.allowed.clone());
        if allowed.is_empty() || tolerations.iter().all(|t| allowed.iter().any(|a| covers(a, t))) {
            return Ok(());
        }
        let why = "pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist";
        Err(Status::failure(500, "", why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;

    fn pod(tolerations: Value) -> AdmissionRequest {
        let mut r = test_create(
            "",
            "pods",
            "Pod",
            json!({"metadata": {"name": "p"}, "spec": {"tolerations": tolerations}}),
        );
        r.namespace = "n".into();
        r
    }

    #[tokio::test]
    async fn namespaces_give_and_limit() {
        let o = FakeObjects::default();
        o.put("", "namespaces", json!({"metadata": {"name": "n", "annotations": {
            DEFAULTS: r#"[{"key": "a", "operator": "Equal", "value": "1"}]"#,
            ALLOWED: r#"[{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Equal", "value": "x"}]"#}}}));
        let plugin = PodTolerations::new(&Configuration::default());
        let mut r = pod(json!([{"key": "b", "operator": "Equal", "value": "x"}]));
        plugin.admit(&mut r, &o).await.unwrap();
        assert_eq!(list_at(&r.object, &["spec", "tolerations"]).len(), 2);
        let refused =
            plugin.admit(&mut pod(json!([{"key": "c", "operator": "Exists"}])), &o).await.unwrap_err();
        assert!(refused.message.contains("conflict with its namespace whitelist"));
        // Where a namespace says nothing, the configuration does.
        let configuration = json!({"default": [{"key": "d", "operator": "Exists"}]});
        let plugin = PodTolerations::new(&Configuration::for_test("PodTolerationRestriction", configuration));
        let mut r = pod(json!([]));
        r.namespace = "other".into();
        plugin.admit(&mut r, &o).await.unwrap();
        assert_eq!(r.object["spec"]["tolerations"], json!([{"key": "d", "operator": "Exists"}]));
    }

    #[test]
    fn wider_tolerations_cover_narrower_ones() {
        let all = json!({"operator": "Exists"});
        let a = json!({"key": "a", "operator": "Equal", "value": "1", "effect": "NoSchedule"});
        let soon = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let late = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 50});
        assert!(covers(&all, &a) && !covers(&a, &all) && covers(&late, &soon) && !covers(&soon, &late));
        assert_eq!(merge(&[a.clone(), soon], std::slice::from_ref(&late)), [a.clone(), late]);
        let one = std::slice::from_ref(&a);
        assert_eq!(merge(one, one), one);
    }
}
