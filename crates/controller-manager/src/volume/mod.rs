//! Persistent volumes and claims: binding them, making volumes on this machine's disk, and keeping both while used.
//!
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/>

pub mod attach;
pub mod binder;
pub mod expand;
pub mod local_path;
pub mod matching;
pub mod protection;
pub mod reclaim;

/// On a claim or volume: the controller, not a user, tied the two together.
pub(crate) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: binding is complete.
pub(crate) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim: who is asked to make its volume.
pub(crate) const PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// The same, under its name since v1.23.
pub(crate) const PROVISIONER_GA: &str = "volume.kubernetes.io/storage-provisioner";
/// On a claim: the node that the scheduler chose for its first pod.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a volume: who made it.
pub(crate) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
