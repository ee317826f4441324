//! Which resources the server has, group by group; what the garbage collector watches and what owner references mean.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::Client;
use kube::core::ApiResource;

use super::graph::group_of;

/// One kind that the server has.
#[derive(Debug, Clone)]
pub struct Known {
    /// Where its objects are.
    pub resource: ApiResource,
    /// Whether they are in namespaces.
    pub namespaced: bool,
    /// Whether they can be listed, watched and deleted.
    pub collectable: bool,
}

/// All kinds.
#[derive(Debug, Default)]
pub struct Resources {
    /// By group and kind, in the version that the server prefers.
    known: HashMap<(String, String), Known>,
    versions: BTreeMap<String, Vec<String>>,
    /// Groups that could not be read.
    failed: Vec<String>,
}

impl Resources {
    /// What an owner reference's `apiVersion` and `kind` mean.
    pub fn find(&self, api_version: &str, kind: &str) -> Option<&Known> {
        let group = group_of(api_version);
        let version = api_version.rsplit('/').next().unwrap_or_default();
        if !self.versions.get(group)?.iter().any(|v| v == version) {
            return None;
        }
        self.known.get(&(group.to_string(), kind.to_string()))
    }

    /// What is to be watched: what can be deleted, except events, which own and are owned by nothing.
    pub fn collectable(&self) -> impl Iterator<Item = &Known> {
        self.known.values().filter(|k| {
            let twin = k.resource.group == "extensions" && k.resource.plural == "ingresses";
            k.collectable && k.resource.plural != "events" && !twin
        })
    }

    /// Whether a group could not be read, so that nothing is known about it.
    pub fn failed(&self, group: &str) -> bool {
        self.failed.iter().any(|g| g == group)
    }

    fn add(&mut self, group: &str, version: &str, list: APIResourceList) {
        for r in list.resources {
            if r.name.contains('/') {
                continue;
            }
            let can = |verb: &str| r.verbs.iter().any(|v| v == verb);
            let resource = ApiResource {
                group: group.to_string(),
                version: version.to_string(),
                api_version: if group.is_empty() {
                    version.to_string()
                } else {
                    format!("{group}/{version}")
                },
                kind: r.kind.clone(),
                plural: r.name.clone(),
            };
            let collectable = can("delete") && can("list") && can("watch");
            let known = Known { resource, namespaced: r.namespaced, collectable };
            self.known.entry((group.to_string(), r.kind)).or_insert(known);
        }
    }
}

/// The groups and their versions, preferred first: one request, and a change in it means that [`discover`] is due.
pub async fn groups(client: &Client) -> Result<Vec<(String, Vec<String>)>, kube::Error> {
    let mut all = vec![(String::new(), client.list_core_api_versions().await?.versions)];
    for group in client.list_api_groups().await?.groups {
        let mut versions: Vec<String> = group.versions.into_iter().map(|v| v.version).collect();
        if let Some(preferred) = group.preferred_version {
            versions.retain(|v| *v != preferred.version);
            versions.insert(0, preferred.version);
        }
        all.push((group.name, versions));
    }
    Ok(all)
}

/// Reads all resources of the groups. A group that cannot be read is left out and remembered as such.
pub async fn discover(client: &Client, groups: &[(String, Vec<String>)]) -> Resources {
    let mut all = Resources::default();
    for (group, versions) in groups {
        all.versions.insert(group.clone(), versions.clone());
        for version in versions {
            let list = if group.is_empty() {
                client.list_core_api_resources(version).await
            } else {
                client.list_api_group_resources(&format!("{group}/{version}")).await
            };
            match list {
                Ok(list) => all.add(group, version, list),
                Err(e) => {
                    tracing::debug!(group, version, "discovery failed: {e}");
                    all.failed.push(group.clone());
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list(kinds: &[(&str, &str)]) -> APIResourceList {
        let resources: Vec<_> = kinds
            .iter()
            .map(|(name, kind)| {
                json!({"name": name, "kind": kind, "namespaced": true, "singularName": "",
                    "verbs": ["delete", "get", "list", "watch"]})
            })
            .collect();
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "APIResourceList", "groupVersion": "", "resources": resources}))
            .unwrap()
    }

    #[test]
    fn the_preferred_version_wins_and_the_others_add() {
        let mut r = Resources::default();
        r.versions.insert("batch".into(), vec!["v1".into(), "v1beta1".into()]);
        r.add("batch", "v1", list(&[("jobs", "Job"), ("jobs/status", "Job")]));
        r.add("batch", "v1beta1", list(&[("jobs", "Job"), ("cronjobs", "CronJob")]));
        assert_eq!(r.find("batch/v1beta1", "Job").unwrap().resource.version, "v1");
        assert_eq!(r.find("batch/v1", "CronJob").unwrap().resource.version, "v1beta1");
        assert!(r.find("batch/v3", "Job").is_none());
        assert!(r.find("example.com/v1", "Nothing").is_none());
        r.add("", "v1", list(&[("events", "Event")]));
        assert_eq!(r.collectable().count(), 2);
    }
}
