//! Versions of built-in kinds that are deprecated: the text of the `Warning` header that their clients get.

use pilothouse_apimachinery::version::Release;

use crate::convert::api_version;

/// A deprecated version: minor releases in which it was deprecated and removed (0 where it stays), and what to use
/// instead.
struct Deprecated {
    group: &'static str,
    version: &'static str,
    /// `""` for all kinds of the version.
    kind: &'static str,
    since: u32,
    removed: u32,
    instead: &'static str,
}

const fn old(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    since: u32,
    removed: u32,
    instead: &'static str,
) -> Deprecated {
    Deprecated { group, version, kind, since, removed, instead }
}

const TABLE: &[Deprecated] = &[
    old("", "v1", "ComponentStatus", 19, 0, ""),
    old("", "v1", "Endpoints", 33, 0, "discovery.k8s.io/v1 EndpointSlice"),
    old(
        "admissionregistration.k8s.io",
        "v1beta1",
        "MutatingWebhookConfiguration",
        16,
        22,
        "admissionregistration.k8s.io/v1",
    ),
    old(
        "admissionregistration.k8s.io",
        "v1beta1",
        "ValidatingWebhookConfiguration",
        16,
        22,
        "admissionregistration.k8s.io/v1",
    ),
    old("apiextensions.k8s.io", "v1beta1", "", 16, 22, "apiextensions.k8s.io/v1"),
    old("apiregistration.k8s.io", "v1beta1", "", 19, 22, "apiregistration.k8s.io/v1"),
    old("apps", "v1beta1", "", 8, 16, "apps/v1"),
    old("apps", "v1beta2", "", 9, 16, "apps/v1"),
    old("authentication.k8s.io", "v1beta1", "TokenReview", 19, 22, "authentication.k8s.io/v1"),
    old("authorization.k8s.io", "v1beta1", "", 19, 22, "authorization.k8s.io/v1"),
    old("autoscaling", "v2beta1", "", 22, 25, "autoscaling/v2"),
    old("autoscaling", "v2beta2", "", 23, 26, "autoscaling/v2"),
    old("batch", "v1beta1", "CronJob", 21, 25, "batch/v1"),
    old("certificates.k8s.io", "v1beta1", "CertificateSigningRequest", 19, 22, "certificates.k8s.io/v1"),
    old("coordination.k8s.io", "v1beta1", "Lease", 19, 22, "coordination.k8s.io/v1"),
    old("discovery.k8s.io", "v1beta1", "", 21, 25, "discovery.k8s.io/v1"),
    old("events.k8s.io", "v1beta1", "", 22, 25, "events.k8s.io/v1"),
    old("extensions", "v1beta1", "DaemonSet", 8, 16, "apps/v1"),
    old("extensions", "v1beta1", "Deployment", 8, 16, "apps/v1"),
    old("extensions", "v1beta1", "Ingress", 14, 22, "networking.k8s.io/v1"),
    old("extensions", "v1beta1", "NetworkPolicy", 9, 16, "networking.k8s.io/v1"),
    old("extensions", "v1beta1", "PodSecurityPolicy", 10, 16, "policy/v1beta1"),
    old("extensions", "v1beta1", "ReplicaSet", 8, 16, "apps/v1"),
    old("flowcontrol.apiserver.k8s.io", "v1beta1", "", 23, 26, "flowcontrol.apiserver.k8s.io/v1beta3"),
    old("flowcontrol.apiserver.k8s.io", "v1beta2", "", 26, 29, "flowcontrol.apiserver.k8s.io/v1"),
    old("flowcontrol.apiserver.k8s.io", "v1beta3", "", 29, 32, "flowcontrol.apiserver.k8s.io/v1"),
    old("networking.k8s.io", "v1beta1", "Ingress", 19, 22, "networking.k8s.io/v1"),
    old("networking.k8s.io", "v1beta1", "IngressClass", 19, 22, "networking.k8s.io/v1"),
    old("node.k8s.io", "v1beta1", "", 22, 25, "node.k8s.io/v1"),
    old("policy", "v1beta1", "PodDisruptionBudget", 21, 25, "policy/v1"),
    old("policy", "v1beta1", "PodSecurityPolicy", 21, 25, ""),
    old("rbac.authorization.k8s.io", "v1beta1", "", 17, 22, "rbac.authorization.k8s.io/v1"),
    old("rbac.authorization.k8s.io", "v1alpha1", "", 17, 22, "rbac.authorization.k8s.io/v1"),
    old("scheduling.k8s.io", "v1beta1", "PriorityClass", 14, 22, "scheduling.k8s.io/v1"),
    old("storage.k8s.io", "v1beta1", "CSIDriver", 19, 22, "storage.k8s.io/v1"),
    old("storage.k8s.io", "v1beta1", "CSINode", 17, 22, "storage.k8s.io/v1"),
    old("storage.k8s.io", "v1beta1", "CSIStorageCapacity", 24, 27, "storage.k8s.io/v1"),
    old("storage.k8s.io", "v1beta1", "StorageClass", 19, 22, "storage.k8s.io/v1"),
    old("storage.k8s.io", "v1beta1", "VolumeAttachment", 19, 22, "storage.k8s.io/v1"),
];

/// The warning for a kind in a version, if the release has deprecated it.
pub fn warning(release: Release, group: &str, version: &str, kind: &str) -> Option<String> {
    let found = TABLE.iter().find(|d| {
        d.group == group
            && d.version == version
            && (d.kind.is_empty() || d.kind == kind)
            && d.since <= release.minor
    })?;
    let mut text = format!("{} {kind} is deprecated in v1.{}+", api_version(group, version), found.since);
    if found.removed > 0 {
        text.push_str(&format!(", unavailable in v1.{}+", found.removed));
    }
    match found.instead {
        "" => {}
        whole if whole.contains(' ') => text.push_str(&format!("; use {whole}")),
        instead => text.push_str(&format!("; use {instead} {kind}")),
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let of = |group, version, kind| warning(Release::V1_20, group, version, kind);
        assert_eq!(
            of("extensions", "v1beta1", "Ingress").as_deref(),
            Some(
                "extensions/v1beta1 Ingress is deprecated in v1.14+, unavailable in v1.22+; use networking.k8s.io/v1 Ingress"
            )
        );
        assert_eq!(
            of("", "v1", "ComponentStatus").as_deref(),
            Some("v1 ComponentStatus is deprecated in v1.19+")
        );
        assert_eq!(of("batch", "v1beta1", "CronJob"), None);
        assert_eq!(of("apps", "v1", "Deployment"), None);
    }
}
