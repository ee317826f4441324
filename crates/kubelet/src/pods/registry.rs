//! The pods that this node is to run, and the mirror pods by which the API server shows those that come from files.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;

use crate::pod::{CONFIG_HASH, CONFIG_MIRROR, PodExt};

#[derive(Default)]
struct Inner {
    pods: HashMap<String, Arc<Pod>>,
    mirrors: HashMap<String, Arc<Pod>>,
}

/// See the module.
#[derive(Default)]
pub struct Registry(RwLock<Inner>);

impl Registry {
    /// Puts a pod in, or its newer form. Mirror pods are kept apart.
    pub fn set(&self, pod: Arc<Pod>) {
        let mut inner = self.0.write();
        if pod.is_mirror() {
            inner.mirrors.insert(pod.full_name(), pod);
        } else {
            inner.pods.insert(pod.uid().to_string(), pod);
        }
    }

    /// Takes a pod out.
    pub fn remove(&self, pod: &Pod) {
        let mut inner = self.0.write();
        if pod.is_mirror() {
            // A newer mirror pod may have taken its place.
            if inner.mirrors.get(&pod.full_name()).is_some_and(|m| m.uid() == pod.uid()) {
                inner.mirrors.remove(&pod.full_name());
            }
        } else {
            inner.pods.remove(pod.uid());
        }
    }

    /// A pod by its uid.
    pub fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        self.0.read().pods.get(uid).cloned()
    }

    /// A pod by namespace and name. The name of a static pod is that of its mirror pod.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.0.read().pods.values().find(|p| p.name() == name && p.namespace() == namespace).cloned()
    }

    /// All pods but mirror pods.
    pub fn list(&self) -> Vec<Arc<Pod>> {
        self.0.read().pods.values().cloned().collect()
    }

    /// The mirror pods.
    pub fn mirrors(&self) -> Vec<Arc<Pod>> {
        self.0.read().mirrors.values().cloned().collect()
    }

    /// The mirror pod of a static pod.
    pub fn mirror_of(&self, pod: &Pod) -> Option<Arc<Pod>> {
        self.0.read().mirrors.get(&pod.full_name()).cloned()
    }

    /// The static pod that a mirror pod shows.
    pub fn static_of(&self, mirror: &Pod) -> Option<Arc<Pod>> {
        self.0.read().pods.values().find(|p| p.is_static() && p.full_name() == mirror.full_name()).cloned()
    }

    /// A pod as the API server has it: itself, or its mirror pod. `None` where the API server has none.
    pub fn in_api(&self, uid: &str) -> Option<Arc<Pod>> {
        let pod = self.get(uid)?;
        if pod.is_static() { self.mirror_of(&pod) } else { Some(pod) }
    }

    /// The uid by which a pod is known here, for the uid that the API server gives it.
    pub fn translate(&self, uid: &str) -> String {
        let inner = self.0.read();
        let mirror = inner.mirrors.values().find(|m| m.uid() == uid);
        let hash = mirror.and_then(|m| m.annotation(CONFIG_MIRROR));
        hash.map_or_else(|| uid.to_string(), String::from)
    }
}

/// Whether a mirror pod shows this form of a static pod.
pub fn mirrors(mirror: &Pod, pod: &Pod) -> bool {
    mirror.full_name() == pod.full_name() && mirror.annotation(CONFIG_MIRROR) == pod.annotation(CONFIG_HASH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn mirror_pods_stand_for_static_ones() {
        let pod = |uid: &str, annotations| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": uid, "annotations": annotations}}))
                    .unwrap(),
            )
        };
        let r = Registry::default();
        let own = pod("h", json!({"kubernetes.io/config.source": "file", "kubernetes.io/config.hash": "h"}));
        let mirror =
            pod("api", json!({"kubernetes.io/config.source": "file", "kubernetes.io/config.mirror": "h"}));
        r.set(own.clone());
        assert!(r.in_api("h").is_none());
        r.set(mirror.clone());
        assert_eq!(r.in_api("h").unwrap().uid(), "api");
        assert_eq!(r.translate("api"), "h");
        assert_eq!(r.list().len(), 1);
        assert!(mirrors(&mirror, &own));
        r.remove(&pod("older", json!({"kubernetes.io/config.mirror": "h"})));
        assert!(r.mirror_of(&own).is_some());
        r.remove(&mirror);
        assert!(r.mirror_of(&own).is_none() && r.static_of(&mirror).is_some());
    }
}
