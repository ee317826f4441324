//! The Node authorizer: a kubelet may read what its own pods need, and no more
//! (<https://kubernetes.io/docs/reference/access-authn-authz/node/>).
//!
//! There is no graph to keep: the watch cache knows a node's pods, which are few, and each question is answered by
//! looking through them.

use std::sync::Arc;

use pilothouse_apimachinery::json::Value;

use super::rbac::rules::Rule;
use crate::json::str_at;
use crate::pod_references::{claims, is_mirror, uses_config_map, uses_secret};
use crate::request::{Attributes, Decision, Objects, RequestInfo, UserInfo};

/// The Node authorizer.
pub struct NodeAuthorizer {
    objects: Arc<dyn Objects>,
    rules: Vec<Rule>,
}

/// The node whose kubelet a user is: `None` for anybody else, `""` for a kubelet that does not say its name.
pub fn node_identity(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:")?;
    user.groups.iter().any(|g| g == "system:nodes").then_some(name)
}

fn no(why: &str) -> Decision {
    Decision::NoOpinion(why.to_string())
}

impl NodeAuthorizer {
    /// An authorizer; `rules` are those of the role `system:node`.
    pub fn new(objects: Arc<dyn Objects>, rules: Vec<Rule>) -> NodeAuthorizer {
        NodeAuthorizer { objects, rules }
    }

    /// Decides.
    pub fn authorize(&self, attributes: Attributes<'_>) -> Decision {
        let r = attributes.request;
        let node = match node_identity(attributes.user) {
            None => return no(""),
            Some("") => {
                return Decision::NoOpinion(format!("unknown node for user {:?}", attributes.user.name));
            }
            Some(node) => node,
        };
        if r.is_resource {
            match (r.group.as_str(), r.resource.as_str()) {
                ("", "secrets" | "configmaps") => return self.read_namespaced(node, r),
                ("", "persistentvolumeclaims") if r.subresource == "status" => {
                    return self.update_status(node, r);
                }
                ("", "persistentvolumeclaims" | "persistentvolumes")
                | ("storage.k8s.io", "volumeattachments") => {
                    return self.get_one(node, r);
                }
                ("", "serviceaccounts") if r.verb != "get" => return self.create_token(node, r),
                ("coordination.k8s.io", "leases") => return lease(node, r),
                ("storage.k8s.io", "csinodes") => return csi_node(node, r),
                _ => {}
            }
        }
        if self.rules.iter().any(|rule| rule.allows(r)) { Decision::Allow } else { no("") }
    }

    fn read_namespaced(&self, node: &str, r: &RequestInfo) -> Decision {
        if !matches!(r.verb.as_str(), "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !r.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if r.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(node, r)
    }

    fn get_one(&self, node: &str, r: &RequestInfo) -> Decision {
        if r.verb != "get" || r.name.is_empty() {
            return no("can only get individual resources of this type");
        }
        if !r.subresource.is_empty() {
            return no("cannot get subresource");
        }
        self.related(node, r)
    }

    fn update_status(&self, node: &str, r: &RequestInfo) -> Decision {
        if !matches!(r.verb.as_str(), "update" | "patch") {
            return no("can only get/update/patch this type");
        }
        self.related(node, r)
    }

    fn create_token(&self, node: &str, r: &RequestInfo) -> Decision {
        if r.verb != "create" || r.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if r.subresource != "token" {
            return no("can only create token subresource of service account");
        }
        self.related(node, r)
    }

    fn related(&self, node: &str, r: &RequestInfo) -> Decision {
        if r.name.is_empty() {
            return no("No Object name found");
        }
        if self.is_related(node, r) {
            return Decision::Allow;
        }
        Decision::NoOpinion(format!("no relationship found between node '{node}' and this object"))
    }

    /// Whether one of a node's pods needs the object.
    fn is_related(&self, node: &str, r: &RequestInfo) -> bool {
        if r.resource == "volumeattachments" {
            let attachment = self.objects.get("storage.k8s.io", "volumeattachments", "", &r.name);
            return attachment.is_some_and(|a| str_at(&a, &["spec", "nodeName"]) == node);
        }
        let pods = self.objects.list_by_field("", "pods", "spec.nodeName", node);
        let mut own = pods.iter().map(|p| &**p).filter(|p| !is_mirror(p));
        let here = |p: &Value| str_at(p, &["metadata", "namespace"]) == r.namespace;
        match r.resource.as_str() {
            "secrets" => own.any(|p| (here(p) && uses_secret(p, &r.name)) || self.volume_uses_secret(p, r)),
            "configmaps" => {
                own.any(|p| here(p) && uses_config_map(p, &r.name)) || self.is_kubelet_config(node, r)
            }
            "persistentvolumeclaims" => own.any(|p| here(p) && claims(p).contains(&r.name)),
            "serviceaccounts" => own.any(|p| here(p) && str_at(p, &["spec", "serviceAccountName"]) == r.name),
            "persistentvolumes" => {
                let Some(volume) = self.objects.get("", "persistentvolumes", "", &r.name) else {
                    return false;
                };
                let claim = |f| str_at(&volume, &["spec", "claimRef", f]);
                own.any(|p| {
                    str_at(p, &["metadata", "namespace"]) == claim("namespace")
                        && claims(p).iter().any(|c| c == claim("name"))
                })
            }
            _ => false,
        }
    }

    /// Whether a volume that the pod has claimed is opened with the secret.
    fn volume_uses_secret(&self, pod: &Value, r: &RequestInfo) -> bool {
        let namespace = str_at(pod, &["metadata", "namespace"]);
        claims(pod).iter().any(|claim| {
            let Some(claim) = self.objects.get("", "persistentvolumeclaims", namespace, claim) else {
                return false;
            };
            let name = str_at(&claim, &["spec", "volumeName"]);
            let Some(volume) = self.objects.get("", "persistentvolumes", "", name) else { return false };
            volume_secrets(&volume, namespace).any(|(n, s)| n == r.namespace && s == r.name)
        })
    }

    fn is_kubelet_config(&self, node: &str, r: &RequestInfo) -> bool {
        let source = ["spec", "configSource", "configMap"];
        self.objects.get("", "nodes", "", node).is_some_and(|n| {
            let config = crate::json::get(&n, &source);
            str_at(config, &["namespace"]) == r.namespace && str_at(config, &["name"]) == r.name
        })
    }
}

/// Namespaces and names of the secrets with which a volume is opened; `default` is the claim's namespace.
fn volume_secrets<'a>(volume: &'a Value, default: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    const REFERENCES: &[(&str, &str)] = &[
        ("cephfs", "secretRef"),
        ("cinder", "secretRef"),
        ("flexVolume", "secretRef"),
        ("rbd", "secretRef"),
        ("scaleIO", "secretRef"),
        ("iscsi", "secretRef"),
        ("storageos", "secretRef"),
        ("csi", "controllerPublishSecretRef"),
        ("csi", "nodePublishSecretRef"),
        ("csi", "nodeStageSecretRef"),
        ("csi", "nodeExpandSecretRef"),
    ];
    let or = move |ns: &'a str| if ns.is_empty() { default } else { ns };
    let azure = ("azureFile", str_at(volume, &["spec", "azureFile", "secretName"]));
    let azure = (!azure.1.is_empty())
        .then(|| (or(str_at(volume, &["spec", "azureFile", "secretNamespace"])), azure.1));
    REFERENCES
        .iter()
        .map(move |(source, field)| {
            let reference = crate::json::get(volume, &["spec", source, field]);
            (or(str_at(reference, &["namespace"])), str_at(reference, &["name"]))
        })
        .filter(|(_, name)| !name.is_empty())
        .chain(azure)
}

fn own_object_verb(verb: &str) -> bool {
    matches!(verb, "get" | "create" | "update" | "patch" | "delete")
}

fn lease(node: &str, r: &RequestInfo) -> Decision {
    if !own_object_verb(&r.verb) {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if r.namespace != "kube-node-lease" {
        return no("can only access leases in the \"kube-node-lease\" system namespace");
    }
    // A create has its name in the body, which NodeRestriction looks at.
    if r.verb != "create" && r.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    Decision::Allow
}

fn csi_node(node: &str, r: &RequestInfo) -> Decision {
    if !own_object_verb(&r.verb) {
        return no("can only get, create, update, patch, or delete a CSINode");
    }
    if !r.subresource.is_empty() {
        return no("cannot authorize CSINode subresources");
    }
    if r.verb != "create" && r.name != node {
        return no("can only access CSINode with the same name as the requesting node");
    }
    Decision::Allow
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::json;

    fn world() -> NodeAuthorizer {
        let o = FakeObjects::default();
        o.put("", "pods", json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {
            "nodeName": "n1", "serviceAccountName": "bot",
            "containers": [{"envFrom": [{"configMapRef": {"name": "cm"}}]}],
            "volumes": [{"name": "s", "secret": {"secretName": "s"}}, {"name": "c", "persistentVolumeClaim": {"claimName": "c"}}]}}));
        o.put("", "pods", json!({"metadata": {"name": "m", "namespace": "a", "annotations": {"kubernetes.io/config.mirror": "x"}},
            "spec": {"nodeName": "n1", "volumes": [{"name": "s", "secret": {"secretName": "other"}}]}}));
        o.put(
            "",
            "persistentvolumeclaims",
            json!({"metadata": {"name": "c", "namespace": "a"}, "spec": {"volumeName": "pv"}}),
        );
        o.put(
            "",
            "persistentvolumes",
            json!({"metadata": {"name": "pv"}, "spec": {
            "claimRef": {"namespace": "a", "name": "c"},
            "csi": {"nodePublishSecretRef": {"namespace": "csi", "name": "key"}}}}),
        );
        o.put(
            "storage.k8s.io",
            "volumeattachments",
            json!({"metadata": {"name": "va"}, "spec": {"nodeName": "n1"}}),
        );
        let rules = super::super::rbac::policy::node_rules(pilothouse_apimachinery::version::Release::V1_20);
        NodeAuthorizer::new(Arc::new(o), rules)
    }

    fn ask(a: &NodeAuthorizer, node: &str, verb: &str, path: &str) -> Decision {
        let user = UserInfo {
            name: format!("system:node:{node}"),
            groups: vec!["system:nodes".into()],
            ..Default::default()
        };
        let mut p = path.split(' ');
        let mut next = || p.next().unwrap_or("-").trim_matches('-').to_string();
        let request = RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: next(),
            resource: next(),
            namespace: next(),
            name: next(),
            subresource: next(),
            ..Default::default()
        };
        a.authorize(Attributes { user: &user, request: &request })
    }

    #[test]
    fn a_node_reads_what_its_pods_need() {
        let a = world();
        for (verb, path) in [
            ("get", "- secrets a s"),
            ("watch", "- secrets a s"),
            ("get", "- secrets csi key"),
            ("get", "- configmaps a cm"),
            ("get", "- persistentvolumeclaims a c"),
            ("get", "- persistentvolumes - pv"),
            ("create", "- serviceaccounts a bot token"),
            ("get", "storage.k8s.io volumeattachments - va"),
            ("update", "coordination.k8s.io leases kube-node-lease n1"),
            ("patch", "storage.k8s.io csinodes - n1"),
            ("list", "- pods"),
            ("update", "- nodes - n1 status"),
        ] {
            assert_eq!(ask(&a, "n1", verb, path), Decision::Allow, "{verb} {path}");
        }
        let none = "no relationship found between node 'n2' and this object";
        for path in [
            "- secrets a s",
            "- configmaps a cm",
            "- persistentvolumes - pv",
            "storage.k8s.io volumeattachments - va",
        ] {
            assert_eq!(ask(&a, "n2", "get", path), no(none), "{path}");
        }
    }

    #[test]
    fn and_no_more() {
        let a = world();
        assert_eq!(ask(&a, "n1", "list", "- secrets a"), no("No Object name found"));
        assert_eq!(ask(&a, "n1", "update", "- secrets a s"), no("can only read resources of this type"));
        assert!(matches!(ask(&a, "n1", "get", "- secrets a other"), Decision::NoOpinion(_)));
        assert!(matches!(ask(&a, "n1", "get", "- secrets b s"), Decision::NoOpinion(_)));
        assert!(matches!(
            ask(&a, "n1", "update", "coordination.k8s.io leases kube-node-lease n2"),
            Decision::NoOpinion(_)
        ));
        assert!(matches!(ask(&a, "n1", "delete", "- namespaces - a"), Decision::NoOpinion(_)));
        assert_eq!(ask(&a, "", "get", "- pods a p"), no("unknown node for user \"system:node:\""));
    }
}
