//! Validation of containers, init containers and ephemeral containers.

use std::collections::HashSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::names;

use super::Rules;
use super::downward::{ENV_FIELDS, ENV_FIELDS_TODAY, field_selector, resource_selector};
use super::handlers::{lifecycle, probe};
use super::mounts::{volume_devices, volume_mounts};
use super::resources::resource_requirements;
use super::security::container_security_context;
use super::volumes::{Volumes, required_label};
use crate::kinds::access::{is_empty, items, number, part, present, text};
use crate::kinds::checks::invalid_each;

const TERMINATION_POLICY: &str = "must be 'File' or 'FallbackToLogsOnError'";

/// Faults of `containers`.
pub(super) fn containers(list: &[Value], volumes: &Volumes, path: &Path, rules: &Rules) -> ErrorList {
    let mut errs = each_container(list, volumes, path, rules);
    errs.extend(host_port_conflicts(list, path));
    errs
}

fn each_container(list: &[Value], volumes: &Volumes, path: &Path, rules: &Rules) -> ErrorList {
    if list.is_empty() {
        return vec![field::required(path, "")];
    }
    let mut errs = ErrorList::new();
    let mut known = HashSet::new();
    for (i, container) in list.iter().enumerate() {
        let at = path.index(i);
        let name = text(container, "name");
        errs.extend(required_label(name, &at.child("name")));
        if !known.insert(name) {
            errs.push(field::duplicate(&at.child("name"), name));
        }
        errs.extend(one_container(container, volumes, &at, rules));
    }
    errs
}

fn one_container(container: &Value, volumes: &Volumes, at: &Path, rules: &Rules) -> ErrorList {
    let mut errs = ErrorList::new();
    let child = |key: &str| at.child(key);
    if text(container, "image").is_empty() {
        errs.push(field::required(&child("image"), ""));
    }
    errs.extend(lifecycle(part(container, "lifecycle"), &child("lifecycle")));
    for key in ["livenessProbe", "startupProbe"] {
        let p = part(container, key);
        errs.extend(probe(p, &child(key)));
        if !p.is_null() && number(p, "successThreshold") != 1 {
            let at = child(key).child("successThreshold");
            errs.push(field::invalid(&at, number(p, "successThreshold"), "must be 1"));
        }
    }
    let policy = child("terminationMessagePolicy");
    match text(container, "terminationMessagePolicy") {
        "File" | "FallbackToLogsOnError" => {}
        "" => errs.push(field::required(&policy, TERMINATION_POLICY)),
        other => errs.push(field::invalid(&policy, other, TERMINATION_POLICY)),
    }
    errs.extend(probe(part(container, "readinessProbe"), &child("readinessProbe")));
    errs.extend(ports(items(container, "ports"), &child("ports")));
    errs.extend(env(items(container, "env"), &child("env"), rules));
    errs.extend(env_from(items(container, "envFrom"), &child("envFrom")));
    errs.extend(volume_mounts(container, volumes, &child("volumeMounts")));
    errs.extend(volume_devices(container, volumes, &child("volumeDevices")));
    errs.extend(pull_policy(text(container, "imagePullPolicy"), &child("imagePullPolicy")));
    errs.extend(resource_requirements(part(container, "resources"), &child("resources"), rules));
    errs.extend(container_security_context(
        part(container, "securityContext"),
        &child("securityContext"),
        rules,
    ));
    errs
}

/// Faults of `initContainers`; their names must differ from those of `others` too.
pub(super) fn init_containers(
    list: &[Value],
    others: &[Value],
    volumes: &Volumes,
    path: &Path,
    rules: &Rules,
) -> ErrorList {
    let mut errs = ErrorList::new();
    if !list.is_empty() {
        errs.extend(each_container(list, volumes, path, rules));
        // They run one after the other, so each has the host's ports to itself.
        for container in list {
            errs.extend(host_port_conflicts(std::slice::from_ref(container), path));
        }
    }
    let mut known: HashSet<&str> = others.iter().map(|c| text(c, "name")).collect();
    for (i, container) in list.iter().enumerate() {
        let at = path.index(i);
        let name = text(container, "name");
        if known.contains(name) {
            errs.push(field::duplicate(&at.child("name"), name));
        }
        if !name.is_empty() {
            known.insert(name);
        }
        if rules.today && text(container, "restartPolicy") == "Always" {
            continue;
        }
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if present(container, key) {
                let shown = part(container, key).to_string();
                errs.push(field::invalid_shown(
                    &at.child(key),
                    &shown,
                    "must not be set for init containers",
                ));
            }
        }
    }
    errs
}

/// Faults of `ephemeralContainers`.
pub(super) fn ephemeral_containers(spec: &Value, volumes: &Volumes, path: &Path, rules: &Rules) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut known: HashSet<&str> = items(spec, "containers")
        .iter()
        .chain(items(spec, "initContainers"))
        .map(|c| text(c, "name"))
        .collect();
    for (i, container) in items(spec, "ephemeralContainers").iter().enumerate() {
        let at = path.index(i);
        let name = text(container, "name");
        errs.extend(required_label(name, &at.child("name")));
        if !known.insert(name) {
            errs.push(field::duplicate(&at.child("name"), name));
        }
        let target = text(container, "targetContainerName");
        let targets = items(spec, "containers").iter().chain(items(spec, "initContainers"));
        if !target.is_empty() && !targets.into_iter().any(|c| text(c, "name") == target) {
            errs.push(field::not_found(&at.child("targetContainerName"), target));
        }
        errs.extend(one_container(container, volumes, &at, rules));
        for key in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources"] {
            if !is_empty(container, key) {
                errs.push(field::forbidden(&at.child(key), "cannot be set for an Ephemeral Container"));
            }
        }
        for (j, mount) in items(container, "volumeMounts").iter().enumerate() {
            for key in ["subPath", "subPathExpr"] {
                if !text(mount, key).is_empty() {
                    let at = at.child("volumeMounts").index(j).child(key);
                    errs.push(field::forbidden(&at, "cannot be set for an Ephemeral Container"));
                }
            }
        }
    }
    errs
}

fn host_port_conflicts(list: &[Value], path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut taken = HashSet::new();
    for (i, container) in list.iter().enumerate() {
        for (j, port) in items(container, "ports").iter().enumerate() {
            let host_port = number(port, "hostPort");
            if host_port == 0 {
                continue;
            }
            let key = format!("{}/{}/{host_port}", text(port, "protocol"), text(port, "hostIP"));
            if !taken.insert(key.clone()) {
                let at = path.index(i).child("ports").index(j).child("hostPort");
                errs.push(field::duplicate(&at, key));
            }
        }
    }
    errs
}

fn ports(list: &[Value], path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut known = HashSet::new();
    for (i, port) in list.iter().enumerate() {
        let at = path.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            let faults = invalid_each(&at.child("name"), name, names::port_name(name));
            if !faults.is_empty() {
                errs.extend(faults);
            } else if !known.insert(name) {
                errs.push(field::duplicate(&at.child("name"), name));
            }
        }
        if number(port, "containerPort") == 0 {
            errs.push(field::required(&at.child("containerPort"), ""));
        }
        for key in ["containerPort", "hostPort"] {
            let n = number(port, key);
            if n != 0 {
                errs.extend(names::port_number(n).iter().map(|m| field::invalid(&at.child(key), n, m)));
            }
        }
        let at = at.child("protocol");
        match text(port, "protocol") {
            "" => errs.push(field::required(&at, "")),
            "SCTP" | "TCP" | "UDP" => {}
            other => errs.push(field::not_supported(&at, other, &["SCTP", "TCP", "UDP"])),
        }
    }
    errs
}

fn env(list: &[Value], path: &Path, rules: &Rules) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, variable) in list.iter().enumerate() {
        let at = path.index(i);
        match text(variable, "name") {
            "" => errs.push(field::required(&at.child("name"), "")),
            name => errs.extend(invalid_each(&at.child("name"), name, names::env_var_name(name))),
        }
        if present(variable, "valueFrom") {
            errs.extend(value_from(variable, &at.child("valueFrom"), rules));
        }
    }
    errs
}

fn value_from(variable: &Value, path: &Path, rules: &Rules) -> ErrorList {
    let mut errs = ErrorList::new();
    let source = part(variable, "valueFrom");
    let mut found = 0;
    for key in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let one = part(source, key);
        if one.is_null() {
            continue;
        }
        found += 1;
        let at = path.child(key);
        match key {
            "fieldRef" => {
                let fields = if rules.today { ENV_FIELDS_TODAY } else { ENV_FIELDS };
                errs.extend(field_selector(one, fields, &at));
            }
            "resourceFieldRef" => errs.extend(resource_selector(one, &at, false)),
            "fileKeyRef" => {}
            _ => errs.extend(key_selector(one, &at)),
        }
    }
    if found == 0 {
        let detail =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
        errs.push(field::invalid(path, "", detail));
    }
    if !text(variable, "value").is_empty() {
        if found != 0 {
            errs.push(field::invalid(path, "", "may not be specified when `value` is not empty"));
        }
    } else if found > 1 {
        errs.push(field::invalid(path, "", "may not have more than one field specified at a time"));
    }
    errs
}

fn key_selector(selector: &Value, path: &Path) -> ErrorList {
    let name = text(selector, "name");
    let mut errs = invalid_each(&path.child("name"), name, names::dns1123_subdomain_name(name, false));
    match text(selector, "key") {
        "" => errs.push(field::required(&path.child("key"), "")),
        key => errs.extend(invalid_each(&path.child("key"), key, names::config_map_key(key))),
    }
    errs
}

fn env_from(list: &[Value], path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, source) in list.iter().enumerate() {
        let at = path.index(i);
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            errs.extend(invalid_each(&at.child("prefix"), prefix, names::env_var_name(prefix)));
        }
        let mut found = 0;
        for key in ["configMapRef", "secretRef"] {
            if !present(source, key) {
                continue;
            }
            found += 1;
            let at = at.child(key).child("name");
            match text(part(source, key), "name") {
                "" => errs.push(field::required(&at, "")),
                name => errs.extend(invalid_each(&at, name, names::dns1123_subdomain_name(name, true))),
            }
        }
        // Kubernetes blames the list here, not the item.
        match found {
            0 => errs.push(field::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => errs.push(field::invalid(path, "", "may not have more than one field specified at a time")),
        }
    }
    errs
}

fn pull_policy(policy: &str, path: &Path) -> Option<field::Error> {
    match policy {
        "Always" | "IfNotPresent" | "Never" => None,
        "" => Some(field::required(path, "")),
        other => Some(field::not_supported(path, other, &["Always", "IfNotPresent", "Never"])),
    }
}
