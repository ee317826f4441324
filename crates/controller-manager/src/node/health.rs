//! Whether a node has been heard of lately: by its lease, or by its status.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::condition;

/// What was last heard of a node, and when, by our own clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// The `Ready` condition then.
    pub ready: Option<NodeCondition>,
    /// When something new was heard.
    pub probed: Timestamp,
    renewed: Option<Timestamp>,
}

/// Compares with what was known: a new heartbeat in the status or a newer lease counts as a sign of life.
pub fn observe(old: Option<&Health>, node: &Node, lease: Option<&Lease>, now: Timestamp) -> Health {
    let ready = condition(node, "Ready").cloned();
    let created = node.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let mut probed = match (old, &ready) {
        (None, None) => created,
        (None, Some(_)) => now,
        (Some(o), None) if o.ready.is_none() => o.probed,
        (Some(o), Some(r)) => match &o.ready {
            Some(before) if before.last_heartbeat_time == r.last_heartbeat_time => o.probed,
            _ => now,
        },
        (Some(_), None) => now,
    };
    let before = old.and_then(|o| o.renewed);
    let mut renewed = before;
    if let Some(at) = lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref()).map(|t| t.0)
        && before.is_none_or(|b| b < at)
    {
        renewed = Some(at);
        probed = now;
    }
    Health { ready, probed, renewed }
}

/// Whether a node has been silent for too long. One that has never reported gets the start-up grace period.
pub fn is_silent(health: &Health, grace: Duration, startup_grace: Duration, now: Timestamp) -> bool {
    let grace = if health.ready.is_some() { grace } else { startup_grace };
    now.as_millisecond() - health.probed.as_millisecond()
        > i64::try_from(grace.as_millis()).unwrap_or(i64::MAX)
}

/// A silent node's conditions; `None` where its `Ready` condition says so already.
pub fn unknown_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    if condition(node, "Ready").is_some_and(|c| c.status == "Unknown") {
        return None;
    }
    let mut list = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    for type_ in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match list.iter_mut().find(|c| c.type_ == type_) {
            Some(c) if c.status == "Unknown" => {}
            Some(c) => {
                c.status = "Unknown".into();
                c.reason = Some("NodeStatusUnknown".into());
                c.message = Some("Kubelet stopped posting node status.".into());
                c.last_transition_time = Some(Time(now));
            }
            None => list.push(NodeCondition {
                type_: type_.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(s: &str) -> Timestamp {
        format!("2024-01-01T00:{s}Z").parse().unwrap()
    }

    fn node(heartbeat: Option<&str>) -> Node {
        let conditions: Vec<_> = heartbeat
            .iter()
            .map(|h| {
                json!({"type": "Ready", "status": "True", "lastHeartbeatTime": at(h).to_string(),
                    "lastTransitionTime": "2024-01-01T00:00:00Z"})
            })
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "n", "creationTimestamp": "2024-01-01T00:00:00Z"},
            "status": {"conditions": conditions}}))
        .unwrap()
    }

    fn lease(renewed: &str) -> Lease {
        serde_json::from_value(json!({"metadata": {"name": "n"},
            "spec": {"renewTime": format!("2024-01-01T00:{renewed}.000000Z")}}))
        .unwrap()
    }

    #[test]
    fn heartbeats_and_leases_are_signs_of_life() {
        let h = observe(None, &node(Some("00:01")), None, at("00:05"));
        assert_eq!(h.probed, at("00:05"));
        let same = observe(Some(&h), &node(Some("00:01")), None, at("00:10"));
        assert_eq!(same.probed, at("00:05"));
        let beat = observe(Some(&same), &node(Some("00:11")), None, at("00:12"));
        assert_eq!(beat.probed, at("00:12"));
        let renewed = observe(Some(&beat), &node(Some("00:11")), Some(&lease("00:13")), at("00:14"));
        assert_eq!(renewed.probed, at("00:14"));
        let stale = observe(Some(&renewed), &node(Some("00:11")), Some(&lease("00:13")), at("00:20"));
        assert_eq!(stale.probed, at("00:14"));
        let (grace, startup) = (Duration::from_secs(8), Duration::from_secs(60));
        assert!(!is_silent(&stale, grace, startup, at("00:22")));
        assert!(is_silent(&stale, grace, startup, at("00:23")));
        let never = observe(None, &node(None), None, at("00:30"));
        assert!(!is_silent(&never, grace, startup, at("01:00")));
        assert!(is_silent(&never, grace, startup, at("01:01")));
    }

    #[test]
    fn silence_is_unknown_with_the_reason() {
        let list = unknown_conditions(&node(Some("00:01")), at("00:09")).unwrap();
        let reasons: Vec<_> = list.iter().map(|c| (c.type_.as_str(), c.reason.as_deref().unwrap())).collect();
        assert_eq!(reasons[0], ("Ready", "NodeStatusUnknown"));
        assert_eq!(reasons[3], ("PIDPressure", "NodeStatusNeverUpdated"));
        let mut known = node(None);
        known.status.get_or_insert_default().conditions = Some(list);
        assert_eq!(unknown_conditions(&known, at("00:10")), None);
    }
}
