//! `Node`.

use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{
    Value, bool_at, copy, get, has, json, list_at, map_at, remove, set, str_at, strings_at,
};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::version::Release;

use super::resources;
use crate::go_print::{self, quoted};
use crate::kinds::checks::{invalid_each, strings};
use crate::kinds::columns::{AGE, NAME, text, wide};
use crate::kinds::{Context, Kind, RowContext, STATUS, Subresource, Version};
use crate::table::{age_cell, name_cell};

const ADDRESSES: &str = "List of addresses reachable to the node. Queried from cloud provider, if available. More info: https://kubernetes.io/docs/concepts/nodes/node/#addresses Note: This field is declared as mergeable, but the merge key is not sufficiently unique, which can cause data corruption when it is merged. Callers should instead use a full-replacement patch. See http://pr.k8s.io/79391 for an example.";

/// The kind.
pub static NODE: Kind = Kind {
    namespaced: false,
    short_names: &["no"],
    storage_prefix: "minions",
    subresources: &[
        Subresource {
            name: "proxy",
            gvk: Some(("", "v1", "NodeProxyOptions")),
            verbs: &["create", "delete", "get", "patch", "update"],
        },
        STATUS,
    ],
    default,
    prepare_create: |node, context| {
        if context.release == Release::V1_20 {
            one_cidr(node, &Value::Null);
        }
    },
    prepare_update: |new, old, context| {
        if context.subresource == "status" {
            copy(new, old, &["spec"]);
            return;
        }
        copy(new, old, &["status"]);
        if context.release == Release::V1_20 {
            one_cidr(new, old);
        }
    },
    validate,
    validate_update,
    selectable_field_names: &["spec.unschedulable"],
    selectable_fields: |o| vec![("spec.unschedulable", bool_at(o, &["spec", "unschedulable"]).to_string())],
    columns: &[
        NAME,
        text("Status", "The status of the node"),
        text("Roles", "The roles of the node"),
        AGE,
        text("Version", "Kubelet Version reported by the node."),
        wide("Internal-IP", ADDRESSES),
        wide("External-IP", ADDRESSES),
        wide(
            "OS-Image",
            "OS Image reported by the node from /etc/os-release (e.g. Debian GNU/Linux 7 (wheezy)).",
        ),
        wide(
            "Kernel-Version",
            "Kernel Version reported by the node from 'uname -r' (e.g. 3.16.0-0.bpo.4-amd64).",
        ),
        wide(
            "Container-Runtime",
            "ContainerRuntime Version reported by the node through runtime remote API (e.g. docker://1.5.0).",
        ),
    ],
    row,
    update_checks: (1, 1),
    ..Kind::new("Node", "nodes", "node", &[Version::always("", "v1")])
};

/// Allocatable defaults to capacity; `podCIDR` and the first of `podCIDRs` are one.
fn default(object: &mut Value, _context: &Context) {
    if has(object, &["status", "capacity"]) && !has(object, &["status", "allocatable"]) {
        let capacity = get(object, &["status", "capacity"]).clone();
        set(object, &["status", "allocatable"], capacity);
    }
    let single = str_at(object, &["spec", "podCIDR"]).to_string();
    let first = strings(object, &["spec", "podCIDRs"]).first().map(ToString::to_string);
    match first {
        // An old client that knows only the single field wins.
        Some(first) if !single.is_empty() && first != single => {
            set(object, &["spec", "podCIDRs"], json!([single]));
        }
        Some(first) => set(object, &["spec", "podCIDR"], first),
        None if !single.is_empty() => set(object, &["spec", "podCIDRs"], json!([single])),
        None => {
            remove(object, &["spec", "podCIDR"]);
        }
    }
}

/// v1.20 has nodes with several ranges only behind a gate that is off.
fn one_cidr(node: &mut Value, old: &Value) {
    if strings(old, &["spec", "podCIDRs"]).len() < 2
        && let Some(cidrs) = node.pointer_mut("/spec/podCIDRs").and_then(Value::as_array_mut)
    {
        cidrs.truncate(1);
    }
}

fn validate(object: &Value, _context: &Context) -> ErrorList {
    let mut errs = pods_to_avoid(object);
    errs.extend(taints(object));
    errs.extend(amounts(object));
    errs.extend(pod_cidrs(object));
    errs
}

/// Faults of the annotation that names controllers whose pods the node had better not have.
fn pods_to_avoid(object: &Value) -> ErrorList {
    const KEY: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";
    let path = Path::new("metadata.annotations");
    let text = str_at(object, &["metadata", "annotations", KEY]);
    if text.is_empty() {
        return ErrorList::new();
    }
    let Ok(avoid) = serde_json::from_str::<Value>(text) else {
        let why = crate::decode::json_fault(text.as_bytes()).unwrap_or_else(|| "malformed".into());
        return vec![field::invalid(&path.child("AvoidPods"), KEY, &why)];
    };
    let mut errs = ErrorList::new();
    for (i, entry) in list_at(&avoid, &["preferAvoidPods"]).iter().enumerate() {
        let at = path.child(KEY).index(i).child("PodSignature");
        let controller = get(entry, &["podSignature", "podController"]);
        if controller.is_null() {
            // Of the signature and of its controller: both by the one name.
            errs.extend([field::required(&at, ""), field::required(&at, "")]);
        } else if !bool_at(controller, &["controller"]) {
            let at = at.child("PodController").child("Controller");
            errs.push(field::invalid(&at, false, "must point to a controller"));
        }
    }
    errs
}

fn amounts(object: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    for list in ["capacity", "allocatable"] {
        for (name, value) in map_at(object, &["status", list]).into_iter().flatten() {
            let path = Path::new("status").child(list).child(name);
            errs.extend(resources::value_faults(name, value, &path));
        }
    }
    errs
}

fn pod_cidrs(object: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec.podCIDRs");
    let cidrs = strings(object, &["spec", "podCIDRs"]);
    let shown = || go_print::strings(get(object, &["spec", "podCIDRs"]));
    for (i, cidr) in cidrs.iter().enumerate() {
        if names::parse_cidr(cidr).is_none() {
            errs.push(field::invalid_shown(&path.index(i), &shown(), "must be valid CIDR"));
        }
    }
    if cidrs.len() > 1 {
        let families: BTreeSet<bool> =
            cidrs.iter().filter_map(|c| names::parse_cidr(c)).map(|(ip, _)| ip.is_ipv6()).collect();
        if let Some(bad) = cidrs.iter().find(|c| names::parse_cidr(c).is_none()) {
            errs.push(field::internal(
                &path,
                &format!(
                    "invalid PodCIDRs. failed to check with dual stack with error:invalid CIDR address: {bad}"
                ),
            ));
        }
        if families.len() < 2 || cidrs.len() > 2 {
            let why = "may specify no more than one CIDR for each IP family";
            errs.push(field::invalid_shown(&path, &shown(), why));
        }
        let mut seen = BTreeSet::new();
        for (i, cidr) in cidrs.iter().enumerate() {
            if !seen.insert(cidr) {
                errs.push(field::duplicate(&path.index(i), *cidr));
            }
        }
    }
    errs
}

/// Faults of a node's taints. Their path says `metadata`, as in Kubernetes.
fn taints(object: &Value) -> ErrorList {
    const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
    let mut errs = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (i, taint) in list_at(object, &["spec", "taints"]).iter().enumerate() {
        let path = Path::new("metadata.taints").index(i);
        let (key, value, effect) =
            (str_at(taint, &["key"]), str_at(taint, &["value"]), str_at(taint, &["effect"]));
        errs.extend(names::label_name(key, &path.child("key")));
        let faults = names::label_value(value);
        if !faults.is_empty() {
            errs.push(field::invalid(&path.child("value"), value, &faults.join(";")));
        }
        if effect.is_empty() {
            errs.push(field::required(&path.child("effect"), ""));
        } else if !EFFECTS.contains(&effect) {
            errs.push(field::not_supported(&path.child("effect"), effect, EFFECTS));
        }
        if !seen.insert((key, effect)) {
            let shown = go_print::structure(
                "core.Taint",
                &[
                    ("Key", quoted(key)),
                    ("Value", quoted(value)),
                    ("Effect", quoted(effect)),
                    ("TimeAdded", "(*v1.Time)(nil)".into()),
                ],
            );
            let mut e = field::duplicate_shown(&path, &shown);
            e.body.push_str(": taints must be unique by key and effect pair");
            errs.push(e);
        }
    }
    errs
}

fn validate_update(new: &Value, old: &Value, context: &Context) -> ErrorList {
    // Kubernetes checks the new object by itself and again as the outcome of the update.
    let mut errs = if context.subresource.is_empty() { validate(new, context) } else { ErrorList::new() };
    errs.extend(amounts(new));
    let mut seen = BTreeSet::new();
    for (i, address) in list_at(new, &["status", "addresses"]).iter().enumerate() {
        let (type_, text) = (str_at(address, &["type"]), str_at(address, &["address"]));
        if !seen.insert((type_, text)) {
            let shown = go_print::structure(
                "core.NodeAddress",
                &[("Type", quoted(type_)), ("Address", quoted(text))],
            );
            errs.push(field::duplicate_shown(&Path::new("status.addresses").index(i), &shown));
        }
    }
    let (before, after) = (strings(old, &["spec", "podCIDRs"]), strings(new, &["spec", "podCIDRs"]));
    if !before.is_empty() {
        let changes = if before.len() == after.len() {
            before.iter().zip(&after).filter(|(a, b)| a != b).count()
        } else {
            1
        };
        for _ in 0..changes {
            errs.push(field::forbidden(
                &Path::new("spec.podCIDRs"),
                "node updates may not change podCIDR except from \"\" to valid",
            ));
        }
    }
    let provider = str_at(old, &["spec", "providerID"]);
    if !provider.is_empty() && provider != str_at(new, &["spec", "providerID"]) {
        errs.push(field::forbidden(
            &Path::new("spec.providerID"),
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    if let Some(source) = new.pointer("/spec/configSource").filter(|s| !s.is_null()) {
        errs.extend(config_source(source, &Path::new("spec.configSource"), false));
    }
    for name in ["assigned", "active", "lastKnownGood"] {
        let source = get(new, &["status", "config", name]);
        if !source.is_null() {
            errs.extend(config_source(source, &Path::new("status.config").child(name), true));
        }
    }
    errs.extend(taints(new));
    // Labels, annotations and the status may change, and these parts of the spec; what is empty may be filled.
    let protected = |node: &Value| {
        let mut spec = get(node, &["spec"]).clone();
        for name in ["taints", "unschedulable", "configSource"] {
            remove(&mut spec, &[name]);
        }
        for (name, free) in [
            ("podCIDRs", before.is_empty()),
            ("podCIDR", before.is_empty()),
            ("providerID", provider.is_empty()),
        ] {
            if free {
                remove(&mut spec, &[name]);
            }
        }
        spec
    };
    if protected(new) != protected(old) {
        errs.push(field::forbidden(
            &Path::new("[]"),
            "node updates may only change labels, taints, or capacity (or configSource, if the DynamicKubeletConfig feature gate is enabled)",
        ));
    }
    errs
}

/// Faults of what a kubelet of v1.20 is configured from. Its status knows the very object.
fn config_source(source: &Value, path: &Path, in_status: bool) -> ErrorList {
    let mut errs = ErrorList::new();
    let reference = get(source, &["configMap"]);
    if reference.is_null() {
        let shown = go_print::structure(
            "core.NodeConfigSource",
            &[("ConfigMap", "(*core.ConfigMapNodeConfigSource)(nil)".into())],
        );
        errs.push(field::invalid_shown(path, &shown, "exactly one reference subfield must be non-nil"));
        return errs;
    }
    let path = path.child("configMap");
    for name in ["uid", "resourceVersion"] {
        let (at, given) = (path.child(name), !str_at(reference, &[name]).is_empty());
        if in_status && !given {
            errs.push(field::required(&at, &format!("{name} must be set in status")));
        } else if !in_status && given {
            errs.push(field::forbidden(&at, &format!("{name} must not be set in spec")));
        }
    }
    let checks: [(&str, fn(&str) -> Vec<String>); 3] = [
        ("namespace", names::dns1123_label),
        ("name", |name| names::dns1123_subdomain_name(name, false)),
        ("kubeletConfigKey", names::config_map_key),
    ];
    for (name, faults) in checks {
        match str_at(reference, &[name]) {
            "" => errs.push(field::required(&path.child(name), &format!("{name} must be set"))),
            text => errs.extend(invalid_each(&path.child(name), text, faults(text))),
        }
    }
    errs
}

/// `Ready`, `NotReady,SchedulingDisabled`, `Unknown`.
pub fn status_text(object: &Value) -> String {
    let ready = list_at(object, &["status", "conditions"]).iter().rfind(|c| str_at(c, &["type"]) == "Ready");
    let mut text = match ready.map(|c| str_at(c, &["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_string();
    if bool_at(object, &["spec", "unschedulable"]) {
        text.push_str(",SchedulingDisabled");
    }
    text
}

/// The roles that a node's labels give it, sorted; `<none>` where there are none.
pub fn roles_text(object: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in strings_at(object, &["metadata", "labels"]) {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some("") => {}
            Some(role) => {
                roles.insert(role);
            }
            None if key == "kubernetes.io/role" && !value.is_empty() => {
                roles.insert(value);
            }
            None => {}
        }
    }
    if roles.is_empty() { "<none>".into() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

fn row(object: &Value, context: &RowContext) -> Vec<Value> {
    let address = |type_: &str| {
        list_at(object, &["status", "addresses"])
            .iter()
            .find(|a| str_at(a, &["type"]) == type_)
            .map_or("<none>", |a| str_at(a, &["address"]))
    };
    let info = |name: &str| match str_at(object, &["status", "nodeInfo", name]) {
        "" => "<unknown>",
        text => text,
    };
    vec![
        name_cell(object),
        status_text(object).into(),
        roles_text(object).into(),
        age_cell(object, context),
        str_at(object, &["status", "nodeInfo", "kubeletVersion"]).into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        info("osImage").into(),
        info("kernelVersion").into(),
        info("containerRuntimeVersion").into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "v1",
        allow_privileged: true,
        gates: &[],
    };

    #[test]
    fn defaults() {
        let mut n = json!({"spec": {"podCIDR": "10.1.0.0/24"}, "status": {"capacity": {"cpu": "4"}}});
        default(&mut n, &CONTEXT);
        assert_eq!(n["spec"]["podCIDRs"], json!(["10.1.0.0/24"]));
        assert_eq!(n["status"]["allocatable"], json!({"cpu": "4"}));
        let mut n = json!({"spec": {"podCIDRs": ["10.2.0.0/24", "fd00::/64"]}});
        default(&mut n, &CONTEXT);
        assert_eq!(n["spec"]["podCIDR"], "10.2.0.0/24");
    }

    #[test]
    fn taint_faults() {
        let n = json!({"spec": {"taints": [
            {"key": "a", "effect": "NoSchedule"}, {"key": "a", "value": "b", "effect": "NoSchedule"}, {"key": "b", "effect": "Odd"}]}});
        let texts: Vec<String> = validate(&n, &CONTEXT).iter().map(ToString::to_string).collect();
        assert!(
            texts[0].starts_with("metadata.taints[1]: Duplicate value: core.Taint{Key:\"a\", Value:\"b\"")
        );
        assert!(texts[1].starts_with("metadata.taints[2].effect: Unsupported value: \"Odd\""));
    }

    #[test]
    fn cidr_is_set_once() {
        let old = json!({"spec": {"podCIDRs": ["10.1.0.0/24"], "providerID": "x://1"}});
        let new = json!({"spec": {"podCIDRs": ["10.2.0.0/24"]}});
        let fields: Vec<String> =
            validate_update(&new, &old, &CONTEXT).into_iter().map(|e| e.field).collect();
        // The last is about the object as a whole.
        assert_eq!(fields, ["spec.podCIDRs", "spec.providerID", "[]"]);
    }

    #[test]
    fn v1_20_keeps_one_range() {
        let two = json!({"spec": {"podCIDRs": ["10.1.0.0/24", "fd00::/64"]}});
        let mut n = two.clone();
        (NODE.prepare_create)(&mut n, &CONTEXT);
        assert_eq!(n["spec"]["podCIDRs"], json!(["10.1.0.0/24"]));
        let mut n = two.clone();
        (NODE.prepare_update)(&mut n, &two, &CONTEXT);
        assert_eq!(n["spec"]["podCIDRs"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn updates_are_checked_twice() {
        let old = json!({"spec": {}});
        let new = json!({"spec": {"taints": [{"key": "a", "effect": "Odd"}], "configSource": {"configMap": {"uid": "u", "name": "n", "namespace": "N"}}}});
        let texts: Vec<String> = validate_update(&new, &old, &CONTEXT)
            .iter()
            .map(|e| e.to_string().chars().take(62).collect())
            .collect();
        assert_eq!(
            texts,
            [
                "metadata.taints[0].effect: Unsupported value: \"Odd\": supported v",
                "spec.configSource.configMap.uid: Forbidden: uid must not be set",
                "spec.configSource.configMap.namespace: Invalid value: \"N\": a lo",
                "spec.configSource.configMap.kubeletConfigKey: Required value: k",
                "metadata.taints[0].effect: Unsupported value: \"Odd\": supported v",
            ]
            .map(|t| t.chars().take(62).collect::<String>())
        );
    }

    #[test]
    fn rows() {
        let n = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/master": "", "kubernetes.io/role": "edge"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "Unknown"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.20.2", "osImage": "Debian"}}});
        let cells = row(&n, &RowContext { now: 0 });
        assert_eq!(cells[1], json!("NotReady,SchedulingDisabled"));
        assert_eq!(cells[2], json!("edge,master"));
        assert_eq!(
            cells[4..],
            [
                json!("v1.20.2"),
                json!("10.0.0.1"),
                json!("<none>"),
                json!("Debian"),
                json!("<unknown>"),
                json!("<unknown>")
            ]
        );
    }
}
