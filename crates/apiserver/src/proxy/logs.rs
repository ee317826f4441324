//! `pods/log`: a container's output, as the kubelet gives it.

use std::sync::Arc;

use bytes::Bytes;
use http::header;
use http_body_util::{BodyExt, Limited};
use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::status::Status;

use super::kubelet::Kubelets;
use super::streams::{container, escape, flag};
use crate::json::str_at;
use crate::outbound::tls::{self, Trust};
use crate::request::{RequestContext, Response, full};
use crate::special::SpecialRest;
use crate::state::ServerState;

/// Faults of the query. Numbers that do not parse are refused before.
fn validate(tail: Option<i64>, limit: Option<i64>, seconds: Option<i64>, time: bool) -> ErrorList {
    let mut errs = ErrorList::new();
    if let Some(n) = tail.filter(|n| *n < 0) {
        errs.push(field::invalid(&Path::new("tailLines"), n, "must be greater than or equal to 0"));
    }
    if let Some(n) = limit.filter(|n| *n < 1) {
        errs.push(field::invalid(&Path::new("limitBytes"), n, "must be greater than 0"));
    }
    match seconds {
        Some(_) if time => errs.push(field::forbidden(
            &Path::new("[]"),
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        )),
        Some(n) if n < 1 => {
            errs.push(field::invalid(&Path::new("sinceSeconds"), n, "must be greater than 0"))
        }
        _ => {}
    }
    errs
}

fn number(context: &RequestContext, name: &str) -> Result<Option<i64>, Status> {
    match context.param(name) {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
    }
}

/// The query for the kubelet.
fn query(context: &RequestContext) -> Result<String, Status> {
    let (tail, limit, seconds) =
        (number(context, "tailLines")?, number(context, "limitBytes")?, number(context, "sinceSeconds")?);
    let since = context.param("sinceTime").filter(|t| !t.is_empty());
    if let Some(text) = since.filter(|t| t.parse::<jiff::Timestamp>().is_err()) {
        return Err(Status::bad_request(format!(
            "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
        )));
    }
    let errs = validate(tail, limit, seconds, since.is_some());
    if !errs.is_empty() {
        return Err(Status::invalid("", "PodLogOptions", &context.info.name, &errs));
    }
    let mut parts = Vec::new();
    for name in ["follow", "previous", "timestamps"] {
        if flag(context, name) {
            parts.push(format!("{name}=true"));
        }
    }
    for (name, value) in [("sinceSeconds", seconds), ("tailLines", tail), ("limitBytes", limit)] {
        parts.extend(value.map(|n| format!("{name}={n}")));
    }
    parts.extend(since.map(|t| format!("sinceTime={}", escape(t))));
    if let Some(stream) = context.param("stream").filter(|s| !s.is_empty() && *s != "All") {
        parts.push(format!("stream={}", escape(stream)));
    }
    Ok(if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) })
}

fn text_response(body: crate::request::Body) -> Response {
    let mut response = http::Response::new(body);
    let plain = header::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache, private"));
    response
}

/// What a kubelet's refusal is to the client.
fn refusal(code: http::StatusCode, text: &str, name: &str) -> Status {
    match code.as_u16() {
        500 => Status::internal(text),
        400 => Status::bad_request(text),
        404 => {
            let head = "the server could not find the requested resource";
            Status::failure(404, "NotFound", format!("{head} ( pods/log {name})"))
                .about("", "pods/log", name)
                .cause("UnexpectedServerResponse", text, "")
        }
        other => Status::failure(
            other,
            "InternalError",
            format!("an error on the server ({text:?}) has prevented the request from succeeding ( pods/log {name})"),
        )
        .about("", "pods/log", name)
        .cause("UnexpectedServerResponse", text, ""),
    }
}

async fn serve(
    kubelets: Arc<Kubelets>,
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
) -> Result<Response, Status> {
    let (namespace, name) = (&context.info.namespace, &context.info.name);
    let query = query(&context)?;
    let pod = state.objects.get_latest("", "pods", namespace, name).await?;
    let container = container(&pod, context.param("container").unwrap_or(""))?;
    let node = str_at(&pod, &["spec", "nodeName"]);
    if node.is_empty() {
        let mut nothing = text_response(full(Bytes::new()));
        *nothing.status_mut() = http::StatusCode::NO_CONTENT;
        nothing.headers_mut().remove(header::CONTENT_TYPE);
        return Ok(nothing);
    }
    let mut target = kubelets.of_node(&*state.objects, node).await?;
    if flag(&context, "insecureSkipTLSVerifyBackend") {
        // Without this server's own certificate: who does not verify a kubelet must not be taken in by it.
        target.tls = Some(tls::client(Trust::Anything, None).map_err(Status::internal)?);
    }
    let path = format!("/containerLogs/{namespace}/{name}/{container}{query}");
    let failed = |e: &dyn std::fmt::Display| {
        Status::failure(500, "", format!("Get \"{}://{}{path}\": {e}", target.scheme(), target.authority()))
    };
    let request = http::Request::get(&path).body(full(Bytes::new())).map_err(|e| failed(&e))?;
    let response = target.send(request, kubelets.timeout).await.map_err(|e| failed(&e))?;
    let code = response.status();
    if !code.is_success() {
        let body = Limited::new(response.into_body(), 50_000).collect().await;
        let text =
            body.map(|b| String::from_utf8_lossy(&b.to_bytes()).trim().to_string()).unwrap_or_default();
        return Err(refusal(code, &text, name));
    }
    Ok(text_response(response.into_body().map_err(Into::into).boxed_unsync()))
}

/// Registers the handler.
pub fn register(special: &mut SpecialRest, kubelets: &Arc<Kubelets>) {
    let kubelets = kubelets.clone();
    special.add("", "pods", "log", "get", move |s, c, _| serve(kubelets.clone(), s, c));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_bad_numbers() {
        let text = |e: ErrorList| e.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        assert_eq!(
            text(validate(Some(-1), None, None, false)),
            "tailLines: Invalid value: -1: must be greater than or equal to 0"
        );
        assert_eq!(
            text(validate(None, Some(0), Some(0), false)).matches("must be greater than 0").count(),
            2
        );
        assert!(text(validate(None, None, Some(5), true)).contains("at most one of"));
        assert!(validate(Some(0), Some(1), Some(1), false).is_empty());
    }

    #[test]
    fn says_what_the_kubelet_said() {
        let waiting = "container \"c\" in pod \"p\" is waiting to start: ContainerCreating";
        let s = refusal(http::StatusCode::BAD_REQUEST, waiting, "p");
        assert_eq!((s.code, s.reason.as_str(), s.message.as_str()), (400, "BadRequest", waiting));
        assert_eq!(refusal(http::StatusCode::NOT_FOUND, "x", "p").code, 404);
    }
}
