//! Which flow schema a request belongs to, and which flow of it.

use pilothouse_apimachinery::json::Value;
use sha2::{Digest, Sha256};

use crate::json::{bool_at, list_at, str_at};
use crate::request::{RequestInfo, UserInfo};

/// Whose requests a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster_scope: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

/// What tells the flows of a schema apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Nothing,
    User,
    Namespace,
}

/// The rules of a FlowSchema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matcher {
    rules: Vec<Rule>,
    by: By,
}

fn texts(value: &Value, key: &str) -> Vec<String> {
    crate::json::texts(value, &[key])
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|x| x == "*" || x == wanted)
}

impl Subject {
    fn parse(subject: &Value) -> Option<Subject> {
        let name = |of: &str| str_at(subject, &[of, "name"]).to_string();
        match str_at(subject, &["kind"]) {
            "User" => Some(Subject::User(name("user"))),
            "Group" => Some(Subject::Group(name("group"))),
            "ServiceAccount" => Some(Subject::ServiceAccount {
                namespace: str_at(subject, &["serviceAccount", "namespace"]).to_string(),
                name: name("serviceAccount"),
            }),
            _ => None,
        }
    }

    fn matches(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => name == "*" || *name == user.name,
            Subject::Group(name) => name == "*" || user.groups.contains(name),
            Subject::ServiceAccount { namespace, name } => {
                let account =
                    user.name.strip_prefix("system:serviceaccount:").and_then(|s| s.split_once(':'));
                account.is_some_and(|(ns, n)| ns == namespace && (name == "*" || n == name))
            }
        }
    }
}

impl Rule {
    fn parse(rule: &Value) -> Rule {
        let resources = list_at(rule, &["resourceRules"]).iter().map(|r| ResourceRule {
            verbs: texts(r, "verbs"),
            groups: texts(r, "apiGroups"),
            resources: texts(r, "resources"),
            namespaces: texts(r, "namespaces"),
            cluster_scope: bool_at(r, &["clusterScope"]),
        });
        let paths = list_at(rule, &["nonResourceRules"])
            .iter()
            .map(|r| PathRule { verbs: texts(r, "verbs"), paths: texts(r, "nonResourceURLs") });
        Rule {
            subjects: list_at(rule, &["subjects"]).iter().filter_map(Subject::parse).collect(),
            resources: resources.collect(),
            paths: paths.collect(),
        }
    }

    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.subjects.iter().any(|s| s.matches(user))
            && if info.is_resource {
                self.resources.iter().any(|r| r.matches(info))
            } else {
                self.paths.iter().any(|r| r.matches(info))
            }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = self.resources.iter().any(|wanted| {
            wanted == "*"
                || match wanted.split_once('/') {
                    Some((r, s)) => r == info.resource && s == info.subresource,
                    None => *wanted == info.resource && info.subresource.is_empty(),
                }
        });
        let scope = if info.namespace.is_empty() {
            self.cluster_scope
        } else {
            has(&self.namespaces, &info.namespace)
        };
        resource && scope && has(&self.verbs, &info.verb) && has(&self.groups, &info.group)
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let path = self.paths.iter().any(|wanted| match wanted.strip_suffix('*') {
            Some(prefix) => info.path.starts_with(prefix),
            None => *wanted == info.path,
        });
        path && has(&self.verbs, &info.verb)
    }
}

impl Matcher {
    /// The rules of a FlowSchema.
    pub fn parse(schema: &Value) -> Matcher {
        let by = match str_at(schema, &["spec", "distinguisherMethod", "type"]) {
            "ByUser" => By::User,
            "ByNamespace" => By::Namespace,
            _ => By::Nothing,
        };
        Matcher { rules: list_at(schema, &["spec", "rules"]).iter().map(Rule::parse).collect(), by }
    }

    /// Whether a request belongs to the schema.
    pub fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.rules.iter().any(|r| r.matches(user, info))
    }

    /// The flow that a request of the schema belongs to.
    pub fn distinguisher<'a>(&self, user: &'a UserInfo, info: &'a RequestInfo) -> &'a str {
        match self.by {
            By::Nothing => "",
            By::User => &user.name,
            By::Namespace => &info.namespace,
        }
    }
}

/// A flow's number, from which its queues follow.
pub fn flow_hash(schema: &str, distinguisher: &str) -> u64 {
    let digest = Sha256::new().chain_update(schema).chain_update([0]).chain_update(distinguisher).finalize();
    digest.iter().take(8).rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Shuffle sharding: `hand` different ones of `deck` queues, each hand as likely as any other for a random hash.
/// (<https://kubernetes.io/docs/concepts/cluster-administration/flow-control/>)
pub fn deal(mut hash: u64, deck: usize, hand: usize) -> Vec<usize> {
    let mut cards: Vec<usize> = Vec::with_capacity(hand);
    for i in 0..hand.min(deck) {
        let left = (deck - i) as u64;
        let mut card = (hash % left) as usize;
        hash /= left;
        // Of the cards that are left, the one at this place: those already dealt are passed over.
        let mut dealt = cards.clone();
        dealt.sort_unstable();
        for taken in dealt {
            if card >= taken {
                card += 1;
            }
        }
        cards.push(card);
    }
    cards
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pilothouse_apimachinery::json::json;

    use super::*;
    use crate::request::RequestContext;

    fn user(name: &str, groups: &[&str]) -> UserInfo {
        UserInfo {
            name: name.into(),
            groups: groups.iter().map(ToString::to_string).collect(),
            ..UserInfo::default()
        }
    }

    fn info(uri: &str) -> RequestInfo {
        RequestContext::for_test("GET", uri).info
    }

    fn schema(subject: Value, rule: Value) -> Matcher {
        let key = if rule.get("nonResourceURLs").is_some() { "nonResourceRules" } else { "resourceRules" };
        Matcher::parse(&json!({"spec": {"distinguisherMethod": {"type": "ByNamespace"},
            "rules": [{"subjects": [subject], key: [rule]}]}}))
    }

    #[test]
    fn rules_match_as_rbacs_do() {
        let all = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true});
        let jane = json!({"kind": "User", "user": {"name": "jane"}});
        let m = schema(jane.clone(), all.clone());
        assert!(m.matches(&user("jane", &[]), &info("/api/v1/nodes")));
        assert!(!m.matches(&user("joe", &[]), &info("/api/v1/nodes")));
        assert!(!m.matches(&user("jane", &[]), &info("/healthz")));
        let account =
            json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": "*"}});
        let m = schema(account, all.clone());
        assert!(m.matches(&user("system:serviceaccount:kube-system:x", &[]), &info("/api/v1/nodes")));
        assert!(!m.matches(&user("system:serviceaccount:default:x", &[]), &info("/api/v1/nodes")));
        let group = json!({"kind": "Group", "group": {"name": "g"}});
        let some = json!({"verbs": ["list"], "apiGroups": [""], "resources": ["pods", "nodes/status"], "namespaces": ["a"]});
        let m = schema(group.clone(), some);
        let u = user("u", &["g"]);
        assert!(m.matches(&u, &info("/api/v1/namespaces/a/pods")));
        for other in [
            "/api/v1/pods",
            "/api/v1/namespaces/b/pods",
            "/api/v1/namespaces/a/pods/x",
            "/apis/apps/v1/namespaces/a/pods",
        ] {
            assert!(!m.matches(&u, &info(other)), "{other}");
        }
        assert_eq!(m.distinguisher(&u, &info("/api/v1/namespaces/a/pods")), "a");
        let m = schema(group, json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/apis/*"]}));
        assert!(m.matches(&u, &info("/healthz")) && m.matches(&u, &info("/apis/apps")));
        assert!(!m.matches(&u, &info("/livez")));
    }

    #[test]
    fn hands_are_dealt_evenly() {
        assert_eq!(deal(12345, 8, 3), deal(12345, 8, 3));
        let mut seen: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
        for hash in 0..(5 * 4 * 3) as u64 {
            let mut hand = deal(hash, 5, 3);
            hand.sort_unstable();
            let whole = hand.len();
            hand.dedup();
            assert_eq!((hand.len(), whole), (3, 3));
            assert!(hand.iter().all(|c| *c < 5));
            *seen.entry(hand).or_default() += 1;
        }
        // Ten hands, each in six orders.
        assert!(seen.len() == 10 && seen.values().all(|n| *n == 6), "{seen:?}");
        assert_eq!(deal(7, 2, 9).len(), 2);
        assert_ne!(flow_hash("a", "b"), flow_hash("ab", ""));
    }
}
