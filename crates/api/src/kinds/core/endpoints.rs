//! `Endpoints`.

use std::net::IpAddr;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, get, get_i64, list_at, list_mut, set, str_at};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::version::Release;

use crate::kinds::checks::{invalid_each, node_name};
use crate::kinds::columns::{AGE, NAME, text};
use crate::kinds::{Kind, RowContext, Version};
use crate::table::{age_cell, name_cell};

/// Protocols that ports may have, sorted as errors list them.
pub const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// The kind.
pub static ENDPOINTS: Kind = Kind {
    short_names: &["ep"],
    storage_prefix: "services/endpoints",
    create_on_update: true,
    default: |object, _| {
        for subset in list_mut(object, &["subsets"]) {
            for port in list_mut(subset, &["ports"]) {
                if str_at(port, &["protocol"]).is_empty() {
                    set(port, &["protocol"], "TCP");
                }
            }
        }
    },
    validate: |object, context| subsets(object, context.release),
    validate_update: |new, old, context| {
        if get(new, &["subsets"]) == get(old, &["subsets"]) {
            ErrorList::new()
        } else {
            subsets(new, context.release)
        }
    },
    columns: &[
        NAME,
        text(
            "Endpoints",
            "The set of all endpoints is the union of all subsets. Addresses are placed into subsets according to the IPs they share. A single address with multiple ports, some of which are ready and some of which are not (because they come from different containers) will result in the address being displayed in different subsets for the different ports. No address will appear in both Addresses and NotReadyAddresses in the same subset. Sets of addresses and ports that comprise a service.",
        ),
        AGE,
    ],
    row: |object: &Value, context: &RowContext| {
        vec![name_cell(object), endpoints_text(object).into(), age_cell(object, context)]
    },
    update_checks: (1, 1),
    ..Kind::new("Endpoints", "endpoints", "endpoints", &[Version::always("", "v1")])
};

fn subsets(object: &Value, release: Release) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, subset) in list_at(object, &["subsets"]).iter().enumerate() {
        let path = Path::new("subsets").index(i);
        let (ready, not_ready) = (list_at(subset, &["addresses"]), list_at(subset, &["notReadyAddresses"]));
        if ready.is_empty() && not_ready.is_empty() {
            errs.push(field::required(&path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for (name, addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
            for (j, address) in addresses.iter().enumerate() {
                errs.extend(address_faults(address, &path.child(name).index(j), release));
            }
        }
        let ports = list_at(subset, &["ports"]);
        for (j, port) in ports.iter().enumerate() {
            errs.extend(port_faults(port, ports.len() > 1, &path.child("ports").index(j)));
        }
    }
    errs
}

fn address_faults(address: &Value, path: &Path, release: Release) -> ErrorList {
    let ip = str_at(address, &["ip"]);
    let mut errs = invalid_each(&path.child("ip"), ip, names::ip(ip));
    let hostname = str_at(address, &["hostname"]);
    if !hostname.is_empty() {
        errs.extend(invalid_each(&path.child("hostname"), hostname, names::dns1123_label(hostname)));
    }
    if let Some(node) = get(address, &["nodeName"]).as_str() {
        errs.extend(node_name(node, &path.child("nodeName")));
    }
    errs.extend(non_special_ip(ip, &path.child("ip"), release));
    errs
}

/// Faults of an address at which a service may have an endpoint: no loopback, no link-local one and the like.
pub fn non_special_ip(text: &str, path: &Path, release: Release) -> ErrorList {
    // v1.20 names the ranges of IPv4 only.
    let old = release == Release::V1_20;
    let ranges = |v4: &str, v6: &str| if old { format!("({v4})") } else { format!("({v4}, {v6})") };
    let Some(ip) = names::parse_ip(text) else {
        return vec![field::invalid(path, text, "must be a valid IP address")];
    };
    let mut errs = ErrorList::new();
    if ip.is_unspecified() {
        let shown = if old { "0.0.0.0" } else { text };
        errs.push(field::invalid(path, text, &format!("may not be unspecified ({shown})")));
    }
    if ip.is_loopback() {
        let why = format!("may not be in the loopback range {}", ranges("127.0.0.0/8", "::1/128"));
        errs.push(field::invalid(path, text, &why));
    }
    let (link_local, multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] == 0xff02),
    };
    if link_local {
        let why = format!("may not be in the link-local range {}", ranges("169.254.0.0/16", "fe80::/10"));
        errs.push(field::invalid(path, text, &why));
    }
    if multicast {
        let why =
            format!("may not be in the link-local multicast range {}", ranges("224.0.0.0/24", "ff02::/10"));
        errs.push(field::invalid(path, text, &why));
    }
    errs
}

fn port_faults(port: &Value, named: bool, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let name = str_at(port, &["name"]);
    if !name.is_empty() {
        errs.extend(invalid_each(&path.child("name"), name, names::dns1123_label(name)));
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
    if let Some(app) = get(port, &["appProtocol"]).as_str() {
        errs.extend(invalid_each(&path.child("appProtocol"), app, names::qualified_name(app)));
    }
    errs
}

fn endpoints_text(object: &Value) -> String {
    let subsets = list_at(object, &["subsets"]);
    if subsets.is_empty() {
        return "<none>".into();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let ips = || list_at(subset, &["addresses"]).iter().map(|a| str_at(a, &["ip"]));
        let ports = list_at(subset, &["ports"]);
        if ports.is_empty() {
            all.extend(ips().map(ToString::to_string));
        }
        for port in ports {
            let port = get_i64(port, &["port"]);
            all.extend(
                ips().map(
                    |ip| {
                        if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
                    },
                ),
            );
        }
    }
    let shown = all.iter().take(3).cloned().collect::<Vec<_>>().join(",");
    if all.len() > 3 { format!("{shown} + {} more...", all.len() - 3) } else { shown }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::NEWEST;

    use super::*;
    use crate::kinds::Context;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "v1",
        allow_privileged: true,
        gates: &[],
    };

    #[test]
    fn faults() {
        let o = json!({"subsets": [
            {"addresses": [{"ip": ""}, {"ip": "127.0.0.1", "hostname": "A"}], "ports": [
                {"port": 80, "protocol": "TCP"}, {"name": "x", "port": 0, "protocol": "ICMP"}]},
            {}]});
        let errs = subsets(&o, Release::V1_20);
        let texts: Vec<String> = errs.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts[0],
            "subsets[0].addresses[0].ip: Invalid value: \"\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
        );
        assert_eq!(texts[1], "subsets[0].addresses[0].ip: Invalid value: \"\": must be a valid IP address");
        assert!(texts[2].starts_with("subsets[0].addresses[1].hostname: "));
        assert!(texts[3].ends_with("may not be in the loopback range (127.0.0.0/8)"));
        let today = subsets(&o, NEWEST)[3].to_string();
        assert!(today.ends_with("may not be in the loopback range (127.0.0.0/8, ::1/128)"));
        assert_eq!(texts[4], "subsets[0].ports[0].name: Required value");
        assert_eq!(
            texts[5],
            "subsets[0].ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive"
        );
        assert_eq!(
            texts[6],
            "subsets[0].ports[1].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\""
        );
        assert_eq!(texts[7], "subsets[1]: Required value: must specify `addresses` or `notReadyAddresses`");
    }

    #[test]
    fn shown() {
        let o = json!({"subsets": [{"addresses": [{"ip": "10.0.1.1"}, {"ip": "10.0.1.2"}],
            "ports": [{"port": 53}, {"port": 9153}]}]});
        assert_eq!(endpoints_text(&o), "10.0.1.1:53,10.0.1.2:53,10.0.1.1:9153 + 1 more...");
        assert_eq!(endpoints_text(&json!({})), "<none>");
    }

    #[test]
    fn protocol_defaults() {
        let mut o = json!({"subsets": [{"ports": [{"port": 80}]}]});
        (ENDPOINTS.default)(&mut o, &CONTEXT);
        assert_eq!(o["subsets"][0]["ports"][0]["protocol"], "TCP");
    }
}
