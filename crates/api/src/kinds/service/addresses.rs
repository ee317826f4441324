//! The addresses of a service and their families.

use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, get, list_at, str_at};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::version::Release;

use super::{HEADLESS, is_headless, type_of};
use crate::go_print;
use crate::kinds::checks::{invalid_each, strings};

fn shown(service: &Value, name: &str) -> String {
    go_print::strings(get(service, &["spec", name]))
}

/// Faults of addresses and families as they are.
pub(super) fn address_faults(service: &Value, path: &Path, release: Release) -> ErrorList {
    let (unset, unlike) = if release == Release::V1_20 {
        ("must be empty when clusterIP is empty", "element [0] must match clusterIP")
    } else {
        ("must be empty when `clusterIP` is not specified", "first value must match `clusterIP`")
    };
    const FAMILIES: &[&str] = &["IPv4", "IPv6"];
    const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
    let mut errs = ErrorList::new();
    if type_of(service) == "ExternalName" {
        return errs;
    }
    let spec = get(service, &["spec"]);
    let at = path.child("clusterIPs");
    let ips = strings(spec, &["clusterIPs"]);
    match (str_at(spec, &["clusterIP"]), ips.first()) {
        ("", Some(_)) => errs.push(field::invalid_shown(&at, &shown(service, "clusterIPs"), unset)),
        ("", None) => {}
        (_, None) => errs.push(field::required(&at, "")),
        (ip, Some(first)) => {
            if ip != *first {
                errs.push(field::invalid_shown(&at, &shown(service, "clusterIPs"), unlike));
            }
        }
    }
    let families = strings(spec, &["ipFamilies"]);
    let mut seen = BTreeSet::new();
    for (i, family) in families.iter().enumerate() {
        let at = path.child("ipFamilies").index(i);
        if !FAMILIES.contains(family) {
            errs.push(field::not_supported(&at, *family, FAMILIES));
        }
        if !seen.insert(family) {
            errs.push(field::duplicate(&at, *family));
        }
    }
    if let Some(policy) = get(spec, &["ipFamilyPolicy"]).as_str()
        && !POLICIES.contains(&policy)
    {
        errs.push(field::not_supported(&path.child("ipFamilyPolicy"), policy, POLICIES));
    }
    let mut malformed = false;
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && *ip == HEADLESS {
            if ips.len() > 1 {
                malformed = true;
                let why = "'None' must be the first and only value";
                errs.push(field::invalid_shown(&at, &shown(service, "clusterIPs"), why));
            }
            continue;
        }
        let messages = names::ip(ip);
        malformed |= !messages.is_empty();
        errs.extend(invalid_each(&at.index(i), ip, messages));
    }
    if ips.len() > 2 {
        errs.push(field::invalid_shown(&at, &shown(service, "clusterIPs"), "may only hold up to 2 values"));
    }
    if malformed {
        return errs;
    }
    if ips.len() > 1 && ips.iter().map(|ip| names::is_ipv6(ip)).collect::<BTreeSet<_>>().len() < 2 {
        errs.push(field::invalid_shown(
            &at,
            &shown(service, "clusterIPs"),
            "may specify no more than one IP for each IP family",
        ));
    }
    if !is_headless(service) && errs.is_empty() {
        for (i, (ip, family)) in ips.iter().zip(&families).enumerate() {
            if names::is_ipv6(ip) != (*family == "IPv6") {
                let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
                errs.push(field::invalid(&at.index(i), *ip, &why));
            }
        }
    }
    errs
}

/// Faults of a change of addresses.
pub(super) fn addresses_change(new: &Value, old: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    if [new, old].iter().any(|s| type_of(s) == "ExternalName") || (is_headless(new) && is_headless(old)) {
        return errs;
    }
    let (before, after) = (strings(old, &["spec", "clusterIPs"]), strings(new, &["spec", "clusterIPs"]));
    let path = Path::new("spec.clusterIPs");
    let mut push = |i: usize, why: &str| {
        errs.push(field::invalid_shown(&path.index(i), &shown(new, "clusterIPs"), why));
    };
    if before.len() == after.len() {
        for (i, _) in before.iter().zip(&after).enumerate().filter(|(_, (b, a))| b != a) {
            push(i, "may not change once set");
        }
        return errs;
    }
    if before.len() > after.len() && after.is_empty() {
        push(0, "primary clusterIP can not be unset");
    }
    if !before.is_empty() && !after.is_empty() && before[0] != after[0] {
        push(0, "may not change once set");
    }
    if before.len() > after.len()
        && after.len() == 1
        && str_at(new, &["spec", "ipFamilyPolicy"]) != "SingleStack"
    {
        push(0, "`ipFamilyPolicy` must be set to 'SingleStack' when releasing the secondary clusterIP");
    }
    errs
}

/// Faults of a change of families.
pub(super) fn families_change(new: &Value, old: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    if [new, old].iter().any(|s| type_of(s) == "ExternalName" || is_headless(s)) {
        return errs;
    }
    let (before, after) = (strings(old, &["spec", "ipFamilies"]), strings(new, &["spec", "ipFamilies"]));
    let path = Path::new("spec.ipFamilies").index(0);
    let families = go_print::list("core.IPFamily", get(new, &["spec", "ipFamilies"]), |f| {
        go_print::quoted(f.as_str().unwrap_or(""))
    });
    if before.len() == after.len() {
        for _ in before.iter().zip(&after).filter(|(b, a)| b != a) {
            errs.push(field::invalid_shown(&path, &families, "may not change once set"));
        }
        return errs;
    }
    let shrinks = before.len() > after.len();
    if shrinks && list_at(new, &["spec", "clusterIPs"]).is_empty() {
        errs.push(field::invalid_shown(&path, &families, "primary ipFamily can not be unset"));
    }
    if !before.is_empty() && !after.is_empty() && before[0] != after[0] {
        errs.push(field::invalid_shown(&path, &shown(new, "clusterIPs"), "may not change once set"));
    }
    if shrinks && after.len() == 1 && str_at(new, &["spec", "ipFamilyPolicy"]) != "SingleStack" {
        let why = "`ipFamilyPolicy` must be set to 'SingleStack' when releasing the secondary ipFamily";
        errs.push(field::invalid_shown(&path, &families, why));
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    fn service(ips: &[&str], families: &[&str], policy: Option<&str>) -> Value {
        json!({"spec": {"type": "ClusterIP", "clusterIP": ips.first(), "clusterIPs": ips, "ipFamilies": families, "ipFamilyPolicy": policy}})
    }

    fn texts(errs: &ErrorList) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn families_match_addresses() {
        let faults = |s| texts(&address_faults(&s, &Path::new("spec"), Release::V1_20));
        assert!(faults(service(&["10.0.0.1", "fd00::1"], &["IPv4", "IPv6"], None)).is_empty());
        assert_eq!(
            faults(service(&["10.0.0.1"], &["IPv6"], None)),
            [
                "spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`"
            ]
        );
        assert_eq!(
            faults(service(&["10.0.0.1", "10.0.0.2"], &[], None)),
            [
                "spec.clusterIPs: Invalid value: []string{\"10.0.0.1\", \"10.0.0.2\"}: may specify no more than one IP for each IP family"
            ]
        );
        assert_eq!(faults(service(&[], &["IPv4", "IPv4", "X"], Some("Odd"))).len(), 3);
    }

    #[test]
    fn the_second_address_goes_with_the_policy() {
        let old = service(&["10.0.0.1", "fd00::1"], &["IPv4", "IPv6"], Some("PreferDualStack"));
        let single = service(&["10.0.0.1"], &["IPv4"], Some("SingleStack"));
        assert!(addresses_change(&single, &old).is_empty());
        assert!(families_change(&single, &old).is_empty());
        let unsaid = service(&["10.0.0.1"], &["IPv4"], None);
        assert!(
            addresses_change(&unsaid, &old)[0].body.contains("`ipFamilyPolicy` must be set to 'SingleStack'")
        );
        assert_eq!(families_change(&service(&["fd00::1"], &["IPv6"], Some("SingleStack")), &old).len(), 1);
    }
}
