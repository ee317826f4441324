//! Kinds of `networking.k8s.io`.

mod ingress;
mod network_policy;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, copy, get, has, json, list_at, set, set_default, str_at};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::version::Release;

use super::checks::{immutable_at, invalid_each, strings};
use super::columns::{AGE, NAME, text};
use super::{Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, joined_cell, name_cell};

pub use ingress::INGRESS;
pub use network_policy::NETWORK_POLICY;

const GROUP: &str = "networking.k8s.io";

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[&INGRESS_CLASS, &INGRESS, &NETWORK_POLICY, &IP_ADDRESS, &SERVICE_CIDR];

/// `IngressClass`.
pub static INGRESS_CLASS: Kind = Kind {
    namespaced: false,
    has_generation: true,
    storage_version: "networking.k8s.io/v1",
    default: |class, context| {
        if context.release > Release::V1_20 && has(class, &["spec", "parameters"]) {
            set_default(class, &["spec", "parameters", "scope"], "Cluster");
        }
    },
    validate: |class, _| class_faults(class),
    validate_update: |new, old, _| {
        let mut errs: ErrorList = immutable_at(new, old, &["spec", "controller"]).into_iter().collect();
        errs.extend(class_faults(new));
        errs
    },
    columns: &[
        NAME,
        text("Controller", "Controller that is responsible for handling this class"),
        text("Parameters", "A reference to a resource with additional parameters"),
        AGE,
    ],
    row: |class: &Value, context: &RowContext| {
        let parameters = match get(class, &["spec", "parameters"]) {
            Value::Null => "<none>".to_string(),
            p => {
                let group = match str_at(p, &["apiGroup"]) {
                    "" => String::new(),
                    group => format!(".{group}"),
                };
                format!("{}{group}/{}", str_at(p, &["kind"]), str_at(p, &["name"]))
            }
        };
        vec![
            name_cell(class),
            str_at(class, &["spec", "controller"]).into(),
            parameters.into(),
            age_cell(class, context),
        ]
    },
    update_checks: (1, 1),
    ..Kind::new(
        "IngressClass",
        "ingressclasses",
        "ingressclass",
        &[Version::always(GROUP, "v1"), Version::always(GROUP, "v1beta1")],
    )
};

/// `IPAddress`: an address of a service, taken.
pub static IP_ADDRESS: Kind = Kind {
    namespaced: false,
    short_names: &["ip"],
    storage_version: "networking.k8s.io/v1",
    name_fn: |name, is_prefix| if is_prefix { Vec::new() } else { names::ip(name) },
    validate: |address, _| {
        let path = Path::new("spec.parentRef");
        if !has(address, &["spec", "parentRef"]) {
            return vec![field::required(&path, "")];
        }
        ["resource", "name"]
            .iter()
            .filter(|f| str_at(address, &["spec", "parentRef", f]).is_empty())
            .map(|f| field::required(&path.child(f), ""))
            .collect()
    },
    validate_update: |new, old, _| {
        if get(new, &["spec", "parentRef"]) == get(old, &["spec", "parentRef"]) {
            ErrorList::new()
        } else {
            let parent = get(new, &["spec", "parentRef"]).clone();
            vec![field::invalid(&Path::new("spec.parentRef"), parent, "field is immutable")]
        }
    },
    columns: &[
        NAME,
        text(
            "ParentRef",
            "ParentRef references the resource that an IPAddress is attached to. An IPAddress must reference a parent object.",
        ),
        AGE,
    ],
    row: |address: &Value, context: &RowContext| {
        let parent = get(address, &["spec", "parentRef"]);
        let text = ["group", "resource", "namespace", "name"]
            .map(|f| str_at(parent, &[f]))
            .into_iter()
            .filter(|s| !s.is_empty())
            .collect::<Vec<_>>()
            .join("/");
        vec![name_cell(address), text.into(), age_cell(address, context)]
    },
    ..Kind::new(
        "IPAddress",
        "ipaddresses",
        "ipaddress",
        &[Version::newer(GROUP, "v1"), Version::newer(GROUP, "v1beta1")],
    )
};

/// `ServiceCIDR`: a range of addresses of services.
pub static SERVICE_CIDR: Kind = Kind {
    namespaced: false,
    subresources: &[STATUS],
    storage_version: "networking.k8s.io/v1",
    prepare_create: |range, _| set(range, &["status"], json!({})),
    prepare_update: |new, old, context| {
        copy(new, old, if context.subresource == "status" { &["spec"] } else { &["status"] });
    },
    validate: |range, _| {
        let path = Path::new("spec.cidrs");
        let cidrs = strings(range, &["spec", "cidrs"]);
        if cidrs.is_empty() {
            return vec![field::required(&path, "at least one CIDR required")];
        }
        cidrs
            .iter()
            .enumerate()
            .flat_map(|(i, cidr)| invalid_each(&path.index(i), cidr, names::cidr(cidr)))
            .collect()
    },
    columns: &[
        NAME,
        text(
            "CIDRs",
            "CIDRs defines the IP blocks in CIDR notation from which to assign service cluster IPs.",
        ),
        AGE,
    ],
    row: |range: &Value, context: &RowContext| {
        vec![name_cell(range), joined_cell(strings(range, &["spec", "cidrs"])), age_cell(range, context)]
    },
    ..Kind::new(
        "ServiceCIDR",
        "servicecidrs",
        "servicecidr",
        &[Version::newer(GROUP, "v1"), Version::newer(GROUP, "v1beta1")],
    )
};

fn class_faults(class: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    let controller = str_at(class, &["spec", "controller"]);
    if controller.len() > 250 {
        errs.push(field::too_long(&path.child("controller"), 250));
    }
    errs.extend(names::domain_prefixed_path(&path.child("controller"), controller));
    let parameters = get(class, &["spec", "parameters"]);
    if !parameters.is_null() {
        errs.extend(typed_reference(parameters, &path.child("parameters")));
    }
    errs
}

/// Faults of a reference to an object of any kind.
fn typed_reference(reference: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if let Some(group) = get(reference, &["apiGroup"]).as_str() {
        errs.extend(invalid_each(&path.child("apiGroup"), group, names::dns1123_subdomain(group)));
    }
    for name in ["kind", "name"] {
        let value = str_at(reference, &[name]);
        let at = path.child(name);
        if value.is_empty() {
            errs.push(field::required(&at, &format!("{name} is required")));
        } else {
            errs.extend(invalid_each(&at, value, names::path_segment_name(value, false)));
        }
    }
    errs
}

/// Whether a service or policy has any rules at the path.
fn is_empty(object: &Value, path: &[&str]) -> bool {
    list_at(object, path).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ingress_classes() {
        let texts: Vec<String> =
            class_faults(&json!({"spec": {"controller": "", "parameters": {"name": "a/b"}}}))
                .iter()
                .map(ToString::to_string)
                .collect();
        assert_eq!(
            texts,
            [
                "spec.controller: Required value",
                "spec.parameters.kind: Required value: kind is required",
                "spec.parameters.name: Invalid value: \"a/b\": may not contain '/'",
            ]
        );
        assert!(class_faults(&json!({"spec": {"controller": "example.com/ingress"}})).is_empty());
        let class = json!({"metadata": {"name": "c"}, "spec": {"controller": "e.c/i", "parameters": {"apiGroup": "k.e", "kind": "P", "name": "n"}}});
        assert_eq!((INGRESS_CLASS.row)(&class, &RowContext { now: 0 })[2], json!("P.k.e/n"));
    }

    #[test]
    fn addresses() {
        let address = json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"resource": "services", "namespace": "a", "name": "b"}}});
        assert_eq!((IP_ADDRESS.row)(&address, &RowContext { now: 0 })[1], json!("services/a/b"));
        assert!((IP_ADDRESS.name_fn)("10.0.0.1", false).is_empty());
    }
}
