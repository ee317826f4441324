//! Which volumes a policy allows.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::Value;

use crate::json::{bool_at, containers, get, list_at, str_at};

/// The name that policies have for the type of a volume whose source has another.
fn type_of(volume: &Value) -> &str {
    let source = volume.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).find(|k| *k != "name");
    match source {
        Some("cephfs") => "cephFS",
        Some(other) => other,
        None => "emptyDir",
    }
}

/// Whether a host path lies below a prefix.
fn below(path: &str, prefix: &str) -> bool {
    let (path, prefix) = (path.trim_end_matches('/'), prefix.trim_end_matches('/'));
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a policy allows a path of the host, and whether only to read.
fn host_path(spec: &Value, path: &str) -> (bool, bool) {
    let allowed = list_at(spec, &["allowedHostPaths"]);
    if allowed.is_empty() {
        return (true, false);
    }
    let mut matching = allowed.iter().filter(|a| below(path, str_at(a, &["pathPrefix"]))).peekable();
    let any = matching.peek().is_some();
    (any, any && matching.all(|a| bool_at(a, &["readOnly"])))
}

/// Faults of a pod's volumes.
pub(super) fn validate(spec: &Value, pod: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let types = crate::json::texts(spec, &["volumes"]);
    for (i, volume) in list_at(pod, &["spec", "volumes"]).iter().enumerate() {
        let path = Path::new("spec").child("volumes").index(i);
        let kind = type_of(volume);
        if !types.iter().any(|t| t == "*" || t == kind) {
            errors.push(field::invalid(&path, kind, &format!("{kind} volumes are not allowed to be used")));
            continue;
        }
        // The name of a driver stands in `driver` or in `name`.
        let listed = |list: &str, key: &str, driver: &str| {
            let allowed = list_at(spec, &[list]);
            allowed.is_empty() || allowed.iter().any(|a| str_at(a, &[key]) == driver)
        };
        match kind {
            "hostPath" => errors.extend(host(spec, pod, volume, &path)),
            "flexVolume" => {
                let driver = str_at(volume, &["flexVolume", "driver"]);
                if !listed("allowedFlexVolumes", "driver", driver) {
                    let detail = "Flexvolume driver is not allowed to be used";
                    errors.push(field::invalid(&path.child("driver"), driver, detail));
                }
            }
            "csi" => {
                let driver = str_at(volume, &["csi", "driver"]);
                if !listed("allowedCSIDrivers", "name", driver) {
                    let detail = "Inline CSI driver is not allowed to be used";
                    errors.push(field::invalid(&path.child("csi").child("driver"), driver, detail));
                }
            }
            _ => {}
        }
    }
    errors
}

fn host(spec: &Value, pod: &Value, volume: &Value, at: &Path) -> ErrorList {
    let path = str_at(volume, &["hostPath", "path"]);
    let (allowed, read_only) = host_path(spec, path);
    if !allowed {
        let at = at.child("hostPath").child("pathPrefix");
        return vec![field::invalid(&at, path, "is not allowed to be used")];
    }
    if !read_only {
        return ErrorList::new();
    }
    let mut errors = ErrorList::new();
    let (mut list, mut n) = ("", 0);
    for (of, container) in containers(get(pod, &["spec"])) {
        n = if of == list { n + 1 } else { 0 };
        list = of;
        for (i, mount) in list_at(container, &["volumeMounts"]).iter().enumerate() {
            if str_at(mount, &["name"]) == str_at(volume, &["name"]) && !bool_at(mount, &["readOnly"]) {
                let at =
                    Path::new("spec").child(of).index(n).child("volumeMounts").index(i).child("readOnly");
                errors.push(field::invalid(&at, false, "must be read-only"));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn prefixes_end_at_slashes() {
        assert!(
            below("/foo", "/foo") && below("/foo/", "/foo") && below("/foo/bar", "/foo/") && below("/x", "/")
        );
        assert!(!below("/foool", "/foo") && !below("/etc/foo", "/foo"));
        let spec =
            json!({"allowedHostPaths": [{"pathPrefix": "/a", "readOnly": true}, {"pathPrefix": "/a/b"}]});
        assert_eq!(host_path(&spec, "/a/c"), (true, true));
        assert_eq!(host_path(&spec, "/a/b/c"), (true, false));
        assert_eq!(host_path(&spec, "/b"), (false, false));
        assert_eq!(host_path(&json!({}), "/b"), (true, false));
    }
}
