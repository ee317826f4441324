//! `pods/binding` and `bindings`: a scheduler ties a pod to a node.

use std::sync::Arc;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::time::Timestamp;
use pilothouse_apimachinery::version::Release;

use super::body::{self, Gvk};
use crate::admission;
use crate::json::{self, has, str_at, strings_at};
use crate::request::{AdmissionRequest, Operation, RequestBody, RequestContext, Response};
use crate::special::SpecialRest;
use crate::state::ServerState;

const KIND: Gvk = Gvk { group: "", version: "v1", kind: "Binding" };

fn validate(binding: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let kind = str_at(binding, &["target", "kind"]);
    if !matches!(kind, "" | "Node") {
        errs.push(field::not_supported(&Path::new("target").child("kind"), kind, &["Node", "<empty>"]));
    }
    if str_at(binding, &["target", "name"]).is_empty() {
        errs.push(field::required(&Path::new("target").child("name"), ""));
    }
    errs
}

/// A binding with faults. Kubernetes does not say that they are the client's.
fn refused(errs: &ErrorList) -> Status {
    let texts: Vec<String> = errs.iter().map(ToString::to_string).collect();
    let text = match texts.as_slice() {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    Status::failure(500, "", text)
}

/// Ties a pod to a node. v1.20 does not look at the binding's uid and resource version.
fn assign(pod: &mut Value, binding: &Value, now: &str, release: Release) -> Result<(), Status> {
    let name = str_at(pod, &["metadata", "name"]).to_string();
    let refuse = |why: String| Err(Status::conflict("", "pods/binding", &name, &why));
    let preconditions: &[(&str, &str)] = if release > Release::V1_20 {
        &[("uid", "UID"), ("resourceVersion", "ResourceVersion")]
    } else {
        &[]
    };
    for (field, what) in preconditions {
        let (wanted, is) = (str_at(binding, &["metadata", field]), str_at(pod, &["metadata", field]));
        if !wanted.is_empty() && wanted != is {
            return refuse(format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {is}"
            ));
        }
    }
    if has(pod, &["metadata", "deletionTimestamp"]) {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let node = str_at(pod, &["spec", "nodeName"]);
    if !node.is_empty() {
        return refuse(format!("pod {name} is already assigned to node {node:?}"));
    }
    json::set(pod, &["spec", "nodeName"], str_at(binding, &["target", "name"]));
    for (k, v) in strings_at(binding, &["metadata", "annotations"]) {
        json::set(pod, &["metadata", "annotations", k], v);
    }
    let scheduled =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let conditions = json::ensure_list(pod, &["status", "conditions"]);
    match conditions.iter_mut().find(|c| str_at(c, &["type"]) == "PodScheduled") {
        Some(c) if str_at(c, &["status"]) == "True" => {}
        Some(c) => *c = scheduled,
        None => conditions.push(scheduled),
    }
    Ok(())
}

async fn bind(
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
    body: RequestBody,
) -> Result<Response, Status> {
    let info = &context.info;
    let (_, binding) = body::read(&context, body, state.release, &[KIND]).await?;
    let given = str_at(&binding, &["metadata", "name"]).to_string();
    let name = if info.name.is_empty() { given.clone() } else { info.name.clone() };
    if given != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let errs = validate(&binding);
    if !errs.is_empty() {
        return Err(refused(&errs));
    }
    if name.is_empty() {
        return Err(Status::bad_request("Name parameter required."));
    }
    let mut request = AdmissionRequest {
        user: context.user.clone(),
        group: String::new(),
        version: "v1".into(),
        resource: if info.resource == "bindings" { "bindings" } else { "pods" }.into(),
        kind: "Binding".into(),
        subresource: if info.resource == "bindings" { "" } else { "binding" }.into(),
        namespace: info.namespace.clone(),
        name: name.clone(),
        operation: Operation::Create,
        object: binding,
        old_object: Value::Null,
        options: Value::Null,
        dry_run: context.param("dryRun") == Some("All"),
        warnings: Default::default(),
        reinvocation: Default::default(),
    };
    admission::run(&state, &mut request).await?;
    let now = Timestamp::now().rfc3339();
    let change = |pod: &mut Value| assign(pod, &request.object, &now, state.release);
    if request.dry_run {
        let pod = state.objects.get_latest("", "pods", &info.namespace, &name).await?;
        change(&mut (*pod).clone())?;
    } else {
        state.objects.update("", "pods", "binding", &info.namespace, &name, &change).await?;
    }
    Ok(body::created(&context))
}

/// Registers the handlers.
pub fn register(special: &mut SpecialRest) {
    special.add("", "pods", "binding", "create", bind);
    special.add("", "bindings", "", "create", bind);
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::NEWEST;

    use super::*;

    #[test]
    fn assigns_once() {
        let binding = json!({"metadata": {"name": "p", "annotations": {"a": "b"}}, "target": {"kind": "Node", "name": "n1"}});
        let mut pod = json!({"metadata": {"name": "p"}, "status": {"conditions": [{"type": "PodScheduled", "status": "False"}]}});
        assign(&mut pod, &binding, "2020-01-01T00:00:00Z", NEWEST).unwrap();
        assert_eq!(pod["spec"]["nodeName"], "n1");
        assert_eq!(pod["metadata"]["annotations"], json!({"a": "b"}));
        assert_eq!(pod["status"]["conditions"][0]["status"], "True");
        let e = assign(&mut pod, &binding, "", NEWEST).unwrap_err();
        assert_eq!(
            (e.code, e.message.as_str()),
            (
                409,
                "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
            )
        );
        let mut going = json!({"metadata": {"name": "p", "deletionTimestamp": "x"}});
        assert!(assign(&mut going, &binding, "", NEWEST).unwrap_err().message.contains("is being deleted"));
    }

    #[test]
    fn v1_20_does_not_ask_which_pod() {
        let binding = json!({"metadata": {"name": "p", "uid": "other"}, "target": {"name": "n1"}});
        let pod = || json!({"metadata": {"name": "p", "uid": "u"}});
        assign(&mut pod(), &binding, "", Release::V1_20).unwrap();
        let e = assign(&mut pod(), &binding, "", NEWEST).unwrap_err();
        assert!(e.message.ends_with("UID in precondition: other, UID in object meta: u"));
    }

    #[test]
    fn faults_are_no_status_of_their_own() {
        let one = refused(&validate(&json!({"target": {"kind": "Node"}})));
        assert_eq!((one.code, one.message.as_str()), (500, "target.name: Required value"));
        let two = refused(&validate(&json!({"target": {"kind": "Pod"}})));
        assert_eq!(
            two.message,
            "[target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\", target.name: Required value]"
        );
    }
}
