//! The difference of two statuses, as a strategic merge patch: only what the kubelet changed is written, so that
//! conditions of others stay.

use k8s_openapi::api::core::v1::{NodeStatus, PodStatus};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Lists that are merged by a key; all others are replaced as a whole.
type Merged = [(&'static str, &'static str); 2];
const OF_PODS: Merged = [("conditions", "type"), ("podIPs", "ip")];
const OF_NODES: Merged = [("conditions", "type"), ("addresses", "type")];
/// Maps of a node's status, whose entries are merged.
const MAPS: [&str; 2] = ["capacity", "allocatable"];

fn object(s: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(s) {
        Ok(Value::Object(m)) => m,
        _ => Map::new(),
    }
}

/// The patch that turns `old` into `new` on the pod with that uid; `None` where they are the same.
pub fn status_patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let diff = diff_status(&OF_PODS, &object(old), &object(new));
    // The uid makes the server refuse the patch where another pod has taken the name.
    (!diff.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": diff}))
}

/// The patch that turns `old` into `new` on a node; `None` where they are the same.
pub fn node_status_patch(old: &NodeStatus, new: &NodeStatus) -> Option<Value> {
    let diff = diff_status(&OF_NODES, &object(old), &object(new));
    (!diff.is_empty()).then(|| json!({"status": diff}))
}

fn diff_status(merged: &Merged, old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let mut out = Map::new();
    for (key, value) in new {
        let before = old.get(key);
        if before == Some(value) {
            continue;
        }
        match (merged.iter().find(|(k, _)| k == key), before, value) {
            (Some((_, by)), before, Value::Array(items)) => {
                let before = before.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let (list, order) = diff_list(by, before, items);
                if !list.is_empty() {
                    out.insert(key.clone(), list.into());
                }
                out.insert(format!("$setElementOrder/{key}"), order.into());
            }
            (None, Some(Value::Object(before)), Value::Object(fields)) if MAPS.contains(&key.as_str()) => {
                let mut m: Map<String, Value> = fields
                    .iter()
                    .filter(|(k, v)| before.get(*k) != Some(v))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                m.extend(
                    before.keys().filter(|k| !fields.contains_key(*k)).map(|k| (k.clone(), Value::Null)),
                );
                out.insert(key.clone(), m.into());
            }
            _ => {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    for (key, before) in old.iter().filter(|(k, _)| !new.contains_key(*k)) {
        let by = merged.iter().find(|(k, _)| k == key).map(|(_, by)| *by);
        let value = match (by, before) {
            (Some(by), Value::Array(items)) => {
                items.iter().map(|i| json!({by: i[by], "$patch": "delete"})).collect::<Vec<_>>().into()
            }
            _ => Value::Null,
        };
        out.insert(key.clone(), value);
    }
    out
}

fn diff_list(by: &str, old: &[Value], new: &[Value]) -> (Vec<Value>, Vec<Value>) {
    let find = |list: &[Value], key: &Value| list.iter().find(|i| i[by] == *key).cloned();
    let mut out = Vec::new();
    for item in new {
        let Some(fields) = item.as_object() else { continue };
        let mut changed = match find(old, &item[by]) {
            Some(Value::Object(before)) => {
                let mut c: Map<String, Value> = fields
                    .iter()
                    .filter(|(k, v)| before.get(*k) != Some(v))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                for k in before.keys().filter(|k| !fields.contains_key(*k)) {
                    c.insert(k.clone(), Value::Null);
                }
                c
            }
            _ => fields.clone(),
        };
        if !changed.is_empty() {
            changed.insert(by.to_string(), item[by].clone());
            out.push(changed.into());
        }
    }
    for gone in old.iter().filter(|i| find(new, &i[by]).is_none()) {
        out.push(json!({by: gone[by], "$patch": "delete"}));
    }
    (out, new.iter().map(|i| json!({by: i[by]})).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(v: Value) -> PodStatus {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn only_differences_are_written() {
        let old = status(json!({"phase": "Pending", "message": "m", "podIPs": [{"ip": "1"}],
            "conditions": [{"type": "Ready", "status": "False", "reason": "r"}, {"type": "Other", "status": "True"}]}));
        let new = status(json!({"phase": "Running", "podIPs": [{"ip": "1"}], "podIP": "1",
            "conditions": [{"type": "Other", "status": "True"}, {"type": "Ready", "status": "True"}]}));
        let patch = status_patch("u", &old, &new).unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "message": null, "podIP": "1",
                "$setElementOrder/conditions": [{"type": "Other"}, {"type": "Ready"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null}]}})
        );
        assert_eq!(status_patch("u", &new, &new), None);
    }

    #[test]
    fn conditions_that_are_gone_are_deleted() {
        let old = status(json!({"conditions": [{"type": "Ready", "status": "False"}]}));
        let patch = status_patch("u", &old, &status(json!({"phase": "Failed"}))).unwrap();
        assert_eq!(patch["status"]["conditions"], json!([{"type": "Ready", "$patch": "delete"}]));
    }
}
