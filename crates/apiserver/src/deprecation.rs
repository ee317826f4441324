//! Warnings of API versions that will go: v1.20's table, and what definitions of custom resources say.

use pilothouse_api::scheme::Resource;
use pilothouse_apimachinery::version::Release;

/// Group, version, kinds (empty for all), release of deprecation, release of removal, replacement.
type Row = (&'static str, &'static str, &'static [&'static str], u32, u32, &'static str);

const V1_20: &[Row] = &[
    ("extensions", "v1beta1", &["Ingress"], 14, 22, "networking.k8s.io/v1 Ingress"),
    ("networking.k8s.io", "v1beta1", &["Ingress"], 19, 22, "networking.k8s.io/v1 Ingress"),
    ("networking.k8s.io", "v1beta1", &["IngressClass"], 19, 22, "networking.k8s.io/v1 IngressClassList"),
    (
        "rbac.authorization.k8s.io",
        "v1alpha1",
        &["ClusterRole"],
        17,
        22,
        "rbac.authorization.k8s.io/v1 ClusterRole",
    ),
    (
        "rbac.authorization.k8s.io",
        "v1alpha1",
        &["ClusterRoleBinding"],
        17,
        22,
        "rbac.authorization.k8s.io/v1 ClusterRoleBinding",
    ),
    ("rbac.authorization.k8s.io", "v1alpha1", &["Role"], 17, 22, "rbac.authorization.k8s.io/v1 Role"),
    (
        "rbac.authorization.k8s.io",
        "v1alpha1",
        &["RoleBinding"],
        17,
        22,
        "rbac.authorization.k8s.io/v1 RoleBinding",
    ),
    (
        "rbac.authorization.k8s.io",
        "v1beta1",
        &["ClusterRole"],
        17,
        22,
        "rbac.authorization.k8s.io/v1 ClusterRole",
    ),
    (
        "rbac.authorization.k8s.io",
        "v1beta1",
        &["ClusterRoleBinding"],
        17,
        22,
        "rbac.authorization.k8s.io/v1 ClusterRoleBinding",
    ),
    ("rbac.authorization.k8s.io", "v1beta1", &["Role"], 17, 22, "rbac.authorization.k8s.io/v1 Role"),
    (
        "rbac.authorization.k8s.io",
        "v1beta1",
        &["RoleBinding"],
        17,
        22,
        "rbac.authorization.k8s.io/v1 RoleBinding",
    ),
    (
        "apiextensions.k8s.io",
        "v1beta1",
        &["CustomResourceDefinition"],
        16,
        22,
        "apiextensions.k8s.io/v1 CustomResourceDefinition",
    ),
    (
        "admissionregistration.k8s.io",
        "v1beta1",
        &["MutatingWebhookConfiguration"],
        16,
        22,
        "admissionregistration.k8s.io/v1 MutatingWebhookConfiguration",
    ),
    (
        "admissionregistration.k8s.io",
        "v1beta1",
        &["ValidatingWebhookConfiguration"],
        16,
        22,
        "admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration",
    ),
    ("apiregistration.k8s.io", "v1beta1", &["APIService"], 19, 22, "apiregistration.k8s.io/v1 APIService"),
    (
        "certificates.k8s.io",
        "v1beta1",
        &["CertificateSigningRequest"],
        19,
        22,
        "certificates.k8s.io/v1 CertificateSigningRequest",
    ),
    ("coordination.k8s.io", "v1beta1", &["Lease"], 19, 22, "coordination.k8s.io/v1 Lease"),
    ("scheduling.k8s.io", "v1beta1", &["PriorityClass"], 14, 22, "scheduling.k8s.io/v1 PriorityClass"),
    ("scheduling.k8s.io", "v1alpha1", &["PriorityClass"], 14, 22, "scheduling.k8s.io/v1 PriorityClass"),
    ("storage.k8s.io", "v1beta1", &["CSIDriver"], 19, 22, "storage.k8s.io/v1 CSIDriver"),
    ("storage.k8s.io", "v1beta1", &["CSINode"], 17, 22, "storage.k8s.io/v1 CSINode"),
    ("storage.k8s.io", "v1beta1", &["StorageClass"], 19, 22, "storage.k8s.io/v1 StorageClass"),
    ("storage.k8s.io", "v1beta1", &["VolumeAttachment"], 19, 22, "storage.k8s.io/v1 VolumeAttachment"),
    ("", "v1", &["ComponentStatus"], 19, 0, ""),
];

const NEWEST: &[Row] = &[
    ("", "v1", &["ComponentStatus"], 19, 0, ""),
    ("", "v1", &["Endpoints"], 33, 0, "discovery.k8s.io/v1 EndpointSlice"),
    ("batch", "v1beta1", &["CronJob"], 21, 25, "batch/v1 CronJob"),
    ("policy", "v1beta1", &["PodDisruptionBudget"], 21, 25, "policy/v1 PodDisruptionBudget"),
    ("discovery.k8s.io", "v1beta1", &["EndpointSlice"], 21, 25, "discovery.k8s.io/v1 EndpointSlice"),
    (
        "autoscaling",
        "v2beta1",
        &["HorizontalPodAutoscaler"],
        22,
        25,
        "autoscaling/v2 HorizontalPodAutoscaler",
    ),
    (
        "autoscaling",
        "v2beta2",
        &["HorizontalPodAutoscaler"],
        23,
        26,
        "autoscaling/v2 HorizontalPodAutoscaler",
    ),
    ("extensions", "v1beta1", &[], 14, 16, "apps/v1"),
    ("apps", "v1beta1", &[], 9, 16, "apps/v1"),
    ("apps", "v1beta2", &[], 9, 16, "apps/v1"),
];

/// A version that is on the way out.
pub struct Deprecated {
    /// What clients are told.
    pub warning: String,
    /// The minor release that has it no more, where that is known.
    pub removed: Option<u32>,
}

/// Whether the version of a resource is on the way out.
pub fn deprecated(release: Release, resource: &Resource) -> Option<Deprecated> {
    if let Some(custom) = resource.as_custom() {
        let warning = custom.deprecation_warning.clone()?;
        return Some(Deprecated { warning, removed: None });
    }
    // What v1.20 warned of is still accepted, and warned of as before.
    let newer = if release == Release::V1_20 { &[][..] } else { NEWEST };
    let (_, _, _, since, until, instead) = newer.iter().chain(V1_20).find(|(g, v, kinds, ..)| {
        *g == &*resource.group
            && *v == &*resource.version
            && (kinds.is_empty() || kinds.contains(&&*resource.kind))
    })?;
    let mut text = format!("{} {} is deprecated in v1.{since}+", resource.api_version, resource.kind);
    if *until > 0 {
        text.push_str(&format!(", unavailable in v1.{until}+"));
    }
    if !instead.is_empty() {
        text.push_str(&format!("; use {instead}"));
    }
    Some(Deprecated { warning: text, removed: Some(*until).filter(|u| *u > 0) })
}
