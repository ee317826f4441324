//! `NodePorts`: the host ports that a pod asks for must be free.

use crate::cache::Cluster;
use crate::framework::{Filter, FilterPlugin, Status};
use crate::types::{NodeInfo, PodInfo};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct NodePorts;

impl FilterPlugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn pre_filter(&self, pod: &PodInfo, _: &Cluster) -> Result<Option<Box<dyn Filter>>, Status> {
        Ok((!pod.ports.is_empty()).then(|| Box::new(NodePorts) as Box<dyn Filter>))
    }
}

impl Filter for NodePorts {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _: &Cluster) -> Result<(), Status> {
        let taken = node.pods.iter().flat_map(|p| &p.ports);
        if taken.into_iter().any(|t| pod.ports.iter().any(|p| p.conflicts(t))) {
            return Err(Status::unschedulable("node(s) didn't have free ports for the requested pod ports"));
        }
        Ok(())
    }

    fn copy(&self) -> Box<dyn Filter> {
        Box::new(*self)
    }
}
