//! The endpoint slice controller: slices of at most 100 endpoints for each service with a selector (KEP-752).
//!
//! Slices are handled as JSON: their fields differ between `discovery.k8s.io/v1beta1` (`topology`) and `v1`
//! (`nodeName`, `zone`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::{ApiResource, DeleteParams, DynamicObject, PostParams};
use kube::{Api, Client};
use pilothouse_client::served;
use pilothouse_client::{Informer, Queue};
use serde_json::{Value, json};

use super::ports;
use crate::context::Context;
use crate::control::{controller_ref, has_code, is_ready, is_terminating_namespace};

/// Label with the service's name.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label with the controller whose slice it is.
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Index of slices by `namespace/service`.
const BY_SERVICE: &str = "service";
const MAX_ENDPOINTS: usize = 100;

struct Worker {
    client: Client,
    resource: ApiResource,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<DynamicObject>,
}

/// Starts the controller; does nothing where the server has no EndpointSlices.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let Some(resource) = context.served(served::ENDPOINT_SLICE) else { return Ok(()) };
    let (services, pods, nodes) =
        (context.informer::<Service>(), context.informer::<Pod>(), context.informer::<Node>());
    let slices = context.informer_of::<DynamicObject>(&resource);
    slices.add_index(BY_SERVICE, |s| slice_key(s, MANAGER).into_iter().collect());
    let queue: Queue<String> = Queue::new();
    super::watch(&services, &pods, &queue);
    let q = queue.clone();
    slices.on_change(move |c| {
        if let Some(key) = slice_key(c.object(), MANAGER) {
            q.add(key);
        }
    });
    let worker = Arc::new(Worker { client: context.client.clone(), resource, services, pods, nodes, slices });
    let (stop, workers) = (context.stop.clone(), context.config.workers("endpointslice"));
    tokio::spawn(async move {
        worker.services.wait_synced().await;
        worker.pods.wait_synced().await;
        worker.nodes.wait_synced().await;
        worker.slices.wait_synced().await;
        queue.run("endpointslice", workers, stop, move |key| {
            let worker = worker.clone();
            async move { worker.sync(&key).await.map(|()| None) }
        });
    });
    Ok(())
}

/// `namespace/service` of a slice that `manager` keeps.
pub(super) fn slice_key(slice: &DynamicObject, manager: &str) -> Option<String> {
    let labels = slice.metadata.labels.as_ref()?;
    if labels.get(MANAGED_BY).map(String::as_str) != Some(manager) {
        return None;
    }
    Some(format!("{}/{}", slice.metadata.namespace.as_deref()?, labels.get(SERVICE_NAME)?))
}

impl Worker {
    async fn sync(&self, key: &str) -> Result<(), kube::Error> {
        let current = self.slices.by_index(BY_SERVICE, key);
        let Some(service) = self.services.get(key) else { return Ok(()) };
        let spec = service.spec.clone().unwrap_or_default();
        // A service without a selector keeps what it has: the garbage collector takes it with the service.
        if spec.selector.as_ref().is_none_or(BTreeMap::is_empty)
            || spec.type_.as_deref() == Some("ExternalName")
        {
            return Ok(());
        }
        let pods = super::behind(&service, &self.pods);
        let wanted = plan(&service, &pods, &|name| self.nodes.get(name), &self.resource.version);
        let changes = reconcile(&current, wanted);
        apply(&self.client, &self.resource, &service, changes).await
    }
}

/// A slice's content, its name and ownership aside.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Content {
    pub(super) address_type: &'static str,
    pub(super) ports: Value,
    pub(super) endpoints: Vec<Value>,
    pub(super) labels: BTreeMap<String, String>,
}

impl Content {
    fn group(&self) -> String {
        format!("{} {}", self.address_type, self.ports)
    }
}

/// What to do with slices.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) create: Vec<Content>,
    pub(super) update: Vec<DynamicObject>,
    pub(super) delete: Vec<String>,
}

/// Address types of a service: those of its families; in v1.20 a headless one has none written and gets both.
fn address_types(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.clone().unwrap_or_default();
    let families = spec.ip_families.unwrap_or_default();
    if !families.is_empty() {
        return families.iter().map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    }
    match spec.cluster_ip.as_deref() {
        Some("None") => vec!["IPv4", "IPv6"],
        Some(ip) if ip.contains(':') => vec!["IPv6"],
        _ => vec!["IPv4"],
    }
}

/// What a service's slices should say, one content a group of equal ports and one that is empty where there is none.
fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    node: &dyn Fn(&str) -> Option<Arc<Node>>,
    version: &str,
) -> Vec<Content> {
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(super::HEADLESS);
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if super::is_headless(service) {
        labels.insert(super::HEADLESS.into(), String::new());
    }
    let mut contents = Vec::new();
    for address_type in address_types(service) {
        let mut groups: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
        for pod in pods {
            let terminating = pod.metadata.deletion_timestamp.is_some();
            if super::is_over(pod) || (terminating && version == "v1beta1" && !publish) {
                continue;
            }
            let addresses: Vec<&str> = pod
                .status
                .iter()
                .flat_map(|s| s.pod_ips.iter().flatten().map(|i| i.ip.as_str()))
                .filter(|ip| ip.contains(':') == (address_type == "IPv6"))
                .collect();
            let Some(first) = addresses.first() else { continue };
            let ports = ports_json(service, pod);
            let endpoint = endpoint(service, pod, first, publish, terminating, node, version);
            groups.entry(ports.to_string()).or_insert_with(|| (ports, Vec::new())).1.push(endpoint);
        }
        if groups.is_empty() {
            groups.insert(String::new(), (Value::Null, Vec::new()));
        }
        for (_, (ports, endpoints)) in groups {
            contents.push(Content { address_type, ports, endpoints, labels: labels.clone() });
        }
    }
    contents
}

fn ports_json(service: &Service, pod: &Pod) -> Value {
    let list: Vec<Value> = ports::of_pod(service, pod)
        .into_iter()
        .map(|p| {
            let mut v = json!({"name": p.name, "port": p.port, "protocol": p.protocol});
            if let Some(a) = p.app_protocol {
                v["appProtocol"] = a.into();
            }
            v
        })
        .collect();
    Value::Array(list)
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: &str,
    publish: bool,
    terminating: bool,
    node: &dyn Fn(&str) -> Option<Arc<Node>>,
    version: &str,
) -> Value {
    let serving = is_ready(pod);
    let mut v = json!({
        "addresses": [address],
        "conditions": {"ready": publish || (serving && !terminating)},
        "targetRef": {
            "kind": "Pod",
            "namespace": pod.metadata.namespace,
            "name": pod.metadata.name,
            "uid": pod.metadata.uid,
        },
    });
    if let Some(h) = super::hostname(pod, service) {
        v["hostname"] = h.into();
    }
    let node_name = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    let label = |name: &str| {
        let labels = node(node_name.as_deref()?)?.metadata.labels.clone()?;
        labels.get(name).cloned()
    };
    if version == "v1beta1" {
        v["targetRef"]["resourceVersion"] = json!(pod.metadata.resource_version);
        let mut topology = serde_json::Map::new();
        if let Some(n) = &node_name {
            topology.insert("kubernetes.io/hostname".into(), n.clone().into());
        }
        for key in ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"] {
            if let Some(value) = label(key) {
                topology.insert(key.into(), value.into());
            }
        }
        if !topology.is_empty() {
            v["topology"] = topology.into();
        }
    } else {
        v["conditions"]["serving"] = serving.into();
        v["conditions"]["terminating"] = terminating.into();
        if let Some(n) = &node_name {
            v["nodeName"] = n.clone().into();
        }
        if let Some(zone) = label("topology.kubernetes.io/zone") {
            v["zone"] = zone.into();
        }
    }
    v
}

/// From what there is to what there should be with few writes: endpoints stay in the slice they are in, new ones
/// fill slices that are written anyway or have room, and empty slices go.
pub(super) fn reconcile(current: &[Arc<DynamicObject>], wanted: Vec<Content>) -> Changes {
    let mut changes = Changes::default();
    let mut by_group: HashMap<String, Vec<&Arc<DynamicObject>>> = HashMap::new();
    for slice in current {
        let group =
            format!("{} {}", slice.data["addressType"].as_str().unwrap_or_default(), slice.data["ports"]);
        by_group.entry(group).or_default().push(slice);
    }
    // Which slice may be used for a group that has none: one whose ports are no longer wanted.
    let mut spare: Vec<&Arc<DynamicObject>> = Vec::new();
    let groups: Vec<String> = wanted.iter().map(Content::group).collect();
    for (group, slices) in &by_group {
        if !groups.contains(group) {
            spare.extend(slices);
        }
    }
    spare.sort_by_key(|s| s.metadata.name.clone());
    for content in wanted {
        let mut left: Vec<Option<Value>> = content.endpoints.iter().cloned().map(Some).collect();
        let mut plans: Vec<(&Arc<DynamicObject>, Vec<Value>)> = Vec::new();
        let mut existing = by_group.get(&content.group()).cloned().unwrap_or_default();
        existing.sort_by_key(|s| s.metadata.name.clone());
        for slice in existing {
            let kept: Vec<Value> = slice.data["endpoints"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|old| {
                    left.iter_mut()
                        .find(|n| n.as_ref().is_some_and(|n| same_endpoint(n, old)))
                        .and_then(Option::take)
                })
                .collect();
            plans.push((slice, kept));
        }
        let mut rest: Vec<Value> = left.into_iter().flatten().collect();
        for (_, endpoints) in &mut plans {
            let room = MAX_ENDPOINTS.saturating_sub(endpoints.len()).min(rest.len());
            endpoints.extend(rest.drain(..room));
        }
        let empty_allowed = content.endpoints.is_empty();
        for (i, (slice, endpoints)) in plans.iter().enumerate() {
            if endpoints.is_empty() && !(empty_allowed && i == 0) {
                changes.delete.extend(slice.metadata.name.clone());
            } else if !unchanged(slice, endpoints, &content) {
                changes.update.push(updated(slice, endpoints.clone(), &content));
            }
        }
        let mut chunks: Vec<Vec<Value>> = rest.chunks(MAX_ENDPOINTS).map(<[Value]>::to_vec).collect();
        if chunks.is_empty() && plans.is_empty() {
            chunks.push(Vec::new());
        }
        for endpoints in chunks {
            match spare.iter().position(|s| s.data["addressType"] == content.address_type) {
                Some(i) => changes.update.push(updated(spare.remove(i), endpoints, &content)),
                None => changes.create.push(Content { endpoints, ..content.clone() }),
            }
        }
    }
    changes.delete.extend(spare.iter().filter_map(|s| s.metadata.name.clone()));
    changes
}

fn same_endpoint(a: &Value, b: &Value) -> bool {
    a["addresses"] == b["addresses"] && a["targetRef"]["uid"] == b["targetRef"]["uid"]
}

fn unchanged(slice: &DynamicObject, endpoints: &[Value], content: &Content) -> bool {
    // The pods' resource versions change with every status: they alone are no reason to write.
    let strip = |list: &[Value]| -> Vec<Value> {
        let mut list = list.to_vec();
        for e in &mut list {
            if let Some(r) = e.get_mut("targetRef").and_then(Value::as_object_mut) {
                r.remove("resourceVersion");
            }
        }
        list
    };
    let old = slice.data["endpoints"].as_array().cloned().unwrap_or_default();
    strip(&old) == strip(endpoints) && slice.metadata.labels.as_ref() == Some(&content.labels)
}

fn updated(slice: &DynamicObject, endpoints: Vec<Value>, content: &Content) -> DynamicObject {
    let mut slice = slice.clone();
    slice.metadata.labels = Some(content.labels.clone());
    slice.data["ports"] = content.ports.clone();
    slice.data["endpoints"] = endpoints.into();
    slice
}

async fn apply(
    client: &Client,
    resource: &ApiResource,
    service: &Service,
    changes: Changes,
) -> Result<(), kube::Error> {
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    for content in changes.create {
        let mut slice = DynamicObject::new("", resource).within(namespace);
        slice.metadata.name = None;
        slice.metadata.generate_name = Some(format!("{name}-"));
        slice.metadata.labels = Some(content.labels);
        slice.metadata.owner_references = Some(vec![controller_ref(service)]);
        slice.data = json!({
            "addressType": content.address_type,
            "ports": content.ports,
            "endpoints": content.endpoints,
        });
        match api.create(&PostParams::default(), &slice).await {
            Ok(_) => {}
            Err(e) if is_terminating_namespace(&e) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    write(&api, changes.update, changes.delete).await
}

/// Updates and deletes slices; what is gone already is no error.
pub(super) async fn write(
    api: &Api<DynamicObject>,
    update: Vec<DynamicObject>,
    delete: Vec<String>,
) -> Result<(), kube::Error> {
    for slice in update {
        let name = slice.metadata.name.clone().unwrap_or_default();
        match api.replace(&name, &PostParams::default(), &slice).await {
            Ok(_) => {}
            Err(e) if has_code(&e, 404) => {}
            Err(e) => return Err(e),
        }
    }
    for name in delete {
        match api.delete(&name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(e) if has_code(&e, 404) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(ports: Value, ips: &[&str]) -> Content {
        Content {
            address_type: "IPv4",
            ports,
            endpoints: ips.iter().map(|ip| json!({"addresses": [ip], "targetRef": {"uid": ip}})).collect(),
            labels: BTreeMap::new(),
        }
    }

    fn slice(name: &str, ports: Value, ips: &[&str]) -> Arc<DynamicObject> {
        let c = content(ports, ips);
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {}}, "addressType": "IPv4",
                "ports": c.ports, "endpoints": c.endpoints}))
            .unwrap(),
        )
    }

    #[test]
    fn an_endpoint_stays_where_it_is() {
        let p = json!([{"port": 80}]);
        let current = [slice("a", p.clone(), &["1", "2"]), slice("b", p.clone(), &["3"])];
        let c = reconcile(&current, vec![content(p.clone(), &["3", "2", "1"])]);
        assert!(c.create.is_empty() && c.update.is_empty() && c.delete.is_empty());
        let c = reconcile(&current, vec![content(p, &["1", "2"])]);
        assert_eq!(c.delete, ["b"]);
        assert!(c.create.is_empty() && c.update.is_empty());
    }

    #[test]
    fn new_ports_reuse_a_slice_and_none_left_leaves_an_empty_one() {
        let current = [slice("a", json!([{"port": 80}]), &["1"])];
        let c = reconcile(&current, vec![content(json!([{"port": 81}]), &["1"])]);
        assert_eq!((c.create.len(), c.update.len(), c.delete.len()), (0, 1, 0));
        assert_eq!(c.update[0].data["ports"], json!([{"port": 81}]));
        let c = reconcile(&[], vec![content(Value::Null, &[])]);
        assert_eq!((c.create.len(), c.create[0].endpoints.len()), (1, 0));
    }

    #[test]
    fn more_than_a_slice_holds() {
        let ips: Vec<String> = (0..250).map(|i| i.to_string()).collect();
        let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
        let c = reconcile(&[], vec![content(Value::Null, &ips)]);
        assert_eq!(c.create.iter().map(|s| s.endpoints.len()).collect::<Vec<_>>(), [100, 100, 50]);
    }

    #[test]
    fn families() {
        let service = |spec: Value| -> Service {
            serde_json::from_value(
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec}),
            )
            .unwrap()
        };
        assert_eq!(address_types(&service(json!({"clusterIP": "10.0.0.1"}))), ["IPv4"]);
        assert_eq!(address_types(&service(json!({"clusterIP": "None"}))), ["IPv4", "IPv6"]);
        assert_eq!(address_types(&service(json!({"clusterIP": "None", "ipFamilies": ["IPv4"]}))), ["IPv4"]);
    }
}
