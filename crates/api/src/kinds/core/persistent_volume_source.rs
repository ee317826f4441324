//! What stands behind a `PersistentVolume`: one of twenty-two kinds of storage.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{
    Map, Value, bool_at, get, get_i64, has, i64_at, list_at, map_at, str_at,
};
use pilothouse_apimachinery::names;

use crate::go_print;
use crate::kinds::checks::invalid_each;

/// The fields of the sources, in the order in which they are checked.
pub const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Errors of fields that must not be empty.
fn required(source: &Value, path: &Path, fields: &[&str]) -> ErrorList {
    fields
        .iter()
        .filter(|f| match get(source, &[f]) {
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            v => v.is_null(),
        })
        .map(|f| field::required(&path.child(f), ""))
        .collect()
}

/// Errors of a reference to a secret whose name or namespace is missing.
fn secret_ref(source: &Value, path: &Path, name: &str) -> ErrorList {
    match get(source, &[name]) {
        Value::Null => ErrorList::new(),
        reference => required(reference, &path.child(name), &["name", "namespace"]),
    }
}

/// An error where a path has `..` in it.
pub fn no_backsteps(target: &str, path: &Path) -> ErrorList {
    if target.split('/').any(|part| part == "..") {
        vec![field::invalid(path, target, "must not contain '..'")]
    } else {
        ErrorList::new()
    }
}

fn partition(source: &Value, path: &Path) -> ErrorList {
    let n = get_i64(source, &["partition"]);
    if (0..=255).contains(&n) {
        ErrorList::new()
    } else {
        vec![field::invalid(&path.child("partition"), n, &names::inclusive_range(1, 255))]
    }
}

fn lun(n: i64, path: &Path) -> ErrorList {
    if (0..=255).contains(&n) {
        ErrorList::new()
    } else {
        vec![field::invalid(&path.child("lun"), n, &names::inclusive_range(0, 255))]
    }
}

/// Faults of the name of a CSI driver.
pub fn csi_driver_name(name: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if name.is_empty() {
        errs.push(field::required(path, ""));
    }
    if name.len() > 63 {
        errs.push(field::too_long(path, 63));
    }
    errs.extend(invalid_each(path, name, names::dns1123_subdomain(&name.to_lowercase())));
    errs
}

/// Faults of one source.
pub fn source_faults(kind: &str, source: &Value, path: &Path) -> ErrorList {
    let required = |fields: &[&str]| required(source, path, fields);
    match kind {
        "hostPath" => host_path(source, path),
        "gcePersistentDisk" => [required(&["pdName"]), partition(source, path)].concat(),
        "awsElasticBlockStore" => [required(&["volumeID"]), partition(source, path)].concat(),
        "glusterfs" => {
            let mut errs = required(&["endpoints", "path"]);
            if let Some(ns) = get(source, &["endpointsNamespace"]).as_str() {
                let at = path.child("endpointsNamespace");
                if ns.is_empty() {
                    let why = "if the endpointnamespace is set, it must be a valid namespace name";
                    errs.push(field::invalid(&at, ns, why));
                } else {
                    errs.extend(invalid_each(&at, ns, names::dns1123_label_name(ns, false)));
                }
            }
            errs
        }
        "flocker" => flocker(source, path),
        "nfs" => {
            let mut errs = required(&["server", "path"]);
            let dir = str_at(source, &["path"]);
            if !dir.starts_with('/') {
                errs.push(field::invalid(&path.child("path"), dir, "must be an absolute path"));
            }
            errs
        }
        "rbd" => required(&["monitors", "image"]),
        "quobyte" => quobyte(source, path),
        "cephfs" => required(&["monitors"]),
        "iscsi" => iscsi(source, path),
        "cinder" => [required(&["volumeID"]), secret_ref(source, path, "secretRef")].concat(),
        "fc" => fibre_channel(source, path),
        "flexVolume" => {
            let mut errs = required(&["driver"]);
            for key in map_at(source, &["options"]).into_iter().flat_map(Map::keys) {
                let domain = key.split_once('/').map_or("", |(d, _)| d);
                let reserved = ["kubernetes.io", "k8s.io"]
                    .iter()
                    .any(|r| domain == *r || domain.ends_with(&format!(".{r}")));
                if reserved {
                    errs.push(field::invalid(
                        &path.child("options").key(key),
                        key.as_str(),
                        "kubernetes.io and k8s.io namespaces are reserved",
                    ));
                }
            }
            errs
        }
        "azureFile" => {
            let mut errs = required(&["secretName", "shareName"]);
            if get(source, &["secretNamespace"]).as_str() == Some("") {
                errs.push(field::required(&path.child("secretNamespace"), ""));
            }
            errs
        }
        "vsphereVolume" => required(&["volumePath"]),
        "photonPersistentDisk" => required(&["pdID"]),
        "portworxVolume" => required(&["volumeID"]),
        "azureDisk" => azure_disk(source, path),
        "scaleIO" => required(&["gateway", "system", "volumeName"]),
        "local" => {
            let dir = str_at(source, &["path"]);
            if dir.is_empty() { required(&["path"]) } else { no_backsteps(dir, &path.child("path")) }
        }
        "storageos" => {
            let mut errs = required(&["volumeName"]);
            for name in ["volumeName", "volumeNamespace"] {
                let value = str_at(source, &[name]);
                if !value.is_empty() {
                    errs.extend(invalid_each(&path.child(name), value, names::dns1123_label(value)));
                }
            }
            errs.extend(secret_ref(source, path, "secretRef"));
            errs
        }
        "csi" => {
            let mut errs = csi_driver_name(str_at(source, &["driver"]), &path.child("driver"));
            errs.extend(required(&["volumeHandle"]));
            for name in [
                "controllerPublishSecretRef",
                "controllerExpandSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
            ] {
                errs.extend(csi_secret(source, path, name));
            }
            errs
        }
        _ => ErrorList::new(),
    }
}

/// A CSI driver's secret. Where a name is malformed, Kubernetes says so of the volume's own name and namespace; one
/// of the fields is written with a blank.
fn csi_secret(source: &Value, path: &Path, name: &str) -> ErrorList {
    let mut errs = ErrorList::new();
    let reference = get(source, &[name]);
    if reference.is_null() {
        return errs;
    }
    let at = path.child(if name == "nodePublishSecretRef" { "nodePublishSecretRef " } else { name });
    for part in ["name", "namespace"] {
        match str_at(reference, &[part]) {
            "" => errs.push(field::required(&at.child(part), "")),
            text => errs.extend(invalid_each(&path.child(part), text, names::dns1123_label(text))),
        }
    }
    errs
}

fn host_path(source: &Value, path: &Path) -> ErrorList {
    let dir = str_at(source, &["path"]);
    if dir.is_empty() {
        return vec![field::required(&path.child("path"), "")];
    }
    let mut errs = no_backsteps(dir, &path.child("path"));
    if let Some(type_) = get(source, &["type"]).as_str()
        && !HOST_PATH_TYPES.contains(&type_)
    {
        errs.push(field::not_supported(&path.child("type"), type_, HOST_PATH_TYPES));
    }
    errs
}

fn flocker(source: &Value, path: &Path) -> ErrorList {
    let (name, uuid) = (str_at(source, &["datasetName"]), str_at(source, &["datasetUUID"]));
    let mut errs = ErrorList::new();
    if name.is_empty() && uuid.is_empty() {
        errs.push(field::required(path, "one of datasetName and datasetUUID is required"));
    }
    if !name.is_empty() && !uuid.is_empty() {
        let why = "datasetName and datasetUUID can not be specified simultaneously";
        errs.push(field::invalid(path, "resource", why));
    }
    if name.contains('/') {
        errs.push(field::invalid(&path.child("datasetName"), name, "must not contain '/'"));
    }
    errs
}

fn quobyte(source: &Value, path: &Path) -> ErrorList {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = str_at(source, &["registry"]);
    let at = path.child("registry");
    let mut errs = ErrorList::new();
    if registry.is_empty() {
        errs.push(field::required(&at, PAIRS));
    } else if str_at(source, &["tenant"]).len() >= 65 {
        let why = "must be a UUID and may not exceed a length of 64 characters";
        errs.push(field::required(&path.child("tenant"), why));
    } else {
        let odd = registry.split(',').filter(|pair| !pair.contains(':')).count();
        errs.extend((0..odd).map(|_| field::invalid(&at, registry, PAIRS)));
    }
    errs.extend(required(source, path, &["volume"]));
    errs
}

fn iscsi_name(name: &str, path: &Path, errs: &mut ErrorList) {
    let hex = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_hexdigit());
    if !["iqn", "eui", "naa"].iter().any(|p| name.starts_with(p)) {
        errs.push(field::invalid(path, name, "must be valid format starting with iqn, eui, or naa"));
        return;
    }
    let good = if let Some(rest) = name.strip_prefix("iqn") {
        let b = rest.as_bytes();
        b.len() > 9
            && b[0] == b'.'
            && b[1..5].iter().all(u8::is_ascii_digit)
            && b[5] == b'-'
            && b[6..8].iter().all(u8::is_ascii_digit)
            && b[8] == b'.'
            && rest.is_ascii()
    } else if let Some(rest) = name.strip_prefix("eui.") {
        rest.len() == 16 && hex(rest)
    } else {
        name.strip_prefix("naa.").is_some_and(|rest| (rest.len() == 32 || rest.len() == 16) && hex(rest))
    };
    if !good {
        errs.push(field::invalid(path, name, "must be valid format"));
    }
}

fn iscsi(source: &Value, path: &Path) -> ErrorList {
    let mut errs = required(source, path, &["targetPortal"]);
    match str_at(source, &["iqn"]) {
        "" => errs.push(field::required(&path.child("iqn"), "")),
        iqn => iscsi_name(iqn, &path.child("iqn"), &mut errs),
    }
    errs.extend(lun(get_i64(source, &["lun"]), path));
    let chap = bool_at(source, &["chapAuthDiscovery"]) || bool_at(source, &["chapAuthSession"]);
    if chap && !has(source, &["secretRef"]) {
        errs.push(field::required(&path.child("secretRef"), ""));
    }
    if has(source, &["secretRef"]) && str_at(source, &["secretRef", "name"]).is_empty() {
        errs.push(field::required(&path.child("secretRef").child("name"), ""));
    }
    if let Some(name) = get(source, &["initiatorName"]).as_str() {
        iscsi_name(name, &path.child("initiatorname"), &mut errs);
    }
    errs
}

fn fibre_channel(source: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let (targets, wwids) = (list_at(source, &["targetWWNs"]), list_at(source, &["wwids"]));
    let at = path.child("targetWWNs");
    if targets.is_empty() && wwids.is_empty() {
        errs.push(field::required(&at, "must specify either targetWWNs or wwids, but not both"));
    }
    if !targets.is_empty() && !wwids.is_empty() {
        let shown = go_print::strings(get(source, &["targetWWNs"]));
        let why = "targetWWNs and wwids can not be specified simultaneously";
        errs.push(field::invalid_shown(&at, &shown, why));
    }
    if !targets.is_empty() {
        match i64_at(source, &["lun"]) {
            None => {
                errs.push(field::required(&path.child("lun"), "lun is required if targetWWNs is specified"));
            }
            Some(n) => errs.extend(lun(n, path)),
        }
    }
    errs
}

fn azure_disk(source: &Value, path: &Path) -> ErrorList {
    const CACHING: &[&str] = &["None", "ReadOnly", "ReadWrite"];
    const KINDS: &[&str] = &["Dedicated", "Managed", "Shared"];
    const MANAGED: &str =
        "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    let mut errs = required(source, path, &["diskName", "diskURI"]);
    if let Some(mode) = get(source, &["cachingMode"]).as_str()
        && !CACHING.contains(&mode)
    {
        errs.push(field::not_supported(&path.child("cachingMode"), mode, CACHING));
    }
    let kind = get(source, &["kind"]).as_str();
    if let Some(kind) = kind
        && !KINDS.contains(&kind)
    {
        errs.push(field::not_supported(&path.child("kind"), kind, KINDS));
    }
    let uri = str_at(source, &["diskURI"]);
    if kind == Some("Managed") && !uri.starts_with('/') {
        errs.push(field::not_supported(&path.child("diskURI"), uri, &[MANAGED]));
    }
    if kind.is_some_and(|k| k != "Managed") && !uri.starts_with("https://") {
        errs.push(field::not_supported(&path.child("diskURI"), uri, &[BLOB]));
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    fn faults(kind: &str, source: Value) -> Vec<String> {
        source_faults(kind, &source, &Path::new("s")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn sources() {
        assert_eq!(
            faults("nfs", json!({"server": "", "path": "a"})),
            ["s.server: Required value", "s.path: Invalid value: \"a\": must be an absolute path",]
        );
        assert_eq!(faults("hostPath", json!({"path": "/a", "type": "Odd"})).len(), 1);
        assert_eq!(
            faults("iscsi", json!({"targetPortal": "p", "iqn": "iqn.2001-04.com.example:x", "lun": 300})),
            ["s.lun: Invalid value: 300: must be between 0 and 255, inclusive"]
        );
        assert_eq!(
            faults("fc", json!({"targetWWNs": ["a"]})),
            ["s.lun: Required value: lun is required if targetWWNs is specified"]
        );
        assert_eq!(
            faults("csi", json!({"driver": "d.e", "nodePublishSecretRef": {"name": "x"}})),
            ["s.volumeHandle: Required value", "s.nodePublishSecretRef .namespace: Required value",]
        );
        assert_eq!(faults("flexVolume", json!({"driver": "d", "options": {"a.k8s.io/x": "1"}})).len(), 1);
        assert_eq!(
            faults("local", json!({"path": "/a/../b"})),
            ["s.path: Invalid value: \"/a/../b\": must not contain '..'"]
        );
    }
}
