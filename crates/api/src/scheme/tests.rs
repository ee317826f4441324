//! Resources and what they do, on kinds made for the purpose.

use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::version::Release;

use super::*;
use crate::decode::request::Media;
use crate::kinds::{Kind, Version};

static WIDGET: Kind = Kind {
    has_generation: true,
    storage_version: "apps/v1",
    prepare_update: |new, old, context| {
        let field = if context.subresource == "status" { "spec" } else { "status" };
        pilothouse_apimachinery::json::copy(new, old, &[field]);
    },
    ..Kind::new(
        "Deployment",
        "deployments",
        "deployment",
        &[
            Version::always("apps", "v1"),
            Version { in_1_20: false, in_newest: false, ..Version::always("extensions", "v1beta1") },
        ],
    )
};

fn scheme() -> Scheme {
    let resources = Resource::built_in(&WIDGET, Release::V1_20).into_iter().map(Arc::new).collect();
    Scheme { release: Release::V1_20, resources: Resources::new(resources) }
}

#[test]
fn finds_resources() {
    let scheme = scheme();
    assert!(scheme.resource("apps", "v1", "deployments").is_some());
    assert!(scheme.resource("apps", "v2", "deployments").is_none());
    assert!(scheme.resource("extensions", "v1beta1", "deployments").is_none());
    let deployments =
        scheme.hub("extensions", "deployments").or_else(|| scheme.hub("apps", "deployments")).unwrap();
    assert_eq!(&*deployments.api_version, "apps/v1");
    assert_eq!(deployments.key("ns", "a"), "deployments/ns/a");
    assert_eq!(deployments.key_prefix(""), "deployments/");
    assert_eq!(scheme.hubs().count(), 1);
    assert!(scheme.by_kind("apps", "v1", "Deployment").is_some());
}

#[test]
fn there_and_back_through_the_store() {
    let r = scheme().resource("apps", "v1", "deployments").unwrap();
    let context = r.context("", false);
    let body = json!({"metadata": {"name": "a", "labels": {}}, "spec": {"template": {"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1}]}]}}}});
    let mut object = r.decode(body.to_string().as_bytes(), Media::Json).unwrap().object;
    r.to_hub(&mut object, &context);
    assert_eq!(object["metadata"]["labels"], json!({}));
    r.prepare_create(&mut object, &context);
    let stored = r.to_stored(object);
    assert_eq!(stored["metadata"], json!({"name": "a", "creationTimestamp": null, "generation": 1}));
    let back = r.decode_stored(stored.to_string().as_bytes()).unwrap();
    assert_eq!(back, stored);
    assert_eq!(back["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"], "TCP");
    assert_eq!(r.decode_stored(&r.to_protobuf(&stored).unwrap()).unwrap(), stored);
}

#[test]
fn generations() {
    let r = scheme().resource("apps", "v1", "deployments").unwrap();
    let old = json!({"metadata": {"generation": 3}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
    let update = |subresource: &'static str, new: Value| {
        let mut new = new;
        r.prepare_update(&mut new, &old, &r.context(subresource, false));
        new["metadata"]["generation"].as_i64().unwrap()
    };
    assert_eq!(update("", json!({"metadata": {}, "spec": {"replicas": 2}})), 4);
    assert_eq!(
        update(
            "",
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1}, "status": {"replicas": 9}})
        ),
        3
    );
    assert_eq!(
        update("status", json!({"metadata": {}, "spec": {"replicas": 2}, "status": {"replicas": 2}})),
        3
    );
}

#[test]
fn versions_in_bodies() {
    let r = scheme().resource("apps", "v1", "deployments").unwrap();
    let status =
        r.decode(br#"{"apiVersion":"extensions/v1beta1","kind":"Deployment"}"#, Media::Json).unwrap_err();
    assert_eq!(
        status.message,
        "the API version in the data (extensions/v1beta1) does not match the expected API version (apps/v1)"
    );
    let yaml = r.decode(b"kind: Deployment\nspec:\n  replicas: 2\n", Media::Yaml).unwrap().object;
    assert_eq!(yaml["spec"]["replicas"], 2);
}

#[test]
fn field_selectors() {
    let r = scheme().resource("apps", "v1", "deployments").unwrap();
    assert!(crate::fields::parse(&r, "metadata.name=a").is_ok());
    assert_eq!(
        crate::fields::parse(&r, "spec.x=a").unwrap_err().message,
        "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
    );
}

#[test]
fn tables() {
    use crate::kinds::RowContext;
    use crate::table::{IncludeObject, row, table};
    let r = scheme().resource("apps", "v1", "deployments").unwrap();
    let object =
        json!({"kind": "Deployment", "metadata": {"name": "a", "creationTimestamp": "2021-01-01T00:00:00Z"}});
    let context = RowContext { now: 0 };
    let one = row(&r, &object, &object, IncludeObject::Metadata, "v1", &context);
    assert_eq!(one["cells"], json!(["a", "2021-01-01T00:00:00Z"]));
    assert_eq!(one["object"]["kind"], "PartialObjectMetadata");
    let t = table(&r, json!({"resourceVersion": "1"}), vec![one], "v1", true);
    assert_eq!(t["columnDefinitions"][1]["name"], "Created At");
    assert_eq!(table(&r, json!({}), vec![], "v1beta1", true)["rows"], Value::Null);
}

#[test]
fn every_version_that_is_served_has_a_type() {
    for release in [Release::V1_20, pilothouse_apimachinery::version::NEWEST] {
        for kind in crate::kinds::all() {
            for v in kind.versions {
                let served = if release == Release::V1_20 { v.in_1_20 } else { v.in_newest };
                let known = crate::schema::Schema::of(release, v.group, v.version, kind.kind).is_some();
                assert!(known || !served, "{}/{} {} in {release:?}", v.group, v.version, kind.kind);
            }
        }
    }
}

#[test]
fn no_kind_fails_on_an_empty_object() {
    for release in [Release::V1_20, pilothouse_apimachinery::version::NEWEST] {
        let scheme = Scheme::new(release);
        for r in scheme.resources() {
            let context = r.context("", false);
            let mut object = r.decode(b"{}", Media::Json).unwrap().object;
            r.to_hub(&mut object, &context);
            let old = object.clone();
            let _ = r.validate(&object, &context);
            r.prepare_create(&mut object, &context);
            r.prepare_update(&mut object, &old, &context);
            let _ = r.validate_update(&object, &old, &context);
            let cells = r.cells(&object, &crate::kinds::RowContext { now: 0 });
            assert_eq!(cells.len(), r.column_definitions().len(), "{}", r.kind);
            let _ = r.selectable(&object);
            for subresource in r.as_kind().unwrap().subresources {
                let context = r.context(subresource.name, false);
                r.prepare_update(&mut object, &old, &context);
                let _ = r.validate_update(&object, &old, &context);
            }
            let stored = r.to_stored(object);
            let hub = r.decode_stored(stored.to_string().as_bytes()).unwrap();
            let mut shown = hub.clone();
            r.from_hub(&mut shown);
            assert_eq!(shown["apiVersion"], *r.api_version);
            // What has been read and stored once stays as it is.
            let once = r.to_stored(hub);
            let twice = r.to_stored(r.decode_stored(once.to_string().as_bytes()).unwrap());
            assert_eq!(once, twice, "{} {}", r.api_version, r.kind);
        }
    }
}

#[test]
fn objects_inside_of_custom_ones_have_proper_metadata() {
    let crd = json!({"metadata": {"name": "as.e.com"}, "spec": {"group": "e.com", "scope": "Namespaced", "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"inner": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}}}]},
        "status": {"acceptedNames": {"plural": "as", "kind": "A"}, "conditions": [{"type": "Established", "status": "True"}]}});
    let resource = Scheme::new(pilothouse_apimachinery::version::NEWEST)
        .with_crd(&crd)
        .resource("e.com", "v1", "as")
        .unwrap();
    let object = json!({"apiVersion": "e.com/v1", "kind": "A", "metadata": {"name": "a"}, "inner": {"metadata": {"name": "b", "odd": 1}, "odd": 1}});
    let decoded = resource.decode_value(object, None).unwrap();
    assert_eq!(decoded.object["inner"], json!({"metadata": {"name": "b"}, "odd": 1}));
    assert_eq!(decoded.faults, ["unknown field \"inner.metadata.odd\""]);
}
