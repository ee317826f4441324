//! Priority levels and flow schemas.

use std::sync::LazyLock;

use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::time::Timestamp;
use pilothouse_apimachinery::version::Release;
use serde::Deserialize;

use crate::json::{ensure_list, list_at, str_at};
use crate::request::Objects;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Defaults {
    priority_levels: Vec<Level>,
    flow_schemas: Vec<Schema>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Level {
    name: String,
    /// None: requests of this level are never held up.
    shares: Option<i64>,
    /// None: requests that are too many are refused.
    queues: Option<i64>,
    #[serde(default)]
    hand_size: i64,
    #[serde(default)]
    queue_length_limit: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Schema {
    name: String,
    level: String,
    precedence: i64,
    by: Option<String>,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    /// Namespaces all of whose service accounts are meant.
    #[serde(default)]
    accounts: Vec<String>,
    /// Only about the objects with which leaders are elected, in this namespace.
    elections: Option<String>,
}

static DEFAULTS: LazyLock<Defaults> = LazyLock::new(|| {
    serde_yaml_ng::from_str(include_str!("flow_control.yaml"))
        .expect("the file is part of the program and has a test")
});

impl Level {
    fn object(&self, release: Release) -> Value {
        let newest = release > Release::V1_20;
        let spec = match self.shares {
            None if newest => {
                json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}})
            }
            None => json!({"type": "Exempt"}),
            Some(shares) => {
                let response = match self.queues {
                    None => json!({"type": "Reject"}),
                    Some(queues) => json!({"type": "Queue", "queuing": {
                        "queues": queues, "handSize": self.hand_size, "queueLengthLimit": self.queue_length_limit}}),
                };
                let field = if newest { "nominalConcurrencyShares" } else { "assuredConcurrencyShares" };
                json!({"type": "Limited", "limited": {field: shares, "limitResponse": response}})
            }
        };
        json!({"metadata": {"name": self.name}, "spec": spec})
    }
}

impl Schema {
    fn object(&self) -> Value {
        let star = json!(["*"]);
        let mut subjects: Vec<Value> =
            self.users.iter().map(|n| json!({"kind": "User", "user": {"name": n}})).collect();
        subjects.extend(self.groups.iter().map(|n| json!({"kind": "Group", "group": {"name": n}})));
        subjects.extend(
            self.accounts.iter().map(
                |ns| json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": ns, "name": "*"}}),
            ),
        );
        let rule = match &self.elections {
            Some(namespace) => {
                let verbs = json!(["get", "create", "update"]);
                json!({"subjects": subjects, "resourceRules": [
                    {"apiGroups": [""], "namespaces": [namespace], "resources": ["endpoints", "configmaps"], "verbs": verbs},
                    {"apiGroups": ["coordination.k8s.io"], "namespaces": star, "resources": ["leases"], "verbs": verbs},
                ]})
            }
            None => json!({
                "subjects": subjects,
                "resourceRules": [{"apiGroups": star, "clusterScope": true, "namespaces": star, "resources": star, "verbs": star}],
                "nonResourceRules": [{"nonResourceURLs": star, "verbs": star}],
            }),
        };
        let mut spec = json!({
            "priorityLevelConfiguration": {"name": self.level},
            "matchingPrecedence": self.precedence,
            "rules": [rule],
        });
        if let Some(by) = &self.by {
            spec["distinguisherMethod"] = json!({"type": by});
        }
        json!({"metadata": {"name": self.name}, "spec": spec})
    }
}

/// Says of a flow schema that its level exists.
fn note_level(schema: &mut Value, level: &str, now: &str) {
    let conditions = ensure_list(schema, &["status", "conditions"]);
    if conditions.iter().any(|c| str_at(c, &["type"]) == "Dangling") {
        return;
    }
    conditions.push(json!({
        "type": "Dangling", "status": "False", "reason": "Found", "lastTransitionTime": now,
        "message": format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} and it exists"),
    }));
}

/// Creates what is missing.
pub async fn ensure(objects: &dyn Objects, release: Release) -> Result<(), Status> {
    for level in &DEFAULTS.priority_levels {
        super::ensure(objects, GROUP, "prioritylevelconfigurations", level.object(release)).await?;
    }
    for schema in &DEFAULTS.flow_schemas {
        super::ensure(objects, GROUP, "flowschemas", schema.object()).await?;
        let stored = objects.get(GROUP, "flowschemas", "", &schema.name);
        if stored.is_none_or(|s| !list_at(&s, &["status", "conditions"]).is_empty()) {
            continue;
        }
        let now = Timestamp::now().rfc3339();
        let change = |s: &mut Value| {
            note_level(s, &schema.level, &now);
            Ok(())
        };
        objects.update(GROUP, "flowschemas", "status", "", &schema.name, &change).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_parses_and_names_what_exists() {
        for s in &DEFAULTS.flow_schemas {
            assert!(DEFAULTS.priority_levels.iter().any(|l| l.name == s.level), "{}", s.name);
        }
        assert_eq!(DEFAULTS.flow_schemas.len(), 10);
        assert_eq!(
            DEFAULTS.priority_levels[2].object(Release::V1_20)["spec"]["limited"]["assuredConcurrencyShares"],
            30
        );
    }
}
