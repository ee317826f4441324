use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::version::Release;

use crate::scheme::Scheme;

/// Makes a definition as the server does: the object in the request's version, or its faults.
fn create(version: &str, body: &Value) -> Result<Value, Vec<(String, String)>> {
    let scheme = Scheme::new(Release::V1_20);
    let resource = scheme.resource("apiextensions.k8s.io", version, "customresourcedefinitions").unwrap();
    let context = resource.context("", false);
    let mut object = resource.decode_value(body.clone(), None).unwrap().object;
    resource.to_hub(&mut object, &context);
    resource.prepare_create(&mut object, &context);
    let mut faults: Vec<(String, String)> =
        resource.validate(&object, &context).into_iter().map(|e| (e.field, e.body)).collect();
    faults.sort();
    if faults.is_empty() {
        resource.from_hub(&mut object);
        Ok(object)
    } else {
        Err(faults)
    }
}

/// What Kubernetes v1.20.2 answered to creations.
#[test]
fn recorded() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../../testdata/crd/definitions.json")).unwrap();
    for case in &cases {
        let (name, expect) = (&case["name"], &case["expect"]);
        match create(case["version"].as_str().unwrap(), &case["body"]) {
            Ok(object) => {
                assert_eq!(object["spec"], expect["spec"], "{name}");
                assert_eq!(object["status"], expect["status"], "{name}");
            }
            Err(faults) => {
                let faults: Vec<Value> = faults.into_iter().map(|(f, b)| json!([f, b])).collect();
                assert_eq!(Value::from(faults), expect["causes"], "{name}");
            }
        }
    }
}

fn definition(schema: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.h.example.com"},
        "spec": {
            "group": "h.example.com", "scope": "Namespaced", "names": {"plural": "crontabs", "kind": "CronTab"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

/// Cases of a schema and its faults (without the path of the schema itself), or `ok`.
#[test]
fn schemas() {
    let text = include_str!("../../../testdata/crd/schemas.txt");
    for block in text.split("\n# ").skip(1) {
        let lines: Vec<&str> = block.lines().filter(|l| !l.is_empty()).collect();
        let schema = crate::decode::yaml(lines[1].as_bytes()).unwrap();
        let faults: Vec<String> = match create("v1", &definition(schema)) {
            Ok(_) => vec!["ok".into()],
            Err(faults) => faults
                .into_iter()
                .map(|(f, b)| format!("{}: {b}", f.replacen("spec.validation.openAPIV3Schema", "", 1)))
                .collect(),
        };
        assert_eq!(faults, lines[2..], "{}", lines[0]);
    }
}

#[test]
fn versions_convert_there_and_back() {
    let version = |name: &str, storage: bool, schema: Value, columns: Value| json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema}, "additionalPrinterColumns": columns});
    let columns = json!([{"name": "A", "type": "string", "jsonPath": ".a"}]);
    let mut crd = definition(json!({}));
    crd["spec"]["versions"] = json!([
        version("v2", true, json!({"type": "object"}), columns.clone()),
        version("v1", false, json!({"type": "object", "description": "old"}), columns),
    ]);
    crd["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {
        "clientConfig": {"service": {"namespace": "n", "name": "s", "port": 443}},
        "conversionReviewVersions": ["v1"],
    }});
    let mut old = crd.clone();
    super::convert::to_v1beta1(&mut old);
    let spec = &old["spec"];
    assert_eq!((&spec["version"], &spec["preserveUnknownFields"]), (&json!("v2"), &json!(false)));
    assert_eq!(spec["additionalPrinterColumns"], json!([{"name": "A", "type": "string", "JSONPath": ".a"}]));
    assert!(spec.get("validation").is_none() && spec["versions"][1]["schema"].is_object());
    assert_eq!(spec["conversion"]["conversionReviewVersions"], json!(["v1"]));
    super::convert::from_v1beta1(&mut old);
    assert_eq!(old, crd);
}

#[test]
fn what_may_not_change() {
    let scheme = Scheme::new(Release::V1_20);
    let resource = scheme.resource("apiextensions.k8s.io", "v1", "customresourcedefinitions").unwrap();
    let context = resource.context("", false);
    let mut old = create("v1", &definition(json!({"type": "object"}))).unwrap();
    old["metadata"]["resourceVersion"] = json!("1");
    old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
    let mut new = old.clone();
    new["spec"]["scope"] = json!("Cluster");
    new["spec"]["names"]["kind"] = json!("Other");
    let fields: Vec<String> =
        resource.validate_update(&new, &old, &context).into_iter().map(|e| e.to_string()).collect();
    assert_eq!(
        fields,
        [
            "spec.scope: Invalid value: \"Cluster\": field is immutable",
            "spec.names.kind: Invalid value: \"Other\": field is immutable",
        ]
    );
}
