//! `Event`: one kind in two groups, core and `events.k8s.io`, whose fields differ in name.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, get, get_i64, has, str_at};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::version::Release;

use super::checks::invalid_each;
use super::columns::{NAME, text, wide};
use super::{Column, Context, Kind, RowContext, Version};
use crate::table::{name_cell, since_cell};

const GROUP: &str = "events.k8s.io";

/// The family: one kind.
pub static KINDS: &[&Kind] = &[&EVENT];

/// The kind. Hub is the core version.
pub static EVENT: Kind = Kind {
    short_names: &["ev"],
    create_on_update: true,
    storage_version: "v1",
    ttl_seconds: 3600,
    name_fn: names::path_segment_name,
    validate,
    validate_update,
    selectable_field_names: FIELDS,
    selectable_fields,
    columns: &[
        text("Last Seen", "The time at which the most recent occurrence of this event was recorded."),
        text("Type", "Type of this event (Normal, Warning), new types could be added in the future"),
        text(
            "Reason",
            "This should be a short, machine understandable string that gives the reason for the transition into the object's current status.",
        ),
        text("Object", "The object that this event is about."),
        wide(
            "Subobject",
            "If referring to a piece of an object instead of an entire object, this string should contain a valid JSON/Go field access statement, such as desiredState.manifest.containers[2]. For example, if the object reference is to a container within a pod, this would take on a value like: \"spec.containers{name}\" (where \"name\" refers to the name of the container that triggered the event) or if no container name is specified \"spec.containers[2]\" (container with index 2 in this pod). This syntax is chosen only to have some well-defined way of referencing a part of an object.",
        ),
        wide(
            "Source",
            "The component reporting this event. Should be a short machine understandable string.",
        ),
        text("Message", "A human-readable description of the status of this operation."),
        wide(
            "First Seen",
            "The time at which the event was first recorded. (Time of server receipt is in TypeMeta.)",
        ),
        wide("Count", "The number of times this event has occurred."),
        Column { priority: 1, ..NAME },
    ],
    row,
    update_checks: (0, 0),
    ..Kind::new(
        "Event",
        "events",
        "event",
        &[
            Version::always("", "v1"),
            Version { to_hub: Some(to_core), from_hub: Some(from_core), ..Version::always(GROUP, "v1") },
            Version { to_hub: Some(to_core), from_hub: Some(from_core), ..Version::always(GROUP, "v1beta1") },
        ],
    )
};

/// Names of fields in `events.k8s.io`, and in core.
const RENAMED: &[(&str, &str)] = &[
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn to_core(event: &mut Value) {
    rename(event, |(newer, core)| (newer, core));
}

fn from_core(event: &mut Value) {
    rename(event, |(newer, core)| (core, newer));
}

fn rename(event: &mut Value, direction: fn((&'static str, &'static str)) -> (&'static str, &'static str)) {
    let Some(fields) = event.as_object_mut() else { return };
    for pair in RENAMED {
        let (from, to) = direction(*pair);
        if let Some(value) = fields.remove(from) {
            fields.insert(to, value);
        }
    }
}

const FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reportingController",
];

fn selectable_fields(event: &Value) -> Vec<(&'static str, String)> {
    FIELDS
        .iter()
        .map(|name| {
            let value = match *name {
                "source" => match str_at(event, &["source", "component"]) {
                    "" => str_at(event, &["reportingComponent"]),
                    component => component,
                },
                "reportingController" => str_at(event, &["reportingComponent"]),
                name => match name.split_once('.') {
                    Some((_, part)) => str_at(event, &["involvedObject", part]),
                    None => str_at(event, &[name]),
                },
            };
            (*name, value.to_string())
        })
        .collect()
}

fn is_set(event: &Value, field: &str) -> bool {
    !str_at(event, &[field]).is_empty()
}

fn too_many_characters(n: usize) -> String {
    format!("can have at most {n} characters")
}

/// What events of all versions must fulfil.
fn common_faults(event: &Value, context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let namespace = str_at(event, &["metadata", "namespace"]);
    let about = str_at(event, &["involvedObject", "namespace"]);
    let mismatch =
        || field::invalid(&Path::new("involvedObject.namespace"), about, "does not match event.namespace");
    if is_set(event, "eventTime") {
        let free: &[&str] =
            if context.release == Release::V1_20 { &["kube-system"] } else { &["default", "kube-system"] };
        if about.is_empty() && !free.contains(&namespace) {
            errs.push(mismatch());
        }
        let controller = str_at(event, &["reportingComponent"]);
        let path = Path::new(if context.api_version == "v1" && context.release > Release::V1_20 {
            "reportingComponent"
        } else {
            "reportingController"
        });
        if controller.is_empty() {
            errs.push(field::required(&path, ""));
        }
        errs.extend(invalid_each(&path, controller, names::qualified_name(controller)));
        for name in ["reportingInstance", "action", "reason"] {
            let value = str_at(event, &[name]);
            if value.is_empty() {
                errs.push(field::required(&Path::new(name), ""));
            }
            if value.len() > 128 {
                errs.push(field::invalid(&Path::new(name), "", &too_many_characters(128)));
            }
        }
        if str_at(event, &["message"]).len() > 1024 {
            errs.push(field::invalid(&Path::new("message"), "", &too_many_characters(1024)));
        }
    } else if about.is_empty() {
        if !["", "default"].contains(&namespace) {
            errs.push(mismatch());
        }
    } else if namespace != about {
        errs.push(mismatch());
    }
    errs.extend(invalid_each(&Path::new("namespace"), namespace, names::dns1123_subdomain(namespace)));
    errs
}

fn is_new_api(context: &Context) -> bool {
    context.api_version == "events.k8s.io/v1"
}

fn series_faults(event: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    if !has(event, &["series"]) {
        return errs;
    }
    if get_i64(event, &["series", "count"]) < 2 {
        errs.push(field::invalid(&Path::new("series.count"), "", "should be at least 2"));
    }
    if str_at(event, &["series", "lastObservedTime"]).is_empty() {
        errs.push(field::required(&Path::new("series.lastObservedTime"), ""));
    }
    errs
}

fn validate(event: &Value, context: &Context) -> ErrorList {
    let mut errs = common_faults(event, context);
    if !is_new_api(context) {
        return errs;
    }
    let name = str_at(event, &["metadata", "name"]);
    if !name.is_empty() {
        errs.extend(invalid_each(
            &Path::new("metadata.name"),
            name,
            names::dns1123_subdomain_name(name, false),
        ));
    }
    errs.extend(series_faults(event));
    if !is_set(event, "eventTime") {
        errs.push(field::required(&Path::new("eventTime"), ""));
    }
    let type_ = str_at(event, &["type"]);
    if !["Normal", "Warning"].contains(&type_) {
        errs.push(field::invalid(&Path::new("type"), "", &format!("has invalid value: {type_}")));
    }
    let unset = |errs: &mut ErrorList, name: &str, bad: bool| {
        if bad {
            errs.push(field::invalid(&Path::new(name), "", "needs to be unset"));
        }
    };
    unset(&mut errs, "firstTimestamp", is_set(event, "firstTimestamp"));
    unset(&mut errs, "lastTimestamp", is_set(event, "lastTimestamp"));
    unset(&mut errs, "count", get_i64(event, &["count"]) != 0);
    let source = ["component", "host"].iter().any(|f| !str_at(event, &["source", f]).is_empty());
    unset(&mut errs, "source", source);
    errs
}

fn validate_update(new: &Value, old: &Value, context: &Context) -> ErrorList {
    let mut errs = common_faults(new, context);
    // v1.20 takes the new event for the old one, too.
    if !is_new_api(context) || context.release == Release::V1_20 {
        return errs;
    }
    if get(new, &["series"]) != get(old, &["series"]) {
        errs.extend(series_faults(new));
    }
    for (name, shown_as) in [
        ("involvedObject", "involvedObject"),
        ("reason", "reason"),
        ("message", "message"),
        ("source", "source"),
        ("firstTimestamp", "firstTimestamp"),
        ("lastTimestamp", "lastTimestamp"),
        ("count", "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        let (is, was) = (get(new, &[name]), get(old, &[name]));
        // What one version leaves out where it is empty, another has as an empty text.
        let empty = |v: &Value| v.is_null() || v == "";
        if !(empty(is) && empty(was)) {
            errs.extend(super::checks::immutable(is, was, &Path::new(shown_as)));
        }
    }
    errs
}

fn row(event: &Value, context: &RowContext) -> Vec<Value> {
    let first_set = |names: [&[&str]; 2]| match str_at(event, names[0]) {
        "" => str_at(event, names[1]).to_string(),
        text => text.to_string(),
    };
    let first = first_set([&["firstTimestamp"], &["eventTime"]]);
    let last = match str_at(event, &["lastTimestamp"]) {
        "" => first.clone(),
        last => last.to_string(),
    };
    let (last, count) = if has(event, &["series"]) {
        (str_at(event, &["series", "lastObservedTime"]).to_string(), get_i64(event, &["series", "count"]) + 1)
    } else {
        (last, get_i64(event, &["count"]).max(1))
    };
    let mut target = str_at(event, &["involvedObject", "kind"]).to_lowercase();
    let name = str_at(event, &["involvedObject", "name"]);
    if !name.is_empty() {
        target = format!("{target}/{name}");
    }
    let mut source = first_set([&["source", "component"], &["reportingComponent"]]);
    let instance = first_set([&["source", "host"], &["reportingInstance"]]);
    if !instance.is_empty() {
        source = format!("{source}, {instance}");
    }
    vec![
        since_cell(&last, context),
        str_at(event, &["type"]).into(),
        str_at(event, &["reason"]).into(),
        target.into(),
        str_at(event, &["involvedObject", "fieldPath"]).into(),
        source.into(),
        str_at(event, &["message"]).trim().into(),
        since_cell(&first, context),
        count.into(),
        name_cell(event),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::NEWEST;

    use super::*;

    fn context(api_version: &'static str) -> Context {
        Context { release: Release::V1_20, subresource: "", api_version, allow_privileged: true, gates: &[] }
    }

    #[test]
    fn conversion_is_a_renaming() {
        let newer = json!({"metadata": {"name": "e"}, "note": "n", "regarding": {"kind": "Pod"}, "deprecatedCount": 3, "reason": "r"});
        let mut event = newer.clone();
        to_core(&mut event);
        assert_eq!(
            event,
            json!({"metadata": {"name": "e"}, "message": "n", "involvedObject": {"kind": "Pod"}, "count": 3, "reason": "r"})
        );
        from_core(&mut event);
        assert_eq!(event, newer);
    }

    #[test]
    fn old_events() {
        let e = json!({"metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"namespace": "b"}});
        assert_eq!(
            validate(&e, &context("v1"))[0].to_string(),
            "involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"
        );
        let e = json!({"metadata": {"name": "e", "namespace": "default"}, "involvedObject": {}});
        assert!(validate(&e, &context("v1")).is_empty());
    }

    #[test]
    fn new_events() {
        let e = json!({"metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"namespace": "a"}, "eventTime": "2026-01-01T00:00:00.000000Z",
            "type": "Odd", "action": "x", "count": 1});
        let fields: Vec<String> =
            validate(&e, &context("events.k8s.io/v1")).into_iter().map(|e| e.field).collect();
        assert_eq!(
            fields,
            [
                "reportingController",
                "reportingController",
                "reportingController",
                "reportingInstance",
                "reason",
                "type",
                "count"
            ]
        );
        let mut old = e.clone();
        old["reason"] = "x".into();
        let changed = |release| {
            let context = Context { release, ..context("events.k8s.io/v1") };
            validate_update(&e, &old, &context).iter().any(|e| e.body.ends_with("immutable"))
        };
        assert!(changed(NEWEST));
        // v1.20 compares the new event with itself.
        assert!(!changed(Release::V1_20));
    }

    #[test]
    fn new_events_of_the_cluster() {
        let e = json!({"metadata": {"name": "e", "namespace": "default"}, "involvedObject": {}, "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingInstance": "i", "action": "a", "reason": "r"});
        let fields = |release| -> Vec<String> {
            let context = Context { release, ..context("v1") };
            validate(&e, &context).into_iter().map(|e| e.field).collect()
        };
        assert_eq!(fields(NEWEST)[0], "reportingComponent");
        assert_eq!(fields(Release::V1_20)[..2], ["involvedObject.namespace", "reportingController"]);
    }

    #[test]
    fn rows() {
        let e = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "type": "Normal", "reason": "R",
            "message": " m\n", "reportingComponent": "c", "reportingInstance": "i", "eventTime": "1970-01-01T00:00:00.000000Z",
            "series": {"count": 7, "lastObservedTime": "1970-01-01T00:01:00.000000Z"}});
        let cells = row(&e, &RowContext { now: 120 });
        assert_eq!(
            cells,
            [
                json!("60s"),
                json!("Normal"),
                json!("R"),
                json!("pod/p"),
                json!(""),
                json!("c, i"),
                json!("m"),
                json!("2m"),
                json!(8),
                json!("e")
            ]
        );
    }

    #[test]
    fn source_falls_back() {
        let fields = selectable_fields(&json!({"reportingComponent": "c", "involvedObject": {"name": "p"}}));
        assert!(fields.contains(&("source", "c".into())));
        assert!(fields.contains(&("regarding.name", "p".into())));
    }
}
