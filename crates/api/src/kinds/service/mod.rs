//! `Service`.

mod addresses;
pub mod allocation;
mod validation;

use std::collections::BTreeSet;

use pilothouse_apimachinery::json::{
    Value, copy, get, get_i64, has, json, list_at, list_mut, remove, set, set_default, str_at,
};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::version::Release;

use self::allocation::{
    has_external_policy, needs_cluster_ip, needs_health_check_port, needs_node_port, node_ports,
};
use super::checks::strings;
use super::columns::{AGE, NAME, text, wide};
use super::{Context, Kind, RowContext, STATUS, Subresource, Version};
use crate::table::{age_cell, labels_cell, name_cell};

pub use self::validation::load_balancer_status;
pub(super) use self::validation::port_or_name;

/// The value of `clusterIP` of a service that has no address.
pub const HEADLESS: &str = "None";

const TYPE: &str = "type determines how the Service is exposed. Defaults to ClusterIP. Valid options are ExternalName, ClusterIP, NodePort, and LoadBalancer. \"ClusterIP\" allocates a cluster-internal IP address for load-balancing to endpoints. Endpoints are determined by the selector or if that is not specified, by manual construction of an Endpoints object or EndpointSlice objects. If clusterIP is \"None\", no virtual IP is allocated and the endpoints are published as a set of endpoints rather than a virtual IP. \"NodePort\" builds on ClusterIP and allocates a port on every node which routes to the same endpoints as the clusterIP. \"LoadBalancer\" builds on NodePort and creates an external load-balancer (if supported in the current cloud) which routes to the same endpoints as the clusterIP. \"ExternalName\" aliases this service to the specified externalName. Several other fields do not apply to ExternalName services. More info: https://kubernetes.io/docs/concepts/services-networking/service/#publishing-services-service-types";
const CLUSTER_IP: &str = "clusterIP is the IP address of the service and is usually assigned randomly. If an address is specified manually, is in-range (as per system configuration), and is not in use, it will be allocated to the service; otherwise creation of the service will fail. This field may not be changed through updates unless the type field is also being changed to ExternalName (which requires this field to be blank) or the type field is being changed from ExternalName (in which case this field may optionally be specified, as describe above).  Valid values are \"None\", empty string (\"\"), or a valid IP address. Setting this to \"None\" makes a \"headless service\" (no virtual IP), which is useful when direct endpoint connections are preferred and proxying is not required.  Only applies to types ClusterIP, NodePort, and LoadBalancer. If this field is specified when creating a Service of type ExternalName, creation will fail. This field will be wiped when updating a Service to type ExternalName. More info: https://kubernetes.io/docs/concepts/services-networking/service/#virtual-ips-and-service-proxies";
const EXTERNAL_IP: &str = "externalIPs is a list of IP addresses for which nodes in the cluster will also accept traffic for this service.  These IPs are not managed by Kubernetes.  The user is responsible for ensuring that traffic arrives at a node with this IP.  A common example is external load-balancers that are not part of the Kubernetes system.";

/// The family: one kind.
pub static KINDS: &[&Kind] = &[&SERVICE];

/// The kind.
pub static SERVICE: Kind = Kind {
    short_names: &["svc"],
    categories: &["all"],
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    storage_prefix: "services/specs",
    subresources: &[
        Subresource {
            name: "proxy",
            gvk: Some(("", "v1", "ServiceProxyOptions")),
            verbs: &["create", "delete", "get", "patch", "update"],
        },
        STATUS,
    ],
    name_fn: names::dns1035_label_name,
    default,
    prepare_create,
    prepare_update,
    validate: validation::validate,
    validate_update: validation::validate_update,
    columns: &[
        NAME,
        text("Type", TYPE),
        text("Cluster-IP", CLUSTER_IP),
        text("External-IP", EXTERNAL_IP),
        text(
            "Port(s)",
            "The list of ports that are exposed by this service. More info: https://kubernetes.io/docs/concepts/services-networking/service/#virtual-ips-and-service-proxies",
        ),
        AGE,
        wide(
            "Selector",
            "Route service traffic to pods with label keys and values matching this selector. If empty or not present, the service is assumed to have an external process managing its endpoints, which Kubernetes will not modify. Only applies to types ClusterIP, NodePort, and LoadBalancer. Ignored if type is ExternalName. More info: https://kubernetes.io/docs/concepts/services-networking/service/",
        ),
    ],
    row,
    update_checks: (1, 1),
    ..Kind::new("Service", "services", "service", &[Version::always("", "v1")])
};

/// Whether the service has no address of its own.
pub fn is_headless(service: &Value) -> bool {
    strings(service, &["spec", "clusterIPs"]) == [HEADLESS]
}

pub(super) fn type_of(service: &Value) -> &str {
    str_at(service, &["spec", "type"])
}

fn is_empty_str(v: &Value, path: &[&str]) -> bool {
    str_at(v, path).is_empty()
}

fn default(service: &mut Value, context: &Context) {
    pilothouse_apimachinery::json::ensure_object(service, &["spec"]);
    let spec = &mut service["spec"];
    if is_empty_str(spec, &["sessionAffinity"]) {
        set(spec, &["sessionAffinity"], "None");
    }
    match str_at(spec, &["sessionAffinity"]) {
        "None" => {
            remove(spec, &["sessionAffinityConfig"]);
        }
        "ClientIP" if !has(spec, &["sessionAffinityConfig", "clientIP", "timeoutSeconds"]) => {
            set(spec, &["sessionAffinityConfig"], json!({"clientIP": {"timeoutSeconds": 10800}}));
        }
        _ => {}
    }
    if is_empty_str(spec, &["type"]) {
        set(spec, &["type"], "ClusterIP");
    }
    for port in list_mut(spec, &["ports"]) {
        if is_empty_str(port, &["protocol"]) {
            set(port, &["protocol"], "TCP");
        }
        let target = get(port, &["targetPort"]);
        if target.is_null() || *target == json!(0) || *target == json!("") {
            let number = get_i64(port, &["port"]);
            set(port, &["targetPort"], number);
        }
    }
    let type_ = str_at(spec, &["type"]).to_string();
    let external = type_ == "NodePort" || type_ == "LoadBalancer";
    if external && is_empty_str(spec, &["externalTrafficPolicy"]) {
        set(spec, &["externalTrafficPolicy"], "Cluster");
    }
    if context.release > Release::V1_20 {
        if external || type_ == "ClusterIP" {
            set_default(spec, &["internalTrafficPolicy"], "Cluster");
        }
        if type_ == "LoadBalancer" {
            set_default(spec, &["allocateLoadBalancerNodePorts"], true);
        }
    }
    set_default(service, &["status", "loadBalancer"], json!({}));
}

fn prepare_create(service: &mut Value, context: &Context) {
    set(service, &["status"], json!({"loadBalancer": {}}));
    // An old client knows the single address only.
    if !is_empty_str(service, &["spec", "clusterIP"]) && list_at(service, &["spec", "clusterIPs"]).is_empty()
    {
        let ip = str_at(service, &["spec", "clusterIP"]).to_string();
        set(service, &["spec", "clusterIPs"], json!([ip]));
    }
    drop_disabled(service, None, context);
}

/// v1.20 has dual-stack services and a few more fields only behind gates that are off.
fn drop_disabled(service: &mut Value, old: Option<&Value>, context: &Context) {
    if context.release > Release::V1_20 {
        return;
    }
    let in_use = |path: &[&str]| old.is_some_and(|o| has(o, path));
    if !in_use(&["spec", "ipFamilies"]) && !in_use(&["spec", "ipFamilyPolicy"]) {
        remove(service, &["spec", "ipFamilies"]);
        remove(service, &["spec", "ipFamilyPolicy"]);
        if let Some(ips) = service.pointer_mut("/spec/clusterIPs").and_then(Value::as_array_mut) {
            ips.truncate(1);
        }
    }
    if !in_use(&["spec", "allocateLoadBalancerNodePorts"]) {
        remove(service, &["spec", "allocateLoadBalancerNodePorts"]);
    }
    if !context.gate("ServiceTopology") && !in_use(&["spec", "topologyKeys"]) {
        remove(service, &["spec", "topologyKeys"]);
    }
    if !in_use(&["status", "conditions"]) {
        remove(service, &["status", "conditions"]);
    }
    let ports_in_use = old.is_some_and(|o| {
        list_at(o, &["status", "loadBalancer", "ingress"]).iter().any(|i| has(i, &["ports"]))
    });
    if !ports_in_use {
        for ingress in list_mut(service, &["status", "loadBalancer", "ingress"]) {
            remove(ingress, &["ports"]);
        }
    }
}

fn prepare_update(new: &mut Value, old: &Value, context: &Context) {
    if context.subresource == "status" {
        copy(new, old, &["spec"]);
        return;
    }
    copy(new, old, &["status"]);
    if context.release > Release::V1_20 {
        keep_allocated(new, old);
    }
    normalize_cluster_ips(new, old);
    drop_disabled(new, Some(old), context);
    if context.release > Release::V1_20 {
        trim_to_single_stack(new, old);
    }
    drop_fields_of_old_type(new, old);
    if has_external_policy(old) && !has_external_policy(new) {
        remove(new, &["spec", "externalTrafficPolicy"]);
    }
    // v1.20 means to do so too, but prepares the object once more afterwards.
    if context.release > Release::V1_20 && type_of(new) != "LoadBalancer" {
        set(new, &["status", "loadBalancer"], json!({}));
    }
}

/// The two fields for addresses follow each other, for clients that know only the older one.
fn normalize_cluster_ips(new: &mut Value, old: &Value) {
    let (old_ip, new_ip) =
        (str_at(old, &["spec", "clusterIP"]), str_at(new, &["spec", "clusterIP"]).to_string());
    if list_at(new, &["spec", "clusterIPs"]).is_empty() && old_ip == new_ip {
        copy(new, old, &["spec", "clusterIPs"]);
    }
    if old_ip == new_ip || strings(old, &["spec", "clusterIPs"]) != strings(new, &["spec", "clusterIPs"]) {
        return;
    }
    if new_ip.is_empty() {
        remove(new, &["spec", "clusterIPs"]);
    } else {
        set(new, &["spec", "clusterIPs"], json!([new_ip]));
    }
}

/// What was allocated stays where the update does not name it. Newer than v1.20.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(new) && needs_cluster_ip(old) {
        if is_empty_str(new, &["spec", "clusterIP"]) {
            copy(new, old, &["spec", "clusterIP"]);
        }
        let same = str_at(new, &["spec", "clusterIP"]) == str_at(old, &["spec", "clusterIP"]);
        if same && list_at(new, &["spec", "clusterIPs"]).is_empty() {
            copy(new, old, &["spec", "clusterIPs"]);
        }
        if is_empty_str(new, &["spec", "ipFamilyPolicy"]) {
            copy(new, old, &["spec", "ipFamilyPolicy"]);
        }
        if list_at(new, &["spec", "ipFamilies"]).is_empty() {
            copy(new, old, &["spec", "ipFamilies"]);
        }
    }
    if needs_node_port(new) && needs_node_port(old) {
        let mut used: BTreeSet<(String, i64)> = BTreeSet::new();
        for port in list_at(new, &["spec", "ports"]) {
            used.insert((str_at(port, &["protocol"]).into(), get_i64(port, &["nodePort"])));
        }
        for port in list_mut(new, &["spec", "ports"]) {
            if get_i64(port, &["nodePort"]) != 0 {
                continue;
            }
            let before = list_at(old, &["spec", "ports"]).iter().find(|o| {
                str_at(o, &["protocol"]) == str_at(port, &["protocol"])
                    && get_i64(o, &["port"]) == get_i64(port, &["port"])
            });
            if let Some(number) = before.map(|o| get_i64(o, &["nodePort"])).filter(|n| *n != 0)
                && used.insert((str_at(port, &["protocol"]).into(), number))
            {
                set(port, &["nodePort"], number);
            }
        }
    }
    if needs_health_check_port(new)
        && needs_health_check_port(old)
        && get_i64(new, &["spec", "healthCheckNodePort"]) == 0
    {
        copy(new, old, &["spec", "healthCheckNodePort"]);
    }
}

fn trim_to_single_stack(new: &mut Value, old: &Value) {
    let was_dual = matches!(str_at(old, &["spec", "ipFamilyPolicy"]), "RequireDualStack" | "PreferDualStack");
    if !was_dual || str_at(new, &["spec", "ipFamilyPolicy"]) != "SingleStack" {
        return;
    }
    for name in ["clusterIPs", "ipFamilies"] {
        let same = get(new, &["spec", name]) == get(old, &["spec", name]);
        if let Some(list) = new["spec"].get_mut(name).and_then(Value::as_array_mut).filter(|_| same) {
            list.truncate(1);
        }
    }
}

/// A field that the new type has no use for goes, unless the client asked for it.
fn drop_fields_of_old_type(new: &mut Value, old: &Value) {
    let same = |new: &Value, name: &str| get(new, &["spec", name]) == get(old, &["spec", name]);
    if needs_cluster_ip(old) && type_of(new) == "ExternalName" {
        if same(new, "clusterIP") && same(new, "clusterIPs") {
            remove(new, &["spec", "clusterIP"]);
            remove(new, &["spec", "clusterIPs"]);
        }
        for name in ["ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if same(new, name) {
                remove(new, &["spec", name]);
            }
        }
    }
    if needs_node_port(old) && !needs_node_port(new) && node_ports(old).is_superset(&node_ports(new)) {
        for port in list_mut(new, &["spec", "ports"]) {
            remove(port, &["nodePort"]);
        }
    }
    // Also one that the client asked for: it is taken away when the old one is given back.
    if needs_health_check_port(old) && !needs_health_check_port(new) {
        remove(new, &["spec", "healthCheckNodePort"]);
    }
    if type_of(old) == "LoadBalancer" && type_of(new) != "LoadBalancer" {
        for name in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(new, name) {
                remove(new, &["spec", name]);
            }
        }
    }
}

/// Addresses and host names of a load balancer's status, sorted, joined by commas.
pub fn load_balancer_text(status: &Value) -> String {
    let all: BTreeSet<&str> = list_at(status, &["ingress"])
        .iter()
        .map(|i| match str_at(i, &["ip"]) {
            "" => str_at(i, &["hostname"]),
            ip => ip,
        })
        .filter(|s| !s.is_empty())
        .collect();
    all.into_iter().collect::<Vec<_>>().join(",")
}

fn external_text(service: &Value) -> String {
    let ips = strings(service, &["spec", "externalIPs"]).join(",");
    match type_of(service) {
        "ClusterIP" | "NodePort" if ips.is_empty() => "<none>".into(),
        "ClusterIP" | "NodePort" => ips,
        "LoadBalancer" => {
            let balanced = load_balancer_text(get(service, &["status", "loadBalancer"]));
            match (balanced.is_empty(), ips.is_empty()) {
                (true, true) => "<pending>".into(),
                (true, false) => ips,
                (false, true) => balanced,
                (false, false) => format!("{balanced},{ips}"),
            }
        }
        "ExternalName" => str_at(service, &["spec", "externalName"]).into(),
        _ => "<unknown>".into(),
    }
}

fn row(service: &Value, context: &RowContext) -> Vec<Value> {
    let ports: Vec<String> = list_at(service, &["spec", "ports"])
        .iter()
        .map(|p| {
            let (port, protocol) = (get_i64(p, &["port"]), str_at(p, &["protocol"]));
            match get_i64(p, &["nodePort"]) {
                0 => format!("{port}/{protocol}"),
                node_port => format!("{port}:{node_port}/{protocol}"),
            }
        })
        .collect();
    let ip = strings(service, &["spec", "clusterIPs"]).first().copied().unwrap_or("<none>");
    vec![
        name_cell(service),
        type_of(service).into(),
        ip.into(),
        external_text(service).into(),
        if ports.is_empty() { "<none>".into() } else { ports.join(",").into() },
        age_cell(service, context),
        labels_cell(get(service, &["spec", "selector"])),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::NEWEST;

    use super::*;

    fn context(release: Release) -> Context {
        Context { release, subresource: "", api_version: "v1", allow_privileged: true, gates: &[] }
    }

    #[test]
    fn defaults() {
        let mut s =
            json!({"spec": {"type": "NodePort", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]}});
        default(&mut s, &context(Release::V1_20));
        assert_eq!(
            s["spec"],
            json!({"type": "NodePort", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}, "externalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
        );
        let mut s = json!({"spec": {"type": "LoadBalancer"}});
        default(&mut s, &context(NEWEST));
        assert_eq!(s["spec"]["allocateLoadBalancerNodePorts"], true);
        assert_eq!(s["spec"]["internalTrafficPolicy"], "Cluster");
    }

    #[test]
    fn create_pairs_the_addresses_and_drops_families() {
        let mut s = json!({"spec": {"clusterIP": "10.0.0.7", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}});
        prepare_create(&mut s, &context(Release::V1_20));
        assert_eq!(s["spec"], json!({"clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"]}));
        let mut s = json!({"spec": {"ipFamilies": ["IPv4"]}});
        prepare_create(&mut s, &context(NEWEST));
        assert_eq!(s["spec"]["ipFamilies"], json!(["IPv4"]));
    }

    #[test]
    fn update_to_external_name() {
        let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"]}, "status": {}});
        let mut new = json!({"spec": {"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"]}});
        prepare_update(&mut new, &old, &context(Release::V1_20));
        assert_eq!(new["spec"], json!({"type": "ExternalName", "externalName": "a.b"}));
    }

    #[test]
    fn a_change_of_type_drops_what_the_new_type_has_no_use_for() {
        let old = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
            "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 81, "protocol": "TCP", "nodePort": 30081}]}});
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        new["spec"]["ports"] = json!([{"port": 80, "protocol": "UDP", "nodePort": 30080}]);
        prepare_update(&mut new, &old, &context(Release::V1_20));
        assert_eq!(
            new["spec"],
            json!({"type": "ClusterIP", "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"], "ports": [{"port": 80, "protocol": "UDP"}]})
        );
        // A node port that the service did not have is what the client asked for.
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        new["spec"]["ports"] = json!([{"port": 80, "protocol": "TCP", "nodePort": 30099}]);
        prepare_update(&mut new, &old, &context(Release::V1_20));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30099);
    }

    #[test]
    fn the_balancers_status_goes_with_it_today() {
        let old = json!({"spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": {"ingress": [{"ip": "9.9.9.9"}]}}});
        let after = |release| {
            let mut new = json!({"spec": {"type": "ClusterIP"}, "status": {}});
            prepare_update(&mut new, &old, &context(release));
            new["status"]["loadBalancer"].clone()
        };
        assert_eq!(after(NEWEST), json!({}));
        assert_eq!(after(Release::V1_20), old["status"]["loadBalancer"]);
    }

    #[test]
    fn a_status_keeps_its_conditions() {
        let old = json!({"spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": {}}});
        let mut new = json!({"spec": {}, "status": {"conditions": [{"type": "A"}], "loadBalancer": {}}});
        prepare_update(&mut new, &old, &Context { subresource: "status", ..context(Release::V1_20) });
        assert_eq!(
            new,
            json!({"spec": {"type": "LoadBalancer"}, "status": {"conditions": [{"type": "A"}], "loadBalancer": {}}})
        );
    }

    #[test]
    fn old_clients_keep_the_list_of_addresses() {
        let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"]}});
        let mut new = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.7"}});
        prepare_update(&mut new, &old, &context(Release::V1_20));
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.0.0.7"]));
        let mut new = json!({"spec": {"type": "ClusterIP"}});
        prepare_update(&mut new, &old, &context(Release::V1_20));
        assert!(!has(&new, &["spec", "clusterIPs"]));
        prepare_update(&mut new, &old, &context(NEWEST));
        assert_eq!(new["spec"]["clusterIP"], "10.0.0.7");
    }

    #[test]
    fn newest_keeps_and_drops_node_ports() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        prepare_update(&mut new, &old, &context(NEWEST));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        set(&mut new, &["spec", "type"], "ClusterIP");
        prepare_update(&mut new, &old, &context(NEWEST));
        assert!(!has(&new["spec"]["ports"][0], &["nodePort"]));
    }

    #[test]
    fn rows() {
        let s = json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "clusterIPs": ["10.0.0.7"], "selector": {"b": "2", "a": "1"},
            "externalIPs": ["1.2.3.4"], "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]},
            "status": {"loadBalancer": {"ingress": [{"hostname": "b"}, {"ip": "9.9.9.9"}]}}});
        let cells = row(&s, &RowContext { now: 0 });
        assert_eq!(
            cells[1..5],
            [
                json!("LoadBalancer"),
                json!("10.0.0.7"),
                json!("9.9.9.9,b,1.2.3.4"),
                json!("80:30080/TCP,53/UDP")
            ]
        );
        assert_eq!(cells[6], json!("a=1,b=2"));
    }
}
