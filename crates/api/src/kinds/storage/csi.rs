//! What CSI drivers tell of themselves: `CSIDriver`, `CSINode`, `CSIStorageCapacity`.

use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{
    Value, bool_at, get, has, i64_at, json, list_at, remove, set_default, str_at,
};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::selector::validate_label_selector;
use pilothouse_apimachinery::version::Release;

use super::{GROUP, VERSIONS};
use crate::go_print::{self, quoted};
use crate::kinds::checks::{immutable, invalid_each, strings};
use crate::kinds::columns::{AGE, NAME, boolean, integer, text};
use crate::kinds::core::persistent_volume_source::csi_driver_name;
use crate::kinds::core::resources;
use crate::kinds::{Context, Kind, RowContext, Version};
use crate::table::{age_cell, joined_cell, name_cell};

const ATTACH: &str = "attachRequired indicates this CSI volume driver requires an attach operation (because it implements the CSI ControllerPublishVolume() method), and that the Kubernetes attach detach controller should call the attach volume interface which checks the volumeattachment status and waits until the volume is attached before proceeding to mounting. The CSI external-attacher coordinates with CSI volume driver and updates the volumeattachment status when the attach operation is complete. If the CSIDriverRegistry feature gate is enabled and the value is specified to false, the attach operation will be skipped. Otherwise the attach operation will be called.";
const POD_INFO: &str = "If set to true, podInfoOnMount indicates this CSI volume driver requires additional pod information (like podName, podUID, etc.) during mount operations. If set to false, pod information will not be passed on mount. Default is false. The CSI driver specifies podInfoOnMount as part of driver deployment. If true, Kubelet will pass pod information as VolumeContext in the CSI NodePublishVolume() calls. The CSI driver is responsible for parsing and validating the information passed in as VolumeContext. The following VolumeConext will be passed if podInfoOnMount is set to true. This list might grow, but the prefix will be used. \"csi.storage.k8s.io/pod.name\": pod.Name \"csi.storage.k8s.io/pod.namespace\": pod.Namespace \"csi.storage.k8s.io/pod.uid\": string(pod.UID) \"csi.storage.k8s.io/ephemeral\": \"true\" iff the volume is an ephemeral inline volume\n                                defined by a CSIVolumeSource, otherwise \"false\"\n\n\"csi.storage.k8s.io/ephemeral\" is a new feature in Kubernetes 1.16. It is only required for drivers which support both the \"Persistent\" and \"Ephemeral\" VolumeLifecycleMode. Other drivers can leave pod info disabled and/or ignore this field. As Kubernetes 1.15 doesn't support this field, drivers can only support one mode when deployed on such a cluster and the deployment determines which mode that is, for example via a command line parameter of the driver.";
const MODES: &str = "volumeLifecycleModes defines what kind of volumes this CSI volume driver supports. The default if the list is empty is \"Persistent\", which is the usage defined by the CSI specification and implemented in Kubernetes via the usual PV/PVC mechanism. The other mode is \"Ephemeral\". In this mode, volumes are defined inline inside the pod spec with CSIVolumeSource and their lifecycle is tied to the lifecycle of that pod. A driver has to be aware of this because it is only going to get a NodePublishVolume call for such a volume. For more information about implementing this mode, see https://kubernetes-csi.github.io/docs/ephemeral-local-volumes.html A driver can support one or more of these modes and more modes may be added in the future. This field is beta.";

/// Fields that v1.20 has only behind gates that are off.
const GATED: &[&str] = &["storageCapacity", "tokenRequests", "requiresRepublish"];

/// `CSIDriver`.
pub static CSI_DRIVER: Kind = Kind {
    namespaced: false,
    validated_twice: true,
    allow_unconditional_update: false,
    storage_version: "storage.k8s.io/v1",
    default: default_driver,
    prepare_create: |driver, context| {
        if context.release == Release::V1_20 {
            for name in GATED {
                remove(driver, &["spec", name]);
            }
        }
    },
    prepare_update: |new, old, context| {
        for name in GATED {
            if context.release == Release::V1_20 && !has(old, &["spec", name]) {
                remove(new, &["spec", name]);
            }
        }
    },
    validate: |driver, context| {
        let name = str_at(driver, &["metadata", "name"]);
        let mut errs = if name.is_empty() || context.release == Release::V1_20 {
            ErrorList::new()
        } else {
            csi_driver_name(name, &Path::new("name"))
        };
        errs.extend(driver_faults(driver));
        errs
    },
    validate_update: |new, old, context| {
        if context.release == Release::V1_20 {
            let (after, before) = (get(new, &["spec"]), get(old, &["spec"]));
            let changed = || field::invalid(&Path::new("spec"), after.clone(), "field is immutable");
            return (after != before).then(changed).into_iter().collect();
        }
        let mut errs = driver_faults(new);
        for (name, shown) in [
            ("attachRequired", "attachedRequired"),
            ("fsGroupPolicy", "fsGroupPolicy"),
            ("volumeLifecycleModes", "volumeLifecycleModes"),
        ] {
            let of = |o| get(o, &["spec", name]);
            errs.extend(immutable(of(new), of(old), &Path::new("spec").child(shown)));
        }
        errs
    },
    columns: &[
        NAME,
        boolean("AttachRequired", ATTACH),
        boolean("PodInfoOnMount", POD_INFO),
        text("Modes", MODES),
        AGE,
    ],
    row: |driver: &Value, context: &RowContext| {
        vec![
            name_cell(driver),
            get(driver, &["spec", "attachRequired"]).as_bool().unwrap_or(true).into(),
            bool_at(driver, &["spec", "podInfoOnMount"]).into(),
            joined_cell(strings(driver, &["spec", "volumeLifecycleModes"])),
            age_cell(driver, context),
        ]
    },
    ..Kind::new("CSIDriver", "csidrivers", "csidriver", VERSIONS)
};

/// `CSINode`.
pub static CSI_NODE: Kind = Kind {
    namespaced: false,
    validated_twice: true,
    allow_unconditional_update: false,
    storage_version: "storage.k8s.io/v1",
    validate: |node, context| node_faults(node, context),
    validate_update: |new, old, context| {
        // Kubernetes checks an update twice over.
        let mut errs = [node_faults(new, context), node_faults(new, context)].concat();
        for before in list_at(old, &["spec", "drivers"]) {
            for after in list_at(new, &["spec", "drivers"]) {
                if str_at(before, &["name"]) == str_at(after, &["name"]) && before != after {
                    errs.push(field::invalid_shown(
                        &Path::new("CSINodeDriver"),
                        &shown_driver(after),
                        "field is immutable",
                    ));
                }
            }
        }
        errs
    },
    columns: &[
        NAME,
        integer("Drivers", "Drivers indicates the number of CSI drivers registered on the node"),
        AGE,
    ],
    row: |node: &Value, context: &RowContext| {
        vec![name_cell(node), list_at(node, &["spec", "drivers"]).len().into(), age_cell(node, context)]
    },
    update_checks: (2, 0),
    ..Kind::new("CSINode", "csinodes", "csinode", VERSIONS)
};

/// `CSIStorageCapacity`.
pub static CSI_STORAGE_CAPACITY: Kind = Kind {
    storage_version: "storage.k8s.io/v1",
    validate: |capacity, _| capacity_faults(capacity),
    validate_update: |new, old, _| {
        let mut errs = capacity_faults(new);
        for name in ["nodeTopology", "storageClassName"] {
            errs.extend(immutable(get(new, &[name]), get(old, &[name]), &Path::new(name)));
        }
        errs
    },
    columns: &[
        NAME,
        text("StorageClassName", "The name of the StorageClass that the reported capacity applies to."),
        text("Capacity", "Capacity is the value reported by the CSI driver in its GetCapacityResponse."),
        AGE,
    ],
    row: |capacity: &Value, context: &RowContext| {
        let amount = get(capacity, &["capacity"]);
        vec![
            name_cell(capacity),
            str_at(capacity, &["storageClassName"]).into(),
            if amount.is_null() { "<unset>".into() } else { resources::text(amount).into() },
            age_cell(capacity, context),
        ]
    },
    allow_unconditional_update: false,
    update_checks: (1, 1),
    ..Kind::new(
        "CSIStorageCapacity",
        "csistoragecapacities",
        "csistoragecapacity",
        &[Version::newer(GROUP, "v1")],
    )
};

fn default_driver(driver: &mut Value, context: &Context) {
    set_default(driver, &["spec", "attachRequired"], true);
    set_default(driver, &["spec", "podInfoOnMount"], false);
    set_default(driver, &["spec", "fsGroupPolicy"], "ReadWriteOnceWithFSType");
    if list_at(driver, &["spec", "volumeLifecycleModes"]).is_empty() {
        pilothouse_apimachinery::json::set(driver, &["spec", "volumeLifecycleModes"], json!(["Persistent"]));
    }
    if context.release > Release::V1_20 {
        for name in ["storageCapacity", "requiresRepublish", "seLinuxMount"] {
            set_default(driver, &["spec", name], false);
        }
    }
}

fn driver_faults(driver: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    const POLICIES: &[&str] = &["ReadWriteOnceWithFSType", "File", "None"];
    if let Some(policy) = get(driver, &["spec", "fsGroupPolicy"]).as_str()
        && !POLICIES.contains(&policy)
    {
        errs.push(field::not_supported(&path.child("fsGroupPolicy"), policy, POLICIES));
    }
    for mode in strings(driver, &["spec", "volumeLifecycleModes"]) {
        if !["Persistent", "Ephemeral"].contains(&mode) {
            errs.push(field::not_supported(
                &path.child("volumeLifecycleModes"),
                mode,
                &["Persistent", "Ephemeral"],
            ));
        }
    }
    let mut seen = BTreeSet::new();
    for (i, request) in list_at(driver, &["spec", "tokenRequests"]).iter().enumerate() {
        let path = path.child("tokenRequests").index(i);
        let audience = str_at(request, &["audience"]);
        if !seen.insert(audience) {
            errs.push(field::duplicate(&path.child("audience"), audience));
        }
        if let Some(seconds) = i64_at(request, &["expirationSeconds"]) {
            let at = path.child("expirationSeconds");
            if seconds < 600 {
                errs.push(field::invalid(&at, seconds, "may not specify a duration less than 10 minutes"));
            }
            if seconds > 1 << 32 {
                errs.push(field::invalid(
                    &at,
                    seconds,
                    "may not specify a duration larger than 2^32 seconds",
                ));
            }
        }
    }
    errs
}

fn node_faults(node: &Value, context: &Context) -> ErrorList {
    let id_max = if context.release == Release::V1_20 { 128 } else { 256 };
    let mut errs = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (i, driver) in list_at(node, &["spec", "drivers"]).iter().enumerate() {
        let path = Path::new("spec.drivers").index(i);
        let (name, id) = (str_at(driver, &["name"]), str_at(driver, &["nodeID"]));
        errs.extend(csi_driver_name(name, &path.child("name")));
        if id.is_empty() {
            errs.push(field::required(&path.child("nodeID"), ""));
        }
        if id.len() > id_max {
            let why = format!("must be {id_max} characters or less");
            errs.push(field::invalid(&path.child("nodeID"), id, &why));
        }
        if let Some(count) = i64_at(driver, &["allocatable", "count"]).filter(|c| *c < 0) {
            errs.push(field::invalid(
                &path.child("allocatable").child("count"),
                count,
                "must be greater than or equal to 0",
            ));
        }
        if !seen.insert(name) {
            errs.push(field::duplicate(&path.child("name"), name));
        }
        let mut keys = BTreeSet::new();
        for key in strings(driver, &["topologyKeys"]) {
            if key.is_empty() {
                errs.push(field::required(&path, ""));
            }
            if !keys.insert(key) {
                errs.push(field::duplicate(&path, key));
            }
            for message in names::qualified_name(key) {
                let shown = go_print::strings(get(driver, &["topologyKeys"]));
                errs.push(field::invalid_shown(&path, &shown, &message));
            }
        }
    }
    errs
}

fn shown_driver(driver: &Value) -> String {
    go_print::structure(
        "storage.CSINodeDriver",
        &[
            ("Name", quoted(str_at(driver, &["name"]))),
            ("NodeID", quoted(str_at(driver, &["nodeID"]))),
            ("TopologyKeys", go_print::strings(get(driver, &["topologyKeys"]))),
            ("Allocatable", "(*storage.VolumeNodeResources)(nil)".into()),
        ],
    )
}

fn capacity_faults(capacity: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let class = str_at(capacity, &["storageClassName"]);
    errs.extend(invalid_each(
        &Path::new("storageClassName"),
        class,
        names::dns1123_subdomain_name(class, false),
    ));
    errs.extend(validate_label_selector(get(capacity, &["nodeTopology"]), &Path::new("nodeTopology")));
    for name in ["capacity", "maximumVolumeSize"] {
        let amount = get(capacity, &[name]);
        if !amount.is_null() {
            errs.extend(resources::non_negative(amount, &Path::new(name)));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "storage.k8s.io/v1",
        allow_privileged: true,
        gates: &[],
    };

    #[test]
    fn driver_defaults() {
        let mut d = json!({"spec": {}});
        default_driver(&mut d, &CONTEXT);
        assert_eq!(
            d["spec"],
            json!({"attachRequired": true, "podInfoOnMount": false,
            "fsGroupPolicy": "ReadWriteOnceWithFSType", "volumeLifecycleModes": ["Persistent"]})
        );
        let mut other = d.clone();
        other["spec"]["attachRequired"] = false.into();
        let newest = Context { release: pilothouse_apimachinery::version::NEWEST, ..CONTEXT };
        let errs = (CSI_DRIVER.validate_update)(&other, &d, &newest);
        assert_eq!(errs[0].to_string(), "spec.attachedRequired: Invalid value: false: field is immutable");
        // v1.20 lets nothing change.
        let errs = (CSI_DRIVER.validate_update)(&other, &d, &CONTEXT);
        assert_eq!((errs.len(), errs[0].field.as_str()), (1, "spec"));
        assert!((CSI_DRIVER.validate_update)(&d, &d, &CONTEXT).is_empty());
    }

    #[test]
    fn nodes() {
        let texts: Vec<String> = node_faults(
            &json!({"spec": {"drivers": [
            {"name": "d.e", "nodeID": "", "topologyKeys": [""]}]}}),
            &CONTEXT,
        )
        .iter()
        .map(ToString::to_string)
        .collect();
        assert_eq!(texts[0], "spec.drivers[0].nodeID: Required value");
        assert_eq!(texts[1], "spec.drivers[0]: Required value");
        assert!(
            texts[2]
                .starts_with("spec.drivers[0]: Invalid value: []string{\"\"}: name part must be non-empty")
        );
    }

    #[test]
    fn registered_drivers_stay() {
        let old = json!({"spec": {"drivers": [{"name": "d.e", "nodeID": "a"}]}});
        let new = json!({"spec": {"drivers": [{"name": "d.e", "nodeID": "b"}]}});
        let errs = (CSI_NODE.validate_update)(&new, &old, &CONTEXT);
        assert!(
            errs[0].to_string().starts_with(
                "CSINodeDriver: Invalid value: storage.CSINodeDriver{Name:\"d.e\", NodeID:\"b\""
            )
        );
    }
}
