//! Whether extension servers can be reached: the condition `Available` of APIServices.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_component_base::signals::Stop;

use super::documents::{Said, cut};
use super::{GROUP, SERVICES, identify};
use crate::handlers::lifecycle::now;
use crate::json::{get, i64_at, list_at, set, str_at};
use crate::outbound::{Error, Target};
use crate::request::{Objects, UserInfo, full};
use crate::state::ServerState;

/// How often servers are asked when nothing changes.
const AGAIN: Duration = Duration::from_secs(30);
/// How long to leave them alone in any case.
const PAUSE: Duration = Duration::from_secs(1);
/// How long one may take to answer.
const LIMIT: Duration = Duration::from_secs(5);
/// The largest OpenAPI document that is read, in bytes.
const LARGEST: usize = 32 << 20;

/// A condition: status, reason, message.
type Verdict = (&'static str, &'static str, String);

/// What can be said of an APIService from the objects alone: that it is not available, or nothing yet.
fn from_objects(objects: &dyn Objects, spec: &Value) -> Option<Verdict> {
    let (namespace, name) = (str_at(spec, &["service", "namespace"]), str_at(spec, &["service", "name"]));
    let port = i64_at(spec, &["service", "port"]).unwrap_or(443);
    let no = |reason, message: String| Some(("False", reason, message));
    let Some(service) = objects.get("", "services", namespace, name) else {
        return no("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
    };
    if str_at(&service, &["spec", "type"]) != "ClusterIP" {
        return None;
    }
    let listening = list_at(&service, &["spec", "ports"]).iter().find(|p| i64_at(p, &["port"]) == Some(port));
    let Some(listening) = listening else {
        return no(
            "ServicePortError",
            format!("service/{name} in {namespace:?} is not listening on port {port}"),
        );
    };
    let Some(endpoints) = objects.get("", "endpoints", namespace, name) else {
        return no("EndpointsNotFound", format!("cannot find endpoints for service/{name} in {namespace:?}"));
    };
    let port_name = str_at(listening, &["name"]);
    let active = list_at(&endpoints, &["subsets"]).iter().any(|subset| {
        !list_at(subset, &["addresses"]).is_empty()
            && list_at(subset, &["ports"]).iter().any(|p| str_at(p, &["name"]) == port_name)
    });
    if active {
        return None;
    }
    no(
        "MissingEndpoints",
        format!(
            "endpoints for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        ),
    )
}

async fn fetch(target: &Target, path: &str) -> Result<(http::StatusCode, Value), Error> {
    use http_body_util::BodyExt;
    let mut request = http::Request::get(path)
        .header(http::header::ACCEPT, "application/json")
        .body(full(""))
        .map_err(|e| Error::Http(e.to_string()))?;
    let aggregator = UserInfo {
        name: "system:kube-aggregator".into(),
        groups: vec!["system:masters".into()],
        ..UserInfo::default()
    };
    identify(request.headers_mut(), &aggregator);
    let exchange = async {
        let response = target.send(request, LIMIT).await?;
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), LARGEST).collect().await;
        let body = body.map_err(|e| Error::Http(e.to_string()))?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    };
    tokio::time::timeout(LIMIT, exchange).await.map_err(|_| Error::Timeout)?
}

/// Asks the server itself.
async fn ask(state: &ServerState, service: &Value) -> Verdict {
    let spec = &service["spec"];
    let (group, version) = (str_at(spec, &["group"]), str_at(spec, &["version"]));
    let path = format!("/apis/{group}/{version}");
    let failed = |url: &str, why: String| {
        ("False", "FailedDiscoveryCheck", format!("failing or missing response from {url}: {why}"))
    };
    let target = match state.aggregator.target(&*state.objects, service) {
        Ok(target) => target,
        Err(why) => return failed(&path, why),
    };
    let address = target.addresses.first().map_or_else(|| target.authority(), ToString::to_string);
    let url = format!("https://{address}{path}");
    let resources = match fetch(&target, &path).await {
        Ok((status, list)) if status.is_success() => list,
        Ok((status, _)) => return failed(&url, format!("bad status from {url}: {}", status.as_u16())),
        Err(e) => return failed(&url, format!("Get {url:?}: {e}")),
    };
    let openapi = match fetch(&target, "/openapi/v2").await {
        Ok((status, document)) if status.is_success() => cut(document, group, version),
        _ => Value::Null,
    };
    let openapi_v3 = match fetch(&target, &format!("/openapi/v3/apis/{group}/{version}")).await {
        Ok((status, document)) if status.is_success() && document.is_object() => {
            Some(document.to_string().into())
        }
        _ => None,
    };
    state.aggregator.documents.keep(group, version, Said { resources, openapi, openapi_v3 });
    ("True", "Passed", "all checks passed".into())
}

/// Puts a verdict into an APIService's status; `false` where it says so already.
fn conclude(service: &mut Value, (status, reason, message): &Verdict) -> bool {
    let mut conditions = list_at(service, &["status", "conditions"]).to_vec();
    let mut condition = json!({"type": "Available", "status": status, "lastTransitionTime": now(),
        "reason": reason, "message": message});
    match conditions.iter().position(|c| str_at(c, &["type"]) == "Available") {
        None => conditions.push(condition),
        Some(at) => {
            let known = &conditions[at];
            if ["status", "reason", "message"].iter().all(|f| known[*f] == condition[*f]) {
                return false;
            }
            if known["status"] == condition["status"] {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            conditions[at] = condition;
        }
    }
    set(service, &["status", "conditions"], conditions);
    true
}

async fn check(state: &ServerState, service: Arc<Value>) -> Result<(), Status> {
    let spec = get(&service, &["spec"]);
    let verdict = if !spec["service"].is_object() {
        ("True", "Local", "Local APIServices are always available".to_string())
    } else if let Some(verdict) = from_objects(&*state.objects, spec) {
        verdict
    } else {
        ask(state, &service).await
    };
    let mut changed = (*service).clone();
    if !conclude(&mut changed, &verdict) {
        return Ok(());
    }
    let name = str_at(&service, &["metadata", "name"]);
    let change = |o: &mut Value| {
        conclude(o, &verdict);
        Ok(())
    };
    match state.objects.update(GROUP, SERVICES, "status", "", name, &change).await {
        Err(e) if e.code != 404 => Err(e),
        _ => Ok(()),
    }
}

/// Checks APIServices whenever they, services or endpoints change, and every half minute, until `stop`.
pub async fn run(state: Arc<ServerState>, stop: Stop) {
    let changes = |group, resource| {
        state.registry.hub(group, resource).map(|endpoint| endpoint.storage.objects.subscribe())
    };
    let (Some(mut own), Some(mut services), Some(mut endpoints)) =
        (changes(GROUP, SERVICES), changes("", "services"), changes("", "endpoints"))
    else {
        return;
    };
    loop {
        own.borrow_and_update();
        services.borrow_and_update();
        endpoints.borrow_and_update();
        let all = state.objects.list(GROUP, SERVICES, "");
        let is_remote = |s: &Value| s["spec"]["service"].is_object();
        state.aggregator.documents.retain(|group, version| {
            let fits = |s: &Value| {
                str_at(s, &["spec", "group"]) == group && str_at(s, &["spec", "version"]) == version
            };
            all.iter().any(|s| is_remote(s) && fits(s))
        });
        let remote = all.iter().any(|s| is_remote(s));
        for outcome in join_all(all.into_iter().map(|service| check(&state, service))).await {
            if let Err(e) = outcome {
                tracing::warn!("availability of an APIService: {}", e.message);
            }
        }
        if remote {
            // Endpoints may change all the time.
            tokio::select! { () = stop.wait() => return, () = tokio::time::sleep(PAUSE) => {} }
        }
        // Without other servers neither services nor time matter.
        tokio::select! {
            () = stop.wait() => return,
            changed = own.changed() => if changed.is_err() { return },
            changed = services.changed(), if remote => if changed.is_err() { return },
            changed = endpoints.changed(), if remote => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if remote => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;

    #[test]
    fn says_what_is_missing() {
        let o = FakeObjects::default();
        let spec =
            json!({"group": "x.y", "version": "v1", "service": {"name": "s", "namespace": "n", "port": 443}});
        let say = |o: &FakeObjects| from_objects(o, &spec).map(|(_, reason, message)| (reason, message));
        assert_eq!(say(&o).unwrap(), ("ServiceNotFound", "service/s in \"n\" is not present".into()));
        let service = |port: i64| {
            json!({"metadata": {"name": "s", "namespace": "n"},
                "spec": {"type": "ClusterIP", "ports": [{"port": port, "name": "https"}]}})
        };
        o.put("", "services", service(80));
        assert_eq!(
            say(&o).unwrap(),
            ("ServicePortError", "service/s in \"n\" is not listening on port 443".into())
        );
        o.put("", "services", service(443));
        assert_eq!(
            say(&o).unwrap(),
            ("EndpointsNotFound", "cannot find endpoints for service/s in \"n\"".into())
        );
        let endpoints = |addresses: Value| {
            json!({"metadata": {"name": "s", "namespace": "n"},
                "subsets": [{"addresses": addresses, "ports": [{"name": "https", "port": 8443}]}]})
        };
        o.put("", "endpoints", endpoints(json!([])));
        assert_eq!(
            say(&o).unwrap(),
            (
                "MissingEndpoints",
                "endpoints for service/s in \"n\" have no addresses with port name \"https\"".into()
            )
        );
        o.put("", "endpoints", endpoints(json!([{"ip": "10.1.0.1"}])));
        assert_eq!(say(&o), None);
    }

    #[test]
    fn conditions_change_once() {
        let mut service = json!({"status": {"conditions": [{"type": "Available", "status": "False",
            "reason": "A", "message": "m", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}});
        assert!(!conclude(&mut service, &("False", "A", "m".into())));
        assert!(conclude(&mut service, &("False", "B", "m".into())));
        assert_eq!(service["status"]["conditions"][0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert!(conclude(&mut service, &("True", "Passed", "all checks passed".into())));
        assert_ne!(service["status"]["conditions"][0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
    }
}
