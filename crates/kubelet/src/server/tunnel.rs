//! A tunnel: the client's upgrade request is made again at the runtime's streaming server, and from then on bytes go
//! through in both directions, whatever the protocol is (SPDY/3.1, WebSocket).

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use super::answer::{self, Answer};
use crate::http::dial;

/// Whether a request asks for another protocol.
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).into_iter();
    values
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade")))
        && headers.contains_key(header::UPGRADE)
}

/// Whether a request begins a WebSocket.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    let to = headers.get(header::UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or("");
    wants_upgrade(headers) && to.eq_ignore_ascii_case("websocket")
}

/// Connects the client to `url`. What the other side refuses is refused with its own answer.
pub async fn connect(mut request: Request<Incoming>, url: &str) -> Answer {
    if !wants_upgrade(request.headers()) {
        return answer::error(500, "Upgrade request required");
    }
    let Ok(uri) = url.parse::<Uri>() else {
        return answer::error(500, &format!("the runtime's streaming address {url:?} is no URL"));
    };
    let host = uri.host().unwrap_or("127.0.0.1").trim_matches(['[', ']']).to_string();
    let stream = match dial(&host, uri.port_u16().unwrap_or(80)).await {
        Ok(s) => s,
        Err(e) => return answer::error(500, &e),
    };
    // Keystrokes must not wait for each other.
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = match http1::handshake(TokioIo::new(stream)).await {
        Ok(c) => c,
        Err(e) => return answer::error(500, &e.to_string()),
    };
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut outgoing = Request::new(Empty::<Bytes>::new());
    *outgoing.method_mut() = request.method().clone();
    *outgoing.uri_mut() = path.parse().unwrap_or_default();
    *outgoing.headers_mut() = request.headers().clone();
    let headers = outgoing.headers_mut();
    // The client's credentials are meant for the kubelet alone.
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    let authority = uri.authority().map_or("", |a| a.as_str());
    if let Ok(v) = authority.parse() {
        headers.insert(header::HOST, v);
    }
    let mut there = match sender.send_request(outgoing).await {
        Ok(r) => r,
        Err(e) => return answer::error(500, &format!("error proxying upgrade: {e}")),
    };
    let status = there.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        if status.as_u16() < 400 {
            return answer::error(500, &format!("invalid upgrade response: status code {}", status.as_u16()));
        }
        return refused(there).await;
    }
    let client = hyper::upgrade::on(&mut request);
    let runtime = hyper::upgrade::on(&mut there);
    tokio::spawn(async move {
        let (Ok(client), Ok(runtime)) = (client.await, runtime.await) else { return };
        let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
        if let Err(e) = copy_bidirectional(&mut client, &mut runtime).await {
            tracing::debug!("a stream ended: {e}");
        }
    });
    let mut answer = answer::text(101, "");
    *answer.headers_mut() = there.headers().clone();
    answer
}

/// The other side's own refusal.
async fn refused(there: http::Response<Incoming>) -> Answer {
    let (head, body) = there.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let mut answer = answer::of(head.status.as_u16(), answer::TEXT, body);
    for name in [header::CONTENT_TYPE, header::SEC_WEBSOCKET_VERSION] {
        if let Some(v) = head.headers.get(&name) {
            answer.headers_mut().insert(name, v.clone());
        }
    }
    answer
}
