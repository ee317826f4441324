//! The endpoint slice mirroring controller: slices for Endpoints that somebody keeps by hand for a service without a
//! selector.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, Client};
use pilothouse_client::{Informer, Queue, key_of, served};
use serde_json::{Value, json};

use super::slices::{Changes, Content, MANAGED_BY, SERVICE_NAME, reconcile, slice_key, write};
use crate::context::Context;
use crate::control::{controller_ref, is_terminating_namespace};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const BY_SERVICE: &str = "mirrored service";
/// As many addresses of a subset are mirrored.
const MAX_ADDRESSES: usize = 1000;

struct Worker {
    client: Client,
    resource: ApiResource,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<DynamicObject>,
    /// Whether addresses that are not ready are mirrored as such.
    mirrors_readiness: bool,
}

/// The first minor release that does.
const READINESS_SINCE: u32 = 21;

/// Starts the controller; does nothing where the server has no EndpointSlices.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let Some(resource) = context.served(served::ENDPOINT_SLICE) else { return Ok(()) };
    let worker = Arc::new(Worker {
        client: context.client.clone(),
        services: context.informer::<Service>(),
        endpoints: context.informer::<Endpoints>(),
        slices: context.informer_of::<DynamicObject>(&resource),
        resource,
        mirrors_readiness: context.server_minor >= READINESS_SINCE,
    });
    worker.slices.add_index(BY_SERVICE, |s| slice_key(s, MANAGER).into_iter().collect());
    let queue: Queue<String> = Queue::new();
    let q = queue.clone();
    worker.services.on_change(move |c| q.add(key_of(&**c.object())));
    let q = queue.clone();
    worker.endpoints.on_change(move |c| q.add(key_of(&**c.object())));
    let q = queue.clone();
    worker.slices.on_change(move |c| {
        if let Some(key) = slice_key(c.object(), MANAGER) {
            q.add(key);
        }
    });
    let stop = context.stop.clone();
    tokio::spawn(async move {
        worker.services.wait_synced().await;
        worker.endpoints.wait_synced().await;
        worker.slices.wait_synced().await;
        queue.run("endpointslicemirroring", 5, stop, move |key| {
            let worker = worker.clone();
            async move { worker.sync(&key).await.map(|()| None) }
        });
    });
    Ok(())
}

impl Worker {
    async fn sync(&self, key: &str) -> Result<(), kube::Error> {
        let Some((namespace, name)) = key.split_once('/') else { return Ok(()) };
        let current = self.slices.by_index(BY_SERVICE, key);
        let endpoints = self.endpoints.get(key).filter(|e| mirrored(e));
        let service = self
            .services
            .get(key)
            .filter(|s| s.spec.as_ref().is_none_or(|s| s.selector.as_ref().is_none_or(BTreeMap::is_empty)));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &self.resource);
        let changes = match (&endpoints, service) {
            (Some(e), Some(_)) => {
                let mut changes =
                    reconcile(&current, plan(e, &self.resource.version, self.mirrors_readiness));
                // Slices are written anew under the names they have.
                changes.update.iter_mut().for_each(|s| s.metadata.generate_name = None);
                changes
            }
            _ => Changes {
                delete: current.iter().filter_map(|s| s.metadata.name.clone()).collect(),
                ..Default::default()
            },
        };
        if let Some(endpoints) = &endpoints {
            for content in changes.create {
                let mut slice = DynamicObject::new("", &self.resource).within(namespace);
                slice.metadata.name = None;
                slice.metadata.generate_name = Some(format!("{name}-"));
                slice.metadata.labels = Some(content.labels);
                slice.metadata.owner_references = Some(vec![controller_ref(&**endpoints)]);
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
        }
        write(&api, changes.update, changes.delete).await
    }
}

/// Whether Endpoints are to be mirrored: not marked to be skipped, and no election's lock.
fn mirrored(endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata;
    let skip = meta.labels.as_ref().and_then(|l| l.get(SKIP)).is_some_and(|v| v == "true");
    let lock =
        meta.annotations.as_ref().is_some_and(|a| a.contains_key("control-plane.alpha.kubernetes.io/leader"));
    !skip && !lock && meta.deletion_timestamp.is_none()
}

/// `mirrors_readiness`: else all addresses are ready.
fn plan(endpoints: &Endpoints, version: &str, mirrors_readiness: bool) -> Vec<Content> {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), endpoints.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut contents: Vec<Content> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<Value> = subset
            .ports
            .iter()
            .flatten()
            .map(|p| {
                json!({"name": p.name.clone().unwrap_or_default(), "port": p.port,
                    "protocol": p.protocol.clone().unwrap_or_else(|| "TCP".into())})
            })
            .collect();
        let all = subset
            .addresses
            .iter()
            .flatten()
            .map(|a| (a, true))
            .chain(subset.not_ready_addresses.iter().flatten().map(|a| (a, !mirrors_readiness)))
            .take(MAX_ADDRESSES);
        for (address, ready) in all {
            let address_type = if address.ip.contains(':') { "IPv6" } else { "IPv4" };
            let endpoint = endpoint(address, ready, version);
            let ports = Value::Array(ports.clone());
            match contents.iter_mut().find(|c| c.address_type == address_type && c.ports == ports) {
                Some(c) => c.endpoints.push(endpoint),
                None => {
                    contents.push(Content {
                        address_type,
                        ports,
                        endpoints: vec![endpoint],
                        labels: labels.clone(),
                    });
                }
            }
        }
    }
    contents
}

fn endpoint(address: &EndpointAddress, ready: bool, version: &str) -> Value {
    let mut v = json!({"addresses": [address.ip], "conditions": {"ready": ready}});
    if let Some(h) = address.hostname.as_ref().filter(|h| !h.is_empty()) {
        v["hostname"] = h.clone().into();
    }
    if let Some(t) = &address.target_ref {
        v["targetRef"] = json!(t);
    }
    if let Some(node) = &address.node_name {
        if version == "v1beta1" {
            v["topology"] = json!({"kubernetes.io/hostname": node});
        } else {
            v["nodeName"] = node.clone().into();
        }
    }
    v
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_ready_and_not_ready() {
        let e: Endpoints = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "s", "namespace": "ns"},
            "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "notReadyAddresses": [{"ip": "fd00::1"}],
                "ports": [{"port": 80}]}]}))
        .unwrap();
        assert_eq!(plan(&e, "v1", false)[1].endpoints[0]["conditions"]["ready"], true);
        let contents = plan(&e, "v1", true);
        assert_eq!(contents[1].endpoints[0]["conditions"]["ready"], false);
        assert_eq!(contents.len(), 2);
        assert_eq!(contents[0].endpoints[0]["conditions"]["ready"], true);
        assert_eq!(contents[1].address_type, "IPv6");
        assert!(mirrored(&e));
    }
}
