//! Validation of a pod's spec and of pod templates.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::{go, names};

use super::Rules;
use super::containers::{containers, ephemeral_containers, init_containers};
use super::resources::overhead;
use super::scheduling::{affinity, tolerations, topology_spread};
use super::security::{apparmor_annotations, pod_security_context, seccomp_annotations, seccomp_mismatches};
use super::volumes::volumes;
use crate::kinds::access::{flag, is_empty, items, optional, part, present, text};
use crate::kinds::checks::{invalid_each, node_name};

/// Annotation of pods that mirror a static pod.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
const TOLERATIONS_ANNOTATION: &str = "scheduler.alpha.kubernetes.io/tolerations";

/// Faults of a pod's spec.
pub(crate) fn pod_spec(spec: &Value, path: &Path, rules: &Rules) -> ErrorList {
    let at = |key: &str| path.child(key);
    let (volumes, mut errs) = volumes(items(spec, "volumes"), &at("volumes"));
    let main = items(spec, "containers");
    errs.extend(containers(main, &volumes, &at("containers"), rules));
    errs.extend(init_containers(items(spec, "initContainers"), main, &volumes, &at("initContainers"), rules));
    errs.extend(ephemeral_containers(spec, &volumes, &at("ephemeralContainers"), rules));
    errs.extend(one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], path));
    const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    errs.extend(one_of(spec, "dnsPolicy", DNS_POLICIES, path));
    errs.extend(names::labels(part(spec, "nodeSelector"), &at("nodeSelector")));
    errs.extend(pod_security_context(spec, path));
    errs.extend(affinity(part(spec, "affinity"), &at("affinity"), rules));
    errs.extend(dns_config(spec, &at("dnsConfig")));
    for (i, gate) in items(spec, "readinessGates").iter().enumerate() {
        let condition = text(gate, "conditionType");
        let at = at("readinessGates").index(i).child("conditionType");
        errs.extend(invalid_each(&at, condition, names::qualified_name(condition)));
    }
    errs.extend(topology_spread(items(spec, "topologySpreadConstraints"), &at("topologySpreadConstraints")));
    errs.extend(optional_name(spec, "serviceAccountName", path));
    if !text(spec, "nodeName").is_empty() {
        errs.extend(node_name(text(spec, "nodeName"), &at("nodeName")));
    }
    if let Some(seconds) = optional(spec, "activeDeadlineSeconds") {
        let max = i64::from(i32::MAX);
        if !(1..=max).contains(&seconds) {
            let detail = names::inclusive_range(1, max);
            errs.push(field::invalid(&at("activeDeadlineSeconds"), seconds, &detail));
        }
    }
    for key in ["hostname", "subdomain"] {
        let name = text(spec, key);
        if !name.is_empty() {
            errs.extend(invalid_each(&at(key), name, names::dns1123_label(name)));
        }
    }
    errs.extend(tolerations(items(spec, "tolerations"), &at("tolerations")));
    errs.extend(host_aliases(items(spec, "hostAliases"), &at("hostAliases")));
    errs.extend(optional_name(spec, "priorityClassName", path));
    if let Some(class) = part(spec, "runtimeClassName").as_str() {
        let faults = names::dns1123_subdomain_name(class, false);
        errs.extend(invalid_each(&at("runtimeClassName"), class, faults));
    }
    if present(spec, "preemptionPolicy") {
        errs.extend(one_of(spec, "preemptionPolicy", &["PreemptLowerPriority", "Never"], path));
    }
    if present(spec, "overhead") {
        errs.extend(overhead(part(spec, "overhead"), &at("overhead"), rules));
    }
    errs
}

/// A text field that must have one of some values.
fn one_of(spec: &Value, key: &str, supported: &[&str], path: &Path) -> Option<field::Error> {
    match text(spec, key) {
        "" => Some(field::required(&path.child(key), "")),
        value if supported.contains(&value) => None,
        value => Some(field::not_supported(&path.child(key), value, supported)),
    }
}

/// A DNS-1123 subdomain, if there is one.
fn optional_name(spec: &Value, key: &str, path: &Path) -> ErrorList {
    match text(spec, key) {
        "" => ErrorList::new(),
        name => invalid_each(&path.child(key), name, names::dns1123_subdomain_name(name, false)),
    }
}

const MAX_NAMESERVERS: usize = 3;

fn dns_config(spec: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let config = part(spec, "dnsConfig");
    let nameservers = items(config, "nameservers");
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            return vec![field::required(path, "must provide `dnsConfig` when `dnsPolicy` is None")];
        }
        if nameservers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return vec![field::required(&path.child("nameservers"), detail)];
        }
    }
    if config.is_null() {
        return errs;
    }
    let at = path.child("nameservers");
    if nameservers.len() > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errs.push(field::invalid_shown(&at, &go::string_slice(part(config, "nameservers")), &detail));
    }
    for (i, server) in nameservers.iter().enumerate() {
        let server = server.as_str().unwrap_or("");
        if names::parse_ip(server).is_none() {
            errs.push(field::invalid(&at.index(i), server, "must be valid IP address"));
        }
    }
    errs.extend(dns_searches(config, &path.child("searches")));
    for (i, option) in items(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errs.push(field::required(&path.child("options").index(i), "must not be empty"));
        }
    }
    errs
}

const MAX_SEARCHES: usize = 6;
const MAX_SEARCH_LENGTH: usize = 256;

fn dns_searches(config: &Value, at: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let searches: Vec<&str> = items(config, "searches").iter().map(|s| s.as_str().unwrap_or("")).collect();
    let shown = || go::string_slice(part(config, "searches"));
    if searches.len() > MAX_SEARCHES {
        let detail = format!("must not have more than {MAX_SEARCHES} search paths");
        errs.push(field::invalid_shown(at, &shown(), &detail));
    }
    if searches.join(" ").len() > MAX_SEARCH_LENGTH {
        let detail = format!(
            "must not have more than {MAX_SEARCH_LENGTH} characters (including spaces) in the search list"
        );
        errs.push(field::invalid_shown(at, &shown(), &detail));
    }
    for (i, search) in searches.iter().enumerate() {
        let search = search.strip_suffix('.').unwrap_or(search);
        errs.extend(invalid_each(&at.index(i), search, names::dns1123_subdomain(search)));
    }
    errs
}

fn host_aliases(list: &[Value], path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for alias in list {
        let ip = text(alias, "ip");
        if names::parse_ip(ip).is_none() {
            errs.push(field::invalid(&path.child("ip"), ip, "must be valid IP address"));
        }
        for name in items(alias, "hostnames") {
            let name = name.as_str().unwrap_or("");
            errs.extend(invalid_each(&path.child("hostnames"), name, names::dns1123_subdomain(name)));
        }
    }
    errs
}

/// Faults of the annotations that mean something to a pod with this spec.
pub(super) fn pod_annotations(annotations: &Value, spec: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if let Some(value) = part(annotations, MIRROR).as_str()
        && text(spec, "nodeName").is_empty()
    {
        let detail = "must set spec.nodeName if mirror pod annotation is set";
        errs.push(field::invalid(&path.key(MIRROR), value, detail));
    }
    let value = text(annotations, TOLERATIONS_ANNOTATION);
    if !value.is_empty() {
        match serde_json::from_str::<Vec<Value>>(value) {
            Ok(list) => errs.extend(tolerations(&list, &path.child(TOLERATIONS_ANNOTATION))),
            Err(e) => {
                errs.push(field::invalid(
                    &path.child(TOLERATIONS_ANNOTATION),
                    TOLERATIONS_ANNOTATION,
                    &e.to_string(),
                ));
            }
        }
    }
    errs.extend(seccomp_annotations(annotations, path));
    errs.extend(apparmor_annotations(annotations, spec, path));
    errs
}

/// Faults of a pod template.
pub(crate) fn pod_template(template: &Value, path: &Path, rules: &Rules) -> ErrorList {
    let (meta, spec) = (part(template, "metadata"), part(template, "spec"));
    let mut errs = template_metadata(template, path);
    errs.extend(pod_spec(spec, &path.child("spec"), rules));
    errs.extend(seccomp_mismatches(part(meta, "annotations"), spec, &path.child("spec")));
    if !is_empty(spec, "ephemeralContainers") {
        let at = path.child("spec").child("ephemeralContainers");
        errs.push(field::forbidden(&at, "ephemeral containers not allowed in pod template"));
    }
    errs
}

/// Faults of a pod template's labels and annotations alone; they are blamed as if they stood in the template itself.
pub(crate) fn template_metadata(template: &Value, path: &Path) -> ErrorList {
    let (meta, spec) = (part(template, "metadata"), part(template, "spec"));
    let at = path.child("annotations");
    let mut errs = names::labels(part(meta, "labels"), &path.child("labels"));
    errs.extend(names::annotations(part(meta, "annotations"), &at));
    errs.extend(pod_annotations(part(meta, "annotations"), spec, &at));
    errs
}

/// Faults of a pod, its metadata excluded.
pub(super) fn pod(pod: &Value, rules: &Rules) -> ErrorList {
    let (meta, spec) = (part(pod, "metadata"), part(pod, "spec"));
    let path = Path::new("spec");
    let annotations = Path::new("metadata").child("annotations");
    let mut errs = pod_annotations(part(meta, "annotations"), spec, &annotations);
    errs.extend(pod_spec(spec, &path, rules));
    if text(spec, "serviceAccountName").is_empty() {
        errs.extend(tokens_without_account(spec, &path));
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (i, container) in items(spec, list).iter().enumerate() {
            errs.extend(image_without_spaces(container, &path.child(list).index(i)));
        }
    }
    errs.extend(super::update::pod_ips(part(pod, "status")));
    errs
}

fn tokens_without_account(spec: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, volume) in items(spec, "volumes").iter().enumerate() {
        let at = path.child("volumes").index(i).child("projected");
        for (j, source) in items(part(volume, "projected"), "sources").iter().enumerate() {
            if present(source, "serviceAccountToken") {
                errs.push(field::forbidden(
                    &at.child("sources").index(j).child("serviceAccountToken"),
                    "must not be specified when serviceAccountName is not set",
                ));
            }
        }
    }
    errs
}

/// Images must not be padded: templates are spared, for compatibility.
pub(super) fn image_without_spaces(container: &Value, path: &Path) -> Option<field::Error> {
    let image = text(container, "image");
    (image.trim() != image)
        .then(|| field::invalid(&path.child("image"), image, "must not have leading or trailing whitespace"))
}

/// Faults of volumes that pods on several nodes cannot share.
pub(crate) fn read_only_disks(template: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, volume) in items(part(template, "spec"), "volumes").iter().enumerate() {
        let disk = part(volume, "gcePersistentDisk");
        if !disk.is_null() && !flag(disk, "readOnly") {
            errs.push(field::invalid(
                &path.child("spec").child("volumes").index(i).child("gcePersistentDisk").child("readOnly"),
                false,
                "must be true for replicated pods > 1; GCE PD can only be mounted on multiple machines if it is read-only",
            ));
        }
    }
    errs
}
