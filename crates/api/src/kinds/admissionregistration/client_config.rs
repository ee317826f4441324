//! How a webhook is reached: by URL or through a service. Also for conversion webhooks of custom resources.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::names;

/// Faults of a URL. It must be `https://host[/path]`.
pub fn url_faults(path: &Path, url: &str) -> ErrorList {
    const FORM: &str = "; desired format: https://host[/path]";
    let mut errs = ErrorList::new();
    if let Some(why) = malformed(url) {
        let why = format!("url must be a valid URL: parse {url:?}: {why}{FORM}");
        errs.push(field::required(path, &why));
        return errs;
    }
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = match rest.split_once(':') {
        Some((scheme, rest)) if !scheme.contains('/') => (scheme, rest),
        _ => ("", rest),
    };
    let authority = rest.strip_prefix("//").map_or("", |r| r.split('/').next().unwrap_or(""));
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(u, h)| (Some(u), h));
    if !scheme.eq_ignore_ascii_case("https") {
        errs.push(field::invalid(path, scheme, &format!("'https' is the only allowed URL scheme{FORM}")));
    }
    if host.is_empty() {
        errs.push(field::invalid(path, host, &format!("host must be provided{FORM}")));
    }
    if let Some(user) = user {
        errs.push(field::invalid(path, user, "user information is not permitted in the URL"));
    }
    if !fragment.is_empty() {
        errs.push(field::invalid(path, fragment, "fragments are not permitted in the URL"));
    }
    if !query.is_empty() {
        errs.push(field::invalid(path, query, "query parameters are not permitted in the URL"));
    }
    errs
}

fn malformed(url: &str) -> Option<&'static str> {
    if url.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Some("net/url: invalid control character in URL");
    }
    if url.starts_with(':') {
        return Some("missing protocol scheme");
    }
    let first = url.split('/').next().unwrap_or("");
    if let Some((scheme, _)) = first.split_once(':')
        && !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    {
        return Some("first path segment in URL cannot contain colon");
    }
    None
}

/// Faults of a reference to a service: its name, namespace, port, and the path of the request.
pub fn service_faults(
    path: &Path,
    name: &str,
    namespace: &str,
    url_path: Option<&str>,
    port: i64,
) -> ErrorList {
    let mut errs = ErrorList::new();
    if name.is_empty() {
        errs.push(field::required(&path.child("name"), "service name is required"));
    }
    if namespace.is_empty() {
        errs.push(field::required(&path.child("namespace"), "service namespace is required"));
    }
    let faults = names::port_number(port);
    if !faults.is_empty() {
        let why = format!("port is not valid: {}", faults.join(","));
        errs.push(field::invalid(&path.child("port"), port, &why));
    }
    let Some(url_path) = url_path.filter(|p| !["", "/"].contains(p)) else { return errs };
    let at = path.child("path");
    if url_path == "//" {
        errs.push(field::invalid(&at, url_path, "segment[0] may not be empty"));
        return errs;
    }
    if !url_path.starts_with('/') {
        errs.push(field::invalid(&at, url_path, "must start with a '/'"));
    }
    let mut chars = url_path.chars();
    chars.next();
    let rest = chars.as_str();
    for (i, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            errs.push(field::invalid(&at, url_path, &format!("segment[{i}] may not be empty")));
            continue;
        }
        for fault in names::dns1123_subdomain(step) {
            errs.push(field::invalid(&at, url_path, &format!("segment[{i}]: {fault}")));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let texts = |url| -> Vec<String> {
            url_faults(&Path::new("u"), url).iter().map(|e| e.body.clone()).collect()
        };
        assert!(texts("https://example.com:8443/a/b").is_empty());
        assert_eq!(
            texts("http://u:p@h/x?a=b#c"),
            [
                "Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
                "Invalid value: \"u:p\": user information is not permitted in the URL",
                "Invalid value: \"c\": fragments are not permitted in the URL",
                "Invalid value: \"a=b\": query parameters are not permitted in the URL",
            ]
        );
        assert_eq!(texts("").len(), 2);
    }

    #[test]
    fn services() {
        let count = |p| service_faults(&Path::new("s"), "a", "b", p, 443).len();
        assert_eq!(count(None), 0);
        assert_eq!(count(Some("/a/b/")), 0);
        assert_eq!(count(Some("//")), 1);
        assert_eq!(count(Some("/a//b")), 1);
        assert_eq!(service_faults(&Path::new("s"), "", "", None, 0).len(), 3);
    }
}
