//! Who may do what: the modes of `--authorization-mode`, asked in the order given.

pub mod abac;
pub mod node;
pub mod rbac;
pub mod webhook;

use std::sync::Arc;

use async_trait::async_trait;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;

use self::node::NodeAuthorizer;
use self::rbac::Rbac;
use crate::config::Config;
use crate::request::{Attributes, Authorizer, Decision, Objects, UserInfo};

enum Mode {
    Rbac(Arc<Rbac>),
    Node(NodeAuthorizer),
    Abac(Vec<abac::Spec>),
    Webhook(webhook::Webhook),
    AlwaysAllow,
    AlwaysDeny,
}

/// All modes, in order.
pub struct Authorization {
    modes: Vec<Mode>,
}

/// The authorizer that the flags ask for.
pub fn build(config: &Arc<Config>, objects: &Arc<dyn Objects>) -> Result<Arc<dyn Authorizer>, String> {
    Ok(Arc::new(Authorization::new(config, objects)?))
}

impl Authorization {
    /// The authorizer that the flags ask for. Errors name the flag or file.
    pub fn new(config: &Config, objects: &Arc<dyn Objects>) -> Result<Authorization, String> {
        let mut modes = Vec::new();
        for mode in &config.authorization_modes {
            modes.push(match mode.as_str() {
                "RBAC" => Mode::Rbac(Arc::new(Rbac::new(objects.clone()))),
                "Node" => {
                    Mode::Node(NodeAuthorizer::new(objects.clone(), rbac::policy::node_rules(config.release)))
                }
                "ABAC" => {
                    let file = config.authorization_policy_file.as_deref();
                    Mode::Abac(abac::load(file.ok_or("--authorization-policy-file is not given")?)?)
                }
                "Webhook" => Mode::Webhook(webhook::Webhook::new(config)?),
                "AlwaysAllow" => Mode::AlwaysAllow,
                "AlwaysDeny" => Mode::AlwaysDeny,
                other => return Err(format!("unknown authorization mode {other} specified")),
            });
        }
        Ok(Authorization { modes })
    }
}

/// Members of `system:masters` may do everything, whatever the modes.
fn is_master(user: &UserInfo) -> bool {
    user.groups.iter().any(|g| g == "system:masters")
}

#[async_trait]
impl Authorizer for Authorization {
    async fn authorize(&self, attributes: Attributes<'_>) -> Decision {
        if is_master(attributes.user) {
            return Decision::Allow;
        }
        let mut reasons: Vec<String> = Vec::new();
        for mode in &self.modes {
            let decision = match mode {
                Mode::Rbac(rbac) => rbac.authorize_latest(attributes).await,
                Mode::Node(node) => node.authorize(attributes),
                Mode::Abac(policies) => abac::authorize(policies, attributes),
                Mode::Webhook(webhook) => webhook.authorize(attributes).await,
                Mode::AlwaysAllow => Decision::Allow,
                Mode::AlwaysDeny => Decision::NoOpinion("Everything is forbidden.".into()),
            };
            match decision {
                Decision::NoOpinion(why) if why.is_empty() => {}
                Decision::NoOpinion(why) => reasons.push(why),
                Decision::Deny(why) => {
                    reasons.push(why);
                    return Decision::Deny(reasons.join("\n"));
                }
                Decision::Allow => return Decision::Allow,
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }

    async fn explain(&self, attributes: Attributes<'_>) -> String {
        if is_master(attributes.user) {
            return String::new();
        }
        for mode in &self.modes {
            match mode {
                Mode::Rbac(rbac) => {
                    if let Some(why) = rbac::explain(&rbac.index(), attributes) {
                        return why;
                    }
                }
                Mode::Node(node) if node.authorize(attributes) == Decision::Allow => return String::new(),
                Mode::Abac(policies) if abac::authorize(policies, attributes) == Decision::Allow => {
                    return String::new();
                }
                Mode::Webhook(webhook) => {
                    let (decision, why) = webhook.decide(attributes).await;
                    if decision == Decision::Allow {
                        return why;
                    }
                }
                Mode::AlwaysAllow => return String::new(),
                _ => {}
            }
        }
        String::new()
    }

    async fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Value>, Vec<Value>, bool) {
        let (mut resources, mut urls, mut complete) = (Vec::new(), Vec::new(), true);
        let star = || json!(["*"]);
        for mode in &self.modes {
            match mode {
                Mode::Rbac(rbac) => {
                    for rule in rbac.rules_of(user, namespace) {
                        let target = if rule.resources.is_empty() { &mut urls } else { &mut resources };
                        target.push(rule.to_value());
                    }
                }
                Mode::AlwaysAllow => {
                    resources.push(json!({"verbs": star(), "apiGroups": star(), "resources": star()}));
                    urls.push(json!({"verbs": star(), "nonResourceURLs": star()}));
                }
                Mode::Node(_) => complete &= node::node_identity(user).is_none(),
                Mode::Webhook(_) | Mode::Abac(_) => complete = false,
                Mode::AlwaysDeny => {}
            }
        }
        (resources, urls, complete)
    }
}

/// What was not allowed, as v1.20 says it.
pub fn forbidden_message(attributes: Attributes<'_>) -> String {
    let (user, r) = (&attributes.user.name, attributes.request);
    if !r.is_resource {
        return format!("User {user:?} cannot {} path {:?}", r.verb, r.path);
    }
    let resource = match r.subresource.as_str() {
        "" => r.resource.clone(),
        sub => format!("{}/{sub}", r.resource),
    };
    let (verb, group) = (&r.verb, &r.group);
    let scope = match r.namespace.as_str() {
        "" => "at the cluster scope".to_string(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    format!("User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}")
}

/// 403 for a request that was not allowed; `reason` is what the authorizer said.
pub fn forbidden(attributes: Attributes<'_>, reason: &str) -> Status {
    let r = attributes.request;
    let mut why = forbidden_message(attributes);
    if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    Status::forbidden(&r.group, &r.resource, &r.name, &why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestInfo;

    #[test]
    fn texts_of_403() {
        let user = UserInfo { name: "u".into(), ..Default::default() };
        let mut request = RequestInfo {
            is_resource: true,
            verb: "get".into(),
            resource: "pods".into(),
            namespace: "n".into(),
            name: "x".into(),
            ..Default::default()
        };
        let text =
            |r: &RequestInfo, reason| forbidden(Attributes { user: &user, request: r }, reason).message;
        assert_eq!(
            text(&request, ""),
            r#"pods "x" is forbidden: User "u" cannot get resource "pods" in API group "" in the namespace "n""#
        );
        request.subresource = "log".into();
        request.namespace.clear();
        assert_eq!(
            text(&request, "why"),
            r#"pods "x" is forbidden: User "u" cannot get resource "pods/log" in API group "" at the cluster scope: why"#
        );
        let path = RequestInfo { verb: "get".into(), path: "/metrics".into(), ..Default::default() };
        assert_eq!(text(&path, ""), r#"forbidden: User "u" cannot get path "/metrics""#);
    }
}
