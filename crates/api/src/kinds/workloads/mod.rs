//! The workloads of the group `apps`.

mod controllerrevision;
mod daemonset;
mod deployment;
mod replicaset;
mod statefulset;
pub(crate) mod template;

use super::{Kind, Version};

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[
    &controllerrevision::CONTROLLER_REVISION,
    &daemonset::DAEMON_SET,
    &deployment::DEPLOYMENT,
    &replicaset::REPLICA_SET,
    &statefulset::STATEFUL_SET,
];

/// An old version of a workload, which v1.20 no longer serves but today's clusters may still be sent.
const fn old(group: &'static str, version: &'static str) -> Version {
    Version::newer(group, version)
}

/// Whether a request came in a version whose deletions orphan by default.
fn orphans(api_version: &str) -> bool {
    matches!(api_version, "extensions/v1beta1" | "apps/v1beta1")
}
