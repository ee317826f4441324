//! Answers: headers, indentation, compression, `Status`.

use pilothouse_apimachinery::json::to_value;
use std::io::Write;

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use pilothouse_api::protobuf;
use pilothouse_api::schema::Schema;
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;
use serde::Serialize;

use crate::negotiate::{self, Media};
use crate::request::{Body, RequestContext, Response, full};

/// Bodies longer than this are compressed for clients that take it.
const COMPRESS_FROM: usize = 128 * 1024;
/// Size of the pieces in which long lists are sent.
const PIECE: usize = 64 * 1024;

/// An answer of bytes.
pub fn bytes(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(full(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer of plain text, as Go's `http.Error` and the health checks give it.
pub fn text(code: StatusCode, body: impl Into<Bytes>) -> Response {
    let mut response = bytes(code, "text/plain; charset=utf-8", body);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// JSON text with a newline behind it, as Go's encoder leaves it.
pub fn json_text(value: &impl Serialize, pretty: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    // Writing to memory cannot fail, and what is written is JSON by its type.
    if pretty {
        let _ = serde_json::to_writer_pretty(&mut out, value);
    } else {
        let _ = serde_json::to_writer(&mut out, value);
    }
    out.push(b'\n');
    out
}

/// An answer of JSON, indented where the client is a person.
pub fn json(context: &RequestContext, code: StatusCode, value: &impl Serialize) -> Response {
    bytes(code, Media::Json.name(), json_text(value, pretty(context)))
}

/// Whether the answer is to be indented.
pub fn pretty(context: &RequestContext) -> bool {
    negotiate::wants_pretty(context.param("pretty"), context.header(header::USER_AGENT))
}

/// The answer to a failure, in the media type that the client asked for.
pub fn status(context: &RequestContext, status: &Status) -> Response {
    let media = negotiate::negotiate(context.header(header::ACCEPT), negotiate::ALL, false)
        .map_or(Media::Json, |n| n.media);
    let mut response = status_as(media, pretty(context), status);
    if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn status_as(media: Media, pretty: bool, status: &Status) -> Response {
    // A success carries no code; a failure's code is the answer's.
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::OK);
    match media {
        Media::Json => bytes(code, media.name(), json_text(status, pretty)),
        Media::Yaml => {
            bytes(code, media.name(), serde_yaml_ng::to_string(status).unwrap_or_default().into_bytes())
        }
        Media::Protobuf => match status_protobuf(status) {
            Some(body) => bytes(code, media.name(), body),
            None => bytes(code, Media::Json.name(), json_text(status, pretty)),
        },
    }
}

/// A `Status` as protobuf. Its form has been the same in all releases.
pub fn status_protobuf(status: &Status) -> Option<Vec<u8>> {
    let schema = Schema::meta(Release::V1_20, "Status")?;
    Some(protobuf::encode(schema, &to_value(status).ok()?))
}

/// An answer that is a stream of bytes, such as a watch.
pub fn stream<S, E>(content_type: &'static str, pieces: S) -> Response
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    use futures::TryStreamExt;
    let body: Body = BodyExt::boxed_unsync(StreamBody::new(pieces.map_ok(Frame::data).map_err(Into::into)));
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer put together from many parts that are kept elsewhere. Short ones are joined; long ones are sent piece by
/// piece, so that the whole is never in memory, or compressed where the client takes that.
pub fn parts(context: &RequestContext, content_type: &'static str, parts: Vec<Bytes>) -> Response {
    let size: usize = parts.iter().map(Bytes::len).sum();
    if size > COMPRESS_FROM
        && accepts_gzip(context)
        && let Some(body) = gzip(&parts)
    {
        let mut response = bytes(StatusCode::OK, content_type, body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        return response;
    }
    if size <= COMPRESS_FROM {
        let mut body = BytesMut::with_capacity(size);
        parts.iter().for_each(|p| body.put_slice(p));
        return bytes(StatusCode::OK, content_type, body.freeze());
    }
    let mut parts = parts.into_iter();
    stream(
        content_type,
        futures::stream::iter(std::iter::from_fn(move || {
            let mut piece = BytesMut::with_capacity(PIECE + PIECE / 4);
            for part in parts.by_ref() {
                piece.put_slice(&part);
                if piece.len() >= PIECE {
                    break;
                }
            }
            (!piece.is_empty()).then(|| Ok::<_, std::io::Error>(piece.freeze()))
        })),
    )
}

fn accepts_gzip(context: &RequestContext) -> bool {
    context
        .header(header::ACCEPT_ENCODING)
        .split(',')
        .any(|e| e.split(';').next().is_some_and(|name| name.trim() == "gzip"))
}

fn gzip(parts: &[Bytes]) -> Option<Vec<u8>> {
    let mut out = flate2::write::GzEncoder::new(Vec::with_capacity(64 * 1024), flate2::Compression::new(1));
    for part in parts {
        out.write_all(part).ok()?;
    }
    out.finish().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(response: Response) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn long_answers_come_in_pieces_or_compressed() {
        let part = Bytes::from(vec![b'x'; 1000]);
        let c = RequestContext::for_test("GET", "/api/v1/pods");
        let short = parts(&c, "application/json", vec![part.clone(); 3]);
        assert_eq!(read(short).await.len(), 3000);
        let long = parts(&c, "application/json", vec![part.clone(); 300]);
        assert_eq!(read(long).await.len(), 300_000);
        let mut c = RequestContext::for_test("GET", "/api/v1/pods");
        c.parts.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("br, gzip;q=0.5"));
        let zipped = parts(&c, "application/json", vec![part; 300]);
        assert_eq!(zipped.headers()[header::CONTENT_ENCODING], "gzip");
        let body = read(zipped).await;
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&body[..]), &mut plain).unwrap();
        assert_eq!(plain.len(), 300_000);
    }

    #[tokio::test]
    async fn failures_say_when_to_try_again() {
        let c = RequestContext::for_test("GET", "/api/v1/pods?pretty=true");
        let r = status(&c, &Status::too_many_requests("slow down", 7));
        assert_eq!((r.status().as_u16(), &r.headers()[header::RETRY_AFTER]), (429, &HeaderValue::from(7)));
        assert!(read(r).await.starts_with(b"{\n"));
    }
}
