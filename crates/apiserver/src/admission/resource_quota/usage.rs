//! What an object costs, by resource name, as quotas count it.

use std::collections::BTreeMap;

use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::quantity::{Format, Quantity};

use crate::json::{entry, get, has, list_at, str_at};

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// The amounts of an object of quantities.
pub fn amounts(v: &Value) -> Amounts {
    let map = v.as_object().into_iter().flatten();
    map.filter_map(|(k, q)| Some((k.to_string(), Quantity::parse(q.as_str()?).ok()?))).collect()
}

fn count(n: usize) -> Quantity {
    Quantity::from_value(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSi)
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (k, q) in more {
        to.entry(k.clone()).and_modify(|t| t.add(q)).or_insert_with(|| q.clone());
    }
}

fn at_least(to: &mut Amounts, other: &Amounts) {
    for (k, q) in other {
        let t = to.entry(k.clone()).or_insert_with(|| q.clone());
        if q > t {
            *t = q.clone();
        }
    }
}

/// Requests or limits of a pod: those of its containers together, or of one init container where that is more.
fn pod_total(pod: &Value, which: &str) -> Amounts {
    let mut total = Amounts::new();
    for c in list_at(pod, &["spec", "containers"]) {
        add(&mut total, &amounts(get(c, &["resources", which])));
    }
    for c in list_at(pod, &["spec", "initContainers"]) {
        at_least(&mut total, &amounts(get(c, &["resources", which])));
    }
    add(&mut total, &amounts(get(pod, &["spec", "overhead"])));
    total
}

/// Resources whose requests quotas count under a name of their own.
fn is_computed(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
}

fn pod(pod: &Value, out: &mut Amounts) {
    out.insert("pods".into(), count(1));
    for (name, q) in pod_total(pod, "requests") {
        if is_computed(&name) || name.starts_with("hugepages-") {
            out.insert(name.clone(), q.clone());
        }
        if is_computed(&name) || name.starts_with("hugepages-") || name.contains('/') {
            out.insert(format!("requests.{name}"), q);
        }
    }
    for (name, q) in pod_total(pod, "limits") {
        if is_computed(&name) {
            out.insert(format!("limits.{name}"), q);
        }
    }
}

fn claim(claim: &Value, out: &mut Amounts) {
    out.insert("persistentvolumeclaims".into(), count(1));
    let annotation = entry(claim, &["metadata", "annotations"], "volume.beta.kubernetes.io/storage-class");
    let class = annotation.unwrap_or_else(|| str_at(claim, &["spec", "storageClassName"]));
    let of_class = |what: &str| format!("{class}.storageclass.storage.k8s.io/{what}");
    if !class.is_empty() {
        out.insert(of_class("persistentvolumeclaims"), count(1));
    }
    if let Some(size) = amounts(get(claim, &["spec", "resources", "requests"])).remove("storage") {
        if !class.is_empty() {
            out.insert(of_class("requests.storage"), size.clone());
        }
        out.insert("requests.storage".into(), size);
    }
}

fn service(service: &Value, out: &mut Amounts) {
    let ports = list_at(service, &["spec", "ports"]).len();
    let (balancers, node_ports) = match str_at(service, &["spec", "type"]) {
        "NodePort" => (0, ports),
        "LoadBalancer" => (1, ports),
        _ => (0, 0),
    };
    out.insert("services".into(), count(1));
    out.insert("services.nodeports".into(), count(node_ports));
    out.insert("services.loadbalancers".into(), count(balancers));
}

/// Whether a pod has ended and costs nothing any more.
fn has_ended(pod: &Value) -> bool {
    matches!(str_at(pod, &["status", "phase"]), "Succeeded" | "Failed")
}

/// What an object costs; nothing for `Null`.
pub fn usage(group: &str, resource: &str, object: &Value) -> Amounts {
    let mut out = Amounts::new();
    if object.is_null() {
        return out;
    }
    let counted =
        if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") };
    out.insert(counted, count(1));
    match (group, resource) {
        ("", "pods") if !has_ended(object) => pod(object, &mut out),
        ("", "persistentvolumeclaims") => claim(object, &mut out),
        ("", "services") => service(object, &mut out),
        ("", "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => {
            out.insert(resource.into(), count(1));
        }
        _ => {}
    }
    out
}

/// Which of a quota's names bound objects of a resource, sorted.
pub fn bounded<'a>(group: &str, resource: &str, hard: &'a Amounts) -> Vec<&'a str> {
    let counted =
        if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") };
    let fits = |name: &str| match (group, resource) {
        _ if name == counted => true,
        ("", "pods") => {
            let bare = name.strip_prefix("requests.").unwrap_or(name);
            name == "pods"
                || is_computed(bare)
                || name.strip_prefix("limits.").is_some_and(is_computed)
                || bare.starts_with("hugepages-")
                || (bare != name && bare.contains('/'))
        }
        ("", "services") => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
        ("", "persistentvolumeclaims") => {
            let of_class = |what: &str| name.ends_with(&format!(".storageclass.storage.k8s.io/{what}"));
            matches!(name, "persistentvolumeclaims" | "requests.storage")
                || of_class("persistentvolumeclaims")
                || of_class("requests.storage")
        }
        ("", "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => name == resource,
        _ => false,
    };
    hard.keys().map(String::as_str).filter(|name| fits(name)).collect()
}

/// What `new` costs more than `old`; what costs the same or less is left out.
pub fn increase(group: &str, resource: &str, new: &Value, old: &Value) -> Amounts {
    let mut out = usage(group, resource, new);
    for (name, before) in usage(group, resource, old) {
        if let Some(q) = out.get_mut(&name) {
            q.sub(&before);
        }
    }
    out.retain(|_, q| q.sign() > 0);
    out
}

/// Compute resources that a quota bounds and that some container of a pod does not state.
pub fn unstated(pod: &Value, bounded: &Amounts) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let containers =
        list_at(pod, &["spec", "containers"]).iter().chain(list_at(pod, &["spec", "initContainers"]));
    for c in containers {
        for name in bounded.keys() {
            let (which, resource) = match name.as_str() {
                n if is_computed(n) => ("requests", n),
                n => match n.split_once('.') {
                    Some((which @ ("requests" | "limits"), r)) if is_computed(r) => (which, r),
                    _ => continue,
                },
            };
            if !has(c, &["resources", which, resource]) && !out.contains(name) {
                out.push(name.clone());
            }
        }
    }
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_apimachinery::json::json;

    fn shown(a: &Amounts) -> String {
        a.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn pods_cost_what_they_ask_for() {
        let p = json!({"spec": {
            "containers": [{"resources": {"requests": {"cpu": "100m", "example.com/gpu": "1"}, "limits": {"memory": "1Gi"}}}, {"resources": {"requests": {"cpu": "200m"}}}],
            "initContainers": [{"resources": {"requests": {"cpu": "1"}}}]}});
        assert_eq!(
            shown(&usage("", "pods", &p)),
            "count/pods=1,cpu=1,limits.memory=1Gi,pods=1,requests.cpu=1,requests.example.com/gpu=1"
        );
        let ended = json!({"status": {"phase": "Failed"}});
        assert_eq!(shown(&usage("", "pods", &ended)), "count/pods=1");
        assert_eq!(
            unstated(&p, &amounts(&json!({"limits.cpu": "1", "requests.cpu": "1", "pods": "3"}))),
            ["limits.cpu"]
        );
    }

    #[test]
    fn each_resource_has_bounds_of_its_own() {
        let names = [
            "cpu",
            "limits.memory",
            "requests.example.com/gpu",
            "pods",
            "count/pods",
            "services",
            "services.nodeports",
            "configmaps",
            "gold.storageclass.storage.k8s.io/requests.storage",
            "count/deployments.apps",
        ];
        let hard: Amounts = names.iter().map(|n| (n.to_string(), count(1))).collect();
        assert_eq!(
            bounded("", "pods", &hard),
            ["count/pods", "cpu", "limits.memory", "pods", "requests.example.com/gpu"]
        );
        assert_eq!(bounded("", "services", &hard), ["services", "services.nodeports"]);
        assert_eq!(bounded("", "configmaps", &hard), ["configmaps"]);
        assert_eq!(
            bounded("", "persistentvolumeclaims", &hard),
            ["gold.storageclass.storage.k8s.io/requests.storage"]
        );
        assert_eq!(bounded("apps", "deployments", &hard), ["count/deployments.apps"]);
    }

    #[test]
    fn services_and_claims() {
        let s = json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}});
        assert_eq!(
            shown(&usage("", "services", &s)),
            "count/services=1,services=1,services.loadbalancers=1,services.nodeports=2"
        );
        let old = json!({"spec": {"type": "ClusterIP", "ports": [{}]}});
        assert_eq!(
            shown(&increase("", "services", &s, &old)),
            "services.loadbalancers=1,services.nodeports=2"
        );
        let c = json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}}});
        assert!(
            shown(&usage("", "persistentvolumeclaims", &c))
                .contains("fast.storageclass.storage.k8s.io/requests.storage=2Gi")
        );
        assert_eq!(shown(&usage("apps", "deployments", &json!({}))), "count/deployments.apps=1");
    }
}
