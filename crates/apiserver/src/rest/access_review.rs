//! Access reviews: may somebody do something?

use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;

use super::body::{self, Gvk};
use crate::json::{get, has, str_at, texts};
use crate::request::{
    Attributes, Authorizer, Decision, RequestBody, RequestContext, RequestInfo, Response, UserInfo,
};
use crate::special::SpecialRest;
use crate::state::ServerState;

const GROUP: &str = "authorization.k8s.io";

fn kinds(kind: &'static str, context: &RequestContext, release: Release) -> Vec<Gvk> {
    let v1 = Gvk { group: GROUP, version: "v1", kind };
    let beta = Gvk { group: GROUP, version: "v1beta1", kind };
    if release > Release::V1_20 {
        vec![v1]
    } else if context.info.version == "v1beta1" {
        vec![beta]
    } else {
        vec![v1]
    }
}

/// What a spec asks about.
fn request_info(spec: &Value) -> RequestInfo {
    let r = get(spec, &["resourceAttributes"]);
    if r.is_object() {
        let field = |f| str_at(r, &[f]).to_string();
        return RequestInfo {
            is_resource: true,
            verb: field("verb"),
            group: field("group"),
            version: field("version"),
            namespace: field("namespace"),
            resource: field("resource"),
            subresource: field("subresource"),
            name: field("name"),
            ..RequestInfo::default()
        };
    }
    let n = get(spec, &["nonResourceAttributes"]);
    RequestInfo {
        verb: str_at(n, &["verb"]).into(),
        path: str_at(n, &["path"]).into(),
        ..RequestInfo::default()
    }
}

/// Faults of a spec; `user` says whether it must name one.
fn validate(spec: &Value, user: bool) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    match (has(spec, &["resourceAttributes"]), has(spec, &["nonResourceAttributes"])) {
        (true, true) => errs.push(field::invalid_shown(
            &path.child("nonResourceAttributes"),
            &format!("{:?}", get(spec, &["nonResourceAttributes"]).to_string()),
            "cannot be specified in combination with resourceAttributes",
        )),
        (false, false) => errs.push(field::invalid_shown(
            &path.child("resourceAttributes"),
            "\"null\"",
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    // v1beta1 spells it `group`.
    let groups = !texts(spec, &["groups"]).is_empty() || !texts(spec, &["group"]).is_empty();
    if user && str_at(spec, &["user"]).is_empty() && !groups {
        errs.push(field::invalid(&path.child("user"), "", "at least one of user or group must be specified"));
    }
    errs
}

fn subject(spec: &Value) -> UserInfo {
    let mut groups = texts(spec, &["groups"]);
    groups.extend(texts(spec, &["group"]));
    let extra: BTreeMap<String, Vec<String>> = get(spec, &["extra"])
        .as_object()
        .map(|m| m.keys().map(|k| (k.to_string(), texts(spec, &["extra", k]))).collect())
        .unwrap_or_default();
    UserInfo { name: str_at(spec, &["user"]).into(), uid: str_at(spec, &["uid"]).into(), groups, extra }
}

async fn decide(authorizer: &dyn Authorizer, user: &UserInfo, request: &RequestInfo) -> Value {
    let attributes = Attributes { user, request };
    let (allowed, denied, reason) = match authorizer.authorize(attributes).await {
        Decision::Allow => (true, false, authorizer.explain(attributes).await),
        Decision::Deny(why) => (false, true, why),
        Decision::NoOpinion(why) => (false, false, why),
    };
    let mut status = json!({"allowed": allowed});
    if denied {
        status["denied"] = json!(true);
    }
    if !reason.is_empty() {
        status["reason"] = json!(reason);
    }
    status
}

/// Whose access is asked about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Self_,
    Anybody,
    /// In one namespace.
    Local,
}

async fn review(
    about: About,
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
    body: RequestBody,
) -> Result<Response, Status> {
    let kind = match about {
        About::Self_ => "SelfSubjectAccessReview",
        About::Anybody => "SubjectAccessReview",
        About::Local => "LocalSubjectAccessReview",
    };
    let (gvk, mut object) =
        body::read(&context, body, state.release, &kinds(kind, &context, state.release)).await?;
    let spec = get(&object, &["spec"]).clone();
    let mut errs = validate(&spec, about != About::Self_);
    if about == About::Local {
        let namespace = str_at(&object, &["metadata", "namespace"]);
        if let Some(r) = spec.get("resourceAttributes").filter(|r| r.is_object())
            && str_at(r, &["namespace"]) != namespace
        {
            let path = Path::new("spec").child("resourceAttributes").child("namespace");
            errs.push(field::invalid(&path, str_at(r, &["namespace"]), "must match metadata.namespace"));
        }
        if has(&spec, &["nonResourceAttributes"]) {
            let shown = get(&spec, &["nonResourceAttributes"]).to_string();
            let path = Path::new("spec").child("nonResourceAttributes");
            errs.push(field::invalid_shown(&path, &shown, "disallowed on this kind of request"));
        }
    }
    if !errs.is_empty() {
        return Err(Status::invalid(GROUP, "", "", &errs));
    }
    if about == About::Local
        && str_at(&object, &["spec", "resourceAttributes", "namespace"]) != context.info.namespace
    {
        return Err(Status::bad_request(format!(
            "spec.resourceAttributes.namespace must match namespace: {}",
            context.info.namespace
        )));
    }
    let user = if about == About::Self_ { context.user.clone() } else { subject(&spec) };
    object["status"] = decide(&*state.authorizer, &user, &request_info(&spec)).await;
    body::answer(&context, StatusCode::CREATED, state.release, gvk, object)
}

async fn rules(
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
    body: RequestBody,
) -> Result<Response, Status> {
    let kinds = kinds("SelfSubjectRulesReview", &context, state.release);
    let (gvk, mut object) = body::read(&context, body, state.release, &kinds).await?;
    let namespace = str_at(&object, &["spec", "namespace"]).to_string();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (resources, urls, complete) = state.authorizer.rules_for(&context.user, &namespace).await;
    let mut status = json!({"resourceRules": resources, "nonResourceRules": urls, "incomplete": !complete});
    if !complete {
        status["evaluationError"] = json!("some authorizers do not support user rule resolution");
    }
    // Kubernetes answers with a review of its own, which repeats nothing of the request.
    object["spec"] = json!({});
    object["status"] = status;
    body::answer(&context, StatusCode::CREATED, state.release, gvk, object)
}

/// Registers the handlers.
pub fn register(special: &mut SpecialRest) {
    special.add(GROUP, "selfsubjectaccessreviews", "", "create", |s, c, b| review(About::Self_, s, c, b));
    special.add(GROUP, "subjectaccessreviews", "", "create", |s, c, b| review(About::Anybody, s, c, b));
    special.add(GROUP, "localsubjectaccessreviews", "", "create", |s, c, b| review(About::Local, s, c, b));
    special.add(GROUP, "selfsubjectrulesreviews", "", "create", rules);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_a_spec_lacks() {
        let e = Status::invalid(GROUP, "", "", &validate(&json!({}), true));
        assert_eq!(
            e.message,
            ".authorization.k8s.io \"\" is invalid: [spec.resourceAttributes: Invalid value: \"null\": exactly one of \
             nonResourceAttributes or resourceAttributes must be specified, spec.user: Invalid value: \"\": at least one of user or group must be specified]"
        );
        assert!(validate(&json!({"resourceAttributes": {"verb": "get"}, "groups": ["a"]}), true).is_empty());
        assert_eq!(request_info(&json!({"nonResourceAttributes": {"path": "/x", "verb": "get"}})).path, "/x");
    }
}
