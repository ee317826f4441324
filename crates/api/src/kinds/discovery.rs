//! `EndpointSlice` of `discovery.k8s.io`. Hub is v1beta1, the only version that v1.20 has.

use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, Error, ErrorList, Path};
use pilothouse_apimachinery::json::{
    Map, Value, get, has, i64_at, list_at, list_mut, map_at, remove, set, set_default, str_at,
};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::version::Release;

use super::checks::{immutable_at, invalid_each, node_name, strings};
use super::columns::{AGE, NAME, text};
use super::core::endpoints::{PROTOCOLS, non_special_ip};
use super::{Context, Kind, RowContext, Version};
use crate::table::{age_cell, name_cell};

const GROUP: &str = "discovery.k8s.io";
const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The family: one kind.
pub static KINDS: &[&Kind] = &[&ENDPOINT_SLICE];

/// The kind.
pub static ENDPOINT_SLICE: Kind = Kind {
    has_generation: true,
    storage_version: "discovery.k8s.io/v1beta1",
    default: |slice, _| {
        for port in list_mut(slice, &["ports"]) {
            set_default(port, &["name"], "");
            set_default(port, &["protocol"], "TCP");
        }
    },
    prepare_create: |slice, context| drop_disabled(slice, None, context),
    prepare_update: |new, old, context| drop_disabled(new, Some(old), context),
    validate: |slice, context| faults(slice, context.release),
    validate_update: |new, old, context| {
        let mut errs = faults(new, context.release);
        errs.extend(immutable_at(new, old, &["addressType"]));
        errs
    },
    columns: &[
        NAME,
        text(
            "AddressType",
            "addressType specifies the type of address carried by this EndpointSlice. All addresses in this slice must be the same type. This field is immutable after creation. The following address types are currently supported: * IPv4: Represents an IPv4 Address. * IPv6: Represents an IPv6 Address. * FQDN: Represents a Fully Qualified Domain Name.",
        ),
        text(
            "Ports",
            "ports specifies the list of network ports exposed by each endpoint in this slice. Each port must have a unique name. When ports is empty, it indicates that there are no defined ports. When a port is defined with a nil port value, it indicates \"all ports\". Each slice may include a maximum of 100 ports.",
        ),
        text(
            "Endpoints",
            "endpoints is a list of unique endpoints in this slice. Each slice may include a maximum of 1000 endpoints.",
        ),
        AGE,
    ],
    row,
    update_checks: (1, 0),
    ..Kind::new(
        "EndpointSlice",
        "endpointslices",
        "endpointslice",
        &[
            Version::always(GROUP, "v1beta1"),
            Version { to_hub: Some(from_v1), from_hub: Some(to_v1), ..Version::newer(GROUP, "v1") },
        ],
    )
};

/// v1 has node and zone as fields, v1beta1 has them among the topology labels.
fn from_v1(slice: &mut Value) {
    for endpoint in list_mut(slice, &["endpoints"]) {
        if let Some(Value::Object(labels)) = remove(endpoint, &["deprecatedTopology"]) {
            set(endpoint, &["topology"], Value::Object(labels));
        }
        let zone = remove(endpoint, &["zone"]);
        if let Some(zone) = zone {
            set(endpoint, &["topology", ZONE], zone);
        }
    }
}

fn to_v1(slice: &mut Value) {
    for endpoint in list_mut(slice, &["endpoints"]) {
        let Some(Value::Object(mut labels)) = remove(endpoint, &["topology"]) else { continue };
        if let Some(zone) = labels.remove(ZONE) {
            set(endpoint, &["zone"], zone);
        }
        if let Some(node) = labels.remove(HOSTNAME)
            && !has(endpoint, &["nodeName"])
        {
            set(endpoint, &["nodeName"], node);
        }
        if !labels.is_empty() {
            set(endpoint, &["deprecatedTopology"], Value::Object(labels));
        }
    }
}

/// v1.20 has these fields only behind gates that are off.
fn drop_disabled(slice: &mut Value, old: Option<&Value>, context: &Context) {
    if context.release > Release::V1_20 {
        return;
    }
    let in_use = |path: &[&str]| {
        old.is_some_and(|o| list_at(o, &["endpoints"]).iter().any(|endpoint| has(endpoint, path)))
    };
    for path in [&["conditions", "serving"][..], &["conditions", "terminating"], &["nodeName"]] {
        if !in_use(path) {
            for endpoint in list_mut(slice, &["endpoints"]) {
                remove(endpoint, path);
            }
        }
    }
}

fn faults(slice: &Value, release: Release) -> ErrorList {
    const TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
    let mut errs = ErrorList::new();
    let type_ = str_at(slice, &["addressType"]);
    let at = Path::new("addressType");
    if type_.is_empty() {
        errs.push(field::required(&at, ""));
    } else if !TYPES.contains(&type_) {
        errs.push(field::not_supported(&at, type_, TYPES));
    }
    errs.extend(endpoint_faults(list_at(slice, &["endpoints"]), type_, release));
    errs.extend(port_faults(list_at(slice, &["ports"])));
    errs
}

fn endpoint_faults(endpoints: &[Value], type_: &str, release: Release) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("endpoints");
    if endpoints.len() > 1000 {
        errs.push(field::too_many(&path, endpoints.len(), 1000));
        return errs;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let path = path.index(i);
        let addresses = strings(endpoint, &["addresses"]);
        let at = path.child("addresses");
        if addresses.is_empty() {
            errs.push(field::required(&at, "must contain at least 1 address"));
        } else if addresses.len() > 100 {
            errs.push(field::too_many(&at, addresses.len(), 100));
        }
        for (j, address) in addresses.into_iter().enumerate() {
            errs.extend(address_faults(address, type_, &at.index(j), release));
        }
        if let Some(node) = get(endpoint, &["nodeName"]).as_str() {
            errs.extend(node_name(node, &path.child("nodeName")));
        }
        let topology = map_at(endpoint, &["topology"]).map_or(0, Map::len);
        if topology > 16 {
            errs.push(field::too_many(&path.child("topology"), topology, 16));
        }
        errs.extend(names::labels(get(endpoint, &["topology"]), &path.child("topology")));
        if let Some(hostname) = get(endpoint, &["hostname"]).as_str() {
            errs.extend(invalid_each(&path.child("hostname"), hostname, names::dns1123_label(hostname)));
        }
    }
    errs
}

fn address_faults(address: &str, type_: &str, path: &Path, release: Release) -> ErrorList {
    match type_ {
        "IPv4" | "IPv6" => {
            let fits = if type_ == "IPv4" { names::is_ipv4 } else { names::is_ipv6 };
            let mut errs = ErrorList::new();
            if !fits(address) {
                errs.push(field::invalid(path, address, &format!("must be a valid {type_} address")));
            }
            // v1.20.2 takes any address here; v1.20.7 was the first that did not (CVE-2021-25737).
            if release != Release::V1_20 {
                errs.extend(non_special_ip(address, path, release));
            }
            errs
        }
        "FQDN" => domain_faults(address, path),
        _ => ErrorList::new(),
    }
}

fn domain_faults(name: &str, path: &Path) -> ErrorList {
    if name.is_empty() {
        return vec![field::required(path, "")];
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let faults = names::dns1123_subdomain(name);
    if !faults.is_empty() {
        return vec![field::invalid(path, name, &faults.join(","))];
    }
    if !name.contains('.') {
        return vec![field::invalid(
            path,
            name,
            "should be a domain with at least two segments separated by dots",
        )];
    }
    let label = |l: &str| -> Option<Error> {
        let faults = names::dns1123_label(l);
        (!faults.is_empty()).then(|| field::invalid(path, l, &faults.join(",")))
    };
    name.split('.').filter_map(label).collect()
}

fn port_faults(ports: &[Value]) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("ports");
    if ports.len() > 100 {
        errs.push(field::too_many(&path, ports.len(), 100));
        return errs;
    }
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = str_at(port, &["name"]);
        if !name.is_empty() {
            errs.extend(invalid_each(&path.child("name"), name, names::dns1123_label(name)));
        }
        if !seen.insert(name) {
            errs.push(field::duplicate(&path.child("name"), name));
        }
        let protocol = str_at(port, &["protocol"]);
        if !PROTOCOLS.contains(&protocol) {
            errs.push(field::not_supported(&path.child("protocol"), protocol, PROTOCOLS));
        }
        if let Some(app) = get(port, &["appProtocol"]).as_str() {
            errs.extend(invalid_each(&path.child("appProtocol"), app, names::qualified_name(app)));
        }
    }
    errs
}

fn row(slice: &Value, context: &RowContext) -> Vec<Value> {
    let ports = list_at(slice, &["ports"]).iter().map(|port| match i64_at(port, &["port"]) {
        Some(number) => number.to_string(),
        None => get(port, &["name"]).as_str().unwrap_or("*").to_string(),
    });
    let addresses = list_at(slice, &["endpoints"])
        .iter()
        .flat_map(|endpoint| strings(endpoint, &["addresses"]))
        .map(ToString::to_string);
    vec![
        name_cell(slice),
        str_at(slice, &["addressType"]).into(),
        first_three(ports.collect()).into(),
        first_three(addresses.collect()).into(),
        age_cell(slice, context),
    ]
}

fn first_three(all: Vec<String>) -> String {
    let shown = all.iter().take(3).cloned().collect::<Vec<_>>().join(",");
    if all.len() > 3 {
        format!("{shown} + {} more...", all.len() - 3)
    } else if shown.is_empty() {
        "<unset>".into()
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::NEWEST;

    use super::*;

    #[test]
    fn conversion_moves_zone_and_node() {
        let mut slice = json!({"endpoints": [{"addresses": ["10.1.0.1"], "topology": {ZONE: "z", HOSTNAME: "n", "x": "y"}}]});
        to_v1(&mut slice);
        assert_eq!(
            slice,
            json!({"endpoints": [{"addresses": ["10.1.0.1"], "zone": "z", "nodeName": "n", "deprecatedTopology": {"x": "y"}}]})
        );
        from_v1(&mut slice);
        assert_eq!(slice["endpoints"][0]["topology"], json!({ZONE: "z", "x": "y"}));
    }

    #[test]
    fn slice_faults() {
        let texts = |slice: &Value, release| -> Vec<String> {
            faults(slice, release).iter().map(ToString::to_string).collect()
        };
        let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["", "127.0.0.1"]}, {}],
            "ports": [{"name": "", "protocol": "TCP"}, {"name": "", "protocol": "X"}]});
        assert_eq!(
            texts(&slice, Release::V1_20),
            [
                "endpoints[0].addresses[0]: Invalid value: \"\": must be a valid IPv4 address",
                "endpoints[1].addresses: Required value: must contain at least 1 address",
                "ports[1].name: Duplicate value: \"\"",
                "ports[1].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ]
        );
        assert_eq!(
            texts(&slice, NEWEST)[..3],
            [
                "endpoints[0].addresses[0]: Invalid value: \"\": must be a valid IPv4 address",
                "endpoints[0].addresses[0]: Invalid value: \"\": must be a valid IP address",
                "endpoints[0].addresses[1]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ]
        );
    }

    #[test]
    fn gated_fields() {
        let context = |release| Context {
            release,
            subresource: "",
            api_version: "discovery.k8s.io/v1beta1",
            allow_privileged: true,
            gates: &[],
        };
        let slice = json!({"endpoints": [{"conditions": {"ready": true, "serving": true}, "nodeName": "n"}]});
        let mut s = slice.clone();
        drop_disabled(&mut s, None, &context(Release::V1_20));
        assert_eq!(s, json!({"endpoints": [{"conditions": {"ready": true}}]}));
        let mut s = slice.clone();
        drop_disabled(&mut s, None, &context(NEWEST));
        assert_eq!(s, slice);
    }

    #[test]
    fn rows() {
        let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "ports": [{"port": 80}, {"name": "x"}],
            "endpoints": [{"addresses": ["1", "2"]}, {"addresses": ["3", "4"]}]});
        let cells = row(&slice, &RowContext { now: 0 });
        assert_eq!(cells[1..4], [json!("IPv4"), json!("80,x"), json!("1,2,3 + 1 more...")]);
        assert_eq!(first_three(Vec::new()), "<unset>");
    }
}
