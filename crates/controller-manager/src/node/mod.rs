//! Nodes: life cycle, eviction, pod address ranges.

pub mod eviction;
mod health;
pub mod ipam;
pub mod lifecycle;
mod ranges;
mod taints;
pub mod ttl;
mod zones;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeCondition, ObjectReference, Pod};
use pilothouse_client::Informer;

/// Index of pods by the node they are on.
const BY_NODE: &str = "node";

fn index_by_node(pods: &Informer<Pod>) {
    pods.add_index(BY_NODE, |p| {
        p.spec.iter().filter_map(|s| s.node_name.clone()).filter(|n| !n.is_empty()).collect()
    });
}

fn pods_on(pods: &Informer<Pod>, node: &str) -> Vec<Arc<Pod>> {
    pods.by_index(BY_NODE, node)
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

/// What events on nodes refer to: the node's name stands for its uid where the node is not known any more.
fn node_reference(name: &str, uid: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.into()),
        uid: Some(uid.unwrap_or(name).into()),
        ..Default::default()
    }
}
