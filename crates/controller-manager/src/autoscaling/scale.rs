//! The size of any object that has one: its `scale` subresource, found by discovery.

use std::collections::HashMap;
use std::time::Duration;

use http::Request;
use kube::Client;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

use super::metrics::{failure, get};

/// For so long an answer of discovery is good.
const FRESH: Duration = Duration::from_secs(30);

/// Where a kind is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// `apps/v1`, or `v1`.
    pub group_version: String,
    /// Its group.
    pub group: String,
    /// `deployments`.
    pub plural: String,
}

impl Mapping {
    fn path(&self, namespace: &str, name: &str) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        format!("/{root}/{}/namespaces/{namespace}/{}/{name}/scale", self.group_version, self.plural)
    }

    /// `deployments.apps`.
    pub fn resource(&self) -> String {
        match self.group.as_str() {
            "" => self.plural.clone(),
            group => format!("{}.{group}", self.plural),
        }
    }
}

/// Reads and writes sizes.
pub struct Scales {
    client: Client,
    known: Mutex<HashMap<(String, String), (Instant, Mapping)>>,
}

impl Scales {
    /// With that client.
    pub fn new(client: Client) -> Self {
        Scales { client, known: Mutex::default() }
    }

    /// Where a kind of a group is served, in the group's preferred version.
    pub async fn mapping(&self, group: &str, kind: &str) -> Result<Mapping, String> {
        let key = (group.to_string(), kind.to_string());
        if let Some((at, m)) = self.known.lock().get(&key)
            && at.elapsed() < FRESH
        {
            return Ok(m.clone());
        }
        let nothing = || format!("no matches for kind {kind:?} in group {group:?}");
        let told = |e: kube::Error| failure(&e, "get");
        let versions = match group {
            "" => vec!["v1".to_string()],
            _ => {
                let groups = self.client.list_api_groups().await.map_err(told)?;
                let found = groups.groups.into_iter().find(|g| g.name == group).ok_or_else(nothing)?;
                let preferred = found.preferred_version.map(|v| v.group_version);
                let others = found.versions.into_iter().map(|v| v.group_version);
                let mut all: Vec<String> = preferred.into_iter().chain(others).collect();
                let mut seen = std::collections::HashSet::new();
                all.retain(|v| seen.insert(v.clone()));
                all
            }
        };
        for group_version in versions {
            let list = match group {
                "" => self.client.list_core_api_resources(&group_version).await,
                _ => self.client.list_api_group_resources(&group_version).await,
            };
            let list = list.map_err(told)?;
            if let Some(r) = list.resources.iter().find(|r| r.kind == kind && !r.name.contains('/')) {
                let found = Mapping { group_version, group: group.into(), plural: r.name.clone() };
                self.known.lock().insert(key, (Instant::now(), found.clone()));
                return Ok(found);
            }
        }
        Err(nothing())
    }

    /// The size of an object.
    pub async fn get(&self, at: &Mapping, namespace: &str, name: &str) -> Result<Value, String> {
        get(&self.client, &at.path(namespace, name))
            .await
            .map_err(|e| failure(&e, &format!("get {} {name}", at.resource())))
    }

    /// Writes a size back.
    pub async fn put(&self, at: &Mapping, namespace: &str, name: &str, scale: &Value) -> Result<(), String> {
        let told = |e: kube::Error| failure(&e, &format!("put {} {name}", at.resource()));
        let request = Request::put(at.path(namespace, name))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(scale.to_string().into_bytes())
            .map_err(|e| told(kube::Error::HttpError(e)))?;
        self.client.request::<Value>(request).await.map(|_| ()).map_err(told)
    }
}

/// The group of an `apiVersion`. Texts are Kubernetes'.
pub fn group_of(api_version: &str) -> Result<&str, String> {
    match api_version.split('/').collect::<Vec<_>>()[..] {
        [_] => Ok(""),
        [group, _] => Ok(group),
        _ => Err(format!("unexpected GroupVersion string: {api_version}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        assert_eq!(group_of("apps/v1"), Ok("apps"));
        assert_eq!(group_of("v1"), Ok(""));
        assert_eq!(group_of("a/b/c"), Err("unexpected GroupVersion string: a/b/c".into()));
        let m =
            Mapping { group_version: "apps/v1".into(), group: "apps".into(), plural: "deployments".into() };
        assert_eq!(m.path("ns", "d"), "/apis/apps/v1/namespaces/ns/deployments/d/scale");
        assert_eq!(m.resource(), "deployments.apps");
        let m = Mapping {
            group_version: "v1".into(),
            group: String::new(),
            plural: "replicationcontrollers".into(),
        };
        assert_eq!(m.path("ns", "r"), "/api/v1/namespaces/ns/replicationcontrollers/r/scale");
    }
}
