//! The Node object: registering it, its status, its lease.

pub mod lease;
pub mod machine;
pub mod register;
pub mod status;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use parking_lot::RwLock;
use pilothouse_apimachinery::version::{NEWEST, Release};

use crate::resources::{self, Amounts};

/// The release whose kubelet this is: its API server's. The newest until the server has been asked. Clones are the same.
#[derive(Debug, Clone)]
pub struct KubeletRelease(Arc<RwLock<Release>>);

impl Default for KubeletRelease {
    fn default() -> Self {
        KubeletRelease(Arc::new(RwLock::new(NEWEST)))
    }
}

impl KubeletRelease {
    /// The release.
    pub fn get(&self) -> Release {
        *self.0.read()
    }

    /// The API server said which it is.
    pub fn set(&self, release: Release) {
        *self.0.write() = release;
    }
}

/// The node as the kubelet knows it: from the API server once it is there, before that as it will register it.
pub struct NodeView {
    node: RwLock<Arc<Node>>,
    ip: RwLock<String>,
    memory: i64,
    release: KubeletRelease,
}

impl NodeView {
    /// A view of a node with that address and so many bytes of memory.
    pub fn new(node: Node, ip: String, memory: i64) -> NodeView {
        NodeView {
            node: RwLock::new(Arc::new(node)),
            ip: RwLock::new(ip),
            memory,
            release: KubeletRelease::default(),
        }
    }

    /// The node.
    pub fn get(&self) -> Arc<Node> {
        self.node.read().clone()
    }

    /// The node changed.
    pub fn set(&self, node: Arc<Node>) {
        *self.node.write() = node;
    }

    /// The node's address.
    pub fn ip(&self) -> String {
        self.ip.read().clone()
    }

    /// See [`KubeletRelease`].
    pub fn release(&self) -> &KubeletRelease {
        &self.release
    }

    /// What pods may use.
    pub fn allocatable(&self) -> Amounts {
        resources::amounts(self.get().status.as_ref().and_then(|s| s.allocatable.as_ref()))
    }

    /// The machine's memory, in bytes.
    pub fn memory(&self) -> i64 {
        self.memory
    }
}
