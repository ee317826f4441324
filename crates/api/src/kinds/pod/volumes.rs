//! Validation of `spec.volumes`: names, one source each, and the sources that Kubernetes itself fills (config maps,
//! secrets, downward API, projections). Sources backed by storage are in [`super::storage_volumes`].

use std::collections::HashSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::names;

use super::downward::{VOLUME_FIELDS, field_selector, resource_selector};
use super::storage_volumes;
use crate::kinds::access::{items, optional, part, present, text};
use crate::kinds::checks::invalid_each;

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const ONE_TYPE: &str = "may not specify more than 1 volume type";

/// The volumes of a pod that are valid, by name: mounts may refer to them only.
pub(super) struct Volumes<'a>(Vec<(&'a str, &'a Value)>);

impl<'a> Volumes<'a> {
    /// The volume of a name.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }
}

/// Faults of the volumes, and the volumes that have none.
pub(super) fn volumes<'a>(volumes: &'a [Value], path: &Path) -> (Volumes<'a>, ErrorList) {
    let (mut valid, mut errs) = (Vec::<(&str, &Value)>::new(), ErrorList::new());
    for (i, volume) in volumes.iter().enumerate() {
        let path = path.index(i);
        let name = text(volume, "name");
        let mut found = source(volume, name, &path);
        found.extend(required_label(name, &path.child("name")));
        if valid.iter().any(|(n, _)| *n == name) {
            found.push(field::duplicate(&path.child("name"), name));
        }
        if found.is_empty() {
            valid.push((name, volume));
        } else {
            errs.extend(found);
        }
    }
    (Volumes(valid), errs)
}

/// Faults of a DNS-1123 label that must be there.
pub(super) fn required_label(name: &str, path: &Path) -> ErrorList {
    if name.is_empty() {
        return vec![field::required(path, "")];
    }
    invalid_each(path, name, names::dns1123_label(name))
}

/// How a source is checked: the source, where it stands, and its volume's name.
type SourceCheck = fn(&Value, &Path, &str) -> ErrorList;

/// The sources in the order of `VolumeSource`; `emptyDir` is first and never in the way of itself.
const SOURCES: &[(&str, SourceCheck)] = &[
    ("hostPath", |v, p, _| host_path(v, p)),
    ("gitRepo", |v, p, _| storage_volumes::git_repo(v, p)),
    ("gcePersistentDisk", |v, p, _| storage_volumes::gce_persistent_disk(v, p)),
    ("awsElasticBlockStore", |v, p, _| storage_volumes::aws_elastic_block_store(v, p)),
    ("secret", |v, p, _| secret(v, p)),
    ("nfs", |v, p, _| storage_volumes::nfs(v, p)),
    ("iscsi", storage_volumes::iscsi),
    ("glusterfs", |v, p, _| storage_volumes::glusterfs(v, p)),
    ("flocker", |v, p, _| storage_volumes::flocker(v, p)),
    ("persistentVolumeClaim", |v, p, _| claim(v, p)),
    ("rbd", |v, p, _| storage_volumes::rbd(v, p)),
    ("cinder", |v, p, _| storage_volumes::cinder(v, p)),
    ("cephfs", |v, p, _| storage_volumes::cephfs(v, p)),
    ("quobyte", |v, p, _| storage_volumes::quobyte(v, p)),
    ("downwardAPI", |v, p, _| downward_api(v, p)),
    ("fc", |v, p, _| storage_volumes::fc(v, p)),
    ("flexVolume", |v, p, _| storage_volumes::flex_volume(v, p)),
    ("configMap", |v, p, _| config_map(v, p)),
    ("azureFile", |v, p, _| storage_volumes::azure_file(v, p)),
    ("vsphereVolume", |v, p, _| storage_volumes::vsphere_volume(v, p)),
    ("photonPersistentDisk", |v, p, _| storage_volumes::photon_persistent_disk(v, p)),
    ("portworxVolume", |v, p, _| storage_volumes::portworx_volume(v, p)),
    ("azureDisk", |v, p, _| storage_volumes::azure_disk(v, p)),
    ("storageos", |v, p, _| storage_volumes::storageos(v, p)),
    ("projected", |v, p, _| projected(v, p)),
    ("scaleIO", |v, p, _| storage_volumes::scale_io(v, p)),
    ("csi", |v, p, _| storage_volumes::csi(v, p)),
    ("ephemeral", |v, p, _| ephemeral(v, p)),
    ("image", |_, _, _| ErrorList::new()),
];

fn source(volume: &Value, name: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut found = 0;
    if present(volume, "emptyDir") {
        found += 1;
        if text(part(volume, "emptyDir"), "sizeLimit").starts_with('-') {
            errs.push(field::forbidden(
                &path.child("emptyDir").child("sizeLimit"),
                "SizeLimit field must be a valid resource quantity",
            ));
        }
    }
    for (key, check) in SOURCES {
        let source = part(volume, key);
        if source.is_null() {
            continue;
        }
        // Kubernetes names some sources differently in this one error.
        let at = match *key {
            "gcePersistentDisk" => "persistentDisk",
            "cephfs" => "cephFS",
            "downwardAPI" => "downwarAPI",
            other => other,
        };
        if found > 0 {
            errs.push(field::forbidden(&path.child(at), ONE_TYPE));
            continue;
        }
        found += 1;
        let at = if *key == "gcePersistentDisk" { "persistentDisk" } else { key };
        errs.extend(check(source, &path.child(at), name));
        if *key == "iscsi" {
            errs.extend(storage_volumes::iscsi_portal_length(source, name, &path.child("name")));
        }
    }
    if found == 0 {
        errs.push(field::required(path, "must specify a volume type"));
    }
    errs
}

fn host_path(source: &Value, path: &Path) -> ErrorList {
    if text(source, "path").is_empty() {
        return vec![field::required(&path.child("path"), "")];
    }
    let mut errs = no_backsteps(text(source, "path"), &path.child("path"));
    const TYPES: &[&str] = &[
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    if let Some(t) = part(source, "type").as_str().filter(|t| !TYPES.contains(t)) {
        errs.push(field::not_supported(&path.child("type"), t, TYPES));
    }
    errs
}

fn secret(source: &Value, path: &Path) -> ErrorList {
    named_files(source, "secretName", path)
}

fn config_map(source: &Value, path: &Path) -> ErrorList {
    named_files(source, "name", path)
}

fn named_files(source: &Value, name_key: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if text(source, name_key).is_empty() {
        errs.push(field::required(&path.child(name_key), ""));
    }
    errs.extend(mode(source, "defaultMode", path));
    for (i, item) in items(source, "items").iter().enumerate() {
        errs.extend(key_to_path(item, &path.child("items").index(i)));
    }
    errs
}

fn mode(v: &Value, key: &str, path: &Path) -> Option<field::Error> {
    let mode = optional(v, key).filter(|m| !(0..=0o777).contains(m))?;
    Some(field::invalid(&path.child(key), mode, FILE_MODE))
}

fn key_to_path(item: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if text(item, "key").is_empty() {
        errs.push(field::required(&path.child("key"), ""));
    }
    if text(item, "path").is_empty() {
        errs.push(field::required(&path.child("path"), ""));
    }
    errs.extend(non_reserved_path(text(item, "path"), &path.child("path")));
    errs.extend(mode(item, "mode", path));
    errs
}

fn claim(source: &Value, path: &Path) -> ErrorList {
    if text(source, "claimName").is_empty() {
        return vec![field::required(&path.child("claimName"), "")];
    }
    ErrorList::new()
}

fn ephemeral(source: &Value, path: &Path) -> ErrorList {
    if present(source, "volumeClaimTemplate") {
        return ErrorList::new();
    }
    vec![field::required(&path.child("volumeClaimTemplate"), "")]
}

fn downward_api(source: &Value, path: &Path) -> ErrorList {
    let mut errs: ErrorList = mode(source, "defaultMode", path).into_iter().collect();
    for file in items(source, "items") {
        errs.extend(downward_api_file(file, path));
    }
    errs
}

fn downward_api_file(file: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if text(file, "path").is_empty() {
        errs.push(field::required(&path.child("path"), ""));
    }
    errs.extend(non_reserved_path(text(file, "path"), &path.child("path")));
    if present(file, "fieldRef") {
        errs.extend(field_selector(part(file, "fieldRef"), VOLUME_FIELDS, &path.child("fieldRef")));
        if present(file, "resourceFieldRef") {
            errs.push(field::invalid(
                path,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            ));
        }
    } else if present(file, "resourceFieldRef") {
        errs.extend(resource_selector(part(file, "resourceFieldRef"), &path.child("resourceFieldRef"), true));
    } else {
        errs.push(field::required(path, "one of fieldRef and resourceFieldRef is required"));
    }
    errs.extend(mode(file, "mode", path));
    errs
}

fn projected(source: &Value, path: &Path) -> ErrorList {
    let mut errs: ErrorList = mode(source, "defaultMode", path).into_iter().collect();
    let mut paths = HashSet::new();
    for (i, projection) in items(source, "sources").iter().enumerate() {
        let at = path.child("sources").index(i);
        let mut found = 0;
        for key in ["secret", "configMap", "downwardAPI", "serviceAccountToken"] {
            let one = part(projection, key);
            if one.is_null() {
                continue;
            }
            let at = at.child(key);
            found += 1;
            if found > 1 {
                errs.push(field::forbidden(&at, ONE_TYPE));
                continue;
            }
            match key {
                "downwardAPI" => errs.extend(projected_downward_api(one, &at, path, &mut paths)),
                "serviceAccountToken" => errs.extend(projected_token(one, &at, path)),
                _ => errs.extend(projected_files(one, &at, path, &mut paths)),
            }
        }
    }
    errs
}

fn projected_files<'a>(
    source: &'a Value,
    at: &Path,
    volume: &Path,
    paths: &mut HashSet<&'a str>,
) -> ErrorList {
    let mut errs = ErrorList::new();
    if text(source, "name").is_empty() {
        errs.push(field::required(&at.child("name"), ""));
    }
    for (i, item) in items(source, "items").iter().enumerate() {
        errs.extend(key_to_path(item, &at.child("items").index(i)));
        let file = text(item, "path");
        if !file.is_empty() && !paths.insert(file) {
            errs.push(field::invalid(volume, text(source, "name"), "conflicting duplicate paths"));
        }
    }
    errs
}

fn projected_downward_api<'a>(
    source: &'a Value,
    at: &Path,
    volume: &Path,
    paths: &mut HashSet<&'a str>,
) -> ErrorList {
    let mut errs = ErrorList::new();
    for file in items(source, "items") {
        errs.extend(downward_api_file(file, at));
        let file = text(file, "path");
        if !file.is_empty() && !paths.insert(file) {
            errs.push(field::invalid(volume, file, "conflicting duplicate paths"));
        }
    }
    errs
}

fn projected_token(source: &Value, at: &Path, volume: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let seconds = crate::kinds::access::number(source, "expirationSeconds");
    if seconds < 600 {
        let detail = "may not specify a duration less than 10 minutes";
        errs.push(field::invalid(&at.child("expirationSeconds"), seconds, detail));
    }
    if seconds > 1 << 32 {
        let detail = "may not specify a duration larger than 2^32 seconds";
        errs.push(field::invalid(&at.child("expirationSeconds"), seconds, detail));
    }
    if text(source, "path").is_empty() {
        errs.push(field::required(&volume.child("path"), ""));
    }
    errs
}

/// Faults of a path with `..` in it.
pub(super) fn no_backsteps(value: &str, path: &Path) -> ErrorList {
    if value.split('/').any(|part| part == "..") {
        return vec![field::invalid(path, value, "must not contain '..'")];
    }
    ErrorList::new()
}

/// Faults of a path below some directory: absolute, or with `..` in it.
pub(super) fn descending_path(value: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if value.starts_with('/') {
        errs.push(field::invalid(path, value, "must be a relative path"));
    }
    errs.extend(no_backsteps(value, path));
    errs
}

/// The same, and the path must not start with `..` (names that volumes use for themselves).
fn non_reserved_path(value: &str, path: &Path) -> ErrorList {
    let mut errs = descending_path(value, path);
    if value.starts_with("..") && !value.starts_with("../") {
        errs.push(field::invalid(path, value, "must not start with '..'"));
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    fn faults(list: Value) -> Vec<String> {
        let list = list.as_array().cloned().unwrap_or_default();
        volumes(&list, &Path::new("spec.volumes")).1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_volume_with_faults_is_no_volume() {
        let list = [json!({"name": "a", "hostPath": {"type": ""}}), json!({"name": "b", "emptyDir": {}})];
        let (valid, errs) = volumes(&list, &Path::new("spec.volumes"));
        assert_eq!(errs[0].to_string(), "spec.volumes[0].hostPath.path: Required value");
        assert!(valid.get("a").is_none());
        assert!(valid.get("b").is_some());
    }

    #[test]
    fn one_source_and_one_name_each() {
        assert_eq!(
            faults(json!([
                {"name": "a", "emptyDir": {}, "secret": {"secretName": "s"}},
                {"name": "b", "emptyDir": {}},
                {"name": "b", "emptyDir": {}},
                {"emptyDir": {}},
                {"name": "d"},
            ])),
            [
                "spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type",
                "spec.volumes[2].name: Duplicate value: \"b\"",
                "spec.volumes[3].name: Required value",
                "spec.volumes[4]: Required value: must specify a volume type",
            ]
        );
    }

    #[test]
    fn files_of_config_maps_and_projections() {
        assert_eq!(
            faults(json!([
                {"name": "a", "configMap": {"defaultMode": 512, "items": [{"path": "/x"}]}},
                {"name": "p", "projected": {"sources": [
                    {"secret": {"name": "s", "items": [{"key": "k", "path": "f"}]}},
                    {"configMap": {"name": "c", "items": [{"key": "k", "path": "f"}]}},
                    {"serviceAccountToken": {"expirationSeconds": 30, "path": "t"}},
                ]}},
            ])),
            [
                "spec.volumes[0].configMap.name: Required value",
                "spec.volumes[0].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
                "spec.volumes[0].configMap.items[0].key: Required value",
                "spec.volumes[0].configMap.items[0].path: Invalid value: \"/x\": must be a relative path",
                "spec.volumes[1].projected: Invalid value: \"c\": conflicting duplicate paths",
                "spec.volumes[1].projected.sources[2].serviceAccountToken.expirationSeconds: Invalid value: 30: may not specify a duration less than 10 minutes",
            ]
        );
    }
}
