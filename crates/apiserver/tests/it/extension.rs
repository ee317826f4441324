//! Extension by who uses the server: conversion webhooks, rules in CEL, admission policies. Over real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use pilothouse_apimachinery::json::{Value, json};

use crate::common::webhook::webhook;
use crate::common::{LIMIT, define, start_newest};

/// Between v1 (`hostPort`) and v2 (`host` and `port`).
fn convert(mut object: Value, to: &str) -> Value {
    if to.ends_with("/v2") {
        if let Some(both) = object.as_object_mut().unwrap().remove("hostPort") {
            let (host, port) = both.as_str().unwrap().split_once(':').unwrap();
            object["host"] = json!(host);
            object["port"] = json!(port);
        }
    } else if object.get("host").is_some() {
        let text = |name: &str| object[name].as_str().unwrap_or("").to_string();
        object["hostPort"] = json!(format!("{}:{}", text("host"), text("port")));
        let map = object.as_object_mut().unwrap();
        map.remove("host");
        map.remove("port");
    }
    object["apiVersion"] = json!(to);
    object
}

fn definition(url: &str, bundle: &str, stored: &str) -> Value {
    let version = |name: &str, fields: Value| {
        json!({"name": name, "served": true, "storage": name == stored,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": fields}}})
    };
    let text = json!({"type": "string"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "crons.e.com"},
        "spec": {"group": "e.com", "scope": "Namespaced", "names": {"plural": "crons", "kind": "Cron"},
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": url, "caBundle": bundle}}},
            "versions": [version("v1", json!({"hostPort": text})), version("v2", json!({"host": text, "port": text}))]},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_whatever_is_read_and_written() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let (url, bundle) = webhook(Arc::new(move |review: Value| {
        counted.fetch_add(1, Ordering::Relaxed);
        let to = review["request"]["desiredAPIVersion"].as_str().unwrap();
        let objects: Vec<Value> =
            review["request"]["objects"].as_array().unwrap().iter().map(|o| convert(o.clone(), to)).collect();
        let refused = objects.iter().any(|o| o["metadata"]["name"] == "bad");
        let result = if refused {
            json!({"status": "Failed", "message": "I refuse"})
        } else {
            json!({"status": "Success"})
        };
        json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview",
            "response": {"uid": review["request"]["uid"], "result": result, "convertedObjects": objects}})
    }))
    .await;
    let world = start_newest(&[]).await;
    let api = world.api();
    define(&api, definition(&url, &bundle, "v1")).await;
    let (v1, v2) = ("/apis/e.com/v1/namespaces/default/crons", "/apis/e.com/v2/namespaces/default/crons");
    let cron = |version: &str, name: &str| json!({"apiVersion": format!("e.com/{version}"), "kind": "Cron", "metadata": {"name": name}});

    let mut one = cron("v1", "one");
    one["hostPort"] = json!("h:1");
    assert_eq!(api.post(v1, one).await.0, StatusCode::CREATED);
    assert_eq!(calls.load(Ordering::Relaxed), 0, "what is stored as it came needs no conversion");
    let mut two = cron("v2", "two");
    two["host"] = json!("g");
    two["port"] = json!("2");
    let (code, made) = api.post(v2, two).await;
    assert_eq!(
        (code, &made["host"], &made["port"]),
        (StatusCode::CREATED, &json!("g"), &json!("2")),
        "{made}"
    );

    let (_, read) = api.get(&format!("{v2}/one")).await;
    assert_eq!(
        (&read["host"], &read["apiVersion"], read.get("hostPort")),
        (&json!("h"), &json!("e.com/v2"), None)
    );
    let before = calls.load(Ordering::Relaxed);
    api.get(&format!("{v2}/one")).await;
    assert_eq!(calls.load(Ordering::Relaxed), before, "a conversion is kept");
    assert_eq!(api.get(&format!("{v1}/two")).await.1["hostPort"], "g:2");
    let (_, list) = api.get(v2).await;
    let hosts: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|i| i["host"].as_str().unwrap()).collect();
    assert_eq!(hosts, ["h", "g"]);

    // Changes by way of the version that is not stored.
    let merge = "application/merge-patch+json";
    let (code, patched) = api
        .json(Method::PATCH, &format!("{v2}/one"), &[("content-type", merge)], &json!({"port": "9"}))
        .await;
    assert_eq!(
        (code, &patched["port"], &patched["host"]),
        (StatusCode::OK, &json!("9"), &json!("h")),
        "{patched}"
    );
    assert_eq!(api.get(&format!("{v1}/one")).await.1["hostPort"], "h:9");
    let mut config = cron("v2", "three");
    config["host"] = json!("x");
    config["port"] = json!("3");
    let apply = "application/apply-patch+yaml";
    let path = format!("{v2}/three?fieldManager=m");
    assert_eq!(
        api.json(Method::PATCH, &path, &[("content-type", apply)], &config).await.0,
        StatusCode::CREATED
    );
    config["port"] = json!("4");
    let (code, applied) = api.json(Method::PATCH, &path, &[("content-type", apply)], &config).await;
    assert_eq!((code, &applied["port"]), (StatusCode::OK, &json!("4")), "{applied}");
    assert_eq!(api.get(&format!("{v1}/three")).await.1["hostPort"], "x:4");

    // A watch shows its own version.
    let path = format!("{v2}?watch=true&timeoutSeconds=20&resourceVersion=0");
    let mut events = api.send(Method::GET, &path, &[], Bytes::new()).await.into_body();
    let mut seen = String::new();
    while seen.matches("\"type\":\"ADDED\"").count() < 3 {
        let frame = tokio::time::timeout(LIMIT, events.frame()).await.unwrap().unwrap().unwrap();
        seen.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    assert!(seen.contains("\"host\":\"x\"") && !seen.contains("hostPort"), "{seen}");
    drop(events);

    // Another storage version: old objects are read on, new ones are stored in it.
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/crons.e.com";
    let (_, mut crd) = api.get(crds).await;
    crd["spec"]["versions"][0]["storage"] = json!(false);
    crd["spec"]["versions"][1]["storage"] = json!(true);
    let (code, crd) = api.json(Method::PUT, crds, &[("content-type", "application/json")], &crd).await;
    assert_eq!((code, &crd["status"]["storedVersions"]), (StatusCode::OK, &json!(["v1", "v2"])));
    let mut four = cron("v2", "four");
    four["host"] = json!("f");
    assert_eq!(api.post(v2, four).await.0, StatusCode::CREATED);
    let all = api.until(v1, |_, list| list["items"].as_array().is_some_and(|i| i.len() == 4)).await;
    let both: Vec<&str> =
        all["items"].as_array().unwrap().iter().map(|i| i["hostPort"].as_str().unwrap()).collect();
    assert_eq!(both, ["f:", "h:9", "x:4", "g:2"]);

    // A webhook that fails.
    let mut bad = cron("v1", "bad");
    bad["hostPort"] = json!("b:1");
    let (code, status) = api.post(v1, bad).await;
    assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(status["message"], "conversion webhook for e.com/v1, Kind=Cron failed: I refuse");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_policies_refuse() {
    let world = start_newest(&[]).await;
    let api = world.api();
    define(&api, json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "apps.e.com"},
            "spec": {"group": "e.com", "scope": "Namespaced", "names": {"plural": "apps", "kind": "App"}, "versions": [{"name": "v1", "served": true, "storage": true,
                "selectableFields": [{"jsonPath": ".spec.color"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
                    "x-kubernetes-validations": [{"rule": "self.min <= self.max", "message": "min must not exceed max"},
                        {"rule": "self.max >= oldSelf.max", "messageExpression": "'max shrinks to %d'.format([self.max])"}],
                    "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}, "color": {"type": "string"}}}}}}}]},
        }))
        .await;
    let apps = "/apis/e.com/v1/namespaces/default/apps";
    let app = |name: &str, min: i64, max: i64| json!({"apiVersion": "e.com/v1", "kind": "App", "metadata": {"name": name}, "spec": {"min": min, "max": max, "color": name}});
    let (code, status) = api.post(apps, app("a", 3, 2)).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(status["message"], "App.e.com \"a\" is invalid: spec: Invalid value: min must not exceed max");
    assert_eq!(api.post(apps, app("a", 1, 2)).await.0, StatusCode::CREATED);
    assert_eq!(api.post(apps, app("b", 1, 2)).await.0, StatusCode::CREATED);
    let merge = "application/merge-patch+json";
    let (_, status) = api
        .json(Method::PATCH, &format!("{apps}/a"), &[("content-type", merge)], &json!({"spec": {"max": 1}}))
        .await;
    assert_eq!(status["message"], "App.e.com \"a\" is invalid: spec: Invalid value: max shrinks to 1");
    let (_, chosen) = api.get(&format!("{apps}?fieldSelector=spec.color%3Db")).await;
    assert_eq!(chosen["items"].as_array().unwrap().len(), 1, "{chosen}");

    let registration = "/apis/admissionregistration.k8s.io/v1";
    let rules = json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]});
    let (code, made) = api.post(&format!("{registration}/validatingadmissionpolicies"), json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "small"},
            "spec": {"matchConstraints": rules, "variables": [{"name": "n", "expression": "size(object.?data.orValue({}))"}],
                "validations": [{"expression": "variables.n < 2", "messageExpression": "'too many: ' + string(variables.n)"}]}}))
        .await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    let (code, made) = api.post(&format!("{registration}/mutatingadmissionpolicies"), json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": {"name": "mark"},
            "spec": {"matchConstraints": rules, "reinvocationPolicy": "Never", "mutations": [{"patchType": "ApplyConfiguration",
                "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {'seen': request.userInfo.username}}}"}}]}}))
        .await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    for (kind, policy) in [("Validating", "small"), ("Mutating", "mark")] {
        let mut binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}AdmissionPolicyBinding"),
            "metadata": {"name": "b"}, "spec": {"policyName": policy}});
        if kind == "Validating" {
            binding["spec"]["validationActions"] = json!(["Deny"]);
        }
        let path = format!("{registration}/{}admissionpolicybindings", kind.to_lowercase());
        let (code, made) = api.post(&path, binding).await;
        assert_eq!(code, StatusCode::CREATED, "{made}");
    }
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "m-"}, "data": data});
    let (code, made) = api.post(maps, map(json!({"a": "1"}))).await;
    assert_eq!((code, &made["metadata"]["labels"]["seen"]), (StatusCode::CREATED, &json!("admin")), "{made}");
    let (code, status) = api.post(maps, map(json!({"a": "1", "b": "2"}))).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{status}");
    let message = status["message"].as_str().unwrap();
    assert!(
        message.ends_with("ValidatingAdmissionPolicy 'small' with binding 'b' denied request: too many: 2"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_webhooks_see_what_they_want_to_see() {
    let (url, bundle) = webhook(Arc::new(|review: Value| {
        let objects = review["request"]["objects"].as_array();
        if let Some(objects) = objects {
            let to = review["request"]["desiredAPIVersion"].as_str().unwrap();
            let objects: Vec<Value> = objects.iter().map(|o| convert(o.clone(), to)).collect();
            return json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview",
                "response": {"uid": review["request"]["uid"], "result": {"status": "Success"}, "convertedObjects": objects}});
        }
        // Notes in which version it saw the object, by the field that only that version has.
        let saw = if review["request"]["object"].get("hostPort").is_some() { "v1" } else { "v2" };
        let patch = json!([{"op": "add", "path": "/metadata/labels", "value": {"saw": saw}}]);
        json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": {"uid": review["request"]["uid"],
            "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())}})
    }))
    .await;
    let world = start_newest(&[]).await;
    let api = world.api();
    define(&api, definition(&url, &bundle, "v1")).await;
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": "m"},
        "webhooks": [{"name": "m.hook.e.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "clientConfig": {"url": url, "caBundle": bundle},
            "matchConditions": [{"name": "named", "expression": "object.metadata.name != 'left-alone'"}],
            "rules": [{"operations": ["CREATE"], "apiGroups": ["e.com"], "apiVersions": ["v1"], "resources": ["crons"]}]}]});
    let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let mut wrong = configuration.clone();
    wrong["webhooks"][0]["matchConditions"][0]["expression"] = json!("object.metadata.name ==");
    let (code, status) = api.post(path, wrong).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    let message = status["message"].as_str().unwrap();
    assert!(message.contains("webhooks[0].matchConditions[0].expression: Invalid value"), "{message}");
    let (code, made) = api.post(path, configuration).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");

    // The rule is about v1: a request for v2 is converted for it, and what it changed is converted back.
    let crons = "/apis/e.com/v2/namespaces/default/crons";
    let cron = |name: &str| json!({"apiVersion": "e.com/v2", "kind": "Cron", "metadata": {"name": name}, "host": "h", "port": "1"});
    let (code, made) = api.post(crons, cron("one")).await;
    assert_eq!(
        (code, &made["metadata"]["labels"], &made["host"]),
        (StatusCode::CREATED, &json!({"saw": "v1"}), &json!("h")),
        "{made}"
    );
    let (code, made) = api.post(crons, cron("left-alone")).await;
    assert_eq!((code, made["metadata"].get("labels")), (StatusCode::CREATED, None), "{made}");
}
