//! Small plug-ins about pods and nodes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use pilothouse_apimachinery::json::json;
use pilothouse_apimachinery::status::Status;

use crate::json::{self, bool_at, containers, containers_mut, entry, get, has, list_at, str_at};
use crate::request::{AdmissionRequest, Mutation, Objects, Operation, Validation};

use super::configuration::Configuration;
use super::{creates_pod, is_about};

fn writes_pod(r: &AdmissionRequest) -> bool {
    is_about(r, "", "pods") && matches!(r.operation, Operation::Create | Operation::Update)
}

/// `TaintNodesByCondition`: a new node takes no pods until it is ready.
pub struct TaintNodes;

#[async_trait]
impl Mutation for TaintNodes {
    async fn admit(&self, r: &mut AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        if !is_about(r, "", "nodes") || r.operation != Operation::Create {
            return Ok(());
        }
        let (key, effect) = ("node.kubernetes.io/not-ready", "NoSchedule");
        let taints = json::ensure_list(&mut r.object, &["spec", "taints"]);
        if !taints.iter().any(|t| str_at(t, &["key"]) == key && str_at(t, &["effect"]) == effect) {
            taints.push(json!({"key": key, "effect": effect}));
        }
        Ok(())
    }
}

/// `AlwaysPullImages`: nobody uses an image that is on the node without having the right to pull it.
pub struct AlwaysPullImages;

#[async_trait]
impl Mutation for AlwaysPullImages {
    async fn admit(&self, r: &mut AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        if writes_pod(r)
            && let Some(spec) = r.object.get_mut("spec")
        {
            for c in containers_mut(spec) {
                json::set(c, &["imagePullPolicy"], "Always");
            }
        }
        Ok(())
    }
}

/// `LimitPodHardAntiAffinityTopology`: pods may keep others away from their node, not from whole zones.
pub struct HardAntiAffinity;

#[async_trait]
impl Validation for HardAntiAffinity {
    async fn validate(&self, r: &AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        if !writes_pod(r) {
            return Ok(());
        }
        let path = ["spec", "affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
        let hostname = "kubernetes.io/hostname";
        for term in list_at(&r.object, &path) {
            let key = str_at(term, &["topologyKey"]);
            if key != hostname {
                return Err(super::forbidden(
                    r,
                    format!(
                        "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {hostname} is allowed"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// `PodNodeSelector`: a namespace says on which nodes its pods may run.
#[derive(Default)]
pub struct NodeSelector {
    /// The selector of namespaces that have none, and what namespaces' pods may ask for at most, by namespace.
    configured: BTreeMap<String, String>,
}

const NAMESPACE_SELECTOR: &str = "scheduler.alpha.kubernetes.io/node-selector";
/// In the configuration: the selector of namespaces that have none.
const CLUSTER_DEFAULT: &str = "clusterDefaultNodeSelector";

/// `a=b, c=d`.
fn pairs(selector: &str) -> impl Iterator<Item = (&str, &str)> {
    selector.split(',').map(str::trim).filter(|p| !p.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key.trim(), value.trim())
    })
}

impl NodeSelector {
    /// With its configuration.
    pub fn new(configuration: &Configuration) -> NodeSelector {
        let given = configuration.of("PodNodeSelector");
        let configured = json::strings_at(given, &["podNodeSelectorPluginConfig"]);
        NodeSelector { configured: configured.map(|(k, v)| (k.to_string(), v.to_string())).collect() }
    }

    /// The selector of a namespace.
    fn of(&self, name: &str, objects: &dyn Objects) -> String {
        let namespace = objects.get("", "namespaces", "", name);
        let annotated =
            namespace.as_deref().and_then(|n| entry(n, &["metadata", "annotations"], NAMESPACE_SELECTOR));
        annotated
            .map(String::from)
            .or_else(|| self.configured.get(CLUSTER_DEFAULT).cloned())
            .unwrap_or_default()
    }
}

#[async_trait]
impl Mutation for NodeSelector {
    async fn admit(&self, r: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        if !creates_pod(r) {
            return Ok(());
        }
        for (key, value) in pairs(&self.of(&r.namespace, objects)) {
            if entry(&r.object, &["spec", "nodeSelector"], key).is_some_and(|given| given != value) {
                let why = "pod node label selector conflicts with its namespace node label selector";
                return Err(super::forbidden(r, why));
            }
            json::set(&mut r.object, &["spec", "nodeSelector", key], value);
        }
        Ok(())
    }
}

#[async_trait]
impl Validation for NodeSelector {
    async fn validate(&self, r: &AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        if !creates_pod(r) {
            return Ok(());
        }
        let Some(allowed) = self.configured.get(&r.namespace).filter(|a| !a.is_empty()) else {
            return Ok(());
        };
        let may = |k: &str, v: &str| pairs(allowed).any(|pair| pair == (k, v));
        if json::strings_at(&r.object, &["spec", "nodeSelector"]).all(|(k, v)| may(k, v)) {
            return Ok(());
        }
        Err(super::forbidden(r, "pod node label selector labels conflict with its namespace whitelist"))
    }
}

/// `SecurityContextDeny`: pods may not choose users or SELinux contexts.
pub struct SecurityContextDeny;

#[async_trait]
impl Validation for SecurityContextDeny {
    async fn validate(&self, r: &AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        if !writes_pod(r) {
            return Ok(());
        }
        for field in ["supplementalGroups", "seLinuxOptions", "runAsUser", "fsGroup"] {
            if has(&r.object, &["spec", "securityContext", field]) {
                let shown = match field {
                    "supplementalGroups" => "pod.Spec.SecurityContext.SupplementalGroups is forbidden",
                    "seLinuxOptions" => "pod.Spec.SecurityContext.SELinuxOptions is forbidden",
                    "runAsUser" => "pod.Spec.SecurityContext.RunAsUser is forbidden",
                    _ => "pod.Spec.SecurityContext.FSGroup is forbidden",
                };
                return Err(super::forbidden(r, shown));
            }
        }
        for (_, c) in containers(get(&r.object, &["spec"])) {
            for (field, why) in [
                ("seLinuxOptions", "SecurityContext.SELinuxOptions is forbidden"),
                ("runAsUser", "SecurityContext.RunAsUser is forbidden"),
            ] {
                if has(c, &["securityContext", field]) {
                    return Err(super::forbidden(r, why));
                }
            }
        }
        Ok(())
    }
}

/// `DenyEscalatingExec`, `DenyExecOnPrivileged`: no exec into pods that hold the node's powers.
pub struct DenyExec {
    /// Also where the pod shares the node's namespaces.
    pub escalating: bool,
}

#[async_trait]
impl Validation for DenyExec {
    async fn validate(&self, r: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let connect = r.operation == Operation::Connect && r.resource == "pods";
        if !connect || !matches!(r.subresource.as_str(), "exec" | "attach") {
            return Ok(());
        }
        let Some(pod) = objects.get("", "pods", &r.namespace, &r.name) else { return Ok(()) };
        let host = |f| self.escalating && bool_at(&pod, &["spec", f]);
        if host("hostPID") {
            return Err(super::forbidden(r, "cannot exec into or attach to a container using host pid"));
        }
        if host("hostIPC") {
            return Err(super::forbidden(r, "cannot exec into or attach to a container using host ipc"));
        }
        if containers(get(&pod, &["spec"])).any(|(_, c)| bool_at(c, &["securityContext", "privileged"])) {
            return Err(super::forbidden(r, "cannot exec into or attach to a privileged container"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::Value;

    fn pod(spec: Value) -> AdmissionRequest {
        test_create("", "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}))
    }

    #[tokio::test]
    async fn small_plugins() {
        let o = FakeObjects::default();
        let mut node = test_create("", "nodes", "Node", json!({"metadata": {"name": "x"}}));
        TaintNodes.admit(&mut node, &o).await.unwrap();
        assert_eq!(
            node.object["spec"]["taints"],
            json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
        );

        let mut r = pod(json!({"containers": [{"imagePullPolicy": "Never"}], "initContainers": [{}]}));
        AlwaysPullImages.admit(&mut r, &o).await.unwrap();
        assert_eq!(r.object["spec"]["initContainers"][0]["imagePullPolicy"], "Always");

        o.put(
            "",
            "namespaces",
            json!({"metadata": {"name": "n", "annotations": {NAMESPACE_SELECTOR: "a=b, c = d"}}}),
        );
        let mut r = pod(json!({"nodeSelector": {"x": "y"}}));
        let plain = NodeSelector::default();
        plain.admit(&mut r, &o).await.unwrap();
        assert_eq!(r.object["spec"]["nodeSelector"], json!({"x": "y", "a": "b", "c": "d"}));
        assert!(plain.admit(&mut pod(json!({"nodeSelector": {"a": "z"}})), &o).await.is_err());
        let configuration =
            json!({"podNodeSelectorPluginConfig": {"clusterDefaultNodeSelector": "e=f", "n": "x=y,a=b"}});
        let configured = NodeSelector::new(&Configuration::for_test("PodNodeSelector", configuration));
        let mut elsewhere = pod(json!({}));
        elsewhere.namespace = "m".into();
        configured.admit(&mut elsewhere, &o).await.unwrap();
        assert_eq!(elsewhere.object["spec"]["nodeSelector"], json!({"e": "f"}));
        configured.validate(&pod(json!({"nodeSelector": {"x": "y"}})), &o).await.unwrap();
        let refused = configured.validate(&r, &o).await.unwrap_err();
        assert!(refused.message.contains("conflict with its namespace whitelist"));

        let anti = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}});
        assert!(HardAntiAffinity.validate(&pod(anti), &o).await.is_err());
    }
}
