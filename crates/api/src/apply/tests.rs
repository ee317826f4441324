use pilothouse_apimachinery::json::{Value, json, to_value};
use proptest::prelude::*;

use super::managed::{Managed, manager_name};
use super::manager::{FieldManager, parse};
use super::set::Set;
use super::types::Type;
use crate::catalogue::Catalogue;
use crate::schema::Schema;
use pilothouse_apimachinery::version::{NEWEST, Release};

const NOW: &str = "2021-02-01T12:00:00Z";

fn schema_of(object: &Value, release: Release) -> Option<Schema> {
    let api_version = object["apiVersion"].as_str()?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    Schema::of(release, group, version, object["kind"].as_str()?)
}

/// Runs with the field manager of the object's kind; kinds that are not built in are custom, without a schema.
fn with_manager<T>(object: &Value, release: Release, run: impl FnOnce(&FieldManager<'_>) -> T) -> T {
    let bare = json!({"apiVersion": object["apiVersion"], "kind": object["kind"]});
    let (type_, empty) = match schema_of(object, release) {
        Some(schema) => {
            let empty = crate::decode::from_value(schema, bare).unwrap().object;
            (Type::built_in(schema.catalogue, schema.type_), empty)
        }
        None => (Type::Deduced, bare),
    };
    run(&FieldManager {
        release,
        api_version: object["apiVersion"].as_str().unwrap(),
        subresource: "",
        ignore_request_fields: false,
        type_,
        empty: &empty,
        reset: Set::default(),
        now: NOW.into(),
        convert: &|_, _| None,
    })
}

/// An updated object with its managers.
fn update(fields: &FieldManager<'_>, live: &Value, mut new: Value, manager: &str) -> Value {
    let entries = fields.update(live, &new, manager);
    let metadata = new["metadata"].as_object_mut().unwrap();
    metadata.remove("managedFields");
    if !entries.is_empty() {
        metadata.insert("managedFields", entries);
    }
    new
}

fn entries(managed: &Value) -> Vec<String> {
    let mut out: Vec<String> = managed
        .as_array()
        .into_iter()
        .flatten()
        .map(|e| {
            let mut e = e.clone();
            e.as_object_mut().unwrap().remove("time");
            e.to_string()
        })
        .collect();
    out.sort();
    out
}

/// What Kubernetes v1.20.2 answered: each case is a live object, a change, and the managers after it (or the error).
#[test]
fn recorded() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../../testdata/apply/recorded.json")).unwrap();
    for case in &cases {
        let name = &case["name"];
        let object = &case["object"];
        let manager = case["manager"].as_str().unwrap();
        let expect = &case["expect"];
        with_manager(object, Release::V1_20, |fields| {
            let live = if case["live"].is_null() { fields.empty } else { &case["live"] };
            if case["apply"] != true {
                let mut new = object.clone();
                new["metadata"].as_object_mut().unwrap().remove("managedFields");
                let done = update(fields, live, new, manager);
                assert_eq!(
                    entries(&done["metadata"]["managedFields"]),
                    entries(&expect["managedFields"]),
                    "{name}"
                );
                return;
            }
            match fields.apply(live, object, manager, case["force"] == true) {
                Ok(done) => {
                    let own = entries(&done["metadata"]["managedFields"]);
                    assert_eq!(own, entries(&expect["managedFields"]), "{name}");
                }
                Err(status) => {
                    assert_eq!(Value::from(status.message.as_str()), expect["message"], "{name}");
                    assert_eq!(Value::from(status.code), expect["code"], "{name}");
                    let causes = status.details.unwrap_or_default().causes;
                    assert_eq!(to_value(causes).unwrap(), expect["causes"], "{name}");
                }
            }
        });
    }
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

fn apply(live: &Value, config: &Value, manager: &str, force: bool) -> Result<Value, String> {
    with_manager(config, NEWEST, |fields| fields.apply(live, config, manager, force)).map_err(|s| s.message)
}

#[test]
fn shared_fields_stay_until_the_last_owner_leaves() {
    let live = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    let live = apply(&live, &config_map(json!({"a": "1", "b": "2"})), "x", false).unwrap();
    let live = apply(&live, &config_map(json!({"a": "1"})), "y", false).unwrap();
    let live = apply(&live, &config_map(json!({"b": "2"})), "x", false).unwrap();
    assert_eq!(live["data"], json!({"a": "1", "b": "2"}));
    let live = apply(&live, &config_map(json!({"c": "3"})), "y", false).unwrap();
    assert_eq!(live["data"], json!({"b": "2", "c": "3"}));
    let error = apply(&live, &config_map(json!({"b": "9", "c": "9"})), "z", false).unwrap_err();
    assert_eq!(
        error,
        "Apply failed with 2 conflicts: conflicts with \"x\":\n- .data.b\nconflicts with \"y\":\n- .data.c"
    );
}

#[test]
fn an_updater_is_named_with_its_version() {
    let live = with_manager(&config_map(json!({})), NEWEST, |fields| {
        update(fields, fields.empty, config_map(json!({"a": "1"})), "kubectl-create")
    });
    assert_eq!(live["metadata"]["managedFields"][0]["time"], NOW);
    let error = apply(&live, &config_map(json!({"a": "2"})), "m", false).unwrap_err();
    assert_eq!(error, "Apply failed with 1 conflict: conflict with \"kubectl-create\" using v1: .data.a");
}

#[test]
fn untracked_objects_are_tracked_from_the_first_apply() {
    let mut live = config_map(json!({"a": "1"}));
    live["metadata"]["uid"] = json!("u");
    let same = with_manager(&live, NEWEST, |fields| update(fields, &live, live.clone(), "m"));
    assert!(same["metadata"]["managedFields"].is_null());
    let done = apply(&live, &config_map(json!({"b": "2"})), "m", false).unwrap();
    let managers: Vec<&str> = done["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["manager"].as_str().unwrap())
        .collect();
    assert_eq!(managers, ["m", "before-first-apply"]);
}

#[test]
fn resets() {
    let mut live = config_map(json!({"a": "1"}));
    live["metadata"]["uid"] = json!("u");
    let live = apply(&live, &config_map(json!({"a": "1"})), "m", false).unwrap();
    for reset in [json!([]), json!([{}])] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = reset;
        let done = with_manager(&live, NEWEST, |fields| update(fields, &live, new, "m"));
        assert!(done["metadata"]["managedFields"].is_null());
    }
}

#[test]
fn kubectl_takes_over_from_client_side_apply() {
    const LAST: &str = "kubectl.kubernetes.io/last-applied-configuration";
    let mut object = config_map(json!({"a": "1"}));
    object["metadata"]["annotations"] = json!({LAST: config_map(json!({"a": "1"})).to_string()});
    let live = with_manager(&object, NEWEST, |fields| {
        update(fields, fields.empty, object.clone(), "kubectl-client-side-apply")
    });
    let new = config_map(json!({"a": "2"}));
    assert!(apply(&live, &new, "other", false).is_err());
    let done = apply(&live, &new, "kubectl", false).unwrap();
    assert_eq!(done["data"]["a"], "2");
    assert_eq!(done["metadata"]["annotations"][LAST], format!("{new}\n"));
}

#[test]
fn many_updaters_become_one() {
    let mut live = with_manager(&config_map(json!({})), NEWEST, |f| {
        update(f, f.empty, config_map(json!({"k": "0"})), "m")
    });
    for i in 0..14 {
        let mut new = live.clone();
        new["data"][format!("k{i}")] = json!("x");
        live = with_manager(&live, NEWEST, |f| update(f, &live, new, &format!("m{i}")));
    }
    let managed = live["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(managed.len(), 10);
    let ancient = managed.iter().find(|e| e["manager"] == "ancient-changes").unwrap();
    assert!(ancient["fieldsV1"]["f:data"].as_object().unwrap().len() > 5);
}

#[test]
fn atomic_and_granular() {
    // A selector was owned by its parts before it became atomic.
    let catalogue = Catalogue::of(NEWEST);
    let type_ = Type::built_in(catalogue, catalogue.kind("", "v1", "Service").unwrap());
    let fields = json!({"f:spec": {"f:selector": {".": {}, "f:app": {}}, "f:type": {}}});
    let set = Set::from_fields_v1(&fields).unwrap();
    let live = json!({"spec": {"selector": {"app": "a"}, "type": "ClusterIP"}});
    let adapted = super::typed::reconcile(type_, set.clone(), &live).to_fields_v1();
    assert_eq!(adapted, json!({"f:spec": {"f:selector": {}, "f:type": {}}}));
    // And the other way round.
    let set = Set::from_fields_v1(&json!({"f:metadata": {"f:labels": {}}})).unwrap();
    let live = json!({"metadata": {"labels": {"a": "b"}}});
    let adapted = super::typed::reconcile(type_, set.clone(), &live).to_fields_v1();
    assert_eq!(adapted, json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}}));
}

/// The newest release follows the schema of a custom resource.
#[test]
fn custom_lists_are_merged_by_their_keys() {
    let schema = crate::crd::schema::Schema::parse(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k", "p"],
                "items": {"type": "object", "properties": {
                    "k": {"type": "string"}, "p": {"type": "string", "default": "TCP"}, "v": {"type": "string"}}}},
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
        }}}}),
    );
    let object =
        |spec: Value| json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec});
    let empty = json!({"apiVersion": "x/v1", "kind": "X"});
    let fields = FieldManager {
        release: NEWEST,
        api_version: "x/v1",
        subresource: "",
        ignore_request_fields: false,
        type_: Type::custom(Catalogue::of(NEWEST), Some(&schema)),
        empty: &empty,
        reset: Set::default(),
        now: NOW.into(),
        convert: &|_, _| None,
    };
    let one = object(json!({"list": [{"k": "a", "v": "1"}], "set": ["x"], "whole": {"a": "1"}}));
    let live = fields.apply(&empty, &one, "m1", false).unwrap();
    let two = object(json!({"list": [{"k": "b", "p": "UDP"}, {"k": "a"}], "set": ["y", "x"]}));
    let live = fields.apply(&live, &two, "m2", false).unwrap();
    assert_eq!(
        live["spec"],
        json!({"list": [{"k": "a", "v": "1"}, {"k": "b", "p": "UDP"}], "set": ["x", "y"], "whole": {"a": "1"}})
    );
    let owned = &live["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"];
    assert_eq!(owned["f:list"], json!({"k:{\"k\":\"a\",\"p\":\"TCP\"}": {".": {}, "f:k": {}, "f:v": {}}}));
    assert_eq!((&owned["f:set"], &owned["f:whole"]), (&json!({"v:\"x\"": {}}), &json!({})));
    // What the first manager leaves out goes, as far as the second does not hold it.
    let live = fields.apply(&live, &object(json!({"set": []})), "m1", false).unwrap();
    assert_eq!(live["spec"], json!({"list": [{"k": "a"}, {"k": "b", "p": "UDP"}], "set": ["x", "y"]}));
    let error = fields.apply(&live, &object(json!({"set": ["x", "x"]})), "m1", false).unwrap_err();
    assert_eq!(
        error.message,
        "failed to create typed patch object: .spec.set: duplicate entries for key [=\"x\"]"
    );
}

#[test]
fn does_not_fit() {
    let live = config_map(json!({}));
    let fault = |config: Value| apply(&live, &config, "m", false).unwrap_err();
    assert_eq!(
        fault(config_map(json!({"a": 1}))),
        "failed to create typed patch object: .data.a: expected string, got &value.valueUnstructured{Value:1}"
    );
    let mut unknown = config_map(json!({}));
    unknown["spec"] = json!({});
    assert_eq!(fault(unknown), "failed to create typed patch object: .spec: field not declared in schema");
    let mut other = config_map(json!({}));
    other["apiVersion"] = json!("v2");
    let error = with_manager(&live, NEWEST, |f| f.apply(&live, &other, "m", false)).unwrap_err();
    assert_eq!(error.code, 400);
    assert!(parse(Release::V1_20, b"- a").is_err() && parse(Release::V1_20, b"a: [").is_err());
    assert!(Managed::decode(&json!([{"operation": "Other"}]), false).is_err());
}

#[test]
fn names() {
    assert_eq!(manager_name("m", "kubectl/v1"), "m");
    assert_eq!(manager_name("", "kubectl/v1.20.2 (linux)"), "kubectl");
    assert_eq!(manager_name("", &"x".repeat(300)).len(), 128);
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0i64..4).prop_map(Value::from),
        "[ab]{0,2}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[abc]", inner, 0..4).prop_map(|m| m.into_iter().collect()),
        ]
    })
}

fn object_value() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[abc]", json_value(), 0..4).prop_map(|m| json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "x"}, "spec": m.into_iter().collect::<Value>()}))
}

proptest! {
    #[test]
    fn fields_round_trip(a in json_value(), b in json_value()) {
        let set = super::typed::field_set(Type::Deduced, &a, true).union(super::typed::field_set(Type::Deduced, &b, true));
        prop_assert_eq!(Set::from_fields_v1(&set.to_fields_v1()).unwrap(), set);
    }

    #[test]
    fn set_algebra(a in json_value(), b in json_value()) {
        let (a, b) = (super::typed::field_set(Type::Deduced, &a, true), super::typed::field_set(Type::Deduced, &b, true));
        let union = a.clone().union(b.clone());
        prop_assert_eq!(union.clone().difference(&b).union(union.intersection(&b)), union.clone());
        prop_assert!(a.clone().difference(&union).is_empty());
        prop_assert_eq!(a.paths().len() + b.difference(&a).paths().len(), union.paths().len());
    }

    #[test]
    fn applying_twice_is_applying_once(live in object_value(), config in object_value()) {
        let once = with_manager(&config, NEWEST, |f| f.apply(&live, &config, "m", true)).unwrap();
        let twice = with_manager(&config, NEWEST, |f| f.apply(&once, &config, "m", true)).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn comparison_finds_nothing_in_the_same(a in object_value()) {
        prop_assert!(super::typed::compare(Type::Deduced, &a, &a).is_same());
    }
}
