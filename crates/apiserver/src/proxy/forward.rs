//! Passing a request on, and its answer back; for upgraded connections, bytes both ways.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use pilothouse_apimachinery::status::Status;

use crate::outbound::{Error, Target};
use crate::request::{Body, RequestBody, RequestContext, Response, full};

/// Headers that speak of one connection only.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];

/// Whether the client wants another protocol on this connection.
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .any(|v| v.trim().eq_ignore_ascii_case("upgrade"))
}

/// The headers to pass on: neither the client's credentials nor what concerns its own connection.
pub fn request_headers(context: &RequestContext, upgrade: bool) -> HeaderMap {
    let mut headers = context.parts.headers.clone();
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::HOST);
    let private: Vec<HeaderName> =
        headers.keys().filter(|k| k.as_str().starts_with("impersonate-")).cloned().collect();
    for name in private {
        headers.remove(name);
    }
    if !upgrade {
        for name in HOP_BY_HOP {
            headers.remove(name);
        }
        headers.remove(header::UPGRADE);
        headers.remove("keep-alive");
    }
    let peer = context.connection.peer.ip().to_string();
    let forwarded = match context.header("x-forwarded-for") {
        "" => peer,
        before => format!("{before}, {peer}"),
    };
    if let Ok(value) = HeaderValue::from_str(&forwarded) {
        headers.insert("x-forwarded-for", value);
    }
    headers
}

/// An answer of the other side, passed on as it comes.
pub fn passed_on(response: http::Response<Incoming>) -> Response {
    let (mut parts, body) = response.into_parts();
    if parts.status != http::StatusCode::SWITCHING_PROTOCOLS {
        for name in HOP_BY_HOP {
            parts.headers.remove(name);
        }
        parts.headers.remove("keep-alive");
    }
    parts.version = http::Version::default();
    parts.extensions.clear();
    http::Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
}

/// Passes a request on with its body.
pub async fn plain(
    context: &RequestContext,
    body: RequestBody,
    target: &Target,
    path_and_query: &str,
    limit: Duration,
) -> Result<http::Response<Incoming>, Error> {
    send(context, request_headers(context, false), body.into_body(), target, path_and_query, limit).await
}

/// Passes a request on with these headers and this body.
pub async fn send(
    context: &RequestContext,
    headers: HeaderMap,
    body: Body,
    target: &Target,
    path_and_query: &str,
    limit: Duration,
) -> Result<http::Response<Incoming>, Error> {
    let mut request = http::Request::new(body);
    *request.method_mut() = context.parts.method.clone();
    *request.uri_mut() = path_and_query.parse().map_err(|e| Error::Http(format!("{path_and_query}: {e}")))?;
    *request.headers_mut() = headers;
    target.send(request, limit).await
}

/// Passes an upgrade on. When the other side agrees, bytes are copied both ways until both have said their last.
pub async fn upgrade(
    context: &RequestContext,
    headers: HeaderMap,
    target: &Target,
    path_and_query: &str,
    limit: Duration,
) -> Result<Response, Status> {
    let Some(client) = context.parts.extensions.get::<OnUpgrade>().cloned() else {
        return Err(Status::bad_request("this connection cannot be upgraded: use HTTP/1.1"));
    };
    let response = send(context, headers, full(Bytes::new()), target, path_and_query, limit)
        .await
        .map_err(|e| Status::failure(500, "", format!("error dialing backend: {e}")))?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        return Ok(passed_on(response));
    }
    let mut answer = http::Response::new(full(Bytes::new()));
    *answer.status_mut() = response.status();
    *answer.headers_mut() = response.headers().clone();
    let server = hyper::upgrade::on(response);
    tokio::spawn(async move {
        match tokio::try_join!(client, server) {
            Ok((client, server)) => {
                let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                // Ends with an error where a side vanishes: that is an end like any other.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
            Err(e) => tracing::debug!("upgrade failed: {e}"),
        }
    });
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_upgrades() {
        let mut h = HeaderMap::new();
        h.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        assert!(!wants_upgrade(&h));
        h.insert(header::CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        assert!(wants_upgrade(&h));
    }
}
