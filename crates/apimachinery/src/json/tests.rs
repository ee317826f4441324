use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Documents of some depth, as serde_json has them.
fn documents() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        (-1e9..1e9).prop_map(|n: f64| n.into()),
        // Texts that lie in the value itself, and longer ones.
        "\\PC{0,40}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 64, 12, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..12).prop_map(Into::into),
            prop::collection::btree_map("[a-z/~0-9]{0,3}", inner, 0..12)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Every place of a document as a pointer, and some that are none.
fn pointers(value: &serde_json::Value, at: &str, found: &mut Vec<String>) {
    found.extend([at.to_string(), format!("{at}/nothing"), format!("{at}/01"), format!("{at}/-")]);
    let step = |name: &str| format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
    match value {
        serde_json::Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, v)| pointers(v, &format!("{at}/{i}"), found));
        }
        serde_json::Value::Object(map) => map.iter().for_each(|(k, v)| pointers(v, &step(k), found)),
        _ => {}
    }
}

/// What is done to an object: a name, and a value or none.
fn steps() -> impl Strategy<Value = Vec<(String, Option<i64>)>> {
    prop::collection::vec(("[a-p]{1,2}", prop::option::of(any::<i64>())), 0..60)
}

proptest! {
    /// Texts, values and conversions are those of serde_json.
    #[test]
    fn it_reads_and_writes_as_serde_json(document in documents()) {
        let text = document.to_string();
        let value: Value = serde_json::from_str(&text).unwrap();
        let same: serde_json::Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(value.to_string(), same.to_string());
        prop_assert_eq!(&value, &Value::from(same.clone()));
        prop_assert_eq!(serde_json::Value::from(value.clone()), same.clone());
        prop_assert_eq!(from_value::<serde_json::Value>(value.clone()).unwrap(), same.clone());
        prop_assert_eq!(&to_value(&same).unwrap(), &value);
        let mut all = Vec::new();
        pointers(&same, "", &mut all);
        for pointer in all {
            let (own, other) = (value.pointer(&pointer), same.pointer(&pointer));
            prop_assert_eq!(own.cloned(), other.cloned().map(Value::from), "{}", pointer);
            prop_assert_eq!(value.clone().pointer_mut(&pointer).cloned(), own.cloned(), "{}", pointer);
        }
    }

    /// An object is a sorted map, however it is made and changed; a copy made on the way stays what it was.
    #[test]
    fn an_object_is_a_sorted_map(steps in steps(), more in steps()) {
        let (mut map, mut model) = (Map::new(), BTreeMap::new());
        for (name, value) in &steps {
            match value {
                Some(n) => prop_assert_eq!(map.insert(name.as_str(), *n), model.insert(name.clone(), *n).map(Value::from)),
                None => prop_assert_eq!(map.remove(name), model.remove(name).map(Value::from)),
            }
        }
        let (copy, before) = (map.clone(), model.clone());
        map.change(more.iter().map(|(k, v)| (k.as_str().into(), v.map(Value::from))).collect());
        for (name, value) in more.iter().map(|(k, v)| (k, *v)).collect::<BTreeMap<_, _>>() {
            match value {
                Some(n) => drop(model.insert(name.clone(), n)),
                None => drop(model.remove(name)),
            }
        }
        for (map, model) in [(&map, &model), (&copy, &before)] {
            let pairs: Vec<(String, i64)> = map.iter().map(|(k, v)| (k.to_string(), v.as_i64().unwrap())).collect();
            prop_assert_eq!(&pairs, &model.clone().into_iter().collect::<Vec<_>>());
            for name in steps.iter().chain(&more).map(|(name, _)| name) {
                prop_assert_eq!(map.get(name).and_then(Value::as_i64), model.get(name).copied());
                prop_assert_eq!(map.contains_key(name), model.contains_key(name));
            }
            prop_assert_eq!(map.len(), model.len());
        }
    }

    /// Of members of one name the last counts, in a text as in a list of pairs.
    #[test]
    fn the_last_of_a_name_counts(pairs in prop::collection::vec(("[a-c]", any::<u8>()), 0..20)) {
        let members: Vec<String> = pairs.iter().map(|(k, v)| format!("{k:?}:{v}")).collect();
        let text = format!("{{{}}}", members.join(","));
        let model: BTreeMap<&str, u8> = pairs.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        let map: Map = pairs.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        prop_assert_eq!(&Value::Object(map), &model.into_iter().collect::<Value>());
        prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap().to_string(),
            serde_json::from_str::<serde_json::Value>(&text).unwrap().to_string());
    }
}

#[test]
fn copies_share_what_is_not_changed() {
    let old = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"list": [1, {"x": 1}]}});
    let mut new = old.clone();
    set(&mut new, &["metadata", "labels", "a"], "c");
    new["spec"]["list"][1]["x"] = json!(2);
    assert_eq!(old, json!({"metadata": {"labels": {"a": "b"}}, "spec": {"list": [1, {"x": 1}]}}));
    assert_eq!(new, json!({"metadata": {"labels": {"a": "c"}}, "spec": {"list": [1, {"x": 2}]}}));
    let entry = new.as_object_mut().unwrap().entry("status").or_insert_with(|| json!({}));
    entry["phase"] = json!("x");
    assert!(!has(&old, &["status"]) && str_at(&new, &["status", "phase"]) == "x");
    let mut kept = old.clone();
    kept.as_object_mut().unwrap().retain(|k, _| k == "spec");
    assert_eq!((kept.as_object().unwrap().len(), old.as_object().unwrap().len()), (1, 2));
}

#[test]
fn types_of_rust_are_read_as_from_a_text() {
    #[derive(Debug, PartialEq, ::serde::Deserialize)]
    enum Sort {
        Unit,
        Of(u8),
        With { a: Option<String> },
    }
    #[derive(Debug, PartialEq, ::serde::Deserialize)]
    struct All {
        sorts: Vec<Sort>,
        #[serde(default)]
        rest: BTreeMap<Sorted, Option<f64>>,
    }
    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, ::serde::Deserialize)]
    struct Sorted(String);
    for text in [
        r#"{"sorts": ["Unit", {"Of": 3}, {"With": {"a": null}}, {"With": {"a": "x"}}], "rest": {"k": 1.5, "n": null}}"#,
        r#"{"sorts": []}"#,
        r#"{"sorts": ["What"]}"#,
        r#"{"sorts": [{"Of": 300}]}"#,
        r#"{"sorts": [{"Of": 1, "Unit": 2}]}"#,
        r#"{"sorts": "x"}"#,
        r#"{"rest": {}}"#,
        "[]",
    ] {
        let read = serde_json::from_str::<All>(text);
        let value = from_value::<All>(text.parse().unwrap());
        match (read, value) {
            (Ok(a), Ok(b)) => assert_eq!(a, b),
            // A text's error also says where.
            (Err(a), Err(b)) => {
                let (a, b) = (a.to_string(), b.to_string());
                assert!(a.starts_with(&b) || text.contains("Unit\": 2"), "{text}: {a} / {b}");
            }
            (a, b) => panic!("{text}: {a:?} / {b:?}"),
        }
    }
}

/// Ten times the names cost about ten times the work, not a hundred times, in whatever order they come.
#[test]
fn many_names_in_any_order_are_not_expensive() {
    let backwards = |n: u32| (0..n).rev().map(|i| (format!("{i:08}"), i));
    let cost = |n: u32| {
        let begun = std::time::Instant::now();
        let mut map: Map = backwards(n).collect();
        map.extend(backwards(n).map(|(k, v)| (format!("{k}x"), v)));
        map.change(backwards(n).map(|(k, _)| (k.into(), None)).collect());
        assert_eq!(map.len(), n as usize);
        begun.elapsed()
    };
    // Something else may take the processor meanwhile, but not every time.
    let tries: Vec<_> = (0..5).map(|_| (cost(5_000), cost(50_000))).collect();
    assert!(tries.iter().any(|(few, many)| *many < *few * 30), "{tries:?}");
}

#[test]
fn paths() {
    let mut v = json!({"spec": {"a": "x", "n": 3, "l": [1]}});
    assert_eq!(str_at(&v, &["spec", "a"]), "x");
    assert_eq!(str_at(&v, &["spec", "b", "c"]), "");
    assert_eq!(i64_at(&v, &["spec", "n"]), Some(3));
    assert_eq!(list_at(&v, &["spec", "l"]).len(), 1);
    set(&mut v, &["status", "phase"], "Pending");
    set_default(&mut v, &["status", "phase"], "Other");
    assert_eq!(str_at(&v, &["status", "phase"]), "Pending");
    assert_eq!(remove(&mut v, &["spec", "n"]), Some(json!(3)));
    let from = json!({"spec": {}});
    copy(&mut v, &from, &["status"]);
    assert!(!has(&v, &["status"]));
    assert!(deeper_than(&json!([[[]]]), 1) && !deeper_than(&json!([[[]]]), 2));
}

#[test]
fn what_is_equal_is_shared() {
    let old = json!({"a": {"b": [1, {"c": 2}], "d": {"e": 1}}, "f": [1]});
    let mut new: Value = serde_json::from_str(&old.to_string()).unwrap();
    new["a"]["d"]["e"] = json!(2);
    let expected = new.clone();
    assert!(!new.share(&old));
    assert_eq!(new, expected);
    assert!(new["a"]["b"].is_shared_with(&old["a"]["b"]) && new["f"].is_shared_with(&old["f"]));
    assert!(!new["a"].is_shared_with(&old["a"]));
    let mut same: Value = serde_json::from_str(&old.to_string()).unwrap();
    assert!(same.share(&old) && same.is_shared_with(&old));
    for (mut other, is) in
        [(json!({"a": 1}), false), (json!([1]), false), (json!(null), false), (old.clone(), true)]
    {
        assert_eq!(other.share(&old), is);
    }
    let mut longer = json!([1, 2]);
    assert!(!longer.share(&json!([1])) && longer == json!([1, 2]));
}
