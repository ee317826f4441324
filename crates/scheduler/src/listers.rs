//! Local copies of the kinds that rules ask about, besides pods and nodes.

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, PersistentVolume, PersistentVolumeClaim, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use kube::core::Object;
use pilothouse_client::Informer;

/// A disruption budget of any version: v1beta1 has the same fields as v1.
pub type Budget = Object<PodDisruptionBudgetSpec, PodDisruptionBudgetStatus>;

/// See the module. Cheap to clone.
#[derive(Clone, Default)]
pub struct Listers {
    /// Namespaces.
    pub namespaces: Informer<Namespace>,
    /// Services.
    pub services: Informer<Service>,
    /// Replication controllers.
    pub replication_controllers: Informer<ReplicationController>,
    /// Replica sets.
    pub replica_sets: Informer<ReplicaSet>,
    /// Stateful sets.
    pub stateful_sets: Informer<StatefulSet>,
    /// Disruption budgets.
    pub budgets: Informer<Budget>,
    /// Volumes.
    pub volumes: Informer<PersistentVolume>,
    /// Claims.
    pub claims: Informer<PersistentVolumeClaim>,
    /// Storage classes.
    pub classes: Informer<StorageClass>,
    /// Storage drivers of nodes.
    pub csi_nodes: Informer<CSINode>,
}
