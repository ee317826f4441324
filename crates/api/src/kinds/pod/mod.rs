//! Pods, and what they share with every template of them.

mod containers;
pub(crate) mod defaults;
pub(super) mod diff;
mod downward;
mod handlers;
mod image;
mod mounts;
mod printer;
pub mod resources;
mod scheduling;
pub(crate) mod security;
pub(crate) mod spec;
mod storage_volumes;
mod update;
mod volumes;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::version::Release;

use super::access::{is_empty, items_mut, number, part, present, put, text};
use super::{Context, Kind, STATUS, Subresource, Version};
pub(crate) use scheduling::tolerations;
use security::{SECCOMP_CONTAINER, SECCOMP_POD};

/// The kinds of this family.
pub static KINDS: &[&Kind] =
    &[&POD, &super::podtemplate::POD_TEMPLATE, &super::replicationcontroller::REPLICATION_CONTROLLER];

/// What the validation of pods depends on beside the pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// `--allow-privileged`.
    pub(crate) allow_privileged: bool,
    /// Whether a release after v1.20 is served.
    pub(crate) today: bool,
}

impl Rules {
    /// The rules of a request.
    pub(crate) fn of(context: &Context) -> Rules {
        Rules { allow_privileged: context.allow_privileged, today: is_today(context) }
    }
}

/// Whether a release after v1.20 is served.
pub(crate) fn is_today(context: &Context) -> bool {
    context.release > Release::V1_20
}

const fn connect(name: &'static str, kind: &'static str) -> Subresource {
    Subresource { name, gvk: Some(("", "v1", kind)), verbs: &["create", "get"] }
}

static POD: Kind = Kind {
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        connect("attach", "PodAttachOptions"),
        Subresource { name: "binding", gvk: Some(("", "v1", "Binding")), verbs: &["create"] },
        Subresource { name: "ephemeralcontainers", gvk: None, verbs: &["get", "patch", "update"] },
        Subresource { name: "eviction", gvk: Some(("policy", "v1beta1", "Eviction")), verbs: &["create"] },
        connect("exec", "PodExecOptions"),
        Subresource { name: "log", gvk: None, verbs: &["get"] },
        connect("portforward", "PodPortForwardOptions"),
        Subresource {
            name: "proxy",
            gvk: Some(("", "v1", "PodProxyOptions")),
            verbs: &["create", "delete", "get", "patch", "update"],
        },
        STATUS,
    ],
    storage_version: "v1",
    grace_period: Some(grace_period),
    default: |pod, context| defaults::pod(pod, is_today(context)),
    prepare_create,
    prepare_update,
    validate,
    validate_update,
    selectable_fields,
    selectable_field_names: &[
        "spec.host",
        "spec.hostNetwork",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.nominatedNodeName",
        "status.phase",
        "status.podIP",
        "status.podIPs",
    ],
    update_checks: (1, 1),
    columns: printer::COLUMNS,
    row: printer::row,
    row_conditions: printer::row_conditions,
    ..Kind::new("Pod", "pods", "pod", &[Version::always("", "v1")])
};

/// How long a pod may take to end when the client does not say, in seconds. Pods that run nowhere or have ended go at
/// once, whatever the client says.
fn grace_period(pod: &Value) -> i64 {
    let (spec, status) = (part(pod, "spec"), part(pod, "status"));
    if text(spec, "nodeName").is_empty() || matches!(text(status, "phase"), "Succeeded" | "Failed") {
        return 0;
    }
    number(spec, "terminationGracePeriodSeconds")
}

fn prepare_create(pod: &mut Value, context: &Context) {
    let class = resources::qos_class(part(pod, "spec"));
    put(pod, "status", json!({"phase": "Pending", "qosClass": class}));
    if let Some(spec) = pod.get_mut("spec") {
        defaults::drop_disabled(spec, &Value::Null, is_today(context));
    }
    if !is_today(context) {
        agree_on_seccomp(pod);
    }
}

fn prepare_update(pod: &mut Value, old: &Value, context: &Context) {
    match context.subresource {
        // The binding handler has changed the stored pod itself: its node, its annotations, a condition.
        "binding" => {}
        "status" => {
            json::copy(pod, old, &["spec"]);
            json::copy(pod, old, &["metadata", "ownerReferences"]);
        }
        "ephemeralcontainers" => {
            let containers = json::get(pod, &["spec", "ephemeralContainers"]).clone();
            let labels_and_more = pod["metadata"].take();
            *pod = old.clone();
            put(pod, "metadata", labels_and_more);
            if !containers.is_null() {
                json::set(pod, &["spec", "ephemeralContainers"], containers);
            }
        }
        _ => {
            json::copy(pod, old, &["status"]);
            if let Some(spec) = pod.get_mut("spec") {
                defaults::drop_disabled(spec, part(old, "spec"), is_today(context));
            }
        }
    }
}

fn validate(pod: &Value, context: &Context) -> ErrorList {
    let mut errs = spec::pod(pod, &Rules::of(context));
    let path = Path::new("spec");
    let pod_spec = part(pod, "spec");
    if !is_empty(pod_spec, "ephemeralContainers") {
        errs.push(field::forbidden(&path.child("ephemeralContainers"), "cannot be set on create"));
    }
    let annotations = part(part(pod, "metadata"), "annotations");
    errs.extend(security::seccomp_mismatches(annotations, pod_spec, &path));
    errs
}

fn validate_update(pod: &Value, old: &Value, context: &Context) -> ErrorList {
    let rules = Rules::of(context);
    match context.subresource {
        "binding" => ErrorList::new(),
        "status" => update::status(pod, old),
        "ephemeralcontainers" => {
            let mut errs = spec::pod(pod, &rules);
            errs.extend(update::ephemeral_containers(pod, old));
            errs
        }
        _ => {
            let mut errs = spec::pod(pod, &rules);
            errs.extend(update::pod(pod, old, &rules));
            errs
        }
    }
}

fn selectable_fields(pod: &Value) -> Vec<(&'static str, String)> {
    let (spec, status) = (part(pod, "spec"), part(pod, "status"));
    let host_network = super::access::flag(spec, "hostNetwork");
    vec![
        ("spec.host", text(spec, "nodeName").into()),
        ("spec.hostNetwork", host_network.to_string()),
        ("spec.nodeName", text(spec, "nodeName").into()),
        ("spec.restartPolicy", text(spec, "restartPolicy").into()),
        ("spec.schedulerName", text(spec, "schedulerName").into()),
        ("spec.serviceAccountName", text(spec, "serviceAccountName").into()),
        ("status.nominatedNodeName", text(status, "nominatedNodeName").into()),
        ("status.phase", text(status, "phase").into()),
        ("status.podIP", text(status, "podIP").into()),
        // Selectors may name it, but no pod has it.
        ("status.podIPs", String::new()),
    ]
}

/// v1.20 keeps seccomp annotations and fields in agreement: what only one of them says, the other is made to say.
fn agree_on_seccomp(pod: &mut Value) {
    let mut annotations = json::get(pod, &["metadata", "annotations"]).clone();
    if !annotations.is_object() {
        annotations = json!({});
    }
    if let Some(spec) = pod.get_mut("spec") {
        agree_on_profile(spec, SECCOMP_POD, &mut annotations);
        for list in ["initContainers", "containers"] {
            for container in items_mut(spec, list) {
                let key = format!("{SECCOMP_CONTAINER}{}", text(container, "name"));
                agree_on_profile(container, &key, &mut annotations);
            }
        }
    }
    if annotations.as_object().is_some_and(|a| !a.is_empty()) {
        json::set(pod, &["metadata", "annotations"], annotations);
    }
}

fn agree_on_profile(holder: &mut Value, key: &str, annotations: &mut Value) {
    let profile = json::get(holder, &["securityContext", "seccompProfile"]);
    let annotation = part(annotations, key).as_str();
    match (profile.is_null(), annotation) {
        (false, None) => {
            let file = part(profile, "localhostProfile").as_str();
            let value = match (text(profile, "type"), file) {
                ("Unconfined", _) => "unconfined".to_string(),
                ("RuntimeDefault", _) => "runtime/default".to_string(),
                ("Localhost", Some(file)) => format!("localhost/{file}"),
                _ => return,
            };
            put(annotations, key, value);
        }
        (true, Some(annotation)) => {
            let profile = match annotation {
                "unconfined" => json!({"type": "Unconfined"}),
                "runtime/default" | "docker/default" => json!({"type": "RuntimeDefault"}),
                other => match other.strip_prefix("localhost/").filter(|f| !f.is_empty()) {
                    Some(file) => json!({"type": "Localhost", "localhostProfile": file}),
                    None => return,
                },
            };
            if !present(holder, "securityContext") {
                put(holder, "securityContext", json!({}));
            }
            json::set(holder, &["securityContext", "seccompProfile"], profile);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
