//! Watches over WebSocket, for browsers: one text frame for each event.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use pilothouse_apimachinery::status::Status;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::request::{RequestContext, Response, full};

/// Whether the client wants a WebSocket.
pub fn is_requested(context: &RequestContext) -> bool {
    let has =
        |name, word: &str| context.header(name).split(',').any(|v: &str| v.trim().eq_ignore_ascii_case(word));
    has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket")
}

/// What a server answers to the key of a client (RFC 6455, 1.3).
fn accept(key: &str) -> String {
    let joined = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, joined.as_bytes()))
}

fn frame_head(opcode: u8, length: usize) -> Vec<u8> {
    let mut head = vec![0x80 | opcode];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(n), _) if n < 126 => head.push(n),
        (_, Ok(n)) => {
            head.push(126);
            head.extend_from_slice(&n.to_be_bytes());
        }
        _ => {
            head.push(127);
            head.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    head
}

async fn send(io: &mut (impl AsyncWrite + Unpin), opcode: u8, payload: &[u8]) -> std::io::Result<()> {
    io.write_all(&frame_head(opcode, payload.len())).await?;
    io.write_all(payload).await?;
    io.flush().await
}

/// Switches protocols and sends every line of the stream as a text frame.
pub fn answer<S>(context: &RequestContext, pieces: S) -> Result<Response, Status>
where
    S: Stream<Item = Bytes> + Send + 'static,
{
    let key = context.header("sec-websocket-key");
    let upgrade = context.parts.extensions.get::<hyper::upgrade::OnUpgrade>().cloned();
    let (Some(upgrade), false) = (upgrade, key.is_empty()) else {
        return Err(Status::bad_request("the connection cannot be upgraded to a WebSocket"));
    };
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(v) = HeaderValue::from_str(&accept(key)) {
        headers.insert("sec-websocket-accept", v);
    }
    tokio::spawn(async move {
        let Ok(io) = upgrade.await else { return };
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(io));
        let mut pieces = Box::pin(pieces);
        let mut ignored = [0u8; 1024];
        loop {
            tokio::select! {
                piece = pieces.next() => {
                    let Some(piece) = piece else { break };
                    for line in piece.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                        if send(&mut writer, 0x1, line).await.is_err() {
                            return;
                        }
                    }
                }
                // What the client says does not matter, but for its end.
                read = reader.read(&mut ignored) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(_) if ignored[0] & 0x0f == 0x8 => break,
                    Ok(_) => {}
                },
            }
        }
        // A close frame with the code of an ordinary end; the client may be gone already.
        let _ = send(&mut writer, 0x8, &1000u16.to_be_bytes()).await;
    });
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshake_of_the_rfc() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn frames_of_all_lengths() {
        for (length, head) in [(5usize, 2), (300, 4), (70_000, 10)] {
            let mut out = Vec::new();
            send(&mut out, 1, &vec![b'x'; length]).await.unwrap();
            assert_eq!(out.len(), length + head);
            assert_eq!(out[0], 0x81);
        }
    }
}
