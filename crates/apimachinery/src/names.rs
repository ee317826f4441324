//! Which names, labels and other small strings are allowed, with the messages of v1.20
//! (`k8s.io/apimachinery/pkg/util/validation`). Every function gives the faults as texts; none means valid.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::json::Value;

use crate::field::{self, ErrorList, Path};

/// Longest DNS-1123 label.
pub const DNS1123_LABEL_MAX: usize = 63;
/// Longest DNS-1123 subdomain.
pub const DNS1123_SUBDOMAIN_MAX: usize = 253;
/// Longest label value, and longest name part of a qualified name.
pub const LABEL_VALUE_MAX: usize = 63;
/// Most bytes of all annotations together.
pub const TOTAL_ANNOTATION_SIZE_LIMIT: usize = 256 * 1024;

const DNS1123_LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1123_LABEL_MSG: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const DNS1123_SUBDOMAIN_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1123_SUBDOMAIN_MSG: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const DNS1035_FMT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const DNS1035_MSG: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
const QUALIFIED_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_MSG: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// `must be no more than <n> characters`.
pub fn max_length(n: usize) -> String {
    format!("must be no more than {n} characters")
}

/// `must be non-empty`.
pub fn empty() -> String {
    "must be non-empty".into()
}

/// `must be between <low> and <high>, inclusive`.
pub fn inclusive_range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// `<message> (e.g. 'a',  or 'b', regex used for validation is '…')`, with v1.20's odd comma.
pub fn regex_error(message: &str, format: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{format}')");
    }
    let list: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{format}')", list.join(" or "))
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn matches_label(s: &str) -> bool {
    let b = s.as_bytes();
    let (Some(&first), Some(&last)) = (b.first(), b.last()) else { return false };
    lower_alnum(first) && lower_alnum(last) && b.iter().all(|&c| lower_alnum(c) || c == b'-')
}

fn matches_subdomain(s: &str) -> bool {
    s.split('.').all(matches_label)
}

fn matches_qualified(s: &str) -> bool {
    let b = s.as_bytes();
    let (Some(first), Some(last)) = (b.first(), b.last()) else { return false };
    first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

fn matches_1035(s: &str) -> bool {
    matches_label(s) && s.as_bytes()[0].is_ascii_lowercase()
}

/// A DNS-1123 label: namespace names, container names.
pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > DNS1123_LABEL_MAX {
        errs.push(max_length(DNS1123_LABEL_MAX));
    }
    if !matches_label(value) {
        errs.push(regex_error(DNS1123_LABEL_MSG, DNS1123_LABEL_FMT, &["my-name", "123-abc"]));
    }
    errs
}

/// A DNS-1123 subdomain: most object names.
pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        errs.push(max_length(DNS1123_SUBDOMAIN_MAX));
    }
    if !matches_subdomain(value) {
        errs.push(regex_error(DNS1123_SUBDOMAIN_MSG, DNS1123_SUBDOMAIN_FMT, &["example.com"]));
    }
    errs
}

/// A DNS-1123 subdomain whose labels are all valid labels (no label over 63 characters).
pub fn fully_qualified_domain_name(value: &str) -> Result<(), Vec<String>> {
    let errs = dns1123_subdomain(value);
    if errs.is_empty() { Ok(()) } else { Err(errs) }
}

/// A DNS-1035 label: service names.
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > DNS1123_LABEL_MAX {
        errs.push(max_length(DNS1123_LABEL_MAX));
    }
    if !matches_1035(value) {
        errs.push(regex_error(DNS1035_MSG, DNS1035_FMT, &["my-name", "abc-123"]));
    }
    errs
}

/// `*.` and a DNS-1123 subdomain: wildcard hosts of ingresses.
pub fn wildcard_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        errs.push(max_length(DNS1123_SUBDOMAIN_MAX));
    }
    if !value.strip_prefix("*.").is_some_and(matches_subdomain) {
        errs.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{DNS1123_SUBDOMAIN_FMT}"),
            &["*.example.com"],
        ));
    }
    errs
}

/// A qualified name: label keys, annotation keys, resource names, finalizers.
pub fn qualified_name(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    let examples = ["MyName", "my.name", "123-abc"];
    let mut parts = value.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                errs.push(format!("prefix part {}", empty()));
            } else {
                errs.extend(dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            errs.push(format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                regex_error(QUALIFIED_MSG, QUALIFIED_FMT, &examples)
            ));
            return errs;
        }
    };
    if name.is_empty() {
        errs.push(format!("name part {}", empty()));
    } else if name.len() > LABEL_VALUE_MAX {
        errs.push(format!("name part {}", max_length(LABEL_VALUE_MAX)));
    }
    if !matches_qualified(name) {
        errs.push(format!("name part {}", regex_error(QUALIFIED_MSG, QUALIFIED_FMT, &examples)));
    }
    errs
}

/// A label's value.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > LABEL_VALUE_MAX {
        errs.push(max_length(LABEL_VALUE_MAX));
    }
    if !value.is_empty() && !matches_qualified(value) {
        errs.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    errs
}

/// `<domain>/<path>`: signer names and the like.
pub fn domain_prefixed_path(path: &Path, value: &str) -> ErrorList {
    if value.is_empty() {
        return vec![field::required(path, "")];
    }
    let Some((domain, rest)) = value.split_once('/').filter(|(d, r)| !d.is_empty() && !r.is_empty()) else {
        return vec![field::invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")")];
    };
    let mut errs: ErrorList =
        dns1123_subdomain(domain).iter().map(|m| field::invalid(path, domain, m)).collect();
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"/%-._~:@!$&'()*+,;=".contains(&b);
    if !rest.bytes().all(ok) {
        errs.push(field::invalid(
            path,
            rest,
            "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
        ));
    }
    errs
}

fn c_identifier_ok(value: &str) -> bool {
    let b = value.as_bytes();
    b.first().is_some_and(|c| c.is_ascii_alphabetic() || *c == b'_')
        && b.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'_')
}

/// A C identifier.
pub fn c_identifier(value: &str) -> Vec<String> {
    if c_identifier_ok(value) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// Faults of a name that is used as a file name: `.`, `..`, a leading `..`.
pub fn dir_or_file_name(value: &str) -> Vec<String> {
    match value {
        "." => vec!["must not be '.'".into()],
        ".." => vec!["must not be '..'".into()],
        v if v.starts_with("..") => vec!["must not start with '..'".into()],
        _ => Vec::new(),
    }
}

/// The name of an environment variable.
pub fn env_var_name(value: &str) -> Vec<String> {
    let b = value.as_bytes();
    let first = |c: &u8| c.is_ascii_alphabetic() || matches!(c, b'-' | b'.' | b'_');
    let rest = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
    let mut errs = Vec::new();
    if !(b.first().is_some_and(first) && b.iter().all(rest)) {
        errs.push(regex_error(
            "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and must not start with a digit",
            "[-._a-zA-Z][-._a-zA-Z0-9]*",
            &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
        ));
    }
    errs.extend(dir_or_file_name(value));
    errs
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        errs.push(max_length(DNS1123_SUBDOMAIN_MAX));
    }
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if value.is_empty() || !value.bytes().all(ok) {
        errs.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    errs.extend(dir_or_file_name(value));
    errs
}

/// A port number.
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) { Vec::new() } else { vec![inclusive_range(1, 65535)] }
}

/// An IANA service name: names of container ports.
pub fn port_name(value: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if value.len() > 15 {
        errs.push(max_length(15));
    }
    let ok = |b: u8| lower_alnum(b) || b == b'-';
    if value.is_empty() || !value.bytes().all(ok) {
        errs.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        errs.push("must contain at least one letter or number (a-z, 0-9)".into());
    }
    if value.contains("--") {
        errs.push("must not contain consecutive hyphens".into());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errs.push("must not begin or end with a hyphen".into());
    }
    errs
}

/// A user id.
pub fn user_id(id: i64) -> Vec<String> {
    if (0..=i64::from(i32::MAX)).contains(&id) {
        Vec::new()
    } else {
        vec![inclusive_range(0, i64::from(i32::MAX))]
    }
}

/// A group id.
pub fn group_id(id: i64) -> Vec<String> {
    user_id(id)
}

/// A percentage such as `25%`.
pub fn percent(value: &str) -> Vec<String> {
    let digits = value.strip_suffix('%').unwrap_or("");
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// A name of an HTTP header.
pub fn http_header_name(value: &str) -> Vec<String> {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// Parses an IP address as Go of v1.20's time does: leading zeros in IPv4 octets are decimal, not errors.
pub fn parse_ip(value: &str) -> Option<IpAddr> {
    if value.contains(':') {
        if let Some((head, tail)) = value.rsplit_once(':').filter(|(_, t)| t.contains('.')) {
            let v4 = parse_ipv4(tail)?.octets();
            let (hi, lo) = (u16::from_be_bytes([v4[0], v4[1]]), u16::from_be_bytes([v4[2], v4[3]]));
            return format!("{head}:{hi:x}:{lo:x}").parse::<Ipv6Addr>().ok().map(IpAddr::V6);
        }
        return value.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    parse_ipv4(value).map(IpAddr::V4)
}

fn parse_ipv4(value: &str) -> Option<Ipv4Addr> {
    let mut out = [0u8; 4];
    let mut n = 0;
    for part in value.split('.') {
        if n == 4 || part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        // More digits than any number up to 255 needs, leading zeros included, are refused by Go too late to matter.
        let v: u32 =
            part.trim_start_matches('0').parse().or(if part.contains('0') { Ok(0) } else { Err(()) }).ok()?;
        out[n] = u8::try_from(v).ok()?;
        n += 1;
    }
    (n == 4).then(|| Ipv4Addr::from(out))
}

/// An IP address, v4 or v6.
pub fn ip(value: &str) -> Vec<String> {
    if parse_ip(value).is_some() {
        Vec::new()
    } else {
        vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()]
    }
}

/// An IPv4 address (an IPv4 address written as IPv6 counts, as in Go).
pub fn is_ipv4(value: &str) -> bool {
    match parse_ip(value) {
        Some(IpAddr::V4(_)) => true,
        Some(IpAddr::V6(v6)) => v6.to_ipv4_mapped().is_some(),
        None => false,
    }
}

/// An IPv6 address that is no mapped IPv4 address.
pub fn is_ipv6(value: &str) -> bool {
    parse_ip(value).is_some() && !is_ipv4(value)
}

/// Whether the string is an address block such as `10.0.0.0/24`.
pub fn parse_cidr(value: &str) -> Option<(IpAddr, u8)> {
    let (addr, len) = value.split_once('/')?;
    let addr = parse_ip(addr)?;
    if len.is_empty() || len.len() > 3 || !len.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let len: u8 = len.parse().ok()?;
    let max = if addr.is_ipv4() { 32 } else { 128 };
    (len <= max).then_some((addr, len))
}

/// An address block.
pub fn cidr(value: &str) -> Vec<String> {
    if parse_cidr(value).is_some() {
        Vec::new()
    } else {
        vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24)".into()]
    }
}

/// A `generateName` may end with `-`; as in v1.20 its last two characters give way to an `a` then.
fn masked(name: &str, is_prefix: bool) -> String {
    if is_prefix && name.len() > 1 && name.ends_with('-') {
        let mut head = name.to_string();
        head.pop();
        head.pop();
        head.push('a');
        return head;
    }
    name.to_string()
}

/// Name function of kinds whose names are DNS-1123 subdomains.
pub fn dns1123_subdomain_name(name: &str, is_prefix: bool) -> Vec<String> {
    dns1123_subdomain(&masked(name, is_prefix))
}

/// Name function of kinds whose names are DNS-1123 labels.
pub fn dns1123_label_name(name: &str, is_prefix: bool) -> Vec<String> {
    dns1123_label(&masked(name, is_prefix))
}

/// Name function of kinds whose names are DNS-1035 labels.
pub fn dns1035_label_name(name: &str, is_prefix: bool) -> Vec<String> {
    dns1035_label(&masked(name, is_prefix))
}

/// Name function of kinds whose names need only fit into a path: RBAC roles and the like.
pub fn path_segment_name(name: &str, is_prefix: bool) -> Vec<String> {
    if is_prefix {
        return contains_path_segment_faults(name);
    }
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    contains_path_segment_faults(name)
}

fn contains_path_segment_faults(name: &str) -> Vec<String> {
    ["/", "%"].iter().filter(|c| name.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// Faults of a label's key, at a path.
pub fn label_name(key: &str, path: &Path) -> ErrorList {
    qualified_name(key).iter().map(|m| field::invalid(path, key, m)).collect()
}

/// Faults of labels: keys and values.
pub fn labels(labels: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (key, value) in crate::json::strings_at(labels, &[]) {
        errs.extend(label_name(key, path));
        errs.extend(label_value(value).iter().map(|m| field::invalid(path, value, m)));
    }
    errs
}

/// Faults of annotations: keys, and size.
pub fn annotations(annotations: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut total = 0;
    for (key, value) in crate::json::strings_at(annotations, &[]) {
        // Keys are case-insensitive here.
        errs.extend(qualified_name(&key.to_lowercase()).iter().map(|m| field::invalid(path, key, m)));
        total += key.len() + value.len();
    }
    if total > TOTAL_ANNOTATION_SIZE_LIMIT {
        errs.push(field::too_long(path, TOTAL_ANNOTATION_SIZE_LIMIT));
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        for ok in ["a", "a-b", "0", "a0"] {
            assert!(dns1123_label(ok).is_empty(), "{ok}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b"] {
            assert!(!dns1123_label(bad).is_empty(), "{bad}");
        }
        assert!(dns1123_subdomain("a.b-c.d").is_empty());
        assert!(!dns1123_subdomain("a..b").is_empty());
        assert_eq!(dns1123_label("-").len(), 1);
        assert_eq!(
            dns1123_label("A")[0],
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
        );
        assert_eq!(dns1123_label(&"a".repeat(64)), [max_length(63)]);
        assert!(!dns1035_label("1a").is_empty());
    }

    #[test]
    fn qualified_names() {
        for ok in ["simple", "now-with-dashes", "1-starts", "1.2.3.4/5678", "Uppercase_Is_OK_123", "e.com/a"]
        {
            assert!(qualified_name(ok).is_empty(), "{ok}");
        }
        for bad in ["nospecial%", "/a", "a/", "a/b/c", "", "-x", "x-"] {
            assert!(!qualified_name(bad).is_empty(), "{bad}");
        }
        assert_eq!(qualified_name("").len(), 2);
    }

    #[test]
    fn small_strings() {
        assert!(port_name("http-2").is_empty());
        assert!(!port_name("--").is_empty());
        assert!(percent("25%").is_empty() && !percent("").is_empty() && !percent("%").is_empty());
        assert!(config_map_key("a.b").is_empty() && !config_map_key("..a").is_empty());
        assert!(dns1123_subdomain_name("a-", true).is_empty());
        assert!(!dns1123_subdomain_name("a-", false).is_empty());
        assert_eq!(path_segment_name("a/b%", false).len(), 2);
    }

    #[test]
    fn addresses() {
        assert!(ip("10.0.0.1").is_empty() && ip("010.0.0.1").is_empty() && ip("::1").is_empty());
        for bad in ["", "1.2.3", "1.2.3.256", "1.2.3.4.5", "a", ":"] {
            assert!(!ip(bad).is_empty(), "{bad}");
        }
        assert!(is_ipv4("::ffff:1.2.3.4") && is_ipv6("fe80::1"));
        assert!(
            cidr("10.0.0.0/24").is_empty() && !cidr("10.0.0.0/33").is_empty() && !cidr("10.0.0.0").is_empty()
        );
    }
}
