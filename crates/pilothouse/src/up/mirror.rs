//! A read-only registry that offers the images of a folder to the container runtime, as a mirror of every registry:
//! what is not here the runtime pulls from where its name says.
//!
//! Each subfolder is an OCI image layout (<https://github.com/opencontainers/image-spec/blob/main/image-layout.md>)
//! whose index names its references by the annotation `io.containerd.image.name`. The protocol is the pull part of
//! <https://github.com/opencontainers/distribution-spec>.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use futures::TryStreamExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use pilothouse_component_base::signals::Stop;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::io::ReaderStream;

type Body = BoxBody<Bytes, std::io::Error>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

/// Serves the images of `folder` on a free port of 127.0.0.1 until `stop`. Returns the port.
pub async fn serve(folder: PathBuf, port: u16, stop: Stop) -> anyhow::Result<u16> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = match TcpListener::bind(addr).await {
        Ok(l) => l,
        // The port of the last run is taken by now: any other will do.
        Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("image mirror")?,
    };
    let port = listener.local_addr()?.port();
    let folder = Arc::new(folder);
    tokio::spawn(async move {
        loop {
            let conn = tokio::select! { _ = stop.wait() => return, c = listener.accept() => c };
            let Ok((stream, _)) = conn else { continue };
            let folder = folder.clone();
            tokio::spawn(async move {
                let service = service_fn(move |req: Request<Incoming>| {
                    let folder = folder.clone();
                    async move { Ok::<_, Infallible>(answer(&folder, &req).await) }
                });
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Ok(port)
}

async fn answer(folder: &Path, req: &Request<Incoming>) -> Response<Body> {
    let head = match *req.method() {
        Method::GET => false,
        Method::HEAD => true,
        _ => return plain(StatusCode::METHOD_NOT_ALLOWED),
    };
    if req.uri().path() == "/v2/" {
        return plain(StatusCode::OK);
    }
    // containerd says in `ns` which registry it asks this mirror about.
    let registry =
        req.uri().query().and_then(|q| q.split('&').find_map(|p| p.strip_prefix("ns="))).unwrap_or("");
    match find(folder, req.uri().path(), registry) {
        Some(found) => file(&found, head).await.unwrap_or_else(|_| plain(StatusCode::NOT_FOUND)),
        None => plain(StatusCode::NOT_FOUND),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Found {
    path: PathBuf,
    digest: String,
    media_type: String,
}

/// What a path of the protocol names, or `None` where the folder does not have it.
fn find(folder: &Path, path: &str, registry: &str) -> Option<Found> {
    let rest = path.strip_prefix("/v2/")?;
    let (rest, reference) = rest.rsplit_once('/')?;
    let layouts = || std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    if rest.ends_with("/blobs") {
        let hex = hex_digest(reference)?;
        let path = layouts().map(|l| l.join("blobs/sha256").join(hex)).find(|p| p.is_file())?;
        return Some(Found { path, digest: reference.into(), media_type: "application/octet-stream".into() });
    }
    let name = rest.strip_suffix("/manifests")?;
    for layout in layouts() {
        let Some(index) = std::fs::read(layout.join("index.json"))
            .ok()
            .and_then(|b| serde_json::from_slice::<Index>(&b).ok())
        else {
            continue;
        };
        let wanted = format!("{registry}/{name}:{reference}");
        let found = index.manifests.into_iter().find(|d| {
            d.digest == reference
                || d.annotations.get("io.containerd.image.name").is_some_and(|n| {
                    *n == wanted || (registry.is_empty() && n.ends_with(&format!("/{name}:{reference}")))
                })
        });
        if let Some(d) = found {
            let path = layout.join("blobs/sha256").join(hex_digest(&d.digest)?);
            return Some(Found { path, digest: d.digest, media_type: d.media_type });
        }
    }
    None
}

fn hex_digest(digest: &str) -> Option<&str> {
    digest.strip_prefix("sha256:").filter(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()))
}

async fn file(found: &Found, head: bool) -> std::io::Result<Response<Body>> {
    let file = tokio::fs::File::open(&found.path).await?;
    let length = file.metadata().await?.len();
    let body: Body = if head {
        Full::new(Bytes::new()).map_err(|e| match e {}).boxed()
    } else {
        StreamBody::new(ReaderStream::with_capacity(file, 256 * 1024).map_ok(Frame::data)).boxed()
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    for (name, value) in [
        (header::CONTENT_TYPE, &found.media_type),
        (header::HeaderName::from_static("docker-content-digest"), &found.digest),
    ] {
        if let Ok(v) = HeaderValue::from_str(value) {
            headers.insert(name, v);
        }
    }
    Ok(response)
}

fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::new()).map_err(|e| match e {}).boxed());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_by_tag_and_digest_and_nothing_outside_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let hex = "a".repeat(64);
        let layout = dir.path().join("web");
        std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        std::fs::write(layout.join("blobs/sha256").join(&hex), "x").unwrap();
        let index = serde_json::json!({"manifests": [{"mediaType": "m", "digest": format!("sha256:{hex}"),
            "annotations": {"io.containerd.image.name": "docker.io/library/web:1"}}]});
        std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
        let found = |path: &str, ns: &str| find(dir.path(), path, ns).map(|f| f.media_type);
        assert_eq!(found("/v2/library/web/manifests/1", "docker.io"), Some("m".into()));
        assert_eq!(found("/v2/library/web/manifests/1", "quay.io"), None);
        assert_eq!(found("/v2/library/web/manifests/2", "docker.io"), None);
        assert_eq!(found(&format!("/v2/library/web/manifests/sha256:{hex}"), "docker.io"), Some("m".into()));
        assert!(found(&format!("/v2/library/web/blobs/sha256:{hex}"), "docker.io").is_some());
        assert_eq!(found("/v2/library/web/blobs/sha256:../../../etc/passwd", "docker.io"), None);
        assert_eq!(found("/v2/../../etc/passwd", ""), None);
    }
}
