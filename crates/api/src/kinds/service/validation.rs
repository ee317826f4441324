//! What a service must be like.

use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, get, get_i64, has, i64_at, json, list_at, str_at};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::version::Release;

use super::addresses::{address_faults, addresses_change, families_change};
use super::allocation::{has_external_policy, needs_health_check_port};
use super::{HEADLESS, is_headless, type_of};
use crate::go_print;
use crate::kinds::Context;
use crate::kinds::checks::{invalid_each, strings};
use crate::kinds::core::endpoints::{PROTOCOLS, non_special_ip};

const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const KUBELET_PORT: i64 = 10250;
const NOT_FOR_NAMES: &str = "may not be set for ExternalName services";

/// Faults of a new service.
pub(super) fn validate(service: &Value, context: &Context) -> ErrorList {
    let mut errs = faults(service, context);
    errs.extend(mixed_protocols(service, None, context));
    if errs.is_empty() { traffic_fields_together(service) } else { errs }
}

/// Faults of an update.
pub(super) fn validate_update(new: &Value, old: &Value, context: &Context) -> ErrorList {
    if context.subresource == "status" {
        return load_balancer_status(
            get(new, &["status", "loadBalancer"]),
            &Path::new("status.loadBalancer"),
        );
    }
    let mut errs = addresses_change(new, old);
    errs.extend(families_change(new, old));
    errs.extend(faults(new, context));
    errs.extend(mixed_protocols(new, Some(old), context));
    if errs.is_empty() { traffic_fields_together(new) } else { errs }
}

fn faults(service: &Value, context: &Context) -> ErrorList {
    let path = Path::new("spec");
    let spec = get(service, &["spec"]);
    let type_ = type_of(service);
    let ports = list_at(spec, &["ports"]);
    let mut errs = ErrorList::new();
    if ports.is_empty() && !is_headless(service) && type_ != "ExternalName" {
        errs.push(field::required(&path.child("ports"), ""));
    }
    errs.extend(type_faults(service, type_, &path));
    let mut names_seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        errs.extend(port_faults(port, ports.len() > 1, &mut names_seen, &path.child("ports").index(i)));
    }
    errs.extend(names::labels(get(spec, &["selector"]), &path.child("selector")));
    errs.extend(affinity_faults(spec, &path));
    errs.extend(address_faults(service, &path, context.release));
    for (i, ip) in strings(spec, &["externalIPs"]).into_iter().enumerate() {
        let at = path.child("externalIPs").index(i);
        let messages = names::ip(ip);
        errs.extend(if messages.is_empty() {
            non_special_ip(ip, &at, context.release)
        } else {
            invalid_each(&at, ip, messages)
        });
    }
    const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if type_.is_empty() {
        errs.push(field::required(&path.child("type"), ""));
    } else if !TYPES.contains(&type_) {
        errs.push(field::not_supported(&path.child("type"), type_, TYPES));
    }
    errs.extend(ports_together(ports, type_, &path.child("ports")));
    errs.extend(source_ranges(service, &path));
    if has(spec, &["allocateLoadBalancerNodePorts"]) && type_ != "LoadBalancer" {
        let why = "may only be used when `type` is 'LoadBalancer'";
        errs.push(field::forbidden(&path.child("allocateLoadBalancerNodePorts"), why));
    }
    errs.extend(traffic_values(spec, &path));
    errs
}

fn type_faults(service: &Value, type_: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let not_headless = |errs: &mut ErrorList| {
        if is_headless(service) {
            errs.push(field::invalid(
                &path.child("clusterIPs").index(0),
                HEADLESS,
                &format!("may not be set to 'None' for {type_} services"),
            ));
        }
    };
    match type_ {
        "LoadBalancer" => {
            for (i, port) in list_at(service, &["spec", "ports"]).iter().enumerate() {
                if get_i64(port, &["port"]) == KUBELET_PORT {
                    errs.push(field::invalid(
                        &path.child("ports").index(i),
                        KUBELET_PORT,
                        "may not expose port 10250 externally since it is used by kubelet",
                    ));
                }
            }
            not_headless(&mut errs);
        }
        "NodePort" => not_headless(&mut errs),
        "ExternalName" => {
            for name in ["clusterIPs", "ipFamilies"] {
                if !list_at(service, &["spec", name]).is_empty() {
                    errs.push(field::forbidden(&path.child(name), NOT_FOR_NAMES));
                }
            }
            if has(service, &["spec", "ipFamilyPolicy"]) {
                errs.push(field::forbidden(&path.child("ipFamilyPolicy"), NOT_FOR_NAMES));
            }
            let name = str_at(service, &["spec", "externalName"]);
            let name = name.strip_suffix('.').unwrap_or(name);
            let at = path.child("externalName");
            if name.is_empty() {
                errs.push(field::required(&at, ""));
            } else {
                errs.extend(invalid_each(&at, name, names::dns1123_subdomain(name)));
            }
        }
        _ => {}
    }
    errs
}

fn port_faults<'a>(port: &'a Value, named: bool, seen: &mut BTreeSet<&'a str>, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let name = str_at(port, &["name"]);
    if !name.is_empty() {
        errs.extend(invalid_each(&path.child("name"), name, names::dns1123_label(name)));
        if !seen.insert(name) {
            errs.push(field::duplicate(&path.child("name"), name));
        }
    } else if named {
        errs.push(field::required(&path.child("name"), ""));
    }
    let number = get_i64(port, &["port"]);
    errs.extend(names::port_number(number).iter().map(|m| field::invalid(&path.child("port"), number, m)));
    let protocol = str_at(port, &["protocol"]);
    if protocol.is_empty() {
        errs.push(field::required(&path.child("protocol"), ""));
    } else if !PROTOCOLS.contains(&protocol) {
        errs.push(field::not_supported(&path.child("protocol"), protocol, PROTOCOLS));
    }
    errs.extend(port_or_name(get(port, &["targetPort"]), &path.child("targetPort")));
    if let Some(app) = get(port, &["appProtocol"]).as_str() {
        errs.extend(invalid_each(&path.child("appProtocol"), app, names::qualified_name(app)));
    }
    errs
}

/// Faults of a port that is a number or a name.
pub(in crate::kinds) fn port_or_name(port: &Value, path: &Path) -> ErrorList {
    match port {
        Value::String(name) => invalid_each(path, name, names::port_name(name)),
        port => {
            let number = port.as_i64().unwrap_or(0);
            names::port_number(number).iter().map(|m| field::invalid(path, number, m)).collect()
        }
    }
}

fn affinity_faults(spec: &Value, path: &Path) -> ErrorList {
    const AFFINITIES: &[&str] = &["ClientIP", "None"];
    let at = path.child("sessionAffinity");
    let affinity = str_at(spec, &["sessionAffinity"]);
    let mut errs = ErrorList::new();
    if affinity.is_empty() {
        errs.push(field::required(&at, ""));
    } else if !AFFINITIES.contains(&affinity) {
        errs.push(field::not_supported(&at, affinity, AFFINITIES));
    }
    match affinity {
        "ClientIP" => {
            let mut at = path.child("sessionAffinityConfig");
            let mut config = get(spec, &["sessionAffinityConfig"]);
            for name in ["clientIP", "timeoutSeconds"] {
                if config.is_null() {
                    break;
                }
                config = get(config, &[name]);
                at = at.child(name);
            }
            if config.is_null() {
                errs.push(field::required(&at, "when session affinity type is ClientIP"));
            } else if let Some(seconds) = config.as_i64()
                && !(1..=86_400).contains(&seconds)
            {
                errs.push(field::invalid(&at, seconds, "must be greater than 0 and less than 86400"));
            }
        }
        "None" if has(spec, &["sessionAffinityConfig"]) => {
            errs.push(field::forbidden(
                &path.child("sessionAffinityConfig"),
                "must not be set when session affinity is None",
            ));
        }
        _ => {}
    }
    errs
}

/// v1.20 wants one protocol for a load balancer, unless it had several before.
fn mixed_protocols(service: &Value, old: Option<&Value>, context: &Context) -> Option<field::Error> {
    let mixed = |s: &Value| {
        let ports = list_at(s, &["spec", "ports"]).iter();
        ports.map(|p| str_at(p, &["protocol"])).collect::<BTreeSet<_>>().len() > 1
    };
    let refused = context.release == Release::V1_20
        && !context.gate("MixedProtocolLBService")
        && type_of(service) == "LoadBalancer"
        && mixed(service)
        && !old.is_some_and(mixed);
    refused.then(|| {
        let shown = go_print::list("core.ServicePort", get(service, &["spec", "ports"]), go_port);
        let why = "may not contain more than 1 protocol when type is 'LoadBalancer'";
        field::invalid_shown(&Path::new("spec.ports"), &shown, why)
    })
}

fn ports_together(ports: &[Value], type_: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let protocol = |p| str_at(p, &["protocol"]);
    if type_ == "ClusterIP" {
        for (i, port) in ports.iter().enumerate() {
            if get_i64(port, &["nodePort"]) != 0 {
                errs.push(field::forbidden(
                    &path.index(i).child("nodePort"),
                    "may not be used when `type` is 'ClusterIP'",
                ));
            }
        }
    }
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let number = get_i64(port, &["nodePort"]);
        if number != 0 && !seen.insert((protocol(port), number)) {
            errs.push(field::duplicate(&path.index(i).child("nodePort"), number));
        }
    }
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let number = get_i64(port, &["port"]);
        if !seen.insert((protocol(port), number)) {
            let key = json!({"protocol": protocol(port), "port": number});
            errs.push(field::duplicate_shown(&path.index(i), &go_port(&key)));
        }
    }
    errs
}

/// A port as Go prints it.
fn go_port(port: &Value) -> String {
    let target = match get(port, &["targetPort"]) {
        Value::String(s) => format!("intstr.IntOrString{{Type:1, IntVal:0, StrVal:{}}}", go_print::quoted(s)),
        n => format!("intstr.IntOrString{{Type:0, IntVal:{}, StrVal:\"\"}}", n.as_i64().unwrap_or(0)),
    };
    go_print::structure(
        "core.ServicePort",
        &[
            ("Name", go_print::quoted(str_at(port, &["name"]))),
            ("Protocol", go_print::quoted(str_at(port, &["protocol"]))),
            ("AppProtocol", "(*string)(nil)".into()),
            ("Port", get_i64(port, &["port"]).to_string()),
            ("TargetPort", target),
            ("NodePort", get_i64(port, &["nodePort"]).to_string()),
        ],
    )
}

fn source_ranges(service: &Value, path: &Path) -> ErrorList {
    let ranges = strings(service, &["spec", "loadBalancerSourceRanges"]);
    let annotation = get(service, &["metadata", "annotations", SOURCE_RANGES]).as_str();
    let (at, value, items): (Path, String, Vec<&str>) = if !ranges.is_empty() {
        (path.child("LoadBalancerSourceRanges"), format!("[{}]", ranges.join(" ")), ranges)
    } else if let Some(text) = annotation {
        let items = if text.trim().is_empty() { Vec::new() } else { text.trim().split(',').collect() };
        (Path::new("metadata.annotations").key(SOURCE_RANGES), text.into(), items)
    } else {
        return ErrorList::new();
    };
    let mut errs = ErrorList::new();
    if type_of(service) != "LoadBalancer" {
        errs.push(field::forbidden(&at, "may only be used when `type` is 'LoadBalancer'"));
    }
    if items.iter().any(|c| names::parse_cidr(c.trim()).is_none()) {
        errs.push(field::invalid(
            &at,
            value,
            "must be a list of IP ranges. For example, 10.240.0.0/24,10.250.0.0/24 ",
        ));
    }
    errs
}

fn traffic_values(spec: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let policy = str_at(spec, &["externalTrafficPolicy"]);
    if !["", "Cluster", "Local"].contains(&policy) {
        errs.push(field::invalid(
            &path.child("externalTrafficPolicy"),
            policy,
            "ExternalTrafficPolicy must be empty, Cluster or Local",
        ));
    }
    if let Some(port) = i64_at(spec, &["healthCheckNodePort"]).filter(|p| *p < 0) {
        errs.push(field::invalid(
            &path.child("healthCheckNodePort"),
            port,
            "HealthCheckNodePort must be not less than 0",
        ));
    }
    if let Some(policy) = get(spec, &["internalTrafficPolicy"]).as_str()
        && !["Cluster", "Local"].contains(&policy)
    {
        errs.push(field::not_supported(&path.child("internalTrafficPolicy"), policy, &["Cluster", "Local"]));
    }
    errs
}

/// Checked after everything else, when all is well so far.
fn traffic_fields_together(service: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    let policy = str_at(service, &["spec", "externalTrafficPolicy"]);
    if !has_external_policy(service) && !policy.is_empty() {
        errs.push(field::invalid(
            &path.child("externalTrafficPolicy"),
            policy,
            "ExternalTrafficPolicy can only be set on NodePort and LoadBalancer service",
        ));
    }
    let port = get_i64(service, &["spec", "healthCheckNodePort"]);
    if !needs_health_check_port(service) && port != 0 {
        errs.push(field::invalid(
            &path.child("healthCheckNodePort"),
            port,
            "HealthCheckNodePort can only be set on LoadBalancer service with ExternalTrafficPolicy=Local",
        ));
    }
    errs
}

/// Faults of a load balancer's status, in services and ingresses.
pub fn load_balancer_status(status: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, ingress) in list_at(status, &["ingress"]).iter().enumerate() {
        let path = path.child("ingress").index(i);
        let (ip, host) = (str_at(ingress, &["ip"]), str_at(ingress, &["hostname"]));
        if !ip.is_empty() && names::parse_ip(ip).is_none() {
            errs.push(field::invalid(&path.child("ip"), ip, "must be a valid IP address"));
        }
        if !host.is_empty() {
            errs.extend(invalid_each(&path.child("hostname"), host, names::dns1123_subdomain(host)));
            if names::parse_ip(host).is_some() {
                let why = "must be a DNS name, not an IP address";
                errs.push(field::invalid(&path.child("hostname"), host, why));
            }
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "v1",
        allow_privileged: true,
        gates: &[],
    };

    fn service(extra: Value) -> Value {
        let mut s = json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}});
        for (k, v) in extra.as_object().unwrap() {
            s["spec"][k] = v.clone();
        }
        s
    }

    fn texts(s: &Value) -> Vec<String> {
        validate(s, &CONTEXT).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ports() {
        assert!(texts(&service(json!({}))).is_empty());
        assert_eq!(texts(&service(json!({"ports": null}))), ["spec.ports: Required value"]);
        assert!(
            texts(&service(json!({"ports": null, "clusterIP": "None", "clusterIPs": ["None"]}))).is_empty()
        );
        let two = json!([{"name": "a", "port": 80, "protocol": "TCP", "targetPort": 80},
                         {"name": "a", "port": 80, "protocol": "TCP", "targetPort": "Web_"}]);
        assert_eq!(
            texts(&service(json!({"ports": two}))),
            [
                "spec.ports[1].name: Duplicate value: \"a\"",
                "spec.ports[1].targetPort: Invalid value: \"Web_\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
                "spec.ports[1]: Duplicate value: core.ServicePort{Name:\"\", Protocol:\"TCP\", AppProtocol:(*string)(nil), Port:80, TargetPort:intstr.IntOrString{Type:0, IntVal:0, StrVal:\"\"}, NodePort:0}",
            ]
        );
    }

    #[test]
    fn load_balancers_have_one_protocol() {
        let lb = |protocols: [&str; 2]| {
            let port = |i: usize| json!({"name": protocols[i].to_lowercase(), "port": 53 + i, "protocol": protocols[i], "targetPort": 53});
            service(json!({"type": "LoadBalancer", "ports": [port(0), port(1)]}))
        };
        assert!(texts(&lb(["TCP", "TCP"])).iter().all(|t| !t.contains("protocol when")));
        let got = texts(&lb(["TCP", "UDP"]));
        assert!(
            got[0].starts_with("spec.ports: Invalid value: []core.ServicePort{core.ServicePort{Name:\"tcp\"")
        );
        assert!(got[0].ends_with("}}: may not contain more than 1 protocol when type is 'LoadBalancer'"));
        assert_eq!(mixed_protocols(&lb(["TCP", "UDP"]), Some(&lb(["UDP", "TCP"])), &CONTEXT), None);
        let newest = Context { release: pilothouse_apimachinery::version::NEWEST, ..CONTEXT };
        assert_eq!(mixed_protocols(&lb(["TCP", "UDP"]), None, &newest), None);
    }

    #[test]
    fn types() {
        assert_eq!(
            texts(&service(json!({"type": "NodePort", "clusterIP": "None", "clusterIPs": ["None"]}))),
            ["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"]
        );
        assert_eq!(
            texts(&service(json!({"type": "ExternalName", "ports": null}))),
            ["spec.externalName: Required value"]
        );
        assert_eq!(
            texts(&service(json!({"type": "Odd"}))),
            [
                "spec.type: Unsupported value: \"Odd\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""
            ]
        );
        assert_eq!(
            texts(&service(json!({"externalTrafficPolicy": "Local"}))),
            [
                "spec.externalTrafficPolicy: Invalid value: \"Local\": ExternalTrafficPolicy can only be set on NodePort and LoadBalancer service"
            ]
        );
    }

    #[test]
    fn addresses() {
        assert_eq!(
            texts(&service(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"]}))),
            ["spec.clusterIPs: Invalid value: []string{\"10.0.0.2\"}: element [0] must match clusterIP"]
        );
        assert_eq!(
            texts(&service(json!({"clusterIP": "x", "clusterIPs": ["x"]}))),
            [
                "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            ]
        );
        assert_eq!(texts(&service(json!({"externalIPs": ["127.0.0.1"]}))).len(), 1);
        assert_eq!(
            texts(&service(json!({"loadBalancerSourceRanges": ["10.0.0.0/8", "x"]}))),
            [
                "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
                "spec.LoadBalancerSourceRanges: Invalid value: \"[10.0.0.0/8 x]\": must be a list of IP ranges. For example, 10.240.0.0/24,10.250.0.0/24 ",
            ]
        );
    }

    #[test]
    fn updates() {
        let old = service(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}));
        let new = service(json!({}));
        let errs = validate_update(&new, &old, &CONTEXT);
        assert_eq!(
            errs[0].to_string(),
            "spec.clusterIPs[0]: Invalid value: []string(nil): primary clusterIP can not be unset"
        );
        let new = service(json!({"clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.2"]}));
        let errs = validate_update(&new, &old, &CONTEXT);
        assert_eq!(
            errs[0].to_string(),
            "spec.clusterIPs[0]: Invalid value: []string{\"10.0.0.2\"}: may not change once set"
        );
    }

    #[test]
    fn affinity() {
        assert_eq!(
            texts(&service(
                json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}})
            )),
            [
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400"
            ]
        );
        assert_eq!(
            texts(&service(json!({"sessionAffinity": "ClientIP"}))),
            ["spec.sessionAffinityConfig: Required value: when session affinity type is ClientIP"]
        );
    }
}
