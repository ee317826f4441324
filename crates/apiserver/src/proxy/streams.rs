//! `pods/exec`, `pods/attach`, `pods/portforward`: the kubelet's streams.

use std::sync::Arc;

use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;

use super::forward::{request_headers, upgrade, wants_upgrade};
use super::kubelet::Kubelets;
use crate::json::{containers, get, list_at, str_at};
use crate::request::{RequestBody, RequestContext, Response};
use crate::special::SpecialRest;
use crate::state::ServerState;

fn names(pod: &Value, list: &str) -> String {
    let names: Vec<&str> = list_at(pod, &["spec", list]).iter().map(|c| str_at(c, &["name"])).collect();
    names.join(" ")
}

/// The container that is meant: the one named, or the only one.
pub fn container(pod: &Value, wanted: &str) -> Result<String, Status> {
    let name = str_at(pod, &["metadata", "name"]);
    if !wanted.is_empty() {
        if containers(get(pod, &["spec"])).any(|(_, c)| str_at(c, &["name"]) == wanted) {
            return Ok(wanted.to_string());
        }
        return Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}")));
    }
    match list_at(pod, &["spec", "containers"]) {
        [] => Err(Status::bad_request(format!("a container name must be specified for pod {name}"))),
        [one] => Ok(str_at(one, &["name"]).to_string()),
        _ => {
            let mut why = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                names(pod, "containers")
            );
            let init = names(pod, "initContainers");
            if !init.is_empty() {
                why.push_str(&format!(" or one of the init containers: [{init}]"));
            }
            Err(Status::bad_request(why))
        }
    }
}

/// A boolean parameter, as Go's query conversion reads it: there and neither `false` nor `0`.
pub fn flag(context: &RequestContext, name: &str) -> bool {
    context.param(name).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
}

/// Encodes a part of a query.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(b)),
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

fn query(pairs: &[(&str, String)]) -> String {
    let parts: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={}", escape(v))).collect();
    if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
}

/// The kubelet's path for a stream, with its query.
fn path(context: &RequestContext, pod: &Value) -> Result<String, Status> {
    let (namespace, name) = (&context.info.namespace, &context.info.name);
    let what = context.info.subresource.as_str();
    if what == "portforward" {
        // Old WebSocket clients name the ports in the query.
        let ports: Vec<_> = context.params("ports").map(|p| ("port", p.to_string())).collect();
        return Ok(format!("/portForward/{namespace}/{name}{}", query(&ports)));
    }
    let container = container(pod, context.param("container").unwrap_or(""))?;
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for (from, to) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if flag(context, from) {
            pairs.push((to, "1".to_string()));
        }
    }
    pairs.extend(context.params("command").map(|c| ("command", c.to_string())));
    Ok(format!("/{what}/{namespace}/{name}/{container}{}", query(&pairs)))
}

fn options(context: &RequestContext) -> (&'static str, Value) {
    let (kind, mut v) = match context.info.subresource.as_str() {
        "exec" => ("PodExecOptions", json!({"command": context.params("command").collect::<Vec<_>>()})),
        "attach" => ("PodAttachOptions", json!({})),
        _ => return ("PodPortForwardOptions", json!({"kind": "PodPortForwardOptions", "apiVersion": "v1"})),
    };
    for f in ["stdin", "stdout", "stderr", "tty"] {
        if flag(context, f) {
            v[f] = json!(true);
        }
    }
    if let Some(c) = context.param("container") {
        v["container"] = json!(c);
    }
    v["kind"] = json!(kind);
    v["apiVersion"] = json!("v1");
    (kind, v)
}

async fn connect(
    kubelets: Arc<Kubelets>,
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
) -> Result<Response, Status> {
    let (namespace, name) = (&context.info.namespace, &context.info.name);
    let (kind, options) = options(&context);
    super::admit(&state, &context, kind, options).await?;
    let pod = state.objects.get_latest("", "pods", namespace, name).await?;
    let path = path(&context, &pod)?;
    let node = str_at(&pod, &["spec", "nodeName"]);
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let target = kubelets.of_node(&*state.objects, node).await?;
    if !wants_upgrade(&context.parts.headers) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    upgrade(&context, request_headers(&context, true), &target, &path, kubelets.timeout).await
}

/// Registers the handlers.
pub fn register(special: &mut SpecialRest, kubelets: &Arc<Kubelets>) {
    for subresource in ["exec", "attach", "portforward"] {
        let kubelets = kubelets.clone();
        special
            .add("", "pods", subresource, "*", move |s, c, _: RequestBody| connect(kubelets.clone(), s, c));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_a_container() {
        let pod = |containers: Value, init: Value| json!({"metadata": {"name": "x"}, "spec": {"containers": containers, "initContainers": init}});
        let one = pod(json!([{"name": "a"}]), json!([]));
        assert_eq!(container(&one, "").unwrap(), "a");
        let two = pod(json!([{"name": "a"}, {"name": "b"}]), json!([{"name": "i"}]));
        assert_eq!(container(&two, "i").unwrap(), "i");
        let e = |pod: &Value, c: &str| container(pod, c).unwrap_err().message;
        assert_eq!(
            e(&two, ""),
            "a container name must be specified for pod x, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(e(&one, "c"), "container c is not valid for pod x");
        assert_eq!(e(&pod(json!([]), json!([])), ""), "a container name must be specified for pod x");
    }

    #[test]
    fn escapes_commands() {
        assert_eq!(
            query(&[("command", "echo a&b".into()), ("tty", "1".into())]),
            "?command=echo+a%26b&tty=1"
        );
    }
}
