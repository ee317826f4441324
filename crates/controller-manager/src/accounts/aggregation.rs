//! Cluster roles that are put together from others by label
//! (<https://kubernetes.io/docs/reference/access-authn-authz/rbac/#aggregated-clusterroles>).

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::Api;
use kube::api::PostParams;
use pilothouse_client::{Queue, key_of};

use crate::context::Context;
use crate::control::selects;

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let roles = context.informer::<ClusterRole>();
    let queue: Queue<String> = Queue::new();
    let (q, all) = (queue.clone(), roles.clone());
    roles.on_change(move |_| {
        // A change of any role may concern every aggregated one; there are few.
        for role in all.list() {
            if role.aggregation_rule.is_some() {
                q.add(key_of(&*role));
            }
        }
    });
    let (client, stop) = (context.client.clone(), context.stop.clone());
    tokio::spawn(async move {
        roles.wait_synced().await;
        queue.run("clusterrole-aggregation", 1, stop, move |name| {
            let (client, roles) = (client.clone(), roles.clone());
            async move {
                let Some(role) = roles.get(&name) else { return Ok(None) };
                let wanted = aggregate(&role, &roles.list());
                if role.aggregation_rule.is_none() || role.rules.as_deref().unwrap_or_default() == wanted {
                    return Ok::<_, kube::Error>(None);
                }
                let mut role = (*role).clone();
                role.rules = Some(wanted);
                Api::<ClusterRole>::all(client).replace(&name, &PostParams::default(), &role).await?;
                Ok(None)
            }
        });
    });
    Ok(())
}

/// The rules of all roles that one selects, each rule once, roles in the order of their names.
fn aggregate(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    let selectors = role.aggregation_rule.iter().flat_map(|a| a.cluster_role_selectors.iter().flatten());
    for selector in selectors {
        for other in all {
            if other.metadata.name == role.metadata.name
                || !selects(Some(selector), other.metadata.labels.as_ref())
            {
                continue;
            }
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn takes_each_rule_once_and_never_its_own() {
        let role = |v| serde_json::from_value::<ClusterRole>(v).unwrap();
        let sum = role(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "sum", "labels": {"to": "sum"}},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "sum"}}]}}));
        let part = |name: &str, resource: &str| {
            Arc::new(role(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": name, "labels": {"to": "sum"}},
                "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]})))
        };
        let all = [part("a", "pods"), part("b", "pods"), part("c", "nodes"), Arc::new(sum.clone())];
        let resources: Vec<_> =
            aggregate(&sum, &all).into_iter().flat_map(|r| r.resources.unwrap()).collect();
        assert_eq!(resources, ["pods", "nodes"]);
    }
}
