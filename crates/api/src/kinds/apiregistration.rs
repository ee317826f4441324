//! `APIService` of `apiregistration.k8s.io`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{
    Value, bool_at, copy, get, get_i64, has, json, list_at, set, set_default, str_at,
};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::time::Timestamp;

use super::checks::{invalid_each, metadata_for_status};
use super::columns::{AGE, NAME, text};
use super::{Context, Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell};

const GROUP: &str = "apiregistration.k8s.io";

/// The family: one kind.
pub static KINDS: &[&Kind] = &[&API_SERVICE];

/// The kind.
pub static API_SERVICE: Kind = Kind {
    namespaced: false,
    categories: &["api-extensions"],
    allow_unconditional_update: false,
    storage_prefix: "apiregistration.k8s.io/apiservices",
    storage_version: "apiregistration.k8s.io/v1",
    subresources: &[STATUS],
    name_fn: names::path_segment_name,
    default: |service, _| {
        if has(service, &["spec", "service"]) {
            set_default(service, &["spec", "service", "port"], 443);
        }
        set_default(service, &["status"], json!({}));
    },
    prepare_create,
    prepare_update: |new, old, context| {
        if context.subresource == "status" {
            copy(new, old, &["spec"]);
            metadata_for_status(new, old);
        } else {
            copy(new, old, &["status"]);
        }
    },
    validate: |service, _| faults(service),
    validate_update: |new, _, context| {
        if context.subresource == "status" { ErrorList::new() } else { faults(new) }
    },
    columns: &[
        NAME,
        text("Service", "The reference to the service that hosts this API endpoint."),
        text("Available", "Whether this service is available."),
        AGE,
    ],
    row,
    update_checks: (1, 1),
    ..Kind::new(
        "APIService",
        "apiservices",
        "apiservice",
        &[Version::always(GROUP, "v1"), Version::older(GROUP, "v1beta1")],
    )
};

/// A service without a `service` is this server itself: available at once.
fn prepare_create(service: &mut Value, _context: &Context) {
    let status = if has(service, &["spec", "service"]) {
        json!({})
    } else {
        json!({"conditions": [{
            "type": "Available",
            "status": "True",
            "lastTransitionTime": Timestamp::now().rfc3339(),
            "reason": "Local",
            "message": "Local APIServices are always available",
        }]})
    };
    set(service, &["status"], status);
}

fn faults(service: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    let (group, version) = (str_at(service, &["spec", "group"]), str_at(service, &["spec", "version"]));
    let (name, expected) = (str_at(service, &["metadata", "name"]), format!("{version}.{group}"));
    if !name.is_empty() && names::path_segment_name(name, false).is_empty() && name != expected {
        let why = format!("must be `spec.version+\".\"+spec.group`: {expected:?}");
        errs.push(field::invalid(&Path::new("metadata.name"), name, &why));
    }
    if group.is_empty() && version != "v1" {
        errs.push(field::required(
            &path.child("group"),
            "only v1 may have an empty group and it better be legacy kube",
        ));
    }
    if !group.is_empty() {
        errs.extend(invalid_each(&path.child("group"), group, names::dns1123_subdomain(group)));
    }
    errs.extend(invalid_each(&path.child("version"), version, names::dns1035_label(version)));
    for (name, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let n = get_i64(service, &["spec", name]);
        if !(1..=most).contains(&n) {
            let why = format!("must be positive and less than {most}");
            errs.push(field::invalid(&path.child(name), n, &why));
        }
    }
    let bundle = STANDARD.decode(str_at(service, &["spec", "caBundle"])).unwrap_or_default();
    let insecure = bool_at(service, &["spec", "insecureSkipTLSVerify"]);
    let reference = get(service, &["spec", "service"]);
    if reference.is_null() {
        if !bundle.is_empty() {
            let shown = format!("{} bytes", bundle.len());
            let why = "local APIServices may not have a caBundle";
            errs.push(field::invalid(&path.child("caBundle"), shown, why));
        }
        if insecure {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            errs.push(field::invalid(&path.child("insecureSkipTLSVerify"), true, why));
        }
        return errs;
    }
    let at = path.child("service");
    for name in ["namespace", "name"] {
        if str_at(reference, &[name]).is_empty() {
            errs.push(field::required(&at.child(name), ""));
        }
    }
    let port = get_i64(reference, &["port"]);
    let messages = names::port_number(port);
    if !messages.is_empty() {
        let why = format!("port is not valid: {}", messages.concat());
        errs.push(field::invalid(&at.child("port"), port, &why));
    }
    if insecure && !bundle.is_empty() {
        let why = "may not be true if caBundle is present";
        errs.push(field::invalid(&path.child("insecureSkipTLSVerify"), true, why));
    }
    errs
}

fn row(service: &Value, context: &RowContext) -> Vec<Value> {
    let reference = get(service, &["spec", "service"]);
    let hosted = if reference.is_null() {
        "Local".to_string()
    } else {
        format!("{}/{}", str_at(reference, &["namespace"]), str_at(reference, &["name"]))
    };
    let condition =
        list_at(service, &["status", "conditions"]).iter().find(|c| str_at(c, &["type"]) == "Available");
    let available = match condition.map(|c| (str_at(c, &["status"]), str_at(c, &["reason"]))) {
        None => "Unknown".to_string(),
        Some((status, reason)) if status != "True" && !reason.is_empty() => format!("{status} ({reason})"),
        Some((status, _)) => status.to_string(),
    };
    vec![name_cell(service), hosted.into(), available.into(), age_cell(service, context)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_faults() {
        let good = json!({"metadata": {"name": "v1.a.b"}, "spec": {"group": "a.b", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}});
        assert!(faults(&good).is_empty());
        let bad = json!({"metadata": {"name": "x"}, "spec": {"group": "a.b", "version": "v1", "groupPriorityMinimum": 0, "versionPriority": 1001,
            "service": {"name": "s", "port": 443}}});
        let texts: Vec<String> = faults(&bad).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "metadata.name: Invalid value: \"x\": must be `spec.version+\".\"+spec.group`: \"v1.a.b\"",
                "spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000",
                "spec.versionPriority: Invalid value: 1001: must be positive and less than 1000",
                "spec.service.namespace: Required value",
            ]
        );
    }

    #[test]
    fn rows() {
        let s = json!({"metadata": {"name": "v1.a.b"}, "spec": {"service": {"namespace": "n", "name": "s"}},
            "status": {"conditions": [{"type": "Available", "status": "False", "reason": "MissingEndpoints"}]}});
        assert_eq!(row(&s, &RowContext { now: 0 })[1..3], [json!("n/s"), json!("False (MissingEndpoints)")]);
    }
}
