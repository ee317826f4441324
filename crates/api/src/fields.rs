//! Field selectors of requests: which fields a resource lets them name.

use pilothouse_apimachinery::field_selector::FieldSelector;
use pilothouse_apimachinery::go;
use pilothouse_apimachinery::status::{Result, Status};

use crate::scheme::Resource;

/// Parses a request's field selector. 400 where it is malformed or names a field that cannot be selected by.
pub fn parse(resource: &Resource, text: &str) -> Result<FieldSelector> {
    let mut selector = FieldSelector::parse(text).map_err(Status::bad_request)?;
    for term in &mut selector.terms {
        // The old name of a pod's node.
        if &*resource.kind == "Pod" && term.field == "spec.host" {
            term.field = "spec.nodeName".into();
        }
        if let Some(fault) = fault(resource, &term.field) {
            return Err(Status::bad_request(fault));
        }
    }
    Ok(selector)
}

fn fault(resource: &Resource, field: &str) -> Option<String> {
    let known = match field {
        "metadata.name" => true,
        // Cluster-wide kinds that have a list of their own leave it out.
        "metadata.namespace" => {
            resource.namespaced || (!resource.is_custom() && resource.selectable_names.is_empty())
        }
        _ => resource.selectable_names.iter().any(|n| &**n == field),
    };
    if known {
        return None;
    }
    Some(match (&*resource.kind, &*resource.version) {
        _ if !resource.is_custom() && resource.selectable_names.is_empty() => {
            format!(
                "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                go::quote(field)
            )
        }
        ("StatefulSet", version) => {
            format!("field label not supported for apps{version}.StatefulSet: {field}")
        }
        ("Job", "v1") => format!("field label {} not supported for batchv1.Job", go::quote(field)),
        ("CronJob", _) => format!("field label {} not supported for \"CronJob\"", go::quote(field)),
        _ => format!("field label not supported: {field}"),
    })
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::{NEWEST, Release};

    use crate::scheme::Scheme;

    #[test]
    fn each_kind_has_fields_of_its_own() {
        let fault = |release, path: (&str, &str, &str), field: &str| {
            let scheme = Scheme::new(release);
            let resource = scheme.resource(path.0, path.1, path.2).unwrap();
            super::fault(&resource, field)
        };
        let none = "is not a known field selector: only \"metadata.name\", \"metadata.namespace\"";
        let v1_20 = Release::V1_20;
        for (release, path, field, expected) in [
            (v1_20, ("", "v1", "configmaps"), "spec.x", Some(format!("\"spec.x\" {none}"))),
            (v1_20, ("", "v1", "persistentvolumes"), "metadata.namespace", None),
            (
                v1_20,
                ("apps", "v1", "replicasets"),
                "status.replicas",
                Some(format!("\"status.replicas\" {none}")),
            ),
            (NEWEST, ("apps", "v1", "replicasets"), "status.replicas", None),
            (v1_20, ("", "v1", "replicationcontrollers"), "status.replicas", None),
            (v1_20, ("", "v1", "pods"), "status.podIPs", None),
            (
                v1_20,
                ("", "v1", "pods"),
                "spec.hostNetwork",
                Some("field label not supported: spec.hostNetwork".into()),
            ),
            (NEWEST, ("", "v1", "pods"), "spec.hostNetwork", None),
            (
                v1_20,
                ("", "v1", "nodes"),
                "metadata.namespace",
                Some("field label not supported: metadata.namespace".into()),
            ),
            (v1_20, ("batch", "v1beta1", "cronjobs"), "status.successful", None),
            (
                v1_20,
                ("batch", "v1beta1", "cronjobs"),
                "spec.x",
                Some("field label \"spec.x\" not supported for \"CronJob\"".into()),
            ),
            (
                v1_20,
                ("batch", "v1", "jobs"),
                "spec.x",
                Some("field label \"spec.x\" not supported for batchv1.Job".into()),
            ),
        ] {
            assert_eq!(fault(release, path, field), expected, "{path:?} {field}");
        }
    }
}
