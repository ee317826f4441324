//! Discovery: what `/api`, `/apis` and what is below them answer, for clients to find their way.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilothouse_apimachinery::json::{Map, Value, json};
use pilothouse_apimachinery::version::{Release, compare_kube_aware};
use sha2::{Digest, Sha256};

use crate::convert::api_version;
use crate::scheme::{Resource, Scheme};

/// A group's place in `/apis`, and its versions, best first, each with its place in the group.
type GroupPriority = (&'static str, i64, &'static [(&'static str, i64)]);

/// The built-in groups of v1.20, best first. The numbers are those of the APIServices that stand for them.
const V1_20_GROUPS: &[GroupPriority] = &[
    ("", 18000, &[("v1", 1)]),
    ("apiregistration.k8s.io", 18000, &[("v1", 15), ("v1beta1", 9)]),
    ("apps", 17800, &[("v1", 15)]),
    ("events.k8s.io", 17750, &[("v1", 15), ("v1beta1", 5)]),
    ("authentication.k8s.io", 17700, &[("v1", 15), ("v1beta1", 9)]),
    ("authorization.k8s.io", 17600, &[("v1", 15), ("v1beta1", 9)]),
    ("autoscaling", 17500, &[("v1", 15), ("v2beta1", 9), ("v2beta2", 1)]),
    ("batch", 17400, &[("v1", 15), ("v1beta1", 9), ("v2alpha1", 9)]),
    ("certificates.k8s.io", 17300, &[("v1", 15), ("v1beta1", 9)]),
    ("networking.k8s.io", 17200, &[("v1", 15), ("v1beta1", 9)]),
    ("extensions", 17150, &[("v1beta1", 1)]),
    ("policy", 17100, &[("v1beta1", 9)]),
    ("rbac.authorization.k8s.io", 17000, &[("v1", 15), ("v1beta1", 12), ("v1alpha1", 9)]),
    ("storage.k8s.io", 16800, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("admissionregistration.k8s.io", 16700, &[("v1", 15), ("v1beta1", 12)]),
    ("apiextensions.k8s.io", 16700, &[("v1", 15), ("v1beta1", 9)]),
    ("scheduling.k8s.io", 16600, &[("v1", 15), ("v1beta1", 12), ("v1alpha1", 9)]),
    ("coordination.k8s.io", 16500, &[("v1", 15), ("v1beta1", 9)]),
    ("node.k8s.io", 16300, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("discovery.k8s.io", 16200, &[("v1beta1", 12), ("v1alpha1", 9)]),
    ("flowcontrol.apiserver.k8s.io", 16100, &[("v1beta1", 12), ("v1alpha1", 9)]),
    ("internal.apiserver.k8s.io", 16000, &[("v1alpha1", 9)]),
];

/// What differs from [`V1_20_GROUPS`] in the newest release.
const NEWEST_GROUPS: &[GroupPriority] = &[
    ("autoscaling", 17500, &[("v2", 30), ("v1", 15)]),
    ("batch", 17400, &[("v1", 15), ("v1beta1", 9)]),
    ("certificates.k8s.io", 17300, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("policy", 17100, &[("v1", 15), ("v1beta1", 9)]),
    ("admissionregistration.k8s.io", 16700, &[("v1", 15), ("v1beta1", 12), ("v1alpha1", 9)]),
    ("coordination.k8s.io", 16500, &[("v1", 15), ("v1beta1", 9), ("v1alpha2", 1)]),
    ("discovery.k8s.io", 16200, &[("v1", 15), ("v1beta1", 12)]),
    ("flowcontrol.apiserver.k8s.io", 16100, &[("v1", 21), ("v1beta3", 18), ("v1beta2", 15), ("v1beta1", 12)]),
    ("resource.k8s.io", 16200, &[("v1", 15), ("v1beta2", 12), ("v1beta1", 9), ("v1alpha3", 1)]),
    ("storagemigration.k8s.io", 15800, &[("v1beta1", 9)]),
];

/// Priorities of groups and versions that are not built in.
const CUSTOM: (i64, i64) = (1000, 100);

/// `groupPriorityMinimum` and `versionPriority` of a group's version.
pub fn priority(release: Release, group: &str, version: &str) -> (i64, i64) {
    let newer = if release > Release::V1_20 { NEWEST_GROUPS } else { &[] };
    let found = newer.iter().chain(V1_20_GROUPS).find(|(name, ..)| *name == group);
    found.map_or(CUSTOM, |(_, minimum, versions)| {
        let version = versions.iter().find(|(name, _)| *name == version);
        (*minimum, version.map_or(1, |(_, p)| *p))
    })
}

/// A group as `/apis` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Name, `""` for core.
    pub name: String,
    /// The highest `groupPriorityMinimum` of its versions.
    pub priority: i64,
    /// Versions with their priorities, best first.
    pub versions: Vec<(String, i64)>,
}

impl Group {
    /// Adds a version: an APIService's, for example.
    pub fn add(&mut self, version: &str, group_priority: i64, version_priority: i64) {
        self.priority = self.priority.max(group_priority);
        if !self.versions.iter().any(|(v, _)| v == version) {
            self.versions.push((version.to_string(), version_priority));
        }
        self.versions.sort_by(|(a, p), (b, q)| q.cmp(p).then_with(|| compare_kube_aware(b, a)));
    }

    fn value(&self) -> Map {
        let version =
            |(v, _): &(String, i64)| json!({"groupVersion": api_version(&self.name, v), "version": v});
        let mut map = Map::new();
        map.insert("name", self.name.as_str());
        map.insert("versions", self.versions.iter().map(version).collect::<Value>());
        map.insert("preferredVersion", self.versions.first().map_or(Value::Null, version));
        map
    }
}

/// Sorts groups as `/apis` lists them. The aggregator's own group is first, whatever the priorities.
pub fn sort(groups: &mut [Group]) {
    let own = |g: &Group| g.name != "apiregistration.k8s.io";
    groups.sort_by(|a, b| {
        own(a).cmp(&own(b)).then(b.priority.cmp(&a.priority)).then_with(|| a.name.cmp(&b.name))
    });
}

/// The groups of a scheme, the core group left out, in the order of `/apis`.
pub fn groups(scheme: &Scheme) -> Vec<Group> {
    let mut found: BTreeMap<&str, Group> = BTreeMap::new();
    for r in scheme.resources().filter(|r| !r.group.is_empty()) {
        let (minimum, version_priority) = priority(scheme.release(), &r.group, &r.version);
        found
            .entry(&r.group)
            .or_insert_with(|| Group { name: r.group.to_string(), priority: 0, versions: Vec::new() })
            .add(&r.version, minimum, version_priority);
    }
    let mut groups: Vec<Group> = found.into_values().collect();
    sort(&mut groups);
    groups
}

/// `/api`: `APIVersions`. `server_address` is `host:port`.
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// `/apis`: `APIGroupList`.
pub fn api_group_list(groups: &[Group]) -> Value {
    let groups: Vec<Value> = groups.iter().map(|g| Value::Object(g.value())).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`: `APIGroup`.
pub fn api_group(group: &Group) -> Value {
    let mut map = group.value();
    map.insert("kind", "APIGroup");
    map.insert("apiVersion", "v1");
    Value::Object(map)
}

/// The hash that tells clients when the storage version of a resource changes.
pub fn storage_version_hash(group: &str, version: &str, kind: &str) -> String {
    STANDARD.encode(&Sha256::digest(format!("{group}/{version}/{kind}"))[..8])
}

/// The order of resources and their subresources in a list.
fn by_name(a: &Value, b: &Value) -> Ordering {
    a["name"].as_str().cmp(&b["name"].as_str())
}

/// `/api/v1` and `/apis/<group>/<version>`: `APIResourceList`. Nothing where nothing is served there.
pub fn api_resource_list(scheme: &Scheme, group: &str, version: &str) -> Option<Value> {
    let mut served: Vec<&Resource> = scheme.group_version(group, version).map(|r| &**r).collect();
    served.sort_by(|a, b| a.plural.cmp(&b.plural));
    let mut resources: Vec<Value> = served.iter().flat_map(|r| entries(r)).collect();
    if resources.is_empty() {
        return None;
    }
    // Subresources of custom resources stay in their own order.
    if !served.iter().any(|r| r.is_custom()) {
        resources.sort_by(by_name);
    }
    let mut list = json!({
        "kind": "APIResourceList",
        "groupVersion": api_version(group, version),
        "resources": resources,
    });
    // Groups as old as the protocol answer without a version.
    if !matches!(group, "" | "extensions") {
        list["apiVersion"] = "v1".into();
    }
    Some(list)
}

/// The name that discovery shows for one object. v1.20 has none for built-in kinds.
fn singular(r: &Resource) -> &str {
    if r.is_custom() || r.release > Release::V1_20 { &r.singular } else { "" }
}

fn entries(r: &Resource) -> Vec<Value> {
    let mut main = json!({
        "name": &*r.plural,
        "singularName": singular(r),
        "namespaced": r.namespaced,
        "kind": &*r.kind,
        "verbs": r.verbs,
    });
    let names = |items: &[std::sync::Arc<str>]| items.iter().map(|s| Value::from(&**s)).collect::<Value>();
    if !r.short_names.is_empty() {
        main["shortNames"] = names(&r.short_names);
    }
    if !r.categories.is_empty() {
        main["categories"] = names(&r.categories);
    }
    if r.is_stored() {
        let (group, version) = r.storage_version();
        main["storageVersionHash"] = storage_version_hash(&group, &version, &r.kind).into();
    }
    let mut out = vec![main];
    for s in &r.subresources {
        let (group, version, kind) = s.gvk.unwrap_or((&r.group, &r.version, &r.kind));
        let mut entry = json!({
            "name": format!("{}/{}", r.plural, s.name),
            "singularName": "",
            "namespaced": r.namespaced,
            "kind": kind,
            "verbs": s.verbs,
        });
        if (group, version) != (&*r.group, &*r.version) {
            entry["group"] = group.into();
            entry["version"] = version.into();
        }
        out.push(entry);
    }
    out
}

/// Aggregated discovery (`APIGroupDiscoveryList`, version `v2` or `v2beta1`) of groups: of [`groups`] for `/apis`, of
/// the core group for `/api`. `others` knows versions that other servers serve.
pub fn aggregated(
    scheme: &Scheme,
    groups: &[Group],
    version: &str,
    others: impl Fn(&str, &str) -> Option<Value>,
) -> Value {
    let items: Vec<Value> = groups
        .iter()
        .map(|g| {
            let versions: Vec<Value> = g
                .versions
                .iter()
                .map(|(v, _)| {
                    let own: Vec<Value> =
                        scheme.group_version(&g.name, v).map(|r| aggregated_resource(r)).collect();
                    if own.is_empty() {
                        others(&g.name, v).unwrap_or_else(|| json!({"version": v, "freshness": "Stale"}))
                    } else {
                        json!({"version": v, "resources": own, "freshness": "Current"})
                    }
                })
                .collect();
            let metadata = if g.name.is_empty() { json!({}) } else { json!({"name": g.name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

/// The core group, for [`aggregated`].
pub fn core_group() -> Group {
    Group { name: String::new(), priority: 18000, versions: vec![("v1".into(), 1)] }
}

/// A version in aggregated discovery, from the APIResourceList of the server that serves it.
pub fn aggregated_version(list: &Value, group: &str, version: &str) -> Value {
    let text = |entry: &Value, field: &str, or: &str| {
        let said = entry[field].as_str().unwrap_or_default();
        Value::from(if said.is_empty() { or } else { said })
    };
    let described = |entry: &Value, what: &str, name: &str| {
        let kind = json!({"group": text(entry, "group", group), "version": text(entry, "version", version),
            "kind": text(entry, "kind", "")});
        json!({what: name, "responseKind": kind, "verbs": entry["verbs"]})
    };
    let entries = list["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |entry: &Value| entry["name"].as_str().unwrap_or_default().to_string();
    let mut resources = Vec::new();
    for entry in entries.iter().filter(|e| !name(e).contains('/')) {
        let plural = name(entry);
        let mut out = described(entry, "resource", &plural);
        out["scope"] = if entry["namespaced"] == true { "Namespaced" } else { "Cluster" }.into();
        out["singularResource"] = text(entry, "singularName", "");
        for field in ["shortNames", "categories"] {
            if entry[field].is_array() {
                out[field] = entry[field].clone();
            }
        }
        let subresources: Vec<Value> = entries
            .iter()
            .filter_map(|e| Some(described(e, "subresource", name(e).strip_prefix(&format!("{plural}/"))?)))
            .collect();
        if !subresources.is_empty() {
            out["subresources"] = subresources.into();
        }
        resources.push(out);
    }
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated_resource(r: &Resource) -> Value {
    let kind =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut out = json!({
        "resource": &*r.plural,
        "responseKind": kind(&r.group, &r.version, &r.kind),
        "scope": if r.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": &*r.singular,
        "verbs": r.verbs,
    });
    for (name, items) in [("shortNames", &r.short_names), ("categories", &r.categories)] {
        if !items.is_empty() {
            out[name] = items.iter().map(|s| Value::from(&**s)).collect();
        }
    }
    let mut subresources: Vec<Value> = r
        .subresources
        .iter()
        .map(|s| {
            let (group, version, name) = s.gvk.unwrap_or((&r.group, &r.version, &r.kind));
            json!({"subresource": s.name, "responseKind": kind(group, version, name), "verbs": s.verbs})
        })
        .collect();
    subresources.sort_by(|a, b| a["subresource"].as_str().cmp(&b["subresource"].as_str()));
    if !subresources.is_empty() {
        out["subresources"] = subresources.into();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_v1_20() {
        assert_eq!(storage_version_hash("", "v1", "Pod"), "xPOwRZ+Yhw8=");
        assert_eq!(storage_version_hash("apps", "v1", "Deployment"), "8aSe+NMegvE=");
    }

    #[test]
    fn orders_groups() {
        let mut groups = Vec::new();
        for (name, version) in
            [("example.com", "v1alpha1"), ("apps", "v1"), ("a.com", "v1"), ("apiregistration.k8s.io", "v1")]
        {
            let (minimum, p) = priority(Release::V1_20, name, version);
            let mut g = Group { name: name.into(), priority: 0, versions: Vec::new() };
            g.add(version, minimum, p);
            groups.push(g);
        }
        groups[0].add("v1", CUSTOM.0, CUSTOM.1);
        assert_eq!(groups[0].versions[0].0, "v1");
        sort(&mut groups);
        let names: Vec<&str> = groups.iter().map(|g| g.name.as_str()).collect();
        assert_eq!(names, ["apiregistration.k8s.io", "apps", "a.com", "example.com"]);
        assert_eq!(
            api_group(&groups[1])["preferredVersion"],
            json!({"groupVersion": "apps/v1", "version": "v1"})
        );
        assert_eq!(priority(pilothouse_apimachinery::version::NEWEST, "autoscaling", "v2"), (17500, 30));
    }
}
