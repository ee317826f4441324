//! `/openapi/v2` and `/openapi/v3`: documents of what is served, made again when that changes.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use pilothouse_api::openapi::{self, Documents, PROTOBUF, PROTOBUF_ANSWER, Resource, Subresource, etag};
use pilothouse_api::scheme::Scheme;
use pilothouse_apimachinery::status::Status;

use crate::negotiate;
use crate::registry::Registry;
use crate::request::{RequestContext, Response};
use crate::respond;
use crate::state::ServerState;

/// The documents, with the kinds that they are of.
#[derive(Default)]
pub struct OpenApi(Mutex<Option<(Arc<Scheme>, Arc<Documents>)>>);

fn describe(scheme: &Scheme) -> Vec<Resource> {
    let describe = |r: &Arc<pilothouse_api::scheme::Resource>| Resource {
        group: r.group.to_string(),
        version: r.version.to_string(),
        plural: r.plural.to_string(),
        kind: r.kind.to_string(),
        namespaced: r.namespaced,
        verbs: r.verbs.iter().map(ToString::to_string).collect(),
        subresources: r
            .subresources
            .iter()
            .map(|s| Subresource {
                name: s.name.to_string(),
                gvk: s.gvk.map(|(g, v, k)| (g.to_string(), v.to_string(), k.to_string())),
                verbs: s.verbs.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        custom: r.as_custom().cloned(),
    };
    scheme.resources().map(describe).collect()
}

impl OpenApi {
    fn documents(&self, registry: &Registry) -> Arc<Documents> {
        let scheme = registry.scheme();
        let mut kept = self.0.lock();
        if let Some((of, documents)) = &*kept
            && Arc::ptr_eq(of, &scheme)
        {
            return documents.clone();
        }
        let release = scheme.release();
        let documents = Arc::new(Documents::new(release, &release.git_version(), describe(&scheme)));
        *kept = Some((scheme, documents.clone()));
        documents
    }

    /// Answers `/openapi/v2`. The document is made apart from the connections' threads: it takes a while.
    pub async fn v2(&self, state: &Arc<ServerState>, context: &RequestContext) -> Result<Response, Status> {
        let accept = context.header(header::ACCEPT);
        let wants =
            |media: &str| accept.split(',').any(|part| part.split(';').next().unwrap_or("").trim() == media);
        let documents = self.documents(&state.registry);
        let (own, all) = (documents.clone(), state.clone());
        let merged = on_blocking(move || all.aggregator.documents.merged(|| own.v2_json())).await?;
        let (media, body) = if wants(PROTOBUF) && !wants("application/json") {
            (PROTOBUF_ANSWER, protobuf(documents, merged).await?)
        } else if accept.is_empty() || wants("application/json") || wants("*/*") || wants("application/*") {
            match merged {
                Some((json, _)) => ("application/json", json),
                None => ("application/json", on_blocking(move || documents.v2_json()).await?),
            }
        } else if wants(PROTOBUF) {
            (PROTOBUF_ANSWER, protobuf(documents, merged).await?)
        } else {
            return Err(negotiate::not_acceptable(&[negotiate::Media::Json]));
        };
        Ok(cached(context, media, body))
    }

    /// Answers `/openapi/v3` and what is below it.
    pub async fn v3(
        &self,
        state: &Arc<ServerState>,
        context: &RequestContext,
        path: &str,
    ) -> Result<Response, Status> {
        let documents = self.documents(&state.registry);
        if path.is_empty() {
            let index = on_blocking(move || documents.v3_index()).await?;
            let index = state.aggregator.documents.v3_index(index);
            return Ok(cached(context, "application/json", index));
        }
        let wanted = path.to_string();
        let document = on_blocking(move || documents.v3_document(&wanted)).await?;
        let document = document.or_else(|| state.aggregator.documents.v3_document(path));
        let document = document.ok_or_else(Status::no_such_path)?;
        let hash = openapi::etag(&document);
        let mut response = cached(context, "application/json", document);
        // The URL names the content: it can be kept for ever.
        if context.param("hash") == Some(hash.as_str()) {
            response
                .headers_mut()
                .insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        }
        Ok(response)
    }
}

async fn protobuf(documents: Arc<Documents>, merged: Option<(Bytes, Bytes)>) -> Result<Bytes, Status> {
    match merged {
        Some((_, protobuf)) => Ok(protobuf),
        None => on_blocking(move || documents.v2_protobuf()).await,
    }
}

async fn on_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(Status::internal)
}

/// An answer that the client may have already: `ETag` and 304.
fn cached(context: &RequestContext, media: &'static str, body: Bytes) -> Response {
    let tag = format!("\"{}\"", etag(&body));
    let known =
        context.header(header::IF_NONE_MATCH).split(',').any(|t| t.trim().trim_start_matches("W/") == tag);
    let mut response = if known {
        respond::bytes(StatusCode::NOT_MODIFIED, media, Bytes::new())
    } else {
        respond::parts(context, media, vec![body])
    };
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    response
}
