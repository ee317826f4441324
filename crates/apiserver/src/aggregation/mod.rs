//! API groups that other servers serve: requests for a group and version whose APIService names a service are passed on
//! to it (<https://kubernetes.io/docs/concepts/extend-kubernetes/api-extension/apiserver-aggregation/>).

pub mod availability;
mod documents;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, header};
use parking_lot::Mutex;
use pilothouse_api::discovery::Group;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;

pub use self::documents::Documents;
use crate::json::{bool_at, get, i64_at, list_at, str_at};
use crate::outbound::tls::{self, Identity, Trust};
use crate::outbound::{Target, resolve};
use crate::proxy::forward;
use crate::registry::Registry;
use crate::request::{Objects, RequestBody, RequestContext, Response, UserInfo};
use crate::respond;

/// The group of APIServices.
pub const GROUP: &str = "apiregistration.k8s.io";
/// Their resource.
pub const SERVICES: &str = "apiservices";
/// How long a connection to an extension server may take.
const DIAL: Duration = Duration::from_secs(10);

/// The ways to extension servers.
pub struct Aggregator {
    identity: Option<Identity>,
    /// TLS configurations by CA bundle; none where the certificate is not looked at.
    clients: Mutex<HashMap<Option<String>, Arc<rustls::ClientConfig>>>,
    /// What the servers say of themselves.
    pub documents: Documents,
}

/// Group and version of a path below `/apis/`.
fn group_version(path: &str) -> Option<(&str, &str)> {
    let mut parts = path.strip_prefix("/apis/")?.split('/');
    let (group, version) = (parts.next()?, parts.next()?);
    (!group.is_empty() && !version.is_empty()).then_some((group, version))
}

/// Whether an APIService is known to be reachable.
fn is_available(service: &Value) -> bool {
    list_at(service, &["status", "conditions"])
        .iter()
        .any(|c| str_at(c, &["type"]) == "Available" && str_at(c, &["status"]) == "True")
}

/// The text of a header's name that stands for any text, as clients of the authenticating proxy read it.
fn escape_key(key: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&b);
    key.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Says in headers who asks. What the client said there itself is gone.
pub fn identify(headers: &mut HeaderMap, user: &UserInfo) {
    let forged: Vec<HeaderName> =
        headers.keys().filter(|k| k.as_str().starts_with("x-remote-")).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
    let mut add = |name: String, value: &str| {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
            headers.append(name, value);
        }
    };
    add("x-remote-user".into(), &user.name);
    for group in &user.groups {
        add("x-remote-group".into(), group);
    }
    for (key, values) in &user.extra {
        for value in values {
            add(format!("x-remote-extra-{}", escape_key(key)), value);
        }
    }
}

fn refused(why: &str) -> Response {
    let mut response =
        respond::bytes(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", format!("{why}\n"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

impl Aggregator {
    /// With the certificate and key by which extension servers know this one. Errors name the file.
    pub fn new(identity: Option<&(PathBuf, PathBuf)>) -> Result<Aggregator, String> {
        let identity = match identity {
            Some((certificate, key)) => Some(tls::identity_of_files(certificate, key)?),
            None => None,
        };
        Ok(Aggregator { identity, clients: Mutex::default(), documents: Documents::default() })
    }

    /// The APIService that a path belongs to, where another server serves it.
    pub fn responsible(&self, registry: &Registry, objects: &dyn Objects, path: &str) -> Option<Arc<Value>> {
        let (group, version) = group_version(path)?;
        let scheme = registry.scheme();
        if scheme.group_version(group, version).any(|r| !r.is_custom()) {
            return None;
        }
        let service = objects.get(GROUP, SERVICES, "", &format!("{version}.{group}"))?;
        service["spec"]["service"].is_object().then_some(service)
    }

    fn client(&self, spec: &Value) -> Result<Arc<rustls::ClientConfig>, String> {
        use base64::Engine;
        let insecure = bool_at(spec, &["insecureSkipTLSVerify"]);
        let bundle = (!insecure).then(|| str_at(spec, &["caBundle"]).to_string());
        if let Some(known) = self.clients.lock().get(&bundle) {
            return Ok(known.clone());
        }
        let pem = base64::engine::general_purpose::STANDARD
            .decode(bundle.as_deref().unwrap_or_default())
            .map_err(|e| format!("caBundle: {e}"))?;
        let trust = match &bundle {
            None => Trust::Anything,
            Some(text) if text.is_empty() => Trust::System,
            Some(_) => Trust::Pem(&pem),
        };
        let identity = self.identity.as_ref().map(|(chain, key)| (chain.clone(), key.clone_key()));
        let made = tls::client(trust, identity)?;
        let mut clients = self.clients.lock();
        if clients.len() > 100 {
            clients.clear();
        }
        clients.insert(bundle, made.clone());
        Ok(made)
    }

    /// Where the server of an APIService is reached.
    pub fn target(&self, objects: &dyn Objects, service: &Value) -> Result<Target, String> {
        let spec = get(service, &["spec"]);
        let (namespace, name) = (str_at(spec, &["service", "namespace"]), str_at(spec, &["service", "name"]));
        let port = i64_at(spec, &["service", "port"]).and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
        let addresses = resolve::service(objects, namespace, name, port)?;
        let tls = Some(self.client(spec)?);
        Ok(Target { host: format!("{name}.{namespace}.svc"), port, addresses, tls })
    }

    /// Passes a request on to the server of an APIService.
    pub async fn forward(
        &self,
        objects: &dyn Objects,
        context: &RequestContext,
        body: RequestBody,
        service: &Value,
    ) -> Result<Response, Status> {
        if !is_available(service) {
            return Ok(refused("service unavailable"));
        }
        let target = match self.target(objects, service) {
            Ok(target) => target,
            Err(why) => {
                tracing::debug!("{}: {why}", str_at(service, &["metadata", "name"]));
                return Ok(refused("service unavailable"));
            }
        };
        let path = context.parts.uri.path_and_query().map_or("/", |p| p.as_str());
        let upgrade = forward::wants_upgrade(&context.parts.headers);
        let mut headers = forward::request_headers(context, upgrade);
        identify(&mut headers, &context.user);
        if upgrade {
            return forward::upgrade(context, headers, &target, path, DIAL).await;
        }
        match forward::send(context, headers, body.into_body(), &target, path, DIAL).await {
            Ok(response) => Ok(forward::passed_on(response)),
            Err(e) => Ok(refused(&e.to_string())),
        }
    }

    /// Adds to the groups that are served here those of other servers.
    pub fn add_groups(&self, objects: &dyn Objects, groups: &mut Vec<Group>) {
        for service in objects.list(GROUP, SERVICES, "") {
            let spec = &service["spec"];
            let (group, version) = (str_at(spec, &["group"]), str_at(spec, &["version"]));
            if !spec["service"].is_object() || group.is_empty() {
                continue;
            }
            let number = |field| i64_at(spec, &[field]).unwrap_or_default();
            let at = groups.iter().position(|g| g.name == group).unwrap_or_else(|| {
                groups.push(Group { name: group.into(), priority: 0, versions: Vec::new() });
                groups.len() - 1
            });
            groups[at].add(version, number("groupPriorityMinimum"), number("versionPriority"));
        }
        pilothouse_api::discovery::sort(groups);
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;
    use crate::testing::FakeObjects;

    #[test]
    fn paths() {
        assert_eq!(group_version("/apis/a.b/v1/pods/x"), Some(("a.b", "v1")));
        assert_eq!(group_version("/apis/a.b/v1"), Some(("a.b", "v1")));
        assert_eq!(group_version("/apis/a.b"), None);
        assert_eq!(group_version("/api/v1/pods"), None);
    }

    #[test]
    fn who_asks_is_said_in_headers() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("forged"));
        headers.insert("x-remote-extra-admin", HeaderValue::from_static("forged"));
        let mut user =
            UserInfo { name: "jane".into(), groups: vec!["a".into(), "b".into()], ..UserInfo::default() };
        user.extra.insert("example.org/Scope".into(), vec!["x".into()]);
        identify(&mut headers, &user);
        let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("x-remote-user"), ["jane"]);
        assert_eq!(all("x-remote-group"), ["a", "b"]);
        assert_eq!(all("x-remote-extra-example.org%2fscope"), ["x"]);
        assert!(all("x-remote-extra-admin").is_empty());
    }

    #[test]
    fn groups_of_other_servers_are_listed() {
        let o = FakeObjects::default();
        o.put(
            GROUP,
            SERVICES,
            json!({"metadata": {"name": "v1.x.y"}, "spec": {"group": "x.y", "version": "v1",
            "groupPriorityMinimum": 2000, "versionPriority": 5, "service": {"name": "s", "namespace": "n"}}}),
        );
        o.put(
            GROUP,
            SERVICES,
            json!({"metadata": {"name": "v1.apps"}, "spec": {"group": "apps", "version": "v1"}}),
        );
        let mut groups = Vec::new();
        Aggregator::new(None).unwrap().add_groups(&o, &mut groups);
        assert_eq!(groups, [Group { name: "x.y".into(), priority: 2000, versions: vec![("v1".into(), 5)] }]);
    }
}
