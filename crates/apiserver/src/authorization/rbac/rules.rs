//! Rules of RBAC: what they allow, whether one set covers another, and how they are shown.

use std::collections::BTreeMap;

use pilothouse_apimachinery::json::{Value, json};

use crate::json::texts;
use crate::request::RequestInfo;

/// A `PolicyRule`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// Verbs.
    pub verbs: Vec<String>,
    /// API groups.
    pub groups: Vec<String>,
    /// Resources, `pods/log` for a subresource.
    pub resources: Vec<String>,
    /// Names; empty for all.
    pub names: Vec<String>,
    /// Paths that are no resources.
    pub urls: Vec<String>,
}

fn has(list: &[String], what: &str) -> bool {
    list.iter().any(|x| x == what)
}

fn has_or_all(list: &[String], what: &str) -> bool {
    list.iter().any(|x| x == "*" || x == what)
}

impl Rule {
    /// A rule from its JSON form.
    pub fn from_value(v: &Value) -> Rule {
        Rule {
            verbs: texts(v, &["verbs"]),
            groups: texts(v, &["apiGroups"]),
            resources: texts(v, &["resources"]),
            names: texts(v, &["resourceNames"]),
            urls: texts(v, &["nonResourceURLs"]),
        }
    }

    /// The rules of a role.
    pub fn of_role(role: &Value) -> Vec<Rule> {
        crate::json::list_at(role, &["rules"]).iter().map(Rule::from_value).collect()
    }

    /// The JSON form; fields that are empty are left out, but for `verbs`.
    pub fn to_value(&self) -> Value {
        let mut v = json!({"verbs": self.verbs});
        for (name, list) in [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ] {
            if !list.is_empty() {
                v[name] = json!(list);
            }
        }
        v
    }

    /// Whether the rule allows the request.
    pub fn allows(&self, request: &RequestInfo) -> bool {
        if !has_or_all(&self.verbs, &request.verb) {
            return false;
        }
        if !request.is_resource {
            return self.urls.iter().any(|u| url_covers(u, &request.path));
        }
        has_or_all(&self.groups, &request.group)
            && self.resources.iter().any(|r| resource_matches(r, &request.resource, &request.subresource))
            && (self.names.is_empty() || has(&self.names, &request.name))
    }

    /// The rule cut into rules of one verb, group, resource and name (or one verb and path).
    fn breakdown(&self) -> Vec<Rule> {
        let mut out = Vec::new();
        let one = |s: &str| vec![s.to_string()];
        for group in &self.groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let rule = Rule {
                        verbs: one(verb),
                        groups: one(group),
                        resources: one(resource),
                        ..Rule::default()
                    };
                    if self.names.is_empty() {
                        out.push(rule);
                        continue;
                    }
                    out.extend(self.names.iter().map(|n| Rule { names: one(n), ..rule.clone() }));
                }
            }
        }
        for url in &self.urls {
            out.extend(self.verbs.iter().map(|v| Rule { verbs: one(v), urls: one(url), ..Rule::default() }));
        }
        out
    }

    /// Whether this rule allows all that `other`, a rule of single values, allows.
    fn covers(&self, other: &Rule) -> bool {
        let all = |mine: &[String], theirs: &[String]| has(mine, "*") || theirs.iter().all(|t| has(mine, t));
        let resource = |theirs: &String| match theirs.split_once('/') {
            Some((_, sub)) => self.resources.iter().any(|m| m == theirs || m.strip_prefix("*/") == Some(sub)),
            None => has(&self.resources, theirs),
        };
        all(&self.verbs, &other.verbs)
            && all(&self.groups, &other.groups)
            && (has(&self.resources, "*") || other.resources.iter().all(resource))
            && (self.names.is_empty()
                || (!other.names.is_empty() && other.names.iter().all(|n| has(&self.names, n))))
            && other.urls.iter().all(|u| self.urls.iter().any(|m| url_covers(m, u)))
    }
}

/// Whether a rule's resource is the one requested.
fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((r, s)) => !subresource.is_empty() && s == subresource && (r == resource || r == "*"),
    }
}

/// Whether a path pattern (`*` only at the end) covers a path.
fn url_covers(pattern: &str, path: &str) -> bool {
    pattern == "*"
        || pattern == path
        || (pattern.ends_with('*') && path.starts_with(pattern.trim_end_matches('*')))
}

/// What of `wanted` no rule of `held` covers, in single rules; empty where all is covered.
pub fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted.iter().flat_map(Rule::breakdown).filter(|w| !held.iter().any(|h| h.covers(w))).collect()
}

/// Puts single rules about the same group, resource and name together, with all their verbs.
pub fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    let mut seen: BTreeMap<(String, String, Vec<String>), usize> = BTreeMap::new();
    for rule in rules {
        let [group] = rule.groups.as_slice() else {
            out.push(rule);
            continue;
        };
        let key = (group.clone(), rule.resources.join(","), rule.names.clone());
        match seen.get(&key) {
            Some(&i) => {
                for v in rule.verbs {
                    if !has(&out[i].verbs, &v) {
                        out[i].verbs.push(v);
                    }
                }
            }
            None => {
                seen.insert(key, out.len());
                out.push(rule);
            }
        }
    }
    out
}

/// A list as Go's `%q` prints it: `["a" "b"]`.
pub fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(" "))
}

/// `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
pub fn show(rule: &Rule) -> String {
    let parts: Vec<String> = [
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.urls),
        ("ResourceNames", &rule.names),
        ("Verbs", &rule.verbs),
    ]
    .into_iter()
    .filter(|(_, l)| !l.is_empty())
    .map(|(n, l)| format!("{n}:{}", quoted(l)))
    .collect();
    format!("{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let l = |s: &str| s.split(' ').map(String::from).collect::<Vec<_>>();
        Rule {
            verbs: l(verbs),
            groups: groups.split(',').map(String::from).collect(),
            resources: l(resources),
            names: if names.is_empty() { vec![] } else { l(names) },
            urls: vec![],
        }
    }

    fn request(verb: &str, resource: &str, name: &str) -> RequestInfo {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        RequestInfo {
            is_resource: true,
            verb: verb.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..Default::default()
        }
    }

    #[test]
    fn allows_what_it_says() {
        let r = rule("get list", "", "pods */scale", "");
        assert!(r.allows(&request("get", "pods", "x")));
        assert!(r.allows(&request("get", "deployments/scale", "x")));
        assert!(!r.allows(&request("get", "pods/log", "x")));
        assert!(!r.allows(&request("delete", "pods", "x")));
        assert!(rule("*", "*", "*", "").allows(&request("get", "pods/log", "x")));
        let named = rule("get", "", "configmaps", "one");
        assert!(named.allows(&request("get", "configmaps", "one")));
        assert!(!named.allows(&request("list", "configmaps", "")));
        let urls = Rule { verbs: vec!["get".into()], urls: vec!["/api/*".into()], ..Rule::default() };
        let path = |p: &str| RequestInfo { verb: "get".into(), path: p.into(), ..Default::default() };
        assert!(urls.allows(&path("/api/v1")));
        assert!(!urls.allows(&path("/apis")));
    }

    #[test]
    fn finds_what_is_missing() {
        let held = [rule("get list", "", "pods */log", "")];
        let want = [
            rule("get list watch", "", "pods", ""),
            rule("get", "", "pods/log", "a"),
            rule("get", ",apps", "x", "n"),
        ];
        let shown: Vec<String> = compact(missing(&held, &want)).iter().map(show).collect();
        assert_eq!(
            shown,
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["watch"]}"#,
                r#"{APIGroups:[""], Resources:["x"], ResourceNames:["n"], Verbs:["get"]}"#,
                r#"{APIGroups:["apps"], Resources:["x"], ResourceNames:["n"], Verbs:["get"]}"#,
            ]
        );
        let named = [rule("get", "", "pods", "a")];
        assert!(missing(&named, &[rule("get", "", "pods", "a")]).is_empty());
        assert_eq!(missing(&named, &[rule("get", "", "pods", "")]).len(), 1);
    }

    #[test]
    fn a_star_is_covered_by_a_star_only() {
        let want = [rule("*", "*", "*", "")];
        assert_eq!(missing(&[rule("get list", "", "pods", "")], &want), want);
        assert!(missing(&[rule("*", "*", "*", "")], &want).is_empty());
    }
}
