//! `Ingress`. Hub is v1; the beta versions have other names for backends.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{
    Value, copy, get, get_i64, has, json, list_at, list_mut, remove, set, set_default, str_at,
};
use pilothouse_apimachinery::names;

use super::{GROUP, typed_reference};
use crate::go_print;
use crate::kinds::checks::{invalid_each, strings};
use crate::kinds::columns::{AGE, NAME, text};
use crate::kinds::service::{load_balancer_status, load_balancer_text};
use crate::kinds::{Context, Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell};

/// The annotation that named the class before there was a field.
pub const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

const PATH_TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];

const fn beta(group: &'static str) -> Version {
    Version { to_hub: Some(from_beta), from_hub: Some(to_beta), ..Version::always(group, "v1beta1") }
}

/// The kind.
pub static INGRESS: Kind = Kind {
    short_names: &["ing"],
    has_generation: true,
    storage_prefix: "ingress",
    storage_version: "networking.k8s.io/v1",
    invalid_group: Some("extensions"),
    subresources: &[STATUS],
    default,
    prepare_create: |ingress, _| set(ingress, &["status"], json!({"loadBalancer": {}})),
    prepare_update: |new, old, context| {
        copy(new, old, if context.subresource == "status" { &["spec"] } else { &["status"] });
    },
    validate: |ingress, context| {
        let mut errs = faults(ingress, None, context);
        if let Some(class) = get(ingress, &["metadata", "annotations", CLASS_ANNOTATION]).as_str()
            && has(ingress, &["spec", "ingressClassName"])
        {
            errs.push(field::invalid(
                &Path::new("annotations").child(CLASS_ANNOTATION),
                class,
                "can not be set when the class field is also set",
            ));
        }
        errs
    },
    validate_update: |new, old, context| {
        if context.subresource == "status" {
            return load_balancer_status(
                get(new, &["status", "loadBalancer"]),
                &Path::new("status.loadBalancer"),
            );
        }
        faults(new, Some(old), context)
    },
    columns: &[
        NAME,
        text(
            "Class",
            "The name of the IngressClass resource that should be used for additional configuration",
        ),
        text("Hosts", "Hosts that incoming requests are matched against before the ingress rule"),
        text("Address", "Address is a list containing ingress points for the load-balancer"),
        text("Ports", "Ports of TLS configurations that open"),
        AGE,
    ],
    row,
    update_checks: (1, 1),
    ..Kind::new(
        "Ingress",
        "ingresses",
        "ingress",
        &[Version::always(GROUP, "v1"), beta(GROUP), beta("extensions")],
    )
};

fn is_beta(context: &Context) -> bool {
    context.api_version.ends_with("/v1beta1")
}

/// Changes every backend: the default one and those of the paths.
fn each_backend(ingress: &mut Value, change: fn(&mut Value)) {
    for rule in list_mut(ingress, &["spec", "rules"]) {
        for path in list_mut(rule, &["http", "paths"]) {
            if let Some(backend) = path.get_mut("backend") {
                change(backend);
            }
        }
    }
}

fn from_beta(ingress: &mut Value) {
    if let Some(mut backend) = remove(ingress, &["spec", "backend"]) {
        backend_from_beta(&mut backend);
        set(ingress, &["spec", "defaultBackend"], backend);
    }
    each_backend(ingress, backend_from_beta);
}

fn to_beta(ingress: &mut Value) {
    if let Some(mut backend) = remove(ingress, &["spec", "defaultBackend"]) {
        backend_to_beta(&mut backend);
        set(ingress, &["spec", "backend"], backend);
    }
    each_backend(ingress, backend_to_beta);
}

fn backend_from_beta(backend: &mut Value) {
    if !backend.is_object() {
        return;
    }
    let name = remove(backend, &["serviceName"]).unwrap_or_default();
    let name = name.as_str().unwrap_or("");
    let port = match remove(backend, &["servicePort"]) {
        Some(Value::String(port)) => Some(json!({"name": *port})),
        Some(port) if port.as_i64().unwrap_or(0) != 0 => Some(json!({"number": port})),
        _ => None,
    };
    if !name.is_empty() || port.is_some() {
        set(backend, &["service"], json!({"name": name, "port": port.unwrap_or_else(|| json!({}))}));
    }
}

fn backend_to_beta(backend: &mut Value) {
    if !backend.is_object() {
        return;
    }
    let service = remove(backend, &["service"]).unwrap_or_default();
    let name = str_at(&service, &["name"]);
    if !name.is_empty() {
        set(backend, &["serviceName"], name);
    }
    match str_at(&service, &["port", "name"]) {
        "" => set(backend, &["servicePort"], get_i64(&service, &["port", "number"])),
        port => set(backend, &["servicePort"], port),
    }
}

fn default(ingress: &mut Value, context: &Context) {
    if is_beta(context) {
        for rule in list_mut(ingress, &["spec", "rules"]) {
            for path in list_mut(rule, &["http", "paths"]).iter_mut().filter(|p| p.is_object()) {
                set_default(path, &["pathType"], "ImplementationSpecific");
            }
        }
    }
    set_default(ingress, &["status", "loadBalancer"], json!({}));
}

/// What is let through: the beta versions always did, and what is stored already may stay.
#[derive(Debug, Clone, Copy)]
struct Lenience {
    secret_names: bool,
    wildcard_rules: bool,
}

impl Lenience {
    fn of(old: Option<&Value>, context: &Context) -> Lenience {
        let beta = is_beta(context);
        Lenience {
            secret_names: beta || old.is_some_and(has_odd_secret_name),
            wildcard_rules: beta || old.is_some_and(|o| has_odd_wildcard_rule(o, context)),
        }
    }
}

fn secret_name_faults(name: &str) -> Vec<String> {
    if name.is_empty() { Vec::new() } else { names::dns1123_subdomain_name(name, false) }
}

fn has_odd_secret_name(ingress: &Value) -> bool {
    list_at(ingress, &["spec", "tls"])
        .iter()
        .any(|tls| !secret_name_faults(str_at(tls, &["secretName"])).is_empty())
}

fn has_odd_wildcard_rule(ingress: &Value, context: &Context) -> bool {
    let strict = Lenience { secret_names: false, wildcard_rules: false };
    list_at(ingress, &["spec", "rules"]).iter().any(|rule| {
        str_at(rule, &["host"]).contains('*') && !rule_value(rule, &Path::new(""), strict, context).is_empty()
    })
}

fn faults(ingress: &Value, old: Option<&Value>, context: &Context) -> ErrorList {
    let lenience = Lenience::of(old, context);
    let path = Path::new("spec");
    let spec = get(ingress, &["spec"]);
    let default_name = if is_beta(context) { "backend" } else { "defaultBackend" };
    let mut errs = ErrorList::new();
    let rules = list_at(spec, &["rules"]);
    let backend = get(spec, &["defaultBackend"]);
    if rules.is_empty() && backend.is_null() {
        let shown = go_print::list("networking.IngressRule", get(spec, &["rules"]), |_| String::new());
        let why = format!("either `{default_name}` or `rules` must be specified");
        errs.push(field::invalid_shown(&path, &shown, &why));
    }
    if !backend.is_null() {
        errs.extend(backend_faults(backend, &path.child(default_name), context));
    }
    for (i, rule) in rules.iter().enumerate() {
        errs.extend(rule_faults(rule, &path.child("rules").index(i), lenience, context));
    }
    for (i, tls) in list_at(spec, &["tls"]).iter().enumerate() {
        errs.extend(tls_faults(tls, &path.child("tls").index(i), lenience));
    }
    if let Some(class) = get(spec, &["ingressClassName"]).as_str() {
        errs.extend(invalid_each(
            &path.child("ingressClassName"),
            class,
            names::dns1123_subdomain_name(class, false),
        ));
    }
    errs
}

fn host_faults(host: &str, path: &Path) -> ErrorList {
    let messages = if host.contains('*') {
        names::wildcard_dns1123_subdomain(host)
    } else {
        names::dns1123_subdomain(host)
    };
    invalid_each(path, host, messages)
}

fn tls_faults(tls: &Value, path: &Path, lenience: Lenience) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, host) in strings(tls, &["hosts"]).into_iter().enumerate() {
        errs.extend(host_faults(host, &path.child("hosts").index(i)));
    }
    if !lenience.secret_names {
        let name = str_at(tls, &["secretName"]);
        errs.extend(invalid_each(&path.child("secretName"), name, secret_name_faults(name)));
    }
    errs
}

fn rule_faults(rule: &Value, path: &Path, lenience: Lenience, context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let host = str_at(rule, &["host"]);
    let at = path.child("host");
    if !host.is_empty() {
        if names::parse_ip(host).is_some() {
            errs.push(field::invalid(&at, host, "must be a DNS name, not an IP address"));
        }
        errs.extend(host_faults(host, &at));
    }
    if !(host.contains('*') && lenience.wildcard_rules) {
        errs.extend(rule_value(rule, path, lenience, context));
    }
    errs
}

fn rule_value(rule: &Value, path: &Path, _lenience: Lenience, context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    if !has(rule, &["http"]) {
        return errs;
    }
    let path = path.child("http").child("paths");
    let paths = list_at(rule, &["http", "paths"]);
    if paths.is_empty() {
        errs.push(field::required(&path, ""));
    }
    for (i, p) in paths.iter().enumerate() {
        errs.extend(path_faults(p, &path.index(i), context));
    }
    errs
}

fn path_faults(item: &Value, path: &Path, context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let Some(type_) = get(item, &["pathType"]).as_str() else {
        return vec![field::required(&path.child("pathType"), "pathType must be specified")];
    };
    let text = str_at(item, &["path"]);
    let at = path.child("path");
    match type_ {
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                errs.push(field::invalid(&at, text, "must be an absolute path"));
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|p| text.contains(**p)) {
                errs.push(field::invalid(&at, text, &format!("must not contain '{part}'")));
            }
            for end in ["/..", "/."].iter().filter(|e| text.ends_with(**e)) {
                errs.push(field::invalid(&at, text, &format!("cannot end with '{end}'")));
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.starts_with('/') {
                errs.push(field::invalid(&at, text, "must be an absolute path"));
            }
        }
        _ => errs.push(field::not_supported(&path.child("pathType"), type_, PATH_TYPES)),
    }
    errs.extend(backend_faults(get(item, &["backend"]), &path.child("backend"), context));
    errs
}

fn backend_faults(backend: &Value, path: &Path, context: &Context) -> ErrorList {
    let (service, resource) = (get(backend, &["service"]), get(backend, &["resource"]));
    match (service.is_null(), resource.is_null()) {
        (false, false) => {
            return vec![field::invalid(path, "", "cannot set both resource and service backends")];
        }
        (true, false) => return typed_reference(resource, &path.child("resource")),
        (true, true) => return vec![field::invalid(path, "", "resource or service backend is required")],
        (false, true) => {}
    }
    let (name_path, port_name_path, number_path) = if is_beta(context) {
        (path.child("serviceName"), path.child("servicePort"), path.child("servicePort"))
    } else {
        let port = path.child("service").child("port");
        (path.child("service").child("name"), port.child("name"), port.child("number"))
    };
    let mut errs = ErrorList::new();
    let name = str_at(service, &["name"]);
    if name.is_empty() {
        errs.push(field::required(&name_path, ""));
    } else {
        errs.extend(invalid_each(&name_path, name, names::dns1035_label_name(name, false)));
    }
    let (port_name, number) = (str_at(service, &["port", "name"]), get_i64(service, &["port", "number"]));
    match (port_name, number) {
        ("", 0) => errs.push(field::required(path, "port name or number is required")),
        ("", number) => {
            errs.extend(names::port_number(number).iter().map(|m| field::invalid(&number_path, number, m)));
        }
        (port_name, 0) => errs.extend(invalid_each(&port_name_path, port_name, names::port_name(port_name))),
        _ => errs.push(field::invalid(path, "", "cannot set both port name & port number")),
    }
    errs
}

fn row(ingress: &Value, context: &RowContext) -> Vec<Value> {
    let rules = list_at(ingress, &["spec", "rules"]);
    // As in Kubernetes: rules without a host do not count among the first three, but among the rest.
    let mut hosts = Vec::new();
    let mut more = false;
    for rule in rules {
        more |= hosts.len() == 3;
        let host = str_at(rule, &["host"]);
        if !more && !host.is_empty() {
            hosts.push(host);
        }
    }
    let hosts = match (hosts.is_empty(), more) {
        (true, _) => "*".to_string(),
        (false, true) => format!("{} + {} more...", hosts.join(","), rules.len() - 3),
        (false, false) => hosts.join(","),
    };
    let ports = if list_at(ingress, &["spec", "tls"]).is_empty() { "80" } else { "80, 443" };
    vec![
        name_cell(ingress),
        get(ingress, &["spec", "ingressClassName"]).as_str().unwrap_or("<none>").into(),
        hosts.into(),
        load_balancer_text(get(ingress, &["status", "loadBalancer"])).into(),
        ports.into(),
        age_cell(ingress, context),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::Release;

    use super::*;

    fn context(api_version: &'static str) -> Context {
        Context { release: Release::V1_20, subresource: "", api_version, allow_privileged: true, gates: &[] }
    }

    fn texts(ingress: Value, api_version: &'static str) -> Vec<String> {
        (INGRESS.validate)(&ingress, &context(api_version)).iter().map(ToString::to_string).collect()
    }

    fn path(extra: Value) -> Value {
        let mut p = json!({"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}});
        for (k, v) in extra.as_object().unwrap() {
            p[k] = v.clone();
        }
        json!({"spec": {"rules": [{"http": {"paths": [p]}}]}})
    }

    #[test]
    fn conversion_there_and_back() {
        let beta = json!({"spec": {"backend": {"serviceName": "d", "servicePort": "web"},
            "rules": [{"host": "h", "http": {"paths": [{"path": "/", "backend": {"serviceName": "s", "servicePort": 80}}]}}]}});
        let mut ingress = beta.clone();
        from_beta(&mut ingress);
        assert_eq!(
            ingress["spec"]["defaultBackend"],
            json!({"service": {"name": "d", "port": {"name": "web"}}})
        );
        assert_eq!(
            ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"],
            json!({"service": {"name": "s", "port": {"number": 80}}})
        );
        to_beta(&mut ingress);
        assert_eq!(ingress, beta);
    }

    #[test]
    fn beta_has_its_own_names() {
        let mut ingress = json!({"spec": {"rules": [{"http": {"paths": [
            {"backend": {"serviceName": "", "servicePort": -1}}, {"backend": {"servicePort": 0}}]}}]}});
        from_beta(&mut ingress);
        default(&mut ingress, &context("extensions/v1beta1"));
        assert_eq!(
            texts(ingress, "extensions/v1beta1"),
            [
                "spec.rules[0].http.paths[0].backend.serviceName: Required value",
                "spec.rules[0].http.paths[0].backend.servicePort: Invalid value: -1: must be between 1 and 65535, inclusive",
                "spec.rules[0].http.paths[1].backend: Invalid value: \"\": resource or service backend is required",
            ]
        );
    }

    #[test]
    fn v1_faults() {
        assert_eq!(
            texts(json!({"spec": {}}), "networking.k8s.io/v1"),
            [
                "spec: Invalid value: []networking.IngressRule(nil): either `defaultBackend` or `rules` must be specified"
            ]
        );
        assert_eq!(
            texts(path(json!({"pathType": null})), "networking.k8s.io/v1"),
            ["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"]
        );
        assert_eq!(
            texts(path(json!({"path": "a//"})), "networking.k8s.io/v1"),
            [
                "spec.rules[0].http.paths[0].path: Invalid value: \"a//\": must be an absolute path",
                "spec.rules[0].http.paths[0].path: Invalid value: \"a//\": must not contain '//'",
            ]
        );
        assert_eq!(
            texts(path(json!({"backend": {"service": {"name": "s", "port": {}}}})), "networking.k8s.io/v1"),
            ["spec.rules[0].http.paths[0].backend: Required value: port name or number is required"]
        );
        assert_eq!(
            texts(json!({"spec": {"rules": [{"host": "10.0.0.1"}]}}), "networking.k8s.io/v1").len(),
            1
        );
    }

    #[test]
    fn rows() {
        let rule = |h: &str| json!({"host": h});
        let ingress = json!({"metadata": {"name": "i"}, "spec": {"tls": [{}], "rules": [rule("a"), rule("b"), rule("c"), rule("d"), rule("e")]},
            "status": {"loadBalancer": {"ingress": [{"ip": "1.1.1.1"}]}}});
        let cells = row(&ingress, &RowContext { now: 0 });
        assert_eq!(
            cells[1..5],
            [json!("<none>"), json!("a,b,c + 2 more..."), json!("1.1.1.1"), json!("80, 443")]
        );
        assert_eq!(row(&json!({"metadata": {}}), &RowContext { now: 0 })[2], json!("*"));
    }
}
