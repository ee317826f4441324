//! Validation of volume sources that are backed by storage outside the cluster, and of CSI volumes.

use pilothouse_apimachinery::field::{self, Error, ErrorList, Path};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::{go, names};

use super::volumes::descending_path;
use crate::kinds::access::{entries, flag, is_empty, items, number, optional, part, present, text};
use crate::kinds::checks::invalid_each;

/// A `Required value` for each text field that is empty.
fn required(source: &Value, keys: &[&str], path: &Path) -> ErrorList {
    keys.iter().filter(|k| is_empty(source, k)).map(|k| field::required(&path.child(k), "")).collect()
}

pub(super) fn git_repo(source: &Value, path: &Path) -> ErrorList {
    let mut errs = required(source, &["repository"], path);
    errs.extend(descending_path(text(source, "directory"), &path.child("directory")));
    errs
}

fn partition(source: &Value, path: &Path) -> Option<Error> {
    let n = number(source, "partition");
    (!(0..=255).contains(&n))
        .then(|| field::invalid(&path.child("partition"), n, &names::inclusive_range(1, 255)))
}

pub(super) fn gce_persistent_disk(source: &Value, path: &Path) -> ErrorList {
    let mut errs = required(source, &["pdName"], path);
    errs.extend(partition(source, path));
    errs
}

pub(super) fn aws_elastic_block_store(source: &Value, path: &Path) -> ErrorList {
    let mut errs = required(source, &["volumeID"], path);
    errs.extend(partition(source, path));
    errs
}

pub(super) fn nfs(source: &Value, path: &Path) -> ErrorList {
    let mut errs = required(source, &["server", "path"], path);
    if !text(source, "path").starts_with('/') {
        errs.push(field::invalid(&path.child("path"), text(source, "path"), "must be an absolute path"));
    }
    errs
}

/// Whether a name of one of the three families has its family's form.
fn is_qualified_name(name: &str) -> bool {
    let alnum = |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric());
    if let Some(rest) = name.strip_prefix("iqn.") {
        // iqn.<year>-<month>.<authority>:<anything>
        let Some((authority, rest)) = rest.split_once(':') else { return false };
        let b = authority.as_bytes();
        let date = b.len() > 8
            && b[..4].iter().chain(&b[5..7]).all(u8::is_ascii_digit)
            && b[4] == b'-'
            && b[7] == b'.';
        return date
            && b[8..].iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
            && !rest.is_empty()
            && !rest.contains(|c: char| ",;*&$|".contains(c) || c.is_whitespace());
    }
    let tail = name.get(4..).unwrap_or("");
    let length = if name.starts_with("eui") { 16 } else { 32 };
    !name.starts_with("iqn") && tail.len() == length && alnum(tail)
}

/// Faults of an iSCSI qualified name.
fn iscsi_name(name: &str, path: &Path) -> Option<Error> {
    if !["iqn", "eui", "naa"].iter().any(|prefix| name.starts_with(prefix)) {
        return Some(field::invalid(path, name, "must be valid format starting with iqn, eui, or naa"));
    }
    (!is_qualified_name(name)).then(|| field::invalid(path, name, "must be valid format"))
}

pub(super) fn iscsi(source: &Value, path: &Path, _volume: &str) -> ErrorList {
    let mut errs = required(source, &["targetPortal"], path);
    match text(source, "iqn") {
        "" => errs.push(field::required(&path.child("iqn"), "")),
        iqn => errs.extend(iscsi_name(iqn, &path.child("iqn"))),
    }
    let lun = number(source, "lun");
    if !(0..=255).contains(&lun) {
        errs.push(field::invalid(&path.child("lun"), lun, &names::inclusive_range(0, 255)));
    }
    let chap = flag(source, "chapAuthDiscovery") || flag(source, "chapAuthSession");
    if chap && !present(source, "secretRef") {
        errs.push(field::required(&path.child("secretRef"), ""));
    }
    if let Some(initiator) = part(source, "initiatorName").as_str() {
        errs.extend(iscsi_name(initiator, &path.child("initiatorname")));
    }
    errs
}

/// With an initiator name, `<volume>:<portal>` becomes the name of an interface, which may not be longer.
pub(super) fn iscsi_portal_length(source: &Value, volume: &str, path: &Path) -> Option<Error> {
    let length = volume.len() + 1 + text(source, "targetPortal").len();
    (present(source, "initiatorName") && length > 64).then(|| {
        field::invalid(
            path,
            volume,
            "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.",
        )
    })
}

pub(super) fn glusterfs(source: &Value, path: &Path) -> ErrorList {
    required(source, &["endpoints", "path"], path)
}

pub(super) fn flocker(source: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let (name, uuid) = (text(source, "datasetName"), text(source, "datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        errs.push(field::required(path, "one of datasetName and datasetUUID is required"));
    }
    if !name.is_empty() && !uuid.is_empty() {
        let detail = "datasetName and datasetUUID can not be specified simultaneously";
        errs.push(field::invalid(path, "resource", detail));
    }
    if name.contains('/') {
        errs.push(field::invalid(&path.child("datasetName"), name, "must not contain '/'"));
    }
    errs
}

pub(super) fn rbd(source: &Value, path: &Path) -> ErrorList {
    required(source, &["monitors", "image"], path)
}

/// A reference to a secret, if there is one, must name it.
fn secret_name(source: &Value, key: &str, path: &Path) -> Option<Error> {
    let reference = part(source, key);
    (!reference.is_null() && text(reference, "name").is_empty())
        .then(|| field::required(&path.child(key).child("name"), ""))
}

pub(super) fn cinder(source: &Value, path: &Path) -> ErrorList {
    let mut errs = required(source, &["volumeID"], path);
    errs.extend(secret_name(source, "secretRef", path));
    errs
}

pub(super) fn cephfs(source: &Value, path: &Path) -> ErrorList {
    required(source, &["monitors"], path)
}

pub(super) fn quobyte(source: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let registry = text(source, "registry");
    let detail = "must be a host:port pair or multiple pairs separated by commas";
    if registry.is_empty() {
        errs.push(field::required(&path.child("registry"), detail));
    } else if text(source, "tenant").len() >= 65 {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        errs.push(field::required(&path.child("tenant"), detail));
    } else {
        for pair in registry.split(',') {
            let ok = pair.rsplit_once(':').is_some_and(|(host, _)| {
                !host.contains(':') || (host.starts_with('[') && host.ends_with(']'))
            });
            if !ok {
                errs.push(field::invalid(&path.child("registry"), registry, detail));
            }
        }
    }
    errs.extend(required(source, &["volume"], path));
    errs
}

pub(super) fn fc(source: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let (wwns, wwids) = (items(source, "targetWWNs"), items(source, "wwids"));
    let at = path.child("targetWWNs");
    if wwns.is_empty() && wwids.is_empty() {
        errs.push(field::required(&at, "must specify either targetWWNs or wwids, but not both"));
    }
    if !wwns.is_empty() && !wwids.is_empty() {
        let shown = go::string_slice(part(source, "targetWWNs"));
        errs.push(field::invalid_shown(
            &at,
            &shown,
            "targetWWNs and wwids can not be specified simultaneously",
        ));
    }
    if !wwns.is_empty() {
        match optional(source, "lun") {
            None => {
                errs.push(field::required(&path.child("lun"), "lun is required if targetWWNs is specified"))
            }
            Some(lun) if !(0..=255).contains(&lun) => {
                errs.push(field::invalid(&path.child("lun"), lun, &names::inclusive_range(0, 255)));
            }
            Some(_) => {}
        }
    }
    errs
}

pub(super) fn flex_volume(source: &Value, path: &Path) -> ErrorList {
    let mut errs = required(source, &["driver"], path);
    for (key, _) in entries(source, "options") {
        let namespace = format!(".{}", key.split('/').next().unwrap_or(key).to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            errs.push(field::invalid(
                &path.child("options").key(key),
                key,
                "kubernetes.io and k8s.io namespaces are reserved",
            ));
        }
    }
    errs
}

pub(super) fn azure_file(source: &Value, path: &Path) -> ErrorList {
    required(source, &["secretName", "shareName"], path)
}

pub(super) fn vsphere_volume(source: &Value, path: &Path) -> ErrorList {
    required(source, &["volumePath"], path)
}

pub(super) fn photon_persistent_disk(source: &Value, path: &Path) -> ErrorList {
    required(source, &["pdID"], path)
}

pub(super) fn portworx_volume(source: &Value, path: &Path) -> ErrorList {
    required(source, &["volumeID"], path)
}

pub(super) fn azure_disk(source: &Value, path: &Path) -> ErrorList {
    let mut errs = required(source, &["diskName", "diskURI"], path);
    for (key, supported) in
        [("cachingMode", ["None", "ReadOnly", "ReadWrite"]), ("kind", ["Dedicated", "Managed", "Shared"])]
    {
        if let Some(value) = part(source, key).as_str().filter(|v| !supported.contains(v)) {
            errs.push(field::not_supported(&path.child(key), value, &supported));
        }
    }
    let uri = text(source, "diskURI");
    let form = match part(source, "kind").as_str() {
        Some("Managed") if !uri.starts_with("/subscriptions/") => {
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"
        }
        Some(kind) if kind != "Managed" && !uri.starts_with("https://") => {
            "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"
        }
        _ => return errs,
    };
    errs.push(field::not_supported(&path.child("diskURI"), uri, &[form]));
    errs
}

pub(super) fn storageos(source: &Value, path: &Path) -> ErrorList {
    let mut errs = super::volumes::required_label(text(source, "volumeName"), &path.child("volumeName"));
    let namespace = text(source, "volumeNamespace");
    if !namespace.is_empty() {
        errs.extend(invalid_each(&path.child("volumeNamespace"), namespace, names::dns1123_label(namespace)));
    }
    errs.extend(secret_name(source, "secretRef", path));
    errs
}

pub(super) fn scale_io(source: &Value, path: &Path) -> ErrorList {
    required(source, &["gateway", "system", "volumeName"], path)
}

pub(super) fn csi(source: &Value, path: &Path) -> ErrorList {
    let mut errs = csi_driver_name(text(source, "driver"), &path.child("driver"));
    if present(source, "nodePublishSecretRef") {
        let name = text(part(source, "nodePublishSecretRef"), "name");
        if name.is_empty() {
            // Kubernetes writes the field with a blank.
            errs.push(field::required(&path.child("nodePublishSecretRef ").child("name"), ""));
            return errs;
        }
        errs.extend(invalid_each(&path.child("name"), name, names::dns1123_subdomain_name(name, false)));
    }
    errs
}

fn csi_driver_name(driver: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if driver.is_empty() {
        errs.push(field::required(path, ""));
    }
    if driver.len() > 63 {
        errs.push(field::too_long(path, 63));
    }
    errs.extend(invalid_each(path, driver, names::dns1123_subdomain(&driver.to_lowercase())));
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    fn texts(errs: ErrorList) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn iscsi_names() {
        let p = Path::new("iscsi");
        assert!(iscsi_name("iqn.2001-04.com.example:storage.disk1", &p).is_none());
        assert!(iscsi_name("eui.0123456789abcdef", &p).is_none());
        assert!(iscsi_name("naa.0123456789abcdef0123456789abcdef", &p).is_none());
        assert!(iscsi_name("iqn.2001-04", &p).is_some_and(|e| e.body.ends_with("must be valid format")));
        assert!(iscsi_name("disk", &p).is_some());
    }

    #[test]
    fn sources() {
        let p = Path::new("v");
        assert_eq!(
            texts(nfs(&json!({"server": "s", "path": "a"}), &p)),
            ["v.path: Invalid value: \"a\": must be an absolute path"]
        );
        assert_eq!(
            texts(fc(&json!({"targetWWNs": ["a"]}), &p)),
            ["v.lun: Required value: lun is required if targetWWNs is specified"]
        );
        assert_eq!(
            texts(flex_volume(&json!({"driver": "d", "options": {"x.k8s.io/y": ""}}), &p)),
            [
                "v.options[x.k8s.io/y]: Invalid value: \"x.k8s.io/y\": kubernetes.io and k8s.io namespaces are reserved"
            ]
        );
        assert_eq!(
            texts(azure_disk(
                &json!({"diskName": "d", "diskURI": "x", "kind": "Shared", "cachingMode": "Some"}),
                &p
            )),
            [
                "v.cachingMode: Unsupported value: \"Some\": supported values: \"None\", \"ReadOnly\", \"ReadWrite\"",
                "v.diskURI: Unsupported value: \"x\": supported values: \"https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd\"",
            ]
        );
    }
}
