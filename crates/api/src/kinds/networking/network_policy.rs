//! `NetworkPolicy`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{
    Value, get, has, i64_at, json, list_at, list_mut, set, set_default, str_at,
};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::selector::validate_label_selector;

use super::{GROUP, is_empty};
use crate::go_print::{self, quoted};
use crate::kinds::checks::strings;
use crate::kinds::columns::{AGE, NAME, text};
use crate::kinds::service::port_or_name;
use crate::kinds::{Context, Kind, RowContext, Version};
use crate::table::{age_cell, name_cell, selector_cell};

/// The kind.
pub static NETWORK_POLICY: Kind = Kind {
    short_names: &["netpol"],
    has_generation: true,
    storage_version: "networking.k8s.io/v1",
    invalid_group: Some("extensions"),
    default,
    validate: |policy, _| faults(policy),
    // Kubernetes checks the new object by itself and again as the outcome of the update.
    validate_update: |new, _, _| [faults(new), faults(new)].concat(),
    columns: &[
        NAME,
        text(
            "Pod-Selector",
            "Selects the pods to which this NetworkPolicy object applies.  The array of ingress rules is applied to any pods selected by this field. Multiple network policies can select the same set of pods.  In this case, the ingress rules for each are combined additively. This field is NOT optional and follows standard label selector semantics. An empty podSelector matches all pods in this namespace.",
        ),
        AGE,
    ],
    row: |policy: &Value, context: &RowContext| {
        vec![
            name_cell(policy),
            selector_cell(get(policy, &["spec", "podSelector"])),
            age_cell(policy, context),
        ]
    },
    update_checks: (1, 1),
    ..Kind::new(
        "NetworkPolicy",
        "networkpolicies",
        "networkpolicy",
        &[Version::always(GROUP, "v1"), Version::newer("extensions", "v1beta1")],
    )
};

/// The two directions: field of rules, field of peers.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

fn default(policy: &mut Value, _context: &Context) {
    for (direction, _) in DIRECTIONS {
        for rule in list_mut(policy, &["spec", direction]) {
            for port in list_mut(rule, &["ports"]) {
                set_default(port, &["protocol"], "TCP");
            }
        }
    }
    if is_empty(policy, &["spec", "policyTypes"]) {
        let types = if is_empty(policy, &["spec", "egress"]) {
            json!(["Ingress"])
        } else {
            json!(["Ingress", "Egress"])
        };
        set(policy, &["spec", "policyTypes"], types);
    }
}

fn faults(policy: &Value) -> ErrorList {
    let path = Path::new("spec");
    let mut errs = validate_label_selector(get(policy, &["spec", "podSelector"]), &path.child("podSelector"));
    for (direction, peers) in DIRECTIONS {
        for (i, rule) in list_at(policy, &["spec", direction]).iter().enumerate() {
            let path = path.child(direction).index(i);
            for (j, port) in list_at(rule, &["ports"]).iter().enumerate() {
                errs.extend(port_faults(port, &path.child("ports").index(j)));
            }
            for (j, peer) in list_at(rule, &[peers]).iter().enumerate() {
                errs.extend(peer_faults(peer, &path.child(peers).index(j)));
            }
        }
    }
    let types = strings(policy, &["spec", "policyTypes"]);
    let at = path.child("policyTypes");
    if types.len() > 2 {
        let shown = go_print::list("networking.PolicyType", get(policy, &["spec", "policyTypes"]), |t| {
            quoted(t.as_str().unwrap_or(""))
        });
        errs.push(field::invalid_shown(&at, &shown, "may not specify more than two policyTypes"));
        return errs;
    }
    for (i, type_) in types.into_iter().enumerate() {
        if !["Ingress", "Egress"].contains(&type_) {
            errs.push(field::not_supported(&at.index(i), type_, &["Ingress", "Egress"]));
        }
    }
    errs
}

fn port_faults(port: &Value, path: &Path) -> ErrorList {
    const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
    let mut errs = ErrorList::new();
    if let Some(protocol) = get(port, &["protocol"]).as_str()
        && !PROTOCOLS.contains(&protocol)
    {
        errs.push(field::not_supported(&path.child("protocol"), protocol, PROTOCOLS));
    }
    let number = get(port, &["port"]);
    if !number.is_null() {
        errs.extend(port_or_name(number, &path.child("port")));
    }
    if let Some(end) = i64_at(port, &["endPort"]) {
        let at = path.child("endPort");
        match number.as_i64() {
            Some(start) if end < start => {
                errs.push(field::invalid(&at, end, "must be greater than or equal to `port`"));
            }
            None if number.is_null() => {
                errs.push(field::invalid(&at, end, "may not be specified when `port` is not specified"));
            }
            None => errs.push(field::invalid(&at, end, "may not be specified when `port` is non-numeric")),
            Some(_) => {}
        }
        errs.extend(names::port_number(end).iter().map(|m| field::invalid(&at, end, m)));
    }
    errs
}

fn peer_faults(peer: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut count = 0;
    for name in ["podSelector", "namespaceSelector"] {
        if has(peer, &[name]) {
            count += 1;
            errs.extend(validate_label_selector(get(peer, &[name]), &path.child(name)));
        }
    }
    let block = get(peer, &["ipBlock"]);
    if !block.is_null() {
        errs.extend(block_faults(block, &path.child("ipBlock")));
        if count > 0 {
            errs.push(field::forbidden(path, "may not specify both ipBlock and another peer"));
        }
    } else if count == 0 {
        errs.push(field::required(path, "must specify a peer"));
    }
    errs
}

fn block_faults(block: &Value, path: &Path) -> ErrorList {
    let cidr = str_at(block, &["cidr"]);
    let at = path.child("cidr");
    if cidr.is_empty() {
        return vec![field::required(&at, "")];
    }
    let Some(outer) = parse(cidr) else { return vec![field::invalid(&at, cidr, "not a valid CIDR")] };
    let mut errs = ErrorList::new();
    for (i, except) in strings(block, &["except"]).into_iter().enumerate() {
        let at = path.child("except").index(i);
        let Some(inner) = parse(except) else {
            errs.push(field::invalid(&at, except, "not a valid CIDR"));
            return errs;
        };
        if !outer.contains(&inner.addr()) || outer.prefix_len() >= inner.prefix_len() {
            errs.push(field::invalid(&at, except, "must be a strict subset of `cidr`"));
        }
    }
    errs
}

fn parse(cidr: &str) -> Option<ipnet::IpNet> {
    let (ip, length) = names::parse_cidr(cidr)?;
    ipnet::IpNet::new(ip, length).ok()
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::Release;

    use super::*;

    #[test]
    fn defaults() {
        let context = Context {
            release: Release::V1_20,
            subresource: "",
            api_version: "networking.k8s.io/v1",
            allow_privileged: true,
            gates: &[],
        };
        let mut p = json!({"spec": {"egress": [{"ports": [{"port": 53}]}]}});
        default(&mut p, &context);
        assert_eq!(p["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(p["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
    }

    #[test]
    fn policy_faults() {
        let texts: Vec<String> = faults(&json!({"spec": {"podSelector": {}, "policyTypes": ["Odd"],
            "ingress": [{"ports": [{"protocol": "ICMP", "port": 0}], "from": [{},
                {"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8", "10.1.0.0/16"]}}]}]}}))
            .iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\"",
                "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ingress[0].from[0]: Required value: must specify a peer",
                "spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
                "spec.ingress[0].from[1]: Forbidden: may not specify both ipBlock and another peer",
                "spec.policyTypes[0]: Unsupported value: \"Odd\": supported values: \"Ingress\", \"Egress\"",
            ]
        );
    }
}
