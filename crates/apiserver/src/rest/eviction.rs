//! `pods/eviction`: a deletion that disruption budgets may refuse
//! (<https://kubernetes.io/docs/concepts/scheduling-eviction/api-eviction/>).

use std::sync::Arc;

use pilothouse_apimachinery::json::{Map, Value, json};
use pilothouse_apimachinery::selector::Selector;
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::time::Timestamp;
use pilothouse_apimachinery::version::Release;

use super::body::{self, Gvk};
use crate::admission;
use crate::json::{self, get, get_i64, has, list_at, str_at};
use crate::request::{AdmissionRequest, Objects, Operation, RequestBody, RequestContext, Response};
use crate::special::SpecialRest;
use crate::state::ServerState;

const V1BETA1: Gvk = Gvk { group: "policy", version: "v1beta1", kind: "Eviction" };
const V1: Gvk = Gvk { group: "policy", version: "v1", kind: "Eviction" };
/// At most so many evicted pods are remembered until the controller has seen them go.
const MAX_DISRUPTED: usize = 2000;

/// Whether no budget can be hurt: the pod serves nobody (any more, or yet).
fn serves_nobody(pod: &Value) -> bool {
    matches!(str_at(pod, &["status", "phase"]), "Succeeded" | "Failed" | "Pending")
        || has(pod, &["metadata", "deletionTimestamp"])
}

/// The budgets that a pod counts for.
fn budgets(objects: &dyn Objects, pod: &Value, release: Release) -> Vec<Arc<Value>> {
    let labels = get(pod, &["metadata", "labels"]);
    if release == Release::V1_20 && labels.as_object().is_none_or(Map::is_empty) {
        return Vec::new();
    }
    let mut all = objects.list("policy", "poddisruptionbudgets", str_at(pod, &["metadata", "namespace"]));
    all.retain(|b| {
        let selector = get(b, &["spec", "selector"]);
        // In v1beta1 an empty selector selects nothing.
        Selector::from_label_selector(selector)
            .is_ok_and(|s| !(s.is_everything() && release == Release::V1_20) && s.matches(labels))
    });
    all
}

/// Whether a budget is not hurt by the end of a pod: one that is not ready, while enough others are.
fn is_spare(pod: &Value, budget: &Value) -> bool {
    let ready = list_at(pod, &["status", "conditions"])
        .iter()
        .any(|c| str_at(c, &["type"]) == "Ready" && str_at(c, &["status"]) == "True");
    let n = |f: &str| get_i64(budget, &["status", f]);
    !ready && n("currentHealthy") >= n("desiredHealthy") && n("desiredHealthy") > 0
}

/// Takes one disruption from a budget, or says why not.
fn take(budget: &mut Value, pod: &str, now: &str, release: Release) -> Result<(), Status> {
    let name = str_at(budget, &["metadata", "name"]).to_string();
    let n = |v: &Value, f: &str| get_i64(v, &["status", f]);
    let violates = "Cannot evict pod as it would violate the pod's disruption budget.";
    if n(budget, "observedGeneration") < get_i64(budget, &["metadata", "generation"]) {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        let later = if release == Release::V1_20 { 0 } else { 10 };
        return Err(Status::too_many_requests(violates, later).cause("DisruptionBudget", &why, ""));
    }
    let allowed = n(budget, "disruptionsAllowed");
    let refuse = |why: &str| Err(Status::forbidden("policy", "poddisruptionbudget", &name, why));
    if allowed < 0 {
        return refuse("pdb disruptions allowed is negative");
    }
    if get(budget, &["status", "disruptedPods"]).as_object().is_some_and(|m| m.len() > MAX_DISRUPTED) {
        return refuse("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        let why = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            n(budget, "desiredHealthy"),
            n(budget, "currentHealthy")
        );
        return Err(Status::too_many_requests(violates, 0).cause("DisruptionBudget", &why, ""));
    }
    json::set(budget, &["status", "disruptionsAllowed"], allowed - 1);
    json::set(budget, &["status", "disruptedPods", pod], now);
    Ok(())
}

async fn evict(
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
    body: RequestBody,
) -> Result<Response, Status> {
    let newest = state.release > Release::V1_20;
    let kinds: &[Gvk] = if newest { &[V1, V1BETA1] } else { &[V1BETA1] };
    // The shape of v1beta1 is that of v1; a release without v1beta1 in its catalogue reads both as v1.
    let (_, eviction) = body::read(&context, body, state.release, kinds).await?;
    let (namespace, name) = (&context.info.namespace, &context.info.name);
    if str_at(&eviction, &["metadata", "name"]) != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options = get(&eviction, &["deleteOptions"]).clone();
    let dry_run = context.param("dryRun") == Some("All")
        || json::texts(&options, &["dryRun"]).iter().any(|d| d == "All");
    let pod = state.objects.get_latest("", "pods", namespace, name).await?;
    let mut request = AdmissionRequest {
        user: context.user.clone(),
        group: String::new(),
        version: "v1".into(),
        resource: "pods".into(),
        kind: "Eviction".into(),
        subresource: "eviction".into(),
        namespace: namespace.clone(),
        name: name.clone(),
        operation: Operation::Create,
        object: eviction,
        old_object: Value::Null,
        options: Value::Null,
        dry_run,
        warnings: Default::default(),
        reinvocation: Default::default(),
    };
    admission::run(&state, &mut request).await?;
    if !serves_nobody(&pod) {
        let budgets = budgets(&*state.objects, &pod, state.release);
        match budgets.as_slice() {
            [] => {}
            [budget] => {
                let budget_name = str_at(budget, &["metadata", "name"]);
                let now = Timestamp::now().rfc3339();
                let change = |b: &mut Value| take(b, name, &now, state.release);
                if is_spare(&pod, budget) {
                    // The pod that was judged is the one that goes, as it is.
                    if !has(&options, &["preconditions", "resourceVersion"]) {
                        let version = str_at(&pod, &["metadata", "resourceVersion"]);
                        json::set(&mut options, &["preconditions", "resourceVersion"], version);
                    }
                } else if dry_run {
                    change(&mut (**budget).clone())?;
                } else {
                    state
                        .objects
                        .update("policy", "poddisruptionbudgets", "status", namespace, budget_name, &change)
                        .await?;
                }
            }
            _ => {
                return Err(Status::failure(
                    500,
                    "",
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        }
    }
    // The pod that was judged must be the one that goes.
    if !has(&options, &["preconditions", "uid"]) {
        json::set(&mut options, &["preconditions", "uid"], str_at(&pod, &["metadata", "uid"]));
    }
    if dry_run {
        json::set(&mut options, &["dryRun"], json!(["All"]));
    }
    state.objects.delete("", "pods", namespace, name, options).await?;
    Ok(body::created(&context))
}

/// Registers the handler.
pub fn register(special: &mut SpecialRest) {
    special.add("", "pods", "eviction", "create", evict);
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::NEWEST;

    use super::*;
    use crate::testing::FakeObjects;

    #[test]
    fn budgets_are_spent() {
        let mut b = json!({"metadata": {"name": "b", "generation": 1}, "status": {"observedGeneration": 1,
            "disruptionsAllowed": 1, "desiredHealthy": 2, "currentHealthy": 3}});
        take(&mut b, "p", "now", NEWEST).unwrap();
        assert_eq!(b["status"]["disruptedPods"], json!({"p": "now"}));
        let e = take(&mut b, "q", "now", NEWEST).unwrap_err();
        assert_eq!(
            (e.code, e.message.as_str()),
            (429, "Cannot evict pod as it would violate the pod's disruption budget.")
        );
        let cause = &e.details.unwrap().causes[0];
        assert_eq!(cause.reason, "DisruptionBudget");
        assert_eq!(cause.message, "The disruption budget b needs 2 healthy pods and has 3 currently");
        b["metadata"]["generation"] = json!(2);
        let later = |b: &mut Value, release| {
            take(b, "q", "now", release).unwrap_err().details.unwrap().retry_after_seconds
        };
        assert_eq!((later(&mut b, NEWEST), later(&mut b, Release::V1_20)), (10, 0));
    }

    #[test]
    fn what_is_not_ready_may_go_while_enough_are() {
        let budget = |current| json!({"status": {"currentHealthy": current, "desiredHealthy": 2}});
        let pod = |ready| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        assert!(is_spare(&pod("False"), &budget(2)));
        assert!(!is_spare(&pod("True"), &budget(2)));
        assert!(!is_spare(&pod("False"), &budget(1)));
        assert!(!is_spare(&pod("False"), &json!({"status": {}})));
    }

    #[test]
    fn finds_the_budgets_of_a_pod() {
        let o = FakeObjects::default();
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}}});
        let put = |name: &str, selector: Value| {
            o.put(
                "policy",
                "poddisruptionbudgets",
                json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"selector": selector}}),
            );
        };
        put("fits", json!({"matchLabels": {"a": "b"}}));
        put("other", json!({"matchLabels": {"a": "c"}}));
        put("all", json!({}));
        assert_eq!(budgets(&o, &pod, Release::V1_20).len(), 1);
        assert_eq!(budgets(&o, &pod, NEWEST).len(), 2);
    }
}
