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
        "metadata.namespace" => resource.namespaced || !resource.is_custom(),
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
