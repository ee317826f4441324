//! The roles and bindings that every cluster begins with, and how they are kept.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use pilothouse_apimachinery::json::{Map, Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;
use serde::Deserialize;

use super::GROUP;
use super::rules::{Rule, missing};
use crate::json::{self, list_at, str_at};
use crate::request::Objects;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Policy {
    cluster_roles: Vec<RoleRow>,
    cluster_role_bindings: Vec<BindingRow>,
    roles: Vec<RoleRow>,
    role_bindings: Vec<BindingRow>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RoleRow {
    #[serde(default)]
    namespace: String,
    name: String,
    #[serde(default)]
    since: String,
    /// The feature gate that brings the role to v1.20, where it is off by default.
    #[serde(default)]
    gate: String,
    #[serde(default)]
    aggregates: String,
    #[serde(default)]
    aggregate_to: String,
    #[serde(default)]
    rules: Vec<RuleRow>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleRow {
    verbs: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    urls: Vec<String>,
    #[serde(default)]
    since: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BindingRow {
    #[serde(default)]
    namespace: String,
    /// The role's name where it is empty.
    #[serde(default)]
    name: String,
    role: String,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    /// Names in `kube-system`.
    #[serde(default)]
    service_accounts: Vec<String>,
}

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    serde_yaml_ng::from_str(include_str!("policy.yaml"))
        .expect("the policy is part of the program and has a test")
});

fn served(since: &str, release: Release) -> bool {
    since.is_empty() || release > Release::V1_20
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut m = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    if !namespace.is_empty() {
        m["namespace"] = json!(namespace);
    }
    m
}

impl RoleRow {
    fn rules(&self, release: Release) -> Vec<Rule> {
        let rows = self.rules.iter().filter(|r| served(&r.since, release));
        rows.map(|r| Rule {
            verbs: r.verbs.clone(),
            groups: r.groups.clone(),
            resources: r.resources.clone(),
            names: r.names.clone(),
            urls: r.urls.clone(),
        })
        .collect()
    }

    fn object(&self, release: Release) -> Value {
        let kind = if self.namespace.is_empty() { "ClusterRole" } else { "Role" };
        let mut v = json!({
            "kind": kind,
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "metadata": metadata(&self.namespace, &self.name),
        });
        let label = |to: &str| format!("rbac.authorization.k8s.io/aggregate-to-{to}");
        if !self.aggregate_to.is_empty() {
            v["metadata"]["labels"][label(&self.aggregate_to)] = json!("true");
        }
        if self.aggregates.is_empty() {
            v["rules"] = self.rules(release).iter().map(Rule::to_value).collect();
        } else {
            // Its rules are the aggregation controller's business.
            let labels: Map = [(label(&self.aggregates), json!("true"))].into_iter().collect();
            v["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
            v["rules"] = Value::Null;
        }
        v
    }
}

impl BindingRow {
    fn object(&self) -> Value {
        let name = if self.name.is_empty() { &self.role } else { &self.name };
        let (kind, role_kind) = match self.namespace.as_str() {
            "" => ("ClusterRoleBinding", "ClusterRole"),
            _ => ("RoleBinding", "Role"),
        };
        let person = |kind: &str, n: &String| json!({"kind": kind, "apiGroup": GROUP, "name": n});
        let mut subjects: Vec<Value> = self.users.iter().map(|n| person("User", n)).collect();
        subjects.extend(self.groups.iter().map(|n| person("Group", n)));
        let accounts = self.service_accounts.iter();
        subjects.extend(
            accounts.map(|n| json!({"kind": "ServiceAccount", "name": n, "namespace": "kube-system"})),
        );
        let mut v = json!({
            "kind": kind,
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "metadata": metadata(&self.namespace, name),
            "roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": self.role},
        });
        if !subjects.is_empty() {
            v["subjects"] = json!(subjects);
        }
        v
    }
}

/// All bootstrap objects of a release with their resources: roles before the bindings that name them. `gates` are the
/// values that feature gates were given.
pub fn bootstrap_objects(release: Release, gates: &BTreeMap<String, String>) -> Vec<(&'static str, Value)> {
    let p = &*POLICY;
    let mut out: Vec<(&'static str, Value)> = Vec::new();
    let on = |gate: &str| gates.get(gate).is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let roles =
        |rows: &'static [RoleRow]| rows.iter().filter(move |r| served(&r.since, release) || on(&r.gate));
    out.extend(roles(&p.cluster_roles).map(|r| ("clusterroles", r.object(release))));
    out.extend(roles(&p.roles).map(|r| ("roles", r.object(release))));
    out.extend(p.cluster_role_bindings.iter().map(|b| ("clusterrolebindings", b.object())));
    let controllers =
        roles(&p.cluster_roles).filter_map(|r| Some((r, r.name.strip_prefix("system:controller:")?)));
    out.extend(controllers.map(|(r, account)| {
        let row = BindingRow {
            namespace: String::new(),
            name: String::new(),
            role: r.name.clone(),
            users: vec![],
            groups: vec![],
            service_accounts: vec![account.to_string()],
        };
        ("clusterrolebindings", row.object())
    }));
    out.extend(p.role_bindings.iter().map(|b| ("rolebindings", b.object())));
    out
}

/// The rules of the role `system:node`, which the Node authorizer applies to every kubelet.
pub fn node_rules(release: Release) -> Vec<Rule> {
    POLICY.cluster_roles.iter().filter(|r| r.name == "system:node").flat_map(|r| r.rules(release)).collect()
}

/// What must be changed so that a stored object grants what the expected one grants; `false` where nothing must.
/// What the cluster's owner added stays; nothing is done to objects with `autoupdate: "false"`.
fn reconcile(stored: &mut Value, expected: &Value) -> bool {
    let autoupdate = "rbac.authorization.kubernetes.io/autoupdate";
    if json::entry(stored, &["metadata", "annotations"], autoupdate) == Some("false") {
        return false;
    }
    let mut changed = false;
    for map in ["labels", "annotations"] {
        for (k, v) in json::strings_at(expected, &["metadata", map]) {
            if json::entry(stored, &["metadata", map], k) != Some(v) {
                json::ensure_object(stored, &["metadata", map]).insert(k, v);
                changed = true;
            }
        }
    }
    if let Some(aggregation) = expected.get("aggregationRule") {
        if stored.get("aggregationRule") != Some(aggregation) {
            stored["aggregationRule"] = aggregation.clone();
            changed = true;
        }
    } else if expected.get("rules").is_some() {
        let wanted = Rule::of_role(expected);
        let lacking: Vec<Rule> = {
            let held = Rule::of_role(stored);
            wanted.into_iter().filter(|w| !missing(&held, std::slice::from_ref(w)).is_empty()).collect()
        };
        if !lacking.is_empty() {
            json::ensure_list(stored, &["rules"]).extend(lacking.iter().map(Rule::to_value));
            changed = true;
        }
    }
    for subject in list_at(expected, &["subjects"]) {
        let same = |s: &Value| {
            ["kind", "name", "namespace"].iter().all(|f| str_at(s, &[f]) == str_at(subject, &[f]))
        };
        if !list_at(stored, &["subjects"]).iter().any(same) {
            json::ensure_list(stored, &["subjects"]).push(subject.clone());
            changed = true;
        }
    }
    changed
}

async fn ensure(objects: &dyn Objects, resource: &str, expected: Value) -> Result<(), Status> {
    let (namespace, name) =
        (str_at(&expected, &["metadata", "namespace"]), str_at(&expected, &["metadata", "name"]));
    if let Some(stored) = objects.get(GROUP, resource, namespace, name) {
        // A binding to another role cannot be changed, only made anew.
        if expected.get("roleRef").is_some_and(|r| stored.get("roleRef") != Some(r)) {
            objects.delete(GROUP, resource, namespace, name, Value::Null).await?;
        } else {
            if reconcile(&mut (*stored).clone(), &expected) {
                let change = |v: &mut Value| {
                    reconcile(v, &expected);
                    Ok(())
                };
                objects.update(GROUP, resource, "", namespace, name, &change).await?;
            }
            return Ok(());
        }
    }
    match objects.create(GROUP, resource, namespace, expected.clone()).await {
        // Another server was faster.
        Err(e) if e.reason == "AlreadyExists" => Ok(()),
        other => other.map(drop),
    }
}

/// Creates what is missing and completes what is there.
pub async fn run(
    objects: &dyn Objects,
    release: Release,
    gates: &BTreeMap<String, String>,
) -> Result<(), Status> {
    let all: Vec<BoxFuture<'_, Result<(), Status>>> = bootstrap_objects(release, gates)
        .into_iter()
        .map(|(r, expected)| ensure(objects, r, expected).boxed())
        .collect();
    stream::iter(all).buffer_unordered(32).try_collect::<()>().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;

    #[test]
    fn the_policy_parses_and_names_what_exists() {
        for release in [Release::V1_20, pilothouse_apimachinery::version::NEWEST] {
            let all = bootstrap_objects(release, &BTreeMap::new());
            let roles: Vec<_> = all
                .iter()
                .filter(|(r, _)| r.ends_with("roles"))
                .map(|(_, v)| (str_at(v, &["metadata", "namespace"]), str_at(v, &["metadata", "name"])))
                .collect();
            for (_, b) in all.iter().filter(|(r, _)| r.ends_with("bindings")) {
                let key = (str_at(b, &["metadata", "namespace"]), str_at(b, &["roleRef", "name"]));
                assert!(roles.contains(&key), "{key:?}");
            }
            let mut names = roles.clone();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), roles.len());
        }
        assert_eq!(node_rules(Release::V1_20).len(), 22);
    }

    #[tokio::test]
    async fn reconciling_is_idempotent_and_keeps_additions() {
        let o = FakeObjects::default();
        run(&o, Release::V1_20, &BTreeMap::new()).await.unwrap();
        let before = o.revision(GROUP, "clusterroles");
        run(&o, Release::V1_20, &BTreeMap::new()).await.unwrap();
        assert_eq!(o.revision(GROUP, "clusterroles"), before);
        let mut role = (*o.get(GROUP, "clusterroles", "", "system:kube-dns").unwrap()).clone();
        role["rules"] = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        o.put(GROUP, "clusterroles", role);
        run(&o, Release::V1_20, &BTreeMap::new()).await.unwrap();
        let role = o.get(GROUP, "clusterroles", "", "system:kube-dns").unwrap();
        assert_eq!(list_at(&role, &["rules"]).len(), 2);
    }

    #[test]
    fn a_feature_gate_brings_its_role() {
        let names = |value: &str| {
            let gates = BTreeMap::from([("TTLAfterFinished".to_string(), value.to_string())]);
            let all = bootstrap_objects(Release::V1_20, &gates);
            let name = "system:controller:ttl-after-finished-controller";
            all.iter()
                .filter(|(_, v)| str_at(v, &["metadata", "name"]) == name)
                .map(|(r, _)| *r)
                .collect::<Vec<_>>()
        };
        assert!(names("false").is_empty());
        assert_eq!(names("true"), ["clusterroles", "clusterrolebindings"]);
    }
}
