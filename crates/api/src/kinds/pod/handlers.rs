//! Validation of probes and lifecycle handlers.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::names;

use crate::kinds::access::{is_empty, items, part, present, text};
use crate::kinds::checks::invalid_each;
use crate::kinds::numbers::all_nonnegative;

/// Faults of a probe, if there is one.
pub(super) fn probe(probe: &Value, path: &Path) -> ErrorList {
    if probe.is_null() {
        return ErrorList::new();
    }
    let mut errs = handler(probe, path);
    const NUMBERS: &[&str] =
        &["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
    errs.extend(all_nonnegative(probe, NUMBERS, path));
    errs
}

/// Faults of `lifecycle`, if there is one.
pub(super) fn lifecycle(lifecycle: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for hook in ["postStart", "preStop"] {
        if present(lifecycle, hook) {
            errs.extend(handler(part(lifecycle, hook), &path.child(hook)));
        }
    }
    errs
}

fn handler(handler: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut found = 0;
    const HANDLERS: &[(&str, fn(&Value, &Path) -> ErrorList)] =
        &[("exec", exec), ("httpGet", http_get), ("tcpSocket", tcp_socket), ("grpc", grpc), ("sleep", sleep)];
    for (key, check) in HANDLERS {
        if !present(handler, key) {
            continue;
        }
        let at = path.child(key);
        found += 1;
        if found > 1 {
            errs.push(field::forbidden(&at, "may not specify more than 1 handler type"));
        } else {
            errs.extend(check(part(handler, key), &at));
        }
    }
    if found == 0 {
        errs.push(field::required(path, "must specify a handler type"));
    }
    errs
}

fn exec(action: &Value, path: &Path) -> ErrorList {
    if is_empty(action, "command") {
        return vec![field::required(&path.child("command"), "")];
    }
    ErrorList::new()
}

fn http_get(action: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if text(action, "path").is_empty() {
        errs.push(field::required(&path.child("path"), ""));
    }
    errs.extend(port(part(action, "port"), &path.child("port")));
    let scheme = text(action, "scheme");
    if !["HTTP", "HTTPS"].contains(&scheme) {
        errs.push(field::not_supported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]));
    }
    for header in items(action, "httpHeaders") {
        let name = text(header, "name");
        errs.extend(invalid_each(&path.child("httpHeaders"), name, names::http_header_name(name)));
    }
    errs
}

fn tcp_socket(action: &Value, path: &Path) -> ErrorList {
    port(part(action, "port"), &path.child("port"))
}

fn grpc(action: &Value, path: &Path) -> ErrorList {
    port(part(action, "port"), &path.child("port"))
}

fn sleep(action: &Value, path: &Path) -> ErrorList {
    all_nonnegative(action, &["seconds"], path)
}

/// Faults of a port by number or name.
fn port(port: &Value, path: &Path) -> ErrorList {
    match port {
        Value::String(name) => invalid_each(path, name, names::port_name(name)),
        other => {
            let n = other.as_i64().unwrap_or(0);
            names::port_number(n).iter().map(|m| field::invalid(path, n, m)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn handlers() {
        let p = Path::new("p");
        let faults = |v: Value| probe(&v, &p).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(faults(json!({"tcpSocket": {"port": "http"}})).is_empty());
        assert!(faults(Value::Null).is_empty());
        assert_eq!(
            faults(json!({"periodSeconds": -1})),
            [
                "p: Required value: must specify a handler type",
                "p.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
        assert_eq!(
            faults(json!({"exec": {}, "httpGet": {}})),
            [
                "p.exec.command: Required value",
                "p.httpGet: Forbidden: may not specify more than 1 handler type",
            ]
        );
        assert_eq!(
            faults(json!({"httpGet": {"path": "/", "scheme": "FTP", "port": 0}})),
            [
                "p.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "p.httpGet.scheme: Unsupported value: \"FTP\": supported values: \"HTTP\", \"HTTPS\"",
            ]
        );
    }
}
