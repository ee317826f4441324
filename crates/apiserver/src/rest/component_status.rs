//! `componentstatuses`: whether scheduler, controller manager and the store answer, asked now.

use std::sync::Arc;
use std::time::Duration;

use http::{StatusCode, header};
use pilothouse_api::kinds::{self, RowContext};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;

use super::body::{self, Gvk};
use crate::json::str_at;
use crate::negotiate::{self, Shape};
use crate::outbound::Target;
use crate::outbound::tls::{self, Trust};
use crate::request::{RequestBody, RequestContext, Response};
use crate::respond;
use crate::special::SpecialRest;
use crate::state::ServerState;

const KIND: Gvk = Gvk { group: "", version: "v1", kind: "ComponentStatus" };
const LIST: Gvk = Gvk { group: "", version: "v1", kind: "ComponentStatusList" };
/// How long a component may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

fn status(name: &str, healthy: bool, message: String) -> Value {
    let word = if healthy { "True" } else { "False" };
    json!({
        "metadata": {"name": name, "creationTimestamp": null},
        "conditions": [{"type": "Healthy", "status": word, "message": message}],
    })
}

/// Asks a component's health port on this machine.
async fn probe(name: &str, port: u16, secure: bool) -> Value {
    let tls = if secure { tls::client(Trust::Anything, None).ok() } else { None };
    let target = Target { host: "127.0.0.1".into(), port, addresses: vec![], tls };
    let url = format!("{}://127.0.0.1:{port}/healthz", target.scheme());
    match target.get("/healthz", LIMIT).await {
        Ok((code, body)) if code.is_success() => status(name, true, body),
        Ok((code, _)) => {
            let reason = code.canonical_reason().unwrap_or("");
            status(
                name,
                false,
                format!("HTTP probe failed with statuscode: {} {reason}", code.as_u16())
                    .trim_end()
                    .to_string(),
            )
        }
        Err(e) => status(name, false, format!("Get {url:?}: {e}")),
    }
}

async fn all(state: &ServerState) -> Vec<Value> {
    let secure = state.release > Release::V1_20;
    let (scheduler, manager) = if secure { (10259, 10257) } else { (10251, 10252) };
    let (scheduler, manager, store) = tokio::join!(
        probe("scheduler", scheduler, secure),
        probe("controller-manager", manager, secure),
        tokio::time::timeout(LIMIT, state.store.health()),
    );
    let mut out = vec![scheduler, manager];
    match store {
        Ok(endpoints) => out.extend(endpoints.into_iter().enumerate().map(|(i, (_, result))| {
            let name = format!("etcd-{i}");
            match result {
                Ok(()) => status(&name, true, r#"{"health":"true"}"#.to_string()),
                Err(e) => status(&name, false, e.to_string()),
            }
        })),
        Err(_) => out.push(status("etcd-0", false, "context deadline exceeded".into())),
    }
    out
}

/// The rows of `kubectl get cs`.
fn table(context: &RequestContext, version: &str, objects: &[Value]) -> Option<Value> {
    let kind = kinds::all().find(|k| k.kind == "ComponentStatus")?;
    let columns: Vec<Value> = kind
        .columns
        .iter()
        .map(|c| {
            json!({"name": c.name, "type": c.type_, "format": c.format, "description": c.description, "priority": c.priority})
        })
        .collect();
    let row_context = RowContext { now: jiff::Timestamp::now().as_second() };
    let rows: Vec<Value> = objects
        .iter()
        .map(|o| {
            let object = match context.param("includeObject") {
                Some("None") => Value::Null,
                Some("Object") => o.clone(),
                _ => {
                    json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": o["metadata"]})
                }
            };
            json!({"cells": (kind.row)(o, &row_context), "object": object})
        })
        .collect();
    Some(
        json!({"kind": "Table", "apiVersion": version, "metadata": {}, "columnDefinitions": columns, "rows": rows}),
    )
}

async fn serve(
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
    _: RequestBody,
) -> Result<Response, Status> {
    let form = negotiate::negotiate(context.header(header::ACCEPT), negotiate::ALL, true)?;
    let mut objects = all(&state).await;
    let name = &context.info.name;
    // A list can name one, too, with a field selector.
    if !name.is_empty() {
        objects.retain(|o| str_at(o, &["metadata", "name"]) == name);
    }
    let one = context.info.verb == "get";
    if one && objects.is_empty() {
        return Err(Status::failure(500, "", format!("Component not found: {name}")));
    }
    if context.info.verb == "list"
        && let Some(selector) = context.param("labelSelector").filter(|s| !s.is_empty())
    {
        let selector =
            pilothouse_apimachinery::selector::Selector::parse(selector).map_err(Status::bad_request)?;
        objects.retain(|_| selector.matches(&Value::Null));
    }
    context.warn("v1 ComponentStatus is deprecated in v1.19+");
    if let Shape::Table(_) = form.shape
        && let Some(table) = table(&context, form.shape.meta_version(), &objects)
    {
        return Ok(respond::json(&context, StatusCode::OK, &table));
    }
    if one {
        return body::answer(&context, StatusCode::OK, state.release, KIND, objects.swap_remove(0));
    }
    body::answer(&context, StatusCode::OK, state.release, LIST, json!({"metadata": {}, "items": objects}))
}

/// Registers the handlers.
pub fn register(special: &mut SpecialRest) {
    special.add("", "componentstatuses", "", "list", serve);
    special.add("", "componentstatuses", "", "get", serve);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_why_a_component_is_not_healthy() {
        // A port that was free a moment ago: nobody listens there.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let s = probe("scheduler", port, false).await;
        assert_eq!(
            s["conditions"][0]["message"],
            format!(
                "Get \"http://127.0.0.1:{port}/healthz\": dial tcp 127.0.0.1:{port}: connect: connection refused"
            )
        );
        assert_eq!(s["conditions"][0]["status"], "False");
    }
}
