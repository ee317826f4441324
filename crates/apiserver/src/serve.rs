//! A request's way from the connection to its handler and back.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use parking_lot::Mutex;
use pilothouse_apimachinery::go::quote;
use pilothouse_apimachinery::status::Status;
use tokio::time::Instant;

use crate::limits::Class;
use crate::metrics::Finished;
use crate::request::{
    Attributes, AuditLevel, AuditStage, AuditedBodies, Body, Connection, Decision, RequestBody,
    RequestContext, RequestInfo, Response, UserInfo,
};
use crate::request_info::{parse_query, request_info};
use crate::state::ServerState;
use crate::{authorization, dispatch, impersonation, respond};

/// Whether a request may take as long as it likes.
pub fn is_long_running(info: &RequestInfo) -> bool {
    matches!(info.verb.as_str(), "watch" | "proxy")
        || (info.is_resource
            && matches!(info.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward"))
        || (!info.is_resource && info.path.starts_with("/debug/pprof/"))
}

/// Handles one request. Never fails: failures are answers.
pub async fn handle<B>(state: Arc<ServerState>, connection: Connection, request: Request<B>) -> Response
where
    B: hyper::body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let started = Instant::now();
    let received = jiff::Timestamp::now();
    let (parts, body) = request.into_parts();
    let body = RequestBody::new(body);
    let query = parse_query(parts.uri.query().unwrap_or(""));
    let info = request_info(&parts.method, parts.uri.path(), &query);
    let bad_path = info.as_ref().err().cloned();
    let head = parts.method == Method::HEAD;
    let mut context = RequestContext {
        info: info.unwrap_or_default(),
        user: UserInfo::default(),
        impersonator: None,
        audit_id: audit_id(&parts.headers),
        parts,
        query,
        connection,
        warnings: Mutex::default(),
        annotations: Mutex::default(),
        audited: Mutex::default(),
    };

    let before = match bad_path {
        Some(why) => Err(Status::internal(format!("failed to create RequestInfo: {why}"))),
        None => identify(&state, &mut context).await,
    };
    let context = Arc::new(context);
    let level = match &state.audit {
        Some(audit) => audit.level(context.impersonator.as_ref().unwrap_or(&context.user), &context.info),
        None => AuditLevel::None,
    };
    if level > AuditLevel::None {
        *context.audited.lock() = AuditedBodies {
            keep_request: level >= AuditLevel::Request,
            keep_response: level >= AuditLevel::RequestResponse,
            ..AuditedBodies::default()
        };
        record(&state, level, AuditStage::RequestReceived, &context, received, 0);
    }

    let long = is_long_running(&context.info);
    let mut response = match before {
        Err(failure) => refused(&context, &failure),
        Ok(()) => run(&state, &context, body, long).await,
    };
    if !long {
        response = keep_for_audit(&context, response).await;
    }
    decorate(&context, &mut response);

    let code = response.status().as_u16();
    let method = context.parts.method.as_str();
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    state.metrics.finished(&Finished {
        info: &context.info,
        method,
        dry_run: context.param("dryRun").is_some(),
        code,
        content_type: content_type.unwrap_or(""),
        size: response.body().size_hint().exact().filter(|_| !long),
        took: started.elapsed(),
        long,
    });
    if level > AuditLevel::None {
        if long {
            record(&state, level, AuditStage::ResponseStarted, &context, received, code);
            let (state, context) = (state.clone(), context.clone());
            let done = OnDrop(Some(move || {
                record(&state, level, AuditStage::ResponseComplete, &context, received, code);
            }));
            response = response.map(|b| with_guard(b, done));
        } else {
            record(&state, level, AuditStage::ResponseComplete, &context, received, code);
        }
    }
    if long {
        let counted = state.metrics.long_running(&context.info, method);
        response = response.map(|b| with_guard(b, counted));
    }
    if head {
        response = response.map(|_| crate::request::full(bytes::Bytes::new()));
    }
    response
}

/// Answers a request that has not come as far as its handler. Kubernetes tells its own faults there as text.
fn refused(context: &RequestContext, failure: &Status) -> Response {
    let Some(why) = failure.message.strip_prefix("Internal error occurred: ") else {
        return respond::status(context, failure);
    };
    let uri = quote(&context.parts.uri.to_string());
    let text = format!("Internal Server Error: {uri}: {why}\n");
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    respond::text(StatusCode::INTERNAL_SERVER_ERROR, text)
}

/// Keeps the answer's body for the audit log, where that asks for it.
async fn keep_for_audit(context: &RequestContext, response: Response) -> Response {
    // Tokens are credentials: they reach no log.
    let wanted = context.audited.lock().keep_response && context.info.subresource != "token";
    let compressed = response.headers().contains_key(header::CONTENT_ENCODING);
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|t| t.as_bytes().starts_with(b"application/json"));
    if !wanted || compressed || !is_json {
        return response;
    }
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    context.audited.lock().response = Some(bytes.clone());
    http::Response::from_parts(parts, crate::request::full(bytes))
}

fn record(
    state: &ServerState,
    level: AuditLevel,
    stage: AuditStage,
    context: &RequestContext,
    received: jiff::Timestamp,
    code: u16,
) {
    if let Some(audit) = &state.audit {
        audit.record(level, stage, context, received, code);
    }
}

/// Calls its function when dropped.
struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(f) = self.0.take() {
            f();
        }
    }
}

/// Keeps `guard` alive as long as the body.
fn with_guard<G: Send + 'static>(body: Body, guard: G) -> Body {
    body.map_frame(move |frame| {
        let _ = &guard;
        frame
    })
    .boxed_unsync()
}

fn audit_id(headers: &http::HeaderMap) -> String {
    headers
        .get("audit-id")
        .and_then(|v| v.to_str().ok())
        .filter(|v| !v.is_empty() && v.len() <= 64)
        .map_or_else(|| uuid::Uuid::new_v4().to_string(), String::from)
}

/// Finds out who asks, and whom they ask to be taken for.
async fn identify(state: &Arc<ServerState>, context: &mut RequestContext) -> Result<(), Status> {
    let user = state.authenticator.authenticate(&context.parts, &context.connection).await?;
    context.user = user.ok_or_else(Status::unauthorized)?;
    // Credentials have been used; nothing behind this needs them, and none may reach a log or a proxied server.
    context.parts.headers.remove(header::AUTHORIZATION);
    if let Some(other) =
        impersonation::impersonate(&context.parts.headers, &context.user, &*state.authorizer, state.release)
            .await?
    {
        context.impersonator = Some(std::mem::replace(&mut context.user, other));
        let names: Vec<HeaderName> = context
            .parts
            .headers
            .keys()
            .filter(|n| n.as_str().starts_with("impersonate-"))
            .cloned()
            .collect();
        for name in names {
            context.parts.headers.remove(name);
        }
    }
    Ok(())
}

/// Limits, authorization, handler.
async fn run(
    state: &Arc<ServerState>,
    context: &Arc<RequestContext>,
    body: RequestBody,
    long: bool,
) -> Response {
    if long {
        return work(state, context, body, long).await;
    }
    let exempt = context.user.groups.iter().any(|g| g == "system:masters");
    let Some(_counted) = state.limits.enter(Class::of(&context.info.verb), exempt) else {
        return too_many_requests();
    };
    let Some(fairness) = &state.fairness else {
        return work(state, context, body, long).await;
    };
    let entered = fairness.enter(&context.user, &context.info).await;
    let mut response = match entered.place {
        Ok(_place) => work(state, context, body, long).await,
        Err(_) => too_many_requests(),
    };
    let headers = response.headers_mut();
    headers.insert(FLOW_SCHEMA, entered.schema_uid);
    headers.insert(PRIORITY_LEVEL, entered.level_uid);
    response
}

/// The flow schema and the priority level that a request was sorted into.
const FLOW_SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const PRIORITY_LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

fn too_many_requests() -> Response {
    let text = "Too many requests, please try again later.\n";
    let mut response = respond::text(StatusCode::TOO_MANY_REQUESTS, text);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Authorization, handler.
async fn work(
    state: &Arc<ServerState>,
    context: &Arc<RequestContext>,
    body: RequestBody,
    long: bool,
) -> Response {
    let work = async {
        authorize(state, context).await?;
        dispatch::dispatch(state.clone(), context.clone(), body).await
    };
    let work = AssertUnwindSafe(work).catch_unwind();
    let limit = state.config.request_timeout;
    let outcome = if long || limit == Duration::ZERO {
        work.await
    } else {
        match tokio::time::timeout(limit, work).await {
            Ok(outcome) => outcome,
            Err(_) => {
                Ok(Err(Status::timeout(format!("request did not complete within {}", go_duration(limit)), 0)))
            }
        }
    };
    match outcome {
        Ok(Ok(response)) => response,
        Ok(Err(failure)) => respond::status(context, &failure),
        Err(_) => {
            tracing::error!(uri = %context.parts.uri, "a request caused a panic");
            respond::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "This request caused apiserver to panic. Look in the logs for details.\n",
            )
        }
    }
}

/// `1m0s`, as Go prints whole seconds.
fn go_duration(d: Duration) -> String {
    let s = d.as_secs();
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

async fn authorize(state: &ServerState, context: &RequestContext) -> Result<(), Status> {
    let attributes = Attributes { user: &context.user, request: &context.info };
    let decision = state.authorizer.authorize(attributes).await;
    let (word, reason) = match &decision {
        Decision::Allow => ("allow", ""),
        Decision::Deny(why) | Decision::NoOpinion(why) => ("forbid", why.as_str()),
    };
    if state.audit.is_some() {
        let mut annotations = context.annotations.lock();
        annotations.insert("authorization.k8s.io/decision".into(), word.into());
        annotations.insert("authorization.k8s.io/reason".into(), reason.into());
    }
    if word == "allow" { Ok(()) } else { Err(authorization::forbidden(attributes, reason)) }
}

/// Headers that every answer has.
fn decorate(context: &RequestContext, response: &mut Response) {
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert_with(|| HeaderValue::from_static("no-cache, private"));
    if let Ok(id) = HeaderValue::from_str(&context.audit_id) {
        headers.insert(HeaderName::from_static("audit-id"), id);
    }
    for text in context.warnings.lock().iter() {
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            headers.append(header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_running_requests() {
        let long = |method: &str, uri: &str| is_long_running(&RequestContext::for_test(method, uri).info);
        assert!(long("GET", "/api/v1/pods?watch=true") && long("GET", "/api/v1/namespaces/n/pods/p/log"));
        assert!(long("POST", "/api/v1/namespaces/n/pods/p/exec") && !long("GET", "/api/v1/pods"));
        assert!(!long("POST", "/api/v1/namespaces/n/pods/p/binding") && !long("GET", "/healthz"));
    }

    #[test]
    fn durations_as_go_prints_them() {
        assert_eq!(go_duration(Duration::from_secs(60)), "1m0s");
        assert_eq!(go_duration(Duration::from_secs(34)), "34s");
        assert_eq!(go_duration(Duration::from_secs(3700)), "1h1m40s");
    }
}
