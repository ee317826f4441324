//! `nodes/proxy`, `pods/proxy`, `services/proxy`: HTTP to what the name says, which may be `scheme:name:port`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{self, HeaderValue};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;

use super::forward::{passed_on, plain, request_headers, upgrade, wants_upgrade};
use super::kubelet::{self, Kubelets};
use crate::json::{i64_at, list_at, str_at};
use crate::outbound::resolve::{self, Missing};
use crate::outbound::tls::{self, Trust};
use crate::outbound::{Error, Target};
use crate::request::{Objects, RequestBody, RequestContext, Response, full};
use crate::special::SpecialRest;
use crate::state::ServerState;

/// `name`, `name:port`, `scheme:name:`, `scheme:name:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Id {
    scheme: String,
    name: String,
    port: String,
}

fn split(id: &str) -> Option<Id> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] if matches!(*scheme, "http" | "https") => (*scheme, *name, *port),
        _ => return None,
    };
    (!name.is_empty()).then(|| Id { scheme: scheme.into(), name: name.into(), port: port.into() })
}

/// Addresses that nobody is to reach through this server: its own, and those of the link.
fn is_proxyable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

fn at(addresses: Vec<SocketAddr>, scheme: &str) -> Result<Target, Status> {
    let first = addresses.first().ok_or_else(|| Status::unavailable("no address"))?;
    let tls = if scheme == "https" {
        Some(tls::client(Trust::Anything, None).map_err(Status::internal)?)
    } else {
        None
    };
    Ok(Target { host: first.ip().to_string(), port: first.port(), addresses, tls })
}

fn default_port(scheme: &str) -> u16 {
    if scheme == "https" { 443 } else { 80 }
}

/// Where a pod is reached.
fn pod(pod: &Value, id: &Id) -> Result<Target, Status> {
    let ip: Option<IpAddr> = str_at(pod, &["status", "podIP"]).parse().ok();
    let Some(ip) = ip.filter(|ip| is_proxyable(*ip)) else {
        return Err(Status::bad_request("address not allowed"));
    };
    let port = match id.port.as_str() {
        "" => list_at(pod, &["spec", "containers"])
            .iter()
            .find_map(|c| i64_at(list_at(c, &["ports"]).first()?, &["containerPort"]))
            .and_then(|p| u16::try_from(p).ok())
            .unwrap_or_else(|| default_port(&id.scheme)),
        text => text.parse().map_err(|_| Status::bad_request(format!("invalid pod request {text:?}")))?,
    };
    at(vec![SocketAddr::new(ip, port)], &id.scheme)
}

/// Where a service is reached: at one of its pods.
fn service(objects: &dyn Objects, namespace: &str, id: &Id, whole: &str) -> Result<Target, Status> {
    let name = &id.name;
    if let Ok(number) = id.port.parse::<i64>() {
        let service = objects
            .get("", "services", namespace, name)
            .ok_or_else(|| Status::not_found("", "services", name))?;
        if !list_at(&service, &["spec", "ports"]).iter().any(|p| i64_at(p, &["port"]) == Some(number)) {
            return Err(Status::unavailable(format!("no service port {number} found for service {name:?}")));
        }
    }
    let none = |what: &str| Status::unavailable(format!("no endpoints available for service {what:?}"));
    let addresses = match resolve::endpoints(objects, namespace, name, &id.port) {
        Ok(addresses) => addresses,
        // Named by what was asked for, whichever of the two it is.
        Err(Missing::Service | Missing::Endpoints) => return Err(Status::not_found("", "services", name)),
        Err(Missing::Ready) => {
            let endpoints = objects.get("", "endpoints", namespace, name);
            let empty = endpoints.is_none_or(|e| list_at(&e, &["subsets"]).is_empty());
            return Err(none(if empty { name } else { whole }));
        }
    };
    let addresses: Vec<SocketAddr> = addresses.into_iter().filter(|a| is_proxyable(a.ip())).collect();
    if addresses.is_empty() {
        return Err(Status::unavailable("address not allowed"));
    }
    at(addresses, &id.scheme)
}

async fn node(kubelets: &Kubelets, objects: &dyn Objects, id: &Id) -> Result<Target, Status> {
    let target = kubelets.of_node(objects, &id.name).await?;
    let own = objects.get("", "nodes", "", &id.name).map_or(target.port, |n| kubelet::port(&n));
    if id.port.is_empty() || id.port == own.to_string() {
        return Ok(target);
    }
    let port =
        id.port.parse().map_err(|_| Status::bad_request(format!("invalid node request {:?}", id.port)))?;
    let addresses = target.addresses.iter().map(|a| SocketAddr::new(a.ip(), port)).collect();
    let other = if id.scheme == "https" { at(addresses, "https")? } else { at(addresses, "http")? };
    Ok(Target { host: target.host, ..other })
}

/// What stands behind `…/proxy` in the path, with its escapes; `None` where nothing, not even a slash, does.
fn rest(raw: &str, namespaced: bool) -> Option<&str> {
    let skip = if namespaced { 8 } else { 6 };
    let mut slashes = raw.match_indices('/').map(|(i, _)| i);
    slashes.nth(skip - 1).map(|i| &raw[i..])
}

fn unreachable(e: &Error) -> Status {
    Status::unavailable(format!("error trying to reach service: {e}"))
}

/// Turns a redirect within what is proxied into one that comes by here again.
fn rewrite(response: &mut Response, prefix: &str, target: &Target) {
    let Some(to) = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()) else { return };
    let own = [
        format!("{}://{}", target.scheme(), target.authority()),
        format!("{}://{}", target.scheme(), target.host),
    ];
    let path = match own.iter().find_map(|o| to.strip_prefix(o.as_str())) {
        Some(path) => path,
        None if to.starts_with('/') && !to.starts_with("//") => to,
        None => return,
    };
    if let Ok(value) = HeaderValue::from_str(&format!("{prefix}{path}")) {
        response.headers_mut().insert(header::LOCATION, value);
    }
}

async fn proxy(
    kubelets: Arc<Kubelets>,
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
    body: RequestBody,
) -> Result<Response, Status> {
    let info = &context.info;
    let objects = &*state.objects;
    let singular = info.resource.trim_end_matches('s');
    let id = split(&info.name)
        .ok_or_else(|| Status::bad_request(format!("invalid {singular} request {:?}", info.name)))?;
    let kind = match singular {
        "node" => "NodeProxyOptions",
        "pod" => "PodProxyOptions",
        _ => "ServiceProxyOptions",
    };
    super::admit(&state, &context, kind, json!({"kind": kind, "apiVersion": "v1", "path": info.rest}))
        .await?;
    let target = match singular {
        "node" => node(&kubelets, objects, &id).await?,
        "pod" => pod(&*objects.get_latest("", "pods", &info.namespace, &id.name).await?, &id)?,
        _ => service(objects, &info.namespace, &id, &info.name)?,
    };
    let raw = context.parts.uri.path();
    let query = context.parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let rest = rest(raw, !info.namespace.is_empty());
    if wants_upgrade(&context.parts.headers) {
        let headers = request_headers(&context, true);
        return upgrade(
            &context,
            headers,
            &target,
            &format!("{}{query}", rest.unwrap_or("/")),
            kubelets.timeout,
        )
        .await;
    }
    let Some(rest) = rest else {
        // Relative links need the slash.
        let mut response = http::Response::new(full(""));
        *response.status_mut() = http::StatusCode::MOVED_PERMANENTLY;
        if let Ok(value) = HeaderValue::from_str(&format!("{raw}/{query}")) {
            response.headers_mut().insert(header::LOCATION, value);
        }
        return Ok(response);
    };
    let prefix = &raw[..raw.len() - rest.len()];
    let response = plain(&context, body, &target, &format!("{rest}{query}"), kubelets.timeout).await;
    let mut response = passed_on(response.map_err(|e| unreachable(&e))?);
    rewrite(&mut response, prefix, &target);
    Ok(response)
}

/// Registers the handlers.
pub fn register(special: &mut SpecialRest, kubelets: &Arc<Kubelets>) {
    for resource in ["nodes", "pods", "services"] {
        let kubelets = kubelets.clone();
        special.add("", resource, "proxy", "*", move |s, c, b| proxy(kubelets.clone(), s, c, b));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;

    #[test]
    fn reads_names() {
        let id = |s: &str| split(s).map(|i| format!("{}|{}|{}", i.scheme, i.name, i.port));
        assert_eq!(id("a").unwrap(), "|a|");
        assert_eq!(id("a:http").unwrap(), "|a|http");
        assert_eq!(id("https:a:").unwrap(), "https|a|");
        assert_eq!(id("ftp:a:1"), None);
        assert_eq!(id(":1"), None);
    }

    #[test]
    fn finds_the_rest_of_the_path() {
        assert_eq!(rest("/api/v1/namespaces/n/services/s/proxy/a%20b/", true), Some("/a%20b/"));
        assert_eq!(rest("/api/v1/namespaces/n/services/s/proxy", true), None);
        assert_eq!(rest("/api/v1/nodes/n/proxy/", false), Some("/"));
    }

    #[test]
    fn services_without_endpoints() {
        let o = FakeObjects::default();
        let say = |id: &str| service(&o, "n", &split(id).unwrap(), id).err().map(|s| (s.code, s.message));
        assert_eq!(say("s"), Some((404, "services \"s\" not found".into())));
        o.put(
            "",
            "services",
            json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"ports": [{"port": 80}]}}),
        );
        o.put("", "endpoints", json!({"metadata": {"name": "s", "namespace": "n"}}));
        assert_eq!(say("s"), Some((503, "no endpoints available for service \"s\"".into())));
        assert_eq!(say("s:81"), Some((503, "no service port 81 found for service \"s\"".into())));
        o.put(
            "",
            "endpoints",
            json!({"metadata": {"name": "s", "namespace": "n"}, "subsets": [
            {"addresses": [{"ip": "10.1.0.1"}], "ports": [{"port": 8080}]}]}),
        );
        assert_eq!(say("s:80"), None);
    }

    #[test]
    fn pods_are_reached_at_their_first_port() {
        let p = json!({"status": {"podIP": "10.1.0.1"}, "spec": {"containers": [{}, {"ports": [{"containerPort": 8080}]}]}});
        let to = |p: &Value, id: &str| pod(p, &split(id).unwrap()).map(|t| t.authority());
        assert_eq!(to(&p, "p").unwrap(), "10.1.0.1:8080");
        assert_eq!(to(&p, "https:p:9").unwrap(), "10.1.0.1:9");
        assert_eq!(to(&json!({"status": {"podIP": "127.0.0.1"}}), "p").unwrap_err().code, 400);
    }
}
