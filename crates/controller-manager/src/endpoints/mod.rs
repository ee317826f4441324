//! Which pods stand behind a service: Endpoints and EndpointSlices.

#[expect(
    clippy::module_inception,
    reason = "the controller is of Endpoints, the folder of all kinds of them"
)]
pub mod endpoints;
pub mod mirroring;
pub mod ports;
pub mod slices;

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use pilothouse_client::{Change, Informer, Queue, key_of};

use crate::control::{is_terminal, selects_map};

/// Marks Endpoints and EndpointSlices of services without an address of their own.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// Queues a service's key when it or a pod that stands, or stood, behind it changes.
fn watch(services: &Informer<Service>, pods: &Informer<Pod>, queue: &Queue<String>) {
    let q = queue.clone();
    services.on_change(move |c| q.add(key_of(&**c.object())));
    let (q, services) = (queue.clone(), services.clone());
    pods.on_change(move |c: &Change<Pod>| {
        let (old, new) = match c {
            Change::Added(p) | Change::Deleted(p) => (None, p),
            Change::Updated(old, new) => (Some(old), new),
        };
        let mut keys: BTreeSet<String> = BTreeSet::new();
        for pod in old.into_iter().chain([new]) {
            for s in services.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
                if selects_map(
                    s.spec.as_ref().and_then(|s| s.selector.as_ref()),
                    pod.metadata.labels.as_ref(),
                ) {
                    keys.insert(key_of(&*s));
                }
            }
        }
        keys.into_iter().for_each(|k| q.add(k));
    });
}

/// Whether a service has no address of its own.
fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// Whether a pod can stand behind a service at all.
fn is_candidate(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).is_some_and(|ip| !ip.is_empty())
        && !is_over(pod)
}

/// Whether a pod's containers will not run again.
fn is_over(pod: &Pod) -> bool {
    match pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) {
        Some("Never") => is_terminal(pod),
        Some("OnFailure") => crate::control::phase(pod) == "Succeeded",
        _ => is_terminal(pod) && crate::control::phase(pod) == "Failed" && evicted(pod),
    }
}

/// An evicted pod is over, whatever its restart policy.
fn evicted(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted")
}

/// The pods that a service's selector matches.
fn behind(service: &Service, pods: &Informer<Pod>) -> Vec<Arc<Pod>> {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    pods.list_namespace(service.metadata.namespace.as_deref().unwrap_or_default())
        .into_iter()
        .filter(|p| selects_map(selector, p.metadata.labels.as_ref()))
        .collect()
}

/// The name under which a pod is found below a headless service, where it has one.
fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let same = spec.subdomain.as_deref() == service.metadata.name.as_deref()
        && pod.metadata.namespace == service.metadata.namespace;
    spec.hostname.clone().filter(|h| same && !h.is_empty())
}
