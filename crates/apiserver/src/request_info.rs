//! What a request's method, path and query say: one parse, as v1.20's `RequestInfoFactory` does it.

use std::borrow::Cow;

use http::Method;

use crate::request::RequestInfo;

/// Decodes `%41` and, in queries, `+`. Bad escapes stay as they are.
fn unescape(text: &str, plus: bool) -> Cow<'_, str> {
    let escaped = text.contains('%') || (plus && text.contains('+'));
    if !escaped {
        return Cow::Borrowed(text);
    }
    let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match (bytes[i], bytes.get(i + 1).copied().and_then(hex), bytes.get(i + 2).copied().and_then(hex)) {
            (b'%', Some(high), Some(low)) => {
                out.push(high * 16 + low);
                i += 2;
            }
            (b'+', ..) if plus => out.push(b' '),
            (b, ..) => out.push(b),
        }
        i += 1;
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// The decoded parameters of a query, in the order given.
pub fn parse_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|s| !s.is_empty())
        .map(|pair| {
            let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
            (unescape(k, true).into_owned(), unescape(v, true).into_owned())
        })
        .collect()
}

/// What is meant by `watch`, `watch=true`, `watch=1`. Whatever is neither `false` nor `0` counts as yes, as a broken
/// parameter must not turn a watch into a list.
fn wants_watch(query: &[(String, String)]) -> bool {
    query
        .iter()
        .find(|(k, _)| k == "watch")
        .is_some_and(|(_, v)| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
}

/// The name that a field selector pins with `metadata.name=`.
fn selected_name(query: &[(String, String)]) -> Option<&str> {
    let (_, selector) = query.iter().find(|(k, _)| k == "fieldSelector")?;
    selector.split(',').find_map(|term| {
        let value = term.strip_prefix("metadata.name=").map(|v| v.strip_prefix('=').unwrap_or(v))?;
        let valid = !value.is_empty() && value != "." && value != ".." && !value.contains(['/', '%', '\\']);
        valid.then_some(value)
    })
}

/// Parses a request. An error is a path below `/api` or `/apis` that breaks off (`/api/v1/watch`).
pub fn request_info(method: &Method, path: &str, query: &[(String, String)]) -> Result<RequestInfo, String> {
    let path = unescape(path, false).into_owned();
    let mut info = RequestInfo { verb: method.as_str().to_ascii_lowercase(), path, ..RequestInfo::default() };
    let whole = info.path.clone();
    let parts: Vec<&str> = match whole.trim_matches('/') {
        "" => Vec::new(),
        trimmed => trimmed.split('/').collect(),
    };
    let mut parts = parts.as_slice();
    if parts.len() < 3 {
        return Ok(info);
    }
    match parts[0] {
        "api" => parts = &parts[1..],
        "apis" if parts.len() < 4 => return Ok(info),
        "apis" => {
            info.group = parts[1].to_string();
            parts = &parts[2..];
        }
        _ => return Ok(info),
    }
    info.is_resource = true;
    info.version = parts[0].to_string();
    parts = &parts[1..];

    if matches!(parts[0], "proxy" | "watch") {
        if parts.len() < 2 {
            return Err(format!("unable to determine kind and namespace from url, {whole}"));
        }
        info.verb = parts[0].to_string();
        parts = &parts[1..];
    } else {
        info.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        }
        .to_string();
    }

    if parts[0] == "namespaces" && parts.len() > 1 {
        info.namespace = parts[1].to_string();
        // What follows is a resource of its own, unless it belongs to the Namespace object.
        if parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
            parts = &parts[2..];
        }
    }
    info.resource = parts[0].to_string();
    info.name = parts.get(1).copied().unwrap_or_default().to_string();
    if parts.len() >= 3 && info.verb != "proxy" {
        info.subresource = parts[2].to_string();
        info.rest = rest_of(&whole, parts, 3);
    } else if info.verb == "proxy" {
        info.rest = rest_of(&whole, parts, 2);
    }

    if info.name.is_empty() && info.verb == "get" {
        info.verb = if wants_watch(query) { "watch" } else { "list" }.to_string();
        info.name = selected_name(query).unwrap_or_default().to_string();
    }
    if info.name.is_empty() && info.verb == "delete" {
        info.verb = "deletecollection".to_string();
    }
    Ok(info)
}

/// The path from part `from` on, with its slash in front and at the end; empty where there is nothing.
fn rest_of(path: &str, parts: &[&str], from: usize) -> String {
    if parts.len() <= from {
        let bare = path.ends_with('/') && parts.len() == from;
        return if bare { "/".to_string() } else { String::new() };
    }
    let slash = if path.ends_with('/') { "/" } else { "" };
    format!("/{}{slash}", parts[from..].join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: &str, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        request_info(&method.parse().unwrap(), path, &parse_query(query)).unwrap()
    }

    #[test]
    fn resources() {
        // method, path, verb, group, version, namespace, resource, subresource, name
        for row in [
            ["GET", "/api/v1/namespaces", "list", "", "v1", "", "namespaces", "", ""],
            ["GET", "/api/v1/namespaces/other", "get", "", "v1", "other", "namespaces", "", "other"],
            ["GET", "/api/v1/namespaces/other/pods", "list", "", "v1", "other", "pods", "", ""],
            ["HEAD", "/api/v1/namespaces/other/pods/foo", "get", "", "v1", "other", "pods", "", "foo"],
            ["GET", "/api/v1/pods?watch", "watch", "", "v1", "", "pods", "", ""],
            ["GET", "/api/v1/pods?watch=0", "list", "", "v1", "", "pods", "", ""],
            [
                "GET",
                "/api/v1/pods?fieldSelector=metadata.name%3Dfoo",
                "list",
                "",
                "v1",
                "",
                "pods",
                "",
                "foo",
            ],
            ["GET", "/api/v1/pods?fieldSelector=metadata.name%3Da%2Fb", "list", "", "v1", "", "pods", "", ""],
            ["GET", "/api/v1/watch/namespaces/n/pods", "watch", "", "v1", "n", "pods", "", ""],
            ["GET", "/api/v1/watch/namespaces/n/pods/p", "watch", "", "v1", "n", "pods", "", "p"],
            ["GET", "/api/v1/watch/pods", "watch", "", "v1", "", "pods", "", ""],
            ["PUT", "/api/v1/namespaces/n/finalize", "update", "", "v1", "n", "namespaces", "finalize", "n"],
            ["GET", "/api/v1/namespaces/n/status", "get", "", "v1", "n", "namespaces", "status", "n"],
            [
                "POST",
                "/apis/apps/v1/namespaces/n/deployments",
                "create",
                "apps",
                "v1",
                "n",
                "deployments",
                "",
                "",
            ],
            [
                "PATCH",
                "/apis/apps/v1/namespaces/n/deployments/d/scale",
                "patch",
                "apps",
                "v1",
                "n",
                "deployments",
                "scale",
                "d",
            ],
            [
                "DELETE",
                "/apis/apps/v1/namespaces/n/deployments",
                "deletecollection",
                "apps",
                "v1",
                "n",
                "deployments",
                "",
                "",
            ],
            ["DELETE", "/api/v1/nodes/n1", "delete", "", "v1", "", "nodes", "", "n1"],
            ["GET", "/api/v1/nodes/system%3An1", "get", "", "v1", "", "nodes", "", "system:n1"],
        ] {
            let i = info(row[0], row[1]);
            assert!(i.is_resource);
            assert_eq!(
                [&*i.verb, &*i.group, &*i.version, &*i.namespace, &*i.resource, &*i.subresource, &*i.name],
                row[2..],
                "{}",
                row[1]
            );
        }
    }

    #[test]
    fn proxies_keep_the_rest_of_the_path() {
        let i = info("GET", "/api/v1/namespaces/n/services/http:s:80/proxy/a/b/");
        assert_eq!((&*i.subresource, &*i.name, &*i.rest, &*i.verb), ("proxy", "http:s:80", "/a/b/", "get"));
        assert_eq!(info("GET", "/api/v1/nodes/n/proxy/").rest, "/");
        assert_eq!(info("GET", "/api/v1/nodes/n/proxy").rest, "");
        let old = info("GET", "/api/v1/proxy/nodes/n/logs/x");
        assert_eq!((&*old.verb, &*old.subresource, &*old.name, &*old.rest), ("proxy", "", "n", "/logs/x"));
    }

    #[test]
    fn paths_that_are_no_resources() {
        for path in [
            "/",
            "/api",
            "/api/v1",
            "/apis/apps",
            "/apis/apps/v1",
            "/version",
            "/healthz/etcd/x",
            "/foo/v1/pods",
        ] {
            let i = info("GET", path);
            assert!(!i.is_resource, "{path}");
            assert_eq!(i.verb, "get");
        }
        assert!(request_info(&Method::GET, "/api/v1/watch", &[]).is_err());
        assert!(request_info(&Method::GET, "/api/v1/watch/", &[]).is_err());
    }

    #[test]
    fn queries() {
        assert_eq!(
            parse_query("a=b%2Cc&d&e=f+g&=x"),
            [("a", "b,c"), ("d", ""), ("e", "f g"), ("", "x")].map(|(k, v)| (k.to_string(), v.to_string()))
        );
    }
}
