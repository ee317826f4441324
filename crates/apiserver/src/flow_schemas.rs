//! What follows from FlowSchemas and PriorityLevelConfigurations: the server's own queues, and the condition `Dangling`
//! of schemas, which says whether the priority level that one names exists.

use std::sync::Arc;

use pilothouse_apimachinery::go;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_component_base::signals::Stop;

use crate::fairness::{self, Fairness};
use crate::handlers::lifecycle::now;
use crate::json::{ensure_list, list_at, str_at};
use crate::state::ServerState;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";

/// The condition that a FlowSchema should have; none where it has it.
fn condition(schema: &Value, level_exists: bool) -> Option<Value> {
    let level = go::quote(str_at(schema, &["spec", "priorityLevelConfiguration", "name"]));
    let (status, reason, what) = if level_exists {
        ("False", "Found", "and it exists")
    } else {
        ("True", "NotFound", "but there is no such object")
    };
    let message =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level} {what}");
    let had = list_at(schema, &["status", "conditions"]).iter().find(|c| c["type"] == "Dangling");
    let same = had
        .is_some_and(|c| c["status"] == status && c["reason"] == reason && c["message"] == message.as_str());
    let since = had
        .filter(|c| c["status"] == status)
        .map_or_else(|| json!(now()), |c| c["lastTransitionTime"].clone());
    (!same).then(|| {
        json!({"type": "Dangling", "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
    })
}

async fn reconcile(state: &ServerState) -> Result<(), Status> {
    for schema in state.objects.list(GROUP, SCHEMAS, "") {
        let level = str_at(&schema, &["spec", "priorityLevelConfiguration", "name"]);
        let exists = state.objects.get(GROUP, LEVELS, "", level).is_some();
        let Some(wanted) = condition(&schema, exists) else { continue };
        let change = move |o: &mut Value| {
            let conditions = ensure_list(o, &["status", "conditions"]);
            conditions.retain(|c| c["type"] != "Dangling");
            conditions.push(wanted.clone());
            Ok(())
        };
        let name = str_at(&schema, &["metadata", "name"]);
        match state.objects.update(GROUP, SCHEMAS, "status", "", name, &change).await {
            Err(e) if e.code != 404 => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Keeps queues and conditions, until `stop`.
pub async fn run(state: Arc<ServerState>, stop: Stop) {
    let (Some(schemas), Some(levels)) =
        (state.registry.hub(GROUP, SCHEMAS), state.registry.hub(GROUP, LEVELS))
    else {
        return;
    };
    let mut schemas = schemas.storage.objects.subscribe();
    let mut levels = levels.storage.objects.subscribe();
    let mut lend = tokio::time::interval(fairness::LEND);
    loop {
        schemas.borrow_and_update();
        levels.borrow_and_update();
        if let Some(fairness) = &state.fairness {
            fairness
                .configure(&state.objects.list(GROUP, LEVELS, ""), &state.objects.list(GROUP, SCHEMAS, ""));
        }
        let failed =
            reconcile(&state).await.inspect_err(|e| tracing::warn!("flow schemas: {}", e.message)).is_err();
        let again = tokio::time::sleep(std::time::Duration::from_secs(1));
        tokio::pin!(again);
        loop {
            let outcome = tokio::select! {
                () = stop.wait() => return,
                () = &mut again, if failed => Ok(()),
                outcome = schemas.changed() => outcome,
                outcome = levels.changed() => outcome,
                _ = lend.tick() => {
                    state.fairness.iter().for_each(Fairness::lend);
                    continue;
                }
            };
            if outcome.is_err() {
                return;
            }
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_change_only_when_they_must() {
        let mut schema = json!({"spec": {"priorityLevelConfiguration": {"name": "x"}}});
        let first = condition(&schema, true).unwrap();
        assert_eq!(
            first["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"x\" and it exists"
        );
        schema["status"] = json!({"conditions": [first]});
        assert!(condition(&schema, true).is_none());
        assert_eq!(condition(&schema, false).unwrap()["status"], "True");
    }
}
