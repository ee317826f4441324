//! Which other objects a pod refers to by name.

use pilothouse_apimachinery::json::Value;

use crate::json::{containers, list_at, str_at};

/// Volume sources with a reference to a secret: the source and the path of the name in it.
const SECRET_SOURCES: &[&[&str]] = &[
    &["secret", "secretName"],
    &["azureFile", "secretName"],
    &["cephfs", "secretRef", "name"],
    &["cinder", "secretRef", "name"],
    &["flexVolume", "secretRef", "name"],
    &["rbd", "secretRef", "name"],
    &["scaleIO", "secretRef", "name"],
    &["iscsi", "secretRef", "name"],
    &["storageos", "secretRef", "name"],
    &["csi", "nodePublishSecretRef", "name"],
];

/// Calls `visit` with the names of all secrets that a pod uses; stops when it says `false`.
pub fn secrets<'a>(pod: &'a Value, visit: &mut dyn FnMut(&'a str) -> bool) -> bool {
    let spec = &pod["spec"];
    let mut names = list_at(spec, &["imagePullSecrets"]).iter().map(|s| str_at(s, &["name"]));
    if !names.all(|n| n.is_empty() || visit(n)) {
        return false;
    }
    for (_, c) in containers(spec) {
        let from = list_at(c, &["envFrom"]).iter().map(|e| str_at(e, &["secretRef", "name"]));
        let env = list_at(c, &["env"]).iter().map(|e| str_at(e, &["valueFrom", "secretKeyRef", "name"]));
        if !from.chain(env).all(|n| n.is_empty() || visit(n)) {
            return false;
        }
    }
    list_at(spec, &["volumes"]).iter().all(|v| {
        let direct = SECRET_SOURCES.iter().map(|p| str_at(v, p));
        let projected = list_at(v, &["projected", "sources"]).iter().map(|s| str_at(s, &["secret", "name"]));
        direct.chain(projected).all(|n| n.is_empty() || visit(n))
    })
}

/// The same for config maps.
pub fn config_maps<'a>(pod: &'a Value, visit: &mut dyn FnMut(&'a str) -> bool) -> bool {
    let spec = &pod["spec"];
    for (_, c) in containers(spec) {
        let from = list_at(c, &["envFrom"]).iter().map(|e| str_at(e, &["configMapRef", "name"]));
        let env = list_at(c, &["env"]).iter().map(|e| str_at(e, &["valueFrom", "configMapKeyRef", "name"]));
        if !from.chain(env).all(|n| n.is_empty() || visit(n)) {
            return false;
        }
    }
    list_at(spec, &["volumes"]).iter().all(|v| {
        let projected =
            list_at(v, &["projected", "sources"]).iter().map(|s| str_at(s, &["configMap", "name"]));
        std::iter::once(str_at(v, &["configMap", "name"])).chain(projected).all(|n| n.is_empty() || visit(n))
    })
}

/// The names of the claims that a pod uses, those of its ephemeral volumes included.
pub fn claims(pod: &Value) -> Vec<String> {
    let name = str_at(pod, &["metadata", "name"]);
    list_at(pod, &["spec", "volumes"])
        .iter()
        .filter_map(|v| match str_at(v, &["persistentVolumeClaim", "claimName"]) {
            "" if v.get("ephemeral").is_some_and(|e| !e.is_null()) => {
                Some(format!("{name}-{}", str_at(v, &["name"])))
            }
            "" => None,
            claim => Some(claim.to_string()),
        })
        .collect()
}

/// Whether a pod uses a secret.
pub fn uses_secret(pod: &Value, name: &str) -> bool {
    !secrets(pod, &mut |n| n != name)
}

/// Whether a pod uses a config map.
pub fn uses_config_map(pod: &Value, name: &str) -> bool {
    !config_maps(pod, &mut |n| n != name)
}

/// Whether a pod only shows what a kubelet runs from a file.
pub fn is_mirror(pod: &Value) -> bool {
    crate::json::entry(pod, &["metadata", "annotations"], "kubernetes.io/config.mirror").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_apimachinery::json::json;

    #[test]
    fn finds_references() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
        "imagePullSecrets": [{"name": "pull"}],
        "initContainers": [{"envFrom": [{"secretRef": {"name": "init"}}]}],
        "containers": [{"env": [{"valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]}],
        "volumes": [
            {"name": "a", "secret": {"secretName": "vol"}},
            {"name": "b", "projected": {"sources": [{"secret": {"name": "proj"}}, {"configMap": {"name": "pcm"}}]}},
            {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
            {"name": "d", "ephemeral": {}},
        ]}});
        for s in ["pull", "init", "vol", "proj"] {
            assert!(uses_secret(&pod, s), "{s}");
        }
        assert!(!uses_secret(&pod, "cm"));
        assert!(uses_config_map(&pod, "cm") && uses_config_map(&pod, "pcm"));
        assert_eq!(claims(&pod), ["claim", "p-d"]);
    }
}
