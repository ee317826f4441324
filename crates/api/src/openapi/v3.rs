//! OpenAPI 3.0: one document for each group and version.

use std::collections::BTreeMap;

use pilothouse_apimachinery::json::{Map, Value, json};
use pilothouse_apimachinery::version::Release;

use super::definitions::{self, Flavor};
use super::operations::{self, Operation, PRODUCES, Parameter, Place};
use super::{Resource, group_version_path};

/// The documents, by where they are: `api/v1`, `apis/apps/v1`.
pub(super) fn documents(
    release: Release,
    git_version: &str,
    resources: &[Resource],
) -> BTreeMap<String, Value> {
    let mut by_version: BTreeMap<String, Vec<&Resource>> = BTreeMap::new();
    for resource in resources {
        by_version.entry(group_version_path(&resource.group, &resource.version)).or_default().push(resource);
    }
    by_version
        .into_iter()
        .map(|(path, resources)| {
            let document = document(release, git_version, &resources);
            (path, document)
        })
        .collect()
}

fn document(release: Release, git_version: &str, resources: &[&Resource]) -> Value {
    let mut paths = Map::new();
    for resource in resources {
        for item in operations::of(release, resource) {
            let mut out = Map::new();
            for operation in &item.operations {
                out.insert(operation.method, write(operation));
            }
            out.insert("parameters", item.parameters.iter().map(parameter).collect::<Value>());
            paths.insert(item.path, Value::Object(out));
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": git_version},
        "paths": paths,
        "components": {
            "schemas": definitions::collect(release, Flavor::V3, resources),
            "securitySchemes": {"BearerToken": {
                "description": "Bearer Token authentication", "type": "apiKey", "name": "authorization", "in": "header",
            }},
        },
    })
}

fn parameter(p: &Parameter) -> Value {
    let mut out = json!({"name": p.name, "schema": {"type": p.type_, "uniqueItems": true}, "in": match p.place {
        Place::Query => "query",
        Place::Path => "path",
    }});
    if p.place == Place::Path {
        out["required"] = Value::Bool(true);
    }
    out
}

fn content(definition: &str, media_types: &[&str]) -> Value {
    let schema =
        if definition.is_empty() { json!({"type": "string"}) } else { Flavor::V3.reference(definition) };
    media_types.iter().map(|m| ((*m).to_string(), json!({"schema": schema}))).collect::<Map>().into()
}

fn write(operation: &Operation) -> Value {
    let mut responses = Map::new();
    for (code, definition) in &operation.responses {
        let description = match code {
            201 => "Created",
            202 => "Accepted",
            _ => "OK",
        };
        let answer = json!({"description": description, "content": content(definition, PRODUCES)});
        responses.insert(code.to_string(), answer);
    }
    responses.insert("401", json!({"description": "Unauthorized"}));
    let mut out = json!({
        "tags": [operation.tag],
        "operationId": operation.id,
        "responses": responses,
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": operation.gvk,
    });
    if !operation.parameters.is_empty() {
        out["parameters"] = operation.parameters.iter().map(parameter).collect();
    }
    if let Some((body, required)) = &operation.body {
        let mut request = json!({"content": content(body, &operation.consumes)});
        if *required {
            request["required"] = Value::Bool(true);
        }
        out["requestBody"] = request;
    }
    out
}
