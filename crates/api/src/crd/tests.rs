use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::version::{NEWEST, Release};

use super::jsonpath::JsonPath;
use super::{CustomVersion, formats, naming, resources};

const NOW: &str = "2021-02-01T12:00:00Z";

/// A definition with one version of the schema given.
fn crd(schema: &Value) -> Value {
    json!({
        "metadata": {"name": "crontabs.h.example.com"},
        "spec": {
            "group": "h.example.com",
            "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "listKind": "CronTabList"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas",
                    "statusReplicasPath": ".status.replicas",
                    "labelSelectorPath": ".status.selector",
                }},
                "additionalPrinterColumns": [
                    {"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec"},
                    {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
            }],
        },
    })
}

fn established(schema: &Value) -> Value {
    let accepted = naming::accept_names(&crd(schema), &[], NOW).unwrap();
    naming::establish(&accepted, NOW).unwrap()
}

fn version(schema: &Value, release: Release) -> CustomVersion {
    resources(&established(schema), release).remove(0)
}

fn cases(text: &str) -> Vec<Vec<&str>> {
    text.split("\n# ").skip(1).map(|block| block.lines().filter(|l| !l.is_empty()).collect()).collect()
}

fn yaml(text: &str) -> Value {
    crate::decode::yaml(text.as_bytes()).unwrap()
}

/// Cases of a schema for `spec`, a `spec`, and its faults, one line each; `ok` and the normalized value where there
/// are none.
#[test]
fn values() {
    for case in cases(include_str!("../../testdata/crd/values.txt")) {
        let (name, schema, value) = (case[0], yaml(case[1]), yaml(case[2]));
        let schema = json!({"type": "object", "properties": {"spec": schema}});
        let custom = version(&schema, if name.contains("(newest)") { NEWEST } else { Release::V1_20 });
        let mut object = json!({"apiVersion": "h.example.com/v1", "kind": "CronTab", "metadata": {"name": "x"}, "spec": value});
        custom.normalize(&mut object);
        let faults: Vec<String> = custom.validate(&object).iter().map(ToString::to_string).collect();
        if case[3] == "ok" {
            assert_eq!(faults, Vec::<String>::new(), "{name}");
            assert_eq!(object["spec"], yaml(case.get(4).unwrap_or(&case[2])), "{name}");
        } else {
            assert_eq!(faults, case[3..], "{name}");
        }
    }
}

#[test]
fn updates() {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let custom = version(&schema, NEWEST);
    let object = |spec: i64, status: i64| {
        json!({"apiVersion": "h.example.com/v1", "kind": "CronTab", "metadata": {"name": "x", "generation": 3},
            "spec": {"replicas": spec}, "status": {"replicas": status, "selector": "a=b"}})
    };
    let mut new = object(2, 9);
    custom.prepare_update(&mut new, &object(1, 1));
    assert_eq!((&new["status"]["replicas"], &new["metadata"]["generation"]), (&json!(1), &json!(4)));
    let mut new = object(2, 9);
    custom.prepare_status_update(&mut new, &object(1, 1));
    assert_eq!((&new["spec"]["replicas"], &new["status"]["replicas"]), (&json!(1), &json!(9)));
    assert_eq!(new["metadata"]["generation"], 3);
    let mut new = object(1, 1);
    custom.prepare_create(&mut new);
    assert!(new.get("status").is_none());
    let scale = custom.to_scale(&object(4, 2)).unwrap();
    assert_eq!(scale["spec"], json!({"replicas": 4}));
    assert_eq!(scale["status"], json!({"replicas": 2, "selector": "a=b"}));
    let mut changed = object(4, 2);
    custom.apply_scale(&mut changed, &json!({"spec": {"replicas": 6}})).unwrap();
    assert_eq!(changed["spec"]["replicas"], 6);
}

#[test]
fn tables() {
    let custom = version(&json!({"type": "object"}), NEWEST);
    let names: Vec<String> =
        custom.printer.definitions().iter().map(|d| d["name"].as_str().unwrap().to_string()).collect();
    assert_eq!(names, ["Name", "Spec", "Replicas", "Ready", "Age"]);
    let object = json!({
        "metadata": {"name": "x", "creationTimestamp": "1970-01-01T00:00:00Z"},
        "spec": {"cronSpec": "* * *"},
        "status": {"conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]},
    });
    assert_eq!(
        custom.printer.row(&object, 300),
        [json!("x"), json!("* * *"), Value::Null, json!("True"), json!("5m")]
    );
}

#[test]
fn json_paths() {
    let value = json!({"a": {"b.c": [1, 2, {"d": 3}]}, "l": [{"n": 1, "v": "x"}, {"n": 2, "v": "y"}]});
    let find = |path: &str| -> Vec<Value> {
        JsonPath::parse(path).unwrap().find(&value).into_iter().cloned().collect()
    };
    assert_eq!(find(".a.b\\.c[0]"), [json!(1)]);
    assert_eq!(find(".a['b.c'][-1].d"), [json!(3)]);
    assert_eq!(find(".l[*].v"), [json!("x"), json!("y")]);
    assert_eq!(find(".l[?(@.n>1)].v"), [json!("y")]);
    assert_eq!(find(".l[?(@.v=='x')].n"), [json!(1)]);
    assert!(find(".nothing.here").is_empty());
    for bad in [".a[", ".a[?(@.b", "a b", ".a..b["] {
        assert!(JsonPath::parse(bad).is_none(), "{bad}");
    }
}

#[test]
fn names_are_given_once() {
    let first = established(&json!({"type": "object"}));
    let mut second = crd(&json!({"type": "object"}));
    second["metadata"]["name"] = json!("others.h.example.com");
    second["spec"]["names"] = json!({"plural": "others", "singular": "other", "kind": "CronTab", "listKind": "OtherList", "shortNames": ["crontab"]});
    let done = naming::accept_names(&second, std::slice::from_ref(&first), NOW).unwrap();
    assert_eq!(
        done["status"]["acceptedNames"],
        json!({"plural": "others", "singular": "other", "listKind": "OtherList"})
    );
    let condition = &done["status"]["conditions"][0];
    assert_eq!(
        (&condition["reason"], &condition["message"]),
        (&json!("KindConflict"), &json!("\"CronTab\" is already in use"))
    );
    assert_eq!(done["status"]["conditions"][1]["reason"], "NotAccepted");
    assert!(naming::establish(&done, NOW).is_none());
    assert!(resources(&done, NEWEST).is_empty());
    assert!(naming::accept_names(&first, &[], NOW).is_none());
    assert!(naming::establish(&first, NOW).is_none());
}

#[test]
fn string_formats() {
    for (format, good, bad) in [
        ("date-time", "2021-02-14T15:04:05Z", "yesterday"),
        ("date", "2021-02-14", "2021-2-14"),
        ("ipv4", "10.0.0.1", "10.0.0"),
        ("ipv6", "::1", "10.0.0.1"),
        ("cidr", "10.0.0.0/8", "10.0.0.0"),
        ("mac", "01:23:45:67:89:ab", "01:23"),
        ("uuid", "a8098c1a-f86e-11da-bd1a-00112444be1e", "a8098c1a"),
        ("email", "a@example.com", "a"),
        ("hostname", "a.example.com", "-a"),
        ("uri", "https://example.com/x", "no scheme"),
        ("byte", "aGk=", "a!"),
        ("duration", "1h30m", "soon"),
        ("hexcolor", "#ffcc00", "#ff"),
        ("rgbcolor", "rgb(1,2,3)", "rgb(1,2)"),
        ("isbn13", "978-3-16-148410-0", "978"),
        ("isbn10", "0-306-40615-2", "0306406153"),
        ("creditcard", "4111 1111 1111 1111", "4111"),
        ("ssn", "111-22-3333", "1"),
        ("bsonobjectid", "507f1f77bcf86cd799439011", "x"),
    ] {
        assert!(formats::is_valid(format, good), "{format} {good}");
        assert!(!formats::is_valid(format, bad), "{format} {bad}");
    }
}
