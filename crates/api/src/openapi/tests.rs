use std::collections::{BTreeMap, BTreeSet};

use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::version::{NEWEST, Release};

use super::{Documents, etag, protobuf};
use crate::crd::naming;
use crate::scheme::Scheme;

const NOW: &str = "2021-02-01T12:00:00Z";

fn scheme(release: Release) -> Scheme {
    let crd = json!({
        "metadata": {"name": "crontabs.h.example.com"},
        "spec": {
            "group": "h.example.com",
            "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "listKind": "CronTabList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
                    "replicas": {"type": "integer", "minimum": 1, "maximum": 10, "default": 2},
                    "port": {"x-kubernetes-int-or-string": true},
                }}}}}}],
        },
    });
    let crd = naming::accept_names(&crd, &[], NOW).unwrap();
    let crd = naming::establish(&crd, NOW).unwrap();
    Scheme::new(release).with_crd(&crd)
}

fn documents(release: Release) -> Documents {
    Documents::of(&scheme(release), "v1.20.2")
}

/// All references in a document.
fn references(value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_str() {
                    Some(target) if key == "$ref" => {
                        out.insert(target.to_string());
                    }
                    _ => references(value, out),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, out)),
        _ => {}
    }
}

#[test]
fn swagger() {
    for release in [Release::V1_20, NEWEST] {
        let document: Value = serde_json::from_slice(&documents(release).v2_json()).unwrap();
        let definitions = document["definitions"].as_object().unwrap();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for target in found {
            let name = target.strip_prefix("#/definitions/").unwrap();
            assert!(definitions.contains_key(name), "{name}");
        }
        let pod = &definitions["io.k8s.api.core.v1.Pod"];
        assert_eq!(
            pod["x-kubernetes-group-version-kind"],
            json!([{"group": "", "kind": "Pod", "version": "v1"}])
        );
        let spec = &definitions["io.k8s.api.core.v1.PodSpec"];
        assert_eq!(spec["required"], json!(["containers"]));
        assert_eq!(spec["properties"]["containers"]["x-kubernetes-patch-merge-key"], "name",);
        assert_eq!(spec["properties"]["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
        let ports = &definitions["io.k8s.api.core.v1.Container"]["properties"]["ports"];
        assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
        let int_or_string = &definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
        assert_eq!(int_or_string["format"], "int-or-string");

        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["operationId"], "patchCoreV1NamespacedPod");
        assert_eq!(patch["x-kubernetes-action"], "patch");
        let parameters = patch["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|p| p["name"] == "dryRun"));
        assert_eq!(parameters.iter().any(|p| p["name"] == "fieldValidation"), release == NEWEST);
        let list = &document["paths"]["/apis/apps/v1/deployments"]["get"];
        assert_eq!(list["operationId"], "listAppsV1DeploymentForAllNamespaces");

        let custom = &definitions["com.example.h.v1.CronTab"];
        let told = custom["properties"]["apiVersion"]["description"].as_str().unwrap();
        assert!(told.starts_with("APIVersion defines the versioned schema"));
        let spec = &custom["properties"]["spec"]["properties"];
        assert_eq!(spec["replicas"]["maximum"], 10);
        assert!(spec["replicas"].get("default").is_none() && spec["port"].get("type").is_none());
        let status = "/apis/h.example.com/v1/namespaces/{namespace}/crontabs/{name}/status";
        assert!(document["paths"][status]["patch"].is_object());
        let mut ids = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                if let Some(id) = operation["operationId"].as_str() {
                    assert!(ids.insert(id.to_string()), "{method} {path}: {id} twice");
                }
            }
        }
    }
}

#[test]
fn v3() {
    let documents = documents(NEWEST);
    let index: Value = serde_json::from_slice(&documents.v3_index()).unwrap();
    for (path, entry) in index["paths"].as_object().unwrap() {
        let bytes = documents.v3_document(path).unwrap();
        let url = entry["serverRelativeURL"].as_str().unwrap();
        assert_eq!(url, format!("/openapi/v3/{path}?hash={}", etag(&bytes)));
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for target in found {
            let name = target.strip_prefix("#/components/schemas/").unwrap();
            assert!(document["components"]["schemas"].get(name).is_some(), "{path}: {name}");
        }
    }
    let custom: Value =
        serde_json::from_slice(&documents.v3_document("apis/h.example.com/v1").unwrap()).unwrap();
    let spec =
        &custom["components"]["schemas"]["com.example.h.v1.CronTab"]["properties"]["spec"]["properties"];
    assert_eq!(spec["replicas"]["default"], 2);
    assert!(documents.v3_document("apis/nope/v1").is_none());
}

/// A protobuf message, taken apart: payloads by field number.
fn fields(bytes: &[u8]) -> BTreeMap<u64, Vec<Vec<u8>>> {
    let mut out: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    let mut at = 0;
    let varint = |at: &mut usize| {
        let (mut n, mut shift) = (0u64, 0);
        loop {
            let byte = bytes[*at];
            *at += 1;
            n |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return n;
            }
        }
    };
    while at < bytes.len() {
        let tag = varint(&mut at);
        let payload = match tag & 7 {
            0 => varint(&mut at).to_le_bytes().to_vec(),
            1 => {
                at += 8;
                bytes[at - 8..at].to_vec()
            }
            2 => {
                let length = usize::try_from(varint(&mut at)).unwrap();
                at += length;
                bytes[at - length..at].to_vec()
            }
            other => panic!("wire type {other}"),
        };
        out.entry(tag >> 3).or_default().push(payload);
    }
    out
}

/// An entry of a named list, by its name.
fn named(message: &[u8], number: u64, name: &str) -> Vec<u8> {
    let entries = fields(message);
    let found = entries[&number].iter().map(|e| fields(e)).find(|e| e[&1][0] == name.as_bytes());
    found.unwrap_or_else(|| panic!("{name}"))[&2][0].clone()
}

#[test]
fn protobuf_by_field_numbers() {
    let document = documents(Release::V1_20);
    let json: Value = serde_json::from_slice(&document.v2_json()).unwrap();
    let top = fields(&document.v2_protobuf());
    assert_eq!(top[&1][0], b"2.0");
    assert_eq!(fields(&top[&2][0])[&2][0], b"v1.20.2");
    let definitions = &top[&9][0];
    assert_eq!(fields(definitions)[&1].len(), json["definitions"].as_object().unwrap().len());
    let spec = named(definitions, 1, "io.k8s.api.core.v1.PodSpec");
    assert_eq!(fields(&spec)[&19], [b"containers".to_vec()]);
    let containers = named(&fields(&spec)[&25][0], 1, "containers");
    let parts = fields(&containers);
    assert_eq!(fields(&parts[&22][0])[&1][0], b"array");
    let items = fields(&fields(&parts[&23][0])[&1][0]);
    assert_eq!(items[&1][0], b"#/definitions/io.k8s.api.core.v1.Container");
    let key = named(&containers, 31, "x-kubernetes-patch-merge-key");
    assert_eq!(fields(&key)[&2][0], b"\"name\"\n");
    let paths = &top[&8][0];
    assert_eq!(fields(paths)[&2].len(), json["paths"].as_object().unwrap().len());
    let pods = named(paths, 2, "/api/v1/namespaces/{namespace}/pods/{name}");
    let patch = fields(&fields(&pods)[&8][0]);
    assert_eq!(patch[&5][0], b"patchCoreV1NamespacedPod");
    let body = fields(&fields(&fields(&patch[&8][0])[&1][0])[&1][0]);
    assert_eq!((body[&2][0].as_slice(), body[&3][0].as_slice()), (b"body".as_slice(), b"body".as_slice()));
}

#[test]
fn protobuf_of_schemas() {
    let document = json!({"swagger": "2.0", "definitions": {"a": {
        "type": "object", "format": "f", "minimum": 1.5, "maxLength": 3, "enum": ["x"], "default": {"y": 1},
        "additionalProperties": {"type": "string"},
    }}});
    let bytes = protobuf::encode(&document);
    let schema = fields(&named(&fields(&bytes)[&9][0], 1, "a"));
    assert_eq!(schema[&2][0], b"f");
    assert_eq!(schema[&9][0], 1.5f64.to_le_bytes());
    assert_eq!(schema[&11][0], 3u64.to_le_bytes());
    assert_eq!(fields(&schema[&20][0])[&2][0], b"\"x\"\n");
    assert_eq!(fields(&schema[&5][0])[&2][0], b"{\"y\":1}\n");
    assert_eq!(fields(&fields(&fields(&schema[&21][0])[&1][0])[&22][0])[&1][0], b"string");
}
