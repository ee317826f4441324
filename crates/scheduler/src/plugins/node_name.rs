//! `NodeName`: a pod that names its node gets no other.

use crate::cache::Cluster;
use crate::framework::{Filter, FilterPlugin, Status};
use crate::types::{NodeInfo, PodInfo};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct NodeName;

impl FilterPlugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn pre_filter(&self, pod: &PodInfo, _: &Cluster) -> Result<Option<Box<dyn Filter>>, Status> {
        Ok(pod.node_name().map(|_| Box::new(NodeName) as Box<dyn Filter>))
    }
}

impl Filter for NodeName {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _: &Cluster) -> Result<(), Status> {
        match pod.node_name() {
            Some(name) if name != node.name => {
                Err(Status::unresolvable("node(s) didn't match the requested hostname"))
            }
            _ => Ok(()),
        }
    }

    fn copy(&self) -> Box<dyn Filter> {
        Box::new(*self)
    }
}
