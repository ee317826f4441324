//! Swagger 2.0: `/openapi/v2`.

use pilothouse_apimachinery::json::{Map, Value, json};
use pilothouse_apimachinery::version::Release;

use super::Resource;
use super::definitions::{self, Flavor};
use super::operations::{self, Operation, PRODUCES, Parameter, Place};

/// The whole document.
pub(super) fn document(release: Release, git_version: &str, resources: &[Resource]) -> Value {
    let all: Vec<&Resource> = resources.iter().collect();
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
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": git_version},
        "paths": paths,
        "definitions": definitions::collect(release, Flavor::V2, &all),
        "securityDefinitions": {"BearerToken": {
            "description": "Bearer Token authentication", "type": "apiKey", "name": "authorization", "in": "header",
        }},
        "security": [{"BearerToken": []}],
    })
}

fn parameter(p: &Parameter) -> Value {
    let mut out = json!({"uniqueItems": true, "type": p.type_, "name": p.name, "in": match p.place {
        Place::Query => "query",
        Place::Path => "path",
    }});
    if p.place == Place::Path {
        out["required"] = Value::Bool(true);
    }
    out
}

fn write(operation: &Operation) -> Value {
    let mut parameters: Vec<Value> = Vec::new();
    if let Some((body, required)) = &operation.body {
        let mut out = json!({"name": "body", "in": "body", "schema": Flavor::V2.reference(body)});
        if *required {
            out["required"] = Value::Bool(true);
        }
        parameters.push(out);
    }
    parameters.extend(operation.parameters.iter().map(parameter));
    let mut responses = Map::new();
    for (code, definition) in &operation.responses {
        let description = match code {
            201 => "Created",
            202 => "Accepted",
            _ => "OK",
        };
        let schema =
            if definition.is_empty() { json!({"type": "string"}) } else { Flavor::V2.reference(definition) };
        responses.insert(code.to_string(), json!({"description": description, "schema": schema}));
    }
    responses.insert("401", json!({"description": "Unauthorized"}));
    let mut out = json!({
        "tags": [operation.tag],
        "operationId": operation.id,
        "consumes": operation.consumes,
        "produces": PRODUCES,
        "schemes": ["https"],
        "responses": responses,
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": operation.gvk,
    });
    if !parameters.is_empty() {
        out["parameters"] = Value::Array(parameters.into());
    }
    out
}
