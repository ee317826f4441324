//! `NodeRestriction`: what a kubelet may write
//! (<https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction>).

use std::collections::BTreeSet;

use async_trait::async_trait;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;

use crate::authorization::node::node_identity;
use crate::json::{bool_at, get, has, list_at, str_at, strings_at};
use crate::pod_references::{claims, config_maps, is_mirror, secrets};
use crate::request::{AdmissionRequest, Mutation, Objects, Operation};

/// The plug-in.
pub struct NodeRestriction {
    /// Whether a release after 1.20 is served.
    pub newest: bool,
}

/// Labels that a kubelet may set on its node although they are Kubernetes' own.
const KUBELET_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "kubernetes.io/os",
    "kubernetes.io/arch",
];

fn label_domain(label: &str) -> &str {
    label.split_once('/').map_or("", |(d, _)| d)
}

fn within(domain: &str, of: &str) -> bool {
    domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'))
}

fn is_restricted(label: &str) -> bool {
    within(label_domain(label), "node-restriction.kubernetes.io")
}

fn is_kubelet_label(label: &str) -> bool {
    let domain = label_domain(label);
    KUBELET_LABELS.contains(&label)
        || within(domain, "kubelet.kubernetes.io")
        || within(domain, "node.kubernetes.io")
}

fn is_kubernetes_label(label: &str) -> bool {
    let domain = label_domain(label);
    within(domain, "kubernetes.io") || within(domain, "k8s.io")
}

/// Labels that differ between two objects.
fn changed_labels<'a>(a: &'a Value, b: &'a Value) -> BTreeSet<&'a str> {
    let path = ["metadata", "labels"];
    let differs = |k: &str| get(a, &path).get(k) != get(b, &path).get(k);
    strings_at(a, &path).chain(strings_at(b, &path)).map(|(k, _)| k).filter(|k| differs(k)).collect()
}

type Verdict = Result<(), String>;

fn same(objects: &dyn Objects, r: &AdmissionRequest, node: &str) -> Option<bool> {
    let pod = objects.get("", "pods", &r.namespace, &r.name)?;
    Some(str_at(&pod, &["spec", "nodeName"]) == node)
}

impl NodeRestriction {
    fn pod(node: &str, r: &AdmissionRequest, objects: &dyn Objects) -> Verdict {
        match r.operation {
            Operation::Create => Self::create_pod(node, r, objects),
            Operation::Delete => match same(objects, r, node) {
                Some(false) => {
                    Err(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
                }
                _ => Ok(()),
            },
            other => Err(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                other.name()
            )),
        }
    }

    fn create_pod(node: &str, r: &AdmissionRequest, objects: &dyn Objects) -> Verdict {
        let pod = &r.object;
        if !is_mirror(pod) {
            return Err(format!(
                "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
            ));
        }
        if str_at(pod, &["spec", "nodeName"]) != node {
            return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
        }
        let owners = list_at(pod, &["metadata", "ownerReferences"]);
        if owners.len() > 1 {
            return Err(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ));
        }
        if let Some(o) = owners.first() {
            let is_self = str_at(o, &["apiVersion"]) == "v1"
                && str_at(o, &["kind"]) == "Node"
                && str_at(o, &["name"]) == node;
            if !is_self {
                return Err(format!(
                    "node {node:?} can only create pods with an owner reference set to itself"
                ));
            }
            if !bool_at(o, &["controller"]) {
                return Err(format!(
                    "node {node:?} can only create pods with a controller owner reference set to itself"
                ));
            }
            if bool_at(o, &["blockOwnerDeletion"]) {
                return Err(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
            }
            let uid =
                objects.get("", "nodes", "", node).map(|n| str_at(&n, &["metadata", "uid"]).to_string());
            if uid.as_deref().is_some_and(|uid| uid != str_at(o, &["uid"])) {
                return Err(format!(
                    "node {node:?} UID mismatch: expected {} got {}",
                    uid.unwrap_or_default(),
                    str_at(o, &["uid"])
                ));
            }
        }
        let cannot = |what: &str| Err(format!("node {node:?} can not create pods that reference {what}"));
        if !str_at(pod, &["spec", "serviceAccountName"]).is_empty() {
            return cannot("a service account");
        }
        if !secrets(pod, &mut |_| false) {
            return cannot("secrets");
        }
        if !config_maps(pod, &mut |_| false) {
            return cannot("configmaps");
        }
        if !claims(pod).is_empty() {
            return cannot("persistentvolumeclaims");
        }
        Ok(())
    }

    fn pod_status(node: &str, r: &AdmissionRequest) -> Verdict {
        if r.operation != Operation::Update {
            return Err(format!(
                "unexpected operation {:?}, node {node:?} can only update pod status",
                r.operation.name()
            ));
        }
        if str_at(&r.old_object, &["spec", "nodeName"]) != node {
            return Err(format!(
                "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
            ));
        }
        if !changed_labels(&r.object, &r.old_object).is_empty() {
            return Err(format!("node {node:?} cannot update labels through pod status"));
        }
        Ok(())
    }

    fn eviction(node: &str, r: &AdmissionRequest, objects: &dyn Objects) -> Verdict {
        if r.operation != Operation::Create {
            return Err(format!("unexpected operation {}", r.operation.name()));
        }
        match same(objects, r, node) {
            Some(false) => Err(format!("node {node} can only evict pods with spec.nodeName set to itself")),
            _ => Ok(()),
        }
    }

    fn node(&self, node: &str, r: &AdmissionRequest) -> Verdict {
        let requested = if r.name.is_empty() { str_at(&r.object, &["metadata", "name"]) } else { &r.name };
        let config = ["spec", "configSource"];
        if r.operation == Operation::Create {
            if has(&r.object, &config) {
                return Err(format!(
                    "node {node:?} is not allowed to create pods with a non-nil configSource"
                ));
            }
            let forbidden: Vec<&str> = strings_at(&r.object, &["metadata", "labels"])
                .map(|(k, _)| k)
                .filter(|k| is_restricted(k))
                .collect();
            if !forbidden.is_empty() {
                return Err(format!(
                    "node {node:?} is not allowed to set the following labels: {}",
                    forbidden.join(", ")
                ));
            }
        }
        if requested != node {
            return Err(format!("node {node:?} is not allowed to modify node {requested:?}"));
        }
        if r.operation != Operation::Update {
            return Ok(());
        }
        if has(&r.object, &config) && get(&r.object, &config) != get(&r.old_object, &config) {
            return Err(format!(
                "node {node:?} is not allowed to update configSource to a new non-nil configSource"
            ));
        }
        let changed = |path: &[&str]| get(&r.object, path) != get(&r.old_object, path);
        if changed(&["spec", "taints"]) {
            return Err(format!("node {node:?} is not allowed to modify taints"));
        }
        if self.newest && changed(&["metadata", "ownerReferences"]) {
            return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
        }
        let forbidden: Vec<&str> = changed_labels(&r.object, &r.old_object)
            .into_iter()
            .filter(|k| is_restricted(k) || (is_kubernetes_label(k) && !is_kubelet_label(k)))
            .collect();
        if !forbidden.is_empty() {
            return Err(format!("is not allowed to modify labels: {}", forbidden.join(", ")));
        }
        Ok(())
    }

    fn token(node: &str, r: &AdmissionRequest, objects: &dyn Objects) -> Verdict {
        if r.operation != Operation::Create || r.subresource != "token" {
            return Ok(());
        }
        let bound = get(&r.object, &["spec", "boundObjectRef"]);
        let field = |f| str_at(bound, &[f]);
        if field("apiVersion") != "v1" || field("kind") != "Pod" || field("name").is_empty() {
            return Err("node requested token not bound to a pod".into());
        }
        if field("uid").is_empty() {
            return Err("node requested token with a pod binding without a uid".into());
        }
        let Some(pod) = objects.get("", "pods", &r.namespace, field("name")) else {
            return Err(format!("pods {:?} not found", field("name")));
        };
        if str_at(&pod, &["metadata", "uid"]) != field("uid") {
            return Err(format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                field("uid")
            ));
        }
        if str_at(&pod, &["spec", "nodeName"]) != node {
            return Err("node requested token bound to a pod scheduled on a different node".into());
        }
        Ok(())
    }

    fn named_like_the_node(node: &str, r: &AdmissionRequest, what: &str) -> Verdict {
        let name = match r.operation {
            Operation::Create => str_at(&r.object, &["metadata", "name"]),
            _ => &r.name,
        };
        if name == node {
            return Ok(());
        }
        Err(format!("can only access {what} with the same name as the requesting node"))
    }

    fn claim_status(node: &str, r: &AdmissionRequest) -> Verdict {
        if r.subresource != "status" {
            return Err("may only update PVC status".into());
        }
        let strip = |v: &Value| {
            let mut v = v.clone();
            for path in [
                &["status", "capacity"][..],
                &["status", "conditions"],
                &["metadata", "managedFields"],
                &["metadata", "resourceVersion"],
            ] {
                crate::json::remove(&mut v, path);
            }
            v
        };
        if strip(&r.object) != strip(&r.old_object) {
            return Err(format!(
                "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl Mutation for NodeRestriction {
    async fn admit(&self, r: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let Some(node) = node_identity(&r.user).map(String::from) else { return Ok(()) };
        if node.is_empty() {
            return Err(super::forbidden(r, format!("could not determine node from user {:?}", r.user.name)));
        }
        let verdict = match (r.group.as_str(), r.resource.as_str(), r.subresource.as_str()) {
            ("", "pods", "") => Self::pod(&node, r, objects),
            ("", "pods", "status") => Self::pod_status(&node, r),
            ("", "pods", "eviction") => Self::eviction(&node, r, objects),
            ("", "pods", other) => {
                Err(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
            }
            ("", "nodes", _) => self.node(&node, r),
            ("", "persistentvolumeclaims", _) => Self::claim_status(&node, r),
            ("", "serviceaccounts", _) => Self::token(&node, r, objects),
            ("coordination.k8s.io", "leases", _) if r.namespace != "kube-node-lease" => {
                Err("can only access leases in the \"kube-node-lease\" system namespace".to_string())
            }
            ("coordination.k8s.io", "leases", _) => Self::named_like_the_node(&node, r, "node lease"),
            ("storage.k8s.io", "csinodes", _) => Self::named_like_the_node(&node, r, "CSINode"),
            _ => Ok(()),
        };
        verdict.map_err(|why| super::forbidden(r, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::request::UserInfo;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::json;

    fn by_node(mut r: AdmissionRequest) -> AdmissionRequest {
        r.user = UserInfo {
            name: "system:node:n1".into(),
            groups: vec!["system:nodes".into()],
            ..Default::default()
        };
        r
    }

    async fn ask(mut r: AdmissionRequest) -> Result<(), String> {
        let o = FakeObjects::default();
        o.put(
            "",
            "pods",
            json!({"metadata": {"name": "p", "namespace": "a", "uid": "u"}, "spec": {"nodeName": "n2"}}),
        );
        NodeRestriction { newest: false }.admit(&mut r, &o).await.map_err(|e| e.message)
    }

    #[tokio::test]
    async fn nodes_write_only_their_own() {
        let mirror = json!({"metadata": {"name": "m", "annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {"nodeName": "n1"}});
        assert_eq!(ask(by_node(test_create("", "pods", "Pod", mirror))).await, Ok(()));
        let plain = json!({"metadata": {"name": "m"}, "spec": {"nodeName": "n1"}});
        assert!(
            ask(by_node(test_create("", "pods", "Pod", plain.clone())))
                .await
                .unwrap_err()
                .contains("can only create mirror pods")
        );
        assert_eq!(ask(test_create("", "pods", "Pod", plain)).await, Ok(()));
        let node = |n: &str, labels: Value| {
            by_node(test_create("", "nodes", "Node", json!({"metadata": {"name": n, "labels": labels}})))
        };
        assert_eq!(ask(node("n1", json!({"kubernetes.io/hostname": "n1"}))).await, Ok(()));
        assert_eq!(
            ask(node("n2", json!({}))).await.unwrap_err(),
            "nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\""
        );
        assert!(ask(node("n1", json!({"node-restriction.kubernetes.io/x": "y"}))).await.is_err());
    }

    #[tokio::test]
    async fn labels_and_taints_after_registration() {
        let update = |old: Value, new: Value| {
            let mut r = by_node(test_create("", "nodes", "Node", new));
            r.operation = Operation::Update;
            r.old_object = old;
            r
        };
        let node = |extra: Value, taints: Value| json!({"metadata": {"name": "n1", "labels": extra}, "spec": {"taints": taints}});
        let old = node(json!({}), json!([]));
        assert_eq!(ask(update(old.clone(), node(json!({"example.com/a": "b"}), json!([])))).await, Ok(()));
        assert_eq!(
            ask(update(old.clone(), node(json!({"node.kubernetes.io/a": "b"}), json!([])))).await,
            Ok(())
        );
        assert!(
            ask(update(old.clone(), node(json!({"node-role.kubernetes.io/master": ""}), json!([]))))
                .await
                .is_err()
        );
        assert!(
            ask(update(old.clone(), node(json!({}), json!([{"key": "x"}]))))
                .await
                .unwrap_err()
                .contains("taints")
        );
    }

    #[tokio::test]
    async fn tokens_for_own_pods_only() {
        let mut r = by_node(test_create("", "serviceaccounts", "TokenRequest", json!({"spec": {}})));
        (r.subresource, r.namespace) = ("token".into(), "a".into());
        assert!(ask(r.clone()).await.unwrap_err().contains("not bound to a pod"));
        r.object["spec"]["boundObjectRef"] =
            json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"});
        assert!(ask(r).await.unwrap_err().contains("scheduled on a different node"));
    }
}
