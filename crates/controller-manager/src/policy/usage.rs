//! How much of a quota's resources objects use.
//!
//! <https://kubernetes.io/docs/concepts/policy/resource-quotas/>

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, Pod, PodSpec, ResourceQuotaSpec, ScopedResourceSelectorRequirement,
    Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use pilothouse_apimachinery::quantity::{Format, Quantity};

use crate::control::is_terminal;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

type List = Option<BTreeMap<String, ApiQuantity>>;

fn parse(q: &ApiQuantity) -> Quantity {
    Quantity::parse(&q.0).unwrap_or_default()
}

fn one() -> Quantity {
    Quantity::from_value(1, Format::DecimalSi)
}

fn add_to(amounts: &mut Amounts, name: &str, q: &Quantity) {
    match amounts.get_mut(name) {
        Some(a) => a.add(q),
        None => {
            amounts.insert(name.to_string(), q.clone());
        }
    }
}

/// Adds what an object uses to a sum.
pub fn add(sum: &mut Amounts, used: &Amounts) {
    for (name, q) in used {
        add_to(sum, name, q);
    }
}

fn amounts(list: &List) -> Amounts {
    list.iter().flatten().map(|(k, q)| (k.clone(), parse(q))).collect()
}

/// The larger of both, for each resource.
fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, q) in other {
        match to.get(name) {
            Some(old) if old >= q => {}
            _ => {
                to.insert(name.clone(), q.clone());
            }
        }
    }
}

/// What a pod's containers request, or are limited to: their sum, or what one init container needs, if that is more;
/// and the pod's overhead. Init containers that go on running count with the others.
fn pod_total(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut sum = Amounts::new();
    spec.containers.iter().for_each(|c| add(&mut sum, &of(c)));
    let (mut sidecars, mut init) = (Amounts::new(), Amounts::new());
    for c in spec.init_containers.iter().flatten() {
        if c.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &of(c));
            raise(&mut init, &sidecars);
        } else {
            let mut now = of(c);
            add(&mut now, &sidecars);
            raise(&mut init, &now);
        }
    }
    add(&mut sum, &sidecars);
    raise(&mut sum, &init);
    add(&mut sum, &amounts(&spec.overhead));
    sum
}

/// Whether a pod counts as gone: it has ended, or should have been removed by now.
fn is_over(pod: &Pod, now: Timestamp) -> bool {
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0.as_second());
    let grace = pod.metadata.deletion_grace_period_seconds;
    is_terminal(pod) || matches!((deleted, grace), (Some(at), Some(grace)) if now.as_second() > at + grace)
}

/// What a pod uses.
pub fn of_pod(pod: &Pod, now: Timestamp) -> Amounts {
    let mut used: Amounts = [("count/pods".to_string(), one())].into();
    let Some(spec) = pod.spec.as_ref().filter(|_| !is_over(pod, now)) else { return used };
    used.insert("pods".into(), one());
    let requests = pod_total(spec, |c| amounts(&c.resources.as_ref().and_then(|r| r.requests.clone())));
    let limits = pod_total(spec, |c| amounts(&c.resources.as_ref().and_then(|r| r.limits.clone())));
    for (name, q) in &requests {
        used.insert(format!("requests.{name}"), q.clone());
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            used.insert(name.clone(), q.clone());
        }
    }
    for (name, q) in &limits {
        used.insert(format!("limits.{name}"), q.clone());
    }
    used
}

/// What a service uses.
pub fn of_service(service: &Service) -> Amounts {
    let mut used: Amounts = [("count/services".to_string(), one()), ("services".to_string(), one())].into();
    let Some(spec) = &service.spec else { return used };
    let ports = i64::try_from(spec.ports.as_ref().map_or(0, Vec::len)).unwrap_or(i64::MAX);
    match spec.type_.as_deref() {
        Some("NodePort") => {
            used.insert("services.nodeports".into(), Quantity::from_value(ports, Format::DecimalSi));
        }
        Some("LoadBalancer") => {
            used.insert("services.loadbalancers".into(), one());
            let ports = if spec.allocate_load_balancer_node_ports == Some(false) { 0 } else { ports };
            used.insert("services.nodeports".into(), Quantity::from_value(ports, Format::DecimalSi));
        }
        _ => {}
    }
    used
}

/// What a claim uses.
pub fn of_claim(claim: &PersistentVolumeClaim) -> Amounts {
    let mut used: Amounts =
        [("count/persistentvolumeclaims".to_string(), one()), ("persistentvolumeclaims".to_string(), one())]
            .into();
    let spec = claim.spec.as_ref();
    let annotation =
        claim.metadata.annotations.as_ref().and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    let class = annotation.or(spec.and_then(|s| s.storage_class_name.as_ref())).filter(|c| !c.is_empty());
    let storage = spec.and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage")).map(parse);
    if let Some(storage) = &storage {
        used.insert("requests.storage".into(), storage.clone());
    }
    if let Some(class) = class {
        used.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one());
        if let Some(storage) = storage {
            used.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage);
        }
    }
    used
}

/// Whether a quota has scopes at all; then it counts pods only.
pub fn is_scoped(spec: &ResourceQuotaSpec) -> bool {
    spec.scopes.iter().flatten().next().is_some()
        || spec
            .scope_selector
            .as_ref()
            .and_then(|s| s.match_expressions.as_ref())
            .is_some_and(|m| !m.is_empty())
}

/// Whether all scopes of a quota cover a pod.
pub fn covers(spec: &ResourceQuotaSpec, pod: &Pod) -> bool {
    let plain = |scope: &String| {
        let r = ScopedResourceSelectorRequirement {
            scope_name: scope.clone(),
            operator: "Exists".into(),
            values: None,
        };
        in_scope(&r, pod)
    };
    let selector = spec.scope_selector.as_ref().and_then(|s| s.match_expressions.as_ref());
    spec.scopes.iter().flatten().all(plain) && selector.into_iter().flatten().all(|r| in_scope(r, pod))
}

fn in_scope(r: &ScopedResourceSelectorRequirement, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    match r.scope_name.as_str() {
        "Terminating" => spec.active_deadline_seconds.is_some_and(|s| s >= 0),
        "NotTerminating" => spec.active_deadline_seconds.is_none_or(|s| s < 0),
        "BestEffort" => is_best_effort(spec),
        "NotBestEffort" => !is_best_effort(spec),
        "PriorityClass" => {
            let class = spec.priority_class_name.as_deref().filter(|c| !c.is_empty());
            let values = r.values.as_deref().unwrap_or_default();
            let listed = class.is_some_and(|c| values.iter().any(|v| v == c));
            match r.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => class.is_some(),
                "DoesNotExist" => class.is_none(),
                _ => false,
            }
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(spec),
        _ => false,
    }
}

/// Whether no container asks for cpu or memory, or is limited in them.
fn is_best_effort(spec: &PodSpec) -> bool {
    let asks = |list: &List| {
        list.iter().flatten().any(|(k, q)| matches!(k.as_str(), "cpu" | "memory") && !parse(q).is_zero())
    };
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    !all.any(|c| c.resources.as_ref().is_some_and(|r| asks(&r.requests) || asks(&r.limits)))
}

fn crosses_namespaces(spec: &PodSpec) -> bool {
    let Some(affinity) = &spec.affinity else { return false };
    let (near, far) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
    let required = near
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .chain(far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()))
        .flatten();
    let preferred = near
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .chain(far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()))
        .flatten()
        .map(|w| &w.pod_affinity_term);
    required
        .chain(preferred)
        .any(|t| t.namespace_selector.is_some() || t.namespaces.iter().flatten().next().is_some())
}

/// The resource that is merely counted under a quota's key, as group and plural: `count/deployments.apps`, and the
/// plain names of some of the core group.
pub fn counted(key: &str) -> Option<(&str, &str)> {
    match key {
        "configmaps" | "resourcequotas" | "replicationcontrollers" | "secrets" => Some(("", key)),
        _ => {
            let rest = key.strip_prefix("count/")?;
            Some(rest.split_once('.').map_or(("", rest), |(plural, group)| (group, plural)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value, phase: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec, "status": {"phase": phase}}))
            .unwrap()
    }

    fn text(a: &Amounts, k: &str) -> String {
        a.get(k).map(|q| q.canonical()).unwrap_or_default()
    }

    #[test]
    fn a_pod_uses_the_larger_of_its_containers_and_init_containers() {
        let p = pod(
            json!({"containers": [
                    {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "128Mi"}, "limits": {"cpu": "1"}}},
                    {"name": "b", "resources": {"requests": {"cpu": "250m", "example.com/gpu": "1"}}}],
                "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}}]}),
            "Running",
        );
        let used = of_pod(&p, Timestamp::UNIX_EPOCH);
        assert_eq!(text(&used, "requests.cpu"), "750m");
        assert_eq!(text(&used, "cpu"), "750m");
        assert_eq!(text(&used, "memory"), "1Gi");
        assert_eq!(text(&used, "limits.cpu"), "1");
        assert_eq!(text(&used, "requests.example.com/gpu"), "1");
        assert_eq!(text(&used, "pods"), "1");
        let over = of_pod(&pod(json!({"containers": []}), "Succeeded"), Timestamp::UNIX_EPOCH);
        assert_eq!(over.keys().collect::<Vec<_>>(), ["count/pods"]);
    }

    #[test]
    fn scopes() {
        let quota = |v: Value| serde_json::from_value::<ResourceQuotaSpec>(v).unwrap();
        let plain = pod(json!({"containers": [{"name": "a"}], "priorityClassName": "hi"}), "Running");
        assert!(covers(&quota(json!({"scopes": ["BestEffort", "NotTerminating"]})), &plain));
        assert!(!covers(&quota(json!({"scopes": ["NotBestEffort"]})), &plain));
        let class = |op: &str, values: Value| {
            quota(json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": op, "values": values}]}}))
        };
        assert!(covers(&class("In", json!(["hi"])), &plain));
        assert!(!covers(&class("NotIn", json!(["hi"])), &plain));
        assert!(is_scoped(&class("Exists", json!([]))));
    }

    #[test]
    fn services_claims_and_counts() {
        let s: Service = serde_json::from_value(json!({"metadata": {},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}}))
        .unwrap();
        assert_eq!(text(&of_service(&s), "services.nodeports"), "2");
        let c: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {}, "spec": {
            "storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}}))
        .unwrap();
        assert_eq!(text(&of_claim(&c), "fast.storageclass.storage.k8s.io/requests.storage"), "1Gi");
        assert_eq!(counted("count/deployments.apps"), Some(("apps", "deployments")));
        assert_eq!(counted("count/ingresses.networking.k8s.io"), Some(("networking.k8s.io", "ingresses")));
        assert_eq!(counted("secrets"), Some(("", "secrets")));
        assert_eq!(counted("pods"), None);
    }
}
