//! Answers.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::Receiver;

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;
/// An answer.
pub type Answer = Response<Body>;

/// The type of plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// The type of metrics.
pub const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The type of JSON.
pub const JSON: &str = "application/json";

/// An answer of a type.
pub fn of(code: u16, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut r = Response::new(Full::new(body.into()).boxed_unsync());
    *r.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    r.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    r
}

/// Plain text.
pub fn text(code: u16, body: impl Into<String>) -> Answer {
    of(code, TEXT, body.into())
}

/// An error as Go's `http.Error` writes it: with a line end.
pub fn error(code: u16, why: &str) -> Answer {
    let mut r = text(code, format!("{why}\n"));
    r.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    r
}

/// JSON.
pub fn json(value: &Value) -> Answer {
    of(200, JSON, value.to_string())
}

/// A permanent redirect.
pub fn redirect(to: &str) -> Answer {
    let body = format!("<a href=\"{to}\">Moved Permanently</a>.\n\n");
    let mut r = of(301, "text/html; charset=utf-8", body);
    if let Ok(v) = HeaderValue::from_str(to) {
        r.headers_mut().insert(header::LOCATION, v);
    }
    r
}

/// What comes from a channel, as it comes.
pub fn stream(parts: Receiver<Bytes>) -> Answer {
    let frames = futures::stream::unfold(parts, |mut parts| async move {
        parts.recv().await.map(|b| (Ok::<_, Infallible>(Frame::data(b)), parts))
    });
    Response::new(http_body_util::StreamBody::new(frames).boxed_unsync())
}
