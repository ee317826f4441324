//! What makes a StatefulSet's pod that pod and no other: its name, its ordinal, its claims.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use kube::api::ObjectMeta;

use crate::control::{controller_ref, pod_from_template};
use crate::workloads::history::HASH;

/// Label with the pod's own name.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// Label with the pod's ordinal, from v1.28 on.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// `web-3` → 3, where the parent is `web`.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    let (parent, n) = name.rsplit_once('-')?;
    if Some(parent) != set.metadata.name.as_deref() || !n.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    n.parse().ok()
}

fn claim_templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|s| s.volume_claim_templates.as_deref()).unwrap_or_default()
}

fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    let name = |m: &ObjectMeta| m.name.clone().unwrap_or_default();
    format!("{}-{}-{ordinal}", name(&template.metadata), name(&set.metadata))
}

/// The claims of the pod with that ordinal.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selected = set.spec.as_ref().and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
    claim_templates(set)
        .iter()
        .map(|t| {
            let mut claim = t.clone();
            claim.metadata.name = Some(claim_name(set, t, ordinal));
            claim.metadata.namespace = set.metadata.namespace.clone();
            claim.metadata.labels.get_or_insert_default().extend(selected.clone());
            claim.status = None;
            claim
        })
        .collect()
}

/// Makes the pod's volumes of the claim templates' names those claims.
pub(super) fn set_storage(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let spec = pod.spec.get_or_insert_default();
    let given = spec.volumes.take().unwrap_or_default();
    let mut volumes: Vec<Volume> = claim_templates(set)
        .iter()
        .map(|t| Volume {
            name: t.metadata.name.clone().unwrap_or_default(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, t, ordinal),
                read_only: None,
            }),
            ..Default::default()
        })
        .collect();
    let claimed: Vec<String> = volumes.iter().map(|v| v.name.clone()).collect();
    volumes.extend(given.into_iter().filter(|v| !claimed.contains(&v.name)));
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
}

/// Whether a pod has its name, namespace and name label.
pub(super) fn identity_matches(set: &StatefulSet, pod: &Pod, ordinal: i32) -> bool {
    let name = pod_name(set, ordinal);
    pod.metadata.name.as_deref() == Some(&name)
        && pod.metadata.namespace == set.metadata.namespace
        && pod.metadata.labels.as_ref().and_then(|l| l.get(POD_NAME)) == Some(&name)
}

/// Whether a pod's volumes are its claims.
pub(super) fn storage_matches(set: &StatefulSet, pod: &Pod, ordinal: i32) -> bool {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    claim_templates(set).iter().all(|t| {
        let wanted = claim_name(set, t, ordinal);
        volumes.iter().any(|v| {
            Some(&v.name) == t.metadata.name.as_ref()
                && v.persistent_volume_claim.as_ref().is_some_and(|c| c.claim_name == wanted)
        })
    })
}

/// Puts a pod's name label and volumes right.
pub(super) fn set_identity(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let name = pod_name(set, ordinal);
    pod.metadata.name = Some(name.clone());
    pod.metadata.namespace = set.metadata.namespace.clone();
    pod.metadata.labels.get_or_insert_default().insert(POD_NAME.into(), name);
}

/// The name of the pod with that ordinal.
pub(super) fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or_default())
}

/// A new pod with that ordinal, of a revision's template.
pub(super) fn new_pod(
    set: &StatefulSet,
    template: &PodTemplateSpec,
    revision: &str,
    ordinal: i32,
    server_minor: u32,
) -> Pod {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let mut pod = pod_from_template(template, &controller_ref(set), namespace);
    set_identity(set, &mut pod, ordinal);
    let labels: &mut BTreeMap<String, String> = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.into(), revision.to_string());
    if server_minor >= 28 {
        labels.insert(POD_INDEX.into(), ordinal.to_string());
    }
    let name = pod.metadata.name.clone();
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = name;
    spec.subdomain = set.spec.as_ref().and_then(|s| s.service_name.clone()).filter(|s| !s.is_empty());
    set_storage(set, &mut pod, ordinal);
    pod
}

/// The revision that a pod was made from.
pub(super) fn pod_revision(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|l| l.get(HASH)).map(String::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set() -> StatefulSet {
        serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "namespace": "ns", "uid": "u"},
            "spec": {"serviceName": "nginx", "selector": {"matchLabels": {"app": "nginx"}},
                "template": {"metadata": {"labels": {"app": "nginx"}}, "spec": {"containers": [{"name": "c"}],
                    "volumes": [{"name": "www", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "www"}, "spec": {}}]}}))
        .unwrap()
    }

    #[test]
    fn a_pod_has_its_name_host_name_and_claims() {
        let set = set();
        let template = set.spec.as_ref().unwrap().template.clone();
        let pod = new_pod(&set, &template, "web-abc", 2, 20);
        assert_eq!(pod.metadata.name.as_deref(), Some("web-2"));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-"));
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-2"), Some("nginx")));
        let volumes = spec.volumes.as_ref().unwrap();
        assert_eq!(volumes.len(), 2);
        assert_eq!(volumes[0].persistent_volume_claim.as_ref().unwrap().claim_name, "www-web-2");
        assert!(identity_matches(&set, &pod, 2) && storage_matches(&set, &pod, 2));
        assert!(!storage_matches(&set, &pod, 1));
        assert_eq!(ordinal(&set, &pod), Some(2));
        assert_eq!(pod_revision(&pod), "web-abc");
        let claim = &claims(&set, 2)[0];
        assert_eq!(claim.metadata.labels.as_ref().unwrap()["app"], "nginx");
    }

    #[test]
    fn other_names_have_no_ordinal() {
        let pod = |name: &str| Pod {
            metadata: ObjectMeta { name: Some(name.into()), ..Default::default() },
            ..Default::default()
        };
        for name in ["web", "web-", "web-x", "other-1", "web-+1", "web-1-2"] {
            assert_eq!(ordinal(&set(), &pod(name)), None, "{name}");
        }
    }
}
