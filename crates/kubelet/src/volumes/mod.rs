//! Volumes: what the pod workers ask of whoever mounts them.

pub mod atomic;
pub mod content;
pub mod fake;
pub mod host;
pub mod manager;
pub mod token;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;

/// A volume that is ready to be mounted into containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedVolume {
    /// Where it is on the node.
    pub host_path: PathBuf,
    /// Whether containers may only read it, whatever they ask for (config maps, secrets, …).
    pub read_only: bool,
    /// Whether it is a block device and not a folder.
    pub block: bool,
}

/// The volumes of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodMounts {
    /// By the volume's name in the pod's spec.
    pub volumes: BTreeMap<String, MountedVolume>,
    /// Groups that processes need to use them (annotation `pv.beta.kubernetes.io/gid`).
    pub groups: Vec<i64>,
}

/// One volume that could not be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its name in the pod's spec.
    pub volume: String,
    /// The event's reason: `FailedMount`, `FailedAttachVolume`, `FailedMapVolume`.
    pub reason: &'static str,
    /// The event's message, in full: `MountVolume.SetUp failed for volume "v" : secret "no" not found`.
    pub message: String,
}

/// Why a pod's volumes are not ready. The worker writes an event for each failure and tries again later.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
#[error("{}", failures.iter().map(|f| f.message.as_str()).collect::<Vec<_>>().join(", "))]
pub struct MountError {
    /// The failures; may be empty where it is only not yet time (a volume waits to be attached).
    pub failures: Vec<Failure>,
    /// Names of all volumes that are not mounted yet.
    pub unmounted: Vec<String>,
}

/// Mounts and unmounts.
#[async_trait]
pub trait VolumeManager: Send + Sync {
    /// Mounts what is not mounted yet and brings contents up to date (config maps, secrets, projected volumes, the
    /// downward API). Called at each sync of a running pod, one call at a time for a pod.
    async fn mount(&self, pod: &Arc<Pod>) -> Result<PodMounts, MountError>;

    /// Unmounts all volumes of a pod and removes their folders. Called when no container of it runs; again later
    /// where it failed. Works without the pod's spec, by what lies in the pod's folder, so that volumes of pods that
    /// went while the kubelet was down are found too.
    async fn unmount(&self, uid: &str) -> Result<(), MountError>;

    /// Makes `sub_path` of a volume ready to be mounted as mount number `index` of a container, and says where that
    /// is. Made if it is missing; it never leads out of the volume, whatever links lie in it. Errors are texts for
    /// the container's status.
    async fn sub_path(
        &self,
        pod: &Arc<Pod>,
        container: &str,
        index: usize,
        volume: &str,
        mounted: &MountedVolume,
        sub_path: &str,
    ) -> Result<PathBuf, String>;

    /// Names of attached volumes in use, for `node.status.volumesInUse`.
    fn in_use(&self) -> Vec<String>;
}
