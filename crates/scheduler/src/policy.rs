//! Scheduling policies: how schedulers were configured before profiles, by `--policy-config-file`. Predicates and
//! priorities become the rules that took their place
//! (<https://v1-20.docs.kubernetes.io/docs/reference/scheduling/policies/>).

use serde::Deserialize;

use crate::config::ProfileConfig;
use crate::extender::ExtenderConfig;
use crate::profile::FILTERS;

/// The rules of predicates that are used where a policy names none.
const DEFAULT_PREDICATES: [&str; 12] = [
    "NoVolumeZoneConflict",
    "MaxEBSVolumeCount",
    "MaxGCEPDVolumeCount",
    "MaxAzureDiskVolumeCount",
    "MaxCSIVolumeCountPred",
    "MatchInterPodAffinity",
    "NoDiskConflict",
    "GeneralPredicates",
    "PodToleratesNodeTaints",
    "CheckVolumeBinding",
    "CheckNodeUnschedulable",
    "EvenPodsSpread",
];

/// Predicates that are used whatever a policy names.
const MANDATORY: [&str; 2] = ["PodToleratesNodeTaints", "CheckNodeUnschedulable"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    predicates: Option<Vec<Named>>,
    priorities: Option<Vec<Named>>,
    #[serde(default, alias = "extenderConfigs")]
    extenders: Vec<ExtenderConfig>,
    #[serde(default)]
    hard_pod_affinity_symmetric_weight: i64,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    weight: i64,
    argument: Option<serde_json::Value>,
}

/// The filters of a predicate.
fn filters(predicate: &str) -> Result<&'static [&'static str], String> {
    Ok(match predicate {
        "PodFitsPorts" | "PodFitsHostPorts" => &["NodePorts"],
        "PodFitsResources" => &["NodeResourcesFit"],
        "HostName" => &["NodeName"],
        "MatchNodeSelector" => &["NodeAffinity"],
        "GeneralPredicates" => &["NodeResourcesFit", "NodeName", "NodePorts", "NodeAffinity"],
        "PodToleratesNodeTaints" => &["TaintToleration"],
        "CheckNodeUnschedulable" => &["NodeUnschedulable"],
        "CheckVolumeBinding" => &["VolumeBinding"],
        "NoDiskConflict" => &["VolumeRestrictions"],
        "NoVolumeZoneConflict" => &["VolumeZone"],
        "MaxCSIVolumeCountPred" => &["NodeVolumeLimits"],
        "MaxEBSVolumeCount" => &["EBSLimits"],
        "MaxGCEPDVolumeCount" => &["GCEPDLimits"],
        "MaxAzureDiskVolumeCount" => &["AzureDiskLimits"],
        "MatchInterPodAffinity" => &["InterPodAffinity"],
        "EvenPodsSpread" => &["PodTopologySpread"],
        // These said what is always so.
        "CheckNodeCondition"
        | "CheckNodeMemoryPressure"
        | "CheckNodeDiskPressure"
        | "CheckNodePIDPressure" => &[],
        other => return Err(format!("predicate type {other:?} not found")),
    })
}

/// The score of a priority; `None` for one that makes no difference.
fn score(priority: &str) -> Result<Option<&'static str>, String> {
    Ok(Some(match priority {
        "SelectorSpreadPriority" | "ServiceSpreadingPriority" | "EvenPodsSpreadPriority" => {
            "PodTopologySpread"
        }
        "InterPodAffinityPriority" => "InterPodAffinity",
        "LeastRequestedPriority" => "NodeResourcesLeastAllocated",
        "MostRequestedPriority" => "NodeResourcesMostAllocated",
        "BalancedResourceAllocation" => "NodeResourcesBalancedAllocation",
        "NodePreferAvoidPodsPriority" => "NodePreferAvoidPods",
        "NodeAffinityPriority" => "NodeAffinity",
        "TaintTolerationPriority" => "TaintToleration",
        "ImageLocalityPriority" => "ImageLocality",
        "EqualPriority" => return Ok(None),
        other => return Err(format!("priority type {other:?} not found")),
    }))
}

/// Turns a profile into what a policy says, and gives its extenders. Errors are one line.
pub fn apply(text: &str, profile: &mut ProfileConfig) -> Result<Vec<ExtenderConfig>, String> {
    let policy: Policy = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    if policy.kind != "Policy"
        || !["v1", "kubescheduler.config.k8s.io/v1"].contains(&policy.api_version.as_str())
    {
        return Err(format!("no kind {:?} is registered for version {:?}", policy.kind, policy.api_version));
    }
    let custom = |n: &Named| -> Result<(), String> {
        match &n.argument {
            Some(_) => Err(format!("{}: predicates and priorities with arguments are not supported", n.name)),
            None => Ok(()),
        }
    };
    let mut named: Vec<&str> = match &policy.predicates {
        None => DEFAULT_PREDICATES.to_vec(),
        Some(list) => {
            list.iter().try_for_each(custom)?;
            list.iter().map(|p| p.name.as_str()).collect()
        }
    };
    named.extend(MANDATORY);
    let mut chosen = Vec::new();
    for predicate in named {
        chosen.extend(filters(predicate)?);
    }
    profile.filters = FILTERS.iter().filter(|f| chosen.contains(f)).map(|f| f.to_string()).collect();
    if let Some(list) = &policy.priorities {
        list.iter().try_for_each(custom)?;
        let mut scores: Vec<(String, i64)> = Vec::new();
        for p in list {
            if p.weight <= 0 {
                return Err(format!(
                    "priority {} should have a positive weight applied to it or it has overflown",
                    p.name
                ));
            }
            let Some(name) = score(&p.name)? else { continue };
            match scores.iter_mut().find(|(n, _)| n == name) {
                Some((_, weight)) => *weight += p.weight,
                None => scores.push((name.into(), p.weight)),
            }
        }
        profile.scores = scores;
    }
    if policy.hard_pod_affinity_symmetric_weight != 0 {
        profile.arguments.hard_pod_affinity_weight = Some(policy.hard_pod_affinity_symmetric_weight);
    }
    Ok(policy.extenders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_rules() {
        let mut p = ProfileConfig::new("default-scheduler");
        let extenders = apply(
            r#"{"kind": "Policy", "apiVersion": "v1",
                "predicates": [{"name": "GeneralPredicates"}, {"name": "NoDiskConflict"}],
                "priorities": [{"name": "LeastRequestedPriority", "weight": 1}, {"name": "SelectorSpreadPriority", "weight": 2},
                    {"name": "EqualPriority", "weight": 1}],
                "extenders": [{"urlPrefix": "http://x/y", "filterVerb": "filter", "weight": 5, "enableHttps": true}],
                "hardPodAffinitySymmetricWeight": 10}"#,
            &mut p,
        )
        .unwrap();
        assert_eq!(
            p.filters,
            [
                "NodeUnschedulable",
                "NodeName",
                "TaintToleration",
                "NodeAffinity",
                "NodePorts",
                "NodeResourcesFit",
                "VolumeRestrictions"
            ]
        );
        assert_eq!(
            p.scores,
            [("NodeResourcesLeastAllocated".to_string(), 1), ("PodTopologySpread".to_string(), 2)]
        );
        assert_eq!(p.arguments.hard_pod_affinity_weight, Some(10));
        assert_eq!((extenders.len(), extenders[0].weight, extenders[0].enable_https), (1, 5, true));
    }

    #[test]
    fn nothing_named_is_the_default_and_unknown_names_are_errors() {
        let mut p = ProfileConfig::new("x");
        apply("{kind: Policy, apiVersion: v1}", &mut p).unwrap();
        assert_eq!((p.filters.len(), p.scores.len()), (FILTERS.len(), 8));
        let mut with = |text: &str| apply(text, &mut p).unwrap_err();
        assert_eq!(
            with("{kind: Policy, apiVersion: v1, predicates: [{name: X}]}"),
            "predicate type \"X\" not found"
        );
        assert!(
            with("{kind: Policy, apiVersion: v1, priorities: [{name: EqualPriority}]}")
                .contains("positive weight")
        );
        assert!(with("{kind: Pod, apiVersion: v1}").contains("no kind"));
    }
}
