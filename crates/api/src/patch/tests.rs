use pilothouse_apimachinery::json::{Value, json};
use proptest::prelude::*;

use super::{json as json_patch, merge, strategic};
use crate::apply::Type;
use crate::catalogue::Catalogue;
use pilothouse_apimachinery::version::{NEWEST, Release};

/// Cases in blocks of `# name`, `kind`, object, patch and result (or error), one line each, in YAML.
fn cases(text: &str) -> Vec<Vec<&str>> {
    text.split("\n# ").skip(1).map(|block| block.lines().filter(|l| !l.is_empty()).collect()).collect()
}

fn yaml(text: &str) -> Value {
    crate::decode::yaml(text.as_bytes()).unwrap()
}

fn pod_like(kind: &str) -> Type<'static> {
    let catalogue = Catalogue::of(Release::V1_20);
    let (group, kind) = kind.split_once('/').unwrap_or(("", kind));
    Type::built_in(catalogue, catalogue.kind(group, "v1", kind).unwrap())
}

#[test]
fn strategic_merge() {
    for case in cases(include_str!("../../testdata/patch/strategic.txt")) {
        let [name, kind, object, patch, expect] = case.as_slice() else { panic!("{case:?}") };
        let done = strategic::apply(pod_like(kind), &yaml(object), yaml(patch).to_string().as_bytes());
        match (done, expect.strip_prefix("error ")) {
            (Ok(done), None) => assert_eq!(done, yaml(expect), "{name}"),
            (Err(e), Some(text)) => {
                let (code, text) = text.split_once(' ').unwrap();
                assert_eq!((e.code.to_string(), e.message), (code.into(), text.replace('↵', "\n")), "{name}");
            }
            (done, _) => panic!("{name}: {done:?}"),
        }
    }
}

#[test]
fn json_patches() {
    let object = json!({"a": {"b": [1, 2]}, "c~/d": 1});
    let apply = |patch: Value| json_patch::apply(&object, patch.to_string().as_bytes());
    let done = apply(json!([
        {"op": "test", "path": "/a/b/0", "value": 1},
        {"op": "add", "path": "/a/b/-", "value": 3},
        {"op": "replace", "path": "/c~0~1d", "value": 2},
        {"op": "copy", "from": "/a/b", "path": "/e"},
        {"op": "move", "from": "/e/0", "path": "/f"},
        {"op": "remove", "path": "/e"},
        {"op": "test", "path": "/nothing", "value": null},
    ]))
    .unwrap();
    assert_eq!(done, json!({"a": {"b": [1, 2, 3]}, "c~/d": 2, "f": 1}));
    // Kubernetes' library adds what there is not to replace, to an object but not to a list.
    let added = apply(json!([{"op": "replace", "path": "/nope", "value": 1}])).unwrap();
    assert_eq!(added["nope"], 1);
    assert!(apply(json!([{"op": "replace", "path": "/a/b/7", "value": 1}])).is_err());
    for bad in [
        json!([{"op": "test", "path": "/a", "value": 1}]),
        json!([{"op": "remove", "path": "/nope"}]),
        json!([{"op": "replace", "path": "/nope/x", "value": 1}]),
        json!([{"op": "add", "path": "/x/y", "value": 1}]),
        json!([{"op": "what", "path": "/a"}]),
        json!([{"path": "/a"}]),
    ] {
        let status = apply(bad).unwrap_err();
        assert_eq!(status.code, 422);
        assert_eq!(status.message, "the server rejected our request due to an error in our request");
    }
    assert_eq!(apply(json!({})).unwrap_err().code, 400);
    assert_eq!(apply(json!([1])).unwrap_err().code, 400);
    assert_eq!(json_patch::apply(&object, b"[").unwrap_err().code, 400);
}

#[test]
fn json_patches_are_bounded() {
    let one = json!({"op": "test", "path": "/a", "value": 1});
    let many = Value::from(vec![one; 10_001]).to_string();
    let status = json_patch::apply(&json!({"a": 1}), many.as_bytes()).unwrap_err();
    assert_eq!(status.code, 413);
    assert!(status.message.ends_with("The allowed maximum operations in a JSON patch is 10000, got 10001"));
    // Each copy doubles the document.
    let copies: Vec<Value> = (0..60).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/-"})).collect();
    let bomb = Value::from(copies).to_string();
    assert_eq!(json_patch::apply(&json!({"a": ["0123456789"]}), bomb.as_bytes()).unwrap_err().code, 422);
}

#[test]
fn merge_patches() {
    let object = json!({"a": {"b": 1, "c": 2}, "d": [1]});
    let done =
        merge::apply(&object, br#"{"a": {"b": null, "e": {"f": null, "g": 1}}, "d": [2]}"#, NEWEST).unwrap();
    assert_eq!(done, json!({"a": {"c": 2, "e": {"g": 1}}, "d": [2]}));
    assert_eq!(merge::apply(&object, b"{", NEWEST).unwrap_err().code, 400);
    assert_eq!(merge::apply(&object, b"{", Release::V1_20).unwrap_err().code, 500);
}

/// A pod's containers with a few names, images and ports.
fn containers() -> impl Strategy<Value = Value> {
    let port = (1u8..4).prop_map(|p| json!({"containerPort": p, "name": format!("p{p}")}));
    let container =
        ("[abc]", "[xy]", prop::collection::vec(port, 0..3)).prop_map(|(name, image, mut ports)| {
            ports.sort_by_key(|p| p["containerPort"].as_i64());
            ports.dedup_by_key(|p| p["containerPort"].as_i64());
            json!({"name": name, "image": image, "ports": ports})
        });
    prop::collection::vec(container, 0..4).prop_map(|mut list| {
        list.sort_by_key(|c| c["name"].to_string());
        list.dedup_by_key(|c| c["name"].to_string());
        json!({"metadata": {"finalizers": list.iter().map(|c| c["name"].clone()).collect::<Vec<_>>()}, "spec": {"containers": list}})
    })
}

proptest! {
    #[test]
    fn strategic_twice_is_once(object in containers(), patch in containers()) {
        let patch = patch.to_string();
        let once = strategic::apply(pod_like("Pod"), &object, patch.as_bytes()).unwrap();
        let twice = strategic::apply(pod_like("Pod"), &once, patch.as_bytes()).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn nothing_panics(object in containers(), patch in ".{0,60}") {
        let _ = strategic::apply(pod_like("Pod"), &object, patch.as_bytes());
        let _ = json_patch::apply(&object, patch.as_bytes());
        let _ = merge::apply(&object, patch.as_bytes(), NEWEST);
    }
}
