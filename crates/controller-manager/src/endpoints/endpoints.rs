//! The endpoints controller: one Endpoints object a service with a selector.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use pilothouse_client::events::reference;
use pilothouse_client::{EventRecorder, Informer, Queue, key_of};

use super::ports::{self, Port};
use crate::context::Context;
use crate::control::{has_code, is_ready, is_terminating_namespace, message};

/// An object with more addresses than this is cut, and says so by an annotation (KEP-752).
const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let (services, pods, endpoints) =
        (context.informer::<Service>(), context.informer::<Pod>(), context.informer::<Endpoints>());
    let queue: Queue<String> = Queue::new();
    super::watch(&services, &pods, &queue);
    let q = queue.clone();
    let of = services.clone();
    endpoints.on_change(move |c| {
        // Endpoints without a service are somebody's own: only those of services are ours to put right.
        let key = key_of(&**c.object());
        if of.get(&key).is_some() {
            q.add(key);
        }
    });
    let recorder = context.recorder("endpoint-controller");
    let (client, stop, workers) =
        (context.client.clone(), context.stop.clone(), context.config.workers("endpoint"));
    // From v1.23 on an object that was cut says `truncated`.
    let over = if context.server_minor >= 22 { "truncated" } else { "warning" };
    tokio::spawn(async move {
        services.wait_synced().await;
        pods.wait_synced().await;
        endpoints.wait_synced().await;
        queue.run("endpoint", workers, stop, move |key| {
            let (client, services, pods, endpoints, recorder) =
                (client.clone(), services.clone(), pods.clone(), endpoints.clone(), recorder.clone());
            async move {
                let current = endpoints.get(&key);
                sync(&client, &key, services.get(&key).as_deref(), &pods, current.as_deref(), &recorder, over)
                    .await
                    .map(|()| None)
            }
        });
    });
    Ok(())
}

async fn sync(
    client: &Client,
    key: &str,
    service: Option<&Service>,
    pods: &Informer<Pod>,
    current: Option<&Endpoints>,
    recorder: &EventRecorder,
    over: &str,
) -> Result<(), kube::Error> {
    let Some((namespace, name)) = key.split_once('/') else { return Ok(()) };
    let api: Api<Endpoints> = Api::namespaced(client.clone(), namespace);
    let Some(service) = service else {
        let locks = "control-plane.alpha.kubernetes.io/leader";
        let Some(current) = current else { return Ok(()) };
        // Election locks are kept in Endpoints too, and belong to no service.
        if current.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(locks)) {
            return Ok(());
        }
        return match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(e) if has_code(&e, 404) => Ok(()),
            Err(e) => Err(e),
        };
    };
    let spec = service.spec.clone().unwrap_or_default();
    if spec.selector.as_ref().is_none_or(BTreeMap::is_empty) || spec.type_.as_deref() == Some("ExternalName")
    {
        return Ok(());
    }
    let publish = spec.publish_not_ready_addresses.unwrap_or(false)
        || service
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get("service.alpha.kubernetes.io/tolerate-unready-endpoints"))
            .is_some_and(|v| v == "true");
    let mut subsets = subsets(service, &super::behind(service, pods), publish);
    let cut = truncate(&mut subsets, MAX_ADDRESSES);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    if super::is_headless(service) {
        labels.insert(super::HEADLESS.into(), String::new());
    } else {
        labels.remove(super::HEADLESS);
    }
    let mut wanted = current.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            ..Default::default()
        },
        ..Default::default()
    });
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    if cut {
        annotations.insert(OVER_CAPACITY.into(), over.into());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    if annotations.is_empty() {
        wanted.metadata.annotations = None;
    }
    wanted.metadata.labels = (!labels.is_empty()).then_some(labels);
    wanted.subsets = (!subsets.is_empty()).then_some(subsets);
    if current.is_some_and(|c| same(c, &wanted)) {
        return Ok(());
    }
    let result = match current {
        None => api.create(&PostParams::default(), &wanted).await,
        Some(_) => api.replace(name, &PostParams::default(), &wanted).await,
    };
    match result {
        Ok(_) => Ok(()),
        Err(e) if is_terminating_namespace(&e) => Ok(()),
        Err(e) => {
            let what = if current.is_none() { "create" } else { "update" };
            if !has_code(&e, 409) {
                let reason =
                    if current.is_none() { "FailedToCreateEndpoint" } else { "FailedToUpdateEndpoint" };
                let text = format!("Failed to {what} endpoint {key}: {}", message(&e));
                recorder.warning(&reference(&wanted, &()), reason, text);
            }
            Err(e)
        }
    }
}

/// Equal but for the resource versions in the pods' references: a pod that is written again without moving does not
/// make the endpoints be written.
fn same(a: &Endpoints, b: &Endpoints) -> bool {
    let strip = |e: &Endpoints| {
        let mut subsets = e.subsets.clone().unwrap_or_default();
        for s in &mut subsets {
            for addresses in [&mut s.addresses, &mut s.not_ready_addresses] {
                for a in addresses.iter_mut().flatten() {
                    if let Some(r) = &mut a.target_ref {
                        r.resource_version = None;
                    }
                }
            }
        }
        subsets
    };
    a.metadata.labels == b.metadata.labels
        && a.metadata.annotations == b.metadata.annotations
        && strip(a) == strip(b)
}

/// An address, with what orders it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    ip: String,
    uid: String,
    ready: bool,
    index: usize,
}

/// The subsets of a service: the pods that lead to the same set of ports stand together, each once, ports and
/// addresses in order.
fn subsets(service: &Service, pods: &[std::sync::Arc<Pod>], publish_not_ready: bool) -> Vec<EndpointSubset> {
    let candidates: Vec<&Pod> = pods
        .iter()
        .map(|p| &**p)
        .filter(|p| {
            (publish_not_ready
                && p.status.as_ref().is_some_and(|s| s.pod_ip.as_ref().is_some_and(|i| !i.is_empty())))
                || super::is_candidate(p)
        })
        .collect();
    let no_ports = service.spec.as_ref().and_then(|s| s.ports.as_ref()).is_none_or(Vec::is_empty);
    let mut by_port: BTreeMap<Option<Port>, BTreeSet<Address>> = BTreeMap::new();
    for (index, pod) in candidates.iter().enumerate() {
        let address = Address {
            ip: pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            ready: publish_not_ready || is_ready(pod),
            index,
        };
        if no_ports {
            if super::is_headless(service) {
                by_port.entry(None).or_default().insert(address);
            }
            continue;
        }
        for port in ports::of_pod(service, pod) {
            by_port.entry(Some(port)).or_default().insert(address.clone());
        }
    }
    let mut by_addresses: BTreeMap<Vec<Address>, Vec<Port>> = BTreeMap::new();
    for (port, addresses) in by_port {
        by_addresses.entry(addresses.into_iter().collect()).or_default().extend(port);
    }
    let mut subsets: Vec<EndpointSubset> = by_addresses
        .into_iter()
        .map(|(addresses, ports)| {
            let list = |ready: bool| {
                let list: Vec<EndpointAddress> = addresses
                    .iter()
                    .filter(|a| a.ready == ready)
                    .map(|a| endpoint_address(candidates[a.index], service))
                    .collect();
                (!list.is_empty()).then_some(list)
            };
            let ports: Vec<EndpointPort> = ports
                .into_iter()
                .map(|p| EndpointPort {
                    name: Some(p.name).filter(|n| !n.is_empty()),
                    port: p.port,
                    protocol: Some(p.protocol),
                    app_protocol: p.app_protocol,
                })
                .collect();
            EndpointSubset {
                addresses: list(true),
                not_ready_addresses: list(false),
                ports: (!ports.is_empty()).then_some(ports),
            }
        })
        .collect();
    subsets.sort_by_key(|s| serde_json::to_string(&s.ports).unwrap_or_default());
    subsets
}

fn endpoint_address(pod: &Pod, service: &Service) -> EndpointAddress {
    EndpointAddress {
        ip: pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_default(),
        node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        hostname: super::hostname(pod, service),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            ..Default::default()
        }),
    }
}

/// Leaves at most `max` addresses, those not ready going first. Returns whether something went.
fn truncate(subsets: &mut Vec<EndpointSubset>, max: usize) -> bool {
    let count = |s: &[EndpointSubset]| -> usize {
        s.iter()
            .map(|s| s.addresses.iter().flatten().count() + s.not_ready_addresses.iter().flatten().count())
            .sum()
    };
    if count(subsets) <= max {
        return false;
    }
    let mut left = max;
    for ready in [true, false] {
        for s in subsets.iter_mut() {
            let list = if ready { &mut s.addresses } else { &mut s.not_ready_addresses };
            if let Some(l) = list {
                l.truncate(left);
                left -= l.len();
            }
            if list.as_ref().is_some_and(Vec::is_empty) {
                *list = None;
            }
        }
    }
    subsets.retain(|s| s.addresses.is_some() || s.not_ready_addresses.is_some());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "s", "namespace": "ns"}, "spec": spec}))
        .unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool, port: i32) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "ns", "uid": name},
                "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}],
                    "hostname": name, "subdomain": "s"},
                "status": {"podIP": ip, "phase": "Running",
                    "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn pods_with_the_same_ports_stand_together() {
        let s = service(
            json!({"ports": [{"name": "web", "port": 80, "targetPort": "http"}, {"name": "x", "port": 9}]}),
        );
        let pods = [pod("b", "10.0.0.2", true, 80), pod("a", "10.0.0.1", false, 80)];
        let sets = subsets(&s, &pods, false);
        assert_eq!(sets.len(), 1);
        assert_eq!(sets[0].addresses.as_ref().unwrap()[0].ip, "10.0.0.2");
        assert_eq!(sets[0].addresses.as_ref().unwrap()[0].hostname.as_deref(), Some("b"));
        assert_eq!(sets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "10.0.0.1");
        assert_eq!(sets[0].ports.as_ref().unwrap().len(), 2);
        let differ = [pod("a", "10.0.0.1", true, 80), pod("b", "10.0.0.2", true, 81)];
        assert_eq!(subsets(&s, &differ, false).len(), 3);
    }

    #[test]
    fn headless_without_ports_has_addresses_all_the_same() {
        let s = service(json!({"clusterIP": "None"}));
        let sets = subsets(&s, &[pod("a", "10.0.0.1", true, 80)], false);
        assert_eq!((sets.len(), sets[0].ports.is_none()), (1, true));
    }

    #[test]
    fn too_many_addresses_are_cut_not_ready_first() {
        let s = service(json!({"ports": [{"port": 80}]}));
        let pods: Vec<_> =
            (0..5).map(|i| pod(&format!("p{i}"), &format!("10.0.0.{i}"), i % 2 == 0, 80)).collect();
        let mut sets = subsets(&s, &pods, false);
        assert!(truncate(&mut sets, 3));
        assert_eq!(sets[0].addresses.as_ref().unwrap().len(), 3);
        assert!(sets[0].not_ready_addresses.is_none());
        assert!(!truncate(&mut sets, 3));
    }
}
