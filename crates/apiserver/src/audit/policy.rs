//! Which requests are recorded, and how much of them
//! (<https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/#audit-policy>).

use std::path::Path;

use serde::Deserialize;

use crate::request::{AuditLevel, AuditStage, RequestInfo, UserInfo};

/// An audit policy: the first rule that fits a request decides.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    api_version: String,
    kind: String,
    rules: Vec<Rule>,
    omit_stages: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    level: String,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What the policy says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// How much is recorded.
    pub level: AuditLevel,
    /// Which stages are not.
    omitted: [bool; 3],
}

impl Verdict {
    /// Whether a stage is recorded.
    pub fn records(self, stage: AuditStage) -> bool {
        self.level != AuditLevel::None && !self.omitted[stage as usize]
    }
}

/// A level's name.
pub fn level_name(level: AuditLevel) -> &'static str {
    match level {
        AuditLevel::None => "None",
        AuditLevel::Metadata => "Metadata",
        AuditLevel::Request => "Request",
        AuditLevel::RequestResponse => "RequestResponse",
    }
}

/// A stage's name.
pub fn stage_name(stage: AuditStage) -> &'static str {
    match stage {
        AuditStage::RequestReceived => "RequestReceived",
        AuditStage::ResponseStarted => "ResponseStarted",
        AuditStage::ResponseComplete => "ResponseComplete",
    }
}

fn level(name: &str) -> Option<AuditLevel> {
    [AuditLevel::None, AuditLevel::Metadata, AuditLevel::Request, AuditLevel::RequestResponse]
        .into_iter()
        .find(|l| level_name(*l) == name)
}

fn any_or_empty(list: &[String], fits: impl Fn(&String) -> bool) -> bool {
    list.is_empty() || list.iter().any(fits)
}

impl GroupResources {
    fn fits(&self, r: &RequestInfo) -> bool {
        if self.group != r.group || !any_or_empty(&self.resource_names, |n| *n == r.name) {
            return false;
        }
        let whole = match r.subresource.as_str() {
            "" => r.resource.clone(),
            sub => format!("{}/{sub}", r.resource),
        };
        any_or_empty(&self.resources, |pattern| {
            pattern == "*"
                || *pattern == whole
                || pattern.strip_suffix("/*") == Some(r.resource.as_str())
                || (!r.subresource.is_empty() && pattern.strip_prefix("*/") == Some(r.subresource.as_str()))
        })
    }
}

impl Rule {
    fn fits(&self, user: &UserInfo, r: &RequestInfo) -> bool {
        if !any_or_empty(&self.users, |u| *u == user.name)
            || !any_or_empty(&self.user_groups, |g| user.groups.contains(g))
            || !any_or_empty(&self.verbs, |v| *v == r.verb)
        {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return r.is_resource
                && any_or_empty(&self.namespaces, |n| *n == r.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|g| g.fits(r)));
        }
        if !self.non_resource_urls.is_empty() {
            return !r.is_resource
                && self.non_resource_urls.iter().any(|u| {
                    u == "*" || *u == r.path || u.strip_suffix('*').is_some_and(|p| r.path.starts_with(p))
                });
        }
        true
    }
}

impl Policy {
    /// Reads a policy file. Errors name it.
    pub fn load(path: &Path) -> Result<Policy, String> {
        let name = path.display();
        let text =
            std::fs::read_to_string(path).map_err(|e| format!("failed to read file path {name:?}: {e}"))?;
        Self::parse(&text).map_err(|e| format!("loading audit policy file: {name}: {e}"))
    }

    /// Parses a policy.
    pub fn parse(text: &str) -> Result<Policy, String> {
        let policy: Policy = serde_yaml_ng::from_str(text).map_err(|e| format!("failed decoding: {e}"))?;
        let known = ["audit.k8s.io/v1", "audit.k8s.io/v1beta1", "audit.k8s.io/v1alpha1"];
        if policy.kind != "Policy" || !known.contains(&policy.api_version.as_str()) {
            return Err(format!(
                "unknown group version field {:?} of kind {:?} in policy",
                policy.api_version, policy.kind
            ));
        }
        if policy.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".into());
        }
        let stages = ["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"];
        for (i, rule) in policy.rules.iter().enumerate() {
            if level(&rule.level).is_none() {
                return Err(format!(
                    "rules[{i}].level: Unsupported value: {:?}: supported values: \"None\", \"Metadata\", \"Request\", \"RequestResponse\"",
                    rule.level
                ));
            }
            if !rule.non_resource_urls.is_empty()
                && (!rule.resources.is_empty() || !rule.namespaces.is_empty())
            {
                return Err(format!(
                    "rules[{i}].nonResourceURLs: Invalid value: {:?}: rules cannot apply to both regular resources and non-resource URLs",
                    rule.non_resource_urls
                ));
            }
        }
        let all = policy.rules.iter().flat_map(|r| &r.omit_stages).chain(&policy.omit_stages);
        if let Some(bad) = all.into_iter().find(|s| !stages.contains(&s.as_str())) {
            return Err(format!(
                "omitStages: Invalid value: {bad:?}: allowed stages are {}",
                stages.join(",")
            ));
        }
        Ok(policy)
    }

    /// What is to be recorded of a request.
    pub fn verdict(&self, user: &UserInfo, request: &RequestInfo) -> Verdict {
        let Some(rule) = self.rules.iter().find(|r| r.fits(user, request)) else {
            return Verdict { level: AuditLevel::None, omitted: [false; 3] };
        };
        let omitted = |stage| {
            let name = stage_name(stage);
            rule.omit_stages.iter().chain(&self.omit_stages).any(|s| s == name)
        };
        Verdict {
            level: level(&rule.level).unwrap_or(AuditLevel::None),
            omitted: [
                omitted(AuditStage::RequestReceived),
                omitted(AuditStage::ResponseStarted),
                omitted(AuditStage::ResponseComplete),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_decides() {
        let p = Policy::parse(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
             - {level: None, users: ['system:kube-proxy'], verbs: [watch], resources: [{group: '', resources: [endpoints]}]}\n\
             - {level: None, nonResourceURLs: ['/healthz*']}\n\
             - {level: RequestResponse, resources: [{group: '', resources: [pods/*]}], omitStages: [ResponseStarted]}\n\
             - {level: Metadata}\n",
        )
        .unwrap();
        let user = |n: &str| UserInfo { name: n.into(), ..Default::default() };
        let r = |verb: &str, resource: &str, sub: &str| RequestInfo {
            is_resource: true,
            verb: verb.into(),
            resource: resource.into(),
            subresource: sub.into(),
            ..Default::default()
        };
        assert_eq!(
            p.verdict(&user("system:kube-proxy"), &r("watch", "endpoints", "")).level,
            AuditLevel::None
        );
        assert_eq!(p.verdict(&user("x"), &r("watch", "endpoints", "")).level, AuditLevel::Metadata);
        let v = p.verdict(&user("x"), &r("get", "pods", "log"));
        assert_eq!(v.level, AuditLevel::RequestResponse);
        assert!(v.records(AuditStage::ResponseComplete) && !v.records(AuditStage::ResponseStarted));
        let health = RequestInfo { verb: "get".into(), path: "/healthz/etcd".into(), ..Default::default() };
        assert_eq!(p.verdict(&user("x"), &health).level, AuditLevel::None);
    }

    #[test]
    fn refuses_bad_policies() {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        for (text, why) in [
            (head.to_string(), "0 rules"),
            (format!("{head}rules: [{{level: Loud}}]"), "rules[0].level"),
            ("kind: Policy\nrules: [{level: None}]".to_string(), "group version"),
        ] {
            assert!(Policy::parse(&text).unwrap_err().contains(why), "{text}");
        }
    }
}
