//! From a request to its handler: resources, discovery, OpenAPI, health, metrics, version.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use pilothouse_api::discovery;
use pilothouse_api::openapi::etag;
use pilothouse_apimachinery::json::{Value, json, to_value};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;

use crate::fairness::Fairness;
use crate::handlers;
use crate::health::{Group, HOOKS};
use crate::negotiate::{self, Media};
use crate::request::{RequestBody, RequestContext, Response};
use crate::respond;
use crate::state::ServerState;

/// Handles a request that is allowed.
pub async fn dispatch(
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
    body: RequestBody,
) -> Result<Response, Status> {
    let path = &context.info.path;
    if let Some(service) = state.aggregator.responsible(&state.registry, &*state.objects, path) {
        return state.aggregator.forward(&*state.objects, &context, body, &service).await;
    }
    if context.info.is_resource {
        return handlers::handle(state, context, body).await;
    }
    if let Some(handler) = state.special.find_path(&context.info.path) {
        return if is_read(&context) {
            handler(state.clone(), context.clone(), body).await
        } else {
            Err(negotiate::method_not_allowed())
        };
    }
    let path = context.info.path.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        ["api" | "apis", ..] | ["version"] => {
            let Some(document) = discovery_document(&state, &context, &parts)? else {
                if let ["apis", group, ..] = parts.as_slice()
                    && !handlers::knows_group(&state, group)
                {
                    return Ok(handlers::nothing_here());
                }
                return Err(Status::no_such_path());
            };
            if !is_read(&context) {
                return Err(negotiate::method_not_allowed());
            }
            discovery_answer(&state, &context, document)
        }
        ["openapi", "v2"] => state.openapi.v2(&state, &context).await,
        ["openapi", "v3", rest @ ..] if state.release > Release::V1_20 => {
            state.openapi.v3(&state, &context, &rest.join("/")).await
        }
        ["metrics"] => {
            let mut text = state.metrics.encode(&state.limits, &state.registry.counts());
            text.extend(state.fairness.as_ref().map(Fairness::metrics));
            Ok(respond::bytes(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text))
        }
        ["debug", "api_priority_and_fairness", table] => match fairness_table(&state, table) {
            Some(text) => Ok(respond::text(StatusCode::OK, text)),
            None => Ok(not_found(&context)),
        },
        [] => Ok(respond::json(&context, StatusCode::OK, &json!({"paths": all_paths(&state)}))),
        _ => match Group::of(path) {
            Some((group, "")) => Ok(health(&state, &context, group).await),
            Some((group, check)) => match state.health.answer_one(group, check).await {
                Some((code, text)) => Ok(respond::text(code, text)),
                None => Ok(not_found(&context)),
            },
            None => Ok(not_found(&context)),
        },
    }
}

fn is_read(context: &RequestContext) -> bool {
    matches!(context.parts.method, Method::GET | Method::HEAD)
}

/// What the queues look like.
fn fairness_table(state: &ServerState, table: &str) -> Option<String> {
    let fairness = state.fairness.as_ref()?;
    match table {
        "dump_priority_levels" => Some(fairness.dump_levels()),
        "dump_queues" => Some(fairness.dump_queues()),
        "dump_requests" => Some(fairness.dump_requests()),
        _ => None,
    }
}

async fn health(state: &ServerState, context: &RequestContext, group: Group) -> Response {
    let exclude: Vec<&str> = context.params("exclude").flat_map(|e| e.split(',')).collect();
    let verbose = context.query.iter().any(|(k, _)| k == "verbose");
    let (code, text) = state.health.answer(group, verbose, &exclude).await;
    respond::text(code, text)
}

/// A document of discovery, or the version. None where the path is none of these.
fn discovery_document(
    state: &ServerState,
    context: &RequestContext,
    parts: &[&str],
) -> Result<Option<Discovery>, Status> {
    let scheme = state.registry.scheme();
    let aggregated = aggregated_version(state.release, context);
    Ok(match parts {
        ["version"] => Some(Discovery::plain(to_value(state.release.info()).unwrap_or_default())),
        ["api"] => Some(match aggregated {
            Some(v) => {
                let core = [discovery::core_group()];
                Discovery::aggregated(discovery::aggregated(&scheme, &core, v, |_, _| None), v)
            }
            None => {
                let port = state.address.port();
                let address = match state.config.advertise_address {
                    std::net::IpAddr::V4(ip) => format!("{ip}:{port}"),
                    std::net::IpAddr::V6(ip) => format!("[{ip}]:{port}"),
                };
                Discovery::plain(discovery::api_versions(&address))
            }
        }),
        ["apis"] => {
            let mut groups = discovery::groups(&scheme);
            state.aggregator.add_groups(&*state.objects, &mut groups);
            Some(match aggregated {
                Some(v) => {
                    let others =
                        |group: &str, version: &str| state.aggregator.documents.discovery(group, version);
                    Discovery::aggregated(discovery::aggregated(&scheme, &groups, v, others), v)
                }
                None => Discovery::plain(discovery::api_group_list(&groups)),
            })
        }
        ["apis", group] => {
            let mut groups = discovery::groups(&scheme);
            state.aggregator.add_groups(&*state.objects, &mut groups);
            groups.iter().find(|g| g.name == *group).map(|g| Discovery::plain(discovery::api_group(g)))
        }
        ["api", version] => discovery::api_resource_list(&scheme, "", version).map(Discovery::plain),
        ["apis", group, version] => {
            discovery::api_resource_list(&scheme, group, version).map(Discovery::plain)
        }
        _ => None,
    })
}

struct Discovery {
    document: Value,
    content_type: &'static str,
}

impl Discovery {
    fn plain(document: Value) -> Discovery {
        Discovery { document, content_type: "" }
    }

    fn aggregated(document: Value, version: &str) -> Discovery {
        let content_type = match version {
            "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        };
        Discovery { document, content_type }
    }
}

/// The version of aggregated discovery that a client prefers to the older form, if it does.
fn aggregated_version(release: Release, context: &RequestContext) -> Option<&'static str> {
    if release == Release::V1_20 {
        return None;
    }
    context.header(header::ACCEPT).split(',').find_map(|clause| {
        let mut pieces = clause.split(';').map(str::trim);
        let media = pieces.next().unwrap_or("");
        let pieces: Vec<&str> = pieces.collect();
        let is_aggregated =
            pieces.contains(&"as=APIGroupDiscoveryList") && pieces.contains(&"g=apidiscovery.k8s.io");
        match media {
            "application/json" if is_aggregated && pieces.contains(&"v=v2") => Some(Some("v2")),
            "application/json" if is_aggregated && pieces.contains(&"v=v2beta1") => Some(Some("v2beta1")),
            "application/json" | "*/*" if !is_aggregated => Some(None),
            _ => None,
        }
    })?
}

fn discovery_answer(
    state: &ServerState,
    context: &RequestContext,
    found: Discovery,
) -> Result<Response, Status> {
    let accept = context.header(header::ACCEPT);
    if !found.content_type.is_empty() {
        let body = Bytes::from(respond::json_text(&found.document, false));
        return Ok(tagged(context, found.content_type, body));
    }
    let media = match negotiate::negotiate(accept, negotiate::ALL, false) {
        Ok(form) => form.media,
        // Who asks for the aggregated form only, of a path that has none, gets what there is.
        Err(_) if accept.contains("application/json") => Media::Json,
        Err(_) if !negotiate::route_accepts(accept, negotiate::ALL) => {
            return Err(negotiate::not_acceptable_route());
        }
        Err(e) => return Err(e),
    };
    match media {
        Media::Json => {
            let body = Bytes::from(respond::json_text(&found.document, respond::pretty(context)));
            if state.release == Release::V1_20 {
                return Ok(respond::parts(context, Media::Json.name(), vec![body]));
            }
            Ok(tagged(context, Media::Json.name(), body))
        }
        Media::Yaml => {
            let text = serde_yaml_ng::to_string(&found.document).unwrap_or_default();
            Ok(respond::bytes(StatusCode::OK, Media::Yaml.name(), text))
        }
        Media::Protobuf => {
            let kind = found.document["kind"].as_str().unwrap_or("");
            match pilothouse_api::schema::Schema::meta(state.release, kind) {
                Some(schema) => {
                    let body = pilothouse_api::protobuf::encode(schema, &found.document);
                    Ok(respond::bytes(StatusCode::OK, Media::Protobuf.name(), body))
                }
                None => Ok(respond::json(context, StatusCode::OK, &found.document)),
            }
        }
    }
}

/// An answer that the client may have already.
fn tagged(context: &RequestContext, content_type: &'static str, body: Bytes) -> Response {
    let tag = format!("\"{}\"", etag(&body));
    let mut response = if context.header(header::IF_NONE_MATCH).contains(&tag) {
        respond::bytes(StatusCode::NOT_MODIFIED, content_type, Bytes::new())
    } else {
        respond::parts(context, content_type, vec![body])
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

/// Post-start hooks of the part of v1.20's server that answers unknown paths: that of custom resources, the last in
/// its chain.
const LAST_HOOKS: &[&str] = &[
    "crd-informer-synced",
    "generic-apiserver-start-informers",
    "priority-and-fairness-config-consumer",
    "priority-and-fairness-filter",
    "start-apiextensions-controllers",
    "start-apiextensions-informers",
];

fn health_paths(hooks: &[&str]) -> Vec<String> {
    let mut paths = Vec::new();
    for group in ["healthz", "livez", "readyz"] {
        paths.push(format!("/{group}"));
        for check in ["etcd", "log", "ping"] {
            paths.push(format!("/{group}/{check}"));
        }
        if group == "readyz" {
            paths.push("/readyz/informer-sync".into());
            paths.push("/readyz/shutdown".into());
        }
        paths.extend(hooks.iter().map(|h| format!("/{group}/poststarthook/{h}")));
    }
    paths
}

/// 404 for a path that is neither an API nor anything else: with what there is.
fn not_found(context: &RequestContext) -> Response {
    let mut paths = health_paths(LAST_HOOKS);
    for path in [
        "/apis",
        "/apis/",
        "/apis/apiextensions.k8s.io",
        "/apis/apiextensions.k8s.io/v1",
        "/apis/apiextensions.k8s.io/v1beta1",
        "/metrics",
        "/openapi/v2",
        "/version",
    ] {
        paths.push(path.to_string());
    }
    paths.sort();
    respond::json(context, StatusCode::NOT_FOUND, &json!({"paths": paths}))
}

/// The paths of `/`.
fn all_paths(state: &ServerState) -> Vec<String> {
    let scheme = state.registry.scheme();
    let mut paths = health_paths(HOOKS);
    for path in [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/apis/",
        "/metrics",
        "/openapi/v2",
        "/openid/v1/jwks",
        "/version",
    ] {
        paths.push(path.to_string());
    }
    if state.release > Release::V1_20 {
        paths.push("/openapi/v3".into());
        paths.push("/openapi/v3/".into());
    }
    for group in discovery::groups(&scheme) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|(v, _)| format!("/apis/{}/{v}", group.name)));
    }
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_apimachinery::version::NEWEST;

    #[test]
    fn aggregated_discovery_by_preference() {
        let version = |accept: &str, release| {
            let mut c = RequestContext::for_test("GET", "/apis");
            c.parts.headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
            aggregated_version(release, &c)
        };
        let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let beta = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
        assert_eq!(version(&format!("{v2},{beta},application/json"), NEWEST), Some("v2"));
        assert_eq!(version(&format!("{beta},application/json"), NEWEST), Some("v2beta1"));
        assert_eq!(version(&format!("application/json,{v2}"), NEWEST), None);
        assert_eq!(version(&format!("{v2},application/json"), Release::V1_20), None);
    }

    #[test]
    fn unknown_paths_are_told_what_there_is() {
        let c = RequestContext::for_test("GET", "/nope");
        assert_eq!(not_found(&c).status(), 404);
    }
}
