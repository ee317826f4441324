//! The built-in kinds, one file each (or one file for a small family).
//!
//! What a kind *is* (fields, types, protobuf numbers, list types, merge keys, simple defaults) comes from the
//! catalogue. What it *does* beyond that is a [`Kind`]: a table of plain functions over `json::Value`, in the
//! kind's own file, listed in [`all`]. Adding a kind is one file and one line.
//!
//! Every function works on the object in the kind's *hub* version (the first of [`Kind::versions`]) and in Go's
//! canonical form, as the decoder leaves it: unknown fields gone, empty `omitempty` fields gone, others present.

mod access;
pub mod admissionregistration;
pub mod apiextensions;
pub mod apiregistration;
pub mod authentication;
pub mod authorization;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod checks;
pub mod columns;
pub mod coordination;
pub mod core;
pub mod discovery;
pub mod events;
pub mod flowcontrol;
pub mod networking;
pub mod node;
mod numbers;
pub mod pod;
mod podtemplate;
pub mod policy;
pub mod rbac;
mod replicationcontroller;
pub mod resource;
pub mod scale;
pub mod scheduling;
pub mod service;
pub mod storage;
pub mod workloads;

use pilothouse_apimachinery::field::ErrorList;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::version::Release;

/// One version in which a kind is served.
#[derive(Debug, Clone, Copy)]
pub struct Version {
    /// API group, `""` for core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Served when v1.20 is emulated.
    pub in_1_20: bool,
    /// Served by the newest release.
    pub in_newest: bool,
    /// From this version to the hub version, where they differ in more than `apiVersion`.
    pub to_hub: Option<fn(&mut Value)>,
    /// From the hub version to this one.
    pub from_hub: Option<fn(&mut Value)>,
}

/// A subresource.
#[derive(Debug, Clone, Copy)]
pub struct Subresource {
    /// `status`, `scale`, `log`, …
    pub name: &'static str,
    /// Group, version and kind of its body where they are not the parent's.
    pub gvk: Option<(&'static str, &'static str, &'static str)>,
    /// Verbs as discovery lists them, in discovery's order.
    pub verbs: &'static [&'static str],
}

/// What validation and preparation may need to know beside the object.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Release served.
    pub release: Release,
    /// Which subresource the request is for; `""` for the object itself.
    pub subresource: &'static str,
    /// Version of the request, such as `extensions/v1beta1`.
    pub api_version: &'static str,
    /// `--allow-privileged`.
    pub allow_privileged: bool,
    /// Feature gates that are on though they are off by default in the release.
    pub gates: &'static [String],
}

impl Context {
    /// Whether a gate that is off by default is on.
    pub fn gate(&self, name: &str) -> bool {
        self.gates.iter().any(|gate| gate == name || gate == "AllAlpha")
    }
}

/// A table column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Heading, as in `kubectl get`.
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, …
    pub type_: &'static str,
    /// OpenAPI format; `name` for the name column.
    pub format: &'static str,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i64,
    /// For the column definition.
    pub description: &'static str,
}

/// A built-in kind. Make one with struct update syntax: `Kind { short_names: &["po"], ..Kind::new("", "v1", "Pod", "pods") }`.
#[derive(Clone, Copy)]
pub struct Kind {
    /// `Pod`.
    pub kind: &'static str,
    /// `pods`.
    pub plural: &'static str,
    /// `pod`. Discovery shows it as `singularName` in the newest release only; v1.20 shows `""` for built-in kinds.
    pub singular: &'static str,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// `po`.
    pub short_names: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// Verbs in discovery's order.
    pub verbs: &'static [&'static str],
    /// The hub version first; then all others.
    pub versions: &'static [Version],
    /// Subresources, in discovery's order.
    pub subresources: &'static [Subresource],
    /// Where objects are in the store below `/registry/`, where that is not `<plural>` (core and most built-in groups
    /// do not carry their group there: `deployments`, `services/specs`, `minions`).
    pub storage_prefix: &'static str,
    /// Group and version in which objects are stored by v1.20 and today.
    pub storage_version: &'static str,
    /// Group that errors of validation name with the kind, where it is not the hub's: kinds that were in `extensions`
    /// once are still named so.
    pub invalid_group: Option<&'static str>,
    /// Whether the object has `metadata.generation`, raised when its spec changes.
    pub has_generation: bool,
    /// First minor release in which it has one, where that is not v1.20: jobs got theirs later.
    pub generation_since: u32,
    /// Whether a new object's generation is the only one it ever has.
    pub keeps_generation: bool,
    /// Whether a change of `metadata.annotations` raises the generation too: deployments.
    pub generation_on_annotations: bool,
    /// Whether a deletion that names no propagation policy orphans what the object owns, by the version of the
    /// request (`batch/v1`): old versions of workloads do.
    pub orphans_by_default: fn(&str) -> bool,
    /// Whether an update may create the object.
    pub create_on_update: bool,
    /// Whether an update without a resource version is allowed.
    pub allow_unconditional_update: bool,
    /// How long an event and the like live; 0 for ever. In seconds.
    pub ttl_seconds: u64,
    /// Default of `gracePeriodSeconds` at deletion for an object, `None` where kinds delete at once (all but pods).
    pub grace_period: Option<fn(&Value) -> i64>,
    /// Defaults beyond the catalogue's.
    pub default: fn(&mut Value, &Context),
    /// What is cleared or set on create, whatever the client sent (status, generation, …).
    pub prepare_create: fn(&mut Value, &Context),
    /// What is carried over from the old object on update. For a subresource update too: `Context::subresource` says
    /// which. `metadata` is the engine's business.
    pub prepare_update: fn(&mut Value, &Value, &Context),
    /// Faults of a new object, `metadata` excluded: the engine checks that, with `name_fn`.
    pub validate: fn(&Value, &Context) -> ErrorList,
    /// Faults of an update of the object or one of its subresources.
    pub validate_update: fn(&Value, &Value, &Context) -> ErrorList,
    /// Whether v1.20 validates a new object twice, and so reports every fault twice.
    pub validated_twice: bool,
    /// How often the kind checks an update's metadata, beside what all kinds have in common: as that of a new object,
    /// and as an update's. Each check reports its faults, so they count.
    pub update_checks: (u8, u8),
    /// Faults of a name (messages without a path); `true` where the name is a `generateName` prefix.
    pub name_fn: fn(&str, bool) -> Vec<String>,
    /// Fields that selectors may name beside `metadata.name` and `metadata.namespace`, with their values.
    pub selectable_fields: fn(&Value) -> Vec<(&'static str, String)>,
    /// Which names of `selectable_fields` there are: others are errors.
    pub selectable_field_names: &'static [&'static str],
    /// Table columns for `kubectl get`.
    pub columns: &'static [Column],
    /// One row's cells, in the order of `columns`.
    pub row: fn(&Value, &RowContext) -> Vec<Value>,
    /// A field whose bytes count, if there is one.
    pub raw_field: Option<RawField>,
    /// The row's conditions: tables grey out the rows of pods that have ended.
    pub row_conditions: fn(&Value) -> Option<Value>,
}

/// A field whose bytes are kept as they were sent, and must not change.
#[derive(Debug, Clone, Copy)]
pub struct RawField {
    /// Its name, at the top of the object.
    pub name: &'static str,
    /// What is said of new bytes.
    pub changed: fn(&str) -> pilothouse_apimachinery::field::Error,
}

/// What rows need to know beside the object.
#[derive(Debug, Clone, Copy)]
pub struct RowContext {
    /// Now, in seconds since 1970: ages are shown relative to it.
    pub now: i64,
}

/// Verbs of an ordinary kind, in discovery's order.
pub const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The `status` subresource.
pub const STATUS: Subresource = Subresource { name: "status", gvk: None, verbs: &["get", "patch", "update"] };

/// The `scale` subresource.
pub const SCALE: Subresource = Subresource {
    name: "scale",
    gvk: Some(("autoscaling", "v1", "Scale")),
    verbs: &["get", "patch", "update"],
};

impl Version {
    /// A version that every release serves and that needs no conversion.
    pub const fn always(group: &'static str, version: &'static str) -> Version {
        Version { group, version, in_1_20: true, in_newest: true, to_hub: None, from_hub: None }
    }

    /// A version that v1.20 does not have.
    pub const fn newer(group: &'static str, version: &'static str) -> Version {
        Version { in_1_20: false, ..Version::always(group, version) }
    }

    /// A version that only v1.20 serves.
    pub const fn older(group: &'static str, version: &'static str) -> Version {
        Version { in_newest: false, ..Version::always(group, version) }
    }
}

impl Kind {
    /// A namespaced kind with all verbs, a DNS-1123 subdomain for a name, and no behaviour of its own.
    pub const fn new(
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
        versions: &'static [Version],
    ) -> Kind {
        Kind {
            kind,
            plural,
            singular,
            namespaced: true,
            short_names: &[],
            categories: &[],
            verbs: ALL_VERBS,
            versions,
            subresources: &[],
            storage_prefix: plural,
            storage_version: "",
            invalid_group: None,
            has_generation: false,
            generation_since: 0,
            keeps_generation: false,
            generation_on_annotations: false,
            orphans_by_default: |_| false,
            create_on_update: false,
            allow_unconditional_update: true,
            ttl_seconds: 0,
            grace_period: None,
            default: |_, _| {},
            prepare_create: |_, _| {},
            prepare_update: |_, _, _| {},
            validate: |_, _| Vec::new(),
            validate_update: |_, _, _| Vec::new(),
            validated_twice: false,
            update_checks: (0, 1),
            name_fn: pilothouse_apimachinery::names::dns1123_subdomain_name,
            selectable_fields: |_| Vec::new(),
            selectable_field_names: &[],
            columns: NAME_AND_AGE,
            row: crate::table::name_and_age,
            raw_field: None,
            row_conditions: |_| None,
        }
    }

    /// The group of the hub version.
    pub fn group(&self) -> &'static str {
        self.versions[0].group
    }
}

/// The columns of a kind that has none of its own.
pub const NAME_AND_AGE: &[Column] = &[
    Column {
        name: "Name",
        type_: "string",
        format: "name",
        priority: 0,
        description: crate::table::NAME_DESCRIPTION,
    },
    Column {
        name: "Created At",
        type_: "date",
        format: "",
        priority: 0,
        description: crate::table::CREATED_DESCRIPTION,
    },
];

/// The families of built-in kinds.
static FAMILIES: &[&[&Kind]] = &[
    pod::KINDS,
    workloads::KINDS,
    batch::KINDS,
    autoscaling::KINDS,
    policy::KINDS,
    core::KINDS,
    service::KINDS,
    storage::KINDS,
    node::KINDS,
    networking::KINDS,
    rbac::KINDS,
    resource::KINDS,
    admissionregistration::KINDS,
    apiextensions::KINDS,
    apiregistration::KINDS,
    certificates::KINDS,
    coordination::KINDS,
    discovery::KINDS,
    events::KINDS,
    flowcontrol::KINDS,
    scheduling::KINDS,
    authentication::KINDS,
    authorization::KINDS,
];

/// All built-in kinds.
pub fn all() -> impl Iterator<Item = &'static Kind> {
    FAMILIES.iter().flat_map(|family| family.iter().copied())
}
