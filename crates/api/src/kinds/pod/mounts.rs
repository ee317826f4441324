//! Validation of volume mounts and block devices of containers.

use std::collections::HashSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::Value;

use super::volumes::{Volumes, descending_path, no_backsteps};
use crate::kinds::access::{flag, items, part, present, text};

/// Faults of a container's `volumeMounts`.
pub(super) fn volume_mounts(container: &Value, volumes: &Volumes, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let devices = items(container, "volumeDevices");
    let mut points = HashSet::new();
    for (i, mount) in items(container, "volumeMounts").iter().enumerate() {
        let at = path.index(i);
        let (name, point) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            errs.push(field::required(&at.child("name"), ""));
        }
        if volumes.get(name).is_none() {
            errs.push(field::not_found(&at.child("name"), name));
        }
        if point.is_empty() {
            errs.push(field::required(&at.child("mountPath"), ""));
        }
        if !points.insert(point) {
            errs.push(field::invalid(&at.child("mountPath"), point, "must be unique"));
        }
        if devices.iter().any(|d| text(d, "name") == name) {
            errs.push(field::invalid(&at.child("name"), name, "must not already exist in volumeDevices"));
        }
        if devices.iter().any(|d| text(d, "devicePath") == point) {
            let detail = "must not already exist as a path in volumeDevices";
            errs.push(field::invalid(&at.child("mountPath"), point, detail));
        }
        let (sub, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        // Kubernetes blames the list for these, not the item.
        if !sub.is_empty() {
            errs.extend(descending_path(sub, &path.child("subPath")));
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errs.push(field::invalid(&at.child("subPathExpr"), expression, detail));
            }
            errs.extend(descending_path(expression, &path.child("subPathExpr")));
        }
        if present(mount, "mountPropagation") {
            errs.extend(propagation(
                text(mount, "mountPropagation"),
                container,
                &path.child("mountPropagation"),
            ));
        }
    }
    errs
}

fn propagation(mode: &str, container: &Value, path: &Path) -> Option<field::Error> {
    match mode {
        "HostToContainer" | "None" => None,
        "Bidirectional" if flag(part(container, "securityContext"), "privileged") => None,
        "Bidirectional" => Some(field::forbidden(
            path,
            "Bidirectional mount propagation is available only to privileged containers",
        )),
        other => Some(field::not_supported(path, other, &["Bidirectional", "HostToContainer", "None"])),
    }
}

/// Faults of a container's `volumeDevices`.
pub(super) fn volume_devices(container: &Value, volumes: &Volumes, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mounts = items(container, "volumeMounts");
    let (mut known, mut paths) = (HashSet::new(), HashSet::new());
    for (i, device) in items(container, "volumeDevices").iter().enumerate() {
        let at = path.index(i);
        let (name, file) = (text(device, "name"), text(device, "devicePath"));
        let at_name = at.child("name");
        if name.is_empty() {
            errs.push(field::required(&at_name, ""));
        }
        if known.contains(name) {
            errs.push(field::invalid(&at_name, name, "must be unique"));
        }
        match volumes.get(name) {
            None => errs.push(field::not_found(&at_name, name)),
            Some(v) if !present(v, "persistentVolumeClaim") && !present(v, "ephemeral") => {
                let detail = "can only use volume source type of PersistentVolumeClaim for block mode";
                errs.push(field::invalid(&at_name, name, detail));
            }
            Some(_) => {}
        }
        let at_path = at.child("devicePath");
        if file.is_empty() {
            errs.push(field::required(&at_path, ""));
        }
        if paths.contains(file) {
            errs.push(field::invalid(&at_path, file, "must be unique"));
        }
        if no_backsteps(file, &at_path).is_empty() {
            paths.insert(file);
        } else {
            errs.push(field::invalid(&at_path, file, "can not contain backsteps ('..')"));
        }
        if mounts.iter().any(|m| text(m, "name") == name) {
            errs.push(field::invalid(&at_name, name, "must not already exist in volumeMounts"));
        }
        if mounts.iter().any(|m| text(m, "mountPath") == file) {
            let detail = "must not already exist as a path in volumeMounts";
            errs.push(field::invalid(&at_path, file, detail));
        }
        if !name.is_empty() {
            known.insert(name);
        }
    }
    errs
}
