//! `/pods` and `/runningpods/`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use crate::runtime::labels::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::runtime::status::State;
use crate::runtime::{Result, cri};

fn list(items: Vec<Value>) -> Value {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// The pods that this node is to run. Mirror pods are left out; static pods have the status that they have here.
pub fn pods(kubelet: &Kubelet) -> Value {
    let mut pods = kubelet.registry.list();
    pods.sort_by_key(|p| (p.namespace().to_string(), p.name().to_string()));
    let shown = pods.iter().filter_map(|p| {
        let mut v = serde_json::to_value(p.as_ref()).ok()?;
        let o = v.as_object_mut()?;
        o.remove("kind");
        o.remove("apiVersion");
        if p.is_static()
            && let Some(status) = kubelet.status.get(p.uid())
        {
            o.insert("status".into(), serde_json::to_value(status).ok()?);
        }
        Some(v)
    });
    list(shown.collect())
}

/// The pods of which the runtime runs something.
pub async fn running(kubelet: &Kubelet) -> Result<Value> {
    let (sandboxes, containers) =
        futures::try_join!(kubelet.cri.list_sandboxes(None), kubelet.cri.list_containers(None))?;
    Ok(list(group(&sandboxes, &containers)))
}

fn group(sandboxes: &[cri::PodSandbox], containers: &[cri::Container]) -> Vec<Value> {
    let ready = cri::PodSandboxState::SandboxReady as i32;
    let mut pods: BTreeMap<(String, String, String), Vec<Value>> = BTreeMap::new();
    let key = |labels: &std::collections::HashMap<String, String>| {
        let get = |k: &str| labels.get(k).cloned();
        Some((get(POD_NAMESPACE)?, get(POD_NAME)?, get(POD_UID)?))
    };
    for k in sandboxes.iter().filter(|s| s.state == ready).filter_map(|s| key(&s.labels)) {
        pods.entry(k).or_default();
    }
    for c in containers.iter().filter(|c| State::from(c.state) == State::Running) {
        if let Some(k) = key(&c.labels) {
            let image = c.image.as_ref().map_or("", |i| i.image.as_str());
            let name = c.labels.get(CONTAINER_NAME).cloned().unwrap_or_default();
            pods.entry(k).or_default().push(json!({"name": name, "image": image, "resources": {}}));
        }
    }
    pods.into_iter()
        .map(|((namespace, name, uid), containers)| {
            let containers = if containers.is_empty() { Value::Null } else { Value::Array(containers) };
            json!({"metadata": {"name": name, "namespace": namespace, "uid": uid, "creationTimestamp": null},
                "spec": {"containers": containers}, "status": {}})
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn what_runs_is_grouped_by_pod() {
        let labels = |uid: &str, container: Option<&str>| -> HashMap<String, String> {
            let mut l = HashMap::from([
                (POD_NAMESPACE.to_string(), "n".to_string()),
                (POD_NAME.into(), format!("p{uid}")),
                (POD_UID.into(), uid.into()),
            ]);
            l.extend(container.map(|c| (CONTAINER_NAME.to_string(), c.to_string())));
            l
        };
        let sandbox = |uid: &str, state: i32| cri::PodSandbox {
            labels: labels(uid, None),
            state,
            ..Default::default()
        };
        let running = cri::ContainerState::ContainerRunning as i32;
        let c = cri::Container { labels: labels("1", Some("c")), state: running, ..Default::default() };
        let pods = group(&[sandbox("1", 0), sandbox("2", 0), sandbox("3", 1)], &[c]);
        assert_eq!(pods.len(), 2);
        assert_eq!(pods[0]["spec"]["containers"][0]["name"], "c");
        assert_eq!(pods[1]["metadata"]["name"], "p2");
        assert!(pods[1]["spec"]["containers"].is_null());
    }
}
